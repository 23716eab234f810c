//! Real servers for a test: processes of its own on free ports of the loopback, gone with the value that stands for them.

#![allow(dead_code, unreachable_pub)]

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use redis::Value;
use redlock_quorum::{NodeConfig, Redlock, RedlockBuilder, RestartProtection};

/// After so long a test that polls gives up.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// One server: memory only, on one port, and on a socket in its own folder through which the test looks after it.
pub struct Server {
    folder: PathBuf,
    port: u16,
    arguments: Vec<String>,
    process: Option<Child>,
    /// Logged in before a test may change who can.
    admin: Mutex<Option<redis::Connection>>,
}

impl Server {
    /// Without TLS.
    pub fn plain() -> Self {
        Server::start_in(|_, port| vec!["--port".to_owned(), port.to_string()])
    }

    /// With the arguments that make it listen on a port, and the files in its folder that they name.
    pub fn start_in(listen: impl Fn(&Path, u16) -> Vec<String>) -> Self {
        static COUNT: AtomicUsize = AtomicUsize::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let folder = std::env::temp_dir().join(format!("redlock-{}-{number}", std::process::id()));
        std::fs::create_dir_all(&folder).expect("a folder for the server");
        // Somebody else may take the port before the server does.
        for _ in 0..20 {
            let port = free_port();
            let mut server = Server {
                folder: folder.clone(),
                port,
                arguments: listen(&folder, port),
                process: None,
                admin: Mutex::default(),
            };
            if server.try_restart() {
                return server;
            }
            // Its folder is for the next.
            std::mem::forget(server);
        }
        panic!("no server came up: {}", std::fs::read_to_string(folder.join("log")).unwrap_or_default());
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    pub fn socket(&self) -> PathBuf {
        self.folder.join("socket")
    }

    /// `kill -9`: the memory is lost.
    pub fn kill(&mut self) {
        if let Some(mut process) = self.process.take() {
            let _ = process.kill();
            let _ = process.wait();
        }
    }

    /// Again on the same port.
    pub fn restart(&mut self) {
        assert!(self.try_restart(), "the server did not come up again on port {}", self.port);
    }

    fn try_restart(&mut self) -> bool {
        self.kill();
        let _ = std::fs::remove_file(self.socket());
        // The Valkey that the tests are run with besides has no TLS.
        let has_to_be_redis = self.arguments.iter().any(|argument| argument == "--tls-port");
        let asked_for = std::env::var_os("REDLOCK_TEST_SERVER").filter(|_| !has_to_be_redis);
        let server = asked_for.unwrap_or_else(|| "redis-server".into());
        let process = Command::new(server)
            .args(["--save", "", "--appendonly", "no", "--bind", "127.0.0.1", "--dir"])
            .arg(&self.folder)
            .args(["--logfile", "log", "--unixsocket"])
            .arg(self.socket())
            .args(&self.arguments)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn();
        let mut process = process.expect("a server: run the tests with tests/run");
        let url = format!("redis+unix://{}", self.socket().display());
        let client = redis::Client::open(url).expect("a URL");
        let deadline = Instant::now() + PATIENCE;
        while Instant::now() < deadline && process.try_wait().expect("our own process").is_none() {
            if let Ok(mut admin) = client.get_connection()
                && redis::cmd("PING").query::<()>(&mut admin).is_ok()
            {
                *self.admin.lock().expect("whole") = Some(admin);
                self.process = Some(process);
                return true;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        let _ = process.kill();
        let _ = process.wait();
        false
    }

    /// Runs a command as the all-powerful default user.
    pub fn ask(&self, command: &str) -> Value {
        let mut words = command.split_whitespace();
        let mut asked = redis::cmd(words.next().expect("a command"));
        words.for_each(|word| {
            asked.arg(word);
        });
        let mut admin = self.admin.lock().expect("whole");
        asked
            .query(admin.as_mut().expect("the server is up"))
            .unwrap_or_else(|error| panic!("{command}: {error}"))
    }

    pub fn has(&self, key: &str) -> bool {
        self.ask(&format!("EXISTS {key}")) == Value::Int(1)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.kill();
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

/// A client of servers that were started a moment ago: they had granted nothing that they could have forgotten.
pub fn fresh<N: Into<NodeConfig>>(nodes: impl IntoIterator<Item = N>) -> RedlockBuilder {
    Redlock::builder().nodes(nodes).restart_protection(RestartProtection::Off)
}

/// Polls until it holds: what is waited for happens by itself, soon.
pub async fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !holds() {
        assert!(Instant::now() < deadline, "never: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// The releases of a minority may still be on their way when a call returns.
pub async fn nothing_is_left(servers: &[Server]) {
    eventually("all keys are gone", || servers.iter().all(|server| server.ask("DBSIZE") == Value::Int(0)))
        .await;
}

pub fn write(folder: &Path, name: &str, text: &str) -> String {
    let path = folder.join(name);
    std::fs::write(&path, text).expect("a writable folder");
    path.display().to_string()
}

fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    listener.local_addr().expect("an address").port()
}
