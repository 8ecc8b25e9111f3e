//! A connection's two directions: frames on their way between a client and a shard, bounded where the shard writes.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use tokio::sync::Notify;

/// Bytes on their way to a client that is not reading; then the shard's outbox fills.
const PIPE_BYTES_MAX: usize = 2 * 1024;

/// Both ends hold one.
#[derive(Clone, Default)]
pub struct Wire(Rc<RefCell<Link>>);

#[derive(Default)]
struct Link {
    to_shard: VecDeque<Bytes>,
    to_client: VecDeque<Bytes>,
    to_client_bytes: usize,
    /// The client has hung up.
    is_left: bool,
    /// The shard has closed, or is no more.
    is_closed: bool,
    reader: Option<Waker>,
    shard: Rc<Notify>,
}

impl Wire {
    pub fn new(shard: Rc<Notify>) -> Self {
        Self(Rc::new(RefCell::new(Link { shard, ..Link::default() })))
    }

    // ---- the client's end

    pub fn send(&self, bytes: Bytes) {
        let mut link = self.0.borrow_mut();
        link.to_shard.push_back(bytes);
        link.shard.notify_one();
    }

    pub fn hang_up(&self) {
        let mut link = self.0.borrow_mut();
        link.is_left = true;
        link.shard.notify_one();
    }

    /// The next bytes; `None` at the end of the stream.
    pub fn poll_receive(&self, cx: &mut Context<'_>) -> Poll<Option<Bytes>> {
        let mut link = self.0.borrow_mut();
        if let Some(bytes) = link.to_client.pop_front() {
            link.to_client_bytes -= bytes.len();
            link.shard.notify_one();
            return Poll::Ready(Some(bytes));
        }
        if link.is_closed {
            return Poll::Ready(None);
        }
        link.reader = Some(cx.waker().clone());
        Poll::Pending
    }

    /// What is left of received bytes is received next.
    pub fn unread(&self, bytes: Bytes) {
        let mut link = self.0.borrow_mut();
        link.to_client_bytes += bytes.len();
        link.to_client.push_front(bytes);
    }

    // ---- the shard's end

    pub fn take(&self) -> Option<Bytes> {
        self.0.borrow_mut().to_shard.pop_front()
    }

    pub fn is_left(&self) -> bool {
        self.0.borrow().is_left
    }

    /// Whether it was taken: a pipe that nobody reads from is full some time.
    pub fn write(&self, bytes: &Bytes) -> bool {
        let mut link = self.0.borrow_mut();
        if !link.to_client.is_empty() && link.to_client_bytes + bytes.len() > PIPE_BYTES_MAX {
            return false;
        }
        link.to_client_bytes += bytes.len();
        link.to_client.push_back(bytes.clone());
        if let Some(reader) = link.reader.take() {
            reader.wake();
        }
        true
    }

    /// What was written can still be read.
    pub fn close(&self) {
        let mut link = self.0.borrow_mut();
        link.is_closed = true;
        if let Some(reader) = link.reader.take() {
            reader.wake();
        }
    }
}
