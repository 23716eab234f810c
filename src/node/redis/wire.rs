//! Commands as Redis reads them, and replies as answers.

use std::sync::LazyLock;
use std::time::Duration;

use redis::{ServerError, Value as Wire};

use super::resp::Writer;
use crate::protocol::command::{Answer, Command, Key, Refusal, Sighting, Unknown, Value, Wake};
use crate::protocol::marker::Rules;
use crate::protocol::time::Ttl;
use crate::protocol::wait::LIST_LIVES;

/// A script, and the hash by which a server knows it once it is loaded.
pub(super) struct Script {
    pub(super) text: &'static str,
    hash: LazyLock<String>,
}

impl Script {
    fn hash(&self) -> &str {
        &self.hash
    }

    /// Begins a call with so many keys and arguments behind it.
    fn call(&self, form: Form, keys: u64, arguments: usize, out: &mut Writer<'_>) {
        out.command(3 + keys as usize + arguments);
        match form {
            Form::Hashed => {
                out.part(b"EVALSHA");
                out.part(self.hash().as_bytes());
            }
            Form::Full => {
                out.part(b"EVAL");
                out.part(self.text.as_bytes());
            }
        }
        out.number(keys);
    }

    /// A call with one key.
    fn call_on(&self, key: &Key, form: Form, arguments: usize, out: &mut Writer<'_>) {
        self.call(form, 1, arguments, out);
        out.part(key.as_bytes());
    }

    /// A call with a key and the wait list beside it.
    fn call_on_list(&self, key: &Key, form: Form, arguments: usize, out: &mut Writer<'_>) {
        self.call(form, 2, arguments, out);
        out.part(key.as_bytes());
        out.parts(&key.wait_list());
    }
}

macro_rules! script {
    ($file:literal) => {
        Script {
            text: include_str!($file),
            hash: LazyLock::new(|| redis::Script::new(include_str!($file)).get_hash().to_owned()),
        }
    };
}

static EXTEND: Script = script!("../lua/extend.lua");
static RELEASE: Script = script!("../lua/release.lua");
static ENLIST: Script = script!("../lua/enlist.lua");
static INSPECT: Script = script!("../lua/inspect.lua");
static REMOVE: Script = script!("../lua/remove.lua");

/// All scripts, to be loaded on a new connection.
pub(super) static SCRIPTS: [&Script; 5] = [&EXTEND, &RELEASE, &ENLIST, &INSPECT, &REMOVE];

/// How a script is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Form {
    /// By its hash: the server has it.
    Hashed,
    /// In full: the server had lost it, or does not let us load it.
    Full,
}

/// What a client may do with the wait lists of a server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Lists<'a> {
    /// Nothing: it has no right to them.
    Closed,
    /// It wakes others, and cannot be woken itself.
    WakesOthers,
    /// It is woken on this channel, too.
    WokenOn(&'a str),
}

/// Appends the command as it goes over the wire. Where the wait lists are closed, what concerns only them becomes a question that
/// changes nothing.
pub(super) fn encode(command: &Command, form: Form, lists: Lists<'_>, out: &mut Writer<'_>) {
    let channel = match lists {
        Lists::WokenOn(channel) => channel,
        Lists::WakesOthers | Lists::Closed => "",
    };
    match command {
        Command::Acquire { key, value, ttl } => {
            out.command(6);
            out.part(b"SET");
            out.part(key.as_bytes());
            out.part(value.as_bytes());
            out.part(b"NX");
            out.part(b"PX");
            out.number(ttl.as_millis());
        }
        Command::Extend { key, value, ttl, heal, rules: Rules::Plain } => {
            EXTEND.call_on(key, form, 3, out);
            out.part(value.as_bytes());
            out.number(ttl.as_millis());
            out.number(u64::from(*heal));
        }
        Command::Release { key, value, linger, wake, .. } => {
            let has_list = *wake != Wake::Nobody && lists != Lists::Closed;
            let peeks = has_list && *wake == Wake::NobodyYet;
            let lingers = *linger > Ttl::ZERO;
            let arguments = match (has_list, peeks, lingers) {
                (_, _, true) => 4,
                (_, true, _) => 3,
                (true, ..) => 2,
                _ => 1,
            };
            if has_list {
                RELEASE.call_on_list(key, form, arguments, out);
            } else {
                RELEASE.call_on(key, form, arguments, out);
            }
            out.part(value.as_bytes());
            // What comes before is said, too, if only to say nothing.
            let mode = if peeks { "peek" } else { "" };
            [channel, mode].iter().take(arguments - 1).for_each(|part| out.part(part.as_bytes()));
            if lingers {
                out.number(linger.as_millis());
            }
        }
        Command::Enlist { key, waited } if !channel.is_empty() => {
            ENLIST.call_on_list(key, form, 3, out);
            out.part(channel.as_bytes());
            out.number(u64::try_from(waited.as_micros()).unwrap_or(u64::MAX));
            out.number(LIST_LIVES.as_millis() as u64);
        }
        Command::Delist { key } if lists != Lists::Closed => {
            RELEASE.call_on_list(key, form, 3, out);
            out.part(b"");
            out.part(channel.as_bytes());
            out.part(b"leave");
        }
        // No client asks a server for these yet: a question that changes nothing, and whose answer is none to what was asked.
        Command::Propose { key, .. }
        | Command::Raise { key, .. }
        | Command::Observe { key, .. }
        | Command::Extend { key, .. }
        | Command::Enrol { key, .. } => INSPECT.call_on(key, form, 0, out),
        Command::Inspect { key } | Command::Enlist { key, .. } | Command::Delist { key } => {
            INSPECT.call_on(key, form, 0, out);
        }
        Command::Remove { key } => REMOVE.call_on(key, form, 0, out),
    }
}

/// What a reply says.
#[derive(Debug, PartialEq)]
pub(super) enum Read {
    Answer(Answer),
    /// The server does not know the script: nothing was done.
    NoScript,
}

/// Reads the reply to a command.
pub(super) fn decode(command: &Command, reply: Wire) -> Read {
    if let Wire::ServerError(error) = &reply {
        return refused(error);
    }
    Read::Answer(match (command, reply) {
        (Command::Acquire { .. }, Wire::Okay) => Answer::Granted,
        (Command::Acquire { .. }, Wire::Nil) => Answer::Denied,
        (Command::Extend { .. }, Wire::Int(1)) => Answer::Present,
        (Command::Extend { .. }, Wire::Int(2)) => Answer::Healed,
        (Command::Release { .. }, Wire::Int(1)) => Answer::Deleted { others_wait: false },
        (Command::Release { .. }, Wire::Int(2)) => Answer::Deleted { others_wait: true },
        (Command::Delist { .. }, Wire::Int(-1 | 0)) => Answer::Delisted,
        (Command::Delist { .. }, reply) => sighting(&reply).map_or(NONSENSE, |_| Answer::Delisted),
        // Asked as it was, or as an inspection where the wait lists are closed.
        (Command::Enlist { .. }, Wire::Array(parts)) if matches!(parts[..], [Wire::Int(0 | 1), ..]) => {
            let is_listed = parts[0] == Wire::Int(1);
            let seen = match parts.len() {
                1 => Some(None),
                _ => sighting(&Wire::Array(parts[1..].to_vec())),
            };
            let answer = if is_listed { Answer::Enlisted } else { Answer::Seen };
            seen.map_or(NONSENSE, answer)
        }
        (Command::Enlist { .. }, reply) => sighting(&reply).map_or(NONSENSE, Answer::Seen),
        (Command::Extend { .. } | Command::Release { .. }, Wire::Int(0)) => Answer::Missing,
        (Command::Extend { .. } | Command::Release { .. }, Wire::Int(-1)) => Answer::Foreign,
        (Command::Inspect { .. }, reply) => sighting(&reply).map_or(NONSENSE, Answer::Seen),
        (Command::Remove { .. }, reply) => sighting(&reply).map_or(NONSENSE, Answer::Removed),
        _ => NONSENSE,
    })
}

fn refused(error: &ServerError) -> Read {
    if error.code() == "NOSCRIPT" {
        return Read::NoScript;
    }
    // A right that is missing inside of a script has no code of its own.
    const IN_REDIS: &str = "user executing the script can't";
    const IN_VALKEY: &str = "ACL failure in script";
    let inside = error.details().is_some_and(|text| text.contains(IN_REDIS) || text.contains(IN_VALKEY));
    let refusal = if inside { Refusal::NoPermission } else { Refusal::from_code(error.code()) };
    Read::Answer(Answer::Unknown(Unknown::Refused(refusal)))
}

const NONSENSE: Answer = Answer::Unknown(Unknown::Nonsense);

/// A value and its time to live, or nothing; `None` if the reply is neither.
fn sighting(reply: &Wire) -> Option<Option<Sighting>> {
    match reply {
        Wire::Nil => Some(None),
        Wire::Array(parts) => match &parts[..] {
            [Wire::BulkString(value), Wire::Int(millis)] => {
                let expires_in = time_to_live(*millis)?;
                Some(Some(Sighting { value: Value::from_wire(value), expires_in }))
            }
            _ => None,
        },
        _ => None,
    }
}

/// As PTTL says it: -1 stands for ever. Other numbers below zero say nothing of a key that is there.
fn time_to_live(millis: i64) -> Option<Option<Duration>> {
    match millis {
        -1 => Some(None),
        _ => u64::try_from(millis).ok().map(|millis| Some(Duration::from_millis(millis))),
    }
}

#[cfg(test)]
pub(super) mod tests {
    use proptest::collection::vec;
    use proptest::prelude::{Just, Strategy, any, prop_assert, prop_assert_eq, prop_oneof};
    use proptest::sample::select;

    use super::*;
    use crate::protocol::command::{Key, LeaseId, Signature};
    use crate::random;

    fn commands() -> [Command; 6] {
        let key = Key::of_lock("redlock", b"k");
        let value = Value::new(LeaseId(1), &Signature::new("w", None));
        let ttl = Ttl::from_duration(Duration::from_secs(1));
        [
            Command::Acquire { key: key.clone(), value: value.clone(), ttl },
            Command::Extend { key: key.clone(), value, ttl, heal: true, rules: Rules::Plain },
            release(Wake::Next),
            Command::Enlist { key: key.clone(), waited: Duration::from_millis(7) },
            Command::Inspect { key: key.clone() },
            Command::Remove { key },
        ]
    }

    fn release(wake: Wake) -> Command {
        let key = Key::of_lock("redlock", b"k");
        let value = Value::new(LeaseId(1), &Signature::new("w", None));
        let (linger, owed_for, rules) = (Ttl::ZERO, Duration::ZERO, Rules::Plain);
        Command::Release { key, value, linger, owed_for, wake, rules }
    }

    fn lingering(wake: Wake) -> Command {
        let mut command = release(wake);
        let Command::Release { linger, .. } = &mut command else { unreachable!("it is a release") };
        *linger = Ttl::from_duration(Duration::from_millis(7));
        command
    }

    fn text(command: &Command, form: Form, lists: Lists<'_>) -> String {
        let mut packed = Vec::new();
        encode(command, form, lists, &mut Writer(&mut packed));
        String::from_utf8_lossy(&packed)
            .split("\r\n")
            .filter(|part| !part.starts_with(['*', '$']))
            .collect::<Vec<_>>()
            .join(" ")
    }

    #[test]
    fn a_key_is_set_with_its_expiry_in_one_command() {
        let [acquire, ..] = commands();
        let expected = "SET redlock:k 00000000000000000000000000000001:w NX PX 1000";
        assert_eq!(text(&acquire, Form::Hashed, Lists::Closed).trim_end(), expected);
    }

    #[test]
    fn a_wait_list_is_named_only_where_it_is_meant_and_open() {
        let (enlist, leave) = (&commands()[3], Command::Delist { key: Key::of_lock("redlock", b"k") });
        let value = "00000000000000000000000000000001:w";
        let open = Lists::WokenOn("c");
        for (command, lists, expected) in [
            (&release(Wake::Nobody), open, format!("1 redlock:k {value}")),
            (&release(Wake::Next), open, format!("2 redlock:k redlock#wait:k {value} c")),
            (&release(Wake::NobodyYet), open, format!("2 redlock:k redlock#wait:k {value} c peek")),
            (&release(Wake::Next), Lists::WakesOthers, format!("2 redlock:k redlock#wait:k {value} ")),
            (&release(Wake::Next), Lists::Closed, format!("1 redlock:k {value}")),
            (&lingering(Wake::Next), open, format!("2 redlock:k redlock#wait:k {value} c  7")),
            (&lingering(Wake::NobodyYet), open, format!("2 redlock:k redlock#wait:k {value} c peek 7")),
            (&lingering(Wake::Nobody), open, format!("1 redlock:k {value} c  7")),
            (enlist, open, "2 redlock:k redlock#wait:k c 7000 3000".to_owned()),
            (enlist, Lists::WakesOthers, "1 redlock:k".to_owned()),
            (enlist, Lists::Closed, "1 redlock:k".to_owned()),
            (&leave, open, "2 redlock:k redlock#wait:k  c leave".to_owned()),
            (&leave, Lists::Closed, "1 redlock:k".to_owned()),
        ] {
            let text = text(command, Form::Hashed, lists);
            let arguments: Vec<&str> = text.splitn(3, ' ').collect();
            assert_eq!(
                arguments[2].strip_suffix(' ').unwrap_or(arguments[2]),
                expected,
                "{command:?} {lists:?}"
            );
        }
    }

    #[test]
    fn replies_of_the_wrong_kind_are_no_votes() {
        for command in &commands() {
            for reply in [
                Wire::Int(7),
                Wire::BulkString(b"OK".to_vec()),
                Wire::Array(vec![Wire::Nil]),
                Wire::Boolean(true),
            ] {
                let read = decode(command, reply.clone());
                assert_eq!(read, Read::Answer(Answer::Unknown(Unknown::Nonsense)), "{command:?} {reply:?}");
            }
        }
    }

    /// What a server may send, as bytes: any type of RESP2 or RESP3 in any other, errors, and what is no RESP at all.
    pub(in super::super) fn any_reply() -> impl Strategy<Value = Vec<u8>> {
        let nested = one_line().prop_recursive(3, 16, 4, |inner| {
            (select(vec!['*', '~', '>', '%']), vec(inner, 0..5)).prop_map(|(kind, parts)| {
                let length = if kind == '%' { parts.len() / 2 } else { parts.len() };
                [format!("{kind}{length}\r\n").into_bytes(), parts.concat()].concat()
            })
        });
        prop_oneof![one_line(), nested]
    }

    fn one_line() -> impl Strategy<Value = Vec<u8>> {
        let lines = select(vec![
            "+OK",
            "+ok",
            "+QUEUED",
            "$-1",
            "_",
            "*-1",
            "#t",
            "#f",
            ",1",
            ",nan",
            "(1",
            "$2\r\nOK",
            "-",
            "-OOM x",
            "-NOSCRIPT No matching script",
            "-NOPERM No permissions",
            "-ERR ACL failure in script",
        ]);
        let number = prop_oneof![-3..4i64, any::<i64>()];
        prop_oneof![
            lines.prop_map(|line| format!("{line}\r\n").into_bytes()),
            number.prop_map(|number| format!(":{number}\r\n").into_bytes()),
            vec(any::<u8>(), 0..40).prop_map(|text| bulk(&text)),
            "[+$:*%~>|=!(,#_-]{0,2}[0-9a-zA-Z ]{0,6}(\r\n)?".prop_map(String::into_bytes),
        ]
    }

    /// A value and a time to live.
    fn any_sighting() -> impl Strategy<Value = Vec<u8>> {
        let millis = prop_oneof![-3..4i64, any::<i64>()];
        (vec(any::<u8>(), 0..40), millis).prop_map(|(value, millis)| {
            [b"*2\r\n".to_vec(), bulk(&value), format!(":{millis}\r\n").into_bytes()].concat()
        })
    }

    /// The same behind a word on the wait list, which may be alone.
    fn any_enlisted() -> impl Strategy<Value = Vec<u8>> {
        (any_sighting(), -1..3i64, any::<bool>()).prop_map(|(sighting, listed, is_alone)| {
            let rest = if is_alone { &[][..] } else { &sighting[4..] };
            let length = if is_alone { 1 } else { 3 };
            [format!("*{length}\r\n:{listed}\r\n").as_bytes(), rest].concat()
        })
    }

    fn bulk(text: &[u8]) -> Vec<u8> {
        [format!("${}\r\n", text.len()).as_bytes(), text, b"\r\n"].concat()
    }

    /// The one reply to a command that means an answer; `None` if it cannot be answered so.
    fn reply_for(command: &Command, answer: &Answer) -> Option<Wire> {
        use Command::{Acquire, Enlist, Extend, Inspect, Release, Remove};
        Some(match (command, answer) {
            (Acquire { .. }, Answer::Granted) => Wire::Okay,
            (Acquire { .. }, Answer::Denied) => Wire::Nil,
            (Extend { .. }, Answer::Present) | (Release { .. }, Answer::Deleted { others_wait: false }) => {
                Wire::Int(1)
            }
            (Extend { .. }, Answer::Healed) | (Release { .. }, Answer::Deleted { others_wait: true }) => {
                Wire::Int(2)
            }
            (Extend { .. } | Release { .. }, Answer::Missing) => Wire::Int(0),
            (Extend { .. } | Release { .. }, Answer::Foreign) => Wire::Int(-1),
            (Inspect { .. } | Enlist { .. }, Answer::Seen(None)) | (Remove { .. }, Answer::Removed(None)) => {
                Wire::Nil
            }
            (Enlist { .. }, Answer::Enlisted(None)) => Wire::Array(vec![Wire::Int(1)]),
            (Enlist { .. }, Answer::Enlisted(Some(seen))) => {
                Wire::Array([vec![Wire::Int(1)], parts(seen)].concat())
            }
            (Inspect { .. } | Enlist { .. }, Answer::Seen(Some(seen)))
            | (Remove { .. }, Answer::Removed(Some(seen))) => Wire::Array(parts(seen)),
            _ => return None,
        })
    }

    fn parts(seen: &Sighting) -> Vec<Wire> {
        let millis = seen.expires_in.map_or(-1, |left| i64::try_from(left.as_millis()).expect("was one"));
        vec![Wire::BulkString(seen.value.as_bytes().to_vec()), Wire::Int(millis)]
    }

    /// Without the word that the client is not on the list.
    fn said_of_the_key(command: &Command, reply: Wire) -> Wire {
        match (command, reply) {
            (Command::Enlist { .. }, Wire::Array(parts)) if parts.first() == Some(&Wire::Int(0)) => {
                if parts.len() == 1 { Wire::Nil } else { Wire::Array(parts[1..].to_vec()) }
            }
            (_, reply) => reply,
        }
    }

    #[test]
    fn nothing_but_the_exact_reply_is_an_answer() {
        let replies = prop_oneof![4 => any_reply(), 1 => any_sighting(), 1 => any_enlisted(), 1 => Just(b"$-1\r\n".to_vec())];
        let plain = [
            Answer::Granted,
            Answer::Denied,
            Answer::Present,
            Answer::Healed,
            Answer::Missing,
            Answer::Foreign,
            Answer::Deleted { others_wait: false },
            Answer::Deleted { others_wait: true },
            Answer::Enlisted(None),
            Answer::Seen(None),
            Answer::Removed(None),
        ];
        random::check(8192, &(select(commands().to_vec()), replies), |(command, reply)| {
            // What is no RESP ends the connection.
            let Ok(reply) = redis::parse_redis_value(&reply) else { return Ok(()) };
            match decode(&command, reply.clone()) {
                Read::NoScript | Read::Answer(Answer::Unknown(Unknown::Refused(_))) => {
                    prop_assert!(matches!(reply, Wire::ServerError(_)));
                }
                Read::Answer(Answer::Unknown(unknown)) => {
                    prop_assert_eq!(unknown, Unknown::Nonsense);
                    let means =
                        |answer: &&Answer| reply_for(&command, answer).is_some_and(|exact| exact == reply);
                    prop_assert_eq!(plain.iter().find(means), None, "is not nonsense");
                }
                Read::Answer(answer) => {
                    let reply = said_of_the_key(&command, reply);
                    prop_assert_eq!(reply_for(&command, &answer), Some(reply), "{:?}", answer);
                }
            }
            Ok(())
        });
    }
}
