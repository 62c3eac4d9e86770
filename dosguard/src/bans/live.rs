//! From what people and files say of a ban to the ban in the live instance.

use dosguard_common::address::{Address, SourceMask};
use dosguard_common::ban::{Ban, BanParts, BanReason};
use dosguard_common::config::Mode;
use dosguard_common::key::SourceKey;
use dosguard_common::proof::Evidence;
use dosguard_common::rule::{Rule, RuleIndex, Scope};
use thiserror::Error;

use crate::config::cidr::{Cidr, CidrError, parse_address, to_address};
use crate::config::policy::SourcePrefixes;
use crate::config::units;
use crate::datapath::{self, Maps};
use crate::output::{BanFields, source_text};

/// What a record is read against: how sources and rules are called in the live instance.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Live {
    mask: SourceMask,
    rules: Vec<(RuleIndex, Rule)>,
}

/// From when to when a ban lasts, in nanoseconds of boot time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    /// When it began.
    pub since_ns: u64,
    /// When it ends.
    pub until_ns: u64,
    /// How long it was imposed for.
    pub length_ns: u64,
}

/// Why a record is no ban in the live instance.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum Unfit {
    /// The source is no address and no network.
    #[error(transparent)]
    Source(#[from] CidrError),
    /// The source is a wider network than sources are, or another than those.
    #[error(
        "`{text}` is no source\nhint: sources are IPv4 /{ipv4} and IPv6 /{ipv6}; name one, or an address in it"
    )]
    NoSource {
        /// What was written.
        text: String,
        /// Bits of an IPv4 source.
        ipv4: u8,
        /// Bits of an IPv6 source.
        ipv6: u8,
    },
    /// A field says what it cannot.
    #[error("`{field}` of `{source_text}` is `{value}`\nhint: {accepted}")]
    Field {
        /// Whose.
        source_text: String,
        /// Which.
        field: &'static str,
        /// What it says.
        value: String,
        /// What it may say.
        accepted: &'static str,
    },
    /// The ban is kept under a rule that is not there.
    #[error(
        "`{source_text}` was banned under rule `{rule}`, and there is no such rule\n\
         hint: `rule add {rule}` first, or leave it out"
    )]
    NoRule {
        /// Whose.
        source_text: String,
        /// Its rule.
        rule: String,
    },
    /// The rule drops nothing any more.
    #[error(
        "`{source_text}` was banned by rule `{rule}`, which is only watched now\n\
         hint: `sysctl rule.{rule}.mode=enforce` first, or leave it out"
    )]
    Watched {
        /// Whose.
        source_text: String,
        /// Its rule.
        rule: String,
    },
}

/// The source that is meant: an address, or a network of just the length that sources have.
pub fn parse_source(text: &str, mask: SourceMask) -> Result<Address, Unfit> {
    if !text.contains('/') {
        return Ok(mask.source(to_address(parse_address(text)?)));
    }
    let network = Cidr::of_source(text)?;
    let (address, bits) = network.to_prefix();
    if bits == 128 || bits == source_bits(address, mask) {
        Ok(mask.source(address))
    } else {
        Err(no_source(text, mask))
    }
}

fn source_bits(address: Address, mask: SourceMask) -> u32 {
    let (ipv4, ipv6) = mask.prefixes();
    if address.is_ipv4() { 96 + ipv4 } else { ipv6 }
}

fn no_source(text: &str, mask: SourceMask) -> Unfit {
    let SourcePrefixes { ipv4, ipv6 } = mask.into();
    Unfit::NoSource { text: text.to_owned(), ipv4, ipv6 }
}

impl Live {
    /// As it is now.
    pub fn read(maps: &Maps) -> Result<Self, datapath::Error> {
        Ok(Self { mask: maps.source_mask()?, rules: maps.rules()? })
    }

    /// With these source prefixes and rules.
    pub const fn new(mask: SourceMask, rules: Vec<(RuleIndex, Rule)>) -> Self {
        Self { mask, rules }
    }

    /// What makes a source.
    pub const fn mask(&self) -> SourceMask {
        self.mask
    }

    /// The rules that there are.
    pub fn rules(&self) -> &[(RuleIndex, Rule)] {
        &self.rules
    }

    /// The rule of that name.
    pub fn rule(&self, name: &str) -> Option<(RuleIndex, &Rule)> {
        self.rules.iter().find(|(_, rule)| rule.name() == name).map(|(index, rule)| (*index, rule))
    }

    /// The source that was meant when sources may have been others: of a longer prefix the one that it lies in. Says
    /// whether that is wider than what was meant.
    pub fn saved_source(&self, text: &str) -> Result<(Address, bool), Unfit> {
        let network = Cidr::of_source(text)?;
        let (address, bits) = network.to_prefix();
        let live = source_bits(address, self.mask);
        if bits < live {
            return Err(no_source(text, self.mask));
        }
        Ok((self.mask.source(address), bits > live))
    }

    /// The key of what is kept of a source under a rule, or everywhere without one.
    pub fn key(&self, source: Address, rule: Option<&str>) -> Result<SourceKey, Unfit> {
        match rule {
            None => Ok(SourceKey::everywhere(source)),
            Some(name) => match self.rule(name) {
                Some((index, _)) => Ok(SourceKey::for_rule(source, index)),
                None => Err(Unfit::NoRule { source_text: self.text(source), rule: name.to_owned() }),
            },
        }
    }

    /// How long after its last ban's end a source is remembered at most: by the rule that it is kept under or, everywhere,
    /// by the one that remembers longest.
    pub fn forget_ns(&self, key: &SourceKey) -> u64 {
        let counts = |index: RuleIndex| key.rule().is_none_or(|rule| rule == index);
        let rules = self.rules.iter().filter(|(index, _)| counts(*index));
        rules.map(|(_, rule)| rule.forget_ns()).max().unwrap_or(0)
    }

    /// A source as text.
    pub fn text(&self, source: Address) -> String {
        source_text(source, self.mask.into())
    }

    /// How long a ban lasts at most that was imposed by SYNs alone: it reaches no further than its rule lets it now, whatever
    /// the record says. None for any other.
    pub fn unproven_ns(&self, record: &BanFields) -> Option<u64> {
        if record.offences != 0 || record.reason.as_deref() != Some(BanReason::SynLimit.name()) {
            return None;
        }
        match self.rule(record.rule.as_deref().unwrap_or_default()) {
            Some((_, rule)) if !rule.proof().required => None,
            Some((_, rule)) => Some(rule.unproven_ban_ns()),
            // Then there is no such ban.
            None => Some(u64::MAX),
        }
    }

    /// The ban of `source` that `record` tells of. Its source, its times and its exact length are the caller's to say. A
    /// ban of every packet goes on under `default` if its rule is gone.
    pub fn ban(&self, source: Address, record: &BanFields, span: Span) -> Result<(SourceKey, Ban), Unfit> {
        let field = |field, value: &Option<String>, accepted| Unfit::Field {
            source_text: self.text(source),
            field,
            value: value.clone().unwrap_or_default(),
            accepted,
        };
        let reason = record.reason.as_deref().and_then(BanReason::from_name);
        let reason = reason.ok_or_else(|| {
            field("reason", &record.reason, "`syn-limit`, `connections`, `handshakes` or `admin`")
        })?;
        let scope = match record.scope.as_deref() {
            Some("all" | "syn") if self.unproven_ns(record).is_some() => Scope::Syn,
            Some("all") => Scope::All,
            Some("syn") => Scope::Syn,
            _ => return Err(field("scope", &record.scope, "`all` or `syn`")),
        };
        let window_ns = match &record.window {
            None => 0,
            Some(window) => match window.parse::<units::Span>() {
                Ok(window) => window.ns(),
                Err(_) => return Err(field("window", &record.window, "a duration, such as `1s`")),
            },
        };
        if reason == BanReason::Admin && record.monitor {
            let value = Some("true".to_owned());
            return Err(field("monitor", &value, "a ban by hand is never only noted"));
        }
        let proven = match record.evidence.as_deref().map(Evidence::from_name) {
            // An earlier version did not tell.
            None => false,
            Some(Some(evidence)) => evidence == Evidence::Handshake,
            Some(None) => return Err(field("evidence", &record.evidence, "`none` or `handshake`")),
        };
        let name = record.rule.as_deref().unwrap_or_default();
        let rule = self.rule(name);
        let under_rule = record.monitor || scope == Scope::Syn;
        if under_rule && rule.is_none() {
            return Err(Unfit::NoRule { source_text: self.text(source), rule: name.to_owned() });
        }
        let imposed_by = rule.filter(|_| reason.is_of_rule());
        if !record.monitor && imposed_by.is_some_and(|(_, rule)| rule.mode() == Mode::Monitor) {
            return Err(Unfit::Watched { source_text: self.text(source), rule: name.to_owned() });
        }
        let index = rule.map_or(RuleIndex::DEFAULT, |(index, _)| index);
        let label = match reason {
            BanReason::SynLimit | BanReason::Connections | BanReason::Handshakes => name,
            BanReason::Admin => record.note.as_deref().unwrap_or_default(),
        };
        let ban = Ban::from_parts(&BanParts {
            until_ns: span.until_ns,
            since_ns: span.since_ns,
            length_ns: span.length_ns,
            window_ns,
            count: record.count,
            limit: record.limit,
            offence: record.offences,
            reason,
            rule: index,
            scope,
            monitored: record.monitor,
            // What the rule says now: it is not told of a ban.
            refresh: record.offences > 0 && imposed_by.is_some_and(|(_, rule)| rule.prolongs_bans()),
            proven,
            label,
        });
        let key = if under_rule { SourceKey::for_rule(source, index) } else { SourceKey::everywhere(source) };
        Ok((key, ban))
    }
}
