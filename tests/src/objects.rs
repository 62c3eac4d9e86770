//! The eBPF objects that this crate's build script made.

use anyhow::{Result, ensure};

/// The flood generator.
pub static FLOOD_OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/dosguard-flood"));

/// dosguard's program with a clock that tests set.
pub static TEST_CLOCK_OBJECT: &[u8] =
    aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/dosguard-xdp-test-clock"));

/// dosguard's program followed by a drop.
pub static FOLLOWED_OBJECT: &[u8] =
    aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/dosguard-xdp-followed"));

/// The object, unless it is the stub of a build that skipped the eBPF programs.
pub fn real(object: &'static [u8]) -> Result<&'static [u8]> {
    ensure!(
        !object.is_empty(),
        "this build has no eBPF programs because `AYA_BUILD_SKIP` was set\nhint: build again without it"
    );
    Ok(object)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stub_says_what_to_do() {
        let error = real(&[]).unwrap_err().to_string();
        assert!(error.contains("`AYA_BUILD_SKIP`") && error.contains("hint: "), "{error}");
        assert!(real(b"\x7fELF").is_ok());
    }
}
