//! What one instance shall do, checked as a whole.

use std::fmt;
use std::str::FromStr;

use dosguard_common::abi;
use dosguard_common::address::SourceMask;
use dosguard_common::config::{EVENTS_RATE, Mode};
use dosguard_common::rule::{Action, MAX_NAME, RuleSpec, Scope};
use thiserror::Error;

use super::cidr::Cidr;
use super::field::{self, FieldError, RuleField};
use super::ports::Ports;
use super::units::Span;

/// How many rules there may be besides `default`.
pub const MAX_RULES: usize = abi::RULES.entries as usize - 1;

/// How many allow-list entries the kernel's map holds.
pub const MAX_ALLOWED: usize = abi::ALLOW.entries as usize;

/// Longest interface name, in bytes: the kernel's `IFNAMSIZ` less its final zero.
const MAX_INTERFACE: usize = 15;

/// The name of the rule for every port that no other rule names.
const DEFAULT: &str = "default";

/// What one instance shall do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Policy {
    /// Interfaces to guard, each once; more may come from the command line.
    pub interfaces: Vec<String>,
    /// Whether what is decided is done, or only counted and reported.
    pub mode: Mode,
    /// Networks that are never counted, dropped or banned.
    pub allow: Vec<Cidr>,
    /// Networks from which every packet is dropped.
    pub deny: Vec<Cidr>,
    /// Events of one kind that each CPU reports in a second.
    pub events_rate: u32,
    /// How much of an address makes a source.
    pub prefixes: SourcePrefixes,
    /// The rules. The first is always `default`; the others are in the order of the file.
    pub rules: Vec<NamedRule>,
}

/// How many leading bits of an address make a source.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SourcePrefixes {
    /// For IPv4, 1 to 32.
    pub ipv4: u8,
    /// For IPv6, 1 to 128.
    pub ipv6: u8,
}

/// A rule with its name and ports.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NamedRule {
    /// Its name, which no other rule has.
    pub name: RuleName,
    /// The ports it covers; empty for `default`, which covers all that are left.
    pub ports: Ports,
    /// What it demands.
    pub spec: RuleSpec,
}

/// A rule's name: 1 to 15 bytes of `a-z`, `0-9`, `_` and `-`, the first a letter. So it needs no quotes anywhere, and
/// has no dot that could be taken for the end of a key's part.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RuleName(String);

/// Why a policy cannot be.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum PolicyError {
    /// A rule's name is malformed.
    #[error(
        "`{name}` cannot be a rule's name\nhint: 1 to {MAX_NAME} of the characters a-z, 0-9, `_` and `-`, the first a \
         letter, such as `smtp`"
    )]
    RuleName {
        /// What was written.
        name: String,
    },
    /// Two rules have the same name.
    #[error("there are two rules `{name}`\nhint: give each its own name")]
    DuplicateRule {
        /// The name.
        name: RuleName,
    },
    /// Two rules name the same port.
    #[error(
        "port `tcp/{port}` is in rule `{first}` and in rule `{second}`\nhint: name each port in one rule only"
    )]
    DuplicatePort {
        /// The lowest port that both name.
        port: u16,
        /// The rule that was there before.
        first: RuleName,
        /// The rule that names it again.
        second: RuleName,
    },
    /// A rule other than `default` names no port.
    #[error("rule `{name}` has no ports\nhint: such as `{}`", RuleField::Ports.example())]
    NoPorts {
        /// The rule.
        name: RuleName,
    },
    /// The rule `default` names ports.
    #[error(
        "rule `default` covers every port that no other rule names, and cannot have `ports`\nhint: give a rule for \
         certain ports another name"
    )]
    DefaultWithPorts,
    /// There are more rules than the kernel's map holds.
    #[error("rule `{name}` is one too many\nhint: at most {MAX_RULES} besides `default`")]
    TooManyRules {
        /// The first rule that has no place.
        name: RuleName,
    },
    /// There are more allow-list entries than the kernel's map holds.
    #[error("{count} entries are too many for the allow-list\nhint: at most {MAX_ALLOWED}")]
    TooManyAllowed {
        /// How many there are.
        count: usize,
    },
    /// A source prefix is out of range.
    #[error("{family} sources cannot have `{bits}` bits\nhint: from 1 to {longest}")]
    SourcePrefix {
        /// `IPv4` or `IPv6`.
        family: &'static str,
        /// What was written.
        bits: String,
        /// The longest of the family.
        longest: u8,
    },
    /// No interface can have this name.
    #[error(
        "`{name}` cannot be an interface's name\nhint: a name as in the output of `ip link`, such as `eth0`"
    )]
    Interface {
        /// What was written.
        name: String,
    },
    /// An interface is named twice.
    #[error("interface `{name}` is named twice\nhint: name each interface once")]
    DuplicateInterface {
        /// The name.
        name: String,
    },
    /// A rule demands what cannot be.
    #[error(transparent)]
    Field(#[from] FieldError),
}

impl Policy {
    /// Adds a rule, or replaces `default`, which is always there.
    ///
    /// # Errors
    ///
    /// The rule is at odds with itself or with those that are there; then nothing changes.
    pub fn add_rule(&mut self, rule: NamedRule) -> Result<(), PolicyError> {
        field::check(&rule.spec)?;
        if rule.name.is_default() {
            if !rule.ports.is_empty() {
                return Err(PolicyError::DefaultWithPorts);
            }
            match self.rules.first_mut() {
                Some(default) => *default = rule,
                None => self.rules.push(rule),
            }
            return Ok(());
        }
        if rule.ports.is_empty() {
            return Err(PolicyError::NoPorts { name: rule.name });
        }
        for other in &self.rules {
            if other.name == rule.name {
                return Err(PolicyError::DuplicateRule { name: rule.name });
            }
            if let Some(port) = other.ports.first_common(&rule.ports) {
                let (first, second) = (other.name.clone(), rule.name);
                return Err(PolicyError::DuplicatePort { port, first, second });
            }
        }
        if self.rules.len() > MAX_RULES {
            return Err(PolicyError::TooManyRules { name: rule.name });
        }
        self.rules.push(rule);
        Ok(())
    }

    /// Adds an interface.
    ///
    /// # Errors
    ///
    /// No interface can have this name, or it is there already. Whether it exists is not looked at.
    pub fn add_interface(&mut self, name: &str) -> Result<(), PolicyError> {
        // The kernel's own rule: `dev_valid_name` in net/core/dev.c.
        let valid = (1..=MAX_INTERFACE).contains(&name.len())
            && !matches!(name, "." | "..")
            && !name.contains(|c: char| matches!(c, '/' | ':' | '\0') || c.is_whitespace());
        if !valid {
            return Err(PolicyError::Interface { name: name.to_owned() });
        }
        if self.interfaces.iter().any(|other| other == name) {
            return Err(PolicyError::DuplicateInterface { name: name.to_owned() });
        }
        self.interfaces.push(name.to_owned());
        Ok(())
    }

    /// The rule of this name.
    pub fn rule(&self, name: &str) -> Option<&NamedRule> {
        self.rules.iter().find(|rule| rule.name.as_str() == name)
    }
}

impl Default for Policy {
    /// The policy of an empty file: rule `default` alone.
    fn default() -> Self {
        let default = NamedRule { name: RuleName::default(), ports: Ports::default(), spec: default_spec() };
        Self {
            interfaces: Vec::new(),
            mode: Mode::default(),
            allow: Vec::new(),
            deny: Vec::new(),
            events_rate: EVENTS_RATE,
            prefixes: SourcePrefixes::default(),
            rules: vec![default],
        }
    }
}

/// What a rule demands where nothing else is said: limit `100/1s`, action `ban`, scope `all`, ban `1m`, ban_max `1d`,
/// forget `1d`.
///
/// A hundred new connections a second are far more than a person's browser opens, even behind a shared address, and
/// far less than a flood. A first ban of a minute costs a legitimate source little; one that keeps on is out for a day
/// from its twelfth offence on.
pub const fn default_spec() -> RuleSpec {
    const DAY: Span = Span::from_secs(24 * 60 * 60);
    RuleSpec {
        limit: 100,
        window_ns: Span::from_secs(1).ns(),
        action: Action::Ban,
        scope: Scope::All,
        ban_ns: Span::from_secs(60).ns(),
        ban_max_ns: DAY.ns(),
        forget_ns: DAY.ns(),
        refresh: false,
        mode: Mode::Enforce,
    }
}

impl Default for SourcePrefixes {
    /// Each IPv4 address, and each IPv6 /64: what one customer gets, and may send from any address of.
    fn default() -> Self {
        Self { ipv4: 32, ipv6: 64 }
    }
}

impl From<SourceMask> for SourcePrefixes {
    fn from(mask: SourceMask) -> Self {
        let (ipv4, ipv6) = mask.prefixes();
        // A mask has no more bits than its family.
        let bits = |bits| u8::try_from(bits).unwrap_or(u8::MAX);
        Self { ipv4: bits(ipv4), ipv6: bits(ipv6) }
    }
}

impl From<SourcePrefixes> for SourceMask {
    fn from(prefixes: SourcePrefixes) -> Self {
        Self::new(prefixes.ipv4, prefixes.ipv6)
    }
}

impl RuleName {
    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether it is the name of the rule for all other ports.
    pub fn is_default(&self) -> bool {
        self.0 == DEFAULT
    }
}

impl Default for RuleName {
    /// `default`.
    fn default() -> Self {
        Self(DEFAULT.to_owned())
    }
}

impl FromStr for RuleName {
    type Err = PolicyError;

    fn from_str(name: &str) -> Result<Self, PolicyError> {
        let letter = name.starts_with(|c: char| c.is_ascii_lowercase());
        let known = |c: char| matches!(c, 'a'..='z' | '0'..='9' | '_' | '-');
        if letter && name.len() <= MAX_NAME && name.chars().all(known) {
            Ok(Self(name.to_owned()))
        } else {
            Err(PolicyError::RuleName { name: name.to_owned() })
        }
    }
}

impl AsRef<str> for RuleName {
    fn as_ref(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for RuleName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(name: &str, ports: &str) -> NamedRule {
        let ports = if ports.is_empty() { Ports::default() } else { ports.parse().unwrap() };
        NamedRule { name: name.parse().unwrap(), ports, spec: default_spec() }
    }

    #[test]
    fn the_default_policy_passes_its_own_checks() {
        let mut policy = Policy::default();
        assert!(policy.rules[0].name.is_default());
        policy.add_rule(policy.rules[0].clone()).unwrap();
        assert_eq!(policy, Policy::default());
        assert_eq!(SourceMask::from(policy.prefixes).prefixes(), (32, 64));
    }

    #[test]
    fn default_is_replaced_and_others_are_added() {
        let mut policy = Policy::default();
        policy.add_rule(rule("smtp", "tcp/25,tcp/587")).unwrap();
        let mut default = rule("default", "");
        default.spec.limit = 7;
        policy.add_rule(default).unwrap();
        assert_eq!(policy.rules.len(), 2);
        assert_eq!(policy.rules[0].spec.limit, 7);
        assert_eq!(policy.rule("smtp").unwrap().ports.to_string(), "tcp/25,tcp/587");
        assert!(policy.rule("ssh").is_none());
    }

    #[test]
    fn rules_that_cannot_be_together_are_refused() {
        let mut policy = Policy::default();
        policy.add_rule(rule("smtp", "tcp/25,tcp/587")).unwrap();
        let before = policy.clone();
        let cases = [
            (
                rule("mail", "tcp/500-600"),
                "port `tcp/587` is in rule `smtp` and in rule `mail`\nhint: name each port in one rule only",
            ),
            (rule("smtp", "tcp/26"), "there are two rules `smtp`\nhint: give each its own name"),
            (
                rule("mail", ""),
                "rule `mail` has no ports\nhint: such as `ports = [\"tcp/25\", \"tcp/8000-8100\"]`",
            ),
            (
                rule("default", "tcp/80"),
                "rule `default` covers every port that no other rule names, and cannot have `ports`\nhint: give a \
                 rule for certain ports another name",
            ),
        ];
        for (rule, message) in cases {
            assert_eq!(policy.add_rule(rule).unwrap_err().to_string(), message);
        }
        let mut mad = rule("mad", "tcp/1");
        mad.spec.ban_ns = 0;
        assert!(matches!(policy.add_rule(mad), Err(PolicyError::Field(FieldError::ZeroBan { .. }))));
        assert_eq!(policy, before);
    }

    #[test]
    fn the_kernel_holds_255_rules_besides_default() {
        let mut policy = Policy::default();
        for n in 1..=255 {
            policy.add_rule(rule(&format!("r{n}"), &format!("tcp/{n}"))).unwrap();
        }
        let error = policy.add_rule(rule("more", "tcp/999")).unwrap_err().to_string();
        assert_eq!(error, "rule `more` is one too many\nhint: at most 255 besides `default`");
        policy.add_rule(rule("default", "")).unwrap();
        assert_eq!(policy.rules.len(), 256);
    }

    #[test]
    fn names_are_plain() {
        for name in ["a", "smtp", "web-2_x", "fifteen-letters"] {
            assert_eq!(name.parse::<RuleName>().unwrap().as_str(), name);
        }
        for name in ["", "1st", "-a", "_a", "Web", "a.b", "a b", "sixteen--letters", "straße", "*"] {
            assert!(name.parse::<RuleName>().is_err(), "{name}");
        }
        assert!("default".parse::<RuleName>().unwrap().is_default());
    }

    #[test]
    fn interfaces_are_named_as_the_kernel_allows() {
        let mut policy = Policy::default();
        for name in ["eth0", "br-lan.7", "wg_1", "fifteen-letters"] {
            policy.add_interface(name).unwrap();
        }
        for name in ["", ".", "..", "a/b", "a:b", "a b", "sixteen--letters"] {
            assert!(matches!(policy.add_interface(name), Err(PolicyError::Interface { .. })), "{name}");
        }
        let error = policy.add_interface("eth0").unwrap_err().to_string();
        assert_eq!(error, "interface `eth0` is named twice\nhint: name each interface once");
    }
}
