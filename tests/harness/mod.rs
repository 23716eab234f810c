//! Real servers for tests. A [`Server`] is a `redis-server` process of its own on a free port, and a [`Cluster`] is a few
//! of them that know nothing of each other. Whatever was started here ends with the test, even if the test process is
//! killed.
//!
//! The tests look after a server through a Unix socket in its directory, as a user of their own: whatever is done to its
//! port, its passwords and its rights, they still can.
#![allow(dead_code, unreachable_pub, reason = "every test file uses another part of it")]

pub mod clock;
pub mod hosts;
pub mod process;
pub mod proxy;
pub mod storm;
pub mod trouble;
pub mod waiters;
pub mod witness;

use std::path::{Path, PathBuf};
use std::sync::LazyLock;
use std::time::{Duration, Instant};

use futures::future::join_all;
use redis::{AsyncConnectionConfig, Cmd, FromRedisValue};
use redlock_quorum::{NodeConfig, Redlock, RedlockBuilder, RestartProtection};

use self::clock::Clock;
use self::hosts::Host;
use self::process::{Directory, Process, Surroundings, free_port};

/// What other clients of the servers write into a key that is theirs.
pub const FOREIGN: &str = "foreign";

/// For what is over in milliseconds, unless it hangs: a bound that a busy machine keeps.
pub const PROMPT: Duration = Duration::from_secs(5);

/// Within this time nothing of ours may be left. Tests that ask for it use a ttl that is much longer, so that it is the
/// releases that are seen, not the expiry.
pub const CLEAN_UP: Duration = Duration::from_secs(2);

/// Much longer than any [`CLEAN_UP`]: the ttl by default.
pub const LONG_TTL: Duration = Duration::from_secs(10);

/// With `REDLOCK_TEST_LEAST_RIGHTS` set, clients log in as the user with the least rights: the line in the guide.
static LEAST_RIGHTS: LazyLock<Option<String>> = LazyLock::new(|| {
    std::env::var_os("REDLOCK_TEST_LEAST_RIGHTS")?;
    let guide = include_str!("../../docs/operations.md");
    let line = guide.lines().find(|line| line.starts_with("ACL SETUSER ")).expect("the line in the guide");
    Some(line.replace(">PASSWORD", ">secret"))
});

/// Where servers run that were not given a host.
const HERE: &str = "127.0.0.1";

/// How often a condition is looked at.
const POLL: Duration = Duration::from_millis(5);

/// The arguments of all servers: nothing is saved, and the tests may do everything.
#[rustfmt::skip]
const ARGUMENTS: [&str; 15] = [
    "--unixsocket", "socket",
    "--save", "", "--appendonly", "no", "--loglevel", "warning",
    "--user", "operator", "on", "nopass", "~*", "&*", "+@all",
];

const NO_TRACKING: &str = "-client|tracking";

/// The arguments of a server that does not tell holders when their keys are changed.
pub const SILENT: [&str; 8] = ["--user", "default", "on", "nopass", "~*", "&*", "+@all", NO_TRACKING];

/// One server without persistence, and its process.
pub struct Server {
    host: String,
    port: u16,
    arguments: Vec<String>,
    directory: Directory,
    surroundings: Surroundings,
    condition: Condition,
}

enum Condition {
    Running(Process),
    Stopped(Process),
    Dead,
}

impl Server {
    /// Starts a server and waits until it answers.
    pub async fn start() -> Self {
        Server::start_with(&[]).await
    }

    /// The same, with more arguments.
    pub async fn start_with(arguments: &[&str]) -> Self {
        let arguments = owned(arguments);
        Server::start_in(|_, _| arguments.clone()).await
    }

    /// The same, with arguments that name files in its directory, or its port.
    pub async fn start_in(arguments: impl Fn(&Path, u16) -> Vec<String>) -> Self {
        Server::start_under(Surroundings::default(), HERE, arguments).await
    }

    /// A server that goes by a clock of its own, also when it is restarted.
    pub async fn start_with_clock(clock: &Clock) -> Self {
        Server::start_under(clock.surroundings(), HERE, |_, _| Vec::new()).await
    }

    /// A server on a host of its own, as far as the network goes.
    pub async fn start_on(host: &Host) -> Self {
        let surroundings =
            Surroundings { namespace: Some(host.name().to_owned()), ..Surroundings::default() };
        Server::start_under(surroundings, host.address(), |_, _| owned(&["--protected-mode", "no"])).await
    }

    async fn start_under(
        surroundings: Surroundings,
        host: &str,
        arguments: impl Fn(&Path, u16) -> Vec<String>,
    ) -> Self {
        // Somebody else may take the port before the server does.
        for _ in 0..20 {
            let (directory, port) = (Directory::new(), free_port());
            let arguments = arguments(directory.path(), port);
            let (host, surroundings) = (host.to_owned(), surroundings.clone());
            let condition = Condition::Dead;
            let mut server = Server { host, port, arguments, directory, surroundings, condition };
            if server.try_start(&[]).await {
                return server;
            }
        }
        panic!("no server comes up with these arguments")
    }

    /// False if another process has the port.
    async fn try_start(&mut self, more: &[&str]) -> bool {
        let port = self.port.to_string();
        let mut arguments = owned(&ARGUMENTS);
        arguments.extend(owned(&["--bind", &self.host, "--port", &port]));
        arguments.extend(self.arguments.iter().cloned().chain(owned(more)));
        let mut process = Process::start(self.directory.path(), &arguments, &self.surroundings);
        let is_up = self.comes_up(&mut process).await;
        if is_up {
            self.condition = Condition::Running(process);
        }
        is_up
    }

    /// Waits until the process answers. False if it ends instead.
    async fn comes_up(&self, process: &mut Process) -> bool {
        let started = Instant::now();
        while !self.is_answered_by(process.id()).await {
            if process.has_ended() {
                return false;
            }
            assert!(started.elapsed() < PROMPT, "the server does not answer at {:?}", self.socket());
            tokio::time::sleep(POLL).await;
        }
        if let Some(line) = LEAST_RIGHTS.as_ref() {
            let is_silent = self.arguments.iter().any(|argument| argument == NO_TRACKING);
            // At once: a client that logs in between two lines would be told of changed keys all the same.
            self.type_in::<()>(&format!("{line} {}", if is_silent { NO_TRACKING } else { "" })).await;
        }
        true
    }

    /// Also while it reads its data.
    async fn is_answered_by(&self, process_id: u32) -> bool {
        let info: Option<String> = self.try_ask(redis::cmd("INFO").arg("server")).await.ok();
        let answering = info.and_then(|info| field_of(&info, "process_id"));
        answering.is_some_and(|id| id == process_id.to_string())
    }

    /// Where the server keeps its files.
    pub fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// Where it can be reached besides its port.
    pub fn socket(&self) -> PathBuf {
        self.directory().join("socket")
    }

    /// The process is gone: connections are reset, new ones are refused, and what it knew is lost.
    pub fn kill(&mut self) {
        self.condition = Condition::Dead;
    }

    /// The process stands still: connections stay open, and what is sent is read only when it goes on.
    pub fn stop(&mut self) {
        self.condition = match std::mem::replace(&mut self.condition, Condition::Dead) {
            Condition::Running(process) => {
                process.stop();
                Condition::Stopped(process)
            }
            other => other,
        };
    }

    /// A stopped process goes on where it stood.
    pub fn cont(&mut self) {
        self.condition = match std::mem::replace(&mut self.condition, Condition::Dead) {
            Condition::Stopped(process) => {
                process.cont();
                Condition::Running(process)
            }
            other => other,
        };
    }

    /// Killed, and started again on the same port: it knows nothing of what was before.
    pub async fn restart_empty(&mut self) {
        self.restart_empty_with(&[]).await;
    }

    /// The same, with more arguments.
    pub async fn restart_empty_with(&mut self, more: &[&str]) {
        self.kill();
        self.directory.forget_data();
        self.start_again(more).await;
    }

    /// Killed, and started again on the same port, with more arguments: it knows what it had saved.
    pub async fn restart_with_its_data(&mut self, more: &[&str]) {
        self.kill();
        self.start_again(more).await;
    }

    async fn start_again(&mut self, more: &[&str]) {
        let started = Instant::now();
        while !self.try_start(more).await {
            assert!(started.elapsed() < PROMPT, "the port {} is not free again", self.port);
        }
    }

    pub fn address(&self) -> String {
        format!("{}:{}", self.host, self.port)
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    pub fn is_running(&self) -> bool {
        matches!(self.condition, Condition::Running(_))
    }

    /// Asks the server as a client of its own.
    pub async fn ask<T: FromRedisValue>(&self, command: &Cmd) -> T {
        self.try_ask(command).await.unwrap_or_else(|error| panic!("{}: {error}", self.address()))
    }

    async fn try_ask<T: FromRedisValue>(&self, command: &Cmd) -> redis::RedisResult<T> {
        self.asker().ask(command).await
    }

    fn asker(&self) -> Asker {
        Asker(self.socket())
    }

    /// As an operator would type it: words between spaces.
    pub async fn type_in<T: FromRedisValue>(&self, line: &str) -> T {
        self.ask(&typed(line)).await
    }

    pub async fn set(&self, key: &str, value: &str) {
        self.type_in::<()>(&format!("SET {key} {value}")).await;
    }

    pub async fn value(&self, key: &str) -> Option<String> {
        self.type_in(&format!("GET {key}")).await
    }

    pub async fn delete(&self, key: &str) {
        self.type_in::<()>(&format!("DEL {key}")).await;
    }

    /// How long a key has to live.
    pub async fn expiry(&self, key: &str) -> Option<Duration> {
        let millis: i64 = self.type_in(&format!("PTTL {key}")).await;
        u64::try_from(millis).ok().map(Duration::from_millis)
    }

    pub async fn keys(&self) -> Vec<String> {
        self.type_in("KEYS *").await
    }

    /// How often a command was carried out or refused since the last `CONFIG RESETSTAT`, by whomever.
    pub async fn calls(&self, command: &str) -> u64 {
        let info: String = self.type_in("INFO commandstats").await;
        let counts = field_of(&info, &format!("cmdstat_{command}"));
        let calls = counts.as_deref().and_then(|counts| counts.split(',').next()?.strip_prefix("calls="));
        calls.map_or(0, |calls| calls.parse().expect("a number"))
    }

    /// A line of INFO.
    pub async fn info(&self, section: &str, field: &str) -> String {
        let info: String = self.type_in(&format!("INFO {section}")).await;
        field_of(&info, field).unwrap_or_else(|| panic!("{field} in {info}"))
    }
}

/// Who looks after a server, and may go on while the server is dealt with.
struct Asker(PathBuf);

impl Asker {
    async fn ask<T: FromRedisValue>(&self, command: &Cmd) -> redis::RedisResult<T> {
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(PROMPT))
            .set_response_timeout(Some(PROMPT));
        let url = format!("redis+unix://{}?user=operator&pass=any", self.0.display());
        let client = redis::Client::open(url)?;
        let mut connection = client.get_multiplexed_async_connection_with_config(&config).await?;
        command.query_async(&mut connection).await
    }
}

fn typed(line: &str) -> Cmd {
    let mut words = line.split(' ');
    let mut command = redis::cmd(words.next().expect("a command"));
    words.for_each(|word| {
        command.arg(word);
    });
    command
}

pub fn owned(words: &[&str]) -> Vec<String> {
    words.iter().map(|word| (*word).to_owned()).collect()
}

fn field_of(info: &str, field: &str) -> Option<String> {
    let mut lines = info.lines().filter_map(|line| line.split_once(':'));
    lines.find(|(name, _)| *name == field).map(|(_, value)| value.trim().to_owned())
}

/// A client of servers that were started a moment ago. Nothing was granted before the test began, so nobody has to wait
/// until it can be forgotten; tests that make servers forget say so themselves.
pub fn over<N: Into<NodeConfig>>(nodes: impl IntoIterator<Item = N>) -> RedlockBuilder {
    Redlock::builder().nodes(nodes).restart_protection(RestartProtection::Off)
}

/// Servers that are independent of each other: the nodes of a deployment.
pub struct Cluster {
    pub servers: Vec<Server>,
}

/// A key that stands on a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Standing {
    pub node: String,
    pub key: String,
    pub value: Option<String>,
}

impl Cluster {
    pub async fn start(nodes: usize) -> Self {
        Cluster::start_with(nodes, &[]).await
    }

    pub async fn start_with(nodes: usize, arguments: &[&str]) -> Self {
        Cluster { servers: join_all((0..nodes).map(|_| Server::start_with(arguments))).await }
    }

    pub fn addresses(&self) -> Vec<String> {
        self.servers.iter().map(Server::address).collect()
    }

    pub fn builder(&self) -> RedlockBuilder {
        let node = |address: String| match LEAST_RIGHTS.as_ref() {
            Some(_) => NodeConfig::new(address).username("locks").password("secret"),
            None => NodeConfig::new(address),
        };
        over(self.addresses().into_iter().map(node))
    }

    /// One client over all the nodes, with the settings that are the default.
    pub async fn redlock(&self) -> Redlock {
        self.builder().connect().await.expect("all nodes are there")
    }

    pub fn running(&self) -> impl Iterator<Item = &Server> {
        self.servers.iter().filter(|server| server.is_running())
    }

    /// Another kind of client takes a key on some nodes, for ever.
    pub async fn take(&self, nodes: impl IntoIterator<Item = usize>, key: &str) {
        for node in nodes {
            self.servers[node].set(key, FOREIGN).await;
        }
    }

    /// An operator deletes a key on all nodes.
    pub async fn delete(&self, key: &str) {
        join_all(self.running().map(|server| server.delete(key))).await;
    }

    /// All keys on all nodes that run.
    pub async fn keys(&self) -> Vec<Standing> {
        join_all(self.running().map(standing_on)).await.concat()
    }

    /// Those that no foreign client has set.
    pub async fn ours(&self) -> Vec<Standing> {
        let mut keys = self.keys().await;
        keys.retain(|key| key.value.as_deref() != Some(FOREIGN));
        keys
    }

    /// Waits until no key of ours stands on any node that runs.
    pub async fn assert_nothing_left(&self) {
        let started = Instant::now();
        loop {
            let ours = self.ours().await;
            if ours.is_empty() {
                return;
            }
            assert!(started.elapsed() < CLEAN_UP, "left behind: {ours:#?}");
            tokio::time::sleep(POLL).await;
        }
    }
}

async fn standing_on(server: &Server) -> Vec<Standing> {
    let keys = server.keys().await;
    if keys.is_empty() {
        return Vec::new();
    }
    // All at once: to ask for thousands one by one takes longer than what is waited for.
    let values: Vec<Option<String>> = server.ask(redis::cmd("MGET").arg(&keys)).await;
    let standing =
        keys.into_iter().zip(values).map(|(key, value)| Standing { node: server.address(), key, value });
    // A key may have gone between the two questions.
    standing.filter(|key| key.value.is_some()).collect()
}

/// For tests in which processes stand still: one at a time, so that they do not make each other slow.
pub async fn one_at_a_time() -> impl Drop {
    static TURN: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());
    TURN.lock().await
}

/// The result of what must not hang.
pub async fn promptly<T>(what: impl Future<Output = T>) -> T {
    soon(PROMPT, what).await
}

/// The result of what must be over within a bound.
pub async fn soon<T>(bound: Duration, what: impl Future<Output = T>) -> T {
    tokio::time::timeout(bound, what).await.unwrap_or_else(|_| panic!("still not over after {bound:?}"))
}

/// Waits until a condition holds.
pub async fn until(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    let started = Instant::now();
    while !holds().await {
        assert!(started.elapsed() < PROMPT, "not within {PROMPT:?}: {what}");
        tokio::time::sleep(POLL).await;
    }
}
