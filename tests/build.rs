//! Builds the eBPF objects that the lab and the tests load: the flood generator, and dosguard's own program with the
//! clock that tests set and followed by a drop.

include!("../dosguard-ebpf/inner_build.rs");

fn main() -> anyhow::Result<()> {
    // The programs' own folders are watched too; the code that they share with userspace is not in them.
    println!("cargo:rerun-if-changed={}", concat!(env!("CARGO_MANIFEST_DIR"), "/../dosguard-common"));
    build(
        &[
            ("dosguard-flood-ebpf", concat!(env!("CARGO_MANIFEST_DIR"), "/flood-ebpf"), &[]),
            ("dosguard-ebpf", concat!(env!("CARGO_MANIFEST_DIR"), "/../dosguard-ebpf"), &["lab"]),
        ],
        &["dosguard-flood", "dosguard-xdp-test-clock", "dosguard-xdp-followed"],
    )
}
