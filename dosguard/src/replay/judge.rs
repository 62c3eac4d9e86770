//! The engine over captured packets, and what there is to tell of it.

use std::collections::{BTreeMap, HashSet};

use bytemuck::Zeroable as _;
use dosguard_common::abi;
use dosguard_common::address::{Address, SourceMask};
use dosguard_common::challenge::Segment;
use dosguard_common::config::{Config, Mode};
use dosguard_common::engine::{Completed, decide, judge_answer, judge_established};
use dosguard_common::event::{Event, Kind};
use dosguard_common::frame::Frame as _;
use dosguard_common::key::SourceKey;
use dosguard_common::memory::{MemoryTables, Prefixes};
use dosguard_common::parse::{Payload, mac, parse};
use dosguard_common::reason::Reason;
use dosguard_common::rule::{Rule, RuleIndex, RuleSpec};
use dosguard_common::tables::Tables as _;

use super::capture::Packet;
use super::capture::link::{Link, LinkFrame};
use super::clock::Clock;
use super::direction::{BothWays, destination};
use super::handshakes::Handshakes;
use super::offered::{MAX_FOLLOWED, Offered};
use crate::config::cidr::Cidr;
use crate::config::policy::{NamedRule, Policy};
use crate::config::sizes::{Size, Sizes};

/// What every rule starts with.
const GENERATION: u32 = 1;

/// What to replay with.
#[derive(Clone, Copy, Debug)]
pub struct Options<'a> {
    /// The rules, the allow-list and what makes a source.
    pub policy: &'a Policy,
    /// How much the tables hold.
    pub sizes: Sizes,
    /// Judge only packets to these; if there are none, whatever came in.
    pub to: &'a [Cidr],
    /// How many bans to keep for the list, the first ones; none for all.
    pub list: Option<usize>,
}

/// Judges packets one after the other.
pub struct Judge<'a> {
    pub(super) options: Options<'a>,
    pub(super) tables: MemoryTables,
    pub(super) clock: Clock,
    pub(super) packets: u64,
    pub(super) bytes: u64,
    pub(super) left_out: LeftOut,
    pub(super) ways: BothWays,
    /// Whether there are answers of the host, without which nobody can be proven.
    pub(super) has_answers: bool,
    handshakes: Handshakes,
    /// Room for the one that is being looked at.
    segment: Segment,
    pub(super) bans: Vec<Event>,
    /// Bans without proof.
    pub(super) unproven: u64,
    /// The sources that were banned; there is room for as many as are followed.
    pub(super) banned: HashSet<Address>,
    /// Events of each kind.
    pub(super) events: BTreeMap<&'static str, u64>,
    pub(super) offered: BTreeMap<RuleIndex, Offered>,
    /// Sources whose SYNs are followed, over all rules.
    followed: usize,
    mask: SourceMask,
    to: Option<Prefixes>,
}

/// Packets that were not judged.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LeftOut {
    /// Sent by the machine that captured them.
    pub outgoing: u64,
    /// To other addresses than those asked for.
    pub elsewhere: u64,
    /// So short in the capture that what decides is missing, although it was on the wire.
    pub cut_short: u64,
    /// Of a link type that is not understood.
    pub link: u64,
    /// One such type.
    pub some_link: Option<Link>,
}

impl<'a> Judge<'a> {
    /// Nothing judged yet.
    pub fn new(options: Options<'a>) -> Self {
        let prefixes = options.policy.prefixes;
        let mask = SourceMask::new(prefixes.ipv4, prefixes.ipv6);
        let to = (!options.to.is_empty()).then(|| options.to.iter().map(Cidr::to_prefix).collect());
        Self {
            tables: tables(options.policy, &options.sizes, mask),
            options,
            clock: Clock::default(),
            packets: 0,
            bytes: 0,
            left_out: LeftOut::default(),
            ways: BothWays::default(),
            has_answers: false,
            handshakes: Handshakes::default(),
            segment: Segment::zeroed(),
            bans: Vec::new(),
            unproven: 0,
            banned: HashSet::new(),
            events: BTreeMap::new(),
            offered: BTreeMap::new(),
            followed: 0,
            mask,
            to,
        }
    }

    /// Judges a packet at its own time, unless it is left out.
    pub fn packet(&mut self, packet: &Packet<'_>) {
        self.packets += 1;
        self.bytes += u64::from(packet.wire_len);
        let now_ns = self.clock.tell(packet.at_ns);
        let Some(frame) = LinkFrame::new(packet) else {
            self.left_out.link += 1;
            self.left_out.some_link = Some(packet.link);
            return;
        };
        if frame.is_outgoing() {
            self.left_out.outgoing += 1;
            self.look_for_answer(&frame, true);
            return;
        }
        if !self.is_wanted(&frame) {
            self.look_for_answer(&frame, false);
            return;
        }
        if self.to.is_none() && packet.link == Link::Ethernet {
            self.ways.look(packet.bytes);
        }
        let parsed = parse(&frame);
        // To the engine the frame would end where the capture does, and a SYN cut off there would hide its flags.
        if frame.missed() {
            self.left_out.cut_short += 1;
            return;
        }
        self.tables.pass_time(now_ns);
        let reason = decide(&frame, &mut self.tables, || now_ns);
        match parsed.map(|packet| (packet, packet.payload())) {
            Ok((packet, Payload::Syn { port })) if !matches!(reason, Reason::Allowed | Reason::Denied) => {
                self.offer(packet.address, port, now_ns);
            }
            // What is dropped proves nothing to the host, and what completes a handshake is counted while it is looked at.
            Ok((_, Payload::Segment | Payload::Ending)) if self.completes_handshake(&frame) => {
                let Self { tables, segment, .. } = self;
                match reason {
                    Reason::MayAnswer => {
                        let completed = Completed::Handshake;
                        judge_answer(tables, segment, completed, mac(&frame), frame.arrival(), now_ns);
                    }
                    Reason::NotSyn => judge_established(tables, segment, now_ns),
                    _ => {}
                }
            }
            _ => {}
        }
        if !self.tables.events.is_empty() {
            self.report();
        }
    }

    /// Whether the packet goes where it has to; if not, it is counted.
    fn is_wanted(&mut self, frame: &LinkFrame<'_>) -> bool {
        let Some(to) = &self.to else { return true };
        let wanted = destination(frame).is_some_and(|address| to.contains(&address));
        if !wanted && frame.missed() {
            self.left_out.cut_short += 1;
        } else if !wanted {
            self.left_out.elsewhere += 1;
        }
        wanted
    }

    /// Looks at a frame that is not judged, for it may answer a SYN that was.
    #[inline]
    fn look_for_answer(&mut self, frame: &LinkFrame<'_>, outgoing: bool) {
        if self.segment.read(frame) && self.segment.is_syn_ack() {
            self.answer(outgoing);
        }
    }

    /// Whether a segment that was judged completes a handshake. Where nothing says what was sent, it may be an answer, too.
    #[inline]
    fn completes_handshake(&mut self, frame: &LinkFrame<'_>) -> bool {
        if !self.segment.read(frame) {
            return false;
        }
        if self.segment.is_syn_ack() {
            self.answer(false);
            return false;
        }
        self.segment.may_answer() && self.handshakes.are_completed_by(&self.segment)
    }

    /// Remembers that a SYN was answered.
    fn answer(&mut self, outgoing: bool) {
        let Self { segment, tables, mask, to, .. } = self;
        // The host takes SYNs up, and so do those that it connects to.
        let of_the_host = match to {
            Some(to) if !to.contains(&segment.source()) => return,
            Some(_) => true,
            None if outgoing || self.has_answers => true,
            None => {
                let index = tables.rule_of(segment.source_port());
                let asked = SourceKey::for_rule(mask.source(segment.destination()), index);
                tables.windows.get(&asked).is_some()
            }
        };
        self.has_answers |= of_the_host;
        self.handshakes.answered(segment);
    }

    fn offer(&mut self, address: Address, port: u16, now_ns: u64) {
        let index = self.tables.rule_of(port);
        let Some(rule) = self.tables.rules.get(index) else { return };
        let first_ns = self.clock.boot_first_ns();
        let offered = self.offered.entry(index).or_insert_with(|| Offered::new(*rule, first_ns));
        offered.syn(self.mask.source(address), now_ns, &mut self.followed);
    }

    fn report(&mut self) {
        for event in self.tables.events.drain(..) {
            *self.events.entry(event.kind().name()).or_default() += 1;
            if event.kind() == Kind::Ban {
                self.unproven += u64::from(event.offence() == 0);
                if self.banned.len() < MAX_FOLLOWED {
                    self.banned.insert(event.source());
                }
                if self.options.list.is_none_or(|most| self.bans.len() < most) {
                    self.bans.push(event);
                }
            }
        }
    }

    /// Ends the bans that have ended by the time of the last packet, whether or not it was judged.
    pub fn end(&mut self) {
        self.tables.pass_time(self.clock.now_ns());
        self.report();
    }
}

/// Tables as the kernel would have them, sizes included.
fn tables(policy: &Policy, sizes: &Sizes, mask: SourceMask) -> MemoryTables {
    let config = Config::new(mask)
        .with_allow_list(!policy.allow.is_empty())
        .with_deny_list(!policy.deny.is_empty())
        // As if enforced, whatever the mode: what is only watched would drop less than what it would do.
        .with_mode(Mode::Enforce)
        .with_proof_age_ns(policy.proof_age.ns())
        // Every ban is wanted here.
        .with_events_rate(u32::MAX);
    let mut tables = MemoryTables::new(1, config, &[]);
    tables.allow = policy.allow.iter().map(Cidr::to_prefix).collect();
    tables.deny = policy.deny.iter().map(Cidr::to_prefix).collect();
    for (index, rule) in indexed(policy) {
        let spec = RuleSpec { mode: Mode::Enforce, ..rule.spec };
        tables.rules.insert(index, Rule::new(rule.name.as_str(), &spec, GENERATION));
        rule.ports.iter().for_each(|port| tables.ports.insert(port, index));
    }
    tables.source_capacity = sizes.get(Size::Sources) as usize;
    tables.ban_capacity = sizes.get(Size::Bans) as usize;
    tables.offender_capacity = sizes.get(Size::Offenders) as usize;
    tables.proof_capacity = abi::PROOFS.entries as usize;
    tables
}

/// The rules of a policy with their places in the table.
pub(super) fn indexed(policy: &Policy) -> impl Iterator<Item = (RuleIndex, &NamedRule)> {
    (0..=u8::MAX).map(RuleIndex).zip(&policy.rules)
}
