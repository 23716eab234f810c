//! Wait lists that are known to be empty: a release need not look at them. By CLIENT TRACKING, as [held keys](super::tracking)
//! are watched: the server says once that a list is empty, and tells when it is not any more.
//!
//! ```text
//! found empty by many releases in a row ─► asked ─► empty ─► somebody entered: forgotten
//! ```
//!
//! What a server tells comes before its answers to what it carries out later. So a release that did not look, while somebody entered the
//! list, is not answered before the client has heard of that; whoever entered is woken then, one round trip later than by a look.
//! All of it is as good as the connection over which it was heard, and forgotten with it.

use std::collections::HashMap;

use foldhash::fast::RandomState;

use crate::protocol::command::Key;

/// The server is asked about a list that so many releases in a row have found empty. It costs more than a look does, and tells others who
/// have asked that they must look again.
const OFTEN: u32 = 64;

/// Of so many lists something is known at most; then it is learned anew.
const MOST_LISTS: usize = 4096;

/// What is known of the lists at one server.
#[derive(Default)]
pub(super) struct EmptyLists {
    /// By the lock keys beside them.
    lists: HashMap<Key, List, RandomState>,
    questions: u64,
}

struct List {
    /// How many bytes of the key are the namespace: where that is another, so is the list.
    namespace: usize,
    known: Known,
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
        let next = Question(self.questions);
        match self.known(key) {
            Some(Known::Empty) => Look::Spared,
            Some(known @ Known::FoundEmpty(OFTEN)) => {
                *known = Known::Asked(next);
                self.questions += 1;
                Look::NeededOnceMore(next)
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
        match self.known(key) {
            Some(Known::FoundEmpty(times)) => *times = OFTEN.min(*times + 1),
            Some(Known::Asked(_) | Known::Empty) => {}
            None => {
                if self.lists.len() == MOST_LISTS {
                    self.lists.clear();
                }
                let (namespace, known) = (key.namespace().len(), Known::FoundEmpty(1));
                self.lists.insert(key.clone(), List { namespace, known });
            }
        }
    }

    /// What the server said when it was asked.
    pub(super) fn answered(&mut self, key: &Key, question: Question, is_empty: bool) {
        match self.known(key) {
            Some(known) if *known == Known::Asked(question) && is_empty => *known = Known::Empty,
            Some(known) if *known == Known::Asked(question) => self.forget(key),
            _ => {}
        }
    }

    /// Somebody enters the list, or may have.
    pub(super) fn forget(&mut self, key: &Key) {
        self.lists.remove(key);
    }

    /// The server has deleted everything, or does not tell.
    pub(super) fn forget_all(&mut self) {
        self.lists.clear();
    }

    fn known(&mut self, key: &Key) -> Option<&mut Known> {
        let list = self.lists.get_mut(key)?;
        (list.namespace == key.namespace().len()).then_some(&mut list.known)
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
    fn two_lists_beside_one_key_are_told_apart() {
        let (mut lists, one) = (EmptyLists::default(), Key::of_lock("a", b"b:c"));
        let other = Key::of_lock("a:b", b"c");
        assert_eq!(one, other);
        for _ in 0..OFTEN {
            lists.found(&one, false);
        }
        let question = asked(&mut lists, &one);
        lists.answered(&one, question, true);
        assert_eq!((lists.before_release(&one), lists.before_release(&other)), (Look::Spared, Look::Needed));
        lists.found(&other, false);
        assert_eq!(lists.before_release(&one), Look::Needed, "one of them is enough");
    }

    #[test]
    fn it_does_not_remember_more_and_more() {
        let mut lists = EmptyLists::default();
        for number in 0..3 * MOST_LISTS {
            lists.found(&key(&number.to_string()), false);
            assert!(lists.lists.len() <= MOST_LISTS);
        }
    }
}
