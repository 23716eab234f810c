//! As much of SVG as a timeline needs, in whole pixels. Text is escaped here and nowhere else.

use std::fmt::Write as _;

/// A picture that grows element by element.
#[derive(Debug, Default)]
pub(super) struct Canvas(String);

#[derive(Clone, Copy, Debug)]
pub(super) struct Area {
    pub(super) x: i32,
    pub(super) y: i32,
    pub(super) width: i32,
    pub(super) height: i32,
}

impl Canvas {
    pub(super) fn rectangle(&mut self, area: Area, class: &str) {
        let Area { x, y, width, height } = area;
        self.element(format_args!(
            r#"<rect class="{class}" x="{x}" y="{y}" width="{width}" height="{height}"/>"#
        ));
    }

    pub(super) fn line(&mut self, from: (i32, i32), to: (i32, i32), class: &str) {
        let ((x1, y1), (x2, y2)) = (from, to);
        self.element(format_args!(r#"<path class="{class}" d="M{x1} {y1}L{x2} {y2}"/>"#));
    }

    /// The way through these points.
    pub(super) fn path(&mut self, points: &[(i32, i32)], class: &str) {
        let way: Vec<String> = points.iter().map(|(x, y)| format!("{x} {y}")).collect();
        self.element(format_args!(r#"<path class="{class}" d="M{}"/>"#, way.join("L")));
    }

    /// A small square that stands on its corner.
    pub(super) fn diamond(&mut self, (x, y): (i32, i32), class: &str) {
        self.element(format_args!(r#"<path class="{class}" d="M{x} {}l5 5l-5 5l-5 -5z"/>"#, y - 5));
    }

    pub(super) fn text(&mut self, (x, y): (i32, i32), class: &str, text: &str) {
        let text = escaped(text);
        self.element(format_args!(r#"<text class="{class}" x="{x}" y="{y}">{text}</text>"#));
    }

    /// Whether there is an element of that class, or of one that begins like it.
    pub(super) fn shows(&self, class: &str) -> bool {
        self.0.contains(&format!("class=\"{class}"))
    }

    /// The whole picture, of that size.
    pub(super) fn finish(self, title: &str, style: &str, (width, height): (i32, i32)) -> String {
        let (title, body) = (escaped(title), self.0);
        format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" role=\"img\" width=\"{width}\" height=\"{height}\" \
             viewBox=\"0 0 {width} {height}\">\n<title>{title}</title>\n{style}\
             <rect class=\"paper\" width=\"{width}\" height=\"{height}\"/>\n{body}</svg>\n"
        )
    }

    fn element(&mut self, element: std::fmt::Arguments<'_>) {
        writeln!(self.0, "{element}").expect("a string");
    }
}

/// What stands for letters that mean something in XML.
fn escaped(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for letter in text.chars() {
        match letter {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            letter if letter.is_control() => escaped.push('\u{fffd}'),
            letter => escaped.push(letter),
        }
    }
    escaped
}

/// About how wide a text is, rather too much than too little.
pub(super) fn width_of(text: &str, font_size: i32) -> i32 {
    let letters = i32::try_from(text.chars().count()).unwrap_or(i32::MAX / 64);
    letters * font_size * 11 / 20
}
