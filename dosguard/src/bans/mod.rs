//! Bans outside the kernel: as text and records, saved and put back, exported and imported.

mod changes;
mod live;
mod restore;
#[cfg(test)]
mod testing;

pub use changes::{Differ, Naming, saved_ban, saved_offender};
pub use live::{Live, Unfit, parse_source};
pub use restore::Restored;
