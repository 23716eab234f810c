//! The service as it is run: a process of its own, asked over HTTP, on nodes in its memory and on three Redis servers of
//! the test's own.

#[path = "../../run_once/tests/servers/mod.rs"]
mod servers;

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::process::{Child, ChildStdout, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::sync::{Barrier, Mutex};
use std::thread::{self, sleep};
use std::time::{Duration, Instant};

use servers::Servers;

/// The servers forget nothing when they restart, so that they need not wait for the longest ttl before they vote.
const TRUSTED: &str = "?trust_disk=true";

/// Whatever takes longer has failed.
const PATIENCE: Duration = Duration::from_secs(25);

/// How soon one asks again where nothing tells that something has changed.
const PAUSE: Duration = Duration::from_millis(10);

#[test]
fn one_user_is_charged_once_at_a_time_and_others_meanwhile() {
    let service = Service::on_memory();
    let first = service.charge("alice", "amount=5&takes_ms=3000");
    service.wait_for(r#"charging "alice""#);

    service.charge("alice", "amount=7").answer().assert_refused(409);
    service.charge("bob", "amount=2&takes_ms=0").answer().assert_says(200, r#"{"user":"bob","total":2}"#);
    first.answer().assert_says(200, r#"{"user":"alice","total":5}"#);

    assert_eq!(service.wait_for("charged"), r#"charged "bob""#, "alice was not in work any more");
    service.charge("alice", "amount=1&takes_ms=0").answer().assert_says(200, r#"{"user":"alice","total":6}"#);
}

#[test]
fn two_instances_charge_one_user_one_at_a_time() {
    let servers = Servers::start_on_disk(3);
    let (here, there) = (Service::on(&servers, &[]), Service::on(&servers, &[]));
    let first = here.charge("alice", "takes_ms=3000");
    here.wait_for(r#"charging "alice""#);

    there.charge("alice", "takes_ms=0").answer().assert_refused(409);
    there.charge("bob", "takes_ms=0").answer().assert_status(200);
    first.answer().assert_status(200);
    there.charge("alice", "takes_ms=0").answer().assert_status(200);
}

#[test]
fn of_many_charges_at_once_no_update_is_lost() {
    const CLIENTS: u64 = 8;
    let service = Service::on_memory();
    let together = Barrier::new(CLIENTS as usize);
    let client = |amount| {
        together.wait();
        service.charge_until_accepted("alice", &format!("amount={amount}&takes_ms=50"))
    };
    let client = &client;

    let refusals: usize = thread::scope(|scope| {
        let clients: Vec<_> = (1..=CLIENTS).map(|amount| scope.spawn(move || client(amount))).collect();
        clients.into_iter().map(|client| client.join().expect("a client that was charged")).sum()
    });

    let total = (1..=CLIENTS).sum::<u64>();
    service.get("/users/alice").answer().assert_says(200, &format!(r#"{{"user":"alice","total":{total}}}"#));
    assert!(refusals > 0, "they never met, so this has shown nothing");
}

#[test]
fn a_client_that_disconnects_leaves_no_lock_behind() {
    a_client_disconnects(&Service::on_memory());
}

#[test]
fn a_client_that_disconnects_leaves_no_lock_behind_on_servers() {
    let servers = Servers::start_on_disk(3);
    a_client_disconnects(&Service::on(&servers, &[("REDLOCK_TTL_MS", "60000")]));
}

/// The ttl is 10 s at least, and the lock would be renewed for the 20 s that the work takes.
fn a_client_disconnects(service: &Service) {
    let first = service.charge("alice", "amount=5&takes_ms=20000");
    service.wait_for(r#"charging "alice""#);
    service.charge("alice", "amount=7").answer().assert_refused(409);

    drop(first);
    let left = Instant::now();
    service.charge_until_accepted("alice", "amount=3&takes_ms=0");

    let waited = left.elapsed();
    assert!(waited < Duration::from_secs(5), "the next charge had to wait {waited:?}");
    service.get("/users/alice").answer().assert_says(200, r#"{"user":"alice","total":3}"#);
}

#[test]
fn told_to_stop_it_finishes_what_is_in_work_and_leaves_no_key() {
    let servers = Servers::start_on_disk(3);
    let mut service = Service::on(&servers, &[("REDLOCK_TTL_MS", "60000")]);
    let in_work = service.charge("alice", "amount=5&takes_ms=2000");
    service.wait_for(r#"charging "alice""#);
    let locked = servers.keys("*").iter().filter(|keys| *keys == "*1").count();
    assert!(locked >= 2, "the lock of alice is on {locked} servers, and a majority of 3 is 2");

    service.terminate();
    assert_eq!(service.next_line(), "stopping", "alice was not in work any more");
    in_work.answer().assert_says(200, r#"{"user":"alice","total":5}"#);

    let ended = service.wait();
    assert_eq!(ended.code(), Some(0), "{ended}");
    assert_eq!(servers.keys("*"), ["*0", "*0", "*0"], "keys that would stand for up to a minute");
}

#[test]
fn what_is_not_done_in_time_is_given_up_and_leaves_no_key() {
    let servers = Servers::start_on_disk(3);
    let mut service = Service::on(&servers, &[("REDLOCK_TTL_MS", "60000"), ("DRAIN_MS", "100")]);
    let _in_work = service.charge("alice", "amount=5&takes_ms=20000");
    service.wait_for(r#"charging "alice""#);

    service.terminate();
    assert_eq!(service.next_line(), "stopping");
    assert_eq!(service.next_line(), "stopped in the middle of redlock:users/alice: released");

    let ended = service.wait();
    assert_eq!(ended.code(), Some(1), "{ended}");
    assert_eq!(servers.keys("*"), ["*0", "*0", "*0"], "keys that would stand for up to a minute");
}

#[test]
fn while_its_nodes_do_not_vote_yet_it_says_for_how_long() {
    let servers = Servers::start_on_disk(3);
    let nodes = servers.addresses();
    let settings = [("REDLOCK_TTL_MS", "60000")];
    let service = Service::start(command().env("REDLOCK_NODES", nodes).envs(settings));
    let answer = service.charge("alice", "amount=5&takes_ms=0").answer();
    answer.assert_refused(503);
    let seconds: u32 = answer.header("Retry-After").and_then(|text| text.parse().ok()).expect("seconds");
    assert!((30..=61).contains(&seconds), "{answer:?}");
}

#[test]
fn without_a_majority_it_asks_for_patience() {
    let mut servers = Servers::start_on_disk(3);
    let service = Service::on(&servers, &[]);
    service.charge("alice", "amount=5&takes_ms=0").answer().assert_status(200);
    service.get("/health").answer().assert_status(200);

    servers.kill(0);
    service.charge("alice", "amount=1&takes_ms=0").answer().assert_says(200, r#"{"user":"alice","total":6}"#);
    service.get("/health").answer().assert_status(200);

    servers.kill(2);
    service.charge("alice", "amount=7&takes_ms=0").answer().assert_refused(503);
    service.get("/health").answer().assert_refused(503);
    service.get("/users/alice").answer().assert_says(200, r#"{"user":"alice","total":6}"#);
}

#[test]
fn a_charge_that_loses_its_lock_says_so() {
    let servers = Servers::start_on_disk(3);
    let service = Service::on(&servers, &[("REDLOCK_TTL_MS", "900")]);
    let first = service.charge("alice", "amount=5&takes_ms=20000");
    service.wait_for(r#"charging "alice""#);

    servers.forget_everything();

    let answer = first.answer();
    answer.assert_status(500);
    assert!(answer.body.contains("lock was lost"), "{answer:?}");
    assert_eq!(answer.header("Retry-After"), None, "nobody should charge twice unasked");
    service.charge("alice", "amount=3&takes_ms=0").answer().assert_says(200, r#"{"user":"alice","total":3}"#);
}

/// The service on its own, killed when dropped.
struct Service {
    process: Child,
    address: String,
    lines: Mutex<Receiver<String>>,
}

impl Service {
    fn on_memory() -> Self {
        let service = Self::start(&mut command());
        service.wait_for("nodes in memory");
        service
    }

    fn on(servers: &Servers, settings: &[(&str, &str)]) -> Self {
        Self::start(
            command().env("REDLOCK_NODES", servers.addresses_with(TRUSTED)).envs(settings.iter().copied()),
        )
    }

    fn start(command: &mut Command) -> Self {
        let mut process = command.stdout(Stdio::piped()).spawn().expect("the binary runs");
        let lines = Mutex::new(lines_of(process.stdout.take().expect("a pipe")));
        let mut service = Service { process, address: String::new(), lines };
        let first = service.next_line();
        service.address = first.strip_prefix("listening on http://").expect("the address").to_owned();
        service
    }

    fn next_line(&self) -> String {
        let lines = self.lines.lock().expect("a test that has not failed");
        lines.recv_timeout(PATIENCE).expect("another line of the service")
    }

    /// The next line that contains `words`.
    fn wait_for(&self, words: &str) -> String {
        loop {
            let line = self.next_line();
            if line.contains(words) {
                return line;
            }
        }
    }

    fn terminate(&self) {
        let kill = format!("kill -TERM {}", self.process.id());
        assert!(Command::new("sh").args(["-c", &kill]).status().expect("a shell").success());
    }

    /// Until it ends by itself.
    fn wait(&mut self) -> ExitStatus {
        let lines = self.lines.lock().expect("a test that has not failed");
        let ended = loop {
            if let Err(error) = lines.recv_timeout(PATIENCE) {
                break error;
            }
        };
        assert_eq!(ended, RecvTimeoutError::Disconnected, "the service goes on");
        self.process.wait().expect("a child")
    }

    fn charge(&self, user: &str, query: &str) -> Asked {
        self.ask(&format!("POST /users/{user}/charge?{query}"))
    }

    /// Asks again as long as another charge is in work; how often, it says. Sooner than Retry-After asks for, which is
    /// meant for clients that have more time.
    fn charge_until_accepted(&self, user: &str, query: &str) -> usize {
        let began = Instant::now();
        let mut refusals = 0;
        while began.elapsed() < PATIENCE {
            let answer = self.charge(user, query).answer();
            if answer.status == 200 {
                return refusals;
            }
            answer.assert_refused(409);
            refusals += 1;
            sleep(PAUSE);
        }
        panic!("{user} was refused {refusals} times");
    }

    fn get(&self, path: &str) -> Asked {
        self.ask(&format!("GET {path}"))
    }

    fn ask(&self, what: &str) -> Asked {
        let mut stream = TcpStream::connect(&self.address).expect("a service that listens");
        stream.set_read_timeout(Some(PATIENCE)).expect("a timeout above zero");
        let request =
            format!("{what} HTTP/1.1\r\nHost: test\r\nConnection: close\r\nContent-Length: 0\r\n\r\n");
        stream.write_all(request.as_bytes()).expect("a service that reads");
        Asked(stream)
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn command() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_redlock-example-axum"));
    let variables = ["NODES", "NAMESPACE", "HOLDER", "TTL_MS", "WAIT_MS"];
    variables.iter().for_each(|variable| _ = command.env_remove(format!("REDLOCK_{variable}")));
    command.env_remove("LISTEN_ON").env_remove("DRAIN_MS");
    command
}

/// Read on another thread, so that waiting for one can end.
fn lines_of(pipe: ChildStdout) -> Receiver<String> {
    let (tell, told) = channel();
    thread::spawn(move || {
        for line in BufReader::new(pipe).lines().map_while(Result::ok) {
            let _ = tell.send(line); // the test may be over; the service may write on
        }
    });
    told
}

/// A request under way. Dropped, the client has disconnected.
struct Asked(TcpStream);

impl Asked {
    fn answer(mut self) -> Answer {
        let mut text = String::new();
        self.0.read_to_string(&mut text).expect("an answer in time");
        let (head, body) = text.split_once("\r\n\r\n").expect("a head and a body");
        let (first, headers) = head.split_once("\r\n").expect("headers");
        let status = first.split(' ').nth(1).and_then(|status| status.parse().ok());
        let headers = headers.lines().filter_map(|line| line.split_once(": "));
        Answer {
            status: status.expect("a status"),
            headers: headers.map(|(name, value)| (name.to_owned(), value.to_owned())).collect(),
            body: body.to_owned(),
        }
    }
}

#[derive(Debug)]
struct Answer {
    status: u16,
    headers: Vec<(String, String)>,
    body: String,
}

impl Answer {
    fn header(&self, name: &str) -> Option<&str> {
        let found = self.headers.iter().find(|(other, _)| other.eq_ignore_ascii_case(name));
        found.map(|(_, value)| value.as_str())
    }

    #[track_caller]
    fn assert_status(&self, status: u16) {
        assert_eq!(self.status, status, "{self:?}");
    }

    #[track_caller]
    fn assert_says(&self, status: u16, body: &str) {
        self.assert_status(status);
        assert_eq!(self.body, body);
    }

    /// Refused for now: with the seconds after which it makes sense to ask again.
    #[track_caller]
    fn assert_refused(&self, status: u16) {
        self.assert_status(status);
        let seconds = self.header("Retry-After").and_then(|seconds| seconds.parse::<u32>().ok());
        assert!(seconds.is_some_and(|seconds| seconds >= 1), "{self:?}");
    }
}
