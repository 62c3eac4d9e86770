//! What a change of configuration comes to, in lines for people.

use std::collections::{BTreeSet, HashSet};

use super::cidr::Cidr;
use super::field::RuleField;
use super::keys::{global, of_rule};
use super::policy::{NamedRule, Policy};
use super::services::Services;

/// What differs, in the order in which settings are listed; nothing if the policies say the same.
///
/// ```text
/// core.mode: monitor -> enforce
/// allow: 3 added, 1 removed
/// rule.default.limit: 100/1s -> 200/1s
/// rule.smtp: added (ports tcp/25, limit 3/1m, …)
/// rule.web: removed
/// ```
pub fn changes(before: &Policy, after: &Policy) -> Vec<String> {
    let mut lines = Vec::new();
    for ((key, old), (_, new)) in global(before).into_iter().zip(global(after)) {
        if old != new {
            lines.push(format!("{key}: {old} -> {new}"));
        }
    }
    let interfaces = |policy: &Policy| policy.interfaces.iter().cloned().collect::<BTreeSet<_>>();
    let (old, new) = (interfaces(before), interfaces(after));
    lines.extend(new.difference(&old).map(|name| format!("interfaces: {name} added")));
    lines.extend(old.difference(&new).map(|name| format!("interfaces: {name} removed")));
    lines.extend(list("allow", &before.allow, &after.allow));
    lines.extend(list("deny", &before.deny, &after.deny));
    for rule in &before.rules {
        match after.rule(rule.name.as_str()) {
            None => lines.push(format!("rule.{}: removed", rule.name)),
            Some(now) => lines.extend(settings(rule, now)),
        }
    }
    let is_new = |rule: &&NamedRule| before.rule(rule.name.as_str()).is_none();
    lines.extend(after.rules.iter().filter(is_new).map(added));
    lines
}

/// The parts of `services` that differ, by their names in the file.
pub fn changed_services(before: &Services, after: &Services) -> Vec<String> {
    let mut lines = Vec::new();
    for (name, differ) in [
        ("log", before.log != after.log),
        ("history", before.history != after.history),
        ("connections", before.connections != after.connections),
        ("metrics", before.metrics != after.metrics),
    ] {
        if differ {
            lines.push(format!("{name}: changed"));
        }
    }
    lines.extend(counted("hook", &before.hooks, &after.hooks));
    lines.extend(counted("export", &before.exports, &after.exports));
    lines
}

/// The settings of a rule that differ.
fn settings(old: &NamedRule, new: &NamedRule) -> Vec<String> {
    let keys = of_rule(old).into_iter().zip(RuleField::ALL);
    let differing = keys.filter_map(|(key, field)| {
        let (old, new) = (field.get(old), field.get(new));
        (old != new).then(|| format!("{key}: {old} -> {new}"))
    });
    differing.collect()
}

fn added(rule: &NamedRule) -> String {
    let settings = RuleField::ALL.map(|field| format!("{field} {}", field.get(rule)));
    format!("rule.{}: added ({})", rule.name, settings.join(", "))
}

fn list(name: &str, old: &[Cidr], new: &[Cidr]) -> Option<String> {
    let (old, new): (HashSet<_>, HashSet<_>) = (old.iter().collect(), new.iter().collect());
    how_many(name, new.difference(&old).count(), old.difference(&new).count())
}

/// How many are only in one of the two; a second one of the same counts, too.
fn counted<T: PartialEq>(name: &str, old: &[T], new: &[T]) -> Option<String> {
    let only_in = |these: &[T], those: &[T]| {
        let mut those: Vec<_> = those.iter().collect();
        let is_only_here = |item: &&T| match those.iter().position(|other| other == item) {
            Some(at) => {
                those.swap_remove(at);
                false
            }
            None => true,
        };
        these.iter().filter(is_only_here).count()
    };
    how_many(name, only_in(new, old), only_in(old, new))
}

fn how_many(name: &str, added: usize, removed: usize) -> Option<String> {
    match (added, removed) {
        (0, 0) => None,
        (added, 0) => Some(format!("{name}: {added} added")),
        (0, removed) => Some(format!("{name}: {removed} removed")),
        (added, removed) => Some(format!("{name}: {added} added, {removed} removed")),
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::config::file::{Configuration, parse};

    fn read(text: &str) -> Configuration {
        parse(text, Path::new("f")).unwrap()
    }

    fn between(before: &str, after: &str) -> Vec<String> {
        changes(&read(before).policy, &read(after).policy)
    }

    const BEFORE: &str = "
interfaces = ['eth0', 'eth1']
mode = 'monitor'
allow = ['192.0.2.1', '192.0.2.2']
deny = ['203.0.113.0/24']
[rule.smtp]
ports = ['tcp/25']
limit = '3/60s'
[rule.web]
ports = ['tcp/80']
limit = '50/1s'
";

    #[test]
    fn the_same_is_no_change_however_it_is_written() {
        assert_eq!(between("", ""), Vec::<String>::new());
        assert_eq!(between("[rule.default]\nlimit = '100/1s'", ""), Vec::<String>::new());
        let other_order = "[rule.web]\nports = ['tcp/80']\nlimit = '50/1000ms'\n[rule.smtp]\nlimit = '3/1m'\nports = \
                           ['tcp/25']\n";
        let policy = &BEFORE[BEFORE.find("[rule.smtp]").unwrap()..];
        assert_eq!(between(policy, other_order), Vec::<String>::new());
    }

    #[test]
    fn every_change_has_its_line() {
        let after = "
interfaces = ['eth2', 'eth0']
allow = ['192.0.2.2', '192.0.2.3', '192.0.2.4']
events.rate = 7
source.ipv6_prefix = 56
source.proof_age = '2h'
[rule.default]
limit = '200/1s'
mode = 'monitor'
[rule.web]
ports = ['tcp/80', 'tcp/443']
limit = '50/1s'
[rule.ssh]
ports = ['tcp/22']
limit = '5/1s'
";
        let lines = between(BEFORE, after);
        let expected = [
            "core.mode: monitor -> enforce",
            "core.ipv6_prefix: 64 -> 56",
            "core.proof_age: 1h -> 2h",
            "events.rate: 1000 -> 7",
            "interfaces: eth2 added",
            "interfaces: eth1 removed",
            "allow: 2 added, 1 removed",
            "deny: 1 removed",
            "rule.default.limit: 100/1s -> 200/1s",
            "rule.default.mode: enforce -> monitor",
            "rule.smtp: removed",
            "rule.web.ports: tcp/80 -> tcp/80,tcp/443",
            "rule.ssh: added (ports tcp/22, limit 5/1s, action ban, ban 1m, ban_max 1d, forget 1d, scope all, refresh false, \
             mode enforce, max_connections none, close false, require_proof true, unproven_ban 10s, flood_limit none)",
        ];
        assert_eq!(lines, expected);
    }

    #[test]
    fn services_that_change_are_named() {
        let hook = "[[hook]]\non = ['ban']\nrun = ['/a']\n";
        let other = "[[hook]]\non = ['ban']\nrun = ['/b']\n";
        let between =
            |before: &str, after: &str| changed_services(&read(before).services, &read(after).services);
        assert_eq!(between(hook, hook), Vec::<String>::new());
        assert_eq!(between(hook, &format!("{hook}{hook}{other}")), ["hook: 2 added"]);
        assert_eq!(between(hook, other), ["hook: 1 added, 1 removed"]);
        let all = "log.stdout = 'json'\nhistory.keep = '1d'\nmetrics.listen = '127.0.0.1:1'\n[[export]]\npath = '/x'";
        assert_eq!(
            between("", all),
            ["log: changed", "history: changed", "metrics: changed", "export: 1 added"]
        );
    }
}
