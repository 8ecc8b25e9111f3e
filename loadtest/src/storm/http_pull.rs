//! Pulls over HTTP: a bounded pool of kept-alive connections that carry the pulls of all watchers of a thread, one at a
//! time each. Written by hand, since a client made for convenience would be the bottleneck of this measurement.
//!
//! In: watchers with what they ask; out: their answers. What finds no free connection waits in a queue; a watcher is in
//! it at most once, so the queue is no longer than there are watchers.

use std::collections::VecDeque;
use std::io;
use std::net::{SocketAddr, TcpStream};

use super::line::Line;

/// What a watcher asks.
#[derive(Clone, Copy, Debug)]
pub struct Request {
    /// Index of the watcher.
    pub watcher: u32,
    /// The last sequence it has.
    pub after_seq: u64,
    /// 0: what is newest.
    pub before_seq: u64,
}

/// The end of one request.
#[derive(Debug, PartialEq, Eq)]
pub struct Response<'a> {
    /// Index of the watcher.
    pub watcher: u32,
    /// As HTTP has it.
    pub status: u16,
    /// The payload of a PullReply if the status is 200.
    pub body: &'a [u8],
    /// Bytes of the whole response.
    pub bytes: usize,
}

#[derive(Debug, Default)]
struct Place {
    line: Option<Line>,
    request: Option<Request>,
}

/// The pool of one thread.
#[derive(Debug)]
pub struct HttpPool {
    address: SocketAddr,
    places: Vec<Place>,
    free: Vec<usize>,
    waiting: VecDeque<Request>,
    /// Connections that were opened.
    pub opened: u64,
}

impl HttpPool {
    /// So many connections, opened when they are needed.
    pub fn new(address: SocketAddr, connections: usize) -> Self {
        let places = (0..connections).map(|_| Place::default()).collect();
        Self { address, places, free: (0..connections).rev().collect(), waiting: VecDeque::new(), opened: 0 }
    }

    /// Asks as soon as a connection is free.
    pub fn ask(&mut self, request: Request) {
        self.waiting.push_back(request);
    }

    /// Gives free connections what waits. `put` writes a request; `watch` is told of each new socket with its place.
    ///
    /// # Errors
    /// If a connection cannot be opened.
    pub fn dispatch(
        &mut self,
        now_ns: u64,
        mut put: impl FnMut(&mut bytes::BytesMut, &Request),
        mut watch: impl FnMut(&TcpStream, usize) -> io::Result<()>,
    ) -> io::Result<()> {
        while !self.waiting.is_empty()
            && let Some(place) = self.free.pop()
        {
            let request = self.waiting.pop_front().expect("it is not empty");
            let slot = &mut self.places[place];
            if slot.line.is_none() {
                let stream = TcpStream::connect(self.address)?;
                stream.set_nodelay(true)?;
                stream.set_nonblocking(true)?;
                watch(&stream, place)?;
                slot.line = Some(Line::new(stream, &[], now_ns));
                self.opened += 1;
            }
            slot.request = Some(request);
            let line = slot.line.as_mut().expect("it has just been opened if it was not");
            put(&mut line.out, &request);
            // A request is far smaller than a socket's buffer, and the connection had nothing else to write.
            if !line.flush(now_ns).is_ok_and(|is_written| is_written) {
                self.lose(place);
                // In the next turn again.
                break;
            }
        }
        Ok(())
    }

    /// Reads what has arrived at a place and calls `take` for a response that is complete.
    pub fn read(&mut self, place: usize, buffer: &mut [u8], mut take: impl FnMut(Response<'_>)) {
        let Some(line) = &mut self.places[place].line else { return };
        let filled = match line.read(buffer) {
            Ok(Some((filled, _))) => filled,
            Ok(None) => return,
            Err(_) => return self.lose(place),
        };
        let bytes = &buffer[..filled];
        match parse(bytes) {
            Parsed::Unfinished => line.keep(bytes),
            Parsed::Whole { status, body, bytes: taken, closes } => {
                let Some(request) = self.places[place].request.take() else { return self.lose(place) };
                take(Response { watcher: request.watcher, status, body, bytes: taken });
                if closes || taken < filled {
                    self.places[place].line = None;
                }
                self.free.push(place);
            }
            Parsed::Wrong => {
                if let Some(request) = self.places[place].request.take() {
                    take(Response { watcher: request.watcher, status: 0, body: &[], bytes: filled });
                    self.free.push(place);
                }
                self.places[place].line = None;
            }
        }
    }

    /// The connection has ended: what was asked on it is asked again on another.
    fn lose(&mut self, place: usize) {
        self.places[place].line = None;
        if let Some(request) = self.places[place].request.take() {
            self.waiting.push_front(request);
            self.free.push(place);
        }
    }
}

#[derive(Debug, PartialEq, Eq)]
enum Parsed<'a> {
    Unfinished,
    Whole {
        status: u16,
        body: &'a [u8],
        bytes: usize,
        closes: bool,
    },
    /// Not what this client understands: no length, or no HTTP.
    Wrong,
}

fn parse(bytes: &[u8]) -> Parsed<'_> {
    let Some(head_bytes) = bytes.windows(4).position(|end| end == b"\r\n\r\n") else {
        return if bytes.len() > 16 * 1024 { Parsed::Wrong } else { Parsed::Unfinished };
    };
    let Ok(head) = std::str::from_utf8(&bytes[..head_bytes]) else { return Parsed::Wrong };
    let mut lines = head.split("\r\n");
    let status = lines.next().and_then(|line| line.strip_prefix("HTTP/1.1 ")?.get(..3)?.parse().ok());
    let (mut length, mut closes) = (None, false);
    for (name, value) in lines.filter_map(|line| line.split_once(':')) {
        if name.eq_ignore_ascii_case("content-length") {
            length = value.trim().parse::<usize>().ok();
        } else if name.eq_ignore_ascii_case("connection") {
            closes = value.trim().eq_ignore_ascii_case("close");
        }
    }
    // Neither has a body, whatever its length says.
    if matches!(status, Some(204 | 304)) {
        length = Some(0);
    }
    let (Some(status), Some(length)) = (status, length) else { return Parsed::Wrong };
    let start = head_bytes + 4;
    match bytes.get(start..start + length) {
        Some(body) => Parsed::Whole { status, body, bytes: start + length, closes },
        None => Parsed::Unfinished,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_response_is_whole_at_its_last_byte_and_not_before() {
        let wire = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\netag: \"x\"\r\n\r\nhello";
        for cut in 0..wire.len() {
            assert_eq!(parse(&wire[..cut]), Parsed::Unfinished, "cut at {cut}");
        }
        assert_eq!(parse(wire), Parsed::Whole { status: 200, body: b"hello", bytes: wire.len(), closes: false });
    }

    #[test]
    fn what_it_does_not_understand_is_wrong_and_not_waited_for() {
        assert_eq!(parse(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello"), Parsed::Wrong);
        assert_eq!(parse(b"SSH-2.0-OpenSSH\r\n\r\n"), Parsed::Wrong);
        let none = b"HTTP/1.1 304 Not Modified\r\ncontent-length: 99\r\nconnection: close\r\n\r\n";
        assert_eq!(parse(none), Parsed::Whole { status: 304, body: b"", bytes: none.len(), closes: true });
    }
}
