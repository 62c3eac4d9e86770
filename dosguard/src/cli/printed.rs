//! Standard output, without styles where it is no terminal that shows them.

use std::io::{self, Stdout, Write};

use anstream::AutoStream;

/// Standard output. Styles are looked for byte by byte, which takes longer than a million lines take to be made: text that has
/// none goes by that.
pub(super) struct Printed {
    styled: AutoStream<Stdout>,
    /// Nothing came yet that could be a part of a style.
    is_plain: bool,
}

impl Printed {
    pub(super) fn new() -> Self {
        Self { styled: AutoStream::auto(io::stdout()), is_plain: true }
    }
}

impl Write for Printed {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        // Without an early end, which would have them looked at one by one.
        let is_plain = |plain, byte: &u8| plain & matches!(byte, b' '..=b'~' | b'\n' | b'\t');
        self.is_plain = self.is_plain && bytes.iter().fold(true, is_plain);
        if self.is_plain {
            // The same standard output, and the same buffer.
            let mut stdout: &Stdout = self.styled.as_inner();
            return stdout.write(bytes);
        }
        self.styled.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.styled.flush()
    }
}
