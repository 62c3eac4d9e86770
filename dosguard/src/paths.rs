//! Every path that dosguard uses, in one place.

use std::fmt;
use std::path::{Path, PathBuf};

use dosguard_common::abi::ABI_VERSION;
use thiserror::Error;

/// Where the BPF file system is mounted unless said otherwise.
pub const DEFAULT_BPFFS: &str = "/sys/fs/bpf";
/// Locks and sockets; gone at boot, like the pins.
pub const DEFAULT_RUN_DIR: &str = "/run/dosguard";
/// What survives a boot.
pub const DEFAULT_STATE_DIR: &str = "/var/lib/dosguard";
/// What the administrator writes.
pub const DEFAULT_CONFIG_DIR: &str = "/etc/dosguard";
/// The instance that is meant unless said otherwise.
pub const DEFAULT_INSTANCE: &str = "default";

const MAX_INSTANCE: usize = 32;

/// The names of the default instance's main file and of its folder of drop-ins, without `.toml` and `.d`. No other instance
/// may be called so: it would read them.
const DEFAULT_CONFIG: [&str; 2] = ["dosguard", "conf"];

/// An instance name that cannot be used.
#[derive(Debug, Error)]
#[error("`{0}` cannot name an instance\nhint: use 1 to {MAX_INSTANCE} letters, digits, `-` or `_`; `{taken}` are taken \
     by files of instance `{DEFAULT_INSTANCE}`", taken = DEFAULT_CONFIG.join("` and `"))]
pub struct BadInstance(String);

/// The paths of one instance.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Paths {
    instance: String,
    bpffs: PathBuf,
    run_dir: PathBuf,
    state_dir: PathBuf,
    config_dir: PathBuf,
}

impl Paths {
    /// The paths of `instance` below these folders, and below [`DEFAULT_CONFIG_DIR`].
    pub fn new(
        instance: &str,
        bpffs: PathBuf,
        run_dir: PathBuf,
        state_dir: PathBuf,
    ) -> Result<Self, BadInstance> {
        let fits = (1..=MAX_INSTANCE).contains(&instance.len())
            && instance.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte));
        if !fits || DEFAULT_CONFIG.contains(&instance) {
            return Err(BadInstance(instance.to_owned()));
        }
        Ok(Self {
            instance: instance.to_owned(),
            bpffs,
            run_dir,
            state_dir,
            config_dir: DEFAULT_CONFIG_DIR.into(),
        })
    }

    /// The same with another folder of configurations.
    #[must_use]
    pub fn with_config_dir(self, config_dir: PathBuf) -> Self {
        Self { config_dir, ..self }
    }

    /// The instance's name.
    pub fn instance(&self) -> &str {
        &self.instance
    }

    /// How to call dosguard for this instance, for hints.
    pub fn command(&self) -> String {
        command(&self.instance)
    }

    /// The BPF file system's mount point.
    pub fn bpffs(&self) -> &Path {
        &self.bpffs
    }

    /// The folder of locks and sockets, 0755.
    pub fn run_dir(&self) -> &Path {
        &self.run_dir
    }

    /// The folder of what survives a boot, 0700.
    pub fn state_dir(&self) -> &Path {
        &self.state_dir
    }

    /// The folder of what the administrator writes.
    pub fn config_dir(&self) -> &Path {
        &self.config_dir
    }

    /// The instance's main configuration file.
    pub fn config_file(&self) -> PathBuf {
        let name = if self.instance == DEFAULT_INSTANCE { DEFAULT_CONFIG[0] } else { &self.instance };
        self.config_dir.join(format!("{name}.toml"))
    }

    /// The folder of the files that add to it.
    pub fn config_drop_ins(&self) -> PathBuf {
        let name = if self.instance == DEFAULT_INSTANCE { DEFAULT_CONFIG[1] } else { &self.instance };
        self.config_dir.join(format!("{name}.d"))
    }

    /// The folder that holds one folder of pins per ABI version, 0700.
    pub fn instance_pins(&self) -> PathBuf {
        self.bpffs.join("dosguard").join(&self.instance)
    }

    /// The pins of this ABI version. The folder is there with all of them, or not at all.
    pub fn pins(&self) -> PathBuf {
        self.pins_of(ABI_VERSION)
    }

    /// The pins of an ABI version.
    pub fn pins_of(&self, version: u32) -> PathBuf {
        self.instance_pins().join(format!("v{version}"))
    }

    /// Where the pins are made before they appear under their own name.
    pub fn staging_pins(&self) -> PathBuf {
        self.instance_pins().join(STAGING)
    }

    /// A pinned map.
    pub fn map(&self, name: &str) -> PathBuf {
        self.pins().join(name)
    }

    /// The pinned program.
    pub fn program(&self) -> PathBuf {
        self.pins().join(PROGRAM)
    }

    /// The program that is about to take the pinned one's place on every link. It is there only meanwhile.
    pub fn next_program(&self) -> PathBuf {
        self.pins().join(NEXT_PROGRAM)
    }

    /// The folder of the pinned links.
    pub fn links(&self) -> PathBuf {
        self.pins().join(LINKS)
    }

    /// The pinned link of an interface, by its network namespace and index: indices repeat between namespaces, and
    /// names may have dots, which a BPF file system refuses.
    pub fn link(&self, link: LinkName) -> PathBuf {
        self.links().join(link.to_string())
    }

    /// The socket on which the daemon serves events, 0660.
    pub fn socket(&self) -> PathBuf {
        self.run_dir.join(format!("{}.sock", self.instance))
    }

    /// The socket at which an attachment waits to be confirmed, 0600.
    pub fn confirm_socket(&self) -> PathBuf {
        self.run_dir.join(format!("{}.confirm", self.instance))
    }

    /// The instance's history and what is to survive a boot: an SQLite database, 0600.
    pub fn database(&self) -> PathBuf {
        self.state_dir.join(format!("{}.db", self.instance))
    }

    /// Held while the instance's kernel state is changed, 0600.
    pub fn lock(&self) -> PathBuf {
        self.run_dir.join(format!("{}.lock", self.instance))
    }

    /// The lock that commands hold together which have drops counted for each source, 0600.
    pub fn viewers_lock(&self) -> PathBuf {
        self.run_dir.join(format!("{}.viewers", self.instance))
    }

    /// The lock by which they take turns, 0600.
    pub fn turns_lock(&self) -> PathBuf {
        self.run_dir.join(format!("{}.turns", self.instance))
    }

    /// Held by the daemon as long as it lives, 0600: who may not run a daemon must not be able to keep one away.
    pub fn daemon_lock(&self) -> PathBuf {
        self.run_dir.join(format!("{}.daemon", self.instance))
    }

    /// The daemon's process id, 0644. It means something only while the lock is held.
    pub fn pid(&self) -> PathBuf {
        self.run_dir.join(format!("{}.pid", self.instance))
    }
}

/// How to call dosguard for an instance, for hints.
pub fn command(instance: &str) -> String {
    if instance == DEFAULT_INSTANCE {
        "dosguard".to_owned()
    } else {
        format!("dosguard --instance {instance}")
    }
}

/// What a pinned link is called: `<inode of the network namespace>-<interface index>`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct LinkName {
    /// The network namespace's inode number.
    pub namespace: u64,
    /// The interface's index there.
    pub ifindex: u32,
}

impl fmt::Display for LinkName {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{}-{}", self.namespace, self.ifindex)
    }
}

impl LinkName {
    /// From the name of a pin; none for anything else.
    pub fn parse(name: &str) -> Option<Self> {
        let (namespace, ifindex) = name.split_once('-')?;
        Some(Self { namespace: namespace.parse().ok()?, ifindex: ifindex.parse().ok()? })
    }
}

/// The staging folder's name.
pub const STAGING: &str = "staging";
/// The pinned program's name in the folder of pins.
pub const PROGRAM: &str = "program";
/// The name of a program that takes its place. A BPF file system refuses names with dots.
pub const NEXT_PROGRAM: &str = "program-next";
/// The name of the folder of links in the folder of pins.
pub const LINKS: &str = "links";

#[cfg(test)]
mod tests {
    use super::*;

    fn paths(instance: &str) -> Result<Paths, BadInstance> {
        Paths::new(instance, "/sys/fs/bpf".into(), "/run/dosguard".into(), "/var/lib/dosguard".into())
    }

    #[test]
    fn an_instance_keeps_to_its_own_paths() {
        let paths = paths("mail").unwrap();
        let link = LinkName { namespace: 4_026_531_840, ifindex: 3 };
        assert_eq!(paths.link(link), Path::new("/sys/fs/bpf/dosguard/mail/v7/links/4026531840-3"));
        assert_eq!(LinkName::parse(&link.to_string()), Some(link));
        assert_eq!(paths.socket(), Path::new("/run/dosguard/mail.sock"));
    }

    #[test]
    fn an_instance_has_a_file_and_drop_ins_of_its_own() {
        let mail = paths("mail").unwrap();
        assert_eq!(mail.config_file(), Path::new("/etc/dosguard/mail.toml"));
        assert_eq!(mail.config_drop_ins(), Path::new("/etc/dosguard/mail.d"));
        let default = paths(DEFAULT_INSTANCE).unwrap().with_config_dir("/srv".into());
        assert_eq!(default.config_file(), Path::new("/srv/dosguard.toml"));
        assert_eq!(default.config_drop_ins(), Path::new("/srv/conf.d"));
    }

    #[test]
    fn an_instance_name_cannot_leave_its_folder() {
        for bad in ["", "..", "a/b", "a.b", "ä", "dosguard", "conf", &"x".repeat(33)] {
            assert!(paths(bad).is_err(), "{bad}");
        }
    }
}
