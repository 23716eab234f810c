//! Adversarial review: random histories of the pure protocol. `SEED=n RUNS=n cargo test --release --features sim --test torture`.
#![cfg(feature = "sim")]
use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use redlock_quorum::protocol::claim::{Action, Claim, Draw, Event, Notice, Phase, Ticket};
use redlock_quorum::protocol::command::{Answer, Command, Key, LeaseId, Signature, Unknown};
use redlock_quorum::protocol::round::RoundId;
use redlock_quorum::protocol::settings::Wishes;
use redlock_quorum::protocol::store::Store;
use redlock_quorum::protocol::time::{Instant, Ttl};
use redlock_quorum::protocol::wait::Patience;

struct Rng(u64);
impl Rng {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
    fn below(&mut self, n: u64) -> u64 {
        self.next() % n.max(1)
    }
    fn chance(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }
}

const MS: u64 = 1_000_000;

#[derive(Clone)]
enum What {
    Deliver { node: usize, claim: usize, round: RoundId, command: Command, epoch: u64, client: usize, owed: bool },
    Hear { claim: usize, node: usize, round: RoundId, answer: Answer, epoch: u64 },
    Lost { claim: usize, node: usize, round: RoundId },
    Tick(usize),
    Extend(usize),
    Release(usize),
    Start(usize),
    Break { client: usize, node: usize },
}

struct One {
    claim: Claim,
    client: usize,
    started: u64,
    deadline: u64,
    decided: Option<bool>,
    over: bool,
}

#[derive(Clone, Default)]
struct Link {
    epoch: u64,
    last_there: u64,
    last_back: u64,
    /// Sent on this epoch and not answered.
    open: VecDeque<(usize, RoundId, Command)>,
}

struct World {
    now: u64,
    seq: u64,
    heap: BTreeMap<(u64, u64), What>,
    rng: Rng,
    stores: Vec<Store>,
    node_ppm: Vec<u64>,
    client_ppm: Vec<u64>,
    paused: Vec<u64>,
    links: Vec<Vec<Link>>,
    claims: Vec<One>,
    faults: bool,
    slow: u64,
    out: Vec<Action>,
    ids: u128,
    wins: u64,
    losses: u64,
    steps: u64,
    herd: bool,
    ttl: u64,
}

impl World {
    fn at(&mut self, time: u64, what: What) {
        self.seq += 1;
        self.heap.insert((time, self.seq), what);
    }
    fn client_now(&self, client: usize) -> Instant {
        Instant::from_nanos(1000 + (self.now as u128 * self.client_ppm[client] as u128 / 1_000_000) as u64)
    }
    fn true_of(&self, client: usize, moment: Instant) -> u64 {
        ((moment.as_nanos().saturating_sub(1000)) as u128 * 1_000_000 / self.client_ppm[client] as u128 + 2) as u64
    }
    fn node_now(&self, node: usize) -> Instant {
        Instant::from_nanos(1000 + (self.now as u128 * self.node_ppm[node] as u128 / 1_000_000) as u64)
    }
    fn delay(&mut self) -> u64 {
        let base = 100_000 + self.rng.below(400_000);
        if self.slow > 0 && self.rng.chance(self.slow) { base + self.rng.below(2 * self.ttl) } else { base }
    }
    fn feed(&mut self, claim: usize, event: Event) {
        let client = self.claims[claim].client;
        let mut todo = VecDeque::from([event]);
        while let Some(event) = todo.pop_front() {
            let now = self.client_now(client);
            let mut out = std::mem::take(&mut self.out);
            self.claims[claim].claim.handle(now, event, &mut out);
            for action in out.drain(..) {
                match action {
                    Action::Draw => {
                        self.ids += 1;
                        let jitter = self.rng.next();
                        todo.push_front(Event::Attempt(Draw { lease_id: LeaseId(self.ids), jitter }));
                    }
                    Action::Send { node, round, command } => self.send(claim, node, round, command),
                    Action::Tell(notice) => self.told(claim, notice),
                }
            }
            self.out = out;
        }
        let wake = self.claims[claim].claim.wake_at();
        if wake < Instant::NEVER {
            let time = self.true_of(client, wake).max(self.now);
            self.at(time, What::Tick(claim));
        }
        if self.claims[claim].claim.phase() == Phase::Over {
            self.claims[claim].over = true;
        }
    }
    fn told(&mut self, claim: usize, notice: Notice) {
        match notice {
            Notice::Won => {
                self.claims[claim].decided = Some(true);
                self.wins += 1;
                let hold = if self.herd { 1000 * MS } else { self.rng.below(3 * self.ttl) };
                self.at(self.now + hold, What::Release(claim));
                for _ in 0..self.rng.below(3) {
                    let t = self.now + self.rng.below(self.ttl * 2);
                    self.at(t, What::Extend(claim));
                }
            }
            Notice::Failed(_) => self.claims[claim].decided = Some(false),
            Notice::Lost(_) => {
                self.losses += 1;
                let t = self.now + self.rng.below(20 * MS);
                self.at(t, What::Release(claim));
            }
            _ => {}
        }
    }
    fn send(&mut self, claim: usize, node: usize, round: RoundId, command: Command) {
        let client = self.claims[claim].client;
        let d = self.delay();
        let link = &mut self.links[client][node];
        let time = (self.now + d).max(link.last_there + 1);
        link.last_there = time;
        link.open.push_back((claim, round, command.clone()));
        let epoch = link.epoch;
        self.at(time, What::Deliver { node, claim, round, command, epoch, client, owed: false });
    }
    fn step(&mut self, time: u64, what: What) {
        self.now = self.now.max(time);
        self.steps += 1;
        let client = match &what {
            What::Hear { claim, .. } | What::Lost { claim, .. } | What::Tick(claim) | What::Extend(claim) | What::Release(claim) | What::Start(claim) => {
                Some(self.claims[*claim].client)
            }
            _ => None,
        };
        if let Some(client) = client.filter(|c| self.paused[*c] > self.now) {
            let until = self.paused[client];
            return self.at(until, what);
        }
        match what {
            What::Deliver { node, claim, round, command, epoch, client, owed } => {
                let now = self.node_now(node);
                let answer = self.stores[node].apply(now, &command);
                if owed {
                    return;
                }
                let d = self.delay();
                let link = &mut self.links[client][node];
                if epoch != link.epoch {
                    return;
                }
                let t = (self.now + d).max(link.last_back + 1);
                link.last_back = t;
                self.at(t, What::Hear { claim, node, round, answer, epoch });
            }
            What::Hear { claim, node, round, answer, epoch } => {
                let link = &mut self.links[self.claims[claim].client][node];
                if epoch != link.epoch {
                    return;
                }
                link.open.pop_front();
                self.feed(claim, Event::Answer { round, node, answer });
            }
            What::Lost { claim, node, round } => {
                self.feed(claim, Event::Answer { round, node, answer: Answer::Unknown(Unknown::ConnectionLost) });
            }
            What::Tick(claim) => {
                let client = self.claims[claim].client;
                if self.claims[claim].claim.wake_at() <= self.client_now(client) {
                    self.feed(claim, Event::Tick);
                    let wake = self.claims[claim].claim.wake_at();
                    assert!(wake > self.client_now(client), "busy: {:?}", self.claims[claim].claim);
                }
            }
            What::Extend(claim) => {
                let ttl = 20 + self.rng.below(self.ttl / MS - 20);
                self.feed(claim, Event::Extend { ticket: Ticket(self.seq), ttl: Ttl::from_duration(Duration::from_millis(ttl)) });
            }
            What::Release(claim) => self.feed(claim, Event::Release),
            What::Start(claim) => self.feed(claim, Event::Tick),
            What::Break { client, node } => {
                let open = std::mem::take(&mut self.links[client][node].open);
                let link = &mut self.links[client][node];
                link.epoch += 1;
                (link.last_there, link.last_back) = (self.now, self.now);
                for (claim, round, command) in open {
                    if let Command::Release { owed_for, .. } = &command {
                        if !owed_for.is_zero() {
                            let d = self.delay();
                            let link = &mut self.links[client][node];
                            let t = (self.now + d).max(link.last_there + 1);
                            link.last_there = t;
                            let epoch = link.epoch;
                            self.at(t, What::Deliver { node, claim, round, command, epoch, client, owed: true });
                        }
                    }
                    self.at(self.now, What::Lost { claim, node, round });
                }
            }
        }
        self.check();
    }
    fn check(&self) {
        let valid: Vec<usize> = (0..self.claims.len())
            .filter(|c| {
                let one = &self.claims[*c];
                one.claim.valid_until().is_some_and(|end| self.client_now(one.client) < end)
            })
            .collect();
        assert!(valid.len() <= 1, "two hold: {valid:?} at {}", self.now);
        for one in &self.claims {
            if one.decided.is_none() && !one.over && self.paused[one.client] <= self.now && one.started <= self.now {
                assert!(self.now < one.deadline, "undecided after {} ms: {:?}", (self.now - one.started) / MS, one.claim);
            }
        }
    }
}

fn run(seed: u64) -> (u64, u64, u64, bool) {
    let mut rng = Rng(seed);
    let nodes = 1 + rng.below(5) as usize;
    let clients = 2 + rng.below(5) as usize;
    let ttl = [60, 200, 1000][rng.below(3) as usize] * MS;
    let faults = rng.chance(50);
    let herd = !faults && rng.chance(40);
    let slow = if herd { 0 } else { [0, 3, 20][rng.below(3) as usize] };
    let names: Arc<[Arc<str>]> = (0..nodes).map(|n| format!("n{n}").into()).collect();
    let wishes = Wishes { ttl: Duration::from_nanos(ttl), ..Wishes::default() };
    let terms = Arc::new(wishes.check(&names).unwrap());
    let mut world = World {
        now: 0,
        seq: 0,
        heap: BTreeMap::new(),
        stores: vec![Store::default(); nodes],
        // Rates that differ by at most one percent.
        node_ppm: (0..nodes).map(|_| 995_100 + rng.below(9_800)).collect(),
        client_ppm: (0..clients).map(|_| 995_100 + rng.below(9_800)).collect(),
        paused: vec![0; clients],
        links: vec![vec![Link::default(); nodes]; clients],
        claims: Vec::new(),
        faults,
        slow,
        out: Vec::new(),
        ids: 0,
        wins: 0,
        losses: 0,
        steps: 0,
        herd,
        ttl,
        rng,
    };
    let many = if herd { clients } else { clients * 6 };
    for n in 0..many {
        let client = n % clients;
        let start = if herd { world.rng.below(MS) } else { world.rng.below(6 * ttl) };
        let once = herd || world.rng.chance(40);
        let wait = 5 * MS + world.rng.below(2 * ttl);
        world.now = start;
        let patience = if once { Patience::Once } else { Patience::Until(world.client_now(client) + Duration::from_nanos(wait)) };
        world.now = 0;
        // Nine parallel-or-ordered attempts with a look each, two node timeouts at most, and the rests between.
        let bound = if once { 40 * terms.node_timeout.as_nanos() as u64 } else { wait + wait / 50 + MS };
        let claim = Claim::new(Key::of_lock("t", b"k"), Signature::new("c", None), terms.clone(), patience);
        world.claims.push(One { claim, client, started: start, deadline: start + bound, decided: None, over: false });
        world.at(start, What::Start(n));
        if !herd && world.rng.chance(20) {
            let t = start + world.rng.below(ttl / 4);
            world.at(t, What::Release(n));
        }
    }
    if world.faults {
        for _ in 0..world.rng.below(20) {
            let (client, node) = (world.rng.below(clients as u64) as usize, world.rng.below(nodes as u64) as usize);
            let t = world.rng.below(8 * ttl);
            world.at(t, What::Break { client, node });
        }
    }
    let mut pauses: Vec<(u64, usize, u64)> = Vec::new();
    if world.faults {
        for _ in 0..world.rng.below(6) {
            pauses.push((world.rng.below(8 * ttl), world.rng.below(clients as u64) as usize, world.rng.below(2 * ttl)));
        }
        pauses.sort_unstable();
    }
    let mut pauses = VecDeque::from(pauses);
    while let Some(((time, _), what)) = world.heap.pop_first() {
        while pauses.front().is_some_and(|(at, ..)| *at <= time) {
            let (at, client, length) = pauses.pop_front().unwrap();
            world.paused[client] = world.paused[client].max(at + length);
            for one in &mut world.claims {
                if one.client == client && one.decided.is_none() {
                    one.deadline += length + 2 * ttl;
                }
            }
        }
        world.step(time, what);
        assert!(world.steps < 2_000_000, "endless");
    }
    for (n, one) in world.claims.iter().enumerate() {
        assert!(one.over, "claim {n} never ended: {:?}", one.claim);
    }
    if !world.faults {
        for node in 0..nodes {
            let left = world.stores[node].keys(world.node_now(node)).count();
            assert_eq!(left, 0, "a key is left on node {node}");
        }
    }
    if herd {
        assert!(world.wins <= 1);
    }
    (world.steps, world.wins, world.losses, herd && world.wins == 0)
}

#[test]
fn random_histories() {
    let first: u64 = std::env::var("SEED").ok().map_or(1, |s| s.parse().unwrap());
    let runs: u64 = std::env::var("RUNS").ok().map_or(20_000, |s| s.parse().unwrap());
    let (mut steps, mut wins, mut losses, mut nobody) = (0, 0, 0, Vec::new());
    for seed in first..first + runs {
        let result = std::panic::catch_unwind(|| run(seed));
        let Ok(result) = result else { panic!("SEED={seed}") };
        steps += result.0;
        wins += result.1;
        losses += result.2;
        if result.3 {
            nobody.push(seed);
        }
    }
    println!("{runs} runs, {steps} steps, {wins} holds, {losses} losses; herds in which nobody won: {} {:?}", nobody.len(), &nobody[..nobody.len().min(5)]);
}
