//! A worker: takes the lock, increments the counter a few times, and leaves the lock, until its input ends. What it knows it
//! appends to a log.

use std::fmt::{Debug, Display};
use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use redlock_quorum::{Guard, Mutex, Redlock, RunError};
use tokio::runtime::Handle;
use tokio::sync::watch;
use tokio::task::block_in_place;
use tokio::time::sleep;
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Level, Metadata, Subscriber};

use crate::harness::witness::Moment;
use crate::log::Line;
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

/// The log of one process.
struct Log(File);

impl Log {
    fn line(&self, line: impl Display) {
        (&self.0).write_all(format!("{line}\n").as_bytes()).expect("a log that can be written");
    }
}

pub(crate) async fn work(orders: Orders) {
    let log = OpenOptions::new().append(true).create(true).open(&orders.log).expect("a log");
    let log = Arc::new(Log(log));
    let nodes: Vec<String> = orders.nodes.split(',').map(str::to_owned).collect();
    let listener = Listener { nodes: nodes.clone(), log: log.clone() };
    tracing::subscriber::set_global_default(listener).expect("nobody else listens");
    let builder = Redlock::builder().nodes(nodes).namespace(orders.namespace).holder(&orders.name).ttl(TTL);
    // The nodes may all be away when it starts.
    let redlock = builder.connect_lazy().expect("good settings");
    let mut worker = Worker {
        name: orders.name,
        random: StdRng::seed_from_u64(orders.seed),
        store: Store::open(&orders.database).expect("a database"),
        log,
        writes: 0,
    };
    let mut end = end_of_input();
    note_standstills(worker.log.clone());
    note_tasks(worker.log.clone(), Handle::current());
    let mutex = redlock.mutex("counter").wait_forever();
    while let Some((guard, asked)) = acquired(&mutex, &mut end).await {
        worker.holds(guard, asked).await;
    }
    let shutdown = redlock.shutdown(TTL).await;
    worker.log.line(format_args!("shutdown {}", shutdown.is_clean()));
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
                log.line(Line::Stood { from: before, until: now });
            }
            before = now;
        }
    });
}

/// Notes once in a while how many tasks there are.
fn note_tasks(log: Arc<Log>, runtime: Handle) {
    const LOOK: Duration = Duration::from_secs(1);
    std::thread::spawn(move || {
        loop {
            log.line(Line::Tasks { count: runtime.metrics().num_alive_tasks() });
            std::thread::sleep(LOOK);
        }
    });
}

/// Hears from the library which node does not vote for now.
struct Listener {
    nodes: Vec<String>,
    log: Arc<Log>,
}

impl Subscriber for Listener {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        *metadata.level() <= Level::INFO
    }

    fn new_span(&self, _: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }

    fn record(&self, _: &Id, _: &Record<'_>) {}

    fn record_follows_from(&self, _: &Id, _: &Id) {}

    fn event(&self, event: &Event<'_>) {
        let mut told = Told::default();
        event.record(&mut told);
        let Some(node) = self.nodes.iter().position(|node| *node == told.node) else { return };
        let from = Moment::now();
        if told.message.starts_with("does not vote yet") {
            self.log.line(Line::Waits { node, from });
        } else if told.message == "votes now" {
            self.log.line(Line::Votes { node, from });
        }
    }

    fn enter(&self, _: &Id) {}

    fn exit(&self, _: &Id) {}
}

#[derive(Default)]
struct Told {
    message: String,
    node: String,
}

impl Visit for Told {
    fn record_str(&mut self, field: &Field, value: &str) {
        if field.name() == "node" {
            value.clone_into(&mut self.node);
        }
    }

    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        if field.name() == "message" {
            self.message = format!("{value:?}");
        }
    }
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
        self.log.line(Line::Granted { hold: hold.number, asked, from });
        self.note_votes(&hold, &guard);
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
        self.log.line(Line::Ended { hold: hold.number, at: Moment::now() });
        self.note_votes(&hold, &guard);
        let release = guard.release().await;
        self.log.line(format_args!("released {} {:?}", hold.number, release.outcome));
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
            Ok(true) => {
                let (hold, number) = (hold.number, self.writes);
                self.log.line(Line::Wrote { hold, number, done: Moment::now() });
            }
            Ok(false) | Err(_) => self.log.line(Line::Busy),
        }
        Ok(())
    }

    /// Notes which nodes had granted the lock, as far as was heard.
    fn note_votes(&self, hold: &Hold, guard: &Guard) {
        let votes = guard.votes();
        let granted = votes.nodes().iter().enumerate().filter(|(_, vote)| vote.is_granted());
        granted.for_each(|(node, _)| self.log.line(Line::By { hold: hold.number, node }));
    }

    /// Notes until when the lock is valid, if that has changed.
    fn look(&self, hold: &Hold, guard: &Guard) {
        const NEWS: Duration = Duration::from_millis(1);
        let now = Moment::now();
        let until = now.after(guard.remaining());
        let before = Moment(hold.valid_until.load(Ordering::Acquire));
        if guard.is_valid() && until.since(before) > NEWS {
            hold.valid_until.store(until.0, Ordering::Release);
            self.log.line(Line::Valid { hold: hold.number, until });
        }
    }

    /// Notes when a loss is told, if it is.
    fn listen(&self, hold: &Hold, guard: &Guard) {
        let (watch, log) = (guard.watch(), self.log.clone());
        let (is_over, valid_until) = (hold.is_over.clone(), hold.valid_until.clone());
        let hold = hold.number;
        tokio::spawn(async move {
            watch.lost().await;
            let told = Moment::now();
            if !is_over.load(Ordering::Acquire) {
                let valid_until = Moment(valid_until.load(Ordering::Acquire));
                log.line(Line::Lost { hold, told, valid_until });
            }
        });
    }
}
