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

impl EmptyLists {
    /// Whether a release that is about to be sent need not look at the list.
    pub(super) fn is_empty(&mut self, key: &Key) -> bool {
        self.known(key).is_some_and(|known| *known == Known::Empty)
    }

    /// What to ask the server about a list at which a release is about to look, if it is to be asked.
    pub(super) fn ask(&mut self, key: &Key) -> Option<Question> {
        let next = Question(self.questions);
        let known = self.known(key).filter(|known| **known == Known::FoundEmpty(OFTEN))?;
        *known = Known::Asked(next);
        self.questions += 1;
        Some(next)
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
        let asked = self.known(key).filter(|known| **known == Known::Asked(question));
        match asked {
            Some(known) if is_empty => *known = Known::Empty,
            Some(_) => self.forget(key),
            None => {}
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
        found_empty_often(&mut lists, &key);
        (lists, key)
    }

    fn found_empty_often(lists: &mut EmptyLists, key: &Key) {
        for _ in 0..OFTEN {
            assert_eq!(lists.ask(key), None);
            lists.found(key, false);
        }
    }

    #[test]
    fn a_list_is_empty_from_when_the_server_says_so_until_it_tells() {
        let (mut lists, key) = often_found_empty();
        let question = lists.ask(&key).expect("it was found empty often");
        assert_eq!(lists.ask(&key), None, "once");
        lists.found(&key, false);
        assert!(!lists.is_empty(&key), "there is no answer yet");
        lists.answered(&key, question, true);
        assert!(lists.is_empty(&key) && !lists.is_empty(&self::key("b")));
        lists.forget(&key);
        assert!(!lists.is_empty(&key));
    }

    #[test]
    fn what_was_overtaken_by_other_news_says_nothing() {
        let (mut lists, key) = often_found_empty();
        let first = lists.ask(&key).expect("it was found empty often");
        // Somebody entered behind the question, and is gone again.
        lists.forget(&key);
        lists.answered(&key, first, true);
        assert!(!lists.is_empty(&key));
        found_empty_often(&mut lists, &key);
        let second = lists.ask(&key).expect("it was found empty often");
        lists.answered(&key, first, true);
        assert!(!lists.is_empty(&key), "it answers another question");
        lists.answered(&key, second, true);
        assert!(lists.is_empty(&key));
        lists.forget_all();
        assert!(!lists.is_empty(&key));
    }

    #[test]
    fn where_somebody_waits_the_server_is_not_asked() {
        let (mut lists, key) = often_found_empty();
        lists.found(&key, true);
        found_empty_often(&mut lists, &key);
        let question = lists.ask(&key).expect("it was found empty often");
        lists.answered(&key, question, false);
        assert!(!lists.is_empty(&key), "somebody waits");
        found_empty_often(&mut lists, &key);
    }

    #[test]
    fn two_lists_beside_one_key_are_told_apart() {
        let (one, other) = (Key::of_lock("a", b"b:c"), Key::of_lock("a:b", b"c"));
        assert_eq!(one, other);
        let mut lists = EmptyLists::default();
        found_empty_often(&mut lists, &one);
        let question = lists.ask(&one).expect("it was found empty often");
        lists.answered(&one, question, true);
        assert!(lists.is_empty(&one) && !lists.is_empty(&other));
        lists.found(&other, false);
        assert!(!lists.is_empty(&one), "one of them is enough");
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
