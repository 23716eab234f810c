//! Elections: who leads, who is told what when, and for how long nobody leads. First on nodes in memory and in paused time, where
//! each moment is exact; then on real servers with faults, in `servers`.

#[cfg(feature = "redis")]
mod harness;

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
    assert_eq!(timeout(LEASE * 3, observer.next()).await, Ok(None), "nobody is known to lead");
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

/// While a text spreads, a look may meet the one before once more. That is no news.
#[tokio::test(start_paused = true)]
async fn what_a_leader_has_said_before_is_not_told_again() {
    let nodes = MemoryNodes::new(3);
    let (ours, theirs) = (nodes.redlock(), nodes.redlock());
    let mut observer = looking(&theirs).observe().expect("settings that fit");
    let leadership = elected(&candidate(&ours, "a")).await;
    leadership.proclaim("one").await.expect("leads");
    assert_eq!(observer.next().await.expect("one").proclaimed(), "one");
    // Two have it, and then one of them is away: what is left to be seen is what one has, and the other has not heard.
    nodes.stop(2);
    nodes.partition(&ours, [1], Partition::CommandsLost);
    assert!(matches!(leadership.proclaim("two").await, Err(ProclaimError::NoQuorum(_))));
    assert_eq!(observer.next().await.expect("one").proclaimed(), "two");
    nodes.start(2);
    nodes.stop(0);
    assert!(timeout(secs(2), observer.next()).await.is_err(), "the one before is told again");
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
    let campaign = timeout(secs(60), campaign).await.expect("ends").expect("no panic");
    assert!(matches!(campaign, Err(CampaignError::Closed)));
    ours.shutdown(secs(1)).await;
    assert!(!leadership.is_leader());
    nodes.assert_nothing_left();
}

/// Faults of all kinds, drawn from seeds: never two at once, terms rise, and in the end somebody leads within a lease and a bit.
#[tokio::test(start_paused = true)]
async fn through_faults_of_all_kinds_there_is_never_more_than_one() {
    let lost = Arc::new(AtomicU32::new(0));
    for seed in 0..8 {
        let nodes = MemoryNodes::seeded(3, seed);
        let (leads, highest) = (Arc::new(AtomicU32::new(0)), Arc::new(std::sync::Mutex::new(Fence::NONE)));
        let end = Arc::new(AtomicBool::new(false));
        let candidates = (0..4).map(|number| {
            let election = candidate(&nodes.redlock(), &format!("c{number}")).lease(secs(2));
            let (leads, highest, end, lost) = (leads.clone(), highest.clone(), end.clone(), lost.clone());
            tokio::spawn(async move {
                election
                    .run(|leadership| {
                        let before =
                            std::mem::replace(&mut *highest.lock().expect("whole"), leadership.term());
                        assert!(leadership.term() > before, "{} after {before}", leadership.term());
                        let count = Counted::one_more(&leads);
                        let is_over = end.load(Ordering::SeqCst);
                        lost.fetch_add(1, Ordering::SeqCst);
                        let lost = lost.clone();
                        async move {
                            let _count = count;
                            if !is_over {
                                sleep(ms(900) * (number + 1)).await;
                            }
                            // Not lost before it was done.
                            lost.fetch_sub(1, Ordering::SeqCst);
                            drop(leadership);
                            if is_over {
                                return ControlFlow::Break(());
                            }
                            ControlFlow::Continue(())
                        }
                    })
                    .await
            })
        });
        let candidates: Vec<_> = candidates.collect();
        // Also those in which a majority is away, or else nothing would be lost.
        let plan = redlock_quorum::FaultPlan::seeded(seed).at_most(3).every(ms(200)).lasting(secs(4));
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
    let lost = lost.load(Ordering::SeqCst);
    assert!(lost > 8, "only {lost} were lost");
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

/// On real servers. Nothing is asserted to be quick, only within the bounds that docs/operations.md gives, on whatever machine this
/// is; what was measured is printed.
#[cfg(feature = "redis")]
mod servers {
    use std::io::{BufRead, BufReader};
    use std::process::{Command, Stdio};
    use std::sync::Mutex;

    use futures::future::{join_all, select_all};
    use redlock_quorum::{RedlockBuilder, Watch};
    use tokio::sync::mpsc;
    use tokio::task::JoinHandle;

    use super::harness::process::Process;
    use super::harness::proxy::Proxy;
    use super::harness::witness::{Held, Moment, overlaps};
    use super::harness::{Cluster, PROMPT, one_at_a_time, over, promptly, soon, until};
    use super::*;

    const LEASE: Duration = secs(1);

    /// Two thirds.
    const RENEW_DEADLINE: Duration = ms(667);

    /// Without a leader after one that resigned: as long as whoever waits sleeps where a message is lost, and what a busy machine
    /// adds to a few round trips.
    const AFTER_A_RESIGNATION: Duration = secs(2);

    /// Without a leader after one that died: the lease, and the same.
    const AFTER_A_DEATH: Duration = secs(3);

    async fn connected(builder: RedlockBuilder) -> Redlock {
        promptly(builder.ttl(LEASE).connect()).await.expect("a majority is there")
    }

    /// Servers whose nodes count for fences from the beginning.
    async fn started(nodes: usize) -> (Cluster, Redlock) {
        let cluster = Cluster::start(nodes).await;
        let redlock = connected(cluster.builder()).await;
        promptly(redlock.bootstrap()).await.expect("new, and a majority is there");
        (cluster, redlock)
    }

    async fn in_the_end(election: &Election) -> Leadership {
        soon(PROMPT * 2, election.campaign()).await.expect("waits as long as it takes")
    }

    /// What leaders saw of their leaderships, in one process.
    #[derive(Clone, Default)]
    struct Chronicle(Arc<Mutex<Vec<(Fence, Held)>>>);

    impl Chronicle {
        /// From when a leader knew it until it gave it up, or it was over by itself.
        async fn write(&self, leadership: &Leadership, who: &str, length: Duration) {
            let from = Moment::now();
            let mut held = Held {
                what: "job".to_owned(),
                who: who.to_owned(),
                from,
                until: from.after(leadership.remaining()),
            };
            let _ = timeout(length, leadership.lost()).await;
            // Never too late: the clock is read before.
            let now = Moment::now();
            held.until = held.until.max(now.after(leadership.remaining())).min(now);
            self.0.lock().expect("whole").push((leadership.term(), held));
        }

        /// No two at once, and each with a term above all before.
        fn check(&self) -> Vec<Fence> {
            let mut chronicle = self.0.lock().expect("whole").clone();
            chronicle.sort_by_key(|(_, held)| held.from);
            let (terms, holds): (Vec<Fence>, Vec<Held>) = chronicle.into_iter().unzip();
            assert_eq!(overlaps(holds), [], "two lead at once");
            assert!(terms.is_sorted_by(|a, b| a < b), "{terms:?}");
            terms
        }
    }

    /// Prints what is measured, and holds it against the bound.
    fn report(what: &str, mut gaps: Vec<Duration>, bound: Duration) {
        gaps.sort_unstable();
        let at = |percent: usize| gaps[(gaps.len() * percent / 100).min(gaps.len() - 1)];
        let millis =
            |percent| format!("{}.{:03} ms", at(percent).as_millis(), at(percent).as_micros() % 1_000);
        println!("without a leader after {what}: p50 {}, p99 {}, of {}", millis(50), millis(99), gaps.len());
        assert!(at(100) <= bound, "{what}: {:?} without a leader", at(100));
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn of_50_candidates_one_leads_at_a_time_through_100_hand_overs() {
        const CANDIDATES: usize = 50;
        const HAND_OVERS: usize = 100;
        let _turn = one_at_a_time().await;
        let (cluster, redlock) = started(3).await;
        let clients = join_all((0..CANDIDATES).map(|_| connected(cluster.builder()))).await;
        let chronicle = Chronicle::default();
        let (resigned_at, gaps) = (Arc::new(Mutex::new(None)), Arc::new(Mutex::new(Vec::new())));
        let seen = Arc::new(Mutex::new(Vec::new()));
        let watching = observed(&looking(&redlock), seen.clone());
        let candidates = clients.into_iter().enumerate().map(|(number, redlock)| {
            let (chronicle, resigned_at, gaps) = (chronicle.clone(), resigned_at.clone(), gaps.clone());
            tokio::spawn(async move {
                let name = format!("host-{number}");
                let election = candidate(&redlock, &name);
                loop {
                    let leadership = elected(&election).await;
                    let elected_at = Moment::now();
                    let resigned: Option<Moment> = resigned_at.lock().expect("whole").take();
                    if let Some(resigned) = resigned {
                        gaps.lock().expect("whole").push(elected_at.since(resigned));
                    }
                    let is_over = gaps.lock().expect("whole").len() >= HAND_OVERS;
                    chronicle.write(&leadership, &name, ms(if is_over { 1 } else { 20 })).await;
                    *resigned_at.lock().expect("whole") = Some(Moment::now());
                    leadership.resign().await.ok().expect("led until now");
                    if is_over {
                        return;
                    }
                }
            })
        });
        let candidates: Vec<_> = candidates.collect();
        for ended in soon(secs(40), join_all(candidates)).await {
            ended.expect("no panic");
        }
        let terms = chronicle.check();
        assert!(terms.len() >= HAND_OVERS + CANDIDATES);
        report("a resignation", gaps.lock().expect("whole").clone(), AFTER_A_RESIGNATION);
        watching.abort();
        assert!(watching.await.expect_err("looks on for ever").is_cancelled(), "terms went back");
        let seen = seen.lock().expect("whole").clone();
        assert!(seen.len() > 10 && seen.iter().all(|term| terms.contains(term)), "{} were seen", seen.len());
    }

    /// Looks on, and finds that terms rise.
    fn observed(election: &Election, seen: Arc<Mutex<Vec<Fence>>>) -> JoinHandle<()> {
        let mut observer = election.clone().look_every(ms(10)).observe().expect("settings that fit");
        tokio::spawn(async move {
            loop {
                if let Some(leader) = observer.next().await {
                    let mut seen = seen.lock().expect("whole");
                    assert!(
                        seen.last().is_none_or(|last| leader.term() > *last),
                        "{leader:?} after {seen:?}"
                    );
                    seen.push(leader.term());
                }
            }
        })
    }

    // ── leaders that are processes of their own ─────────────────────────────────────────────────────────────────────────

    const NODES_OF_THE_LEADER: &str = "REDLOCK_TEST_LEADER_OVER";

    const ELECTION_OF_THE_LEADER: &str = "REDLOCK_TEST_LEADER_OF";

    /// This test is nothing by itself: others run it as a process that stands for an election until it is killed. It says
    /// `leads TERM` when it is elected, `woke leads=..` when it stood still for a lease, and `lost` when it was told.
    #[test]
    fn a_process_that_leads() {
        let Ok(nodes) = std::env::var(NODES_OF_THE_LEADER) else { return };
        let name = std::env::var(ELECTION_OF_THE_LEADER).expect("with the nodes");
        let runtime = tokio::runtime::Runtime::new().expect("a runtime");
        runtime.block_on(async {
            let redlock = connected(over(nodes.split(','))).await;
            let election = redlock.election(name).candidate("a process");
            let run = election.run(async |leadership| {
                let watch = leadership.watch();
                let (looks, is_looking) = std::sync::mpsc::channel();
                std::thread::spawn(move || looks_when_time_has_passed(&watch, &looks));
                is_looking.recv().expect("a thread that looks");
                println!("leads {}", leadership.term());
                let _said = SaysSo;
                std::future::pending::<ControlFlow<()>>().await
            });
            run.await.expect("for ever");
        });
    }

    struct SaysSo;

    impl Drop for SaysSo {
        fn drop(&mut self) {
            println!("lost");
        }
    }

    /// Apart from the runtime, so that it is there at once when the process goes on.
    fn looks_when_time_has_passed(watch: &Watch, looks: &std::sync::mpsc::Sender<()>) {
        let mut before = Moment::now();
        looks.send(()).expect("whoever waits for it");
        loop {
            std::thread::sleep(ms(1));
            let now = Moment::now();
            if now.since(before) > LEASE {
                println!("woke leads={}", watch.is_valid());
                return;
            }
            before = now;
        }
    }

    /// A process that stands for an election, and what it says.
    struct Leading {
        process: Process,
        said: mpsc::UnboundedReceiver<String>,
    }

    impl Leading {
        fn start(cluster: &Cluster, election: &str) -> Self {
            let mut command = Command::new(std::env::current_exe().expect("this test"));
            command
                .args(["--exact", "servers::a_process_that_leads", "--nocapture"])
                .env(NODES_OF_THE_LEADER, cluster.addresses().join(","))
                .env(ELECTION_OF_THE_LEADER, election)
                .stdout(Stdio::piped());
            let mut process = Process::run(&mut command);
            let lines = BufReader::new(process.told()).lines();
            let (says, said) = mpsc::unbounded_channel();
            std::thread::spawn(move || {
                lines.map_while(Result::ok).for_each(|line| {
                    let _ = says.send(line);
                });
            });
            Leading { process, said }
        }

        /// The rest of the next line that begins so.
        async fn says(&mut self, begin: &str) -> String {
            let [rest] = self.says_all([begin]).await;
            rest
        }

        /// The same of several lines, in whatever order they come.
        async fn says_all<const N: usize>(&mut self, begins: [&str; N]) -> [String; N] {
            let mut said = [const { None }; N];
            soon(PROMPT * 2, async {
                while said.iter().any(Option::is_none) {
                    let line = self.said.recv().await.expect("it goes on");
                    for (begin, rest) in begins.iter().zip(&mut said) {
                        *rest = rest.take().or_else(|| line.strip_prefix(begin).map(str::to_owned));
                    }
                }
            })
            .await;
            said.map(|rest| rest.expect("said"))
        }

        async fn leads(&mut self) -> Fence {
            Fence::new(self.says("leads ").await.parse().expect("a number"))
        }
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn after_a_leader_was_killed_the_next_one_is_elected_when_its_lease_is_over() {
        const LANES: usize = 5;
        const KILLS: usize = 5;
        const RIVALS: usize = 8;
        let _turn = one_at_a_time().await;
        let (cluster, _) = started(3).await;
        let clients = join_all((0..RIVALS).map(|_| connected(cluster.builder()))).await;
        let lanes = (0..LANES).map(async |lane| {
            let name = format!("lane {lane}");
            let rivals: Vec<Election> = clients.iter().map(|redlock| redlock.election(&name)).collect();
            let (mut gaps, mut last) = (Vec::new(), Fence::NONE);
            for _ in 0..KILLS {
                let mut leader = Leading::start(&cluster, &name);
                let term = leader.leads().await;
                // All of them find out when the lease is over, at nearly the same moment.
                let campaign = select_all(rivals.iter().map(|rival| Box::pin(rival.campaign())));
                let killed = async {
                    // Somewhere between two renewals.
                    sleep(ms(300) + ms(37) * u32::try_from(gaps.len() * LANES + lane).expect("few")).await;
                    leader.process.kill();
                    Moment::now()
                };
                let ((leadership, ..), killed) =
                    soon(PROMPT * 2, futures::future::join(campaign, killed)).await;
                let leadership = leadership.expect("waits as long as it takes");
                gaps.push(Moment::now().since(killed));
                assert!(last < term && term < leadership.term());
                last = leadership.term();
                leadership.resign().await.ok().expect("led until now");
            }
            gaps
        });
        let gaps = join_all(lanes).await.concat();
        // What was left of the lease: it was renewed less than a fifth of it before, or a little more.
        assert!(gaps.iter().all(|gap| *gap > LEASE / 2), "before the lease was over: {gaps:?}");
        report("a leader was killed", gaps, AFTER_A_DEATH);
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_leader_that_stood_still_knows_at_once_that_it_leads_no_more_and_stands_again() {
        let _turn = one_at_a_time().await;
        let (cluster, redlock) = started(3).await;
        let mut process = Leading::start(&cluster, "job");
        let first = process.leads().await;
        process.process.stop();
        let leadership = in_the_end(&candidate(&redlock, "b")).await;
        assert!(leadership.term() > first);
        sleep(LEASE).await;
        process.process.cont();
        // Whoever of the two threads is first.
        let [leads, _] = process.says_all(["woke leads=", "lost"]).await;
        assert_eq!(leads, "false");
        assert!(leadership.is_leader(), "nothing that it had under way changes that");
        sleep(LEASE).await;
        assert!(leadership.is_leader(), "nor what it tries since");
        let term = leadership.term();
        leadership.resign().await.ok().expect("led until now");
        assert!(process.leads().await > term, "it has stood for the election again");
    }

    // ── networks and nodes ──────────────────────────────────────────────────────────────────────────────────────────────

    #[tokio::test]
    async fn a_leader_that_is_cut_off_steps_down_before_another_is_elected() {
        let _turn = one_at_a_time().await;
        let cluster = Cluster::start(3).await;
        let proxies = join_all(cluster.servers.iter().map(|server| Proxy::before(server.port()))).await;
        // Under the same names, by which clients know that they mean the same nodes.
        let client = async || connected(over(proxies.iter().map(Proxy::address))).await;
        let ours = client().await;
        promptly(ours.bootstrap()).await.expect("new, and a majority is there");
        let leadership = elected(&candidate(&ours, "a")).await;
        sleep(ms(300)).await;
        // Its connections to a majority carry nothing any more. Those of a client that comes later do.
        proxies[..2].iter().for_each(Proxy::strand);
        let cut = Moment::now();
        let theirs = client().await;
        let rival = candidate(&theirs, "b");
        let campaign = async {
            let leadership = in_the_end(&rival).await;
            (Moment::now(), leadership)
        };
        let loses = async {
            promptly(leadership.lost()).await;
            Moment::now()
        };
        let ((elected_at, next), lost_at) = futures::future::join(campaign, loses).await;
        println!(
            "lost {:.1?} and another elected {:.1?} after the cut",
            lost_at.since(cut),
            elected_at.since(cut)
        );
        assert!(lost_at < elected_at && !leadership.is_leader());
        assert!(
            elected_at.since(lost_at) > (LEASE - RENEW_DEADLINE) / 2,
            "the rest of the lease is for stopping"
        );
        assert!(next.term() > leadership.term());
        // What was on its way arrives, and gives nothing back.
        proxies[..2].iter().for_each(Proxy::set_afloat);
        sleep(LEASE).await;
        assert!(next.is_leader() && !leadership.is_leader());
        let again = candidate(&ours, "a");
        let campaign = async {
            drop(leadership);
            in_the_end(&again).await
        };
        let resigns = async {
            sleep(ms(300)).await;
            let term = next.term();
            next.resign().await.ok().expect("led until now");
            term
        };
        let (leadership, before) = futures::future::join(campaign, resigns).await;
        assert!(leadership.term() > before);
    }

    #[tokio::test]
    async fn a_leader_leads_on_without_a_minority_of_the_nodes_and_no_longer_without_a_majority() {
        let _turn = one_at_a_time().await;
        let (mut cluster, redlock) = started(5).await;
        let other = connected(cluster.builder()).await;
        let leadership = elected(&candidate(&redlock, "a")).await;
        cluster.servers[0].kill();
        cluster.servers[1].stop();
        let begin = Moment::now();
        while Moment::now().since(begin) < LEASE * 3 {
            assert!(leadership.is_leader(), "after {:?}", Moment::now().since(begin));
            sleep(ms(10)).await;
        }
        let looks_on = looking(&other);
        let seen = promptly(looks_on.leader()).await.expect("three of five answer").expect("it leads");
        assert_eq!((seen.candidate(), seen.term()), ("a", leadership.term()));
        cluster.servers[2].kill();
        let lost = Moment::now();
        promptly(leadership.lost()).await;
        assert!(Moment::now().since(lost) < RENEW_DEADLINE + ms(200));
        let (status, term) = (candidate(&redlock, "a"), leadership.term());
        assert!(!leadership.is_leader());
        drop(leadership);

        // One that stood still is back with its memory, and so is a majority. The others have forgotten all.
        cluster.servers[1].cont();
        for node in [0, 2] {
            cluster.servers[node].restart_empty().await;
        }
        let back = Moment::now();
        let leadership = in_the_end(&status).await;
        println!("elected {:.1?} after the nodes were back", Moment::now().since(back));
        assert!(leadership.term() > term);
        // After the longest lease these count again, and a leadership rests on them as well.
        sleep(LEASE * 3).await;
        cluster.servers[3].kill();
        cluster.servers[4].kill();
        sleep(LEASE * 2).await;
        assert!(leadership.is_leader());
        leadership.resign().await.ok().expect("led until now");
    }

    /// One of the empty namespace may have any name.
    #[tokio::test]
    async fn what_is_proclaimed_takes_no_lock_from_anybody() {
        let (cluster, redlock) = started(3).await;
        let other = connected(cluster.builder().namespace("")).await;
        let guard = promptly(other.mutex("redlock#leader:job").acquire()).await.expect("free");
        let leadership = in_the_end(&candidate(&redlock, "a")).await;
        match promptly(leadership.proclaim("here")).await {
            Err(ProclaimError::NoQuorum(report)) => assert_eq!(report.granted(), 0, "{report:#}"),
            other => panic!("there was no room, but: {other:?}"),
        }
        let release = promptly(guard.release()).await;
        assert_eq!((release.outcome, release.report.denied()), (ReleaseOutcome::Released, 0), "{release:?}");
        until("room", async || leadership.proclaim("here").await.is_ok()).await;
        leadership.resign().await.ok().expect("led until now");
    }

    #[tokio::test]
    async fn a_task_that_is_aborted_resigns_and_a_runtime_that_is_dropped_leaves_a_lease_at_most() {
        let _turn = one_at_a_time().await;
        let (cluster, redlock) = started(3).await;
        let rival = candidate(&redlock, "b");
        let ours = connected(cluster.builder()).await;
        let leading = {
            let election = candidate(&ours, "a");
            tokio::spawn(async move {
                election.run(async |_| std::future::pending::<ControlFlow<()>>().await).await
            })
        };
        let looks_on = looking(&redlock);
        let leads = async || promptly(looks_on.leader()).await.expect("answered").is_some();
        until("a leader", async || leads().await).await;
        let campaign = async {
            let leadership = in_the_end(&rival).await;
            (Moment::now(), leadership)
        };
        let abort = async {
            sleep(ms(300)).await;
            leading.abort();
            Moment::now()
        };
        let ((elected_at, leadership), aborted) = futures::future::join(campaign, abort).await;
        report("a task was aborted", vec![elected_at.since(aborted)], AFTER_A_RESIGNATION);
        leadership.resign().await.ok().expect("led until now");

        let (leads, is_elected) = std::sync::mpsc::channel();
        let builder = cluster.builder();
        let (end, ends) = std::sync::mpsc::channel::<()>();
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Runtime::new().expect("a runtime");
            let redlock = runtime.block_on(connected(builder));
            let leadership = runtime.block_on(elected(&candidate(&redlock, "a")));
            leads.send(leadership.term()).expect("waited for");
            ends.recv().expect("told to end");
            // The runtime first: nothing is left that could send a release.
            runtime.shutdown_background();
            Moment::now()
        });
        let term =
            tokio::task::spawn_blocking(move || is_elected.recv()).await.expect("no panic").expect("elected");
        end.send(()).expect("waits");
        let leadership = in_the_end(&rival).await;
        let elected_at = Moment::now();
        assert!(leadership.term() > term);
        let ended = thread.join().expect("no panic");
        report("a runtime was dropped", vec![elected_at.since(ended)], AFTER_A_DEATH);
    }
}
