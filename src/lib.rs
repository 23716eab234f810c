//! A lock that several machines share, kept by a majority of independent Redis or Valkey nodes.
//!
//! ```
//! use std::time::Duration;
//! use redlock_quorum::MemoryNodes;
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let redlock = MemoryNodes::new(5).redlock(); // Redlock::builder().nodes([..]).connect().await? for real ones
//!
//! let guard = redlock.mutex("invoices/42").ttl(Duration::from_secs(10)).acquire().await?;
//! // ... the lock is renewed as long as the guard lives ...
//! guard.release().await.ok()?;
//! # Ok(())
//! # }
//! ```
//!
//! # What it promises
//!
//! At most one client holds a resource at any time, as long as
//!
//! * every node that votes has kept its memory for the longest ttl,
//! * the clocks of clients and nodes advance at rates within the [drift allowance](RedlockBuilder::drift) over one ttl,
//! * all clients of a namespace use the same nodes and the same `max_ttl`,
//! * the holder stops using the resource when its [validity](Guard::remaining) ends.
//!
//! A free resource is acquired while a majority of the nodes answers, and a holder that dies blocks others for at most its
//! ttl.
//!
//! # What it does not promise
//!
//! That work is done exactly once. That a holder which was paused for longer than its ttl notices before its next write: only
//! a store that checks the [fence](FencedMutex) can refuse that. That it holds when clocks jump, or when a node forgets what it granted while its process
//! lives (`FLUSHALL`). Redis Cluster and replicas are no nodes.
//!
//! # Nodes that restart
//!
//! A node that was restarted, replaced or promoted may have forgotten what it granted. It waits before it votes, for the
//! longest ttl, unless its disk is [trusted](NodeConfig::trust_disk). So the first lock of a deployment that was started a
//! moment ago takes ten seconds with the default ttl. [`restart_protection`](RedlockBuilder::restart_protection) has the
//! rules, and [`diagnose`](Redlock::diagnose) tells who waits and why.
//!
//! # How it is made
//!
//! A pure protocol turns events into actions; one driver performs them through three
//! doors: the nodes, the clock, and the random numbers. `docs/architecture.md` in the repository is the map.
#![forbid(unsafe_code)]

mod builder;
mod diagnose;
mod driver;
mod election;
mod error;
mod fenced;
mod guard;
mod inspect;
mod keeper;
mod memory;
mod mutex;
mod queue;
mod redlock;
mod registrar;
mod switchboard;
mod sync;

#[cfg(feature = "sim")]
pub mod sim;

#[cfg(test)]
#[path = "../tests/harness/random.rs"]
mod random;

// The protocol and the doors: open to tests and simulations, and without any promise of stability.
#[cfg(not(feature = "sim"))]
#[allow(unreachable_pub)]
mod clock;
#[cfg(feature = "sim")]
#[doc(hidden)]
pub mod clock;
#[cfg(not(feature = "sim"))]
#[allow(unreachable_pub)]
mod entropy;
#[cfg(feature = "sim")]
#[doc(hidden)]
pub mod entropy;
#[cfg(not(feature = "sim"))]
#[allow(unreachable_pub)]
mod node;
#[cfg(feature = "sim")]
#[doc(hidden)]
pub mod node;
#[cfg(not(feature = "sim"))]
#[allow(unreachable_pub)]
mod protocol;
#[cfg(feature = "sim")]
#[doc(hidden)]
pub mod protocol;

pub use builder::RedlockBuilder;
pub use diagnose::{Diagnosis, Finding, NodeDiagnosis, Severity};
pub use election::{Election, ElectionStatus, Leader, Leadership, Observer, Role};
pub use error::{
    AcquireError, CampaignError, ConnectError, EnrolError, ExtendError, Held, InspectError, NotHeld,
    ProclaimError, RunError, SettingsError, WithinError,
};
pub use fenced::{FencedGuard, FencedMutex};
pub use guard::{Guard, Release, Watch};
pub use inspect::Inspection;
pub use memory::{FaultKind, FaultPlan, Faults, MemoryNodes};
pub use mutex::Mutex;
pub use node::memory::{Partition, Skew};
#[cfg(feature = "redis")]
pub use node::redis::NodeConfig;
pub use protocol::admission::RestartProtection;
pub use protocol::enrolment::FencesAfterLoss;
pub use protocol::fence::Fence;
pub use protocol::release::ReleaseOutcome;
pub use protocol::report::{NodeReport, Report};
pub use protocol::settings::Renewal;
pub use protocol::wait::{Backoff, WakeBy};
pub use redlock::{Redlock, Shutdown};

/// The code in the README and the guides, compiled and run with the other examples.
#[cfg(doctest)]
mod guides {
    #[doc = include_str!("../README.md")]
    struct Readme;
    #[doc = include_str!("../docs/coming-from.md")]
    struct ComingFrom;
    #[doc = include_str!("../docs/managed-redis.md")]
    struct ManagedRedis;
}
