//! Reading what the kernel has of all sources, again and again.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use dosguard_common::address::Address;
use dosguard_common::config::Config;
use dosguard_common::connection::Look;
use dosguard_common::key::SourceKey;
use dosguard_common::offender::{Offender, era_by};
use dosguard_common::rule::{Rule, RuleIndex};
use foldhash::HashMap as FastMap;
use foldhash::{HashMap, HashMapExt as _};
use jiff::Timestamp;

use super::watch::Watch;
use super::{By, Found, Row, State, Syns, TopError, Totals, order, rate};
use crate::config::policy::SourcePrefixes;
use crate::config::services::CountBy;
use crate::connections::{Census, CountError, Place};
use crate::daemon::ask_status;
use crate::datapath::{Datapath, List, Maps};
use crate::explain::Standing;
use crate::output::WallClock;
use crate::paths::Paths;
use crate::system;

/// What is seen at one moment.
pub struct View {
    /// The sources that come first, each under a rule.
    pub rows: Vec<Row>,
    /// What all sources come to, those included that are not in the rows.
    pub totals: Totals,
    /// Connections beside those of the sources; none if connections could not be counted.
    pub look: Option<Look>,
    /// Why connections were not counted, or not in every network namespace.
    pub uncounted: Vec<CountError>,
    /// The rules.
    pub rules: BTreeMap<RuleIndex, Rule>,
    /// How wide sources are.
    pub prefixes: SourcePrefixes,
    /// The moment.
    pub clock: WallClock,
}

/// Somebody who looks at the sources. As long as it is there, drops are counted for each of them.
pub struct Viewer<'a> {
    paths: &'a Paths,
    watch: Watch<'a>,
    every: Duration,
    connections: Connections,
    before: Drops,
}

impl<'a> Viewer<'a> {
    /// Begins to look. The first thing to see is there after `every`.
    pub fn begin(paths: &'a Paths, every: Duration) -> Result<Self, TopError> {
        let mut datapath = Datapath::require(paths)?;
        let mut watch = Watch::begin(paths)?;
        watch.renew(&mut datapath, every)?;
        let before = Drops::read(datapath.maps())?;
        Ok(Self { paths, watch, every, connections: Connections::default(), before })
    }

    /// What there is to see since the last time: the first `most` sources.
    pub fn look(&mut self, by: By, most: usize) -> Result<View, TopError> {
        // It may have been loaded anew.
        let mut datapath = Datapath::require(self.paths)?;
        let now = Drops::read(datapath.maps())?;
        let drops = now.since(&self.before);
        self.before = now;
        self.watch.renew(&mut datapath, self.every)?;
        let (census, uncounted) = self.connections.count(self.paths, &datapath);
        let look = census.as_ref().map(|census| census.look);
        let held = census.map(|census| census.held).unwrap_or_default();

        let maps = datapath.maps();
        let (config, rules) = (maps.config()?, maps.rules()?.into_iter().collect());
        let clock = WallClock::new(Timestamp::now(), system::boot_now_ns()?);
        let syns = syns(maps, &config, &rules, clock.boot_now_ns())?;
        let found = Found { config, rules, held, syns, drops, bans: datapath.look()?.bans };
        let mut rows = found.rows();
        let totals = Totals::of(&rows);
        order::sort(&mut rows, by, &totals);
        rows.truncate(most);
        find_listed(&mut rows, maps, &config)?;
        let prefixes = (*config.mask()).into();
        Ok(View { rows, totals, look, uncounted, rules: found.rules, prefixes, clock })
    }
}

/// Dropped packets of sources, at one moment.
struct Drops {
    at: Instant,
    packets: HashMap<Address, u64>,
}

impl Drops {
    fn read(maps: &Maps) -> Result<Self, TopError> {
        let at = Instant::now();
        Ok(Self { at, packets: maps.drops()?.into_iter().collect() })
    }

    /// Those that came, a second.
    fn since(&self, before: &Self) -> HashMap<Address, f64> {
        let ns = u64::try_from(self.at.saturating_duration_since(before.at).as_nanos()).unwrap_or(u64::MAX);
        let since = |(source, packets): (&Address, &u64)| {
            // Who was forgotten meanwhile begins anew.
            let earlier = before.packets.get(source).copied().unwrap_or_default();
            let came = packets.checked_sub(earlier).unwrap_or(*packets);
            (came > 0).then(|| (*source, rate(came, ns)))
        };
        self.packets.iter().filter_map(since).collect()
    }
}

/// What is counted of sources in their windows; none that has nothing there.
fn syns(
    maps: &Maps,
    config: &Config,
    rules: &BTreeMap<RuleIndex, Rule>,
    now_ns: u64,
) -> Result<HashMap<SourceKey, Syns>, TopError> {
    let offenders: FastMap<SourceKey, Offender> = maps.all_offenders()?.into_iter().collect();
    let mut found = HashMap::new();
    maps.each_counted(|key, window| {
        let Some(rule) = key.rule().and_then(|index| rules.get(&index)) else { return };
        let era = era_by(config, key, rule, |key| offenders.get(key).copied());
        let (slot, generation) = (rule.slot(now_ns), rule.counting_generation(era));
        let passed = window.counted(slot, generation);
        if passed > 0 {
            found.insert(*key, Syns { passed, standing: Standing { count: passed, limit: rule.limit() } });
        }
    })?;
    Ok(found)
}

/// The lists come before bans and rules.
fn find_listed(rows: &mut [Row], maps: &Maps, config: &Config) -> Result<(), TopError> {
    let lists = [
        (List::Allow, config.has_allow_list(), State::Allowed),
        (List::Deny, config.has_deny_list(), State::Denied),
    ];
    for row in rows {
        for (list, _, state) in lists.iter().filter(|(_, is_used, _)| *is_used) {
            if maps.list(*list).covers(&row.source)? {
                (row.state, row.ban) = (*state, None);
                break;
            }
        }
    }
    Ok(())
}

/// Connections, in this network namespace and in those that the daemon watches.
#[derive(Default)]
struct Connections {
    /// The program of the instance that they are counted for.
    program: Option<u32>,
    places: Vec<Place>,
    /// Of places that cannot be entered.
    failed: Vec<CountError>,
}

impl Connections {
    /// None if not even this namespace's can be counted; and why not, or not all.
    fn count(&mut self, paths: &Paths, datapath: &Datapath) -> (Option<Census>, Vec<CountError>) {
        let program = datapath.program().ok().map(|(id, _)| id);
        if self.places.is_empty() || self.program != program {
            *self = Self::open(paths, program);
        }
        let mut uncounted = std::mem::take(&mut self.failed);
        let mut census: Option<Census> = None;
        for place in &mut self.places {
            match place.look() {
                Ok(found) => census.get_or_insert_default().add(found),
                Err(error) => uncounted.push(error),
            }
        }
        (census, uncounted)
    }

    fn open(paths: &Paths, program: Option<u32>) -> Self {
        let mut opened =
            Self { program, places: vec![Place::here(paths, CountBy::Auto)], failed: Vec::new() };
        // Without a daemon there are no others.
        let watched = ask_status(paths).ok().and_then(|report| report.connections);
        for name in watched.map(|watched| watched.namespaces).unwrap_or_default() {
            match Place::there(&name, paths, CountBy::Auto, None) {
                Ok(place) => opened.places.push(place),
                Err(error) => opened.failed.push(error),
            }
        }
        opened
    }
}
