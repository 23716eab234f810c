//! Wait lists that are known to be empty: a release need not look at them. By CLIENT TRACKING, as [held keys](super::tracking)
//! are watched: the server says once that a list is empty, and tells when it is not any more.
//!
//! ```text
//! found empty by a few releases in a row ─► asked ─► empty ─► somebody entered: forgotten
//! ```
//!
//! What a server tells comes before its answers to what it carries out later. So a release that did not look, while somebody entered the
//! list, is not answered before the client has heard of that; whoever entered is woken then, one round trip later than by a look.
//! All of it is as good as the connection over which it was heard, and forgotten with it.

use std::collections::HashMap;

use foldhash::fast::RandomState;

use crate::protocol::command::Key;

/// The server is asked about a list that so many releases in a row have found empty: where nobody comes back to a resource, or where
/// others want it all the time, it would be asked in vain.
const OFTEN: u32 = 4;

/// Of so many lists something is known at most; then it is learned anew.
const MOST_LISTS: usize = 4096;

/// What is known of the lists at one server, by their lock keys.
#[derive(Default)]
pub(super) struct EmptyLists {
    known: HashMap<Key, Known, RandomState>,
    questions: u64,
}

#[derive(PartialEq)]
enum Known {
    /// So many releases in a row have found it empty.
    FoundEmpty(u32),
    Asked(Question),
    /// It is empty, and the server will tell when it is not.
    Empty,
}

/// Tells apart what a server was asked: an answer that was overtaken by other news says nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Question(u64);

/// What a release does about a list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Look {
    /// Nothing: it is empty.
    Spared,
    Needed,
    /// It looks, and the server is asked besides.
    NeededOnceMore(Question),
}

impl EmptyLists {
    /// What a release that is about to be sent does about the list.
    pub(super) fn before_release(&mut self, key: &Key) -> Look {
        match self.known.get_mut(key) {
            Some(Known::Empty) => Look::Spared,
            Some(known @ Known::FoundEmpty(OFTEN)) => {
                self.questions += 1;
                let question = Question(self.questions);
                *known = Known::Asked(question);
                Look::NeededOnceMore(question)
            }
            _ => Look::Needed,
        }
    }

    /// What a release has found that looked.
    pub(super) fn found(&mut self, key: &Key, others_wait: bool) {
        if others_wait {
            self.forget(key);
            return;
        }
        match self.known.get_mut(key) {
            Some(Known::FoundEmpty(times)) => *times = OFTEN.min(*times + 1),
            Some(Known::Asked(_) | Known::Empty) => {}
            None => {
                if self.known.len() == MOST_LISTS {
                    self.known.clear();
                }
                self.known.insert(key.clone(), Known::FoundEmpty(1));
            }
        }
    }

    /// What the server said when it was asked.
    pub(super) fn answered(&mut self, key: &Key, question: Question, is_empty: bool) {
        match self.known.get_mut(key) {
            Some(known) if *known == Known::Asked(question) && is_empty => *known = Known::Empty,
            Some(known) if *known == Known::Asked(question) => self.forget(key),
            _ => {}
        }
    }

    /// Somebody enters the list, or may have.
    pub(super) fn forget(&mut self, key: &Key) {
        self.known.remove(key);
    }

    /// The server has deleted everything, or says so.
    pub(super) fn forget_all(&mut self) {
        self.known.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(name: &str) -> Key {
        Key::of_lock("", name.as_bytes())
    }

    /// Lists of which one has been found empty often.
    fn often_found_empty() -> (EmptyLists, Key) {
        let (mut lists, key) = (EmptyLists::default(), key("a"));
        for _ in 0..OFTEN {
            assert_eq!(lists.before_release(&key), Look::Needed);
            lists.found(&key, false);
        }
        (lists, key)
    }

    fn asked(lists: &mut EmptyLists, key: &Key) -> Question {
        match lists.before_release(key) {
            Look::NeededOnceMore(question) => question,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_list_is_empty_from_when_the_server_says_so_until_it_tells() {
        let (mut lists, key) = often_found_empty();
        let question = asked(&mut lists, &key);
        assert_eq!(lists.before_release(&key), Look::Needed, "there is no answer yet");
        lists.found(&key, false);
        lists.answered(&key, question, true);
        assert_eq!(lists.before_release(&key), Look::Spared);
        assert_eq!(lists.before_release(&self::key("b")), Look::Needed, "another list");
        lists.forget(&key);
        assert_eq!(lists.before_release(&key), Look::Needed);
    }

    #[test]
    fn what_was_overtaken_by_other_news_says_nothing() {
        let (mut lists, key) = often_found_empty();
        let first = asked(&mut lists, &key);
        // Somebody entered behind the question, and is gone again.
        lists.forget(&key);
        lists.answered(&key, first, true);
        assert_eq!(lists.before_release(&key), Look::Needed);
        for _ in 0..OFTEN {
            lists.found(&key, false);
        }
        let second = asked(&mut lists, &key);
        lists.answered(&key, first, true);
        assert_eq!(lists.before_release(&key), Look::Needed, "it answers another question");
        lists.answered(&key, second, true);
        assert_eq!(lists.before_release(&key), Look::Spared);
        lists.forget_all();
        assert_eq!(lists.before_release(&key), Look::Needed);
    }

    #[test]
    fn where_somebody_waits_the_server_is_not_asked() {
        let (mut lists, key) = often_found_empty();
        lists.found(&key, true);
        for _ in 1..OFTEN {
            lists.found(&key, false);
            assert_eq!(lists.before_release(&key), Look::Needed);
        }
        lists.found(&key, false);
        let question = asked(&mut lists, &key);
        lists.answered(&key, question, false);
        assert_eq!(lists.before_release(&key), Look::Needed, "somebody waits");
    }

    #[test]
    fn it_does_not_remember_more_and_more() {
        let mut lists = EmptyLists::default();
        for number in 0..3 * MOST_LISTS {
            lists.found(&key(&number.to_string()), false);
            assert!(lists.known.len() <= MOST_LISTS);
        }
    }
}
