//! The settings of one rule by name, wherever they are written: in the file, as a sysctl key, on the command line.

mod error;

use std::fmt;

use dosguard_common::config::Mode;
use dosguard_common::flood::FloodLimit;
use dosguard_common::rule::{Action, MAX_CONNECTIONS, RuleSpec, Scope};

pub use self::error::FieldError;

use super::limit::Limit;
use super::policy::NamedRule;
use super::ports::Ports;
use super::units::Span;

/// A setting of a rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum RuleField {
    /// Which ports the rule covers.
    Ports,
    /// SYNs within a window: `100/1s`.
    Limit,
    /// `ban`, `drop` for only the SYNs over the limit, or `challenge` to answer them.
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
    /// Whether SYNs alone, which anybody can forge, ban nobody from more than new connections for a short while: `true` or
    /// `false`.
    RequireProof,
    /// How long a ban without proof lasts.
    UnprovenBan,
    /// SYNs of all sources together within a window, beyond which those without proof are challenged: `20000/1s`, or `none`.
    FloodLimit,
}

/// Any number of connections, or of SYNs of all sources.
pub(crate) const NO_LIMIT: &str = "none";

/// The shortest ban: a shorter one would report more than it drops.
const SHORTEST_BAN: Span = Span::from_ns(100_000_000);

impl RuleField {
    /// Every setting, in the order in which they are listed.
    pub const ALL: [Self; 14] = [
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
        Self::RequireProof,
        Self::UnprovenBan,
        Self::FloodLimit,
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
            Self::RequireProof => "require_proof",
            Self::UnprovenBan => "unproven_ban",
            Self::FloodLimit => "flood_limit",
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
            Self::RequireProof => "require_proof = true",
            Self::UnprovenBan => r#"unproven_ban = "10s""#,
            Self::FloodLimit => r#"flood_limit = "20000/1s""#,
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
            Self::RequireProof => spec.proof.required.to_string(),
            Self::UnprovenBan => Span::from_ns(spec.proof.unproven_ban_ns).to_string(),
            Self::FloodLimit if spec.flood.max == 0 => NO_LIMIT.to_owned(),
            Self::FloodLimit => format!("{}/{}", spec.flood.max, Span::from_ns(spec.flood.window_ns)),
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
            Self::RequireProof => {
                spec.proof.required =
                    text.parse().map_err(|_| FieldError::RequireProof { text: text.to_owned() })?;
            }
            Self::UnprovenBan => spec.proof.unproven_ban_ns = ban()?,
            Self::FloodLimit if text == NO_LIMIT => spec.flood = FloodLimit::NONE,
            Self::FloodLimit => {
                let limit: Limit =
                    text.parse().map_err(|error| FieldError::FloodLimit { error: Box::new(error) })?;
                spec.flood = FloodLimit { max: limit.count(), window_ns: limit.window().ns() };
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
mod tests;
