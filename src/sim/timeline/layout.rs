//! Where each column of a timeline stands. Times in a history lie microseconds or seconds apart, so a moment
//! gets the room that its words need, and a span of time a width that grows slowly with its length. What is
//! too long for one line goes on in the next.

use std::collections::BTreeMap;
use std::ops::Range;
use std::time::Duration;

use super::canvas::width_of;
use super::{Column, Moment, Row, Timeline};
use crate::protocol::time::Instant;

/// How long a line is at most.
const LINE: i32 = 1_160;

/// The least width of a moment.
const MOMENT: i32 = 20;

/// The width of the last one, so that how it ends is seen.
const LAST_MOMENT: i32 = 64;

/// Of what is written at the rows.
pub(super) const FONT_SIZE: i32 = 11;

/// Columns along one endless line, and where that is cut into the lines of the picture.
#[derive(Debug)]
pub(super) struct Layout {
    /// Where each column begins, and where the last one ends.
    edges: Vec<i32>,
    pub(super) lines: Vec<Range<i32>>,
    /// How long the longest line is, words included.
    pub(super) width: i32,
}

impl Layout {
    pub(super) fn of(timeline: &Timeline) -> Layout {
        let mut pen = Pen { x: 0, line: 0, starts: vec![0], free: BTreeMap::new(), clock: 0, width: 0 };
        let (mut is_new_time, last) = (true, timeline.lived() - 1);
        let mut edges = Vec::new();
        for (place, column) in timeline.columns.iter().enumerate() {
            match column {
                Column::Moment(moment) => {
                    edges.push(pen.moment(moment, is_new_time.then(|| timeline.clock(moment.at))));
                    is_new_time = false;
                    if place == last {
                        pen.x += LAST_MOMENT - MOMENT;
                    }
                }
                Column::Passing { from, to } | Column::Afterwards { from, to } => {
                    edges.push(pen.span(to.since(*from)));
                    is_new_time = true;
                }
            }
        }
        let end = pen.x;
        edges.push(end);
        let ends = pen.starts.iter().skip(1).copied().chain([end]);
        let lines = pen.starts.iter().copied().zip(ends).map(|(from, to)| from..to).collect();
        Layout { edges, lines, width: pen.width.max(end - pen.line) }
    }

    /// Where a column begins.
    pub(super) fn edge(&self, column: usize) -> i32 {
        self.edges[column.min(self.edges.len() - 1)]
    }

    pub(super) fn end(&self) -> i32 {
        self.edge(usize::MAX)
    }

    /// Where a moment lies that is not after the last column; within spans, time goes evenly.
    pub(super) fn place(&self, timeline: &Timeline, at: Instant) -> Option<i32> {
        let spans = timeline.columns.iter().enumerate().filter_map(|(place, column)| match column {
            Column::Passing { from, to } | Column::Afterwards { from, to } => Some((place, *from, *to)),
            Column::Moment(_) => None,
        });
        let mut up_to_then = spans.skip_while(|(_, _, to)| *to < at);
        let (column, from, to) = up_to_then.next()?;
        let (left, right) = (self.edge(column), self.edge(column + 1));
        let (part, whole) = (at.since(from).as_nanos(), to.since(from).as_nanos().max(1));
        let width = u128::try_from(right - left).unwrap_or(0);
        Some(left + i32::try_from(width * part / whole).unwrap_or(0))
    }
}

struct Pen {
    x: i32,
    line: i32,
    starts: Vec<i32>,
    /// Up to where each row is written on, and the axis.
    free: BTreeMap<Row, i32>,
    clock: i32,
    width: i32,
}

impl Pen {
    /// Room for a moment: none of its words stands on others of the same row.
    fn moment(&mut self, moment: &Moment, clock: Option<String>) -> i32 {
        let words: Vec<(Row, i32)> =
            moment.words().into_iter().map(|(row, width)| (row, width + 8)).collect();
        let clock = clock.map_or(0, |clock| width_of(&clock, FONT_SIZE) + 8);
        let written = words.iter().filter_map(|(row, _)| self.free.get(row)).copied().max().unwrap_or(0);
        let mut at = self.x.max(written).max(if clock > 0 { self.clock } else { 0 });
        let needed = words.iter().map(|(_, width)| *width).fold(clock.max(MOMENT), i32::max);
        if at + needed > self.line + LINE {
            at = self.x;
            self.begin_line();
        }
        self.width = self.width.max(at + needed - self.line);
        for (row, width) in words {
            self.free.insert(row, at + width);
        }
        self.clock = self.clock.max(at + clock);
        self.x = at + MOMENT;
        at
    }

    fn span(&mut self, length: Duration) -> i32 {
        let needed = width_of(&length_in_words(length), FONT_SIZE) + 8;
        let doublings = (length.as_micros() / 50).max(1).ilog2();
        let width = needed.max(20 + 6 * i32::try_from(doublings).unwrap_or(0));
        if self.x + width > self.line + LINE {
            self.begin_line();
        }
        let at = self.x;
        self.x += width;
        at
    }

    fn begin_line(&mut self) {
        self.width = self.width.max(self.x - self.line);
        self.line = self.x;
        self.starts.push(self.x);
    }
}

impl Moment {
    /// How much is written at which row.
    fn words(&self) -> BTreeMap<Row, i32> {
        let mut words = BTreeMap::new();
        for label in &self.labels {
            *words.entry(label.row).or_default() += width_of(&label.text, FONT_SIZE) + 6;
        }
        words
    }
}

impl Timeline {
    /// The world's time, from the beginning of the history on.
    pub(super) fn clock(&self, at: Instant) -> String {
        let start = self.moments().next().map_or(at, |(_, opening)| opening.at);
        in_words(at.since(start), 4)
    }
}

pub(super) fn length_in_words(length: Duration) -> String {
    in_words(length, 2)
}

/// In the largest unit that fits; seconds with so many decimals.
fn in_words(span: Duration, decimals: u32) -> String {
    match span.as_nanos() {
        0 => "0".to_owned(),
        nanos @ 1..1_000 => format!("{nanos} ns"),
        nanos @ 1_000..1_000_000 => format!("{} µs", decimal(nanos, 1_000, 0)),
        nanos @ 1_000_000..1_000_000_000 => format!("{} ms", decimal(nanos, 1_000_000, 1)),
        nanos => format!("{} s", decimal(nanos, 1_000_000_000, decimals)),
    }
}

/// `value / unit`, rounded, without zeros at the end.
fn decimal(value: u128, unit: u128, decimals: u32) -> String {
    let scale = 10_u128.pow(decimals);
    let scaled = (value * scale + unit / 2) / unit;
    let digits = usize::try_from(decimals).unwrap_or(0);
    let text = format!("{}.{:0digits$}", scaled / scale, scaled % scale);
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sim::fault::FaultClass;
    use crate::sim::history::random;

    /// Histories in which much is written, long ones among them.
    fn timelines() -> impl Iterator<Item = Timeline> {
        let kinds = [&FaultClass::HARMLESS[..], &FaultClass::HARMFUL[..]].concat();
        (0..40).map(move |seed| Timeline::of(&random(seed, &kinds, None, 300)))
    }

    #[test]
    fn no_words_stand_on_others() {
        let mut lines = 0;
        for (seed, timeline) in timelines().enumerate() {
            let layout = Layout::of(&timeline);
            let mut written: BTreeMap<(i32, Row), i32> = BTreeMap::new();
            for (column, moment) in timeline.moments() {
                let at = layout.edge(column);
                let line = layout.lines.iter().find(|line| line.contains(&at)).expect("a line");
                for (row, width) in moment.words() {
                    let end = written.insert((line.start, row), at + width).unwrap_or(0);
                    assert!(end <= at, "seed {seed}: {row:?} at {at} and {end}");
                    assert!(at + width <= line.start + LINE, "seed {seed}: {row:?} at {at} is cut off");
                }
            }
            lines += layout.lines.len();
        }
        assert!(lines > 80, "only {lines} lines");
    }

    #[test]
    fn a_moment_has_its_place_in_its_span() {
        for (seed, timeline) in timelines().enumerate() {
            let layout = Layout::of(&timeline);
            for (place, column) in timeline.columns.iter().enumerate() {
                let (Column::Passing { from, to } | Column::Afterwards { from, to }) = column else {
                    continue;
                };
                if to.since(*from) < Duration::from_micros(1) {
                    continue;
                }
                let (left, right) = (layout.edge(place), layout.edge(place + 1));
                assert_eq!(layout.place(&timeline, *to), Some(right), "seed {seed}");
                let middle = layout.place(&timeline, *from + to.since(*from) / 2).expect("a place");
                assert!((middle - (left + right) / 2).abs() <= 1, "seed {seed}: {left}, {middle}, {right}");
            }
        }
    }

    #[test]
    fn times_are_written_in_the_largest_unit_that_fits() {
        let written = |nanos| in_words(Duration::from_nanos(nanos), 4);
        assert_eq!(written(0), "0");
        assert_eq!(written(999), "999 ns");
        assert_eq!(written(100_000), "100 µs");
        assert_eq!(written(1_100_000), "1.1 ms");
        assert_eq!(written(20_000_000), "20 ms");
        assert_eq!(written(2_000_100_000), "2.0001 s");
        assert_eq!(length_in_words(Duration::from_millis(1_978)), "1.98 s");
    }
}
