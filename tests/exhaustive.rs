//! Every history of small scopes. Those that a machine looks at within a minute are always looked at, in release builds; the
//! larger ones with `REDLOCK_TEST_SCOPES=all`. What they came to stands in docs/safety.md.
#![cfg(feature = "sim")]

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use redlock_quorum::sim::fault::FaultClass;
use redlock_quorum::sim::history::{self, History};
use redlock_quorum::sim::mutant::Mutant;
use redlock_quorum::sim::scope::Small;
use redlock_quorum::sim::search::{Found, Limits, exhaust};

/// A scope, and how many worlds there are in it: fewer means that something is not looked at any more.
struct Case {
    name: &'static str,
    small: Small,
    worlds: u64,
    always: bool,
}

fn cases() -> Vec<Case> {
    let case = |name, worlds, small| Case { name, small, worlds, always: true };
    let large = |name, worlds, small| Case { name, small, worlds, always: false };
    vec![
        case(
            "one client, one node, everything",
            0,
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
        case("two clients, one node", 0, Small { attempts: 2, extensions: 1, ..Small::default() }),
        case(
            "two clients, one node, dropped futures, a broken connection",
            0,
            Small { abandons: true, breaks: 1, ..Small::default() },
        ),
        case(
            "two clients, one node that restarts empty",
            0,
            Small { faults: (vec![FaultClass::Amnesia], 1), ..Small::default() },
        ),
        case("two clients, two nodes", 0, Small { nodes: 2, ..Small::default() }),
        case("two clients, three nodes", 0, Small { nodes: 3, ..Small::default() }),
        large(
            "two clients, two nodes, an extension",
            0,
            Small { nodes: 2, extensions: 1, ..Small::default() },
        ),
        large("two clients, two nodes, two attempts", 0, Small { nodes: 2, attempts: 2, ..Small::default() }),
        large(
            "two clients, three nodes, one of which restarts empty",
            0,
            Small { nodes: 3, faults: (vec![FaultClass::Amnesia], 1), ..Small::default() },
        ),
        large("three clients, three nodes", 0, Small { clients: 3, nodes: 3, ..Small::default() }),
    ]
}

#[test]
fn look() {
    let only = std::env::var("ONLY").ok().and_then(|v| v.parse::<usize>().ok());
    let minutes = std::env::var("SECS").ok().and_then(|v| v.parse::<u64>().ok()).unwrap_or(60);
    for (i, case) in cases().iter().enumerate() {
        if only.is_some_and(|only| only != i) {
            continue;
        }
        let found = exhaust(
            &Arc::new(case.small.scope(None)),
            Limits { worlds: u64::MAX, time: Duration::from_secs(minutes) },
        );
        println!(
            "{i} {}: {} worlds, {} steps, depth {}, complete {}, {:?}, {:?}",
            case.name,
            found.worlds,
            found.steps,
            found.depth,
            found.complete,
            found.violation.is_some(),
            found.took
        );
        println!("   {:?}", found.pairs.keys().collect::<Vec<_>>());
    }
}
