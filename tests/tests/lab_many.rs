//! A daemon with very many bans: events do not wait for them, and what is imposed is soon on the disk.

#![expect(clippy::unwrap_used, reason = "a test's helpers fail as the test itself does")]

use std::net::Ipv4Addr;
use std::ops::Range;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use dosguard::config::cidr::to_address;
use dosguard::daemon::ask_status;
use dosguard::datapath::Datapath;
use dosguard::system::boot_now_ns;
use dosguard_common::ban::Ban;
use dosguard_common::key::SourceKey;
use dosguard_common::rule::{RuleIndex, Scope};
use dosguard_tests::addresses::{GUARD_ATTACKER_SIDE, GUARD_V4, PEER};
use dosguard_tests::cli::{PATIENCE, done, loss, words};
use dosguard_tests::daemon::Dosguard;
use dosguard_tests::lab::Lab;
use dosguard_tests::packet::Packet;
use dosguard_tests::transmit::send_frames;
use dosguard_tests::wait::wait_until;
use rusqlite::{Connection, OpenFlags};

/// Bans that hold, and bans that end meanwhile.
const MANY: u32 = 200_000;
const ENDING: u32 = 80_000;

const CONFIG: &str = "\
[rule.default]
limit = '5/10s'
require_proof = false
ban = '10m'
[size]
bans = 300000
";

fn count(database: &Path, question: &str) -> u32 {
    let connection = Connection::open_with_flags(database, OpenFlags::SQLITE_OPEN_READ_ONLY).unwrap();
    connection.busy_timeout(PATIENCE).unwrap();
    connection.query_row(question, (), |row| row.get(0)).unwrap()
}

/// Set at the end, also if that is a failure.
struct OnDrop<'a>(&'a AtomicBool);

impl Drop for OnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[test]
fn with_very_many_bans_nobody_waits_and_a_power_cut_costs_the_last_second() {
    let lab = Lab::new().unwrap();
    let dosguard = Dosguard::new(&lab).unwrap();
    let config = dosguard.write_config("c.toml", CONFIG).unwrap();
    done(&dosguard, &format!("attach -c {} {GUARD_ATTACKER_SIDE}", config.display()));
    let paths = lab.paths();
    let mut datapath = Datapath::require(paths).unwrap();
    let looking = Datapath::require(paths).unwrap();
    let mut ban_many = |numbers: Range<u32>, lasts_s: u64| {
        let now_ns = boot_now_ns().unwrap();
        for number in numbers {
            let source = Ipv4Addr::from_bits(Ipv4Addr::new(20, 0, 0, 0).to_bits() + number);
            let until_ns = now_ns + lasts_s * 1_000_000_000;
            let ban = Ban::by_admin(Scope::All, RuleIndex::DEFAULT, now_ns, until_ns, "");
            datapath.maps_mut().set_ban(&SourceKey::everywhere(to_address(source.into())), &ban).unwrap();
        }
    };
    ban_many(0..MANY, 3_600);
    let daemon = dosguard.start(words(&format!("run -c {}", config.display()))).unwrap();
    let database = paths.database();
    wait_until("what holds is saved", 6 * PATIENCE, || {
        Ok(database.exists() && count(&database, "SELECT count(*) FROM saved_bans") >= MANY)
    })
    .unwrap();

    // They were put there without the daemon: it has told all of them at once.
    let lost = || {
        let status = dosguard.status().unwrap();
        ["not-printed", "history-not-written"].map(|name| loss(&status, name))
    };
    let lost_before = lost();

    let ended = AtomicBool::new(false);
    let (slowest, answers) = thread::scope(|scope| {
        let until_end = OnDrop(&ended);
        let asking = scope.spawn(|| {
            let (mut slowest, mut answers) = (Duration::ZERO, 0);
            while !ended.load(Ordering::Relaxed) {
                let began = Instant::now();
                ask_status(paths).unwrap();
                slowest = slowest.max(began.elapsed());
                answers += 1;
                thread::sleep(Duration::from_millis(20));
            }
            (slowest, answers)
        });
        let saved_after = |round: u8| {
            let source = Ipv4Addr::new(198, 51, 100, 100 + round);
            let syn = Packet::eth().ipv4(source, GUARD_V4).tcp(1, 8080).syn().build();
            send_frames(lab.attacker(), PEER, &vec![syn; 6]).unwrap();
            let key = SourceKey::everywhere(to_address(source.into()));
            let question = format!("SELECT count(*) FROM saved_bans WHERE source = '{source}'");
            wait_until("it is saved", PATIENCE, || Ok(count(&database, &question) == 1)).unwrap();
            let since_ns = looking.maps().ban(&key).unwrap().unwrap().since_ns;
            let took = Duration::from_nanos(boot_now_ns().unwrap() - since_ns);
            eprintln!("a ban was on the disk after {took:.0?}");
            took
        };
        let mut took: Vec<_> = (0..9).map(saved_after).collect();
        ban_many(MANY..MANY + ENDING, 1);
        wait_until("the first end is told", 3 * PATIENCE, || {
            Ok(count(&database, "SELECT count(*) FROM events WHERE kind = 'unban'") > 0)
        })
        .unwrap();
        // While the others are being told, too.
        took.push(saved_after(9));
        wait_until("what has ended is told", 3 * PATIENCE, || {
            Ok(count(&database, "SELECT count(*) FROM events WHERE kind = 'unban'") == ENDING)
        })
        .unwrap();
        drop(until_end);
        // A machine that is busy with other things may be late now and then.
        took.sort_unstable();
        assert!(took[7] < Duration::from_secs(1) && took[9] < Duration::from_secs(5), "{took:?}");
        asking.join().unwrap()
    });
    eprintln!("the slowest of {answers} answers of the event loop took {slowest:.0?}");
    assert!(slowest < Duration::from_secs(1), "{slowest:?}");
    let holds = looking.look().unwrap();
    assert_eq!((holds.bans.len(), holds.expired.len()), (MANY as usize + 10, 0));
    // So many ends at once are more than anybody's queue holds, and no more than those who listen can take.
    assert_eq!(lost(), lost_before);
    assert!(daemon.terminate().unwrap().success());
}
