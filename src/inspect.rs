//! What the nodes show of a resource, for people.

use std::fmt;
use std::time::Duration;

use crate::error::{InspectError, with_report};
use crate::protocol::command::{Answer, Value};
use crate::protocol::look::Look;
use crate::protocol::report::Report;
use crate::protocol::round::Round;
use crate::protocol::settings::Terms;

/// What the nodes showed of a resource at one moment: for [`inspect`](crate::Mutex::inspect) it may have changed since, for
/// [`force_release`](crate::Mutex::force_release) it was so until then.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use std::time::Duration;
/// use redlock_quorum::MemoryNodes;
///
/// let nodes = MemoryNodes::new(3);
/// let redlock = nodes.builder().holder("worker-7").connect().await?;
/// let _guard = redlock.mutex("invoices/42").metadata("order 42").acquire().await?;
/// let seen = nodes.redlock().mutex("invoices/42").inspect().await?;
/// assert!(seen.by_majority());
/// assert_eq!((seen.holder(), seen.metadata()), (Some("worker-7"), Some("order 42")));
/// assert!(seen.expires_in() <= Some(Duration::from_secs(10)));
/// println!("{seen:#}"); // a line for each node
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct Inspection {
    value: Option<Value>,
    expires_in: Option<Duration>,
    by_majority: bool,
    report: Report,
}

impl Inspection {
    pub(crate) fn of(round: &Round, terms: &Terms) -> Result<Self, InspectError> {
        let report = round.report(terms);
        match Look::of(round, terms.quorum) {
            Look::Busy { value, free_in } => {
                Ok(Inspection { value: Some(value), expires_in: free_in, by_majority: true, report })
            }
            Look::Split | Look::Pending => {
                let value = round.answers().flatten().find_map(value_seen).cloned();
                Ok(Inspection { value, expires_in: None, by_majority: false, report })
            }
            Look::Unknown => Err(InspectError::NoQuorum(Box::new(report))),
        }
    }

    /// Whether one value stands on a majority of the nodes: somebody holds the resource.
    pub fn by_majority(&self) -> bool {
        self.by_majority
    }

    /// The holder's name. Where there is no majority, of somebody who has a node; `None` if no key stands, or none of ours.
    pub fn holder(&self) -> Option<&str> {
        self.value.as_ref().and_then(Value::holder)
    }

    /// The text that the holder put beside its name.
    pub fn metadata(&self) -> Option<&str> {
        self.value.as_ref().and_then(Value::metadata)
    }

    /// The value that stands, whoever wrote it: other libraries write values of other forms.
    pub fn value(&self) -> Option<&[u8]> {
        self.value.as_ref().map(Value::as_bytes)
    }

    /// How long until a majority of nodes is free if nobody extends, by the clocks of the nodes. `None` without a
    /// holder, or if its keys never expire.
    pub fn expires_in(&self) -> Option<Duration> {
        self.expires_in
    }

    /// Node by node.
    pub fn report(&self) -> &Report {
        &self.report
    }
}

fn value_seen(answer: &Answer) -> Option<&Value> {
    match answer.said() {
        Answer::Seen(Some(sighting)) | Answer::Removed(Some(sighting)) => Some(&sighting.value),
        _ => None,
    }
}

impl fmt::Display for Inspection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let what = match (self.by_majority, &self.value, self.holder()) {
            (true, _, Some(holder)) => format!("held by {holder}"),
            (true, _, None) => "held by another kind of client".to_owned(),
            (false, Some(_), _) => "held by nobody, though keys stand".to_owned(),
            (false, None, _) => "free".to_owned(),
        };
        with_report(f, &what, Some(&self.report))
    }
}
