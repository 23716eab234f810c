//! The lock as a pure protocol: events and the time come in, actions go out. Nothing here waits, sends, reads a clock,
//! draws a random number or logs, so every history can be written down, replayed and searched.
//!
//! # Reading order
//!
//! 1. [`quorum`]: a majority of the configured nodes, and when a vote is decided.
//! 2. [`time`] and [`lease`]: why a majority excludes everybody else until `asked_at + ttl - drift`.
//! 3. [`command`] and [`store`]: what a node is asked, and what a node does.
//! 4. [`admission`]: which node may vote; for the strict kinds [`marker`] and [`enrolment`].
//! 5. [`claim`]: the whole life of one lock, which composes [`attempt`], [`look`], [`hold`] and [`release`] over [`round`]s.
//! 6. [`fence`]: why the number that comes with a strict lock rises from grant to grant.
//! 7. [`evidence`]: how a strict lock is shown to have been exclusive, after the fact and without clocks.
//!
//! # What it assumes
//!
//! * **A1, rates.** While a key lives, its node's clock and the client's clock move apart by at most
//!   [`Drift`](time::Drift). A clock that *jumps* breaks this.
//! * **A2, memory.** A key stays until its expiry or its holder's release. A node that lost its memory breaks this until
//!   the longest ttl has passed, so [`admission`] keeps it from voting for so long.
//! * **A3, fresh values.** Every attempt has its own random [`LeaseId`](command::LeaseId).
//! * **A4, same rules.** All clients of a namespace use the same nodes in this protocol.
//!
//! The network may delay, lose and reorder anything between connections; on one connection, order is kept. Clients may
//! pause anywhere.
//!
//! # Why two clients never hold at once
//!
//! A client holds from the moment it heard a majority until `valid_until`. Every key of that majority was set after
//! `asked_at`, and by A1 and A2 stands at least until `valid_until`. A second client needs a majority too; any two majorities
//! share a node; on that node the first key still stands, and by A3 it is not the second client's. So the second client
//! hears a no there, for as long as the first one holds. An [extension](hold) is the same argument over again: it counts only nodes
//! at which the key never went away, and only while the lease it prolongs is not over.

// Nodes in memory never wait.
#[cfg_attr(not(feature = "redis"), allow(dead_code))]
pub mod admission;
pub mod attempt;
pub mod claim;
pub mod command;
pub mod enrolment;
pub mod evidence;
pub mod fence;
pub mod hold;
pub mod leading;
pub mod lease;
pub mod look;
pub mod marker;
pub mod quorum;
pub mod release;
pub mod report;
pub mod round;
pub mod settings;
pub mod store;
pub mod time;
pub mod wait;
