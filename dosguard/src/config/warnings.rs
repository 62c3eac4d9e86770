//! What may be, and is hardly meant.

use std::collections::BTreeSet;
use std::net::IpAddr;

use dosguard_common::proof::ProofDemand;
use dosguard_common::rule::Action;

use super::cidr::Cidr;
use super::field::RuleField;
use super::file::Configuration;
use super::policy::{NamedRule, Policy};

/// A network of fewer bits is a large part of all addresses.
const WIDE_IPV4: u8 = 8;
const WIDE_IPV6: u8 = 16;

/// What the administrator should look at once more: each a sentence without a full stop.
pub fn warnings(configuration: &Configuration) -> Vec<String> {
    let mut found = Vec::new();
    lists(&configuration.policy, &mut found);
    for rule in &configuration.policy.rules {
        let name = &rule.name;
        found.extend(of_proof(rule));
        if rule.spec.refresh && rule.spec.proof.required {
            found.push(format!(
                "rule `{name}` has `refresh` and demands proof: no SYN prolongs a ban, as it may be anybody's; \
                 `require_proof = false` lets them"
            ));
        }
        if rule.spec.connections.close && rule.spec.connections.max == 0 {
            found.push(format!("rule `{name}` has `close` and no `max_connections`: it closes nothing"));
        }
    }
    if let Some(listen) = configuration.services.metrics.filter(|listen| !listen.ip().is_loopback()) {
        let who = if listen.ip().is_unspecified() { "whoever reaches this machine" } else { "others" };
        found.push(format!("metrics at `{listen}`: {who} can read them; there is no password"));
    }
    found
}

fn lists(policy: &Policy, found: &mut Vec<String>) {
    for network in policy.deny.iter().filter(|network| is_wide(network)) {
        found.push(format!(
            "`deny` has `{network}`: every packet from {} is dropped that `allow` does not name, yours too",
            part(network)
        ));
    }
    for network in policy.allow.iter().filter(|network| is_wide(network)) {
        found.push(format!("`allow` has `{network}`: {} is never limited", part(network)));
    }
    let allowed: BTreeSet<_> = policy.allow.iter().collect();
    for network in policy.deny.iter().filter(|network| allowed.contains(network)) {
        found.push(format!("`{network}` is in `allow` and in `deny`: it is allowed"));
    }
}

fn is_wide(network: &Cidr) -> bool {
    network.prefix() < if network.address().is_ipv4() { WIDE_IPV4 } else { WIDE_IPV6 }
}

/// How much of a family the network is.
fn part(network: &Cidr) -> String {
    let family = match network.address() {
        IpAddr::V4(_) => "IPv4",
        IpAddr::V6(_) => "IPv6",
    };
    match network.prefix() {
        0 => format!("all of {family}"),
        bits => format!("one in {} of all {family} addresses", 1_u32 << bits),
    }
}

/// What is to be said of how far a rule goes without proof.
pub fn of_proof(rule: &NamedRule) -> Vec<String> {
    let name = &rule.name;
    let mut found = Vec::new();
    if rule.bans_without_proof() {
        found.push(format!(
            "rule `{name}` has `require_proof = false`: whoever forges the address of a client has it banned"
        ));
    }
    let (said, usual) = (rule.spec.proof.unproven_ban_ns, ProofDemand::DEFAULT.unproven_ban_ns);
    if rule.spec.action == Action::Ban && rule.spec.proof.required && said > rule.spec.ban_ns && said != usual
    {
        found.push(format!(
            "rule `{name}` has an `unproven_ban` of {} that is longer than its `ban`: SYNs alone ban for {}, as `ban` says",
            RuleField::UnprovenBan.get(rule),
            RuleField::Ban.get(rule)
        ));
    }
    found
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::config::file::parse;

    fn said(text: &str) -> Vec<String> {
        warnings(&parse(text, Path::new("f")).unwrap())
    }

    #[test]
    fn what_is_hardly_meant_is_said() {
        for fine in [
            "",
            "deny = ['10.0.0.0/8', '2001:db8::/32']",
            "metrics.listen = '127.0.0.2:1'",
            "metrics.listen = '[::1]:1'",
            "[rule.default]\nban = '5s'",
            "[rule.default]\nban = '1m'\nunproven_ban = '1m'",
            "[rule.default]\nban = '1m'\nunproven_ban = '5m'\naction = 'drop'",
        ] {
            assert_eq!(said(fine), Vec::<String>::new(), "{fine}");
        }
        let cases = [
            (
                "[rule.default]\nrefresh = true",
                "rule `default` has `refresh` and demands proof: no SYN prolongs a ban, as it may be anybody's; \
                 `require_proof = false` lets them",
            ),
            (
                "[rule.default]\nban = '1m'\nunproven_ban = '5m'",
                "rule `default` has an `unproven_ban` of 5m that is longer than its `ban`: SYNs alone ban for 1m, as `ban` says",
            ),
            (
                "deny = ['0.0.0.0/0']",
                "`deny` has `0.0.0.0/0`: every packet from all of IPv4 is dropped that `allow` does not name, yours too",
            ),
            (
                "deny = ['2000::/3']",
                "`deny` has `2000::/3`: every packet from one in 8 of all IPv6 addresses is dropped that `allow` does not \
                 name, yours too",
            ),
            ("allow = ['0.0.0.0/0']", "`allow` has `0.0.0.0/0`: all of IPv4 is never limited"),
            (
                "allow = ['192.0.2.7']\ndeny = ['192.0.2.7/32']",
                "`192.0.2.7` is in `allow` and in `deny`: it is allowed",
            ),
            (
                "rule.default.close = true",
                "rule `default` has `close` and no `max_connections`: it closes nothing",
            ),
            (
                "rule.default.require_proof = false",
                "rule `default` has `require_proof = false`: whoever forges the address of a client has it banned",
            ),
            (
                "metrics.listen = '0.0.0.0:9741'",
                "metrics at `0.0.0.0:9741`: whoever reaches this machine can read them; there is no password",
            ),
            (
                "metrics.listen = '192.0.2.1:9741'",
                "metrics at `192.0.2.1:9741`: others can read them; there is no password",
            ),
        ];
        for (text, warning) in cases {
            assert_eq!(said(text), [warning], "{text}");
        }
    }
}
