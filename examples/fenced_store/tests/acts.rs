//! The example as it is run: real processes, one of them stopped, and three Redis servers of its own.

#[path = "../../run_once/tests/servers/mod.rs"]
mod servers;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use servers::Servers;

/// What a namespace keeps for its fences stays, so that they rise from run to run: that is no lock.
const LOCKS: &str = "fenced-store:*";

#[test]
fn a_late_write_is_accepted_without_the_fence_and_refused_with_it() {
    let servers = Servers::start(3);

    let told = told_by(fenced_store(&servers).env("TMPDIR", &servers.folder.0));

    assert!(told.contains("the nodes do not count yet"), "{told}");
    let [without, with] = acts(&told);
    assert_in_order(
        without,
        &[
            "first       | reads 100, and is about to write 130",
            "coordinator | stops first",
            "second      | reads 100, and is about to write 150",
            "second      | has written 150",
            "second      | 50 euros are paid in",
            "coordinator | lets first go on",
            "first       | has written 130",
            "first       | 30 euros are paid in; the lock had expired before the release, not proven",
            "the balance is 130",
        ],
    );
    assert!(!without.contains("REFUSED"), "{without}");
    assert_in_order(
        with,
        &[
            "first       | reads 100, and is about to write 130",
            "coordinator | stops first",
            "second      | reads 100, and is about to write 150",
            "second      | has written 150",
            "second      | 50 euros are paid in",
            "coordinator | lets first go on",
            "first       | is REFUSED",
            "first       | asks for the lock",
            "first       | reads 150, and is about to write 180",
            "first       | has written 180",
            "first       | 30 euros are paid in",
            "the balance is 180",
        ],
    );
    assert!(!with.contains("has written 130"), "{with}");
    servers.assert_no_key_is_left(LOCKS);
    let left = entries(&servers.folder.0, "redlock-fenced-store");
    assert!(left.is_empty(), "the database was to be removed: {left:?}");
}

#[test]
fn played_again_on_the_same_nodes_and_in_a_database_with_a_name() {
    let servers = Servers::start(3);
    let database = servers.folder.0.join("bank.db");

    let first = told_by(fenced_store(&servers).arg(&database));
    let again = told_by(fenced_store(&servers).arg(&database));

    assert!(first.contains("the nodes do not count yet"), "{first}");
    assert!(again.contains("the nodes know this example"), "{again}");
    let db = rusqlite::Connection::open(&database).expect("a database");
    let accounts = "SELECT balance, fence > 0 FROM accounts";
    let account: (i64, bool) =
        db.query_row(accounts, (), |row| Ok((row.get(0)?, row.get(1)?))).expect("one account");
    assert_eq!(account, (180, true));
    servers.assert_no_key_is_left(LOCKS);
}

#[test]
fn without_nodes_it_says_how_to_start_some() {
    let mut command = Command::new(env!("CARGO_BIN_EXE_redlock-example-fenced-store"));
    let Output { status, stderr, .. } =
        command.env_remove("REDLOCK_NODES").output().expect("the binary runs");

    assert_eq!(status.code(), Some(2));
    assert!(String::from_utf8_lossy(&stderr).contains("deploy/redis-cluster/redis-cluster start"));
}

fn fenced_store(servers: &Servers) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_redlock-example-fenced-store"));
    for variable in ["REDLOCK_NAMESPACE", "REDLOCK_HOLDER", "REDLOCK_TTL_MS", "REDLOCK_WAIT_MS"] {
        command.env_remove(variable);
    }
    command.env("REDLOCK_NODES", servers.addresses());
    command
}

/// What it says, if both acts show what they should.
#[track_caller]
fn told_by(command: &mut Command) -> String {
    let Output { status, stdout, stderr } = command.output().expect("the binary runs");
    let told = String::from_utf8_lossy(&stdout).into_owned();
    assert_eq!(status.code(), Some(0), "{told}{}", String::from_utf8_lossy(&stderr));
    told
}

fn acts(told: &str) -> [&str; 2] {
    let (_, acts) = told.split_once("Act 1:").expect("a first act");
    acts.split_once("Act 2:").expect("a second act").into()
}

#[track_caller]
fn assert_in_order(told: &str, expected: &[&str]) {
    let mut rest = told;
    for words in expected {
        let Some((_, behind)) = rest.split_once(words) else {
            panic!("{words:?} is not where it should be in\n{told}");
        };
        rest = behind;
    }
}

/// What is in a folder whose name begins like this.
fn entries(folder: &Path, beginning: &str) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).expect("a folder").map(|entry| entry.expect("an entry"));
    let ours = entries.filter(|entry| entry.file_name().to_string_lossy().starts_with(beginning));
    ours.map(|entry| entry.path()).collect()
}
