//! Carrying an instance of an earlier ABI version over, under a flood: refused unless asked for, all of it or nothing.

#![expect(clippy::unwrap_used, reason = "a test's helpers fail as the test itself does")]

use std::fs;
use std::time::SystemTime;

use aya::maps::MapData;
use dosguard::datapath::Datapath;
use dosguard::lock::DaemonLock;
use dosguard_common::abi::{self, ABI_VERSION};
use dosguard_common::challenge::SynAck;
use dosguard_common::reason::{Reason, Tally};
use dosguard_tests::addresses::{GUARD_ATTACKER_SIDE, GUARD_CLIENT_SIDE};
use dosguard_tests::cli::{assert_untouched, done, pins, programs, refused, say, words};
use dosguard_tests::daemon::Dosguard;
use dosguard_tests::earlier::{become_abi_2, become_abi_5, become_abi_6, challenges_of, set_counter};
use dosguard_tests::killed::{changing_calls, kill_before};
use dosguard_tests::lab::Lab;
use dosguard_tests::siege::{LIMIT, Siege, attach, kept, one_program, open};

/// The names in the instance's folder.
fn folders(lab: &Lab) -> Vec<String> {
    let entries = fs::read_dir(lab.paths().instance_pins()).unwrap();
    let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

fn begin<'a>(lab: &'a Lab, dosguard: &Dosguard<'a>) -> Siege<'a> {
    attach(dosguard, &format!("{GUARD_ATTACKER_SIDE} {GUARD_CLIENT_SIDE}"));
    Siege::begin(lab)
}

fn now() -> String {
    format!("v{ABI_VERSION}")
}

#[test]
fn an_instance_of_abi_2_goes_on_with_all_that_it_had() {
    let lab = Lab::new().unwrap();
    let dosguard = Dosguard::new(&lab).unwrap();
    let siege = begin(&lab, &dosguard);
    let before = kept(&open(&lab));
    become_abi_2(lab.paths()).unwrap();
    let (old, pinned) = (one_program(&[lab.guard()]), pins(&lab));

    let plan = [
        "ABI version 2",
        "carries over 9 of 32 maps, converts global settings, rules, counters of sources in the window and loses nothing",
    ];
    for line in
        ["run", "attach up0", "status", "bans list", "upgrade", "upgrade --force", "run --kernel-log debug"]
    {
        refused(
            &dosguard,
            line,
            &[&plan[..], &["`dosguard --instance lab upgrade --migrate` does it"]].concat(),
        );
    }
    let shown = done(&dosguard, "upgrade --dry-run");
    for line in ["instance lab is of ABI version 2", "CONFIG", "converted", "carried over", "nothing is lost"]
    {
        assert!(shown.contains(line), "{shown}");
    }
    let daemon = DaemonLock::acquire(lab.paths()).unwrap();
    refused(&dosguard, "upgrade --migrate", &["the daemon of instance `lab` runs", "stop it first"]);
    drop(daemon);
    assert_eq!((one_program(&[lab.guard()]), pins(&lab)), (old, pinned));

    let said = say(&dosguard, words("upgrade --migrate"));
    assert_eq!(said.code, Some(0), "{said:?}");
    assert!(said.err.contains("carried over from ABI version 2"), "{said:?}");
    assert!(said.err.contains("program replaced on up0, up1: counters and bans go on"), "{said:?}");
    assert_eq!(folders(&lab), [now()]);
    assert_ne!(one_program(&[lab.guard()]), old);
    assert_eq!(programs(lab.guard()).len(), 2);
    assert_eq!(kept(&open(&lab)), before);
    assert_eq!(say(&dosguard, words("upgrade --migrate")).code, Some(1), "once is enough");

    // The same by `run`, with an interface more.
    become_abi_2(lab.paths()).unwrap();
    let daemon = dosguard.start(words("run --migrate lo")).unwrap();
    let said = daemon.stderr().unwrap();
    assert!(said.contains("carried over from ABI version 2") && said.contains("guarding lo"), "{said}");
    assert_eq!(kept(&open(&lab)), before);
    daemon.terminate().unwrap();
    siege.end();
    done(&dosguard, "detach --all");
    assert_untouched(&lab);
}

fn an_instance_goes_on_with_all_that_it_had(version: u32, converts: &str) {
    let lab = Lab::new().unwrap();
    let dosguard = Dosguard::new(&lab).unwrap();
    let siege = begin(&lab, &dosguard);
    let before = kept(&open(&lab));
    become_abi(&lab, version);
    refused(&dosguard, "status", &[&format!("ABI version {version}"), converts, "and loses nothing"]);
    done(&dosguard, "upgrade --migrate");
    assert_eq!(folders(&lab), [now()]);
    assert_eq!(kept(&open(&lab)), before);
    let cpus = u64::try_from(aya::util::nr_cpus().unwrap()).unwrap();
    let counted = |place| cpus * place;
    let live = open(&lab);
    assert_eq!(live.maps().packets(Reason::MayAnswer).unwrap().packets, counted(1));
    assert_eq!(live.maps().tallied(Tally::ChallengeAnswered).unwrap(), counted(4));
    let proven = if version == 5 { 0 } else { counted(5) };
    assert_eq!(live.maps().tallied(Tally::SourceProven).unwrap(), proven);
    siege.end();
}

#[test]
fn an_instance_of_abi_5_goes_on_with_all_that_it_had() {
    an_instance_goes_on_with_all_that_it_had(5, "converts global settings, rules");
}

#[test]
fn an_instance_of_abi_6_goes_on_with_all_that_it_had() {
    an_instance_goes_on_with_all_that_it_had(6, "converts global settings, counters of sources");
}

#[test]
fn an_instance_keeps_the_sizes_that_it_has() {
    let lab = Lab::new().unwrap();
    let dosguard = Dosguard::new(&lab).unwrap();
    let config =
        dosguard.write_config("c.toml", "[size]\nsources = 4096\nbans = 2048\noffenders = 1025\n").unwrap();
    done(&dosguard, &format!("attach -c {} {GUARD_ATTACKER_SIDE}", config.display()));
    let before = open(&lab).maps().sizes();
    become_abi(&lab, 6);
    done(&dosguard, "upgrade --dry-run");
    done(&dosguard, "upgrade --migrate");
    assert_eq!(open(&lab).maps().sizes(), before);
    assert_eq!(before.to_load().len(), 3);
}

#[test]
fn migrations_from_abi_6_that_are_killed_at_any_step_leave_one_whole_instance() {
    migrations_that_are_killed_at_any_step_leave_one_whole_instance(6, 8);
}

#[test]
fn what_the_old_program_counts_until_it_is_replaced_is_not_lost() {
    let lab = Lab::new().unwrap();
    let dosguard = Dosguard::new(&lab).unwrap();
    attach(&dosguard, GUARD_ATTACKER_SIDE);
    let paths = lab.paths();
    become_abi_5(paths).unwrap();
    let old = one_program(&[lab.guard()]);
    let mut migration = dosguard.command(words("upgrade --migrate")).spawn().unwrap();
    // Counts on in place of the old program, for as long as that is the one.
    let mut counted = 10;
    while set_counter(paths, 5, 0, counted + 1).is_ok() && one_program(&[lab.guard()]) == old {
        counted += 1;
    }
    assert!(migration.wait().unwrap().success());
    let cpus = u64::try_from(aya::util::nr_cpus().unwrap()).unwrap();
    let carried = open(&lab).maps().packets(Reason::Challenged).unwrap().packets / cpus;
    println!("{carried} carried over");
    assert!(counted > 20 && (counted..=counted + 1).contains(&carried), "{carried} of {counted}");
}

/// Makes the live instance one of an earlier version.
fn become_abi(lab: &Lab, version: u32) {
    match version {
        2 => become_abi_2(lab.paths()).unwrap(),
        5 => become_abi_5(lab.paths()).unwrap(),
        _ => become_abi_6(lab.paths()).unwrap(),
    }
}

/// With what an instance of that version goes on, if that has such.
fn steps_of(lab: &Lab, version: u32) -> Option<([u32; 2], SynAck)> {
    (version >= 5).then(|| challenges_of(lab.paths(), version).unwrap())
}

fn a_migration_that_a_link_refuses_leaves_the_old_instance_whole(version: u32) {
    let lab = Lab::new().unwrap();
    let dosguard = Dosguard::new(&lab).unwrap();
    let siege = begin(&lab, &dosguard);
    let before = kept(&open(&lab));
    become_abi(&lab, version);
    // To aya it is an XDP link, since the types have the same number; the kernel refuses to give it a program.
    let old_pins = lab.paths().pins_of(version);
    let odd = old_pins.join("links").join(format!("{}-1", u64::MAX));
    MapData::from_pin(old_pins.join(abi::COUNTERS.name)).unwrap().pin(&odd).unwrap();
    let (old, pinned, challenges) = (one_program(&[lab.guard()]), pins(&lab), steps_of(&lab, version));
    refused(
        &dosguard,
        "upgrade --migrate",
        &["refused the new program", "every interface has the one from before"],
    );
    assert_eq!((one_program(&[lab.guard()]), pins(&lab)), (old, pinned));
    assert_eq!(steps_of(&lab, version), challenges);

    fs::remove_file(odd).unwrap();
    done(&dosguard, "upgrade --migrate");
    assert_eq!(kept(&open(&lab)), before);
    siege.end();
}

#[test]
fn a_migration_from_abi_2_that_a_link_refuses_leaves_the_old_instance_whole() {
    a_migration_that_a_link_refuses_leaves_the_old_instance_whole(2);
}

#[test]
fn a_migration_from_abi_5_that_a_link_refuses_leaves_the_old_instance_whole() {
    a_migration_that_a_link_refuses_leaves_the_old_instance_whole(5);
}

/// With all steps there are, or with so many of them.
fn migrations_that_are_killed_at_any_step_leave_one_whole_instance(version: u32, part: usize) {
    let lab = Lab::new().unwrap();
    let dosguard = Dosguard::new(&lab).unwrap();
    let mut siege = begin(&lab, &dosguard);
    let before = kept(&open(&lab));
    become_abi(&lab, version);
    let steps = changing_calls(&dosguard, "upgrade --migrate").unwrap();
    let (mut undone, mut finished, mut killed) = (0, 0, 0);
    // Each takes seconds: a part of them, another one in each minute, and the last ones, unless all are asked for.
    let every = if std::env::var_os("DOSGUARD_EACH_STEP").is_some() { 1 } else { steps.len().div_ceil(part) };
    let minute = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs() / 60;
    let first = usize::try_from(minute).unwrap() % every;
    for (number, step) in steps.iter().enumerate() {
        if number % every != first && number + 4 < steps.len() {
            continue;
        }
        killed += 1;
        siege.go_on();
        become_abi(&lab, version);
        let challenges = steps_of(&lab, version);
        kill_before(&dosguard, "upgrade --migrate", step).unwrap();
        let interrupted = folders(&lab).len() > 1;

        // Without `--migrate` nothing is begun, but what was begun is put in order.
        let attach = format!("attach {GUARD_ATTACKER_SIDE}");
        let next = ["upgrade", &attach][number % 2];
        let said = say(&dosguard, words(next));
        assert_eq!(said.err.contains("an upgrade was interrupted"), interrupted, "{step:?}: {said:?}");
        let folders = folders(&lab);
        if folders == [format!("v{version}")] {
            undone += u32::from(interrupted);
            let known = format!("ABI version {version}");
            assert!(said.code == Some(2) && said.err.contains(&known), "{step:?}: {said:?}");
            assert_eq!(steps_of(&lab, version), challenges, "{step:?}");
        } else {
            finished += u32::from(interrupted);
            assert_eq!(folders, [now()], "{step:?}: {said:?}");
            assert!(matches!(said.code, Some(0 | 1)), "{step:?}: {said:?}");
        }
        one_program(&[lab.guard()]);
        assert_eq!(programs(lab.guard()).len(), 2, "{step:?}");
        let said = say(&dosguard, words("upgrade --migrate"));
        assert!(matches!(said.code, Some(0 | 1)), "{step:?}: {said:?}");
        assert_eq!(kept(&open(&lab)), before, "{step:?}");
        assert_eq!(siege.reached(), LIMIT, "{step:?}");
    }
    println!(
        "killed before {killed} of {} steps, from {first}: {undone} undone, {finished} finished",
        steps.len()
    );
    assert!(undone > 0 && finished > 0);
    siege.end();
}

#[test]
fn migrations_from_abi_2_that_are_killed_at_any_step_leave_one_whole_instance() {
    migrations_that_are_killed_at_any_step_leave_one_whole_instance(2, 16);
}

#[test]
fn migrations_from_abi_5_that_are_killed_at_any_step_leave_one_whole_instance() {
    migrations_that_are_killed_at_any_step_leave_one_whole_instance(5, 8);
}

#[test]
fn what_a_migration_left_behind_is_in_nobodys_way() {
    let lab = Lab::new().unwrap();
    let dosguard = Dosguard::new(&lab).unwrap();
    let siege = begin(&lab, &dosguard);
    // Killed after the new instance was whole: the old one is still there, or a part of it.
    let v2 = lab.paths().pins_of(2);
    fs::create_dir_all(v2.join("links")).unwrap();
    MapData::from_pin(lab.paths().map(abi::BANS.name)).unwrap().pin(v2.join(abi::BANS.name)).unwrap();
    assert_eq!(dosguard.status().unwrap()["bans"]["used"], 51);
    assert!(v2.exists(), "looking changes nothing");
    done(&dosguard, "attach lo");
    assert_eq!(folders(&lab), [now()]);
    assert!(Datapath::open(lab.paths()).unwrap().is_some());
    siege.end();
}
