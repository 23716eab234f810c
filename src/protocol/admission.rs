//! Which node may vote, and from when. A node that lost its memory would grant what it has granted already, so it waits until
//! nothing that it may have forgotten can still be held. Who answers and the time come in, "counts from when" comes out.
//!
//! A server that answers is in one of four places:
//!
//! ```text
//! the one we knew          counts from when it counted before
//! never seen before        counts once it is certainly older than the longest ttl
//! another than we knew     waits for the longest ttl from now: its age says nothing of what stood at this address
//! silent about itself      waits for the longest ttl from now
//! ```
//!
//! It cannot see what happens to a memory while the process lives and the connection stands: FLUSHALL, SWAPDB, a replication
//! from elsewhere that is ended again, a virtual machine that was set back.

use std::sync::Arc;
use std::time::Duration;

use super::time::{Drift, Instant, Ttl};

/// Whether a node that may have lost its memory is kept from voting.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum RestartProtection {
    /// It waits until the longest ttl has passed.
    #[default]
    On,
    /// It votes at once: two clients may hold after a restart. For tests, and where an operator sees to the delay.
    Off,
}

/// What a server says of itself when a connection to it is made.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Introduction {
    /// Whose memory it is.
    pub identity: Identity,
    /// For how long the process runs, as it counts: in whole seconds, which may be up to one too many.
    pub uptime: Duration,
    /// It has been a master since it started, as far as it knows: its memory is not a copy of another's.
    pub always_master: bool,
}

/// Tells one memory from another. A restart changes the first part; a replica that is promoted or resynchronised, and a server
/// that replaces another at its address, the second as well.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Identity {
    /// `run_id`: the process.
    pub run_id: Arc<str>,
    /// `master_replid`: the history of writes that it continues.
    pub replication_id: Arc<str>,
}

/// What one client knows of one node's memory.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Admission {
    /// How long a node waits: what it has forgotten is over by then, on the clock of whoever held it.
    wait: Duration,
    drift: Drift,
    /// The operator's word that this node has forgotten nothing after a restart.
    trusted: bool,
    known: Option<(Identity, Instant)>,
}

/// From when the answers of a node count, and why.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Standing {
    /// Answers that are heard from then on are votes.
    pub counts_from: Instant,
    /// For people.
    pub reason: Reason,
}

/// Why a node counts from when it does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// It is the one that we knew.
    Known,
    /// It was never seen before, and was always a master: its age decides.
    Age,
    /// It is another memory than the one we knew.
    Changed,
    /// It was never seen before, and its memory is a copy of another's.
    Copied,
    /// It does not say who it is.
    Silent,
    /// The operator vouches for its disk.
    Trusted,
}

impl Admission {
    /// Nothing is known yet of a node in whose namespace nobody asks for more than `max_ttl`.
    pub fn new(protection: RestartProtection, max_ttl: Ttl, drift: Drift, trusted: bool) -> Self {
        let wait = match protection {
            RestartProtection::On => max_ttl.as_duration() + drift.allowance(max_ttl),
            RestartProtection::Off => Duration::ZERO,
        };
        Admission { wait, drift, trusted, known: None }
    }

    /// The same for whoever sees the node for the first time.
    #[cfg(feature = "sim")]
    pub fn forgetting(&self) -> Self {
        Admission { known: None, ..self.clone() }
    }

    /// A connection was made, and what the server says of itself was heard now; `None` if it does not say. `durable` unless its
    /// configuration contradicts that it forgets nothing: a server may tell that and not who it is.
    pub fn admit(&mut self, now: Instant, introduction: Option<&Introduction>, durable: bool) -> Standing {
        let trusted = self.trusted && durable;
        let Some(introduction) = introduction else {
            return if trusted {
                Standing { counts_from: now, reason: Reason::Trusted }
            } else {
                Standing { counts_from: now + self.wait, reason: Reason::Silent }
            };
        };
        let standing = match &self.known {
            Some((identity, counts_from)) if *identity == introduction.identity => {
                Standing { counts_from: *counts_from, reason: Reason::Known }
            }
            // What the operator says of a disk is no word on a memory that was copied from elsewhere.
            _ if trusted && introduction.always_master => {
                Standing { counts_from: now, reason: Reason::Trusted }
            }
            Some(_) => Standing { counts_from: now + self.wait, reason: Reason::Changed },
            None if introduction.always_master => {
                let rest = self.wait.saturating_sub(self.certain_age(introduction.uptime));
                Standing { counts_from: now + rest, reason: Reason::Age }
            }
            None => Standing { counts_from: now + self.wait, reason: Reason::Copied },
        };
        self.known = Some((introduction.identity.clone(), standing.counts_from));
        standing
    }

    /// How old a process is at least on our clock. It counts by truncated seconds, and its clock may run faster than ours.
    fn certain_age(&self, uptime: Duration) -> Duration {
        let certain = uptime.saturating_sub(Duration::from_secs(1));
        certain.saturating_sub(self.drift.allowance(Ttl::from_duration(certain)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DRIFT: Drift = Drift::DEFAULT;
    const LONGEST: Ttl = Ttl::from_millis(10_000);
    /// 10 s + 1 % + 2 ms.
    const WAIT: u64 = 10_102;

    fn at(millis: u64) -> Instant {
        Instant::from_nanos(millis * 1_000_000)
    }

    fn server(run_id: &str, replication_id: &str, uptime: u64) -> Introduction {
        let identity = Identity { run_id: run_id.into(), replication_id: replication_id.into() };
        Introduction { identity, uptime: Duration::from_secs(uptime), always_master: true }
    }

    fn promoted(run_id: &str, uptime: u64) -> Introduction {
        Introduction { always_master: false, ..server(run_id, "r", uptime) }
    }

    fn admission() -> Admission {
        Admission::new(RestartProtection::On, LONGEST, DRIFT, false)
    }

    fn trusting() -> Admission {
        Admission::new(RestartProtection::On, LONGEST, DRIFT, true)
    }

    #[test]
    fn at_first_sight_the_age_decides_less_a_second_and_the_drift() {
        for (uptime, waits) in [
            (0, WAIT),
            (1, WAIT),
            // One second is certain, less its drift of 12 ms.
            (2, WAIT - (1_000 - 12)),
            (11, WAIT - (10_000 - 102)),
            (12, 0),
            (100_000, 0),
        ] {
            let standing = admission().admit(at(5), Some(&server("a", "r", uptime)), true);
            assert_eq!(standing, Standing { counts_from: at(5 + waits), reason: Reason::Age }, "{uptime} s");
        }
    }

    #[test]
    fn a_server_that_is_known_counts_from_when_it_did() {
        let mut admission = admission();
        let first = admission.admit(at(0), Some(&server("a", "r", 3)), true);
        let again = admission.admit(at(1_000), Some(&server("a", "r", 4)), true);
        assert_eq!(again, Standing { counts_from: first.counts_from, reason: Reason::Known });
    }

    #[test]
    fn any_change_waits_in_full_however_old_the_process_is() {
        for (story, other) in [
            ("it was restarted", server("b", "s", 0)),
            ("the address leads to another server", server("b", "s", 100_000)),
            ("its replica was promoted", promoted("b", 100_000)),
            ("it copied another's memory", server("a", "s", 100_000)),
        ] {
            let mut admission = admission();
            admission.admit(at(0), Some(&server("a", "r", 100_000)), true);
            let standing = admission.admit(at(50), Some(&other), true);
            assert_eq!(standing, Standing { counts_from: at(50 + WAIT), reason: Reason::Changed }, "{story}");
            let back = admission.admit(at(60), Some(&server("a", "r", 100_000)), true);
            assert_eq!(back.counts_from, at(60 + WAIT), "{story}, and back again");
        }
    }

    #[test]
    fn a_memory_that_is_a_copy_has_no_age() {
        let standing = admission().admit(at(5), Some(&promoted("a", 100_000)), true);
        assert_eq!(standing, Standing { counts_from: at(5 + WAIT), reason: Reason::Copied });
        assert_eq!(trusting().admit(at(5), Some(&promoted("a", 100_000)), true), standing);
    }

    #[test]
    fn a_server_that_does_not_say_who_it_is_waits_at_every_connection() {
        let mut admission = admission();
        for now in [0, 1_000, 50_000] {
            let standing = admission.admit(at(now), None, true);
            assert_eq!(standing, Standing { counts_from: at(now + WAIT), reason: Reason::Silent });
        }
    }

    #[test]
    fn whose_disk_is_trusted_counts_at_once() {
        let mut admission = trusting();
        for (now, introduction) in [(0, Some(server("a", "r", 0))), (7, Some(server("b", "s", 0))), (9, None)]
        {
            let standing = admission.admit(at(now), introduction.as_ref(), true);
            assert_eq!(standing, Standing { counts_from: at(now), reason: Reason::Trusted });
        }
    }

    #[test]
    fn a_word_that_the_configuration_contradicts_is_not_followed() {
        let mut admission = trusting();
        admission.admit(at(0), Some(&server("a", "r", 100_000)), true);
        for (introduction, reason) in [(Some(server("b", "s", 0)), Reason::Changed), (None, Reason::Silent)] {
            let standing = admission.admit(at(10), introduction.as_ref(), false);
            assert_eq!(standing, Standing { counts_from: at(10 + WAIT), reason });
        }
    }

    #[test]
    fn without_the_protection_everybody_counts_at_once() {
        let mut admission = Admission::new(RestartProtection::Off, LONGEST, DRIFT, false);
        assert_eq!(admission.admit(at(3), Some(&server("a", "r", 0)), true).counts_from, at(3));
        assert_eq!(admission.admit(at(4), Some(&promoted("b", 0)), true).counts_from, at(4));
        assert_eq!(admission.admit(at(5), None, true).counts_from, at(5));
    }
}
