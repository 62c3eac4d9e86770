//! The configuration: one file, or several of which a later one overrides single keys of those before it.
//!
//! What may stand in them, and what is assumed of what does not, is in `docs/configuration.md`, whose example a test reads.
//!
//! An instance's own files are `dosguard.toml` and `conf.d/*.toml` in the folder of configurations, or `NAME.toml` and
//! `NAME.d/*.toml` for an instance that is not `default`.

mod error;
mod own;

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

pub use error::{FileError, Problem};
pub use own::own_files;

use super::document;
use super::policy::Policy;
use super::services::Services;
use super::sizes::Sizes;
use crate::paths::Paths;

/// Largest file that is read, in bytes: several times what the fullest allow-list takes.
const MAX_BYTES: u64 = 16 << 20;

/// The most that is read of all files together, in bytes.
const MAX_TOTAL_BYTES: u64 = 64 << 20;

/// All that an instance is told by files.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Configuration {
    /// What the filter shall do.
    pub policy: Policy,
    /// What the daemon does beside the filter.
    pub services: Services,
    /// How much the kernel's maps hold.
    pub sizes: Sizes,
    /// The files that say so, in the order in which they were read.
    pub files: Vec<PathBuf>,
}

/// What `file` alone says, or without one the instance's own files; none if it has no file of its own.
///
/// # Errors
///
/// A file cannot be read, is not text, or says something wrong: the first such place is reported.
pub fn load(paths: &Paths, file: Option<&Path>) -> Result<Option<Configuration>, FileError> {
    let files = match file {
        Some(file) => vec![file.to_owned()],
        None => own_files(paths)?,
    };
    if files.is_empty() { Ok(None) } else { read_all(&files).map(Some) }
}

/// What the file at `path` says.
///
/// # Errors
///
/// The file cannot be read, is not text, or says something wrong: the first such place is reported.
pub fn read(path: &Path) -> Result<Configuration, FileError> {
    read_all(&[path.to_owned()])
}

/// What the files say, a later one over those before it.
///
/// # Errors
///
/// A file cannot be read, is not text, or says something wrong: the first such place is reported, and before what only shows
/// once all of them are read.
pub fn read_all(files: &[PathBuf]) -> Result<Configuration, FileError> {
    let mut texts = Vec::new();
    let mut room = MAX_TOTAL_BYTES;
    for path in files {
        let text = read_text(path, room.min(MAX_BYTES))?;
        room -= text.len() as u64;
        texts.push((text, path.as_path()));
    }
    let texts: Vec<_> = texts.iter().map(|(text, path)| (text.as_str(), *path)).collect();
    parse_all(&texts)
}

/// What `text` says; `path` is only for the messages.
///
/// # Errors
///
/// The text says something wrong: the first such place is reported.
pub fn parse(text: &str, path: &Path) -> Result<Configuration, FileError> {
    parse_all(&[(text, path)])
}

/// What the texts say, a later one over those before it; the paths are only for the messages.
///
/// # Errors
///
/// A text says something wrong: the first such place is reported, and before what only shows once all of them are read.
pub fn parse_all(files: &[(&str, &Path)]) -> Result<Configuration, FileError> {
    let (policy, services, sizes) =
        document::merged(files).map_err(|document::Located { at, problem }| {
            let (text, path) = files[at.file];
            let (line, column) = position(text, at.byte);
            FileError::Invalid { path: path.to_owned(), line, column, problem }
        })?;
    let files = files.iter().map(|(_, path)| (*path).to_owned()).collect();
    Ok(Configuration { policy, services, sizes, files })
}

/// The text of a file of at most `room` bytes.
fn read_text(path: &Path, room: u64) -> Result<String, FileError> {
    let failed = |source: io::Error| failed(path, source);
    read_from(File::open(path).map_err(failed)?, path, room)
}

/// The text of something that is as small as a configuration file; `path` is what it is called in messages.
///
/// # Errors
///
/// It cannot be read, is too large, or is not text.
pub fn read_bounded(from: impl Read, path: &Path) -> Result<String, FileError> {
    read_from(from, path, MAX_BYTES)
}

fn failed(path: &Path, source: io::Error) -> FileError {
    let path = path.to_owned();
    match source.kind() {
        io::ErrorKind::NotFound => FileError::Missing { path },
        io::ErrorKind::IsADirectory => FileError::Directory { path },
        _ => FileError::Unreadable { path, source },
    }
}

fn read_from(from: impl Read, path: &Path, room: u64) -> Result<String, FileError> {
    let owned = || path.to_owned();
    let mut bytes = Vec::new();
    // One byte more than allowed, to see that there is one.
    from.take(room + 1).read_to_end(&mut bytes).map_err(|source| failed(path, source))?;
    if bytes.len() as u64 > room {
        return Err(FileError::TooLarge { path: owned() });
    }
    String::from_utf8(bytes).map_err(|error| {
        let valid = error.utf8_error().valid_up_to();
        let text = String::from_utf8_lossy(&error.as_bytes()[..valid]);
        let (line, column) = position(&text, text.len());
        FileError::NotText { path: owned(), line, column }
    })
}

/// Line and column, both from 1, of the character that byte `at` belongs to.
pub(super) fn position(text: &str, at: usize) -> (usize, usize) {
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
        assert_eq!(read(&path).unwrap().policy.interfaces, ["eth0"]);
        fs::write(&path, b"# one\n# tw\xff\n").unwrap();
        let not_text = "not UTF-8 text\nhint: is this the configuration file?";
        assert_eq!(said(), format!("`{shown}` line 2, column 5: {not_text}"));
        fs::remove_file(&path).unwrap();
        fs::create_dir(&path).unwrap();
        assert_eq!(said(), format!("`{shown}` is a directory\nhint: name the file in it"));
    }

    #[test]
    fn an_instance_reads_its_own_files_in_order() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        let paths = |instance| {
            let paths = Paths::new(instance, "/b".into(), "/r".into(), "/s".into()).unwrap();
            paths.with_config_dir(dir.path().to_owned())
        };
        assert_eq!(load(&paths("default"), None).unwrap(), None);
        assert_eq!(load(&paths("default").with_config_dir(at("nowhere")), None).unwrap(), None);

        fs::create_dir(at("conf.d")).unwrap();
        fs::write(at("conf.d/20-b.toml"), "mode = 'enforce'\ninterfaces = ['b']\n").unwrap();
        fs::write(at("conf.d/10-a.toml"), "mode = 'monitor'\ninterfaces = ['a']\n").unwrap();
        for ignored in [".30-c.toml", "30-c.toml~", "30-c.toml.dpkg-new", "README", "toml", ".toml"] {
            fs::write(at("conf.d").join(ignored), "neither read\nnor = [wrong").unwrap();
        }
        let drop_ins = load(&paths("default"), None).unwrap().unwrap();
        assert_eq!(drop_ins.policy.interfaces, ["a", "b"]);
        assert_eq!(drop_ins.policy.mode.name(), "enforce", "the later file counts");
        fs::write(at("dosguard.toml"), "interfaces = ['m']\n").unwrap();
        let all = load(&paths("default"), None).unwrap().unwrap();
        assert_eq!(all.policy.interfaces, ["m", "a", "b"]);
        assert_eq!(all.files, ["dosguard.toml", "conf.d/10-a.toml", "conf.d/20-b.toml"].map(at));
        let alone = load(&paths("default"), Some(&at("conf.d/10-a.toml"))).unwrap().unwrap();
        assert_eq!(alone.policy.interfaces, ["a"]);

        assert_eq!(load(&paths("mail"), None).unwrap(), None);
        fs::create_dir(at("mail.d")).unwrap();
        fs::write(at("mail.d/x.toml"), "interfaces = ['x']\n").unwrap();
        fs::write(at("mail.toml"), "interfaces = ['y']\n").unwrap();
        assert_eq!(load(&paths("mail"), None).unwrap().unwrap().policy.interfaces, ["y", "x"]);
    }

    #[test]
    fn a_file_that_cannot_be_read_spoils_all_of_them() {
        let dir = tempfile::tempdir().unwrap();
        let paths = Paths::new("default", "/b".into(), "/r".into(), "/s".into()).unwrap();
        let paths = paths.with_config_dir(dir.path().to_owned());
        let bad = dir.path().join("conf.d/50-bad.toml");
        let said = || load(&paths, None).unwrap_err().to_string();
        fs::write(dir.path().join("dosguard.toml"), "mode = 'monitor'\n").unwrap();
        fs::write(dir.path().join("conf.d"), "no folder").unwrap();
        assert!(said().starts_with("cannot read `") && said().contains("/conf.d`\nhint: "), "{}", said());
        fs::remove_file(dir.path().join("conf.d")).unwrap();
        fs::create_dir(dir.path().join("conf.d")).unwrap();

        fs::create_dir(&bad).unwrap();
        assert_eq!(said(), format!("`{}` is a directory\nhint: name the file in it", bad.display()));
        fs::remove_dir(&bad).unwrap();
        std::os::unix::fs::symlink("nowhere", &bad).unwrap();
        assert!(said().starts_with(&format!("there is no file `{}`\n", bad.display())), "{}", said());
        fs::remove_file(&bad).unwrap();
        nix::unistd::mkfifo(&bad, nix::sys::stat::Mode::S_IRUSR).unwrap();
        assert!(said().starts_with(&format!("`{}` is a pipe\nhint: ", bad.display())), "{}", said());
        fs::remove_file(&bad).unwrap();
        for (bytes, what) in [
            (&b"\x7fELF\x02\x01\x01\x00\xff"[..], "line 1, column 9: not UTF-8 text"),
            (b"mode = 'enforce'\n[rule.default]\nlimit = '5/1", "line 3, column "),
            (b"mode = 'enforce'\n\x00\x00\x00\x00", "line 2, column "),
        ] {
            fs::write(&bad, bytes).unwrap();
            assert!(said().starts_with(&format!("`{}` {what}", bad.display())), "{}", said());
        }
        std::os::unix::fs::symlink("/dev/null", dir.path().join("conf.d/60-off.toml")).unwrap();
        fs::write(&bad, "").unwrap();
        assert_eq!(load(&paths, None).unwrap().unwrap().files.len(), 3, "an empty file is fine");
    }

    #[test]
    fn all_files_together_have_a_largest_size() {
        let dir = tempfile::tempdir().unwrap();
        let files: Vec<_> = (0..5).map(|number| dir.path().join(format!("{number}.toml"))).collect();
        for file in &files {
            fs::write(file, " ".repeat(15 << 20)).unwrap();
        }
        let said = read_all(&files).unwrap_err().to_string();
        let what =
            "is too large to be a configuration\nhint: at most 16 MiB, and 64 MiB with all other files";
        assert_eq!(said, format!("`{}` {what}", files[4].display()));
    }

    #[test]
    fn a_file_without_end_is_not_read_to_its_end() {
        assert!(matches!(read(Path::new("/dev/zero")), Err(FileError::TooLarge { .. })));
    }
}
