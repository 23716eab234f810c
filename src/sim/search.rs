//! Every history of a small scope: each offer is taken in turn, and a world that was reached before is not looked at again.
//!
//! Depth first over clones of the world; of a world that was reached only a fingerprint of 64 bits is kept. (With ten million
//! of them, the chance that two different worlds share one is below one in a hundred thousand.)

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::check::{Checker, Violation};
use super::choose::Offer;
use super::part::fingerprint;
use super::scope::Scope;
use super::world::{Note, Step, World};

/// Where a search ends although it has not seen everything.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// After so many worlds.
    pub worlds: u64,
    /// After so long.
    pub time: Duration,
}

/// What a search has found.
#[derive(Clone, Debug)]
pub struct Found {
    /// Different worlds that were reached.
    pub worlds: u64,
    /// Steps that were taken.
    pub steps: u64,
    /// The longest history.
    pub depth: usize,
    /// Whether nothing was left to look at.
    pub complete: bool,
    /// How often each event came upon each state of a claim.
    pub pairs: BTreeMap<(&'static str, &'static str), u64>,
    /// What went wrong, and the steps that led there.
    pub violation: Option<(Violation, Vec<Step>)>,
    /// How long it took.
    pub took: Duration,
}

/// Looks at every world that can be reached in a scope.
pub fn exhaust(scope: &Arc<Scope>, limits: Limits) -> Found {
    let begin = Instant::now();
    let mut search = Search {
        reached: HashSet::new(),
        found: Found {
            worlds: 0,
            steps: 0,
            depth: 0,
            complete: false,
            pairs: BTreeMap::new(),
            violation: None,
            took: Duration::ZERO,
        },
    };
    let mut path = vec![search.open(World::new(scope.clone()), Checker::default(), None)];
    while let Some(node) = path.last_mut() {
        let Some(Offer { step, .. }) = node.offers.pop() else {
            path.pop();
            continue;
        };
        let (mut world, mut checker) = (node.world.clone(), node.checker.clone());
        world.perform(step);
        search.note(&world);
        if let Err(violation) = checker.look(&world) {
            let steps = path.iter().filter_map(|node| node.step).chain([step]).collect();
            search.found.violation = Some((violation, steps));
            break;
        }
        if !search.reached.insert(fingerprint(&(&world, &checker))) {
            continue;
        }
        search.found.worlds += 1;
        if search.found.worlds >= limits.worlds
            || (search.found.worlds.is_multiple_of(1024) && begin.elapsed() >= limits.time)
        {
            break;
        }
        let next = search.open(world, checker, Some(step));
        path.push(next);
        search.found.depth = search.found.depth.max(path.len());
    }
    search.found.complete = path.is_empty();
    search.found.took = begin.elapsed();
    search.found
}

struct Search {
    reached: HashSet<u64>,
    found: Found,
}

/// A world on the way to the present one, and what was not tried there yet.
struct Node {
    world: World,
    checker: Checker,
    step: Option<Step>,
    offers: Vec<Offer>,
}

impl Search {
    fn open(&mut self, world: World, checker: Checker, step: Option<Step>) -> Node {
        let mut offers = Vec::new();
        world.offers(&mut offers);
        Node { world, checker, step, offers }
    }

    fn note(&mut self, world: &World) {
        self.found.steps += 1;
        for note in world.notes() {
            if let Note::Fed { state, event, .. } = note {
                *self.found.pairs.entry((state, event)).or_default() += 1;
            }
        }
    }
}
