//! Names, sizes and the version of everything that kernel and userspace agree on.

use crate::mark::mark_lines;
use crate::reason::{self, FIRST_COUNTERS};

/// Version of the pinned maps' layout. It is part of the pin path, so that two layouts never meet.
pub const ABI_VERSION: u32 = 7;

/// The XDP program's name in the object and in the kernel's listings.
pub const PROGRAM: &str = "dosguard";

/// The program that answers SYNs, and its place in [`STEPS`].
pub const REPLY_PROGRAM: &str = "dosguard_reply";
/// Its place.
pub const REPLY_STEP: u32 = 0;
/// The program that looks at answers, and its place in [`STEPS`].
pub const ANSWER_PROGRAM: &str = "dosguard_answer";
/// Its place.
pub const ANSWER_STEP: u32 = 1;

/// The program that counts connections, in an object of its own that the daemon loads; see [`HELD`].
pub const COUNT_PROGRAM: &str = "dosguard_count";

/// The program that marks who has a connection, in the same object.
pub const PEERS_PROGRAM: &str = "dosguard_peers";

/// The program that bans for connections, in the same object, too.
pub const BAN_PROGRAM: &str = "dosguard_ban";

/// Load-time constant: how many CPUs the kernel may use ("possible" CPUs).
pub const CPUS_GLOBAL: &str = "CPUS";

/// Load-time constant: 1 when the kernel makes SYN cookies for programs (`bpf_tcp_raw_gen_syncookie_ipv4`, Linux 6.0, commit
/// 33bf9885040c); where it is 0 the verifier removes the tail calls.
pub const CHALLENGES_GLOBAL: &str = "CHALLENGES";

/// Load-time constant: 1 where segments can be looked at that may prove their source: with tail calls from a program that has
/// functions of its own (Linux 5.10 on x86, commit ebf7d1f508a7; 6.0 on arm64, commit d4609a5d8c70).
pub const SEGMENTS_GLOBAL: &str = "SEGMENTS";

/// Load-time constant of aya-log: 0 switches every log statement off, and the verifier removes them.
pub const LOG_LEVEL_GLOBAL: &str = "AYA_LOG_LEVEL";

/// A map of the kernel program: its name and how many entries it holds unless configured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MapSpec {
    /// Name in the object and in the pin directory.
    pub name: &'static str,
    /// Entries, or bytes for the ring buffer.
    pub entries: u32,
    /// What is in it, for people.
    pub holds: &'static str,
    /// The ABI version in which its layout or its meaning last changed: pinned ones since then are carried over.
    pub since: u32,
}

const fn map(name: &'static str, entries: u32, holds: &'static str, since: u32) -> MapSpec {
    MapSpec { name, entries, holds, since }
}

/// Global settings; one [`Config`](crate::config::Config). Written by userspace.
pub const CONFIG: MapSpec = map("CONFIG", 1, "global settings", 7);
/// Port to rule index; every port has an entry, 0 is `default`. Written by userspace.
pub const PORTS: MapSpec = map("PORTS", 65_536, "the rule of each port", 2);
/// Rule index to [`Rule`](crate::rule::Rule). Written by userspace.
pub const RULES: MapSpec = map("RULES", 256, "rules", 6);
/// [`Set`](crate::set::Set)s of (source, rule) and [`Window`](crate::window::Window); for so many sources, in
/// [fewer sets](crate::hashing::sets_for). When a set is full, the one goes that was used least lately. Written by the kernel.
pub const SYNS: MapSpec = map("SYNS", 131_072, "counters of sources in the window", 7);
/// One [`Hashing`](crate::hashing::Hashing): which set a source is in, and which marks count. Written by userspace when the tables are
/// made, and then the latter alone.
pub const HASHING: MapSpec = map("HASHING", 1, "keys of the tables of sets", 7);
/// (source, everywhere or rule) to [`Ban`](crate::ban::Ban). Not LRU: when full, no ban is lost and none is added.
pub const BANS: MapSpec = map("BANS", 65_536, "bans", 2);
/// (source, everywhere or rule) to [`Offender`](crate::offender::Offender). LRU: when full, the oldest offenders are forgotten.
pub const OFFENDERS: MapSpec = map("OFFENDERS", 65_536, "offences", 2);
/// [Marks](crate::mark) of the sources that are in `BANS`, in `OFFENDERS` or in `PROOFS`, or have a connection. Written by both, byte
/// by byte.
pub const MARKS: MapSpec = map(
    "MARKS",
    mark_lines(BANS.entries, OFFENDERS.entries, PROOFS.entries),
    "of which sources something is known",
    7,
);
/// Claims to something that one CPU of several may do, such as to replace an expired ban. LRU: when full, the oldest
/// claims go, which are over.
pub const CLAIMS: MapSpec = map("CLAIMS", 4_096, "work in progress", 2);
/// Prefixes that are never counted, dropped or banned. Longest prefix match. Written by userspace. While one file's list
/// replaces another's, both are in it: it holds twice what a file may have. Only what is used takes memory.
pub const ALLOW: MapSpec = map("ALLOW", 262_144, "allowed networks", 2);
/// Prefixes from which every packet is dropped. Longest prefix match. Written by userspace. As large as `ALLOW`.
pub const DENY: MapSpec = map("DENY", 262_144, "denied networks", 2);
/// [`Reason`](crate::reason::Reason)s, then [`Tally`](crate::reason::Tally)s, to packets and bytes, per CPU.
pub const COUNTERS: MapSpec = map("COUNTERS", FIRST_COUNTERS[0], "what became of the packets", 2);
/// The [reasons and tallies](crate::reason::Place) that there are since, per CPU.
pub const MORE_COUNTERS: MapSpec =
    map("MORE_COUNTERS", reason::MORE_COUNTERS[0], "the same of newer reasons", 7);
/// Rule index × reason to packets, per CPU.
pub const RULE_COUNTERS: MapSpec =
    map("RULE_COUNTERS", RULES.entries * FIRST_COUNTERS[1], "the same for each rule", 2);
/// Rule index × newer reason to packets, per CPU.
pub const MORE_RULE_COUNTERS: MapSpec =
    map("MORE_RULE_COUNTERS", RULES.entries * reason::MORE_COUNTERS[1], "the same of newer reasons", 5);
/// Kind of event to [`Gate`](crate::event::Gate), per CPU: how many events passed lately. Written by the kernel.
pub const GATES: MapSpec = map("GATES", crate::event::Kind::GATED, "how many events passed lately", 6);
/// Until when drops are counted for each source, in nanoseconds of boot time; 0 for not at all. Written by userspace.
pub const WATCH: MapSpec = map("WATCH", 1, "whether drops are counted for each source", 4);
/// Source to packets that were dropped while somebody watched, per CPU. LRU: when full, those go that were dropped least
/// lately.
pub const DROPS: MapSpec = map("DROPS", 16_384, "drops of sources", 4);
/// Source to [`Proof`](crate::proof::Proof): who is real. LRU: when full, those go that were met least lately. Written by the
/// kernel.
pub const PROOFS: MapSpec = map("PROOFS", 65_536, "proofs that sources are real", 6);
/// (source, rule) to [`Spent`](crate::proof::Spent): who has used the limit up by handshakes. LRU: when full, those go that were
/// met least lately. Written by the kernel.
pub const SPENT: MapSpec = map("SPENT", 16_384, "limits that were used up", 6);
/// The same of completed handshakes; whoever forges addresses never gets here.
pub const HANDSHAKES: MapSpec = map("HANDSHAKES", 16_384, "counters of completed handshakes", 7);
/// [`Claim`](crate::claim::Claim)s of completed handshakes to when they were made, in nanoseconds of boot time. LRU: when full,
/// the oldest go, and what is repeated then counts again. Written by the kernel.
pub const ANSWERS: MapSpec = map("ANSWERS", 65_536, "handshakes that were counted", 6);
/// Rule index to [`Load`](crate::flood::Load), per CPU. Written by the kernel.
pub const LOADS: MapSpec = map("LOADS", RULES.entries, "SYNs that are being added up", 6);
/// Rule index to [`Flood`](crate::flood::Flood). Written by the kernel.
pub const FLOODS: MapSpec = map("FLOODS", RULES.entries, "floods", 6);
/// One [`SynAck`](crate::challenge::SynAck): what is said of the host where the program answers in its place. Written by
/// userspace. Since 7, as `STEPS`, though its layout is that of 5: both are written before an instance that is carried over
/// takes the old one's place, which may yet go on with its own.
pub const SYNACK: MapSpec = map("SYNACK", 1, "what replies say of the host", 7);
/// Until when answers to challenges are looked for, and when a SYN for a closed connection was last left to the host, in
/// nanoseconds of boot time. Written by the kernel.
pub const CHALLENGED: MapSpec = map("CHALLENGED", 2, "until when challenges may be answered", 5);
/// The host's own addresses: nothing is answered for others. Written by userspace.
pub const HOST: MapSpec = map("HOST", 4_096, "addresses that are answered for", 5);
/// One [`Room`](crate::challenge::Room) per CPU. Written by the kernel, and of no meaning between two packets.
pub const ROOM: MapSpec = map("ROOM", 1, "replies in progress", 5);
/// Which program goes on with what: [`REPLY_STEP`], [`ANSWER_STEP`]. Written by userspace; an empty place drops or passes.
pub const STEPS: MapSpec = map("STEPS", 2, "programs for challenges", 7);
/// One [`Rule`](crate::rule::Rule) per CPU: a copy of the one that a packet is judged by. Written by the kernel.
pub const RULE: MapSpec = map("RULE", 1, "rules in use", 6);
/// One [`Scratch`](crate::tables::Scratch) per CPU. Written by the kernel, and of no meaning between two packets.
pub const SCRATCH: MapSpec = map("SCRATCH", 1, "work in progress", 4);
/// Ring buffer of [`Event`](crate::event::Event)s; a full one loses the newest, and the loss is counted.
pub const EVENTS: MapSpec = map("EVENTS", 4 << 20, "events that nobody has read", 2);

/// [`Slot`](crate::connection::Slot)s: what sources hold, each near the place that its key has. Not pinned: each process that
/// counts has one of its own, as well as the next five. Userspace sees it without a copy.
pub const HELD: MapSpec = map("HELD", 65_536, "connections of sources", 4);
/// (source, rule) to the [`Held`](crate::connection::Held) connections, of those that found no slot. When it is full, sources are
/// missed, and `LOOK` says how many.
pub const MORE_HELD: MapSpec = map("MORE_HELD", 524_288, "connections of more sources", 4);
/// [`Waiting`](crate::connection::Waiting) connections. Of no meaning between two looks.
pub const WAITING: MapSpec = map("WAITING", 16, "connections that are being added up", 4);
/// Port to the number of the last look that found it served.
pub const SERVED: MapSpec = map("SERVED", 65_536, "ports that are served", 4);
/// The host's own addresses. Written by userspace before each look. When it is full, sources of the host itself may be counted, of which the
/// daemon warns.
pub const OWN: MapSpec = map("OWN", 4_096, "own addresses", 4);
/// One [`Look`](crate::connection::Look).
pub const LOOK: MapSpec = map("LOOK", 1, "what a look at the sockets has found", 4);

/// Every pinned map, in the order in which they are pinned.
pub const MAPS: [MapSpec; 32] = [
    CONFIG,
    PORTS,
    RULES,
    SYNS,
    HASHING,
    BANS,
    OFFENDERS,
    MARKS,
    CLAIMS,
    ALLOW,
    DENY,
    COUNTERS,
    RULE_COUNTERS,
    MORE_COUNTERS,
    MORE_RULE_COUNTERS,
    GATES,
    WATCH,
    DROPS,
    PROOFS,
    SPENT,
    HANDSHAKES,
    ANSWERS,
    LOADS,
    FLOODS,
    SYNACK,
    CHALLENGED,
    HOST,
    ROOM,
    RULE,
    STEPS,
    SCRATCH,
    EVENTS,
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_map_is_newer_than_the_version() {
        assert_eq!(MAPS.iter().map(|map| map.since).max(), Some(ABI_VERSION));
    }
}
