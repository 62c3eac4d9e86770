//! Challenges between real sockets: who exists connects beyond the limit, a forged flood shuts nobody out, and who makes too
//! many connections is banned. Needs root.

#![expect(clippy::unwrap_used, reason = "a step that fails, fails the test, in its helpers as well")]

use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read as _, Write as _};
use std::net::{IpAddr, Ipv6Addr, SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use dosguard_common::reason::Tally;
use dosguard_tests::addresses::{
    ATTACKER_V4, CLIENT_V4, CLIENT_V6, GUARD_ATTACKER_SIDE, GUARD_CLIENT_SIDE, GUARD_CLIENT_V4,
    GUARD_CLIENT_V6, GUARD_V4, PEER,
};
use dosguard_tests::challenges::{connect, make_possible, set_host, take_replies, tallied};
use dosguard_tests::cli::{PATIENCE, bans, done, events, packets, say, start_telling as start, syns, words};
use dosguard_tests::client::Client;
use dosguard_tests::daemon::{Daemon, Dosguard};
use dosguard_tests::flood::{Flood, RunningFlood};
use dosguard_tests::held::Held;
use dosguard_tests::lab::Lab;
use dosguard_tests::netns::Namespace;
use dosguard_tests::nginx::Nginx;
use dosguard_tests::packet::Packet;
use dosguard_tests::server::TcpServer;
use dosguard_tests::wait::wait_until;

const WEB: u16 = 80;
/// Where a server greets.
const MAIL: u16 = 25;
/// Forged SYNs a second.
const RATE: u64 = 100_000;
const MOMENT: Duration = Duration::from_millis(700);

/// A rule that bans without proof, if it bans.
fn config(limit: &str, action: &str) -> String {
    format!(
        "[rule.web]\nports = ['tcp/25', 'tcp/80']\nlimit = '{limit}'\naction = '{action}'\nban = '10m'\nrequire_proof = false\n"
    )
}

/// What the ends of each connection have agreed on, by the port of the one that has opened it.
fn agreed(namespace: &Namespace, filter: &str) -> BTreeMap<u16, BTreeSet<String>> {
    const WANTED: [&str; 6] = ["ts", "sack", "ecn", "mss", "advmss", "pmtu"];
    let text = namespace.run("ss", ["-HtinoO", "state", "established", filter]).unwrap();
    let of_line = |line: &str| {
        let words: Vec<_> = line.split_whitespace().collect();
        let ports = [words[2], words[3]].map(|end| end.parse::<SocketAddr>().unwrap().port());
        let is_opener = ports[1] == WEB;
        let told = words[4..].iter().filter(|word| WANTED.contains(&word.split(':').next().unwrap()));
        let mut told: BTreeSet<_> = told.map(|word| (*word).to_owned()).collect();
        // Of the opener: what is scaled of what it sends, then of what it receives.
        let scale = words.iter().find_map(|word| word.strip_prefix("wscale:")).unwrap_or("none");
        let (first, second) = scale.split_once(',').unwrap_or((scale, scale));
        let (sends, receives) = if is_opener { (first, second) } else { (second, first) };
        told.insert(format!("scale:{sends},{receives}"));
        (if is_opener { ports[0] } else { ports[1] }, told)
    };
    text.lines().map(of_line).collect()
}

/// An HTTP request and its answer, of which nothing is left on the connection.
fn ask(connection: &mut TcpStream) -> std::io::Result<()> {
    connection.set_read_timeout(Some(MOMENT))?;
    connection.write_all(b"GET / HTTP/1.1\r\nHost: guard\r\n\r\n")?;
    let (mut answer, mut bytes) = (Vec::new(), [0; 1024]);
    while !answer.ends_with(b"\r\n\r\n") {
        match connection.read(&mut bytes)? {
            0 => return Err(std::io::ErrorKind::UnexpectedEof.into()),
            length => answer.extend(&bytes[..length]),
        }
    }
    assert!(answer.starts_with(b"HTTP/1.1 204"), "{}", String::from_utf8_lossy(&answer));
    Ok(())
}

fn connections_beyond_the_limit_are_as_any_other(source: IpAddr, server: IpAddr) {
    const LIMIT: usize = 12;
    let lab = Lab::new().unwrap();
    let dosguard = Dosguard::new(&lab).unwrap();
    let _nginx = Nginx::start(&lab, WEB).unwrap();
    let _replies = take_replies(&lab);
    let server = SocketAddr::new(server, WEB);
    let open = |count| Held::open(lab.client(), &[source], server, count).unwrap();
    // As it is without cookies, with timestamps of which nobody can tell the host's clock.
    let _ordinary = open(1);
    set_host(&lab, "2", "2");
    let daemon = start(&dosguard, &config("12/60s", "challenge"));
    let _within = open(LIMIT);
    let beyond: Vec<_> = (0..10).map(|_| open(1)).collect();
    assert_eq!(packets(&dosguard, &["challenged"]), 10);
    // None is left to the host: it has answered those within the limit with cookies, too.
    assert_eq!(tallied(&lab, Tally::ChallengeLeft), 0);
    wait_until("the answers are counted", PATIENCE, || Ok(tallied(&lab, Tally::ChallengeAnswered) == 10))
        .unwrap();
    for (namespace, filter) in
        [(lab.client(), format!("( dport = :{WEB} )")), (lab.guard(), format!("( sport = :{WEB} )"))]
    {
        let agreed = agreed(namespace, &filter);
        let kinds: BTreeSet<_> = agreed.values().collect();
        assert_eq!((agreed.len(), kinds.len()), (1 + LIMIT + 10, 1), "{agreed:#?}");
        println!("{filter}: {:?}", kinds.first().unwrap());
        let kind = kinds.first().unwrap();
        assert!(
            kind.contains("ts") && kind.contains("sack") && !kind.contains("scale:none,none"),
            "{kind:?}"
        );
    }
    assert_eq!(beyond.iter().map(|held| held.gone().unwrap()).sum::<usize>(), 0);
    let mut last = connect(lab.client(), server, MOMENT).unwrap();
    for _ in 0..3 {
        ask(&mut last).unwrap();
    }
    assert!(events(&daemon, "ban").is_empty());
    assert_eq!(events(&daemon, "challenge").len(), 1);
    daemon.terminate().unwrap();
}

#[test]
fn connections_beyond_the_limit_are_as_any_other_over_ipv4() {
    connections_beyond_the_limit_are_as_any_other(CLIENT_V4.into(), GUARD_CLIENT_V4.into());
}

#[test]
fn connections_beyond_the_limit_are_as_any_other_over_ipv6() {
    connections_beyond_the_limit_are_as_any_other(CLIENT_V6.into(), GUARD_CLIENT_V6.into());
}

#[test]
fn who_makes_more_connections_than_the_limit_by_challenges_is_banned() {
    let lab = Lab::new().unwrap();
    let dosguard = Dosguard::new(&lab).unwrap();
    let _nginx = Nginx::start(&lab, WEB).unwrap();
    let _replies = make_possible(&lab);
    let daemon = start(&dosguard, &config("10/60s", "challenge"));
    let open = || connect(lab.attacker(), (GUARD_V4, WEB), MOMENT);
    // Ten within the limit, before anything was challenged; ten that are.
    let held: Vec<_> = (0..20).map(|_| open().unwrap()).collect();
    wait_until("ten answers", PATIENCE, || Ok(tallied(&lab, Tally::ChallengeAnswered) == 10)).unwrap();
    assert!(events(&daemon, "ban").is_empty());
    let _one_too_many = open();
    wait_until("it is banned", PATIENCE, || Ok(!events(&daemon, "ban").is_empty())).unwrap();
    let kinds = |kind: &str| events(&daemon, kind).len();
    assert_eq!((kinds("challenge"), kinds("ban")), (1, 1));
    let (challenge, ban) = (&events(&daemon, "challenge")[0], &events(&daemon, "ban")[0]);
    for event in [challenge, ban] {
        assert_eq!((&event["source"], &event["rule"]), (&ATTACKER_V4.to_string().into(), &"web".into()));
        assert_eq!((&event["limit"], &event["count"]), (&10.into(), &11.into()), "{event}");
    }
    assert_eq!((&ban["reason"], &ban["scope"]), (&"handshakes".into(), &"all".into()));
    assert!(challenge["seq"].as_u64() < ban["seq"].as_u64(), "{challenge} {ban}");
    assert!(open().is_err());
    let mut first = &held[0];
    first.write_all(b"GET / HTTP/1.1\r\nHost: guard\r\n\r\n").unwrap();
    first.set_read_timeout(Some(MOMENT)).unwrap();
    assert!(first.read(&mut [0]).is_err(), "nothing of it arrives any more");
    // The ban is of that source alone.
    for _ in 0..5 {
        ask(&mut connect(lab.client(), (GUARD_CLIENT_V4, WEB), MOMENT).unwrap()).unwrap();
    }
    assert_eq!(bans(&dosguard).len(), 1);
    daemon.terminate().unwrap();
}

/// A lab in which somebody floods from the attacker's side in the name of the client.
fn forge<'a>(lab: &'a Lab, dosguard: &Dosguard<'a>, action: &str) -> (Daemon<'a>, TcpStream, RunningFlood) {
    let daemon = start(dosguard, &config("150/60s", action));
    let mut open = connect(lab.client(), (GUARD_CLIENT_V4, WEB), MOMENT).unwrap();
    ask(&mut open).unwrap();
    let syn = Packet::eth().ipv4(CLIENT_V4, GUARD_CLIENT_V4).tcp(1024, MAIL).syn().build();
    let flood = Flood::new(syn).ports(60_000).rate(RATE).cpu(0).duration(Duration::from_secs(20));
    (daemon, open, flood.start(lab.attacker(), PEER).unwrap())
}

#[test]
fn a_flood_in_the_name_of_a_client_shuts_it_out_by_a_ban_and_not_by_challenges() {
    let lab = Lab::new().unwrap();
    let dosguard = Dosguard::new(&lab).unwrap();
    let _nginx = Nginx::start(&lab, WEB).unwrap();
    let server = TcpServer::start(lab.guard(), (Ipv6Addr::UNSPECIFIED, MAIL)).unwrap();
    let client = Client::new((GUARD_CLIENT_V4, MAIL)).per_second(50).duration(Duration::from_secs(2));
    let _replies = make_possible(&lab);

    let quiet = client.clone().run(lab.client()).unwrap();
    let (daemon, mut open, flood) = forge(&lab, &dosguard, "challenge");
    wait_until("the flood is challenged", PATIENCE, || Ok(packets(&dosguard, &["challenged"]) > 10_000))
        .unwrap();
    let (before, began) = (packets(&dosguard, &["challenged"]), Instant::now());
    let served = client.clone().start(lab.client()).unwrap();
    let mut slowest = Duration::ZERO;
    while !served.is_finished() {
        let asked = Instant::now();
        ask(&mut open).unwrap();
        slowest = slowest.max(asked.elapsed());
    }
    let report = served.join().unwrap();
    let (challenged, time) = (packets(&dosguard, &["challenged"]) - before, began.elapsed());
    let rate = u128::from(challenged) * 1000 / time.as_millis();
    let sent = flood.stop().unwrap();
    println!("{sent:?}; {rate} a second challenged; the open connection was answered within {slowest:?}");
    assert!(rate > u128::from(RATE) / 4, "{rate} a second");
    for (name, report) in [("quiet", &quiet), ("challenged", &report)] {
        let [half, most, all] = [50, 99, 100].map(|percent| report.percentile(percent));
        println!("{name}: {} served, after {half:?}, {most:?}, {all:?}", report.successes());
    }
    assert_eq!((report.successes(), report.failures()), (100, 0), "{:?}", report.reasons());
    assert!(report.percentile(99) < Some(MOMENT), "{:?}", report.percentile(99));
    assert_eq!(server.accepted(), 200);
    assert!(events(&daemon, "ban").is_empty() && bans(&dosguard).is_empty());
    assert_eq!(events(&daemon, "challenge")[0]["source"], CLIENT_V4.to_string());
    let answered = tallied(&lab, Tally::ChallengeAnswered);
    println!(
        "{} challenged, {answered} answered, {} left to the host, {} unsent",
        packets(&dosguard, &["challenged"]),
        tallied(&lab, Tally::ChallengeLeft),
        tallied(&lab, Tally::ChallengeUnsent)
    );
    assert!((90..=100).contains(&answered), "{answered}");
    daemon.terminate().unwrap();
    done(&dosguard, "detach --all");

    let (daemon, mut open, flood) = forge(&lab, &dosguard, "ban");
    wait_until("the client is banned", PATIENCE, || Ok(!events(&daemon, "ban").is_empty())).unwrap();
    assert_eq!(events(&daemon, "ban")[0]["source"], CLIENT_V4.to_string());
    let shut_out = client.timeout(MOMENT).per_second(10).duration(Duration::from_secs(1));
    assert_eq!(shut_out.run(lab.client()).unwrap().successes(), 0);
    assert!(ask(&mut open).is_err());
    flood.stop().unwrap();
    daemon.terminate().unwrap();
}

/// The values of the two settings.
fn host(lab: &Lab) -> [String; 2] {
    ["tcp_syncookies", "tcp_timestamps"].map(|name| {
        lab.guard().run("cat", [&format!("/proc/sys/net/ipv4/{name}")]).unwrap().trim().to_owned()
    })
}

#[test]
fn what_the_host_cannot_take_is_dropped_and_status_says_why() {
    let lab = Lab::new().unwrap();
    let dosguard = Dosguard::new(&lab).unwrap();
    let _server = TcpServer::start(lab.guard(), (Ipv6Addr::UNSPECIFIED, MAIL)).unwrap();
    let _replies = take_replies(&lab);
    set_host(&lab, "1", "1");
    let daemon = start(&dosguard, &config("3/60s", "challenge"));
    let warnings = || dosguard.status().unwrap()["warnings"].to_string();
    let challenged = || packets(&dosguard, &["challenged"]);
    syns(&lab, &dosguard, MAIL, 10);
    assert_eq!((challenged(), packets(&dosguard, &["over-limit"])), (0, 7));
    assert!(
        warnings().contains("net.ipv4.tcp_syncookies is 1: with 2 the host takes cookies"),
        "{}",
        warnings()
    );
    let warning = "warning: no SYN is challenged, what is beyond the limit of rule `web` is dropped";
    let said = daemon.stderr().unwrap();
    assert!(said.matches(warning).count() == 1 && said.contains("\nchallenges: off, net.ipv4"), "{said}");
    let status = done(&dosguard, "status");
    assert!(
        status.matches(warning).count() == 1 && status.contains("\nchallenges: off, net.ipv4"),
        "{status}"
    );
    assert_eq!(events(&daemon, "limited").len(), 1);

    // Each change is noticed by the daemon, which nobody tells.
    let syn = Packet::eth().ipv4(ATTACKER_V4, GUARD_V4).tcp(7, MAIL).syn().build();
    let sender = dosguard_tests::transmit::Sender::new(lab.attacker(), PEER).unwrap();
    let is_challenged = || {
        let before = challenged();
        let judged = || challenged() + packets(&dosguard, &["over-limit", "under-limit"]);
        let all = judged() + 1;
        sender.send(std::slice::from_ref(&syn)).unwrap();
        wait_until("it is judged", PATIENCE, || Ok(judged() >= all)).unwrap();
        challenged() > before
    };
    let settles = |wanted: bool, why: &str| {
        let began = Instant::now();
        wait_until(why, PATIENCE, || Ok(is_challenged() == wanted)).unwrap();
        println!("{why}: noticed after {:?}", began.elapsed());
        assert!(began.elapsed() < Duration::from_millis(2500), "{why}: {:?}", began.elapsed());
        assert_eq!(warnings().contains(why), !wanted, "{}", warnings());
    };
    set_host(&lab, "2", "1");
    settles(true, "no SYN is challenged");
    let again = "\nchallenging SYNs works again\n";
    wait_until("it is told", PATIENCE, || Ok(daemon.stderr()?.contains(again))).unwrap();
    let status = done(&dosguard, "status");
    assert!(status.contains("no window scale and no SACK: net.ipv4.tcp_timestamps is 1"), "{status}");
    set_host(&lab, "2", "2");
    wait_until("nothing is missing", PATIENCE, || Ok(warnings() == "[]")).unwrap();
    for (setting, why) in [
        ("net.ipv4.ip_forward", "the host forwards packets (net.ipv4.ip_forward is 1)"),
        ("net.ipv6.conf.all.forwarding", "the host forwards packets (net.ipv6.conf.all.forwarding is 1)"),
        ("net.ipv4.conf.up0.forwarding", "the host forwards packets (net.ipv4.conf.up0.forwarding is 1)"),
        ("net.ipv6.conf.up1.forwarding", "the host forwards packets (net.ipv6.conf.up1.forwarding is 1)"),
    ] {
        lab.guard().sysctl(setting, "1").unwrap();
        settles(false, why);
        lab.guard().sysctl(setting, "0").unwrap();
        settles(true, "no SYN is challenged");
    }
    let ip = |line: &str| lab.guard().run("ip", words(line)).unwrap();
    ip("link add bridge0 type bridge");
    ip("link set up1 master bridge0");
    settles(false, "up1 is a port of a bridge");
    ip("link set up1 nomaster");
    settles(true, "no SYN is challenged");
    set_host(&lab, "0", "2");
    settles(false, "net.ipv4.tcp_syncookies is 0");
    assert!(bans(&dosguard).is_empty());
    daemon.terminate().unwrap();

    // Without a daemon nobody does, and it is said.
    set_host(&lab, "2", "2");
    let looks = "`dosguard --instance lab attach` of an interface looks again";
    assert!(warnings().contains(looks), "{}", warnings());
    done(&dosguard, "sysctl rule.web.action=ban rule.web.require_proof=true");
    let status = done(&dosguard, "status");
    assert!(status.contains("challenges: off, the host could by now"), "{status}");
    assert_eq!(dosguard.status().unwrap()["challenges"]["on"], false);
    done(&dosguard, &format!("attach {GUARD_ATTACKER_SIDE}"));
    assert!(done(&dosguard, "status").contains("challenges: on\n"));
    set_host(&lab, "1", "2");
    let status = done(&dosguard, "status");
    assert!(status.contains("challenges: on, although net.ipv4.tcp_syncookies is 1"), "{status}");
    assert!(status.contains("which has changed") && status.contains(looks), "{status}");
}

#[test]
fn what_challenges_need_is_set_and_put_back_if_asked_for() {
    let lab = Lab::new().unwrap();
    let dosguard = Dosguard::new(&lab).unwrap();
    let file = dosguard.write_config("c.toml", &config("3/60s", "challenge")).unwrap();
    let line = |verb: &str| format!("{verb} -c {} {GUARD_ATTACKER_SIDE} {GUARD_CLIENT_SIDE}", file.display());
    let _replies = take_replies(&lab);
    set_host(&lab, "1", "0");
    let said = say(&dosguard, words(&line("attach")));
    assert!(
        said.err.contains("net.ipv4.tcp_syncookies is 1") && said.err.contains("--fix-sysctl"),
        "{said:?}"
    );
    assert_eq!(host(&lab), ["1", "0"]);
    let rule = "\nrule default: every other port, 100/1s, then ";
    assert!(said.err.contains(&format!("{rule}ban for 1m, scope all, 10s by SYNs alone\n")), "{said:?}");
    let said = say(&dosguard, words(&line("attach --fix-sysctl")));
    let challenged =
        format!("{rule}challenge the excess, ban who answers more than that for 1m, scope all\n");
    assert!(said.err.contains(&challenged), "{said:?}");
    assert!(said.err.contains("set net.ipv4.tcp_syncookies to 2 (it was 1)"), "{said:?}");
    assert_eq!(host(&lab), ["2", "2"]);
    let warnings = dosguard.status().unwrap()["warnings"].to_string();
    assert!(!warnings.contains("challenge"), "{warnings}");
    let said = say(&dosguard, words("detach --all"));
    assert!(said.err.contains("set net.ipv4.tcp_timestamps back to 0"), "{said:?}");
    assert_eq!(host(&lab), ["1", "0"]);

    // Where something else is in the way it would be of no use.
    lab.guard().sysctl("net.ipv4.ip_forward", "1").unwrap();
    let said = say(&dosguard, words(&line("attach --fix-sysctl")));
    let why = "warning: `--fix-sysctl` has changed nothing: SYNs could not be challenged all the same, since the host forwards";
    assert!(said.code == Some(0) && said.err.contains(why), "{said:?}");
    assert_eq!(host(&lab), ["1", "0"]);
    lab.guard().sysctl("net.ipv4.ip_forward", "0").unwrap();

    let daemon = dosguard.start(words(&line("run --fix-sysctl"))).unwrap();
    assert_eq!(host(&lab), ["2", "2"]);
    // What is ended is the daemon, not the instance. What somebody else sets meanwhile stays.
    daemon.terminate().unwrap();
    assert_eq!(host(&lab), ["2", "2"]);
    lab.guard().sysctl("net.ipv4.tcp_timestamps", "1").unwrap();
    done(&dosguard, "detach --all");
    assert_eq!(host(&lab), ["1", "1"]);
}

#[test]
fn a_listener_goes_on_to_take_cookies() {
    let lab = Lab::new().unwrap();
    let dosguard = Dosguard::new(&lab).unwrap();
    let server = TcpServer::start(lab.guard(), (Ipv6Addr::UNSPECIFIED, MAIL)).unwrap();
    let _replies = make_possible(&lab);
    let seconds = std::env::var("DOSGUARD_COOKIE_SECONDS").map_or(33, |text| text.parse().unwrap());
    // Once the flood has begun nobody has a SYN within the limit, which the host would answer with a cookie as well.
    let daemon = start(&dosguard, &config(&format!("{}/1h", 5 * seconds + 20), "challenge"));
    let syn = Packet::eth().ipv4(CLIENT_V4, GUARD_CLIENT_V4).tcp(1024, MAIL).syn().build();
    let flood = Flood::new(syn).ports(1000).rate(500).duration(Duration::from_secs(seconds + 2));
    let flood = flood.start(lab.attacker(), PEER).unwrap();
    wait_until("it is challenged", PATIENCE, || Ok(packets(&dosguard, &["challenged"]) > 0)).unwrap();
    let client = Client::new((GUARD_CLIENT_V4, MAIL)).per_second(5).duration(Duration::from_secs(seconds));
    let report = client.run(lab.client()).unwrap();
    let left = tallied(&lab, Tally::ChallengeLeft);
    println!("{left} left to the host in {seconds} s, {} taken", server.accepted());
    if report.failures() > 0 {
        println!("{}\n{}", done(&dosguard, "status"), lab.guard().run("nstat", ["-as"]).unwrap());
    }
    assert_eq!((report.successes(), report.failures()), (5 * seconds, 0), "{:?}", report.reasons());
    assert_eq!(server.accepted(), 5 * seconds);
    // Each 6,000 ticks of the kernel's clock.
    assert!(left >= 1, "{left}");
    assert!(bans(&dosguard).is_empty());
    flood.stop().unwrap();
    daemon.terminate().unwrap();
}

#[test]
fn a_server_that_is_started_again_takes_challenges_at_once() {
    let lab = Lab::new().unwrap();
    let dosguard = Dosguard::new(&lab).unwrap();
    let _replies = make_possible(&lab);
    let daemon = start(&dosguard, &config("20/60s", "challenge"));
    let start = || TcpServer::start(lab.guard(), (Ipv6Addr::UNSPECIFIED, MAIL)).unwrap();
    let open = || connect(lab.client(), (GUARD_CLIENT_V4, MAIL), MOMENT);
    let server = start();
    (0..24).for_each(|_| drop(open().unwrap()));
    wait_until("all are accepted", PATIENCE, || Ok(server.accepted() == 24)).unwrap();
    assert_eq!((packets(&dosguard, &["challenged"]), tallied(&lab, Tally::AnswerDropped)), (4, 0));
    drop(server);
    // It has sent no cookie yet, and takes none.
    let server = start();
    (0..5).for_each(|_| drop(open().unwrap()));
    wait_until("all are accepted", PATIENCE, || Ok(server.accepted() == 5)).unwrap();
    assert_eq!(tallied(&lab, Tally::ChallengeLeft), 1);
    assert!(events(&daemon, "ban").is_empty());
    daemon.terminate().unwrap();
}
