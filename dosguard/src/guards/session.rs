//! Where the ssh session comes from in which this process was started.

use std::ffi::OsStr;
use std::fs;
use std::net::IpAddr;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use super::without_scope;

/// What sshd tells its sessions. Both begin with the address of the other end.
const VARIABLES: [&str; 2] = ["SSH_CONNECTION", "SSH_CLIENT"];
/// Longer chains of processes are not followed.
const MAX_DEPTH: usize = 64;

/// An ssh session, as seen from this machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Session {
    /// The address of the other end.
    pub peer: IpAddr,
    /// The port of this machine that it came to, if the variable says.
    pub port: Option<u16>,
}

/// The ssh session that this process belongs to, if it belongs to one.
///
/// `sudo` takes the variables away, so those with which the processes above were started are looked at too, the nearest
/// first. A variable that is there and empty says that there is no session.
pub fn ssh_session() -> Option<Session> {
    let own = VARIABLES.iter().find_map(|name| {
        let value = std::env::var_os(name)?;
        Some(session(value.as_bytes()))
    });
    match own {
        Some(session) => session,
        None => session_above(Path::new("/proc"), std::process::id()),
    }
}

/// The other end of that session.
pub fn ssh_peer() -> Option<IpAddr> {
    ssh_session().map(|session| session.peer)
}

/// What a value says.
fn session(value: &[u8]) -> Option<Session> {
    Some(Session { peer: peer(value)?, port: port(value) })
}

/// The last word of the value, if it has the others too.
fn port(value: &[u8]) -> Option<u16> {
    let words: Vec<_> = OsStr::from_bytes(value).to_str()?.split_whitespace().collect();
    words.get(2..)?.last()?.parse().ok()
}

/// Looks at the processes above `process`.
fn session_above(proc: &Path, process: u32) -> Option<Session> {
    let mut process = process;
    for _ in 0..MAX_DEPTH {
        process = parent(proc, process).filter(|parent| *parent > 1)?;
        // Those of others cannot be read without privileges; they may be above one that can.
        let environment = fs::read(proc.join(process.to_string()).join("environ")).unwrap_or_default();
        if let Some(session) = session_in(&environment) {
            return session;
        }
    }
    None
}

/// What an environment says: nothing, that there is no session, or which.
fn session_in(environment: &[u8]) -> Option<Option<Session>> {
    VARIABLES.iter().find_map(|name| {
        environment.split(|byte| *byte == 0).find_map(|entry| {
            let value = entry.strip_prefix(name.as_bytes())?.strip_prefix(b"=")?;
            Some(session(value))
        })
    })
}

/// The first word of the value.
fn peer(value: &[u8]) -> Option<IpAddr> {
    without_scope(OsStr::from_bytes(value).to_str()?.split_whitespace().next()?)
}

/// The parent, from the line `PPid:`.
fn parent(proc: &Path, process: u32) -> Option<u32> {
    let status = fs::read_to_string(proc.join(process.to_string()).join("status")).ok()?;
    status.lines().find_map(|line| line.strip_prefix("PPid:")?.trim().parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn process(proc: &Path, number: u32, parent: u32, environment: &[&str]) {
        let folder = proc.join(number.to_string());
        fs::create_dir(&folder).unwrap();
        fs::write(folder.join("status"), format!("Name:\tx\nPPid:\t{parent}\nUid:\t0\n")).unwrap();
        fs::write(folder.join("environ"), environment.join("\0")).unwrap();
    }

    #[test]
    fn the_nearest_session_above_counts() {
        let folder = tempfile::tempdir().unwrap();
        let proc = folder.path();
        process(proc, 10, 1, &["SSH_CONNECTION=203.0.113.9 1 192.0.2.1 22"]);
        process(proc, 20, 10, &["HOME=/root", "SSH_CLIENT=2001:db8::7%eth0 50000 2222", "TERM=xterm"]);
        process(proc, 30, 20, &["SUDO=1"]);
        process(proc, 40, 30, &[]);
        process(proc, 50, 10, &["SSH_CONNECTION="]);
        process(proc, 60, 50, &[]);
        process(proc, 70, 1, &[]);
        let above = |number| session_above(proc, number);
        let from = |peer: &str, port| Some(Session { peer: peer.parse().unwrap(), port: Some(port) });
        assert_eq!(above(40), from("2001:db8::7", 2222), "its port too");
        assert_eq!(above(20), from("203.0.113.9", 22));
        assert_eq!(above(60), None, "one above says that there is none");
        assert_eq!(above(70), None);
        assert_eq!(above(99), None, "no such process");
    }

    #[test]
    fn the_port_is_the_last_word() {
        assert_eq!(port(b"198.51.100.7 51234 192.0.2.1 2222"), Some(2222));
        assert_eq!(port(b"198.51.100.7 51234 22"), Some(22));
        assert_eq!([&b""[..], b"198.51.100.7 22", b"a b c"].map(port), [None; 3]);
    }

    #[test]
    fn what_is_no_address_is_no_session() {
        assert_eq!(peer(b"198.51.100.7 51234 192.0.2.1 22"), "198.51.100.7".parse().ok());
        assert_eq!(peer(b"::ffff:198.51.100.7 1 ::1 22"), "198.51.100.7".parse().ok());
        for value in [&b""[..], b"nonsense 1 2 3", b"\xff\xfe"] {
            assert_eq!(peer(value), None);
        }
    }
}
