//! What userspace tells the generator about the frame it is to rewrite.
//!
//! The generator reads no header: userspace says where the fields are and what everything else in them sums to. What comes before
//! the payload is written anew in each frame, since its page may be one that the receiver has changed, or sent back as another
//! frame.

#![no_std]

/// The name of the array map that holds one [`FloodConfig`], as its words.
pub const CONFIG_MAP: &str = "CONFIG";
/// The name of the array map that holds the frame's beginning, as [`Template`].
pub const TEMPLATE_MAP: &str = "TEMPLATE";
/// The name of the per-CPU array map that counts frames handed to `XDP_TX`, one `u64` at index 0.
pub const SENT_MAP: &str = "SENT";
/// The name of the XDP program.
pub const PROGRAM: &str = "dosguard_flood";
/// The name of the XDP program that lets every frame pass.
pub const PASS_PROGRAM: &str = "dosguard_pass";
/// The name of the XDP program that drops every frame.
pub const DROP_PROGRAM: &str = "dosguard_drop";
/// The name of the XDP program that sends every frame back to where it came from.
pub const BOUNCE_PROGRAM: &str = "dosguard_bounce";

/// No field may start beyond this many bytes into the frame.
pub const MAX_OFFSET: u32 = 250;

/// How many 16-bit words of a frame are written anew.
pub const TEMPLATE_WORDS: usize = 64;

/// The first 16-bit words of the frame, in the order of their bytes.
pub type Template = [u16; TEMPLATE_WORDS];

/// Which fields the generator rewrites in each frame, and how.
///
/// Offsets are in bytes from the start of the frame, 0 meaning that there is no such field. Sums are one's complement
/// sums of big-endian 16-bit words, folded to 16 bits, over everything that the checksum covers except the four source
/// bytes, the source port and the checksum itself.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FloodConfig {
    /// Where the last four bytes of the source address are.
    pub source_offset: u32,
    /// The last four bytes of the first source, as a number.
    pub source_base: u32,
    /// How many consecutive sources there are, at least one.
    pub source_count: u32,
    /// 0: the sources take turns; otherwise each frame draws one.
    pub source_random: u32,
    /// Where the source port is.
    pub port_offset: u32,
    /// The first source port.
    pub port_base: u32,
    /// How many consecutive source ports take turns, at least one.
    pub port_count: u32,
    /// Where the IPv4 header checksum is.
    pub ip_checksum_offset: u32,
    /// The sum of the rest of the IPv4 header.
    pub ip_sum: u32,
    /// Where the TCP checksum is.
    pub tcp_checksum_offset: u32,
    /// The sum of the rest of the segment and its pseudo-header.
    pub tcp_sum: u32,
    /// How many words of the template are meant.
    pub template_words: u32,
}

/// How many words a [`FloodConfig`] has.
pub const CONFIG_WORDS: usize = size_of::<FloodConfig>() / size_of::<u32>();

impl FloodConfig {
    /// The configuration as the words of the map's value.
    #[must_use]
    pub const fn to_words(self) -> [u32; CONFIG_WORDS] {
        [
            self.source_offset,
            self.source_base,
            self.source_count,
            self.source_random,
            self.port_offset,
            self.port_base,
            self.port_count,
            self.ip_checksum_offset,
            self.ip_sum,
            self.tcp_checksum_offset,
            self.tcp_sum,
            self.template_words,
        ]
    }
}
