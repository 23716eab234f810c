//! A history from beginning to end: steps that a chooser takes, then calm, in which everything is mended and must come right.
//! A history that fails is shrunk to the steps that matter.

use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use super::check::{Checker, Violation};
use super::choose::{Chooser, Offer, Replay, Seeded};
use super::fault::{Fault, FaultClass};
use super::mutant::Mutant;
use super::scope::Scope;
use super::world::{ClientIndex, Note, Proof, Span, Step, World};
use crate::protocol::claim::Notice;
use crate::protocol::command::Command;
use crate::protocol::quorum::Quorum;

/// A history that was lived through.
#[derive(Clone, Debug)]
pub struct History {
    /// What it was about.
    pub scope: Arc<Scope>,
    /// What happened, up to the violation or to the calm at the end.
    pub steps: Vec<Step>,
    /// What happened in the calm.
    pub calm: Vec<Step>,
    /// What went wrong, if something did.
    pub violation: Option<Violation>,
    /// What was reached.
    pub reached: Reached,
}

/// How much happened in histories: a search that never gets to a loss shows nothing about losses.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Reached {
    /// Steps.
    pub steps: u64,
    /// Commands that claims sent.
    pub sent: u64,
    /// Fences that had to be raised, by the commands that were sent for it.
    pub raised: u64,
    /// Commands that let a node count that had not.
    pub enrolled: u64,
    /// Locks won.
    pub won: u64,
    /// Extensions confirmed, by hand.
    pub extended: u64,
    /// Locks lost.
    pub lost: u64,
    /// Claims that gave up.
    pub failed: u64,
    /// Locks won by a client that had lost the one before.
    pub won_again: u64,
    /// Locks won right after another client had released, and had woken somebody.
    pub handed_over: u64,
    /// Locks that were proven to have been exclusive when they were released, and that were not.
    pub proven: u64,
    /// Those that were not.
    pub unproven: u64,
    /// Pairs of locks that were valid at once, and were told whether they are proven. Counted only where nothing else is looked for.
    pub overlaps: u64,
}

impl Reached {
    /// Adds what another history reached.
    pub fn add(&mut self, other: Reached) {
        self.steps += other.steps;
        self.sent += other.sent;
        self.raised += other.raised;
        self.enrolled += other.enrolled;
        self.won += other.won;
        self.extended += other.extended;
        self.lost += other.lost;
        self.failed += other.failed;
        self.won_again += other.won_again;
        self.handed_over += other.handed_over;
        self.proven += other.proven;
        self.unproven += other.unproven;
        self.overlaps += other.overlaps;
    }

    fn note(&mut self, note: &Note) {
        let notice = match note {
            Note::Sent { command, .. } => {
                self.sent += 1;
                self.raised += u64::from(matches!(command, Command::Raise { .. }));
                self.enrolled += u64::from(matches!(command, Command::Enrol { .. }));
                return;
            }
            Note::Told { notice, .. } => notice,
            Note::Fed { .. } | Note::Woken { .. } => return,
            Note::Granted { .. } => return,
            Note::Proof { comes, .. } => {
                self.proven += u64::from(*comes == Proof::Released(true));
                self.unproven += u64::from(*comes == Proof::Released(false));
                return;
            }
        };
        match notice {
            Notice::Won => self.won += 1,
            Notice::Lost(_) => self.lost += 1,
            Notice::Failed(_) => self.failed += 1,
            Notice::Extended(_, Ok(())) => self.extended += 1,
            _ => {}
        }
    }
}

/// The random history of a seed, of at most so many steps before the calm.
pub fn random(seed: u64, kinds: &[FaultClass], mutant: Option<Mutant>, most: usize) -> History {
    let scope = Arc::new(Scope::drawn(seed, kinds, mutant));
    live(&scope, &mut Seeded::new(seed), most)
}

/// The same in which a fence comes with every lock.
pub fn random_with_fences(seed: u64, kinds: &[FaultClass], most: usize) -> History {
    let scope = Arc::new(Scope::drawn_with_fences(seed, kinds));
    live(&scope, &mut Seeded::new(seed), most)
}

/// Lives through a history as a chooser has it.
pub fn live(scope: &Arc<Scope>, chooser: &mut impl Chooser, most: usize) -> History {
    let mut life = Life::new(scope);
    let mut steps = Vec::new();
    let mut offers = Vec::new();
    let mut violation = None;
    while steps.len() < most && violation.is_none() {
        life.world.offers(&mut offers);
        let Some(place) = chooser.choose(&offers) else { break };
        let step = offers[place].step;
        steps.push(step);
        violation = life.step(step).err();
    }
    let violation = violation.or_else(|| life.calm().err());
    let Life { calm, reached, checker, .. } = life;
    let reached = Reached { overlaps: checker.overlaps(), ..reached };
    History { scope: scope.clone(), steps, calm, violation, reached }
}

impl History {
    /// The same violation in as few steps as can be found by leaving some out.
    ///
    /// # Panics
    ///
    /// If nothing is wrong with the history.
    pub fn shrunk(&self) -> History {
        let wanted = self.violation.as_ref().expect("a history that fails");
        let mut best = self.clone();
        let mut size = (best.steps.len() / 2).max(1);
        loop {
            let mut from = 0;
            let mut smaller = false;
            while from < best.steps.len() {
                let to = (from + size).min(best.steps.len());
                let rest = best.steps[..from].iter().chain(&best.steps[to..]).copied();
                let history = live(&self.scope, &mut Replay::new(rest), usize::MAX);
                if history.violation.as_ref().is_some_and(|found| found.is_like(wanted)) {
                    best = history;
                    smaller = true;
                } else {
                    from = to;
                }
            }
            if size == 1 && !smaller {
                return best;
            }
            size = (size / 2).max(1);
        }
    }
}

impl fmt::Display for History {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.violation {
            Some(violation) => writeln!(f, "{violation}")?,
            None => writeln!(f, "all is well")?,
        }
        let scope = &self.scope;
        writeln!(f, "{} clients, {} nodes, ttl {:?}", scope.clients, scope.nodes, scope.max_ttl())?;
        let mut world = World::new(scope.clone());
        let start = world.now();
        let mut tell = |world: &mut World, step: Step| {
            world.perform(step);
            writeln!(f, "{:>12}  {step}", format!("{:.1?}", world.now().since(start)))?;
            let told = world
                .notes()
                .iter()
                .filter(|note| matches!(note, Note::Sent { .. } | Note::Granted { .. } | Note::Told { .. }));
            let mut told = told;
            told.try_for_each(|note| writeln!(f, "{:>12}    -> {note}", ""))
        };
        self.steps.iter().try_for_each(|step| tell(&mut world, *step))?;
        // In the calm, only what failed is worth telling.
        if self.calm.is_empty() || self.violation.is_none() {
            return Ok(());
        }
        world.mend();
        self.calm.iter().try_for_each(|step| tell(&mut world, *step))
    }
}

/// So many steps at one moment are a circle.
const MOST_AT_ONCE: u32 = 10_000;

/// A world that is looked at.
struct Life {
    world: World,
    checker: Checker,
    reached: Reached,
    ends: Ends,
    calm: Vec<Step>,
}

/// How the last locks of all clients ended.
#[derive(Default)]
struct Ends {
    lost: BTreeSet<ClientIndex>,
    /// Who has released last, and woken another.
    woke: Option<ClientIndex>,
}

impl Ends {
    fn note(&mut self, note: &Note, reached: &mut Reached) {
        let Note::Told { client, notice } = note else { return };
        match notice {
            Notice::Won => {
                reached.won_again += u64::from(self.lost.remove(client));
                reached.handed_over += u64::from(self.woke.take().is_some_and(|other| other != *client));
            }
            Notice::Lost(_) => _ = self.lost.insert(*client),
            Notice::Released { others_wait, .. } => self.woke = others_wait.then_some(*client),
            _ => {}
        }
    }
}

impl Life {
    fn new(scope: &Arc<Scope>) -> Self {
        Life {
            world: World::new(scope.clone()),
            checker: Checker::default(),
            reached: Reached::default(),
            ends: Ends::default(),
            calm: Vec::new(),
        }
    }

    fn step(&mut self, step: Step) -> Result<(), Violation> {
        self.world.perform(step);
        self.reached.steps += 1;
        for note in self.world.notes() {
            self.reached.note(note);
            self.ends.note(note, &mut self.reached);
        }
        self.checker.look(&self.world)
    }

    /// Mends everything, and lets everybody come to an end: whoever has the lock releases it, whoever wants it gets it, and
    /// nothing is left. Then each gets it once more, alone, and at last while a minority of the nodes is down.
    fn calm(&mut self) -> Result<(), Violation> {
        if self.world.scope().is_beyond_repair() || self.world.scope().only_proofs {
            return Ok(());
        }
        self.world.mend();
        let bound = self.world.scope().patience();
        self.settle(bound)?;
        self.nothing_is_left()?;
        self.pass(bound, Span::Ttl)?;
        for client in 0..self.world.scope().clients {
            self.everything_works_for(client, bound)?;
        }
        let quorum = Quorum::of(self.world.scope().nodes);
        for node in 0..quorum.spare() {
            self.calm_step(Step::Fault(Fault::Crash(node)))?;
        }
        self.everything_works_for(0, bound)
    }

    /// A client that is alone gets the lock, also while as many nodes are down as may be.
    fn everything_works_for(&mut self, client: ClientIndex, bound: Duration) -> Result<(), Violation> {
        if !self.world.is_alive(client) {
            return Ok(());
        }
        self.settle(bound)?;
        let (before, proven) = (self.reached.won, self.reached.proven);
        self.calm_step(Step::Begin { client, wish: 0 })?;
        self.settle(bound)?;
        if self.reached.won == before {
            return Err(Violation::NoProgress(client));
        }
        if self.world.scope().has_proofs() && self.reached.proven == proven {
            return Err(Violation::NotProven(client));
        }
        self.nothing_is_left()
    }

    /// Does at once whatever can be done, and lets time pass only when nothing can.
    fn settle(&mut self, bound: Duration) -> Result<(), Violation> {
        let until = self.world.now() + bound * 2 * u32::try_from(self.world.scope().clients).unwrap_or(1);
        let mut offers = Vec::new();
        let mut at_once = 0;
        while !(self.world.is_quiet() && self.world.is_connected()) {
            self.world.offers(&mut offers);
            let next = offers.iter().filter_map(|offer| Some((self.urgency(offer)?, offer.step)));
            let next = next.min().map_or(Step::Pass(Span::UntilDue), |(_, step)| step);
            let before = self.world.now();
            self.calm_step(next)?;
            let stands_still = self.world.now() == before;
            at_once = if stands_still { at_once + 1 } else { 0 };
            let stuck = stands_still && (next == Step::Pass(Span::UntilDue) || at_once == MOST_AT_ONCE);
            if stuck || self.world.now() > until {
                return Err(Violation::NoProgress(self.waiting().unwrap_or(0)));
            }
        }
        Ok(())
    }

    /// What a world in order does first. Everything that may go wrong is left out.
    fn urgency(&self, offer: &Offer) -> Option<u32> {
        match offer.step {
            Step::Arrive(_) => Some(0),
            Step::Hear(_) => Some(1),
            Step::Break { client, node } if self.world.is_stranded(client, node) => Some(2),
            Step::Dial { .. } => Some(3),
            Step::Take { .. } => Some(4),
            Step::Wake { .. } => Some(5),
            Step::Release { .. } => Some(6),
            _ => None,
        }
    }

    fn waiting(&self) -> Option<usize> {
        (0..self.world.scope().clients).find(|client| self.world.claim(*client).is_some())
    }

    fn pass(&mut self, span: Duration, by: Span) -> Result<(), Violation> {
        let until = self.world.now() + span;
        while self.world.now() < until {
            self.calm_step(Step::Pass(by))?;
        }
        Ok(())
    }

    /// What stands is to go by itself after a hold that was to exclude others for longer, or has come too late to be undone.
    fn nothing_is_left(&mut self) -> Result<(), Violation> {
        self.pass(self.world.scope().longest_linger(), Span::Micros(100_000))?;
        let left = self.world.standing().into_iter().find(|(_, value, excused)| {
            let dead = (0..self.world.scope().clients).any(|client| {
                !self.world.is_alive(client) && value.holder() == Some(&format!("c{}", client + 1))
            });
            !excused && !dead
        });
        left.map_or(Ok(()), |(node, value, _)| Err(Violation::LeftBehind(node, value)))
    }

    fn calm_step(&mut self, step: Step) -> Result<(), Violation> {
        self.calm.push(step);
        self.step(step)
    }
}
