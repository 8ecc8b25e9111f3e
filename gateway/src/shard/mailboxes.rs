//! The mailboxes: the only way into a shard from another thread.

use std::collections::VecDeque;
use std::sync::Arc;

use bytes::Bytes;
use tidegate_core::delivery::{Mailboxes, ShardId, ShardInput};
use tidegate_core::limits::{MAILBOX_BYTES_MAX, MAILBOX_INPUTS_MAX};
use tidegate_core::queue::{Queue, Weigh};

/// A socket whose HTTP part is over: a WebSocket from now on.
#[derive(Debug)]
pub struct Upgraded {
    /// Non-blocking, registered nowhere.
    pub stream: std::net::TcpStream,
    /// What the client sent right behind its handshake.
    pub early: Bytes,
}

impl Weigh for Upgraded {
    fn weight_bytes(&self) -> usize {
        self.early.len()
    }
}

/// Sockets waiting for a shard to take them over; more than this at once are turned away.
const UPGRADED_MAX: usize = 4096;

/// One shard's two queues.
pub struct Mailbox {
    /// From the engines. When full they wait: a shard that is behind slows the push engine down, not memory up.
    pub inputs: Queue<ShardInput>,
    /// From the HTTP listener. When full the socket is closed.
    pub upgraded: Queue<Upgraded>,
}

/// Every shard's mailbox, shared with everybody.
#[derive(Clone)]
pub struct ShardMailboxes(Arc<[Mailbox]>);

impl ShardMailboxes {
    /// Empty mailboxes for so many shards, at most 64.
    #[must_use]
    pub fn new(shards: u8) -> Self {
        let mailbox = || Mailbox {
            inputs: Queue::new(MAILBOX_INPUTS_MAX, MAILBOX_BYTES_MAX),
            upgraded: Queue::new(UPGRADED_MAX, MAILBOX_BYTES_MAX),
        };
        Self((0..shards.clamp(1, 64)).map(|_| mailbox()).collect())
    }

    /// One shard's mailbox.
    #[must_use]
    pub fn of(&self, shard: ShardId) -> &Mailbox {
        &self.0[usize::from(shard.0)]
    }
}

impl Mailboxes for ShardMailboxes {
    fn shards(&self) -> u8 {
        u8::try_from(self.0.len()).expect("clamped to 64 when made")
    }

    async fn post(&self, shard: ShardId, inputs: Vec<ShardInput>) {
        let mut inputs = VecDeque::from(inputs);
        // Closed: the shard has ended and its connections with it.
        let _ = self.of(shard).inputs.push(&mut inputs).await;
    }
}
