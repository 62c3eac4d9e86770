//! Floods: too many SYNs to a rule's ports from all sources together.
//!
//! Both parts are functions of their own, with stacks of their own: that of the kernel program has no room.

use super::report::report;
use crate::claim::Claim;
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
    now_ns: u64,
) -> bool {
    match count(tables, index, rule, now_ns) {
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
fn count<T: Tables>(tables: &mut T, index: RuleIndex, rule: &Rule, now_ns: u64) -> u32 {
    let limit = rule.flood();
    let (window, share) = (limit.window(now_ns), limit.share(tables.cpus()));
    let added = tables.with_load(index, |load| load.count(window, share)).unwrap_or(0);
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
