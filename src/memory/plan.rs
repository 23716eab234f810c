//! What goes wrong with in-memory nodes, drawn from a seed: which fault befalls which nodes, when, and for how long. All of
//! it is drawn before the first fault, and depends on nothing but the seed, the settings and the number of nodes.

use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::sync::Notify;
use tokio::task::AbortHandle;

use super::MemoryNodes;
use crate::clock::{Clock, sleep_until};
use crate::entropy::SeededEntropy;
use crate::node::memory::{ClientNumber, Partition, Skew};
use crate::protocol::quorum::Quorum;
use crate::sync::lock;

/// What can befall nodes in a [`FaultPlan`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[non_exhaustive]
pub enum FaultKind {
    /// [Stopped](MemoryNodes::stop) for a while, and back with its memory.
    Stop,
    /// [Stalled](MemoryNodes::stall) for a while.
    Stall,
    /// [Late](MemoryNodes::delay) answers for a while.
    Delay,
    /// [Dropped replies](MemoryNodes::drop_replies) for a while.
    DropReplies,
    /// One client is [cut off](MemoryNodes::partition) for a while.
    Partition,
    /// The clock runs up to one percent faster or slower for a while: what the default [drift](crate::RedlockBuilder::drift)
    /// allows for.
    Skew,
    /// Stopped for a while, and back [without its memory](MemoryNodes::restart_empty).
    RestartEmpty,
    /// The clock [jumps](Skew::Ahead), ahead or back.
    Jump,
    /// A key that stands there is [evicted](MemoryNodes::evict).
    Evict,
}

impl FaultKind {
    /// Those through which no two clients hold a valid lock at once, however many nodes they befall.
    pub const WITHIN_PROMISE: [FaultKind; 6] = [
        FaultKind::Stop,
        FaultKind::Stall,
        FaultKind::Delay,
        FaultKind::DropReplies,
        FaultKind::Partition,
        FaultKind::Skew,
    ];

    /// Those that break what the promise rests on: memory that is kept, and clocks that do not jump.
    pub const BEYOND_PROMISE: [FaultKind; 3] = [FaultKind::RestartEmpty, FaultKind::Jump, FaultKind::Evict];
}

/// Faults of in-memory nodes, drawn from a seed: the same for the same seed, settings and number of nodes.
///
/// By default they are [within the promise](FaultKind::WITHIN_PROMISE), leave a majority of the nodes alone at any time, and
/// go on for a minute.
///
/// ```
/// use std::time::Duration;
/// use redlock_quorum::{FaultPlan, MemoryNodes};
///
/// # #[tokio::main(flavor = "current_thread", start_paused = true)]
/// # async fn main() -> Result<(), redlock_quorum::RunError> {
/// for seed in 0..10 {
///     let nodes = MemoryNodes::seeded(5, seed);
///     let faults = nodes.disturb(FaultPlan::seeded(seed).every(Duration::from_millis(100)));
///     for client in [nodes.redlock(), nodes.redlock()] {
///         let charged = client.mutex("invoices/42").run(async |_| "charged").await;
///         assert_eq!(charged?, "charged"); // if it fails, the faults are printed
///     }
///     drop(faults);
///     nodes.assert_nothing_left();
/// }
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct FaultPlan {
    seed: u64,
    kinds: Vec<FaultKind>,
    every: Duration,
    lasting: Duration,
    /// By default a minority, of however many nodes there are.
    at_most: Option<usize>,
    length: Duration,
}

impl FaultPlan {
    /// The plan of a seed.
    pub fn seeded(seed: u64) -> Self {
        FaultPlan {
            seed,
            kinds: FaultKind::WITHIN_PROMISE.to_vec(),
            every: Duration::from_millis(500),
            lasting: Duration::from_secs(1),
            at_most: None,
            length: Duration::from_secs(60),
        }
    }

    /// Only these faults, each as likely as the others. Of none, nothing goes wrong.
    pub fn kinds(mut self, kinds: impl IntoIterator<Item = FaultKind>) -> Self {
        self.kinds = kinds.into_iter().collect();
        self
    }

    /// How long it takes from one fault to the next on average: 500 ms by default. Where no more nodes may be disturbed, a
    /// fault is left out.
    pub fn every(mut self, every: Duration) -> Self {
        self.every = every;
        self
    }

    /// How long a fault lasts at most: one second by default.
    pub fn lasting(mut self, lasting: Duration) -> Self {
        self.lasting = lasting;
        self
    }

    /// How many nodes are disturbed at once at most: by default a minority. One fault may befall several nodes; a node is
    /// disturbed by one at a time.
    pub fn at_most(mut self, nodes: usize) -> Self {
        self.at_most = Some(nodes);
        self
    }

    /// For how long faults happen: a minute by default. Then the last one is over.
    pub fn length(mut self, length: Duration) -> Self {
        self.length = length;
        self
    }

    /// All faults, in the order in which they begin.
    fn draw(&self, count: usize) -> Vec<Fault> {
        let dice = SeededEntropy::new(self.seed, u64::MAX - 1);
        let at_most = self.at_most.unwrap_or(Quorum::of(count).spare()).min(count);
        let mut faults: Vec<Fault> = Vec::new();
        let mut now = Duration::ZERO;
        loop {
            now = now.saturating_add(up_to(self.every.saturating_mul(2), &dice));
            if now >= self.length || self.kinds.is_empty() {
                return faults;
            }
            let disturbed =
                |node: &usize| faults.iter().any(|fault| fault.over() > now && fault.nodes.contains(node));
            let mut free: Vec<usize> = (0..count).filter(|node| !disturbed(node)).collect();
            let room = at_most.saturating_sub(count - free.len());
            if room > 0 {
                let ends = now.saturating_add(up_to(self.lasting, &dice)).min(self.length);
                let effect = self.effect(&dice);
                let several = 1 + below(room, &dice);
                let mut nodes: Vec<_> = (0..several).map(|_| free.remove(below(free.len(), &dice))).collect();
                nodes.sort_unstable();
                faults.push(Fault { begins: now, ends, nodes, effect });
            }
        }
    }

    fn effect(&self, dice: &SeededEntropy) -> Effect {
        match self.kinds[below(self.kinds.len(), dice)] {
            FaultKind::Stop => Effect::Stop,
            FaultKind::Stall => Effect::Stall,
            FaultKind::Delay => Effect::Delay(up_to(self.lasting / 2, dice)),
            FaultKind::DropReplies => Effect::DropReplies,
            FaultKind::Partition => {
                let kinds = [Partition::CommandsLost, Partition::AnswersLost, Partition::CommandsHeld];
                Effect::Partition { client: dice.number(), partition: kinds[below(kinds.len(), dice)] }
            }
            FaultKind::Skew => {
                let rate = i32::try_from(dice.below(20_001)).expect("a small number") - 10_000;
                Effect::Skew(rate)
            }
            FaultKind::RestartEmpty => Effect::RestartEmpty,
            FaultKind::Jump if dice.below(2) == 0 => Effect::Jump(Skew::Ahead(up_to(self.lasting, dice))),
            FaultKind::Jump => Effect::Jump(Skew::Back(up_to(self.lasting, dice))),
            FaultKind::Evict => Effect::Evict(dice.number()),
        }
    }
}

/// A whole number of milliseconds from 1 to `span`, of which there is at least one.
fn up_to(span: Duration, dice: &SeededEntropy) -> Duration {
    let millis = u64::try_from(span.as_millis()).unwrap_or(u64::MAX);
    Duration::from_millis(1 + dice.below(millis))
}

fn below(bound: usize, dice: &SeededEntropy) -> usize {
    usize::try_from(dice.below(bound as u64)).expect("below a usize")
}

/// One fault, with its times from the beginning of the plan.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Fault {
    begins: Duration,
    ends: Duration,
    nodes: Vec<usize>,
    effect: Effect,
}

impl Fault {
    /// When nothing of it is noticed any more: answers that are on their way are late beyond the end of a delay.
    fn over(&self) -> Duration {
        match self.effect {
            Effect::Delay(delay) => self.ends.saturating_add(delay),
            _ => self.ends,
        }
    }
}

/// What happens to each node of a fault. What depends on the clients and keys of the moment is a number, to choose by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Effect {
    Stop,
    Stall,
    Delay(Duration),
    DropReplies,
    Partition { client: u64, partition: Partition },
    Skew(i32),
    RestartEmpty,
    Jump(Skew),
    Evict(u64),
}

/// The faults of a [plan](FaultPlan), as they happen. Dropped, those that last end at once, and no more come.
///
/// If a test panics, this prints on its way out what was done to the nodes.
#[must_use = "dropped, the faults are over"]
pub struct Faults {
    plan: FaultPlan,
    running: Arc<Running>,
    task: AbortHandle,
}

/// What the task shares with the handle.
struct Running {
    nodes: MemoryNodes,
    course: Mutex<Course>,
    over: Notify,
}

/// Where the plan is.
struct Course {
    faults: Vec<Fault>,
    /// The beginnings and ends to come, in order, by the place of the fault among the faults.
    steps: VecDeque<(Duration, Step, usize)>,
    /// Those that last, with the client that is cut off, if it is a partition.
    lasting: BTreeMap<usize, Option<ClientNumber>>,
}

/// Of what happens at one moment the ends come first: a node is disturbed by one fault at a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Step {
    End,
    Begin,
}

impl Faults {
    pub(super) fn begin(nodes: MemoryNodes, plan: FaultPlan) -> Self {
        let runtime = Handle::try_current().expect("a tokio runtime, on whose clock the faults happen");
        let course = Mutex::new(Course::of(plan.draw(nodes.len())));
        let running = Arc::new(Running { nodes, course, over: Notify::new() });
        let task = runtime.spawn(run(running.clone())).abort_handle();
        Faults { plan, running, task }
    }

    /// Completes when the last fault is over.
    ///
    /// # Cancel safety
    ///
    /// Safe.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)]
    /// # async fn main() {
    /// # use redlock_quorum::{FaultPlan, MemoryNodes};
    /// let nodes = MemoryNodes::new(5);
    /// let faults = nodes.disturb(FaultPlan::seeded(42));
    /// faults.finished().await; // a minute of paused time
    /// println!("{faults}");
    /// # }
    /// ```
    pub async fn finished(&self) {
        loop {
            let over = self.running.over.notified();
            if lock(&self.running.course).steps.is_empty() {
                return;
            }
            over.await;
        }
    }
}

impl Drop for Faults {
    fn drop(&mut self) {
        self.task.abort();
        self.running.end();
        if std::thread::panicking() {
            eprintln!("{self}");
        }
    }
}

impl fmt::Display for Faults {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}\n{}", self.plan, self.running.nodes.history())
    }
}

impl fmt::Debug for Faults {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Faults").field("plan", &self.plan).finish_non_exhaustive()
    }
}

/// The task.
async fn run(running: Arc<Running>) {
    let clock = running.nodes.group.clock;
    let start = clock.now();
    loop {
        let next = lock(&running.course).steps.front().map(|(at, ..)| *at);
        let Some(at) = next else { break };
        sleep_until(&clock, start + at).await;
        running.step();
    }
    running.over.notify_waiters();
}

impl Running {
    /// Does what is next.
    fn step(&self) {
        let mut course = lock(&self.course);
        let Some((_, step, number)) = course.steps.pop_front() else { return };
        let fault = course.faults[number].clone();
        match step {
            Step::Begin => {
                let cut_off = self.begin(&fault);
                course.lasting.insert(number, cut_off);
            }
            Step::End => {
                let cut_off = course.lasting.remove(&number).flatten();
                self.undo(&fault, cut_off);
            }
        }
    }

    /// Ends what lasts; nothing is to come any more.
    fn end(&self) {
        let mut course = lock(&self.course);
        course.steps.clear();
        for (number, cut_off) in std::mem::take(&mut course.lasting) {
            self.undo(&course.faults[number], cut_off);
        }
    }

    /// Begins a fault: the client that is cut off, if it is a partition.
    fn begin(&self, fault: &Fault) -> Option<ClientNumber> {
        let nodes = &self.nodes;
        if let Effect::Partition { client, partition } = fault.effect {
            let client = one_of(lock(&nodes.group.clients).len(), client)?;
            nodes.cut(client, fault.nodes.iter().copied(), partition);
            return Some(client);
        }
        for &node in &fault.nodes {
            match fault.effect {
                Effect::Stop | Effect::RestartEmpty => nodes.stop(node),
                Effect::Stall => nodes.stall(node),
                Effect::Delay(delay) => nodes.delay(node, delay),
                Effect::DropReplies => nodes.drop_replies(node),
                Effect::Skew(rate) => nodes.skew(node, Skew::PartsPerMillion(rate)),
                Effect::Jump(skew) => nodes.skew(node, skew),
                Effect::Evict(which) => {
                    let keys = nodes.node(node).keys();
                    if let Some(key) = one_of(keys.len(), which) {
                        nodes.evict_key(node, &keys[key]);
                    }
                }
                Effect::Partition { .. } => {}
            }
        }
        None
    }

    fn undo(&self, fault: &Fault, cut_off: Option<ClientNumber>) {
        let nodes = &self.nodes;
        if let Some(client) = cut_off {
            nodes.mend(client, fault.nodes.iter().copied());
        }
        for &node in &fault.nodes {
            match fault.effect {
                Effect::Stop | Effect::Stall | Effect::DropReplies => nodes.start(node),
                Effect::RestartEmpty => nodes.restart_empty(node),
                Effect::Delay(_) => nodes.delay(node, Duration::ZERO),
                Effect::Skew(_) => nodes.skew(node, Skew::PartsPerMillion(0)),
                Effect::Partition { .. } | Effect::Jump(_) | Effect::Evict(_) => {}
            }
        }
    }
}

impl Course {
    fn of(faults: Vec<Fault>) -> Self {
        let beginnings = faults.iter().enumerate().map(|(place, fault)| (fault.begins, Step::Begin, place));
        let ends = faults.iter().enumerate().map(|(place, fault)| (fault.ends, Step::End, place));
        let mut steps: Vec<_> = beginnings.chain(ends).collect();
        steps.sort();
        Course { faults, steps: steps.into(), lasting: BTreeMap::new() }
    }
}

/// One of so many, chosen by a number; `None` of none.
fn one_of(count: usize, number: u64) -> Option<usize> {
    usize::try_from(number.checked_rem(count as u64)?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_determines_the_faults() {
        let drawn = |seed| FaultPlan::seeded(seed).draw(5);
        assert_eq!(drawn(1), drawn(1));
        assert_ne!(drawn(1), drawn(2));
        assert!(drawn(1).len() > 50, "about two a second, for a minute: {}", drawn(1).len());
    }

    #[test]
    fn no_more_nodes_are_disturbed_at_once_than_may_be() {
        for (count, at_most, most) in
            [(3, None, 1), (4, None, 1), (5, None, 2), (5, Some(4), 4), (3, Some(9), 3)]
        {
            let mut reached = 0;
            for seed in 0..50 {
                let all = FaultKind::WITHIN_PROMISE.into_iter().chain(FaultKind::BEYOND_PROMISE);
                let plan = FaultPlan::seeded(seed).kinds(all);
                let faults = FaultPlan { at_most, ..plan }.draw(count);
                for fault in &faults {
                    assert!(fault.begins < fault.ends && fault.ends <= Duration::from_secs(60));
                    let now = fault.begins;
                    let lasting = faults.iter().filter(|other| other.begins <= now && now < other.over());
                    let mut nodes: Vec<usize> = lasting.flat_map(|other| other.nodes.clone()).collect();
                    reached = reached.max(nodes.len());
                    nodes.sort_unstable();
                    nodes.dedup();
                    assert!(nodes.len() <= most, "{count} nodes, seed {seed}: {faults:?}");
                }
            }
            assert_eq!(reached, most, "{count} nodes: as many as may be, and none twice");
        }
    }

    #[test]
    fn a_plan_of_nothing_is_empty() {
        assert!(FaultPlan::seeded(1).kinds([]).draw(3).is_empty());
        assert!(FaultPlan::seeded(1).draw(1).is_empty(), "of one node none may be disturbed");
        assert!(FaultPlan::seeded(1).length(Duration::ZERO).draw(3).is_empty());
    }
}
