//! What goes wrong, step by step, as a seed has it. Nothing of it depends on what the workers do, so that the same seed
//! means the same faults; when they happen depends on real processes.

use std::time::Duration;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use crate::harness::storm::{Fault, Kind};
use crate::worker::TTL;

pub(crate) const NODES: usize = 3;
pub(crate) const WORKERS: usize = 4;

/// Nothing is ever killed here, so that its memory can be compared.
pub(crate) const STEADY: usize = 0;

pub(crate) struct Plan(StdRng);

/// Faults that are there together for a while.
pub(crate) struct Step {
    pub(crate) length: Duration,
    /// At most one for each node.
    pub(crate) faults: Vec<Fault>,
    pub(crate) worker: Option<(Whom, Blow)>,
}

#[derive(Clone, Copy, Debug)]
pub(crate) enum Whom {
    /// Whoever holds the lock at that moment.
    Holder,
    Worker(usize),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Blow {
    Killed,
    /// For so long, which is more than the ttl.
    Stopped(Duration),
}

impl Plan {
    pub(crate) fn seeded(seed: u64) -> Self {
        Plan(StdRng::seed_from_u64(seed))
    }

    pub(crate) fn next(&mut self) -> Step {
        let random = &mut self.0;
        if random.random_range(0..6) == 0 {
            return forgetting(random);
        }
        let length = Duration::from_millis(random.random_range(50..1_500));
        // None, a minority, a majority, or all.
        let (first, count) = (random.random_range(0..NODES), random.random_range(0..=NODES));
        let nodes = (0..count).map(|more| (first + more) % NODES);
        let faults = nodes.map(|node| Fault::drawn(random, node, WORKERS)).collect();
        let whom = match random.random_range(0..4) {
            0 => Whom::Worker(random.random_range(0..WORKERS)),
            _ => Whom::Holder,
        };
        let worker = match random.random_range(0..5) {
            0 => Some((whom, Blow::Killed)),
            1 | 2 => Some((whom, Blow::Stopped(TTL.mul_f32(random.random_range(1.1..2.5))))),
            _ => None,
        };
        Step { length, faults, worker }
    }
}

/// A majority restarts at once without its memory, so soon that whoever holds still does.
fn forgetting(random: &mut StdRng) -> Step {
    let first = random.random_range(0..NODES);
    let faults = [first, (first + 1) % NODES].map(|node| Fault { node, kind: Kind::Killed }).into();
    Step { length: Duration::from_millis(random.random_range(0..50)), faults, worker: None }
}
