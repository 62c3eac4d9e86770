//! What is saved of bans and offences, in words that mean the same after a boot: names and wall-clock times.

use jiff::Timestamp;

use crate::output::BanFields;

/// A ban that was saved.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SavedBan {
    /// The ban.
    pub record: BanFields,
    /// How long it was imposed for, in nanoseconds: it never lasts longer from now than this.
    pub length_ns: u64,
}

impl SavedBan {
    /// The rule under which it is kept; none for a ban of every packet. A source has one ban in each such place.
    ///
    /// What is only noted is kept under its rule, however far it would reach.
    pub fn place(&self) -> Option<&str> {
        let under_rule = self.record.monitor || self.record.scope.as_deref() == Some("syn");
        if under_rule { Some(self.record.rule.as_deref().unwrap_or_default()) } else { None }
    }
}

/// What was saved of a source's offences.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SavedOffender {
    /// The source, as in [`BanFields`].
    pub source: String,
    /// The rule under which they are counted; none for everywhere.
    pub rule: Option<String>,
    /// How many bans were imposed.
    pub offences: u32,
    /// When the last one ended or ends.
    pub last_until: Timestamp,
}

/// All that was saved.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Saved {
    /// The bans.
    pub bans: Vec<SavedBan>,
    /// The offences.
    pub offenders: Vec<SavedOffender>,
    /// When it was known last that all this was true.
    pub last_seen: Option<Timestamp>,
    /// The boot in which that was: the kernel's random number of it.
    pub boot_id: Option<String>,
}

/// What to save: what is new or changed since the last time, and what has ended.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Changes {
    /// Whether this is all that there is: whatever else was saved has ended.
    pub all: bool,
    /// Bans, new or changed. They take the place of those of the same source and [`SavedBan::place`].
    pub bans: Vec<SavedBan>,
    /// Bans that have ended: their source and place.
    pub ended: Vec<(String, Option<String>)>,
    /// Offences, new or changed. They take the place of those of the same source and rule.
    pub offenders: Vec<SavedOffender>,
    /// Offences that are forgotten: their source and rule.
    pub forgotten: Vec<(String, Option<String>)>,
    /// When this was true.
    pub now: Timestamp,
    /// The kernel's random number of this boot.
    pub boot_id: String,
}

impl Changes {
    /// Whether there is nothing to save but the time.
    pub const fn is_empty(&self) -> bool {
        !self.all
            && self.bans.is_empty()
            && self.ended.is_empty()
            && self.offenders.is_empty()
            && self.forgotten.is_empty()
    }
}
