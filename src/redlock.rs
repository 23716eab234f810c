//! The entry point: the nodes, the settings that all mutexes start from, and the end.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::sync::Notify;

#[cfg(feature = "redis")]
use crate::clock::SystemClock;
use crate::driver::{self, Doors};
use crate::entropy::SystemEntropy;
use crate::error::{ConnectError, SettingsError};
use crate::keeper::Keeper;
use crate::memory::MemoryNodes;
use crate::mutex::Mutex;
#[cfg(feature = "redis")]
use crate::node::redis::{Identities, NodeConfig, RedisNode, Target, Timeouts};
use crate::protocol::command::Key;
use crate::protocol::release::ReleaseOutcome;
use crate::protocol::settings::{Renewal, Wishes, check_namespace, check_signature, check_wait};
use crate::protocol::time::Drift;
use crate::protocol::wait::Backoff;
use crate::queue::Places;

pub(crate) const DEFAULT_NAMESPACE: &str = "redlock";

/// Locks over one set of independent nodes. A clone is the same client: it shares connections and local queues.
///
/// See [`builder`](Redlock::builder) for a set of Redis nodes and [`MemoryNodes`] for nodes in memory.
#[derive(Clone)]
pub struct Redlock {
    core: Arc<Core>,
    namespace: Arc<str>,
}

/// What all clones and mutexes share.
pub(crate) struct Core {
    pub(crate) doors: Arc<Doors>,
    pub(crate) names: Arc<[Arc<str>]>,
    pub(crate) places: Arc<Places>,
    pub(crate) wishes: Wishes,
    pub(crate) wait: Duration,
    pub(crate) holder: String,
    closed: AtomicBool,
    closing: Notify,
}

impl Core {
    pub(crate) fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Acquire)
    }

    /// Completes when the deployment is shut down.
    pub(crate) async fn closed(&self) {
        let closing = self.closing.notified();
        if !self.is_closed() {
            closing.await;
        }
    }
}

impl Redlock {
    /// Starts a description of nodes and settings.
    pub fn builder() -> RedlockBuilder {
        RedlockBuilder::new()
    }

    /// Nodes and settings from the environment, as [`RedlockBuilder::from_env`], connecting in the background.
    ///
    /// # Errors
    ///
    /// [`ConnectError::Settings`] if a variable is missing or refused; [`ConnectError::NoRuntime`] outside of tokio.
    #[cfg(feature = "redis")]
    pub fn from_env() -> Result<Redlock, ConnectError> {
        RedlockBuilder::from_env()?.connect_lazy()
    }

    /// The same nodes under another namespace.
    ///
    /// A namespace with a `#` is refused when a mutex of it is used.
    pub fn namespace(&self, namespace: impl AsRef<str>) -> Redlock {
        Redlock { core: self.core.clone(), namespace: namespace.as_ref().into() }
    }

    /// Describes a lock on `resource`: any bytes, 1 byte to 64 KiB, checked when the mutex is used.
    pub fn mutex(&self, resource: impl AsRef<[u8]>) -> Mutex {
        Mutex::new(self.core.clone(), self.namespace.clone(), resource.as_ref())
    }

    /// Ends this client and its clones. New and waiting calls get [`Closed`](crate::AcquireError::Closed); guards are waited
    /// for, at most for `patience`; those left are then lost to their holders, and released.
    ///
    /// When it returns, every release that was on its way has been answered or its node timeout is over, so the process may
    /// end. What could not be released is named; it ends with its ttl.
    ///
    /// # Cancel safety
    ///
    /// Dropped, the client stays closed to new calls; guards that are left are released when they are dropped.
    pub async fn shutdown(&self, patience: Duration) -> Shutdown {
        let core = &self.core;
        core.closed.store(true, Ordering::Release);
        core.closing.notify_waiters();
        let doors = &core.doors;
        doors.keeper.idle(&*doors.clock, doors.clock.now() + patience).await;
        let left = doors.keeper.held();
        let releases = futures::future::join_all(left.iter().map(driver::release)).await;
        let outcomes = left.iter().zip(releases).map(|(live, (outcome, _))| (live.key().clone(), outcome));
        let shutdown = Shutdown { taken_away: outcomes.collect() };
        self.answered_so_far().await;
        shutdown
    }

    /// Completes when the nodes have answered all that was sent to them before: on one connection, answers keep the order.
    async fn answered_so_far(&self) {
        if let Ok(terms) = self.core.wishes.check(&self.core.names) {
            driver::survey(&self.core.doors, &terms, &Key::of_lock(&self.namespace, b"-")).await;
        }
    }
}

impl fmt::Debug for Redlock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Redlock")
            .field("nodes", &self.core.names)
            .field("namespace", &self.namespace)
            .finish()
    }
}

/// What a [shutdown](Redlock::shutdown) had to take away from guards that outlived its patience.
#[derive(Clone, Debug)]
pub struct Shutdown {
    taken_away: Vec<(Key, ReleaseOutcome)>,
}

impl Shutdown {
    /// Whether every guard had been released before.
    pub fn is_clean(&self) -> bool {
        self.taken_away.is_empty()
    }

    /// The keys of the locks that were taken away from their guards, and what became of them.
    pub fn taken_away(&self) -> impl Iterator<Item = (&[u8], ReleaseOutcome)> {
        self.taken_away.iter().map(|(key, outcome)| (key.as_bytes(), *outcome))
    }
}

/// Nodes and settings, checked together when [`connect`](RedlockBuilder::connect)ed.
#[derive(Clone)]
pub struct RedlockBuilder {
    source: Source,
    namespace: String,
    holder: Option<String>,
    wishes: Wishes,
    wait: Duration,
    connect_timeout: Duration,
}

#[derive(Clone)]
enum Source {
    #[cfg(feature = "redis")]
    Redis(Vec<NodeConfig>),
    Memory(MemoryNodes),
    #[cfg(not(feature = "redis"))]
    Nothing,
}

impl RedlockBuilder {
    fn new() -> Self {
        #[cfg(feature = "redis")]
        return Self::over(Source::Redis(Vec::new()));
        #[cfg(not(feature = "redis"))]
        Self::over(Source::Nothing)
    }

    pub(crate) fn in_memory(nodes: &MemoryNodes) -> Self {
        Self::over(Source::Memory(nodes.clone()))
    }

    fn over(source: Source) -> Self {
        RedlockBuilder {
            source,
            namespace: DEFAULT_NAMESPACE.to_owned(),
            holder: None,
            wishes: Wishes::default(),
            wait: Duration::from_secs(30),
            connect_timeout: Duration::from_secs(2),
        }
    }

    /// From the environment: `REDLOCK_NODES`, addresses separated by commas, must be set; `REDLOCK_NAMESPACE` and
    /// `REDLOCK_HOLDER` may be, and `REDLOCK_TTL_MS` and `REDLOCK_WAIT_MS` in milliseconds.
    ///
    /// # Errors
    ///
    /// If `REDLOCK_NODES` is missing, or a number is none.
    #[cfg(feature = "redis")]
    pub fn from_env() -> Result<Self, SettingsError> {
        let nodes = std::env::var("REDLOCK_NODES").map_err(|_| {
            SettingsError::new("REDLOCK_NODES", "", format_args!("a list of nodes, separated by commas"))
        })?;
        let addresses = nodes.split(',').map(str::trim).filter(|address| !address.is_empty());
        let mut builder = Redlock::builder().nodes(addresses);
        if let Ok(namespace) = std::env::var("REDLOCK_NAMESPACE") {
            builder = builder.namespace(namespace);
        }
        if let Ok(holder) = std::env::var("REDLOCK_HOLDER") {
            builder = builder.holder(holder);
        }
        if let Some(ttl) = millis_from_env("REDLOCK_TTL_MS")? {
            builder = builder.ttl(ttl);
        }
        if let Some(wait) = millis_from_env("REDLOCK_WAIT_MS")? {
            builder = builder.wait(wait);
        }
        Ok(builder)
    }

    /// Adds nodes: `host`, `host:port`, `redis://[user:password@]host[:port][/db]`, `redis+unix:///path[?db=..&user=..&pass=..]`.
    /// All clients should name the same nodes in the same order; an odd number is best, one is fine.
    #[cfg(feature = "redis")]
    pub fn nodes<N: Into<NodeConfig>>(mut self, nodes: impl IntoIterator<Item = N>) -> Self {
        for node in nodes {
            self = self.node(node);
        }
        self
    }

    /// Adds a node.
    #[cfg(feature = "redis")]
    pub fn node(mut self, node: impl Into<NodeConfig>) -> Self {
        match &mut self.source {
            Source::Redis(nodes) => nodes.push(node.into()),
            memory @ Source::Memory(_) => *memory = Source::Redis(vec![node.into()]),
        }
        self
    }

    /// The first part of every key, before a colon: locks of different namespaces have nothing to do with each other. `redlock`
    /// by default; with the empty namespace, the key is the bare resource.
    pub fn namespace(mut self, namespace: impl Into<String>) -> Self {
        self.namespace = namespace.into();
        self
    }

    /// Who this client says it is to those who look at its locks. By default the host name and the process id. It is for
    /// people: two clients of one name still exclude each other.
    pub fn holder(mut self, holder: impl Into<String>) -> Self {
        self.holder = Some(holder.into());
        self
    }

    /// The default [ttl](Mutex::ttl) of mutexes: 10 s.
    pub fn ttl(mut self, ttl: Duration) -> Self {
        self.wishes.ttl = ttl;
        self
    }

    /// The longest ttl that any client of the namespace asks for, in acquisitions and extensions. By default the ttl.
    pub fn max_ttl(mut self, max_ttl: Duration) -> Self {
        self.wishes.max_ttl = Some(max_ttl);
        self
    }

    /// How long a node is waited for before its vote is unknown: by default 200 ms, or a quarter of the ttl if that is less.
    pub fn node_timeout(mut self, node_timeout: Duration) -> Self {
        self.wishes.node_timeout = Some(node_timeout);
        self
    }

    /// What is taken off the validity for clocks at different rates: `parts_per_million` of the ttl plus a `constant`. 10 000
    /// (one percent) and 2 ms by default.
    pub fn drift(mut self, parts_per_million: u32, constant: Duration) -> Self {
        self.wishes.drift = Drift { parts_per_million, constant };
        self
    }

    /// How long before the end of the validity the loss is signalled: 5 ms by default.
    pub fn margin(mut self, margin: Duration) -> Self {
        self.wishes.margin = margin;
        self
    }

    /// The default [wait](Mutex::wait) of mutexes: 30 s.
    pub fn wait(mut self, wait: Duration) -> Self {
        self.wait = wait;
        self
    }

    /// The default [back-off](Mutex::backoff) of mutexes.
    pub fn backoff(mut self, backoff: Backoff) -> Self {
        self.wishes.backoff = backoff;
        self
    }

    /// The default [renewal](Mutex::renewal) of mutexes.
    pub fn renewal(mut self, renewal: Renewal) -> Self {
        self.wishes.renewal = renewal;
        self
    }

    /// How long a connection may take, and for how long [`connect`](RedlockBuilder::connect) waits for a majority: 2 s by
    /// default.
    pub fn connect_timeout(mut self, connect_timeout: Duration) -> Self {
        self.connect_timeout = connect_timeout;
        self
    }

    /// Checks the settings, connects, and waits until a majority of the nodes is reached and identified. The others go on
    /// being tried.
    ///
    /// # Errors
    ///
    /// [`ConnectError::Settings`] before any IO; [`ConnectError::NoQuorum`] with each node's reason if no majority could be
    /// reached in time.
    ///
    /// # Cancel safety
    ///
    /// Dropped, the connections are closed.
    pub async fn connect(self) -> Result<Redlock, ConnectError> {
        let (redlock, _reached) = self.start()?;
        #[cfg(feature = "redis")]
        _reached.majority().await?;
        Ok(redlock)
    }

    /// Checks the settings and connects in the background. Absent nodes are no error: calls get
    /// [`NoQuorum`](crate::AcquireError::NoQuorum) until a majority is there. A call made while the first connection attempt
    /// is under way waits for it.
    ///
    /// # Errors
    ///
    /// [`ConnectError::Settings`] before any IO; [`ConnectError::NoRuntime`] outside of a tokio runtime.
    pub fn connect_lazy(self) -> Result<Redlock, ConnectError> {
        Ok(self.start()?.0)
    }

    fn start(self) -> Result<(Redlock, Reached), ConnectError> {
        check_namespace(&self.namespace)?;
        check_wait(self.wait)?;
        let holder = self.holder.clone().unwrap_or_else(default_holder);
        check_signature(&holder, None)?;
        match self.source.clone() {
            Source::Memory(nodes) => {
                let names = (1..=nodes.len()).map(|node| format!("memory-{node}").into()).collect();
                let clock = Arc::new(nodes.clock());
                self.wishes.check(&names)?;
                let runtime = runtime()?;
                let keeper = Arc::new(Keeper::default());
                runtime.spawn(keeper.clone().run(clock.clone()));
                let doors = Doors { nodes: nodes.doors(), clock, entropy: Arc::new(SystemEntropy), keeper };
                Ok((self.open(doors, names, holder), Reached::default()))
            }
            #[cfg(feature = "redis")]
            Source::Redis(configs) => {
                let targets = Target::all(&configs)?;
                let names: Arc<[Arc<str>]> = targets.iter().map(|target| target.name().into()).collect();
                let terms = self.wishes.check(&names)?;
                if self.connect_timeout.is_zero() {
                    let error = SettingsError::new(
                        "connect_timeout",
                        self.connect_timeout,
                        format_args!("above zero"),
                    );
                    return Err(error.into());
                }
                if targets.len().is_multiple_of(2) {
                    tracing::warn!(
                        nodes = targets.len(),
                        "an even number of nodes tolerates no more failures than one node less"
                    );
                }
                let runtime = runtime()?;
                let clock = Arc::new(SystemClock);
                let keeper = Arc::new(Keeper::default());
                runtime.spawn(keeper.clone().run(clock.clone()));
                let timeouts = Timeouts { connect: self.connect_timeout, node: terms.node_timeout };
                let identities = Arc::new(Identities::default());
                let (nodes, states) = targets
                    .into_iter()
                    .map(|target| {
                        RedisNode::start(&runtime, target, timeouts, clock.clone(), identities.clone())
                    })
                    .unzip();
                let nodes: Vec<Arc<dyn crate::node::Node>> = nodes;
                let doors = Doors { nodes: nodes.into(), clock, entropy: Arc::new(SystemEntropy), keeper };
                let reached = Reached { states, names: names.clone(), patience: self.connect_timeout };
                Ok((self.open(doors, names, holder), reached))
            }
            #[cfg(not(feature = "redis"))]
            Source::Nothing => Err(SettingsError::new("nodes", "", format_args!("at least 1")).into()),
        }
    }

    fn open(self, doors: Doors, names: Arc<[Arc<str>]>, holder: String) -> Redlock {
        let mut wishes = self.wishes;
        wishes.max_ttl = Some(wishes.max_ttl.unwrap_or(wishes.ttl));
        let core = Core {
            doors: Arc::new(doors),
            names,
            places: Arc::default(),
            wishes,
            wait: self.wait,
            holder,
            closed: AtomicBool::new(false),
            closing: Notify::new(),
        };
        Redlock { core: Arc::new(core), namespace: self.namespace.into() }
    }
}

impl fmt::Debug for RedlockBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut builder = f.debug_struct("RedlockBuilder");
        match &self.source {
            #[cfg(feature = "redis")]
            Source::Redis(nodes) => builder.field("nodes", nodes),
            Source::Memory(nodes) => builder.field("nodes", nodes),
            #[cfg(not(feature = "redis"))]
            Source::Nothing => &mut builder,
        };
        builder.field("namespace", &self.namespace).field("settings", &self.wishes).finish_non_exhaustive()
    }
}

/// Waits for the first connections.
#[derive(Default)]
struct Reached {
    #[cfg(feature = "redis")]
    states: Vec<tokio::sync::watch::Receiver<crate::node::redis::State>>,
    #[cfg(feature = "redis")]
    names: Arc<[Arc<str>]>,
    #[cfg(feature = "redis")]
    patience: Duration,
}

#[cfg(feature = "redis")]
impl Reached {
    async fn majority(mut self) -> Result<(), ConnectError> {
        use futures::stream::{FuturesUnordered, StreamExt};

        if self.states.is_empty() {
            return Ok(());
        }
        let quorum = crate::protocol::quorum::Quorum::of(self.states.len());
        let first_states = self.states.iter_mut().map(crate::node::redis::State::is_up_at_first);
        let mut first_states: FuturesUnordered<_> = first_states.collect();
        let reached = async {
            let mut up = 0;
            while let Some(is_up) = first_states.next().await {
                up += usize::from(is_up);
                if up >= quorum.majority() {
                    return true;
                }
            }
            false
        };
        if tokio::time::timeout(self.patience, reached).await.unwrap_or(false) {
            return Ok(());
        }
        drop(first_states);
        let reasons = self.states.iter().map(|state| state.borrow().reason());
        let nodes = self.names.iter().map(ToString::to_string).zip(reasons).collect();
        Err(ConnectError::NoQuorum { nodes })
    }
}

fn runtime() -> Result<Handle, ConnectError> {
    Handle::try_current().map_err(|_| ConnectError::NoRuntime)
}

/// Host name and process id: for people who look at a lock.
fn default_holder() -> String {
    #[cfg(unix)]
    let host = rustix::system::uname().nodename().to_string_lossy().replace(':', "-");
    #[cfg(not(unix))]
    let host = std::env::var("COMPUTERNAME").unwrap_or_default().replace(':', "-");
    let host: String = host.chars().take(100).collect();
    format!("{host}/{}", std::process::id())
}

#[cfg(feature = "redis")]
fn millis_from_env(variable: &'static str) -> Result<Option<Duration>, SettingsError> {
    match std::env::var(variable) {
        Err(_) => Ok(None),
        Ok(text) => match text.parse() {
            Ok(millis) => Ok(Some(Duration::from_millis(millis))),
            Err(_) => Err(SettingsError::new(variable, text, format_args!("a whole number of milliseconds"))),
        },
    }
}
