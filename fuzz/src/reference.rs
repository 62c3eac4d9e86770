//! A parser of frames that shares nothing with dosguard's: slow, and written from what the RFCs say.

/// What is in a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Seen {
    NotIp,
    /// Behind more than eight tags.
    Hidden,
    Truncated,
    /// An IP packet: its source as 16 bytes, and what it carries.
    Packet([u8; 16], Carries),
}

/// What an IP packet carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Carries {
    Syn(u16),
    Segment,
    NotTcp,
    LaterFragment,
    Malformed,
}

/// No header begins beyond this byte of a frame.
const REACH: usize = 16_383;

/// Looks into a frame.
pub fn look(frame: &[u8]) -> Seen {
    let Some(mut rest) = frame.get(12..).filter(|rest| rest.len() >= 2) else { return Seen::Truncated };
    // IEEE 802.1Q: a tag has four bytes, and the type of what follows stands behind it.
    for _ in 0..8 {
        if matches!(rest, [0x81, 0x00, ..] | [0x88, 0xa8, ..]) {
            match rest.get(4..) {
                Some(behind) if behind.len() >= 2 => rest = behind,
                _ => return Seen::Truncated,
            }
        }
    }
    match *rest {
        [0x81, 0x00, ..] | [0x88, 0xa8, ..] => Seen::Hidden,
        [0x08, 0x00, ref packet @ ..] => ipv4(packet),
        [0x86, 0xdd, ref packet @ ..] => ipv6(packet, frame.len() - packet.len()),
        _ => Seen::NotIp,
    }
}

/// RFC 791, section 3.1.
fn ipv4(packet: &[u8]) -> Seen {
    if packet.len() < 20 {
        return Seen::Truncated;
    }
    if packet[0] >> 4 != 4 {
        return Seen::NotIp;
    }
    let mut source = [0; 16];
    source[10..12].fill(0xff);
    source[12..].copy_from_slice(&packet[12..16]);
    let header = usize::from(packet[0] & 15) * 4;
    let total = usize::from(packet[2]) << 8 | usize::from(packet[3]);
    let fragment = (usize::from(packet[6]) << 8 | usize::from(packet[7])) & 0x1fff;
    let carries = match (packet[9], fragment) {
        _ if header < 20 => Carries::Malformed,
        (6, 0) => {
            // A length of 0: more than the field can hold.
            let end = if total == 0 { packet.len() } else { total.min(packet.len()) };
            segment(packet.get(header..end).unwrap_or_default())
        }
        // RFC 1858: the second eight bytes have the flags.
        (6, 1) => Carries::Malformed,
        (6, _) => Carries::LaterFragment,
        _ => Carries::NotTcp,
    };
    Seen::Packet(source, carries)
}

/// RFC 8200, sections 3 and 4.
fn ipv6(packet: &[u8], before: usize) -> Seen {
    if packet.len() < 24 {
        return Seen::Truncated;
    }
    if packet[0] >> 4 != 6 {
        return Seen::NotIp;
    }
    let mut source = [0; 16];
    source.copy_from_slice(&packet[8..24]);
    // What claims to be IPv4 is nobody's address.
    if source[..12] == [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff] {
        source[11] = 0xfe;
    }
    let length = usize::from(packet[4]) << 8 | usize::from(packet[5]);
    let end = if length == 0 { usize::MAX } else { 40 + length };
    Seen::Packet(source, chain(packet, packet[6], end, before))
}

fn chain(packet: &[u8], first: u8, end: usize, before: usize) -> Carries {
    let (mut next, mut at, mut headers) = (first, 40, 0);
    loop {
        let known = matches!(next, 0 | 43 | 44 | 51 | 60 | 135);
        if !known {
            let there = packet.get(at..end.min(packet.len())).unwrap_or_default();
            return match next {
                6 => segment(there),
                _ if at > end => Carries::Malformed,
                _ => Carries::NotTcp,
            };
        }
        let Some(header) = packet.get(at..at + 8) else { return Carries::Malformed };
        headers += 1;
        if headers > 12 {
            return Carries::Malformed;
        }
        let offset = (usize::from(header[2]) << 8 | usize::from(header[3])) >> 3;
        if next == 44 && offset != 0 {
            return if at + 8 > end { Carries::Malformed } else { Carries::LaterFragment };
        }
        at += match next {
            44 => 8,
            // RFC 4302: in words of four bytes, minus two.
            51 => (usize::from(header[1]) + 2) * 4,
            _ => (usize::from(header[1]) + 1) * 8,
        };
        if before + at > REACH {
            return Carries::Malformed;
        }
        next = header[0];
    }
}

/// RFC 9293, section 3.1.
fn segment(bytes: &[u8]) -> Carries {
    if bytes.len() < 20 || bytes[12] >> 4 < 5 {
        return Carries::Malformed;
    }
    let (syn, ack) = (bytes[13] & 2 != 0, bytes[13] & 16 != 0);
    if syn && !ack { Carries::Syn(u16::from_be_bytes([bytes[2], bytes[3]])) } else { Carries::Segment }
}
