//! A connection to a server: bytes that go out together, and replies in the order in which they come. It knows nothing of what
//! they mean.

use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use redis::Value as Wire;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::resp::{self, NoReply};

/// What bytes can be sent through: TCP, a Unix socket, TLS.
pub(super) trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}

impl<S: AsyncRead + AsyncWrite + Unpin + Send> Stream for S {}

/// Room for the replies to about a thousand commands.
const ROOM: usize = 8 * 1024;

pub(super) struct Connection {
    stream: Box<dyn Stream>,
    outgoing: Vec<u8>,
    /// How many of the outgoing bytes are sent.
    sent: usize,
    /// As long as there is room for; what is read and not yet taken out stands from `begin` to `end`.
    incoming: Vec<u8>,
    begin: usize,
    end: usize,
}

impl Connection {
    pub(super) fn over(stream: impl Stream + 'static) -> Self {
        let stream = Box::new(stream);
        Connection { stream, outgoing: Vec::new(), sent: 0, incoming: vec![0; ROOM], begin: 0, end: 0 }
    }

    /// What goes out with the next [`exchange`](Self::exchange) is appended here.
    pub(super) fn outgoing(&mut self) -> &mut Vec<u8> {
        &mut self.outgoing
    }

    /// Whether something is still to be sent.
    pub(super) fn is_behind(&self) -> bool {
        self.sent < self.outgoing.len()
    }

    /// Sends what is to be sent, and waits for something to read. Dropped, it has done a part, and goes on from there the next
    /// time.
    ///
    /// # Errors
    ///
    /// If the connection is lost.
    pub(super) async fn exchange(&mut self) -> io::Result<()> {
        poll_fn(|context| {
            let sent = self.poll_send(context);
            // What was answered before the end is still read.
            match (self.poll_read(context), sent) {
                (Poll::Pending, Poll::Ready(Err(lost))) => Poll::Ready(Err(lost)),
                (read, _) => read,
            }
        })
        .await
    }

    /// Sends as much as is possible without waiting.
    pub(super) async fn send_what_can_be_sent(&mut self) {
        poll_fn(|context| {
            let _ = self.poll_send(context);
            Poll::Ready(())
        })
        .await;
    }

    fn poll_send(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.is_behind() {
            let rest = &self.outgoing[self.sent..];
            match Pin::new(&mut self.stream).poll_write(context, rest) {
                Poll::Ready(Ok(0)) => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                Poll::Ready(Ok(sent)) => self.sent += sent,
                Poll::Ready(Err(lost)) => return Poll::Ready(Err(lost)),
                Poll::Pending => return Poll::Pending,
            }
        }
        if self.sent > 0 {
            self.outgoing.clear();
            self.sent = 0;
        }
        // TLS keeps what it has encrypted until it is told to send it.
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_read(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.make_room();
        let mut room = ReadBuf::new(&mut self.incoming[self.end..]);
        match Pin::new(&mut self.stream).poll_read(context, &mut room) {
            Poll::Ready(Ok(())) if room.filled().is_empty() => {
                Poll::Ready(Err(io::ErrorKind::UnexpectedEof.into()))
            }
            Poll::Ready(Ok(())) => {
                self.end += room.filled().len();
                Poll::Ready(Ok(()))
            }
            Poll::Ready(Err(lost)) => Poll::Ready(Err(lost)),
            Poll::Pending => Poll::Pending,
        }
    }

    fn make_room(&mut self) {
        if self.begin == self.end {
            (self.begin, self.end) = (0, 0);
        } else if self.end == self.incoming.len() {
            self.incoming.copy_within(self.begin..self.end, 0);
            (self.begin, self.end) = (0, self.end - self.begin);
        }
        if self.end == self.incoming.len() {
            self.incoming.resize(self.end * 2, 0);
        }
    }

    /// Takes out the next reply that has been read; `None` if none is whole.
    ///
    /// # Errors
    ///
    /// If what was read is no reply.
    pub(super) fn next_reply(&mut self) -> Result<Option<Wire>, NoReply> {
        if self.begin == self.end {
            return Ok(None);
        }
        let Some((reply, length)) = resp::read(&self.incoming[self.begin..self.end])? else {
            return Ok(None);
        };
        self.begin += length;
        Ok(Some(reply))
    }
}
