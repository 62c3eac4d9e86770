//! What goes to stderr: errors with their causes and hints, warnings, and with `-v` more.

use std::error::Error;
use std::io::Write as _;

use log::{Level, LevelFilter, Log, Metadata, Record};

use crate::output::{self, BOLD, NEWS, RED, YELLOW, printable};

/// So many characters of a line are shown.
const LONGEST: usize = 2_000;

struct Stderr;

impl Log for Stderr {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.level() <= log::max_level()
    }

    fn log(&self, record: &Record<'_>) {
        if !self.enabled(record.metadata()) {
            return;
        }
        let text = lines(&record.args().to_string());
        if record.target() == NEWS {
            let _ = writeln!(anstream::stderr().lock(), "{text}");
            return;
        }
        let (style, word) = match record.level() {
            Level::Error => (RED, "error"),
            Level::Warn => (YELLOW, "warning"),
            Level::Info => (BOLD, "info"),
            Level::Debug => (BOLD, "debug"),
            Level::Trace => (BOLD, "trace"),
        };
        // There is nowhere to report that stderr is gone.
        let _ = writeln!(anstream::stderr().lock(), "{style}{word}:{style:#} {text}");
    }

    fn flush(&self) {}
}

/// The kernel program's own log: who asked for it when the program was loaded wants to see it, whatever `-v` says.
pub(super) struct KernelTalk;

impl Log for KernelTalk {
    fn enabled(&self, _metadata: &Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &Record<'_>) {
        let level = record.level().as_str().to_lowercase();
        let text = record.args().to_string();
        let _ = writeln!(anstream::stderr().lock(), "{BOLD}kernel {level}:{BOLD:#} {}", printable(&text));
    }

    fn flush(&self) {}
}

/// Sends log messages to stderr: warnings, with `-v` information, with `-vv` everything.
pub(super) fn init(verbose: u8) {
    if log::set_logger(&Stderr).is_ok() {
        log::set_max_level(match verbose {
            0 => LevelFilter::Warn,
            1 => LevelFilter::Info,
            _ => LevelFilter::Trace,
        });
    }
}

/// A line of talk. It may be coloured: what comes from elsewhere is to be made [`printable`] before it is put in.
pub(super) fn say(line: &str) {
    let _ = writeln!(anstream::stderr().lock(), "{line}");
}

/// An error: what, then why, then what to do.
pub(super) fn error(error: &anyhow::Error) {
    let (message, hints) = message_and_hints(error.chain());
    tell(&format!("{RED}error:{RED:#} {message}"), &hints);
}

/// An error as text, with its hints on lines of their own.
pub(super) fn text(error: &anyhow::Error) -> String {
    let (message, hints) = message_and_hints(error.chain());
    hints.into_iter().fold(message, |text, hint| text + "\nhint: " + &hint)
}

/// The same of an error that was not fatal; `about` says what became of it.
pub(super) fn warning(about: &str, error: &(dyn Error + 'static)) {
    let (message, hints) = message_and_hints(anyhow::Chain::new(error));
    tell(&format!("{YELLOW}warning:{YELLOW:#} {about}: {message}"), &hints);
}

fn tell(message: &str, hints: &[String]) {
    let mut stderr = anstream::stderr().lock();
    let _ = writeln!(stderr, "{message}");
    for hint in hints {
        let _ = writeln!(stderr, "{BOLD}hint:{BOLD:#} {hint}");
    }
}

/// What went wrong, and what to do.
///
/// What came from a file or a command line may hold control characters, which a terminal would obey: they are shown, and
/// not sent.
fn message_and_hints(causes: anyhow::Chain<'_>) -> (String, Vec<String>) {
    let (message, hints) = output::message_and_hints(causes);
    (lines(&message), hints.iter().map(|hint| lines(hint)).collect())
}

/// Text of several lines, each of them printable. Those behind the first are indented, so that none can pass for a line
/// of our own.
fn lines(text: &str) -> String {
    let shown = |line: &str| match line.char_indices().nth(LONGEST) {
        Some((end, _)) => format!("{}…", printable(&line[..end])),
        None => printable(line).into_owned(),
    };
    text.lines().map(shown).collect::<Vec<_>>().join("\n  ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn control_characters_are_shown_and_not_sent() {
        let error = anyhow::anyhow!("`a\x1b[2Jb` is not an address\nhint: no \x07 bell");
        let (message, hints) = message_and_hints(error.chain());
        assert_eq!(
            (message.as_str(), hints[0].as_str()),
            ("`a\\u{1b}[2Jb` is not an address", "no \\u{7} bell")
        );
    }

    #[test]
    fn no_line_of_another_s_text_passes_for_ours() {
        assert_eq!(
            lines("the verifier says:\nerror: \x1bc\u{202e}\n"),
            "the verifier says:\n  error: \\u{1b}c\\u{202e}"
        );
    }

    #[test]
    fn a_line_without_end_is_cut() {
        assert_eq!(lines(&"ä".repeat(LONGEST)), "ä".repeat(LONGEST));
        assert_eq!(lines(&"ä".repeat(LONGEST * 100)), "ä".repeat(LONGEST) + "…");
    }
}
