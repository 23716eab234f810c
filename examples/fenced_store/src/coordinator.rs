//! Stands for whatever runs the two workers, and for what stops one of them. Takes no lock for itself.
//!
//! Nothing here waits for a time: the first worker is stopped when it says that it is about to write, and woken up when the
//! second has ended, which it cannot before the lock of the first is over.

use std::error::Error;
use std::fmt::Display;
use std::fs;
use std::io::{self, BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use redlock_quorum::AcquireError;
use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, kill_process, waitid};

use crate::account::Account;
use crate::worker::{ABOUT_TO_WRITE, Store};
use crate::{TTL, client};

const AT_FIRST: i64 = 100;
const DEPOSITS: [(&str, i64); 2] = [("first", 30), ("second", 50)];

pub(crate) fn coordinate(database: Option<PathBuf>) -> Result<(), Box<dyn Error>> {
    let database = Database::named_or_temporary(database)?;
    let account = Account::open(&database.file)?;
    say(format_args!("the database is {}", database.file.display()));
    see_that_the_nodes_count()?;

    println!("\nAct 1: the account takes whatever is written\n");
    let careless = play(Store::Careless, &account)?;
    println!("\nAct 2: the account asks for the fence, for reads and for writes\n");
    let fenced = play(Store::Fenced, &account)?;

    let [(_, stale), (_, lost)] = DEPOSITS;
    println!();
    if careless != AT_FIRST + stale {
        return Err(format!("act 1 should have shown a lost update, and the balance is {careless}").into());
    }
    say(format_args!("without the fence {lost} euros were lost that had been paid in under the lock"));
    if fenced != AT_FIRST + stale + lost {
        return Err(format!("act 2 should have lost nothing, and the balance is {fenced}").into());
    }
    say("with the fence the late write was refused, and nothing was lost: good");
    Ok(())
}

/// A node that may have forgotten fences does not count before the longest ttl has passed: a new one does not, nor one that was
/// restarted. Acquiring would wait for that by itself. But where nothing can be held, an operator may say so.
#[tokio::main(flavor = "current_thread")]
async fn see_that_the_nodes_count() -> Result<(), Box<dyn Error>> {
    let redlock = client("coordinator")?.connect().await?;
    match redlock.fenced_mutex("probe").try_acquire().await {
        Ok(_) => say("the nodes know this example: its fences go on from where they were"),
        Err(AcquireError::NotReady { .. }) => {
            say("the nodes do not count yet: they are new to this example, or were restarted");
            redlock.bootstrap().await?;
            say("nobody holds a lock of this example yet: `bootstrap` tells them so, and now they count");
        }
        Err(error) => return Err(error.into()),
    }
    redlock.shutdown(TTL).await;
    Ok(())
}

/// The balance when both deposits were acknowledged.
fn play(store: Store, account: &Account) -> Result<i64, Box<dyn Error>> {
    account.overwrite(AT_FIRST)?;
    let [first, second] = DEPOSITS;
    say(format_args!(
        "the balance is {AT_FIRST} euros; {} pays in {}, {} pays in {}",
        first.0, first.1, second.0, second.1
    ));

    let mut first = Worker::start(first, store, account.path())?;
    if !first.is_about_to_write()? {
        return Err("the first worker ended before it wrote anything".into());
    }
    first.stop()?;
    say("stops first, right there between its read and its write: SIGSTOP");

    let mut second = Worker::start(second, store, account.path())?;
    second.see_it_end()?;

    say("lets first go on: SIGCONT");
    first.wake()?;
    first.see_it_end()?;

    let balance = account.balance()?;
    let paid_in: i64 = DEPOSITS.iter().map(|(_, euros)| euros).sum();
    say(format_args!(
        "{AT_FIRST} and two deposits, {paid_in} together, are {}; the balance is {balance}",
        AT_FIRST + paid_in
    ));
    Ok(balance)
}

fn say(what: impl Display) {
    tell("coordinator", what);
}

fn tell(who: &str, what: impl Display) {
    println!("{who:<11} | {what}");
}

/// A worker, with the pipes over which it says what it does and is told that it may write. Killed when dropped, stopped or not.
struct Worker {
    name: &'static str,
    process: Child,
    word: ChildStdin,
    told: BufReader<ChildStdout>,
}

impl Worker {
    fn start((name, euros): (&'static str, i64), store: Store, database: &Path) -> io::Result<Self> {
        let mut process = Command::new(std::env::current_exe()?)
            .args(["worker", name, store.word(), &euros.to_string()])
            .arg(database)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let word = process.stdin.take().expect("a pipe");
        let told = BufReader::new(process.stdout.take().expect("a pipe"));
        Ok(Worker { name, process, word, told })
    }

    /// Passes on what it says, until it is about to write; false if it ended instead.
    fn is_about_to_write(&mut self) -> io::Result<bool> {
        let mut line = String::new();
        while self.told.read_line(&mut line)? > 0 {
            tell(self.name, line.trim_end());
            if line.contains(ABOUT_TO_WRITE) {
                return Ok(true);
            }
            line.clear();
        }
        Ok(false)
    }

    fn let_it_write(&mut self) -> io::Result<()> {
        self.word.write_all(b"write\n")
    }

    /// Until all its threads stand still.
    fn stop(&self) -> Result<(), Box<dyn Error>> {
        kill_process(self.pid(), Signal::STOP)?;
        // It stays a child to be waited for: NOWAIT.
        let either = WaitIdOptions::STOPPED | WaitIdOptions::EXITED | WaitIdOptions::NOWAIT;
        match waitid(WaitId::Pid(self.pid()), either)? {
            Some(status) if status.stopped() => Ok(()),
            _ => Err(format!("{} ended when it was to be stopped", self.name).into()),
        }
    }

    fn wake(&mut self) -> io::Result<()> {
        kill_process(self.pid(), Signal::CONT)?;
        self.let_it_write()
    }

    /// That it ends well is the acknowledgement of its deposit.
    fn see_it_end(&mut self) -> Result<(), Box<dyn Error>> {
        while self.is_about_to_write()? {
            self.let_it_write()?;
        }
        let ended = self.process.wait()?;
        if ended.success() { Ok(()) } else { Err(format!("{} did not end well: {ended}", self.name).into()) }
    }

    fn pid(&self) -> Pid {
        Pid::from_child(&self.process)
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

struct Database {
    file: PathBuf,
    /// Removed in the end.
    folder: Option<PathBuf>,
}

impl Database {
    fn named_or_temporary(name: Option<PathBuf>) -> io::Result<Self> {
        if let Some(file) = name {
            return Ok(Database { file, folder: None });
        }
        let folder = std::env::temp_dir().join(format!("redlock-fenced-store-{}", std::process::id()));
        fs::create_dir(&folder)?;
        Ok(Database { file: folder.join("account.db"), folder: Some(folder) })
    }
}

impl Drop for Database {
    fn drop(&mut self) {
        if let Some(folder) = &self.folder {
            let _ = fs::remove_dir_all(folder);
        }
    }
}
