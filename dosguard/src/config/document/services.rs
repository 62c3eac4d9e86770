//! What the daemon does beside the filter, and how much the maps hold.

use std::net::SocketAddr;
use std::path::{Component, Path, PathBuf};

use dosguard_common::event::Kind;

use super::entry::{Entry, Located, Place, Table, choices, located};
use crate::config::bytes::ByteSize;
use crate::config::file::Problem;
use crate::config::services::{CountBy, Export, ExportFormat, Hook, LogFile, LogFormat, Services};
use crate::config::sizes::{Size, Sizes};
use crate::config::units::Span;

/// What switches something off that an earlier file has switched on.
const OFF: &str = "off";
/// How events are written.
const FORMATS: [(&str, LogFormat); 2] = [("human", LogFormat::Human), ("json", LogFormat::Json)];
/// How bans are written to a file that follows them.
const EXPORT_FORMATS: [(&str, ExportFormat); 2] =
    [("plain", ExportFormat::Plain), ("hosts.deny", ExportFormat::HostsDeny)];
/// Longest prefix of a syslog line, in bytes.
const MAX_PREFIX: usize = 64;
/// Smallest file that is renamed when it is full: a smaller one would hold a handful of events.
const LEAST_FILE: ByteSize = ByteSize::from_bytes(4 << 10);
/// Smallest database.
const LEAST_HISTORY: ByteSize = ByteSize::from_bytes(1 << 20);
/// How often connections may be looked at: the tenth of the shortest is a fiftieth of a second.
const SHORTEST_LOOK: Span = Span::from_ns(200_000_000);
const LONGEST_LOOK: Span = Span::from_secs(60);
const SECOND: Span = Span::from_secs(1);
const HOUR: Span = Span::from_secs(60 * 60);
const CENTURY: Span = Span::from_secs(36_500 * 24 * 60 * 60);

const ON: &str = r#"on = ["ban", "unban"]"#;
const RUN: &str = r#"run = ["/usr/local/bin/tell", "argument"]"#;
const FILE: &str = r#"path = "/var/log/dosguard/events.log""#;
const EXPORT: &str = r#"path = "/etc/hosts.deny""#;

/// What files have said so far.
#[derive(Default)]
pub(super) struct Drafts {
    services: Services,
    file: Option<FileDraft>,
    exports: Vec<(Export, Place)>,
    /// With the number of the file.
    hooks: Vec<(Hook, usize)>,
}

/// `[log.file]`, as far as files have described it.
struct FileDraft {
    at: Place,
    /// None is not said, and none in it is said to be off.
    path: Option<Option<PathBuf>>,
    rest: LogFile,
}

impl Drafts {
    /// Takes `[log]`.
    pub(super) fn log(&mut self, entry: &Entry<'_>) -> Result<(), Located> {
        for entry in entry.table("[log]")? {
            let log = &mut self.services.log;
            match entry.key {
                "stdout" => {
                    let [human, json] = FORMATS.map(|(name, format)| (name, Some(format)));
                    log.stdout = entry.one_of("stdout", r#"stdout = "json""#, &[human, json, (OFF, None)])?;
                }
                "journald" => log.journald = entry.boolean("journald = true")?,
                "syslog" => log.syslog = prefix(&entry)?,
                "file" => self.file(&entry)?,
                _ => return Err(entry.unknown("`[log]`", &["stdout", "journald", "syslog", "file"])),
            }
        }
        Ok(())
    }

    fn file(&mut self, entry: &Entry<'_>) -> Result<(), Located> {
        let file = self.file.get_or_insert_with(|| FileDraft {
            at: entry.at,
            path: None,
            rest: LogFile { path: PathBuf::new(), format: LogFormat::Human, max_bytes: 0, keep: 5 },
        });
        let rest = &mut file.rest;
        for entry in entry.table("[log.file]")? {
            match entry.key {
                "path" if entry.text(FILE)?.0 == OFF => file.path = Some(None),
                "path" => file.path = Some(Some(absolute(&entry, FILE)?)),
                "format" => rest.format = entry.one_of("format", r#"format = "json""#, &FORMATS)?,
                "max_size" => {
                    rest.max_bytes =
                        at_least(&entry, LEAST_FILE, r#"max_size = "100M""#, "`0` for no limit, or ")?;
                }
                "keep" => rest.keep = entry.number("keep", "keep = 5", (0, 1_000))?,
                _ => {
                    return Err(entry.unknown("`[log.file]`", &["path", "format", "max_size", "keep"]));
                }
            }
        }
        Ok(())
    }

    /// Takes `[history]`.
    pub(super) fn history(&mut self, entry: &Entry<'_>) -> Result<(), Located> {
        let history = &mut self.services.history;
        for entry in entry.table("[history]")? {
            match entry.key {
                "keep" => history.keep = entry.span("keep", r#"keep = "90d""#, (SECOND, CENTURY))?,
                "max_size" => {
                    history.max_bytes = at_least(&entry, LEAST_HISTORY, r#"max_size = "256M""#, "")?;
                }
                _ => return Err(entry.unknown("`[history]`", &["keep", "max_size"])),
            }
        }
        Ok(())
    }

    /// Takes `[connections]`.
    pub(super) fn connections(&mut self, entry: &Entry<'_>) -> Result<(), Located> {
        let connections = &mut self.services.connections;
        for entry in entry.table("[connections]")? {
            match entry.key {
                "interval" => {
                    connections.interval =
                        entry.span("interval", r#"interval = "1s""#, (SHORTEST_LOOK, LONGEST_LOOK))?;
                }
                "namespaces" => {
                    connections.namespaces.clear();
                    for (name, at) in entry.texts(r#"namespaces = ["web"]"#)? {
                        connections.namespaces.push(namespace(name).ok_or_else(|| {
                            let accepted =
                                "a name as `ip netns` has it, such as `web`, or an absolute path".to_owned();
                            located(at)(Problem::Value { key: "namespaces", text: name.to_owned(), accepted })
                        })?);
                    }
                }
                "method" => {
                    let methods = [CountBy::Auto, CountBy::Iterator, CountBy::SockDiag];
                    connections.by =
                        entry.one_of("method", r#"method = "auto""#, &methods.map(|by| (by.name(), by)))?;
                }
                _ => return Err(entry.unknown("`[connections]`", &["interval", "namespaces", "method"])),
            }
        }
        Ok(())
    }

    /// Takes `[metrics]`.
    pub(super) fn metrics(&mut self, entry: &Entry<'_>) -> Result<(), Located> {
        for entry in entry.table("[metrics]")? {
            match entry.key {
                "listen" => self.services.metrics = listen(&entry)?,
                _ => return Err(entry.unknown("`[metrics]`", &["listen"])),
            }
        }
        Ok(())
    }

    /// Takes every `[[hook]]`.
    pub(super) fn hooks(&mut self, entry: &Entry<'_>) -> Result<(), Located> {
        for table in entry.tables("[[hook]]")? {
            self.hooks.push((hook(&table)?, table.1.file));
        }
        Ok(())
    }

    /// Takes every `[[export]]`.
    pub(super) fn exports(&mut self, entry: &Entry<'_>) -> Result<(), Located> {
        for (entries, at) in entry.tables("[[export]]")? {
            let (mut path, mut format) = (None, ExportFormat::default());
            for entry in &entries {
                match entry.key {
                    "path" => path = Some(absolute(entry, EXPORT)?),
                    "format" => {
                        format = entry.one_of("format", r#"format = "hosts.deny""#, &EXPORT_FORMATS)?;
                    }
                    _ => return Err(entry.unknown("`[[export]]`", &["path", "format"])),
                }
            }
            let path = path.ok_or_else(|| lacking(at, "`[[export]]`", "path", EXPORT))?;
            self.exports.push((Export { path, format }, at));
        }
        Ok(())
    }

    /// What it comes to. The same export in another file is meant once; `describe` says where a place is.
    pub(super) fn finish(
        mut self,
        describe: impl Fn(Place) -> (PathBuf, usize),
    ) -> Result<Services, Located> {
        if let Some(FileDraft { at, path, rest }) = self.file {
            let path = path.ok_or_else(|| lacking(at, "`[log.file]`", "path", FILE))?;
            self.services.log.file = path.map(|path| LogFile { path, ..rest });
        }
        let mut hooks: Vec<(Hook, usize)> = Vec::new();
        for (hook, file) in self.hooks {
            if !hooks.iter().any(|(known, first)| *known == hook && *first != file) {
                hooks.push((hook, file));
            }
        }
        self.services.hooks = hooks.into_iter().map(|(hook, _)| hook).collect();
        let log = self.services.log.file.as_ref().map(|file| normal(&file.path));
        let mut known: Vec<(Export, Place)> = Vec::new();
        for (export, at) in self.exports {
            if log.as_ref() == Some(&normal(&export.path)) {
                return Err(located(at)(Problem::ExportedLog { path: export.path }));
            }
            match known.iter().find(|(known, _)| normal(&known.path) == normal(&export.path)) {
                None => known.push((export, at)),
                Some((known, first)) if known.format == export.format && first.file != at.file => {}
                Some((_, first)) => {
                    let (file, line) = describe(*first);
                    return Err(located(at)(Problem::ExportedTwice { path: export.path, file, line }));
                }
            }
        }
        self.services.exports = known.into_iter().map(|(export, _)| export).collect();
        Ok(self.services)
    }
}

fn lacking(at: Place, table: &'static str, key: &'static str, example: &'static str) -> Located {
    located(at)(Problem::Lacking { table, key, example })
}

/// Takes `[size]`.
pub(super) fn sizes(sizes: &mut Sizes, entry: &Entry<'_>) -> Result<(), Located> {
    for entry in entry.table("[size]")? {
        let Some(size) = Size::from_name(entry.key) else {
            return Err(entry.unknown("`[size]`", &Size::ALL.map(Size::name)));
        };
        sizes.set(size, entry.number(size.name(), "bans = 65536", (Size::LEAST, Size::MOST))?);
    }
    Ok(())
}

fn hook((entries, at): &Table<'_>) -> Result<Hook, Located> {
    let mut hook = Hook { on: Vec::new(), run: Vec::new(), timeout: Span::from_secs(10), at_most: 4 };
    for entry in entries {
        match entry.key {
            "on" => {
                for (text, at) in entry.texts(ON)? {
                    hook.on.push(kind(text, at)?);
                }
            }
            "run" => hook.run = command(entry)?,
            "timeout" => {
                hook.timeout =
                    entry.span("timeout", r#"timeout = "10s""#, (Span::from_ns(100_000_000), HOUR))?;
            }
            "at_most" => hook.at_most = entry.number("at_most", "at_most = 4", (1, 64))?,
            _ => return Err(entry.unknown("`[[hook]]`", &["on", "run", "timeout", "at_most"])),
        }
    }
    for (is_empty, key, example) in [(hook.on.is_empty(), "on", ON), (hook.run.is_empty(), "run", RUN)] {
        if is_empty {
            return Err(lacking(*at, "`[[hook]]`", key, example));
        }
    }
    Ok(hook)
}

fn kind(text: &str, at: Place) -> Result<Kind, Located> {
    let found = Kind::ALL.into_iter().find(|kind| kind.name() == text);
    found.ok_or_else(|| {
        let accepted = choices(text, Kind::ALL.iter().map(|kind| kind.name()));
        located(at)(Problem::Value { key: "on", text: text.to_owned(), accepted })
    })
}

fn command(entry: &Entry<'_>) -> Result<Vec<String>, Located> {
    let words = entry.texts(RUN)?;
    for (number, (text, at)) in words.iter().enumerate() {
        let wrong = |accepted: &str| {
            let (text, accepted) = ((*text).to_owned(), accepted.to_owned());
            located(*at)(Problem::Value { key: "run", text, accepted })
        };
        if number == 0 && !text.starts_with('/') {
            return Err(wrong(
                "the absolute path of a program, such as `/usr/local/bin/tell`; no shell looks for it",
            ));
        }
        if text.contains('\0') {
            return Err(wrong("no program can be given a zero byte"));
        }
    }
    Ok(words.into_iter().map(|(text, _)| text.to_owned()).collect())
}

fn prefix(entry: &Entry<'_>) -> Result<Option<String>, Located> {
    let (text, _) = entry.text(r#"syslog = "dosguard""#)?;
    let fits =
        (1..=MAX_PREFIX).contains(&text.len()) && text.bytes().all(|byte| (b' '..=b'~').contains(&byte));
    if !fits {
        let accepted =
            format!("1 to {MAX_PREFIX} printable ASCII characters, such as `dosguard`, or `{OFF}`");
        return Err(entry.value_error("syslog", text, accepted));
    }
    Ok((text != OFF).then(|| text.to_owned()))
}

fn listen(entry: &Entry<'_>) -> Result<Option<SocketAddr>, Located> {
    let (text, _) = entry.text(r#"listen = "127.0.0.1:9741""#)?;
    if text == OFF {
        return Ok(None);
    }
    let address = text.parse().ok().filter(|address: &SocketAddr| address.port() != 0);
    address.map(Some).ok_or_else(|| {
        let accepted = format!("an address and a port, such as `127.0.0.1:9741` or `[::1]:9741`, or `{OFF}`");
        entry.value_error("listen", text, accepted)
    })
}

/// The path without `.`, `..` and what else does not tell files apart. Symbolic links are not followed: where they lead may
/// change.
fn normal(path: &Path) -> PathBuf {
    let mut normal = PathBuf::new();
    for part in path.components() {
        match part {
            Component::ParentDir => {
                normal.pop();
            }
            Component::CurDir => {}
            part => normal.push(part),
        }
    }
    normal
}

/// A path of a file that means the same wherever the daemon is started.
fn absolute(entry: &Entry<'_>, example: &'static str) -> Result<PathBuf, Located> {
    let (text, _) = entry.text(example)?;
    if text.starts_with('/') && !text.ends_with('/') && !text.contains('\0') {
        return Ok(PathBuf::from(text));
    }
    Err(entry.value_error("path", text, format!("an absolute path, such as `{example}`")))
}

fn at_least(entry: &Entry<'_>, least: ByteSize, example: &'static str, none: &str) -> Result<u64, Located> {
    let size = entry.bytes("max_size", example)?;
    if size >= least || (size == ByteSize::default() && !none.is_empty()) {
        return Ok(size.bytes());
    }
    let accepted = format!("{none}`{least}` or more, such as `{example}`");
    Err(entry.value_error("max_size", &size.to_string(), accepted))
}

/// A network namespace's name, which is a file's in one folder, or an absolute path.
fn namespace(name: &str) -> Option<String> {
    let is_name = !name.is_empty() && !name.contains('/') && !matches!(name, "." | "..");
    ((is_name || name.starts_with('/')) && !name.contains('\0')).then(|| name.to_owned())
}
