//! What happened in a soak as a picture: who held when, what was wrong with whom, and what came of it. Time goes from left to
//! right, line under line. Of a long soak there is an overview, and those lines in which most went wrong. Nothing is told by its
//! colour alone.

#[path = "../../../src/sim/timeline/canvas.rs"]
mod canvas;

use std::collections::BTreeSet;
use std::time::Duration;

use self::canvas::{Area, Canvas, width_of};
use crate::harness::storm::{Between, Fault, Kind};
use crate::harness::witness::{Held, Moment, overlaps};
use crate::store::Write;
use crate::verdict::{Doings, Sign, Verdict};

/// What is to be drawn.
pub(crate) struct Timeline<'a> {
    pub(crate) title: String,
    pub(crate) about: String,
    pub(crate) from: Moment,
    pub(crate) until: Moment,
    pub(crate) workers: usize,
    pub(crate) nodes: usize,
    pub(crate) doings: &'a Doings,
    pub(crate) verdict: &'a Verdict,
    pub(crate) writes: &'a [Write],
}

/// How much time is on one line, and how long that and a second are.
const LINE: Duration = Duration::from_secs(20);
const SECOND: i32 = 60;
const LENGTH: i32 = 20 * SECOND;

/// So many lines are drawn; of a soak that has more, so many are chosen.
const AT_MOST: usize = 9;
const CHOSEN: usize = 6;

const FONT_SIZE: i32 = 11;

/// On the left for the names of the rows.
const LEFT: i32 = 96;
const RIGHT: i32 = 16;
const WIDTH: i32 = LEFT + LENGTH + RIGHT;

const HEAD: i32 = 74;
const AXIS: i32 = 26;
const WORKER: i32 = 34;
const NODE: i32 = 38;
const BETWEEN_LINES: i32 = 22;
const LEGEND_LINE: i32 = 22;

/// From the top of a row.
const WORKER_BAR: i32 = 3;
const WORKER_BAR_HEIGHT: i32 = 15;
const WORKER_NOTE: i32 = 19;
const KEY_BAR: i32 = 2;
const KEY_BAR_HEIGHT: i32 = 7;
const FAULT_BAR: i32 = 10;
const WAIT_BAR: i32 = 26;
const WAIT_BAR_HEIGHT: i32 = 6;

/// The rows of the overview.
const CURVE: i32 = 44;
const TICKS: i32 = 18;
const BINS: i32 = 600;

/// The colours of the workers go round.
const COLOURS: usize = 4;

const STYLE: &str = r##"<style>
text{font:11px Verdana,Arial,sans-serif;fill:#222}
.title{font-size:16px;font-weight:bold}.name{font-size:12px;font-weight:bold}
.clock{fill:#444}.on-dark{fill:#fff;font-weight:bold}.violation{font-weight:bold;fill:#c00}
.paper{fill:#fff}.axis{stroke:#666;fill:none}.second{stroke:#e4e4e4}.row{stroke:#bbb}.chosen{fill:#ececec}
.has1{fill:#1f5a96}.has2{fill:#b35900}.has3{fill:#1e7a58}.has4{fill:#7d3c98}
.once{fill:#fff;stroke:#222;stroke-dasharray:2 2}
.stopped{fill:url(#stopped);stroke:#999}.killed{stroke:#000;stroke-width:3}
.down{fill:#222}.still{fill:#777}.network{fill:#fff3c4;stroke:#8a6d00}.waits{fill:url(#waits);stroke:#666}
.lost{fill:#000;stroke:#fff}.late{fill:#fff;stroke:#c00;stroke-width:2}.stale{fill:#c00;stroke:#fff}
.stale-line{stroke:#c00;stroke-dasharray:3 1}.violated{stroke:#c00}
.overlap{fill:#c00;fill-opacity:.25;stroke:#c00}
.curve{stroke:#1f5a96;fill:none}.tick{stroke:#222}
</style>
<defs>
<pattern id="stopped" width="6" height="6" patternUnits="userSpaceOnUse">
<rect width="6" height="6" fill="#eee"/><path d="M0 6L6 0" stroke="#888"/>
</pattern>
<pattern id="waits" width="4" height="4" patternUnits="userSpaceOnUse">
<rect width="4" height="4" fill="#fff"/><path d="M2 0V4" stroke="#444"/>
</pattern>
</defs>
"##;

impl Timeline<'_> {
    pub(crate) fn to_svg(&self) -> String {
        let mut sheet = Sheet { timeline: self, canvas: Canvas::default(), top: HEAD };
        let lines = self.chosen_lines();
        sheet.headline(lines.len());
        if lines.len() < self.lines() {
            sheet.overview(&lines);
        }
        for line in lines {
            sheet.line(line);
        }
        let height = sheet.legend();
        sheet.canvas.finish(&self.title, STYLE, (WIDTH, height))
    }

    fn lines(&self) -> usize {
        let whole = self.until.since(self.from).as_millis().div_ceil(LINE.as_millis());
        usize::try_from(whole).unwrap_or(usize::MAX).max(1)
    }

    /// All, or those in which most went wrong, in their order.
    fn chosen_lines(&self) -> Vec<usize> {
        if self.lines() <= AT_MOST {
            return (0..self.lines()).collect();
        }
        let mut weights = vec![0_u64; self.lines()];
        let mut add = |at: Moment, weight: u64| weights[self.line_of(at)] += weight;
        self.verdict.violations.iter().filter_map(|violation| violation.at).for_each(|at| add(at, 1_000));
        for mark in &self.verdict.marks {
            add(mark.at, [1, 3, 10][mark.sign as usize]);
        }
        let mut places: Vec<usize> = (0..self.lines()).collect();
        places.sort_by_key(|place| std::cmp::Reverse(weights[*place]));
        let mut chosen: BTreeSet<usize> = places.into_iter().take(CHOSEN).collect();
        chosen.extend(self.longest_rest().map(|(from, _)| self.line_of(from)));
        chosen.into_iter().collect()
    }

    /// The longest time without an increment.
    fn longest_rest(&self) -> Option<(Moment, Moment)> {
        let mut written: Vec<Moment> = self.writes.iter().map(|write| write.written).collect();
        written.sort_unstable();
        let rests = written.windows(2).map(|pair| (pair[0], pair[1]));
        rests.max_by_key(|(from, until)| until.since(*from))
    }

    fn line_of(&self, at: Moment) -> usize {
        let line = at.since(self.from).as_millis() / LINE.as_millis();
        usize::try_from(line).unwrap_or(usize::MAX).min(self.lines() - 1)
    }

    fn begin_of(&self, line: usize) -> Moment {
        self.from.after(LINE * u32::try_from(line).expect("not that many"))
    }

    /// In which place a worker works.
    fn place(&self, worker: &str) -> Option<usize> {
        self.doings.places.get(worker).copied()
    }

    /// Where nodes did not vote for somebody, node by node and without overlaps.
    fn waits(&self, node: usize) -> Vec<(Moment, Moment)> {
        let of_node = self.verdict.waits.iter().filter(|wait| wait.node == node);
        let mut waits: Vec<_> = of_node.map(|wait| (wait.from, wait.until.unwrap_or(self.until))).collect();
        waits.sort_unstable();
        let mut joined: Vec<(Moment, Moment)> = Vec::new();
        for (from, until) in waits {
            match joined.last_mut() {
                Some(last) if from <= last.1 => last.1 = last.1.max(until),
                _ => joined.push((from, until)),
            }
        }
        joined
    }
}

/// The picture, and how far down it is drawn.
struct Sheet<'a> {
    timeline: &'a Timeline<'a>,
    canvas: Canvas,
    top: i32,
}

/// One line of the picture: the time that is on it, and where it begins.
#[derive(Clone, Copy)]
struct Line {
    from: Moment,
    until: Moment,
    top: i32,
}

impl Line {
    /// Where a time is on this line, if it is.
    fn range(self, from: Moment, until: Moment) -> Option<(i32, i32)> {
        let (from, until) = (from.max(self.from), until.min(self.until));
        // What is shorter than a pixel is seen all the same.
        (from <= until).then(|| (self.x(from), self.x(until).max(self.x(from) + 1)))
    }

    fn point(self, at: Moment) -> Option<i32> {
        (self.from <= at && at < self.until).then(|| self.x(at))
    }

    fn x(self, at: Moment) -> i32 {
        LEFT + length(at.since(self.from), SECOND)
    }
}

impl Sheet<'_> {
    fn headline(&mut self, drawn: usize) {
        let timeline = self.timeline;
        self.canvas.text((10, 24), "title", &timeline.title);
        self.canvas.text((10, 43), "about", &timeline.about);
        let seconds = LINE.as_secs();
        let what = if drawn < timeline.lines() {
            format!(
                "Below the overview {drawn} of {} lines of {seconds} s: those with violations, stale writes, late writes and losses, \
                 in this order, and the longest time without an increment.",
                timeline.lines()
            )
        } else {
            format!("All of it, {seconds} s on a line.")
        };
        self.canvas.text((10, 60), "about", &what);
    }

    /// The whole of it, small.
    fn overview(&mut self, chosen: &[usize]) {
        let timeline = self.timeline;
        let (top, whole) = (self.top, timeline.until.since(timeline.from));
        let x = |at: Moment| LEFT + part(at.since(timeline.from), whole, LENGTH);
        let ticks: [(&str, &str, Vec<Moment>); 5] = [
            ("killed", "tick", timeline.doings.deaths.values().copied().collect()),
            ("losses", "tick", self.marked(Sign::Lost)),
            ("late writes", "tick", self.marked(Sign::Late)),
            ("stale writes", "stale-line", self.marked(Sign::Stale)),
            (
                "violations",
                "violated",
                timeline.verdict.violations.iter().filter_map(|violation| violation.at).collect(),
            ),
        ];
        let bottom = top + AXIS + CURVE + TICKS * 5;
        for line in chosen {
            let (left, right) = (x(timeline.begin_of(*line)), x(timeline.begin_of(line + 1)));
            let area =
                Area { x: left, y: top + AXIS, width: (right - left).max(2), height: bottom - top - AXIS };
            self.canvas.rectangle(area, "chosen");
        }
        let minutes = whole.as_secs() / 60;
        let every = [1_usize, 2, 5, 10, 30, 60]
            .into_iter()
            .find(|every| minutes / (*every as u64) <= 20)
            .unwrap_or(600);
        for minute in (0..=minutes).step_by(every) {
            let at = timeline.from.after(Duration::from_secs(minute * 60));
            self.canvas.text((x(at) + 2, top + AXIS - 8), "clock", &format!("{minute} min"));
            self.canvas.line((x(at), top + AXIS - 6), (x(at), top + AXIS), "axis");
        }
        self.canvas.line((LEFT, top + AXIS), (WIDTH - RIGHT, top + AXIS), "axis");
        self.canvas.text((10, top + AXIS + CURVE / 2 + 4), "name", "increments");
        self.curve(top + AXIS + CURVE - 2, &x);
        for (place, (name, class, moments)) in ticks.into_iter().enumerate() {
            let y = top + AXIS + CURVE + TICKS * row(place);
            self.canvas.text((10, y + 13), "name", name);
            self.canvas.line((LEFT, y + TICKS - 2), (WIDTH - RIGHT, y + TICKS - 2), "row");
            for at in moments {
                self.canvas.line((x(at), y + 2), (x(at), y + TICKS - 3), class);
            }
        }
        self.top = bottom + BETWEEN_LINES;
    }

    fn marked(&self, sign: Sign) -> Vec<Moment> {
        let marks = self.timeline.verdict.marks.iter().filter(|mark| mark.sign == sign);
        marks.map(|mark| mark.at).collect()
    }

    /// How many increments there were in each of many short times.
    fn curve(&mut self, bottom: i32, x: &impl Fn(Moment) -> i32) {
        let mut counts = vec![0; usize::try_from(BINS).expect("positive")];
        let width = LENGTH / BINS;
        for write in self.timeline.writes {
            let bin = ((x(write.written) - LEFT) / width).clamp(0, BINS - 1);
            counts[usize::try_from(bin).expect("positive")] += 1;
        }
        let most = counts.iter().copied().max().unwrap_or(0).max(1);
        let points = (0..BINS)
            .zip(counts)
            .map(|(bin, count)| (LEFT + bin * width + width / 2, bottom - count * (CURVE - 6) / most));
        self.canvas.path(&points.collect::<Vec<_>>(), "curve");
    }

    /// What happened in one stretch of time.
    fn line(&mut self, line: usize) {
        let timeline = self.timeline;
        let from = timeline.begin_of(line);
        let until = timeline.begin_of(line + 1).min(timeline.until);
        let line = Line { from, until, top: self.top };
        self.axis(line);
        self.overlaps(line);
        (0..timeline.workers).for_each(|worker| self.worker(line, worker));
        (0..timeline.nodes).for_each(|node| self.node(line, node));
        self.marks(line);
        self.violations(line);
        self.top = self.bottom(line) + BETWEEN_LINES;
    }

    fn axis(&mut self, line: Line) {
        let axis = line.top + AXIS;
        self.canvas.line((LEFT, axis), (line.x(line.until), axis), "axis");
        for second in 0..LINE.as_secs() {
            let at = line.from.after(Duration::from_secs(second));
            let Some(x) = line.point(at) else { break };
            self.canvas.line((x, axis), (x, self.bottom(line)), "second");
            if second % 2 == 0 {
                let clock = at.since(self.timeline.from).as_secs();
                let text = format!("{}:{:02}", clock / 60, clock % 60);
                self.canvas.line((x, axis - 5), (x, axis), "axis");
                self.canvas.text((x + 2, axis - 7), "clock", &text);
            }
        }
    }

    fn worker(&mut self, line: Line, place: usize) {
        let timeline = self.timeline;
        let top = line.top + AXIS + WORKER * row(place);
        self.canvas.text((10, top + 15), "name", &format!("worker {}", place + 1));
        let middle = top + WORKER_BAR + WORKER_BAR_HEIGHT / 2;
        self.canvas.line((LEFT, middle), (line.x(line.until), middle), "row");
        let is_here = |worker: &str| timeline.place(worker) == Some(place);
        let stops = timeline.doings.stops.iter().map(|stop| (stop, "stopped"));
        let stood = timeline.verdict.standstills.iter().map(|stop| (stop, "not run"));
        let mut notes = Vec::new();
        for ((_, from, until), word) in stops.chain(stood).filter(|((worker, ..), _)| is_here(worker)) {
            if let Some(range) = line.range(*from, *until) {
                self.bar(range, top + WORKER_BAR - 2, WORKER_BAR_HEIGHT + 4, "stopped");
                notes.push((range.0, word));
            }
        }
        for hold in timeline.verdict.holds.iter().filter(|hold| is_here(&hold.worker)) {
            if let Some(range) = line.range(hold.from, hold.until()) {
                self.bar(range, top + WORKER_BAR, WORKER_BAR_HEIGHT, &colour(place));
            }
            let unnoticed = hold
                .ended
                .and_then(|ended| if ended > hold.until() { line.range(hold.until(), ended) } else { None });
            if let Some(range) = unnoticed {
                self.bar(range, top + WORKER_BAR + 4, WORKER_BAR_HEIGHT - 8, "once");
            }
        }
        for (_, death) in timeline.doings.deaths.iter().filter(|(worker, _)| is_here(worker)) {
            if let Some(x) = line.point(*death) {
                self.canvas.line((x, top), (x, top + WORKER - 4), "killed");
                notes.push((x, "killed"));
            }
        }
        self.notes(notes, top + WORKER_NOTE + 10);
    }

    /// Words under the bars; none stands on another.
    fn notes(&mut self, mut notes: Vec<(i32, &str)>, baseline: i32) {
        notes.sort_unstable();
        let mut free = LEFT;
        for (x, word) in notes {
            let end = x + width_of(word, FONT_SIZE) + 6;
            if x >= free && end <= WIDTH {
                self.canvas.text((x + 3, baseline), "plain", word);
                free = end;
            }
        }
    }

    fn node(&mut self, line: Line, node: usize) {
        let timeline = self.timeline;
        let top = line.top + AXIS + WORKER * row(timeline.workers) + NODE * row(node);
        self.canvas.text((10, top + 20), "name", &format!("node {}", node + 1));
        self.canvas.line((LEFT, top + NODE - 3), (line.x(line.until), top + NODE - 3), "row");
        for hold in timeline.verdict.holds.iter().filter(|hold| hold.by.contains(&node)) {
            let place = timeline.place(&hold.worker);
            if let (Some(place), Some(range)) = (place, line.range(hold.from, hold.until())) {
                self.bar(range, top + KEY_BAR, KEY_BAR_HEIGHT, &colour(place));
            }
        }
        for (fault, from, until) in timeline.doings.faults.iter().filter(|(fault, ..)| fault.node == node) {
            if let Some(range) = line.range(*from, *until) {
                let (class, words) = seen(fault);
                self.bar(range, top + FAULT_BAR, 14, class);
                let room = |word: &&String| range.1 - range.0 >= width_of(word, FONT_SIZE) + 4;
                if let Some(word) = words.iter().find(room) {
                    let on = if class == "network" { "plain" } else { "on-dark" };
                    self.canvas.text((range.0 + 2, top + FAULT_BAR + 11), on, word);
                }
            }
        }
        for (from, until) in timeline.waits(node) {
            if let Some(range) = line.range(from, until) {
                self.bar(range, top + WAIT_BAR, WAIT_BAR_HEIGHT, "waits");
            }
        }
    }

    fn marks(&mut self, line: Line) {
        let timeline = self.timeline;
        let mut marks: Vec<_> = timeline.verdict.marks.iter().collect();
        marks.sort_by_key(|mark| mark.sign);
        for mark in marks {
            let (Some(place), Some(x)) = (timeline.place(&mark.worker), line.point(mark.at)) else {
                continue;
            };
            let y = line.top + AXIS + WORKER * row(place) + WORKER_BAR + WORKER_BAR_HEIGHT / 2;
            let class = match mark.sign {
                Sign::Lost => "lost",
                Sign::Late => "late",
                Sign::Stale => {
                    let bottom = line.top + AXIS + WORKER * row(timeline.workers);
                    self.canvas.line((x, line.top + AXIS), (x, bottom), "stale-line");
                    "stale"
                }
            };
            self.canvas.diamond((x, y), class);
        }
    }

    fn overlaps(&mut self, line: Line) {
        let timeline = self.timeline;
        let holds = timeline.verdict.holds.iter().map(|hold| {
            let (what, who) = (String::new(), hold.worker.clone());
            Held { what, who, from: hold.from, until: hold.until() }
        });
        for (one, other) in overlaps(holds.collect()) {
            if let Some(range) = line.range(other.from, one.until.min(other.until)) {
                self.bar(range, line.top + AXIS, WORKER * row(timeline.workers), "overlap");
            }
        }
    }

    fn violations(&mut self, line: Line) {
        let mut written = LEFT;
        for violation in &self.timeline.verdict.violations {
            let Some(x) = violation.at.and_then(|at| line.point(at)) else { continue };
            self.canvas.line((x, line.top + AXIS), (x, self.bottom(line)), "violated");
            if x >= written {
                self.canvas.text((x + 3, self.bottom(line) + 10), "violation", violation.kind);
                written = x + width_of(violation.kind, FONT_SIZE) + 10;
            }
        }
    }

    /// What the signs mean, as far as they occur; below it, the picture ends.
    fn legend(&mut self) -> i32 {
        let signs = [
            ("has1", "a worker holds; at a node: the node had granted it"),
            ("once", "over, and not noticed yet"),
            ("stopped", "stopped, or not run by the machine"),
            ("killed", "killed; another takes its place"),
            ("lost", "is told of its loss"),
            ("late", "writes after its validity, having been stopped"),
            ("stale", "and over what another had written: a fence would refuse it"),
            ("down", "down: comes back empty, or with a log that was cut"),
            ("still", "stands still: stopped, paused, hung; or its connections are closed (cut off)"),
            ("network", "the network from worker w is late, slow, held, lost, .."),
            ("waits", "may have forgotten what it granted, and does not vote (for at least one worker)"),
            ("overlap", "two hold at once"),
            ("violated", "violation"),
        ];
        let mut at = (10, self.top + 10);
        for (class, meaning) in signs {
            // In quotes as an attribute, since some begin like others.
            if !self.canvas.shows(&format!("{class}\"")) {
                continue;
            }
            let width = 34 + width_of(meaning, FONT_SIZE) + 14;
            if at.0 + width > WIDTH {
                at = (10, at.1 + LEGEND_LINE);
            }
            let (x, y) = at;
            match class {
                "lost" | "late" | "stale" => self.canvas.diamond((x + 13, y - 4), class),
                "killed" | "violated" => self.canvas.line((x + 13, y - 12), (x + 13, y + 3), class),
                _ => self.canvas.rectangle(Area { x, y: y - 10, width: 26, height: 12 }, class),
            }
            self.canvas.text((x + 32, y), "plain", meaning);
            at.0 += width;
        }
        at.1 + 14
    }

    fn bar(&mut self, (left, right): (i32, i32), y: i32, height: i32, class: &str) {
        self.canvas.rectangle(Area { x: left, y, width: right - left, height }, class);
    }

    fn bottom(&self, line: Line) -> i32 {
        line.top + AXIS + WORKER * row(self.timeline.workers) + NODE * row(self.timeline.nodes)
    }
}

/// How a fault is drawn, and what is written on it where there is room: the longest that fits.
fn seen(fault: &Fault) -> (&'static str, Vec<String>) {
    let (class, word) = match fault.kind {
        Kind::Killed => ("down", "empty"),
        Kind::PowerLost { .. } => ("down", "log cut"),
        Kind::Stopped => ("still", "stopped"),
        Kind::Paused => ("still", "paused"),
        Kind::Hung => ("still", "hung"),
        Kind::Disconnected => ("still", "cut off"),
        Kind::Between { client, kind } => {
            let word = match kind {
                Between::Late(_) => "late",
                Between::Slow { .. } => "slow",
                Between::Held(_) => "held",
                Between::Swallowed(_) => "lost",
                Between::Stranded => "stranded",
                Between::CutInTheMiddle => "half open",
                Between::Reset => "reset",
                Between::ClosedAfter(..) => "closed",
            };
            let worker = format!("w{}", client + 1);
            return ("network", vec![format!("{worker} {word}"), worker]);
        }
    };
    (class, vec![word.to_owned()])
}

fn colour(place: usize) -> String {
    format!("has{}", place % COLOURS + 1)
}

fn row(place: usize) -> i32 {
    i32::try_from(place).expect("a few rows")
}

/// So many pixels is a time long, of which a second has so many.
fn length(time: Duration, second: i32) -> i32 {
    part(time, Duration::from_secs(1), second)
}

/// The share that a time has of a whole.
fn part(time: Duration, whole: Duration, pixels: i32) -> i32 {
    let pixels = u128::try_from(pixels).expect("positive");
    let share = time.as_micros() * pixels / whole.as_micros().max(1);
    i32::try_from(share).unwrap_or(i32::MAX / 2)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::harness::storm::Fault;
    use crate::verdict::judge;

    const BEGUN: u64 = 1_000_000_000_000;

    fn at(millis: u64) -> Moment {
        Moment(BEGUN + millis * 1_000_000)
    }

    /// A log whose times are milliseconds after the beginning.
    fn log(lines: &[&str]) -> String {
        let absolute = |line: &&str| {
            let mut words: Vec<String> = line.split(' ').map(str::to_owned).collect();
            for word in words.iter_mut().filter(|word| word.starts_with('@')) {
                *word = at(word[1..].parse().expect("milliseconds")).0.to_string();
            }
            words.join(" ") + "\n"
        };
        lines.iter().map(absolute).collect()
    }

    fn write(worker: &str, number: u64, read: u64, checked: u64, written: u64) -> Write {
        Write { worker: worker.to_owned(), number, read, checked: at(checked), written: at(written) }
    }

    struct Story {
        logs: BTreeMap<String, String>,
        writes: Vec<Write>,
        counter: u64,
        doings: Doings,
    }

    /// The first worker is stopped between its check and its write, while a node comes back empty and the second worker has the
    /// lock; then the second is killed, and the third takes its place.
    fn story() -> Story {
        let first = [
            "granted 1 @90 @100",
            "by 1 0",
            "by 1 1",
            "valid 1 @1100",
            "waits 2 @400",
            "votes 2 @1500",
            "lost 1 @2510 @1100",
            "wrote 1 1 @2520",
            "ended 1 @2530",
        ];
        let second = ["waits 2 @500", "granted 2 @1000 @1200", "by 2 2", "valid 2 @2200", "wrote 2 1 @1350"];
        let third = ["granted 3 @3000 @4000", "valid 3 @5000", "ended 3 @4100"];
        let logs = [("a", log(&first)), ("b", log(&second)), ("c", log(&third))];
        let restart = Fault { node: 2, kind: Kind::Killed };
        let network = Kind::Between { client: 1, kind: Between::Late(Duration::from_millis(20)) };
        let late = Fault { node: 0, kind: network };
        Story {
            logs: logs.map(|(name, log)| (name.to_owned(), log)).into(),
            writes: vec![write("b", 1, 0, 1_300, 1_340), write("a", 1, 0, 200, 2_515)],
            counter: 1,
            doings: Doings {
                places: BTreeMap::from([("a".to_owned(), 0), ("b".to_owned(), 1), ("c".to_owned(), 1)]),
                stops: vec![("a".to_owned(), at(300), at(2_500))],
                deaths: BTreeMap::from([("b".to_owned(), at(1_900))]),
                faults: vec![(restart, at(200), at(350)), (late, at(3_000), at(4_500))],
            },
        }
    }

    fn drawn(story: &Story, until: u64) -> String {
        let verdict = judge(&story.logs, &story.writes, story.counter, &story.doings);
        let timeline = Timeline {
            title: "A story".to_owned(),
            about: String::new(),
            from: at(0),
            until: at(until),
            workers: 2,
            nodes: 3,
            doings: &story.doings,
            verdict: &verdict,
            writes: &story.writes,
        };
        timeline.to_svg()
    }

    /// Where a bar of some class begins and how long it is, in milliseconds, and in which row it is.
    fn bars(svg: &str, class: &str) -> Vec<(i32, i32, i32)> {
        let number = |tag: &str, name: &str| -> i32 {
            let (_, rest) = tag.split_once(&format!(" {name}=\"")).expect("an attribute");
            rest.split('"').next().and_then(|value| value.parse().ok()).expect("a number")
        };
        let body = svg.split_once("</defs>").expect("signs").1;
        let tags = body.lines().filter(|line| line.starts_with(&format!("<rect class=\"{class}\"")));
        // The last one is in the legend.
        let mut bars: Vec<_> = tags
            .map(|tag| {
                let millis = |pixels: i32| pixels * 1_000 / SECOND;
                (millis(number(tag, "x") - LEFT), millis(number(tag, "width")), number(tag, "y"))
            })
            .collect();
        bars.retain(|(from, ..)| *from >= 0);
        bars
    }

    fn count(svg: &str, class: &str) -> usize {
        let body = svg.split_once("</defs>").expect("signs").1;
        body.matches(&format!("class=\"{class}\"")).count()
    }

    /// A pixel more or less.
    fn assert_is((from, length, _): (i32, i32, i32), expected: (i32, i32)) {
        let pixel = 1_000 / SECOND + 1;
        let near = |is: i32, should: i32| (is - should).abs() <= pixel;
        assert!(near(from, expected.0) && near(length, expected.1), "{from}+{length}, not {expected:?}");
    }

    #[test]
    fn each_lane_holds_what_the_logs_say() {
        let svg = drawn(&story(), 6_000);
        for lane in ["worker 1", "worker 2", "node 1", "node 2", "node 3"] {
            assert_eq!(svg.matches(&format!(">{lane}<")).count(), 1, "{lane}");
        }
        // The first worker's hold ends with its validity; beside it, at both nodes that granted it.
        let [worker, at_first, at_second] = bars(&svg, "has1")[..] else { panic!("{svg}") };
        assert_is(worker, (100, 1_000));
        assert_is(at_first, (100, 1_000));
        assert!(worker.2 < at_first.2 && at_first.2 + NODE == at_second.2, "{worker:?} {at_first:?}");
        assert_is(bars(&svg, "once")[0], (1_100, 1_430));
        assert_is(bars(&svg, "stopped")[0], (300, 2_200));
        // The second place: one that was killed, and one that released early.
        let [killed, released, at_third] = bars(&svg, "has2")[..] else { panic!("{svg}") };
        assert_is(killed, (1_200, 700));
        assert_is(released, (4_000, 100));
        assert_eq!((killed.2, killed.2 - worker.2, at_third.2 - at_first.2), (released.2, WORKER, 2 * NODE));
        assert!(svg.contains(">killed<") && svg.contains(">stopped<"));
        // The nodes.
        let down = bars(&svg, "down")[0];
        assert_is(down, (200, 150));
        let waits = bars(&svg, "waits")[0];
        assert_is(waits, (400, 1_500));
        assert_eq!(waits.2 - down.2, WAIT_BAR - FAULT_BAR, "in the same lane");
        let network = bars(&svg, "network")[0];
        assert_is(network, (3_000, 1_500));
        assert_eq!(down.2 - network.2, 2 * NODE);
        assert!(svg.contains(">w2 late<"));
    }

    #[test]
    fn losses_and_stale_writes_are_marked_and_two_holders_are_shaded() {
        let svg = drawn(&story(), 6_000);
        // Each once, and in the legend.
        for class in ["lost", "late", "stale", "killed"] {
            assert_eq!(count(&svg, class), 2, "{class}");
        }
        assert_eq!((count(&svg, "overlap"), count(&svg, "violated")), (0, 0));

        let mut two = story();
        let early = log(&["granted 3 @3000 @1600", "valid 3 @5000", "ended 3 @4100"]);
        two.logs.insert("c".to_owned(), early);
        let svg = drawn(&two, 6_000);
        assert_is(bars(&svg, "overlap")[0], (1_600, 300));
        assert!(svg.contains("<text class=\"violation\"") && svg.contains(">two holders at once<"));
    }

    /// Half an hour later the same happens again, and a violation to it.
    #[test]
    fn of_a_long_soak_an_overview_is_drawn_and_what_went_wrong_in_full() {
        let (mut long, late) = (story(), 1_800_000);
        let moved = log(&[
            "granted 4 @1799000 @1800100",
            "valid 4 @1801100",
            "wrote 4 2 @1801500",
            "ended 4 @1801600",
        ]);
        long.logs.insert("d".to_owned(), moved);
        long.doings.places.insert("d".to_owned(), 0);
        long.writes.push(write("d", 2, 1, late + 1_300, late + 1_400));
        long.counter = 2;
        let svg = drawn(&long, 2 * late);
        assert!(svg.contains(">increments<") && svg.contains(">30 min<"));
        assert!(svg.contains("of 180 lines"), "{svg}");
        let drawn = svg.matches(">node 1<").count();
        assert!((2..=CHOSEN + 1).contains(&drawn), "{drawn} lines");
        for clock in ["0:00", "30:00"] {
            assert!(svg.contains(&format!(">{clock}<")), "{clock}");
        }
        assert!(svg.contains(">written after the validity without having been stopped<"));
        assert_eq!(count(&svg, "chosen"), drawn);
    }
}
