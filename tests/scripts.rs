//! Servers that forget their scripts (`SCRIPT FLUSH`) at every point in the life of a lock: on one of three, or on all.
//! Each point ends as it does without it, every script that is missing is sent again in full, and nothing is left.
#![cfg(feature = "redis")]

mod harness;

use std::pin::pin;
use std::time::{Duration, Instant};

use futures::future::join_all;
use harness::{Cluster, LONG_TTL, SILENT, promptly, until};
use redlock_quorum::{Guard, Inspection, Mutex, Redlock, ReleaseOutcome, Renewal};

const NODES: usize = 3;

/// Where scripts are forgotten.
const NOWHERE: usize = 0;
const ON_ONE: usize = 1;
const ON_ALL: usize = NODES;

/// When they are forgotten: right before this.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Before {
    TheLookAtAHolder,
    TheNextLookOfOneWhoWaits,
    TheRollBackOfADroppedAttempt,
    ARenewal,
    AnExtension,
    AHeal,
    AHealWithAReleaseBehindIt,
    AHealWithAReleaseAFewTurnsBehindIt,
    TheReleaseBehindAHeal,
    ARelease,
    AReleaseThatLingers,
    TheDropOfAGuard,
    AnInspection,
    AReleaseByForce,
}

const POINTS: [Before; 14] = [
    Before::TheLookAtAHolder,
    Before::TheNextLookOfOneWhoWaits,
    Before::TheRollBackOfADroppedAttempt,
    Before::ARenewal,
    Before::AnExtension,
    Before::AHeal,
    Before::AHealWithAReleaseBehindIt,
    Before::AHealWithAReleaseAFewTurnsBehindIt,
    Before::TheReleaseBehindAHeal,
    Before::ARelease,
    Before::AReleaseThatLingers,
    Before::TheDropOfAGuard,
    Before::AnInspection,
    Before::AReleaseByForce,
];

#[tokio::test]
async fn a_server_may_forget_its_scripts_at_any_point() {
    let cluster = Cluster::start(NODES).await;
    for point in POINTS {
        let expected = outcome_of(&cluster, point, NOWHERE).await;
        for forgetful in [ON_ONE, ON_ALL] {
            let outcome = outcome_of(&cluster, point, forgetful).await;
            assert_eq!(outcome, expected, "scripts forgotten by {forgetful} right before {point:?}");
        }
    }
}

/// A hundred locks that are let go at once are two calls for each server. Where it has forgotten the scripts these come a second
/// time, in full, and the next ones by their hashes again. No holder is told of changes, so none reads its key for that.
#[tokio::test]
async fn what_is_released_at_once_goes_out_together() {
    let cluster = Cluster::start_with(NODES, &SILENT).await;
    let redlock = cluster.redlock().await;
    for (forgotten, in_full, by_hash) in [(false, 0, 2), (true, 2, 2), (false, 0, 2)] {
        let guards = join_all((0..100).map(|job| {
            let mutex = redlock.mutex(format!("job-{job}"));
            async move { promptly(mutex.acquire()).await.expect("free") }
        }))
        .await;
        until("all keys", async || cluster.ours().await.len() == 100 * NODES).await;
        for server in &cluster.servers {
            if forgotten {
                server.type_in::<()>("SCRIPT FLUSH").await;
            }
            server.type_in::<()>("CONFIG RESETSTAT").await;
        }
        let outcomes = join_all(guards.into_iter().map(|guard| promptly(guard.release()))).await;
        assert!(outcomes.iter().all(|release| release.outcome == ReleaseOutcome::Released));
        cluster.assert_nothing_left().await;
        for server in &cluster.servers {
            let calls = (server.calls("eval").await, server.calls("evalsha").await);
            assert_eq!(calls, (in_full, by_hash), "forgotten: {forgotten}");
        }
    }
}

/// One of them stands for another kind of value, and one is another's: each is told by itself.
#[tokio::test]
async fn what_goes_out_together_is_told_one_by_one() {
    let cluster = Cluster::start_with(1, &SILENT).await;
    let redlock = cluster.redlock().await;
    let guards = join_all(["mine", "list", "taken", "gone", "also-mine"].map(|job| {
        let mutex = redlock.mutex(job).renewal(Renewal::Never);
        async move { promptly(mutex.acquire()).await.expect("free") }
    }))
    .await;
    let server = &cluster.servers[0];
    for key in ["redlock:list", "redlock:taken", "redlock:gone"] {
        server.delete(key).await;
    }
    server.type_in::<()>("LPUSH redlock:list x").await;
    server.set("redlock:taken", "another").await;
    server.type_in::<()>("CONFIG RESETSTAT").await;
    let releases = join_all(guards.into_iter().map(|guard| promptly(guard.release()))).await;
    assert_eq!(server.calls("evalsha").await, 1);
    let words: Vec<_> = releases.iter().map(|release| release.report.nodes()[0].in_words()).collect();
    for (words, expected) in
        words.iter().zip(["released", "WRONGTYPE", "taken by another", "without the key", "released"])
    {
        assert!(words.contains(expected), "{words} instead of {expected}");
    }
}

/// Two clients, and the servers that are about to forget.
struct Scene<'a> {
    cluster: &'a Cluster,
    forgetful: usize,
    mine: Redlock,
    other: Redlock,
}

/// What the point came to, in words. Afterwards no key is left, and the servers that forgot were sent scripts in full.
async fn outcome_of(cluster: &Cluster, point: Before, forgetful: usize) -> String {
    let scene = Scene { cluster, forgetful, mine: cluster.redlock().await, other: cluster.redlock().await };
    scene.count_anew().await;
    let outcome = scene.play(point).await;
    scene.until_scripts_came_in_full(point).await;
    cluster.assert_nothing_left().await;
    outcome
}

impl Scene<'_> {
    async fn play(&self, point: Before) -> String {
        let mutex = self.mine.mutex("job");
        match point {
            Before::TheLookAtAHolder => {
                let held = self.held(&self.other.mutex("job")).await;
                self.forget().await;
                let tried = promptly(mutex.try_acquire()).await.expect("an answer");
                format!("tried: {} then {}", outcome_of_try(tried).await, released(held).await)
            }
            Before::TheNextLookOfOneWhoWaits => {
                let held = self.held(&self.other.mutex("job")).await;
                let waiting = tokio::spawn(async move { mutex.wait_forever().acquire().await });
                until("an attempt", async || self.commands("set").await > 1).await;
                self.forget().await;
                self.until_scripts_came_in_full(point).await;
                let first = released(held).await;
                let guard = promptly(waiting).await.expect("no panic").expect("its turn");
                format!("{first} then {}", released(guard).await)
            }
            Before::TheRollBackOfADroppedAttempt => {
                self.forget().await;
                let is_on_its_way = futures::poll!(pin!(mutex.acquire())).is_pending();
                until("the SET", async || self.commands("set").await > 0).await;
                format!("dropped on its way: {is_on_its_way}")
            }
            Before::ARenewal => {
                // Renewed when two thirds remain.
                let guard = self.held(&mutex.ttl(Duration::from_millis(600))).await;
                self.forget().await;
                let mut least = guard.remaining();
                let renewed = async || {
                    least = least.min(guard.remaining());
                    guard.remaining() > least
                };
                until("a renewal", renewed).await;
                format!("valid: {} then {}", guard.is_valid(), released(guard).await)
            }
            Before::AnExtension => {
                let guard = self.held(&mutex).await;
                self.forget().await;
                format!("{} then {}", extended(&guard).await, released(guard).await)
            }
            Before::AHeal => {
                let guard = self.held_but_lost_on_one(&mutex).await;
                self.forget().await;
                let extended = extended(&guard).await;
                self.until_healed().await;
                format!("{extended} then {}", released(guard).await)
            }
            Before::AHealWithAReleaseBehindIt => self.heal_and_release_after_turns(&mutex, 0).await,
            Before::AHealWithAReleaseAFewTurnsBehindIt => self.heal_and_release_after_turns(&mutex, 3).await,
            Before::TheReleaseBehindAHeal => {
                let guard = self.held_but_lost_on_one(&mutex).await;
                let extended = extended(&guard).await;
                self.until_healed().await;
                self.forget().await;
                format!("{extended} then {}", released(guard).await)
            }
            Before::ARelease => {
                let guard = self.held(&mutex).await;
                self.forget().await;
                released(guard).await
            }
            Before::AReleaseThatLingers => {
                let guard = self.held(&mutex.hold_at_least(Duration::from_secs(1))).await;
                self.forget().await;
                let outcome = released(guard).await;
                let tried = promptly(self.other.mutex("job").try_acquire()).await.expect("an answer");
                format!("{outcome}, and tried: {}", outcome_of_try(tried).await)
            }
            Before::TheDropOfAGuard => {
                let guard = self.held(&mutex).await;
                self.forget().await;
                drop(guard);
                "dropped".to_owned()
            }
            Before::AnInspection => {
                let guard = self.held(&mutex.metadata("nightly")).await;
                self.forget().await;
                let seen = promptly(self.other.mutex("job").inspect()).await.expect("an answer");
                format!("{} then {}", in_words(&seen), released(guard).await)
            }
            Before::AReleaseByForce => {
                let guard = self.held(&mutex.metadata("nightly")).await;
                self.forget().await;
                let was = promptly(self.other.mutex("job").force_release()).await.expect("an answer");
                format!("{} then {}", in_words(&was), released(guard).await)
            }
        }
    }

    /// The extension is on its way, and the release is sent without waiting for it: so many turns of the runtime later, in
    /// the same batch or in the next. The heal must not be sent again behind the release.
    async fn heal_and_release_after_turns(&self, mutex: &Mutex, turns: u32) -> String {
        let guard = self.held_but_lost_on_one(mutex).await;
        self.forget().await;
        assert!(futures::poll!(pin!(guard.extend(LONG_TTL))).is_pending());
        for _ in 0..turns {
            tokio::task::yield_now().await;
        }
        released(guard).await
    }

    /// Held on all nodes, without renewals unless the ttl is short.
    async fn held(&self, mutex: &Mutex) -> Guard {
        let guard = promptly(mutex.acquire()).await.expect("free");
        until("all keys", async || self.cluster.ours().await.len() == NODES).await;
        guard
    }

    /// The node that has lost the key is one of those that forget.
    async fn held_but_lost_on_one(&self, mutex: &Mutex) -> Guard {
        let guard = self.held(&mutex.clone().renewal(Renewal::Never)).await;
        self.cluster.servers[0].delete("redlock:job").await;
        guard
    }

    async fn until_healed(&self) {
        until("the heal", async || self.cluster.ours().await.len() == NODES).await;
    }

    async fn forget(&self) {
        self.count_anew().await;
        let forgetful = &self.cluster.servers[..self.forgetful];
        join_all(forgetful.iter().map(|server| server.type_in::<()>("SCRIPT FLUSH"))).await;
    }

    /// From here on the servers count what they are sent.
    async fn count_anew(&self) {
        join_all(self.cluster.servers.iter().map(|server| server.type_in::<()>("CONFIG RESETSTAT"))).await;
    }

    /// Those that forgot, and only those. So the point was really hit.
    async fn until_scripts_came_in_full(&self, point: Before) {
        for (node, server) in self.cluster.servers.iter().enumerate() {
            let in_full = async || server.calls("eval").await;
            if node < self.forgetful {
                until(&format!("{point:?}: a script in full"), async || in_full().await > 0).await;
            } else {
                assert_eq!(in_full().await, 0, "{point:?}: node {node} has its scripts");
            }
        }
    }

    /// How often the first server was sent a command.
    async fn commands(&self, name: &str) -> u64 {
        self.cluster.servers[0].calls(name).await
    }
}

async fn released(guard: Guard) -> String {
    promptly(guard.release()).await.outcome.to_string()
}

async fn extended(guard: &Guard) -> String {
    let ended_after = Instant::now() + guard.remaining();
    let result = promptly(guard.extend(LONG_TTL)).await;
    let remaining = guard.remaining();
    let ends_before = Instant::now() + remaining;
    format!("extended: {:?}, shorter: {}", result.is_ok(), ends_before < ended_after)
}

async fn outcome_of_try(tried: Option<Guard>) -> String {
    match tried {
        Some(guard) => released(guard).await,
        None => "held by another".to_owned(),
    }
}

fn in_words(seen: &Inspection) -> String {
    format!("{:?} {:?} by majority: {}", seen.holder(), seen.metadata(), seen.by_majority())
}
