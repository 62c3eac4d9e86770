//! As much as there may be of everything: ports in rules, interfaces, readers, bans, events that nobody reads. Needs root.

#![expect(clippy::unwrap_used, reason = "a test's helpers fail as the test itself does")]

use std::fmt::Write as _;
use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::Ipv4Addr;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use dosguard_tests::addresses::{GUARD_ATTACKER_SIDE, GUARD_MAC, GUARD_V4, PEER};
use dosguard_tests::cli::{PATIENCE, attach, done, packets, pins, programs, refused, say, syns_from, words};
use dosguard_tests::daemon::Dosguard;
use dosguard_tests::flood::Flood;
use dosguard_tests::lab::Lab;
use dosguard_tests::packet::Packet;
use dosguard_tests::transmit::Sender;
use dosguard_tests::wait::wait_until;

fn number(dosguard: &Dosguard<'_>, tally: &str) -> u64 {
    let status = dosguard.status().unwrap();
    let tallies = status["tallies"].as_array().unwrap();
    tallies.iter().find(|found| found["name"] == tally).unwrap()["count"].as_u64().unwrap()
}

fn used(dosguard: &Dosguard<'_>) -> u64 {
    dosguard.status().unwrap()["bans"]["used"].as_u64().unwrap()
}

/// All 65,536 ports, in as many rules as there may be beside `default`, which has none left but port 0.
#[test]
fn as_many_rules_as_there_may_be_have_all_ports() {
    let lab = Lab::new().unwrap();
    let dosguard = Dosguard::new(&lab).unwrap();
    let mut config = String::new();
    for rule in 0..255_u32 {
        // The last one has what is left.
        let (first, last) = (rule * 257 + 1, (rule + 1) * 257);
        write!(
            config,
            "[rule.r{rule}]\nports = ['tcp/{first}-{last}']\nlimit = '2/1h'\nrequire_proof = false\n"
        )
        .unwrap();
    }
    let began = Instant::now();
    attach(&dosguard, &config, GUARD_ATTACKER_SIDE);
    let took = began.elapsed();
    println!("255 rules with 65,535 ports were loaded in {took:.1?}");
    assert!(took < Duration::from_secs(20), "{took:?}");
    assert_eq!(dosguard.json(["rule", "list", "--json"]).unwrap().len(), 256);
    let settings = done(&dosguard, "sysctl -a");
    assert!(settings.contains("rule.r254.ports = tcp/65279-65535"), "{settings}");
    // Each port is its rule's: the third SYN is one too many, whichever it is.
    for (rule, port) in [(0, 1), (0, 257), (1, 258), (127, 32_768), (254, 65_279), (254, 65_535)] {
        let source = Ipv4Addr::new(203, 0, 113, u8::try_from(port % 200).unwrap());
        syns_from(&lab, &dosguard, source, u16::try_from(port).unwrap(), 3);
        let bans = dosguard.json(["bans", "list", "--json"]).unwrap();
        let ban = bans.iter().find(|ban| ban["source"] == source.to_string()).unwrap();
        assert_eq!(ban["rule"], format!("r{rule}"), "port {port}");
    }
    // What was listed changes nothing when it is read back.
    let file = dosguard.write_config("settings", &settings).unwrap();
    done(&dosguard, &format!("sysctl -p {}", file.display()));
    assert_eq!(done(&dosguard, "sysctl -a"), settings);
}

#[test]
fn sixty_four_interfaces_are_guarded_by_one_instance() {
    let lab = Lab::new().unwrap();
    let dosguard = Dosguard::new(&lab).unwrap();
    let mut commands = String::new();
    let names: Vec<_> = (0..64).map(|number| format!("many{number}")).collect();
    for (number, name) in names.iter().enumerate() {
        writeln!(
            commands,
            "link add {name} address {GUARD_MAC} type veth peer name m{number} netns {}",
            lab.attacker().name()
        )
        .unwrap();
        writeln!(commands, "link set {name} arp off up").unwrap();
    }
    let file = dosguard.write_config("links", &commands).unwrap();
    lab.guard().run("ip", ["-batch", file.to_str().unwrap()]).unwrap();
    let up: String = (0..64).map(|number| format!("link set m{number} arp off up\n")).collect();
    let file = dosguard.write_config("peers", &up).unwrap();
    lab.attacker().run("ip", ["-batch", file.to_str().unwrap()]).unwrap();

    attach(
        &dosguard,
        "[rule.default]\nlimit = '64/1h'\nrequire_proof = false\nban = '1h'\n",
        &names.join(" "),
    );
    let daemon = dosguard.start(["run"]).unwrap();
    assert_eq!(dosguard.status().unwrap()["interfaces"].as_array().unwrap().len(), 64);
    // One source, one SYN on each: the limit is about all of them together.
    let syn = Packet::eth().ipv4("203.0.113.1", GUARD_V4).tcp(1, 80).syn().build();
    let senders: Vec<_> =
        (0..64).map(|number| Sender::new(lab.attacker(), &format!("m{number}")).unwrap()).collect();
    senders.iter().for_each(|sender| sender.send(&[&syn]).unwrap());
    let judged = |reason| packets(&dosguard, &[reason]);
    wait_until("all of them pass", PATIENCE, || Ok(judged("under-limit") == 64)).unwrap();
    assert_eq!(used(&dosguard), 0);
    senders.iter().for_each(|sender| sender.send(&[&syn]).unwrap());
    wait_until("none does", PATIENCE, || Ok(judged("over-limit") + judged("banned") == 64)).unwrap();
    assert_eq!((judged("under-limit"), judged("over-limit"), used(&dosguard)), (64, 1, 1));
    done(&dosguard, "upgrade --force");
    senders.iter().for_each(|sender| sender.send(&[&syn]).unwrap());
    wait_until("nor after an upgrade", PATIENCE, || Ok(judged("banned") == 127)).unwrap();
    assert!(daemon.terminate().unwrap().success());
    done(&dosguard, "detach --all");
    assert_eq!(pins(&lab), Vec::<String>::new());
    wait_until("no program is left", PATIENCE, || Ok(programs(lab.guard()).is_empty())).unwrap();
}

/// What a process has: open files, threads, and memory in KiB.
fn usage(pid: u32) -> (usize, usize, u64) {
    let count = |what: &str| fs::read_dir(format!("/proc/{pid}/{what}")).unwrap().count();
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    (count("fd"), count("task"), resident.trim().trim_end_matches(" kB").parse().unwrap())
}

#[test]
fn ten_thousand_readers_come_and_go_and_leave_nothing() {
    const READERS: usize = 10_000;
    const AT_ONCE: usize = 100;
    let lab = Lab::new().unwrap();
    let dosguard = Dosguard::new(&lab).unwrap();
    let config = "[rule.default]\nlimit = '1/1h'\nrequire_proof = false\nban = '1h'\n";
    attach(&dosguard, config, GUARD_ATTACKER_SIDE);
    let daemon = dosguard.start(["run"]).unwrap();
    syns_from(&lab, &dosguard, Ipv4Addr::new(203, 0, 113, 1), 80, 2);
    let socket = lab.directory().run_dir().join("lab.sock");
    let come_and_go = |number: usize| {
        let Ok(mut stream) = UnixStream::connect(&socket) else { return 0 };
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        match number % 4 {
            // Without a word, in the middle of one, and without looking at the answer.
            0 => return 0,
            1 => stream.write_all(b"{\"events\":{\"fol").unwrap(),
            2 => stream.write_all(b"{\"events\":{\"follow\":true}}\n").unwrap(),
            _ => {
                stream.write_all(b"{\"events\":{\"follow\":true}}\n").unwrap();
                let mut line = String::new();
                BufReader::new(stream).read_line(&mut line).unwrap();
                assert!(line.contains("\"kind\":\"ban\""), "{line}");
                return 1;
            }
        }
        0
    };
    let batch = |first: usize| {
        thread::scope(|scope| {
            let come_and_go = &come_and_go;
            let readers: Vec<_> =
                (first..first + AT_ONCE).map(|number| scope.spawn(move || come_and_go(number))).collect();
            readers.into_iter().map(|reader| reader.join().unwrap()).sum::<usize>()
        })
    };
    // After the first ones everything is as it will be.
    let first: usize = (0..10).map(|number| batch(number * AT_ONCE)).sum();
    assert!(first > 0);
    let settled = |most: (usize, usize)| {
        wait_until("readers are forgotten", 3 * PATIENCE, || {
            let (files, threads, _) = usage(daemon.pid());
            Ok(files <= most.0 && threads <= most.1)
        })
    };
    thread::sleep(Duration::from_secs(1));
    let before = usage(daemon.pid());
    let read: usize = (0..READERS / AT_ONCE).map(|number| batch(number * AT_ONCE)).sum();
    assert_eq!(read, READERS / 4, "each that looked was told");
    settled((before.0, before.1)).unwrap();
    let after = usage(daemon.pid());
    println!("files, threads, KiB: {before:?} before, {after:?} after {READERS} readers");
    assert!(after.2 < before.2 + 8 * 1024, "{before:?}, {after:?}");
    assert!(daemon.terminate().unwrap().success());
}

#[test]
#[ignore = "takes minutes; `cargo xtask bench user` measures the same"]
fn a_million_bans_are_listed_exported_and_swept() {
    const MANY: u32 = 1_000_000;
    let lab = Lab::new().unwrap();
    let dosguard = Dosguard::new(&lab).unwrap();
    let config = "[size]\nbans = 1000000\n[history]\nmax_size = '1M'\n[log]\nstdout = 'off'\n";
    attach(&dosguard, config, GUARD_ATTACKER_SIDE);
    let mut list = String::new();
    for source in 0..MANY {
        writeln!(list, "{}", Ipv4Addr::from_bits(Ipv4Addr::new(20, 0, 0, 0).to_bits() + source)).unwrap();
    }
    let list = dosguard.write_config("list", &list).unwrap();
    let import = |time: &str| {
        let began = Instant::now();
        done(&dosguard, &format!("bans import {} --for {time}", list.display()));
        println!("a million bans were imported in {:.1?}", began.elapsed());
    };
    import("45s");
    let imported = Instant::now();
    // There is room for no more, and nothing is changed.
    let more = dosguard.write_config("more", "192.0.2.1\n192.0.2.2\n").unwrap();
    refused(&dosguard, &format!("bans import {}", more.display()), &["nothing was added"]);
    let full = say(&dosguard, words("bans add 192.0.2.1"));
    assert!(full.code == Some(2) && full.err.contains("has room for"), "{full:?}");
    assert_eq!(used(&dosguard), u64::from(MANY));
    let lines = |path: &Path| BufReader::new(fs::File::open(path).unwrap()).lines().count();
    let out = lab.directory().path().join("out");
    for format in ["plain", "json", "csv"] {
        let began = Instant::now();
        done(&dosguard, &format!("bans export --format {format} --output {}", out.display()));
        let expected = MANY as usize + usize::from(format == "csv");
        assert_eq!(lines(&out), expected, "{format}");
        println!("exported as {format} in {:.1?}", began.elapsed());
    }
    let listed = done(&dosguard, "bans list");
    assert_eq!(listed.lines().count(), MANY as usize + 1);
    // They end, and a daemon takes all of them away.
    let daemon = dosguard.start(words("run")).unwrap();
    thread::sleep(Duration::from_secs(45).saturating_sub(imported.elapsed()));
    let ended = Instant::now();
    wait_until("all are swept", 6 * PATIENCE, || Ok(used(&dosguard) == 0)).unwrap();
    println!("swept {:.1?} after their end", ended.elapsed());
    done(&dosguard, "bans add 192.0.2.1");
    assert!(daemon.terminate().unwrap().success());
}

#[test]
fn events_that_nobody_reads_are_lost_and_counted_and_nothing_else_is() {
    const SOURCES: u32 = 60_000;
    let lab = Lab::new().unwrap();
    let dosguard = Dosguard::new(&lab).unwrap();
    let config =
        "[events]\nrate = 1000000\n[rule.default]\nlimit = '1/1h'\nrequire_proof = false\nban = '1h'\n";
    attach(&dosguard, config, GUARD_ATTACKER_SIDE);
    let syn = Packet::eth().ipv4("20.0.0.1", GUARD_V4).tcp(1, 80).syn().build();
    let flood = Flood::new(syn).sources(SOURCES).rate(100_000).frames(u64::from(SOURCES) * 3);
    let sent = flood.run(lab.attacker(), PEER).unwrap().sent;
    let counted = || {
        let status = dosguard.status().unwrap();
        let counters = status["counters"].as_array().unwrap();
        counters.iter().map(|counter| counter["packets"].as_u64().unwrap()).sum::<u64>()
    };
    wait_until("the flood is over", PATIENCE, || Ok(counted() == sent)).unwrap();
    let (imposed, lost) = (number(&dosguard, "bans-imposed"), number(&dosguard, "events-lost"));
    println!("{imposed} bans of {sent} SYNs, {lost} events lost");
    assert_eq!(used(&dosguard), imposed, "each ban is there");
    assert!(imposed > 50_000 && lost > 0 && lost < imposed, "{imposed} {lost}");
    let told = done(&dosguard, "status");
    assert!(told.contains("events-lost"), "{told}");
    // Whoever reads at last gets what was kept, and of the others the bans that hold.
    let daemon = dosguard.start(["run"]).unwrap();
    let events = || dosguard.status().unwrap()["daemon"]["events"].as_u64().unwrap();
    wait_until("each ban is told", 3 * PATIENCE, || Ok(events() >= imposed)).unwrap();
    assert_eq!(events(), imposed, "each once");
    assert!(daemon.terminate().unwrap().success());
}

/// Each map that can be full, by the command line or by packets, in an instance where each is as small as it may be.
#[test]
fn each_map_that_is_full_says_so_and_breaks_nothing_else() {
    const SMALLEST: usize = 1_024;
    let lab = Lab::new().unwrap();
    let dosguard = Dosguard::new(&lab).unwrap();
    let sizes: String = ["bans", "sources", "offenders", "allow", "deny"]
        .map(|name| format!("{name} = {SMALLEST}\n"))
        .concat();
    let rule = "[rule.default]\nlimit = '1/1h'\nrequire_proof = false\nban = '1h'\n";
    attach(&dosguard, &format!("{rule}[size]\n{sizes}"), GUARD_ATTACKER_SIDE);
    // The lists: what does not fit is refused, and what is there stays and holds.
    for (list, first) in [("deny", "20.1"), ("allow", "20.2")] {
        let networks: String =
            (0..SMALLEST).map(|number| format!("{first}.{}.{}\n", number / 256, number % 256)).collect();
        let file = dosguard.write_config("networks", &networks).unwrap();
        done(&dosguard, &format!("{list} add --file {}", file.display()));
        refused(&dosguard, &format!("{list} add 20.9.0.1"), &["has room for"]);
        assert_eq!(done(&dosguard, &format!("{list} list")).lines().count(), SMALLEST, "{list}");
    }
    syns_from(&lab, &dosguard, Ipv4Addr::new(20, 1, 0, 7), 80, 3);
    syns_from(&lab, &dosguard, Ipv4Addr::new(20, 2, 0, 7), 80, 3);
    let judged = |reason| packets(&dosguard, &[reason]);
    assert_eq!((judged("denied"), judged("allowed")), (3, 3));

    // Counters of sources: the least recently seen give way.
    let syn = |source: &str| Packet::eth().ipv4(source, GUARD_V4).tcp(1, 80).syn().build();
    // On one processor: each has turns of its own.
    let once = Flood::new(syn("21.0.0.1")).sources(8 * 1_024).rate(50_000).frames(8 * 1_024).cpu(0);
    let sent = once.run(lab.attacker(), PEER).unwrap().sent;
    wait_until("all pass", PATIENCE, || Ok(judged("under-limit") == sent)).unwrap();
    let evicted = number(&dosguard, "sources-evicted");
    assert!(evicted > 4_000, "{evicted}");

    // Bans: beyond them SYNs are dropped one by one.
    let source = |number: u32| Ipv4Addr::from_bits(Ipv4Addr::new(22, 0, 0, 0).to_bits() + number);
    let twice: Vec<_> = (0..1_500)
        .flat_map(|number| {
            let syn = syn(&source(number).to_string());
            [syn.clone(), syn]
        })
        .collect();
    let before = judged("over-limit");
    let sender = Sender::new(lab.attacker(), PEER).unwrap();
    for chunk in twice.chunks(32) {
        sender.send(chunk).unwrap();
        thread::sleep(Duration::from_millis(1));
    }
    wait_until("each is over the limit", PATIENCE, || Ok(judged("over-limit") == before + 1_500)).unwrap();
    assert_eq!(used(&dosguard), SMALLEST as u64);
    assert_eq!(number(&dosguard, "ban-table-full"), 1_500 - SMALLEST as u64);
    let full = say(&dosguard, words("bans add 192.0.2.1"));
    assert!(full.code == Some(2) && full.err.contains("has room for"), "{full:?}");
    // One that is banned stays so, and who finds no room is dropped all the same.
    let banned = judged("banned");
    sender.send(&[syn("22.0.0.0")]).unwrap();
    wait_until("the ban holds", PATIENCE, || Ok(judged("banned") == banned + 1)).unwrap();
    let told = done(&dosguard, "status");
    assert!(told.contains("ban-table-full") && told.contains("bans 1,024 of 1,024 (100 %)"), "{told}");
    done(&dosguard, "bans flush");
    done(&dosguard, "bans add 192.0.2.1");
}
