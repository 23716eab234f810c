//! One node's memory, as the commands see it: the reference for what a Redis does, and the heart of the in-memory node.
//! `tests/conformance.rs` holds it against real servers: the same random traces get the same answers, to the millisecond.
//!
//! # When a key ends
//!
//! Redis 7.0 and Valkey 9.1 read the time in whole milliseconds, and find a key gone when that reading is *above* the one at
//! which the key was set plus its ttl. So a key stands through the whole of its last millisecond, with 0 ms to live, and
//! lives for its ttl and up to a millisecond longer, depending on where in its millisecond it was set. That is
//! [`Precision::Milliseconds`].
//!
//! [`Precision::Exact`], the default, ends a key exactly with its ttl: no server does it earlier, some do it as early. It is
//! the harder of the two for mutual exclusion, so it is what the promise is tested on. It is the easier one for whoever
//! waits for a key to go: a bound on that has to allow for the millisecond.
//!
//! Inside of a script Redis 7.0 judges expiry by the time at which the script began, but sets and shows expiries by the time
//! at which the command is reached; Valkey 9.1 takes one time for both. So on Redis a key may get its ttl from a little
//! later than it was found to stand: it lives longer, which is the safe side, and the store does not do it. Valkey 9.1
//! reads the wall clock once in a millisecond and counts on from there: after a jump it goes by the old time for up to a
//! millisecond.

use std::collections::{BTreeMap, BTreeSet};
#[cfg(feature = "sim")]
use std::hash::{Hash, Hasher};
use std::time::Duration;

use super::command::{Answer, Command, Key, Refusal, Sighting, Unknown, Value, Waiter, Wake};
use super::fence::{Fence, highest_proposal};
use super::leading::Proclamation;
use super::marker::{Marker, Nonce, Pact, Process, Rules, Verdict};
use super::time::{Instant, Ttl};
use super::wait::LIST_LIVES;

/// Keys with values and expiries, the wait lists beside them, and for the strict kinds of locks the counters of the fences and
/// the markers of the namespaces. Its clock is whatever it is told.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Store {
    entries: BTreeMap<Key, Entry>,
    lists: BTreeMap<Key, WaitList>,
    counters: BTreeMap<Key, Counter>,
    proclaimed: BTreeMap<Key, Proclaimed>,
    /// By namespace.
    markers: BTreeMap<Box<[u8]>, Marker>,
    precision: Precision,
}

/// Who asks, and how others are woken.
pub trait Messenger {
    /// By which name the client is woken that asks; `None` if it cannot be.
    fn caller(&self) -> Option<&Waiter>;

    /// Which process the client takes this node for, by what was said when the connection was made; `None` if it was not said.
    fn process(&self) -> Option<&Process> {
        None
    }

    /// Sends a message that a key is free. False if nobody hears it.
    fn wake(&mut self, waiter: &Waiter, key: &Key) -> bool;
}

/// At one release, so many waiters are tried that do not hear.
const MOST_CALLS: usize = 16;

/// When exactly a key ends.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Precision {
    /// At the first moment at which any server may end it: when its ttl is over.
    #[default]
    Exact,
    /// As Redis and Valkey do: when the time, in whole milliseconds, is above that of its end.
    #[cfg_attr(not(feature = "sim"), allow(dead_code))]
    Milliseconds,
}

impl Precision {
    /// What a node reads off a clock that shows `now`.
    fn read(self, now: Instant) -> Instant {
        match self {
            Precision::Exact => now,
            Precision::Milliseconds => Instant::from_nanos(now.as_nanos() - now.as_nanos() % 1_000_000),
        }
    }

    fn is_over(self, now: Instant, expires_at: Instant) -> bool {
        match self {
            Precision::Exact => now >= expires_at,
            Precision::Milliseconds => self.read(now) > expires_at,
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Entry {
    value: Value,
    expires_at: Instant,
}

/// The largest fence that was accepted for a resource.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Counter {
    fence: Fence,
    expires_at: Instant,
}

/// What a holder has proclaimed, whether or not it still holds.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Proclaimed {
    said: Proclamation,
    expires_at: Instant,
}

/// For so long after the last grant a node remembers the counter of a resource. After that the high-water mark of the
/// namespace, which is no lower, stands for it; so what is kept for resources that nobody uses any more is bounded.
pub const COUNTER_LIVES: Duration = Duration::from_secs(3_600);

/// Those who wait for a key, by since when they do, on the node's clock and in whole microseconds.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct WaitList {
    waiters: BTreeSet<(u64, Waiter)>,
    expires_at: Instant,
}

impl Store {
    /// An empty store.
    #[cfg_attr(not(feature = "sim"), allow(dead_code))]
    pub fn with_precision(precision: Precision) -> Self {
        Store { precision, ..Store::default() }
    }

    /// Carries out a command at the node's own time.
    pub fn apply(&mut self, time: Instant, command: &Command, messenger: &mut dyn Messenger) -> Answer {
        match command.rules() {
            Rules::Plain => self.carry_out(time, command, messenger),
            Rules::Strict(pact) => self.carry_out_strictly(time, command, pact, messenger),
        }
    }

    /// Compares the marker in the same step, so that nothing comes between the judgement and the vote.
    fn carry_out_strictly(
        &mut self,
        time: Instant,
        command: &Command,
        pact: Pact,
        messenger: &mut dyn Messenger,
    ) -> Answer {
        let is_too_long = |ttl: &Ttl| *ttl > pact.max_ttl();
        let refused = Answer::Unknown(Unknown::Refused(Refusal::OtherRules));
        let marker = self.markers.entry(command.key().namespace().into()).or_default();
        let verdict = match (marker.judge(messenger.process(), pact), command) {
            // By whatever pact, it deletes only what is ours; and an operator's word goes above it.
            (Verdict::Refused, Command::Release { .. } | Command::Observe { overrules: true, .. }) => {
                Verdict::Waits
            }
            (verdict, _) => verdict,
        };
        match (verdict, command) {
            (Verdict::Refused, _) => refused,
            (_, Command::Propose { ttl, .. } | Command::Extend { ttl, .. }) if is_too_long(ttl) => refused,
            // Nobody counts a node of which it is not known what it has forgotten; but this is how it gets to be known.
            (_, Command::Observe { .. } | Command::Enrol { .. }) => self.carry_out(time, command, messenger),
            (Verdict::Counts(incarnation), _) => {
                self.carry_out(time, command, messenger).counting_in(incarnation)
            }
            (Verdict::Waits, _) => {
                let said = Box::new(self.carry_out(time, command, messenger));
                Answer::Waiting { said, counts_from: Instant::NEVER }
            }
        }
    }

    fn carry_out(&mut self, time: Instant, command: &Command, messenger: &mut dyn Messenger) -> Answer {
        let now = self.precision.read(time);
        match command {
            Command::Acquire { key, value, ttl } => self.acquire(now, key, value, *ttl),
            Command::Extend { key, value, ttl, heal, .. } => self.extend(now, key, value, *ttl, *heal),
            Command::Propose { key, value, ttl, fence, .. } => match self.acquire(now, key, value, *ttl) {
                Answer::Granted => self.consider(time, key, *fence),
                _ => Answer::Busy(self.counter(now, key)),
            },
            Command::Raise { key, value, fence, .. } => self.raise(now, key, value, *fence),
            Command::Observe { key, nonce, pact, overrules } => {
                let (Some(process), marker) = (messenger.process(), self.marker(key)) else {
                    return Answer::Unknown(Unknown::Refused(Refusal::Nameless));
                };
                if *overrules {
                    marker.overrule(*pact);
                }
                match marker.judge(Some(process), *pact) {
                    Verdict::Counts(_) => Answer::Enrolled(marker.high_water),
                    Verdict::Waits | Verdict::Refused => marker
                        .observe(process, *nonce, *pact)
                        .map_or(Answer::Unknown(Unknown::Refused(Refusal::OtherRules)), Answer::Observed),
                }
            }
            Command::Enrol { key, nonce, anew, floor, pact } => {
                if let Some(process) = messenger.process() {
                    self.marker(key).enrol(process, *nonce, *floor, *pact);
                }
                let observe =
                    Command::Observe { key: key.clone(), nonce: *anew, pact: *pact, overrules: false };
                self.carry_out(time, &observe, messenger)
            }
            Command::Release { key, value, linger, wake, .. } => {
                match self.release(now, key, value, *linger) {
                    Answer::Deleted { .. } if *linger == Ttl::ZERO => {
                        Answer::Deleted { others_wait: self.wake(now, key, *wake, messenger) }
                    }
                    Answer::Missing => {
                        self.wake(now, key, *wake, messenger);
                        Answer::Missing
                    }
                    other => other,
                }
            }
            Command::Enlist { key, waited } => match messenger.caller() {
                Some(waiter) => {
                    self.enlist(time, key, waiter, *waited);
                    Answer::Enlisted(self.sight(now, key))
                }
                None => Answer::Seen(self.sight(now, key)),
            },
            Command::Delist { key } => {
                if let Some(waiter) = messenger.caller() {
                    self.delist(now, key, waiter);
                }
                if self.find(now, key).is_none() {
                    self.wake(now, key, Wake::Next, messenger);
                }
                Answer::Delisted
            }
            Command::Inspect { key } => Answer::Seen(self.sight(now, key)),
            Command::Proclaim { key, value, said, ttl } => self.proclaim(now, key, value, (said, *ttl)),
            Command::Follow { key } => match self.sight(now, key) {
                Some(seen) => Answer::Followed(seen, self.proclaimed(now, key)),
                None => Answer::Seen(None),
            },
            Command::Remove { key } => {
                let seen = self.sight(now, key);
                self.remove(now, key);
                Answer::Removed(seen)
            }
        }
    }

    fn acquire(&mut self, now: Instant, key: &Key, value: &Value, ttl: Ttl) -> Answer {
        if self.find(now, key).is_some() {
            return Answer::Denied;
        }
        self.set(now, key, value, ttl);
        Answer::Granted
    }

    fn extend(&mut self, now: Instant, key: &Key, value: &Value, ttl: Ttl, heal: bool) -> Answer {
        match self.find(now, key) {
            Some(entry) if entry.value == *value => {
                entry.expires_at = entry.expires_at.max(now + ttl.as_duration());
                Answer::Present
            }
            Some(_) => Answer::Foreign,
            None if heal => {
                self.set(now, key, value, ttl);
                Answer::Healed
            }
            None => Answer::Missing,
        }
    }

    fn release(&mut self, now: Instant, key: &Key, value: &Value, linger: Ttl) -> Answer {
        match self.find(now, key) {
            Some(entry) if entry.value == *value && linger > Ttl::ZERO => {
                entry.expires_at = now + linger.as_duration();
                Answer::Deleted { others_wait: false }
            }
            Some(entry) if entry.value == *value => {
                self.entries.remove(key);
                Answer::Deleted { others_wait: false }
            }
            Some(_) => Answer::Foreign,
            None => Answer::Missing,
        }
    }

    /// The key has just been set for whoever proposes.
    fn consider(&mut self, time: Instant, key: &Key, fence: Fence) -> Answer {
        let now = self.precision.read(time);
        let counter = self.counter(now, key);
        if fence > counter && fence <= highest_proposal(time, counter) {
            self.accept(now, key, fence);
            Answer::Accepted
        } else {
            // What other resources accept moves the high-water mark. Of this one nothing shall while the key stands: a fence is
            // to be raised above what is said now.
            let expires_at = now + COUNTER_LIVES;
            self.counters.entry(key.clone()).or_insert(Counter { fence: counter, expires_at });
            Answer::Voted(counter)
        }
    }

    fn raise(&mut self, now: Instant, key: &Key, value: &Value, fence: Fence) -> Answer {
        match self.find(now, key) {
            Some(entry) if entry.value == *value => {}
            Some(_) => return Answer::Foreign,
            None => return Answer::Missing,
        }
        let counter = self.counter(now, key);
        if fence <= counter {
            return Answer::Voted(counter);
        }
        self.accept(now, key, fence);
        Answer::Raised
    }

    fn accept(&mut self, now: Instant, key: &Key, fence: Fence) {
        let marker = self.marker(key);
        marker.high_water = marker.high_water.max(fence);
        self.counters.insert(key.clone(), Counter { fence, expires_at: now + COUNTER_LIVES });
    }

    fn proclaim(&mut self, now: Instant, key: &Key, value: &Value, said: (&Proclamation, Ttl)) -> Answer {
        match self.find(now, key) {
            Some(entry) if entry.value == *value => {}
            Some(_) => return Answer::Foreign,
            None => return Answer::Missing,
        }
        let (said, expires_at) = (said.0.clone(), now + said.1.as_duration());
        self.proclaimed.insert(key.clone(), Proclaimed { said, expires_at });
        Answer::Proclaimed
    }

    fn proclaimed(&mut self, now: Instant, key: &Key) -> Option<Proclamation> {
        if self.proclaimed.get(key).is_some_and(|said| self.precision.is_over(now, said.expires_at)) {
            self.proclaimed.remove(key);
        }
        self.proclaimed.get(key).map(|proclaimed| proclaimed.said.clone())
    }

    /// What a fence of the resource must be above.
    fn counter(&mut self, now: Instant, key: &Key) -> Fence {
        if self.counters.get(key).is_some_and(|counter| self.precision.is_over(now, counter.expires_at)) {
            self.counters.remove(key);
        }
        let own = self.counters.get(key).map(|counter| counter.fence);
        let marker = self.marker(key);
        own.unwrap_or(marker.high_water).max(marker.floor)
    }

    fn marker(&mut self, key: &Key) -> &mut Marker {
        self.markers.entry(key.namespace().into()).or_default()
    }

    /// Enters a wait list, or takes the place there that so long a wait deserves.
    fn enlist(&mut self, time: Instant, key: &Key, waiter: &Waiter, waited: Duration) {
        let now = self.precision.read(time);
        self.delist(now, key, waiter);
        let since = (time - waited).as_nanos() / 1_000;
        let list = self
            .lists
            .entry(key.clone())
            .or_insert_with(|| WaitList { waiters: BTreeSet::new(), expires_at: now });
        list.waiters.insert((since, waiter.clone()));
        list.expires_at = now + LIST_LIVES;
    }

    fn delist(&mut self, now: Instant, key: &Key, waiter: &Waiter) {
        if let Some(list) = self.list(now, key) {
            list.waiters.retain(|(_, other)| other != waiter);
            self.forget_an_empty_list(key);
        }
    }

    /// Wakes whoever is to be woken now that the key is free. True if one was woken, or others still wait.
    fn wake(&mut self, now: Instant, key: &Key, wake: Wake, messenger: &mut dyn Messenger) -> bool {
        match wake {
            Wake::Nobody => return false,
            Wake::NobodyYet => return self.list(now, key).is_some(),
            Wake::Next => {}
        }
        for _ in 0..MOST_CALLS {
            let first = self.list(now, key).and_then(|list| list.waiters.pop_first());
            self.forget_an_empty_list(key);
            let Some((_, waiter)) = first else { return false };
            if messenger.caller() != Some(&waiter) && messenger.wake(&waiter, key) {
                return true;
            }
        }
        true
    }

    fn list(&mut self, now: Instant, key: &Key) -> Option<&mut WaitList> {
        if self.lists.get(key).is_some_and(|list| self.precision.is_over(now, list.expires_at)) {
            self.lists.remove(key);
        }
        self.lists.get_mut(key)
    }

    fn forget_an_empty_list(&mut self, key: &Key) {
        if self.lists.get(key).is_some_and(|list| list.waiters.is_empty()) {
            self.lists.remove(key);
        }
    }

    /// What stands at a key.
    pub fn sight(&mut self, now: Instant, key: &Key) -> Option<Sighting> {
        let now = self.precision.read(now);
        self.find(now, key).map(|entry| Sighting {
            value: entry.value.clone(),
            expires_in: (entry.expires_at < Instant::NEVER).then(|| entry.expires_at.since(now)),
        })
    }

    /// Sets a key whatever stands there; `Duration::MAX` for one without an expiry.
    pub fn put(&mut self, now: Instant, key: &Key, value: &Value, expires_in: Duration) {
        let now = self.precision.read(now);
        self.entries.insert(key.clone(), Entry { value: value.clone(), expires_at: now + expires_in });
    }

    /// Deletes a key, whoever set it. True if it was there.
    pub fn remove(&mut self, now: Instant, key: &Key) -> bool {
        self.find(now, key).is_some() && self.entries.remove(key).is_some()
    }

    /// The keys that stand now.
    pub fn keys(&self, now: Instant) -> impl Iterator<Item = (&Key, &Value)> {
        let alive =
            self.entries.iter().filter(move |(_, entry)| !self.precision.is_over(now, entry.expires_at));
        alive.map(|(key, entry)| (key, &entry.value))
    }

    /// What stands, and until when. A search has forgotten what is over.
    #[cfg(feature = "sim")]
    pub fn entries(&self) -> impl Iterator<Item = (&Value, Instant)> {
        self.entries.values().map(|entry| (&entry.value, entry.expires_at))
    }

    /// What a fence of the resource must be above, and what of that is the node's own memory of the resource.
    #[cfg(feature = "sim")]
    pub fn counters(&mut self, time: Instant, key: &Key) -> (Fence, Option<Fence>) {
        let counter = self.counter(self.precision.read(time), key);
        (counter, self.counters.get(key).map(|counter| counter.fence))
    }

    /// Accepts a fence, whatever stands at the key.
    #[cfg(feature = "sim")]
    pub fn accept_anyway(&mut self, time: Instant, key: &Key, fence: Fence) {
        self.accept(self.precision.read(time), key, fence);
    }

    /// The largest fence that was accepted in the namespace of a key.
    #[cfg(feature = "sim")]
    pub fn high_water(&mut self, key: &Key) -> Fence {
        self.marker(key).high_water
    }

    /// Lets a process count that has nothing to forget, in the namespace of a key; if nobody has looked at it before.
    pub fn begin_to_count(&mut self, key: &Key, process: &Process, floor: Fence, pact: Pact) {
        let marker = self.marker(key);
        if *marker == Marker::default()
            && let Some(nonce) = marker.observe(process, Nonce(0), pact)
        {
            marker.enrol(process, nonce, floor, pact);
        }
    }

    /// Forgets the marker of the namespace of a key: as when an operator deletes it, or all keys.
    #[cfg(feature = "sim")]
    pub fn forget_marker(&mut self, key: &Key) -> bool {
        self.markers.remove(key.namespace()).is_some_and(|marker| marker != Marker::default())
    }

    /// Fences and markers, which have no names of clients in them.
    #[cfg(feature = "sim")]
    pub fn hash_strict_part<H: Hasher>(&self, hasher: &mut H) {
        (&self.counters, &self.markers).hash(hasher);
    }

    /// Forgets the keys that are over now, as the next command about them would.
    #[cfg(feature = "sim")]
    pub fn forget_what_is_over(&mut self, now: Instant) {
        let precision = self.precision;
        self.entries.retain(|_, entry| !precision.is_over(now, entry.expires_at));
    }

    /// When the keys are gone, if nothing happens to them.
    #[cfg(feature = "sim")]
    pub fn ends(&self) -> impl Iterator<Item = Instant> {
        let longer = match self.precision {
            Precision::Exact => Duration::ZERO,
            Precision::Milliseconds => Duration::from_millis(1),
        };
        self.entries.values().map(move |entry| entry.expires_at + longer)
    }

    fn set(&mut self, now: Instant, key: &Key, value: &Value, ttl: Ttl) {
        self.put(now, key, value, ttl.as_duration());
    }

    fn find(&mut self, now: Instant, key: &Key) -> Option<&mut Entry> {
        if self.entries.get(key).is_some_and(|entry| self.precision.is_over(now, entry.expires_at)) {
            self.entries.remove(key);
        }
        self.entries.get_mut(key)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::fence::FURTHEST_AHEAD;
    use crate::protocol::quorum::Quorum;

    fn at(millis: u64) -> Instant {
        Instant::from_nanos(millis * 1_000_000)
    }

    /// A node that wakes nobody.
    struct Silent;

    impl Messenger for Silent {
        fn caller(&self) -> Option<&Waiter> {
            None
        }

        fn wake(&mut self, _waiter: &Waiter, _key: &Key) -> bool {
            false
        }
    }

    /// `acquire a 10`, `extend a 10`, `renew a 10` (without heal), `release a`, `look`, at a time in milliseconds.
    fn answer(store: &mut Store, time: u64, words: &str) -> String {
        let mut words = words.split(' ');
        let verb = words.next().expect("a verb");
        let value = Value::from_wire(words.next().unwrap_or("").as_bytes());
        let ttl = words.next().map_or(0, |millis| millis.parse().expect("milliseconds"));
        let ttl = Ttl::from_duration(Duration::from_millis(ttl));
        let key = Key::of_lock("", b"k");
        let command = match verb {
            "acquire" => Command::Acquire { key, value, ttl },
            "extend" => Command::Extend { key, value, ttl, heal: true, rules: Rules::Plain },
            "renew" => Command::Extend { key, value, ttl, heal: false, rules: Rules::Plain },
            "release" => {
                let (owed_for, wake, rules) = (Duration::ZERO, Wake::Nobody, Rules::Plain);
                Command::Release { key, value, linger: ttl, owed_for, wake, rules }
            }
            _ => Command::Inspect { key },
        };
        match store.apply(at(time), &command, &mut Silent) {
            Answer::Seen(None) => "free".to_owned(),
            Answer::Seen(Some(seen)) => {
                format!("{:?} {:?}", seen.value, seen.expires_in.unwrap_or(Duration::MAX))
            }
            Answer::Deleted { .. } => "Deleted".to_owned(),
            answer => format!("{answer:?}"),
        }
    }

    #[test]
    fn behaves_as_a_redis_does() {
        let mut store = Store::default();
        for (time, command, expected) in [
            (0, "look", "free"),
            (0, "acquire a 100", "Granted"),
            (1, "acquire b 100", "Denied"),
            (1, "acquire a 100", "Denied"), // NX looks at the key, not at the value
            (1, "look", "\"a\" 99ms"),
            (10, "extend a 50", "Present"),
            (10, "look", "\"a\" 90ms"), // never shortened
            (20, "extend a 100", "Present"),
            (20, "look", "\"a\" 100ms"),
            (20, "extend b 100", "Foreign"),
            (20, "release b", "Foreign"),
            (119, "look", "\"a\" 1ms"),
            (120, "look", "free"), // gone at the end of its last millisecond
            (120, "renew a 100", "Missing"),
            (120, "release a", "Missing"),
            (120, "extend a 100", "Healed"),
            (121, "release a", "Deleted"),
            (121, "acquire b 10", "Granted"),
            (122, "release a 50", "Foreign"),
            (122, "release b 50", "Deleted"),
            (122, "look", "\"b\" 50ms"), // lingers, and goes by itself
            (172, "release b 50", "Missing"),
        ] {
            assert_eq!(answer(&mut store, time, command), expected, "{time} ms: {command}");
        }
    }

    #[test]
    fn in_whole_milliseconds_a_key_stands_through_the_last_of_them() {
        let (key, value) = (Key::of_lock("", b"k"), Value::from_wire(b"a"));
        let ttl = Ttl::from_duration(Duration::from_millis(100));
        for (set_at, last) in [(0, 100_999_999), (999_999, 100_999_999), (1_000_000, 101_999_999)] {
            let mut store = Store::with_precision(Precision::Milliseconds);
            let acquire = Command::Acquire { key: key.clone(), value: value.clone(), ttl };
            store.apply(Instant::from_nanos(set_at), &acquire, &mut Silent);
            let left = |store: &mut Store, nanos| {
                store.sight(Instant::from_nanos(nanos), &key).map(|seen| seen.expires_in)
            };
            assert_eq!(store.keys(Instant::from_nanos(last)).count(), 1, "set at {set_at} ns");
            assert_eq!(left(&mut store, last), Some(Some(Duration::ZERO)), "set at {set_at} ns");
            assert_eq!(store.keys(Instant::from_nanos(last + 1)).count(), 0, "set at {set_at} ns");
            assert_eq!(left(&mut store, last + 1), None, "set at {set_at} ns");
        }
    }

    /// A client that takes the node for this process.
    struct Knows(&'static str, Process);

    impl Knows {
        fn process(name: &'static str) -> Self {
            Knows(name, Process(name.into()))
        }
    }

    impl Messenger for Knows {
        fn caller(&self) -> Option<&Waiter> {
            None
        }

        fn process(&self) -> Option<&Process> {
            (!self.0.is_empty()).then_some(&self.1)
        }

        fn wake(&mut self, _waiter: &Waiter, _key: &Key) -> bool {
            false
        }
    }

    fn pact(max_ttl: u64) -> Pact {
        Pact::of(&["n1".into()], Quorum::of(1), Ttl::from_millis(max_ttl))
    }

    /// `propose a 10`, `raise a 10`, `extend a`, `release a`, `observe 7`, `enrol 7 10`, for a key of a namespace.
    fn strictly(
        store: &mut Store,
        (time, process): (u64, &'static str),
        words: &str,
        key: &str,
        pact: Pact,
    ) -> String {
        let mut words = words.split(' ');
        let (verb, first) = (words.next().expect("a verb"), words.next().expect("a word"));
        let number = words.next().map_or(0, |number| number.parse().expect("a number"));
        let (key, value) = (Key::of_lock("ns", key.as_bytes()), Value::from_wire(first.as_bytes()));
        let (fence, ttl) = (Fence::new(number), Ttl::from_millis(100));
        let nonce = || Nonce(first.parse().expect("a number"));
        let anew = || Nonce(nonce().0 + 100);
        let command = match verb {
            "propose" => Command::Propose { key, value, ttl, fence, pact },
            "raise" => Command::Raise { key, value, fence, pact },
            "extend" => Command::Extend { key, value, ttl, heal: true, rules: Rules::Strict(pact) },
            "observe" => Command::Observe { key, nonce: nonce(), pact, overrules: false },
            "overrule" => Command::Observe { key, nonce: nonce(), pact, overrules: true },
            "enrol" => Command::Enrol { key, nonce: nonce(), anew: anew(), floor: fence, pact },
            _ => {
                let (linger, owed_for, wake) = (Ttl::ZERO, Duration::ZERO, Wake::Nobody);
                Command::Release { key, value, linger, owed_for, wake, rules: Rules::Strict(pact) }
            }
        };
        match store.apply(at(time), &command, &mut Knows::process(process)) {
            Answer::Waiting { said, .. } => format!("{}, and does not count", in_words(*said)),
            Answer::Counting { said, .. } => in_words(*said),
            answer => in_words(answer),
        }
    }

    fn in_words(answer: Answer) -> String {
        match answer {
            Answer::Deleted { .. } => "Deleted".to_owned(),
            answer => format!("{answer:?}"),
        }
    }

    fn enrolled(high_water: u64) -> Store {
        let mut store = Store::default();
        strictly(&mut store, (0, "p"), "observe 7", "k", pact(100));
        strictly(&mut store, (0, "p"), &format!("enrol 7 {high_water}"), "k", pact(100));
        store
    }

    #[test]
    fn a_fence_is_accepted_only_above_the_counter_and_where_the_key_stands() {
        let mut store = enrolled(0);
        for (time, command, expected) in [
            (0, "propose a 10", "Accepted"),
            (0, "propose b 11", "Busy(Fence(10))"),
            (0, "raise b 12", "Foreign"), // what another's key guards is not moved
            (0, "release a", "Deleted"),
            (0, "raise a 12", "Missing"),
            (0, "propose b 10", "Voted(Fence(10))"), // the key, but not the same fence twice
            (0, "raise b 10", "Voted(Fence(10))"),
            (0, "raise b 15", "Raised"),
            (0, "extend b", "Present"),
            (0, "release b", "Deleted"),
            (0, "propose c 11", "Voted(Fence(15))"),
        ] {
            assert_eq!(strictly(&mut store, (time, "p"), command, "k", pact(100)), expected, "{command}");
        }
    }

    #[test]
    fn a_proposal_far_ahead_of_the_clock_is_not_accepted_but_what_is_raised_is_not_bounded() {
        let (mut store, bound) = (enrolled(5), FURTHEST_AHEAD.as_micros() as u64);
        let mut answer = |time, command: &str| strictly(&mut store, (time, "p"), command, "k", pact(100));
        assert_eq!(answer(1, &format!("propose a {}", bound + 1_001)), "Voted(Fence(5))");
        assert_eq!(answer(1, &format!("raise a {}", bound + 1_001)), "Raised");
        assert_eq!(answer(1, "release a"), "Deleted");
        assert_eq!(
            answer(1, &format!("propose b {}", bound + 1_002)),
            "Accepted",
            "the next one leads nowhere"
        );
    }

    #[test]
    fn counters_expire_and_the_high_water_mark_stands_for_them() {
        let mut store = enrolled(0);
        let mut answer =
            |time, command: &str, key: &str| strictly(&mut store, (time, "p"), command, key, pact(100));
        assert_eq!(answer(0, "propose a 10", "k"), "Accepted");
        assert_eq!(answer(0, "propose a 20", "other"), "Accepted");
        assert_eq!(answer(3_599_999, "propose b 10", "k"), "Voted(Fence(10))");
        assert_eq!(
            answer(3_600_000, "raise b 15", "k"),
            "Voted(Fence(20))",
            "of another resource, and no lower"
        );
        assert_eq!(answer(3_600_000, "raise b 21", "k"), "Raised");
        assert_eq!(answer(3_600_000, "propose a 21", "new"), "Voted(Fence(21))");
    }

    #[test]
    fn while_a_key_stands_no_other_resource_moves_its_counter() {
        let mut store = enrolled(5);
        for (command, key, expected) in [
            // It was never used before, and others are.
            ("propose a 5", "k", "Voted(Fence(5))"),
            ("propose b 20", "other", "Accepted"),
            ("raise a 6", "k", "Raised"),
            ("release a", "k", "Deleted"),
            ("propose a 7", "k", "Accepted"),
            ("propose a 19", "new", "Voted(Fence(20))"),
        ] {
            assert_eq!(strictly(&mut store, (0, "p"), command, key, pact(100)), expected, "{command} {key}");
        }
    }

    #[test]
    fn a_counter_that_was_restored_does_not_win_over_the_floor() {
        let mut store = enrolled(0);
        assert_eq!(strictly(&mut store, (0, "p"), "propose a 10", "k", pact(100)), "Accepted");
        // The same memory in another process, of which the others know that the fences are at 33.
        for (command, expected) in [
            ("release a", "Deleted, and does not count"),
            ("propose b 11", "Accepted, and does not count"),
            ("extend b", "Present, and does not count"),
            ("release b", "Deleted, and does not count"),
            ("release b", "Missing, and does not count"),
            ("observe 8", "Observed(Nonce(8))"),
            ("observe 9", "Observed(Nonce(8))"),
            ("enrol 9 33", "Observed(Nonce(8))"),
            ("enrol 8 33", "Enrolled(Fence(33))"),
            ("propose b 12", "Voted(Fence(33))"),
            ("raise b 34", "Raised"),
        ] {
            assert_eq!(strictly(&mut store, (1, "q"), command, "k", pact(100)), expected, "{command}");
        }
    }

    #[test]
    fn a_nonce_that_was_forgotten_does_not_come_back() {
        let mut store = enrolled(0);
        assert_eq!(strictly(&mut store, (0, "p"), "enrol 7 33", "k", pact(100)), "Enrolled(Fence(0))");
        // Two have waited with that nonce. To the second one it must not say that nothing was forgotten, and to a holder not that
        // the node is what it was.
        let mut store = Store::default();
        for command in ["enrol 7 33", "enrol 7 33", "observe 8"] {
            assert_eq!(
                strictly(&mut store, (0, "p"), command, "k", pact(100)),
                "Observed(Nonce(107))",
                "{command}"
            );
        }
        assert_eq!(
            strictly(&mut store, (0, "p"), "propose a 10", "k", pact(100)),
            "Accepted, and does not count"
        );
    }

    #[test]
    fn who_has_agreed_on_something_else_is_refused_and_nothing_is_done() {
        let mut store = enrolled(0);
        for command in ["propose a 10", "raise a 10", "extend a", "observe 8", "enrol 8 10"] {
            let answer = strictly(&mut store, (0, "p"), command, "k", pact(200));
            assert_eq!(answer, "Unknown(Refused(OtherRules))", "{command}");
        }
        // But what one has set by other rules, one can take away.
        assert_eq!(strictly(&mut store, (0, "p"), "propose a 10", "k", pact(100)), "Accepted");
        for (command, expected) in
            [("release b", "Foreign, and does not count"), ("release a", "Deleted, and does not count")]
        {
            assert_eq!(strictly(&mut store, (0, "p"), command, "k", pact(200)), expected, "{command}");
        }
        assert_eq!(store.keys(at(0)).count(), 0);
        // Unless an operator says so: then it is observed anew, and counts for nobody.
        for (command, longest, expected) in [
            ("overrule 8", 200, "Observed(Nonce(8))"),
            ("propose a 11", 100, "Accepted, and does not count"),
            ("observe 9", 100, "Unknown(Refused(OtherRules))"),
            ("enrol 8 10", 100, "Unknown(Refused(OtherRules))"),
            ("enrol 8 10", 200, "Enrolled(Fence(11))"),
            ("raise a 12", 100, "Unknown(Refused(OtherRules))"),
            ("raise a 12", 200, "Raised"),
        ] {
            assert_eq!(strictly(&mut store, (0, "p"), command, "k", pact(longest)), expected, "{command}");
        }
        // A ttl above the longest one.
        let mut store = Store::default();
        let answer = strictly(&mut store, (0, "p"), "propose a 10", "k", pact(99));
        assert_eq!(answer, "Unknown(Refused(OtherRules))");
        assert_eq!(store.keys(at(0)).count(), 0);
        // Who does not know which process it is cannot compare.
        let answer = strictly(&mut enrolled(0), (0, ""), "propose a 10", "k", pact(100));
        assert_eq!(answer, "Accepted, and does not count");
    }
}
