//! IPv6 extension headers (RFC 8200, section 4), and sources that only look like others.

use dosguard_common::reason::Reason::{self, Allowed, Denied, LaterFragment, Malformed, NotTcp, UnderLimit};
use dosguard_tests::packet::Packet;
use dosguard_tests::packet::protocol::{
    AUTHENTICATION, DESTINATION, ENCRYPTED, FRAGMENT, HOP_BY_HOP, ICMPV6, MOBILITY, NO_NEXT, ROUTING, TCP,
    UDP,
};

const GUARD: &str = "2001:db8:a::1";
const SOURCE: &str = "2001:db8:a::66";

/// Where the headers begin that follow the IPv6 header.
const FIRST: usize = 14 + 40;
/// A protocol for experiments (RFC 3692), which is no extension header.
const UNKNOWN: u8 = 253;

fn ipv6() -> Packet {
    Packet::eth().ipv6(SOURCE, GUARD)
}

/// Behind its first byte, a header of eight bytes: a length of 0, and padding options.
const SHORTEST: [u8; 7] = [0, 1, 4, 0, 0, 0, 0];

fn behind(kinds: &[u8]) -> Packet {
    kinds.iter().fold(ipv6(), |packet, kind| match *kind {
        FRAGMENT => packet.fragment(0, false),
        kind => packet.extension(kind, &SHORTEST),
    })
}

fn syn_behind(kinds: &[u8]) -> Packet {
    behind(kinds).tcp(40_000, 80).syn()
}

/// A header that claims `units` beyond its first eight bytes, and has `bytes` in all.
fn header(packet: Packet, kind: u8, units: u8, bytes: usize) -> Packet {
    let mut body = vec![0; bytes - 1];
    body[0] = units;
    packet.extension(kind, &body)
}

pub fn cases() -> Vec<(&'static str, Packet, Reason)> {
    [extension_headers(), fragments(), hidden(), who()].concat()
}

fn extension_headers() -> Vec<(&'static str, Packet, Reason)> {
    let long = |kind, unit: usize| header(ipv6(), kind, 9, 8 + 9 * unit).tcp(1, 80).syn();
    let jumbo = header(header(ipv6(), HOP_BY_HOP, 255, 8 + 255 * 8), DESTINATION, 100, 8 + 100 * 8);
    vec![
        ("a SYN behind hop-by-hop options", syn_behind(&[HOP_BY_HOP]), UnderLimit),
        ("a SYN behind a routing header", syn_behind(&[ROUTING]), UnderLimit),
        ("a SYN behind destination options", syn_behind(&[DESTINATION]), UnderLimit),
        ("a SYN behind a mobility header", syn_behind(&[MOBILITY]), UnderLimit),
        ("a SYN behind an authentication header", syn_behind(&[AUTHENTICATION]), UnderLimit),
        ("a SYN behind an atomic fragment header (RFC 6946)", syn_behind(&[FRAGMENT]), UnderLimit),
        ("a SYN behind long hop-by-hop options, in units of 8 bytes", long(HOP_BY_HOP, 8), UnderLimit),
        (
            "a SYN behind a long authentication header, in units of 4 bytes",
            long(AUTHENTICATION, 4),
            UnderLimit,
        ),
        (
            "a SYN behind all of them, in the order of RFC 8200",
            syn_behind(&[HOP_BY_HOP, DESTINATION, ROUTING, FRAGMENT, AUTHENTICATION, DESTINATION, MOBILITY]),
            UnderLimit,
        ),
        (
            "a SYN behind eight headers in an odd order",
            syn_behind(&[
                DESTINATION,
                AUTHENTICATION,
                HOP_BY_HOP,
                MOBILITY,
                FRAGMENT,
                ROUTING,
                HOP_BY_HOP,
                DESTINATION,
            ]),
            UnderLimit,
        ),
        ("a SYN behind twelve headers", syn_behind(&[DESTINATION; 12]), UnderLimit),
        ("a SYN behind thirteen headers, which hide it", syn_behind(&[DESTINATION; 13]), Malformed),
        ("UDP behind twelve headers", behind(&[ROUTING; 12]).udp(1, 2), NotTcp),
        ("UDP behind thirteen headers, which could be anything", behind(&[ROUTING; 13]).udp(1, 2), Malformed),
        ("UDP behind hop-by-hop options", behind(&[HOP_BY_HOP]).udp(53, 53), NotTcp),
        (
            "ICMPv6 behind hop-by-hop options (MLD)",
            behind(&[HOP_BY_HOP]).transport(ICMPV6, &[143; 8]),
            NotTcp,
        ),
        ("nothing behind destination options", behind(&[DESTINATION]), NotTcp),
        ("no next header, and bytes all the same", ipv6().transport(NO_NEXT, &[0; 40]), NotTcp),
        ("an encrypted packet", ipv6().transport(ENCRYPTED, &[0; 40]), NotTcp),
        ("a SYN behind a header of an unknown kind", syn_behind(&[UNKNOWN]), NotTcp),
        (
            "a SYN behind VLAN tags and three headers",
            Packet::eth()
                .tag(0x88a8, 5)
                .vlan(6)
                .ipv6(SOURCE, GUARD)
                .extension(HOP_BY_HOP, &SHORTEST)
                .extension(ROUTING, &SHORTEST)
                .extension(DESTINATION, &SHORTEST)
                .tcp(1, 80)
                .syn(),
            UnderLimit,
        ),
        (
            "a SYN behind three VLAN tags",
            Packet::eth().vlan(1).vlan(2).vlan(3).ipv6(SOURCE, GUARD).tcp(1, 80).syn(),
            UnderLimit,
        ),
        ("a SYN behind 2,856 bytes of headers, in a jumbo frame", jumbo.tcp(1, 80).syn(), UnderLimit),
        (
            "a SYN in a packet of more than 65,535 bytes (BIG TCP)",
            syn_behind(&[]).payload_length(0),
            UnderLimit,
        ),
    ]
}

fn fragments() -> Vec<(&'static str, Packet, Reason)> {
    vec![
        (
            "a first fragment that shows its flags",
            ipv6().fragment(0, true).tcp(1, 80).syn().payload(8),
            UnderLimit,
        ),
        ("a later fragment", ipv6().fragment(3, true).transport(TCP, &[0; 40]), LaterFragment),
        ("a last fragment", ipv6().fragment(3, false).transport(TCP, &[0; 40]), LaterFragment),
        (
            "a later fragment of another protocol",
            ipv6().fragment(3, true).transport(UDP, &[0; 40]),
            LaterFragment,
        ),
        (
            "a later fragment that begins with what would be more headers",
            ipv6().fragment(1, true).extension(DESTINATION, &SHORTEST).tcp(1, 80).syn(),
            LaterFragment,
        ),
        (
            "a later fragment behind a first one",
            ipv6().fragment(0, true).fragment(1, false).tcp(1, 80).syn(),
            LaterFragment,
        ),
        ("a tiny first fragment", ipv6().fragment(0, true).transport(TCP, &[0; 8]), Malformed),
        (
            "a first fragment that ends between two headers",
            ipv6().fragment(0, true).extension(DESTINATION, &SHORTEST).transport(DESTINATION, &[]),
            Malformed,
        ),
    ]
}

/// What hides what it carries is dropped.
fn hidden() -> Vec<(&'static str, Packet, Reason)> {
    let forged = [UDP, 0, 0, 0, 0, 0, 0, 0];
    vec![
        (
            "extension headers cut short by the frame",
            syn_behind(&[DESTINATION, ROUTING]).truncate(FIRST + 15),
            Malformed,
        ),
        (
            "a header that claims to go on beyond the frame",
            header(ipv6(), ROUTING, 20, 8).tcp(1, 80).syn(),
            Malformed,
        ),
        ("a header that claims to go on, with nothing behind", header(ipv6(), ROUTING, 20, 8), Malformed),
        ("a fragment header cut short", syn_behind(&[FRAGMENT]).truncate(FIRST + 7), Malformed),
        (
            "a TCP header cut short behind a header",
            syn_behind(&[ROUTING]).truncate(FIRST + 8 + 19),
            Malformed,
        ),
        ("a data offset of 4 words behind a header", syn_behind(&[ROUTING]).doff(4), Malformed),
        (
            "a TCP header that is padding by the IPv6 length",
            syn_behind(&[ROUTING]).payload_length(8 + 19),
            Malformed,
        ),
        (
            "extension headers that are padding by the IPv6 length",
            syn_behind(&[ROUTING]).payload_length(4),
            Malformed,
        ),
        (
            "a first fragment whose next header is padding that calls itself UDP's",
            ipv6().fragment(0, true).transport(DESTINATION, &forged).payload_length(8),
            Malformed,
        ),
        (
            "a fragment header that is padding, and calls itself a later one",
            ipv6().extension(ROUTING, &SHORTEST).fragment(3, true).transport(TCP, &[0; 40]).payload_length(8),
            Malformed,
        ),
    ]
}

/// Who it is from decides first.
fn who() -> Vec<(&'static str, Packet, Reason)> {
    let from = |source: &str| Packet::eth().ipv6(source, GUARD);
    vec![
        ("a SYN from a denied source", from("2001:db8:dead::1").tcp(1, 80).syn(), Denied),
        ("any packet from a denied source", from("2001:db8:dead::1").udp(1, 2), Denied),
        (
            "a later fragment from a denied source",
            from("2001:db8:dead::1").fragment(3, true).tcp(1, 2),
            Denied,
        ),
        (
            "a malformed packet from a denied source",
            from("2001:db8:dead::1").tcp(1, 80).syn().doff(4),
            Denied,
        ),
        ("an allowed source in a denied network", from("2001:db8:dead:f::1").tcp(1, 80).syn(), Allowed),
        (
            "thirteen headers from an allowed source",
            [DESTINATION; 13]
                .iter()
                .fold(from("2001:db8:f::1"), |packet, kind| packet.extension(*kind, &SHORTEST))
                .tcp(1, 80)
                .syn(),
            Allowed,
        ),
        ("a denied IPv4 address in IPv6 notation", from("::ffff:203.0.113.7").tcp(1, 80).syn(), UnderLimit),
        ("the address of nobody", from("::").tcp(1, 80).syn(), UnderLimit),
    ]
}
