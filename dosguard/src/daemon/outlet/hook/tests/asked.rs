//! What the process that starts hooks does for whom.

use std::io::{BufRead as _, BufReader, Write as _};

use nix::sys::socket::{MsgFlags, recv};

use super::*;

#[test]
fn only_what_is_configured_is_run() {
    let script = Script::new(r#"touch "$1/done""#);
    let (ours, theirs) = UnixStream::pair().unwrap();
    let configured = Hook { run: vec!["/bin/true".to_owned()], ..script.hook(20, 1) };
    let known = configured.clone();
    thread::spawn(move || {
        starter::serve_at(theirs, "default", |asked, _| asked.is(&known).then(|| known.clone()))
    });
    let starter = Starter::over(ours).unwrap();
    let health = Health::default();
    let mut runner = HookRunner::start(&script.hook(20, 1), Some(starter.clone()), &health);
    runner.tell(&Arc::new(record("ban", "192.0.2.1")));
    wait("it is refused", || health.losses(Loss::HookFailed) == 1);
    assert!(health.warned()[0].contains("is not what the configuration says"), "{:?}", health.warned());
    Box::new(runner).finish(end());
    assert!(!script.path("done").exists());
    // Nor for longer, nor more of it at once.
    let (timeout, at_most) = (Span::from_secs(600), 2);
    for other in [Hook { timeout, ..configured.clone() }, Hook { at_most, ..configured.clone() }] {
        let before = health.losses(Loss::HookFailed);
        let mut runner = HookRunner::start(&other, Some(starter.clone()), &health);
        runner.tell(&Arc::new(record("ban", "192.0.2.1")));
        wait("it is refused", || health.losses(Loss::HookFailed) == before + 1);
        Box::new(runner).finish(end());
    }
    let mut runner = HookRunner::start(&configured, Some(starter), &health);
    runner.tell(&Arc::new(record("ban", "192.0.2.1")));
    Box::new(runner).finish(end());
    assert_eq!(health.losses(Loss::HookFailed), 3);
}

/// A question as the daemon writes it.
fn question(id: u64, hook: &Hook) -> Vec<u8> {
    let on: Vec<_> = hook.on.iter().map(|kind| kind.name()).collect();
    let (timeout_ns, at_most) = (hook.timeout.ns(), hook.at_most);
    let asked = serde_json::json!({"on": on, "run": hook.run, "timeout_ns": timeout_ns, "at_most": at_most});
    let record = record("ban", "192.0.2.1");
    let question = serde_json::json!({"Run": {"id": id, "hook": asked, "record": record}});
    format!("{question}\n").into_bytes()
}

#[test]
fn no_more_run_at_once_than_is_configured_whoever_asks_and_the_others_wait() {
    let script = Script::new(r#"echo >> "$1/ran"; exec sleep 300"#);
    let hook = script.hook(600, 2);
    let (mut ours, theirs) = UnixStream::pair().unwrap();
    let known = hook.clone();
    let served = thread::spawn(move || {
        starter::serve_at(theirs, "default", |asked, _| asked.is(&known).then(|| known.clone()))
    });
    for id in 1..=4 {
        ours.write_all(&question(id, &hook)).unwrap();
    }
    let mut answers = BufReader::new(ours.try_clone().unwrap()).lines().map(Result::unwrap);
    wait("two run", || script.read("ran").len() == 2);
    // One that waits need not be killed.
    ours.write_all(b"{\"Stop\":{\"id\":3}}\n").unwrap();
    assert_eq!(answers.next().unwrap(), r#"[3,"Stopped"]"#);
    assert_eq!(script.read("ran").len(), 2);
    ours.write_all(b"{\"Stop\":{\"id\":1}}\n").unwrap();
    assert_eq!(answers.next().unwrap(), r#"[1,"Stopped"]"#);
    wait("the next one runs", || script.read("ran").len() == 3);
    // Who asks for very many has none of them forgotten silently.
    for id in 5..5 + 1_024 + 1 {
        ours.write_all(&question(id, &hook)).unwrap();
    }
    let refused = answers.next().unwrap();
    assert!(refused.starts_with("[1029,") && refused.contains("too many wait"), "{refused}");
    drop((ours, answers));
    served.join().unwrap().unwrap();
}

/// What the daemon asks before it has anything to be run.
#[test]
fn a_hook_that_is_new_is_looked_for_before_it_is_to_be_run() {
    let script = Script::new(r#"touch "$1/done""#);
    let hook = script.hook(20, 1);
    let (ours, theirs) = UnixStream::pair().unwrap();
    let (told, heard) = std::sync::mpsc::channel();
    thread::spawn(move || {
        let mut known = Vec::new();
        starter::serve_at(theirs, "default", |asked, is_news| {
            // From then on its file says something else.
            if is_news {
                known.push(as_asked(asked));
                told.send(()).unwrap();
            }
            known.iter().find(|hook| asked.is(hook)).cloned()
        })
    });
    let (starter, health) = (Starter::over(ours).unwrap(), Health::default());
    let mut runner = HookRunner::start(&hook, Some(starter), &health);
    heard.recv_timeout(Duration::from_secs(20)).unwrap();
    let changed = Hook { at_most: 2, ..hook };
    runner.change(&changed);
    heard.recv_timeout(Duration::from_secs(20)).unwrap();
    runner.tell(&Arc::new(record("ban", "192.0.2.1")));
    wait("it is run", || script.path("done").exists());
    Box::new(runner).finish(end());
    assert_eq!(health.losses(Loss::HookFailed), 0);
}

/// What the daemon does at last: given its end of the socket, a question, and a line that is too long.
type Ending = fn(&mut UnixStream, &[u8], &[u8]);

#[test]
fn what_runs_is_killed_however_the_daemon_goes() {
    let script = Script::new(r#"echo $$ > "$1/pid.new"; mv "$1/pid.new" "$1/pid"; exec sleep 300"#);
    let hook = script.hook(600, 1);
    let refused = Hook { run: vec!["/bin/true".to_owned()], ..hook.clone() };
    let too_long = vec![b'x'; 2 << 20];
    let endings: [Ending; 3] = [
        // With an answer that it has not read: what is read or written then is an error.
        |ours, question, _| {
            ours.write_all(question).unwrap();
            let mut peeked = [0; 1];
            recv(ours.as_raw_fd(), &mut peeked, MsgFlags::MSG_PEEK).unwrap();
        },
        |ours, _, _| ours.write_all(b"this is no question\n").unwrap(),
        // It does not wait for the end of it.
        |ours, _, too_long| drop(ours.write_all(too_long)),
    ];
    for end_it in endings {
        drop(fs::remove_file(script.path("pid")));
        let (mut ours, theirs) = UnixStream::pair().unwrap();
        let known = hook.clone();
        let served = thread::spawn(move || {
            starter::serve_at(theirs, "default", |asked, _| asked.is(&known).then(|| known.clone()))
        });
        ours.write_all(&question(1, &hook)).unwrap();
        wait("it runs", || script.path("pid").exists());
        let pid = script.read("pid");
        assert!(is_running(&pid));
        end_it(&mut ours, &question(2, &refused), &too_long);
        drop(ours);
        served.join().unwrap().unwrap_err();
        wait("its end", || !is_running(&pid));
    }
}

#[test]
fn without_who_starts_them_events_are_counted_as_failed() {
    let script = Script::new("true");
    let (ours, theirs) = UnixStream::pair().unwrap();
    drop(theirs);
    let health = Health::default();
    for starter in [Some(Starter::over(ours).unwrap()), None] {
        let before = health.losses(Loss::HookFailed);
        let mut runner = HookRunner::start(&script.hook(20, 1), starter, &health);
        runner.tell(&Arc::new(record("ban", "192.0.2.1")));
        wait("it is counted", || health.losses(Loss::HookFailed) == before + 1);
        assert_eq!(health.warned().len(), 1, "{:?}", health.warned());
        Box::new(runner).finish(end());
    }
}
