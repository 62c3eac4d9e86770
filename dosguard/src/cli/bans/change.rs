//! `dosguard bans add`, `del` and `flush`.

use std::collections::BTreeSet;

use anyhow::Context as _;
use dosguard_common::address::Address;
use dosguard_common::ban::Ban;
use dosguard_common::config::Mode;
use dosguard_common::event::Kind;
use dosguard_common::key::SourceKey;
use dosguard_common::label::MAX_LABEL;
use dosguard_common::rule::{RuleIndex, Scope};

use super::{AddArgs, DelArgs};
use crate::bans::parse_source;
use crate::cli::changes::{Names, count};
use crate::cli::list::refuse_cut;
use crate::cli::{Answer, talk};
use crate::config::cidr::to_address;
use crate::config::units::Span;
use crate::connections::own_addresses;
use crate::datapath::{Datapath, Error, List, wait_for_end};
use crate::guards::{Change, own_among, ssh_peer};
use crate::lock::StateLock;
use crate::output::{YELLOW, printable, source_text};
use crate::paths::Paths;
use crate::system::{boot_now_ns, require_capabilities, wait_for_running_programs};

pub(super) fn add(paths: &Paths, args: &AddArgs) -> anyhow::Result<Answer> {
    let length = ban_length(&args.length)?;
    check_note(&args.note)?;
    require_capabilities()?;
    let _lock = StateLock::acquire(paths)?;
    let mut datapath = Datapath::require(paths)?;
    let mask = datapath.maps().source_mask()?;
    let sources = args.sources.iter().map(|text| parse_source(text, mask)).collect::<Result<Vec<_>, _>>()?;
    // Who names a rule means its ports.
    let scope = args.scope.map_or(if args.rule.is_some() { Scope::Syn } else { Scope::All }, Scope::from);
    let index = rule_index(&datapath, args.rule.as_deref().unwrap_or("default"))?;
    let names = Names::read(&datapath)?;
    if scope == Scope::All {
        refuse_cut(paths, &datapath, Change::Ban(&sources), args.force)?;
    } else if let Some(peer) = ssh_peer()
        && sources.contains(&mask.source(to_address(peer)))
        && !datapath.maps().list(List::Allow).covers(&to_address(peer))?
    {
        log::warn!(
            "your own ssh session comes from {peer}: it goes on, and new ones to these ports do not come in"
        );
    }
    warn_of_own(&datapath, &sources, scope)?;
    for source in sources {
        let key = SourceKey::with_scope(source, scope, index);
        let text = source_text(source, mask.into());
        let mut added = add_one(&mut datapath, key, index, length, args);
        if added.as_ref().is_err_and(is_full) {
            // Some may have ended that nobody has removed.
            datapath.make_room(1, |ended| names.report(paths, Kind::Unban, ended))?;
            added = add_one(&mut datapath, key, index, length, args);
        }
        let (kind, ban) = added.with_context(|| format!("{text} was not banned; those before it were"))?;
        if let Some(kind) = kind {
            names.report(paths, kind, &[(key, ban)]);
        }
    }
    Ok(Answer::Done)
}

/// Warns of sources that have addresses of this host, unless those are allowed.
fn warn_of_own(datapath: &Datapath, sources: &[Address], scope: Scope) -> anyhow::Result<()> {
    // That they cannot be listed keeps nobody from banning.
    let mut own = own_addresses().unwrap_or_default();
    let mask = datapath.maps().source_mask()?;
    let allowed = datapath.maps().list(List::Allow);
    let mut failed = Ok(());
    own.retain(|address| match allowed.covers(address) {
        Ok(is_allowed) => !is_allowed,
        Err(error) => {
            failed = Err(error);
            false
        }
    });
    failed?;
    for (source, address) in own_among(sources, mask, &own) {
        let text = source_text(source, mask.into());
        let what = if text == address.to_string() {
            format!("{text} is an address of this host itself")
        } else {
            format!("{text} has an address of this host itself, {address}, and its neighbours")
        };
        let then = match scope {
            Scope::All => "its own connections end",
            Scope::Syn => "its own new connections to these ports do not come in",
        };
        log::warn!("{what}: where `lo` is guarded, {then}");
    }
    Ok(())
}

fn is_full(error: &anyhow::Error) -> bool {
    matches!(error.downcast_ref(), Some(Error::MapFull { .. }))
}

/// Bans one source and says so. Returns the ban and what it means, if it is news.
fn add_one(
    datapath: &mut Datapath,
    key: SourceKey,
    index: RuleIndex,
    length: Span,
    args: &AddArgs,
) -> anyhow::Result<(Option<Kind>, Ban)> {
    let mask = datapath.maps().source_mask()?;
    let (source, now_ns) = (key.source(), boot_now_ns()?);
    let scope = if key.is_everywhere() { Scope::All } else { Scope::Syn };
    let text = source_text(source, mask.into());
    let until_ns = now_ns.saturating_add(length.ns());
    let mut ban = Ban::by_admin(scope, index, now_ns, until_ns, &args.note);
    let old = datapath.maps().ban(&key)?.filter(|old| old.is_active(now_ns) && !old.is_monitored());
    if let Some(old) = old {
        ban.since_ns = old.since_ns;
        if old.until_ns >= ban.until_ns {
            (ban.until_ns, ban.length_ns) = (old.until_ns, old.length_ns);
        }
    }
    datapath.maps_mut().set_ban(&key, &ban)?;
    // After it the source starts with a clean window, as after any ban.
    let offender = datapath.maps().offender(&key)?.unwrap_or_default().after_admin(&ban);
    datapath.maps_mut().remember(&key, &offender)?;
    // A packet that was being judged may have restarted the old ban's clock, and so put it back.
    if old.is_some_and(|old| old.refreshes()) {
        wait_for_running_programs();
        datapath.maps_mut().set_ban(&key, &ban)?;
    }
    let left = Span::from_ns(ban.until_ns.saturating_sub(now_ns)).approx();
    let (word, kind) = match old {
        Some(old) if old.until_ns == ban.until_ns => ("was banned for longer already:", None),
        Some(_) => ("extended: banned for", Some(Kind::Extend)),
        None => ("banned for", Some(Kind::Ban)),
    };
    let mut reach = scope.name().to_owned();
    if scope == Scope::Syn {
        reach = format!("{reach}, rule {}", datapath.rule_name(index));
    }
    talk::say(&format!("{text} {word} {left}, scope {reach}"));
    if datapath.maps().list(List::Allow).covers(&source)? {
        talk::say(&format!("{YELLOW}warning:{YELLOW:#} {text} is allowed, and passes all the same"));
    }
    if datapath.maps().config()?.mode() == Mode::Monitor {
        talk::say(&format!("{YELLOW}warning:{YELLOW:#} monitor mode: {text} passes all the same"));
    }
    Ok((kind, ban))
}

fn rule_index(datapath: &Datapath, name: &str) -> anyhow::Result<RuleIndex> {
    let rules = datapath.maps().rules()?;
    match rules.iter().find(|(_, rule)| rule.name() == name) {
        Some((index, _)) => Ok(*index),
        None => {
            let known: Vec<_> = rules.iter().map(|(_, rule)| format!("`{}`", rule.name())).collect();
            anyhow::bail!("no rule `{name}`\nhint: there are {}", known.join(", "))
        }
    }
}

pub(super) fn del(paths: &Paths, args: &DelArgs) -> anyhow::Result<Answer> {
    require_capabilities()?;
    let _lock = StateLock::acquire(paths)?;
    let mut datapath = Datapath::require(paths)?;
    let mask = datapath.maps().source_mask()?;
    let sources = args.sources.iter().map(|text| parse_source(text, mask)).collect::<Result<Vec<_>, _>>()?;
    let (bans, names) = (datapath.maps().bans()?, Names::read(&datapath)?);
    let named: BTreeSet<_> = sources.iter().copied().collect();
    let ended = end(&mut datapath, bans.into_iter().filter(|(key, _)| named.contains(&key.source())))?;
    let mut answer = Answer::Done;
    for source in sources {
        let text = source_text(source, mask.into());
        if ended.iter().any(|(key, _)| key.source() == source) {
            talk::say(&format!("{text} is no longer banned"));
        } else {
            talk::say(&format!("{text} was not banned"));
            answer = Answer::No;
        }
    }
    names.report(paths, Kind::Unban, &ended);
    Ok(answer)
}

pub(super) fn flush(paths: &Paths) -> anyhow::Result<Answer> {
    require_capabilities()?;
    let _lock = StateLock::acquire(paths)?;
    let mut datapath = Datapath::require(paths)?;
    let (bans, names) = (datapath.maps().bans()?, Names::read(&datapath)?);
    let ended = end(&mut datapath, bans)?;
    talk::say(&format!("{} ended", count(ended.len(), "ban")));
    names.report(paths, Kind::Unban, &ended);
    Ok(Answer::Done)
}

/// Removes bans and returns those that still held, once none of them drops anything. Expired ones stay for the daemon, which reports
/// them.
fn end(
    datapath: &mut Datapath,
    bans: impl IntoIterator<Item = (SourceKey, Ban)>,
) -> anyhow::Result<Vec<(SourceKey, Ban)>> {
    let now_ns = boot_now_ns()?;
    let mut ended = Vec::new();
    for (key, ban) in bans {
        if ban.is_active(now_ns) && datapath.maps_mut().remove_ban(&key)? {
            ended.push((key, ban));
        }
    }
    wait_for_end(&ended);
    Ok(ended)
}

/// For how long to ban.
pub(super) fn ban_length(text: &str) -> anyhow::Result<Span> {
    let length: Span = text.parse()?;
    anyhow::ensure!(length.ns() > 0, "a ban of `{text}` would end at once\nhint: such as `--for 10m`");
    Ok(length)
}

/// Refuses a note that does not fit into a label or is no text.
pub(super) fn check_note(note: &str) -> anyhow::Result<()> {
    anyhow::ensure!(
        note.len() <= MAX_LABEL && printable(note) == note,
        "`--reason` takes one line of up to {MAX_LABEL} bytes\nhint: such as `--reason \"ticket 4711\"`"
    );
    Ok(())
}
