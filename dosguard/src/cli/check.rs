//! `dosguard check`.

use std::fmt;
use std::fs;
use std::io::Write;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use clap::Args;
use dosguard_common::config::{EVENTS_RATE, Mode};

use super::changes::count;
use super::{Answer, rule, talk};
use crate::config::bytes::ByteSize;
use crate::config::file::{self, Configuration, FileError};
use crate::config::policy::{Policy, SourcePrefixes};
use crate::config::services::{Connections, ExportFormat, Hook, Log, LogFormat, Services};
use crate::config::sizes::Sizes;
use crate::config::warnings::warnings;
use crate::output::{BOLD, printable};
use crate::paths::Paths;

#[derive(Debug, Args)]
pub(super) struct CheckArgs {
    /// The configuration file, as `run` takes it.
    #[arg(short, long, value_name = "FILE", conflicts_with = "files")]
    config: Option<PathBuf>,
    /// The files, a later one over those before it. Without any, the instance's own.
    #[arg(value_name = "FILE")]
    files: Vec<PathBuf>,
}

pub(super) fn check(paths: &Paths, args: &CheckArgs, out: &mut dyn Write) -> anyhow::Result<Answer> {
    let read = if args.files.is_empty() {
        file::load(paths, args.config.as_deref())
    } else {
        file::read_all(&args.files).map(Some)
    };
    let configuration = match read {
        Ok(Some(configuration)) => configuration,
        Ok(None) => {
            talk::say(&format!(
                "there is neither `{}` nor a file that ends in `.toml` in `{}`: the built-in settings apply",
                paths.config_file().display(),
                paths.config_drop_ins().display()
            ));
            // Nothing is wrong: a reload checks first, and a daemon needs no file.
            return Ok(Answer::Done);
        }
        Err(error @ (FileError::Invalid { .. } | FileError::NotText { .. } | FileError::TooLarge { .. })) => {
            talk::error(&error.into());
            return Ok(Answer::No);
        }
        Err(error) => return Err(error.into()),
    };
    print(&configuration, out)?;
    out.flush()?;
    for warning in warnings(&configuration).into_iter().chain(missing(&configuration.services)) {
        log::warn!("{warning}");
    }
    Ok(Answer::Done)
}

/// What the configuration comes to.
fn print(configuration: &Configuration, out: &mut dyn Write) -> anyhow::Result<()> {
    let Configuration { policy, services, sizes, files } = configuration;
    let files: Vec<_> =
        files.iter().map(|file| format!("`{}`", printable(&file.display().to_string()))).collect();
    let are = if files.len() == 1 { "is" } else { "together are" };
    writeln!(out, "{} {are} valid: {}", files.join(", "), rules_in_short(policy))?;
    let interfaces = match policy.interfaces.as_slice() {
        [] => "none; to be named on the command line".to_owned(),
        names => names.join(", "),
    };
    line(out, "interfaces", interfaces)?;
    for rule in &policy.rules {
        writeln!(out, "{}", rule::describe(rule, false))?;
    }
    for (name, networks) in [("allow", &policy.allow), ("deny", &policy.deny)] {
        if !networks.is_empty() {
            line(out, name, count(networks.len(), "network"))?;
        }
    }
    if policy.prefixes != SourcePrefixes::default() {
        line(out, "source", format!("IPv4 /{}, IPv6 /{}", policy.prefixes.ipv4, policy.prefixes.ipv6))?;
    }
    if policy.events_rate != EVENTS_RATE {
        line(out, "events", format!("{} of a kind a second and CPU", policy.events_rate))?;
    }
    line(out, "log", log(&services.log))?;
    let (keep, most) = (services.history.keep, ByteSize::from_bytes(services.history.max_bytes));
    line(out, "history", format!("{keep}, up to {most}"))?;
    for hook in &services.hooks {
        line(out, "hook", describe(hook))?;
    }
    for export in &services.exports {
        let format = match export.format {
            ExportFormat::Plain => "plain",
            ExportFormat::HostsDeny => "hosts.deny",
        };
        line(out, "export", format!("{}, {format}", export.path.display()))?;
    }
    let connections = &services.connections;
    if *connections != Connections::default() {
        let also = match connections.namespaces.join(", ") {
            names if names.is_empty() => String::new(),
            names => format!(", also in {names}"),
        };
        let (interval, by) = (connections.interval, connections.by.name());
        line(out, "connections", format!("every {interval}, method {by}{also}"))?;
    }
    if let Some(listen) = services.metrics {
        line(out, "metrics", format!("http://{listen}/metrics"))?;
    }
    for (size, entries, usual) in sizes.differing(&Sizes::default()) {
        line(out, "size", format!("{} {entries} instead of {usual}", size.name()))?;
    }
    Ok(())
}

/// What files say is anybody's text.
fn line(out: &mut dyn Write, name: &str, text: impl fmt::Display) -> anyhow::Result<()> {
    Ok(writeln!(out, "{BOLD}{name}{BOLD:#}: {}", printable(&text.to_string()))?)
}

fn rules_in_short(policy: &Policy) -> String {
    let watched: Vec<_> = policy.rules.iter().filter(|rule| rule.spec.mode == Mode::Monitor).collect();
    let rules = count(policy.rules.len(), "rule");
    if policy.mode == Mode::Monitor {
        format!("{rules}, monitor mode")
    } else if watched.is_empty() {
        rules
    } else {
        let names: Vec<_> = watched.iter().map(|rule| format!("`{}`", rule.name)).collect();
        format!("{rules}, monitor mode for {}", names.join(", "))
    }
}

fn log(log: &Log) -> String {
    let named = |format| if format == LogFormat::Json { "as JSON" } else { "for people" };
    let mut outlets = Vec::new();
    outlets.extend(log.stdout.map(|format| format!("stdout {}", named(format))));
    outlets.extend(log.journald.then(|| "journald".to_owned()));
    outlets.extend(log.syslog.as_ref().map(|prefix| format!("syslog with prefix `{prefix}`")));
    if let Some(file) = &log.file {
        let mut text = format!("{} {}", file.path.display(), named(file.format));
        if file.max_bytes > 0 {
            text += &format!(" up to {}, {} older ones", ByteSize::from_bytes(file.max_bytes), file.keep);
        }
        outlets.push(text);
    }
    if outlets.is_empty() { "nowhere".to_owned() } else { outlets.join("; ") }
}

fn describe(hook: &Hook) -> String {
    let kinds: Vec<_> = hook.on.iter().map(|kind| kind.name()).collect();
    let (run, kinds) = (hook.run.join(" "), kinds.join(", "));
    format!("{run}, at {kinds}; {} at once, for {} each", hook.at_most, hook.timeout)
}

/// Programs that cannot be run and folders that are not there. They may be before they are needed.
fn missing(services: &Services) -> Vec<String> {
    let mut found = Vec::new();
    for program in services.hooks.iter().filter_map(|hook| hook.run.first()) {
        match fs::metadata(program) {
            Ok(there) if there.is_file() && there.permissions().mode() & 0o111 != 0 => {}
            Ok(_) => found.push(format!("hook `{program}` is no program that can be run")),
            Err(error) => found.push(format!("hook `{program}`: {error}")),
        }
    }
    for export in &services.exports {
        let shown = export.path.display();
        let there = fs::metadata(&export.path);
        if there.as_ref().is_ok_and(|there| there.mode() & 0o6002 != 0) {
            found.push(format!(
                "`{shown}` may be written by others, or has set-user-ID or set-group-ID bits: the daemon cannot replace it"
            ));
        }
        if let Ok(there) = there
            && (there.uid(), there.gid()) != (0, 0)
        {
            found.push(format!(
                "`{shown}` does not belong to root:root: the daemon may not give files away, and cannot replace it; \
                 `bans export --watch` can"
            ));
        }
    }
    let written = services.exports.iter().map(|export| &export.path);
    for path in written.chain(services.log.file.as_ref().map(|file| &file.path)) {
        let folder = path.parent().unwrap_or(Path::new("/"));
        if !folder.is_dir() {
            found.push(format!(
                "`{}` cannot be written: there is no folder `{}`",
                path.display(),
                folder.display()
            ));
        }
    }
    found
}
