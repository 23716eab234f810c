//! What a client is told when there is no lock, and when it makes sense to ask again.

use axum::http::StatusCode;
use axum::http::header::RETRY_AFTER;
use axum::response::{IntoResponse, Response};
use redlock_quorum::{AcquireError, InspectError, RunError};

/// In seconds: by then a charge is usually done. When the keys of the holder would expire, which
/// [`inspect`](redlock_quorum::Mutex::inspect) tells, is no better guess: a holder that lives renews them, and is done when
/// its work is, and only one that died is outlasted by them. It would send everybody away for most of a ttl.
const WHEN_BUSY: u32 = 1;

/// In seconds: nodes that restart need a while, and clients that hurry do not help them.
const WHEN_NODES_ARE_DOWN: u32 = 5;

/// In seconds: another instance can do it now.
const WHEN_STOPPING: u32 = 1;

/// Why a charge was not made, or may not have been.
pub(crate) enum Refusal {
    /// Somebody else works on this user.
    Busy,
    Failed(RunError),
}

impl From<RunError> for Refusal {
    fn from(error: RunError) -> Self {
        Refusal::Failed(error)
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        match self {
            Refusal::Busy => busy(),
            Refusal::Failed(RunError::Acquire(error)) => not_acquired(&error),
            // Nobody may say "not charged" here, and nobody should try again unasked. A real service asks for a key with
            // each charge, under which the ledger knows a repeated one.
            Refusal::Failed(RunError::Lost) => plain(
                StatusCode::INTERNAL_SERVER_ERROR,
                "the lock was lost during the charge, which may or may not have been made: \
                 look at the total before you try again",
            ),
            Refusal::Failed(error) => internal(&error.to_string()),
        }
    }
}

fn not_acquired(error: &AcquireError) -> Response {
    match error {
        AcquireError::Held(_) => busy(),
        // Which nodes said what is for the operators.
        AcquireError::NoQuorum(_) | AcquireError::TooLate(_) => {
            eprintln!("no lock: {error}");
            unavailable("the locks are not available, and nothing was charged", WHEN_NODES_ARE_DOWN)
        }
        // Nodes that were restarted. They say themselves how long it takes.
        AcquireError::NotReady { votes_in, .. } => {
            eprintln!("no lock: {error}");
            let seconds = u32::try_from(votes_in.as_secs()).unwrap_or(u32::MAX).saturating_add(1);
            unavailable("the locks are not available yet, and nothing was charged", seconds)
        }
        AcquireError::Closed => {
            unavailable("this instance is stopping, and nothing was charged", WHEN_STOPPING)
        }
        // The only setting that comes from outside is the name of the user.
        AcquireError::Settings(error) if error.field() == "resource" => {
            plain(StatusCode::BAD_REQUEST, "this cannot be the name of a user")
        }
        error => internal(&error.to_string()),
    }
}

/// Too few nodes answer.
pub(crate) struct Sick(InspectError);

impl From<InspectError> for Sick {
    fn from(error: InspectError) -> Self {
        Sick(error)
    }
}

impl IntoResponse for Sick {
    fn into_response(self) -> Response {
        unavailable(&self.0.to_string(), WHEN_NODES_ARE_DOWN)
    }
}

fn busy() -> Response {
    again(StatusCode::CONFLICT, "another charge of this user is in work, and nothing was charged", WHEN_BUSY)
}

fn unavailable(why: &str, retry_after: u32) -> Response {
    again(StatusCode::SERVICE_UNAVAILABLE, why, retry_after)
}

fn again(status: StatusCode, why: &str, retry_after: u32) -> Response {
    ([(RETRY_AFTER, retry_after.to_string())], plain(status, why)).into_response()
}

/// What went wrong is for the operators; the client can do nothing about it.
fn internal(what: &str) -> Response {
    eprintln!("{what}");
    plain(StatusCode::INTERNAL_SERVER_ERROR, "internal error")
}

fn plain(status: StatusCode, text: &str) -> Response {
    (status, format!("{text}\n")).into_response()
}
