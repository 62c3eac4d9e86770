//! Formats of text: lists, JSON, CSV.

use std::io::{self, Write};
use std::net::{IpAddr, Ipv4Addr};

use dosguard_common::address::Address;
use dosguard_common::ban::Ban;
use dosguard_common::key::SourceKey;

use super::{Selected, Setting, network};
use crate::bans::Naming;
use crate::config::cidr::Cidr;
use crate::config::policy::SourcePrefixes;
use crate::config::services::ExportFormat;
use crate::output::{BanRecord, WallClock, in_parts, write_json};

/// A source alone.
pub fn plain_line(source: Cidr) -> String {
    source.to_string()
}

/// As TCP wrappers want it (hosts_access(5)): IPv6 in brackets, IPv4 networks with a mask.
pub fn hosts_deny_line(source: Cidr) -> String {
    let bits = source.prefix();
    match source.address() {
        IpAddr::V4(address) if bits == 32 => format!("ALL: {address}"),
        IpAddr::V4(address) => {
            let mask = u32::MAX.checked_shl(32 - u32::from(bits)).unwrap_or(0);
            format!("ALL: {address}/{}", Ipv4Addr::from_bits(mask))
        }
        IpAddr::V6(address) if bits == 128 => format!("ALL: [{address}]"),
        IpAddr::V6(address) => format!("ALL: [{address}]/{bits}"),
    }
}

/// The lines of a file that follows the bans.
pub fn followed_lines(sources: &[Address], format: ExportFormat, prefixes: SourcePrefixes) -> Vec<u8> {
    let mut lines = String::new();
    for source in sources {
        let source = network(*source, prefixes);
        lines += &match format {
            ExportFormat::Plain => plain_line(source),
            ExportFormat::HostsDeny => hosts_deny_line(source),
        };
        lines.push('\n');
    }
    lines.into_bytes()
}

pub(super) fn plain(out: &mut dyn Write, selected: &Selected, setting: &Setting<'_>) -> io::Result<()> {
    selected.whole().keys().try_for_each(|source| writeln!(out, "{}", plain_line(setting.network(*source))))
}

pub(super) fn hosts_deny(out: &mut dyn Write, selected: &Selected, setting: &Setting<'_>) -> io::Result<()> {
    let sources = selected.whole();
    sources.keys().try_for_each(|source| writeln!(out, "{}", hosts_deny_line(setting.network(*source))))
}

fn records(selected: &Selected, setting: &Setting<'_>) -> impl Iterator<Item = BanRecord> {
    selected.bans.iter().map(|(key, ban)| record(key, ban, setting.names, setting.clock))
}

fn record(key: &SourceKey, ban: &Ban, names: &Naming, clock: &WallClock) -> BanRecord {
    BanRecord::new(key, ban, |index| names.rule(index), names.prefixes(), clock)
}

pub(super) fn json(out: &mut dyn Write, selected: &Selected, setting: &Setting<'_>) -> io::Result<()> {
    json_lines(out, &selected.bans, setting.names, setting.clock)
}

/// A JSON object on a line for each ban, as `bans list --json` prints them.
pub fn json_lines(
    out: &mut dyn Write,
    bans: &[(SourceKey, Ban)],
    names: &Naming,
    clock: &WallClock,
) -> io::Result<()> {
    let lines = |bans: &[(SourceKey, Ban)]| -> io::Result<Vec<u8>> {
        let mut lines = Vec::new();
        for (key, ban) in bans {
            write_json(&mut lines, &record(key, ban, names, clock))?;
        }
        Ok(lines)
    };
    in_parts(bans, lines, |lines| out.write_all(&lines?))
}

/// Text that no spreadsheet takes for a formula.
pub(super) fn inert(text: String) -> String {
    if text.starts_with(['=', '+', '-', '@', '\t', '\r']) { format!("'{text}") } else { text }
}

pub(super) fn csv(out: &mut dyn Write, selected: &Selected, setting: &Setting<'_>) -> io::Result<()> {
    let mut table = csv::Writer::from_writer(out);
    table.write_record([
        "source",
        "scope",
        "rule",
        "reason",
        "monitor",
        "count",
        "limit",
        "window",
        "offences",
        "since",
        "until",
        "remaining_s",
        "length",
        "note",
    ])?;
    for BanRecord { ban, remaining_s, length, .. } in records(selected, setting) {
        let text = Option::unwrap_or_default;
        let time = |time: Option<jiff::Timestamp>| time.map(|time| time.to_string()).unwrap_or_default();
        table.write_record([
            ban.source,
            text(ban.scope),
            text(ban.rule),
            text(ban.reason),
            ban.monitor.to_string(),
            ban.count.to_string(),
            ban.limit.to_string(),
            text(ban.window),
            ban.offences.to_string(),
            time(ban.since),
            time(ban.until),
            format!("{remaining_s:.3}"),
            text(length),
            inert(text(ban.note)),
        ])?;
    }
    table.flush()
}
