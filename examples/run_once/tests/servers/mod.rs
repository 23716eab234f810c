//! Servers of a test's own, for tests of examples that run as processes.

use std::fs;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread::sleep;
use std::time::{Duration, Instant};

/// Independent servers without persistence, on free ports of this machine.
pub(crate) struct Servers {
    servers: Vec<Server>,
    /// After the servers: it is removed when they are gone.
    pub(crate) folder: Folder,
}

impl Servers {
    pub(crate) fn start(count: usize) -> Self {
        let folder = Folder::new();
        let servers = (0..count).map(|_| Server::start(&folder.0)).collect();
        Servers { servers, folder }
    }

    pub(crate) fn addresses(&self) -> String {
        let addresses: Vec<_> =
            self.servers.iter().map(|server| format!("127.0.0.1:{}", server.port)).collect();
        addresses.join(",")
    }

    /// No key stands whose name is like this.
    pub(crate) fn assert_no_key_is_left(&self, pattern: &str) {
        for server in &self.servers {
            let keys = ask(server.port, &format!("KEYS {pattern}")).expect("a server that still runs");
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
