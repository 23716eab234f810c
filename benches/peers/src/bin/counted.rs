//! As `peer`, with an allocator that counts: for allocations, not for rates.

use std::alloc::System;

use redlock_bench_peers::block::Order;
use redlock_bench_peers::library::Rslock;
use redlock_bench_peers::work;
use redlock_quorum::Redlock;
use stats_alloc::{INSTRUMENTED_SYSTEM, StatsAlloc};

#[global_allocator]
static ALLOCATOR: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

fn main() {
    let order = Order::from_args();
    let runtime = work::runtime(order.threads);
    let outcome = match order.of.as_str() {
        "redlock-quorum" => runtime.block_on(work::perform::<Redlock>(&order, Some(counter))),
        "rslock" => runtime.block_on(work::perform::<Rslock>(&order, Some(counter))),
        other => panic!("no such library: {other}"),
    };
    println!("{}", serde_json::to_string(&outcome).expect("plain data"));
}

/// A block that grows counts as a new one, as it does for Go.
fn counter() -> (u64, u64) {
    let stats = ALLOCATOR.stats();
    let number = stats.allocations + stats.reallocations;
    (number as u64, stats.bytes_allocated as u64)
}
