//! The local place per resource: of one `Redlock` and its clones, one claim at a time competes for a resource over the
//! network, and the others wait here, first come first served.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};

use crate::protocol::command::Key;
use crate::sync::lock;

/// Who is at which resource.
#[derive(Default)]
pub(crate) struct Places {
    turns: Mutex<HashMap<Key, Arc<Semaphore>>>,
    /// Told when the last one has left.
    empty: Notify,
}

/// The place at a resource. Dropped, it is the next one's turn.
///
/// The permit goes before the spot, which counts who is still there.
pub(crate) struct Place {
    _permit: OwnedSemaphorePermit,
    _spot: Spot,
}

/// Somebody at a resource, at the head or waiting. The last one to leave takes the entry away.
struct Spot {
    places: Arc<Places>,
    key: Key,
    turn: Option<Arc<Semaphore>>,
}

impl Places {
    /// The place, if nobody has it or waits for it.
    pub(crate) fn try_enter(self: &Arc<Self>, key: &Key) -> Option<Place> {
        let spot = self.arrive(key);
        let permit = spot.turn.clone()?.try_acquire_owned().ok()?;
        Some(Place { _permit: permit, _spot: spot })
    }

    /// The place, when it is this caller's turn. Dropped while waiting, nobody's turn is lost.
    pub(crate) async fn enter(self: &Arc<Self>, key: &Key) -> Place {
        let spot = self.arrive(key);
        let turn = spot.turn.clone().expect("a spot has its turn until it is dropped");
        let permit = turn.acquire_owned().await.expect("a turn is never closed");
        Place { _permit: permit, _spot: spot }
    }

    /// Completes when nobody is at any resource. A place is left only after what its claim had to say was handed to the
    /// nodes, so then every release is on its way.
    pub(crate) async fn empty(&self) {
        loop {
            let empty = self.empty.notified();
            if lock(&self.turns).is_empty() {
                return;
            }
            empty.await;
        }
    }

    fn arrive(self: &Arc<Self>, key: &Key) -> Spot {
        let mut turns = lock(&self.turns);
        let turn = turns.entry(key.clone()).or_insert_with(|| Arc::new(Semaphore::new(1))).clone();
        Spot { places: self.clone(), key: key.clone(), turn: Some(turn) }
    }

    #[cfg(test)]
    fn len(&self) -> usize {
        lock(&self.turns).len()
    }
}

impl Drop for Spot {
    fn drop(&mut self) {
        let mut turns = lock(&self.places.turns);
        self.turn = None;
        if turns.get(&self.key).is_some_and(|turn| Arc::strong_count(turn) == 1) {
            turns.remove(&self.key);
            if turns.is_empty() {
                self.places.empty.notify_waiters();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;

    use super::*;

    fn key(name: &str) -> Key {
        Key::of_lock("", name.as_bytes())
    }

    #[tokio::test]
    async fn the_place_is_given_in_the_order_of_arrival_and_nothing_stays_behind() {
        let places = Arc::new(Places::default());
        let first = places.try_enter(&key("a")).expect("free");
        assert!(places.try_enter(&key("a")).is_none());
        assert!(places.try_enter(&key("b")).is_some(), "another resource");

        let name = key("a");
        let mut second = Box::pin(places.enter(&name));
        let mut third = Box::pin(places.enter(&name));
        assert!((&mut second).now_or_never().is_none());
        assert!((&mut third).now_or_never().is_none());
        drop(first);
        assert!((&mut third).now_or_never().is_none(), "not before the second");
        drop(second);
        let third = third.now_or_never().expect("the second gave up its turn");
        assert!(places.try_enter(&key("a")).is_none());
        drop(third);
        assert_eq!(places.len(), 0);
    }
}
