//! A worker: takes the lock, increments the counter a few times, and leaves the lock, until its input ends. What it knows it
//! appends to a log, each line in one write, so that what it knew is known also when it is killed.

use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use redlock_quorum::{Guard, Mutex, Redlock, RunError};
use tokio::sync::watch;
use tokio::task::block_in_place;
use tokio::time::sleep;

use crate::harness::witness::Moment;
use crate::store::Store;

/// Of the lock, and the longest there is: so a node that was restarted is missing for about as long.
pub(crate) const TTL: Duration = Duration::from_secs(1);

/// What must be left of the validity before something is written. Far more than a write takes on a busy machine.
const ROOM: Duration = Duration::from_millis(300);

/// What a worker needs to know, in the order of its arguments.
pub(crate) struct Orders {
    pub(crate) name: String,
    pub(crate) nodes: String,
    pub(crate) namespace: String,
    pub(crate) seed: u64,
    pub(crate) database: PathBuf,
    pub(crate) log: PathBuf,
}

impl Orders {
    pub(crate) fn arguments(&self) -> [String; 6] {
        let path = |path: &Path| path.to_string_lossy().into_owned();
        let Orders { name, nodes, namespace, seed, database, log } = self;
        [name.clone(), nodes.clone(), namespace.clone(), seed.to_string(), path(database), path(log)]
    }

    pub(crate) fn parse(arguments: impl Iterator<Item = String>) -> Option<Self> {
        let [name, nodes, namespace, seed, database, log] = arguments.collect::<Vec<_>>().try_into().ok()?;
        let (seed, database, log) = (seed.parse().ok()?, database.into(), log.into());
        Some(Orders { name, nodes, namespace, seed, database, log })
    }
}

struct Worker {
    name: String,
    random: StdRng,
    store: Store,
    log: Arc<Log>,
    /// How many writes were tried.
    writes: u64,
}

/// The log of one process. A line that is whole is true.
struct Log(File);

impl Log {
    fn line(&self, words: &str) {
        (&self.0).write_all(format!("{words}\n").as_bytes()).expect("a log that can be written");
    }
}

pub(crate) async fn work(orders: Orders) {
    let nodes = orders.nodes.split(',').map(str::to_owned);
    let builder = Redlock::builder().nodes(nodes).namespace(orders.namespace).holder(&orders.name).ttl(TTL);
    // The nodes may all be away when it starts.
    let redlock = builder.connect_lazy().expect("good settings");
    let log = OpenOptions::new().append(true).create(true).open(&orders.log).expect("a log");
    let mut worker = Worker {
        name: orders.name,
        random: StdRng::seed_from_u64(orders.seed),
        store: Store::open(&orders.database).expect("a database"),
        log: Arc::new(Log(log)),
        writes: 0,
    };
    let mut end = end_of_input();
    note_standstills(worker.log.clone());
    let mutex = redlock.mutex("counter").wait_forever();
    while let Some((guard, asked)) = acquired(&mutex, &mut end).await {
        worker.holds(guard, asked).await;
    }
    let shutdown = redlock.shutdown(TTL).await;
    worker.log.line(&format!("shutdown {}", shutdown.is_clean()));
}

/// Whoever started it closes its input when it is to end, or has ended.
fn end_of_input() -> watch::Receiver<bool> {
    let (end, ended) = watch::channel(false);
    std::thread::spawn(move || {
        let _ = std::io::stdin().read(&mut [0]);
        end.send_replace(true);
    });
    ended
}

/// Notes when this process was not run: because it was stopped, or because the machine had no time for it.
fn note_standstills(log: Arc<Log>) {
    const LOOK: Duration = Duration::from_millis(10);
    const LONG: Duration = Duration::from_millis(100);
    std::thread::spawn(move || {
        let mut before = Moment::now();
        loop {
            std::thread::sleep(LOOK);
            let now = Moment::now();
            if now.since(before) > LONG {
                log.line(&format!("stood {} {}", before.0, now.0));
            }
            before = now;
        }
    });
}

/// The guard, and when it was asked for. None when it is time to end.
async fn acquired(mutex: &Mutex, end: &mut watch::Receiver<bool>) -> Option<(Guard, Moment)> {
    loop {
        let asked = Moment::now();
        tokio::select! {
            biased;
            _ = end.wait_for(|end| *end) => return None,
            guard = mutex.acquire() => if let Ok(guard) = guard { return Some((guard, asked)) },
        }
    }
}

/// One hold, as its worker sees it.
struct Hold {
    number: u64,
    /// Until when it was surely valid, as far as it was ever seen.
    valid_until: Arc<AtomicU64>,
    /// From then on that it is lost is no news.
    is_over: Arc<AtomicBool>,
}

impl Worker {
    async fn holds(&mut self, guard: Guard, asked: Moment) {
        let from = Moment::now();
        let hold = Hold { number: from.0, valid_until: Arc::default(), is_over: Arc::default() };
        self.log.line(&format!("granted {} {} {}", hold.number, asked.0, from.0));
        self.look(&hold, &guard);
        self.listen(&hold, &guard);
        for _ in 0..self.random.random_range(1..10) {
            // Once in a while it holds for longer than a ttl, and lives on its renewals.
            let pause = if self.random.random_range(0..50) == 0 { 1_500 } else { 15 };
            let pause = Duration::from_millis(self.random.random_range(0..pause));
            if self.increment(&hold, &guard, pause).await.is_err() {
                break;
            }
        }
        self.look(&hold, &guard);
        hold.is_over.store(true, Ordering::Release);
        self.log.line(&format!("ended {} {}", hold.number, Moment::now().0));
        let release = guard.release().await;
        self.log.line(&format!("released {} {:?}", hold.number, release.outcome));
        // Or it would have the lock again before the others know that it is free.
        sleep(Duration::from_millis(self.random.random_range(0..100))).await;
    }

    /// Reads, asks whether there is time, and writes. What is read too long ago is written all the same: the request is on
    /// its way.
    async fn increment(&mut self, hold: &Hold, guard: &Guard, pause: Duration) -> Result<(), RunError> {
        let mut until_lost = std::pin::pin!(guard.lost());
        tokio::select! {
            () = &mut until_lost => return Err(RunError::Lost),
            () = sleep(pause) => {}
        }
        let Ok(read) = block_in_place(|| self.store.counter()) else { return Ok(()) };
        self.look(hold, guard);
        let checked = Moment::now();
        guard.within(ROOM).map_err(|_| RunError::Lost)?;
        sleep(Duration::from_millis(self.random.random_range(0..30))).await;
        self.writes += 1;
        let done = block_in_place(|| self.store.write(&self.name, self.writes, read, checked));
        match done {
            Ok(true) => self.log.line(&format!("wrote {} {} {}", hold.number, self.writes, Moment::now().0)),
            Ok(false) | Err(_) => self.log.line("busy"),
        }
        Ok(())
    }

    /// Notes until when the lock is valid, if that has changed.
    fn look(&self, hold: &Hold, guard: &Guard) {
        const NEWS: Duration = Duration::from_millis(1);
        let now = Moment::now();
        let until = now.after(guard.remaining());
        let before = Moment(hold.valid_until.load(Ordering::Acquire));
        if guard.is_valid() && until.since(before) > NEWS {
            hold.valid_until.store(until.0, Ordering::Release);
            self.log.line(&format!("valid {} {}", hold.number, until.0));
        }
    }

    /// Notes when a loss is told, if it is.
    fn listen(&self, hold: &Hold, guard: &Guard) {
        let (watch, log, number) = (guard.watch(), self.log.clone(), hold.number);
        let (is_over, valid_until) = (hold.is_over.clone(), hold.valid_until.clone());
        tokio::spawn(async move {
            watch.lost().await;
            let told = Moment::now();
            if !is_over.load(Ordering::Acquire) {
                log.line(&format!("lost {number} {} {}", told.0, valid_until.load(Ordering::Acquire)));
            }
        });
    }
}
