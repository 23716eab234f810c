//! Several machines start at the same moment, and each finds that the database must be migrated. One does it; the others
//! wait, see that it is done, and go on.
//!
//! ```console
//! $ eval "$(deploy/redis-cluster/redis-cluster start)"
//! $ cargo run -p redlock-example-run-once
//! ```
//!
//! The migration takes three seconds and the ttl is one: a lock is renewed for as long as its holder lives, so the ttl says
//! how soon another may take over from one that died, not how long the work may take. Kill the worker that migrates, by the
//! process number that it prints, and watch.

mod shop;

use std::error::Error;
use std::fmt::Display;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode};
use std::time::{Duration, Instant};

use redlock_quorum::{Guard, Mutex, RedlockBuilder, RunError, WithinError};
use tokio::task::block_in_place;
use tokio::time::sleep;

use crate::shop::{Shop, Standing, Step};

const DEFAULT_WORKERS: NonZeroUsize = NonZeroUsize::new(5).expect("5 is not zero");

const TTL: Duration = Duration::from_secs(1);

/// What a step's transaction may take, waiting for the file included.
const STEP_AT_MOST: Duration = Duration::from_millis(300);

/// A real migration takes long because there is much to do. This one rests between its steps.
const REST: Duration = Duration::from_millis(420);

/// How often a worker asks for the lock.
const ATTEMPTS: usize = 5;

const USAGE: &str = "\
usage: redlock-example-run-once [--workers N] [DATABASE]   N workers at once (default 5), and a look at the result
       redlock-example-run-once prepare DATABASE           a database that is not migrated yet
       redlock-example-run-once worker NAME DATABASE       one worker";

const NO_NODES: &str = "\
REDLOCK_NODES is not set: the workers are processes of their own, and need real nodes. To start five:

    eval \"$(deploy/redis-cluster/redis-cluster start)\"
    cargo run -p redlock-example-run-once
    deploy/redis-cluster/redis-cluster stop
";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let Some(task) = Task::read(&arguments) else {
        eprintln!("{USAGE}");
        return ExitCode::from(2);
    };
    if task.needs_nodes() && std::env::var_os("REDLOCK_NODES").is_none_or(|nodes| nodes.is_empty()) {
        eprint!("{NO_NODES}");
        return ExitCode::from(2);
    }
    let ended = match task {
        Task::Prepare(database) => Shop::prepare(&database).map_err(Into::into),
        Task::Work { name, database } => {
            work(&name, &database).map_err(|error| format!("{name:<11} | failed: {error}").into())
        }
        Task::Coordinate { workers, database } => coordinate(workers, &database),
    };
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

enum Task {
    Coordinate { workers: NonZeroUsize, database: PathBuf },
    Prepare(PathBuf),
    Work { name: String, database: PathBuf },
}

impl Task {
    fn read(arguments: &[&str]) -> Option<Self> {
        let (workers, rest) = match arguments {
            ["prepare", database] => return Some(Task::Prepare(database.into())),
            ["worker", name, database] => {
                return Some(Task::Work { name: (*name).to_owned(), database: database.into() });
            }
            ["--workers", workers, rest @ ..] => (workers.parse().ok()?, rest),
            rest => (DEFAULT_WORKERS, rest),
        };
        let database = match rest {
            [] => std::env::temp_dir().join("redlock-run-once.db"),
            [database] if !database.starts_with('-') => database.into(),
            _ => return None,
        };
        Some(Task::Coordinate { workers, database })
    }

    fn needs_nodes(&self) -> bool {
        !matches!(self, Task::Prepare(_))
    }
}

/// Stands for whatever starts the machines. Takes no lock itself.
fn coordinate(workers: NonZeroUsize, database: &Path) -> Result<(), Box<dyn Error>> {
    let say = |what: &dyn Display| println!("{:<11} | {what}", "coordinator");
    Shop::prepare(database)?;
    let mut shop = Shop::open(database)?;
    say(&format_args!("the database is {}", database.display()));
    if shop.standing()? != Standing::NotBegun {
        say(&"somebody was here before; remove the file to see it from the beginning");
    }
    say(&format_args!("{workers} workers start at once"));
    let names = (1..=workers.get()).map(|number| format!("worker-{number}"));
    let processes: Vec<_> = names.map(|name| (start(&name, database), name)).collect();
    let mut failed = 0;
    for (process, name) in processes {
        let ended = process?.wait()?;
        if !ended.success() {
            say(&format_args!("{name} did not end well: {ended}"));
        }
        // One that was killed is part of the story, as long as another took over.
        failed += usize::from(ended.code().is_some_and(|code| code != 0));
    }
    let completions = shop.completions()?;
    match completions.as_slice() {
        [] => say(&"the database says: not completed"),
        by => say(&format_args!("the database says: completed {} time(s), by {}", by.len(), by.join(", "))),
    }
    if completions.len() != 1 || !shop.is_whole()? || failed > 0 {
        return Err("the migration did not run exactly once to its end".into());
    }
    say(&format_args!("all {} rows are there, each once: good", Shop::customers()));
    Ok(())
}

fn start(name: &str, database: &Path) -> std::io::Result<Child> {
    Command::new(std::env::current_exe()?).arg("worker").arg(name).arg(database).spawn()
}

/// One machine that has just been started.
#[tokio::main]
async fn work(name: &str, database: &Path) -> Result<(), Box<dyn Error>> {
    let redlock = RedlockBuilder::from_env()?.holder(name).ttl(TTL).connect().await?;
    let shop = Shop::open(database)?;
    // One lock for one database: what is locked is named by what is protected.
    let mutex = redlock
        .mutex(format!("migrate{}", shop.path().display()))
        .metadata("schema 1 to 2")
        .wait(Duration::from_secs(60));
    let result = Worker { name, shop }.see_it_migrated(&mutex).await;
    // Otherwise the process might end before its last release is sent.
    redlock.shutdown(TTL).await;
    result
}

struct Worker<'a> {
    name: &'a str,
    shop: Shop,
}

/// Why a migration stopped on its way.
enum Stop {
    TooLate(WithinError),
    Database(rusqlite::Error),
}

impl From<WithinError> for Stop {
    fn from(error: WithinError) -> Self {
        Stop::TooLate(error)
    }
}

impl From<rusqlite::Error> for Stop {
    fn from(error: rusqlite::Error) -> Self {
        Stop::Database(error)
    }
}

impl Worker<'_> {
    async fn see_it_migrated(&mut self, mutex: &Mutex) -> Result<(), Box<dyn Error>> {
        self.say(format_args!("process {} asks for the lock", std::process::id()));
        for _ in 0..ATTEMPTS {
            match mutex.run(async |guard| self.migrate(guard).await).await {
                Ok(Ok(())) => return Ok(()),
                Ok(Err(Stop::Database(error))) => return Err(error.into()),
                // What was done stays done, and whoever has the lock next goes on from there.
                Ok(Err(Stop::TooLate(error))) => {
                    self.say(format_args!("stops before a step that may not fit: {error}"));
                }
                Err(RunError::Lost) => self.say("lost the lock and asks again"),
                Err(error) => return Err(error.into()),
            }
        }
        Err("lost the lock each time".into())
    }

    /// Runs under the lock: dropped at one of its awaits if the lock is lost.
    async fn migrate(&mut self, guard: &Guard) -> Result<(), Stop> {
        let began = Instant::now();
        match block_in_place(|| self.shop.standing())? {
            Standing::Done { by } => {
                self.say(format_args!("has the lock, finds it done by {by}, skips it"));
                return Ok(());
            }
            Standing::NotBegun => self.say("has the lock, migrates"),
            Standing::HalfDone { copied } => {
                self.say(format_args!("has the lock, finds {copied} rows copied, goes on from there"));
            }
        }
        loop {
            // A transaction cannot be dropped halfway, so none begins that may outlast the lock. The runtime is told that
            // this thread blocks: the renewals go on meanwhile.
            guard.within(STEP_AT_MOST)?;
            let step = block_in_place(|| self.shop.next_step(self.name))?;
            let (since, remaining) = (began.elapsed().as_millis(), guard.remaining().as_millis());
            let what = match &step {
                Step::CreatedTables => "created the new tables".to_owned(),
                Step::Copied { so_far } => format!("copied {so_far} of {} rows", Shop::customers()),
                Step::Completed => "removed the old table: done".to_owned(),
                Step::NothingToDo { done_by } => format!("done by {done_by} meanwhile"),
            };
            self.say(format_args!(
                "{what:<27} | {since:>4} ms on, the lock is valid for another {remaining} ms"
            ));
            if let Step::Completed | Step::NothingToDo { .. } = step {
                return Ok(());
            }
            sleep(REST).await;
        }
    }

    fn say(&self, what: impl Display) {
        println!("{:<11} | {what}", self.name);
    }
}
