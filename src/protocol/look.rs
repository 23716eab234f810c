//! What the nodes show of a resource: who holds it by majority, nobody, or a split vote. Read-only.

use std::time::Duration;

use super::command::{Answer, Sighting, Value};
use super::quorum::Quorum;
use super::round::Round;

/// What a round of [`Inspect`](super::command::Command::Inspect) or [`Enlist`](super::command::Command::Enlist) shows, or
/// showed before a [`Remove`](super::command::Command::Remove).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Look {
    /// Not enough answers yet.
    Pending,
    /// One value stands on a majority: its writer holds the resource.
    Busy {
        /// The value that stands.
        value: Value,
        /// When a majority of nodes will be free if nobody extends: the q-th smallest time to live. `None`: never.
        free_in: Option<Duration>,
    },
    /// Nobody has a majority: contenders have taken the nodes from each other, or the nodes are free.
    Split,
    /// Too many nodes stayed silent to say.
    Unknown,
}

impl Look {
    /// Reads a round. Decided as soon as the missing answers cannot change the result.
    pub fn of(round: &Round, quorum: Quorum) -> Look {
        let silent = round.count(Answer::is_silence);
        let seen: Vec<Option<&Sighting>> = round.answers().flatten().filter_map(sighting).collect();
        let pending = quorum.nodes() - silent - seen.len();
        let (leader, votes) = most_frequent(&seen);
        if let Some(value) = leader.filter(|_| votes >= quorum.majority()) {
            return Look::Busy { value: value.clone(), free_in: free_in(&seen, quorum) };
        }
        if silent > quorum.spare() {
            Look::Unknown
        } else if votes + pending < quorum.majority() && seen.len() >= quorum.majority() {
            Look::Split
        } else {
            Look::Pending
        }
    }
}

fn sighting(answer: &Answer) -> Option<Option<&Sighting>> {
    match answer {
        Answer::Seen(seen) | Answer::Enlisted(seen) | Answer::Removed(seen) => Some(seen.as_ref()),
        _ => None,
    }
}

/// The value that most nodes show, and how many do.
fn most_frequent<'a>(seen: &[Option<&'a Sighting>]) -> (Option<&'a Value>, usize) {
    let count = |value: &Value| seen.iter().flatten().filter(|other| other.value == *value).count();
    let counted = seen.iter().flatten().map(|sighting| (&sighting.value, count(&sighting.value)));
    match counted.max_by_key(|(_, votes)| *votes) {
        Some((value, votes)) => (Some(value), votes),
        None => (None, 0),
    }
}

fn free_in(seen: &[Option<&Sighting>], quorum: Quorum) -> Option<Duration> {
    let mut waits: Vec<Duration> = seen
        .iter()
        .map(|sighting| sighting.map_or(Some(Duration::ZERO), |key| key.expires_in))
        .map(|wait| wait.unwrap_or(Duration::MAX))
        .collect();
    waits.sort_unstable();
    waits.get(quorum.majority() - 1).copied().filter(|wait| *wait < Duration::MAX)
}

#[cfg(test)]
mod tests {
    use std::mem::discriminant;

    use proptest::collection::vec;
    use proptest::option;
    use proptest::prelude::{Just, Strategy, any, prop_assert, prop_assert_eq, prop_oneof};

    use super::*;
    use crate::protocol::command::Unknown;
    use crate::protocol::round::RoundId;
    use crate::protocol::time::Instant;
    use crate::random;

    /// One letter a node: a letter is a value with as many seconds to live as its place, `-` free, `?` silent, `.` pending.
    fn look(nodes: &str) -> String {
        let quorum = Quorum::of(nodes.len());
        let start = Instant::from_nanos(0);
        let mut round = Round::to_all(RoundId(1), quorum, start, Duration::from_millis(200));
        for (node, letter) in nodes.chars().enumerate() {
            let answer = match letter {
                '.' => continue,
                '?' => Answer::Unknown(Unknown::Timeout),
                '-' => Answer::Seen(None),
                letter => Answer::Seen(Some(Sighting {
                    value: Value::from_wire(letter.to_string().as_bytes()),
                    expires_in: (letter != 'z').then(|| Duration::from_secs(node as u64 + 1)),
                })),
            };
            round.hear(node, answer, start);
        }
        match Look::of(&round, quorum) {
            Look::Pending => "pending".to_owned(),
            Look::Split => "split".to_owned(),
            Look::Unknown => "unknown".to_owned(),
            Look::Busy { value, free_in } => format!("{value:?} {free_in:?}"),
        }
    }

    #[test]
    fn says_who_holds_as_soon_as_it_is_clear() {
        for (nodes, expected) in [
            ("a", "\"a\" Some(1s)"),
            ("-", "split"),
            ("?", "unknown"),
            (".", "pending"),
            ("aa.", "\"a\" Some(2s)"),
            ("a-.", "pending"),
            ("ab.", "pending"),
            ("ab-", "split"),
            ("abc", "split"),
            ("a?.", "pending"),
            ("-?.", "pending"), // nobody holds, or too many nodes are silent to say so
            ("a?-", "split"),
            ("a??", "unknown"),
            ("---", "split"),
            ("--.", "split"),
            ("ab.aa", "\"a\" Some(4s)"),
            ("aaa-?", "\"a\" Some(2s)"), // the free node is one of the three that will be free
            ("zzz", "\"z\" None"),       // keys without an expiry
            ("aab-", "split"),           // with an even N, half is nothing
        ] {
            assert_eq!(look(nodes), expected, "{nodes}");
        }
    }

    fn any_answer() -> impl Strategy<Value = Answer> {
        let sighting = (0..3u8, option::weighted(0.8, 0..5u64)).prop_map(|(value, seconds)| Sighting {
            value: Value::from_wire(&[value]),
            expires_in: seconds.map(Duration::from_secs),
        });
        let seen = (option::weighted(0.7, sighting), any::<bool>())
            .prop_map(|(seen, gone)| if gone { Answer::Removed(seen) } else { Answer::Seen(seen) });
        prop_oneof![3 => seen, 1 => Just(Answer::Unknown(Unknown::Timeout))]
    }

    #[test]
    fn what_is_seen_early_is_not_contradicted_by_later_answers() {
        random::check(4096, &vec(any_answer(), 1..8), |answers| {
            let quorum = Quorum::of(answers.len());
            let start = Instant::from_nanos(0);
            let mut round = Round::to_all(RoundId(1), quorum, start, Duration::from_millis(200));
            let mut looks = vec![Look::of(&round, quorum)];
            for (node, answer) in answers.into_iter().enumerate() {
                round.hear(node, answer, start);
                looks.push(Look::of(&round, quorum));
            }
            let by_all = looks.last().expect("one for the start");
            prop_assert!(*by_all != Look::Pending);
            for early in looks.iter().filter(|look| **look != Look::Pending) {
                prop_assert_eq!(discriminant(early), discriminant(by_all), "{:?}", &looks);
                if let (Look::Busy { value, free_in }, Look::Busy { value: last, free_in: sooner }) =
                    (early, by_all)
                {
                    prop_assert_eq!(value, last);
                    // Another node may turn out to be free earlier.
                    let wait = |free_in: &Option<Duration>| free_in.unwrap_or(Duration::MAX);
                    prop_assert!(wait(sooner) <= wait(free_in), "{:?}", looks);
                }
            }
            Ok(())
        });
    }
}
