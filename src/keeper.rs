//! The keeper: one task for all claims of a deployment, which wakes each when it is due, from one heap of timers.
//!
//! It only wakes them. What a claim does then (try again, extend, give up on a silent node, signal the loss) is the claim's affair.

use std::collections::BTreeMap;
use std::pin::pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use tokio::sync::Notify;

use crate::clock::{Clock, sleep_until};
use crate::driver::Live;
use crate::protocol::claim::Event;
use crate::protocol::time::Instant;
use crate::sync::lock;

/// Claims that are woken before others may run.
const MOST_AT_ONCE: usize = 64;

#[derive(Default)]
pub(crate) struct Keeper {
    claims: Mutex<Claims>,
    numbers: AtomicU64,
    /// Until when the task sleeps, in nanoseconds. Only what is due earlier needs to wake it.
    asleep_until: AtomicU64,
    earlier: Notify,
    all_let_go: Notify,
    stopped: AtomicBool,
}

#[derive(Default)]
struct Claims {
    /// By the moment at which they are woken; the number tells apart those that are woken at the same moment.
    by_alarm: BTreeMap<(Instant, u64), Arc<Live>>,
    /// How many of them somebody holds.
    held: usize,
}

impl Keeper {
    pub(crate) fn next_number(&self) -> u64 {
        self.numbers.fetch_add(1, Ordering::Relaxed)
    }

    /// Wakes a claim at some moment, at another one, or not any more: in one step, so that whoever looks at what is held sees it.
    pub(crate) fn set_alarm(&self, live: &Arc<Live>, from: Option<Instant>, to: Option<Instant>) {
        if to == from {
            return;
        }
        let mut claims = lock(&self.claims);
        let former = from.and_then(|from| claims.by_alarm.remove(&(from, live.number)));
        if let Some(moment) = to {
            claims.by_alarm.insert((moment, live.number), live.clone());
        }
        // Read under the lock: the task writes it under the same lock, before it goes to sleep.
        let earlier = to.is_some_and(|moment| moment.as_nanos() < self.asleep_until.load(Ordering::Relaxed));
        drop(claims);
        if earlier {
            self.earlier.notify_one();
        }
        drop(former);
    }

    /// Somebody holds one more of the claims that are woken.
    pub(crate) fn hold(&self) {
        lock(&self.claims).held += 1;
    }

    /// And one less.
    pub(crate) fn let_go(&self) {
        let mut claims = lock(&self.claims);
        claims.held -= 1;
        if claims.held == 0 {
            drop(claims);
            self.all_let_go.notify_waiters();
        }
    }

    /// All that is held, in the order in which it is woken.
    pub(crate) fn held(&self) -> Vec<Arc<Live>> {
        lock(&self.claims).by_alarm.values().filter(|live| live.is_held()).cloned().collect()
    }

    /// Completes when nothing is held any more, or at `deadline`.
    pub(crate) async fn idle(&self, clock: &dyn Clock, deadline: Instant) {
        let mut over = pin!(sleep_until(clock, deadline));
        loop {
            let all_let_go = self.all_let_go.notified();
            if lock(&self.claims).held == 0 {
                return;
            }
            tokio::select! {
                () = all_let_go => {}
                () = &mut over => return,
            }
        }
    }

    #[cfg(test)]
    pub(crate) fn len(&self) -> usize {
        lock(&self.claims).by_alarm.len()
    }

    pub(crate) fn stop(&self) {
        self.stopped.store(true, Ordering::Release);
        self.earlier.notify_one();
    }

    /// Whether nobody is woken any more: the task has ended, maybe with its runtime.
    pub(crate) fn has_stopped(&self) -> bool {
        self.stopped.load(Ordering::Acquire)
    }

    /// The task. Ends when the last handle, guard and watch of the deployment is gone.
    pub(crate) async fn run(self: Arc<Self>, clock: Arc<dyn Clock>) {
        let _shift = Shift(&self);
        while !self.has_stopped() {
            match self.due(clock.now()) {
                Ok(due) => {
                    due.iter().for_each(|live| live.feed(Event::Tick));
                    // A claim may be at work on another thread, and take the event in only then.
                    tokio::task::yield_now().await;
                }
                Err(next) => tokio::select! {
                    () = self.earlier.notified() => {}
                    () = sleep_until(&*clock, next) => {}
                },
            }
        }
    }

    /// Claims that are due, or until when to sleep. Woken together, they go out in the same writes.
    fn due(&self, now: Instant) -> Result<Vec<Arc<Live>>, Instant> {
        let claims = lock(&self.claims);
        let next = match claims.by_alarm.first_key_value() {
            Some(((moment, _), _)) if now >= *moment => {
                let due = claims.by_alarm.range(..=(now, u64::MAX)).take(MOST_AT_ONCE);
                return Ok(due.map(|(_, live)| live.clone()).collect());
            }
            Some(((moment, _), _)) => *moment,
            None => Instant::NEVER,
        };
        self.asleep_until.store(next.as_nanos(), Ordering::Relaxed);
        Err(next)
    }
}

/// The time for which the task runs.
struct Shift<'a>(&'a Keeper);

impl Drop for Shift<'_> {
    /// Those who relied on it have to wake their claims themselves from now on.
    fn drop(&mut self) {
        self.0.stopped.store(true, Ordering::Release);
        let left: Vec<_> = lock(&self.0.claims).by_alarm.values().cloned().collect();
        left.iter().for_each(|live| live.look_again());
    }
}
