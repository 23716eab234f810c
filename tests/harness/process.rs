//! Processes that cannot outlive the test, a `redis-server` above all, and the directory in which it runs.

use std::ffi::OsString;
use std::io::ErrorKind;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

use rustix::process::{Pid, Signal, kill_process};

/// A child process. Dropped, it is killed, also where it stands still, and waited for.
pub struct Process {
    child: Child,
    /// Kills the child and clears up if this process ends without having dropped it.
    watchdog: Child,
}

/// Where a server runs, if not just here.
#[derive(Clone, Default)]
pub struct Surroundings {
    /// What it finds in its environment besides what this process has.
    pub variables: Vec<(&'static str, OsString)>,
    /// The network namespace of its host.
    pub namespace: Option<String>,
}

impl Process {
    pub fn start(directory: &Path, arguments: &[String], surroundings: &Surroundings) -> Self {
        let child = spawn_server(directory, arguments, surroundings);
        // The process id of the server, and its directory.
        let orphan = [OsString::from(child.id().to_string()), directory.into()];
        Process { watchdog: spawn_watchdog(r#"kill -KILL "$0"; rm -r "$1""#, orphan), child }
    }

    /// Any other program.
    pub fn run(command: &mut Command) -> Self {
        let child = command.spawn().unwrap_or_else(|error| panic!("{command:?}: {error}"));
        let orphan = [OsString::from(child.id().to_string())];
        Process { watchdog: spawn_watchdog(r#"kill -KILL "$0""#, orphan), child }
    }

    /// What it writes, if that was asked for, once.
    pub fn told(&mut self) -> ChildStdout {
        self.child.stdout.take().expect("a pipe that nobody has taken")
    }

    /// Its input, if it has one from here, ends.
    pub fn close_input(&mut self) {
        self.child.stdin = None;
    }

    /// How it ended, if it has.
    pub fn exit(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().expect("our own child")
    }

    pub fn id(&self) -> u32 {
        self.child.id()
    }

    pub fn has_ended(&mut self) -> bool {
        self.exit().is_some()
    }

    pub fn stop(&self) {
        self.signal(Signal::STOP);
    }

    pub fn cont(&self) {
        self.signal(Signal::CONT);
    }

    /// At once, and without a word.
    pub fn kill(&self) {
        self.signal(Signal::KILL);
    }

    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).expect("our own child, not waited for yet");
    }
}

impl Drop for Process {
    /// The watchdog first: the process id is ours only until the child is waited for.
    fn drop(&mut self) {
        for child in [&mut self.watchdog, &mut self.child] {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// A new directory in that of the system for temporary files. Dropped, it is removed.
pub struct Directory(PathBuf);

impl Directory {
    pub fn new() -> Self {
        static NUMBERS: AtomicU32 = AtomicU32::new(0);
        let number = NUMBERS.fetch_add(1, Ordering::Relaxed);
        let name = format!("redlock-quorum-{}-{number}", std::process::id());
        let directory = std::env::temp_dir().join(name);
        std::fs::create_dir_all(&directory).expect("a temporary directory");
        Directory(directory)
    }

    pub fn path(&self) -> &Path {
        &self.0
    }

    /// Throws away what the server has saved.
    pub fn forget_data(&self) {
        let _ = std::fs::remove_file(self.0.join("dump.rdb"));
        let _ = std::fs::remove_dir_all(self.0.join("appendonlydir"));
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// The server to test with: `redis-server`, or what `REDLOCK_TEST_SERVER` names. That one may have been built without TLS.
fn program(arguments: &[String]) -> OsString {
    let speaks_tls = arguments.iter().any(|argument| argument == "--tls-port");
    let named = std::env::var_os("REDLOCK_TEST_SERVER").filter(|_| !speaks_tls);
    named.unwrap_or_else(|| "redis-server".into())
}

fn spawn_server(directory: &Path, arguments: &[String], surroundings: &Surroundings) -> Child {
    let program = program(arguments);
    let mut command = match &surroundings.namespace {
        None => Command::new(&program),
        Some(namespace) => in_namespace(namespace, &program),
    };
    command.envs(surroundings.variables.iter().cloned()).arg("--dir").arg(directory).args(arguments);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command.spawn().unwrap_or_else(|error| match error.kind() {
        ErrorKind::NotFound => panic!("{program:?} is not installed: run the tests with tests/run"),
        _ => panic!("{program:?} does not start: {error}"),
    })
}

/// It becomes the program, so that the process id is the server's.
fn in_namespace(namespace: &str, program: &OsString) -> Command {
    let mut command = Command::new("ip");
    command.args(["netns", "exec", namespace]).arg(program);
    command
}

/// Clears up when this process ends without having done so: its standard input is a pipe from this process, and ends
/// when this process does, however that happens.
pub fn spawn_watchdog(clear_up: &str, arguments: impl IntoIterator<Item = OsString>) -> Child {
    let mut command = Command::new("sh");
    command.args(["-c", &format!("read _; {clear_up}")]).args(arguments);
    command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
    command.spawn().expect("a shell")
}

/// A port that nobody had a moment ago.
pub fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    listener.local_addr().expect("a bound listener").port()
}
