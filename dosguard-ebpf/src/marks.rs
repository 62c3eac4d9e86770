//! Marks of sources, as the program reads and writes them.

use dosguard_common::address::Address;
use dosguard_common::hashing::Hashing;
use dosguard_common::mark::MARKS_IN_LINE;

use crate::maps;

/// The mark with this number.
#[inline(always)]
fn mark(number: u32) -> Option<*mut u8> {
    let line = maps::MARKS.get_ptr_mut(number / MARKS_IN_LINE)?;
    // SAFETY: a byte of the value.
    Some(unsafe { line.cast::<u8>().add((number % MARKS_IN_LINE) as usize) })
}

/// Whether the mark with this number counts; if there is none, all do.
#[inline(always)]
pub fn counts(hashing: &Hashing, number: u32) -> bool {
    // SAFETY: as in `set`.
    mark(number).is_none_or(|mark| hashing.period.is_marked(unsafe { mark.read_volatile() }))
}

/// Marks a source of which there is about to be something, by the number of its mark.
#[inline(always)]
pub fn set(source: &Address, number: impl FnOnce(&Hashing, u64) -> u32) {
    let Some(hashing) = maps::HASHING.get(0) else { return };
    if let Some(mark) = mark(number(hashing, hashing.sum(source))) {
        // SAFETY: a byte is never torn, and whoever else writes it writes this mark or the next.
        unsafe {
            if mark.read_volatile() != hashing.period.now {
                mark.write_volatile(hashing.period.now);
            }
        }
    }
}
