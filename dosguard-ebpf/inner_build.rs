// How the eBPF crates are built from within another crate's build script. Each such script includes this file.

use std::path::{Path, PathBuf};
use std::{env, fs, io};

use anyhow::{Context as _, anyhow};

/// The compiler that `rust-toolchain.toml` pins.
const TOOLCHAIN: &str = "1.95.0";

/// Where Debian's web toolchain is, which has a `core` for BPF without `rust-src`.
const DEBIAN_BIN: &str = "/usr/bin";

/// Builds the packages and leaves `objects` in `OUT_DIR`.
///
/// With `AYA_BUILD_SKIP=1` empty stubs are left instead, so that checks and lints need no BPF linker; loading a stub is
/// an error that says so. With `DOSGUARD_EBPF_TOOLCHAIN=debian-web`, which `cargo xtask` sets where `rust-src` cannot
/// be had, Debian's compiler is used.
fn build(packages: &[(&str, &str, &'static [&'static str])], objects: &[&str]) -> anyhow::Result<()> {
    println!("cargo:rerun-if-env-changed=AYA_BUILD_SKIP");
    println!("cargo:rerun-if-env-changed=DOSGUARD_EBPF_TOOLCHAIN");
    let out_dir = env::var_os("OUT_DIR").map(PathBuf::from).ok_or_else(|| anyhow!("`OUT_DIR` is not set"))?;
    let skip = env::var("AYA_BUILD_SKIP").is_ok_and(|skip| skip == "1" || skip.eq_ignore_ascii_case("true"));
    if skip {
        for object in objects {
            let path = out_dir.join(object);
            fs::write(&path, []).with_context(|| format!("cannot write `{}`", path.display()))?;
        }
        return Ok(());
    }
    match env::var("DOSGUARD_EBPF_TOOLCHAIN").as_deref() {
        Ok("debian-web") => {
            // `core` is there already; the crates that ask for unstable features are named one by one.
            set_env("RUSTC_BOOTSTRAP", "aya_ebpf,aya_log_ebpf,dosguard_ebpf");
            set_env("PATH", path_without_rustup(&out_dir)?);
        }
        Ok(other) => {
            return Err(anyhow!("`DOSGUARD_EBPF_TOOLCHAIN` is `{other}`\nhint: unset it, or set it to `debian-web`"));
        }
        // `-Z build-std=core` on a stable compiler, for the inner build alone.
        Err(_) => set_env("RUSTC_BOOTSTRAP", "1"),
    }
    // Not a line for each crate, which cargo would show as warnings.
    set_env("CARGO_TERM_QUIET", "true");
    let packages = packages.iter().map(|&(name, root_dir, features)| {
        println!("cargo:rerun-if-changed={root_dir}");
        aya_build::Package { name, root_dir, features, ..Default::default() }
    });
    aya_build::build_ebpf(packages, aya_build::Toolchain::Custom(TOOLCHAIN))
}

/// A search path on which there is no rustup, for which the builder would look first, but Debian's compiler and the
/// BPF linker.
fn path_without_rustup(out_dir: &Path) -> anyhow::Result<String> {
    let tools = out_dir.join("tools");
    fs::create_dir_all(&tools).with_context(|| format!("cannot create `{}`", tools.display()))?;
    let path = env::var_os("PATH").unwrap_or_default();
    let linker = env::split_paths(&path).map(|folder| folder.join("bpf-linker")).find(|path| path.is_file());
    let linker = linker.ok_or_else(|| anyhow!("`bpf-linker` is not on the search path\nhint: `cargo xtask setup`"))?;
    match std::os::unix::fs::symlink(&linker, tools.join("bpf-linker")) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
            return Err(error).with_context(|| format!("cannot link to `{}`", linker.display()));
        }
        _ => {}
    }
    Ok(format!("{}:{DEBIAN_BIN}:/bin", tools.display()))
}

#[expect(unsafe_code, reason = "setting an environment variable is unsafe in edition 2024")]
fn set_env(name: &str, value: impl AsRef<std::ffi::OsStr>) {
    // SAFETY: a build script's main thread is its only one until the inner build starts.
    unsafe { env::set_var(name, value) };
}
