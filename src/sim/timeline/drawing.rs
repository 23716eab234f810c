//! How a timeline is drawn: a row for each client and each node, line under line, and below them what the
//! signs mean. Nothing is told by its colour alone.

use std::ops::Range;

use super::canvas::{Area, Canvas, width_of};
use super::layout::{FONT_SIZE, Layout, length_in_words};
use super::{Column, Hold, HoldEnd, Moment, NodeScene, Row, Run, Stage, Timeline, Tone, Waits};
use crate::protocol::command::Value;

/// Beside the lines: on the left for the names of the rows.
const LEFT: i32 = 40;
const RIGHT: i32 = 12;

/// So wide that the headline and the legend have room.
const NARROWEST: i32 = 760;

/// Above and below them.
const HEAD: i32 = 58;
const LEGEND_LINE: i32 = 22;

const AXIS: i32 = 42;
const CLIENT: i32 = 46;
const WORLD: i32 = 20;
const NODE: i32 = 45;
const BETWEEN_LINES: i32 = 24;

/// From the top of a row: where words stand, and the bar.
const WORDS: i32 = 11;
const BAR: i32 = 15;
const CLIENT_BAR: i32 = 18;
const NODE_BAR: i32 = 15;

/// The colours of the clients, dark for what they have and light for what they want, go round.
const COLOURS: usize = 4;

const STYLE: &str = r##"<style>
text{font:11px Verdana,Arial,sans-serif;fill:#222}
.title{font-size:16px;font-weight:bold}.name{font-size:13px;font-weight:bold}
.clock,.length{fill:#444}.length{text-anchor:middle}
.fault{font-weight:bold}.violation{font-weight:bold;fill:#c00}
.on-dark{fill:#fff;font-weight:bold}
.paper{fill:#fff}.span{fill:#ececec}.axis,.cut{stroke:#666;fill:none}
.row{stroke:#bbb}.node{fill:#fff;stroke:#888}.down{fill:#333}
.once{fill:#fff;stroke:#222;stroke-dasharray:2 2}
.dead{stroke:#333;stroke-width:3;stroke-dasharray:2 4}
.note{fill:#fff3c4;stroke:#8a6d00}
.overlap{fill:url(#overlap);stroke:#c00;stroke-width:2}
.tick{stroke:#222}.violation-tick{stroke:#c00;stroke-width:2}
.ended{fill:#000;stroke:#fff}.unended{fill:#fff;stroke:#000}
.rest{stroke:#000;stroke-dasharray:1 3}
.has1{fill:#1f5a96}.has2{fill:#b35900}.has3{fill:#1e7a58}.has4{fill:#7d3c98}
.wants1,.then1{fill:#cfe0f2;stroke:#1f5a96}.wants2,.then2{fill:#fbe0c0;stroke:#b35900}
.wants3,.then3{fill:#cdeadd;stroke:#1e7a58}.wants4,.then4{fill:#ead6ee;stroke:#7d3c98}
.then1,.then2,.then3,.then4{stroke-dasharray:5 3}
</style>
<defs>
<pattern id="overlap" width="8" height="8" patternUnits="userSpaceOnUse">
<rect width="8" height="8" fill="#c00" fill-opacity=".14"/>
<path d="M0 0L8 8" stroke="#c00" stroke-opacity=".6"/>
</pattern>
</defs>
"##;

/// The picture of a timeline.
pub(super) fn draw(timeline: &Timeline) -> String {
    let mut sheet = Sheet { timeline, layout: Layout::of(timeline), canvas: Canvas::default() };
    sheet.headline();
    sheet.axis();
    (0..timeline.clients).for_each(|client| sheet.client(client));
    (0..timeline.nodes).for_each(|node| sheet.node(node));
    sheet.overlaps();
    sheet.words();
    let height = sheet.legend();
    let size = (sheet.width(), height);
    sheet.canvas.finish(&timeline.title, STYLE, size)
}

/// The canvas, and where things go on it.
struct Sheet<'a> {
    timeline: &'a Timeline,
    layout: Layout,
    canvas: Canvas,
}

impl Sheet<'_> {
    fn headline(&mut self) {
        self.canvas.text((10, 24), "title", &self.timeline.title);
        self.canvas.text((10, 43), "about", &self.timeline.about);
    }

    /// Time: a straight line where none passes, and a grey span where it does.
    fn axis(&mut self) {
        let timeline = self.timeline;
        self.bar(0..self.layout.end(), AXIS - 6, 0, "axis");
        for (place, column) in timeline.columns.iter().enumerate() {
            let range = self.layout.edge(place)..self.layout.edge(place + 1);
            match column {
                Column::Passing { from, to } => self.span(range, &length_in_words(to.since(*from))),
                Column::Afterwards { from, to } => self.span(range, &length_in_words(to.since(*from))),
                Column::Moment(_) => {}
            }
        }
        for (place, moment) in timeline.moments() {
            if !self.shows_time(place) {
                continue;
            }
            let (x, top) = self.point(self.layout.edge(place));
            self.canvas.text((x, top + 12), "clock", &timeline.clock(moment.at));
            self.canvas.line((x, top + 15), (x, top + AXIS - 2), "axis");
        }
        for top in self.tops() {
            for row in self.rows() {
                let name = match row {
                    Row::Client(client) => name(client),
                    Row::Node(node) => format!("n{}", node + 1),
                    Row::World => continue,
                };
                self.canvas.text((10, top + row_top(timeline, row) + BAR + 13), "name", &name);
            }
        }
    }

    /// The first moment of each time, and of each line.
    fn shows_time(&self, place: usize) -> bool {
        let edge = self.layout.edge(place);
        let begins_line = self.layout.lines.iter().any(|line| line.start == edge);
        begins_line || !matches!(self.timeline.columns[place - 1], Column::Moment(_))
    }

    fn span(&mut self, range: Range<i32>, length: &str) {
        let middle = range.start + (range.end - range.start) / 2;
        self.bar(range.clone(), AXIS - 18, self.bottom() - AXIS + 18, "span");
        let (x, top) = self.point(middle);
        self.canvas.text((x, top + AXIS - 9), "length", length);
        // Waves, for a length that is not to scale.
        let (left, top) = self.point(range.start);
        let points = (0..=range.end - range.start).step_by(4).zip([0, -3, 0, 3].into_iter().cycle());
        let points: Vec<(i32, i32)> = points.map(|(x, y)| (left + x, top + AXIS - 4 + y)).collect();
        self.canvas.path(&points, "axis");
    }

    fn client(&mut self, client: usize) {
        let timeline = self.timeline;
        let top = row_top(timeline, Row::Client(client)) + BAR;
        let end = self.layout.end();
        self.bar(0..end, top + CLIENT_BAR / 2, 0, "row");
        for run in timeline.runs(|scene| scene.clients[client].stage) {
            let range = self.range(&run);
            match run.what {
                Stage::Wants => self.bar(range, top + 4, CLIENT_BAR - 8, &class("wants", client)),
                Stage::HeldOnce => self.bar(range, top + 7, CLIENT_BAR - 14, "once"),
                Stage::Dead => self.bar(range, top + CLIENT_BAR / 2, 0, "dead"),
                Stage::Idle | Stage::Holds => {}
            }
        }
        for hold in timeline.holds(client) {
            self.hold(&hold, top);
        }
        for run in timeline.runs(|scene| scene.clients[client].is_paused) {
            if run.what {
                self.note(self.range(&run), top + CLIENT_BAR, "stands still");
            }
        }
    }

    fn hold(&mut self, hold: &Hold, top: i32) {
        let lived = self.lived(hold);
        self.bar(lived.clone(), top, CLIENT_BAR, &class("has", hold.client));
        self.inscribe(lived.clone(), top + 13, "on-dark", "holds");
        let ends = hold.validities.iter().filter_map(|end| self.layout.place(self.timeline, *end));
        let ends: Vec<i32> = ends.collect();
        let last = if hold.end == HoldEnd::Open { self.claimed(hold).end } else { lived.end };
        if hold.end == HoldEnd::Open {
            self.bar(lived.end..last, top, CLIENT_BAR, &class("then", hold.client));
            self.inscribe(lived.end..last, top + 13, "plain", "believes to hold");
        } else if let Some(end) = ends.iter().max().filter(|end| lived.end < **end) {
            self.bar(lived.end..*end, top + CLIENT_BAR / 2, 0, "rest");
        }
        for end in ends {
            let is_over = matches!(hold.end, HoldEnd::Over(_)) && end == lived.end;
            let (x, line) = self.point(end);
            let sign = if is_over { "ended" } else { "unended" };
            self.canvas.diamond((x, line + top + CLIENT_BAR / 2), sign);
        }
    }

    /// From where to where a hold lasted in the history.
    fn lived(&self, hold: &Hold) -> Range<i32> {
        let from = self.layout.edge(hold.from);
        let to = match hold.end {
            HoldEnd::Over(at) => self.layout.place(self.timeline, at).unwrap_or(from),
            HoldEnd::Cut(column) => self.layout.edge(column),
            HoldEnd::Open => self.layout.edge(self.timeline.lived()),
        };
        from..to.max(from)
    }

    /// The same, up to where its validity would have ended after the history.
    fn claimed(&self, hold: &Hold) -> Range<i32> {
        let Range { start, end } = self.lived(hold);
        if hold.end != HoldEnd::Open {
            return start..end;
        }
        let last = hold.validities.iter().max();
        let claimed = last.and_then(|last| self.layout.place(self.timeline, *last));
        start..claimed.unwrap_or(self.layout.end())
    }

    fn node(&mut self, node: usize) {
        let timeline = self.timeline;
        let top = row_top(timeline, Row::Node(node)) + BAR;
        let lived = 0..self.layout.edge(timeline.lived());
        self.bar(lived, top, NODE_BAR, "node");
        for run in timeline.runs(|scene| scene.nodes[node].key.clone()) {
            if let Some(value) = &run.what {
                let holder = value.holder().unwrap_or("?");
                let range = self.range(&run);
                let class = holder_of(value, timeline.clients)
                    .map_or("down".to_owned(), |client| class("has", client));
                self.bar(range.clone(), top, NODE_BAR, &class);
                self.inscribe(range, top + 12, "on-dark", holder);
            }
        }
        for run in timeline.runs(|scene| scene.nodes[node].is_up) {
            if !run.what {
                self.bar(self.range(&run), top, NODE_BAR, "down");
                self.inscribe(self.range(&run), top + 12, "on-dark", "down");
            }
        }
        for run in timeline.runs(|scene| hindrances(&scene.nodes[node])) {
            if !run.what.is_empty() {
                self.note(self.range(&run), top + NODE_BAR, &run.what);
            }
        }
    }

    /// Shades where two hold at once.
    fn overlaps(&mut self) {
        let clients = 0..self.timeline.clients;
        let holds: Vec<Hold> = clients.flat_map(|client| self.timeline.holds(client)).collect();
        for (place, hold) in holds.iter().enumerate() {
            for other in holds[place + 1..].iter().filter(|other| other.client != hold.client) {
                let (one, two) = (self.claimed(hold), self.claimed(other));
                let both = one.start.max(two.start)..one.end.min(two.end);
                if both.start < both.end {
                    let rows = Row::Client(hold.client.min(other.client))
                        ..Row::Client(hold.client.max(other.client));
                    let top = row_top(self.timeline, rows.start) + BAR - 2;
                    let bottom = row_top(self.timeline, rows.end) + BAR + CLIENT_BAR + 2;
                    self.bar(both, top, bottom - top, "overlap");
                }
            }
        }
    }

    /// What is said of each moment, with a tick where it points.
    fn words(&mut self) {
        let timeline = self.timeline;
        for (place, moment) in timeline.moments() {
            for (row, text, tone) in sentences(moment) {
                let (x, line) = self.point(self.layout.edge(place));
                let top = line + row_top(timeline, row);
                let (tone, tick) = match tone {
                    Tone::Plain => ("plain", "tick"),
                    Tone::Fault => ("fault", "tick"),
                    Tone::Violation => ("violation", "violation-tick"),
                };
                self.canvas.text((x + 3, top + WORDS), tone, &text);
                let (from, to) = match row {
                    Row::World => (line + AXIS, line + self.bottom()),
                    Row::Client(_) => (top + 3, top + BAR + CLIENT_BAR),
                    Row::Node(_) => (top + 3, top + BAR + NODE_BAR),
                };
                self.canvas.line((x, from), (x, to), tick);
            }
        }
    }

    /// What the signs mean, as far as they occur; below it, the picture ends.
    fn legend(&mut self) -> i32 {
        let occurs = |class: &str| self.canvas.shows(class);
        let signs = [
            (true, "wants1", "wants the lock"),
            (true, "has1", "holds it, or: its key stands there"),
            (occurs("then"), "then1", "what the holder believes, after the history"),
            (occurs("ended"), "ended", "the validity ends"),
            (occurs("unended"), "unended", "the validity would have ended"),
            (occurs("overlap"), "overlap", "two hold at once"),
            (occurs("once"), "once", "does not hold any more, and has not released yet"),
            (occurs("down"), "down", "down"),
            (occurs("dead"), "dead", "dead"),
            (true, "span", "time passes, as long as it says (not to scale)"),
        ];
        let mut at = (10, self.tops().last().map_or(HEAD, |top| top + self.bottom()) + 24);
        for (_, class, meaning) in signs.into_iter().filter(|(occurs, ..)| *occurs) {
            let width = 34 + width_of(meaning, FONT_SIZE) + 10;
            if at.0 + width > self.width() {
                at = (10, at.1 + LEGEND_LINE);
            }
            self.sign(at, class);
            self.canvas.text((at.0 + 32, at.1), "plain", meaning);
            at.0 += width;
        }
        self.canvas.text((10, at.1 + LEGEND_LINE), "plain", IN_ORDER);
        at.1 + LEGEND_LINE + 12
    }

    fn sign(&mut self, (x, y): (i32, i32), class: &str) {
        let area = Area { x, y: y - 10, width: 26, height: 12 };
        match class {
            "ended" | "unended" => self.canvas.diamond((x + 13, y - 4), class),
            "dead" => self.canvas.line((x, y - 4), (x + 26, y - 4), class),
            _ => self.canvas.rectangle(area, class),
        }
    }

    /// A rectangle, or without a height a line, in as many pieces as it crosses lines.
    fn bar(&mut self, range: Range<i32>, y: i32, height: i32, class: &str) {
        for (piece, top) in self.pieces(range) {
            if height == 0 {
                self.canvas.line((piece.start, top + y), (piece.end, top + y), class);
            } else {
                let width = piece.end - piece.start;
                self.canvas.rectangle(Area { x: piece.start, y: top + y, width, height }, class);
            }
        }
    }

    /// Words on a bar, on each line where they fit.
    fn inscribe(&mut self, range: Range<i32>, baseline: i32, class: &str, text: &str) {
        for (piece, top) in self.pieces(range) {
            if piece.end - piece.start >= width_of(text, FONT_SIZE) + 4 {
                self.canvas.text((piece.start + 3, top + baseline), class, text);
            }
        }
    }

    /// What hampers somebody, under the bar.
    fn note(&mut self, range: Range<i32>, y: i32, text: &str) {
        self.bar(range.clone(), y, 12, "note");
        self.inscribe(range, y + 10, "plain", text);
    }

    fn pieces(&self, range: Range<i32>) -> Vec<(Range<i32>, i32)> {
        let lines = self.layout.lines.iter().zip(self.tops());
        let pieces = lines.map(|(line, top)| {
            let piece = range.start.max(line.start)..range.end.min(line.end);
            (piece.start - line.start + LEFT..piece.end - line.start + LEFT, top)
        });
        pieces.filter(|(piece, _)| piece.start < piece.end).collect()
    }

    /// A place along the endless line on the picture, and the top of its line there.
    fn point(&self, x: i32) -> (i32, i32) {
        let line = self.layout.lines.iter().rposition(|line| line.start <= x).unwrap_or(0);
        (x - self.layout.lines[line].start + LEFT, self.tops()[line])
    }

    fn range<T>(&self, run: &Run<T>) -> Range<i32> {
        self.layout.edge(run.from)..self.layout.edge(run.to)
    }

    fn rows(&self) -> impl Iterator<Item = Row> + use<> {
        let Timeline { clients, nodes, .. } = *self.timeline;
        (0..clients).map(Row::Client).chain((0..nodes).map(Row::Node))
    }

    /// Where each line begins.
    fn tops(&self) -> Vec<i32> {
        let height = self.bottom() + BETWEEN_LINES;
        (0..).map(|line| HEAD + line * height).take(self.layout.lines.len()).collect()
    }

    /// From the top of a line to its end.
    fn bottom(&self) -> i32 {
        row_top(self.timeline, Row::Node(self.timeline.nodes))
    }

    fn width(&self) -> i32 {
        let title = width_of(&self.timeline.title, 18);
        NARROWEST.max(LEFT + self.layout.width + RIGHT).max(title + 20)
    }
}

const IN_ORDER: &str =
    "Where it is white, no time passes: what happens there happens in this order, from left to right.";

/// From the top of a line to the top of a row.
fn row_top(timeline: &Timeline, row: Row) -> i32 {
    let times = |count: usize, height: i32| i32::try_from(count).unwrap_or(0) * height;
    match row {
        Row::Client(client) => AXIS + times(client, CLIENT),
        Row::World => AXIS + times(timeline.clients, CLIENT),
        Row::Node(node) => AXIS + times(timeline.clients, CLIENT) + WORLD + times(node, NODE),
    }
}

fn name(client: usize) -> String {
    format!("c{}", client + 1)
}

fn class(what: &str, client: usize) -> String {
    format!("{what}{}", client % COLOURS + 1)
}

fn holder_of(value: &Value, clients: usize) -> Option<usize> {
    (0..clients).find(|client| value.holder() == Some(&name(*client)))
}

/// What keeps a node from granting locks, other than being down.
fn hindrances(node: &NodeScene) -> String {
    let waits = match &node.waits_for {
        Waits::Nobody => String::new(),
        Waits::Everybody => "waits".to_owned(),
        Waits::Some(clients) => {
            format!("waits, for {}", clients.iter().map(|client| name(*client)).collect::<Vec<_>>().join(" "))
        }
    };
    let all =
        [if node.is_stalled { "stands still" } else { "" }, if node.is_full { "full" } else { "" }, &waits];
    all.into_iter().filter(|word| !word.is_empty()).collect::<Vec<_>>().join(", ")
}

/// What is said of a moment in one row, and how loudly.
fn sentences(moment: &Moment) -> Vec<(Row, String, Tone)> {
    let mut sentences: Vec<(Row, String, Tone)> = Vec::new();
    for label in &moment.labels {
        match sentences.iter_mut().find(|(row, ..)| *row == label.row) {
            Some((_, text, tone)) => {
                *text = format!("{text}, {}", label.text);
                *tone = (*tone).max(label.tone);
            }
            None => sentences.push((label.row, label.text.clone(), label.tone)),
        }
    }
    sentences
}
