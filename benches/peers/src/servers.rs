//! Independent servers on free ports of this machine, without persistence, ended when this is dropped; and what they say of
//! the work they did.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Servers that were started here.
pub struct Servers {
    processes: Vec<Child>,
    /// `host:port` of each.
    pub addresses: Vec<String>,
    folder: PathBuf,
}

impl Servers {
    /// Starts so many, and waits until they answer.
    pub fn start(count: usize) -> io::Result<Self> {
        let folder = std::env::temp_dir().join(format!("redlock-bench-{}", std::process::id()));
        std::fs::create_dir_all(&folder)?;
        let mut servers = Servers { processes: Vec::new(), addresses: Vec::new(), folder };
        // All listeners at once, so that no port is given twice.
        let listeners =
            (0..count).map(|_| TcpListener::bind("127.0.0.1:0")).collect::<io::Result<Vec<_>>>()?;
        let ports = listeners
            .iter()
            .map(|listener| Ok(listener.local_addr()?.port()))
            .collect::<io::Result<Vec<_>>>()?;
        drop(listeners);
        for port in ports {
            let process = Command::new("redis-server")
                .args([
                    "--port",
                    &port.to_string(),
                    "--bind",
                    "127.0.0.1",
                    "--save",
                    "",
                    "--appendonly",
                    "no",
                ])
                .arg("--dir")
                .arg(&servers.folder)
                .stdout(Stdio::null())
                .spawn()?;
            servers.processes.push(process);
            servers.addresses.push(format!("127.0.0.1:{port}"));
        }
        for address in &servers.addresses {
            let started = Instant::now();
            while ask(address, "PING").is_err() {
                if started.elapsed() > Duration::from_secs(5) {
                    return Err(io::Error::other(format!("the server at {address} does not answer")));
                }
                std::thread::sleep(Duration::from_millis(10));
            }
        }
        Ok(servers)
    }

    /// So many of them.
    pub fn first(&self, count: usize) -> Vec<String> {
        self.addresses[..count].to_vec()
    }

    /// Deletes all keys of these.
    pub fn flush(nodes: &[String]) {
        for node in nodes {
            ask(node, "FLUSHALL SYNC").expect("the server runs");
        }
    }

    /// Which servers these are.
    pub fn version(&self) -> String {
        let info = ask(&self.addresses[0], "INFO server").expect("the server runs");
        let version = info.lines().find_map(|line| line.strip_prefix("redis_version:"));
        format!("redis-server {}", version.unwrap_or("of unknown version").trim())
    }
}

impl Drop for Servers {
    fn drop(&mut self) {
        for process in &mut self.processes {
            // One that is gone already needs no end.
            let _ = process.kill();
            let _ = process.wait();
        }
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

/// What servers did up to a moment.
#[derive(Clone, Debug, Default)]
pub struct Work {
    /// How often each command was carried out, those in scripts too.
    calls: BTreeMap<String, u64>,
    /// Their processor time.
    pub cpu_us: f64,
}

impl Work {
    /// Of these servers together, until now.
    pub fn of(nodes: &[String]) -> Self {
        let mut work = Work::default();
        for node in nodes {
            let info = ask(node, "INFO everything").expect("the server runs");
            for line in info.lines() {
                let Some((name, value)) = line.trim().split_once(':') else { continue };
                if let Some(command) = name.strip_prefix("cmdstat_") {
                    let calls = value.strip_prefix("calls=").and_then(|rest| rest.split(',').next());
                    let calls: u64 = calls.and_then(|calls| calls.parse().ok()).expect("a number of calls");
                    *work.calls.entry(command.to_owned()).or_default() += calls;
                } else if matches!(name, "used_cpu_sys" | "used_cpu_user") {
                    work.cpu_us += value.parse::<f64>().expect("seconds") * 1e6;
                }
            }
        }
        work
    }

    /// What was done since.
    pub fn since(&self, earlier: &Work) -> Work {
        let before = |command: &String| earlier.calls.get(command).copied().unwrap_or(0);
        let calls = self.calls.iter().map(|(command, calls)| (command.clone(), calls - before(command)));
        Work { calls: calls.collect(), cpu_us: self.cpu_us - earlier.cpu_us }
    }

    /// How often that command was carried out.
    pub fn calls(&self, command: &str) -> u64 {
        self.calls.get(command).copied().unwrap_or(0)
    }
}

/// Counts the commands that clients send to servers, as the servers tell it: those that scripts call are not among them, nor
/// those that open a connection. It costs the servers time, so rates are not measured beside it.
pub struct Monitor {
    nodes: Vec<String>,
    counting: Vec<JoinHandle<io::Result<u64>>>,
}

/// Ends the counting when a server tells of it.
const END: &str = "the end of the block";

impl Monitor {
    /// Begins to count.
    pub fn start(nodes: &[String]) -> io::Result<Self> {
        let mut counting = Vec::new();
        for node in nodes {
            let mut stream = TcpStream::connect(node)?;
            stream.write_all(b"MONITOR\r\n")?;
            let mut lines = BufReader::new(stream).lines();
            let begun = lines.next().transpose()?;
            if begun.as_deref() != Some("+OK") {
                return Err(io::Error::other(format!("{begun:?}")));
            }
            counting.push(std::thread::spawn(move || count_sent(lines)));
        }
        Ok(Monitor { nodes: nodes.to_vec(), counting })
    }

    /// How many there were.
    pub fn stop(self) -> io::Result<u64> {
        for node in &self.nodes {
            ask(node, &format!("ECHO \"{END}\""))?;
        }
        self.counting.into_iter().map(|counting| counting.join().expect("no panic")).sum()
    }
}

fn count_sent(lines: impl Iterator<Item = io::Result<String>>) -> io::Result<u64> {
    let mut count = 0;
    // Whoever opens a connection asks for the caching of nothing once.
    let mut opened = BTreeSet::new();
    for line in lines {
        let line = line?;
        if line.contains(END) {
            return Ok(count);
        }
        if let Some(sender) =
            line.to_lowercase().split(']').next().and_then(|begin| begin.split(' ').next_back())
            && line.to_lowercase().contains("\"client\" \"caching\"")
            && opened.insert(sender.to_owned())
        {
            continue;
        }
        count += u64::from(is_sent(&line));
    }
    Err(io::ErrorKind::UnexpectedEof.into())
}

/// Whether a line is about a command that a client sent for its locks: `+1700000000.123456 [0 127.0.0.1:4242] "SET" "key"`.
fn is_sent(line: &str) -> bool {
    const OPENING: [&str; 10] =
        ["hello", "client", "info", "script", "ping", "flushall", "auth", "select", "command", "config"];
    // By which a client finds out what it may do; for locks only scripts use them.
    const PROBING: [&str; 7] = ["time", "exists", "zadd", "zrem", "zpopmin", "publish", "subscribe"];
    let Some((sender, words)) = line.split_once("] ") else { return false };
    let mut words = words.split(' ').map(|word| word.trim_matches('"').to_lowercase());
    let command = words.next().unwrap_or_default();
    let caching = command == "client" && words.next().as_deref() == Some("caching");
    !sender.ends_with(" lua")
        && (caching || !OPENING.contains(&command.as_str()) && !PROBING.contains(&command.as_str()))
}

/// Asks a server one thing, and returns what it says, without what frames it.
fn ask(address: &str, question: &str) -> io::Result<String> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    write!(stream, "{question}\r\n")?;
    let mut reader = BufReader::new(stream);
    let mut line = String::new();
    reader.read_line(&mut line)?;
    let line = line.trim_end();
    match line.strip_prefix('$') {
        Some(length) => {
            let mut text = vec![0; length.parse().map_err(io::Error::other)?];
            reader.read_exact(&mut text)?;
            String::from_utf8(text).map_err(io::Error::other)
        }
        None if line.starts_with(['+', ':']) => Ok(line[1..].to_owned()),
        None => Err(io::Error::other(line.to_owned())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_scripts_call_and_what_opens_a_connection_is_not_sent_for_a_lock() {
        let line = |rest: &str| format!("+1700000000.123456 [0 {rest}");
        for sent in ["\"SET\" \"a\" \"] lua\"", "\"evalsha\" \"f\"", "\"CLIENT\" \"CACHING\" \"YES\""] {
            assert!(is_sent(&line(&format!("127.0.0.1:4242] {sent}"))), "{sent}");
        }
        for other in ["lua] \"GET\" \"a\"", "127.0.0.1:1] \"HELLO\" \"3\"", "127.0.0.1:1] \"CLIENT\" \"ID\""]
        {
            assert!(!is_sent(&line(other)), "{other}");
        }
        assert!(!is_sent("+OK"));
    }
}
