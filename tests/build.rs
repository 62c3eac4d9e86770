//! Builds the eBPF objects that the lab and the tests load: the flood generator, and dosguard's own program with the
//! clock that tests set.

#![expect(unsafe_code, reason = "the inner build needs a variable in this process's environment")]

use std::{env, fs, path::Path};

use anyhow::Context as _;
use aya_build::{Package, Toolchain};

/// The compiler of the inner build: the one `rust-toolchain.toml` pins.
const TOOLCHAIN: &str = "1.95.0";

/// The objects, as the library includes them.
const OBJECTS: [&str; 2] = ["dosguard-flood", "dosguard-xdp-test-clock"];

fn main() -> anyhow::Result<()> {
    println!("cargo:rerun-if-env-changed=AYA_BUILD_SKIP");
    // The program's own folder is watched by `build_ebpf`; the code that it shares with userspace is not.
    println!("cargo:rerun-if-changed=../dosguard-common");
    let skip = env::var("AYA_BUILD_SKIP").is_ok_and(|skip| skip == "1" || skip.eq_ignore_ascii_case("true"));
    if skip {
        return write_stubs();
    }
    // SAFETY: a build script has one thread until `build_ebpf` starts its own, so nobody reads the environment meanwhile.
    // It lets the pinned stable compiler use `-Z build-std=core`, in the inner build alone.
    unsafe { env::set_var("RUSTC_BOOTSTRAP", "1") };
    aya_build::build_ebpf(
        [
            Package { name: "dosguard-flood-ebpf", root_dir: "flood-ebpf", ..Package::default() },
            Package {
                name: "dosguard-ebpf",
                root_dir: "../dosguard-ebpf",
                features: &["test-clock"],
                ..Package::default()
            },
        ],
        Toolchain::Custom(TOOLCHAIN),
    )
}

/// An empty file for each object, so that the library compiles; loading one says what is missing.
fn write_stubs() -> anyhow::Result<()> {
    let out = env::var_os("OUT_DIR").context("`OUT_DIR` is not set")?;
    for object in OBJECTS {
        let path = Path::new(&out).join(object);
        fs::write(&path, []).with_context(|| format!("cannot write `{}`", path.display()))?;
    }
    Ok(())
}
