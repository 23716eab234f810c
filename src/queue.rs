//! The local place per resource: of one `Redlock` and its clones, one claim at a time competes for a resource over the
//! network, and the others wait here, first come first served.
//!
//! A holder that is done hands over to the next one here without a word to the other clients, but not for ever if others
//! wait; and one that has just called another client lets it pass before it comes back.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use foldhash::fast::RandomState;
use tokio::sync::{Notify, Semaphore};

use crate::protocol::command::Key;
use crate::protocol::time::Instant;
use crate::sync::lock;

/// While other clients wait, so many times in a row a resource is handed over in here.
const MOST_HAND_OVERS: u32 = 16;

/// For so long after a release it is remembered that it woke another client: it will have the resource by then.
const COURTESY: Duration = Duration::from_millis(5);

/// Of how many resources that is remembered at most.
const MOST_COURTESIES: usize = 64;

/// Who is at which resource.
#[derive(Default)]
pub(crate) struct Places {
    turns: Mutex<Turns>,
    /// Told when the last one has left.
    empty: Notify,
}

#[derive(Default)]
struct Turns {
    turns: HashMap<Key, Arc<Turn>, RandomState>,
    /// Resources that nobody is at any more, for which others were woken, and until when that matters.
    courtesies: VecDeque<(Key, Instant)>,
}

/// One resource, as long as somebody is at it.
struct Turn {
    permit: Semaphore,
    /// The one that has the place, and those who wait for it. Whose turn it is has left the others, even before it has run.
    present: AtomicUsize,
    state: Mutex<TurnState>,
}

#[derive(Default)]
struct TurnState {
    /// Other clients wait, by the answer to the last release.
    others_wait: bool,
    /// Until then another client that was woken is let pass.
    polite_until: Option<Instant>,
    /// How often the place was handed over in a row.
    hand_overs: u32,
    /// What whoever hands over owes to the other clients, until the next one takes it up.
    debt: Option<Debt>,
}

/// What is owed to other clients by a holder that handed over without waking one of them. Dropped, it is paid: somebody is
/// woken. Whoever has acquired the resource owes nothing any more, since its own release will do it.
pub(crate) struct Debt(Option<Box<dyn FnOnce() + Send>>);

impl Debt {
    pub(crate) fn new(pay: impl FnOnce() + Send + 'static) -> Self {
        Debt(Some(Box::new(pay)))
    }

    pub(crate) fn forgive(mut self) {
        self.0 = None;
    }
}

impl Drop for Debt {
    fn drop(&mut self) {
        if let Some(pay) = self.0.take() {
            pay();
        }
    }
}

/// The place at a resource. When it is [given up](Place::give_up), or dropped, it is the next one's turn.
///
/// What is left of it then is the spot, which sees to it that nothing stays behind.
pub(crate) struct Place {
    /// It was taken out of the turn, and goes back when the place is given up.
    has_permit: bool,
    spot: Spot,
}

/// Somebody at a resource, at the head, waiting, or about to leave. The last one to leave takes the entry away.
struct Spot {
    places: Arc<Places>,
    key: Key,
    turn: Option<Arc<Turn>>,
}

/// As many wait for the resource as may.
#[derive(Debug)]
pub(crate) struct Full;

impl Places {
    /// The place, if nobody has it or waits for it.
    pub(crate) fn try_enter(self: &Arc<Self>, key: &Key, now: Instant) -> Option<Place> {
        let spot = self.arrive(key, now);
        let presence = Presence::begin(spot.turn(), 0).ok()?;
        spot.turn().permit.try_acquire().ok()?.forget();
        presence.lasts_as_long_as_the_place();
        Some(Place { has_permit: true, spot })
    }

    /// The place, when it is this caller's turn. Dropped while waiting, nobody's turn is lost.
    pub(crate) async fn enter(self: &Arc<Self>, key: &Key, now: Instant, most: usize) -> Result<Place, Full> {
        let spot = self.arrive(key, now);
        let presence = Presence::begin(spot.turn(), most)?;
        spot.turn().permit.acquire().await.expect("a turn is never closed").forget();
        presence.lasts_as_long_as_the_place();
        Ok(Place { has_permit: true, spot })
    }

    /// Completes when nobody is at any resource: every release has been answered, or will not be.
    pub(crate) async fn empty(&self) {
        loop {
            let empty = self.empty.notified();
            if lock(&self.turns).turns.is_empty() {
                return;
            }
            empty.await;
        }
    }

    fn arrive(self: &Arc<Self>, key: &Key, now: Instant) -> Spot {
        let mut turns = lock(&self.turns);
        let turn = match turns.turns.get(key) {
            Some(turn) => turn.clone(),
            None => {
                let state = TurnState { polite_until: turns.recall(key, now), ..TurnState::default() };
                let (permit, state) = (Semaphore::new(1), Mutex::new(state));
                let turn = Arc::new(Turn { permit, present: AtomicUsize::new(0), state });
                turns.turns.insert(key.clone(), turn.clone());
                turn
            }
        };
        Spot { places: self.clone(), key: key.clone(), turn: Some(turn) }
    }

    #[cfg(test)]
    fn len(&self) -> usize {
        lock(&self.turns).turns.len()
    }
}

impl Turns {
    fn remember(&mut self, key: &Key, until: Instant) {
        if self.courtesies.len() == MOST_COURTESIES {
            self.courtesies.pop_front();
        }
        self.courtesies.push_back((key.clone(), until));
    }

    fn recall(&mut self, key: &Key, now: Instant) -> Option<Instant> {
        self.courtesies.retain(|(_, until)| now < *until);
        let place = self.courtesies.iter().position(|(other, _)| other == key)?;
        self.courtesies.remove(place).map(|(_, until)| until)
    }
}

impl Place {
    /// The next one may have it. This one is still about, to hear what came of its release.
    pub(crate) fn give_up(&mut self) {
        // In this order: where nobody is present, the permit is there to be had.
        if std::mem::take(&mut self.has_permit) {
            self.spot.turn().permit.add_permits(1);
            drop(Presence(self.spot.turn()));
        }
    }

    /// Whether the next one here shall have the resource without other clients being woken. Asked once, by a holder that is
    /// done; it then owes them the `debt`.
    pub(crate) fn hands_over(&self, now: impl FnOnce() -> Instant, debt: impl FnOnce() -> Debt) -> bool {
        // It has let go already: whoever drops a release that was begun does so again.
        if !self.has_permit {
            return false;
        }
        let turn = self.spot.turn();
        let mut state = lock(&turn.state);
        let may = !state.others_wait || state.hand_overs < MOST_HAND_OVERS;
        let nobody_waits = turn.present.load(Ordering::Acquire) == 1;
        if nobody_waits || !may {
            state.hand_overs = 0;
            state.polite_until = state.others_wait.then(|| now() + COURTESY);
            return false;
        }
        state.hand_overs = state.hand_overs.saturating_add(1);
        let former = state.debt.replace(debt());
        drop(state);
        drop(former);
        true
    }

    /// What the former holder owes, if it handed over.
    pub(crate) fn take_debt(&self) -> Option<Debt> {
        lock(&self.spot.turn().state).debt.take()
    }

    /// Whether another client that was woken is to be let pass.
    pub(crate) fn is_polite(&self, now: impl FnOnce() -> Instant) -> bool {
        lock(&self.spot.turn().state).polite_until.is_some_and(|until| now() < until)
    }

    /// What came of a release.
    pub(crate) fn heard(&self, now: Instant, others_wait: bool) {
        let mut state = lock(&self.spot.turn().state);
        state.others_wait = others_wait;
        state.polite_until = others_wait.then(|| now + COURTESY);
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.give_up();
    }
}

/// Somebody who waits for a turn, or has it.
struct Presence<'a>(&'a Turn);

impl<'a> Presence<'a> {
    /// One more, if no more than `most` are there: one that has the place, and those who wait.
    fn begin(turn: &'a Turn, most: usize) -> Result<Self, Full> {
        let enter = |present: usize| (present <= most).then_some(present + 1);
        match turn.present.fetch_update(Ordering::AcqRel, Ordering::Acquire, enter) {
            Ok(_) => Ok(Presence(turn)),
            Err(_) => Err(Full),
        }
    }

    /// It ends when the place is given up.
    fn lasts_as_long_as_the_place(self) {
        std::mem::forget(self);
    }
}

impl Drop for Presence<'_> {
    fn drop(&mut self) {
        self.0.present.fetch_sub(1, Ordering::AcqRel);
    }
}

impl Spot {
    fn turn(&self) -> &Arc<Turn> {
        self.turn.as_ref().expect("a spot has its turn until it is dropped")
    }
}

impl Drop for Spot {
    fn drop(&mut self) {
        let mut turns = lock(&self.places.turns);
        self.turn = None;
        if turns.turns.get(&self.key).is_none_or(|turn| Arc::strong_count(turn) > 1) {
            return;
        }
        let turn = turns.turns.remove(&self.key);
        let state = turn.map(|turn| std::mem::take(&mut *lock(&turn.state))).unwrap_or_default();
        if let Some(until) = state.polite_until {
            turns.remember(&self.key, until);
        }
        let is_empty = turns.turns.is_empty();
        drop(turns);
        // Nobody took it up. It goes out before anybody hears that all have left.
        drop(state.debt);
        if is_empty {
            self.places.empty.notify_waiters();
        }
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;

    use super::*;

    const START: Instant = Instant::from_nanos(0);

    fn key(name: &str) -> Key {
        Key::of_lock("", name.as_bytes())
    }

    #[tokio::test]
    async fn the_place_is_given_in_the_order_of_arrival_and_nothing_stays_behind() {
        let places = Arc::new(Places::default());
        let first = places.try_enter(&key("a"), START).expect("free");
        assert!(places.try_enter(&key("a"), START).is_none());
        assert!(places.try_enter(&key("b"), START).is_some(), "another resource");

        let name = key("a");
        let mut second = Box::pin(places.enter(&name, START, usize::MAX));
        let mut third = Box::pin(places.enter(&name, START, usize::MAX));
        assert!((&mut second).now_or_never().is_none());
        assert!((&mut third).now_or_never().is_none());
        drop(first);
        assert!((&mut third).now_or_never().is_none(), "not before the second");
        drop(second);
        let third = third.now_or_never().expect("the second gave up its turn");
        assert!(places.try_enter(&key("a"), START).is_none());
        drop(third);
        assert_eq!(places.len(), 0);
    }

    fn debt(paid: &Arc<AtomicUsize>) -> Debt {
        let paid = paid.clone();
        Debt::new(move || {
            paid.fetch_add(1, Ordering::SeqCst);
        })
    }

    fn paid(paid: &AtomicUsize) -> usize {
        paid.load(Ordering::SeqCst)
    }

    #[tokio::test]
    async fn what_is_owed_to_others_is_paid_unless_the_next_one_holds() {
        let (places, owed, name) = (Arc::new(Places::default()), Arc::default(), key("a"));
        let mut holder = places.try_enter(&name, START).expect("free");
        assert!(!holder.hands_over(|| START, || debt(&owed)), "nobody waits");

        let mut second = Box::pin(places.enter(&name, START, usize::MAX));
        assert!((&mut second).now_or_never().is_none());
        assert!(holder.hands_over(|| START, || debt(&owed)));
        holder.give_up();
        let second = second.now_or_never().expect("its turn").expect("not full");
        second.take_debt().expect("what the first one owes").forgive();
        assert_eq!(paid(&owed), 0, "it holds, and will wake others itself");

        // One that is dropped before its turn leaves the debt to nobody.
        let mut third = Box::pin(places.enter(&name, START, usize::MAX));
        assert!((&mut third).now_or_never().is_none());
        assert!(!holder.hands_over(|| START, || debt(&owed)), "somebody waits, but it has let go already");
        assert!(second.hands_over(|| START, || debt(&owed)));
        drop(third);
        drop(second);
        assert_eq!(paid(&owed), 0, "the first one is still about");
        drop(holder);
        assert_eq!((paid(&owed), places.len()), (1, 0));
    }

    #[tokio::test]
    async fn while_others_wait_it_is_handed_over_a_few_times_only() {
        let (places, owed, name) = (Arc::new(Places::default()), Arc::default(), key("a"));
        let holder = places.try_enter(&name, START).expect("free");
        let mut next = Box::pin(places.enter(&name, START, usize::MAX));
        assert!((&mut next).now_or_never().is_none());
        let in_a_row =
            |most: u32| (0..most).take_while(|_| holder.hands_over(|| START, || debt(&owed))).count();
        assert_eq!(in_a_row(1_000), 1_000, "nobody else waits");
        holder.heard(START, true);
        assert_eq!(in_a_row(1_000), 0, "it has been long enough");
        assert_eq!(in_a_row(1_000), MOST_HAND_OVERS as usize);
        assert!(holder.is_polite(|| START) && !holder.is_polite(|| START + COURTESY));
    }

    #[test]
    fn that_others_wait_is_remembered_for_a_moment_only() {
        let (places, name) = (Arc::new(Places::default()), key("a"));
        for (back_after, is_polite) in [(Duration::ZERO, true), (COURTESY, false)] {
            let place = places.try_enter(&name, START).expect("free");
            place.heard(START, true);
            drop(place);
            assert_eq!(places.len(), 0);
            let now = START + back_after;
            let place = places.try_enter(&name, now).expect("free");
            assert_eq!(place.is_polite(|| now), is_polite, "after {back_after:?}");
            place.heard(now, false);
        }
        for number in 0..2 * MOST_COURTESIES {
            places.try_enter(&key(&number.to_string()), START).expect("free").heard(START, true);
        }
        assert_eq!(lock(&places.turns).courtesies.len(), MOST_COURTESIES);
    }

    #[tokio::test]
    async fn no_more_wait_than_may() {
        let (places, name) = (Arc::new(Places::default()), key("a"));
        let holder = places.try_enter(&name, START).expect("free");
        let mut waiting = Box::pin(places.enter(&name, START, 1));
        assert!((&mut waiting).now_or_never().is_none());
        assert!(matches!(places.enter(&name, START, 1).now_or_never(), Some(Err(Full))));
        drop(waiting);
        assert!(places.enter(&name, START, 1).now_or_never().is_none(), "room again");

        // Whose turn it is does not wait any more, though it has not run yet.
        let mut next = Box::pin(places.enter(&name, START, 1));
        assert!((&mut next).now_or_never().is_none());
        drop(holder);
        assert!(places.enter(&name, START, 1).now_or_never().is_none(), "room again");
        assert!(matches!(places.enter(&name, START, 0).now_or_never(), Some(Err(Full))));
        drop(next.now_or_never().expect("its turn"));
        assert_eq!(places.len(), 0);
    }
}
