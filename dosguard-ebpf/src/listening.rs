//! Listeners that take cookies: one that a CPU has met in this tick is not looked up again for each SYN of a flood.
//!
//! Whom a SYN meets depends on where it comes from, too: on a connection that its source has, or had. So a listener stands for
//! what a SYN meets only where its source has no mark of a proof, and whoever has a connection has a mark: userspace marks them now
//! and then while something is challenged ([`PeersMarked`](dosguard_common::mark::PeersMarked)), and whoever makes one later does so itself, since all segments are
//! looked at meanwhile.

use core::hint::black_box;

use aya_ebpf::bindings::BPF_ANY;
use aya_ebpf::macros::map;
use aya_ebpf::maps::{LruHashMap, PerCpuArray};
use dosguard_common::abi;
use dosguard_common::address::{Address, SourceMask};
use dosguard_common::challenge::ANSWERED_WITHIN_NS;

use crate::maps;

/// Where SYNs go to.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct Place {
    /// The host's address.
    pub address: Address,
    /// The interface that they come in by.
    pub ifindex: u32,
}

/// How many listeners a CPU keeps in mind.
const MOST: u32 = 64;

/// A listener that a CPU has met.
#[repr(C)]
struct Met {
    /// As of a ban: in another tick it is looked up anew.
    tick: u64,
    place: Place,
    port: u16,
    listener: Listener,
}

/// A listener that takes cookies, and does not share its port with others.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct Listener {
    has_own_buffers: u8,
    knows_peers: u8,
}

impl Listener {
    /// Whether its windows are not those of other listeners.
    #[inline(always)]
    pub const fn has_own_buffers(self) -> bool {
        self.has_own_buffers != 0
    }

    /// Whether it stands for what a SYN meets whose source has no mark.
    #[inline(always)]
    pub const fn knows_peers(self) -> bool {
        self.knows_peers != 0
    }
}

/// Of no meaning to anybody else, and not pinned: another program begins with none.
#[map]
static LISTENING: PerCpuArray<Met> = PerCpuArray::with_max_entries(MOST, 0);

/// All segments that come to a place are looked at.
#[repr(C)]
struct LookedAt {
    /// Since when, in nanoseconds of boot time.
    since_ns: u64,
    /// Until when something must be challenged again at least, so that there is no break.
    until_ns: u64,
    /// What turns addresses into sources, and so into marks.
    mask: SourceMask,
}

const _: () = assert!(size_of::<Place>() == 20 && size_of::<Met>() == 32 && size_of::<LookedAt>() == 48);

/// As `LISTENING`, but of all CPUs.
#[map]
static LOOKED_AT: LruHashMap<Place, LookedAt> = LruHashMap::with_max_entries(abi::HOST.entries, 0);

/// How long a break may be in what is challenged. By far shorter than segments are looked at after a challenge
/// (`ANSWERED_WITHIN_NS`), and attaching to an interface makes marks be made anew, so that this is for those who take the program
/// away and put it back by other means.
const BREAK_NS: u64 = 60_000_000_000;
const _: () = assert!(BREAK_NS < ANSWERED_WITHIN_NS);

/// Where a listener is kept: those of neighbouring ports are not in each other's way, and of two addresses rarely.
#[inline(always)]
fn slot(place: &Place, port: u16) -> u32 {
    let [a, b, c, d] = place.address.words();
    let folded = a ^ b ^ c ^ d;
    let folded = folded ^ (folded >> 16);
    (folded ^ (folded >> 8)).wrapping_add(port.into()) % MOST
}

/// The listener that was met at this place and port in this tick.
#[inline(always)]
pub fn met(place: &Place, port: u16, tick: u64) -> Option<Listener> {
    let met = LISTENING.get(slot(place, port))?;
    let is_same = is_same(place, &met.place) && met.port == port;
    (met.tick == tick && is_same).then_some(met.listener)
}

#[inline(always)]
fn is_same(one: &Place, other: &Place) -> bool {
    let ([a, b, c, d], [e, f, g, h]) = (one.address.words(), other.address.words());
    (a ^ e) | (b ^ f) | (c ^ g) | (d ^ h) | (one.ifindex ^ other.ifindex) == 0
}

/// One is met now. Segments are looked at from now on: see `ANSWERED_WITHIN_NS`. Of two that have one slot the first one keeps it
/// until the tick is over, and the other one may be looked for each time.
#[inline(always)]
pub fn meet(place: &Place, port: u16, mask: &SourceMask, [tick, now_ns]: [u64; 2], has_own_buffers: bool) {
    let Some(met) = LISTENING.get_ptr_mut(slot(place, port)) else { return };
    // SAFETY: the pointer is to this CPU's own value. Where a program may be interrupted by another one on the same CPU
    // (PREEMPT_RT), that one finds no tick that is now, or the whole of it.
    unsafe {
        if (&raw const (*met).tick).read_volatile() == tick {
            return;
        }
        let since_ns = look_at(place, mask, now_ns);
        let knows_peers = maps::HASHING.get(0).is_some_and(|hashing| hashing.peers.covers(since_ns, now_ns));
        (&raw mut (*met).tick).write_volatile(0);
        black_box(());
        (*met).place = *place;
        (*met).port = port;
        (*met).listener =
            Listener { has_own_buffers: has_own_buffers.into(), knows_peers: knows_peers.into() };
        black_box(());
        (&raw mut (*met).tick).write_volatile(tick);
    }
}

/// The program looks at segments that come to a place. Returns since when it has without a break, in nanoseconds of boot time.
#[inline(always)]
fn look_at(place: &Place, mask: &SourceMask, now_ns: u64) -> u64 {
    let until_ns = now_ns.saturating_add(BREAK_NS);
    if let Some(looked_at) = LOOKED_AT.get_ptr_mut(place) {
        // SAFETY: aligned words that are never torn. Other CPUs write them, too, and much the same. An entry that is evicted
        // meanwhile may be given to another place, which then is looked at since then, for a tick.
        unsafe {
            let [since, until] = [&raw mut (*looked_at).since_ns, &raw mut (*looked_at).until_ns];
            let until_before = until.read_volatile();
            if until_before >= now_ns && (*looked_at).mask.is_same(mask) {
                // Not by each CPU in each tick, so that they do not fight for it.
                if until_ns.saturating_sub(until_before) >= BREAK_NS / 4 {
                    until.write_volatile(until_ns);
                }
                return since.read_volatile();
            }
        }
    }
    // Without room it is as if they were looked at since now.
    let _ = LOOKED_AT.insert(place, LookedAt { since_ns: now_ns, until_ns, mask: *mask }, u64::from(BPF_ANY));
    now_ns
}
