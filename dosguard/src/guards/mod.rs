//! Who must not be locked out: the gateway, the name servers, and whoever works at this machine over ssh.
//!
//! When an instance is created they are put on its allow-list. Later a change that would cut off the ssh session it is
//! made in is refused.

mod cut;
mod gateways;
mod port;
mod resolvers;
mod session;

use std::fmt;
use std::net::IpAddr;

pub use cut::{Change, Cut, Start, own_among, refuse_cut, warnings, would_cut};
pub use port::warn_of_rules;
pub use session::{Session, ssh_peer, ssh_session};

use crate::config::cidr::Cidr;
use crate::datapath::Prefix;

/// Why an address is to be allowed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// A default route leads over it.
    Gateway,
    /// This machine asks it for names.
    Resolver,
    /// The ssh session of whoever gave the command comes from it.
    Session,
}

impl fmt::Display for Role {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(match self {
            Self::Gateway => "gateway",
            Self::Resolver => "resolver",
            Self::Session => "this ssh session",
        })
    }
}

/// An address that is to be allowed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Guard {
    /// The address.
    pub address: IpAddr,
    /// Why.
    pub roles: Vec<Role>,
}

impl Guard {
    /// As an entry of the allow-list.
    pub fn prefix(&self) -> Prefix {
        Cidr::host(self.address).to_prefix()
    }
}

impl fmt::Display for Guard {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let roles: Vec<_> = self.roles.iter().map(ToString::to_string).collect();
        write!(out, "{} ({})", self.address, roles.join(", "))
    }
}

/// The addresses that are to be allowed, as far as they can be found out. What cannot is a warning: it is no reason not
/// to guard the machine.
pub fn find() -> Vec<Guard> {
    let mut found = Vec::new();
    let sources = [
        (Role::Gateway, "the gateways", gateways::gateways()),
        (Role::Resolver, "the name servers", resolvers::resolvers()),
        (Role::Session, "the ssh session", Ok(ssh_peer().into_iter().collect())),
    ];
    for (role, what, addresses) in sources {
        match addresses {
            Ok(addresses) => addresses.into_iter().for_each(|address| add(&mut found, address, role)),
            Err(error) => log::warn!("{what} cannot be found out, and are not allowed: {error}"),
        }
    }
    found
}

/// Each address once.
fn add(found: &mut Vec<Guard>, address: IpAddr, role: Role) {
    match found.iter_mut().find(|guard| guard.address == address) {
        Some(guard) if guard.roles.contains(&role) => {}
        Some(guard) => guard.roles.push(role),
        None => found.push(Guard { address, roles: vec![role] }),
    }
}

/// An address that may have a scope, such as `fe80::1%eth0`: packets do not tell it. IPv4 in IPv6 notation is IPv4.
fn without_scope(text: &str) -> Option<IpAddr> {
    let (address, _) = text.split_once('%').unwrap_or((text, ""));
    address.parse::<IpAddr>().ok().map(|address| address.to_canonical())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_named_once_with_all_that_it_is() {
        let mut found = Vec::new();
        for role in [Role::Gateway, Role::Gateway, Role::Resolver] {
            add(&mut found, "192.0.2.1".parse().unwrap(), role);
        }
        add(&mut found, "198.51.100.7".parse().unwrap(), Role::Session);
        let text: Vec<_> = found.iter().map(ToString::to_string).collect();
        assert_eq!(text, ["192.0.2.1 (gateway, resolver)", "198.51.100.7 (this ssh session)"]);
    }
}
