//! Tables in plain memory: for tests, and for judging captured packets.

mod prefixes;
mod store;

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};

pub use self::prefixes::Prefixes;
use self::store::Claims;
pub use self::store::{Ports, RuleCounters, Rules, Windows};
use crate::abi;
use crate::address::Address;
use crate::ban::Ban;
use crate::claim::Claim;
use crate::config::Config;
use crate::event::{Cause, Event, Gate, Kind};
use crate::flood::{Flood, Load};
use crate::key::SourceKey;
use crate::offender::Offender;
use crate::proof::{Proof, Spent, look_until_ns};
use crate::reason::{COUNTERS, Count, Reason, Tally};
use crate::rule::{Rule, RuleIndex};
use crate::set::Room;
use crate::tables::{Refused, Scratch, Tables};
use crate::window::Window;

/// Tables in memory, as seen from one of several CPUs.
#[derive(Clone, Debug)]
pub struct MemoryTables {
    /// The global settings.
    pub config: Option<Config>,
    /// Allowed prefixes.
    pub allow: Prefixes,
    /// Denied prefixes.
    pub deny: Prefixes,
    /// The rule of each port.
    pub ports: Ports,
    /// The rules.
    pub rules: Rules,
    /// Bans, expired ones included until [`Self::pass_time`] removes them.
    pub bans: HashMap<SourceKey, Ban>,
    /// How many bans there may be.
    pub ban_capacity: usize,
    /// How many offenders there may be.
    pub offender_capacity: usize,
    /// Offenders.
    pub offenders: HashMap<SourceKey, Offender>,
    /// How many sources may have counters.
    pub source_capacity: usize,
    /// Counters of each source.
    pub windows: Windows,
    /// The CPU whose turn it is.
    pub cpu: usize,
    /// How many CPUs there are.
    pub cpus: usize,
    /// Packets and bytes per reason, occurrences per tally.
    pub counters: Vec<Count>,
    /// Packets per rule and reason.
    pub rule_counters: RuleCounters,
    /// How many events there may be.
    pub event_capacity: usize,
    /// What was reported, in order.
    pub events: Vec<Event>,
    /// How many proofs there may be.
    pub proof_capacity: usize,
    /// Proofs that sources are real.
    pub proofs: HashMap<Address, Proof>,
    /// When sources last had used a rule's limit up by handshakes.
    pub spent: HashMap<SourceKey, Spent>,
    /// The SYNs to each rule's ports, and floods.
    pub floods: HashMap<RuleIndex, Flood>,
    loads: HashMap<(usize, RuleIndex), Load>,
    /// Until when answers to challenges are looked for; 0 for not at all.
    pub answers_until_ns: u64,
    /// Until when drops are counted for each source; 0 for not at all.
    pub drops_watched_until_ns: u64,
    /// Packets of each source that were dropped meanwhile.
    pub drops: HashMap<Address, u64>,
    noted: Address,
    /// Claims that were made lately.
    claims: Claims,
    /// Completed handshakes that were claimed, and when.
    pub(crate) answers: HashMap<Claim, u64>,
    /// The gates for events, one for each CPU and kind.
    gates: Vec<[Gate; Kind::GATED as usize]>,
    /// When bans end, the earliest first. One that ends later than it once should is met too early.
    ends: BinaryHeap<Reverse<(u64, SourceKey)>>,
    /// The shortest time that counters had been idle when they were forgotten for want of room.
    forgotten_idle_ns: Option<u64>,
}

impl MemoryTables {
    /// Empty tables for so many CPUs, with these settings and rules. The first rule is `default`.
    pub fn new(cpus: usize, config: Config, rules: &[Rule]) -> Self {
        let mut table = Rules::default();
        (0..=u8::MAX).zip(rules).for_each(|(index, rule)| table.insert(RuleIndex(index), *rule));
        Self {
            config: Some(config),
            allow: Prefixes::default(),
            deny: Prefixes::default(),
            ports: Ports::default(),
            rules: table,
            bans: HashMap::new(),
            ban_capacity: usize::MAX,
            offender_capacity: usize::MAX,
            offenders: HashMap::new(),
            source_capacity: usize::MAX,
            windows: Windows::default(),
            cpu: 0,
            cpus: cpus.max(1),
            counters: vec![Count::default(); COUNTERS as usize],
            rule_counters: RuleCounters::default(),
            event_capacity: usize::MAX,
            events: Vec::new(),
            proof_capacity: usize::MAX,
            proofs: HashMap::new(),
            spent: HashMap::new(),
            floods: HashMap::new(),
            loads: HashMap::new(),
            answers_until_ns: 0,
            drops_watched_until_ns: 0,
            drops: HashMap::new(),
            noted: Address::UNSPECIFIED,
            claims: Claims::default(),
            answers: HashMap::new(),
            gates: vec![Default::default(); cpus.max(1)],
            ends: BinaryHeap::new(),
            forgotten_idle_ns: None,
        }
    }

    /// Does what happens beside the packets up to `now_ns`: bans that have ended by then are removed and reported, each
    /// at its own end, and full tables forget what was not used for the longest time, as the kernel's LRU maps do.
    ///
    /// Nothing but room depends on how often it is called; before each packet is cheap.
    #[inline]
    pub fn pass_time(&mut self, now_ns: u64) {
        if self.ends.peek().is_some_and(|Reverse((end_ns, _))| *end_ns <= now_ns) {
            self.end_bans(now_ns);
        }
        if let Some(at_ns) = self.windows.make_room(self.source_capacity, now_ns) {
            let idle_ns = now_ns.saturating_sub(at_ns);
            self.forgotten_idle_ns = Some(self.forgotten_idle_ns.map_or(idle_ns, |least| least.min(idle_ns)));
        }
        if self.offenders.len() >= self.offender_capacity {
            store::forget_oldest(&mut self.offenders, |offender| offender.last_until_ns);
        }
        if self.proofs.len() >= self.proof_capacity {
            store::forget_oldest(&mut self.proofs, |proof| proof.at_ns);
        }
    }

    fn end_bans(&mut self, now_ns: u64) {
        while let Some(&Reverse((end_ns, key))) = self.ends.peek()
            && end_ns <= now_ns
        {
            self.ends.pop();
            match self.bans.get(&key) {
                Some(ban) if ban.is_active(now_ns) => self.ends.push(Reverse((ban.until_ns, key))),
                Some(ban) => {
                    self.events.push(Event::of_ban(Kind::Unban, &key, ban, &Cause::default(), ban.until_ns));
                    self.bans.remove(&key);
                }
                None => {}
            }
        }
    }

    /// The shortest time, in nanoseconds, that counters had been idle when they were forgotten for want of room; none if
    /// none were. If that is no shorter than the longest window, no decision would have been another.
    pub fn forgotten_idle_ns(&self) -> Option<u64> {
        self.forgotten_idle_ns
    }

    /// Packets counted under a reason.
    pub fn packets(&self, reason: Reason) -> u64 {
        self.counters.get(reason.index() as usize).map_or(0, |count| count.packets)
    }

    /// Occurrences counted under a tally.
    pub fn tallied(&self, tally: Tally) -> u64 {
        self.counters.get(tally.index() as usize).map_or(0, |count| count.packets)
    }

    fn bump(&mut self, index: u32, bytes: u64) {
        if let Some(count) = self.counters.get_mut(index as usize) {
            count.packets += 1;
            count.bytes += bytes;
        }
    }
}

impl Tables for MemoryTables {
    type Rule = Rule;
    type Config = Config;
    type Spot = ();

    fn config(&self) -> Option<Config> {
        self.config.filter(Config::is_ready)
    }

    fn is_allowed(&self, address: &Address) -> bool {
        self.allow.contains(address)
    }

    fn is_denied(&self, address: &Address) -> bool {
        self.deny.contains(address)
    }

    fn rule_of(&self, port: u16) -> RuleIndex {
        self.ports.rule_of(port)
    }

    fn rule(&mut self, index: RuleIndex) -> Option<Rule> {
        self.rules.get(index).copied()
    }

    fn mark(&self, _source: &Address) -> (u64, bool) {
        (0, true)
    }

    fn with_ban<R>(&self, key: &SourceKey, look: impl FnOnce(&Ban) -> R) -> Option<R> {
        self.bans.get(key).map(look)
    }

    fn add_ban(&mut self, key: &SourceKey, ban: &Ban) -> Result<(), Refused> {
        if self.bans.contains_key(key) {
            return Err(Refused::Exists);
        }
        if self.bans.len() >= self.ban_capacity {
            return Err(Refused::Full);
        }
        self.replace_ban(key, ban)
    }

    fn claim(&mut self, claim: &Claim) -> Result<(), Refused> {
        if self.claims.insert(*claim) { Ok(()) } else { Err(Refused::Exists) }
    }

    fn claim_answer(&mut self, claim: &Claim, now_ns: u64) -> Option<u64> {
        if let Some(at_ns) = self.answers.get(claim).filter(|at_ns| !Claim::has_run_out(**at_ns, now_ns)) {
            return Some(*at_ns);
        }
        if self.answers.len() >= abi::ANSWERS.entries as usize {
            store::forget_oldest(&mut self.answers, |at_ns| *at_ns);
        }
        self.answers.insert(*claim, now_ns);
        None
    }

    fn unclaim(&mut self, claim: &Claim) {
        self.claims.remove(claim);
    }

    fn replace_ban(&mut self, key: &SourceKey, ban: &Ban) -> Result<(), Refused> {
        // One that ends later than the ban that was there is met at that one's end.
        if self.bans.insert(*key, *ban).is_none_or(|old| old.until_ns > ban.until_ns) {
            self.ends.push(Reverse((ban.until_ns, *key)));
        }
        Ok(())
    }

    fn refresh_ban(&mut self, key: &SourceKey, ban: &Ban) -> bool {
        self.bans.get_mut(key).map(|old| *old = *ban).is_some()
    }

    fn note_ending(&mut self, key: &SourceKey) {
        if let Some(ban) = self.bans.get_mut(key) {
            ban.note_ending();
        }
    }

    fn offender(&self, key: &SourceKey) -> Option<Offender> {
        self.offenders.get(key).copied()
    }

    fn remember(&mut self, key: &SourceKey, offender: &Offender) -> bool {
        let room = self.offenders.contains_key(key) || self.offenders.len() < self.offender_capacity;
        if room {
            self.offenders.insert(*key, *offender);
        }
        room
    }

    fn proof(&self, source: &Address) -> Option<Proof> {
        self.proofs.get(source).copied()
    }

    fn keep_proof(&mut self, source: &Address, proof: Proof) -> bool {
        let room = self.proofs.contains_key(source) || self.proofs.len() < self.proof_capacity;
        if room {
            self.proofs.insert(*source, proof);
        }
        room
    }

    fn spent(&self, key: &SourceKey) -> Option<Spent> {
        self.spent.get(key).copied()
    }

    fn keep_spent(&mut self, key: &SourceKey, spent: Spent) -> bool {
        if self.spent.len() >= self.proof_capacity {
            store::forget_oldest(&mut self.spent, |spent| spent.at_ns);
        }
        self.spent.insert(*key, spent);
        true
    }

    fn with_load<R>(&mut self, rule: RuleIndex, work: impl FnOnce(&mut Load) -> R) -> Option<R> {
        Some(work(self.loads.entry((self.cpu, rule)).or_default()))
    }

    fn with_flood<R>(&mut self, rule: RuleIndex, work: impl FnOnce(&mut Flood) -> R) -> Option<R> {
        Some(work(self.floods.entry(rule).or_default()))
    }

    fn with_scratch<R>(&mut self, work: impl FnOnce(&mut Self, &mut Scratch) -> R) -> Option<R> {
        Some(work(self, &mut bytemuck::Zeroable::zeroed()))
    }

    fn cpus(&self) -> u32 {
        u32::try_from(self.cpus).unwrap_or(u32::MAX)
    }

    fn spot(&self, _sum: u64, _key: &SourceKey) -> Option<()> {
        Some(())
    }

    fn with_window<R>(
        &mut self,
        (): (),
        key: &SourceKey,
        _now_ns: u64,
        work: impl FnOnce(&mut Window) -> R,
    ) -> Option<(R, Room)> {
        if let Some(window) = self.windows.get_mut(key) {
            return Some((work(window), Room::Had));
        }
        if self.windows.len() >= self.source_capacity {
            return None;
        }
        Some((work(self.windows.add(key)), Room::Free))
    }

    fn with_present_window(&mut self, (): (), key: &SourceKey, work: impl FnOnce(&mut Window)) {
        self.windows.get_mut(key).map(work);
    }

    fn count(&mut self, reason: Reason, rule: Option<RuleIndex>, bytes: u64) {
        self.bump(reason.index(), bytes);
        if let Some(rule) = rule {
            self.rule_counters.bump(rule, reason);
        }
    }

    fn answers_until_ns(&self) -> u64 {
        self.answers_until_ns
    }

    fn look_for_answers(&mut self, until_ns: u64) {
        if let Some(new) = look_until_ns(self.answers_until_ns, until_ns) {
            self.answers_until_ns = new;
        }
    }

    fn drops_watched_until_ns(&self) -> u64 {
        self.drops_watched_until_ns
    }

    fn note_address(&mut self, address: &Address) {
        self.noted = *address;
    }

    fn count_drop(&mut self) {
        if let Some(config) = &self.config {
            *self.drops.entry(config.mask().source(self.noted)).or_default() += 1;
        }
    }

    fn tally(&mut self, tally: Tally) {
        self.bump(tally.index(), 0);
    }

    fn with_gate<R>(&mut self, kind: Kind, work: impl FnOnce(&mut Gate) -> R) -> Option<R> {
        self.gates.get_mut(self.cpu)?.get_mut(kind.gate()? as usize).map(work)
    }

    fn emit(&mut self, fill: impl FnOnce(&mut Event)) -> bool {
        let room = self.events.len() < self.event_capacity;
        if room {
            let mut event = Event::EMPTY;
            fill(&mut event);
            self.events.push(event);
        }
        room
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::address::SourceMask;
    use crate::rule::Scope;

    fn tables() -> MemoryTables {
        MemoryTables::new(1, Config::new(SourceMask::new(32, 64)), &[])
    }

    #[test]
    fn bans_end_at_their_own_time_and_in_order() {
        let mut tables = tables();
        let key = |i| SourceKey::everywhere(Address::from_ipv4([192, 0, 2, i]));
        let ban = |until_ns| Ban::by_admin(Scope::All, RuleIndex::DEFAULT, 1, until_ns, "");
        for (i, until_ns) in [(1, 30), (2, 10), (3, 20)] {
            tables.add_ban(&key(i), &ban(until_ns)).unwrap();
        }
        // Prolonged after it was added: met at 10, it goes on to 40.
        tables.replace_ban(&key(2), &ban(40)).unwrap();
        tables.pass_time(9);
        assert!(tables.events.is_empty());
        tables.pass_time(35);
        let ended: Vec<_> = tables.events.iter().map(|event| (event.at_ns(), event.source())).collect();
        assert_eq!(ended, [(20, key(3).source()), (30, key(1).source())]);
        assert_eq!(tables.bans.keys().collect::<Vec<_>>(), [&key(2)]);
        tables.pass_time(1_000);
        assert_eq!((tables.events.len(), tables.bans.len()), (3, 0), "each once");
    }

    #[test]
    fn full_tables_forget_the_oldest() {
        let mut tables = tables();
        (tables.source_capacity, tables.offender_capacity, tables.proof_capacity) = (16, 16, 16);
        for i in 0..100_u8 {
            tables.pass_time(i.into());
            let source = Address::from_ipv4([192, 0, 2, i]);
            tables.with_window((), &SourceKey::for_rule(source, RuleIndex::DEFAULT), 0, |_| ()).unwrap();
            let ban = Ban::by_admin(Scope::All, RuleIndex::DEFAULT, 0, i.into(), "");
            assert!(tables.remember(&SourceKey::everywhere(source), &Offender::default().after(&ban)));
            assert!(tables.keep_proof(&source, Proof { at_ns: i.into() }));
        }
        let last = Address::from_ipv4([192, 0, 2, 99]);
        assert!(tables.proofs.len() <= 16 && tables.proofs.contains_key(&last));
        assert!(tables.windows.len() <= 16 && tables.offenders.len() <= 16);
        assert!(tables.offenders.contains_key(&SourceKey::everywhere(last)));
        assert_eq!(tables.forgotten_idle_ns(), Some(8));
    }
}
