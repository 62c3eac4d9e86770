//! The settings of one rule by name, wherever they are written: in the file, as a sysctl key, on the command line.

use std::fmt;

use dosguard_common::config::Mode;
use dosguard_common::rule::{Action, MAX_CONNECTIONS, RuleSpec, Scope};
use thiserror::Error;

use super::limit::{Limit, LimitError};
use super::policy::NamedRule;
use super::ports::{PortError, Ports};
use super::units::{Span, SpanError};

/// A setting of a rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum RuleField {
    /// Which ports the rule covers.
    Ports,
    /// SYNs within a window: `100/1s`.
    Limit,
    /// `ban`, or `drop` for only the SYNs over the limit.
    Action,
    /// The first ban's length.
    Ban,
    /// The longest ban.
    BanMax,
    /// How long an offence is remembered after its ban; `0s` for not at all.
    Forget,
    /// What a ban reaches: `all` packets, or only `syn` to the rule's ports.
    Scope,
    /// Whether a SYN that arrives while its source is banned restarts the ban's clock: `true` or `false`.
    Refresh,
    /// `enforce`, or `monitor` to drop nothing.
    Mode,
    /// How many established connections one source may hold; `none` for any number.
    MaxConnections,
    /// Whether the connections of a source that holds too many are closed: `true` or `false`.
    Close,
}

/// Any number of connections.
pub(crate) const NO_LIMIT: &str = "none";

/// The shortest ban: a shorter one would report more than it drops.
const SHORTEST_BAN: Span = Span::from_ns(100_000_000);

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
        "{field} `{text}`: a ban cannot be zero\nhint: such as `10m`; action `drop` is the one without bans"
    )]
    ZeroBan {
        /// `ban` or `ban_max`.
        field: RuleField,
        /// What was written.
        text: String,
    },
    /// A ban of next to nothing was asked for.
    #[error("{field} `{text}` is too short\nhint: `{SHORTEST_BAN}` or more, such as `10m`")]
    ShortBan {
        /// `ban` or `ban_max`.
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
    #[error("no such action as `{text}`\nhint: `ban`, or `drop` for only the SYNs over the limit")]
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

impl RuleField {
    /// Every setting, in the order in which they are listed.
    pub const ALL: [Self; 11] = [
        Self::Ports,
        Self::Limit,
        Self::Action,
        Self::Ban,
        Self::BanMax,
        Self::Forget,
        Self::Scope,
        Self::Refresh,
        Self::Mode,
        Self::MaxConnections,
        Self::Close,
    ];

    /// Its name in the file and in keys.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Ports => "ports",
            Self::Limit => "limit",
            Self::Action => "action",
            Self::Ban => "ban",
            Self::BanMax => "ban_max",
            Self::Forget => "forget",
            Self::Scope => "scope",
            Self::Refresh => "refresh",
            Self::Mode => "mode",
            Self::MaxConnections => "max_connections",
            Self::Close => "close",
        }
    }

    /// The setting of this name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|field| field.name() == name)
    }

    /// How it looks in a file, as TOML.
    pub const fn example(self) -> &'static str {
        match self {
            Self::Ports => r#"ports = ["tcp/25", "tcp/8000-8100"]"#,
            Self::Limit => r#"limit = "100/1s""#,
            Self::Action => r#"action = "ban""#,
            Self::Ban => r#"ban = "10m""#,
            Self::BanMax => r#"ban_max = "1d""#,
            Self::Forget => r#"forget = "1d""#,
            Self::Scope => r#"scope = "all""#,
            Self::Refresh => "refresh = true",
            Self::Mode => r#"mode = "monitor""#,
            Self::MaxConnections => "max_connections = 100",
            Self::Close => "close = true",
        }
    }

    /// The rule's value as text, which can be given to [`assign`](Self::assign) as it is; all but the ports of `default`,
    /// which are shown as `every other`.
    pub fn get(self, rule: &NamedRule) -> String {
        let spec = &rule.spec;
        match self {
            Self::Ports if rule.name.is_default() => "every other".to_owned(),
            Self::Ports => rule.ports.to_string(),
            // Not through `Limit`, which would refuse what another version may have put into the maps.
            Self::Limit => format!("{}/{}", spec.limit, Span::from_ns(spec.window_ns)),
            Self::Action => spec.action.name().to_owned(),
            Self::Ban => Span::from_ns(spec.ban_ns).to_string(),
            Self::BanMax => Span::from_ns(spec.ban_max_ns).to_string(),
            Self::Forget => Span::from_ns(spec.forget_ns).to_string(),
            Self::Scope => spec.scope.name().to_owned(),
            Self::Refresh => spec.refresh.to_string(),
            Self::Mode => spec.mode.name().to_owned(),
            Self::MaxConnections if spec.connections.max == 0 => NO_LIMIT.to_owned(),
            Self::MaxConnections => spec.connections.max.to_string(),
            Self::Close => spec.connections.close.to_string(),
        }
    }

    /// Sets it from text, without a look at the rule's other settings and at other rules: so `ban` and `ban_max` can be
    /// changed in either order. [`Policy::add_rule`](super::policy::Policy::add_rule) looks at all of it.
    ///
    /// # Errors
    ///
    /// The value is malformed or out of range. Then `rule` is as it was.
    pub fn assign(self, rule: &mut NamedRule, text: &str) -> Result<(), FieldError> {
        let spec = &mut rule.spec;
        let span = || text.parse::<Span>().map_err(|error| FieldError::Duration { field: self, error });
        let ban = || match span()?.ns() {
            0 => Err(FieldError::ZeroBan { field: self, text: text.to_owned() }),
            ns if ns < SHORTEST_BAN.ns() => Err(FieldError::ShortBan { field: self, text: text.to_owned() }),
            ns => Ok(ns),
        };
        match self {
            // That a rule needs ports is for the policy to say.
            Self::Ports if text.is_empty() => rule.ports = Ports::default(),
            Self::Ports => rule.ports = text.parse()?,
            Self::Limit => {
                let limit: Limit = text.parse()?;
                spec.limit = limit.count();
                spec.window_ns = limit.window().ns();
            }
            Self::Action => {
                let action = Action::ALL.into_iter().find(|action| action.name() == text);
                spec.action = action.ok_or_else(|| FieldError::Action { text: text.to_owned() })?;
            }
            Self::Ban => spec.ban_ns = ban()?,
            Self::BanMax => spec.ban_max_ns = ban()?,
            Self::Forget => spec.forget_ns = span()?.ns(),
            Self::Scope => {
                let scope = [Scope::All, Scope::Syn].into_iter().find(|scope| scope.name() == text);
                spec.scope = scope.ok_or_else(|| FieldError::Scope { text: text.to_owned() })?;
            }
            Self::Refresh => {
                spec.refresh = text.parse().map_err(|_| FieldError::Refresh { text: text.to_owned() })?;
            }
            Self::Mode => spec.mode = parse_mode(text)?,
            Self::MaxConnections if text == NO_LIMIT => spec.connections.max = 0,
            Self::MaxConnections => {
                let digits = text.bytes().all(|byte| byte.is_ascii_digit());
                let max = digits.then(|| text.parse().ok()).flatten();
                let max = max.filter(|max| (1..=MAX_CONNECTIONS).contains(max));
                spec.connections.max =
                    max.ok_or_else(|| FieldError::MaxConnections { text: text.to_owned() })?;
            }
            Self::Close => {
                spec.connections.close =
                    text.parse().map_err(|_| FieldError::Close { text: text.to_owned() })?;
            }
        }
        Ok(())
    }
}

impl fmt::Display for RuleField {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// The mode of this name.
///
/// # Errors
///
/// There is no such mode.
pub fn parse_mode(text: &str) -> Result<Mode, FieldError> {
    let mode = [Mode::Enforce, Mode::Monitor].into_iter().find(|mode| mode.name() == text);
    mode.ok_or_else(|| FieldError::Mode { text: text.to_owned() })
}

/// The same demand, with a longest ban that is not shorter than the first: who asks for a first ban above the usual
/// longest one, and says nothing of that, has said enough.
#[must_use]
pub const fn with_room_for_ban(mut spec: RuleSpec) -> RuleSpec {
    if spec.ban_max_ns < spec.ban_ns {
        spec.ban_max_ns = spec.ban_ns;
    }
    spec
}

/// Whether a rule may demand this.
///
/// # Errors
///
/// The limit or the window is out of range, a ban is zero, or the longest ban is shorter than the first.
pub fn check(spec: &RuleSpec) -> Result<(), FieldError> {
    Limit::new(spec.limit, Span::from_ns(spec.window_ns))?;
    for (field, ns) in [(RuleField::Ban, spec.ban_ns), (RuleField::BanMax, spec.ban_max_ns)] {
        if ns == 0 {
            return Err(FieldError::ZeroBan { field, text: Span::from_ns(ns).to_string() });
        }
    }
    if spec.ban_max_ns < spec.ban_ns {
        let (ban, ban_max) = (Span::from_ns(spec.ban_ns), Span::from_ns(spec.ban_max_ns));
        return Err(FieldError::BanMaxBelowBan { ban, ban_max });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::policy::{RuleName, default_spec};

    fn rule() -> NamedRule {
        let name: RuleName = "smtp".parse().unwrap();
        NamedRule { name, ports: "tcp/25".parse().unwrap(), spec: default_spec() }
    }

    #[test]
    fn what_is_read_can_be_written_and_changes_nothing() {
        for field in RuleField::ALL {
            assert_eq!(RuleField::from_name(field.name()), Some(field));
            let mut written = rule();
            field.assign(&mut written, &field.get(&rule())).unwrap();
            assert_eq!(written, rule());
        }
        assert_eq!(RuleField::from_name("colour"), None);
    }

    #[test]
    fn each_setting_changes_its_own_value() {
        let mut rule = rule();
        let values = [
            (RuleField::Ports, "tcp/25,tcp/587"),
            (RuleField::Limit, "3/1m"),
            (RuleField::Action, "drop"),
            (RuleField::Ban, "10m"),
            (RuleField::BanMax, "2d"),
            (RuleField::Forget, "0s"),
            (RuleField::Scope, "syn"),
            (RuleField::Refresh, "true"),
            (RuleField::Mode, "monitor"),
            (RuleField::MaxConnections, "100"),
            (RuleField::Close, "true"),
        ];
        for (field, value) in values {
            field.assign(&mut rule, value).unwrap();
        }
        assert_eq!(values.map(|(field, _)| field.get(&rule)), values.map(|(_, value)| value));
        assert_eq!((rule.spec.limit, rule.spec.window_ns), (3, 60_000_000_000));
        check(&rule.spec).unwrap();
    }

    #[test]
    fn a_bad_value_changes_nothing_and_says_what_is_accepted() {
        let cases = [
            (
                RuleField::Limit,
                "0/1s",
                "limit `0/1s`: the count is zero\nhint: from 1 to 500000 SYNs, such as `100/1s`",
            ),
            (
                RuleField::Ban,
                "5",
                "ban: duration `5` has no unit\nhint: a whole number and a unit: ns, us, ms, s, m, h or d, such as `10m`",
            ),
            (
                RuleField::Ban,
                "0s",
                "ban `0s`: a ban cannot be zero\nhint: such as `10m`; action `drop` is the one without bans",
            ),
            (
                RuleField::Action,
                "Ban",
                "no such action as `Ban`\nhint: `ban`, or `drop` for only the SYNs over the limit",
            ),
            (
                RuleField::Scope,
                "",
                "no such scope as ``\nhint: `all` packets of the source, or only its `syn` to the rule's ports",
            ),
            (
                RuleField::Refresh,
                "yes",
                "refresh cannot be `yes`\nhint: `true` if a SYN that arrives during a ban restarts its clock, or `false`",
            ),
            (
                RuleField::Mode,
                "off",
                "no such mode as `off`\nhint: `enforce`, or `monitor` to count and report and drop nothing",
            ),
            (
                RuleField::MaxConnections,
                "0",
                "max_connections cannot be `0`\nhint: from 1 to 10000000 established connections of one source, such as `100`, \
                 or `none` for any number (in a file `\"none\"`)",
            ),
            (
                RuleField::Close,
                "2",
                "close cannot be `2`\nhint: `true` if connections of a source that holds too many are closed, or `false`",
            ),
            (RuleField::Ports, "tcp/0", "`tcp/0`: there is no port `0`\nhint: from 1 to 65535"),
        ];
        for (field, value, message) in cases {
            let mut written = rule();
            assert_eq!(field.assign(&mut written, value).unwrap_err().to_string(), message);
            assert_eq!(written, rule());
        }
    }

    #[test]
    fn settings_that_belong_together_are_looked_at_together() {
        let mut rule = rule();
        RuleField::Ban.assign(&mut rule, "2d").unwrap();
        assert_eq!(
            check(&rule.spec).unwrap_err().to_string(),
            "ban_max `1d` is shorter than ban `2d`\nhint: a ban_max of `2d` or more, or a shorter ban"
        );
        RuleField::BanMax.assign(&mut rule, "4d").unwrap();
        check(&rule.spec).unwrap();
    }
}
