//! A client with one node that asks for one thing after the other sends each command there and then, without a turn of the task of
//! its node. Nothing of what the task would have done is missed by that.
#![cfg(feature = "redis")]

mod harness;

use std::future::poll_fn;
use std::pin::pin;
use std::task::Poll;
use std::time::Duration;

use futures::future::join;
use futures::poll;
use harness::proxy::{Proxy, Way};
use harness::{Cluster, LONG_TTL, PROMPT, SILENT, over, promptly, until};
use redlock_quorum::{AcquireError, Mutex, Redlock, ReleaseOutcome};
use tokio::runtime::{Builder, Runtime};
use tokio::sync::mpsc;
use tokio::time::sleep;

fn on_one_thread() -> Runtime {
    Builder::new_current_thread().enable_all().build().expect("a runtime")
}

/// Has taken and given back one lock after the other for a while.
async fn is_alone(redlock: &Redlock) {
    for _ in 0..5 {
        let guard = promptly(redlock.mutex("before").acquire()).await.expect("free");
        assert_eq!(promptly(guard.release()).await.outcome, ReleaseOutcome::Released);
    }
}

#[tokio::test]
async fn a_command_is_carried_out_before_anybody_else_has_a_turn() {
    let cluster = Cluster::start(1).await;
    let redlock = cluster.redlock().await;
    is_alone(&redlock).await;
    let mutex = redlock.mutex("job");
    let mut acquiring = pin!(mutex.acquire());
    assert!(poll!(&mut acquiring).is_pending());
    // Nothing else runs on this thread until the other one has seen the key.
    let seen = std::thread::scope(|scope| {
        let look = || {
            let stands = async || cluster.servers[0].value("redlock:job").await.is_some();
            on_one_thread().block_on(until("the key stands", stands));
        };
        scope.spawn(look).join()
    });
    seen.expect("no panic");
    drop(promptly(acquiring).await.expect("free"));
    cluster.assert_nothing_left().await;
}

#[tokio::test]
async fn what_is_dropped_right_after_it_was_sent_is_rolled_back_behind_it() {
    let cluster = Cluster::start(1).await;
    let redlock = cluster.redlock().await;
    for _ in 0..20 {
        is_alone(&redlock).await;
        let mutex = redlock.mutex("job").ttl(LONG_TTL);
        let mut acquiring = Box::pin(mutex.acquire());
        assert!(poll!(&mut acquiring).is_pending());
        drop(acquiring);
        // Behind both comes what asks next.
        drop(promptly(mutex.acquire()).await.expect("free again"));
    }
    cluster.assert_nothing_left().await;
}

/// The release was left to the task, since somebody comes right behind: what comes is not sent past it.
#[tokio::test]
async fn who_comes_right_behind_a_holder_does_not_overtake_its_release() {
    let cluster = Cluster::start(1).await;
    let redlock = cluster.redlock().await;
    is_alone(&redlock).await;
    let asked = cluster.servers[0].calls("set").await;
    let mutex = redlock.mutex("job");
    let guard = promptly(mutex.acquire()).await.expect("free");
    let mut next = Box::pin(mutex.acquire());
    assert!(poll!(&mut next).is_pending());
    let (release, next) = promptly(join(guard.release(), next)).await;
    assert_eq!(release.outcome, ReleaseOutcome::Released);
    assert_eq!(cluster.servers[0].calls("set").await, asked + 2, "it was free when it was asked for");
    drop(next.expect("its turn"));
    cluster.assert_nothing_left().await;
}

/// A task that has had its share of the runtime's time may not write to a socket: then what it sends is left to the node's.
#[tokio::test]
async fn what_the_runtime_does_not_let_a_caller_send_is_sent_for_it() {
    let cluster = Cluster::start(1).await;
    let redlock = cluster.builder().node_timeout(PROMPT).ttl(PROMPT * 6).connect().await.expect("a node");
    is_alone(&redlock).await;
    let guard = promptly(redlock.mutex("job").acquire()).await.expect("free");
    let (sender, mut busy) = mpsc::unbounded_channel();
    (0..1_000).for_each(|number| sender.send(number).expect("it is there"));
    poll_fn(|context| {
        while busy.poll_recv(context).is_ready() {}
        Poll::Ready(())
    })
    .await;
    drop(guard);
    assert!(!busy.is_empty(), "the share was used up first");
    cluster.assert_nothing_left().await;
}

/// Dropped, a guard has sent its release before anybody can ask again: past the task by one who is alone, or not, where another asks
/// now and then from another thread.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn on_several_threads_each_finds_free_what_it_has_let_go() {
    let cluster = Cluster::start(1).await;
    let redlock = cluster.builder().node_timeout(PROMPT).ttl(PROMPT * 6).connect().await.expect("a node");
    let take_and_let_go = async |mutex: &Mutex| {
        let guard = promptly(mutex.try_acquire()).await.expect("it answers");
        drop(guard.expect("it was let go before"));
    };
    let (often, seldom, client) = (redlock.mutex("often"), redlock.mutex("seldom"), redlock.clone());
    let working = tokio::spawn(async move {
        for _ in 0..300 {
            is_alone(&client).await;
            for _ in 0..3 {
                take_and_let_go(&often).await;
            }
        }
    });
    while !working.is_finished() {
        take_and_let_go(&seldom).await;
        sleep(Duration::from_millis(2)).await;
    }
    working.await.expect("no panic");
    cluster.assert_nothing_left().await;
}

/// The task of the node has long stopped to look for a silence when the release is sent past it. The holder may not be told of
/// changes here: what is asked for that purpose would end its being alone.
#[tokio::test]
async fn a_release_that_gets_lost_is_sent_again_although_nobody_asks_for_anything_else() {
    let cluster = Cluster::start_with(1, &SILENT).await;
    let server = &cluster.servers[0];
    let proxy = Proxy::before(server.port()).await;
    let node_timeout = Duration::from_millis(300);
    let redlock = over([proxy.address()]).node_timeout(node_timeout).connect().await.expect("a node");
    is_alone(&redlock).await;
    let guard = promptly(redlock.mutex("job").ttl(LONG_TTL).acquire()).await.expect("free");
    sleep(node_timeout * 4).await;
    proxy.swallow([Way::ToServer]);
    assert_ne!(promptly(guard.release()).await.outcome, ReleaseOutcome::Released);
    assert!(server.value("redlock:job").await.is_some());
    proxy.heal();
    until("it is released", async || server.value("redlock:job").await.is_none()).await;
}

#[test]
fn who_asks_when_the_runtime_of_the_node_is_gone_is_told_at_once() {
    let (elsewhere, here) = (on_one_thread(), on_one_thread());
    let (cluster, redlock) = elsewhere.block_on(async {
        let cluster = Cluster::start(1).await;
        let redlock = cluster.redlock().await;
        is_alone(&redlock).await;
        (cluster, redlock)
    });
    drop(elsewhere);
    let refused = here.block_on(promptly(redlock.mutex("job").try_acquire())).expect_err("nobody is there");
    assert!(matches!(refused, AcquireError::NoQuorum { .. }), "{refused:?}");
    assert!(format!("{refused:#}").contains("connection lost"), "{refused:#}");
    drop(cluster);
}
