//! A device's seat in a conversation: what it has seen, how far it has said so, and what its messages look like.

use tidegate_proto::v1::Message;

use super::evidence::{Entry, Origin, Via};
use super::sync::Sync;
use crate::wire::{STAMP_BYTES, SendTemplate, Stamp};

/// What all devices of a run share.
#[derive(Debug)]
pub struct Terms {
    /// Tells apart messages of two runs.
    pub run: u32,
    /// Bodies; a stamp overwrites the beginning.
    pub filler: Vec<u8>,
}

/// How far a user reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reads {
    /// All that is shown.
    All,
    /// The first half of what is shown.
    Half,
    /// Nothing; what arrives is only marked as delivered.
    Nothing,
}

/// A conversation the device takes part in.
#[derive(Debug)]
pub struct Seat {
    /// Index of the conversation within the run.
    pub conversation: u32,
    /// As on the wire.
    pub id: String,
    /// Index of the user among the members.
    pub member: u32,
    /// What was seen.
    pub sync: Sync,
    /// Messages of this device that were accepted.
    pub accepted: u64,
    /// The highest read watermark that was acknowledged.
    pub read_acked: u64,
    /// The highest read watermark that was sent.
    pub read_sent: u64,
    /// The frames of its messages.
    pub template: SendTemplate,
    /// The members' user ids, by their index.
    pub users: Vec<u64>,
    /// The next message's counter.
    pub counter: u32,
    /// True while a Sync or History is under way.
    pub asking: bool,
    /// Neither is asked for before.
    pub ask_due_ms: u64,
    /// True while a Receipt is not answered.
    pub receipt_pending: bool,
    /// No Receipt is sent before.
    pub receipt_due_ms: u64,
    /// The highest delivered watermark that was acknowledged.
    pub delivered_acked: u64,
}

impl Seat {
    /// A seat that has seen nothing; `users` are the members' user ids by their index.
    pub fn new(conversation: u32, id: &str, member: u32, users: Vec<u64>, terms: &Terms) -> Self {
        Self {
            conversation,
            id: id.to_owned(),
            member,
            sync: Sync::default(),
            accepted: 0,
            read_acked: 0,
            read_sent: 0,
            template: SendTemplate::new(id, &terms.filler),
            users,
            counter: 0,
            asking: false,
            ask_due_ms: 0,
            receipt_pending: false,
            receipt_due_ms: 0,
            delivered_acked: 0,
        }
    }
}

/// What a message says, compared with what this run sends.
pub fn entry(terms: &Terms, users: &[u64], message: &Message, via: Via) -> Entry {
    let stamp = Stamp::parse(&message.body)
        .filter(|stamp| stamp.run == terms.run && message.body.get(STAMP_BYTES..) == terms.filler.get(STAMP_BYTES..));
    let origin = stamp.map(|Stamp { conversation, member, counter, .. }| Origin { conversation, member, counter });
    let sender = origin.and_then(|origin| users.get(origin.member as usize));
    Entry {
        seq: message.seq,
        epoch: message.epoch,
        // Sixteen zeros are nobody's id.
        message_id: message.message_id[..].try_into().unwrap_or_default(),
        origin,
        is_from_sender: sender == Some(&message.sender_id),
        via,
    }
}
