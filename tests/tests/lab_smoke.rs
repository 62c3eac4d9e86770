//! The lab itself: it comes up, carries what it promises, and leaves nothing behind. Needs root.

#![expect(clippy::unwrap_used, reason = "a step that fails, fails the test, in its helpers as well")]

use std::{
    fs,
    net::{Ipv6Addr, SocketAddr},
    path::Path,
    process::{Child, Command},
    time::Duration,
};

use dosguard_tests::{
    addresses::{
        CLIENT_V4, CLIENT_V6, FORGED_V4, FORGED_V6, GUARD_ATTACKER_SIDE, GUARD_CLIENT_SIDE, GUARD_CLIENT_V4,
        GUARD_CLIENT_V6, GUARD_V4, GUARD_V6, PEER,
    },
    client::Client,
    counter::StackCounters,
    cpu,
    directory::{self, is_mounted},
    flood::Flood,
    lab::{Lab, QUEUES},
    netns::{Namespace, run},
    packet::{Frame, Packet, protocol},
    server::TcpServer,
    statistics::Statistics,
    transmit::{send_frames, send_frames_from_cpu},
    wait::wait_until,
};

const PORT: u16 = 8080;
const PATIENCE: Duration = Duration::from_secs(5);

#[test]
fn a_lab_leaves_nothing_behind() {
    let lab = Lab::new().unwrap();
    let names = [lab.guard(), lab.attacker(), lab.client()].map(|namespace| namespace.name().to_owned());
    let directory = lab.directory().path().to_owned();
    assert!(is_mounted(&lab.directory().bpffs()).unwrap());
    assert!(directory.join("run").is_dir() && directory.join("state").is_dir());
    let listed = run(Command::new("ip").args(["netns", "list"])).unwrap();
    assert!(names.iter().all(|name| listed.contains(name)), "{listed}");
    for family in ["-4", "-6"] {
        let routes = lab.guard().run("ip", [family, "route", "show", "default"]).unwrap();
        assert_eq!(routes, "", "the guard must not know a way out");
    }
    // The end of one lab is all that the next one waits for.
    let bpffs = lab.directory().bpffs();
    drop(lab);
    let listed = run(Command::new("ip").args(["netns", "list"])).unwrap();
    assert!(!names.iter().any(|name| listed.contains(name)), "{listed}");
    assert!(!is_mounted(&bpffs).unwrap());
    assert!(!directory.exists());
}

#[test]
fn a_killed_run_is_put_away_by_the_next() {
    // While it exists no other lab begins, and with it the cleaning up.
    let turn = Lab::new().unwrap();
    let mut dead = Command::new("true").spawn().unwrap();
    let owner = dead.id();
    dead.wait().unwrap();
    let directory = tempfile::Builder::new()
        .prefix(directory::PREFIX)
        .suffix(&format!("-{owner}"))
        .tempdir_in(directory::base().unwrap())
        .unwrap()
        .keep();
    let bpffs = directory.join("bpffs");
    fs::create_dir(&bpffs).unwrap();
    run(Command::new("mount").args(["-t", "bpf", "bpf"]).arg(&bpffs)).unwrap();
    let name = format!("dg-guard-00000000-{owner}");
    run(Command::new("ip").args(["netns", "add", &name])).unwrap();
    let start = || -> Child {
        let network = format!("--net=/run/netns/{name}");
        Command::new("nsenter").args([&network, "sleep", "60"]).spawn().unwrap()
    };
    let (mut recorded, mut stranger) = (start(), start());
    fs::write(directory.join("children"), format!("{}\n", recorded.id())).unwrap();
    wait_until("both processes have entered the namespace", PATIENCE, || {
        let inside = run(Command::new("ip").args(["netns", "pids", &name]))?;
        Ok([&recorded, &stranger].iter().all(|child| inside.contains(&child.id().to_string())))
    })
    .unwrap();

    drop(turn);
    drop(Lab::new().unwrap());

    assert!(!Path::new("/run/netns").join(&name).exists());
    assert!(!is_mounted(&bpffs).unwrap());
    assert!(!directory.exists());
    assert!(!recorded.wait().unwrap().success(), "the process that the run had started is ended");
    assert_eq!(stranger.try_wait().unwrap(), None, "a process that it had not started goes on");
    stranger.kill().unwrap();
    stranger.wait().unwrap();
}

#[test]
fn the_client_is_served_over_both_families() {
    let lab = Lab::new().unwrap();
    let server = TcpServer::start(lab.guard(), (Ipv6Addr::UNSPECIFIED, PORT)).unwrap();
    let client =
        |address: SocketAddr| Client::new(address).per_second(100).duration(Duration::from_millis(500));
    let v4 = client((GUARD_CLIENT_V4, PORT).into()).run(lab.client()).unwrap();
    let v6 = client((GUARD_CLIENT_V6, PORT).into()).run(lab.client()).unwrap();
    assert_eq!((v4.failures(), v6.failures()), (0, 0), "{v4:?} {v6:?}");
    assert_eq!((v4.successes(), v6.successes()), (50, 50));
    assert_eq!(server.accepted(), 100);
    assert!(v4.percentile(50) <= v4.percentile(100));

    // Where nobody listens, the client says so.
    let refused = client((GUARD_CLIENT_V4, PORT + 1).into()).run(lab.client()).unwrap();
    assert_eq!(refused.successes(), 0);
    assert_eq!(refused.failures(), 50, "{:?}", refused.reasons());
}

#[test]
fn nothing_is_on_the_wire_of_its_own_accord() {
    let lab = Lab::new().unwrap();
    let counters = count(&lab);
    let server = TcpServer::start(lab.guard(), (Ipv6Addr::UNSPECIFIED, PORT)).unwrap();
    let before = counters.read().unwrap();
    let client = Client::new((GUARD_CLIENT_V4, PORT)).per_second(20).duration(Duration::from_secs(1));
    client.run(lab.client()).unwrap();
    let after = counters.read().unwrap();
    let client = CLIENT_V4.into();
    assert_eq!(after.syns(client).unwrap() - before.syns(client).unwrap(), 20);
    let from_client = after.packets(client).unwrap() - before.packets(client).unwrap();
    assert_eq!(after.total().unwrap() - before.total().unwrap(), from_client, "{before:?} {after:?}");
    drop(server);
}

#[test]
fn a_flood_arrives_whole_and_fast() {
    let lab = Lab::new().unwrap();
    lab.enable_napi().unwrap();
    let counters = count(&lab);
    let before = Statistics::read(lab.attacker(), PEER).unwrap();
    let report = Flood::new(syn(FORGED_V4))
        .ports(60_000)
        .duration(Duration::from_secs(2))
        .run(lab.attacker(), PEER)
        .unwrap();
    let after = Statistics::read(lab.attacker(), PEER).unwrap();
    assert!(report.rate_per_second() >= 200_000, "{report:?}");
    assert_eq!(after.lost_frames().unwrap(), before.lost_frames().unwrap());
    assert_eq!(after.sent_frames().unwrap() - before.sent_frames().unwrap(), report.sent);
    wait_until("every frame sent reached the stack", PATIENCE, || {
        Ok(counters.read()?.syns(FORGED_V4.into())? == report.sent)
    })
    .unwrap();
}

#[test]
fn sources_and_ports_take_turns_with_right_checksums() {
    let lab = Lab::new().unwrap();
    lab.enable_napi().unwrap();
    let first = std::net::Ipv4Addr::new(198, 51, 100, 100);
    let second = std::net::Ipv4Addr::new(198, 51, 100, 101);
    let sources = [first.into(), second.into(), FORGED_V6.into()];
    let counters = StackCounters::install(lab.guard(), &[GUARD_ATTACKER_SIDE], &sources).unwrap();

    Flood::new(syn(first)).sources(2).ports(7).frames(1000).run(lab.attacker(), PEER).unwrap();
    Flood::new(Packet::eth().ipv6(FORGED_V6, GUARD_V6).tcp(1, PORT).syn().build())
        .ports(65_535)
        .frames(300)
        .run(lab.attacker(), PEER)
        .unwrap();
    wait_until("each source's share reached the stack", PATIENCE, || {
        let counts = counters.read()?;
        let shares = sources.map(|source| counts.syns(source).unwrap_or_default());
        Ok(shares == [500, 500, 300])
    })
    .unwrap();
    let drawn = Flood::new(syn(first)).random_sources(2).frames(1000).run(lab.attacker(), PEER).unwrap();
    assert_eq!(drawn.sent, 1000);
    wait_until("all drawn sources are counted", PATIENCE, || {
        let counts = counters.read()?;
        Ok(counts.syns(first.into())? + counts.syns(second.into())? == 2000)
    })
    .unwrap();
    let drawn = counters.read().unwrap().syns(first.into()).unwrap() - 500;
    assert!((350..=650).contains(&drawn), "{drawn} of 1000 frames drew one of two sources");
    assert_eq!(tcp_statistic(lab.guard(), "InCsumErrors"), 0);
    assert_eq!(tcp_statistic(lab.guard(), "InSegs"), 2300, "the stack took every segment");
}

#[test]
fn a_paced_flood_keeps_its_pace() {
    let lab = Lab::new().unwrap();
    lab.enable_napi().unwrap();
    let seconds = Duration::from_secs(2);
    let slow = Flood::new(syn(FORGED_V4)).rate(90).duration(seconds).run(lab.attacker(), PEER).unwrap();
    assert!((150..=182).contains(&slow.sent), "{slow:?}");
    let fast = Flood::new(syn(FORGED_V4)).rate(50_000).duration(seconds).run(lab.attacker(), PEER).unwrap();
    assert!((90_000..=100_100).contains(&fast.sent), "{fast:?}");
}

#[test]
fn each_sending_processor_has_a_queue_of_the_receiver() {
    let lab = Lab::new().unwrap();
    lab.enable_napi().unwrap();
    let processors: Vec<usize> = cpu::available().unwrap().into_iter().take(QUEUES).collect();
    for (index, processor) in processors.iter().enumerate() {
        let flood = Flood::new(syn(FORGED_V4)).frames(100).cpu(*processor);
        flood.run(lab.attacker(), PEER).unwrap();
        let frames = vec![syn(FORGED_V4); 50];
        send_frames_from_cpu(lab.attacker(), PEER, &frames, *processor).unwrap();
        wait_until("one more queue has received its share", PATIENCE, || {
            let text = lab.guard().run("ethtool", ["-S", GUARD_ATTACKER_SIDE])?;
            let busy =
                (0..QUEUES).filter(|queue| text.contains(&format!("rx_queue_{queue}_xdp_packets: 150")));
            Ok(busy.count() == index + 1)
        })
        .unwrap();
    }
}

#[test]
fn frames_are_sent_exactly_as_they_are() {
    let lab = Lab::new().unwrap();
    let counters = count(&lab);
    let mut frames = vec![
        syn(FORGED_V4),
        Packet::eth().ipv4(FORGED_V4, GUARD_V4).options(&[1, 1, 1]).tcp(1, PORT).syn().build(),
        Packet::eth().ipv4(FORGED_V4, GUARD_V4).tcp(1, PORT).syn().ack().build(),
        Packet::eth().ipv4(FORGED_V4, GUARD_V4).fragment(10, false).tcp(1, PORT).syn().build(),
        Packet::eth().ipv4(FORGED_V4, GUARD_V4).udp(1, 2).payload(100).build(),
        Packet::eth().ipv6(FORGED_V6, GUARD_V6).tcp(1, PORT).syn().build(),
        Packet::eth().vlan(7).ipv4(FORGED_V4, GUARD_V4).tcp(1, PORT).syn().build(),
        Packet::eth().ipv4(FORGED_V4, GUARD_V4).tcp(1, PORT).syn().truncate(30).build(),
        Packet::eth().arp("198.51.100.250", GUARD_V4).build(),
    ];
    frames.extend(
        (0..500).map(|number| Packet::eth().ipv4(FORGED_V4, GUARD_V4).tcp(1000 + number, PORT).syn().build()),
    );
    send_frames(lab.attacker(), PEER, &frames).unwrap();
    let sent = u64::try_from(frames.len()).unwrap();
    wait_until("every frame arrived", PATIENCE, || Ok(counters.read()?.total()? == sent)).unwrap();
    let counts = counters.read().unwrap();
    let syns = counts.syns(FORGED_V4.into()).unwrap();
    assert_eq!(syns, 503, "a SYN-ACK and a later fragment are no SYNs");
    assert_eq!(counts.syns(FORGED_V6.into()).unwrap(), 1);
}

#[test]
fn the_stack_agrees_with_the_builder() {
    let lab = Lab::new().unwrap();
    let server = TcpServer::start(lab.guard(), (Ipv6Addr::UNSPECIFIED, PORT)).unwrap();
    // The guard's replies to these sources go to the attacker, where nothing answers them.
    let frames = [
        syn(FORGED_V4),
        Packet::eth().ipv4(FORGED_V4, GUARD_V4).tcp(2, PORT).options(&[2, 4, 5, 0xb4]).syn().build(),
        Packet::eth().ipv6(FORGED_V6, GUARD_V6).tcp(3, PORT).syn().build(),
        Packet::eth()
            .ipv6(FORGED_V6, GUARD_V6)
            .extension(protocol::DESTINATION, &[0, 1, 4, 0, 0, 0, 0])
            .tcp(4, PORT)
            .syn()
            .build(),
    ];
    send_frames(lab.attacker(), PEER, &frames).unwrap();
    wait_until("the server answers every SYN", PATIENCE, || Ok(tcp_statistic(lab.guard(), "OutSegs") >= 4))
        .unwrap();
    assert_eq!(tcp_statistic(lab.guard(), "InSegs"), 4);
    assert_eq!(tcp_statistic(lab.guard(), "InCsumErrors"), 0);
    drop(server);
}

fn count(lab: &Lab) -> StackCounters<'_> {
    let sources = [FORGED_V4.into(), FORGED_V6.into(), CLIENT_V4.into(), CLIENT_V6.into()];
    StackCounters::install(lab.guard(), &[GUARD_ATTACKER_SIDE, GUARD_CLIENT_SIDE], &sources).unwrap()
}

fn syn(source: std::net::Ipv4Addr) -> Frame {
    Packet::eth().ipv4(source, GUARD_V4).tcp(1024, PORT).syn().build()
}

/// One of the namespace's `Tcp:` counters.
fn tcp_statistic(namespace: &Namespace, name: &str) -> u64 {
    let text = namespace.run("cat", ["/proc/net/snmp"]).unwrap();
    let mut lines = text.lines().filter_map(|line| line.strip_prefix("Tcp: "));
    let (names, values) = (lines.next().unwrap(), lines.next().unwrap());
    let mut pairs = names.split_whitespace().zip(values.split_whitespace());
    pairs.find(|(known, _)| *known == name).unwrap().1.parse().unwrap()
}
