//! Servers that answer with an error. Each is a vote that is missing, with its reason in the report: a minority of them
//! changes nothing, a majority is no quorum, and when the trouble is over everything goes on by itself.
#![cfg(feature = "redis")]

mod harness;

use std::io::Write;
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use futures::future::join_all;
use harness::proxy::{Proxy, Way};
use harness::{Cluster, LONG_TTL, PROMPT, Server, promptly, soon, until};
use redlock_quorum::RestartProtection::Off;
use redlock_quorum::{AcquireError, ConnectError, Guard, Redlock, RedlockBuilder, ReleaseOutcome};

const KEY: &str = "redlock:job";

/// A way in which a server refuses to set a key.
struct Trouble {
    /// How the report names it.
    reason: &'static str,
    begin: &'static [&'static str],
    end: &'static [&'static str],
}

const OUT_OF_MEMORY: Trouble = Trouble {
    reason: "OOM",
    begin: &["CONFIG SET maxmemory-policy noeviction", "CONFIG SET maxmemory 1"],
    end: &["CONFIG SET maxmemory 0"],
};

const WRONG_TYPE: Trouble =
    Trouble { reason: "held by another", begin: &["LPUSH redlock:job x"], end: &["DEL redlock:job"] };

const REPLICA: Trouble =
    Trouble { reason: "READONLY", begin: &["REPLICAOF 127.0.0.1 1"], end: &["REPLICAOF NO ONE"] };

/// NOREPLICAS: it stands for all the errors that have no name of their own.
const NO_REPLICAS: Trouble = Trouble {
    reason: "server error",
    begin: &["CONFIG SET min-replicas-max-lag 10", "CONFIG SET min-replicas-to-write 1"],
    end: &["CONFIG SET min-replicas-to-write 0"],
};

#[tokio::test]
async fn a_server_that_refuses_is_a_missing_vote_and_recovers() {
    let cluster = Cluster::start(3).await;
    let redlock = cluster.redlock().await;
    for trouble in [OUT_OF_MEMORY, REPLICA, NO_REPLICAS] {
        is_a_missing_vote(&cluster, &redlock, &trouble).await;
    }
}

/// On one node it costs its vote, on two the quorum; after it all three vote again, and nothing is left.
async fn is_a_missing_vote(cluster: &Cluster, redlock: &Redlock, trouble: &Trouble) {
    begin(trouble, &cluster.servers[..1]).await;
    let guard = promptly(redlock.mutex("job").acquire()).await.expect("two of three");
    until_all_have_answered(&guard).await;
    let votes = guard.votes();
    assert!(votes.nodes()[0].in_words().contains(trouble.reason), "{votes:#}");
    assert_eq!((votes.granted(), votes.unknown()), (2, 1), "{votes:#}");
    assert_eq!(promptly(guard.release()).await.outcome, ReleaseOutcome::Released);

    begin(trouble, &cluster.servers[1..2]).await;
    let report = match promptly(redlock.mutex("job").wait(Duration::from_millis(500)).acquire()).await {
        Err(AcquireError::NoQuorum(report)) => report,
        other => panic!("{}: {other:?}", trouble.reason),
    };
    let named = report.nodes().iter().filter(|node| node.in_words().contains(trouble.reason)).count();
    assert_eq!(named, 2, "{report:#}");

    end(trouble, &cluster.servers[..2]).await;
    until_all_vote(redlock).await;
    cluster.assert_nothing_left().await;
}

/// Whose rights these tests take away and give back, whoever the other tests log in as.
fn as_default_user(cluster: &Cluster) -> RedlockBuilder {
    harness::over(cluster.addresses())
}

async fn begin(trouble: &Trouble, servers: &[Server]) {
    type_into(servers, trouble.begin).await;
}

async fn end(trouble: &Trouble, servers: &[Server]) {
    type_into(servers, trouble.end).await;
}

async fn type_into(servers: &[Server], lines: &[&str]) {
    for line in lines {
        join_all(servers.iter().map(|server| server.type_in::<redis::Value>(line))).await;
    }
}

async fn until_all_have_answered(guard: &Guard) {
    let answered = async || {
        let votes = guard.votes();
        votes.granted() + votes.denied() + votes.unknown() == votes.nodes().len()
    };
    until("an answer of every node", answered).await;
}

/// Sooner or later every node grants again.
async fn until_all_vote(redlock: &Redlock) {
    soon(PROMPT * 2, async {
        loop {
            let Ok(guard) = redlock.mutex("afterwards").wait_forever().acquire().await else { continue };
            until_all_have_answered(&guard).await;
            let all = guard.votes().granted() == guard.votes().nodes().len();
            let _ = guard.release().await;
            if all {
                return;
            }
        }
    })
    .await;
}

#[tokio::test]
async fn a_held_lock_is_extended_and_released_by_servers_without_memory() {
    let cluster = Cluster::start(3).await;
    let redlock = cluster.redlock().await;
    let guard = promptly(redlock.mutex("job").acquire()).await.expect("free");
    begin(&OUT_OF_MEMORY, &cluster.servers).await;
    assert!(promptly(redlock.mutex("other").try_acquire()).await.is_err(), "nothing new can be set");
    promptly(guard.extend(LONG_TTL)).await.expect("a key that stands needs no memory to live longer");
    until("three confirmations", async || guard.last_answers().granted() == 3).await;
    assert_eq!(promptly(guard.release()).await.outcome, ReleaseOutcome::Released);
    assert_eq!(cluster.ours().await, []);
    end(&OUT_OF_MEMORY, &cluster.servers).await;
}

#[tokio::test]
async fn a_key_of_another_type_is_held_by_another_and_left_alone() {
    let cluster = Cluster::start(3).await;
    let redlock = cluster.redlock().await;
    begin(&WRONG_TYPE, &cluster.servers[..1]).await;
    let guard = promptly(redlock.mutex("job").acquire()).await.expect("two of three");
    until_all_have_answered(&guard).await;
    assert!(guard.votes().nodes()[0].in_words().contains(WRONG_TYPE.reason), "{:#}", guard.votes());
    promptly(guard.extend(LONG_TTL)).await.expect("two of three");
    until("the third answer", async || guard.last_answers().unknown() == 1).await;
    assert!(guard.last_answers().nodes()[0].in_words().contains("WRONGTYPE"), "{:#}", guard.last_answers());
    assert_eq!(promptly(guard.release()).await.outcome, ReleaseOutcome::Released);

    begin(&WRONG_TYPE, &cluster.servers[1..]).await;
    assert!(promptly(redlock.mutex("job").try_acquire()).await.is_err(), "no node can say who holds it");
    for server in &cluster.servers {
        assert_eq!(server.type_in::<String>("TYPE redlock:job").await, "list");
    }
    end(&WRONG_TYPE, &cluster.servers).await;
    until_all_vote(&redlock).await;
}

#[tokio::test]
async fn a_server_that_cannot_save_refuses_with_its_reason() {
    let cluster = Cluster::start_with(3, &["--enable-protected-configs", "yes"]).await;
    let redlock = cluster.redlock().await;
    for server in &cluster.servers[..2] {
        let nowhere = server.directory().join("gone");
        std::fs::create_dir(&nowhere).expect("a directory of the server's");
        server.type_in::<()>(&format!("CONFIG SET dir {}", nowhere.display())).await;
        std::fs::remove_dir(&nowhere).expect("an empty directory");
        server.ask::<()>(redis::cmd("CONFIG").arg("SET").arg("save").arg("3600 1")).await;
        server.type_in::<redis::Value>("BGSAVE").await;
        until("the failure to save", async || {
            server.info("persistence", "rdb_last_bgsave_status").await == "err"
        })
        .await;
    }
    let report = match promptly(redlock.mutex("job").wait(Duration::from_millis(500)).acquire()).await {
        Err(AcquireError::NoQuorum(report)) => report,
        other => panic!("{other:?}"),
    };
    for node in &report.nodes()[..2] {
        assert!(node.in_words().contains("MISCONF"), "{report:#}");
    }
    type_into(&cluster.servers[..2], &["CONFIG SET stop-writes-on-bgsave-error no"]).await;
    until_all_vote(&redlock).await;
    cluster.assert_nothing_left().await;
}

#[tokio::test]
async fn a_server_that_a_script_blocks_is_a_missing_vote_until_the_script_ends() {
    let cluster = Cluster::start(3).await;
    let redlock = cluster.redlock().await;
    type_into(&cluster.servers[..1], &["CONFIG SET busy-reply-threshold 10"]).await;
    let blocked = cluster.servers[0].port();
    let endless = tokio::spawn(async move {
        let client = redis::Client::open(format!("redis://127.0.0.1:{blocked}")).expect("an address");
        let mut connection = client.get_multiplexed_async_connection().await.expect("a connection");
        let _: Result<(), _> =
            redis::cmd("EVAL").arg("while true do end").arg(0).query_async(&mut connection).await;
    });
    let is_blocked = async || {
        let guard = promptly(redlock.mutex("job").acquire()).await.expect("two of three");
        until_all_have_answered(&guard).await;
        let blocked = guard.votes().nodes()[0].in_words().contains("BUSY");
        assert_eq!(promptly(guard.release()).await.outcome, ReleaseOutcome::Released);
        blocked
    };
    until("a vote that is missing for the script", is_blocked).await;
    type_into(&cluster.servers[..1], &["SCRIPT KILL"]).await;
    endless.await.expect("no panic");
    until_all_vote(&redlock).await;
    cluster.assert_nothing_left().await;
}

#[tokio::test]
async fn a_server_that_is_full_of_clients_is_down_with_a_reason_until_it_is_not() {
    let cluster = Cluster::start(3).await;
    let client =
        redis::Client::open(format!("redis://{}", cluster.servers[0].address())).expect("an address");
    let mut only = client.get_multiplexed_async_connection().await.expect("a place");
    let mut places = async |count: usize| {
        let mut command = redis::cmd("CONFIG");
        command.arg("SET").arg("maxclients").arg(count).query_async::<()>(&mut only).await.expect("heard");
    };
    places(1).await;
    let redlock = promptly(cluster.builder().connect()).await.expect("two of three");
    let guard = promptly(redlock.mutex("job").acquire()).await.expect("two of three");
    until_all_have_answered(&guard).await;
    assert!(guard.votes().nodes()[0].in_words().contains("not connected"), "{:#}", guard.votes());
    assert_eq!(promptly(guard.release()).await.outcome, ReleaseOutcome::Released);
    let error = promptly(Redlock::builder().node(cluster.servers[0].address()).connect()).await;
    let error = error.expect_err("there is no place").to_string();
    assert!(error.contains("max number of clients reached"), "{error}");
    places(100).await;
    until_all_vote(&redlock).await;
    cluster.assert_nothing_left().await;
}

#[tokio::test]
async fn a_connection_that_is_killed_between_two_calls_comes_back() {
    let cluster = Cluster::start(3).await;
    let redlock = cluster.redlock().await;
    let guard = promptly(redlock.mutex("job").ttl(Duration::from_secs(2)).acquire()).await.expect("free");
    for _ in 0..5 {
        join_all(cluster.servers.iter().map(Server::kill_clients)).await;
        until_all_vote(&redlock).await;
        assert!(guard.is_valid());
    }
    assert_eq!(promptly(guard.release()).await.outcome, ReleaseOutcome::Released);
    cluster.assert_nothing_left().await;
}

#[tokio::test]
async fn a_connection_that_is_killed_in_the_middle_of_a_call_leaves_nothing() {
    let cluster = Cluster::start(3).await;
    let redlock = cluster.redlock().await;
    for _ in 0..10 {
        // The servers take the SETs in and do not answer yet; then they drop the connections.
        type_into(&cluster.servers, &["CLIENT PAUSE 10000 WRITE"]).await;
        let attempt = tokio::spawn({
            let redlock = redlock.clone();
            async move { redlock.mutex("job").wait(Duration::from_millis(300)).acquire().await.map(drop) }
        });
        let waiting = async || cluster.servers[0].info("clients", "blocked_clients").await != "0";
        until("a command that waits", waiting).await;
        join_all(cluster.servers.iter().map(Server::kill_clients)).await;
        type_into(&cluster.servers, &["CLIENT UNPAUSE"]).await;
        let _ = promptly(attempt).await.expect("no panic");
        cluster.assert_nothing_left().await;
    }
    until_all_vote(&redlock).await;
    assert_eq!(cluster.ours().await, []);
}

#[tokio::test]
async fn a_server_that_reads_its_data_has_no_vote_until_it_has() {
    let mut cluster = Cluster::start(3).await;
    let redlock = cluster.redlock().await;
    make_it_read_for_two_seconds(&mut cluster).await;
    let guard = promptly(redlock.mutex("job").acquire()).await.expect("two of three");
    until_all_have_answered(&guard).await;
    assert_eq!((guard.votes().granted(), guard.votes().unknown()), (2, 1), "{:#}", guard.votes());
    promptly(guard.extend(LONG_TTL)).await.expect("two of three");

    let alone = Redlock::builder().node(cluster.servers[0].address()).connect();
    let error = promptly(alone).await.expect_err("it reads its data");
    assert!(error.to_string().contains("LOADING"), "{error}");
    until_all_vote(&redlock).await;
    assert_eq!(promptly(guard.release()).await.outcome, ReleaseOutcome::Released);
    cluster.assert_nothing_left().await;
}

/// Keys of others are saved, and read again one by one: meanwhile the server answers, but refuses nearly everything.
async fn make_it_read_for_two_seconds(cluster: &mut Cluster) {
    let server = &mut cluster.servers[0];
    for number in 0..400 {
        server.set(&format!("other:{number}"), harness::FOREIGN).await;
    }
    server.type_in::<()>("SAVE").await;
    let slowly = ["--key-load-delay", "5000", "--loading-process-events-interval-bytes", "1024"];
    server.restart_with_its_data(&slowly).await;
}

#[tokio::test]
async fn what_is_owed_to_a_server_that_reads_its_data_is_released_when_it_has() {
    let mut cluster = Cluster::start(3).await;
    let redlock = cluster.redlock().await;
    let guard = promptly(redlock.mutex("job").acquire()).await.expect("free");
    until_all_have_answered(&guard).await;
    make_it_read_for_two_seconds(&mut cluster).await;
    assert_eq!(promptly(guard.release()).await.outcome, ReleaseOutcome::Released);
    let read = async || cluster.servers[0].info("persistence", "loading").await == "0";
    until("the end of the reading", read).await;
    cluster.assert_nothing_left().await;
}

#[tokio::test]
async fn a_release_that_a_server_refuses_is_made_up_for() {
    let cluster = Cluster::start(3).await;
    let redlock = cluster.redlock().await;
    for trouble in [REPLICA, NO_REPLICAS] {
        let guard = promptly(redlock.mutex("job").acquire()).await.expect("free");
        until_all_have_answered(&guard).await;
        begin(&trouble, &cluster.servers[..1]).await;
        assert_eq!(promptly(guard.release()).await.outcome, ReleaseOutcome::Released);
        assert!(cluster.servers[0].value(KEY).await.is_some(), "{}: not refused", trouble.reason);
        end(&trouble, &cluster.servers[..1]).await;
        cluster.assert_nothing_left().await;
    }
}

#[tokio::test]
async fn a_server_that_speaks_only_the_older_protocol_is_a_node_like_any_other() {
    let cluster = Cluster::start_with(3, &["--rename-command", "HELLO", ""]).await;
    let redlock = promptly(cluster.builder().connect()).await.expect("RESP2 is enough");
    let guard = promptly(redlock.mutex("job").acquire()).await.expect("free");
    promptly(guard.extend(LONG_TTL)).await.expect("held");
    let seen = promptly(redlock.mutex("job").inspect()).await.expect("answered");
    assert!(seen.by_majority());
    assert_eq!(promptly(guard.release()).await.outcome, ReleaseOutcome::Released);
    cluster.assert_nothing_left().await;
}

#[tokio::test]
async fn a_member_of_a_redis_cluster_can_never_vote() {
    let cluster = Cluster::start_with(1, &["--cluster-enabled", "yes"]).await;
    match promptly(cluster.builder().connect()).await {
        Err(ConnectError::Unfit { nodes }) => assert!(nodes[0].1.contains("cluster"), "{nodes:?}"),
        other => panic!("{other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_release_that_is_refused_is_asked_for_again_under_load() {
    let cluster = Cluster::start(1).await;
    let redlock = as_default_user(&cluster)
        .node_timeout(Duration::from_millis(20))
        .connect()
        .await
        .expect("all are there");
    let guard = promptly(redlock.mutex("job").acquire()).await.expect("free");
    type_into(&cluster.servers, &["ACL SETUSER default resetkeys ~redlock:load*"]).await;
    let _ = guard.release().await;
    let load: Vec<_> = (0..64)
        .map(|number| {
            let mutex = redlock.mutex(format!("load-{number}"));
            tokio::spawn(async move {
                loop {
                    if let Ok(guard) = mutex.acquire().await {
                        let _ = guard.release().await;
                    }
                }
            })
        })
        .collect();
    type_into(&cluster.servers, &["ACL SETUSER default ~*"]).await;
    let gone = async || cluster.servers[0].value(KEY).await.is_none();
    until("the release that was refused before", gone).await;
    load.iter().for_each(tokio::task::JoinHandle::abort);
}

#[tokio::test]
async fn a_release_that_is_refused_is_asked_for_again_after_the_last_handle() {
    let cluster = Cluster::start(1).await;
    let builder = as_default_user(&cluster).node_timeout(Duration::from_millis(20));
    let redlock = builder.connect().await.expect("all are there");
    let guard = promptly(redlock.mutex("job").acquire()).await.expect("free");
    type_into(&cluster.servers, &["ACL SETUSER default -eval -evalsha", "ACL LOG RESET"]).await;
    let _ = guard.release().await;
    drop(redlock);
    // Once for the release, and again when nobody is left.
    let refusals = async || {
        let log: Vec<redis::Value> = cluster.servers[0].type_in("ACL LOG").await;
        let count = |entry: &redis::Value| {
            let fields: std::collections::HashMap<String, redis::Value> =
                redis::from_redis_value_ref(entry).ok()?;
            redis::from_redis_value_ref::<u64>(fields.get("count")?).ok()
        };
        log.iter().filter_map(count).sum::<u64>()
    };
    until("a release that is asked for again", async || refusals().await > 2).await;
    type_into(&cluster.servers, &["ACL SETUSER default +eval +evalsha"]).await;
    cluster.assert_nothing_left().await;
}

#[tokio::test]
async fn a_release_that_is_refused_is_asked_for_again_after_the_last_handle_and_a_stall() {
    let cluster = Cluster::start(1).await;
    let redlock = as_default_user(&cluster)
        .node_timeout(Duration::from_millis(100))
        .connect()
        .await
        .expect("all are there");
    let guard = promptly(redlock.mutex("job").acquire()).await.expect("free");
    type_into(&cluster.servers, &["ACL SETUSER default -eval -evalsha"]).await;
    let _ = guard.release().await;
    type_into(&cluster.servers, &["ACL SETUSER default +eval +evalsha"]).await;
    let last = tokio::spawn(async move {
        tokio::time::sleep(Duration::from_millis(20)).await;
        drop(redlock);
    });
    tokio::task::yield_now().await;
    // The whole process stands still over both moments: the last handle goes in the turn in which the pause is over.
    std::thread::sleep(Duration::from_millis(200));
    last.await.expect("no panic");
    cluster.assert_nothing_left().await;
}

#[tokio::test]
async fn an_extension_that_a_script_was_missing_for_is_not_sent_again_behind_a_release() {
    let cluster = Cluster::start(1).await;
    let server = &cluster.servers[0];
    let proxy = Proxy::before(server.port()).await;
    let hour = Duration::from_secs(3_600);
    let builder = harness::over([proxy.address()]).ttl(hour).node_timeout(Duration::from_secs(3));
    let redlock = promptly(builder.connect()).await.expect("all are there");
    let mutex = redlock.mutex("job").hold_at_least(Duration::from_millis(1_500));
    let guard = promptly(mutex.acquire()).await.expect("free");
    server.type_in::<()>("SCRIPT FLUSH").await;
    proxy.hold([Way::ToClient]);
    assert!(futures::poll!(std::pin::pin!(guard.extend(hour))).is_pending());
    let refused = async || {
        server.calls("evalsha").await > 0
            && server
                .info("commandstats", "cmdstat_evalsha")
                .await
                .contains("rejected_calls=0,failed_calls=1")
    };
    until("the extension that finds no script", refused).await;
    // Another client loads the scripts, so that the release is carried out at once.
    let _other = cluster.redlock().await;
    let release = tokio::spawn(guard.release());
    let lingers = async || server.expiry(KEY).await.is_some_and(|left| left < Duration::from_millis(1_600));
    until("the key that lingers", lingers).await;
    proxy.release([Way::ToClient]);
    assert_eq!(promptly(release).await.expect("no panic").outcome, ReleaseOutcome::Released);
    until("an answer to all that was sent", async || redlock.mutex("job").inspect().await.is_ok()).await;
    assert!(
        server.expiry(KEY).await.is_none_or(|left| left < Duration::from_millis(1_600)),
        "it got its hour back"
    );
}

#[tokio::test]
async fn releases_that_are_refused_are_not_asked_for_in_a_storm() {
    let cluster = Cluster::start(1).await;
    let server = &cluster.servers[0];
    let redlock = as_default_user(&cluster)
        .node_timeout(Duration::from_millis(20))
        .connect()
        .await
        .expect("all are there");
    let locks = (0..2_000).map(|number| {
        let mutex = redlock.mutex(format!("{number}"));
        async move { promptly(mutex.acquire()).await.expect("free") }
    });
    let guards = join_all(locks).await;
    type_into(&cluster.servers, &["ACL SETUSER default -eval -evalsha"]).await;
    drop(guards);
    let refusals = async || -> u64 {
        let line = server.info("commandstats", "cmdstat_evalsha").await;
        let count = line.split(',').find_map(|part| part.strip_prefix("rejected_calls="));
        count.and_then(|count| count.parse().ok()).unwrap_or(0)
    };
    until("a refusal of each", async || refusals().await >= 2_000).await;
    let before = refusals().await;
    // Some twenty-five node timeouts: to ask for all of them in each would be fifty thousand.
    tokio::time::sleep(Duration::from_millis(500)).await;
    let asked = refusals().await - before;
    assert!(asked < 100, "asked {asked} times");

    type_into(&cluster.servers, &["ACL SETUSER default +eval +evalsha"]).await;
    cluster.assert_nothing_left().await;
}

/// Something between client and server may answer by itself, that a script is not there, even if it was sent. Nobody is asked for
/// ever: a release that went out by itself is sent twice, and those that went out together twice so, and once each by itself.
#[tokio::test]
async fn a_script_that_is_never_there_is_not_sent_for_ever() {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = listener.local_addr().expect("bound").to_string();
    let scripts = Arc::new(AtomicUsize::new(0));
    let counted = scripts.clone();
    thread::spawn(move || lack_every_script(&listener, &counted));
    // What is owed is asked for again after a node timeout: long after this test.
    let builder =
        Redlock::builder().nodes([address]).restart_protection(Off).ttl(PROMPT * 4).node_timeout(PROMPT);
    let redlock = promptly(builder.connect()).await.expect("it says something");
    for (locks, most) in [(1, 2), (8, 2 + 8)] {
        let guards = join_all((0..locks).map(|job| {
            let mutex = redlock.mutex(format!("job-{job}"));
            async move { promptly(mutex.acquire()).await.expect("free") }
        }))
        .await;
        let before = scripts.load(Ordering::Relaxed);
        for release in join_all(guards.into_iter().map(|guard| promptly(guard.release()))).await {
            assert!(release.report.nodes()[0].in_words().contains("server error"), "{:#}", release.report);
        }
        assert_eq!(scripts.load(Ordering::Relaxed) - before, most, "for {locks} locks");
    }
}

/// Does whatever it is told, it says, but for scripts. Goes on until the process ends.
fn lack_every_script(listener: &TcpListener, scripts: &AtomicUsize) {
    thread::scope(|connections| {
        for stream in listener.incoming() {
            connections.spawn(|| answer(&stream.expect("a connection"), scripts));
        }
    });
}

fn answer(mut stream: &TcpStream, scripts: &AtomicUsize) {
    stream.set_nodelay(true).expect("a connection");
    let mut parser = redis::Parser::new();
    while let Ok(redis::Value::Array(command)) = parser.parse_value(stream) {
        let redis::Value::BulkString(name) = &command[0] else { panic!("no command: {command:?}") };
        let reply: &[u8] = match &name[..] {
            b"EVAL" | b"EVALSHA" => {
                // What only looks at a key has nothing behind it.
                let gives_back = command.len() > 4;
                scripts.fetch_add(usize::from(gives_back), Ordering::Relaxed);
                b"-NOSCRIPT No matching script\r\n"
            }
            _ => b"+OK\r\n",
        };
        if stream.write_all(reply).is_err() {
            return;
        }
    }
}
