//! Replacing the program under a flood, on several interfaces, and when it is refused, killed or of another dosguard.

#![expect(clippy::unwrap_used, reason = "a test's helpers fail as the test itself does")]

use std::collections::BTreeSet;
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::process::{Child, Stdio};
use std::time::Duration;

use aya::maps::MapData;
use aya::programs::Xdp;
use aya::programs::links::{FdLink, PinnedLink};
use aya::programs::xdp::XdpLink;
use aya_obj::programs::XdpAttachType;
use dosguard::datapath::{Datapath, Error, LoadOptions, Loaded, SHIPPED};
use dosguard::paths::Paths;
use dosguard_common::abi;
use dosguard_common::address::Address;
use dosguard_common::ban::Ban;
use dosguard_common::key::SourceKey;
use dosguard_common::reason::Reason;
use dosguard_common::rule::{RuleIndex, Scope};
use dosguard_tests::addresses::{
    FORGED_V4, GUARD_ATTACKER_SIDE, GUARD_CLIENT_SIDE, GUARD_V4, PEER, SECOND_FORGED_V4,
};
use dosguard_tests::cli::{PATIENCE, done, pins, programs, refused, say, words};
use dosguard_tests::counter::StackCounters;
use dosguard_tests::daemon::Dosguard;

use dosguard_tests::flood::{Flood, MAX_DURATION, RunningFlood};
use dosguard_tests::lab::Lab;
use dosguard_tests::netns::Namespace;
use dosguard_tests::objects::FLOOD_OBJECT;
use dosguard_tests::packet::{Frame, Packet};
use dosguard_tests::transmit::send_frames;
use dosguard_tests::wait::wait_until;

const LIMIT: u64 = 20;
const CONFIG: &str = "allow = ['192.0.2.0/24']\n[rule.default]\nlimit = '20/1s'\nban = '10m'\n";

fn syn(source: Ipv4Addr) -> Frame {
    Packet::eth().ipv4(source, GUARD_V4).tcp(40_000, 80).syn().build()
}

fn paths(lab: &Lab) -> Paths {
    let directory = lab.directory();
    Paths::new("lab", directory.bpffs(), directory.run_dir(), directory.state_dir()).unwrap()
}

fn open(lab: &Lab) -> Datapath {
    Datapath::require(&paths(lab)).unwrap()
}

fn everywhere(source: Ipv4Addr) -> SourceKey {
    SourceKey::everywhere(Address::from_ipv4(source.octets()))
}

/// The ids of the programs on a namespace's interfaces.
fn ids(namespace: &Namespace) -> BTreeSet<u64> {
    let id = |xdp: String| serde_json::from_str::<serde_json::Value>(&xdp).unwrap()["prog"]["id"].as_u64();
    programs(namespace).into_iter().map(|xdp| id(xdp).unwrap()).collect()
}

/// The one program that is on all of them.
fn one_program(namespaces: &[&Namespace]) -> u64 {
    let all: BTreeSet<_> = namespaces.iter().flat_map(|namespace| ids(namespace)).collect();
    assert_eq!(all.len(), 1, "one program on all interfaces: {all:?}");
    all.into_iter().next().unwrap()
}

/// A flood from a source that is banned before long, with a count of what gets by, and fifty bans more.
struct Siege<'a> {
    lab: &'a Lab,
    stack: StackCounters<'a>,
    flood: Option<RunningFlood>,
    sent: u64,
}

impl<'a> Siege<'a> {
    fn begin(lab: &'a Lab) -> Self {
        let stack = StackCounters::install(lab.guard(), &[GUARD_ATTACKER_SIDE], &[FORGED_V4.into()]).unwrap();
        let mut siege = Self { lab, stack, flood: None, sent: 0 };
        siege.go_on();
        let mut datapath = open(lab);
        let banned = || datapath.maps().ban(&everywhere(FORGED_V4)).unwrap().is_some();
        wait_until("the ban", PATIENCE, || Ok(banned())).unwrap();
        for host in 0..50 {
            let ban = Ban::by_admin(Scope::All, RuleIndex::DEFAULT, 1, u64::MAX, "kept");
            datapath.maps_mut().set_ban(&everywhere(Ipv4Addr::new(203, 0, 113, host)), &ban).unwrap();
        }
        // A source that is being counted: its window must survive, too.
        send_frames(lab.attacker(), PEER, &vec![syn(SECOND_FORGED_V4); 15]).unwrap();
        assert_eq!(siege.reached(), LIMIT);
        siege
    }

    /// Starts another flood when the one before has ended: each has its bounds.
    fn go_on(&mut self) {
        if self.flood.as_ref().is_some_and(|flood| !flood.is_finished()) {
            return;
        }
        self.sent += self.flood.take().map_or(0, |flood| flood.join().unwrap().sent);
        let flood = Flood::new(syn(FORGED_V4)).rate(100_000).duration(MAX_DURATION);
        self.flood = Some(flood.start(self.lab.attacker(), PEER).unwrap());
    }

    fn reached(&self) -> u64 {
        self.stack.read().unwrap().packets(FORGED_V4.into()).unwrap()
    }

    fn dropped(&self, datapath: &Datapath) -> u64 {
        [Reason::Banned, Reason::OverLimit]
            .map(|reason| datapath.maps().packets(reason).unwrap().packets)
            .iter()
            .sum()
    }

    /// Offered less dropped is the limit: no packet got by, and no counter lost one.
    fn end(mut self) {
        let flood = self.flood.take().unwrap();
        let offered = self.sent + flood.stop().unwrap().sent;
        let datapath = open(self.lab);
        wait_until("the last packets", PATIENCE, || Ok(self.dropped(&datapath) + LIMIT == offered)).unwrap();
        assert_eq!(self.reached(), LIMIT, "of {offered} packets");
        assert_eq!(datapath.maps().packets(Reason::UnderLimit).unwrap().packets, LIMIT + 15);
        println!("{offered} packets offered, {} of them reached the stack", self.reached());
    }
}

/// Bans, and what the source that was counted has in its windows.
fn kept(datapath: &Datapath) -> impl PartialEq + std::fmt::Debug + use<> {
    let maps = datapath.maps();
    let counted = SourceKey::for_rule(Address::from_ipv4(SECOND_FORGED_V4.octets()), RuleIndex::DEFAULT);
    let settings = datapath.settings().unwrap();
    (maps.bans().unwrap(), maps.windows(&counted).unwrap().unwrap(), settings)
}

fn attach(dosguard: &Dosguard<'_>, interfaces: &str) {
    let config = dosguard.write_config("c.toml", CONFIG).unwrap();
    done(dosguard, &format!("attach -c {} {interfaces}", config.display()));
}

#[test]
fn a_hundred_replacements_under_flood_let_not_one_packet_through_and_lose_nothing() {
    let lab = Lab::new().unwrap();
    let dosguard = Dosguard::new(&lab).unwrap();
    attach(&dosguard, GUARD_ATTACKER_SIDE);
    let mut siege = Siege::begin(&lab);
    let datapath = open(&lab);
    let before = kept(&datapath);
    let mut seen = BTreeSet::from([one_program(&[lab.guard()])]);
    let mut dropped = siege.dropped(&datapath);
    for number in 0..100 {
        siege.go_on();
        let said = say(&dosguard, words("upgrade --force"));
        assert_eq!(said.code, Some(0), "{said:?}");
        assert!(said.err.contains("program replaced on up0: counters and bans go on"), "{said:?}");
        seen.insert(one_program(&[lab.guard()]));
        let now = siege.dropped(&datapath);
        assert!(now > dropped, "{now} after {dropped}, replacement {number}");
        dropped = now;
        assert_eq!(siege.reached(), LIMIT, "replacement {number}");
    }
    assert_eq!(seen.len(), 101, "each time another program");
    assert_eq!(kept(&datapath), before);
    assert_eq!(dosguard.status().unwrap()["bans"]["used"], 51);
    siege.end();
}

#[test]
fn all_interfaces_of_all_namespaces_change_or_none() {
    let lab = Lab::new().unwrap();
    let dosguard = Dosguard::new(&lab).unwrap();
    attach(&dosguard, &format!("{GUARD_ATTACKER_SIDE} {GUARD_CLIENT_SIDE}"));
    done(&dosguard.in_namespace(lab.client()), "attach lo");
    let everywhere = [lab.guard(), lab.client()];
    let first = one_program(&everywhere);
    let said = say(&dosguard, words("upgrade --force"));
    assert!(said.err.contains("on up0, up1, interface 1 of network namespace "), "{said:?}");
    let second = one_program(&everywhere);
    assert_ne!(first, second);
    assert_eq!(programs(lab.guard()).len() + programs(lab.client()).len(), 3);

    // To aya it is an XDP link, since the types have the same number; the kernel refuses to give it a program.
    let odd = paths(&lab).links().join(format!("{}-1", u64::MAX));
    MapData::from_pin(paths(&lab).map(abi::COUNTERS.name)).unwrap().pin(&odd).unwrap();
    let (pinned, build) = (pins(&lab), open(&lab).build().unwrap());
    refused(
        &dosguard,
        "upgrade --force",
        &["refused the new program", "every interface has the one from before"],
    );
    assert_eq!(one_program(&everywhere), second);
    assert_eq!((pins(&lab), open(&lab).build().unwrap()), (pinned, build));
    std::fs::remove_file(odd).unwrap();
    // What is no link at all guards nothing, and an interface may be gone.
    let other = paths(&lab).links().join("1-1");
    MapData::from_pin(paths(&lab).map(abi::CONFIG.name)).unwrap().pin(&other).unwrap();
    lab.guard().run("ip", words("link add gone0 type veth peer name gone1")).unwrap();
    done(&dosguard, "attach gone0");
    lab.guard().run("ip", words("link del gone0")).unwrap();
    done(&dosguard, "upgrade --force");
    assert_ne!(one_program(&everywhere), second);
    assert_eq!(programs(lab.guard()).len() + programs(lab.client()).len(), 3);
}

#[test]
fn a_program_that_cannot_be_loaded_leaves_everything_as_it_is() {
    let lab = Lab::new().unwrap();
    let dosguard = Dosguard::new(&lab).unwrap();
    attach(&dosguard, &format!("{GUARD_ATTACKER_SIDE} {GUARD_CLIENT_SIDE}"));
    let mut datapath = open(&lab);
    let before = (one_program(&[lab.guard()]), pins(&lab), datapath.maps().config().unwrap());
    let as_before = |datapath: &Datapath| {
        assert_eq!((one_program(&[lab.guard()]), pins(&lab), datapath.maps().config().unwrap()), before);
    };
    // The verifier follows the loop over the CPUs, up to a million instructions.
    let too_long = LoadOptions { cpus: Some(100_000), peers: Some(true), ..LoadOptions::default() };
    let error = datapath.replace_program(&too_long).unwrap_err();
    assert!(matches!(error, Error::Verifier(_)), "{error}");
    as_before(&datapath);
    // Another program's map of the same name.
    let error = datapath.replace_program_by(FLOOD_OBJECT, &LoadOptions::default()).unwrap_err();
    assert!(error.to_string().contains("`CONFIG` has type 2, keys of 4 bytes, values of 56"), "{error}");
    as_before(&datapath);
    let error =
        datapath.replace_program_by(&SHIPPED[..SHIPPED.len() / 2], &LoadOptions::default()).unwrap_err();
    assert!(matches!(error, Error::Object(_)), "{error}");
    as_before(&datapath);
    let error = datapath.replace_program_by(&[], &LoadOptions::default()).unwrap_err();
    assert!(matches!(error, Error::StubObject), "{error}");
    as_before(&datapath);
}

#[test]
fn a_killed_replacement_is_put_in_order_by_the_next_start() {
    let lab = Lab::new().unwrap();
    let dosguard = Dosguard::new(&lab).unwrap();
    attach(&dosguard, &format!("{GUARD_ATTACKER_SIDE} {GUARD_CLIENT_SIDE}"));
    let old = one_program(&[lab.guard()]);
    // Killed between two links: the new program is pinned, and on one of two.
    let mut datapath = open(&lab);
    let config = datapath.maps().config().unwrap();
    let maps: Vec<_> = abi::MAPS.iter().map(|map| (map.name, paths(&lab).map(map.name))).collect();
    let mut next = Loaded::onto(SHIPPED, &LoadOptions::default(), &maps).unwrap();
    next.program().unwrap().pin(paths(&lab).next_program()).unwrap();
    datapath.maps_mut().set_config(config.with_build(0)).unwrap();
    let link = datapath.guarded().unwrap()[0].link;
    give(&paths(&lab).link(link), &paths(&lab).next_program());
    assert_eq!(ids(lab.guard()).len(), 2);
    let status = dosguard.status().unwrap();
    let modes: Vec<_> =
        status["interfaces"].as_array().unwrap().iter().map(|on| on["mode"].clone()).collect();
    assert_eq!(modes, ["native", "native"], "both programs filter");

    let daemon = dosguard.start(["run"]).unwrap();
    let said = daemon.stderr().unwrap();
    assert!(said.contains("an upgrade was interrupted"), "{said}");
    assert!(said.contains("program replaced on up0, up1: counters and bans go on"), "{said}");
    assert!(!ids(lab.guard()).contains(&old));
    one_program(&[lab.guard()]);
    assert!(!paths(&lab).next_program().exists());
    daemon.terminate().unwrap();
    let daemon = dosguard.start(["run"]).unwrap();
    let said = daemon.stderr().unwrap();
    assert!(!said.contains("replaced") && !said.contains("interrupted"), "{said}");
}

/// Gives a pinned link a pinned program.
fn give(link: &PathBuf, program: &PathBuf) {
    let link = XdpLink::try_from(FdLink::from(PinnedLink::from_pin(link).unwrap())).unwrap();
    Xdp::from_pin(program, XdpAttachType::Interface).unwrap().attach_to_link(link).unwrap();
}

/// Starts a command and kills it after a while.
fn kill_after(dosguard: &Dosguard<'_>, line: &str, time: Duration) {
    let mut child: Child = dosguard.command(words(line)).stderr(Stdio::null()).spawn().unwrap();
    std::thread::sleep(time);
    // `nsenter` becomes the command. An error means that it has ended already.
    drop(child.kill());
    child.wait().unwrap();
}

#[test]
fn upgrades_that_are_killed_at_any_moment_let_not_one_packet_through() {
    let lab = Lab::new().unwrap();
    let dosguard = Dosguard::new(&lab).unwrap();
    attach(&dosguard, &format!("{GUARD_ATTACKER_SIDE} {GUARD_CLIENT_SIDE}"));
    let mut siege = Siege::begin(&lab);
    let before = kept(&open(&lab));
    let (mut interrupted, mut replaced) = (0, 0);
    for round in 0..40 {
        siege.go_on();
        kill_after(&dosguard, "upgrade --force", Duration::from_millis(fastrand::u64(10..250)));
        let said = say(&dosguard, words("upgrade"));
        interrupted += u32::from(said.err.contains("an upgrade was interrupted"));
        replaced += u32::from(said.err.contains("program replaced on up0, up1"));
        assert!(matches!(said.code, Some(0 | 1)), "round {round}: {said:?}");
        one_program(&[lab.guard()]);
        assert!(!paths(&lab).next_program().exists());
        assert!(open(&lab).is_current(&LoadOptions::default()).unwrap());
        assert_eq!(siege.reached(), LIMIT, "round {round}");
    }
    println!("of 40 that were killed, {interrupted} had begun to change links, {replaced} were made again");
    assert_eq!(kept(&open(&lab)), before);
    siege.end();
}

#[test]
fn the_program_of_another_dosguard_is_replaced_at_the_next_start() {
    let lab = Lab::new().unwrap();
    let dosguard = Dosguard::new(&lab).unwrap();
    attach(&dosguard, GUARD_ATTACKER_SIDE);
    let said = say(&dosguard, ["upgrade"]);
    assert_eq!(said.code, Some(1), "{said:?}");
    assert!(said.err.contains("there is nothing to do"), "{said:?}");
    let becomes_another = || {
        let mut datapath = open(&lab);
        let config = datapath.maps().config().unwrap();
        datapath.maps_mut().set_config(config.with_build(0x1230)).unwrap();
    };
    let replaced = "program replaced on up0: counters and bans go on";
    becomes_another();
    let before = one_program(&[lab.guard()]);
    let said = say(&dosguard, words("upgrade --dry-run"));
    assert_eq!(
        said.out,
        format!("program {before} would be replaced; every map is carried over, and nothing is lost\n")
    );
    assert_eq!(one_program(&[lab.guard()]), before);
    let said = say(&dosguard, ["attach", GUARD_CLIENT_SIDE]);
    assert!(said.err.contains(replaced), "{said:?}");
    assert_ne!(one_program(&[lab.guard()]), before);
    becomes_another();
    let daemon = dosguard.start(["run"]).unwrap();
    assert!(
        daemon.stderr().unwrap().contains("program replaced on up0, up1"),
        "{}",
        daemon.stderr().unwrap()
    );
    // With a daemon, too.
    becomes_another();
    done(&dosguard, "upgrade");
    assert_eq!(say(&dosguard, ["upgrade"]).code, Some(1));
    daemon.terminate().unwrap();

    // The log of the kernel program is chosen anew.
    let daemon = dosguard.start(words("run --kernel-log debug")).unwrap();
    assert!(daemon.stderr().unwrap().contains("program replaced on"), "{}", daemon.stderr().unwrap());
    send_frames(lab.attacker(), PEER, &vec![syn(FORGED_V4); 21]).unwrap();
    let logged = || daemon.stderr().unwrap().contains("kernel debug:");
    wait_until("the kernel program's log", PATIENCE, || Ok(logged())).unwrap();
    let said = say(&dosguard, ["upgrade"]);
    assert_eq!(said.code, Some(1), "without an option the log stays: {said:?}");
    done(&dosguard, "upgrade --kernel-log off");
    daemon.terminate().unwrap();
    refused(&dosguard.with_instance("none"), "upgrade", &["not loaded"]);
}
