//! `dosguard completions` and `dosguard man`: what shells and man(1) know of the command line, from the tree that parses it.

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use clap::{Args, Command, CommandFactory as _};
use clap_complete::Shell;
use clap_mangen::Man;

use super::{Answer, Cli};

/// Commands of administrators.
const SECTION: &str = "8";

#[derive(Debug, Args)]
pub(super) struct CompletionsArgs {
    /// Which shell.
    shell: Shell,
}

#[derive(Debug, Args)]
pub(super) struct ManArgs {
    /// Where to, such as /usr/local/share/man/man8; `dosguard.8` and one page for each command.
    dir: Option<PathBuf>,
}

pub(super) fn completions(args: &CompletionsArgs, out: &mut dyn Write) -> io::Result<Answer> {
    let mut command = visible();
    // As a whole first: it panics where it cannot write.
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut command, "dosguard", &mut script);
    out.write_all(&script)?;
    Ok(Answer::Done)
}

pub(super) fn man(args: &ManArgs, out: &mut dyn Write) -> anyhow::Result<Answer> {
    let mut command = Cli::command().disable_help_subcommand(true);
    // Each command is known by its whole name then.
    command.build();
    match &args.dir {
        Some(dir) => {
            let written = fs::create_dir_all(dir).and_then(|()| write_pages(dir, &command));
            written.with_context(|| {
                let dir = dir.display();
                format!("cannot write man pages into `{dir}`\nhint: name a folder that you may write to, or none to have `dosguard.8` printed")
            })?;
        }
        None => page(&command).render(&mut &mut *out)?,
    }
    Ok(Answer::Done)
}

/// What of a command somebody is to call.
fn shown(command: &Command) -> impl Iterator<Item = &Command> {
    command.get_subcommands().filter(|command| !command.is_hide_set())
}

/// The tree without what nobody is to call, which completions would offer.
fn visible() -> Command {
    let command = Cli::command();
    let named = Command::new("dosguard").version(env!("CARGO_PKG_VERSION"));
    named.args(command.get_arguments().cloned()).subcommands(shown(&command).cloned())
}

fn page(command: &Command) -> Man {
    Man::new(command.clone()).section(SECTION).source(concat!("dosguard ", env!("CARGO_PKG_VERSION")))
}

fn write_pages(dir: &Path, command: &Command) -> io::Result<()> {
    page(command).generate_to(dir)?;
    shown(command).try_for_each(|command| write_pages(dir, command))
}

#[cfg(test)]
mod tests {
    use std::process;

    use clap::ValueEnum as _;

    use super::*;

    fn pages(command: &Command, name: &str) -> Vec<String> {
        let below = shown(command).flat_map(|verb| pages(verb, &format!("{name}-{}", verb.get_name())));
        below.chain([format!("{name}.8")]).collect()
    }

    #[test]
    fn every_command_has_a_page_but_those_that_nobody_calls() {
        let folder = tempfile::tempdir().unwrap();
        let dir = folder.path().join("man8");
        man(&ManArgs { dir: Some(dir.clone()) }, &mut Vec::new()).unwrap();
        let mut expected = pages(&Cli::command(), "dosguard");
        expected.sort();
        let files = fs::read_dir(&dir).unwrap().map(|file| file.unwrap().file_name().into_string().unwrap());
        let mut written: Vec<_> = files.collect();
        written.sort();
        assert_eq!(written, expected);
        assert!(written.contains(&"dosguard-bans-add.8".to_owned()));
        assert!(!written.contains(&"dosguard-hooks.8".to_owned()));
        let text = fs::read_to_string(dir.join("dosguard-run.8")).unwrap();
        assert!(text.contains(".TH dosguard-run 8") && text.contains("until stopped"), "{text}");
        let mut printed = Vec::new();
        man(&ManArgs { dir: None }, &mut printed).unwrap();
        assert_eq!(printed, fs::read(dir.join("dosguard.8")).unwrap());
        let error = man(&ManArgs { dir: Some(dir.join("dosguard.8")) }, &mut Vec::new()).unwrap_err();
        assert!(error.to_string().contains("hint: "), "{error}");
    }

    #[test]
    fn shells_complete_every_command_but_those_that_nobody_calls() {
        for shell in Shell::value_variants() {
            let mut script = Vec::new();
            completions(&CompletionsArgs { shell: *shell }, &mut script).unwrap();
            let script = String::from_utf8(script).unwrap();
            let words: Vec<_> =
                script.split(|letter: char| !letter.is_alphanumeric() && letter != '-').collect();
            for verb in Cli::command().get_subcommands() {
                let name = verb.get_name();
                assert_eq!(words.contains(&name), name != "hooks", "{name} in {shell}");
            }
        }
    }

    #[test]
    fn bash_completes_a_line() {
        let mut script = Vec::new();
        completions(&CompletionsArgs { shell: Shell::Bash }, &mut script).unwrap();
        let mut script = String::from_utf8(script).unwrap();
        script.push_str("COMP_WORDS=(dosguard top); COMP_CWORD=1; _dosguard dosguard top dosguard; echo \"${COMPREPLY[*]}\"");
        let output = process::Command::new("bash").args(["-c", &script]).output().unwrap();
        assert_eq!(String::from_utf8_lossy(&output.stdout), "top-sources\n", "{output:?}");
    }
}
