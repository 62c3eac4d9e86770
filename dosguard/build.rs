//! Builds the XDP program and leaves it in `OUT_DIR` for the library to embed.
//!
//! With `AYA_BUILD_SKIP=1` an empty stub is left instead, so that checks and lints need no BPF linker; loading the
//! stub is an error that says so.

use std::path::PathBuf;
use std::{env, fs};

use anyhow::{Context as _, anyhow};

const OBJECT: &str = "dosguard-xdp";

fn main() -> anyhow::Result<()> {
    let out_dir = env::var_os("OUT_DIR").map(PathBuf::from).ok_or_else(|| anyhow!("`OUT_DIR` is not set"))?;
    let skip = env::var("AYA_BUILD_SKIP").is_ok_and(|skip| skip == "1" || skip.eq_ignore_ascii_case("true"));
    if skip {
        println!("cargo:rerun-if-env-changed=AYA_BUILD_SKIP");
        return fs::write(out_dir.join(OBJECT), []).context("cannot write the stub object");
    }
    prepare_inner_build();
    let root_dir = concat!(env!("CARGO_MANIFEST_DIR"), "/../dosguard-ebpf");
    println!("cargo:rerun-if-changed={}", concat!(env!("CARGO_MANIFEST_DIR"), "/../dosguard-common"));
    aya_build::build_ebpf(
        [aya_build::Package { name: "dosguard-ebpf", root_dir, ..Default::default() }],
        aya_build::Toolchain::Custom("1.95.0"),
    )
}

/// `-Z build-std=core` on a stable toolchain, for the inner build alone, and without a line for each crate.
#[expect(unsafe_code, reason = "setting an environment variable is unsafe in edition 2024")]
fn prepare_inner_build() {
    // SAFETY: a build script's main thread is its only one here.
    unsafe {
        env::set_var("RUSTC_BOOTSTRAP", "1");
        env::set_var("CARGO_TERM_QUIET", "true");
    }
}
