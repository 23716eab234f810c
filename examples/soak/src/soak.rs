//! The soak itself: starts the nodes and the workers, strikes and heals as the plan has it, sees that the work goes on after
//! each heal, and reports.

use std::collections::BTreeMap;
use std::fmt;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use tokio::time::sleep;

use crate::WORKER;
use crate::harness::process::{Directory, Process};
use crate::harness::storm::{Counts, Deployment};
use crate::harness::trouble::{LOGGED, MAY_HANG};
use crate::harness::witness::Moment;
use crate::harness::{Cluster, SILENT, until};
use crate::log::Line;
use crate::plan::{Blow, NODES, Plan, STEADY, Step, WORKERS, Whom};
use crate::store::Store;
use crate::timeline::Timeline;
use crate::verdict::{Doings, judge};
use crate::worker::{Orders, TTL};

/// How long the work may stand still after a heal, and a worker may take to end. Both take seconds, mostly for a node that was
/// restarted to vote again.
const AT_MOST: Duration = Duration::from_secs(30);

const POLL: Duration = Duration::from_millis(5);

/// Room for what an allocator does, and for connections that are about to end.
const GROWTH_KIB: u64 = 8 * 1024;
const GROWTH_FILES: usize = 16;
const GROWTH_TASKS: usize = 16;

/// What was asked for.
pub(crate) struct Wishes {
    pub(crate) length: Duration,
    pub(crate) seed: u64,
    /// Each worker has a lock of its own, which must show.
    pub(crate) apart: bool,
    /// Where the timeline is drawn.
    pub(crate) timeline: PathBuf,
}

/// True if there was nothing to complain about.
pub(crate) async fn soak(wishes: &Wishes) -> bool {
    println!("seed {}: {NODES} nodes, {WORKERS} workers, {:?}", wishes.seed, wishes.length);
    let mut soak = Soak::start(wishes).await;
    let mut plan = Plan::seeded(wishes.seed);
    let begun = Instant::now();
    soak.goes_on().await;
    let mut before = None;
    while begun.elapsed() < wishes.length {
        if wishes.apart {
            sleep(POLL).await;
            continue;
        }
        soak.step(plan.next()).await;
        // Connections and tables have found their sizes.
        if before.is_none() && begun.elapsed() > wishes.length / 4 {
            before = Some(soak.workers[STEADY].footprint());
        }
    }
    soak.end(wishes, before).await
}

struct Soak {
    deployment: Deployment,
    workers: Vec<Worker>,
    team: Team,
    doings: Doings,
    faults: Counts,
    /// How long it took after each heal until the next increment.
    resumed_after: Vec<Duration>,
    violations: Vec<(&'static str, Moment, String)>,
    begun: Moment,
    /// After all that use what is in it.
    folder: Directory,
}

/// What it takes to start a worker.
struct Team {
    seed: u64,
    apart: bool,
    folder: PathBuf,
    /// As each of them knows the nodes.
    nodes: Vec<String>,
    /// How many were started.
    started: u64,
}

struct Worker {
    name: String,
    process: Process,
    log: Tail,
}

impl Team {
    fn database(&self) -> PathBuf {
        self.folder.join("counter.db")
    }

    fn start(&mut self, place: usize) -> Worker {
        self.started += 1;
        let name = format!("worker-{place}.{}", self.started);
        let log = self.folder.join(format!("{name}.log"));
        File::create_new(&log).expect("a folder of our own");
        let orders = Orders {
            name: name.clone(),
            nodes: self.nodes[place].clone(),
            namespace: if self.apart { name.clone() } else { "soak".to_owned() },
            seed: self.seed.wrapping_add(self.started),
            database: self.database(),
            log: log.clone(),
        };
        let mut command = Command::new(std::env::current_exe().expect("this program"));
        command.arg(WORKER).args(orders.arguments()).stdin(Stdio::piped());
        Worker { name, process: Process::run(&mut command), log: Tail::of(&log) }
    }
}

impl Soak {
    async fn start(wishes: &Wishes) -> Self {
        // With every other seed the servers tell nobody what they lost, so that holders go on until their next renewal.
        let silent: &[&str] = if wishes.seed.is_multiple_of(2) { &SILENT } else { &[] };
        let cluster = Cluster::start_with(NODES, &[silent, &LOGGED, &MAY_HANG].concat()).await;
        let deployment = Deployment::of(cluster, WORKERS).await;
        let folder = Directory::new();
        let mut team = Team {
            seed: wishes.seed,
            apart: wishes.apart,
            folder: folder.path().to_owned(),
            nodes: (0..WORKERS).map(|place| deployment.addresses(place).join(",")).collect(),
            started: 0,
        };
        Store::create(&team.database()).expect("a new database");
        let workers: Vec<Worker> = (0..WORKERS).map(|place| team.start(place)).collect();
        let places = workers.iter().enumerate().map(|(place, worker)| (worker.name.clone(), place)).collect();
        Soak {
            deployment,
            workers,
            team,
            doings: Doings { places, ..Doings::default() },
            faults: Counts::default(),
            resumed_after: Vec::new(),
            violations: Vec::new(),
            begun: Moment::now(),
            folder,
        }
    }

    async fn step(&mut self, step: Step) {
        let Step { length, mut faults, worker } = step;
        let mut struck = Vec::new();
        for fault in &mut faults {
            self.faults.add(fault.name());
            struck.push(Moment::now());
            self.deployment.strike(fault, length).await;
        }
        let begun = Instant::now();
        if let Some((whom, blow)) = worker {
            self.strike(whom, blow).await;
        }
        sleep(length.saturating_sub(begun.elapsed())).await;
        for (fault, struck) in faults.into_iter().zip(struck) {
            self.deployment.heal(&fault).await;
            self.doings.faults.push((fault, struck, Moment::now()));
        }
        let healed = Instant::now();
        self.goes_on().await;
        self.resumed_after.push(healed.elapsed());
    }

    /// Kills a worker and starts another in its place, or stops one for longer than its ttl.
    async fn strike(&mut self, whom: Whom, blow: Blow) {
        let holder = self.workers.iter_mut().position(|worker| worker.log.read().holds);
        let place = match whom {
            Whom::Worker(place) => place,
            Whom::Holder => holder.unwrap_or(STEADY),
        };
        let name = self.workers[place].name.clone();
        match blow {
            Blow::Killed if place == STEADY => {}
            Blow::Killed => {
                self.faults.add(if holder == Some(place) { "holder killed" } else { "worker killed" });
                self.workers[place] = self.team.start(place);
                self.doings.places.insert(self.workers[place].name.clone(), place);
                self.doings.deaths.insert(name, Moment::now());
            }
            Blow::Stopped(length) => {
                self.faults.add(if holder == Some(place) { "holder stopped" } else { "worker stopped" });
                let stopped = Moment::now();
                self.workers[place].process.stop();
                sleep(length).await;
                self.workers[place].process.cont();
                self.doings.stops.push((name, stopped, Moment::now()));
            }
        }
    }

    /// Waits for another increment, by whomever.
    async fn goes_on(&mut self) {
        let before = self.increments();
        let begun = Instant::now();
        while self.increments() == before {
            if begun.elapsed() > AT_MOST {
                let what = format!("no increment within {AT_MOST:?}");
                self.violations.push(("no progress", Moment::now(), what));
                return;
            }
            sleep(POLL).await;
        }
    }

    /// Of the workers that there are: a new one begins at none.
    fn increments(&mut self) -> Vec<u64> {
        self.workers.iter_mut().map(|worker| worker.log.read().increments).collect()
    }

    async fn end(mut self, wishes: &Wishes, before: Option<Footprint>) -> bool {
        let after = self.workers[STEADY].footprint();
        self.all_end().await;
        let ended = Moment::now();
        // What a killed worker left, and what was lost on its way, expires.
        until("no key", async || self.deployment.cluster.ours().await.is_empty()).await;
        let store = Store::open(&self.team.database()).expect("a database");
        let (writes, counter) = (store.writes().expect("whole"), store.counter().expect("whole"));
        let mut verdict = judge(&logs(self.folder.path()), &writes, counter, &self.doings);
        for (kind, at, what) in std::mem::take(&mut self.violations) {
            verdict.violated(kind, Some(at), what);
        }
        if let Some(before) = before {
            println!(
                "a worker that was never killed: {before} after a quarter of the time, {after} at the end"
            );
            if after.has_grown_since(&before) {
                verdict.violated("it grew", None, format!("from {before} to {after}"));
            }
        }
        let resumed = self.resumed_after.iter().max().copied().unwrap_or_default();
        println!(
            "{:>7}  steps, the next increment at most {resumed:.1?} after the faults were over",
            self.resumed_after.len()
        );
        print!("{}{verdict}", self.faults);
        let timeline = Timeline {
            title: format!("A soak of {:?}, seed {}", wishes.length, wishes.seed),
            about: format!(
                "{WORKERS} workers increment a counter under a lock with a ttl of {TTL:?}, on {NODES} nodes: {} grants, {} \
                 increments, {} losses, {} stale writes, {} violations",
                verdict.holds.len(),
                verdict.writes,
                verdict.losses,
                verdict.stale,
                verdict.violations.len()
            ),
            from: self.begun,
            until: ended,
            workers: WORKERS,
            nodes: NODES,
            doings: &self.doings,
            verdict: &verdict,
            writes: &writes,
        };
        draw(&wishes.timeline, &timeline);
        if !verdict.violations.is_empty() && !wishes.apart {
            self.keep(&wishes.timeline.with_extension("logs"));
        }
        verdict.violations.is_empty()
    }

    /// The same seed is not the same run again, so what there is of it is kept.
    fn keep(&self, place: &Path) {
        std::fs::create_dir_all(place).expect("a folder for the logs");
        for file in std::fs::read_dir(self.folder.path()).expect("our own folder") {
            let file = file.expect("readable");
            std::fs::copy(file.path(), place.join(file.file_name())).expect("room for a copy");
        }
        println!("logs and database: {}", place.display());
    }

    async fn all_end(&mut self) {
        self.workers.iter_mut().for_each(|worker| worker.process.close_input());
        let begun = Instant::now();
        for worker in &mut self.workers {
            while worker.process.exit().is_none() && begun.elapsed() < AT_MOST {
                sleep(POLL).await;
            }
            match worker.process.exit() {
                Some(status) if status.success() => {}
                Some(status) => {
                    let what = format!("{} with {status}", worker.name);
                    self.violations.push(("ended badly", Moment::now(), what));
                }
                None => self.violations.push(("hangs", Moment::now(), worker.name.clone())),
            }
        }
    }
}

fn draw(path: &Path, timeline: &Timeline<'_>) {
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder).expect("a folder for the timeline");
    }
    std::fs::write(path, timeline.to_svg()).expect("a timeline that can be written");
    println!("timeline: {}", path.display());
}

/// Each worker's log, also of those that are gone.
fn logs(folder: &Path) -> BTreeMap<String, String> {
    let files = std::fs::read_dir(folder).expect("our own folder").map(|file| file.expect("readable").path());
    let logs = files.filter(|file| file.extension().is_some_and(|ending| ending == "log"));
    let name = |file: &Path| file.file_stem().expect("a name").to_string_lossy().into_owned();
    logs.map(|file| (name(&file), std::fs::read_to_string(&file).expect("text"))).collect()
}

/// What is known of a log that grows.
struct Tail {
    file: File,
    rest: String,
    seen: Seen,
}

#[derive(Clone, Copy, Default)]
struct Seen {
    holds: bool,
    increments: u64,
    tasks: usize,
}

impl Tail {
    fn of(log: &Path) -> Self {
        Tail { file: File::open(log).expect("a log"), rest: String::new(), seen: Seen::default() }
    }

    fn read(&mut self) -> Seen {
        self.file.read_to_string(&mut self.rest).expect("text");
        let whole = self.rest.rfind('\n').map_or(0, |end| end + 1);
        for line in self.rest.drain(..whole).as_str().lines() {
            match Line::parse(line) {
                Some(Line::Granted { .. }) => self.seen.holds = true,
                Some(Line::Ended { .. }) => self.seen.holds = false,
                Some(Line::Wrote { .. }) => self.seen.increments += 1,
                Some(Line::Tasks { count }) => self.seen.tasks = count,
                _ => {}
            }
        }
        self.seen
    }
}

/// What a worker has of the machine.
struct Footprint {
    resident_kib: u64,
    files: usize,
    threads: usize,
    tasks: usize,
}

impl Worker {
    fn footprint(&mut self) -> Footprint {
        let place = PathBuf::from(format!("/proc/{}", self.process.id()));
        let status = std::fs::read_to_string(place.join("status")).unwrap_or_default();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap_or_default();
        let resident_kib = line.split_whitespace().next().and_then(|kib| kib.parse().ok()).unwrap_or(0);
        let count = |folder: &str| std::fs::read_dir(place.join(folder)).map_or(0, Iterator::count);
        let (files, threads) = (count("fd"), count("task"));
        Footprint { resident_kib, files, threads, tasks: self.log.read().tasks }
    }
}

impl Footprint {
    fn has_grown_since(&self, before: &Footprint) -> bool {
        self.resident_kib > before.resident_kib + GROWTH_KIB
            || self.files > before.files + GROWTH_FILES
            || self.threads > before.threads + GROWTH_TASKS
            || self.tasks > before.tasks + GROWTH_TASKS
    }
}

impl fmt::Display for Footprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Footprint { resident_kib, files, threads, tasks } = self;
        write!(f, "{resident_kib} KiB, {files} files, {threads} threads, {tasks} tasks")
    }
}
