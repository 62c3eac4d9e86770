//! Whether a change of rules is stricter with the port that the ssh session came to.

use dosguard_common::config::Mode;
use dosguard_common::rule::{RuleSpec, Scope};

use super::{Session, ssh_session};
use crate::config::cidr::to_address;
use crate::config::policy::{NamedRule, Policy};
use crate::datapath::{Datapath, Error, List};

/// Warns of a change after which the rule of the session's port bans sooner, and of every packet, if the session is not
/// allowed. The settings after it are given; those before are the live ones.
pub fn warn_of_rules(datapath: &Datapath, after: &Policy) -> Result<(), Error> {
    let Some(Session { peer, port: Some(port) }) = ssh_session() else { return Ok(()) };
    let before = datapath.settings()?;
    let (Some(old), Some(new)) = (rule_of(&before, port), rule_of(after, port)) else { return Ok(()) };
    if !is_stricter(&old.spec, &new.spec) || datapath.maps().list(List::Allow).covers(&to_address(peer))? {
        return Ok(());
    }
    log::warn!(
        "rule `{}` has port {port} of your own ssh session, and {peer} is not allowed: a few new connections too many would \
         ban it, and end the session; `allow add {peer}` keeps it",
        new.name
    );
    Ok(())
}

/// The rule that a port falls under.
fn rule_of(settings: &Policy, port: u16) -> Option<&NamedRule> {
    let named = settings.rules.iter().find(|rule| rule.ports.contains(port));
    named.or_else(|| settings.rules.iter().find(|rule| rule.name.is_default()))
}

fn is_stricter(old: &RuleSpec, new: &RuleSpec) -> bool {
    let cuts = |spec: &RuleSpec| spec.action.bans() && spec.scope == Scope::All && spec.mode == Mode::Enforce;
    // SYNs in a time; the products do not overflow.
    let less =
        u128::from(new.limit) * u128::from(old.window_ns) < u128::from(old.limit) * u128::from(new.window_ns);
    cuts(new) && (!cuts(old) || less || new.limit < old.limit)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::policy::default_spec;

    #[test]
    fn fewer_connections_or_a_longer_reach_are_stricter() {
        let old = default_spec();
        assert!(!is_stricter(&old, &old));
        assert!(is_stricter(&old, &RuleSpec { limit: old.limit - 1, ..old }));
        assert!(is_stricter(&old, &RuleSpec { window_ns: old.window_ns * 2, ..old }));
        assert!(!is_stricter(&old, &RuleSpec { limit: old.limit + 1, ..old }));
        let few = RuleSpec { limit: 1, ..old };
        assert!(!is_stricter(&old, &RuleSpec { scope: Scope::Syn, ..few }));
        assert!(!is_stricter(&old, &RuleSpec { mode: Mode::Monitor, ..few }));
        assert!(is_stricter(&RuleSpec { scope: Scope::Syn, ..old }, &old));
    }
}
