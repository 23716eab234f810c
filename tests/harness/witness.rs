//! Who was told that it holds what, and until when. Two at once is what must never be.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use redlock_quorum::Guard;
use rustix::time::{ClockId, clock_gettime};

/// A moment on the clock of this machine, the same for all its processes, which goes on while it sleeps.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Moment(pub u64);

impl Moment {
    pub fn now() -> Self {
        let time = clock_gettime(ClockId::Boottime);
        let (seconds, nanos) = (u64::try_from(time.tv_sec), u64::try_from(time.tv_nsec));
        Moment(seconds.expect("after the boot") * 1_000_000_000 + nanos.expect("below a second"))
    }

    /// None before `earlier`.
    pub fn since(self, earlier: Moment) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }

    pub fn after(self, by: Duration) -> Self {
        Moment(self.0 + u64::try_from(by.as_nanos()).expect("this century"))
    }
}

/// Somebody might use a resource all this time.
#[derive(Clone, PartialEq, Eq)]
pub struct Held {
    pub what: String,
    pub who: String,
    pub from: Moment,
    pub until: Moment,
}

impl fmt::Debug for Held {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Held { what, who, from, until } = self;
        write!(f, "{what} by {who} from {} ns to {} ns", from.0, until.0)
    }
}

/// What one holder sees of its guard while it holds.
pub struct Witness {
    held: Held,
}

impl Witness {
    /// Of a lock that was granted a moment ago.
    pub fn of(guard: &Guard, what: &str, who: &str) -> Self {
        let from = Moment::now();
        let held = Held { what: what.to_owned(), who: who.to_owned(), from, until: from };
        let mut witness = Witness { held };
        witness.look(guard);
        witness
    }

    /// The guard says until when it is valid now. Never shown too late: the clock is read before the guard.
    pub fn look(&mut self, guard: &Guard) {
        let now = Moment::now();
        self.held.until = self.held.until.max(now.after(guard.remaining()));
    }

    /// It is about to be released, or is lost: from now on nobody uses the resource on its behalf.
    pub fn ends(mut self) -> Held {
        self.held.until = self.held.until.min(Moment::now());
        self.held
    }
}

/// Those of which two held the same at the same time.
pub fn overlaps(mut holds: Vec<Held>) -> Vec<(Held, Held)> {
    holds.sort_by_key(|held| held.from);
    let mut longest: BTreeMap<String, Held> = BTreeMap::new();
    let mut found = Vec::new();
    for held in holds {
        let Some(earlier) = longest.get(&held.what) else {
            longest.insert(held.what.clone(), held);
            continue;
        };
        if held.from < earlier.until {
            found.push((earlier.clone(), held.clone()));
        }
        if held.until > earlier.until {
            longest.insert(held.what.clone(), held);
        }
    }
    found
}
