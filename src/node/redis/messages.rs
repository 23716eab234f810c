//! The messages by which a server wakes a client that waits: the channel of this client, what it may do with wait lists, and
//! who is told.

use std::sync::Arc;

use redis::{Pipeline, PushInfo, PushKind, Value as Wire};
use tokio::sync::mpsc;

use super::handshake::Link;
use super::traffic::{Errand, Job};
use super::wire::Lists;
use crate::node::{Bell, Reply};
use crate::protocol::command::{Command, Key, NodeIndex, Refusal, Waiter};

/// What one client hears of one server, over all connections to it.
pub(super) struct Messages {
    waiter: Waiter,
    node: NodeIndex,
    bell: Arc<dyn Bell>,
    namespace: Arc<str>,
    /// To pass on a turn that nobody here waits for.
    errands: mpsc::WeakUnboundedSender<Errand>,
}

/// Why a server does not wake this client.
pub(super) type NoMessages = &'static str;

const OLD_PROTOCOL: NoMessages = "the older protocol, RESP2, has no messages";
const NO_CHANNEL: NoMessages = "the user may not listen on the channels of the namespace";
const NO_LISTS: NoMessages = "the user may not use the wait lists of the namespace";

impl Messages {
    pub(super) fn new(
        waiter: Waiter,
        node: NodeIndex,
        bell: Arc<dyn Bell>,
        namespace: Arc<str>,
        errands: mpsc::WeakUnboundedSender<Errand>,
    ) -> Self {
        Messages { waiter, node, bell, namespace, errands }
    }

    /// Listens on a new connection, and finds out what the user may do. Leaves nothing at the server.
    pub(super) fn ask(&self, questions: &mut Pipeline, has_messages: bool) {
        let (channel, list) = (&*self.waiter.0, Key::of_lock(&self.namespace, b"-").wait_list().concat());
        if has_messages {
            questions.cmd("SUBSCRIBE").arg(channel);
        }
        // All that the scripts do with a list, so that it changes nothing.
        questions.cmd("TIME");
        questions.cmd("EXISTS").arg(&list);
        questions.cmd("ZADD").arg(&list).arg("XX").arg(0).arg(channel);
        questions.cmd("ZREM").arg(&list).arg(channel);
        questions.cmd("ZPOPMIN").arg(&list).arg(0);
        questions.cmd("PUBLISH").arg(channel).arg("");
    }

    /// The answers: whether the server wakes this client, and whether it may wake others.
    pub(super) fn read(
        &self,
        replies: &mut impl Iterator<Item = Wire>,
        has_messages: bool,
    ) -> (Result<(), NoMessages>, bool) {
        let mut is_allowed = || match replies.next() {
            // Only this is for good: a server that cannot write now may do so in a moment.
            Some(Wire::ServerError(error)) => Refusal::from_code(error.code()) != Refusal::NoPermission,
            reply => reply.is_some(),
        };
        let listens = has_messages && is_allowed();
        let has_lists = (0..6).fold(true, |all, _| is_allowed() && all);
        let wakes = match (has_messages, listens, has_lists) {
            (false, ..) => Err(OLD_PROTOCOL),
            (_, false, _) => Err(NO_CHANNEL),
            (.., false) => Err(NO_LISTS),
            _ => Ok(()),
        };
        (wakes, has_lists)
    }

    /// What may be done with the wait list of a key.
    pub(super) fn lists(&self, link: &Link, key: &Key) -> Lists<'_> {
        match link.wakes {
            _ if !link.has_lists || link.closed_to.iter().any(|other| **other == *key.namespace()) => {
                Lists::Closed
            }
            Ok(()) => Lists::WokenOn(&self.waiter.0),
            Err(_) => Lists::WakesOthers,
        }
    }

    /// Takes in a message. Called where the connection is read: hands it on, and returns.
    pub(super) fn hear(&self, push: &PushInfo) {
        let (PushKind::Message, [Wire::BulkString(channel), Wire::BulkString(list)]) =
            (&push.kind, &push.data[..])
        else {
            return;
        };
        let Some(key) = Key::of_wait_list(list).filter(|_| channel == self.waiter.0.as_bytes()) else {
            return;
        };
        if self.bell.ring(self.node, &key) {
            return;
        }
        // Nobody waits for it here any more: the next client shall not wait in vain.
        if let Some(errands) = self.errands.upgrade() {
            let pass_on = Command::Delist { key };
            let _ = errands.send(Errand::Job(Job::new(pass_on, Reply::to_nobody())));
        }
    }

    /// While there was no connection others may have been woken instead.
    pub(super) fn connected(&self) {
        self.bell.connected(self.node);
    }
}
