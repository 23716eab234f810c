//! The works, the same for every library.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use tokio::task::JoinHandle;

use crate::block::{Order, Outcome, Window};
use crate::library::Library;

/// How many allocations there were, and of how many bytes.
pub type Counter = fn() -> (u64, u64);

/// Does what is ordered, and counts allocations if it is known how.
pub async fn perform<L: Library>(order: &Order, counter: Option<Counter>) -> Outcome {
    match order.work.as_str() {
        "pairs" => {
            let client = L::connect(&order.nodes).await;
            run(order, counter, |task| (client.clone(), format!("bench/{task}"))).await
        }
        "contended" => {
            let client = L::connect(&order.nodes).await;
            run(order, counter, |_| (client.clone(), "bench/one".to_owned())).await
        }
        "clients" => {
            let mut clients = Vec::new();
            for _ in 0..order.tasks {
                clients.push(L::connect(&order.nodes).await);
            }
            run(order, counter, |task| (clients[task].clone(), "bench/one".to_owned())).await
        }
        "loop" => {
            let client = L::connect(&order.nodes).await;
            run(order, counter, |_| (client.clone(), "bench/one".to_owned())).await
        }
        "handoff" => hand_off::<L>(order, counter).await,
        other => panic!("no such work: {other}"),
    }
}

/// The runtime that is ordered: one thread, or several.
pub fn runtime(threads: usize) -> tokio::runtime::Runtime {
    let mut builder = match threads {
        1 => tokio::runtime::Builder::new_current_thread(),
        _ => tokio::runtime::Builder::new_multi_thread(),
    };
    if threads > 1 {
        builder.worker_threads(threads);
    }
    builder.enable_all().build().expect("a runtime")
}

/// The processor time of this process.
pub fn cpu_us() -> f64 {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    time.tv_sec as f64 * 1e6 + time.tv_nsec as f64 / 1e3
}

/// Tasks that acquire and release in a loop, each with the client and the key that it is given.
async fn run<L: Library>(
    order: &Order,
    counter: Option<Counter>,
    mut task: impl FnMut(usize) -> (L, String),
) -> Outcome {
    let total = Arc::new(AtomicU64::new(0));
    let timed = order.tasks == 1 || matches!(order.work.as_str(), "contended" | "clients");
    let window = order.window();
    let workers: Vec<_> = (0..order.tasks)
        .map(|number| {
            let (client, key) = task(number);
            tokio::spawn(pairs(client, key, window, timed, total.clone()))
        })
        .collect();
    let usage = tokio::spawn(usage(window, counter));
    gather(order, workers, total, usage).await
}

async fn pairs<L: Library>(
    client: L,
    key: String,
    window: Window,
    timed: bool,
    total: Arc<AtomicU64>,
) -> (u64, Vec<f64>) {
    let mutex = client.mutex(&key);
    let (mut count, mut waits) = (0, Vec::with_capacity(if timed { 1 << 16 } else { 0 }));
    let (mut pairs, mut before) = (0, Instant::now());
    // A sequential pair is timed as a whole; among many it is the wait that counts.
    let whole = key != "bench/one";
    while before < window.end {
        let held = client.acquire(&mutex).await;
        let acquired = Instant::now();
        client.release(held).await;
        let after = Instant::now();
        pairs += 1;
        if after >= window.start && after < window.end {
            count += 1;
        }
        // One that began to wait in the window is counted among the waits, however long it took.
        if timed && before >= window.start {
            let until = if whole { after } else { acquired };
            waits.push((until - before).as_secs_f64() * 1e6);
        }
        before = after;
    }
    total.fetch_add(pairs, Ordering::Relaxed);
    (count, waits)
}

async fn gather(
    order: &Order,
    workers: Vec<JoinHandle<(u64, Vec<f64>)>>,
    total: Arc<AtomicU64>,
    usage: JoinHandle<Usage>,
) -> Outcome {
    let mut outcome = Outcome { seconds: order.seconds, ..Outcome::default() };
    for worker in workers {
        let (count, waits) = worker.await.expect("no panic");
        outcome.counts.push(count);
        outcome.waits_us.extend(waits);
    }
    outcome.total = total.load(Ordering::Relaxed);
    usage.await.expect("no panic").put_into(&mut outcome);
    outcome
}

/// What the program needed from the begin of the window to its end.
struct Usage {
    cpu_us: f64,
    allocated: Option<(u64, u64)>,
}

impl Usage {
    fn put_into(self, outcome: &mut Outcome) {
        outcome.cpu_us = self.cpu_us;
        (outcome.allocations, outcome.bytes) = self.allocated.unzip();
    }
}

async fn usage(window: Window, counter: Option<Counter>) -> Usage {
    let used = || (cpu_us(), counter.map(|counter| counter()));
    tokio::time::sleep_until(window.start.into()).await;
    let (cpu_before, allocated_before) = used();
    tokio::time::sleep_until(window.end.into()).await;
    let (cpu_us, allocated) = used();
    let allocated = allocated.zip(allocated_before).map(|(now, before)| (now.0 - before.0, now.1 - before.1));
    Usage { cpu_us: cpu_us - cpu_before, allocated }
}

/// One client holds, the other waits; how long after the begin of the release does the other hold? Then they change sides.
async fn hand_off<L: Library>(order: &Order, counter: Option<Counter>) -> Outcome {
    let clients = [L::connect(&order.nodes).await, L::connect(&order.nodes).await];
    let mutexes = [Arc::new(clients[0].mutex("bench/one")), Arc::new(clients[1].mutex("bench/one"))];
    let window = order.window();
    let mut outcome = Outcome { seconds: order.seconds, total: 1, ..Outcome::default() };
    let mut held = clients[0].acquire(&mutexes[0]).await;
    let mut hands = 0;
    let usage = tokio::spawn(usage(window, counter));
    while Instant::now() < window.end {
        let next = (hands + 1) % 2;
        let (client, mutex) = (clients[next].clone(), mutexes[next].clone());
        let waiting = tokio::spawn(async move {
            let held = client.acquire(&mutex).await;
            (held, Instant::now())
        });
        // Long enough to find the lock held and to settle down to wait, and no multiple of any polling.
        tokio::time::sleep(Duration::from_micros(4_000 + 137 * (hands as u64 % 8))).await;
        let released = Instant::now();
        clients[hands % 2].release(held).await;
        let (next_held, acquired) = waiting.await.expect("no panic");
        held = next_held;
        hands += 1;
        outcome.total += 1;
        if released >= window.start {
            outcome.waits_us.push(acquired.saturating_duration_since(released).as_secs_f64() * 1e6);
        }
    }
    clients[hands % 2].release(held).await;
    outcome.counts = vec![outcome.waits_us.len() as u64];
    usage.await.expect("no panic").put_into(&mut outcome);
    outcome
}
