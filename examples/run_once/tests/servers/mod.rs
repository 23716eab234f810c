//! Servers of a test's own, for tests of examples that run as processes.
#![allow(dead_code)] // each of them uses a part

use std::fs;
use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread::sleep;
use std::time::{Duration, Instant};

/// For machines that are busy.
const PATIENCE: Duration = Duration::from_secs(25);

/// Between two looks at what cannot be awaited.
const PAUSE: Duration = Duration::from_millis(10);

const IN_MEMORY: [&str; 2] = ["--appendonly", "no"];

/// They forget nothing when they restart.
const ON_DISK: [&str; 4] = ["--appendonly", "yes", "--appendfsync", "always"];

/// Independent servers, on free ports of this machine.
pub(crate) struct Servers {
    servers: Vec<Server>,
    /// After the servers: it is removed when they are gone.
    pub(crate) folder: Folder,
}

impl Servers {
    pub(crate) fn start(count: usize) -> Self {
        Servers::start_with(count, &IN_MEMORY)
    }

    pub(crate) fn start_on_disk(count: usize) -> Self {
        Servers::start_with(count, &ON_DISK)
    }

    fn start_with(count: usize, arguments: &[&str]) -> Self {
        let folder = Folder::new();
        let servers = (0..count).map(|_| Server::start(&folder.0, arguments)).collect();
        Servers { servers, folder }
    }

    pub(crate) fn addresses(&self) -> String {
        self.addresses_with("")
    }

    /// Each with the same behind it.
    pub(crate) fn addresses_with(&self, settings: &str) -> String {
        let address = |server: &Server| format!("127.0.0.1:{}{settings}", server.port);
        self.servers.iter().map(address).collect::<Vec<_>>().join(",")
    }

    /// How many keys each has whose name is like this, as it comes over the wire: `*0` for none.
    pub(crate) fn keys(&self, pattern: &str) -> Vec<String> {
        let keys = format!("KEYS {pattern}");
        self.servers.iter().map(|server| ask(server.port, &keys).expect("a running server")).collect()
    }

    /// No key stands whose name is like this.
    pub(crate) fn assert_no_key_is_left(&self, pattern: &str) {
        let keys = self.keys(pattern);
        assert!(
            keys.iter().all(|keys| keys == "*0"),
            "keys like {pattern} on {}: {keys:?}",
            self.addresses()
        );
    }

    pub(crate) fn forget_everything(&self) {
        for server in &self.servers {
            assert_eq!(ask(server.port, "FLUSHALL").expect("a running server"), "+OK");
        }
    }

    pub(crate) fn kill(&mut self, number: usize) {
        let process = &mut self.servers[number].process;
        process.kill().expect("a running server");
        process.wait().expect("a child");
    }
}

struct Server {
    process: Child,
    port: u16,
}

impl Server {
    /// A free port may be taken by somebody else before the server has it: then another is tried.
    fn start(folder: &Path, arguments: &[&str]) -> Self {
        for _ in 0..10 {
            if let Some(server) = Self::start_on(free_port(), folder, arguments) {
                return server;
            }
        }
        panic!("redis-server did not start on any of ten ports");
    }

    fn start_on(port: u16, folder: &Path, arguments: &[&str]) -> Option<Self> {
        let mut command = Command::new("redis-server");
        command.args(["--port", &port.to_string(), "--bind", "127.0.0.1", "--save", ""]).args(arguments);
        command.args(["--appendfilename", &format!("{port}.aof"), "--dir"]).arg(folder);
        let process = match command.stdout(Stdio::null()).spawn() {
            Ok(process) => process,
            Err(error) => panic!(
                "this test needs redis-server on the PATH ({error}); \
                 `tests/run` installs it and runs all tests"
            ),
        };
        let mut server = Server { process, port };
        let began = Instant::now();
        while began.elapsed() < PATIENCE && server.process.try_wait().expect("a child").is_none() {
            // Not one that somebody else started on this port: it says whose process it is.
            if server.is_at_its_port() {
                return Some(server);
            }
            sleep(PAUSE);
        }
        None
    }

    fn is_at_its_port(&self) -> bool {
        let id = format!("process_id:{}", self.process.id());
        ask_for_text(self.port, "INFO server").is_ok_and(|text| text.lines().any(|line| line == id))
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
fn ask(port: u16, command: &str) -> io::Result<String> {
    Ok(ask_for_text(port, command)?.lines().next().unwrap_or_default().to_owned())
}

/// The whole answer: the server hangs up after it.
fn ask_for_text(port: u16, command: &str) -> io::Result<String> {
    let mut stream = TcpStream::connect(("127.0.0.1", port))?;
    stream.set_read_timeout(Some(PATIENCE))?;
    write!(stream, "{command}\r\nQUIT\r\n")?;
    let mut answers = String::new();
    stream.read_to_string(&mut answers)?;
    Ok(answers)
}

/// A folder that is removed with all that is in it.
pub(crate) struct Folder(pub(crate) PathBuf);

impl Folder {
    fn new() -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let folder =
            std::env::temp_dir().join(format!("redlock-example-test-{}-{number}", std::process::id()));
        fs::create_dir(&folder).expect("a new folder");
        Folder(folder)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}
