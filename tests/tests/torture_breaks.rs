//! Each invariant of the torture can fail: something is broken behind the driver's back, and it finds out. Needs root.

#![expect(clippy::unwrap_used, reason = "a step that fails, fails the test, in its helpers as well")]

use std::process::Command;

use dosguard_tests::cli::Said;

const SEED: &str = "11";
const LIVES: &str = "invariant: the daemon runs unless it was ended";
const ALLOWED: &str = "invariant: no packet of an allowed source is missing";
const BANNED: &str = "invariant: no packet of a banned source is behind the filter";
const FATES: &str = "invariant: what is banned is dropped, what is allowed passes";
const COUNTED: &str = "invariant: every packet is counted once";
const ROOM: &str = "invariant: what finds no room is counted and told";
const LISTS: &str = "invariant: lists say what administrators said";
const LEAKS: &str = "invariant: nothing is leaked";

/// What is broken, and what the driver must say of it: the invariant, and what it has found.
const BREAKS: [(&str, &str, &str); 22] = [
    ("ban-lost-in-flood", BANNED, " packets of `198.18.0.1` came through during the step"),
    ("round-the-filter", BANNED, ": 6 packets of `198.18.0.1` came through during the step"),
    (
        "ban-lost",
        FATES,
        "(interface 0): of 6 packets so many came through, instead of so many: [(\"2001:db8:b0:4::/64\", 6, 0)]",
    ),
    ("link-lost", FATES, "[(\"198.18.0.1\", 6, 0), (\"2001:db8:b0:4::/64\", 6, 0)]"),
    ("allowed-dropped", ALLOWED, " packets of `198.18.0.2` were behind the filter"),
    (
        "allowed-dropped-on-spare",
        FATES,
        "(interface 1): of 6 packets so many came through, instead of so many: [(\"198.18.0.2\", 0, 6)]",
    ),
    ("miscounted", COUNTED, " packets came in since the beginning, and "),
    ("loss-miscounted", ROOM, ": 0 SYNs were over the limit, and 1000000 bans came of it or found no room"),
    ("ban-added", LISTS, ": `bans list` and what was said differ in [\"198.18.0.10\"]"),
    ("allowed-lost", LISTS, ": `allow list` and what was said differ in [\"198.18.0.2\"]"),
    ("denied-added", LISTS, ": `deny list` and what was said differ in [\"198.18.0.2\"]"),
    (
        "refused-changes",
        "",
        "`sysctl -w events.rate=499 rule.web.limit=0/1s` was refused, and changed something",
    ),
    ("pin-added", LEAKS, ": pins that there should not be, or should: ["),
    ("pin-lost", LEAKS, ": pins that there should not be, or should: ["),
    ("map-held", LEAKS, ": the kernel has what nobody holds: [Map("),
    ("program-held", LEAKS, ": the kernel has what nobody holds: [Program("),
    ("link-held", LEAKS, ": the kernel has what nobody holds: [Link("),
    ("files", LEAKS, " files; "),
    ("threads", LEAKS, " threads; "),
    ("memory", LEAKS, ", and should have 131072 KiB at most"),
    ("dead", LIVES, " is gone: "),
    ("panicked", LIVES, ": it panicked: "),
];

fn torture(broken: &str) -> Said {
    let mut torture = Command::new(env!("CARGO_BIN_EXE_torture"));
    torture.args(["--seed", SEED, "--break", broken]).output().unwrap().into()
}

#[test]
fn whatever_is_broken_the_driver_finds_out_and_says_where() {
    // Whatever there is to break is in the list.
    let refused = torture("?").err;
    let known = refused.split_once("[possible values: ").unwrap().1.split_once(']').unwrap().0;
    let mut known: Vec<_> = known.split(", ").filter(|name| *name != "nothing").collect();
    let mut listed = BREAKS.map(|(name, ..)| name);
    known.sort_unstable();
    listed.sort_unstable();
    assert_eq!(known, listed);

    let whole = torture("nothing");
    assert!(whole.code == Some(0) && whole.out.contains("3 steps in"), "{whole:#?}");
    assert!(whole.out.contains("all invariants held") && whole.out.contains("; 0 defects"), "{whole:#?}");
    for (broken, invariant, found) in BREAKS {
        let said = torture(broken);
        assert_eq!(said.code, Some(1), "{broken}: {said:#?}");
        let line = said.out.lines().find(|line| line.starts_with("step 3 broke something: ")).unwrap();
        assert!(line.contains(invariant) && line.contains(found), "{broken}: {line}");
        assert!(said.out.starts_with("seed 11\n"), "{broken}: {said:#?}");
        let again = "seed 11 (it was broken on purpose); again with `cargo xtask torture --seed 11 --steps 3 --break ";
        assert!(said.out.contains(&format!("{again}{broken}`")), "{broken}: {said:#?}");
    }
}
