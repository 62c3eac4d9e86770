//! Who would have been banned: the engine over captured packets, driven by their own time.
//!
//! ```text
//! input ──► capture ──► direction ──► engine, on tables in memory ──► report ──► text, JSON
//! file,     pcap and    what came     ▲   │                             ▲
//! gzip      pcapng      in            │   └──► offered: what each ──────┘
//!                          │          │        source asked for
//!                          └──► handshakes: who is real
//! ```
//!
//! Nothing here needs privileges or the kernel, and memory does not grow with the capture, but for a list of all bans if
//! that is asked for: the tables are as large as the kernel's, and what is kept beside them has bounds of its own.

pub mod capture;
pub mod clock;
pub mod direction;
pub mod handshakes;
pub mod input;
pub mod judge;
pub mod offered;
pub mod report;
#[cfg(test)]
mod speed;
#[cfg(test)]
mod tests;
pub mod text;

use std::io::Read;

use self::capture::CaptureError;
use self::judge::{Judge, Options};
use self::report::Report;

/// Replays a capture. If it is damaged, the report is about what came before, and the error says where.
///
/// # Errors
///
/// The input is no capture, or nothing in it is understood: then there is no report.
pub fn replay(
    bytes: impl Read,
    options: Options<'_>,
) -> Result<(Report, Option<CaptureError>), CaptureError> {
    let mut judge = Judge::new(options);
    let damage = match capture::read(bytes, |packet| judge.packet(packet)) {
        Ok(()) => None,
        Err(damage @ CaptureError::Damaged { .. }) => Some(damage),
        Err(error) => return Err(error),
    };
    judge.end();
    let left_out = judge.left_out;
    if let Some(link) = left_out.some_link.filter(|_| left_out.link == judge.packets) {
        return Err(CaptureError::Link { link });
    }
    let report = Report::new(judge, damage.as_ref());
    Ok((report, damage))
}
