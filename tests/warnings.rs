//! What is worth a warning is logged, once, and nothing is where all is well.
#![cfg(feature = "redis")]

mod harness;

use std::fmt::Debug;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use harness::{Cluster, Server, until};
use redlock_quorum::{MemoryNodes, Redlock};
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Level, Metadata, Subscriber};

/// The messages of all events at `info` and above, and their fields.
#[derive(Clone, Default)]
struct Heard(Arc<Mutex<Vec<String>>>);

impl Heard {
    fn with(&self, part: &str) -> usize {
        self.0.lock().expect("whole").iter().filter(|message| message.contains(part)).count()
    }

    fn all(&self) -> Vec<String> {
        self.0.lock().expect("whole").clone()
    }
}

impl Subscriber for Heard {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        *metadata.level() <= Level::INFO
    }

    fn new_span(&self, _: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }

    fn record(&self, _: &Id, _: &Record<'_>) {}

    fn record_follows_from(&self, _: &Id, _: &Id) {}

    fn event(&self, event: &Event<'_>) {
        let mut told = Told::default();
        event.record(&mut told);
        let text = format!("{} {}{}", event.metadata().level(), told.message, told.fields);
        self.0.lock().expect("whole").push(text);
    }

    fn enter(&self, _: &Id) {}

    fn exit(&self, _: &Id) {}
}

/// One event as text.
#[derive(Default)]
struct Told {
    message: String,
    fields: String,
}

impl Visit for Told {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        match field.name() {
            "message" => self.message = format!("{value:?}"),
            name => self.fields += &format!(" {name}={value:?}"),
        }
    }
}

#[tokio::test]
async fn an_even_number_of_nodes_is_a_warning() {
    let heard = Heard::default();
    let _listening = tracing::subscriber::set_default(heard.clone());
    for (nodes, warnings) in [(1, 0), (3, 0), (2, 1), (4, 2)] {
        // Nobody listens on these ports, and nobody has to.
        let addresses = (1..=nodes).map(|port| format!("127.0.0.1:{port}"));
        Redlock::builder().nodes(addresses).connect_lazy().expect("no error");
        assert_eq!(heard.with("even number of nodes"), warnings, "N = {nodes}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_hold_of_ten_minutes_is_a_warning_once_unless_it_is_bounded() {
    let heard = Heard::default();
    let _listening = tracing::subscriber::set_default(heard.clone());
    let redlock = MemoryNodes::new(3).redlock();
    let bounded =
        redlock.mutex("bounded").hold_at_most(Duration::from_secs(3_000)).acquire().await.expect("free");
    let guard = redlock.mutex("a").acquire().await.expect("free");
    tokio::time::sleep(Duration::from_secs(590)).await;
    assert_eq!(heard.all(), Vec::<String>::new(), "ten minutes without anything to say");
    tokio::time::sleep(Duration::from_secs(1_000)).await;
    assert_eq!(heard.with("held for ten minutes"), 1);
    guard.release().await.ok().expect("held");
    bounded.release().await.ok().expect("held");
}

#[tokio::test(start_paused = true)]
async fn a_loss_is_a_warning() {
    let heard = Heard::default();
    let _listening = tracing::subscriber::set_default(heard.clone());
    let nodes = MemoryNodes::new(3);
    let guard = nodes.redlock().mutex("a").acquire().await.expect("free");
    nodes.lose("a");
    guard.lost().await;
    assert_eq!(heard.with("lock lost"), 1);
}

/// Each node and its policy, once, also over reconnects; where nothing can be evicted, nothing is said.
#[tokio::test]
async fn a_node_that_may_evict_keys_is_a_warning() {
    let heard = Heard::default();
    let _listening = tracing::subscriber::set_default(heard.clone());
    let cluster = Cluster::start(3).await;
    let policy = async |server: &Server, policy: &str, bytes: &str| {
        server.type_in::<()>(&format!("CONFIG SET maxmemory-policy {policy}")).await;
        server.type_in::<()>(&format!("CONFIG SET maxmemory {bytes}")).await;
    };
    policy(&cluster.servers[0], "allkeys-lru", "100mb").await;
    policy(&cluster.servers[1], "allkeys-lru", "0").await;
    policy(&cluster.servers[2], "noeviction", "100mb").await;
    let redlock = cluster.redlock().await;
    let address = cluster.servers[0].address();
    let warning = |policy: &str| {
        let fields = format!("node={address:?} policy={policy:?}");
        format!("WARN may evict locks that are held: set maxmemory-policy to noeviction {fields}")
    };
    until("a warning", async || heard.with(&warning("allkeys-lru")) == 1).await;

    let reconnected = async |times: usize| {
        cluster.servers[0].kill_clients().await;
        until("a new connection", async || heard.with("connected again") == times).await;
        redlock.mutex("a").acquire().await.expect("a majority").release().await.ok().expect("held");
    };
    reconnected(1).await;
    policy(&cluster.servers[0], "volatile-ttl", "100mb").await;
    reconnected(2).await;
    until("another warning", async || heard.with(&warning("volatile-ttl")) == 1).await;
    assert_eq!(heard.with("may evict"), 2, "{:#?}", heard.all());
}
