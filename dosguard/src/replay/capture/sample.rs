//! Captures for tests, built in code.

#![expect(clippy::cast_possible_truncation, reason = "fields are as wide as the format has them")]

/// A SYN over IPv4 to 192.0.2.1, with an Ethernet header.
pub(in crate::replay) fn syn(source: [u8; 4], port: u16) -> Vec<u8> {
    segment(source, port, 0x02)
}

/// A TCP segment over IPv4 to 192.0.2.1, with an Ethernet header.
pub(in crate::replay) fn segment(source: [u8; 4], port: u16, flags: u8) -> Vec<u8> {
    let mut frame = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 0x08, 0x00];
    frame.extend([0x45, 0, 0, 40, 0, 0, 0, 0, 64, 6, 0, 0]);
    frame.extend(source);
    frame.extend([192, 0, 2, 1, 0x30, 0x39]);
    frame.extend(port.to_be_bytes());
    frame.extend([0, 0, 0, 1, 0, 0, 0, 0, 0x50, flags, 0xff, 0xff, 0, 0, 0, 0]);
    frame
}

/// A SYN over IPv6, with an Ethernet header.
pub(in crate::replay) fn syn_v6(source: [u8; 16], port: u16) -> Vec<u8> {
    let mut frame = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 0x86, 0xdd];
    frame.extend([0x60, 0, 0, 0, 0, 20, 6, 64]);
    frame.extend(source);
    frame.extend([0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]);
    frame.extend(&syn([0; 4], port)[34..]);
    frame
}

/// The segment at the end of a frame with these numbers: its own, and the one that it acknowledges.
pub(in crate::replay) fn numbered(mut frame: Vec<u8>, own: u32, acknowledged: u32) -> Vec<u8> {
    let tcp = frame.len() - 20;
    frame[tcp + 4..tcp + 8].copy_from_slice(&own.to_be_bytes());
    frame[tcp + 8..tcp + 12].copy_from_slice(&acknowledged.to_be_bytes());
    frame
}

/// What the host answers to the SYN at the end of a frame, with this number.
pub(in crate::replay) fn answer(syn: &[u8], own: u32) -> Vec<u8> {
    let mut frame = numbered(syn.to_vec(), own, 2);
    let tcp = frame.len() - 20;
    let address = if frame[tcp - 20] == 0x45 { 4 } else { 16 };
    frame[..12].rotate_left(6);
    frame[tcp - 2 * address..tcp].rotate_left(address);
    frame[tcp..tcp + 4].rotate_left(2);
    frame[tcp + 13] = 0x12;
    frame
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::replay) enum Order {
    Little,
    Big,
}

impl Order {
    pub(in crate::replay) const BOTH: [Self; 2] = [Self::Little, Self::Big];

    fn u16(self, value: u16) -> [u8; 2] {
        if self == Self::Little { value.to_le_bytes() } else { value.to_be_bytes() }
    }

    fn u32(self, value: u32) -> [u8; 4] {
        if self == Self::Little { value.to_le_bytes() } else { value.to_be_bytes() }
    }
}

/// A capture in the classic format.
#[derive(Clone, Debug)]
pub(in crate::replay) struct Pcap {
    order: Order,
    ns_per_unit: u64,
    pub(in crate::replay) bytes: Vec<u8>,
}

impl Pcap {
    pub(in crate::replay) fn new(order: Order, nanoseconds: bool, link: u32) -> Self {
        let magic = if nanoseconds { 0xa1b2_3c4d } else { 0xa1b2_c3d4 };
        let mut bytes = order.u32(magic).to_vec();
        bytes.extend([order.u16(2), order.u16(4)].concat());
        bytes.extend([0, 0, 65_535, link].map(|field| order.u32(field)).concat());
        Self { order, ns_per_unit: if nanoseconds { 1 } else { 1_000 }, bytes }
    }

    /// A little-endian one with nanoseconds and Ethernet.
    pub(in crate::replay) fn ethernet() -> Self {
        Self::new(Order::Little, true, 1)
    }

    pub(in crate::replay) fn packet(self, at_ns: u64, frame: &[u8]) -> Self {
        let wire_len = frame.len();
        self.cut(at_ns, frame, wire_len)
    }

    /// A packet of which only the beginning was captured.
    pub(in crate::replay) fn cut(mut self, at_ns: u64, captured: &[u8], wire_len: usize) -> Self {
        let (seconds, part) = (at_ns / 1_000_000_000, at_ns % 1_000_000_000 / self.ns_per_unit);
        self.record(seconds as u32, part as u32, captured.len() as u32, wire_len as u32);
        self.bytes.extend(captured);
        self
    }

    pub(in crate::replay) fn record(&mut self, seconds: u32, part: u32, captured: u32, wire_len: u32) {
        self.bytes.extend([seconds, part, captured, wire_len].map(|field| self.order.u32(field)).concat());
    }
}

/// A capture in blocks.
#[derive(Clone, Debug)]
pub(in crate::replay) struct PcapNg {
    pub(in crate::replay) order: Order,
    pub(in crate::replay) bytes: Vec<u8>,
}

impl PcapNg {
    pub(in crate::replay) fn new(order: Order) -> Self {
        Self { order, bytes: Vec::new() }.section(order)
    }

    pub(in crate::replay) fn section(mut self, order: Order) -> Self {
        self.order = order;
        let body = [&order.u32(0x1a2b_3c4d)[..], &order.u16(1), &order.u16(0), &[0xff; 8]].concat();
        self.block(0x0a0d_0d0a, &body)
    }

    pub(in crate::replay) fn block(mut self, kind: u32, body: &[u8]) -> Self {
        let padded = body.len().next_multiple_of(4);
        let length = self.order.u32(padded as u32 + 12);
        self.bytes.extend(self.order.u32(kind));
        self.bytes.extend(length);
        self.bytes.extend(body);
        self.bytes.resize(self.bytes.len() + padded - body.len(), 0);
        self.bytes.extend(length);
        self
    }

    /// An interface with options: code and value.
    pub(in crate::replay) fn interface(self, link: u16, snaplen: u32, options: &[(u16, &[u8])]) -> Self {
        let mut body = [self.order.u16(link), [0; 2]].concat();
        body.extend(self.order.u32(snaplen));
        body.extend(self.options(options));
        self.block(1, &body)
    }

    pub(in crate::replay) fn packet(self, interface: u32, stamp: u64, frame: &[u8]) -> Self {
        self.packet_with(interface, stamp, frame, &[])
    }

    pub(in crate::replay) fn packet_with(
        self,
        interface: u32,
        stamp: u64,
        frame: &[u8],
        options: &[(u16, &[u8])],
    ) -> Self {
        let length = frame.len() as u32;
        let fields = [interface, (stamp >> 32) as u32, stamp as u32, length, length];
        let mut body = fields.map(|field| self.order.u32(field)).concat();
        body.extend(frame);
        body.resize(body.len().next_multiple_of(4), 0);
        body.extend(self.options(options));
        self.block(6, &body)
    }

    pub(in crate::replay) fn simple(self, wire_len: u32, captured: &[u8]) -> Self {
        let body = [&self.order.u32(wire_len)[..], captured].concat();
        self.block(3, &body)
    }

    pub(in crate::replay) fn obsolete(self, interface: u16, stamp: u64, frame: &[u8]) -> Self {
        let mut body = [self.order.u16(interface), [0; 2]].concat();
        let length = frame.len() as u32;
        let fields = [(stamp >> 32) as u32, stamp as u32, length, length];
        body.extend(fields.map(|field| self.order.u32(field)).concat());
        body.extend(frame);
        self.block(2, &body)
    }

    fn options(&self, options: &[(u16, &[u8])]) -> Vec<u8> {
        let mut bytes = Vec::new();
        for (code, value) in options {
            bytes.extend([self.order.u16(*code), self.order.u16(value.len() as u16)].concat());
            bytes.extend(*value);
            bytes.resize(bytes.len().next_multiple_of(4), 0);
        }
        if !options.is_empty() {
            bytes.extend([0; 4]);
        }
        bytes
    }
}
