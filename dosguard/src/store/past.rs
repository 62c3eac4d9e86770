//! Bans as the history tells them: how each began, and what became of it.

use std::collections::HashMap;

use dosguard_common::event::Kind;
use jiff::{SignedDuration, Timestamp};
use serde::{Serialize, Serializer};

use super::SavedKey;
use super::saved::key_of;
use crate::output::{BanFields, EventRecord, SCHEMA};

/// Events of one ban name its beginning alike up to this: each rounds the clocks for itself, and after a boot they are
/// others.
const SAME: SignedDuration = SignedDuration::from_secs(2);
/// An end that is told so much before its time was brought about.
const EARLY: SignedDuration = SignedDuration::from_millis(5);

/// What became of a ban.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// It still holds, as far as the history knows.
    Running,
    /// Its time came.
    Ended,
    /// Somebody lifted it, or a change of settings did.
    Lifted,
}

impl End {
    /// The name used in output.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Running => "running",
            Self::Ended => "ended",
            Self::Lifted => "lifted",
        }
    }
}

impl Serialize for End {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.name())
    }
}

/// A ban, and what became of it.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct PastBan {
    /// [`SCHEMA`].
    pub version: u32,
    /// The ban, as it was told last.
    #[serde(flatten)]
    pub ban: BanFields,
    /// What became of it.
    pub end: End,
    /// When that was; absent while it holds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ended: Option<Timestamp>,
    /// For how many seconds it has been held.
    pub lasted_s: f64,
}

/// Collects the events of bans into bans.
#[derive(Debug, Default)]
pub struct Past {
    bans: Vec<PastBan>,
    /// Where the last of each source and rule is, real or only noted, if its end was not told.
    open: HashMap<(SavedKey, bool), usize>,
}

impl Past {
    /// The kinds of events that tell of bans.
    pub const KINDS: [Kind; 4] = [Kind::Ban, Kind::WouldBan, Kind::Extend, Kind::Unban];

    /// Adds an event. They come in the order of their numbers.
    pub fn add(&mut self, record: &EventRecord) {
        let Some(kind) = Self::KINDS.into_iter().find(|kind| kind.name() == record.kind) else { return };
        let key = (key_of(&record.ban), record.ban.monitor);
        let known = self.open.get(&key).copied().filter(|place| {
            matches!(kind, Kind::Extend | Kind::Unban) && is_same(&self.bans[*place].ban, &record.ban)
        });
        let place = known.unwrap_or_else(|| {
            let ban = record.ban.clone();
            self.bans.push(PastBan { version: SCHEMA, ban, end: End::Running, ended: None, lasted_s: 0.0 });
            self.bans.len() - 1
        });
        let past = &mut self.bans[place];
        past.ban.until = record.ban.until;
        if kind == Kind::Unban {
            let lifted = record.ban.until.is_some_and(|until| until.duration_since(record.at) > EARLY);
            (past.end, past.ended) =
                if lifted { (End::Lifted, Some(record.at)) } else { (End::Ended, record.ban.until) };
            self.open.remove(&key);
        } else {
            self.open.insert(key, place);
        }
    }

    /// All of them, in the order in which they were first told of.
    pub fn bans(mut self, now: Timestamp) -> Vec<PastBan> {
        for past in &mut self.bans {
            // Nobody told of the end, but it came.
            if past.end == End::Running && past.ban.until.is_some_and(|until| until <= now) {
                (past.end, past.ended) = (End::Ended, past.ban.until);
            }
            if let Some(since) = past.ban.since {
                let lasted = past.ended.unwrap_or(now).duration_since(since);
                past.lasted_s = lasted.as_secs_f64().max(0.0);
            }
        }
        self.bans
    }
}

/// Whether what is told of later is the ban that was told of before. One that came back after a boot began anew with it.
fn is_same(old: &BanFields, new: &BanFields) -> bool {
    old.since.zip(new.since).is_some_and(|(began, again)| {
        let within = began <= again && old.until.is_none_or(|until| again < until);
        within || again.duration_since(began).abs() <= SAME
    })
}

/// What the bans of one source come to.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct SourceSum {
    /// [`SCHEMA`].
    pub version: u32,
    /// The source.
    pub source: String,
    /// How many times it was banned.
    pub bans: u64,
    /// How many times it would have been, in monitor mode.
    pub would_bans: u64,
    /// The highest number of an offence.
    pub offences: u32,
    /// When the last ban began.
    pub last: Option<Timestamp>,
    /// For how many seconds it was banned in all.
    pub banned_s: f64,
}

/// The sources with the most bans, at most so many.
pub fn top(bans: &[PastBan], most: usize) -> Vec<SourceSum> {
    let mut sums: HashMap<&str, SourceSum> = HashMap::new();
    for past in bans {
        let BanFields { source, monitor, offences, since, .. } = &past.ban;
        let sum = sums.entry(source).or_insert_with(|| SourceSum {
            version: SCHEMA,
            source: source.clone(),
            bans: 0,
            would_bans: 0,
            offences: 0,
            last: None,
            banned_s: 0.0,
        });
        if *monitor {
            sum.would_bans += 1;
        } else {
            sum.bans += 1;
            sum.banned_s += past.lasted_s;
        }
        sum.offences = sum.offences.max(*offences);
        sum.last = sum.last.max(*since);
    }
    let mut sums: Vec<_> = sums.into_values().collect();
    sums.sort_by(|a, b| {
        let rank = |sum: &SourceSum| (sum.bans, sum.would_bans);
        rank(b).cmp(&rank(a)).then(b.banned_s.total_cmp(&a.banned_s)).then_with(|| a.source.cmp(&b.source))
    });
    sums.truncate(most);
    sums
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::tests::{event, noon};

    fn told(kind: Kind, seconds: i64, source: &str, change: impl FnOnce(&mut BanFields)) -> EventRecord {
        let mut record = event(1, seconds, source).as_ref().clone();
        record.kind = kind.name().to_owned();
        record.ban.monitor = kind == Kind::WouldBan;
        change(&mut record.ban);
        record
    }

    fn after(seconds: i64) -> Timestamp {
        noon() + SignedDuration::from_secs(seconds)
    }

    #[test]
    fn each_ban_is_told_once_with_its_end() {
        let mut past = Past::default();
        // It was extended by an hour, and lifted half an hour later.
        past.add(&told(Kind::Ban, 0, "192.0.2.1", |_| {}));
        past.add(&told(Kind::Extend, 60, "192.0.2.1", |ban| ban.until = Some(after(3_600))));
        past.add(&told(Kind::Unban, 1_800, "192.0.2.1", |ban| {
            ban.since = Some(noon() + SignedDuration::from_millis(1));
            ban.until = Some(after(3_600));
        }));
        // The end of one that began before what is looked at.
        past.add(&told(Kind::Unban, 601, "192.0.2.2", |_| {}));
        // Nobody told of its end; then the source was banned again, and that one goes on.
        past.add(&told(Kind::Ban, 0, "192.0.2.3", |_| {}));
        past.add(&told(Kind::Ban, 900, "192.0.2.3", |ban| {
            (ban.since, ban.until, ban.offences) = (Some(after(900)), Some(after(9_000)), 2);
        }));
        // Noted and real, everywhere and under a rule: they have nothing to do with one another.
        past.add(&told(Kind::WouldBan, 0, "192.0.2.4", |_| {}));
        past.add(&told(Kind::Unban, 599, "192.0.2.4", |ban| ban.scope = Some("syn".to_owned())));
        past.add(&told(Kind::Limited, 0, "192.0.2.5", |_| {}));
        // They came back after a boot, when one was lifted, and the other one extended until its end.
        for source in ["192.0.2.6", "192.0.2.7"] {
            past.add(&told(Kind::Ban, 0, source, |_| {}));
        }
        past.add(&told(Kind::Unban, 400, "192.0.2.6", |ban| ban.since = Some(after(300))));
        past.add(&told(Kind::Extend, 400, "192.0.2.7", |ban| {
            (ban.since, ban.until) = (Some(after(300)), Some(after(700)));
        }));
        past.add(&told(Kind::Unban, 700, "192.0.2.7", |ban| {
            (ban.since, ban.until) = (Some(after(300)), Some(after(700)));
        }));
        let bans = past.bans(after(2_000));
        let found: Vec<_> =
            bans.iter().map(|past| (past.ban.source.as_str(), past.end, past.lasted_s)).collect();
        let expected = [
            ("192.0.2.1", End::Lifted, 1_800.0),
            ("192.0.2.2", End::Ended, 600.0),
            ("192.0.2.3", End::Ended, 600.0),
            ("192.0.2.3", End::Running, 1_100.0),
            ("192.0.2.4", End::Ended, 600.0),
            ("192.0.2.4", End::Lifted, 599.0),
            ("192.0.2.6", End::Lifted, 400.0),
            ("192.0.2.7", End::Ended, 700.0),
        ];
        assert_eq!(found, expected);

        let sums: Vec<_> = top(&bans, 3)
            .into_iter()
            .map(|sum| (sum.source, sum.bans, sum.would_bans, sum.offences, sum.last, sum.banned_s))
            .collect();
        let expected = [
            ("192.0.2.3".to_owned(), 2, 0, 2, Some(after(900)), 1_700.0),
            ("192.0.2.4".to_owned(), 1, 1, 1, Some(noon()), 599.0),
            ("192.0.2.1".to_owned(), 1, 0, 1, Some(noon() + SignedDuration::ZERO), 1_800.0),
        ];
        assert_eq!(sums, expected);
    }
}
