//! Challenges: the program answers a SYN in the host's place, and looks at what comes back.
//!
//! Both programs are reached by a tail call from the one that judges, and begin anew with the packet.

use aya_ebpf::EbpfContext as _;
use aya_ebpf::bindings::bpf_sock_tuple;
use aya_ebpf::bindings::xdp_action::{XDP_DROP, XDP_PASS, XDP_TX};
use aya_ebpf::helpers::{
    bpf_ktime_get_boot_ns, bpf_ktime_get_ns, bpf_sk_release, bpf_skc_lookup_tcp,
    bpf_tcp_raw_check_syncookie_ipv4, bpf_tcp_raw_check_syncookie_ipv6, bpf_tcp_raw_gen_syncookie_ipv4,
    bpf_tcp_raw_gen_syncookie_ipv6, bpf_xdp_adjust_tail,
};
use aya_ebpf::programs::XdpContext;
use dosguard_common::challenge::{
    ANSWERED_WITHIN_NS, LEFT_EVERY_NS, Listener, Offer, REPLY_MAX, Reply, Room, Segment,
};
use dosguard_common::engine;
use dosguard_common::frame::Frame as _;
use dosguard_common::opaque::opaque;
use dosguard_common::reason::Tally;
use dosguard_common::tables::Tables as _;

use crate::context::ContextFrame;
use crate::maps;
use crate::tables::KernelTables;

/// States of a socket (`enum` in Linux include/net/tcp_states.h).
const TIME_WAIT: u32 = 6;
const LISTEN: u32 = 10;

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
            KernelTables.tally(Tally::ChallengeLeft);
            XDP_PASS
        }
        Err(Unsent::Dropped) => {
            KernelTables.tally(Tally::ChallengeUnsent);
            XDP_DROP
        }
    }
}

#[inline(always)]
fn send(ctx: &XdpContext) -> Result<(), Unsent> {
    let frame = ContextFrame::new(ctx);
    let (Some(Room { segment, reply }), Some(host)) = (room(), maps::SYNACK.get(0)) else {
        return Err(Unsent::Dropped);
    };
    if !segment.read(&frame) || !segment.read_options(&frame) {
        return Err(Unsent::Dropped);
    }
    match state(ctx, segment) {
        LISTEN => {}
        // The host knows best whether an old connection gives way to a new one. It has been one: nobody forges that.
        TIME_WAIT => return Err(Unsent::Left),
        _ => return Err(Unsent::Dropped),
    }
    // SAFETY: the helper takes no arguments and only reads a clock.
    let now_ns = unsafe { bpf_ktime_get_boot_ns() };
    if is_turn_of_host(segment, now_ns) {
        return Err(Unsent::Left);
    }
    let cookie = cookie(segment).ok_or(Unsent::Dropped)?;
    // The kernel's own timestamps go by this clock (`tcp_clock_ns`).
    // SAFETY: the helper takes no arguments and only reads a clock.
    let now_ms = unsafe { bpf_ktime_get_ns() } / 1_000_000;
    reply.fill(segment, Offer::of(segment, host), cookie, now_ms, host);
    look_for_answers(now_ns);
    write(ctx, &frame, segment, reply).ok_or(Unsent::Dropped)
}

/// This CPU's room for an answer.
#[inline(always)]
fn room() -> Option<&'static mut Room> {
    // SAFETY: nothing else writes this CPU's own value while the program runs, which asks for it once.
    maps::ROOM.get_ptr_mut(0).map(|room| unsafe { &mut *room })
}

/// The state of the socket that the host would give the segment to; 0 if there is none.
#[inline(always)]
fn state(ctx: &XdpContext, segment: &Segment) -> u32 {
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
    // SAFETY: the tuple has at least so many bytes, and the socket is released before the program ends.
    unsafe {
        let tuple = (&raw mut tuple).cast::<bpf_sock_tuple>();
        let socket = bpf_skc_lookup_tcp(ctx.as_ptr(), tuple, size, THIS_NAMESPACE, 0);
        if socket.is_null() {
            return 0;
        }
        let state = (&raw const (*socket).state).read_volatile();
        bpf_sk_release(socket.cast());
        state
    }
}

/// Whether it is time for the host to send a cookie itself, so that its listener goes on to take them.
#[inline(always)]
fn is_turn_of_host(segment: &Segment, now_ns: u64) -> bool {
    let listener = Listener::of(segment);
    match maps::LISTENERS.get_ptr_mut(listener) {
        Some(last) => {
            // SAFETY: an aligned word that is never torn; of two CPUs that find it old, both leave a SYN to the host.
            unsafe {
                let is_old = now_ns.saturating_sub(last.read_volatile()) >= LEFT_EVERY_NS;
                if is_old {
                    last.write_volatile(now_ns);
                }
                is_old
            }
        }
        None => {
            // Without room the host is asked again.
            let _ = maps::LISTENERS.insert(listener, now_ns, 0);
            true
        }
    }
}

/// From now on the program that judges hands on what may be an answer.
#[inline(always)]
fn look_for_answers(now_ns: u64) {
    const SECOND_NS: u64 = 1_000_000_000;
    if let Some(until) = maps::CHALLENGED.get_ptr_mut(0) {
        let new = now_ns.saturating_add(ANSWERED_WITHIN_NS);
        // SAFETY: an aligned word that is never torn; of two that are written at a time either will do. Once a second, so that
        // CPUs do not fight for it.
        unsafe {
            if new.saturating_sub(until.read_volatile()) >= SECOND_NS {
                until.write_volatile(new);
            }
        }
    }
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
    let place = frame.place::<N>(offset)?;
    // SAFETY: the verifier has seen that the packet has so many bytes there.
    unsafe { place.write_unaligned(*bytes) };
    Some(())
}

/// Looks whether a segment is the answer to a challenge. It passes in any case: what is no answer is nothing new to the host.
#[inline(always)]
pub fn look_at_answer(ctx: &XdpContext) -> u32 {
    let frame = ContextFrame::new(ctx);
    let Some(Room { segment, .. }) = room() else { return XDP_PASS };
    // A segment of a connection is none. Whether it is one is asked first: most are.
    if segment.read(&frame)
        && state(ctx, segment) == LISTEN
        && is_cookie(segment)
        && let Some(mac) = frame.bytes::<6>(6)
    {
        // SAFETY: the helper takes no arguments and only reads a clock.
        let now_ns = unsafe { bpf_ktime_get_boot_ns() };
        engine::judge_answer(&mut KernelTables, segment, mac, frame.arrival(), now_ns);
    }
    XDP_PASS
}

/// Whether it acknowledges a cookie of the kernel's, and not one of more than two minutes ago.
#[inline(always)]
fn is_cookie(segment: &mut Segment) -> bool {
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
