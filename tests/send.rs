//! What must be spawned can be spawned: every future of the surface is `Send`, and so are the values that one sends to
//! other tasks. That this compiles is the test; that it runs shows that it does what it says.

use std::ops::ControlFlow;
use std::time::Duration;

use redlock_quorum::{
    Election, ElectionStatus, Guard, Leader, Leadership, MemoryNodes, Mutex, Observer, Redlock, Watch,
};

fn is_send<T: Send>(value: T) -> T {
    value
}

fn goes_anywhere<T: Send + Sync + 'static>() {}

#[tokio::test]
async fn every_verb_can_be_spawned() {
    goes_anywhere::<Redlock>();
    goes_anywhere::<Mutex>();
    goes_anywhere::<Guard>();
    goes_anywhere::<Watch>();
    goes_anywhere::<MemoryNodes>();

    let nodes = MemoryNodes::new(3);
    let redlock = nodes.redlock();
    let task = tokio::spawn(async move {
        let mutex = redlock.mutex("a");
        let guard = is_send(mutex.acquire()).await.expect("free");
        assert!(is_send(mutex.try_acquire()).await.expect("answered").is_none());
        is_send(guard.extend(Duration::from_secs(10))).await.expect("held");
        is_send(mutex.inspect()).await.expect("answered");
        let watch = guard.watch();
        let watching = tokio::spawn(async move { watch.lost().await });
        is_send(guard.release()).await.ok().expect("held");
        watching.await.expect("no panic");
        assert_eq!(is_send(redlock.diagnose()).await.voting(), 3);
        is_send(mutex.force_release()).await.expect("answered");
        let guard = is_send(mutex.clone().into_future()).await.expect("free");
        drop(guard);
        is_send(redlock.shutdown(Duration::from_secs(1))).await;
    });
    task.await.expect("no panic");
}

#[tokio::test]
async fn work_under_a_lock_can_be_spawned() {
    let redlock = MemoryNodes::new(3).redlock();
    let task = tokio::spawn(async move {
        let borrowed = String::from("what the work borrows");
        let mutex = redlock.mutex("a");
        let length = mutex
            .run(async |guard| {
                tokio::task::yield_now().await;
                assert!(guard.is_valid());
                borrowed.len()
            })
            .await;
        let tried = mutex.try_run(async |_| borrowed.len()).await;
        (length.expect("run"), tried.expect("answered"))
    });
    assert_eq!(task.await.expect("no panic"), (21, Some(21)));
}

#[tokio::test]
async fn elections_can_be_spawned() {
    goes_anywhere::<Election>();
    goes_anywhere::<Leadership>();
    goes_anywhere::<Observer>();
    goes_anywhere::<Leader>();
    goes_anywhere::<ElectionStatus>();

    let redlock = MemoryNodes::new(3).redlock();
    let task = tokio::spawn(async move {
        let election = redlock.election("a");
        let mut observer = election.observe().expect("settings that fit");
        assert!(is_send(observer.next()).await.is_none());
        let leadership = is_send(election.campaign()).await.expect("elected");
        is_send(leadership.proclaim("here")).await.expect("leads");
        assert!(is_send(election.leader()).await.expect("answered").is_some());
        let watch = leadership.watch();
        let watching = tokio::spawn(async move { watch.lost().await });
        is_send(leadership.resign()).await.ok().expect("led");
        watching.await.expect("no panic");
        let work = async |_leadership: Leadership| {
            tokio::task::yield_now().await;
            ControlFlow::Break(7)
        };
        is_send(election.run(work)).await.expect("led")
    });
    assert_eq!(task.await.expect("no panic"), 7);
}

async fn generic<F: Future<Output = u32> + Send>(
    redlock: Redlock,
    work: impl Fn() -> F + Send + Sync,
) -> u32 {
    redlock.mutex("a").run(async |_| work().await).await.expect("run")
}

#[tokio::test]
async fn generic_work_can_be_spawned() {
    let redlock = MemoryNodes::new(3).redlock();
    assert_eq!(tokio::spawn(generic(redlock, || async { 7 })).await.expect("no panic"), 7);
}
