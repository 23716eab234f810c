//! Users with few rights, wrong passwords, passwords that change, and sockets: on real servers.

#![cfg(all(feature = "redis", unix))]

mod harness;

use std::time::{Duration, Instant};

use futures::future::join_all;
use harness::{Cluster, PROMPT, Server, over, until};
use redlock_quorum::{
    AcquireError, ConnectError, Guard, NodeConfig, Redlock, RedlockBuilder, ReleaseOutcome,
};

/// So long that nothing in these tests ends by itself.
const TTL: Duration = Duration::from_secs(100);

/// For machines that are busy.
const NODE_TIMEOUT: Duration = Duration::from_millis(500);

/// The line that people paste.
fn documented_line() -> String {
    let text = include_str!("../docs/operations.md");
    let mut lines = text.lines().filter(|line| line.starts_with("ACL SETUSER "));
    lines.next().expect("the line in the docs").to_owned()
}

/// Three servers, each with the documented user, whose password is `first-secret`.
async fn three_servers() -> Cluster {
    with_the_user(3, &documented_line()).await
}

async fn with_the_user(nodes: usize, line: &str) -> Cluster {
    let cluster = Cluster::start(nodes).await;
    on_all(&cluster, &line.replace(">PASSWORD", ">first-secret")).await;
    cluster
}

async fn on_all(cluster: &Cluster, line: &str) {
    join_all(cluster.servers.iter().map(|server| server.type_in::<redis::Value>(line))).await;
}

fn as_locks(cluster: &Cluster) -> RedlockBuilder {
    let node = |address| NodeConfig::new(address).username("locks").password("first-secret");
    let nodes = cluster.addresses().into_iter().map(node);
    over(nodes).node_timeout(NODE_TIMEOUT).ttl(TTL)
}

/// What each node said, in words.
fn words(error: &AcquireError) -> Vec<String> {
    let report = error.report().expect("the nodes were asked");
    report.nodes().iter().map(|node| node.in_words()).collect()
}

fn reasons(error: &ConnectError) -> Vec<String> {
    match error {
        ConnectError::NoQuorum { nodes } => {
            nodes.iter().map(|(_, reason)| reason.clone().unwrap_or_default()).collect()
        }
        other => panic!("{other}"),
    }
}

/// Everything that a lock can do: acquire, exclude, inspect, extend, heal, renew, release.
async fn a_whole_life(redlock: &Redlock, cluster: &Cluster) {
    let mutex = redlock.mutex("a").metadata("here");
    let guard = mutex.acquire().await.expect("a free lock");
    until("the key is everywhere", async || cluster.ours().await.len() == 3).await;

    let seen = mutex.inspect().await.expect("rights to look");
    assert!(seen.by_majority());
    assert_eq!(seen.metadata(), Some("here"));

    guard.extend(TTL).await.expect("extended");
    cluster.servers[1].delete("redlock:a").await;
    healed(&guard, &cluster.servers[1]).await;
    assert_eq!(guard.release().await.outcome, ReleaseOutcome::Released);

    let together = join_all(["c", "d"].map(|resource| {
        let mutex = redlock.mutex(resource);
        async move { mutex.acquire().await.expect("a free lock") }
    }));
    for release in join_all(together.await.into_iter().map(Guard::release)).await {
        assert_eq!(release.outcome, ReleaseOutcome::Released);
    }

    let renewed = redlock.mutex("b").ttl(Duration::from_millis(1500)).acquire().await.expect("a free lock");
    let mut least = renewed.remaining();
    until("renewed by itself", async || {
        let now = renewed.remaining();
        least = least.min(now);
        now > least
    })
    .await;
    assert!(renewed.is_valid());
    drop(renewed);
    cluster.assert_nothing_left().await;
}

/// Extends until the node has the key again: the first extension finds it missing.
async fn healed(guard: &Guard, server: &Server) {
    guard.extend(TTL).await.expect("extended by the others");
    until("healed", async || server.value("redlock:a").await.is_some()).await;
}

#[tokio::test]
async fn the_documented_rights_are_enough() {
    let cluster = three_servers().await;
    let redlock = as_locks(&cluster).connect().await.expect("a majority");
    a_whole_life(&redlock, &cluster).await;
    for server in &cluster.servers {
        let refused: Vec<redis::Value> = server.type_in("ACL LOG").await;
        // What newer servers are told about the client's library is not needed.
        let refused: Vec<_> = refused.iter().map(|entry| format!("{entry:?}")).collect();
        assert!(refused.iter().all(|entry| entry.contains("client|setinfo")), "{refused:?}");
    }
}

#[tokio::test]
async fn a_server_that_forgot_the_scripts_gets_them_again() {
    let cluster = three_servers().await;
    let redlock = as_locks(&cluster).connect().await.expect("a majority");
    on_all(&cluster, "SCRIPT FLUSH").await;
    let guard = redlock.mutex("a").acquire().await.expect("a free lock");
    guard.extend(TTL).await.expect("extended");
    on_all(&cluster, "SCRIPT FLUSH").await;
    assert_eq!(guard.release().await.outcome, ReleaseOutcome::Released);
    cluster.assert_nothing_left().await;
}

#[tokio::test]
async fn eval_alone_is_enough() {
    for fewer in [
        "-script|load",
        "-info",
        "-client|tracking",
        "-client|caching",
        "-script|load -info -client|tracking -client|caching",
        "-script|load -evalsha -info",
        "-mget",
    ] {
        let cluster = three_servers().await;
        on_all(&cluster, &format!("ACL SETUSER locks {fewer}")).await;
        let redlock = as_locks(&cluster).connect().await.expect(fewer);
        a_whole_life(&redlock, &cluster).await;
    }
}

#[tokio::test]
async fn each_documented_right_is_needed() {
    for (right, missed_by) in [
        ("+set", "acquire"),
        ("+get", "extend"),
        ("+pttl", "extend"),
        ("+pexpire", "extend"),
        ("+del", "release"),
    ] {
        assert!(documented_line().contains(&format!(" {right} ")), "{right}");
        let cluster = with_the_user(1, &documented_line().replace(&format!(" {right} "), " ")).await;
        let redlock = as_locks(&cluster).connect().await.expect("a majority");
        let missed = match redlock.mutex("a").ttl(TTL / 2).wait(Duration::from_millis(50)).acquire().await {
            Err(error) => {
                assert!(words(&error)[0].starts_with("refused (NOPERM"), "{error:#}");
                "acquire"
            }
            Ok(guard) => match guard.extend(TTL).await {
                Err(_) => "extend",
                Ok(()) => {
                    let release = guard.release().await;
                    let told = release.report.nodes().iter().any(|node| node.in_words().contains("NOPERM"));
                    match release.outcome {
                        ReleaseOutcome::Released => "nothing",
                        _ if told => "release",
                        _ => panic!("without {right}: {release:#}"),
                    }
                }
            },
        };
        assert_eq!(missed, missed_by, "without {right}");
    }
}

/// What is refused together is told one by one, with all that could be done done.
#[tokio::test]
async fn releases_that_are_refused_together_are_asked_for_one_by_one() {
    for (fewer, calls, told) in [
        ("-mget", 1, ["released", "released"]),
        ("resetkeys ~redlock:a ~redlock#*", 1, ["released", "NOPERM"]),
        ("-del", 5, ["NOPERM", "NOPERM"]),
    ] {
        let cluster = with_the_user(1, &documented_line()).await;
        let redlock = as_locks(&cluster).connect().await.expect("a majority");
        let server = &cluster.servers[0];
        let guards = join_all(["a", "b"].map(|resource| {
            let mutex = redlock.mutex(resource);
            async move { mutex.acquire().await.expect("a free lock") }
        }))
        .await;
        server.type_in::<()>(&format!("ACL SETUSER locks {fewer}")).await;
        server.type_in::<()>("CONFIG RESETSTAT").await;
        let releases = join_all(guards.into_iter().map(Guard::release)).await;
        assert_eq!(server.calls("evalsha").await, calls, "{fewer}");
        for (release, told) in releases.iter().zip(told) {
            let words = release.report.nodes()[0].in_words();
            assert!(words.contains(told), "{fewer}: {words} instead of {told}");
        }
        server.type_in::<()>(&documented_line().replace(">PASSWORD", ">first-secret")).await;
        // What was refused is owed.
        cluster.assert_nothing_left().await;
    }
}

/// Whatever is missing, no key is left behind by what was half done.
#[tokio::test]
async fn each_documented_right_is_needed_for_fences() {
    for right in ["+info", "+exists", "+hmget", "+hset", "+hdel", "+time", "+set", "+get", "~redlock#*"] {
        let line = format!("{} ", documented_line());
        assert!(line.contains(&format!(" {right} ")), "{right}");
        let cluster = with_the_user(1, &line.replace(&format!(" {right} "), " ")).await;
        // Whoever has all rights has made it count.
        let operator = over(cluster.addresses()).ttl(TTL).connect().await.expect("a majority");
        operator.bootstrap().await.expect("nothing is held");
        // A fence right above the last one needs no clock.
        cluster.servers[0].type_in::<()>("HSET redlock#node high_water 0 floor 0").await;
        let redlock = as_locks(&cluster).connect().await.expect("a majority");
        let mutex = redlock.fenced_mutex("a").wait(Duration::from_millis(50));
        match mutex.acquire().await {
            Err(error) => {
                let is_told = words(&error)[0].starts_with("refused (NOPERM") || right == "+info";
                assert!(is_told, "without {right}: {error:#}");
            }
            // It is needed by whoever makes a node count.
            Ok(_) => {
                assert!(matches!(right, "+hdel"), "without {right}");
                cluster.servers[0].delete("redlock#node").await;
                let error = redlock.bootstrap().await.expect_err(right);
                assert!(format!("{error:#}").contains("refused (NOPERM"), "without {right}: {error:#}");
            }
        }
        let left = cluster.servers[0].value("redlock:a").await;
        assert!(left.is_none() || right == "+info", "without {right}, {left:?} is left");
    }
}

#[tokio::test]
async fn keys_outside_of_the_pattern_are_refused_with_the_reason() {
    let cluster = three_servers().await;
    let redlock = as_locks(&cluster).connect().await.expect("a majority");
    let elsewhere = redlock.namespace("elsewhere");
    let error = elsewhere.mutex("a").wait(Duration::from_millis(50)).acquire().await.expect_err("no right");
    assert!(matches!(error, AcquireError::NoQuorum(_)), "{error:#}");
    let words = words(&error);
    let refused = words.iter().filter(|said| said.starts_with("refused (NOPERM: no permission)")).count();
    assert!(refused >= 2, "{words:?}");
    assert!(redlock.mutex("a").try_acquire().await.expect("the right").is_some());
}

#[tokio::test]
async fn a_wrong_login_is_told_node_by_node_and_never_shown() {
    let cluster = three_servers().await;
    let with = |login: &str| {
        let nodes = cluster.addresses();
        over(nodes.into_iter().map(|address| format!("redis://{login}{address}")))
    };
    on_all(&cluster, "ACL SETUSER default resetpass >default-secret").await;
    for (login, reason) in [
        ("locks:wrong-secret@", "WRONGPASS"),
        ("nobody:first-secret@", "WRONGPASS"),
        (":wrong-secret@", "WRONGPASS"),
        ("", "NOAUTH"),
    ] {
        let error = with(login).connect().await.expect_err("refused");
        // A majority is enough to know that it fails: the third may still be on its way.
        let reasons = reasons(&error);
        assert!(reasons.iter().filter(|said| said.contains(reason)).count() >= 2, "{login}: {reasons:?}");
        let shown = format!("{error} {error:#} {error:?} {:?}", with(login));
        assert!(!shown.contains("secret"), "{shown}");
        assert!(cluster.addresses().iter().all(|address| shown.contains(address)), "{shown}");
    }
    with("locks:first-secret@").connect().await.expect("the right password");
    with(":default-secret@").connect().await.expect("the right password of the default user");
}

/// Tries until a lock is acquired: nodes come back by themselves.
async fn acquired_in_the_end(redlock: &Redlock) -> Guard {
    let mutex = redlock.mutex("again").wait(PROMPT * 2);
    mutex.acquire().await.unwrap_or_else(|error| panic!("the nodes did not come back: {error:#}"))
}

#[tokio::test]
async fn a_rotated_password_takes_the_nodes_down_until_it_is_rotated_back() {
    let cluster = three_servers().await;
    let redlock = as_locks(&cluster).connect().await.expect("a majority");
    let guard =
        redlock.mutex("a").hold_at_most(Duration::from_secs(600)).ttl(TTL).acquire().await.expect("free");

    on_all(&cluster, "ACL SETUSER locks resetpass >second-secret").await;
    guard.extend(TTL).await.expect("connections that stand are not ended");
    on_all(&cluster, "CLIENT KILL USER locks").await;
    let mut last = None;
    let begun = Instant::now();
    while begun.elapsed() < PROMPT {
        match redlock.mutex("b").wait(Duration::from_millis(1)).acquire().await {
            Ok(guard) => drop(guard),
            Err(error) => {
                let words = words(&error);
                let down = words.iter().all(|said| said.starts_with("not connected"));
                last = Some(error);
                if down {
                    break;
                }
            }
        }
    }
    let error = last.expect("the nodes are down");
    assert!(words(&error).iter().all(|said| said.starts_with("not connected")), "{error:#}");
    let error = as_locks(&cluster).connect().await.expect_err("refused");
    assert!(reasons(&error).iter().filter(|said| said.contains("WRONGPASS")).count() >= 2, "{error:#}");

    // Released while nobody can be asked: the releases are owed.
    assert_eq!(guard.release().await.outcome, ReleaseOutcome::Unknown);
    on_all(&cluster, "ACL SETUSER locks resetpass >first-secret").await;
    let guard = acquired_in_the_end(&redlock).await;
    assert_eq!(guard.release().await.outcome, ReleaseOutcome::Released);
    cluster.assert_nothing_left().await;
}

#[tokio::test]
async fn what_is_owed_is_released_without_the_right_to_load_scripts_too() {
    let cluster = with_the_user(1, &documented_line()).await;
    on_all(&cluster, "ACL SETUSER locks -script|load -evalsha").await;
    let redlock = as_locks(&cluster).connect().await.expect("a majority");
    let guard = redlock.mutex("a").acquire().await.expect("free");
    on_all(&cluster, "ACL SETUSER locks resetpass >second-secret").await;
    on_all(&cluster, "CLIENT KILL USER locks").await;
    assert_eq!(guard.release().await.outcome, ReleaseOutcome::Unknown);
    assert!(cluster.servers[0].value("redlock:a").await.is_some());
    on_all(&cluster, "ACL SETUSER locks resetpass >first-secret").await;
    cluster.assert_nothing_left().await;
}

#[tokio::test]
async fn unix_sockets_are_nodes_too() {
    let cluster = three_servers().await;
    for login in ["", "?user=locks&pass=first-secret"] {
        let addresses = cluster.servers.iter().map(Server::socket);
        let addresses = addresses.map(|socket| format!("redis+unix://{}{login}", socket.display()));
        let redlock =
            over(addresses).ttl(TTL).node_timeout(NODE_TIMEOUT).connect().await.expect("a majority");
        a_whole_life(&redlock, &cluster).await;
    }
}
