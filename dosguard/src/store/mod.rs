//! What survives a boot.

pub mod types;
