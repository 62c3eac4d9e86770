//! Writes what fuzzing begins with: `cargo run -p dosguard-tests --example corpus -- fuzz/corpus`.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use dosguard_common::address::Address;
use dosguard_common::ban::Ban;
use dosguard_common::event::{Cause, Event, Kind};
use dosguard_common::key::SourceKey;
use dosguard_common::rule::{RuleIndex, Scope};
use dosguard_tests::generate::Generator;
use dosguard_tests::packet::Frame;

/// Files of each kind.
const FILES: usize = 24;

fn main() -> Result<()> {
    let root: PathBuf = std::env::args_os().nth(1).context("where to?")?.into();
    let mut generator = Generator::new(1);
    for number in 0..FILES {
        let frames: Vec<_> =
            std::iter::repeat_with(|| generator.frame()).filter(|frame| frame.len() < 256).take(12).collect();
        let one = frames.first().context("no frame")?;
        write(&root.join("parse"), number, one)?;
        if number % 3 == 0 {
            write(&root.join("engine"), number, &sequence(u8::try_from(number)?, &frames)?)?;
            write(&root.join("pcap"), number, &capture(&frames)?)?;
        }
    }
    let example =
        include_str!("../../README.md").split("```toml").nth(1).and_then(|rest| rest.split("```").next());
    write(&root.join("records"), 0, example.context("the README has no configuration")?.as_bytes())?;
    let ban = Ban::by_admin(Scope::Syn, RuleIndex(3), 10, 20, "a note");
    let key = SourceKey::for_rule(Address::from_ipv4([192, 0, 2, 1]), RuleIndex(3));
    for (number, kind) in (1..).zip(Kind::ALL) {
        write(
            &root.join("records"),
            number,
            bytemuck::bytes_of(&Event::of_ban(kind, &key, &ban, &Cause::default(), 15)),
        )?;
    }
    Ok(())
}

/// What the target `engine` takes: settings, three rules, the time, and frames with a step before each.
fn sequence(flags: u8, frames: &[Frame]) -> Result<Vec<u8>> {
    let mut bytes = vec![flags, 32, 64, 10];
    for limit in 0..3 {
        bytes.extend([flags << 1, limit, 0, 7, 1, 0, 4, 0, 1, 0]);
    }
    bytes.extend([0, 0, 1, 0, 0]);
    for (step, frame) in (0..8).cycle().zip(frames.iter().chain(frames)) {
        // No clock, no change; or a step of the clock of as many bytes as it wants.
        let step = if step < 6 { 0x10 } else { 0x14 };
        bytes.push(step);
        if step == 0x14 {
            bytes.extend([1, 0]);
        }
        bytes.push(u8::try_from(frame.len())?);
        bytes.extend(frame.iter());
    }
    Ok(bytes)
}

/// A capture in the classic format, little-endian, with microseconds and Ethernet.
fn capture(frames: &[Frame]) -> Result<Vec<u8>> {
    let mut bytes = 0xa1b2_c3d4_u32.to_le_bytes().to_vec();
    bytes.extend([2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 0, 0, 1, 0, 0, 0]);
    for (second, frame) in (1_u32..).zip(frames) {
        let length = u32::try_from(frame.len())?;
        bytes.extend([second, 0, length, length].map(u32::to_le_bytes).concat());
        bytes.extend(frame.iter());
    }
    Ok(bytes)
}

fn write(dir: &Path, number: usize, bytes: &[u8]) -> Result<()> {
    fs::create_dir_all(dir)?;
    let path = dir.join(format!("seed-{number:02}"));
    fs::write(&path, bytes).with_context(|| format!("could not write `{}`", path.display()))
}
