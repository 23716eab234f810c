//! A web service that charges users. A charge reads a total, asks a payment provider, and writes the total back, so two
//! charges of one user must not overlap, whichever instance of the service they reach. Each works under a lock of its user.
//!
//! ```console
//! $ cargo run -p redlock-example-axum                     # on five nodes in this process's memory
//! listening on http://127.0.0.1:40123
//! $ curl -i -X POST 'http://127.0.0.1:40123/users/alice/charge?amount=5&takes_ms=3000' &
//! $ curl -i -X POST 'http://127.0.0.1:40123/users/alice/charge?amount=5'    # 409, and Retry-After
//! ```
//!
//! Set `REDLOCK_NODES` for real nodes, which several instances can share, and `LISTEN_ON` for an address other than a free
//! port of this machine. The ledger is in memory as well: each instance has its own, where real ones share a database.

mod answer;
mod ledger;

use std::error::Error;
use std::future::Future;
use std::io;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::{Path, Query, State};
use axum::routing::{get, post};
use axum::{Json, Router};
use redlock_quorum::{MemoryNodes, Redlock, RedlockBuilder};
use serde::{Deserialize, Serialize};
use tokio::net::TcpListener;
use tokio::sync::oneshot;
use tokio::time::sleep;

use crate::answer::{Refusal, Sick};
use crate::ledger::Ledger;

/// A charge that hangs must not keep its user locked for ever: while its guard lives, it would be renewed.
const CHARGE_AT_MOST: Duration = Duration::from_secs(30);

/// How long requests that are in work may go on after the service was told to stop, unless `DRAIN_MS` says otherwise: a
/// little less than what the supervisor grants.
const DRAIN_AT_MOST: Duration = Duration::from_secs(20);

#[tokio::main]
async fn main() -> ExitCode {
    match serve().await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

async fn serve() -> Result<(), Box<dyn Error>> {
    let redlock = connect()?;
    let drain_at_most = match std::env::var("DRAIN_MS") {
        Ok(millis) => Duration::from_millis(millis.parse().map_err(|error| format!("DRAIN_MS: {error}"))?),
        Err(_) => DRAIN_AT_MOST,
    };
    let address = std::env::var("LISTEN_ON").unwrap_or_else(|_| "127.0.0.1:0".to_owned());
    // Before the address is told: whoever knows it may ask for the end.
    let stop = told_to_stop()?;
    let listener = TcpListener::bind(&address).await.map_err(|error| format!("{address}: {error}"))?;
    println!("listening on http://{}", listener.local_addr()?);
    if !has_nodes() {
        println!(
            "REDLOCK_NODES is not set: the locks are on five nodes in memory, for this one process only"
        );
    }

    serve_until(stop, listener, routes(redlock.clone()), drain_at_most).await?;
    // After the requests, which need their locks to the end and have had their time; before the process ends, which would
    // leave behind what is not released yet.
    let left = redlock.shutdown(Duration::ZERO).await;
    for (key, outcome) in left.taken_away() {
        println!("stopped in the middle of {}: {outcome}", String::from_utf8_lossy(key));
    }
    if left.is_clean() { Ok(()) } else { Err("not all requests were done in time".into()) }
}

/// Does not wait for the nodes: a service that starts while they are down can do all that needs no lock, and answers 503 to
/// the rest until they are back.
fn connect() -> Result<Redlock, Box<dyn Error>> {
    if !has_nodes() {
        return Ok(MemoryNodes::new(5).redlock());
    }
    Ok(RedlockBuilder::from_env()?.connect_lazy()?)
}

fn has_nodes() -> bool {
    std::env::var_os("REDLOCK_NODES").is_some_and(|nodes| !nodes.is_empty())
}

fn routes(redlock: Redlock) -> Router {
    Router::new()
        .route("/users/{id}", get(total))
        .route("/users/{id}/charge", post(charge))
        .route("/health", get(health))
        .with_state(Arc::new(Service { redlock, ledger: Ledger::default() }))
}

struct Service {
    redlock: Redlock,
    ledger: Ledger,
}

#[derive(Deserialize)]
#[serde(default)]
struct Charge {
    amount: u32,
    /// How long the payment provider takes.
    takes_ms: u64,
}

impl Default for Charge {
    fn default() -> Self {
        Charge { amount: 1, takes_ms: 100 }
    }
}

#[derive(Serialize)]
struct Account {
    user: String,
    total: u64,
}

async fn total(State(service): State<Arc<Service>>, Path(user): Path<String>) -> Json<Account> {
    let total = service.ledger.read(&user);
    Json(Account { user, total })
}

/// If the client disconnects, this future is dropped where it awaits: the work with it, and the guard, which releases the
/// lock. The next charge need not wait for the ttl. Work that must be completed once it is begun would be spawned instead,
/// the guard moved into its task, and only its answer awaited here.
async fn charge(
    State(service): State<Arc<Service>>,
    Path(user): Path<String>,
    Query(charge): Query<Charge>,
) -> Result<Json<Account>, Refusal> {
    let mutex = service.redlock.mutex(format!("users/{user}")).hold_at_most(CHARGE_AT_MOST);
    // Not `run`, which would wait: a queue of requests is better kept by the clients than in here.
    let charged = mutex.try_run(async |_guard| service.charge(&user, &charge).await).await?;
    let total = charged.ok_or(Refusal::Busy)?;
    Ok(Json(Account { user, total }))
}

impl Service {
    /// Under the lock: dropped at its await if the lock is lost.
    async fn charge(&self, user: &str, charge: &Charge) -> u64 {
        println!("charging {user:?}");
        let before = self.ledger.read(user);
        sleep(Duration::from_millis(charge.takes_ms)).await;
        let total = before + u64::from(charge.amount);
        self.ledger.write(user, total);
        println!("charged {user:?}");
        total
    }
}

/// For a load balancer, which sends requests elsewhere meanwhile. Not for whatever restarts sick processes: a restart of
/// this one does not bring the nodes back.
async fn health(State(service): State<Arc<Service>>) -> Result<&'static str, Sick> {
    service.redlock.mutex("health").inspect().await?;
    Ok("a majority of the lock's nodes answers\n")
}

/// Serves until told to stop, then takes no more connections and finishes what is in work, as far as there is time.
async fn serve_until(
    stop: impl Future<Output = ()> + Send + 'static,
    listener: TcpListener,
    routes: Router,
    drain_at_most: Duration,
) -> io::Result<()> {
    let (stopping, stops) = oneshot::channel();
    let stop = async move {
        stop.await;
        println!("stopping");
        let _ = stopping.send(());
    };
    let too_long = async {
        let _ = stops.await;
        sleep(drain_at_most).await;
    };
    tokio::select! {
        served = axum::serve(listener, routes).with_graceful_shutdown(stop) => served,
        () = too_long => Ok(()),
    }
}

/// Completes on SIGTERM, as a supervisor sends it, or Ctrl-C.
#[cfg(unix)]
fn told_to_stop() -> io::Result<impl Future<Output = ()>> {
    use tokio::signal::unix::{SignalKind, signal};

    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    Ok(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    })
}

/// Completes on Ctrl-C.
#[cfg(not(unix))]
fn told_to_stop() -> io::Result<impl Future<Output = ()>> {
    Ok(async {
        let _ = tokio::signal::ctrl_c().await;
    })
}
