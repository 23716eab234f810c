//! The example as it is run: real processes, three Redis servers of its own, and a SIGKILL.

mod servers;

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use servers::Servers;

const WORKERS: usize = 4;

#[test]
fn several_workers_start_at_once_and_one_migrates() {
    let servers = Servers::start(3);
    let database = servers.folder.0.join("shop.db");

    let coordinator = run_once(&servers)
        .args(["--workers", &WORKERS.to_string()])
        .arg(&database)
        .output()
        .expect("the binary runs");

    let told = String::from_utf8_lossy(&coordinator.stdout);
    assert_eq!(coordinator.status.code(), Some(0), "{told}{}", String::from_utf8_lossy(&coordinator.stderr));
    assert_eq!(lines_with(&told, "has the lock, migrates"), 1, "{told}");
    assert_eq!(lines_with(&told, "removed the old table: done"), 1, "{told}");
    assert_eq!(lines_with(&told, "skips it"), WORKERS - 1, "{told}");
    assert_eq!(completions(&database).len(), 1, "{told}");
    servers.assert_no_key_is_left("*");
}

/// What was copied stays copied: each step is one transaction, and the next holder finds out from the database where the
/// last one stopped. A migration that could not be resumed would need more than a lock.
#[test]
fn a_worker_is_killed_halfway_and_another_completes() {
    let servers = Servers::start(3);
    let database = servers.folder.0.join("shop.db");
    let prepared = run_once(&servers).arg("prepare").arg(&database).status().expect("the binary runs");
    assert!(prepared.success());

    let mut first = Worker::start(&servers, "first", &database);
    first.wait_for("copied 200 of 600 rows");
    let mut second = Worker::start(&servers, "second", &database);
    second.wait_for("asks for the lock");
    first.process.kill().expect("a running worker"); // SIGKILL: nobody releases anything
    let killed_at = Instant::now();
    let goes_on = second.wait_for("has the lock");
    let waited = killed_at.elapsed();

    assert!(goes_on.contains("rows copied, goes on from there"), "{goes_on}");
    assert!(
        waited < Duration::from_secs(10),
        "took over {waited:?} after a holder with a ttl of 1 s had died"
    );
    second.wait_for("removed the old table: done");
    assert!(second.process.wait().expect("a worker to wait for").success());
    assert_eq!(completions(&database), ["second"]);
    servers.assert_no_key_is_left("*");
}

fn run_once(servers: &Servers) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_redlock-example-run-once"));
    for variable in ["REDLOCK_NAMESPACE", "REDLOCK_HOLDER", "REDLOCK_TTL_MS", "REDLOCK_WAIT_MS"] {
        command.env_remove(variable);
    }
    command.env("REDLOCK_NODES", servers.addresses());
    command
}

fn lines_with(told: &str, words: &str) -> usize {
    told.lines().filter(|line| line.contains(words)).count()
}

fn completions(database: &Path) -> Vec<String> {
    let db = rusqlite::Connection::open(database).expect("a database");
    let mut query =
        db.prepare("SELECT ran_by FROM migrations WHERE version = 2").expect("a log of migrations");
    let rows = query.query_map((), |row| row.get(0)).expect("a query without arguments");
    rows.collect::<Result<_, _>>().expect("names")
}

/// One worker on its own, killed when dropped.
struct Worker {
    process: Child,
    told: BufReader<std::process::ChildStdout>,
}

impl Worker {
    fn start(servers: &Servers, name: &str, database: &Path) -> Self {
        let mut command = run_once(servers);
        command.arg("worker").arg(name).arg(database).stdout(Stdio::piped());
        let mut process = command.spawn().expect("the binary runs");
        let told = BufReader::new(process.stdout.take().expect("a pipe"));
        Worker { process, told }
    }

    /// The next line that contains `words`.
    fn wait_for(&mut self, words: &str) -> String {
        let mut line = String::new();
        while !line.contains(words) {
            line.clear();
            let length = self.told.read_line(&mut line).expect("lines of text");
            assert_ne!(length, 0, "the worker ended without having said {words:?}");
        }
        line
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
