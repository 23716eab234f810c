//! A node that may have forgotten what it granted does not vote. Each history is played twice: with the protection one client
//! holds at a time, and without it two do, which shows that the history would find out.
#![cfg(feature = "redis")]

mod harness;

use std::convert::identity;
use std::fmt::Debug;
use std::sync::{Arc, LazyLock, Mutex};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use futures::future::{join, join_all, select_all};
use harness::proxy::Proxy;
use harness::trouble::LOGGED;
use harness::{Cluster, PROMPT, SILENT, Server, over, promptly, soon, until};
use redlock_quorum::RestartProtection::{Off, On};
use redlock_quorum::{
    AcquireError, Guard, NodeConfig, Redlock, RedlockBuilder, Renewal, RestartProtection, Severity, WakeBy,
};
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Level, Metadata, Subscriber};

/// Of every lock, and the longest there is. What holds is not renewed, and the servers do not tell of changed keys, so that
/// nobody mends or notices what a node forgot.
const TTL: Duration = Duration::from_secs(2);

/// What one client extends to.
const LONG: Duration = Duration::from_secs(3);

const KEY: &str = "redlock:job";

/// What a container is given that keeps its data on a volume.
const ON_A_VOLUME: [&str; 4] = ["--appendonly", "yes", "--appendfsync", "always"];

/// Without the protection nobody waits for the ttl, and a longer one leaves a busy machine more time to show two holders.
fn stretched(protection: RestartProtection, time: Duration) -> Duration {
    if protection == Off { time * 4 } else { time }
}

fn guarded(builder: RedlockBuilder, protection: RestartProtection) -> RedlockBuilder {
    let ttl = stretched(protection, TTL);
    builder.restart_protection(protection).ttl(ttl).renewal(Renewal::Never)
}

async fn client(cluster: &Cluster, protection: RestartProtection) -> Redlock {
    connected(guarded(cluster.builder(), protection)).await
}

async fn connected(builder: RedlockBuilder) -> Redlock {
    promptly(builder.connect()).await.expect("all nodes are there")
}

/// Waits until all nodes vote for a client.
async fn all_vote(redlock: &Redlock) {
    until("the vote of every node", async || redlock.diagnose().await.voting() == 3).await;
}

/// A client holds by the votes of the first two nodes only; the third is free.
async fn held_by_the_first_two(servers: &[Server], redlock: &Redlock) -> Guard {
    held_for(servers, redlock, None).await
}

async fn held_for(servers: &[Server], redlock: &Redlock, extension: Option<Duration>) -> Guard {
    servers[2].set(KEY, harness::FOREIGN).await;
    let guard = soon(PROMPT, redlock.mutex("job").acquire()).await.expect("two nodes are free");
    if let Some(extension) = extension {
        promptly(guard.extend(extension)).await.expect("two nodes confirm");
    }
    servers[2].delete(KEY).await;
    assert!(guard.is_valid(), "the machine is too slow for this test");
    guard
}

/// Others ask for what is held. True if one of them gets it while the first client still holds.
async fn two_hold(first: &Guard, rivals: &[&Redlock]) -> bool {
    let tries = rivals.iter().map(|rival| {
        // Whoever asks often is the first to find what should not be there.
        let mutex = rival.mutex("job").wait_forever().wake_by(WakeBy::Poll(Duration::from_millis(20)));
        Box::pin(async move { mutex.acquire().await.expect("the nodes answer") })
    });
    let (second, ..) = soon(PROMPT * 2, select_all(tries)).await;
    let both = first.is_valid();
    assert!(second.is_valid(), "the machine is too slow for this test");
    both
}

/// Plays a history in which two hold at once in spite of the protection.
async fn shows_a_limit<F: Future<Output = bool>>(name: &str, history: impl Fn() -> F) {
    assert!(
        in_the_end(history).await,
        "{name}: one client at a time, so the documents say less than is true"
    );
}

/// Whether two hold at once in a history. What a busy machine was too slow to show is played again.
async fn in_the_end<F: Future<Output = bool>>(history: impl Fn() -> F) -> bool {
    for _ in 0..3 {
        if history().await {
            return true;
        }
    }
    false
}

/// Plays a history with and without the protection.
async fn shows<F: Future<Output = bool>>(name: &str, history: impl Fn(RestartProtection) -> F) {
    let (with, without) = join(history(On), in_the_end(|| history(Off))).await;
    assert!(!with, "{name}: two clients hold at once, in spite of the protection");
    assert!(without, "{name}: the history does not show what the protection is for");
}

#[tokio::test]
async fn a_node_that_restarted_empty_does_not_vote() {
    tokio::join!(
        shows("restarted while held", restarted_while_held),
        shows("restarted unseen", restarted_unseen),
        shows("restarted twice", restarted_twice),
    );
}

async fn restarted_while_held(protection: RestartProtection) -> bool {
    let mut cluster = Cluster::start_with(3, &SILENT).await;
    let (ours, theirs) = (client(&cluster, protection).await, client(&cluster, protection).await);
    join(all_vote(&ours), all_vote(&theirs)).await;
    let guard = held_by_the_first_two(&cluster.servers, &ours).await;
    cluster.servers[1].restart_empty().await;
    two_hold(&guard, &[&theirs]).await
}

async fn restarted_unseen(protection: RestartProtection) -> bool {
    let mut cluster = Cluster::start_with(3, &SILENT).await;
    let ours = client(&cluster, protection).await;
    all_vote(&ours).await;
    let guard = held_by_the_first_two(&cluster.servers, &ours).await;
    cluster.servers[1].restart_empty().await;
    let theirs = client(&cluster, protection).await;
    two_hold(&guard, &[&theirs]).await
}

/// That it waited once does not help it the next time.
async fn restarted_twice(protection: RestartProtection) -> bool {
    let mut cluster = Cluster::start_with(3, &SILENT).await;
    let (ours, theirs) = (client(&cluster, protection).await, client(&cluster, protection).await);
    cluster.servers[1].restart_empty().await;
    join(all_vote(&ours), all_vote(&theirs)).await;
    let guard = held_by_the_first_two(&cluster.servers, &ours).await;
    cluster.servers[1].restart_empty().await;
    two_hold(&guard, &[&theirs]).await
}

#[tokio::test]
async fn a_copy_of_a_memory_does_not_vote_and_a_disk_only_by_the_operators_word() {
    tokio::join!(
        shows("promoted", a_stale_replica_takes_over),
        shows("another server", another_server_takes_over),
        shows("on an empty volume", |protection| on_an_empty_volume(protection, &ON_A_VOLUME, false)),
        shows_a_limit("a word that is not true", || on_an_empty_volume(On, &ON_A_VOLUME, true)),
        async {
            let two = on_an_empty_volume(On, &["--appendonly", "yes"], true).await;
            assert!(!two, "the server says that it may forget a second");
        },
    );
}

/// A replica that missed the last write becomes the master behind the same address.
async fn a_stale_replica_takes_over(protection: RestartProtection) -> bool {
    let (servers, spare) = join(Cluster::start_with(3, &SILENT), Server::start_with(&SILENT)).await;
    let Cluster { servers } = servers;
    spare.follow(&servers[1]).await;
    let proxy = Proxy::before(servers[1].port()).await;
    let addresses = [servers[0].address(), proxy.address(), servers[2].address()];
    let connect = async || connected(guarded(over(addresses.clone()), protection)).await;
    let (ours, theirs) = (connect().await, connect().await);
    join(all_vote(&ours), all_vote(&theirs)).await;
    // It hears of nothing any more.
    spare.type_in::<()>("REPLICAOF 127.0.0.1 1").await;
    let guard = held_by_the_first_two(&servers, &ours).await;
    spare.type_in::<()>("REPLICAOF NO ONE").await;
    assert_eq!(spare.value(KEY).await, None, "it missed the key");
    proxy.lead_to(spare.port());
    servers[1].kill_clients().await;
    // One who knew the former master, and one who knows nobody.
    let newcomer = connect().await;
    two_hold(&guard, &[&theirs, &newcomer]).await
}

/// Another master takes over the address, one that has been there for long and knows nothing of what was granted.
async fn another_server_takes_over(protection: RestartProtection) -> bool {
    let (servers, spare) = join(Cluster::start_with(3, &SILENT), Server::start_with(&SILENT)).await;
    let Cluster { servers } = servers;
    let proxy = Proxy::before(servers[1].port()).await;
    let addresses = [servers[0].address(), proxy.address(), servers[2].address()];
    let connect = async || connected(guarded(over(addresses.clone()), protection)).await;
    let (ours, theirs) = (connect().await, connect().await);
    join(all_vote(&ours), all_vote(&theirs)).await;
    of_some_age(&spare).await;
    let guard = held_by_the_first_two(&servers, &ours).await;
    proxy.lead_to(spare.port());
    servers[1].kill_clients().await;
    two_hold(&guard, &[&theirs]).await
}

/// While the address led elsewhere, others may have had votes there that the server which is back knows nothing of. That
/// what stood in between could not vote when this client looked says nothing of that.
#[tokio::test]
async fn a_server_that_is_back_after_one_that_could_not_vote_waits() {
    let (server, spare) = join(Server::start(), Server::start()).await;
    spare.follow(&server).await;
    let proxy = Proxy::before(server.port()).await;
    let redlock = connected(guarded(over([proxy.address()]), On)).await;
    until("a vote", async || redlock.diagnose().await.voting() == 1).await;
    let lead_to = async |there: &Server, before: &Server| {
        proxy.lead_to(there.port());
        before.kill_clients().await;
    };
    lead_to(&spare, &server).await;
    until("a replica in its place", async || {
        redlock.diagnose().await.nodes()[0].trouble().is_some_and(|why| why.contains("is a replica"))
    })
    .await;
    lead_to(&server, &spare).await;
    let mut why = None;
    until("the server that was there before", async || {
        let diagnosis = redlock.diagnose().await;
        why = diagnosis.nodes()[0].waits_because().map(str::to_owned);
        diagnosis.nodes()[0].latency().is_some()
    })
    .await;
    assert_eq!(why.as_deref(), Some("another server than before"));
}

/// As when a container is started again without its volume: the configuration is as it should be, and the data is gone.
async fn on_an_empty_volume(protection: RestartProtection, arguments: &[&str], trusted: bool) -> bool {
    let mut cluster = Cluster::start_with(3, &[&SILENT[..], arguments].concat()).await;
    let node = |address: String| {
        let node = NodeConfig::new(address);
        if trusted { node.trust_disk() } else { node }
    };
    let builder = guarded(over(cluster.addresses().into_iter().map(node)), protection);
    let (ours, theirs) = (connected(builder.clone()).await, connected(builder).await);
    join(all_vote(&ours), all_vote(&theirs)).await;
    let guard = held_by_the_first_two(&cluster.servers, &ours).await;
    cluster.servers[1].restart_empty_with(arguments).await;
    assert_eq!(cluster.servers[1].info("persistence", "aof_enabled").await, "1");
    two_hold(&guard, &[&theirs]).await
}

#[tokio::test]
async fn a_node_whose_log_lost_its_last_moment_does_not_vote() {
    shows("a power failure", restarted_with_a_cut_log).await;
}

/// A server that flushes its log once a second comes back without what it wrote last.
async fn restarted_with_a_cut_log(protection: RestartProtection) -> bool {
    let mut cluster = Cluster::start_with(3, &[&SILENT[..], &LOGGED].concat()).await;
    let (ours, theirs) = (client(&cluster, protection).await, client(&cluster, protection).await);
    join(all_vote(&ours), all_vote(&theirs)).await;
    let before_the_grant = cluster.servers[1].log_length();
    let guard = held_by_the_first_two(&cluster.servers, &ours).await;
    cluster.servers[1].restart_with_a_log_of(before_the_grant).await;
    assert_eq!(cluster.servers[1].value(KEY).await, None, "it was written last");
    two_hold(&guard, &[&theirs]).await
}

#[tokio::test]
async fn what_a_node_does_not_say_and_for_how_long_others_hold_counts_at_its_worst() {
    tokio::join!(
        shows("INFO forbidden", restarted_without_a_word),
        shows("longer extensions", |protection| extended_for_long(protection, LONG)),
        // A client that does not know of the longest ttl cannot wait for it.
        shows_a_limit("another max_ttl", || extended_for_long(On, TTL / 2)),
    );
}

const BLIND: &str = "ACL SETUSER blind on nopass ~* +@all -info -client|tracking";

fn blind(cluster: &Cluster, with: impl Fn(NodeConfig) -> NodeConfig) -> RedlockBuilder {
    let node = |address: String| with(NodeConfig::new(address).username("blind").password("-"));
    over(cluster.addresses().into_iter().map(node))
}

async fn restarted_without_a_word(protection: RestartProtection) -> bool {
    let mut cluster = Cluster::start_with(3, &SILENT).await;
    join_all(cluster.servers.iter().map(|server| server.type_in::<()>(BLIND))).await;
    let connect = async || connected(guarded(blind(&cluster, identity), protection)).await;
    let (ours, theirs) = (connect().await, connect().await);
    join(all_vote(&ours), all_vote(&theirs)).await;
    let guard = held_by_the_first_two(&cluster.servers, &ours).await;
    cluster.servers[1].restart_empty().await;
    cluster.servers[1].type_in::<()>(BLIND).await;
    two_hold(&guard, &[&theirs]).await
}

/// One client extends to [`LONG`]. The other expects nobody to hold for longer than `longest`.
async fn extended_for_long(protection: RestartProtection, longest: Duration) -> bool {
    let mut cluster = Cluster::start_with(3, &SILENT).await;
    let expecting = async |longest: Duration| {
        connected(guarded(cluster.builder(), protection).ttl(TTL / 2).max_ttl(longest)).await
    };
    let long = stretched(protection, LONG);
    let (ours, theirs) = (expecting(long).await, expecting(longest).await);
    join(all_vote(&ours), all_vote(&theirs)).await;
    let guard = held_for(&cluster.servers, &ours, Some(long)).await;
    cluster.servers[1].restart_empty().await;
    two_hold(&guard, &[&theirs]).await
}

/// What the protection cannot see, as docs/safety.md says: the process lives, and the connection stands.
#[tokio::test]
async fn a_memory_that_is_lost_under_a_living_connection_is_not_noticed() {
    tokio::join!(
        shows_a_limit("FLUSHALL", || forgets("FLUSHALL")),
        shows_a_limit("SWAPDB", || forgets("SWAPDB 0 1")),
        shows_a_limit("promoted again", copies_another_and_is_promoted_again),
    );
}

async fn forgets(line: &str) -> bool {
    let cluster = Cluster::start_with(3, &SILENT).await;
    let (ours, theirs) = (client(&cluster, On).await, client(&cluster, On).await);
    join(all_vote(&ours), all_vote(&theirs)).await;
    let guard = held_by_the_first_two(&cluster.servers, &ours).await;
    cluster.servers[1].type_in::<()>(line).await;
    two_hold(&guard, &[&theirs]).await
}

async fn copies_another_and_is_promoted_again() -> bool {
    let (cluster, spare) = join(Cluster::start_with(3, &SILENT), Server::start_with(&SILENT)).await;
    let (ours, theirs) = (client(&cluster, On).await, client(&cluster, On).await);
    join(all_vote(&ours), all_vote(&theirs)).await;
    let guard = held_by_the_first_two(&cluster.servers, &ours).await;
    cluster.servers[1].follow(&spare).await;
    cluster.servers[1].type_in::<()>("REPLICAOF NO ONE").await;
    two_hold(&guard, &[&theirs]).await
}

/// A server counts its age in whole seconds of the wall clock, so that one which was started at the end of a second is said to
/// be nearly a second older than it is. A client that comes then must not believe it.
#[tokio::test]
async fn a_node_that_says_it_is_older_than_it_is_does_not_vote_too_early() {
    shows("an uptime that is too long", started_at_the_end_of_a_second).await;
}

async fn started_at_the_end_of_a_second(protection: RestartProtection) -> bool {
    let mut cluster = Cluster::start_with(3, &SILENT).await;
    join_all(cluster.servers.iter().map(of_some_age)).await;
    let ours = client(&cluster, protection).await;
    for _ in 0..5 {
        within_a_second(700..750).await;
        let guard = held_by_the_first_two(&cluster.servers, &ours).await;
        within_a_second(850..950).await;
        let started = Instant::now();
        cluster.servers[1].restart_empty().await;
        until("the turn of the second", async || uptime(&cluster.servers[1]).await > Duration::ZERO).await;
        if started.elapsed() < Duration::from_millis(400) {
            let theirs = client(&cluster, protection).await;
            return two_hold(&guard, &[&theirs]).await;
        }
        // It was started too late or too soon: once more, when nothing is left of this.
        let _ = guard.release().await;
        all_vote(&ours).await;
    }
    panic!("the machine is too slow for this test");
}

/// Waits until a server is old enough to vote for whoever sees it for the first time.
async fn of_some_age(server: &Server) {
    until("a server of some age", async || uptime(server).await >= TTL * 2).await;
}

async fn uptime(server: &Server) -> Duration {
    Duration::from_secs(server.info("server", "uptime_in_seconds").await.parse().expect("seconds"))
}

/// Waits until the wall clock is between so many milliseconds of a second.
async fn within_a_second(millis: std::ops::Range<u32>) {
    let now = || SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").subsec_millis();
    until("a part of the second", async || millis.contains(&now())).await;
}

// ── what is said of it ──────────────────────────────────────────────────────────────────────────────────────────────────

/// All fields of all events at `info` and above, a line for each: of all tests in this process, since what listens in one
/// thread only is passed over where another thread came first.
static LOG: LazyLock<Log> = LazyLock::new(|| {
    let log = Log::default();
    tracing::subscriber::set_global_default(log.clone()).expect("nobody else listens");
    log
});

#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<String>>>);

/// What is said of some nodes since the servers were started: others may have had their ports before.
struct Heard {
    nodes: Vec<String>,
    since: usize,
}

impl Heard {
    fn of(cluster: &Cluster) -> Self {
        Heard { nodes: cluster.addresses(), since: LOG.0.lock().expect("whole").len() }
    }

    fn with(&self, parts: &[&str]) -> usize {
        let lines = LOG.0.lock().expect("whole");
        let ours =
            lines[self.since..].iter().filter(|line| self.nodes.iter().any(|node| line.contains(node)));
        ours.filter(|line| parts.iter().all(|part| line.contains(part))).count()
    }
}

impl Subscriber for Log {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        *metadata.level() <= Level::INFO
    }

    fn new_span(&self, _: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }

    fn record(&self, _: &Id, _: &Record<'_>) {}

    fn record_follows_from(&self, _: &Id, _: &Id) {}

    fn event(&self, event: &Event<'_>) {
        let mut line = Line(event.metadata().level().to_string());
        event.record(&mut line);
        self.0.lock().expect("whole").push(line.0);
    }

    fn enter(&self, _: &Id) {}

    fn exit(&self, _: &Id) {}
}

struct Line(String);

impl Visit for Line {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        self.0 += &format!(" {}={value:?}", field.name());
    }
}

const WAITS: &str = "does not vote yet";

#[tokio::test]
async fn each_change_is_told_once_with_its_reason_and_diagnosed() {
    let mut cluster = Cluster::start(3).await;
    let heard = Heard::of(&cluster);
    let addresses = cluster.addresses();
    let redlock = client(&cluster, On).await;

    // A deployment that was started a moment ago: no warning, but why the first lock takes its time.
    until("three nodes that wait", async || {
        heard.with(&["INFO", WAITS, "why=\"started", "votes_in=2.0s"]) == 3
    })
    .await;
    let refused = promptly(redlock.mutex("job").try_acquire()).await.expect_err("nobody votes");
    let AcquireError::NotReady { votes_in, report } = &refused else { panic!("{refused:#}") };
    assert!(*votes_in <= TTL + TTL / 50, "{refused:#}");
    assert!(report.nodes().iter().filter(|node| node.votes_in().is_some()).count() >= 2, "{refused:#}");
    let refused = promptly(redlock.mutex("job").wait(TTL / 10).acquire()).await.expect_err("nobody votes");
    assert!(matches!(refused, AcquireError::NotReady { .. }), "{refused:#}");
    let diagnosis = redlock.diagnose().await;
    assert_eq!(diagnosis.voting(), 0, "{diagnosis:#}");
    for node in diagnosis.nodes() {
        assert!(node.waits_because().is_some_and(|why| why.starts_with("started ")), "{diagnosis:#}");
        assert!(
            node.votes_in().is_some() && node.latency().is_some() && node.run_id().is_some(),
            "{diagnosis:#}"
        );
        assert_eq!(
            (node.role(), node.eviction_policy()),
            (Some("master"), Some("noeviction")),
            "{diagnosis:#}"
        );
        assert!(node.persistence().is_some_and(|text| text == "no append-only file"), "{diagnosis:#}");
        assert!(
            node.server().is_some_and(|text| text.contains(' ')) && node.trouble().is_none(),
            "{diagnosis:#}"
        );
    }
    assert!(diagnosis.to_string().contains("error: 0 of 3 nodes vote"), "{diagnosis}");

    // A connection that breaks meanwhile changes nothing.
    cluster.servers[0].kill_clients().await;
    until("a connection again", async || heard.with(&["connected again", &addresses[0]]) == 1).await;
    assert_eq!(heard.with(&[WAITS]), 3);

    // The lock comes when they vote, and that is told too.
    drop(promptly(redlock.mutex("job").acquire()).await.expect("it waits"));
    all_vote(&redlock).await;
    until("three nodes that vote", async || heard.with(&["INFO", "message=votes now"]) == 3).await;
    assert_eq!(redlock.diagnose().await.findings(), [], "all is well");

    // A restart does.
    cluster.servers[1].restart_empty().await;
    let restarted = ["WARN", WAITS, "why=\"restarted ", "votes_in=2.0s", &addresses[1]];
    until("the restart", async || heard.with(&restarted) == 1).await;
    let mut waits = None;
    until("a node that waits", async || {
        waits = redlock.diagnose().await.nodes()[1].waits_because().map(str::to_owned);
        waits.is_some()
    })
    .await;
    assert!(waits.is_some_and(|why| why.starts_with("restarted ")));
    all_vote(&redlock).await;
    until("a fourth vote", async || heard.with(&["INFO", "message=votes now"]) == 4).await;
    assert_eq!(heard.with(&[WAITS]), 4);
}

/// Nobody has to ask for the protection, and whoever starts a deployment is told why its first lock takes ten seconds.
#[tokio::test]
async fn a_client_with_the_settings_that_are_the_default_is_protected_and_told_of_the_ten_seconds() {
    let cluster = Cluster::start(3).await;
    let heard = Heard::of(&cluster);
    let redlock = connected(Redlock::builder().nodes(cluster.addresses())).await;
    let refused = promptly(redlock.mutex("job").try_acquire()).await.expect_err("nobody votes");
    let AcquireError::NotReady { votes_in, .. } = &refused else { panic!("{refused:#}") };
    let expected = Duration::from_millis(7_000)..Duration::from_millis(10_200);
    assert!(expected.contains(votes_in), "{refused:#}");
    let said = format!("{refused:#}");
    assert!(said.contains("nodes that were started a short while ago may have forgotten a lock"), "{said}");
    // It is decided by two of them; the third may not have been heard.
    assert!(said.matches("waiting after a restart, votes in ").count() >= 2, "{said}");
    until("the log", async || heard.with(&["INFO", WAITS, "why=\"started", "votes_in="]) == 3).await;
}

/// It may not be asked who it is, but it may be asked for its configuration.
#[tokio::test]
async fn a_word_is_not_followed_where_only_the_configuration_speaks_and_contradicts_it() {
    let cluster = Cluster::start(1).await;
    cluster.servers[0].type_in::<()>(BLIND).await;
    let redlock = connected(guarded(blind(&cluster, NodeConfig::trust_disk), On)).await;
    let refused = promptly(redlock.mutex("job").try_acquire()).await.expect_err("it may have forgotten");
    assert!(matches!(refused, AcquireError::NotReady { .. }), "{refused:#}");
    let said = format!("{:#}", redlock.diagnose().await);
    assert!(said.contains("trust_disk is not followed: appendonly is no, not yes"), "{said}");
}

#[tokio::test]
async fn a_node_that_does_not_say_who_it_is_waits_at_every_connection_and_is_told_once() {
    let cluster = Cluster::start(1).await;
    let heard = Heard::of(&cluster);
    let server = &cluster.servers[0];
    server.type_in::<()>(BLIND).await;
    let redlock = connected(guarded(blind(&cluster, identity), On)).await;
    let votes = async || redlock.diagnose().await.voting() == 1;
    until("a vote", votes).await;
    server.type_in::<()>("CLIENT KILL USER blind").await;
    until("a connection again", async || heard.with(&["connected again"]) == 1).await;
    let refused = promptly(redlock.mutex("job").try_acquire()).await.expect_err("it waits again");
    assert!(matches!(refused, AcquireError::NotReady { .. }), "{refused:#}");
    let diagnosis = redlock.diagnose().await;
    let said = format!("{diagnosis:#}");
    for part in ["does not say who it is (INFO forbidden)", "INFO refused (NOPERM", "+info"] {
        assert!(said.contains(part), "{part}: {said}");
    }
    assert_eq!(diagnosis.nodes()[0].run_id(), None);
    drop(promptly(redlock.mutex("job").acquire()).await.expect("it votes in the end"));
    assert_eq!(heard.with(&["WARN", WAITS, "does not say who it is"]), 1);
}

/// With one node that is gone and one that hangs, and as quickly as the node timeout.
#[tokio::test]
async fn a_diagnosis_names_what_is_wrong_with_each_node_and_what_to_do() {
    const EVICTING: [&str; 4] = ["--maxmemory", "100mb", "--maxmemory-policy", "allkeys-lru"];
    let (mut cluster, spare) = join(Cluster::start_with(6, &EVICTING), Server::start()).await;
    cluster.servers[4].follow(&spare).await;
    let with_secret = |address: String| NodeConfig::new(address).username("default").password("hunter2");
    let mut nodes: Vec<_> = cluster.addresses().into_iter().map(with_secret).collect();
    let last = nodes.pop().expect("six");
    let redlock = guarded(over(nodes).node(last.trust_disk()), On).connect_lazy().expect("good settings");
    until("all that can be reached", async || {
        redlock.diagnose().await.nodes().iter().filter(|node| node.latency().is_some()).count() == 5
    })
    .await;
    cluster.servers[1].kill();
    until("a node that is gone", async || redlock.diagnose().await.nodes()[1].trouble().is_some()).await;
    cluster.servers[2].stop();
    let diagnosis = promptly(redlock.diagnose()).await;
    cluster.servers[2].cont();

    let said = format!("{diagnosis:#}");
    let found = |node: Option<usize>, severity: Severity, part: &str| {
        let node = node.map(|node| cluster.servers[node].address());
        let mut findings = diagnosis.findings().iter().filter(|finding| finding.node() == node.as_deref());
        assert!(
            findings.any(|finding| finding.severity() == severity && finding.what().contains(part)),
            "{part}: {said}"
        );
    };
    found(None, Severity::Warning, "6 nodes tolerate no more failures than 5");
    found(Some(0), Severity::Error, "maxmemory-policy is allkeys-lru");
    found(Some(1), Severity::Warning, "onnect");
    found(Some(2), Severity::Warning, "timed out");
    found(Some(4), Severity::Error, "is a replica");
    found(Some(5), Severity::Warning, "trust_disk is not followed: appendonly is no, not yes");
    assert!(!said.contains("hunter2"), "{said}");
    let grave: Vec<_> = diagnosis.findings().iter().map(redlock_quorum::Finding::severity).collect();
    assert!(grave.is_sorted_by(|a, b| a >= b), "{said}");
    assert!(diagnosis.findings().iter().all(|finding| said.contains(finding.advice())), "{said}");
    assert_eq!(diagnosis.to_string().lines().count(), 6 + diagnosis.findings().len(), "{diagnosis}");
}
