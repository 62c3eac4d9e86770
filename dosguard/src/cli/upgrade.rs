//! `dosguard upgrade`.

use std::io::Write;

use clap::Args;
use dosguard_common::abi::ABI_VERSION;

use super::run::KernelLogLevel;
use super::{Answer, challenge, talk};
use crate::datapath::{self, Datapath, Error, Fate, LoadOptions, Migrated, Plan};
use crate::lock::{StateLock, running_daemon};
use crate::output::{YELLOW, printable, table, write_table};
use crate::paths::Paths;
use crate::system;

#[derive(Debug, Args)]
pub(super) struct UpgradeArgs {
    /// Carry the instance over from an earlier ABI version, if it is of one. Its daemon must not run.
    #[arg(long)]
    migrate: bool,
    /// Say what would be done, and whether the kernel would take the program. Changes nothing.
    #[arg(long)]
    dry_run: bool,
    /// Replace the program also if it is this dosguard's already.
    #[arg(long)]
    force: bool,
    /// Keep the kernel program's log statements up to this level. Without this the level stays as it is.
    #[arg(long, value_enum, value_name = "LEVEL")]
    kernel_log: Option<KernelLogLevel>,
}

pub(super) fn upgrade(paths: &Paths, args: &UpgradeArgs, out: &mut dyn Write) -> anyhow::Result<Answer> {
    system::require_capabilities()?;
    let load = LoadOptions { log_level: args.kernel_log.map(|level| level as u8), ..LoadOptions::default() };
    if args.dry_run {
        let _lock = StateLock::acquire(paths)?;
        return show(paths, args, &load, out);
    }
    put_in_order(paths)?;
    let _lock = StateLock::acquire(paths)?;
    if args.migrate
        && let Some(migrated) = migrate(paths, &load)?
    {
        say_migrated(&migrated);
        challenge::make_ready(paths, &mut Datapath::require(paths)?, false);
        return Ok(Answer::Done);
    }
    let mut datapath = Datapath::require(paths)?;
    if !args.force && datapath.is_current(&load)? {
        say_current(&datapath)?;
        return Ok(Answer::No);
    }
    let replaced = datapath.replace_program(&load)?;
    say_replaced(&replaced.interfaces);
    challenge::make_ready(paths, &mut datapath, false);
    let level = datapath.build()?.map_or(0, datapath::Build::log_level);
    if level > 0 && running_daemon(paths).is_some() {
        talk::say("the daemon does not print the new program's log: start it again");
    }
    Ok(Answer::Done)
}

/// Puts in order what somebody left who was killed during an upgrade, also where the instance is of another ABI version.
pub(super) fn put_in_order(paths: &Paths) -> anyhow::Result<()> {
    if datapath::is_interrupted(paths)? {
        let _lock = StateLock::acquire(paths)?;
        if datapath::finish_interrupted(paths)? {
            say_interrupted();
        }
    }
    Ok(())
}

/// Carries the instance over if it is of an earlier ABI version. Nobody but the holder of the state lock may be at work on it.
pub(super) fn migrate(paths: &Paths, load: &LoadOptions) -> anyhow::Result<Option<Migrated>> {
    if datapath::plan(paths)?.is_some()
        && let Some(daemon) = running_daemon(paths).filter(|daemon| daemon.pid != Some(std::process::id()))
    {
        anyhow::bail!(
            "the daemon of instance `{}` runs ({daemon}), and knows the earlier ABI version only\n\
             hint: stop it first; the filter goes on",
            paths.instance()
        );
    }
    Ok(datapath::migrate(paths, load)?)
}

fn show(
    paths: &Paths,
    args: &UpgradeArgs,
    load: &LoadOptions,
    out: &mut dyn Write,
) -> anyhow::Result<Answer> {
    if let Some(plan) = datapath::plan(paths)? {
        datapath::try_plan(paths, &plan, load)?;
        print_plan(paths, &plan, out)?;
        return Ok(Answer::Done);
    }
    let datapath = Datapath::require(paths)?;
    if !args.force && datapath.is_current(load)? {
        say_current(&datapath)?;
        return Ok(Answer::No);
    }
    datapath.try_program(load)?;
    let (id, _) = datapath.program()?;
    writeln!(out, "program {id} would be replaced; every map is carried over, and nothing is lost")?;
    Ok(Answer::Done)
}

fn print_plan(paths: &Paths, plan: &Plan, out: &mut dyn Write) -> anyhow::Result<()> {
    let (instance, from) = (paths.instance(), plan.from);
    writeln!(out, "instance {instance} is of ABI version {from}, and this dosguard speaks {ABI_VERSION}")?;
    let mut maps = table(&["MAP", "HOLDS", "BECOMES"]);
    for (map, fate) in &plan.maps {
        let becomes = match fate {
            Fate::Carried => "carried over",
            Fate::Converted => "converted",
            Fate::Anew => "begun anew",
            Fate::New => "new",
        };
        maps.add_row([map.name, map.holds, becomes]);
    }
    write_table(out, &maps)?;
    match plan.lost()[..] {
        [] => writeln!(out, "nothing is lost")?,
        ref lost => writeln!(out, "{YELLOW}lost: {}{YELLOW:#}", lost.join(", "))?,
    }
    Ok(())
}

fn say_current(datapath: &Datapath) -> Result<(), Error> {
    let (id, _) = datapath.program()?;
    talk::say(&format!("program {id} is this dosguard's already; there is nothing to do"));
    Ok(())
}

/// Says that the program was replaced.
pub(super) fn say_replaced(interfaces: &[String]) {
    talk::say(&if interfaces.is_empty() {
        "program replaced: counters and bans go on".to_owned()
    } else {
        format!("program replaced on {}: counters and bans go on", printable(&interfaces.join(", ")))
    });
}

/// Says that the instance was carried over.
pub(super) fn say_migrated(migrated: &Migrated) {
    talk::say(&format!("instance carried over from ABI version {} to {ABI_VERSION}", migrated.plan.from));
    match migrated.plan.lost()[..] {
        [] => {}
        ref lost => talk::say(&format!("{YELLOW}lost:{YELLOW:#} {}", lost.join(", "))),
    }
    say_replaced(&migrated.interfaces);
}

/// Says that what somebody else had begun was undone.
pub(super) fn say_interrupted() {
    talk::say("an upgrade was interrupted; what it left was put in order");
}
