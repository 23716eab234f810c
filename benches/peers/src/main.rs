//! Pairs of acquire and release on real servers, against rslock, in one run.
//!
//! Both lock on the same servers, in blocks that take turns, so that the machine's moods hit both alike; what counts is the
//! ratio, block by block. `REDLOCK_NODES` names the servers (start them without persistence, or the disk is
//! what is measured); the first N of them are used for N = 1, 3 and 5.

use std::alloc::System;

use redlock_bench_peers::{clients, nodes, our_pairs, runtime, their_pairs};
use stats_alloc::{INSTRUMENTED_SYSTEM, Region, StatsAlloc};

#[global_allocator]
static ALLOCATOR: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

fn main() {
    let nodes = nodes();
    let blocks = std::env::args().nth(1).map_or(10, |blocks| blocks.parse().expect("a number of blocks"));
    println!(
        "| runtime | N | tasks | redlock-quorum | rslock | ratio of rates (interquartile) | allocations per pair |"
    );
    println!("|---|--:|--:|--:|--:|--:|--:|");
    for threads in [1, 2] {
        for count in [1, 3, 5].into_iter().filter(|count| *count <= nodes.len()) {
            for tasks in [1, 64] {
                let runtime = runtime(threads);
                runtime.block_on(compare(threads, &nodes[..count], tasks, blocks));
            }
        }
    }
}

async fn compare(threads: usize, nodes: &[String], tasks: usize, blocks: usize) {
    let (ours, theirs) = clients(nodes).await;
    let pairs = if tasks == 1 { 1_000 } else { 10_000 };
    // The caches of this many tasks.
    our_pairs(&ours, tasks, pairs).await;
    their_pairs(&theirs, tasks, pairs).await;
    let (mut our_rates, mut their_rates, mut ratios) = (Vec::new(), Vec::new(), Vec::new());
    let (mut our_allocations, mut their_allocations) = (0, 0);
    for _ in 0..blocks {
        let region = Region::new(ALLOCATOR);
        let our_rate = our_pairs(&ours, tasks, pairs).await;
        our_allocations += region.change().allocations;
        let region = Region::new(ALLOCATOR);
        let their_rate = their_pairs(&theirs, tasks, pairs).await;
        their_allocations += region.change().allocations;
        our_rates.push(our_rate);
        their_rates.push(their_rate);
        ratios.push(our_rate / their_rate);
    }
    let per_pair = |allocations: usize| allocations as f64 / (pairs * blocks) as f64;
    let name = if threads == 1 { "current_thread" } else { "multi_thread (2)" };
    println!(
        "| {name} | {} | {tasks} | {:.0}/s ({:.0} µs) | {:.0}/s ({:.0} µs) | {:.2} ({:.2} to {:.2}) | {:.1} / {:.1} |",
        nodes.len(),
        quantile(&mut our_rates, 0.5),
        1e6 * tasks as f64 / quantile(&mut our_rates, 0.5),
        quantile(&mut their_rates, 0.5),
        1e6 * tasks as f64 / quantile(&mut their_rates, 0.5),
        quantile(&mut ratios, 0.5),
        quantile(&mut ratios, 0.25),
        quantile(&mut ratios, 0.75),
        per_pair(our_allocations),
        per_pair(their_allocations),
    );
}

fn quantile(values: &mut [f64], part: f64) -> f64 {
    values.sort_by(f64::total_cmp);
    values[((values.len() - 1) as f64 * part).round() as usize]
}
