//! What the nodes said to one claim, and when, so that mistakes in judging it can be planted: a mistaken judge reads the same
//! [`Evidence`] out of a record that has been tampered with.

use super::mutant::Mutant;
use super::scope::Scope;
use crate::protocol::claim::{Action, Event, Notice, Phase};
use crate::protocol::command::{Answer, Command, NodeIndex};
use crate::protocol::evidence::Evidence;
use crate::protocol::marker::Nonce;
use crate::protocol::quorum::Quorum;
use crate::protocol::round::RoundId;

/// The record of the attempt that won, or of the last one.
#[derive(Clone, Debug, Default, Hash)]
pub(super) struct Testimony {
    record: Vec<Entry>,
    attempt: Option<RoundId>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Entry {
    Wrote(NodeIndex, RoundId),
    Granted(RoundId),
    Asked(RoundId),
    Heard { node: NodeIndex, round: RoundId, answer: Answer, incarnation: Option<Nonce> },
    GaveUp,
}

impl Testimony {
    /// The claim is about to hear something.
    pub(super) fn hear(&mut self, event: &Event) {
        let Event::Answer { round, node, answer } = event else { return };
        if self.attempt.is_some_and(|attempt| *round >= attempt) {
            let (answer, incarnation) = answer.clone().and_incarnation();
            self.record.push(Entry::Heard { node: *node, round: *round, answer, incarnation });
        }
    }

    /// The claim has done something, and is in that phase now. What it tells is changed into what a mistaken judge would tell.
    pub(super) fn see(&mut self, actions: &mut [Action], phase: Phase, mistake: Mutant, scope: &Scope) {
        for action in actions {
            match action {
                Action::Send { node, round, command: Command::Propose { .. } } => {
                    if self.attempt.replace(*round) != Some(*round) {
                        self.record.clear();
                    }
                    self.record.push(Entry::Wrote(*node, *round));
                }
                Action::Send { node, round, command: Command::Extend { heal, .. } } => {
                    self.ask(*round);
                    if *heal {
                        self.record.push(Entry::Wrote(*node, *round));
                    }
                }
                Action::Send { round, command: Command::Release { .. }, .. } if self.is_granted() => {
                    if phase == Phase::Over { self.ask(*round) } else { self.record.push(Entry::GaveUp) }
                }
                Action::Tell(Notice::Released { proven: Some(proven), .. }) => {
                    let quorum = scope.wishes[0].terms.quorum;
                    assert_eq!(self.proves(quorum, None), *proven, "the record is complete: {self:?}");
                    *proven = self.proves(quorum, Some(mistake));
                }
                Action::Tell(Notice::Won) => self.record.extend(self.attempt.map(Entry::Granted)),
                _ => {}
            }
        }
    }

    /// What a judge makes of it who makes that mistake, or none.
    fn proves(&self, quorum: Quorum, mistake: Option<Mutant>) -> bool {
        let majority = match mistake {
            Some(Mutant::FewerThanAMajorityProve) => quorum.majority() - 1,
            _ => quorum.majority(),
        };
        let mut record = self.record.clone();
        match mistake {
            Some(Mutant::ProvenBeforeItWasHeard) => put_back_what_was_set(&mut record),
            Some(Mutant::UnheardHealIgnored) => leave_out_what_was_lost(&mut record),
            Some(Mutant::HealedProvesWithItsRound) => put_heals_back(&mut record, quorum),
            Some(Mutant::IncarnationsBridged) => take_for_one(&mut record),
            Some(Mutant::ProvenUntilItWasHeard) => put_off_what_was_found(&mut record),
            _ => {}
        }
        let mut evidence = Evidence::new(quorum.nodes(), majority);
        for entry in record {
            match entry {
                Entry::Wrote(node, round) => evidence.wrote(node, round),
                Entry::Granted(round) => evidence.granted(round),
                Entry::Asked(round) => evidence.asked(round),
                Entry::Heard { node, round, answer, incarnation } => {
                    evidence.heard(node, round, &answer, incarnation);
                }
                Entry::GaveUp => evidence.give_up(),
            }
        }
        evidence.is_complete()
    }

    fn ask(&mut self, round: RoundId) {
        if !self.record.contains(&Entry::Asked(round)) {
            self.record.push(Entry::Asked(round));
        }
    }

    fn is_granted(&self) -> bool {
        self.record.iter().any(|entry| matches!(entry, Entry::Granted(_)))
    }
}

/// Where a round began to matter.
fn beginning_of(record: &[Entry], round: RoundId) -> Option<usize> {
    record.iter().position(|entry| *entry == Entry::Asked(round) || *entry == Entry::Granted(round))
}

/// Moves the word that a key was set to an earlier place, where nobody had asked for it yet.
fn put_back(record: &mut Vec<Entry>, from: usize, mut to: usize) {
    let Entry::Heard { node, round, incarnation, .. } = record[from] else { return };
    record.remove(from);
    if let Some(wrote) = record.iter().position(|entry| *entry == Entry::Wrote(node, round)) {
        record.remove(wrote);
        to -= usize::from(wrote < to);
    }
    record.insert(to, Entry::Heard { node, round, answer: Answer::Healed, incarnation });
}

/// What was set in a round has stood since it went out.
fn put_back_what_was_set(record: &mut Vec<Entry>) {
    for place in 0..record.len() {
        let Some(Entry::Heard {
            round, answer: Answer::Accepted | Answer::Voted(_) | Answer::Healed, ..
        }) = record.get(place)
        else {
            continue;
        };
        if let Some(beginning) = beginning_of(record, *round).filter(|beginning| *beginning < place) {
            put_back(record, place, beginning);
        }
    }
}

/// What was healed in a round has stood since a majority confirmed it.
fn put_heals_back(record: &mut Vec<Entry>, quorum: Quorum) {
    for place in 0..record.len() {
        let Some(Entry::Heard { round: healed_in, answer: Answer::Healed, .. }) = record.get(place) else {
            continue;
        };
        let present = |(_, entry): &(usize, &Entry)| matches!(entry, Entry::Heard { round, answer: Answer::Present, .. } if round == healed_in);
        let confirmed = record.iter().enumerate().filter(present).nth(quorum.majority() - 1);
        if let Some(confirmed) = confirmed.map(|(place, _)| place).filter(|confirmed| *confirmed < place) {
            put_back(record, place, confirmed);
        }
    }
}

/// A heal that was not answered has not happened.
fn leave_out_what_was_lost(record: &mut Vec<Entry>) {
    while let Some(place) = record.iter().position(|entry| {
        matches!(entry, Entry::Heard { round, answer: Answer::Unknown(_), .. } if record.contains(&Entry::Asked(*round)))
    }) {
        let Entry::Heard { node, round, .. } = record.remove(place) else { return };
        record.retain(|entry| *entry != Entry::Wrote(node, round));
    }
}

fn take_for_one(record: &mut [Entry]) {
    for entry in record {
        if let Entry::Heard { incarnation: Some(incarnation), .. } = entry {
            *incarnation = Nonce(0);
        }
    }
}

/// What was found in a round has stood until that was heard: until the last round before.
fn put_off_what_was_found(record: &mut Vec<Entry>) {
    let mut place = 0;
    while place < record.len() {
        let last = record[..place].iter().rev().find_map(|entry| match entry {
            Entry::Asked(round) => Some(*round),
            _ => None,
        });
        if let (Entry::Heard { node, round, answer: Answer::Present, .. }, Some(last)) =
            (&mut record[place], last)
            && *round < last
        {
            let wrote = Entry::Wrote(*node, std::mem::replace(round, last));
            record.retain(|entry| *entry != wrote);
        }
        place += 1;
    }
}
