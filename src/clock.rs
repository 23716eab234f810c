//! The clock door: what time it is, and waiting for a moment.

use std::future::Future;
use std::pin::Pin;
use std::time::Duration;

use crate::protocol::time::Instant;

/// Tells the time and waits for it.
pub trait Clock: Send + Sync + 'static {
    /// Now. Never goes back.
    fn now(&self) -> Instant;

    /// Completes when `moment` has come, for [`Instant::NEVER`] never.
    fn sleep_until(&self, moment: Instant) -> Sleep;
}

/// A wait.
pub type Sleep = Pin<Box<dyn Future<Output = ()> + Send>>;

/// The machine's clock that goes on while the machine sleeps: a lock must not outlive a suspended laptop.
#[cfg_attr(not(feature = "redis"), allow(dead_code))]
#[derive(Clone, Copy, Debug, Default)]
pub struct SystemClock;

impl Clock for SystemClock {
    fn now(&self) -> Instant {
        Instant::from_nanos(nanos_since_boot())
    }

    /// The runtime's timers stand still during a suspend. Waking once a second bounds how late the end is noticed after it.
    fn sleep_until(&self, moment: Instant) -> Sleep {
        const LOOK_AGAIN: Duration = Duration::from_secs(1);
        let clock = *self;
        Box::pin(async move {
            if moment == Instant::NEVER {
                std::future::pending::<()>().await;
            }
            loop {
                let left = moment.since(clock.now());
                if left.is_zero() {
                    return;
                }
                tokio::time::sleep(left.min(LOOK_AGAIN)).await;
            }
        })
    }
}

#[cfg(unix)]
#[cfg_attr(not(feature = "redis"), allow(dead_code))]
fn nanos_since_boot() -> u64 {
    // On Apple's systems it is the monotonic clock that goes on during sleep.
    #[cfg(any(target_os = "linux", target_os = "android"))]
    const CLOCK: rustix::time::ClockId = rustix::time::ClockId::Boottime;
    #[cfg(not(any(target_os = "linux", target_os = "android")))]
    const CLOCK: rustix::time::ClockId = rustix::time::ClockId::Monotonic;
    let time = rustix::time::clock_gettime(CLOCK);
    u64::try_from(time.tv_sec).unwrap_or(0) * 1_000_000_000 + u64::try_from(time.tv_nsec).unwrap_or(0)
}

#[cfg(not(unix))]
#[cfg_attr(not(feature = "redis"), allow(dead_code))]
fn nanos_since_boot() -> u64 {
    use std::sync::LazyLock;
    // On Windows the performance counter counts sleep.
    static ORIGIN: LazyLock<std::time::Instant> = LazyLock::new(std::time::Instant::now);
    u64::try_from(ORIGIN.elapsed().as_nanos()).unwrap_or(u64::MAX)
}

/// The runtime's clock, so that in-memory nodes and the validity of their locks follow a test's paused time.
#[derive(Clone, Copy, Debug)]
pub struct RuntimeClock {
    origin: tokio::time::Instant,
}

impl RuntimeClock {
    /// A clock that starts now.
    pub fn new() -> Self {
        RuntimeClock { origin: tokio::time::Instant::now() }
    }
}

impl Default for RuntimeClock {
    fn default() -> Self {
        RuntimeClock::new()
    }
}

impl Clock for RuntimeClock {
    fn now(&self) -> Instant {
        Instant::from_nanos(u64::try_from(self.origin.elapsed().as_nanos()).unwrap_or(u64::MAX))
    }

    fn sleep_until(&self, moment: Instant) -> Sleep {
        if moment == Instant::NEVER {
            return Box::pin(std::future::pending());
        }
        let moment = self.origin.checked_add(Duration::from_nanos(moment.as_nanos()));
        Box::pin(async move {
            match moment {
                Some(moment) => tokio::time::sleep_until(moment).await,
                None => std::future::pending().await,
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_system_clock_runs() {
        let (first, second) = (SystemClock.now(), SystemClock.now());
        assert!(second >= first);
        assert!(first > Instant::from_nanos(0));
    }

    #[tokio::test(start_paused = true)]
    async fn the_runtime_clock_follows_paused_time() {
        let clock = RuntimeClock::new();
        clock.sleep_until(Instant::from_nanos(5_000_000_000)).await;
        assert_eq!(clock.now(), Instant::from_nanos(5_000_000_000));
    }

    #[tokio::test]
    async fn a_moment_that_has_passed_is_not_waited_for() {
        SystemClock.sleep_until(Instant::from_nanos(1)).await;
    }
}
