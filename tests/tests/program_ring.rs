//! The ring buffer of events, as its one reader has it.

#![expect(clippy::unwrap_used, reason = "a test's helpers fail as the test itself does")]

use std::net::Ipv4Addr;

use dosguard::datapath::EventRing;
use dosguard_common::abi;
use dosguard_common::event::{Event, Kind};
use dosguard_tests::addresses::{ATTACKER_MAC, GUARD_V4};
use dosguard_tests::packet::Packet;
use dosguard_tests::program::{Program, ban_over};
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};

/// Room for some thirty events.
const ROOM: u32 = 4_096;

fn program() -> Program {
    Program::with_sizes(ban_over(1), &[(abi::EVENTS.name, ROOM)]).unwrap()
}

/// A source of which each byte is another one.
fn source(number: u8) -> [u8; 4] {
    [number, !number, number.wrapping_mul(7) ^ 0x55, number]
}

/// Has a source banned, which is one event.
fn ban(program: &mut Program, number: u8) {
    let syn =
        Packet::eth().ipv4(Ipv4Addr::from(source(number)), GUARD_V4).tcp(1, number.into()).syn().build();
    program.judge_all([&syn, &syn]).unwrap();
}

/// The sources that are told of.
fn told(reader: &mut EventRing) -> Vec<u8> {
    let mut told = Vec::new();
    let taken = reader.take(usize::MAX, |record| {
        let event = Event::from_bytes(record).unwrap();
        let number = event.source().to_ipv4().unwrap()[3];
        let (count, limit, _) = event.measure();
        assert_eq!((event.source().to_ipv4(), event.kind()), (Some(source(number)), Kind::Ban));
        assert_eq!((count, limit, event.label().text()), (2, 1, "default"));
        assert_eq!(event.cause().map(|cause| (cause.port, cause.mac)), Some((number.into(), ATTACKER_MAC.0)));
        told.push(number);
    });
    assert_eq!(taken, told.len());
    told
}

#[test]
fn events_are_whole_and_in_order_also_where_one_goes_over_the_end_of_the_buffer() {
    let mut program = program();
    let mut reader = program.other_reader().unwrap();
    for host in 1..=250 {
        ban(&mut program, host);
        assert_eq!(told(&mut reader), [host]);
    }
}

#[test]
fn who_is_behind_is_not_woken_and_who_has_found_nothing_is() {
    let mut program = program();
    let mut reader = program.other_reader().unwrap();
    let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).unwrap();
    epoll.add(&reader, EpollEvent::new(EpollFlags::EPOLLIN | EpollFlags::EPOLLET, 0)).unwrap();
    let is_woken =
        |millis: u16| epoll.wait(&mut [EpollEvent::empty()], EpollTimeout::from(millis)).unwrap() == 1;
    for first in (1..200).step_by(4) {
        ban(&mut program, first);
        assert!(is_woken(1_000), "by {first}");
        assert_eq!(told(&mut reader), [first]);
        for host in first + 1..=first + 3 {
            ban(&mut program, host);
            assert!(!is_woken(2), "by {host}");
        }
        assert_eq!(told(&mut reader), [first + 1, first + 2, first + 3]);
        assert!(told(&mut reader).is_empty());
    }
}

#[test]
fn the_next_reader_goes_on_where_one_has_ended_and_has_the_last_event_again_of_one_that_was_killed() {
    let mut program = program();
    let mut reader = program.other_reader().unwrap();
    for host in 1..=3 {
        ban(&mut program, host);
    }
    assert_eq!(told(&mut reader), [1, 2, 3]);
    drop(reader);
    ban(&mut program, 4);
    let mut reader = program.other_reader().unwrap();
    assert_eq!(told(&mut reader), [4]);
    std::mem::forget(reader);
    ban(&mut program, 5);
    let mut reader = program.other_reader().unwrap();
    assert_eq!(told(&mut reader), [4, 5]);
    // Whoever has found nothing owes nothing.
    assert!(told(&mut reader).is_empty());
    std::mem::forget(reader);
    assert!(told(&mut program.other_reader().unwrap()).is_empty());
}

#[test]
fn no_more_are_taken_than_are_wanted() {
    let mut program = program();
    let mut reader = program.other_reader().unwrap();
    for host in 1..=5 {
        ban(&mut program, host);
    }
    assert_eq!([reader.take(3, |_| {}), reader.take(3, |_| {}), reader.take(3, |_| {})], [3, 2, 0]);
}
