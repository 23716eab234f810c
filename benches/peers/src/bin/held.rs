//! This library alone: what held locks and waiters cost, in memory and in time.
//!
//! `--work` is `held` (so many locks; the bytes that each takes, and the rate of pairs beside them), `waiters` (so many tasks
//! wait for one lock; the bytes that each takes, and how fast the lock goes through their hands), or `renewals` (so many locks
//! are kept; the processor time of a renewal).

use std::alloc::System;
use std::sync::Arc;
use std::time::{Duration, Instant};

use redlock_bench_peers::block::{Order, Outcome};
use redlock_bench_peers::library::Library;
use redlock_bench_peers::servers::Work;
use redlock_bench_peers::work::{cpu_us, perform, runtime};
use redlock_quorum::{Guard, Redlock, RestartProtection};
use stats_alloc::{INSTRUMENTED_SYSTEM, StatsAlloc};

#[global_allocator]
static ALLOCATOR: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

/// As many as are under way at once while the locks are acquired.
const AT_ONCE: usize = 256;

fn main() {
    let order = Order::from_args();
    let outcome = runtime(order.threads).block_on(async {
        match order.work.as_str() {
            "held" => held(&order).await,
            "waiters" => waiters(&order).await,
            "renewals" => renewals(&order).await,
            other => panic!("no such work: {other}"),
        }
    });
    println!("{}", serde_json::to_string(&outcome).expect("plain data"));
}

/// The bytes that are allocated and not given back.
fn live_bytes() -> u64 {
    let stats = ALLOCATOR.stats();
    (stats.bytes_allocated - stats.bytes_deallocated) as u64
}

async fn held(order: &Order) -> Outcome {
    let redlock = connect(order, Duration::from_secs(600)).await;
    // What is made once, the first lock makes.
    drop(hold(&redlock, AT_ONCE).await);
    tokio::time::sleep(Duration::from_millis(100)).await;
    let before = live_bytes();
    let guards = hold(&redlock, order.tasks).await;
    let bytes = live_bytes().saturating_sub(before);
    let beside = Order { work: "pairs".to_owned(), tasks: 64, ..order.clone() };
    let outcome = perform::<Redlock>(&beside, None).await;
    assert!(guards.iter().all(Guard::is_valid), "a lock was lost");
    Outcome { bytes: Some(bytes), ..outcome }
}

async fn waiters(order: &Order) -> Outcome {
    let redlock = connect(order, Duration::from_secs(600)).await;
    let mutex = Arc::new(redlock.mutex("one").wait_forever());
    let guard = mutex.acquire().await.expect("free");
    // What is made once, the first waiter makes.
    let abandoned = tokio::time::timeout(Duration::from_millis(20), mutex.acquire()).await;
    assert!(abandoned.is_err(), "it is held");
    let before = live_bytes();
    let mut waiting = Vec::with_capacity(order.tasks);
    for _ in 0..order.tasks {
        let mutex = mutex.clone();
        waiting.push(tokio::spawn(async move {
            let guard = mutex.acquire().await.expect("waits for ever");
            guard.release().await.ok().expect("held");
        }));
    }
    // All have asked, and the first looks who holds.
    tokio::time::sleep(Duration::from_millis(200)).await;
    let bytes = live_bytes().saturating_sub(before);
    let (start, cpu_before) = (Instant::now(), cpu_us());
    guard.release().await.ok().expect("held");
    for waiter in waiting {
        waiter.await.expect("no panic");
    }
    Outcome {
        seconds: start.elapsed().as_secs_f64(),
        counts: vec![order.tasks as u64],
        total: order.tasks as u64,
        cpu_us: cpu_us() - cpu_before,
        bytes: Some(bytes),
        ..Outcome::default()
    }
}

/// They are renewed when less than two thirds of the ttl remain, so the ttl is so long that one round of renewals goes into
/// the measured time.
async fn renewals(order: &Order) -> Outcome {
    let redlock = connect(order, Duration::from_secs_f64(3.0 * order.seconds)).await;
    let guards = hold(&redlock, order.tasks).await;
    // Everything that is done once, after the beginning of a hold, is over when the first are renewed.
    tokio::time::sleep(Duration::from_secs_f64(order.seconds)).await;
    let (before, cpu_before) = (Work::of(&order.nodes), cpu_us());
    tokio::time::sleep(Duration::from_secs_f64(order.seconds)).await;
    let (after, cpu_us) = (Work::of(&order.nodes).since(&before), cpu_us() - cpu_before);
    assert!(guards.iter().all(Guard::is_valid), "a lock was lost");
    let renewals = (after.calls("evalsha") + after.calls("eval")) / order.nodes.len() as u64;
    Outcome {
        seconds: order.seconds,
        counts: vec![renewals],
        total: order.tasks as u64,
        cpu_us,
        ..Outcome::default()
    }
}

async fn connect(order: &Order, ttl: Duration) -> Redlock {
    let builder = Redlock::builder().restart_protection(RestartProtection::Off).ttl(ttl);
    builder.nodes(order.nodes.iter().map(String::as_str)).connect().await.expect("servers")
}

/// Holds so many locks.
async fn hold(redlock: &Redlock, count: usize) -> Vec<Guard> {
    let mut guards = Vec::with_capacity(count);
    for begin in (0..count).step_by(AT_ONCE) {
        let acquiring: Vec<_> = (begin..count.min(begin + AT_ONCE))
            .map(|number| {
                let mutex = Library::mutex(redlock, &format!("held/{number}"));
                tokio::spawn(async move { mutex.acquire().await.expect("free") })
            })
            .collect();
        for guard in acquiring {
            guards.push(guard.await.expect("no panic"));
        }
    }
    guards
}
