//! What a worker writes down while it lives, a line each in one write: what it knew is known also when it is killed. A line that
//! is whole is true.

use std::fmt;

use crate::harness::witness::Moment;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Line {
    /// It has the lock, for which it asked before.
    Granted {
        hold: u64,
        asked: Moment,
        from: Moment,
    },
    /// A node had granted it, as far as was heard.
    By {
        hold: u64,
        node: usize,
    },
    /// Until when it is valid, where that was news.
    Valid {
        hold: u64,
        until: Moment,
    },
    Wrote {
        hold: u64,
        number: u64,
        done: Moment,
    },
    /// A write found the database taken.
    Busy,
    /// It was told that its lock is lost, which it thought to be valid until then.
    Lost {
        hold: u64,
        told: Moment,
        valid_until: Moment,
    },
    /// From here on it does not use the lock.
    Ended {
        hold: u64,
        at: Moment,
    },
    /// It was not run for so long.
    Stood {
        from: Moment,
        until: Moment,
    },
    /// For this worker a node does not vote, since it may have forgotten what it granted; and does again.
    Waits {
        node: usize,
        from: Moment,
    },
    Votes {
        node: usize,
        from: Moment,
    },
    /// How many tasks its runtime has.
    Tasks {
        count: usize,
    },
    /// For whoever reads the log.
    Remark,
}

/// The lines of a log. The last one may be cut where the worker was killed. What is not understood is given as it is.
pub(crate) fn lines(log: &str) -> impl Iterator<Item = Result<Line, &str>> {
    let whole = log.rfind('\n').map_or("", |end| &log[..end]);
    whole.lines().map(|line| Line::parse(line).ok_or(line))
}

impl Line {
    pub(crate) fn parse(line: &str) -> Option<Line> {
        let (kind, rest) = line.split_once(' ').unwrap_or((line, ""));
        let numbers: Option<Vec<u64>> = rest.split_terminator(' ').map(|word| word.parse().ok()).collect();
        let place = |number: u64| usize::try_from(number).ok();
        Some(match (kind, &numbers.unwrap_or_default()[..]) {
            ("granted", &[hold, asked, from]) => {
                Line::Granted { hold, asked: Moment(asked), from: Moment(from) }
            }
            ("by", &[hold, node]) => Line::By { hold, node: place(node)? },
            ("valid", &[hold, until]) => Line::Valid { hold, until: Moment(until) },
            ("wrote", &[hold, number, done]) => Line::Wrote { hold, number, done: Moment(done) },
            ("busy", []) => Line::Busy,
            ("lost", &[hold, told, valid_until]) => {
                Line::Lost { hold, told: Moment(told), valid_until: Moment(valid_until) }
            }
            ("ended", &[hold, at]) => Line::Ended { hold, at: Moment(at) },
            ("stood", &[from, until]) => Line::Stood { from: Moment(from), until: Moment(until) },
            ("waits", &[node, from]) => Line::Waits { node: place(node)?, from: Moment(from) },
            ("votes", &[node, from]) => Line::Votes { node: place(node)?, from: Moment(from) },
            ("tasks", &[count]) => Line::Tasks { count: place(count)? },
            ("released" | "shutdown", _) => Line::Remark,
            _ => return None,
        })
    }
}

impl fmt::Display for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Line::Granted { hold, asked, from } => write!(f, "granted {hold} {} {}", asked.0, from.0),
            Line::By { hold, node } => write!(f, "by {hold} {node}"),
            Line::Valid { hold, until } => write!(f, "valid {hold} {}", until.0),
            Line::Wrote { hold, number, done } => write!(f, "wrote {hold} {number} {}", done.0),
            Line::Busy => f.write_str("busy"),
            Line::Lost { hold, told, valid_until } => write!(f, "lost {hold} {} {}", told.0, valid_until.0),
            Line::Ended { hold, at } => write!(f, "ended {hold} {}", at.0),
            Line::Stood { from, until } => write!(f, "stood {} {}", from.0, until.0),
            Line::Waits { node, from } => write!(f, "waits {node} {}", from.0),
            Line::Votes { node, from } => write!(f, "votes {node} {}", from.0),
            Line::Tasks { count } => write!(f, "tasks {count}"),
            Line::Remark => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_and_a_line_that_is_cut_is_not() {
        let (hold, number, node, at) = (7, 3, 2, Moment(9));
        let all = [
            Line::Granted { hold, asked: at, from: Moment(10) },
            Line::By { hold, node },
            Line::Valid { hold, until: at },
            Line::Wrote { hold, number, done: at },
            Line::Busy,
            Line::Lost { hold, told: at, valid_until: Moment(8) },
            Line::Ended { hold, at },
            Line::Stood { from: at, until: Moment(10) },
            Line::Waits { node, from: at },
            Line::Votes { node, from: at },
            Line::Tasks { count: 5 },
        ];
        let log: String = all.iter().map(|line| format!("{line}\n")).collect();
        let read: Vec<_> = lines(&log).collect();
        assert_eq!(read, all.map(Ok));
        let cut = &log[..log.len() - 2];
        assert_eq!(lines(cut).count(), all.len() - 1);
        let strange: Vec<_> = lines("granted 1 2\nshutdown true\nvalid 1 x\n").collect();
        assert_eq!(strange, [Err("granted 1 2"), Ok(Line::Remark), Err("valid 1 x")]);
    }
}
