//! Adversarial review: scenarios on real servers. Each failing test is a finding.
#![cfg(feature = "redis")]
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use redlock_quorum::{Backoff, Redlock};
use tokio::time::sleep;

const fn ms(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

struct Server {
    child: Child,
    port: u16,
    dir: std::path::PathBuf,
    args: Vec<String>,
}

impl Server {
    fn start(args: &[&str]) -> Server {
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let dir = std::env::temp_dir().join(format!("review-{}-{port}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let args: Vec<String> = args.iter().map(|a| a.to_string()).collect();
        let child = Self::spawn(port, &dir, &args);
        let server = Server { child, port, dir, args };
        server.wait_for("PONG");
        server
    }
    fn spawn(port: u16, dir: &std::path::Path, args: &[String]) -> Child {
        Command::new("redis-server")
            .args(["--port", &port.to_string(), "--bind", "127.0.0.1", "--save", "", "--dir"])
            .arg(dir)
            .args(args)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap()
    }
    fn wait_for(&self, what: &str) {
        for _ in 0..200 {
            if self.cli(&["PING"]).contains(what) {
                return;
            }
            std::thread::sleep(ms(10));
        }
        panic!("no {what}");
    }
    fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
    fn restart(&mut self) {
        self.child = Self::spawn(self.port, &self.dir, &self.args);
    }
    fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }
    fn cli(&self, args: &[&str]) -> String {
        let out = Command::new("redis-cli").args(["-p", &self.port.to_string()]).args(args).output().unwrap();
        String::from_utf8_lossy(&out.stdout).trim().to_owned()
    }
    fn keys(&self) -> String {
        self.cli(&["KEYS", "redlock:*"])
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}

/// Finding: a release that the server refuses (BUSY) is forgotten; the key stays for the whole ttl.
#[tokio::test(flavor = "multi_thread")]
async fn a_release_refused_with_busy_is_made_up_for() {
    let server = Server::start(&["--busy-reply-threshold", "20"]);
    let redlock = Redlock::builder().nodes([server.address()]).ttl(ms(60_000)).connect().await.unwrap();
    let guard = redlock.mutex("a").acquire().await.unwrap();
    let mut busy = Command::new("redis-cli")
        .args(["-p", &server.port.to_string(), "EVAL", "while true do end", "0"])
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    sleep(ms(300)).await;
    let release = guard.release().await;
    println!("{release}");
    server.cli(&["SCRIPT", "KILL"]);
    let _ = busy.wait();
    sleep(ms(3000)).await;
    assert_eq!(server.keys(), "", "key left on a reachable node");
}

/// Finding: owed releases are sent to a server that is LOADING, refused, and forgotten.
#[tokio::test(flavor = "multi_thread")]
async fn a_release_owed_to_a_node_that_loads_its_data_is_made_up_for() {
    let mut servers = [
        Server::start(&["--key-load-delay", "3000", "--loading-process-events-interval-bytes", "1024"]),
        Server::start(&[]),
        Server::start(&[]),
    ];
    servers[0].cli(&["EVAL", "for i=1,700 do redis.call('SET','x'..i, string.rep(tostring(i), 200)) end", "0"]);
    let redlock =
        Redlock::builder().nodes(servers.iter().map(Server::address)).ttl(ms(60_000)).connect().await.unwrap();
    let guard = redlock.mutex("a").acquire().await.unwrap();
    sleep(ms(100)).await;
    assert_ne!(servers[0].keys(), "");
    servers[0].cli(&["SAVE"]);
    servers[0].kill();
    sleep(ms(50)).await;
    let release = guard.release().await;
    println!("{release}");
    servers[0].restart();
    sleep(ms(100)).await;
    println!("while loading: {}", servers[0].cli(&["GET", "x1"]));
    for _ in 0..100 {
        if !servers[0].cli(&["GET", "x1"]).contains("LOADING") {
            break;
        }
        sleep(ms(100)).await;
    }
    sleep(ms(3000)).await;
    assert_eq!(servers[0].keys(), "", "key left on a reachable node");
}

/// Finding: the last handle goes while a node is away: what is owed to it is forgotten, though the runtime lives.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_owed_outlives_the_last_handle() {
    let mut servers = [
        Server::start(&["--appendonly", "yes", "--appendfsync", "always"]),
        Server::start(&[]),
        Server::start(&[]),
    ];
    let redlock =
        Redlock::builder().nodes(servers.iter().map(Server::address)).ttl(ms(60_000)).connect().await.unwrap();
    let guard = redlock.mutex("a").acquire().await.unwrap();
    sleep(ms(100)).await;
    servers[0].kill();
    sleep(ms(50)).await;
    let _ = guard.release().await;
    drop(redlock);
    sleep(ms(50)).await;
    servers[0].restart();
    servers[0].wait_for("PONG");
    sleep(ms(3000)).await;
    assert_eq!(servers[0].keys(), "", "key left on a reachable node");
}

/// Finding: an acquire that is dropped when its grant has come, but before its caller was polled, excludes everybody for
/// `hold_at_least`, although nobody ever held.
#[tokio::test(flavor = "multi_thread")]
async fn a_dropped_acquire_does_not_linger() {
    let server = Server::start(&[]);
    let redlock = Redlock::builder().nodes([server.address()]).ttl(ms(60_000)).connect().await.unwrap();
    let mutex = redlock.mutex("nightly").hold_at_least(ms(30_000));
    let mut acquire = Box::pin(mutex.acquire());
    assert!(futures::poll!(&mut acquire).is_pending());
    sleep(ms(200)).await; // the grant comes, the caller is not polled
    drop(acquire);
    sleep(ms(200)).await;
    assert_eq!(server.keys(), "", "nobody held, and yet everybody is excluded");
}

/// Finding: a panic in the user's custom back-off kills the nodes' tasks, for everybody and for ever.
#[tokio::test(flavor = "multi_thread")]
async fn a_panic_in_a_custom_backoff_does_not_kill_the_nodes() {
    let server = Server::start(&[]);
    let redlock = Redlock::builder().nodes([server.address()]).connect().await.unwrap();
    let other = Redlock::builder().nodes([server.address()]).connect().await.unwrap();
    let guard = other.mutex("a").acquire().await.unwrap();
    let mutex = redlock
        .mutex("a")
        .backoff(Backoff::custom(|failures| Some(ms(1) * 10_u32.pow(failures + 20))))
        .wait(ms(500));
    let call = tokio::time::timeout(ms(3000), async move { mutex.acquire().await }).await;
    println!("the call: {:?}", call.map(|r| r.map(|_| ())));
    drop(guard);
    let _b = redlock.mutex("b").wait(ms(3000)).acquire().await.expect("another resource, another call: the node is up");
}

/// Finding: 65536 owed releases go out in one batch, which counts as no answer until the last of them is done.
#[tokio::test(flavor = "multi_thread")]
async fn many_owed_releases_are_worked_off() {
    let mut servers = [Server::start(&[]), Server::start(&[]), Server::start(&[])];
    let redlock = Redlock::builder()
        .nodes(servers.iter().map(Server::address))
        .ttl(ms(10_000))
        .node_timeout(ms(20))
        .connect()
        .await
        .unwrap();
    let mut guards = Vec::new();
    for chunk in 0..60 {
        let some = (0..1000).map(|n| {
            let mutex = redlock.mutex(format!("k{}", chunk * 1000 + n)).renewal(redlock_quorum::Renewal::Never);
            async move { mutex.acquire().await }
        });
        guards.extend(futures::future::join_all(some).await.into_iter().flatten());
    }
    println!("{} guards", guards.len());
    servers[0].kill();
    sleep(ms(50)).await;
    drop(guards);
    servers[0].restart();
    servers[0].wait_for("PONG");
    sleep(ms(1500)).await;
    println!("{}", servers[0].cli(&["INFO", "commandstats"]));
    println!("{}", servers[0].cli(&["INFO", "stats"]).lines().filter(|l| l.contains("connections")).collect::<String>());
    let started = std::time::Instant::now();
    let g = redlock.mutex("fresh").acquire().await.unwrap();
    let took = started.elapsed();
    for server in &servers {
        println!("{}", server.cli(&["INFO", "stats"]).lines().filter(|l| l.contains("connections_rec")).collect::<String>());
        println!("{}", server.cli(&["INFO", "commandstats"]).lines().filter(|l| l.contains("cmdstat_eval")).collect::<String>());
    }
    println!("{took:?} {:#}", g.votes());
    assert!(took < ms(1000), "{took:?} until the nodes answered again");
}
