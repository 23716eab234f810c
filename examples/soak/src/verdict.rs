//! What the logs and the database come to, when all is over.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use crate::harness::witness::{Held, Moment, overlaps};
use crate::store::Write;

/// What was done to the workers.
#[derive(Clone, Default)]
pub(crate) struct Doings {
    /// Who was stopped, from when until when.
    pub(crate) stops: Vec<(String, Moment, Moment)>,
    /// When a worker was gone.
    pub(crate) deaths: BTreeMap<String, Moment>,
}

impl Doings {
    /// Takes in when a worker was not run though nobody stopped it, as its log has it: the machine had no time for it. How often.
    fn add_standstills(&mut self, worker: &str, log: &str) -> usize {
        let mut added = 0;
        for line in log.lines().filter_map(|line| line.strip_prefix("stood ")) {
            let Some((from, until)) = line.split_once(' ') else { continue };
            let (Ok(from), Ok(until)) = (from.parse().map(Moment), until.parse().map(Moment)) else {
                continue;
            };
            if self.stop_within(worker, from, until).is_none() {
                self.stops.push((worker.to_owned(), from, until));
                added += 1;
            }
        }
        added
    }

    /// The stop in which a worker was at some time between two moments.
    fn stop_within(&self, worker: &str, from: Moment, until: Moment) -> Option<&(String, Moment, Moment)> {
        self.stops
            .iter()
            .find(|(name, stopped, continued)| name == worker && *stopped <= until && from <= *continued)
    }
}

#[derive(Default)]
pub(crate) struct Verdict {
    pub(crate) grants: usize,
    pub(crate) losses: usize,
    /// How long after the end of its validity a worker that was not stopped was told of its loss; and how long after it went on
    /// one that was.
    pub(crate) worst_lateness: Duration,
    pub(crate) worst_lateness_on_waking: Duration,
    pub(crate) waits: Vec<Duration>,
    pub(crate) writes: usize,
    /// Writes of stopped workers that overwrote others', and how many increments are missing by that.
    pub(crate) stale: usize,
    pub(crate) overwritten: u64,
    /// Writes of stopped workers that came after the end of the validity.
    pub(crate) late: usize,
    pub(crate) busy: usize,
    /// How often the machine had no time for a worker, by its own account.
    pub(crate) standstills: usize,
    /// By kind.
    pub(crate) violations: BTreeMap<&'static str, Vec<String>>,
}

/// One hold, as its log has it.
#[derive(Clone, Copy)]
struct Hold {
    from: Moment,
    valid_until: Moment,
    ended: Option<Moment>,
}

pub(crate) fn judge(
    logs: &BTreeMap<String, String>,
    writes: &[Write],
    counter: u64,
    doings: &Doings,
) -> Verdict {
    let mut verdict = Verdict { writes: writes.len(), ..Verdict::default() };
    let mut doings = doings.clone();
    verdict.standstills = logs.iter().map(|(worker, log)| doings.add_standstills(worker, log)).sum();
    let mut holds = Vec::new();
    for (worker, log) in logs {
        let of_worker = verdict.read(worker, log, writes, &doings);
        holds.extend(of_worker.into_values().map(|hold| {
            let alive = hold.ended.or_else(|| doings.deaths.get(worker).copied()).unwrap_or(hold.valid_until);
            let (what, who) = ("the counter".to_owned(), worker.clone());
            Held { what, who, from: hold.from, until: hold.valid_until.min(alive) }
        }));
    }
    verdict.grants = holds.len();
    for (one, other) in overlaps(holds) {
        verdict.violated("two holders at once", format!("{one:?}, {other:?}"));
    }
    verdict.follow(writes, counter, &doings);
    verdict
}

impl Verdict {
    /// One worker's log.
    fn read(&mut self, worker: &str, log: &str, writes: &[Write], doings: &Doings) -> BTreeMap<u64, Hold> {
        let of_worker: BTreeMap<u64, &Write> =
            writes.iter().filter(|write| write.worker == worker).map(|write| (write.number, write)).collect();
        let mut holds: BTreeMap<u64, Hold> = BTreeMap::new();
        // The last line may be cut where the worker was killed.
        let whole = log.rfind('\n').map_or("", |end| &log[..end]);
        for line in whole.lines() {
            let mut words = line.split(' ');
            let kind = words.next().unwrap_or_default();
            let numbers: Vec<u64> = words.filter_map(|word| word.parse().ok()).collect();
            match (kind, numbers[..].first_chunk::<1>(), &numbers[..]) {
                ("granted", _, &[hold, asked, from]) => {
                    let from = Moment(from);
                    self.waits.push(from.since(Moment(asked)));
                    holds.insert(hold, Hold { from, valid_until: from, ended: None });
                }
                ("valid", _, &[hold, until]) => {
                    let hold = holds.get_mut(&hold).expect("granted before");
                    hold.valid_until = hold.valid_until.max(Moment(until));
                }
                ("ended", _, &[hold, at]) => {
                    holds.get_mut(&hold).expect("granted before").ended = Some(Moment(at));
                }
                ("lost", _, &[_, told, valid_until]) => {
                    self.told(worker, Moment(told), Moment(valid_until), doings);
                }
                ("wrote", _, &[hold, number, done]) => match of_worker.get(&number) {
                    Some(write) => self.in_time(write, &holds[&hold], Moment(done), doings),
                    None => self.violated("a write is gone", format!("{number} of {worker}")),
                },
                ("busy", ..) => self.busy += 1,
                ("shutdown" | "released" | "stood", ..) => {}
                _ => self.violated("not understood", format!("{worker} says {line:?}")),
            }
        }
        holds
    }

    fn told(&mut self, worker: &str, told: Moment, valid_until: Moment, doings: &Doings) {
        self.losses += 1;
        let (worst, since) = match doings.stop_within(worker, valid_until, told) {
            Some((_, _, continued)) => (&mut self.worst_lateness_on_waking, valid_until.max(*continued)),
            None => (&mut self.worst_lateness, valid_until),
        };
        *worst = (*worst).max(told.since(since));
    }

    /// Only who was stopped between its check and its write may write after its validity.
    fn in_time(&mut self, write: &Write, hold: &Hold, done: Moment, doings: &Doings) {
        if done <= hold.valid_until {
            return;
        }
        if doings.stop_within(&write.worker, write.checked, done).is_some() {
            self.late += 1;
        } else {
            self.violated("written after the validity without having been stopped", format!("{write:?}"));
        }
    }

    pub(crate) fn violated(&mut self, kind: &'static str, what: String) {
        self.violations.entry(kind).or_default().push(what);
    }

    /// Each write goes on from the one before it. Only who was stopped between its check and its write may intrude between what
    /// another has read and what it writes.
    fn follow(&mut self, writes: &[Write], counter: u64, doings: &Doings) {
        let mut value = 0;
        // As it was before one or more intruders wrote.
        let mut undisturbed = None;
        for write in writes {
            if doings.stop_within(&write.worker, write.checked, write.written).is_some() {
                self.stale += usize::from(write.read != value);
                undisturbed = undisturbed.or(Some(value));
            } else if write.read == value || undisturbed == Some(write.read) {
                undisturbed = None;
            } else {
                self.violated("stale without having been stopped", format!("over {value}: {write:?}"));
            }
            value = write.read + 1;
        }
        if counter != value {
            self.violated("another counter", format!("{counter} after {value} was written"));
        }
        self.overwritten = (writes.len() as u64).saturating_sub(counter);
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut waits = self.waits.clone();
        waits.sort_unstable();
        let of = |thousandths: usize| {
            waits
                .get((waits.len() * thousandths / 1_000).min(waits.len().saturating_sub(1)))
                .copied()
                .unwrap_or_default()
        };
        writeln!(
            f,
            "{:>7}  grants, waited for: {:.1?} at the median, {:.1?} of 99 in 100, {:.1?} at most",
            self.grants,
            of(500),
            of(990),
            of(1_000)
        )?;
        writeln!(
            f,
            "{:>7}  increments, and {} that found the database taken by another",
            self.writes, self.busy
        )?;
        writeln!(
            f,
            "{:>7}  losses told, at worst {:.1?} after the end of the validity; to stopped workers {:.1?} after they went on",
            self.losses, self.worst_lateness, self.worst_lateness_on_waking
        )?;
        writeln!(
            f,
            "{:>7}  writes of stopped workers after their validity, which a fence would refuse",
            self.late
        )?;
        writeln!(
            f,
            "{:>7}  stale writes of stopped workers, by which {} increments were lost",
            self.stale, self.overwritten
        )?;
        writeln!(f, "{:>7}  standstills of workers that nobody had stopped", self.standstills)?;
        writeln!(f, "{:>7}  violations", self.violations.values().map(Vec::len).sum::<usize>())?;
        for (kind, violations) in &self.violations {
            writeln!(f, "{:>7}  {kind}:", violations.len())?;
            violations.iter().take(5).try_for_each(|violation| writeln!(f, "         {violation}"))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(worker: &str, read: u64, checked: u64) -> Write {
        let (checked, written) = (Moment(checked), Moment(checked + 1));
        Write { worker: worker.to_owned(), number: checked.0, read, checked, written }
    }

    fn violations(writes: &[Write], counter: u64, stopped: &str) -> usize {
        let doings =
            Doings { stops: vec![(stopped.to_owned(), Moment(0), Moment(100))], ..Doings::default() };
        judge(&BTreeMap::new(), writes, counter, &doings).violations.values().flatten().count()
    }

    #[test]
    fn a_write_must_go_on_from_the_one_before_it() {
        assert_eq!(violations(&[write("a", 0, 1), write("b", 1, 2)], 2, "nobody"), 0);
        assert_eq!(violations(&[write("a", 0, 1), write("b", 0, 2)], 1, "nobody"), 1);
        assert_eq!(violations(&[write("a", 0, 1), write("b", 1, 2)], 1, "nobody"), 1, "another counter");
    }

    #[test]
    fn only_who_was_stopped_may_intrude_and_only_once_for_each_that_is_disturbed() {
        let disturbed = [write("a", 0, 1), write("b", 0, 2), write("a", 1, 3)];
        assert_eq!(violations(&disturbed, 2, "b"), 0);
        assert_eq!(violations(&disturbed, 2, "nobody"), 1);
        let again = [&disturbed[..], &[write("c", 1, 4)]].concat();
        assert_eq!(violations(&again, 2, "b"), 1);
    }

    #[test]
    fn who_writes_after_the_validity_must_have_been_stopped() {
        let log = "granted 1 0 10\nvalid 1 20\nwrote 1 15 30\nended 1 40\n".to_owned();
        let logs = BTreeMap::from([("a".to_owned(), log)]);
        let late = |doings: &Doings| judge(&logs, &[write("a", 0, 15)], 1, doings);
        assert_eq!(late(&Doings::default()).violations.len(), 1);
        let stopped = Doings { stops: vec![("a".to_owned(), Moment(16), Moment(29))], ..Doings::default() };
        assert_eq!((late(&stopped).violations.len(), late(&stopped).late), (0, 1));
        let by_its_own_account = BTreeMap::from([("a".to_owned(), format!("{}stood 16 29\n", logs["a"]))]);
        let verdict = judge(&by_its_own_account, &[write("a", 0, 15)], 1, &Doings::default());
        assert_eq!((verdict.violations.len(), verdict.late, verdict.standstills), (0, 1, 1));
    }
}
