//! Where the running kernel keeps what of a socket, from its type information (BTF).
//!
//! A program in C would have this done by relocations (CO-RE), which the Rust compiler does not write for BPF; and the
//! crates that read BTF show no members, bring a C library along, or may not be linked statically under our licence. So
//! this reads as much of the format as it takes: Linux Documentation/bpf/btf.rst, include/uapi/linux/btf.h.

use std::collections::BTreeSet;
use std::fs;
use std::io;

/// Where the kernel shows its own BTF (Linux 5.4, commit 341dfcf8d78e).
const KERNEL: &str = "/sys/kernel/btf/vmlinux";

/// The members of `struct sock_common`, each at so many bytes from its beginning.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SocketLayout {
    pub(crate) state: u32,
    pub(crate) family: u32,
    pub(crate) port: u32,
    pub(crate) local_v4: u32,
    pub(crate) remote_v4: u32,
    pub(crate) local_v6: u32,
    pub(crate) remote_v6: u32,
}

impl SocketLayout {
    /// Of the running kernel.
    ///
    /// # Errors
    ///
    /// The kernel has no BTF, or none in which this finds its way.
    pub fn of_kernel() -> io::Result<Self> {
        let bytes = fs::read(KERNEL)?;
        Self::in_btf(&bytes)
            .ok_or_else(|| io::Error::other(format!("`{KERNEL}` has no `struct sock_common` as expected")))
    }

    /// Of the kernel with this BTF.
    pub fn in_btf(bytes: &[u8]) -> Option<Self> {
        Self::find(&Btf::parse(bytes)?)
    }

    fn find(btf: &Btf<'_>) -> Option<Self> {
        let socket = btf.structure("sock_common")?;
        let member = |name| btf.offset(socket, name);
        Some(Self {
            state: member("skc_state")?,
            family: member("skc_family")?,
            port: member("skc_num")?,
            local_v4: member("skc_rcv_saddr")?,
            remote_v4: member("skc_daddr")?,
            local_v6: member("skc_v6_rcv_saddr")?,
            remote_v6: member("skc_v6_daddr")?,
        })
    }
}

/// What is kept of a listener's cookies, each at so many bytes from the beginning of its structure.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ListenerLayout {
    /// When it last sent one (`rx_opt.ts_recent_stamp` of `struct tcp_sock`).
    pub(crate) sent: u32,
    /// The group that it shares its port with (`sk_reuseport_cb` of `struct sock`), and when that last sent one.
    pub(crate) group: u32,
    pub(crate) group_sent: u32,
    /// How many connections wait to be accepted (`sk_ack_backlog`), and how many may.
    pub(crate) backlog: u32,
    pub(crate) max_backlog: u32,
    /// Whether it has chosen its own buffers (`sk_userlocks`), and at which bit.
    pub(crate) locks: u32,
    pub(crate) locks_shift: u32,
}

impl ListenerLayout {
    /// Of the running kernel.
    ///
    /// # Errors
    ///
    /// As of [`SocketLayout::of_kernel`].
    pub fn of_kernel() -> io::Result<Self> {
        let bytes = fs::read(KERNEL)?;
        Self::in_btf(&bytes)
            .ok_or_else(|| io::Error::other(format!("`{KERNEL}` has no `struct tcp_sock` as expected")))
    }

    /// Of the kernel with this BTF.
    pub fn in_btf(bytes: &[u8]) -> Option<Self> {
        Self::find(&Btf::parse(bytes)?)
    }

    fn find(btf: &Btf<'_>) -> Option<Self> {
        let socket = btf.structure("sock")?;
        let received = btf.offset(btf.structure("tcp_sock")?, "rx_opt")?;
        let stamp = btf.offset(btf.structure("tcp_options_received")?, "ts_recent_stamp")?;
        let locks = btf.bits(socket, "sk_userlocks")?;
        Some(Self {
            sent: received.checked_add(stamp)?,
            group: btf.offset(socket, "sk_reuseport_cb")?,
            group_sent: btf.offset(btf.structure("sock_reuseport")?, "synq_overflow_ts")?,
            backlog: btf.offset(socket, "sk_ack_backlog")?,
            max_backlog: btf.offset(socket, "sk_max_ack_backlog")?,
            locks: locks / 8,
            locks_shift: locks % 8,
        })
    }
}

/// What is kept of a connection that is being made (`struct tcp_request_sock`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RequestLayout {
    /// The sequence number of the SYN-ACK.
    pub(crate) sent: u32,
}

impl RequestLayout {
    /// Of the running kernel.
    ///
    /// # Errors
    ///
    /// As of [`SocketLayout::of_kernel`].
    pub fn of_kernel() -> io::Result<Self> {
        let bytes = fs::read(KERNEL)?;
        Self::in_btf(&bytes).ok_or_else(|| {
            io::Error::other(format!("`{KERNEL}` has no `struct tcp_request_sock` as expected"))
        })
    }

    /// Of the kernel with this BTF.
    pub fn in_btf(bytes: &[u8]) -> Option<Self> {
        let btf = Btf::parse(bytes)?;
        Some(Self { sent: btf.offset(btf.structure("tcp_request_sock")?, "snt_isn")? })
    }
}

const MAGIC: u16 = 0xeb9f;

/// Kinds of types (`BTF_KIND_…`) whose records are followed by more.
const INT: u32 = 1;
const ARRAY: u32 = 3;
const STRUCT: u32 = 4;
const UNION: u32 = 5;
const ENUM: u32 = 6;
const FUNC_PROTO: u32 = 13;
const VAR: u32 = 14;
const DATASEC: u32 = 15;
const DECL_TAG: u32 = 17;
const ENUM64: u32 = 19;

/// How deep structures without names are looked for members.
const DEPTH: usize = 8;

/// A type's record, and what follows it.
#[derive(Clone, Copy)]
struct Type<'a> {
    name: u32,
    kind: u32,
    /// Whether members say their width in bits, too.
    has_bits: bool,
    more: &'a [u8],
}

struct Btf<'a> {
    /// By number; 0 is `void`.
    types: Vec<Type<'a>>,
    strings: &'a [u8],
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..)?.first_chunk().map(|bytes| u32::from_ne_bytes(*bytes))
}

impl<'a> Btf<'a> {
    fn parse(bytes: &'a [u8]) -> Option<Self> {
        if bytes.first_chunk().map(|bytes| u16::from_ne_bytes(*bytes)) != Some(MAGIC) {
            return None;
        }
        let header = |at| word(bytes, at).map(|value| value as usize);
        let data = bytes.get(header(4)?..)?;
        let section = |at, length| {
            let (at, length) = (header(at)?, header(length)?);
            data.get(at..at.checked_add(length)?)
        };
        let (mut rest, strings) = (section(8, 12)?, section(16, 20)?);
        let mut types = vec![Type { name: 0, kind: 0, has_bits: false, more: &[] }];
        while !rest.is_empty() {
            let (name, info) = (word(rest, 0)?, word(rest, 4)?);
            let (kind, count) = (info >> 24 & 0x1f, (info & 0xffff) as usize);
            let length = match kind {
                INT | VAR | DECL_TAG => 4,
                ARRAY => 12,
                STRUCT | UNION | DATASEC | ENUM64 => 12 * count,
                ENUM | FUNC_PROTO => 8 * count,
                _ => 0,
            };
            let more = rest.get(12..12 + length)?;
            types.push(Type { name, kind, has_bits: info >> 31 != 0, more });
            rest = rest.get(12 + length..)?;
        }
        Some(Self { types, strings })
    }

    fn name(&self, at: u32) -> &'a [u8] {
        let from = self.strings.get(at as usize..).unwrap_or_default();
        from.split(|byte| *byte == 0).next().unwrap_or_default()
    }

    fn structure(&self, name: &str) -> Option<Type<'a>> {
        let found = |one: &&Type<'_>| one.kind == STRUCT && self.name(one.name) == name.as_bytes();
        self.types.iter().find(found).copied()
    }

    /// Where a member is, in bytes; also one of a structure or union without a name that is a member.
    fn offset(&self, of: Type<'_>, member: &str) -> Option<u32> {
        self.bits(of, member).map(|bits| bits / 8)
    }

    /// The same in bits.
    fn bits(&self, of: Type<'_>, member: &str) -> Option<u32> {
        self.search(of, member, 0, &mut BTreeSet::new())
    }

    /// Looks into each structure without a name once: there is nothing more in it the next time.
    fn search(&self, of: Type<'_>, member: &str, depth: usize, seen: &mut BTreeSet<u32>) -> Option<u32> {
        for record in of.more.chunks_exact(12) {
            let (name, kind, bits) = (word(record, 0)?, word(record, 4)?, word(record, 8)?);
            let bits = if of.has_bits { bits & 0xff_ffff } else { bits };
            if self.name(name) == member.as_bytes() {
                return Some(bits);
            }
            let inner = self.types.get(kind as usize).filter(|inner| matches!(inner.kind, STRUCT | UNION));
            let inner = inner.filter(|_| name == 0 && depth < DEPTH && seen.insert(kind));
            if let Some(within) = inner.and_then(|inner| self.search(*inner, member, depth + 1, seen)) {
                return bits.checked_add(within);
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_running_kernel_says_where_it_keeps_what() {
        let layout = SocketLayout::of_kernel().unwrap();
        // As they lie since Linux 3.13 (commit efe4208f47f9) in every kernel with IPv6 and network namespaces.
        let expected = SocketLayout {
            state: 18,
            family: 16,
            port: 14,
            local_v4: 4,
            remote_v4: 0,
            local_v6: 72,
            remote_v6: 56,
        };
        assert_eq!(layout, expected);
    }

    #[test]
    fn the_running_kernel_says_where_it_keeps_what_of_listeners() {
        let layout = ListenerLayout::of_kernel().unwrap();
        assert!(layout.sent > 0 && layout.group > 0 && layout.group_sent > 0, "{layout:?}");
        assert!(layout.locks > 0 && layout.locks_shift < 8, "{layout:?}");
        assert!(layout.backlog > 0 && layout.max_backlog > 0, "{layout:?}");
    }

    fn btf(types: &[u32], strings: &[u8]) -> Vec<u8> {
        let mut bytes = MAGIC.to_ne_bytes().to_vec();
        bytes.extend([1, 0]);
        let length = u32::try_from(types.len() * 4).unwrap();
        for value in [24, 0, length, length, u32::try_from(strings.len()).unwrap()] {
            bytes.extend(u32::to_ne_bytes(value));
        }
        bytes.extend(types.iter().flat_map(|word| word.to_ne_bytes()));
        bytes.extend(strings);
        bytes
    }

    #[test]
    fn members_of_unions_without_names_are_found() {
        let strings = b"\0sock_common\0a\0b\0";
        let types = [
            // 1: an int of 4 bytes.
            [0, INT << 24, 4].as_slice(),
            &[0],
            // 2: union { 1 a; 1 b } without a name.
            &[0, UNION << 24 | 2, 4, 13, 1, 0, 15, 1, 0],
            // 3: struct sock_common { 1 (no name, no structure); 2 }, with widths in bits.
            &[1, 1 << 31 | STRUCT << 24 | 2, 8, 0, 1, 0, 0, 2, 32 << 24 | 32],
        ];
        let bytes = btf(&types.concat(), strings);
        let btf = Btf::parse(&bytes).unwrap();
        let found = btf.structure("sock_common").unwrap();
        assert_eq!(["a", "b", "c"].map(|name| btf.offset(found, name)), [Some(4), Some(4), None]);
        assert_eq!(SocketLayout::find(&btf), None, "not a socket");
    }

    #[test]
    fn whatever_else_is_there_is_refused() {
        let whole = btf(&[0, INT << 24, 4, 0], b"\0");
        assert!(Btf::parse(&whole).is_some());
        for length in 0..whole.len() {
            assert!(Btf::parse(&whole[..length]).is_none(), "{length}");
        }
        // A structure that has itself for a member ends somewhere.
        let endless = btf(&[1, STRUCT << 24 | 1, 8, 0, 1, 0], b"\0sock_common\0");
        let btf = Btf::parse(&endless).unwrap();
        assert_eq!(btf.offset(btf.structure("sock_common").unwrap(), "a"), None);
    }

    #[test]
    fn what_lies_about_itself_is_refused_soon() {
        // A hundred members that are the structure itself: looked through at each depth, they would take ages.
        let members = [[0, 1, 0]; 100].concat();
        let types = [&[1, STRUCT << 24 | 100, 8][..], &members].concat();
        assert_eq!(SocketLayout::in_btf(&btf(&types, b"\0sock_common\0")), None);
        // Places that come to more than a number holds.
        let types = [&[0, STRUCT << 24 | 1, 8, 13, 0, 1][..], &[1, STRUCT << 24 | 1, 8, 0, 1, u32::MAX]];
        let bytes = btf(&types.concat(), b"\0sock_common\0a\0");
        let btf = Btf::parse(&bytes).unwrap();
        assert_eq!(btf.offset(btf.structure("sock_common").unwrap(), "a"), None);
    }
}
