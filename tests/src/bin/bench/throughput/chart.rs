//! The results as a picture.

use std::path::Path;

use anyhow::{Result, anyhow};
use dosguard::output::grouped;
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

use super::contender::Contender;
use super::report::{Found, Outcome, Row};
use crate::machine::Machine;

const WIDTH: u32 = 900;
const BAR: i32 = 16;
const GAP: i32 = 26;
const LEFT: i32 = 190;
const RIGHT: i32 = 110;
const TOP: i32 = 64;
const FONT: &str = "sans-serif";

/// Draws bars of packets a second for each kind of traffic, as SVG into a file.
pub(super) fn draw(found: &Found, path: &Path) -> Result<()> {
    let bars: usize = found.rows.iter().map(|row| row.outcomes.len()).sum();
    let height = TOP + i32::try_from(bars)? * BAR + i32::try_from(found.rows.len())? * GAP + 10;
    let area = SVGBackend::new(path, (WIDTH, u32::try_from(height)?)).into_drawing_area();
    draw_on(&area, found).map_err(|error| anyhow!("cannot draw `{}`: {error}", path.display()))
}

type Area<'a> = DrawingArea<SVGBackend<'a>, plotters::coord::Shift>;
type Failure = DrawingAreaErrorKind<std::io::Error>;

fn draw_on(area: &Area<'_>, found: &Found) -> Result<(), Failure> {
    area.fill(&WHITE)?;
    let Machine { kernel, processor, processors, date } = &found.machine;
    let title = (FONT, 16).into_font().color(&BLACK);
    let small = (FONT, 11).into_font().color(&BLACK.mix(0.7));
    area.draw(&Text::new("Packets stopped a second, in millions, generator included", (10, 8), title))?;
    let machine = format!(
        "Linux {kernel}, {processors} x {processor}, {}; {} rounds of {} frames",
        date.strftime("%Y-%m-%d"),
        found.rounds,
        grouped(found.frames)
    );
    area.draw(&Text::new(machine, (10, 32), small.clone()))?;

    let millions = |outcome: &Outcome| 1e3 / outcome.spread().median.max(1.0);
    let most = found.rows.iter().flat_map(|row| &row.outcomes).map(millions).fold(0.1, f64::max);
    let mut top = TOP;
    for row in &found.rows {
        let heading = (FONT, 12, FontStyle::Bold).into_font().color(&BLACK);
        area.draw(&Text::new(row.traffic.name, (10, top), heading))?;
        top += GAP - 8;
        for outcome in &row.outcomes {
            bar(area, row, outcome, millions(outcome), most, top)?;
            top += BAR;
        }
        top += 8;
    }
    area.present()
}

fn bar(
    area: &Area<'_>,
    row: &Row,
    outcome: &Outcome,
    millions: f64,
    most: f64,
    top: i32,
) -> Result<(), Failure> {
    let colour = match outcome.contender {
        Contender::Floor(_) => RGBColor(150, 150, 150),
        Contender::Dosguard => RGBColor(200, 60, 40),
        Contender::XdpFilter => RGBColor(70, 110, 170),
        Contender::Netfilter(_) => RGBColor(130, 160, 200),
    };
    let room = f64::from(i32::try_from(WIDTH).unwrap_or(i32::MAX) - LEFT - RIGHT);
    #[expect(clippy::cast_possible_truncation, reason = "a bar is not wider than the picture")]
    let end = LEFT + (room * millions / most) as i32;
    let (label, value) = ((FONT, 11).into_font().color(&BLACK), (FONT, 11).into_font().color(&BLACK));
    let right = label.pos(Pos::new(HPos::Right, VPos::Top));
    area.draw(&Text::new(outcome.contender.name(), (LEFT - 6, top + 1), right))?;
    area.draw(&Rectangle::new([(LEFT, top + 2), (end, top + BAR - 2)], colour.filled()))?;
    let text = format!("{millions:.2} ({:.0} %)", row.of_floor(outcome).median * 100.0);
    area.draw(&Text::new(text, (end + 5, top + 1), value))
}
