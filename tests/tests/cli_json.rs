//! What `--json` prints, and what docs/json.md says of it: both name the same fields.

#![expect(clippy::unwrap_used, reason = "a test's helpers fail as the test itself does")]

use std::net::Ipv4Addr;

use dosguard::config::cidr::to_address;
use dosguard::datapath::Datapath;
use dosguard_common::ban::Ban;
use dosguard_common::key::SourceKey;
use dosguard_common::rule::{RuleIndex, Scope};
use dosguard_tests::addresses::{
    ATTACKER_V4, FORGED_V4, GUARD_ATTACKER_SIDE, GUARD_V4, PEER, SECOND_FORGED_V4,
};
use dosguard_tests::cli::{Listener, PATIENCE, done, syns_from, words};
use dosguard_tests::daemon::Dosguard;
use dosguard_tests::documented::{DOCUMENT, assert_documented};
use dosguard_tests::held::Held;
use dosguard_tests::holding::HoldingServer;
use dosguard_tests::lab::Lab;
use dosguard_tests::packet::Packet;
use dosguard_tests::transmit::send_frames;
use dosguard_tests::wait::wait_until;

const CONFIG: &str = "\
allow = ['192.0.2.0/24']
[rule.default]
limit = '5/10s'
require_proof = false
ban = '10m'
[rule.drop]
ports = ['tcp/9']
limit = '5/10s'
action = 'drop'
";

/// Bans as many sources as there is room for.
fn fill_bans(lab: &Lab) {
    let paths = lab.paths();
    let mut datapath = Datapath::require(paths).unwrap();
    let first = Ipv4Addr::new(20, 0, 0, 0).to_bits();
    let ban = Ban::by_admin(Scope::All, RuleIndex::DEFAULT, 1, u64::MAX, "");
    for number in 0.. {
        let key = SourceKey::everywhere(to_address(Ipv4Addr::from_bits(first + number).into()));
        if datapath.maps_mut().set_ban(&key, &ban).is_err() {
            assert!(number > 60_000, "full after {number}");
            return;
        }
    }
}

#[test]
fn every_field_is_documented_and_every_documented_field_is_there() {
    let lab = Lab::new().unwrap();
    let dosguard = Dosguard::new(&lab).unwrap();
    let config = dosguard.write_config("j.toml", CONFIG).unwrap();
    let _daemon =
        dosguard.start(words(&format!("run -c {} {GUARD_ATTACKER_SIDE}", config.display()))).unwrap();
    let listener = Listener::start(&dosguard);
    let mut events = Vec::new();
    let mut expect = |kind: &str| {
        let event = listener.next();
        assert_eq!(event["kind"], kind, "{event}");
        events.push(event);
    };
    syns_from(&lab, &dosguard, FORGED_V4, 80, 6);
    expect("ban");
    done(&dosguard, &format!("bans add {FORGED_V4} --for 1h --reason noted"));
    expect("extend");
    let bans = dosguard.json(["bans", "list", "--json"]).unwrap();
    done(&dosguard, &format!("bans del {FORGED_V4}"));
    expect("unban");
    syns_from(&lab, &dosguard, FORGED_V4, 9, 7);
    expect("limited");
    done(&dosguard, "sysctl rule.default.mode=monitor");
    syns_from(&lab, &dosguard, SECOND_FORGED_V4, 80, 6);
    expect("would-ban");
    let noted = dosguard.json(["bans", "list", "--json"]).unwrap();
    assert_eq!(dosguard.status().unwrap()["bans_monitored"], 1);
    let malformed = Packet::eth().ipv4(FORGED_V4, GUARD_V4).tcp(1, 80).syn().doff(4).build();
    send_frames(lab.attacker(), PEER, &[malformed]).unwrap();
    expect("malformed");
    done(&dosguard, "sysctl rule.default.mode=enforce");
    fill_bans(&lab);
    syns_from(&lab, &dosguard, ATTACKER_V4, 80, 6);
    expect("table-full");

    assert_documented("`events --json`", &events);
    assert_documented("`bans list --json`", &[bans, noted].concat());
    assert_documented("`rule list --json`", &dosguard.json(["rule", "list", "--json"]).unwrap());
    let allowed = dosguard.json(["allow", "list", "--json"]).unwrap();
    assert_eq!(allowed[0]["origin"], "file");
    assert_documented("`allow list --json`", &allowed);
    done(&dosguard, "allow add 192.0.2.0/24");
    assert_eq!(dosguard.json(["allow", "list", "--json"]).unwrap()[0]["origin"], "file and hand");
    wait_until("rates are measured", PATIENCE, || Ok(!dosguard.status()?["daemon"]["rates"].is_null()))
        .unwrap();
    done(&dosguard, "sysctl rule.default.limit=1000/1s rule.default.max_connections=50");
    let server = HoldingServer::start(lab.guard(), (GUARD_V4, 8_000), 50).unwrap();
    let _one = Held::open(lab.attacker(), &[ATTACKER_V4.into()], server.address(), 1).unwrap();
    let _own = Held::open(lab.guard(), &[GUARD_V4.into()], server.address(), 30).unwrap();
    wait_until("connections are counted", PATIENCE, || {
        let found = &dosguard.status()?["daemon"]["connections"];
        Ok(found["local"] == 30 && found["established"] == 1)
    })
    .unwrap();
    assert_documented("`status --json`", &[dosguard.status().unwrap()]);
    assert_documented("`stats --json`", &dosguard.json(["stats", "--json"]).unwrap());
    for kind in &events {
        let row = format!("| `{}` |", kind["kind"].as_str().unwrap());
        assert!(DOCUMENT.contains(&row), "no row {row}");
    }
}
