//! The kernel's socket tables: half-open connections, connections that are closed, and how long a list takes. Needs root.

#![expect(clippy::unwrap_used, reason = "a step that fails, fails the test, in its helpers as well")]

use std::{
    collections::HashSet,
    io::{ErrorKind, Read as _},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream},
    time::{Duration, Instant},
};

use caps::{CapSet, Capability};
use dosguard::connections::{DiagError, SockDiag, States, TcpSocket, TcpState};
use dosguard_tests::{
    addresses::{
        CLIENT_V4, CLIENT_V6, FORGED_V4, FORGED_V6, GUARD_CLIENT_V4, GUARD_CLIENT_V6, GUARD_V4, GUARD_V6,
        PEER,
    },
    lab::Lab,
    netns::Namespace,
    packet::Packet,
    transmit::send_frames,
    wait::wait_until,
};
use nix::sys::{
    resource::{Resource, getrlimit, setrlimit},
    socket::Backlog,
};

const PORT: u16 = 8080;
const PATIENCE: Duration = Duration::from_secs(5);

#[test]
fn a_connection_is_closed_at_both_ends() {
    let lab = Lab::new().unwrap();
    let listener = listen(lab.guard());
    let mut diag = open(lab.guard());
    assert!(diag.can_destroy().unwrap());
    for (server, client) in
        [(IpAddr::from(GUARD_CLIENT_V4), IpAddr::from(CLIENT_V4)), (GUARD_CLIENT_V6.into(), CLIENT_V6.into())]
    {
        let mut connection = connect(lab.client(), (server, PORT).into());
        let (mut accepted, _) = listener.accept().unwrap();
        accepted.set_read_timeout(Some(PATIENCE)).unwrap();

        let from_client = |socket: &TcpSocket| socket.remote == connection.local_addr().unwrap();
        let [socket] = &list(&mut diag, States::ESTABLISHED, from_client)[..] else { panic!("one socket") };
        assert_eq!(socket.local, (server, PORT).into());
        assert_eq!(socket.remote.ip(), client);
        assert!(diag.destroy(socket).unwrap());

        assert_eq!(accepted.read(&mut [0]).unwrap_err().kind(), ErrorKind::ConnectionAborted);
        assert_eq!(connection.read(&mut [0]).unwrap_err().kind(), ErrorKind::ConnectionReset);
        assert!(!diag.destroy(socket).unwrap(), "it is gone");
        assert!(list(&mut diag, States::ESTABLISHED, |_| true).is_empty());
        assert_eq!(list(&mut diag, States::LISTEN, |_| true).len(), 1, "the server goes on");
    }
}

#[test]
fn half_open_connections_are_told_and_forgotten() {
    let lab = Lab::new().unwrap();
    let _listener = listen(lab.guard());
    let mut diag = open(lab.guard());
    // The guard's replies go to the attacker, where nothing answers them.
    let frames = [
        Packet::eth().ipv4(FORGED_V4, GUARD_V4).tcp(1024, PORT).syn().build(),
        Packet::eth().ipv6(FORGED_V6, GUARD_V6).tcp(1025, PORT).syn().build(),
    ];
    send_frames(lab.attacker(), PEER, &frames).unwrap();
    wait_until("both are half-open", PATIENCE, || Ok(list(&mut diag, States::SYN_RECV, |_| true).len() == 2))
        .unwrap();

    let half_open = list(&mut diag, States::SYN_RECV, |_| true);
    let mut ends: Vec<_> = half_open.iter().map(|socket| (socket.local, socket.remote)).collect();
    ends.sort();
    let v4 = ((GUARD_V4, PORT).into(), (FORGED_V4, 1024).into());
    let v6 = ((GUARD_V6, PORT).into(), (FORGED_V6, 1025).into());
    assert_eq!(ends, [v4, v6]);
    assert!(half_open.iter().all(|socket| socket.state == TcpState::SynRecv && socket.cookie() != 0));
    assert!(list(&mut diag, States::ESTABLISHED, |_| true).is_empty());
    assert_eq!(list(&mut diag, States::ESTABLISHED | States::LISTEN | States::SYN_RECV, |_| true).len(), 3);

    for socket in &half_open {
        assert!(diag.destroy(socket).unwrap());
        assert!(!diag.destroy(socket).unwrap());
    }
    assert!(list(&mut diag, States::SYN_RECV, |_| true).is_empty());
}

#[test]
fn a_connection_that_was_closed_since_is_no_error() {
    let lab = Lab::new().unwrap();
    let listener = listen(lab.guard());
    let mut diag = open(lab.guard());
    let connection = connect(lab.guard(), (Ipv4Addr::LOCALHOST, PORT).into());
    let listed = list(&mut diag, States::ESTABLISHED, |_| true);
    assert_eq!(listed.len(), 2);
    // Whoever closes first waits in TIME_WAIT, which not every kernel ends.
    drop(connection);
    drop(listener.accept().unwrap());
    wait_until("both ends are closed", PATIENCE, || {
        Ok(!lab.guard().run("ss", ["-Htan", "state", "time-wait"])?.is_empty())
    })
    .unwrap();
    for socket in &listed {
        diag.destroy(socket).unwrap();
    }
}

#[test]
fn it_takes_a_capability_to_close() {
    let lab = Lab::new().unwrap();
    let _listener = listen(lab.guard());
    let _connection = connect(lab.client(), (GUARD_CLIENT_V4, PORT).into());
    lab.guard()
        .run_in(|| {
            caps::drop(None, CapSet::Effective, Capability::CAP_NET_ADMIN).unwrap();
            let mut diag = SockDiag::open().unwrap();
            let [socket] = &list(&mut diag, States::ESTABLISHED, |_| true)[..] else { panic!("one socket") };
            let refused = diag.destroy(socket).unwrap_err();
            assert!(matches!(refused, DiagError::NotPermitted), "{refused}");
            assert!(diag.can_destroy().unwrap());
            assert_eq!(list(&mut diag, States::ESTABLISHED, |_| true).len(), 1, "it goes on");
        })
        .unwrap();
}

#[test]
fn each_namespace_has_its_own_sockets() {
    let lab = Lab::new().unwrap();
    let _listener = listen(lab.guard());
    let all = States::LISTEN | States::ESTABLISHED | States::SYN_RECV;
    assert_eq!(list(&mut open(lab.guard()), all, |_| true).len(), 1);
    assert!(list(&mut open(lab.client()), all, |_| true).is_empty());
}

#[test]
fn thirty_thousand_sockets_are_listed_in_a_moment() {
    const CONNECTIONS: usize = 15_000;
    let lab = Lab::new().unwrap();
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    setrlimit(Resource::RLIMIT_NOFILE, most, most).unwrap();
    // What waits to be accepted takes no file descriptor.
    lab.guard().sysctl("net.core.somaxconn", "65535").unwrap();
    let listener = listen(lab.guard());
    nix::sys::socket::listen(&listener, Backlog::MAXALLOWABLE).unwrap();
    let server = (Ipv4Addr::LOCALHOST, PORT).into();
    let connect = |_| TcpStream::connect_timeout(&server, PATIENCE).unwrap();
    let _connections: Vec<_> = lab.guard().run_in(|| (0..CONNECTIONS).map(connect).collect()).unwrap();

    let mut diag = open(lab.guard());
    let mut cookies = HashSet::new();
    diag.each(States::ESTABLISHED, &mut |socket| assert!(cookies.insert(socket.cookie()))).unwrap();
    assert_eq!(cookies.len(), 2 * CONNECTIONS);
    let mut served = 0;
    let start = Instant::now();
    diag.each(States::ESTABLISHED, &mut |socket| served += usize::from(socket.local.port() == PORT)).unwrap();
    let elapsed = start.elapsed();
    println!("{elapsed:?}, {:?} for a socket", elapsed / u32::try_from(2 * CONNECTIONS).unwrap());
    assert_eq!(served, CONNECTIONS);
    assert!(elapsed < Duration::from_secs(1), "{elapsed:?}");
}

/// A server for both families.
fn listen(namespace: &Namespace) -> TcpListener {
    namespace.run_in(|| TcpListener::bind((Ipv6Addr::UNSPECIFIED, PORT))).unwrap().unwrap()
}

fn connect(namespace: &Namespace, server: SocketAddr) -> TcpStream {
    let connection = namespace.run_in(|| TcpStream::connect_timeout(&server, PATIENCE)).unwrap().unwrap();
    connection.set_read_timeout(Some(PATIENCE)).unwrap();
    connection
}

/// Opened on a thread inside, and used from this one, which is not.
fn open(namespace: &Namespace) -> SockDiag {
    namespace.run_in(SockDiag::open).unwrap().unwrap()
}

fn list(diag: &mut SockDiag, states: States, wanted: impl Fn(&TcpSocket) -> bool) -> Vec<TcpSocket> {
    let mut found = Vec::new();
    let mut see = |socket: &TcpSocket| found.extend(wanted(socket).then(|| socket.clone()));
    diag.each(states, &mut see).unwrap();
    found
}
