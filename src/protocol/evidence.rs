//! Whether a hold was exclusive, shown after the fact by what the nodes said. It rests on no clock, so it stands whatever clocks,
//! expiries, evictions and operators did; it comes too late to prevent anything.
//!
//! Node by node it keeps since when and until when the key is known to have stood there without a break. What is known is known
//! from *hearing*: a key that a node says it has set has stood since then at the latest. And it is known up to a *sending*: a
//! key that a node finds standing stood when it was asked at the latest. A hold is proven if at every moment, from the one at which it
//! was won to the one at which its release went out, the key is known to have stood at a majority.
//!
//! # Why two proven holds never overlap
//!
//! At a moment that both have in common, both have a majority, and the majorities share a node. Two values would have stood there at once.
//!
//! # What closes an account
//!
//! Between two answers the key may have gone and come back only if it was set again, and nobody sets it but the holder. So
//! whatever may set it must be heard of: an answer that it did opens a new account, and if the answer is lost, nothing that the
//! node says later tells anything, because what is lost on its way may be carried out at any later time. A node that lost its memory
//! and got back an old one may show an old key again. It is another [incarnation](super::marker::Nonce) then: what one has shown
//! is not continued by what the next one shows.
//!
//! # Why it needs no moments but rounds
//!
//! What is known ends where a round was sent. So the past is a row of stretches, each from the sending of one round to that of the next;
//! an account that was opened within a stretch does not cover its beginning, and one that is closed in it does not cover
//! its end. A stretch is shown by the nodes that cover all of it.

#[cfg(feature = "sim")]
use std::hash::{Hash, Hasher};

use super::command::{Answer, NodeIndex};
use super::marker::Nonce;
use super::round::RoundId;

/// What is known of the keys of one attempt, and of the hold that it became.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Evidence {
    /// So many nodes show a stretch.
    majority: usize,
    nodes: Box<[Account]>,
    /// The last moment up to which anything can be known: the grant, and then the last round. `None` before the grant.
    latest: Option<RoundId>,
    past: Past,
}

/// The time since the grant, without what is shown.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Past {
    /// Stretches that too few nodes have shown yet.
    Open(Vec<Stretch>),
    /// One of them will never be shown.
    Broken,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Stretch {
    from: RoundId,
    to: RoundId,
    /// By so many nodes.
    shown_by: usize,
}

/// What is known of the key at one node.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
struct Account {
    known: Known,
    /// The rounds of commands that may set the key, as long as their answers are to come.
    unheard: Vec<RoundId>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
enum Known {
    /// Nothing: it does not stand, or what was heard does not count.
    #[default]
    Nothing,
    /// It has stood.
    Stands {
        incarnation: Nonce,
        /// The last moment before it was heard to stand: stretches that begin later are covered from their beginning.
        since_after: Option<RoundId>,
        /// The last moment at which it is known to have stood.
        until: Option<RoundId>,
    },
    /// Nothing, for good: a command that may set it was lost on its way.
    InDoubt,
}

impl Evidence {
    /// Nothing was asked yet.
    pub fn new(nodes: usize, majority: usize) -> Self {
        let nodes = vec![Account::default(); nodes].into();
        Evidence { majority, nodes, latest: None, past: Past::Open(Vec::new()) }
    }

    /// A command that may set the key goes out to a node.
    pub fn wrote(&mut self, node: NodeIndex, round: RoundId) {
        self.nodes[node].unheard.push(round);
    }

    /// A majority was won by a round: from now on the past matters.
    pub fn granted(&mut self, round: RoundId) {
        self.latest = Some(round);
    }

    /// A round goes out in which nodes say whether the key stands.
    pub fn asked(&mut self, round: RoundId) {
        let before = self.latest.replace(round);
        if let (Some(from), Past::Open(stretches)) = (before, &mut self.past) {
            stretches.push(Stretch { from, to: round, shown_by: 0 });
            self.judge();
        }
    }

    /// A node answered, or will not answer any more; with the incarnation in which it counts, if it counts.
    pub fn heard(&mut self, node: NodeIndex, round: RoundId, answer: &Answer, incarnation: Option<Nonce>) {
        let account = &mut self.nodes[node];
        let write = account.unheard.iter().position(|write| *write == round);
        if let Some(write) = write {
            account.unheard.remove(write);
        }
        match (answer, incarnation) {
            _ if account.known == Known::InDoubt => {}
            (Answer::Unknown(unknown), _) => {
                if write.is_some() && unknown.may_have_run() {
                    account.known = Known::InDoubt;
                }
            }
            (_, None) => account.known = Known::Nothing,
            (Answer::Accepted | Answer::Healed, Some(incarnation)) => self.open(node, incarnation),
            // It has set the key, or it was asked to raise the fence and has found it.
            (Answer::Voted(_), Some(incarnation)) if write.is_some() => self.open(node, incarnation),
            (
                Answer::Present | Answer::Raised | Answer::Voted(_) | Answer::Deleted { .. },
                Some(incarnation),
            ) => self.find(node, round, incarnation),
            _ => account.known = Known::Nothing,
        }
        self.judge();
    }

    /// What is left of the hold is given back although its holder may still go on: it will not be proven.
    pub fn give_up(&mut self) {
        self.past = Past::Broken;
    }

    /// Whether the hold is proven up to its last round.
    pub fn is_complete(&self) -> bool {
        matches!(&self.past, Past::Open(stretches) if stretches.is_empty())
    }

    /// Whether answers that are still to come may make a difference.
    pub fn is_open(&self) -> bool {
        matches!(&self.past, Past::Open(stretches) if !stretches.is_empty())
    }

    /// The key has been heard to stand.
    fn open(&mut self, node: NodeIndex, incarnation: Nonce) {
        let (since_after, until) = (self.latest, self.latest);
        self.nodes[node].known = Known::Stands { incarnation, since_after, until };
    }

    /// The key stood when the node was asked in a round.
    fn find(&mut self, node: NodeIndex, round: RoundId, found_in: Nonce) {
        let account = &mut self.nodes[node];
        if account.unheard.iter().any(|write| *write < round) {
            // It may have been set again before.
            return;
        }
        match &mut account.known {
            Known::Stands { incarnation, since_after, until } if *incarnation == found_in => {
                if let Past::Open(stretches) = &mut self.past {
                    let covered = |stretch: &&mut Stretch| {
                        Some(stretch.from) > *since_after && Some(stretch.to) > *until && stretch.to <= round
                    };
                    stretches.iter_mut().filter(covered).for_each(|stretch| stretch.shown_by += 1);
                }
                *until = (*until).max(Some(round));
            }
            _ => self.open(node, found_in),
        }
    }

    /// Leaves out what is shown; and gives up if too few nodes are left that may show the rest.
    fn judge(&mut self) {
        let Past::Open(stretches) = &mut self.past else { return };
        stretches.retain(|stretch| stretch.shown_by < self.majority);
        let may_show = |stretch: &Stretch| {
            let may = |account: &&Account| match account.known {
                Known::Stands { since_after, until, .. } => {
                    Some(stretch.from) > since_after && Some(stretch.to) > until
                }
                Known::Nothing | Known::InDoubt => false,
            };
            stretch.shown_by + self.nodes.iter().filter(may).count() >= self.majority
        };
        if !stretches.iter().all(may_show) {
            self.past = Past::Broken;
        }
    }

    /// What tells two apart, node by node.
    #[cfg(feature = "sim")]
    pub fn hash_by_node<H: Hasher>(&self, all: &mut H, each: &mut [H]) {
        let Evidence { majority, nodes, latest, past } = self;
        (majority, latest, past).hash(all);
        nodes.iter().zip(each).for_each(|(account, node)| account.hash(node));
    }
}
