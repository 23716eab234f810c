//! Measures all that are there on the same servers, and writes tables and pictures: see benches/README.md.
//!
//! `compare [--quick] [--only WORD] [--into FOLDER]`, with the folder of the benches as the current one.

use std::path::{Path, PathBuf};
use std::process::Command;

use redlock_bench_peers::measure::{Record, instructions, measure};
use redlock_bench_peers::plan::{cases, programs};
use redlock_bench_peers::report::Results;
use redlock_bench_peers::servers::Servers;
use tokio::signal::unix::{SignalKind, signal};

/// For nine nodes, the most that are measured.
const SERVERS: usize = 9;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<_> = std::env::args().skip(1).collect();
    let value = |name: &str| {
        let place = arguments.iter().position(|argument| argument == name)?;
        arguments.get(place + 1).cloned()
    };
    let quick = arguments.iter().any(|argument| argument == "--quick");
    let into = value("--into").map_or_else(|| PathBuf::from("../../docs/benchmarks"), PathBuf::from);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(run(quick, value("--only"), &into))
}

async fn run(quick: bool, only: Option<String>, into: &Path) -> Result<(), Box<dyn std::error::Error>> {
    let programs = programs(&std::env::current_dir()?);
    let mut cases = cases(quick);
    if let Some(only) = &only {
        cases.retain(|case| case.key().contains(only.as_str()));
    }
    let servers = Servers::start(SERVERS)?;
    let mut terminated = signal(SignalKind::terminate())?;
    // Whatever ends this, the servers are ended with it.
    let records = tokio::select! {
        records = measure(&cases, &programs, &servers) => records,
        _ = terminated.recv() => return Err("terminated".into()),
        _ = tokio::signal::ctrl_c() => return Err("interrupted".into()),
    };
    let instructions = match programs.iter().find(|program| program.id == "round") {
        Some(round) if only.is_none() => count_instructions(round, &servers).await,
        _ => String::new(),
    };
    std::fs::write("target/records.json", serde_json::to_string(&records)?)?;
    std::fs::create_dir_all(into)?;
    let skipped = std::fs::read_to_string("target/skipped.txt").unwrap_or_default();
    let skipped =
        if skipped.is_empty() { skipped } else { format!("Not there, and so not measured:\n\n{skipped}") };
    let about = about(&servers, &records, quick);
    let (text, pictures) = Results::new(&records, &programs).write(&about, &skipped, &instructions);
    std::fs::write(into.join("README.md"), &text)?;
    for (name, picture) in pictures {
        std::fs::write(into.join(name), picture)?;
    }
    println!("{text}");
    Ok(())
}

async fn count_instructions(round: &redlock_bench_peers::plan::Program, servers: &Servers) -> String {
    let mut text = String::new();
    for nodes in [1, 3, 5] {
        match instructions(round, &servers.first(nodes)).await {
            Ok(count) => {
                text +=
                    &format!("* {:.1} k instructions in the client for a pair, N = {nodes}.\n", count / 1e3)
            }
            Err(why) => return format!("* Instructions are not counted: {why}.\n"),
        }
    }
    text
}

/// Machine, noise and date.
fn about(servers: &Servers, records: &[Record], quick: bool) -> String {
    let said = |command: &str, arguments: &[&str]| {
        let done = Command::new(command).args(arguments).output().ok()?;
        Some(String::from_utf8_lossy(&done.stdout).trim().to_owned())
    };
    let date = said("date", &["+%Y-%m-%d"]).unwrap_or_default();
    let commit = said("git", &["describe", "--always", "--dirty"]).unwrap_or_default();
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    let load = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    let load = load.split(' ').next().unwrap_or("?").to_owned();
    let wire: Vec<_> = records
        .iter()
        .filter(|record| record.case == "pairs N=3 tasks=64" && record.program == "wire-1")
        .filter_map(|record| record.figures.get("rate").copied())
        .collect();
    let noise = redlock_bench_peers::statistics::Spread::of(&wire).map_or_else(String::new, |spread| {
        let percent = |value: f64| 100.0 * (value / spread.median - 1.0);
        format!(
            " Noise: the blocks of the wire itself (N = 3, 64 tasks, one thread) lie between {:+.0} % and {:+.0} % of their \
             median.",
            percent(spread.low),
            percent(spread.high)
        )
    });
    let length = if quick { " A short run (`--quick`)." } else { "" };
    format!(
        "Written by `benches/peers/run` on {date}, of {commit}: {cores} cores, loopback, independent {} without \
         persistence, load {load} at the end.{noise}{length} Absolute figures move with the machine; only ratios count. \
         [benches/README.md](../../benches/README.md) says how to read this.\n",
        servers.version()
    )
}
