//! The wire format of Redis, RESP2 and RESP3: commands are appended to a buffer, and replies are cut out of one.
//!
//! The replies that a lock meets all the time are read here; what any other one says is left to the crate, once it is known to be
//! whole.

use redis::Value as Wire;

/// Appends commands to a buffer.
pub(super) struct Writer<'a>(pub(super) &'a mut Vec<u8>);

impl Writer<'_> {
    /// Begins a command that has so many parts, its name among them.
    pub(super) fn command(&mut self, parts: usize) {
        self.header(b'*', parts);
    }

    /// One part of a command.
    pub(super) fn part(&mut self, bytes: &[u8]) {
        self.header(b'$', bytes.len());
        self.written(bytes);
        self.written(END);
    }

    /// Bytes as they go over the wire.
    pub(super) fn written(&mut self, bytes: &[u8]) {
        self.0.extend_from_slice(bytes);
    }

    /// One part, put together from several pieces.
    pub(super) fn parts(&mut self, pieces: &[&[u8]]) {
        self.header(b'$', pieces.iter().map(|piece| piece.len()).sum());
        pieces.iter().for_each(|piece| self.written(piece));
        self.written(END);
    }

    /// A number as one part.
    pub(super) fn number(&mut self, number: u64) {
        self.part(decimal(number, &mut [0; 20]));
    }

    /// Of nearly all the length has one digit or two.
    fn header(&mut self, kind: u8, length: usize) {
        match length as u64 {
            length @ 0..10 => self.written(&[kind, digit(length), b'\r', b'\n']),
            length @ 10..100 => {
                self.written(&[kind, digit(length / 10), digit(length % 10), b'\r', b'\n']);
            }
            length => {
                self.written(&[kind]);
                self.written(decimal(length, &mut [0; 20]));
                self.written(END);
            }
        }
    }
}

const END: &[u8] = b"\r\n";

fn digit(number: u64) -> u8 {
    b'0' + number as u8
}

fn decimal(mut number: u64, digits: &mut [u8; 20]) -> &[u8] {
    let mut begin = digits.len();
    loop {
        begin -= 1;
        digits[begin] = digit(number % 10);
        number /= 10;
        if number == 0 {
            return &digits[begin..];
        }
    }
}

/// What came is no reply in this format: nothing that comes after it can be understood.
#[derive(Debug, PartialEq)]
pub(super) struct NoReply;

/// Reads the first reply in `bytes`, and how many bytes it has; `None` if it is not whole yet.
pub(super) fn read(bytes: &[u8]) -> Result<Option<(Wire, usize)>, NoReply> {
    let usual = match bytes {
        [b'+', b'O', b'K', b'\r', b'\n', ..] => Some((Wire::Okay, 5)),
        [b'_', b'\r', b'\n', ..] => Some((Wire::Nil, 3)),
        [b'$', b'-', b'1', b'\r', b'\n', ..] => Some((Wire::Nil, 5)),
        [b':', digit @ b'0'..=b'9', b'\r', b'\n', ..] => Some((Wire::Int((digit - b'0').into()), 4)),
        [b':', tens @ b'0'..=b'9', ones @ b'0'..=b'9', b'\r', b'\n', ..] => {
            Some((Wire::Int((10 * (tens - b'0') + (ones - b'0')).into()), 5))
        }
        [b':', b'-', b'1', b'\r', b'\n', ..] => Some((Wire::Int(-1), 5)),
        _ => None,
    };
    if usual.is_some() {
        return Ok(usual);
    }
    let Some(length) = length(bytes)? else { return Ok(None) };
    match redis::parse_redis_value(&bytes[..length]) {
        Ok(reply) => Ok(Some((reply, length))),
        Err(_) => Err(NoReply),
    }
}

/// How many bytes the first reply has, with all that is nested in it.
fn length(bytes: &[u8]) -> Result<Option<usize>, NoReply> {
    let (mut at, mut missing) = (0_usize, 1_usize);
    while missing > 0 {
        let rest = bytes.get(at..).unwrap_or_default();
        let Some(end) = rest.windows(2).position(|pair| pair == b"\r\n") else {
            return if rest.first().is_none_or(|kind| KINDS.contains(kind)) {
                Ok(None)
            } else {
                Err(NoReply)
            };
        };
        let (kind, line) = rest[..end].split_first().ok_or(NoReply)?;
        at += end + 2;
        missing -= 1;
        let (bytes, parts) = match kind {
            b'+' | b'-' | b':' | b'_' | b',' | b'#' | b'(' => (0, 0),
            b'$' | b'!' | b'=' => (count(line)?.map_or(0, |bytes| bytes + 2), 0),
            b'*' | b'~' | b'>' => (0, count(line)?.unwrap_or(0)),
            b'%' => (0, count(line)?.unwrap_or(0) * 2),
            // What it is said of comes behind it.
            b'|' => (0, count(line)?.unwrap_or(0) * 2 + 1),
            _ => return Err(NoReply),
        };
        at = at.checked_add(bytes).ok_or(NoReply)?;
        missing = missing.checked_add(parts).ok_or(NoReply)?;
    }
    Ok((at <= bytes.len()).then_some(at))
}

const KINDS: &[u8] = b"+-:_,#($!=*~>%|";

/// No reply has more parts, and no part more bytes: a server has a limit of 512 MB.
const MOST: usize = 1 << 29;

/// A length; `None` for that of nothing, -1.
fn count(line: &[u8]) -> Result<Option<usize>, NoReply> {
    if line == b"-1" {
        return Ok(None);
    }
    let text = std::str::from_utf8(line).map_err(|_| NoReply)?;
    text.parse().ok().filter(|count| *count <= MOST).map(Some).ok_or(NoReply)
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::{any, prop_assert_eq, prop_oneof};

    use super::super::wire::tests::any_reply;
    use super::*;
    use crate::random;

    #[test]
    fn a_command_is_written_as_the_crate_writes_it() {
        let parts = prop_oneof![vec(vec(any::<u8>(), 0..140), 1..16), vec(vec(any::<u8>(), 0..4), 1..140)];
        random::check(1024, &(parts, any::<u64>(), 0..140_usize), |(parts, number, middle)| {
            let mut written = Vec::new();
            let mut writer = Writer(&mut written);
            writer.command(parts.len() + 1);
            for (place, part) in parts.iter().enumerate() {
                let (begin, end) = part.split_at(middle.min(part.len()));
                if place % 2 == 0 { writer.part(part) } else { writer.parts(&[begin, end]) }
            }
            writer.number(number);
            let mut command = redis::Cmd::new();
            parts.iter().for_each(|part| {
                command.arg(&part[..]);
            });
            command.arg(number);
            prop_assert_eq!(written, command.get_packed_command());
            Ok(())
        });
    }

    #[test]
    fn a_reply_is_read_as_the_crate_reads_it_however_it_is_cut() {
        random::check(8192, &(any_reply(), any_reply()), |(first, second)| {
            let Ok(expected) = redis::parse_redis_value(&first) else { return Ok(()) };
            let Ok(Some((reply, length))) = read(&first) else {
                // The crate takes what no server sends: a length with blanks, or one below -1.
                return Ok(());
            };
            // By their words, since not a number is not equal to itself.
            prop_assert_eq!(format!("{reply:?}"), format!("{expected:?}"));
            // What follows changes nothing, and no part of it is taken for the whole.
            let read_on = read(&[&first[..], &second].concat());
            prop_assert_eq!(format!("{read_on:?}"), format!("Ok(Some(({expected:?}, {length})))"));
            for end in 0..length {
                prop_assert_eq!(read(&first[..end]), Ok(None), "the first {} bytes", end);
            }
            Ok(())
        });
    }

    #[test]
    fn whatever_a_server_sends_is_a_reply() {
        for (text, expected) in [
            ("+OK\r\n", Wire::Okay),
            ("+PONG\r\n", Wire::SimpleString("PONG".to_owned())),
            (":0\r\n", Wire::Int(0)),
            (":64\r\n", Wire::Int(64)),
            (":-1\r\n", Wire::Int(-1)),
            (":4711\r\n", Wire::Int(4711)),
            ("$-1\r\n", Wire::Nil),
            ("*-1\r\n", Wire::Nil),
            ("_\r\n", Wire::Nil),
            ("$0\r\n\r\n", Wire::BulkString(Vec::new())),
            ("$4\r\n\r\n\r\n\r\n", Wire::BulkString(b"\r\n\r\n".to_vec())),
            ("*0\r\n", Wire::Array(Vec::new())),
            ("*2\r\n$1\r\nv\r\n:7\r\n", Wire::Array(vec![Wire::BulkString(b"v".to_vec()), Wire::Int(7)])),
            ("#t\r\n", Wire::Boolean(true)),
            ("%1\r\n+a\r\n:1\r\n", Wire::Map(vec![(Wire::SimpleString("a".to_owned()), Wire::Int(1))])),
            ("~1\r\n:1\r\n", Wire::Set(vec![Wire::Int(1)])),
        ] {
            assert_eq!(read(text.as_bytes()), Ok(Some((expected, text.len()))), "{text:?}");
        }
        for text in [
            "-NOSCRIPT No matching script\r\n",
            "!5\r\nOOM x\r\n",
            "=7\r\ntxt:abc\r\n",
            ",1.5\r\n",
            "(12\r\n",
        ] {
            let read = read(text.as_bytes()).expect("a reply").expect("a whole one");
            assert_eq!(read.1, text.len(), "{text:?}");
        }
    }

    #[test]
    fn what_is_no_reply_is_told_at_once() {
        for text in
            ["HTTP/1.1 400 Bad Request", "H", "\r\n", "$x\r\n", "$-2\r\n", "*9999999999999\r\n", "?\r\n"]
        {
            assert_eq!(read(text.as_bytes()), Err(NoReply), "{text:?}");
        }
    }
}
