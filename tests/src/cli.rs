//! The command line in tests: commands that succeed or are refused, and what they leave in the kernel.

#![expect(clippy::unwrap_used, clippy::expect_used, reason = "a test's helpers fail as the test itself does")]

use std::{
    ffi::OsStr,
    fs,
    io::{BufRead as _, BufReader, Read},
    net::Ipv4Addr,
    path::Path,
    process::{Child, Output, Stdio},
    sync::mpsc::{Receiver, channel},
    thread,
    time::Duration,
};

use jiff::Timestamp;
use serde_json::Value;

use crate::{
    addresses::{FORGED_V4, GUARD_ATTACKER_SIDE, GUARD_CLIENT_SIDE, GUARD_V4, PEER},
    daemon::{Daemon, Dosguard},
    directory::walk,
    lab::Lab,
    netns::Namespace,
    packet::Packet,
    transmit::send_frames,
    wait::wait_until,
};

/// How long whatever should happen soon may take.
pub const PATIENCE: Duration = Duration::from_secs(10);

/// Two rules by which SYNs alone ban, and an allowed network that sends nothing.
pub const CONFIG: &str = "\
allow = ['192.0.2.0/24']
[rule.default]
limit = '5/10s'
require_proof = false
ban = '2s'
[rule.smtp]
ports = ['tcp/25', 'tcp/587']
limit = '3/60s'
scope = 'syn'
require_proof = false
";

/// What becomes of a SYN that the lab sends.
const JUDGED: [&str; 8] = [
    "under-limit",
    "over-limit",
    "banned",
    "allowed",
    "denied",
    "monitored-over-limit",
    "monitored-banned",
    "monitored-denied",
];

/// What a command said.
#[derive(Debug)]
pub struct Said {
    /// Its exit status.
    pub code: Option<i32>,
    /// Its standard output.
    pub out: String,
    /// Its standard error.
    pub err: String,
}

impl From<Output> for Said {
    fn from(output: Output) -> Self {
        Self {
            code: output.status.code(),
            out: String::from_utf8(output.stdout).unwrap(),
            err: String::from_utf8(output.stderr).unwrap(),
        }
    }
}

impl Said {
    /// Exit status 2, an error that names all of `what`, and a hint.
    pub fn assert_refused(&self, what: &[&str]) {
        assert_eq!(self.code, Some(2), "{self:?}");
        assert!(self.err.starts_with("error: ") && self.err.contains("\nhint: "), "{self:?}");
        for what in what {
            assert!(self.err.contains(what), "it does not say `{what}`: {self:?}");
        }
    }
}

/// Runs a command to its end.
pub fn say<S: AsRef<OsStr>>(dosguard: &Dosguard<'_>, arguments: impl IntoIterator<Item = S>) -> Said {
    dosguard.cli(arguments).unwrap().into()
}

/// The arguments of a command line without quotes.
pub fn words(line: &str) -> impl Iterator<Item = &str> {
    line.split_whitespace()
}

/// Runs a command that must succeed and returns what it wrote to stdout.
pub fn done(dosguard: &Dosguard<'_>, line: &str) -> String {
    let said = say(dosguard, words(line));
    assert_eq!(said.code, Some(0), "`{line}`: {said:?}");
    said.out
}

/// Runs a command that must be refused with an error that names all of `what`.
pub fn refused(dosguard: &Dosguard<'_>, line: &str, what: &[&str]) {
    say(dosguard, words(line)).assert_refused(what);
}

/// Attaches to interfaces, with this configuration.
pub fn attach(dosguard: &Dosguard<'_>, config: &str, interfaces: &str) {
    let file = dosguard.write_config("c.toml", config).unwrap();
    done(dosguard, &format!("attach -c {} {interfaces}", file.display()));
}

/// Starts a daemon with [`CONFIG`] and more options on the attacker's side.
pub fn start<'a>(dosguard: &Dosguard<'a>, more: &str) -> Daemon<'a> {
    dosguard.start(words(&run_line(dosguard, more))).unwrap()
}

/// The same with its standard output going somewhere else than into a file.
pub fn start_into<'a>(dosguard: &Dosguard<'a>, stdout: impl Into<Stdio>) -> Daemon<'a> {
    dosguard.start_into(stdout, words(&run_line(dosguard, ""))).unwrap()
}

fn run_line(dosguard: &Dosguard<'_>, more: &str) -> String {
    let config = dosguard.write_config("c.toml", CONFIG).unwrap();
    format!("run -c {} {more} {GUARD_ATTACKER_SIDE}", config.display())
}

/// Starts a daemon with this configuration and events as JSON, on both sides of the lab.
pub fn start_telling<'a>(dosguard: &Dosguard<'a>, config: &str) -> Daemon<'a> {
    let file = dosguard.write_config("c.toml", config).unwrap();
    let line = format!("run --json -c {} {GUARD_ATTACKER_SIDE} {GUARD_CLIENT_SIDE}", file.display());
    dosguard.start(words(&line)).unwrap()
}

/// All events that such a daemon has told.
#[must_use]
pub fn told(daemon: &Daemon<'_>) -> Vec<Value> {
    let text = daemon.stdout().unwrap();
    let whole = text.rsplit_once('\n').map_or("", |(whole, _)| whole);
    whole.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// Those of a kind.
#[must_use]
pub fn events(daemon: &Daemon<'_>, kind: &str) -> Vec<Value> {
    told(daemon).into_iter().filter(|event| event["kind"] == kind).collect()
}

/// The bans that `bans list` shows.
#[must_use]
pub fn bans(dosguard: &Dosguard<'_>) -> Vec<Value> {
    dosguard.json(["bans", "list", "--json"]).unwrap()
}

/// How often the daemon lost something, by what its `status` says.
#[must_use]
pub fn loss(status: &Value, name: &str) -> u64 {
    let losses = status["daemon"]["losses"].as_array().unwrap();
    losses.iter().find(|loss| loss["name"] == name).unwrap()["count"].as_u64().unwrap()
}

/// Packets that dosguard judged for one of these reasons, by `status`.
#[must_use]
pub fn packets(dosguard: &Dosguard<'_>, reasons: &[&str]) -> u64 {
    let status = dosguard.status().unwrap();
    let counters = status["counters"].as_array().unwrap().iter();
    counters
        .filter(|counter| reasons.contains(&counter["reason"].as_str().unwrap()))
        .map(|counter| counter["packets"].as_u64().unwrap())
        .sum()
}

/// Sends SYNs from [`FORGED_V4`], and waits until all of them have been judged.
pub fn syns(lab: &Lab, dosguard: &Dosguard<'_>, port: u16, count: usize) {
    syns_from(lab, dosguard, FORGED_V4, port, count);
}

/// The same from another source.
pub fn syns_from(lab: &Lab, dosguard: &Dosguard<'_>, source: Ipv4Addr, port: u16, count: usize) {
    let expected = packets(dosguard, &JUDGED) + u64::try_from(count).unwrap();
    let syn = Packet::eth().ipv4(source, GUARD_V4).tcp(1, port).syn().build();
    send_frames(lab.attacker(), PEER, &vec![syn; count]).unwrap();
    wait_until("every SYN is judged", PATIENCE, || Ok(packets(dosguard, &JUDGED) >= expected)).unwrap();
}

/// Everything that is pinned.
#[must_use]
pub fn pins(lab: &Lab) -> Vec<String> {
    let paths = walk(&lab.directory().bpffs()).unwrap();
    // Those were put there by the kernel itself.
    paths.iter().map(|path| path.display().to_string()).filter(|path| !path.ends_with(".debug")).collect()
}

/// The programs on a namespace's interfaces, as `ip` shows them.
#[must_use]
pub fn programs(namespace: &Namespace) -> Vec<String> {
    let text = namespace.run("ip", ["-details", "-json", "link", "show"]).unwrap();
    let links: Vec<Value> = serde_json::from_str(&text).unwrap();
    links.iter().filter_map(|link| link.get("xdp")).map(ToString::to_string).collect()
}

/// A boot as far as dosguard can tell: no pins, and no process.
pub fn boot(lab: &Lab) {
    fn remove(folder: &Path) {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() { remove(&path) } else { fs::remove_file(&path).unwrap() }
        }
        fs::remove_dir(folder).unwrap();
    }
    remove(&lab.directory().bpffs().join("dosguard"));
    // Without its pin a link goes a moment later.
    wait_until("nothing is attached", PATIENCE, || Ok(programs(lab.guard()).is_empty())).unwrap();
}

/// Nothing is pinned, and nothing is on the guard's interfaces.
pub fn assert_untouched(lab: &Lab) {
    assert_eq!(pins(lab), Vec::<String>::new());
    // The kernel takes a program off its interface a moment after its link is gone, from a work queue.
    wait_until("no program is attached", PATIENCE, || Ok(programs(lab.guard()).is_empty())).unwrap();
}

/// A record's time stamp.
#[must_use]
pub fn at(record: &Value, field: &str) -> Timestamp {
    record[field].as_str().unwrap().parse().unwrap()
}

/// Two records mean the same moment. Each rounds the difference of the clocks for itself, to a millisecond.
pub fn assert_same_moment(one: &Value, other: &Value, field: &str) {
    let apart = at(one, field).duration_since(at(other, field)).abs();
    assert!(apart.as_millis() <= 2, "{apart:?} between `{field}` of {one} and {other}");
}

/// Lines as they come, none of which is waited for longer than [`PATIENCE`].
#[derive(Debug)]
pub struct Lines {
    lines: Receiver<String>,
}

impl Lines {
    /// Reads until the other end is closed, or this is dropped and one more line has come.
    pub fn of(stream: impl Read + Send + 'static) -> Self {
        let (sender, lines) = channel();
        thread::spawn(move || {
            for line in BufReader::new(stream).lines().map_while(Result::ok) {
                if sender.send(line).is_err() {
                    return; // nobody listens any more
                }
            }
        });
        Self { lines }
    }

    /// The next one.
    #[must_use]
    pub fn next(&self) -> String {
        self.lines.recv_timeout(PATIENCE).expect("a line should have come")
    }
}

/// A running `events -f --json`; dropping it ends it.
#[derive(Debug)]
pub struct Listener {
    child: Child,
    lines: Lines,
}

impl Listener {
    /// Starts it.
    #[must_use]
    pub fn start(dosguard: &Dosguard<'_>) -> Self {
        let mut command = dosguard.command(["events", "-f", "--json"]);
        let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
        let lines = Lines::of(child.stdout.take().unwrap());
        Self { child, lines }
    }

    /// The next event.
    #[must_use]
    pub fn next(&self) -> Value {
        serde_json::from_str(&self.lines.next()).unwrap()
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        // An error means that it has ended already.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}
