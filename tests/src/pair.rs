//! An attacker and a guard of their own, beside the lab's: several stand ready at the same time, each guarded in another way.

use anyhow::Result;

use crate::{
    addresses::{GUARD_ATTACKER_SIDE, PEER},
    flood::{Flood, FloodReport},
    lab::{Lab, attacker_and_guard, enable_napi},
    netns::Namespace,
    statistics::Statistics,
};

/// A veth pair between two namespaces, with the addresses of the lab's attacker and guard. Goes when it is dropped.
#[derive(Debug)]
pub struct Pair {
    attacker: Namespace,
    guard: Namespace,
}

impl Pair {
    /// Makes one in a lab, so that no more than one run makes any.
    pub fn new(_lab: &Lab, role: &str) -> Result<Self> {
        let (attacker, guard) = attacker_and_guard(role)?;
        Ok(Self { attacker, guard })
    }

    /// Where floods come from.
    #[must_use]
    pub const fn attacker(&self) -> &Namespace {
        &self.attacker
    }

    /// Where they go to.
    #[must_use]
    pub const fn guard(&self) -> &Namespace {
        &self.guard
    }

    /// Makes the guard take live frames while no XDP program is attached to its interface.
    pub fn enable_napi(&self) -> Result<()> {
        enable_napi(&self.guard, GUARD_ATTACKER_SIDE)
    }

    /// Floods the guard until the flood's bound is reached.
    pub fn flood(&self, flood: Flood) -> Result<FloodReport> {
        flood.run(&self.attacker, PEER)
    }

    /// How many live frames the guard's interface has taken from its queue.
    pub fn received(&self) -> Result<u64> {
        Statistics::read(&self.guard, GUARD_ATTACKER_SIDE)?.received_frames()
    }
}
