//! Why there is no configuration in files.

use std::io;
use std::path::PathBuf;

use thiserror::Error;

use super::{MAX_BYTES, MAX_TOTAL_BYTES};
use crate::config::bytes::ByteSizeError;
use crate::config::cidr::CidrError;
use crate::config::field::{FieldError, RuleField};
use crate::config::policy::{PolicyError, RuleName};
use crate::config::ports::PortError;
use crate::config::units::SpanError;
use crate::output::printable;

/// Why there is no configuration in files.
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
    #[error(
        "cannot read `{path}`\nhint: see that it is a file that root may read{restart}",
        path = path.display(), restart = restart(source)
    )]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What the system said; not part of the message.
        source: io::Error,
    },
    /// It is a pipe, which may never end.
    #[error("`{path}` is a pipe\nhint: put a file there, or name the pipe with `-c`", path = path.display())]
    Pipe {
        /// The pipe.
        path: PathBuf,
    },
    /// It is too large to be a configuration, or it is with those before it.
    #[error(
        "`{path}` is too large to be a configuration\nhint: at most {} MiB, and {} MiB with all other files",
        MAX_BYTES >> 20, MAX_TOTAL_BYTES >> 20, path = path.display()
    )]
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
    #[error("`{path}` line {line}, column {column}: {problem}", path = path.display(), problem = plain(problem))]
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

/// What a daemon may read was settled when it started.
fn restart(source: &io::Error) -> &'static str {
    match source.kind() {
        io::ErrorKind::PermissionDenied => {
            "; a daemon that reads files of another folder than before, by their names or by links, has to be restarted"
        }
        _ => "",
    }
}

/// What is wrong and what to do, where nothing that the file says can begin a line.
fn plain(problem: &Problem) -> String {
    let text = problem.to_string();
    match text.rsplit_once("\nhint: ") {
        Some((text, hint)) => format!("{}\nhint: {}", printable(text), printable(hint)),
        None => printable(&text).into_owned(),
    }
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
    /// A value is malformed or out of range.
    #[error("`{key}` cannot be `{text}`\nhint: {accepted}")]
    Value {
        /// Its key.
        key: &'static str,
        /// What was written.
        text: String,
        /// What would be accepted.
        accepted: String,
    },
    /// A table lacks a key that it cannot do without.
    #[error("{table} has no `{key}`\nhint: such as `{example}`")]
    Lacking {
        /// The table.
        table: &'static str,
        /// The key.
        key: &'static str,
        /// How it would be right.
        example: &'static str,
    },
    /// Two tables name the same file.
    #[error("`{path}` is exported to twice, first in `{file}` line {line}\nhint: a file for each format", path = path.display(), file = file.display())]
    ExportedTwice {
        /// The file that both write.
        path: PathBuf,
        /// The configuration file that names it first.
        file: PathBuf,
        /// The line there, from 1.
        line: usize,
    },
    /// A file that follows the bans is the log, too.
    #[error("`{path}` is exported to, and is the file of `[log.file]`\nhint: a file for each", path = path.display())]
    ExportedLog {
        /// The file that both write.
        path: PathBuf,
    },
    /// A duration is malformed.
    #[error("`{key}`: {error}")]
    Span {
        /// Its key.
        key: &'static str,
        /// Why it is none.
        error: SpanError,
    },
    /// A number of bytes is malformed.
    #[error("`{key}`: {error}")]
    Bytes {
        /// Its key.
        key: &'static str,
        /// Why it is none.
        error: ByteSizeError,
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
