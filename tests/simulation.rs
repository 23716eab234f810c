//! Random histories with every fault find nothing; planted mistakes are found; and where an assumption is broken, so is the
//! promise. A history is its seed: what fails says how to see it again.
#![cfg(feature = "sim")]

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use redlock_quorum::protocol::admission::RestartProtection;
use redlock_quorum::protocol::settings::{Renewal, Wishes};
use redlock_quorum::sim::check::Violation;
use redlock_quorum::sim::choose::{Replay, Seeded};
use redlock_quorum::sim::fault::FaultClass;
use redlock_quorum::sim::history::{History, Reached, live, random, random_with_fences};
use redlock_quorum::sim::mutant::Mutant;
use redlock_quorum::sim::scope::{Scope, Weather, WishFor};
use redlock_quorum::sim::world::Span;

/// The steps of a history before everything is mended.
const STEPS: usize = 400;

/// Histories without a mistake: few where the code is not optimised.
const HISTORIES: u64 = if cfg!(debug_assertions) { 500 } else { 20_000 };

/// Within so many histories every planted mistake must be found.
const BUDGET: u64 = 50_000;

/// Seeds that found something once, and what that was. They stand in docs/safety.md.
const RECORD: [u64; 1] = [
    // A key left behind at a node with a slow clock, by a release that was owed for a ttl only.
    21_224,
];

/// The first history among these seeds that fails.
fn first_failure(seeds: std::ops::Range<u64>, history: impl Fn(u64) -> History) -> Option<(u64, History)> {
    seeds.map(|seed| (seed, history(seed))).find(|(_, history)| history.violation.is_some())
}

#[test]
fn random_histories_find_nothing() {
    let mut reached = Reached::default();
    for seed in (0..HISTORIES).chain(RECORD) {
        let history = random(seed, &FaultClass::HARMLESS, None, STEPS);
        assert!(history.violation.is_none(), "seed {seed}: {}", history.shrunk());
        reached.add(history.reached);
    }
    println!("{HISTORIES} histories: {reached:?}");
    // A search that never gets to a loss shows nothing about losses.
    for (what, count, floor) in
        [("won", reached.won, 5), ("lost", reached.lost, 1), ("failed", reached.failed, 1)]
    {
        assert!(count > HISTORIES * floor / 2, "only {count} locks {what} in {HISTORIES} histories");
    }
    assert!(reached.extended > HISTORIES / 10, "only {} extensions by hand", reached.extended);
}

#[test]
fn random_histories_of_locks_with_fences_find_nothing() {
    let mut reached = Reached::default();
    for seed in 0..HISTORIES / 2 {
        let history = random_with_fences(seed, &FaultClass::HARMLESS_TO_STRICT_KINDS, STEPS);
        assert!(history.violation.is_none(), "seed {seed}: {}", history.shrunk());
        reached.add(history.reached);
    }
    println!("{} histories with fences: {reached:?}", HISTORIES / 2);
    // One that never raises a fence, nor lets a node count again that had forgotten something, shows nothing about either.
    for (what, count, floor) in [("won", reached.won, 5), ("raised", reached.raised, 1)] {
        assert!(count > HISTORIES * floor / 4, "only {count} {what} in {} histories", HISTORIES / 2);
    }
    assert!(reached.enrolled > HISTORIES / 10, "only {} nodes count again", reached.enrolled);
}

/// Candidates as `Election` makes them: they wait for as long as it takes, step down long before the lease is over, and stand again
/// after a loss.
fn election(seed: u64) -> Scope {
    let mut scope = Scope::drawn_with_fences(seed, &FaultClass::HARMLESS_TO_STRICT_KINDS);
    let terms = &scope.wishes[0].terms;
    let (lease, drift) = (terms.max_ttl.as_duration(), terms.drift);
    let renew_deadline = lease * 2 / 3;
    let wishes = Wishes {
        ttl: lease,
        margin: lease - drift.allowance(terms.max_ttl) - renew_deadline,
        renewal: Renewal::Every(lease / 5),
        hold_at_most: Duration::MAX - Duration::from_nanos(1),
        ..Wishes::default()
    };
    let terms = Arc::new(wishes.check(&terms.nodes).expect("terms that agree"));
    let wish =
        || WishFor { terms: terms.clone(), wait: Some(Duration::from_secs(10)), without_restarts: false };
    scope.wishes = vec![wish(), wish()];
    scope
}

/// Never two leaders, each with a term above all before; a loss is told at the renew deadline; and when all is mended there is a
/// leader within a bound.
#[test]
fn random_histories_of_elections_find_nothing() {
    let mut reached = Reached::default();
    let histories = HISTORIES / 2;
    for seed in 0..histories {
        let history = live(&Arc::new(election(seed)), &mut Seeded::new(seed), STEPS);
        assert!(history.violation.is_none(), "seed {seed}: {}", history.shrunk());
        reached.add(history.reached);
    }
    println!("{histories} histories of elections: {reached:?}");
    let Reached { won, lost, won_again, handed_over, .. } = reached;
    for (what, count) in
        [("won", won), ("lost", lost), ("won again", won_again), ("handed over", handed_over)]
    {
        assert!(count > histories / 10, "only {count} {what} in {histories} histories");
    }
}

/// Two may hold at once where keys vanish early or clocks of nodes jump. No two of them have the same fence, so a store that
/// has seen the larger one refuses the other.
#[test]
fn where_two_may_hold_their_fences_tell_them_apart() {
    let (mut overlaps, mut same, histories) = (0, 0, HISTORIES / 20);
    for kind in [FaultClass::Eviction, FaultClass::Deletions, FaultClass::Jumps] {
        for seed in 0..histories {
            let mut scope = Scope::drawn_with_fences(seed, &[]);
            (scope.weather.faults, scope.most_faults, scope.exclusive) = (vec![(kind, 3)], 10, false);
            let scope = Arc::new(scope);
            let history = live(&scope, &mut Seeded::new(seed), STEPS);
            // That a lock is lost whose keys ended early is what is to be expected.
            let expected = matches!(
                history.violation,
                None | Some(Violation::LostWithoutCause(_) | Violation::ExtendedOverAnother(_))
            );
            assert!(expected, "{kind:?}, seed {seed}: {}", history.shrunk());
            let strict = Arc::new(Scope { exclusive: true, ..(*scope).clone() });
            let overlap = live(&strict, &mut Seeded::new(seed), STEPS).violation;
            overlaps += u64::from(matches!(overlap, Some(Violation::TwoHolders(..))));
            let mistaken = Arc::new(Scope { mutant: Some(Mutant::MaximumOfCounters), ..(*scope).clone() });
            let mistaken = live(&mistaken, &mut Seeded::new(seed), STEPS).violation;
            same += u64::from(matches!(mistaken, Some(Violation::SameFenceTwice(_))));
        }
    }
    println!("two held in {overlaps} of {} histories; a mistake showed in {same}", 3 * histories);
    assert!(overlaps > 0, "two never held");
    assert!(same > 0, "the same fence would not have been noticed");
}

/// The seeds at which mistakes are found, as docs/safety.md has them.
fn documented_seeds() -> BTreeMap<&'static str, u64> {
    let guide = include_str!("../docs/safety.md");
    let row = |line: &'static str| {
        let mut cells = line.strip_prefix("| `")?.split(" | ");
        let name = cells.next()?.trim_end_matches('`');
        let seed = cells.nth(1)?.parse().ok()?;
        Some((name, seed))
    };
    guide.lines().filter_map(row).collect()
}

#[test]
fn every_planted_mistake_is_found() {
    let documented = documented_seeds();
    for mutant in Mutant::ALL {
        let name = format!("{mutant:?}");
        let seed =
            *documented.get(name.as_str()).unwrap_or_else(|| panic!("{name} is not in docs/safety.md"));
        assert!(seed < BUDGET, "{name} is found too late");
        let found = random(seed, mutant.kinds(), Some(mutant), STEPS).violation;
        assert!(
            found.is_some(),
            "{name} is not found by seed {seed}; `simulate --mutant {name}` tells which does"
        );
    }
    assert_eq!(documented.len(), Mutant::ALL.len(), "docs/safety.md knows more mistakes than there are");
}

/// Two clients hold at once in a history like this, within the budget. Others may come first in which a lock is lost whose keys
/// ended early: what is assumed is broken, and so more than one thing is.
fn two_hold(story: &str, scope: impl Fn(u64) -> Scope) {
    let budget = if cfg!(debug_assertions) { 3_000 } else { BUDGET };
    let history = |seed| live(&Arc::new(scope(seed)), &mut Seeded::new(seed), STEPS);
    let two = |seed: &u64| matches!(history(*seed).violation, Some(Violation::TwoHolders(..)));
    let seed = (0..budget).find(two).unwrap_or_else(|| panic!("{story}: nothing within {budget} histories"));
    println!("{story}: seed {seed}");
}

#[test]
fn where_an_assumption_is_broken_so_is_the_promise() {
    for kind in FaultClass::HARMFUL {
        two_hold(&format!("{kind:?}"), |seed| {
            let mut scope = Scope::drawn(seed, &[], None);
            scope.weather.faults = vec![(kind, 3)];
            scope.most_faults = 10;
            scope
        });
    }
    two_hold("clocks beyond the drift", |seed| {
        let mut scope = Scope::drawn(seed, &[], None);
        let nodes = scope.nodes;
        scope.rates.iter_mut().take(nodes).for_each(|rate| *rate = 100_000);
        scope
    });
    two_hold("restarts without protection", |seed| Scope {
        protection: RestartProtection::Off,
        ..Scope::drawn(seed, &[FaultClass::Amnesia], None)
    });
    two_hold("a server that was replaced before anybody knew it", |seed| {
        let mut scope = Scope::drawn(seed, &[], None);
        (scope.strangers, scope.most_faults) = (true, 10);
        scope.weather.faults = vec![(FaultClass::Replacement, 3)];
        scope
    });
}

#[test]
fn a_failing_history_is_shrunk_and_goes_the_same_way_again() {
    let mutant = Some(Mutant::SetWithoutNx);
    let (_, history) =
        first_failure(0..100, |seed| random(seed, &FaultClass::HARMLESS, mutant, STEPS)).expect("a failure");
    let shrunk = history.shrunk();
    assert!(shrunk.steps.len() < 40, "{shrunk}");
    for left_out in 0..shrunk.steps.len() {
        let rest = shrunk.steps.iter().enumerate().filter(|(place, _)| *place != left_out);
        let without = live(&shrunk.scope, &mut Replay::new(rest.map(|(_, step)| *step)), usize::MAX);
        let like =
            without.violation.is_some_and(|other| other.is_like(shrunk.violation.as_ref().expect("one")));
        assert!(!like, "step {left_out} need not be there: {shrunk}");
    }
    let again = live(&shrunk.scope, &mut Replay::new(shrunk.steps.iter().copied()), usize::MAX);
    assert_eq!(again.violation, shrunk.violation);
    assert_eq!(again.to_string(), shrunk.to_string());
}

/// Clients that all want the resource all the time, over five nodes and a network in which everything takes its time.
fn contended(clients: usize, messages_are_lost: bool) -> Scope {
    let names = (1..=5).map(|node| format!("n{node}").into()).collect();
    let terms = Arc::new(Wishes::default().check(&names).expect("terms that agree"));
    let wish = WishFor { terms, wait: Some(Duration::from_secs(600)), without_restarts: false };
    let weather = Weather {
        spans: vec![(Span::Micros(20), 200), (Span::Micros(100), 20)],
        begin: 1_000,
        wake: 1_000,
        release: 50,
        arrive: 300,
        hear: 300,
        ..Weather::default()
    };
    Scope {
        nodes: 5,
        clients,
        wishes: vec![wish],
        strangers: false,
        rates: Vec::new(),
        messages_are_lost,
        weather,
        ..Scope::drawn(0, &[], None)
    }
}

/// What a grant costs must not grow with those who want one: one is woken, not all of them, and who is woken tries once.
#[test]
fn what_a_grant_costs_does_not_grow_with_those_who_wait() {
    for (clients, most) in [(2, 20), (4, 20), (8, 20), (16, 30), (32, 30)] {
        let mut reached = Reached::default();
        let (seeds, steps) = if cfg!(debug_assertions) { (1, 6_000) } else { (4, 60_000) };
        for seed in 0..seeds {
            let history = live(&Arc::new(contended(clients, false)), &mut Seeded::new(seed), steps);
            assert!(history.violation.is_none(), "seed {seed}: {history}");
            reached.add(history.reached);
        }
        let each = reached.sent / reached.won;
        println!("{clients} clients, 5 nodes: {each} commands for each of {} locks", reached.won);
        assert!(each <= most, "{clients} clients: {each} commands for each lock");
    }
}

/// And without a single message there is progress.
#[test]
fn without_any_message_whoever_waits_gets_its_turn() {
    for clients in [2, 8, 32] {
        let mut scope = Scope { most_claims: 2, ..contended(clients, true) };
        // Time passes only from one moment at which something is due to the next, until nothing is.
        scope.weather.spans = vec![(Span::UntilDue, 20)];
        let history = live(&Arc::new(scope), &mut Seeded::new(1), usize::MAX);
        assert!(history.violation.is_none(), "{clients} clients: {history}");
        // And once more each, and one of them while nodes are down, after everything is mended.
        assert_eq!(history.reached.won, 3 * clients as u64 + 1, "{clients} clients");
    }
}
