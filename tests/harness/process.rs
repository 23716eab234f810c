//! A `redis-server` process that cannot outlive the test.

use std::ffi::OsString;
use std::io::ErrorKind;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

use rustix::process::{Pid, Signal, kill_process};

/// A child with a directory of its own. Dropped, it is killed, also where it stands still, and waited for.
pub struct Process {
    child: Child,
    /// Kills the child and clears up if this process ends without having dropped it.
    watchdog: Child,
    directory: PathBuf,
    environment: Environment,
}

/// What a server finds in its environment besides what this process has.
pub type Environment = Vec<(&'static str, OsString)>;

impl Process {
    pub fn start(port: u16, arguments: &[&str], environment: Environment) -> Self {
        let directory = new_directory();
        let child = spawn_server(port, &directory, arguments, &environment);
        Process { watchdog: spawn_watchdog(&child, &directory), child, directory, environment }
    }

    /// Kills the server, and starts another where it was: what it had saved is there.
    pub fn start_again(&mut self, port: u16, arguments: &[&str]) {
        self.end();
        self.child = spawn_server(port, &self.directory, arguments, &self.environment);
        self.watchdog = spawn_watchdog(&self.child, &self.directory);
    }

    pub fn directory(&self) -> &Path {
        &self.directory
    }

    pub fn id(&self) -> u32 {
        self.child.id()
    }

    pub fn has_ended(&mut self) -> bool {
        self.child.try_wait().expect("our own child").is_some()
    }

    pub fn stop(&self) {
        self.signal(Signal::STOP);
    }

    pub fn cont(&self) {
        self.signal(Signal::CONT);
    }

    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).expect("our own child, not waited for yet");
    }
}

impl Process {
    /// The watchdog first: the process id is ours only until the child is waited for.
    fn end(&mut self) {
        for child in [&mut self.watchdog, &mut self.child] {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.end();
        let _ = std::fs::remove_dir_all(&self.directory);
    }
}

/// The server to test with: `redis-server`, or what `REDLOCK_TEST_SERVER` names.
fn server() -> OsString {
    std::env::var_os("REDLOCK_TEST_SERVER").unwrap_or_else(|| "redis-server".into())
}

fn spawn_server(port: u16, directory: &Path, arguments: &[&str], environment: &Environment) -> Child {
    let mut command = Command::new(server());
    command.envs(environment.iter().cloned());
    command.args(["--bind", "127.0.0.1", "--port", &port.to_string()]);
    command.args(["--save", "", "--appendonly", "no", "--loglevel", "warning", "--dir"]).arg(directory);
    command.args(arguments).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command.spawn().unwrap_or_else(|error| match error.kind() {
        ErrorKind::NotFound => panic!("{:?} is not installed: run the tests with tests/run", server()),
        _ => panic!("{:?} does not start: {error}", server()),
    })
}

/// Its standard input is a pipe from this process, and ends when this process does, however that happens.
fn spawn_watchdog(child: &Child, directory: &Path) -> Child {
    let mut command = Command::new("sh");
    command.args(["-c", r#"read _; kill -KILL "$0"; rm -r "$1""#, &child.id().to_string()]).arg(directory);
    command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
    command.spawn().expect("a shell")
}

fn new_directory() -> PathBuf {
    static NUMBERS: AtomicU32 = AtomicU32::new(0);
    let number = NUMBERS.fetch_add(1, Ordering::Relaxed);
    let name = format!("redlock-quorum-{}-{number}", std::process::id());
    let directory = std::env::temp_dir().join(name);
    std::fs::create_dir_all(&directory).expect("a temporary directory");
    directory
}

/// A port that nobody had a moment ago.
pub fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    listener.local_addr().expect("a bound listener").port()
}
