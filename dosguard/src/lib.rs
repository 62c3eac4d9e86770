//! dosguard stops connection floods at the network card: an XDP program counts new connections per source and drops
//! packets from sources over the limit, and this library loads it, tells it the limits and reports what it does.

pub mod bans;
pub mod challenge;
pub mod cli;
pub mod config;
pub mod confine;
pub mod confirm;
pub mod connections;
pub mod daemon;
pub mod datapath;
pub mod explain;
pub mod guards;
pub mod lock;
pub mod netlink;
pub mod output;
pub mod paths;
pub mod replay;
pub mod secure;
pub mod store;
pub mod system;
pub mod top;
