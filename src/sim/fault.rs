//! What can go wrong beside what every network does (delay, reordering between connections, connections that break), and on
//! which assumption of the protocol it bears.

use std::fmt;

use crate::protocol::command::NodeIndex;

/// Something that goes wrong, or is mended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Fault {
    /// The process of a node ends. Its connections break; what had not arrived is lost.
    Crash(NodeIndex),
    /// A node starts again and remembers what it had stored when it crashed.
    RestartWithMemory(NodeIndex),
    /// A node starts again and has forgotten everything.
    RestartEmpty(NodeIndex),
    /// A node starts again with what it had stored when it was last [copied](Fault::Copy): the end of its log was cut off.
    RestartStale(NodeIndex),
    /// What a node stores now is copied aside: to a replica, or by a log that is not written to the end.
    Copy(NodeIndex),
    /// The replica of a node takes over its address, with the memory of the last [copy](Fault::Copy) and a long uptime.
    Promote(NodeIndex),
    /// The address of a node leads to another server from now on, which has run for long and is empty.
    Replace(NodeIndex),
    /// A node does nothing for a while; what comes to it waits.
    Stall(NodeIndex),
    /// A stalled node goes on.
    Resume(NodeIndex),
    /// A node has no room for new keys: it refuses to set one, and does the rest.
    Fill(NodeIndex),
    /// It has again.
    Drain(NodeIndex),
    /// Nothing passes between a client and a node.
    Cut(usize, NodeIndex),
    /// Commands pass, answers do not.
    Mute(usize, NodeIndex),
    /// Everything passes again.
    Mend(usize, NodeIndex),
    /// A client's process stands still; its clock does not.
    Pause(usize),
    /// It goes on.
    Continue(usize),
    /// A client's process is gone for good.
    Die(usize),
    /// A node drops a key although it has not expired.
    Evict(NodeIndex),
    /// A node forgets everything while it runs: FLUSHALL.
    Flush(NodeIndex),
    /// An operator deletes the lock on all nodes, whoever holds it.
    Delete,
    /// The clock of a node is set forward by a ttl.
    JumpForward(NodeIndex),
    /// The clock of a node is set back by a ttl.
    JumpBack(NodeIndex),
    /// The clock of a client stands still for a ttl and then goes on from there: a virtual machine that was frozen.
    Freeze(usize),
}

/// What the promise of the lock rests on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Assumption {
    /// A1: clocks advance at rates within the drift allowance, and do not jump.
    Rates,
    /// A2: a node that votes has not lost a key.
    Memory,
}

impl Fault {
    /// The assumption that it breaks. Two clients may hold then, and a search should find how.
    pub fn breaks(self) -> Option<Assumption> {
        match self {
            Fault::Evict(_) | Fault::Flush(_) | Fault::Delete => Some(Assumption::Memory),
            Fault::JumpForward(_) | Fault::JumpBack(_) | Fault::Freeze(_) => Some(Assumption::Rates),
            _ => None,
        }
    }

    /// Whether a key may be gone from a node after it, or be back there.
    pub fn changes_memory(self) -> bool {
        matches!(
            self,
            Fault::RestartEmpty(_)
                | Fault::RestartStale(_)
                | Fault::Promote(_)
                | Fault::Replace(_)
                | Fault::Evict(_)
                | Fault::Flush(_)
                | Fault::Delete
        )
    }

    /// Whether it ends another.
    pub fn mends(self) -> bool {
        matches!(
            self,
            Fault::RestartWithMemory(_)
                | Fault::RestartEmpty(_)
                | Fault::RestartStale(_)
                | Fault::Resume(_)
                | Fault::Drain(_)
                | Fault::Mend(..)
                | Fault::Continue(_)
        )
    }
}

/// Faults that belong together, to be allowed one by one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum FaultClass {
    /// Crashes, and restarts with all of the memory.
    Crashes,
    /// Restarts that forget everything.
    Amnesia,
    /// Restarts and promotions with an old memory.
    Staleness,
    /// Addresses that lead to another server.
    Replacement,
    /// Nodes that stand still.
    Stalls,
    /// Nodes without room.
    Fullness,
    /// Partitions, symmetric and one-way.
    Cuts,
    /// Clients that stand still.
    Pauses,
    /// Clients that die.
    Deaths,
    /// Eviction.
    Eviction,
    /// FLUSHALL.
    Flushes,
    /// An operator's DEL.
    Deletions,
    /// Clocks of nodes that jump.
    Jumps,
    /// Clients whose clock stands still with them.
    Freezes,
}

impl FaultClass {
    /// Those under which no two clients may ever hold.
    pub const HARMLESS: [FaultClass; 9] = [
        FaultClass::Crashes,
        FaultClass::Amnesia,
        FaultClass::Staleness,
        FaultClass::Replacement,
        FaultClass::Stalls,
        FaultClass::Fullness,
        FaultClass::Cuts,
        FaultClass::Pauses,
        FaultClass::Deaths,
    ];

    /// Those under which no two clients may ever hold a lock of a strict kind: the nodes themselves notice that they are flushed.
    pub const HARMLESS_TO_STRICT_KINDS: [FaultClass; 10] = {
        let mut classes = [FaultClass::Flushes; 10];
        classes.split_at_mut(9).0.copy_from_slice(&FaultClass::HARMLESS);
        classes
    };

    /// All that can go wrong.
    pub const ALL: [FaultClass; 14] = {
        let mut classes = [FaultClass::Freezes; 14];
        classes.split_at_mut(9).0.copy_from_slice(&FaultClass::HARMLESS);
        classes.split_at_mut(9).1.copy_from_slice(&FaultClass::HARMFUL);
        classes
    };

    /// Those that break an assumption.
    pub const HARMFUL: [FaultClass; 5] = [
        FaultClass::Eviction,
        FaultClass::Flushes,
        FaultClass::Deletions,
        FaultClass::Jumps,
        FaultClass::Freezes,
    ];
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Fault::Crash(node) => write!(f, "n{} crashes", node + 1),
            Fault::RestartWithMemory(node) => write!(f, "n{} starts again with its memory", node + 1),
            Fault::RestartEmpty(node) => write!(f, "n{} starts again empty", node + 1),
            Fault::RestartStale(node) => write!(f, "n{} starts again with an old memory", node + 1),
            Fault::Copy(node) => write!(f, "n{} is copied", node + 1),
            Fault::Promote(node) => write!(f, "the replica of n{} takes over", node + 1),
            Fault::Replace(node) => write!(f, "n{} is another server now", node + 1),
            Fault::Stall(node) => write!(f, "n{} stands still", node + 1),
            Fault::Resume(node) => write!(f, "n{} goes on", node + 1),
            Fault::Fill(node) => write!(f, "n{} is full", node + 1),
            Fault::Drain(node) => write!(f, "n{} has room again", node + 1),
            Fault::Cut(client, node) => write!(f, "c{} and n{} are cut off", client + 1, node + 1),
            Fault::Mute(client, node) => write!(f, "c{} does not hear n{} any more", client + 1, node + 1),
            Fault::Mend(client, node) => {
                write!(f, "c{} and n{} reach each other again", client + 1, node + 1)
            }
            Fault::Pause(client) => write!(f, "c{} stands still", client + 1),
            Fault::Continue(client) => write!(f, "c{} goes on", client + 1),
            Fault::Die(client) => write!(f, "c{} dies", client + 1),
            Fault::Evict(node) => write!(f, "n{} evicts the key", node + 1),
            Fault::Flush(node) => write!(f, "n{} is flushed", node + 1),
            Fault::Delete => f.write_str("an operator deletes the lock everywhere"),
            Fault::JumpForward(node) => write!(f, "the clock of n{} jumps forward", node + 1),
            Fault::JumpBack(node) => write!(f, "the clock of n{} jumps back", node + 1),
            Fault::Freeze(client) => write!(f, "c{} is frozen for a ttl, and its clock with it", client + 1),
        }
    }
}
