//! Plots as SVG, drawn by hand: lines over time or over percentiles, with axes, bands behind them and bounds across them.
//!
//! In: points; out: one `<svg>` that takes its colours from the page's style (`c0` to `c5` for lines, `g0` to `g2` for
//! bands, `bound`), and names nothing outside the page. A point without a value interrupts its line.

use std::fmt::Write as _;

const WIDTH: f64 = 960.0;
const HEIGHT: f64 = 300.0;
const LEFT: f64 = 74.0;
const RIGHT: f64 = 16.0;
const TOP: f64 = 14.0;
const BOTTOM: f64 = 46.0;

/// How an axis maps values to places.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scale {
    /// Equal steps are equally far apart.
    Linear,
    /// Equal factors are; what is not positive has no place.
    Log,
    /// Quantiles: each further nine is as far as the one before.
    Nines,
}

impl Scale {
    fn forward(self, value: f64) -> Option<f64> {
        match self {
            Self::Linear => Some(value),
            Self::Log => (value > 0.0).then(|| value.log10()),
            Self::Nines => (value < 1.0).then(|| -(1.0 - value).log10()),
        }
        .filter(|place| place.is_finite())
    }
}

/// An axis.
#[derive(Clone, Debug)]
pub struct Axis {
    /// What it shows, with its unit.
    pub label: &'static str,
    /// How.
    pub scale: Scale,
    /// The least there is to show.
    pub from: f64,
    /// The most.
    pub to: f64,
}

impl Axis {
    fn place(&self, value: f64) -> Option<f64> {
        let (from, to) = (self.scale.forward(self.from)?, self.scale.forward(self.to)?);
        let place = (self.scale.forward(value)? - from) / (to - from).max(f64::MIN_POSITIVE);
        Some(place.clamp(0.0, 1.0))
    }

    /// Values with a mark and their text.
    fn ticks(&self) -> Vec<(f64, String)> {
        match self.scale {
            Scale::Linear => {
                let step = nice_step((self.to - self.from) / 6.0);
                let first = (self.from / step).ceil() as i64;
                (first..)
                    .map(|n| n as f64 * step)
                    .take_while(|v| *v <= self.to + step * 1e-9)
                    .map(|v| (v, text(v)))
                    .collect()
            }
            Scale::Log => {
                let decades = self.from.log10().floor() as i32..=self.to.log10().ceil() as i32;
                let all = decades.map(|decade| 10f64.powi(decade));
                all.filter(|v| (self.from..=self.to).contains(v)).map(|v| (v, text(v))).collect()
            }
            Scale::Nines => {
                let quantiles = (0..).map(|nines| 1.0 - 10f64.powi(-nines));
                let shown = quantiles.take_while(|quantile| *quantile <= self.to + 1e-12);
                shown.map(|quantile| (quantile, format!("{} %", text(quantile * 100.0)))).collect()
            }
        }
    }
}

/// 1, 2 or 5 times a power of ten, at least `rough`.
fn nice_step(rough: f64) -> f64 {
    let power = 10f64.powf(rough.max(1e-9).log10().floor());
    [1.0, 2.0, 5.0, 10.0]
        .iter()
        .map(|factor| factor * power)
        .find(|step| *step >= rough * 0.999)
        .unwrap_or(power * 10.0)
}

/// A number with no more digits than it needs, and its thousands apart.
pub fn text(value: f64) -> String {
    let digits = match value.abs() {
        0.0 => 0,
        v if v >= 100.0 || (v - v.round()).abs() < 1e-9 => 0,
        v if v >= 10.0 => 1,
        v if v >= 1.0 => 2,
        _ => 3,
    };
    // Quantiles near a hundred need theirs.
    let digits = if (99.0..100.0).contains(&value) { 4 } else { digits };
    let plain = format!("{value:.digits$}");
    let plain = if plain.contains('.') { plain.trim_end_matches('0').trim_end_matches('.') } else { &plain };
    let (whole, fraction) = plain.split_once('.').map_or((plain, ""), |(whole, fraction)| (whole, fraction));
    let (sign, whole) = whole.strip_prefix('-').map_or(("", whole), |whole| ("-", whole));
    let mut grouped = String::from(sign);
    for (index, digit) in whole.chars().enumerate() {
        if index > 0 && (whole.len() - index) % 3 == 0 {
            grouped.push(',');
        }
        grouped.push(digit);
    }
    if fraction.is_empty() { grouped } else { format!("{grouped}.{fraction}") }
}

/// A line.
#[derive(Clone, Debug)]
pub struct Line {
    /// In the legend.
    pub name: String,
    /// Which of the page's colours.
    pub colour: usize,
    /// A point without a value interrupts the line.
    pub points: Vec<(f64, Option<f64>)>,
}

/// A stretch of the x axis with a colour behind it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Band {
    /// Where it begins.
    pub from: f64,
    /// Where it ends.
    pub to: f64,
    /// The gear.
    pub gear: usize,
}

/// A plot.
#[derive(Clone, Debug)]
pub struct Plot {
    /// To the right.
    pub x: Axis,
    /// Upwards.
    pub y: Axis,
    /// What is shown.
    pub lines: Vec<Line>,
    /// A value that must not be passed, and its text.
    pub bound: Option<(f64, String)>,
    /// Behind everything.
    pub bands: Vec<Band>,
}

impl Plot {
    /// The `<svg>`.
    pub fn svg(&self) -> String {
        let mut out = String::new();
        // Writing to a String cannot fail.
        let _ = self.draw(&mut out);
        out
    }

    fn x(&self, value: f64) -> Option<f64> {
        Some(LEFT + self.x.place(value)? * (WIDTH - LEFT - RIGHT))
    }

    fn y(&self, value: f64) -> Option<f64> {
        Some(HEIGHT - BOTTOM - self.y.place(value)? * (HEIGHT - TOP - BOTTOM))
    }

    fn draw(&self, out: &mut String) -> std::fmt::Result {
        write!(out, "<svg viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\">")?;
        let (right, bottom) = (WIDTH - RIGHT, HEIGHT - BOTTOM);
        for band in &self.bands {
            let (Some(from), Some(to)) = (self.x(band.from), self.x(band.to)) else { continue };
            let width = to - from;
            let height = bottom - TOP;
            let gear = band.gear;
            write!(
                out,
                "<rect class=\"g{gear}\" x=\"{from:.1}\" y=\"{TOP}\" width=\"{width:.1}\" height=\"{height}\"/>"
            )?;
        }
        for (value, text) in self.y.ticks() {
            let Some(y) = self.y(value) else { continue };
            write!(out, "<path class=\"grid\" d=\"M{LEFT} {y:.1}H{right}\"/>")?;
            write!(out, "<text class=\"y\" x=\"{}\" y=\"{:.1}\">{text}</text>", LEFT - 8.0, y + 4.0)?;
        }
        for (value, text) in self.x.ticks() {
            let Some(x) = self.x(value) else { continue };
            write!(out, "<path class=\"grid\" d=\"M{x:.1} {TOP}V{bottom}\"/>")?;
            write!(out, "<text class=\"x\" x=\"{x:.1}\" y=\"{}\">{text}</text>", bottom + 17.0)?;
        }
        let (middle_x, middle_y) = ((LEFT + right) / 2.0, (TOP + bottom) / 2.0);
        write!(out, "<text class=\"x\" x=\"{middle_x}\" y=\"{}\">{}</text>", HEIGHT - 8.0, self.x.label)?;
        write!(out, "<text class=\"x\" transform=\"translate(14 {middle_y}) rotate(-90)\">{}</text>", self.y.label)?;
        for (index, line) in self.lines.iter().enumerate() {
            // The first is broad, so that another on top of it does not hide it.
            self.draw_line(out, line, if index == 0 { " first" } else { "" })?;
        }
        if let Some((value, text)) = &self.bound
            && let Some(y) = self.y(*value)
        {
            write!(out, "<path class=\"bound\" d=\"M{LEFT} {y:.1}H{right}\"/>")?;
            write!(out, "<text class=\"bound\" x=\"{}\" y=\"{:.1}\">{text}</text>", right - 6.0, y - 5.0)?;
        }
        write!(out, "<path class=\"axis\" d=\"M{LEFT} {TOP}V{bottom}H{right}\"/></svg>")
    }

    fn draw_line(&self, out: &mut String, line: &Line, class: &str) -> std::fmt::Result {
        let places: Vec<Option<(f64, f64)>> =
            line.points.iter().map(|(x, y)| Some((self.x(*x)?, self.y((*y)?)?))).collect();
        let mut path = String::new();
        for (index, place) in places.iter().enumerate() {
            let Some((x, y)) = place else { continue };
            let is_begun = index > 0 && places[index - 1].is_some();
            write!(path, "{}{x:.1} {y:.1}", if is_begun { 'L' } else { 'M' })?;
        }
        let colour = line.colour;
        write!(out, "<path class=\"line c{colour}{class}\" d=\"{path}\"/>")?;
        for ((x, y), place) in line.points.iter().zip(&places) {
            let (Some(y), Some((at_x, at_y))) = (y, place) else { continue };
            let x = match self.x.scale {
                Scale::Nines => format!("{:.4} %", x * 100.0),
                _ => format!("{} s", text(*x)),
            };
            let (name, y) = (escape(&line.name), text(*y));
            write!(
                out,
                "<circle class=\"dot c{colour}\" cx=\"{at_x:.1}\" cy=\"{at_y:.1}\" r=\"2\"><title>{name}, {x}: {y}</title></circle>"
            )?;
        }
        Ok(())
    }

    /// The names of the lines with their colours.
    pub fn legend(&self) -> String {
        let entry = |line: &Line| format!("<li><i class=\"c{}\"></i>{}</li>", line.colour, escape(&line.name));
        format!("<ul class=\"legend\">{}</ul>", self.lines.iter().map(entry).collect::<String>())
    }
}

/// Text in HTML.
pub fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plot() -> Plot {
        Plot {
            x: Axis { label: "seconds", scale: Scale::Linear, from: 0.0, to: 60.0 },
            y: Axis { label: "messages/s", scale: Scale::Log, from: 1.0, to: 10_000.0 },
            lines: vec![Line {
                name: "a < b".to_owned(),
                colour: 3,
                points: vec![(0.0, Some(1.0)), (30.0, None), (40.0, Some(0.0)), (60.0, Some(10_000.0))],
            }],
            bound: Some((100.0, "cap".to_owned())),
            bands: vec![Band { from: 15.0, to: 30.0, gear: 2 }],
        }
    }

    #[test]
    fn points_are_where_the_axes_say() {
        let svg = plot().svg();
        // The lower left corner, and the upper right one; what has no value or no place on the axis is left out.
        assert!(svg.contains("d=\"M74.0 254.0M944.0 14.0\""), "{svg}");
        assert_eq!(svg.matches("<circle").count(), 2);
        assert!(svg.contains("<rect class=\"g2\" x=\"291.5\""), "{svg}");
        assert!(svg.contains("M74 134.0H944\"/><text class=\"bound\""), "half way up four decades: {svg}");
        assert!(svg.contains("a &lt; b, 0 s: 1"), "{svg}");
    }

    #[test]
    fn ticks_are_round_numbers() {
        let ticks = |scale, from, to| -> Vec<String> {
            Axis { label: "", scale, from, to }.ticks().into_iter().map(|(_, text)| text).collect()
        };
        assert_eq!(ticks(Scale::Linear, 0.0, 60.0), ["0", "10", "20", "30", "40", "50", "60"]);
        assert_eq!(ticks(Scale::Linear, 0.0, 16_384.0), ["0", "5,000", "10,000", "15,000"]);
        assert_eq!(ticks(Scale::Linear, 0.0, 0.9), ["0", "0.2", "0.4", "0.6", "0.8"]);
        assert_eq!(ticks(Scale::Log, 0.5, 6_000.0), ["1", "10", "100", "1,000"]);
        assert_eq!(ticks(Scale::Nines, 0.0, 0.9999), ["0 %", "90 %", "99 %", "99.9 %", "99.99 %"]);
    }

    #[test]
    fn numbers_have_the_digits_they_need() {
        for (value, expected) in [(0.0, "0"), (1_234_567.8, "1,234,568"), (12.34, "12.3"), (1.005, "1"), (0.25, "0.25")]
        {
            assert_eq!(text(value), expected);
        }
        assert_eq!(text(-1_500.0), "-1,500");
    }
}
