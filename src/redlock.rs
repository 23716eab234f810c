//! The entry point, shared by all that is locked through it: from the first mutex to the shutdown.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::sync::Notify;

use crate::builder::RedlockBuilder;
use crate::clock::sleep_until;
use crate::diagnose::Diagnosis;
use crate::driver::{self, Doors};
use crate::election::Election;
#[cfg(feature = "redis")]
use crate::error::ConnectError;
use crate::error::EnrolError;
use crate::fenced::FencedMutex;
use crate::memory::MemoryClient;
use crate::mutex::Mutex;
use crate::protocol::command::{Answer, Command, Key, Signature};
use crate::protocol::enrolment::FencesAfterLoss;
use crate::protocol::release::ReleaseOutcome;
use crate::protocol::report::Report;
use crate::protocol::round::Round;
use crate::protocol::settings::{Terms, Wishes, check_namespace};
use crate::queue::Places;
use crate::registrar::{self, Registrar};

pub(crate) const DEFAULT_NAMESPACE: &str = "redlock";

/// How long a caller waits who did not say for how long.
pub(crate) const DEFAULT_WAIT: Duration = Duration::from_secs(30);

/// Locks over one set of independent nodes. A clone is the same client: it shares connections and local queues.
///
/// See [`builder`](Redlock::builder) for a set of Redis nodes and [`MemoryNodes`](crate::MemoryNodes) for nodes in memory.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use redlock_quorum::{MemoryNodes, Redlock};
///
/// let redlock: Redlock = MemoryNodes::new(3).redlock();
/// let in_a_task = redlock.clone();
/// let _guard = redlock.mutex("invoices/42").acquire().await?;
/// assert!(in_a_task.mutex("invoices/42").try_acquire().await?.is_none(), "it is the same client");
/// # Ok(())
/// # }
/// ```
#[doc(alias = "LockManager")]
#[doc(alias = "Locker")]
#[derive(Clone)]
pub struct Redlock {
    core: Arc<Core>,
    namespace: Arc<str>,
}

/// What all clones and mutexes share.
pub(crate) struct Core {
    pub(crate) doors: Arc<Doors>,
    pub(crate) places: Arc<Places>,
    /// What mutexes start from, and what it comes to.
    pub(crate) wishes: Wishes,
    pub(crate) terms: Arc<Terms>,
    pub(crate) wait: Option<Duration>,
    pub(crate) max_waiters: usize,
    pub(crate) holder: String,
    pub(crate) signature: Signature,
    /// When the wall clock may stand in for what nodes have forgotten of fences.
    reseed: FencesAfterLoss,
    /// Which client of in-memory nodes this is, if it is one.
    client: Option<MemoryClient>,
    closed: AtomicBool,
    closing: Notify,
}

impl Core {
    pub(crate) fn new(
        doors: Doors,
        wishes: Wishes,
        terms: Terms,
        (wait, max_waiters, reseed): (Option<Duration>, usize, FencesAfterLoss),
        holder: String,
        client: Option<MemoryClient>,
    ) -> Self {
        Core {
            doors: Arc::new(doors),
            places: Arc::default(),
            wishes,
            terms: Arc::new(terms),
            wait,
            max_waiters,
            signature: Signature::new(&holder, None),
            holder,
            reseed,
            client,
            closed: AtomicBool::new(false),
            closing: Notify::new(),
        }
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Acquire)
    }

    /// Who sees to it that nodes count for the strict kinds of locks of a namespace.
    pub(crate) fn registrar(&self, namespace: &Arc<str>) -> Arc<Registrar> {
        let reseed = self.reseed.of(self.doors.clock.wall_clock_at_origin());
        self.doors.switchboard.registrar(&self.doors, namespace, (&self.terms, reseed))
    }

    /// Completes when the deployment is shut down.
    pub(crate) async fn closed(&self) {
        let closing = self.closing.notified();
        if !self.is_closed() {
            closing.await;
        }
    }
}

impl Redlock {
    /// Starts a description of nodes and settings: see [`RedlockBuilder`].
    pub fn builder() -> RedlockBuilder {
        RedlockBuilder::new()
    }

    pub(crate) fn memory_client(&self) -> Option<&MemoryClient> {
        self.core.client.as_ref()
    }

    pub(crate) fn open(core: Core, namespace: &str) -> Self {
        Redlock { core: Arc::new(core), namespace: namespace.into() }
    }

    /// Nodes and settings from the environment, as [`RedlockBuilder::from_env`], connecting in the background.
    ///
    /// # Errors
    ///
    /// [`ConnectError::Settings`] if a variable is missing or refused; [`ConnectError::NoRuntime`] outside of tokio.
    ///
    /// ```
    /// use redlock_quorum::{ConnectError, Redlock};
    ///
    /// // REDLOCK_NODES=10.0.0.1,10.0.0.2,10.0.0.3 is not set here.
    /// assert!(matches!(Redlock::from_env(), Err(ConnectError::Settings(_))));
    /// ```
    #[cfg(feature = "redis")]
    pub fn from_env() -> Result<Redlock, ConnectError> {
        RedlockBuilder::from_env()?.connect_lazy()
    }

    /// The same nodes under another namespace.
    ///
    /// A namespace with a `#` is refused when a mutex of it is used.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # use std::time::Duration;
    /// # let nodes = redlock_quorum::MemoryNodes::new(5);
    /// # let redlock = nodes.redlock();
    /// let billing = redlock.namespace("billing");
    /// let _here = redlock.mutex("42").acquire().await?;
    /// let _there = billing.mutex("42").acquire().await?; // another lock
    /// # Ok(())
    /// # }
    /// ```
    pub fn namespace(&self, namespace: impl AsRef<str>) -> Redlock {
        Redlock { core: self.core.clone(), namespace: namespace.as_ref().into() }
    }

    /// Describes a lock on `resource`: any bytes, 1 byte to 64 KiB, checked when the mutex is used. Nothing is sent: see
    /// [`Mutex`].
    pub fn mutex(&self, resource: impl AsRef<[u8]>) -> Mutex {
        Mutex::new(self.core.clone(), self.namespace.clone(), resource.as_ref())
    }

    /// Describes a lock on `resource` that comes with a [`Fence`](crate::Fence). Nothing is sent: see [`FencedMutex`].
    pub fn fenced_mutex(&self, resource: impl AsRef<[u8]>) -> FencedMutex {
        FencedMutex::new(self.mutex(resource))
    }

    /// Describes an election: one leader at a time among the candidates of that name. Nothing is sent: see [`Election`].
    pub fn election(&self, name: impl AsRef<[u8]>) -> Election {
        Election::new(self.core.clone(), self.namespace.clone(), name.as_ref())
    }

    /// An operator's word that nothing is held in this namespace: nodes that do not count for
    /// [fenced mutexes](Redlock::fenced_mutex) do so at once, instead of after the
    /// [`max_ttl`](crate::RedlockBuilder::max_ttl). For a deployment that is new, or that was all lost and whose holders are
    /// known to be gone. Nodes that count already stay as they are; one that is away comes to count by itself later.
    ///
    /// **If somebody does hold, two will.** Fences go on above those that are remembered by enough nodes, else above the wall
    /// clock of this machine.
    ///
    /// # Errors
    ///
    /// [`EnrolError::NoQuorum`] if too few nodes could be told, [`EnrolError::OtherRules`] if clients of the namespace have
    /// agreed on other nodes or another `max_ttl`, [`EnrolError::Settings`] for a namespace that is refused.
    ///
    /// # Cancel safety
    ///
    /// Dropped, some nodes may count already. Say it again.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let nodes = redlock_quorum::MemoryNodes::new(3);
    /// # let redlock = nodes.redlock();
    /// let report = redlock.bootstrap().await?;
    /// println!("{report:#}"); // node by node
    /// # Ok(())
    /// # }
    /// ```
    pub async fn bootstrap(&self) -> Result<Report, EnrolError> {
        check_namespace(&self.namespace)?;
        let registrar = self.core.registrar(&self.namespace);
        let round = registrar.bootstrap(&self.core.doors).await;
        self.enrolled(&round, |answer| matches!(answer, Answer::Enrolled(_)))
    }

    /// An operator's word that the nodes and the [`max_ttl`](crate::RedlockBuilder::max_ttl) of this client are those of the
    /// namespace from now on, whatever its clients have agreed on before: for a change of the nodes. Clients with others are
    /// refused by the nodes that were told, what they hold cannot be extended there, and after the `max_ttl` these nodes
    /// count again, for the new rules. Fences go on above what each of these nodes remembers, and above the wall clock, as after a
    /// [loss of all memory](FencesAfterLoss).
    ///
    /// **Clients with the former settings are shut out only when so many of *their* nodes were told that the rest is no majority.** This
    /// client does not know which those were: it is done when a majority of the new ones was told. So replace a minority of the
    /// nodes at a time, and say it again until the report shows an answer of each that both have in common; or stop those
    /// clients before. Else they and the new ones may hold at once.
    ///
    /// If the `max_ttl` becomes shorter, say it when all that was acquired with the longer one is over.
    ///
    /// # Errors
    ///
    /// As [`bootstrap`](Redlock::bootstrap), without [`EnrolError::OtherRules`].
    ///
    /// # Cancel safety
    ///
    /// Dropped, some nodes may have been told. Say it again.
    pub async fn reconfigure(&self) -> Result<Report, EnrolError> {
        check_namespace(&self.namespace)?;
        let registrar = self.core.registrar(&self.namespace);
        tracing::warn!(namespace = %self.namespace, "the rules for fences are set anew");
        let round = registrar.reconfigure(&self.core.doors).await;
        self.enrolled(&round, |answer| matches!(answer, Answer::Enrolled(_) | Answer::Observed(_)))
    }

    fn enrolled(&self, round: &Round, is_done: impl Fn(&Answer) -> bool) -> Result<Report, EnrolError> {
        let terms = &self.core.terms;
        let report = round.report(terms);
        if registrar::is_refused(round) {
            Err(EnrolError::OtherRules(Box::new(report)))
        } else if round.count(is_done) < terms.quorum.majority() {
            Err(EnrolError::NoQuorum(Box::new(report)))
        } else {
            Ok(report)
        }
    }

    /// Looks at the nodes: which of them vote, which do not and why, who answers, and what is found wrong or worth knowing,
    /// with advice. Asks each for a key and for INFO, and where it is allowed for CONFIG; changes nothing, and ends within the
    /// node timeout however many nodes are missing. No password is in it.
    ///
    /// # Cancel safety
    ///
    /// Safe.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let nodes = redlock_quorum::MemoryNodes::new(5);
    /// # let redlock = nodes.redlock();
    /// nodes.stop(1);
    /// let diagnosis = redlock.diagnose().await;
    /// assert_eq!((diagnosis.voting(), diagnosis.majority()), (4, 3));
    /// assert_eq!(diagnosis.findings()[0].node(), Some("memory-1"));
    /// println!("{diagnosis:#}");
    /// # Ok(())
    /// # }
    /// ```
    pub async fn diagnose(&self) -> Diagnosis {
        let Doors { nodes, .. } = &*self.core.doors;
        let terms = &self.core.terms;
        let question = Command::Inspect { key: Key::of_lock(&self.namespace, b"-") };
        let answers = driver::survey(&self.core.doors, terms, &question);
        let facts = futures::future::join_all(nodes.iter().map(|node| node.facts()));
        let (round, facts) = futures::future::join(answers, facts).await;
        Diagnosis::of(&round.report(terms), facts)
    }

    /// Ends this client and its clones. New and waiting calls get [`Closed`](crate::AcquireError::Closed); guards are waited
    /// for, at most for `patience`; those left are then lost to their holders, and released.
    ///
    /// When it returns, every release that was on its way has been answered or its node timeout is over, so the process may
    /// end: what a node that is away could not be told ends with its ttl. A guard that is taken away has no time to stop its
    /// holder, so give `patience` for that. Those that were are named.
    ///
    /// # Cancel safety
    ///
    /// Dropped, the client stays closed to new calls; guards that are left are released when they are dropped.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # use std::time::Duration;
    /// # let nodes = redlock_quorum::MemoryNodes::new(5);
    /// # let redlock = nodes.redlock();
    /// let guard = redlock.mutex("invoices/42").acquire().await?;
    /// drop(guard); // sent, not awaited
    /// let end = redlock.shutdown(Duration::from_secs(2)).await;
    /// assert!(end.is_clean());
    /// nodes.assert_nothing_left();
    /// # Ok(())
    /// # }
    /// ```
    pub async fn shutdown(&self, patience: Duration) -> Shutdown {
        let core = &self.core;
        core.closed.store(true, Ordering::Release);
        core.closing.notify_waiters();
        let doors = &core.doors;
        doors.keeper.idle(&*doors.clock, doors.clock.now() + patience).await;
        let left = doors.keeper.held();
        let releases = futures::future::join_all(left.iter().map(driver::release)).await;
        let outcomes =
            left.iter().zip(releases).map(|(live, released)| (live.key().clone(), released.outcome));
        let shutdown = Shutdown { taken_away: outcomes.collect() };
        self.answered_so_far().await;
        shutdown
    }

    /// Completes when calls that were turned away have sent their roll-back, and the nodes have answered all that was sent
    /// to them before: on one connection, what only looks comes behind it, and answers keep the order. What a server refuses at first
    /// comes a second time, with its script or one by one, and maybe a third time, without the wait list.
    async fn answered_so_far(&self) {
        let clock = &self.core.doors.clock;
        tokio::select! {
            () = self.core.places.empty() => {}
            () = sleep_until(&**clock, clock.now() + self.core.terms.node_timeout) => {}
        }
        let question = Command::Inspect { key: Key::of_lock(&self.namespace, b"-") };
        let looks = async {
            for _ in 0..3 {
                driver::survey(&self.core.doors, &self.core.terms, &question).await;
            }
        };
        tokio::select! {
            () = looks => {}
            () = sleep_until(&**clock, clock.now() + self.core.terms.node_timeout) => {}
        }
    }
}

impl fmt::Debug for Redlock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Redlock")
            .field("nodes", &self.core.terms.nodes)
            .field("namespace", &self.namespace)
            .finish()
    }
}

/// What a [shutdown](Redlock::shutdown) had to take away from guards that outlived its patience.
#[derive(Clone, Debug)]
pub struct Shutdown {
    taken_away: Vec<(Key, ReleaseOutcome)>,
}

impl Shutdown {
    /// Whether every guard had been released before.
    pub fn is_clean(&self) -> bool {
        self.taken_away.is_empty()
    }

    /// The keys of the locks that were taken away from their guards, and what became of them.
    pub fn taken_away(&self) -> impl Iterator<Item = (&[u8], ReleaseOutcome)> {
        self.taken_away.iter().map(|(key, outcome)| (key.as_bytes(), *outcome))
    }
}
