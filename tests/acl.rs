//! Users with few rights, wrong passwords, passwords that change, and sockets: on real servers.

#![cfg(all(feature = "redis", unix))]

mod servers;

use std::time::Duration;

use redlock_quorum::{
    AcquireError, ConnectError, Guard, NodeConfig, Redlock, RedlockBuilder, ReleaseOutcome,
};

use servers::{PATIENCE, Server, eventually, fresh, nothing_is_left};

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
fn three_servers() -> Vec<Server> {
    let servers: Vec<_> = (0..3).map(|_| Server::plain()).collect();
    on_all(&servers, &documented_line().replace(">PASSWORD", ">first-secret"));
    servers
}

fn on_all(servers: &[Server], command: &str) {
    servers.iter().for_each(|server| {
        server.ask(command);
    });
}

fn as_locks(servers: &[Server]) -> RedlockBuilder {
    let node = |server: &Server| {
        NodeConfig::new(format!("127.0.0.1:{}", server.port())).username("locks").password("first-secret")
    };
    fresh(servers.iter().map(node)).node_timeout(NODE_TIMEOUT).ttl(TTL)
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
async fn a_whole_life(redlock: &Redlock, servers: &[Server]) {
    let mutex = redlock.mutex("a").metadata("here");
    let guard = mutex.acquire().await.expect("a free lock");
    eventually("the key is everywhere", || servers.iter().all(|server| server.has("redlock:a"))).await;

    let seen = mutex.inspect().await.expect("rights to look");
    assert!(seen.by_majority());
    assert_eq!(seen.metadata(), Some("here"));

    guard.extend(TTL).await.expect("extended");
    servers[1].ask("DEL redlock:a");
    healed(&guard, &servers[1]).await;
    assert_eq!(guard.release().await.outcome, ReleaseOutcome::Released);

    let renewed = redlock.mutex("b").ttl(Duration::from_millis(1500)).acquire().await.expect("a free lock");
    let mut least = renewed.remaining();
    eventually("renewed by itself", || {
        let now = renewed.remaining();
        least = least.min(now);
        now > least
    })
    .await;
    assert!(renewed.is_valid());
    drop(renewed);
    nothing_is_left(servers).await;
}

/// Extends until the node has the key again: the first extension finds it missing.
async fn healed(guard: &Guard, server: &Server) {
    guard.extend(TTL).await.expect("extended by the others");
    eventually("healed", || server.has("redlock:a")).await;
}

#[tokio::test]
async fn the_documented_rights_are_enough() {
    let servers = three_servers();
    let redlock = as_locks(&servers).connect().await.expect("a majority");
    a_whole_life(&redlock, &servers).await;
    for server in &servers {
        let redis::Value::Array(refused) = server.ask("ACL LOG") else { panic!("a list") };
        // What newer servers are told about the client's library is not needed.
        let refused: Vec<_> = refused.iter().map(|entry| format!("{entry:?}")).collect();
        assert!(refused.iter().all(|entry| entry.contains("client|setinfo")), "{refused:?}");
    }
}

#[tokio::test]
async fn a_server_that_forgot_the_scripts_gets_them_again() {
    let servers = three_servers();
    let redlock = as_locks(&servers).connect().await.expect("a majority");
    on_all(&servers, "SCRIPT FLUSH");
    let guard = redlock.mutex("a").acquire().await.expect("a free lock");
    guard.extend(TTL).await.expect("extended");
    on_all(&servers, "SCRIPT FLUSH");
    assert_eq!(guard.release().await.outcome, ReleaseOutcome::Released);
    nothing_is_left(&servers).await;
}

#[tokio::test]
async fn eval_alone_is_enough() {
    for fewer in ["-script|load", "-info", "-script|load -info", "-script|load -evalsha -info"] {
        let servers = three_servers();
        on_all(&servers, &format!("ACL SETUSER locks {fewer}"));
        let redlock = as_locks(&servers).connect().await.expect(fewer);
        a_whole_life(&redlock, &servers).await;
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
        let servers = [Server::plain()];
        on_all(
            &servers,
            &documented_line().replace(">PASSWORD", ">first-secret").replace(&format!(" {right} "), " "),
        );
        let redlock = as_locks(&servers).connect().await.expect("a majority");
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

#[tokio::test]
async fn keys_outside_of_the_pattern_are_refused_with_the_reason() {
    let servers = three_servers();
    let redlock = as_locks(&servers).connect().await.expect("a majority");
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
    let servers = three_servers();
    let with = |login: &str| {
        let addresses = servers.iter().map(|server| format!("redis://{login}127.0.0.1:{}", server.port()));
        fresh(addresses.collect::<Vec<_>>())
    };
    on_all(&servers, "ACL SETUSER default resetpass >default-secret");
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
        assert!(
            servers.iter().all(|server| shown.contains(&format!("127.0.0.1:{}", server.port()))),
            "{shown}"
        );
    }
    with("locks:first-secret@").connect().await.expect("the right password");
    with(":default-secret@").connect().await.expect("the right password of the default user");
}

/// Tries until a lock is acquired: nodes come back by themselves.
async fn acquired_in_the_end(redlock: &Redlock) -> Guard {
    let mutex = redlock.mutex("again").wait(PATIENCE);
    mutex.acquire().await.unwrap_or_else(|error| panic!("the nodes did not come back: {error:#}"))
}

#[tokio::test]
async fn a_rotated_password_takes_the_nodes_down_until_it_is_rotated_back() {
    let servers = three_servers();
    let redlock = as_locks(&servers).connect().await.expect("a majority");
    let guard =
        redlock.mutex("a").hold_at_most(Duration::from_secs(600)).ttl(TTL).acquire().await.expect("free");

    on_all(&servers, "ACL SETUSER locks resetpass >second-secret");
    guard.extend(TTL).await.expect("connections that stand are not ended");
    on_all(&servers, "CLIENT KILL USER locks");
    let mut last = None;
    let deadline = std::time::Instant::now() + PATIENCE;
    while std::time::Instant::now() < deadline {
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
    let error = as_locks(&servers).connect().await.expect_err("refused");
    assert!(reasons(&error).iter().filter(|said| said.contains("WRONGPASS")).count() >= 2, "{error:#}");

    // Released while nobody can be asked: the releases are owed.
    assert_eq!(guard.release().await.outcome, ReleaseOutcome::Unknown);
    on_all(&servers, "ACL SETUSER locks resetpass >first-secret");
    let guard = acquired_in_the_end(&redlock).await;
    assert_eq!(guard.release().await.outcome, ReleaseOutcome::Released);
    nothing_is_left(&servers).await;
}

#[tokio::test]
async fn what_is_owed_is_released_without_the_right_to_load_scripts_too() {
    let servers = [Server::plain()];
    on_all(&servers, &documented_line().replace(">PASSWORD", ">first-secret"));
    on_all(&servers, "ACL SETUSER locks -script|load -evalsha");
    let redlock = as_locks(&servers).connect().await.expect("a majority");
    let guard = redlock.mutex("a").acquire().await.expect("free");
    on_all(&servers, "ACL SETUSER locks resetpass >second-secret");
    on_all(&servers, "CLIENT KILL USER locks");
    assert_eq!(guard.release().await.outcome, ReleaseOutcome::Unknown);
    assert!(servers[0].has("redlock:a"));
    on_all(&servers, "ACL SETUSER locks resetpass >first-secret");
    nothing_is_left(&servers).await;
}

#[tokio::test]
async fn unix_sockets_are_nodes_too() {
    let servers = three_servers();
    for login in ["", "?user=locks&pass=first-secret"] {
        let addresses =
            servers.iter().map(|server| format!("redis+unix://{}{login}", server.socket().display()));
        let redlock =
            fresh(addresses).ttl(TTL).node_timeout(NODE_TIMEOUT).connect().await.expect("a majority");
        a_whole_life(&redlock, &servers).await;
    }
}
