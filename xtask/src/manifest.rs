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
}
