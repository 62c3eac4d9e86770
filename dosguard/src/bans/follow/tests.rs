use std::os::unix::fs::symlink;

use tempfile::TempDir;

use super::*;

const BLOCK: &str = "# dosguard lab begin: sources that are banned; do not edit between these lines\n\
                     192.0.2.1\n\
                     # dosguard lab end\n";
const LINES: &[u8] = b"192.0.2.1\n";

fn folder_with(content: &str) -> (TempDir, Followed) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("hosts.deny");
    fs::write(&path, content).unwrap();
    let followed = Followed::new(path, "lab");
    (folder, followed)
}

fn content(followed: &Followed) -> String {
    fs::read_to_string(followed.path()).unwrap()
}

fn names(folder: &TempDir) -> Vec<String> {
    let entries = fs::read_dir(folder.path()).unwrap();
    entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}

#[test]
fn it_is_written_when_it_differs_and_only_then() {
    let (folder, mut followed) = folder_with("sshd: 203.0.113.1\n");
    assert!(followed.update(LINES).unwrap());
    assert_eq!(content(&followed), format!("sshd: 203.0.113.1\n{BLOCK}"));
    let inode = || fs::metadata(folder.path().join("hosts.deny")).unwrap().ino();
    let before = inode();
    assert!(!followed.update(LINES).unwrap());
    assert!(!Followed::new(followed.path.clone(), "lab").update(LINES).unwrap(), "nor by who comes later");
    assert_eq!(inode(), before);
    // What somebody else changes in the block is put right, what they change outside stays.
    fs::write(followed.path(), content(&followed).replace("192.0.2.1", "192.0.2.9") + "more\n").unwrap();
    assert!(followed.update(LINES).unwrap());
    assert_eq!(content(&followed), format!("sshd: 203.0.113.1\n{BLOCK}more\n"));
    assert_eq!(names(&folder), ["hosts.deny"], "nothing is left behind");
}

#[test]
fn a_file_that_is_not_there_is_made() {
    let (folder, mut followed) = folder_with("");
    fs::remove_file(followed.path()).unwrap();
    assert!(followed.update(LINES).unwrap());
    assert_eq!(content(&followed), BLOCK);
    assert_eq!(fs::metadata(followed.path()).unwrap().mode() & 0o7777, 0o644);
    fs::remove_file(followed.path()).unwrap();
    assert!(followed.update(LINES).unwrap(), "and again");
    assert_eq!(names(&folder), ["hosts.deny"]);
    let nowhere = folder.path().join("none").join("hosts.deny");
    assert!(matches!(Followed::new(nowhere, "lab").update(LINES), Err(FollowError::Io { .. })));
}

#[test]
fn mode_and_attributes_stay() {
    let (_folder, mut followed) = folder_with("x\n");
    fs::set_permissions(followed.path(), Permissions::from_mode(0o640)).unwrap();
    let has_attributes = xattr::set(followed.path(), "user.note", b"kept").is_ok();
    assert!(followed.update(LINES).unwrap());
    assert_eq!(fs::metadata(followed.path()).unwrap().mode() & 0o7777, 0o640);
    if has_attributes {
        assert_eq!(xattr::get(followed.path(), "user.note").unwrap().unwrap(), b"kept");
    }
}

#[test]
fn a_file_of_any_size_is_replaced_as_a_whole_and_none_too_large_is_kept_in_line() {
    let (folder, mut followed) = folder_with("old\n");
    let path = folder.path().join("hosts.deny");
    File::options().write(true).open(&path).unwrap().set_len(MAX_BYTES + 1).unwrap();
    let error = followed.update(LINES).unwrap_err().to_string();
    assert!(error.contains("larger than 64 MiB"), "{error}");
    followed.replace(LINES).unwrap();
    assert_eq!(fs::read(&path).unwrap(), LINES);
}

#[test]
fn a_symbolic_link_where_others_may_put_one_is_not_followed() {
    let folder = tempfile::tempdir().unwrap();
    let theirs = folder.path().join("theirs");
    fs::create_dir(&theirs).unwrap();
    let (ours, link) = (folder.path().join("hosts.deny"), theirs.join("deny"));
    fs::write(&ours, "mine\n").unwrap();
    symlink(&ours, &link).unwrap();
    fs::set_permissions(&theirs, Permissions::from_mode(0o777)).unwrap();
    let mut linked = Followed::new(link, "lab");
    for said in [linked.update(LINES).unwrap_err(), linked.replace(LINES).unwrap_err()] {
        assert!(said.to_string().contains("may replace"), "{said}");
    }
    assert_eq!(fs::read_to_string(&ours).unwrap(), "mine\n");
    fs::set_permissions(&theirs, Permissions::from_mode(0o755)).unwrap();
    assert!(linked.update(LINES).unwrap());
}

#[test]
fn a_symbolic_link_stays_and_what_it_leads_to_is_replaced() {
    let (folder, followed) = folder_with("x\n");
    let link = folder.path().join("link");
    symlink("hosts.deny", &link).unwrap();
    let mut linked = Followed::new(link.clone(), "lab");
    assert!(linked.update(LINES).unwrap());
    assert!(link.is_symlink());
    assert_eq!(content(&followed), format!("x\n{BLOCK}"));
    fs::remove_file(followed.path()).unwrap();
    let error = linked.update(LINES).unwrap_err().to_string();
    assert!(error.contains("leads nowhere"), "{error}");
}

#[test]
fn what_is_no_file_is_refused_at_once() {
    let (folder, _) = folder_with("");
    let pipe = folder.path().join("pipe");
    nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRWXU).unwrap();
    for (path, what) in [
        (folder.path().to_owned(), "a folder"),
        (pipe, "no ordinary file"),
        ("/dev/null".into(), "no ordinary file"),
    ] {
        let error = Followed::new(path, "lab").update(LINES).unwrap_err().to_string();
        assert!(error.contains(what) && error.contains("\nhint: "), "{error}");
    }
}

#[test]
fn damaged_markers_are_left_alone() {
    let (folder, mut followed) = folder_with("# dosguard lab begin\nmine\n");
    let error = anyhow::Error::from(followed.update(LINES).unwrap_err());
    assert!(format!("{error:#}").contains("begin in line 1"), "{error:#}");
    assert_eq!(content(&followed), "# dosguard lab begin\nmine\n");
    assert_eq!(names(&folder), ["hosts.deny"]);
}

#[test]
fn what_a_killed_process_left_is_removed_and_what_another_writes_is_not() {
    let (folder, mut followed) = folder_with("");
    let left = folder.path().join(".hosts.deny.dosguard-lab");
    fs::write(&left, "half").unwrap();
    let others = File::open(&left).unwrap();
    // The time of the file says nothing: the clock may have been set.
    others.lock().unwrap();
    let error = followed.update(LINES).unwrap_err().to_string();
    assert!(error.contains("another process is writing") && error.contains("\nhint: "), "{error}");
    assert_eq!((content(&followed).as_str(), fs::read_to_string(&left).unwrap().as_str()), ("", "half"));
    drop(others);
    assert!(followed.update(LINES).unwrap());
    assert_eq!(names(&folder), ["hosts.deny"]);
    symlink("hosts.deny", &left).unwrap();
    assert!(followed.update(b"192.0.2.2\n").unwrap(), "a link is not followed");
    assert_eq!(names(&folder), ["hosts.deny"]);
}

#[test]
fn a_change_in_the_last_moment_is_seen() {
    let (_folder, followed) = folder_with("x\n");
    let found = read(followed.path()).unwrap();
    assert!(is_still(followed.path(), &found).unwrap());
    fs::write(followed.path(), "y\n").unwrap();
    assert_eq!(followed.write(followed.path(), &found, b"z").unwrap(), None);
    assert_eq!(content(&followed), "y\n");
    let none = Found { content: Vec::new(), file: None, reads: true };
    assert_eq!(followed.write(followed.path(), &none, b"z").unwrap(), None, "it was not there, and is now");
    assert_eq!(content(&followed), "y\n");
}
