//! What a look at connections has found, for whoever asks.

use std::collections::HashSet;
use std::time::Duration;

use dosguard_common::key::SourceKey;
use jiff::Timestamp;

use super::Work;
use crate::connections::{Census, Limits};
use crate::daemon::DaemonError;
use crate::daemon::report::{ConnectionReport, Holder};
use crate::output::source_text;
use crate::system::boot_now_ns;

/// From here on a source that holds nearly all connections is worth a word.
const WORTH_A_WORD: u32 = 20;

impl Work {
    pub(super) fn report(&self, census: &Census, limits: &Limits, cpu: Duration) -> Result<(), DaemonError> {
        let prefixes = self.datapath.maps().source_mask()?.into();
        let most = census.held.iter().max_by_key(|(key, held)| (held.established, std::cmp::Reverse(**key)));
        // Whoever is banned has been decided on.
        let is_banned = match most {
            Some((key, _)) => self.is_banned(key)?,
            None => false,
        };
        let most = most.map(|(key, held)| Holder {
            source: source_text(key.source(), prefixes),
            rule: key.rule().map(|index| self.datapath.rule_name(index)).unwrap_or_default(),
            established: held.established,
            half_open: held.half_open,
            limit: key.rule().and_then(|index| limits.get(&index)).map(|rule| rule.connections().max),
        });
        let total = census.total();
        let local = census.look.local.established;
        let advised = most.as_ref().filter(|_| !is_banned);
        let hint = hint(total.established, local, advised, &self.paths.command());
        self.health.counted(Some(ConnectionReport {
            at: Timestamp::now(),
            method: self.here.by().unwrap_or_default().name().to_owned(),
            namespaces: self.elsewhere.iter().map(|(name, _)| name.clone()).collect(),
            cpu_ms: cpu.as_secs_f64() * 1_000.0,
            sources: census.held.keys().map(SourceKey::source).collect::<HashSet<_>>().len() as u64,
            established: u64::from(total.established - local),
            half_open: u64::from(total.half_open - census.look.local.half_open),
            local: u64::from(local),
            allowed: u64::from(census.look.allowed.established),
            missed: u64::from(census.look.missed),
            most,
            hint,
        }));
        Ok(())
    }

    /// Whether SYNs of the source to the rule's ports are dropped because of a ban.
    fn is_banned(&self, key: &SourceKey) -> Result<bool, DaemonError> {
        let now_ns = boot_now_ns()?;
        for key in [*key, SourceKey::everywhere(key.source())] {
            if self.datapath.maps().ban(&key)?.is_some_and(|ban| ban.is_active(now_ns) && !ban.is_monitored())
            {
                return Ok(true);
            }
        }
        Ok(false)
    }
}

/// What the administrator should know of who holds nearly all connections.
fn hint(total: u32, local: u32, most: Option<&Holder>, command: &str) -> Option<String> {
    let is_nearly_all = |count: u32| total >= WORTH_A_WORD && u64::from(count) * 10 >= u64::from(total) * 9;
    if is_nearly_all(local) {
        return Some(format!(
            "{local} of {total} connections come from this host itself: behind a proxy on it nobody's connections can be \
             counted; limit those to the proxy's own port"
        ));
    }
    // As long as it keeps well within its limit it does not matter who it is.
    let is_near =
        |most: &&Holder| most.limit.is_some_and(|max| u64::from(most.established) * 5 >= u64::from(max) * 4);
    let most = most.filter(|most| is_nearly_all(most.established)).filter(is_near)?;
    Some(format!(
        "{} holds {} of {total} connections: if it is a proxy or a load balancer, `{command} allow add {}`",
        most.source, most.established, most.source
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn holder(established: u32) -> Holder {
        let (source, rule) = ("192.0.2.7".to_owned(), "web".to_owned());
        Holder { source, rule, established, half_open: 0, limit: Some(110) }
    }

    #[test]
    fn who_holds_nearly_all_connections_is_named() {
        let said = |total, local, most| hint(total, local, Some(&holder(most)), "dosguard");
        for (total, local, most) in [(19, 0, 19), (100, 89, 11), (100, 0, 89), (87, 0, 87), (0, 0, 0)] {
            assert_eq!(said(total, local, most), None, "{total} {local} {most}");
        }
        assert!(said(100, 90, 5).unwrap().contains("90 of 100 connections come from this host itself"));
        assert!(said(100, 0, 90).unwrap().ends_with("a load balancer, `dosguard allow add 192.0.2.7`"));
    }
}
