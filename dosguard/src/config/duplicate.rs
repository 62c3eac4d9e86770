//! What stands twice in a file, and where it stands first. The parser knows only the second place.

use toml::Spanned;
use toml::de::{DeTable, DeValue, Error};

use super::file::Problem;

/// Says so if the parser has met something a second time.
pub(super) fn found(text: &str, error: &Error) -> Option<Problem> {
    if error.message() != "duplicate key" {
        return None;
    }
    let second = error.span()?;
    let line_start = text.get(..second.start)?.rfind('\n').map_or(0, |newline| newline + 1);
    let is_header = text.get(line_start..second.start)?.trim_start().starts_with('[');
    // What stands before is in order, or the parser would not have come this far.
    let before = DeTable::parse(text.get(..line_start)?).ok()?;
    let name = text.get(second)?.trim_matches(['"', '\'']);
    let (first, of_rule) = last_named(before.get_ref(), name, is_header)?;
    let line = text.get(..first)?.matches('\n').count() + 1;
    let what = if is_header && of_rule { format!("rule `{name}`") } else { format!("`{name}`") };
    Some(Problem::Twice { what, line })
}

/// Where the last key of this name stands, and whether it names a rule. `is_header` looks for tables only.
fn last_named(table: &DeTable<'_>, name: &str, is_header: bool) -> Option<(usize, bool)> {
    let mut found = None;
    walk(table, false, &mut |key, value, is_rule| {
        let is_table = matches!(value, DeValue::Table(_));
        if key.get_ref() == name && (is_table || !is_header) {
            found = found.max(Some((key.span().start, is_rule)));
        }
    });
    found
}

type Key<'a> = Spanned<std::borrow::Cow<'a, str>>;

/// Shows every key to `see`, with whether it is directly under `rule`.
fn walk<'a>(table: &DeTable<'a>, is_rules: bool, see: &mut impl FnMut(&Key<'a>, &DeValue<'a>, bool)) {
    for (key, value) in table {
        see(key, value.get_ref(), is_rules);
        if let DeValue::Table(inner) = value.get_ref() {
            walk(inner, key.get_ref() == "rule", see);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use crate::config::file::parse;

    #[test]
    fn both_places_are_named() {
        let cases = [
            (
                "[rule.web]\nlimit = '1/1s'\nports = ['tcp/80']\n\n[rule.default]\n[rule.web]\n",
                "`f` line 6, column 7: rule `web` is named twice, first in line 1",
            ),
            (
                "[rule.'web']\nlimit = '1/1s'\nports = ['tcp/80']\n[rule.\"web\"]\n",
                "`f` line 4, column 7: rule `web` is named twice, first in line 1",
            ),
            (
                "[rule.a]\nlimit = '1/1s'\n[rule.b]\nlimit = '1/1s'\nban='1s'\nlimit = '1/1s'\n",
                "`f` line 6, column 1: `limit` is named twice, first in line 4",
            ),
            ("[source]\n[source]\n", "`f` line 2, column 2: `source` is named twice, first in line 1"),
            (
                "allow = []\ndeny = []\nallow = []",
                "`f` line 3, column 1: `allow` is named twice, first in line 1",
            ),
        ];
        for (text, message) in cases {
            let said = parse(text, Path::new("f")).unwrap_err().to_string();
            assert!(said.starts_with(&format!("{message}\nhint: ")), "{said}");
        }
    }
}
