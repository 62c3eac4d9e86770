//! From a policy to the maps: rules, ports, lists and global settings, changed while packets are judged.

use std::collections::{BTreeMap, BTreeSet};

use dosguard_common::abi;
use dosguard_common::address::SourceMask;
use dosguard_common::ban::{Ban, BanReason};
use dosguard_common::config::Mode;
use dosguard_common::key::SourceKey;
use dosguard_common::rule::{Rule, RuleIndex, RuleSpec};

use super::lists::{List, Origin, list_add, list_follow_file, list_require_room};
use super::{Datapath, Error, Maps};
use crate::config::cidr::Cidr;
use crate::config::policy::{NamedRule, Policy};
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
            prefixes: (*config.mask()).into(),
            rules: self.rules()?.into_iter().map(|(_, rule)| rule).collect(),
            ..Policy::default()
        })
    }

    /// The live settings and what files have put on the lists: all that a policy has but its interfaces.
    pub fn policy(&self) -> Result<Policy, Error> {
        let of_file = |list| -> Result<Vec<Cidr>, Error> {
            let entries = self.maps.list(list).entries()?.into_iter();
            let entries = entries.filter(|(_, origin)| origin.is_of_file());
            Ok(entries.map(|((address, bits), _)| Cidr::from_prefix(address, bits)).collect())
        };
        let (allow, deny) = (of_file(List::Allow)?, of_file(List::Deny)?);
        Ok(Policy { allow, deny, ..self.settings()? })
    }

    /// Brings settings and lists in line with `policy`. Rules that stay the same keep their counters. Of the lists, what
    /// the file put there follows the file, and what was put there by hand stays. Source prefixes change only if nothing
    /// is counted under others, or with `reset`. Returns the bans that this ended.
    pub fn apply(&mut self, policy: &Policy, reset: bool) -> Result<Ended, Error> {
        // What can be refused comes first.
        for (list, networks) in listed(policy) {
            list_require_room(&self.maps, list, networks.iter().map(Cidr::to_prefix))?;
        }
        let mut ended = self.change_prefixes(policy.prefixes.into(), reset)?;
        ended.extend(write(&mut self.maps, policy)?);
        Ok(ended)
    }

    /// The same for the settings alone: the lists stay as they are. A rule that is watched from now on drops nothing: its
    /// bans end. So do those of a rule that is gone, but for bans of every packet, which go on until their end; its ports
    /// go to `default`.
    pub fn apply_settings(&mut self, policy: &Policy, reset: bool) -> Result<Ended, Error> {
        let mut ended = self.change_prefixes(policy.prefixes.into(), reset)?;
        ended.extend(write_settings(&mut self.maps, policy)?);
        Ok(ended)
    }

    /// Changes how much of an address makes a source. What is counted, remembered and banned under other prefixes means
    /// something else then: without `reset` that is refused, with it all of it goes. Returns the bans that this ended.
    fn change_prefixes(&mut self, mask: SourceMask, reset: bool) -> Result<Ended, Error> {
        let config = self.maps.config()?;
        let live = *config.mask();
        if live == mask {
            return self.finish_reset();
        }
        let maps = &mut self.maps;
        let bans = maps.bans()?;
        let used = !bans.is_empty() || !maps.counted()?.is_empty() || !maps.offenders()?.is_empty();
        if used && !reset {
            return Err(Error::PrefixChange { live: live.prefixes(), asked: mask.prefixes() });
        }
        maps.set_config(config.with_mask(mask).with_resetting(true))?;
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
        for key in maps.counted()? {
            maps.remove_windows(&key)?;
        }
        for key in maps.offenders()? {
            maps.forget(&key)?;
        }
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
pub(super) fn write(maps: &mut Maps, policy: &Policy) -> Result<Ended, Error> {
    list_add(maps, List::Allow, policy.allow.iter().map(Cidr::to_prefix), Origin::FILE)?;
    let ended = write_settings(maps, policy)?;
    for (list, networks) in listed(policy) {
        list_follow_file(maps, list, networks.iter().map(Cidr::to_prefix))?;
    }
    Ok(ended)
}

fn set_mode(maps: &mut Maps, policy: &Policy) -> Result<(), Error> {
    let live = maps.config()?;
    let config = live.with_mode(policy.mode).with_events_rate(policy.events_rate);
    if config == live { Ok(()) } else { maps.set_config(config) }
}

/// Writes what differs: rules, then the ports that lead to them, then what is gone. A rule keeps its index by its name,
/// wherever it stands in the file: counters and bans are kept under the index.
fn write_settings(maps: &mut Maps, policy: &Policy) -> Result<Ended, Error> {
    let mut live: BTreeMap<_, _> = maps.rules()?.into_iter().collect();
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
        ended.extend(retire(maps, &std::mem::take(&mut gone))?);
        live.retain(|_, rule| stays(rule));
    }
    let wanted = assign_indices(&live, &policy.rules)?;
    let (mut ports, mut watched) = (BTreeMap::new(), BTreeSet::new());
    for (index, named) in &wanted {
        let old = maps.rule(*index)?;
        if !(old.is_defined() && old.spec() == named.spec) {
            maps.set_rule(*index, next_generation(named.name.as_str(), &named.spec, &old))?;
        }
        // Also if it was watched before: whoever changed that may have been interrupted.
        if named.spec.mode == Mode::Monitor {
            watched.insert((*index, named.name.as_str()));
        }
        ports.extend(named.ports.iter().map(|port| (port, *index)));
    }
    write_ports(maps, &ports)?;
    ended.extend(retire(maps, &gone)?);
    ended.extend(lift(maps, &watched)?);
    set_mode(maps, policy)?;
    Ok(ended)
}

/// Gives each port to its rule, and every other one to `default`.
fn write_ports(maps: &mut Maps, wanted: &BTreeMap<u16, RuleIndex>) -> Result<(), Error> {
    let live = maps.ports()?;
    for port in live.keys().chain(wanted.keys()).copied().collect::<BTreeSet<_>>() {
        let index = wanted.get(&port).copied().unwrap_or(RuleIndex::DEFAULT);
        if live.get(&port).copied().unwrap_or(RuleIndex::DEFAULT) != index {
            maps.set_rule_of(port, index)?;
        }
    }
    Ok(())
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
    for _ in 0..2 {
        for key in maps.bans()?.into_keys().filter(SourceKey::is_everywhere) {
            let now_ns = system::boot_now_ns()?;
            let Some(mut ban) = maps.ban(&key)?.filter(|ban| ban.is_active(now_ns)) else { continue };
            if gone.contains(&ban.rule) {
                ban.rule = RuleIndex::DEFAULT;
                maps.set_ban(&key, &ban)?;
            }
        }
        system::wait_for_running_programs();
    }
    // The rule itself goes last: as long as it is there, whoever is interrupted is followed by one who begins again.
    for index in &gone {
        maps.reset_rule_packets(*index)?;
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
            && ban.reason() == Some(BanReason::SynLimit)
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
    Ok(ended)
}

/// The rule with a generation that no counter made under `live` has. 0 is what empty counters have.
fn next_generation(name: &str, spec: &RuleSpec, live: &Rule) -> Rule {
    let generation = live.generation().checked_add(1).unwrap_or(1);
    Rule::new(name, spec, generation)
}
