//! Breaks something on purpose, behind the driver's back, so that one of its looks must find it: each invariant can fail.
//!
//! Nothing here touches a check. What is broken is dosguard, the kernel or the lab, as a defect would.

use std::{
    fs::{self, File},
    io::{BufRead as _, BufReader, Write as _},
    os::{
        fd::{AsFd as _, OwnedFd},
        unix::{fs::FileExt as _, net::UnixStream},
    },
    path::Path,
    process::{Command, Stdio},
    time::Duration,
};

use anyhow::{Context as _, Result, bail, ensure};
use aya::maps::{Array, IterableMap as _, LpmTrie, Map, MapData, MapError, PerCpuArray, PerCpuValues};
use aya::programs::{Xdp, links::PinnedLink};
use aya_obj::programs::XdpAttachType;
use clap::ValueEnum;
use dosguard::{datapath::Datapath, paths::Paths, system::boot_now_ns};
use dosguard_common::{
    abi,
    address::Address,
    ban::Ban,
    key::SourceKey,
    reason::{Place, Reason, Tally},
    rule::{RuleIndex, Scope},
};
use dosguard_tests::{daemon::Killed, netns::feed};
use nix::sys::signal::Signal;

use crate::{
    model::address,
    plan::{Action, Assignment, Flooding, Step},
    traffic::probe,
    world::{SPARE, World, make_pair},
};

/// How long the looks wait for what will not come.
const SHORT: Duration = Duration::from_secs(1);
/// More silent connections and KiB than the bounds leave room for.
const CONNECTIONS: usize = 24;
const KIB: u64 = 160 * 1024;
/// What a stranger says once it holds a link.
const HELD: &str = "held";
/// Who is banned, who is banned and of IPv6, who is allowed, and who is nothing.
const BANNED: usize = 0;
const BANNED_NETWORK: usize = 3;
const ALLOWED: usize = 1;
const NOBODY: usize = 9;

/// What can be broken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Break {
    /// Nothing: the same steps, and nothing to find.
    Nothing,
    /// A ban goes while its source floods.
    BanLostInFlood,
    /// A banned source comes in where there is no filter.
    RoundTheFilter,
    /// A ban goes while nothing comes in.
    BanLost,
    /// Somebody else drops what an allowed source sends.
    AllowedDropped,
    /// The same, on one interface of several.
    AllowedDroppedOnSpare,
    /// Packets are counted that there were not.
    Miscounted,
    /// Losses are counted that there were not.
    LossMiscounted,
    /// A ban that nobody has asked for.
    BanAdded,
    /// An allowed network that is not on its list any more.
    AllowedLost,
    /// A denied network that nobody has named.
    DeniedAdded,
    /// Another administrator changes settings while a bad one is refused.
    RefusedChanges,
    /// A pin too many.
    PinAdded,
    /// The pin of a map that is gone.
    PinLost,
    /// The pin of a link, and with it the program on an interface.
    LinkLost,
    /// A map that only a stranger holds.
    MapHeld,
    /// A program that was replaced, and that a stranger holds.
    ProgramHeld,
    /// A link to an interface that is gone, which a stranger holds.
    LinkHeld,
    /// Files of the daemon that no reader is the reason for.
    Files,
    /// Threads of the daemon beyond those that it had.
    Threads,
    /// Memory of the daemon beyond its bound.
    Memory,
    /// A daemon that somebody killed.
    Dead,
    /// A daemon that has panicked.
    Panicked,
}

/// What was broken, and what keeps it so: put away when dropped.
pub(crate) struct Broken {
    what: Break,
    map: Option<Array<MapData, u32>>,
    strangers: Vec<Killed>,
    connections: Vec<UnixStream>,
}

impl Break {
    /// The steps of such a run; it breaks in the last one.
    pub(crate) fn steps(self) -> [Step; 3] {
        let quiet = |action| Step { action, flood: Flooding::None };
        let last = match self {
            Self::BanLostInFlood => Step { action: Action::Nothing, flood: Flooding::Banned },
            Self::AllowedDropped => Step { action: Action::Nothing, flood: Flooding::Allowed },
            Self::RefusedChanges => quiet(Action::Set(Assignment::Bad(0))),
            Self::ProgramHeld => quiet(Action::Upgrade),
            Self::LinkHeld => quiet(Action::Remake),
            _ => quiet(Action::Nothing),
        };
        [quiet(Action::Ban(vec![BANNED, BANNED_NETWORK])), quiet(Action::Allow(ALLOWED)), last]
    }
}

impl Broken {
    /// What has to be there before, for a look to have seen it.
    pub(crate) fn prepare(what: Break) -> Result<Self> {
        let map = if what == Break::MapHeld { Some(Array::create(1, 0)?) } else { None };
        Ok(Self { what, map, strangers: Vec::new(), connections: Vec::new() })
    }

    /// Breaks it.
    pub(crate) fn strike(&mut self, world: &mut World<'_>) -> Result<()> {
        let paths = world.lab.paths().clone();
        world.patience = SHORT;
        match self.what {
            Break::Nothing => {}
            Break::BanLostInFlood => lift(&paths, BANNED)?,
            Break::BanLost => lift(&paths, BANNED_NETWORK)?,
            Break::RoundTheFilter => {
                let round = make_pair(world.lab, "round0", "round1")?;
                probe(&round, &[BANNED])?;
            }
            Break::AllowedDropped => drop_allowed(world, "")?,
            Break::AllowedDroppedOnSpare => drop_allowed(world, &format!("iifname {}", SPARE[0]))?,
            Break::Miscounted => miscount(&paths, Reason::NotIp.place())?,
            Break::LossMiscounted => miscount(&paths, Tally::BanTableFull.place())?,
            Break::BanAdded => add_ban(&paths)?,
            Break::AllowedLost => {
                let (mut allow, key) = only_allowed(&paths)?;
                allow.remove(&key)?;
            }
            Break::DeniedAdded => {
                let (_, key) = only_allowed(&paths)?;
                list(&paths, abi::DENY.name)?.insert(&key, 1 << 1, 0)?;
            }
            Break::RefusedChanges => self.strangers.push(administrator(world)?),
            Break::PinAdded => {
                MapData::from_pin(paths.map(abi::CONFIG.name))?.pin(paths.pins().join("stray"))?;
            }
            Break::PinLost => remove(&paths.map(abi::SCRATCH.name))?,
            Break::LinkLost => remove(&first(&paths.links())?)?,
            Break::MapHeld => {
                let map = self.map.take().context("there is no map")?;
                self.strangers.push(stranger(map_file(&map)?)?);
            }
            Break::ProgramHeld => self.strangers.push(stranger(program_file(&paths)?)?),
            Break::LinkHeld => {
                for link in files(&paths.links())? {
                    self.strangers.push(link_holder(&link)?);
                }
            }
            Break::Files => {
                for _ in 0..CONNECTIONS {
                    self.connections.push(UnixStream::connect(paths.socket()).context("no daemon")?);
                }
            }
            Break::Threads => outlets(world)?,
            Break::Memory => touch_memory(world)?,
            Break::Dead => world.daemon.as_ref().context("no daemon")?.signal(Signal::SIGKILL)?,
            Break::Panicked => {
                let path = world.lab.directory().log_dir().join("dosguard-0.stderr");
                let mut file = File::options().append(true).open(&path).context("no daemon has run")?;
                writeln!(file, "thread 'main' panicked at nothing").context("cannot write")?;
            }
        }
        Ok(())
    }
}

fn key(source: usize) -> SourceKey {
    SourceKey::everywhere(match address(source) {
        std::net::IpAddr::V4(v4) => Address::from_ipv4(v4.octets()),
        std::net::IpAddr::V6(v6) => {
            let mut network = v6.octets();
            network[8..].fill(0);
            Address::from_ipv6(network)
        }
    })
}

fn lift(paths: &Paths, source: usize) -> Result<()> {
    let removed = Datapath::require(paths)?.maps_mut().remove_ban(&key(source))?;
    ensure!(removed, "there was no ban to lift");
    Ok(())
}

fn add_ban(paths: &Paths) -> Result<()> {
    let now_ns = boot_now_ns()?;
    let ban = Ban::by_admin(Scope::All, RuleIndex::DEFAULT, now_ns, now_ns + 60_000_000_000, "");
    Datapath::require(paths)?.maps_mut().set_ban(&key(NOBODY), &ban)?;
    Ok(())
}

fn drop_allowed(world: &World<'_>, when: &str) -> Result<()> {
    let rules = format!(
        "table inet stranger {{ chain arrived {{ type filter hook prerouting priority -500; \
         {when} ip saddr {} drop\n }}\n}}\n",
        address(ALLOWED)
    );
    feed(world.lab.guard().command("nft").args(["-f", "-"]), &rules).map(drop)
}

fn map<T: TryFrom<Map, Error = MapError>>(paths: &Paths, name: &str, kind: fn(MapData) -> Map) -> Result<T> {
    Ok(T::try_from(kind(MapData::from_pin(paths.map(name))?))?)
}

fn miscount(paths: &Paths, place: Place) -> Result<()> {
    let Place::First(place) = place else { bail!("it is counted elsewhere") };
    let mut counters: PerCpuArray<MapData, [u64; 2]> = map(paths, abi::COUNTERS.name, Map::PerCpuArray)?;
    let mut values = counters.get(&place, 0)?.to_vec();
    if let Some([packets, _]) = values.first_mut() {
        *packets += 1_000_000;
    }
    Ok(counters.set(place, PerCpuValues::try_from(values).context("a value for each processor")?, 0)?)
}

type List = LpmTrie<MapData, [u8; 16], u32>;

fn list(paths: &Paths, name: &str) -> Result<List> {
    map(paths, name, Map::LpmTrie)
}

/// The list of allowed networks, and what is on it.
fn only_allowed(paths: &Paths) -> Result<(List, aya::maps::lpm_trie::Key<[u8; 16]>)> {
    let allow = list(paths, abi::ALLOW.name)?;
    let first = allow.keys().next().context("nothing is allowed")??;
    Ok((allow, first))
}

/// Changes a setting again and again.
fn administrator(world: &World<'_>) -> Result<Killed> {
    let script = "while :; do i=$((i + 1)); \"$0\" \"$@=$((i % 400))\"; done";
    let launcher = ["sh", "-c", script].map(Into::into).into();
    let mut command = world.dosguard.with_launcher(launcher).command(["sysctl", "-w", "events.rate"]);
    let child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn();
    Ok(Killed(child.with_context(|| format!("cannot run {command:?}"))?))
}

/// A process that holds a file and does nothing.
fn stranger(file: OwnedFd) -> Result<Killed> {
    Ok(Killed(Command::new("sleep").arg("600").stdin(file).spawn().context("cannot run `sleep`")?))
}

/// A stranger that opens a link itself: aya does not hand out the descriptors of links.
fn link_holder(pin: &Path) -> Result<Killed> {
    let mut command = Command::new(std::env::current_exe().context("this program has no name")?);
    command.arg("--hold").arg(pin).stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut holder = Killed(command.spawn().with_context(|| format!("cannot run {command:?}"))?);
    let mut said = String::new();
    let output = holder.0.stdout.take().context("a stranger without output")?;
    BufReader::new(output).read_line(&mut said).context("cannot read what a stranger says")?;
    ensure!(said.trim() == HELD, "nobody holds `{}`", pin.display());
    Ok(holder)
}

/// What such a stranger does until its input ends, which it does with the process that has started it.
pub(crate) fn hold(pin: &Path) -> Result<()> {
    let _link = PinnedLink::from_pin(pin)?;
    say!("{HELD}");
    std::io::copy(&mut std::io::stdin(), &mut std::io::sink()).map(drop).context("cannot wait")
}

fn map_file(map: &Array<MapData, u32>) -> Result<OwnedFd> {
    map.map().fd().as_fd().try_clone_to_owned().context("cannot hold the map")
}

fn program_file(paths: &Paths) -> Result<OwnedFd> {
    let program = Xdp::from_pin(paths.program(), XdpAttachType::Interface)?;
    program.fd()?.as_fd().try_clone_to_owned().context("cannot hold the program")
}

fn files(folder: &Path) -> Result<Vec<std::path::PathBuf>> {
    let entries = fs::read_dir(folder).with_context(|| format!("cannot list `{}`", folder.display()))?;
    Ok(entries.map(|entry| entry.map(|entry| entry.path())).collect::<std::io::Result<_>>()?)
}

fn remove(pin: &Path) -> Result<()> {
    fs::remove_file(pin).with_context(|| format!("cannot remove `{}`", pin.display()))
}

fn first(folder: &Path) -> Result<std::path::PathBuf> {
    files(folder)?.into_iter().min().with_context(|| format!("nothing is in `{}`", folder.display()))
}

/// Asks for everything that is a thread's work.
fn outlets(world: &World<'_>) -> Result<()> {
    let config = world.write_config()?;
    let mut file = File::options().append(true).open(&config).context("no configuration")?;
    let log = world.lab.directory().log_dir().join("events");
    write!(
        file,
        "[metrics]\nlisten = '127.0.0.1:9741'\n[log]\njournald = true\nsyslog = 'x'\n[log.file]\npath = '{}'\n\
         [[hook]]\non = ['ban']\nrun = ['/bin/true']\n",
        log.display()
    )
    .context("cannot write")?;
    world.daemon.as_ref().context("no daemon")?.signal(Signal::SIGHUP)
}

/// Writes zeros where the daemon has room reserved that was never used: then it has memory there.
fn touch_memory(world: &World<'_>) -> Result<()> {
    let pid = world.daemon.as_ref().context("no daemon")?.pid();
    let maps = fs::read_to_string(format!("/proc/{pid}/maps")).context("cannot see its memory")?;
    let memory =
        File::options().write(true).open(format!("/proc/{pid}/mem")).context("cannot write to it")?;
    let mut left = KIB * 1024;
    let zeros = vec![0; 64 * 1024];
    for line in maps.lines() {
        let mut fields = line.split_whitespace();
        let (Some(range), Some("---p"), None) = (fields.next(), fields.next(), fields.nth(3)) else {
            continue;
        };
        let Some((first, last)) = range.split_once('-') else { continue };
        let (mut at, last) = (u64::from_str_radix(first, 16)?, u64::from_str_radix(last, 16)?);
        while at + zeros.len() as u64 <= last && left > 0 {
            memory.write_all_at(&zeros, at).context("cannot write to its memory")?;
            at += zeros.len() as u64;
            left = left.saturating_sub(zeros.len() as u64);
        }
    }
    ensure!(left == 0, "it has {left} bytes too few reserved");
    Ok(())
}
