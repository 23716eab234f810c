//! Those who look on: who leads, by what a majority of nodes shows.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use crate::clock::sleep_until;
use crate::driver::{self, Doors};
use crate::error::InspectError;
use crate::protocol::command::{Command, Key, Value};
use crate::protocol::fence::Fence;
use crate::protocol::leading::{Proclamation, Reading};
use crate::protocol::settings::Terms;
use crate::protocol::time::Instant;

/// While nobody leads, the first look after that is taken so soon, and each following one after twice as long, up to how often
/// one looks while somebody does.
const SOONEST: Duration = Duration::from_millis(10);

/// Who leads, as an [observer](crate::Election::observe) saw it: the lock of one candidate stood on a majority of the nodes, and the
/// candidate had been told that it leads.
///
/// It may have ceased to lead since. One that died, or that was told that it lost because it could renew no more, is shown until its
/// keys have gone: to the end of its lease, and for as long as the clock of a node is slow.
#[derive(Clone, PartialEq, Eq)]
pub struct Leader {
    value: Value,
    proclaimed: Proclamation,
    term: Fence,
}

impl Leader {
    fn new(value: Value, proclaimed: Proclamation) -> Self {
        let term = proclaimed.by(&value).expect("what was read as its own").term;
        Leader { value, proclaimed, term }
    }

    fn revision(&self) -> u64 {
        self.proclaimed.by(&self.value).map_or(0, |said| said.revision)
    }

    /// Its name.
    pub fn candidate(&self) -> &str {
        self.value.holder().unwrap_or_default()
    }

    /// Its [term](crate::Leadership::term).
    pub fn term(&self) -> Fence {
        self.term
    }

    /// The [text](crate::Election::metadata) with which it campaigned.
    pub fn metadata(&self) -> Option<&str> {
        self.value.metadata()
    }

    /// What it [proclaims](crate::Leadership::proclaim); empty if nothing.
    pub fn proclaimed(&self) -> &str {
        self.proclaimed.by(&self.value).map_or("", |said| said.text)
    }
}

impl fmt::Display for Leader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}, term {}", self.candidate(), self.term)?;
        if self.proclaimed().is_empty() { Ok(()) } else { write!(f, ": {}", self.proclaimed()) }
    }
}

impl fmt::Debug for Leader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut leader = f.debug_struct("Leader");
        leader.field("candidate", &self.candidate()).field("term", &self.term);
        leader.field("metadata", &self.metadata()).field("proclaimed", &self.proclaimed()).finish()
    }
}

/// Tells who leads, and each change of that: see [`Election::observe`](crate::Election::observe).
pub struct Observer {
    doors: Arc<Doors>,
    key: Key,
    terms: Arc<Terms>,
    look_every: Duration,
    /// What was told last; `None` before the first time.
    told: Option<Option<Leader>>,
    /// When the next look is due.
    look_at: Instant,
    /// The rest after the next look, if that finds nobody.
    rest: Duration,
    /// When what was told is over if nothing more is seen.
    over_at: Instant,
}

impl Observer {
    pub(super) fn new(doors: Arc<Doors>, key: Key, (terms, look_every): (Arc<Terms>, Duration)) -> Self {
        let now = doors.clock.now();
        Observer { doors, key, terms, look_every, told: None, look_at: now, rest: SOONEST, over_at: now }
    }

    /// Who leads: at once when it is asked for the first time, and then when it is somebody else, nobody (`None`), or somebody who
    /// proclaims something else. It does not end.
    ///
    /// A change is seen at the latest after [`look_every`](crate::Election::look_every) and a round trip to a majority, and a
    /// leader that follows one which has died or resigned sooner, since the nodes are looked at more often while nobody leads. Where
    /// leaders follow each other more quickly than that, some are not seen. While no majority answers, the last one stays until
    /// its lease is over as the nodes said last; then nobody is known to lead.
    ///
    /// # Cancel safety
    ///
    /// Safe: a change that was not returned is returned by the next call.
    #[doc(alias = "changed")]
    pub async fn next(&mut self) -> Option<Leader> {
        loop {
            let look_at = self.look_at.min(self.over_at.max(self.doors.clock.now()));
            sleep_until(&*self.doors.clock, look_at).await;
            let reading = self.look().await;
            let now = self.doors.clock.now();
            let seen = match reading {
                Reading::Leader { value, proclaimed, ends_in } => {
                    let ends_in = ends_in.unwrap_or(Duration::MAX);
                    (self.over_at, self.rest) = (now + ends_in, SOONEST);
                    self.look_at = now + self.look_every.min(ends_in.saturating_add(SOONEST));
                    Some(Leader::new(value, proclaimed))
                }
                Reading::Nobody => {
                    self.look_at = now + self.rest;
                    self.rest = (self.rest * 2).min(self.look_every).max(SOONEST.min(self.look_every));
                    self.over_at = Instant::NEVER;
                    None
                }
                Reading::Open if now < self.over_at => {
                    self.look_at = now + self.look_every;
                    continue;
                }
                Reading::Open => {
                    (self.look_at, self.over_at) = (now + self.look_every, Instant::NEVER);
                    None
                }
            };
            if self.is_news(&seen) {
                self.told = Some(seen.clone());
                return seen;
            }
        }
    }

    /// Of what one leader proclaims, only what is later is news: while it spreads, not every look meets it.
    fn is_news(&self, seen: &Option<Leader>) -> bool {
        match (&self.told, seen) {
            (Some(Some(told)), Some(seen)) if told.value == seen.value => seen.revision() > told.revision(),
            (told, seen) => told.as_ref() != Some(seen),
        }
    }

    pub(super) async fn look_once(&self) -> Result<Option<Leader>, InspectError> {
        let round = self.round().await;
        match Reading::of(&round, self.terms.quorum) {
            Reading::Leader { value, proclaimed, .. } => Ok(Some(Leader::new(value, proclaimed))),
            Reading::Nobody => Ok(None),
            Reading::Open => Err(InspectError::NoQuorum(Box::new(round.report(&self.terms)))),
        }
    }

    async fn look(&self) -> Reading {
        Reading::of(&self.round().await, self.terms.quorum)
    }

    async fn round(&self) -> crate::protocol::round::Round {
        let question = Command::Follow { key: self.key.clone() };
        let quorum = self.terms.quorum;
        let is_enough = |round: &_| Reading::of(round, quorum) != Reading::Open;
        driver::survey_until(&self.doors, &self.terms, |_| question.clone(), is_enough).await
    }
}

impl fmt::Debug for Observer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Observer").field("key", &self.key).field("told", &self.told).finish()
    }
}
