//! Questions to the kernel over rtnetlink.
//!
//! `netlink-packet-route` knows the messages and is kept up with the kernel's; only the questions are ours.

use std::io;

use netlink_packet_core::{NLM_F_DUMP, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage, NetlinkPayload};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};

/// Asks for all that there is of something in the network namespace, and hands each answer to `each`.
pub(crate) fn dump(
    question: RouteNetlinkMessage,
    mut each: impl FnMut(RouteNetlinkMessage),
) -> io::Result<()> {
    let mut socket = Socket::new(NETLINK_ROUTE)?;
    socket.bind_auto()?;
    socket.connect(&SocketAddr::new(0, 0))?;
    let mut request = NetlinkMessage::new(NetlinkHeader::default(), NetlinkPayload::from(question));
    request.header.flags = NLM_F_DUMP | NLM_F_REQUEST;
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

/// Hands the answers of a datagram to `each`. Returns whether they were the last. The error is the kernel's own, or that the
/// datagram is malformed.
fn read(datagram: &[u8], each: &mut impl FnMut(RouteNetlinkMessage)) -> io::Result<bool> {
    let mut rest = datagram;
    while !rest.is_empty() {
        let message = NetlinkMessage::<RouteNetlinkMessage>::deserialize(rest).map_err(io::Error::other)?;
        let length = (message.header.length as usize).next_multiple_of(4);
        match message.payload {
            NetlinkPayload::InnerMessage(answer) => each(answer),
            // What fails on the way is told at the end.
            NetlinkPayload::Done(done) if done.code < 0 => {
                return Err(io::Error::from_raw_os_error(done.code.saturating_neg()));
            }
            NetlinkPayload::Done(_) => return Ok(true),
            NetlinkPayload::Error(error) => return Err(error.to_io()),
            NetlinkPayload::Overrun(_) => return Err(io::Error::from_raw_os_error(libc::ENOBUFS)),
            _ => {}
        }
        rest = rest.get(length.max(1)..).unwrap_or_default();
    }
    Ok(false)
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
    fn a_list_that_failed_is_not_an_empty_one() {
        let code = (-libc::EBUSY).to_ne_bytes();
        let (end, answers) = read(&[link(), message(NLMSG_DONE, &code)]);
        assert_eq!((end.unwrap_err().raw_os_error(), answers), (Some(libc::EBUSY), 1));
        let refused = message(NLMSG_ERROR, &[&code[..], &[0; 16]].concat());
        assert_eq!(read(&[refused]).0.unwrap_err().raw_os_error(), Some(libc::EBUSY));
        let lost = message(NLMSG_OVERRUN, &[]);
        assert_eq!(read(&[lost]).0.unwrap_err().raw_os_error(), Some(libc::ENOBUFS));
        assert!(read(&[vec![0; 16]]).0.is_err(), "a length of 0 would never end");
    }
}
