//! Opening what holds the capture.

use std::fs::File;
use std::io::{self, Cursor, ErrorKind, IsTerminal as _, Read};
use std::path::{Path, PathBuf};

use flate2::read::MultiGzDecoder;
use thiserror::Error;

const GZIP: [u8; 2] = [0x1f, 0x8b];

/// Why there is nothing to read.
#[derive(Debug, Error)]
pub enum InputError {
    /// There is no such file.
    #[error("there is no file `{path}`\nhint: a path from here, one that begins with `/`, or `-` for stdin", path = path.display())]
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
    /// It could not be opened or read.
    #[error("cannot read `{path}`", path = path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What the system said; not part of the message.
        source: io::Error,
    },
    /// Stdin is a terminal.
    #[error("stdin is a terminal\nhint: `tcpdump -w - … | dosguard replay -`")]
    Terminal,
}

/// An input, and how long it is if that is known.
pub struct Input {
    /// The bytes, perhaps compressed.
    pub bytes: Box<dyn Read>,
    /// How many there are.
    pub length: Option<u64>,
}

/// Opens a file, or stdin if the path is `-`.
///
/// # Errors
///
/// There is no such file, it is a directory or cannot be read, or stdin is a terminal.
pub fn open(path: &Path) -> Result<Input, InputError> {
    if path == Path::new("-") {
        let stdin = io::stdin();
        if stdin.is_terminal() {
            return Err(InputError::Terminal);
        }
        return Ok(Input { bytes: Box::new(stdin), length: None });
    }
    let path = path.to_owned();
    let file = match File::open(&path) {
        Ok(file) => file,
        Err(error) if error.kind() == ErrorKind::NotFound => return Err(InputError::Missing { path }),
        Err(source) => return Err(InputError::Unreadable { path, source }),
    };
    let metadata = match file.metadata() {
        Ok(metadata) if metadata.is_dir() => return Err(InputError::Directory { path }),
        Ok(metadata) => metadata,
        Err(source) => return Err(InputError::Unreadable { path, source }),
    };
    let length = metadata.is_file().then_some(metadata.len());
    Ok(Input { bytes: Box::new(file), length })
}

/// The bytes themselves, or what they are when taken apart if they are compressed with gzip.
///
/// # Errors
///
/// The first bytes cannot be read.
pub fn decompressed(mut bytes: impl Read + 'static) -> io::Result<Box<dyn Read>> {
    let mut first = Vec::new();
    bytes.by_ref().take(GZIP.len() as u64).read_to_end(&mut first)?;
    let compressed = first == GZIP;
    let all = Cursor::new(first).chain(bytes);
    Ok(if compressed { Box::new(MultiGzDecoder::new(all)) } else { Box::new(all) })
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use flate2::{Compression, write::GzEncoder};

    use super::*;

    fn read(bytes: &[u8]) -> Vec<u8> {
        let mut all = Vec::new();
        decompressed(Cursor::new(bytes.to_vec())).unwrap().read_to_end(&mut all).unwrap();
        all
    }

    #[test]
    fn gzip_is_taken_apart_and_all_else_stays() {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
        encoder.write_all(b"a capture").unwrap();
        let once = encoder.finish().unwrap();
        assert_eq!(read(&once), b"a capture");
        assert_eq!(
            read(&[once.clone(), once].concat()),
            b"a capturea capture",
            "as `cat a.gz b.gz` makes it"
        );
        for plain in [&b""[..], b"\x1f", b"plain"] {
            assert_eq!(read(plain), plain);
        }
    }

    #[test]
    fn what_cannot_be_read_is_named() {
        let folder = tempfile::tempdir().unwrap();
        assert!(matches!(open(folder.path()), Err(InputError::Directory { .. })));
        assert!(matches!(open(&folder.path().join("none")), Err(InputError::Missing { .. })));
    }
}
