//! Three hosts, one leader: it is killed, the next one takes over; that one resigns, and hands over at once.
//!
//! ```console
//! $ cargo run --example leader                                # three tasks, on five nodes in this process's memory
//! $ eval "$(deploy/redis-cluster/redis-cluster start)"
//! $ cargo run --example leader                                # three processes, on five Redis servers
//! $ REDLOCK_LEADER_SECS=60 cargo run --example leader         # and then a minute in which you kill whom you like
//! ```
//!
//! The lease is two seconds, so that a death can be watched. In earnest the default of ten is a better start.

use std::error::Error;
use std::io::BufRead;
use std::ops::ControlFlow;
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use redlock_quorum::{
    Election, Leader, Leadership, MemoryNodes, Observer, Partition, Redlock, RedlockBuilder,
};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};

const LEASE: Duration = Duration::from_secs(2);
const HOSTS: [&str; 3] = ["host-1", "host-2", "host-3"];
const NODES: usize = 5;

/// Nothing else goes on in it, so it may be [declared new](Redlock::bootstrap).
const NAMESPACE: &str = "leader-example";

type Failure = Box<dyn Error + Send + Sync>;

#[tokio::main]
async fn main() -> ExitCode {
    let ended = match std::env::args().nth(1) {
        Some(host) => be_a_process(&host).await,
        None => play().await,
    };
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("\nThe story ends early: {error}");
            ExitCode::FAILURE
        }
    }
}

fn election(redlock: &Redlock) -> Election {
    redlock.election("scheduler").look_every(Duration::from_millis(50))
}

// ── a candidate ─────────────────────────────────────────────────────────────────────────────────────────────────────────

/// What a candidate is told from outside.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Order {
    Stand,
    Resign,
    End,
}

/// Stands for election until it is told to end. Whenever it is elected it leads.
async fn stand(redlock: Redlock, host: String, orders: watch::Receiver<Order>) -> Result<(), Failure> {
    let election = election(&redlock).candidate(&host);
    let leads = election.run(|leadership| lead(leadership, host.clone(), orders.clone()));
    tokio::select! {
        ended = leads => ended?,
        () = ended(orders.clone()) => {}
    }
    // What was dropped is on its way: a process that ended now would leave the lease to run out.
    redlock.shutdown(Duration::from_secs(1)).await;
    Ok(())
}

async fn ended(mut orders: watch::Receiver<Order>) {
    // If nobody is left who could say so, it is over as well.
    let _ = orders.wait_for(|order| *order == Order::End).await;
}

/// What a leader does. Dropped where it stands if the leadership is lost.
async fn lead(leadership: Leadership, host: String, mut orders: watch::Receiver<Order>) -> ControlFlow<()> {
    let _told = TellsTheEnd(host.clone());
    println!(
        "      {host}: I lead. Whatever I act on gets my term, {}, and refuses lower ones.",
        leadership.term()
    );
    if let Err(error) = leadership.proclaim(format!("pid {}", std::process::id())).await {
        println!("      {host}: {error}");
    }
    orders.mark_unchanged();
    match orders.changed().await.map(|()| *orders.borrow()) {
        Ok(Order::Resign) => ControlFlow::Continue(()),
        _ => ControlFlow::Break(()),
    }
}

struct TellsTheEnd(String);

impl Drop for TellsTheEnd {
    fn drop(&mut self) {
        println!("      {}: I lead no more.", self.0);
    }
}

/// What each of the processes is. Its orders come over its standard input; when that ends, so does the process.
async fn be_a_process(host: &str) -> Result<(), Failure> {
    let redlock = RedlockBuilder::from_env()?;
    let redlock = redlock.namespace(NAMESPACE).holder(host).ttl(LEASE).connect().await?;
    let (order, orders) = watch::channel(Order::Stand);
    std::thread::spawn(move || {
        for line in std::io::stdin().lock().lines().map_while(Result::ok) {
            if line == "resign" {
                order.send_replace(Order::Resign);
            }
        }
        order.send_replace(Order::End);
    });
    stand(redlock, host.to_owned(), orders).await
}

// ── the story ───────────────────────────────────────────────────────────────────────────────────────────────────────────

async fn play() -> Result<(), Failure> {
    let mut stage = Stage::set().await?;
    let redlock = stage.client("the one who looks on").await?;
    redlock.bootstrap().await?;
    let mut observer = election(&redlock).observe()?;
    observer.next().await; // nobody yet

    heading("Three hosts stand for election");
    stage.enter().await?;
    let first = next_leader(&mut observer).await?;
    sleep(Duration::from_secs(3)).await;
    say(format!(
        "Three seconds later it still is {}, with a lease of {LEASE:?}: it renews.",
        first.candidate()
    ));

    heading("The leader is killed");
    let killed = Instant::now();
    stage.kill(first.candidate())?;
    let second = next_leader(&mut observer).await?;
    say(format!("For {:.1?} nobody led.", killed.elapsed()));
    assert!(second.term() > first.term(), "terms rise");

    heading("The next one resigns");
    sleep(Duration::from_secs(1)).await;
    let asked = Instant::now();
    stage.order(second.candidate(), Order::Resign)?;
    let third = next_leader(&mut observer).await?;
    say(format!(
        "Seen {:.0?} after it was asked to: the resignation wakes the next candidate.",
        asked.elapsed()
    ));
    assert!(third.term() > second.term(), "terms rise");

    if let Some(length) = your_turn()? {
        heading("Your turn");
        stage.invite(length);
        let _ = timeout(length, tell_all(&mut observer)).await;
    }

    heading("The end");
    stage.leave().await?;
    say(match election(&redlock).leader().await? {
        None => "All were told to end, and the leader has resigned. Nobody leads.".to_owned(),
        Some(leader) => format!("All were told to end, and {leader} has not heard."),
    });
    redlock.shutdown(Duration::from_secs(1)).await;
    Ok(())
}

/// Waits for another leader, and tells what is seen.
async fn next_leader(observer: &mut Observer) -> Result<Leader, Failure> {
    let seen = timeout(LEASE * 5, async {
        loop {
            let Some(leader) = observer.next().await else {
                say("Nobody leads.");
                continue;
            };
            // At first it has proclaimed only its term.
            if !leader.proclaimed().is_empty() {
                return leader;
            }
        }
    });
    let leader = seen.await.map_err(|_| format!("nobody leads after {:?}", LEASE * 5))?;
    say(format!("The leader is {leader}."));
    Ok(leader)
}

async fn tell_all(observer: &mut Observer) {
    loop {
        match observer.next().await {
            None => say("Nobody leads."),
            Some(leader) => say(format!("The leader is {leader}.")),
        }
    }
}

/// Where the story plays.
enum Stage {
    Memory { nodes: MemoryNodes, hosts: Vec<Task> },
    Servers { builder: Box<RedlockBuilder>, hosts: Vec<Process> },
}

/// A host in this process.
struct Task {
    host: &'static str,
    redlock: Redlock,
    order: watch::Sender<Order>,
    task: JoinHandle<Result<(), Failure>>,
}

/// A host of its own.
struct Process {
    host: &'static str,
    child: Child,
}

impl Stage {
    async fn set() -> Result<Self, Failure> {
        if std::env::var_os("REDLOCK_NODES").is_some() {
            println!("Playing on the servers that REDLOCK_NODES names, with a process for each host.");
            let builder = Box::new(RedlockBuilder::from_env()?.namespace(NAMESPACE));
            return Ok(Stage::Servers { builder, hosts: Vec::new() });
        }
        println!("Playing on {NODES} nodes in this process's memory, with a task for each host.");
        println!("For processes and real servers, set REDLOCK_NODES; deploy/redis-cluster starts five.");
        Ok(Stage::Memory { nodes: MemoryNodes::new(NODES).namespace(NAMESPACE), hosts: Vec::new() })
    }

    async fn client(&self, name: &str) -> Result<Redlock, Failure> {
        let builder = match self {
            Stage::Memory { nodes, .. } => nodes.builder(),
            Stage::Servers { builder, .. } => RedlockBuilder::clone(builder),
        };
        Ok(builder.holder(name).ttl(LEASE).connect().await?)
    }

    async fn enter(&mut self) -> Result<(), Failure> {
        for host in HOSTS {
            let redlock = self.client(host).await?;
            match self {
                Stage::Memory { hosts, .. } => {
                    let (order, orders) = watch::channel(Order::Stand);
                    let task = tokio::spawn(stand(redlock.clone(), host.to_owned(), orders));
                    hosts.push(Task { host, redlock, order, task });
                }
                Stage::Servers { hosts, .. } => {
                    let mut command = Command::new(std::env::current_exe()?);
                    let child = command.arg(host).stdin(Stdio::piped()).spawn()?;
                    hosts.push(Process { host, child });
                }
            }
        }
        Ok(())
    }

    /// Nobody hears of it any more.
    fn kill(&mut self, name: &str) -> Result<(), Failure> {
        match self {
            Stage::Memory { nodes, hosts } => {
                let killed = hosts.iter().filter(|task| task.host == name);
                killed.for_each(|task| nodes.partition(&task.redlock, 0..NODES, Partition::CommandsLost));
                say(format!("A task cannot be killed like a process, so {name} is cut off from all nodes."));
                say("It steps down before its lease is over; then somebody else is elected.");
            }
            Stage::Servers { hosts, .. } => {
                let place = hosts.iter().position(|process| process.host == name).ok_or("no such host")?;
                let mut child = hosts.remove(place).child;
                child.kill()?;
                child.wait()?;
                say(format!("kill -9 {}", child.id()));
                say("It says nothing to anybody. Its lease runs out; then somebody else is elected.");
            }
        }
        Ok(())
    }

    fn order(&mut self, name: &str, order: Order) -> Result<(), Failure> {
        match self {
            Stage::Memory { hosts, .. } => {
                hosts.iter().filter(|task| task.host == name).for_each(|task| {
                    task.order.send_replace(order);
                });
            }
            Stage::Servers { hosts, .. } => {
                for Process { child, .. } in hosts.iter_mut().filter(|process| process.host == name) {
                    use std::io::Write;
                    child.stdin.as_mut().ok_or("no way to tell it")?.write_all(b"resign\n")?;
                }
            }
        }
        Ok(())
    }

    fn invite(&self, length: Duration) {
        match self {
            Stage::Memory { .. } => {
                say("In memory there is no process to kill; with REDLOCK_NODES there is.");
            }
            Stage::Servers { hosts, .. } => {
                say(format!(
                    "For {length:?} you may kill whom you like, or stop one (kill -STOP) and let it go on:"
                ));
                for Process { host, child } in hosts {
                    println!("      {host}  pid {}", child.id());
                }
            }
        }
    }

    /// All end in peace, and are waited for.
    async fn leave(self) -> Result<(), Failure> {
        match self {
            Stage::Memory { nodes, hosts } => {
                nodes.heal();
                for Task { order, task, .. } in hosts {
                    order.send_replace(Order::End);
                    task.await??;
                }
                nodes.assert_nothing_left();
            }
            Stage::Servers { hosts, .. } => {
                let mut children: Vec<Child> = hosts.into_iter().map(|process| process.child).collect();
                children.iter_mut().for_each(|child| drop(child.stdin.take()));
                for mut child in children {
                    tokio::task::spawn_blocking(move || child.wait()).await??;
                }
            }
        }
        Ok(())
    }
}

fn your_turn() -> Result<Option<Duration>, Failure> {
    match std::env::var("REDLOCK_LEADER_SECS") {
        Err(_) => Ok(None),
        Ok(seconds) => match seconds.parse() {
            Ok(seconds) => Ok(Some(Duration::from_secs(seconds))),
            Err(_) => {
                let bound = "must be a whole number of seconds";
                Err(format!("REDLOCK_LEADER_SECS is \"{seconds}\", but {bound}").into())
            }
        },
    }
}

fn heading(text: &str) {
    println!("\n{text}");
}

fn say(text: impl AsRef<str>) {
    println!("  {}", text.as_ref());
}
