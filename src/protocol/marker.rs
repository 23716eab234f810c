//! What a node remembers, for one namespace, of whether its answers may count: the *marker* of the strict kinds of locks.
//!
//! A plain lock judges a node by the connection to it ([`admission`](super::admission)), which sees a restart and no more. A
//! strict lock has the node itself compare, in the same step in which it votes: the marker names the process whose memory is
//! complete, and what the clients of the namespace have agreed on. A memory that was lost has no marker, one that was restored
//! or copied names another process, and clients with other rules name another pact. How a node gets its marker is in
//! [`enrolment`](super::enrolment).
//!
//! It does not see a memory that goes back in time under one living process: a node that is made a replica of its own old
//! copy, and a master again, or a virtual machine that is set back.

use std::sync::Arc;

use super::fence::Fence;
use super::quorum::Quorum;
use super::time::Ttl;

/// A process of a node, as it names itself: its `run_id`. A client knows it of each connection, and no connection outlives
/// the process.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Process(pub Arc<str>);

/// Written into a marker by whoever first looks at a node that does not count. While it stands, nothing was forgotten. Once the
/// node counts it names the *incarnation* of the node that does: after a loss of memory, or with a memory that was restored, the
/// node counts again only under another one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Nonce(pub u128);

/// What all clients of a namespace must have in common, or else they count different majorities.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Pact {
    /// Of the number of the nodes, the majority, and their names in order.
    fingerprint: u64,
    /// The longest ttl that anybody asks for: as long waits whoever has forgotten something.
    max_ttl: Ttl,
}

impl Pact {
    /// Of clients that use these nodes, in this order, and ask for no more than `max_ttl`.
    pub fn of(nodes: &[Arc<str>], quorum: Quorum, max_ttl: Ttl) -> Self {
        let numbers = [quorum.nodes(), quorum.majority()].map(|number| number.to_string());
        let words = numbers.iter().map(String::as_bytes).chain(nodes.iter().map(|name| name.as_bytes()));
        Pact { fingerprint: fingerprint(words), max_ttl }
    }

    /// Of the nodes.
    #[cfg_attr(not(feature = "redis"), allow(dead_code))]
    pub fn fingerprint(&self) -> u64 {
        self.fingerprint
    }

    /// The longest ttl that anybody asks for.
    pub fn max_ttl(&self) -> Ttl {
        self.max_ttl
    }
}

/// FNV-1a in 64 bits, with a separator behind each word: the same with every version and on every machine.
fn fingerprint<'a>(words: impl Iterator<Item = &'a [u8]>) -> u64 {
    const OFFSET: u64 = 0xcbf2_9ce4_8422_2325;
    const PRIME: u64 = 0x0000_0100_0000_01b3;
    let bytes = words.flat_map(|word| word.iter().copied().chain([0]));
    bytes.fold(OFFSET, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(PRIME))
}

/// By which rules the answer of a node counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Rules {
    /// The connection decides.
    Plain,
    /// The node's marker decides, in the same step.
    Strict(Pact),
}

/// The marker of a namespace at one node.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Marker {
    standing: Standing,
    /// The largest fence that was accepted for any resource. It outlives the counters of the resources.
    pub(super) high_water: Fence,
    /// What the other nodes knew when this one was enrolled. A counter that was restored with an old memory may be below it.
    pub(super) floor: Fence,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
enum Standing {
    /// Nobody has looked: anything may have been forgotten.
    #[default]
    Unknown,
    /// Since somebody looked at this process, nothing was forgotten. It will count for whoever has agreed to that.
    Observed(Process, Nonce, Pact),
    /// What that process answers counts, for as long as it remembers under which nonce it was observed.
    Enrolled(Process, Nonce, Pact),
}

/// What becomes of an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It counts, in this incarnation.
    Counts(Nonce),
    /// What was asked is done, and counts for nothing.
    Waits,
    /// The client goes by other rules: nothing is done.
    Refused,
}

impl Marker {
    /// Whether what a process answers to a client of that pact counts; `None` if it is not known which process this is.
    pub fn judge(&self, process: Option<&Process>, pact: Pact) -> Verdict {
        match &self.standing {
            Standing::Enrolled(enrolled, incarnation, other) if Some(enrolled) == process => {
                if *other == pact { Verdict::Counts(*incarnation) } else { Verdict::Refused }
            }
            _ => Verdict::Waits,
        }
    }

    /// Begins to observe a process that does not count, or says under which nonce it is observed already; `None` if it is by
    /// those who have agreed on something else.
    pub fn observe(&mut self, process: &Process, nonce: Nonce, pact: Pact) -> Option<Nonce> {
        match &self.standing {
            Standing::Observed(observed, known, other) if observed == process => {
                (*other == pact).then_some(*known)
            }
            _ => {
                self.standing = Standing::Observed(process.clone(), nonce, pact);
                Some(nonce)
            }
        }
    }

    /// Forgets whoever has agreed on something else: an operator's word.
    pub fn overrule(&mut self, pact: Pact) {
        if let Standing::Observed(_, _, other) | Standing::Enrolled(_, _, other) = &self.standing
            && *other != pact
        {
            self.standing = Standing::Unknown;
        }
    }

    /// Lets a process count from now on that was observed under that nonce all the time: then nothing was forgotten. Any number
    /// of clients may do it; who comes late finds it done.
    pub fn enrol(&mut self, process: &Process, nonce: Nonce, floor: Fence, pact: Pact) {
        if self.standing == Standing::Observed(process.clone(), nonce, pact) {
            self.high_water = self.high_water.max(floor);
            self.floor = self.high_water;
            self.standing = Standing::Enrolled(process.clone(), nonce, pact);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pact(names: &[&str], max_ttl: u64) -> Pact {
        let names: Vec<Arc<str>> = names.iter().map(|name| (*name).into()).collect();
        Pact::of(&names, Quorum::of(names.len()), Ttl::from_millis(max_ttl))
    }

    fn process(name: &str) -> Process {
        Process(name.into())
    }

    #[test]
    fn a_pact_is_of_the_same_nodes_in_the_same_order_and_the_same_longest_ttl() {
        let agreed = pact(&["a:1", "b:1", "c:1"], 10);
        assert_eq!(agreed, pact(&["a:1", "b:1", "c:1"], 10));
        for other in [
            pact(&["a:1", "b:1", "c:2"], 10),
            pact(&["b:1", "a:1", "c:1"], 10),
            pact(&["a:1", "b:1"], 10),
            pact(&["a:1b", ":1", "c:1"], 10),
            pact(&["a:1", "b:1", "c:1"], 20),
        ] {
            assert_ne!(agreed, other);
        }
        assert_eq!(agreed.fingerprint(), 0x294d_cb36_8a22_c0b7, "the same with every version");
    }

    #[test]
    fn only_the_process_that_was_enrolled_counts_and_only_for_the_pact() {
        let (mut marker, agreed) = (Marker::default(), pact(&["a"], 10));
        let (first, second) = (process("1"), process("2"));
        assert_eq!(marker.judge(Some(&first), agreed), Verdict::Waits);

        let nonce = marker.observe(&first, Nonce(7), agreed).expect("nobody has agreed on anything");
        assert_eq!(
            marker.observe(&first, Nonce(8), agreed),
            Some(nonce),
            "who comes second finds the nonce of the first"
        );
        assert_eq!(marker.observe(&first, Nonce(8), pact(&["b"], 10)), None, "who agrees on something else");
        marker.enrol(&first, nonce, Fence::NONE, pact(&["b"], 10));
        assert_eq!(marker.judge(Some(&first), pact(&["b"], 10)), Verdict::Waits);
        marker.enrol(&first, Nonce(8), Fence::NONE, agreed);
        assert_eq!(marker.judge(Some(&first), agreed), Verdict::Waits, "another nonce");
        marker.enrol(&second, nonce, Fence::NONE, agreed);
        assert_eq!(marker.judge(Some(&second), agreed), Verdict::Waits, "another process");

        marker.enrol(&first, nonce, Fence::new(5), agreed);
        assert_eq!(marker.judge(Some(&first), agreed), Verdict::Counts(nonce));
        assert_eq!(marker.judge(Some(&first), pact(&["b"], 10)), Verdict::Refused);
        assert_eq!(marker.judge(Some(&second), agreed), Verdict::Waits, "the same memory in another process");
        assert_eq!(marker.judge(None, agreed), Verdict::Waits);
        assert_eq!((marker.high_water, marker.floor), (Fence::new(5), Fence::new(5)));
    }

    #[test]
    fn a_nonce_that_was_restored_is_not_taken_for_the_one_of_this_process() {
        let (mut marker, agreed) = (Marker::default(), pact(&["a"], 10));
        marker.observe(&process("1"), Nonce(7), agreed);
        assert_eq!(marker.observe(&process("2"), Nonce(9), agreed), Some(Nonce(9)));
    }

    #[test]
    fn an_operator_overrules_what_others_have_agreed_on_and_the_fences_stay() {
        let (former, agreed, process) = (pact(&["b"], 10), pact(&["a"], 10), process("1"));
        let mut marker = Marker::default();
        marker.observe(&process, Nonce(7), former);
        marker.enrol(&process, Nonce(7), Fence::new(5), former);
        marker.overrule(former);
        assert_eq!(
            marker.judge(Some(&process), former),
            Verdict::Counts(Nonce(7)),
            "there is nothing to overrule"
        );
        marker.overrule(agreed);
        for pact in [former, agreed] {
            assert_eq!(marker.judge(Some(&process), pact), Verdict::Waits);
        }
        assert_eq!(marker.observe(&process, Nonce(8), agreed), Some(Nonce(8)));
        assert_eq!(marker.observe(&process, Nonce(9), former), None);
        assert_eq!(marker.high_water, Fence::new(5));
    }
}
