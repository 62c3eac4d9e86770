//! Short texts in maps and events.

use bytemuck::{Pod, Zeroable};

/// Longest text of a label, in bytes.
pub const MAX_LABEL: usize = 24;

/// A short text: a rule's name, or an administrator's note. Zeroes fill it up.
///
/// Kept in whole words, which the kernel program copies as such: bytes would each take a word of its small stack.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
#[repr(transparent)]
pub struct Label([u64; MAX_LABEL / 8]);

impl Label {
    /// No text.
    pub const EMPTY: Self = Self([0; MAX_LABEL / 8]);

    /// From a text, which is cut at [`MAX_LABEL`] bytes and at a zero.
    pub fn new(text: &str) -> Self {
        let mut length = text.find('\0').unwrap_or(text.len()).min(MAX_LABEL);
        while !text.is_char_boundary(length) {
            length -= 1;
        }
        let mut label = Self::EMPTY;
        bytemuck::bytes_of_mut(&mut label)[..length].copy_from_slice(&text.as_bytes()[..length]);
        label
    }

    /// The text; empty if the bytes are none.
    pub fn text(&self) -> &str {
        let bytes = bytemuck::bytes_of(self);
        let length = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
        core::str::from_utf8(&bytes[..length]).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_come_back_and_long_ones_are_cut_at_a_character() {
        for text in ["", "smtp", "twenty-four bytes exactly"] {
            assert_eq!(Label::new(text).text(), &text[..text.len().min(MAX_LABEL)]);
        }
        assert_eq!(Label::new("twenty-three bytes, and\u{e4}").text(), "twenty-three bytes, and");
        assert_eq!(Label::new("a\0b").text(), "a");
        assert_eq!(Label([u64::MAX; 3]).text(), "", "no text");
    }
}
