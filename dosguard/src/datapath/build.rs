//! Which program it is: what tells the one in the kernel from the one that this dosguard would load.

use std::fmt;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};

/// The identity of a loaded program: its object, what was chosen for it at load, and the level of its log.
///
/// Two programs with one identity are the same. The same object may have another identity in a dosguard that was built by
/// another compiler; then it is replaced without need.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Build(u64);

/// The lowest bits are the level of the log, which may be changed and kept apart from the rest.
const LEVEL: u64 = 0b111;
/// Set in every identity: 0 stands for a program that is not known.
const KNOWN: u64 = 0b1000;

impl Build {
    pub(super) fn new(objects: &[&[u8]], cpus: u32, log_level: u8) -> Self {
        // Its keys are fixed.
        let mut hasher = DefaultHasher::new();
        (objects, cpus).hash(&mut hasher);
        Self(hasher.finish() & !LEVEL | KNOWN | u64::from(log_level) & LEVEL)
    }

    /// The identity with this number, unless it is that of an unknown program.
    pub const fn from_number(number: u64) -> Option<Self> {
        if number == 0 { None } else { Some(Self(number)) }
    }

    /// As it stands in the settings.
    pub const fn number(self) -> u64 {
        self.0
    }

    /// Which of the kernel program's log statements are in it: 0 none, to 5 all.
    pub const fn log_level(self) -> u8 {
        (self.0 & LEVEL) as u8
    }
}

impl fmt::Display for Build {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{:016x}", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whatever_makes_another_program_makes_another_identity() {
        let build = Build::new(&[b"object"], 2, 3);
        assert_eq!(build, Build::new(&[b"object"], 2, 3));
        assert_eq!(build.log_level(), 3);
        assert_eq!(Build::from_number(build.number()), Some(build));
        let others =
            [Build::new(&[b"objecT"], 2, 3), Build::new(&[b"object"], 3, 3), Build::new(&[b"object"], 2, 0)];
        assert!(others.iter().all(|other| *other != build && other.number() != 0), "{others:?}");
    }
}
