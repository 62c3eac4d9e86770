//! Any text as up to three configuration files. What is accepted says the same when it is written out in full, and when a
//! file is given twice; the settings read back from their keys; and an error names a place and tells a terminal nothing.
#![no_main]

use std::path::Path;

use dosguard::config::assignments::{apply, parse_lines};
use dosguard::config::file::{Configuration, FileError, parse, parse_all};
use dosguard::config::policy::{Policy, default_spec};
use dosguard::config::warnings::warnings;
use dosguard::config::{changes, keys};
use dosguard_fuzz::messages::{assert_names_line, assert_plain, assert_says};
use dosguard_fuzz::written::written;
use libfuzzer_sys::fuzz_target;

/// Whatever files said it.
fn said(configuration: Configuration) -> Configuration {
    Configuration { files: Vec::new(), ..configuration }
}

fuzz_target!(|bytes: &[u8]| {
    let Ok(text) = str::from_utf8(bytes) else { return };
    let paths = ["a", "b", "c"].map(Path::new);
    // Nothing else that is accepted has a zero byte in it.
    let files: Vec<_> = text.split('\0').zip(paths).collect();
    let configuration = match parse_all(&files) {
        Ok(configuration) => configuration,
        Err(error) => {
            let message = assert_says(&error);
            message.lines().for_each(assert_plain);
            assert_eq!(error.to_string().lines().count(), 2, "{message:?}");
            let FileError::Invalid { path, line, column, .. } = &error else { panic!("{message}") };
            let (text, _) = files.iter().find(|(_, file)| file == path).unwrap();
            assert_names_line(&message, &format!("`{}` ", path.display()), text.split('\n').count());
            let row = text.split('\n').nth(line - 1).unwrap();
            assert!((1..=row.chars().count() + 1).contains(column), "{message}");
            return;
        }
    };
    warnings(&configuration).iter().for_each(|warning| assert!(!warning.trim().is_empty()));
    let configuration = said(configuration);
    let text = written(&configuration);
    assert_eq!(said(parse(&text, paths[0]).expect(&text)), configuration, "{text}");

    // What one file says, another may say again, and one that says nothing changes nothing.
    let (first, last) = (files[0], files[files.len() - 1]);
    for more in [vec![first], vec![("", paths[0])]] {
        assert_eq!(said(parse_all(&[more, files.clone()].concat()).unwrap()), configuration);
    }
    for more in [vec![last], vec![("", paths[2])]] {
        assert_eq!(said(parse_all(&[files.clone(), more].concat()).unwrap()), configuration);
    }

    let policy = configuration.policy;
    let dump: Vec<_> = keys::all(&policy, &configuration.sizes)
        .iter()
        .map(|(key, value)| format!("{key} = {value}"))
        .collect();
    let mut bare = Policy { interfaces: policy.interfaces.clone(), ..Policy::default() };
    (bare.allow, bare.deny) = (policy.allow.clone(), policy.deny.clone());
    bare.rules.clone_from(&policy.rules);
    bare.rules.iter_mut().for_each(|rule| rule.spec = default_spec());
    let assignments = parse_lines(&dump.join("\n"), paths[0]).unwrap();
    let read = apply(&bare, &configuration.sizes, &assignments, "dosguard").unwrap();
    assert_eq!(read, policy);
    assert!(changes(&read, &policy).is_empty());
});
