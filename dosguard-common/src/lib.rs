//! What the kernel program and the userspace of dosguard share.
//!
//! The decision is written once, here, as plain Rust without I/O, clock or maps of its own: [`engine::decide`] is
//! generic over a [`frame::Frame`] (bounded reads of bytes) and [`tables::Tables`] (allow-list, bans, rules,
//! counters, events). The kernel gives it `XdpContext` and BPF maps, userspace a byte slice and tables in memory.
//! Time is always an argument: nanoseconds of `CLOCK_BOOTTIME`, which goes on during suspend.
#![forbid(unsafe_code)]
#![cfg_attr(not(any(test, feature = "memory")), no_std)]

pub mod abi;
pub mod address;
pub mod ban;
pub mod challenge;
pub mod claim;
pub mod clock;
pub mod config;
pub mod connection;
pub mod engine;
pub mod event;
pub mod flood;
pub mod frame;
pub mod hashing;
pub mod key;
pub mod label;
pub mod mark;
#[cfg(any(test, feature = "memory"))]
pub mod memory;
pub mod offender;
pub mod opaque;
pub mod parse;
pub mod proof;
pub mod reason;
pub mod rule;
pub mod set;
pub mod tables;
pub mod window;
