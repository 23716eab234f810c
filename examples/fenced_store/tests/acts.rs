//! The example as it is run: real processes, one of them stopped, and three Redis servers of its own.

use std::fs;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread::sleep;
use std::time::{Duration, Instant};

#[test]
fn a_late_write_is_accepted_without_the_fence_and_refused_with_it() {
    let servers = Servers::start(3);

    let told = told_by(fenced_store(&servers).env("TMPDIR", &servers.folder.0));

    assert!(told.contains("the nodes do not count yet"), "{told}");
    let [without, with] = acts(&told);
    assert_in_order(
        without,
        &[
            "first       | reads 100, and is about to write 130",
            "coordinator | stops first",
            "second      | reads 100, and is about to write 150",
            "second      | has written 150",
            "second      | 50 euros are paid in",
            "coordinator | lets first go on",
            "first       | has written 130",
            "first       | 30 euros are paid in; the lock had expired before the release, not proven",
            "the balance is 130",
        ],
    );
    assert!(!without.contains("REFUSED"), "{without}");
    assert_in_order(
        with,
        &[
            "first       | reads 100, and is about to write 130",
            "coordinator | stops first",
            "second      | reads 100, and is about to write 150",
            "second      | has written 150",
            "second      | 50 euros are paid in",
            "coordinator | lets first go on",
            "first       | is REFUSED",
            "first       | asks for the lock",
            "first       | reads 150, and is about to write 180",
            "first       | has written 180",
            "first       | 30 euros are paid in",
            "the balance is 180",
        ],
    );
    assert!(!with.contains("has written 130"), "{with}");
    servers.assert_nothing_is_held();
    let left = servers.folder.entries("redlock-fenced-store");
    assert!(left.is_empty(), "the database was to be removed: {left:?}");
}

#[test]
fn played_again_on_the_same_nodes_and_in_a_database_with_a_name() {
    let servers = Servers::start(3);
    let database = servers.folder.0.join("bank.db");

    let first = told_by(fenced_store(&servers).arg(&database));
    let again = told_by(fenced_store(&servers).arg(&database));

    assert!(first.contains("the nodes do not count yet"), "{first}");
    assert!(again.contains("the nodes know this example"), "{again}");
    let db = rusqlite::Connection::open(&database).expect("a database");
    let accounts = "SELECT balance, fence > 0 FROM accounts";
    let account: (i64, bool) =
        db.query_row(accounts, (), |row| Ok((row.get(0)?, row.get(1)?))).expect("one account");
    assert_eq!(account, (180, true));
    servers.assert_nothing_is_held();
}

#[test]
fn without_nodes_it_says_how_to_start_some() {
    let mut command = Command::new(env!("CARGO_BIN_EXE_redlock-example-fenced-store"));
    let Output { status, stderr, .. } =
        command.env_remove("REDLOCK_NODES").output().expect("the binary runs");

    assert_eq!(status.code(), Some(2));
    assert!(String::from_utf8_lossy(&stderr).contains("deploy/redis-cluster/redis-cluster start"));
}

fn fenced_store(servers: &Servers) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_redlock-example-fenced-store"));
    for variable in ["REDLOCK_NAMESPACE", "REDLOCK_HOLDER", "REDLOCK_TTL_MS", "REDLOCK_WAIT_MS"] {
        command.env_remove(variable);
    }
    command.env("REDLOCK_NODES", servers.addresses());
    command
}

/// What it says, if both acts show what they should.
#[track_caller]
fn told_by(command: &mut Command) -> String {
    let Output { status, stdout, stderr } = command.output().expect("the binary runs");
    let told = String::from_utf8_lossy(&stdout).into_owned();
    assert_eq!(status.code(), Some(0), "{told}{}", String::from_utf8_lossy(&stderr));
    told
}

fn acts(told: &str) -> [&str; 2] {
    let (_, acts) = told.split_once("Act 1:").expect("a first act");
    acts.split_once("Act 2:").expect("a second act").into()
}

#[track_caller]
fn assert_in_order(told: &str, expected: &[&str]) {
    let mut rest = told;
    for words in expected {
        let Some((_, behind)) = rest.split_once(words) else {
            panic!("{words:?} is not where it should be in\n{told}");
        };
        rest = behind;
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

    /// What a namespace keeps for its fences stays, so that they rise from run to run: that is no lock.
    fn assert_nothing_is_held(&self) {
        for server in &self.servers {
            let keys = ask(server.port, "KEYS fenced-store:*").expect("a server that still runs");
            assert_eq!(keys, "*0", "locks on the server at port {}", server.port);
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
        let folder =
            std::env::temp_dir().join(format!("redlock-fenced-store-test-{}-{number}", std::process::id()));
        fs::create_dir(&folder).expect("a new folder");
        Folder(folder)
    }

    /// What is in it whose name begins like this.
    fn entries(&self, beginning: &str) -> Vec<PathBuf> {
        let entries = fs::read_dir(&self.0).expect("a folder").map(|entry| entry.expect("an entry"));
        let ours = entries.filter(|entry| entry.file_name().to_string_lossy().starts_with(beginning));
        ours.map(|entry| entry.path()).collect()
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}
