//! Whoever has a connection is not taken for a newcomer, however long a flood lasts. Needs root.

#![expect(clippy::unwrap_used, reason = "a step that fails, fails the test, in its helpers as well")]

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, Shutdown, SocketAddrV6, TcpListener, TcpStream};
use std::os::fd::AsRawFd as _;
use std::time::Duration;

use aya::maps::{Array, Map, MapData};
use dosguard::config::cidr::to_address;
use dosguard::datapath::Peers;
use dosguard::system::boot_now_ns;
use dosguard_common::abi;
use dosguard_common::mark::PeersMarked;
use dosguard_common::reason::Tally;
use dosguard_tests::addresses::{
    GUARD_ATTACKER_SIDE, GUARD_CLIENT_SIDE, GUARD_CLIENT_V4, GUARD_CLIENT_V6, GUARD_V4, GUARD_V6, PEER,
    SECOND_FORGED_V4,
};
use dosguard_tests::attached::Attached;
use dosguard_tests::challenges::{PORT, Wire, connect, ip, make_possible, tallied};
use dosguard_tests::cli::{PATIENCE, done, packets};
use dosguard_tests::daemon::Dosguard;
use dosguard_tests::lab::Lab;
use dosguard_tests::looked_at::LookedAt;
use dosguard_tests::packet::{Frame, Packet};
use dosguard_tests::siege::open;
use dosguard_tests::wait::wait_until;
use nix::sys::socket::sockopt::ReusePort;
use nix::sys::socket::{
    self, AddressFamily, Backlog, SockFlag, SockType, SockaddrIn6, bind, setsockopt, socket,
};

const MOMENT: Duration = Duration::from_millis(700);
/// How long an answer is waited for that is not to come.
const SILENCE: Duration = Duration::from_millis(200);
const ROUNDS: u64 = 20;
const CONFIG: &str = "[rule.web]\nports = ['tcp/8000-8999']\nlimit = '1000/1s'\nflood_limit = '50/1s'\n";
/// Nobody listens there, and what is kept of it is kept where that of `PORT` is.
const CLOSED: u16 = PORT + 64;

/// An instance with a flood, which nobody renews marks of.
struct Flooded<'a> {
    lab: &'a Lab,
    dosguard: Dosguard<'a>,
    places: [IpAddr; 2],
    listener: TcpListener,
    wire: Wire,
    looked_at: LookedAt,
    /// What the host has taken, and not closed.
    taken: Vec<TcpStream>,
    _replies: [Attached; 2],
}

impl<'a> Flooded<'a> {
    fn attach(lab: &'a Lab, places: [IpAddr; 2], shares_port: bool) -> Self {
        let dosguard = Dosguard::new(lab).unwrap();
        let listener = lab.guard().run_in(|| listen(shares_port)).unwrap();
        let looked_at = LookedAt::from_now();
        let replies = make_possible(lab);
        let file = dosguard.write_config("c.toml", CONFIG).unwrap();
        done(&dosguard, &format!("attach -c {} {GUARD_ATTACKER_SIDE} {GUARD_CLIENT_SIDE}", file.display()));
        Self {
            lab,
            dosguard,
            places,
            listener,
            wire: Wire::of(lab),
            looked_at,
            taken: Vec::new(),
            _replies: replies,
        }
    }

    fn begin(&mut self) {
        // What was answered before is nobody's business.
        self.wire = Wire::of(self.lab);
        let flood: Vec<_> =
            (0..200).map(|number| forged(number, self.places[usize::from(number % 2)])).collect();
        self.wire.sender.send(&flood).unwrap();
        let challenged = || Ok(packets(&self.dosguard, &["challenged"]) > 100);
        wait_until("it is flooded", PATIENCE, challenged).unwrap();
    }

    /// Marks who has a connection, as the daemon does, once segments are looked at for a moment. From then on only those are looked for.
    fn mark(&self) {
        let before = || Ok(self.looked_at.shortest_ns()? > 300_000_000);
        wait_until("segments are looked at", PATIENCE, before).unwrap();
        let paths = self.lab.paths().clone();
        let mark = || Peers::load(&paths)?.mark(open(self.lab).maps());
        self.lab.guard().run_in(mark).unwrap().unwrap();
        assert!(self.looked_at.are_peers_marked(open(self.lab).maps()).unwrap());
    }

    /// Has nobody marked, as if that were of long ago.
    fn forget_marks(&self) {
        let map = MapData::from_pin(self.lab.paths().map(abi::MARKS.name)).unwrap();
        let mut marks: Array<MapData, [u8; 64]> = Map::Array(map).try_into().unwrap();
        (0..marks.len()).for_each(|line| marks.set(line, [0; 64], 0).unwrap());
    }

    /// Sends a SYN right behind one of somebody else, so that the listener was met in this tick, mostly.
    fn come(&self, syn: &Frame, to: IpAddr) {
        self.wire.sender.send(&[forged(0, to), syn.clone()]).unwrap();
    }

    /// Asserts that none of some SYNs is answered by the program: each is counted under one of these.
    fn is_counted(&self, syn: &Frame, to: IpAddr, times: u64, counted: &[Tally]) {
        let count = || counted.iter().map(|tally| tallied(self.lab, *tally)).sum::<u64>();
        let expected = count() + times;
        (0..times).for_each(|_| self.come(syn, to));
        wait_until("none is answered", PATIENCE, || Ok(count() >= expected)).unwrap();
    }

    /// Asserts that none is answered by the host, either.
    fn is_not_answered(&self, syn: &Frame, to: IpAddr, times: u64, counted: &[Tally]) {
        self.is_counted(syn, to, times, counted);
        assert_eq!(self.wire.syn_ack(syn, SILENCE), None);
    }

    /// The same of one that the host may have, too.
    fn is_not_answered_by_the_program(&self, syn: &Frame, to: IpAddr) {
        self.is_counted(syn, to, 1, &[Tally::ChallengeUnsent, Tally::ChallengeLeft]);
    }

    fn is_still_found(&self, connection: &TcpStream) {
        let to = connection.peer_addr().unwrap().ip();
        self.is_not_answered(&again(connection), to, ROUNDS, &[Tally::ChallengeUnsent]);
    }

    fn is_taken_for_a_newcomer(&self, connection: &TcpStream) {
        let (syn, to) = (again(connection), connection.peer_addr().unwrap().ip());
        let is_answered = || {
            self.come(&syn, to);
            Ok(self.wire.syn_ack(&syn, SILENCE).is_some())
        };
        wait_until("whoever has no mark is taken for a newcomer", PATIENCE, is_answered).unwrap();
    }

    /// Has the host close a connection, which it remembers for a minute.
    fn close(&mut self, connection: &TcpStream) {
        let port = connection.local_addr().unwrap().port();
        loop {
            let (stream, peer) = self.listener.accept().unwrap();
            if peer.port() == port {
                break;
            }
            self.taken.push(stream);
        }
        let port = format!("dport = :{port}");
        let remembered =
            || Ok(!self.lab.guard().run("ss", ["-Htn", "state", "fin-wait-2", &port])?.is_empty());
        wait_until("the host has closed it", PATIENCE, remembered).unwrap();
    }

    fn may_be_proven(&self, connection: &TcpStream) -> bool {
        let (instance, address) = (open(self.lab), to_address(connection.local_addr().unwrap().ip()));
        let source = instance.maps().config().unwrap().mask().source(address);
        instance.maps().may_be_proven(&source).unwrap()
    }
}

fn listen(shares_port: bool) -> TcpListener {
    let listener = socket(AddressFamily::Inet6, SockType::Stream, SockFlag::empty(), None).unwrap();
    setsockopt(&listener, ReusePort, &shares_port).unwrap();
    let address = SocketAddrV6::new(Ipv6Addr::UNSPECIFIED, PORT, 0, 0);
    bind(listener.as_raw_fd(), &SockaddrIn6::from(address)).unwrap();
    socket::listen(&listener, Backlog::new(128).unwrap()).unwrap();
    listener.into()
}

/// A connection of the attacker's from an address that no other one has.
fn from_another_address(lab: &Lab) -> TcpStream {
    let (attacker, guard) = (lab.attacker(), GUARD_V4.to_string());
    let address = SECOND_FORGED_V4.to_string();
    attacker.run("ip", ["address", "replace", &format!("{address}/24"), "dev", PEER]).unwrap();
    attacker.run("ip", ["route", "add", &guard, "dev", PEER, "src", &address]).unwrap();
    let connection = connect(attacker, (GUARD_V4, PORT), MOMENT).unwrap();
    attacker.run("ip", ["route", "del", &guard]).unwrap();
    connection
}

/// An address of somebody who is not there.
fn nobody(number: u8, to: IpAddr) -> IpAddr {
    match to {
        IpAddr::V4(_) => Ipv4Addr::new(10, 1, 1, number).into(),
        IpAddr::V6(_) => Ipv6Addr::new(0x2001, 0xdb8, 0xff, number.into(), 0, 0, 0, 1).into(),
    }
}

fn forged(number: u8, to: IpAddr) -> Frame {
    ip(Packet::eth(), nobody(number, to), to).tcp(2000, PORT).syn().build()
}

/// A SYN like that which a connection has begun with.
fn again(connection: &TcpStream) -> Frame {
    let (from, to) = (connection.local_addr().unwrap(), connection.peer_addr().unwrap());
    ip(Packet::eth(), from.ip(), to.ip()).tcp(from.port(), PORT).syn().build()
}

fn whoever_has_a_connection_is_not_taken_for_a_newcomer(places: [IpAddr; 2]) {
    let lab = Lab::new().unwrap();
    let mut flooded = Flooded::attach(&lab, places, false);
    let silent = connect(lab.attacker(), (places[0], PORT), MOMENT).unwrap();
    flooded.begin();
    let busy = connect(lab.client(), (places[1], PORT), MOMENT).unwrap();
    assert_eq!(tallied(&lab, Tally::ChallengeAnswered), 1);
    // From here on it is only marked.
    open(&lab).maps_mut().forget_proofs().unwrap();
    // Nobody has marked the other one yet: the program looks for everybody.
    assert_eq!((flooded.may_be_proven(&silent), flooded.may_be_proven(&busy)), (false, true));
    flooded.is_still_found(&silent);
    flooded.is_still_found(&busy);
    let longest = boot_now_ns().unwrap() + 60_000_000_000;
    let changed = flooded.looked_at.change(|since, until| {
        assert!(until <= longest, "a break is noticed after a minute");
        (since, until)
    });
    assert!(changed.unwrap() >= 2);
    flooded.mark();
    assert!(flooded.may_be_proven(&silent));
    flooded.is_still_found(&silent);
    flooded.is_still_found(&busy);
    let closed = ip(Packet::eth(), nobody(255, places[0]), places[0]).tcp(2001, CLOSED).syn().build();
    flooded.is_not_answered(&closed, places[0], ROUNDS, &[Tally::ChallengeUnsent]);
    // For others the program does not look any more: that would cost as much for each SYN of a flood.
    flooded.forget_marks();
    flooded.is_taken_for_a_newcomer(&silent);
    // What it was sent it has refused, by a segment of its connection.
    open(&lab).maps_mut().forget_proofs().unwrap();
    flooded.forget_marks();
    flooded.mark();
    flooded.is_still_found(&silent);
    // After a break nobody knows who has made a connection meanwhile.
    flooded.looked_at.change(|since, _| (since, 0)).unwrap();
    flooded.forget_marks();
    flooded.is_still_found(&silent);
    // Nor what came while it was not attached.
    let marked = || open(&lab).maps().peers_marked().unwrap();
    assert_ne!(marked(), PeersMarked::NEVER);
    done(&flooded.dosguard, &format!("detach {GUARD_CLIENT_SIDE}"));
    done(&flooded.dosguard, &format!("attach {GUARD_CLIENT_SIDE}"));
    assert_eq!(marked(), PeersMarked::NEVER);
    done(&flooded.dosguard, "detach --all");
}

#[test]
fn whoever_has_a_connection_is_not_taken_for_a_newcomer_over_ipv4() {
    whoever_has_a_connection_is_not_taken_for_a_newcomer([GUARD_V4.into(), GUARD_CLIENT_V4.into()]);
}

#[test]
fn whoever_has_a_connection_is_not_taken_for_a_newcomer_over_ipv6() {
    whoever_has_a_connection_is_not_taken_for_a_newcomer([GUARD_V6.into(), GUARD_CLIENT_V6.into()]);
}

#[test]
fn whoever_had_a_connection_that_the_host_remembers_is_no_newcomer() {
    let lab = Lab::new().unwrap();
    let mut flooded = Flooded::attach(&lab, [GUARD_V4.into(), GUARD_CLIENT_V4.into()], false);
    let silent = from_another_address(&lab);
    let closing = connect(lab.client(), (GUARD_CLIENT_V4, PORT), MOMENT).unwrap();
    let closed = connect(lab.attacker(), (GUARD_V4, PORT), MOMENT).unwrap();
    flooded.close(&closing);
    flooded.close(&closed);
    let syns = [(again(&closing), GUARD_CLIENT_V4.into()), (again(&closed), GUARD_V4.into())];
    let peers = [silent, closing, closed];
    peers[2].shutdown(Shutdown::Write).unwrap();
    let remembered = || Ok(!lab.guard().run("ss", ["-Htn", "state", "time-wait"])?.is_empty());
    wait_until("both ends have closed it", PATIENCE, remembered).unwrap();
    flooded.begin();
    assert!(!peers.iter().any(|peer| flooded.may_be_proven(peer)));
    flooded.mark();
    assert!(peers.iter().all(|peer| flooded.may_be_proven(peer)));
    // The host may have the first, and may then forget the connection.
    for (syn, to) in syns {
        flooded.is_not_answered_by_the_program(&syn, to);
    }
    assert_eq!(tallied(&lab, Tally::SourceProven), 0, "a mark is no proof");
    done(&flooded.dosguard, "detach --all");
}

#[test]
fn the_daemon_marks_whoever_has_a_connection_when_a_flood_begins() {
    let lab = Lab::new().unwrap();
    let mut flooded = Flooded::attach(&lab, [GUARD_V4.into(); 2], false);
    let daemon = flooded.dosguard.start(["run"]).unwrap();
    let silent = connect(lab.attacker(), (GUARD_V4, PORT), MOMENT).unwrap();
    let marked = || open(&lab).maps().peers_marked().unwrap();
    // The thread that would mark it counts it each tenth of a second.
    done(&flooded.dosguard, "sysctl rule.web.max_connections=1");
    let mut looks = BTreeSet::new();
    let looked = || {
        looks.extend(flooded.dosguard.status()?["daemon"]["connections"]["at"].as_str().map(str::to_owned));
        Ok(looks.len() > 3)
    };
    wait_until("connections are counted", PATIENCE, looked).unwrap();
    assert_eq!((marked(), flooded.may_be_proven(&silent)), (PeersMarked::NEVER, false), "in peace nobody is");
    flooded.begin();
    let are_marked = || flooded.looked_at.are_peers_marked(open(&lab).maps());
    wait_until("all are marked", PATIENCE, are_marked).unwrap();
    assert!(flooded.may_be_proven(&silent));
    let first = marked();
    let again = || {
        flooded.wire.sender.send(&[forged(0, GUARD_V4.into())])?;
        Ok(marked() != first)
    };
    wait_until("they are marked again while something is challenged", PATIENCE, again).unwrap();
    flooded.is_still_found(&silent);
    daemon.terminate().unwrap();
    // Only who is marked is looked for.
    flooded.forget_marks();
    flooded.is_taken_for_a_newcomer(&silent);
    done(&flooded.dosguard, "detach --all");
}

#[test]
fn of_listeners_that_share_a_port_none_stands_for_another() {
    let lab = Lab::new().unwrap();
    let places = [GUARD_V4.into(), GUARD_CLIENT_V4.into()];
    let mut flooded = Flooded::attach(&lab, places, true);
    let silent = connect(lab.attacker(), (places[0], PORT), MOMENT).unwrap();
    flooded.begin();
    flooded.is_still_found(&silent);
    assert_eq!(
        flooded.looked_at.change(|since, until| (since, until)).unwrap(),
        0,
        "each SYN looks for its own"
    );
    done(&flooded.dosguard, "detach --all");
}
