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
    frames: VecDeque<Bytes>,
    pending_bytes: usize,
    /// The first frame is partly sent: it must be finished before anything else.
    is_front_begun: bool,
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
        self.frames.push_back(frame);
        Ok(())
    }

    /// Adds a frame before everything that has not begun to leave: the login reply before pushes that were held back.
    pub fn enqueue_first(&mut self, frame: Bytes) {
        self.pending_bytes += frame.len();
        self.frames.insert(usize::from(self.is_front_begun), frame);
    }

    /// Drops what has not begun to leave and makes `last` the end: the stream stays whole, and memory is freed.
    pub fn end_with(&mut self, last: Bytes) {
        self.frames.truncate(usize::from(self.is_front_begun));
        self.frames.push_back(last);
        self.pending_bytes = self.frames.iter().map(Bytes::len).sum();
    }

    /// Whether nothing is pending.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.frames.is_empty()
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
        while !self.frames.is_empty() {
            let mut slices = [IoSlice::new(&[]); SLICES_MAX];
            let count = self.frames.len().min(SLICES_MAX);
            for (slice, frame) in slices.iter_mut().zip(&self.frames) {
                *slice = IoSlice::new(frame);
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
        self.frames = VecDeque::new();
        Ok(Flushed::Empty)
    }

    fn advance(&mut self, mut written: usize) {
        self.pending_bytes -= written;
        while let Some(front) = self.frames.front_mut() {
            if written < front.len() {
                front.advance(written);
                self.is_front_begun |= written > 0;
                return;
            }
            written -= front.len();
            self.frames.pop_front();
            self.is_front_begun = false;
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
        assert_eq!((outbox.pending_bytes(), outbox.frames.capacity()), (0, 0));
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
    fn the_login_reply_overtakes_held_pushes() {
        let mut outbox = Outbox::default();
        outbox.enqueue(frame("push"), 100).expect("room");
        outbox.enqueue_first(frame("reply"));
        assert_eq!(take(&mut outbox, 100).0, "replypush");
    }
}
