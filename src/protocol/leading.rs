//! Who leads: the holder of a lock that has said so. Beside its lock a holder writes what it *proclaims*: the fence that it won
//! with it, which is its term, and a text for those who look on. Read-only for everybody else.
//!
//! # Why a holder says its term itself
//!
//! Beside the lock stands a counter of the fences, which nobody else moves while the lock stands. It is not the term to whoever
//! looks on: it is kept for an hour after the grant, and a leader may lead for months; and a node that was healed has the lock
//! again, and a counter of another origin. What a holder proclaims carries the value of its lock, which nobody else knows before it is
//! drawn, so it is true wherever it is found, whatever that node has forgotten.
//!
//! And only who was told that it has won proclaims. Values that one attempt left here and there, or that stand at nodes which do
//! not count, are nobody's leadership, however many there are.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use super::command::{Answer, Sighting, Value};
use super::fence::Fence;
use super::quorum::Quorum;
use super::round::Round;

/// The longest text that is proclaimed, in bytes.
pub const LONGEST_PROCLAMATION: usize = 4_096;

/// What a holder writes beside its lock: `{32 hex digits of the LeaseId}::{fence}:{revision}:{text}`. No value of a lock looks like that,
/// since a holder is never empty: so what is proclaimed takes no lock from anybody who has one by that name.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Proclamation(Arc<[u8]>);

impl Proclamation {
    /// By the holder whose value stands in the lock. Of two by one holder the one with the higher revision is the later one.
    pub fn new(value: &Value, term: Fence, (revision, text): (u64, &str)) -> Self {
        let said = format!("::{term}:{revision}:{text}");
        Proclamation([lease_id(value), said.as_bytes()].concat().into())
    }

    /// One that was read from a node, whoever wrote it.
    pub fn from_wire(bytes: &[u8]) -> Self {
        Proclamation(bytes.into())
    }

    /// The bytes on the wire.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// What it says, if it is by the holder whose value that is.
    pub fn by(&self, value: &Value) -> Option<Said<'_>> {
        let said = self.0.strip_prefix(lease_id(value))?.strip_prefix(b"::")?;
        let mut parts = std::str::from_utf8(said).ok()?.splitn(3, ':');
        let (term, revision, text) = (parts.next()?, parts.next()?, parts.next()?);
        Some(Said { revision: revision.parse().ok()?, term: Fence::new(term.parse().ok()?), text })
    }
}

impl fmt::Debug for Proclamation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.0.escape_ascii().to_string())
    }
}

fn lease_id(value: &Value) -> &[u8] {
    let bytes = value.as_bytes();
    &bytes[..bytes.len().min(32)]
}

/// What a proclamation says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Said<'a> {
    /// Later ones are higher.
    pub revision: u64,
    /// The fence that came with the lock.
    pub term: Fence,
    /// For those who look on.
    pub text: &'a str,
}

/// What a round of [`Follow`](super::command::Command::Follow) shows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reading {
    /// Too few answers to say, yet or at all.
    Open,
    /// Nobody leads, by a majority.
    Nobody,
    /// The lock of one holder stands on a majority, and that holder has proclaimed.
    Leader {
        /// What stands in the lock.
        value: Value,
        /// The latest that it has proclaimed.
        proclaimed: Proclamation,
        /// When it stands on a majority no more if nobody extends; `None`: never.
        ends_in: Option<Duration>,
    },
}

impl Reading {
    /// Reads a round. What a node shows counts even while the node waits after a restart: it is no vote for anybody.
    pub fn of(round: &Round, quorum: Quorum) -> Reading {
        let answers: Vec<&Answer> = round.answers().flatten().map(Answer::said).collect();
        let shown: Vec<_> = answers.iter().filter_map(|answer| shown(answer)).collect();
        let count = |value: &Value| shown.iter().filter(|(seen, _)| seen.value == *value).count();
        let held = shown.iter().map(|(seen, _)| (&seen.value, count(&seen.value))).max_by_key(|held| held.1);
        let most = held.map_or(0, |(_, nodes)| nodes);
        let Some((value, _)) = held.filter(|_| most >= quorum.majority()) else {
            // Those that are silent may show it, too.
            let answered = answers.iter().filter(|answer| !matches!(answer, Answer::Unknown(_))).count();
            let is_clear = most + quorum.nodes() - answered < quorum.majority();
            return if is_clear { Reading::Nobody } else { Reading::Open };
        };
        let stands: Vec<_> = shown.iter().filter(|(seen, _)| seen.value == *value).collect();
        let said = stands.iter().filter_map(|(_, proclaimed)| *proclaimed);
        let latest = said.filter_map(|said| Some((said.by(value)?.revision, said))).max();
        match latest {
            Some((_, proclaimed)) => {
                let ends_in = last_of_majority(stands.iter().map(|(seen, _)| seen.expires_in), quorum);
                Reading::Leader { value: value.clone(), proclaimed: proclaimed.clone(), ends_in }
            }
            // Others may have heard.
            None if round.answers().any(|answer| answer.is_none()) => Reading::Open,
            None => Reading::Nobody,
        }
    }
}

/// When so many keys have gone that those which are left are no majority.
fn last_of_majority(expiries: impl Iterator<Item = Option<Duration>>, quorum: Quorum) -> Option<Duration> {
    let mut expiries: Vec<Duration> = expiries.map(|left| left.unwrap_or(Duration::MAX)).collect();
    expiries.sort_unstable();
    Some(expiries[expiries.len() - quorum.majority()]).filter(|left| *left < Duration::MAX)
}

fn shown(answer: &Answer) -> Option<(&Sighting, Option<&Proclamation>)> {
    match answer {
        Answer::Followed(sighting, proclaimed) => Some((sighting, proclaimed.as_ref())),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::{any, prop_assert_eq};

    use super::*;
    use crate::protocol::command::{LeaseId, Signature, Unknown};
    use crate::protocol::round::RoundId;
    use crate::protocol::time::Instant;
    use crate::random;

    fn value(letter: char) -> Value {
        Value::new(LeaseId(letter as u128), &Signature::new("host", None))
    }

    /// One word a node: a letter is a value that lives for as many seconds as the node's number, with its proclamation where a
    /// number follows, which is the revision; `-` free, `?` silent, `.` pending, `~` before a word: it waits after a restart.
    fn reading(nodes: &str) -> String {
        let words: Vec<&str> = nodes.split(' ').collect();
        let quorum = Quorum::of(words.len());
        let start = Instant::from_nanos(0);
        let mut round = Round::to_all(RoundId(1), quorum, start, Duration::from_millis(200));
        for (node, word) in words.iter().enumerate() {
            let waits = word.starts_with('~');
            let mut letters = word.trim_start_matches('~').chars();
            let answer = match letters.next().expect("a letter") {
                '.' => continue,
                '?' => Answer::Unknown(Unknown::Timeout),
                '-' => Answer::Seen(None),
                letter => {
                    let said = letters.next().and_then(|digit| digit.to_digit(10));
                    let proclaimed = said.map(|revision| {
                        Proclamation::new(&value(letter), Fence::new(7), (revision.into(), "hello: all"))
                    });
                    let expires_in = Some(Duration::from_secs(node as u64 + 1));
                    Answer::Followed(Sighting { value: value(letter), expires_in }, proclaimed)
                }
            };
            let counts_from = if waits { Instant::NEVER } else { start };
            round.hear(node, answer.heard(start, counts_from), start);
        }
        match Reading::of(&round, quorum) {
            Reading::Open => "open".to_owned(),
            Reading::Nobody => "nobody".to_owned(),
            Reading::Leader { value, proclaimed, ends_in } => {
                let said = proclaimed.by(&value).expect("its own");
                let letter = char::from(value.as_bytes()[31]);
                format!("{letter} {} {} {:?}", said.revision, said.term, ends_in.unwrap_or(Duration::MAX))
            }
        }
    }

    #[test]
    fn who_has_a_majority_and_has_said_so_leads() {
        // The last hex digit of `a` is 1, that of `b` is 2.
        for (nodes, expected) in [
            ("a1 a1 .", "1 1 7 1s"),
            ("a1 a1 a1", "1 1 7 2s"),
            ("a a2 a1", "1 2 7 2s"),
            ("a1 a1 b2 b2 b2", "2 2 7 3s"),
            ("a1", "1 1 7 1s"),
            // One of three is not enough, whatever the others do.
            ("a1 . .", "open"),
            ("a1 - .", "open"),
            ("a1 - -", "nobody"),
            ("a1 ? ?", "open"),
            ("a1 ? -", "open"),
            ("- ? -", "nobody"),
            ("a1 b1 -", "nobody"),
            ("a1 b1 .", "open"),
            ("- - .", "nobody"),
            ("- . .", "open"),
            ("? ? ?", "open"),
            // It holds, and has not said that it has won: perhaps it does not know, or is no candidate.
            ("a a .", "open"),
            ("a a a", "nobody"),
            ("a a -", "nobody"),
            ("a a a1", "1 1 7 2s"),
            // What a node shows is true, whether or not it votes.
            ("~a1 ~a1 -", "1 1 7 1s"),
            ("~a ~a ~a", "nobody"),
        ] {
            assert_eq!(reading(nodes), expected, "{nodes}");
        }
    }

    #[test]
    fn what_another_has_proclaimed_is_not_taken_for_the_holders() {
        let (ours, theirs) = (value('a'), value('b'));
        let said = Proclamation::new(&theirs, Fence::new(3), (0, ""));
        assert_eq!(said.by(&ours), None);
        for damaged in [&b""[..], b"1", &said.as_bytes()[..33], b"\xff\xfe"] {
            assert_eq!(Proclamation::from_wire(damaged).by(&theirs), None);
        }
    }

    #[test]
    fn what_is_proclaimed_is_read_again() {
        random::check(256, &(any::<u64>(), any::<u64>(), "(?s).{0,40}"), |(term, revision, text)| {
            let said = Proclamation::new(&value('a'), Fence::new(term), (revision, &text));
            let read = Proclamation::from_wire(said.as_bytes());
            prop_assert_eq!(
                read.by(&value('a')),
                Some(Said { revision, term: Fence::new(term), text: &text })
            );
            Ok(())
        });
    }
}
