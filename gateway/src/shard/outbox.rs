//! The outbox: encoded frames that one connection has still to take, bounded in bytes.
//!
//! Frames are shared slices: a push to ten thousand connections is one buffer. What the socket takes at once never stays
//! here; an empty outbox owns no memory. Policy when full: the add is refused, and the shard closes the connection as a
//! slow consumer, whose Close frame goes behind the frame that is half sent.

use std::collections::VecDeque;
use std::io::{self, IoSlice};

use bytes::{Buf, Bytes};

/// Slices handed to the kernel at once (UIO_MAXIOV is 1024; more than this gains nothing).
const SLICES_MAX: usize = 64;

/// See the module.
#[derive(Debug, Default)]
pub struct Outbox {
    pieces: VecDeque<Piece>,
    pending_bytes: usize,
    /// The first frame is partly sent: it must be finished before anything else.
    is_front_begun: bool,
    /// Pushes that wait for the reply to a login, which they must not precede.
    held: Option<Box<Held>>,
}

/// A whole frame, or a part of one: a head of its own before a payload that many share.
#[derive(Debug)]
struct Piece {
    bytes: Bytes,
    ends_frame: bool,
}

impl Piece {
    fn whole(bytes: Bytes) -> Self {
        Self { bytes, ends_frame: true }
    }
}

/// Apart, because few connections are in the middle of a login.
#[derive(Debug, Default)]
struct Held {
    frames: Vec<Bytes>,
}

/// The frame does not fit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OutboxFull;

/// What a flush left behind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flushed {
    /// Everything was taken.
    Empty,
    /// The socket takes no more for now.
    Blocked,
}

impl Outbox {
    /// Adds a frame at the end.
    ///
    /// # Errors
    /// [`OutboxFull`] if more than `bytes_max` would be pending; nothing was added.
    pub fn enqueue(&mut self, frame: Bytes, bytes_max: usize) -> Result<(), OutboxFull> {
        if self.pending_bytes + frame.len() > bytes_max {
            return Err(OutboxFull);
        }
        self.pending_bytes += frame.len();
        self.pieces.push_back(Piece::whole(frame));
        Ok(())
    }

    /// Adds a frame in two pieces, so that what many share is not copied.
    ///
    /// # Errors
    /// As for [`Outbox::enqueue`].
    pub fn enqueue_shared(&mut self, head: Bytes, payload: Bytes, bytes_max: usize) -> Result<(), OutboxFull> {
        if self.pending_bytes + head.len() + payload.len() > bytes_max {
            return Err(OutboxFull);
        }
        self.pending_bytes += head.len() + payload.len();
        self.pieces.push_back(Piece { bytes: head, ends_frame: payload.is_empty() });
        if !payload.is_empty() {
            self.pieces.push_back(Piece::whole(payload));
        }
        Ok(())
    }

    /// Keeps a push back until [`Outbox::release`]. It counts from now on.
    ///
    /// # Errors
    /// As for [`Outbox::enqueue`].
    pub fn hold(&mut self, frame: Bytes, bytes_max: usize) -> Result<(), OutboxFull> {
        if self.pending_bytes + frame.len() > bytes_max {
            return Err(OutboxFull);
        }
        self.pending_bytes += frame.len();
        self.held.get_or_insert_default().frames.push(frame);
        Ok(())
    }

    /// Adds the login's reply, which has room whatever is pending, and behind it what was held back.
    pub fn release(&mut self, reply: Bytes) {
        self.pending_bytes += reply.len();
        self.pieces.push_back(Piece::whole(reply));
        self.pieces.extend(self.held.take().into_iter().flat_map(|held| held.frames).map(Piece::whole));
    }

    /// The login failed: what was held back is not for whoever logs in next.
    pub fn drop_held(&mut self) {
        let held = self.held.take().into_iter().flat_map(|held| held.frames);
        self.pending_bytes -= held.map(|frame| frame.len()).sum::<usize>();
    }

    /// Drops what has not begun to leave and makes `last` the end: the stream stays whole, and memory is freed.
    pub fn end_with(&mut self, last: Bytes) {
        self.held = None;
        let front = self.pieces.iter().position(|piece| piece.ends_frame).map_or(0, |at| at + 1);
        self.pieces.truncate(if self.is_front_begun { front } else { 0 });
        self.pieces.push_back(Piece::whole(last));
        self.pending_bytes = self.pieces.iter().map(|piece| piece.bytes.len()).sum();
    }

    /// Whether nothing is pending.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.pending_bytes == 0
    }

    /// Bytes pending.
    #[must_use]
    pub fn pending_bytes(&self) -> usize {
        self.pending_bytes
    }

    /// Writes until empty or the socket blocks. `write` is one vectored write without waiting.
    ///
    /// # Errors
    /// The socket's, other than `WouldBlock` and `Interrupted`.
    pub fn flush(&mut self, mut write: impl FnMut(&[IoSlice<'_>]) -> io::Result<usize>) -> io::Result<Flushed> {
        while !self.pieces.is_empty() {
            let mut slices = [IoSlice::new(&[]); SLICES_MAX];
            let count = self.pieces.len().min(SLICES_MAX);
            for (slice, piece) in slices.iter_mut().zip(&self.pieces) {
                *slice = IoSlice::new(&piece.bytes);
            }
            match write(&slices[..count]) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(written) => self.advance(written),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(Flushed::Blocked),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        // An idle connection keeps no buffer.
        self.pieces = VecDeque::new();
        Ok(Flushed::Empty)
    }

    fn advance(&mut self, mut written: usize) {
        self.pending_bytes -= written;
        while let Some(front) = self.pieces.front_mut() {
            if written < front.bytes.len() {
                front.bytes.advance(written);
                self.is_front_begun |= written > 0;
                return;
            }
            written -= front.bytes.len();
            self.is_front_begun = !front.ends_frame;
            self.pieces.pop_front();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(text: &'static str) -> Bytes {
        Bytes::from_static(text.as_bytes())
    }

    /// A socket that takes so many bytes, then blocks.
    fn take(outbox: &mut Outbox, mut room: usize) -> (String, Flushed) {
        let mut sent = Vec::new();
        let flushed = outbox.flush(|slices| {
            if room == 0 {
                return Err(io::ErrorKind::WouldBlock.into());
            }
            let all: Vec<u8> = slices.iter().flat_map(|slice| slice.iter().copied()).collect();
            let count = all.len().min(room);
            room -= count;
            sent.extend_from_slice(&all[..count]);
            Ok(count)
        });
        (String::from_utf8(sent).expect("ASCII"), flushed.expect("no error"))
    }

    #[test]
    fn frames_leave_in_order_through_a_socket_that_takes_little() {
        let mut outbox = Outbox::default();
        for text in ["abc", "defg", "h"] {
            outbox.enqueue(frame(text), 100).expect("room");
        }
        assert_eq!(take(&mut outbox, 4), ("abcd".into(), Flushed::Blocked));
        assert_eq!(outbox.pending_bytes(), 4);
        assert_eq!(take(&mut outbox, 100), ("efgh".into(), Flushed::Empty));
        assert_eq!((outbox.pending_bytes(), outbox.pieces.capacity()), (0, 0));
    }

    #[test]
    fn the_bound_is_checked_before_the_add() {
        let mut outbox = Outbox::default();
        outbox.enqueue(frame("12345678"), 10).expect("room");
        assert_eq!(outbox.enqueue(frame("abc"), 10), Err(OutboxFull));
        assert_eq!(outbox.pending_bytes(), 8);
        outbox.enqueue(frame("ab"), 10).expect("exactly full");
    }

    #[test]
    fn an_end_keeps_a_half_sent_frame_whole() {
        let mut outbox = Outbox::default();
        for text in ["abcd", "efgh", "ijkl"] {
            outbox.enqueue(frame(text), 100).expect("room");
        }
        take(&mut outbox, 6);
        outbox.end_with(frame("X"));
        assert_eq!((outbox.pending_bytes(), take(&mut outbox, 100)), (3, ("ghX".into(), Flushed::Empty)));
    }

    #[test]
    fn an_end_keeps_a_frame_of_two_pieces_whole() {
        for (sent, expected) in [(0, "X"), (1, "BCDpayloadX"), (4, "payloadX"), (6, "yloadX"), (11, "X")] {
            let mut outbox = Outbox::default();
            outbox.enqueue_shared(frame("ABCD"), frame("payload"), 100).expect("room");
            outbox.enqueue(frame("efgh"), 100).expect("room");
            take(&mut outbox, sent);
            outbox.end_with(frame("X"));
            assert_eq!(
                (outbox.pending_bytes(), take(&mut outbox, 100).0.as_str()),
                (expected.len(), expected),
                "{sent}"
            );
        }
        let mut outbox = Outbox::default();
        assert_eq!(outbox.enqueue_shared(frame("ABCD"), frame("payload"), 10), Err(OutboxFull));
        outbox.enqueue_shared(frame("ABCD"), Bytes::new(), 10).expect("room");
        take(&mut outbox, 4);
        outbox.end_with(frame("X"));
        assert_eq!(take(&mut outbox, 100).0, "X");
    }

    #[test]
    fn held_pushes_follow_the_login_reply_and_other_replies_do_not_wait() {
        let mut outbox = Outbox::default();
        outbox.hold(frame("push"), 100).expect("room");
        outbox.enqueue(frame("pong"), 100).expect("room");
        assert_eq!((outbox.pending_bytes(), outbox.hold(frame("123"), 10)), (8, Err(OutboxFull)));
        assert_eq!(take(&mut outbox, 100), ("pong".into(), Flushed::Empty));
        outbox.release(frame("reply"));
        assert_eq!((take(&mut outbox, 100).0.as_str(), outbox.pending_bytes()), ("replypush", 0));
    }

    #[test]
    fn what_was_held_for_a_failed_login_is_gone() {
        let mut outbox = Outbox::default();
        outbox.hold(frame("secret"), 100).expect("room");
        outbox.enqueue(frame("no"), 100).expect("room");
        outbox.drop_held();
        outbox.hold(frame("push"), 100).expect("room");
        outbox.release(frame("reply"));
        assert_eq!((take(&mut outbox, 100).0.as_str(), outbox.pending_bytes()), ("noreplypush", 0));
    }
}
