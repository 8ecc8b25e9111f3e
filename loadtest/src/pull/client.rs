//! The load: connections with one request under way on each, as fast as the other side answers.
//!
//! In: connected sockets, each with the bytes of its request, and the dialect they speak; out: answers counted in a window of
//! time. nginx and the gateway are asked by the same code. It is a loop of its own over epoll, because the generator shares
//! the cores with what it measures: a request costs it a read, a look at the head and a write.
//!
//! Always: whatever is not the answer expected ends the measurement as an error, or is counted as refused.

use std::io::{self, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow, bail};
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags};
use tidegate_proto::v1::{self, Close};
use tidegate_proto::{HEAD_BYTES, Head, Kind};

use crate::clock::thread_cpu;

/// Bytes of one read at most: some answers.
const READ_BYTES: usize = 256 * 1024;

/// Sockets looked at in one turn.
const EVENTS_MAX: usize = 256;

/// Longest sleep, so that the end is noticed.
const WAIT_MS: u16 = 10;

/// Nothing at all came for this long: the other side hangs.
const SILENCE_MAX: Duration = Duration::from_secs(10);

/// Of an answer's head; both servers stay far below.
const HEAD_BYTES_MAX: usize = 4096;

/// What a connection speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dialect {
    /// HTTP/1.1, kept alive.
    Http,
    /// Frames: a Pull is answered by a PullReply; pushes may come between.
    Frames,
}

/// One connection and what it asks for.
pub struct Asker {
    /// Connected; if something is to be said first, that is done.
    pub stream: TcpStream,
    /// Bytes of a request.
    pub request: Arc<[u8]>,
    /// What came already, behind what was said first.
    pub received: Vec<u8>,
}

/// When to count.
#[derive(Clone, Copy, Debug)]
pub struct Window {
    /// From the first request on, for so long nothing is counted.
    pub warmup: Duration,
    /// Then for so long.
    pub counted: Duration,
}

/// What was counted in the window.
#[derive(Clone, Copy, Debug, Default)]
pub struct Counted {
    /// Answers.
    pub answers: u64,
    /// Bytes of their bodies.
    pub body_bytes: u64,
    /// "Slow down" instead of an answer; only [`Dialect::Frames`] has it.
    pub refused: u64,
    /// CPU time of the generator's threads.
    pub cpu: Duration,
    /// What the server's processes used, in seconds, if it can be known.
    pub server_cpu_s: Option<f64>,
}

/// Plays all askers on so many threads.
///
/// # Errors
/// What the other side did wrong.
pub fn play(
    dialect: Dialect,
    mut askers: Vec<Asker>,
    threads: usize,
    window: Window,
    server_cpu_s: impl Fn() -> Option<f64>,
    stop: &AtomicBool,
) -> anyhow::Result<Counted> {
    let share = askers.len().div_ceil(threads).max(1);
    let mut shares = Vec::new();
    while !askers.is_empty() {
        shares.push(askers.split_off(askers.len().saturating_sub(share)));
    }
    let begins = Instant::now() + window.warmup;
    let ends = begins + window.counted;
    std::thread::scope(|scope| {
        let lanes: Vec<_> = shares
            .into_iter()
            .map(|share| scope.spawn(move || Lane::new(dialect, share)?.run(begins, ends, stop)))
            .collect();
        std::thread::sleep(begins.saturating_duration_since(Instant::now()));
        let before = server_cpu_s();
        std::thread::sleep(ends.saturating_duration_since(Instant::now()));
        let after = server_cpu_s();
        let mut all =
            Counted { server_cpu_s: before.zip(after).map(|(before, after)| after - before), ..<_>::default() };
        for lane in lanes {
            let counted = lane.join().map_err(|_| anyhow!("a generator thread panicked"))??;
            all.answers += counted.answers;
            all.body_bytes += counted.body_bytes;
            all.refused += counted.refused;
            all.cpu += counted.cpu;
        }
        Ok(all)
    })
}

/// One thread's connections.
struct Lane {
    dialect: Dialect,
    epoll: Epoll,
    peers: Vec<Peer>,
    counted: Counted,
}

struct Peer {
    asker: Asker,
    /// Bytes of a head that is not whole yet.
    head: Vec<u8>,
    /// What comes now.
    incoming: Incoming,
    body_left: usize,
}

/// What the bytes behind a head are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Incoming {
    Answer,
    Refusal,
    /// A push nobody asked for.
    Other,
}

impl Lane {
    fn new(dialect: Dialect, askers: Vec<Asker>) -> anyhow::Result<Self> {
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        let mut peers = Vec::new();
        for (index, asker) in askers.into_iter().enumerate() {
            asker.stream.set_nonblocking(true)?;
            epoll.add(&asker.stream, EpollEvent::new(EpollFlags::EPOLLIN, index as u64))?;
            peers.push(Peer { asker, head: Vec::new(), incoming: Incoming::Other, body_left: 0 });
        }
        Ok(Self { dialect, epoll, peers, counted: Counted::default() })
    }

    fn run(mut self, begins: Instant, ends: Instant, stop: &AtomicBool) -> anyhow::Result<Counted> {
        for index in 0..self.peers.len() {
            let received = std::mem::take(&mut self.peers[index].asker.received);
            self.digest(index, &received)?;
            self.peers[index].ask()?;
        }
        let mut buffer = vec![0; READ_BYTES];
        let mut events = [EpollEvent::empty(); EVENTS_MAX];
        let mut cpu_before = None;
        let mut heard_at = Instant::now();
        loop {
            let count = self.epoll.wait(&mut events, WAIT_MS)?;
            let now = Instant::now();
            if now >= ends {
                break;
            }
            if now >= begins && cpu_before.is_none() {
                cpu_before = Some(thread_cpu());
                self.counted = Counted::default();
            }
            match count {
                0 if now - heard_at > SILENCE_MAX => bail!("no answer for {SILENCE_MAX:?}"),
                0 if stop.load(Ordering::Relaxed) => bail!("interrupted"),
                0 => {}
                _ => heard_at = now,
            }
            for event in &events[..count] {
                let index = usize::try_from(event.data()).expect("it was an index");
                self.read(index, &mut buffer)?;
            }
            if stop.load(Ordering::Relaxed) {
                bail!("interrupted");
            }
        }
        self.counted.cpu = thread_cpu().saturating_sub(cpu_before.unwrap_or_default());
        Ok(self.counted)
    }

    fn read(&mut self, index: usize, buffer: &mut [u8]) -> anyhow::Result<()> {
        match self.peers[index].asker.stream.read(buffer) {
            Ok(0) => bail!("the server closed a connection"),
            Ok(count) => self.digest(index, &buffer[..count]),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Goes through what came, and asks again when it ends an answer.
    fn digest(&mut self, index: usize, mut bytes: &[u8]) -> anyhow::Result<()> {
        let peer = &mut self.peers[index];
        while !bytes.is_empty() {
            if peer.body_left == 0 {
                let Some((taken, incoming, body)) = peer.take_head(self.dialect, bytes)? else { return Ok(()) };
                bytes = &bytes[taken..];
                (peer.incoming, peer.body_left) = (incoming, body);
                match incoming {
                    Incoming::Answer => self.counted.body_bytes += body as u64,
                    Incoming::Refusal => self.counted.refused += 1,
                    Incoming::Other => {}
                }
            }
            let taken = peer.body_left.min(bytes.len());
            bytes = &bytes[taken..];
            peer.body_left -= taken;
            if peer.body_left == 0 && peer.incoming != Incoming::Other {
                self.counted.answers += u64::from(peer.incoming == Incoming::Answer);
                peer.incoming = Incoming::Other;
                peer.ask()?;
            }
        }
        Ok(())
    }
}

impl Peer {
    /// Writes the request. It is small and the only one: a socket that does not take it is broken.
    fn ask(&mut self) -> anyhow::Result<()> {
        let written = self.asker.stream.write(&self.asker.request).context("a request could not be written")?;
        if written < self.asker.request.len() { Err(anyhow!("a socket did not take a whole request")) } else { Ok(()) }
    }

    /// Reads a head from what is left of an earlier read and `bytes`: bytes of `bytes` it took, what it heads, and how many
    /// bytes of that follow. `None` if it is not whole yet; all of `bytes` is kept then.
    fn take_head(&mut self, dialect: Dialect, bytes: &[u8]) -> anyhow::Result<Option<(usize, Incoming, usize)>> {
        let read = |bytes: &[u8]| match dialect {
            Dialect::Http => http_head(bytes),
            Dialect::Frames => frame_head(bytes),
        };
        if self.head.is_empty() {
            if let Some(head) = read(bytes)? {
                return Ok(Some(head));
            }
            self.head.extend_from_slice(bytes);
            return Ok(None);
        }
        let kept = self.head.len();
        self.head.extend_from_slice(bytes);
        let Some((taken, incoming, body)) = read(&self.head)? else { return Ok(None) };
        self.head.clear();
        Ok(Some((taken.checked_sub(kept).context("a head was whole before it was read")?, incoming, body)))
    }
}

/// `None` if more bytes are needed.
fn http_head(bytes: &[u8]) -> anyhow::Result<Option<(usize, Incoming, usize)>> {
    let Some(end) = bytes.windows(4).position(|four| four == b"\r\n\r\n") else {
        if bytes.len() > HEAD_BYTES_MAX {
            bail!("an HTTP head is longer than {HEAD_BYTES_MAX} bytes");
        }
        return Ok(None);
    };
    let head = &bytes[..end];
    if !head.starts_with(b"HTTP/1.1 200 ") {
        bail!("an HTTP answer is not 200: {}", String::from_utf8_lossy(&head[..head.len().min(200)]));
    }
    let length = header(head, "content-length").and_then(|value| value.parse().ok());
    let length = length.context("an HTTP answer does not say its length")?;
    Ok(Some((end + 4, Incoming::Answer, length)))
}

/// `None` if more bytes are needed.
fn frame_head(bytes: &[u8]) -> anyhow::Result<Option<(usize, Incoming, usize)>> {
    let Some(first) = bytes.first_chunk::<HEAD_BYTES>() else { return Ok(None) };
    let head = Head::parse(*first)?;
    let length = head.payload_bytes as usize;
    let payload = &bytes[HEAD_BYTES..];
    let incoming = match Kind::try_from(i32::from(head.kind)) {
        Ok(Kind::PullReply) => Incoming::Answer,
        Ok(Kind::Error | Kind::Close) if payload.len() < length => return Ok(None),
        Ok(Kind::Error) => {
            let error: v1::Error = prost::Message::decode(&payload[..length])?;
            if error.code() != v1::Code::SlowDown {
                bail!("a pull was refused: {} {}", error.code().as_str_name(), error.text);
            }
            return Ok(Some((HEAD_BYTES + length, Incoming::Refusal, 0)));
        }
        Ok(Kind::Close) => {
            let close: Close = prost::Message::decode(&payload[..length])?;
            bail!("a connection was closed: {} {}", close.code, close.text);
        }
        _ => Incoming::Other,
    };
    Ok(Some((HEAD_BYTES, incoming, length)))
}

/// The value of a header in a head, without spaces around it. `name` in lower case.
fn header<'a>(head: &'a [u8], name: &str) -> Option<&'a str> {
    let value = |line: &'a [u8]| {
        let colon = line.iter().position(|byte| *byte == b':')?;
        line[..colon].eq_ignore_ascii_case(name.as_bytes()).then_some(&line[colon + 1..])
    };
    let value = head.split(|byte| *byte == b'\n').find_map(value)?;
    std::str::from_utf8(value).ok().map(str::trim)
}

/// A whole answer over HTTP.
#[derive(Debug)]
pub struct Answer {
    /// Its type.
    pub content_type: String,
    /// Its bytes.
    pub body: Vec<u8>,
}

/// Asks once.
///
/// # Errors
/// If the answer is not a good one, or does not come.
pub fn fetch(address: SocketAddr, request: &[u8]) -> anyhow::Result<Answer> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(SILENCE_MAX))?;
    stream.write_all(request)?;
    let (mut bytes, mut buffer) = (Vec::new(), vec![0; READ_BYTES]);
    loop {
        if let Some((head, _, body)) = http_head(&bytes)?
            && bytes.len() >= head + body
        {
            let content_type = header(&bytes[..head], "content-type").unwrap_or_default().to_owned();
            return Ok(Answer { content_type, body: bytes[head..head + body].to_vec() });
        }
        match stream.read(&mut buffer)? {
            0 => bail!("the server closed the connection"),
            count => bytes.extend_from_slice(&buffer[..count]),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use tidegate_proto::frame;

    use super::*;

    const WINDOW: Window = Window { warmup: Duration::from_millis(20), counted: Duration::from_millis(100) };

    /// A server that answers each request of `request` bytes with the next of `answers`, a few bytes at a time.
    fn serve(request: usize, answers: Vec<Vec<u8>>) -> SocketAddr {
        let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let address = listener.local_addr().unwrap();
        std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            stream.set_nodelay(true).unwrap();
            let mut asked = vec![0; request];
            for answer in answers.iter().cycle() {
                if stream.read_exact(&mut asked).is_err() {
                    return;
                }
                for part in answer.chunks(7) {
                    if stream.write_all(part).is_err() {
                        return;
                    }
                }
            }
        });
        address
    }

    fn play_one(dialect: Dialect, address: SocketAddr) -> anyhow::Result<Counted> {
        let stream = TcpStream::connect(address).unwrap();
        let asker = Asker { stream, request: b"ask".as_slice().into(), received: Vec::new() };
        play(dialect, vec![asker], 1, WINDOW, || Some(0.0), &AtomicBool::new(false))
    }

    #[test]
    fn http_answers_are_counted_however_they_are_cut() {
        let answer = b"HTTP/1.1 200 OK\r\nx: y\r\nContent-Length: 20\r\n\r\n01234567890123456789";
        let counted = play_one(Dialect::Http, serve(3, vec![answer.to_vec()])).unwrap();
        assert!(counted.answers > 10, "{counted:?}");
        assert!(counted.body_bytes.abs_diff(20 * counted.answers) <= 20, "{counted:?}");
        assert_eq!(counted.refused, 0);
    }

    #[test]
    fn another_status_ends_the_measurement() {
        let answer = b"HTTP/1.1 503 Service Unavailable\r\ncontent-length: 0\r\n\r\n";
        let error = play_one(Dialect::Http, serve(3, vec![answer.to_vec()])).expect_err("503");
        assert!(error.to_string().contains("503"), "{error}");
    }

    #[test]
    fn frames_are_counted_by_kind() {
        let mut answer = bytes::BytesMut::new();
        let notice = v1::NotifyNewMessages { conversation_id: "lobby_main".to_owned(), ..<_>::default() };
        frame::put_message(&mut answer, Kind::NotifyNewMessages, 0, &notice);
        let reply = v1::PullReply { conversation_id: "lobby_main".to_owned(), ..<_>::default() };
        frame::put_message(&mut answer, Kind::PullReply, 1, &reply);
        let mut refusal = bytes::BytesMut::new();
        let error = v1::Error { code: v1::Code::SlowDown.into(), ..<_>::default() };
        frame::put_message(&mut refusal, Kind::Error, 1, &error);
        let counted = play_one(Dialect::Frames, serve(3, vec![answer.to_vec(), refusal.to_vec()])).unwrap();
        assert!(counted.answers > 10 && counted.answers.abs_diff(counted.refused) <= 1, "{counted:?}");
    }

    #[test]
    fn an_error_other_than_slow_down_ends_the_measurement() {
        let mut refusal = bytes::BytesMut::new();
        let error = v1::Error { code: v1::Code::Unavailable.into(), text: "away".to_owned(), ..<_>::default() };
        frame::put_message(&mut refusal, Kind::Error, 1, &error);
        let error = play_one(Dialect::Frames, serve(3, vec![refusal.to_vec()])).expect_err("refused");
        assert!(error.to_string().contains("away"), "{error}");
    }
}
