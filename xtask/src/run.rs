//! Running other programs: the exact command is shown first, and a failure names it.

use std::env;
use std::ffi::OsStr;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Command, ExitStatus};

use anyhow::{Context, Result, bail};

/// Shows `command`, runs it with our own input and output, and fails if it does.
pub fn run(command: &mut Command) -> Result<()> {
    show(command);
    let status = command.status().with_context(|| not_started(command))?;
    check(command, status)
}

/// Runs `command` without showing it and returns what it wrote to its standard output.
pub fn capture(command: &mut Command) -> Result<String> {
    let output = command.output().with_context(|| not_started(command))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        bail!("`{}` {}: {}", line(command), outcome(output.status), said.trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Shows `command`, then becomes it: its exit status is ours, and signals reach it directly.
/// Returns only if that was not possible.
pub fn exec(command: &mut Command) -> Result<()> {
    show(command);
    Err(command.exec()).with_context(|| not_started(command))
}

fn show(command: &Command) {
    eprintln!("$ {}", line(command));
}

fn not_started(command: &Command) -> String {
    format!("could not start `{}`", command.get_program().display())
}

fn check(command: &Command, status: ExitStatus) -> Result<()> {
    if status.success() {
        return Ok(());
    }
    bail!("`{}` {}", line(command), outcome(status))
}

fn outcome(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("failed with status {code}"),
        (None, Some(signal)) => format!("was killed by signal {signal}"),
        (None, None) => "failed".to_owned(),
    }
}

/// The command as one would type it in the workspace's root, with the variables it sets.
fn line(command: &Command) -> String {
    let mut words: Vec<String> = command
        .get_envs()
        .filter_map(|(name, value)| Some(format!("{}={}", name.display(), variable(name, value?))))
        .collect();
    words.push(quoted(command.get_program()));
    words.extend(command.get_args().map(quoted));
    words.join(" ")
}

/// A variable's value; a `PATH` that extends ours says just that.
fn variable(name: &OsStr, value: &OsStr) -> String {
    let ours = env::var(name).unwrap_or_default();
    match value.to_str().and_then(|value| value.split_once(&ours)) {
        Some((before, after)) if name == "PATH" && !ours.is_empty() => {
            format!("{}$PATH{}", quoted_part(before), quoted_part(after))
        }
        _ => quoted(value),
    }
}

fn quoted_part(part: &str) -> String {
    if part.is_empty() { String::new() } else { quoted(OsStr::new(part)) }
}

fn quoted(word: &OsStr) -> String {
    let word = word.to_string_lossy();
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./=:,+@%".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        word.into_owned()
    } else {
        format!("'{}'", word.replace('\'', r"'\''"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_are_shown_as_typed_in_a_shell() {
        let mut command = Command::new("cargo");
        command.args(["test", "a b", "", "it's"]).env("FLAGS", "--cfg=x=\"y\"").env_remove("GONE");
        assert_eq!(line(&command), r#"FLAGS='--cfg=x="y"' cargo test 'a b' '' 'it'\''s'"#);
    }

    #[test]
    fn an_extended_path_is_shown_short() {
        let ours = env::var("PATH").unwrap();
        let mut command = Command::new("cargo");
        command.env("PATH", format!("/first:{ours}:/last"));
        assert_eq!(line(&command), "PATH=/first:$PATH:/last cargo");
    }

    #[test]
    fn failures_name_the_command_and_what_it_said() {
        let error = capture(Command::new("sh").args(["-c", "echo why >&2; exit 3"])).unwrap_err();
        assert_eq!(error.to_string(), "`sh -c 'echo why >&2; exit 3'` failed with status 3: why");
        let error = run(&mut Command::new("/no/such/program")).unwrap_err();
        assert!(error.to_string().contains("could not start `/no/such/program`"), "{error:#}");
        let error = run(Command::new("sh").args(["-c", "kill -9 $$"])).unwrap_err();
        assert!(error.to_string().ends_with("was killed by signal 9"), "{error:#}");
    }
}
