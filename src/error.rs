//! What can go wrong, one enum per verb. Each error prints in one line with `{}` and node by node with `{:#}`.

use std::fmt;
use std::time::Duration;

use crate::protocol::command::Value;
use crate::protocol::report::Report;
pub use crate::protocol::settings::SettingsError;

/// Why a lock was not acquired. In every case nothing is held, and what was set on the way is rolled back.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use std::time::Duration;
/// use redlock_quorum::{AcquireError, MemoryNodes};
///
/// let nodes = MemoryNodes::new(3);
/// nodes.hold("invoices/42", Duration::from_secs(60));
/// let mutex = nodes.redlock().mutex("invoices/42").wait(Duration::from_millis(50));
/// match mutex.acquire().await {
///     Ok(guard) => drop(guard),
///     Err(AcquireError::Held(held)) => println!("try later: {held}"),
///     Err(error @ (AcquireError::NoQuorum(_) | AcquireError::TooLate(_))) => println!("{error:#}"),
///     Err(error) => return Err(error.into()),
/// }
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
#[non_exhaustive]
pub enum AcquireError {
    /// Another holds the resource, or contenders kept splitting the votes, until the wait was over. Try later.
    Held(Box<Held>),
    /// Fewer nodes answered than make a majority. Look at the nodes.
    NoQuorum(Box<Report>),
    /// Enough nodes answered, but some of them were started a short while ago and do not vote yet, because they may have
    /// forgotten to whom they granted a lock. Try again when they do.
    /// [`diagnose`](crate::Redlock::diagnose) says why each of them waits, and
    /// [`restart_protection`](crate::RedlockBuilder::restart_protection) has the rules.
    NotReady {
        /// How long from now until enough nodes vote; `Duration::MAX` if nobody knows.
        votes_in: Duration,
        /// What each node said.
        report: Box<Report>,
    },
    /// A majority was won, but when it was known here its validity was over. The network, a node or this process was
    /// slower than the ttl: a longer ttl helps.
    TooLate(Box<Report>),
    /// As many callers of this client wait for the resource as [may](crate::Mutex::max_waiters). Nothing was asked.
    Full {
        /// How many may wait.
        max_waiters: usize,
    },
    /// [`shutdown`](crate::Redlock::shutdown) was called.
    Closed,
    /// A setting of the mutex was refused, before anything was sent.
    Settings(SettingsError),
}

impl AcquireError {
    /// What each node said in the last attempt, if the nodes were asked.
    pub fn report(&self) -> Option<&Report> {
        match self {
            AcquireError::Held(held) => held.report(),
            AcquireError::NoQuorum(report)
            | AcquireError::NotReady { report, .. }
            | AcquireError::TooLate(report) => Some(report),
            AcquireError::Full { .. } | AcquireError::Closed | AcquireError::Settings(_) => None,
        }
    }
}

impl fmt::Display for AcquireError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            AcquireError::Held(held) => held.fmt(f),
            AcquireError::NoQuorum(report) => {
                with_report(f, "no majority of the nodes answered", Some(report))
            }
            AcquireError::NotReady { votes_in, report } => {
                let when = match *votes_in {
                    Duration::MAX => "it is not known when a majority votes".to_owned(),
                    votes_in => format!("a majority votes in {votes_in:.1?}"),
                };
                let what =
                    format!("nodes that were started a short while ago may have forgotten a lock: {when}");
                with_report(f, &what, Some(report))
            }
            AcquireError::TooLate(report) => with_report(f, "acquired too late to be valid", Some(report)),
            AcquireError::Full { max_waiters } => {
                write!(f, "max_waiters is {max_waiters}, and as many wait in this client already")
            }
            AcquireError::Closed => f.write_str("the Redlock is shut down"),
            AcquireError::Settings(error) => error.fmt(f),
        }
    }
}

impl std::error::Error for AcquireError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            AcquireError::Settings(error) => Some(error),
            _ => None,
        }
    }
}

impl From<SettingsError> for AcquireError {
    fn from(error: SettingsError) -> Self {
        AcquireError::Settings(error)
    }
}

/// By whom a resource is held, as far as it is known.
#[derive(Debug)]
pub struct Held {
    by: Option<Value>,
    local: bool,
    report: Option<Report>,
}

impl Held {
    /// By a guard of this `Redlock` or a clone: found in the local queue, without asking the nodes.
    pub(crate) fn locally() -> Self {
        Held { by: None, local: true, report: None }
    }

    pub(crate) fn remotely(by: Option<Value>, report: Report) -> Self {
        Held { by, local: false, report: Some(report) }
    }

    /// The holder's name, if a majority shows one value of ours.
    pub fn holder(&self) -> Option<&str> {
        self.by.as_ref().and_then(Value::holder)
    }

    /// The holder's metadata, if a majority shows it.
    pub fn metadata(&self) -> Option<&str> {
        self.by.as_ref().and_then(Value::metadata)
    }

    /// Whether a guard of this same `Redlock` holds it or waits for it. Mutexes are not reentrant.
    pub fn is_local(&self) -> bool {
        self.local
    }

    /// What each node said, if the nodes were asked.
    pub fn report(&self) -> Option<&Report> {
        self.report.as_ref()
    }
}

impl fmt::Display for Held {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.holder() {
            Some(holder) => with_report(f, &format!("held by {holder}"), self.report()),
            None if self.local => f.write_str("held by this same Redlock"),
            None => with_report(f, "held by another", self.report()),
        }
    }
}

/// Why an extension brought nothing.
#[derive(Debug)]
#[non_exhaustive]
pub enum ExtendError {
    /// The lock is lost or released, for good. Stop.
    Lost,
    /// Fewer nodes answered than make a majority. The old lease stands as it was; try again.
    NoQuorum(Box<Report>),
    /// A majority confirmed, but when it was known here the new validity was over as well. Stop.
    TooLate,
    /// The lease reaches to the end of [`hold_at_most`](crate::Mutex::hold_at_most) already, and stands.
    Capped,
    /// The length was refused, before anything was sent. The old lease stands.
    Settings(SettingsError),
}

impl fmt::Display for ExtendError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ExtendError::Lost => f.write_str("the lock is lost"),
            ExtendError::NoQuorum(report) => {
                with_report(f, "not extended: no majority of the nodes answered", Some(report))
            }
            ExtendError::TooLate => f.write_str("extended too late to be valid"),
            ExtendError::Capped => f.write_str("hold_at_most allows no longer lease"),
            ExtendError::Settings(error) => error.fmt(f),
        }
    }
}

impl std::error::Error for ExtendError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            ExtendError::Settings(error) => Some(error),
            _ => None,
        }
    }
}

impl From<SettingsError> for ExtendError {
    fn from(error: SettingsError) -> Self {
        ExtendError::Settings(error)
    }
}

/// Why [`run`](crate::Mutex::run) gave no result.
#[derive(Debug)]
#[non_exhaustive]
pub enum RunError {
    /// The lock was not acquired: nothing was run.
    Acquire(AcquireError),
    /// The lock was lost: the work was dropped where it stood, or had ended after the validity. It may be half done.
    Lost,
}

impl fmt::Display for RunError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            RunError::Acquire(error) => error.fmt(f),
            RunError::Lost => f.write_str("the lock was lost during the work"),
        }
    }
}

impl std::error::Error for RunError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            RunError::Acquire(error) => Some(error),
            RunError::Lost => None,
        }
    }
}

impl From<AcquireError> for RunError {
    fn from(error: AcquireError) -> Self {
        RunError::Acquire(error)
    }
}

/// Why a [campaign](crate::Election::campaign) ended without an election.
#[derive(Debug)]
#[non_exhaustive]
pub enum CampaignError {
    /// [`shutdown`](crate::Redlock::shutdown) was called.
    Closed,
    /// A setting of the election was refused, before anything was sent.
    Settings(SettingsError),
}

impl fmt::Display for CampaignError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            CampaignError::Closed => f.write_str("the Redlock is shut down"),
            CampaignError::Settings(error) => error.fmt(f),
        }
    }
}

impl std::error::Error for CampaignError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            CampaignError::Closed => None,
            CampaignError::Settings(error) => Some(error),
        }
    }
}

impl From<SettingsError> for CampaignError {
    fn from(error: SettingsError) -> Self {
        CampaignError::Settings(error)
    }
}

/// Why a text was not [proclaimed](crate::Leadership::proclaim).
#[derive(Debug)]
#[non_exhaustive]
pub enum ProclaimError {
    /// It leads no more, for good. Stop.
    Lost,
    /// Fewer nodes took it than make a majority, so not every observer need see it. It is tried again with each renewal of what is
    /// proclaimed, three times in a lease.
    NoQuorum(Box<Report>),
    /// The text was refused, before anything was sent.
    Settings(SettingsError),
}

impl fmt::Display for ProclaimError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ProclaimError::Lost => f.write_str("the leadership is lost"),
            ProclaimError::NoQuorum(report) => {
                with_report(f, "not proclaimed to a majority of the nodes", Some(report))
            }
            ProclaimError::Settings(error) => error.fmt(f),
        }
    }
}

impl std::error::Error for ProclaimError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            ProclaimError::Settings(error) => Some(error),
            _ => None,
        }
    }
}

impl From<SettingsError> for ProclaimError {
    fn from(error: SettingsError) -> Self {
        ProclaimError::Settings(error)
    }
}

/// Less validity remains than was asked for: [`within`](crate::Guard::within).
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{remaining:.1?} of validity remain, but {needed:.1?} are needed")]
pub struct WithinError {
    /// What was asked for.
    pub needed: Duration,
    /// What remains: zero if the lock is lost.
    pub remaining: Duration,
}

#[doc(alias = "ErrLockNotHeld")]
/// The lock was not held any more when it was released: [`Release::ok`](crate::Release::ok).
#[derive(Debug)]
pub struct NotHeld(pub(crate) Box<crate::guard::Release>);

impl NotHeld {
    /// The release that found it so.
    pub fn release(&self) -> &crate::guard::Release {
        &self.0
    }
}

impl fmt::Display for NotHeld {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl std::error::Error for NotHeld {}

/// Why a resource could not be inspected.
#[derive(Debug)]
#[non_exhaustive]
pub enum InspectError {
    /// Fewer nodes answered than make a majority; those that do not vote yet after a restart have no say in this either.
    NoQuorum(Box<Report>),
    /// A setting was refused, before anything was sent.
    Settings(SettingsError),
}

impl fmt::Display for InspectError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            InspectError::NoQuorum(report) => {
                with_report(f, "no majority of the nodes answered", Some(report))
            }
            InspectError::Settings(error) => error.fmt(f),
        }
    }
}

impl std::error::Error for InspectError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            InspectError::Settings(error) => Some(error),
            InspectError::NoQuorum(_) => None,
        }
    }
}

impl From<SettingsError> for InspectError {
    fn from(error: SettingsError) -> Self {
        InspectError::Settings(error)
    }
}

/// Why an operator's word about the nodes did not reach enough of them.
#[derive(Debug)]
#[non_exhaustive]
pub enum EnrolError {
    /// Fewer nodes answered than make a majority, or they do not say which process they are (`INFO` is forbidden). Where it was
    /// heard it holds.
    NoQuorum(Box<Report>),
    /// Clients of the namespace have agreed on other nodes, another order of them, or another
    /// [`max_ttl`](crate::RedlockBuilder::max_ttl). Nothing was done. Use the same, or
    /// [`reconfigure`](crate::Redlock::reconfigure).
    OtherRules(Box<Report>),
    /// A setting was refused, before anything was sent.
    Settings(SettingsError),
}

impl fmt::Display for EnrolError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            EnrolError::NoQuorum(report) => with_report(f, "no majority of the nodes answered", Some(report)),
            EnrolError::OtherRules(report) => {
                let what = "clients of this namespace have agreed on other nodes or another max_ttl";
                with_report(f, what, Some(report))
            }
            EnrolError::Settings(error) => error.fmt(f),
        }
    }
}

impl std::error::Error for EnrolError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            EnrolError::Settings(error) => Some(error),
            EnrolError::NoQuorum(_) | EnrolError::OtherRules(_) => None,
        }
    }
}

impl From<SettingsError> for EnrolError {
    fn from(error: SettingsError) -> Self {
        EnrolError::Settings(error)
    }
}

/// Why a [`Redlock`](crate::Redlock) could not be set up.
#[derive(Debug)]
#[non_exhaustive]
pub enum ConnectError {
    /// A setting was refused, before any connection was tried.
    Settings(SettingsError),
    /// Fewer nodes than make a majority could be reached and identified in time: each node's address, and the reason where
    /// it was not.
    NoQuorum {
        /// Node by node; no reason for those that are up.
        nodes: Vec<(String, Option<String>)>,
    },
    /// Nodes that were reached, but can never vote: a replica, a member of a Redis Cluster, or the same server as another
    /// node. Mend the list of nodes.
    Unfit {
        /// Their addresses, and what they are.
        nodes: Vec<(String, String)>,
    },
    /// There is no tokio runtime here to live on.
    NoRuntime,
}

impl fmt::Display for ConnectError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ConnectError::Settings(error) => error.fmt(f),
            ConnectError::NoQuorum { nodes } => {
                let up = nodes.iter().filter(|(_, reason)| reason.is_none()).count();
                write!(f, "only {up} of {} nodes could be reached", nodes.len())?;
                list(
                    f,
                    nodes
                        .iter()
                        .filter_map(|(address, reason)| reason.as_ref().map(|reason| (address, reason))),
                )
            }
            ConnectError::Unfit { nodes } => {
                write!(f, "{} of the nodes cannot vote", nodes.len())?;
                list(f, nodes.iter().map(|(address, reason)| (address, reason)))
            }
            ConnectError::NoRuntime => f.write_str("no tokio runtime is running here"),
        }
    }
}

impl std::error::Error for ConnectError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            ConnectError::Settings(error) => Some(error),
            _ => None,
        }
    }
}

impl From<SettingsError> for ConnectError {
    fn from(error: SettingsError) -> Self {
        ConnectError::Settings(error)
    }
}

/// `; address: reason` for each, or a line for each.
fn list<'a>(
    f: &mut fmt::Formatter<'_>,
    reasons: impl Iterator<Item = (&'a String, &'a String)>,
) -> fmt::Result {
    let separator = if f.alternate() { "\n" } else { "; " };
    for (address, reason) in reasons {
        write!(f, "{separator}{address}: {reason}")?;
    }
    Ok(())
}

/// `what; 5 nodes: ...` in one line, or `what` and a line for each node.
pub(crate) fn with_report(f: &mut fmt::Formatter<'_>, what: &str, report: Option<&Report>) -> fmt::Result {
    match report {
        None => f.write_str(what),
        Some(report) if f.alternate() => write!(f, "{what}\n{report:#}"),
        Some(report) => write!(f, "{what}; {report}"),
    }
}
