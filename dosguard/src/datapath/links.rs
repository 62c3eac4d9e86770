//! Interfaces, and the XDP programs on them, as the kernel tells over rtnetlink.

use std::io;

use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::{
    InfoPortKind, LinkAttribute, LinkInfo, LinkLayerType, LinkMessage, LinkXdp, XdpAttached,
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
    /// The program on it.
    pub program: Option<AttachedProgram>,
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
    for attribute in &link.attributes {
        match attribute {
            LinkAttribute::IfName(text) => name.clone_from(text),
            LinkAttribute::Mtu(bytes) => mtu = *bytes,
            LinkAttribute::LinkInfo(infos) => is_bridged = infos.iter().any(is_of_bridge),
            LinkAttribute::Xdp(xdp) => program = attached_program(xdp),
            _ => {}
        }
    }
    // The loopback interface has the header, too.
    let ethernet = matches!(link.header.link_layer_type, LinkLayerType::Ether | LinkLayerType::Loopback);
    Interface { index: link.header.index, name, ethernet, mtu, is_bridged, program }
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
    fn the_mode_of_a_program_is_told() {
        let native = [LinkXdp::Attached(XdpAttached::Driver), LinkXdp::ProgId(7)];
        assert_eq!(attached_program(&native), Some(AttachedProgram { id: 7, mode: "native" }));
        assert_eq!(attached_program(&[LinkXdp::Attached(XdpAttached::None)]), None);
    }
}
