//! Floods: too many SYNs to a rule's ports from all sources together.
//!
//! Both parts are functions of their own, with stacks of their own: that of the kernel program has no room.

use super::report::report;
use crate::claim::Claim;
use crate::clock::Clock;
use crate::config::Config;
use crate::event::{Cause, Kind};
use crate::flood::Tide;
use crate::rule::{Rule, RuleIndex};
use crate::tables::Tables;

/// Counts a SYN to a rule's ports, and says whether the rule is flooded. Reports when that begins.
#[inline(always)]
pub(super) fn is_flooded<T: Tables>(
    tables: &mut T,
    config: &Config,
    index: RuleIndex,
    rule: &Rule,
    cause: impl Fn() -> Cause,
    clock: &impl Clock,
) -> bool {
    match count(tables, index, rule, clock) {
        OUT => false,
        IN => true,
        syns => {
            tell(tables, config, index, rule, syns, &cause());
            true
        }
    }
}

/// The rule is not flooded, or it is; any other number is of the SYNs with which it begins to be. A number and not a [`Tide`],
/// of which a part is nothing at times: Linux 5.10 does not let that be handed on.
const OUT: u32 = 0;
const IN: u32 = 1;

#[inline(never)]
fn count<T: Tables>(tables: &mut T, index: RuleIndex, rule: &Rule, clock: &impl Clock) -> u32 {
    let (limit, lately_ns) = (rule.flood(), clock.lately_ns());
    let share = limit.share(tables.cpus());
    let added = tables.with_load(index, |load| load.count(limit.window(lately_ns), share)).unwrap_or(0);
    // What is added up of all CPUs goes by the clock that they have in common.
    let now_ns = if added == 0 { lately_ns } else { clock.now_ns() };
    let window = limit.window(now_ns);
    let found = tables.with_flood(index, |flood| {
        match if added == 0 { flood.tide(now_ns) } else { flood.add(limit, window, added, now_ns) } {
            Tide::Out => OUT,
            Tide::In => IN,
            // More than a limit, which is one at least.
            Tide::Rises(syns) => syns.max(2),
        }
    });
    match found.unwrap_or(OUT) {
        // Of several CPUs that see it one tells.
        syns if syns > IN && tables.claim(&Claim::flood(index, window)).is_err() => IN,
        found => found,
    }
}

#[inline(never)]
fn tell<T: Tables>(tables: &mut T, config: &Config, index: RuleIndex, rule: &Rule, syns: u32, cause: &Cause) {
    let Some(now_ns) = tables.with_flood(index, |flood| flood.since_ns) else { return };
    report(tables, config, Kind::Flood, now_ns, |event| {
        event.fill_flood(Kind::Flood, rule, index, syns, cause, config.mode_of(rule), now_ns);
    });
}

#[cfg(test)]
mod tests {
    use crate::clock::Clock;
    use crate::engine::decide;
    use crate::engine::tests::{START, segment, spec, tables};
    use crate::flood::FloodLimit;
    use crate::rule::RuleSpec;
    use crate::tables::Tables as _;

    const MS: u64 = 1_000_000;

    /// A CPU that has asked for the time this long ago.
    struct Cpu {
        now_ns: u64,
        ago_ns: u64,
    }

    impl Clock for Cpu {
        fn now_ns(&self) -> u64 {
            self.now_ns
        }

        fn lately_ns(&self) -> u64 {
            self.now_ns - self.ago_ns
        }
    }

    #[test]
    fn cpus_that_have_asked_for_the_time_before_and_after_a_windows_end_count_in_one() {
        let flood = FloodLimit { max: 5, window_ns: 1_000 * MS };
        let mut tables = tables(RuleSpec { flood, ..spec(100) }, 1);
        for number in 0..8 {
            let cpu = Cpu { now_ns: START + MS + number, ago_ns: if number % 2 == 0 { 0 } else { 3 * MS } };
            let source = [192, 0, 2, u8::try_from(number).unwrap()];
            decide(segment(source, 80, 0x02).as_slice(), &mut tables, cpu);
        }
        let since_ns = tables.with_flood(crate::rule::RuleIndex::DEFAULT, |flood| flood.since_ns);
        assert_eq!(since_ns, Some(START + MS + 5));
    }
}
