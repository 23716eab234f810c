//! Sixty-four clients want one lock all the time, while nodes and networks fail in every way that a seed draws. No two hold at
//! once, and none of them waits for longer than it said it would, though messages are lost, those who were woken are cut off,
//! and lists are forgotten.
//!
//! `REDLOCK_CROWD_SECONDS` sets for how long, `REDLOCK_TEST_SEED` draws the same faults again.
#![cfg(all(feature = "redis", unix))]

mod harness;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use futures::future::join_all;
use harness::storm::{Counts, Deployment, Fault, seed};
use harness::trouble::{LOGGED, MAY_HANG};
use harness::witness::{Held, Witness, overlaps};
use harness::{Cluster, PROMPT, over, promptly, soon, until};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use redlock_quorum::{AcquireError, Redlock, RestartProtection};
use tokio::task::JoinHandle;
use tokio::time::sleep;

const CLIENTS: usize = 64;
const NODES: usize = 3;
const TTL: Duration = Duration::from_secs(1);

/// The wait of each: a fault lasts for 1.5 s at most, a restarted node waits for a ttl, and a connection is tried again within
/// a second; and then all the others may come first.
const BOUND: Duration = Duration::from_secs(20);

/// What one client saw.
struct Seen {
    holds: Vec<Held>,
    waited: Vec<Duration>,
    errors: Vec<AcquireError>,
}

fn length() -> Duration {
    let seconds = std::env::var("REDLOCK_CROWD_SECONDS").map(|text| text.parse().expect("whole seconds"));
    Duration::from_secs(seconds.unwrap_or(20))
}

/// What all clients have in common.
#[derive(Default)]
struct Crowd {
    grants: AtomicUsize,
    /// No more faults come. As long as some do, everybody wants it, or else nobody would be there to go on after the last one.
    may_go: AtomicBool,
}

async fn wants_it_all_the_time(redlock: Redlock, name: String, crowd: Arc<Crowd>) -> Seen {
    let mut seen = Seen { holds: Vec::new(), waited: Vec::new(), errors: Vec::new() };
    let mutex = redlock.mutex("job").wait(BOUND);
    while !crowd.may_go.load(Ordering::Acquire) {
        let began = Instant::now();
        match mutex.acquire().await {
            Ok(guard) => {
                seen.waited.push(began.elapsed());
                crowd.grants.fetch_add(1, Ordering::AcqRel);
                let mut witness = Witness::of(&guard, "job", &name);
                tokio::task::yield_now().await;
                witness.look(&guard);
                seen.holds.push(witness.ends());
                let _ = guard.release().await;
            }
            Err(error) => {
                assert!(
                    began.elapsed() < BOUND + Duration::from_millis(500),
                    "{:?}: {error:#}",
                    began.elapsed()
                );
                seen.errors.push(error);
            }
        }
    }
    seen
}

/// For whoever has to find out why nobody gets it.
async fn situation(cluster: &Cluster, clients: &[Redlock]) -> String {
    let mut lines = Vec::new();
    for server in cluster.running() {
        let (value, expiry) = (server.value("redlock:job").await, server.expiry("redlock:job").await);
        let list: Vec<String> = server.type_in("ZRANGE redlock#wait:job 0 -1").await;
        lines.push(format!("{}: {value:?} for {expiry:?}, {} on the list", server.address(), list.len()));
    }
    for (number, client) in clients.iter().enumerate() {
        lines.push(format!("client {number}: {:#}", client.diagnose().await));
    }
    lines.join("\n")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_waits_for_longer_than_it_said_whatever_fails() {
    let seed = seed();
    let mut random = StdRng::seed_from_u64(seed);
    let cluster = Cluster::start_with(NODES, &[LOGGED.as_slice(), &MAY_HANG].concat()).await;
    let mut deployment = Deployment::of(cluster, CLIENTS).await;
    let connect = async |client| {
        let builder = over(deployment.addresses(client)).restart_protection(RestartProtection::On).ttl(TTL);
        promptly(builder.connect()).await.expect("a majority is there")
    };
    let mut clients = Vec::new();
    for client in 0..CLIENTS {
        clients.push(connect(client).await);
    }
    until("the votes of a majority", async || clients[0].diagnose().await.voting() == NODES).await;

    let (started, crowd) = (Instant::now(), Arc::new(Crowd::default()));
    let end = started + length();
    let members = clients.iter().enumerate().map(|(number, redlock)| {
        tokio::spawn(wants_it_all_the_time(redlock.clone(), format!("client {number}"), crowd.clone()))
    });
    let members: Vec<JoinHandle<Seen>> = members.collect();
    let mut counts = Counts::default();
    let mut longest_pause = Duration::ZERO;
    while Instant::now() < end {
        sleep(Duration::from_millis(random.random_range(100..1_500))).await;
        let length = Duration::from_millis(random.random_range(50..1_500));
        let first = random.random_range(0..NODES);
        let nodes = (0..random.random_range(1..=NODES)).map(|more| (first + more) % NODES);
        let mut faults: Vec<Fault> = nodes.map(|node| Fault::drawn(&mut random, node, CLIENTS)).collect();
        for fault in &mut faults {
            counts.add(fault.name());
            deployment.strike(fault, length).await;
        }
        sleep(length).await;
        for fault in &faults {
            deployment.heal(fault).await;
        }
        let (healed, before) = (Instant::now(), crowd.grants.load(Ordering::Acquire));
        while crowd.grants.load(Ordering::Acquire) == before {
            if healed.elapsed() > PROMPT * 2 {
                panic!(
                    "no grant since {faults:?} are over: {}",
                    situation(&deployment.cluster, &clients).await
                );
            }
            sleep(Duration::from_millis(1)).await;
        }
        longest_pause = longest_pause.max(healed.elapsed());
    }
    crowd.may_go.store(true, Ordering::Release);
    let seen = soon(BOUND * 2, join_all(members)).await;
    let seen: Vec<Seen> = seen.into_iter().map(|seen| seen.expect("no panic")).collect();

    let share = |seen: &Seen| seen.holds.len();
    let (least, most) = (seen.iter().map(share).min(), seen.iter().map(share).max());
    let mut waited: Vec<Duration> = seen.iter().flat_map(|seen| seen.waited.iter().copied()).collect();
    waited.sort_unstable();
    let (half, nearly_all) = (waited[waited.len() / 2], waited[waited.len() * 99 / 100]);
    let longest = waited.last().expect("somebody had it");
    println!(
        "{} grants in {:?}, {least:?} to {most:?} for each client; waited for {half:.1?} at the median, {nearly_all:.1?} of 99 in \
         100, {longest:.1?} at most; {} faults, work went on within {longest_pause:.1?}:\n{counts}",
        waited.len(),
        started.elapsed(),
        counts.total(),
    );
    let errors: Vec<String> =
        seen.iter().flat_map(|seen| &seen.errors).map(|error| format!("{error:#}")).collect();
    assert!(errors.is_empty(), "waited for {BOUND:?} in vain: {errors:#?}");
    let holds: Vec<Held> = seen.into_iter().flat_map(|seen| seen.holds).collect();
    assert_eq!(overlaps(holds), [], "two at once");
    until("nothing left", async || deployment.cluster.ours().await.is_empty()).await;
}
