//! The node door: one independent server, or something that behaves like one, to which commands are submitted.

use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Weak};
use std::time::Duration;

use crate::protocol::command::{Answer, Command, Key, NodeIndex, Unknown, Value};
use crate::protocol::round::RoundId;

pub(crate) mod memory;
pub(crate) mod owed;
#[cfg(feature = "redis")]
pub(crate) mod redis;

#[cfg(all(feature = "redis", feature = "sim"))]
pub use self::redis::alone;

/// One node.
///
/// Commands take effect in the order in which they were submitted, as far as they take effect at all; but a release may come behind
/// commands that ask for other locks.
pub trait Node: Send + Sync + 'static {
    /// Hands over a command. Never blocks and never fails: what goes wrong is an [`Answer::Unknown`] to the reply, which
    /// may come before this returns.
    fn submit(&self, command: Command, reply: Reply);

    /// From now on the watcher is told when somebody else changes the key so that `value` may not stand there any more: soon,
    /// where the node can tell such things, and never where it cannot. Never blocks.
    fn watch(&self, _key: &Key, _value: &Value, _watcher: Weak<dyn Watcher>) {}

    /// Ends that.
    fn unwatch(&self, _key: &Key, _watcher: &Weak<dyn Watcher>) {}

    /// What can be found out about the node besides its answers, for people; `None` if there is nothing. Ends within the node
    /// timeout.
    fn facts(&self) -> FactsFuture {
        Box::pin(std::future::ready(None))
    }
}

/// A question about a node, asked when it is first polled.
pub type FactsFuture = Pin<Box<dyn Future<Output = Option<Facts>> + Send>>;

/// What is known of a node besides its answers.
#[cfg_attr(not(feature = "redis"), allow(dead_code))]
#[derive(Clone, Debug)]
pub enum Facts {
    /// There is no connection to it.
    Down {
        /// Why, for people.
        reason: String,
        /// It was reached, and is not what can vote.
        can_never_vote: bool,
    },
    /// It is connected.
    Up {
        /// Why its answers are no votes yet, if so.
        waits_because: Option<Arc<str>>,
        /// What it says against the operator's word for its disk.
        distrust: Option<Arc<str>>,
        /// Why it cannot wake this client, if so.
        wakes_nobody_because: Option<&'static str>,
        /// What it says of itself, or why it says nothing.
        info: Result<ServerInfo, Unknown>,
    },
}

/// What a server says of itself; what it does not say is missing.
#[derive(Clone, Debug)]
pub struct ServerInfo {
    /// The kind and the version: `redis 7.0.15`.
    pub version: Option<String>,
    /// `master`, or what else.
    pub role: Option<String>,
    /// The process.
    pub run_id: Option<String>,
    /// The history of writes.
    pub replication_id: Option<String>,
    /// For how long the process runs.
    pub uptime: Option<Duration>,
    /// What it keeps on disk, in words.
    pub persistence: Option<String>,
    /// What it does when its memory is full.
    pub eviction_policy: Option<String>,
    /// Whether its memory can be full at all.
    pub has_memory_limit: bool,
    /// How many replicas follow it.
    pub replicas: u64,
}

/// Who wants to know when a key is changed.
pub trait Watcher: Send + Sync + 'static {
    /// Somebody else changed it, or may have. Called from any thread, and must not block.
    #[cfg_attr(not(feature = "redis"), allow(dead_code))]
    fn changed(self: Arc<Self>);
}

/// What a node rings when it is somebody's turn.
pub trait Bell: Send + Sync + 'static {
    /// A node says that the resource is free there. False if nobody waits for it here any more: then it is another client's
    /// turn. Called from any thread, and must not block.
    fn ring(&self, node: NodeIndex, key: &Key) -> bool;

    /// A node was connected. If it was away before, it may have passed over whoever waits here, and may have forgotten
    /// something; nobody says that anything is free.
    #[cfg_attr(not(feature = "redis"), allow(dead_code))]
    fn connected(&self, node: NodeIndex);
}

/// Where the answers to a round are heard.
pub trait Listener: Send + Sync + 'static {
    /// A node answered. Called once for each command, from any thread, also from within [`Node::submit`].
    fn hear(self: Arc<Self>, round: RoundId, node: NodeIndex, answer: Answer);
}

/// The duty to answer one command. Dropped unanswered, it answers "unknown, may have run".
pub struct Reply {
    listener: Option<Arc<dyn Listener>>,
    round: RoundId,
    node: NodeIndex,
}

impl Reply {
    /// The answer of a node to a command of a round goes to the listener.
    pub fn new(listener: Arc<dyn Listener>, round: RoundId, node: NodeIndex) -> Self {
        Reply { listener: Some(listener), round, node }
    }

    /// Nobody wants to know.
    pub(crate) fn to_nobody() -> Self {
        Reply { listener: None, round: RoundId(0), node: 0 }
    }

    /// Whether nobody wants to know.
    #[cfg(feature = "redis")]
    pub(crate) fn is_to_nobody(&self) -> bool {
        self.listener.is_none()
    }

    /// Answers.
    pub fn answer(mut self, answer: Answer) {
        if let Some(listener) = self.listener.take() {
            listener.hear(self.round, self.node, answer);
        }
    }
}

impl Drop for Reply {
    fn drop(&mut self) {
        if let Some(listener) = self.listener.take() {
            listener.hear(self.round, self.node, Answer::Unknown(Unknown::ConnectionLost));
        }
    }
}
