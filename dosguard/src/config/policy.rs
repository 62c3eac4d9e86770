//! What one instance shall do, checked as a whole.

mod error;

use std::fmt;
use std::str::FromStr;

use dosguard_common::abi;
use dosguard_common::address::SourceMask;
use dosguard_common::config::{EVENTS_RATE, Mode};
use dosguard_common::flood::FloodLimit;
use dosguard_common::proof::{PROOF_AGE_NS, ProofDemand};
use dosguard_common::rule::{Action, ConnectionLimit, MAX_NAME, RuleSpec, Scope};

pub use error::PolicyError;

use super::cidr::Cidr;
use super::field;
use super::ports::Ports;
use super::units::Span;

/// How many rules there may be besides `default`.
pub const MAX_RULES: usize = abi::RULES.entries as usize - 1;

/// The most events of one kind that each CPU may be asked to report in a second.
pub const MAX_EVENTS_RATE: u32 = 1_000_000;

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
    /// Events of one kind that each CPU reports in a second, up to [`MAX_EVENTS_RATE`].
    pub events_rate: u32,
    /// How long a source counts as real that has completed a handshake.
    pub proof_age: Span,
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

impl NamedRule {
    /// Whether its SYNs alone, which anybody can forge, ban a source as far as the rule says.
    pub fn bans_without_proof(&self) -> bool {
        self.spec.action == Action::Ban && !self.spec.proof.required
    }
}

/// A rule's name: 1 to 15 bytes of `a-z`, `0-9`, `_` and `-`, the first a letter. So it needs no quotes anywhere, and
/// has no dot that could be taken for the end of a key's part.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RuleName(String);

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

    /// Looks at all rules together, as if they were added one by one.
    ///
    /// # Errors
    ///
    /// The first rule that is at odds with itself or with those before it, and why.
    pub fn check_rules(&self) -> Result<(), (RuleName, PolicyError)> {
        let mut added = Self { rules: Vec::new(), ..Self::default() };
        for rule in &self.rules {
            added.add_rule(rule.clone()).map_err(|error| (rule.name.clone(), error))?;
        }
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

    /// The rule of this name, to change; [`check_rules`](Self::check_rules) must follow.
    pub fn rule_mut(&mut self, name: &str) -> Option<&mut NamedRule> {
        self.rules.iter_mut().find(|rule| rule.name.as_str() == name)
    }
}

/// How many events of one kind each CPU shall report in a second.
///
/// # Errors
///
/// It is no whole number up to [`MAX_EVENTS_RATE`].
pub fn parse_events_rate(text: &str) -> Result<u32, PolicyError> {
    let rate = whole_number(text).filter(|rate| *rate <= MAX_EVENTS_RATE);
    rate.ok_or_else(|| PolicyError::EventsRate { text: text.to_owned() })
}

/// How long a source counts as real that has completed a handshake.
///
/// # Errors
///
/// It is no duration, or a shorter one than a second.
pub fn parse_proof_age(text: &str) -> Result<Span, PolicyError> {
    const SHORTEST: Span = Span::from_secs(1);
    let age: Result<Span, _> = text.parse();
    age.ok()
        .filter(|age| age.ns() >= SHORTEST.ns())
        .ok_or_else(|| PolicyError::ProofAge { text: text.to_owned() })
}

/// How many bits of an address of the family make a source.
///
/// # Errors
///
/// It is no whole number from 1 to `longest`.
pub fn parse_source_prefix(family: &'static str, longest: u8, text: &str) -> Result<u8, PolicyError> {
    let bits = whole_number(text).and_then(|bits| u8::try_from(bits).ok());
    let bits = bits.filter(|bits| (1..=longest).contains(bits));
    bits.ok_or_else(|| PolicyError::SourcePrefix { family, bits: text.to_owned(), longest })
}

/// Digits alone: `parse` would take a sign.
fn whole_number(text: &str) -> Option<u32> {
    text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse().ok()).flatten()
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
            proof_age: Span::from_ns(PROOF_AGE_NS),
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
        connections: ConnectionLimit::NONE,
        proof: ProofDemand::DEFAULT,
        flood: FloodLimit::NONE,
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
    use crate::config::field::FieldError;

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
                "rule `mail` has no ports\nhint: name some, such as `tcp/25` or `tcp/8000-8100`",
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
