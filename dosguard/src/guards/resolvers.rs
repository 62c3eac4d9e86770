//! The addresses of the name servers that this machine asks.

use std::fs;
use std::io;
use std::net::IpAddr;
use std::path::Path;

use super::without_scope;

const RESOLV_CONF: &str = "/etc/resolv.conf";
/// Those behind the stub of systemd-resolved.
const BEHIND_STUB: &str = "/run/systemd/resolve/resolv.conf";

/// The name servers of this machine, without those on the machine itself: of a local stub, the ones behind it.
pub(super) fn resolvers() -> io::Result<Vec<IpAddr>> {
    from_files(RESOLV_CONF.as_ref(), BEHIND_STUB.as_ref())
}

fn from_files(main: &Path, behind_stub: &Path) -> io::Result<Vec<IpAddr>> {
    let mut found = parse(&read(main)?);
    if found.iter().any(is_local) {
        found.extend(parse(&read(behind_stub)?));
    }
    found.retain(|address| !is_local(address));
    Ok(found)
}

/// A file that is not there names nobody.
fn read(path: &Path) -> io::Result<String> {
    match fs::read(path) {
        Ok(bytes) => Ok(String::from_utf8_lossy(&bytes).into_owned()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(String::new()),
        Err(error) => Err(io::Error::new(error.kind(), format!("`{}`: {error}", path.display()))),
    }
}

/// The `nameserver` lines of a resolv.conf(5).
fn parse(text: &str) -> Vec<IpAddr> {
    let address = |line: &str| {
        let mut words = line.split_whitespace();
        if words.next() == Some("nameserver") { without_scope(words.next()?) } else { None }
    };
    text.lines().filter_map(address).collect()
}

/// The unspecified address stands for the machine itself, too.
fn is_local(address: &IpAddr) -> bool {
    address.is_loopback() || address.is_unspecified()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn name_servers_are_found_among_the_rest() {
        let text = "# nameserver 192.0.2.1\nsearch example.org\nnameserver 192.0.2.53\n\tnameserver\t2001:db8::53 # x\n\
                    nameserver fe80::53%eth0\nnameserver\nnameserver example.org\noptions edns0\nnameservers 192.0.2.2\n";
        let expected = ["192.0.2.53", "2001:db8::53", "fe80::53"].map(|text| text.parse::<IpAddr>().unwrap());
        assert_eq!(parse(text), expected);
    }

    #[test]
    fn behind_a_local_stub_stand_the_real_ones() {
        let folder = tempfile::tempdir().unwrap();
        let (main, behind) = (folder.path().join("main"), folder.path().join("behind"));
        let found =
            || from_files(&main, &behind).unwrap().iter().map(ToString::to_string).collect::<Vec<_>>();
        assert!(found().is_empty(), "there are no files");
        fs::write(&main, "nameserver 127.0.0.53\n").unwrap();
        assert!(found().is_empty());
        fs::write(&behind, "nameserver 192.0.2.53\nnameserver ::1\n").unwrap();
        assert_eq!(found(), ["192.0.2.53"]);
        fs::write(&main, "nameserver 198.51.100.53\n").unwrap();
        assert_eq!(found(), ["198.51.100.53"], "no stub: what stands behind one does not matter");
    }
}
