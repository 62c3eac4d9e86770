//! A finished frame and how it was made.

use std::{fmt, ops::Deref};

/// The bytes of a frame, with the calls that made them for a failing test to print.
#[derive(Clone, PartialEq, Eq)]
pub struct Frame {
    pub(super) bytes: Vec<u8>,
    pub(super) chain: String,
}

impl Frame {
    /// From bytes, and how they were made.
    #[must_use]
    pub const fn from_parts(bytes: Vec<u8>, chain: String) -> Self {
        Self { bytes, chain }
    }

    /// The builder's calls, as they were written.
    #[must_use]
    pub fn chain(&self) -> &str {
        &self.chain
    }

    /// The bytes alone.
    #[must_use]
    pub fn into_bytes(self) -> Vec<u8> {
        self.bytes
    }
}

impl Deref for Frame {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.bytes
    }
}

impl AsRef<[u8]> for Frame {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl fmt::Debug for Frame {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({} bytes)", self.chain, self.bytes.len())?;
        for (index, row) in self.bytes.chunks(16).enumerate() {
            write!(f, "\n  {:04x} ", index * 16)?;
            for byte in row {
                write!(f, " {byte:02x}")?;
            }
        }
        Ok(())
    }
}
