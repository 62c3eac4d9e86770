//! Replacing the program under a flood, on several interfaces, and when it is refused, killed or of another dosguard.

#![expect(clippy::unwrap_used, reason = "a test's helpers fail as the test itself does")]

use std::collections::BTreeSet;
use std::net::Ipv6Addr;
use std::path::PathBuf;

use aya::maps::MapData;
use aya::programs::Xdp;
use aya::programs::links::{FdLink, PinnedLink};
use aya::programs::xdp::XdpLink;
use aya_obj::programs::XdpAttachType;
use dosguard::datapath::{Datapath, Error, LoadOptions, Loaded, SHIPPED};
use dosguard_common::abi;
use dosguard_common::reason::{Reason, Tally};
use dosguard_tests::addresses::{FORGED_V4, GUARD_ATTACKER_SIDE, GUARD_CLIENT_SIDE, PEER};
use dosguard_tests::challenges::{make_possible, tallied};
use dosguard_tests::cli::{PATIENCE, done, pins, programs, refused, say, words};
use dosguard_tests::daemon::Dosguard;
use dosguard_tests::flood::{Flood, MAX_DURATION};
use dosguard_tests::killed::{changing_calls, kill_before};
use dosguard_tests::lab::Lab;
use dosguard_tests::objects::FLOOD_OBJECT;
use dosguard_tests::server::TcpServer;
use dosguard_tests::siege::{LIMIT, Siege, attach, ids, kept, one_program, open, syn};
use dosguard_tests::transmit::send_frames;
use dosguard_tests::wait::wait_until;

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
    // Namespaces come in the order of their numbers, which are used again.
    let elsewhere = "interface 1 of network namespace ";
    assert!(said.err.contains("up0, up1") && said.err.contains(elsewhere), "{said:?}");
    let second = one_program(&everywhere);
    assert_ne!(first, second);
    assert_eq!(programs(lab.guard()).len() + programs(lab.client()).len(), 3);

    // To aya it is an XDP link, since the types have the same number; the kernel refuses to give it a program.
    let odd = lab.paths().links().join(format!("{}-1", u64::MAX));
    MapData::from_pin(lab.paths().map(abi::COUNTERS.name)).unwrap().pin(&odd).unwrap();
    let (pinned, build) = (pins(&lab), open(&lab).build().unwrap());
    refused(
        &dosguard,
        "upgrade --force",
        &["refused the new program", "every interface has the one from before"],
    );
    assert_eq!(one_program(&everywhere), second);
    assert_eq!((pins(&lab), open(&lab).build().unwrap()), (pinned, build));
    // A daemon goes on with the program that there is.
    let mut datapath = open(&lab);
    let config = datapath.maps().config().unwrap();
    datapath.maps_mut().set_config(config.with_build(0x1230)).unwrap();
    let daemon = dosguard.start(["run"]).unwrap();
    let said = daemon.stderr().unwrap();
    assert!(
        said.contains("warning: the program was not replaced, and the one from before goes on"),
        "{said}"
    );
    daemon.terminate().unwrap();
    let run = ["run", "--kernel-log", "debug"];
    let said = say(&dosguard, run);
    assert!(
        said.code == Some(2) && said.err.contains("the kernel program that goes on has no such log"),
        "{said:?}"
    );
    assert_eq!(one_program(&everywhere), second);
    std::fs::remove_file(odd).unwrap();
    // What is no link at all guards nothing, and an interface may be gone.
    let other = lab.paths().links().join("1-1");
    MapData::from_pin(lab.paths().map(abi::CONFIG.name)).unwrap().pin(&other).unwrap();
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
    // It asks for the time where it should give a lock back (helper 94): the verifier does not let it end with the lock.
    let mut keeps = SHIPPED.to_vec();
    let calls = keeps.windows(8).enumerate().filter(|(_, call)| **call == [0x85, 0, 0, 0, 94, 0, 0, 0]);
    let calls: Vec<_> = calls.map(|(at, _)| at).collect();
    calls.iter().for_each(|at| keeps[at + 4] = 5);
    let error = datapath.replace_program_by(&keeps, &LoadOptions::default()).unwrap_err();
    assert!(matches!(error, Error::Verifier(_)), "{error}");
    as_before(&datapath);
    // Another program's map of the same name.
    let error = datapath.replace_program_by(FLOOD_OBJECT, &LoadOptions::default()).unwrap_err();
    assert!(error.to_string().contains("`CONFIG` has type 2, keys of 4 bytes, values of 64"), "{error}");
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
    let maps: Vec<_> = abi::MAPS.iter().map(|map| (map.name, lab.paths().map(map.name))).collect();
    let mut next = Loaded::onto(SHIPPED, &LoadOptions::default(), &maps).unwrap();
    next.program().unwrap().pin(lab.paths().next_program()).unwrap();
    datapath.maps_mut().set_config(config.with_build(0)).unwrap();
    let link = datapath.guarded().unwrap()[0].link;
    give(&lab.paths().link(link), &lab.paths().next_program());
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
    assert!(!lab.paths().next_program().exists());
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

#[test]
fn replacements_that_are_killed_at_any_step_let_not_one_packet_through() {
    let lab = Lab::new().unwrap();
    let dosguard = Dosguard::new(&lab).unwrap();
    attach(&dosguard, &format!("{GUARD_ATTACKER_SIDE} {GUARD_CLIENT_SIDE}"));
    let mut siege = Siege::begin(&lab);
    let before = kept(&open(&lab));
    let steps = changing_calls(&dosguard, "upgrade --force").unwrap();
    let mut in_between = 0;
    for step in &steps {
        siege.go_on();
        kill_before(&dosguard, "upgrade --force", step).unwrap();
        in_between += u32::from(ids(lab.guard()).len() == 2);
        let interrupted = lab.paths().next_program().exists();
        let current = open(&lab).is_current(&LoadOptions::default()).unwrap();

        let said = say(&dosguard, words("upgrade"));
        assert_eq!(said.code, Some(i32::from(current)), "{step:?}: {said:?}");
        assert_eq!(said.err.contains("an upgrade was interrupted"), interrupted, "{step:?}: {said:?}");
        one_program(&[lab.guard()]);
        assert_eq!(programs(lab.guard()).len(), 2, "{step:?}");
        assert!(!lab.paths().next_program().exists());
        assert!(open(&lab).is_current(&LoadOptions::default()).unwrap());
        assert_eq!(siege.reached(), LIMIT, "{step:?}");
    }
    println!(
        "killed before each of {} steps; {in_between} times the interfaces had different programs",
        steps.len()
    );
    assert!(in_between > 0);
    assert_eq!(kept(&open(&lab)), before);
    siege.end();
}

#[test]
fn replacements_under_a_forged_flood_that_is_challenged_ban_nobody() {
    let lab = Lab::new().unwrap();
    let dosguard = Dosguard::new(&lab).unwrap();
    let _server = TcpServer::start(lab.guard(), (Ipv6Addr::UNSPECIFIED, 80)).unwrap();
    let _replies = make_possible(&lab);
    let config = dosguard.write_config("c.toml", "[rule.default]\nlimit = '20/60s'\n").unwrap();
    done(&dosguard, &format!("attach -c {} {GUARD_ATTACKER_SIDE}", config.display()));
    let flood = Flood::new(syn(FORGED_V4)).ports(60_000).rate(50_000).duration(MAX_DURATION);
    let flood = flood.start(lab.attacker(), PEER).unwrap();
    let challenged = || open(&lab).maps().packets(Reason::Challenged).unwrap().packets;
    wait_until("it is challenged", PATIENCE, || Ok(challenged() > 1_000)).unwrap();
    let synack = open(&lab).maps().synack().unwrap();
    for number in 0..10 {
        let before = challenged();
        done(&dosguard, "upgrade --force");
        assert!(challenged() > before, "replacement {number}");
        assert_eq!(tallied(&lab, Tally::BanImposed), 0, "replacement {number}");
    }
    assert_eq!(open(&lab).maps().synack().unwrap(), synack);
    flood.stop().unwrap();
    assert_eq!(tallied(&lab, Tally::BanImposed), 0);
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
