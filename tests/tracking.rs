//! A holder learns at once when somebody else changes its keys, long before its next renewal: the servers tell it.
//!
//! The ttl is an hour, so the next renewal is twenty minutes away; what is known promptly is known from the servers.
#![cfg(feature = "redis")]

mod harness;

use std::time::{Duration, Instant};

use futures::future::{join, join_all};
use harness::{Cluster, FOREIGN, LONG_TTL, Server, promptly, until};
use redlock_quorum::{ExtendError, Guard, Redlock, ReleaseOutcome, Renewal};

const HOUR: Duration = Duration::from_secs(3_600);

const KEY: &str = "redlock:job";

struct Scene {
    cluster: Cluster,
    redlock: Redlock,
}

impl Scene {
    async fn over(nodes: usize) -> Self {
        let cluster = Cluster::start(nodes).await;
        let redlock = cluster.builder().ttl(HOUR).connect().await.expect("all nodes are there");
        Scene { cluster, redlock }
    }

    /// Held, and watched by all nodes.
    async fn held(&self, renewal: Renewal) -> Guard {
        let guard = promptly(self.redlock.mutex("job").renewal(renewal).acquire()).await.expect("free");
        self.until_watched().await;
        guard
    }

    async fn until_watched(&self) {
        for server in &self.cluster.servers {
            let watched = async || server.info("stats", "tracking_total_keys").await == "1";
            until("a key that the server tracks", watched).await;
        }
    }

    /// How often the last node was asked for an extension, or to look whether the key stands.
    async fn questions(&self) -> u64 {
        self.cluster.servers.last().expect("a server").calls("evalsha").await
    }
}

/// What somebody else does to the keys of a majority.
const CHANGES: [&[&str]; 5] = [
    &["DEL redlock:job"],
    &["FLUSHALL"],
    &["RENAME redlock:job redlock:elsewhere", "DEL redlock:elsewhere"],
    &["SET redlock:job foreign"],
    &["PEXPIRE redlock:job 1"],
];

#[tokio::test]
async fn a_loss_is_known_long_before_the_next_renewal() {
    for changes in CHANGES {
        for renewal in [Renewal::WhileHeld, Renewal::Never] {
            let scene = Scene::over(3).await;
            let guard = scene.held(renewal).await;
            // Node by node, as by hand.
            for server in &scene.cluster.servers[..2] {
                for change in changes {
                    server.type_in::<redis::Value>(change).await;
                }
            }
            promptly(guard.lost()).await;
            assert!(!guard.is_valid(), "{changes:?}");
            assert!(matches!(promptly(guard.extend(HOUR)).await, Err(ExtendError::Lost)), "{changes:?}");
            drop(guard);
            scene.cluster.assert_nothing_left().await;
        }
    }
}

#[tokio::test]
async fn a_lock_that_is_taken_away_by_force_is_known_to_be() {
    let scene = Scene::over(3).await;
    let guard = scene.held(Renewal::WhileHeld).await;
    let other = scene.cluster.redlock().await;
    promptly(other.mutex("job").force_release()).await.expect("all nodes answer");
    promptly(guard.lost()).await;
    let others = promptly(other.mutex("job").acquire()).await.expect("free");
    assert_eq!(promptly(guard.release()).await.outcome, ReleaseOutcome::TakenOver);
    assert_eq!(promptly(others.release()).await.outcome, ReleaseOutcome::Released);
}

#[tokio::test]
async fn a_change_on_a_minority_is_looked_after_and_nothing_more() {
    let scene = Scene::over(3).await;
    let guard = scene.held(Renewal::WhileHeld).await;
    let before = scene.questions().await;
    scene.cluster.servers[0].delete(KEY).await;
    until("a look", async || scene.questions().await > before).await;
    until("an answer of every node", async || guard.last_answers().denied() == 1).await;
    assert!(guard.is_valid());
    assert_eq!(
        scene.cluster.servers[0].value(KEY).await,
        None,
        "healed, before the operator came to the others"
    );
    promptly(guard.extend(HOUR)).await.expect("a majority has it");
    until("the heal", async || scene.cluster.ours().await.len() == 3).await;
    assert_eq!(promptly(guard.release()).await.outcome, ReleaseOutcome::Released);
    scene.cluster.assert_nothing_left().await;
}

#[tokio::test]
async fn what_is_extended_healed_or_looked_at_is_watched_on() {
    let scene = Scene::over(3).await;
    let guard = scene.held(Renewal::WhileHeld).await;
    // Each of these writes or reads the keys, after which the servers tell of the next change.
    promptly(guard.extend(HOUR)).await.expect("held");
    scene.cluster.servers[0].delete(KEY).await;
    until("a look", async || guard.last_answers().denied() == 1).await;
    promptly(guard.extend(HOUR)).await.expect("a majority has it");
    until("the heal", async || scene.cluster.ours().await.len() == 3).await;
    scene.until_watched().await;
    scene.cluster.delete(KEY).await;
    promptly(guard.lost()).await;
}

#[tokio::test]
async fn a_key_that_went_before_it_was_watched_is_missed() {
    let scene = Scene::over(3).await;
    let guard = promptly(scene.redlock.mutex("job").acquire()).await.expect("free");
    until("an answer of every node", async || guard.votes().granted() == 3).await;
    scene.cluster.delete(KEY).await;
    promptly(guard.lost()).await;
}

#[tokio::test]
async fn what_was_watched_is_watched_again_on_the_next_connection() {
    let scene = Scene::over(3).await;
    let guard = scene.held(Renewal::WhileHeld).await;
    for changed_meanwhile in [false, true] {
        join_all(scene.cluster.servers.iter().map(Server::kill_clients)).await;
        if changed_meanwhile {
            scene.cluster.delete(KEY).await;
        } else {
            until("new connections", async || {
                let tracking = scene.cluster.servers.iter().map(|it| it.info("clients", "tracking_clients"));
                join_all(tracking).await.iter().all(|clients| clients == "1")
            })
            .await;
            scene.until_watched().await;
            assert!(guard.is_valid());
        }
    }
    promptly(guard.lost()).await;
}

#[tokio::test]
async fn what_is_not_held_any_more_is_not_watched_again() {
    let scene = Scene::over(1).await;
    let server = &scene.cluster.servers[0];
    let guard = scene.held(Renewal::WhileHeld).await;
    assert_eq!(promptly(guard.release()).await.outcome, ReleaseOutcome::Released);
    server.kill_clients().await;
    until("a new connection", async || server.info("clients", "tracking_clients").await == "1").await;
    // What was watched would have been read by now: it comes before the first command.
    let guard = promptly(scene.redlock.mutex("another").acquire()).await.expect("free");
    assert_eq!(server.info("stats", "tracking_total_keys").await, "0");
    drop(guard);
}

#[tokio::test]
async fn a_key_that_changes_all_the_time_makes_no_storm() {
    const CHANGES: u64 = 300;
    let scene = Scene::over(3).await;
    let guard = scene.held(Renewal::WhileHeld).await;
    let before = scene.questions().await;
    for _ in 0..CHANGES {
        scene.cluster.servers[0].set(KEY, FOREIGN).await;
    }
    let asked = scene.questions().await - before;
    // One for each node; the next may come after five minutes.
    assert!((1..=3).contains(&asked), "asked {asked} times");
    assert!(guard.is_valid());
    assert_eq!(promptly(guard.release()).await.outcome, ReleaseOutcome::Released);
}

#[tokio::test]
async fn a_lock_that_is_held_for_a_moment_is_not_watched() {
    let scene = Scene::over(3).await;
    for _ in 0..20 {
        let mutex = scene.redlock.mutex("job").ttl(LONG_TTL);
        let guard = promptly(mutex.acquire()).await.expect("free");
        // For a round trip: whoever would ask at once has asked by then.
        promptly(mutex.inspect()).await.expect("all nodes answer");
        assert_eq!(promptly(guard.release()).await.outcome, ReleaseOutcome::Released);
    }
    // One when it connected, and one for each that a busy machine held for longer than a moment.
    let caching = scene.cluster.servers[0].calls("client|caching").await;
    assert!(caching < 10, "{caching} questions for 20 locks");
}

#[tokio::test]
async fn releases_and_renewals_of_ones_own_are_no_alarm() {
    let scene = Scene::over(3).await;
    for _ in 0..3 {
        let guard = scene.held(Renewal::WhileHeld).await;
        promptly(guard.extend(HOUR)).await.expect("held");
        until("an answer of every node", async || guard.last_answers().granted() == 3).await;
        let before = scene.questions().await;
        promptly(guard.extend(HOUR)).await.expect("held");
        until("an answer of every node", async || guard.last_answers().granted() == 3).await;
        assert_eq!(promptly(guard.release()).await.outcome, ReleaseOutcome::Released);
        scene.cluster.assert_nothing_left().await;
        assert_eq!(scene.questions().await - before, 2, "an extension and a release");
    }
}

/// From the moment at which an operator begins to delete the key on a majority.
#[tokio::test]
async fn a_delete_by_hand_is_known_in_milliseconds() {
    const ROUNDS: usize = 30;
    let mut took = Vec::new();
    while took.len() < ROUNDS {
        let scene = Scene::over(3).await;
        let [first, second, _] = &scene.cluster.servers[..] else { panic!("three") };
        // Of a lock that comes back more often the servers track the wait list, too.
        for _ in 0..3 {
            let guard = scene.held(Renewal::WhileHeld).await;
            let begun = Instant::now();
            let known = async {
                promptly(guard.lost()).await;
                begun.elapsed()
            };
            let ((), (known, ())) = join(first.delete(KEY), join(known, second.delete(KEY))).await;
            took.push(known);
            drop(guard);
            scene.cluster.assert_nothing_left().await;
        }
    }
    took.sort_unstable();
    let (median, worst) = (took[ROUNDS / 2], took[ROUNDS - 1]);
    println!("known after {median:.1?} at the median of {ROUNDS}, {worst:.1?} at worst");
    // The next renewal is twenty minutes away; a busy machine takes longer than a millisecond or two.
    assert!(median < Duration::from_millis(200), "{took:?}");
}

/// Who waits for a lock is not called when it changes: of a crowd that would be a herd, at every release.
#[tokio::test]
async fn a_change_is_told_to_the_holder_and_to_nobody_who_waits() {
    const CROWD: u64 = 20;
    let scene = Scene::over(3).await;
    let guard = scene.held(Renewal::WhileHeld).await;
    let builder = scene.cluster.builder().ttl(HOUR);
    let crowd: Vec<Redlock> =
        join_all((0..CROWD).map(|_| builder.clone().connect())).await.into_iter().flatten().collect();
    let waiting: Vec<_> = crowd
        .iter()
        .map(|client| {
            let mutex = client.mutex("job").wait_forever();
            tokio::spawn(async move { mutex.acquire().await })
        })
        .collect();
    let server = &scene.cluster.servers[0];
    until("all that want it", async || server.calls("set").await > CROWD).await;
    let listening = CROWD + 1;
    assert_eq!(server.info("clients", "tracking_clients").await, listening.to_string(), "all could be told");
    assert_eq!(server.info("stats", "tracking_total_items").await, "1", "of one key, one client");
    scene.cluster.servers[2].delete(KEY).await;
    until("a look of the holder", async || guard.last_answers().denied() == 1).await;
    assert!(guard.is_valid());
    waiting.iter().for_each(tokio::task::JoinHandle::abort);
    assert_eq!(promptly(guard.release()).await.outcome, ReleaseOutcome::Released);
}
