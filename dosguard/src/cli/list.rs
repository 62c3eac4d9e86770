//! `dosguard allow` and `dosguard deny`.

use std::io::Write;
use std::path::PathBuf;

use anyhow::Context as _;
use clap::{Args, Subcommand};
use serde::Serialize;

use super::attach::warn_of;
use super::changes::count;
use super::{Answer, talk};
use crate::config::cidr::Cidr;
use crate::datapath::{Datapath, List, Origin, PrefixSet, list_add, list_remove};
use crate::guards::{self, Change};
use crate::lock::StateLock;
use crate::output::{SCHEMA, write_json};
use crate::paths::Paths;
use crate::system::{boot_now_ns, require_capabilities};

#[derive(Debug, Subcommand)]
pub(super) enum ListVerb {
    /// List the networks.
    List(ListArgs),
    /// Add networks, from the next packet on.
    Add(NetworkArgs),
    /// Remove networks.
    Del(NetworkArgs),
}

#[derive(Debug, Args)]
pub(super) struct ListArgs {
    /// Print JSON, one object a line.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
pub(super) struct NetworkArgs {
    /// Read networks from a file too, one a line; `-` for standard input. What follows `#` or `;` is skipped.
    #[arg(short, long, value_name = "FILE")]
    file: Option<PathBuf>,
    /// Go on even if it cuts off the ssh session that this is said in.
    #[arg(long)]
    force: bool,
    /// An address or a network, such as `192.0.2.0/24` or `2001:db8::/32`.
    #[arg(value_name = "CIDR", required_unless_present = "file")]
    networks: Vec<String>,
}

#[derive(Serialize)]
struct NetworkRecord {
    version: u32,
    network: String,
    origin: &'static str,
}

/// Changes of so many networks are told one by one.
const TOLD: usize = 20;

pub(super) fn list(
    paths: &Paths,
    list: List,
    verb: &ListVerb,
    out: &mut dyn Write,
) -> anyhow::Result<Answer> {
    match verb {
        ListVerb::List(args) => show(paths, list, args, out),
        ListVerb::Add(args) => add(paths, list, args),
        ListVerb::Del(args) => del(paths, list, args),
    }
}

fn show(paths: &Paths, list: List, args: &ListArgs, out: &mut dyn Write) -> anyhow::Result<Answer> {
    let entries = Datapath::require(paths)?.maps().list(list).entries()?;
    let texts = entries.keys().map(|(address, bits)| Cidr::from_prefix(*address, *bits).to_string());
    let width = texts.map(|text| text.len()).max().unwrap_or_default();
    for ((address, bits), origin) in &entries {
        let network = Cidr::from_prefix(*address, *bits).to_string();
        if args.json {
            write_json(out, &NetworkRecord { version: SCHEMA, network, origin: origin.name() })?;
        } else {
            // What follows the sign is a comment to `add --file`.
            writeln!(out, "{network:width$}  # {}", origin.name())?;
        }
    }
    if entries.is_empty() && !args.json {
        talk::say(&format!("no networks are {}", list.participle()));
    }
    Ok(Answer::Done)
}

fn add(paths: &Paths, list: List, args: &NetworkArgs) -> anyhow::Result<Answer> {
    let networks = read(args)?;
    require_capabilities()?;
    let lock = StateLock::acquire(paths)?;
    let mut datapath = Datapath::require(paths)?;
    if list == List::Deny {
        warn_of(&networks);
        refuse_cut(paths, &datapath, Change::Deny(&networks), args.force)?;
    }
    list_add(datapath.maps_mut(), list, networks.iter().map(Cidr::to_prefix), Origin::HAND)?;
    // It is done: nobody has to wait while it is said.
    drop(lock);
    if networks.len() > TOLD {
        talk::say(&format!("{} networks are {}", networks.len(), list.participle()));
    } else {
        for network in &networks {
            talk::say(&format!("{network} is {}", list.participle()));
        }
    }
    if list == List::Allow {
        say_banned(&datapath, &networks)?;
    }
    talk::say(
        "it lasts until the instance is next loaded; what is in the configuration file comes back then",
    );
    Ok(Answer::Done)
}

/// Says which bans have no effect as long as these networks are allowed.
fn say_banned(datapath: &Datapath, networks: &[Cidr]) -> anyhow::Result<()> {
    let now_ns = boot_now_ns()?;
    let allowed: PrefixSet = networks.iter().map(Cidr::to_prefix).collect();
    let bans = datapath.maps().bans()?;
    let banned = bans.iter().filter(|(key, ban)| ban.is_active(now_ns) && allowed.covers(&key.source()));
    let banned = banned.count();
    if banned > 0 {
        talk::say(&format!(
            "{} there: it goes on, and is of no effect as long as this is allowed",
            count(banned, "ban")
        ));
    }
    Ok(())
}

fn del(paths: &Paths, list: List, args: &NetworkArgs) -> anyhow::Result<Answer> {
    let networks = read(args)?;
    require_capabilities()?;
    let _lock = StateLock::acquire(paths)?;
    let mut datapath = Datapath::require(paths)?;
    if list == List::Allow {
        refuse_cut(paths, &datapath, Change::Disallow(&networks), args.force)?;
    }
    let live = datapath.maps().list(list).entries()?;
    let (mut removed, mut of_file) = (0, 0);
    for network in &networks {
        let prefix = network.to_prefix();
        if list_remove(datapath.maps_mut(), list, prefix)? {
            removed += 1;
            of_file += usize::from(live.get(&prefix).is_some_and(|origin| origin.is_of_file()));
            if networks.len() <= TOLD {
                talk::say(&format!("{network} is no longer {}", list.participle()));
            }
        } else if networks.len() <= TOLD {
            talk::say(&format!("{network} was not {}", list.participle()));
        }
    }
    if networks.len() > TOLD {
        let not = networks.len() - removed;
        talk::say(&format!("{removed} networks are no longer {0}, {not} were not {0}", list.participle()));
    }
    if of_file > 0 {
        talk::say(&format!(
            "{of_file} of them came from the configuration file, and come back when it is applied again"
        ));
    }
    Ok(if removed == networks.len() { Answer::Done } else { Answer::No })
}

/// Refuses what would cut off the ssh session that it is said in.
pub(super) fn refuse_cut(
    paths: &Paths,
    datapath: &Datapath,
    change: Change<'_>,
    force: bool,
) -> anyhow::Result<()> {
    if force { Ok(()) } else { Ok(guards::refuse_cut(paths, Some(datapath), change)?) }
}

/// All of them, or an error before anything changes.
fn read(args: &NetworkArgs) -> anyhow::Result<Vec<Cidr>> {
    let mut networks: Vec<Cidr> = args.networks.iter().map(|text| text.parse()).collect::<Result<_, _>>()?;
    let Some(file) = &args.file else { return Ok(networks) };
    let text = if file.as_os_str() == "-" {
        std::io::read_to_string(std::io::stdin())
    } else {
        std::fs::read_to_string(file)
    };
    let text =
        text.with_context(|| format!("cannot read `{}`\nhint: a text file, or `-`", file.display()))?;
    for (number, line) in text.lines().enumerate() {
        let network = line.split(['#', ';']).next().unwrap_or_default().trim();
        if !network.is_empty() {
            let at = || format!("`{}` line {}; nothing was changed", file.display(), number + 1);
            networks.push(network.parse().with_context(at)?);
        }
    }
    Ok(networks)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read_text(text: &str) -> Result<Vec<String>, String> {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("list");
        std::fs::write(&file, text).unwrap();
        let args = NetworkArgs { file: Some(file), force: false, networks: vec!["203.0.113.1".into()] };
        let networks = read(&args).map_err(|error| format!("{error:#}"))?;
        Ok(networks.iter().map(ToString::to_string).collect())
    }

    #[test]
    fn a_file_has_a_network_a_line_and_comments() {
        let networks =
            read_text("# all\n192.0.2.0/24 ; from somewhere\n\n  2001:db8::/32 # documentation\r\n");
        assert_eq!(networks.unwrap(), ["203.0.113.1", "192.0.2.0/24", "2001:db8::/32"]);
    }

    #[test]
    fn an_error_names_the_line() {
        let error = read_text("192.0.2.0/24\n192.0.2.0/33\n").unwrap_err();
        assert!(
            error.contains("line 2; nothing was changed: `192.0.2.0/33`: `33` is not a prefix length"),
            "{error}"
        );
    }
}
