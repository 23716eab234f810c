//! Measures: one program after the other, again and again, so that the machine's moods hit all alike.

use std::collections::BTreeMap;
use std::process::Stdio;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};
use tokio::process::Command;
use tokio::time::timeout;

use crate::block::{Order, Outcome};
use crate::plan::{Case, Program};
use crate::servers::{Monitor, Servers, Work};
use crate::statistics::quantile;

/// How much longer than it should a program may take before it is said to hang.
const PATIENCE: Duration = Duration::from_secs(12);

/// What one program did in one block.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Record {
    /// The case.
    pub case: String,
    /// Who.
    pub program: String,
    /// Blocks of one number were measured one after the other.
    pub block: usize,
    /// What was measured, by name.
    pub figures: BTreeMap<String, f64>,
    /// Why nothing was measured, if so.
    pub failure: Option<String>,
}

/// Measures all cases, and says on standard error how far it is.
pub async fn measure(cases: &[Case], programs: &[Program], servers: &Servers) -> Vec<Record> {
    let mut records = Vec::new();
    for (number, case) in cases.iter().enumerate() {
        eprintln!("{:3}/{} {}", number + 1, cases.len(), case.key());
        let taking_part: Vec<_> =
            case.programs.iter().filter_map(|id| programs.iter().find(|program| program.id == *id)).collect();
        let nodes = servers.first(case.nodes);
        for block in 0..case.blocks {
            // Nobody is always the one who comes after the same other.
            for turn in 0..taking_part.len() {
                let program = taking_part[(turn + block) % taking_part.len()];
                records.push(one_block(case, program, &nodes, block).await);
            }
        }
        if case.counts_commands() {
            for block in case.blocks..case.blocks + case.blocks.div_ceil(3) {
                for program in &taking_part {
                    records.push(count_commands(case, program, &nodes, block).await);
                }
            }
        }
    }
    records
}

async fn one_block(case: &Case, program: &Program, nodes: &[String], block: usize) -> Record {
    Servers::flush(nodes);
    let before = Work::of(nodes);
    let outcome = perform(case, program, nodes).await;
    let work = Work::of(nodes).since(&before);
    // Nothing that was done is no figure that may be left out.
    let done = outcome.and_then(|outcome| match outcome.count() {
        0 => Err("has done nothing".to_owned()),
        _ => Ok(figures(case, &outcome, &work)),
    });
    record(case, program, block, done)
}

/// A block in which nothing else is measured: the servers are slower while they tell what they are sent.
async fn count_commands(case: &Case, program: &Program, nodes: &[String], block: usize) -> Record {
    Servers::flush(nodes);
    let monitor = Monitor::start(nodes).expect("the servers run");
    let outcome = perform(case, program, nodes).await;
    let sent = monitor.stop().expect("the servers run") as f64;
    let each = |outcome: Outcome| BTreeMap::from([("commands".to_owned(), sent / outcome.total as f64)]);
    record(case, program, block, outcome.map(each))
}

async fn perform(case: &Case, program: &Program, nodes: &[String]) -> Result<Outcome, String> {
    let order = case.order(program, nodes.to_vec());
    if case.work == "processes" {
        many(program, &order, case.tasks).await
    } else {
        one(program, &order).await
    }
}

fn record(
    case: &Case,
    program: &Program,
    block: usize,
    measured: Result<BTreeMap<String, f64>, String>,
) -> Record {
    let (figures, failure) = match measured {
        Ok(figures) => (figures, None),
        Err(failure) => (BTreeMap::new(), Some(failure)),
    };
    if let Some(failure) = &failure {
        eprintln!("        {}: {failure}", program.name);
    }
    Record { case: case.key(), program: program.id.to_owned(), block, figures, failure }
}

async fn one(program: &Program, order: &Order) -> Result<Outcome, String> {
    let mut command = Command::new(&program.command[0]);
    command.args(&program.command[1..]).args(order.to_args());
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    let bound = Duration::from_secs_f64(3.0 * order.seconds + order.warm_up) + PATIENCE;
    let done = timeout(bound, command.output()).await.map_err(|_| "hangs".to_owned())?;
    let done = done.map_err(|error| error.to_string())?;
    if !done.status.success() {
        let said = String::from_utf8_lossy(&done.stderr);
        // What a panic says stands below where it was.
        let told =
            said.lines().skip_while(|line| !line.contains("panicked at")).nth(1).or(said.lines().last());
        return Err(format!("{}: {}", done.status, told.unwrap_or("it said nothing")));
    }
    serde_json::from_slice(&done.stdout).map_err(|error| error.to_string())
}

/// So many processes, which begin together.
async fn many(program: &Program, order: &Order, processes: usize) -> Result<Outcome, String> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970");
    let until_all_run = Duration::from_millis(400 + 15 * processes as u64);
    let start_at = u64::try_from((now + until_all_run).as_millis()).expect("not so late");
    let order = Order { start_at: Some(start_at), ..order.clone() };
    let running: Vec<_> = (0..processes)
        .map(|_| {
            let (program, order) = (program.clone(), order.clone());
            tokio::spawn(async move { one(&program, &order).await })
        })
        .collect();
    let mut together = Outcome { seconds: order.seconds, ..Outcome::default() };
    let mut failure = None;
    for process in running {
        match process.await.expect("no panic") {
            Ok(outcome) => {
                together.counts.extend(outcome.counts);
                together.total += outcome.total;
                together.waits_us.extend(outcome.waits_us);
                together.cpu_us += outcome.cpu_us;
            }
            Err(why) => failure = Some(why),
        }
    }
    failure.map_or(Ok(together), Err)
}

/// What is kept of a block.
fn figures(case: &Case, outcome: &Outcome, work: &Work) -> BTreeMap<String, f64> {
    let mut figures = BTreeMap::new();
    let count = outcome.count() as f64;
    let mut put = |name: &str, value: f64| {
        if value.is_finite() {
            figures.insert(name.to_owned(), value);
        }
    };
    put("rate", outcome.rate());
    put("count", count);
    put("cpu", outcome.cpu_us / count);
    put("server cpu", work.cpu_us / outcome.total as f64);
    let counts = || outcome.counts.iter().map(|count| *count as f64);
    put("fairness", counts().fold(f64::INFINITY, f64::min) / counts().fold(0.0, f64::max));
    put("ns", 1e9 * outcome.seconds / count);
    for (name, part) in [("p50", 0.5), ("p99", 0.99), ("max", 1.0)] {
        if let Some(wait) = quantile(&outcome.waits_us, part) {
            put(name, wait);
        }
    }
    // Those who are held or wait, not those that come and go, are what these bytes are about.
    let each = if matches!(case.work, "held" | "waiters") { case.tasks as f64 } else { count };
    if let Some(allocations) = outcome.allocations {
        put("allocations", allocations as f64 / each);
    }
    if let Some(bytes) = outcome.bytes {
        put("bytes", bytes as f64 / each);
    }
    figures
}

/// The instructions of one pair, if valgrind is there: what more pairs cost than fewer.
pub async fn instructions(round: &Program, nodes: &[String]) -> Result<f64, String> {
    let mut counts = Vec::new();
    for pairs in [200, 700] {
        Servers::flush(nodes);
        let order = Order {
            of: "redlock-quorum".to_owned(),
            nodes: nodes.to_vec(),
            work: "fixed".to_owned(),
            tasks: pairs,
            seconds: 0.0,
            warm_up: 0.0,
            threads: 1,
            start_at: None,
        };
        let mut command = Command::new("valgrind");
        command.args(["--tool=callgrind", "--callgrind-out-file=/dev/null"]).arg(&round.command[0]);
        command.args(order.to_args()).stdin(Stdio::null()).kill_on_drop(true);
        let done = timeout(Duration::from_secs(60), command.output()).await.map_err(|_| "valgrind hangs")?;
        let done = done.map_err(|error| format!("valgrind does not run: {error}"))?;
        let said = String::from_utf8_lossy(&done.stderr);
        let count =
            said.lines().find_map(|line| line.split("Collected : ").nth(1)?.trim().parse::<f64>().ok());
        match count {
            Some(count) if done.status.success() => counts.push(count),
            _ => return Err(format!("valgrind: {}", done.status)),
        }
    }
    Ok((counts[1] - counts[0]) / 500.0)
}
