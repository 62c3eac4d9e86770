//! The engine's tables as BPF maps.

use aya_ebpf::bindings::{BPF_ANY, BPF_EXIST, BPF_NOEXIST};
use aya_ebpf::helpers::{bpf_spin_lock, bpf_spin_unlock};
use aya_ebpf::maps::lpm_trie::Key;
use dosguard_common::address::Address;
use dosguard_common::ban::{Ban, Hold};
use dosguard_common::claim::Claim;
use dosguard_common::config::Config;
use dosguard_common::event::{Event, Gate, Kind};
use dosguard_common::flood::{Flood, Load};
use dosguard_common::hashing::{Hashing, Spot};
use dosguard_common::key::SourceKey;
use dosguard_common::offender::Offender;
use dosguard_common::proof::{Proof, Spent, look_until_ns};
use dosguard_common::reason::{Place, Reason, Tally};
use dosguard_common::rule::{Rule, RuleIndex};
use dosguard_common::set::{Room, Set};
use dosguard_common::tables::{Refused, Scratch, Tables};
use dosguard_common::window::Window;

use crate::opaque::opaque;
use crate::{maps, marks, met};

const EEXIST: i32 = -17;

/// The pinned maps. Counters are those of SYNs, or of completed handshakes: these are in a map that nobody fills by forging
/// addresses.
pub struct KernelTables<const OF_ANSWERS: bool = false>;

/// A set of a table, locked until it is dropped. Between the two the kernel lets the program call nothing.
struct Locked(*mut Set);

impl Locked {
    #[inline(always)]
    fn new(set: *mut Set) -> Self {
        // SAFETY: the pointer is to a value of a map, whose lock it is; no other one is held.
        unsafe { bpf_spin_lock((&raw mut (*set).lock).cast()) };
        Self(set)
    }

    #[inline(always)]
    fn set(&mut self) -> &mut Set {
        // SAFETY: the pointer is to a value of an array, which stays. Whoever holds the lock is alone with it, but for
        // userspace, which takes it, too, or only reads a copy.
        unsafe { &mut *self.0 }
    }
}

impl Drop for Locked {
    #[inline(always)]
    fn drop(&mut self) {
        // SAFETY: it is held since `new`.
        unsafe { bpf_spin_unlock((&raw mut (*self.0).lock).cast()) };
    }
}

impl<const OF_ANSWERS: bool> KernelTables<OF_ANSWERS> {
    /// The set that a source is in, and its place there.
    #[inline(always)]
    fn set(sum: u64, key: &SourceKey) -> Option<(*mut Set, Spot)> {
        let hashing = maps::HASHING.get(0)?;
        let spot = hashing.spot_by(sum, key, if OF_ANSWERS { hashing.handshakes } else { hashing.syns });
        let set = if OF_ANSWERS {
            maps::HANDSHAKES.get_ptr_mut(spot.set)
        } else {
            maps::SYNS.get_ptr_mut(spot.set)
        };
        Some((set?, spot))
    }
}

fn added(result: Result<(), i32>) -> Result<(), Refused> {
    result.map_err(|error| if error == EEXIST { Refused::Exists } else { Refused::Full })
}

#[inline(always)]
fn bump(place: Place, bytes: u64) {
    let count = match place {
        Place::First(index) => maps::COUNTERS.get_ptr_mut(index),
        Place::More(index) => maps::MORE_COUNTERS.get_ptr_mut(index),
    };
    if let Some(count) = count {
        // SAFETY: the pointer is to this CPU's own value, which nothing else writes while the program runs.
        unsafe {
            (*count).packets += 1;
            (*count).bytes += bytes;
        }
    }
}

/// A function of its own, with a stack of its own: that of the program has no room.
#[inline(never)]
fn count_drop() {
    let (Some(config), Some(scratch)) = (maps::CONFIG.get(0), maps::SCRATCH.get(0)) else { return };
    let source = config.mask().source(scratch.address);
    match maps::DROPS.get_ptr_mut(source) {
        // SAFETY: as in `bump`, or of an entry that is evicted meanwhile: then a packet is counted for another source.
        Some(packets) => unsafe { *packets += 1 },
        // Without room it is not counted; `COUNTERS` has it all the same.
        None => drop(maps::DROPS.insert(source, 1, 0)),
    }
}

impl<const OF_ANSWERS: bool> Tables for KernelTables<OF_ANSWERS> {
    type Rule = &'static Rule;
    type Config = &'static Config;
    type Spot = (*mut Set, Spot);

    #[inline(always)]
    fn config(&self) -> Option<&'static Config> {
        // Userspace may be writing it: then a packet sees some settings of before and some of after.
        maps::CONFIG.get(0).filter(|config| config.is_ready())
    }

    #[inline(always)]
    fn is_allowed(&self, address: &Address) -> bool {
        maps::ALLOW.get(Key::new(128, *address)).is_some()
    }

    #[inline(always)]
    fn is_denied(&self, address: &Address) -> bool {
        maps::DENY.get(Key::new(128, *address)).is_some()
    }

    #[inline(always)]
    fn rule_of(&self, port: u16) -> RuleIndex {
        maps::PORTS.get(u32::from(port)).copied().unwrap_or(RuleIndex::DEFAULT)
    }

    #[inline(always)]
    fn rule(&mut self, index: RuleIndex) -> Option<&'static Rule> {
        const WORDS: usize = size_of::<Rule>() / size_of::<u64>();
        let rule = maps::RULES.get_ptr(u32::from(index.0))?;
        let copy = maps::RULE.get_ptr_mut(0)?;
        // SAFETY: a non-null pointer from the map is to a whole, aligned `Rule`, and so is one to its generation at either
        // end. Userspace may be writing it; see `Rule` for the order of the reads. The copy is this CPU's own. Word by word,
        // because of a copy as a whole the compiler makes one on the stack, too.
        let (last, copy, first) = unsafe {
            let last = rule.byte_add(Rule::GENERATION_AGAIN_OFFSET).cast::<u32>().read_volatile();
            let mut word = 0;
            while word < WORDS {
                let value = rule.cast::<u64>().add(word).read_volatile();
                copy.cast::<u64>().add(word).write_volatile(value);
                word += 1;
            }
            (last, &*copy, rule.cast::<u32>().read_volatile())
        };
        (last == first && copy.is_defined()).then_some(copy)
    }

    #[inline(always)]
    fn mark(&self, source: &Address) -> (u64, bool) {
        let Some(hashing) = maps::HASHING.get(0) else { return (0, true) };
        let sum = hashing.sum(source);
        (sum, marks::counts(hashing, hashing.mark_by(sum)))
    }

    #[inline(always)]
    fn with_ban<R>(&self, key: &SourceKey, look: impl FnOnce(&Ban) -> R) -> Option<R> {
        // SAFETY: an entry that is replaced or removed meanwhile stays mapped until the program ends (RCU). Its memory may
        // be given to another entry before that (Linux 6.1, bpf_mem_alloc): then the ban read may be another source's, for
        // one packet.
        unsafe { maps::BANS.get(key) }.map(look)
    }

    #[inline(always)]
    fn met(&self, source: &Address, tick: u64) -> Option<Hold> {
        met::met(source, tick)
    }

    #[inline(always)]
    fn meet(&mut self, source: &Address, tick: u64, hold: Hold) {
        met::meet(source, tick, hold);
    }

    #[inline(always)]
    fn add_ban(&mut self, key: &SourceKey, ban: &Ban) -> Result<(), Refused> {
        marks::set(key.source_here(), Hashing::mark_by);
        added(maps::BANS.insert(key, ban, u64::from(BPF_NOEXIST)))
    }

    #[inline(always)]
    fn claim(&mut self, claim: &Claim) -> Result<(), Refused> {
        added(maps::CLAIMS.insert(claim, 0, u64::from(BPF_NOEXIST)))
    }

    #[inline(always)]
    fn claim_answer(&mut self, claim: &Claim, now_ns: u64) -> Option<u64> {
        match maps::ANSWERS.insert(claim, now_ns, u64::from(BPF_NOEXIST)) {
            // SAFETY: as for bans; a preallocated entry may be reused meanwhile, and then another's time is read.
            Err(EEXIST) => match unsafe { maps::ANSWERS.get(claim) }.copied() {
                Some(at_ns) if Claim::has_run_out(at_ns, now_ns) => {
                    // Of two CPUs that do so at a time both count it.
                    let _ = maps::ANSWERS.insert(claim, now_ns, u64::from(BPF_ANY));
                    None
                }
                at_ns => at_ns,
            },
            _ => None,
        }
    }

    #[inline(always)]
    fn unclaim(&mut self, claim: &Claim) {
        // If it is gone already, that is what is wanted.
        let _ = maps::CLAIMS.remove(claim);
    }

    #[inline(always)]
    fn replace_ban(&mut self, key: &SourceKey, ban: &Ban) -> Result<(), Refused> {
        marks::set(key.source_here(), Hashing::mark_by);
        added(maps::BANS.insert(key, ban, u64::from(BPF_ANY)))
    }

    #[inline(always)]
    fn refresh_ban(&mut self, key: &SourceKey, ban: &Ban) -> bool {
        maps::BANS.insert(key, ban, u64::from(BPF_EXIST)).is_ok()
    }

    #[inline(always)]
    fn note_ending(&mut self, key: &SourceKey) {
        if let Some(ban) = maps::BANS.get_ptr_mut(key) {
            // SAFETY: as in `with_ban`. The byte that is written has only flags; if it is another source's by now, or if
            // somebody else writes it at the same time, somebody's connections are waited for in vain, or not.
            unsafe { (*ban).note_ending() };
        }
    }

    #[inline(always)]
    fn offender(&self, key: &SourceKey) -> Option<Offender> {
        // SAFETY: as for bans; a preallocated entry may be reused meanwhile, and then an offence is miscounted.
        unsafe { maps::OFFENDERS.get(key) }.copied()
    }

    #[inline(always)]
    fn remember(&mut self, key: &SourceKey, offender: &Offender) -> bool {
        marks::set(key.source_here(), Hashing::mark_by);
        maps::OFFENDERS.insert(key, offender, u64::from(BPF_ANY)).is_ok()
    }

    #[inline(always)]
    fn may_be_proven(&self, sum: u64) -> bool {
        maps::HASHING.get(0).is_none_or(|hashing| marks::counts(hashing, hashing.proof_mark_by(sum)))
    }

    #[inline(always)]
    fn mark_proven(&mut self, source: &Address) {
        marks::set(source, Hashing::proof_mark_by);
    }

    #[inline(always)]
    fn proof(&self, source: &Address) -> Option<Proof> {
        // SAFETY: as for bans; a preallocated entry may be reused meanwhile, and then a source is taken for another.
        unsafe { maps::PROOFS.get(source) }.copied()
    }

    #[inline(always)]
    fn keep_proof(&mut self, source: &Address, proof: Proof) -> bool {
        self.mark_proven(source);
        maps::PROOFS.insert(source, proof, u64::from(BPF_ANY)).is_ok()
    }

    #[inline(always)]
    fn spent(&self, key: &SourceKey) -> Option<Spent> {
        // SAFETY: as of `proof`.
        unsafe { maps::SPENT.get(key) }.copied()
    }

    #[inline(always)]
    fn keep_spent(&mut self, key: &SourceKey, spent: Spent) -> bool {
        maps::SPENT.insert(key, spent, u64::from(BPF_ANY)).is_ok()
    }

    #[inline(always)]
    fn with_load<R>(&mut self, rule: RuleIndex, work: impl FnOnce(&mut Load) -> R) -> Option<R> {
        let load = maps::LOADS.get_ptr_mut(u32::from(rule.0))?;
        // SAFETY: as in `bump`.
        Some(work(unsafe { &mut *load }))
    }

    #[inline(always)]
    fn with_flood<R>(&mut self, rule: RuleIndex, work: impl FnOnce(&mut Flood) -> R) -> Option<R> {
        let flood = maps::FLOODS.get_ptr_mut(u32::from(rule.0))?;
        // SAFETY: other CPUs write it, too: aligned words that are never torn, any of which is valid; of two that are written
        // at a time one may be missed.
        Some(work(unsafe { &mut *flood }))
    }

    #[inline(always)]
    fn with_scratch<R>(&mut self, work: impl FnOnce(&mut Self, &mut Scratch) -> R) -> Option<R> {
        let scratch = maps::SCRATCH.get_ptr_mut(0)?;
        // SAFETY: as in `bump`; the engine does not ask for it again while it has it.
        Some(work(self, unsafe { &mut *scratch }))
    }

    #[inline(always)]
    fn opaque(&self, value: u32, unknown: u32) -> u32 {
        opaque(value, unknown)
    }

    #[inline(always)]
    fn cpus(&self) -> u32 {
        maps::CPUS.load()
    }

    #[inline(always)]
    fn spot(&self, sum: u64, key: &SourceKey) -> Option<Self::Spot> {
        let (set, spot) = Self::set(sum, key)?;
        // Whoever takes the lock waits for all memory that was asked for before, and what is asked for afterwards waits for the
        // lock: so both lines that are most likely needed are asked for now, while the mark is, too. Nobody needs them if this
        // one is challenged like the last.
        if !met::was_challenged() {
            // SAFETY: words of the value that the pointer is to; what they are does not matter.
            unsafe {
                set.byte_add(Set::HEADER_OFFSET).cast::<u32>().read_volatile();
                set.byte_add(spot.likely_offset()).cast::<u32>().read_volatile();
            }
        }
        Some((set, spot))
    }

    #[inline(always)]
    fn with_window<R>(
        &mut self,
        (set, spot): Self::Spot,
        key: &SourceKey,
        now_ns: u64,
        work: impl FnOnce(&mut Window) -> R,
    ) -> Option<(R, Room)> {
        Some(Locked::new(set).set().with(spot, key, now_ns, work))
    }

    #[inline(always)]
    fn is_over(&mut self, (set, spot): Self::Spot, key: &SourceKey, now_ns: u64, asked: [u64; 3]) -> bool {
        // SAFETY: the pointer is to a value of an array, which stays. Others write it meanwhile: whole integers, any of which is
        // valid, and `Set::is_over` sees whether they were of this source. It writes just one that says when something was used.
        unsafe { &mut *set }.is_over(spot, key, now_ns, asked)
    }

    #[inline(always)]
    fn with_present_window(
        &mut self,
        (set, spot): Self::Spot,
        key: &SourceKey,
        work: impl FnOnce(&mut Window),
    ) {
        Locked::new(set).set().with_present(spot, key, work);
    }

    #[inline(always)]
    fn count(&mut self, reason: Reason, rule: Option<RuleIndex>, bytes: u64) {
        bump(reason.place(), bytes);
        let Some(rule) = rule else { return };
        met::note(reason);
        let count = match reason.place_under(rule) {
            Place::First(index) => maps::RULE_COUNTERS.get_ptr_mut(index),
            Place::More(index) => maps::MORE_RULE_COUNTERS.get_ptr_mut(index),
        };
        if let Some(count) = count {
            // SAFETY: as in `bump`.
            unsafe { *count += 1 };
        }
    }

    #[inline(always)]
    fn answers_until_ns(&self) -> u64 {
        maps::CHALLENGED.get(0).copied().unwrap_or(0)
    }

    #[inline(always)]
    fn look_for_answers(&mut self, until_ns: u64) {
        if let Some(until) = maps::CHALLENGED.get_ptr_mut(0) {
            // SAFETY: an aligned word that is never torn; of two that are written at a time either will do, or nearly.
            unsafe {
                if let Some(new) = look_until_ns(until.read_volatile(), until_ns) {
                    until.write_volatile(new);
                }
            }
        }
    }

    #[inline(always)]
    fn drops_watched_until_ns(&self) -> u64 {
        maps::WATCH.get(0).copied().unwrap_or(0)
    }

    #[inline(always)]
    fn note_address(&mut self, address: &Address) {
        if let Some(scratch) = maps::SCRATCH.get_ptr_mut(0) {
            // SAFETY: as in `bump`.
            unsafe { (*scratch).address = *address };
        }
    }

    #[inline(always)]
    fn count_drop(&mut self) {
        count_drop();
    }

    #[inline(always)]
    fn tally(&mut self, tally: Tally) {
        bump(tally.place(), 0);
    }

    #[inline(always)]
    fn with_gate<R>(&mut self, kind: Kind, work: impl FnOnce(&mut Gate) -> R) -> Option<R> {
        let gate = maps::GATES.get_ptr_mut(kind.gate()?)?;
        // SAFETY: as in `bump`.
        Some(work(unsafe { &mut *gate }))
    }

    #[inline(always)]
    fn emit(&mut self, fill: impl FnOnce(&mut Event)) -> bool {
        let Some(mut record) = maps::EVENTS.reserve::<Event>(0) else { return false };
        let event = record.as_mut_ptr();
        let mut word = 0;
        while word < size_of::<Event>() / size_of::<u64>() {
            // SAFETY: the record is of an event's size, which is whole words, and aligned to them. Word by word, because
            // of a write as a whole the compiler makes a call, which takes 32 bytes of the stack.
            unsafe { event.cast::<u64>().add(word).write_volatile(0) };
            word += 1;
        }
        // SAFETY: it is all zeroes now, which is `Event::EMPTY`.
        fill(unsafe { &mut *event });
        record.submit(0);
        true
    }
}
