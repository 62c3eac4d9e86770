//! Builds the kernel programs and leaves them in `OUT_DIR` for the library to embed.

use object::build::elf::{Builder, SectionData};
use object::elf;

include!("../dosguard-ebpf/inner_build.rs");

const OBJECTS: [&str; 3] = ["dosguard-xdp", "dosguard-challenges", "dosguard-connections"];

fn main() -> anyhow::Result<()> {
    println!("cargo:rerun-if-changed={}", concat!(env!("CARGO_MANIFEST_DIR"), "/../dosguard-common"));
    build(&[("dosguard-ebpf", concat!(env!("CARGO_MANIFEST_DIR"), "/../dosguard-ebpf"), &[])], &OBJECTS)?;
    let out_dir = env::var_os("OUT_DIR").map(PathBuf::from).ok_or_else(|| anyhow!("`OUT_DIR` is not set"))?;
    OBJECTS.iter().try_for_each(|object| strip(&out_dir.join(object)))
}

/// Takes out what only debuggers read: most of an object, and each process of dosguard would have it in memory. BTF stays,
/// with the lines of the source that the verifier shows.
fn strip(path: &Path) -> anyhow::Result<()> {
    let bytes = fs::read(path).with_context(|| format!("cannot read `{}`", path.display()))?;
    // What stands in its place where nothing is built.
    if bytes.is_empty() {
        return Ok(());
    }
    let mut object = Builder::read(&*bytes).with_context(|| format!("cannot read `{}`", path.display()))?;
    for section in &mut object.sections {
        let name = &section.name;
        section.delete |= name.starts_with(b".debug_") || name.starts_with(b".rel.debug_");
    }
    // Symbols of those sections go with them.
    object.delete_orphans();
    // The linker keeps the names of sections among those of symbols, which the library does not.
    let names = object.sections.add();
    names.name = b".shstrtab".as_slice().into();
    names.sh_type = elf::SHT_STRTAB;
    names.sh_addralign = 1;
    names.data = SectionData::SectionString;
    let mut stripped = Vec::new();
    object.write(&mut stripped).with_context(|| format!("cannot make `{}` smaller", path.display()))?;
    fs::write(path, stripped).with_context(|| format!("cannot write `{}`", path.display()))
}
