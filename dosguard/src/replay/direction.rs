//! Which packets the filter would have seen: those that came in.
//!
//! XDP judges what a network card receives. A capture often holds what the machine sent, too, and its own new
//! connections would then count as those of a source. Some captures say which is which, and then what was sent is left
//! out. The others don't: for them there are the addresses that packets must be for, and a look at whether the capture
//! holds both directions.

use dosguard_common::address::Address;
use dosguard_common::frame::Frame;

/// Frames that are looked at, and MAC addresses that are remembered, to tell whether both directions are there.
const LOOK_AT: u32 = 10_000;
const REMEMBER: usize = 64;

const ETHERTYPE: usize = 12;
const VLAN_TAG_LEN: usize = 4;

/// Where a frame's packet goes; none if it is not IP or ends before that.
#[inline]
pub fn destination<F: Frame + ?Sized>(frame: &F) -> Option<Address> {
    let mut offset = ETHERTYPE;
    let mut ethertype = u16::from_be_bytes(frame.bytes(offset)?);
    for _ in 0..2 {
        if !matches!(ethertype, 0x8100 | 0x88a8) {
            break;
        }
        offset += VLAN_TAG_LEN;
        ethertype = u16::from_be_bytes(frame.bytes(offset)?);
    }
    let packet = offset + 2;
    match ethertype {
        0x0800 => frame.bytes(packet + 16).map(Address::from_ipv4),
        0x86dd => frame.bytes(packet + 24).map(Address::from_ipv6),
        _ => None,
    }
}

/// Tells whether frames go both to and from one network card.
#[derive(Clone, Debug, Default)]
pub struct BothWays {
    looked_at: u32,
    to: Vec<[u8; 6]>,
    from: Vec<[u8; 6]>,
    found: Option<[u8; 6]>,
}

impl BothWays {
    /// Takes in an Ethernet frame; only the first ones are looked at.
    #[inline]
    pub fn look(&mut self, frame: &[u8]) {
        if self.looked_at >= LOOK_AT || self.found.is_some() {
            return;
        }
        self.looked_at += 1;
        let (Some(to), Some(from)) = (address(frame, 0), address(frame, 6)) else { return };
        remember(&mut self.to, to);
        remember(&mut self.from, from);
        self.found = [to, from].into_iter().find(|mac| self.to.contains(mac) && self.from.contains(mac));
    }

    /// The card, if there is one.
    pub fn found(&self) -> Option<[u8; 6]> {
        self.found
    }
}

/// A unicast address; the bytes of others, and of loopback, say nothing.
fn address(frame: &[u8], offset: usize) -> Option<[u8; 6]> {
    let mac = *frame.get(offset..)?.first_chunk::<6>()?;
    (mac[0] & 1 == 0 && mac != [0; 6]).then_some(mac)
}

fn remember(known: &mut Vec<[u8; 6]>, mac: [u8; 6]) {
    if known.len() < REMEMBER && !known.contains(&mac) {
        known.push(mac);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn destinations_are_found_behind_tags() {
        let mut frame = vec![0; 14 + 40];
        frame[12..14].copy_from_slice(&[0x08, 0x00]);
        frame[14 + 16..14 + 20].copy_from_slice(&[192, 0, 2, 1]);
        let wanted = Address::from_ipv4([192, 0, 2, 1]);
        for _ in 0..3 {
            assert_eq!(destination(frame.as_slice()), Some(wanted));
            assert_eq!(destination(&frame[..frame.len() - 21]), None);
            frame.splice(12..12, [0x81, 0x00, 0, 1]);
        }
        assert_eq!(destination(frame.as_slice()), None, "three tags are not understood");
        let mut frame = vec![0; 14];
        frame[12..14].copy_from_slice(&[0x86, 0xdd]);
        frame.extend([0x60; 24]);
        frame.extend([0x20; 16]);
        assert_eq!(destination(frame.as_slice()), Some(Address::from_ipv6([0x20; 16])));
    }

    #[test]
    fn one_card_that_sends_and_receives_is_both_ways() {
        let (server, gateway, all) = ([2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 2], [0xff; 6]);
        let frame = |to: [u8; 6], from: [u8; 6]| [to, from].concat();
        let mut ways = BothWays::default();
        for (to, from) in [(server, gateway), (all, gateway), ([0; 6], [0; 6]), (server, gateway)] {
            ways.look(&frame(to, from));
        }
        ways.look(&[1, 2]);
        assert_eq!(ways.found(), None);
        ways.look(&frame(gateway, server));
        assert!([server, gateway].map(Some).contains(&ways.found()));
    }
}
