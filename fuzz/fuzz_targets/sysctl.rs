//! Any text as assignments: what was set reads back as what was meant, what was read may be set again and changes nothing, and
//! an error names its line and leaves everything as it was.
#![no_main]

use std::collections::HashMap;
use std::path::Path;

use dosguard::config::assignments::{Assignment, Place, apply, parse_lines};
use dosguard::config::changes;
use dosguard::config::keys::{self, Key};
use dosguard::config::policy::Policy;
use dosguard::config::sizes::Sizes;
use dosguard_fuzz::live::policy;
use dosguard_fuzz::messages::{assert_names_line, assert_says};
use libfuzzer_sys::fuzz_target;

const COMMAND: &str = "dosguard --instance mail";

fn read_back(live: &Policy, dumped: &Policy) -> Policy {
    let dump: Vec<_> =
        keys::all(dumped, &Sizes::default()).iter().map(|(key, value)| format!("{key} = {value}")).collect();
    let assignments = parse_lines(&dump.join("\n"), Path::new("f")).unwrap();
    apply(live, &Sizes::default(), &assignments, COMMAND).unwrap()
}

/// The key of an assignment and its value, alone.
fn one(live: &Policy, line: &str) {
    let Some((name, value)) = line.split_once('=') else { return };
    let Ok(key) = name.trim().parse::<Key>() else { return };
    assert_eq!(key.to_string().parse::<Key>().as_ref(), Ok(&key));
    let mut set = live.clone();
    match key.assign(&mut set, value.trim()) {
        Err(error) => {
            assert_says(&error);
            assert_eq!(set, *live, "`{line}` failed, and has changed something");
        }
        Ok(()) => {
            let mut again = live.clone();
            if let Some(shown) = key.setting(&set) {
                key.assign(&mut again, &shown).unwrap();
            }
            assert_eq!(again, set, "`{line}` is shown as something else");
        }
    }
}

fuzz_target!(|bytes: &[u8]| {
    let Ok(text) = str::from_utf8(bytes) else { return };
    let (live, sizes) = (policy(), Sizes::default());
    for line in text.lines() {
        one(&live, line);
        if let Ok(selected) = keys::select(&live, &sizes, line, COMMAND) {
            for (key, value) in selected {
                assert!(keys::matches(line, &key.to_string()));
                assert_eq!(key.get(&live, &sizes), Some(value));
            }
        }
        if let Err(error) = Assignment::parse(line, Place::Argument) {
            assert_says(&error);
        }
    }

    let lines = text.lines().count();
    let failed = |message: &str| assert_names_line(message, "`f` ", lines);
    let assignments = match parse_lines(text, Path::new("f")) {
        Ok(assignments) => assignments,
        Err(error) => return failed(&assert_says(&error)),
    };
    let wanted = match apply(&live, &sizes, &assignments, COMMAND) {
        Ok(wanted) => wanted,
        Err(error) => return failed(&assert_says(&error)),
    };
    assert_eq!(wanted.check_rules(), Ok(()));
    assert_eq!(read_back(&live, &wanted), wanted);
    assert_eq!(read_back(&wanted, &wanted), wanted);
    assert_eq!(read_back(&wanted, &live), live);
    assert_eq!(changes(&live, &wanted).is_empty(), wanted == live);
    // Of each key the last one counts, and nothing else has changed.
    let mut expected = HashMap::new();
    for line in text.lines().map(str::trim).filter(|line| !line.starts_with(['#', ';'])) {
        if let Some((key, value)) = line.split_once('=') {
            expected.insert(key.trim().to_owned(), value.trim().to_owned());
        }
    }
    let mut set = live.clone();
    for (key, value) in expected {
        key.parse::<Key>().unwrap().assign(&mut set, &value).unwrap();
    }
    assert_eq!(set, wanted);
});
