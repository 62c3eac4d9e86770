//! Which events are meant.

use std::net::IpAddr;

use dosguard_common::event::Kind;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::config::cidr::{Cidr, CidrError};
use crate::output::EventRecord;

/// Which events are meant: those that agree with all of it.
///
/// As JSON `{"since": …, "kinds": ["ban"], "source": "192.0.2.0/24"}`, each of which may be absent.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Words", into = "Words")]
pub struct EventFilter {
    /// Those that happened then or later.
    pub since: Option<Timestamp>,
    /// Those of these kinds; none means all.
    pub kinds: Vec<Kind>,
    /// Those of sources in this network, and of the source that it is in.
    pub source: Option<Cidr>,
}

/// Why a filter is not understood.
#[derive(Debug, Error)]
pub enum FilterError {
    /// There is no such kind.
    #[error("no kind of event is called `{found}`\nhint: one of {}", known())]
    UnknownKind {
        /// What was written.
        found: String,
    },
    /// The source is no network.
    #[error(transparent)]
    Source(#[from] CidrError),
}

fn known() -> String {
    Kind::ALL.map(|kind| format!("`{}`", kind.name())).join(", ")
}

/// The kind of event that has this name.
///
/// # Errors
///
/// There is none.
pub fn kind_named(name: &str) -> Result<Kind, FilterError> {
    let found = Kind::ALL.into_iter().find(|kind| kind.name() == name);
    found.ok_or_else(|| FilterError::UnknownKind { found: name.to_owned() })
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Words {
    #[serde(skip_serializing_if = "Option::is_none", default)]
    since: Option<Timestamp>,
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    kinds: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    source: Option<String>,
}

impl From<EventFilter> for Words {
    fn from(filter: EventFilter) -> Self {
        Self {
            since: filter.since,
            kinds: filter.kinds.iter().map(|kind| kind.name().to_owned()).collect(),
            source: filter.source.map(|source| source.to_string()),
        }
    }
}

impl TryFrom<Words> for EventFilter {
    type Error = FilterError;

    fn try_from(words: Words) -> Result<Self, FilterError> {
        let mut kinds = words.kinds.iter().map(|name| kind_named(name)).collect::<Result<Vec<_>, _>>()?;
        kinds.sort_unstable();
        kinds.dedup();
        Ok(Self { since: words.since, kinds, source: words.source.map(|source| source.parse()).transpose()? })
    }
}

impl EventFilter {
    /// Whether an event is meant.
    pub fn matches(&self, record: &EventRecord) -> bool {
        self.since.is_none_or(|since| record.at >= since)
            && (self.kinds.is_empty() || self.kinds.iter().any(|kind| kind.name() == record.kind))
            && self.source.is_none_or(|wanted| {
                Reach::of_text(&record.ban.source).is_some_and(|found| found.meets(Reach::of(wanted)))
            })
    }
}

/// A network as its first and its last address, as the maps keep them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Reach {
    pub(super) first: [u8; 16],
    pub(super) last: [u8; 16],
}

impl Reach {
    pub(super) fn of(network: Cidr) -> Self {
        let (address, bits) = network.to_prefix();
        let first = u128::from_be_bytes(address.to_bytes());
        let hosts = u128::MAX.checked_shr(bits).unwrap_or(0);
        Self { first: (first & !hosts).to_be_bytes(), last: (first | hosts).to_be_bytes() }
    }

    /// Of a source as records name it, which may be wider than what people may write.
    pub(super) fn of_text(text: &str) -> Option<Self> {
        let (address, prefix) = text.split_once('/').unwrap_or((text, "128"));
        let address: IpAddr = address.parse().ok()?;
        Some(Self::of(Cidr::containing(address, prefix.parse().ok()?)))
    }

    /// Of two networks that meet, one is within the other.
    pub(super) fn meets(self, other: Self) -> bool {
        self.first <= other.last && other.first <= self.last
    }

    /// The first addresses of all networks that this one is within, without its own.
    pub(super) fn around(self) -> Vec<[u8; 16]> {
        let own = u128::from_be_bytes(self.first);
        let mut found: Vec<_> = (0..128)
            .map(|bits| own & !u128::MAX.checked_shr(bits).unwrap_or(0))
            .filter(|first| *first != own)
            .collect();
        found.dedup();
        found.into_iter().map(u128::to_be_bytes).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reach(text: &str) -> Reach {
        Reach::of(text.parse().unwrap())
    }

    #[test]
    fn networks_meet_if_one_is_within_the_other() {
        let cases = [
            ("192.0.2.0/24", "192.0.2.7", true),
            ("192.0.2.0/24", "192.0.3.7", false),
            ("2001:db8::7", "2001:db8::/64", true),
            ("2001:db8:0:1::7", "2001:db8::/64", false),
            ("0.0.0.0/0", "255.255.255.255", true),
            ("0.0.0.0/0", "2001:db8::/64", false),
        ];
        for (one, other, meet) in cases {
            assert_eq!(reach(one).meets(reach(other)), meet, "{one} {other}");
            assert_eq!(reach(other).meets(reach(one)), meet, "{other} {one}");
        }
        assert_eq!(
            Reach::of_text("::/0").map(|all| all.meets(reach("192.0.2.7"))),
            Some(true),
            "a source of /0"
        );
        assert_eq!(Reach::of_text("nobody"), None);
    }

    #[test]
    fn what_is_around_begins_earlier() {
        let around = reach("2001:db8::7").around();
        assert!(
            around.contains(&reach("2001:db8::/64").first)
                && around.contains(&reach("2001:db8::6/127").first)
        );
        assert!(around.len() <= 128 && !around.contains(&reach("2001:db8::7").first));
        assert_eq!(reach("192.0.2.0/24").around().last(), Some(&reach("192.0.0.0/23").first));
    }

    #[test]
    fn a_filter_travels_as_words() {
        let filter = EventFilter {
            since: Some("2026-01-01T12:00:00.5Z".parse().unwrap()),
            kinds: vec![Kind::Ban, Kind::Unban],
            source: Some("192.0.2.0/24".parse().unwrap()),
        };
        let text = serde_json::to_string(&filter).unwrap();
        assert_eq!(
            text,
            r#"{"since":"2026-01-01T12:00:00.5Z","kinds":["ban","unban"],"source":"192.0.2.0/24"}"#
        );
        assert_eq!(serde_json::from_str::<EventFilter>(&text).unwrap(), filter);
        assert_eq!(serde_json::from_str::<EventFilter>("{}").unwrap(), EventFilter::default());
        let bad =
            [r#"{"kinds":["bann"]}"#, r#"{"source":"192.0.2.1/24"}"#, r#"{"sins":1}"#, r#"{"since":"now"}"#];
        for bad in bad {
            assert!(serde_json::from_str::<EventFilter>(bad).is_err(), "{bad}");
        }
    }
}
