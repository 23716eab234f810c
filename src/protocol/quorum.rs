//! Counting votes: a majority of the *configured* nodes, and the moment from which the result can no longer change.
//!
//! It does not know what is voted on. An acquisition, an extension and a look at a holder all count with it.

/// How many nodes were configured, and from that how many make a majority.
///
/// The number of nodes that happen to be reachable never enters: a "majority of those that answer" lets two clients
/// on two sides of a partition both win.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Quorum {
    nodes: usize,
}

impl Quorum {
    /// A deployment of `nodes` nodes.
    ///
    /// # Panics
    ///
    /// With no nodes: there is no majority of nothing.
    pub fn of(nodes: usize) -> Self {
        assert!(nodes > 0, "a quorum needs at least one node");
        Quorum { nodes }
    }

    /// All configured nodes, N.
    pub fn nodes(self) -> usize {
        self.nodes
    }

    /// The smallest number of nodes of which any two sets share a node: `N / 2 + 1`.
    pub fn majority(self) -> usize {
        self.nodes / 2 + 1
    }

    /// How many nodes may be missing while the others still make a majority: `N - q`.
    pub fn spare(self) -> usize {
        self.nodes - self.majority()
    }

    /// Won at the first majority, failed as soon as none can come about any more, whichever is known first.
    pub fn decide(self, tally: Tally) -> Decision {
        if tally.granted >= self.majority() {
            Decision::Won
        } else if tally.refused() > self.spare() {
            Decision::Failed
        } else {
            Decision::Pending
        }
    }
}

/// What one node said to one question.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Vote {
    /// Yes.
    Granted,
    /// No.
    Denied,
    /// The node did not answer the question, or may not vote on it. It may or may not have done what was asked.
    Unknown,
}

/// The votes of a round so far. What is neither granted, denied nor unknown is still pending.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Nodes that said yes.
    pub granted: usize,
    /// Nodes that said no.
    pub denied: usize,
    /// Nodes that will not say.
    pub unknown: usize,
}

impl Tally {
    /// Counts one more vote.
    pub fn count(&mut self, vote: Vote) {
        match vote {
            Vote::Granted => self.granted += 1,
            Vote::Denied => self.denied += 1,
            Vote::Unknown => self.unknown += 1,
        }
    }

    /// Votes that can no longer become a yes.
    pub fn refused(self) -> usize {
        self.denied + self.unknown
    }
}

impl FromIterator<Vote> for Tally {
    fn from_iter<I: IntoIterator<Item = Vote>>(votes: I) -> Self {
        let mut tally = Tally::default();
        votes.into_iter().for_each(|vote| tally.count(vote));
        tally
    }
}

/// Where a count stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    /// Both results are still possible.
    Pending,
    /// A majority said yes.
    Won,
    /// A majority of yes cannot come about any more.
    Failed,
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::prop_assert_eq;
    use proptest::sample::select;

    use super::*;
    use crate::random;

    #[test]
    fn a_majority_is_more_than_half_of_the_configured_nodes() {
        for (nodes, majority, spare) in
            [(1, 1, 0), (2, 2, 0), (3, 2, 1), (4, 3, 1), (5, 3, 2), (6, 4, 2), (7, 4, 3)]
        {
            let quorum = Quorum::of(nodes);
            assert_eq!((quorum.majority(), quorum.spare()), (majority, spare), "N = {nodes}");
        }
    }

    #[test]
    fn a_round_is_decided_as_soon_as_the_rest_cannot_change_it() {
        use Decision::*;
        for (nodes, granted, denied, unknown, decision) in [
            (1, 0, 0, 0, Pending),
            (1, 1, 0, 0, Won),
            (1, 0, 1, 0, Failed),
            (1, 0, 0, 1, Failed),
            (2, 1, 0, 0, Pending),
            (2, 1, 1, 0, Failed), // exactly half against: with an even N nothing is left to wait for
            (2, 2, 0, 0, Won),
            (3, 1, 1, 0, Pending),
            (3, 2, 0, 0, Won), // the third need not be heard
            (3, 1, 1, 1, Failed),
            (4, 2, 1, 0, Pending),
            (4, 2, 2, 0, Failed),
            (4, 3, 0, 0, Won),
            (5, 2, 1, 1, Pending),
            (5, 2, 2, 1, Failed),
            (5, 3, 1, 1, Won),
        ] {
            let tally = Tally { granted, denied, unknown };
            assert_eq!(Quorum::of(nodes).decide(tally), decision, "N = {nodes}, {tally:?}");
        }
    }

    #[test]
    fn what_is_decided_early_is_what_all_votes_say() {
        let vote = select(vec![Vote::Granted, Vote::Denied, Vote::Unknown]);
        random::check(2048, &vec(vote, 1..10), |votes| {
            let quorum = Quorum::of(votes.len());
            let yes = |votes: &[Vote]| votes.iter().filter(|vote| **vote == Vote::Granted).count();
            let is_majority = |yes: usize| 2 * yes > votes.len();
            let by_all = if is_majority(yes(&votes)) { Decision::Won } else { Decision::Failed };
            for heard in 0..=votes.len() {
                let (so_far, missing) = (yes(&votes[..heard]), votes.len() - heard);
                let is_open = !is_majority(so_far) && is_majority(so_far + missing);
                let decision = quorum.decide(votes[..heard].iter().copied().collect());
                prop_assert_eq!(
                    decision,
                    if is_open { Decision::Pending } else { by_all },
                    "after {}",
                    heard
                );
            }
            Ok(())
        });
    }

    #[test]
    fn any_two_majorities_share_a_node_and_one_vote_less_would_not() {
        for nodes in 1..=9 {
            let quorum = Quorum::of(nodes);
            assert!(2 * quorum.majority() > nodes, "N = {nodes}");
            assert!(
                2 * (quorum.majority() - 1) <= nodes,
                "N = {nodes}: the majority is larger than it needs to be"
            );
        }
    }
}
