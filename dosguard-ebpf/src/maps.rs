//! The maps. Each line in `dosguard_common::abi` says what is in it, who writes, and what happens when it is full.

use aya_ebpf::Global;
use aya_ebpf::bindings::{BPF_F_MMAPABLE, BPF_F_NO_PREALLOC};
use aya_ebpf::btf_maps;
use aya_ebpf::macros::{btf_map, map};
use aya_ebpf::maps::{
    Array, HashMap, LpmTrie, LruHashMap, LruPerCpuHashMap, PerCpuArray, ProgramArray, RingBuf,
};
use dosguard_common::abi;
use dosguard_common::address::Address;
use dosguard_common::ban::Ban;
use dosguard_common::challenge::{Room, SynAck};
use dosguard_common::claim::Claim;
use dosguard_common::config::Config;
use dosguard_common::event::Gate;
use dosguard_common::flood::{Flood, Load};
use dosguard_common::hashing::{Hashing, sets_for};
use dosguard_common::key::SourceKey;
use dosguard_common::mark::MarkLine;
use dosguard_common::offender::Offender;
use dosguard_common::proof::{Proof, Spent};
use dosguard_common::reason::Count;
use dosguard_common::rule::{Rule, RuleIndex};
use dosguard_common::set::Set;
use dosguard_common::tables::Scratch;

/// Global settings.
#[map]
pub static CONFIG: Array<Config> = Array::with_max_entries(abi::CONFIG.entries, 0);

/// Port to rule.
#[map]
pub static PORTS: Array<RuleIndex> = Array::with_max_entries(abi::PORTS.entries, 0);

/// The rules.
#[map]
pub static RULES: Array<Rule> = Array::with_max_entries(abi::RULES.entries, 0);

/// A table of counters. That it may be mapped is asked for because its values begin on a page then, and each set with a line of
/// memory; nobody maps it, which the kernel refuses for values with a lock.
type Sets<const SETS: usize> = btf_maps::Array<Set, SETS, { BPF_F_MMAPABLE as usize }>;

/// SYNs per source and rule.
#[btf_map]
pub static SYNS: Sets<{ sets_for(abi::SYNS.entries) as usize }> = Sets::new();

/// Where each is counted. It may be mapped, too.
#[map]
pub static HASHING: Array<Hashing> = Array::with_max_entries(abi::HASHING.entries, BPF_F_MMAPABLE);

/// Bans. Not preallocated: most hosts have few, and an entry is only ever added for a source over the limit.
#[map]
pub static BANS: HashMap<SourceKey, Ban> = HashMap::with_max_entries(abi::BANS.entries, BPF_F_NO_PREALLOC);

/// What is remembered of offenders.
#[map]
pub static OFFENDERS: LruHashMap<SourceKey, Offender> =
    LruHashMap::with_max_entries(abi::OFFENDERS.entries, 0);

/// Marks of sources. They may be mapped, as userspace does: it writes single ones.
#[map]
pub static MARKS: Array<MarkLine> = Array::with_max_entries(abi::MARKS.entries, BPF_F_MMAPABLE);

/// Claims to what one CPU of several may do.
#[map]
pub static CLAIMS: LruHashMap<Claim, u8> = LruHashMap::with_max_entries(abi::CLAIMS.entries, 0);

/// The allow-list.
#[map]
pub static ALLOW: LpmTrie<Address, u32> = LpmTrie::with_max_entries(abi::ALLOW.entries, 0);

/// The deny-list.
#[map]
pub static DENY: LpmTrie<Address, u32> = LpmTrie::with_max_entries(abi::DENY.entries, 0);

/// Packets and bytes per reason, occurrences per tally.
#[map]
pub static COUNTERS: PerCpuArray<Count> = PerCpuArray::with_max_entries(abi::COUNTERS.entries, 0);

/// Packets per rule and reason.
#[map]
pub static RULE_COUNTERS: PerCpuArray<u64> = PerCpuArray::with_max_entries(abi::RULE_COUNTERS.entries, 0);

/// Packets and bytes per newer reason, occurrences per newer tally.
#[map]
pub static MORE_COUNTERS: PerCpuArray<Count> = PerCpuArray::with_max_entries(abi::MORE_COUNTERS.entries, 0);

/// Packets per rule and newer reason.
#[map]
pub static MORE_RULE_COUNTERS: PerCpuArray<u64> =
    PerCpuArray::with_max_entries(abi::MORE_RULE_COUNTERS.entries, 0);

/// How many events of each kind passed lately.
#[map]
pub static GATES: PerCpuArray<Gate> = PerCpuArray::with_max_entries(abi::GATES.entries, 0);

/// Until when drops are counted for each source.
#[map]
pub static WATCH: Array<u64> = Array::with_max_entries(abi::WATCH.entries, 0);

/// Dropped packets of sources.
#[map]
pub static DROPS: LruPerCpuHashMap<Address, u64> = LruPerCpuHashMap::with_max_entries(abi::DROPS.entries, 0);

/// Proofs that sources are real.
#[map]
pub static PROOFS: LruHashMap<Address, Proof> = LruHashMap::with_max_entries(abi::PROOFS.entries, 0);

/// Limits that sources have used up by handshakes.
#[map]
pub static SPENT: LruHashMap<SourceKey, Spent> = LruHashMap::with_max_entries(abi::SPENT.entries, 0);

/// Completed handshakes per source and rule.
#[btf_map]
pub static HANDSHAKES: Sets<{ sets_for(abi::HANDSHAKES.entries) as usize }> = Sets::new();

/// Handshakes that were counted.
#[map]
pub static ANSWERS: LruHashMap<Claim, u64> = LruHashMap::with_max_entries(abi::ANSWERS.entries, 0);

/// SYNs to the ports of rules, on each CPU, that are not in the sum yet.
#[map]
pub static LOADS: PerCpuArray<Load> = PerCpuArray::with_max_entries(abi::LOADS.entries, 0);

/// The sums, and floods.
#[map]
pub static FLOODS: Array<Flood> = Array::with_max_entries(abi::FLOODS.entries, 0);

/// What replies say of the host.
#[map]
pub static SYNACK: Array<SynAck> = Array::with_max_entries(abi::SYNACK.entries, 0);

/// Until when challenges may be answered.
#[map]
pub static CHALLENGED: Array<u64> = Array::with_max_entries(abi::CHALLENGED.entries, 0);

/// Addresses that are answered for.
#[map]
pub static HOST: HashMap<Address, u8> = HashMap::with_max_entries(abi::HOST.entries, BPF_F_NO_PREALLOC);

/// Room to work on replies.
#[map]
pub static ROOM: PerCpuArray<Room> = PerCpuArray::with_max_entries(abi::ROOM.entries, 0);

/// The programs for challenges.
#[map]
pub static STEPS: ProgramArray = ProgramArray::with_max_entries(abi::STEPS.entries, 0);

/// The rule that is gone by.
#[map]
pub static RULE: PerCpuArray<Rule> = PerCpuArray::with_max_entries(abi::RULE.entries, 0);

/// Room to work on bans.
#[map]
pub static SCRATCH: PerCpuArray<Scratch> = PerCpuArray::with_max_entries(abi::SCRATCH.entries, 0);

/// Events on their way to userspace.
#[map]
pub static EVENTS: RingBuf = RingBuf::with_byte_size(abi::EVENTS.entries, 0);

/// How many CPUs the kernel may use. Set at load.
#[unsafe(no_mangle)]
pub static CPUS: Global<u32> = Global::new(1);

/// Whether the kernel makes SYN cookies for programs. Set at load; where it is 0 the verifier removes what goes on with them.
#[unsafe(no_mangle)]
pub static CHALLENGES: Global<u32> = Global::new(0);

/// Whether segments can be looked at that may prove their source. Set at load, too.
#[unsafe(no_mangle)]
pub static SEGMENTS: Global<u32> = Global::new(0);
