//! The command line end to end: bans for other programs, from other places, and in files that follow them.

#![expect(clippy::unwrap_used, reason = "a test's helpers fail as the test itself does")]

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::fs;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use dosguard::config::cidr::to_address;
use dosguard::config::policy::Policy;
use dosguard::datapath::{Datapath, LoadOptions};
use dosguard::paths::Paths;
use dosguard_common::ban::Ban;
use dosguard_common::key::SourceKey;
use dosguard_common::rule::{RuleIndex, Scope};
use dosguard_tests::addresses::{FORGED_V4, GUARD_ATTACKER_SIDE};
use dosguard_tests::cli::{
    self, CONFIG, Lines, Listener, PATIENCE, Said, assert_same_moment, bans, done, packets, say, start, syns,
    words,
};
use dosguard_tests::daemon::Dosguard;
use dosguard_tests::lab::Lab;
use dosguard_tests::netns::feed;
use dosguard_tests::wait::wait_until;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

/// What no other program may ever obey. It fits into a note.
const HOSTILE: &str = "\"};\nflush ruleset\n#$(id)";

fn attach(dosguard: &Dosguard<'_>) {
    cli::attach(dosguard, CONFIG, GUARD_ATTACKER_SIDE);
}

/// A ban with a note that no command line would take.
fn ban_with_note(lab: &Lab, note: &str) {
    let mut datapath = Datapath::require(lab.paths()).unwrap();
    let now_ns = dosguard::system::boot_now_ns().unwrap();
    let until_ns = now_ns + 600_000_000_000;
    let ban = Ban::by_admin(Scope::All, RuleIndex::DEFAULT, now_ns, until_ns, note);
    let key = SourceKey::everywhere(to_address(Ipv4Addr::new(203, 0, 113, 66).into()));
    datapath.maps_mut().set_ban(&key, &ban).unwrap();
}

/// Runs `bans import` with this on its standard input.
fn import(dosguard: &Dosguard<'_>, options: &str, text: &str) -> Said {
    use std::io::Write as _;
    let mut command = dosguard.command(words(&format!("bans import - {options}")));
    let mut child =
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    // It may refuse before it has read all.
    let _ = child.stdin.take().unwrap().write_all(text.as_bytes());
    child.wait_with_output().unwrap().into()
}

/// Bans without what changes from moment to moment.
fn steady(bans: Vec<Value>) -> BTreeSet<String> {
    let without = |mut ban: Value| {
        ban.as_object_mut().unwrap().remove("remaining_s");
        // To the second: each look rounds the difference of the clocks for itself.
        for field in ["since", "until"] {
            let at: jiff::Timestamp = ban[field].as_str().unwrap().parse().unwrap();
            ban[field] = format!("{:.0}", at.round(jiff::Unit::Second).unwrap()).into();
        }
        ban.to_string()
    };
    bans.into_iter().map(without).collect()
}

#[test]
fn other_programs_take_what_is_exported() {
    let lab = Lab::new().unwrap();
    let dosguard = Dosguard::new(&lab).unwrap();
    attach(&dosguard);
    done(&dosguard, "bans add 203.0.113.1 2001:db8:66::1 --for 30d --reason x");
    done(&dosguard, "bans add 203.0.113.2 2001:db8:67::1 --rule smtp");
    done(&dosguard, "bans add 203.0.113.3 --scope syn");
    ban_with_note(&lab, HOSTILE);
    let export = |format: &str| done(&dosguard, &format!("bans export --format {format}"));
    for format in ["plain", "hosts.deny", "nft", "ipset", "iptables"] {
        assert!(!export(format).contains("flush ruleset"), "{format}");
    }
    let plain = "203.0.113.1\n203.0.113.66\n2001:db8:66::/64\n";
    assert_eq!(done(&dosguard, "bans export"), plain);
    let said = say(&dosguard, words("bans export --format ipset"));
    assert!(said.err.contains("3 bans of scope syn left out"), "{}", said.err);

    // In a namespace where nothing depends on it. Each is loaded twice: it replaces what it wrote before.
    let elsewhere = lab.client();
    for _ in 0..2 {
        feed(elsewhere.command("nft").args(["-f", "-"]), &export("nft")).unwrap();
        feed(elsewhere.command("ipset").arg("restore"), &export("ipset")).unwrap();
        for program in ["iptables-restore", "ip6tables-restore"] {
            feed(elsewhere.command(program).arg("-n").arg("--test"), &export("iptables")).unwrap();
            feed(elsewhere.command(program).arg("-n"), &export("iptables")).unwrap();
        }
    }
    let table = elsewhere.run("nft", ["list", "table", "inet", "dosguard-lab"]).unwrap();
    for part in ["203.0.113.66 timeout ", "2001:db8:66::/64", "syn-smtp4", "tcp dport != { 25, 587 }"] {
        assert!(table.contains(part), "{part}: {table}");
    }
    let set = elsewhere.run("ipset", ["list", "dosguard-lab4"]).unwrap();
    assert!(set.contains("Number of entries: 2\n") && set.contains("203.0.113.66 timeout "), "{set}");
    let chain = |program: &str| elsewhere.run(program, ["-S", "DOSGUARD-lab"]).unwrap();
    let four = chain("iptables");
    assert_eq!(four.lines().count(), 6, "{four}");
    assert!(four.contains("-A DOSGUARD-lab -s 203.0.113.66/32 -j DROP"), "{four}");
    let ports =
        "-s 203.0.113.2/32 -p tcp -m tcp --tcp-flags SYN,ACK SYN -m multiport --dports 25,587 -j DROP";
    assert!(four.contains(ports), "{four}");
    assert_eq!(chain("ip6tables").lines().count(), 4);

    // TCP wrappers, in a folder with this file.
    let folder = lab.directory().path().join("wrappers");
    fs::create_dir(&folder).unwrap();
    done(&dosguard, &format!("bans export --format hosts.deny --output {}/hosts.deny", folder.display()));
    let access = |address: &str| {
        let mut command = Command::new("tcpdmatch");
        let output = command.args(["-d", "sshd", address]).current_dir(&folder).output().unwrap();
        String::from_utf8(output.stdout).unwrap().contains("denied")
    };
    let denied = ["203.0.113.66", "203.0.113.67", "2001:db8:66::9", "2001:db8:67::1"].map(access);
    assert_eq!(denied, [true, false, true, false]);

    // Other programs do not know who is allowed: they are not told of those, nor of a source that has one of them in it.
    done(&dosguard, "allow add 203.0.113.0/26 2001:db8:66::9");
    for format in ["plain", "hosts.deny", "nft", "ipset", "iptables"] {
        let exported = export(format);
        assert!(
            exported.contains("203.0.113.66") && !exported.contains("203.0.113.1 "),
            "{format}: {exported}"
        );
        assert!(
            !exported.contains("203.0.113.1\n") && !exported.contains("2001:db8:66"),
            "{format}: {exported}"
        );
    }
    assert_eq!(steady(dosguard.json(words("bans export --format json")).unwrap()), steady(bans(&dosguard)));
    let csv = export("csv");
    assert!(csv.contains(&format!(",\"{}\"\n", HOSTILE.replace('"', "\"\""))), "{csv}");
}

#[test]
fn what_was_exported_is_imported_and_only_what_is_missing_is_banned() {
    let lab = Lab::new().unwrap();
    let dosguard = Dosguard::new(&lab).unwrap();
    attach(&dosguard);
    done(&dosguard, "bans add 203.0.113.1 2001:db8:66::1 --for 2h --reason ticket");
    done(&dosguard, "bans add 203.0.113.2 --for 2h --rule smtp");
    done(&dosguard, "sysctl rule.default.ban=1h");
    syns(&lab, &dosguard, 80, 6);
    // One with a control character cannot come from a command, and is refused.
    ban_with_note(&lab, HOSTILE);
    let refused = import(&dosguard, "", &done(&dosguard, "bans export --format json"));
    assert!(refused.code == Some(2) && refused.err.contains("nothing was changed"), "{refused:?}");
    ban_with_note(&lab, &HOSTILE.replace('\n', " "));
    let before = bans(&dosguard);
    let exported = done(&dosguard, "bans export --format json");
    let said = import(&dosguard, "", &exported);
    assert_eq!(
        (said.code, said.err.as_str()),
        (Some(0), "0 bans imposed\n5 bans as long or longer already\n")
    );
    assert_eq!(steady(bans(&dosguard)), steady(before.clone()), "nothing has changed");

    // Some are gone, one is shorter, and one is longer.
    done(&dosguard, "bans flush");
    done(&dosguard, "bans add 203.0.113.1 --for 1m");
    done(&dosguard, "bans add 203.0.113.2 --for 3h --rule smtp");
    let said = import(&dosguard, "--dry-run", &exported);
    assert!(
        said.err.starts_with("3 bans would be imposed\n1 ban would be extended\n1 ban as"),
        "{}",
        said.err
    );
    assert_eq!(bans(&dosguard).len(), 2);
    assert_eq!(import(&dosguard, "", &exported).code, Some(0));
    let after = bans(&dosguard);
    assert_eq!(after.len(), 5);
    for old in &before {
        let new = after.iter().find(|new| new["source"] == old["source"]).unwrap();
        for field in ["scope", "rule", "reason", "count", "limit", "window", "offences", "note", "monitor"] {
            if old["rule"] != "smtp" {
                assert_eq!(new[field], old[field], "{field}");
            }
        }
        if old["rule"] == "smtp" {
            assert!(new["remaining_s"].as_f64().unwrap() > 10_000.0, "never shorter");
        } else {
            assert_same_moment(old, new, "until");
        }
    }
    // The source goes on where it was: its next offence is the second.
    assert!(after.iter().any(|ban| ban["source"] == FORGED_V4.to_string()));
    done(&dosguard, &format!("bans del {FORGED_V4}"));
    syns(&lab, &dosguard, 80, 6);
    let again = bans(&dosguard);
    let again = again.iter().find(|ban| ban["source"] == FORGED_V4.to_string()).unwrap();
    assert_eq!(again["offences"], 2);

    // A rule that is not here.
    done(&dosguard, "rule del smtp");
    let now = steady(bans(&dosguard));
    let said = import(&dosguard, "", &exported);
    said.assert_refused(&["nothing was changed", "line ", "rule `smtp`"]);
    assert_eq!(steady(bans(&dosguard)), now);
}

#[test]
fn a_list_bans_all_of_its_sources_or_none() {
    let lab = Lab::new().unwrap();
    let dosguard = Dosguard::new(&lab).unwrap();
    let daemon = start(&dosguard, "");
    let listener = Listener::start(&dosguard);
    let list = "# bad addresses\n203.0.113.1\n203.0.113.2 # twice\n203.0.113.2\n\nALL: [2001:db8:66::]/64\n192.0.2.9\n";
    let said = import(&dosguard, "--for 30m --reason listed", list);
    assert_eq!(said.code, Some(0), "{said:?}");
    assert!(
        said.err.contains("3 bans imposed\n") && said.err.contains("192.0.2.9 is allowed"),
        "{}",
        said.err
    );
    assert_eq!(bans(&dosguard).len(), 3);
    for source in ["203.0.113.1", "203.0.113.2", "2001:db8:66::/64"] {
        let event = listener.next();
        assert_eq!((&event["kind"], &event["source"]), (&"ban".into(), &source.into()));
        assert_eq!((&event["reason"], &event["note"]), (&"admin".into(), &"listed".into()));
    }
    for (bad, what) in [
        ("203.0.113.9\n203.0.113.300\n", "line 2: `203.0.113.300`"),
        ("203.0.113.9\n127.0.0.1\n", "line 2: `127.0.0.1` is this machine itself"),
        ("203.0.113.9\n203.0.113.0/24\n", "line 2: `203.0.113.0/24` is no source"),
        ("203.0.113.9\n2001:db8::/32\n", "line 2: `2001:db8::/32` is no source"),
        ("{\"version\":1}\n", "line 1: "),
    ] {
        import(&dosguard, "", bad).assert_refused(&["`-`; nothing was changed", what]);
    }
    import(&dosguard, "--for 0s", list).assert_refused(&["0s"]);
    import(&dosguard, "--for 1h --format json", "{}").assert_refused(&["`--for`"]);
    say(&dosguard, words("bans import /nowhere")).assert_refused(&["/nowhere"]);
    assert_eq!(bans(&dosguard).len(), 3);
    let said = import(&dosguard, "--for 10m", list);
    assert!(said.err.contains("0 bans imposed\n3 bans as long or longer already\n"), "{}", said.err);
    done(&dosguard, "bans import /dev/null");
    drop(daemon);
}

/// Makes an instance with room for more bans than usual.
fn with_room_for(lab: &Lab, bans: u32) -> Datapath {
    let options = LoadOptions { sizes: vec![("BANS", bans)], ..LoadOptions::default() };
    Datapath::create(lab.paths(), &Policy::default(), &options).unwrap()
}

fn sources(count: u32) -> impl Iterator<Item = Ipv4Addr> {
    (0..count).map(|number| Ipv4Addr::from_bits(Ipv4Addr::new(20, 0, 0, 0).to_bits() + number))
}

#[test]
fn a_hundred_thousand_are_imported_exported_and_followed_quickly() {
    const MANY: u32 = 100_000;
    let lab = Lab::new().unwrap();
    let dosguard = Dosguard::new(&lab).unwrap();
    let datapath = with_room_for(&lab, MANY + 5);
    let list = sources(MANY).fold(String::new(), |mut text, source| {
        let _ = writeln!(text, "{source}");
        text
    });
    let timed = |what: &str, work: &mut dyn FnMut()| {
        let began = Instant::now();
        work();
        let took = began.elapsed();
        eprintln!("{what}: {took:.2?}");
        assert!(took < Duration::from_secs(5), "{what} took {took:?}");
    };
    timed("import", &mut || assert_eq!(import(&dosguard, "", &list).code, Some(0)));
    timed("import of the same", &mut || assert_eq!(import(&dosguard, "", &list).code, Some(0)));
    let mut exported = String::new();
    timed("export", &mut || exported = done(&dosguard, "bans export"));
    assert!(exported == list);
    timed("export as JSON", &mut || drop(done(&dosguard, "bans export --format json")));
    let file = lab.directory().path().join("bad");
    let mut watch = Watch::start(&dosguard, &file, "plain");
    timed("follow", &mut || watch.wait_for("", &list));
    timed("walk", &mut || assert_eq!(datapath.maps().bans().unwrap().len(), MANY as usize));

    // There is room for five more.
    let more = "30.0.0.1\n30.0.0.2\n30.0.0.3\n30.0.0.4\n30.0.0.5\n30.0.0.6\n";
    import(&dosguard, "", more).assert_refused(&["100005"]);
    assert_eq!(datapath.maps().bans().unwrap().len(), MANY as usize);
    assert_eq!(import(&dosguard, "", &more[..more.len() - 9]).code, Some(0));
    assert_eq!(datapath.maps().bans().unwrap().len(), MANY as usize + 5);
}

/// A running `bans export --watch`; dropping it ends it.
struct Watch {
    child: Child,
    said: Lines,
    file: PathBuf,
}

impl Watch {
    fn start(dosguard: &Dosguard<'_>, file: &Path, format: &str) -> Self {
        let line = format!("bans export --watch {} --format {format}", file.display());
        let mut child = dosguard.command(words(&line)).stderr(Stdio::piped()).spawn().unwrap();
        let said = Lines::of(child.stderr.take().unwrap());
        let watch = Self { child, said, file: file.to_owned() };
        watch.says("follows the bans of instance");
        watch
    }

    /// Until the file has `outside` and, behind it, a block with these lines.
    fn wait_for(&mut self, outside: &str, lines: &str) {
        let expected = format!("{outside}{}", block("lab", lines));
        let mut found = String::new();
        let waited = wait_until("the file has followed", PATIENCE, || {
            found = fs::read_to_string(&self.file).unwrap_or_default();
            Ok(found == expected)
        });
        assert!(waited.is_ok(), "{}", &found[..found.len().min(1_000)]);
    }

    /// The next thing it says has this in it.
    fn says(&self, what: &str) {
        let said = self.said.next();
        assert!(said.contains(what), "{said}");
    }

    /// Ends it with a signal.
    fn end(mut self) {
        kill(Pid::from_raw(self.child.id().try_into().unwrap()), Signal::SIGTERM).unwrap();
        self.says("stay as they are");
        assert_eq!(self.child.wait().unwrap().code(), Some(0));
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        // An error means that it has ended already.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

fn block(instance: &str, lines: &str) -> String {
    format!(
        "# dosguard {instance} begin: sources that are banned; do not edit between these lines\n{lines}# dosguard {instance} end\n"
    )
}

#[test]
fn a_file_follows_the_bans_and_nothing_else_in_it_is_touched() {
    let lab = Lab::new().unwrap();
    let dosguard = Dosguard::new(&lab).unwrap();
    attach(&dosguard);
    let file = lab.directory().path().join("hosts.deny");
    fs::write(&file, "sshd: 192.0.2.200\n").unwrap();
    done(&dosguard, "bans add 203.0.113.1 --for 1h");
    let mut watch = Watch::start(&dosguard, &file, "hosts.deny");
    watch.wait_for("sshd: 192.0.2.200\n", "ALL: 203.0.113.1\n");
    done(&dosguard, "bans add 2001:db8:66::1 --for 1h");
    done(&dosguard, "bans add 203.0.113.2 --rule smtp");
    done(&dosguard, "bans add 203.0.113.3 --for 5s");
    watch.wait_for("sshd: 192.0.2.200\n", "ALL: 203.0.113.1\nALL: 203.0.113.3\nALL: [2001:db8:66::]/64\n");
    // One ends by itself.
    watch.wait_for("sshd: 192.0.2.200\n", "ALL: 203.0.113.1\nALL: [2001:db8:66::]/64\n");
    // Somebody edits the file: what is ours is put right, what is theirs stays.
    fs::write(&file, format!("theirs: 1\n{}", block("lab", "ALL: 203.0.113.9\n"))).unwrap();
    watch.wait_for("theirs: 1\n", "ALL: 203.0.113.1\nALL: [2001:db8:66::]/64\n");

    // Another instance has a block of its own.
    let other = dosguard.with_instance("other");
    let datapath =
        Paths::new("other", lab.directory().bpffs(), lab.directory().run_dir(), lab.directory().state_dir());
    drop(Datapath::create(&datapath.unwrap(), &Policy::default(), &LoadOptions::default()).unwrap());
    done(&other, "bans add 203.0.113.77");
    let others = Watch::start(&other, &file, "plain");
    let both = format!(
        "theirs: 1\n{}{}",
        block("lab", "ALL: 203.0.113.1\nALL: [2001:db8:66::]/64\n"),
        block("other", "203.0.113.77\n")
    );
    let has = |text: &str| {
        wait_until("both are there", PATIENCE, || Ok(fs::read_to_string(&file)? == text)).unwrap();
    };
    has(&both);
    others.end();
    done(&dosguard, "bans del 203.0.113.1");
    let rest = both.replace("ALL: 203.0.113.1\n", "");
    has(&rest);

    // Damaged markers: nothing is written, and it is said; then it goes on.
    fs::write(&file, rest.replace("# dosguard lab end\n", "")).unwrap();
    watch.says("begin in line 2");
    watch.says("hint: ");
    assert_eq!(fs::read_to_string(&file).unwrap(), rest.replace("# dosguard lab end\n", ""));
    let refused = say(&dosguard, words(&format!("bans export --watch {}", file.display())));
    refused.assert_refused(&["was left alone", "begin in line 2"]);
    fs::write(&file, &rest).unwrap();
    done(&dosguard, "bans flush");
    has(&rest.replace("ALL: [2001:db8:66::]/64\n", ""));
    watch.says("follows the bans again");
    watch.end();
    let names = fs::read_dir(lab.directory().path()).unwrap();
    assert!(!names.into_iter().any(|name| name.unwrap().file_name().to_string_lossy().starts_with(".hosts")));

    for (line, what) in [
        ("bans export --watch x --format nft", "`nft`"),
        ("bans export --watch /nowhere/x", "/nowhere"),
        ("bans export --watch /proc", "a folder"),
        ("bans export --output /nowhere/x", "/nowhere"),
    ] {
        let said = say(&dosguard, words(line));
        assert_eq!(said.code, Some(2), "{line}: {said:?}");
        assert!(said.err.contains(what), "{line}: {}", said.err);
    }
    assert_eq!(packets(&dosguard, &["banned"]), 0);
}
