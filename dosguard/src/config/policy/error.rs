//! Why a policy cannot be.

use dosguard_common::rule::MAX_NAME;
use thiserror::Error;

use super::{MAX_EVENTS_RATE, MAX_RULES, RuleName};
use crate::config::field::FieldError;

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
    #[error("rule `{name}` has no ports\nhint: name some, such as `tcp/25` or `tcp/8000-8100`")]
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
    /// There are more networks than the kernel's map holds.
    #[error(
        "{count} networks are too many for the {list}-list\nhint: at most {most}, which is half of what the list holds; `[size]` can give it more"
    )]
    TooManyListed {
        /// `allow` or `deny`.
        list: &'static str,
        /// How many there are.
        count: usize,
        /// How many there may be.
        most: usize,
    },
    /// The rate of events is out of range.
    #[error(
        "`{text}` cannot be the rate of events\nhint: a whole number from 0 to {MAX_EVENTS_RATE}: events of one kind that \
         each CPU reports in a second"
    )]
    EventsRate {
        /// What was written.
        text: String,
    },
    /// It is no age of proofs.
    #[error("proof_age cannot be `{text}`\nhint: `1s` or more, such as `1h`")]
    ProofAge {
        /// What was written.
        text: String,
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
