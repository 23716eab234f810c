//! Locks that come with a fence: a number that rises from grant to grant, by which a guarded store refuses a holder that is not
//! the last one.

use std::fmt;
use std::future::{Future, IntoFuture};
use std::ops::Deref;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use crate::error::{AcquireError, ExtendError, InspectError, RunError, SettingsError};
use crate::guard::{Guard, Release};
use crate::inspect::Inspection;
use crate::mutex::Mutex;
use crate::protocol::command::Key;
use crate::protocol::fence::Fence;
use crate::protocol::settings::{Renewal, Terms};
use crate::protocol::wait::{Backoff, WakeBy};

/// A [`Mutex`] whose guards have a [`Fence`]: for a resource that can check it, which then is safe even from a holder that was
/// paused for longer than its ttl.
///
/// The lock costs one round trip as a plain one does, and now and then two. It goes by stricter rules: a node counts only if
/// its own memory says, in the step in which it votes, that it has forgotten nothing. One that was restarted, emptied
/// (`FLUSHALL`), or promoted is left out until what it may have forgotten is over, for the
/// [`max_ttl`](crate::RedlockBuilder::max_ttl) plus the drift allowance, and enough of the others have told it how far the
/// fences are. So does a deployment that nobody has used before, unless [`bootstrap`](crate::Redlock::bootstrap) says that it is
/// new. All clients of a namespace must name the same nodes in the same order and the same `max_ttl`: others are refused by
/// the nodes. A user of a server that may not ask for `INFO` has no fences.
///
/// A plain [`Mutex`] on the same resource excludes a fenced one and is excluded by it.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use redlock_quorum::{Fence, MemoryNodes};
///
/// /// A store that refuses whoever is not the last holder that it has met: writes and reads alike.
/// #[derive(Default)]
/// struct Account {
///     fence: u64,
///     cents: i64,
/// }
///
/// impl Account {
///     fn check(&mut self, fence: Fence) -> Result<(), &'static str> {
///         if fence.as_u64() < self.fence {
///             return Err("another holder has been here");
///         }
///         self.fence = fence.as_u64();
///         Ok(())
///     }
///
///     fn read(&mut self, fence: Fence) -> Result<i64, &'static str> {
///         self.check(fence).map(|()| self.cents)
///     }
///
///     fn write(&mut self, fence: Fence, cents: i64) -> Result<(), &'static str> {
///         self.check(fence).map(|()| self.cents = cents)
///     }
/// }
///
/// let (nodes, mut account) = (MemoryNodes::new(3), Account::default());
/// let stale = nodes.redlock().fenced_mutex("account/1").acquire().await?;
/// let old = account.read(stale.fence())?;
/// // It is paused for longer than its ttl, and another gets the lock.
/// nodes.lose("account/1");
/// let guard = nodes.redlock().fenced_mutex("account/1").acquire().await?;
/// assert!(guard.fence() > stale.fence());
/// let cents = account.read(guard.fence())?;
/// account.write(guard.fence(), cents + 100)?;
/// // It wakes up, and has not noticed yet.
/// assert!(account.write(stale.fence(), old + 1).is_err(), "or else the 100 would be lost");
/// # Ok(())
/// # }
/// ```
#[doc(alias = "fencing token")]
#[derive(Clone)]
pub struct FencedMutex(Mutex);

/// Hands settings on to the mutex inside.
macro_rules! settings {
    ($($name:ident($($argument:ident: $kind:ty)?)),+ $(,)?) => {
        $(
            #[doc = concat!("As [`Mutex::", stringify!($name), "`].")]
            pub fn $name(self $(, $argument: $kind)?) -> Self {
                FencedMutex(self.0.$name($($argument)?))
            }
        )+
    };
}

impl FencedMutex {
    pub(crate) fn new(mutex: Mutex) -> Self {
        FencedMutex(mutex.by_strict_rules())
    }

    /// The key, and the settings, if they are good.
    pub(crate) fn settled(&self) -> Result<(Key, Arc<Terms>), SettingsError> {
        self.0.settled()
    }

    settings! {
        ttl(ttl: Duration),
        wait(wait: Duration),
        wait_forever(),
        wake_by(wake_by: WakeBy),
        max_waiters(most: usize),
        backoff(backoff: Backoff),
        renewal(renewal: Renewal),
        hold_at_most(bound: Duration),
        hold_at_least(bound: Duration),
        metadata(metadata: impl Into<String>),
    }

    /// Waits until the resource is held, as [`Mutex::acquire`] does.
    ///
    /// # Errors
    ///
    /// As [`Mutex::acquire`]. [`AcquireError::NotReady`] is said, too, while nodes do not count that may have forgotten
    /// fences; [`AcquireError::NoQuorum`] where they refuse because other clients of the namespace name other nodes or another
    /// `max_ttl`: the report says so.
    ///
    /// # Cancel safety
    ///
    /// As [`Mutex::acquire`].
    #[doc(alias = "lock")]
    pub async fn acquire(&self) -> Result<FencedGuard, AcquireError> {
        self.0.acquire().await.map(FencedGuard::of)
    }

    /// Acquires the resource if nobody holds it, as [`Mutex::try_acquire`] does: `None` if somebody does.
    ///
    /// # Errors
    ///
    /// As [`acquire`](FencedMutex::acquire), without [`AcquireError::Held`].
    ///
    /// # Cancel safety
    ///
    /// As [`Mutex::acquire`].
    #[doc(alias = "try_lock")]
    pub async fn try_acquire(&self) -> Result<Option<FencedGuard>, AcquireError> {
        Ok(self.0.try_acquire().await?.map(FencedGuard::of))
    }

    /// Acquires, runs `work` while the lock is renewed, and releases, as [`Mutex::run`] does.
    ///
    /// # Errors
    ///
    /// As [`Mutex::run`].
    ///
    /// # Cancel safety
    ///
    /// As [`Mutex::run`].
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let redlock = redlock_quorum::MemoryNodes::new(5).redlock();
    /// # async fn charge(fence: u64) -> u64 { fence }
    /// let fence = redlock.fenced_mutex("invoices/42").run(async |guard| charge(guard.fence().as_u64()).await).await?;
    /// # assert!(fence > 0);
    /// # Ok(())
    /// # }
    /// ```
    pub async fn run<T>(&self, work: impl AsyncFnOnce(&FencedGuard) -> T) -> Result<T, RunError> {
        self.acquire().await?.run(work).await
    }

    /// As [`run`](FencedMutex::run), or `None` without running anything if the resource is held.
    ///
    /// # Errors
    ///
    /// As [`Mutex::try_run`].
    ///
    /// # Cancel safety
    ///
    /// As [`Mutex::run`].
    pub async fn try_run<T>(&self, work: impl AsyncFnOnce(&FencedGuard) -> T) -> Result<Option<T>, RunError> {
        match self.try_acquire().await? {
            Some(guard) => guard.run(work).await.map(Some),
            None => Ok(None),
        }
    }

    /// As [`Mutex::inspect`].
    ///
    /// # Errors
    ///
    /// As [`Mutex::inspect`].
    ///
    /// # Cancel safety
    ///
    /// Safe.
    pub async fn inspect(&self) -> Result<Inspection, InspectError> {
        self.0.inspect().await
    }

    /// As [`Mutex::force_release`]: an operator's act. The next holder's fence is above that of the one whose lock is taken
    /// away, so a store that checks refuses him.
    ///
    /// # Errors
    ///
    /// As [`Mutex::force_release`].
    ///
    /// # Cancel safety
    ///
    /// As [`Mutex::force_release`].
    pub async fn force_release(&self) -> Result<Inspection, InspectError> {
        self.0.force_release().await
    }
}

impl IntoFuture for FencedMutex {
    type Output = Result<FencedGuard, AcquireError>;
    type IntoFuture = Pin<Box<dyn Future<Output = Self::Output> + Send>>;

    /// As [`acquire`](FencedMutex::acquire).
    fn into_future(self) -> Self::IntoFuture {
        Box::pin(async move { self.acquire().await })
    }
}

impl fmt::Debug for FencedMutex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Fenced{:?}", self.0)
    }
}

/// A [`Guard`] with a [`Fence`]: all that a guard can do, it can.
#[must_use = "a guard that is dropped at once releases the lock"]
pub struct FencedGuard {
    guard: Guard,
    fence: Fence,
}

impl FencedGuard {
    fn of(guard: Guard) -> Self {
        let fence = guard.fence().expect("a lock of this kind is won with a fence");
        FencedGuard { guard, fence }
    }

    /// Larger than the fence of any earlier grant of the resource. It stays the same for as long as the lock is held.
    ///
    /// Hand it to whatever the lock guards with every read and write, and have that refuse a fence below the largest that it
    /// has met. It rises as long as a majority of the nodes keeps its memory; after that its order rests on the wall clocks.
    #[doc(alias = "token")]
    #[doc(alias = "fencing_token")]
    pub fn fence(&self) -> Fence {
        self.fence
    }

    /// Asks the nodes whether the lock is proven to have been exclusive from when it was won until they were asked: that nobody
    /// else held the resource by a fenced mutex, whatever clocks, expiries and operators did. `false` accuses nobody: it is
    /// not known, since a majority of the nodes does not show it, and will not become known later.
    ///
    /// One round trip. It extends nothing, and says nothing about the moment after: for a commit that can still be
    /// withheld, where the store cannot check the fence.
    ///
    /// # Errors
    ///
    /// [`ExtendError::NoQuorum`] if too few nodes answered: ask again. [`ExtendError::Lost`] if the lock is lost.
    ///
    /// # Cancel safety
    ///
    /// Safe.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let redlock = redlock_quorum::MemoryNodes::new(5).redlock();
    /// # struct Upload; impl Upload { fn commit(self) {} }
    /// # let upload = Upload;
    /// let guard = redlock.fenced_mutex("report.pdf").acquire().await?;
    /// // ... the upload is prepared, and not yet visible ...
    /// if guard.verify().await? {
    ///     upload.commit();
    /// }
    /// let release = guard.release().await;
    /// assert_eq!(release.proven, Some(true));
    /// # Ok(())
    /// # }
    /// ```
    pub async fn verify(&self) -> Result<bool, ExtendError> {
        self.guard.prove().await.map(|proven| proven.unwrap_or(false))
    }

    /// As [`Guard::release`]; besides, the result says whether the lock is [proven](Release::proven) to have been exclusive.
    /// For that it may wait for one answer more, at most for the node timeout.
    ///
    /// # Cancel safety
    ///
    /// As [`Guard::release`].
    #[doc(alias = "unlock")]
    pub async fn release(self) -> Release {
        self.guard.release().await
    }

    async fn run<T>(self, work: impl AsyncFnOnce(&FencedGuard) -> T) -> Result<T, RunError> {
        let done = self.guard.unless_lost(work(&self)).await;
        let _ = self.release().await;
        done.ok_or(RunError::Lost)
    }
}

impl Deref for FencedGuard {
    type Target = Guard;

    fn deref(&self) -> &Guard {
        &self.guard
    }
}

impl fmt::Debug for FencedGuard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FencedGuard").field("guard", &self.guard).field("fence", &self.fence).finish()
    }
}

impl From<Fence> for u64 {
    fn from(fence: Fence) -> u64 {
        fence.as_u64()
    }
}

impl From<u64> for Fence {
    /// One that was stored.
    fn from(number: u64) -> Fence {
        Fence::new(number)
    }
}

/// As the number.
#[cfg(feature = "serde")]
impl serde::Serialize for Fence {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_u64(self.as_u64())
    }
}

/// From a number.
#[cfg(feature = "serde")]
impl<'a> serde::Deserialize<'a> for Fence {
    fn deserialize<D: serde::Deserializer<'a>>(deserializer: D) -> Result<Self, D::Error> {
        u64::deserialize(deserializer).map(Fence::new)
    }
}

#[cfg(test)]
mod tests {
    #[cfg(feature = "serde")]
    #[test]
    fn a_fence_is_stored_as_its_number() {
        use super::Fence;
        let fence = Fence::new(1_800_000_000_000_000);
        let text = serde_json::to_string(&fence).expect("a number");
        assert_eq!(text, "1800000000000000");
        assert_eq!(serde_json::from_str::<Fence>(&text).expect("a number"), fence);
        assert!(serde_json::from_str::<Fence>("-1").is_err());
    }
}
