//! Plots as SVG text: lines (over time, distribution functions) and bars. Not a plotting library.
//! Invariant: any numbers give a well-formed picture, none of them a panic.

use std::fmt::Write as _;

const WIDTH: f64 = 640.0;
const HEIGHT: f64 = 260.0;
const LEFT: f64 = 62.0;
const RIGHT: f64 = 12.0;
const TOP: f64 = 14.0;
const BOTTOM: f64 = 40.0;
const COLOURS: [&str; 5] = ["#2563eb", "#dc2626", "#059669", "#9333ea", "#d97706"];

/// Named points.
#[derive(Clone, Debug, PartialEq)]
pub struct Series {
    /// For the legend.
    pub name: String,
    /// (x, y)
    pub points: Vec<(f64, f64)>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Lines,
    Bars,
}

/// One picture.
#[derive(Clone, Debug, PartialEq)]
pub struct Plot {
    title: String,
    x: String,
    y: String,
    kind: Kind,
    series: Vec<Series>,
}

impl Plot {
    /// Lines through points.
    pub fn lines(title: &str, x: &str, y: &str) -> Self {
        Self::new(Kind::Lines, title, x, y)
    }

    /// Bars that end at x.
    pub fn bars(title: &str, x: &str, y: &str) -> Self {
        Self::new(Kind::Bars, title, x, y)
    }

    fn new(kind: Kind, title: &str, x: &str, y: &str) -> Self {
        Self { title: title.into(), x: x.into(), y: y.into(), kind, series: Vec::new() }
    }

    /// Adds a series; points that are no numbers are left out.
    #[must_use]
    pub fn with(mut self, name: &str, points: Vec<(f64, f64)>) -> Self {
        let points = points.into_iter().filter(|(x, y)| x.is_finite() && y.is_finite()).collect();
        self.series.push(Series { name: name.to_owned(), points });
        self
    }

    pub(super) fn title(&self) -> &str {
        &self.title
    }

    /// The picture.
    pub(super) fn svg(&self) -> String {
        let points = || self.series.iter().flat_map(|series| series.points.iter());
        let max = |f: fn(&(f64, f64)) -> f64| points().map(f).fold(0.0_f64, f64::max);
        let (x_max, y_max) = (nice(max(|p| p.0)), nice(max(|p| p.1)));
        let x_at = |x: f64| LEFT + x / x_max * (WIDTH - LEFT - RIGHT);
        let y_at = |y: f64| HEIGHT - BOTTOM - y / y_max * (HEIGHT - TOP - BOTTOM);
        let mut svg = format!(
            "<svg viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\" aria-label=\"{}\">",
            super::html::escape(&self.title)
        );
        for step in 0..=4 {
            let part = f64::from(step) / 4.0;
            let (x, y) = (x_at(x_max * part), y_at(y_max * part));
            let _ = write!(
                svg,
                "<line class=\"grid\" x1=\"{LEFT}\" x2=\"{:.1}\" y1=\"{y:.1}\" y2=\"{y:.1}\"/>\
                 <text class=\"y\" x=\"{:.1}\" y=\"{:.1}\">{}</text>\
                 <text class=\"x\" x=\"{x:.1}\" y=\"{:.1}\">{}</text>",
                WIDTH - RIGHT,
                LEFT - 6.0,
                y + 4.0,
                short(y_max * part),
                HEIGHT - BOTTOM + 16.0,
                short(x_max * part),
            );
        }
        for (series, colour) in self.series.iter().zip(COLOURS.iter().cycle()) {
            match self.kind {
                Kind::Lines => line(&mut svg, series, colour, &x_at, &y_at),
                Kind::Bars => bars(&mut svg, series, colour, &x_at, &y_at),
            }
        }
        let _ = write!(
            svg,
            "<text class=\"x\" x=\"{:.1}\" y=\"{:.1}\">{}</text><text class=\"label\" x=\"4\" y=\"11\">{}</text></svg>",
            LEFT + (WIDTH - LEFT - RIGHT) / 2.0,
            HEIGHT - 6.0,
            super::html::escape(&self.x),
            super::html::escape(&self.y),
        );
        svg
    }

    /// Names and colours.
    pub(super) fn legend(&self) -> String {
        let mut legend = String::new();
        for (series, colour) in self.series.iter().zip(COLOURS.iter().cycle()) {
            let name = super::html::escape(&series.name);
            let _ = write!(legend, "<span style=\"color:{colour}\">■</span> {name} ");
        }
        legend
    }
}

fn line(
    svg: &mut String,
    series: &Series,
    colour: &str,
    x_at: &dyn Fn(f64) -> f64,
    y_at: &dyn Fn(f64) -> f64,
) {
    let mut path = String::new();
    for (x, y) in &series.points {
        let _ = write!(path, "{:.1},{:.1} ", x_at(*x), y_at(*y));
    }
    let _ = write!(
        svg,
        "<polyline fill=\"none\" stroke=\"{colour}\" stroke-width=\"1.6\" points=\"{path}\"/>"
    );
}

fn bars(
    svg: &mut String,
    series: &Series,
    colour: &str,
    x_at: &dyn Fn(f64) -> f64,
    y_at: &dyn Fn(f64) -> f64,
) {
    let mut from = 0.0;
    for (x, y) in &series.points {
        let (left, right, top) = (x_at(from), x_at(*x), y_at(*y));
        from = *x;
        let _ = write!(
            svg,
            "<rect fill=\"{colour}\" x=\"{left:.1}\" y=\"{top:.1}\" width=\"{:.1}\" height=\"{:.1}\"/>",
            (right - left - 0.5).max(0.5),
            (y_at(0.0) - top).max(0.0),
        );
    }
}

/// The next number of the kind 1, 2, 5 times a power of ten.
fn nice(max: f64) -> f64 {
    if max.is_nan() || max <= 0.0 {
        return 1.0;
    }
    let power = 10_f64.powf(max.log10().floor());
    [1.0, 2.0, 2.5, 5.0, 10.0].into_iter().map(|m| m * power).find(|n| *n >= max).unwrap_or(max)
}

fn short(value: f64) -> String {
    let (value, unit) = match value.abs() {
        v if v >= 1e9 => (value / 1e9, "G"),
        v if v >= 1e6 => (value / 1e6, "M"),
        v if v >= 1e4 => (value / 1e3, "k"),
        _ => (value, ""),
    };
    let digits = format!("{value:.3}");
    let digits = digits.trim_end_matches('0').trim_end_matches('.');
    format!("{digits}{unit}")
}
