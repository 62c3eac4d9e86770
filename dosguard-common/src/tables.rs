//! The tables that the engine reads and writes: BPF maps in the kernel, plain memory elsewhere.

use core::borrow::Borrow;

use bytemuck::{Pod, Zeroable};

use crate::address::Address;
use crate::ban::{Ban, Hold};
use crate::claim::Claim;
use crate::config::Config;
use crate::event::{Event, Gate, Kind};
use crate::flood::{Flood, Load};
use crate::key::SourceKey;
use crate::offender::Offender;
use crate::proof::{Proof, Spent};
use crate::reason::{Reason, Tally};
use crate::rule::{Rule, RuleIndex};
use crate::set::Room;
use crate::window::Window;

/// Why an entry could not be added.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refused {
    /// There is one already: another CPU was faster.
    Exists,
    /// The map is full, or too busy to make room.
    Full,
}

/// Room for what the engine works on: the kernel program's stack has none.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct Scratch {
    /// The ban that is there.
    pub old: Ban,
    /// The ban that is to be.
    pub new: Ban,
    /// The address of the packet that is judged, while drops are watched.
    pub address: Address,
}

/// What the engine needs of its surroundings.
pub trait Tables {
    /// A rule as it is handed out: itself, or where it was copied to.
    type Rule: Borrow<Rule>;
    /// The global settings as they are handed out.
    type Config: Borrow<Config>;
    /// Where a source's counters are, or would be.
    type Spot: Copy;

    /// The global settings; none if userspace has not written them yet.
    fn config(&self) -> Option<Self::Config>;
    /// Whether the allow-list covers the address.
    fn is_allowed(&self, address: &Address) -> bool;
    /// Whether the deny-list covers the address.
    fn is_denied(&self, address: &Address) -> bool;
    /// The rule that a port belongs to.
    fn rule_of(&self, port: u16) -> RuleIndex;
    /// A rule; none if that place is empty. It is as it was until the next one is asked for.
    fn rule(&mut self, index: RuleIndex) -> Option<Self::Rule>;

    /// What a source hashes to, for [`Self::spot`], and whether there may be a ban or an offence of it, anywhere. If not, there is
    /// none.
    fn mark(&self, source: &Address) -> (u64, bool);
    /// Lets `look` at a ban, whether it still holds or not, or returns none if there is none.
    fn with_ban<R>(&self, key: &SourceKey, look: impl FnOnce(&Ban) -> R) -> Option<R>;
    /// A ban of the source everywhere that this CPU has met in this tick, if it remembers one.
    #[inline(always)]
    fn met(&self, _source: &Address, _tick: u64) -> Option<Hold> {
        None
    }
    /// It is met now.
    #[inline(always)]
    fn meet(&mut self, _source: &Address, _tick: u64, _hold: Hold) {}
    /// Adds a ban where there is none.
    fn add_ban(&mut self, key: &SourceKey, ban: &Ban) -> Result<(), Refused>;
    /// Claims what one CPU may do: `Exists` for all but one of those that ask.
    fn claim(&mut self, claim: &Claim) -> Result<(), Refused>;
    /// Gives a claim back: it could not be done.
    fn unclaim(&mut self, claim: &Claim);
    /// Puts a ban in the place of an expired one; there is no moment without either.
    fn replace_ban(&mut self, key: &SourceKey, ban: &Ban) -> Result<(), Refused>;
    /// Puts a ban in the place of one that holds; false if that has been removed, or there was no memory.
    fn refresh_ban(&mut self, key: &SourceKey, ban: &Ban) -> bool;
    /// Notes at a ban, if it is there, that its source has given a connection up; see [`Ban::note_ending`].
    fn note_ending(&mut self, key: &SourceKey);
    /// What is remembered of a source.
    fn offender(&self, key: &SourceKey) -> Option<Offender>;
    /// Remembers it; false if there was no room.
    fn remember(&mut self, key: &SourceKey, offender: &Offender) -> bool;

    /// Whether there may be a proof that a source is real, or a connection of it. The sum is that of its mark.
    #[inline(always)]
    fn may_be_proven(&self, _sum: u64) -> bool {
        true
    }
    /// Marks a source of which there is a proof, or a connection, so that it may be so.
    #[inline(always)]
    fn mark_proven(&mut self, _source: &Address) {}
    /// When a source was last seen to be real.
    fn proof(&self, source: &Address) -> Option<Proof>;
    /// Keeps that; false if there was no room.
    fn keep_proof(&mut self, source: &Address, proof: Proof) -> bool;
    /// When a source last had used a rule's limit up by handshakes.
    fn spent(&self, key: &SourceKey) -> Option<Spent>;
    /// Keeps that; false if there was no room.
    fn keep_spent(&mut self, key: &SourceKey, spent: Spent) -> bool;
    /// Lets `work` at this CPU's SYNs to a rule's ports that are not in the sum yet.
    fn with_load<R>(&mut self, rule: RuleIndex, work: impl FnOnce(&mut Load) -> R) -> Option<R>;
    /// Lets `work` at the sum, which other CPUs may be changing.
    fn with_flood<R>(&mut self, rule: RuleIndex, work: impl FnOnce(&mut Flood) -> R) -> Option<R>;

    /// Lets `work` use this CPU's scratch room, in which is what was left there; none if there is none.
    fn with_scratch<R>(&mut self, work: impl FnOnce(&mut Self, &mut Scratch) -> R) -> Option<R>;
    /// The same value, of which the kernel's verifier knows nothing any more; see [`opaque`](crate::opaque::opaque).
    fn opaque(&self, value: u32, unknown: u32) -> u32 {
        crate::opaque::opaque(value, unknown)
    }
    /// How many CPUs there may be.
    fn cpus(&self) -> u32;
    /// Claims a completed handshake; none if it was not claimed before, or so long ago that it [has run out](Claim::has_run_out),
    /// or that could not be kept, otherwise when it was (boot time, nanoseconds).
    fn claim_answer(&mut self, claim: &Claim, now_ns: u64) -> Option<u64>;
    /// Where a source's counters are, or would be; none if there is no table. Asked for early, so that memory that is far away
    /// is on its way meanwhile. The sum is that of the source's mark.
    fn spot(&self, sum: u64, key: &SourceKey) -> Option<Self::Spot>;
    /// Lets `work` at a source's counters, alone: no other CPU reads or writes them meanwhile. A source that has none gets empty
    /// ones, for which the counters of another may have to go. None if there is no room. `work` calls nothing of the kernel's.
    fn with_window<R>(
        &mut self,
        spot: Self::Spot,
        key: &SourceKey,
        now_ns: u64,
        work: impl FnOnce(&mut Window) -> R,
    ) -> Option<(R, Room)>;
    /// Whether a SYN of a source is over the limit and would change no counter: slot, generation and limit are given. It may say
    /// no where that is so: then it is counted as any other.
    fn is_over(&mut self, _spot: Self::Spot, _key: &SourceKey, _now_ns: u64, _asked: [u64; 3]) -> bool {
        false
    }
    /// The same as [`Self::with_window`] where there are counters, and else nothing.
    fn with_present_window(&mut self, spot: Self::Spot, key: &SourceKey, work: impl FnOnce(&mut Window));
    /// Counts a packet of `bytes` bytes under its reason and, if it got that far, its rule.
    fn count(&mut self, reason: Reason, rule: Option<RuleIndex>, bytes: u64);
    /// Until when (boot time, nanoseconds) segments are looked at that may prove their source; 0 for not at all.
    fn answers_until_ns(&self) -> u64;
    /// Has them looked at until then, or longer.
    fn look_for_answers(&mut self, until_ns: u64);
    /// Until when (boot time, nanoseconds) somebody wants to know whose packets are dropped; 0 if nobody does.
    fn drops_watched_until_ns(&self) -> u64;
    /// Keeps the address of the packet that is judged: the kernel program's stack has no room for it.
    fn note_address(&mut self, address: &Address);
    /// Counts a packet that is dropped for the source that the address belongs to that was kept.
    fn count_drop(&mut self);
    /// Counts something that happened beside the verdict.
    fn tally(&mut self, tally: Tally);
    /// Lets `work` at this CPU's gate for a kind of event, or returns none if there is none.
    fn with_gate<R>(&mut self, kind: Kind, work: impl FnOnce(&mut Gate) -> R) -> Option<R>;
    /// Reports an event, an empty one that `fill` fills in where it lies; false if it is lost.
    fn emit(&mut self, fill: impl FnOnce(&mut Event)) -> bool;
}
