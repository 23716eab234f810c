//! The wire: what is left without a client library. The bytes are made beforehand. All tasks step together: one write for each
//! node with the `SET NX PX` of every task, and when each of them has a majority, one write with the compare-and-delete of
//! every task. It makes no new value for each attempt, keeps no time, and does nothing about failures.
//!
//! A compare-and-delete is a script for each task, as in all other libraries; or one script for up to 64 of them, as here. The latter is
//! the upper bound.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::io;
use std::task::{Context, Poll};
use std::time::Instant;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::block::{Order, Outcome, Window};
use crate::work::cpu_us;

const RELEASE: &str =
    "if redis.call('GET',KEYS[1]) == ARGV[1] then return redis.call('DEL',KEYS[1]) else return 0 end";

const RELEASE_TOGETHER: &str = "\
local held = redis.call('MGET', unpack(KEYS)) \
for place, value in ipairs(ARGV) do if held[place] ~= value then return 0 end end \
return redis.call('DEL', unpack(KEYS))";

/// Tasks whose keys are deleted by one script.
const MOST_TOGETHER: usize = 64;

/// One connection to one server.
struct Connection {
    stream: TcpStream,
    set: Vec<u8>,
    release: Vec<u8>,
    /// Replies that nobody waits for any more: they come first.
    stragglers: usize,
    /// Replies of this batch.
    heard: usize,
    buffer: Box<[u8]>,
    line: Line,
}

/// What has been read of a reply, which is one line.
#[derive(Default)]
struct Line {
    kind: Option<u8>,
    number: usize,
}

/// Tasks that step together.
struct Batch {
    nodes: Vec<Connection>,
    tasks: usize,
    granted: Vec<u8>,
}

/// As many pairs as go into the time.
pub async fn perform(order: &Order) -> Outcome {
    assert_eq!(order.work, "pairs", "the wire makes pairs only");
    // On several threads there are as many batches, each with connections of its own.
    let parts = order.threads.min(order.tasks);
    let mut batches = Vec::new();
    for part in 0..parts {
        let tasks = order.tasks / parts + usize::from(part < order.tasks % parts);
        let together = if order.of == "wire-together" { MOST_TOGETHER } else { 1 };
        batches.push(Batch::connect(&order.nodes, part, (tasks, together)).await.expect("servers"));
    }
    let window = order.window();
    let workers: VecDeque<_> = batches.into_iter().map(|batch| tokio::spawn(batch.run(window))).collect();
    tokio::time::sleep_until(window.start.into()).await;
    let before = cpu_us();
    tokio::time::sleep_until(window.end.into()).await;
    let cpu_us = cpu_us() - before;
    let mut outcome = Outcome { seconds: order.seconds, cpu_us, ..Outcome::default() };
    for worker in workers {
        let (count, total, waits) = worker.await.expect("no panic").expect("servers");
        outcome.counts.push(count);
        outcome.total += total;
        outcome.waits_us.extend(waits);
    }
    outcome
}

impl Batch {
    async fn connect(nodes: &[String], part: usize, (tasks, together): (usize, usize)) -> io::Result<Self> {
        let mut connections = Vec::new();
        for node in nodes {
            connections.push(Connection::open(node, part, (tasks, together)).await?);
        }
        Ok(Batch { nodes: connections, tasks, granted: vec![0; tasks] })
    }

    async fn run(mut self, window: Window) -> io::Result<(u64, u64, Vec<f64>)> {
        let (mut count, mut total, mut waits) = (0, 0, Vec::new());
        let mut before = Instant::now();
        while before < window.end {
            self.step(|node| &node.set).await?;
            self.step(|node| &node.release).await?;
            let after = Instant::now();
            total += self.tasks as u64;
            if after >= window.start && after < window.end {
                count += self.tasks as u64;
                if self.tasks == 1 {
                    waits.push((after - before).as_secs_f64() * 1e6);
                }
            }
            before = after;
        }
        Ok((count, total, waits))
    }

    /// Writes one batch to every node, and returns when each task was granted its wish by a majority.
    async fn step(&mut self, bytes: impl Fn(&Connection) -> &Vec<u8>) -> io::Result<()> {
        self.granted.fill(0);
        for node in &mut self.nodes {
            node.heard = 0;
            let bytes = bytes(node);
            let written = node.stream.try_write(bytes).unwrap_or(0);
            if written < bytes.len() {
                let rest = bytes[written..].to_vec();
                node.stream.write_all(&rest).await?;
            }
        }
        poll_fn(|context| self.hear(context)).await?;
        for node in &mut self.nodes {
            node.stragglers += self.tasks - node.heard;
        }
        Ok(())
    }

    fn hear(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let quorum = self.nodes.len() / 2 + 1;
        for node in &mut self.nodes {
            node.read(context, &mut self.granted)?;
        }
        let won = self.granted.iter().all(|granted| usize::from(*granted) >= quorum);
        if won {
            return Poll::Ready(Ok(()));
        }
        let all_heard = self.nodes.iter().all(|node| node.heard == self.tasks);
        assert!(!all_heard, "nobody else takes these keys, but a majority refused one");
        Poll::Pending
    }
}

impl Connection {
    async fn open(node: &str, part: usize, (tasks, together): (usize, usize)) -> io::Result<Self> {
        let mut stream = TcpStream::connect(node).await?;
        stream.set_nodelay(true)?;
        let mut load = Vec::new();
        command(&mut load, &["SCRIPT", "LOAD", if together == 1 { RELEASE } else { RELEASE_TOGETHER }]);
        stream.write_all(&load).await?;
        // "$40\r\n", the hash, "\r\n"
        let mut reply = [0; 47];
        stream.read_exact(&mut reply).await?;
        let hash = std::str::from_utf8(&reply[5..45]).expect("a hash").to_owned();
        let (mut set, mut release) = (Vec::new(), Vec::new());
        let keys: Vec<_> = (0..tasks).map(|task| format!("wire/{part}/{task}")).collect();
        let values: Vec<_> = (0..tasks).map(|task| format!("{:032x}:holder", part * tasks + task)).collect();
        for (key, value) in keys.iter().zip(&values) {
            command(&mut set, &["SET", key, value, "NX", "PX", "20000"]);
        }
        for (keys, values) in keys.chunks(together).zip(values.chunks(together)) {
            let number = keys.len().to_string();
            let begin = ["EVALSHA", &hash, &number].into_iter();
            let words: Vec<&str> = begin.chain(keys.iter().chain(values).map(String::as_str)).collect();
            command(&mut release, &words);
        }
        let (buffer, line) = (vec![0; 1 << 16].into_boxed_slice(), Line::default());
        Ok(Connection { stream, set, release, stragglers: 0, heard: 0, buffer, line })
    }

    /// Takes in what has come.
    fn read(&mut self, context: &mut Context<'_>, granted: &mut [u8]) -> io::Result<()> {
        while self.heard < granted.len() && self.stream.poll_read_ready(context)?.is_ready() {
            match self.stream.try_read(&mut self.buffer) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(length) => self.take_in(length, granted),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Every reply is one line: `+OK` and `:1` grant, `$-1` and `:0` do not, and `:64` is 64 of them.
    fn take_in(&mut self, length: usize, granted: &mut [u8]) {
        for byte in &self.buffer[..length] {
            match (self.line.kind, *byte) {
                (None, kind) => self.line.kind = Some(kind),
                (Some(b':'), digit @ b'0'..=b'9') => {
                    self.line.number = self.line.number * 10 + usize::from(digit - b'0');
                }
                (Some(kind), b'\n') => {
                    assert_ne!(kind, b'-', "a server refused");
                    let is_granted = kind == b'+' || self.line.number > 0;
                    for _ in 0..self.line.number.max(1) {
                        if self.stragglers > 0 {
                            self.stragglers -= 1;
                        } else {
                            granted[self.heard] += u8::from(is_granted);
                            self.heard += 1;
                        }
                    }
                    self.line = Line::default();
                }
                _ => {}
            }
        }
    }
}

fn command(bytes: &mut Vec<u8>, words: &[&str]) {
    bytes.extend(format!("*{}\r\n", words.len()).bytes());
    for word in words {
        bytes.extend(format!("${}\r\n{word}\r\n", word.len()).bytes());
    }
}
