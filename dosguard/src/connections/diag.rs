//! The TCP sockets of a network namespace, over `sock_diag` (see `man 7 sock_diag`).
//!
//! `netlink-packet-sock-diag` knows the messages. Of an answer only the header is read, which all that we ask for is in:
//! reading the attributes behind it would allocate for each socket.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::ops::BitOr;

use netlink_packet_core::{
    DecodeError, NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage, NetlinkPayload,
    NetlinkSerializable, Parseable as _,
};
use netlink_packet_sock_diag::constants::{
    AF_INET, AF_INET6, IPPROTO_TCP, TCP_ESTABLISHED, TCP_LISTEN, TCP_SYN_RECV,
};
use netlink_packet_sock_diag::inet::{ExtensionFlags, InetRequest, InetResponseHeader, SocketId, StateFlags};
use netlink_packet_sock_diag::{SockDiagDestroy, SockDiagMessage};
use netlink_sys::{Socket, SocketAddr as NetlinkAddress, protocols::NETLINK_SOCK_DIAG};
use thiserror::Error;

use super::answer::{Answers, Progress};

/// What the kernel tells at once: it fills 32 KiB when it is given the room.
const BUFFER_BYTES: usize = 64 * 1024;

/// An error of [`SockDiag`].
#[derive(Debug, Error)]
pub enum DiagError {
    /// What was listed is not to be trusted.
    #[error("the kernel's list of TCP sockets changed while it was read\nhint: look again")]
    Interrupted,
    /// Some of the list is lost.
    #[error("the kernel had no memory for its list of TCP sockets\nhint: look again")]
    Overrun,
    /// No `tcp_diag`.
    #[error(
        "this kernel does not list its TCP sockets\n\
         hint: `modprobe tcp_diag`; if there is no such module, it takes a kernel with `CONFIG_INET_TCP_DIAG`"
    )]
    Unsupported,
    /// No `SOCK_DESTROY`.
    #[error(
        "this kernel does not close TCP connections on request\n\
         hint: it takes a kernel with `CONFIG_INET_DIAG_DESTROY`"
    )]
    DestroyUnsupported,
    /// A capability is missing.
    #[error(
        "closing TCP connections is not permitted\nhint: it takes the capability `CAP_NET_ADMIN`, which root has"
    )]
    NotPermitted,
    /// Anything else.
    #[error("cannot {action}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
}

impl DiagError {
    /// The same once more, if it stays so as long as the process lives.
    pub(super) const fn for_good(&self) -> Option<Self> {
        match self {
            Self::DestroyUnsupported => Some(Self::DestroyUnsupported),
            Self::NotPermitted => Some(Self::NotPermitted),
            Self::Interrupted | Self::Overrun | Self::Unsupported | Self::Io { .. } => None,
        }
    }
}

/// The state of a TCP socket, as far as it can be asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum TcpState {
    /// Both sides have agreed.
    Established,
    /// Half-open: a SYN was answered, and nothing came back yet.
    SynRecv,
    /// Takes connections.
    Listen,
}

impl TcpState {
    fn from_kernel(state: u8) -> Option<Self> {
        match state {
            TCP_ESTABLISHED => Some(Self::Established),
            TCP_SYN_RECV => Some(Self::SynRecv),
            TCP_LISTEN => Some(Self::Listen),
            _ => None,
        }
    }

    fn states(self) -> States {
        match self {
            Self::Established => States::ESTABLISHED,
            Self::SynRecv => States::SYN_RECV,
            Self::Listen => States::LISTEN,
        }
    }
}

/// Which sockets are asked for: `States::LISTEN | States::ESTABLISHED`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct States(u32);

impl States {
    /// Those that take connections.
    pub const LISTEN: Self = Self(1 << TCP_LISTEN);
    /// Those of established connections.
    pub const ESTABLISHED: Self = Self(1 << TCP_ESTABLISHED);
    /// Those of half-open connections, to which nobody has been given a file descriptor yet.
    pub const SYN_RECV: Self = Self(1 << TCP_SYN_RECV);

    /// Whether sockets in `state` are asked for.
    pub fn contains(self, state: TcpState) -> bool {
        self.0 & state.states().0 != 0
    }
}

impl BitOr for States {
    type Output = Self;

    fn bitor(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

/// One TCP socket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TcpSocket {
    /// Its own end. An IPv4 address is told as one, whatever the family of the socket.
    pub local: SocketAddr,
    /// The other end; unspecified, and port 0, where it listens.
    pub remote: SocketAddr,
    /// Its state.
    pub state: TcpState,
    id: SocketId,
}

impl TcpSocket {
    /// A number that no other socket has until the machine boots.
    #[must_use]
    pub fn cookie(&self) -> u64 {
        u64::from_ne_bytes(self.id.cookie)
    }

    /// Reads a `struct inet_diag_msg`. `None`: it is in none of the states that we know.
    pub(super) fn parse(answer: &[u8]) -> Result<Option<Self>, DecodeError> {
        let header = InetResponseHeader::parse(answer)?;
        let id = header.socket_id;
        Ok(TcpState::from_kernel(header.state).map(|state| Self {
            local: SocketAddr::new(id.source_address.to_canonical(), id.source_port),
            remote: SocketAddr::new(id.destination_address.to_canonical(), id.destination_port),
            state,
            id,
        }))
    }
}

/// Asks the kernel for the sockets of a network namespace.
pub struct SockDiag {
    socket: Socket,
    sequence: u32,
    buffer: Vec<u8>,
}

impl SockDiag {
    /// Opens a netlink socket in the network namespace of the calling thread. It stays there, whichever thread uses it.
    pub fn open() -> io::Result<Self> {
        let mut socket = Socket::new(NETLINK_SOCK_DIAG)?;
        socket.bind_auto()?;
        // From then on nobody but the kernel can send to it.
        socket.connect(&NetlinkAddress::new(0, 0))?;
        Ok(Self { socket, sequence: 0, buffer: vec![0; BUFFER_BYTES] })
    }

    /// Hands each socket in one of `states` to `see`, those of IPv4 first.
    ///
    /// The kernel does not stand still for it: of sockets that come or go in the meantime, some are missed, and now and
    /// then one is told twice ([`TcpSocket::cookie`] knows). Listening sockets come before others of the same family.
    /// Where others than those are asked for, it looks through its whole table, twice, however few sockets there are.
    pub fn each(&mut self, states: States, see: &mut dyn FnMut(&TcpSocket)) -> Result<(), DiagError> {
        for (family, any) in [(AF_INET, SocketId::new_v4()), (AF_INET6, SocketId::new_v6())] {
            let request = SockDiagMessage::InetRequest(request(family, states, any));
            self.ask(request.into(), NLM_F_DUMP).map_err(not_listed)?;
            let mut answers = Answers::new(self.sequence, states);
            self.receive(&mut answers, see).map_err(not_listed)?;
            if answers.is_interrupted() {
                return Err(DiagError::Interrupted);
            }
        }
        Ok(())
    }

    /// Closes a socket that [`each`](Self::each) has told, whoever owns it, with a RST to the other end. `false`: it was
    /// gone already. Another one that has the same addresses since is left alone.
    pub fn destroy(&mut self, socket: &TcpSocket) -> Result<bool, DiagError> {
        match self.try_destroy(socket.id.clone()) {
            // Linux 5.10 refuses a socket that waits in TIME_WAIT by now with the same words.
            Err(DiagError::DestroyUnsupported) if self.can_destroy()? => Ok(false),
            other => other,
        }
    }

    /// Whether this kernel closes sockets on request. It says so without looking at who asks.
    pub fn can_destroy(&mut self) -> Result<bool, DiagError> {
        // Port 0 is nobody's: what a kernel that can do it has to say is that there is none.
        match self.try_destroy(SocketId::new_v4()) {
            Ok(_) => Ok(true),
            Err(DiagError::DestroyUnsupported) => Ok(false),
            Err(error) => Err(error),
        }
    }

    fn try_destroy(&mut self, id: SocketId) -> Result<bool, DiagError> {
        let family = match id.source_address {
            IpAddr::V4(_) => AF_INET,
            IpAddr::V6(_) => AF_INET6,
        };
        let none = States(0);
        let request = SockDiagMessage::InetRequest(request(family, none, id));
        let answer = self.ask(SockDiagDestroy::new(request).into(), NLM_F_ACK).and_then(|()| {
            let mut answers = Answers::new(self.sequence, none);
            self.receive(&mut answers, &mut |_| {})
        });
        answer.map_or_else(not_destroyed, |()| Ok(true))
    }

    fn ask<T: NetlinkSerializable>(&mut self, question: NetlinkPayload<T>, flags: u16) -> io::Result<()> {
        self.drain();
        self.sequence = self.sequence.wrapping_add(1);
        let mut message = NetlinkMessage::new(NetlinkHeader::default(), question);
        message.header.flags = NLM_F_REQUEST | flags;
        message.header.sequence_number = self.sequence;
        message.finalize();
        let mut bytes = vec![0; message.buffer_len()];
        message.serialize(&mut bytes);
        self.socket.send(&bytes, 0).map(drop)
    }

    fn receive(&mut self, answers: &mut Answers, see: &mut dyn FnMut(&TcpSocket)) -> io::Result<()> {
        loop {
            let length = self.receive_once()?;
            let datagram = self.buffer.get(..length).unwrap_or_default();
            if answers.read(datagram, see)? == Progress::Done {
                return Ok(());
            }
        }
    }

    /// Takes what an answer that was given up has left. Until its end was taken, the kernel would refuse to begin another.
    fn drain(&mut self) {
        loop {
            match self.receive_once() {
                Ok(_) => {}
                // It is about an earlier call; what follows can still be taken.
                Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => {}
                Err(_) => return,
            }
        }
    }

    /// Never waits: the kernel answers within `send`, and goes on within each `recv`.
    fn receive_once(&mut self) -> io::Result<usize> {
        self.socket.recv(&mut self.buffer.as_mut_slice(), libc::MSG_DONTWAIT)
    }
}

fn request(family: u8, states: States, socket_id: SocketId) -> InetRequest {
    InetRequest {
        family,
        protocol: IPPROTO_TCP,
        extensions: ExtensionFlags::empty(),
        states: StateFlags::from_bits_truncate(states.0),
        socket_id,
    }
}

fn not_listed(source: io::Error) -> DiagError {
    match source.raw_os_error() {
        Some(libc::ENOBUFS) => DiagError::Overrun,
        // An earlier list that was given up could not be drained; it can be the next time.
        Some(libc::EBUSY) => DiagError::Interrupted,
        // No handler for the family or the protocol; no `sock_diag` at all.
        Some(libc::ENOENT | libc::EOPNOTSUPP | libc::ECONNREFUSED | libc::EPROTONOSUPPORT) => {
            DiagError::Unsupported
        }
        _ => DiagError::Io { action: "list TCP sockets", source },
    }
}

fn not_destroyed(source: io::Error) -> Result<bool, DiagError> {
    match source.raw_os_error() {
        Some(libc::ENOENT) => Ok(false),
        Some(libc::EOPNOTSUPP) => Err(DiagError::DestroyUnsupported),
        Some(libc::EPERM | libc::EACCES) => Err(DiagError::NotPermitted),
        _ => Err(DiagError::Io { action: "close a TCP socket", source }),
    }
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, Ipv6Addr, TcpListener, TcpStream};

    use super::*;

    fn list(diag: &mut SockDiag, states: States) -> Vec<TcpSocket> {
        let mut found = Vec::new();
        diag.each(states, &mut |socket| found.push(socket.clone())).unwrap();
        found
    }

    /// How many of the sockets have these ends and are in that state.
    fn count(sockets: &[TcpSocket], local: SocketAddr, remote: SocketAddr, state: TcpState) -> usize {
        let is_it =
            |socket: &&TcpSocket| (socket.local, socket.remote, socket.state) == (local, remote, state);
        sockets.iter().filter(is_it).count()
    }

    #[test]
    fn both_ends_of_a_connection_are_found_once() {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let server = listener.local_addr().unwrap();
        let connection = TcpStream::connect(server).unwrap();
        let client = connection.local_addr().unwrap();
        let nobody = SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), 0);

        let mut diag = SockDiag::open().unwrap();
        let all = list(&mut diag, States::LISTEN | States::ESTABLISHED | States::SYN_RECV);
        assert_eq!(count(&all, server, nobody, TcpState::Listen), 1);
        assert_eq!(count(&all, server, client, TcpState::Established), 1, "nobody has accepted it");
        assert_eq!(count(&all, client, server, TcpState::Established), 1);
        let listening = list(&mut diag, States::LISTEN);
        assert!(listening.iter().all(|socket| socket.state == TcpState::Listen));
        assert_eq!(count(&listening, server, nobody, TcpState::Listen), 1);
        let established = list(&mut diag, States::ESTABLISHED);
        assert_eq!(count(&established, server, client, TcpState::Established), 1);
        assert_eq!(count(&established, server, nobody, TcpState::Listen), 0);
    }

    #[test]
    fn a_dual_stack_server_is_connected_over_ipv4() {
        let listener = TcpListener::bind((Ipv6Addr::UNSPECIFIED, 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        let over = |address: IpAddr| {
            let connection = TcpStream::connect((address, port)).unwrap();
            let client = connection.local_addr().unwrap();
            (connection, client, SocketAddr::new(address, port))
        };
        let connections = [over(Ipv4Addr::LOCALHOST.into()), over(Ipv6Addr::LOCALHOST.into())];

        let all = list(&mut SockDiag::open().unwrap(), States::LISTEN | States::ESTABLISHED);
        let any = |port| SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), port);
        assert_eq!(count(&all, any(port), any(0), TcpState::Listen), 1);
        for (_, client, server) in &connections {
            assert_eq!(count(&all, *server, *client, TcpState::Established), 1, "{server} {client}");
            assert_eq!(count(&all, *client, *server, TcpState::Established), 1, "{client} {server}");
        }
    }

    #[test]
    fn what_was_left_unread_does_not_disturb_the_next() {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let server = listener.local_addr().unwrap();
        let nobody = SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), 0);
        let mut diag = SockDiag::open().unwrap();
        let states = States::ESTABLISHED | States::LISTEN;
        let left = SockDiagMessage::InetRequest(request(AF_INET, states, SocketId::new_v4()));
        diag.ask(left.into(), NLM_F_DUMP).unwrap();
        assert_eq!(count(&list(&mut diag, States::LISTEN), server, nobody, TcpState::Listen), 1);
        assert_eq!(count(&list(&mut diag, States::LISTEN), server, nobody, TcpState::Listen), 1);
    }

    #[test]
    fn what_the_kernel_refuses_has_a_name() {
        let listed = |errno| not_listed(io::Error::from_raw_os_error(errno));
        assert!(matches!(listed(libc::ENOBUFS), DiagError::Overrun));
        assert!(matches!(listed(libc::EBUSY), DiagError::Interrupted));
        for errno in [libc::ENOENT, libc::EOPNOTSUPP, libc::ECONNREFUSED, libc::EPROTONOSUPPORT] {
            assert!(matches!(listed(errno), DiagError::Unsupported));
        }
        assert!(matches!(listed(libc::EINVAL), DiagError::Io { .. }));
        let destroyed = |errno| not_destroyed(io::Error::from_raw_os_error(errno));
        assert!(matches!(destroyed(libc::ENOENT), Ok(false)));
        assert!(matches!(destroyed(libc::EOPNOTSUPP), Err(DiagError::DestroyUnsupported)));
        assert!(matches!(destroyed(libc::EPERM), Err(DiagError::NotPermitted)));
        assert!(matches!(destroyed(libc::EACCES), Err(DiagError::NotPermitted)));
        assert!(matches!(destroyed(libc::EINVAL), Err(DiagError::Io { .. })));
    }
}
