//! What docs/json.md says of JSON, and whether it is so.

#![expect(clippy::unwrap_used, reason = "a test's helpers fail as the test itself does")]

use std::collections::BTreeSet;

use serde_json::Value;

/// docs/json.md.
pub const DOCUMENT: &str = include_str!("../../docs/json.md");

/// The names in the first column of a section's last table.
fn documented(section: &str) -> BTreeSet<String> {
    let text = DOCUMENT.split("\n## ").find(|text| text.starts_with(section)).unwrap();
    let (_, table) = text.split_once("| field | meaning |\n| --- | --- |\n").unwrap();
    let columns = table.lines().take_while(|line| line.starts_with('|')).map(|line| line.split('|').nth(1));
    columns.flat_map(|column| column.unwrap().split(',').map(|name| name.trim().replace('`', ""))).collect()
}

/// The fields of a record: `packet.port` in an object, `rules[].name` in an array.
fn fields(record: &Value, prefix: &str, found: &mut BTreeSet<String>) {
    match record {
        Value::Object(object) => {
            for (name, value) in object {
                let name = if prefix.is_empty() { name.clone() } else { format!("{prefix}.{name}") };
                found.insert(name.clone());
                fields(value, &name, found);
            }
        }
        Value::Array(array) => array.iter().for_each(|value| fields(value, &format!("{prefix}[]"), found)),
        _ => {}
    }
}

/// The fields of these records are those that docs/json.md names in this section, each in one of them at least.
pub fn assert_documented(section: &str, records: &[Value]) {
    let mut found = BTreeSet::new();
    for record in records {
        assert_eq!(record["version"], 1);
        fields(record, "", &mut found);
    }
    let documented = documented(section);
    let differ: Vec<_> = found.symmetric_difference(&documented).collect();
    assert!(differ.is_empty(), "{section}: {differ:?}");
}
