//! dosguard's own program on an interface, for as long as it is measured.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use anyhow::{Context as _, Result, ensure};
use aya::programs::XdpMode;
use dosguard::datapath::{LoadOptions, Loaded, Maps, SHIPPED};
use dosguard_common::{
    abi,
    address::{Address, SourceMask},
    ban::Ban,
    config::{Config, Mode},
    key::SourceKey,
    reason::Reason,
    rule::{Action, Rule, RuleIndex, RuleSpec, Scope},
};
use dosguard_tests::{
    addresses::GUARD_ATTACKER_SIDE,
    netns::Namespace,
    objects::{FOLLOWED_OBJECT, real},
    program::{SECOND, ban_over},
};

use super::traffic::{SOURCE_V4, SOURCE_V6, Traffic, Treatment};

/// A limit that nobody reaches here.
const HIGH: u32 = 500_000;
/// A limit that everybody is over.
const LOW: u32 = 10;
/// The first address that is banned beside those that send.
const BANNED_V4: Ipv4Addr = Ipv4Addr::new(100, 64, 0, 0);
const BANNED_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0x8000, 0, 0, 0, 0, 0);

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
            Treatment::Counted => (FOLLOWED_OBJECT, HIGH, Action::Ban, Reason::UnderLimit),
            Treatment::Established { .. } => (FOLLOWED_OBJECT, HIGH, Action::Ban, Reason::NotSyn),
        };
        let sizes = vec![(abi::BANS.name, 131_072)];
        let mut loaded = Loaded::new(real(object)?, &LoadOptions { sizes, ..LoadOptions::default() })?;
        let mut maps = loaded.take_maps()?;
        maps.set_config(Config::new(SourceMask::new(32, 64)).with_mode(Mode::Enforce))?;
        let spec = RuleSpec { limit, action, ..ban_over(limit) };
        maps.set_rule(RuleIndex::DEFAULT, Rule::new("default", &spec, 1))?;
        for address in banned(traffic) {
            let source = maps.source_mask()?.source(address);
            let ban = Ban::by_admin(Scope::All, RuleIndex::DEFAULT, SECOND, u64::MAX, "");
            maps.set_ban(&SourceKey::everywhere(source), &ban)?;
        }
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
fn banned(traffic: &Traffic) -> Vec<Address> {
    let address = |address: IpAddr| match address {
        IpAddr::V4(address) => Address::from_ipv4(address.octets()),
        IpAddr::V6(address) => Address::from_ipv6(address.octets()),
    };
    match traffic.treatment {
        Treatment::Banned if traffic.is_v6 => vec![address(SOURCE_V6.into())],
        Treatment::Banned => vec![address(SOURCE_V4.into())],
        Treatment::Established { bans } => others(bans, traffic.is_v6).map(address).collect(),
        Treatment::Limited | Treatment::Counted => Vec::new(),
    }
}

/// So many sources that send nothing.
pub(super) fn others(count: u32, is_v6: bool) -> impl Iterator<Item = IpAddr> {
    (0..count).map(move |number| {
        if is_v6 {
            Ipv6Addr::from(u128::from(BANNED_V6) + (u128::from(number) << 64)).into()
        } else {
            Ipv4Addr::from(u32::from(BANNED_V4) + number).into()
        }
    })
}
