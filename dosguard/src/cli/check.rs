//! `dosguard check`.

use std::io::Write;
use std::path::PathBuf;

use clap::Args;
use dosguard_common::config::Mode;

use super::Answer;
use super::changes::count;
use crate::config::file;

#[derive(Debug, Args)]
pub(super) struct CheckArgs {
    /// The configuration file.
    file: PathBuf,
}

pub(super) fn check(args: &CheckArgs, out: &mut dyn Write) -> anyhow::Result<Answer> {
    match file::read(&args.file) {
        Ok(policy) => {
            let path = args.file.display();
            let watched: Vec<_> =
                policy.rules.iter().filter(|rule| rule.spec.mode == Mode::Monitor).collect();
            let mut summary = format!("`{path}` is valid: {}", count(policy.rules.len(), "rule"));
            if policy.mode == Mode::Monitor {
                summary += ", monitor mode";
            } else if !watched.is_empty() {
                let names: Vec<_> = watched.iter().map(|rule| format!("`{}`", rule.name)).collect();
                summary += &format!(", monitor mode for {}", names.join(", "));
            }
            writeln!(out, "{summary}")?;
            Ok(Answer::Done)
        }
        Err(error @ (file::FileError::Invalid { .. } | file::FileError::NotText { .. })) => {
            super::talk::error(&error.into());
            Ok(Answer::No)
        }
        Err(error) => Err(error.into()),
    }
}
