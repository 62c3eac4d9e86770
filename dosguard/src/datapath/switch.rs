//! Giving every pinned link another program: all of them or none.

use std::fs;
use std::path::{Path, PathBuf};

use aya::programs::links::{FdLink, LinkError, PinnedLink};
use aya::programs::xdp::XdpLink;
use aya::programs::{ProgramError, ProgramInfo, Xdp};
use aya_obj::programs::XdpAttachType;

use super::Error;
use super::links::interfaces;
use crate::paths::{DEFAULT_INSTANCE, LINKS, LinkName, command};
use crate::system;

/// What the kernel said.
type Cause = Box<dyn std::error::Error + Send + Sync>;

/// What became of a link that was to be given a program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Given {
    /// It has the program.
    Done,
    /// It leads to no interface any more, and takes nothing.
    Dead,
}

/// Which program a link is to be given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Which {
    New,
    Old,
}

/// Why the links do not have the new program.
#[derive(Debug)]
pub(super) struct Refusal<L, E> {
    /// The link that refused.
    pub link: L,
    /// What the kernel said.
    pub error: E,
    /// The links that have the new program nevertheless: they did not take the old one back.
    pub stuck: Vec<L>,
}

/// Gives each link the new program. When one refuses, those before it are given the old one back. Dead links are passed over.
/// Returns the links that have the new program.
pub(super) fn all_or_none<L: Copy, E>(
    links: &[L],
    mut give: impl FnMut(L, Which) -> Result<Given, E>,
) -> Result<Vec<L>, Refusal<L, E>> {
    let mut changed = Vec::new();
    for link in links {
        match give(*link, Which::New) {
            Ok(Given::Done) => changed.push(*link),
            Ok(Given::Dead) => {}
            Err(error) => {
                changed.retain(|changed| give(*changed, Which::Old).is_err());
                return Err(Refusal { link: *link, error, stuck: changed });
            }
        }
    }
    Ok(changed)
}

/// Gives the links of a folder of pins the program that is pinned at `new`, or leaves them the one at `old`.
pub(super) fn switch(pins: &Path, old: &Path, new: &Path) -> Result<Vec<LinkName>, Error> {
    let links = links_in(pins)?;
    // What is no link of ours is found before anything is changed.
    for link in &links {
        open(&link_in(pins, *link)).map_err(|source| refused(pins, *link, source.into(), &[]))?;
    }
    let give = |link, which| give(&link_in(pins, link), if which == Which::New { new } else { old });
    all_or_none(&links, give).map_err(|refusal| refused(pins, refusal.link, refusal.error, &refusal.stuck))
}

/// Gives every link of a folder of pins the program that is pinned at `program` again. A link that does not take it counts
/// only if it has one of those that are pinned at `instead_of`.
pub(super) fn give_back(pins: &Path, program: &Path, instead_of: &[PathBuf]) -> Result<(), Error> {
    let ids: Vec<_> = instead_of.iter().filter_map(|path| program_at(path)).collect();
    let mut result = Ok(());
    for link in links_in(pins)? {
        let path = link_in(pins, link);
        if let Err(source) = give(&path, program)
            && program_of(&path).is_some_and(|id| ids.contains(&id))
        {
            result = Err(refused(pins, link, source, &[link]));
        }
    }
    result
}

fn refused(pins: &Path, link: LinkName, source: Cause, stuck: &[LinkName]) -> Error {
    let interface = names(&[link]).concat();
    // The pins are in a folder of the instance's name.
    let instance = pins.parent().and_then(Path::file_name).and_then(|name| name.to_str());
    let command = command(instance.unwrap_or(DEFAULT_INSTANCE));
    if stuck.is_empty() {
        Error::LinkRefused { interface, source, command }
    } else {
        Error::HalfReplaced { interface, stuck: names(stuck).join(", "), source, command }
    }
}

/// What people call the interfaces of links.
pub(super) fn names(links: &[LinkName]) -> Vec<String> {
    // Only words depend on it.
    let here = system::network_namespace().ok();
    let present = interfaces().unwrap_or_default();
    let name = |link: &LinkName| {
        let found = present.iter().find(|interface| interface.index == link.ifindex);
        match found.filter(|_| here == Some(link.namespace)) {
            Some(interface) => interface.name.clone(),
            None => format!("interface {} of network namespace {}", link.ifindex, link.namespace),
        }
    };
    links.iter().map(name).collect()
}

/// Gives a pinned link a pinned program, at once for all packets from now on.
pub(super) fn give(link: &Path, program: &Path) -> Result<Given, Cause> {
    let Some(link) = open(link)? else { return Ok(Given::Dead) };
    let mut program = Xdp::from_pin(program, XdpAttachType::Interface)?;
    match program.attach_to_link(link) {
        Ok(_) => Ok(Given::Done),
        Err(ProgramError::SyscallError(error)) if error.io_error.raw_os_error() == Some(libc::ENOLINK) => {
            Ok(Given::Dead)
        }
        Err(error) => Err(error.into()),
    }
}

/// Opens a pinned link; none if it is something else, which leads nowhere.
fn open(link: &Path) -> Result<Option<XdpLink>, LinkError> {
    match XdpLink::try_from(FdLink::from(PinnedLink::from_pin(link)?)) {
        Ok(link) => Ok(Some(link)),
        Err(LinkError::InvalidLink) => Ok(None),
        Err(error) => Err(error),
    }
}

/// The id of the program that a pinned link has.
fn program_of(link: &Path) -> Option<u32> {
    let info = FdLink::from(PinnedLink::from_pin(link).ok()?).info().ok()?;
    Some(info.program_id())
}

/// The id of a pinned program.
pub(super) fn program_at(path: &Path) -> Option<u32> {
    ProgramInfo::from_pin(path).ok().map(|info| info.id())
}

/// The links of a folder of pins, in order.
pub(super) fn links_in(pins: &Path) -> Result<Vec<LinkName>, Error> {
    let folder = pins.join(LINKS);
    let mut found = Vec::new();
    for entry in fs::read_dir(&folder).map_err(Error::path("read", &folder))? {
        let entry = entry.map_err(Error::path("read", &folder))?;
        found.extend(entry.file_name().to_str().and_then(LinkName::parse));
    }
    found.sort_unstable();
    Ok(found)
}

pub(super) fn link_in(pins: &Path, link: LinkName) -> PathBuf {
    pins.join(LINKS).join(link.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    type Outcome = Result<Vec<usize>, Refusal<usize, ()>>;

    /// Links 0 to 4, of which some refuse or are dead; returns what each has in the end.
    fn switched(refuses: impl Fn(usize, Which) -> bool, dead: &[usize]) -> (Outcome, [Which; 5]) {
        let mut has = [Which::Old; 5];
        let result = all_or_none(&[0, 1, 2, 3, 4], |link, which| {
            if dead.contains(&link) {
                return Ok(Given::Dead);
            }
            if refuses(link, which) {
                return Err(());
            }
            has[link] = which;
            Ok(Given::Done)
        });
        (result, has)
    }

    #[test]
    fn wherever_one_refuses_all_keep_the_old_program() {
        for refusing in 0..5 {
            let (result, has) = switched(|link, which| link == refusing && which == Which::New, &[]);
            let refusal = result.unwrap_err();
            assert_eq!((refusal.link, refusal.stuck), (refusing, Vec::new()));
            assert_eq!(has, [Which::Old; 5], "{refusing} refused");
        }
    }

    #[test]
    fn dead_links_are_passed_over() {
        let (result, has) = switched(|_, _| false, &[0, 3]);
        assert_eq!(result.unwrap(), [1, 2, 4]);
        assert_eq!(has.map(|which| which == Which::New), [false, true, true, false, true]);
    }

    #[test]
    fn what_does_not_take_the_old_program_back_is_named() {
        let refuses = |link, which| link == 3 || (link == 1 && which == Which::Old);
        let (result, has) = switched(refuses, &[]);
        assert_eq!(result.unwrap_err().stuck, [1]);
        assert_eq!(has.map(|which| which == Which::New), [false, true, false, false, false]);
    }
}
