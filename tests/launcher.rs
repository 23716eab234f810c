//! The servers that `deploy/redis-cluster` starts vote at once, also after a restart: they write every change to their disks
//! before they answer, and the line that the launcher prints says so.
#![cfg(feature = "redis")]

mod harness;

use std::path::Path;
use std::process::{Child, Command};
use std::time::Duration;

use harness::process::{Directory, free_port, spawn_watchdog};
use harness::{promptly, until};
use redlock_quorum::{AcquireError, Redlock, ReleaseOutcome};

const NODES: u16 = 3;

/// Longer than what is waited for here, and the ttl of all locks: a node that waits is seen to.
const LONGEST: Duration = Duration::from_secs(30);

/// Servers that were started by the launcher, and end with the test, also if its process is killed.
struct Launched {
    directory: Directory,
    port: u16,
    watchdog: Child,
}

impl Launched {
    /// With the addresses that the launcher prints.
    fn start() -> (Self, Vec<String>) {
        // Somebody else may have one of the ports that follow.
        for _ in 0..20 {
            let (directory, port) = (Directory::new(), free_port());
            let stop = r#"REDIS_CLUSTER_DIR="$0"/state "$1" stop; rm -r "$0""#;
            let arguments = [directory.path().into(), launcher().into()];
            let launched = Launched { watchdog: spawn_watchdog(stop, arguments), directory, port };
            if let Some(line) = launched.run(&["start", &NODES.to_string()]) {
                let line = line.trim().strip_prefix("export REDLOCK_NODES='").expect("a line for a shell");
                let nodes = line.strip_suffix('\'').expect("its end");
                return (launched, nodes.split(',').map(str::to_owned).collect());
            }
        }
        panic!("the launcher does not start")
    }

    /// What it prints, if it does not fail.
    fn run(&self, arguments: &[&str]) -> Option<String> {
        let output = Command::new(launcher())
            .args(arguments)
            .env("REDIS_CLUSTER_DIR", self.directory.path().join("state"))
            .env("REDIS_CLUSTER_PORT", self.port.min(u16::MAX - NODES).to_string())
            .output()
            .expect("bash");
        println!("{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        output.status.success().then(|| String::from_utf8(output.stdout).expect("text"))
    }

    fn done(&self, arguments: &[&str]) {
        self.run(arguments).unwrap_or_else(|| panic!("{arguments:?} fails"));
    }
}

impl Drop for Launched {
    fn drop(&mut self) {
        self.run(&["stop"]);
        let _ = self.watchdog.kill();
        let _ = self.watchdog.wait();
    }
}

fn launcher() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/deploy/redis-cluster/redis-cluster"))
}

async fn client(nodes: &[String]) -> Redlock {
    let builder = Redlock::builder().nodes(nodes.to_vec()).ttl(LONGEST);
    promptly(builder.connect()).await.expect("all nodes are there")
}

#[tokio::test]
async fn its_servers_vote_at_once_also_after_a_restart() {
    let (launched, nodes) = Launched::start();
    let redlock = client(&nodes).await;
    let guard = promptly(redlock.mutex("job").try_acquire()).await.expect("all vote").expect("free");
    until("the vote of every node", async || redlock.diagnose().await.voting() == nodes.len()).await;

    launched.done(&["kill", "2"]);
    until("a node that is gone", async || redlock.diagnose().await.nodes()[1].trouble().is_some()).await;
    launched.done(&["restart", "2"]);
    let mut diagnosis = redlock.diagnose().await;
    until("a node that is back", async || {
        diagnosis = redlock.diagnose().await;
        diagnosis.nodes()[1].latency().is_some()
    })
    .await;
    assert!(diagnosis.nodes()[1].votes(), "{diagnosis:#}");
    // It has the key that it had before.
    promptly(guard.extend(LONGEST)).await.expect("held");
    until("an answer of every node", async || guard.last_answers().granted() == nodes.len()).await;
    assert_eq!(promptly(guard.release()).await.outcome, ReleaseOutcome::Released);

    // Without the word in the line the same servers would be waited for.
    let bare: Vec<String> = nodes.iter().map(|node| node.replace("?trust_disk=true", "")).collect();
    assert_ne!(bare, nodes);
    let refused = promptly(client(&bare).await.mutex("job").try_acquire()).await;
    assert!(matches!(refused, Err(AcquireError::NotReady { .. })), "{refused:?}");
}
