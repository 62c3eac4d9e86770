//! What the operator asks for: the configuration file, sysctl keys, and the units both are written in.
//!
//! Nothing here does I/O, except [`file`](mod@file), which finds and reads the files. Text comes in, checked values go
//! out: a [`policy::Policy`] that exists is one the kernel's maps can hold. Every error says what is accepted.
//!
//! | module | turns text into |
//! | --- | --- |
//! | [`units`] | durations (`10m`) |
//! | [`bytes`] | sizes (`100M`) |
//! | [`limit`] | limits (`3/60s`) |
//! | [`cidr`] | addresses and prefixes, and their form in the maps |
//! | [`ports`] | sets of ports (`tcp/25,tcp/8000-8100`) |
//! | [`field`] | the settings of one rule, wherever they are written |
//! | [`policy`] | everything one instance shall do, checked as a whole |
//! | [`file`](mod@file) | all that an instance is told, from TOML files, with line and column in every error |
//! | [`keys`] | sysctl-style names over live settings |
//! | [`assignments`] | live settings into the ones that are wanted |
//! | [`changes`](mod@changes) | what one policy has changed in another, for people |
//! | [`services`] | what the daemon does beside the filter |
//! | [`sizes`] | how much the kernel's maps hold |
//! | [`warnings`](mod@warnings) | what may be, and is hardly meant |

pub mod assignments;
pub mod bytes;
pub mod changes;
pub mod cidr;
mod document;
mod duplicate;
pub mod field;
pub mod file;
pub mod keys;
pub mod limit;
pub mod policy;
pub mod ports;
pub mod services;
pub mod sizes;
pub mod units;
pub mod warnings;

pub use changes::changes;
