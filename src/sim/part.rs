//! A part of a world that its clones share until one of them changes it, with its fingerprint: a search clones a world for
//! every step and looks at it whole, while a step changes only a little.

use std::cell::Cell;
use std::hash::{BuildHasher, Hash, Hasher};
use std::ops::{Deref, DerefMut};
use std::rc::Rc;

use foldhash::quality::FixedState;

#[derive(Clone)]
pub(super) struct Part<T: Print> {
    shared: Rc<T>,
    /// Of what is shared, once they were asked for since the last change.
    fingerprint: Cell<Option<u64>>,
    print: Cell<Option<T::Print>>,
}

/// A part of which a fingerprint can be taken that names nobody.
pub(super) trait Print {
    type Print: Copy;

    fn take_print(&self) -> Self::Print;
}

impl<T: Print> Part<T> {
    pub(super) fn new(part: T) -> Self {
        Part { shared: Rc::new(part), fingerprint: Cell::new(None), print: Cell::new(None) }
    }

    pub(super) fn print(&self) -> T::Print {
        let print = self.print.get().unwrap_or_else(|| self.shared.take_print());
        self.print.set(Some(print));
        print
    }
}

impl<T: Print> Deref for Part<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.shared
    }
}

impl<T: Clone + Print> DerefMut for Part<T> {
    fn deref_mut(&mut self) -> &mut T {
        self.fingerprint.set(None);
        self.print.set(None);
        Rc::make_mut(&mut self.shared)
    }
}

impl<T: Hash + Print> Hash for Part<T> {
    fn hash<H: Hasher>(&self, hasher: &mut H) {
        let fingerprint = self.fingerprint.get().unwrap_or_else(|| fingerprint(&*self.shared));
        self.fingerprint.set(Some(fingerprint));
        hasher.write_u64(fingerprint);
    }
}

/// 64 bits that are the same for equal values, and on every machine.
pub(super) fn fingerprint(value: &impl Hash) -> u64 {
    FixedState::with_seed(0).hash_one(value)
}
