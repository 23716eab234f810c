//! One block of work by one program: how it is asked for on the command line, and the line that comes back. The programs in
//! other languages speak the same.

use std::collections::HashMap;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

/// What a program is asked to do.
///
/// `--of NAME --nodes HOST:PORT,.. --work WORK --tasks T --seconds S --warm-up S [--threads T] [--start-at UNIX_MS]`
#[derive(Clone, Debug)]
pub struct Order {
    /// Which library.
    pub of: String,
    /// The servers.
    pub nodes: Vec<String>,
    /// `pairs` (a key for each task), `contended` (one client, one key), `clients` (a client for each task, one key),
    /// `handoff` (two clients in turns), `loop` (one key, a task for each core).
    pub work: String,
    /// How many at once.
    pub tasks: usize,
    /// For how long it is measured.
    pub seconds: f64,
    /// For how long it runs before that.
    pub warm_up: f64,
    /// Of the runtime: one, or several.
    pub threads: usize,
    /// When the measuring begins, so that several processes begin together. Ends the warm-up.
    pub start_at: Option<u64>,
}

impl Order {
    /// From the command line.
    pub fn from_args() -> Self {
        let mut given = HashMap::new();
        let mut args = std::env::args().skip(1);
        while let Some(name) = args.next() {
            let value = args.next().unwrap_or_else(|| panic!("{name} needs a value"));
            given.insert(name.trim_start_matches('-').to_owned(), value);
        }
        let get = |name: &str| given.get(name).cloned().unwrap_or_else(|| panic!("--{name} is missing"));
        let number = |name: &str| get(name).parse::<f64>().unwrap_or_else(|_| panic!("--{name}: a number"));
        Order {
            of: get("of"),
            nodes: get("nodes").split(',').map(str::to_owned).collect(),
            work: get("work"),
            tasks: number("tasks") as usize,
            seconds: number("seconds"),
            warm_up: number("warm-up"),
            threads: given.get("threads").map_or(1, |threads| threads.parse().expect("--threads: a number")),
            start_at: given.get("start-at").map(|at| at.parse().expect("--start-at: milliseconds")),
        }
    }

    /// The same, for the command line.
    pub fn to_args(&self) -> Vec<String> {
        let mut args = vec![
            format!("--of={}", self.of),
            format!("--nodes={}", self.nodes.join(",")),
            format!("--work={}", self.work),
            format!("--tasks={}", self.tasks),
            format!("--seconds={}", self.seconds),
            format!("--warm-up={}", self.warm_up),
            format!("--threads={}", self.threads),
        ];
        if let Some(at) = self.start_at {
            args.push(format!("--start-at={at}"));
        }
        args.iter().flat_map(|arg| arg.splitn(2, '=').map(str::to_owned).collect::<Vec<_>>()).collect()
    }

    /// When the measuring begins and when it ends, seen from now.
    pub fn window(&self) -> Window {
        let until_start = match self.start_at {
            Some(at) => {
                let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970");
                Duration::from_millis(at).saturating_sub(now)
            }
            None => Duration::from_secs_f64(self.warm_up),
        };
        let start = Instant::now() + until_start;
        Window { start, end: start + Duration::from_secs_f64(self.seconds) }
    }
}

/// From when to when it is measured.
#[derive(Clone, Copy, Debug)]
pub struct Window {
    /// What is done before is warm-up.
    pub start: Instant,
    /// What is done later is not counted.
    pub end: Instant,
}

/// What came of it.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Outcome {
    /// How long it was measured.
    pub seconds: f64,
    /// Pairs of acquire and release in that time, by each task.
    pub counts: Vec<u64>,
    /// Acquisitions from the start of the program to its end.
    pub total: u64,
    /// How long each acquire (`contended`, `clients`), each pair (`pairs` by one task) or each hand-off took, in microseconds.
    pub waits_us: Vec<f64>,
    /// The processor time of the program while it was measured.
    pub cpu_us: f64,
    /// Allocations and their bytes while it was measured, if the program counts them.
    pub allocations: Option<u64>,
    /// See there.
    pub bytes: Option<u64>,
}

impl Outcome {
    /// Pairs in the measured time.
    pub fn count(&self) -> u64 {
        self.counts.iter().sum()
    }

    /// Pairs a second.
    pub fn rate(&self) -> f64 {
        self.count() as f64 / self.seconds
    }
}
