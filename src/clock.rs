//! The clock door: what time it is, and waiting for a moment.

use std::time::Duration;

use crate::protocol::time::Instant;

/// Tells the time and waits for it.
pub trait Clock: Send + Sync + 'static {
    /// Now. Never goes back.
    fn now(&self) -> Instant;

    /// For how long the runtime's timers can be relied on to run as this clock does.
    fn longest_rest(&self) -> Duration;

    /// What a wall clock showed, in microseconds since 1970, when this one was at its origin. No validity rests on it.
    fn wall_clock_at_origin(&self) -> u64;
}

/// Completes when `moment` has come, for [`Instant::NEVER`] never.
pub(crate) async fn sleep_until(clock: &(impl Clock + ?Sized), moment: Instant) {
    if moment == Instant::NEVER {
        std::future::pending::<()>().await;
    }
    loop {
        let left = moment.since(clock.now());
        if left.is_zero() {
            return;
        }
        tokio::time::sleep(left.min(clock.longest_rest())).await;
    }
}

/// The runtime's timers stand still while the machine sleeps, and clocks that count that time do not: to look again so often
/// bounds how late a moment is noticed after it.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

/// The machine's clock that goes on while the machine sleeps: a lock must not outlive a suspended laptop.
#[cfg_attr(not(feature = "redis"), allow(dead_code))]
#[derive(Clone, Copy, Debug, Default)]
pub struct SystemClock;

impl Clock for SystemClock {
    fn now(&self) -> Instant {
        Instant::from_nanos(nanos_since_boot())
    }

    fn longest_rest(&self) -> Duration {
        LOOK_AGAIN
    }

    fn wall_clock_at_origin(&self) -> u64 {
        let since_1970 = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        let micros = since_1970.map_or(0, |span| u64::try_from(span.as_micros()).unwrap_or(u64::MAX));
        micros.saturating_sub(self.now().as_nanos() / 1_000)
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
    /// What nodes in memory call the time at which their clocks begin: so late that one can jump back by decades, and always
    /// the same, since what a test sees must not depend on when it runs.
    pub(crate) const BEGIN: Instant = Instant::from_nanos(1 << 62);

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

    fn longest_rest(&self) -> Duration {
        Duration::MAX
    }

    fn wall_clock_at_origin(&self) -> u64 {
        RuntimeClock::BEGIN.as_nanos() / 1_000
    }
}

/// A clock for tests that goes on while the runtime's timers stand still, as the machine's does during a suspend.
#[cfg(test)]
#[derive(Clone, Debug)]
pub(crate) struct SuspendableClock {
    awake: RuntimeClock,
    slept_nanos: std::sync::Arc<std::sync::atomic::AtomicU64>,
}

#[cfg(test)]
impl SuspendableClock {
    pub(crate) fn new() -> Self {
        SuspendableClock { awake: RuntimeClock::new(), slept_nanos: std::sync::Arc::default() }
    }

    /// The machine sleeps for so long.
    pub(crate) fn suspend(&self, length: Duration) {
        let nanos = u64::try_from(length.as_nanos()).expect("short");
        self.slept_nanos.fetch_add(nanos, std::sync::atomic::Ordering::SeqCst);
    }
}

#[cfg(test)]
impl Clock for SuspendableClock {
    fn now(&self) -> Instant {
        self.awake.now() + Duration::from_nanos(self.slept_nanos.load(std::sync::atomic::Ordering::SeqCst))
    }

    fn longest_rest(&self) -> Duration {
        LOOK_AGAIN
    }

    fn wall_clock_at_origin(&self) -> u64 {
        self.awake.wall_clock_at_origin()
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
        sleep_until(&clock, Instant::from_nanos(5_000_000_000)).await;
        assert_eq!(clock.now(), Instant::from_nanos(5_000_000_000));
    }

    #[tokio::test]
    async fn a_moment_that_has_passed_is_not_waited_for() {
        sleep_until(&SystemClock, Instant::from_nanos(1)).await;
    }

    #[tokio::test(start_paused = true)]
    async fn a_moment_that_passed_in_a_suspend_is_noticed_within_a_second() {
        let clock = SuspendableClock::new();
        let begun = tokio::time::Instant::now();
        let (waiter, moment) = (clock.clone(), clock.now() + Duration::from_secs(3_600));
        let waiting = tokio::spawn(async move { sleep_until(&waiter, moment).await });
        tokio::time::sleep(Duration::from_millis(100)).await;
        clock.suspend(Duration::from_secs(7_200));
        waiting.await.expect("no panic");
        assert!(begun.elapsed() <= Duration::from_secs(1), "noticed after {:?}", begun.elapsed());
    }

    /// A machine that never slept has two clocks that agree, so it is asked in a child process for which the one that counts
    /// suspend is a day ahead.
    #[cfg(target_os = "linux")]
    #[test]
    fn the_system_clock_counts_suspend() {
        use rustix::time::{ClockId, clock_gettime};
        use std::process::Command;

        const INSIDE: &str = "REDLOCK_TEST_A_DAY_AHEAD";
        const A_DAY: u64 = 86_400;
        let seconds = |id| u64::try_from(clock_gettime(id).tv_sec).expect("after the boot");
        if std::env::var_os(INSIDE).is_some() {
            assert!(seconds(ClockId::Boottime) >= seconds(ClockId::Monotonic) + A_DAY, "not a day ahead");
            let earlier = Instant::from_nanos(seconds(ClockId::Boottime) * 1_000_000_000);
            let ahead = SystemClock.now().since(earlier);
            assert!(SystemClock.now() >= earlier && ahead < Duration::from_secs(60), "ahead by {ahead:?}");
            return;
        }
        let a_day_ahead = || {
            let mut command = Command::new("unshare");
            command.args(["--user", "--map-root-user", "--time", "--boottime", &A_DAY.to_string()]);
            command
        };
        match a_day_ahead().arg("true").output() {
            Ok(done) if done.status.success() => {}
            Ok(done) => {
                let reason = String::from_utf8_lossy(&done.stderr);
                return println!("skipped: no time namespace here: {}", reason.trim());
            }
            Err(error) => return println!("skipped: unshare does not run here: {error}"),
        }
        let name = "clock::tests::the_system_clock_counts_suspend";
        let this_test = std::env::current_exe().expect("this test");
        let child = a_day_ahead().arg(this_test).args([name, "--exact"]).env(INSIDE, "1").output();
        let child = child.expect("unshare ran before");
        let said = String::from_utf8_lossy(&child.stdout);
        assert!(child.status.success() && said.contains("1 passed"), "{said}");
    }
}
