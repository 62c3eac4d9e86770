//! Questions to the kernel over rtnetlink.
//!
//! `netlink-packet-route` knows the messages and is kept up with the kernel's; only the questions are ours.

use std::io;

use netlink_packet_core::{
    NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage, NetlinkPayload,
};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};

// Of linux/rtnetlink.h, if_link.h, if_addr.h and netlink.h.
const RTM_NEWLINK: u16 = 16;
const RTM_NEWADDR: u16 = 20;
const IFLA_IFNAME: u16 = 3;
const IFLA_IFALIAS: u16 = 20;
const IFLA_PROP_LIST: u16 = 52;
const IFLA_ALT_IFNAME: u16 = 53;
const IFA_LABEL: u16 = 3;
const NLA_TYPE_MASK: u16 = 0x3fff;
const RTMGRP_LINK: u32 = 1;
const RTMGRP_IPV4_IFADDR: u32 = 0x10;
const RTMGRP_IPV6_IFADDR: u32 = 0x100;

/// Changes that are taken at once; the others are heard the next time.
const MOST_HEARD: usize = 1_000;

/// Asks for all that there is of something in the network namespace, and hands each answer to `each`.
pub(crate) fn dump(question: RouteNetlinkMessage, each: impl FnMut(RouteNetlinkMessage)) -> io::Result<()> {
    ask(question, NLM_F_DUMP, each)
}

/// Asks for one thing alone, and hands the answer to `each`.
pub(crate) fn get(question: RouteNetlinkMessage, each: impl FnMut(RouteNetlinkMessage)) -> io::Result<()> {
    ask(question, NLM_F_ACK, each)
}

fn ask(
    question: RouteNetlinkMessage,
    flags: u16,
    mut each: impl FnMut(RouteNetlinkMessage),
) -> io::Result<()> {
    let mut socket = Socket::new(NETLINK_ROUTE)?;
    socket.bind_auto()?;
    socket.connect(&SocketAddr::new(0, 0))?;
    let mut request = NetlinkMessage::new(NetlinkHeader::default(), NetlinkPayload::from(question));
    request.header.flags = flags | NLM_F_REQUEST;
    request.finalize();
    let mut bytes = vec![0; request.buffer_len()];
    request.serialize(&mut bytes);
    socket.send(&bytes, 0)?;
    loop {
        let (datagram, _) = socket.recv_from_full()?;
        if read(&datagram, &mut each)? {
            return Ok(());
        }
    }
}

/// Hears of changes to interfaces and addresses of the network namespace.
pub struct Changes(Socket);

impl Changes {
    /// Those from now on.
    ///
    /// # Errors
    ///
    /// There is no such socket to be had.
    pub fn hear() -> io::Result<Self> {
        let mut socket = Socket::new(NETLINK_ROUTE)?;
        socket.bind(&SocketAddr::new(0, RTMGRP_LINK | RTMGRP_IPV4_IFADDR | RTMGRP_IPV6_IFADDR))?;
        socket.set_non_blocking(true)?;
        Ok(Self(socket))
    }

    /// Whether there were some since this was asked last. Never waits. What was too much to be kept counts, too.
    #[must_use]
    pub fn any(&self) -> bool {
        let mut heard = false;
        for _ in 0..MOST_HEARD {
            // Only that there is something matters: what does not fit into the buffer is thrown away.
            match self.0.recv(&mut Vec::with_capacity(16), 0) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return heard,
                Ok(_) | Err(_) => heard = true,
            }
        }
        heard
    }
}

/// Hands the answers of a datagram to `each`. Returns whether they were the last.
///
/// # Errors
///
/// The kernel's own, or that the datagram is malformed.
pub fn read(datagram: &[u8], each: &mut impl FnMut(RouteNetlinkMessage)) -> io::Result<bool> {
    let mut rest = datagram;
    while !rest.is_empty() {
        let message = NetlinkMessage::<RouteNetlinkMessage>::deserialize(rest);
        let message = message.or_else(|_| NetlinkMessage::deserialize(&with_names_as_text(rest)));
        let message = message.map_err(io::Error::other)?;
        let length = (message.header.length as usize).next_multiple_of(4);
        match message.payload {
            NetlinkPayload::InnerMessage(answer) => each(answer),
            // What fails on the way is told at the end.
            NetlinkPayload::Done(done) if done.code < 0 => {
                return Err(io::Error::from_raw_os_error(done.code.saturating_neg()));
            }
            NetlinkPayload::Done(_) => return Ok(true),
            // That all went well, if that was asked for.
            NetlinkPayload::Error(error) if error.code.is_none() => return Ok(true),
            NetlinkPayload::Error(error) => {
                return Err(io::Error::from_raw_os_error(error.raw_code().saturating_neg()));
            }
            NetlinkPayload::Overrun(_) => return Err(io::Error::from_raw_os_error(libc::ENOBUFS)),
            _ => {}
        }
        rest = rest.get(length.max(1)..).unwrap_or_default();
    }
    Ok(false)
}

/// The kernel takes nearly any bytes for the name of an interface, the library only UTF-8: one odd name must not keep all
/// other interfaces from being seen. What is no text is replaced by `?`.
fn with_names_as_text(message: &[u8]) -> Vec<u8> {
    let mut message = message.to_vec();
    let (offset, names): (_, &[u16]) = match message.get(4..6) {
        Some(kind) if kind == RTM_NEWLINK.to_ne_bytes() => {
            (32, &[IFLA_IFNAME, IFLA_IFALIAS, IFLA_ALT_IFNAME])
        }
        Some(kind) if kind == RTM_NEWADDR.to_ne_bytes() => (24, &[IFA_LABEL]),
        _ => return message,
    };
    let length = message.first_chunk().map_or(0, |length| u32::from_ne_bytes(*length) as usize);
    if let Some(attributes) = message.get_mut(offset..length) {
        make_text(attributes, names);
    }
    message
}

fn make_text(mut attributes: &mut [u8], names: &[u16]) {
    while let [low, high, kind_low, kind_high, ..] = *attributes {
        let length = usize::from(u16::from_ne_bytes([low, high]));
        let kind = u16::from_ne_bytes([kind_low, kind_high]) & NLA_TYPE_MASK;
        let end = length.next_multiple_of(4).clamp(4, attributes.len());
        let (attribute, rest) = attributes.split_at_mut(end);
        if let Some(value) = attribute.get_mut(4..length) {
            if kind == IFLA_PROP_LIST {
                make_text(value, names);
            } else if names.contains(&kind) && str::from_utf8(value).is_err() {
                value.iter_mut().filter(|byte| !byte.is_ascii()).for_each(|byte| *byte = b'?');
            }
        }
        attributes = rest;
    }
}

#[cfg(test)]
mod tests {
    use netlink_packet_core::{NLM_F_MULTIPART, NLMSG_DONE, NLMSG_ERROR, NLMSG_NOOP, NLMSG_OVERRUN};

    use super::*;

    fn message(kind: u16, payload: &[u8]) -> Vec<u8> {
        let length = u32::try_from(16 + payload.len()).unwrap();
        let parts = [&length.to_ne_bytes()[..], &kind.to_ne_bytes(), &NLM_F_MULTIPART.to_ne_bytes()];
        [&parts.concat()[..], &[0; 8], payload].concat()
    }

    /// `RTM_NEWLINK` with nothing but its header.
    fn link() -> Vec<u8> {
        message(16, &[0; 16])
    }

    fn read(datagrams: &[Vec<u8>]) -> (io::Result<bool>, usize) {
        let mut answers = 0;
        let done = super::read(&datagrams.concat(), &mut |_| answers += 1);
        (done, answers)
    }

    #[test]
    fn answers_are_read_up_to_the_end() {
        let done = message(NLMSG_DONE, &[0; 4]);
        let (end, answers) = read(&[link(), message(NLMSG_NOOP, &[]), link(), done, link()]);
        assert_eq!((end.unwrap(), answers), (true, 2));
        let (end, answers) = read(&[link()]);
        assert_eq!((end.unwrap(), answers), (false, 1));
    }

    #[test]
    fn a_name_that_is_no_text_hides_no_interface() {
        use netlink_packet_route::link::LinkAttribute;

        let name = |name: &[u8; 3]| [&[8, 0, 3, 0][..], name, &[0]].concat();
        let link = |bytes: &[u8; 3]| message(RTM_NEWLINK, &[&[0; 16][..], &name(bytes)].concat());
        let mut names = Vec::new();
        let datagram = [link(b"a\xffb"), link(b"abc"), message(NLMSG_DONE, &[0; 4])].concat();
        super::read(&datagram, &mut |answer| {
            let RouteNetlinkMessage::NewLink(link) = answer else { panic!("{answer:?}") };
            names.extend(link.attributes.into_iter().filter_map(|attribute| match attribute {
                LinkAttribute::IfName(name) => Some(name),
                _ => None,
            }));
        })
        .unwrap();
        assert_eq!(names, ["a?b", "abc"]);
        for length in 0..4 {
            // A length that lies ends it.
            make_text(&mut [length, 0, 3, 0, 0xff, 0xff], &[3]);
        }
    }

    #[test]
    fn a_list_that_failed_is_not_an_empty_one() {
        let code = (-libc::EBUSY).to_ne_bytes();
        let (end, answers) = read(&[link(), message(NLMSG_DONE, &code)]);
        assert_eq!((end.unwrap_err().raw_os_error(), answers), (Some(libc::EBUSY), 1));
        let refused = message(NLMSG_ERROR, &[&code[..], &[0; 16]].concat());
        assert_eq!(read(&[refused]).0.unwrap_err().raw_os_error(), Some(libc::EBUSY));
        let (end, answers) = read(&[link(), message(NLMSG_ERROR, &[0; 20])]);
        assert_eq!((end.unwrap(), answers), (true, 1), "an acknowledgement");
        let least = message(NLMSG_ERROR, &[&i32::MIN.to_ne_bytes()[..], &[0; 16]].concat());
        assert_eq!(read(&[least]).0.unwrap_err().raw_os_error(), Some(i32::MAX), "it has no opposite");
        let lost = message(NLMSG_OVERRUN, &[]);
        assert_eq!(read(&[lost]).0.unwrap_err().raw_os_error(), Some(libc::ENOBUFS));
        assert!(read(&[vec![0; 16]]).0.is_err(), "a length of 0 would never end");
    }
}
