//! What a history is about: how many clients and nodes, what the clients wish for, how their clocks run, and how likely each
//! thing is that may happen. A scope is drawn from a seed, or written down for a search.

use std::sync::Arc;
use std::time::Duration;

use super::choose::Seeded;
use super::fault::FaultClass;
use super::mutant::Mutant;
use super::world::Span;
use crate::protocol::admission::RestartProtection;
use crate::protocol::marker::Pact;
use crate::protocol::settings::{Renewal, Terms, Wishes};
use crate::protocol::store::Precision;
use crate::protocol::time::{Drift, Instant, Ttl};
use crate::protocol::wait::{Backoff, Patience};

/// When the world begins: late enough for every node to be older than the longest ttl.
pub const START: Instant = Instant::from_nanos(1_000_000_000_000);

/// What a history is about.
#[derive(Clone, Debug)]
pub struct Scope {
    /// How many nodes there are.
    pub nodes: usize,
    /// How many clients want the one resource.
    pub clients: usize,
    /// The ways in which they may want it. The terms agree on ttl and drift.
    pub wishes: Vec<WishFor>,
    /// When exactly keys end.
    pub precision: Precision,
    /// Whether restarted nodes wait.
    pub protection: RestartProtection,
    /// What clients want: the lock, or a fence with it.
    pub sort: Sort,
    /// A mistake that is planted.
    pub mutant: Option<Mutant>,
    /// Whether no two clients may hold at once. Not where an assumption is broken on purpose.
    pub exclusive: bool,
    /// Whether nothing is looked for but two proven holds at once: where memories and clocks are so wrong that anything else may
    /// happen.
    pub only_proofs: bool,
    /// Whether clients see the nodes for the first time when they connect. Else they are connected from the start.
    pub strangers: bool,
    /// Whether clients begin in their order, which spares a search the same histories under other names. Not where it
    /// [folds](Scope::folds): there are more of these, and who has not begun may differ in its connections.
    pub in_order: bool,
    /// Whether a search looks only once at worlds that go on alike ([`search`](super::search)): those in which clients or nodes
    /// have changed places, and those that differ in what cannot matter any more.
    pub folds: bool,
    /// How many parts per million each clock is too fast: first those of the nodes, then those of the clients.
    pub rates: Vec<i32>,
    /// Spreads the jitters; `None` for none.
    pub jitter: Option<u64>,
    /// How many claims a client begins at most.
    pub most_claims: u32,
    /// How many attempts a client makes at most; then nothing comes of its claim.
    pub most_attempts: u32,
    /// Whether nobody listens to what comes of a release, which spares a search all orders of answers that change nothing.
    pub forgets_releases: bool,
    /// Whether answers are heard as soon as they are given, so that only commands are ever under way.
    pub answers_at_once: bool,
    /// Whether every message that would wake a client is lost.
    pub messages_are_lost: bool,
    /// How often a holder extends by hand, or is told that its key may have changed.
    pub most_extensions: u64,
    /// How many connections break at most, of those that need not.
    pub most_breaks: u32,
    /// How many faults there are at most.
    pub most_faults: u32,
    /// When time no longer passes.
    pub ends_at: Instant,
    /// How likely each thing is.
    pub weather: Weather,
}

/// What the clients of a history want.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Sort {
    /// The lock.
    Plain,
    /// The lock, and a fence with it.
    Fenced {
        /// What the wall clock of each client showed, in microseconds, when all clocks were at zero; those of the nodes showed
        /// zero then.
        wall_clocks: Vec<u64>,
        /// Up to where each node has accepted fences before; zero where nothing is said.
        high_waters: Vec<u64>,
        /// Whether a client still knows of the fences that its former claims have met.
        remembers: bool,
    },
}

/// A way to want the resource.
#[derive(Clone, Debug)]
pub struct WishFor {
    /// Under which terms.
    pub terms: Arc<Terms>,
    /// For how long: `None` for a single try.
    pub wait: Option<Duration>,
    /// Whether that leaves out rests for nodes that wait after a restart.
    pub without_restarts: bool,
}

impl WishFor {
    pub(super) fn at(&self, now: Instant) -> (Arc<Terms>, Patience) {
        let patience = match self.wait {
            None => Patience::Once,
            Some(wait) if self.without_restarts => {
                let spare = self.terms.longest_life(self.terms.max_ttl);
                Patience::UntilWithout { end: now + wait, spare }
            }
            Some(wait) => Patience::Until(now + wait),
        };
        (self.terms.clone(), patience)
    }
}

/// How likely each thing is that may happen, among the others. What has no weight does not happen.
#[derive(Clone, Debug, Default)]
pub struct Weather {
    /// Time passes.
    pub spans: Vec<(Span, u32)>,
    /// A client begins to want the resource.
    pub begin: u32,
    /// What is due is done. Without a weight it is done when something else happens.
    pub wake: u32,
    /// A caller takes its lock in hand. Without a weight it does so at once.
    pub take: u32,
    /// A holder extends.
    pub extend: u32,
    /// A holder is told that its key may have changed.
    pub alarm: u32,
    /// A holder asks whether its hold is proven.
    pub verify: u32,
    /// A holder releases.
    pub release: u32,
    /// A holder hands over to another caller of its own.
    pub hand_over: u32,
    /// A future is dropped.
    pub abandon: u32,
    /// A client connects.
    pub dial: u32,
    /// A connection breaks.
    pub breaks: u32,
    /// A command arrives.
    pub arrive: u32,
    /// An answer is heard.
    pub hear: u32,
    /// What a broken connection carries arrives, or is lost.
    pub late: u32,
    /// What went wrong is mended.
    pub mending: u32,
    /// What goes wrong.
    pub faults: Vec<(FaultClass, u32)>,
}

impl Scope {
    /// A scope for one random history: no two seeds are about the same. Faults are of `kinds`, of which each seed takes some.
    pub fn drawn(seed: u64, kinds: &[FaultClass], mutant: Option<Mutant>) -> Scope {
        let mut chance = Seeded::new(seed ^ 0x5c0b_e000_0000_0000);
        let nodes = match mutant.and_then(Mutant::nodes) {
            Some(nodes) => nodes,
            None => chance.one_of(&[1, 2, 3, 3, 3, 3, 3, 4, 5, 5]),
        };
        let clients = chance.one_of(&[2, 2, 3, 3, 4]);
        let strangers = chance.percent(10);
        let kinds: Vec<FaultClass> = kinds
            .iter()
            .copied()
            // Whether another server took over an address is seen only by those who knew the former one.
            .filter(|kind| !(strangers && *kind == FaultClass::Replacement))
            .filter(|_| chance.percent(40))
            .collect();
        let weather = Weather::drawn(&mut chance, &kinds);
        let mut scope = Scope {
            nodes,
            clients,
            wishes: drawn_wishes(&mut chance, nodes),
            precision: chance.one_of(&[Precision::Exact, Precision::Milliseconds]),
            protection: RestartProtection::On,
            sort: Sort::Plain,
            mutant,
            exclusive: true,
            only_proofs: false,
            strangers,
            in_order: false,
            folds: false,
            rates: (0..nodes + clients).map(|_| chance.one_of(&[0, 4_900, -4_900, 1_000])).collect(),
            jitter: Some(seed),
            most_claims: u32::MAX,
            most_attempts: u32::MAX,
            forgets_releases: false,
            answers_at_once: false,
            messages_are_lost: chance.percent(20),
            most_extensions: u64::MAX,
            most_breaks: u32::MAX,
            most_faults: chance.one_of(&[0, 1, 3, 10, 30]),
            ends_at: Instant::NEVER,
            weather,
        };
        if let Some(mutant) = mutant {
            if mutant.is_of_fences() || mutant.is_of_proofs() {
                scope.draw_fences(seed);
            }
            mutant.tune(&mut scope);
        }
        scope
    }

    /// The same in which a fence comes with every lock.
    pub fn drawn_with_fences(seed: u64, kinds: &[FaultClass]) -> Scope {
        let mut scope = Scope::drawn(seed, kinds, None);
        scope.draw_fences(seed);
        scope.weather.verify = Seeded::new(seed).one_of(&[0, 2]);
        scope
    }

    /// Wall clocks that are right, or wrong by less and by more than the nodes put up with.
    fn draw_fences(&mut self, seed: u64) {
        const MINUTES: [u64; 6] = [5, 5, 5, 0, 4, 15];
        let mut chance = Seeded::new(seed ^ 0xfe4c_e000_0000_0000);
        let wall_clock = |chance: &mut Seeded| chance.one_of(&MINUTES) * 60_000_000 + chance.below(50_000);
        let wall_clocks = (0..self.clients).map(|_| wall_clock(&mut chance)).collect();
        // What a node has met alone, it has met of an attempt that failed.
        let high_water =
            |chance: &mut Seeded| chance.one_of(&[0, 0, 1]) * (1_300_000_000 + chance.below(1_000_000));
        let high_waters = (0..self.nodes).map(|_| high_water(&mut chance)).collect();
        self.sort = Sort::Fenced { wall_clocks, high_waters, remembers: chance.percent(50) };
    }

    /// Keys vanish so that two clients hold at once. Each may be wrong about the other, and nothing is looked for but what both can
    /// prove. Commands and answers may be under way for long, but everything is waited for.
    pub fn take_keys_away(&mut self) {
        for wish in &mut self.wishes {
            let (node_timeout, renewal) = (wish.terms.ttl.as_duration(), Renewal::Never);
            wish.terms = Arc::new(Terms { node_timeout, renewal, ..(*wish.terms).clone() });
            // Who waited would miss most of it.
            wish.wait = None;
        }
        (self.clients, self.only_proofs, self.exclusive, self.strangers) = (2, true, false, false);
        self.sort = Sort::Fenced { wall_clocks: vec![0; 2], high_waters: Vec::new(), remembers: true };
        self.most_faults = 200;
        self.weather = Weather {
            spans: vec![(Span::Micros(100), 5)],
            begin: 80,
            wake: 200,
            take: 1_000,
            extend: 80,
            release: 8,
            dial: 200,
            arrive: 100,
            hear: 100,
            late: 10,
            mending: 10,
            faults: vec![(FaultClass::Eviction, 3), (FaultClass::Cuts, 3)],
            ..Weather::default()
        };
    }

    /// The same, and connections break, so that it is never heard what came of a command.
    pub fn take_keys_and_answers_away(&mut self) {
        self.take_keys_away();
        let faults = vec![(FaultClass::Eviction, 4), (FaultClass::Cuts, 2)];
        let Weather { spans, .. } = std::mem::take(&mut self.weather);
        self.weather = Weather {
            spans,
            begin: 80,
            wake: 200,
            take: 1_000,
            extend: 30,
            release: 20,
            dial: 200,
            breaks: 5,
            arrive: 100,
            hear: 100,
            late: 10,
            mending: 20,
            faults,
            ..Weather::default()
        };
    }

    /// The same, and nodes get old memories back. The clock of one client runs so fast that it lets such a node count again while
    /// the other client still holds.
    pub fn take_keys_away_and_bring_them_back(&mut self) {
        self.take_keys_away();
        (self.precision, self.rates) = (Precision::Exact, vec![0, 0, 0, 0, 9_000_000]);
        self.weather.spans = vec![(Span::Micros(100), 5), (Span::UntilDue, 20)];
        (self.weather.extend, self.weather.release, self.weather.mending) = (3, 8, 40);
        self.weather.faults = vec![(FaultClass::Eviction, 3), (FaultClass::Staleness, 2)];
    }

    /// What all clients agree on.
    pub(super) fn pact(&self) -> Pact {
        let terms = &self.wishes[0].terms;
        Pact::of(&terms.nodes, terms.quorum, terms.max_ttl)
    }

    /// Nobody renews, and hardly anybody releases.
    pub(super) fn keep_to_the_end(&mut self) {
        for wish in &mut self.wishes {
            let terms =
                Terms { renewal: Renewal::Never, hold_at_most: Duration::MAX, ..(*wish.terms).clone() };
            wish.terms = Arc::new(terms);
        }
        (self.weather.release, self.weather.extend) = (1, 0);
    }

    /// Whether every answer is heard sooner or later, so that a client learns of everything that it did.
    pub fn answers_come_back(&self) -> bool {
        let loses = |class: &FaultClass| {
            !matches!(class, FaultClass::Deletions | FaultClass::Pauses | FaultClass::Stalls)
        };
        self.weather.breaks == 0
            && !self.strangers
            && !self.weather.faults.iter().any(|(class, _)| loses(class))
    }

    /// Whether a lock is proven that nothing befalls.
    pub(super) fn has_proofs(&self) -> bool {
        self.sort != Sort::Plain && !self.mutant.is_some_and(Mutant::is_of_fences)
    }

    /// Whether every connection lasts, so that nothing is ever owed.
    pub(super) fn nothing_breaks(&self) -> bool {
        self.most_breaks == 0 && self.most_faults == 0
    }

    /// Whether a node that restarts remembers nothing.
    pub(super) fn restarts_are_empty(&self) -> bool {
        let remembers = |class: &FaultClass| matches!(class, FaultClass::Crashes | FaultClass::Staleness);
        !self.weather.faults.iter().any(|(class, _)| remembers(class))
    }

    /// Whether clocks may be set, so that keys may stay for longer than anybody would wait.
    pub(super) fn is_beyond_repair(&self) -> bool {
        let sets_clocks = |class: &FaultClass| matches!(class, FaultClass::Jumps | FaultClass::Freezes);
        self.weather.faults.iter().any(|(class, _)| sets_clocks(class))
    }

    /// After so long, whatever a dead client or a lost memory stood in the way of must come about: the wait of a restarted
    /// node, the rest of a ttl, and some rests between attempts.
    pub(super) fn patience(&self) -> Duration {
        let ttl = self.max_ttl();
        let longest = ttl.as_duration() + self.drift().allowance(ttl);
        longest * 3 + Duration::from_secs(5)
    }

    /// For how long keys may stand after a release, if clocks run slowly.
    pub(super) fn longest_linger(&self) -> Duration {
        let longest = self.wishes.iter().map(|wish| wish.terms.hold_at_least).max().unwrap_or_default();
        if longest.is_zero() { longest } else { longest + longest / 20 + Duration::from_millis(20) }
    }

    /// The longest ttl of all claims.
    pub fn max_ttl(&self) -> Ttl {
        self.wishes[0].terms.max_ttl
    }

    /// What a holder extends for by hand: half of the longest ttl, which must not shorten anything, and all of it in turn.
    pub(super) fn extension(&self, number: u64) -> Ttl {
        let longest = self.max_ttl();
        if number.is_multiple_of(2) { longest } else { Ttl::from_millis(longest.as_millis() / 2) }
    }

    /// The allowance for clocks.
    pub fn drift(&self) -> Drift {
        self.wishes[0].terms.drift
    }

    pub(super) fn node_rate(&self, node: usize) -> i32 {
        self.rates.get(node).copied().unwrap_or(0)
    }

    pub(super) fn client_rate(&self, client: usize) -> i32 {
        self.rates.get(self.nodes + client).copied().unwrap_or(0)
    }

    /// Depends on nothing but who draws for the how-manieth time, so that it stays when steps are left out.
    pub(super) fn jitter(&self, client: usize, attempt: u32) -> u64 {
        match self.jitter {
            None => 0,
            Some(seed) => Seeded::new(seed ^ ((client as u64) << 32) ^ u64::from(attempt)).bits(),
        }
    }
}

/// A scope that is small enough to be looked at whole. Each client has one claim, all begin in their order, time passes from
/// one moment at which something is due to the next, and ends after a ttl and a half.
#[derive(Clone, Debug)]
pub struct Small {
    /// How many clients.
    pub clients: usize,
    /// How many nodes.
    pub nodes: usize,
    /// How many attempts each client makes.
    pub attempts: u32,
    /// Whether those who want the lock wait for it, and are woken. Else each tries once, or until a split vote is settled.
    pub waits: bool,
    /// How often a holder extends by hand.
    pub extensions: u64,
    /// Whether holders are told at any time that their keys may have changed.
    pub alarms: bool,
    /// Whether whoever wants the lock may drop the future at any time.
    pub abandons: bool,
    /// Whether claims are woken when they are due, early or late, and callers take their locks in hand early or late. Else a
    /// claim notices what is due when something else happens to it.
    pub timers: bool,
    /// Whether the answers to releases are heard.
    pub listens: bool,
    /// Whether answers are heard as soon as they are given, so that only commands are ever under way.
    pub answers_at_once: bool,
    /// How many connections break.
    pub breaks: u32,
    /// What goes wrong, and how often.
    pub faults: (Vec<FaultClass>, u32),
    /// Whether a fence comes with the lock.
    pub sort: Sort,
    /// Whether worlds that go on alike are looked at once. Not where there are two attempts: the second asks in node order.
    pub folds: bool,
}

impl Default for Small {
    fn default() -> Self {
        Small {
            clients: 2,
            nodes: 1,
            attempts: 1,
            waits: false,
            extensions: 0,
            alarms: false,
            abandons: false,
            timers: true,
            listens: false,
            answers_at_once: false,
            breaks: 0,
            faults: (Vec::new(), 0),
            sort: Sort::Plain,
            folds: true,
        }
    }
}

impl Small {
    /// The scope.
    pub fn scope(&self, mutant: Option<Mutant>) -> Scope {
        let names = (1..=self.nodes).map(|node| format!("n{node}").into()).collect();
        // A node timeout as long as the ttl: whatever comes late comes after the end as well.
        let node_timeout = Some(TTL);
        let wishes = Wishes { ttl: TTL, renewal: Renewal::Never, node_timeout, ..Wishes::default() };
        let terms = Arc::new(wishes.check(&names).expect("terms that agree"));
        let (kinds, most_faults) = &self.faults;
        let is_a_restart = |kind: &FaultClass| matches!(kind, FaultClass::Crashes | FaultClass::Amnesia);
        let folds = self.folds && self.attempts == 1 && !self.waits && kinds.iter().all(is_a_restart);
        // Who sees to a node that restarted asks each node about the others.
        let folds = folds && (self.sort == Sort::Plain || *most_faults == 0);
        Scope {
            nodes: self.nodes,
            clients: self.clients,
            wishes: vec![WishFor { terms, wait: self.waits.then_some(TTL), without_restarts: false }],
            precision: Precision::Exact,
            protection: RestartProtection::On,
            sort: self.sort.clone(),
            mutant,
            exclusive: true,
            only_proofs: false,
            strangers: false,
            in_order: !folds,
            folds,
            rates: Vec::new(),
            jitter: None,
            most_claims: 1,
            most_attempts: self.attempts,
            forgets_releases: !self.listens,
            answers_at_once: self.answers_at_once,
            messages_are_lost: false,
            most_extensions: self.extensions,
            most_breaks: self.breaks,
            most_faults: *most_faults,
            ends_at: START + TTL + TTL / 2,
            weather: Weather {
                spans: vec![(Span::UntilDue, 1)],
                begin: 1,
                wake: u32::from(self.timers),
                take: u32::from(self.timers),
                extend: 1,
                alarm: u32::from(self.alarms),
                verify: 0,
                release: 1,
                hand_over: 0,
                abandon: u32::from(self.abandons),
                dial: 1,
                breaks: self.breaks.min(1),
                arrive: 1,
                hear: 1,
                late: 1,
                mending: 1,
                faults: kinds.iter().map(|kind| (*kind, 1)).collect(),
            },
        }
    }
}

/// The longest ttl of drawn scopes, long against every other length of time there is.
const TTL: Duration = Duration::from_secs(2);

/// Short against the ttl, so that a rest does not make a history long.
const BACKOFF: Backoff = Backoff::exponential(Duration::from_millis(10), Duration::from_millis(500));

fn drawn_wishes(chance: &mut Seeded, nodes: usize) -> Vec<WishFor> {
    let names: Arc<[Arc<str>]> = (1..=nodes).map(|node| format!("n{node}").into()).collect();
    (0..2)
        .map(|_| {
            let wishes = Wishes {
                ttl: chance.one_of(&[TTL, TTL, TTL / 2]),
                max_ttl: Some(TTL),
                renewal: chance.one_of(&[Renewal::WhileHeld, Renewal::WhileHeld, Renewal::Never]),
                hold_at_most: chance.one_of(&[Duration::MAX, Duration::MAX, Duration::from_secs(5)]),
                hold_at_least: chance.one_of(&[Duration::ZERO, Duration::ZERO, Duration::from_millis(700)]),
                backoff: BACKOFF,
                ..Wishes::default()
            };
            let terms = Arc::new(wishes.check(&names).expect("terms that agree"));
            let wait = chance.one_of(&[
                None,
                Some(Duration::from_secs(1)),
                Some(Duration::from_secs(10)),
                Some(Duration::MAX),
            ]);
            WishFor { terms, wait, without_restarts: chance.percent(30) }
        })
        .collect()
}

impl Weather {
    /// Calm or stormy, with quick or slow networks: what is likely differs from seed to seed.
    fn drawn(chance: &mut Seeded, kinds: &[FaultClass]) -> Weather {
        // A network in which nearly everything comes at once, and one in which much is under way at any time.
        let flow = chance.one_of(&[40, 200, 1_000]);
        let long = chance.one_of(&[0, 2, 10]);
        let faults = chance.one_of(&[1, 3, 10]);
        Weather {
            spans: vec![
                (Span::Micros(100), 20),
                (Span::Micros(1_000), 10),
                (Span::Micros(20_000), 5),
                (Span::Micros(250_000), long),
                (Span::UntilDue, 20),
                (Span::Ttl, long / 2),
            ],
            begin: 20,
            wake: chance.one_of(&[20, 200, 1_000]),
            take: chance.one_of(&[20, 1_000]),
            extend: chance.one_of(&[0, 3]),
            alarm: chance.one_of(&[0, 0, 2]),
            verify: 0,
            release: chance.one_of(&[1, 5, 20]),
            hand_over: chance.one_of(&[0, 0, 10]),
            abandon: chance.one_of(&[0, 1, 5]),
            dial: 30,
            breaks: chance.one_of(&[0, 0, 1, 5]),
            arrive: flow,
            hear: flow,
            late: chance.one_of(&[3, 30]),
            mending: chance.one_of(&[5, 20]),
            faults: kinds.iter().map(|kind| (*kind, faults)).collect(),
        }
    }
}
