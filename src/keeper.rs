//! The keeper: one task for all held claims of a deployment, which wakes each when it is due, from one heap of timers.
//!
//! It only wakes them. What a claim does then (extend, give up on a silent node, signal the loss) is the claim's affair.

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
    held: Mutex<Held>,
    numbers: AtomicU64,
    news: Notify,
    let_go: Notify,
    stopped: AtomicBool,
}

struct Held {
    /// By the moment at which they are due; the number tells apart those due at the same moment.
    claims: BTreeMap<(Instant, u64), Arc<Live>>,
    /// When the task looks next. Only what is due earlier changes that: what is let go does not, or each lock that is held for a moment
    /// would wake it.
    looks_at: Instant,
}

impl Default for Held {
    fn default() -> Self {
        Held { claims: BTreeMap::new(), looks_at: Instant::NEVER }
    }
}

impl Keeper {
    pub(crate) fn next_number(&self) -> u64 {
        self.numbers.fetch_add(1, Ordering::Relaxed)
    }

    /// Keeps a claim from now on, moves it to another moment, or lets it go: in one step, so that whoever looks at what is
    /// held sees it.
    pub(crate) fn reschedule(
        &self,
        live: &Arc<Live>,
        (from, to): (Option<Instant>, Option<Instant>),
        now: Instant,
    ) {
        if to == from {
            return;
        }
        let mut held = lock(&self.held);
        let former = from.and_then(|from| held.claims.remove(&(from, live.number)));
        let mut is_news = false;
        if let Some(due) = to {
            held.claims.insert((due, live.number), live.clone());
            // One that should have looked before now has slept through a suspend of the machine, with a timer that may take a while yet.
            is_news = due < held.looks_at || held.looks_at < now;
            held.looks_at = held.looks_at.min(due);
        }
        drop(held);
        if is_news {
            self.news.notify_one();
        }
        if to.is_none() {
            self.let_go.notify_waiters();
        }
        drop(former);
    }

    #[cfg(test)]
    pub(crate) fn looks_at(&self) -> Instant {
        lock(&self.held).looks_at
    }

    /// All that is held, in the order in which it is due.
    pub(crate) fn held(&self) -> Vec<Arc<Live>> {
        lock(&self.held).claims.values().cloned().collect()
    }

    /// Completes when nothing is held any more, or at `deadline`.
    pub(crate) async fn idle(&self, clock: &dyn Clock, deadline: Instant) {
        let mut over = pin!(sleep_until(clock, deadline));
        loop {
            let let_go = self.let_go.notified();
            if lock(&self.held).claims.is_empty() {
                return;
            }
            tokio::select! {
                () = let_go => {}
                () = &mut over => return,
            }
        }
    }

    pub(crate) fn stop(&self) {
        self.stopped.store(true, Ordering::Release);
        self.news.notify_one();
    }

    /// The task. Ends when the last handle, guard and watch of the deployment is gone.
    pub(crate) async fn run(self: Arc<Self>, clock: Arc<dyn Clock>) {
        while !self.stopped.load(Ordering::Acquire) {
            match self.due(clock.now()) {
                Ok(due) => {
                    due.iter().for_each(|live| live.feed(Event::Tick));
                    // A claim may be at work on another thread, and take the event in only then.
                    tokio::task::yield_now().await;
                }
                Err(next) => tokio::select! {
                    () = self.news.notified() => {}
                    () = sleep_until(&*clock, next) => {}
                },
            }
        }
    }

    /// Claims that are due, or until when to sleep. Woken together, they go out in the same writes.
    fn due(&self, now: Instant) -> Result<Vec<Arc<Live>>, Instant> {
        let mut held = lock(&self.held);
        if now < held.looks_at {
            return Err(held.looks_at);
        }
        held.looks_at = match held.claims.first_key_value() {
            Some(((due, _), _)) if now >= *due => {
                let due = held.claims.range(..=(now, u64::MAX)).take(MOST_AT_ONCE);
                return Ok(due.map(|(_, live)| live.clone()).collect());
            }
            Some(((due, _), _)) => *due,
            None => Instant::NEVER,
        };
        Err(held.looks_at)
    }
}
