//! A file that follows the bans, on a disk that is full or read-only.

use std::fs;

use dosguard::bans::follow::Followed;
use dosguard_tests::lab::Lab;
use nix::mount::{MsFlags, mount};

#[test]
fn a_full_disk_and_a_read_only_one_leave_the_old_file() {
    let lab = Lab::new().unwrap();
    let folder = lab.directory().path().join("small");
    fs::create_dir(&folder).unwrap();
    let mount_with = |flags, options: Option<&str>| {
        mount(Some("tmpfs"), &folder, Some("tmpfs"), flags, options).unwrap();
    };
    mount_with(MsFlags::empty(), Some("size=64k"));
    let file = folder.join("hosts.deny");
    fs::write(&file, "sshd: 192.0.2.200\n").unwrap();
    let mut followed = Followed::new(file.clone(), "lab");
    assert!(followed.update(b"").unwrap());
    let emptied = fs::read_to_string(&file).unwrap();
    let content = || fs::read_to_string(&file).unwrap();
    assert!(followed.update(b"ALL: 203.0.113.1\n").unwrap());
    let before = content();
    // It does not fit beside the old one.
    let long = b"ALL: 203.0.113.2\n".repeat(5_000);
    let error = format!("{:#}", anyhow::Error::from(followed.update(&long).unwrap_err()));
    assert!(error.contains("cannot write") && error.contains("No space left"), "{error}");
    assert_eq!((content(), fs::read_dir(&folder).unwrap().count()), (before.clone(), 1));

    mount_with(MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY, None);
    let error = format!("{:#}", anyhow::Error::from(followed.update(b"").unwrap_err()));
    assert!(error.contains("cannot create") && error.contains("Read-only"), "{error}");
    assert_eq!(content(), before);
    mount_with(MsFlags::MS_REMOUNT, None);
    assert!(followed.update(b"").unwrap());
    assert_eq!(content(), emptied);
    nix::mount::umount(&folder).unwrap();
}
