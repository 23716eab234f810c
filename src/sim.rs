//! A simulator for the lock's protocol: the claims, the store and the admission that run in production, in a world that is
//! made up. Feature `sim`; its types may change with any version.
//!
//! A [`World`](world::World) is a few clients that want one resource, a few nodes, their clocks, and the connections between
//! them. It lists what may happen next, and a [`Chooser`](choose::Chooser) picks: chance by a seed, a list of steps that was
//! written down, or a [`search`] that takes one offer after the other. A [`Checker`](check::Checker) looks at the
//! world after every step.
//!
//! ```
//! use redlock_quorum::sim::fault::FaultClass;
//! use redlock_quorum::sim::history::random;
//! use redlock_quorum::sim::mutant::Mutant;
//!
//! // A hundred random histories with every fault that the promise covers.
//! for seed in 0..100 {
//!     let history = random(seed, &FaultClass::HARMLESS, None, 400);
//!     assert!(history.violation.is_none(), "seed {seed}: {}", history.shrunk());
//! }
//!
//! // The same with a mistake: it is found, and told in the few steps that it takes.
//! let mistaken = |seed| random(seed, &FaultClass::HARMLESS, Some(Mutant::SetWithoutNx), 400);
//! let history = (0..100).map(mistaken).find(|history| history.violation.is_some()).expect("found");
//! println!("{}", history.shrunk());
//! ```
//!
//! What may go wrong is in [`fault`]: some faults break an [assumption](fault::Assumption) of the protocol, and then two
//! clients can hold; the tests show that too, since a search that finds nothing must be one that could. Mistakes are planted
//! as adapters around the protocol, by name, in [`mutant`].
//!
//! It does not test the code that talks to servers; the store in it is held against real ones by `tests/conformance.rs`.
//! To test code that *uses* locks, take [`MemoryNodes`](crate::MemoryNodes).
//!
//! `cargo run --release --no-default-features --features sim --example simulate` runs a hundred thousand histories.

pub mod check;
pub mod choose;
pub mod clock;
pub mod fault;
pub mod history;
pub mod mutant;
mod part;
pub mod scope;
pub mod search;
mod testimony;
pub mod timeline;
pub mod world;
