//! The example as it is run: real processes, three Redis servers of its own, and a SIGKILL.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread::sleep;
use std::time::{Duration, Instant};

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
    servers.assert_no_key_is_left();
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
    servers.assert_no_key_is_left();
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

/// Independent servers without persistence, on free ports of this machine.
struct Servers {
    servers: Vec<Server>,
    /// After the servers: it is removed when they are gone.
    folder: Folder,
}

impl Servers {
    fn start(count: usize) -> Self {
        let folder = Folder::new();
        let servers = (0..count).map(|_| Server::start(&folder.0)).collect();
        Servers { servers, folder }
    }

    fn addresses(&self) -> String {
        let addresses: Vec<_> =
            self.servers.iter().map(|server| format!("127.0.0.1:{}", server.port)).collect();
        addresses.join(",")
    }

    fn assert_no_key_is_left(&self) {
        for server in &self.servers {
            let keys = ask(server.port, "KEYS *").expect("a server that still runs");
            assert_eq!(keys, "*0", "keys on the server at port {}", server.port);
        }
    }
}

struct Server {
    process: Child,
    port: u16,
}

impl Server {
    /// A free port may be taken by somebody else before the server has it: then another is tried.
    fn start(folder: &Path) -> Self {
        for _ in 0..10 {
            if let Some(server) = Self::start_on(free_port(), folder) {
                return server;
            }
        }
        panic!("redis-server did not start on any of ten ports");
    }

    fn start_on(port: u16, folder: &Path) -> Option<Self> {
        let process = Command::new("redis-server")
            .args([
                "--port",
                &port.to_string(),
                "--bind",
                "127.0.0.1",
                "--save",
                "",
                "--appendonly",
                "no",
                "--dir",
            ])
            .arg(folder)
            .stdout(Stdio::null())
            .spawn();
        let process = match process {
            Ok(process) => process,
            Err(error) => panic!(
                "this test needs redis-server on the PATH ({error}); \
                 `deploy/redis-cluster/redis-cluster install` installs it"
            ),
        };
        let mut server = Server { process, port };
        let patience = Instant::now() + Duration::from_secs(10);
        while Instant::now() < patience && server.process.try_wait().expect("a child").is_none() {
            if ask(port, "PING").is_ok_and(|answer| answer == "+PONG") {
                // Not one that somebody else started on this port: ours would have ended.
                sleep(Duration::from_millis(20));
                return server.process.try_wait().expect("a child").is_none().then_some(server);
            }
            sleep(Duration::from_millis(10));
        }
        None
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    listener.local_addr().expect("an address").port()
}

/// The first line of the answer, as it comes over the wire.
fn ask(port: u16, command: &str) -> std::io::Result<String> {
    let mut stream = TcpStream::connect(("127.0.0.1", port))?;
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    write!(stream, "{command}\r\n")?;
    let mut answer = Vec::new();
    while !answer.ends_with(b"\r\n") {
        let mut byte = [0];
        stream.read_exact(&mut byte)?;
        answer.extend(byte);
    }
    Ok(String::from_utf8_lossy(&answer).trim_end().to_owned())
}

/// A folder that is removed with all that is in it.
struct Folder(PathBuf);

impl Folder {
    fn new() -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let folder = std::env::temp_dir().join(format!("redlock-run-once-{}-{number}", std::process::id()));
        fs::create_dir(&folder).expect("a new folder");
        Folder(folder)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}
