//! A history as a picture: who held when, what stood at which node, what went wrong, and where each validity
//! ended. It is made by living through the history once more, and shows what can be seen; every command and
//! answer is in the history's text.

mod canvas;
mod drawing;
mod layout;

use super::fault::Fault;
use super::history::History;
use super::world::{ClientIndex, Note, Span, Step, World};
use crate::protocol::claim::{Loss, Notice, Phase, Why};
use crate::protocol::command::{NodeIndex, Value};
use crate::protocol::time::Instant;

/// The timeline of a history, to be drawn.
#[derive(Clone, Debug)]
pub struct Timeline {
    title: String,
    about: String,
    clients: usize,
    nodes: usize,
    columns: Vec<Column>,
}

/// What stands side by side.
#[derive(Clone, Debug)]
enum Column {
    /// Time passes.
    Passing { from: Instant, to: Instant },
    /// Something happens, and no time passes.
    Moment(Moment),
    /// After the history: when the last validity would have ended.
    Afterwards { from: Instant, to: Instant },
}

#[derive(Clone, Debug)]
struct Moment {
    at: Instant,
    labels: Vec<Label>,
    /// How it looks from here on.
    scene: Scene,
}

/// What is written where.
#[derive(Clone, Debug)]
struct Label {
    row: Row,
    tone: Tone,
    text: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Row {
    Client(ClientIndex),
    /// What concerns all.
    World,
    Node(NodeIndex),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Tone {
    Plain,
    Fault,
    Violation,
}

/// How the world looks at a moment.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Scene {
    clients: Vec<ClientScene>,
    nodes: Vec<NodeScene>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct ClientScene {
    stage: Stage,
    is_paused: bool,
    /// While it holds: the end of its validity on its own clock, and when that is in the world's time.
    valid_until: Option<(Instant, Instant)>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Idle,
    Wants,
    Holds,
    /// It held, and has not released yet.
    HeldOnce,
    Dead,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct NodeScene {
    is_up: bool,
    is_stalled: bool,
    is_full: bool,
    key: Option<Value>,
    /// For whom it does not vote yet.
    waits_for: Waits,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Waits {
    Nobody,
    Some(Vec<ClientIndex>),
    Everybody,
}

/// A hold from its first moment to its end.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Hold {
    client: ClientIndex,
    /// The column in which it begins.
    from: usize,
    end: HoldEnd,
    /// When its validity would have ended, in the world's time, each time that it was told.
    validities: Vec<Instant>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum HoldEnd {
    /// Its validity was over.
    Over(Instant),
    /// Released, lost, or its client died, in this column.
    Cut(usize),
    /// It outlived the history.
    Open,
}

/// Something that stays the same over columns: from the first up to, and without, the last.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Run<T> {
    from: usize,
    to: usize,
    what: T,
}

impl Timeline {
    /// Lives through a history again.
    pub fn of(history: &History) -> Timeline {
        let scope = &history.scope;
        let mut world = World::new(scope.clone());
        let opening = Moment { at: world.now(), labels: Vec::new(), scene: Scene::of(&world) };
        let mutant = scope.mutant.map_or(String::new(), |mutant| format!(", with the mistake {mutant:?}"));
        let ttl = layout::length_in_words(scope.max_ttl().as_duration());
        let mut timeline = Timeline {
            title: history.violation.as_ref().map_or("all is well".to_owned(), ToString::to_string),
            about: format!("{} clients, {} nodes, ttl {ttl}{mutant}", scope.clients, scope.nodes),
            clients: scope.clients,
            nodes: scope.nodes,
            columns: vec![Column::Moment(opening)],
        };
        timeline.live(&mut world, &history.steps);
        // In the calm, only what failed is worth showing.
        if history.violation.is_some() && !history.calm.is_empty() {
            world.mend();
            timeline.look(&world, vec![Label::of_fault(Row::World, "all faults are mended")]);
            timeline.live(&mut world, &history.calm);
        }
        timeline.end(&world, history.violation.as_ref().map(ToString::to_string));
        timeline
    }

    /// With words in front of the title: the seed, for one.
    pub fn titled(self, words: impl AsRef<str>) -> Timeline {
        Timeline { title: format!("{}: {}", words.as_ref(), self.title), ..self }
    }

    /// The picture.
    pub fn to_svg(&self) -> String {
        drawing::draw(self)
    }

    fn live(&mut self, world: &mut World, steps: &[Step]) {
        for step in steps {
            let mut passing = world.clone();
            world.perform(*step);
            if let Step::Pass(_) = step {
                self.watch(&mut passing, world.now());
            }
            let told = world.notes().iter().filter_map(Label::of_note);
            let labels = Label::of_step(*step).into_iter().chain(told).collect();
            self.look(world, labels);
        }
    }

    /// Sees what ends by itself while time passes.
    fn watch(&mut self, world: &mut World, until: Instant) {
        while world.next_due().is_some_and(|due| due < until) {
            world.perform(Step::Pass(Span::UntilDue));
            self.look(world, Vec::new());
        }
    }

    /// Adds a moment, if there is something to see.
    fn look(&mut self, world: &World, mut labels: Vec<Label>) {
        let (before, scene) = (self.last(), Scene::of(world));
        labels.extend(scene.extensions_since(&before.scene));
        if scene != before.scene || !labels.is_empty() {
            self.add(world.now(), labels, scene);
        }
    }

    fn add(&mut self, at: Instant, labels: Vec<Label>, scene: Scene) {
        let from = self.last().at;
        if from < at {
            self.columns.push(Column::Passing { from, to: at });
        }
        self.columns.push(Column::Moment(Moment { at, labels, scene }));
    }

    fn end(&mut self, world: &World, violation: Option<String>) {
        let (tone, text) = match violation {
            Some(text) => (Tone::Violation, text),
            None => (Tone::Plain, "then everything is mended, and comes right".to_owned()),
        };
        let verdict = Label { row: Row::World, tone, text };
        match self.columns.last_mut() {
            Some(Column::Moment(last)) if last.at == world.now() => last.labels.push(verdict),
            _ => self.add(world.now(), vec![verdict], Scene::of(world)),
        }
        let last = self.last();
        let ends = last.scene.clients.iter().filter_map(|client| Some(client.valid_until?.1));
        let (from, to) = (last.at, ends.filter(|end| *end < Instant::NEVER).max());
        if let Some(to) = to.filter(|to| from < *to) {
            self.columns.push(Column::Afterwards { from, to });
        }
    }

    /// The moments, each with its column.
    fn moments(&self) -> impl Iterator<Item = (usize, &Moment)> {
        self.columns.iter().enumerate().filter_map(|(place, column)| match column {
            Column::Moment(moment) => Some((place, moment)),
            Column::Passing { .. } | Column::Afterwards { .. } => None,
        })
    }

    fn last(&self) -> &Moment {
        self.moments().last().expect("a timeline begins with a moment").1
    }

    /// How many columns there are without what comes after the history.
    fn lived(&self) -> usize {
        self.columns.iter().filter(|column| !matches!(column, Column::Afterwards { .. })).count()
    }

    /// How something that can be seen stays and changes.
    fn runs<T: PartialEq>(&self, look: impl Fn(&Scene) -> T) -> Vec<Run<T>> {
        let mut runs: Vec<Run<T>> = Vec::new();
        for (from, moment) in self.moments() {
            let what = look(&moment.scene);
            if runs.last().is_some_and(|run| run.what == what) {
                continue;
            }
            if let Some(run) = runs.last_mut() {
                run.to = from;
            }
            runs.push(Run { from, to: self.lived(), what });
        }
        runs
    }

    fn holds(&self, client: ClientIndex) -> Vec<Hold> {
        let mut holds: Vec<Hold> = Vec::new();
        for (column, moment) in self.moments() {
            let open = holds.last_mut().filter(|hold| hold.end == HoldEnd::Open);
            match (open, moment.scene.clients[client].valid_until) {
                (Some(hold), Some((_, end))) if !hold.validities.contains(&end) => hold.validities.push(end),
                (Some(hold), None) => {
                    let over = hold.validities.last().copied().filter(|end| *end <= moment.at);
                    hold.end = over.map_or(HoldEnd::Cut(column), HoldEnd::Over);
                }
                (None, Some((_, end))) => {
                    holds.push(Hold { client, from: column, end: HoldEnd::Open, validities: vec![end] });
                }
                _ => {}
            }
        }
        holds
    }
}

impl Scene {
    fn of(world: &World) -> Scene {
        let standing = world.standing();
        let key = |node| standing.iter().find(|(at, ..)| *at == node).map(|(_, value, _)| value.clone());
        Scene {
            clients: (0..world.scope().clients).map(|client| ClientScene::of(world, client)).collect(),
            nodes: (0..world.scope().nodes).map(|node| NodeScene::of(world, node, key(node))).collect(),
        }
    }

    /// A validity that ends later than before was extended, whether or not anybody asked for it by hand.
    fn extensions_since(&self, before: &Scene) -> Vec<Label> {
        let pairs = self.clients.iter().zip(&before.clients).enumerate();
        let longer = pairs.filter(|(_, (now, before))| match (now.valid_until, before.valid_until) {
            (Some((until, _)), Some((earlier, _))) => until > earlier,
            _ => false,
        });
        longer.map(|(client, _)| Label::plain(Row::Client(client), "extended")).collect()
    }
}

impl ClientScene {
    fn of(world: &World, client: ClientIndex) -> ClientScene {
        let valid_until = world.holds_until(client).map(|until| (until, world.when(client, until)));
        let stage = match world.claim(client).map(|claim| claim.phase()) {
            _ if !world.is_alive(client) => Stage::Dead,
            _ if valid_until.is_some() => Stage::Holds,
            Some(Phase::Claiming) => Stage::Wants,
            Some(Phase::Held | Phase::Lost) => Stage::HeldOnce,
            Some(Phase::Over) | None => Stage::Idle,
        };
        ClientScene { stage, is_paused: world.is_paused(client), valid_until }
    }
}

impl NodeScene {
    fn of(world: &World, node: NodeIndex, key: Option<Value>) -> NodeScene {
        let alive: Vec<ClientIndex> =
            (0..world.scope().clients).filter(|client| world.is_alive(*client)).collect();
        let waiting: Vec<ClientIndex> =
            alive.iter().copied().filter(|client| world.waits(*client, node)).collect();
        NodeScene {
            is_up: world.is_up(node),
            is_stalled: world.is_stalled(node),
            is_full: world.is_full(node),
            key: key.filter(|_| world.is_up(node)),
            waits_for: match waiting.len() {
                0 => Waits::Nobody,
                count if count == alive.len() => Waits::Everybody,
                _ => Waits::Some(waiting),
            },
        }
    }
}

impl Label {
    fn plain(row: Row, text: impl Into<String>) -> Label {
        Label { row, tone: Tone::Plain, text: text.into() }
    }

    fn of_fault(row: Row, text: impl Into<String>) -> Label {
        Label { row, tone: Tone::Fault, text: text.into() }
    }

    /// What is worth a word; what passes on the network is not, but is seen where it changes something.
    fn of_step(step: Step) -> Option<Label> {
        match step {
            Step::Begin { client, .. } => Some(Label::plain(Row::Client(client), "wants")),
            Step::Release { client } => Some(Label::plain(Row::Client(client), "releases")),
            Step::HandOver { client } => Some(Label::plain(Row::Client(client), "hands over")),
            Step::Abandon { client } => Some(Label::plain(Row::Client(client), "gives up")),
            Step::Fault(fault) => {
                let (row, text) = in_short(fault);
                Some(Label::of_fault(row, text))
            }
            Step::Pass(_)
            | Step::Wake { .. }
            | Step::Take { .. }
            | Step::Extend { .. }
            | Step::Alarm { .. }
            | Step::Verify { .. }
            | Step::Dial { .. }
            | Step::Break { .. }
            | Step::Arrive(_)
            | Step::Hear(_)
            | Step::Lose(_) => None,
        }
    }

    fn of_note(note: &Note) -> Option<Label> {
        let Note::Told { client, notice } = note else { return None };
        let text = match notice {
            Notice::Won => "wins",
            Notice::Lost(Loss::Expired) => "lost: time is over",
            Notice::Lost(Loss::KeysGone) => "lost: keys are gone",
            Notice::Extended(_, Err(_)) => "not extended",
            Notice::Released { proven: Some(true), .. } => "released, proven",
            Notice::Released { proven: Some(false), .. } => "released, not proven",
            Notice::Failed(failure) => match failure.why {
                Why::Held { .. } => "fails: held",
                Why::NoQuorum => "fails: no quorum",
                Why::NotReady { .. } => "fails: not ready",
                Why::TooLate => "fails: too late",
            },
            Notice::Extended(_, Ok(()))
            | Notice::Verified(..)
            | Notice::Released { .. }
            | Notice::HeldLong => return None,
        };
        Some(Label::plain(Row::Client(*client), text))
    }
}

/// A fault in the row of whom it befalls.
fn in_short(fault: Fault) -> (Row, String) {
    let (row, text) = match fault {
        Fault::Crash(node) => (Row::Node(node), "crashes"),
        Fault::RestartWithMemory(node) => (Row::Node(node), "restarts with its memory"),
        Fault::RestartEmpty(node) => (Row::Node(node), "restarts empty"),
        Fault::RestartStale(node) => (Row::Node(node), "restarts with an old memory"),
        Fault::Copy(node) => (Row::Node(node), "is copied"),
        Fault::Promote(node) => (Row::Node(node), "its replica takes over"),
        Fault::Replace(node) => (Row::Node(node), "is another server now"),
        Fault::Stall(node) => (Row::Node(node), "stands still"),
        Fault::Resume(node) => (Row::Node(node), "goes on"),
        Fault::Fill(node) => (Row::Node(node), "is full"),
        Fault::Drain(node) => (Row::Node(node), "has room again"),
        Fault::Cut(client, node) => return (Row::Client(client), format!("cut off from n{}", node + 1)),
        Fault::Mute(client, node) => return (Row::Client(client), format!("does not hear n{}", node + 1)),
        Fault::Mend(client, node) => return (Row::Client(client), format!("reaches n{} again", node + 1)),
        Fault::Pause(client) => (Row::Client(client), "stands still"),
        Fault::Continue(client) => (Row::Client(client), "goes on"),
        Fault::Die(client) => (Row::Client(client), "dies"),
        Fault::Evict(node) => (Row::Node(node), "evicts the key"),
        Fault::Flush(node) => (Row::Node(node), "is flushed"),
        Fault::Delete => (Row::World, "an operator deletes the lock everywhere"),
        Fault::JumpForward(node) => (Row::Node(node), "its clock jumps forward"),
        Fault::JumpBack(node) => (Row::Node(node), "its clock jumps back"),
        Fault::Freeze(client) => (Row::Client(client), "frozen for a ttl, with its clock"),
    };
    (row, text.to_owned())
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use super::*;
    use crate::sim::check::Violation;
    use crate::sim::choose::Replay;
    use crate::sim::fault::FaultClass;
    use crate::sim::history::{live, random};
    use crate::sim::mutant::Mutant;
    use crate::sim::scope::{START, Small};
    use crate::sim::world::WireId;

    /// Lives through a story, in which time may pass as it says. In a small scope nobody may ask again, so that
    /// there is no calm after it.
    fn told(small: &Small, mutant: Option<Mutant>, story: &[Step]) -> History {
        let mut scope = small.scope(mutant);
        let spans =
            story.iter().filter_map(|step| if let Step::Pass(span) = step { Some(*span) } else { None });
        scope.weather.spans.extend(spans.map(|span| (span, 1)));
        let history = live(&Arc::new(scope), &mut Replay::new(story.iter().copied()), story.len());
        assert_eq!(history.steps, story, "something in it cannot happen");
        let violation = history.violation.filter(|_| history.calm.is_empty());
        History { violation, calm: Vec::new(), ..history }
    }

    fn on(client: ClientIndex, number: u32) -> WireId {
        WireId { client, node: 0, number }
    }

    /// A client asks the only node, and hears that it has the lock.
    fn wins(client: ClientIndex) -> [Step; 3] {
        [Step::Begin { client, wish: 0 }, Step::Arrive(on(client, 0)), Step::Hear(on(client, 0))]
    }

    fn changes<T: PartialEq>(timeline: &Timeline, look: impl Fn(&Scene) -> T) -> Vec<T> {
        timeline.runs(look).into_iter().map(|run| run.what).collect()
    }

    fn words(timeline: &Timeline) -> Vec<&str> {
        let labels = timeline.moments().flat_map(|(_, moment)| &moment.labels);
        labels.map(|label| label.text.as_str()).collect()
    }

    /// When something is due that is due after so long: a nanosecond later, since clocks are rounded down.
    fn due_after(millis: u64) -> Instant {
        START + Duration::from_millis(millis) + Duration::from_nanos(1)
    }

    #[test]
    fn a_hold_ends_where_its_validity_did_although_time_went_on_at_once() {
        let rest = [Step::Take { client: 0 }, Step::Pass(Span::Micros(2_500_000)), Step::Wake { client: 0 }];
        let story = [&wins(0)[..], &rest[..]].concat();
        let timeline = Timeline::of(&told(&Small::default(), None, &story));
        // 2 s without the allowance for clocks.
        let end = due_after(1_978);
        let hold = &timeline.holds(0)[0];
        assert_eq!((hold.end, &hold.validities[..]), (HoldEnd::Over(end), &[end][..]));
        use Stage::{HeldOnce, Holds, Idle, Wants};
        assert_eq!(changes(&timeline, |scene| scene.clients[0].stage), [Idle, Wants, Holds, HeldOnce]);
        // The key ends by itself as well, a little later than the validity.
        let keys = timeline.runs(|scene| scene.nodes[0].key.is_some());
        assert_eq!(keys.iter().map(|run| run.what).collect::<Vec<_>>(), [false, true, false]);
        let Column::Moment(gone) = &timeline.columns[keys[2].from] else { panic!("a key ends in a moment") };
        assert_eq!(gone.at, due_after(2_000));
        assert!(
            words(&timeline).starts_with(&["wants", "wins", "lost: time is over"]),
            "{:?}",
            words(&timeline)
        );
        let svg = timeline.to_svg();
        assert!(svg.contains("class=\"ended\"") && !svg.contains("class=\"overlap\""), "{svg}");
    }

    #[test]
    fn what_was_extended_and_released_shows_both_ends() {
        let rest = [
            Step::Take { client: 0 },
            Step::Pass(Span::Micros(1_500_000)),
            Step::Extend { client: 0 },
            Step::Arrive(on(0, 0)),
            Step::Hear(on(0, 0)),
            Step::Release { client: 0 },
            Step::Arrive(on(0, 0)),
            Step::Pass(Span::Micros(1_400_000)),
        ];
        let story = [&wins(0)[..], &rest[..]].concat();
        let timeline = Timeline::of(&told(&Small { extensions: 1, ..Small::default() }, None, &story));
        let hold = &timeline.holds(0)[0];
        assert!(matches!(hold.end, HoldEnd::Cut(_)), "{hold:?}");
        // 1 s from the extension on, without the allowance.
        assert_eq!(hold.validities, [due_after(1_978), due_after(2_488)]);
        assert!(
            words(&timeline).starts_with(&["wants", "wins", "extended", "releases"]),
            "{:?}",
            words(&timeline)
        );
        let svg = timeline.to_svg();
        assert_eq!(svg.matches("<path class=\"unended\"").count(), 2 + 1, "two ends, and the legend");
        assert!(!svg.contains("class=\"ended\""), "{svg}");
    }

    #[test]
    fn a_node_is_down_then_waits_then_votes() {
        let small =
            Small { clients: 1, breaks: 1, faults: (vec![FaultClass::Amnesia], 1), ..Small::default() };
        let story = [
            Step::Fault(Fault::Crash(0)),
            Step::Break { client: 0, node: 0 },
            Step::Fault(Fault::RestartEmpty(0)),
            Step::Dial { client: 0, node: 0 },
            Step::Arrive(on(0, 1)),
            Step::Hear(on(0, 1)),
            Step::Pass(Span::Micros(2_900_000)),
        ];
        let timeline = Timeline::of(&told(&small, None, &story));
        assert_eq!(changes(&timeline, |scene| scene.nodes[0].is_up), [true, false, true]);
        let waits = timeline.runs(|scene| scene.nodes[0].waits_for == Waits::Everybody);
        assert_eq!(waits.iter().map(|run| run.what).collect::<Vec<_>>(), [false, true, false]);
        let Column::Moment(votes) = &timeline.columns[waits[2].from] else {
            panic!("it votes from a moment on")
        };
        assert_eq!(votes.at, due_after(2_022), "the ttl, and the allowance for clocks");
        let svg = timeline.to_svg();
        for text in ["crashes", "restarts empty", "down", "waits"] {
            assert!(svg.contains(&format!(">{text}<")), "{text} in {svg}");
        }
    }

    #[test]
    fn a_paused_client_and_a_dead_one_are_seen() {
        let small = Small { faults: (vec![FaultClass::Pauses, FaultClass::Deaths], 2), ..Small::default() };
        let faults = [Fault::Pause(0), Fault::Continue(0), Fault::Die(0)].map(Step::Fault);
        let timeline = Timeline::of(&told(&small, None, &[&wins(0)[..], &faults[..]].concat()));
        assert_eq!(changes(&timeline, |scene| scene.clients[0].is_paused), [false, true, false]);
        assert_eq!(changes(&timeline, |scene| scene.clients[0].stage).last(), Some(&Stage::Dead));
        assert!(matches!(timeline.holds(0)[0].end, HoldEnd::Cut(_)));
        let svg = timeline.to_svg();
        assert!(svg.contains(">stands still<") && svg.contains(">dies<"), "{svg}");
    }

    #[test]
    fn two_holders_are_shaded_and_named() {
        let history = told(&Small::default(), Some(Mutant::SetWithoutNx), &[wins(0), wins(1)].concat());
        assert_eq!(history.violation, Some(Violation::TwoHolders(0, 1)), "{history}");
        let svg = Timeline::of(&history).titled("Seed 7").to_svg();
        assert!(svg.contains("<rect class=\"overlap\""), "{svg}");
        assert!(
            svg.contains("<text class=\"violation\"") && svg.contains(">Seed 7: c1 and c2 hold at once<"),
            "{svg}"
        );
        assert!(svg.contains("with the mistake SetWithoutNx"), "{svg}");
    }

    #[test]
    fn every_picture_is_well_formed() {
        for seed in 0..60 {
            let mutant = Mutant::ALL.get(usize::try_from(seed).expect("few")).copied();
            let kinds = mutant.map_or(&FaultClass::HARMFUL[..], Mutant::kinds);
            let timeline = Timeline::of(&random(seed, kinds, mutant, 300));
            check_form(&timeline.titled(format!("<seed> \"{seed}\" & more\u{7}")).to_svg());
        }
    }

    /// Every element that is opened is closed in its turn, and no text is taken for something else.
    fn check_form(svg: &str) {
        let mut open = Vec::new();
        for piece in svg.split('<').skip(1) {
            let (tag, text) = piece.split_once('>').unwrap_or_else(|| panic!("an open tag: {piece}"));
            assert_eq!(tag.matches('"').count() % 2, 0, "an open attribute: {tag}");
            let name = tag.split(' ').next().unwrap_or_default();
            match name.strip_prefix('/') {
                Some(name) => assert_eq!(open.pop(), Some(name), "closed: {piece}"),
                None if !tag.ends_with('/') => open.push(name),
                None => {}
            }
            let escapes = ["amp;", "lt;", "gt;", "quot;"];
            let escaped = |rest: &str| escapes.iter().any(|escape| rest.starts_with(escape));
            assert!(text.split('&').skip(1).all(escaped) && !text.contains('>'), "unescaped: {text}");
            assert!(!text.contains(|letter: char| letter.is_control() && letter != '\n'), "no XML: {text:?}");
        }
        assert!(open.is_empty(), "open at the end: {open:?}");
    }
}
