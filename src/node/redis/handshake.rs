//! From an address to a connection on which commands may be sent: connects, logs in, loads the scripts, and learns who answers.

use std::sync::Arc;
use std::time::Duration;

use redis::{
    ConnectionAddr, InfoDict, Pipeline, ProtocolVersion, PushInfo, PushKind, RedisConnectionInfo,
    ServerError, Value as Wire,
};
use tokio::net::TcpStream;

use super::address::Target;
use super::connection::Connection;
use super::messages::Messages;
use super::resp::NoReply;
use super::tracking::Watched;
use super::wire::{Form, SCRIPTS};
use super::{TIMEOUTS_IN_A_ROW, Timeouts, voter};
use crate::protocol::admission::Introduction;
use crate::protocol::command::Refusal;

/// A living connection, and what its server allows.
pub(super) struct Link {
    pub(super) connection: Connection,
    pub(super) form: Form,
    /// The server tells when keys change that were read to be watched.
    pub(super) tells: bool,
    /// The server wakes this client, or why it does not.
    pub(super) wakes: Result<(), &'static str>,
    /// This client may wake others.
    pub(super) has_lists: bool,
    /// But not in these namespaces.
    pub(super) closed_to: Vec<Box<[u8]>>,
    /// What the server says of itself, as far as it may be asked.
    pub(super) role: Option<String>,
    pub(super) mode: Option<String>,
    pub(super) run_id: Option<String>,
    pub(super) introduction: Option<Introduction>,
    /// What is said against the operator's word for its disk.
    pub(super) distrust: Option<String>,
    /// The policy by which it may throw keys away, if it may.
    pub(super) evicts_by: Option<String>,
}

impl Link {
    /// The user has no right to the wait lists there: from now on it does without.
    pub(super) fn close_lists_of(&mut self, namespace: &[u8]) {
        if !self.closed_to.iter().any(|other| **other == *namespace) {
            self.closed_to.push(namespace.into());
        }
    }
}

/// Who hears what a server says without being asked.
#[derive(Clone)]
pub(super) struct Hearing {
    pub(super) watched: Arc<Watched>,
    pub(super) messages: Arc<Messages>,
}

impl Hearing {
    pub(super) fn hear(&self, push: &PushInfo) {
        self.watched.hear(push);
        self.messages.hear(push);
    }
}

/// Connects, logs in, loads the scripts, and learns who answers. An error is a reason for people, without a password.
pub(super) async fn establish(
    target: &Target,
    timeouts: Timeouts,
    hearing: &Hearing,
) -> Result<Link, String> {
    let login = target.info().redis_settings().clone();
    match speak(target, &login, timeouts, hearing).await {
        Err(Failure::Resp3Missing) => {
            speak(target, &login.set_protocol(ProtocolVersion::RESP2), timeouts, hearing).await
        }
        spoken => spoken,
    }
    .map_err(|failure| match failure {
        Failure::Resp3Missing => "does not know HELLO".to_owned(),
        Failure::Because(reason) => reason,
    })
}

/// Why a server could not be spoken to.
enum Failure {
    /// It does not know HELLO, or not the newer protocol.
    Resp3Missing,
    Because(String),
}

impl<E: std::error::Error> From<E> for Failure {
    fn from(error: E) -> Self {
        Failure::Because(error.to_string())
    }
}

impl From<NoReply> for Failure {
    fn from(_: NoReply) -> Self {
        Failure::Because("does not speak the protocol of Redis".to_owned())
    }
}

async fn speak(
    target: &Target,
    login: &RedisConnectionInfo,
    timeouts: Timeouts,
    hearing: &Hearing,
) -> Result<Link, Failure> {
    let connection = match target.info().addr() {
        ConnectionAddr::Tcp(host, port) => {
            let stream = TcpStream::connect((host.as_str(), *port)).await?;
            tune(&stream, timeouts)?;
            secure(target, stream).await?
        }
        #[cfg(unix)]
        ConnectionAddr::Unix(path) => Connection::over(tokio::net::UnixStream::connect(path).await?),
        _ => {
            return Err(Failure::Because("an address of a kind that this build does not support".to_owned()));
        }
    };
    shake_hands(login, connection, target.trusts_disk(), hearing).await
}

#[cfg(feature = "tls")]
async fn secure(target: &Target, stream: TcpStream) -> Result<Connection, Failure> {
    Ok(match target.tls() {
        Some(tls) => Connection::over(tls.over(stream).await.map_err(Failure::Because)?),
        None => Connection::over(stream),
    })
}

#[cfg(not(feature = "tls"))]
async fn secure(_: &Target, stream: TcpStream) -> Result<Connection, Failure> {
    Ok(Connection::over(stream))
}

/// Small commands at once, and a peer that is gone noticed by the kernel too.
fn tune(stream: &TcpStream, timeouts: Timeouts) -> std::io::Result<()> {
    use rustix::net::sockopt;
    // While nobody listens on a local port, a socket that tries to connect to it may be given this very port.
    if stream.local_addr()? == stream.peer_addr()? {
        return Err(std::io::Error::other("connected to itself: nobody listens there"));
    }
    stream.set_nodelay(true)?;
    sockopt::set_socket_keepalive(stream, true)?;
    sockopt::set_tcp_keepidle(stream, Duration::from_secs(10))?;
    sockopt::set_tcp_keepintvl(stream, Duration::from_secs(3))?;
    sockopt::set_tcp_keepcnt(stream, 3)?;
    #[cfg(any(target_os = "linux", target_os = "android"))]
    {
        let patience = timeouts.connect.max(timeouts.node * TIMEOUTS_IN_A_ROW);
        let millis = i32::try_from(patience.as_millis()).unwrap_or(i32::MAX);
        sockopt::set_tcp_user_timeout(stream, millis.unsigned_abs())?;
    }
    #[cfg(not(any(target_os = "linux", target_os = "android")))]
    let _ = timeouts;
    Ok(())
}

async fn shake_hands(
    login: &RedisConnectionInfo,
    mut connection: Connection,
    trusts_disk: bool,
    hearing: &Hearing,
) -> Result<Link, Failure> {
    let messages = &hearing.messages;
    // The older protocol has no way to tell what was not asked for.
    let can_tell = login.protocol() != ProtocolVersion::RESP2;
    let hello = log_in(login, &mut connection, hearing).await?;
    let mut questions = Pipeline::new();
    questions.cmd("INFO");
    if trusts_disk {
        questions.add_command(voter::persistence());
    }
    if can_tell {
        questions.cmd("CLIENT").arg(&["TRACKING", "ON", "OPTIN", "NOLOOP"]);
        questions.cmd("CLIENT").arg(&["CACHING", "YES"]);
    }
    messages.ask(&mut questions, can_tell);
    for script in SCRIPTS {
        questions.cmd("SCRIPT").arg("LOAD").arg(script.text);
    }
    let mut replies = Vec::new();
    ask(&mut connection, &questions, hearing, &mut replies).await?;
    let mut replies = replies.into_iter();
    let info = replies.next().unwrap_or(Wire::Nil);
    // Refused for a moment, it would wait for the longest ttl for want of an introduction.
    if let Some(refusal) = refusal(&info).filter(|refusal| refusal.is_passing()) {
        return Err(Failure::Because(refusal.to_string()));
    }
    let info = redis::from_redis_value::<InfoDict>(info).ok();
    let config = trusts_disk.then(|| replies.next()).flatten();
    let tells = can_tell && {
        let (tracking, caching) = (replies.next(), replies.next());
        tracking == Some(Wire::Okay) && caching == Some(Wire::Okay)
    };
    let (wakes, has_lists) = messages.read(&mut replies, can_tell);
    let refusals: Vec<_> = replies.filter_map(|reply| refusal(&reply)).collect();
    // It would refuse the releases that go first on a new connection as well.
    if let Some(refusal) = refusals.iter().find(|refusal| refusal.is_passing()) {
        return Err(Failure::Because(refusal.to_string()));
    }
    // A user that may not load scripts may still send them in full.
    let form = if refusals.is_empty() { Form::Hashed } else { Form::Full };
    let told = |name: &str| info.as_ref().and_then(|info| info.get::<String>(name));
    // Whoever may not ask for INFO may still say HELLO, and the other way round.
    let role = told("role").or_else(|| field(&hello, "role"));
    let mode = told("redis_mode").or_else(|| field(&hello, "mode"));
    let run_id = told("run_id");
    let distrust = config.as_ref().and_then(voter::distrust);
    let introduction = info.as_ref().and_then(voter::introduction);
    let has_a_limit = told("maxmemory").is_some_and(|bytes| bytes != "0");
    let evicts_by = told("maxmemory_policy").filter(|policy| has_a_limit && policy != "noeviction");
    Ok(Link {
        connection,
        form,
        tells,
        wakes,
        has_lists,
        closed_to: Vec::new(),
        role,
        mode,
        run_id,
        introduction,
        distrust,
        evicts_by,
    })
}

/// Says who we are. Returns what the server says of itself in return, if it says HELLO.
async fn log_in(
    login: &RedisConnectionInfo,
    connection: &mut Connection,
    hearing: &Hearing,
) -> Result<Wire, Failure> {
    let says_hello = login.protocol() != ProtocolVersion::RESP2;
    let mut questions = Pipeline::new();
    if says_hello {
        let hello = questions.cmd("HELLO").arg(3);
        if let Some(password) = login.password() {
            hello.arg("AUTH").arg(login.username().unwrap_or("default")).arg(password);
        }
    } else if let Some(password) = login.password() {
        questions.cmd("AUTH").arg(login.username()).arg(password);
    }
    if login.db() != 0 {
        questions.cmd("SELECT").arg(login.db());
    }
    let needed = questions.len();
    // For those who look at the list of clients. A server that does not know it does without.
    questions.cmd("CLIENT").arg(&["SETINFO", "LIB-NAME", env!("CARGO_PKG_NAME")]);
    questions.cmd("CLIENT").arg(&["SETINFO", "LIB-VER", env!("CARGO_PKG_VERSION")]);
    let mut replies = Vec::new();
    let asked = ask(connection, &questions, hearing, &mut replies).await;
    for reply in replies.iter().take(needed) {
        if let Wire::ServerError(error) = reply {
            return Err(not_logged_in(error, says_hello));
        }
    }
    // A server that has no room for us says so, and hangs up: that was the better reason.
    asked?;
    Ok(if says_hello { replies.swap_remove(0) } else { Wire::Nil })
}

fn not_logged_in(error: &ServerError, says_hello: bool) -> Failure {
    // Of a command that it does not know a server repeats what it was given, and so a password.
    let details = error.details().unwrap_or_default().split(", with args").next().unwrap_or_default();
    let is_unknown = error.code() == "NOPROTO"
        || details.contains("unknown command") && details.to_ascii_uppercase().contains("HELLO");
    if says_hello && is_unknown {
        return Failure::Resp3Missing;
    }
    Failure::Because(format!("{}: {details}", error.code()))
}

/// Asks, and waits for all replies. What the server says without being asked is passed on meanwhile.
async fn ask(
    connection: &mut Connection,
    questions: &Pipeline,
    hearing: &Hearing,
    replies: &mut Vec<Wire>,
) -> Result<(), Failure> {
    connection.outgoing().extend(questions.get_packed_pipeline());
    loop {
        match connection.next_reply()? {
            None if replies.len() == questions.len() => return Ok(()),
            None => connection.exchange().await?,
            // The newer protocol confirms in this way that it was asked to send messages.
            Some(Wire::Push { kind: PushKind::Subscribe, .. }) => replies.push(Wire::Okay),
            Some(Wire::Push { kind, data }) => hearing.hear(&PushInfo { kind, data }),
            Some(_) if replies.len() == questions.len() => return Err(NoReply.into()),
            Some(reply) => replies.push(reply),
        }
    }
}

fn refusal(reply: &Wire) -> Option<Refusal> {
    match reply {
        Wire::ServerError(error) => Some(Refusal::from_code(error.code())),
        _ => None,
    }
}

/// A field in the reply to HELLO.
pub(super) fn field(hello: &Wire, name: &str) -> Option<String> {
    let text = |value: &Wire| redis::from_redis_value_ref::<String>(value).ok();
    let mut fields = hello.as_map_iter()?;
    fields.find(|(field, _)| text(field).as_deref() == Some(name)).and_then(|(_, value)| text(value))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn failure(reply: &str, says_hello: bool) -> String {
        let Ok(Wire::ServerError(error)) = redis::parse_redis_value(reply.as_bytes()) else {
            panic!("{reply:?} is no error")
        };
        match not_logged_in(&error, says_hello) {
            Failure::Resp3Missing => "RESP3 is missing".to_owned(),
            Failure::Because(reason) => reason,
        }
    }

    #[test]
    fn a_server_that_does_not_know_hello_is_asked_in_the_older_protocol_in_whatever_way_it_says_so() {
        for reply in [
            "-ERR unknown command `HELLO`, with args beginning with: `3`, `AUTH`, `app`, `secret`, \r\n",
            "-ERR unknown command 'hello', with args beginning with: '3' 'AUTH' 'app' 'secret'\r\n",
            "-NOPROTO unsupported protocol version\r\n",
        ] {
            assert_eq!(failure(reply, true), "RESP3 is missing", "{reply:?}");
        }
    }

    #[test]
    fn what_a_server_repeats_of_a_log_in_is_not_shown() {
        let reply = "-ERR unknown command 'AUTH', with args beginning with: 'app' 'secret'\r\n";
        assert_eq!(failure(reply, false), "ERR: unknown command 'AUTH'");
        let reply = "-WRONGPASS invalid username-password pair or user is disabled.\r\n";
        assert_eq!(failure(reply, true), "WRONGPASS: invalid username-password pair or user is disabled.");
    }
}
