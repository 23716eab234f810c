//! Whoever drops an attempt or a guard leaves nothing behind, at whatever moment and on whatever thread it happens. The ttl
//! is long here, so that it is the roll-back or the release that is seen, never the expiry.
//!
//! The moments that are drawn at random come from a seed, which is printed. `REDLOCK_TEST_SEED=<seed>` draws them again.
#![cfg(feature = "redis")]

mod harness;

use std::future::IntoFuture;
use std::pin::pin;
use std::task::Poll;
use std::time::{Duration, Instant};

use futures::future::{join_all, poll_fn};
use harness::proxy::{Proxy, Way};
use harness::{Cluster, LONG_TTL, over, promptly};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use redlock_quorum::{AcquireError, Backoff, Guard, Mutex, ReleaseOutcome};
use tokio::task::JoinHandle;

/// Where the way to the server is slow, what was sent is carried out much later than it was written. And what is refused together,
/// since it may not touch one of the keys, is asked for again.
#[tokio::test]
async fn when_a_shutdown_returns_the_releases_before_it_are_carried_out() {
    let cluster = Cluster::start(1).await;
    let server = &cluster.servers[0];
    let proxy = Proxy::before(server.port()).await;
    for story in ["dropped attempts", "dropped guards", "refused together"] {
        let nodes = over([proxy.address()]).node_timeout(Duration::from_secs(2));
        let redlock = nodes.connect().await.expect("a node");
        let mutexes = (0..40).map(|number| redlock.mutex(format!("job-{number}")).ttl(LONG_TTL));
        let mutexes: Vec<_> = mutexes.collect();
        proxy.throttle([Way::ToServer], 100_000);
        if story == "dropped guards" {
            drop(join_all(mutexes.iter().map(acquired)).await);
        } else {
            if story == "refused together" {
                let some_keys = "~redlock:job-? ~redlock:- ~redlock#*";
                server.type_in::<()>(&format!("ACL SETUSER default resetkeys {some_keys}")).await;
            }
            let attempts = join_all(mutexes.iter().map(Mutex::acquire));
            assert!(poll_up_to(1, attempts).await.is_none(), "on their way");
        }
        promptly(redlock.shutdown(Duration::ZERO)).await;
        server.type_in::<()>("ACL SETUSER default allkeys").await;
        let left = cluster.ours().await;
        assert!(left.is_empty(), "{story}: {left:?}");
        proxy.heal();
    }
}

async fn acquired(mutex: &Mutex) -> Guard {
    promptly(mutex.acquire()).await.expect("free")
}

#[tokio::test]
async fn an_attempt_dropped_after_any_number_of_polls_is_rolled_back() {
    let cluster = Cluster::start(3).await;
    let redlock = cluster.redlock().await;
    for polls in 0..=20 {
        let free = redlock.mutex(format!("free-{polls}"));
        drop(poll_up_to(polls, free.acquire()).await);

        cluster.take([1, 2], &format!("redlock:taken-{polls}")).await;
        let quick = Backoff::exponential(Duration::from_millis(1), Duration::from_millis(1));
        let taken = redlock.mutex(format!("taken-{polls}")).backoff(quick);
        assert!(poll_up_to(polls, taken.acquire()).await.is_none(), "taken until the end");
    }
    cluster.assert_nothing_left().await;
}

/// Polls a future whenever it asks to be polled, but so many times at most; then drops it.
async fn poll_up_to<T>(polls: u32, future: impl Future<Output = T>) -> Option<T> {
    let mut future = pin!(future);
    let mut left = polls;
    poll_fn(|context| {
        if left == 0 {
            return Poll::Ready(None);
        }
        left -= 1;
        match future.as_mut().poll(context) {
            Poll::Ready(output) => Poll::Ready(Some(output)),
            Poll::Pending if left == 0 => Poll::Ready(None),
            Poll::Pending => Poll::Pending,
        }
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_attempt_dropped_at_any_moment_is_rolled_back() {
    drop_at_many_moments().await;
}

#[tokio::test]
async fn an_attempt_dropped_at_any_moment_on_one_thread_is_rolled_back() {
    drop_at_many_moments().await;
}

async fn drop_at_many_moments() {
    const ROUNDS: u32 = 200;
    let mut random = seeded();
    for nodes in [1, 3] {
        let cluster = Cluster::start(nodes).await;
        let redlock = cluster.redlock().await;
        let mut won = 0;
        for round in 0..ROUNDS {
            if nodes == 1 {
                // Who was alone with an only node for a while sends past its task.
                for _ in 0..4 {
                    drop(promptly(acquired(&redlock.mutex("before")).await.release()).await);
                }
            }
            let moment = Duration::from_micros(random.random_range(0..2_000));
            let attempt = redlock.mutex(format!("round-{round}"));
            won += u32::from(drop_at(moment, attempt).await);
        }
        println!("of {nodes} nodes {won} of {ROUNDS} locks were won before they were dropped");
        cluster.assert_nothing_left().await;
    }
}

/// Drops what there is at that moment, the attempt or the guard; true for the guard.
async fn drop_at(moment: Duration, attempt: Mutex) -> bool {
    let begun = Instant::now();
    let task = tokio::spawn(async move {
        let guard = attempt.acquire().await.expect("free");
        drop(guard);
    });
    while begun.elapsed() < moment {
        tokio::task::yield_now().await;
    }
    task.abort();
    task.await.is_ok()
}

fn seeded() -> StdRng {
    let seed = match std::env::var("REDLOCK_TEST_SEED") {
        Ok(seed) => seed.parse().expect("REDLOCK_TEST_SEED is a whole number"),
        Err(_) => rand::random(),
    };
    println!("REDLOCK_TEST_SEED={seed}");
    StdRng::seed_from_u64(seed)
}

#[tokio::test]
async fn a_guard_that_is_dropped_is_released() {
    let cluster = Cluster::start(3).await;
    let (mine, other) = (cluster.redlock().await, cluster.redlock().await);
    let guard = acquired(&mine.mutex("job")).await;
    let watch = guard.watch();
    drop(guard);
    promptly(watch.lost()).await;
    assert!(!watch.is_valid());
    assert!(promptly(other.mutex("job").acquire()).await.is_ok());
    cluster.assert_nothing_left().await;
}

#[tokio::test]
async fn a_guard_may_be_dropped_on_a_thread_that_knows_no_runtime() {
    let cluster = Cluster::start(3).await;
    let redlock = cluster.redlock().await;
    let guard = acquired(&redlock.mutex("job")).await;
    let thread = std::thread::spawn(move || drop(guard));
    thread.join().expect("no panic");
    cluster.assert_nothing_left().await;
}

#[tokio::test]
async fn the_last_handle_may_go_right_after_the_guard() {
    let cluster = Cluster::start(3).await;
    for round in 0..20 {
        let redlock = cluster.redlock().await;
        let guard = acquired(&redlock.mutex(format!("job-{round}"))).await;
        drop(guard);
        drop(redlock);
    }
    cluster.assert_nothing_left().await;
}

#[tokio::test]
async fn a_guard_outlives_the_handle_it_came_from() {
    let cluster = Cluster::start(3).await;
    let redlock = cluster.redlock().await;
    let guard = acquired(&redlock.mutex("job").ttl(Duration::from_millis(300))).await;
    drop(redlock);
    // Several ttls must pass: it is renewed all the same.
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert!(guard.is_valid());
    assert_eq!(promptly(guard.release()).await.outcome, ReleaseOutcome::Released);
    cluster.assert_nothing_left().await;
}

#[tokio::test]
async fn a_panic_of_the_holder_releases() {
    let cluster = Cluster::start(3).await;
    let redlock = cluster.redlock().await;
    let mutex = redlock.mutex("job");
    let holder = tokio::spawn(async move {
        let _guard = acquired(&mutex).await;
        panic!("as planned");
    });
    assert!(promptly(holder).await.expect_err("it panics").is_panic());
    cluster.assert_nothing_left().await;
}

#[test]
fn a_guard_that_outlives_its_runtime_is_dropped_without_a_panic() {
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let (cluster, guard) = runtime.block_on(async {
        let cluster = Cluster::start(3).await;
        let guard = acquired(&cluster.redlock().await.mutex("job")).await;
        (cluster, guard)
    });
    drop(runtime);
    drop(guard);
    drop(cluster);
}

#[tokio::test]
async fn a_shutdown_turns_away_who_waits_and_takes_away_what_is_left() {
    let cluster = Cluster::start(3).await;
    let redlock = cluster.redlock().await;
    cluster.take(0..3, "redlock:taken").await;
    let guard = acquired(&redlock.mutex("held").ttl(LONG_TTL)).await;
    let behind_the_guard = waiter(redlock.mutex("held")).await;
    let behind_another = waiter(redlock.mutex("taken")).await;

    let shutdown = promptly(redlock.shutdown(Duration::from_millis(50))).await;
    let taken_away: Vec<_> = shutdown.taken_away().collect();
    assert_eq!(taken_away, [(b"redlock:held".as_slice(), ReleaseOutcome::Released)]);
    assert!(!shutdown.is_clean());
    assert!(!guard.is_valid());
    promptly(guard.lost()).await;
    assert!(cluster.ours().await.is_empty(), "answered before it returns");
    for waiter in [behind_the_guard, behind_another] {
        let turned_away = promptly(waiter).await.expect("no panic");
        assert!(matches!(turned_away, Err(AcquireError::Closed)), "{turned_away:?}");
    }
    let too_late = promptly(redlock.mutex("new").try_acquire()).await;
    assert!(matches!(too_late, Err(AcquireError::Closed)), "{too_late:?}");
    drop(guard);
    cluster.assert_nothing_left().await;
}

/// A call that waits already, as it was polled before it is handed to a task.
async fn waiter(mutex: Mutex) -> JoinHandle<Result<Guard, AcquireError>> {
    let mut waiting = mutex.into_future();
    assert!(futures::poll!(&mut waiting).is_pending(), "another has it");
    tokio::spawn(waiting)
}

#[tokio::test]
async fn a_shutdown_waits_for_guards_that_are_about_to_be_released() {
    let cluster = Cluster::start(3).await;
    let redlock = cluster.redlock().await;
    let guard = acquired(&redlock.mutex("job")).await;
    let (shutdown, release) = promptly(futures::future::join(redlock.shutdown(LONG_TTL), async {
        tokio::task::yield_now().await;
        guard.release().await
    }))
    .await;
    assert!(shutdown.is_clean(), "{shutdown:?}");
    assert_eq!(release.outcome, ReleaseOutcome::Released);
    assert!(cluster.ours().await.is_empty(), "answered before it returns");
}

#[tokio::test]
async fn a_lock_that_nobody_had_in_hand_excludes_nobody() {
    let cluster = Cluster::start(1).await;
    let redlock = cluster.redlock().await;
    let mutex = redlock.mutex("nightly").hold_at_least(LONG_TTL);
    let mut attempt = Box::pin(mutex.acquire());
    assert!(futures::poll!(&mut attempt).is_pending());
    harness::until("the grant, unseen by whoever asked", async || !cluster.ours().await.is_empty()).await;
    drop(attempt);
    cluster.assert_nothing_left().await;
}
