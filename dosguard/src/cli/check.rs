//! `dosguard check`.

use std::io::Write;
use std::path::PathBuf;

use clap::Args;

use super::Answer;
use crate::config::file;

#[derive(Debug, Args)]
pub(super) struct CheckArgs {
    /// The configuration file.
    file: PathBuf,
}

pub(super) fn check(args: &CheckArgs, out: &mut dyn Write) -> anyhow::Result<Answer> {
    match file::read(&args.file) {
        Ok(policy) => {
            let rules = policy.rules.len();
            writeln!(
                out,
                "`{}` is valid: {rules} {}",
                args.file.display(),
                if rules == 1 { "rule" } else { "rules" }
            )?;
            Ok(Answer::Done)
        }
        Err(error @ (file::FileError::Invalid { .. } | file::FileError::NotText { .. })) => {
            super::talk::error(&error.into());
            Ok(Answer::No)
        }
        Err(error) => Err(error.into()),
    }
}
