//! Commands as Redis reads them, and replies as answers.

use std::sync::LazyLock;
use std::time::Duration;

use redis::{ServerError, Value as Wire};

use super::resp::Writer;
use crate::protocol::command::{Answer, Command, Key, Refusal, Sighting, Unknown, Value, Wake};
use crate::protocol::fence::{FURTHEST_AHEAD, Fence};
use crate::protocol::leading::Proclamation;
use crate::protocol::marker::{Nonce, Pact, Rules};
use crate::protocol::store::COUNTER_LIVES;
use crate::protocol::time::{Instant, Ttl};
use crate::protocol::wait::LIST_LIVES;

/// A script. Once it is loaded, a server knows it by its hash.
pub(super) struct Script {
    pub(super) text: &'static str,
    /// How a call by the hash begins.
    by_hash: LazyLock<Vec<u8>>,
}

impl Script {
    /// Begins a call with so many keys and arguments behind it.
    fn call(&self, form: Form, keys: usize, arguments: usize, out: &mut Writer<'_>) {
        out.command(3 + keys + arguments);
        match form {
            Form::Hashed => out.written(&self.by_hash),
            Form::Full => {
                out.part(b"EVAL");
                out.part(self.text.as_bytes());
            }
        }
        out.number(keys as u64);
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

/// The beginning of a call, behind the number of its parts.
fn by_hash(text: &str) -> Vec<u8> {
    let mut begin = Vec::new();
    let mut out = Writer(&mut begin);
    out.part(b"EVALSHA");
    out.part(redis::Script::new(text).get_hash().as_bytes());
    begin
}

/// What goes with the keys and the arguments of a script for `strictly.lua`: nothing in plain locks.
#[derive(Clone, Copy)]
struct Judgement<'a> {
    rules: Rules,
    /// The process that the server is taken for.
    process: &'a str,
}

impl Judgement<'_> {
    /// How many keys, and how many arguments.
    fn size(self) -> (usize, usize) {
        match self.rules {
            Rules::Plain => (0, 0),
            Rules::Strict(_) => (1, 4),
        }
    }

    fn choose<'a>(self, plainly: &'a Script, strictly: &'a Script) -> &'a Script {
        match self.rules {
            Rules::Plain => plainly,
            Rules::Strict(_) => strictly,
        }
    }

    fn key(self, key: &Key, out: &mut Writer<'_>) {
        if let Rules::Strict(_) = self.rules {
            out.parts(&key.marker());
        }
    }

    /// With the ttl that is asked for; `None` if the client only takes away what is its own.
    fn arguments(self, ttl: Option<Ttl>, out: &mut Writer<'_>) {
        if let Rules::Strict(pact) = self.rules {
            out.part(self.process.as_bytes());
            out.number(pact.fingerprint());
            out.number(pact.max_ttl().as_millis());
            match ttl {
                Some(ttl) => out.number(ttl.as_millis()),
                None => out.part(b""),
            }
        }
    }
}

macro_rules! script {
    ($($text:expr),+) => {
        Script { text: concat!($($text),+), by_hash: LazyLock::new(|| by_hash(concat!($($text),+))) }
    };
}

/// A script as the function that another one, its frame, calls.
macro_rules! framed {
    ($arguments:literal, [$($inner:expr),+], $frame:literal) => {
        script!(
            concat!("local function carry_out(", $arguments, ")\n"),
            $($inner,)+
            "end\n\n",
            include_str!($frame)
        )
    };
}

/// A script that is carried out by the rules of the strict kinds of locks.
macro_rules! strictly {
    ($file:literal) => {
        framed!("KEYS, ARGV, marker", [include_str!($file)], "../lua/strictly.lua")
    };
}

static EXTEND: Script = script!(include_str!("../lua/extend.lua"));
static RELEASE: Script = script!(include_str!("../lua/release.lua"));
static ENLIST: Script = script!(include_str!("../lua/enlist.lua"));
static TOGETHER: Script = framed!("KEYS, ARGV", [include_str!("../lua/release.lua")], "../lua/together.lua");
static IS_EMPTY: Script = script!(include_str!("../lua/is_empty.lua"));
static INSPECT: Script = script!(include_str!("../lua/inspect.lua"));
static PROCLAIM: Script = script!(include_str!("../lua/proclaim.lua"));
static REMOVE: Script = script!(include_str!("../lua/remove.lua"));
static ENROL: Script = script!(include_str!("../lua/enrol.lua"));
static PROPOSE: Script = strictly!("../lua/propose.lua");
static RAISE: Script = strictly!("../lua/raise.lua");
static EXTEND_STRICTLY: Script = strictly!("../lua/extend.lua");
static RELEASE_STRICTLY: Script = strictly!("../lua/release.lua");
static TOGETHER_STRICTLY: Script = framed!(
    "KEYS, ARGV, marker",
    [
        "local function carry_out(KEYS, ARGV)\n",
        include_str!("../lua/release.lua"),
        "end\n\n",
        include_str!("../lua/together.lua")
    ],
    "../lua/strictly.lua"
);

/// All scripts that are called often, to be loaded on a new connection.
pub(super) static SCRIPTS: [&Script; 13] = [
    &EXTEND,
    &RELEASE,
    &TOGETHER,
    &ENLIST,
    &INSPECT,
    &PROCLAIM,
    &REMOVE,
    &ENROL,
    &PROPOSE,
    &RAISE,
    &EXTEND_STRICTLY,
    &RELEASE_STRICTLY,
    &TOGETHER_STRICTLY,
];

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
    /// Nothing: it has no right to them, or no need.
    Closed,
    /// It wakes others, and cannot be woken itself.
    WakesOthers,
    /// It is woken on this channel, too.
    WokenOn(&'a str),
}

impl<'a> Lists<'a> {
    /// On which the client is woken; nothing if it is not.
    fn channel(self) -> &'a str {
        match self {
            Lists::WokenOn(channel) => channel,
            Lists::WakesOthers | Lists::Closed => "",
        }
    }
}

/// Appends the command as it goes over the wire. Where the wait lists are closed, what concerns only them becomes a question that
/// changes nothing. A node of the strict kinds of locks compares the `process` that it is taken for.
pub(super) fn encode(
    command: &Command,
    form: Form,
    (lists, process): (Lists<'_>, &str),
    out: &mut Writer<'_>,
) {
    let judgement = Judgement { rules: command.rules(), process };
    let (more_keys, more_arguments) = judgement.size();
    let channel = lists.channel();
    match command {
        Command::Acquire { key, value, ttl } => {
            out.written(b"*6\r\n$3\r\nSET\r\n");
            out.part(key.as_bytes());
            out.part(value.as_bytes());
            out.written(b"$2\r\nNX\r\n$2\r\nPX\r\n");
            out.number(ttl.as_millis());
        }
        Command::Extend { key, value, ttl, heal, .. } => {
            let script = judgement.choose(&EXTEND, &EXTEND_STRICTLY);
            script.call(form, 1 + more_keys, 3 + more_arguments, out);
            out.part(key.as_bytes());
            judgement.key(key, out);
            out.part(value.as_bytes());
            out.number(ttl.as_millis());
            out.number(u64::from(*heal));
            judgement.arguments(Some(*ttl), out);
        }
        Command::Propose { key, value, ttl, fence, .. } => {
            PROPOSE.call(form, 2 + more_keys, 5 + more_arguments, out);
            out.part(key.as_bytes());
            out.parts(&key.fence_counter());
            judgement.key(key, out);
            out.part(value.as_bytes());
            out.number(ttl.as_millis());
            out.number(fence.as_u64());
            out.number(COUNTER_LIVES.as_millis() as u64);
            out.number(FURTHEST_AHEAD.as_micros() as u64);
            judgement.arguments(Some(*ttl), out);
        }
        Command::Raise { key, value, fence, .. } => {
            RAISE.call(form, 2 + more_keys, 3 + more_arguments, out);
            out.part(key.as_bytes());
            out.parts(&key.fence_counter());
            judgement.key(key, out);
            out.part(value.as_bytes());
            out.number(fence.as_u64());
            out.number(COUNTER_LIVES.as_millis() as u64);
            judgement.arguments(Some(Ttl::ZERO), out);
        }
        Command::Observe { key, nonce, pact, overrules } => {
            call_enrol(key, form, 5, (process, *pact, *nonce), out);
            out.part(if *overrules { b"overrule" } else { b"" });
        }
        Command::Enrol { key, nonce, anew, floor, pact } => {
            call_enrol(key, form, 6, (process, *pact, *anew), out);
            out.number(floor.as_u64());
            out.part(in_digits(*nonce).as_bytes());
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
            let script = judgement.choose(&RELEASE, &RELEASE_STRICTLY);
            script.call(form, 1 + usize::from(has_list) + more_keys, arguments + more_arguments, out);
            out.part(key.as_bytes());
            if has_list {
                out.parts(&key.wait_list());
            }
            judgement.key(key, out);
            out.part(value.as_bytes());
            // What comes before is said, too, if only to say nothing.
            let mode = if peeks { "peek" } else { "" };
            [channel, mode].iter().take(arguments - 1).for_each(|part| out.part(part.as_bytes()));
            if lingers {
                out.number(linger.as_millis());
            }
            judgement.arguments(None, out);
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
        Command::Inspect { key } | Command::Enlist { key, .. } | Command::Delist { key } => {
            INSPECT.call_on(key, form, 0, out);
        }
        Command::Proclaim { key, value, said, ttl } => {
            PROCLAIM.call(form, 2, 3, out);
            out.part(key.as_bytes());
            out.parts(&key.proclamation());
            out.part(value.as_bytes());
            out.part(said.as_bytes());
            out.number(ttl.as_millis());
        }
        Command::Follow { key } => {
            INSPECT.call(form, 2, 0, out);
            out.part(key.as_bytes());
            out.parts(&key.proclamation());
        }
        Command::Remove { key } => REMOVE.call_on(key, form, 0, out),
    }
}

/// Appends the question whether the wait list beside a key is empty. In full, since it is seldom asked.
pub(super) fn encode_question(key: &Key, out: &mut Writer<'_>) {
    IS_EMPTY.call(Form::Full, 1, 0, out);
    out.parts(&key.wait_list());
}

/// A release that may go together with others: there is nothing more to say than the key and its value.
pub(super) fn simple_release(command: &Command) -> Option<(&Key, &Value)> {
    match command {
        Command::Release { key, value, linger: Ttl::ZERO, wake: Wake::Next, .. } => Some((key, value)),
        _ => None,
    }
}

/// Whether two simple releases may go together: one marker judges all.
pub(super) fn are_judged_alike(release: &Command, other: &Command) -> bool {
    let are_at_one_marker = || release.key().namespace() == other.key().namespace();
    release.rules() == other.rules() && (release.rules() == Rules::Plain || are_at_one_marker())
}

/// Appends several simple releases as one call. No key is named twice, and all are judged alike.
pub(super) fn encode_together<'a>(
    releases: impl ExactSizeIterator<Item = &'a Command> + Clone,
    form: Form,
    (lists, process): (Lists<'_>, &str),
    out: &mut Writer<'_>,
) {
    let Some(first) = releases.clone().next() else { return };
    let judgement = Judgement { rules: first.rules(), process };
    let (more_keys, more_arguments) = judgement.size();
    let has_lists = lists != Lists::Closed;
    let keys = releases.len() * if has_lists { 2 } else { 1 } + more_keys;
    let arguments = 1 + releases.len() + more_arguments;
    judgement.choose(&TOGETHER, &TOGETHER_STRICTLY).call(form, keys, arguments, out);
    let pairs = releases.map(|release| simple_release(release).expect("only those are put together"));
    pairs.clone().for_each(|(key, _)| out.part(key.as_bytes()));
    if has_lists {
        pairs.clone().for_each(|(key, _)| out.parts(&key.wait_list()));
    }
    judgement.key(first.key(), out);
    out.part(lists.channel().as_bytes());
    pairs.for_each(|(_, value)| out.part(value.as_bytes()));
    judgement.arguments(None, out);
}

/// Begins a call that is about the marker of a namespace, with the first four arguments.
fn call_enrol(
    key: &Key,
    form: Form,
    arguments: usize,
    (process, pact, nonce): (&str, Pact, Nonce),
    out: &mut Writer<'_>,
) {
    ENROL.call(form, 1, arguments, out);
    out.parts(&key.marker());
    out.part(process.as_bytes());
    out.number(pact.fingerprint());
    out.number(pact.max_ttl().as_millis());
    out.part(in_digits(nonce).as_bytes());
}

/// A nonce, as all clients write it down.
fn in_digits(nonce: Nonce) -> String {
    format!("{:032x}", nonce.0)
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
    Read::Answer(match (command, command.rules(), reply) {
        (Command::Observe { .. } | Command::Enrol { .. }, _, reply) => enrolment(&reply).unwrap_or(NONSENSE),
        (_, Rules::Strict(_), reply) => judged(command, reply).unwrap_or(NONSENSE),
        (_, Rules::Plain, reply) => said(command, reply),
    })
}

/// What the one reply to several releases says.
#[derive(Debug, PartialEq)]
pub(super) enum Replies {
    /// The same of all.
    Same(Wire),
    /// This of each.
    Each(Vec<Wire>),
    /// The server does not know the script: nothing was done.
    NoScript,
    Refused,
}

/// Reads the reply to so many releases that were sent as one call.
pub(super) fn decode_together(releases: usize, rules: Rules, reply: Wire) -> Replies {
    match (rules, reply) {
        (_, Wire::ServerError(error)) if error.code() == "NOSCRIPT" => Replies::NoScript,
        (_, Wire::ServerError(_)) => Replies::Refused,
        (Rules::Plain, reply) => of_each(releases, reply),
        (Rules::Strict(_), Wire::Array(parts)) => match <[Wire; 2]>::try_from(parts) {
            Ok([incarnation, reply]) => of_each(releases, reply).judged(&incarnation),
            Err(_) => NO_REPLIES,
        },
        (Rules::Strict(_), _) => NO_REPLIES,
    }
}

/// What together.lua says.
fn of_each(releases: usize, reply: Wire) -> Replies {
    match reply {
        Wire::Int(deleted) if usize::try_from(deleted) == Ok(releases) => Replies::Same(Wire::Int(1)),
        Wire::Array(replies) if replies.len() == releases => Replies::Each(replies),
        _ => NO_REPLIES,
    }
}

/// Which is no reply to any.
const NO_REPLIES: Replies = Replies::Same(Wire::Nil);

impl Replies {
    /// Each as if it had been judged by itself. What went wrong is not judged.
    fn judged(self, incarnation: &Wire) -> Self {
        let judged = |reply| match reply {
            Wire::ServerError(_) => reply,
            reply => Wire::Array(vec![incarnation.clone(), reply]),
        };
        match self {
            Replies::Same(reply) => Replies::Same(judged(reply)),
            Replies::Each(replies) => Replies::Each(replies.into_iter().map(judged).collect()),
            other => other,
        }
    }
}

/// Whether the server counts by the marker of the namespace.
fn enrolment(reply: &Wire) -> Option<Answer> {
    let Wire::Array(parts) = reply else { return None };
    let [Wire::Int(counts), Wire::BulkString(text)] = &parts[..] else { return None };
    match counts {
        1 => number(text).map(Answer::Enrolled),
        0 => nonce(text).map(Answer::Observed),
        _ => None,
    }
}

/// What a script says that `strictly.lua` has carried out, and whether it counts.
fn judged(command: &Command, reply: Wire) -> Option<Answer> {
    let Wire::Array(parts) = reply else { return None };
    let [Wire::BulkString(incarnation), reply] = <[Wire; 2]>::try_from(parts).ok()? else { return None };
    match (said(command, reply), &incarnation[..]) {
        (NONSENSE, _) => None,
        (answer, b"") => Some(Answer::Waiting { said: Box::new(answer), counts_from: Instant::NEVER }),
        (answer, incarnation) => nonce(incarnation).map(|incarnation| answer.counting_in(incarnation)),
    }
}

/// A nonce that was written down so.
fn nonce(text: &[u8]) -> Option<Nonce> {
    let is_whole = text.len() == 32 && text.iter().all(u8::is_ascii_hexdigit);
    let digits = std::str::from_utf8(text).ok().filter(|_| is_whole)?;
    u128::from_str_radix(digits, 16).ok().map(Nonce)
}

/// A number of a script, which returns it as the text that it was given.
fn number(text: &[u8]) -> Option<Fence> {
    let digits = std::str::from_utf8(text).ok().filter(|digits| !digits.starts_with('+'))?;
    digits.parse().ok().map(Fence::new)
}

/// The counter of the fences beside what a script says.
fn counter(parts: &[Wire]) -> Option<(i64, Fence)> {
    match parts {
        [Wire::Int(said), Wire::BulkString(text)] => number(text).map(|counter| (*said, counter)),
        _ => None,
    }
}

fn said(command: &Command, reply: Wire) -> Answer {
    match (command, reply) {
        (Command::Acquire { .. }, Wire::Okay) => Answer::Granted,
        (Command::Acquire { .. }, Wire::Nil) => Answer::Denied,
        (Command::Propose { .. }, Wire::Int(1)) => Answer::Accepted,
        (Command::Propose { .. }, Wire::Array(parts)) => match counter(&parts) {
            Some((2, counter)) => Answer::Voted(counter),
            Some((3, counter)) => Answer::Busy(counter),
            _ => NONSENSE,
        },
        (Command::Raise { .. }, Wire::Int(1)) => Answer::Raised,
        (Command::Raise { .. }, Wire::Array(parts)) => match counter(&parts) {
            Some((2, counter)) => Answer::Voted(counter),
            _ => NONSENSE,
        },
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
        (Command::Proclaim { .. }, Wire::Int(1)) => Answer::Proclaimed,
        (
            Command::Extend { .. }
            | Command::Raise { .. }
            | Command::Release { .. }
            | Command::Proclaim { .. },
            Wire::Int(said @ (0 | -1)),
        ) => {
            if said == 0 {
                Answer::Missing
            } else {
                Answer::Foreign
            }
        }
        (Command::Follow { .. }, reply) => followed(reply).unwrap_or(NONSENSE),
        (Command::Inspect { .. }, reply) => sighting(&reply).map_or(NONSENSE, Answer::Seen),
        (Command::Remove { .. }, reply) => sighting(&reply).map_or(NONSENSE, Answer::Removed),
        _ => NONSENSE,
    }
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

/// The same, with what is proclaimed beside it.
fn followed(reply: Wire) -> Option<Answer> {
    let parts = match reply {
        Wire::Nil => return Some(Answer::Seen(None)),
        Wire::Array(parts) => parts,
        _ => return None,
    };
    let [value, millis, said] = <[Wire; 3]>::try_from(parts).ok()?;
    let said = match said {
        Wire::Nil => None,
        Wire::BulkString(bytes) => Some(Proclamation::from_wire(&bytes)),
        _ => return None,
    };
    sighting(&Wire::Array(vec![value, millis]))?.map(|seen| Answer::Followed(seen, said))
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
    use crate::protocol::quorum::Quorum;
    use crate::random;

    fn commands() -> [Command; 8] {
        let (key, value, ttl) = on_the_wire();
        [
            Command::Acquire { key: key.clone(), value: value.clone(), ttl },
            Command::Extend { key: key.clone(), value: value.clone(), ttl, heal: true, rules: Rules::Plain },
            release(Wake::Next),
            Command::Enlist { key: key.clone(), waited: Duration::from_millis(7) },
            Command::Inspect { key: key.clone() },
            Command::Proclaim { key: key.clone(), value, said: proclaimed("hello"), ttl },
            Command::Follow { key: key.clone() },
            Command::Remove { key },
        ]
    }

    fn proclaimed(text: &str) -> Proclamation {
        Proclamation::new(&on_the_wire().1, Fence::new(33), (0, text))
    }

    fn on_the_wire() -> (Key, Value, Ttl) {
        let value = Value::new(LeaseId(1), &Signature::new("w", None));
        (Key::of_lock("redlock", b"k"), value, Ttl::from_duration(Duration::from_secs(1)))
    }

    /// What the strict kinds of locks ask.
    fn strict_commands() -> [Command; 6] {
        let (key, value, ttl) = on_the_wire();
        let pact = pact();
        let (fence, nonce, rules) = (Fence::new(33), Nonce(10), Rules::Strict(pact));
        let release = release_of(key.clone(), rules);
        [
            Command::Propose { key: key.clone(), value: value.clone(), ttl, fence, pact },
            Command::Raise { key: key.clone(), value: value.clone(), fence, pact },
            Command::Extend { key: key.clone(), value, ttl, heal: false, rules },
            release,
            Command::Observe { key: key.clone(), nonce, pact, overrules: true },
            Command::Enrol { key, nonce, anew: Nonce(11), floor: fence, pact },
        ]
    }

    fn pact() -> Pact {
        Pact::of(&["n".into()], Quorum::of(1), Ttl::from_millis(5_000))
    }

    fn release_of(key: Key, rules: Rules) -> Command {
        let (_, value, _) = on_the_wire();
        Command::Release { key, value, linger: Ttl::ZERO, owed_for: Duration::ZERO, wake: Wake::Next, rules }
    }

    fn release(wake: Wake) -> Command {
        let (key, value, _) = on_the_wire();
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
        encode(command, form, (lists, "p"), &mut Writer(&mut packed));
        in_words(&packed)
    }

    fn in_words(packed: &[u8]) -> String {
        String::from_utf8_lossy(packed)
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
    fn a_server_is_told_by_what_to_judge_itself_behind_all_else() {
        let value = "00000000000000000000000000000001:w";
        let pact = Pact::of(&["n".into()], Quorum::of(1), Ttl::from_millis(5_000)).fingerprint();
        let [nonce, anew] = ["0000000000000000000000000000000a", "0000000000000000000000000000000b"];
        let expected = [
            format!(
                "3 redlock:k redlock#fence:k redlock#node {value} 1000 33 3600000 600000000 p {pact} 5000 1000"
            ),
            format!("3 redlock:k redlock#fence:k redlock#node {value} 33 3600000 p {pact} 5000 0"),
            format!("2 redlock:k redlock#node {value} 1000 0 p {pact} 5000 1000"),
            format!("3 redlock:k redlock#wait:k redlock#node {value} c p {pact} 5000 "),
            format!("1 redlock#node p {pact} 5000 {nonce} overrule"),
            format!("1 redlock#node p {pact} 5000 {anew} 33 {nonce}"),
        ];
        for (command, expected) in strict_commands().iter().zip(expected) {
            let text = text(command, Form::Hashed, Lists::WokenOn("c"));
            let (_, arguments) = text.split_at("EVALSHA ".len() + 41);
            assert_eq!(arguments.strip_suffix(' ').unwrap_or(arguments), expected, "{command:?}");
        }
    }

    #[test]
    fn releases_that_go_together_name_all_locks_before_all_lists() {
        let value = "00000000000000000000000000000001:w";
        let judged = format!("p {} 5000  ", pact().fingerprint());
        let wait_lists = "redlock#wait:a redlock#wait:b ";
        for (rules, lists, channel, number, wait_lists, marker, rest) in [
            (Rules::Plain, Lists::WokenOn("c"), "c", 4, wait_lists, "", ""),
            (Rules::Plain, Lists::WakesOthers, "", 4, wait_lists, "", ""),
            (Rules::Plain, Lists::Closed, "", 2, "", "", ""),
            (Rules::Strict(pact()), Lists::WokenOn("c"), "c", 5, wait_lists, "redlock#node ", &*judged),
            (Rules::Strict(pact()), Lists::Closed, "", 3, "", "redlock#node ", &*judged),
        ] {
            let releases = [b"a", b"b"].map(|name| release_of(Key::of_lock("redlock", name), rules));
            let mut packed = Vec::new();
            encode_together(releases.iter(), Form::Hashed, (lists, "p"), &mut Writer(&mut packed));
            let keys = format!("redlock:a redlock:b {wait_lists}{marker}");
            let expected = format!("{number} {keys}{channel} {value} {value} {rest}");
            assert_eq!(in_words(&packed).splitn(3, ' ').nth(2), Some(&*expected));
        }
    }

    #[test]
    fn only_releases_with_nothing_more_to_say_go_together() {
        let is_simple = |command: &Command| simple_release(command).is_some();
        for other in [release(Wake::Nobody), release(Wake::NobodyYet), lingering(Wake::Next)] {
            assert!(!is_simple(&other), "{other:?}");
        }
        for all in [&commands()[..], &strict_commands()] {
            assert_eq!(all.iter().filter(|command| is_simple(command)).count(), 1);
        }
    }

    #[test]
    fn what_another_marker_or_other_rules_judge_does_not_go_together() {
        let of = |namespace: &str, rules| release_of(Key::of_lock(namespace, b"k"), rules);
        let other_pact = Pact::of(&["n".into()], Quorum::of(1), Ttl::from_millis(6_000));
        let (plain, strict, other) = (Rules::Plain, Rules::Strict(pact()), Rules::Strict(other_pact));
        for (one, another, are_alike) in [
            (of("a", plain), of("b", plain), true),
            (of("a", strict), of("a", strict), true),
            (of("a", strict), of("b", strict), false),
            (of("a", strict), of("a", plain), false),
            (of("a", strict), of("a", other), false),
        ] {
            assert_eq!(are_judged_alike(&one, &another), are_alike, "{one:?} {another:?}");
        }
    }

    #[test]
    fn one_reply_is_read_as_one_for_each_release() {
        let [code, lost] = ["NOPERM No permissions", "NOSCRIPT No matching script"]
            .map(|text| redis::parse_redis_value(format!("-{text}\r\n").as_bytes()).expect("an error"));
        let mixed = vec![Wire::Int(0), code.clone(), Wire::Int(2)];
        let judged = |reply: &Wire| Wire::Array(vec![Wire::BulkString(vec![b'7'; 32]), reply.clone()]);
        let each_judged = vec![judged(&mixed[0]), code.clone(), judged(&mixed[2])];
        let (plain, strict) = (Rules::Plain, Rules::Strict(pact()));
        for (rules, reply, expected) in [
            (plain, Wire::Int(3), Replies::Same(Wire::Int(1))),
            (plain, Wire::Array(mixed.clone()), Replies::Each(mixed.clone())),
            (plain, lost.clone(), Replies::NoScript),
            (plain, code.clone(), Replies::Refused),
            (strict, judged(&Wire::Int(3)), Replies::Same(judged(&Wire::Int(1)))),
            (strict, judged(&Wire::Array(mixed.clone())), Replies::Each(each_judged)),
            (strict, lost, Replies::NoScript),
            (strict, code, Replies::Refused),
        ] {
            assert_eq!(decode_together(3, rules, reply), expected);
        }
        for nonsense in [Wire::Int(1), Wire::Int(-1), Wire::Nil, Wire::Okay, Wire::Array(mixed[1..].to_vec())]
        {
            let replies =
                [(plain, nonsense.clone()), (strict, nonsense.clone()), (strict, judged(&nonsense))];
            for (rules, reply) in replies {
                let Replies::Same(reply) = decode_together(3, rules, reply) else {
                    panic!("{nonsense:?} says nothing of each")
                };
                let release = release_of(on_the_wire().0, rules);
                assert_eq!(decode(&release, reply), Read::Answer(NONSENSE), "{nonsense:?}");
            }
        }
    }

    #[test]
    fn a_script_that_is_called_by_another_is_the_plain_one_in_a_frame() {
        let together = include_str!("../lua/together.lua");
        let strictly = include_str!("../lua/strictly.lua");
        for (script, body, frame, arguments) in [
            (&RELEASE_STRICTLY, &RELEASE, strictly, "KEYS, ARGV, marker"),
            (&EXTEND_STRICTLY, &EXTEND, strictly, "KEYS, ARGV, marker"),
            (&TOGETHER, &RELEASE, together, "KEYS, ARGV"),
            (&TOGETHER_STRICTLY, &TOGETHER, strictly, "KEYS, ARGV, marker"),
        ] {
            let inner = script.text.strip_suffix(frame).expect("the frame comes last");
            assert_eq!(inner, format!("local function carry_out({arguments})\n{}end\n\n", body.text));
        }
    }

    #[test]
    fn replies_of_the_wrong_kind_are_no_votes() {
        for command in commands().iter().chain(&strict_commands()) {
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

    /// The same with what is proclaimed, which may be nothing.
    fn any_followed() -> impl Strategy<Value = Vec<u8>> {
        (any_sighting(), proptest::option::of(vec(any::<u8>(), 0..40))).prop_map(|(sighting, said)| {
            let said = said.map_or(b"$-1\r\n".to_vec(), |said| bulk(&said));
            [b"*3\r\n", &sighting[4..], &said].concat()
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

    /// A reply of a script that counts, or does not, or is neither.
    fn any_judged() -> impl Strategy<Value = Vec<u8>> {
        let number =
            prop_oneof![0..4u64, any::<u64>()].prop_map(|number| bulk(number.to_string().as_bytes()));
        let nonce = any::<u128>().prop_map(|nonce| bulk(format!("{nonce:032x}").as_bytes()));
        let digit = || (-1..4i64).prop_map(|said| format!(":{said}\r\n").into_bytes());
        let said = prop_oneof![
            3 => digit(),
            2 => (digit(), number.clone())
                .prop_map(|(said, number)| [b"*2\r\n".to_vec(), said, number].concat()),
            1 => number,
            1 => nonce.clone(),
            1 => any_reply(),
        ];
        let counts = prop_oneof![2 => nonce, 2 => Just(bulk(b"")), 1 => digit()];
        (counts, said).prop_map(|(counts, said)| [b"*2\r\n".to_vec(), counts, said].concat())
    }

    /// The one reply to a command that means an answer; `None` if it cannot be answered so.
    fn reply_for(command: &Command, answer: &Answer) -> Option<Wire> {
        use Command::{Enrol, Observe};
        let text = |text: String| Wire::BulkString(text.into_bytes());
        let pair = |first, second| Some(Wire::Array(vec![Wire::Int(first), second]));
        match (command, command.rules(), answer) {
            (Observe { .. } | Enrol { .. }, _, Answer::Enrolled(fence)) => pair(1, text(fence.to_string())),
            (Observe { .. } | Enrol { .. }, _, Answer::Observed(Nonce(nonce))) => {
                pair(0, text(format!("{nonce:032x}")))
            }
            (Observe { .. } | Enrol { .. }, ..) => None,
            (_, Rules::Plain, answer) => what_says(command, answer),
            (_, Rules::Strict(_), Answer::Waiting { said, .. }) => {
                Some(Wire::Array(vec![text(String::new()), what_says(command, said)?]))
            }
            (_, Rules::Strict(_), Answer::Counting { said, incarnation: Nonce(nonce) }) => {
                Some(Wire::Array(vec![text(format!("{nonce:032x}")), what_says(command, said)?]))
            }
            (_, Rules::Strict(_), _) => None,
        }
    }

    fn what_says(command: &Command, answer: &Answer) -> Option<Wire> {
        use Command::{Acquire, Enlist, Extend, Follow, Inspect, Proclaim, Propose, Raise, Release, Remove};
        let and = |said, fence: &Fence| {
            Wire::Array(vec![Wire::Int(said), Wire::BulkString(fence.to_string().into_bytes())])
        };
        Some(match (command, answer) {
            (Propose { .. }, Answer::Accepted) | (Raise { .. }, Answer::Raised) => Wire::Int(1),
            (Propose { .. } | Raise { .. }, Answer::Voted(counter)) => and(2, counter),
            (Propose { .. }, Answer::Busy(counter)) => and(3, counter),
            (Acquire { .. }, Answer::Granted) => Wire::Okay,
            (Acquire { .. }, Answer::Denied) => Wire::Nil,
            (Extend { .. }, Answer::Present) | (Release { .. }, Answer::Deleted { others_wait: false }) => {
                Wire::Int(1)
            }
            (Extend { .. }, Answer::Healed) | (Release { .. }, Answer::Deleted { others_wait: true }) => {
                Wire::Int(2)
            }
            (Proclaim { .. }, Answer::Proclaimed) => Wire::Int(1),
            (Extend { .. } | Raise { .. } | Release { .. } | Proclaim { .. }, Answer::Missing) => {
                Wire::Int(0)
            }
            (Extend { .. } | Raise { .. } | Release { .. } | Proclaim { .. }, Answer::Foreign) => {
                Wire::Int(-1)
            }
            (Follow { .. }, Answer::Seen(None)) => Wire::Nil,
            (Follow { .. }, Answer::Followed(seen, said)) => {
                let said = said.as_ref().map_or(Wire::Nil, |said| Wire::BulkString(said.as_bytes().to_vec()));
                Wire::Array([parts(seen), vec![said]].concat())
            }
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
        let waiting = |said| Answer::Waiting { said: Box::new(said), counts_from: Instant::NEVER };
        let replies = prop_oneof![4 => any_reply(), 1 => any_sighting(), 1 => any_followed(), 1 => any_enlisted(), 2 => any_judged(), 1 => Just(b"$-1\r\n".to_vec())];
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
            Answer::Proclaimed,
            Answer::Enrolled(Fence::new(3)),
            waiting(Answer::Accepted),
            waiting(Answer::Voted(Fence::new(3))),
            waiting(Answer::Present),
            waiting(Answer::Foreign),
        ];
        let all = [commands().to_vec(), strict_commands().to_vec()].concat();
        random::check(8192, &(select(all), replies), |(command, reply)| {
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
