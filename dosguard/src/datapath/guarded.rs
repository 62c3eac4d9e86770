//! Which interfaces are guarded.

use super::attach::network_namespace;
use super::links::{Interface, interfaces};
use super::switch::links_in;
use super::{Datapath, Error, own_programs};
use crate::paths::LinkName;

/// An interface that the instance has a link to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Guarded {
    /// The link.
    pub link: LinkName,
    /// The interface's name; none if it is gone, or of another network namespace.
    pub name: Option<String>,
    /// The mode that the kernel reports; none if the program is not on the interface.
    pub mode: Option<&'static str>,
}

impl Datapath {
    /// The interfaces that the instance has a link to, as the kernel sees them from this network namespace.
    pub fn guarded(&self) -> Result<Vec<Guarded>, Error> {
        self.guarded_among().map(|(guarded, _)| guarded)
    }

    /// The names of its links.
    pub fn links(&self) -> Result<Vec<LinkName>, Error> {
        links_in(&self.paths.pins())
    }

    /// The same as [`Self::guarded`], and all interfaces of this network namespace.
    pub(super) fn guarded_among(&self) -> Result<(Vec<Guarded>, Vec<Interface>), Error> {
        const TRIES: u32 = 10;
        let here = network_namespace()?;
        let mut tries = 0;
        loop {
            tries += 1;
            let own = own_programs(&self.paths);
            let found = self.guarded_by(&own, here)?;
            // Whoever replaces the program meanwhile makes it look foreign.
            if tries == TRIES || own == own_programs(&self.paths) {
                return Ok(found);
            }
        }
    }

    fn guarded_by(&self, own: &[u32], here: u64) -> Result<(Vec<Guarded>, Vec<Interface>), Error> {
        let present = interfaces().map_err(Error::Netlink)?;
        let guarded = |link: LinkName| {
            let interface =
                present.iter().find(|interface| link.namespace == here && interface.index == link.ifindex);
            let on_it = interface.and_then(|interface| interface.program).filter(|on| own.contains(&on.id));
            Guarded {
                link,
                name: interface.map(|interface| interface.name.clone()),
                mode: on_it.map(|on| on.mode),
            }
        };
        let guarded = links_in(&self.paths.pins())?.into_iter().map(guarded).collect();
        Ok((guarded, present))
    }

    /// The interfaces of this network namespace that are guarded, and whether one of another is.
    pub fn guarded_here(&self) -> Result<(Vec<Interface>, bool), Error> {
        let here = network_namespace()?;
        let (guarded, mut present) = self.guarded_among()?;
        present.retain(|interface| {
            guarded.iter().any(|on| on.mode.is_some() && on.link.ifindex == interface.index)
        });
        Ok((present, guarded.iter().any(|on| on.link.namespace != here)))
    }
}
