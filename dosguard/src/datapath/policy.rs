//! From a policy to the maps: rules, ports, lists and global settings, changed while packets are judged.

use std::collections::{BTreeMap, BTreeSet};

use dosguard_common::abi;
use dosguard_common::address::SourceMask;
use dosguard_common::ban::{Ban, BanReason};
use dosguard_common::config::Mode;
use dosguard_common::key::SourceKey;
use dosguard_common::rule::{Rule, RuleIndex};

use super::lists::{List, Origin, list_change, list_leave_file, list_require_room};
use super::transition::{Transition, both, next_generation};
use super::{Datapath, Error, Maps};
use crate::config::cidr::Cidr;
use crate::config::policy::{NamedRule, Policy, SourcePrefixes};
use crate::config::units::Span;
use crate::system;

/// Bans that a change has ended.
pub type Ended = Vec<(SourceKey, Ban)>;

impl Datapath {
    /// The live settings: all that a policy has but its interfaces and lists.
    pub fn settings(&self) -> Result<Policy, Error> {
        let config = self.maps.config()?;
        Ok(Policy {
            mode: config.mode(),
            events_rate: config.events_rate(),
            proof_age: Span::from_ns(config.proof_age_ns()),
            prefixes: (*config.mask()).into(),
            rules: self.rules()?.into_iter().map(|(_, rule)| rule).collect(),
            ..Policy::default()
        })
    }

    /// The live settings, and of the lists what the file put there: what [`apply`](Self::apply) replaces.
    pub fn policy(&self) -> Result<Policy, Error> {
        let of_file = |list| -> Result<Vec<Cidr>, Error> {
            let entries = self.maps.list(list).entries()?;
            let of_file = entries.into_iter().filter(|(_, origin)| origin.is_of_file());
            Ok(of_file.map(|((address, bits), _)| Cidr::from_prefix(address, bits)).collect())
        };
        Ok(Policy { allow: of_file(List::Allow)?, deny: of_file(List::Deny)?, ..self.settings()? })
    }

    /// Whether applying `policy` would change anything.
    pub fn differs_from(&self, policy: &Policy) -> Result<bool, Error> {
        let sorted = |policy: &Policy| {
            let mut rules = policy.rules.clone();
            rules.sort_by(|one, other| one.name.as_str().cmp(other.name.as_str()));
            let lists =
                listed(policy).map(|(_, list)| list.iter().map(Cidr::to_prefix).collect::<BTreeSet<_>>());
            (policy.mode, policy.events_rate, policy.proof_age, policy.prefixes, rules, lists)
        };
        Ok(sorted(&self.policy()?) != sorted(policy))
    }

    /// Brings settings and lists in line with `policy`, or leaves them as they were. Rules that stay the same keep their
    /// counters. Of the lists, what the file put there follows the file, and what was put there by hand stays. Source
    /// prefixes change only if nothing is counted under others, or with `reset`. Returns the bans that this ended.
    pub fn apply(&mut self, policy: &Policy, reset: bool) -> Result<Ended, Error> {
        // What can be refused comes first.
        for (list, networks) in listed(policy) {
            list_require_room(&self.maps, list, networks.iter().map(Cidr::to_prefix))?;
        }
        self.refuse_prefixes(policy, reset)?;
        let before = self.policy()?;
        self.change(policy, write).inspect_err(|_| {
            // The kernel had no memory, or somebody meddles. The first error is the one to tell.
            let _ = self.change(&before, write);
        })
    }

    /// The same for the settings alone: the lists stay as they are. A rule that is watched from now on drops nothing: its
    /// bans end. So do those of a rule that is gone, but for bans of every packet, which go on until their end; its ports
    /// go to `default`.
    pub fn apply_settings(&mut self, policy: &Policy, reset: bool) -> Result<Ended, Error> {
        self.refuse_prefixes(policy, reset)?;
        self.change(policy, write_settings)
    }

    /// What is counted, remembered and banned under other prefixes means something else under those of the policy: without
    /// `reset` that is refused.
    fn refuse_prefixes(&self, policy: &Policy, reset: bool) -> Result<(), Error> {
        let (live, asked) = (self.maps.source_mask()?, SourceMask::from(policy.prefixes));
        if live == asked || reset {
            return Ok(());
        }
        let maps = &self.maps;
        let used = !maps.bans()?.is_empty() || maps.has_counted()? || !maps.offenders()?.is_empty();
        if used {
            Err(Error::PrefixChange { live: live.prefixes(), asked: asked.prefixes() })
        } else {
            Ok(())
        }
    }

    /// Changes source prefixes, and the rest with `write`. Sources become narrower before it, and wider after it: the wider
    /// a source, the sooner it is over a limit.
    fn change(
        &mut self,
        policy: &Policy,
        write: impl FnOnce(&mut Maps, &Policy) -> Result<Ended, Error>,
    ) -> Result<Ended, Error> {
        let (live, asked) = (SourcePrefixes::from(self.maps.source_mask()?), policy.prefixes);
        let narrower = SourcePrefixes { ipv4: live.ipv4.max(asked.ipv4), ipv6: live.ipv6.max(asked.ipv6) };
        let mut ended = self.change_prefixes(narrower)?;
        ended.extend(write(&mut self.maps, policy)?);
        ended.extend(self.change_prefixes(asked)?);
        Ok(ended)
    }

    /// Changes how much of an address makes a source. All that was counted, remembered and banned goes. Returns the bans
    /// that this ended.
    fn change_prefixes(&mut self, prefixes: SourcePrefixes) -> Result<Ended, Error> {
        let (config, mask) = (self.maps.config()?, SourceMask::from(prefixes));
        if *config.mask() != mask {
            self.maps.set_config(config.with_mask(mask).with_resetting(true))?;
        }
        self.finish_reset()
    }

    /// Removes what is kept under source prefixes that are no longer in force, if there is any: the last step of changing
    /// them, also for one that was interrupted. Returns the bans that this ended.
    pub fn finish_reset(&mut self) -> Result<Ended, Error> {
        let maps = &mut self.maps;
        if !maps.config()?.is_resetting() {
            return Ok(Ended::new());
        }
        for (index, rule) in maps.rules()? {
            // A source of either prefix may have the same address: its counters are not trusted.
            maps.set_rule(index, next_generation(rule.name(), &rule.spec(), &rule))?;
        }
        system::wait_for_running_programs();
        maps.remove_windows()?;
        for key in maps.offenders()? {
            maps.forget(&key)?;
        }
        maps.forget_proofs()?;
        let ended = remove_bans(maps, |_, _| true)?;
        let done = maps.config()?.with_resetting(false);
        maps.set_config(done)?;
        Ok(ended)
    }
}

/// The lists with what the policy has on them.
fn listed(policy: &Policy) -> [(List, &[Cidr]); 2] {
    [(List::Allow, &policy.allow), (List::Deny, &policy.deny)]
}

/// Writes what differs: lists and settings. What lets more pass comes first and what lets less pass comes last: no packet
/// meets a mixture that is stricter than both.
///
/// Entries of the deny-list that are new do not wait for the end: the new allow-list is there already, and a network that
/// another one takes the place of must be on the list all the time.
pub(super) fn write(maps: &mut Maps, policy: &Policy) -> Result<Ended, Error> {
    let of_file = |networks: &[Cidr]| networks.iter().map(Cidr::to_prefix).collect::<Vec<_>>();
    let (allow, deny) = (of_file(&policy.allow), of_file(&policy.deny));
    if policy.mode == Mode::Monitor {
        set_mode(maps, policy)?;
    }
    let (allowed, changed) = list_change(maps, List::Allow, allow.iter().copied(), Origin::FILE)?;
    if changed && !deny.is_empty() {
        // Whoever was not yet allowed must not be looked up among those that are denied from now on.
        system::wait_for_running_programs();
    }
    let (denied, _) = list_change(maps, List::Deny, deny.iter().copied(), Origin::FILE)?;
    // Before what they deny is enforced, and before exceptions from them go.
    list_leave_file(maps, List::Deny, denied, deny)?;
    let ended = write_settings(maps, policy)?;
    list_leave_file(maps, List::Allow, allowed, allow)?;
    Ok(ended)
}

fn set_mode(maps: &mut Maps, policy: &Policy) -> Result<(), Error> {
    let live = maps.config()?;
    let config = live.with_mode(policy.mode).with_events_rate(policy.events_rate);
    let config = config.with_proof_age_ns(policy.proof_age.ns());
    if config == live {
        return Ok(());
    }
    if live.mode() == Mode::Monitor && policy.mode == Mode::Enforce {
        // What was found by other rules and lists is not to be enforced.
        system::wait_for_running_programs();
    }
    maps.set_config(config)
}

/// Writes what differs: rules, the ports that lead to them, and what is gone, in the order of [`Transition`]. A rule keeps
/// its index by its name, wherever it stands in the file: counters and bans are kept under the index.
fn write_settings(maps: &mut Maps, policy: &Policy) -> Result<Ended, Error> {
    let mut live: BTreeMap<_, _> = maps.rules()?.into_iter().collect();
    // Reading them takes long, compared with writing those that move: no rule has changed yet.
    let mut ports = if is_default_alone(live.keys()) { BTreeMap::new() } else { maps.ports()? };
    let stays = |rule: &Rule| policy.rule(rule.name()).is_some();
    let mut gone: Vec<_> = live.iter().filter(|(_, rule)| !stays(rule)).map(|(index, _)| *index).collect();
    // New rules are in force before the mode that enforces them.
    if policy.mode == Mode::Monitor {
        set_mode(maps, policy)?;
    }
    let mut ended = Ended::new();
    let stay = live.len() - gone.len();
    if policy.rules.len() > stay + free_indices(&live).count() {
        // There is no room for both the old and the new ones. The new ones take the places of the old.
        let gone = std::mem::take(&mut gone);
        take_in(maps, &mut live, &gone)?;
        ended.extend(retire(maps, &gone)?);
        live.retain(|_, rule| stays(rule));
        ports.retain(|_, index| !gone.contains(index));
    }
    let wanted = assign_indices(&live, &policy.rules)?;
    let mut places = BTreeMap::new();
    for index in wanted.keys() {
        places.insert(*index, maps.rule(*index)?);
    }
    let transition = Transition::new(&places, &ports, &wanted);
    for (index, rule) in transition.first {
        maps.set_rule(index, rule)?;
    }
    for (port, index) in &transition.ports {
        maps.set_rule_of(*port, *index)?;
    }
    if !transition.ports.is_empty() && !transition.last.is_empty() {
        system::wait_for_running_programs();
    }
    for (index, rule) in transition.last {
        maps.set_rule(index, rule)?;
    }
    for (index, named) in &wanted {
        // A flood by another measure is none.
        if places.get(index).is_some_and(|rule| rule.flood() != named.spec.flood) {
            maps.forget_flood(*index)?;
        }
    }
    ended.extend(retire(maps, &gone)?);
    // Also if it was watched before: whoever changed that may have been interrupted.
    let watched = wanted.iter().filter(|(_, named)| named.spec.mode == Mode::Monitor);
    ended.extend(lift(maps, &watched.map(|(index, named)| (*index, named.name.as_str())).collect())?);
    set_mode(maps, policy)?;
    Ok(ended)
}

/// Whether these rules have no ports: a port is given to a rule when that is there, and taken from it before it goes.
pub(super) fn is_default_alone<'a>(mut rules: impl Iterator<Item = &'a RuleIndex>) -> bool {
    rules.all(|index| *index == RuleIndex::DEFAULT)
}

/// Lets `default` have the ports of rules that are gone until others take them over: it touches no source that keeps the
/// limits of all of them at once.
fn take_in(maps: &mut Maps, live: &mut BTreeMap<RuleIndex, Rule>, gone: &[RuleIndex]) -> Result<(), Error> {
    let specs: Vec<_> = gone.iter().filter_map(|index| live.get(index)).map(Rule::spec).collect();
    let Some(default) = live.get_mut(&RuleIndex::DEFAULT) else { return Ok(()) };
    let spec = specs.iter().fold(default.spec(), |spec, gone| both(&spec, gone));
    *default = next_generation(default.name(), &spec, default);
    maps.set_rule(RuleIndex::DEFAULT, *default)
}

/// The index of each rule: the one that its name has already, or else one that is free.
fn assign_indices<'a>(
    live: &BTreeMap<RuleIndex, Rule>,
    rules: &'a [NamedRule],
) -> Result<BTreeMap<RuleIndex, &'a NamedRule>, Error> {
    let index_of = |named: &NamedRule| {
        live.iter().find(|(_, rule)| rule.name() == named.name.as_str()).map(|(index, _)| *index)
    };
    // `default` is the first of all rules, and finds 0 free.
    let mut free = free_indices(live);
    let mut assigned = BTreeMap::new();
    for named in rules {
        let index = index_of(named).or_else(|| free.next()).ok_or_else(no_room)?;
        assigned.insert(index, named);
    }
    Ok(assigned)
}

fn free_indices(live: &BTreeMap<RuleIndex, Rule>) -> impl Iterator<Item = RuleIndex> {
    (0..=u8::MAX).map(RuleIndex).filter(|index| !live.contains_key(index))
}

fn no_room() -> Error {
    Error::MapFull { map: abi::RULES.name, entries: abi::RULES.entries }
}

/// Removes rules with all that another rule at the same index would inherit. Packets that are being judged by them are
/// waited for, so that none leaves anything behind afterwards.
fn retire(maps: &mut Maps, gone: &[RuleIndex]) -> Result<Ended, Error> {
    let gone: BTreeSet<_> = gone.iter().copied().filter(|index| *index != RuleIndex::DEFAULT).collect();
    if gone.is_empty() {
        return Ok(Ended::new());
    }
    for (port, index) in maps.ports()? {
        if gone.contains(&index) {
            maps.set_rule_of(port, RuleIndex::DEFAULT)?;
        }
    }
    system::wait_for_running_programs();
    let ended = remove_bans(maps, |key, _| key.rule().is_some_and(|rule| gone.contains(&rule)))?;
    // A ban of every packet holds on; what it drops counts for `default` from now on. One whose clock a packet has just
    // restarted is put back as it was: the second time that packet is gone, and the next one sees what was written.
    let mut rewritten = false;
    for _ in 0..2 {
        for key in maps.bans()?.into_keys().filter(SourceKey::is_everywhere) {
            let now_ns = system::boot_now_ns()?;
            let Some(mut ban) = maps.ban(&key)?.filter(|ban| ban.is_active(now_ns)) else { continue };
            if gone.contains(&ban.rule) {
                ban.rule = RuleIndex::DEFAULT;
                maps.set_ban(&key, &ban)?;
                rewritten = true;
            }
        }
        system::wait_for_running_programs();
    }
    if rewritten {
        system::wait_for_tick();
    }
    // The rule itself goes last: as long as it is there, whoever is interrupted is followed by one who begins again.
    for index in &gone {
        maps.reset_rule_packets(*index)?;
        maps.forget_flood(*index)?;
        let old = maps.rule(*index)?;
        maps.set_rule(*index, old.removed())?;
    }
    Ok(ended)
}

/// Ends the bans that rules have imposed which are only watched from now on.
fn lift(maps: &mut Maps, watched: &BTreeSet<(RuleIndex, &str)>) -> Result<Ended, Error> {
    if watched.is_empty() {
        return Ok(Ended::new());
    }
    system::wait_for_running_programs();
    remove_bans(maps, |_, ban| {
        watched.contains(&(ban.rule, ban.label().text()))
            && ban.reason().is_some_and(BanReason::is_of_rule)
            && !ban.is_monitored()
    })
}

/// Removes bans and returns those that still held. Each is looked at anew: since the walk another may have taken its place.
fn remove_bans(maps: &mut Maps, which: impl Fn(&SourceKey, &Ban) -> bool) -> Result<Ended, Error> {
    let mut ended = Ended::new();
    for key in maps.bans()?.into_keys() {
        let Some(ban) = maps.ban(&key)?.filter(|ban| which(&key, ban)) else { continue };
        if maps.remove_ban(&key)? && ban.is_active(system::boot_now_ns()?) {
            ended.push((key, ban));
        }
    }
    wait_for_end(&ended);
    Ok(ended)
}

/// Returns once none of these bans, which were removed, drops anything.
pub fn wait_for_end(ended: &[(SourceKey, Ban)]) {
    if ended.iter().any(|(key, _)| key.is_everywhere()) {
        system::wait_for_tick();
    }
}
