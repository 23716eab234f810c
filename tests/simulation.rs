//! Random histories with every fault find nothing; planted mistakes are found; and where an assumption is broken, so is the
//! promise. A history is its seed: what fails says how to see it again.
#![cfg(feature = "sim")]

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use redlock_quorum::protocol::admission::RestartProtection;
use redlock_quorum::protocol::settings::{Renewal, Wishes};
use redlock_quorum::sim::check::Violation;
use redlock_quorum::sim::choose::{Chooser, Offer, Replay, Seeded};
use redlock_quorum::sim::fault::{Fault, FaultClass};
use redlock_quorum::sim::history::{History, Reached, live, random, random_with_fences};
use redlock_quorum::sim::mutant::Mutant;
use redlock_quorum::sim::scope::{Scope, Sort, Weather, WishFor};
use redlock_quorum::sim::world::{Span, Step};

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

/// A world in which anything may go wrong, clocks run at whatever rates, and only proofs must hold.
fn without_any_assumption(seed: u64) -> Scope {
    let mut scope = Scope::drawn_with_fences(seed, &FaultClass::ALL);
    let mut chance = Seeded::new(seed ^ 0xa11);
    let rates = [0, 0, 100_000, 500_000, -300_000];
    scope.rates.iter_mut().for_each(|rate| *rate = chance.one_of(&rates));
    (scope.weather.verify, scope.only_proofs, scope.exclusive) = (3, true, false);
    scope
}

#[test]
fn no_two_locks_that_were_held_at_once_are_both_proven_whatever_fails() {
    let mut reached = Reached::default();
    for seed in 0..HISTORIES {
        let scope = Arc::new(without_any_assumption(seed));
        let history = live(&scope, &mut Seeded::new(seed), STEPS);
        assert!(history.violation.is_none(), "seed {seed}: {}", history.shrunk());
        reached.add(history.reached);
    }
    println!("{HISTORIES} histories without any assumption: {reached:?}");
    // And those in which mistakes of whoever judges show.
    let thefts =
        [Scope::take_keys_away, Scope::take_keys_and_answers_away, Scope::take_keys_away_and_bring_them_back];
    for take in thefts {
        for seed in 0..HISTORIES / 4 {
            let mut scope = Scope::drawn_with_fences(seed, &[]);
            take(&mut scope);
            let history = live(&Arc::new(scope), &mut Seeded::new(seed), STEPS);
            assert!(history.violation.is_none(), "seed {seed}: {}", history.shrunk());
        }
    }
    // Where no two were ever valid at once, nothing would be proven wrongly; and where nothing is proven, nothing is shown.
    assert!(reached.overlaps > HISTORIES / 50, "only {} pairs were valid at once", reached.overlaps);
    assert!(reached.proven > HISTORIES / 10, "only {} were proven", reached.proven);
    assert!(reached.unproven > HISTORIES / 10, "only {} were not proven", reached.unproven);
}

fn is_under_way(step: Step) -> bool {
    matches!(step, Step::Arrive(_) | Step::Hear(_) | Step::Wake { .. } | Step::Take { .. })
}

/// Chance, but what is under way or due comes before anything else, in any order.
struct Calm(Seeded);

impl Chooser for Calm {
    fn choose(&mut self, offers: &[Offer]) -> Option<usize> {
        let is_urgent = |offer: &Offer| is_under_way(offer.step);
        let hurry = offers.iter().any(is_urgent);
        let weigh = |offer: &Offer| Offer {
            weight: if hurry && !is_urgent(offer) { 0 } else { offer.weight },
            ..*offer
        };
        self.0.choose(&offers.iter().map(weigh).collect::<Vec<_>>())
    }
}

#[test]
fn in_the_calm_every_release_is_proven() {
    let (seeds, steps) = if cfg!(debug_assertions) { (1, 6_000) } else { (4, 60_000) };
    for clients in [1, 2, 8] {
        let mut reached = Reached::default();
        for seed in 0..seeds {
            let mut scope = contended(clients, false);
            scope.sort =
                Sort::Fenced { wall_clocks: vec![seed; clients], high_waters: Vec::new(), remembers: true };
            // Locks that are kept for long are renewed.
            scope.weather.spans.push((Span::Micros(1_000_000), 20));
            scope.weather.release = 5;
            let history = live(&Arc::new(scope), &mut Calm(Seeded::new(seed)), steps);
            assert!(history.violation.is_none(), "seed {seed}: {history}");
            reached.add(history.reached);
        }
        println!("{clients} clients: {reached:?}");
        assert_eq!(reached.unproven, 0, "{clients} clients");
        assert!(reached.proven > 5 * seeds, "{clients} clients");
    }
}

/// One step after the other, and before each whatever can be done without it.
struct Script {
    rest: VecDeque<Step>,
    chance: Calm,
}

impl Chooser for Script {
    fn choose(&mut self, offers: &[Offer]) -> Option<usize> {
        let is_urgent = |offer: &Offer| match offer.step {
            // Of a connection that leads nowhere: nobody else loses one.
            Step::Break { .. } | Step::Dial { .. } => offer.weight > 0,
            step => is_under_way(step),
        };
        if offers.iter().any(is_urgent) {
            let urgent: Vec<_> = offers
                .iter()
                .map(|offer| Offer { weight: if is_urgent(offer) { offer.weight } else { 0 }, ..*offer })
                .collect();
            return self.chance.0.choose(&urgent);
        }
        let next = self.rest.pop_front()?;
        Some(
            offers
                .iter()
                .position(|offer| offer.step == next)
                .unwrap_or_else(|| panic!("no {next}: {offers:?}")),
        )
    }
}

/// c1 holds by n1 and n2. Its key at n2 is copied and then vanishes, c2 holds by n2 and n3 and is done; then the copy is brought back, and
/// counts again before c1 has heard of it, whose key was never missing as far as it can see.
#[test]
fn what_one_incarnation_has_shown_the_next_does_not_continue() {
    let outcome = |mutant| {
        let mut scope = Scope::drawn_with_fences(0, &[]);
        (scope.nodes, scope.mutant) = (3, mutant);
        scope.wishes = contended(2, false).wishes;
        let names = (1..=3).map(|node| format!("n{node}").into()).collect();
        let terms = Arc::new(
            Wishes { renewal: Renewal::Never, ..Wishes::default() }.check(&names).expect("terms that agree"),
        );
        scope.wishes = vec![WishFor { terms, wait: None, without_restarts: false }];
        scope.take_keys_away_and_bring_them_back();
        scope.weather.breaks = 0;
        scope.weather.faults.push((FaultClass::Cuts, 1));
        let (c1, c2) = (0, 1);
        let pass = Step::Pass(Span::UntilDue);
        let rest = VecDeque::from([
            Step::Fault(Fault::Cut(c1, 2)),
            Step::Begin { client: c1, wish: 0 },
            Step::Fault(Fault::Copy(1)),
            Step::Fault(Fault::Evict(1)),
            Step::Begin { client: c2, wish: 0 },
            Step::Release { client: c2 },
            Step::Fault(Fault::Promote(1)),
            pass,
            Step::Release { client: c1 },
            Step::Fault(Fault::Mend(c1, 2)),
        ]);
        live(&Arc::new(scope), &mut Script { rest, chance: Calm(Seeded::new(0)) }, usize::MAX)
    };
    let right = outcome(None);
    assert_eq!((right.reached.proven, right.reached.unproven), (1, 1), "{right}");
    assert_eq!(right.violation, None, "{right}");
    let bridged = outcome(Some(Mutant::IncarnationsBridged));
    assert_eq!(bridged.violation, Some(Violation::TwoProven(1, 0)), "{bridged}");
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
