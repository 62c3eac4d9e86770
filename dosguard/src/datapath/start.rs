//! Bringing an instance up, all of it or nothing.

use jiff::Timestamp;

use super::attach::{AttachMode, Attached, Held, check_interface};
use super::{
    Datapath, Ended, Error, List, LoadOptions, Origin, Prefix, Replaced, finish_interrupted, list_add,
};
use crate::bans::{Restored, restore};
use crate::config::policy::Policy;
use crate::paths::Paths;
use crate::store::Saved;
use crate::system::{self, Bpffs};

/// What to bring up.
#[derive(Debug)]
pub struct Request<'a> {
    /// The interfaces to attach to, beside those that are attached already.
    pub interfaces: &'a [String],
    /// How to attach.
    pub mode: AttachMode,
    /// What the rules shall be; none leaves live ones alone and starts new ones from the built-in policy.
    pub policy: Option<&'a Policy>,
    /// What is put on the allow-list when the instance is loaded, so that nobody is locked out.
    pub guards: &'a [Prefix],
    /// Whether counters and bans may go, where the policy has other source prefixes than the live ones.
    pub reset: bool,
    /// Whether a live program that is not this dosguard's is replaced.
    pub replace: bool,
    /// Whether the new links are kept in [`Started::held`] instead of being pinned.
    pub hold: bool,
    /// How the program is loaded: that of an instance that is not loaded yet, and one that takes a live one's place.
    pub load: &'a LoadOptions,
    /// Bans and offences from before, for an instance that is loaded now.
    pub saved: Option<&'a Saved>,
}

/// What was brought up.
pub struct Started {
    /// The instance.
    pub datapath: Datapath,
    /// What came of each interface that was asked for.
    pub attached: Vec<Attached>,
    /// The new links, if they were to be held.
    pub held: Vec<Held>,
    /// The bans that applying the policy ended.
    pub ended: Ended,
    /// What became of the bans and offences from before; none if there were none, or the instance was loaded.
    pub restored: Option<Restored>,
    /// Whether the instance was loaded now, or found pinned.
    pub created: bool,
    /// The live program was another one than this dosguard's: what came of replacing it. After an error the one from before
    /// goes on, on every interface.
    pub replaced: Option<Result<Replaced, Error>>,
    /// Somebody was killed while replacing the program or migrating; it was undone.
    pub interrupted: bool,
    /// Whether a BPF file system had to be mounted.
    pub bpffs: Bpffs,
}

/// Refuses what [`start`] would refuse of the interfaces, before anything is made.
pub fn check(paths: &Paths, request: &Request<'_>) -> Result<(), Error> {
    system::require_capabilities()?;
    request.interfaces.iter().try_for_each(|interface| check_interface(interface, request.mode, paths))
}

/// Loads the instance unless it is pinned, replaces its program if that is asked for and it is not this dosguard's, attaches
/// it and applies the policy. When a step fails, what the steps before it did is undone. The instance's lock must be held.
pub fn start(paths: &Paths, request: &Request<'_>) -> Result<Started, Error> {
    check(paths, request)?;
    let bpffs = system::require_bpffs(paths.bpffs())?;
    let started = start_on(paths, request, bpffs);
    if started.is_err() && bpffs == Bpffs::Mounted {
        system::unmount_bpffs(paths.bpffs());
    }
    started
}

fn start_on(paths: &Paths, request: &Request<'_>, bpffs: Bpffs) -> Result<Started, Error> {
    let interrupted = finish_interrupted(paths)?;
    let (datapath, restored, created) = match Datapath::open(paths)? {
        Some(datapath) => (datapath, None, false),
        None => {
            let (datapath, restored) = create(paths, request)?;
            (datapath, restored, true)
        }
    };
    let mut started = Started {
        datapath,
        attached: Vec::new(),
        held: Vec::new(),
        ended: Ended::new(),
        restored,
        created,
        replaced: None,
        interrupted,
        bpffs,
    };
    match finish(&mut started, request) {
        Ok(()) => Ok(started),
        Err(error) => {
            // The first error is the one to tell. What cannot be undone shows in `status`.
            if created {
                let _ = Datapath::remove(paths);
            } else {
                for attached in started.attached.iter().filter(|attached| !attached.already) {
                    let _ = started.datapath.unlink(attached.link);
                }
            }
            Err(error)
        }
    }
}

/// Loads the instance with all that it is to have: one that is found loaded by the next start gets neither guards nor what
/// was saved.
fn create(paths: &Paths, request: &Request<'_>) -> Result<(Datapath, Option<Restored>), Error> {
    let built_in = Policy::default();
    let policy = request.policy.unwrap_or(&built_in);
    Datapath::create_with(paths, policy, request.load, |maps| {
        list_add(maps, List::Allow, request.guards.iter().copied(), Origin::GUARD)?;
        request.saved.map(|saved| restore(maps, saved, Timestamp::now())).transpose()
    })
}

fn finish(started: &mut Started, request: &Request<'_>) -> Result<(), Error> {
    started.datapath.end_killed_sweep()?;
    started.ended = started.datapath.finish_reset()?;
    started.datapath.forget_stale_links()?;
    if request.replace && !started.datapath.is_current(request.load)? {
        started.replaced = Some(started.datapath.replace_program(request.load));
    }
    for interface in request.interfaces {
        let (attached, held) = started.datapath.attach(interface, request.mode)?;
        started.attached.push(attached);
        match held {
            Some(held) if request.hold => started.held.push(held),
            Some(held) => held.pin()?,
            None => {}
        }
    }
    match request.policy {
        Some(policy) if !started.created => {
            started.ended.extend(started.datapath.apply(policy, request.reset)?);
            Ok(())
        }
        _ => Ok(()),
    }
}
