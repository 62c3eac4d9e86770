//! Challenges: the program answers a SYN in the host's place, and looks at what comes back.
//!
//! Both programs are reached by a tail call from the one that judges, and begin anew with the packet.

use aya_ebpf::bindings::xdp_action::{XDP_DROP, XDP_PASS, XDP_TX};
use aya_ebpf::helpers::{
    bpf_jiffies64, bpf_ktime_get_boot_ns, bpf_tcp_raw_check_syncookie_ipv4, bpf_tcp_raw_check_syncookie_ipv6,
    bpf_tcp_raw_gen_syncookie_ipv4, bpf_tcp_raw_gen_syncookie_ipv6, bpf_xdp_adjust_tail,
};
use aya_ebpf::programs::XdpContext;
use dosguard_common::address::Address;
use dosguard_common::challenge::{ANSWERED_WITHIN_NS, LEFT_EVERY_NS, Offer, Reply, Room, Segment};
use dosguard_common::clock::Clock as _;
use dosguard_common::engine::{self, Completed};
use dosguard_common::frame::{Frame as _, MAX_OFFSET};
use dosguard_common::reason::Tally;
use dosguard_common::tables::Tables as _;

use crate::clock::KernelClock;
use crate::context::ContextFrame;
use crate::listening::{self, Place};
use crate::opaque::opaque;
use crate::sockets::{Met, met};
use crate::tables::KernelTables;
use crate::{maps, met};

/// The maps, with the counters of completed handshakes.
const fn tables() -> KernelTables<true> {
    KernelTables
}

/// A MAC address with this bit is that of a group (IEEE 802).
const GROUP: u8 = 1;

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
    let has_own_buffers = listener(ctx, &frame, segment, now_ns)?;
    let cookie = cookie(segment).ok_or(Unsent::Dropped)?;
    let offer = Offer::of(segment, host, has_own_buffers);
    reply.fill(segment, offer, cookie, monotonic_ns / 1_000_000, host);
    write(ctx, &frame, segment, reply).ok_or(Unsent::Dropped)
}

/// Looks for the listener that a SYN meets, and whether it has windows of its own. Its answer is looked for from now on.
#[inline(always)]
fn listener(ctx: &XdpContext, frame: &ContextFrame<'_>, syn: &Segment, now_ns: u64) -> Result<bool, Unsent> {
    let place = Place { address: syn.destination(), ifindex: frame.arrival().ifindex };
    let tick = KernelClock.tick().unwrap_or(0);
    let known = listening::met(&place, syn.port(), tick);
    if let Some(listener) = known
        && listener.knows_peers()
        && !may_be_proven(syn)
    {
        return Ok(listener.has_own_buffers());
    }
    let (has_own_buffers, shares_port) = match met(ctx, syn) {
        Met::Listener { takes_cookies: true, has_own_buffers, shares_port, .. } => {
            (has_own_buffers, shares_port)
        }
        // It takes cookies once it has sent one itself. Until then what it is sent costs it as much as without this program.
        Met::Listener { takes_cookies: false, .. } => return Err(Unsent::Left),
        // The host knows best whether an old connection gives way to a new one.
        Met::Closed if is_turn_of_host(now_ns) => return Err(Unsent::Left),
        Met::Request { .. } | Met::Connection | Met::Closed | Met::Other => return Err(Unsent::Dropped),
    };
    if known.is_none() {
        tables().look_for_answers(now_ns.saturating_add(ANSWERED_WITHIN_NS));
        // Of those that share a port another one may be met by the next SYN.
        if let Some(config) = tables().config().filter(|_| !shares_port) {
            listening::meet(&place, syn.port(), config.mask(), [tick, now_ns], has_own_buffers);
        }
    }
    Ok(has_own_buffers)
}

/// Whether there may be a proof of a SYN's source, or a connection.
#[inline(always)]
fn may_be_proven(syn: &Segment) -> bool {
    let Some(config) = tables().config() else { return true };
    let (sum, _) = tables().mark(&config.mask().source(syn.source()));
    tables().may_be_proven(sum)
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
    // The verifier wants to see both bounds, each by itself; that a number is not 0 is none to it before Linux 6.2. The helper refuses
    // what is more than a header.
    let length = opaque(syn.tcp_length() as u32, syn.offset) & 63;
    if length < 20 {
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
    // They are no more than that, which the verifier of Linux 6.1 sees where each is used if they are cut to it, and not if they are compared.
    let (ip, start) = (syn.offset as usize & MAX_OFFSET, syn.tcp_offset() & MAX_OFFSET);
    let length = reply.tcp_length as usize;
    // Both are below the reach of a frame.
    let delta = ((start + length) as i32).wrapping_sub(frame.length() as i32);
    // SAFETY: the context is the kernel's own; all pointers into the packet are made anew below.
    if unsafe { bpf_xdp_adjust_tail(ctx.ctx, delta) } != 0 {
        return None;
    }
    let mac = frame.bytes::<12>(0)?;
    let word = |at: usize| u32::from_ne_bytes([0, 1, 2, 3].map(|byte| mac[(at + byte) % 12]));
    put(frame.place::<12>(0)?, &[word(6), word(10), word(2)]);
    if syn.is_ipv6() {
        put(frame.place::<40>(ip)?, &reply.ip);
    } else {
        put(frame.place::<20>(ip)?, reply.ip.first_chunk::<5>()?);
    }
    // Not one by one: each place is looked at whether the packet has it.
    let [a, b, c, d, e, f, g, h, i, j] = reply.tcp;
    put(frame.place::<24>(start)?, &[a, b, c, d, e, f]);
    if length > 24 {
        put(frame.place::<12>(start + 24)?, &[g, h, i]);
    }
    if length > 36 {
        put(frame.place::<4>(start + 36)?, &[j]);
    }
    Some(())
}

/// Writes words at a place in the packet, which has room for them.
#[inline(always)]
fn put<const BYTES: usize, const WORDS: usize>(place: *mut [u8; BYTES], words: &[u32; WORDS]) {
    const { assert!(BYTES == WORDS * 4) };
    let mut at = 0;
    while at < WORDS {
        put_word(place as usize + at * 4, words[at]);
        at += 1;
    }
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
