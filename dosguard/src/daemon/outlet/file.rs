//! Events in a file.

use std::fs::{self, DirBuilder, OpenOptions};
use std::io::{self, Read as _, Seek as _, SeekFrom, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use super::Sink;
use crate::config::services::{LogFile, LogFormat};
use crate::output::{EventRecord, write_json};

const FILE_MODE: u32 = 0o640;
const FOLDER_MODE: u32 = 0o750;

/// A file of events. Nobody but us writes to it; others may move, remove or empty it.
pub(super) struct File {
    settings: LogFile,
    open: Option<fs::File>,
}

impl File {
    /// A file with these settings, which is not opened yet.
    pub(super) fn new(settings: LogFile) -> Self {
        Self { settings, open: None }
    }

    fn path(&self) -> &Path {
        &self.settings.path
    }

    /// Where the file with that number goes; the highest is the oldest.
    fn numbered(&self, number: u32) -> PathBuf {
        let mut path = self.path().as_os_str().to_owned();
        path.push(format!(".{number}"));
        path.into()
    }

    fn line(&self, record: &EventRecord) -> io::Result<Vec<u8>> {
        let mut line = Vec::new();
        match self.settings.format {
            LogFormat::Human => writeln!(line, "{}", record.dated_line())?,
            LogFormat::Json => write_json(&mut line, record)?,
        }
        Ok(line)
    }

    /// The file that is there, and how many bytes are in it.
    fn current(&mut self) -> io::Result<(&mut fs::File, u64)> {
        let mut size = None;
        if let Some(file) = &self.open {
            let found = file.metadata()?;
            // Removed, or with its whole folder: what would be written then, nobody could read.
            size = (found.nlink() > 0).then(|| found.size());
        }
        let size = match size {
            Some(size) => size,
            None => {
                self.open = None;
                let file = open(self.path())?;
                let size = file.metadata()?.size();
                self.open = Some(file);
                size
            }
        };
        // It was just looked at or opened.
        let file = self.open.as_mut().ok_or_else(|| io::Error::other("the file is not open"))?;
        Ok((file, size))
    }

    /// Whether the file that is open is the one at its path. Others may have moved it, and begun another.
    fn is_in_place(&self) -> io::Result<bool> {
        let Some(open) = &self.open else { return Ok(false) };
        let open = open.metadata()?;
        match fs::symlink_metadata(self.path()) {
            Ok(found) => Ok((found.dev(), found.ino()) == (open.dev(), open.ino())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Moves the full file and those before it up by one, and the oldest away. If others did that, only lets go of it.
    fn rotate(&mut self) -> io::Result<()> {
        if !self.is_in_place()? {
            self.open = None;
            return Ok(());
        }
        let keep = self.settings.keep;
        let moved = |from: &Path, to: &Path| match fs::rename(from, to) {
            // There are fewer than may be.
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(error) => {
                Err(io::Error::new(error.kind(), format!("cannot rename it to `{}`: {error}", to.display())))
            }
            Ok(()) => Ok(()),
        };
        for number in (1..keep).rev() {
            moved(&self.numbered(number), &self.numbered(number + 1))?;
        }
        match keep {
            0 => fs::remove_file(self.path())?,
            _ => moved(self.path(), &self.numbered(1))?,
        }
        self.open = None;
        Ok(())
    }
}

impl Sink for File {
    fn name(&self) -> String {
        format!("`{}`", self.path().display())
    }

    fn write(&mut self, record: &EventRecord) -> io::Result<()> {
        let line = self.line(record)?;
        let room = match self.settings.max_bytes {
            0 => u64::MAX,
            max => max.saturating_sub(line.len() as u64),
        };
        let (mut file, mut size) = self.current()?;
        // A line that is longer than a file may be gets one for itself. What others began may be full as well.
        for _ in 0..2 {
            if size <= room || size == 0 {
                break;
            }
            self.rotate()?;
            (file, size) = self.current()?;
        }
        append(file, size, &line)
    }

    fn open(&mut self) -> io::Result<()> {
        self.open = None;
        self.current().map(drop)
    }
}

/// Opens the file to append to, and makes it and its folder where they are missing.
fn open(path: &Path) -> io::Result<fs::File> {
    let mut options = OpenOptions::new();
    options.read(true).append(true).create(true).mode(FILE_MODE);
    // Not through a link at its end, and without waiting for somebody who reads, should it be a pipe.
    options.custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK);
    let opened = match options.open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            if let Some(folder) = path.parent() {
                make_folder(folder)?;
            }
            options.open(path)
        }
        opened => opened,
    };
    let mut file = match opened {
        Err(error) if error.raw_os_error() == Some(libc::ELOOP) => {
            return Err(io::Error::other("it is a symbolic link, and those are not followed"));
        }
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            let hint =
                "see who may write there; a daemon that was started without that folder has to be restarted";
            return Err(io::Error::new(error.kind(), format!("{error}\nhint: {hint}")));
        }
        opened => opened?,
    };
    let found = file.metadata()?;
    if !found.is_file() {
        return Err(io::Error::other("it is not a regular file"));
    }
    end_last_line(&mut file, found.size())?;
    Ok(file)
}

/// Makes the folder of a log.
pub(super) fn make_folder(folder: &Path) -> io::Result<()> {
    match DirBuilder::new().mode(FOLDER_MODE).create(folder) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
            let text = format!("its folder cannot be made: {error}\nhint: make `{}`", folder.display());
            Err(io::Error::new(error.kind(), text))
        }
        _ => Ok(()),
    }
}

/// Ends the last line if it has no end: a crash of the machine left it so.
fn end_last_line(file: &mut fs::File, size: u64) -> io::Result<()> {
    let mut last = [b'\n'];
    if size > 0 {
        file.seek(SeekFrom::End(-1))?;
        file.read_exact(&mut last)?;
    }
    if last == [b'\n'] { Ok(()) } else { file.write_all(b"\n") }
}

/// Writes the line, all of it or nothing: what found room on a disk that became full is taken back.
fn append(file: &mut fs::File, size: u64, line: &[u8]) -> io::Result<()> {
    let Err(error) = file.write_all(line) else { return Ok(()) };
    let found = file.metadata()?.size();
    if found > size && found < size + line.len() as u64 {
        file.set_len(size)?;
    }
    Err(error)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt as _, symlink};

    use super::super::tests::record;
    use super::*;

    fn settings(path: &Path, format: LogFormat, max_bytes: u64, keep: u32) -> LogFile {
        LogFile { path: path.to_owned(), format, max_bytes, keep }
    }

    fn sources(text: &str) -> Vec<String> {
        let source = |line: &str| serde_json::from_str::<EventRecord>(line).unwrap().ban.source;
        text.lines().map(source).collect()
    }

    fn read(path: &Path) -> String {
        fs::read_to_string(path).unwrap()
    }

    #[test]
    fn the_file_and_its_folder_are_made_for_their_owner_and_group() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log/events");
        let mut sink = File::new(settings(&path, LogFormat::Human, 0, 0));
        sink.open().unwrap();
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!((mode(&path) & !FILE_MODE, mode(path.parent().unwrap()) & !FOLDER_MODE), (0, 0));
        sink.write(&record("ban", "192.0.2.1")).unwrap();
        assert_eq!(read(&path), format!("{}\n", record("ban", "192.0.2.1").dated_line()));
        let too_deep = folder.path().join("not/there/events");
        let error = File::new(settings(&too_deep, LogFormat::Human, 0, 0)).open().unwrap_err().to_string();
        assert!(error.contains("\nhint: make `"), "{error}");
    }

    #[test]
    fn only_a_regular_file_is_written_to() {
        let folder = tempfile::tempdir().unwrap();
        let (path, target) = (folder.path().join("events"), folder.path().join("target"));
        symlink(&target, &path).unwrap();
        let mut sink = File::new(settings(&path, LogFormat::Human, 0, 0));
        let error = sink.write(&record("ban", "192.0.2.1")).unwrap_err();
        assert!(error.to_string().contains("symbolic link"), "{error}");
        assert!(!target.exists());
        fs::remove_file(&path).unwrap();
        nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).unwrap();
        let error = sink.write(&record("ban", "192.0.2.1")).unwrap_err();
        assert!(error.to_string().contains("regular file"), "{error}");
        fs::remove_file(&path).unwrap();
        sink.write(&record("ban", "192.0.2.1")).unwrap();
    }

    #[test]
    fn a_full_file_makes_room_and_no_line_is_lost_or_cut() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("events");
        let (all, max) = (100_u64, 1_000);
        let mut sink = File::new(settings(&path, LogFormat::Json, max, 1_000));
        for n in 0..all {
            sink.write(&record("ban", &format!("192.0.2.{n}"))).unwrap();
        }
        let mut text = String::new();
        for number in (1..all).rev() {
            let numbered = sink.numbered(u32::try_from(number).unwrap());
            if numbered.exists() {
                assert!(fs::metadata(&numbered).unwrap().len() <= max);
                text += &read(&numbered);
            }
        }
        text += &read(&path);
        let expected: Vec<_> = (0..all).map(|n| format!("192.0.2.{n}")).collect();
        assert_eq!(sources(&text), expected);
        assert!(sink.numbered(10).exists());
    }

    #[test]
    fn at_most_so_many_full_files_stay() {
        let folder = tempfile::tempdir().unwrap();
        for (keep, left) in [(0, vec!["192.0.2.5"]), (2, vec!["192.0.2.3", "192.0.2.4", "192.0.2.5"])] {
            let path = folder.path().join(format!("keep-{keep}"));
            // Not even one line fits: each has a file for itself.
            let mut sink = File::new(settings(&path, LogFormat::Json, 1, keep));
            for n in 0..6 {
                sink.write(&record("ban", &format!("192.0.2.{n}"))).unwrap();
            }
            let mut text: String = (1..=keep).rev().map(|number| read(&sink.numbered(number))).collect();
            text += &read(&path);
            assert_eq!(sources(&text), left);
            assert!(!sink.numbered(keep + 1).exists());
        }
    }

    #[test]
    fn a_file_that_is_moved_removed_or_emptied_is_found_again() {
        let folder = tempfile::tempdir().unwrap();
        let (path, old) = (folder.path().join("log/events"), folder.path().join("old"));
        let mut sink = File::new(settings(&path, LogFormat::Json, 0, 0));
        let write = |sink: &mut File, n| sink.write(&record("ban", &format!("192.0.2.{n}"))).unwrap();
        write(&mut sink, 1);
        // What logrotate does: until it is told, the file under its new name is written to.
        fs::rename(&path, &old).unwrap();
        write(&mut sink, 2);
        sink.open().unwrap();
        assert!(path.exists(), "made at once");
        write(&mut sink, 3);
        assert_eq!(sources(&read(&old)), ["192.0.2.1", "192.0.2.2"]);
        assert_eq!(sources(&read(&path)), ["192.0.2.3"]);
        fs::File::create(&path).unwrap();
        write(&mut sink, 4);
        assert_eq!(sources(&read(&path)), ["192.0.2.4"]);
        fs::remove_dir_all(path.parent().unwrap()).unwrap();
        write(&mut sink, 5);
        assert_eq!(sources(&read(&path)), ["192.0.2.5"]);
    }

    #[test]
    fn what_others_have_moved_away_is_not_rotated_once_more() {
        let folder = tempfile::tempdir().unwrap();
        for (keep, others) in [(0, None), (2, None), (2, Some("a short one\n")), (2, Some(FULL))] {
            let path = folder.path().join(format!("{keep}-{}", others.map_or(0, str::len)));
            let mut sink = File::new(settings(&path, LogFormat::Human, 40, keep));
            fs::write(&path, FULL).unwrap();
            sink.open().unwrap();
            let moved = folder.path().join("moved");
            fs::rename(&path, &moved).unwrap();
            if let Some(text) = others {
                fs::write(&path, text).unwrap();
            }
            sink.write(&record("ban", "192.0.2.1")).unwrap();
            let line = format!("{}\n", record("ban", "192.0.2.1").dated_line());
            assert_eq!((read(&moved), read(&path)), (FULL.to_owned(), line));
            // What others began was full, and is kept as it should be.
            let kept = fs::read_to_string(sink.numbered(1)).ok();
            assert_eq!(kept.as_deref(), others);
        }
    }

    /// A line that fills a file of 40 bytes.
    const FULL: &str = "some line that is as long as the file may be\n";

    #[test]
    fn a_line_without_an_end_gets_one_first() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("events");
        fs::write(&path, "{\"version\":1,\"ki").unwrap();
        let mut sink = File::new(settings(&path, LogFormat::Json, 0, 0));
        sink.write(&record("ban", "192.0.2.1")).unwrap();
        sink.open().unwrap();
        sink.write(&record("ban", "192.0.2.2")).unwrap();
        let text = read(&path);
        let (torn, rest) = text.split_once('\n').unwrap();
        assert_eq!(torn, "{\"version\":1,\"ki");
        assert_eq!(sources(rest), ["192.0.2.1", "192.0.2.2"]);
    }
}
