//! Keys whose holders want to know at once when somebody else changes them: by CLIENT TRACKING, where the server has it and
//! lets us.
//!
//! A server remembers who has read a key, and tells them once when it changes. So each extension, which reads the key and
//! then writes it, ends with another read; and a held key that nothing has read yet is read for this alone.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, Weak};

use redis::{PushInfo, PushKind, Value as Wire};

use crate::node::{Listener, Watcher};
use crate::protocol::command::{Answer, Key, NodeIndex, Value};
use crate::protocol::round::RoundId;
use crate::sync::lock;

/// What is watched at one node, over all connections to it.
#[derive(Default)]
pub(super) struct Watched {
    keys: Mutex<BTreeMap<Key, Arc<Watch>>>,
    /// The connection that there is tells about changes.
    is_told: AtomicBool,
}

/// A key, by whom it is held.
pub(super) struct Watch {
    pub(super) key: Key,
    value: Value,
    watcher: Weak<dyn Watcher>,
}

impl Watched {
    pub(super) fn insert(&self, key: Key, value: Value, watcher: Weak<dyn Watcher>) -> Arc<Watch> {
        let watch = Arc::new(Watch { key: key.clone(), value, watcher });
        lock(&self.keys).insert(key, watch.clone());
        watch
    }

    /// Unless somebody else watches the key by now.
    pub(super) fn remove(&self, key: &Key, watcher: &Weak<dyn Watcher>) {
        let mut keys = lock(&self.keys);
        if keys.get(key).is_some_and(|watch| watch.watcher.ptr_eq(watcher)) {
            keys.remove(key);
        }
    }

    pub(super) fn all(&self) -> Vec<Arc<Watch>> {
        lock(&self.keys).values().cloned().collect()
    }

    pub(super) fn set_told(&self, is_told: bool) {
        self.is_told.store(is_told, Ordering::Release);
    }

    pub(super) fn is_told(&self) -> bool {
        self.is_told.load(Ordering::Acquire)
    }

    /// Takes in what the server told without being asked. Called where the connection is read: hands it on, and returns.
    pub(super) fn hear(&self, push: &PushInfo) {
        if push.kind != PushKind::Invalidate {
            return;
        }
        let changed: Vec<Arc<Watch>> = match push.data.first() {
            Some(Wire::Array(keys)) => {
                let watched = lock(&self.keys);
                let key = |key: &Wire| match key {
                    Wire::BulkString(bytes) => watched.get(&Key::of_lock("", bytes)).cloned(),
                    _ => None,
                };
                keys.iter().filter_map(key).collect()
            }
            // Everything was deleted.
            _ => self.all(),
        };
        changed.iter().for_each(|watch| watch.tell());
    }
}

impl Watch {
    fn tell(&self) {
        if let Some(watcher) = self.watcher.upgrade() {
            watcher.changed();
        }
    }
}

/// The answer to the reading of the key: if it had changed before it was read, the server will not tell.
impl Listener for Watch {
    fn hear(self: Arc<Self>, _: RoundId, _: NodeIndex, answer: Answer) {
        match answer {
            Answer::Seen(Some(seen)) if seen.value == self.value => {}
            Answer::Seen(_) => self.tell(),
            // Asked again on the next connection.
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicU32;

    use super::*;

    #[derive(Default)]
    struct Counter(AtomicU32);

    impl Watcher for Counter {
        fn changed(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }

    fn key(name: &str) -> Key {
        Key::of_lock("", name.as_bytes())
    }

    fn watching(watched: &Watched, name: &str) -> (Arc<Counter>, Weak<dyn Watcher>) {
        let counter = Arc::new(Counter::default());
        let watcher: Weak<dyn Watcher> = Arc::<Counter>::downgrade(&counter);
        watched.insert(key(name), Value::from_wire(b"v"), watcher.clone());
        (counter, watcher)
    }

    fn invalidated(keys: Wire) -> PushInfo {
        PushInfo { kind: PushKind::Invalidate, data: vec![keys] }
    }

    fn names(names: &[&str]) -> Wire {
        Wire::Array(names.iter().map(|name| Wire::BulkString(name.as_bytes().to_vec())).collect())
    }

    fn told(counter: &Counter) -> u32 {
        counter.0.load(Ordering::SeqCst)
    }

    #[test]
    fn who_holds_a_changed_key_is_told_and_nobody_else() {
        let watched = Watched::default();
        let ((a, _), (b, _)) = (watching(&watched, "a"), watching(&watched, "b"));
        watched.hear(&invalidated(names(&["a", "c"])));
        assert_eq!((told(&a), told(&b)), (1, 0));
        watched.hear(&PushInfo { kind: PushKind::Message, data: vec![names(&["a"])] });
        assert_eq!((told(&a), told(&b)), (1, 0));
        watched.hear(&invalidated(Wire::Nil));
        assert_eq!((told(&a), told(&b)), (2, 1), "everything was deleted");
    }

    #[test]
    fn who_holds_it_now_stays_when_who_held_it_goes() {
        let watched = Watched::default();
        let (first, first_watcher) = watching(&watched, "a");
        let (second, second_watcher) = watching(&watched, "a");
        watched.remove(&key("a"), &first_watcher);
        watched.hear(&invalidated(names(&["a"])));
        assert_eq!((told(&first), told(&second)), (0, 1));
        watched.remove(&key("a"), &second_watcher);
        assert!(watched.all().is_empty(), "nothing is kept of what ended");
    }
}
