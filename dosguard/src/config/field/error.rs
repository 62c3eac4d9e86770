//! What is wrong with a setting of a rule.

use dosguard_common::rule::MAX_CONNECTIONS;
use thiserror::Error;

use super::{RuleField, SHORTEST_BAN};
use crate::config::limit::LimitError;
use crate::config::ports::PortError;
use crate::config::units::{Span, SpanError};

/// Why a setting does not take a value.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum FieldError {
    /// The limit is malformed or out of range.
    #[error(transparent)]
    Limit(#[from] LimitError),
    /// A duration is malformed.
    #[error("{field}: {error}")]
    Duration {
        /// Which setting.
        field: RuleField,
        /// Why it is no duration.
        error: SpanError,
    },
    /// A ban of zero was asked for.
    #[error(
        "{field} `{text}`: a ban cannot be zero\nhint: such as `{}`; action `drop` is the one without bans",
        ban_of(*.field)
    )]
    ZeroBan {
        /// `ban`, `ban_max` or `unproven_ban`.
        field: RuleField,
        /// What was written.
        text: String,
    },
    /// A ban of next to nothing was asked for.
    #[error("{field} `{text}` is too short\nhint: `{SHORTEST_BAN}` or more, such as `{}`", ban_of(*.field))]
    ShortBan {
        /// `ban`, `ban_max` or `unproven_ban`.
        field: RuleField,
        /// What was written.
        text: String,
    },
    /// The longest ban is shorter than the first.
    #[error(
        "ban_max `{ban_max}` is shorter than ban `{ban}`\nhint: a ban_max of `{ban}` or more, or a shorter ban"
    )]
    BanMaxBelowBan {
        /// The first ban's length.
        ban: Span,
        /// The longest ban's length.
        ban_max: Span,
    },
    /// There is no such action.
    #[error(
        "no such action as `{text}`\nhint: `ban`, `drop` for only the SYNs over the limit, or `challenge`"
    )]
    Action {
        /// What was written.
        text: String,
    },
    /// There is no such scope.
    #[error(
        "no such scope as `{text}`\nhint: `all` packets of the source, or only its `syn` to the rule's ports"
    )]
    Scope {
        /// What was written.
        text: String,
    },
    /// It is no number of connections.
    #[error(
        "max_connections cannot be `{text}`\nhint: from 1 to {MAX_CONNECTIONS} established connections of one source, such as \
         `100`, or `none` for any number (in a file `\"none\"`)"
    )]
    MaxConnections {
        /// What was written.
        text: String,
    },
    /// It is neither yes nor no.
    #[error(
        "close cannot be `{text}`\nhint: `true` if connections of a source that holds too many are closed, or `false`"
    )]
    Close {
        /// What was written.
        text: String,
    },
    /// It is neither yes nor no.
    #[error(
        "refresh cannot be `{text}`\nhint: `true` if a SYN that arrives during a ban restarts its clock, or `false`"
    )]
    Refresh {
        /// What was written.
        text: String,
    },
    /// It is neither yes nor no.
    #[error(
        "require_proof cannot be `{text}`\nhint: `true` if SYNs alone, which anybody can forge, ban nobody from more than new \
         connections for a short while, or `false`"
    )]
    RequireProof {
        /// What was written.
        text: String,
    },
    /// It is no limit of the SYNs of all sources.
    #[error("flood_limit: {error}, or `none` for any number (in a file `\"none\"`)")]
    FloodLimit {
        /// Why it is no limit.
        error: Box<LimitError>,
    },
    /// There is no such mode.
    #[error("no such mode as `{text}`\nhint: `enforce`, or `monitor` to count and report and drop nothing")]
    Mode {
        /// What was written.
        text: String,
    },
    /// A port is malformed.
    #[error(transparent)]
    Port(#[from] PortError),
}

/// How long such a ban may be.
const fn ban_of(field: RuleField) -> &'static str {
    match field {
        RuleField::UnprovenBan => "10s",
        _ => "10m",
    }
}
