//! The picture: what is left for clients while an attack grows.

use std::path::Path;

use anyhow::{Result, anyhow};
use plotters::coord::Shift;
use plotters::prelude::*;

use super::attack::Attack;
use super::protection::Protection;
use super::report::{Found, Point};

const SIZE: (u32, u32) = (900, 640);
const FONT: &str = "sans-serif";
/// Latencies are drawn from here to there, in milliseconds.
const LATENCIES: (f64, f64) = (0.1, 3_000.0);

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;
type Failure = DrawingAreaErrorKind<std::io::Error>;

/// Draws connections a second, and below their latencies, as SVG into a file.
pub(super) fn draw(found: &Found, path: &Path) -> Result<()> {
    let area = SVGBackend::new(path, SIZE).into_drawing_area();
    draw_on(&area, found).map_err(|error| anyhow!("cannot draw `{}`: {error}", path.display()))
}

fn draw_on(area: &Area<'_>, found: &Found) -> Result<(), Failure> {
    area.fill(&WHITE)?;
    let title = (FONT, 16).into_font().color(&BLACK);
    let small = (FONT, 11).into_font().color(&BLACK.mix(0.7));
    let headline = "Connections that clients make while SYNs flood the server";
    area.draw(&Text::new(headline, (10, 8), title))?;
    area.draw(&Text::new(
        format!(
            "{}; {} rounds; generator, stack, server and clients share the processors",
            found.machine, found.rounds
        ),
        (10, 32),
        small,
    ))?;
    let (_, body) = area.split_vertically(56);
    let highest = found.points.iter().map(|point| point.connections().median).fold(1.0, f64::max) * 1.1;
    let panels = body.split_evenly((2, Attack::ALL.len()));
    for (column, attack) in Attack::ALL.into_iter().enumerate() {
        let (Some(above), Some(below)) = (panels.get(column), panels.get(column + Attack::ALL.len())) else {
            continue;
        };
        let points: Vec<_> = found.points.iter().filter(|point| point.attack == attack).collect();
        let most = points.iter().map(|point| millions(point)).fold(0.1, f64::max) * 1.05;
        let caption = format!("attack from {}", attack.name());
        let mut chart = ChartBuilder::on(above)
            .caption(caption, (FONT, 13))
            .margin(8)
            .x_label_area_size(30)
            .y_label_area_size(56)
            .build_cartesian_2d(0.0..most, 0.0..highest)?;
        chart
            .configure_mesh()
            .light_line_style(TRANSPARENT)
            .y_desc("connections a second")
            .y_label_formatter(&|rate| format!("{rate:.0}"))
            .draw()?;
        for protection in Protection::ALL {
            let line = line(&points, protection, |point| Some(point.connections().median));
            let style = colour(protection).stroke_width(2);
            let series = chart.draw_series(LineSeries::new(line, style).point_size(3))?;
            series
                .label(protection.name())
                .legend(move |(x, y)| PathElement::new([(x, y), (x + 14, y)], style));
        }
        if column == 0 {
            chart
                .configure_series_labels()
                .position(SeriesLabelPosition::UpperRight)
                .border_style(BLACK.mix(0.2))
                .background_style(WHITE.mix(0.8))
                .draw()?;
        }
        let mut chart = ChartBuilder::on(below)
            .margin(8)
            .x_label_area_size(36)
            .y_label_area_size(56)
            .build_cartesian_2d(0.0..most, (LATENCIES.0..LATENCIES.1).log_scale())?;
        chart
            .configure_mesh()
            .light_line_style(TRANSPARENT)
            .x_desc("SYNs of the attack a second, in millions")
            .y_desc("99th percentile, ms")
            .y_label_formatter(&|latency| latency.to_string())
            .draw()?;
        for protection in Protection::ALL {
            let line = line(&points, protection, |point| {
                point.p99().map(|p99| (p99.median * 1e3).clamp(LATENCIES.0, LATENCIES.1))
            });
            chart.draw_series(LineSeries::new(line, colour(protection).stroke_width(2)).point_size(3))?;
        }
    }
    area.present()
}

/// How many SYNs a second came, in millions.
fn millions(point: &Point) -> f64 {
    point.attacked().median / 1e6
}

fn line(points: &[&Point], protection: Protection, value: impl Fn(&Point) -> Option<f64>) -> Vec<(f64, f64)> {
    let own = points.iter().filter(|point| point.protection == protection);
    let mut line: Vec<_> = own.filter_map(|point| Some((millions(point), value(point)?))).collect();
    line.sort_by(|(one, _), (other, _)| one.total_cmp(other));
    line
}

const fn colour(protection: Protection) -> RGBColor {
    match protection {
        Protection::Nothing => RGBColor(120, 120, 120),
        Protection::Recent => RGBColor(220, 150, 40),
        Protection::Nftables => RGBColor(70, 110, 170),
        Protection::Dosguard => RGBColor(200, 60, 40),
    }
}
