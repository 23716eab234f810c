//! One block of work by one library in Rust.

use redlock_bench_peers::block::{Order, Outcome};
use redlock_bench_peers::library::{Fenced, Rslock};
use redlock_bench_peers::{wire, work};
use redlock_quorum::Redlock;

fn main() {
    let order = Order::from_args();
    let runtime = work::runtime(order.threads);
    let outcome = match order.of.as_str() {
        // The future itself runs on the main thread; what is measured is spawned.
        "redlock-quorum" => runtime.block_on(work::perform::<Redlock>(&order, None)),
        "fenced" => runtime.block_on(work::perform::<Fenced>(&order, None)),
        "rslock" => runtime.block_on(work::perform::<Rslock>(&order, None)),
        "wire" | "wire-together" => runtime.block_on(wire::perform(&order)),
        "redlock" => redlock_crate(&order),
        other => panic!("no such library: {other}"),
    };
    println!("{}", serde_json::to_string(&outcome).expect("plain data"));
}

/// The crate `redlock` blocks, and opens a connection for each command: a thread for each task.
fn redlock_crate(order: &Order) -> Outcome {
    use std::time::Instant;

    assert_eq!(order.work, "pairs", "only pairs: each of its commands costs a connection");
    let locks = redlock::RedLock::new(order.nodes.iter().map(|node| format!("redis://{node}")).collect());
    let window = order.window();
    let mut outcome = Outcome { seconds: order.seconds, ..Outcome::default() };
    let results = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..order.tasks)
            .map(|task| {
                let locks = &locks;
                scope.spawn(move || {
                    let key = format!("redlock/{task}");
                    let (mut count, mut total, mut waits) = (0, 0, Vec::new());
                    let mut before = Instant::now();
                    while before < window.end {
                        let lock = locks.lock(key.as_bytes(), 20_000).expect("servers").expect("free");
                        locks.unlock(&lock);
                        let after = Instant::now();
                        total += 1;
                        if before >= window.start && after < window.end {
                            count += 1;
                            waits.push((after - before).as_secs_f64() * 1e6);
                        }
                        before = after;
                    }
                    (count, total, waits)
                })
            })
            .collect();
        let start = window.start.saturating_duration_since(Instant::now());
        std::thread::sleep(start);
        let cpu_before = work::cpu_us();
        std::thread::sleep(window.end.saturating_duration_since(Instant::now()));
        outcome.cpu_us = work::cpu_us() - cpu_before;
        threads.into_iter().map(|thread| thread.join().expect("no panic")).collect::<Vec<_>>()
    });
    for (count, total, waits) in results {
        outcome.counts.push(count);
        outcome.total += total;
        if order.tasks == 1 {
            outcome.waits_us.extend(waits);
        }
    }
    outcome
}
