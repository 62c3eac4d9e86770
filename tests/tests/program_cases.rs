//! Single frames and what becomes of them: the table is the specification of the parser and of the order of the
//! decision. Every case is judged by the real program; its verdict and its counter are looked at.

mod cases {
    pub mod ipv6;
}

use aya::util::KernelVersion;
use dosguard_common::reason::Reason::{
    self, Allowed, Denied, LaterFragment, Malformed, NotIp, NotSyn, NotTcp, Truncated, UnderLimit,
};
use dosguard_tests::packet::{Packet, flag, protocol};
use dosguard_tests::program::{Program, ban_over, on_this_kernel};

const GUARD: &str = "198.51.100.1";
const SOURCE: &str = "198.51.100.66";
const GUARD6: &str = "2001:db8:a::1";
const SOURCE6: &str = "2001:db8:a::66";
const FRIEND: &str = "192.0.2.9";
const FOE: &str = "203.0.113.7";

fn ipv4() -> Packet {
    Packet::eth().ipv4(SOURCE, GUARD)
}

fn ipv6() -> Packet {
    Packet::eth().ipv6(SOURCE6, GUARD6)
}

fn syn() -> Packet {
    ipv4().tcp(40_000, 80).syn()
}

fn tags(count: usize) -> Packet {
    (0..count).fold(Packet::eth(), |packet, _| packet.vlan(0))
}

fn cases() -> Vec<(&'static str, Packet, Reason)> {
    vec![
        // What is counted.
        ("a SYN", syn(), UnderLimit),
        ("a SYN over IPv6", ipv6().tcp(40_000, 80).syn(), UnderLimit),
        ("a SYN with every flag but ACK", ipv4().tcp(1, 80).flags(!flag::ACK), UnderLimit),
        ("a SYN with data (TCP Fast Open)", syn().payload(100), UnderLimit),
        ("a SYN with TCP options", ipv4().tcp(1, 80).options(&[2, 4, 5, 180]).syn(), UnderLimit),
        ("a SYN behind one word of IPv4 options", ipv4().options(&[1; 4]).tcp(1, 80).syn(), UnderLimit),
        (
            "a SYN behind all the IPv4 options there is room for",
            ipv4().options(&[1; 40]).tcp(1, 80).syn(),
            UnderLimit,
        ),
        ("a SYN behind a VLAN tag", Packet::eth().vlan(5).ipv4(SOURCE, GUARD).tcp(1, 80).syn(), UnderLimit),
        (
            "a SYN behind two VLAN tags",
            Packet::eth().tag(0x88a8, 5).vlan(6).ipv4(SOURCE, GUARD).tcp(1, 80).syn(),
            UnderLimit,
        ),
        (
            "a SYN over IPv6 behind a VLAN tag",
            Packet::eth().vlan(5).ipv6(SOURCE6, GUARD6).tcp(1, 80).syn(),
            UnderLimit,
        ),
        ("a SYN padded to the shortest Ethernet frame", syn().padding(6), UnderLimit),
        ("a SYN in a frame of 1,514 bytes", syn().payload(1_460), UnderLimit),
        ("a SYN to port 0", ipv4().tcp(1, 0).syn(), UnderLimit),
        ("a SYN to port 65,535", ipv4().tcp(1, 65_535).syn(), UnderLimit),
        ("a first fragment that shows its flags", syn().payload(8).fragment(0, true), UnderLimit),
        ("a SYN in a packet of more than 65,535 bytes (BIG TCP)", syn().total_length(0), UnderLimit),
        // What passes without being counted as a new connection.
        ("a SYN-ACK", ipv4().tcp(80, 40_000).flags(flag::SYN | flag::ACK), NotSyn),
        ("an ACK", ipv4().tcp(40_000, 80).ack(), NotSyn),
        ("a RST", ipv4().tcp(40_000, 80).rst(), NotSyn),
        ("a FIN over IPv6", ipv6().tcp(40_000, 80).fin(), NotSyn),
        ("no flags at all", ipv4().tcp(40_000, 80).flags(0), NotSyn),
        ("UDP", ipv4().udp(53, 53), NotTcp),
        ("ICMP", ipv4().transport(protocol::ICMP, &[8, 0, 0, 0]), NotTcp),
        ("ICMPv6", ipv6().transport(protocol::ICMPV6, &[135, 0, 0, 0]), NotTcp),
        ("UDP that is cut short", ipv4().transport(protocol::UDP, &[1]), NotTcp),
        ("a later fragment", ipv4().transport(protocol::TCP, &[0; 40]).fragment(3, true), LaterFragment),
        ("a last fragment", ipv4().transport(protocol::TCP, &[0; 40]).fragment(3, false), LaterFragment),
        // What is not understood passes.
        ("ARP", Packet::eth().arp(SOURCE, GUARD), NotIp),
        ("another Ethernet type", Packet::eth().ether_type(0x88cc, &[0; 40]), NotIp),
        (
            "a SYN behind eight tags, of which Linux takes off any number with the VLAN id 0",
            tags(8).ipv4(SOURCE, GUARD).tcp(1, 80).syn(),
            UnderLimit,
        ),
        ("more tags than are followed", tags(9).ipv4(SOURCE, GUARD).tcp(1, 80).syn(), Malformed),
        ("IPv6 behind the Ethernet type of IPv4", syn().patch(14, &[0x65]), NotIp),
        ("IPv4 behind the Ethernet type of IPv6", ipv6().tcp(1, 80).syn().patch(14, &[0x45]), NotIp),
        ("an Ethernet header alone", syn().truncate(14), Truncated),
        ("IPv4 up to its source address but for a byte", syn().truncate(14 + 15), Truncated),
        (
            "IPv6 up to its source address but for a byte",
            ipv6().tcp(1, 80).syn().truncate(14 + 23),
            Truncated,
        ),
        // What hides its flags is dropped.
        ("a data offset of 4 words", ipv4().tcp(1, 80).syn().doff(4), Malformed),
        ("a data offset of 0", ipv4().tcp(1, 80).syn().doff(0), Malformed),
        ("an IPv4 header of 4 words", syn().ihl(4), Malformed),
        ("a TCP header cut short", syn().truncate(14 + 20 + 19), Malformed),
        ("a TCP header over IPv6 cut short", ipv6().tcp(1, 80).syn().truncate(14 + 40 + 13), Malformed),
        (
            "IPv4 options that leave no room for TCP",
            ipv4().options(&[1; 40]).tcp(1, 80).syn().truncate(14 + 60 + 10),
            Malformed,
        ),
        ("a TCP header that is padding by the IP length", syn().total_length(39), Malformed),
        ("an IP length below its own header", syn().total_length(19), Malformed),
        (
            "a tiny first fragment (RFC 1858)",
            ipv4().transport(protocol::TCP, &[0; 8]).fragment(0, true),
            Malformed,
        ),
        (
            "a fragment that overlays the flags (RFC 1858)",
            ipv4().transport(protocol::TCP, &[0; 40]).fragment(1, false),
            Malformed,
        ),
        (
            "an authentication header over IPv4, which needs a key to get through",
            ipv4().transport(protocol::AUTHENTICATION, &[protocol::TCP; 60]),
            NotTcp,
        ),
        // The allow-list comes first, then the deny-list.
        ("a SYN from an allowed source", Packet::eth().ipv4(FRIEND, GUARD).tcp(1, 80).syn(), Allowed),
        (
            "a malformed segment from an allowed source",
            Packet::eth().ipv4(FRIEND, GUARD).tcp(1, 80).syn().doff(4),
            Allowed,
        ),
        (
            "a SYN from an allowed IPv6 source",
            Packet::eth().ipv6("2001:db8:f::1", GUARD6).tcp(1, 80).syn(),
            Allowed,
        ),
        (
            "an allowed IPv4 address in IPv6 notation",
            Packet::eth().ipv6("::ffff:192.0.2.9", GUARD6).tcp(1, 80).syn(),
            UnderLimit,
        ),
        ("a SYN from a denied source", Packet::eth().ipv4(FOE, GUARD).tcp(1, 80).syn(), Denied),
        ("UDP from a denied source", Packet::eth().ipv4(FOE, GUARD).udp(1, 80), Denied),
        (
            "a malformed segment from a denied source",
            Packet::eth().ipv4(FOE, GUARD).tcp(1, 80).doff(4),
            Denied,
        ),
        (
            "an allowed source in a denied network",
            Packet::eth().ipv4("203.0.113.99", GUARD).udp(1, 2),
            Allowed,
        ),
    ]
}

#[test]
fn every_frame_gets_its_verdict_and_its_counter() {
    let mut program = Program::new(ban_over(100)).unwrap();
    program.allow("192.0.2.0/24").unwrap();
    program.allow("2001:db8:f::/48").unwrap();
    program.allow("203.0.113.99").unwrap();
    program.allow("2001:db8:dead:f::/64").unwrap();
    program.deny("203.0.113.0/24").unwrap();
    program.deny("2001:db8:dead::/48").unwrap();
    let mut wrong = Vec::new();
    for (name, packet, expected) in cases().into_iter().chain(cases::ipv6::cases()) {
        let frame = packet.build();
        match program.judge(&frame) {
            Ok(reason) if reason == expected => {}
            Ok(reason) => wrong.push(format!(
                "{name}: {} ({}) instead of {} ({})\n{frame:?}",
                reason.verdict().name(),
                reason.name(),
                expected.verdict().name(),
                expected.name()
            )),
            Err(error) => wrong.push(format!("{name}: {error:#}")),
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n\n"));
}

#[test]
fn no_length_of_a_frame_gets_it_past_the_program_unjudged() {
    let mut program = Program::new(ban_over(500_000)).unwrap();
    for packet in [syn(), ipv6().tcp(1, 80).syn(), Packet::eth().vlan(5).ipv4(SOURCE, GUARD).tcp(1, 80).syn()]
    {
        let whole = packet.clone().build().len();
        for length in 14..whole {
            let frame = packet.clone().truncate(length).build();
            let reason = program.judge(&frame).unwrap();
            assert!(matches!(reason, Truncated | Malformed), "{length} bytes: {}\n{frame:?}", reason.name());
        }
        assert_eq!(program.judge(&packet.build()).unwrap(), UnderLimit);
    }
}

#[test]
fn the_verifier_has_little_to_do() {
    // So that growth is seen: the kernel gives up at a million. Linux 6.1 looks at twice as many.
    let is_recent = KernelVersion::current().is_ok_and(|version| version >= KernelVersion::new(6, 12, 0));
    let most = if is_recent { 100_000 } else { 250_000 };
    let Some(instructions) = Program::new(ban_over(1)).unwrap().verified_instructions().unwrap() else {
        return on_this_kernel("the program loads; before Linux 5.16 nobody tells how much was looked at");
    };
    println!("{instructions} looked at");
    assert!(instructions < most, "{instructions} instructions were looked at");
}
