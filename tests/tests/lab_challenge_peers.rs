//! Whoever has a connection is not taken for a newcomer, however long a flood lasts. Needs root.

#![expect(clippy::unwrap_used, reason = "a step that fails, fails the test, in its helpers as well")]

use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

use aya::maps::{HashMap, Map, MapData, loaded_maps};
use dosguard_common::challenge::CLOSED_WITHIN_NS;
use dosguard_common::reason::Tally;
use dosguard_tests::addresses::{GUARD_ATTACKER_SIDE, GUARD_CLIENT_SIDE, GUARD_CLIENT_V4, GUARD_V4};
use dosguard_tests::challenges::{PORT, Wire, connect, ip, make_possible, tallied};
use dosguard_tests::cli::{PATIENCE, done, packets};
use dosguard_tests::daemon::Dosguard;
use dosguard_tests::lab::Lab;
use dosguard_tests::packet::{Frame, Packet};
use dosguard_tests::siege::open;
use dosguard_tests::wait::wait_until;

const MOMENT: Duration = Duration::from_millis(700);
/// How long an answer is waited for that is not to come.
const SILENCE: Duration = Duration::from_millis(200);
const ROUNDS: usize = 20;
const CONFIG: &str = "[rule.web]\nports = ['tcp/8080']\nlimit = '1000/1s'\nflood_limit = '50/1s'\n";

/// A SYN of somebody who is not there.
fn forged(number: u8, to: IpAddr) -> Frame {
    ip(Packet::eth(), Ipv4Addr::new(10, 1, 1, number).into(), to).tcp(2000, PORT).syn().build()
}

/// A SYN like that which a connection has begun with.
fn again(connection: &TcpStream) -> Frame {
    let (from, to) = (connection.local_addr().unwrap(), connection.peer_addr().unwrap());
    ip(Packet::eth(), from.ip(), to.ip()).tcp(from.port(), PORT).syn().build()
}

/// What the kernel program keeps of places as keys, and since and until when segments are looked at there.
type LookedAt = HashMap<MapData, [u8; 20], [u64; 6]>;

/// Has segments looked at for longer than the host remembers a connection that is closed.
fn a_minute_passes() {
    let mut aged = 0;
    for info in loaded_maps().filter_map(Result::ok) {
        if info.name_as_str() != Some("LOOKED_AT") {
            continue;
        }
        let map = MapData::from_id(info.id()).unwrap();
        let mut places = LookedAt::try_from(Map::LruHashMap(map)).unwrap();
        let entries: Vec<_> = places.iter().map(Result::unwrap).collect();
        for (place, [since, until, mask @ ..]) in entries {
            let [a, b, c, d] = mask;
            places.insert(place, [since - CLOSED_WITHIN_NS, until, a, b, c, d], 0).unwrap();
            aged += 1;
        }
    }
    assert!(aged >= 2, "{aged}");
}

#[test]
fn whoever_has_a_connection_is_not_taken_for_a_newcomer_however_long_a_flood_lasts() {
    let lab = Lab::new().unwrap();
    let dosguard = Dosguard::new(&lab).unwrap();
    let address = SocketAddr::from((Ipv4Addr::UNSPECIFIED, PORT));
    let _listener = lab.guard().run_in(|| TcpListener::bind(address)).unwrap().unwrap();
    let _replies = make_possible(&lab);
    // Nobody renews marks meanwhile.
    let file = dosguard.write_config("c.toml", CONFIG).unwrap();
    done(&dosguard, &format!("attach -c {} {GUARD_ATTACKER_SIDE} {GUARD_CLIENT_SIDE}", file.display()));

    let silent = connect(lab.attacker(), (GUARD_V4, PORT), MOMENT).unwrap();
    let wire = Wire::of(&lab);
    let places = [GUARD_V4, GUARD_CLIENT_V4].map(IpAddr::from);
    let flood: Vec<_> = (0..200).map(|number| forged(number, places[usize::from(number % 2)])).collect();
    wire.sender.send(&flood).unwrap();
    wait_until("it is flooded", PATIENCE, || Ok(packets(&dosguard, &["challenged"]) > 100)).unwrap();
    let busy = connect(lab.client(), (GUARD_CLIENT_V4, PORT), MOMENT).unwrap();
    assert_eq!(tallied(&lab, Tally::ChallengeAnswered), 1);
    open(&lab).maps_mut().forget_proofs().unwrap();

    // Right behind one of somebody else, so that the listener was met in this tick, mostly.
    let come = |connection: &TcpStream| {
        let syn = again(connection);
        wire.sender.send(&[forged(0, connection.peer_addr().unwrap().ip()), syn.clone()]).unwrap();
        syn
    };
    let meets_its_connection = |connection: &TcpStream| {
        let before = tallied(&lab, Tally::ChallengeUnsent);
        let syns: Vec<_> = (0..ROUNDS).map(|_| come(connection)).collect();
        let unsent = || tallied(&lab, Tally::ChallengeUnsent) - before;
        wait_until("none is answered", PATIENCE, || Ok(unsent() == ROUNDS as u64)).unwrap();
        assert_eq!(wire.syn_ack(&syns[0], SILENCE), None);
    };
    [&silent, &busy].into_iter().for_each(meets_its_connection);
    a_minute_passes();
    meets_its_connection(&busy);
    // Who has said nothing for as long is not looked for any more: the look would cost as much for each SYN of a flood.
    let is_answered = || Ok(wire.syn_ack(&come(&silent), SILENCE).is_some());
    wait_until("whoever has said nothing is taken for a newcomer", PATIENCE, is_answered).unwrap();
    assert_eq!(tallied(&lab, Tally::ChallengeLeft), 0);
    done(&dosguard, "detach --all");
}
