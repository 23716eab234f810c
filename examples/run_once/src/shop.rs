//! The database of a shop, and its migration from schema 1 (customers) to schema 2 (people and their emails).
//!
//! The migration knows nothing of locks. It goes in steps, each one transaction, and each finds out from the database
//! itself what comes next: so whoever holds the lock goes on where the last holder stopped, wherever that was. The lock
//! keeps two from working at the same time. A holder that is late (one that was paused and does not know it yet) is stopped
//! here, by what only the store can do: it looks and writes in one transaction, so nothing is copied or completed twice.

use std::path::{Path, PathBuf};
use std::time::Duration;

use rusqlite::{Connection, OpenFlags, OptionalExtension, Transaction, TransactionBehavior};

const CUSTOMERS: u32 = 600;
const ROWS_A_STEP: u32 = 100;

/// For how long a transaction waits for another process that has the file.
const BUSY_AT_MOST: Duration = Duration::from_millis(200);

pub(crate) struct Shop {
    db: Connection,
    path: PathBuf,
}

/// How far the migration has come.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Standing {
    NotBegun,
    HalfDone { copied: u32 },
    Done { by: String },
}

/// What one step did.
pub(crate) enum Step {
    CreatedTables,
    Copied { so_far: u32 },
    Completed,
    NothingToDo { done_by: String },
}

impl Shop {
    /// Makes a shop of schema 1, unless the file is a shop already.
    pub(crate) fn prepare(path: &Path) -> rusqlite::Result<()> {
        let mut db = Connection::open(path)?;
        db.busy_timeout(BUSY_AT_MOST)?;
        let change = db.transaction_with_behavior(TransactionBehavior::Immediate)?;
        if !has_table(&change, "schema_version")? {
            change.execute_batch(
                "CREATE TABLE schema_version (version INTEGER NOT NULL);
                 INSERT INTO schema_version VALUES (1);
                 CREATE TABLE migrations (version INTEGER NOT NULL, ran_by TEXT NOT NULL, at TEXT NOT NULL);
                 CREATE TABLE customers (id INTEGER PRIMARY KEY, full_name TEXT NOT NULL, email TEXT NOT NULL);",
            )?;
            let mut customer = change.prepare("INSERT INTO customers (full_name, email) VALUES (?1, ?2)")?;
            for number in 1..=CUSTOMERS {
                customer
                    .execute((format!("Given-{number} Family"), format!("Customer{number}@Example.com")))?;
            }
        }
        change.commit()
    }

    pub(crate) fn open(path: &Path) -> rusqlite::Result<Self> {
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let db = Connection::open_with_flags(path, flags)?;
        db.busy_timeout(BUSY_AT_MOST)?;
        let path = path.canonicalize().unwrap_or_else(|_| path.to_owned());
        Ok(Shop { db, path })
    }

    /// The same for all processes that open the same file.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn customers() -> u32 {
        CUSTOMERS
    }

    /// How far the migration has come.
    pub(crate) fn standing(&mut self) -> rusqlite::Result<Standing> {
        standing(&self.db.transaction()?)
    }

    /// Does the next step of the migration, whichever it is. Blocks.
    pub(crate) fn next_step(&mut self, who: &str) -> rusqlite::Result<Step> {
        let change = self.db.transaction_with_behavior(TransactionBehavior::Immediate)?;
        let step = match standing(&change)? {
            Standing::NotBegun => create_tables(&change)?,
            Standing::HalfDone { copied } if copied < CUSTOMERS => copy(&change)?,
            Standing::HalfDone { .. } => complete(&change, who)?,
            Standing::Done { by } => Step::NothingToDo { done_by: by },
        };
        change.commit()?;
        Ok(step)
    }

    /// Who completed the migration, once for each time it was completed.
    pub(crate) fn completions(&self) -> rusqlite::Result<Vec<String>> {
        let mut query = self.db.prepare("SELECT ran_by FROM migrations WHERE version = 2")?;
        query.query_map((), |row| row.get(0))?.collect()
    }

    /// Whether this is schema 2, without a rest of schema 1, and every customer is one person with one email.
    pub(crate) fn is_whole(&self) -> rusqlite::Result<bool> {
        let count = |query| self.db.query_row(query, (), |row| row.get::<_, u32>(0));
        if count("SELECT version FROM schema_version")? != 2 || has_table(&self.db, "customers")? {
            return Ok(false);
        }
        let whole = "SELECT count(*) FROM people JOIN emails ON person_id = people.id
                     WHERE given_name = 'Given-' || people.id AND family_name = 'Family'
                       AND address = 'customer' || people.id || '@example.com'";
        Ok(count(whole)? == CUSTOMERS && count("SELECT count(*) FROM emails")? == CUSTOMERS)
    }
}

fn standing(view: &Transaction<'_>) -> rusqlite::Result<Standing> {
    let by = "SELECT ran_by FROM migrations WHERE version = 2";
    if let Some(by) = view.query_row(by, (), |row| row.get(0)).optional()? {
        return Ok(Standing::Done { by });
    }
    if !has_table(view, "people")? {
        return Ok(Standing::NotBegun);
    }
    let copied = view.query_row("SELECT count(*) FROM people", (), |row| row.get(0))?;
    Ok(Standing::HalfDone { copied })
}

fn create_tables(change: &Transaction<'_>) -> rusqlite::Result<Step> {
    change.execute_batch(
        "CREATE TABLE people (id INTEGER PRIMARY KEY, given_name TEXT NOT NULL, family_name TEXT NOT NULL);
         CREATE TABLE emails (person_id INTEGER NOT NULL REFERENCES people (id), address TEXT NOT NULL);",
    )?;
    Ok(Step::CreatedTables)
}

/// The rows after the last one that was copied.
fn copy(change: &Transaction<'_>) -> rusqlite::Result<Step> {
    let last: i64 = change.query_row("SELECT coalesce(max(id), 0) FROM people", (), |row| row.get(0))?;
    change.execute(
        "INSERT INTO people
         SELECT id, substr(full_name, 1, instr(full_name, ' ') - 1), substr(full_name, instr(full_name, ' ') + 1)
         FROM customers WHERE id > ?1 ORDER BY id LIMIT ?2",
        (last, ROWS_A_STEP),
    )?;
    change.execute(
        "INSERT INTO emails SELECT id, lower(email) FROM customers WHERE id > ?1 ORDER BY id LIMIT ?2",
        (last, ROWS_A_STEP),
    )?;
    let so_far = change.query_row("SELECT count(*) FROM people", (), |row| row.get(0))?;
    Ok(Step::Copied { so_far })
}

fn complete(change: &Transaction<'_>, who: &str) -> rusqlite::Result<Step> {
    change.execute("DROP TABLE customers", ())?;
    change.execute("UPDATE schema_version SET version = 2", ())?;
    change.execute("INSERT INTO migrations VALUES (2, ?1, datetime('now'))", (who,))?;
    Ok(Step::Completed)
}

fn has_table(db: &Connection, name: &str) -> rusqlite::Result<bool> {
    let query = "SELECT count(*) FROM sqlite_schema WHERE type = 'table' AND name = ?1";
    db.query_row(query, (name,), |row| row.get::<_, u32>(0)).map(|tables| tables == 1)
}
