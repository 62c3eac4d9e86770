//! The engine's tables as BPF maps.

use core::hint::black_box;

use aya_ebpf::bindings::{BPF_ANY, BPF_NOEXIST};
use aya_ebpf::helpers::{bpf_get_smp_processor_id, bpf_map_lookup_percpu_elem};
use aya_ebpf::maps::lpm_trie::Key;
use dosguard_common::address::Address;
use dosguard_common::ban::{Ban, BanKey, Offender};
use dosguard_common::config::Config;
use dosguard_common::event::Event;
use dosguard_common::reason::{Reason, Tally};
use dosguard_common::rule::{Rule, RuleIndex};
use dosguard_common::tables::{Refused, SynsKey, Tables};
use dosguard_common::window::Window;

use crate::maps;

const EEXIST: i32 = -17;

/// The pinned maps.
pub struct KernelTables;

fn added(result: Result<(), i32>) -> Result<(), Refused> {
    result.map_err(|error| if error == EEXIST { Refused::Exists } else { Refused::Full })
}

#[inline(always)]
fn bump(index: u32, bytes: u64) {
    if let Some(count) = maps::COUNTERS.get_ptr_mut(index) {
        // SAFETY: the pointer is to this CPU's own value, which nothing else writes while the program runs.
        unsafe {
            (*count).packets += 1;
            (*count).bytes += bytes;
        }
    }
}

impl Tables for KernelTables {
    #[inline(always)]
    fn config(&self) -> Option<Config> {
        maps::CONFIG.get(0).copied().filter(Config::is_ready)
    }

    #[inline(always)]
    fn is_allowed(&self, address: &Address) -> bool {
        maps::ALLOW.get(Key::new(128, *address)).is_some()
    }

    #[inline(always)]
    fn rule_of(&self, port: u16) -> RuleIndex {
        maps::PORTS.get(u32::from(port)).copied().unwrap_or(RuleIndex::DEFAULT)
    }

    #[inline(always)]
    fn rule(&self, index: RuleIndex) -> Option<Rule> {
        let rule = maps::RULES.get_ptr(u32::from(index.0))?;
        // SAFETY: a non-null pointer from the map is to a whole, aligned `Rule`. Userspace may be writing it; see
        // `Rule` for why the generation is read last.
        let (rule, generation) = unsafe {
            let rule = rule.read();
            black_box(()); // keeps the compiler from reading the generation first
            (rule, rule_generation(maps::RULES.get_ptr(u32::from(index.0))?))
        };
        let rule = rule.with_generation(generation);
        rule.is_defined().then_some(rule)
    }

    #[inline(always)]
    fn ban(&self, key: &BanKey) -> Option<Ban> {
        // SAFETY: an entry that is removed meanwhile stays readable until the program ends (RCU); values are replaced,
        // not written in place.
        unsafe { maps::BANS.get(key) }.copied()
    }

    #[inline(always)]
    fn add_ban(&mut self, key: &BanKey, ban: &Ban) -> Result<(), Refused> {
        added(maps::BANS.insert(key, ban, u64::from(BPF_NOEXIST)))
    }

    #[inline(always)]
    fn remove_ban(&mut self, key: &BanKey) -> bool {
        maps::BANS.remove(key).is_ok()
    }

    #[inline(always)]
    fn offender(&self, source: &Address) -> Option<Offender> {
        // SAFETY: as for bans; a preallocated entry may be reused meanwhile, and then an offence is miscounted.
        unsafe { maps::OFFENDERS.get(source) }.copied()
    }

    #[inline(always)]
    fn remember(&mut self, source: &Address, offender: &Offender) {
        let _refused = maps::OFFENDERS.insert(source, offender, u64::from(BPF_ANY));
    }

    #[inline(always)]
    fn cpus(&self) -> u32 {
        maps::CPUS.load()
    }

    #[inline(always)]
    fn sees_peers(&self) -> bool {
        maps::PEERS.load() != 0
    }

    #[inline(always)]
    fn with_window<R>(&mut self, key: &SynsKey, work: impl FnOnce(&mut Window) -> R) -> Option<R> {
        let window = maps::SYNS.get_ptr_mut(key)?;
        // SAFETY: the pointer is to this CPU's own value. Other CPUs read it and write only the watch mark, an aligned
        // word that is never torn.
        Some(work(unsafe { &mut *window }))
    }

    #[inline(always)]
    fn for_each_peer(&mut self, key: &SynsKey, mut look: impl FnMut(&mut Window)) {
        // SAFETY: the helper takes no arguments.
        let own = unsafe { bpf_get_smp_processor_id() } as u32;
        let mut cpu = 0;
        while cpu < maps::CPUS.load() {
            if cpu != own {
                let map = (&raw const maps::SYNS).cast_mut().cast();
                let key = core::ptr::from_ref(key).cast();
                // SAFETY: the map was made for keys of this type.
                let peer = unsafe { bpf_map_lookup_percpu_elem(map, key, cpu) }.cast::<Window>();
                // SAFETY: the pointer is null or to a value of the map. Of another CPU's value only the watch mark is
                // written; see `with_window`.
                if let Some(peer) = unsafe { peer.as_mut() } {
                    look(peer);
                }
            }
            cpu += 1;
        }
    }

    #[inline(always)]
    fn add_window(&mut self, key: &SynsKey, window: &Window) -> Result<(), Refused> {
        added(maps::SYNS.insert(key, window, u64::from(BPF_NOEXIST)))
    }

    #[inline(always)]
    fn clear_windows(&mut self, key: &SynsKey) {
        let _gone_already = maps::SYNS.remove(key);
    }

    #[inline(always)]
    fn count(&mut self, reason: Reason, rule: Option<RuleIndex>, bytes: u64) {
        bump(reason.index(), bytes);
        let Some(rule) = rule else { return };
        if let Some(count) =
            maps::RULE_COUNTERS.get_ptr_mut(u32::from(rule.0) * Reason::COUNT + reason.index())
        {
            // SAFETY: as in `bump`.
            unsafe { *count += 1 };
        }
    }

    #[inline(always)]
    fn tally(&mut self, tally: Tally) {
        bump(tally.index(), 0);
    }

    #[inline(always)]
    fn emit(&mut self, event: &Event) {
        if maps::EVENTS.output::<Event>(event, 0).is_err() {
            bump(Tally::EventLost.index(), 0);
        }
    }
}

/// The generation, which stands first in a rule.
///
/// # Safety
///
/// `rule` must come from the map.
#[inline(always)]
unsafe fn rule_generation(rule: *const Rule) -> u32 {
    // SAFETY: the caller's pointer is to a whole rule; the first field is a `u32`.
    unsafe { rule.cast::<u32>().read_volatile() }
}
