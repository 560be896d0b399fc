//! Draws the training curves of a run as one SVG: losses in the upper panel, NDCG@5 in the lower.
//!
//! A panel without a finite value shows a message instead of axes. Values that are not finite are skipped.

use std::ops::Range;
use std::path::{Path, PathBuf};

use plotters::coord::Shift;
use plotters::prelude::*;

/// Width and height of the picture, in pixels.
const SIZE_PX: (u32, u32) = (900, 640);
/// Colour of the training loss.
const TRAIN: RGBColor = RGBColor(0x1f, 0x77, 0xb4);
/// Colour of validation metrics.
const VALIDATION: RGBColor = RGBColor(0xd6, 0x27, 0x28);

/// Metrics of one step.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct CurvePoint {
    /// Number of updates.
    pub step: u64,
    /// Mean training loss since the last point, in nats.
    pub train_loss: Option<f64>,
    /// Mean validation loss, in nats.
    pub val_loss: Option<f64>,
    /// NDCG@5 on the validation split.
    pub val_ndcg5: Option<f64>,
}

/// Error of drawing training curves.
#[derive(Debug, thiserror::Error)]
pub enum PlotError {
    /// The drawing library failed.
    #[error("the training curve cannot be drawn: {0}")]
    Draw(String),
    /// The file cannot be written.
    #[error("cannot write the training curve to `{path}`")]
    Write {
        /// The file.
        path: PathBuf,
        /// Error of the system.
        #[source]
        source: std::io::Error,
    },
}

/// Training curve of one head.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Series {
    /// Name in the legend if there are several heads.
    pub name: String,
    /// Points in the order of their steps.
    pub points: Vec<CurvePoint>,
}

/// Line of a panel.
struct Line {
    /// Name in the legend; `None` if another line has the same colour.
    name: Option<String>,
    colour: RGBColor,
    width: u32,
    points: Vec<(f64, f64)>,
}

impl Line {
    fn new(
        name: Option<String>,
        (colour, width): (RGBColor, u32),
        points: &[CurvePoint],
        value: fn(&CurvePoint) -> Option<f64>,
    ) -> Self {
        let points = points
            .iter()
            .filter_map(|point| Some((point.step as f64, value(point)?)))
            .filter(|(_, value)| value.is_finite())
            .collect();
        Self { name, colour, width, points }
    }
}

/// Writes the training curves of one or several heads to an SVG file. With several heads, thin lines are training
/// losses.
///
/// # Errors
/// When drawing fails or the file cannot be written.
pub fn write_training_curves(path: &Path, series: &[Series]) -> Result<(), PlotError> {
    let picture = draw(series).map_err(PlotError::Draw)?;
    std::fs::write(path, picture).map_err(|source| PlotError::Write { path: path.to_owned(), source })
}

fn draw(series: &[Series]) -> Result<String, String> {
    let mut picture = String::new();
    {
        let root = SVGBackend::with_string(&mut picture, SIZE_PX).into_drawing_area();
        root.fill(&WHITE).map_err(to_message)?;
        let (mut losses, mut ranking) = (Vec::new(), Vec::new());
        for (number, Series { name, points }) in series.iter().enumerate() {
            let (r, g, b) = Palette99::pick(number).rgb();
            let own = RGBColor(r, g, b);
            let (names, train, validation) = match series {
                [_] => ([Some("training".to_owned()), Some("validation".to_owned())], (TRAIN, 2), (VALIDATION, 2)),
                _ => ([None, Some(name.clone())], (own, 1), (own, 2)),
            };
            let [train_name, validation_name] = names;
            losses.push(Line::new(train_name, train, points, |point| point.train_loss));
            losses.push(Line::new(validation_name.clone(), validation, points, |point| point.val_loss));
            ranking.push(Line::new(validation_name, validation, points, |point| point.val_ndcg5));
        }
        let steps = range(series.iter().flat_map(|one| &one.points).map(|point| point.step as f64), 0.0);
        let (upper, lower) = root.split_vertically(SIZE_PX.1 * 3 / 5);
        draw_panel(&upper, "Cross-entropy (nats)", &steps, &losses, SeriesLabelPosition::UpperRight)?;
        draw_panel(&lower, "NDCG@5", &steps, &ranking, SeriesLabelPosition::LowerRight)?;
        root.present().map_err(to_message)?;
    }
    Ok(picture)
}

/// Draws one panel with axes and legend.
fn draw_panel(
    area: &DrawingArea<SVGBackend<'_>, Shift>,
    title: &str,
    steps: &Range<f64>,
    lines: &[Line],
    legend: SeriesLabelPosition,
) -> Result<(), String> {
    let mut values = lines.iter().flat_map(|line| &line.points).peekable();
    if values.peek().is_none() {
        let font = ("sans-serif", 18).into_font().color(&BLACK);
        let message = format!("{title}: no value yet");
        return area.draw_text(&message, &font, (20, 20)).map_err(to_message);
    }
    let heights = range(values.map(|&(_, value)| value), 0.05);
    let mut chart = ChartBuilder::on(area)
        .caption(title, ("sans-serif", 18))
        .margin(10)
        .margin_right(24)
        .x_label_area_size(42)
        .y_label_area_size(72)
        .build_cartesian_2d(steps.clone(), heights.clone())
        .map_err(to_message)?;
    let digits = decimals(&heights);
    chart
        .configure_mesh()
        .light_line_style(TRANSPARENT)
        .bold_line_style(BLACK.mix(0.12))
        .x_labels(10)
        .y_labels(6)
        .x_label_formatter(&|step| format!("{step:.0}"))
        .y_label_formatter(&|value| format!("{value:.digits$}"))
        .x_desc("step")
        .label_style(("sans-serif", 13))
        .axis_desc_style(("sans-serif", 14))
        .draw()
        .map_err(to_message)?;
    for line in lines.iter().filter(|line| !line.points.is_empty()) {
        let style = line.colour.stroke_width(line.width);
        let drawn = chart.draw_series(LineSeries::new(line.points.iter().copied(), style)).map_err(to_message)?;
        if let Some(name) = &line.name {
            drawn.label(name).legend(move |(x, y)| PathElement::new([(x, y), (x + 18, y)], style));
        }
        // Dots make single points visible.
        if line.points.len() <= 60 {
            let dots = line.points.iter().map(|&point| Circle::new(point, line.width + 1, line.colour.filled()));
            chart.draw_series(dots).map_err(to_message)?;
        }
    }
    chart
        .configure_series_labels()
        .position(legend)
        .background_style(WHITE.mix(0.85))
        .border_style(BLACK.mix(0.3))
        .label_font(("sans-serif", 13))
        .draw()
        .map_err(to_message)
}

/// Returns the range of the values with a margin; never empty, because an axis needs a length.
fn range(values: impl Iterator<Item = f64>, margin: f64) -> Range<f64> {
    let (low, high) =
        values.fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), value| (low.min(value), high.max(value)));
    if low > high {
        return 0.0..1.0;
    }
    // Halved first, because the difference of two large numbers may overflow.
    let half = (high / 2.0 - low / 2.0) * (1.0 + 2.0 * margin);
    let smallest = (low.abs().max(high.abs()) * 1e-6).max(1e-9);
    let half = if half > smallest { half } else { smallest.max(0.5 * f64::from(u8::from(margin == 0.0))) };
    let middle = high / 2.0 + low / 2.0;
    (middle - half).max(f64::MIN / 4.0)..(middle + half).min(f64::MAX / 4.0)
}

/// Returns the number of decimals that distinguish six labels of an axis.
fn decimals(range: &Range<f64>) -> usize {
    let step = (range.end - range.start) / 6.0;
    (0..9_u8).find(|&digits| step * 10_f64.powi(i32::from(digits)) >= 10.0).map_or(9, usize::from)
}

/// Converts an error of the drawing library to text.
fn to_message(error: impl std::fmt::Display) -> String {
    error.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn point(step: u64, value: f64) -> CurvePoint {
        CurvePoint { step, train_loss: Some(value), val_loss: Some(value + 0.1), val_ndcg5: Some(value / 20.0) }
    }

    fn series(points: &[CurvePoint]) -> Series {
        Series { points: points.to_vec(), ..Series::default() }
    }

    #[test]
    fn picture_names_lines_and_axes() {
        let points: Vec<CurvePoint> = (0..200)
            .map(|i| CurvePoint {
                step: i * 50,
                train_loss: Some(4.0 + 7.4 * (-(i as f64) / 60.0).exp() + (i as f64 * 7.0).sin() * 0.1),
                val_loss: (i % 20 == 19).then(|| 4.4 + 7.0 * (-(i as f64) / 60.0).exp()),
                val_ndcg5: (i % 20 == 19).then(|| 0.3 * (1.0 - (-(i as f64) / 60.0).exp())),
            })
            .collect();
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("curve.svg");
        write_training_curves(&path, &[Series { name: "unused".to_owned(), points: points.clone() }]).unwrap();
        let svg = std::fs::read_to_string(&path).unwrap();
        for word in ["training", "validation", "Cross-entropy (nats)", "NDCG@5", "step", "</svg>"] {
            assert!(svg.contains(word), "{word}");
        }
        assert!(!svg.contains("unused"));
        let several: Vec<Series> =
            ["one", "two"].map(|name| Series { name: name.to_owned(), points: points.clone() }).into();
        let svg = draw(&several).unwrap();
        assert!(svg.contains("one") && svg.contains("two") && !svg.contains("validation"));
        if let Ok(keep) = std::env::var("KEEP_CURVE") {
            std::fs::copy(&path, keep).unwrap();
        }
    }

    #[test]
    fn extreme_values_do_not_panic() {
        let odd = [0.0, -1.0, 1e-300, 1e300, f64::MAX, f64::MIN, f64::NAN, f64::INFINITY];
        for first in odd {
            assert!(draw(&[series(&[point(0, first)])]).unwrap().ends_with("</svg>\n"));
            for second in odd {
                draw(&[series(&[point(0, first), point(u64::MAX, second)])]).unwrap();
                draw(&[series(&[point(5, first), point(5, second)])]).unwrap();
            }
        }
    }

    #[test]
    fn empty_panels_show_a_message() {
        let svg = draw(&[]).unwrap();
        assert_eq!(svg.matches("no value yet").count(), 2);
        let svg = draw(&[series(&[CurvePoint::default()])]).unwrap();
        assert_eq!(svg.matches("no value yet").count(), 2);
    }

    #[test]
    fn write_error_names_the_file() {
        let error = write_training_curves(Path::new("/nowhere/at/all.svg"), &[]).unwrap_err();
        assert!(error.to_string().contains("/nowhere/at/all.svg"));
    }
}
