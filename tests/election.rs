//! Elections: who leads, who is told what when, and for how long nobody leads. First on nodes in memory and in paused time, where
//! each moment is exact; then on real servers with faults.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

use redlock_quorum::{
    CampaignError, Election, Fence, Leadership, MemoryNodes, Partition, ProclaimError, Redlock,
    ReleaseOutcome, Role,
};
use tokio::time::{Instant, sleep, timeout};

const fn ms(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

const fn secs(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

const LEASE: Duration = secs(10);

/// After so long a leader is told that is cut off: two thirds of the lease, in whole nanoseconds.
const RENEW_DEADLINE: Duration = Duration::from_nanos(6_666_666_666);

fn candidate(redlock: &Redlock, name: &str) -> Election {
    redlock.election("job").candidate(name)
}

/// Somebody who only looks on.
fn looking(redlock: &Redlock) -> Election {
    redlock.election("job")
}

async fn elected(election: &Election) -> Leadership {
    election.campaign().await.expect("waits as long as it takes")
}

/// Lets everybody else run, until nothing is left to do at this moment.
async fn all_run() {
    for _ in 0..200 {
        tokio::task::yield_now().await;
    }
}

/// Nothing that a leader renews comes through any more.
fn cut_off(nodes: &MemoryNodes, client: &Redlock) {
    nodes.partition(client, 0..3, Partition::CommandsLost);
}

#[tokio::test]
async fn settings_that_do_not_fit_are_refused_with_field_value_and_bound() {
    let nodes = MemoryNodes::new(3);
    let election = || nodes.redlock().election("job").lease(LEASE);
    for (election, message) in [
        (
            election().lease(secs(11)),
            "lease is 11s, but must be above drift plus margin, 117ms, and at most the max_ttl of 10s",
        ),
        (
            election().lease(ms(7)),
            "lease is 7ms, but must be above drift plus margin, 7.07ms, and at most the max_ttl of 10s",
        ),
        (
            election().renew_deadline(ms(9_894)),
            "renew_deadline is 9.894s, but must be above the node_timeout of 200ms and at most 9.893s: the lease less drift and margin",
        ),
        (
            election().renew_deadline(ms(200)),
            "renew_deadline is 200ms, but must be above the node_timeout of 200ms and at most 9.893s: the lease less drift and margin",
        ),
        (
            election().renew_deadline(secs(5)).retry(ms(4_801)),
            "retry is 4.801s, but must be at least 1ms and at most 4.8s: the renew_deadline less the node_timeout",
        ),
        (
            election().retry(ms(0)),
            "retry is 0ns, but must be at least 1ms and at most 6.466666666s: the renew_deadline less the node_timeout",
        ),
        (election().look_every(Duration::from_micros(999)), "look_every is 999µs, but must be at least 1ms"),
        (
            election().candidate("a:b"),
            "holder is \"a:b\", but must be without ':', which separates it from the metadata",
        ),
        (nodes.redlock().election(""), "resource is \"\", but must be at least 1 byte"),
    ] {
        match election.campaign().await {
            Err(CampaignError::Settings(error)) => assert_eq!(error.to_string(), message),
            other => panic!("{message}: {other:?}"),
        }
        assert_eq!(election.observe().expect_err("refused").to_string(), message);
    }
    for (lease, deadline, retry) in
        [(LEASE, ms(9_893), ms(9_693)), (ms(30), ms(20), ms(1)), (secs(1), ms(700), ms(500))]
    {
        let fits = election().lease(lease).renew_deadline(deadline).retry(retry);
        elected(&fits).await.resign().await.ok().expect("led until now");
    }
    for lease in [ms(12), ms(20), ms(100), secs(1), LEASE] {
        let fits = election().lease(lease);
        assert!(fits.observe().is_ok(), "the defaults for {lease:?}: {:?}", fits.observe());
    }
}

#[tokio::test(start_paused = true)]
async fn a_leader_that_is_cut_off_is_told_at_the_renew_deadline_and_the_next_is_elected_at_the_end_of_the_lease()
 {
    let nodes = MemoryNodes::new(3);
    let (ours, theirs) = (nodes.redlock(), nodes.redlock());
    let leadership = elected(&candidate(&ours, "a")).await;
    let term = leadership.term();
    let next = tokio::spawn(async move {
        let next = elected(&candidate(&theirs, "b")).await;
        (Instant::now(), next)
    });
    // Renewed every two seconds; the last time right now.
    sleep(secs(6)).await;
    all_run().await;
    let renewed = Instant::now();
    cut_off(&nodes, &ours);
    let watch = leadership.watch();
    assert_eq!(leadership.remaining(), RENEW_DEADLINE);
    sleep(RENEW_DEADLINE - ms(1)).await;
    assert!(leadership.is_leader() && watch.is_valid());
    leadership.lost().await;
    assert!(renewed.elapsed() - RENEW_DEADLINE <= ms(1), "told after {:?}", renewed.elapsed());
    assert!(!leadership.is_leader() && !watch.is_valid() && leadership.remaining().is_zero());

    let (elected_at, next) = next.await.expect("no panic");
    let gap = elected_at - renewed;
    assert!(gap >= LEASE && gap < LEASE + secs(1), "elected {gap:?} after the last renewal");
    assert!(next.term() > term && next.is_leader() && !leadership.is_leader());
    assert!(matches!(leadership.proclaim("still here").await, Err(ProclaimError::Lost)));
    nodes.reconnect(&ours);
    sleep(LEASE).await;
    assert!(next.is_leader() && !leadership.is_leader(), "what is lost stays lost");
    assert_eq!(leadership.resign().await.outcome, ReleaseOutcome::TakenOver);
    next.resign().await.ok().expect("led until now");
    nodes.assert_nothing_left();
}

#[tokio::test(start_paused = true)]
async fn a_resignation_hands_over_at_once_and_so_does_a_drop() {
    let nodes = MemoryNodes::new(3);
    let mut leadership = elected(&candidate(&nodes.redlock(), "first")).await;
    for turn in 0..10 {
        let redlock = nodes.redlock();
        let next = tokio::spawn(async move { elected(&candidate(&redlock, "next")).await });
        sleep(secs(1)).await;
        assert!(!next.is_finished() && leadership.is_leader());
        let (begin, term) = (Instant::now(), leadership.term());
        match turn % 2 {
            0 => leadership.resign().await.ok().expect("led until now"),
            _ => drop(leadership),
        }
        leadership = next.await.expect("no panic");
        assert!(begin.elapsed() < ms(1), "{:?} without a leader", begin.elapsed());
        assert!(leadership.term() > term);
    }
    drop(leadership);
    nodes.assert_nothing_left();
}

#[tokio::test(start_paused = true)]
async fn a_campaign_that_is_dropped_is_in_nobodys_way() {
    let nodes = MemoryNodes::new(3);
    let (ours, theirs) = (nodes.redlock(), nodes.redlock());
    let leadership = elected(&candidate(&ours, "a")).await;
    let rival = candidate(&theirs, "b");
    for wait in [0, 1, 50, 15_000] {
        assert!(timeout(ms(wait), rival.campaign()).await.is_err(), "it leads all the time");
        assert_eq!(rival.status().role(), Role::Idle);
    }
    leadership.resign().await.ok().expect("led until now");
    nodes.assert_nothing_left();
    let begin = Instant::now();
    drop(elected(&rival).await);
    assert_eq!(begin.elapsed(), Duration::ZERO);
}

#[tokio::test(start_paused = true)]
async fn run_campaigns_again_after_a_loss_and_drops_what_ran() {
    /// Whether it was dropped before it was done.
    struct Work(Arc<AtomicU32>);
    impl Drop for Work {
        fn drop(&mut self) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }

    let nodes = MemoryNodes::new(3);
    let ours = nodes.redlock();
    let dropped = Arc::new(AtomicU32::new(0));
    let election = candidate(&ours, "a");
    let running = {
        let (election, dropped) = (election.clone(), dropped.clone());
        tokio::spawn(async move {
            let mut terms: Vec<Fence> = Vec::new();
            let result = election
                .run(|leadership| {
                    terms.push(leadership.term());
                    let (turn, work) = (terms.len(), Work(dropped.clone()));
                    async move {
                        let _work = work;
                        match turn {
                            1 => std::future::pending().await,
                            2 => ControlFlow::Continue(()),
                            // It leads no more, and goes on to its end.
                            3 => {
                                leadership.resign().await.ok().expect("led until now");
                                sleep(secs(20)).await;
                                ControlFlow::Continue(())
                            }
                            _ => ControlFlow::Break("done"),
                        }
                    }
                })
                .await;
            (terms, result)
        })
    };
    sleep(secs(1)).await;
    assert!(election.status().is_leader());
    nodes.lose("job");
    // In memory nobody is told of it. The next renewal finds out.
    sleep(secs(2)).await;
    assert_eq!(dropped.load(Ordering::SeqCst), 2, "lost, done, and a third under way");
    sleep(secs(10)).await;
    assert_eq!(election.status().role(), Role::Idle, "the third has resigned");
    sleep(secs(10)).await;
    let (terms, result) = running.await.expect("no panic");
    assert_eq!(result.expect("no error"), "done");
    assert_eq!((terms.len(), dropped.load(Ordering::SeqCst)), (4, 4));
    assert!(terms.is_sorted_by(|a, b| a < b), "{terms:?}");
    nodes.assert_nothing_left();
}

#[tokio::test(start_paused = true)]
async fn what_runs_ends_with_its_leadership_also_where_that_is_kept_elsewhere() {
    let nodes = MemoryNodes::new(3);
    let election = candidate(&nodes.redlock(), "a");
    let mut kept = None;
    let run = election.run(|leadership| {
        kept = Some(leadership);
        async { ControlFlow::Break(()) }
    });
    run.await.expect("no error");
    let kept = kept.expect("led");
    assert!(!kept.is_leader());
    nodes.assert_nothing_left();
}

#[tokio::test(start_paused = true)]
async fn observers_see_each_leader_and_when_there_is_none() {
    let nodes = MemoryNodes::new(3);
    let (a, b, c) = (nodes.redlock(), nodes.redlock(), nodes.redlock());
    let mut observer = looking(&c).observe().expect("settings that fit");
    let (first, second) = (candidate(&a, "a").metadata("rack 4"), candidate(&b, "b"));
    assert_eq!(observer.next().await, None);

    let leadership = elected(&first).await;
    let seen = observer.next().await.expect("one");
    assert_eq!((seen.candidate(), seen.term(), seen.metadata()), ("a", leadership.term(), Some("rack 4")));
    assert_eq!((seen.proclaimed(), seen.to_string()), ("", format!("a, term {}", leadership.term())));

    // Nothing changes: nothing is told, for much longer than a node keeps the counters of fences.
    assert!(timeout(secs(3 * 3_600), observer.next()).await.is_err());
    assert_eq!(looking(&c).leader().await.expect("answered").as_ref(), Some(&seen));

    leadership.proclaim("http://a:8080").await.expect("leads");
    let begin = Instant::now();
    let seen = observer.next().await.expect("one");
    assert_eq!((seen.candidate(), seen.proclaimed()), ("a", "http://a:8080"));
    assert!(begin.elapsed() <= secs(1), "seen after {:?}", begin.elapsed());

    leadership.resign().await.ok().expect("led until now");
    assert_eq!(observer.next().await, None);
    let next = elected(&second).await;
    let begin = Instant::now();
    let seen = observer.next().await.expect("one");
    assert_eq!((seen.candidate(), seen.term(), seen.proclaimed()), ("b", next.term(), ""));
    assert!(begin.elapsed() <= ms(20), "while nobody leads, it looks often: {:?}", begin.elapsed());

    // The leader dies: nobody leads when its lease is over, and that is known at once.
    cut_off(&nodes, &b);
    let begin = Instant::now();
    assert_eq!(observer.next().await, None);
    assert!(begin.elapsed() <= LEASE + ms(20), "seen after {:?}", begin.elapsed());
    drop(next);
}

#[tokio::test(start_paused = true)]
async fn an_observer_that_is_cut_off_does_not_take_a_leader_for_one_for_ever() {
    let nodes = MemoryNodes::new(3);
    let (ours, theirs) = (nodes.redlock(), nodes.redlock());
    let mut observer = looking(&theirs).observe().expect("settings that fit");
    let leadership = elected(&candidate(&ours, "a")).await;
    assert_eq!(observer.next().await.map(|leader| leader.term()), Some(leadership.term()));
    cut_off(&nodes, &theirs);
    let begin = Instant::now();
    assert_eq!(observer.next().await, None, "nobody is known to lead");
    assert!(begin.elapsed() > RENEW_DEADLINE && begin.elapsed() < LEASE + secs(1), "{:?}", begin.elapsed());
    nodes.reconnect(&theirs);
    assert_eq!(observer.next().await.map(|leader| leader.term()), Some(leadership.term()));
}

/// Keys alone are nobody's leadership, however many there are: only who was told that it has won says so.
#[tokio::test(start_paused = true)]
async fn who_holds_without_having_been_elected_is_not_taken_for_a_leader() {
    let nodes = MemoryNodes::new(3);
    let (ours, theirs) = (nodes.redlock(), nodes.redlock());
    let looks_on = looking(&theirs);
    let guard = ours.mutex("job").acquire().await.expect("free");
    assert_eq!(looks_on.leader().await.expect("answered"), None);
    drop(guard);

    // One that has led has left its word behind, and that is not the next holder's.
    elected(&candidate(&ours, "a")).await.resign().await.ok().expect("led until now");
    let guard = ours.fenced_mutex("job").acquire().await.expect("free");
    assert_eq!(looks_on.leader().await.expect("answered"), None);
    drop(guard);

    nodes.hold("job", LEASE);
    assert_eq!(looks_on.leader().await.expect("answered"), None);
    nodes.lose("job");
    nodes.stop(0);
    nodes.stop(1);
    assert!(looks_on.leader().await.is_err(), "one of three answers");
}

/// A minority that missed it, or forgot it, does not matter; nor does it matter that others have.
#[tokio::test(start_paused = true)]
async fn a_leader_is_seen_while_a_majority_has_its_word() {
    let nodes = MemoryNodes::new(3);
    let (ours, theirs) = (nodes.redlock(), nodes.redlock());
    let looks_on = looking(&theirs);
    nodes.stop(0);
    let leadership = elected(&candidate(&ours, "a")).await;
    leadership.proclaim("one").await.expect("leads");
    let seen =
        async || looks_on.leader().await.expect("answered").map(|leader| leader.proclaimed().to_owned());
    assert_eq!(seen().await.as_deref(), Some("one"));
    nodes.start(0);
    nodes.stop(1);
    assert!(looks_on.leader().await.is_err(), "one key of three, and a node that is silent");
    sleep(LEASE / 2).await;
    assert_eq!(seen().await.as_deref(), Some("one"), "healed, and said again");
    leadership.proclaim("two").await.expect("leads");
    nodes.start(1);
    for node in [0, 2] {
        nodes.stop(node);
        assert_eq!(seen().await.as_deref(), Some("two"), "of two that differ, the later one");
        nodes.start(node);
    }
    nodes.stop(0);
    nodes.stop(2);
    match leadership.proclaim("three").await {
        Err(ProclaimError::NoQuorum(report)) => assert_eq!(report.granted(), 1, "{report:#}"),
        other => panic!("one of three answers, but: {other:?}"),
    }
    nodes.start(0);
    sleep(LEASE / 2).await;
    assert_eq!(seen().await.as_deref(), Some("three"), "tried again");
    let long = "x".repeat(4_097);
    let error = leadership.proclaim(long).await.expect_err("too long");
    assert_eq!(error.to_string(), "proclaim is \"4097 bytes\", but must be at most 4096 bytes");
}

#[tokio::test(start_paused = true)]
async fn the_status_tells_where_a_candidate_stands() {
    let nodes = MemoryNodes::new(3);
    let (ours, theirs) = (nodes.redlock(), nodes.redlock());
    let election = candidate(&ours, "a");
    let line = || election.status().to_string();
    assert_eq!(line(), "a does not stand for job");
    let rival = elected(&candidate(&theirs, "b")).await;
    let campaign = {
        let election = election.clone();
        tokio::spawn(async move { elected(&election).await })
    };
    sleep(secs(3)).await;
    assert_eq!(line(), "a has stood for job for 3.0s");
    (0..2).for_each(|node| nodes.stop(node));
    sleep(secs(20)).await;
    let status = election.status();
    assert!(status.last_error().is_some_and(|error| error.contains("no majority")), "{status}");
    (0..2).for_each(|node| nodes.start(node));
    drop(rival);
    let leadership = campaign.await.expect("no panic");
    sleep(secs(1)).await;
    let term = leadership.term();
    let told = format!("a leads job, term {term}, for 1.0s, and ");
    assert!(line().starts_with(&told) && line().ends_with(" more if nothing is renewed"), "{}", line());
    assert_eq!((election.status().role(), election.status().last_error()), (Role::Leader, None));
    cut_off(&nodes, &ours);
    leadership.lost().await;
    assert_eq!(line(), format!("a has lost job, term {term}"));
    drop(leadership);
    assert_eq!(line(), "a does not stand for job");
    #[cfg(feature = "serde")]
    {
        let map = serde_json::to_value(election.status()).expect("a map");
        assert_eq!((map["role"].as_str(), map["candidate"].as_str()), (Some("idle"), Some("a")));
    }
}

#[tokio::test(start_paused = true)]
async fn a_shutdown_ends_campaigns_and_leaderships() {
    let nodes = MemoryNodes::new(3);
    let (ours, theirs) = (nodes.redlock(), nodes.redlock());
    let leadership = elected(&candidate(&ours, "a")).await;
    let campaign = candidate(&theirs, "b");
    let campaign = tokio::spawn(async move { campaign.campaign().await.map(drop) });
    all_run().await;
    theirs.shutdown(Duration::ZERO).await;
    assert!(matches!(campaign.await.expect("no panic"), Err(CampaignError::Closed)));
    ours.shutdown(secs(1)).await;
    assert!(!leadership.is_leader());
    nodes.assert_nothing_left();
}

/// Faults of all kinds, drawn from seeds: never two at once, terms rise, and in the end somebody leads within a lease and a bit.
#[tokio::test(start_paused = true)]
async fn through_faults_of_all_kinds_there_is_never_more_than_one() {
    for seed in 0..8 {
        let nodes = MemoryNodes::seeded(3, seed);
        let (leads, highest) = (Arc::new(AtomicU32::new(0)), Arc::new(std::sync::Mutex::new(Fence::NONE)));
        let end = Arc::new(AtomicBool::new(false));
        let candidates = (0..4).map(|number| {
            let election = candidate(&nodes.redlock(), &format!("c{number}")).lease(secs(2));
            let (leads, highest, end) = (leads.clone(), highest.clone(), end.clone());
            tokio::spawn(async move {
                election
                    .run(|leadership| {
                        let before =
                            std::mem::replace(&mut *highest.lock().expect("whole"), leadership.term());
                        assert!(leadership.term() > before, "{} after {before}", leadership.term());
                        let count = Counted::one_more(&leads);
                        let is_over = end.load(Ordering::SeqCst);
                        async move {
                            let _count = count;
                            if is_over {
                                return ControlFlow::Break(());
                            }
                            sleep(ms(300) * (number + 1)).await;
                            drop(leadership);
                            ControlFlow::Continue(())
                        }
                    })
                    .await
            })
        });
        let candidates: Vec<_> = candidates.collect();
        let plan = redlock_quorum::FaultPlan::seeded(seed);
        let faults = nodes.disturb(plan);
        sleep(secs(60)).await;
        drop(faults);
        nodes.heal();
        let (before, healed) = (*highest.lock().expect("whole"), Instant::now());
        while *highest.lock().expect("whole") == before {
            sleep(ms(10)).await;
            assert!(healed.elapsed() < secs(6), "seed {seed}: nobody leads\n{}", nodes.history());
        }
        end.store(true, Ordering::SeqCst);
        for candidate in candidates {
            let ended = timeout(secs(30), candidate).await.expect("each has its turn").expect("no panic");
            ended.expect("no error");
        }
        nodes.assert_nothing_left();
    }
}

/// One that leads. Two at once is what must never be.
struct Counted(Arc<AtomicU32>);

impl Counted {
    fn one_more(leads: &Arc<AtomicU32>) -> Self {
        assert_eq!(leads.fetch_add(1, Ordering::SeqCst), 0, "two lead at once");
        Counted(leads.clone())
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}
