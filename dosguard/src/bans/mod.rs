//! Bans outside the kernel: as text and records, saved and put back, exported and imported.

pub mod block;
mod changes;
pub mod export;
pub mod follow;
pub mod import;
mod live;
pub mod put;
mod restore;
#[cfg(test)]
pub(crate) mod testing;

pub use changes::{Differ, Naming, saved_ban, saved_offender};
pub use live::{Live, Span, Unfit, parse_source};
pub use restore::Restored;
pub(crate) use restore::restore;
