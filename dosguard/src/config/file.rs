//! The configuration file.
//!
//! ```toml
//! interfaces = ["eth0"]            # or on the command line
//! mode  = "enforce"                # or "monitor"
//! allow = ["192.0.2.0/24", "2001:db8::/32"]
//! deny  = ["203.0.113.0/24"]
//!
//! [source]
//! ipv4_prefix = 32                 # 1 to 32
//! ipv6_prefix = 64                 # 1 to 128
//!
//! [events]
//! rate = 1000                      # of each kind, a second and CPU; 0 to 1000000
//!
//! [rule.default]                   # every TCP port that no other rule names
//! limit = "100/1s"
//! ban   = "1m"
//!
//! [rule.smtp]
//! ports   = ["tcp/25", "tcp/587"]  # required, except in default, which has none
//! limit   = "3/60s"                # required, except in default
//! action  = "ban"                  # or "drop": only the excess SYNs
//! ban     = "10m"
//! ban_max = "1d"                   # left out: 1d, or `ban` if that is longer
//! forget  = "1d"
//! scope   = "all"                  # or "syn"
//! refresh = false
//! mode    = "enforce"              # or "monitor"
//! ```
//!
//! Whatever is left out is as in [`Policy::default`] and [`default_spec`](super::policy::default_spec).

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use thiserror::Error;

use super::cidr::CidrError;
use super::document;
use super::field::{FieldError, RuleField};
use super::policy::{Policy, PolicyError, RuleName};
use super::ports::PortError;

/// Largest file that is read, in bytes: several times what the fullest allow-list takes.
const MAX_BYTES: u64 = 16 << 20;

/// Why there is no policy in a file.
#[derive(Debug, Error)]
pub enum FileError {
    /// There is no such file.
    #[error("there is no file `{path}`\nhint: a path from here, or one that begins with `/`", path = path.display())]
    Missing {
        /// The file.
        path: PathBuf,
    },
    /// It is a directory.
    #[error("`{path}` is a directory\nhint: name the file in it", path = path.display())]
    Directory {
        /// The directory.
        path: PathBuf,
    },
    /// It could not be read.
    #[error("cannot read `{path}`", path = path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What the system said; not part of the message.
        source: io::Error,
    },
    /// It is too large to be a configuration.
    #[error("`{path}` is too large to be a configuration\nhint: at most {} MiB", MAX_BYTES >> 20, path = path.display())]
    TooLarge {
        /// The file.
        path: PathBuf,
    },
    /// It is not text.
    #[error("`{path}` line {line}, column {column}: not UTF-8 text\nhint: is this the configuration file?", path = path.display())]
    NotText {
        /// The file.
        path: PathBuf,
        /// The line of the first byte that is no text, from 1.
        line: usize,
        /// Its column in characters, from 1.
        column: usize,
    },
    /// What it says is wrong.
    #[error("`{path}` line {line}, column {column}: {problem}", path = path.display())]
    Invalid {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
        /// The column in characters, from 1.
        column: usize,
        /// What is wrong there.
        problem: Problem,
    },
}

/// What is wrong at some place of a file.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum Problem {
    /// It is not TOML.
    #[error("{message}\nhint: the file is TOML: each key once, texts in quotes, such as `{}`", RuleField::Ban.example())]
    Syntax {
        /// What the parser said.
        message: String,
    },
    /// A key has no meaning here.
    #[error("unknown key `{key}` in {place}\nhint: {hint}")]
    UnknownKey {
        /// The key.
        key: String,
        /// The table it is in.
        place: String,
        /// The nearest key, or those that have a meaning.
        hint: String,
    },
    /// A key or a table stands there a second time.
    #[error(
        "{what} is named twice, first in line {line}\nhint: name it once; another rule needs another name"
    )]
    Twice {
        /// The rule or the key.
        what: String,
        /// The line where it stands first, from 1.
        line: usize,
    },
    /// A value is of the wrong type.
    #[error("{what} cannot be {found}\nhint: such as `{example}`")]
    WrongType {
        /// Whose value.
        what: String,
        /// The type it has, with an article.
        found: String,
        /// How it would be right.
        example: &'static str,
    },
    /// A rule other than `default` has no limit.
    #[error("rule `{name}` has no limit\nhint: such as `{}`", RuleField::Limit.example())]
    NoLimit {
        /// The rule.
        name: RuleName,
    },
    /// A network is malformed.
    #[error(transparent)]
    Cidr(#[from] CidrError),
    /// A port is malformed.
    #[error(transparent)]
    Port(#[from] PortError),
    /// A rule's setting is malformed or out of range.
    #[error(transparent)]
    Field(#[from] FieldError),
    /// The parts are at odds with each other.
    #[error(transparent)]
    Policy(#[from] PolicyError),
}

/// The policy in the file at `path`.
///
/// # Errors
///
/// The file cannot be read, is not text, or says something wrong: the first such place is reported.
pub fn read(path: &Path) -> Result<Policy, FileError> {
    let owned = || path.to_owned();
    let failed = |source: io::Error| match source.kind() {
        io::ErrorKind::NotFound => FileError::Missing { path: owned() },
        io::ErrorKind::IsADirectory => FileError::Directory { path: owned() },
        _ => FileError::Unreadable { path: owned(), source },
    };
    let file = File::open(path).map_err(failed)?;
    let mut bytes = Vec::new();
    // One byte more than allowed, to see that there is one.
    file.take(MAX_BYTES + 1).read_to_end(&mut bytes).map_err(failed)?;
    if bytes.len() as u64 > MAX_BYTES {
        return Err(FileError::TooLarge { path: owned() });
    }
    match str::from_utf8(&bytes) {
        Ok(text) => parse(text, path),
        Err(error) => {
            let text = String::from_utf8_lossy(&bytes[..error.valid_up_to()]);
            let (line, column) = position(&text, text.len());
            Err(FileError::NotText { path: owned(), line, column })
        }
    }
}

/// The policy in `text`; `path` is only for the messages.
///
/// # Errors
///
/// The text says something wrong: the first such place is reported.
pub fn parse(text: &str, path: &Path) -> Result<Policy, FileError> {
    document::policy(text).map_err(|document::Located { at, problem }| {
        let (line, column) = position(text, at);
        FileError::Invalid { path: path.to_owned(), line, column, problem }
    })
}

/// Line and column, both from 1, of the character that byte `at` belongs to.
fn position(text: &str, at: usize) -> (usize, usize) {
    let before = &text[..text.floor_char_boundary(at)];
    let line_start = before.rfind('\n').map_or(0, |newline| newline + 1);
    // A byte order mark has no width.
    let column = before[line_start..].chars().filter(|c| *c != '\u{feff}').count() + 1;
    (before.matches('\n').count() + 1, column)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn places_are_counted_in_characters() {
        let text = "ä = 1\nöü x";
        assert_eq!(position(text, 0), (1, 1));
        assert_eq!(position(text, text.find('=').unwrap()), (1, 3));
        assert_eq!(position(text, text.find('x').unwrap()), (2, 4));
        assert_eq!(position(text, text.len()), (2, 5));
        assert_eq!(position(text, 5_000), (2, 5));
        assert_eq!(position("\u{feff}x", 3), (1, 1));
    }

    #[test]
    fn an_error_names_file_line_and_column() {
        let error = parse("\n\n[rule.web]\n  limit = \"0/1s\"\n", Path::new("/etc/dosguard/dosguard.toml"))
            .unwrap_err();
        assert_eq!(
            error.to_string(),
            "`/etc/dosguard/dosguard.toml` line 4, column 11: limit `0/1s`: the count is zero\nhint: from 1 to 500000 \
             SYNs, such as `100/1s`"
        );
    }

    #[test]
    fn files_are_read_or_it_is_said_why_not() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("dosguard.toml");
        let shown = path.display().to_string();
        let said = || read(&path).unwrap_err().to_string();

        assert!(said().starts_with(&format!("there is no file `{shown}`\nhint: ")));
        fs::write(&path, "interfaces = [\"eth0\"]\n").unwrap();
        assert_eq!(read(&path).unwrap().interfaces, ["eth0"]);
        fs::write(&path, b"# one\n# tw\xff\n").unwrap();
        let not_text = "not UTF-8 text\nhint: is this the configuration file?";
        assert_eq!(said(), format!("`{shown}` line 2, column 5: {not_text}"));
        fs::remove_file(&path).unwrap();
        fs::create_dir(&path).unwrap();
        assert_eq!(said(), format!("`{shown}` is a directory\nhint: name the file in it"));
    }

    #[test]
    fn a_file_without_end_is_not_read_to_its_end() {
        assert!(matches!(read(Path::new("/dev/zero")), Err(FileError::TooLarge { .. })));
    }
}
