//! One pair of acquire and release, alone and among 64 tasks, by this library and by rslock on the same servers.
//!
//! Criterion measures one library after the other. Where the machine is noisy, `cargo run --release` in this folder lets
//! them take turns block by block, and counts allocations.

use std::time::Duration;

use criterion::{Criterion, criterion_group, criterion_main};
use redlock_bench_peers::{clients, nodes, our_pairs, runtime, their_pairs};

fn pairs(criterion: &mut Criterion) {
    let nodes = nodes();
    for threads in [1, 2] {
        let runtime = runtime(threads);
        for count in [1, 3, 5].into_iter().filter(|count| *count <= nodes.len()) {
            let (ours, theirs) = runtime.block_on(clients(&nodes[..count]));
            for tasks in [1, 64] {
                let mut group =
                    criterion.benchmark_group(format!("{threads} threads, N = {count}, {tasks} tasks"));
                group
                    .warm_up_time(Duration::from_millis(500))
                    .measurement_time(Duration::from_secs(3))
                    .sample_size(20);
                group.bench_function("redlock-quorum", |bencher| {
                    bencher.iter_custom(|pairs| {
                        runtime.block_on(time(pairs, tasks, |pairs| our_pairs(&ours, tasks, pairs)))
                    });
                });
                group.bench_function("rslock", |bencher| {
                    bencher.iter_custom(|pairs| {
                        runtime.block_on(time(pairs, tasks, |pairs| their_pairs(&theirs, tasks, pairs)))
                    });
                });
                group.finish();
            }
        }
    }
}

/// The time of so many pairs, scaled where they do not divide among the tasks.
async fn time<F: Future<Output = f64>>(pairs: u64, tasks: usize, run: impl FnOnce(usize) -> F) -> Duration {
    let whole = usize::try_from(pairs).expect("a number of pairs").next_multiple_of(tasks);
    Duration::from_secs_f64(pairs as f64 / run(whole).await)
}

criterion_group!(benches, pairs);
criterion_main!(benches);
