//! Every history of a small scope: each offer is taken in turn, and a world that was reached before is not looked at again.
//!
//! Worlds that go on alike are looked at once, where the scope says so; `world/fold.rs` says which these are, and [`verify`] shows
//! it. Depth first over clones of the world; of a world that was reached only a fingerprint of 64 bits is kept. (With ten million
//! of them, the chance that two different worlds share one is below one in a hundred thousand.)

use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use foldhash::fast::FixedState;

use super::check::{Checker, Violation};
use super::choose::Offer;
use super::part::fingerprint;
use super::scope::Scope;
use super::world::{Folder, Note, Step, World};

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
    explore(scope, limits).found
}

fn explore(scope: &Arc<Scope>, limits: Limits) -> Search {
    let begin = Instant::now();
    let mut search = Search {
        reached: HashSet::default(),
        folder: Folder::new(scope),
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
        if !search.reached.insert(search.folder.fingerprint(&world, &checker)) {
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
    search
}

/// What came of a look at how worlds are folded.
#[derive(Clone, Debug)]
pub struct Verified {
    /// Different worlds that were reached, each for itself.
    pub worlds: u64,
    /// Different worlds into which they are folded.
    pub folded: u64,
    /// How many steps lead to a violation.
    pub violations: u64,
}

/// Looks at every world of a scope for itself, and at where each step leads from there. From all that a search would fold into
/// one world, the same folded worlds must come next, and the same kinds of violations: then whatever comes of one of them, in
/// however many steps, comes of each. And the search that folds must reach the same folded worlds.
///
/// # Errors
///
/// What is different, in words.
pub fn verify(scope: &Arc<Scope>) -> Result<Verified, String> {
    let plain = Arc::new(Scope { folds: false, ..(**scope).clone() });
    let (one_by_one, folder) = (Folder::new(&plain), Folder::new(scope));
    let mut found = Verified { worlds: 0, folded: 0, violations: 0 };
    // Into what each world is folded.
    let mut reached: HashMap<u64, u64, FixedState> = HashMap::default();
    let mut leads_to: HashMap<u64, Vec<u64>, FixedState> = HashMap::default();
    let mut open = vec![(World::new(plain), Checker::default())];
    let mut offers = Vec::new();
    while let Some((world, checker)) = open.pop() {
        found.worlds += 1;
        let here = folder.fingerprint(&world.folded(scope), &checker);
        let mut next = Vec::new();
        world.offers(&mut offers);
        for Offer { step, .. } in &offers {
            let (mut world, mut checker) = (world.clone(), checker.clone());
            world.perform(*step);
            if let Err(violation) = checker.look(&world) {
                found.violations += 1;
                next.push(fingerprint(&std::mem::discriminant(&violation)));
                continue;
            }
            match reached.entry(one_by_one.fingerprint(&world, &checker)) {
                Entry::Occupied(entry) => next.push(*entry.get()),
                Entry::Vacant(entry) => {
                    next.push(*entry.insert(folder.fingerprint(&world.folded(scope), &checker)));
                    open.push((world, checker));
                }
            }
        }
        // A step may bring nothing but what is forgotten.
        next.retain(|there| *there != here);
        next.sort_unstable();
        next.dedup();
        match leads_to.entry(here) {
            Entry::Vacant(entry) => _ = entry.insert(next),
            Entry::Occupied(entry) if *entry.get() == next => {}
            Entry::Occupied(_) => {
                let steps: Vec<Step> = offers.iter().map(|offer| offer.step).collect();
                return Err(format!("folded into a world that does not go on like this one: {steps:?}"));
            }
        }
    }
    found.folded = leads_to.len() as u64;
    let search = explore(scope, Limits { worlds: u64::MAX, time: Duration::MAX });
    let is_first = |there: &u64| {
        *there == folder.fingerprint(&World::new(scope.clone()).folded(scope), &Checker::default())
    };
    if search.found.violation.is_some() != (found.violations > 0) {
        return Err("only one of two searches finds a violation".to_owned());
    }
    let missed = leads_to.keys().filter(|there| !search.reached.contains(there) && !is_first(there)).count();
    if search.found.complete
        && (missed > 0 || search.reached.iter().any(|there| !leads_to.contains_key(there)))
    {
        return Err(format!("the search that folds reaches others, and does not reach {missed}"));
    }
    Ok(found)
}

struct Search {
    reached: HashSet<u64, FixedState>,
    folder: Folder,
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
