//! What a client asks of one node, and what one node may answer. The primitive at a node, without the counting.
//!
//! Each command names the key and the whole value, so that a node never acts on somebody else's key.

use std::cmp::Ordering;
use std::fmt;
use std::hash::{Hash, Hasher};
use std::sync::Arc;
use std::time::Duration;

use super::fence::Fence;
use super::leading::Proclamation;
use super::marker::{Nonce, Pact, Rules};
use super::time::{Instant, Ttl};

/// The position of a node in the configured order. All clients of a deployment should use the same order.
pub type NodeIndex = usize;

/// The random value of one attempt, drawn anew for each: 128 bits, a UUID v4.
///
/// Were it kept over the attempts of one call, the late roll-back of the first attempt would free the key of the second.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LeaseId(pub u128);

impl fmt::Display for LeaseId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

impl fmt::Debug for LeaseId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Separates a namespace from a resource in the name of a wait list.
const LIST_MARK: &[u8] = b"#wait:";

/// The same for the counter of the fences.
const FENCE_MARK: &[u8] = b"#fence:";

/// The same for what a holder proclaims.
const LEADER_MARK: &[u8] = b"#leader:";

/// What the marker of a namespace is called behind it.
const MARKER: &[u8] = b"#node";

/// The name of a key on the wire: any bytes. Two keys are the same if their bytes are.
#[derive(Clone)]
pub struct Key(Arc<Name>);

struct Name {
    bytes: Box<[u8]>,
    /// How many of the bytes are the namespace.
    namespace: usize,
}

impl Key {
    /// The lock key of a resource: `{namespace}:{resource}`, or the bare resource in the empty namespace.
    pub fn of_lock(namespace: &str, resource: &[u8]) -> Self {
        if namespace.is_empty() {
            return Key::from_wire(resource);
        }
        Key::named([namespace.as_bytes(), b":", resource].concat().into(), namespace.len())
    }

    /// A lock key that was read from a node, which does not say where its namespace ends.
    pub fn from_wire(bytes: &[u8]) -> Self {
        Key::named(bytes.into(), 0)
    }

    fn named(bytes: Box<[u8]>, namespace: usize) -> Self {
        Key(Arc::new(Name { bytes, namespace }))
    }

    /// The bytes on the wire.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0.bytes
    }

    /// The bytes of the namespace.
    #[cfg_attr(not(feature = "redis"), allow(dead_code))]
    pub fn namespace(&self) -> &[u8] {
        &self.0.bytes[..self.0.namespace]
    }

    /// The name of the wait list beside this lock key, in pieces: `{namespace}#wait:{resource}`.
    #[cfg_attr(not(feature = "redis"), allow(dead_code))]
    pub fn wait_list(&self) -> [&[u8]; 3] {
        [self.namespace(), LIST_MARK, self.resource()]
    }

    /// The name of the counter of the fences of this resource, in pieces: `{namespace}#fence:{resource}`.
    #[cfg_attr(not(feature = "redis"), allow(dead_code))]
    pub fn fence_counter(&self) -> [&[u8]; 3] {
        [self.namespace(), FENCE_MARK, self.resource()]
    }

    /// The name of what the holder proclaims beside this lock key, in pieces: `{namespace}#leader:{resource}`.
    #[cfg_attr(not(feature = "redis"), allow(dead_code))]
    pub fn proclamation(&self) -> [&[u8]; 3] {
        [self.namespace(), LEADER_MARK, self.resource()]
    }

    /// The name of the marker of this namespace, in pieces: `{namespace}#node`.
    #[cfg_attr(not(feature = "redis"), allow(dead_code))]
    pub fn marker(&self) -> [&[u8]; 2] {
        [self.namespace(), MARKER]
    }

    #[cfg_attr(not(feature = "redis"), allow(dead_code))]
    fn resource(&self) -> &[u8] {
        let behind = if self.0.namespace == 0 { 0 } else { self.0.namespace + 1 };
        &self.0.bytes[behind..]
    }

    /// The lock key beside a wait list: no namespace has a `#` in it.
    #[cfg_attr(not(feature = "redis"), allow(dead_code))]
    pub fn of_wait_list(list: &[u8]) -> Option<Self> {
        let (namespace, rest) = list.split_at(list.iter().position(|byte| *byte == b'#')?);
        let resource = rest.strip_prefix(LIST_MARK)?;
        Some(Key::of_lock(std::str::from_utf8(namespace).ok()?, resource))
    }
}

impl PartialEq for Key {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0) || self.0.bytes == other.0.bytes
    }
}

impl Eq for Key {}

impl PartialOrd for Key {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Key {
    fn cmp(&self, other: &Self) -> Ordering {
        self.0.bytes.cmp(&other.0.bytes)
    }
}

impl Hash for Key {
    fn hash<H: Hasher>(&self, hasher: &mut H) {
        self.0.bytes.hash(hasher);
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.0.bytes.escape_ascii().to_string())
    }
}

/// A client as the wait lists of the nodes name it: the channel on which it is woken.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Waiter(pub Arc<str>);

/// Who is woken by a release that deletes the key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Wake {
    /// Nobody: what is undone was no hold, so nobody waits for its end.
    Nobody,
    /// Nobody, since another claim of this client comes right behind; but the answer says whether somebody waits.
    NobodyYet,
    /// The one that has waited longest.
    Next,
}

/// What stands in a lock key: `{32 hex digits of the LeaseId}:{holder}[:{metadata}]`.
///
/// It is compared whole; the text behind the first colon is for people.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Value(Arc<[u8]>);

impl Value {
    /// The value of one attempt.
    pub fn new(lease_id: LeaseId, signature: &Signature) -> Self {
        let mut bytes: Arc<[u8]> = Arc::from(&*signature.0);
        let digits = Arc::get_mut(&mut bytes).expect("nobody else has it yet").first_chunk_mut();
        *digits.expect("a signature has room for them") = hex_digits(lease_id);
        Value(bytes)
    }

    /// A value that was read from a node, whoever wrote it.
    pub fn from_wire(bytes: &[u8]) -> Self {
        Value(bytes.into())
    }

    /// The bytes on the wire.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// Who holds, if the value is of our form.
    pub fn holder(&self) -> Option<&str> {
        self.text().map(|text| text.split_once(':').map_or(text, |(holder, _)| holder))
    }

    /// The user's text beside the holder, if there is one.
    pub fn metadata(&self) -> Option<&str> {
        self.text().and_then(|text| text.split_once(':')).map(|(_, metadata)| metadata)
    }

    fn text(&self) -> Option<&str> {
        let (digits, rest) = self.0.split_at_checked(32)?;
        let ours = digits.iter().all(u8::is_ascii_hexdigit) && rest.first() == Some(&b':');
        ours.then(|| std::str::from_utf8(&rest[1..]).ok()).flatten()
    }
}

impl fmt::Debug for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.0.escape_ascii().to_string())
    }
}

fn hex_digits(lease_id: LeaseId) -> [u8; 32] {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    std::array::from_fn(|place| DIGITS[(lease_id.0 >> (124 - 4 * place)) as usize & 0xf])
}

/// The part of a value that stays the same over all attempts: `:{holder}[:{metadata}]`, behind room for the digits.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Signature(Arc<[u8]>);

impl Signature {
    /// Of a holder, and of the user's text beside it.
    pub fn new(holder: &str, metadata: Option<&str>) -> Self {
        let text = match metadata {
            Some(metadata) => format!("{:032}:{holder}:{metadata}", 0),
            None => format!("{:032}:{holder}", 0),
        };
        Signature(text.into_bytes().into())
    }
}

/// What a client asks of one node.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Command {
    /// Set the key if it is missing, with an expiry: [`Answer::Granted`] or [`Answer::Denied`].
    Acquire {
        /// The lock key.
        key: Key,
        /// The value of this attempt.
        value: Value,
        /// How long the key lives.
        ttl: Ttl,
    },
    /// If the value stands, raise its expiry to at least `ttl` from now, never lower it: [`Answer::Present`]. If the key is
    /// missing, set it: [`Answer::Healed`], or leave it if `heal` is off: [`Answer::Missing`]. Else [`Answer::Foreign`].
    Extend {
        /// The lock key.
        key: Key,
        /// The value of the attempt that won.
        value: Value,
        /// How long the key lives from when the node gets this.
        ttl: Ttl,
        /// Whether a missing key is set again.
        heal: bool,
        /// By which rules the answer counts.
        rules: Rules,
    },
    /// Set the key if it is missing, as [`Acquire`](Command::Acquire) does, and accept the fence if it is above all that was
    /// accepted for the resource: [`Answer::Accepted`]. If only the fence is too low: [`Answer::Voted`]. If the key is there:
    /// [`Answer::Busy`].
    Propose {
        /// The lock key.
        key: Key,
        /// The value of this attempt.
        value: Value,
        /// How long the key lives.
        ttl: Ttl,
        /// What is proposed.
        fence: Fence,
        /// By which the node's marker is judged.
        pact: Pact,
    },
    /// If the value stands, accept a fence that is above all that was accepted: [`Answer::Raised`], or [`Answer::Voted`] if it
    /// is too low. Else [`Answer::Missing`] or [`Answer::Foreign`]. What is accepted while another's key stands says nothing
    /// about that other's fence, so it is not.
    Raise {
        /// The lock key.
        key: Key,
        /// The value of this attempt.
        value: Value,
        /// What is to be accepted.
        fence: Fence,
        /// By which the node's marker is judged.
        pact: Pact,
    },
    /// Whether the node counts: [`Answer::Enrolled`]. If not, begin to observe it, or say how it is: [`Answer::Observed`]. Where
    /// others have agreed on something else it is refused, unless an operator overrules them.
    Observe {
        /// Any key of the namespace.
        key: Key,
        /// Under which it is observed from now on, if it is not yet.
        nonce: Nonce,
        /// By which the node's marker is judged.
        pact: Pact,
        /// Whoever has agreed on something else does not count for it any more.
        overrules: bool,
    },
    /// Let the node count if it was observed under that nonce all the time: [`Answer::Enrolled`], else [`Answer::Observed`].
    Enrol {
        /// Any key of the namespace.
        key: Key,
        /// Under which it was observed.
        nonce: Nonce,
        /// Under which it is observed from now on if it has forgotten that. Another one: whoever has waited since the first one was
        /// written would not notice.
        anew: Nonce,
        /// Below which it accepts no fence.
        floor: Fence,
        /// What its clients agree on.
        pact: Pact,
    },
    /// Delete the key if the value stands: [`Answer::Deleted`], [`Answer::Missing`] or [`Answer::Foreign`].
    Release {
        /// The lock key.
        key: Key,
        /// The value of the attempt that ends.
        value: Value,
        /// If above zero, the key is not deleted but expires after so long: it goes on to exclude others.
        linger: Ttl,
        /// For how long this release is owed if the node cannot be asked now: longer than that no key can stand there.
        /// Zero if none of ours can stand there in the first place.
        owed_for: Duration,
        /// Who is woken if the key is deleted.
        wake: Wake,
        /// By which rules the answer counts. Whatever they say, the release is carried out: it deletes only what is ours.
        rules: Rules,
    },
    /// Enter the wait list of the key, or stay on it, and read the value as [`Inspect`](Command::Inspect) does:
    /// [`Answer::Enlisted`], or [`Answer::Seen`] from a node that wakes nobody.
    Enlist {
        /// The lock key.
        key: Key,
        /// For how long the client has waited: whoever has waited longest is woken first.
        waited: Duration,
    },
    /// Leave the wait list. Where the key is free the next one is woken, since it may have been this client's turn:
    /// [`Answer::Delisted`].
    Delist {
        /// The lock key.
        key: Key,
    },
    /// Read the value and the time that it has to live: [`Answer::Seen`].
    Inspect {
        /// The lock key.
        key: Key,
    },
    /// If the value stands, write beside the key what its holder proclaims: [`Answer::Proclaimed`], else [`Answer::Missing`] or
    /// [`Answer::Foreign`].
    Proclaim {
        /// The lock key.
        key: Key,
        /// The value of the attempt that won.
        value: Value,
        /// What is written. It replaces what was.
        said: Proclamation,
        /// For how long it is kept.
        ttl: Ttl,
    },
    /// Read the value, the time that it has to live, and what stands beside it: [`Answer::Followed`], or
    /// [`Answer::Seen`] of nothing.
    Follow {
        /// The lock key.
        key: Key,
    },
    /// Delete the key, whoever's it is: [`Answer::Removed`], with what stood there.
    Remove {
        /// The lock key.
        key: Key,
    },
}

impl Command {
    /// Whether it concerns the wait list beside the key, too.
    #[cfg_attr(not(feature = "redis"), allow(dead_code))]
    pub fn concerns_list(&self) -> bool {
        match self {
            Command::Release { wake, .. } => *wake != Wake::Nobody,
            Command::Enlist { .. } | Command::Delist { .. } => true,
            Command::Acquire { .. }
            | Command::Extend { .. }
            | Command::Propose { .. }
            | Command::Raise { .. }
            | Command::Observe { .. }
            | Command::Enrol { .. }
            | Command::Inspect { .. }
            | Command::Proclaim { .. }
            | Command::Follow { .. }
            | Command::Remove { .. } => false,
        }
    }

    /// What its answer is judged by at the node itself; else the connection judges it.
    pub fn rules(&self) -> Rules {
        match self {
            Command::Extend { rules, .. } | Command::Release { rules, .. } => *rules,
            Command::Propose { pact, .. }
            | Command::Raise { pact, .. }
            | Command::Observe { pact, .. }
            | Command::Enrol { pact, .. } => Rules::Strict(*pact),
            _ => Rules::Plain,
        }
    }
}

impl Command {
    /// The key that it is about.
    pub fn key(&self) -> &Key {
        match self {
            Command::Acquire { key, .. }
            | Command::Extend { key, .. }
            | Command::Release { key, .. }
            | Command::Propose { key, .. }
            | Command::Raise { key, .. }
            | Command::Observe { key, .. }
            | Command::Enrol { key, .. }
            | Command::Enlist { key, .. }
            | Command::Delist { key }
            | Command::Inspect { key }
            | Command::Proclaim { key, .. }
            | Command::Follow { key }
            | Command::Remove { key } => key,
        }
    }

    /// The value that it writes or compares.
    #[cfg(feature = "sim")]
    pub fn value(&self) -> Option<&Value> {
        match self {
            Command::Acquire { value, .. }
            | Command::Extend { value, .. }
            | Command::Propose { value, .. }
            | Command::Raise { value, .. }
            | Command::Proclaim { value, .. }
            | Command::Release { value, .. } => Some(value),
            Command::Observe { .. }
            | Command::Enrol { .. }
            | Command::Enlist { .. }
            | Command::Delist { .. }
            | Command::Inspect { .. }
            | Command::Follow { .. }
            | Command::Remove { .. } => None,
        }
    }
}

/// What one node said to one command.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Answer {
    /// The key was free and is ours now.
    Granted,
    /// The key was there already.
    Denied,
    /// The key was free and is ours now, and the fence is accepted.
    Accepted,
    /// The key is ours, and the fence is not accepted: it is not above this one, or too far ahead of the clock.
    Voted(Fence),
    /// The key was there already; and the largest fence that was accepted.
    Busy(Fence),
    /// Our value stood, and the fence is accepted.
    Raised,
    /// The node counts; and the largest fence that it has accepted for any resource.
    Enrolled(Fence),
    /// The node does not count, and is observed under this nonce.
    Observed(Nonce),
    /// Our value stood, and lives at least as long as was asked.
    Present,
    /// The key was missing and was set again.
    Healed,
    /// The key was missing.
    Missing,
    /// Another value stood there.
    Foreign,
    /// Our value stood, and is gone, or goes by itself after the time it was asked to linger.
    Deleted {
        /// Somebody else waits for the key, or was woken just now.
        others_wait: bool,
    },
    /// The client is on the wait list; and what stands at the key.
    Enlisted(Option<Sighting>),
    /// The client is not on the wait list.
    Delisted,
    /// What stands at the key.
    Seen(Option<Sighting>),
    /// What stands at the key, and what is proclaimed beside it, by whomever.
    Followed(Sighting, Option<Proclamation>),
    /// Our value stood, and what it proclaims is written beside it.
    Proclaimed,
    /// What stood at the key, which is gone.
    Removed(Option<Sighting>),
    /// The node does not vote yet, because it may have forgotten what it granted. It did what it was asked all the same.
    Waiting {
        /// What it said. It counts for nothing, but a key may stand by it.
        said: Box<Answer>,
        /// From when the node votes; [`Instant::NEVER`] if that is not known.
        counts_from: Instant,
    },
    /// The node has judged itself in the same step, and votes.
    Counting {
        /// What it said.
        said: Box<Answer>,
        /// What it remembers it has remembered since it was enrolled under this.
        incarnation: Nonce,
    },
    /// No answer to the question.
    Unknown(Unknown),
}

impl Answer {
    /// The answer as it counts for a node that votes from `counts_from` on, when it is heard now.
    pub fn heard(self, now: Instant, counts_from: Instant) -> Answer {
        match self {
            unknown @ Answer::Unknown(_) => unknown,
            // The node itself says that it does not count. It does not know for how long.
            Answer::Waiting { said, .. } => Answer::Waiting { said, counts_from },
            said if now < counts_from => Answer::Waiting { said: Box::new(said), counts_from },
            said => said,
        }
    }

    /// The answer of a node that has judged itself and counts.
    pub fn counting_in(self, incarnation: Nonce) -> Answer {
        Answer::Counting { said: Box::new(self), incarnation }
    }

    /// The vote, and the incarnation in which the node counts, if it has judged itself.
    pub fn and_incarnation(self) -> (Answer, Option<Nonce>) {
        match self {
            Answer::Counting { said, incarnation } => (*said, Some(incarnation)),
            answer => (answer, None),
        }
    }

    /// What the node did, whether or not it counts.
    pub fn said(&self) -> &Answer {
        match self {
            Answer::Waiting { said, .. } | Answer::Counting { said, .. } => said,
            said => said,
        }
    }

    /// Where it is that of a release: whether somebody else waits, or was woken.
    #[cfg_attr(not(feature = "redis"), allow(dead_code))]
    pub fn others_wait(&mut self) -> Option<&mut bool> {
        match self {
            Answer::Deleted { others_wait } => Some(others_wait),
            Answer::Waiting { said, .. } | Answer::Counting { said, .. } => said.others_wait(),
            _ => None,
        }
    }

    /// The largest fence that the node had accepted before, if it says so.
    pub fn counter(&self) -> Option<Fence> {
        match self {
            Answer::Voted(counter) | Answer::Busy(counter) | Answer::Enrolled(counter) => Some(*counter),
            _ => None,
        }
    }

    /// Whether the answer counts for nothing.
    pub fn is_silence(&self) -> bool {
        matches!(self, Answer::Unknown(_) | Answer::Waiting { .. })
    }
}

/// A key as a node saw it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Sighting {
    /// What stands there.
    pub value: Value,
    /// How long it has to live; `None` if it has no expiry.
    pub expires_in: Option<Duration>,
}

/// Why a node gave no answer. "No answer" is never read as "no": what was asked may have been done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Unknown {
    /// The connection is down and the command was not sent: nothing was done.
    NotConnected,
    /// The connection broke before the answer came.
    ConnectionLost,
    /// No answer within the node timeout.
    Timeout,
    /// The server refused with an error: nothing was done.
    Refused(Refusal),
    /// The node answered something else than was asked.
    Nonsense,
}

impl Unknown {
    /// Whether the command may have been carried out, now or later.
    pub fn may_have_run(self) -> bool {
        match self {
            Unknown::NotConnected | Unknown::Refused(_) => false,
            Unknown::ConnectionLost | Unknown::Timeout | Unknown::Nonsense => true,
        }
    }
}

impl fmt::Display for Unknown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Unknown::NotConnected => f.write_str("not connected"),
            Unknown::ConnectionLost => f.write_str("connection lost"),
            Unknown::Timeout => f.write_str("timed out"),
            Unknown::Refused(refusal) => write!(f, "refused ({refusal})"),
            Unknown::Nonsense => f.write_str("unexpected reply"),
        }
    }
}

/// The error codes with which a server refuses a command, as the first word of its error reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum Refusal {
    /// The server is reading its data from disk.
    Loading,
    /// The server is a replica.
    ReadOnly,
    /// The server cannot persist and stopped taking writes.
    MisConf,
    /// The server has no memory for a write.
    OutOfMemory,
    /// A script of somebody blocks the server.
    Busy,
    /// The connection is not authenticated.
    NoAuth,
    /// The user may not run this command on this key.
    NoPermission,
    /// The key holds something that is not a string.
    WrongType,
    /// The clients of the namespace have agreed on other nodes, or on another longest ttl.
    OtherRules,
    /// The server does not say which process it is, and so nobody can tell whether it has forgotten something.
    Nameless,
    /// The server may throw away a lock that is held, to make room.
    Evicts,
    /// The server is a member of a Redis Cluster, and says that it cannot serve the key.
    Cluster,
    /// Another error.
    Other,
}

impl Refusal {
    /// Whether the server refuses everybody everything for now, and will stop to by itself.
    pub fn is_passing(self) -> bool {
        matches!(self, Refusal::Loading | Refusal::Busy)
    }

    /// The refusal that an error code stands for.
    pub fn from_code(code: &str) -> Self {
        match code {
            "LOADING" => Refusal::Loading,
            "READONLY" => Refusal::ReadOnly,
            "MISCONF" => Refusal::MisConf,
            "OOM" => Refusal::OutOfMemory,
            "BUSY" => Refusal::Busy,
            "NOAUTH" => Refusal::NoAuth,
            "NOPERM" => Refusal::NoPermission,
            "WRONGTYPE" => Refusal::WrongType,
            "OTHERRULES" => Refusal::OtherRules,
            "CLUSTERDOWN" | "MASTERDOWN" | "MOVED" | "ASK" | "TRYAGAIN" | "CROSSSLOT" => Refusal::Cluster,
            _ => Refusal::Other,
        }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Refusal::Loading => "LOADING: reads its data from disk",
            Refusal::ReadOnly => "READONLY: is a replica",
            Refusal::MisConf => "MISCONF: cannot persist",
            Refusal::OutOfMemory => "OOM: out of memory",
            Refusal::Busy => "BUSY: blocked by a script",
            Refusal::NoAuth => "NOAUTH: not authenticated",
            Refusal::NoPermission => "NOPERM: no permission",
            Refusal::WrongType => "WRONGTYPE: the key is not a string",
            Refusal::OtherRules => "OTHERRULES: other clients name other nodes, or another max_ttl",
            Refusal::Nameless => "does not say which process it is (INFO forbidden)",
            Refusal::Evicts => "may evict what is held: maxmemory-policy is not noeviction",
            Refusal::Cluster => "the server is part of a Redis Cluster",
            Refusal::Other => "server error",
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::{Strategy, any, prop_assert, prop_assert_eq, prop_oneof};
    use proptest::{collection, option};

    use super::*;
    use crate::random;

    const ID: LeaseId = LeaseId(0x0123_4567_89ab_cdef_0011_2233_4455_6677);

    #[test]
    fn a_value_carries_the_lease_id_the_holder_and_the_metadata() {
        let plain = Value::new(ID, &Signature::new("worker-7", None));
        assert_eq!(plain.as_bytes(), b"0123456789abcdef0011223344556677:worker-7");
        assert_eq!((plain.holder(), plain.metadata()), (Some("worker-7"), None));

        let with = Value::new(ID, &Signature::new("worker-7", Some("pid 12: nightly")));
        assert_eq!((with.holder(), with.metadata()), (Some("worker-7"), Some("pid 12: nightly")));
        assert_eq!(format!("{ID}"), "0123456789abcdef0011223344556677");
    }

    #[test]
    fn a_value_of_another_library_has_no_holder() {
        for foreign in [
            &b""[..],
            b"1",
            b"0123456789abcdef0011223344556677",
            b"0123456789abcdef0011223344556677worker",
            b"not-hex-not-hex-not-hex-not-hex-:worker",
            b"0123456789abcdef0011223344556677:\xff\xfe",
        ] {
            assert_eq!(Value::from_wire(foreign).holder(), None, "{foreign:?}");
        }
    }

    /// What settings let through: no colon in the holder.
    fn of_ours() -> impl Strategy<Value = (u128, String, Option<String>)> {
        (any::<u128>(), "[^:]{0,20}", option::of("(?s).{0,20}"))
    }

    #[test]
    fn what_is_written_is_read_again() {
        random::check(256, &of_ours(), |(id, holder, metadata)| {
            let value = Value::new(LeaseId(id), &Signature::new(&holder, metadata.as_deref()));
            let read = Value::from_wire(value.as_bytes());
            prop_assert_eq!(&read, &value);
            prop_assert_eq!((read.holder(), read.metadata()), (Some(&*holder), metadata.as_deref()));
            prop_assert!(value.as_bytes().starts_with(LeaseId(id).to_string().as_bytes()));
            Ok(())
        });
    }

    /// Any bytes, and values of ours in which something is replaced.
    fn any_bytes() -> impl Strategy<Value = Vec<u8>> {
        let ours = of_ours().prop_map(|(id, holder, metadata)| {
            Value::new(LeaseId(id), &Signature::new(&holder, metadata.as_deref())).as_bytes().to_vec()
        });
        let damage = (any::<proptest::sample::Index>(), 0..3usize, collection::vec(any::<u8>(), 0..3));
        let damaged = (ours, damage).prop_map(|(mut bytes, (place, less, more))| {
            let start = place.index(bytes.len());
            bytes.splice(start..(start + less).min(bytes.len()), more);
            bytes
        });
        prop_oneof![collection::vec(any::<u8>(), 0..80), damaged]
    }

    #[test]
    fn what_anybody_wrote_is_read_as_ours_only_if_it_has_our_form() {
        random::check(1024, &any_bytes(), |bytes| {
            let value = Value::from_wire(&bytes);
            prop_assert_eq!(value.as_bytes(), &*bytes);
            let (id, rest) = bytes.split_at(bytes.len().min(32));
            let has_our_form = id.len() == 32
                && id.iter().all(u8::is_ascii_hexdigit)
                && rest.starts_with(b":")
                && std::str::from_utf8(rest).is_ok();
            prop_assert_eq!(value.holder().is_some(), has_our_form);
            // Nothing of the text is lost or made up.
            let signature = value.holder().map(|holder| Signature::new(holder, value.metadata()));
            prop_assert!(signature.is_none_or(|signature| signature.0[32..] == *rest));
            prop_assert!(value.holder().is_none_or(|holder| !holder.contains(':')));
            prop_assert!(value.holder().is_some() || value.metadata().is_none());
            Ok(())
        });
    }

    #[test]
    fn the_empty_namespace_is_the_bare_resource() {
        assert_eq!(Key::of_lock("redlock", b"a").as_bytes(), b"redlock:a");
        assert_eq!(Key::of_lock("", b"a").as_bytes(), b"a");
    }
}
