//! The root file system of a virtual machine: busybox, the test programs and the libraries that they need.

use std::fs::{self, File};
use std::io::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail, ensure};

use super::store::Staging;
use crate::run;
use crate::workspace::{LAB_PACKAGE, Workspace};

/// What the names of the tests begin with that need nothing but a kernel.
const TESTS: &str = "program_";

/// What the kernel starts.
const INIT: &str = include_str!("guest.sh");

/// A test program: its name, and where cargo put it.
pub struct TestProgram {
    /// The name of its source file.
    pub name: String,
    path: PathBuf,
}

/// Builds the tests of the kernel program.
pub fn build_tests(workspace: &Workspace) -> Result<Vec<TestProgram>> {
    let mut command = workspace.cargo("test");
    command.args(["--release", "--package", LAB_PACKAGE, "--no-run", "--test", &format!("{TESTS}*")]);
    // First for a human reader, then once more for the paths, which costs nothing now.
    run::run(&mut command)?;
    let messages = run::capture(command.args(["--quiet", "--message-format=json"]))?;
    let tests = test_programs(&messages)?;
    ensure!(!tests.is_empty(), "`{LAB_PACKAGE}` has no test whose name begins with `{TESTS}`");
    Ok(tests)
}

/// The tests among what cargo says that it has built, one JSON object a line.
fn test_programs(messages: &str) -> Result<Vec<TestProgram>> {
    let mut tests = Vec::new();
    for line in messages.lines().filter(|line| line.starts_with('{')) {
        let message: serde_json::Value =
            serde_json::from_str(line).context("cargo's messages are not JSON")?;
        let target = &message["target"];
        let is_test = target["kind"].as_array().is_some_and(|kinds| kinds.iter().any(|kind| kind == "test"));
        if let (true, Some(name), Some(path)) =
            (is_test, target["name"].as_str(), message["executable"].as_str())
            && name.starts_with(TESTS)
        {
            tests.push(TestProgram { name: name.to_owned(), path: path.into() });
        }
    }
    Ok(tests)
}

/// Packs an initramfs into `dir` and returns its path.
///
/// With the program `cpio`: the kernel's documentation names it, and it costs no build time.
pub fn pack(dir: &Path, busybox: &Path, tests: &[TestProgram]) -> Result<PathBuf> {
    let staging = Staging::new(dir, "initramfs")?;
    let root = &staging.0;
    for folder in ["bin", "dev", "proc", "sys", "tests", "tmp"] {
        let path = root.join(folder);
        fs::create_dir(&path).with_context(|| format!("could not create `{}`", path.display()))?;
    }
    install(busybox, &root.join("bin/busybox"))?;
    let init = root.join("init");
    fs::write(&init, INIT).with_context(|| format!("could not write `{}`", init.display()))?;
    make_executable(&init)?;
    for test in tests {
        install(&test.path, &root.join("tests").join(&test.name))?;
        for library in libraries(&test.path)? {
            let inside = root.join(library.strip_prefix("/").unwrap_or(&library));
            if !inside.exists() {
                install(&library, &inside)?;
            }
        }
    }
    let archive = dir.join("initramfs");
    archive_folder(root, &archive)?;
    Ok(archive)
}

/// The shared libraries of a program, and the loader that brings them together.
fn libraries(program: &Path) -> Result<Vec<PathBuf>> {
    let output = run::capture(Command::new("ldd").arg(program))?;
    if let Some(missing) = output.lines().find(|line| line.contains("not found")) {
        bail!("`{}` lacks a library: {}", program.display(), missing.trim());
    }
    Ok(parse_ldd(&output))
}

/// `name => path (address)`, or just the path; the kernel's own library has none.
fn parse_ldd(output: &str) -> Vec<PathBuf> {
    let path = |line: &str| line.split_whitespace().find(|word| word.starts_with('/')).map(PathBuf::from);
    output.lines().filter_map(path).collect()
}

fn install(from: &Path, to: &Path) -> Result<()> {
    if let Some(dir) = to.parent() {
        fs::create_dir_all(dir).with_context(|| format!("could not create `{}`", dir.display()))?;
    }
    // This follows links, as it should: libraries are links to their versions.
    fs::copy(from, to).with_context(|| format!("could not copy `{}`", from.display()))?;
    make_executable(to)
}

fn make_executable(path: &Path) -> Result<()> {
    fs::set_permissions(path, fs::Permissions::from_mode(0o755))
        .with_context(|| format!("could not make `{}` executable", path.display()))
}

fn archive_folder(root: &Path, archive: &Path) -> Result<()> {
    let mut names = vec![".".to_owned()];
    list(root, Path::new("."), &mut names)?;
    let file = File::create(archive).with_context(|| format!("could not create `{}`", archive.display()))?;
    let mut command = Command::new("cpio");
    command.args(["--create", "--format=newc", "--owner=+0:+0", "--null", "--quiet"]).current_dir(root);
    let mut child = command.stdin(Stdio::piped()).stdout(file).spawn().context("could not start `cpio`")?;
    let written = match child.stdin.take() {
        Some(mut stdin) => names.iter().try_for_each(|name| write!(stdin, "{name}\0")),
        None => Ok(()),
    };
    let status = child.wait().context("could not wait for `cpio`")?;
    ensure!(status.success(), "`cpio` could not pack `{}`: {status}", root.display());
    written.context("`cpio` did not read the list of files")
}

/// Everything below `root`, directories before what is in them.
fn list(root: &Path, below: &Path, names: &mut Vec<String>) -> Result<()> {
    let dir = root.join(below);
    let entries = fs::read_dir(&dir).with_context(|| format!("could not list `{}`", dir.display()))?;
    for entry in entries {
        let entry = entry.with_context(|| format!("could not list `{}`", dir.display()))?;
        let name = below.join(entry.file_name());
        names.push(name.display().to_string());
        if entry.path().is_dir() {
            list(root, &name, names)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tests_are_found_among_cargos_messages() {
        let messages = r#"
{"reason":"compiler-artifact","target":{"kind":["lib"],"name":"dosguard"},"executable":null}
{"reason":"compiler-artifact","target":{"kind":["bin"],"name":"program_not"},"executable":"/t/demo"}
{"reason":"compiler-artifact","target":{"kind":["test"],"name":"lab_smoke"},"executable":"/t/lab_smoke-1"}
{"reason":"compiler-artifact","target":{"kind":["test"],"name":"program_cases"},"executable":"/t/program_cases-1"}
{"reason":"build-finished","success":true}
"#;
        let tests = test_programs(messages).unwrap();
        let [test] = tests.as_slice() else { panic!("{} tests", tests.len()) };
        assert_eq!((test.name.as_str(), test.path.to_str()), ("program_cases", Some("/t/program_cases-1")));
        assert!(test_programs("{").is_err());
    }

    #[test]
    fn the_loader_and_every_library_are_found() {
        let output = "\tlinux-vdso.so.1 (0x00007ffd)\n\tlibc.so.6 => /lib/x/libc.so.6 (0x00007f3e)\n\
                      \t/lib64/ld-linux-x86-64.so.2 (0x00007f3f)\n";
        assert_eq!(parse_ldd(output), ["/lib/x/libc.so.6", "/lib64/ld-linux-x86-64.so.2"].map(PathBuf::from));
    }
}
