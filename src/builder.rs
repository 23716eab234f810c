//! Nodes and settings, put together step by step and checked against each other once, when it connects.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

#[cfg(feature = "redis")]
use futures::stream::{FuturesUnordered, StreamExt};
use tokio::runtime::Handle;
#[cfg(feature = "redis")]
use tokio::sync::watch;
#[cfg(feature = "redis")]
use tokio::time::timeout;
#[cfg(feature = "redis")]
use uuid::Uuid;

use crate::clock::Clock;
#[cfg(feature = "redis")]
use crate::clock::SystemClock;
use crate::driver::Doors;
use crate::entropy::Entropy;
#[cfg(feature = "redis")]
use crate::entropy::SystemEntropy;
use crate::error::{ConnectError, SettingsError};
use crate::keeper::Keeper;
use crate::memory::{MemoryClient, MemoryDoors, MemoryNodes};
#[cfg(feature = "redis")]
use crate::node::redis::{Client, NodeConfig, RedisNode, State, Target, Timeouts, check_connect_timeout};
use crate::node::{Bell, Node};
#[cfg(feature = "redis")]
use crate::protocol::admission::Admission;
use crate::protocol::admission::RestartProtection;
#[cfg(feature = "redis")]
use crate::protocol::command::Waiter;
use crate::protocol::enrolment::FencesAfterLoss;
#[cfg(feature = "redis")]
use crate::protocol::quorum::Quorum;
use crate::protocol::settings::{Renewal, Terms, Wishes, check_namespace, check_signature, check_wait};
use crate::protocol::time::Drift;
use crate::protocol::wait::{Backoff, WakeBy};
use crate::redlock::{Core, DEFAULT_NAMESPACE, DEFAULT_WAIT, Redlock};
use crate::switchboard::Switchboard;

/// Nodes and settings, checked together when [`connect`](RedlockBuilder::connect)ed: a setting that does not fit is
/// an error that names the field, its value and the bound, before anything is sent.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use std::time::Duration;
/// use redlock_quorum::{Backoff, NodeConfig, Redlock, Renewal};
///
/// let redlock = Redlock::builder()
///     .nodes(["redis://127.0.0.1:7001", "127.0.0.1:7002"])
///     .node(NodeConfig::new("127.0.0.1:7003").username("locks").password("secret"))
///     .namespace("billing")
///     .holder("worker-7")
///     .ttl(Duration::from_secs(10))
///     .max_ttl(Duration::from_secs(60))
///     .wait(Duration::from_secs(5))
///     .backoff(Backoff::constant(Duration::from_millis(100)))
///     .renewal(Renewal::Every(Duration::from_secs(3)))
///     .node_timeout(Duration::from_millis(200))
///     .connect_timeout(Duration::from_secs(1))
///     .drift(10_000, Duration::from_millis(2)) // one percent and 2 ms
///     .margin(Duration::from_millis(5))
///     .connect_lazy()?; // in the background, so that this runs without a server
/// assert!(redlock.mutex("invoices/42").try_acquire().await.is_err(), "nobody is there");
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct RedlockBuilder {
    source: Source,
    namespace: String,
    holder: Option<String>,
    wishes: Wishes,
    wait: Option<Duration>,
    max_waiters: usize,
    restart_protection: RestartProtection,
    connect_timeout: Duration,
    fences_after_loss: FencesAfterLoss,
    #[cfg_attr(not(feature = "redis"), allow(dead_code))]
    allows_eviction: bool,
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
    pub(crate) fn new() -> Self {
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
            wait: None,
            max_waiters: usize::MAX,
            restart_protection: RestartProtection::default(),
            connect_timeout: Duration::from_secs(2),
            fences_after_loss: FencesAfterLoss::default(),
            allows_eviction: false,
        }
    }

    /// From the environment: `REDLOCK_NODES`, addresses separated by commas, must be set; `REDLOCK_NAMESPACE` and
    /// `REDLOCK_HOLDER` may be, and `REDLOCK_TTL_MS` and `REDLOCK_WAIT_MS` in milliseconds.
    ///
    /// # Errors
    ///
    /// If `REDLOCK_NODES` is missing, or a number is none.
    ///
    /// ```
    /// use redlock_quorum::RedlockBuilder;
    ///
    /// // REDLOCK_NODES=10.0.0.1,10.0.0.2,10.0.0.3 is not set here.
    /// let refused = RedlockBuilder::from_env().unwrap_err();
    /// assert_eq!(refused.field(), "REDLOCK_NODES");
    /// ```
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

    /// Adds nodes: `host`, `host:port`, `redis://[user:password@]host[:port][/db]`, `redis+unix:///path[?db=..&user=..&pass=..]`;
    /// with the feature `tls` also `rediss://[user:password@]host[:port][/db]`. Each may end in `?trust_disk=true` (behind other
    /// parts of a query, in `&trust_disk=true`): see [`NodeConfig::trust_disk`]. What means something in a URL is escaped in a
    /// password there (`%40` for `@`); [`NodeConfig::password`] takes it as it is.
    /// All clients should name the same nodes in the same order; an odd number is best, one is fine.
    #[cfg(feature = "redis")]
    pub fn nodes<N: Into<NodeConfig>>(mut self, nodes: impl IntoIterator<Item = N>) -> Self {
        for node in nodes {
            self = self.node(node);
        }
        self
    }

    /// Adds a node: an address as in [`nodes`](RedlockBuilder::nodes), or a [`NodeConfig`]. Checked when it connects.
    #[cfg(feature = "redis")]
    pub fn node(mut self, node: impl Into<NodeConfig>) -> Self {
        match &mut self.source {
            Source::Redis(nodes) => nodes.push(node.into()),
            memory @ Source::Memory(_) => *memory = Source::Redis(vec![node.into()]),
        }
        self
    }

    /// The first part of every key, before a colon: locks of different namespaces have nothing to do with each other, unless one
    /// namespace is empty or begins with the other and a colon, where two resources can come to the same key. `redlock` by default; with
    /// the empty namespace, the key is the bare resource.
    pub fn namespace(mut self, namespace: impl Into<String>) -> Self {
        self.namespace = namespace.into();
        self
    }

    /// Who this client says it is to those who look at its locks. By default the host name and the process id, or
    /// `client-1` and so on for clients of [`MemoryNodes`]. It is for people: two clients of one name still exclude each
    /// other.
    pub fn holder(mut self, holder: impl Into<String>) -> Self {
        self.holder = Some(holder.into());
        self
    }

    /// The default [ttl](crate::Mutex::ttl) of mutexes, rounded down to whole milliseconds: 10 s if not given. Above
    /// drift plus margin, and at most the [`max_ttl`](RedlockBuilder::max_ttl).
    pub fn ttl(mut self, ttl: Duration) -> Self {
        self.wishes.ttl = ttl;
        self
    }

    /// The longest ttl that any client of the namespace asks for, in acquisitions and extensions; whatever is longer is
    /// refused. By default the ttl; at most a year. For so long a node waits that may have forgotten what it granted, so it
    /// must be the same in all clients.
    pub fn max_ttl(mut self, max_ttl: Duration) -> Self {
        self.wishes.max_ttl = Some(max_ttl);
        self
    }

    /// How long a node is waited for before its vote is unknown: by default 200 ms, or a quarter of the ttl if that
    /// is less. At least 1 ms, and at most the ttl. A call without a majority takes about so long, for each of its
    /// attempts.
    pub fn node_timeout(mut self, node_timeout: Duration) -> Self {
        self.wishes.node_timeout = Some(node_timeout);
        self
    }

    /// What is taken off the validity for clocks at different rates: `parts_per_million` of the ttl plus a
    /// `constant`. 10 000 (one percent) and 2 ms by default. All clocks that are involved must stay within it over
    /// one ttl.
    pub fn drift(mut self, parts_per_million: u32, constant: Duration) -> Self {
        self.wishes.drift = Drift { parts_per_million, constant };
        self
    }

    /// How long before the end of the validity the loss is signalled, so that the holder has time to stop: 5 ms by
    /// default. Together with the drift below the ttl.
    pub fn margin(mut self, margin: Duration) -> Self {
        self.wishes.margin = margin;
        self
    }

    /// The default [wait](crate::Mutex::wait) of mutexes, above zero. If it is not given, 30 s, not counting the time in which
    /// only nodes were missing that do not vote yet after a restart, up to the time after which a node votes that was
    /// restarted once.
    pub fn wait(mut self, wait: Duration) -> Self {
        self.wait = Some(wait);
        self
    }

    /// Whether a node that may have lost its memory is kept from voting until nothing that it may have granted can still be
    /// held: for the [`max_ttl`](RedlockBuilder::max_ttl) plus the drift allowance. [`On`](RestartProtection::On) by default.
    ///
    /// At each connection the server is asked who it is (`run_id`, `master_replid`) and how old. One that was never seen
    /// before waits until it is older than that; one that was restarted, replaced or promoted waits in full. Until then it gets
    /// all commands, and its answers count for nothing. So the first lock of a deployment that was started a moment ago takes
    /// 10 s with the default ttl: calls wait, or get [`NotReady`](crate::AcquireError::NotReady).
    ///
    /// With [`Off`](RestartProtection::Off), for tests, two clients can hold at once after a restart. For a node that keeps its
    /// memory, there is [`NodeConfig::trust_disk`]. In-memory nodes never wait.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let nodes = redlock_quorum::MemoryNodes::new(3);
    /// use redlock_quorum::RestartProtection;
    ///
    /// let for_tests = nodes.builder().restart_protection(RestartProtection::Off).connect().await?;
    /// # let _ = for_tests;
    /// # Ok(())
    /// # }
    /// ```
    pub fn restart_protection(mut self, protection: RestartProtection) -> Self {
        self.restart_protection = protection;
        self
    }

    /// What becomes of [fences](crate::Fence) when more nodes have lost their memory than leave a majority that remembers them:
    /// by default, [the wall clock stands in](FencesAfterLoss::WaitForAll) once all nodes have answered.
    pub fn fences_after_loss(mut self, policy: FencesAfterLoss) -> Self {
        self.fences_after_loss = policy;
        self
    }

    /// Lets [fenced mutexes](Redlock::fenced_mutex) and elections use servers that may evict keys to make
    /// room: those whose `maxmemory-policy` is not `noeviction` although there is a `maxmemory`. By default such a server is
    /// asked for none, since it may throw away a lock that is held, and goes on to count. Plain mutexes are only warned of in the
    /// log.
    pub fn allow_eviction(mut self) -> Self {
        self.allows_eviction = true;
        self
    }

    /// The default [back-off](crate::Mutex::backoff) of mutexes: random rests of up to 10 ms at first, of up to 1 s
    /// later.
    pub fn backoff(mut self, backoff: Backoff) -> Self {
        self.wishes.backoff = backoff;
        self
    }

    /// How those who wait learn that a holder is done, unless a [mutex](crate::Mutex::wake_by) says otherwise: by a message,
    /// by default.
    pub fn wake_by(mut self, wake_by: WakeBy) -> Self {
        self.wishes.wake_by = wake_by;
        self
    }

    /// How many callers may wait in this client for one resource, unless a [mutex](crate::Mutex::max_waiters) says otherwise:
    /// as many as come, by default.
    pub fn max_waiters(mut self, most: usize) -> Self {
        self.max_waiters = most;
        self
    }

    /// The default [renewal](crate::Mutex::renewal) of mutexes: while the guard lives, when less than two thirds of
    /// the ttl remain.
    pub fn renewal(mut self, renewal: Renewal) -> Self {
        self.wishes.renewal = renewal;
        self
    }

    /// How long a connection may take, the log-in included, and for how long [`connect`](RedlockBuilder::connect)
    /// waits for a majority: 2 s by default, above zero and at most an hour. A node may have a bound of its own
    /// (`NodeConfig::connect_timeout`); then the longest is waited for.
    pub fn connect_timeout(mut self, connect_timeout: Duration) -> Self {
        self.connect_timeout = connect_timeout;
        self
    }

    /// Checks the settings, connects, and waits until a majority of the nodes is reached and identified, and then for the
    /// others at most a node timeout. Those that are not there go on being tried.
    ///
    /// # Errors
    ///
    /// [`ConnectError::Settings`] before any IO; [`ConnectError::NoQuorum`] with each node's reason if no majority could be
    /// reached in time; [`ConnectError::Unfit`] if one of those that were reached is a replica, a member of a Redis Cluster, or
    /// the same server as another. One that turns out so later never votes, and is logged as an error.
    ///
    /// # Cancel safety
    ///
    /// Dropped, the connections are closed.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # use std::time::Duration;
    /// # let nodes = redlock_quorum::MemoryNodes::new(5);
    /// # let redlock = nodes.redlock();
    /// use redlock_quorum::{ConnectError, Redlock};
    ///
    /// // Nobody listens there: an error with each node's reason.
    /// let connecting = Redlock::builder().nodes(["127.0.0.1:1", "127.0.0.1:2"]).connect();
    /// let Err(ConnectError::NoQuorum { nodes }) = connecting.await else { panic!() };
    /// assert_eq!(nodes.len(), 2);
    /// # Ok(())
    /// # }
    /// ```
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
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// use redlock_quorum::{AcquireError, Redlock};
    ///
    /// // Nobody listens there, which is found out when the nodes are asked.
    /// let redlock = Redlock::builder().nodes(["127.0.0.1:1"]).connect_lazy()?;
    /// let asked = redlock.mutex("invoices/42").try_acquire().await;
    /// assert!(matches!(asked, Err(AcquireError::NoQuorum(_))));
    /// # Ok(())
    /// # }
    /// ```
    pub fn connect_lazy(self) -> Result<Redlock, ConnectError> {
        Ok(self.start()?.0)
    }

    fn start(self) -> Result<(Redlock, Reached), ConnectError> {
        check_namespace(&self.namespace)?;
        check_wait(self.wait.unwrap_or(DEFAULT_WAIT))?;
        if let Some(holder) = &self.holder {
            check_signature(holder, None)?;
        }
        let switchboard = Arc::new(Switchboard::default());
        let bell: Arc<dyn Bell> = switchboard.clone();
        match &self.source {
            Source::Memory(nodes) => {
                let names = (0..nodes.len()).map(|node| format!("memory-{node}").into()).collect();
                let terms = self.wishes.check(&names)?;
                let runtime = runtime()?;
                let (holder, MemoryDoors { nodes, clock, entropy, client }) =
                    nodes.connect(self.holder.as_deref(), &bell);
                let doors = open_doors(&runtime, nodes, (clock, entropy), switchboard);
                Ok((self.open(doors, terms, holder, Some(client)), Reached::default()))
            }
            #[cfg(feature = "redis")]
            Source::Redis(configs) => {
                let holder = self.holder.clone().unwrap_or_else(default_holder);
                check_signature(&holder, None)?;
                let targets = Target::all(configs)?;
                let names: Arc<[Arc<str>]> = targets.iter().map(|target| target.name().into()).collect();
                let terms = self.wishes.check(&names)?;
                check_connect_timeout(self.connect_timeout, format_args!(""))?;
                let timeouts = Timeouts { connect: self.connect_timeout, node: terms.node_timeout };
                warn_if_even(targets.len());
                let admission =
                    |trusted| Admission::new(self.restart_protection, terms.max_ttl, terms.drift, trusted);
                // A little more than the slowest attempt takes, so that its reason is known.
                let slowest = targets.iter().map(|target| timeouts.at(target).connect).max();
                let patience = slowest.unwrap_or_default() + timeouts.node;
                let (clock, entropy) = (Arc::new(SystemClock), Arc::new(SystemEntropy));
                let client = Client {
                    waiter: Waiter(format!("{}#wake:{}", self.namespace, Uuid::new_v4().simple()).into()),
                    bell,
                    namespace: self.namespace.as_str().into(),
                    clock: clock.clone(),
                    identities: Arc::default(),
                    may_evict: self.allows_eviction,
                    is_only_node: targets.len() == 1,
                };
                let (nodes, states) = start_all(&runtime()?, targets, timeouts, &client, admission);
                let reached = Reached { states, names, patience, grace: timeouts.node };
                let doors = open_doors(&runtime()?, nodes.into(), (clock, entropy), switchboard);
                Ok((self.open(doors, terms, holder, None), reached))
            }
            #[cfg(not(feature = "redis"))]
            Source::Nothing => Err(SettingsError::new("nodes", "", format_args!("at least 1")).into()),
        }
    }

    fn open(self, doors: Doors, terms: Terms, holder: String, client: Option<MemoryClient>) -> Redlock {
        // A mutex may ask for another ttl, but the bound on it stays what it was for all.
        let max_ttl = self.wishes.max_ttl.or(Some(self.wishes.ttl));
        let wishes = Wishes { max_ttl, ..self.wishes };
        let waits = (self.wait, self.max_waiters, self.fences_after_loss);
        Redlock::open(Core::new(doors, wishes, terms, waits, holder, client), &self.namespace)
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
        builder
            .field("namespace", &self.namespace)
            .field("settings", &self.wishes)
            .field("restart_protection", &self.restart_protection)
            .finish_non_exhaustive()
    }
}

/// Waits for the first connections.
#[derive(Default)]
struct Reached {
    #[cfg(feature = "redis")]
    states: Vec<watch::Receiver<State>>,
    #[cfg(feature = "redis")]
    names: Arc<[Arc<str>]>,
    #[cfg(feature = "redis")]
    patience: Duration,
    #[cfg(feature = "redis")]
    grace: Duration,
}

#[cfg(feature = "redis")]
impl Reached {
    /// Waits for a majority, and then a little for the others, so that a node which can never vote is found out at once.
    async fn majority(mut self) -> Result<(), ConnectError> {
        if self.states.is_empty() {
            return Ok(());
        }
        let majority = Quorum::of(self.states.len()).majority();
        let mut up = 0;
        let mut first_states: FuturesUnordered<_> =
            self.states.iter_mut().map(State::is_up_at_first).collect();
        let _ = timeout(self.patience, async {
            while let Some(is_up) = first_states.next().await {
                up += usize::from(is_up);
                if up == majority {
                    break;
                }
            }
        })
        .await;
        if up >= majority {
            let others = first_states.by_ref().for_each(|_| std::future::ready(()));
            let _ = timeout(self.grace, others).await;
        }
        drop(first_states);
        let unfit: Vec<_> = self.reasons(State::is_unfit).collect();
        if !unfit.is_empty() {
            let nodes = unfit.into_iter().map(|(name, reason)| (name, reason.unwrap_or_default())).collect();
            return Err(ConnectError::Unfit { nodes });
        }
        if up >= majority {
            Ok(())
        } else {
            Err(ConnectError::NoQuorum { nodes: self.reasons(|_| true).collect() })
        }
    }

    /// The names of the nodes in such a state, and the reason why they are not up.
    fn reasons(&self, which: impl Fn(&State) -> bool) -> impl Iterator<Item = (String, Option<String>)> {
        let states = self.names.iter().zip(&self.states).map(|(name, state)| (name, state.borrow()));
        states.filter(move |(_, state)| which(state)).map(|(name, state)| (name.to_string(), state.reason()))
    }
}

#[cfg(feature = "redis")]
fn start_all(
    runtime: &Handle,
    targets: Vec<Target>,
    timeouts: Timeouts,
    client: &Client,
    admission: impl Fn(bool) -> Admission,
) -> (Vec<Arc<dyn Node>>, Vec<watch::Receiver<State>>) {
    let start = |(index, target): (usize, Target)| {
        let (admission, timeouts) = (admission(target.trusts_disk()), timeouts.at(&target));
        RedisNode::start(runtime, target, timeouts, (index, client.clone()), admission)
    };
    targets.into_iter().enumerate().map(start).unzip()
}

/// The doors of a new deployment, and the keeper of its held locks.
pub(crate) fn open_doors(
    runtime: &Handle,
    nodes: Box<[Arc<dyn Node>]>,
    (clock, entropy): (Arc<dyn Clock>, Arc<dyn Entropy>),
    switchboard: Arc<Switchboard>,
) -> Doors {
    let keeper = Arc::new(Keeper::default());
    runtime.spawn(keeper.clone().run(clock.clone()));
    Doors { nodes, clock, entropy, keeper, switchboard, runtime: runtime.clone() }
}

#[cfg(feature = "redis")]
fn warn_if_even(nodes: usize) {
    if nodes.is_multiple_of(2) {
        tracing::warn!(nodes, "an even number of nodes tolerates no more failures than one node less");
    }
}

fn runtime() -> Result<Handle, ConnectError> {
    Handle::try_current().map_err(|_| ConnectError::NoRuntime)
}

/// Host name and process id: for people who look at a lock.
#[cfg(feature = "redis")]
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
