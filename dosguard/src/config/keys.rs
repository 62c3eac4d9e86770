//! sysctl-style dotted keys over live rules: `rule.smtp.limit`, `core.ipv4_prefix`.
//!
//! Reading gives text that can be written back. Writing goes through [`RuleField::set`] or
//! [`set_all`](super::field::set_all), on a rule's specification that the caller reads from and puts into the maps.

use std::fmt;
use std::str::FromStr;

use thiserror::Error;

use super::field::RuleField;
use super::policy::{NamedRule, RuleName, SourcePrefixes};

const IPV4_PREFIX: &str = "core.ipv4_prefix";
const IPV6_PREFIX: &str = "core.ipv6_prefix";

/// One setting of a running instance.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Key {
    /// `core.ipv4_prefix`: how many bits of an IPv4 address make a source. Read-only.
    SourceIpv4Prefix,
    /// `core.ipv6_prefix`: how many bits of an IPv6 address make a source. Read-only.
    SourceIpv6Prefix,
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
    #[error("no key matches `{pattern}`\nhint: `dosguard sysctl -a` lists every key")]
    NoMatch {
        /// The pattern.
        pattern: String,
    },
}

impl Key {
    /// Why it cannot be set, then `hint: ` and how to change it otherwise; none if it can be set.
    pub const fn read_only(&self) -> Option<&'static str> {
        match self {
            Self::SourceIpv4Prefix => Some(
                "counters and bans are kept by source\nhint: change `ipv4_prefix` in the file's `[source]`",
            ),
            Self::SourceIpv6Prefix => Some(
                "counters and bans are kept by source\nhint: change `ipv6_prefix` in the file's `[source]`",
            ),
            Self::Rule { field, .. } => field.read_only(),
        }
    }

    /// Its value as text; none if there is no such rule.
    pub fn get(&self, rules: &[NamedRule], prefixes: SourcePrefixes) -> Option<String> {
        match self {
            Self::SourceIpv4Prefix => Some(prefixes.ipv4.to_string()),
            Self::SourceIpv6Prefix => Some(prefixes.ipv6.to_string()),
            Self::Rule { rule, field } => {
                rules.iter().find(|other| other.name == *rule).map(|rule| field.get(rule))
            }
        }
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::SourceIpv4Prefix => f.pad(IPV4_PREFIX),
            Self::SourceIpv6Prefix => f.pad(IPV6_PREFIX),
            Self::Rule { rule, field } => f.pad(&format!("rule.{rule}.{field}")),
        }
    }
}

impl FromStr for Key {
    type Err = KeyError;

    /// From its name. Whether the rule exists is not looked at.
    fn from_str(text: &str) -> Result<Self, KeyError> {
        match text {
            IPV4_PREFIX => return Ok(Self::SourceIpv4Prefix),
            IPV6_PREFIX => return Ok(Self::SourceIpv6Prefix),
            _ => {}
        }
        let unknown = |hint| KeyError::Unknown { text: text.to_owned(), hint };
        let parts = text.strip_prefix("rule.").and_then(|rest| rest.split_once('.'));
        let Some((rule, field)) = parts else {
            let near = nearest(text, [IPV4_PREFIX, IPV6_PREFIX]);
            let forms = format!("`{IPV4_PREFIX}`, `{IPV6_PREFIX}` or `rule.<name>.{}`", RuleField::Limit);
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

/// Every key with its value, in the order in which they are listed: the core's, then each rule's.
pub fn all(rules: &[NamedRule], prefixes: SourcePrefixes) -> Vec<(Key, String)> {
    let core = [
        (Key::SourceIpv4Prefix, prefixes.ipv4.to_string()),
        (Key::SourceIpv6Prefix, prefixes.ipv6.to_string()),
    ];
    let of_rule = |rule: &NamedRule| {
        RuleField::ALL.map(|field| (Key::Rule { rule: rule.name.clone(), field }, field.get(rule)))
    };
    core.into_iter().chain(rules.iter().flat_map(of_rule)).collect()
}

/// The key of this name, or all that match a pattern with `*` or `?`, with their values.
///
/// # Errors
///
/// There is no such key or rule, or nothing matches.
pub fn select(
    rules: &[NamedRule],
    prefixes: SourcePrefixes,
    pattern: &str,
) -> Result<Vec<(Key, String)>, KeyError> {
    if !pattern.contains(['*', '?']) {
        let key: Key = pattern.parse()?;
        return match (key.get(rules, prefixes), key) {
            (None, Key::Rule { rule, .. }) => {
                let hint = match nearest(rule.as_str(), rules.iter().map(|rule| rule.name.as_str())) {
                    Some(near) => format!("did you mean `{near}`?"),
                    None => rule_names(rules),
                };
                Err(KeyError::UnknownRule { rule, hint })
            }
            (value, key) => Ok(vec![(key, value.unwrap_or_default())]),
        };
    }
    let mut keys = all(rules, prefixes);
    keys.retain(|(key, _)| matches(pattern, &key.to_string()));
    if keys.is_empty() { Err(KeyError::NoMatch { pattern: pattern.to_owned() }) } else { Ok(keys) }
}

/// The two sides of `KEY=VALUE`, without the blanks around them; none if there is no `=`.
pub fn split_assignment(text: &str) -> Option<(&str, &str)> {
    text.split_once('=').map(|(key, value)| (key.trim(), value.trim()))
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
fn nearest<'a>(text: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
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
mod tests {
    use super::*;
    use crate::config::policy::Policy;

    fn policy() -> Policy {
        let mut policy = Policy::default();
        let spec = policy.rules[0].spec;
        let rule =
            NamedRule { name: "smtp".parse().unwrap(), ports: "tcp/25,tcp/587".parse().unwrap(), spec };
        policy.add_rule(rule).unwrap();
        policy
    }

    fn list(pattern: &str) -> Result<Vec<String>, String> {
        let policy = policy();
        let keys = select(&policy.rules, policy.prefixes, pattern).map_err(|error| error.to_string())?;
        Ok(keys.into_iter().map(|(key, value)| format!("{key} = {value}")).collect())
    }

    #[test]
    fn every_key_is_listed_in_order_and_parses() {
        let policy = policy();
        let keys = all(&policy.rules, policy.prefixes);
        let shown: Vec<_> = keys.iter().map(|(key, value)| format!("{key} = {value}")).collect();
        assert_eq!(shown.len(), 2 + 2 * RuleField::ALL.len());
        assert_eq!(
            shown[..10],
            [
                "core.ipv4_prefix = 32",
                "core.ipv6_prefix = 64",
                "rule.default.ports = every other",
                "rule.default.limit = 100/1s",
                "rule.default.action = ban",
                "rule.default.ban = 1m",
                "rule.default.ban_max = 1d",
                "rule.default.forget = 1d",
                "rule.default.scope = all",
                "rule.smtp.ports = tcp/25,tcp/587",
            ]
        );
        for (key, value) in keys {
            assert_eq!(key.to_string().parse(), Ok(key.clone()));
            assert_eq!(key.get(&policy.rules, policy.prefixes), Some(value));
        }
    }

    #[test]
    fn everything_listed_can_be_set_again_and_changes_nothing() {
        let before = policy();
        let mut after = before.clone();
        for (key, value) in all(&before.rules, before.prefixes) {
            let Key::Rule { ref rule, field } = key else { continue };
            let rule = after.rules.iter_mut().find(|other| other.name == *rule).unwrap();
            if key.read_only().is_none() {
                field.set(&mut rule.spec, &value).unwrap();
            }
        }
        assert_eq!(after, before);
    }

    #[test]
    fn what_cannot_be_set_says_how_to_change_it() {
        for text in ["core.ipv4_prefix", "core.ipv6_prefix", "rule.smtp.ports"] {
            assert!(text.parse::<Key>().unwrap().read_only().unwrap().contains("\nhint: "), "{text}");
        }
        assert_eq!("rule.smtp.limit".parse::<Key>().unwrap().read_only(), None);
    }

    #[test]
    fn keys_are_found_by_name_and_by_pattern() {
        assert_eq!(list("core.ipv6_prefix").unwrap(), ["core.ipv6_prefix = 64"]);
        assert_eq!(
            list("rule.*.limit").unwrap(),
            ["rule.default.limit = 100/1s", "rule.smtp.limit = 100/1s"]
        );
        assert_eq!(list("rule.smtp.ban*").unwrap(), ["rule.smtp.ban = 1m", "rule.smtp.ban_max = 1d"]);
        assert_eq!(list("*").unwrap().len(), 16);
    }

    #[test]
    fn unknown_keys_get_a_hint() {
        let cases = [
            ("core.ipv4_prefx", "no such key as `core.ipv4_prefx`\nhint: did you mean `core.ipv4_prefix`?"),
            ("rule.smtp.lmit", "no such key as `rule.smtp.lmit`\nhint: did you mean `rule.smtp.limit`?"),
            (
                "rule.smtp.refresh",
                "no such key as `rule.smtp.refresh`\nhint: a rule has `ports`, `limit`, `action`, `ban`, `ban_max`, \
                 `forget`, `scope`",
            ),
            (
                "rule.SMTP.limit",
                "no such key as `rule.SMTP.limit`\nhint: a rule's name stands second, as in `rule.smtp.limit`",
            ),
            (
                "limit",
                "no such key as `limit`\nhint: `core.ipv4_prefix`, `core.ipv6_prefix` or `rule.<name>.limit`",
            ),
            ("rule.smpt.limit", "no such rule as `smpt`\nhint: there are `default`, `smtp`"),
            ("rule.smt.limit", "no such rule as `smt`\nhint: did you mean `smtp`?"),
            ("rule.imap.*", "no key matches `rule.imap.*`\nhint: `dosguard sysctl -a` lists every key"),
        ];
        for (text, message) in cases {
            assert_eq!(list(text).unwrap_err(), message);
        }
    }

    #[test]
    fn patterns_match_as_in_a_shell() {
        for (pattern, text) in
            [("*", ""), ("*", "a.b"), ("a*c", "abbc"), ("a?c", "abc"), ("*a*b*", "xaxbx"), ("", "")]
        {
            assert!(matches(pattern, text), "{pattern} {text}");
        }
        for (pattern, text) in
            [("?", ""), ("a", "ab"), ("a*c", "abd"), ("a?c", "ac"), ("*ab", "abc"), ("", "a")]
        {
            assert!(!matches(pattern, text), "{pattern} {text}");
        }
        assert!(!matches(&"*a".repeat(40), &"a".repeat(2_000).replace("aa", "ab")[..60]));
    }

    #[test]
    fn assignments_are_split_at_the_first_equals_sign() {
        assert_eq!(split_assignment("rule.smtp.limit = 3/60s"), Some(("rule.smtp.limit", "3/60s")));
        assert_eq!(split_assignment("a=b=c"), Some(("a", "b=c")));
        assert_eq!(split_assignment("a"), None);
    }

    #[test]
    fn distance_counts_edits() {
        for (from, to, edits) in
            [("", "abc", 3), ("kitten", "sitting", 3), ("limit", "limit", 0), ("ban", "bna", 2)]
        {
            assert_eq!(distance(from, to), edits);
            assert_eq!(distance(to, from), edits);
        }
    }
}
