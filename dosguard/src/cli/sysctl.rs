//! `dosguard sysctl`.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::path::PathBuf;

use anyhow::Context as _;
use clap::Args;

use super::Answer;
use crate::config::field::{RuleField, set_all};
use crate::config::keys::{self, Key};
use crate::config::policy::{NamedRule, RuleName, SourcePrefixes};
use crate::datapath::Datapath;
use crate::lock::StateLock;
use crate::paths::Paths;
use crate::system::require_capabilities;

#[derive(Debug, Args)]
pub(super) struct SysctlArgs {
    /// Show every key.
    #[arg(short, long)]
    all: bool,
    /// Every argument must be an assignment.
    #[arg(short, long)]
    write: bool,
    /// Read assignments from a file, one a line; `-` for standard input. Empty lines and those that begin with `#` or
    /// `;` are skipped.
    #[arg(short = 'p', long = "load", value_name = "FILE")]
    load: Option<PathBuf>,
    /// Show values without their keys.
    #[arg(short = 'n', long)]
    values: bool,
    /// Keys to read, with `*` and `?` for any characters, or assignments such as `rule.default.limit=100/1s`.
    #[arg(value_name = "KEY|KEY=VALUE")]
    keys: Vec<String>,
}

/// The settings of a running instance.
struct Live {
    rules: Vec<NamedRule>,
    prefixes: SourcePrefixes,
}

impl Live {
    fn read(datapath: &Datapath) -> anyhow::Result<Self> {
        let rules = datapath.rules()?.into_iter().map(|(_, rule)| rule).collect();
        Ok(Self { rules, prefixes: datapath.maps().source_mask()?.into() })
    }
}

pub(super) fn sysctl(paths: &Paths, args: &SysctlArgs, out: &mut dyn Write) -> anyhow::Result<Answer> {
    let (mut assignments, mut patterns) = (Vec::new(), Vec::new());
    if let Some(file) = &args.load {
        assignments.extend(read_assignments(file)?);
    }
    for text in &args.keys {
        match keys::split_assignment(text) {
            Some((key, value)) => assignments.push((key.to_owned(), value.to_owned())),
            None if args.write => {
                anyhow::bail!("`{text}` is no assignment\nhint: such as `rule.default.limit=100/1s`")
            }
            None => patterns.push(text.as_str()),
        }
    }
    if args.write && args.keys.is_empty() && args.load.is_none() {
        anyhow::bail!("nothing to write\nhint: such as `dosguard sysctl -w rule.default.limit=100/1s`");
    }
    if args.all || (assignments.is_empty() && patterns.is_empty() && args.load.is_none()) {
        patterns.push("*");
    }
    require_capabilities()?;
    let _lock = if assignments.is_empty() { None } else { Some(StateLock::acquire(paths)?) };
    let mut datapath = Datapath::require(paths)?;
    let live = Live::read(&datapath)?;
    let mut selected = Vec::new();
    for pattern in patterns {
        selected.extend(keys::select(&live.rules, live.prefixes, pattern)?);
    }
    let changed = changes(&live, &assignments)?;
    for (name, rule) in &changed {
        datapath.change_rule(name.as_str(), &rule.spec)?;
    }
    let live = Live::read(&datapath)?;
    let written = assignments.iter().map(|(key, _)| key.parse::<Key>()).collect::<Result<Vec<_>, _>>()?;
    let written =
        written.into_iter().filter_map(|key| key.get(&live.rules, live.prefixes).map(|value| (key, value)));
    for (key, value) in written.chain(selected) {
        if args.values {
            writeln!(out, "{value}")?;
        } else {
            writeln!(out, "{key} = {value}")?;
        }
    }
    Ok(Answer::Done)
}

/// The rules as they will be, all assignments taken together; an error before anything changes.
fn changes(live: &Live, assignments: &[(String, String)]) -> anyhow::Result<BTreeMap<RuleName, NamedRule>> {
    let mut settings = BTreeMap::<RuleName, Vec<(RuleField, &str)>>::new();
    for (key, value) in assignments {
        // An exact key, so that an unknown rule is named with its nearest neighbour.
        let (found, current) = match keys::select(&live.rules, live.prefixes, key)?.as_slice() {
            [only] if !key.contains(['*', '?']) => only.clone(),
            _ => anyhow::bail!("`{key}` cannot be set\nhint: patterns are for reading; name one key"),
        };
        if let Some(reason) = found.read_only() {
            if current == *value {
                continue; // what is read back is no change
            }
            anyhow::bail!("`{found}` is read-only: {reason}");
        }
        if let Key::Rule { rule, field } = found {
            settings.entry(rule).or_default().push((field, value));
        }
    }
    let mut changed = BTreeMap::new();
    for (name, settings) in settings {
        let rule = live.rules.iter().find(|rule| rule.name == name);
        let mut rule = rule.cloned().context("the rule is gone")?;
        set_all(&mut rule.spec, settings).with_context(|| format!("`rule.{name}` was not changed"))?;
        changed.insert(name, rule);
    }
    Ok(changed)
}

fn read_assignments(file: &PathBuf) -> anyhow::Result<Vec<(String, String)>> {
    let text = if file.as_os_str() == "-" {
        std::io::read_to_string(std::io::stdin())
    } else {
        fs::read_to_string(file)
    };
    let text = text.with_context(|| {
        format!("cannot read `{}`\nhint: a file as `dosguard sysctl -a` prints it, or `-`", file.display())
    })?;
    let mut assignments = Vec::new();
    for (number, line) in text.lines().enumerate() {
        let line = line.trim();
        if line.is_empty() || line.starts_with(['#', ';']) {
            continue;
        }
        let (key, value) = keys::split_assignment(line).with_context(|| {
            format!(
                "`{}` line {}: `{line}` is no assignment\nhint: such as `rule.default.limit = 100/1s`",
                file.display(),
                number + 1
            )
        })?;
        assignments.push((key.to_owned(), value.to_owned()));
    }
    Ok(assignments)
}
