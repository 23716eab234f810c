//! Two processes pay into one account, under one lock. The first is stopped between its read and its write, for longer than
//! its ttl; the second gets the lock, as it should; then the first goes on, and writes.
//!
//! ```console
//! $ eval "$(deploy/redis-cluster/redis-cluster start)"
//! $ cargo run -p redlock-example-fenced-store
//! ```
//!
//! No lock can prevent that write: whoever holds it is a process that may stand still at any moment, and asking the lock once
//! more before the write only makes the gap shorter. The store can, if it remembers the largest fence that it has seen. Both
//! acts have the same lock and the same workers. In the first the account does not ask for the fence, in the second it does:
//! `account.rs` is what there is to copy.

mod account;
mod coordinator;
mod worker;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use redlock_quorum::{RedlockBuilder, SettingsError};

use crate::worker::{Orders, Store};

const TTL: Duration = Duration::from_secs(1);

/// One of its own: all clients of a namespace must have the same nodes and the same longest ttl.
const NAMESPACE: &str = "fenced-store";

const USAGE: &str = "\
usage: redlock-example-fenced-store [DATABASE]   both acts; without a name, in a database that is removed in the end
       redlock-example-fenced-store worker NAME careless|fenced EUROS DATABASE
                                                 one worker, which waits for a line of input before each write";

const NO_NODES: &str = "\
REDLOCK_NODES is not set: the workers are processes of their own, and need real nodes. To start five:

    eval \"$(deploy/redis-cluster/redis-cluster start)\"
    cargo run -p redlock-example-fenced-store
    deploy/redis-cluster/redis-cluster stop
";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let Some(task) = Task::read(&arguments) else {
        eprintln!("{USAGE}");
        return ExitCode::from(2);
    };
    if std::env::var_os("REDLOCK_NODES").is_none_or(|nodes| nodes.is_empty()) {
        eprint!("{NO_NODES}");
        return ExitCode::from(2);
    }
    let ended = match task {
        Task::Coordinate(database) => coordinator::coordinate(database),
        Task::Work(orders) => worker::work(orders),
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
    Coordinate(Option<PathBuf>),
    Work(Orders),
}

impl Task {
    fn read(arguments: &[&str]) -> Option<Self> {
        match arguments {
            [] => Some(Task::Coordinate(None)),
            ["worker", name, store, euros, database] => Some(Task::Work(Orders {
                name: (*name).to_owned(),
                store: Store::read(store)?,
                euros: euros.parse().ok()?,
                database: database.into(),
            })),
            [database] if !database.starts_with('-') => Some(Task::Coordinate(Some(database.into()))),
            _ => None,
        }
    }
}

/// The same rules for all processes of this example.
fn client(holder: &str) -> Result<RedlockBuilder, SettingsError> {
    Ok(RedlockBuilder::from_env()?.namespace(NAMESPACE).holder(holder).ttl(TTL))
}
