//! Curves as SVG, one above the other.

use std::error::Error;
use std::path::Path;

use plotters::prelude::*;
use smmuv3_bench::Curve;

const WIDTH: u32 = 900;
const HEIGHT: u32 = 420;
const COLOURS: [RGBColor; 4] =
    [RGBColor(0, 90, 181), RGBColor(220, 50, 32), RGBColor(120, 120, 120), RGBColor(0, 150, 80)];

pub(super) fn write(path: &Path, curves: &[Curve]) -> Result<(), Box<dyn Error>> {
    let area = SVGBackend::new(path, (WIDTH, HEIGHT * curves.len().max(1) as u32)).into_drawing_area();
    area.fill(&WHITE)?;
    for (area, curve) in area.split_evenly((curves.len().max(1), 1)).iter().zip(curves) {
        let points = || curve.series.iter().flat_map(|(_, points)| points.iter().copied());
        let most_x = points().map(|point| point.0).fold(1.0, f64::max);
        let most_y = points().map(|point| point.1).fold(0.0, f64::max);
        let mut chart = ChartBuilder::on(area)
            .caption(curve.title, ("sans-serif", 18))
            .margin(12)
            .x_label_area_size(40)
            .y_label_area_size(70)
            .build_cartesian_2d(0.0..most_x * 1.02, 0.0..most_y * 1.1)?;
        chart.configure_mesh().x_desc(curve.x).y_desc(curve.y).x_label_formatter(&f64::to_string).draw()?;
        for ((name, points), colour) in curve.series.iter().zip(COLOURS.iter().cycle()) {
            let line = LineSeries::new(points.iter().copied(), colour.stroke_width(2)).point_size(3);
            chart
                .draw_series(line)?
                .label(*name)
                .legend(|(x, y)| Rectangle::new([(x, y - 2), (x + 14, y + 2)], colour.filled()));
        }
        chart
            .configure_series_labels()
            .position(SeriesLabelPosition::UpperLeft)
            .background_style(WHITE.mix(0.8))
            .border_style(BLACK)
            .draw()?;
    }
    area.present()?;
    Ok(())
}
