//! Challenges in tests: a lab in which they are possible, frames of handshakes, and what they leave in the counters.

#![expect(clippy::unwrap_used, reason = "a test's helpers fail as the test itself does")]

use std::{
    net::{IpAddr, SocketAddr, TcpStream},
    time::Duration,
};

use dosguard_common::reason::Tally;

use crate::{
    addresses::{FORGED_V4, FORGED_V6, GUARD_V4, GUARD_V6, PEER},
    attached::Attached,
    capture::Capture,
    cli::PATIENCE,
    lab::Lab,
    packet::{Frame, Packet, flag},
    siege::open,
    transmit::Sender,
};

/// The port that is challenged.
pub const PORT: u16 = 8080;

/// TCP's own header.
const HEADER: usize = 20;

/// Sets what challenges need of the guard, and lets attacker and client take what the program sends until it is dropped.
#[must_use]
pub fn make_possible(lab: &Lab) -> [Attached; 2] {
    set_host(lab, "2", "2");
    take_replies(lab)
}

/// Lets attacker and client take what the program sends until it is dropped.
#[must_use]
pub fn take_replies(lab: &Lab) -> [Attached; 2] {
    [lab.attacker(), lab.client()].map(|namespace| Attached::passing(namespace, PEER).unwrap())
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

/// A link on which frames are sent, and replies are seen.
pub struct Wire {
    /// Sends frames.
    pub sender: Sender,
    /// What comes back.
    pub capture: Capture,
}

impl Wire {
    /// That of the attacker.
    pub fn of(lab: &Lab) -> Self {
        let sender = Sender::new(lab.attacker(), PEER).unwrap();
        Self { sender, capture: Capture::start(lab.attacker(), PEER).unwrap() }
    }

    /// Sends a frame.
    pub fn send(&self, frame: &Frame) {
        self.sender.send(std::slice::from_ref(frame)).unwrap();
    }

    /// The SYN-ACK to a SYN.
    pub fn reply(&self, syn: &Frame) -> Vec<u8> {
        self.send(syn);
        self.syn_ack(syn, PATIENCE).unwrap_or_else(|| panic!("no reply to {syn:?}"))
    }

    /// The SYN-ACK to a SYN that was sent, if one comes.
    pub fn syn_ack(&self, syn: &Frame, patience: Duration) -> Option<Vec<u8>> {
        let port = u16::from_be_bytes(*tcp(syn).unwrap().first_chunk().unwrap());
        self.capture.next(patience, |frame| is_syn_ack_to(frame, port)).unwrap()
    }
}

/// The addresses of a source and of the guard.
#[must_use]
pub fn pair(is_v4: bool) -> (IpAddr, IpAddr) {
    if is_v4 { (FORGED_V4.into(), GUARD_V4.into()) } else { (FORGED_V6.into(), GUARD_V6.into()) }
}

/// The answer to a SYN-ACK, from the port that it goes to.
pub fn answer(is_v4: bool, port: u16, reply: &[u8]) -> Packet {
    let (from, to) = pair(is_v4);
    let segment = ip(Packet::eth(), from, to).tcp(port, PORT).sequence(2);
    let header = tcp(reply).unwrap();
    let segment = segment.acknowledge(sequence(reply).wrapping_add(1));
    match timestamp(header) {
        Some(at) => {
            let mut options = vec![1, 1, 8, 10];
            options.extend(&header[at + 4..at + 8]);
            options.extend(&header[at..at + 4]);
            segment.options(&options)
        }
        None => segment,
    }
}
