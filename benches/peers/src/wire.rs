//! The wire: an upper bound. No client library; the bytes are made beforehand. All tasks step together: one write for each
//! node with the `SET NX PX` of every task, and when each of them has a majority, one write with the compare-and-delete of
//! every task. It makes no new value for each attempt, keeps no time, and does nothing about failures.

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
    /// The next byte is the first of a reply.
    at_begin: bool,
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
        batches.push(Batch::connect(&order.nodes, part, tasks).await.expect("servers"));
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
    async fn connect(nodes: &[String], part: usize, tasks: usize) -> io::Result<Self> {
        let mut connections = Vec::new();
        for node in nodes {
            connections.push(Connection::open(node, part, tasks).await?);
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
    async fn open(node: &str, part: usize, tasks: usize) -> io::Result<Self> {
        let mut stream = TcpStream::connect(node).await?;
        stream.set_nodelay(true)?;
        let mut load = Vec::new();
        command(&mut load, &["SCRIPT", "LOAD", RELEASE]);
        stream.write_all(&load).await?;
        // "$40\r\n", the hash, "\r\n"
        let mut reply = [0; 47];
        stream.read_exact(&mut reply).await?;
        let hash = std::str::from_utf8(&reply[5..45]).expect("a hash").to_owned();
        let (mut set, mut release) = (Vec::new(), Vec::new());
        for task in 0..tasks {
            let key = format!("wire/{part}/{task}");
            let value = format!("{:032x}:holder", part * tasks + task);
            command(&mut set, &["SET", &key, &value, "NX", "PX", "20000"]);
            command(&mut release, &["EVALSHA", &hash, "1", &key, &value]);
        }
        let buffer = vec![0; 1 << 16].into_boxed_slice();
        Ok(Connection { stream, set, release, stragglers: 0, heard: 0, buffer, at_begin: true })
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

    /// Every reply is one line: `+OK` and `:1` grant, `$-1` and `:0` do not.
    fn take_in(&mut self, length: usize, granted: &mut [u8]) {
        let mut line_begin = self.at_begin;
        for byte in &self.buffer[..length] {
            if line_begin {
                if self.stragglers > 0 {
                    self.stragglers -= 1;
                } else {
                    assert_ne!(*byte, b'-', "a server refused");
                    granted[self.heard] += u8::from(*byte != b'$');
                    self.heard += 1;
                }
            }
            line_begin = *byte == b'\n';
        }
        self.at_begin = line_begin;
    }
}

fn command(bytes: &mut Vec<u8>, words: &[&str]) {
    bytes.extend(format!("*{}\r\n", words.len()).bytes());
    for word in words {
        bytes.extend(format!("${}\r\n{word}\r\n", word.len()).bytes());
    }
}
