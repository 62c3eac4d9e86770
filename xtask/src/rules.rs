//! Rules of this workspace that no compiler checks.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use crate::manifest;

/// More than this and a file holds more than one thing.
const MAX_LINES: usize = 450;

/// Where it is written why a crate is used.
const REASONS: &str = "docs/dependencies.md";

/// Crates that could have no `unsafe` even if somebody said why.
const SAFE: [&str; 7] = [
    "dosguard-common/src/lib.rs",
    "tests/src/bin/bench/main.rs",
    "tests/src/bin/demo/main.rs",
    "tests/src/bin/fuzz-frames.rs",
    "tests/src/bin/torture/main.rs",
    "tests/src/lib.rs",
    "xtask/src/main.rs",
];
const FORBID: &str = "#![forbid(unsafe_code)]";

/// Where a line may say why there is `unsafe`: folders, and the one file that makes system calls which no library has.
const UNSAFE: [&str; 4] = ["dosguard/", "dosguard-ebpf/", "tests/flood-ebpf/", "tests/src/bin/confined.rs"];

/// Checks every rule and fails with all that is wrong.
pub fn check(root: &Path) -> Result<()> {
    let manifest = read(&root.join("Cargo.toml"))?;
    let members = manifest::strings(&manifest, "workspace", "members")
        .context("no `members` under `[workspace]` in `Cargo.toml`")?;
    let mut wrong = Vec::new();
    let (own, mut used) = (own_packages(root, &members)?, BTreeSet::new());
    // What is fuzzed is no member.
    for member in members.iter().map(String::as_str).chain(["fuzz"]) {
        let text = read(&root.join(member).join("Cargo.toml"))?;
        used.extend(manifest::keys(&text, "dependencies").into_iter().filter(|name| !own.contains(name)));
    }
    wrong.extend(unexplained(&read(&root.join(REASONS))?, &used));
    for path in SAFE {
        if !read(&root.join(path))?.lines().any(|line| line == FORBID) {
            wrong.push(format!("{path}: `{FORBID}` is missing"));
        }
    }
    for member in members {
        let path = Path::new(&member).join("Cargo.toml");
        let text = read(&root.join(&path))?;
        wrong.extend(broken_rules(&text).iter().map(|rule| format!("{}: {rule}", path.display())));
    }
    for path in rust_files(root)? {
        let text = read(&path)?;
        let (path, lines) = (path.strip_prefix(root).unwrap_or(&path), text.lines().count());
        if lines > MAX_LINES {
            wrong.push(format!("{}: {lines} lines, split it (at most {MAX_LINES})", path.display()));
        }
        if !may_be_unsafe(path) && lifts_the_ban(&text) {
            wrong.push(format!("{}: no `unsafe` here, even with a reason", path.display()));
        }
    }
    if wrong.is_empty() {
        return Ok(());
    }
    bail!("the workspace breaks its own rules\n  {}", wrong.join("\n  "))
}

fn may_be_unsafe(path: &Path) -> bool {
    UNSAFE.iter().any(|place| path.starts_with(place))
}

/// Whether an attribute permits what the workspace's lints deny.
fn lifts_the_ban(text: &str) -> bool {
    let mut lines = text.lines().map(str::trim);
    while let Some(line) = lines.next() {
        if !line.starts_with("#[") && !line.starts_with("#![") {
            continue;
        }
        let mut attribute = line.to_owned();
        let is_open = |text: &str| text.matches('[').count() > text.matches(']').count();
        while is_open(&attribute) {
            let Some(next) = lines.next() else { break };
            attribute.push_str(next);
        }
        if attribute.contains("unsafe_code") && !attribute.starts_with("#![forbid(") {
            return true;
        }
    }
    false
}

/// The names of the workspace's own packages.
fn own_packages(root: &Path, members: &[String]) -> Result<BTreeSet<String>> {
    let name = |member: &String| {
        let path = root.join(member).join("Cargo.toml");
        manifest::string(&read(&path)?, "package", "name")
            .with_context(|| format!("no name of a package in `{}`", path.display()))
    };
    members.iter().map(name).collect()
}

/// Direct dependencies without a reason, and reasons for what is none. Those of a line stand in its first cell.
fn unexplained(reasons: &str, used: &BTreeSet<String>) -> Vec<String> {
    let cells = reasons.lines().filter_map(|line| line.strip_prefix("| `")?.split(" |").next());
    // Between the ticks are the odd pieces, of which the first tick is gone.
    let named: BTreeSet<_> = cells.flat_map(|cell| cell.split('`').step_by(2)).map(str::to_owned).collect();
    let missing = used.difference(&named).map(|name| format!("{REASONS}: no reason for `{name}`"));
    let surplus = named.difference(used).map(|name| format!("{REASONS}: `{name}` is no direct dependency"));
    missing.chain(surplus).collect()
}

/// What a member's manifest lacks.
fn broken_rules(text: &str) -> Vec<&'static str> {
    let is = |section, key, wanted| manifest::value(text, section, key).as_deref() == Some(wanted);
    let mut broken = Vec::new();
    if !is("lints", "workspace", "true") {
        broken.push("does not opt into the workspace's lints (`[lints]` with `workspace = true`)");
    }
    if !is("package", "publish.workspace", "true") && !is("package", "publish", "false") {
        broken.push("could be published (`publish.workspace = true` is missing)");
    }
    broken
}

/// Every Rust file of the checkout, without what was built.
fn rust_files(dir: &Path) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    let entries = fs::read_dir(dir).with_context(|| format!("could not list `{}`", dir.display()))?;
    for entry in entries {
        let entry = entry.with_context(|| format!("could not list `{}`", dir.display()))?;
        let (path, name) = (entry.path(), entry.file_name());
        let hidden = name.to_string_lossy().starts_with('.');
        // The type of the entry itself: a link may lead out of the checkout or round in circles.
        let kind = entry.file_type().with_context(|| format!("could not look at `{}`", path.display()))?;
        if kind.is_dir() && !hidden && name != "target" {
            files.extend(rust_files(&path)?);
        } else if kind.is_file() && path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

fn read(path: &Path) -> Result<String> {
    fs::read_to_string(path).with_context(|| format!("could not read `{}`", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn members_must_opt_into_the_lints_and_stay_private() {
        let good = "[package]\nname = \"a\"\npublish.workspace = true\n\n[lints]\nworkspace = true\n";
        assert!(broken_rules(good).is_empty());
        assert!(broken_rules(&good.replace("publish.workspace = true", "publish = false")).is_empty());

        let without_lints = good.replace("[lints]\n", "[other]\n");
        assert!(matches!(broken_rules(&without_lints)[..], [rule] if rule.contains("lints")));
        let commented_out = good.replace("workspace = true\n\n", "workspace = true\n\n#");
        assert_eq!(broken_rules(&commented_out).len(), 1);
        assert_eq!(broken_rules("[package]\nname = \"a\"\n").len(), 2);
    }

    #[test]
    fn every_direct_dependency_has_a_reason_and_every_reason_a_dependency() {
        let reasons =
            "# Why\n\n| crate | why |\n| --- | --- |\n| `one`, `two` | `none` of it |\n| `three` | so |\n";
        let used = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<BTreeSet<_>>();
        assert!(unexplained(reasons, &used(&["one", "two", "three"])).is_empty());
        let wrong = unexplained(reasons, &used(&["one", "three", "none"]));
        assert!(
            matches!(&wrong[..], [missing, surplus] if missing.ends_with("for `none`") && surplus.contains("`two` is no"))
        );
    }

    #[test]
    fn a_reason_permits_unsafe_in_few_places() {
        assert!(may_be_unsafe(Path::new("dosguard/src/system.rs")));
        assert!(may_be_unsafe(Path::new("tests/src/bin/confined.rs")));
        assert!(!may_be_unsafe(Path::new("dosguard-common/src/lib.rs")));
        assert!(!may_be_unsafe(Path::new("tests/tests/sock_diag.rs")));
        assert!(lifts_the_ban("fn a() {\n    #[expect(unsafe_code, reason = \"so\")]\n"));
        assert!(lifts_the_ban("#![allow(unsafe_code)]"));
        assert!(lifts_the_ban(
            "    #[expect(\n        unsafe_code,\n        reason = \"as it is wrapped\"\n    )]\n"
        ));
        assert!(lifts_the_ban("#[allow(dead_code, unsafe_code)]"));
        assert!(lifts_the_ban("#[cfg_attr(test, allow(unsafe_code))]"));
        assert!(!lifts_the_ban("#![forbid(unsafe_code)]\n// #[allow(unsafe_code)]"));
    }

    #[test]
    fn this_workspace_has_rust_files_and_none_from_the_target_directory() {
        let files = rust_files(&crate::workspace::root().unwrap()).unwrap();
        assert!(files.iter().any(|path| path.ends_with("xtask/src/rules.rs")));
        assert!(files.iter().all(|path| !path.components().any(|part| part.as_os_str() == "target")));
    }
}
