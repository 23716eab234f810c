//! What may happen in a world, and what it brings: as values, and in words.

use std::fmt;
use std::time::Duration;

use super::super::fault::Fault;
use crate::protocol::claim::{Notice, Ticket};
use crate::protocol::command::{Command, NodeIndex};
use crate::protocol::fence::Fence;

/// The number of a client.
pub type ClientIndex = usize;

/// What may happen next.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Step {
    /// Time goes on for everybody.
    Pass(Span),
    /// A client begins to want the resource, in one of the ways that the scope knows.
    Begin {
        /// Who.
        client: ClientIndex,
        /// In which way.
        wish: usize,
    },
    /// A client's claim is woken, at or after the moment for which it asked.
    Wake {
        /// Whose.
        client: ClientIndex,
    },
    /// The caller takes in that the lock is won; until here it may have been kept from running.
    Take {
        /// Who.
        client: ClientIndex,
    },
    /// The holder extends by hand.
    Extend {
        /// Who.
        client: ClientIndex,
    },
    /// A node tells the holder that somebody may have changed its key, rightly or not.
    Alarm {
        /// Whom.
        client: ClientIndex,
    },
    /// The holder asks whether its hold is proven.
    Verify {
        /// Who.
        client: ClientIndex,
    },
    /// The holder releases.
    Release {
        /// Who.
        client: ClientIndex,
    },
    /// The holder releases, and another caller of the same client wants the resource right behind.
    HandOver {
        /// Who.
        client: ClientIndex,
    },
    /// Whoever wanted the lock drops the future before having it.
    Abandon {
        /// Who.
        client: ClientIndex,
    },
    /// A client opens a connection.
    Dial {
        /// Who.
        client: ClientIndex,
        /// To which node.
        node: NodeIndex,
    },
    /// A connection breaks for its client. What is under way may still arrive.
    Break {
        /// Whose.
        client: ClientIndex,
        /// To which node.
        node: NodeIndex,
    },
    /// The oldest command on a connection arrives at its node and is carried out.
    Arrive(WireId),
    /// The oldest answer or message on a connection is heard.
    Hear(WireId),
    /// What is still under way on a broken connection is lost.
    Lose(WireId),
    /// Something goes wrong, or is mended.
    Fault(Fault),
}

/// How much time passes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Span {
    /// Until something is due: a claim is to be woken, a validity or a key ends.
    UntilDue,
    /// So many microseconds.
    Micros(u32),
    /// A ttl.
    Ttl,
}

/// Which connection: whose, to which node, and the how-manieth of its kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct WireId {
    /// Whose.
    pub client: ClientIndex,
    /// To which node.
    pub node: NodeIndex,
    /// Counted from 0.
    pub number: u32,
}

/// What a step brought, for those who check.
#[derive(Clone, Debug)]
pub enum Note {
    /// A client sent a command.
    Sent {
        /// Who.
        client: ClientIndex,
        /// To which node.
        node: NodeIndex,
        /// What.
        command: Command,
    },
    /// A claim in a state was brought an event.
    Fed {
        /// Whose.
        client: ClientIndex,
        /// The state before.
        state: &'static str,
        /// The event.
        event: &'static str,
    },
    /// A claim was woken.
    Woken {
        /// Whose.
        client: ClientIndex,
    },
    /// A fence came with a lock that was won.
    Granted {
        /// Whose claim.
        client: ClientIndex,
        /// The fence.
        fence: Fence,
    },
    /// A lock that can be proven comes to something.
    Proof {
        /// Whose.
        client: ClientIndex,
        /// The how-manieth claim of that client.
        claim: u32,
        /// To what.
        comes: Proof,
    },
    /// A claim told whoever waits for it.
    Told {
        /// Whose claim.
        client: ClientIndex,
        /// What.
        notice: Notice,
    },
}

/// What a lock that can be proven comes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Proof {
    /// It is won.
    Begins,
    /// Its release is sent.
    Ends,
    /// A proof is asked for.
    AskedFor(Ticket),
    /// Up to when it was asked for, it was exclusive.
    Verified(Ticket),
    /// It was exclusive, or that is not shown.
    Released(bool),
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Step::Pass(Span::UntilDue) => f.write_str("until something is due"),
            Step::Pass(Span::Ttl) => f.write_str("a ttl passes"),
            Step::Pass(Span::Micros(micros)) => {
                write!(f, "{:?} pass", Duration::from_micros((*micros).into()))
            }
            Step::Begin { client, .. } => write!(f, "c{} wants the lock", client + 1),
            Step::Wake { client } => write!(f, "c{} is woken", client + 1),
            Step::Take { client } => write!(f, "c{} takes the lock in hand", client + 1),
            Step::Extend { client } => write!(f, "c{} extends by hand", client + 1),
            Step::Alarm { client } => write!(f, "c{} hears that its key may have changed", client + 1),
            Step::Verify { client } => write!(f, "c{} asks for a proof", client + 1),
            Step::Release { client } => write!(f, "c{} releases", client + 1),
            Step::HandOver { client } => write!(f, "c{} hands over to another caller of its own", client + 1),
            Step::Abandon { client } => write!(f, "c{} gives up wanting", client + 1),
            Step::Dial { client, node } => write!(f, "c{} connects to n{}", client + 1, node + 1),
            Step::Break { client, node } => {
                write!(f, "c{} loses its connection to n{}", client + 1, node + 1)
            }
            Step::Arrive(id) => write!(f, "a command of {id} arrives"),
            Step::Hear(id) => write!(f, "an answer or a message is heard, {id}"),
            Step::Lose(id) => write!(f, "the rest of {id} is lost"),
            Step::Fault(fault) => fault.fmt(f),
        }
    }
}

impl fmt::Display for WireId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "c{}-n{}", self.client + 1, self.node + 1)?;
        if self.number > 0 { write!(f, " (connection {})", self.number + 1) } else { Ok(()) }
    }
}

impl fmt::Display for Note {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Note::Sent { client, node, command } => {
                let (what, value) = match command {
                    Command::Acquire { value, .. } => ("SET", Some(value)),
                    Command::Propose { value, fence, .. } => {
                        return write!(f, "c{} to n{}: PROPOSE {fence} {value:?}", client + 1, node + 1);
                    }
                    Command::Raise { value, fence, .. } => {
                        return write!(f, "c{} to n{}: RAISE {fence} {value:?}", client + 1, node + 1);
                    }
                    Command::Enrol { floor, .. } => {
                        return write!(f, "c{} to n{}: ENROL above {floor}", client + 1, node + 1);
                    }
                    Command::Observe { .. } => ("OBSERVE", None),
                    Command::Extend { value, .. } => ("EXTEND", Some(value)),
                    Command::Release { value, .. } => ("RELEASE", Some(value)),
                    Command::Enlist { .. } => ("ENLIST", None),
                    Command::Delist { .. } => ("DELIST", None),
                    Command::Inspect { .. } => ("INSPECT", None),
                    Command::Proclaim { value, .. } => ("PROCLAIM", Some(value)),
                    Command::Follow { .. } => ("FOLLOW", None),
                    Command::Remove { .. } => ("REMOVE", None),
                };
                write!(f, "c{} to n{}: {what}", client + 1, node + 1)?;
                value.map_or(Ok(()), |value| write!(f, " {value:?}"))
            }
            Note::Fed { client, state, event } => write!(f, "c{}: {event} while {state}", client + 1),
            Note::Woken { .. } => f.write_str("woken"),
            Note::Granted { client, fence } => write!(f, "c{}: fence {fence}", client + 1),
            Note::Proof { client, comes, .. } => write!(f, "c{}: {comes:?}", client + 1),
            Note::Told { client, notice } => {
                let text = format!("{notice:?}");
                write!(f, "c{}: {}", client + 1, text.split([' ', '{']).next().unwrap_or_default())
            }
        }
    }
}
