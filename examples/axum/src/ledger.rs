//! What each user has been charged in all. It stands for a database that several instances of the service share, and knows
//! nothing of locks: reading and writing are two steps, so two that charge one user at once would lose an update.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

#[derive(Default)]
pub(crate) struct Ledger {
    totals: Mutex<HashMap<String, u64>>,
}

impl Ledger {
    pub(crate) fn read(&self, user: &str) -> u64 {
        let totals = self.totals.lock().unwrap_or_else(PoisonError::into_inner);
        totals.get(user).copied().unwrap_or(0)
    }

    pub(crate) fn write(&self, user: &str, total: u64) {
        let mut totals = self.totals.lock().unwrap_or_else(PoisonError::into_inner);
        totals.insert(user.to_owned(), total);
    }
}
