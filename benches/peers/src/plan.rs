//! Who is compared, and what each does.

use std::path::{Path, PathBuf};

use crate::block::Order;

/// A program that does blocks of work by one library.
#[derive(Clone, Debug)]
pub struct Program {
    /// What it is called in orders and results.
    pub id: &'static str,
    /// What it is called in tables.
    pub name: &'static str,
    /// What is started, before the order.
    pub command: Vec<PathBuf>,
    /// The library, as the program knows it.
    pub of: &'static str,
    /// The threads of its runtime.
    pub threads: usize,
    /// How long it runs before it is measured: a compiler that learns while it runs needs longer.
    pub warm_up: f64,
}

/// All programs that are built. `folder` is that of the benches.
pub fn programs(folder: &Path) -> Vec<Program> {
    let target = folder.join("target");
    let rust = || vec![target.join("release/peer")];
    let go = || vec![target.join("go-peer")];
    let program = |id, name, command: Vec<PathBuf>, of, threads| Program {
        id,
        name,
        command,
        of,
        threads,
        warm_up: 0.1,
    };
    let slow = |program: Program| Program { warm_up: 0.4, ..program };
    let all = vec![
        program("ours-1", "redlock-quorum, one thread", rust(), "redlock-quorum", 1),
        program("ours-2", "redlock-quorum, two threads", rust(), "redlock-quorum", 2),
        program("fenced-1", "redlock-quorum with fences, one thread", rust(), "fenced", 1),
        program("rslock-1", "rslock, one thread", rust(), "rslock", 1),
        program("rslock-2", "rslock, two threads", rust(), "rslock", 2),
        program("wire-1", "the wire, one thread", rust(), "wire", 1),
        program("wire-2", "the wire, two threads", rust(), "wire", 2),
        program("together-1", "the wire, one thread, releases in one call", rust(), "wire-together", 1),
        program("redlock", "redlock (Rust)", rust(), "redlock", 2),
        program("redsync", "redsync (Go)", go(), "redsync", 2),
        program("redislock", "bsm/redislock (Go)", go(), "redislock", 2),
        program("rueidislock", "rueidislock (Go)", go(), "rueidislock", 2),
        slow(program(
            "node-redlock",
            "node-redlock",
            vec!["node".into(), target.join("node/peer.js")],
            "node-redlock",
            1,
        )),
        slow(program(
            "pottery",
            "pottery (Python)",
            vec![target.join("python/bin/python"), folder.join("python/peer.py")],
            "pottery",
            1,
        )),
        slow(program(
            "redis-py",
            "redis-py (Python)",
            vec![target.join("python/bin/python"), folder.join("python/peer.py")],
            "redis-py",
            1,
        )),
        program(
            "counted-1",
            "redlock-quorum, one thread",
            vec![target.join("release/counted")],
            "redlock-quorum",
            1,
        ),
        program(
            "counted-2",
            "redlock-quorum, two threads",
            vec![target.join("release/counted")],
            "redlock-quorum",
            2,
        ),
        program("counted-rslock", "rslock, one thread", vec![target.join("release/counted")], "rslock", 1),
        program("held", "redlock-quorum, one thread", vec![target.join("release/held")], "redlock-quorum", 1),
        program("round", "redlock-quorum", vec![target.join("release/round")], "redlock-quorum", 1),
    ];
    // Where something could not be built or installed, it is not there.
    all.into_iter()
        .filter(|program| program.command.iter().all(|part| part.is_relative() || part.exists()))
        .collect()
}

/// One thing that is measured.
#[derive(Clone, Debug)]
pub struct Case {
    /// As in [`Order`], or `processes`: `contended` by so many processes of one task each.
    pub work: &'static str,
    /// How many servers.
    pub nodes: usize,
    /// How many tasks, or processes.
    pub tasks: usize,
    /// Who takes part, in this order.
    pub programs: Vec<&'static str>,
    /// How often each does its block.
    pub blocks: usize,
    /// How long a block is measured.
    pub seconds: f64,
}

impl Case {
    /// What it is called in results.
    pub fn key(&self) -> String {
        key(self.work, self.nodes, self.tasks)
    }

    /// Whether it is counted what the clients send.
    pub fn counts_commands(&self) -> bool {
        matches!(self.work, "contended" | "clients" | "processes")
    }

    /// What a program is asked to do.
    pub fn order(&self, program: &Program, nodes: Vec<String>) -> Order {
        let (work, tasks, threads) = match self.work {
            "processes" => ("contended", 1, program.threads),
            // These know no servers; the threads say how many nodes.
            "round" | "memory" => (self.work, self.tasks, self.nodes),
            work => (work, self.tasks, program.threads),
        };
        Order {
            of: program.of.to_owned(),
            nodes,
            work: work.to_owned(),
            tasks,
            seconds: self.seconds,
            warm_up: program.warm_up,
            threads,
            start_at: None,
        }
    }
}

/// What it is called in results.
pub fn key(work: &str, nodes: usize, tasks: usize) -> String {
    format!("{work} N={nodes} tasks={tasks}")
}

const RUST_AND_REDSYNC: [&str; 7] =
    ["ours-1", "rslock-1", "wire-1", "redsync", "ours-2", "rslock-2", "wire-2"];

/// All that is measured; in about half an hour, or in three minutes with less certainty.
pub fn cases(quick: bool) -> Vec<Case> {
    let mut cases = Vec::new();
    let mut add = |work, nodes, tasks, programs: &[&'static str], blocks: usize, seconds: f64| {
        let (blocks, seconds) = if quick { (blocks.div_ceil(4), seconds * 0.6) } else { (blocks, seconds) };
        cases.push(Case { work, nodes, tasks, programs: programs.to_vec(), blocks, seconds });
    };
    let sizes: &[usize] = if quick { &[3] } else { &[1, 3, 5] };
    for &nodes in sizes {
        let single: &[&str] = match nodes {
            1 => &["redislock", "rueidislock"],
            3 => &["fenced-1"],
            _ => &[],
        };
        // With one node little lies between them, so there are more turns.
        let turns = if nodes == 1 { 24 } else { 12 };
        add("pairs", nodes, 1, &[&RUST_AND_REDSYNC[..], single].concat(), turns, 0.3);
        add("pairs", nodes, 16, &[&RUST_AND_REDSYNC[..], &["together-1"], single].concat(), 4, 0.25);
        add("pairs", nodes, 64, &[&RUST_AND_REDSYNC[..], &["together-1"], single].concat(), 12, 0.25);
        add(
            "pairs",
            nodes,
            256,
            &["ours-1", "wire-1", "together-1", "rslock-1", "ours-2", "wire-2"],
            12,
            0.25,
        );
        let slow: &[&str] = if nodes == 1 { &["redis-py"] } else { &[] };
        add("pairs", nodes, 1, &[&["node-redlock", "pottery", "redlock"], slow].concat(), 3, 0.8);
        add("pairs", nodes, 64, &[&["node-redlock", "pottery"], slow].concat(), 3, 0.8);
        // In one process, by one client.
        add("contended", nodes, 64, &["ours-1", "rslock-1", "redsync", "ours-2"], 6, 1.0);
        add("handoff", nodes, 2, &["ours-1", "redsync", "rslock-1"], 6, 0.8);
    }
    add("contended", 3, 8, &["ours-1", "rslock-1", "redsync"], 4, 0.8);
    add("clients", 3, 64, &["ours-1", "rslock-1", "redsync"], 6, 1.5);
    for &nodes in sizes {
        for processes in [2, 8, 64] {
            add("processes", nodes, processes, &["ours-1", "rslock-1", "redsync"], 4, 1.5);
        }
    }
    add("loop", 1, 2, &["counted-2", "redislock", "rueidislock", "counted-1"], 8, 0.5);

    // What follows is about this library alone.
    for nodes in [1, 3, 5] {
        add("pairs", nodes, 64, &["counted-1", "counted-rslock"], 3, 0.2);
        add("pairs", nodes, 1, &["counted-1"], 3, 0.2);
        add("round", nodes, 1, &["round"], 5, 0.2);
        add("memory", nodes, 1, &["round"], 5, 0.2);
    }
    for nodes in [2, 4, 6, 8, 9] {
        add("pairs", nodes, 1, &["ours-1"], 4, 0.25);
        add("pairs", nodes, 64, &["ours-1", "wire-1"], 4, 0.25);
    }
    for tasks in [1, 16, 64, 256] {
        add("pairs", 7, tasks, &RUST_AND_REDSYNC, 4, 0.25);
    }
    for nodes in [2, 4, 6, 7, 8, 9] {
        add("pairs", nodes, 64, &["counted-1"], 1, 0.2);
    }
    for held in [1, 1_000, 10_000, 50_000] {
        add("held", 3, held, &["held"], 2, 0.4);
    }
    for waiters in [1, 10, 100, 1_000, 3_000] {
        add("waiters", 3, waiters, &["held"], 3, 0.4);
    }
    add("renewals", 3, 10_000, &["held"], 2, 4.0);
    if !quick {
        add("renewals", 3, 100_000, &["held"], 1, 20.0);
    }
    cases
}
