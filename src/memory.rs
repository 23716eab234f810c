//! Nodes in this process's memory: for examples, for tests of code that uses locks, and where no server is at hand. They
//! do what a Redis does, and vote at once; they protect nothing outside of this process.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use crate::builder::RedlockBuilder;
use crate::clock::RuntimeClock;
use crate::node::Node;
use crate::node::memory::MemoryNode;
use crate::protocol::command::{Key, LeaseId, Signature, Value};
use crate::redlock::{DEFAULT_NAMESPACE, Redlock};

/// N independent nodes in memory.
///
/// Each [`redlock`](MemoryNodes::redlock) is a client of its own, as if in another process. Locks and keys live on the
/// runtime's clock, so that tests with paused time (`tokio::time::pause`) see them expire.
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
#[derive(Clone)]
pub struct MemoryNodes {
    nodes: Arc<[Arc<MemoryNode>]>,
    clock: RuntimeClock,
}

impl MemoryNodes {
    /// `count` empty nodes, all running.
    ///
    /// # Panics
    ///
    /// If `count` is zero.
    pub fn new(count: usize) -> Self {
        assert!(count > 0, "nodes is 0, but must be at least 1");
        let clock = RuntimeClock::new();
        MemoryNodes { nodes: (0..count).map(|_| Arc::new(MemoryNode::new(clock))).collect(), clock }
    }

    /// A new client of these nodes, with the default settings.
    ///
    /// # Panics
    ///
    /// Outside of a tokio runtime.
    pub fn redlock(&self) -> Redlock {
        self.builder().connect_lazy().expect("the default settings, and a tokio runtime to live on")
    }

    /// A new client of these nodes, with settings of your own.
    pub fn builder(&self) -> RedlockBuilder {
        RedlockBuilder::in_memory(self)
    }

    /// Stops a node, counted from 0 as in its name `memory-0`: it answers nothing, and keeps its memory.
    ///
    /// # Panics
    ///
    /// If there is no such node. So do the others that name one.
    pub fn stop(&self, node: usize) {
        self.node(node).stop();
    }

    /// Starts a stopped node again, with what it remembers. What clients released meanwhile they release now, as they do
    /// when a connection is back.
    pub fn start(&self, node: usize) {
        self.node(node).start();
    }

    /// From now on a node answers so much later; what it is asked it does at once.
    ///
    /// Longer than the node timeout, and its answers are not waited for.
    pub fn delay(&self, node: usize, delay: Duration) {
        self.node(node).delay(delay);
    }

    /// Another client holds `resource` on all nodes for `ttl`. It takes away whoever had it, as no real client could.
    pub fn hold(&self, resource: impl AsRef<[u8]>, ttl: Duration) {
        let key = Key::of_lock(DEFAULT_NAMESPACE, resource.as_ref());
        let value = Value::new(LeaseId(rand::random()), &Signature::new("another", None));
        for node in self.nodes.iter() {
            node.put(&key, &value, ttl);
        }
    }

    /// An operator deletes the lock of `resource` on all nodes, whoever holds it.
    pub fn lose(&self, resource: impl AsRef<[u8]>) {
        let key = Key::of_lock(DEFAULT_NAMESPACE, resource.as_ref());
        for node in self.nodes.iter() {
            node.remove(&key);
        }
    }

    /// The keys that stand on a node now.
    pub fn keys(&self, node: usize) -> Vec<String> {
        let keys = self.node(node).keys();
        keys.iter().map(|key| String::from_utf8_lossy(key.as_bytes()).into_owned()).collect()
    }

    /// Fails the test if a key stands on any node, stopped or not.
    ///
    /// # Panics
    ///
    /// If one does.
    #[track_caller]
    pub fn assert_nothing_left(&self) {
        let left: Vec<_> = (0..self.nodes.len())
            .map(|node| (node, self.keys(node)))
            .filter(|(_, keys)| !keys.is_empty())
            .collect();
        assert!(left.is_empty(), "keys are left (node, keys): {left:?}");
    }

    pub(crate) fn len(&self) -> usize {
        self.nodes.len()
    }

    pub(crate) fn doors(&self) -> Box<[Arc<dyn Node>]> {
        self.nodes.iter().map(|node| node.clone() as Arc<dyn Node>).collect()
    }

    pub(crate) fn clock(&self) -> RuntimeClock {
        self.clock
    }

    fn node(&self, node: usize) -> &MemoryNode {
        assert!(node < self.nodes.len(), "node is {node}, but must be below {}", self.nodes.len());
        &self.nodes[node]
    }
}

impl fmt::Debug for MemoryNodes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "MemoryNodes({})", self.nodes.len())
    }
}
