//! Bans from other places: lists of addresses, and what `bans export --format json` wrote.
//!
//! All of it is read before anything is done, and one bad line makes all of it bad.

use std::collections::BTreeMap;
use std::io::{self, BufRead, Read as _};
use std::net::{IpAddr, Ipv4Addr};

use dosguard_common::address::Address;
use dosguard_common::ban::{Ban, BanReason};
use dosguard_common::key::SourceKey;
use dosguard_common::label::MAX_LABEL;
use dosguard_common::rule::{RuleIndex, Scope};
use jiff::Timestamp;
use thiserror::Error;

use super::export::network;
use super::live::{Live, Span, Unfit, parse_source};
use crate::config::cidr::Cidr;
use crate::config::units;
use crate::output::{BanFields, BanRecord, SCHEMA, WallClock, printable};

/// The most lines that are read.
const MAX_LINES: usize = 17_000_000;
/// The most bytes of a line.
const MAX_LINE: usize = 4_096;
/// What is shown of a line that cannot be read.
const SHOWN: usize = 80;

/// What the lines are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lines<'a> {
    /// Sources, which are banned for so long and with this note. What `hosts.deny` says in our own words is read too.
    Plain {
        /// For how long, in nanoseconds.
        length_ns: u64,
        /// Why.
        note: &'a str,
    },
    /// Records, which know until when.
    Json,
}

/// What was read.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Import {
    /// The bans. Of several of a source with the same reach the one that ends last.
    pub bans: BTreeMap<SourceKey, Ban>,
    /// How many had ended already.
    pub expired: usize,
    /// How many rules had imposed on what is this machine itself, or nobody: by packets that were sent in its name.
    pub own: usize,
}

/// Why a list is refused.
#[derive(Debug, Error)]
pub enum ImportError {
    /// A line is no ban.
    #[error("line {line}")]
    Line {
        /// Which, from 1.
        line: usize,
        /// Why.
        #[source]
        source: LineError,
    },
    /// It is too long.
    #[error(
        "there are more than {MAX_LINES} lines\nhint: networks that are to be kept out for good go on the deny-list"
    )]
    TooLong,
    /// It cannot be read.
    #[error("reading failed\nhint: name a file of text that can be read, or `-` for standard input")]
    Io(#[from] io::Error),
}

/// Why a line is no ban.
#[derive(Debug, Error)]
pub enum LineError {
    /// The source, the rule or a field does not fit.
    #[error(transparent)]
    Unfit(#[from] Unfit),
    /// It is no record.
    #[error(
        "`{text}` is no record of a ban: {reason}\nhint: an object as `bans export --format json` writes it"
    )]
    NoRecord {
        /// What was written, cut.
        text: String,
        /// What is wrong.
        reason: String,
    },
    /// It has bytes that are no text.
    #[error("it is no text\nhint: a list of addresses, one a line, or records in JSON")]
    NoText,
    /// It is too long.
    #[error("it is longer than {MAX_LINE} bytes\nhint: one source or one record a line")]
    LongLine,
    /// It would cut the machine off from itself.
    #[error("`{text}` is this machine itself, or nobody\nhint: leave it out")]
    Loopback {
        /// What was written.
        text: String,
    },
}

/// What some editors put first.
const BYTE_ORDER_MARK: &[u8] = "\u{feff}".as_bytes();

/// Whether records come first in it: a list of addresses does not begin with a brace.
pub fn looks_like_json(input: &mut impl BufRead) -> io::Result<bool> {
    loop {
        let buffer = input.fill_buf()?;
        if buffer.is_empty() {
            return Ok(false);
        }
        // The bytes of a byte order mark begin nothing else that is read.
        let blank = |byte: &u8| byte.is_ascii_whitespace() || BYTE_ORDER_MARK.contains(byte);
        match buffer.iter().find(|byte| !blank(byte)) {
            Some(first) => return Ok(*first == b'{'),
            None => {
                let read = buffer.len();
                input.consume(read);
            }
        }
    }
}

/// Reads a list.
pub fn read(
    mut input: impl BufRead,
    lines: Lines<'_>,
    live: &Live,
    clock: &WallClock,
) -> Result<Import, ImportError> {
    let mut import = Import::default();
    let mut line = Vec::new();
    for number in 1.. {
        let at_line = |source| ImportError::Line { line: number, source };
        line.clear();
        // One more than it may have, and its end.
        if (&mut input).take(MAX_LINE as u64 + 2).read_until(b'\n', &mut line)? == 0 {
            break;
        }
        if number > MAX_LINES {
            return Err(ImportError::TooLong);
        }
        let text = line.strip_suffix(b"\n").unwrap_or(&line);
        if text.len() > MAX_LINE {
            return Err(at_line(LineError::LongLine));
        }
        let text = str::from_utf8(text).map_err(|_| at_line(LineError::NoText))?;
        // What some editors put first.
        let text = if number == 1 { text.strip_prefix('\u{feff}').unwrap_or(text) } else { text };
        let read = match lines {
            Lines::Plain { length_ns, note } => plain(text, length_ns, note, live, clock),
            Lines::Json => json(text, live, clock),
        };
        match read.map_err(at_line)? {
            Line::Empty => {}
            Line::Expired => import.expired += 1,
            Line::Own => import.own += 1,
            Line::Ban(key, ban) => {
                let longest = import.bans.entry(key).or_insert(ban);
                if longest.until_ns < ban.until_ns {
                    *longest = ban;
                }
            }
        }
    }
    Ok(import)
}

enum Line {
    Empty,
    Expired,
    Own,
    Ban(SourceKey, Ban),
}

fn plain(line: &str, length_ns: u64, note: &str, live: &Live, clock: &WallClock) -> Result<Line, LineError> {
    let text = line.split('#').next().unwrap_or_default().trim();
    if text.is_empty() {
        return Ok(Line::Empty);
    }
    let text = match text.strip_prefix("ALL:") {
        Some(denied) => of_hosts_deny(denied.trim()),
        None => text.to_owned(),
    };
    let source = parse_source(&text, live.mask())?;
    refuse_loopback(source, &text, live)?;
    let now_ns = clock.boot_now_ns();
    let until_ns = now_ns.saturating_add(length_ns);
    let ban = Ban::by_admin(Scope::All, RuleIndex::DEFAULT, now_ns, until_ns, note);
    Ok(Line::Ban(SourceKey::everywhere(source), ban))
}

/// What TCP wrappers call it, in our words: `[2001:db8::]/64` and `192.0.2.0/255.255.255.0`.
fn of_hosts_deny(denied: &str) -> String {
    let text = denied.replacen('[', "", 1).replacen(']', "", 1);
    let Some((address, mask)) = text.split_once('/') else { return text };
    match mask.parse::<Ipv4Addr>().map(Ipv4Addr::to_bits) {
        Ok(mask) if mask.leading_ones() + mask.trailing_zeros() == 32 => {
            format!("{address}/{}", mask.leading_ones())
        }
        _ => text,
    }
}

fn json(line: &str, live: &Live, clock: &WallClock) -> Result<Line, LineError> {
    if line.trim().is_empty() {
        return Ok(Line::Empty);
    }
    let no_record = |reason: String| LineError::NoRecord { text: line.chars().take(SHOWN).collect(), reason };
    let record: BanRecord = serde_json::from_str(line).map_err(|error| no_record(error.to_string()))?;
    if record.version != SCHEMA {
        return Err(no_record(format!("version {} is not {SCHEMA}", record.version)));
    }
    let Some(until) = record.ban.until else { return Err(no_record("it has no `until`".to_owned())) };
    if printable(&record.ban.source) != record.ban.source {
        return Err(no_record("its source holds control characters".to_owned()));
    }
    let source = parse_source(&record.ban.source, live.mask())?;
    if record.ban.reason.as_deref() == Some(BanReason::Admin.name()) {
        refuse_loopback(source, &record.ban.source, live)?;
    } else if is_own(source, live) {
        // Anybody can have it banned by forged packets; that must not keep all other bans out.
        return Ok(Line::Own);
    }
    refuse_labels(source, &record.ban, live)?;
    let now_ns = clock.boot_now_ns();
    let longest_ns = live.unproven_ns(&record.ban).unwrap_or(u64::MAX);
    let remaining_ns = ns(clock.at(now_ns), until).min(longest_ns);
    let length_ns = match record.length.as_deref().map(str::parse::<units::Span>) {
        Some(Ok(length)) => length.ns(),
        Some(Err(error)) => return Err(no_record(error.to_string())),
        None => record.ban.since.map_or(remaining_ns, |since| ns(since, until)),
    };
    // It begins here now.
    let span = Span {
        since_ns: now_ns,
        until_ns: now_ns.saturating_add(remaining_ns),
        length_ns: length_ns.min(longest_ns).max(remaining_ns),
    };
    let (key, ban) = live.ban(source, &record.ban, span)?;
    Ok(if remaining_ns == 0 { Line::Expired } else { Line::Ban(key, ban) })
}

/// A note is one line, as `--reason` takes it, and so is the name of a rule.
fn refuse_labels(source: Address, record: &BanFields, live: &Live) -> Result<(), Unfit> {
    for (field, value, longest, accepted) in [
        ("note", &record.note, MAX_LABEL, "one line of up to 24 bytes"),
        ("rule", &record.rule, MAX_LABEL, "the name of a rule"),
    ] {
        let value = value.as_deref().unwrap_or_default();
        if value.len() > longest || printable(value) != value {
            let value = printable(value).chars().take(SHOWN).collect();
            return Err(Unfit::Field { source_text: live.text(source), field, value, accepted });
        }
    }
    Ok(())
}

/// From then to then; nothing if that is backwards.
fn ns(from: Timestamp, to: Timestamp) -> u64 {
    u64::try_from(to.duration_since(from).as_nanos().max(0)).unwrap_or(u64::MAX)
}

/// What the machine says to itself does not come in over the network; whoever lists it has made a mistake.
fn refuse_loopback(source: Address, text: &str, live: &Live) -> Result<(), LineError> {
    if is_own(source, live) { Err(LineError::Loopback { text: text.to_owned() }) } else { Ok(()) }
}

/// Whether a source is the machine itself, or nobody.
fn is_own(source: Address, live: &Live) -> bool {
    let network = network(source, live.mask().into());
    let within = |host: IpAddr| Cidr::containing(host, network.prefix()) == network;
    match network.address() {
        IpAddr::V4(address) => {
            address.is_loopback() || address.is_unspecified() || within(Ipv4Addr::LOCALHOST.into())
        }
        // `::1` and `::` are neighbours, and of one source.
        IpAddr::V6(address) => address.is_unspecified() || within(std::net::Ipv6Addr::LOCALHOST.into()),
    }
}

#[cfg(test)]
mod tests;
