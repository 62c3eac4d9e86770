//! What there is to do things with: the lab, dosguard, its daemon, its disk, its clock, and what must be true of it.

use std::{
    ffi::OsString,
    fs,
    path::{Path, PathBuf},
    process::{Output, Stdio},
    time::Duration,
};

use anyhow::{Context as _, Result, bail, ensure};
use dosguard_tests::{
    addresses::{GUARD_ATTACKER_SIDE, GUARD_CLIENT_SIDE, GUARD_MAC},
    daemon::{Daemon, Dosguard, Killed},
    interrupt::Interrupt,
    lab::Lab,
    netns,
    small_disk::SmallDisk,
    statistics::Statistics,
    transmit::Sender,
    wait::wait_until,
};
use serde_json::Value;

use crate::{memory::Group, model::Model, plan::Settings};

/// How long what should happen soon may take, on a machine that is busy.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);
/// The disk with the history, in KiB.
const DISK_KIB: u32 = 8 * 1024;
/// The names that the third interface has in turn, and its other end.
pub(crate) const SPARE: [&str; 2] = ["spare0", "spare1"];
const SPARE_PEER: &str = "spare";
/// What a rule does beyond its limit.
pub(crate) const ACTIONS: [&str; 3] = ["ban", "drop", "challenge"];
/// Where Debian has it, and where others have.
const FAKETIME: [&str; 4] = [
    "/usr/lib/x86_64-linux-gnu/faketime/libfaketime.so.1",
    "/usr/lib/aarch64-linux-gnu/faketime/libfaketime.so.1",
    "/usr/lib64/faketime/libfaketime.so.1",
    "/usr/lib/faketime/libfaketime.so.1",
];

/// Everything that a run works with. Goes in the order of its fields: processes first.
pub(crate) struct World<'a> {
    /// Those that listen and do not read.
    pub(crate) readers: Vec<Killed>,
    /// The daemon, while it runs.
    pub(crate) daemon: Option<Daemon<'a>>,
    /// The lab.
    pub(crate) lab: &'a Lab,
    /// For what waits.
    pub(crate) interrupt: Interrupt,
    /// For commands; their clock is the run's.
    pub(crate) dosguard: Dosguard<'a>,
    starting: Dosguard<'a>,
    /// Where the history is.
    pub(crate) disk: SmallDisk,
    /// Whether that is full.
    pub(crate) full: bool,
    /// The daemon's memory.
    pub(crate) group: Group,
    clock: PathBuf,
    /// What the file says.
    pub(crate) settings: Settings,
    /// How many bans there is room for.
    room: u32,
    /// How many lists of many were imported.
    pub(crate) crowds: u32,
    /// How often the file was written: each time it is another one.
    pub(crate) written: u32,
    /// What must be true.
    pub(crate) model: Model,
    /// An upgrade was killed, and nobody has looked since.
    pub(crate) interrupted: bool,
    /// Which of its names the third interface has, and which the daemon knows.
    pub(crate) spare: usize,
    /// The same, as the daemon has read it.
    pub(crate) known_spare: usize,
    /// Into the attacker's side, and into the third interface.
    pub(crate) senders: [Sender; 2],
    /// How long looks wait for what should be so.
    pub(crate) patience: Duration,
    /// Frames that had come in on third interfaces which are gone.
    arrived_before: u64,
}

impl<'a> World<'a> {
    /// Makes everything but the instance.
    pub(crate) fn new(lab: &'a Lab, interrupt: Interrupt, settings: Settings, room: u32) -> Result<Self> {
        let clock = lab.directory().path().join("clock");
        let launcher = faketime(&clock)?;
        set_clock(&clock, 0)?;
        let group = Group::new().context("cannot limit the daemon's memory")?;
        let mut in_group: Vec<OsString> =
            ["sh", "-c", "echo $$ > \"$0\" && exec \"$@\""].map(OsString::from).into();
        in_group.push(group.members().into());
        let dosguard = Dosguard::new(lab)?;
        let starting = dosguard.with_launcher([in_group, launcher.clone()].concat());
        let senders = [Sender::new(lab.attacker(), dosguard_tests::addresses::PEER)?, make_spare(lab, 0)?];
        let world = Self {
            readers: Vec::new(),
            daemon: None,
            lab,
            interrupt,
            dosguard: dosguard.with_launcher(launcher),
            starting: starting.with_patience(2 * PATIENCE),
            disk: SmallDisk::mount(&lab.directory().state_dir(), DISK_KIB)?,
            full: false,
            group,
            clock,
            settings,
            room,
            crowds: 0,
            written: 0,
            model: Model::default(),
            interrupted: false,
            spare: 0,
            known_spare: 0,
            senders,
            patience: PATIENCE,
            arrived_before: 0,
        };
        world.write_config()?;
        Ok(world)
    }

    /// The third interface's name.
    pub(crate) fn spare_name(&self) -> &'static str {
        SPARE.get(self.spare).copied().unwrap_or_default()
    }

    /// Writes the file that `settings` and the interfaces' names come to.
    pub(crate) fn write_config(&self) -> Result<PathBuf> {
        let Settings { limit, window_s, action, forgeable, monitor, events } = self.settings;
        let action = ACTIONS.get(action).copied().unwrap_or_default();
        let mode = if monitor { "monitor" } else { "enforce" };
        let more = format!("action = '{action}'\nrequire_proof = {}\nban = '2s'\n", !forgeable);
        let text = format!(
            "interfaces = ['{GUARD_ATTACKER_SIDE}', '{GUARD_CLIENT_SIDE}', '{}']\nmode = '{mode}'\n\
             [events]\nrate = {events}\n[rule.default]\nlimit = '20/1s'\n{more}\
             [rule.web]\nports = ['tcp/8080', 'tcp/443']\nlimit = '{limit}/{window_s}s'\n{more}\
             [rule.mark]\nports = ['tcp/9']\nlimit = '{}/1s'\n\
             [history]\nmax_size = '1M'\n[size]\nbans = {}\nsources = 8192\n",
            self.spare_name(),
            self.mark(),
            self.room,
        );
        self.dosguard.write_config("torture.toml", &text)
    }

    /// A limit that tells this file from all others.
    pub(crate) const fn mark(&self) -> u32 {
        1 + self.written
    }

    /// Starts the daemon, which applies the file.
    pub(crate) fn start(&mut self) -> Result<()> {
        let config = self.write_config()?;
        let config = config.to_string_lossy();
        self.daemon = Some(self.starting.start_into(Stdio::null(), ["run", "-c", &config])?);
        self.model.monitor = self.settings.monitor;
        self.known_spare = self.spare;
        self.interrupted = false;
        Ok(())
    }

    /// Runs a command to its end.
    pub(crate) fn say(&self, line: &str) -> Result<Output> {
        self.dosguard.cli(line.split_whitespace())
    }

    /// Runs a command that must succeed, and returns what it said.
    pub(crate) fn done(&self, line: &str) -> Result<String> {
        let output = self.say(line)?;
        ensure!(output.status.success(), "`dosguard {line}` failed: {}", told(&output));
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// Runs a command whose answer is yes or no, and says which.
    pub(crate) fn asked(&self, line: &str) -> Result<bool> {
        let output = self.say(line)?;
        match output.status.code() {
            Some(0) => Ok(true),
            Some(1) => Ok(false),
            _ => bail!("`dosguard {line}` failed: {}", told(&output)),
        }
    }

    /// Makes the wall clock of the daemon and of all commands so many seconds different.
    pub(crate) fn set_clock(&self, seconds: i64) -> Result<()> {
        set_clock(&self.clock, seconds)
    }

    /// Frames that have come in on all guarded interfaces, by what the driver counts.
    pub(crate) fn arrived(&self) -> Result<u64> {
        let mut arrived = self.arrived_before;
        for interface in [GUARD_ATTACKER_SIDE, GUARD_CLIENT_SIDE, self.spare_name()] {
            arrived += Statistics::read(self.lab.guard(), interface)?.received_frames()?;
        }
        Ok(arrived)
    }

    /// What the wire from the attacker has lost.
    pub(crate) fn lost(&self) -> Result<u64> {
        Statistics::read(self.lab.attacker(), dosguard_tests::addresses::PEER)?.lost_frames()
    }

    /// Deletes the third interface and makes it again.
    pub(crate) fn remake_spare(&mut self) -> Result<()> {
        let spare = self.spare_name();
        self.arrived_before += Statistics::read(self.lab.guard(), spare)?.received_frames()?;
        ip(self.lab, &format!("link del {spare}"))?;
        let [_, sender] = &mut self.senders;
        *sender = make_spare(self.lab, self.spare)?;
        Ok(())
    }

    /// Waits until dosguard says that it guards the third interface under its name.
    pub(crate) fn wait_for_spare(&self) -> Result<()> {
        let name = self.spare_name();
        let guarded = |status: &Value| {
            let on = status["interfaces"].as_array().map(Vec::as_slice).unwrap_or_default();
            on.iter().any(|on| on["name"] == name && on["mode"] == "native")
        };
        wait_until(&format!("`{name}` is guarded"), PATIENCE, || Ok(guarded(&self.dosguard.status()?)))
    }
}

/// Runs `ip` in the guard's namespace.
pub(crate) fn ip(lab: &Lab, line: &str) -> Result<()> {
    lab.guard().run("ip", line.split_whitespace()).map(drop)
}

/// Makes the third pair and returns what sends into it.
fn make_spare(lab: &Lab, name: usize) -> Result<Sender> {
    make_pair(lab, SPARE.get(name).copied().unwrap_or_default(), SPARE_PEER)
}

/// Makes a pair between the guard and the attacker, and returns what sends into it.
pub(crate) fn make_pair(lab: &Lab, name: &str, peer: &str) -> Result<Sender> {
    let (guard, attacker) = (lab.guard(), lab.attacker());
    let line = format!(
        "-n {} link add {name} address {GUARD_MAC} type veth peer name {peer} netns {}",
        guard.name(),
        attacker.name()
    );
    netns::run(std::process::Command::new("ip").args(line.split_whitespace()))?;
    for (namespace, name) in [(guard, name), (attacker, peer)] {
        let off = ["gro", "off", "tx", "off", "rx", "off"];
        namespace.run("ethtool", ["-K", name].into_iter().chain(off))?;
        namespace.run("ip", ["link", "set", name, "arp", "off", "up"])?;
    }
    Sender::new(attacker, peer)
}

/// What a command said that did not succeed.
pub(crate) fn told(output: &Output) -> String {
    let text = [&output.stdout, &output.stderr].map(|text| String::from_utf8_lossy(text).into_owned());
    format!("{}: {}", output.status, text.concat().trim())
}

/// What makes a program's wall clock that which a file says, and leaves the others alone.
fn faketime(clock: &Path) -> Result<Vec<OsString>> {
    let library = FAKETIME.iter().find(|path| Path::new(path).exists());
    let library = library.context(
        "no libfaketime on this machine\nhint: `cargo xtask setup` installs the package `faketime`",
    )?;
    let mut file = OsString::from("FAKETIME_TIMESTAMP_FILE=");
    file.push(clock);
    let mut words = vec!["env".into(), format!("LD_PRELOAD={library}").into(), file];
    let more = ["FAKETIME_NO_CACHE=1", "FAKETIME_DONT_FAKE_MONOTONIC=1", "NO_FAKE_STAT=1"];
    words.extend(more.map(OsString::from));
    Ok(words)
}

fn set_clock(clock: &Path, seconds: i64) -> Result<()> {
    let next = clock.with_extension("next");
    fs::write(&next, format!("{seconds:+}"))
        .and_then(|()| fs::rename(&next, clock))
        .with_context(|| format!("cannot write `{}`", clock.display()))
}
