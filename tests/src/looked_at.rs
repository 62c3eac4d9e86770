//! What the program that looks at segments keeps of the places that they come to: since and until when it has, as it sees it.

use std::collections::BTreeSet;

use anyhow::{Context as _, Result};
use aya::maps::{HashMap, Map, MapData, MapInfo, loaded_maps};
use dosguard::datapath::Maps;
use dosguard::system::boot_now_ns;

/// Places as keys; since and until when, and a mask.
type Places = HashMap<MapData, [u8; 20], [u64; 6]>;

/// The maps of instances that were loaded since.
#[derive(Debug)]
pub struct LookedAt {
    others: BTreeSet<u32>,
}

fn maps() -> impl Iterator<Item = MapInfo> {
    loaded_maps().filter_map(Result::ok).filter(|info| info.name_as_str() == Some("LOOKED_AT"))
}

impl LookedAt {
    /// Those of instances that are loaded from now on.
    #[must_use]
    pub fn from_now() -> Self {
        Self { others: maps().map(|info| info.id()).collect() }
    }

    fn places(&self) -> impl Iterator<Item = Result<Places>> {
        let maps = maps().filter(|info| !self.others.contains(&info.id()));
        maps.map(|info| Ok(Places::try_from(Map::LruHashMap(MapData::from_id(info.id())?))?))
    }

    /// Changes since and until when segments are looked at. Returns at how many places.
    pub fn change(&self, change: impl Fn(u64, u64) -> (u64, u64)) -> Result<usize> {
        let mut changed = 0;
        for places in self.places() {
            let mut places = places?;
            let entries = places.iter().collect::<Result<Vec<_>, _>>()?;
            for (place, [since, until, a, b, c, d]) in entries {
                let (since, until) = change(since, until);
                places.insert(place, [since, until, a, b, c, d], 0)?;
                changed += 1;
            }
        }
        Ok(changed)
    }

    /// Whether all who have a connection are marked at all of these places, as the program sees it.
    pub fn are_peers_marked(&self, maps: &Maps) -> Result<bool> {
        let now_ns = boot_now_ns()?;
        Ok(maps.peers_marked()?.covers(now_ns.saturating_sub(self.shortest_ns()?), now_ns))
    }

    /// For how long they are looked at without a break until now, in nanoseconds, where that is shortest.
    pub fn shortest_ns(&self) -> Result<u64> {
        let now_ns = boot_now_ns()?;
        let mut shortest = None;
        for places in self.places() {
            for place in &places? {
                let (_, [since_ns, until_ns, ..]) = place?;
                let looked_ns = if until_ns < now_ns { 0 } else { now_ns.saturating_sub(since_ns) };
                shortest = Some(shortest.map_or(looked_ns, |shortest: u64| shortest.min(looked_ns)));
            }
        }
        shortest.context("segments are looked at nowhere")
    }
}
