//! An account in a database that refuses whoever is not the last holder of its lock. This is the part to copy: one column more
//! beside what is guarded, the largest fence that has been seen here, and a condition in the statements.
//!
//! Why a read is fenced, too: say A has the lock with fence 33 and is paused, and B gets it with fence 34. If B only looked, the
//! account would still know no fence above 33, and the late write of A would be accepted *after* B has looked. B would then
//! write what it computed from a balance that is no more, and the deposit of A, which was acknowledged, would be lost. So
//! whoever reads in order to write claims the account first: from then on, all that is older is refused.

use std::fmt;
use std::path::{Path, PathBuf};

use redlock_quorum::Fence;
use rusqlite::Connection;

/// There could be many, each with a lock of its own and the fences of that lock.
const ID: &str = "joint";

pub(crate) struct Account {
    db: Connection,
    path: PathBuf,
}

#[derive(Debug)]
pub(crate) enum StoreError {
    /// A later holder of the lock has been here. So the lock is lost, whether or not that is known already, and what was read
    /// is old: begin again, under a new lock.
    Stale {
        fence: Fence,
        seen: Fence,
    },
    Database(rusqlite::Error),
}

impl fmt::Display for StoreError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            StoreError::Stale { fence, seen } => {
                write!(f, "the account has seen fence {seen}, this one is {fence}")
            }
            StoreError::Database(error) => error.fmt(f),
        }
    }
}

impl std::error::Error for StoreError {}

impl From<rusqlite::Error> for StoreError {
    fn from(error: rusqlite::Error) -> Self {
        StoreError::Database(error)
    }
}

impl Account {
    /// The balance, for a holder who is going to write.
    pub(crate) fn read(&self, fence: Fence) -> Result<i64, StoreError> {
        self.claim(fence)?;
        self.balance()
    }

    /// Sets the balance, unless a later holder has been here.
    pub(crate) fn write(&self, fence: Fence, balance: i64) -> Result<(), StoreError> {
        // The check and the write are one statement, so nobody comes in between. An equal fence is the same holder's.
        let write = "UPDATE accounts SET balance = ?3, fence = ?1 WHERE id = ?2 AND fence <= ?1";
        self.accepted(fence, self.db.execute(write, (fence.as_u64(), ID, balance))?)
    }

    /// From here on, whoever held the lock before is refused.
    fn claim(&self, fence: Fence) -> Result<(), StoreError> {
        let claim = "UPDATE accounts SET fence = ?1 WHERE id = ?2 AND fence <= ?1";
        self.accepted(fence, self.db.execute(claim, (fence.as_u64(), ID))?)
    }

    fn accepted(&self, fence: Fence, rows: usize) -> Result<(), StoreError> {
        if rows == 1 {
            return Ok(());
        }
        let seen = "SELECT fence FROM accounts WHERE id = ?1";
        let seen = Fence::new(self.db.query_row(seen, (ID,), |row| row.get(0))?);
        Err(StoreError::Stale { fence, seen })
    }
}

/// The same without a fence, and what else there is to an account.
impl Account {
    pub(crate) fn open(path: &Path) -> rusqlite::Result<Self> {
        let db = Connection::open(path)?;
        db.execute_batch(
            "CREATE TABLE IF NOT EXISTS accounts (
                 id TEXT PRIMARY KEY, balance INTEGER NOT NULL, fence INTEGER NOT NULL DEFAULT 0
             )",
        )?;
        db.execute("INSERT INTO accounts (id, balance) VALUES (?1, 0) ON CONFLICT DO NOTHING", (ID,))?;
        let path = path.canonicalize().unwrap_or_else(|_| path.to_owned());
        Ok(Account { db, path })
    }

    /// The same for all processes that open the same file.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// For whoever only wants to know. Nobody should compute from it what is written.
    pub(crate) fn balance(&self) -> Result<i64, StoreError> {
        Ok(self.db.query_row("SELECT balance FROM accounts WHERE id = ?1", (ID,), |row| row.get(0))?)
    }

    /// Sets the balance, whoever asks.
    pub(crate) fn overwrite(&self, balance: i64) -> Result<(), StoreError> {
        self.db.execute("UPDATE accounts SET balance = ?2 WHERE id = ?1", (ID, balance))?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: Fence = Fence::new(33);
    const B: Fence = Fence::new(34);

    fn account_with_100() -> Account {
        let account = Account::open(Path::new(":memory:")).expect("a database in memory");
        account.overwrite(100).expect("an account");
        account
    }

    #[track_caller]
    fn assert_refused<T: fmt::Debug>(asked: &Result<T, StoreError>) {
        assert!(matches!(asked, Err(StoreError::Stale { fence: A, seen: B })), "{asked:?}");
    }

    #[test]
    fn a_holder_reads_and_writes_as_often_as_it_likes() {
        let account = account_with_100();
        for balance in [100, 130, 160] {
            assert_eq!(account.read(A).expect("nobody was here"), balance);
            account.write(A, balance + 30).expect("nobody else was here");
        }
        assert_eq!(account.read(B).expect("the next holder"), 190);
    }

    #[test]
    fn a_late_write_is_refused_when_the_next_holder_has_written() {
        let account = account_with_100();
        let old = account.read(A).expect("nobody was here");
        let balance = account.read(B).expect("the next holder");
        account.write(B, balance + 50).expect("the last holder");
        assert_refused(&account.write(A, old + 30));
        assert_refused(&account.read(A));
        assert_eq!(account.balance().expect("a balance"), 150);
    }

    /// If reads were not fenced, this write would be accepted, and lost when B writes.
    #[test]
    fn a_late_write_is_refused_when_the_next_holder_has_only_read() {
        let account = account_with_100();
        let old = account.read(A).expect("nobody was here");
        let balance = account.read(B).expect("the next holder");
        assert_refused(&account.write(A, old + 30));
        account.write(B, balance + 50).expect("the last holder");
        assert_eq!(account.balance().expect("a balance"), 150);
    }

    /// Then it is as if A had been faster: B reads what A has written.
    #[test]
    fn a_late_write_is_accepted_while_the_next_holder_has_done_nothing() {
        let account = account_with_100();
        let old = account.read(A).expect("nobody was here");
        account.write(A, old + 30).expect("B has not been here");
        assert_eq!(account.read(B).expect("the next holder"), 130);
    }
}
