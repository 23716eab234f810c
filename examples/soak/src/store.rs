//! A counter in a database, and a list of who wrote what into it. The database keeps its own writes apart, and no more: that
//! nobody writes what it read too long ago is for the lock to see to.

use std::path::Path;
use std::time::Duration;

use rusqlite::{Connection, TransactionBehavior};

use crate::harness::witness::Moment;

/// For how long a write waits for another process that has the database. One that stands still may have it for longer.
const BUSY_AT_MOST: Duration = Duration::from_millis(100);

pub(crate) struct Store(Connection);

/// One write, in the order in which the database has them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Write {
    pub(crate) worker: String,
    pub(crate) number: u64,
    /// What the worker had read; it wrote one more.
    pub(crate) read: u64,
    /// When the worker last asked its guard, and when it had the database to itself.
    pub(crate) checked: Moment,
    pub(crate) written: Moment,
}

impl Store {
    pub(crate) fn create(path: &Path) -> rusqlite::Result<Self> {
        let store = Store::open(path)?;
        store.0.execute_batch(
            "PRAGMA journal_mode = WAL;
             CREATE TABLE counter (value INTEGER NOT NULL);
             INSERT INTO counter VALUES (0);
             CREATE TABLE writes (
                 place INTEGER PRIMARY KEY, worker TEXT NOT NULL, number INTEGER NOT NULL,
                 read INTEGER NOT NULL, checked INTEGER NOT NULL, written INTEGER NOT NULL
             );",
        )?;
        Ok(store)
    }

    pub(crate) fn open(path: &Path) -> rusqlite::Result<Self> {
        let connection = Connection::open(path)?;
        connection.busy_timeout(BUSY_AT_MOST)?;
        // Processes are killed here, and the machine is not.
        connection.execute_batch("PRAGMA synchronous = OFF;")?;
        Ok(Store(connection))
    }

    pub(crate) fn counter(&self) -> rusqlite::Result<u64> {
        self.0.query_row("SELECT value FROM counter", (), |row| row.get(0))
    }

    /// Writes one more than was read, whatever the counter is by now. False if another process had the database for too long.
    pub(crate) fn write(
        &mut self,
        worker: &str,
        number: u64,
        read: u64,
        checked: Moment,
    ) -> rusqlite::Result<bool> {
        let asked = Moment::now();
        let change = self.0.transaction_with_behavior(TransactionBehavior::Immediate)?;
        let written = Moment::now();
        // Where another process stands still in the middle of a commit, SQLite waits for longer than it was told to.
        if written.since(asked) > BUSY_AT_MOST * 2 {
            return Ok(false);
        }
        change.execute("UPDATE counter SET value = ?1", (read + 1,))?;
        change.execute(
            "INSERT INTO writes (worker, number, read, checked, written) VALUES (?1, ?2, ?3, ?4, ?5)",
            (worker, number, read, checked.0, written.0),
        )?;
        change.commit()?;
        Ok(true)
    }

    pub(crate) fn writes(&self) -> rusqlite::Result<Vec<Write>> {
        let mut query =
            self.0.prepare("SELECT worker, number, read, checked, written FROM writes ORDER BY place")?;
        let writes = query.query_map((), |row| {
            Ok(Write {
                worker: row.get(0)?,
                number: row.get(1)?,
                read: row.get(2)?,
                checked: Moment(row.get(3)?),
                written: Moment(row.get(4)?),
            })
        })?;
        writes.collect()
    }
}
