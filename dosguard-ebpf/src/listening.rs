//! Listeners that take cookies: one that a CPU has met in this tick is not looked up again for each SYN of a flood.
//!
//! Whom a SYN meets depends on where it comes from, too: on a connection that its source has, or had. So a listener stands for
//! what a SYN meets only where its source can have none: it has no mark of a proof, and segments from all sources were looked
//! at, each of which leaves one, for as long as a closed connection is remembered.

use core::hint::black_box;

use aya_ebpf::bindings::BPF_ANY;
use aya_ebpf::macros::map;
use aya_ebpf::maps::{LruHashMap, PerCpuArray};
use dosguard_common::address::{Address, SourceMask};
use dosguard_common::challenge::{ANSWERED_WITHIN_NS, CLOSED_WITHIN_NS};

/// Where SYNs go to.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct Place {
    /// The host's address.
    pub address: Address,
    /// The interface that they come in by.
    pub ifindex: u32,
}

/// How many listeners a CPU keeps in mind, by the last bits of their ports.
const MOST: u32 = 16;

/// What a CPU has met last.
#[repr(C)]
struct Met {
    /// As of a ban: in another tick it is looked up anew.
    tick: u64,
    place: Place,
    port: u16,
    listener: Listener,
}

/// A listener that takes cookies.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct Listener {
    /// Its windows are not those of other listeners.
    pub has_own_buffers: bool,
    /// All who have a connection, or had one lately, are marked.
    pub knows_peers: bool,
}

/// Of no meaning to anybody else, and not pinned: another program begins with none.
#[map]
static LISTENING: PerCpuArray<Met> = PerCpuArray::with_max_entries(MOST, 0);

/// Segments that come to a place, and are looked at.
#[repr(C)]
struct LookedAt {
    /// Since when, in nanoseconds of boot time.
    since_ns: u64,
    /// Until when at least.
    until_ns: u64,
    /// What turns addresses into sources, and so into marks.
    mask: SourceMask,
}

/// As `LISTENING`, but of all CPUs.
#[map]
static LOOKED_AT: LruHashMap<Place, LookedAt> = LruHashMap::with_max_entries(1_024, 0);

/// The listener that was met at this place and port, if it was met last and in this tick.
#[inline(always)]
pub fn met(place: &Place, port: u16, tick: u64) -> Option<Listener> {
    let met = LISTENING.get(u32::from(port) % MOST)?;
    let is_same = is_same(place, &met.place) && met.port == port;
    (met.tick == tick && is_same).then_some(met.listener)
}

#[inline(always)]
fn is_same(one: &Place, other: &Place) -> bool {
    let ([a, b, c, d], [e, f, g, h]) = (one.address.words(), other.address.words());
    (a ^ e) | (b ^ f) | (c ^ g) | (d ^ h) | (one.ifindex ^ other.ifindex) == 0
}

/// One is met now. Segments are looked at from now on: see `ANSWERED_WITHIN_NS`.
#[inline(always)]
pub fn meet(place: &Place, port: u16, mask: &SourceMask, [tick, now_ns]: [u64; 2], has_own_buffers: bool) {
    let knows_peers = looked_at_for(place, mask, now_ns) >= CLOSED_WITHIN_NS;
    if let Some(met) = LISTENING.get_ptr_mut(u32::from(port) % MOST) {
        // SAFETY: the pointer is to this CPU's own value. Where a program may be interrupted by another one on the same CPU
        // (PREEMPT_RT), that one finds no tick that is now, or the whole of it.
        unsafe {
            (&raw mut (*met).tick).write_volatile(0);
            black_box(());
            (*met).place = *place;
            (*met).port = port;
            (*met).listener = Listener { has_own_buffers, knows_peers };
            black_box(());
            (&raw mut (*met).tick).write_volatile(tick);
        }
    }
}

/// For how long segments are looked at without a break, in nanoseconds.
#[inline(always)]
fn looked_at_for(place: &Place, mask: &SourceMask, now_ns: u64) -> u64 {
    let until_ns = now_ns.saturating_add(ANSWERED_WITHIN_NS);
    if let Some(looked_at) = LOOKED_AT.get_ptr_mut(place) {
        // SAFETY: aligned words that are never torn. Other CPUs write them, too, and much the same. An entry that is evicted
        // meanwhile may be given to another place, which then is looked at for as long as this one, for a tick.
        unsafe {
            let [since, until] = [&raw mut (*looked_at).since_ns, &raw mut (*looked_at).until_ns];
            if until.read_volatile() >= now_ns && (*looked_at).mask.is_same(mask) {
                until.write_volatile(until_ns);
                return now_ns.saturating_sub(since.read_volatile());
            }
        }
    }
    // Without room it is as if they were looked at since now.
    let _ = LOOKED_AT.insert(place, LookedAt { since_ns: now_ns, until_ns, mask: *mask }, u64::from(BPF_ANY));
    0
}
