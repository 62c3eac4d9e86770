//! dosguard's own program on an interface, for as long as it is measured.

use std::net::IpAddr;

use anyhow::{Context as _, Result, ensure};
use aya::programs::XdpMode;
use dosguard::datapath::{Loaded, Maps, SHIPPED};
use dosguard_common::{
    reason::Reason,
    rule::{Action, RuleSpec},
};
use dosguard_tests::{
    addresses::GUARD_ATTACKER_SIDE, netns::Namespace, objects::FOLLOWED_OBJECT, program::ban_over,
};

use super::traffic::{Traffic, Treatment};
use crate::prepared::{Wanted, others};

/// A limit that nobody reaches here.
const HIGH: u32 = 500_000;
/// A limit that everybody is over.
const LOW: u32 = 10;
/// The program with its maps, attached.
pub(super) struct Filter {
    _loaded: Loaded,
    maps: Maps,
    expected: Reason,
}

impl Filter {
    /// Loads the program that is shipped, or where packets would pass the one that is followed by a drop, makes it treat the
    /// traffic as is asked for, and attaches it.
    pub(super) fn start(guard: &Namespace, traffic: &Traffic) -> Result<Self> {
        let (object, limit, action, expected) = match traffic.treatment {
            Treatment::Banned => (SHIPPED, HIGH, Action::Ban, Reason::Banned),
            Treatment::Limited => (FOLLOWED_OBJECT, LOW, Action::Drop, Reason::OverLimit),
            // Those that answer are set up otherwise, see `answering.rs`.
            Treatment::Counted | Treatment::Answered => {
                (FOLLOWED_OBJECT, HIGH, Action::Ban, Reason::UnderLimit)
            }
            Treatment::Established { .. } => (FOLLOWED_OBJECT, HIGH, Action::Ban, Reason::NotSyn),
        };
        let spec = RuleSpec { limit, action, ..ban_over(limit) };
        let wanted = Wanted { object, banned: banned(traffic), ..Wanted::shipped(spec) };
        let (mut loaded, maps) = wanted.load()?;
        let program = loaded.program()?;
        guard
            .run_in(|| program.attach(GUARD_ATTACKER_SIDE, XdpMode::Driver))?
            .context("cannot attach dosguard's program")?;
        Ok(Self { _loaded: loaded, maps, expected })
    }

    /// Packets that were treated as was asked for.
    pub(super) fn treated(&self) -> Result<u64> {
        Ok(self.maps.packets(self.expected)?.packets)
    }

    /// Fails unless `sent` packets were, and no other, but for those before the limit.
    pub(super) fn verify(&self, sent: u64) -> Result<()> {
        let treated = self.treated()?;
        let slack = if self.expected == Reason::OverLimit { sent / 100 } else { 0 };
        ensure!(
            treated <= sent && treated + slack >= sent,
            "{} packets of {sent} were `{}`",
            treated,
            self.expected.name()
        );
        Ok(())
    }
}

/// Who is banned: the source that sends, or others.
fn banned(traffic: &Traffic) -> Vec<IpAddr> {
    match traffic.treatment {
        Treatment::Banned => vec![traffic.source()],
        Treatment::Established { bans } => others(bans, traffic.is_v6).collect(),
        Treatment::Limited | Treatment::Counted | Treatment::Answered => Vec::new(),
    }
}
