//! The host's sockets: whom a segment meets.

use aya_ebpf::EbpfContext as _;
use aya_ebpf::Global;
use aya_ebpf::bindings::bpf_sock_tuple;
use aya_ebpf::helpers::{
    bpf_jiffies64, bpf_sk_release, bpf_skc_lookup_tcp, bpf_skc_to_tcp_request_sock, bpf_skc_to_tcp_sock,
};
use aya_ebpf::programs::XdpContext;
use dosguard_common::challenge::{SENT_WITHIN_JIFFIES, Segment};

use crate::maps;

/// States of a socket (`enum` in Linux include/net/tcp_states.h).
const ESTABLISHED: u32 = 1;
const FIN_WAIT_1: u32 = 4;
const FIN_WAIT_2: u32 = 5;
const TIME_WAIT: u32 = 6;
const CLOSE_WAIT: u32 = 8;
const LAST_ACK: u32 = 9;
const LISTEN: u32 = 10;
const CLOSING: u32 = 11;
const NEW_SYN_RECV: u32 = 12;

/// The receive buffer was chosen (`SOCK_RCVBUF_LOCK`, Linux include/net/sock.h).
const RECEIVE_LOCKED: u8 = 2;

/// Where the running kernel keeps what of a listener, in bytes: see `ListenerLayout`. Set at load, from its BTF.
#[unsafe(no_mangle)]
static SENT: Global<u32> = Global::new(0);
#[unsafe(no_mangle)]
static GROUP_OF: Global<u32> = Global::new(0);
#[unsafe(no_mangle)]
static GROUP_SENT: Global<u32> = Global::new(0);
#[unsafe(no_mangle)]
static BACKLOG: Global<u32> = Global::new(0);
#[unsafe(no_mangle)]
static MAX_BACKLOG: Global<u32> = Global::new(0);
#[unsafe(no_mangle)]
static LOCKS: Global<u32> = Global::new(0);
#[unsafe(no_mangle)]
static LOCKS_SHIFT: Global<u32> = Global::new(0);
/// The same of a connection that is being made: see `RequestLayout`.
#[unsafe(no_mangle)]
static ANSWERED: Global<u32> = Global::new(0);

/// The network namespace that the packet came in (`BPF_F_CURRENT_NETNS`).
const THIS_NAMESPACE: u64 = u64::MAX;

/// Whom a segment meets.
pub enum Met {
    /// Somebody who takes connections.
    Listener {
        /// It has no room for another, and gives the segment no heed.
        is_full: bool,
        /// It has sent a cookie lately, and takes them therefore.
        takes_cookies: bool,
        /// Its windows are not those of other listeners.
        has_own_buffers: bool,
        /// Others listen on its port, too (`SO_REUSEPORT`), and may have other ones.
        shares_port: bool,
    },
    /// A SYN that the host has answered with this sequence number, and waits for what completes the handshake.
    Request {
        /// The number.
        sent: u32,
    },
    /// A connection that is made, until both ends have closed it.
    Connection,
    /// A connection that is closed, and waits for what may still come of it.
    Closed,
    /// Nobody, or a connection that is not made yet.
    Other,
}

/// Looks for the socket that the host would give the segment to.
#[inline(always)]
pub fn met(ctx: &XdpContext, segment: &Segment) -> Met {
    let [a, b, c, d] = segment.source().words();
    let [e, f, g, h] = segment.destination().words();
    let [port_0, port_1, port_2, port_3, ..] = segment.tcp;
    let ports = u32::from_ne_bytes([port_0, port_1, port_2, port_3]);
    // As `struct bpf_sock_tuple` has it. A few words too many for IPv4: all are written, so that the verifier knows them.
    let (mut tuple, words) = if segment.is_ipv6() {
        ([a, b, c, d, e, f, g, h, ports], 9_u32)
    } else {
        ([d, h, ports, 0, 0, 0, 0, 0, 0], 3)
    };
    let size = words * 4;
    // SAFETY: the tuple has at least so many bytes, and the socket is released when it has been looked at.
    unsafe {
        let tuple = (&raw mut tuple).cast::<bpf_sock_tuple>();
        let socket = bpf_skc_lookup_tcp(ctx.as_ptr(), tuple, size, THIS_NAMESPACE, 0);
        if socket.is_null() {
            return Met::Other;
        }
        let met = match (&raw const (*socket).state).read_volatile() {
            // Where no cookies are made, nobody asks for more, and the verifier removes it.
            LISTEN if maps::CHALLENGES.load() != 0 => listener(bpf_skc_to_tcp_sock(socket.cast()).cast()),
            ESTABLISHED | FIN_WAIT_1 | FIN_WAIT_2 | CLOSE_WAIT | LAST_ACK | CLOSING => Met::Connection,
            NEW_SYN_RECV => request(bpf_skc_to_tcp_request_sock(socket.cast()).cast()),
            TIME_WAIT => Met::Closed,
            _ => Met::Other,
        };
        bpf_sk_release(socket.cast());
        met
    }
}

/// Looks at a connection that is being made.
///
/// # Safety
///
/// As of [`listener`].
#[inline(always)]
unsafe fn request(socket: *const u8) -> Met {
    if socket.is_null() {
        return Met::Other;
    }
    // SAFETY: by the caller's word.
    unsafe { Met::Request { sent: socket.add(ANSWERED.load() as usize).cast::<u32>().read_volatile() } }
}

/// Looks at a listener.
///
/// # Safety
///
/// It is the kernel's, or null, and held while it is looked at. The offsets are checked by the verifier.
#[inline(always)]
#[expect(clippy::cast_possible_truncation, reason = "the kernel keeps the low half of the time")]
unsafe fn listener(socket: *const u8) -> Met {
    if socket.is_null() {
        return Met::Other;
    }
    // SAFETY: by the caller's word; the group lives as long as the program runs (RCU).
    unsafe {
        let field = |offset: u32| socket.add(offset as usize).cast::<u32>().read_volatile();
        let group = socket.add(GROUP_OF.load() as usize).cast::<*const u8>().read_volatile();
        let mut sent = field(SENT.load());
        // Who shares its port has it from the group alone.
        if !group.is_null() {
            sent = group.add(GROUP_SENT.load() as usize).cast::<u32>().read_volatile();
        }
        let locks = socket.add(LOCKS.load() as usize).read_volatile() >> (LOCKS_SHIFT.load() & 7);
        Met::Listener {
            // As `sk_acceptq_is_full` in Linux include/net/sock.h.
            is_full: field(BACKLOG.load()) > field(MAX_BACKLOG.load()),
            // It never did where this is 0.
            takes_cookies: sent != 0 && (bpf_jiffies64() as u32).wrapping_sub(sent) < SENT_WITHIN_JIFFIES,
            has_own_buffers: locks & RECEIVE_LOCKED != 0,
            shares_port: !group.is_null(),
        }
    }
}
