//! sysctl-style dotted keys over live settings: `core.mode`, `rule.smtp.limit`.
//!
//! Reading gives text that can be written back. Writing several at once is for [`assignments`](super::assignments). Some
//! keys are only for reading: what was fixed when the instance was loaded.

use std::fmt;
use std::str::FromStr;

use dosguard_common::abi::ABI_VERSION;
use thiserror::Error;

use super::field::{RuleField, parse_mode};
use super::policy::{
    NamedRule, Policy, PolicyError, RuleName, parse_events_rate, parse_proof_age, parse_source_prefix,
};
use super::sizes::{Size, Sizes};

/// The settings that are no rule's, in the order in which they are listed.
const GLOBAL: [Key; 5] =
    [Key::Mode, Key::SourceIpv4Prefix, Key::SourceIpv6Prefix, Key::ProofAge, Key::EventsRate];

/// The keys that are only for reading, which are listed next.
const FIXED: [Key; 6] = [
    Key::Abi,
    Key::Size(Size::Bans),
    Key::Size(Size::Sources),
    Key::Size(Size::Offenders),
    Key::Size(Size::Allow),
    Key::Size(Size::Deny),
];

/// One setting of a running instance.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Key {
    /// `core.mode`: whether what is decided is done, or only counted and reported.
    Mode,
    /// `core.ipv4_prefix`: how many bits of an IPv4 address make a source.
    SourceIpv4Prefix,
    /// `core.ipv6_prefix`: how many bits of an IPv6 address make a source.
    SourceIpv6Prefix,
    /// `core.proof_age`: how long a source counts as real that has completed a handshake.
    ProofAge,
    /// `events.rate`: events of one kind that each CPU reports in a second.
    EventsRate,
    /// `core.abi`: the version of the layout that the program and its maps have. Only for reading.
    Abi,
    /// `size.<name>`: how many entries a map holds. Only for reading.
    Size(Size),
    /// `rule.<name>.<field>`: a setting of a rule.
    Rule {
        /// The rule.
        rule: RuleName,
        /// The setting.
        field: RuleField,
    },
}

/// Why a text leads to no key.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum KeyError {
    /// No key is spelled like this.
    #[error("no such key as `{text}`\nhint: {hint}")]
    Unknown {
        /// What was written.
        text: String,
        /// The nearest key, or the keys there are.
        hint: String,
    },
    /// The key is well formed, but there is no such rule.
    #[error("no such rule as `{rule}`\nhint: {hint}")]
    UnknownRule {
        /// The rule that was named.
        rule: RuleName,
        /// The nearest rule's name, or the rules there are.
        hint: String,
    },
    /// No key matches a pattern.
    #[error("no key matches `{pattern}`\nhint: `{command} sysctl -a` lists every key")]
    NoMatch {
        /// The pattern.
        pattern: String,
        /// How to call dosguard for the instance.
        command: String,
    },
}

impl Key {
    /// Its value as text; none if there is no such rule.
    pub fn get(&self, policy: &Policy, sizes: &Sizes) -> Option<String> {
        match self {
            Self::Abi => Some(ABI_VERSION.to_string()),
            Self::Size(size) => Some(sizes.get(*size).to_string()),
            _ => self.setting(policy),
        }
    }

    /// The value of a setting as text; none for what is only for reading, and if there is no such rule.
    pub fn setting(&self, policy: &Policy) -> Option<String> {
        match self {
            Self::Abi | Self::Size(_) => None,
            Self::Mode => Some(policy.mode.name().to_owned()),
            Self::SourceIpv4Prefix => Some(policy.prefixes.ipv4.to_string()),
            Self::SourceIpv6Prefix => Some(policy.prefixes.ipv6.to_string()),
            Self::ProofAge => Some(policy.proof_age.to_string()),
            Self::EventsRate => Some(policy.events_rate.to_string()),
            Self::Rule { rule, field } => policy.rule(rule.as_str()).map(|rule| field.get(rule)),
        }
    }

    /// Why it is only for reading, and behind `hint: ` what there is to do; none for a setting. `command` calls dosguard for
    /// the instance.
    pub fn fixed(&self, command: &str) -> Option<String> {
        match self {
            Self::Abi => Some(
                "it is the layout of what is loaded into the kernel\nhint: a version of dosguard has one, and another version \
                 may have another"
                    .to_owned(),
            ),
            Self::Size(_) => Some(format!(
                "it is chosen when the instance is loaded\nhint: set it under `[size]` in the configuration file; then \
                 `{command} detach --all`, with which bans and counters go, and attach or run it again"
            )),
            _ => None,
        }
    }

    /// Sets it from text. What [`setting`](Self::setting) gave changes nothing. [`Policy::check_rules`] must follow. A key
    /// of a rule that is not there sets nothing, nor does one that is only for reading.
    ///
    /// # Errors
    ///
    /// The value is malformed or out of range. Then `policy` is as it was.
    pub fn assign(&self, policy: &mut Policy, text: &str) -> Result<(), PolicyError> {
        if self.setting(policy).is_some_and(|value| value == text) {
            return Ok(());
        }
        match self {
            Self::Abi | Self::Size(_) => {}
            Self::Mode => policy.mode = parse_mode(text)?,
            Self::SourceIpv4Prefix => policy.prefixes.ipv4 = parse_source_prefix("IPv4", 32, text)?,
            Self::SourceIpv6Prefix => policy.prefixes.ipv6 = parse_source_prefix("IPv6", 128, text)?,
            Self::ProofAge => policy.proof_age = parse_proof_age(text)?,
            Self::EventsRate => policy.events_rate = parse_events_rate(text)?,
            Self::Rule { rule, field: RuleField::Ports } if rule.is_default() => {
                return Err(PolicyError::DefaultWithPorts);
            }
            Self::Rule { rule, field } => {
                if let Some(rule) = policy.rule_mut(rule.as_str()) {
                    field.assign(rule, text)?;
                }
            }
        }
        Ok(())
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Mode => f.pad("core.mode"),
            Self::SourceIpv4Prefix => f.pad("core.ipv4_prefix"),
            Self::SourceIpv6Prefix => f.pad("core.ipv6_prefix"),
            Self::ProofAge => f.pad("core.proof_age"),
            Self::EventsRate => f.pad("events.rate"),
            Self::Abi => f.pad("core.abi"),
            Self::Size(size) => f.pad(&format!("size.{}", size.name())),
            Self::Rule { rule, field } => f.pad(&format!("rule.{rule}.{field}")),
        }
    }
}

impl FromStr for Key {
    type Err = KeyError;

    /// From its name. Whether the rule exists is not looked at.
    fn from_str(text: &str) -> Result<Self, KeyError> {
        if let Some(key) = GLOBAL.into_iter().chain(FIXED).find(|key| key.to_string() == text) {
            return Ok(key);
        }
        let global = GLOBAL.map(|key| key.to_string());
        let unknown = |hint| KeyError::Unknown { text: text.to_owned(), hint };
        let parts = text.strip_prefix("rule.").and_then(|rest| rest.split_once('.'));
        let Some((rule, field)) = parts else {
            let fixed = FIXED.map(|key| key.to_string());
            let near = nearest(text, global.iter().chain(&fixed).map(String::as_str));
            let forms = format!(
                "`{}` or `rule.<name>.{}`; `sysctl -a` shows all",
                global.join("`, `"),
                RuleField::Limit
            );
            return Err(unknown(near.map_or(forms, |key| format!("did you mean `{key}`?"))));
        };
        let name = rule
            .parse()
            .map_err(|_| unknown("a rule's name stands second, as in `rule.smtp.limit`".into()))?;
        if let Some(field) = RuleField::from_name(field) {
            return Ok(Self::Rule { rule: name, field });
        }
        let names = RuleField::ALL.map(RuleField::name);
        Err(unknown(match nearest(field, names) {
            Some(near) => format!("did you mean `rule.{rule}.{near}`?"),
            None => format!("a rule has `{}`", names.join("`, `")),
        }))
    }
}

/// Every key with its value, in the order in which they are listed: the global ones, then each rule's.
pub fn all(policy: &Policy, sizes: &Sizes) -> Vec<(Key, String)> {
    let rules = policy.rules.iter().flat_map(of_rule);
    let keys = GLOBAL.into_iter().chain(FIXED).chain(rules);
    keys.filter_map(|key| key.get(policy, sizes).map(|value| (key, value))).collect()
}

/// Every setting that is no rule's, with its value.
pub(super) fn global(policy: &Policy) -> Vec<(Key, String)> {
    GLOBAL.into_iter().filter_map(|key| key.setting(policy).map(|value| (key, value))).collect()
}

/// The keys of a rule.
pub(super) fn of_rule(rule: &NamedRule) -> [Key; RuleField::ALL.len()] {
    RuleField::ALL.map(|field| Key::Rule { rule: rule.name.clone(), field })
}

/// The key of this name, or all that match a pattern with `*` or `?`, with their values. `command` calls dosguard for the
/// instance, for hints.
///
/// # Errors
///
/// There is no such key or rule, or nothing matches.
pub fn select(
    policy: &Policy,
    sizes: &Sizes,
    pattern: &str,
    command: &str,
) -> Result<Vec<(Key, String)>, KeyError> {
    if !is_pattern(pattern) {
        let key: Key = pattern.parse()?;
        return match (key.get(policy, sizes), key) {
            (None, Key::Rule { rule, .. }) => Err(unknown_rule(policy, rule)),
            (value, key) => Ok(vec![(key, value.unwrap_or_default())]),
        };
    }
    let mut keys = all(policy, sizes);
    keys.retain(|(key, _)| matches(pattern, &key.to_string()));
    if keys.is_empty() {
        return Err(KeyError::NoMatch { pattern: pattern.to_owned(), command: command.to_owned() });
    }
    Ok(keys)
}

/// Whether the text may stand for several keys.
pub fn is_pattern(text: &str) -> bool {
    text.contains(['*', '?'])
}

/// That there is no such rule, with the nearest one or those there are.
pub fn unknown_rule(policy: &Policy, rule: RuleName) -> KeyError {
    let names = policy.rules.iter().map(|rule| rule.name.as_str());
    let hint = match nearest(rule.as_str(), names) {
        Some(near) => format!("did you mean `{near}`?"),
        None => rule_names(&policy.rules),
    };
    KeyError::UnknownRule { rule, hint }
}

/// Whether all of `text` matches `pattern`, in which `*` stands for any characters, dots too, and `?` for one.
pub fn matches(pattern: &str, text: &str) -> bool {
    let (pattern, text): (Vec<char>, Vec<char>) = (pattern.chars().collect(), text.chars().collect());
    let (mut p, mut t) = (0, 0);
    // The last `*` seen, and how far into the text it reaches: on a mismatch it takes one character more. Only the
    // last one can need that, so this is at worst the product of both lengths.
    let mut star = None;
    while t < text.len() {
        match pattern.get(p) {
            Some('*') => {
                star = Some((p, t));
                p += 1;
            }
            Some(c) if *c == '?' || *c == text[t] => {
                p += 1;
                t += 1;
            }
            _ => match star {
                Some((at, reach)) => {
                    star = Some((at, reach + 1));
                    p = at + 1;
                    t = reach + 1;
                }
                None => return false,
            },
        }
    }
    pattern[p..].iter().all(|c| *c == '*')
}

/// The rules there are, as a hint; the first few if there are many.
fn rule_names(rules: &[NamedRule]) -> String {
    const SHOWN: usize = 8;
    let names: Vec<_> = rules.iter().take(SHOWN).map(|rule| format!("`{}`", rule.name)).collect();
    let more = if rules.len() > SHOWN { " and more" } else { "" };
    format!("there are {}{more}", names.join(", "))
}

/// The candidate that is one or two typing errors away, if any; of a short one at least half must be right.
pub(super) fn nearest<'a>(text: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let distances = candidates.into_iter().map(|candidate| (distance(text, candidate), candidate));
    let near = distances.filter(|(distance, candidate)| *distance <= 2 && *distance * 2 < candidate.len());
    near.min_by_key(|(distance, _)| *distance).map(|(_, candidate)| candidate)
}

/// How many characters must be put in, taken out or replaced to get from one text to the other (Levenshtein).
fn distance(from: &str, to: &str) -> usize {
    let to: Vec<char> = to.chars().collect();
    let mut row: Vec<usize> = (0..=to.len()).collect();
    for (i, a) in from.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, b) in to.iter().enumerate() {
            let replaced = diagonal + usize::from(a != *b);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[to.len()]
}

#[cfg(test)]
mod tests;
