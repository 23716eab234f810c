//! Adversarial review: scenarios in memory. Each failing test is a finding.
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use redlock_quorum::{MemoryNodes, Renewal};
use tokio::time::sleep;

const fn ms(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

/// Finding: `reschedule` takes a claim out of the heap and puts it back under two locks: a shutdown in between does not see it.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_shutdown_sees_every_guard() {
    for round in 0..300 {
        let nodes = MemoryNodes::new(3);
        let redlock = nodes.builder().ttl(ms(500)).connect_lazy().expect("a runtime");
        let guards: Vec<_> = futures::future::join_all((0..4).map(|n| {
            let mutex = redlock.mutex(format!("{n}")).renewal(Renewal::Every(ms(1)));
            async move { mutex.acquire().await.expect("free") }
        }))
        .await;
        let stop = Arc::new(AtomicBool::new(false));
        let extenders: Vec<_> = guards
            .into_iter()
            .map(|guard| {
                let stop = stop.clone();
                tokio::spawn(async move {
                    while !stop.load(Ordering::Acquire) && guard.is_valid() {
                        let _ = guard.extend(ms(400)).await;
                        tokio::task::yield_now().await;
                    }
                    guard
                })
            })
            .collect();
        sleep(ms(2)).await;
        let end = redlock.shutdown(ms(5)).await;
        let taken = end.taken_away().count();
        sleep(ms(1)).await;
        stop.store(true, Ordering::Release);
        let mut valid = 0;
        for extender in extenders {
            let guard = extender.await.unwrap();
            valid += usize::from(guard.is_valid());
        }
        assert_eq!((taken, valid), (4, 0), "round {round}: taken away, still valid after the shutdown");
    }
}

/// Finding: a password with an `@` in the query is printed in part.
#[cfg(feature = "redis")]
#[test]
fn no_part_of_a_password_is_printed() {
    for address in ["redis+unix:///p?user=x&pass=se@cret", "redis://:secret", "redis://app:secret"] {
        let shown = format!("{:?}", redlock_quorum::NodeConfig::new(address));
        assert!(!shown.contains("cret"), "{shown}");
    }
}

/// Finding: a renewal that can never come in time is accepted.
#[tokio::test(start_paused = true)]
async fn a_renewal_after_the_end_of_the_validity_is_refused() {
    let nodes = MemoryNodes::new(3);
    let redlock = nodes.redlock();
    match redlock.mutex("a").renewal(Renewal::Every(ms(9_950))).acquire().await {
        Err(_) => {}
        Ok(guard) => {
            sleep(ms(20_000)).await;
            assert!(guard.is_valid(), "accepted, and always lost");
        }
    }
}

/// Finding: an extension that hold_at_most cuts says Ok.
#[tokio::test(start_paused = true)]
async fn an_extension_that_brings_nothing_is_no_success() {
    let nodes = MemoryNodes::new(3);
    let redlock = nodes.redlock();
    let guard = redlock.mutex("a").hold_at_most(ms(9_000)).acquire().await.expect("free");
    sleep(ms(8_000)).await;
    if guard.extend(ms(10_000)).await.is_ok() {
        assert!(guard.remaining() > ms(9_000), "Ok, but only {:?} remain", guard.remaining());
    }
}

/// Finding: the wait ends in the local queue's last moment: "no majority answered" though nobody was asked.
#[tokio::test(start_paused = true)]
async fn nobody_is_blamed_who_was_not_asked() {
    let nodes = MemoryNodes::new(3);
    let redlock = nodes.redlock();
    let guard = redlock.mutex("a").acquire().await.expect("free");
    let mutex = redlock.mutex("a").wait(ms(100));
    let mut waiting = Box::pin(mutex.acquire());
    assert!(futures::poll!(&mut waiting).is_pending());
    drop(guard);
    sleep(ms(200)).await;
    let error = waiting.await.expect_err("the wait is over");
    assert!(matches!(error, redlock_quorum::AcquireError::Held(_)), "{error}");
}
