//! Reads single values out of the workspace's own TOML files.
//!
//! This is not a TOML parser: it knows `[section]`, `key = value` and arrays over several lines, which is all our
//! manifests use, and it saves compiling one before the first `cargo xtask`.

/// The value of `key` in `[section]` as it is written, without comments; an array is joined to one line.
pub fn value(text: &str, section: &str, key: &str) -> Option<String> {
    let mut current = String::new();
    let mut lines = text.lines().map(|line| without_comment(line).trim());
    while let Some(line) = lines.next() {
        if let Some(name) = line.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
            name.trim().clone_into(&mut current);
            continue;
        }
        let Some((name, value)) = line.split_once('=') else { continue };
        let mut value = value.trim().to_owned();
        while value.starts_with('[') && !value.ends_with(']') {
            value.push_str(lines.next()?);
        }
        if current == section && name.trim() == key {
            return Some(value);
        }
    }
    None
}

/// The string that `key` in `[section]` is set to.
pub fn string(text: &str, section: &str, key: &str) -> Option<String> {
    strings(text, section, key)?.pop()
}

/// The strings in the array that `key` in `[section]` is set to.
pub fn strings(text: &str, section: &str, key: &str) -> Option<Vec<String>> {
    // Between the quotes are the odd pieces.
    Some(value(text, section, key)?.split('"').skip(1).step_by(2).map(str::to_owned).collect())
}

/// The keys in every section whose name ends with `ending`, such as `dependencies`, which `dev-dependencies` ends with as well. A key is
/// what stands before the first dot: `name.workspace = true` is about `name`.
pub fn keys(text: &str, ending: &str) -> Vec<String> {
    let (mut within, mut depth, mut found) = (false, 0_usize, Vec::new());
    for line in text.lines().map(|line| without_comment(line).trim()) {
        if depth == 0
            && let Some(name) = line.strip_prefix('[').and_then(|rest| rest.strip_suffix(']'))
        {
            within = name.trim().ends_with(ending);
            continue;
        }
        if within
            && depth == 0
            && let Some((name, _)) = line.split_once('=')
        {
            let name = name.trim().split('.').next().unwrap_or_default();
            found.push(name.trim_matches('"').to_owned());
        }
        // An array over several lines.
        depth = (depth + line.matches('[').count()).saturating_sub(line.matches(']').count());
    }
    found
}

fn without_comment(line: &str) -> &str {
    let mut quoted = false;
    let comment = line.find(|c| {
        quoted ^= c == '"';
        c == '#' && !quoted
    });
    line.get(..comment.unwrap_or(line.len())).unwrap_or(line)
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = r##"
        top = "none" # not in a section
        [workspace]
        members = [
            "a",   # the first
            "b/c",
        ]
        default-members = ["a"]
        [workspace.package]
        publish = false
        note = "a # is no comment here"
        [lints]
        workspace = true
    "##;

    #[test]
    fn values_are_found_in_their_own_section_only() {
        assert_eq!(value(TEXT, "lints", "workspace").as_deref(), Some("true"));
        assert_eq!(value(TEXT, "workspace.package", "publish").as_deref(), Some("false"));
        assert_eq!(value(TEXT, "workspace", "publish"), None);
        assert_eq!(string(TEXT, "", "top").as_deref(), Some("none"));
        assert_eq!(string(TEXT, "workspace.package", "note").as_deref(), Some("a # is no comment here"));
    }

    #[test]
    fn arrays_may_span_lines() {
        assert_eq!(strings(TEXT, "workspace", "members").unwrap(), ["a", "b/c"]);
        assert_eq!(strings(TEXT, "workspace", "default-members").unwrap(), ["a"]);
        assert_eq!(strings("members = [", "", "members"), None, "cut short");
    }

    #[test]
    fn keys_are_those_of_all_such_sections() {
        let text = r#"
            [package]
            name = "a"
            [dependencies]
            one = "1"   # why
            two.workspace = true
            three = { version = "1", features = [
                "four",
                "five = 6",
            ] }
            [target.'cfg(unix)'.dev-dependencies]
            seven = { workspace = true }
            [lints]
            workspace = true
        "#;
        assert_eq!(keys(text, "dependencies"), ["one", "two", "three", "seven"]);
        assert!(keys(text, "features").is_empty());
    }
}
