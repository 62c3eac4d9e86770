//! The gateways of the default routes, from every routing table of the network namespace.

use std::io;
use std::net::IpAddr;

use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteMessage, RouteNextHop, RouteType, RouteVia,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};

use crate::netlink;

/// The gateways of the default routes, IPv4 and IPv6. A route that has none leads to a link without neighbours.
pub(super) fn gateways() -> io::Result<Vec<IpAddr>> {
    let mut found = Vec::new();
    for family in [AddressFamily::Inet, AddressFamily::Inet6] {
        let mut question = RouteMessage::default();
        question.header.address_family = family;
        netlink::dump(RouteNetlinkMessage::GetRoute(question), |answer| {
            if let RouteNetlinkMessage::NewRoute(route) = answer {
                found.extend(gateways_of(&route));
            }
        })?;
    }
    Ok(found)
}

fn gateways_of(route: &RouteMessage) -> Vec<IpAddr> {
    if route.header.destination_prefix_length != 0 || route.header.kind != RouteType::Unicast {
        return Vec::new();
    }
    next_hops(&route.attributes)
}

fn next_hops(attributes: &[RouteAttribute]) -> Vec<IpAddr> {
    let mut found = Vec::new();
    for attribute in attributes {
        match attribute {
            RouteAttribute::Gateway(RouteAddress::Inet(v4)) | RouteAttribute::Via(RouteVia::Inet(v4)) => {
                found.push(IpAddr::V4(*v4));
            }
            // An IPv4 route may lead over an IPv6 neighbour (RFC 5549).
            RouteAttribute::Gateway(RouteAddress::Inet6(v6)) | RouteAttribute::Via(RouteVia::Inet6(v6)) => {
                found.push(IpAddr::V6(*v6));
            }
            RouteAttribute::MultiPath(hops) => {
                found.extend(hops.iter().flat_map(|hop: &RouteNextHop| next_hops(&hop.attributes)));
            }
            _ => {}
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn route(kind: RouteType, length: u8, attributes: Vec<RouteAttribute>) -> RouteMessage {
        let mut route = RouteMessage::default();
        route.header.destination_prefix_length = length;
        route.header.kind = kind;
        route.attributes = attributes;
        route
    }

    fn gateway(address: &str) -> RouteAttribute {
        RouteAttribute::Gateway(address.parse::<IpAddr>().unwrap().into())
    }

    #[test]
    fn only_default_routes_have_gateways_that_matter() {
        let of = |kind, length| gateways_of(&route(kind, length, vec![gateway("192.0.2.1")]));
        assert_eq!(of(RouteType::Unicast, 0), ["192.0.2.1".parse::<IpAddr>().unwrap()]);
        assert!(of(RouteType::Unicast, 24).is_empty());
        assert!(of(RouteType::BlackHole, 0).is_empty());
    }

    #[test]
    fn every_next_hop_of_a_route_counts() {
        let mut hops = [RouteNextHop::default(), RouteNextHop::default()];
        hops[0].attributes.push(gateway("192.0.2.1"));
        hops[1].attributes.push(RouteAttribute::Via(RouteVia::Inet6("fe80::1".parse().unwrap())));
        let found = gateways_of(&route(RouteType::Unicast, 0, vec![RouteAttribute::MultiPath(hops.into())]));
        assert_eq!(found, ["192.0.2.1", "fe80::1"].map(|text| text.parse::<IpAddr>().unwrap()));
    }

    #[test]
    fn this_machine_can_be_asked() {
        gateways().unwrap();
    }
}
