//! Challenges in tests: a lab in which they are possible, frames of handshakes, and what they leave in the counters.

#![expect(clippy::unwrap_used, reason = "a test's helpers fail as the test itself does")]

use std::{
    net::{IpAddr, SocketAddr, TcpStream},
    time::Duration,
};

use dosguard_common::reason::Tally;

use crate::{
    addresses::PEER,
    capture::Taking,
    lab::Lab,
    packet::{Packet, flag},
    siege::open,
};

/// TCP's own header.
const HEADER: usize = 20;

/// Sets what challenges need of the guard, and lets attacker and client take what the program sends until it is dropped.
#[must_use]
pub fn make_possible(lab: &Lab) -> [Taking; 2] {
    set_host(lab, "2", "2");
    take_replies(lab)
}

/// Lets attacker and client take what the program sends until it is dropped.
#[must_use]
pub fn take_replies(lab: &Lab) -> [Taking; 2] {
    [lab.attacker(), lab.client()].map(|namespace| Taking::start(namespace, PEER).unwrap())
}

/// Sets whether the guard takes cookies, and whether it adds a secret to timestamps.
pub fn set_host(lab: &Lab, cookies: &str, timestamps: &str) {
    lab.guard().sysctl("net.ipv4.tcp_syncookies", cookies).unwrap();
    lab.guard().sysctl("net.ipv4.tcp_timestamps", timestamps).unwrap();
}

/// How often something has happened.
#[must_use]
pub fn tallied(lab: &Lab, tally: Tally) -> u64 {
    open(lab).maps().tallied(tally).unwrap()
}

/// Connects from inside the client's or the attacker's namespace.
pub fn connect(
    namespace: &crate::netns::Namespace,
    server: impl Into<SocketAddr>,
    patience: Duration,
) -> std::io::Result<TcpStream> {
    let server = server.into();
    namespace.run_in(|| TcpStream::connect_timeout(&server, patience)).unwrap()
}

/// A packet's headers up to TCP, from one address to another of the same family.
pub fn ip(packet: Packet, from: IpAddr, to: IpAddr) -> Packet {
    if from.is_ipv4() { packet.ipv4(from, to) } else { packet.ipv6(from, to) }
}

/// Where a frame's IP header begins, and where its TCP header does. It has no options or extension headers.
#[must_use]
pub fn offsets(frame: &[u8]) -> Option<(usize, usize)> {
    let half = |at: usize| Some(u16::from_be_bytes(*frame.get(at..)?.first_chunk()?));
    let mut at = 12;
    while let 0x8100 | 0x88a8 = half(at)? {
        at += 4;
    }
    match (half(at)?, frame.get(at + 2 + 9)?, frame.get(at + 2 + 6)?) {
        (0x0800, 6, _) => Some((at + 2, at + 2 + 20)),
        (0x86dd, _, 6) => Some((at + 2, at + 2 + 40)),
        _ => None,
    }
}

/// The TCP header of a frame with what follows it.
#[must_use]
pub fn tcp(frame: &[u8]) -> Option<&[u8]> {
    frame.get(offsets(frame)?.1..).filter(|tcp| tcp.len() >= HEADER)
}

/// Whether a frame is a SYN-ACK to a port.
#[must_use]
pub fn is_syn_ack_to(frame: &[u8], port: u16) -> bool {
    tcp(frame).is_some_and(|tcp| {
        tcp[13] & (flag::SYN | flag::ACK) == flag::SYN | flag::ACK && tcp[2..4] == port.to_be_bytes()
    })
}

/// The sequence number of a frame.
#[must_use]
pub fn sequence(frame: &[u8]) -> u32 {
    u32::from_be_bytes(*tcp(frame).unwrap()[4..].first_chunk().unwrap())
}

/// Where a header has the value of its timestamp, if it has one.
#[must_use]
pub fn timestamp(tcp: &[u8]) -> Option<usize> {
    let end = usize::from(tcp[12] >> 4) * 4;
    let mut at = HEADER;
    while at < end {
        match tcp[at] {
            0 => return None,
            1 => at += 1,
            8 => return Some(at + 2),
            _ => at += usize::from(tcp[at + 1]).max(2),
        }
    }
    None
}

/// A reply without what differs between two that are the same otherwise: the sequence number, the TCP checksum, the time in
/// its timestamp, and the flow label.
#[must_use]
pub fn comparable(frame: &[u8]) -> Vec<u8> {
    let mut bytes = frame.to_vec();
    let (ip, start) = offsets(frame).unwrap();
    if start - ip == 40 {
        bytes[ip + 1] &= 0xf0;
        bytes[ip + 2..ip + 4].fill(0);
    }
    let tcp = &mut bytes[start..];
    tcp[4..8].fill(0);
    tcp[16..18].fill(0);
    if let Some(at) = timestamp(tcp) {
        tcp[at..at + 3].fill(0);
        tcp[at + 3] &= 0x3f;
    }
    bytes
}
