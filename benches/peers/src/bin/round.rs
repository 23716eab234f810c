//! This library alone, without IO: one pair by the protocol itself, driven by events, and one pair on in-memory nodes.
//! Also what `valgrind --tool=callgrind` runs to count instructions.
//!
//! `--work` is `round` or `memory`, or `fixed` for exactly `--tasks` pairs on real servers. `--threads` is the number of
//! nodes for `round` and `memory`.

use std::alloc::System;
use std::hint::black_box;
use std::sync::Arc;
use std::time::{Duration, Instant};

use redlock_bench_peers::block::{Order, Outcome};
use redlock_bench_peers::library::Library;
use redlock_bench_peers::work::runtime;
use redlock_quorum::protocol::claim::{Action, Claim, Draw, Event, Phase};
use redlock_quorum::protocol::command::{Answer, Command, Key, LeaseId, Signature};
use redlock_quorum::protocol::settings::{Terms, Wishes};
use redlock_quorum::protocol::time::Instant as Moment;
use redlock_quorum::protocol::wait::Patience;
use redlock_quorum::{MemoryNodes, Redlock};
use stats_alloc::{INSTRUMENTED_SYSTEM, StatsAlloc};

#[global_allocator]
static ALLOCATOR: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

fn main() {
    let order = Order::from_args();
    let outcome = match order.work.as_str() {
        "round" => {
            let story = Story::new(order.threads);
            measure(&order, || (0..1_000).for_each(|pair| story.pair(pair)), 1_000)
        }
        "memory" => {
            let runtime = runtime(1);
            let redlock = runtime.block_on(async { MemoryNodes::new(order.threads).redlock() });
            let mutex = redlock.mutex("one");
            measure(&order, || runtime.block_on(pairs(&mutex, 100)), 100)
        }
        "fixed" => {
            runtime(1).block_on(async {
                let redlock = <Redlock as Library>::connect(&order.nodes).await;
                pairs(&redlock.mutex("one"), order.tasks as u64).await;
            });
            Outcome::default()
        }
        other => panic!("no such work: {other}"),
    };
    println!("{}", serde_json::to_string(&outcome).expect("plain data"));
}

async fn pairs(mutex: &redlock_quorum::Mutex, count: u64) {
    for _ in 0..count {
        mutex.acquire().await.expect("free").release().await.ok().expect("held");
    }
}

/// Does the work again and again until the time is over.
fn measure(order: &Order, mut work: impl FnMut(), pairs: u64) -> Outcome {
    let warm = Instant::now();
    while warm.elapsed().as_secs_f64() < order.warm_up {
        work();
    }
    let (start, before, mut count) = (Instant::now(), ALLOCATOR.stats(), 0);
    while start.elapsed().as_secs_f64() < order.seconds {
        work();
        count += pairs;
    }
    let (seconds, used) = (start.elapsed().as_secs_f64(), ALLOCATOR.stats() - before);
    let allocations = (used.allocations + used.reallocations) as u64;
    Outcome {
        seconds,
        counts: vec![count],
        total: count,
        allocations: Some(allocations),
        bytes: Some(used.bytes_allocated as u64),
        ..Outcome::default()
    }
}

/// Somebody asks, all nodes grant; they release, all nodes delete.
struct Story {
    key: Key,
    signature: Signature,
    terms: Arc<Terms>,
    nodes: usize,
}

impl Story {
    fn new(nodes: usize) -> Self {
        let names = (0..nodes).map(|node| format!("node-{node}").into()).collect();
        let terms = Arc::new(Wishes::default().check(&names).expect("good settings"));
        Story { key: Key::of_lock("bench", b"one"), signature: Signature::new("holder", None), terms, nodes }
    }

    fn pair(&self, number: u64) {
        let at = |micros| Moment::from_nanos(1) + Duration::from_micros(micros);
        let patience = Patience::Until(at(30_000_000));
        let mut claim = Claim::new(self.key.clone(), self.signature.clone(), self.terms.clone(), patience);
        let mut out = Vec::new();
        claim.handle(at(0), Event::Tick, &mut out);
        assert_eq!(out.len(), 1, "a draw");
        let draw = Draw { lease_id: LeaseId(u128::from(number)), jitter: number };
        self.answer(&mut claim, Event::Attempt(draw), at(10), at(100));
        assert_eq!(claim.phase(), Phase::Held);
        self.answer(&mut claim, Event::Release, at(110), at(200));
        assert_eq!(claim.phase(), Phase::Over);
        black_box(&claim);
    }

    /// The event, and what the nodes say to what comes of it.
    fn answer(&self, claim: &mut Claim, event: Event, now: Moment, later: Moment) {
        let mut out = Vec::with_capacity(2 * self.nodes);
        claim.handle(now, event, &mut out);
        let mut told = Vec::with_capacity(2);
        for action in out {
            let Action::Send { node, round, command } = action else { continue };
            let answer = match command {
                Command::Acquire { .. } => Answer::Granted,
                Command::Release { .. } => Answer::Deleted { others_wait: false },
                _ => unreachable!("a lock that nobody else wants needs no other command"),
            };
            claim.handle(later, Event::Answer { round, node, answer }, &mut told);
        }
    }
}
