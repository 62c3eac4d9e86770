//! What was read of the input and is not used yet.

use std::io::{self, ErrorKind, Read};

/// How much is read at once, in bytes: what stays in a processor's cache until it is used.
const CHUNK: usize = 1 << 18;

/// Input, with a stretch of it in memory.
pub(super) struct Buffer<R> {
    input: R,
    bytes: Vec<u8>,
    start: usize,
    end: usize,
    position: u64,
}

impl<R: Read> Buffer<R> {
    pub(super) fn new(input: R) -> Self {
        Self { input, bytes: vec![0; CHUNK], start: 0, end: 0, position: 0 }
    }

    /// What is there without reading.
    pub(super) fn available(&self) -> &[u8] {
        self.bytes.get(self.start..self.end).unwrap_or_default()
    }

    /// Reads until `wanted` bytes are there, or fewer at the end of the input. Room is made for so many: they must have
    /// been checked.
    pub(super) fn fill(&mut self, wanted: usize) -> io::Result<&[u8]> {
        if self.available().len() < wanted {
            self.bytes.copy_within(self.start..self.end, 0);
            (self.start, self.end) = (0, self.end - self.start);
            if self.bytes.len() < wanted {
                self.bytes.resize(wanted.next_multiple_of(CHUNK), 0);
            }
            while self.end < wanted {
                match self.input.read(self.bytes.get_mut(self.end..).unwrap_or_default()) {
                    Ok(0) => break,
                    Ok(count) => self.end += count,
                    Err(error) if error.kind() == ErrorKind::Interrupted => {}
                    Err(error) => return Err(error),
                }
            }
        }
        Ok(self.available())
    }

    /// Goes on behind the next `count` bytes, which are available.
    pub(super) fn consume(&mut self, count: usize) {
        let count = count.min(self.end - self.start);
        self.start += count;
        self.position += count as u64;
    }

    /// Goes on behind the next `count` bytes, and says whether there were so many.
    pub(super) fn skip(&mut self, mut count: u64) -> io::Result<bool> {
        loop {
            let here = usize::try_from(count).unwrap_or(usize::MAX).min(self.available().len());
            self.consume(here);
            count -= here as u64;
            if count == 0 {
                return Ok(true);
            }
            if self.fill(1)?.is_empty() {
                return Ok(false);
            }
        }
    }

    /// How many bytes lie behind.
    pub(super) fn position(&self) -> u64 {
        self.position
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Gives one byte at a time, as a slow pipe may.
    struct Slow<'a>(&'a [u8]);

    impl Read for Slow<'_> {
        fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
            let some = into.len().min(1);
            self.0.read(into.get_mut(..some).unwrap_or_default())
        }
    }

    #[test]
    fn bytes_come_in_order_however_they_arrive() {
        let mut buffer = Buffer::new(Slow(b"abcdefgh"));
        assert_eq!(buffer.fill(3).unwrap(), b"abc");
        buffer.consume(2);
        assert_eq!(buffer.fill(2).unwrap(), b"cd");
        assert!(buffer.skip(3).unwrap());
        assert_eq!(buffer.position(), 5);
        assert_eq!(buffer.fill(9).unwrap(), b"fgh", "there are no more");
        assert!(!buffer.skip(4).unwrap());
        assert_eq!((buffer.position(), buffer.available()), (8, &b""[..]));
    }

    #[test]
    fn a_stretch_longer_than_a_chunk_fits() {
        let input: Vec<u8> = (0..251).cycle().take(3 * CHUNK).collect();
        let mut buffer = Buffer::new(input.as_slice());
        buffer.fill(10).unwrap();
        buffer.consume(7);
        assert_eq!(buffer.fill(2 * CHUNK).unwrap().get(..2 * CHUNK), input.get(7..7 + 2 * CHUNK));
    }
}
