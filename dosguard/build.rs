//! Builds the kernel programs and leaves them in `OUT_DIR` for the library to embed.

include!("../dosguard-ebpf/inner_build.rs");

fn main() -> anyhow::Result<()> {
    println!("cargo:rerun-if-changed={}", concat!(env!("CARGO_MANIFEST_DIR"), "/../dosguard-common"));
    build(
        &[("dosguard-ebpf", concat!(env!("CARGO_MANIFEST_DIR"), "/../dosguard-ebpf"), &[])],
        &["dosguard-xdp", "dosguard-challenges", "dosguard-connections"],
    )
}
