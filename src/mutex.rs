//! What is to be locked, and how: a description without IO, until one of its verbs is awaited.

use std::fmt;
use std::future::{Future, IntoFuture};
use std::pin::Pin;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use crate::clock::sleep_until;
use crate::driver::{self, Defeat, Live};
use crate::error::{AcquireError, Held, InspectError, RunError, SettingsError};
use crate::guard::Guard;
use crate::inspect::Inspection;
use crate::protocol::claim::{Claim, Event, Why};
use crate::protocol::command::{Command, Key, Signature};
use crate::protocol::settings::{
    Renewal, Terms, Wishes, check_namespace, check_resource, check_signature, check_wait,
};
use crate::protocol::time::Instant;
use crate::protocol::wait::{Backoff, Patience, WakeBy};
use crate::queue::{Full, Place};
use crate::redlock::{Core, DEFAULT_WAIT};

/// A lock on one resource, described: nothing is asked before a verb is awaited, and each use begins anew.
///
/// Settings that were not given come from the [`Redlock`](crate::Redlock) that made it. They are checked when a verb
/// is awaited: one that does not fit is an error that names the field, its value and the bound, and nothing is sent.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use std::time::Duration;
/// use redlock_quorum::{Backoff, MemoryNodes, Renewal};
///
/// let redlock = MemoryNodes::new(3).redlock();
/// let mutex = redlock
///     .mutex("invoices/42")
///     .ttl(Duration::from_secs(5))
///     .wait(Duration::from_secs(2)) // or .wait_forever()
///     .backoff(Backoff::exponential(Duration::from_millis(5), Duration::from_millis(200)).attempts(20))
///     .renewal(Renewal::Every(Duration::from_secs(2)))
///     .hold_at_least(Duration::from_millis(1))
///     .hold_at_most(Duration::from_secs(60))
///     .metadata("order 42");
/// let guard = mutex.acquire().await?; // or just mutex.await?, which uses it up
/// guard.release().await.ok()?;
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct Mutex {
    core: Arc<Core>,
    namespace: Arc<str>,
    resource: Vec<u8>,
    /// What differs from the deployment's settings.
    wishes: Option<Box<Wishes>>,
    wait: Option<Duration>,
    max_waiters: usize,
    /// Who holds, if it is not the client's holder.
    holder: Option<Arc<str>>,
    metadata: Option<String>,
    /// It is to be won with a fence, from nodes that judge themselves.
    is_strict: bool,
    /// What the settings come to, once they were found good.
    request: OnceLock<Request>,
}

impl Mutex {
    pub(crate) fn new(core: Arc<Core>, namespace: Arc<str>, resource: &[u8]) -> Self {
        let (wait, max_waiters, resource) = (core.wait, core.max_waiters, resource.to_vec());
        let (wishes, holder, metadata, request) = (None, None, None, OnceLock::new());
        let is_strict = false;
        Mutex { core, namespace, resource, wishes, wait, max_waiters, holder, metadata, is_strict, request }
    }

    pub(crate) fn by_strict_rules(self) -> Self {
        Mutex { is_strict: true, ..self }
    }

    /// With these settings instead of the client's.
    pub(crate) fn wishing(self, wishes: Wishes) -> Self {
        self.wish(|all| *all = wishes)
    }

    /// In the name of another holder than the client's.
    pub(crate) fn held_by(mut self, holder: &str) -> Self {
        self.holder = Some(holder.into());
        self.request = OnceLock::new();
        self
    }

    /// The key, and the settings, if they are good.
    pub(crate) fn settled(&self) -> Result<(Key, Arc<Terms>), SettingsError> {
        self.check().map(|request| (request.key, request.terms))
    }

    fn wish(mut self, change: impl FnOnce(&mut Wishes)) -> Self {
        change(self.wishes.get_or_insert_with(|| Box::new(self.core.wishes.clone())));
        self.request = OnceLock::new();
        self
    }

    /// How long the lock lives if its holder dies. Rounded down to whole milliseconds; 10 s by default. While the
    /// guard lives it is renewed, so this need not be as long as the work.
    ///
    /// Must be above drift plus margin, and at most the [`max_ttl`](crate::RedlockBuilder::max_ttl).
    #[doc(alias = "KeyValidity")]
    #[doc(alias = "expiry")]
    pub fn ttl(self, ttl: Duration) -> Self {
        self.wish(|wishes| wishes.ttl = ttl)
    }

    /// For how long [`acquire`](Mutex::acquire) and [`run`](Mutex::run) wait, the time in the local queue included; above
    /// zero. By default 30 s, not counting the time in which only nodes were missing that do not vote yet after a restart, up to
    /// the time after which a node votes that was restarted once; but whoever waits behind another caller of this client gets no
    /// more than the 30 s for that. When it is over the last attempt is rolled back, and the error says why it had failed.
    pub fn wait(mut self, wait: Duration) -> Self {
        self.wait = Some(wait);
        self
    }

    /// Waits as long as it takes. Bounded from outside, by `tokio::time::timeout` for example, nothing is left behind
    /// either.
    pub fn wait_forever(self) -> Self {
        self.wait(Duration::MAX)
    }

    /// How [`acquire`](Mutex::acquire) learns that a holder is done: by a message, by default. Callers of one client wait for
    /// each other in any case without asking the nodes.
    pub fn wake_by(self, wake_by: WakeBy) -> Self {
        self.wish(|wishes| wishes.wake_by = wake_by)
    }

    /// How many callers may wait in this client for the resource, behind the one that holds it or asks the nodes for it. One more
    /// gets [`AcquireError::Full`] at once. As many as come, by default; with 0, nobody waits for another of the same client.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// use redlock_quorum::{AcquireError, MemoryNodes};
    ///
    /// let mutex = MemoryNodes::new(3).redlock().mutex("reports").max_waiters(0);
    /// let _guard = mutex.acquire().await?;
    /// assert!(matches!(mutex.acquire().await, Err(AcquireError::Full { max_waiters: 0 })));
    /// # Ok(())
    /// # }
    /// ```
    pub fn max_waiters(mut self, most: usize) -> Self {
        self.max_waiters = most;
        self
    }

    /// How long to rest between attempts where no message can be waited for, because votes were split, nodes are missing or
    /// send none, and after how many attempts to give up: random rests of up to 10 ms at first, of up to 1 s later, by
    /// default. A rest ends earlier where the holder's keys run out.
    #[doc(alias = "RetryStrategy")]
    #[doc(alias = "retry")]
    pub fn backoff(self, backoff: Backoff) -> Self {
        self.wish(|wishes| wishes.backoff = backoff)
    }

    /// When the held lock is extended by itself: while the guard lives, when less than two thirds of the ttl remain,
    /// by default.
    pub fn renewal(self, renewal: Renewal) -> Self {
        self.wish(|wishes| wishes.renewal = renewal)
    }

    /// Ends the hold this long after it was asked for, whatever is extended: against a holder that lives but hangs.
    /// Above the [margin](crate::RedlockBuilder::margin); without it, a hold of ten minutes is logged as a warning.
    pub fn hold_at_most(self, bound: Duration) -> Self {
        self.wish(|wishes| wishes.hold_at_most = bound)
    }

    /// Excludes others for so long from when the lock was won, even if it is released sooner: hosts whose clocks are a little
    /// apart start the same job once. After the release the keys stay for the rest and then expire by themselves. A node that
    /// does not hear of the release keeps its key only as long as it has left of the ttl.
    ///
    /// At most the [`max_ttl`](crate::RedlockBuilder::max_ttl).
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # use std::time::Duration;
    /// # let nodes = redlock_quorum::MemoryNodes::new(5);
    /// # let redlock = nodes.redlock();
    /// let nightly = redlock.mutex("nightly").hold_at_least(Duration::from_secs(5));
    /// nightly.run(async |_guard| println!("done in no time")).await?;
    /// assert!(nodes.redlock().mutex("nightly").try_acquire().await?.is_none());
    /// # Ok(())
    /// # }
    /// ```
    pub fn hold_at_least(self, bound: Duration) -> Self {
        self.wish(|wishes| wishes.hold_at_least = bound)
    }

    /// A text that is stored beside the holder while the lock is held, for those who [inspect](Mutex::inspect) it.
    /// Together with the [holder](crate::RedlockBuilder::holder) at most 512 bytes.
    pub fn metadata(mut self, metadata: impl Into<String>) -> Self {
        self.metadata = Some(metadata.into());
        self.request = OnceLock::new();
        self
    }

    /// Waits until the resource is held, at most for the [`wait`](Mutex::wait).
    ///
    /// # Errors
    ///
    /// [`AcquireError::Held`] if another held it to the end, [`AcquireError::NoQuorum`] if too few nodes answered,
    /// [`AcquireError::NotReady`] if enough did but some do not vote yet after a restart, [`AcquireError::TooLate`] if the validity was over before the lock was known to be won, [`AcquireError::Closed`] after
    /// a shutdown, [`AcquireError::Settings`] for settings that do not fit. In each case nothing is held.
    ///
    /// # Cancel safety
    ///
    /// Dropped at any moment, the attempt is rolled back on every node that it may have reached.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let redlock = redlock_quorum::MemoryNodes::new(5).redlock();
    /// let guard = redlock.mutex("invoices/42").acquire().await?;
    /// assert!(guard.is_valid());
    /// guard.release().await.ok()?;
    /// # Ok(())
    /// # }
    /// ```
    #[doc(alias = "lock")]
    #[doc(alias = "obtain")]
    #[doc(alias = "WithContext")]
    pub async fn acquire(&self) -> Result<Guard, AcquireError> {
        let now = self.core.doors.clock.now();
        let patience = self.patience(now)?;
        let request = self.check()?;
        let place = self.place(&request.key, now, patience.ends_at()).await?;
        self.claim(request, patience, place).await
    }

    /// Whoever said for how long means that; whoever did not does not mean to fail because nodes were restarted. A node that
    /// is not restarted again votes after the longest life of a key.
    fn patience(&self, now: Instant) -> Result<Patience, SettingsError> {
        let Some(wait) = self.wait else {
            let spare = self.core.terms.longest_life(self.core.terms.max_ttl);
            return Ok(Patience::UntilWithout { end: now + DEFAULT_WAIT, spare });
        };
        check_wait(wait)?;
        Ok(Patience::Until(now + wait))
    }

    /// Acquires the resource if nobody holds it: `None` if somebody does. Does not wait for a holder, and settles split votes:
    /// of several that try at once, one gets it.
    ///
    /// A guard of this same `Redlock`, or a caller that waits for one, is found without asking the nodes.
    ///
    /// # Errors
    ///
    /// As [`acquire`](Mutex::acquire), without [`AcquireError::Held`].
    ///
    /// # Cancel safety
    ///
    /// As [`acquire`](Mutex::acquire).
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # use std::time::Duration;
    /// # let nodes = redlock_quorum::MemoryNodes::new(5);
    /// # let redlock = nodes.redlock();
    /// let Some(guard) = redlock.mutex("nightly").try_acquire().await? else {
    ///     println!("somebody else does it");
    ///     return Ok(());
    /// };
    /// assert!(redlock.mutex("nightly").try_acquire().await?.is_none());
    /// # drop(guard);
    /// # Ok(())
    /// # }
    /// ```
    #[doc(alias = "try_lock")]
    #[doc(alias = "TryWithContext")]
    #[doc(alias = "ErrNotObtained")]
    pub async fn try_acquire(&self) -> Result<Option<Guard>, AcquireError> {
        let request = self.check()?;
        if self.core.is_closed() {
            return Err(AcquireError::Closed);
        }
        let now = self.core.doors.clock.now();
        let Some(place) = self.core.places.try_enter(&request.key, now) else { return Ok(None) };
        match self.claim(request, Patience::Once, place).await {
            Ok(guard) => Ok(Some(guard)),
            Err(AcquireError::Held(_)) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Acquires, runs `work` while the lock is renewed, and releases. If the lock is lost, `work` is dropped where it
    /// stands; a future is dropped only where it awaits, so blocking code should ask [`Guard::within`].
    ///
    /// # Errors
    ///
    /// [`RunError::Acquire`] as for [`acquire`](Mutex::acquire): nothing was run. [`RunError::Lost`] if the lock was lost before
    /// the work was done.
    ///
    /// # Cancel safety
    ///
    /// Dropped, the work is dropped and the lock is released.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let redlock = redlock_quorum::MemoryNodes::new(5).redlock();
    /// # async fn charge() -> u32 { 42 }
    /// let total = redlock.mutex("invoices/42").run(async |_guard| charge().await).await?;
    /// assert_eq!(total, 42);
    /// # Ok(())
    /// # }
    /// ```
    #[doc(alias = "using")]
    pub async fn run<T>(&self, work: impl AsyncFnOnce(&Guard) -> T) -> Result<T, RunError> {
        let guard = self.acquire().await?;
        run_under(guard, work).await
    }

    /// As [`run`](Mutex::run), or `None` without running anything if the resource is held.
    ///
    /// # Errors
    ///
    /// As [`run`](Mutex::run), without [`AcquireError::Held`].
    ///
    /// # Cancel safety
    ///
    /// As [`run`](Mutex::run).
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # use std::time::Duration;
    /// # let nodes = redlock_quorum::MemoryNodes::new(5);
    /// # let redlock = nodes.redlock();
    /// let done = redlock.mutex("nightly").try_run(async |_guard| 6 * 7).await?;
    /// assert_eq!(done, Some(42));
    /// # Ok(())
    /// # }
    /// ```
    pub async fn try_run<T>(&self, work: impl AsyncFnOnce(&Guard) -> T) -> Result<Option<T>, RunError> {
        match self.try_acquire().await? {
            Some(guard) => run_under(guard, work).await.map(Some),
            None => Ok(None),
        }
    }

    /// What the nodes show of the resource now. Takes nothing, changes nothing.
    ///
    /// # Errors
    ///
    /// [`InspectError::NoQuorum`] if too few nodes answered within the node timeout, [`InspectError::Settings`] for a resource
    /// or settings that are refused.
    ///
    /// # Cancel safety
    ///
    /// Safe.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # use std::time::Duration;
    /// # let nodes = redlock_quorum::MemoryNodes::new(5);
    /// # let redlock = nodes.redlock();
    /// let _guard = redlock.mutex("invoices/42").metadata("charging the card").acquire().await?;
    /// let seen = redlock.mutex("invoices/42").inspect().await?;
    /// assert!(seen.by_majority());
    /// assert_eq!(seen.metadata(), Some("charging the card"));
    /// println!("{seen:#}");
    /// # Ok(())
    /// # }
    /// ```
    pub async fn inspect(&self) -> Result<Inspection, InspectError> {
        let Request { key, terms, .. } = self.check()?;
        let round = driver::survey(&self.core.doors, &terms, &Command::Inspect { key }).await;
        Inspection::of(&round, &terms)
    }

    /// Deletes the lock on all nodes, whoever holds it, and says whose it was: an operator's act, for a holder that is known
    /// to be gone or hung. A holder that lives learns of it in milliseconds where the servers tell about changed keys, and at its
    /// next renewal elsewhere; until then two may act.
    ///
    /// # Errors
    ///
    /// [`InspectError::NoQuorum`] if too few nodes answered within the node timeout: on those that did the lock is deleted.
    /// [`InspectError::Settings`] for a resource or settings that are refused.
    ///
    /// # Cancel safety
    ///
    /// The deletion is sent when the future is first polled. Dropped later, only its outcome is not heard.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # use std::time::Duration;
    /// # let nodes = redlock_quorum::MemoryNodes::new(5);
    /// # let redlock = nodes.redlock();
    /// # nodes.hold("invoices/42", Duration::from_secs(60));
    /// let was = redlock.mutex("invoices/42").force_release().await?;
    /// assert_eq!(was.holder(), Some("another"));
    /// assert!(redlock.mutex("invoices/42").try_acquire().await?.is_some());
    /// # Ok(())
    /// # }
    /// ```
    #[doc(alias = "break_lock")]
    #[doc(alias = "unlock")]
    pub async fn force_release(&self) -> Result<Inspection, InspectError> {
        let Request { key, terms, .. } = self.check()?;
        tracing::warn!(?key, "lock released by force");
        let round = driver::survey(&self.core.doors, &terms, &Command::Remove { key }).await;
        Inspection::of(&round, &terms)
    }

    fn check(&self) -> Result<Request, SettingsError> {
        if let Some(request) = self.request.get() {
            return Ok(request.clone());
        }
        check_namespace(&self.namespace)?;
        check_resource(&self.resource)?;
        let key = Key::of_lock(&self.namespace, &self.resource);
        let terms = match &self.wishes {
            Some(wishes) => Arc::new(wishes.check(&self.core.terms.nodes)?),
            None => self.core.terms.clone(),
        };
        let signature = match (&self.holder, &self.metadata) {
            (None, None) => self.core.signature.clone(),
            (holder, metadata) => {
                let holder = holder.as_deref().unwrap_or(&self.core.holder);
                check_signature(holder, metadata.as_deref())?;
                Signature::new(holder, metadata.as_deref())
            }
        };
        Ok(self.request.get_or_init(|| Request { key, signature, terms }).clone())
    }

    async fn place(&self, key: &Key, now: Instant, deadline: Instant) -> Result<Place, AcquireError> {
        if self.core.is_closed() {
            return Err(AcquireError::Closed);
        }
        if let Some(place) = self.core.places.try_enter(key, now) {
            return Ok(place);
        }
        tokio::select! {
            biased;
            () = self.core.closed() => Err(AcquireError::Closed),
            place = self.core.places.enter(key, now, self.max_waiters) => {
                place.map_err(|Full| AcquireError::Full { max_waiters: self.max_waiters })
            }
            () = sleep_until(&*self.core.doors.clock, deadline) => Err(AcquireError::Held(Box::new(Held::locally()))),
        }
    }

    async fn claim(&self, request: Request, patience: Patience, place: Place) -> Result<Guard, AcquireError> {
        let Request { key, signature, terms } = request;
        let mut claim = Claim::new(key.clone(), signature, terms.clone(), patience);
        let debt = place.take_debt();
        // Whoever was handed the lock comes before the others.
        if debt.is_none() && place.is_polite(|| self.core.doors.clock.now()) {
            claim = claim.letting_others_pass();
        }
        let registrar = self.is_strict.then(|| self.core.registrar(&self.namespace));
        if let Some(registrar) = &registrar {
            claim = claim.of_kind(registrar.kind());
        }
        let live = Live::new(self.core.doors.clone(), key, (claim, registrar), (place, debt));
        let won = tokio::select! {
            biased;
            () = self.core.closed() => return Err(AcquireError::Closed),
            won = driver::win(&live) => won,
        };
        match won {
            // A shutdown that has not seen this one held was closed before.
            Ok(()) if self.core.is_closed() => {
                live.feed(Event::Abandon);
                Err(AcquireError::Closed)
            }
            Ok(()) => Ok(Guard::new(live, terms)),
            Err(Defeat::TooLate(report)) => Err(AcquireError::TooLate(Box::new(report))),
            Err(Defeat::Failed(failure)) => {
                let report = failure.report;
                Err(match failure.why {
                    Why::Held { by } => AcquireError::Held(Box::new(Held::remotely(by, report))),
                    Why::NoQuorum => AcquireError::NoQuorum(Box::new(report)),
                    Why::NotReady { at } => {
                        let is_known = at < Instant::NEVER;
                        let votes_in = if is_known { at.since(live.now()) } else { Duration::MAX };
                        AcquireError::NotReady { votes_in, report: Box::new(report) }
                    }
                    Why::TooLate => AcquireError::TooLate(Box::new(report)),
                })
            }
        }
    }
}

/// A mutex whose settings were found good.
#[derive(Clone)]
struct Request {
    key: Key,
    signature: Signature,
    terms: Arc<Terms>,
}

async fn run_under<T>(guard: Guard, work: impl AsyncFnOnce(&Guard) -> T) -> Result<T, RunError> {
    let done = guard.unless_lost(work(&guard)).await;
    let _ = guard.release().await;
    done.ok_or(RunError::Lost)
}

impl IntoFuture for Mutex {
    type Output = Result<Guard, AcquireError>;
    type IntoFuture = Pin<Box<dyn Future<Output = Self::Output> + Send>>;

    /// As [`acquire`](Mutex::acquire).
    fn into_future(self) -> Self::IntoFuture {
        Box::pin(async move { self.acquire().await })
    }
}

impl fmt::Debug for Mutex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Mutex({:?})", Key::of_lock(&self.namespace, &self.resource))
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;

    use super::*;
    use crate::memory::MemoryNodes;

    /// Lets everybody else run, until nothing is left to do at this moment.
    async fn all_run() {
        for _ in 0..100 {
            tokio::task::yield_now().await;
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_turn_that_is_handed_over_to_nobody_is_another_clients() {
        let nodes = MemoryNodes::new(3);
        let (ours, theirs) = (nodes.redlock().mutex("a"), nodes.redlock().mutex("a"));
        let guard = ours.acquire().await.expect("free");
        let mut next = Box::pin(ours.acquire());
        assert!((&mut next).now_or_never().is_none());
        let start = tokio::time::Instant::now();
        let waiting = tokio::spawn(async move { theirs.acquire().await });
        all_run().await;
        // It is handed over to the next one here, who is gone before it knows.
        guard.release().await.ok().expect("held until now");
        drop(next);
        let theirs = waiting.await.expect("no panic").expect("it is its turn");
        assert!(start.elapsed() < Duration::from_millis(10), "after {:?}", start.elapsed());
        drop(theirs);
    }

    #[tokio::test(start_paused = true)]
    async fn a_wait_ends_in_the_local_queue_when_it_said_so() {
        const WAIT: Duration = Duration::from_millis(300);
        let mutex = MemoryNodes::new(3).redlock().mutex("a");
        let guard = mutex.acquire().await.expect("free");
        // The first one in the queue is not the first one whose wait is over.
        let start = tokio::time::Instant::now();
        let waits = [WAIT * 2, WAIT].map(|wait| {
            async move |mutex: Mutex| {
                let waited = mutex.wait(wait).acquire().await;
                assert!(matches!(&waited, Err(AcquireError::Held(held)) if held.is_local()), "{waited:?}");
                assert_eq!(start.elapsed(), wait);
            }
        });
        futures::future::join_all(waits.iter().map(|wait| wait(mutex.clone()))).await;
        // Those who have given up are in nobody's way.
        guard.release().await.ok().expect("held until now");
        assert!(mutex.try_acquire().await.expect("all nodes answer").is_some());
    }

    #[tokio::test(start_paused = true)]
    async fn nobody_is_remembered_who_does_not_wait_any_more() {
        let nodes = MemoryNodes::new(3);
        let (holder, other) = (nodes.redlock().mutex("a"), nodes.redlock().mutex("a"));
        let sleepers = || other.core.doors.switchboard.sleepers.len();
        for ending in ["given up", "dropped", "won"] {
            let guard = holder.acquire().await.expect("free");
            let mutex = other.clone().wait(Duration::from_millis(300));
            let waiting = tokio::spawn(async move { mutex.acquire().await });
            all_run().await;
            assert_eq!(sleepers(), 1, "{ending}");
            match ending {
                "given up" => assert!(waiting.await.expect("no panic").is_err()),
                "dropped" => {
                    waiting.abort();
                    all_run().await;
                }
                _ => {
                    guard.release().await.ok().expect("held until now");
                    let won = waiting.await.expect("no panic").expect("its turn");
                    assert_eq!(sleepers(), 0, "while it holds");
                    won.release().await.ok().expect("held until now");
                    continue;
                }
            }
            assert_eq!(sleepers(), 0, "{ending}");
            guard.release().await.ok().expect("held until now");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn locks_that_are_held_for_a_moment_do_not_wake_the_keeper_one_by_one() {
        let mutex = MemoryNodes::new(3).redlock().mutex("a");
        let keeper = &mutex.core.doors.keeper;
        all_run().await;
        let mut looks = std::collections::BTreeSet::new();
        for _ in 0..30 {
            let guard = mutex.acquire().await.expect("free");
            guard.release().await.ok().expect("held until now");
            all_run().await;
            looks.insert(keeper.looks_at());
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        assert!(looks.len() == 1 && !looks.contains(&Instant::NEVER), "{looks:?}");
        // With nothing left to look at it sleeps until it is woken.
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert_eq!(keeper.looks_at(), Instant::NEVER);
    }

    #[tokio::test]
    async fn only_a_wait_that_nobody_asked_for_leaves_out_restarts() {
        const ASKED: Duration = Duration::from_secs(7);
        let nodes = MemoryNodes::new(1);
        let (silent, asking) = (nodes.redlock(), nodes.builder().wait(ASKED).connect_lazy().expect("good"));
        let now = Instant::from_nanos(5);
        // The longest ttl, and what a slow clock adds.
        let (end, spare) = (now + DEFAULT_WAIT, Duration::from_millis(10_102));
        for (mutex, patience) in [
            (silent.mutex("a"), Patience::UntilWithout { end, spare }),
            (silent.mutex("a").wait(ASKED), Patience::Until(now + ASKED)),
            (silent.mutex("a").wait(DEFAULT_WAIT), Patience::Until(now + DEFAULT_WAIT)),
            (silent.mutex("a").wait_forever(), Patience::Until(Instant::NEVER)),
            (asking.mutex("a"), Patience::Until(now + ASKED)),
        ] {
            assert_eq!(mutex.patience(now).ok(), Some(patience), "{mutex:?}");
        }
        assert!(silent.mutex("a").wait(Duration::ZERO).patience(now).is_err());
    }
}
