//! `attach --confirm`: what is not confirmed in time detaches, however the command that waits ends.

#![expect(clippy::unwrap_used, reason = "a test's helpers fail as the test itself does")]

use std::io::Read as _;
use std::os::unix::fs::MetadataExt as _;
use std::os::unix::net::UnixStream;
use std::process::{Child, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use dosguard_tests::addresses::{GUARD_ATTACKER_SIDE, GUARD_CLIENT_SIDE};
use dosguard_tests::cli::{
    Lines, PATIENCE, Said, assert_untouched, done, packets, pins, programs, refused, say, syns, words,
};
use dosguard_tests::daemon::Dosguard;
use dosguard_tests::lab::Lab;
use dosguard_tests::wait::wait_until;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// A command that waits to be confirmed; dropping it kills it.
struct Waiter {
    child: Child,
    lines: Lines,
}

impl Waiter {
    /// Starts it, and returns when it waits.
    fn start(dosguard: &Dosguard<'_>, line: &str) -> Self {
        let mut command = dosguard.command(words(line));
        let mut child = command.stderr(Stdio::piped()).spawn().unwrap();
        let lines = Lines::of(child.stderr.take().unwrap());
        let waiter = Self { child, lines };
        let said = waiter.until("waiting for confirmation: ");
        assert!(said.contains("`dosguard --instance lab confirm`"), "{said}");
        waiter
    }

    /// Reads up to a line that has this in it.
    fn until(&self, text: &str) -> String {
        loop {
            let line = self.lines.next();
            if line.contains(text) {
                return line;
            }
        }
    }

    fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(i32::try_from(self.child.id()).unwrap()), signal).unwrap();
    }

    /// Its exit status, when it has ended; none if a signal ended it.
    fn end(mut self) -> Option<i32> {
        wait_until("it ends", PATIENCE, || Ok(self.child.try_wait()?.is_some())).unwrap();
        self.child.wait().unwrap().code()
    }
}

impl Drop for Waiter {
    fn drop(&mut self) {
        // An error means that it has ended already.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

fn links(lab: &Lab) -> usize {
    pins(lab).iter().filter(|path| path.contains("/links/")).count()
}

#[test]
fn what_is_confirmed_stays() {
    let lab = Lab::new().unwrap();
    let dosguard = Dosguard::new(&lab).unwrap();
    let waiter =
        Waiter::start(&dosguard, &format!("attach --confirm 1h {GUARD_ATTACKER_SIDE} {GUARD_CLIENT_SIDE}"));
    assert_eq!((programs(lab.guard()).len(), links(&lab)), (2, 0), "attached, and not pinned");
    // It filters, and can be tuned: nobody is kept out by the wait.
    syns(&lab, &dosguard, 80, 1);
    assert_eq!(packets(&dosguard, &["under-limit"]), 1);
    done(&dosguard, "sysctl rule.default.limit=50/1s");
    let status = dosguard.status().unwrap();
    assert_eq!(status["interfaces"][1]["mode"], "native");
    assert!(status["interfaces"][0]["detaches_in_s"].as_f64().unwrap() > 3_000.0, "{status}");
    let text = done(&dosguard, "status");
    assert!(text.contains("guarding up0 in native mode, detaches in 3"), "{text}");
    assert!(text.contains("unless confirmed"), "{text}");
    // One waits at a time, and an interface that waits is not somebody else's.
    refused(&dosguard, &format!("attach --confirm 60s {GUARD_CLIENT_SIDE}"), &["waits to be confirmed"]);
    refused(
        &dosguard,
        &format!("attach {GUARD_CLIENT_SIDE}"),
        &["`up1`", "`dosguard --instance lab confirm` keeps it"],
    );
    // The terminal may go with the connection.
    waiter.signal(Signal::SIGHUP);
    let socket = lab.directory().run_dir().join("lab.confirm");
    assert_eq!(socket.metadata().unwrap().mode() & 0o777, 0o600);
    // Whoever says nothing, or nonsense, gets no answer and changes nothing.
    let _silent = UnixStream::connect(&socket).unwrap();
    let mut rude = UnixStream::connect(&socket).unwrap();
    std::io::Write::write_all(&mut rude, &[b'x'; 10_000]).unwrap_or_default();
    std::io::Write::write_all(&mut rude, b"\n").unwrap_or_default();
    let mut nothing = Vec::new();
    rude.read_to_end(&mut nothing).unwrap_or_default();
    assert_eq!(nothing, b"");

    let said = say(&dosguard, ["confirm"]);
    assert_eq!(said.code, Some(0), "{said:?}");
    assert!(said.err.contains("confirmed: guarding up0, up1"), "{said:?}");
    assert_eq!(waiter.end(), Some(0));
    assert_eq!((programs(lab.guard()).len(), links(&lab)), (2, 2));
    assert_eq!(dosguard.status().unwrap()["interfaces"][0]["detaches_in_s"], serde_json::Value::Null);
    assert!(!socket.exists());
    assert_eq!(say(&dosguard, ["confirm"]).code, Some(1), "nothing waits any more");
    // What is attached already needs no confirmation.
    done(&dosguard, &format!("attach --confirm 60s {GUARD_ATTACKER_SIDE}"));
}

#[test]
fn what_is_not_confirmed_in_time_is_gone() {
    let lab = Lab::new().unwrap();
    let dosguard = Dosguard::new(&lab).unwrap();
    let said = say(&dosguard, ["confirm"]);
    assert_eq!(said.code, Some(1));
    assert!(said.err.contains("nothing of instance `lab` waits"), "{said:?}");

    let began = Instant::now();
    let both = format!("attach --confirm 2s {GUARD_ATTACKER_SIDE} {GUARD_CLIENT_SIDE}");
    let said = say(&dosguard, words(&both));
    assert_eq!(said.code, Some(1), "{said:?}");
    assert!((2.0..10.0).contains(&began.elapsed().as_secs_f64()), "it took {:?}", began.elapsed());
    assert!(said.err.contains("not confirmed within 2s: detached from up0, up1"), "{said:?}");
    assert!(said.err.contains("gone again"), "{said:?}");
    assert_untouched(&lab);

    // On an instance that was there only the new link goes.
    done(&dosguard, &format!("attach {GUARD_ATTACKER_SIDE}"));
    done(&dosguard, "bans add 203.0.113.7");
    let said = say(&dosguard, words(&both));
    assert_eq!(said.code, Some(1), "{said:?}");
    assert!(said.err.contains("detached from up1\n"), "{said:?}");
    assert_eq!((programs(lab.guard()).len(), links(&lab)), (1, 1));
    assert_eq!(dosguard.status().unwrap()["bans"]["used"], 1);
    done(&dosguard, "detach --all");

    // Neither does an instance that somebody else has begun to use.
    let waiter = Waiter::start(&dosguard, &format!("attach --confirm 2s {GUARD_ATTACKER_SIDE}"));
    done(&dosguard, &format!("attach {GUARD_CLIENT_SIDE}"));
    assert_eq!(waiter.end(), Some(1));
    assert_eq!((programs(lab.guard()).len(), links(&lab)), (1, 1));
}

#[test]
fn however_the_command_ends_the_kernel_detaches() {
    let lab = Lab::new().unwrap();
    let dosguard = Dosguard::new(&lab).unwrap();
    let line = format!("attach --confirm 60s {GUARD_ATTACKER_SIDE} {GUARD_CLIENT_SIDE}");
    for signal in [Signal::SIGINT, Signal::SIGTERM] {
        let waiter = Waiter::start(&dosguard, &line);
        waiter.signal(signal);
        waiter.until("not confirmed: detached from up0, up1");
        assert_eq!(waiter.end(), Some(1), "{signal}");
        assert_untouched(&lab);
    }
    let waiter = Waiter::start(&dosguard, &line);
    waiter.signal(Signal::SIGKILL);
    assert_eq!(waiter.end(), None);
    wait_until("no program is attached", PATIENCE, || Ok(programs(lab.guard()).is_empty())).unwrap();
    let status: Said = dosguard.cli(["status"]).unwrap().into();
    assert_eq!(status.code, Some(1), "{status:?}");
    assert_eq!(say(&dosguard, ["confirm"]).code, Some(1), "its socket is still there");
    // The next one takes over what it has left.
    let waiter = Waiter::start(&dosguard, &line);
    done(&dosguard, "confirm");
    assert_eq!(waiter.end(), Some(0));
}

#[test]
fn a_detachment_ends_the_wait() {
    let lab = Lab::new().unwrap();
    let dosguard = Dosguard::new(&lab).unwrap();
    let line = format!("attach --confirm 60s {GUARD_ATTACKER_SIDE}");
    for detach in ["detach --all".to_owned(), format!("detach {GUARD_ATTACKER_SIDE}")] {
        let waiter = Waiter::start(&dosguard, &line);
        let said = say(&dosguard, words(&detach));
        assert!(said.err.contains("no longer waiting for confirmation: detached from up0"), "{said:?}");
        assert_eq!(waiter.end(), Some(1), "{detach}");
        assert_untouched(&lab);
    }
}

#[test]
fn what_cannot_be_taken_back_is_refused() {
    let lab = Lab::new().unwrap();
    let dosguard = Dosguard::new(&lab).unwrap();
    for bad in ["0s", "2h", "soon"] {
        refused(&dosguard, &format!("attach --confirm {bad} {GUARD_ATTACKER_SIDE}"), &[bad]);
    }
    refused(&dosguard, "attach --confirm 60s nope0", &["nope0"]);
    assert_untouched(&lab);
    let config = dosguard.write_config("c.toml", "allow = ['203.0.113.0/24']\n").unwrap();
    let with = |verb: &str, interface: &str| format!("{verb} -c {} {interface}", config.display());
    done(&dosguard, &format!("attach {GUARD_ATTACKER_SIDE}"));
    refused(&dosguard, &with("attach --confirm 60s", GUARD_CLIENT_SIDE), &["cannot take back"]);
    assert_eq!((programs(lab.guard()).len(), done(&dosguard, "allow list").as_str()), (1, ""));
    // The file that is in force changes nothing.
    done(&dosguard, &with("attach", GUARD_ATTACKER_SIDE));
    let waiter = Waiter::start(&dosguard, &with("attach --confirm 60s", GUARD_CLIENT_SIDE));
    done(&dosguard, "confirm");
    assert_eq!(waiter.end(), Some(0));
    // A confirmation that comes late is told so.
    sleep(Duration::from_millis(10));
    assert_eq!(say(&dosguard, ["confirm"]).code, Some(1));
}

#[test]
fn whoever_waits_keeps_the_instance() {
    let lab = Lab::new().unwrap();
    let dosguard = Dosguard::new(&lab).unwrap();
    let line = format!("attach --confirm 1h {GUARD_CLIENT_SIDE}");
    done(&dosguard, &format!("attach {GUARD_ATTACKER_SIDE}"));
    done(&dosguard, "bans add 203.0.113.7");
    let waiter = Waiter::start(&dosguard, &line);
    done(&dosguard, &format!("detach {GUARD_ATTACKER_SIDE}"));
    assert_eq!(dosguard.status().unwrap()["bans"]["used"], 1, "the instance is there");
    // Ctrl-Z does not keep it from detaching.
    waiter.signal(Signal::SIGTSTP);
    waiter.signal(Signal::SIGTTOU);
    done(&dosguard, "confirm");
    assert_eq!(waiter.end(), Some(0));
    assert_eq!((programs(lab.guard()).len(), links(&lab)), (1, 1));
    assert_eq!(dosguard.status().unwrap()["bans"]["used"], 1);

    // Neither does one that cannot answer lose it, and nobody waits for its answer for long.
    done(&dosguard, &format!("detach {GUARD_CLIENT_SIDE}"));
    done(&dosguard, &format!("attach {GUARD_ATTACKER_SIDE}"));
    let waiter = Waiter::start(&dosguard, &line);
    waiter.signal(Signal::SIGSTOP);
    let began = Instant::now();
    let status = dosguard.status().unwrap();
    assert!(began.elapsed() < Duration::from_secs(10), "it took {:?}", began.elapsed());
    assert!(status["warnings"].to_string().contains("a command waits to be confirmed"), "{status}");
    refused(&dosguard, "detach --all", &["does not answer", "kill -CONT"]);
    done(&dosguard, &format!("detach {GUARD_ATTACKER_SIDE}"));
    assert_eq!((programs(lab.guard()).len(), links(&lab)), (1, 0));
    waiter.signal(Signal::SIGCONT);
    wait_until("it answers again", PATIENCE, || {
        Ok(dosguard.status()?["interfaces"][0]["detaches_in_s"].is_number())
    })
    .unwrap();
    // The last interface takes the instance along, and whoever cancels sees that it worked.
    done(&dosguard, "detach --all");
    assert_eq!(waiter.end(), Some(1));
    assert_untouched(&lab);
}

#[test]
fn a_confirmation_is_of_the_instance_and_not_of_its_program() {
    let lab = Lab::new().unwrap();
    let dosguard = Dosguard::new(&lab).unwrap();
    let line = format!("attach --confirm 1h {GUARD_ATTACKER_SIDE}");
    let waiter = Waiter::start(&dosguard, &line);
    done(&dosguard, "upgrade --force");
    refused(
        &dosguard,
        &format!("attach {GUARD_ATTACKER_SIDE}"),
        &["`dosguard --instance lab confirm` keeps it"],
    );
    done(&dosguard, "confirm");
    assert_eq!(waiter.end(), Some(0));
    let id = dosguard.status().unwrap()["program"]["id"].clone();
    assert_eq!(dosguard.status().unwrap()["interfaces"][0]["mode"], "native", "it is on program {id}");
    done(&dosguard, "detach --all");

    // An interface that has gone cannot be confirmed.
    let waiter =
        Waiter::start(&dosguard, &format!("attach --confirm 1h {GUARD_ATTACKER_SIDE} {GUARD_CLIENT_SIDE}"));
    let deleted = lab.guard().command("ip").args(["link", "del", GUARD_CLIENT_SIDE]).status().unwrap();
    assert!(deleted.success());
    refused(&dosguard, "confirm", &["`up1` is gone"]);
    assert_eq!(waiter.end(), Some(2));
    assert_untouched(&lab);
}
