//! A lock that is held, and views of it.

use std::fmt;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use crate::clock::sleep_until;
use crate::driver::{self, Live, Released};
use crate::error::{ExtendError, NotHeld, WithinError, with_report};
use crate::protocol::claim::ExtensionFailure;
use crate::protocol::fence::Fence;
use crate::protocol::release::ReleaseOutcome;
use crate::protocol::report::Report;
use crate::protocol::settings::Terms;
use crate::protocol::time::Instant;

/// A held lock. It is renewed while it lives, and released when it is dropped.
///
/// A lock can be lost: when no majority of nodes could be reached for a whole ttl, when this process stood still for that
/// long, or when the keys were deleted. Then [`lost`](Guard::lost) completes and [`is_valid`](Guard::is_valid) is false, for
/// good. Whatever must not happen without the lock should be [raced](crate::Mutex::run) against the loss.
///
/// Dropping a guard sends the release and does not wait for it. Where the process ends right after, as at the end of `main`,
/// nothing may be left to send it: end in [`release`](Guard::release) or [`shutdown`](crate::Redlock::shutdown). Otherwise the
/// lock ends with its ttl. So it does in a process that forgets the guard (`mem::forget`) *and* ends; while it lives, a
/// forgotten guard is renewed unless [`hold_at_most`](crate::Mutex::hold_at_most) bounds it.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use std::time::Duration;
/// use redlock_quorum::MemoryNodes;
///
/// let redlock = MemoryNodes::new(3).redlock();
/// let guard = redlock.mutex("invoices/42").ttl(Duration::from_secs(10)).acquire().await?;
/// assert!(guard.is_valid());
/// assert!(guard.remaining() <= Duration::from_millis(9_898)); // less what clocks may differ by
/// assert_eq!(guard.votes().majority(), 2);
/// println!("{:#}", guard.last_answers()); // a line for each node
/// drop(guard); // released, not awaited
/// # Ok(())
/// # }
/// ```
#[doc(alias = "Lock")]
#[doc(alias = "LockGuard")]
#[doc(alias = "IDistributedSynchronizationHandle")]
#[must_use = "a guard that is dropped at once releases the lock"]
pub struct Guard {
    live: Arc<Live>,
    terms: Arc<Terms>,
}

impl Guard {
    pub(crate) fn new(live: Arc<Live>, terms: Arc<Terms>) -> Self {
        Guard { live, terms }
    }

    pub(crate) fn live(&self) -> &Arc<Live> {
        &self.live
    }

    pub(crate) fn terms(&self) -> &Arc<Terms> {
        &self.terms
    }

    /// A view that is valid until the loss is told, not until the validity ends.
    pub(crate) fn watch_for_the_leader(&self) -> Watch {
        Watch { early: self.terms.margin, ..self.watch() }
    }

    /// The fence that came with the lock, if it is of a kind that has one.
    pub(crate) fn fence(&self) -> Option<Fence> {
        self.live.fence()
    }

    /// Does something until the lock is lost: `None` if it was.
    pub(crate) async fn unless_lost<T>(&self, work: impl Future<Output = T>) -> Option<T> {
        let done = tokio::select! {
            biased;
            () = self.lost() => None,
            done = work => Some(done),
        };
        // The work may have kept the runtime busy until long after the end.
        done.filter(|_| self.is_valid())
    }

    /// How long the holder may go on if nothing is extended: zero once the lock is lost. Local, no IO.
    #[doc(alias = "TTL")]
    #[doc(alias = "Until")]
    pub fn remaining(&self) -> Duration {
        remaining(&self.live, Duration::ZERO)
    }

    /// Whether the lock is valid at this moment. Local, no IO.
    ///
    /// It says nothing about the next moment: before a call that takes time, ask [`within`](Guard::within).
    pub fn is_valid(&self) -> bool {
        !self.remaining().is_zero()
    }

    /// Makes sure that at least `needed` remains: before a call with that timeout. Local, no IO.
    ///
    /// # Errors
    ///
    /// If less remains.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # use std::time::Duration;
    /// # let nodes = redlock_quorum::MemoryNodes::new(5);
    /// # let redlock = nodes.redlock();
    /// let guard = redlock.mutex("invoices/42").acquire().await?;
    /// guard.within(Duration::from_millis(500))?; // now a call with a timeout of 500 ms cannot outlive the lock
    /// assert!(guard.within(Duration::from_secs(60)).is_err());
    /// # Ok(())
    /// # }
    /// ```
    pub fn within(&self, needed: Duration) -> Result<(), WithinError> {
        within(remaining(&self.live, Duration::ZERO), needed)
    }

    /// A new lease of length `ttl` from now, rounded down to whole milliseconds; never shorter than the one that
    /// stands, and never beyond [`hold_at_most`](crate::Mutex::hold_at_most). Renewals go on as before.
    ///
    /// # Errors
    ///
    /// Each leaves the old lease as it is. [`ExtendError::NoQuorum`] if too few nodes answered; [`ExtendError::Lost`]
    /// and [`ExtendError::TooLate`] if the lock is gone; [`ExtendError::Capped`] if nothing can be added;
    /// [`ExtendError::Settings`] if `ttl` is above the [`max_ttl`](crate::RedlockBuilder::max_ttl) or not above drift
    /// plus margin.
    ///
    /// # Cancel safety
    ///
    /// Dropped, the extension may or may not happen. The lock is not released by it.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # use std::time::Duration;
    /// # let nodes = redlock_quorum::MemoryNodes::new(5);
    /// # let redlock = nodes.redlock();
    /// let redlock = nodes.builder().max_ttl(Duration::from_secs(60)).connect().await?;
    /// let guard = redlock.mutex("invoices/42").acquire().await?;
    /// guard.extend(Duration::from_secs(60)).await?; // before a step that must not be interrupted
    /// assert!(guard.remaining() > Duration::from_secs(50));
    /// # Ok(())
    /// # }
    /// ```
    #[doc(alias = "refresh")]
    #[doc(alias = "renew")]
    pub async fn extend(&self, ttl: Duration) -> Result<(), ExtendError> {
        let ttl = self.terms.check_extension(ttl)?;
        driver::extend(&self.live, ttl).await.map_err(not_extended)?;
        if self.is_valid() { Ok(()) } else { Err(ExtendError::TooLate) }
    }

    /// Whether the lock is proven to have been exclusive so far; `None` if it is of a kind that proves nothing.
    pub(crate) async fn prove(&self) -> Result<Option<bool>, ExtendError> {
        driver::verify(&self.live).await.map_err(not_extended)
    }

    /// Completes when the lock is lost: a margin before its validity ends, or at once when a majority of nodes shows that
    /// the keys are gone.
    ///
    /// # Cancel safety
    ///
    /// Safe; ask again as often as you like.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # use std::time::Duration;
    /// # let nodes = redlock_quorum::MemoryNodes::new(5);
    /// # let redlock = nodes.redlock();
    /// let guard = redlock.mutex("invoices/42").ttl(Duration::from_millis(100)).acquire().await?;
    /// # async fn work() {}
    /// tokio::select! {
    ///     () = work() => {}
    ///     () = guard.lost() => println!("stop: the lock is lost"),
    /// }
    /// # nodes.lose("invoices/42");
    /// # guard.lost().await;
    /// # Ok(())
    /// # }
    /// ```
    #[doc(alias = "HandleLostToken")]
    #[doc(alias = "AbortSignal")]
    pub async fn lost(&self) {
        ended(&self.live, self.terms.margin).await;
    }

    /// A view of this guard that can be cloned and sent to other tasks.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # use std::time::Duration;
    /// # let nodes = redlock_quorum::MemoryNodes::new(5);
    /// # let redlock = nodes.redlock();
    /// let guard = redlock.mutex("invoices/42").acquire().await?;
    /// let watch = guard.watch();
    /// let watching = tokio::spawn(async move { watch.lost().await });
    /// drop(guard);
    /// watching.await?; // released is over, too
    /// # Ok(())
    /// # }
    /// ```
    pub fn watch(&self) -> Watch {
        Watch { live: self.live.clone(), margin: self.terms.margin, early: Duration::ZERO }
    }

    /// What each node said to the acquisition, those that answered after the majority included.
    pub fn votes(&self) -> Report {
        self.live.votes().expect("a claim that was won has votes")
    }

    /// What each node said last: to an extension if there was one, else to the acquisition.
    pub fn last_answers(&self) -> Report {
        self.live.last_answers().expect("a claim that was won has votes")
    }

    /// Gives the lock back and waits until a majority of nodes has said what became of it, at most for the node timeout.
    ///
    /// Releasing a lock that was lost is no error: the outcome says so.
    ///
    /// # Cancel safety
    ///
    /// The release is sent when the future is first polled, or dropped. Dropped later, only its outcome is not heard.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # use std::time::Duration;
    /// # let nodes = redlock_quorum::MemoryNodes::new(5);
    /// # let redlock = nodes.redlock();
    /// let guard = redlock.mutex("invoices/42").acquire().await?;
    /// let release = guard.release().await;
    /// println!("{release:#}"); // what became of it, node by node
    /// release.ok()?;           // an error if the lock had ended before
    /// # Ok(())
    /// # }
    /// ```
    #[doc(alias = "unlock")]
    pub async fn release(self) -> Release {
        let Released { outcome, proven, report } = driver::release(&self.live).await;
        Release { outcome, proven, report }
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        self.live.let_go();
    }
}

impl fmt::Debug for Guard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Guard").field("key", self.live.key()).field("remaining", &self.remaining()).finish()
    }
}

/// A view of a [`Guard`]: can be cloned and sent, does not hold the lock, and goes on to answer after the guard is gone.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use std::time::Duration;
/// use redlock_quorum::{MemoryNodes, Watch};
///
/// async fn step(watch: Watch) -> Result<(), redlock_quorum::WithinError> {
///     watch.check()?; // between two steps: is it still ours?
///     watch.within(Duration::from_millis(500))?; // before a call with that timeout
///     Ok(())
/// }
///
/// let redlock = MemoryNodes::new(3).redlock();
/// let guard = redlock.mutex("invoices/42").acquire().await?;
/// let watch = guard.watch();
/// tokio::spawn(step(watch.clone())).await??;
/// guard.release().await.ok()?;
/// watch.lost().await; // released is over, too
/// assert!(!watch.is_valid() && watch.remaining().is_zero());
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct Watch {
    live: Arc<Live>,
    margin: Duration,
    /// So long before the validity ends this view is not valid any more.
    early: Duration,
}

impl Watch {
    /// As [`Guard::lost`]; completes as well when the guard is released or dropped.
    ///
    /// # Cancel safety
    ///
    /// Safe.
    pub async fn lost(&self) {
        ended(&self.live, self.margin).await;
    }

    /// Gives the lock back if nobody has, and waits until it is known what became of it.
    pub(crate) async fn released(&self) {
        driver::release(&self.live).await;
    }

    /// An error once the lock is not valid any more: between the steps of work that others do for the holder.
    ///
    /// # Errors
    ///
    /// If it is lost, released or dropped.
    pub fn check(&self) -> Result<(), WithinError> {
        self.within(Duration::ZERO)
    }

    /// As [`Guard::within`].
    ///
    /// # Errors
    ///
    /// If less remains.
    pub fn within(&self, needed: Duration) -> Result<(), WithinError> {
        within(self.remaining(), needed)
    }

    /// As [`Guard::is_valid`].
    pub fn is_valid(&self) -> bool {
        !self.remaining().is_zero()
    }

    /// As [`Guard::remaining`].
    pub fn remaining(&self) -> Duration {
        remaining(&self.live, self.early)
    }
}

impl fmt::Debug for Watch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Watch").field("key", self.live.key()).field("remaining", &self.remaining()).finish()
    }
}

fn not_extended(failure: ExtensionFailure) -> ExtendError {
    match failure {
        ExtensionFailure::Lost => ExtendError::Lost,
        ExtensionFailure::Capped => ExtendError::Capped,
        ExtensionFailure::NoQuorum(report) => ExtendError::NoQuorum(Box::new(report)),
    }
}

fn remaining(live: &Live, early: Duration) -> Duration {
    // Whoever ends early is done once the loss was told, for whatever reason.
    let is_over = !early.is_zero() && live.has_ended();
    if is_over { Duration::ZERO } else { (live.valid_until() - early).since(live.now()) }
}

fn within(remaining: Duration, needed: Duration) -> Result<(), WithinError> {
    if remaining >= needed && !remaining.is_zero() { Ok(()) } else { Err(WithinError { needed, remaining }) }
}

/// The end of the validity is a local matter: this waits on the clock by itself, whatever the network and the keeper do.
async fn ended(live: &Live, margin: Duration) {
    loop {
        let told = live.told();
        let lost_at: Instant = live.valid_until() - margin;
        if live.has_ended() || live.now() >= lost_at {
            return;
        }
        tokio::select! {
            () = told => {}
            () = sleep_until(&*live.doors.clock, lost_at) => {}
        }
    }
}

/// What became of a lock that was released. `{}` prints one line, `{:#}` a line for each node.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use redlock_quorum::{MemoryNodes, ReleaseOutcome};
///
/// let nodes = MemoryNodes::new(3);
/// let redlock = nodes.redlock();
/// let guard = redlock.mutex("invoices/42").acquire().await?;
/// nodes.lose("invoices/42"); // an operator deletes it
/// let release = guard.release().await;
/// assert_eq!(release.outcome, ReleaseOutcome::Expired);
/// assert!(release.ok().is_err(), "it was not held until the end");
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
#[must_use = "the outcome says whether the lock was held until the end; `.ok()?` makes that an error"]
pub struct Release {
    /// What the nodes say.
    pub outcome: ReleaseOutcome,
    /// Whether it is proven that from when the lock was won until it was released nobody else held the resource by a
    /// [fenced mutex](crate::FencedMutex), whatever clocks, expiries and operators did. `false` accuses nobody: it is not known. `None`: a
    /// plain lock proves nothing.
    ///
    /// It comes too late to prevent anything: for a commit that can still be withheld, and for an alarm.
    pub proven: Option<bool>,
    /// Node by node.
    pub report: Report,
}

impl Release {
    /// Turns a lock that was not held until the release into an error. [`ReleaseOutcome::Unknown`] is none: it may have been held. Who
    /// must know looks for [`ReleaseOutcome::Released`].
    ///
    /// # Errors
    ///
    /// If the lock had expired or was taken over.
    pub fn ok(self) -> Result<(), NotHeld> {
        match self.outcome {
            ReleaseOutcome::Released | ReleaseOutcome::Unknown => Ok(()),
            ReleaseOutcome::Expired | ReleaseOutcome::TakenOver => Err(NotHeld(Box::new(self))),
        }
    }
}

impl fmt::Display for Release {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        with_report(f, &self.outcome.to_string(), Some(&self.report))
    }
}

/// The machine sleeps while a lock is held: its clock goes on, and the runtime's timers stand still.
#[cfg(test)]
mod tests {
    use tokio::runtime::Handle;
    use tokio::time::{Instant as Timer, sleep};

    use super::*;
    use crate::builder::open_doors;
    use crate::clock::SuspendableClock;
    use crate::memory::{MemoryDoors, MemoryNodes};
    use crate::node::Bell;
    use crate::protocol::enrolment::FencesAfterLoss;
    use crate::protocol::settings::Wishes;
    use crate::redlock::{Core, DEFAULT_NAMESPACE, Redlock};
    use crate::switchboard::Switchboard;

    const TTL: Duration = Duration::from_secs(10);

    /// A client on a machine of its own; the nodes are elsewhere, and stay awake.
    fn a_client_that_may_sleep(nodes: &MemoryNodes) -> (Redlock, SuspendableClock) {
        let clock = SuspendableClock::new();
        let switchboard = Arc::new(Switchboard::default());
        let bell: Arc<dyn Bell> = switchboard.clone();
        let (holder, MemoryDoors { nodes: connections, entropy, .. }) = nodes.connect(Some("laptop"), &bell);
        let doors =
            open_doors(&Handle::current(), connections, (Arc::new(clock.clone()), entropy), switchboard);
        let names = (0..nodes.len()).map(|node| node.to_string().into()).collect();
        let wishes = Wishes { ttl: TTL, ..Wishes::default() };
        let terms = wishes.check(&names).expect("settings that fit");
        let core = Core::new(
            doors,
            wishes,
            terms,
            (Some(TTL), usize::MAX, FencesAfterLoss::default()),
            holder,
            None,
        );
        (Redlock::open(core, DEFAULT_NAMESPACE), clock)
    }

    #[tokio::test(start_paused = true)]
    async fn a_suspend_longer_than_the_ttl_ends_the_lock_at_once() {
        let nodes = MemoryNodes::new(3);
        let (redlock, clock) = a_client_that_may_sleep(&nodes);
        let guard = redlock.mutex("a").acquire().await.expect("free");
        let watch = guard.watch();
        clock.suspend(TTL);
        // The keys stand, no timer has fired, and nobody was asked.
        assert!((0..3).all(|node| nodes.keys(node) == ["redlock:a"]));
        assert!(!guard.is_valid() && guard.remaining().is_zero() && watch.check().is_err());
        assert!(guard.within(Duration::ZERO).is_err());
        assert!(matches!(guard.extend(TTL).await, Err(ExtendError::Lost)), "it came back");
        assert!(!guard.is_valid());
    }

    #[tokio::test(start_paused = true)]
    async fn the_loss_is_told_within_a_second_after_the_suspend() {
        let nodes = MemoryNodes::new(3);
        let (redlock, clock) = a_client_that_may_sleep(&nodes);
        let guard = redlock.mutex("a").acquire().await.expect("free");
        let watch = guard.watch();
        let told = tokio::spawn(async move {
            watch.lost().await;
            Timer::now()
        });
        sleep(Duration::from_millis(300)).await;
        clock.suspend(TTL * 100);
        let awake_since = Timer::now();
        let told = told.await.expect("no panic");
        assert!(told - awake_since <= Duration::from_secs(1), "told after {:?}", told - awake_since);
        drop(guard);
        nodes.assert_nothing_left();
    }

    #[tokio::test(start_paused = true)]
    async fn a_suspend_shorter_than_the_ttl_is_survived_and_renewed() {
        let nodes = MemoryNodes::new(3);
        let (redlock, clock) = a_client_that_may_sleep(&nodes);
        let guard = redlock.mutex("a").acquire().await.expect("free");
        sleep(Duration::from_millis(300)).await;
        clock.suspend(TTL / 2);
        assert!(guard.is_valid() && guard.remaining() < TTL / 2);
        sleep(Duration::from_secs(1)).await;
        assert!(guard.remaining() > TTL / 2, "not renewed after waking: {guard:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_lock_that_is_won_right_after_a_suspend_is_renewed_in_time() {
        let nodes = MemoryNodes::new(3);
        let (redlock, clock) = a_client_that_may_sleep(&nodes);
        // The keeper sleeps until this one is due, and looks at the clock once in a second.
        let _guard = redlock.mutex("a").acquire().await.expect("free");
        sleep(Duration::from_millis(300)).await;
        clock.suspend(TTL / 2);
        let short = redlock.mutex("b").ttl(Duration::from_millis(200)).acquire().await.expect("free");
        for _ in 0..10 {
            sleep(Duration::from_millis(50)).await;
            assert!(short.is_valid(), "{short:?}");
        }
    }
}
