//! Every table of the kernel program full in turn: what is lost, who is told, and that nothing else comes of it. Needs root.

#![expect(clippy::unwrap_used, reason = "a test's helpers fail as the test itself does")]

use std::net::{Ipv4Addr, Ipv6Addr};
use std::path::Path;
use std::thread;
use std::time::Duration;

use aya::maps::{MapData, MapInfo};
use dosguard::config::policy::Policy;
use dosguard::datapath::{Datapath, LoadOptions};
use dosguard::system::boot_now_ns;
use dosguard_common::abi;
use dosguard_common::address::Address;
use dosguard_common::hashing::{Hashing, sets_for};
use dosguard_common::proof::Evidence;
use dosguard_common::reason::Tally;
use dosguard_tests::addresses::{GUARD_ATTACKER_SIDE, GUARD_V4, PEER};
use dosguard_tests::challenges::{PORT, Wire, make_possible, sequence, tallied};
use dosguard_tests::cli::{PATIENCE, attach, bans, done, packets, refused, words};
use dosguard_tests::daemon::Dosguard;
use dosguard_tests::flood::Flood;
use dosguard_tests::lab::Lab;
use dosguard_tests::packet::{Frame, Packet};
use dosguard_tests::server::TcpServer;
use dosguard_tests::siege::open;
use dosguard_tests::transmit::Sender;
use dosguard_tests::wait::wait_until;

const ARRAY: &str = "an array: each place is there from the beginning";
const SCRATCH: &str = "of no meaning between two packets";
const MANY: &str = "limits_many.rs";
const HERE: &str = "limits_full.rs";
const CONNECTIONS: &str = "limits_connections.rs";

/// Each map, and what fills it: the file of a test and its name, or why it cannot be full.
const TABLE: [(&str, &str, &str); 38] = [
    ("CONFIG", "", ARRAY),
    ("PORTS", MANY, "as_many_rules_as_there_may_be_have_all_ports"),
    ("RULES", "cli_policy.rs", "there_is_room_for_255_rules_beside_default"),
    ("SYNS", MANY, "each_map_that_is_full_says_so_and_breaks_nothing_else"),
    ("HASHING", "", ARRAY),
    ("BANS", MANY, "each_map_that_is_full_says_so_and_breaks_nothing_else"),
    ("OFFENDERS", HERE, "offenders_that_were_pushed_out_begin_anew_and_are_banned_all_the_same"),
    ("MARKS", "", ARRAY),
    ("CLAIMS", HERE, "claims_that_were_pushed_out_let_nothing_through"),
    ("ALLOW", MANY, "each_map_that_is_full_says_so_and_breaks_nothing_else"),
    ("DENY", MANY, "each_map_that_is_full_says_so_and_breaks_nothing_else"),
    ("COUNTERS", "", ARRAY),
    ("RULE_COUNTERS", "", ARRAY),
    ("MORE_COUNTERS", "", ARRAY),
    ("MORE_RULE_COUNTERS", "", ARRAY),
    ("GATES", "", ARRAY),
    ("WATCH", "", ARRAY),
    ("DROPS", HERE, "drops_of_more_sources_than_there_is_room_for_are_counted_all_the_same"),
    ("PROOFS", HERE, "who_completes_connections_is_served_though_what_is_kept_of_it_is_full"),
    ("SPENT", HERE, "who_completes_connections_is_served_though_what_is_kept_of_it_is_full"),
    ("HANDSHAKES", HERE, "who_completes_connections_is_served_though_what_is_kept_of_it_is_full"),
    ("ANSWERS", HERE, "who_completes_connections_is_served_though_what_is_kept_of_it_is_full"),
    ("LOADS", "", ARRAY),
    ("FLOODS", "", ARRAY),
    ("SYNACK", "", ARRAY),
    ("CHALLENGED", "", ARRAY),
    ("HOST", HERE, "a_host_with_more_addresses_than_there_is_room_for_is_told"),
    ("ROOM", "", SCRATCH),
    ("RULE", "", SCRATCH),
    ("STEPS", "", ARRAY),
    ("SCRATCH", "", SCRATCH),
    ("EVENTS", MANY, "events_that_nobody_reads_are_lost_and_counted_and_nothing_else_is"),
    ("HELD", "", "whoever finds no slot goes to MORE_HELD"),
    (
        "MORE_HELD",
        CONNECTIONS,
        "of_more_sources_than_there_is_room_for_some_are_missed_and_the_others_counted_right",
    ),
    ("WAITING", "", SCRATCH),
    ("SERVED", "", ARRAY),
    ("OWN", HERE, "a_host_with_more_addresses_than_are_known_as_its_own_is_told"),
    ("LOOK", "", ARRAY),
];

#[test]
fn each_map_is_filled_by_a_test() {
    let of_connections = [abi::HELD, abi::MORE_HELD, abi::WAITING, abi::SERVED, abi::OWN, abi::LOOK];
    let maps: Vec<_> = abi::MAPS.iter().chain(&of_connections).map(|map| map.name).collect();
    assert_eq!(maps, TABLE.map(|(map, ..)| map), "the table has each, in the order of `abi`");
    for (map, file, what) in TABLE {
        if !file.is_empty() {
            let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests").join(file);
            let text = std::fs::read_to_string(path).unwrap();
            assert!(
                text.contains(&format!("fn {what}()")),
                "`{map}` is filled by no test `{what}` in {file}"
            );
        }
    }
}

/// An instance whose tables are of these sizes, with this configuration.
fn small(lab: &Lab, dosguard: &Dosguard<'_>, sizes: &[(&'static str, u32)], config: &str) {
    let options = LoadOptions { sizes: sizes.to_vec(), ..LoadOptions::default() };
    drop(Datapath::create(lab.paths(), &Policy::default(), &options).unwrap());
    attach(dosguard, config, GUARD_ATTACKER_SIDE);
}

/// How many entries a map has.
fn entries(lab: &Lab, map: &str) -> usize {
    let path = lab.paths().map(map);
    let (keys, values) = {
        let info = MapInfo::from_pin(&path).unwrap();
        (info.key_size(), info.value_size())
    };
    let data = aya::maps::Map::from_map_data(MapData::from_pin(&path).unwrap()).unwrap();
    macro_rules! count {
        ($($key:literal $value:literal),*) => {
            match (keys, values) {
                $(($key, $value) => {
                    let map = aya::maps::HashMap::<_, [u8; $key], [u8; $value]>::try_from(data).unwrap();
                    map.keys().filter(Result::is_ok).take(1 << 16).count()
                })*
                other => panic!("keys and values of {other:?} bytes"),
            }
        };
    }
    count!(16 8, 20 16, 20 24, 20 72, 32 8, 32 1)
}

/// Has handshakes counted in as many places as are for so many sources: the table itself has a size of its own.
fn few_handshakes(lab: &Lab, room: u32) {
    let path = lab.paths().map(abi::HASHING.name);
    let data = aya::maps::Map::from_map_data(MapData::from_pin(path).unwrap()).unwrap();
    let mut map = aya::maps::Array::<_, [u8; size_of::<Hashing>()]>::try_from(data).unwrap();
    let mut hashing: Hashing = bytemuck::pod_read_unaligned(&map.get(&0, 0).unwrap());
    hashing.handshakes = sets_for(room);
    map.set(0, bytemuck::cast::<Hashing, [u8; size_of::<Hashing>()]>(hashing), 0).unwrap();
}

fn source(number: u32) -> Ipv4Addr {
    Ipv4Addr::from_bits(Ipv4Addr::new(20, 0, 0, 0).to_bits() + number)
}

fn segment(from: Ipv4Addr) -> Packet {
    Packet::eth().ipv4(from, GUARD_V4)
}

fn syn(from: Ipv4Addr, port: u16) -> Frame {
    segment(from).tcp(port, PORT).syn().build()
}

fn evidence(lab: &Lab, source: Ipv4Addr) -> Evidence {
    let source = Address::from_ipv4(source.octets());
    open(lab).maps().evidence(&source, boot_now_ns().unwrap()).unwrap()
}

#[test]
fn offenders_that_were_pushed_out_begin_anew_and_are_banned_all_the_same() {
    const ROOM: u32 = 1_024;
    const SOURCES: u32 = 3_000;
    let lab = Lab::new().unwrap();
    let dosguard = Dosguard::new(&lab).unwrap();
    let rule = "[rule.default]\nlimit = '1/1h'\nrequire_proof = false\nban = '1s'\nban_max = '1h'\n";
    small(&lab, &dosguard, &[(abi::OFFENDERS.name, ROOM), (abi::BANS.name, 4_096)], rule);
    let over = |rounds: u32| {
        let before = packets(&dosguard, &["under-limit", "over-limit", "banned"]);
        let flood = Flood::new(syn(source(0), 1)).sources(SOURCES).rate(50_000).cpu(0);
        let sent = flood.frames(u64::from(SOURCES * rounds)).run(lab.attacker(), PEER).unwrap().sent;
        let judged = || packets(&dosguard, &["under-limit", "over-limit", "banned"]);
        wait_until("all are judged", PATIENCE, || Ok(judged() == before + sent)).unwrap();
    };
    over(2);
    // Each is banned, though two thirds of them are forgotten.
    assert_eq!(tallied(&lab, Tally::BanImposed), u64::from(SOURCES));
    assert_eq!(
        [Tally::BanTableFull, Tally::OffenceLost, Tally::EventLost].map(|tally| tallied(&lab, tally)),
        [0; 3]
    );
    let remembered = entries(&lab, abi::OFFENDERS.name);
    assert!(remembered <= ROOM as usize && remembered > ROOM as usize / 2, "{remembered}");
    let fill = &dosguard.status().unwrap()["remembered"]["offenders"];
    assert_eq!((fill["used"].as_u64(), fill["capacity"].as_u64()), (Some(remembered as u64), Some(1_024)));
    let told = done(&dosguard, "status");
    assert!(
        told.contains(&format!(
            "offenders remembered {} of 1,024",
            dosguard::output::grouped(remembered as u64)
        )),
        "{told}"
    );

    // The last one is remembered, and the first begins anew: the second ban of the one is longer than that of the other.
    thread::sleep(Duration::from_millis(1_100));
    over(2);
    let offences: Vec<_> = bans(&dosguard).iter().map(|ban| ban["offences"].as_u64().unwrap()).collect();
    assert!(offences.len() == SOURCES as usize && offences.iter().all(|number| [1, 2].contains(number)));
    assert_eq!(tallied(&lab, Tally::BanImposed), u64::from(SOURCES) * 2);
}

#[test]
fn claims_that_were_pushed_out_let_nothing_through() {
    const SOURCES: u32 = 3_000;
    let lab = Lab::new().unwrap();
    let dosguard = Dosguard::new(&lab).unwrap();
    let rule = "[events]\nrate = 1000000\n[rule.default]\nlimit = '1/1h'\naction = 'drop'\n";
    small(&lab, &dosguard, &[(abi::CLAIMS.name, 1_024)], rule);
    let flood = Flood::new(syn(source(0), 1)).sources(SOURCES).rate(50_000).cpu(0);
    flood.frames(u64::from(SOURCES) * 5).run(lab.attacker(), PEER).unwrap();
    let counted = |reason| packets(&dosguard, &[reason]);
    wait_until("all are judged", PATIENCE, || {
        Ok(counted("under-limit") + counted("over-limit") == u64::from(SOURCES) * 5)
    })
    .unwrap();
    assert_eq!(counted("under-limit"), u64::from(SOURCES), "what is claimed are events, and no packets");
    assert!(entries(&lab, abi::CLAIMS.name) <= 1_024);
    assert!(bans(&dosguard).is_empty());
}

#[test]
fn drops_of_more_sources_than_there_is_room_for_are_counted_all_the_same() {
    const SOURCES: u32 = 5_000;
    let lab = Lab::new().unwrap();
    let dosguard = Dosguard::new(&lab).unwrap();
    small(&lab, &dosguard, &[(abi::DROPS.name, 1_024)], "deny = ['20.0.0.0/16']\n");
    let mut datapath = open(&lab);
    datapath.maps_mut().watch_drops(boot_now_ns().unwrap() + 60_000_000_000).unwrap();
    let flood = Flood::new(syn(source(0), 1)).sources(SOURCES).rate(50_000).cpu(0);
    let sent = flood.frames(u64::from(SOURCES) * 2).run(lab.attacker(), PEER).unwrap().sent;
    wait_until("all are dropped", PATIENCE, || Ok(packets(&dosguard, &["denied"]) == sent)).unwrap();
    let drops = datapath.maps().drops().unwrap();
    assert!(drops.len() <= 1_024 && drops.len() > 512, "{}", drops.len());
    // Whoever comes last has its place.
    let last = Address::from_ipv4(source(SOURCES - 1).octets());
    assert!(drops.iter().any(|(source, packets)| *source == last && *packets > 0));
}

#[test]
fn who_completes_connections_is_served_though_what_is_kept_of_it_is_full() {
    const ROOM: u32 = 1_024;
    const SOURCES: u32 = 2_500;
    // Five times as many come as there are places, so that hardly any set keeps the first (4 in 10,000, by the Poisson distribution).
    const COUNTED: u32 = 512;
    let lab = Lab::new().unwrap();
    let dosguard = Dosguard::new(&lab).unwrap();
    let server = TcpServer::start(lab.guard(), (Ipv6Addr::UNSPECIFIED, PORT)).unwrap();
    let _replies = make_possible(&lab);
    lab.guard().run("ip", ["route", "add", "20.0.0.0/16", "dev", GUARD_ATTACKER_SIDE]).unwrap();
    let full = [abi::PROOFS, abi::SPENT, abi::ANSWERS].map(|map| (map.name, ROOM));
    let rule =
        format!("[rule.web]\nports = ['tcp/{PORT}']\nlimit = '1/10m'\naction = 'challenge'\nban = '10m'\n");
    small(&lab, &dosguard, &full, &rule);
    few_handshakes(&lab, COUNTED);
    let wire = Wire::of(&lab);
    // The first SYN is within the limit, and goes to the host. The second is answered, and that answer completed.
    let complete = |from: Ipv4Addr, port: u16| {
        let (first, second) = (port, port + 1);
        wire.send(&syn(from, first));
        let reply = wire.reply(&syn(from, second));
        let answer =
            segment(from).tcp(second, PORT).sequence(2).acknowledge(sequence(&reply).wrapping_add(1));
        wire.send(&answer.build());
    };
    for number in 0..SOURCES {
        complete(source(number), 2_000 + 2 * u16::try_from(number).unwrap());
        if number % 32 == 31 {
            // The host's own queue is not what is to be full.
            wait_until("those are taken", PATIENCE, || Ok(server.accepted() > u64::from(number))).unwrap();
        }
    }
    let all = |count: u64| {
        let made = wait_until("all are made", PATIENCE, || Ok(server.accepted() == count));
        assert!(made.is_ok(), "{} of {count}; {}", server.accepted(), done(&dosguard, "status"));
        assert_eq!(tallied(&lab, Tally::SourceProven), count);
        let lost = [Tally::ProofLost, Tally::AnswerDropped, Tally::AnswerUncounted, Tally::ChallengeUnsent];
        assert_eq!(lost.map(|tally| tallied(&lab, tally)), [0; 4]);
        assert!(bans(&dosguard).is_empty() && packets(&dosguard, &["over-limit", "banned"]) == 0);
    };
    all(SOURCES.into());
    for map in ["PROOFS", "SPENT", "ANSWERS"] {
        let kept = entries(&lab, map);
        assert!(kept <= ROOM as usize && kept > ROOM as usize / 2, "{map}: {kept}");
    }
    // Counters of handshakes that went are counted, and of proofs it is told how many there are, of how many.
    let evicted = tallied(&lab, Tally::SourceEvicted);
    println!("{evicted} sources lost their counters of handshakes");
    // Seven places for four sources.
    assert!(evicted >= u64::from(SOURCES - COUNTED * 7 / 4) && evicted < SOURCES.into(), "{evicted}");
    let fill = &dosguard.status().unwrap()["remembered"]["proofs"];
    let proofs = entries(&lab, "PROOFS") as u64;
    assert_eq!((fill["used"].as_u64(), fill["capacity"].as_u64()), (Some(proofs), Some(ROOM.into())));
    // The last is known to be real. The first is not any more (or the one after it, where the kernel keeps a few longer that came on
    // another CPU), and nothing but that: once it completes one again, it is.
    assert_eq!(evidence(&lab, source(SOURCES - 1)), Evidence::Handshake);
    let first = (0..200).map(source).find(|source| evidence(&lab, *source) == Evidence::None).unwrap();
    let reply = wire.reply(&syn(first, 1_000));
    let answer = segment(first).tcp(1_000, PORT).sequence(2).acknowledge(sequence(&reply).wrapping_add(1));
    wire.send(&answer.build());
    all(u64::from(SOURCES) + 1);
    assert_eq!(evidence(&lab, first), Evidence::Handshake);
}

#[test]
fn a_host_with_more_addresses_than_there_is_room_for_is_told() {
    let lab = Lab::new().unwrap();
    let dosguard = Dosguard::new(&lab).unwrap();
    let _replies = make_possible(&lab);
    let rule = format!("[rule.web]\nports = ['tcp/{PORT}']\nlimit = '1/10m'\naction = 'challenge'\n");
    let addresses = |verb: &str| {
        let lines: String =
            (0..abi::HOST.entries).map(|n| format!("addr {verb} {}/32 dev lo\n", source(n))).collect();
        let file = dosguard.write_config("addresses", &lines).unwrap();
        lab.guard().run("ip", ["-batch", file.to_str().unwrap()]).unwrap();
    };
    addresses("add");
    small(&lab, &dosguard, &[], &rule);
    let told = done(&dosguard, "status");
    assert!(told.contains("no SYN is challenged, what is beyond the limit of rule `web` is dropped: the host has more than 4096 addresses"), "{told}");
    // What is beyond the limit is dropped, and nobody is answered.
    let sender = Sender::new(lab.attacker(), PEER).unwrap();
    let from = Ipv4Addr::new(203, 0, 113, 1);
    sender.send(&vec![syn(from, 1); 3]).unwrap();
    wait_until("two are dropped", PATIENCE, || Ok(packets(&dosguard, &["over-limit"]) == 2)).unwrap();
    addresses("del");
    done(&dosguard, &format!("attach {GUARD_ATTACKER_SIDE}"));
    assert!(done(&dosguard, "status").contains("challenges: on"));
    sender.send(&[syn(from, 1)]).unwrap();
    wait_until("one is challenged", PATIENCE, || Ok(packets(&dosguard, &["challenged"]) == 1)).unwrap();
}

/// Its connections with itself are no attack; of those that are not known as such that cannot be said.
#[test]
fn a_host_with_more_addresses_than_are_known_as_its_own_is_told() {
    let lab = Lab::new().unwrap();
    let dosguard = Dosguard::new(&lab).unwrap();
    let lines: String =
        (0..abi::OWN.entries).map(|n| format!("addr add {}/32 dev lo\n", source(n))).collect();
    let file = dosguard.write_config("addresses", &lines).unwrap();
    let config = dosguard.write_config("c.toml", "[rule.default]\nmax_connections = 5\n").unwrap();
    let daemon =
        dosguard.start(words(&format!("run -c {} {GUARD_ATTACKER_SIDE}", config.display()))).unwrap();
    let warned = || Ok(done(&dosguard, "status").contains("addresses, of which 4096 are known as its own"));
    wait_until("connections are counted", PATIENCE, || {
        Ok(done(&dosguard, "status").contains("connections 0"))
    })
    .unwrap();
    assert!(!warned().unwrap());
    lab.guard().run("ip", ["-batch", file.to_str().unwrap()]).unwrap();
    wait_until("that is told", PATIENCE, warned).unwrap();
    lab.guard().run("ip", ["addr", "flush", "dev", "lo"]).unwrap();
    wait_until("all are known again", PATIENCE, || Ok(!warned()?)).unwrap();
    daemon.terminate().unwrap();
}

/// Nobody has removed them, since no daemon runs: they must not keep out what there is room for.
#[test]
fn bans_that_have_ended_are_told_of_and_give_way_without_a_daemon() {
    const ROOM: u32 = 1_024;
    let lab = Lab::new().unwrap();
    let dosguard = Dosguard::new(&lab).unwrap();
    small(
        &lab,
        &dosguard,
        &[(abi::BANS.name, ROOM)],
        "[rule.default]\nlimit = '1/1h'\nrequire_proof = false\n",
    );
    let list = |first: u32, count: u32| {
        let text: String = (first..first + count).map(|number| format!("{}\n", source(number))).collect();
        dosguard.write_config("list", &text).unwrap()
    };
    let import = |file: &Path, time: &str| format!("bans import {} --for {time}", file.display());
    let fill = |ended: u32| {
        done(&dosguard, &import(&list(0, ROOM - ended), "1h"));
        done(&dosguard, &import(&list(ROOM - ended, ended), "200ms"));
        refused(&dosguard, "bans add 192.0.2.77", &["has room for 1024 entries"]);
        let ended_in = || dosguard.status().unwrap()["bans_ended"].as_u64().unwrap();
        wait_until("they have ended", PATIENCE, || Ok(ended_in() == u64::from(ended))).unwrap();
        let status = dosguard.status().unwrap();
        assert_eq!(status["bans"]["used"], ROOM - ended);
        let warnings = status["warnings"].to_string();
        assert!(warnings.contains("the map of bans is 100 % full"), "{warnings}");
        let told = done(&dosguard, "status");
        assert!(told.contains(&format!("{ended} that have ended")), "{told}");
    };
    fill(100);
    // The kernel program cannot remove them: a source over the limit is dropped SYN by SYN, and counted.
    let (before, over) = (tallied(&lab, Tally::BanTableFull), packets(&dosguard, &["over-limit"]));
    let sender = Sender::new(lab.attacker(), PEER).unwrap();
    sender.send(&vec![syn(source(9_999), 1); 3]).unwrap();
    wait_until("two are over", PATIENCE, || Ok(packets(&dosguard, &["over-limit"]) == over + 2)).unwrap();
    assert_eq!(tallied(&lab, Tally::BanTableFull), before + 2);
    // Whoever bans by hand finds the room.
    done(&dosguard, "bans add 192.0.2.77");
    assert_eq!(entries(&lab, abi::BANS.name), (ROOM - 100 + 1) as usize);
    done(&dosguard, "bans flush");

    fill(100);
    let more = import(&list(ROOM, 101), "1h");
    refused(&dosguard, &more, &["has room for 1024 entries", "nothing was added"]);
    let more = import(&list(ROOM, 100), "1h");
    done(&dosguard, &format!("{more} --dry-run"));
    done(&dosguard, &more);
    assert_eq!(bans(&dosguard).len(), ROOM as usize);
}
