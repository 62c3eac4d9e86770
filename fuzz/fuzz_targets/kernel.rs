//! Any bytes as what the kernel answers: over rtnetlink, about sockets, and as its type information. Reading ends, and finds no
//! more than there are bytes for.
#![no_main]

use dosguard::connections::answer::Answers;
use dosguard::connections::{ListenerLayout, RequestLayout, SocketLayout, States};
use dosguard::netlink;
use libfuzzer_sys::fuzz_target;

/// The number of the question.
const SEQUENCE: u32 = 7;
/// The shortest message is a header alone, and the shortest of a socket has 72 bytes more.
const HEADER: usize = 16;
const SOCKET: usize = HEADER + 72;

fuzz_target!(|bytes: &[u8]| {
    let Some((flags, bytes)) = bytes.split_first() else { return };
    match flags % 3 {
        0 => {
            let mut answers = 0;
            if let Err(error) = netlink::read(bytes, &mut |_| answers += 1) {
                assert!(!error.to_string().is_empty());
            }
            assert!(answers <= bytes.len().div_ceil(HEADER));
        }
        1 => {
            let states = States::ESTABLISHED | States::SYN_RECV;
            let (mut answers, mut sockets) = (Answers::new(SEQUENCE, states), 0);
            let read = answers.read(bytes, &mut |socket| {
                sockets += 1;
                assert!(states.contains(socket.state));
                // Whatever the family of the socket.
                assert!(socket.local.ip() == socket.local.ip().to_canonical());
            });
            if let Err(error) = read {
                assert!(!error.to_string().is_empty());
            }
            assert!(sockets <= bytes.len() / SOCKET);
        }
        _ => {
            let found = SocketLayout::in_btf(bytes);
            assert_eq!(SocketLayout::in_btf(bytes), found);
            assert!(found.is_none() || bytes.len() > 100, "each name stands there");
            let _ = (ListenerLayout::in_btf(bytes), RequestLayout::in_btf(bytes));
        }
    }
});
