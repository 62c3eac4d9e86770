//! Rules as earlier ABI versions had them.

use bytemuck::Zeroable as _;

use super::{FLAG_ACTION_CHALLENGE, FLAG_BARE, FLAG_CHALLENGE, Rule};
use crate::proof::UNPROVEN_BAN_NS;

/// How many bytes [`Rule`] had up to ABI version 3, without a limit of connections.
pub const RULE_BYTES_V3: usize = 80;

/// How many bytes it had in ABI versions 4 and 5, without proof and without floods.
pub const RULE_BYTES_V5: usize = 88;

impl Rule {
    /// A rule as ABI versions 2 and 3 had it, which limits no connections.
    pub fn from_v3(bytes: &[u8; RULE_BYTES_V3]) -> Self {
        Self::from_earlier(bytes)
    }

    /// A rule as ABI versions 4 and 5 had it.
    pub fn from_v5(bytes: &[u8; RULE_BYTES_V5]) -> Self {
        Self::from_earlier(bytes)
    }

    /// It does what it did: it bans without proof.
    fn from_earlier(bytes: &[u8]) -> Self {
        // What they had behind the name or the connections is the last that there is now.
        const END: usize = 2 * size_of::<u32>();
        let mut rule = Self::zeroed();
        let whole = bytemuck::bytes_of_mut(&mut rule);
        if let Some((front, back)) = bytes.split_last_chunk::<END>() {
            if let Some(same) = whole.get_mut(..front.len()) {
                same.copy_from_slice(front);
            }
            if let Some(same) = whole.last_chunk_mut::<END>() {
                *same = *back;
            }
        }
        // Where there were 8 bytes for the number of connections, half of them meant nothing.
        rule.flood_limit = 0;
        if rule.is_defined() {
            rule.flags |= FLAG_BARE;
            rule.unproven_ban_ns = UNPROVEN_BAN_NS;
        }
        if rule.flags & FLAG_CHALLENGE != 0 {
            rule.flags |= FLAG_ACTION_CHALLENGE;
        }
        rule
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ban::BanReason;
    use crate::config::Mode;
    use crate::flood::FloodLimit;
    use crate::proof::ProofDemand;
    use crate::rule::{Action, ConnectionLimit, RuleSpec, Scope};

    fn spec(action: Action, connections: ConnectionLimit) -> RuleSpec {
        RuleSpec {
            limit: 3,
            window_ns: 60_000_000_000,
            action,
            scope: Scope::Syn,
            ban_ns: 10,
            ban_max_ns: 65,
            forget_ns: 100,
            refresh: true,
            mode: Mode::Monitor,
            connections,
            proof: ProofDemand::NONE,
            flood: FloodLimit::NONE,
        }
    }

    /// Without the flag that there was not.
    fn earlier(rule: Rule) -> Rule {
        Rule { flags: rule.flags & !FLAG_BARE & !FLAG_ACTION_CHALLENGE, ..rule }
    }

    #[test]
    fn a_rule_of_abi_3_means_the_same() {
        let rule = Rule::new("smtp", &spec(Action::Drop, ConnectionLimit::NONE), 7);
        let old = earlier(rule);
        let bytes = bytemuck::bytes_of(&old);
        let mut v3 = bytes[..72].to_vec();
        v3.extend(&bytes[96..]);
        assert_eq!(Rule::from_v3(v3.as_slice().try_into().unwrap()), rule);
        assert_eq!(rule.measure(BanReason::SynLimit), (3, 60_000_000_000));
        assert!(!Rule::from_v3(&[0; RULE_BYTES_V3]).is_defined());
    }

    #[test]
    fn a_rule_of_abi_5_means_the_same() {
        for action in Action::ALL {
            let rule = Rule::new("smtp", &spec(action, ConnectionLimit { max: 7, close: true }), 7);
            let old = earlier(rule);
            let bytes = bytemuck::bytes_of(&old);
            let mut v5 = bytes[..80].to_vec();
            v5.extend(&bytes[96..]);
            assert_eq!(Rule::from_v5(v5.as_slice().try_into().unwrap()), rule, "{action:?}");
        }
    }
}
