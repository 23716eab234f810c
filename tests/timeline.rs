//! The picture of a history in the documentation is what the code draws, and the history in it is one that
//! happens.
//!
//! With `UPDATE_PICTURES=1` it is drawn anew, to be looked at.
#![cfg(feature = "sim")]

use std::path::Path;
use std::sync::Arc;

use redlock_quorum::sim::check::Violation;
use redlock_quorum::sim::choose::Replay;
use redlock_quorum::sim::fault::{Fault, FaultClass};
use redlock_quorum::sim::history::{History, live};
use redlock_quorum::sim::mutant::Mutant;
use redlock_quorum::sim::scope::{Scope, Small};
use redlock_quorum::sim::timeline::Timeline;
use redlock_quorum::sim::world::{Span, Step, WireId};

const C1: usize = 0;
const C2: usize = 1;

/// A node restarts empty under a holder, and votes at once for another. That it does is planted.
fn a_restarted_node_votes() -> History {
    let small = Small { nodes: 3, breaks: 1, faults: (vec![FaultClass::Amnesia], 1), ..Small::default() };
    let mut scope: Scope = small.scope(Some(Mutant::RestartedNodeVotes));
    scope.weather.spans = vec![(Span::Micros(700), 1), (Span::Micros(300_000), 1)];
    let on = |client, node, number| WireId { client, node, number };
    let story = [
        Step::Begin { client: C1, wish: 0 },
        Step::Pass(Span::Micros(700)),
        Step::Arrive(on(C1, 0, 0)),
        Step::Arrive(on(C1, 1, 0)),
        Step::Pass(Span::Micros(700)),
        Step::Hear(on(C1, 0, 0)),
        Step::Hear(on(C1, 1, 0)),
        Step::Pass(Span::Micros(300_000)),
        Step::Fault(Fault::Crash(1)),
        Step::Break { client: C2, node: 1 },
        Step::Pass(Span::Micros(300_000)),
        Step::Fault(Fault::RestartEmpty(1)),
        Step::Dial { client: C2, node: 1 },
        Step::Arrive(on(C2, 1, 1)),
        Step::Hear(on(C2, 1, 1)),
        Step::Begin { client: C2, wish: 0 },
        Step::Pass(Span::Micros(700)),
        Step::Arrive(on(C2, 1, 1)),
        Step::Arrive(on(C2, 2, 0)),
        Step::Pass(Span::Micros(700)),
        Step::Hear(on(C2, 1, 1)),
        Step::Hear(on(C2, 2, 0)),
    ];
    let history = live(&Arc::new(scope), &mut Replay::new(story), story.len());
    assert_eq!(history.steps, story, "something in it cannot happen");
    history
}

#[test]
fn the_picture_in_the_documentation_is_what_is_drawn() {
    let history = a_restarted_node_votes();
    assert_eq!(history.violation, Some(Violation::TwoHolders(C1, C2)), "{history}");
    let drawn = Timeline::of(&history).titled("A node restarts empty, and votes at once").to_svg();
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/two-holders.svg");
    if std::env::var_os("UPDATE_PICTURES").is_some() {
        std::fs::write(&path, &drawn).expect("a writable picture");
    }
    let stands = std::fs::read_to_string(&path).expect("the picture");
    assert!(stands == drawn, "{} is drawn differently: see UPDATE_PICTURES", path.display());
}
