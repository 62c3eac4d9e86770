//! The host's settings: whether it takes cookies that it has not sent, and what its own listeners would say.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::PathBuf;

use dosguard_common::challenge::SynAck;

use super::{FIX, Obstacle, Readiness};

/// The kernel's settings that matter, of this thread's network namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Host {
    pub(super) cookies: u32,
    pub(super) timestamps: u32,
    pub(super) window_scaling: bool,
    pub(super) sack: bool,
    /// The setting that makes it a router, if it is one.
    pub(super) forwards: Option<String>,
    /// Default and largest receive buffer of TCP, in bytes.
    pub(super) receive: [u32; 2],
    /// Largest receive buffer that is set by hand.
    pub(super) receive_max: u32,
    pub(super) ttl: u8,
    pub(super) hop_limit: u8,
}

/// More than any of the settings has.
const LONGEST: usize = 128;

/// The files of settings, kept open: each that is looked at again takes one call to the kernel, and not five.
#[derive(Debug)]
pub(super) struct Settings {
    root: PathBuf,
    open: BTreeMap<String, File>,
}

impl Settings {
    /// Those of this thread's network namespace.
    pub(super) fn new() -> Self {
        Self::below("/proc/sys/net")
    }

    fn below(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into(), open: BTreeMap::new() }
    }

    /// What a setting is now.
    fn text(&mut self, name: &str) -> io::Result<String> {
        let wrong = |error: io::Error| io::Error::new(error.kind(), format!("{name}: {error}"));
        // That of an interface that is gone cannot be read any more, also if there is one of this name again.
        if let Some(text) = self.open.get(name).and_then(|file| read(file).ok()) {
            return Ok(text);
        }
        let file = File::open(self.root.join(name)).map_err(wrong)?;
        let text = read(&file).map_err(wrong)?;
        self.open.insert(name.to_owned(), file);
        Ok(text)
    }

    fn numbers(&mut self, name: &str) -> io::Result<Vec<u32>> {
        let numbers: Result<_, _> = self.text(name)?.split_whitespace().map(str::parse).collect();
        numbers.map_err(|_| io::Error::other(format!("{name} is no number")))
    }

    fn number(&mut self, name: &str) -> io::Result<u32> {
        Ok(self.numbers(name)?.first().copied().unwrap_or(0))
    }

    fn byte(&mut self, name: &str) -> io::Result<u8> {
        Ok(u8::try_from(self.number(name)?).unwrap_or(u8::MAX))
    }

    /// What a kernel does not have, or no interface has any more, is not set.
    fn is_set(&mut self, name: &str) -> io::Result<bool> {
        match self.number(name) {
            Ok(number) => Ok(number != 0),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(error),
        }
    }
}

fn read(file: &File) -> io::Result<String> {
    let mut buffer = [0; LONGEST];
    let length = file.read_at(&mut buffer, 0)?;
    let text = buffer.get(..length).filter(|text| text.len() < LONGEST);
    let text = text.ok_or_else(|| io::Error::other(format!("it has more than {} bytes", LONGEST - 1)))?;
    str::from_utf8(text).map(str::to_owned).map_err(io::Error::other)
}

/// The setting in a file below that, as sysctl(8) calls it: dots of an interface's name become slashes.
fn setting(file: &str) -> String {
    let swap = |letter| match letter {
        '/' => '.',
        '.' => '/',
        other => other,
    };
    format!("net.{}", file.chars().map(swap).collect::<String>())
}

impl Host {
    /// With the guarded interfaces, by name.
    pub(super) fn read(settings: &mut Settings, interfaces: &[&str]) -> io::Result<Self> {
        let routers = ["ipv4/ip_forward", "ipv6/conf/all/forwarding"].map(str::to_owned);
        // A packet is forwarded by the settings of the interface that it came in on.
        let of_each = ["ipv4/conf/IF/forwarding", "ipv6/conf/IF/forwarding", "ipv6/conf/IF/force_forwarding"];
        let of_each = interfaces.iter().flat_map(|name| of_each.map(|file| file.replace("IF", name)));
        let mut forwards = None;
        for file in routers.into_iter().chain(of_each) {
            if settings.is_set(&file)? {
                forwards = Some(setting(&file));
                break;
            }
        }
        let receive = settings.numbers("ipv4/tcp_rmem")?;
        Ok(Self {
            cookies: settings.number("ipv4/tcp_syncookies")?,
            timestamps: settings.number("ipv4/tcp_timestamps")?,
            window_scaling: settings.is_set("ipv4/tcp_window_scaling")?,
            sack: settings.is_set("ipv4/tcp_sack")?,
            forwards,
            receive: [receive.get(1).copied().unwrap_or(0), receive.get(2).copied().unwrap_or(0)],
            // Of the first network namespace alone; the others have its value.
            receive_max: settings.number("core/rmem_max").unwrap_or(0),
            ttl: settings.byte("ipv4/ip_default_ttl")?.max(1),
            hop_limit: settings.byte("ipv6/conf/all/hop_limit").unwrap_or(64).max(1),
        })
    }

    pub(super) fn readiness(&self) -> Readiness {
        let mut found = Readiness::default();
        if self.cookies != 2 {
            found.obstacles.push(Obstacle {
                what: format!("net.ipv4.tcp_syncookies is {}", self.cookies),
                more: "with 2 the host takes cookies that it has not sent itself".to_owned(),
                can_be_set: true,
            });
        }
        if let Some(setting) = &self.forwards {
            found.obstacle(
                format!("the host forwards packets ({setting} is 1)"),
                "what it hands on to other addresses cannot be answered in their place",
            );
        }
        if found.obstacles.is_empty() && self.timestamps != 2 {
            found.notes.push(format!(
                "challenged connections have no window scale and no SACK: net.ipv4.tcp_timestamps is {}, with 2 they \
                 have both {FIX}",
                self.timestamps
            ));
        }
        found
    }

    /// What a listener of the host would say that has not chosen its own buffers (`tcp_select_initial_window` in Linux
    /// net/ipv4/tcp_output.c), on a link with this MTU.
    pub(super) fn synack(&self, mtu: u32) -> SynAck {
        const TIMESTAMPS: u32 = 12;
        let [default, largest] = self.receive;
        // Half of the buffer is for what is around the bytes.
        let space = default / 2;
        let window = |segment: u32| {
            let whole = if segment == 0 || space <= segment { space } else { space / segment * segment };
            u16::try_from(whole).unwrap_or(u16::MAX)
        };
        // What the headers leave; no less than Linux says (`net.ipv4.route.min_adv_mss`; RFC 8200, section 5).
        let segments = [mtu.saturating_sub(40).max(256), mtu.saturating_sub(60).max(1220)];
        let most = space.max(largest).max(self.receive_max);
        let wscale = most.checked_ilog2().unwrap_or(0).saturating_sub(15).min(14);
        let offers = [
            (SynAck::TIMESTAMPS, self.timestamps == 2),
            (SynAck::WINDOW_SCALE, self.window_scaling),
            (SynAck::SACK, self.sack),
        ];
        SynAck {
            ttl: self.ttl,
            hop_limit: self.hop_limit,
            wscale: u8::try_from(wscale).unwrap_or(14),
            offers: offers.into_iter().filter(|(_, is)| *is).fold(0, |all, (offer, _)| all | offer),
            mss: segments.map(|segment| u16::try_from(segment).unwrap_or(u16::MAX)),
            window: segments.map(window),
            window_timestamps: segments.map(|segment| window(segment - TIMESTAMPS)),
        }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub(crate) fn host() -> Host {
        Host {
            cookies: 2,
            timestamps: 2,
            window_scaling: true,
            sack: true,
            forwards: None,
            receive: [131_072, 6_291_456],
            receive_max: 212_992,
            ttl: 64,
            hop_limit: 64,
        }
    }

    pub(crate) fn router() -> Option<String> {
        Some(setting("ipv4/ip_forward"))
    }

    #[test]
    fn the_host_says_what_its_own_listeners_say() {
        // As Linux 6.18 answers by itself with these settings.
        let synack = host().synack(1500);
        assert_eq!((synack.mss, synack.wscale), ([1460, 1440], 7));
        assert_eq!((synack.window, synack.window_timestamps), ([64_240, 64_800], [65_160, 64_260]));
        assert_eq!(Host { timestamps: 1, ..host() }.synack(1500).offers & SynAck::TIMESTAMPS, 0);
        assert_eq!(host().synack(0).mss, [256, 1220]);
        assert_eq!(Host { receive: [0, 0], receive_max: 0, ..host() }.synack(1500).wscale, 0);
    }

    #[test]
    fn the_settings_are_read() {
        let host = Host::read(&mut Settings::new(), &["lo"]).unwrap();
        assert!(host.cookies <= 2 && host.ttl > 0 && host.receive[1] >= host.receive[0], "{host:?}");
    }

    #[test]
    fn an_interface_may_forward_by_itself() {
        let folder = tempfile::tempdir().unwrap();
        let write = |file: &str, value: &str| {
            let path = folder.path().join(file);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, value).unwrap();
        };
        for (file, value) in [("syncookies", "2"), ("timestamps", "2"), ("rmem", "4096 131072 6291456")] {
            write(&format!("ipv4/tcp_{file}"), value);
        }
        write("ipv4/ip_default_ttl", "64");
        write("ipv4/ip_forward", "0");
        let mut settings = Settings::below(folder.path());
        let mut forwards = |interfaces: &[&str]| Host::read(&mut settings, interfaces).unwrap().forwards;
        write("ipv4/conf/eth0.7/forwarding", "1");
        assert_eq!(forwards(&[]), None);
        assert_eq!(forwards(&["eth0"]), None);
        assert_eq!(forwards(&["eth0", "eth0.7"]).unwrap(), "net.ipv4.conf.eth0/7.forwarding");
        write("ipv6/conf/eth0/forwarding", "1");
        assert_eq!(forwards(&["eth0"]).unwrap(), "net.ipv6.conf.eth0.forwarding");
        write("ipv6/conf/eth0/forwarding", "0");
        write("ipv6/conf/eth0/force_forwarding", "1");
        assert_eq!(forwards(&["eth0"]).unwrap(), "net.ipv6.conf.eth0.force_forwarding");
        write("ipv4/ip_forward", "1");
        assert_eq!(forwards(&["eth0"]).unwrap(), "net.ipv4.ip_forward");
        // What cannot be read is not taken for what forwards nothing.
        write("ipv4/ip_forward", &"0".repeat(LONGEST));
        let error = Host::read(&mut settings, &["eth0"]).unwrap_err().to_string();
        assert_eq!(error, "ipv4/ip_forward: it has more than 127 bytes");
    }
}
