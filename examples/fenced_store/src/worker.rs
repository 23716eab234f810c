//! One of the two that pay into the account: takes the lock, reads the balance, adds, and writes the sum.

use std::error::Error;
use std::fmt::Display;
use std::io::stdin;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use redlock_quorum::{FencedGuard, FencedMutex, WithinError};
use tokio::task::block_in_place;

use crate::account::{Account, StoreError};
use crate::{TTL, client};

/// Said between the read and the write. Then the worker waits for a line of its input: so whoever started it can stop it here,
/// where any process may be stopped at any time (by a debugger, by a machine that sleeps or swaps or moves to another host).
pub(crate) const ABOUT_TO_WRITE: &str = "is about to write";

/// What a write may take, waiting for the file included.
const WRITE_AT_MOST: Duration = Duration::from_millis(100);

/// How often a worker asks for the lock.
const ATTEMPTS: usize = 5;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Store {
    /// Takes whatever is written.
    Careless,
    /// Asks for the fence.
    Fenced,
}

impl Store {
    pub(crate) fn read(word: &str) -> Option<Self> {
        [Store::Careless, Store::Fenced].into_iter().find(|store| store.word() == word)
    }

    pub(crate) fn word(self) -> &'static str {
        match self {
            Store::Careless => "careless",
            Store::Fenced => "fenced",
        }
    }
}

pub(crate) struct Orders {
    pub(crate) name: String,
    pub(crate) store: Store,
    pub(crate) euros: i64,
    pub(crate) database: PathBuf,
}

/// Why a deposit was not written.
enum Stop {
    TooLate(WithinError),
    Store(StoreError),
    /// Whoever started this worker is gone.
    NoWord,
}

impl From<WithinError> for Stop {
    fn from(error: WithinError) -> Self {
        Stop::TooLate(error)
    }
}

impl From<StoreError> for Stop {
    fn from(error: StoreError) -> Self {
        Stop::Store(error)
    }
}

#[tokio::main]
pub(crate) async fn work(orders: Orders) -> Result<(), Box<dyn Error>> {
    // Whoever stopped it might be interrupted: then nobody would ever wake it up.
    #[cfg(target_os = "linux")]
    rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL))?;
    let account = Account::open(&orders.database)?;
    let redlock = client(&orders.name)?.connect().await?;
    // One lock for one account: what is locked is named by what is protected.
    let mutex =
        redlock.fenced_mutex(format!("account{}", account.path().display())).wait(Duration::from_secs(60));
    let result = Worker { orders, account }.pay_in(&mutex).await;
    // Otherwise the process might end before its last release is sent.
    redlock.shutdown(TTL).await;
    result
}

struct Worker {
    orders: Orders,
    account: Account,
}

impl Worker {
    async fn pay_in(&self, mutex: &FencedMutex) -> Result<(), Box<dyn Error>> {
        for _ in 0..ATTEMPTS {
            say("asks for the lock");
            let asked = Instant::now();
            let guard = mutex.acquire().await?;
            say(format_args!(
                "has it after {} ms, with fence {}",
                asked.elapsed().as_millis(),
                guard.fence()
            ));
            // The runtime is told that this thread blocks: the renewals go on meanwhile.
            let paid = block_in_place(|| self.pay_in_under(&guard));
            let release = guard.release().await;
            match paid {
                Ok(()) => {
                    // Known after the fact, when it can be an alarm but prevents nothing.
                    let proof = if release.proven == Some(true) { "proven" } else { "not proven" };
                    let (euros, outcome) = (self.orders.euros, release.outcome);
                    say(format_args!(
                        "{euros} euros are paid in; the lock {outcome}, {proof} to have been exclusive"
                    ));
                    return Ok(());
                }
                // Nothing was written, so the deposit can be made again from the beginning.
                Err(Stop::Store(stale @ StoreError::Stale { .. })) => {
                    say(format_args!("is REFUSED: {stale}"));
                }
                Err(Stop::TooLate(error)) => say(format_args!("does not begin what may not fit: {error}")),
                Err(Stop::Store(error)) => return Err(error.into()),
                Err(Stop::NoWord) => return Err("nobody says that it may write".into()),
            }
        }
        Err("lost the lock each time".into())
    }

    fn pay_in_under(&self, guard: &FencedGuard) -> Result<(), Stop> {
        let Orders { store, euros, .. } = self.orders;
        let balance = match store {
            Store::Careless => self.account.balance()?,
            Store::Fenced => self.account.read(guard.fence())?,
        };
        let sum = balance + euros;
        // As it should be: it asks its guard before it writes. That is of no help to one that is stopped right after.
        guard.within(WRITE_AT_MOST)?;
        let valid_for = guard.remaining().as_millis();
        say(format_args!(
            "reads {balance}, and {ABOUT_TO_WRITE} {sum}: its lock is valid for {valid_for} ms"
        ));
        wait_for_word()?;
        match store {
            Store::Careless => self.account.overwrite(sum)?,
            Store::Fenced => self.account.write(guard.fence(), sum)?,
        }
        say(format_args!("has written {sum}"));
        Ok(())
    }
}

fn say(what: impl Display) {
    println!("{what}");
}

fn wait_for_word() -> Result<(), Stop> {
    match stdin().lines().next() {
        Some(Ok(_)) => Ok(()),
        _ => Err(Stop::NoWord),
    }
}
