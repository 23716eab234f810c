//! Stories of one claim as readable text: what happens, and what the protocol answers.
//!
//! Each file under `tests/stories/` is played against the pure protocol, and its `->` lines must come out again as they
//! stand. With `UPDATE_STORIES=1` they are written anew, to be read and judged in the diff.
//!
//! A story begins with its terms (`nodes 3, ttl 10s, ...`), then goes on line by line: a time, and what happens at it. An
//! answer of a node goes to the oldest command of that node that it can be an answer to.
#![cfg(feature = "sim")]

use std::fmt::Write as _;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use redlock_quorum::protocol::claim::{Action, Claim, Draw, Event, Kind, Notice, Ticket, Why};
use redlock_quorum::protocol::command::{
    Answer, Command, Key, LeaseId, NodeIndex, Sighting, Signature, Unknown, Value, Wake,
};
use redlock_quorum::protocol::fence::{Fence, Proposer};
use redlock_quorum::protocol::marker::{Nonce, Pact, Rules};
use redlock_quorum::protocol::round::RoundId;
use redlock_quorum::protocol::settings::{Renewal, Wishes};
use redlock_quorum::protocol::time::{Instant, Ttl};
use redlock_quorum::protocol::wait::{Backoff, Patience, WakeBy};

#[test]
fn every_story_goes_as_it_is_written() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/stories");
    let mut played = 0;
    for entry in std::fs::read_dir(&folder).expect("the folder of stories") {
        let path = entry.expect("a story").path();
        let text = std::fs::read_to_string(&path).expect("a readable story");
        let told = play(&text);
        played += 1;
        if std::env::var_os("UPDATE_STORIES").is_some() {
            std::fs::write(&path, &told).expect("a writable story");
            continue;
        }
        assert!(told == text, "{} goes differently:\n\n{told}", path.display());
    }
    assert!(played > 0, "no story in {}", folder.display());
}

/// Tells the story anew: the same lines, with the actions that come out.
fn play(text: &str) -> String {
    let mut told = String::new();
    let mut stage: Option<Stage> = None;
    for line in text.lines().filter(|line| !line.trim_start().starts_with("->")) {
        told.push_str(line);
        told.push('\n');
        if line.starts_with("nodes ") {
            stage = Some(Stage::set(line));
        } else if !line.is_empty() && !line.starts_with('#') {
            let (time, words) = line.split_once(char::is_whitespace).expect("a time and what happens");
            let stage = stage.as_mut().expect("the terms come first");
            stage.now = Instant::from_nanos(0) + length(time);
            for told_line in stage.perform(words.trim()) {
                writeln!(told, "          -> {told_line}").expect("a string");
            }
        }
    }
    told
}

struct Stage {
    claim: Claim,
    now: Instant,
    nodes: usize,
    /// What each node was asked and has not answered.
    asked: Vec<(NodeIndex, RoundId, Command)>,
    attempts: u128,
    jitter: u64,
    tickets: u64,
}

impl Stage {
    /// `nodes 3, ttl 10s, wait 30s, node_timeout 200ms, hold_at_most 1s, renewal never, jitter 50%`, or `try` for the wait.
    fn set(line: &str) -> Stage {
        let (mut wishes, mut patience, mut nodes, mut jitter) =
            (Wishes::default(), Patience::Once, 0, u64::MAX / 2);
        let (mut lets_others_pass, mut is_fenced) = (false, false);
        for term in line.split(", ") {
            match term.split_once(' ').filter(|_| term != "lets others pass").unwrap_or((term, "")) {
                ("nodes", count) => nodes = count.parse().expect("a number of nodes"),
                ("ttl", ttl) => wishes.ttl = length(ttl),
                ("max_ttl", ttl) => wishes.max_ttl = Some(length(ttl)),
                ("wait", wait) => match wait.strip_suffix(" without restarts") {
                    Some(wait) => {
                        // As long as a restarted node waits.
                        let spare = wishes.ttl + wishes.drift.allowance(Ttl::from_duration(wishes.ttl));
                        let end = Instant::from_nanos(0) + length(wait);
                        patience = Patience::UntilWithout { end, spare };
                    }
                    None => patience = Patience::Until(Instant::from_nanos(0) + length(wait)),
                },
                ("try", _) => patience = Patience::Once,
                ("node_timeout", timeout) => wishes.node_timeout = Some(length(timeout)),
                ("hold_at_most", bound) => wishes.hold_at_most = length(bound),
                ("hold_at_least", bound) => wishes.hold_at_least = length(bound),
                ("rests", pause) => {
                    let pause = length(pause);
                    wishes.backoff = Backoff::custom(move |_| Some(pause));
                }
                ("attempts", count) => {
                    wishes.backoff = wishes.backoff.attempts(count.parse().expect("a number of attempts"));
                }
                ("polls", pause) => wishes.wake_by = WakeBy::Poll(length(pause)),
                ("lets others pass", _) => lets_others_pass = true,
                ("fenced", _) => is_fenced = true,
                ("renewal", "never") => wishes.renewal = Renewal::Never,
                ("renewal", pause) => wishes.renewal = Renewal::Every(length(pause)),
                ("jitter", "0%") => jitter = 0,
                other => panic!("no such term: {other:?}"),
            }
        }
        let names = (1..=nodes).map(|node| format!("n{node}").into()).collect();
        let terms = Arc::new(wishes.check(&names).expect("terms that fit"));
        let pact = Pact::of(&terms.nodes, terms.quorum, terms.max_ttl);
        let mut claim = Claim::new(Key::of_lock("", b"k"), Signature::new("w", None), terms, patience);
        if lets_others_pass {
            claim = claim.letting_others_pass();
        }
        if is_fenced {
            // The wall clock of the client shows the time of the story: proposals are its microseconds.
            claim = claim.of_kind(Kind::Fenced(pact, Box::new(Proposer::new(0))));
        }
        let now = Instant::from_nanos(0);
        Stage { claim, now, nodes, asked: Vec::new(), attempts: 0, jitter, tickets: 0 }
    }

    fn perform(&mut self, words: &str) -> Vec<String> {
        let events = match words.split(' ').collect::<Vec<_>>()[..] {
            ["begin" | "tick"] => vec![Event::Tick],
            ["changed"] => vec![Event::Alarm],
            ["verify"] => {
                self.tickets += 1;
                vec![Event::Verify { ticket: Ticket(self.tickets) }]
            }
            ["release"] => vec![Event::Release],
            ["hands", "over"] => vec![Event::HandOver],
            ["abandon"] => vec![Event::Abandon],
            ["extend", ttl] => {
                self.tickets += 1;
                vec![Event::Extend { ticket: Ticket(self.tickets), ttl: Ttl::from_duration(length(ttl)) }]
            }
            ["looks", "again"] => vec![Event::LookAgain],
            [ref nodes @ .., "wake" | "wakes"] => {
                nodes.iter().map(|node| Event::Woken { node: number_of(node) }).collect()
            }
            [ref nodes @ .., _] if nodes.iter().all(|node| node.starts_with('n')) && !nodes.is_empty() => {
                let answer = words.rsplit(' ').next().expect("an answer");
                nodes.iter().map(|node| self.answer(node, answer)).collect()
            }
            _ => panic!("what happens in {words:?}?"),
        };
        let mut actions = Vec::new();
        for event in events {
            self.claim.handle(self.now, event, &mut actions);
            while let Some(place) = actions.iter().position(|action| *action == Action::Draw) {
                actions.remove(place);
                self.attempts += 1;
                let draw = Draw { lease_id: LeaseId(self.attempts), jitter: self.jitter };
                self.claim.handle(self.now, Event::Attempt(draw), &mut actions);
            }
        }
        self.tell(actions)
    }

    fn answer(&mut self, node: &str, answer: &str) -> Event {
        let node = number_of(node);
        // `granted@10s`: said by a node that votes only from then on.
        let (answer, counts_from) = match answer.split_once('@') {
            Some((answer, "never")) => (answer, Some(Instant::NEVER)),
            Some((answer, time)) => (answer, Some(Instant::from_nanos(0) + length(time))),
            None => (answer, None),
        };
        // `present#2`: said by a node that counts under another nonce than at first.
        let (answer, incarnation) = match answer.split_once('#').filter(|_| !answer.contains("sees:")) {
            Some((answer, number)) => (answer, number.parse().expect("a number")),
            None => (answer, 1),
        };
        let fits = |command: &Command| match command {
            Command::Acquire { .. } => matches!(answer, "granted" | "denied"),
            Command::Extend { .. } => matches!(answer, "present" | "healed" | "missing" | "foreign"),
            Command::Release { .. } => {
                matches!(answer, "deleted" | "deleted,others-wait" | "missing" | "foreign")
            }
            Command::Enlist { .. } if answer == "listed" || answer.starts_with("listed,sees:") => true,
            Command::Inspect { .. } | Command::Enlist { .. } => {
                answer == "free" || answer.starts_with("sees:")
            }
            Command::Delist { .. } => answer == "delisted",
            Command::Propose { .. } => {
                answer == "accepted" || answer.starts_with("voted:") || answer.starts_with("busy:")
            }
            Command::Raise { .. } => {
                matches!(answer, "raised" | "missing" | "foreign") || answer.starts_with("voted:")
            }
            Command::Observe { .. } | Command::Enrol { .. } => unreachable!("not a claim's command"),
            Command::Remove { .. } | Command::Proclaim { .. } | Command::Follow { .. } => {
                unreachable!("not a claim's command")
            }
        };
        let unknown = answer.starts_with("lost") || answer == "down";
        let asked = self.asked.iter().position(|(at, _, command)| *at == node && (unknown || fits(command)));
        let place = asked.unwrap_or_else(|| panic!("n{} was not asked", node + 1));
        let (_, round, command) = self.asked.remove(place);
        let answer = match answer {
            "granted" => Answer::Granted,
            "denied" => Answer::Denied,
            "present" => Answer::Present,
            "healed" => Answer::Healed,
            "missing" => Answer::Missing,
            "foreign" => Answer::Foreign,
            "deleted" => Answer::Deleted { others_wait: false },
            "deleted,others-wait" => Answer::Deleted { others_wait: true },
            "delisted" => Answer::Delisted,
            "listed" => Answer::Enlisted(None),
            "free" => Answer::Seen(None),
            "accepted" => Answer::Accepted,
            "raised" => Answer::Raised,
            voted if voted.starts_with("voted:") => Answer::Voted(fence(voted)),
            busy if busy.starts_with("busy:") => Answer::Busy(fence(busy)),
            "down" => Answer::Unknown(Unknown::NotConnected),
            "lost" => Answer::Unknown(Unknown::ConnectionLost),
            sees => {
                let (is_listed, sees) = match sees.strip_prefix("listed,") {
                    Some(sees) => (true, sees),
                    None => (false, sees),
                };
                let (value, expiry) = sees["sees:".len()..].split_once('/').expect("sees:value/expiry");
                // `#7` is the value of an attempt, by whatever client; other words are what others write.
                let value = match value.strip_prefix('#').map(|id| id.parse().expect("a number")) {
                    Some(id) => Value::new(LeaseId(id), &Signature::new("other", None)),
                    None => Value::from_wire(value.as_bytes()),
                };
                let seen = Some(Sighting { value, expires_in: Some(length(expiry)) });
                if is_listed { Answer::Enlisted(seen) } else { Answer::Seen(seen) }
            }
        };
        let answer = match (counts_from, command.rules()) {
            (Some(counts_from), _) => answer.heard(self.now, counts_from),
            (None, Rules::Strict(_)) if !unknown => answer.counting_in(Nonce(incarnation)),
            (None, _) => answer,
        };
        Event::Answer { round, node, answer }
    }

    fn tell(&mut self, actions: Vec<Action>) -> Vec<String> {
        let mut told: Vec<(Vec<usize>, String)> = Vec::new();
        for action in actions {
            match action {
                Action::Draw => unreachable!("drawn for before"),
                Action::Tell(notice) => told.push((Vec::new(), self.notice(notice))),
                Action::Send { node, round, command } => {
                    let words = in_words(&command);
                    self.asked.push((node, round, command));
                    match told.last_mut().filter(|(_, last)| *last == words) {
                        Some((nodes, _)) => nodes.push(node),
                        None => told.push((vec![node], words)),
                    }
                }
            }
        }
        let line = |(nodes, words): (Vec<usize>, String)| match &nodes[..] {
            [] => words,
            nodes if nodes.len() == self.nodes => format!("all: {words}"),
            nodes => {
                let names: Vec<_> = nodes.iter().map(|node| format!("n{}", node + 1)).collect();
                format!("{}: {words}", names.join(" "))
            }
        };
        told.into_iter().map(line).collect()
    }

    fn notice(&self, notice: Notice) -> String {
        let until = self
            .claim
            .valid_until()
            .map_or("no more".to_owned(), |until| format!("until {:?}", until.since(Instant::from_nanos(0))));
        match notice {
            Notice::Won => match self.claim.fence() {
                Some(fence) => format!("WON with fence {fence}, valid {until}"),
                None => format!("WON, valid {until}"),
            },
            Notice::Extended(_, Ok(())) => format!("EXTENDED, valid {until}"),
            Notice::Extended(_, Err(failure)) => {
                format!(
                    "NOT EXTENDED: {}, valid {until}",
                    format!("{failure:?}").split('(').next().expect("a word")
                )
            }
            Notice::Lost(loss) => format!("LOST: {loss:?}, valid {until}"),
            Notice::Verified(_, Ok(proven)) => format!("VERIFIED: {}", in_proof(proven)),
            Notice::Verified(_, Err(failure)) => {
                format!("NOT VERIFIED: {}", format!("{failure:?}").split('(').next().expect("a word"))
            }
            Notice::Released { outcome, proven, report, others_wait } => {
                let others = if others_wait { "; others wait" } else { "" };
                let proof = proven.map_or(String::new(), |_| format!(", {}", in_proof(proven)));
                format!("RELEASED: {outcome:?}{proof}; {report}{others}")
            }
            Notice::HeldLong => "WARNING: held long".to_owned(),
            Notice::Failed(failure) => {
                let why = match failure.why {
                    Why::Held { by: Some(by) } => format!("held by {by:?}"),
                    Why::Held { by: None } => "held or split".to_owned(),
                    Why::NoQuorum => "no quorum".to_owned(),
                    Why::NotReady { at } => {
                        format!("not ready until {:?}", at.since(Instant::from_nanos(0)))
                    }
                    Why::TooLate => "too late".to_owned(),
                };
                format!("FAILED: {why}; {}", failure.report)
            }
        }
    }
}

/// `voted:500`, `busy:500`: the counter of a node.
fn fence(answer: &str) -> Fence {
    let (_, number) = answer.split_once(':').expect("a counter");
    Fence::new(number.parse().expect("a number"))
}

/// `n2` is the second node.
fn number_of(node: &str) -> NodeIndex {
    node[1..].parse::<usize>().expect("the number of a node") - 1
}

fn in_proof(proven: Option<bool>) -> &'static str {
    match proven {
        Some(true) => "PROVEN",
        Some(false) => "not proven",
        None => "there is nothing to prove",
    }
}

fn by_the_marker(rules: &Rules) -> &'static str {
    if *rules == Rules::Plain { "" } else { ", by the marker" }
}

/// A command with the attempt to which its value belongs: `SET #1 for 10s`.
fn in_words(command: &Command) -> String {
    let attempt = |value: &Value| {
        let digits = std::str::from_utf8(&value.as_bytes()[..32]).expect("hex digits");
        format!("#{}", u128::from_str_radix(digits, 16).expect("hex digits"))
    };
    match command {
        Command::Acquire { value, ttl, .. } => format!("SET {} for {:?}", attempt(value), ttl.as_duration()),
        Command::Extend { value, ttl, heal, rules, .. } => {
            format!(
                "EXTEND {} for {:?}{}{}",
                attempt(value),
                ttl.as_duration(),
                if *heal { "" } else { " without heal" },
                by_the_marker(rules)
            )
        }
        Command::Propose { value, ttl, fence, .. } => {
            format!("SET {} for {:?}, propose {fence}", attempt(value), ttl.as_duration())
        }
        Command::Raise { value, fence, .. } => format!("RAISE to {fence} if {} stands", attempt(value)),
        Command::Observe { .. } | Command::Enrol { .. } => unreachable!("not a claim's command"),
        Command::Release { value, linger, rules, .. } if *linger > Ttl::ZERO => {
            let (linger, by) = (linger.as_duration(), by_the_marker(rules));
            format!("RELEASE {}, to linger for {linger:?}{by}", attempt(value))
        }
        Command::Release { value, owed_for, wake, rules, .. } => {
            let owed = if owed_for.is_zero() { String::new() } else { format!(", owed for {owed_for:?}") };
            let wake = match wake {
                Wake::Nobody => "",
                Wake::NobodyYet => ", wake nobody yet",
                Wake::Next => ", wake the next",
            };
            format!("RELEASE {}{owed}{wake}{}", attempt(value), by_the_marker(rules))
        }
        Command::Enlist { waited, .. } if waited.is_zero() => "ENLIST".to_owned(),
        Command::Enlist { waited, .. } => format!("ENLIST, after {waited:?}"),
        Command::Delist { .. } => "DELIST".to_owned(),
        Command::Inspect { .. } => "INSPECT".to_owned(),
        Command::Remove { .. } => "REMOVE".to_owned(),
        Command::Proclaim { .. } => "PROCLAIM".to_owned(),
        Command::Follow { .. } => "FOLLOW".to_owned(),
    }
}

/// `12s`, `150ms` or `9898ms`.
fn length(text: &str) -> Duration {
    if let Some(millis) = text.strip_suffix("ms") {
        return Duration::from_millis(millis.parse().expect("milliseconds"));
    }
    let seconds = text.strip_suffix('s').unwrap_or_else(|| panic!("{text:?} has no unit"));
    Duration::from_secs(seconds.parse().expect("seconds"))
}
