//! Concurrent connections: who holds too many is banned, again as long as it holds them, and not when it has let go. Needs
//! root.

#![expect(clippy::unwrap_used, reason = "a step that fails, fails the test, in its helpers as well")]

use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use dosguard_tests::addresses::{
    ATTACKER_V4, ATTACKER_V6, CLIENT_V4, CLIENT_V6, GUARD_ATTACKER_SIDE, GUARD_CLIENT_SIDE, GUARD_CLIENT_V4,
    GUARD_CLIENT_V6, GUARD_V4, GUARD_V6,
};
use dosguard_tests::cli::words;
use dosguard_tests::daemon::{Daemon, Dosguard};
use dosguard_tests::held::Held;
use dosguard_tests::lab::Lab;
use dosguard_tests::nginx::Nginx;
use dosguard_tests::wait::wait_until;
use serde_json::Value;

const PATIENCE: Duration = Duration::from_secs(10);

const CONFIG: &str = r#"
[rule.web]
ports = ["tcp/80"]
limit = "1000/1s"
ban = "3s"
max_connections = 100
"#;

fn start<'a>(dosguard: &Dosguard<'a>, config: &str) -> Daemon<'a> {
    let file = dosguard.write_config("connections.toml", config).unwrap();
    let line = format!("run --json -c {} {GUARD_ATTACKER_SIDE} {GUARD_CLIENT_SIDE}", file.display());
    dosguard.start(words(&line)).unwrap()
}

/// All that the daemon has told.
fn told(daemon: &Daemon<'_>) -> Vec<Value> {
    let text = daemon.stdout().unwrap();
    let whole = text.rsplit_once('\n').map_or("", |(whole, _)| whole);
    whole.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn events(daemon: &Daemon<'_>, kind: &str) -> Vec<Value> {
    told(daemon).into_iter().filter(|event| event["kind"] == kind).collect()
}

fn hold_and_let_go(attacker: (IpAddr, IpAddr), client: (IpAddr, IpAddr), source: &str) {
    let lab = Lab::new().unwrap();
    let dosguard = Dosguard::new(&lab).unwrap();
    let _nginx = Nginx::start(&lab, 80).unwrap();
    let daemon = start(&dosguard, CONFIG);
    let server = |address| SocketAddr::new(address, 80);
    let fewer = Held::open(lab.client(), &[client.0], server(client.1), 99).unwrap();
    let began = Instant::now();
    let mut many = Held::open(lab.attacker(), &[attacker.0], server(attacker.1), 150).unwrap();
    wait_until("the source is banned", PATIENCE, || Ok(!events(&daemon, "ban").is_empty())).unwrap();
    let took = began.elapsed();
    println!("banned after {took:?}");
    assert!(took < Duration::from_secs(2), "{took:?}");
    let ban = &events(&daemon, "ban")[0];
    assert_eq!(
        (&ban["source"], &ban["reason"], &ban["rule"], &ban["limit"], &ban["offences"]),
        (&source.into(), &"connections".into(), &"web".into(), &100.into(), &1.into())
    );
    // The last of them may just be on their way.
    assert!((101..=150).contains(&ban["count"].as_u64().unwrap()), "{ban}");
    // Nothing of it arrives any more, and its connections live on.
    assert_eq!(many.gone().unwrap(), 0);

    wait_until("it is banned again", PATIENCE, || Ok(events(&daemon, "ban").len() == 2)).unwrap();
    let [first, second] = &events(&daemon, "ban")[..] else { panic!("two bans") };
    assert_eq!((&second["count"], &second["offences"]), (&150.into(), &2.into()));
    let length = |ban: &Value| {
        let at = |name: &str| ban[name].as_str().unwrap().parse::<jiff::Timestamp>().unwrap();
        at("until").duration_since(at("since")).as_secs_f64().round()
    };
    assert_eq!((length(first), length(second)), (3.0, 6.0));
    assert!(events(&daemon, "probation").is_empty());

    many.close(150);
    // What the server has not heard of is not over for it: the ban drops that too, and it is told again afterwards.
    wait_until(
        "it is on probation",
        Duration::from_secs(20),
        || Ok(!events(&daemon, "probation").is_empty()),
    )
    .unwrap();
    assert_eq!(events(&daemon, "ban").len(), 2);
    assert_eq!(events(&daemon, "probation")[0]["source"], source);
    assert_eq!(fewer.gone().unwrap(), 0);
    let about_others = told(&daemon).into_iter().filter(|event| event["source"] != source).count();
    assert_eq!(about_others, 0);
    daemon.terminate().unwrap();
}

#[test]
fn who_holds_too_many_is_banned_until_it_lets_go_over_ipv4() {
    let attacker = (ATTACKER_V4.into(), GUARD_V4.into());
    hold_and_let_go(attacker, (CLIENT_V4.into(), GUARD_CLIENT_V4.into()), &ATTACKER_V4.to_string());
}

#[test]
fn who_holds_too_many_is_banned_until_it_lets_go_over_ipv6() {
    let attacker = (ATTACKER_V6.into(), GUARD_V6.into());
    hold_and_let_go(attacker, (CLIENT_V6.into(), GUARD_CLIENT_V6.into()), "2001:db8:a::/64");
}
