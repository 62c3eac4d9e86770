//! Everything an administrator does, under a flood: not one packet of a banned source gets through, no ban is lost, and
//! the history tells the whole story once.

#![expect(clippy::unwrap_used, reason = "a test's helpers fail as the test itself does")]

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Write as _;
use std::net::Ipv4Addr;
use std::path::Path;
use std::time::Duration;

use dosguard_tests::addresses::{FORGED_V4, GUARD_ATTACKER_SIDE, GUARD_V4, PEER};
use dosguard_tests::cli::{bans, done, loss, syns_from};
use dosguard_tests::counter::StackCounters;
use dosguard_tests::daemon::{Daemon, Dosguard};
use dosguard_tests::flood::{Flood, RunningFlood};
use dosguard_tests::lab::Lab;
use dosguard_tests::packet::Packet;
use dosguard_tests::small_disk::SmallDisk;
use dosguard_tests::wait::wait_until;
use nix::sys::signal::Signal;
use serde_json::Value;

const LIMIT: u64 = 20;
const RELOADS: usize = 100;
const REPLACEMENTS: usize = 100;
const KILLS: usize = 20;
/// SYNs a second.
const RATE: u64 = 50_000;
/// Reloads, replacements and the rest take their time beside a flood.
const PATIENCE: Duration = Duration::from_secs(30);

/// What is done to the instance, and which bans must be there.
struct Run<'a> {
    lab: &'a Lab,
    dosguard: Dosguard<'a>,
    daemon: Option<Daemon<'a>>,
    marks: u8,
    flood: Option<RunningFlood>,
    offered: u64,
}

impl Run<'_> {
    /// Bans one more source.
    fn mark(&mut self) {
        self.marks += 1;
        syns_from(self.lab, &self.dosguard, mark(self.marks), 8080, 12);
    }

    /// Floods from the banned source; one flood lasts a minute at most.
    fn flood(&mut self) {
        self.calm();
        let syn = Packet::eth().ipv4(FORGED_V4, GUARD_V4).tcp(40_000, 80).syn().build();
        let flood = Flood::new(syn).rate(RATE).duration(Duration::from_secs(60));
        self.flood = Some(flood.start(self.lab.attacker(), PEER).unwrap());
    }

    fn calm(&mut self) {
        self.offered += self.flood.take().map_or(0, |flood| flood.stop().unwrap().sent);
    }

    /// Does something so many times, under a flood that never pauses for long.
    fn under_flood(&mut self, times: usize, mut what: impl FnMut(&mut Self, usize)) {
        for round in 1..=times {
            if round % 20 == 1 {
                self.flood();
            }
            what(self, round);
        }
    }

    fn config(&self, round: usize) {
        let (limit, allowed) = (5 + round % 5, round % 7);
        let text = format!(
            "allow = ['192.0.2.{allowed}']\n[rule.default]\nlimit = '{LIMIT}/1s'\nrequire_proof = false\nban = '1h'\n\
             [rule.web]\nports = ['tcp/8080']\nlimit = '{limit}/10s'\nrequire_proof = false\nban = '1h'\n"
        );
        self.dosguard.write_config("c.toml", &text).unwrap();
    }

    fn start(&mut self) {
        let config = self.lab.directory().path().join("c.toml");
        let arguments = ["run", "-c", config.to_str().unwrap(), GUARD_ATTACKER_SIDE];
        self.daemon = Some(self.dosguard.start(arguments).unwrap());
    }

    fn wait(&self, what: &str, mut done: impl FnMut() -> bool) {
        let waited = wait_until(what, PATIENCE, || Ok(done()));
        let said = || self.daemon.as_ref().map(|daemon| daemon.stderr().unwrap()).unwrap_or_default();
        assert!(waited.is_ok(), "{what}\n{}", said());
    }

    fn reload(&self, round: usize) {
        self.config(round);
        self.daemon.as_ref().unwrap().signal(Signal::SIGHUP).unwrap();
        let (limit, allowed) = (format!("{}/10s\n", 5 + round % 5), format!("192.0.2.{}\n", round % 7));
        self.wait("the reload", || {
            done(&self.dosguard, "sysctl -n rule.web.limit") == limit
                && done(&self.dosguard, "allow list").starts_with(allowed.trim_end())
        });
    }

    fn loss(&self, name: &str) -> u64 {
        loss(&self.dosguard.status().unwrap(), name)
    }

    fn warnings(&self) -> Vec<Value> {
        self.dosguard.status().unwrap()["warnings"].as_array().unwrap().clone()
    }
}

/// Leaves nothing of a file but its length.
fn overwrite(path: &Path) {
    let mut file = File::options().write(true).open(path).unwrap();
    let length = usize::try_from(file.metadata().unwrap().len()).unwrap();
    file.write_all(&vec![0xa5; length]).unwrap();
}

fn mark(number: u8) -> Ipv4Addr {
    Ipv4Addr::new(203, 0, 113, number)
}

#[test]
fn nothing_an_administrator_does_lets_a_banned_source_through() {
    let lab = Lab::new().unwrap();
    let state = lab.directory().state_dir();
    let disk = SmallDisk::mount(&state, 3 * 1024).unwrap();
    let stack = StackCounters::install(lab.guard(), &[GUARD_ATTACKER_SIDE], &[FORGED_V4.into()]).unwrap();
    let reached = || stack.read().unwrap().packets(FORGED_V4.into()).unwrap();
    let mut run = Run {
        lab: &lab,
        dosguard: Dosguard::new(&lab).unwrap(),
        daemon: None,
        marks: 0,
        flood: None,
        offered: 0,
    };
    run.config(0);
    run.start();
    run.flood();
    run.wait("the ban", || !bans(&run.dosguard).is_empty());
    assert_eq!(reached(), LIMIT);

    run.under_flood(RELOADS, |run, round| {
        run.reload(round);
        if round % 20 == 0 {
            run.mark();
        }
    });
    assert_eq!(reached(), LIMIT, "after {RELOADS} reloads");
    run.under_flood(REPLACEMENTS, |run, round| {
        done(&run.dosguard, "upgrade --force");
        if round % 20 == 0 {
            run.mark();
        }
    });
    assert_eq!(reached(), LIMIT, "after {REPLACEMENTS} program replacements");
    run.under_flood(KILLS, |run, _| {
        run.mark();
        run.daemon.take().unwrap().kill9().unwrap();
        run.mark();
        run.start();
    });
    assert_eq!(reached(), LIMIT, "after {KILLS} times `kill -9`");

    // A disk that fills up, and has room again.
    run.flood();
    disk.fill().unwrap();
    run.mark();
    run.wait("the full disk is told", || {
        run.warnings().iter().any(|text| text.as_str().unwrap().contains("history"))
    });
    run.mark();
    disk.free().unwrap();
    run.wait("the history works again", || run.warnings().is_empty());
    assert_eq!(run.loss("history-not-written"), 0, "what waited was written");

    run.flood();
    // A database of which nothing is left but its length.
    run.mark();
    run.daemon.take().unwrap().kill9().unwrap();
    overwrite(&state.join("lab.db"));
    overwrite(&state.join("lab.db-wal"));
    run.mark();
    run.start();
    let set_aside = || {
        let names = fs::read_dir(&state).unwrap().map(|entry| entry.unwrap().file_name());
        names
            .filter(|name| {
                name.to_string_lossy().contains(".corrupt-") && name.to_string_lossy().ends_with('Z')
            })
            .count()
    };
    assert_eq!(set_aside(), 1, "the damaged file is kept");
    run.mark();
    assert_eq!(reached(), LIMIT, "with a full disk and a corrupt database");

    let sources = |records: &[Value]| {
        let mut counted = BTreeMap::<String, usize>::new();
        for record in records {
            *counted.entry(record["source"].as_str().unwrap().to_owned()).or_default() += 1;
        }
        counted
    };
    let expected: BTreeMap<_, _> =
        (1..=run.marks).map(mark).chain([FORGED_V4]).map(|source| (source.to_string(), 1)).collect();
    let story = |run: &Run<'_>| run.dosguard.json(["events", "--json", "--since", "1h"]).unwrap();
    // What the new history lacks is told again from the bans that hold.
    let _ = wait_until("the whole story", PATIENCE, || Ok(sources(&story(&run)) == expected));
    assert_eq!(sources(&story(&run)), expected, "each ban is told once");

    // And once more from the disk.
    run.daemon.take().unwrap().kill9().unwrap();
    run.start();
    run.calm();
    let offered = run.offered;
    assert_eq!(reached(), LIMIT, "of {offered} in the whole test");
    assert_eq!(sources(&bans(&run.dosguard)), expected, "every ban is there");
    let story = story(&run);
    assert_eq!(sources(&story), expected, "each ban is told once");
    assert!(story.iter().all(|event| event["kind"] == "ban"), "{story:?}");
    let numbers: Vec<_> = story.iter().map(|event| event["seq"].as_u64().unwrap()).collect();
    assert!(numbers.is_sorted_by(|one, next| one < next), "{numbers:?}");
    println!(
        "{offered} packets offered, {LIMIT} reached the server; {} bans, each told once",
        expected.len()
    );
}
