//! The libraries in Rust, behind one trait.

use std::future::Future;
use std::time::Duration;

use redlock_quorum::{FencedGuard, FencedMutex, Guard, Mutex, Redlock, RestartProtection};
use rslock::{Lock, LockManager};

/// Longer than any block takes, so that nothing is renewed, and short enough that what a library leaves behind shows as a
/// wait, not as the end.
pub const TTL: Duration = Duration::from_secs(20);

/// A library that locks.
pub trait Library: Clone + Send + Sync + 'static {
    /// What is to be locked.
    type Mutex: Send + Sync + 'static;
    /// What is locked.
    type Held: Send + 'static;

    /// A client of these servers.
    fn connect(nodes: &[String]) -> impl Future<Output = Self>;
    /// A description of what is to be locked.
    fn mutex(&self, key: &str) -> Self::Mutex;
    /// Waits until it is held.
    fn acquire(&self, mutex: &Self::Mutex) -> impl Future<Output = Self::Held> + Send;
    /// Gives it back.
    fn release(&self, held: Self::Held) -> impl Future<Output = ()> + Send;
}

impl Library for Redlock {
    type Mutex = Mutex;
    type Held = Guard;

    async fn connect(nodes: &[String]) -> Self {
        // Servers that were started for this need not wait: they have granted nothing before.
        let builder = Redlock::builder().restart_protection(RestartProtection::Off).ttl(TTL);
        builder.nodes(nodes.iter().map(String::as_str)).connect().await.expect("servers")
    }

    fn mutex(&self, key: &str) -> Mutex {
        Redlock::mutex(self, key)
    }

    async fn acquire(&self, mutex: &Mutex) -> Guard {
        mutex.acquire().await.expect("a free resource is acquired")
    }

    async fn release(&self, guard: Guard) {
        guard.release().await.ok().expect("held");
    }
}

/// The same with fences.
#[derive(Clone)]
pub struct Fenced(Redlock);

impl Library for Fenced {
    type Mutex = FencedMutex;
    type Held = FencedGuard;

    async fn connect(nodes: &[String]) -> Self {
        let redlock = <Redlock as Library>::connect(nodes).await.namespace("fenced");
        redlock.bootstrap().await.expect("servers that nobody else uses");
        Fenced(redlock)
    }

    fn mutex(&self, key: &str) -> FencedMutex {
        self.0.fenced_mutex(key)
    }

    async fn acquire(&self, mutex: &FencedMutex) -> FencedGuard {
        mutex.acquire().await.expect("a free resource is acquired")
    }

    async fn release(&self, guard: FencedGuard) {
        guard.release().await.ok().expect("held");
    }
}

/// rslock, which retries after a random rest of less than a millisecond, as a timer counts them.
#[derive(Clone)]
pub struct Rslock(LockManager);

impl Library for Rslock {
    type Mutex = String;
    type Held = Lock;

    async fn connect(nodes: &[String]) -> Self {
        let mut manager = LockManager::new(nodes.iter().map(|node| format!("redis://{node}")).collect());
        manager.set_retry(u32::MAX, Duration::from_millis(1));
        Rslock(manager)
    }

    fn mutex(&self, key: &str) -> String {
        format!("rslock/{key}")
    }

    async fn acquire(&self, key: &String) -> Lock {
        self.0.acquire_no_guard(key.as_str(), TTL).await.expect("a ttl that is not too long")
    }

    async fn release(&self, lock: Lock) {
        self.0.unlock(&lock).await;
    }
}
