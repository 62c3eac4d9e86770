//! The tables that the engine reads and writes: BPF maps in the kernel, plain memory elsewhere.

use bytemuck::{Pod, Zeroable};

use crate::address::Address;
use crate::ban::{Ban, BanKey, Claim, Offender};
use crate::config::Config;
use crate::event::Event;
use crate::reason::{Reason, Tally};
use crate::rule::{Rule, RuleIndex};
use crate::window::Window;

/// Key of `SYNS`: a source under a rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Pod, Zeroable)]
#[repr(C)]
pub struct SynsKey {
    source: Address,
    rule: u32,
}

const _: () = assert!(size_of::<SynsKey>() == 20);

impl SynsKey {
    /// The counters of `source` under `rule`.
    #[inline(always)]
    pub const fn new(source: Address, rule: RuleIndex) -> Self {
        Self { source, rule: rule.0 as u32 }
    }
}

/// Why an entry could not be added.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refused {
    /// There is one already: another CPU was faster.
    Exists,
    /// The map is full, or too busy to make room.
    Full,
}

/// What the engine needs of its surroundings.
pub trait Tables {
    /// The global settings; none if userspace has not written them yet.
    fn config(&self) -> Option<Config>;
    /// Whether the allow-list covers the address.
    fn is_allowed(&self, address: &Address) -> bool;
    /// The rule that a port belongs to.
    fn rule_of(&self, port: u16) -> RuleIndex;
    /// A rule; none if that place is empty.
    fn rule(&self, index: RuleIndex) -> Option<Rule>;

    /// A ban, whether it still holds or not.
    fn ban(&self, key: &BanKey) -> Option<Ban>;
    /// Adds a ban where there is none.
    fn add_ban(&mut self, key: &BanKey, ban: &Ban) -> Result<(), Refused>;
    /// Whether this CPU may replace an expired ban; true for one of those that ask.
    fn claim(&mut self, claim: &Claim) -> bool;
    /// Puts a ban in the place of an expired one; there is no moment without either.
    fn replace_ban(&mut self, key: &BanKey, ban: &Ban) -> Result<(), Refused>;
    /// What is remembered of a source.
    fn offender(&self, source: &Address) -> Option<Offender>;
    /// Remembers it; false if there was no room.
    fn remember(&mut self, source: &Address, offender: &Offender) -> bool;

    /// How many CPUs may count.
    fn cpus(&self) -> u32;
    /// Whether other CPUs' counters can be seen.
    fn sees_peers(&self) -> bool;
    /// Lets `work` at this CPU's counters, or returns none if there are none.
    fn with_window<R>(&mut self, key: &SynsKey, work: impl FnOnce(&mut Window) -> R) -> Option<R>;
    /// Shows every other CPU's counters to `look`, which may mark them with [`Window::watch`] and nothing else. What this
    /// CPU counted before is visible to the others before the first of them is looked at: of two that count and look at
    /// once, at least one sees the other.
    fn for_each_peer(&mut self, key: &SynsKey, look: impl FnMut(&mut Window));
    /// Adds counters for a source that has none on any CPU: `window` for this one, zeroes for the others.
    fn add_window(&mut self, key: &SynsKey, window: &Window) -> Result<(), Refused>;
    /// Counts a packet of `bytes` bytes under its reason and, if it got that far, its rule.
    fn count(&mut self, reason: Reason, rule: Option<RuleIndex>, bytes: u64);
    /// Counts something that happened beside the verdict.
    fn tally(&mut self, tally: Tally);
    /// Reports an event; what cannot be reported is counted as [`Tally::EventLost`].
    fn emit(&mut self, event: &Event);
}
