//! The account that every result carries: what each node said, in one line or in detail.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use super::command::{Answer, Unknown};
use super::quorum::Quorum;
use super::time::Instant;

/// What each node said in the round that decided.
///
/// `{}` prints one line, `{:#}` a line for each node.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Report {
    quorum: Quorum,
    nodes: Arc<[NodeReport]>,
}

impl Report {
    pub(crate) fn new(quorum: Quorum, nodes: Arc<[NodeReport]>) -> Self {
        Report { quorum, nodes }
    }

    /// Node by node, in the configured order.
    pub fn nodes(&self) -> &[NodeReport] {
        &self.nodes
    }

    /// How many nodes make a majority.
    pub fn majority(&self) -> usize {
        self.quorum.majority()
    }

    /// How many nodes said *yes*: granted, extended, released.
    pub fn granted(&self) -> usize {
        self.count(is_yes)
    }

    /// How many nodes said *no*: held or taken by another, without the key, or healed.
    pub fn denied(&self) -> usize {
        let no = |answer: &Answer| {
            matches!(
                answer,
                Answer::Denied | Answer::Busy(_) | Answer::Healed | Answer::Missing | Answer::Foreign
            )
        };
        self.count(no)
    }

    /// How many nodes gave no answer to the question, were given up, or do not vote yet after a restart.
    pub fn unknown(&self) -> usize {
        self.count(Answer::is_silence)
    }

    fn count(&self, what: impl Fn(&Answer) -> bool) -> usize {
        self.nodes.iter().filter(|node| matches!(&node.said, Said::Answer(answer) if what(answer))).count()
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if f.alternate() {
            let width = self.nodes.iter().map(|node| node.name.len()).max().unwrap_or(0);
            let lines = self.nodes.iter().map(|node| format!("{:width$}  {}", node.name, node.in_words()));
            return f.write_str(&lines.collect::<Vec<_>>().join("\n"));
        }
        let mut kinds: Vec<(&str, usize)> = Vec::new();
        for node in &*self.nodes {
            let word = node.said.word();
            match kinds.iter_mut().find(|(known, _)| *known == word) {
                Some((_, count)) => *count += 1,
                None => kinds.push((word, 1)),
            }
        }
        let counts: Vec<_> = kinds.iter().map(|(word, count)| format!("{count} {word}")).collect();
        let (nodes, majority) = (self.quorum.nodes(), self.quorum.majority());
        let noun = if nodes == 1 { "node" } else { "nodes" };
        write!(f, "{nodes} {noun}: {} (majority {majority})", counts.join(", "))
    }
}

fn is_yes(answer: &Answer) -> bool {
    let has_key = matches!(
        answer,
        Answer::Granted | Answer::Accepted | Answer::Voted(_) | Answer::Raised | Answer::Present
    );
    has_key || matches!(answer, Answer::Deleted { .. } | Answer::Proclaimed)
}

/// What one node said.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct NodeReport {
    name: Arc<str>,
    said: Said,
    after: Option<Duration>,
    votes_in: Option<Duration>,
}

impl NodeReport {
    /// It answered, so long after it was asked.
    pub(crate) fn new(name: &Arc<str>, asked_at: Instant, answer: &Answer, after: Duration) -> Self {
        let votes_in = match answer {
            Answer::Waiting { counts_from, .. } if *counts_from < Instant::NEVER => {
                Some(counts_from.since(asked_at + after))
            }
            _ => None,
        };
        NodeReport { name: name.clone(), said: Said::Answer(answer.clone()), after: Some(after), votes_in }
    }

    pub(crate) fn unheard(name: &Arc<str>, said: Said) -> Self {
        NodeReport { name: name.clone(), said, after: None, votes_in: None }
    }

    /// The address of the node, without a password.
    pub fn address(&self) -> &str {
        &self.name
    }

    pub(crate) fn name(&self) -> &Arc<str> {
        &self.name
    }

    /// Whether no answer that tells anything was heard.
    pub(crate) fn is_silence(&self) -> bool {
        !matches!(&self.said, Said::Answer(answer) if !answer.is_silence())
    }

    /// How long after the first byte of the round the answer was heard, or given up. `None` if neither has happened.
    pub fn after(&self) -> Option<Duration> {
        self.after
    }

    /// How long after its answer the node will vote, if its answer counts for nothing because it may have forgotten what it
    /// granted before a restart.
    pub fn votes_in(&self) -> Option<Duration> {
        self.votes_in
    }

    /// Whether the node said *yes*: granted, extended, released.
    pub fn is_granted(&self) -> bool {
        matches!(&self.said, Said::Answer(answer) if is_yes(answer))
    }

    /// What the node said, in words: `granted`, `held by another`, `timed out`, ...
    pub fn in_words(&self) -> String {
        match (&self.said, self.after) {
            (Said::Answer(Answer::Unknown(unknown)), Some(after)) => format!("{unknown} after {after:.1?}"),
            (Said::Answer(Answer::Waiting { .. }), Some(after)) => {
                let votes_in = self.votes_in.map_or(String::new(), |left| format!(" votes in {left:.1?},"));
                format!("waiting after a restart,{votes_in} answered after {after:.1?}")
            }
            (said, Some(after)) => format!("{} after {after:.1?}", said.word()),
            (said, None) => said.word().to_owned(),
        }
    }
}

/// What was heard of a node in a round.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Said {
    Answer(Answer),
    NothingYet,
    NotAsked,
}

impl Said {
    fn word(&self) -> &'static str {
        match self {
            Said::Answer(Answer::Granted | Answer::Accepted | Answer::Raised) => "granted",
            Said::Answer(Answer::Voted(_)) => "granted without the fence",
            Said::Answer(Answer::Denied | Answer::Busy(_)) => "held by another",
            Said::Answer(Answer::Enrolled(_)) => "counting",
            Said::Answer(Answer::Observed(_)) => "observed",
            Said::Answer(Answer::Present) => "extended",
            Said::Answer(Answer::Healed) => "had lost the key",
            Said::Answer(Answer::Missing) => "without the key",
            Said::Answer(Answer::Foreign) => "taken by another",
            Said::Answer(Answer::Deleted { .. }) => "released",
            Said::Answer(Answer::Proclaimed) => "proclaimed",
            Said::Answer(Answer::Seen(Some(_)) | Answer::Enlisted(Some(_)) | Answer::Followed(..)) => {
                "holding a key"
            }
            Said::Answer(Answer::Seen(None) | Answer::Enlisted(None) | Answer::Removed(None)) => "free",
            Said::Answer(Answer::Delisted) => "not waited at",
            Said::Answer(Answer::Removed(Some(_))) => "freed by force",
            Said::Answer(Answer::Unknown(unknown)) => match unknown {
                Unknown::NotConnected => "not connected",
                Unknown::ConnectionLost => "disconnected",
                Unknown::Timeout => "timed out",
                Unknown::Refused(_) => "refused",
                Unknown::Nonsense => "unintelligible",
            },
            Said::Answer(Answer::Waiting { .. }) => "waiting after a restart",
            Said::Answer(Answer::Counting { .. }) => "counting",
            Said::NothingYet => "not heard yet",
            Said::NotAsked => "not asked",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::command::Refusal;

    #[test]
    fn prints_one_line_or_a_line_for_each_node() {
        let names: Vec<Arc<str>> = vec!["10.0.0.1:6379".into(), "b:1".into(), "c:2".into(), "d:3".into()];
        let start = Instant::from_nanos(7);
        let said = [
            (Answer::Granted, Duration::from_micros(412)),
            (Answer::Unknown(Unknown::Refused(Refusal::Loading)), Duration::from_millis(2)),
            (Answer::Granted.heard(start, start + Duration::from_millis(503)), Duration::from_millis(3)),
        ];
        let answered = names.iter().zip(&said);
        let mut nodes: Vec<_> =
            answered.map(|(name, (answer, after))| NodeReport::new(name, start, answer, *after)).collect();
        nodes.push(NodeReport::unheard(&names[3], Said::NothingYet));
        let report = Report::new(Quorum::of(4), nodes.into());

        assert_eq!(
            report.to_string(),
            "4 nodes: 1 granted, 1 refused, 1 waiting after a restart, 1 not heard yet (majority 3)"
        );
        let detail = "10.0.0.1:6379  granted after 412.0µs\n\
                      b:1            refused (LOADING: reads its data from disk) after 2.0ms\n\
                      c:2            waiting after a restart, votes in 500.0ms, answered after 3.0ms\n\
                      d:3            not heard yet";
        assert_eq!(format!("{report:#}"), detail);
        assert_eq!((report.granted(), report.denied(), report.unknown()), (1, 0, 2));
    }
}
