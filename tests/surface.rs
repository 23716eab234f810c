//! What users type, on in-memory nodes and in paused time: every verb, every refusal, and what is left afterwards. Time
//! passes only where a test waits for it, so each of these runs in no time and always the same.
#![cfg(feature = "redis")]

use std::time::Duration;

use redlock_quorum::{
    AcquireError, Backoff, ConnectError, ExtendError, MemoryNodes, Redlock, ReleaseOutcome, Renewal, RunError,
};
use tokio::time::{Instant, sleep, timeout};

const fn ms(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

const fn secs(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

#[tokio::test(start_paused = true)]
async fn a_lock_is_held_until_it_is_released() {
    for count in 1..=7 {
        let nodes = MemoryNodes::new(count);
        let (ours, theirs) = (nodes.redlock(), nodes.redlock());
        let guard = ours.mutex("a").acquire().await.expect("free");
        assert!(guard.is_valid());
        assert_eq!(guard.remaining(), ms(9_898), "the ttl less the drift");
        assert_eq!(guard.votes().granted(), count);
        assert!(theirs.mutex("a").try_acquire().await.expect("answered").is_none());
        assert!(theirs.mutex("b").try_acquire().await.expect("answered").is_some(), "another resource");

        let release = guard.release().await;
        assert_eq!((release.outcome, release.proven), (ReleaseOutcome::Released, None));
        assert!(release.report.granted() > count / 2 && release.report.unknown() == 0, "{release}");
        nodes.assert_nothing_left();
        assert!(theirs.mutex("a").try_acquire().await.expect("answered").is_some());
        nodes.assert_nothing_left();
    }
}

#[tokio::test(start_paused = true)]
async fn a_guard_renews_itself_for_as_long_as_it_lives() {
    let nodes = MemoryNodes::new(3);
    let (ours, theirs) = (nodes.redlock(), nodes.redlock());
    let guard = ours.mutex("a").ttl(secs(1)).acquire().await.expect("free");
    for _ in 0..100 {
        sleep(ms(250)).await;
        assert!(guard.remaining() > ms(600), "two thirds less what one tick of the clock takes: {guard:?}");
        assert!(theirs.mutex("a").try_acquire().await.expect("answered").is_none());
    }
    guard.release().await.ok().expect("held until now");
    nodes.assert_nothing_left();
}

#[tokio::test(start_paused = true)]
async fn a_lock_that_is_not_renewed_is_lost_a_margin_before_its_end() {
    let nodes = MemoryNodes::new(3);
    let (ours, theirs) = (nodes.redlock(), nodes.redlock());
    let start = Instant::now();
    let guard = ours.mutex("a").ttl(secs(1)).renewal(Renewal::Never).acquire().await.expect("free");
    let watch = guard.watch();

    guard.lost().await;
    assert_eq!(start.elapsed(), ms(983), "1 s less 12 ms of drift and 5 ms of margin");
    assert!(watch.is_valid() && watch.remaining() == ms(5), "the margin is there to stop in");
    sleep(ms(5)).await;
    assert!(!guard.is_valid());
    assert!(matches!(guard.extend(secs(1)).await, Err(ExtendError::Lost)), "what is lost stays lost");
    // The keys are given back at the end of the validity, before they would expire.
    nodes.assert_nothing_left();
    let taken = theirs.mutex("a").try_acquire().await.expect("answered").expect("free again");

    let release = guard.release().await;
    assert_eq!(release.outcome, ReleaseOutcome::TakenOver);
    assert!(release.ok().is_err());
    assert!(taken.is_valid(), "a release touches nobody else's keys");
}

#[tokio::test(start_paused = true)]
async fn the_clock_ends_a_lock_even_when_nobody_listens() {
    let nodes = MemoryNodes::new(3);
    let guard = nodes.redlock().mutex("a").ttl(secs(1)).acquire().await.expect("free");
    // The whole process stands still for longer than the ttl: no timer runs, and then all of them at once.
    tokio::time::advance(secs(5)).await;
    assert!(!guard.is_valid(), "known before anything else has run");
    timeout(Duration::ZERO, guard.lost()).await.expect("known at once");
    assert!(guard.within(ms(1)).is_err());
}

#[tokio::test(start_paused = true)]
async fn keys_that_an_operator_deletes_are_a_loss_at_the_next_renewal() {
    let nodes = MemoryNodes::new(5);
    let guard = nodes.redlock().mutex("a").ttl(secs(9)).acquire().await.expect("free");
    nodes.lose("a");
    timeout(secs(3), guard.lost()).await.expect("at the next renewal, within a third of the ttl");
    assert!(!guard.is_valid(), "at once, not only when the ttl is over");
    nodes.assert_nothing_left();
}

#[tokio::test(start_paused = true)]
async fn a_minority_may_be_gone_and_come_back() {
    let nodes = MemoryNodes::new(5);
    let redlock = nodes.redlock();
    nodes.stop(0);
    nodes.stop(3);
    let guard = redlock.mutex("a").ttl(secs(1)).acquire().await.expect("three of five");
    assert_eq!((guard.votes().granted(), guard.votes().unknown()), (3, 2));
    nodes.start(0);
    sleep(secs(1)).await;
    nodes.stop(1);
    sleep(secs(5)).await;
    assert!(guard.is_valid(), "the node that came back took the key, and counts for the one that went");
    guard.release().await.ok().expect("held until now");
    nodes.start(1);
    nodes.start(3);
    nodes.assert_nothing_left();
}

#[tokio::test(start_paused = true)]
async fn without_a_majority_nothing_is_acquired_and_nothing_stays() {
    let nodes = MemoryNodes::new(4);
    nodes.stop(1);
    nodes.stop(2);
    let mutex = nodes.redlock().mutex("a").wait(secs(3));
    let start = Instant::now();
    let error = mutex.acquire().await.expect_err("two of four are no majority");
    assert!(matches!(error, AcquireError::NoQuorum(_)), "{error}");
    assert_eq!(start.elapsed(), secs(3), "the wait, exactly");
    let expected = "no majority of the nodes answered; 4 nodes: 2 granted, 2 not connected (majority 3)";
    assert_eq!(error.to_string(), expected);
    assert!(format!("{error:#}").contains("memory-1  not connected"), "{error:#}");

    let error = mutex.try_acquire().await.expect_err("two of four are no majority");
    assert!(matches!(error, AcquireError::NoQuorum(_)), "{error}");
    nodes.assert_nothing_left();
}

#[tokio::test(start_paused = true)]
async fn who_holds_is_named() {
    let nodes = MemoryNodes::new(3);
    let ours = nodes.builder().holder("worker-1").connect().await.expect("good settings");
    let theirs = nodes.builder().holder("worker-2").connect().await.expect("good settings");
    let guard = ours.mutex("a").metadata("nightly: 7").acquire().await.expect("free");

    let seen = theirs.mutex("a").inspect().await.expect("answered");
    assert!(seen.by_majority());
    assert_eq!((seen.holder(), seen.metadata()), (Some("worker-1"), Some("nightly: 7")));
    assert_eq!(seen.expires_in(), Some(secs(10)));
    assert_eq!(seen.to_string(), "held by worker-1; 3 nodes: 3 holding a key (majority 2)");

    let error = theirs.mutex("a").wait(secs(2)).acquire().await.expect_err("held");
    let AcquireError::Held(held) = &error else { panic!("{error}") };
    assert_eq!(
        (held.holder(), held.metadata(), held.is_local()),
        (Some("worker-1"), Some("nightly: 7"), false)
    );
    assert!(error.to_string().starts_with("held by worker-1; 3 nodes: 3 held by another"), "{error}");

    let error = ours.mutex("a").wait(secs(2)).acquire().await.expect_err("held by itself");
    let AcquireError::Held(held) = &error else { panic!("{error}") };
    assert!(held.is_local() && held.report().is_none(), "found without asking the nodes");
    assert!(ours.mutex("a").try_acquire().await.expect("no error").is_none());

    drop(guard);
    let seen = theirs.mutex("a").inspect().await.expect("answered");
    assert_eq!((seen.by_majority(), seen.holder()), (false, None));
    assert_eq!(seen.to_string(), "free; 3 nodes: 3 free (majority 2)");
}

#[tokio::test(start_paused = true)]
async fn who_waits_gets_it_when_it_is_free() {
    let nodes = MemoryNodes::new(3);
    let (ours, theirs) = (nodes.redlock(), nodes.redlock());
    let guard = ours.mutex("a").acquire().await.expect("free");
    let waiting =
        tokio::spawn(async move { theirs.mutex("a").backoff(Backoff::exponential(ms(1), ms(50))).await });
    sleep(secs(5)).await;
    assert!(!waiting.is_finished());
    drop(guard);
    let guard = timeout(ms(60), waiting).await.expect("within one rest").expect("no panic").expect("free");
    drop(guard);

    // A holder that never releases is waited for until its keys run out, not until the next rest is over.
    nodes.hold("a", secs(20));
    let start = Instant::now();
    let guard =
        ours.mutex("a").backoff(Backoff::exponential(secs(1), secs(300))).await.expect("free after 20 s");
    assert!(start.elapsed() >= secs(20) && start.elapsed() <= secs(21), "{:?}", start.elapsed());
    drop(guard);
    nodes.assert_nothing_left();
}

#[tokio::test(start_paused = true)]
async fn callers_of_one_redlock_take_turns() {
    let nodes = MemoryNodes::new(3);
    let redlock = nodes.redlock();
    let guard = redlock.mutex("a").acquire().await.expect("free");
    let (order, mut taken) = tokio::sync::mpsc::unbounded_channel();
    for number in 0..5 {
        let (redlock, order) = (redlock.clone(), order.clone());
        tokio::spawn(async move {
            let guard = redlock.mutex("a").acquire().await.expect("its turn");
            order.send(number).expect("somebody listens");
            drop(guard);
        });
        tokio::task::yield_now().await;
    }
    drop((guard, order));
    let mut seen = Vec::new();
    while let Some(number) = taken.recv().await {
        seen.push(number);
    }
    assert_eq!(seen, [0, 1, 2, 3, 4]);
    nodes.assert_nothing_left();
}

#[tokio::test(start_paused = true)]
async fn work_is_run_under_the_lock_and_dropped_with_it() {
    let nodes = MemoryNodes::new(3);
    let (ours, theirs) = (nodes.redlock(), nodes.redlock());
    let mutex = ours.mutex("a").ttl(secs(1));
    let done = mutex.run(async |guard| {
        sleep(secs(5)).await;
        guard.is_valid() && theirs.mutex("a").try_run(async |_| ()).await.expect("answered").is_none()
    });
    assert!(done.await.expect("run"), "renewed over five ttls, and excluding others");
    nodes.assert_nothing_left();

    let mut went_on = false;
    let lost = mutex.run(async |_| {
        nodes.lose("a");
        sleep(secs(5)).await;
        went_on = true;
    });
    assert!(matches!(lost.await, Err(RunError::Lost)));
    assert!(!went_on, "dropped where it stood");
    nodes.assert_nothing_left();

    nodes.hold("a", secs(60));
    assert_eq!(mutex.try_run(async |_| 1).await.expect("answered"), None);
    let held = mutex.wait(ms(10)).run(async |_| 1).await;
    assert!(matches!(held, Err(RunError::Acquire(AcquireError::Held(_)))));
}

#[tokio::test(start_paused = true)]
async fn work_that_ends_after_the_lock_is_no_success() {
    let nodes = MemoryNodes::new(3);
    let mutex = nodes.redlock().mutex("a").ttl(secs(1));
    // Blocking code keeps the runtime from noticing the loss, and then is done.
    let done = mutex.run(async |_| tokio::time::advance(secs(5)).await).await;
    assert!(matches!(done, Err(RunError::Lost)), "{done:?}");
}

#[tokio::test(start_paused = true)]
async fn an_extension_is_never_shorter_and_is_bounded_by_the_max_ttl() {
    let nodes = MemoryNodes::new(3);
    let redlock = nodes.builder().max_ttl(secs(60)).connect().await.expect("good settings");
    let guard = redlock.mutex("a").acquire().await.expect("free");
    guard.extend(secs(1)).await.expect("answered");
    assert_eq!(guard.remaining(), ms(9_898));
    guard.extend(secs(60)).await.expect("answered");
    assert_eq!(guard.remaining(), ms(59_398));

    let error = guard.extend(secs(61)).await.expect_err("above the max_ttl");
    assert_eq!(error.to_string(), "ttl is 61s, but must be at most the max_ttl of 60s");
    nodes.stop(0);
    nodes.stop(1);
    let error = guard.extend(secs(60)).await.expect_err("no majority");
    assert!(matches!(error, ExtendError::NoQuorum(_)), "{error}");
    assert_eq!(guard.remaining(), ms(59_398), "the old lease stands");

    let bounded = redlock.mutex("b").hold_at_most(secs(3)).acquire().await;
    assert!(matches!(bounded, Err(AcquireError::NoQuorum(_))), "two of three are stopped");
    nodes.start(0);
    nodes.start(1);
    let start = Instant::now();
    let bounded = redlock.mutex("b").hold_at_most(secs(3)).acquire().await.expect("free");
    bounded.lost().await;
    assert_eq!(start.elapsed(), ms(2_995));
}

#[tokio::test(start_paused = true)]
async fn a_shutdown_closes_waits_and_takes_away() {
    let nodes = MemoryNodes::new(3);
    let redlock = nodes.redlock();
    let (short, long) =
        (redlock.mutex("short").await.expect("free"), redlock.mutex("long").await.expect("free"));
    let waiting = tokio::spawn(redlock.mutex("long").into_future());
    nodes.hold("other", secs(100));
    let competing = tokio::spawn(redlock.mutex("other").into_future());
    let ending = tokio::spawn({
        let redlock = redlock.clone();
        async move { redlock.shutdown(secs(2)).await }
    });
    tokio::task::yield_now().await;
    for call in [waiting, competing] {
        assert!(matches!(call.await.expect("no panic"), Err(AcquireError::Closed)));
    }
    assert!(matches!(redlock.mutex("new").acquire().await, Err(AcquireError::Closed)));
    assert!(matches!(redlock.mutex("new").try_acquire().await, Err(AcquireError::Closed)));
    sleep(secs(1)).await;
    assert!(short.is_valid() && long.is_valid(), "guards are waited for");
    drop(short);

    let start = Instant::now();
    let end = ending.await.expect("no panic");
    assert_eq!(start.elapsed(), secs(1));
    let taken: Vec<_> = end.taken_away().collect();
    assert_eq!(taken, [(&b"redlock:long"[..], ReleaseOutcome::Released)]);
    assert!(!long.is_valid());
    timeout(ms(1), long.lost()).await.expect("lost to its holder");
    nodes.lose("other");
    nodes.assert_nothing_left();
}

#[tokio::test(start_paused = true)]
async fn a_future_dropped_at_any_poll_leaves_nothing() {
    // Contended, so that the whole life of an attempt is passed through: split, look, rest, retry.
    for polls in 0..40 {
        let nodes = MemoryNodes::new(3);
        let redlock = nodes.redlock();
        nodes.hold("a", ms(35));
        let mutex = redlock.mutex("a").backoff(Backoff::exponential(ms(1), ms(10)));
        let mut future = Box::pin(mutex.acquire());
        for _ in 0..polls {
            if futures::poll!(&mut future).is_ready() {
                break;
            }
            sleep(ms(1)).await;
        }
        drop(future);
        nodes.lose("a");
        nodes.assert_nothing_left();
        assert!(redlock.mutex("a").try_acquire().await.expect("answered").is_some(), "after {polls} polls");
    }
}

#[tokio::test(start_paused = true)]
async fn a_guard_may_be_dropped_anywhere() {
    let nodes = MemoryNodes::new(3);
    let redlock = nodes.redlock();
    let guard = redlock.mutex("a").acquire().await.expect("free");
    std::thread::spawn(move || drop(guard)).join().expect("no panic outside of the runtime");
    nodes.assert_nothing_left();

    let guard = redlock.mutex("a").acquire().await.expect("free");
    let panicked = tokio::spawn(async move {
        let _guard = guard;
        panic!("on purpose");
    });
    assert!(panicked.await.is_err());
    nodes.assert_nothing_left();
}

#[test]
fn a_guard_outlives_its_runtime_without_harm() {
    let nodes = MemoryNodes::new(3);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let guard = runtime.block_on(async { nodes.redlock().mutex("a").acquire().await.expect("free") });
    drop(runtime);
    drop(guard);
    nodes.assert_nothing_left();
    assert!(matches!(nodes.builder().connect_lazy(), Err(ConnectError::NoRuntime)));
}

#[tokio::test(start_paused = true)]
async fn namespaces_have_nothing_to_do_with_each_other() {
    let nodes = MemoryNodes::new(1);
    let redlock = nodes.redlock();
    let _one = redlock.mutex("a").await.expect("free");
    let _two = redlock.namespace("billing").mutex("a").await.expect("another namespace");
    let _three = redlock.namespace("").mutex("a").await.expect("the bare resource");
    assert_eq!(nodes.keys(0), ["a", "billing:a", "redlock:a"]);
}

#[tokio::test(start_paused = true)]
async fn bad_input_is_refused_with_field_value_and_bound() {
    let redlock = MemoryNodes::new(3).redlock();
    let mutex = || redlock.mutex("a");
    for (mutex, message) in [
        (redlock.mutex(""), "resource is \"\", but must be at least 1 byte"),
        (redlock.mutex(vec![0; 65_537]), "resource is \"65537 bytes\", but must be at most 65536 bytes"),
        (mutex().ttl(Duration::from_micros(10)), "ttl is 10µs, but must be at least 1ms"),
        (mutex().ttl(ms(7)), "ttl is 7ms, but must be above drift plus margin, 7.07ms"),
        (mutex().ttl(secs(11)), "ttl is 11s, but must be at most the max_ttl of 10s"),
        (
            mutex().wait(Duration::ZERO),
            "wait is 0ns, but must be above zero; to ask without waiting, use try_acquire",
        ),
        (
            mutex().backoff(Backoff::exponential(Duration::ZERO, secs(1))),
            "backoff is 0ns, but must be above zero",
        ),
        (mutex().metadata("x".repeat(600)), "metadata is"),
        (redlock.namespace("a#b").mutex("a"), "namespace is \"a#b\", but must be without '#'"),
    ] {
        let error = mutex.acquire().await.expect_err("refused");
        assert!(matches!(error, AcquireError::Settings(_)), "{error}");
        assert!(error.to_string().starts_with(message), "{error}");
    }
    for (builder, message) in [
        (Redlock::builder(), "nodes is \"\", but must be at least 1 node"),
        (Redlock::builder().nodes(["a", "b", "A:6379"]), "nodes is \"A:6379\", but must be named once"),
        (
            Redlock::builder().nodes(["redis://u:secret@a:b"]),
            "nodes is \"redis://u:***@a:***\", but must be host",
        ),
        (Redlock::builder().nodes(["a"]).namespace("#"), "namespace is \"#\", but must be without '#'"),
        (Redlock::builder().nodes(["a"]).holder("a:b"), "holder is \"a:b\", but must be without ':'"),
        (
            Redlock::builder().nodes(["a"]).ttl(ms(1)),
            "ttl is 1ms, but must be above drift plus margin, 7.01ms",
        ),
        (
            Redlock::builder().nodes(["a"]).ttl(secs(5)).max_ttl(secs(4)),
            "ttl is 5s, but must be at most the max_ttl of 4s",
        ),
        (
            Redlock::builder().nodes(["a"]).connect_timeout(Duration::ZERO),
            "connect_timeout is 0ns, but must be above zero and at most 3600s",
        ),
        (
            Redlock::builder().nodes(["a"]).connect_timeout(secs(3_601)),
            "connect_timeout is 3601s, but must be above zero and at most 3600s",
        ),
    ] {
        let error = builder.connect().await.expect_err("refused");
        assert!(matches!(error, ConnectError::Settings(_)), "{error}");
        assert!(error.to_string().starts_with(message), "{error}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_quick_run_excludes_others_for_as_long_as_it_was_asked_to() {
    let nodes = MemoryNodes::new(3);
    let (ours, theirs) = (nodes.redlock(), nodes.redlock());
    let mutex = ours.mutex("nightly").hold_at_least(secs(5));
    let start = Instant::now();
    mutex.run(async |_| sleep(secs(1)).await).await.expect("free");
    assert!(ours.mutex("nightly").try_acquire().await.expect("answered").is_none());
    let guard = theirs.mutex("nightly").acquire().await.expect("free in the end");
    assert!(start.elapsed() >= secs(5) && start.elapsed() < secs(6), "{:?}", start.elapsed());
    drop(guard);
    nodes.assert_nothing_left();

    let guard = mutex.acquire().await.expect("free");
    sleep(secs(6)).await;
    guard.release().await.ok().expect("held until now");
    nodes.assert_nothing_left();
}

#[tokio::test(start_paused = true)]
async fn an_operator_takes_a_lock_away_and_learns_whose_it_was() {
    let nodes = MemoryNodes::new(3);
    let theirs = nodes.builder().holder("worker-2").connect().await.expect("good settings");
    let guard = theirs.mutex("a").metadata("hung").acquire().await.expect("free");
    let watch = guard.watch();
    watch.check().expect("held");

    let was = nodes.redlock().mutex("a").force_release().await.expect("answered");
    assert_eq!((was.by_majority(), was.holder(), was.metadata()), (true, Some("worker-2"), Some("hung")));
    assert_eq!(was.to_string(), "held by worker-2; 3 nodes: 3 freed by force (majority 2)");
    nodes.assert_nothing_left();
    guard.lost().await;
    let error = watch.check().expect_err("lost");
    assert!(error.remaining.is_zero());
    nodes.assert_nothing_left();

    let was = nodes.redlock().mutex("a").force_release().await.expect("answered");
    assert_eq!((was.by_majority(), was.holder()), (false, None));
    nodes.stop(0);
    nodes.stop(1);
    assert!(nodes.redlock().mutex("a").force_release().await.is_err());
}

#[tokio::test(start_paused = true)]
async fn the_backoff_may_give_up_before_the_wait_is_over() {
    let nodes = MemoryNodes::new(3);
    nodes.hold("a", secs(100));
    let redlock = nodes.redlock();
    let start = Instant::now();
    let thrice = redlock.mutex("a").backoff(Backoff::custom(|_| Some(secs(1))).attempts(3)).acquire().await;
    assert!(matches!(thrice, Err(AcquireError::Held(_))));
    assert_eq!(start.elapsed(), secs(2), "two rests between three attempts");
    let twice = redlock
        .mutex("a")
        .backoff(Backoff::custom(|failures| (failures < 2).then_some(secs(1))))
        .acquire()
        .await;
    assert!(matches!(twice, Err(AcquireError::Held(_))));
    assert_eq!(start.elapsed(), secs(3));
}

#[tokio::test(start_paused = true)]
async fn a_mutex_may_be_used_again_and_changed_between() {
    let nodes = MemoryNodes::new(3);
    // A ttl that is no whole number of milliseconds is rounded down, also where it is the bound.
    let redlock =
        nodes.builder().ttl(Duration::from_micros(2_000_500)).connect().await.expect("good settings");
    let mutex = redlock.mutex("a");
    for mutex in [mutex.clone(), mutex.clone(), mutex.backoff(Backoff::DEFAULT)] {
        let guard = mutex.acquire().await.expect("free");
        assert_eq!(guard.remaining(), ms(1_978));
        drop(guard);
        let guard = mutex.clone().ttl(secs(1)).metadata("changed").acquire().await.expect("free");
        assert_eq!(guard.remaining(), ms(988));
        assert_eq!(mutex.inspect().await.expect("answered").metadata(), Some("changed"));
        drop(guard);
    }
}

/// A race, and so a matter of many tries: without the look at the end of an acquisition some guards in every thousand
/// rounds were handed out after the shutdown, and without the wait for those that are turned away some keys stood.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_escapes_a_shutdown() {
    for round in 0..10_000 {
        let nodes = MemoryNodes::new(3);
        let redlock = nodes.redlock();
        let calls: Vec<_> =
            (0..4).map(|number| tokio::spawn(redlock.mutex(format!("{number}")).into_future())).collect();
        for _ in 0..round % 200 {
            std::hint::spin_loop();
        }
        redlock.shutdown(Duration::ZERO).await;
        nodes.assert_nothing_left();
        for call in calls {
            if let Ok(guard) = call.await.expect("no panic") {
                assert!(!guard.is_valid(), "round {round}: {guard:?}");
            }
        }
        nodes.assert_nothing_left();
    }
}

/// A claim that is moved in the keeper's heap must not be out of sight in between.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_shutdown_sees_every_guard() {
    for round in 0..50 {
        let nodes = MemoryNodes::new(3);
        let redlock = nodes.builder().ttl(ms(500)).connect().await.expect("good settings");
        let mut tasks = Vec::new();
        for number in 0..4 {
            let mutex = redlock.mutex(format!("{number}")).renewal(Renewal::Every(ms(1)));
            let guard = mutex.acquire().await.expect("free");
            tasks.push(tokio::spawn(async move {
                while guard.extend(ms(400)).await.is_ok() {
                    tokio::task::yield_now().await;
                }
                guard
            }));
        }
        let taken = redlock.shutdown(ms(5)).await.taken_away().count();
        assert_eq!(taken, 4, "round {round}");
        for task in tasks {
            assert!(!task.await.expect("no panic").is_valid(), "round {round}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_panic_in_a_custom_backoff_stays_where_it_is() {
    let nodes = MemoryNodes::new(3);
    let redlock = nodes.redlock();
    nodes.hold("a", secs(100));
    let mutex = redlock.mutex("a").backoff(Backoff::custom(|_| panic!("on purpose")));
    assert!(matches!(mutex.acquire().await, Err(AcquireError::Held(_))));
    nodes.lose("a");
    assert!(redlock.mutex("a").try_acquire().await.expect("answered").is_some());
    nodes.assert_nothing_left();
}

#[tokio::test(start_paused = true)]
async fn an_extension_that_can_bring_nothing_says_so() {
    let nodes = MemoryNodes::new(3);
    let guard = nodes.redlock().mutex("a").hold_at_most(secs(9)).acquire().await.expect("free");
    sleep(secs(8)).await;
    assert!(matches!(guard.extend(secs(10)).await, Err(ExtendError::Capped)));
    assert_eq!(guard.remaining(), secs(1));
}

#[tokio::test(start_paused = true)]
async fn nodes_that_were_not_asked_are_not_blamed() {
    let nodes = MemoryNodes::new(3);
    let redlock = nodes.redlock();
    let guard = redlock.mutex("a").acquire().await.expect("free");
    let mutex = redlock.mutex("a").wait(ms(100));
    let mut waiting = Box::pin(mutex.acquire());
    assert!(futures::poll!(&mut waiting).is_pending());
    drop(guard);
    // Its turn comes while it is not polled, and then its wait is over.
    sleep(ms(200)).await;
    let error = waiting.await.expect_err("the wait is over");
    assert!(matches!(error, AcquireError::Held(_)), "{error}");
}

#[tokio::test(start_paused = true)]
async fn a_release_that_lingers_is_owed_to_nodes_that_are_away() {
    let nodes = MemoryNodes::new(3);
    let hours = nodes.builder().ttl(secs(3_600)).connect().await.expect("good settings");
    for (away, free_after) in [(secs(0), secs(5)), (secs(3), secs(5)), (secs(7), secs(7))] {
        let start = Instant::now();
        let guard = hours.mutex("nightly").hold_at_least(secs(5)).acquire().await.expect("free");
        (0..3).for_each(|node| nodes.stop(node));
        let _ = guard.release().await;
        sleep(away).await;
        (0..3).for_each(|node| nodes.start(node));
        let theirs = nodes.redlock().mutex("nightly").acquire().await.expect("long before the hour is over");
        let waited = start.elapsed();
        assert!(waited >= free_after && waited < free_after + secs(2), "away for {away:?}: {waited:?}");
        drop(theirs);
    }
}

#[tokio::test(start_paused = true)]
async fn a_lock_that_its_caller_sees_too_late_is_given_back() {
    let nodes = MemoryNodes::new(3);
    (0..3).for_each(|node| nodes.delay(node, ms(1)));
    let redlock = nodes.redlock();
    let mutex = redlock.mutex("a").ttl(ms(100));
    // Also where no more than the margin is left of the validity, which is over after 97 ms.
    for late in [94, 200] {
        let mut attempt = Box::pin(mutex.acquire());
        assert!(futures::poll!(&mut attempt).is_pending());
        // The nodes grant, and whoever asked is kept from looking.
        sleep(ms(late)).await;
        let error = attempt.await.expect_err("its validity is over");
        assert!(matches!(error, AcquireError::TooLate(_)), "{late} ms: {error}");
        // As long as the releases take; what was not released would stand until 101 ms.
        sleep(ms(2)).await;
        nodes.assert_nothing_left();
    }
}

/// Each verb is polled once, and then kept from looking until the validity is over, though the nodes said yes in time.
#[tokio::test(start_paused = true)]
async fn every_verb_that_returns_too_late_says_so() {
    async fn seen_late<T>(verb: impl Future<Output = T>) -> T {
        let mut verb = std::pin::pin!(verb);
        assert!(futures::poll!(&mut verb).is_pending());
        sleep(ms(200)).await;
        verb.await
    }
    let nodes = MemoryNodes::new(3);
    (0..3).for_each(|node| nodes.delay(node, ms(1)));
    let redlock = nodes.redlock();
    let mutex = redlock.mutex("a").ttl(ms(100)).renewal(Renewal::Never);

    let acquired = seen_late(mutex.acquire()).await;
    assert!(matches!(acquired, Err(AcquireError::TooLate(_))), "{acquired:?}");
    let tried = seen_late(mutex.try_acquire()).await;
    assert!(matches!(tried, Err(AcquireError::TooLate(_))), "{tried:?}");
    let run = seen_late(mutex.run(async |_| panic!("without the lock"))).await;
    assert!(matches!(run, Err(RunError::Acquire(AcquireError::TooLate(_)))), "{run:?}");
    let run = seen_late(mutex.try_run(async |_| panic!("without the lock"))).await;
    assert!(matches!(run, Err(RunError::Acquire(AcquireError::TooLate(_)))), "{run:?}");

    let guard = mutex.acquire().await.expect("free");
    let extended = seen_late(guard.extend(ms(100))).await;
    assert!(matches!(extended, Err(ExtendError::TooLate)), "{extended:?}");
    let extended = guard.extend(ms(100)).await;
    assert!(matches!(extended, Err(ExtendError::Lost)), "{extended:?}");
    assert_eq!(guard.release().await.outcome, ReleaseOutcome::Expired);
    nodes.assert_nothing_left();
}

#[tokio::test(start_paused = true)]
async fn a_bound_on_the_hold_caps_every_lease() {
    let nodes = MemoryNodes::new(3);
    let redlock = nodes.redlock();
    let short = redlock.mutex("short").hold_at_most(secs(4)).acquire().await.expect("free");
    assert_eq!(short.remaining(), secs(4), "the first lease is capped as well");

    let start = Instant::now();
    let guard = redlock.mutex("a").hold_at_most(secs(15)).renewal(Renewal::Never).acquire().await;
    let guard = guard.expect("free");
    for (at, extended, remaining) in [
        (secs(2), true, secs(10) - ms(102)),
        (secs(7), true, secs(8)),
        (secs(8), false, secs(7)),
        (secs(14), false, secs(1)),
    ] {
        tokio::time::sleep_until(start + at).await;
        assert_eq!(guard.extend(secs(10)).await.is_ok(), extended, "at {at:?}");
        assert_eq!(guard.remaining(), remaining, "at {at:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_guard_that_is_forgotten_ends_where_nothing_renews_it() {
    let nodes = MemoryNodes::new(3);
    let (ours, theirs) = (nodes.redlock(), nodes.redlock());
    let unrenewed = ours.mutex("a").ttl(secs(2)).renewal(Renewal::Never);
    std::mem::forget(unrenewed.acquire().await.expect("free"));
    let bounded = ours.mutex("b").ttl(secs(1)).hold_at_most(secs(5));
    std::mem::forget(bounded.acquire().await.expect("free"));

    sleep(secs(2)).await;
    assert!(theirs.mutex("a").try_acquire().await.expect("answered").is_some(), "its ttl is over");
    assert!(theirs.mutex("b").try_acquire().await.expect("answered").is_none(), "renewed until its bound");
    // And a moment for the keeper, who wakes at the same moment as this test would.
    sleep(secs(3) + ms(1)).await;
    assert!(theirs.mutex("b").try_acquire().await.expect("answered").is_some(), "its bound is reached");
    nodes.assert_nothing_left();
}

/// In real time, because the runtime of the nodes stands still here: the keeper that lives on it cannot tell the guard.
#[test]
fn the_loss_is_told_by_a_timer_of_the_guards_own() {
    let runtime = || tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let (standing_still, running) = (runtime(), runtime());
    let nodes = MemoryNodes::new(3);
    let guard = standing_still.block_on(async {
        nodes.redlock().mutex("a").ttl(ms(200)).renewal(Renewal::Never).acquire().await.expect("free")
    });
    running.block_on(async {
        timeout(secs(5), guard.lost()).await.expect("told without the keeper");
        let watch = guard.watch();
        timeout(secs(5), watch.lost()).await.expect("told without the keeper");
    });
    assert!(guard.remaining() <= ms(5), "not before the margin: {guard:?}");
}
