//! The life of one lock, told while it happens: two clients, a handful of nodes, and a node that fails.
//!
//! ```console
//! $ cargo run --example quickstart                            # on five nodes in this process's memory
//! $ eval "$(deploy/redis-cluster/redis-cluster start)"
//! $ REDLOCK_QUICKSTART_HOLD_SECS=15 cargo run --example quickstart    # on five Redis servers, yours to kill
//! ```
//!
//! The ttl is two seconds, so that renewals can be watched. In earnest the default of ten is a better start.

use std::error::Error;
use std::fmt::Display;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use redlock_quorum::{Guard, MemoryNodes, Mutex, NodeDiagnosis, Redlock, RedlockBuilder};
use tokio::time::{interval, sleep};

const RESOURCE: &str = "invoices/42";
const TTL: Duration = Duration::from_secs(2);
const LONGEST_TTL: Duration = Duration::from_secs(5);

#[tokio::main]
async fn main() -> ExitCode {
    match play().await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("\nThe story ends early.\n{}", indented(error));
            ExitCode::FAILURE
        }
    }
}

async fn play() -> Result<(), Box<dyn Error>> {
    let stage = Stage::from_env()?;
    stage.introduce();
    let alice = stage.client("alice").await?;
    let bob = stage.client("bob").await?;
    until_they_vote(&[&alice, &bob]).await;

    let told = story(&stage, &alice, &bob).await;

    // However the story went: a process that ends without this may leave keys behind until their ttl is over.
    let hers = alice.shutdown(Duration::from_secs(1)).await;
    let his = bob.shutdown(Duration::from_secs(1)).await;
    told?;
    stage.close(hers.is_clean() && his.is_clean());
    Ok(())
}

/// Servers that were started a moment ago may have forgotten a lock that is still held, for all that is known here.
async fn until_they_vote(clients: &[&Redlock]) {
    for client in clients {
        let diagnosis = client.diagnose().await;
        if let Some(longest) = diagnosis.nodes().iter().filter_map(NodeDiagnosis::votes_in).max() {
            println!(
                "Some servers were started a moment ago, and do not vote yet. They do in {}.",
                millis(longest)
            );
            sleep(longest).await;
        }
    }
}

async fn story(stage: &Stage, alice: &Redlock, bob: &Redlock) -> Result<(), Box<dyn Error>> {
    let hers = alice.mutex(RESOURCE).metadata("charging the card").wait(Duration::from_secs(5));
    let his = bob.mutex(RESOURCE).wait(Duration::from_secs(5));

    heading("Alice acquires");
    let asked = Instant::now();
    let guard = hers.acquire().await?;
    say(format!("A majority has granted {RESOURCE} after {:.1?}.", asked.elapsed()));
    sleep(Duration::from_millis(50)).await; // the slower nodes answer too; nobody has to wait for them
    say(format!("Valid for another {}, unless it is renewed. It will be.", millis(guard.remaining())));
    say("What each node said:");
    println!("{}", indented(guard.votes()));

    heading("Bob tries");
    refused(&his).await?;
    let seen = his.inspect().await?;
    let (holder, metadata) = (seen.holder().unwrap_or("nobody"), seen.metadata().unwrap_or("nothing"));
    say(format!("He looks who has it: {holder}, who left a note: \"{metadata}\"."));
    if let Some(expires_in) = seen.expires_in() {
        say(format!("If {holder} vanished now, it would be free in {}.", millis(expires_in)));
    }

    heading("Alice works");
    hold(&guard, stage.look_every(), stage.look_every()).await?;

    heading("Trouble comes, the lock stays");
    stage.trouble();
    hold(&guard, stage.hold()?, stage.look_every()).await?;
    let (held, ttl) = (millis(asked.elapsed()), millis(TTL));
    say(format!("Alice has held the lock for {held}, with a ttl of {ttl}: renewals keep it alive."));

    heading("Bob tries again");
    refused(&his).await?;

    heading("Alice extends");
    let before = guard.remaining();
    guard.extend(LONGEST_TTL).await?;
    say("Before a long step, she makes sure of more time than the renewals would give her.");
    say(format!("Valid for {} before, {} after.", millis(before), millis(guard.remaining())));

    heading("Alice releases");
    println!("{}", indented(guard.release().await));

    heading("Bob acquires");
    let asked = Instant::now();
    let guard = his.acquire().await?;
    say(format!(
        "He has it {:.1?} after he asked, and valid for {}.",
        asked.elapsed(),
        millis(guard.remaining())
    ));
    guard.release().await.ok()?;
    say("He was quick, and has released it again.");
    Ok(())
}

async fn refused(mutex: &Mutex) -> Result<(), Box<dyn Error>> {
    match mutex.try_acquire().await? {
        None => {
            say("try_acquire gives None: held by another. That is an answer, not an error.");
            Ok(())
        }
        Some(_) => Err("bob got a lock that alice holds".into()),
    }
}

/// Holds the lock for so long, looking at it now and then. The renewals need no help.
async fn hold(guard: &Guard, lasting: Duration, every: Duration) -> Result<(), Box<dyn Error>> {
    let began = Instant::now();
    let mut looks = interval(every);
    looks.tick().await;
    while began.elapsed() < lasting {
        tokio::select! {
            () = guard.lost() => {
                return Err(format!("Alice lost the lock. The last answers:\n{:#}", guard.last_answers()).into());
            }
            _ = looks.tick() => {}
        }
        let (held, remaining) = (millis(began.elapsed()), millis(guard.remaining()));
        say(format!("{held:>8} later, valid for another {remaining}. The last answers:"));
        println!("{}", indented(guard.last_answers()));
    }
    Ok(())
}

/// Where the story plays.
enum Stage {
    Memory(MemoryNodes),
    Servers(Box<RedlockBuilder>),
}

impl Stage {
    fn from_env() -> Result<Self, Box<dyn Error>> {
        if std::env::var_os("REDLOCK_NODES").is_some() {
            return Ok(Stage::Servers(Box::new(RedlockBuilder::from_env()?)));
        }
        Ok(Stage::Memory(MemoryNodes::new(5)))
    }

    fn introduce(&self) {
        match self {
            Stage::Memory(_) => {
                println!("Playing on five nodes in this process's memory.");
                println!("For real servers, set REDLOCK_NODES; deploy/redis-cluster starts five.");
            }
            Stage::Servers(_) => println!("Playing on the servers that REDLOCK_NODES names."),
        }
    }

    /// A client of its own, as if in another process.
    async fn client(&self, name: &str) -> Result<Redlock, Box<dyn Error>> {
        let builder = match self {
            Stage::Memory(nodes) => nodes.builder(),
            Stage::Servers(builder) => RedlockBuilder::clone(builder),
        };
        // All clients of a namespace name the same max_ttl.
        Ok(builder.holder(name).ttl(TTL).max_ttl(LONGEST_TTL).connect().await?)
    }

    fn trouble(&self) {
        match self {
            Stage::Memory(nodes) => {
                nodes.stop(2);
                say("memory-2 is stopped. It answers nobody, and keeps its memory.");
            }
            Stage::Servers(_) => {
                say("Now is the time: from another terminal, kill a minority of the servers, such as");
                println!("      deploy/redis-cluster/redis-cluster kill 2");
                println!("      deploy/redis-cluster/redis-cluster kill 4");
                say("and start them again with `restart 2`. REDLOCK_QUICKSTART_HOLD_SECS=30 gives you time.");
            }
        }
    }

    fn hold(&self) -> Result<Duration, Box<dyn Error>> {
        match std::env::var("REDLOCK_QUICKSTART_HOLD_SECS") {
            Ok(seconds) => match seconds.parse() {
                Ok(seconds) => Ok(Duration::from_secs(seconds)),
                Err(_) => Err(format!(
                    "REDLOCK_QUICKSTART_HOLD_SECS is \"{seconds}\", but must be a whole number of seconds"
                )
                .into()),
            },
            Err(_) => Ok(self.default_hold()),
        }
    }

    fn default_hold(&self) -> Duration {
        match self {
            Stage::Memory(_) => self.look_every() * 2,
            Stage::Servers(_) => self.look_every() * 3,
        }
    }

    fn look_every(&self) -> Duration {
        match self {
            Stage::Memory(_) => Duration::from_millis(700),
            Stage::Servers(_) => Duration::from_secs(1),
        }
    }

    fn close(&self, clean: bool) {
        heading("The end");
        say(if clean {
            "Both clients are shut down; no guard was left."
        } else {
            "A guard had to be taken away."
        });
        match self {
            Stage::Memory(nodes) => {
                say(match nodes.keys(2).as_slice() {
                    [] => "memory-2 missed the release; its key has ended with the ttl.".to_owned(),
                    keys => format!("memory-2 missed the release, and still has {}.", keys.join(" and ")),
                });
                nodes.start(2);
                nodes.assert_nothing_left();
                say("Started again, it is told what it missed. No key is left on any node.");
            }
            Stage::Servers(_) => {
                say(
                    "No key is left on the servers that run. One that was killed may come back with a key that",
                );
                say(format!(
                    "nobody could release there: it ends with its ttl, {} at most.",
                    millis(LONGEST_TTL)
                ));
            }
        }
    }
}

fn heading(text: &str) {
    println!("\n{text}");
}

fn say(text: impl Display) {
    println!("  {text}");
}

/// In detail, and set off from the story.
fn indented(text: impl Display) -> String {
    format!("      {}", format!("{text:#}").replace('\n', "\n      "))
}

fn millis(duration: Duration) -> String {
    format!("{} ms", duration.as_millis())
}
