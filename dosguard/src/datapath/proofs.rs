//! Who is known to be real, and which rules are flooded.

use std::os::fd::OwnedFd;

use aya::maps::{Array, HashMap, MapData, MapError};
use dosguard_common::abi;
use dosguard_common::address::Address;
use dosguard_common::flood::Flood;
use dosguard_common::key::SourceKey;
use dosguard_common::proof::{Evidence, Proof, Spent};
use dosguard_common::rule::RuleIndex;

use super::maps::{capacity, keys, once_more, removed, typed};
use super::sources::unreadable;
use super::wire::Wire;
use super::{Error, Fill, Maps, batch};

/// The maps of proofs and floods.
pub(super) struct Proofs {
    proofs: HashMap<MapData, Wire<Address>, Wire<Proof>>,
    /// The same map once more, to be read in batches.
    proofs_fd: OwnedFd,
    capacity: u32,
    spent: HashMap<MapData, Wire<SourceKey>, Wire<Spent>>,
    challenged: Array<MapData, u64>,
    floods: Array<MapData, Wire<Flood>>,
}

impl Proofs {
    /// Takes each map from `take`, which knows them by name.
    pub(super) fn new(mut take: impl FnMut(&'static str) -> Result<MapData, Error>) -> Result<Self, Error> {
        let proofs = take(abi::PROOFS.name)?;
        Ok(Self {
            capacity: capacity(&proofs, abi::PROOFS)?,
            proofs_fd: once_more(&proofs, abi::PROOFS)?,
            proofs: typed(abi::PROOFS, proofs)?,
            spent: typed(abi::SPENT, take(abi::SPENT.name)?)?,
            challenged: typed(abi::CHALLENGED, take(abi::CHALLENGED.name)?)?,
            floods: typed(abi::FLOODS, take(abi::FLOODS.name)?)?,
        })
    }
}

impl Maps {
    /// When a source was last seen to be real, however long ago.
    pub fn proof(&self, source: &Address) -> Result<Option<Proof>, Error> {
        match self.proofs.proofs.get(&Wire(*source), 0) {
            Ok(proof) => Ok(Some(proof.0)),
            Err(MapError::KeyNotFound) => Ok(None),
            Err(error) => Err(Error::map(abi::PROOFS.name, "read")(error)),
        }
    }

    /// What is known of a source at `now_ns` of boot time.
    pub fn evidence(&self, source: &Address, now_ns: u64) -> Result<Evidence, Error> {
        let age_ns = self.config()?.proof_age_ns();
        Ok(self.proof(source)?.map_or(Evidence::None, |proof| proof.evidence(age_ns, now_ns)))
    }

    /// All sources that were seen to be real, however long ago.
    pub(super) fn all_proofs(&self) -> Result<Vec<(Address, Proof)>, Error> {
        let entries = batch::entries::<Address, Proof>(&self.proofs.proofs_fd);
        let entries = entries.map_err(|error| Error::map(abi::PROOFS.name, "read")(error.into()))?;
        entries.ok_or_else(|| unreadable(abi::PROOFS))
    }

    /// How many sources were seen to be real, however long ago, and of how many it can be kept.
    pub fn proofs_fill(&self) -> Result<Fill, Error> {
        Ok(Fill { used: self.all_proofs()?.len(), capacity: self.proofs.capacity })
    }

    /// When a source last had used a rule's limit up by handshakes, however long ago.
    pub fn spent(&self, key: &SourceKey) -> Result<Option<Spent>, Error> {
        match self.proofs.spent.get(&Wire(*key), 0) {
            Ok(spent) => Ok(Some(spent.0)),
            Err(MapError::KeyNotFound) => Ok(None),
            Err(error) => Err(Error::map(abi::SPENT.name, "read")(error)),
        }
    }

    /// Until when it is looked at who completes handshakes, in nanoseconds of boot time; 0 if it never was.
    pub fn answers_until_ns(&self) -> Result<u64, Error> {
        self.proofs.challenged.get(&0, 0).map_err(Error::map(abi::CHALLENGED.name, "read"))
    }

    /// Forgets who is real.
    pub fn forget_proofs(&mut self) -> Result<(), Error> {
        let Proofs { proofs, capacity, .. } = &mut self.proofs;
        for source in keys(proofs.keys(), *capacity, abi::PROOFS)? {
            removed(proofs.remove(&Wire(source)), abi::PROOFS)?;
        }
        Ok(())
    }

    /// The last flood of a rule.
    pub fn flood(&self, rule: RuleIndex) -> Result<Flood, Error> {
        let flood = self.proofs.floods.get(&u32::from(rule.0), 0);
        flood.map(|wire| wire.0).map_err(Error::map(abi::FLOODS.name, "read"))
    }

    /// Forgets the floods of a rule that is no more.
    pub fn forget_flood(&mut self, rule: RuleIndex) -> Result<(), Error> {
        let floods = &mut self.proofs.floods;
        floods
            .set(u32::from(rule.0), Wire(Flood::default()), 0)
            .map_err(Error::map(abi::FLOODS.name, "write"))
    }
}
