//! The lab of dosguard: network namespaces, traffic, peers and counters for the tests that need root, and the
//! packet builder for those that do not.
//!
//! Everything happens between namespaces that a [`lab::Lab`] makes and removes itself. Nothing is ever attached to,
//! sent from or sent into the machine's own interfaces, and all traffic is bounded in count and time.

#![forbid(unsafe_code)]

pub mod addresses;
pub mod attached;
pub mod bpffs;
pub mod capture;
pub mod challenges;
pub mod cli;
pub mod client;
pub mod counter;
pub mod cpu;
pub mod daemon;
pub mod directory;
pub mod documented;
pub mod earlier;
pub mod files;
pub mod flood;
pub mod follow;
pub mod fuzz;
pub mod generate;
pub mod held;
pub mod holders;
pub mod holding;
pub mod interrupt;
pub mod killed;
pub mod lab;
pub mod looked_at;
pub mod netns;
pub mod nginx;
pub mod objects;
pub mod packet;
pub mod pair;
pub mod program;
pub mod record;
pub mod server;
pub mod siege;
pub mod small_disk;
pub mod smtp;
pub mod sources;
pub mod statistics;
pub mod transmit;
pub mod twins;
pub mod wait;
pub mod xtables;
