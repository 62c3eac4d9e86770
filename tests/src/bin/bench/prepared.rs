//! dosguard's own program, loaded with one rule, bans and lists as a measurement wants them, and attached nowhere.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use anyhow::Result;
use dosguard::{
    config::cidr::Cidr,
    datapath::{List, LoadOptions, Loaded, Maps, Origin, SHIPPED, list_add},
};
use dosguard_common::{
    abi,
    address::{Address, SourceMask},
    ban::Ban,
    config::{Config, Mode},
    key::SourceKey,
    rule::{Rule, RuleIndex, RuleSpec, Scope},
};
use dosguard_tests::{objects::real, program::SECOND};

/// Room for bans.
const BANS: u32 = 131_072;
/// The first address that is banned beside those that send.
const BANNED_V4: Ipv4Addr = Ipv4Addr::new(100, 64, 0, 0);
const BANNED_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0x8000, 0, 0, 0, 0, 0);

/// What is wanted of it.
pub(crate) struct Wanted {
    pub(crate) object: &'static [u8],
    /// The one rule.
    pub(crate) spec: RuleSpec,
    pub(crate) mode: Mode,
    /// Who is banned.
    pub(crate) banned: Vec<IpAddr>,
    /// Who is on a list.
    pub(crate) listed: Option<(List, IpAddr)>,
}

impl Wanted {
    /// The shipped program with this rule, which is enforced; nobody is banned or listed.
    pub(crate) const fn shipped(spec: RuleSpec) -> Self {
        Self { object: SHIPPED, spec, mode: Mode::Enforce, banned: Vec::new(), listed: None }
    }

    /// Loads it.
    pub(crate) fn load(self) -> Result<(Loaded, Maps)> {
        let sizes = vec![(abi::BANS.name, BANS)];
        let mut loaded = Loaded::new(real(self.object)?, &LoadOptions { sizes, ..LoadOptions::default() })?;
        let mut maps = loaded.take_maps()?;
        let mask = SourceMask::new(32, 64);
        maps.set_config(Config::new(mask).with_mode(self.mode))?;
        maps.set_rule(RuleIndex::DEFAULT, Rule::new("default", &self.spec, 1))?;
        let ban = Ban::by_admin(Scope::All, RuleIndex::DEFAULT, SECOND, u64::MAX, "");
        for address in self.banned {
            let address = match address {
                IpAddr::V4(address) => Address::from_ipv4(address.octets()),
                IpAddr::V6(address) => Address::from_ipv6(address.octets()),
            };
            maps.set_ban(&SourceKey::everywhere(mask.source(address)), &ban)?;
        }
        if let Some((list, address)) = self.listed {
            let host: Cidr = address.to_string().parse()?;
            list_add(&mut maps, list, [host.to_prefix()], Origin::HAND)?;
        }
        Ok((loaded, maps))
    }
}

/// So many sources that send nothing.
pub(crate) fn others(count: u32, is_v6: bool) -> impl Iterator<Item = IpAddr> {
    (0..count).map(move |number| {
        if is_v6 {
            Ipv6Addr::from(u128::from(BANNED_V6) + (u128::from(number) << 64)).into()
        } else {
            Ipv4Addr::from(u32::from(BANNED_V4) + number).into()
        }
    })
}
