//! A connection: one live socket, what it is in the middle of, and the session behind it. Owned by one shard for life.

use std::io::{self, IoSlice};
use std::rc::Rc;

use bytes::{Bytes, BytesMut};
use tidegate_core::delivery::Ground;
use tidegate_core::session::{Actions, Session};
use tidegate_proto::v1::CloseCode;
use tidegate_proto::websocket;
use tokio::net::tcp::OwnedWriteHalf;
use tokio::task::AbortHandle;

use super::behind::Behind;
use super::counts::Counts;
use super::outbox::{Flushed, Outbox};

/// See the module.
pub struct Connection {
    /// `None` once everything was said and our direction is shut.
    pub(super) writer: Option<Rc<OwnedWriteHalf>>,
    /// The task that reads. It holds the other half of the socket, so it ends with the connection.
    pub(super) reading: Option<AbortHandle>,
    pub(super) transport: Transport,
    pub(super) session: Session,
    pub(super) outbox: Outbox,
    /// What it missed since its outbox was full.
    pub(super) behind: Option<Box<Behind>>,
    /// As the session says: a look at it for every push would cost a look into memory of its own.
    pub(super) ground: Ground,
    /// In the background: what came since it was told last.
    pub(super) counts: Option<Box<Counts>>,
    /// The beginning of a frame whose rest has not come yet. At most one largest frame.
    pub(super) partial: Box<[u8]>,
    pub(super) generation: u32,
    /// When the wheel ends it, in the shard's seconds.
    pub(super) deadline_s: u32,
    pub(super) phase: Phase,
    /// A task waits for the socket to take more; until then frames only queue.
    pub(super) is_draining_outbox: bool,
    /// It is in the shard's list of connections to flush at the end of the turn.
    pub(super) is_touched: bool,
}

impl Drop for Connection {
    fn drop(&mut self) {
        // A client that neither reads nor leaves would keep the task, and the task the socket.
        if let Some(reading) = &self.reading {
            reading.abort();
        }
    }
}

/// What the connection's bytes are wrapped in.
pub enum Transport {
    /// Frames as they are.
    Tcp,
    /// Frames in binary messages.
    WebSocket(websocket::Decoder),
}

/// How far a connection is from its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Reading and writing.
    Open,
    /// The Close frame is in the outbox; what still arrives is thrown away.
    Closing,
}

impl Connection {
    /// A connection that has just been accepted or handed over.
    #[must_use]
    pub fn new(writer: OwnedWriteHalf, transport: Transport, generation: u32, deadline_s: u32) -> Self {
        Self {
            writer: Some(Rc::new(writer)),
            reading: None,
            transport,
            session: Session::default(),
            outbox: Outbox::default(),
            behind: None,
            ground: Ground::Foreground,
            counts: None,
            partial: Box::default(),
            generation,
            deadline_s,
            phase: Phase::Open,
            is_draining_outbox: false,
            is_touched: false,
        }
    }

    /// Wraps frames of this connection alone for its transport.
    #[must_use]
    pub fn wrap(&self, frames: BytesMut) -> Bytes {
        match self.transport {
            Transport::Tcp => frames.freeze(),
            Transport::WebSocket(_) => {
                let mut message = BytesMut::with_capacity(frames.len() + websocket::header_bytes(frames.len()));
                websocket::put_header(&mut message, websocket::Opcode::Binary, frames.len());
                message.extend_from_slice(&frames);
                message.freeze()
            }
        }
    }

    /// The Close frame and, over WebSocket, the close frame of RFC 6455 behind it.
    #[must_use]
    pub fn last_words(&self, code: CloseCode) -> Bytes {
        let mut actions = Actions::default();
        actions.close(code, code.text());
        let mut last = BytesMut::from(self.wrap(actions.replies));
        if let Transport::WebSocket(_) = self.transport {
            websocket::put_close(&mut last, code.number(), code.text());
        }
        last.freeze()
    }

    /// One round of writing without waiting. When the last word is out, our direction of the socket is shut.
    ///
    /// # Errors
    /// The socket's: the connection is dead.
    pub fn flush(&mut self) -> io::Result<Flushed> {
        let Some(writer) = &self.writer else {
            return Ok(Flushed::Empty);
        };
        let write = |slices: &[IoSlice<'_>]| match slices {
            // A plain write is measurably cheaper than a vectored one of a single slice.
            [only] => writer.try_write(only),
            many => writer.try_write_vectored(many),
        };
        let flushed = self.outbox.flush(write)?;
        if flushed == Flushed::Empty && self.phase == Phase::Closing {
            self.writer = None;
        }
        Ok(flushed)
    }
}
