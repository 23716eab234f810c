//! Every future of the surface is dropped after every number of polls that it can take, in every situation that makes it
//! take another way: on in-memory nodes that answer late, in paused time, so that each run is the same. Wherever it is
//! dropped, no key stays.
#![cfg(feature = "redis")]

use std::future::Future;
use std::pin::Pin;
use std::time::Duration;

use redlock_quorum::{Backoff, Guard, MemoryNodes, Mutex};
use tokio::time::sleep;

const fn ms(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

/// What the nodes are like when a future is begun.
#[derive(Clone, Copy, Debug)]
enum Situation {
    Free,
    /// Another holds, and its keys run out soon.
    Held,
    /// One node is stopped.
    MinorityAway,
    /// Two of three nodes are stopped: every attempt fails.
    MajorityAway,
    /// A majority answers only when the validity is over.
    TooSlow,
}

impl Situation {
    const ALL: [Situation; 5] = [
        Situation::Free,
        Situation::Held,
        Situation::MinorityAway,
        Situation::MajorityAway,
        Situation::TooSlow,
    ];

    fn nodes(self) -> MemoryNodes {
        let nodes = MemoryNodes::new(3);
        // No two answers come at the same moment, so that every order of them is passed through.
        (0..3).for_each(|node| nodes.delay(node, ms(1 + node as u64)));
        match self {
            Situation::Free => {}
            Situation::Held => nodes.hold("a", ms(20)),
            Situation::MinorityAway => nodes.stop(1),
            Situation::MajorityAway => [0, 1].into_iter().for_each(|node| nodes.stop(node)),
            Situation::TooSlow => (1..3).for_each(|node| nodes.delay(node, ms(150))),
        }
        nodes
    }

    fn mutex(self, nodes: &MemoryNodes) -> Mutex {
        let builder = nodes.builder().ttl(ms(100)).node_timeout(ms(100)).wait(ms(60));
        let redlock = builder.connect_lazy().expect("good settings");
        redlock.mutex("a").backoff(Backoff::constant(ms(3)))
    }
}

/// Drops what `begin` makes after every number of polls until it completes, and sees that nothing stays of it.
async fn drop_after_every_number_of_polls<T>(
    what: &str,
    mut begin: impl AsyncFnMut(&MemoryNodes, Situation) -> Option<Pin<Box<dyn Future<Output = T>>>>,
) {
    let mut passed_through = 0;
    for situation in Situation::ALL {
        for polls in 0.. {
            let nodes = situation.nodes();
            let Some(mut future) = begin(&nodes, situation).await else { break };
            let mut completed = false;
            for _ in 0..polls {
                if futures::poll!(&mut future).is_ready() {
                    completed = true;
                    break;
                }
                // Whatever it waits for happens, or not: the next poll comes a little later.
                sleep(ms(1)).await;
            }
            drop(future);
            (0..3).for_each(|node| nodes.start(node));
            // Those of another that was there before go by themselves, long before ours would.
            sleep(ms(30)).await;
            let left: Vec<_> = (0..3).flat_map(|node| nodes.keys(node)).collect();
            assert!(left.is_empty(), "{what}, {situation:?}, dropped after {polls} polls: {left:?}");
            if completed {
                println!("{what}, {situation:?}: {polls} polls");
                passed_through += 1;
                break;
            }
            assert!(polls < 1_000, "{what}, {situation:?}: never completes");
        }
    }
    // What needs a lock to begin with cannot be begun where there is none to be had.
    assert!(passed_through >= 3, "{what}: only {passed_through} situations");
}

async fn held(nodes: &MemoryNodes, situation: Situation) -> Option<Guard> {
    situation.mutex(nodes).acquire().await.ok()
}

#[tokio::test(start_paused = true)]
async fn an_acquisition_leaves_nothing() {
    drop_after_every_number_of_polls("acquire", async |nodes, situation| {
        let mutex = situation.mutex(nodes);
        Some(Box::pin(async move { mutex.acquire().await.map(drop) }) as _)
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_try_leaves_nothing() {
    drop_after_every_number_of_polls("try_acquire", async |nodes, situation| {
        let mutex = situation.mutex(nodes);
        Some(Box::pin(async move { mutex.try_acquire().await.map(drop) }) as _)
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn work_under_a_lock_leaves_nothing() {
    drop_after_every_number_of_polls("run", async |nodes, situation| {
        let mutex = situation.mutex(nodes);
        Some(Box::pin(async move { mutex.run(async |_| sleep(ms(10)).await).await }) as _)
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_release_leaves_nothing() {
    drop_after_every_number_of_polls("release", async |nodes, situation| {
        let guard = held(nodes, situation).await?;
        Some(Box::pin(async move { guard.release().await }) as _)
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn an_extension_leaves_nothing_but_the_lock() {
    drop_after_every_number_of_polls("extend", async |nodes, situation| {
        let guard = held(nodes, situation).await?;
        // The guard goes with the future, and so does the lock.
        Some(Box::pin(async move { guard.extend(ms(100)).await }) as _)
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_shutdown_leaves_nothing() {
    drop_after_every_number_of_polls("shutdown", async |nodes, _| {
        let builder = nodes.builder().ttl(ms(100)).node_timeout(ms(100));
        let redlock = builder.connect_lazy().expect("good settings");
        let guard = redlock.mutex("a").wait(ms(60)).acquire().await.ok()?;
        Some(Box::pin(async move {
            let _guard = guard;
            redlock.shutdown(ms(5)).await
        }) as _)
    })
    .await;
}
