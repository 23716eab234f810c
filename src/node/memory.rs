//! A node in this process's memory: what a Redis does, without a server.

use std::sync::Mutex;
use std::time::Duration;

use tokio::runtime::Handle;

use super::owed::Owed;
use super::{Node, Reply};
use crate::clock::{Clock, RuntimeClock};
use crate::protocol::command::{Answer, Command, Key, Unknown, Value};
use crate::protocol::store::Store;
use crate::sync::lock;

/// One in-memory node. It stands for the connections of its clients too: what they owe it while it is stopped is kept here.
pub(crate) struct MemoryNode {
    clock: RuntimeClock,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    store: Store,
    stopped: bool,
    /// How much later than it is carried out a command is answered.
    delay: Duration,
    owed: Owed,
}

impl MemoryNode {
    /// An empty node that runs.
    pub(crate) fn new(clock: RuntimeClock) -> Self {
        MemoryNode { clock, state: Mutex::default() }
    }

    /// From now on it answers nothing, and keeps its memory.
    pub(crate) fn stop(&self) {
        lock(&self.state).stopped = true;
    }

    /// Answers again. What was released meanwhile is released now, as it is when a connection is back.
    pub(crate) fn start(&self) {
        let now = self.clock.now();
        let mut state = lock(&self.state);
        state.stopped = false;
        for release in state.owed.take(usize::MAX, now) {
            state.store.apply(now, &release);
        }
    }

    /// From now on its answers come so much later.
    pub(crate) fn delay(&self, delay: Duration) {
        lock(&self.state).delay = delay;
    }

    /// Sets a key, whatever stands there.
    pub(crate) fn put(&self, key: &Key, value: &Value, expires_in: Duration) {
        lock(&self.state).store.put(self.clock.now(), key, value, expires_in);
    }

    /// Deletes a key, whoever set it.
    pub(crate) fn remove(&self, key: &Key) {
        lock(&self.state).store.remove(self.clock.now(), key);
    }

    /// The keys that stand.
    pub(crate) fn keys(&self) -> Vec<Key> {
        lock(&self.state).store.keys(self.clock.now()).map(|(key, _)| key.clone()).collect()
    }
}

impl Node for MemoryNode {
    fn submit(&self, command: Command, reply: Reply) {
        let now = self.clock.now();
        let mut state = lock(&self.state);
        let answer = if state.stopped {
            state.owed.remember(command, now, now);
            Answer::Unknown(Unknown::NotConnected)
        } else {
            state.store.apply(now, &command)
        };
        let delay = state.delay;
        // Unlocked before the answer is heard: hearing it may submit the next command.
        drop(state);
        match Handle::try_current() {
            Ok(runtime) if !delay.is_zero() => {
                let heard_at = self.clock.sleep_until(now + delay);
                runtime.spawn(async move {
                    heard_at.await;
                    reply.answer(answer);
                });
            }
            _ => reply.answer(answer),
        }
    }
}
