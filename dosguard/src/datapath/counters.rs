//! What the kernel program counts of packets, wherever it is kept.

use aya::maps::{MapData, PerCpuArray, PerCpuValues};
use aya::util::nr_cpus;
use dosguard_common::abi::{self, MapSpec};
use dosguard_common::reason::{Count, Place, Reason, Tally};
use dosguard_common::rule::RuleIndex;

use super::maps::{capacity, typed};
use super::wire::Wire;
use super::{Error, Maps};

/// The maps of counters.
pub(super) struct Counters {
    first: PerCpuArray<MapData, Wire<Count>>,
    more: PerCpuArray<MapData, Wire<Count>>,
    first_of_rules: PerCpuArray<MapData, u64>,
    more_of_rules: PerCpuArray<MapData, u64>,
}

impl Counters {
    /// Takes each map from `take`, which knows them by name.
    pub(super) fn new(mut take: impl FnMut(&'static str) -> Result<MapData, Error>) -> Result<Self, Error> {
        Ok(Self {
            first: typed(abi::COUNTERS, take(abi::COUNTERS.name)?)?,
            more: typed(abi::MORE_COUNTERS, take(abi::MORE_COUNTERS.name)?)?,
            first_of_rules: typed(abi::RULE_COUNTERS, take(abi::RULE_COUNTERS.name)?)?,
            more_of_rules: typed(abi::MORE_RULE_COUNTERS, take(abi::MORE_RULE_COUNTERS.name)?)?,
        })
    }

    /// Adds what an earlier `MORE_COUNTERS` has, which had fewer entries, each in its place. What the program counts in an
    /// entry just while that is added to may be lost: the kernel has no addition.
    pub(super) fn add(&mut self, earlier: MapData) -> Result<(), Error> {
        let spec = abi::MORE_COUNTERS;
        let entries = capacity(&earlier, spec)?.min(spec.entries);
        let earlier: PerCpuArray<MapData, Wire<Count>> = typed(spec, earlier)?;
        for index in 0..entries {
            let counts = earlier.get(&index, 0).map_err(Error::map(spec.name, "read"))?;
            if counts.iter().all(|count| count.0 == Count::default()) {
                continue;
            }
            let live = self.more.get(&index, 0).map_err(Error::map(spec.name, "read"))?;
            let sums = live.iter().zip(counts.iter()).map(|(one, other)| Wire(one.0.plus(other.0)));
            let sums = PerCpuValues::try_from(sums.collect::<Vec<_>>())
                .map_err(Error::path("count CPUs in", "/sys"))?;
            self.more.set(index, sums, 0).map_err(Error::map(spec.name, "write"))?;
        }
        Ok(())
    }

    fn count(&self, place: Place) -> Result<Count, Error> {
        let (map, spec, index) = match place {
            Place::First(index) => (&self.first, abi::COUNTERS, index),
            Place::More(index) => (&self.more, abi::MORE_COUNTERS, index),
        };
        let counts: PerCpuValues<_> = map.get(&index, 0).map_err(Error::map(spec.name, "read"))?;
        Ok(counts.iter().fold(Count::default(), |sum, wire| sum.plus(wire.0)))
    }

    fn of_rule(&self, place: Place) -> (&PerCpuArray<MapData, u64>, MapSpec, u32) {
        match place {
            Place::First(index) => (&self.first_of_rules, abi::RULE_COUNTERS, index),
            Place::More(index) => (&self.more_of_rules, abi::MORE_RULE_COUNTERS, index),
        }
    }
}

impl Maps {
    /// Packets and bytes under a reason, over all CPUs.
    pub fn packets(&self, reason: Reason) -> Result<Count, Error> {
        self.counters.count(reason.place())
    }

    /// Occurrences under a tally, over all CPUs.
    pub fn tallied(&self, tally: Tally) -> Result<u64, Error> {
        Ok(self.counters.count(tally.place())?.packets)
    }

    /// Packets of a rule under a reason, over all CPUs.
    pub fn rule_packets(&self, rule: RuleIndex, reason: Reason) -> Result<u64, Error> {
        let (map, spec, index) = self.counters.of_rule(reason.place_under(rule));
        let counts = map.get(&index, 0).map_err(Error::map(spec.name, "read"))?;
        Ok(counts.iter().fold(0_u64, |sum, count| sum.wrapping_add(*count)))
    }

    /// Sets the packets of a rule back to zero, under every reason.
    pub fn reset_rule_packets(&mut self, rule: RuleIndex) -> Result<(), Error> {
        let cpus = nr_cpus().map_err(|(path, error)| Error::path("read", path)(error))?;
        for reason in Reason::ALL {
            let (map, spec, index) = match reason.place_under(rule) {
                Place::First(index) => (&mut self.counters.first_of_rules, abi::RULE_COUNTERS, index),
                Place::More(index) => (&mut self.counters.more_of_rules, abi::MORE_RULE_COUNTERS, index),
            };
            let zeroes =
                PerCpuValues::try_from(vec![0; cpus]).map_err(Error::path("count CPUs in", "/sys"))?;
            map.set(index, zeroes, 0).map_err(Error::map(spec.name, "write"))?;
        }
        Ok(())
    }
}
