//! What the state and the connection say to each other: asks and answers, pushes, and where a new connection begins.

use std::time::Duration;

use bytes::Bytes;
use tidegate_proto::v1;

/// A command for the connection, to be repeated back with its reply.
#[derive(Clone, Debug, PartialEq)]
pub enum Ask {
    /// Say something.
    Send {
        /// The idempotency key.
        client_msg_id: Bytes,
        /// Where.
        conversation: String,
        /// What.
        body: Bytes,
    },
    /// Move watermarks.
    Receipt {
        /// Where.
        conversation: String,
        /// Up to where messages arrived here.
        delivered: u64,
        /// Up to where the user has read.
        read: u64,
    },
    /// Fetch a page.
    History {
        /// Of which conversation.
        conversation: String,
        /// Which part of it.
        range: Range,
    },
    /// What is missing above positions, and maybe what there is besides.
    Sync(v1::Sync),
    /// What is newest in a busy conversation, or what was left out of it.
    Pull(v1::Pull),
    /// Begin to watch lobbies.
    Watch(Vec<String>),
}

/// A part of a conversation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Range {
    /// The newest of a conversation of which nothing is known.
    Newest(u32),
    /// So many before this sequence.
    Before(u64, u32),
    /// What follows this sequence.
    After(u64),
}

/// The reply to an [`Ask`].
#[derive(Clone, Debug)]
pub enum Answer {
    /// A message is durable.
    Sent(v1::SendAck),
    /// A page.
    History(v1::HistoryReply),
    /// What is missing, for a first part of the positions.
    Synced(v1::SyncReply),
    /// What was pulled.
    Pulled(v1::PullReply),
    /// Nothing but success.
    Done,
    /// It failed.
    Refused(v1::Error),
}

/// What the server says unasked.
#[derive(Clone, Debug)]
pub enum Push {
    /// A message.
    Message(v1::Message),
    /// Messages of a short time, each to be taken as if it had come alone.
    Messages(v1::Messages),
    /// There are messages to be pulled.
    Notice(v1::NotifyNewMessages),
    /// Messages of a conversation travel in another way from now on.
    GearChanged(v1::GearChanged),
    /// An acknowledged message was taken back.
    SendRejected(v1::SendRejected),
    /// A watermark moved.
    ReceiptMoved(v1::ReceiptMoved),
    /// Somebody came or went.
    MembershipChanged(v1::MembershipChanged),
    /// Pushes are missing: ask by Sync after this wait, which chance has chosen.
    Behind(v1::Behind, Duration),
}

/// What a new connection's Login says of the time before it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Standing {
    /// The session to go on with; 0: none.
    pub session: u64,
    /// Lobbies to watch, at most `WATCHES_MAX`.
    pub watch: Vec<String>,
    /// Where the conversations stand, at most `SYNC_POSITIONS_MAX`.
    pub positions: Vec<v1::SyncFrom>,
}
