//! Line charts as SVG: inside a page, and as a panel of a file.

use std::fmt::Write as _;

use super::escape;
use super::scale::{number, ticks};

/// Width of a chart, in its own units.
pub(super) const WIDTH: f64 = 560.0;
/// Height of the plot with its axes.
const HEIGHT: f64 = 260.0;
/// Space around the plot. The text of a narrow screen, which is larger, fits as well.
const LEFT: f64 = 64.0;
const RIGHT: f64 = 14.0;
const TOP: f64 = 14.0;
const BOTTOM: f64 = 50.0;
/// Largest finite value that is drawn, so that a difference of two values is finite as well.
const LARGEST: f64 = 1e300;
/// A line with more points is drawn by the lowest and highest point of each of this many columns.
const COLUMNS: usize = 560;
/// A line with at most this many points has a dot at each.
const DOTTED_POINTS: usize = 30;
/// A limit that is this many times as high as every point is named only, since it would press the lines flat.
const FAR: f64 = 8.0;
/// Height of the title and of a line of the legend in a file.
const ROW: f64 = 24.0;

/// A line of a chart.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Line {
    /// Name in the legend.
    pub name: String,
    /// Number of the colour, from 1 to 6.
    pub series: usize,
    /// True for a broken line.
    pub dashed: bool,
    /// Points from left to right. Those that are not finite are left out.
    pub points: Vec<(f64, f64)>,
    /// Intervals around the points: position, low and high end.
    pub band: Vec<(f64, f64, f64)>,
    /// Point that is marked as the best.
    pub best: Option<(f64, f64)>,
}

/// A horizontal line with a name.
#[derive(Debug, Clone, PartialEq)]
pub struct Limit {
    /// Name in the legend.
    pub name: &'static str,
    /// Height.
    pub value: f64,
}

/// A chart of several lines over training steps.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Chart {
    /// Title.
    pub title: String,
    /// The lines.
    pub lines: Vec<Line>,
    /// Horizontal lines.
    pub limits: Vec<Limit>,
    /// True if the vertical axis starts at 0.
    pub from_zero: bool,
    /// Part of the plane to show; the extent of the chart itself if absent.
    extent: Option<Extent>,
}

/// A part of the plane.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Extent {
    x: (f64, f64),
    y: (f64, f64),
}

impl Extent {
    fn include(found: Option<Self>, (x, y): (f64, f64)) -> Self {
        let merge = |(low, high): (f64, f64), value: f64| (low.min(value), high.max(value));
        found.map_or(Self { x: (x, x), y: (y, y) }, |one| Self { x: merge(one.x, x), y: merge(one.y, y) })
    }
}

/// Positions of points in the picture.
struct Frame {
    x: (f64, f64),
    y: (f64, f64),
}

impl Frame {
    /// Leaves space around an extent. An axis never has length 0.
    fn new(extent: Extent, from_zero: bool) -> Self {
        let (mut low, mut high) = (if from_zero { extent.y.0.min(0.0) } else { extent.y.0 }, extent.y.1);
        // A flat line stands on the axis, as for scores that are all zero, or in the middle.
        if high - low <= 1e-12 * high.abs() {
            (low, high) = match (from_zero, high == 0.0) {
                (true, _) | (_, true) => (low, low + if high == 0.0 { 1.0 } else { high.abs() }),
                (false, false) => (low - 0.5 * low.abs(), high + 0.5 * high.abs()),
            };
        }
        let space = 0.06 * (high - low);
        let below = if from_zero && low == 0.0 { 0.0 } else { space };
        let (left, right) = extent.x;
        let right = if right > left { right } else { left + 1.0 };
        Self { x: (left, right), y: (low - below, high + space) }
    }

    fn x(&self, value: f64) -> f64 {
        LEFT + (value - self.x.0) / (self.x.1 - self.x.0) * (WIDTH - LEFT - RIGHT)
    }

    fn y(&self, value: f64) -> f64 {
        HEIGHT - BOTTOM - (value - self.y.0) / (self.y.1 - self.y.0) * (HEIGHT - TOP - BOTTOM)
    }

    /// Returns the data of a path through points.
    fn path(&self, points: &[(f64, f64)]) -> String {
        let mut path = String::new();
        for (number, (x, y)) in points.iter().enumerate() {
            write!(path, "{}{:.1} {:.1}", if number == 0 { 'M' } else { 'L' }, self.x(*x), self.y(*y)).ok();
        }
        path
    }
}

fn is_drawn((x, y): &(f64, f64)) -> bool {
    x.abs() <= LARGEST && y.abs() <= LARGEST
}

/// Keeps the lowest and the highest point of each column of a line with many points.
fn thin_out(points: Vec<(f64, f64)>) -> Vec<(f64, f64)> {
    if points.len() <= 2 * COLUMNS {
        return points;
    }
    let size = points.len().div_ceil(COLUMNS);
    let mut kept = Vec::with_capacity(2 * COLUMNS);
    for column in points.chunks(size) {
        let place = |wanted: fn(f64, f64) -> bool| {
            (1..column.len()).fold(0, |best, at| if wanted(column[at].1, column[best].1) { at } else { best })
        };
        let (low, high) = (place(|one, other| one < other), place(|one, other| one > other));
        kept.push(column[low.min(high)]);
        if low != high {
            kept.push(column[low.max(high)]);
        }
    }
    kept
}

impl Line {
    fn drawn_points(&self) -> Vec<(f64, f64)> {
        self.points.iter().filter(|point| is_drawn(point)).copied().collect()
    }

    fn drawn_band(&self) -> Vec<(f64, f64, f64)> {
        self.band.iter().filter(|(x, low, high)| is_drawn(&(*x, *low)) && is_drawn(&(*x, *high))).copied().collect()
    }

    /// Returns the text of the legend.
    fn legend(&self) -> String {
        let points = self.drawn_points();
        let best = self.best.filter(is_drawn);
        match best {
            Some((_, value)) if value == 0.0 && points.iter().all(|(_, value)| *value == 0.0) => {
                format!("{}: 0 at every step", self.name)
            }
            Some((step, value)) => format!("{}, best {} at step {}", self.name, number(value), number(step)),
            None => self.name.clone(),
        }
    }
}

/// Gives charts of the same kind the same axes, so that they can be compared.
pub(super) fn share_axes<'a>(charts: impl Iterator<Item = &'a mut Chart>) {
    let charts: Vec<&mut Chart> = charts.collect();
    let corners =
        charts.iter().filter_map(|chart| chart.own_extent()).flat_map(|one| [(one.x.0, one.y.0), (one.x.1, one.y.1)]);
    let shared = corners.fold(None, |found, corner| Some(Extent::include(found, corner)));
    for chart in charts {
        chart.extent = shared;
    }
}

impl Chart {
    /// Creates a chart of lines, without limits.
    pub fn new(title: String, lines: Vec<Line>) -> Self {
        Self { title, lines, ..Self::default() }
    }

    /// Returns the extent of the points, and of the limits that are not far from them.
    fn own_extent(&self) -> Option<Extent> {
        let merge = |found, point| Some(Extent::include(found, point));
        let mut extent = None;
        for line in &self.lines {
            extent = line.drawn_points().into_iter().fold(extent, merge);
            let band = line.drawn_band().into_iter().flat_map(|(x, low, high)| [(x, low), (x, high)]);
            extent = band.fold(extent, merge);
        }
        let (points, mut extent) = (extent?, extent?);
        for limit in self.limits.iter().filter(|limit| limit.value.abs() <= LARGEST) {
            let is_near = points.y.1 <= 0.0 || limit.value <= FAR * points.y.1;
            if is_near {
                extent = Extent::include(Some(extent), (points.x.0, limit.value));
            }
        }
        Some(extent)
    }

    fn frame(&self) -> Option<Frame> {
        let own = self.own_extent()?;
        Some(Frame::new(self.extent.unwrap_or(own), self.from_zero))
    }

    /// Describes the chart for readers who do not see it.
    fn summary(&self) -> String {
        let line = |line: &Line| {
            let points = line.drawn_points();
            let ((_, first), (_, last)) = (points.first()?, points.last()?);
            Some(format!("{}: {} to {}", line.legend(), number(*first), number(*last)))
        };
        let lines: Vec<String> = self.lines.iter().filter_map(line).collect();
        if lines.is_empty() {
            format!("{}. No points yet", self.title)
        } else {
            format!("{}. {}", self.title, lines.join("; "))
        }
    }

    /// Draws axes and lines at the origin.
    fn plot(&self) -> String {
        let mut svg = String::new();
        let Some(frame) = self.frame() else {
            let (x, y) = (WIDTH / 2.0, HEIGHT / 2.0);
            write!(svg, "<text x=\"{x}\" y=\"{y}\" text-anchor=\"middle\">No points yet</text>").ok();
            return svg;
        };
        let (left, right, bottom) = (LEFT, WIDTH - RIGHT, HEIGHT - BOTTOM);
        let line = |class: &str, y: f64| {
            format!("<line class=\"{class}\" x1=\"{left}\" x2=\"{right}\" y1=\"{y:.1}\" y2=\"{y:.1}\"/>")
        };
        for at in ticks(frame.y.0, frame.y.1, 5) {
            let (y, below) = (frame.y(at), frame.y(at) + 5.0);
            svg.push_str(&line("axis", y));
            write!(svg, "<text x=\"{}\" y=\"{below:.1}\" text-anchor=\"end\">{}</text>", left - 7.0, number(at)).ok();
        }
        for at in ticks(frame.x.0, frame.x.1, 5) {
            let x = frame.x(at);
            write!(svg, "<text x=\"{x:.1}\" y=\"{}\" text-anchor=\"middle\">{}</text>", bottom + 18.0, number(at)).ok();
        }
        write!(svg, "<text x=\"{right}\" y=\"{}\" text-anchor=\"end\">step</text>", HEIGHT - 8.0).ok();
        for limit in self.limits.iter().filter(|limit| limit.value <= frame.y.1 && limit.value >= frame.y.0) {
            svg.push_str(&line("limit", frame.y(limit.value)));
        }
        self.lines.iter().for_each(|line| draw_line(&mut svg, &frame, line));
        svg
    }

    /// Returns the text of each limit in the legend.
    fn limit_legend(&self, limit: &Limit) -> String {
        let is_outside = self.frame().is_some_and(|frame| limit.value > frame.y.1);
        format!("{} {}{}", limit.name, number(limit.value), if is_outside { ", above the chart" } else { "" })
    }

    /// Returns the marks and texts of the legend.
    fn legend(&self) -> Vec<(String, String)> {
        let mark =
            |class: &str, dash: &str| format!("<line class=\"{class}\" x1=\"0\" x2=\"22\" y1=\"5\" y2=\"5\"{dash}/>");
        let mut rows = Vec::new();
        for line in self.lines.iter().filter(|line| !line.drawn_points().is_empty()) {
            let dash = if line.dashed { " stroke-dasharray=\"3 3\"" } else { "" };
            rows.push((mark(&format!("line series-{}", line.series), dash), line.legend()));
            if !line.drawn_band().is_empty() {
                let band = format!("<rect class=\"band series-{}\" width=\"22\" height=\"10\"/>", line.series);
                rows.push((band, "95 % confidence interval".to_owned()));
            }
        }
        if !rows.is_empty() {
            rows.extend(self.limits.iter().map(|limit| (mark("limit", ""), self.limit_legend(limit))));
        }
        rows
    }

    /// Returns the chart as an element of a page, with its legend below it.
    pub fn figure(&self) -> String {
        let mut html = format!(
            "<figure><figcaption>{}</figcaption><svg viewBox=\"0 0 {WIDTH} {HEIGHT}\" class=\"chart\" role=\"img\" aria-label=\"{}\">{}</svg><ul class=\"legend\">",
            escape(&self.title),
            escape(&self.summary()),
            self.plot()
        );
        for (mark, text) in self.legend() {
            write!(html, "<li><svg width=\"22\" height=\"10\" aria-hidden=\"true\">{mark}</svg>{}</li>", escape(&text))
                .ok();
        }
        html.push_str("</ul></figure>");
        html
    }

    /// Returns the chart as a panel of a file that starts at the height `top`, and the height at which it ends.
    pub(super) fn panel(&self, top: f64) -> (String, f64) {
        let mut svg = format!(
            "<g transform=\"translate(0 {top})\" role=\"img\" aria-label=\"{}\">\n<text class=\"title\" x=\"14\" y=\"20\">{}</text>\n<g transform=\"translate(0 {ROW})\">{}</g>\n",
            escape(&self.summary()),
            escape(&self.title),
            self.plot()
        );
        let mut y = ROW + HEIGHT;
        for (mark, text) in self.legend() {
            writeln!(
                svg,
                "<g transform=\"translate({LEFT} {y})\">{mark}<text x=\"30\" y=\"10\">{}</text></g>",
                escape(&text)
            )
            .ok();
            y += ROW;
        }
        svg.push_str("</g>\n");
        (svg, top + y)
    }
}

fn draw_line(svg: &mut String, frame: &Frame, line: &Line) {
    let series = line.series;
    let band = line.drawn_band();
    if !band.is_empty() {
        let lows = band.iter().rev().map(|(x, low, _)| (*x, *low));
        let outline: Vec<(f64, f64)> = band.iter().map(|(x, _, high)| (*x, *high)).chain(lows).collect();
        write!(svg, "<path class=\"band series-{series}\" d=\"{}Z\"/>", frame.path(&outline)).ok();
    }
    let points = line.drawn_points();
    let dots = if points.len() <= DOTTED_POINTS { points.clone() } else { Vec::new() };
    let points = thin_out(points);
    if !points.is_empty() {
        let dash = if line.dashed { " stroke-dasharray=\"3 3\"" } else { "" };
        write!(svg, "<path class=\"line series-{series}\" d=\"{}\"{dash}/>", frame.path(&points)).ok();
    }
    let mut circle = |class: &str, (x, y): (f64, f64), radius: f64| {
        let (x, y) = (frame.x(x), frame.y(y));
        write!(svg, "<circle class=\"{class} series-{series}\" cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"{radius}\"/>").ok();
    };
    for point in dots {
        circle("dot", point, 2.5);
    }
    if let Some(best) = line.best.filter(is_drawn) {
        circle("best", best, 5.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chart(points: &[(f64, f64)]) -> Chart {
        let best = points.last().copied();
        let line = Line { name: "NDCG@5".to_owned(), series: 1, points: points.to_vec(), best, ..Line::default() };
        Chart { title: "<score>".to_owned(), lines: vec![line], from_zero: true, ..Chart::default() }
    }

    #[test]
    fn figure_names_lines_limits_and_the_best_point() {
        let mut chart = chart(&[(1.0, 0.1), (20.0, 0.5)]);
        chart.limits = vec![Limit { name: "ceiling", value: 0.8 }, Limit { name: "chance", value: 0.01 }];
        chart.lines[0].band = vec![(1.0, 0.05, 0.2), (20.0, 0.4, 0.6)];
        let html = chart.figure();
        for part in [
            "&lt;score&gt;",
            "NDCG@5, best 0.5 at step 20",
            "ceiling 0.8",
            "chance 0.01",
            "class=\"band series-1\"",
            "95 %",
        ] {
            assert!(html.contains(part), "{part}: {html}");
        }
        assert_eq!((html.matches("class=\"best").count(), html.matches("class=\"limit\"").count()), (1, 4));
    }

    #[test]
    fn scores_that_are_all_zero_stand_on_the_axis() {
        let mut chart = chart(&[(1.0, 0.0), (2.0, 0.0)]);
        chart.limits = vec![Limit { name: "ceiling", value: 0.8 }];
        let html = chart.figure();
        assert!(html.contains("NDCG@5: 0 at every step") && !html.contains("NaN"), "{html}");
        let bottom = HEIGHT - BOTTOM;
        assert!(html.contains(&format!("L{:.1} {bottom:.1}\"", WIDTH - RIGHT)), "{html}");
    }

    #[test]
    fn far_limit_is_named_and_not_drawn() {
        let mut chart = chart(&[(1.0, 0.001), (2.0, 0.002)]);
        chart.limits = vec![Limit { name: "ceiling", value: 0.8 }];
        let html = chart.figure();
        assert!(html.contains("ceiling 0.8, above the chart"), "{html}");
        assert_eq!(html.matches("class=\"limit\"").count(), 1);
    }

    #[test]
    fn chart_without_points_says_so() {
        for points in [&[][..], &[(1.0, f64::NAN), (f64::INFINITY, 1.0), (2.0, f64::MAX)]] {
            let html = chart(points).figure();
            assert!(html.contains("No points yet") && !html.contains("<li>"), "{html}");
        }
    }

    #[test]
    fn extreme_points_are_drawn_within_the_frame() {
        let odd = [0.0, -1.0, 1e-300, 1e300, -1e300, f64::MIN_POSITIVE];
        for first in odd {
            for second in odd {
                for points in [vec![(0.0, first), (1e18, second)], vec![(5.0, first), (5.0, second)]] {
                    let html = chart(&points).figure();
                    assert!(!html.contains("NaN") && !html.contains("inf"), "{first} {second}: {html}");
                }
            }
        }
    }

    #[test]
    fn long_line_keeps_its_extremes() {
        let mut points: Vec<(f64, f64)> = (0..20_000).map(|x| (f64::from(x), 1.0)).collect();
        (points[777].1, points[12_345].1) = (9.0, -9.0);
        let kept = thin_out(points.clone());
        assert!(kept.len() <= 2 * COLUMNS && kept.is_sorted_by(|one, other| one.0 < other.0));
        assert!(kept.contains(&points[777]) && kept.contains(&points[12_345]));
    }

    #[test]
    fn charts_that_are_compared_share_their_axes() {
        let mut charts = [chart(&[(0.0, 0.1)]), chart(&[(50.0, 0.9)])];
        share_axes(charts.iter_mut());
        assert_eq!(charts[0].extent, Some(Extent { x: (0.0, 50.0), y: (0.1, 0.9) }));
        assert_eq!(charts[0].extent, charts[1].extent);
    }
}
