//! The table, the bans and the verdict at the end.

use std::time::Duration;

use anstyle::{AnsiColor, Style};
use dosguard::output::grouped;
use dosguard_tests::addresses::{FORGED_V4, SECOND_FORGED_V4};
use serde_json::Value;

use crate::{
    FLOOD_AT_LEAST, LIMIT, SECOND_SOURCE_PER_SECOND,
    phases::{Phase, Summary},
};

/// What is not measured in a phase.
const NONE: &str = "-";

/// Prints what each phase found, side by side.
pub(crate) fn print_table(summary: &Summary) {
    let phases = [&summary.quiet, &summary.without, &summary.with];
    let bold = Style::new().bold();
    let row = |label: &str, cell: &dyn Fn(&Phase) -> String| print_row(label, &phases.map(cell));
    let attack = |phase: &Phase, number: u64| {
        if phase.sent.attacker == 0 { NONE.to_owned() } else { grouped(number) }
    };

    say!();
    for heading in [["quiet", "attack without", "attack with"], ["", "dosguard", "dosguard"]] {
        say!("{bold}{}{bold:#}", line("", &heading.map(str::to_owned)));
    }
    row("SYNs the attacker sent", &|phase| attack(phase, phase.sent.attacker));
    row("  a second", &|phase| attack(phase, phase.sent.rate_per_second()));
    row("  lost before the filter", &|phase| attack(phase, phase.lost));
    let dropped = grouped(summary.filter.dropped);
    print_row("  dropped by dosguard", &[NONE.to_owned(), NONE.to_owned(), dropped]);
    row("  reached the server", &|phase| attack(phase, phase.attacker_reached));
    row("SYN cookies the server had to send", &|phase| grouped(phase.cookies));
    row("receiving packets, of one processor", &|phase| format!("{} %", phase.busy_percent));
    row("client: attempts", &|phase| grouped(phase.client.successes() + phase.client.failures()));
    row("  served", &|phase| grouped(phase.client.successes()));
    row("  served after, half of them", &|phase| latency(phase.client.percentile(50)));
    row("  served after, 99 %", &|phase| latency(phase.client.percentile(99)));
    row("  served after, at most", &|phase| latency(phase.client.percentile(100)));
    let second =
        |phase: &Phase, number: u64| if phase.sent.second == 0 { NONE.to_owned() } else { grouped(number) };
    row("SYNs the second source sent", &|phase| second(phase, phase.sent.second));
    row("  reached the server", &|phase| second(phase, phase.second_reached));
}

/// Prints the bans as they stood at the end.
pub(crate) fn print_bans(bans: &[Value]) {
    say!();
    if bans.is_empty() {
        say!("No bans.");
    }
    for ban in bans {
        say!(
            "Banned: {}, rule {}, scope {}, because of {}: {} against a limit of {}, for another {} s",
            text(&ban["source"]),
            text(&ban["rule"]),
            text(&ban["scope"]),
            text(&ban["reason"]),
            text(&ban["count"]),
            text(&ban["limit"]),
            ban["remaining_s"].as_f64().map_or_else(|| NONE.to_owned(), |seconds| format!("{seconds:.0}")),
        );
    }
}

/// Prints what had to hold and whether it did; returns whether all of it did.
pub(crate) fn print_checks(summary: &Summary) -> bool {
    say!();
    let mut all = true;
    for (holds, what) in checks(summary) {
        let (style, word) = if holds {
            (AnsiColor::Green.on_default(), "ok")
        } else {
            (AnsiColor::Red.on_default().bold(), "FAILED")
        };
        say!("{style}{word:>6}{style:#}  {what}");
        all &= holds;
    }
    all
}

/// What has to hold, in words with its numbers.
fn checks(summary: &Summary) -> Vec<(bool, String)> {
    let Summary { with, filter, .. } = summary;
    let is_banned = |source: &str| filter.bans.iter().any(|ban| ban["source"] == source);
    let arrived = with.sent.attacker - with.lost.min(with.sent.attacker);
    let passed = i128::from(arrived) - i128::from(filter.dropped);
    let served = [&summary.quiet, &summary.without, &summary.with].map(|phase| phase.client.successes());
    let served: u64 = served.iter().sum();
    vec![
        (
            with.sent.rate_per_second() >= FLOOD_AT_LEAST,
            format!(
                "the attacker sent {} SYNs a second, at least {}",
                grouped(with.sent.rate_per_second()),
                grouped(FLOOD_AT_LEAST)
            ),
        ),
        (is_banned(&FORGED_V4.to_string()), format!("the attacker {FORGED_V4} is banned")),
        (
            passed == i128::from(LIMIT),
            format!("arrived - dropped = {} - {} = {passed}, the limit is {LIMIT}", arrived, filter.dropped),
        ),
        (
            with.attacker_reached == LIMIT,
            format!(
                "nftables saw {} of the attacker's SYNs behind the filter, the limit is {LIMIT}",
                with.attacker_reached
            ),
        ),
        (
            !is_banned(&SECOND_FORGED_V4.to_string()),
            format!("{SECOND_FORGED_V4}, with {SECOND_SOURCE_PER_SECOND} SYNs a second, is not banned"),
        ),
        (
            with.second_reached == with.sent.second,
            format!("{} of its {} SYNs reached the server", with.second_reached, with.sent.second),
        ),
        (
            with.client.failures() == 0 && with.client.successes() > 0,
            format!(
                "the client was served {} times under attack with dosguard, {} attempts failed{}",
                with.client.successes(),
                with.client.failures(),
                reasons(with)
            ),
        ),
        (
            summary.accepted >= served,
            format!("the server accepted {} connections, the client was served {served}", summary.accepted),
        ),
    ]
}

fn reasons(phase: &Phase) -> String {
    let reasons: Vec<String> =
        phase.client.reasons().iter().map(|(reason, count)| format!("{count} × {reason}")).collect();
    if reasons.is_empty() { String::new() } else { format!(" ({})", reasons.join(", ")) }
}

fn print_row(label: &str, cells: &[String; 3]) {
    say!("{}", line(label, cells));
}

fn line(label: &str, [first, second, third]: &[String; 3]) -> String {
    format!("  {label:<36}{first:>12}{second:>17}{third:>17}")
}

/// A JSON value as a person writes it.
fn text(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Null => NONE.to_owned(),
        other => other.to_string(),
    }
}

/// Milliseconds.
fn latency(latency: Option<Duration>) -> String {
    latency.map_or_else(|| NONE.to_owned(), |latency| format!("{:.2} ms", latency.as_secs_f64() * 1e3))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_is_shown_without_quotes() {
        assert_eq!(text(&Value::from("x")), "x");
        assert_eq!(text(&Value::from(3)), "3");
        assert_eq!(text(&Value::Null), "-");
    }
}
