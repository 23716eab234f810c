//! Where a candidate stands, for whoever looks after the process.

use std::fmt;
use std::time::Duration;

use crate::guard::Watch;
use crate::protocol::fence::Fence;
use crate::protocol::time::Instant;

/// Where a candidate stands: see [`Election::status`](crate::Election::status).
///
/// `{}` prints one line. With the feature `serde` it serializes as a map with `election`, `candidate`, `role`, `term`,
/// `since_ms`, `remaining_ms` and `last_error`.
///
/// ```
/// # #[tokio::main(flavor = "current_thread", start_paused = true)]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # use std::time::Duration;
/// use redlock_quorum::{MemoryNodes, Role};
///
/// let nodes = MemoryNodes::new(3);
/// let election = nodes.redlock().election("scheduler").candidate("host-7");
/// assert_eq!(election.status().to_string(), "host-7 does not stand for scheduler");
/// let leadership = election.campaign().await?;
/// let status = election.status();
/// assert!(status.is_leader() && status.term() == Some(leadership.term()));
/// leadership.resign().await.ok()?;
/// assert_eq!(election.status().role(), Role::Idle);
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct ElectionStatus {
    election: String,
    candidate: String,
    role: Role,
    since: Duration,
    term: Option<Fence>,
    remaining: Duration,
    last_error: Option<String>,
}

/// What a candidate is at a moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Role {
    /// It does not stand.
    Idle,
    /// It waits to be elected.
    Candidate,
    /// It leads.
    Leader,
    /// It led, has lost that, and has not ended or begun anything since.
    Lost,
}

impl Role {
    fn word(self) -> &'static str {
        match self {
            Role::Idle => "idle",
            Role::Candidate => "candidate",
            Role::Leader => "leader",
            Role::Lost => "lost",
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.word())
    }
}

impl ElectionStatus {
    /// The name of the election.
    pub fn election(&self) -> &str {
        &self.election
    }

    /// The name of the candidate.
    pub fn candidate(&self) -> &str {
        &self.candidate
    }

    /// What it is now.
    pub fn role(&self) -> Role {
        self.role
    }

    /// Whether it leads now.
    pub fn is_leader(&self) -> bool {
        self.role == Role::Leader
    }

    /// For how long it has campaigned or led, or has not; of one that lost its leadership, since it was elected.
    pub fn since(&self) -> Duration {
        self.since
    }

    /// Its term, if it leads or has just lost.
    pub fn term(&self) -> Option<Fence> {
        self.term
    }

    /// How long until the leadership is lost if nothing is renewed: a leader for whom this gets short cannot reach a majority.
    pub fn remaining(&self) -> Duration {
        self.remaining
    }

    /// Why the last attempt to be elected failed, if it was not that another leads.
    pub fn last_error(&self) -> Option<&str> {
        self.last_error.as_deref()
    }
}

impl fmt::Display for ElectionStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ElectionStatus { election, candidate, since, remaining, .. } = self;
        let term = self.term.unwrap_or_default();
        match self.role {
            Role::Idle => write!(f, "{candidate} does not stand for {election}")?,
            Role::Candidate => write!(f, "{candidate} has stood for {election} for {since:.1?}")?,
            Role::Leader => write!(
                f,
                "{candidate} leads {election}, term {term}, for {since:.1?}, and {remaining:.1?} more if nothing is renewed"
            )?,
            Role::Lost => write!(f, "{candidate} has lost {election}, term {term}")?,
        }
        self.last_error.as_ref().map_or(Ok(()), |error| write!(f, "; {error}"))
    }
}

#[cfg(feature = "serde")]
impl serde::Serialize for ElectionStatus {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        use serde::ser::SerializeStruct;
        let millis = |span: Duration| u64::try_from(span.as_millis()).unwrap_or(u64::MAX);
        let mut fields = serializer.serialize_struct("ElectionStatus", 7)?;
        fields.serialize_field("election", self.election())?;
        fields.serialize_field("candidate", self.candidate())?;
        fields.serialize_field("role", self.role.word())?;
        fields.serialize_field("term", &self.term)?;
        fields.serialize_field("since_ms", &millis(self.since))?;
        fields.serialize_field("remaining_ms", &millis(self.remaining))?;
        fields.serialize_field("last_error", &self.last_error())?;
        fields.end()
    }
}

/// What an election remembers of its own candidate.
pub(super) struct Standing {
    since: Instant,
    part: Part,
    pub(super) last_error: Option<String>,
}

enum Part {
    Idle,
    Candidate,
    Leader(Fence, Watch),
}

impl Standing {
    pub(super) fn idle(now: Instant) -> Self {
        Standing { since: now, part: Part::Idle, last_error: None }
    }

    pub(super) fn campaigns(&mut self, now: Instant) {
        *self = Standing { since: now, part: Part::Candidate, last_error: None };
    }

    pub(super) fn leads(&mut self, now: Instant, term: Fence, watch: Watch) {
        *self = Standing { since: now, part: Part::Leader(term, watch), last_error: None };
    }

    /// A campaign ends without an election.
    pub(super) fn rests(&mut self, now: Instant) {
        (self.since, self.part) = (now, Part::Idle);
    }

    /// That leadership is over, unless something else has begun since.
    pub(super) fn ends(&mut self, now: Instant, term: Fence) {
        if matches!(self.part, Part::Leader(other, _) if other == term) {
            self.rests(now);
        }
    }

    pub(super) fn status(&self, (election, candidate): (String, &str), now: Instant) -> ElectionStatus {
        let (role, term, remaining) = match &self.part {
            Part::Idle => (Role::Idle, None, Duration::ZERO),
            Part::Candidate => (Role::Candidate, None, Duration::ZERO),
            Part::Leader(term, watch) => {
                let remaining = watch.remaining();
                let role = if remaining.is_zero() { Role::Lost } else { Role::Leader };
                (role, Some(*term), remaining)
            }
        };
        ElectionStatus {
            election,
            candidate: candidate.to_owned(),
            role,
            since: now.since(self.since),
            term,
            remaining,
            last_error: self.last_error.clone(),
        }
    }
}
