//! Faults of all kinds that nodes which keep the rules can have, drawn from a seed: processes that end, stand still and
//! restart, connections that end, and networks that are late, silent or one-way. Each ends by itself or is ended.
//!
//! Not among them: what the promise does not cover (clocks that jump, keys that are deleted by hand).

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use futures::future::join_all;
use rand::RngExt;
use rand::rngs::StdRng;

use super::Cluster;
use super::proxy::{Proxy, Way};

/// Nodes, and a proxy before each of them for each client.
pub struct Deployment {
    pub cluster: Cluster,
    /// Client by client.
    proxies: Vec<Vec<Proxy>>,
}

/// What befalls one node, or what is between it and one client.
#[derive(Clone, Copy, Debug)]
pub struct Fault {
    pub node: usize,
    pub kind: Kind,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Its process is gone, and comes back without its memory.
    Killed,
    /// As after a power failure, with what was on the disk before the fault.
    PowerLost { log: u64 },
    /// Its process stands still.
    Stopped,
    /// It takes in commands that write, and carries them out later.
    Paused,
    /// Its only thread is busy.
    Hung,
    /// Its clients' connections are closed.
    Disconnected,
    /// From here on it is about what is between the node and one client.
    Between { client: usize, kind: Between },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Between {
    Late(Duration),
    Slow { bytes_per_second: usize },
    Held(&'static [Way]),
    Swallowed(&'static [Way]),
    Stranded,
    CutInTheMiddle,
    Reset,
    ClosedAfter(Way, usize),
}

const TO_SERVER: &[Way] = &[Way::ToServer];
const TO_CLIENT: &[Way] = &[Way::ToClient];
const BOTH: &[Way] = &Way::BOTH;

impl Fault {
    /// One of all kinds, at a node.
    pub fn drawn(random: &mut StdRng, node: usize, clients: usize) -> Self {
        let kind = match random.random_range(0..14) {
            0 => Kind::Killed,
            1 => Kind::PowerLost { log: 0 },
            2 | 3 => Kind::Stopped,
            4 => Kind::Paused,
            5 => Kind::Hung,
            6 => Kind::Disconnected,
            _ => Kind::Between { client: random.random_range(0..clients), kind: Between::drawn(random) },
        };
        Fault { node, kind }
    }

    /// For the counts of a report.
    pub fn name(&self) -> &'static str {
        match self.kind {
            Kind::Killed => "node killed, restarted empty",
            Kind::PowerLost { .. } => "node killed, restarted with a cut log",
            Kind::Stopped => "node stopped",
            Kind::Paused => "node paused (CLIENT PAUSE WRITE)",
            Kind::Hung => "node hung (DEBUG SLEEP)",
            Kind::Disconnected => "connections of a node killed (CLIENT KILL)",
            Kind::Between { kind, .. } => kind.name(),
        }
    }
}

impl Between {
    fn drawn(random: &mut StdRng) -> Self {
        let ways = [TO_SERVER, TO_CLIENT, BOTH][random.random_range(0..3)];
        match random.random_range(0..8) {
            0 => Between::Late(Duration::from_millis(random.random_range(1..400))),
            1 => Between::Slow { bytes_per_second: random.random_range(100..5_000) },
            2 => Between::Held(ways),
            3 => Between::Swallowed(ways),
            4 => Between::Stranded,
            5 => Between::CutInTheMiddle,
            6 => Between::Reset,
            _ => Between::ClosedAfter(Way::BOTH[random.random_range(0..2)], random.random_range(0..400)),
        }
    }

    fn name(self) -> &'static str {
        match self {
            Between::Late(_) => "network late",
            Between::Slow { .. } => "network slow",
            Between::Held(ways) if ways.len() == 1 => "network held, one way",
            Between::Held(_) => "network held, both ways",
            Between::Swallowed(ways) if ways.len() == 1 => "network lost, one way",
            Between::Swallowed(_) => "network lost, both ways",
            Between::Stranded => "connection held, new ones not",
            Between::CutInTheMiddle => "connection half open",
            Between::Reset => "connection reset",
            Between::ClosedAfter(..) => "connection closed in the middle of a command",
        }
    }
}

impl Deployment {
    /// The servers are started with a log, and so that they may hang.
    pub async fn of(cluster: Cluster, clients: usize) -> Self {
        let before_all = |_| join_all(cluster.servers.iter().map(|server| Proxy::before(server.port())));
        let proxies = join_all((0..clients).map(before_all)).await;
        Deployment { cluster, proxies }
    }

    /// As one client knows the nodes.
    pub fn addresses(&self, client: usize) -> Vec<String> {
        self.proxies[client].iter().map(Proxy::address).collect()
    }

    /// The fault begins. `length` is how long it may last if nobody ends it.
    pub async fn strike(&mut self, fault: &mut Fault, length: Duration) {
        let server = &mut self.cluster.servers[fault.node];
        match &mut fault.kind {
            Kind::Killed => server.kill(),
            Kind::PowerLost { log } => *log = server.log_length(),
            Kind::Stopped => server.stop(),
            Kind::Paused => server.pause_writes(length).await,
            // It ends by itself.
            Kind::Hung => drop(server.hang(length)),
            Kind::Disconnected => server.kill_clients().await,
            Kind::Between { client, kind } => begin(&self.proxies[*client][fault.node], *kind),
        }
    }

    /// It is over, or will be in a moment.
    pub async fn heal(&mut self, fault: &Fault) {
        let server = &mut self.cluster.servers[fault.node];
        match fault.kind {
            Kind::Killed => server.restart_empty().await,
            Kind::PowerLost { log } => server.restart_with_a_log_of(log).await,
            Kind::Stopped => server.cont(),
            Kind::Paused | Kind::Hung | Kind::Disconnected => {}
            Kind::Between { client, .. } => {
                let proxy = &self.proxies[client][fault.node];
                proxy.heal();
                proxy.set_afloat();
            }
        }
    }
}

fn begin(proxy: &Proxy, kind: Between) {
    match kind {
        Between::Late(delay) => proxy.delay(Way::BOTH, delay),
        Between::Slow { bytes_per_second } => proxy.throttle(Way::BOTH, bytes_per_second),
        Between::Held(ways) => proxy.hold(ways.iter().copied()),
        Between::Swallowed(ways) => proxy.swallow(ways.iter().copied()),
        Between::Stranded => proxy.strand(),
        Between::CutInTheMiddle => proxy.cut_in_the_middle(),
        Between::Reset => proxy.reset(),
        Between::ClosedAfter(way, bytes) => proxy.close_after(way, bytes),
    }
}

/// How often what happened.
#[derive(Default)]
pub struct Counts(BTreeMap<&'static str, usize>);

impl Counts {
    pub fn add(&mut self, name: &'static str) {
        *self.0.entry(name).or_default() += 1;
    }

    pub fn total(&self) -> usize {
        self.0.values().sum()
    }
}

impl fmt::Display for Counts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (name, count) in &self.0 {
            writeln!(f, "{count:>7}  {name}")?;
        }
        Ok(())
    }
}

/// `REDLOCK_TEST_SEED`, or one that is drawn. Printed either way.
pub fn seed() -> u64 {
    let seed = match std::env::var("REDLOCK_TEST_SEED") {
        Ok(seed) => seed.parse().expect("REDLOCK_TEST_SEED is a whole number"),
        Err(_) => rand::random(),
    };
    println!("REDLOCK_TEST_SEED={seed}");
    seed
}
