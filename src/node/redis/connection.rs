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

/// Of room that was needed once, so much is kept.
const MOST_KEPT: usize = 1024 * 1024;

/// The longest reply that is waited for. Values of ours are short, and what a server says of itself has a few kilobytes.
const LONGEST_REPLY: usize = 64 * 1024 * 1024;

pub(super) struct Connection {
    stream: Box<dyn Stream>,
    outgoing: Vec<u8>,
    /// How many of the outgoing bytes are sent.
    sent: usize,
    /// As long as there is room for; what is read and not yet taken out stands from `begin` to `end`.
    incoming: Vec<u8>,
    begin: usize,
    end: usize,
    /// A reply was taken out, and behind it there may be another.
    has_more: bool,
}

impl Connection {
    pub(super) fn over(stream: impl Stream + 'static) -> Self {
        let stream = Box::new(stream);
        let (outgoing, incoming) = (Vec::new(), vec![0; ROOM]);
        Connection { stream, outgoing, sent: 0, incoming, begin: 0, end: 0, has_more: false }
    }

    /// What goes out with the next [`exchange`](Self::exchange) is appended here.
    pub(super) fn outgoing(&mut self) -> &mut Vec<u8> {
        &mut self.outgoing
    }

    /// Whether something is still to be sent.
    pub(super) fn is_behind(&self) -> bool {
        self.sent < self.outgoing.len()
    }

    /// Whether there may be replies that are read and not taken out.
    fn has_more(&self) -> bool {
        self.has_more && self.begin < self.end
    }

    /// Sends what is to be sent, and waits for something to read, unless there are replies to take out. Dropped, it has done a
    /// part, and goes on from there the next time.
    ///
    /// # Errors
    ///
    /// If the connection is lost.
    pub(super) async fn exchange(&mut self) -> io::Result<()> {
        poll_fn(|context| self.poll_exchange(context)).await
    }

    pub(super) fn poll_exchange(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let sent = self.poll_send(context);
        if self.has_more() {
            return Poll::Ready(Ok(()));
        }
        // What was answered before the end is still read.
        match (self.poll_read(context), sent) {
            (Poll::Pending, Poll::Ready(Err(lost))) => Poll::Ready(Err(lost)),
            (read, _) => read,
        }
    }

    /// Sends as much as is possible without waiting. False if that is not all, or if the connection is lost, which the next
    /// [`exchange`](Self::exchange) says.
    pub(super) fn send_what_can_be_sent(&mut self, context: &mut Context<'_>) -> bool {
        matches!(self.poll_send(context), Poll::Ready(Ok(())))
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
            self.outgoing.shrink_to(MOST_KEPT);
            self.sent = 0;
        }
        // TLS keeps what it has encrypted until it is told to send it.
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_read(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        if !self.make_room() {
            return Poll::Ready(Err(io::Error::other("a reply without an end")));
        }
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

    /// False if there is none to be had.
    fn make_room(&mut self) -> bool {
        if self.begin == self.end {
            (self.begin, self.end) = (0, 0);
            if self.incoming.len() > MOST_KEPT {
                self.incoming = vec![0; ROOM];
            }
        } else if self.end == self.incoming.len() {
            self.incoming.copy_within(self.begin..self.end, 0);
            (self.begin, self.end) = (0, self.end - self.begin);
        }
        if self.end == self.incoming.len() && self.end < LONGEST_REPLY {
            self.incoming.resize(self.end * 2, 0);
        }
        self.end < self.incoming.len()
    }

    /// Takes out the next reply that has been read; `None` if none is whole.
    ///
    /// # Errors
    ///
    /// If what was read is no reply.
    pub(super) fn next_reply(&mut self) -> Result<Option<Wire>, NoReply> {
        let reply = match &self.incoming[self.begin..self.end] {
            [] => None,
            unread => resp::read(unread)?,
        };
        self.has_more = reply.is_some();
        Ok(reply.map(|(reply, length)| {
            self.begin += length;
            reply
        }))
    }
}

#[cfg(test)]
mod tests {
    use std::task::Waker;

    use futures::FutureExt;
    use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};

    use super::*;

    #[tokio::test]
    async fn all_is_sent_in_order_however_slowly_it_is_read() {
        let (ours, mut theirs) = duplex(1_000);
        let mut connection = Connection::over(ours);
        let text: Vec<u8> = (0..100_000_u32).map(|place| (place % 251) as u8).collect();
        connection.outgoing().extend(&text[..60_000]);
        let reader = tokio::spawn(async move {
            let mut read = vec![0; 100_000];
            theirs.read_exact(&mut read).await.expect("the other end is there");
            theirs.write_all(b"+OK\r\n").await.expect("the other end is there");
            read
        });
        // What comes on top while it is under way goes behind it.
        assert!(!connection.send_what_can_be_sent(&mut Context::from_waker(Waker::noop())));
        assert!(connection.is_behind());
        connection.outgoing().extend(&text[60_000..]);
        connection.exchange().await.expect("the other end is there");
        assert_eq!(connection.next_reply(), Ok(Some(Wire::Okay)));
        assert!(!connection.is_behind());
        assert!(reader.await.expect("no panic") == text);
    }

    #[tokio::test]
    async fn nothing_is_waited_for_while_there_are_replies_to_take_out() {
        let (ours, mut theirs) = duplex(1_000);
        let mut connection = Connection::over(ours);
        theirs.write_all(b"+OK\r\n:1\r\n:2").await.expect("the other end is there");
        connection.exchange().await.expect("the other end is there");
        assert_eq!(connection.next_reply(), Ok(Some(Wire::Okay)));
        connection.outgoing().extend(b"more");
        connection.exchange().now_or_never().expect("a reply is there").expect("the other end is there");
        assert!(!connection.is_behind(), "it was sent all the same");
        assert_eq!(connection.next_reply(), Ok(Some(Wire::Int(1))));
        assert_eq!(connection.next_reply(), Ok(None), "not whole");
        assert!(connection.exchange().now_or_never().is_none());
        theirs.write_all(b"\r\n").await.expect("the other end is there");
        connection.exchange().await.expect("the other end is there");
        assert_eq!(connection.next_reply(), Ok(Some(Wire::Int(2))));
        assert!(!connection.has_more());
    }

    #[tokio::test]
    async fn a_long_reply_gets_its_room_and_gives_it_back() {
        let (ours, mut theirs) = duplex(64 * 1024);
        let mut connection = Connection::over(ours);
        let text = vec![b'v'; 3 * 1024 * 1024];
        let replies = [format!("+OK\r\n${}\r\n", text.len()).as_bytes(), &text, b"\r\n:1\r\n"].concat();
        tokio::spawn(async move { theirs.write_all(&replies).await });
        let mut read = Vec::new();
        while read.len() < 3 {
            match connection.next_reply().expect("replies") {
                Some(reply) => read.push(reply),
                None => connection.exchange().await.expect("more to come"),
            }
        }
        assert!(read == [Wire::Okay, Wire::BulkString(text), Wire::Int(1)]);
        connection.exchange().await.expect_err("the other end is gone");
        assert_eq!(connection.incoming.len(), ROOM);
    }

    #[tokio::test]
    async fn a_reply_without_an_end_ends_the_connection() {
        let (ours, mut theirs) = duplex(1024 * 1024);
        let mut connection = Connection::over(ours);
        tokio::spawn(async move {
            let text = vec![b'x'; 1024 * 1024];
            while theirs.write_all(&text).await.is_ok() {}
        });
        let lost = loop {
            if let Err(lost) = connection.exchange().await {
                break lost;
            }
        };
        assert_eq!(lost.to_string(), "a reply without an end");
        assert_eq!(connection.end, LONGEST_REPLY);
    }
}
