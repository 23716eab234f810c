//! Every history of small scopes, in optimised builds: those that can be looked at within a minute always, the larger ones
//! with `REDLOCK_TEST_SCOPES=all`. What they came to stands in docs/safety.md.
#![cfg(all(feature = "sim", not(debug_assertions)))]

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use redlock_quorum::sim::fault::FaultClass;
use redlock_quorum::sim::history::live;
use redlock_quorum::sim::mutant::Mutant;
use redlock_quorum::sim::scope::Small;
use redlock_quorum::sim::search::{Found, Limits, exhaust};

/// A scope, and how many different worlds there are in it: with fewer, something is not looked at any more.
struct Case {
    name: &'static str,
    small: Small,
    worlds: u64,
}

/// These take about a minute together.
fn cases() -> Vec<Case> {
    let case = |name, worlds, small| Case { name, small, worlds };
    let restart = || (vec![FaultClass::Amnesia], 1);
    vec![
        case(
            "1 client, 1 node: two attempts, two extensions, dropped futures, a broken connection",
            42_000,
            Small {
                clients: 1,
                attempts: 2,
                extensions: 2,
                abandons: true,
                listens: true,
                breaks: 1,
                ..Small::default()
            },
        ),
        case(
            "2 clients, 1 node: two attempts, an extension",
            880_000,
            Small { attempts: 2, extensions: 1, ..Small::default() },
        ),
        case(
            "2 clients, 1 node: dropped futures, a broken connection",
            400_000,
            Small { abandons: true, breaks: 1, ..Small::default() },
        ),
        case(
            "2 clients, 1 node that restarts empty",
            1_180_000,
            Small { faults: restart(), ..Small::default() },
        ),
        case("2 clients, 2 nodes", 598_000, Small { nodes: 2, ..Small::default() }),
    ]
}

/// These take minutes and gigabytes.
fn larger_cases() -> Vec<Case> {
    let case = |name, worlds, small| Case { name, small, worlds };
    let restart = || (vec![FaultClass::Amnesia], 1);
    vec![
        case("2 clients, 3 nodes", 0, Small { nodes: 3, timers: false, ..Small::default() }),
        case("2 clients, 2 nodes, an extension", 0, Small { nodes: 2, extensions: 1, ..Small::default() }),
        case("2 clients, 2 nodes, two attempts", 0, Small { nodes: 2, attempts: 2, ..Small::default() }),
        case(
            "2 clients, 3 nodes of which one restarts empty",
            0,
            Small { nodes: 3, faults: restart(), ..Small::default() },
        ),
        case("3 clients, 3 nodes", 0, Small { clients: 3, nodes: 3, timers: false, ..Small::default() }),
    ]
}

/// Looks at a scope whole, or for so long.
fn look(case: &Case, time: Duration) -> Found {
    let scope = Arc::new(case.small.scope(None));
    let found = exhaust(&scope, Limits { worlds: 100_000_000, time });
    println!(
        "{}: {} worlds by {} steps, {} deep, {} in {:.1?}",
        case.name,
        found.worlds,
        found.steps,
        found.depth,
        if found.complete { "all" } else { "NOT ALL" },
        found.took
    );
    if let Some((violation, steps)) = &found.violation {
        let mut replay = redlock_quorum::sim::choose::Replay::new(steps.iter().copied());
        panic!("{}: {violation}\n{}", case.name, live(&scope, &mut replay, steps.len()));
    }
    found
}

#[test]
fn small_scopes_hold_no_history_that_breaks_the_promise() {
    let mut met = BTreeSet::new();
    for case in cases() {
        let found = look(&case, Duration::from_secs(600));
        assert!(found.complete, "{}: not all of it", case.name);
        assert!(found.worlds >= case.worlds, "{}: only {} worlds", case.name, found.worlds);
        met.extend(found.pairs.into_keys());
    }
    let missing: Vec<_> = every_pair().filter(|pair| !met.contains(pair)).collect();
    assert!(missing.is_empty(), "never met: {missing:?}");
}

/// Every state of a claim with every event that can meet it.
fn every_pair() -> impl Iterator<Item = (&'static str, &'static str)> {
    // Before the lock is in hand it can only be dropped, after that only be extended and released.
    const CLAIMING: &[&str] = &["Tick", "Answer", "Abandon"];
    const HOLDING: &[&str] = &["Tick", "Answer", "Extend", "Release"];
    [
        ("Resting", &["Tick", "Answer", "Abandon"][..]),
        ("Drawing", &["Attempt"]),
        ("Attempting", CLAIMING),
        ("Attempting in order", CLAIMING),
        ("Looking", CLAIMING),
        ("Held", &["Tick", "Answer", "Extend", "Release", "Abandon"]),
        ("Extending", HOLDING),
        ("Lost", &["Tick", "Answer", "Release", "Abandon"]),
        ("Lost, released", &["Tick", "Answer", "Release", "Abandon"]),
        ("Releasing", &["Tick", "Answer"]),
        ("Ended", &["Answer"]),
    ]
    .into_iter()
    .flat_map(|(state, events)| events.iter().map(move |event| (state, *event)))
}

#[test]
fn a_search_finds_planted_mistakes_too() {
    for (mutant, small) in [
        (Mutant::SetWithoutNx, Small::default()),
        (Mutant::DriftIgnored, Small::default()),
        (Mutant::LateExtensionCounts, Small { attempts: 2, extensions: 1, ..Small::default() }),
        (Mutant::RestartedNodeVotes, Small { faults: (vec![FaultClass::Amnesia], 1), ..Small::default() }),
    ] {
        let scope = Arc::new(small.scope(Some(mutant)));
        let found = exhaust(&scope, Limits { worlds: 10_000_000, time: Duration::from_secs(60) });
        let (violation, steps) = found.violation.unwrap_or_else(|| panic!("{mutant:?} is not found"));
        println!("{mutant:?}: {violation}, after {} worlds, in {} steps", found.worlds, steps.len());
    }
}

#[test]
fn larger_scopes_hold_none_either() {
    if std::env::var_os("REDLOCK_TEST_SCOPES").is_none() {
        println!("skipped: REDLOCK_TEST_SCOPES=all looks at the larger scopes, for minutes");
        return;
    }
    for case in larger_cases() {
        let found = look(&case, Duration::from_secs(1800));
        assert!(found.worlds >= case.worlds, "{}: only {} worlds", case.name, found.worlds);
    }
}
