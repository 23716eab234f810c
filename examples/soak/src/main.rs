//! Worker processes share a counter in a database under a lock, while nodes, networks and the workers themselves fail, as a
//! seed has it. Afterwards it is checked from their logs and the database that no two held at once, and that no increment was
//! lost but those that only a fence could have saved.
//!
//! ```text
//! cargo run --release -p redlock-soak -- 3600              # an hour
//! cargo run --release -p redlock-soak -- 3600 --seed 42    # with the faults of that seed
//! cargo run --release -p redlock-soak -- 5 --apart         # each worker with a lock of its own: this must be found out
//! ```
//!
//! The report is printed, and the timeline drawn: into `soak-SEED.svg` beside the program, or where `--timeline` says.
//!
//! Needs a `redis-server`, or the server that `REDLOCK_TEST_SERVER` names.

#[path = "../../../tests/harness/mod.rs"]
mod harness;
mod log;
mod plan;
mod soak;
mod store;
mod timeline;
mod verdict;
mod worker;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use self::worker::Orders;

/// The first argument of a worker's process.
const WORKER: &str = "worker";

fn main() -> ExitCode {
    let mut arguments = std::env::args().skip(1).peekable();
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    if arguments.next_if(|first| first == WORKER).is_some() {
        let orders = Orders::parse(arguments).expect("arguments of a worker");
        runtime.block_on(worker::work(orders));
        return ExitCode::SUCCESS;
    }
    let Some(wishes) = wishes(arguments) else {
        eprintln!("usage: redlock-soak SECONDS [--seed NUMBER] [--timeline FILE] [--apart]");
        return ExitCode::from(2);
    };
    if runtime.block_on(soak::soak(&wishes)) { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn wishes(mut arguments: impl Iterator<Item = String>) -> Option<soak::Wishes> {
    let length = Duration::from_secs(arguments.next()?.parse().ok()?);
    let (mut seed, mut apart, mut timeline) = (rand::random(), false, None);
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            "--seed" => seed = arguments.next()?.parse().ok()?,
            "--timeline" => timeline = Some(PathBuf::from(arguments.next()?)),
            "--apart" => apart = true,
            _ => return None,
        }
    }
    let timeline = timeline.unwrap_or_else(|| {
        std::env::current_exe().expect("this program").with_file_name(format!("soak-{seed}.svg"))
    });
    Some(soak::Wishes { length, seed, apart, timeline })
}
