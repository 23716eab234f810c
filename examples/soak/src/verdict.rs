//! What the logs and the database come to, when all is over.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use crate::harness::storm::Fault;
use crate::harness::witness::{Held, Moment, overlaps};
use crate::log::{Line, lines};
use crate::store::Write;

/// What was done to the workers, and to the nodes.
#[derive(Clone, Default)]
pub(crate) struct Doings {
    /// In which place each worker works, by its name.
    pub(crate) places: BTreeMap<String, usize>,
    /// Who was stopped, from when until when.
    pub(crate) stops: Vec<(String, Moment, Moment)>,
    /// When a worker was gone.
    pub(crate) deaths: BTreeMap<String, Moment>,
    /// What was wrong, from when until it was healed.
    pub(crate) faults: Vec<(Fault, Moment, Moment)>,
}

impl Doings {
    /// When a worker was not run though nobody stopped it, as its log has it: the machine had no time for it.
    fn standstills(&self, worker: &str, log: &str) -> Vec<(String, Moment, Moment)> {
        let stood = lines(log).filter_map(|line| match line {
            Ok(Line::Stood { from, until }) => Some((worker.to_owned(), from, until)),
            _ => None,
        });
        stood.filter(|(worker, from, until)| self.stop_within(worker, *from, *until).is_none()).collect()
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
    pub(crate) holds: Vec<Hold>,
    /// What is worth a sign in the timeline.
    pub(crate) marks: Vec<Mark>,
    /// When a node did not vote for a worker, since it may have forgotten what it granted.
    pub(crate) waits: Vec<Wait>,
    pub(crate) losses: usize,
    /// How long after the end of its validity a worker that was not stopped was told of its loss; and how long after it went on
    /// one that was.
    pub(crate) worst_lateness: Duration,
    pub(crate) worst_lateness_on_waking: Duration,
    /// How long it took until a lock was granted.
    pub(crate) waited: Vec<Duration>,
    pub(crate) writes: usize,
    /// Writes of stopped workers that overwrote others', and how many increments are missing by that.
    pub(crate) stale: usize,
    pub(crate) overwritten: u64,
    /// Writes of stopped workers that came after the end of the validity.
    pub(crate) late: usize,
    pub(crate) busy: usize,
    /// When the machine had no time for a worker, by its own account.
    pub(crate) standstills: Vec<(String, Moment, Moment)>,
    pub(crate) violations: Vec<Violation>,
}

/// One hold, as its log has it.
#[derive(Clone, Debug)]
pub(crate) struct Hold {
    pub(crate) worker: String,
    pub(crate) from: Moment,
    pub(crate) valid_until: Moment,
    /// From then on the worker did not use it, since it released it, noticed its loss, or was killed.
    pub(crate) ended: Option<Moment>,
    /// The nodes that had granted it.
    pub(crate) by: Vec<usize>,
}

impl Hold {
    /// When it was over, as others see it.
    pub(crate) fn until(&self) -> Moment {
        self.ended.map_or(self.valid_until, |ended| ended.min(self.valid_until))
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Mark {
    pub(crate) worker: String,
    pub(crate) at: Moment,
    pub(crate) sign: Sign,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Sign {
    /// A loss was told.
    Lost,
    /// A stopped worker wrote after the end of its validity.
    Late,
    /// And over what another had written.
    Stale,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Wait {
    pub(crate) node: usize,
    pub(crate) from: Moment,
    /// None if it was not seen.
    pub(crate) until: Option<Moment>,
}

#[derive(Clone, Debug)]
pub(crate) struct Violation {
    pub(crate) kind: &'static str,
    /// If it happened at some moment.
    pub(crate) at: Option<Moment>,
    pub(crate) what: String,
}

pub(crate) fn judge(
    logs: &BTreeMap<String, String>,
    writes: &[Write],
    counter: u64,
    doings: &Doings,
) -> Verdict {
    let mut verdict = Verdict { writes: writes.len(), ..Verdict::default() };
    let mut doings = doings.clone();
    verdict.standstills = logs.iter().flat_map(|(worker, log)| doings.standstills(worker, log)).collect();
    doings.stops.extend(verdict.standstills.iter().cloned());
    for (worker, log) in logs {
        let holds = verdict.read(worker, log, writes, &doings);
        verdict.holds.extend(holds.into_values());
        verdict.waits.extend(waits(log, doings.deaths.get(worker).copied()));
    }
    let held = verdict.holds.iter().map(|hold| {
        let (what, who) = ("the counter".to_owned(), hold.worker.clone());
        Held { what, who, from: hold.from, until: hold.until() }
    });
    for (one, other) in overlaps(held.collect()) {
        verdict.violated("two holders at once", Some(other.from), format!("{one:?}, {other:?}"));
    }
    verdict.follow(writes, counter, &doings);
    verdict
}

/// When nodes did not vote for a worker, by its log.
fn waits(log: &str, death: Option<Moment>) -> Vec<Wait> {
    let mut waits: Vec<Wait> = Vec::new();
    for line in lines(log) {
        let (Ok(Line::Waits { node, from }) | Ok(Line::Votes { node, from })) = line else { continue };
        // Restarted once more, it waits anew.
        if let Some(open) = waits.iter_mut().find(|wait| wait.node == node && wait.until.is_none()) {
            open.until = Some(from);
        }
        if let Ok(Line::Waits { .. }) = line {
            waits.push(Wait { node, from, until: None });
        }
    }
    waits.into_iter().map(|wait| Wait { until: wait.until.or(death), ..wait }).collect()
}

impl Verdict {
    /// One worker's log.
    fn read(&mut self, worker: &str, log: &str, writes: &[Write], doings: &Doings) -> BTreeMap<u64, Hold> {
        let of_worker: BTreeMap<u64, &Write> =
            writes.iter().filter(|write| write.worker == worker).map(|write| (write.number, write)).collect();
        let mut holds: BTreeMap<u64, Hold> = BTreeMap::new();
        let granted = "granted before";
        for line in lines(log) {
            match line {
                Ok(Line::Granted { hold, asked, from }) => {
                    self.waited.push(from.since(asked));
                    let (worker, ended) = (worker.to_owned(), doings.deaths.get(worker).copied());
                    holds.insert(hold, Hold { worker, from, valid_until: from, ended, by: Vec::new() });
                }
                Ok(Line::By { hold, node }) => {
                    let by = &mut holds.get_mut(&hold).expect(granted).by;
                    if !by.contains(&node) {
                        by.push(node);
                    }
                }
                Ok(Line::Valid { hold, until }) => {
                    let hold = holds.get_mut(&hold).expect(granted);
                    hold.valid_until = hold.valid_until.max(until);
                }
                Ok(Line::Ended { hold, at }) => holds.get_mut(&hold).expect(granted).ended = Some(at),
                Ok(Line::Lost { told, valid_until, .. }) => self.told(worker, told, valid_until, doings),
                Ok(Line::Wrote { hold, number, done }) => match of_worker.get(&number) {
                    Some(write) => self.in_time(write, &holds[&hold], done, doings),
                    None => self.violated("a write is gone", Some(done), format!("{number} of {worker}")),
                },
                Ok(Line::Busy) => self.busy += 1,
                Ok(
                    Line::Stood { .. }
                    | Line::Waits { .. }
                    | Line::Votes { .. }
                    | Line::Tasks { .. }
                    | Line::Remark,
                ) => {}
                Err(line) => self.violated("not understood", None, format!("{worker} says {line:?}")),
            }
        }
        holds
    }

    fn told(&mut self, worker: &str, told: Moment, valid_until: Moment, doings: &Doings) {
        self.losses += 1;
        self.mark(worker, told, Sign::Lost);
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
            self.mark(&write.worker, write.written, Sign::Late);
        } else {
            let kind = "written after the validity without having been stopped";
            self.violated(kind, Some(write.written), format!("{write:?}"));
        }
    }

    fn mark(&mut self, worker: &str, at: Moment, sign: Sign) {
        self.marks.push(Mark { worker: worker.to_owned(), at, sign });
    }

    pub(crate) fn violated(&mut self, kind: &'static str, at: Option<Moment>, what: String) {
        self.violations.push(Violation { kind, at, what });
    }

    /// Each write goes on from the one before it. Only who was stopped between its check and its write may intrude between what
    /// another has read and what it writes.
    fn follow(&mut self, writes: &[Write], counter: u64, doings: &Doings) {
        let mut value = 0;
        // As it was before one or more intruders wrote.
        let mut undisturbed = None;
        for write in writes {
            if doings.stop_within(&write.worker, write.checked, write.written).is_some() {
                if write.read != value {
                    self.stale += 1;
                    self.mark(&write.worker, write.written, Sign::Stale);
                }
                undisturbed = undisturbed.or(Some(value));
            } else if write.read == value || undisturbed == Some(write.read) {
                undisturbed = None;
            } else {
                let what = format!("over {value}: {write:?}");
                self.violated("stale without having been stopped", Some(write.written), what);
            }
            value = write.read + 1;
        }
        if counter != value {
            self.violated("another counter", None, format!("{counter} after {value} was written"));
        }
        self.overwritten = (writes.len() as u64).saturating_sub(counter);
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut waited = self.waited.clone();
        waited.sort_unstable();
        let of = |thousandths: usize| {
            waited
                .get((waited.len() * thousandths / 1_000).min(waited.len().saturating_sub(1)))
                .copied()
                .unwrap_or_default()
        };
        let mut kinds: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
        for violation in &self.violations {
            kinds.entry(violation.kind).or_default().push(&violation.what);
        }
        writeln!(
            f,
            "{:>7}  grants, waited for: {:.1?} at the median, {:.1?} of 99 in 100, {:.1?} at most",
            self.holds.len(),
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
        writeln!(f, "{:>7}  standstills of workers that nobody had stopped", self.standstills.len())?;
        writeln!(f, "{:>7}  violations", self.violations.len())?;
        for (kind, violations) in kinds {
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
        judge(&BTreeMap::new(), writes, counter, &doings).violations.len()
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
        assert_eq!((verdict.violations.len(), verdict.late, verdict.standstills.len()), (0, 1, 1));
    }

    #[test]
    fn a_node_waits_until_it_votes_or_is_restarted_once_more_or_the_worker_is_gone() {
        let log = "waits 0 5\nwaits 1 6\nvotes 0 9\nwaits 1 12\n";
        let wait =
            |node, from, until: Option<u64>| Wait { node, from: Moment(from), until: until.map(Moment) };
        let seen = |last| vec![wait(0, 5, Some(9)), wait(1, 6, Some(12)), wait(1, 12, last)];
        assert_eq!(waits(log, Some(Moment(20))), seen(Some(20)));
        assert_eq!(waits(log, None), seen(None));
    }
}
