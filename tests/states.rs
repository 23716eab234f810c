//! Extensions and releases in every state that a held lock can come into, over one to five nodes, also an even number of
//! them. An extension never makes a lease shorter and never brings one back; a release says what there was to release, and
//! deletes nobody else's key.
#![cfg(feature = "redis")]

mod harness;

use std::time::{Duration, Instant};

use futures::future::join_all;
use harness::{Cluster, FOREIGN, LONG_TTL, promptly, until};
use redlock_quorum::{ExtendError, Guard, Redlock, ReleaseOutcome, Renewal};

const KEY: &str = "redlock:job";

/// For what shall expire by itself.
const SHORT_TTL: Duration = Duration::from_millis(300);

/// What has happened to a lock since it was acquired. A minority is as many nodes as may be missing, a majority one more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Held,
    HeldAndExtended,
    /// Its keys have expired, and it was not extended.
    Expired,
    /// Then another client acquired it.
    ExpiredAndTakenOver,
    /// Its keys were deleted.
    LostOnAMinority,
    LostOnAMajority,
    /// The keys of a minority were deleted and set again by an extension; then those of as many other nodes were deleted.
    HealedAndLostElsewhere,
    /// Another value stands there.
    ForeignOnAMinority,
    ForeignOnAMajority,
    /// The processes are gone.
    MinorityKilled,
    MajorityKilled,
    /// The processes stand still.
    MinorityStopped,
    MajorityStopped,
    /// An operator has released it by force.
    ReleasedByForce,
    /// Its client was shut down, and took it away.
    ShutDown,
}

/// What an extension comes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Extension {
    /// The lease is as long as was asked for.
    Longer,
    /// Too few nodes answered: the lease is what it was.
    AsItWas,
    /// The lock is lost, and stays so.
    Lost,
}

use Extension::{AsItWas, Longer, Lost};
use ReleaseOutcome::{Expired, Released, TakenOver, Unknown};

/// In each state, what an extension comes to, and what a release, whether or not there was an extension before it.
const TABLE: [(State, Extension, ReleaseOutcome); 15] = [
    (State::Held, Longer, Released),
    (State::HeldAndExtended, Longer, Released),
    (State::Expired, Lost, Expired),
    (State::ExpiredAndTakenOver, Lost, TakenOver),
    (State::LostOnAMinority, Longer, Released),
    (State::LostOnAMajority, Lost, Expired),
    (State::HealedAndLostElsewhere, Longer, Released),
    (State::ForeignOnAMinority, Longer, Released),
    (State::ForeignOnAMajority, Lost, TakenOver),
    (State::MinorityKilled, Longer, Released),
    (State::MajorityKilled, AsItWas, Unknown),
    (State::MinorityStopped, Longer, Released),
    (State::MajorityStopped, AsItWas, Unknown),
    (State::ReleasedByForce, Lost, Expired),
    (State::ShutDown, Lost, Released),
];

/// By how much a lock is extended before it is released: not at all, once, or twice, and then by less than it has.
const EXTENSIONS: [Duration; 2] = [LONG_TTL, SHORT_TTL];

#[tokio::test]
async fn one_node() {
    plays_the_table(1).await;
}

#[tokio::test]
async fn two_nodes() {
    plays_the_table(2).await;
}

#[tokio::test]
async fn three_nodes() {
    plays_the_table(3).await;
}

#[tokio::test]
async fn four_nodes() {
    plays_the_table(4).await;
}

#[tokio::test]
async fn five_nodes() {
    plays_the_table(5).await;
}

async fn plays_the_table(nodes: usize) {
    let mut scene = Scene::over(nodes).await;
    for (state, extension, outcome) in TABLE {
        if scene.minority == 0 && state.needs_a_minority() {
            continue;
        }
        for extensions in 0..=EXTENSIONS.len() {
            let row = format!("N = {nodes}, {state:?}, extended {extensions} times");
            scene.plays(&row, state, extensions, (extension, outcome)).await;
        }
    }
}

impl State {
    fn needs_a_minority(self) -> bool {
        use State::{
            ForeignOnAMinority, HealedAndLostElsewhere, LostOnAMinority, MinorityKilled, MinorityStopped,
        };
        let those =
            [ForeignOnAMinority, HealedAndLostElsewhere, LostOnAMinority, MinorityKilled, MinorityStopped];
        those.contains(&self)
    }
}

struct Scene {
    cluster: Cluster,
    /// As many nodes as may be missing.
    minority: usize,
}

impl Scene {
    async fn over(nodes: usize) -> Self {
        Scene { cluster: Cluster::start(nodes).await, minority: (nodes - 1) / 2 }
    }

    async fn plays(
        &mut self,
        row: &str,
        state: State,
        extensions: usize,
        (extension, outcome): (Extension, ReleaseOutcome),
    ) {
        let mine = self.client().await;
        let guard = self.acquired(&mine, state).await;
        let others = self.comes_into(state, &mine, &guard).await;
        for ttl in &EXTENSIONS[..extensions] {
            assert_eq!(extended(row, &guard, *ttl).await, extension, "{row}");
        }
        let release = promptly(guard.release()).await;
        assert_eq!(release.outcome, outcome, "{row}: {release:#}");
        self.is_over(row, state, others).await;
    }

    /// A new client for each row, which has no rests behind it.
    async fn client(&self) -> Redlock {
        let builder = self.cluster.builder().node_timeout(Duration::from_millis(150));
        promptly(builder.ttl(LONG_TTL).connect()).await.expect("all nodes are there")
    }

    /// Held by all nodes, or, where it has to expire, by as many as have answered before.
    async fn acquired(&self, mine: &Redlock, state: State) -> Guard {
        let expires = matches!(state, State::Expired | State::ExpiredAndTakenOver);
        let ttl = if expires { SHORT_TTL } else { LONG_TTL };
        let mutex = mine.mutex("job").ttl(ttl).renewal(Renewal::Never);
        let guard = promptly(mutex.acquire()).await.expect("free");
        let all = self.cluster.servers.len();
        until("an answer of every node", async || guard.votes().granted() == all).await;
        guard
    }

    async fn comes_into(&mut self, state: State, mine: &Redlock, guard: &Guard) -> Option<Guard> {
        let (minority, majority) = (0..self.minority, 0..self.minority + 1);
        match state {
            State::Held => {}
            State::HeldAndExtended => promptly(guard.extend(LONG_TTL)).await.expect("held"),
            State::Expired => self.expires(guard).await,
            State::ExpiredAndTakenOver => {
                self.expires(guard).await;
                let others = promptly(self.client().await.mutex("job").acquire()).await.expect("free");
                let all = self.cluster.servers.len();
                until("an answer of every node", async || others.votes().granted() == all).await;
                return Some(others);
            }
            State::LostOnAMinority => self.lose_on(minority).await,
            State::LostOnAMajority => self.lose_on(majority).await,
            State::HealedAndLostElsewhere => {
                self.lose_on(minority).await;
                promptly(guard.extend(LONG_TTL)).await.expect("a majority has it");
                let all = self.cluster.servers.len();
                until("the heal", async || self.cluster.ours().await.len() == all).await;
                self.lose_on(all - self.minority..all).await;
            }
            State::ForeignOnAMinority => self.cluster.take(minority, KEY).await,
            State::ForeignOnAMajority => self.cluster.take(majority, KEY).await,
            State::MinorityKilled => self.cluster.servers[minority].iter_mut().for_each(|it| it.kill()),
            State::MajorityKilled => self.cluster.servers[majority].iter_mut().for_each(|it| it.kill()),
            State::MinorityStopped => self.cluster.servers[minority].iter_mut().for_each(|it| it.stop()),
            State::MajorityStopped => self.cluster.servers[majority].iter_mut().for_each(|it| it.stop()),
            State::ReleasedByForce => {
                promptly(mine.mutex("job").force_release()).await.expect("all nodes answer");
                until("the end of the keys", async || self.cluster.keys().await.is_empty()).await;
            }
            State::ShutDown => {
                assert!(!promptly(mine.shutdown(Duration::ZERO)).await.is_clean());
            }
        }
        None
    }

    async fn expires(&self, guard: &Guard) {
        promptly(guard.lost()).await;
        until("the end of the validity", async || !guard.is_valid()).await;
        until("the end of the keys", async || self.cluster.keys().await.is_empty()).await;
    }

    async fn lose_on(&self, nodes: std::ops::Range<usize>) {
        join_all(self.cluster.servers[nodes].iter().map(|server| server.delete(KEY))).await;
    }

    /// Nothing of ours is left on any node that can be asked, also when those that stood still go on, and what others have
    /// is still theirs.
    async fn is_over(&mut self, row: &str, state: State, others: Option<Guard>) {
        if let Some(others) = others {
            assert!(others.is_valid(), "{row}");
            assert_eq!(promptly(others.release()).await.outcome, Released, "{row}: what others held is gone");
        }
        let foreign = match state {
            State::ForeignOnAMinority => self.minority,
            State::ForeignOnAMajority => self.minority + 1,
            _ => 0,
        };
        let theirs =
            self.cluster.keys().await.into_iter().filter(|key| key.value.as_deref() == Some(FOREIGN));
        assert_eq!(theirs.count(), foreign, "{row}");
        for server in &mut self.cluster.servers {
            server.cont();
            if !server.is_running() {
                server.restart_empty().await;
            }
        }
        self.cluster.assert_nothing_left().await;
        self.cluster.delete(KEY).await;
    }
}

/// What an extension came to, and that the lease is as it should be then.
async fn extended(row: &str, guard: &Guard, ttl: Duration) -> Extension {
    let was_valid = guard.is_valid();
    let before = end_of(guard);
    let asked_at = Instant::now();
    let result = promptly(guard.extend(ttl)).await;
    let after = end_of(guard);
    match result {
        Ok(()) => {
            assert!(was_valid, "{row}: brought back");
            // Less what clocks at different rates may take off it.
            let at_least = asked_at + ttl - ttl / 100 - Duration::from_millis(2);
            assert!(after.latest >= at_least, "{row}: {guard:?}");
            assert!(after.latest >= before.earliest, "{row}: shorter by an extension: {guard:?}");
            assert!(after.earliest <= Instant::now() + LONG_TTL, "{row}: {guard:?}");
            Longer
        }
        Err(ExtendError::NoQuorum(report)) => {
            assert!(guard.is_valid(), "{row}: {report:#}");
            let overlaps = after.earliest <= before.latest && after.latest >= before.earliest;
            assert!(overlaps, "{row}: another lease: {guard:?}");
            AsItWas
        }
        Err(ExtendError::Lost) => {
            assert!(!guard.is_valid() && guard.remaining().is_zero(), "{row}: {guard:?}");
            promptly(guard.lost()).await;
            Lost
        }
        Err(other) => panic!("{row}: {other}"),
    }
}

/// Between which moments the validity ends: the guard says how long it is, at some moment between two of ours.
struct End {
    earliest: Instant,
    latest: Instant,
}

fn end_of(guard: &Guard) -> End {
    let begun = Instant::now();
    let remaining = guard.remaining();
    End { earliest: begun + remaining, latest: Instant::now() + remaining }
}
