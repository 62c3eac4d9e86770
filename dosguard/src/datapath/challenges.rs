//! The programs that answer SYNs and look at segments that may prove their source: where the program that judges goes on.

use std::path::Path;

use aya::maps::{Map, MapData, ProgramArray};
use aya::programs::{ProgramError, Xdp};
use aya::{Ebpf, EbpfLoader};
use dosguard_common::abi;
use dosguard_common::challenge::SynAck;

use super::object::{CHALLENGES, looks_at_segments, makes_cookies};
use super::{Error, LoadOptions, Maps, pinned_map};
use crate::connections::{ListenerLayout, RequestLayout};

/// Loads the programs onto the maps that are pinned in a folder, and puts them in their places. Where challenges are sent, they
/// go on all the time: a packet goes on with the program from before or with the new one. A kernel that makes no cookies has the
/// one that looks at segments alone; one that refuses them has none, and the log says why.
pub(super) fn install(pins: &Path, maps: &mut Maps, options: &LoadOptions) -> Result<(), Error> {
    // That there is one says that the programs are there; what it says is not known before it is looked what the host can do.
    let before = Some(maps.synack()?).filter(|before| before.ttl != 0);
    let synack = match looks_at_segments().then(|| load(pins, options)) {
        Some(Ok(())) if makes_cookies() => before.unwrap_or(SynAck { ttl: 64, ..SynAck::default() }),
        Some(Ok(())) | None => SynAck::default(),
        Some(Err(error)) => {
            log::warn!(
                "there are no challenges, and no proof but by the connections that are counted: {error}"
            );
            let why = std::error::Error::source(&error).map(ToString::to_string).unwrap_or_default();
            log::debug!("{why}");
            SynAck::default()
        }
    };
    if Some(synack) == before {
        return Ok(());
    }
    let config = maps.config()?;
    maps.set_config(config.with_challenge(false))?;
    maps.set_synack(synack)
}

fn load(pins: &Path, options: &LoadOptions) -> Result<(), Error> {
    if CHALLENGES.is_empty() {
        return Err(Error::StubObject);
    }
    let cpus = options.cpus()?;
    let challenges = u32::from(makes_cookies());
    let layout = match challenges {
        // Nobody asks for it.
        0 => ListenerLayout::default(),
        _ => ListenerLayout::of_kernel().map_err(Error::path("read", "/sys/kernel/btf/vmlinux"))?,
    };
    let request = RequestLayout::of_kernel().map_err(Error::path("read", "/sys/kernel/btf/vmlinux"))?;
    let mut loader = EbpfLoader::new();
    // The object has no relocations for which the kernel's types would be read, which takes long.
    loader.btf(None);
    let globals = [
        (abi::CPUS_GLOBAL, &cpus),
        (abi::CHALLENGES_GLOBAL, &challenges),
        ("SENT", &layout.sent),
        ("GROUP_OF", &layout.group),
        ("GROUP_SENT", &layout.group_sent),
        ("BACKLOG", &layout.backlog),
        ("MAX_BACKLOG", &layout.max_backlog),
        ("LOCKS", &layout.locks),
        ("LOCKS_SHIFT", &layout.locks_shift),
        ("ANSWERED", &request.sent),
    ];
    for (name, value) in globals {
        loader.override_global(name, value, true);
    }
    for map in abi::MAPS {
        loader.map_pin_path(map.name, pins.join(map.name));
    }
    let mut ebpf = loader.load(CHALLENGES).map_err(|error| Error::Object(Box::new(error)))?;
    let steps: MapData = pinned_map(&pins.join(abi::STEPS.name), abi::STEPS.name)?;
    let steps = Map::from_map_data(steps).and_then(ProgramArray::try_from);
    let mut steps = steps.map_err(Error::map(abi::STEPS.name, "use"))?;
    let mut programs = vec![(abi::ANSWER_PROGRAM, abi::ANSWER_STEP)];
    if challenges != 0 {
        programs.push((abi::REPLY_PROGRAM, abi::REPLY_STEP));
    }
    // All of them or none.
    for (name, _) in &programs {
        let loaded = program(&mut ebpf, name).and_then(Xdp::load);
        loaded.map_err(|error| Error::Verifier(Box::new(error)))?;
    }
    for (name, place) in programs {
        let fd = program(&mut ebpf, name).and_then(|program| program.fd());
        let fd = fd.map_err(|error| Error::Verifier(Box::new(error)))?;
        steps.set(place, fd, 0).map_err(Error::map(abi::STEPS.name, "write"))?;
    }
    Ok(())
}

fn program<'a>(ebpf: &'a mut Ebpf, name: &str) -> Result<&'a mut Xdp, ProgramError> {
    ebpf.program_mut(name).ok_or(ProgramError::UnexpectedProgramType)?.try_into()
}
