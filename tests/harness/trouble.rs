//! What befalls a server whose process lives on, or which comes back with less than it had.

use std::fs::{File, OpenOptions};
use std::path::PathBuf;
use std::time::Duration;

use super::{Server, until};

/// What a server is started with that writes down every change, and flushes that to its disk once a second.
pub const LOGGED: [&str; 4] = ["--appendonly", "yes", "--appendfsync", "everysec"];

/// What a server is started with that is to [hang](Server::hang).
pub const MAY_HANG: [&str; 2] = ["--enable-debug-command", "yes"];

impl Server {
    /// It runs out of memory, and throws away what has an expiry.
    pub async fn evict_all(&self) {
        self.type_in::<()>("CONFIG SET maxmemory-policy volatile-lru").await;
        self.type_in::<()>("CONFIG SET maxmemory 1").await;
        until("evicted", async || self.keys().await.is_empty()).await;
    }

    /// It has enough memory again.
    pub async fn evict_no_more(&self) {
        self.type_in::<()>("CONFIG SET maxmemory 0").await;
    }

    /// The connections of its clients are closed; they may connect again. One that listens to messages is of another type.
    pub async fn kill_clients(&self) {
        for kind in ["normal", "pubsub"] {
            self.type_in::<redis::Value>(&format!("CLIENT KILL TYPE {kind}")).await;
        }
    }

    /// It takes commands in, and carries out those that write only later.
    pub async fn pause_writes(&self, length: Duration) {
        self.type_in::<()>(&format!("CLIENT PAUSE {} WRITE", length.as_millis())).await;
    }

    /// Its only thread is busy: it takes in what it is sent, and answers later. Started [so](MAY_HANG).
    pub fn hang(&self, length: Duration) -> tokio::task::JoinHandle<()> {
        let asking = self.asker();
        tokio::spawn(async move {
            let mut command = redis::cmd("DEBUG");
            command.arg("SLEEP").arg(format!("{}.{:03}", length.as_secs(), length.subsec_millis()));
            // Killed meanwhile, it does not answer.
            let _: redis::RedisResult<()> = asking.ask(&command).await;
        })
    }

    /// It becomes a replica of another, and has what that one has.
    pub async fn follow(&self, master: &Server) {
        master.type_in::<()>("CONFIG SET repl-diskless-sync-delay 0").await;
        self.type_in::<()>(&format!("REPLICAOF {} {}", master.host, master.port())).await;
        let in_step = async || self.info("replication", "master_link_status").await == "up";
        until("a replica in step", in_step).await;
    }

    /// How many bytes of changes it has written down. Started [so](LOGGED).
    pub fn log_length(&self) -> u64 {
        std::fs::metadata(self.log()).expect("a log").len()
    }

    /// As after a power failure: killed, and started with what was on the disk when its log was so long.
    pub async fn restart_with_a_log_of(&mut self, length: u64) {
        self.kill();
        let log: File = OpenOptions::new().write(true).open(self.log()).expect("a log");
        log.set_len(length).expect("a file of our own");
        drop(log);
        self.restart_with_its_data(&[]).await;
        until("its log is read", async || self.info("persistence", "loading").await == "0").await;
    }

    fn log(&self) -> PathBuf {
        let folder = std::fs::read_dir(self.directory().join("appendonlydir")).expect("a folder for its log");
        let mut files = folder.map(|entry| entry.expect("a readable folder").path());
        files.find(|path| path.to_string_lossy().ends_with(".incr.aof")).expect("a log of changes")
    }
}
