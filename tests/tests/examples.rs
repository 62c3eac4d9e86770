//! The examples for hooks: they do what they say, and take what events bring as data.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::{
    fs,
    io::{Read as _, Write as _},
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
};

use tempfile::TempDir;

/// Says how it was called, one argument a line in brackets, and what it read.
const STUB: &str = "#!/bin/sh\nfor argument; do printf '[%s]\\n' \"$argument\"; done > \"${0%/*}/arguments\"\n\
                    cat > \"${0%/*}/stdin\"\n";
/// What an administrator's note may try.
const NOTE: &str = "$(touch pwned) `touch pwned`; touch pwned\n.\nBcc: x@example.org";

fn examples() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/hooks")
}

/// A folder that stands for where programs are, with a stub in it.
fn stub(program: &str) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join(program);
    // By another process: one that another test starts at this moment would have it open for writing, and nobody could
    // run it.
    let mut install = Command::new("install");
    let mut install =
        install.args(["-m", "755", "/dev/stdin"]).arg(&path).stdin(Stdio::piped()).spawn().unwrap();
    install.stdin.take().unwrap().write_all(STUB.as_bytes()).unwrap();
    assert!(install.wait().unwrap().success());
    folder
}

fn said(folder: &TempDir, name: &str) -> String {
    fs::read_to_string(folder.path().join(name)).unwrap_or_default()
}

/// Runs an example as dosguard does, but for where programs are.
fn run(example: &str, arguments: &[&str], programs: &TempDir, event: &[(&str, &str)]) -> Output {
    let folder = programs.path();
    let mut command = Command::new(examples().join(example));
    command.args(arguments).env_clear().current_dir(folder);
    command.env("PATH", format!("{}:/usr/sbin:/usr/bin:/sbin:/bin", folder.display()));
    let all = [
        ("INSTANCE", "default"),
        ("KIND", "ban"),
        ("SOURCE", "198.51.100.66"),
        ("RULE", "smtp"),
        ("SCOPE", "all"),
        ("REASON", "syn-limit"),
        ("MONITOR", "false"),
        ("COUNT", "4"),
        ("LIMIT", "3"),
        ("OFFENCES", "1"),
        ("UNTIL", "2026-01-01T12:10:00Z"),
        ("NOTE", NOTE),
    ];
    for (name, value) in all.iter().chain(event) {
        command.env(format!("DOSGUARD_{name}"), value);
    }
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    // Not every example reads it.
    let _ = child.stdin.take().unwrap().write_all(b"{\"version\":1}\n");
    let output = child.wait_with_output().unwrap();
    assert!(!folder.join("pwned").exists(), "{example} ran what an event brought");
    output
}

fn assert_done(output: &Output) {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn shellcheck_finds_nothing() {
    let scripts: Vec<_> = fs::read_dir(examples()).unwrap().map(|entry| entry.unwrap().path()).collect();
    assert_eq!(scripts.len(), 4);
    let output = Command::new("shellcheck").args(&scripts).output();
    let output = output.expect("shellcheck is missing; `cargo xtask setup` installs it");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
    for script in scripts {
        let mode = fs::metadata(&script).unwrap().permissions().mode();
        assert_eq!(mode & 0o111, 0o111, "{} is not executable", script.display());
    }
}

#[test]
fn mail_says_what_happened() {
    let programs = stub("sendmail");
    assert_done(&run("mail", &["root@example.org"], &programs, &[]));
    assert_eq!(said(&programs, "arguments"), "[-i]\n[--]\n[root@example.org]\n");
    let mail = said(&programs, "stdin");
    let (header, body) = mail.split_once("\n\n").unwrap();
    let expected =
        "To: root@example.org\nSubject: dosguard: ban 198.51.100.66\nAuto-Submitted: auto-generated";
    assert_eq!(header, expected);
    for part in
        ["rule     smtp\n", "counted  4 SYNs, the limit is 3", "until    2026-01-01T12:10:00Z\n", NOTE]
    {
        assert!(body.contains(part), "{part:?} in {body}");
    }
    let output = run("mail", &["root@example.org"], &stub("sendmail"), &[("SOURCE", "1.2.3.4\nBcc: x@y")]);
    assert_eq!(output.status.code(), Some(2));
}

#[test]
fn webhook_posts_the_event_as_it_comes() {
    let programs = stub("curl");
    assert_done(&run("webhook", &["https://example.org/hook"], &programs, &[]));
    let arguments = said(&programs, "arguments");
    assert!(
        arguments.contains("[--data-binary]\n[@-]\n[--url]\n[https://example.org/hook]\n"),
        "{arguments}"
    );
    assert!(arguments.contains("[--max-time]\n") && arguments.contains("[--fail]\n"), "{arguments}");
    assert_eq!(said(&programs, "stdin"), "{\"version\":1}\n");
    assert_done(&run("webhook", &["https://example.org/hook", "/a b"], &programs, &[]));
    assert!(said(&programs, "arguments").contains("[--header]\n[@/a b]\n"));
}

#[test]
fn exabgp_announces_and_withdraws() {
    let programs = stub("none");
    let pipe = programs.path().join("pipe");
    let arguments = ["192.0.2.1", "2001:db8::1", pipe.to_str().unwrap()];
    let output = run("exabgp", &arguments, &programs, &[]);
    assert_eq!(output.status.code(), Some(1), "there is no pipe yet");
    nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRWXU).unwrap();
    // Open for both, so that nobody waits for anybody.
    let mut reader = fs::OpenOptions::new().read(true).write(true).open(&pipe).unwrap();
    let mut commands = |event: &[(&str, &str)]| {
        assert_done(&run("exabgp", &arguments, &programs, event));
        reader.write_all(b".").unwrap();
        let mut bytes = [0; 1024];
        let length = reader.read(&mut bytes).unwrap();
        let text = String::from_utf8(bytes[..length].to_vec()).unwrap();
        text.strip_suffix('.').unwrap().to_owned()
    };
    let announce = "announce route 198.51.100.66/32 next-hop 192.0.2.1 community [65535:666]\n";
    assert_eq!(commands(&[]), announce);
    assert_eq!(commands(&[("KIND", "unban")]), "withdraw route 198.51.100.66/32 next-hop 192.0.2.1\n");
    assert_eq!(
        commands(&[("SOURCE", "2001:db8:1::/64")]),
        "announce route 2001:db8:1::/64 next-hop 2001:db8::1 community [65535:666]\n"
    );
    for event in [("MONITOR", "true"), ("SCOPE", "syn"), ("KIND", "limited")] {
        assert_eq!(commands(&[event]), "", "{event:?}");
    }
    let output = run("exabgp", &arguments, &programs, &[("SOURCE", "192.0.2.1 next-hop 0.0.0.0")]);
    assert_eq!(output.status.code(), Some(2));
}

#[test]
fn bird_gets_blackholes_in_a_table_of_their_own() {
    let programs = stub("ip");
    let called = |event: &[(&str, &str)]| {
        let _ = fs::remove_file(programs.path().join("arguments"));
        assert_done(&run("bird", &["666"], &programs, event));
        said(&programs, "arguments").replace("]\n[", " ")
    };
    let replace = "[-4 route replace blackhole 198.51.100.66 table 666 proto static]\n";
    assert_eq!(called(&[]), replace);
    assert_eq!(
        called(&[("SOURCE", "2001:db8:1::/64"), ("KIND", "unban")]),
        "[-6 route flush exact 2001:db8:1::/64 table 666 type blackhole]\n"
    );
    for event in [("MONITOR", "true"), ("SCOPE", "syn"), ("KIND", "limited")] {
        assert_eq!(called(&[event]), "", "{event:?}");
    }
    let output = run("bird", &["666"], &programs, &[("SOURCE", "default")]);
    assert_eq!(output.status.code(), Some(2));
}
