//! Interfaces, and the XDP programs on them, as the kernel tells over rtnetlink.

use std::io;

use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::{
    InfoKind, InfoPortKind, LinkAttribute, LinkInfo, LinkLayerType, LinkMessage, LinkXdp, XdpAttached,
};

use crate::netlink;

/// An XDP program on an interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AttachedProgram {
    /// The program's id.
    pub id: u32,
    /// How it is attached: `native`, `generic`, `offload` or `multi`.
    pub mode: &'static str,
}

/// An interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Interface {
    /// Its index in the network namespace.
    pub index: u32,
    /// Its name.
    pub name: String,
    /// Whether its frames begin with an Ethernet header.
    pub ethernet: bool,
    /// How many bytes an IP packet on it may have.
    pub mtu: u32,
    /// Whether it is a port of a bridge, which hands on frames that are not for this host.
    pub is_bridged: bool,
    /// The other end, if it is one of a veth pair.
    pub peer: Option<Peer>,
    /// The program on it.
    pub program: Option<AttachedProgram>,
}

/// The other end of a veth pair.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Peer {
    index: u32,
    /// The id that this network namespace has for the one that it is in; none if it is in the same one.
    namespace: Option<i32>,
}

impl Peer {
    /// Whether it takes frames that a native program sends (`XDP_TX`): the kernel wakes it for those only where such a
    /// program is on it, too, whether it has GRO or not (`veth_xdp_flush` in Linux drivers/net/veth.c). None if it cannot
    /// be seen, as where it is in a network namespace of which this process may know nothing.
    #[must_use]
    pub fn takes_replies(self) -> Option<bool> {
        let mut question = LinkMessage::default();
        question.header.index = self.index;
        question.attributes.extend(self.namespace.map(LinkAttribute::IfNetnsId));
        let mut found = None;
        let asked = netlink::get(RouteNetlinkMessage::GetLink(question), |answer| {
            if let RouteNetlinkMessage::NewLink(link) = answer {
                found = Some(interface(&link));
            }
        });
        asked.ok().and(found).map(|peer| peer.program.is_some_and(AttachedProgram::is_in_driver))
    }
}

impl AttachedProgram {
    /// Whether the driver has one.
    #[must_use]
    pub fn is_in_driver(self) -> bool {
        matches!(self.mode, "native" | "multi")
    }
}

/// Every interface of the network namespace.
pub fn interfaces() -> io::Result<Vec<Interface>> {
    let mut found = Vec::new();
    netlink::dump(RouteNetlinkMessage::GetLink(LinkMessage::default()), |answer| {
        if let RouteNetlinkMessage::NewLink(link) = answer {
            found.push(interface(&link));
        }
    })?;
    Ok(found)
}

fn interface(link: &LinkMessage) -> Interface {
    let mut name = String::new();
    let (mut mtu, mut is_bridged, mut program) = (0, false, None);
    let (mut is_veth, mut other, mut namespace) = (false, None, None);
    for attribute in &link.attributes {
        match attribute {
            LinkAttribute::IfName(text) => name.clone_from(text),
            LinkAttribute::Mtu(bytes) => mtu = *bytes,
            LinkAttribute::LinkInfo(infos) => {
                is_bridged = infos.iter().any(is_of_bridge);
                is_veth = infos.contains(&LinkInfo::Kind(InfoKind::Veth));
            }
            LinkAttribute::Link(index) => other = Some(*index),
            LinkAttribute::LinkNetNsId(id) => namespace = Some(*id),
            LinkAttribute::Xdp(xdp) => program = attached_program(xdp),
            _ => {}
        }
    }
    // The loopback interface has the header, too.
    let ethernet = matches!(link.header.link_layer_type, LinkLayerType::Ether | LinkLayerType::Loopback);
    let peer = other.filter(|_| is_veth).map(|index| Peer { index, namespace });
    Interface { index: link.header.index, name, ethernet, mtu, is_bridged, peer, program }
}

/// What an interface is a port of may be a bridge of the kernel's own or of Open vSwitch.
fn is_of_bridge(info: &LinkInfo) -> bool {
    match info {
        LinkInfo::PortKind(InfoPortKind::Bridge) => true,
        LinkInfo::PortKind(InfoPortKind::Other(kind)) => kind == "openvswitch",
        _ => false,
    }
}

fn attached_program(xdp: &[LinkXdp]) -> Option<AttachedProgram> {
    let mode = xdp.iter().find_map(|attribute| match attribute {
        LinkXdp::Attached(XdpAttached::Driver) => Some("native"),
        LinkXdp::Attached(XdpAttached::SocketBuffer) => Some("generic"),
        LinkXdp::Attached(XdpAttached::Hardware) => Some("offload"),
        LinkXdp::Attached(XdpAttached::Multiple) => Some("multi"),
        _ => None,
    })?;
    // With several programs there is one id per mode instead of the common one.
    let id = xdp.iter().find_map(|attribute| match attribute {
        LinkXdp::ProgId(id) | LinkXdp::DrvProgId(id) | LinkXdp::SkbProgId(id) | LinkXdp::HwProgId(id) => {
            Some(*id)
        }
        _ => None,
    })?;
    Some(AttachedProgram { id, mode })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_loopback_interface_is_found() {
        let found = interfaces().unwrap();
        assert!(
            found.iter().any(|interface| interface.name == "lo" && interface.index == 1 && interface.mtu > 0),
            "{found:?}"
        );
    }

    #[test]
    fn the_other_end_of_a_veth_pair_is_known() {
        let peer = |kind, more: &[LinkAttribute]| {
            let mut link = LinkMessage::default();
            link.attributes = [&[LinkAttribute::LinkInfo(vec![LinkInfo::Kind(kind)])], more].concat();
            interface(&link).peer
        };
        let index = LinkAttribute::Link(7);
        assert_eq!(
            peer(InfoKind::Veth, std::slice::from_ref(&index)),
            Some(Peer { index: 7, namespace: None })
        );
        let elsewhere = [index.clone(), LinkAttribute::LinkNetNsId(2)];
        assert_eq!(peer(InfoKind::Veth, &elsewhere), Some(Peer { index: 7, namespace: Some(2) }));
        assert_eq!(peer(InfoKind::Vlan, &[index]), None);
        assert_eq!(Peer { index: 1, namespace: None }.takes_replies(), Some(false), "lo has no program");
        assert_eq!(
            Peer { index: 1, namespace: Some(i32::MAX) }.takes_replies(),
            None,
            "there is no such one"
        );
    }

    #[test]
    fn the_mode_of_a_program_is_told() {
        let native = [LinkXdp::Attached(XdpAttached::Driver), LinkXdp::ProgId(7)];
        assert_eq!(attached_program(&native), Some(AttachedProgram { id: 7, mode: "native" }));
        assert_eq!(attached_program(&[LinkXdp::Attached(XdpAttached::None)]), None);
    }
}
