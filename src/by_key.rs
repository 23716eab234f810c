//! A map by the names of keys. Each of them carries a digest of its bytes, so nothing is left to be hashed.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};

use crate::protocol::command::Key;

/// By key. In no order.
pub(crate) type ByKey<T> = HashMap<Key, T, BuildHasherDefault<Carried>>;

/// What a key says of itself.
#[derive(Default)]
pub(crate) struct Carried(u64);

impl Hasher for Carried {
    fn write_u64(&mut self, digest: u64) {
        self.0 = digest;
    }

    fn write(&mut self, _: &[u8]) {
        unreachable!("a key has only its digest to say");
    }

    fn finish(&self) -> u64 {
        self.0
    }
}
