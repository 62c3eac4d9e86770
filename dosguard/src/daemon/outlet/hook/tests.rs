use std::fs;
use std::os::fd::AsRawFd as _;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use dosguard_common::event::Kind;
use tempfile::TempDir;

use super::super::tests::{record, wait};
use super::starter::Asked;
use super::*;
use crate::config::units::Span;

mod asked;

/// A folder with a script in it.
struct Script {
    folder: TempDir,
}

impl Script {
    /// In the script, `$1` is the folder.
    fn new(text: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("hook");
        fs::write(path, format!("{text}\n")).unwrap();
        Self { folder }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn read(&self, name: &str) -> String {
        fs::read_to_string(self.path(name)).unwrap_or_default()
    }

    fn hook(&self, timeout_s: u64, at_most: u32) -> Hook {
        // Not by itself: while some other test starts a process, that may have it open for writing.
        let run = [Path::new("/bin/sh"), &self.path("hook"), self.folder.path()];
        let run = run.map(|path| path.to_str().unwrap().to_owned()).to_vec();
        Hook { on: vec![Kind::Ban, Kind::Unban], run, timeout: Span::from_secs(timeout_s), at_most }
    }
}

/// What the process does that starts hooks, on a thread of this one.
fn starter(instance: &'static str) -> Option<Starter> {
    let (ours, theirs) = UnixStream::pair().unwrap();
    thread::spawn(move || starter::serve_at(theirs, instance, |asked, _| Some(as_asked(asked))));
    Some(Starter::over(ours).unwrap())
}

/// The hook that the configuration has, if that is just what is asked for.
fn as_asked(asked: &Asked) -> Hook {
    let asked = serde_json::to_value(asked).unwrap();
    let on = asked["on"].as_array().unwrap().iter();
    let kind = |name: &serde_json::Value| Kind::ALL.iter().find(|kind| name == kind.name()).copied().unwrap();
    Hook {
        on: on.map(kind).collect(),
        run: serde_json::from_value(asked["run"].clone()).unwrap(),
        timeout: Span::from_ns(asked["timeout_ns"].as_u64().unwrap()),
        at_most: asked["at_most"].as_u64().unwrap().try_into().unwrap(),
    }
}

fn end() -> Instant {
    Instant::now() + Duration::from_secs(20)
}

fn is_running(pid: &str) -> bool {
    // A zombie of somebody else's is none of ours: orphans are reaped by whoever adopts them.
    let state = fs::read_to_string(format!("/proc/{}/stat", pid.trim())).unwrap_or_default();
    state.rsplit(") ").next().is_some_and(|rest| !rest.is_empty() && !rest.starts_with('Z'))
}

#[test]
fn a_program_gets_the_event_as_data_and_nothing_else() {
    let script =
        Script::new(r#"cat > "$1/stdin"; env -0 > "$1/env"; ls -l /proc/$$/fd > "$1/fds"; pwd > "$1/done""#);
    let mut hook = script.hook(20, 1);
    let literal = "$(touch pwned) `touch pwned`; touch pwned";
    hook.run.push(literal.to_owned());
    let open = fs::File::open(script.path("hook")).unwrap();
    assert!(open.as_raw_fd() > 2);
    let health = Health::default();
    let mut runner = HookRunner::start(&hook, starter("mail"), &health);
    let mut event = record("ban", "198.51.100.66");
    event.ban.note = Some(format!("{literal}\nDOSGUARD_KIND=unban\0x"));
    event.ban.window = None;
    let limited = Arc::new(record("limited", "192.0.2.1"));
    runner.tell(&limited);
    runner.tell(&Arc::new(event.clone()));
    Box::new(runner).finish(end());
    assert_eq!(script.read("stdin"), serde_json::to_string(&event).unwrap() + "\n");
    let env = script.read("env");
    let mut env: Vec<_> = env.split_terminator('\0').filter(|line| !line.starts_with("PWD=")).collect();
    env.sort_unstable();
    let note = format!("DOSGUARD_NOTE={literal}\nDOSGUARD_KIND=unbanx");
    let expected = [
        "DOSGUARD_AT=2026-01-01T12:00:00.25Z",
        "DOSGUARD_COUNT=4",
        "DOSGUARD_EVIDENCE=none",
        "DOSGUARD_INSTANCE=mail",
        "DOSGUARD_KIND=ban",
        "DOSGUARD_LIMIT=3",
        "DOSGUARD_MONITOR=false",
        &note,
        "DOSGUARD_OFFENCES=1",
        "DOSGUARD_REASON=syn-limit",
        "DOSGUARD_RULE=smtp",
        "DOSGUARD_SCOPE=all",
        "DOSGUARD_SEQ=4711",
        "DOSGUARD_SINCE=2026-01-01T12:00:00.25Z",
        "DOSGUARD_SOURCE=198.51.100.66",
        "DOSGUARD_UNTIL=2026-01-01T12:10:00.25Z",
    ];
    env.retain(|line| {
        !line.starts_with("PATH=/usr/local/sbin:") && !line.starts_with("_=") && !line.starts_with("OLDPWD=")
    });
    assert_eq!(env, expected);
    assert_eq!(script.read("done"), "/\n");
    // The script itself is open, by the shell that reads it, above the three; ours is not: it would be there twice.
    let fds = script.read("fds");
    assert!(fds.lines().filter(|line| line.ends_with("/hook")).count() <= 1, "{fds}");
    assert!(!script.path("pwned").exists() && !Path::new("/pwned").exists());
    assert_eq!((health.losses(Loss::HookFailed), health.warned()), (0, vec![]));
}

#[test]
fn one_at_a_time_they_keep_the_order() {
    let script = Script::new(r#"echo "$DOSGUARD_SOURCE" >> "$1/order""#);
    let health = Health::default();
    let mut runner = HookRunner::start(&script.hook(20, 1), starter("default"), &health);
    let sources: Vec<_> = (0..50).map(|n| format!("192.0.2.{n}")).collect();
    for source in &sources {
        runner.tell(&Arc::new(record("ban", source)));
    }
    Box::new(runner).finish(end());
    assert_eq!(script.read("order").lines().collect::<Vec<_>>(), sources);
}

#[test]
fn what_takes_too_long_is_killed_with_all_that_it_started() {
    let script = Script::new(
        r#"trap '' TERM; sleep 300 & echo $! > "$1/child"; echo $$ > "$1/pid"; while :; do sleep 300; done"#,
    );
    let health = Health::default();
    let mut runner = HookRunner::start(&script.hook(3, 1), starter("default"), &health);
    runner.tell(&Arc::new(record("ban", "192.0.2.1")));
    wait("a kill", || health.losses(Loss::HookKilled) == 1);
    for name in ["pid", "child"] {
        let pid = script.read(name);
        assert!(!pid.is_empty());
        wait("its end", || !is_running(&pid));
    }
    // Reaped too: no zombie stays.
    assert!(!Path::new("/proc").join(script.read("pid").trim()).exists());
    let warned = health.warned();
    assert!(
        warned[0].contains("/hook") && warned[0].contains("took longer than 3s and was killed"),
        "{warned:?}"
    );
    Box::new(runner).finish(end());
    assert_eq!(health.losses(Loss::HookKilled), 1);
}

#[test]
fn what_a_program_leaves_behind_ends_with_it() {
    let script = Script::new(r#"sleep 300 & echo $! > "$1/child""#);
    let health = Health::default();
    let mut runner = HookRunner::start(&script.hook(20, 1), starter("default"), &health);
    let began = Instant::now();
    runner.tell(&Arc::new(record("ban", "192.0.2.1")));
    Box::new(runner).finish(end());
    assert!(began.elapsed() < Duration::from_secs(15), "its open stderr is not waited for");
    wait("its end", || !is_running(&script.read("child")));
    assert_eq!(health.losses(Loss::HookKilled) + health.losses(Loss::HookFailed), 0);
}

#[test]
fn failures_are_counted_and_said_with_what_the_program_said() {
    let script = Script::new(
        r#"[ "$DOSGUARD_KIND" = unban ] && exit 0; printf 'no route\033[2J to peer\n%02000d' 7 >&2; exit 3"#,
    );
    let health = Health::default();
    let mut runner = HookRunner::start(&script.hook(20, 2), starter("default"), &health);
    for _ in 0..3 {
        runner.tell(&Arc::new(record("ban", "192.0.2.1")));
    }
    wait("three failures", || health.losses(Loss::HookFailed) == 3);
    let warned = health.warned();
    assert_eq!(warned.len(), 1);
    assert!(warned[0].contains(r"failed: exit status: 3: no route\u{1b}[2J to peer\n000"), "{warned:?}");
    assert!(warned[0].len() < 2 * 512, "{warned:?}");
    runner.tell(&Arc::new(record("unban", "192.0.2.1")));
    wait("a recovery", || health.warned().is_empty());
    Box::new(runner).finish(end());
}

#[test]
fn a_program_that_is_not_there_is_a_failure() {
    let script = Script::new("");
    let mut hook = script.hook(20, 1);
    hook.run[0] = script.path("absent").to_str().unwrap().to_owned();
    let health = Health::default();
    let mut runner = HookRunner::start(&hook, starter("default"), &health);
    runner.tell(&Arc::new(record("ban", "192.0.2.1")));
    wait("a warning", || !health.warned().is_empty());
    assert_eq!(health.losses(Loss::HookFailed), 1);
    let warned = health.warned();
    assert!(warned[0].contains("/absent") && warned[0].contains("cannot be run: No such file"), "{warned:?}");
    Box::new(runner).finish(end());
}

#[test]
fn in_a_flood_so_many_run_and_wait_and_the_rest_is_skipped() {
    // It neither reads what it is told nor is it quick.
    let script = Script::new(r#"echo >> "$1/runs"; exec sleep 0.2"#);
    let health = Health::default();
    let mut runner = HookRunner::start(&script.hook(20, 2), starter("default"), &health);
    let event = Arc::new(record("ban", "192.0.2.1"));
    let (told, began) = (100_000_u64, Instant::now());
    for _ in 0..told {
        runner.tell(&event);
    }
    assert!(began.elapsed() < Duration::from_secs(10), "{:?}", began.elapsed());
    let skipped = health.losses(Loss::HookSkipped);
    assert!(skipped > told - 1_200, "{skipped}");
    wait("some runs", || script.read("runs").len() > 4);
    let ended = Instant::now();
    Box::new(runner).finish(ended);
    assert!(ended.elapsed() < Duration::from_secs(10), "{:?}", ended.elapsed());
    // Each was run to its end, or killed, or skipped; those that were run, or killed, wrote their line or had no time to.
    // The end of what runs is waited for no longer than `KILL`: on a busy machine it is counted after that.
    let counts = || {
        let (skipped, killed) = (health.losses(Loss::HookSkipped), health.losses(Loss::HookKilled));
        (script.read("runs").len() as u64, skipped, killed)
    };
    let is_accounted_for = || {
        let (runs, skipped, killed) = counts();
        (told - skipped - killed..=told - skipped).contains(&runs)
    };
    wait("an account of each", is_accounted_for);
    let (runs, ..) = counts();
    thread::sleep(Duration::from_millis(300));
    let (runs_later, skipped, killed) = counts();
    assert!(is_accounted_for(), "{runs_later} runs, {skipped} skipped, {killed} killed");
    assert_eq!(runs_later, runs, "nothing runs any more");
    assert!(killed <= 2, "at most two at once: {killed}");
}

#[test]
fn changed_hooks_finish_what_they_were_told() {
    let script = Script::new(r#"echo "$DOSGUARD_SOURCE $2" >> "$1/runs""#);
    let services = |word: &str| {
        let mut hook = script.hook(20, 1);
        hook.run.push(word.to_owned());
        let log = crate::config::services::Log { stdout: None, ..Default::default() };
        crate::config::services::Services { log, hooks: vec![hook], ..Default::default() }
    };
    let health = Health::default();
    let mut outlets = super::super::Outlets::start(&services("one"), "default", starter("default"), &health);
    for n in 0..10 {
        outlets.tell(&Arc::new(record("ban", &format!("192.0.2.{n}"))));
        let word = if n < 4 { "one" } else { "two" };
        outlets.apply(&services(word));
    }
    wait("ten runs", || script.read("runs").lines().count() == 10);
    outlets.finish();
    let text = script.read("runs");
    let word = |n| if n < 5 { "one" } else { "two" };
    let expected: Vec<_> = (0..10).map(|n| format!("192.0.2.{n} {}", word(n))).collect();
    assert_eq!(text.lines().collect::<Vec<_>>(), expected, "in this order");
    assert_eq!(health.warned(), Vec::<String>::new());
}

#[test]
fn a_hook_that_runs_the_same_goes_on_wherever_it_stands() {
    let script =
        Script::new(r#"[ "$DOSGUARD_KIND" = ban ] && sleep 0.5; echo "$DOSGUARD_KIND" >> "$1/runs""#);
    let log = crate::config::services::Log { stdout: None, ..Default::default() };
    let services =
        |hooks| crate::config::services::Services { log: log.clone(), hooks, ..Default::default() };
    let health = Health::default();
    let mut outlets = super::super::Outlets::start(
        &services(vec![script.hook(20, 1)]),
        "default",
        starter("default"),
        &health,
    );
    outlets.tell(&Arc::new(record("ban", "192.0.2.1")));
    let other = Hook { run: vec!["/bin/true".to_owned()], ..script.hook(20, 1) };
    outlets.apply(&services(vec![other.clone(), script.hook(30, 1)]));
    outlets.tell(&Arc::new(record("unban", "192.0.2.1")));
    let only_bans = Hook { on: vec![Kind::Ban], ..script.hook(30, 1) };
    outlets.apply(&services(vec![only_bans, other]));
    outlets.tell(&Arc::new(record("unban", "192.0.2.2")));
    outlets.tell(&Arc::new(record("ban", "192.0.2.2")));
    wait("three runs", || script.read("runs").lines().count() == 3);
    outlets.finish();
    assert_eq!(script.read("runs"), "ban\nunban\nban\n");
}

#[test]
fn two_that_run_the_same_have_a_warning_each() {
    let script = Script::new(r#"echo "$DOSGUARD_KIND" >> "$1/runs"; [ "$DOSGUARD_KIND" = unban ]"#);
    let health = Health::default();
    let start = |kind| {
        let hook = Hook { on: vec![kind], ..script.hook(20, 1) };
        Box::new(HookRunner::start(&hook, starter("default"), &health))
    };
    let (mut fails, mut works) = (start(Kind::Ban), start(Kind::Unban));
    fails.tell(&Arc::new(record("ban", "192.0.2.1")));
    wait("a warning", || health.warned().len() == 1);
    works.tell(&Arc::new(record("unban", "192.0.2.1")));
    wait("its run", || script.read("runs").contains("unban"));
    works.finish(end());
    assert_eq!(health.warned().len(), 1);
    fails.finish(end());
    assert_eq!(health.warned(), Vec::<String>::new());
}

#[test]
fn who_leaves_the_group_is_not_listened_to_for_ever() {
    let script = Script::new(
        r#"setsid sh -c 'trap "" PIPE; echo > "$0/up"; while echo x >&2; do sleep 0.05; done; echo > "$0/gone"' "$1" &
        while [ ! -e "$1/up" ]; do sleep 0.05; done"#,
    );
    let health = Health::default();
    let mut runner = HookRunner::start(&script.hook(20, 1), starter("default"), &health);
    runner.tell(&Arc::new(record("ban", "192.0.2.1")));
    wait("the end of the pipe", || script.path("gone").exists());
    Box::new(runner).finish(end());
    assert_eq!(health.losses(Loss::HookKilled) + health.losses(Loss::HookFailed), 0);
}
