//! What is done, one step after the other: it follows from the seed alone, and not from what happens.

use std::fmt;

use fastrand::Rng;

/// How many sources there are to ban, allow and deny.
pub(crate) const SOURCES: usize = 32;

/// One step: an action, and what floods the guard meanwhile.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Step {
    /// What is done.
    pub(crate) action: Action,
    /// What comes in meanwhile.
    pub(crate) flood: Flooding,
}

/// What floods the guard while something is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Flooding {
    /// Nothing.
    None,
    /// SYNs in the name of one source that is nowhere.
    Forged,
    /// SYNs from a million sources, drawn anew for each.
    Random,
    /// The same over IPv6, from as many networks.
    RandomNetworks,
    /// SYNs of a source that is banned by hand, if there is one.
    Banned,
    /// SYNs of a source that is allowed, if there is one.
    Allowed,
    /// Random frames, most of them broken somewhere.
    Malformed(u64),
    /// SYNs of so many sources in turn that each is soon over the limit.
    Crowd,
    /// Connections of a client, which are made in full.
    Valid,
}

/// Settings of a configuration file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Settings {
    /// SYNs within `window_s` seconds, for the rule `web`.
    pub(crate) limit: u32,
    /// Seconds.
    pub(crate) window_s: u32,
    /// Which of the actions, for both rules.
    pub(crate) action: usize,
    /// Whether SYNs alone ban in full.
    pub(crate) forgeable: bool,
    /// Monitor mode.
    pub(crate) monitor: bool,
    /// Events of a kind in a second.
    pub(crate) events: u32,
}

/// A value of a setting, or something that is none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Assignment {
    /// SYNs within ten seconds.
    Limit(u32),
    /// How long a ban lasts, in milliseconds.
    Ban(u32),
    /// Whether SYNs alone ban in full.
    RequireProof(bool),
    /// Which of the actions.
    Action(usize),
    /// Of all sources together in a second, or none.
    FloodLimit(Option<u32>),
    /// Events of a kind in a second.
    Events(u32),
    /// Monitor mode.
    Monitor(bool),
    /// Which of those that are refused.
    Bad(usize),
}

/// What is done in a step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Action {
    /// Nothing: only what comes in.
    Nothing,
    /// Another configuration file is applied.
    Reload(Settings),
    /// `dosguard sysctl`.
    Set(Assignment),
    /// `dosguard bans add` of these sources.
    Ban(Vec<usize>),
    /// `dosguard bans del`.
    Unban(usize),
    /// `dosguard bans flush`.
    Flush,
    /// `dosguard bans import` of a list.
    Import(Vec<usize>),
    /// The same of as many others as are so many percent of the room that is left, for so many seconds.
    Crowd(u32, u32),
    /// What `bans export` writes is imported again, which changes nothing.
    Again,
    /// `dosguard allow add`.
    Allow(usize),
    /// `dosguard allow del`.
    Disallow(usize),
    /// `dosguard deny add`.
    Deny(usize),
    /// `dosguard deny del`.
    Undeny(usize),
    /// A rule is added, and taken away.
    Rule,
    /// `kill -9` of the daemon.
    Kill,
    /// SIGTERM to the daemon.
    Terminate,
    /// The daemon is started.
    Start,
    /// The program is replaced.
    Upgrade,
    /// The same, and whoever does it is killed after so many milliseconds.
    KilledUpgrade(u32),
    /// An interface goes down and comes up.
    Down,
    /// An interface gets another name, and its own again.
    Rename,
    /// An interface is deleted and made again.
    Remake,
    /// So many readers listen to events, and read none.
    Hang(u8),
    /// Those are killed.
    Release,
    /// The disk with the history fills up.
    Fill,
    /// There is room on it again.
    Free,
    /// The wall clock is so many seconds ahead of the real one.
    Clock(i64),
    /// The daemon may take only so many KiB more than it has.
    Squeeze(u32),
    /// The host takes SYN cookies, or does not.
    Cookies(bool),
    /// Two administrators, each with a source and a limit to set.
    Two(usize, usize, u32, u32),
}

impl Action {
    /// What the summary calls it.
    pub(crate) const fn kind(&self) -> &'static str {
        match self {
            Self::Nothing => "nothing",
            Self::Reload(_) => "reload",
            Self::Set(Assignment::Bad(_)) => "bad sysctl",
            Self::Set(_) => "sysctl",
            Self::Ban(_) => "bans add",
            Self::Unban(_) => "bans del",
            Self::Flush => "bans flush",
            Self::Import(_) => "bans import",
            Self::Crowd(..) => "bans import of many",
            Self::Again => "export, import",
            Self::Allow(_) => "allow add",
            Self::Disallow(_) => "allow del",
            Self::Deny(_) => "deny add",
            Self::Undeny(_) => "deny del",
            Self::Rule => "rule add, del",
            Self::Kill => "kill -9",
            Self::Terminate => "terminate",
            Self::Start => "start",
            Self::Upgrade => "upgrade",
            Self::KilledUpgrade(_) => "killed upgrade",
            Self::Down => "interface down",
            Self::Rename => "interface renamed",
            Self::Remake => "interface made again",
            Self::Hang(_) => "readers hang",
            Self::Release => "readers go",
            Self::Fill => "disk full",
            Self::Free => "disk free",
            Self::Clock(_) => "clock jumps",
            Self::Squeeze(_) => "memory pressure",
            Self::Cookies(_) => "SYN cookies",
            Self::Two(..) => "two administrators",
        }
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} under {:?}", self.action, self.flood)
    }
}

/// How many bans there is room for: with every other seed so few that the map is full again and again.
pub(crate) const fn room(seed: u64) -> u32 {
    if seed.is_multiple_of(2) { 1_024 } else { 4_096 }
}

/// The steps of a seed, without end.
pub(crate) struct Plan {
    random: Rng,
    daemon: bool,
    full: bool,
}

impl Plan {
    /// It begins with a daemon that runs and a disk that has room.
    pub(crate) fn new(seed: u64) -> Self {
        Self { random: Rng::with_seed(seed), daemon: true, full: false }
    }

    fn flood(&mut self) -> Flooding {
        match self.random.u8(0..18) {
            0..3 => Flooding::None,
            3..5 => Flooding::Forged,
            5..7 => Flooding::Random,
            7 => Flooding::RandomNetworks,
            8..11 => Flooding::Banned,
            11..13 => Flooding::Allowed,
            13..15 => Flooding::Malformed(self.random.u64(..)),
            15..17 => Flooding::Crowd,
            _ => Flooding::Valid,
        }
    }

    fn source(&mut self) -> usize {
        self.random.usize(0..SOURCES)
    }

    fn sources(&mut self, at_most: usize) -> Vec<usize> {
        let count = self.random.usize(1..=at_most);
        let mut sources: Vec<_> = (0..count).map(|_| self.source()).collect();
        sources.sort_unstable();
        sources.dedup();
        sources
    }

    fn settings(&mut self) -> Settings {
        let random = &mut self.random;
        Settings {
            limit: random.u32(1..50),
            window_s: random.u32(1..20),
            // Mostly the first, which bans.
            action: random.usize(0..5).saturating_sub(2),
            forgeable: random.bool(),
            monitor: random.u8(0..5) == 0,
            events: random.u32(0..200),
        }
    }

    fn assignment(&mut self) -> Assignment {
        let random = &mut self.random;
        match random.u8(0..9) {
            0..2 => Assignment::Limit(random.u32(1..100)),
            2 => Assignment::Ban(random.u32(100..5_000)),
            3 => Assignment::RequireProof(random.bool()),
            4 => Assignment::Action(random.usize(0..3)),
            5 => Assignment::FloodLimit(random.bool().then(|| random.u32(100..50_000))),
            6 => Assignment::Events(random.u32(0..500)),
            _ => Assignment::Monitor(random.u8(0..3) == 0),
        }
    }

    fn action(&mut self) -> Action {
        // Neither a daemon that is away nor a disk that is full stays so for long.
        if !self.daemon && self.random.u8(0..4) == 0 {
            return Action::Start;
        }
        if self.full && self.random.u8(0..4) == 0 {
            return Action::Free;
        }
        match self.random.u8(0..100) {
            0 => Action::Nothing,
            1..4 => Action::Crowd(50 * self.random.u32(1..4), self.random.u32(3..12)),
            4..8 => Action::Reload(self.settings()),
            8..14 => Action::Set(self.assignment()),
            14..18 => Action::Set(Assignment::Bad(self.random.usize(..))),
            18..27 => Action::Ban(self.sources(4)),
            27..31 => Action::Unban(self.source()),
            31 => Action::Flush,
            32..35 => Action::Import(self.sources(12)),
            35..37 => Action::Again,
            37..43 => Action::Allow(self.source()),
            43..47 => Action::Disallow(self.source()),
            47..50 => Action::Deny(self.source()),
            50..53 => Action::Undeny(self.source()),
            53..55 => Action::Rule,
            55..59 => Action::Kill,
            59..61 => Action::Terminate,
            61..63 => Action::Start,
            63..66 => Action::Upgrade,
            66..69 => Action::KilledUpgrade(self.random.u32(0..400)),
            69..71 => Action::Down,
            71..74 => Action::Rename,
            74..77 => Action::Remake,
            77..80 => Action::Hang(self.random.u8(1..4)),
            80..82 => Action::Release,
            82..84 => Action::Fill,
            84..85 => Action::Free,
            85..88 => Action::Clock(self.jump()),
            88..91 => Action::Squeeze(self.random.u32(0..4_096)),
            91..93 => Action::Cookies(self.random.bool()),
            _ => self.two(),
        }
    }

    fn two(&mut self) -> Action {
        let one = self.source();
        let other = (one + self.random.usize(1..SOURCES)) % SOURCES;
        Action::Two(one, other, self.random.u32(1..100), self.random.u32(100..200))
    }

    /// Seconds, minutes, or years; back as well.
    fn jump(&mut self) -> i64 {
        let most = [5, 4_000, 100_000, 40_000_000, 1_000_000_000];
        let most = most.get(self.random.usize(0..most.len())).copied().unwrap_or(5);
        self.random.i64(-most..=most)
    }
}

impl Iterator for Plan {
    type Item = Step;

    fn next(&mut self) -> Option<Step> {
        let action = self.action();
        match action {
            Action::Kill | Action::Terminate => self.daemon = false,
            Action::Start => self.daemon = true,
            Action::Fill => self.full = true,
            Action::Free => self.full = false,
            _ => {}
        }
        Some(Step { action, flood: self.flood() })
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn steps(seed: u64) -> Vec<Step> {
        Plan::new(seed).take(2_000).collect()
    }

    #[test]
    fn the_same_seed_gives_the_same_plan_and_another_one_another() {
        assert_eq!(steps(7), steps(7));
        assert_ne!(steps(7), steps(8));
    }

    #[test]
    fn everything_is_done_before_long() {
        let steps = steps(1);
        let kinds: BTreeSet<_> = steps.iter().map(|step| step.action.kind()).collect();
        assert_eq!(kinds.len(), 31, "{kinds:?}");
        let floods: BTreeSet<_> = steps
            .iter()
            .map(|step| format!("{:?}", step.flood).chars().take(9).collect::<String>())
            .collect();
        assert_eq!(floods.len(), 9, "{floods:?}");
    }

    #[test]
    fn a_daemon_that_was_killed_is_soon_started() {
        let mut away = 0;
        for step in steps(3) {
            match step.action {
                Action::Kill | Action::Terminate => away += 1,
                Action::Start => away = 0,
                _ if away > 0 => away += 1,
                _ => {}
            }
            assert!(away < 60, "{away} steps without a daemon");
        }
    }

    #[test]
    fn two_administrators_have_a_source_each() {
        for step in steps(5) {
            if let Action::Two(one, other, ..) = step.action {
                assert_ne!(one, other);
            }
        }
    }
}
