//! dosguard against what it replaces: the same SYNs, at the same time, through `iptables -m recent`, `-m hashlimit` and
//! dosguard. The table of what is expected is in `dosguard_tests::xtables::sequences`; `docs/xtables.md` shows it.

#![expect(clippy::unwrap_used, reason = "a test's helpers fail as the test itself does")]

use dosguard_tests::lab::Lab;
use dosguard_tests::xtables::Contender::{self, Ban, Drop, ListRcheck, ListUpdate, RcheckSet, Refresh};
use dosguard_tests::xtables::play::{Outcome, play};
use dosguard_tests::xtables::sequences::{SEQUENCES, SLACK};
use dosguard_tests::xtables::table::{Decisions, expected, render, render_all};

/// How often the sequences are played until no SYN was late.
const ATTEMPTS: u32 = 5;

/// The decisions about SYNs that were decided when they were meant to be. Only their times may make it play again.
fn measure() -> Vec<Decisions> {
    for attempt in 1..=ATTEMPTS {
        let lab = Lab::new().unwrap();
        match play(&lab).unwrap() {
            Outcome::Decided(decisions, latest) => {
                println!("played in attempt {attempt}; the latest SYN was {latest:?} late\n");
                return decisions;
            }
            Outcome::Late(by) => println!("attempt {attempt}: a SYN was {by:?} late, more than {SLACK:?}"),
        }
    }
    panic!("this machine is too busy: in none of {ATTEMPTS} attempts were all SYNs decided within {SLACK:?}");
}

#[test]
fn the_same_syns_are_decided_as_the_table_says() {
    let measured = measure();
    let of = |name: &str, contender: Contender| -> &str {
        let position = SEQUENCES.iter().position(|sequence| sequence.name == name).unwrap();
        &measured[position][&contender]
    };
    let mut rows = measured.iter();
    println!("{}", render_all(|_| rows.next().unwrap().clone()));

    for (sequence, measured) in SEQUENCES.iter().zip(&measured) {
        let expected = expected(sequence);
        assert_eq!(
            *measured,
            expected,
            "measured:\n{}\nexpected:\n{}",
            render(sequence, measured),
            render(sequence, &expected)
        );
    }

    // The promise: what a ban drops does not prolong it, as with `--rcheck`; with `refresh` it does, as with `--update`.
    for sequence in SEQUENCES {
        let name = sequence.name;
        assert_eq!(of(name, Drop), of(name, RcheckSet), "{name}");
        // But a second offence is banned for twice as long, which no list does.
        if name != "a second offence" {
            assert_eq!(of(name, Ban), of(name, ListRcheck), "{name}");
            assert_eq!(of(name, Refresh), of(name, ListUpdate), "{name}");
        }
    }
    let (trying, waiting) = ("a client that keeps on trying", "a client that waits until the ban is over");
    for contender in [Ban, ListRcheck] {
        assert!(of(trying, contender).ends_with("..."), "it gets out as if it had not tried");
        assert!(of(waiting, contender).ends_with("..."));
    }
    for contender in [Refresh, ListUpdate] {
        assert!(of(trying, contender).ends_with("xxx"), "each try begins the ban anew");
        assert!(of(waiting, contender).ends_with("..."));
    }
}
