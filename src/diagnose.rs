//! What is known of the nodes at one moment, for people: each node in a line, and what is found wrong or worth knowing,
//! with advice. It only looks: nothing is decided by it.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use crate::node::{Facts, ServerInfo};
use crate::protocol::command::Unknown;
use crate::protocol::report::{NodeReport, Report};

/// What [`Redlock::diagnose`](crate::Redlock::diagnose) saw.
///
/// `{}` prints a line for each node and a line for each finding; `{:#}` adds who each server is, and advice.
#[derive(Clone, Debug)]
pub struct Diagnosis {
    nodes: Vec<NodeDiagnosis>,
    findings: Vec<Finding>,
    majority: usize,
}

/// One node, as it was seen. What its server does not say, or may not be asked, is `None`.
#[derive(Clone, Debug)]
pub struct NodeDiagnosis {
    address: Arc<str>,
    state: NodeState,
    info: Option<ServerInfo>,
}

/// Where a node stands.
#[derive(Clone, Debug)]
enum NodeState {
    Votes { after: Duration },
    Waits { votes_in: Duration, why: Option<Arc<str>>, after: Duration },
    Silent { reason: String },
}

/// Something that was found, and what to do about it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    severity: Severity,
    node: Option<Arc<str>>,
    what: String,
    advice: &'static str,
}

/// How much a finding matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum Severity {
    /// Worth knowing. It passes by itself, or costs little.
    Notice,
    /// A node does not vote, or less is promised than could be.
    Warning,
    /// No lock is to be had, or two clients may hold one.
    Error,
}

impl Diagnosis {
    pub(crate) fn of(report: &Report, facts: Vec<Option<Facts>>) -> Self {
        let mut findings = Vec::new();
        let nodes: Vec<_> = report
            .nodes()
            .iter()
            .zip(facts)
            .map(|(answer, facts)| {
                let found = &mut |severity, what: String, advice| {
                    let node = Some(answer.name().clone());
                    findings.push(Finding { severity, node, what, advice });
                };
                examine(answer, facts, found)
            })
            .collect();
        let mut diagnosis = Diagnosis { nodes, findings, majority: report.majority() };
        diagnosis.look_at_all();
        diagnosis.findings.sort_by_key(|finding| std::cmp::Reverse(finding.severity));
        diagnosis
    }

    /// What no node alone can tell.
    fn look_at_all(&mut self) {
        let (nodes, voting) = (self.nodes.len(), self.voting());
        let mut found = |severity, what, advice| {
            self.findings.push(Finding { severity, node: None, what, advice });
        };
        if voting < self.majority {
            let what = format!("{voting} of {nodes} nodes vote, and a majority is {}", self.majority);
            found(Severity::Error, what, "no lock is to be had before more of them do");
        }
        if nodes.is_multiple_of(2) {
            let what = format!("{nodes} nodes tolerate no more failures than {}", nodes - 1);
            found(Severity::Warning, what, "use an odd number of nodes");
        }
    }

    /// Node by node, in the configured order.
    pub fn nodes(&self) -> &[NodeDiagnosis] {
        &self.nodes
    }

    /// What was found, the gravest first. Empty where all is well.
    pub fn findings(&self) -> &[Finding] {
        &self.findings
    }

    /// How many nodes vote now.
    pub fn voting(&self) -> usize {
        self.nodes.iter().filter(|node| node.votes()).count()
    }

    /// How many nodes make a majority.
    pub fn majority(&self) -> usize {
        self.majority
    }
}

/// One node, and what is found there.
fn examine(
    answer: &NodeReport,
    facts: Option<Facts>,
    found: &mut impl FnMut(Severity, String, &'static str),
) -> NodeDiagnosis {
    let (state, info) = match facts {
        Some(Facts::Down { reason, can_never_vote: true }) => {
            found(
                Severity::Error,
                reason.clone(),
                "mend the list of nodes: only independent masters can vote",
            );
            (NodeState::Silent { reason }, None)
        }
        Some(Facts::Down { reason, can_never_vote: false }) => {
            found(
                Severity::Warning,
                reason.clone(),
                "look at the server and the network; it is tried again for ever",
            );
            (NodeState::Silent { reason }, None)
        }
        Some(Facts::Up { waits_because, distrust, wakes_nobody_because, info }) => {
            let state = state_of(answer, waits_because, found);
            if let Some(reason) = wakes_nobody_because {
                found(
                    Severity::Notice,
                    format!("wakes nobody who waits here for a lock: {reason}"),
                    "those who wait ask again after random rests; docs/operations.md has the rights for messages",
                );
            }
            if let Some(distrust) = distrust {
                let what = format!("trust_disk is not followed: {distrust}");
                found(
                    Severity::Warning,
                    what,
                    "set appendonly yes and appendfsync always, or take trust_disk away",
                );
            }
            (state, examine_info(info, found))
        }
        None => (state_of(answer, None, found), None),
    };
    NodeDiagnosis { address: answer.name().clone(), state, info }
}

/// What its answer to a question says.
fn state_of(
    answer: &NodeReport,
    why: Option<Arc<str>>,
    found: &mut impl FnMut(Severity, String, &'static str),
) -> NodeState {
    if let Some(votes_in) = answer.votes_in() {
        let because = why.as_ref().map_or_else(String::new, |why| format!(": {why}"));
        let what = format!("does not vote yet{because}, votes in {votes_in:.1?}");
        found(Severity::Notice, what, "wait: it may have forgotten a lock that is still held");
        return NodeState::Waits { votes_in, why, after: answer.after().unwrap_or_default() };
    }
    match answer.after() {
        Some(after) if !answer.is_silence() => NodeState::Votes { after },
        _ => {
            let reason = answer.in_words();
            found(Severity::Warning, reason.clone(), "it has no vote while it answers like that");
            NodeState::Silent { reason }
        }
    }
}

/// What the server says of itself.
fn examine_info(
    info: Result<ServerInfo, Unknown>,
    found: &mut impl FnMut(Severity, String, &'static str),
) -> Option<ServerInfo> {
    let info = match info {
        Ok(info) => info,
        // That it does not answer at all is said already.
        Err(Unknown::Timeout | Unknown::ConnectionLost | Unknown::NotConnected) => return None,
        Err(reason) => {
            let what = format!("does not say who it is: INFO {reason}");
            const ADVICE: &str =
                "give its user +info: without it the node waits for the longest ttl at every connection";
            found(Severity::Warning, what, ADVICE);
            return None;
        }
    };
    if let Some(role) = info.role.as_deref().filter(|role| *role != "master") {
        found(
            Severity::Error,
            format!("is a {role} now"),
            "mend the list of nodes: only independent masters can vote",
        );
    }
    if let Some(policy) = info.eviction_policy.as_deref().filter(|policy| *policy != "noeviction") {
        let what = format!("maxmemory-policy is {policy}");
        const ADVICE: &str = "set noeviction: a key that is evicted is a lock that a second client may get";
        found(if info.has_memory_limit { Severity::Error } else { Severity::Notice }, what, ADVICE);
    }
    if info.replicas > 0 {
        let what = format!("{} replicas follow it", info.replicas);
        const ADVICE: &str =
            "if one of them takes over at this address, it waits for the longest ttl before it votes";
        found(Severity::Notice, what, ADVICE);
    }
    Some(info)
}

impl NodeDiagnosis {
    /// The address, without a password.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// Whether its answers count now.
    pub fn votes(&self) -> bool {
        matches!(self.state, NodeState::Votes { .. })
    }

    /// Why it does not answer: not connected, refused, timed out, can never vote.
    pub fn trouble(&self) -> Option<&str> {
        match &self.state {
            NodeState::Silent { reason } => Some(reason),
            NodeState::Votes { .. } | NodeState::Waits { .. } => None,
        }
    }

    /// How long until it votes, if it waits because it may have forgotten what it granted.
    pub fn votes_in(&self) -> Option<Duration> {
        match &self.state {
            NodeState::Waits { votes_in, .. } => Some(*votes_in),
            NodeState::Votes { .. } | NodeState::Silent { .. } => None,
        }
    }

    /// Why it waits.
    pub fn waits_because(&self) -> Option<&str> {
        match &self.state {
            NodeState::Waits { why, .. } => why.as_deref(),
            NodeState::Votes { .. } | NodeState::Silent { .. } => None,
        }
    }

    /// How long it took to answer a question about a key.
    pub fn latency(&self) -> Option<Duration> {
        match &self.state {
            NodeState::Votes { after } | NodeState::Waits { after, .. } => Some(*after),
            NodeState::Silent { .. } => None,
        }
    }

    /// The kind of server and its version: `redis 7.0.15`, `valkey 9.1.2`.
    pub fn server(&self) -> Option<&str> {
        self.info.as_ref()?.version.as_deref()
    }

    /// `master`, or what it is instead.
    pub fn role(&self) -> Option<&str> {
        self.info.as_ref()?.role.as_deref()
    }

    /// Which process it is: a restart changes it.
    pub fn run_id(&self) -> Option<&str> {
        self.info.as_ref()?.run_id.as_deref()
    }

    /// Whose memory it is (`master_replid`): a promotion or a resynchronisation changes it.
    pub fn replication_id(&self) -> Option<&str> {
        self.info.as_ref()?.replication_id.as_deref()
    }

    /// For how long its process runs, in whole seconds, of which one may be too many.
    pub fn uptime(&self) -> Option<Duration> {
        self.info.as_ref()?.uptime
    }

    /// What it keeps on disk: `appendfsync always` where it tells its configuration, `append-only file` where not, or
    /// `no append-only file`.
    pub fn persistence(&self) -> Option<&str> {
        self.info.as_ref()?.persistence.as_deref()
    }

    /// What it does when its memory is full; anything but `noeviction` may lose locks.
    pub fn eviction_policy(&self) -> Option<&str> {
        self.info.as_ref()?.eviction_policy.as_deref()
    }

    fn in_words(&self) -> String {
        match &self.state {
            NodeState::Votes { after } => format!("votes, answered after {after:.1?}"),
            NodeState::Waits { votes_in, after, .. } => {
                format!("waits, votes in {votes_in:.1?}, answered after {after:.1?}")
            }
            NodeState::Silent { reason } => format!("no vote: {reason}"),
        }
    }

    /// Name and value of what is known.
    fn details(&self) -> impl Iterator<Item = (&'static str, String)> {
        let owned = |value: Option<&str>| value.map(str::to_owned);
        [
            ("waits because", owned(self.waits_because())),
            ("server", owned(self.server())),
            ("role", owned(self.role())),
            ("run_id", owned(self.run_id())),
            ("master_replid", owned(self.replication_id())),
            ("uptime", self.uptime().map(|uptime| format!("{uptime:?}"))),
            ("persistence", owned(self.persistence())),
            ("eviction", owned(self.eviction_policy())),
        ]
        .into_iter()
        .filter_map(|(name, value)| Some((name, value?)))
    }
}

impl Finding {
    /// How much it matters.
    pub fn severity(&self) -> Severity {
        self.severity
    }

    /// The address of the node, if it is about one.
    pub fn node(&self) -> Option<&str> {
        self.node.as_deref()
    }

    /// What was found.
    pub fn what(&self) -> &str {
        &self.what
    }

    /// What to do about it.
    pub fn advice(&self) -> &str {
        self.advice
    }
}

impl fmt::Display for Diagnosis {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut lines = Vec::new();
        let width = self.nodes.iter().map(|node| node.address.len()).max().unwrap_or(0);
        for node in &self.nodes {
            lines.push(format!("{:width$}  {}", node.address, node.in_words()));
            if f.alternate() {
                lines.extend(node.details().map(|(name, value)| format!("  {name}: {value}")));
            }
        }
        for finding in &self.findings {
            lines.push(finding.to_string());
            if f.alternate() {
                lines.push(format!("  {}", finding.advice));
            }
        }
        f.write_str(&lines.join("\n"))
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.node {
            Some(node) => write!(f, "{}: {node}: {}", self.severity, self.what),
            None => write!(f, "{}: {}", self.severity, self.what),
        }
    }
}

impl fmt::Display for Severity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Severity::Notice => "notice",
            Severity::Warning => "warning",
            Severity::Error => "error",
        })
    }
}
