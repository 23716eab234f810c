//! Pictures of the results: bars with the interval of their blocks, and lines. As much of SVG as they need.

use std::fmt::Write as _;

use crate::statistics::Spread;

const STYLE: &str = "<style>text{font:13px sans-serif;fill:#333}.title{font-weight:bold;font-size:15px}\
                     .small{font-size:11px;fill:#666}.end{text-anchor:end}.middle{text-anchor:middle}\
                     .grid{stroke:#ddd}.whisker{stroke:#222;stroke-width:1.5}.way{fill:none;stroke-width:2}</style>";
const COLOURS: [&str; 6] = ["#c0392b", "#2471a3", "#7d8a97", "#b9770e", "#1e8449", "#6c3483"];

/// One bar.
pub struct Bar {
    /// What it is of.
    pub label: String,
    /// How long it is.
    pub spread: Spread,
    /// Ours.
    pub accent: bool,
}

/// Bars below each other in groups, on a logarithmic scale: peers lie orders of magnitude apart.
pub fn bars(title: &str, unit: &str, groups: &[(String, Vec<Bar>)]) -> String {
    const LEFT: f64 = 240.0;
    const WIDTH: f64 = 470.0;
    const ROW: f64 = 20.0;
    let all = || groups.iter().flat_map(|(_, bars)| bars).map(|bar| bar.spread);
    let lowest = all().map(|spread| spread.low).fold(f64::INFINITY, f64::min).max(1e-3);
    let highest = all().map(|spread| spread.high).fold(lowest, f64::max);
    let (begin, end) = (lowest.log10().floor(), highest.log10().ceil().max(lowest.log10().floor() + 1.0));
    let x = |value: f64| LEFT + WIDTH * ((value.max(lowest).log10() - begin) / (end - begin)).clamp(0.0, 1.0);
    let rows: usize = groups.iter().map(|(_, bars)| bars.len()).sum();
    let bottom = 44.0 + rows as f64 * ROW + groups.len() as f64 * 28.0;
    let mut body = String::new();
    text(&mut body, 10.0, 20.0, "title", title);
    for power in begin as i32..=end as i32 {
        let at =
            x(10f64.powi(power).max(lowest)).max(LEFT + WIDTH * (f64::from(power) - begin) / (end - begin));
        line(&mut body, (at, 36.0), (at, bottom), "grid");
        text(&mut body, at, bottom + 16.0, "small middle", &short(10f64.powi(power)));
    }
    text(&mut body, LEFT + WIDTH / 2.0, bottom + 34.0, "small middle", &format!("{unit} (logarithmic)"));
    let mut y = 40.0;
    for (name, bars) in groups {
        y += 24.0;
        text(&mut body, 10.0, y - 6.0, "title", name);
        for bar in bars {
            let colour = if bar.accent { COLOURS[0] } else { COLOURS[2] };
            text(&mut body, LEFT - 8.0, y + 14.0, "end", &bar.label);
            let width = x(bar.spread.median) - LEFT;
            writeln!(
                body,
                r#"<rect x="{LEFT}" y="{:.1}" width="{width:.1}" height="14" fill="{colour}"/>"#,
                y + 3.0
            )
            .expect("a string");
            line(&mut body, (x(bar.spread.low), y + 10.0), (x(bar.spread.high), y + 10.0), "whisker");
            text(&mut body, x(bar.spread.high) + 6.0, y + 14.0, "small", &short(bar.spread.median));
            y += ROW;
        }
        y += 4.0;
    }
    picture(title, &body, LEFT + WIDTH + 70.0, bottom + 46.0)
}

/// Points of several series, joined.
pub struct Lines<'a> {
    /// Above.
    pub title: &'a str,
    /// Below.
    pub across: &'a str,
    /// At the side.
    pub up: &'a str,
    /// Whether the way across is logarithmic.
    pub logarithmic: bool,
    /// What is drawn.
    pub series: Vec<(String, Vec<(f64, f64)>)>,
}

impl Lines<'_> {
    /// The picture, from zero upwards.
    pub fn draw(&self) -> String {
        const LEFT: f64 = 70.0;
        const WIDTH: f64 = 520.0;
        const TOP: f64 = 44.0;
        const HEIGHT: f64 = 260.0;
        let points = || self.series.iter().flat_map(|(_, points)| points);
        let place = |value: f64| if self.logarithmic { value.max(1.0).log10() } else { value };
        let begin = points().map(|point| place(point.0)).fold(f64::INFINITY, f64::min);
        let end = points().map(|point| place(point.0)).fold(begin + 1e-9, f64::max);
        let highest = points().map(|point| point.1).fold(1e-9, f64::max);
        let step = round_step(highest / 5.0);
        let top = (highest / step).ceil() * step;
        let x = |value: f64| LEFT + WIDTH * (place(value) - begin) / (end - begin).max(1e-9);
        let y = |value: f64| TOP + HEIGHT * (1.0 - value / top);
        let mut body = String::new();
        text(&mut body, 10.0, 20.0, "title", self.title);
        text(&mut body, 10.0, 36.0, "small", self.up);
        for mark in 0..=(top / step).round() as u32 {
            let value = f64::from(mark) * step;
            line(&mut body, (LEFT, y(value)), (LEFT + WIDTH, y(value)), "grid");
            text(&mut body, LEFT - 8.0, y(value) + 4.0, "small end", &short(value));
        }
        let mut marks: Vec<f64> = points().map(|point| point.0).collect();
        marks.sort_by(f64::total_cmp);
        marks.dedup();
        for mark in marks {
            text(&mut body, x(mark), TOP + HEIGHT + 18.0, "small middle", &short(mark));
        }
        text(&mut body, LEFT + WIDTH / 2.0, TOP + HEIGHT + 36.0, "small middle", self.across);
        for ((name, points), colour) in self.series.iter().zip(COLOURS.iter().cycle()) {
            let way: Vec<_> = points.iter().map(|(px, py)| format!("{:.1} {:.1}", x(*px), y(*py))).collect();
            writeln!(body, r#"<path class="way" stroke="{colour}" d="M{}"/>"#, way.join("L"))
                .expect("a string");
            for (px, py) in points {
                writeln!(body, r#"<circle cx="{:.1}" cy="{:.1}" r="3" fill="{colour}"/>"#, x(*px), y(*py))
                    .expect("a string");
            }
            if let Some((px, py)) = points.last() {
                text(&mut body, x(*px) + 8.0, y(*py) + 4.0, "small", name);
            }
        }
        picture(self.title, &body, LEFT + WIDTH + 150.0, TOP + HEIGHT + 48.0)
    }
}

/// One, two or five times a power of ten, at least that much.
fn round_step(least: f64) -> f64 {
    let power = 10f64.powf(least.log10().floor());
    [1.0, 2.0, 5.0, 10.0]
        .iter()
        .map(|factor| factor * power)
        .find(|step| *step >= least)
        .unwrap_or(10.0 * power)
}

/// A number with as many digits as one reads.
pub fn short(value: f64) -> String {
    let (value, unit) = match value.abs() {
        large if large >= 1e6 => (value / 1e6, " M"),
        large if large >= 1e4 => (value / 1e3, " k"),
        _ => (value, ""),
    };
    let digits = if value == 0.0 || value.abs() >= 100.0 {
        0
    } else if value.abs() >= 10.0 {
        1
    } else {
        2
    };
    let text = format!("{value:.digits$}");
    let text = if digits > 0 { text.trim_end_matches('0').trim_end_matches('.') } else { &text };
    format!("{text}{unit}")
}

fn text(body: &mut String, x: f64, y: f64, class: &str, text: &str) {
    let text = text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;");
    writeln!(body, r#"<text class="{class}" x="{x:.1}" y="{y:.1}">{text}</text>"#).expect("a string");
}

fn line(body: &mut String, from: (f64, f64), to: (f64, f64), class: &str) {
    let ((x1, y1), (x2, y2)) = (from, to);
    writeln!(body, r#"<path class="{class}" d="M{x1:.1} {y1:.1}L{x2:.1} {y2:.1}"/>"#).expect("a string");
}

fn picture(title: &str, body: &str, width: f64, height: f64) -> String {
    let title = title.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;");
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" role=\"img\" width=\"{width:.0}\" height=\"{height:.0}\" \
         viewBox=\"0 0 {width:.0} {height:.0}\">\n<title>{title}</title>\n{STYLE}\n\
         <rect width=\"100%\" height=\"100%\" fill=\"#fff\"/>\n{body}</svg>\n"
    )
}
