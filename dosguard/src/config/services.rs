//! What the daemon does beside the filter: where events go, how long they are kept, what is told to others.

use std::net::SocketAddr;
use std::path::PathBuf;

use dosguard_common::event::Kind;

use super::units::Span;

/// What the daemon does beside the filter.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Services {
    /// `[log]`: where events are told.
    pub log: Log,
    /// `[history]`: how long they are kept.
    pub history: History,
    /// `[[hook]]`: programs that are run at events.
    pub hooks: Vec<Hook>,
    /// `[[export]]`: files that follow the bans.
    pub exports: Vec<Export>,
    /// `[connections]`: how connections are counted.
    pub connections: Connections,
    /// `[metrics]` `listen`: where Prometheus may ask; off unless configured.
    pub metrics: Option<SocketAddr>,
}

/// How connections are counted, where a rule limits them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Connections {
    /// `interval`: how often they are looked at; ten times as often while a source is near its limit, and a fifth as often
    /// while none can be.
    pub interval: Span,
    /// `namespaces`: network namespaces that are watched beside the daemon's own, by the names that `ip netns` has or by
    /// path.
    pub namespaces: Vec<String>,
    /// `method`.
    pub by: CountBy,
}

/// By what connections are counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum CountBy {
    /// `auto`: by an iterator where the kernel has it.
    #[default]
    Auto,
    /// `iterator`: a BPF program that the kernel runs for each socket (Linux 5.9).
    Iterator,
    /// `sock_diag`: lists of sockets that the kernel sends.
    SockDiag,
}

impl CountBy {
    /// The name used in files and output.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Iterator => "iterator",
            Self::SockDiag => "sock_diag",
        }
    }
}

/// How events are written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LogFormat {
    /// One line for people.
    #[default]
    Human,
    /// One JSON object a line.
    Json,
}

/// Where events are told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Log {
    /// `stdout`: `human`, `json`, or `off`, which is none.
    pub stdout: Option<LogFormat>,
    /// `journald`: whether systemd's journal gets each event with its fields.
    pub journald: bool,
    /// `syslog`: the prefix of each line, if the local syslog gets them.
    pub syslog: Option<String>,
    /// `[log.file]`.
    pub file: Option<LogFile>,
}

/// A file of events.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogFile {
    /// `path`.
    pub path: PathBuf,
    /// `format`.
    pub format: LogFormat,
    /// `max_size`, in bytes: a fuller file is renamed and a new one begun; 0 leaves that to others, who send SIGHUP.
    pub max_bytes: u64,
    /// `keep`: how many renamed files stay.
    pub keep: u32,
}

/// How long events are kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct History {
    /// `keep`: how long.
    pub keep: Span,
    /// `max_size`, in bytes of the database: the oldest go first.
    pub max_bytes: u64,
}

/// A program that is run at events.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hook {
    /// `on`: at which kinds of events.
    pub on: Vec<Kind>,
    /// `run`: the program, by its absolute path, and its arguments. No shell is involved.
    pub run: Vec<String>,
    /// `timeout`: after this it is killed.
    pub timeout: Span,
    /// `at_most`: how many may run at once.
    pub at_most: u32,
}

/// A file that follows the bans.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Export {
    /// `path`.
    pub path: PathBuf,
    /// `format`.
    pub format: ExportFormat,
}

/// How bans are written to a file that follows them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ExportFormat {
    /// `plain`: one source a line.
    #[default]
    Plain,
    /// `hosts.deny`: what TCP wrappers read.
    HostsDeny,
}

impl Default for Connections {
    /// Each second, in the daemon's own network namespace.
    fn default() -> Self {
        Self { interval: Span::from_secs(1), namespaces: Vec::new(), by: CountBy::Auto }
    }
}

impl Default for Log {
    /// Lines for people on stdout, and nothing else.
    fn default() -> Self {
        Self { stdout: Some(LogFormat::Human), journald: false, syslog: None, file: None }
    }
}

impl Default for History {
    /// Ninety days, and at most 256 MiB.
    fn default() -> Self {
        Self { keep: Span::from_secs(90 * 24 * 60 * 60), max_bytes: 256 * 1024 * 1024 }
    }
}
