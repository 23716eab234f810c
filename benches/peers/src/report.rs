//! Tables and pictures of what was measured.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use crate::chart::{Bar as ChartBar, Lines, bars, short};
use crate::measure::Record;
use crate::plan::{Program, key};
use crate::statistics::Spread;

/// All that was measured, to be asked by case, program and figure.
pub struct Results<'a> {
    records: &'a [Record],
    /// What programs are called, in the order of tables.
    names: Vec<(&'a str, &'a str)>,
}

/// What is asked of this library.
struct Bar {
    what: String,
    against: String,
    least: f64,
    aim: f64,
    /// Whether less is better.
    less: bool,
    measured: Option<Spread>,
}

impl Bar {
    /// A row holds unless its whole interval misses.
    fn holds(&self, bound: f64) -> Option<bool> {
        self.measured.map(|spread| if self.less { spread.low <= bound } else { spread.high >= bound })
    }

    /// The aim is reached by the median: noise alone reaches nothing.
    fn reaches_the_aim(&self) -> bool {
        let reached = |spread: Spread| {
            if self.less { spread.median <= self.aim } else { spread.median >= self.aim }
        };
        self.measured.is_some_and(reached)
    }
}

impl<'a> Results<'a> {
    /// Of these records.
    pub fn new(records: &'a [Record], programs: &'a [Program]) -> Self {
        Results { records, names: programs.iter().map(|program| (program.id, program.name)).collect() }
    }

    fn name(&self, program: &str) -> String {
        let found = self.names.iter().find(|(id, _)| *id == program);
        found.map_or(program, |(_, name)| name).to_owned()
    }

    fn by_block(&self, case: &str, program: &str, figure: &str) -> BTreeMap<usize, f64> {
        let of_these = self.records.iter().filter(|record| record.case == case && record.program == program);
        of_these.filter_map(|record| Some((record.block, *record.figures.get(figure)?))).collect()
    }

    fn spread(&self, case: &str, program: &str, figure: &str) -> Option<Spread> {
        let values: Vec<_> = self.by_block(case, program, figure).into_values().collect();
        Spread::of(&values)
    }

    fn median(&self, case: &str, program: &str, figure: &str) -> Option<f64> {
        self.spread(case, program, figure).map(|spread| spread.median)
    }

    /// Block by block, how one stands to the other.
    fn ratio(&self, case: &str, figure: &str, ours: &str, theirs: &str) -> Option<Spread> {
        let theirs = self.by_block(case, theirs, figure);
        let ours = self.by_block(case, ours, figure);
        let ratios: Vec<_> =
            ours.iter().filter_map(|(block, value)| Some(value / theirs.get(block)?)).collect();
        // Nothing was counted at the other's, so there is no ratio.
        Spread::of(&ratios.into_iter().filter(|ratio| ratio.is_finite()).collect::<Vec<_>>())
    }

    fn failures(&self, program: &str) -> usize {
        self.records.iter().filter(|record| record.program == program && record.failure.is_some()).count()
    }

    fn bars(&self) -> Vec<Bar> {
        let mut rows = Vec::new();
        for (nodes, least, aim) in [(1, 0.95, 0.87), (3, 0.87, 0.80), (5, 0.85, 0.78)] {
            let measured = self.ratio(&key("pairs", nodes, 1), "p50", "ours-1", "rslock-1");
            let what = format!("sequential p50, N = {nodes}");
            rows.push(Bar { what, against: "rslock, one thread".into(), least, aim, less: true, measured });
        }
        let mut rates = |nodes, tasks, ours: &str, theirs: &str, least, aim| {
            let measured = self.ratio(&key("pairs", nodes, tasks), "rate", ours, theirs);
            let threads = if ours == "ours-1" { "one thread" } else { "two threads" };
            let what = format!("pairs/s at {tasks} tasks, {threads}, N = {nodes}");
            let against = self.name(theirs);
            rows.push(Bar { what, against, least, aim, less: false, measured });
        };
        for (nodes, least, aim) in [(1, 1.4, 2.0), (3, 1.6, 2.5), (5, 1.8, 2.9)] {
            rates(nodes, 64, "ours-1", "rslock-1", least, aim);
        }
        for (nodes, least, aim) in [(3, 2.0, 3.9), (5, 2.2, 4.1)] {
            rates(nodes, 64, "ours-2", "rslock-2", least, aim);
        }
        for (nodes, least, aim) in [(3, 12.0, 18.0), (5, 14.0, 23.0)] {
            rates(nodes, 64, "ours-1", "redsync", least, aim);
        }
        rates(1, 64, "ours-1", "rueidislock", 3.0, 5.5);
        for tasks in [64, 256] {
            for nodes in [1, 3, 5] {
                rates(nodes, tasks, "ours-1", "wire-1", 0.6, 0.95);
            }
        }
        let absolute = |what: &str, case: String, program: &str, figure: &str, least, aim, less| Bar {
            what: what.to_owned(),
            against: "absolute".into(),
            least,
            aim,
            less,
            measured: self.spread(&case, program, figure),
        };
        let pairs = key("pairs", 3, 64);
        rows.push(absolute(
            "allocations per pair, N = 3",
            pairs,
            "counted-1",
            "allocations",
            24.0,
            8.0,
            true,
        ));
        let local = "64 tasks of one process on one resource";
        for nodes in [1, 3, 5] {
            let bound = 2.0 * nodes as f64;
            let what = format!("{local}: commands per acquire, N = {nodes}");
            // What comes beside the commands of a pair, once for each connection, is less than a hundredth.
            let spread = self.spread(&key("contended", nodes, 64), "ours-1", "commands");
            let measured = spread.map(|Spread { low, median, high, values }| {
                let [low, median, high] = [low, median, high].map(|value| (value * 100.0).round() / 100.0);
                Spread { low, median, high, values }
            });
            rows.push(Bar {
                what,
                against: "absolute".into(),
                least: bound,
                aim: bound,
                less: true,
                measured,
            });
        }
        let contended = || key("contended", 3, 64);
        let fairness = format!("{local}: fairness min/max per task, N = 3");
        rows.push(absolute(&fairness, contended(), "ours-1", "fairness", 0.9, 0.99, false));
        let retry = "rslock with 1 ms retry";
        let against_rslock = |what: String, case: String, least, aim| Bar {
            what,
            against: retry.into(),
            least,
            aim,
            less: false,
            measured: self.ratio(&case, "rate", "ours-1", "rslock-1"),
        };
        rows.push(against_rslock(format!("{local}: rate, N = 3"), contended(), 6.0, 13.0));
        for (work, what) in [("clients", "64 clients of one process"), ("processes", "64 processes")] {
            let case = || key(work, 3, 64);
            rows.push(against_rslock(format!("{what} on one resource, N = 3: rate"), case(), 5.0, 10.0));
            let commands = format!("{what} on one resource, N = 3: commands per acquire");
            rows.push(absolute(&commands, case(), "ours-1", "commands", 35.0, 25.0, true));
        }
        rows.push(Bar {
            what: "hand-off p50 between two clients, N = 3".into(),
            against: "redsync with 1 ms retry".into(),
            least: 0.3,
            aim: 0.2,
            less: true,
            measured: self.ratio(&key("handoff", 3, 2), "p50", "ours-1", "redsync"),
        });
        let of_ours = ["ours-1", "ours-2", "fenced-1", "counted-1", "counted-2", "held", "round"];
        let hangs = of_ours.map(|program| self.failures(program)).iter().sum::<usize>() as f64;
        let blocks = self.records.iter().filter(|record| of_ours.contains(&record.program.as_str())).count();
        rows.push(Bar {
            what: "hangs and other failures, in all blocks".into(),
            against: "absolute".into(),
            least: 0.0,
            aim: 0.0,
            less: true,
            measured: Spread::of(&[hangs]).map(|hangs| Spread { values: blocks, ..hangs }),
        });
        let one_key = key("loop", 1, 2);
        for (peer, name) in [("redislock", "bsm/redislock"), ("rueidislock", "rueidislock")] {
            for (figure, unit) in [("ns", "ns/op"), ("allocations", "allocations/op"), ("bytes", "bytes/op")]
            {
                rows.push(Bar {
                    what: format!("one key, one server, a loop on all cores: {unit}"),
                    against: name.into(),
                    // Ahead, and no more is asked of what is no time.
                    least: 0.999,
                    aim: 0.3,
                    less: true,
                    measured: self.ratio(&one_key, figure, "counted-2", peer),
                });
            }
        }
        rows
    }

    /// The table with what is asked.
    fn table_of_bars(&self) -> String {
        let mut text = String::from(
            "| what | against | measured: median (10 to 90 %) | blocks | at least | aim | |\n|---|---|--:|--:|--:|--:|---|\n",
        );
        for bar in self.bars() {
            let times = if bar.against == "absolute" { "" } else { " x" };
            let verdict = match bar.holds(bar.least) {
                None => "not measured",
                Some(false) => "**misses**",
                Some(true) if bar.reaches_the_aim() => "holds, aim reached",
                Some(true) => "holds",
            };
            let measured =
                bar.measured.map_or_else(|| "-".into(), |spread| format!("{}{times}", interval(spread)));
            let blocks = bar.measured.map_or(0, |spread| spread.values);
            let least =
                if bar.least == 0.999 { "ahead".into() } else { format!("{}{times}", short(bar.least)) };
            let Bar { what, against, aim, .. } = bar;
            writeln!(
                text,
                "| {what} | {against} | {measured} | {blocks} | {least} | {}{times} | {verdict} |",
                short(aim)
            )
            .expect("a string");
        }
        text
    }

    /// Who was measured in a case: not those who only count their allocations.
    fn taking_part(&self, case: &str) -> Vec<&str> {
        let mut programs: Vec<&str> = Vec::new();
        for record in self.records.iter().filter(|record| record.case == case) {
            let counts = record.program.starts_with("counted") && !case.starts_with("loop");
            if !counts && !programs.contains(&record.program.as_str()) {
                programs.push(&record.program);
            }
        }
        programs
    }

    /// One row for each program that took part, with these figures of one case.
    fn table(&self, case: &str, figures: &[(&str, &str)]) -> String {
        let mut taking_part = self.taking_part(case);
        taking_part.sort_by_key(|program| self.names.iter().position(|(id, _)| id == program));
        let mut text =
            format!("| | {} |\n|---|", figures.iter().map(|(_, name)| *name).collect::<Vec<_>>().join(" | "));
        text.push_str(&"--:|".repeat(figures.len()));
        text.push('\n');
        for program in taking_part {
            write!(text, "| {} |", self.name(program)).expect("a string");
            for (figure, _) in figures {
                let cell = match *figure {
                    "failures" => {
                        let failed = |record: &&Record| {
                            record.case == case && record.program == program && record.failure.is_some()
                        };
                        self.records.iter().filter(failed).count().to_string()
                    }
                    figure => self.spread(case, program, figure).map_or_else(|| "-".into(), interval),
                };
                write!(text, " {cell} |").expect("a string");
            }
            text.push('\n');
        }
        text
    }

    fn share_of_the_wire(&self) -> String {
        let mut text = String::from(
            "| N | tasks | one thread | two threads | one thread, where the wire releases in one call, too |\n|--:|--:|--:|--:|--:|\n",
        );
        for nodes in [1, 3, 5, 7] {
            for tasks in [1, 16, 64, 256] {
                let share = |ours, theirs| {
                    let ratio = self.ratio(&key("pairs", nodes, tasks), "rate", ours, theirs);
                    ratio.map_or_else(|| "-".into(), interval)
                };
                let (one, two) = (share("ours-1", "wire-1"), share("ours-2", "wire-2"));
                let together = share("ours-1", "together-1");
                if (one.as_str(), two.as_str()) != ("-", "-") {
                    writeln!(text, "| {nodes} | {tasks} | {one} | {two} | {together} |").expect("a string");
                }
            }
        }
        text
    }

    /// What this library costs when nobody else is there.
    fn alone(&self) -> String {
        let mut text = String::from(
            "| N | round without IO, ns | its allocations | pair on in-memory nodes, ns | its allocations | allocations \
             per pair on servers, 1 task | 64 tasks | rslock, 64 tasks |\n|--:|--:|--:|--:|--:|--:|--:|--:|\n",
        );
        for nodes in [1, 3, 5] {
            let cell = |work, tasks, program, figure| {
                self.median(&key(work, nodes, tasks), program, figure).map_or_else(|| "-".into(), short)
            };
            writeln!(
                text,
                "| {nodes} | {} | {} | {} | {} | {} | {} | {} |",
                cell("round", 1, "round", "ns"),
                cell("round", 1, "round", "allocations"),
                cell("memory", 1, "round", "ns"),
                cell("memory", 1, "round", "allocations"),
                cell("pairs", 1, "counted-1", "allocations"),
                cell("pairs", 64, "counted-1", "allocations"),
                cell("pairs", 64, "counted-rslock", "allocations"),
            )
            .expect("a string");
        }
        text.push('\n');
        for count in [10_000, 100_000] {
            let case = key("renewals", 3, count);
            if let (Some(cpu), Some(renewed)) =
                (self.median(&case, "held", "cpu"), self.median(&case, "held", "rate"))
            {
                writeln!(
                    text,
                    "* {count} held locks, renewed {renewed:.0} times a second, N = 3: {} µs of the client's processor \
                     time for a renewal.",
                    short(cpu)
                )
                .expect("a string");
            }
        }
        let bytes = |work, count, what| {
            let bytes = self.median(&key(work, 3, count), "held", "bytes");
            bytes.map(|bytes| format!("* {} bytes for {what}, N = 3.\n", short(bytes))).unwrap_or_default()
        };
        text.push_str(&bytes("held", 10_000, "a held lock"));
        text.push_str(&bytes("waiters", 1_000, "a task that waits, the task itself included"));
        text
    }

    /// The text, and the pictures by name.
    pub fn write(
        &self,
        about: &str,
        skipped: &str,
        instructions: &str,
    ) -> (String, Vec<(&'static str, String)>) {
        let mut text = format!("# Side by side with the others\n\n{about}\n{skipped}\n## What is asked\n\n");
        text.push_str(
            "Ratios are taken block by block: each of this library's to the other's of the same turn. A row holds unless its \
             whole interval misses; an aim is reached by the median. One thread is tokio's `current_thread`, two threads `multi_thread` with two workers.\n\n",
        );
        text.push_str(&self.table_of_bars());
        text.push_str("\n## Pairs of acquire and release\n\nMedian (10 to 90 %) of the blocks; times in µs, processor time for a pair.\n\n![](pairs.svg)\n");
        for nodes in [1, 3, 5, 7] {
            let case = key("pairs", nodes, 1);
            if !self.taking_part(&case).is_empty() {
                write!(text, "\n### N = {nodes}: one after the other\n\n").expect("a string");
                text.push_str(
                    &self.table(&case, &[("p50", "p50"), ("p99", "p99"), ("failures", "failed blocks")]),
                );
            }
            for tasks in [16, 64, 256] {
                let case = key("pairs", nodes, tasks);
                if !self.taking_part(&case).is_empty() {
                    write!(text, "\n### N = {nodes}: {tasks} tasks\n\n").expect("a string");
                    let figures = [
                        ("rate", "pairs/s"),
                        ("cpu", "client's CPU, µs"),
                        ("server cpu", "servers' CPU, µs"),
                    ];
                    text.push_str(
                        &self.table(&case, &[&figures[..], &[("failures", "failed blocks")]].concat()),
                    );
                }
            }
        }
        text.push_str("\n## Share of the wire\n\n");
        text.push_str(&self.share_of_the_wire());
        text.push_str("\n## One resource that many want\n\n![](contended.svg)\n");
        let figures = [
            ("rate", "acquired/s"),
            ("commands", "commands per acquire"),
            ("fairness", "min/max"),
            ("p50", "wait p50, µs"),
            ("p99", "wait p99, µs"),
            ("failures", "hangs, failures"),
        ];
        for (work, tasks, what) in [
            ("contended", 8, "8 tasks of one client"),
            ("contended", 64, "64 tasks of one client"),
            ("clients", 64, "64 clients of one process"),
            ("processes", 2, "2 processes"),
            ("processes", 8, "8 processes"),
            ("processes", 64, "64 processes"),
        ] {
            for nodes in [1, 3, 5] {
                let case = key(work, nodes, tasks);
                if !self.taking_part(&case).is_empty() {
                    write!(text, "\n### {what}, N = {nodes}\n\n").expect("a string");
                    text.push_str(&self.table(&case, &figures));
                }
            }
        }
        text.push_str(
            "\n## From one client to another\n\nFrom the begin of the release to the other's acquisition.\n",
        );
        for nodes in [1, 3, 5] {
            let case = key("handoff", nodes, 2);
            if !self.taking_part(&case).is_empty() {
                write!(text, "\n### N = {nodes}\n\n").expect("a string");
                text.push_str(
                    &self.table(&case, &[("p50", "p50, µs"), ("p99", "p99, µs"), ("failures", "hangs")]),
                );
            }
        }
        text.push_str(
            "\n## One key, one server, all cores in a loop\n\nThe benchmark of rueidislock's README.\n\n",
        );
        let figures = [
            ("ns", "ns/op"),
            ("bytes", "bytes/op"),
            ("allocations", "allocations/op"),
            ("failures", "hangs"),
        ];
        text.push_str(&self.table(&key("loop", 1, 2), &figures));
        write!(text, "\n## This library alone\n\n{}{instructions}\n", self.alone()).expect("a string");
        text.push_str("\n![](nodes.svg)\n\n![](held.svg)\n\n![](waiters.svg)\n");
        (text, self.pictures())
    }

    fn pictures(&self) -> Vec<(&'static str, String)> {
        let chart = |cases: &[(String, String)]| -> Vec<(String, Vec<ChartBar>)> {
            let group = |(title, case): &(String, String)| {
                let bar = |(id, name): &(&str, &str)| {
                    let spread = self.spread(case, id, "rate")?;
                    let counted = id.starts_with("counted") || *id == "held";
                    let accent = id.starts_with("ours");
                    (!counted).then(|| ChartBar { label: (*name).to_owned(), spread, accent })
                };
                let mut bars: Vec<_> = self.names.iter().filter_map(bar).collect();
                bars.sort_by(|one, other| other.spread.median.total_cmp(&one.spread.median));
                (title.clone(), bars)
            };
            cases.iter().map(group).filter(|(_, bars)| !bars.is_empty()).collect()
        };
        let pairs: Vec<_> = [1, 3, 5].map(|nodes| (format!("N = {nodes}"), key("pairs", nodes, 64))).into();
        let contended = [
            ("64 tasks of one client, N = 3".to_owned(), key("contended", 3, 64)),
            ("64 clients of one process, N = 3".to_owned(), key("clients", 3, 64)),
            ("64 processes, N = 3".to_owned(), key("processes", 3, 64)),
        ];
        let series = |name: &str, program: &str, figure: &str, scale: f64, cases: &[(f64, String)]| {
            let point = |(x, case): &(f64, String)| Some((*x, scale * self.median(case, program, figure)?));
            (name.to_owned(), cases.iter().filter_map(point).collect::<Vec<_>>())
        };
        let by_nodes =
            |tasks| (1..=9).map(|nodes| (nodes as f64, key("pairs", nodes, tasks))).collect::<Vec<_>>();
        let by = |work, counts: &[usize]| -> Vec<_> {
            counts.iter().map(|count| (*count as f64, key(work, 3, *count))).collect()
        };
        let held = by("held", &[1, 1_000, 10_000, 50_000]);
        let waiters = by("waiters", &[1, 10, 100, 1_000, 3_000]);
        let lines = |title, across, up, logarithmic, series: Vec<(String, Vec<(f64, f64)>)>| {
            let series: Vec<_> = series.into_iter().filter(|(_, points)| !points.is_empty()).collect();
            Lines { title, across, up, logarithmic, series }.draw()
        };
        vec![
            ("pairs.svg", bars("Pairs of acquire and release at 64 tasks", "pairs a second", &chart(&pairs))),
            ("contended.svg", bars("One resource that 64 want", "acquisitions a second", &chart(&contended))),
            (
                "nodes.svg",
                lines(
                    "What more nodes cost (one thread)",
                    "nodes",
                    "",
                    false,
                    vec![
                        series("pairs/ms, 64 tasks", "ours-1", "rate", 1e-3, &by_nodes(64)),
                        series("the wire, pairs/ms", "wire-1", "rate", 1e-3, &by_nodes(64)),
                        series("sequential p50, 10 µs", "ours-1", "p50", 0.1, &by_nodes(1)),
                        series("allocations per pair", "counted-1", "allocations", 1.0, &by_nodes(64)),
                    ],
                ),
            ),
            (
                "held.svg",
                lines(
                    "Pairs beside held locks (N = 3, 64 tasks, one thread)",
                    "held locks",
                    "pairs a second",
                    true,
                    vec![series("pairs/s", "held", "rate", 1.0, &held)],
                ),
            ),
            (
                "waiters.svg",
                lines(
                    "One lock through many hands (N = 3, one client, one thread)",
                    "waiting tasks",
                    "hand-offs a second",
                    true,
                    vec![series("hand-offs/s", "held", "rate", 1.0, &waiters)],
                ),
            ),
        ]
    }
}

fn interval(spread: Spread) -> String {
    if spread.low == spread.high {
        return short(spread.median);
    }
    format!("{} ({} to {})", short(spread.median), short(spread.low), short(spread.high))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_holds_unless_its_whole_interval_misses() {
        let bar = |low, high, less| Bar {
            what: String::new(),
            against: String::new(),
            least: 1.0,
            aim: 1.0,
            less,
            measured: Some(Spread { low, median: (low + high) / 2.0, high, values: 12 }),
        };
        assert_eq!(bar(0.5, 1.1, false).holds(1.0), Some(true));
        assert_eq!(bar(0.5, 0.9, false).holds(1.0), Some(false));
        assert_eq!(bar(0.5, 1.1, true).holds(1.0), Some(true));
        assert_eq!(bar(1.1, 1.5, true).holds(1.0), Some(false));
        assert_eq!(Bar { measured: None, ..bar(0.0, 0.0, true) }.holds(1.0), None);
    }
}
