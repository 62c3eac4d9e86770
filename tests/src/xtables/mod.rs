//! The recipes that dosguard replaces, `iptables -m recent` and `-m hashlimit`, beside dosguard: what each decides about
//! the same SYNs.
//!
//! [`sequences`] is the table of SYNs and expected decisions, [`play`] sends them to every contender at the same time,
//! and `docs/xtables.md` shows both the recipes and the table as [`table`] writes them.

pub mod play;
pub mod sequences;
pub mod table;

use std::fmt::Write as _;

/// SYNs of one source that every contender is told to let through, in each window.
pub const LIMIT: u32 = 3;

/// Whoever decides about SYNs. Each has a port and a list of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Contender {
    /// `-m recent --rcheck` before `--set`.
    RcheckSet,
    /// `-m recent --update` before `--set`.
    UpdateSet,
    /// `-m recent --set` before `--rcheck`.
    SetRcheck,
    /// `-m recent --set` before `--update`.
    SetUpdate,
    /// A second list for those who are banned, looked at with `--rcheck`.
    ListRcheck,
    /// The same with `--update`.
    ListUpdate,
    /// `-m hashlimit`.
    Hashlimit,
    /// dosguard with `action = "drop"`.
    Drop,
    /// dosguard with a ban.
    Ban,
    /// dosguard with a ban and `refresh = true`.
    Refresh,
    /// [`Self::RcheckSet`] with a hit count of one more than the limit, which is a mistake often made.
    OneMore,
}

/// All that meet in every sequence.
pub const EVERYONE: [Contender; 10] = [
    Contender::RcheckSet,
    Contender::UpdateSet,
    Contender::SetRcheck,
    Contender::SetUpdate,
    Contender::ListRcheck,
    Contender::ListUpdate,
    Contender::Hashlimit,
    Contender::Drop,
    Contender::Ban,
    Contender::Refresh,
];

/// How long a recipe's window and ban are.
#[derive(Clone, Copy, Debug)]
pub struct Scale {
    /// The window, in whole seconds, as `xt_recent` demands.
    pub window_s: u32,
    /// The ban, the same.
    pub ban_s: u32,
}

/// As an administrator would write it.
pub const IN_EARNEST: Scale = Scale { window_s: 60, ban_s: 600 };
/// As the test plays it.
pub const SCALED_DOWN: Scale = Scale { window_s: 2, ban_s: 3 };

impl Contender {
    /// What the documentation calls it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::RcheckSet => "rcheck-set",
            Self::UpdateSet => "update-set",
            Self::SetRcheck => "set-rcheck",
            Self::SetUpdate => "set-update",
            Self::ListRcheck => "list-rcheck",
            Self::ListUpdate => "list-update",
            Self::Hashlimit => "hashlimit",
            Self::Drop => "drop",
            Self::Ban => "ban",
            Self::Refresh => "refresh",
            Self::OneMore => "rcheck-set with --hitcount 4",
        }
    }

    /// The port that it decides about in the lab.
    #[must_use]
    pub const fn port(self) -> u16 {
        1000 + self as u16
    }

    /// Its lines for `iptables`, empty for dosguard.
    #[must_use]
    pub fn recipe(self, port: u16, list: &str, scale: Scale) -> String {
        let Scale { window_s, ban_s } = scale;
        // Asked before the SYN itself is on the list, or after.
        let (before, after) = (LIMIT, LIMIT + 1);
        let per_minute = LIMIT * 60 / window_s;
        let recent = |command: &str| format!("-m recent --name {list} {command}");
        let check =
            |how: &str, hits| recent(&format!("--{how} --seconds {window_s} --hitcount {hits} -j DROP"));
        let with_list = |how: &str| {
            let banned = format!("-m recent --name {list}-banned");
            vec![
                format!("{banned} --{how} --seconds {ban_s} -j DROP"),
                recent(&format!("--rcheck --seconds {window_s} --hitcount {before} {banned} --set -j DROP")),
                recent("--set"),
            ]
        };
        let rules = match self {
            Self::RcheckSet => vec![check("rcheck", before), recent("--set")],
            Self::OneMore => vec![check("rcheck", after), recent("--set")],
            Self::UpdateSet => vec![check("update", before), recent("--set")],
            Self::SetRcheck => vec![recent("--set"), check("rcheck", after)],
            Self::SetUpdate => vec![recent("--set"), check("update", after)],
            Self::ListRcheck => with_list("rcheck"),
            Self::ListUpdate => with_list("update"),
            Self::Hashlimit => vec![format!(
                "-m hashlimit --hashlimit-name {list} --hashlimit-mode srcip \
                 --hashlimit-above {per_minute}/minute --hashlimit-burst {LIMIT} -j DROP"
            )],
            Self::Drop | Self::Ban | Self::Refresh => Vec::new(),
        };
        let mut text = String::new();
        for rule in rules {
            // Writing to a string does not fail.
            let _ = writeln!(text, "-A INPUT -p tcp --syn --dport {port} {rule}");
        }
        text
    }

    /// Its rule in dosguard's configuration file; empty for `iptables`.
    #[must_use]
    pub fn config(self, port: u16, name: &str, scale: Scale) -> String {
        let Scale { window_s, ban_s } = scale;
        let action = match self {
            Self::Drop => "action = \"drop\"\n".to_owned(),
            Self::Ban => format!("require_proof = false\nban = \"{ban_s}s\"\n"),
            Self::Refresh => format!("require_proof = false\nban = \"{ban_s}s\"\nrefresh = true\n"),
            _ => return String::new(),
        };
        format!(
            "[rule.{name}]\nports = [\"tcp/{port}\"]\nlimit = \"{LIMIT}/{window_s}s\"\nscope = \"syn\"\n{action}"
        )
    }
}
