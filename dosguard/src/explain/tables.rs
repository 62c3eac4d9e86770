//! The live maps as the engine's tables: read where they are, written only in memory.

use std::cell::RefCell;
use std::collections::HashMap;

use bytemuck::Zeroable;
use dosguard_common::address::Address;
use dosguard_common::ban::Ban;
use dosguard_common::claim::Claim;
use dosguard_common::config::Config;
use dosguard_common::engine;
use dosguard_common::event::{Event, Gate, Kind};
use dosguard_common::flood::{Flood, Load};
use dosguard_common::key::SourceKey;
use dosguard_common::offender::Offender;
use dosguard_common::proof::{Proof, Spent};
use dosguard_common::reason::{Reason, Tally};
use dosguard_common::rule::{Rule, RuleIndex};
use dosguard_common::set::Room;
use dosguard_common::tables::{Refused, Scratch, Tables};
use dosguard_common::window::Window;

use super::{Standing, Step};
use crate::config::cidr::Cidr;
use crate::datapath::{Error, List, Maps};

/// The live maps, for one SYN. Each thing is read once; what was read or written is what is there from then on.
pub(super) struct LiveTables<'a> {
    maps: &'a Maps,
    config: Config,
    /// The address before the mask.
    address: Address,
    now_ns: u64,
    cpus: u32,
    seen: RefCell<Seen>,
    windows: HashMap<SourceKey, Option<Window>>,
    events: Vec<Event>,
}

#[derive(Default)]
struct Seen {
    steps: Vec<Step>,
    bans: HashMap<SourceKey, Option<Ban>>,
    offenders: HashMap<SourceKey, Option<Offender>>,
    /// The first thing that could not be read. What the engine decides then is of no use.
    error: Option<Error>,
}

impl Seen {
    fn read<T: Default>(&mut self, read: Result<T, Error>) -> T {
        read.unwrap_or_else(|error| {
            self.error.get_or_insert(error);
            T::default()
        })
    }
}

impl<'a> LiveTables<'a> {
    pub(super) fn new(maps: &'a Maps, address: Address, now_ns: u64) -> Result<Self, Error> {
        Ok(Self {
            maps,
            // Whether an event would be reported or suppressed is another question.
            config: maps.config()?.with_events_rate(u32::MAX),
            address,
            now_ns,
            cpus: crate::system::possible_cpus()
                .map_err(Error::path("read", crate::system::POSSIBLE_CPUS))?,
            seen: RefCell::default(),
            windows: HashMap::new(),
            events: Vec::new(),
        })
    }

    /// What was looked at, and what would have been reported.
    pub(super) fn finish(self) -> Result<(Vec<Step>, Vec<Event>), Error> {
        let seen = self.seen.into_inner();
        match seen.error {
            Some(error) => Err(error),
            None => Ok((seen.steps, self.events)),
        }
    }

    fn is_on(&self, list: List) -> bool {
        let mut seen = self.seen.borrow_mut();
        let covering = self.maps.list(list).covering(&self.address);
        let covering = seen.read(covering).map(|(address, bits)| Cidr::from_prefix(address, bits));
        seen.steps.push(Step::List(list, covering));
        covering.is_some()
    }

    fn ban(&self, key: &SourceKey) -> Option<Ban> {
        let mut seen = self.seen.borrow_mut();
        if let Some(ban) = seen.bans.get(key) {
            return *ban;
        }
        let ban = seen.read(self.maps.ban(key));
        seen.bans.insert(*key, ban);
        seen.steps.push(Step::Ban(*key, ban));
        ban
    }

    fn put_ban(&self, key: &SourceKey, ban: &Ban) {
        self.seen.borrow_mut().bans.insert(*key, Some(*ban));
    }

    fn look_at_offender(&self, key: &SourceKey) -> Option<Offender> {
        let mut seen = self.seen.borrow_mut();
        if let Some(offender) = seen.offenders.get(key) {
            return *offender;
        }
        let offender = seen.read(self.maps.offender(key));
        seen.offenders.insert(*key, offender);
        offender
    }

    /// The era that the engine counts in.
    fn era(&self, key: &SourceKey, rule: &Rule) -> u32 {
        engine::era_of(self, &self.config, key, rule)
    }

    /// Reads the counters, and notes where the source stands.
    fn load_windows(&mut self, key: &SourceKey) {
        if self.windows.contains_key(key) {
            return;
        }
        let index = key.rule().unwrap_or_default();
        let Some(rule) = self.seen.borrow_mut().read(self.maps.rule(index).map(Some)) else { return };
        let era = self.era(key, &rule);
        let mut seen = self.seen.borrow_mut();
        let window = seen.read(self.maps.window(key));
        let (slot, generation) = (rule.slot(self.now_ns), rule.counting_generation(era));
        let count = window.map_or(0, |window| window.counted(slot, generation));
        seen.steps.push(Step::Count(Standing { count, limit: rule.limit() }));
        self.windows.insert(*key, window);
    }
}

impl Tables for LiveTables<'_> {
    type Rule = Rule;
    type Config = Config;
    type Spot = ();

    fn config(&self) -> Option<Config> {
        Some(self.config).filter(Config::is_ready)
    }

    fn is_allowed(&self, _address: &Address) -> bool {
        self.is_on(List::Allow)
    }

    fn is_denied(&self, _address: &Address) -> bool {
        self.is_on(List::Deny)
    }

    fn rule_of(&self, port: u16) -> RuleIndex {
        self.seen.borrow_mut().read(self.maps.rule_of(port))
    }

    fn rule(&mut self, index: RuleIndex) -> Option<Rule> {
        let mut seen = self.seen.borrow_mut();
        let rule = seen.read(self.maps.rule(index).map(Some))?;
        seen.steps.push(Step::Rule(index, rule));
        rule.is_defined().then_some(rule)
    }

    fn mark(&self, source: &Address) -> (u64, bool) {
        (0, self.seen.borrow_mut().read(self.maps.is_marked(source)))
    }

    fn may_be_proven(&self, _sum: u64) -> bool {
        let source = self.config.mask().source(self.address);
        self.seen.borrow_mut().read(self.maps.may_be_proven(&source))
    }

    fn with_ban<R>(&self, key: &SourceKey, look: impl FnOnce(&Ban) -> R) -> Option<R> {
        self.ban(key).as_ref().map(look)
    }

    fn add_ban(&mut self, key: &SourceKey, ban: &Ban) -> Result<(), Refused> {
        if self.ban(key).is_some() {
            return Err(Refused::Exists);
        }
        let used = self.seen.borrow_mut().read(self.maps.bans()).len();
        if used >= self.maps.bans_capacity() as usize {
            return Err(Refused::Full);
        }
        self.put_ban(key, ban);
        Ok(())
    }

    fn claim(&mut self, _claim: &Claim) -> Result<(), Refused> {
        Ok(()) // nobody else asks
    }

    fn claim_answer(&mut self, _claim: &Claim, _now_ns: u64) -> Option<u64> {
        None
    }

    fn unclaim(&mut self, _claim: &Claim) {}

    fn replace_ban(&mut self, key: &SourceKey, ban: &Ban) -> Result<(), Refused> {
        self.put_ban(key, ban);
        Ok(())
    }

    fn refresh_ban(&mut self, key: &SourceKey, ban: &Ban) -> bool {
        self.put_ban(key, ban);
        true
    }

    fn note_ending(&mut self, _key: &SourceKey) {}

    fn offender(&self, key: &SourceKey) -> Option<Offender> {
        self.look_at_offender(key)
    }

    fn remember(&mut self, key: &SourceKey, offender: &Offender) -> bool {
        self.seen.borrow_mut().offenders.insert(*key, Some(*offender));
        true
    }

    fn proof(&self, source: &Address) -> Option<Proof> {
        self.seen.borrow_mut().read(self.maps.proof(source))
    }

    fn keep_proof(&mut self, _source: &Address, _proof: Proof) -> bool {
        true
    }

    fn spent(&self, key: &SourceKey) -> Option<Spent> {
        self.seen.borrow_mut().read(self.maps.spent(key))
    }

    fn keep_spent(&mut self, _key: &SourceKey, _spent: Spent) -> bool {
        true
    }

    fn with_load<R>(&mut self, _rule: RuleIndex, work: impl FnOnce(&mut Load) -> R) -> Option<R> {
        Some(work(&mut Load::default()))
    }

    fn with_flood<R>(&mut self, rule: RuleIndex, work: impl FnOnce(&mut Flood) -> R) -> Option<R> {
        Some(work(&mut self.seen.borrow_mut().read(self.maps.flood(rule))))
    }

    fn with_scratch<R>(&mut self, work: impl FnOnce(&mut Self, &mut Scratch) -> R) -> Option<R> {
        Some(work(self, &mut Zeroable::zeroed()))
    }

    fn cpus(&self) -> u32 {
        self.cpus
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
        self.load_windows(key);
        let window = self.windows.entry(*key).or_default();
        let room = if window.is_some() { Room::Had } else { Room::Free };
        Some((work(window.get_or_insert_with(Zeroable::zeroed)), room))
    }

    fn with_present_window(&mut self, (): (), _key: &SourceKey, _work: impl FnOnce(&mut Window)) {}

    fn count(&mut self, _reason: Reason, _rule: Option<RuleIndex>, _bytes: u64) {}

    fn answers_until_ns(&self) -> u64 {
        0 // nothing comes between the look at the bans and the counting
    }

    fn look_for_answers(&mut self, _until_ns: u64) {}

    fn drops_watched_until_ns(&self) -> u64 {
        0
    }

    fn note_address(&mut self, _address: &Address) {}

    fn count_drop(&mut self) {}

    fn tally(&mut self, _tally: Tally) {}

    fn with_gate<R>(&mut self, _kind: Kind, work: impl FnOnce(&mut Gate) -> R) -> Option<R> {
        Some(work(&mut Gate::default()))
    }

    fn emit(&mut self, fill: impl FnOnce(&mut Event)) -> bool {
        let mut event = Event::EMPTY;
        fill(&mut event);
        self.events.push(event);
        true
    }
}
