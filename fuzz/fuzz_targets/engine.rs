//! Any settings, frames and clock: every packet is counted once under the reason that decides, an allowed source is never
//! dropped, and in monitor mode nobody is. Where every rule requires proof, nobody is banned from everything without.
#![no_main]

use dosguard_common::address::{Address, SourceMask};
use dosguard_common::challenge::Segment;
use dosguard_common::config::{Config, Mode};
use dosguard_common::engine::{Completed, decide, judge_answer, judge_established};
use dosguard_common::flood::FloodLimit;
use dosguard_common::frame::Arrival;
use dosguard_common::memory::MemoryTables;
use dosguard_common::parse::parse;
use dosguard_common::proof::{Evidence, ProofDemand};
use dosguard_common::reason::{Reason, Tally, Verdict};
use dosguard_common::rule::{Action, ConnectionLimit, Rule, RuleIndex, RuleSpec, Scope};
use dosguard_fuzz::input::Input;
use libfuzzer_sys::fuzz_target;

const RULES: u8 = 3;

fn rule(input: &mut Input<'_>, generation: u32) -> Rule {
    let flags = input.byte();
    let limit = 1 + u32::from(input.byte());
    // In eighths of a second to eighths of days.
    let window_ns = (1 + input.number(2)) * 125_000_000;
    let [ban_ns, ban_max_ns, forget_ns] = [(); 3].map(|()| input.number(2) << (flags >> 4) << 12);
    let spec = RuleSpec {
        limit,
        window_ns,
        action: match flags & 0x41 {
            0x01 => Action::Drop,
            0x41 => Action::Challenge,
            _ => Action::Ban,
        },
        scope: if flags & 2 == 0 { Scope::All } else { Scope::Syn },
        ban_ns,
        ban_max_ns,
        forget_ns,
        refresh: flags & 4 != 0,
        mode: if flags & 8 == 0 { Mode::Enforce } else { Mode::Monitor },
        connections: ConnectionLimit::NONE,
        proof: ProofDemand { required: flags & 16 != 0, unproven_ban_ns: ban_ns / 4 },
        flood: if flags & 32 == 0 { FloodLimit::NONE } else { FloodLimit { max: 2 * limit, window_ns } },
    };
    Rule::new("fuzz", &spec, generation)
}

fuzz_target!(|bytes: &[u8]| {
    let mut input = Input(bytes);
    let flags = input.byte();
    let mask = SourceMask::new(input.byte(), input.byte());
    let config = Config::new(mask).with_allow_list(true).with_deny_list(flags & 1 != 0);
    let config = config.with_events_rate(input.byte().into()).with_challenge(flags & 32 != 0);
    let mut mode = if flags & 2 == 0 { Mode::Enforce } else { Mode::Monitor };
    let mut generation = 1;
    let rules: Vec<_> = (0..RULES).map(|_| rule(&mut input, generation)).collect();
    let mut all_require_proof = rules.iter().all(|rule| rule.proof().required);
    let mut tables = MemoryTables::new(1 + usize::from(flags >> 6), config.with_mode(mode), &rules);
    tables.ban_capacity = if flags & 8 == 0 { 100 } else { 2 };
    tables.offender_capacity = if flags & 16 == 0 { 100 } else { 1 };
    tables.event_capacity = 1_000;
    let allowed = Address::from_ipv4([192, 0, 2, 9]);
    tables.allow.push((allowed, 128));
    tables.deny.push((Address::from_ipv4([203, 0, 113, 0]), 96 + 24));
    tables.ports.insert(25, RuleIndex(1));
    tables.ports.insert(443, RuleIndex(2));
    // Rule 9 does not exist.
    tables.ports.insert(7, RuleIndex(9));

    let (mut now_ns, mut frames, mut counted_bytes) = (input.number(5), 0, 0);
    while !input.is_empty() {
        let step = input.byte();
        now_ns = match step & 7 {
            0..4 => now_ns,
            4 => now_ns.saturating_add(input.number(2)),
            5 => now_ns.saturating_add(input.number(5)),
            6 => now_ns.saturating_sub(input.number(4)),
            _ => now_ns.saturating_add(input.number(8)),
        };
        tables.cpu = usize::from(step >> 6) % tables.cpus;
        match step >> 3 & 7 {
            0 => {
                generation += 1;
                let index = RuleIndex(input.byte() % RULES);
                let rule = rule(&mut input, generation);
                all_require_proof &= rule.proof().required;
                tables.rules.insert(index, rule);
            }
            1 => {
                mode = if mode == Mode::Enforce { Mode::Monitor } else { Mode::Enforce };
                tables.config = Some(config.with_mode(mode).with_sweep_until_ns(input.number(5)));
            }
            _ => {}
        }
        let length = usize::from(input.byte());
        let frame = input.bytes(length);
        let reason = decide(frame, &mut tables, || now_ns);
        frames += 1;
        counted_bytes += frame.len() as u64;
        let is_allowed = parse(frame).is_ok_and(|packet| packet.address == allowed);
        assert_eq!(is_allowed, reason == Reason::Allowed);
        assert!(mode == Mode::Enforce || reason.verdict() == Verdict::Pass);
        let mut segment: Segment = bytemuck::Zeroable::zeroed();
        if segment.read(frame) && segment.may_answer() {
            let (mac, arrival) = ([0; 6], Arrival::default());
            let completed = match step >> 3 & 7 {
                3 => Some(Completed::Challenge),
                4 => Some(Completed::Handshake),
                _ => None,
            };
            if let Some(completed) = completed {
                let passes = judge_answer(&mut tables, &segment, completed, mac, arrival, now_ns);
                assert!(passes || mode == Mode::Enforce);
            } else if step >> 3 & 7 == 2 {
                judge_established(&mut tables, &segment, now_ns);
            }
        }
    }
    for (key, ban) in &tables.bans {
        assert!(!ban.is_unproven() || (ban.scope() == Scope::Syn && !key.is_everywhere()));
        let proven = ban.evidence() == Some(Evidence::Handshake);
        assert!(!all_require_proof || proven || (!key.is_everywhere() && ban.offence == 0));
    }
    let counts = Reason::ALL.iter().map(|reason| tables.counters[reason.index() as usize]);
    let (packets, bytes) =
        counts.fold((0, 0), |(packets, bytes), count| (packets + count.packets, bytes + count.bytes));
    assert_eq!((packets, bytes), (frames, counted_bytes));
    // Each ban was imposed once, and there is room for no more.
    assert!(tables.bans.len() as u64 <= tables.tallied(Tally::BanImposed));
    assert!(tables.bans.len() <= tables.ban_capacity);
});
