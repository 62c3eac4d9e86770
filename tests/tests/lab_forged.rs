//! Challenges against tools that know nothing of them: a real mail server, a forger, a scanner, and clients. Needs root.

#![expect(clippy::unwrap_used, reason = "a step that fails, fails the test, in its helpers as well")]

use std::process::Output;
use std::thread;
use std::time::{Duration, Instant};

use dosguard::output::grouped;
use dosguard_common::reason::Tally;
use dosguard_tests::addresses::{
    CLIENT_V4, GUARD_ATTACKER_SIDE, GUARD_CLIENT_SIDE, GUARD_CLIENT_V4, GUARD_V4, PEER,
};
use dosguard_tests::challenges::{connect, make_possible, set_host, take_replies, tallied};
use dosguard_tests::cli::{PATIENCE, bans, done, events, packets, start_telling as start};
use dosguard_tests::daemon::Dosguard;
use dosguard_tests::flood::{Flood, FloodReport, RunningFlood};
use dosguard_tests::lab::Lab;
use dosguard_tests::netns::feed;
use dosguard_tests::nginx::Nginx;
use dosguard_tests::packet::{Frame, Packet};
use dosguard_tests::smtp::{Postfix, Session};
use dosguard_tests::transmit::{Sender, send_frames};
use dosguard_tests::wait::wait_until;

const MAIL: u16 = 25;
const WEB: u16 = 80;
/// Forged SYNs a second.
const RATE: u64 = 100_000;
/// For an answer that comes in a few milliseconds if it comes at all.
const MOMENT: Duration = Duration::from_millis(700);

/// What a rule does beyond its limit: asks for a proof before it bans, or takes each SYN for one.
const PROVEN: &str = "require_proof = true";
const BARE: &str = "require_proof = false";
/// The same limit without dosguard: `set-update` of docs/xtables.md.
const RECENT: &str = "*filter
:INPUT ACCEPT [0:0]
-A INPUT -p tcp --syn --dport 25 -m recent --name smtp --set
-A INPUT -p tcp --syn --dport 25 -m recent --name smtp --update --seconds 60 --hitcount 151 -j DROP
COMMIT
";

fn config(ports: &str, limit: &str, beyond: &str) -> String {
    format!("[rule.smtp]\nports = [{ports}]\nlimit = '{limit}'\n{beyond}\nban = '10m'\n")
}

/// A SYN that the client has not sent.
fn syn(from: u16, port: u16) -> Frame {
    Packet::eth().ipv4(CLIENT_V4, GUARD_CLIENT_V4).tcp(from, port).syn().build()
}

/// Has the client be at the limit of a rule by SYNs that it has not sent, from ports that it does not use.
fn exhaust(lab: &Lab, dosguard: &Dosguard<'_>, limit: u16) {
    send_frames(lab.attacker(), PEER, &(1..=limit).map(|from| syn(from, WEB)).collect::<Vec<_>>()).unwrap();
    wait_until_challenged(lab, dosguard);
}

/// SYNs in the name of the client, from the attacker's side.
fn forge(lab: &Lab, port: u16, rate: u64) -> RunningFlood {
    let flood = Flood::new(syn(1024, port)).ports(60_000).rate(rate).cpu(0).duration(Duration::from_secs(20));
    flood.start(lab.attacker(), PEER).unwrap()
}

/// What a client met while somebody flooded in its name.
struct Met {
    flood: FloodReport,
    tried: usize,
    greeted: usize,
    slowest: Duration,
    /// NOOPs that were answered on the connection that was open before, of as many as there were tries.
    answered: usize,
    afterwards: bool,
    banned: Vec<String>,
}

fn greeting(lab: &Lab) -> anyhow::Result<Session> {
    Session::open(lab.client(), (GUARD_CLIENT_V4, MAIL), MOMENT)
}

/// Floods for ten seconds at least, or until the client has tried so often.
fn suffer(lab: &Lab, tries: usize, banned: impl Fn() -> Vec<String>) -> Met {
    let mut open = greeting(lab).unwrap();
    open.noop().unwrap();
    let flood = forge(lab, MAIL, RATE);
    wait_until("the flood is on", PATIENCE, || Ok(flood.sent() > RATE / 2)).unwrap();
    let (mut greeted, mut answered, mut slowest) = (0, 0, Duration::ZERO);
    let pause = Duration::from_secs(10) / u32::try_from(tries).unwrap();
    for _ in 0..tries {
        let began = Instant::now();
        if let Ok(session) = greeting(lab) {
            (greeted, slowest) = (greeted + 1, slowest.max(began.elapsed()));
            session.quit().unwrap();
        }
        answered += usize::from(open.noop().is_ok());
        thread::sleep(pause.saturating_sub(began.elapsed()));
    }
    let flood = flood.stop().unwrap();
    let afterwards = greeting(lab).is_ok();
    Met { flood, tried: tries, greeted, slowest, answered, afterwards, banned: banned() }
}

/// As the documentation shows it.
fn table(columns: &[(String, Met)]) -> String {
    let row = |title: &str, cell: &dyn Fn(&Met) -> String| {
        let cells: Vec<_> = columns.iter().map(|(_, met)| cell(met)).collect();
        format!("| {title} | {} |\n", cells.join(" | "))
    };
    let names: Vec<_> = columns.iter().map(|(name, _)| name.as_str()).collect();
    [
        format!("| | {} |\n| --- |{}\n", names.join(" | "), " --- |".repeat(names.len())),
        row("forged SYNs a second", &|met| grouped(met.flood.rate_per_second())),
        row("the client's new connections that were greeted", &|met| {
            format!("{} of {}", met.greeted, met.tried)
        }),
        row("the slowest of them after", &|met| match met.greeted {
            0 => "-".to_owned(),
            _ => format!("{} ms", met.slowest.as_millis()),
        }),
        row("answers on the connection that it had before", &|met| {
            format!("{} of {}", met.answered, met.tried)
        }),
        row("a new connection after the flood", &|met| {
            if met.afterwards { "greeted" } else { "not greeted" }.to_owned()
        }),
        row("banned at the end", &|met| match &met.banned[..] {
            [] => "nobody".to_owned(),
            banned => banned.join(", "),
        }),
    ]
    .concat()
}

#[test]
fn a_flood_in_the_name_of_a_mail_server_shuts_it_out_unless_it_is_challenged() {
    let lab = Lab::new().unwrap();
    let dosguard = Dosguard::new(&lab).unwrap();
    let _postfix = Postfix::start(&lab, MAIL).unwrap();
    let _replies = take_replies(&lab);
    let banned = || {
        let bans = bans(&dosguard);
        bans.iter().map(|ban| format!("{}, {}", ban["source"], ban["reason"]).replace('"', "")).collect()
    };
    let mut columns = Vec::new();
    for (beyond, host, tries) in [(PROVEN, "2", 100), (BARE, "1", 5)] {
        set_host(&lab, host, host);
        let daemon = start(&dosguard, &config("'tcp/25'", "150/60s", beyond));
        columns.push((format!("dosguard, `{}`", beyond.replace('\n', "`, `")), suffer(&lab, tries, banned)));
        if beyond == PROVEN {
            assert!(events(&daemon, "ban").is_empty() && !events(&daemon, "challenge").is_empty());
        }
        daemon.terminate().unwrap();
        done(&dosguard, "detach --all");
    }
    lab.enable_napi().unwrap();
    feed(&mut lab.guard().command("iptables-restore"), RECENT).unwrap();
    let listed = || {
        let list = lab.guard().run("cat", ["/proc/net/xt_recent/smtp"]).unwrap();
        list.lines()
            .filter_map(|line| Some(line.split_once("src=")?.1.split(' ').next()?.to_owned()))
            .collect()
    };
    columns.push(("`iptables -m recent --update`".to_owned(), suffer(&lab, 5, listed)));
    println!("{}", table(&columns));
    for (name, met) in &columns {
        assert!(met.flood.rate_per_second() > RATE / 2, "{name}: {:?}", met.flood);
    }
    let told = columns.iter().map(|(_, met)| (met.greeted, met.answered, met.afterwards, met.banned.len()));
    // `recent` looks at SYNs alone.
    assert_eq!(told.collect::<Vec<_>>(), [(100, 100, true, 0), (0, 0, false, 1), (0, 5, false, 1)]);
}

/// Runs a program in the attacker's or the client's namespace, for 20 seconds at most.
fn tool(namespace: &dosguard_tests::netns::Namespace, line: &str) -> Output {
    namespace.command("timeout").arg("20").args(line.split(' ')).output().unwrap()
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap()
}

#[test]
fn hping3_has_nobody_banned() {
    const COUNT: u64 = 20_000;
    let lab = Lab::new().unwrap();
    let dosguard = Dosguard::new(&lab).unwrap();
    let _postfix = Postfix::start(&lab, MAIL).unwrap();
    let _replies = make_possible(&lab);
    let daemon = start(&dosguard, &config("'tcp/25'", "500/60s", PROVEN));
    let judged = || packets(&dosguard, &["challenged", "under-limit"]);
    // In its own name the client resets each connection that it was not asked for, as whoever's name is used does.
    for (from, namespace, source, to) in [
        ("the attacker in the client's name", lab.attacker(), format!("-a {CLIENT_V4}"), GUARD_V4),
        ("the attacker in anybody's name", lab.attacker(), "--rand-source".to_owned(), GUARD_V4),
        ("the client's host", lab.client(), format!("-a {CLIENT_V4}"), GUARD_CLIENT_V4),
    ] {
        let before = judged();
        let line = format!("hping3 -q -n -S -p {MAIL} {source} -i u50 -c {COUNT} {to}");
        let (forged, greeted) = thread::scope(|scope| {
            let forger = scope.spawn(|| tool(namespace, &line));
            wait_until("it sends", PATIENCE, || Ok(judged() > before + 1000)).unwrap();
            let mut greeted = 0;
            while !forger.is_finished() {
                greeting(&lab).unwrap().quit().unwrap();
                greeted += 1;
                thread::sleep(Duration::from_millis(100));
            }
            (forger.join().unwrap(), greeted)
        });
        // It stops after so many packets, or as soon as it has so many replies.
        let judged = judged() - before;
        println!("hping3 from {from}: {judged} judged, {greeted} greeted");
        assert!(judged > COUNT * 9 / 10 && greeted >= 10, "{judged} {greeted} {forged:?}");
    }
    assert!(packets(&dosguard, &["challenged"]) > 2 * COUNT * 9 / 10);
    assert!(events(&daemon, "ban").is_empty() && bans(&dosguard).is_empty());
    daemon.terminate().unwrap();
}

/// The states of ports by nmap, from the client.
fn scan(lab: &Lab) -> Vec<(u16, String)> {
    let line = "nmap -sS -n -Pn --disable-arp-ping --send-ip --max-retries 1 -p 25,80,81,82";
    let output = tool(lab.client(), &format!("{line} {GUARD_CLIENT_V4}"));
    let of_line = |line: &str| {
        let (port, rest) = line.split_once("/tcp ")?;
        Some((port.parse().ok()?, rest.split_whitespace().next()?.to_owned()))
    };
    text(&output.stdout).lines().filter_map(of_line).collect()
}

fn ports(states: [&str; 4]) -> Vec<(u16, String)> {
    [25, 80, 81, 82].into_iter().zip(states.map(str::to_owned)).collect()
}

/// How long `curl` took to connect, each time it was answered with 204.
fn curl(lab: &Lab, times: usize) -> Vec<f64> {
    let line = format!("curl -sS -m 3 -w %{{http_code}}/%{{time_connect}} http://{GUARD_CLIENT_V4}/");
    let once = || {
        let output = tool(lab.client(), &line);
        text(&output.stdout).strip_prefix("204/").unwrap_or_else(|| panic!("{output:?}")).parse().unwrap()
    };
    (0..times).map(|_| once()).collect()
}

#[test]
fn nmap_sees_the_same_listeners_and_curl_is_served() {
    let lab = Lab::new().unwrap();
    let dosguard = Dosguard::new(&lab).unwrap();
    let _postfix = Postfix::start(&lab, MAIL).unwrap();
    let _nginx = Nginx::start(&lab, WEB).unwrap();
    let _replies = take_replies(&lab);
    assert_eq!(scan(&lab), ports(["open", "open", "closed", "closed"]));
    set_host(&lab, "2", "2");
    // Nobody listens at 81, which is of another rule, nor at 82, which is of this one.
    let daemon = start(&dosguard, &config("'tcp/25', 'tcp/80', 'tcp/82'", "150/60s", PROVEN));
    let flood = forge(&lab, MAIL, 20_000);
    wait_until("SYNs are challenged", PATIENCE, || Ok(packets(&dosguard, &["challenged"]) > 0)).unwrap();
    // What is beyond the limit of a rule is dropped where nobody listens: the host would have to reset it.
    assert_eq!(scan(&lab), ports(["open", "open", "closed", "filtered"]));

    let before = packets(&dosguard, &["challenged"]);
    let mut took = curl(&lab, 50);
    // A client that offers ECN is answered without.
    lab.client().sysctl("net.ipv4.tcp_ecn", "1").unwrap();
    took.extend(curl(&lab, 10));
    let _held = connect(lab.client(), (GUARD_CLIENT_V4, WEB), MOMENT).unwrap();
    for namespace in [lab.client(), lab.guard()] {
        let told = namespace.run("ss", ["-Htino", "state", "established", "( sport = :80 or dport = :80 )"]);
        assert!(told.as_ref().is_ok_and(|told| told.contains(" sack ") && !told.contains("ecn")), "{told:?}");
    }
    took.sort_by(f64::total_cmp);
    println!("60 of 60 times curl was connected, at most after {:.1} ms", took[59] * 1000.0);
    // No SYN was sent twice.
    assert!(took[59] < MOMENT.as_secs_f64(), "{took:?}");
    assert!(packets(&dosguard, &["challenged"]) > before && !flood.is_finished());
    assert!(tallied(&lab, Tally::ChallengeAnswered) >= 55);
    flood.stop().unwrap();
    assert!(events(&daemon, "ban").is_empty() && bans(&dosguard).is_empty());
    daemon.terminate().unwrap();
}

/// Bytes a second of a download by `curl`.
fn download(lab: &Lab, port: u16) -> f64 {
    let line = "curl -fsS -m 15 -o /dev/null -w %{speed_download}";
    let output = tool(lab.client(), &format!("{line} http://{GUARD_CLIENT_V4}:{port}/large"));
    text(&output.stdout).parse().unwrap_or_else(|_| panic!("{output:?}"))
}

/// Waits until the client's SYNs are challenged, which are beyond the limit.
fn wait_until_challenged(lab: &Lab, dosguard: &Dosguard<'_>) {
    let challenged = || packets(dosguard, &["challenged"]);
    let before = challenged();
    let sender = Sender::new(lab.attacker(), PEER).unwrap();
    wait_until("SYNs are challenged", PATIENCE, || {
        sender.send(&[syn(1, WEB)])?;
        Ok(challenged() > before)
    })
    .unwrap();
}

#[test]
fn links_of_other_widths_carry_challenged_connections() {
    for (mtu, mode) in [("1400", "native"), ("9000", "generic")] {
        let lab = Lab::new().unwrap();
        let dosguard = Dosguard::new(&lab).unwrap();
        let nginx = Nginx::start(&lab, WEB).unwrap();
        nginx.offer(20_000_000).unwrap();
        let guard = [GUARD_ATTACKER_SIDE, GUARD_CLIENT_SIDE].map(|interface| (lab.guard(), interface));
        for (namespace, interface) in guard.into_iter().chain([(lab.attacker(), PEER), (lab.client(), PEER)])
        {
            namespace.run("ip", ["link", "set", interface, "mtu", mtu]).unwrap();
        }
        set_host(&lab, "2", "2");
        let _replies = (mode == "native").then(|| take_replies(&lab));
        let daemon = start(&dosguard, &config("'tcp/80'", "20/60s", PROVEN));
        assert_eq!(dosguard.status().unwrap()["interfaces"][1]["mode"], mode);
        exhaust(&lab, &dosguard, 20);
        curl(&lab, 5);
        println!("MTU {mtu}: {:.0} MB/s", download(&lab, WEB) / 1e6);
        assert_eq!(tallied(&lab, Tally::ChallengeAnswered), 6);
        daemon.terminate().unwrap();
    }
}

fn median(of: &[f64]) -> f64 {
    let mut sorted = of.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted[sorted.len() / 2]
}

#[test]
fn a_challenged_connection_is_as_fast_as_any_other() {
    const PLAIN: u16 = 8080;
    let rounds = std::env::var("DOSGUARD_ROUNDS").map_or(9, |text| text.parse().unwrap());
    let lab = Lab::new().unwrap();
    let dosguard = Dosguard::new(&lab).unwrap();
    let (web, plain) = (Nginx::start(&lab, WEB).unwrap(), Nginx::start(&lab, PLAIN).unwrap());
    [&web, &plain].into_iter().for_each(|nginx| nginx.offer(200_000_000).unwrap());
    let _replies = make_possible(&lab);
    // What is over the limit in an ordinary round bans nobody.
    let daemon = start(&dosguard, &config("'tcp/80'", "100/10m", "action = \"challenge\""));
    exhaust(&lab, &dosguard, 100);
    let answered = || tallied(&lab, Tally::ChallengeAnswered);
    let mut speeds = [Vec::new(), Vec::new()];
    // The fastest of each, as a machine that is busy only ever slows one down; a busier one gets more rounds.
    let fastest = |speeds: &[f64]| speeds.iter().copied().fold(0.0, f64::max);
    let ratio = |speeds: &[Vec<f64>; 2]| fastest(&speeds[1]) / fastest(&speeds[0]);
    for round in 0..4 * rounds {
        if round >= rounds && ratio(&speeds) > 0.90 {
            break;
        }
        for which in [round % 2, 1 - round % 2] {
            let speed = if which == 0 {
                // As it is without challenges: the host sends no cookies.
                set_host(&lab, "1", "1");
                let before = answered();
                let speed = download(&lab, PLAIN);
                assert_eq!(answered(), before);
                speed
            } else {
                set_host(&lab, "2", "2");
                wait_until_challenged(&lab, &dosguard);
                // Now and then one is left to the host; then the next is not.
                curl(&lab, 1);
                let before = answered();
                let speed = download(&lab, WEB);
                assert_eq!(answered(), before + 1);
                speed
            };
            speeds[which].push(speed);
        }
    }
    for (name, speeds) in ["ordinary", "challenged"].iter().zip(&speeds) {
        let each: Vec<_> = speeds.iter().map(|speed| (speed / 1e6).round()).collect();
        println!("{name}: median {:.0} MB/s of {each:?}", median(speeds) / 1e6);
    }
    println!("challenged / ordinary: {:.3}", ratio(&speeds));
    assert!(ratio(&speeds) > 0.90, "{speeds:.0?}");
    assert!(events(&daemon, "ban").is_empty());
    daemon.terminate().unwrap();
}
