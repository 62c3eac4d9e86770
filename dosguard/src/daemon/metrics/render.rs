//! Metrics as Prometheus reads them: <https://prometheus.io/docs/practices/naming/>.

use std::collections::HashMap;

use prometheus::{GaugeVec, IntCounterVec, Opts, Registry, Result, TextEncoder};

use super::super::health::{Health, Loss};
use super::read::{RULE_REASONS, State, Walked};
use crate::config::units::Span;
use crate::output::printable;
use dosguard_common::reason::Tally;

/// The metrics as text.
pub(super) fn render(state: &State, health: &Health) -> Result<String> {
    let sheet = Sheet::new(&state.instance)?;
    sheet.about_packets(state)?;
    sheet.about_rules(state)?;
    sheet.about_bans(state)?;
    sheet.about_interfaces(state)?;
    sheet.about_daemon(health)?;
    TextEncoder::new().encode_to_string(&sheet.registry.gather())
}

/// Metrics that are being collected, for one text.
struct Sheet {
    registry: Registry,
}

/// The values of some labels, and the number that goes with them.
type Row<'a, T> = (Vec<&'a str>, T);

impl Sheet {
    fn new(instance: &str) -> Result<Self> {
        // `instance` is Prometheus' own label.
        let labels = HashMap::from([("guard".to_owned(), instance.to_owned())]);
        Ok(Self { registry: Registry::new_custom(None, Some(labels))? })
    }

    /// Something that only grows, until the instance or the daemon starts anew.
    fn counter<'a>(
        &self,
        name: &str,
        help: &str,
        labels: &[&str],
        rows: impl IntoIterator<Item = Row<'a, u64>>,
    ) -> Result<()> {
        let counter = IntCounterVec::new(Opts::new(format!("dosguard_{name}_total"), help), labels)?;
        for (values, number) in rows {
            counter.get_metric_with_label_values(&values)?.inc_by(number);
        }
        self.registry.register(Box::new(counter))
    }

    /// Something that is as it is now.
    fn gauge<'a>(
        &self,
        name: &str,
        help: &str,
        labels: &[&str],
        rows: impl IntoIterator<Item = Row<'a, f64>>,
    ) -> Result<()> {
        let gauge = GaugeVec::new(Opts::new(format!("dosguard_{name}"), help), labels)?;
        for (values, number) in rows {
            gauge.get_metric_with_label_values(&values)?.set(number);
        }
        self.registry.register(Box::new(gauge))
    }

    fn about_packets(&self, state: &State) -> Result<()> {
        let labels = ["verdict", "reason"];
        let values = |reason: &dosguard_common::reason::Reason| vec![reason.verdict().name(), reason.name()];
        let packets = state.packets.iter().map(|(reason, count)| (values(reason), count.packets));
        self.counter("packets", "Packets that were judged, by verdict and reason.", &labels, packets)?;
        let bytes = state.packets.iter().map(|(reason, count)| (values(reason), count.bytes));
        self.counter(
            "bytes",
            "Bytes of the packets that were judged, by verdict and reason.",
            &labels,
            bytes,
        )?;
        for (tally, count) in &state.tallies {
            self.counter(&tally.name().replace('-', "_"), tally_help(*tally), &[], [(vec![], *count)])?;
        }
        Ok(())
    }

    fn about_rules(&self, state: &State) -> Result<()> {
        let each = || state.rules.iter().map(|state| (state.rule.name(), &state.rule));
        let packets = state.rules.iter().flat_map(|state| {
            let of = RULE_REASONS.iter().zip(state.packets);
            of.map(|(reason, count)| (vec![state.rule.name(), reason.verdict().name(), reason.name()], count))
        });
        self.counter(
            "rule_packets",
            "Packets that were judged by a rule or because of its bans, by verdict and reason.",
            &["rule", "verdict", "reason"],
            packets,
        )?;
        let info = each().map(|(name, rule)| {
            (vec![name, rule.action().name(), rule.scope().name(), rule.mode().name()], 1.0)
        });
        self.gauge("rule_info", "The rules. Always 1.", &["rule", "action", "scope", "mode"], info)?;
        let limits = each().map(|(name, rule)| (vec![name], f64::from(rule.limit())));
        self.gauge(
            "rule_limit_syns",
            "SYNs of one source that a rule lets pass in a window.",
            &["rule"],
            limits,
        )?;
        let windows =
            each().map(|(name, rule)| (vec![name], Span::from_ns(rule.window_ns()).duration().as_secs_f64()));
        self.gauge("rule_window_seconds", "The window of a rule's limit.", &["rule"], windows)?;
        let flooded =
            state.rules.iter().map(|state| (vec![state.rule.name()], f64::from(u8::from(state.is_flooded))));
        let help = "1 while more SYNs come to a rule's ports than its flood_limit expects of all sources, or came lately.";
        self.gauge("rule_flooded", help, &["rule"], flooded)
    }

    fn about_bans(&self, state: &State) -> Result<()> {
        let walked = &state.walked;
        #[expect(clippy::cast_precision_loss, reason = "maps have far less than 2^53 entries")]
        let number = |count: u64| count as f64;
        let bans = walked.bans.iter().map(|((rule, scope, reason, mode), count)| {
            (vec![rule.as_str(), scope, reason, mode], number(*count))
        });
        self.gauge(
            "bans",
            "Bans that hold, by rule, scope, reason and mode; those of mode monitor drop nothing.",
            &["rule", "scope", "reason", "mode"],
            bans,
        )?;
        let one = |number: f64| [(vec![], number)];
        self.gauge(
            "bans_capacity",
            "How many bans there is room for.",
            &[],
            one(state.bans_capacity.into()),
        )?;
        let sources = walked.sources;
        self.gauge("sources", "Sources that are counted, per rule.", &[], one(number(sources.used as u64)))?;
        let room = "How many sources there is room for; beyond that the least recently seen are forgotten.";
        self.gauge("sources_capacity", room, &[], one(sources.capacity.into()))?;
        let Walked { offenders, proofs, .. } = walked;
        self.gauge("offenders", "Offenders that are remembered.", &[], one(number(offenders.used as u64)))?;
        let room = "How many offenders there is room for; beyond that the oldest are forgotten.";
        self.gauge("offenders_capacity", room, &[], one(offenders.capacity.into()))?;
        let known = "Sources that were seen to be real, however long ago.";
        self.gauge("proofs", known, &[], one(number(proofs.used as u64)))?;
        let room = "Of how many sources that is kept; those met least lately count as without proof.";
        self.gauge("proofs_capacity", room, &[], one(proofs.capacity.into()))?;
        let networks = walked.networks.iter().map(|(list, count)| (vec![list.name()], number(*count as u64)));
        self.gauge("list_networks", "Networks on the allow-list and on the deny-list.", &["list"], networks)?;
        let help = "When bans, sources and lists were counted, which is not done for every request.";
        self.gauge("counted_timestamp_seconds", help, &[], one(walked.at.as_duration().as_secs_f64()))
    }

    fn about_interfaces(&self, state: &State) -> Result<()> {
        self.gauge(
            "mode_info",
            "The mode of the instance. Always 1.",
            &["mode"],
            [(vec![state.mode.name()], 1.0)],
        )?;
        let interfaces: Vec<_> = state
            .interfaces
            .iter()
            .map(|on| {
                (
                    printable(on.name.as_deref().unwrap_or_default()).into_owned(),
                    on.link.ifindex.to_string(),
                    on.mode,
                )
            })
            .collect();
        let attached = interfaces.iter().map(|(name, index, mode)| {
            (vec![name.as_str(), index.as_str()], f64::from(u8::from(mode.is_some())))
        });
        self.gauge(
            "interface_attached",
            "1 if the program is on the interface, 0 if somebody detached it or the interface is gone.",
            &["interface", "ifindex"],
            attached,
        )?;
        let info = interfaces
            .iter()
            .filter_map(|(name, index, mode)| Some((vec![name.as_str(), index.as_str(), (*mode)?], 1.0)));
        let help = "The interfaces that are guarded, and the mode that was obtained. Always 1.";
        self.gauge("interface_info", help, &["interface", "ifindex", "mode"], info)
    }

    fn about_daemon(&self, health: &Health) -> Result<()> {
        let events = [(vec![], health.events())];
        self.counter("daemon_events", "Events that the daemon handed out.", &[], events)?;
        let losses = Loss::ALL.iter().map(|loss| (vec![loss.name()], health.losses(*loss)));
        let help = "What the daemon could not do, by what was lost.";
        self.counter("daemon_losses", help, &["loss"], losses)?;
        #[expect(clippy::cast_precision_loss, reason = "there are few")]
        let warnings = [(vec![], health.warned().len() as f64)];
        self.gauge("daemon_warnings", "What is wrong with the daemon's surroundings now.", &[], warnings)?;
        let build = [(vec![env!("CARGO_PKG_VERSION")], 1.0)];
        self.gauge("build_info", "The version of the daemon. Always 1.", &["version"], build)
    }
}

const fn tally_help(tally: Tally) -> &'static str {
    match tally {
        Tally::BanImposed => "Bans that rules imposed.",
        Tally::BanTableFull => "Sources over the limit that could not be banned: the map of bans was full.",
        Tally::BanDeferred => {
            "Sources over the limit that were banned a moment later: their expired ban was being removed."
        }
        Tally::OffenceLost => "Offences that could not be remembered.",
        Tally::SourceAdded => "Sources that got a place among the counters.",
        Tally::EventLost => "Events that found the ring buffer full.",
        Tally::EventSuppressed => "Events beyond the rate that is set.",
        Tally::ChallengeUnsent => {
            "Challenged SYNs that were dropped: nobody listens there, or they cannot be answered."
        }
        Tally::ChallengeLeft => {
            "Challenged SYNs that were left to the host, whose listener had sent no cookie lately."
        }
        Tally::ChallengeAnswered => "Connections that were made with a cookie while challenges were sent.",
        Tally::SourceProven => "Sources that were seen to be real.",
        Tally::ProofLost => "Proofs that sources are real, and used up limits, that could not be kept.",
        Tally::AnswerDropped => {
            "Completed handshakes that were dropped: too many of a source, or the same again."
        }
        Tally::AnswerUncounted => "Completed handshakes that could not be counted.",
        Tally::SourceEvicted => "Sources that lost their counters to others.",
    }
}

#[cfg(test)]
mod tests;
