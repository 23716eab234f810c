//! Every history of small scopes, in optimised builds: those that can be looked at within a minute always, the larger ones
//! with `REDLOCK_TEST_SCOPES=all`. What they came to stands in docs/safety.md.
#![cfg(all(feature = "sim", not(debug_assertions)))]

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use redlock_quorum::sim::fault::FaultClass;
use redlock_quorum::sim::history::live;
use redlock_quorum::sim::mutant::Mutant;
use redlock_quorum::sim::scope::{Small, Sort};
use redlock_quorum::sim::search::{Found, Limits, Verified, exhaust, verify};

/// A scope, and how many different worlds there are in it at least: with fewer, something is not looked at any more.
struct Case {
    name: &'static str,
    worlds: u64,
    small: Small,
}

fn case(name: &'static str, worlds: u64, small: Small) -> Case {
    Case { name, worlds, small }
}

fn a_restart() -> (Vec<FaultClass>, u32) {
    (vec![FaultClass::Amnesia], 1)
}

/// These take half a minute together.
#[rustfmt::skip]
fn cases() -> Vec<Case> {
    let small = Small::default;
    vec![
        case("1 client, 1 node: two extensions or alarms, dropped futures, a broken connection", 43_850,
            Small { clients: 1, extensions: 2, alarms: true, abandons: true, listens: true, breaks: 1, ..small() }),
        case("2 clients, 1 node: two attempts, dropped futures", 569_794,
            Small { attempts: 2, abandons: true, listens: true, ..small() }),
        case("2 clients, 1 node: an extension or an alarm", 817_464,
            Small { extensions: 1, alarms: true, listens: true, ..small() }),
        case("2 clients, 1 node: two attempts, and who waits is woken, or dropped", 145_061,
            Small { attempts: 2, waits: true, abandons: true, ..small() }),
        case("2 clients, 1 node: dropped futures, a broken connection", 24_042,
            Small { abandons: true, breaks: 1, ..small() }),
        case("2 clients, 1 node that restarts empty", 79_960,
            Small { faults: a_restart(), ..small() }),
        case("2 clients, 2 nodes", 13_168,
            Small { nodes: 2, ..small() }),
        case("2 clients, 2 nodes: two attempts, no timers", 409_515,
            Small { nodes: 2, attempts: 2, timers: false, ..small() }),
        case("2 clients, 2 nodes: an extension, no timers", 9_874,
            Small { nodes: 2, extensions: 1, timers: false, ..small() }),
    ]
}

/// With a majority that is not all.
#[rustfmt::skip]
fn majorities() -> Vec<Case> {
    let three = || Small { nodes: 3, timers: false, ..Small::default() };
    vec![
        case("2 clients, 3 nodes, no timers", 11_452, three()),
        case("2 clients, 3 nodes of which one restarts empty, no timers, answers at once", 193_815,
            Small { faults: a_restart(), answers_at_once: true, ..three() }),
        case("3 clients, 3 nodes, no timers, answers at once", 51_883,
            Small { clients: 3, answers_at_once: true, ..three() }),
    ]
}

/// With a fence, which must rise; these take ten seconds together. The first clocks agree; then one client is behind, and one node has met more than the others.
#[rustfmt::skip]
fn fences() -> Vec<Case> {
    let three = || Small { nodes: 3, timers: false, answers_at_once: true, sort: fenced(&[0, 0, 0], &[]), ..Small::default() };
    vec![
        case("2 clients, 1 node: fences, dropped futures", 5_748,
            Small { abandons: true, sort: fenced(&[0, 1], &[]), ..Small::default() }),
        case("2 clients, 3 nodes: fences, no timers", 30_308, Small { answers_at_once: false, ..three() }),
        case("2 clients, 3 nodes: fences, a node ahead, no timers, answers at once", 91_020,
            Small { sort: fenced(&[0, 1], &[0, 2_000_000_000, 0]), ..three() }),
        case("3 clients, 3 nodes: fences, no timers, answers at once", 540_450, Small { clients: 3, ..three() }),
    ]
}

fn fenced(wall_clocks: &[u64], high_waters: &[u64]) -> Sort {
    let (wall_clocks, high_waters) = (wall_clocks.to_vec(), high_waters.to_vec());
    Sort::Fenced { wall_clocks, high_waters, remembers: false }
}

/// These take minutes.
#[rustfmt::skip]
fn larger_cases() -> Vec<Case> {
    let three = || Small { nodes: 3, timers: false, ..Small::default() };
    vec![
        case("2 clients, 2 nodes of which one restarts empty", 1_618_456,
            Small { nodes: 2, faults: a_restart(), ..Small::default() }),
        case("3 clients, 3 nodes, no timers", 1_424_575, Small { clients: 3, ..three() }),
        case("2 clients, 3 nodes of which one restarts empty, no timers", 2_515_143, Small { faults: a_restart(), ..three() }),
        case("3 clients, 1 node: two attempts", 24_789_812,
            Small { clients: 3, attempts: 2, ..Small::default() }),
    ]
}

fn look(case: &Case, limits: Limits) -> Found {
    let scope = Arc::new(case.small.scope(None));
    let found = exhaust(&scope, limits);
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
        met.extend(look_at_all(&case).pairs.into_keys());
    }
    // What takes three nodes and a split vote is met on the way through a scope that is too large to be looked at whole.
    let split = case(
        "a part of 2 clients, 3 nodes: two attempts",
        0,
        Small { nodes: 3, attempts: 2, ..Small::default() },
    );
    met.extend(look(&split, Limits { worlds: 300_000, ..PATIENT }).pairs.into_keys());
    let missing: Vec<_> = every_pair().filter(|pair| !met.contains(pair)).collect();
    assert!(missing.is_empty(), "never met: {missing:?}");
}

#[test]
fn nor_do_fences() {
    let met: BTreeSet<_> = fences().iter().flat_map(|case| look_at_all(case).pairs.into_keys()).collect();
    for event in ["Tick", "Answer", "Abandon"] {
        assert!(met.contains(&("Raising", event)), "never met: {event} while Raising");
    }
}

#[test]
fn nor_do_majorities() {
    majorities().iter().for_each(|case| _ = look_at_all(case));
}

const PATIENT: Limits = Limits { worlds: 200_000_000, time: Duration::from_secs(1_800) };

fn look_at_all(case: &Case) -> Found {
    let found = look(case, PATIENT);
    assert!(found.complete, "{}: not all of it", case.name);
    assert!(found.worlds >= case.worlds, "{}: only {} worlds", case.name, found.worlds);
    found
}

/// Every state of a claim with every event that can meet it.
fn every_pair() -> impl Iterator<Item = (&'static str, &'static str)> {
    // Before the lock is in hand it can only be dropped, after that only be extended and released.
    const CLAIMING: &[&str] = &["Tick", "Answer", "Abandon"];
    const HOLDING: &[&str] = &["Tick", "Answer", "Extend", "Alarm", "Release"];
    [
        ("Resting", &["Tick", "Answer", "Abandon"][..]),
        ("Waiting", &["Tick", "Woken", "Abandon"]),
        ("Drawing", &["Attempt"]),
        ("Attempting", CLAIMING),
        ("Attempting in order", CLAIMING),
        ("Looking", CLAIMING),
        ("Held", &["Tick", "Answer", "Extend", "Alarm", "Release", "Abandon"]),
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
    let three = || Small { nodes: 3, timers: false, ..Small::default() };
    let restart = || Small { faults: a_restart(), answers_at_once: true, ..three() };
    let fences = || Small { answers_at_once: true, sort: fenced(&[0, 0], &[]), ..three() };
    let a_node_ahead = || Small { sort: fenced(&[0, 1], &[0, 2_000_000_000, 0]), ..fences() };
    for (mutant, small) in [
        (Mutant::SetWithoutNx, Small::default()),
        (Mutant::DriftIgnored, Small::default()),
        (Mutant::TooLateUnnoticed, Small::default()),
        (Mutant::HealAfterTheEnd, Small { clients: 1, ..Small::default() }),
        (Mutant::ExtensionShortens, Small { extensions: 1, ..Small::default() }),
        (Mutant::RestartedNodeVotes, Small { faults: a_restart(), ..Small::default() }),
        (Mutant::HalfIsAMajority, Small { nodes: 2, ..Small::default() }),
        // The same by a majority of three.
        (Mutant::SetWithoutNx, three()),
        (Mutant::SetWithoutNx, Small { clients: 3, ..three() }),
        (Mutant::TooLateUnnoticed, three()),
        (Mutant::HealAfterTheEnd, three()),
        (Mutant::ExtensionAfterTheRelease, three()),
        (Mutant::ReleaseWithoutComparison, Small { clients: 3, ..three() }),
        (Mutant::RestartedNodeVotes, restart()),
        (Mutant::WaitingNodeCounts, restart()),
        (Mutant::MaximumOfCounters, a_node_ahead()),
        (Mutant::VotedCountsAsAccepted, fences()),
    ] {
        let scope = Arc::new(small.scope(Some(mutant)));
        let found = exhaust(&scope, Limits { worlds: 10_000_000, time: Duration::from_secs(60) });
        let (violation, steps) = found.violation.unwrap_or_else(|| panic!("{mutant:?} is not found"));
        println!("{mutant:?}: {violation}, after {} worlds, in {} steps", found.worlds, steps.len());
    }
}

/// All worlds of a scope one by one, with and without mistakes.
#[test]
fn worlds_that_are_looked_at_once_go_on_alike() {
    let (one, two) = (Small::default, || Small { nodes: 2, timers: false, ..Small::default() });
    let (at_once, restart) = (
        || Small { answers_at_once: true, ..two() },
        || Small { faults: a_restart(), timers: false, ..one() },
    );
    for (mutant, small) in [
        (None, one()),
        (None, two()),
        (None, Small { clients: 3, timers: false, ..one() }),
        (None, Small { clients: 1, nodes: 3, extensions: 1, ..at_once() }),
        (None, Small { breaks: 1, timers: false, ..one() }),
        (None, restart()),
        (None, Small { faults: (vec![FaultClass::Crashes], 1), ..restart() }),
        (None, Small { sort: fenced(&[0, 0], &[]), ..at_once() }),
        (None, Small { sort: fenced(&[0, 1], &[]), ..one() }),
        (Some(Mutant::VotedCountsAsAccepted), Small { sort: fenced(&[0, 0], &[]), ..at_once() }),
        (Some(Mutant::SetWithoutNx), two()),
        (Some(Mutant::DriftIgnored), one()),
        (Some(Mutant::TooLateUnnoticed), one()),
        (Some(Mutant::HealAfterTheEnd), one()),
        // What is wrong here is seen only by what the checker remembers.
        (Some(Mutant::AllMustAnswer), one()),
        (Some(Mutant::HalfIsAMajority), at_once()),
        (Some(Mutant::ReleaseWithoutComparison), restart()),
        (Some(Mutant::RestartedNodeVotes), restart()),
        (Some(Mutant::WaitingNodeCounts), restart()),
        (Some(Mutant::TransportResends), Small { breaks: 1, timers: false, ..one() }),
    ] {
        look_one_by_one(mutant, &small);
    }
}

fn look_one_by_one(mutant: Option<Mutant>, small: &Small) {
    match verify(&Arc::new(small.scope(mutant))) {
        Err(difference) => panic!("{mutant:?}, {small:?}: {difference}"),
        Ok(Verified { worlds, folded, violations }) => {
            println!(
                "{mutant:?}: {worlds} worlds, of which {folded} must be looked at; {violations} violations"
            );
        }
    }
}

/// With `REDLOCK_TEST_SCOPES=all`.
fn larger_scopes_are_asked_for() -> bool {
    let asked_for = std::env::var_os("REDLOCK_TEST_SCOPES").is_some();
    if !asked_for {
        println!("skipped: REDLOCK_TEST_SCOPES=all looks at the larger scopes, for minutes");
    }
    asked_for
}

#[test]
fn more_worlds_that_are_looked_at_once_go_on_alike() {
    if !larger_scopes_are_asked_for() {
        return;
    }
    let (one, two) = (Small::default, || Small { nodes: 2, timers: false, ..Small::default() });
    let at_once = || Small { answers_at_once: true, ..two() };
    for (mutant, small) in [
        (None, Small { nodes: 3, ..at_once() }),
        (None, Small { extensions: 1, ..at_once() }),
        (None, Small { breaks: 1, ..at_once() }),
        (None, Small { breaks: 1, abandons: true, ..one() }),
        (None, Small { faults: a_restart(), ..at_once() }),
        (Some(Mutant::SetWithoutNx), Small { breaks: 1, ..at_once() }),
    ] {
        look_one_by_one(mutant, &small);
    }
}

#[test]
fn larger_scopes_hold_none_either() {
    if !larger_scopes_are_asked_for() {
        return;
    }
    for case in larger_cases() {
        look_at_all(&case);
    }
}
