//! Nodes in this process's memory: for examples, for tests of code that uses locks, and where no server is at hand. They
//! do what a Redis does, and vote at once; they protect nothing outside of this process.

mod plan;

use std::fmt;
use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;

pub use self::plan::{FaultKind, FaultPlan, Faults};
use crate::builder::RedlockBuilder;
use crate::clock::{Clock, RuntimeClock};
use crate::entropy::{Entropy, SeededEntropy};
use crate::node::memory::{ClientNumber, MemoryConnection, MemoryNode, Partition, Skew};
use crate::node::{Bell, Node};
use crate::protocol::command::{Key, Signature, Value};
use crate::protocol::time::Instant;
use crate::redlock::{DEFAULT_NAMESPACE, Redlock};
use crate::sync::lock;

/// N independent nodes in memory, and what can go wrong with them.
///
/// Each [`redlock`](MemoryNodes::redlock) is a client of its own, as if in another process. Locks and keys live on the
/// runtime's clock, so that tests with paused time (`tokio::time::pause`) see them expire. No thread and no other clock is
/// involved: with a [seed](MemoryNodes::seeded) and paused time, on a runtime of one thread, a test goes the same way every
/// time.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), redlock_quorum::AcquireError> {
/// use redlock_quorum::MemoryNodes;
///
/// let nodes = MemoryNodes::new(3);
/// let (ours, theirs) = (nodes.redlock(), nodes.redlock());
///
/// let guard = ours.mutex("invoices/42").acquire().await?;
/// assert!(theirs.mutex("invoices/42").try_acquire().await?.is_none());
///
/// nodes.stop(1); // two of three are enough
/// assert!(guard.is_valid());
///
/// guard.release().await.ok().expect("held until now");
/// nodes.start(1);
/// nodes.assert_nothing_left();
/// # Ok(())
/// # }
/// ```
///
/// What goes wrong is [scripted](MemoryNodes::stall), call by call, or [drawn](FaultPlan) from a seed. A node is named by its
/// number, counted from 0 as in its name `memory-0`; a method that is given one panics if there is no such node.
#[doc = include_str!("../docs/testing.md")]
#[derive(Clone)]
pub struct MemoryNodes {
    group: Arc<Group>,
    namespace: Arc<str>,
}

/// The nodes, and what is known of them as a group.
struct Group {
    nodes: Box<[Arc<MemoryNode>]>,
    clock: RuntimeClock,
    seed: u64,
    /// For what is written in the name of nobody's client.
    entropy: SeededEntropy,
    /// The names of the clients, by their numbers.
    clients: Mutex<Vec<String>>,
    history: Mutex<Vec<(Instant, String)>>,
}

impl Drop for Group {
    /// Clients may go on, but a fault that lasts now lasts for good.
    fn drop(&mut self) {
        self.nodes.iter().for_each(MemoryNode::abandon);
    }
}

/// Which client of which nodes a `Redlock` is. It does not keep the group: what the nodes hold for a client would keep
/// itself alive.
pub(crate) struct MemoryClient {
    group: Weak<Group>,
    number: ClientNumber,
}

/// What a new client talks to.
pub(crate) struct MemoryDoors {
    pub(crate) nodes: Box<[Arc<dyn Node>]>,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) entropy: Arc<dyn Entropy>,
    pub(crate) client: MemoryClient,
}

impl MemoryNodes {
    /// `count` empty nodes, all running, with a seed that is drawn, and shown by [`history`](MemoryNodes::history).
    ///
    /// # Panics
    ///
    /// If `count` is zero.
    pub fn new(count: usize) -> Self {
        Self::seeded(count, rand::random())
    }

    /// As [`new`](MemoryNodes::new), and the random numbers of the clients, which spread their rests and renewals, follow
    /// from `seed`.
    ///
    /// # Panics
    ///
    /// If `count` is zero.
    ///
    /// ```
    /// # use redlock_quorum::MemoryNodes;
    /// let nodes = MemoryNodes::seeded(5, 42);
    /// assert!(nodes.history().starts_with("5 nodes, seed 42"));
    /// ```
    pub fn seeded(count: usize, seed: u64) -> Self {
        assert!(count > 0, "nodes is 0, but must be at least 1");
        let clock = RuntimeClock::new();
        let group = Group {
            nodes: (0..count).map(|_| Arc::new(MemoryNode::new(clock))).collect(),
            clock,
            seed,
            entropy: SeededEntropy::new(seed, u64::MAX),
            clients: Mutex::default(),
            history: Mutex::default(),
        };
        MemoryNodes { group: Arc::new(group), namespace: DEFAULT_NAMESPACE.into() }
    }

    /// A new client of these nodes, with the default settings.
    ///
    /// # Panics
    ///
    /// Outside of a tokio runtime.
    pub fn redlock(&self) -> Redlock {
        self.builder().connect_lazy().expect("the default settings, and a tokio runtime to live on")
    }

    /// A new client of these nodes, with settings of your own. Its [holder](RedlockBuilder::holder) is its name here; the
    /// first client is `client-1` if it is given none.
    pub fn builder(&self) -> RedlockBuilder {
        RedlockBuilder::in_memory(self).namespace(&*self.namespace)
    }

    /// The same nodes, for clients and resources of another namespace.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), redlock_quorum::AcquireError> {
    /// # use std::time::Duration;
    /// # use redlock_quorum::MemoryNodes;
    /// let nodes = MemoryNodes::new(3);
    /// nodes.namespace("billing").hold("42", Duration::from_secs(60));
    /// assert!(nodes.redlock().namespace("billing").mutex("42").try_acquire().await?.is_none());
    /// assert!(nodes.redlock().mutex("42").try_acquire().await?.is_some());
    /// # Ok(())
    /// # }
    /// ```
    pub fn namespace(&self, namespace: impl AsRef<str>) -> MemoryNodes {
        MemoryNodes { group: self.group.clone(), namespace: namespace.as_ref().into() }
    }

    /// A node goes down: what it was asked and has not answered is lost, new commands are refused at once. It keeps its
    /// memory.
    #[track_caller]
    pub fn stop(&self, node: usize) {
        self.node(node).stop();
        self.record(format_args!("node {node} stops"));
    }

    /// A node hangs, as a server does during a long script or a `SIGSTOP`: commands pile up unanswered, and are carried out
    /// in order when it is [started](MemoryNodes::start) again. Its clock goes on, and its keys expire.
    ///
    /// ```
    /// # use std::time::Duration;
    /// # use redlock_quorum::MemoryNodes;
    /// # let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
    /// # runtime.block_on(async {
    /// let nodes = MemoryNodes::new(3);
    /// let guard = nodes.redlock().mutex("invoices/42").ttl(Duration::from_secs(1)).acquire().await?;
    /// nodes.stall(0);
    /// nodes.stall(1);
    /// guard.lost().await; // a majority is silent for longer than the ttl
    /// nodes.start(0);
    /// nodes.start(1);
    /// # Ok::<(), redlock_quorum::AcquireError>(())
    /// # }).unwrap();
    /// ```
    #[track_caller]
    pub fn stall(&self, node: usize) {
        self.node(node).stall();
        self.record(format_args!("node {node} stalls"));
    }

    /// A node carries out what it is asked and answers nothing, until it is [started](MemoryNodes::start) again.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)]
    /// # async fn main() -> Result<(), redlock_quorum::AcquireError> {
    /// # use redlock_quorum::MemoryNodes;
    /// let nodes = MemoryNodes::new(3);
    /// nodes.drop_replies(2);
    /// let guard = nodes.redlock().mutex("invoices/42").acquire().await?;
    /// assert_eq!(guard.votes().granted(), 2); // of three keys that stand
    /// assert_eq!(nodes.keys(2), ["redlock:invoices/42"]);
    /// # Ok(())
    /// # }
    /// ```
    #[track_caller]
    pub fn drop_replies(&self, node: usize) {
        self.node(node).drop_replies();
        self.record(format_args!("node {node} drops its replies"));
    }

    /// A node that was stopped, is stalled or drops its replies is well again, with what it remembers. First comes what was
    /// left undone: what clients released meanwhile, as when a connection is back, and what has piled up.
    #[track_caller]
    pub fn start(&self, node: usize) {
        self.node(node).start();
        self.record(format_args!("node {node} runs"));
    }

    /// A node restarts in a moment, with its memory: what it was asked and has not answered is lost.
    #[track_caller]
    pub fn restart(&self, node: usize) {
        self.node(node).restart(false);
        self.record(format_args!("node {node} restarts"));
    }

    /// A node restarts in a moment, without its memory, and votes again at once.
    ///
    /// A server that does so can give away what is held. In-memory nodes never wait, whatever clients are set to: so this
    /// is how a test shows what happens when two hold.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), redlock_quorum::AcquireError> {
    /// # use redlock_quorum::MemoryNodes;
    /// let nodes = MemoryNodes::new(3);
    /// nodes.stop(2);
    /// let ours = nodes.redlock().mutex("invoices/42").acquire().await?; // on the nodes 0 and 1
    /// nodes.start(2);
    /// nodes.restart_empty(1);
    /// let theirs = nodes.redlock().mutex("invoices/42").acquire().await?; // on the nodes 1 and 2
    /// assert!(ours.is_valid() && theirs.is_valid());
    /// # Ok(())
    /// # }
    /// ```
    #[track_caller]
    pub fn restart_empty(&self, node: usize) {
        self.node(node).restart(true);
        self.record(format_args!("node {node} restarts empty"));
    }

    /// From now on a node answers so much later, each client in order; what it is asked it does at once.
    ///
    /// Longer than the node timeout, and its answers are not waited for.
    #[track_caller]
    pub fn delay(&self, node: usize, delay: Duration) {
        self.node(node).delay(delay);
        self.record(format_args!("node {node} answers after {delay:?}"));
    }

    /// Changes the clock of a node, by which its keys expire.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), redlock_quorum::AcquireError> {
    /// # use std::time::Duration;
    /// # use redlock_quorum::{MemoryNodes, Skew};
    /// let nodes = MemoryNodes::new(3);
    /// let guard = nodes.redlock().mutex("invoices/42").acquire().await?;
    /// nodes.skew(0, Skew::Ahead(Duration::from_secs(60)));
    /// assert!(nodes.keys(0).is_empty() && guard.is_valid()); // the other two keep it
    /// # Ok(())
    /// # }
    /// ```
    #[track_caller]
    pub fn skew(&self, node: usize, skew: Skew) {
        self.node(node).skew(skew);
        match skew {
            Skew::PartsPerMillion(rate) => {
                self.record(format_args!("node {node}: clock runs {rate:+} millionths fast"));
            }
            Skew::Ahead(by) => self.record(format_args!("node {node}: clock jumps ahead by {by:?}")),
            Skew::Back(by) => self.record(format_args!("node {node}: clock jumps back by {by:?}")),
        }
    }

    /// Cuts a client, which is a [`redlock`](MemoryNodes::redlock) of these nodes with its clones, off from some of them,
    /// until it is [reconnected](MemoryNodes::reconnect). Of two partitions between a client and a node the later holds.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)]
    /// # async fn main() -> Result<(), redlock_quorum::AcquireError> {
    /// # use std::time::Duration;
    /// # use redlock_quorum::{MemoryNodes, Partition};
    /// let nodes = MemoryNodes::new(3);
    /// let (ours, theirs) = (nodes.redlock(), nodes.redlock());
    /// let guard = ours.mutex("invoices/42").acquire().await?;
    ///
    /// nodes.partition(&ours, [0, 1], Partition::CommandsLost);
    /// guard.lost().await; // too few are left to extend it
    /// let theirs = theirs.mutex("invoices/42").acquire().await?;
    /// nodes.reconnect(&ours);
    /// assert!(theirs.is_valid() && !guard.is_valid());
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Panics
    ///
    /// If `client` is not a client of these nodes.
    #[track_caller]
    pub fn partition(&self, client: &Redlock, nodes: impl IntoIterator<Item = usize>, partition: Partition) {
        self.cut(self.number_of(client), nodes, partition);
    }

    /// Ends the partitions of a client: commands that were held arrive, and what it released meanwhile is released now.
    ///
    /// # Panics
    ///
    /// If `client` is not a client of these nodes.
    #[track_caller]
    pub fn reconnect(&self, client: &Redlock) {
        self.mend(self.number_of(client), 0..self.len());
    }

    /// Ends all that goes wrong: every node runs, answers without delay and has a clock that runs at the true rate, and every
    /// client is connected to all nodes. What was lost stays lost.
    pub fn heal(&self) {
        let clients = 0..lock(&self.group.clients).len();
        for node in self.group.nodes.iter() {
            node.delay(Duration::ZERO);
            node.skew(Skew::PartsPerMillion(0));
            node.start();
            clients.clone().for_each(|client| node.reconnect(client));
        }
        self.record(format_args!("all is well"));
    }

    /// Draws what goes wrong from a plan, from now on and on the runtime's clock, until it is over or dropped.
    ///
    /// # Panics
    ///
    /// Outside of a tokio runtime.
    pub fn disturb(&self, plan: FaultPlan) -> Faults {
        Faults::begin(self.clone(), plan)
    }

    /// Another client holds `resource` on all nodes for `ttl`. It takes away whoever had it, as no real client could.
    pub fn hold(&self, resource: impl AsRef<[u8]>, ttl: Duration) {
        let key = self.key(resource.as_ref());
        let value = Value::new(self.group.entropy.draw().lease_id, &Signature::new("another", None));
        for node in self.group.nodes.iter() {
            node.put(&key, &value, ttl);
        }
        self.record(format_args!("another holds {key:?} for {ttl:?}"));
    }

    /// An operator deletes the lock of `resource` on all nodes, whoever holds it.
    pub fn lose(&self, resource: impl AsRef<[u8]>) {
        let key = self.key(resource.as_ref());
        for node in self.group.nodes.iter() {
            node.remove(&key);
        }
        self.record(format_args!("{key:?} is deleted"));
    }

    /// One node loses the lock of `resource`, as a server does that runs out of memory and has an evicting policy.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), redlock_quorum::AcquireError> {
    /// # use redlock_quorum::MemoryNodes;
    /// let nodes = MemoryNodes::new(3);
    /// let guard = nodes.redlock().mutex("invoices/42").acquire().await?;
    /// nodes.evict(0, "invoices/42");
    /// assert!(nodes.redlock().mutex("invoices/42").try_acquire().await?.is_none());
    /// assert!(guard.is_valid()); // two of three keep it
    /// # Ok(())
    /// # }
    /// ```
    #[track_caller]
    pub fn evict(&self, node: usize, resource: impl AsRef<[u8]>) {
        self.evict_key(node, &self.key(resource.as_ref()));
    }

    /// The keys that stand on a node now, sorted.
    #[track_caller]
    pub fn keys(&self, node: usize) -> Vec<String> {
        let keys = self.node(node).keys();
        keys.iter().map(|key| String::from_utf8_lossy(key.as_bytes()).into_owned()).collect()
    }

    /// What was done to the nodes by these methods and by [plans](FaultPlan), and when, a line each: to be printed when a
    /// test fails.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)]
    /// # async fn main() {
    /// # use std::time::Duration;
    /// # use redlock_quorum::MemoryNodes;
    /// let nodes = MemoryNodes::seeded(3, 42);
    /// tokio::time::sleep(Duration::from_millis(1500)).await;
    /// nodes.stop(1);
    /// assert_eq!(nodes.history(), "3 nodes, seed 42\n     1.500 s  node 1 stops\n");
    /// # }
    /// ```
    pub fn history(&self) -> String {
        let mut text = format!("{} nodes, seed {}\n", self.len(), self.group.seed);
        for (at, what) in lock(&self.group.history).iter() {
            let at = at.since(Instant::from_nanos(0));
            text += &format!("{:>6}.{:03} s  {what}\n", at.as_secs(), at.subsec_millis());
        }
        text
    }

    /// Fails the test if a key stands on any node, stopped or not.
    ///
    /// # Panics
    ///
    /// If one does.
    #[track_caller]
    pub fn assert_nothing_left(&self) {
        let left: Vec<_> = (0..self.len())
            .map(|node| (node, self.keys(node)))
            .filter(|(_, keys)| !keys.is_empty())
            .collect();
        assert!(left.is_empty(), "keys are left (node, keys): {left:?}");
    }

    pub(crate) fn len(&self) -> usize {
        self.group.nodes.len()
    }

    /// A new client, which may have a name of its own.
    pub(crate) fn connect(&self, name: Option<&str>, bell: &Arc<dyn Bell>) -> (String, MemoryDoors) {
        let mut clients = lock(&self.group.clients);
        let number = clients.len();
        let name = name.map_or_else(|| format!("client-{}", number + 1), str::to_owned);
        clients.push(name.clone());
        // Under the lock, so that all nodes number the clients alike.
        for (index, node) in self.group.nodes.iter().enumerate() {
            node.accept(index, Arc::downgrade(bell));
        }
        drop(clients);
        let connect = |node: &Arc<MemoryNode>| {
            Arc::new(MemoryConnection { node: node.clone(), client: number }) as Arc<dyn Node>
        };
        let doors = MemoryDoors {
            nodes: self.group.nodes.iter().map(connect).collect(),
            clock: Arc::new(self.group.clock),
            entropy: Arc::new(SeededEntropy::new(self.group.seed, number as u64)),
            client: MemoryClient { group: Arc::downgrade(&self.group), number },
        };
        (name, doors)
    }

    fn cut(&self, client: ClientNumber, nodes: impl IntoIterator<Item = usize>, partition: Partition) {
        let nodes: Vec<usize> = nodes.into_iter().collect();
        nodes.iter().for_each(|node| self.node(*node).cut(client, partition));
        let how = match partition {
            Partition::CommandsLost => "commands are lost",
            Partition::AnswersLost => "answers are lost",
            Partition::CommandsHeld => "commands are held",
        };
        let client = self.name_of(client);
        self.record(format_args!("{client} is cut off from the nodes {nodes:?}: {how}"));
    }

    fn mend(&self, client: ClientNumber, nodes: impl IntoIterator<Item = usize>) {
        let nodes: Vec<usize> = nodes.into_iter().collect();
        nodes.iter().for_each(|node| self.node(*node).reconnect(client));
        let client = self.name_of(client);
        self.record(format_args!("{client} is connected to the nodes {nodes:?}"));
    }

    #[track_caller]
    fn evict_key(&self, node: usize, key: &Key) {
        self.node(node).remove(key);
        self.record(format_args!("node {node} evicts {key:?}"));
    }

    fn record(&self, what: fmt::Arguments<'_>) {
        lock(&self.group.history).push((self.group.clock.now(), what.to_string()));
    }

    fn key(&self, resource: &[u8]) -> Key {
        Key::of_lock(&self.namespace, resource)
    }

    #[track_caller]
    fn node(&self, node: usize) -> &Arc<MemoryNode> {
        assert!(node < self.len(), "node is {node}, but must be below {}", self.len());
        &self.group.nodes[node]
    }

    #[track_caller]
    fn number_of(&self, client: &Redlock) -> ClientNumber {
        let client = client.memory_client();
        let ours = client.filter(|client| std::ptr::eq(client.group.as_ptr(), Arc::as_ptr(&self.group)));
        ours.expect("a client of these nodes").number
    }

    fn name_of(&self, client: ClientNumber) -> String {
        lock(&self.group.clients)[client].clone()
    }
}

impl fmt::Debug for MemoryNodes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "MemoryNodes({}, seed {})", self.len(), self.group.seed)
    }
}
