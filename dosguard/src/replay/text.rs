//! The report for people.

use std::io::{self, Write};
use std::time::Duration;

use dosguard_common::event::Kind;
use dosguard_common::reason::Tally;

use super::report::{OfferedRecord, Report, RuleRecord};
use crate::config::units::Span;
use crate::output::{BOLD, RED, YELLOW, grouped, local, table, write_table};

/// The longest bar of a histogram, in characters.
const BAR: u64 = 40;

/// Prints all of it.
pub fn print(report: &Report, out: &mut dyn Write) -> io::Result<()> {
    summary(report, out)?;
    if report.packets == 0 {
        return Ok(());
    }
    writeln!(out)?;
    counters(report, out)?;
    writeln!(out)?;
    bans(report, out)?;
    writeln!(out)?;
    rules(report, out)?;
    for rule in &report.rules {
        writeln!(out)?;
        offered(rule, out)?;
    }
    Ok(())
}

fn summary(report: &Report, out: &mut dyn Write) -> io::Result<()> {
    let (packets, bytes) = (counted(report.packets, "packet"), counted(report.bytes, "byte"));
    write!(out, "{BOLD}{packets}{BOLD:#}, {bytes}")?;
    if let (Some(first), Some(last)) = (report.first, report.last) {
        let span = Duration::try_from_secs_f64(report.span_s).unwrap_or_default();
        let span = Span::from_ns(u64::try_from(span.as_nanos()).unwrap_or(u64::MAX));
        write!(out, " in {}, {} to {}", span.approx(), local(first), local(last))?;
    }
    writeln!(out, "; judged in {:.2} s, {} a second", report.elapsed_s, grouped(rate(report)))?;
    let left = &report.left_out;
    let left_out = [
        (left.outgoing, "outgoing"),
        (left.elsewhere, "to other addresses"),
        (left.cut_short, "cut too short in the capture to be judged"),
        (left.link, "of a link type that is not understood"),
    ];
    let left_out: Vec<_> = left_out
        .into_iter()
        .filter(|(count, _)| *count > 0)
        .map(|(count, what)| format!("{} {what}", grouped(count)))
        .collect();
    if !left_out.is_empty() {
        writeln!(out, "left out: {}", left_out.join(", "))?;
    }
    Ok(())
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "for people, and far from the edges"
)]
#[expect(clippy::cast_precision_loss, reason = "for people")]
fn rate(report: &Report) -> u64 {
    (report.packets as f64 / report.elapsed_s.max(1e-6)) as u64
}

fn counters(report: &Report, out: &mut dyn Write) -> io::Result<()> {
    let mut lines = table(&["VERDICT", "REASON", "PACKETS", "BYTES"]);
    for count in report.counters.iter().filter(|count| count.packets > 0) {
        let (packets, bytes) = (grouped(count.packets), grouped(count.bytes));
        lines.add_row([count.verdict.to_owned(), count.reason.to_owned(), packets, bytes]);
    }
    write_table(out, &lines)?;
    let losses = [Tally::BanTableFull, Tally::OffenceLost];
    for loss in report.tallies.iter().filter(|tally| losses.iter().any(|loss| loss.name() == tally.name)) {
        if loss.count > 0 {
            writeln!(out, "{YELLOW}{}: {}{YELLOW:#}", loss.name, grouped(loss.count))?;
        }
    }
    Ok(())
}

fn bans(report: &Report, out: &mut dyn Write) -> io::Result<()> {
    let floods = report.events_of(Kind::Flood.name());
    if floods > 0 {
        writeln!(out, "{YELLOW}{} would have been told{YELLOW:#}", counted(floods, "flood"))?;
    }
    let imposed = report.events_of(Kind::Ban.name());
    if imposed == 0 {
        return writeln!(out, "nobody would have been banned");
    }
    let (bans, sources) = (counted(imposed, "ban"), counted(report.sources_banned as u64, "source"));
    write!(out, "{RED}{bans} of {sources} would have been imposed{RED:#}")?;
    if report.bans_unproven > 0 {
        write!(out, ", {} by SYNs alone", grouped(report.bans_unproven))?;
    }
    writeln!(out, "; {} ended within the capture", grouped(report.events_of(Kind::Unban.name())))?;
    if report.bans_unproven > 0 && !report.has_answers {
        writeln!(
            out,
            "{YELLOW}the capture has no answers of the host: nobody is proven; with `require_proof = false` SYNs alone \
             ban{YELLOW:#}"
        )?;
    }
    if report.bans.is_empty() {
        return Ok(());
    }
    let mut lines = table(&["AT", "SOURCE", "RULE", "FOR", "SYNS", "LIMIT", "OFFENCE", "EVIDENCE"]);
    for record in &report.bans {
        let ban = &record.ban;
        // Both are there with every ban.
        let (since, until) = (ban.since.unwrap_or_default(), ban.until.unwrap_or_default());
        let length_ns = until.duration_since(since).as_nanos();
        let length = Span::from_ns(u64::try_from(length_ns).unwrap_or(0)).approx();
        let limit = match &ban.window {
            Some(window) => format!("{}/{window}", ban.limit),
            None => ban.limit.to_string(),
        };
        lines.add_row([
            local(since),
            ban.source.clone(),
            ban.rule.clone().unwrap_or_default(),
            length,
            ban.count.to_string(),
            limit,
            ban.offences.to_string(),
            ban.evidence.clone().unwrap_or_default(),
        ]);
    }
    write_table(out, &lines)?;
    let more = imposed.saturating_sub(report.bans.len() as u64);
    if more > 0 {
        writeln!(out, "and {} more; `--top all` lists them", grouped(more))?;
    }
    Ok(())
}

fn rules(report: &Report, out: &mut dyn Write) -> io::Result<()> {
    let mut lines = table(&["RULE", "PORTS", "LIMIT", "ACTION", "SYNS PASSED", "OVER LIMIT", "BANNED"]);
    for rule in &report.rules {
        lines.add_row([
            rule.name.clone(),
            rule.ports.clone(),
            rule.limit.clone(),
            rule.action.to_owned(),
            grouped(rule.under_limit),
            grouped(rule.over_limit),
            grouped(rule.banned),
        ]);
    }
    write_table(out, &lines)
}

fn offered(rule: &RuleRecord, out: &mut dyn Write) -> io::Result<()> {
    let OfferedRecord { syns, sources, windows, window, .. } = &rule.offered;
    if *windows == 0 {
        return writeln!(out, "{BOLD}rule {}{BOLD:#}: no SYN came to its ports", rule.name);
    }
    writeln!(
        out,
        "{BOLD}rule {}{BOLD:#}: {} offered by {}; SYNs of a source in a window of {window}:",
        rule.name,
        counted(*syns, "SYN"),
        counted(*sources, "source")
    )?;
    histogram(&rule.offered, out)?;
    let OfferedRecord { p50, p99, p99_9, max, .. } = rule.offered;
    writeln!(
        out,
        "50 % of the windows have up to {}, 99 % up to {}, 99.9 % up to {}, all up to {}",
        grouped(p50.into()),
        grouped(p99.into()),
        grouped(p99_9.into()),
        grouped(max.into())
    )?;
    let mut said = "";
    for limit in &rule.offered.limits {
        if limit.limit == said {
            continue;
        }
        said = &limit.limit;
        let origin = match limit.from {
            "rule" => ", as it is,",
            "sources-p99" => ", which 99 % of the sources kept,",
            _ => ", the most that any source had at once,",
        };
        let touched = if limit.touched == 0 { "none".to_owned() } else { grouped(limit.touched) };
        let of = format!("{touched} of {}", counted(*sources, "source"));
        writeln!(out, "a limit of {BOLD}{}{BOLD:#}{origin} would have touched {of}", limit.limit)?;
    }
    Ok(())
}

fn histogram(offered: &OfferedRecord, out: &mut dyn Write) -> io::Result<()> {
    let longest = offered.histogram.iter().map(|step| step.windows).max().unwrap_or(0).max(1);
    let mut lines = table(&["SYNS", "WINDOWS", ""]);
    for step in &offered.histogram {
        let range =
            if step.from == step.to { step.from.to_string() } else { format!("{}-{}", step.from, step.to) };
        // The shortest bar there is still says that there is something.
        let bar = usize::try_from(step.windows.saturating_mul(BAR).div_ceil(longest)).unwrap_or(0);
        lines.add_row([range, grouped(step.windows), "▇".repeat(bar)]);
    }
    write_table(out, &lines)
}

/// What a reader of the report must know to trust it; nothing if all is well.
pub fn warnings(report: &Report) -> Vec<String> {
    let mut warnings = Vec::new();
    if let Some(mac) = &report.both_ways {
        warnings.push(format!(
            "{mac} both sends and receives here, so what the machine sent was judged, too; `--to ADDRESS` leaves it out"
        ));
    }
    let left = &report.left_out;
    if left.elsewhere > 0 && left.elsewhere + left.outgoing + left.cut_short + left.link >= report.packets {
        warnings.push("no packet goes to an address of `--to`: nothing was judged".to_owned());
    }
    let stamps = &report.stamps;
    if stamps.furthest_back_s > 1.0 {
        warnings.push(format!(
            "{} out of order, by up to {:.1} s, judged at the latest time before; `reordercap` puts a capture in order",
            counted(stamps.backwards, "packet"),
            stamps.furthest_back_s
        ));
    }
    if stamps.missing > 0 {
        warnings.push(format!(
            "{} without a stamp, judged at the latest time before",
            counted(stamps.missing, "packet")
        ));
    }
    if report.left_out.cut_short > 0 {
        warnings.push(format!(
            "{} not judged, because the capture cut too much off; `tcpdump -s 128` captures enough",
            counted(report.left_out.cut_short, "packet")
        ));
    }
    if let Some(idle_s) = report.forgotten_idle_s {
        warnings.push(format!(
            "more sources than the kernel counts at once: those idle for {idle_s:.3} s were forgotten, as they would be \
             in the kernel"
        ));
    }
    let unmeasured: u64 = report.rules.iter().map(|rule| rule.offered.unmeasured).sum();
    if unmeasured > 0 {
        warnings.push(format!(
            "{} judged, but not in the histogram: too many sources at once",
            counted(unmeasured, "SYN")
        ));
    }
    if report.rules.iter().any(|rule| rule.offered.recounted) {
        warnings.push(
            "more sources than can be told apart: one that came back after a pause counts again".to_owned(),
        );
    }
    warnings
}

fn counted(count: u64, what: &str) -> String {
    format!("{} {what}{}", grouped(count), if count == 1 { "" } else { "s" })
}
