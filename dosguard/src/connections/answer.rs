//! What the kernel answers, taken apart.

use std::io;

use netlink_packet_core::{
    DecodeError, DoneBuffer, ErrorBuffer, NLM_F_DUMP_INTR, NLMSG_ALIGNTO, NLMSG_DONE, NLMSG_ERROR,
    NLMSG_OVERRUN, NetlinkBuffer,
};
use netlink_packet_sock_diag::constants::SOCK_DIAG_BY_FAMILY;

use super::diag::{States, TcpSocket};

/// Whether there is more to come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// Another datagram.
    More,
    /// Nothing.
    Done,
}

/// The answers to one question, datagram by datagram.
#[derive(Debug)]
pub struct Answers {
    sequence: u32,
    states: States,
    interrupted: bool,
}

impl Answers {
    /// Those to the question number `sequence`, after sockets in `states`.
    pub const fn new(sequence: u32, states: States) -> Self {
        Self { sequence, states, interrupted: false }
    }

    /// Hands the sockets of a datagram to `see`.
    ///
    /// # Errors
    ///
    /// The kernel's own, or that the datagram is malformed.
    pub fn read(&mut self, datagram: &[u8], see: &mut dyn FnMut(&TcpSocket)) -> io::Result<Progress> {
        let mut rest = datagram;
        while !rest.is_empty() {
            let message = NetlinkBuffer::new_checked(rest).map_err(malformed)?;
            let length = (message.length() as usize).next_multiple_of(usize::from(NLMSG_ALIGNTO));
            rest = rest.get(length..).unwrap_or_default();
            if message.sequence_number() != self.sequence {
                continue;
            }
            self.interrupted |= message.flags() & NLM_F_DUMP_INTR != 0;
            let payload = message.payload();
            match message.message_type() {
                // The kernel may leave the code out.
                NLMSG_DONE if payload.is_empty() => return Ok(Progress::Done),
                NLMSG_DONE => return done(DoneBuffer::new_checked(payload).map_err(malformed)?.code()),
                NLMSG_ERROR => {
                    let code = ErrorBuffer::new_checked(payload).map_err(malformed)?.code();
                    return done(code.map_or(0, i32::from));
                }
                NLMSG_OVERRUN => return Err(io::Error::from_raw_os_error(libc::ENOBUFS)),
                SOCK_DIAG_BY_FAMILY => {
                    // A socket may have gone on to another state since the kernel chose it.
                    let socket = TcpSocket::parse(payload).map_err(malformed)?;
                    if let Some(socket) = socket.filter(|socket| self.states.contains(socket.state)) {
                        see(&socket);
                    }
                }
                _ => {}
            }
        }
        Ok(Progress::More)
    }

    /// Whether the kernel said that its tables changed in a way that makes the answers worthless.
    pub const fn is_interrupted(&self) -> bool {
        self.interrupted
    }
}

fn done(code: i32) -> io::Result<Progress> {
    if code < 0 { Err(io::Error::from_raw_os_error(code.saturating_neg())) } else { Ok(Progress::Done) }
}

fn malformed(error: DecodeError) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error)
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use netlink_packet_core::{Emitable as _, NLM_F_MULTIPART};
    use netlink_packet_sock_diag::constants::{
        AF_INET, AF_INET6, TCP_CLOSE_WAIT, TCP_ESTABLISHED, TCP_LISTEN, TCP_SYN_RECV,
    };
    use netlink_packet_sock_diag::inet::{InetResponseHeader, SocketId};

    use super::super::TcpState;
    use super::*;

    const SEQUENCE: u32 = 7;

    fn message(kind: u16, flags: u16, sequence: u32, payload: &[u8]) -> Vec<u8> {
        let length = u32::try_from(16 + payload.len()).unwrap();
        let mut bytes = length.to_ne_bytes().to_vec();
        bytes.extend(kind.to_ne_bytes());
        bytes.extend(flags.to_ne_bytes());
        bytes.extend(sequence.to_ne_bytes());
        bytes.extend([0; 4]);
        bytes.extend(payload);
        bytes
    }

    fn socket_in(state: u8, local: &str, remote: &str) -> Vec<u8> {
        let [local, remote] = [local, remote].map(|address| address.parse::<SocketAddr>().unwrap());
        let header = InetResponseHeader {
            family: if local.is_ipv4() { AF_INET } else { AF_INET6 },
            state,
            timer: None,
            socket_id: SocketId {
                source_port: local.port(),
                destination_port: remote.port(),
                source_address: local.ip(),
                destination_address: remote.ip(),
                interface_id: 0,
                cookie: [1, 2, 3, 4, 5, 6, 7, 8],
            },
            recv_queue: 0,
            send_queue: 0,
            uid: 0,
            inode: 0,
        };
        let mut bytes = vec![0; header.buffer_len()];
        header.emit(&mut bytes);
        // `INET_DIAG_SHUTDOWN`, which is told of each socket.
        bytes.extend([5, 0, 8, 0, 0, 0, 0, 0]);
        bytes
    }

    fn answer(payload: &[u8]) -> Vec<u8> {
        message(SOCK_DIAG_BY_FAMILY, NLM_F_MULTIPART, SEQUENCE, payload)
    }

    fn read(datagram: &[u8]) -> (io::Result<Progress>, Vec<TcpSocket>, bool) {
        let mut found = Vec::new();
        let mut answers = Answers::new(SEQUENCE, States::LISTEN | States::ESTABLISHED | States::SYN_RECV);
        let progress = answers.read(datagram, &mut |socket| found.push(socket.clone()));
        (progress, found, answers.is_interrupted())
    }

    #[test]
    fn sockets_are_read_up_to_the_end() {
        let datagram = [
            answer(&socket_in(TCP_LISTEN, "[::]:22", "[::]:0")),
            answer(&socket_in(TCP_SYN_RECV, "192.0.2.1:22", "198.51.100.7:1024")),
            message(NLMSG_DONE, NLM_F_MULTIPART, SEQUENCE, &[0; 4]),
            answer(&socket_in(TCP_LISTEN, "[::]:23", "[::]:0")),
        ]
        .concat();
        let (progress, found, interrupted) = read(&datagram);
        assert_eq!(progress.unwrap(), Progress::Done);
        assert!(!interrupted);
        let told: Vec<_> = found.iter().map(|socket| (socket.local.to_string(), socket.state)).collect();
        let expected = [("[::]:22", TcpState::Listen), ("192.0.2.1:22", TcpState::SynRecv)];
        assert_eq!(told, expected.map(|(local, state)| (local.to_owned(), state)));
        assert_eq!(found[1].remote, "198.51.100.7:1024".parse().unwrap());
        assert_eq!(found[1].cookie(), u64::from_ne_bytes([1, 2, 3, 4, 5, 6, 7, 8]));

        assert_eq!(read(&answer(&socket_in(TCP_LISTEN, "[::]:22", "[::]:0"))).0.unwrap(), Progress::More);
        assert_eq!(read(&message(NLMSG_DONE, 0, SEQUENCE, &[])).0.unwrap(), Progress::Done);
        assert_eq!(read(&[]).0.unwrap(), Progress::More);
    }

    #[test]
    fn a_mapped_address_is_an_ipv4_address() {
        let payload = socket_in(TCP_ESTABLISHED, "[::ffff:192.0.2.1]:22", "[::ffff:198.51.100.7]:1024");
        let (_, found, _) = read(&answer(&payload));
        assert_eq!(found[0].local, "192.0.2.1:22".parse().unwrap());
        assert_eq!(found[0].remote, "198.51.100.7:1024".parse().unwrap());
    }

    #[test]
    fn an_interrupted_dump_says_so_in_any_message() {
        let done = message(NLMSG_DONE, NLM_F_MULTIPART | NLM_F_DUMP_INTR, SEQUENCE, &[0; 4]);
        assert!(read(&done).2);
        let flags = NLM_F_MULTIPART | NLM_F_DUMP_INTR;
        let payload = socket_in(TCP_LISTEN, "[::]:22", "[::]:0");
        assert!(read(&message(SOCK_DIAG_BY_FAMILY, flags, SEQUENCE, &payload)).2);
        assert!(!read(&message(SOCK_DIAG_BY_FAMILY, flags, SEQUENCE - 1, &payload)).2);
    }

    #[test]
    fn errors_are_the_kernels_own() {
        let code = (-libc::ENOENT).to_ne_bytes();
        let request = message(SOCK_DIAG_BY_FAMILY, 0, SEQUENCE, &[0; 56]);
        let refused = message(NLMSG_ERROR, 0, SEQUENCE, &[&code[..], &request].concat());
        assert_eq!(read(&refused).0.unwrap_err().raw_os_error(), Some(libc::ENOENT));
        // Where `tcp_diag` is missing, the kernel says so at the end of an empty list.
        let done = message(NLMSG_DONE, NLM_F_MULTIPART, SEQUENCE, &code);
        assert_eq!(read(&done).0.unwrap_err().raw_os_error(), Some(libc::ENOENT));
        let lost = message(NLMSG_OVERRUN, 0, SEQUENCE, &[]);
        assert_eq!(read(&lost).0.unwrap_err().raw_os_error(), Some(libc::ENOBUFS));
        let acknowledged = message(NLMSG_ERROR, 0, SEQUENCE, &[&[0; 4][..], &request[..16]].concat());
        assert_eq!(read(&acknowledged).0.unwrap(), Progress::Done);
    }

    #[test]
    fn an_answer_to_another_question_is_left_out() {
        let payload = socket_in(TCP_LISTEN, "[::]:22", "[::]:0");
        let earlier = message(SOCK_DIAG_BY_FAMILY, NLM_F_MULTIPART, SEQUENCE - 1, &payload);
        let its_end = message(NLMSG_DONE, NLM_F_MULTIPART, SEQUENCE - 1, &[0; 4]);
        let (progress, found, _) = read(&[earlier, its_end].concat());
        assert_eq!(progress.unwrap(), Progress::More);
        assert!(found.is_empty());
    }

    #[test]
    fn a_socket_that_went_on_to_another_state_is_left_out() {
        let ends = ("192.0.2.1:22", "198.51.100.7:1024");
        for state in [0, TCP_CLOSE_WAIT, 12, u8::MAX] {
            let (progress, found, _) = read(&answer(&socket_in(state, ends.0, ends.1)));
            assert_eq!(progress.unwrap(), Progress::More);
            assert!(found.is_empty(), "state {state}");
        }
        let mut answers = Answers::new(SEQUENCE, States::SYN_RECV);
        let established = answer(&socket_in(TCP_ESTABLISHED, ends.0, ends.1));
        answers.read(&established, &mut |socket| panic!("{socket:?}")).unwrap();
    }

    #[test]
    fn what_is_cut_off_is_an_error() {
        let whole = answer(&socket_in(TCP_LISTEN, "[::]:22", "[::]:0"));
        for length in 1..whole.len() {
            let (progress, found, _) = read(&whole[..length]);
            assert_eq!(progress.unwrap_err().kind(), io::ErrorKind::InvalidData, "{length} bytes");
            assert!(found.is_empty());
        }
        // Lengths that are right, around a message that is short.
        let payload = socket_in(TCP_LISTEN, "[::]:22", "[::]:0");
        for length in 0..72 {
            assert!(read(&answer(&payload[..length])).0.is_err(), "{length} bytes");
        }
        for kind in [NLMSG_ERROR, NLMSG_DONE] {
            assert!(read(&message(kind, 0, SEQUENCE, &[0; 3])).0.is_err());
        }
        assert!(read(&[0; 16]).0.is_err(), "a length of 0 would never end");
    }
}
