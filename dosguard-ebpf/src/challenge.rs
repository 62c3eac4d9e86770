//! Challenges: the program answers a SYN in the host's place, and looks at what comes back.
//!
//! Both programs are reached by a tail call from the one that judges, and begin anew with the packet.

use aya_ebpf::EbpfContext as _;
use aya_ebpf::Global;
use aya_ebpf::bindings::bpf_sock_tuple;
use aya_ebpf::bindings::xdp_action::{XDP_DROP, XDP_PASS, XDP_TX};
use aya_ebpf::helpers::{
    bpf_jiffies64, bpf_ktime_get_boot_ns, bpf_sk_release, bpf_skc_lookup_tcp, bpf_skc_to_tcp_request_sock,
    bpf_skc_to_tcp_sock, bpf_tcp_raw_check_syncookie_ipv4, bpf_tcp_raw_check_syncookie_ipv6,
    bpf_tcp_raw_gen_syncookie_ipv4, bpf_tcp_raw_gen_syncookie_ipv6, bpf_xdp_adjust_tail,
};
use aya_ebpf::programs::XdpContext;
use dosguard_common::address::Address;
use dosguard_common::challenge::{
    ANSWERED_WITHIN_NS, LEFT_EVERY_NS, Offer, REPLY_MAX, Reply, Room, SENT_WITHIN_JIFFIES, Segment,
};
use dosguard_common::engine::{self, Completed};
use dosguard_common::frame::Frame as _;
use dosguard_common::opaque::opaque;
use dosguard_common::reason::Tally;
use dosguard_common::tables::Tables as _;

use crate::clock::KernelClock;
use crate::context::ContextFrame;
use crate::tables::KernelTables;
use crate::{maps, met};

/// The maps, with the counters of completed handshakes.
const fn tables() -> KernelTables<true> {
    KernelTables
}

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

/// A MAC address with this bit is that of a group (IEEE 802).
const GROUP: u8 = 1;

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

/// Why a SYN is not answered.
enum Unsent {
    /// It is the host's turn.
    Left,
    /// It cannot be, or nobody listens.
    Dropped,
}

/// Answers a SYN, leaves it to the host or drops it. Returns an XDP action.
#[inline(always)]
pub fn answer_syn(ctx: &XdpContext) -> u32 {
    match send(ctx) {
        Ok(()) => XDP_TX,
        Err(Unsent::Left) => {
            tables().tally(Tally::ChallengeLeft);
            XDP_PASS
        }
        Err(Unsent::Dropped) => {
            tables().tally(Tally::ChallengeUnsent);
            XDP_DROP
        }
    }
}

#[inline(always)]
fn send(ctx: &XdpContext) -> Result<(), Unsent> {
    let frame = ContextFrame::new(ctx);
    let Some(host) = maps::SYNACK.get(0) else { return Err(Unsent::Dropped) };
    let Some(Room { segment, reply }) = room() else { return Err(Unsent::Dropped) };
    let is_for_this_host = frame.bytes::<6>(0).is_some_and(|[first, ..]| first & GROUP == 0);
    if !is_for_this_host
        || !segment.read(&frame)
        || !segment.is_answerable()
        || !segment.read_options(&frame)
        || !is_answered_for(&segment.destination())
    {
        return Err(Unsent::Dropped);
    }
    // The kernel's own timestamps go by the monotonic clock (`tcp_clock_ns`), and may only be later.
    let [now_ns, monotonic_ns] = KernelClock.lately();
    let has_own_buffers = match met(ctx, segment) {
        Met::Listener { takes_cookies: true, has_own_buffers, .. } => has_own_buffers,
        // It takes cookies once it has sent one itself. Until then what it is sent costs it as much as without this program.
        Met::Listener { takes_cookies: false, .. } => return Err(Unsent::Left),
        // The host knows best whether an old connection gives way to a new one.
        Met::Closed if is_turn_of_host(now_ns) => return Err(Unsent::Left),
        Met::Request { .. } | Met::Connection | Met::Closed | Met::Other => return Err(Unsent::Dropped),
    };
    let cookie = cookie(segment).ok_or(Unsent::Dropped)?;
    let offer = Offer::of(segment, host, has_own_buffers);
    reply.fill(segment, offer, cookie, monotonic_ns / 1_000_000, host);
    tables().look_for_answers(now_ns.saturating_add(ANSWERED_WITHIN_NS));
    write(ctx, &frame, segment, reply).ok_or(Unsent::Dropped)
}

/// Whether somebody here is meant.
#[inline(always)]
fn is_answered_for(address: &Address) -> bool {
    // SAFETY: the helper takes no arguments and only reads a counter.
    met::is_answered_for(address, unsafe { bpf_jiffies64() })
}

/// This CPU's room for an answer.
#[inline(always)]
fn room() -> Option<&'static mut Room> {
    let room = maps::ROOM.get_ptr_mut(0)?;
    // SAFETY: values of maps begin at multiples of eight. Of what is not known to be aligned the compiler reads and writes each byte by
    // itself. Nothing else writes this CPU's own value while the program runs, which asks for it once.
    unsafe {
        core::hint::assert_unchecked(room.addr() & 7 == 0);
        Some(&mut *room)
    }
}

/// Whom a segment meets.
enum Met {
    /// Somebody who takes connections.
    Listener {
        /// It has no room for another, and gives the segment no heed.
        is_full: bool,
        /// It has sent a cookie lately, and takes them therefore.
        takes_cookies: bool,
        /// Its windows are not those of other listeners.
        has_own_buffers: bool,
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
fn met(ctx: &XdpContext, segment: &Segment) -> Met {
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
        }
    }
}

/// Whether it is time for the host to have a SYN that meets a closed connection: who made one could have any number of them
/// pass otherwise.
#[inline(always)]
fn is_turn_of_host(now_ns: u64) -> bool {
    maps::CHALLENGED.get_ptr_mut(1).is_some_and(|last| {
        // SAFETY: an aligned word that is never torn; of two CPUs that find it old, both leave a SYN to the host.
        unsafe {
            let is_old = now_ns.saturating_sub(last.read_volatile()) >= LEFT_EVERY_NS;
            if is_old {
                last.write_volatile(now_ns);
            }
            is_old
        }
    })
}

/// The kernel's cookie for a SYN.
#[inline(always)]
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a cookie is the low half")]
fn cookie(syn: &mut Segment) -> Option<u32> {
    let (ip, tcp) = (syn.ip.as_mut_ptr(), syn.tcp.as_mut_ptr().cast());
    // The verifier wants to see both bounds, each by itself. The helper refuses what is more than a header.
    let length = opaque(syn.tcp_length() as u32, syn.offset) & 63;
    if length == 0 {
        return None;
    }
    // SAFETY: the headers have as many bytes as the helpers read.
    let cookie = unsafe {
        if syn.is_ipv6() {
            bpf_tcp_raw_gen_syncookie_ipv6(ip.cast(), tcp, length)
        } else {
            bpf_tcp_raw_gen_syncookie_ipv4(ip.cast(), tcp, length)
        }
    };
    if cookie < 0 { None } else { Some(cookie as u32) }
}

/// Puts the reply in the frame, in place of the SYN: the MAC addresses change places, VLAN tags stay.
#[inline(always)]
#[expect(clippy::cast_possible_truncation, clippy::cast_possible_wrap, reason = "frames are short")]
fn write(ctx: &XdpContext, frame: &ContextFrame<'_>, syn: &Segment, reply: &Reply) -> Option<()> {
    let (start, length) = (syn.tcp_offset(), reply.tcp_length as usize);
    // Both are below the reach of a frame.
    let delta = ((start + length) as i32).wrapping_sub(frame.length() as i32);
    // SAFETY: the context is the kernel's own; all pointers into the packet are made anew below.
    if unsafe { bpf_xdp_adjust_tail(ctx.ctx, delta) } != 0 {
        return None;
    }
    let [to, from] = [frame.bytes::<6>(6)?, frame.bytes::<6>(0)?];
    put(frame, 0, &to)?;
    put(frame, 6, &from)?;
    if syn.is_ipv6() {
        put(frame, syn.offset as usize, &reply.ip)?;
    } else {
        put(frame, syn.offset as usize, reply.ip.first_chunk::<20>()?)?;
    }
    let mut at = 0;
    while at < REPLY_MAX {
        if at < length {
            put(
                frame,
                start + at,
                &[reply.tcp[at], reply.tcp[at + 1], reply.tcp[at + 2], reply.tcp[at + 3]],
            )?;
        }
        at += 4;
    }
    Some(())
}

#[inline(always)]
fn put<const N: usize>(frame: &ContextFrame<'_>, offset: usize, bytes: &[u8; N]) -> Option<()> {
    let place = frame.place::<N>(offset)? as usize;
    let mut at = 0;
    while at + 4 <= N {
        put_word(place + at, u32::from_ne_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]));
        at += 4;
    }
    while at < N {
        // SAFETY: the verifier has seen that the packet has so many bytes there.
        unsafe { ((place + at) as *mut u8).write(bytes[at]) };
        at += 1;
    }
    Some(())
}

/// Writes a word of the packet. In one instruction: of a write that asks for no alignment the compiler makes one for each byte.
#[inline(always)]
fn put_word(place: usize, value: u32) {
    // SAFETY: writes memory of the packet, which the verifier checks.
    unsafe {
        core::arch::asm!(
            "*(u32 *)({place} + 0) = {value}",
            place = in(reg) place as u64,
            value = in(reg) u64::from(value),
            options(nostack),
        );
    }
}

/// Looks whether a segment proves its source: it is of a connection, or completes a handshake. What is neither passes, as it is
/// nothing new to the host; of handshakes, those that the engine lets pass. Returns an XDP action.
#[inline(always)]
pub fn look_at_answer(ctx: &XdpContext) -> u32 {
    let frame = ContextFrame::new(ctx);
    let Some(Room { segment, .. }) = room() else { return XDP_PASS };
    if !segment.read(&frame) || !segment.may_answer() {
        return XDP_PASS;
    }
    let completed = match met(ctx, segment) {
        Met::Connection => None,
        // Also if it takes none now: what is counted too much is of who has sent it. Not if it has no room: its client would
        // send the same again and again, and mean one connection.
        Met::Listener { is_full: false, .. } if is_cookie(segment) => Some(Completed::Challenge),
        // The number is the secret (`tcp_check_req` in Linux net/ipv4/tcp_minisocks.c); the peer's own may be any in the window.
        Met::Request { sent } if segment.acknowledged() == sent.wrapping_add(1) => Some(Completed::Handshake),
        Met::Request { .. } | Met::Listener { .. } | Met::Closed | Met::Other => return XDP_PASS,
    };
    // SAFETY: the helper takes no arguments and only reads a clock.
    let now_ns = unsafe { bpf_ktime_get_boot_ns() };
    let passes = match (completed, frame.bytes::<6>(6)) {
        (Some(completed), Some(mac)) => {
            engine::judge_answer(&mut tables(), segment, completed, mac, frame.arrival(), now_ns)
        }
        _ => {
            engine::judge_established(&mut tables(), segment, now_ns);
            true
        }
    };
    if passes { XDP_PASS } else { XDP_DROP }
}

/// Whether it acknowledges a cookie of the kernel's, and not one of more than two minutes ago.
#[inline(always)]
fn is_cookie(segment: &mut Segment) -> bool {
    if maps::CHALLENGES.load() == 0 {
        return false;
    }
    let (ip, tcp) = (segment.ip.as_mut_ptr(), segment.tcp.as_mut_ptr().cast());
    // SAFETY: the headers have as many bytes as the helpers read.
    let checked = unsafe {
        if segment.is_ipv6() {
            bpf_tcp_raw_check_syncookie_ipv6(ip.cast(), tcp)
        } else {
            bpf_tcp_raw_check_syncookie_ipv4(ip.cast(), tcp)
        }
    };
    checked == 0
}
