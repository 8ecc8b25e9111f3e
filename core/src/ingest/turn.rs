//! The pure parts of an ingest turn: sorting what came in, and building what goes out.

use bytes::Bytes;
use prost::Message as _;
use rustc_hash::FxHashMap;
use tidegate_proto::v1::{self, Code, Gear};

use crate::event::{Accepted, IngestEvent, PushEvent, ReceiptMoved, StoredMessage};
use crate::ids::{ConversationId, Epoch, MessageId, UserId};

/// A batch by what its events are, without repetitions within the batch.
#[derive(Debug, Default)]
pub(super) struct Sorted {
    /// Messages, each id once.
    pub messages: Vec<Accepted>,
    /// Repetitions of one of `messages` with other content.
    pub conflicts: Vec<Accepted>,
    /// Receipts.
    pub receipts: Vec<ReceiptMoved>,
}

impl From<Vec<IngestEvent>> for Sorted {
    fn from(events: Vec<IngestEvent>) -> Self {
        let mut sorted = Self { messages: Vec::with_capacity(events.len()), ..Self::default() };
        let mut seen: FxHashMap<MessageId, usize> = FxHashMap::default();
        seen.reserve(events.len());
        for event in events {
            match event {
                IngestEvent::ReceiptMoved(receipt) => sorted.receipts.push(receipt),
                IngestEvent::Accepted(accepted) => match seen.get(&accepted.message_id) {
                    None => {
                        seen.insert(accepted.message_id, sorted.messages.len());
                        sorted.messages.push(accepted);
                    }
                    Some(first) => {
                        let first = &sorted.messages[*first];
                        let same = first.conversation == accepted.conversation
                            && first.body == accepted.body
                            && first.content_type == accepted.content_type;
                        if !same {
                            sorted.conflicts.push(accepted);
                        }
                    }
                },
            }
        }
        sorted
    }
}

/// A message that came again after it was stored.
#[derive(Debug)]
pub(super) struct Known {
    /// As it came now.
    pub repeated: Accepted,
    /// As it is stored.
    pub stored: StoredMessage,
}

/// Whether a repetition says the same as what is stored.
pub(super) fn is_same(stored: &StoredMessage, repeated: &Accepted) -> bool {
    repeated.conversation == stored.conversation
        && repeated.body == stored.body
        && repeated.content_type == stored.content_type
}

/// One receipt per (user, conversation): the highest.
pub(super) fn merge_receipts(receipts: Vec<ReceiptMoved>) -> Vec<ReceiptMoved> {
    let mut at: FxHashMap<(UserId, ConversationId), usize> = FxHashMap::default();
    let mut merged: Vec<ReceiptMoved> = Vec::with_capacity(receipts.len());
    for receipt in receipts {
        match at.get(&(receipt.user, receipt.conversation)) {
            Some(at) => {
                let before = &mut merged[*at];
                before.delivered = before.delivered.max(receipt.delivered);
                before.read = before.read.max(receipt.read);
            }
            None => {
                at.insert((receipt.user, receipt.conversation), merged.len());
                merged.push(receipt);
            }
        }
    }
    merged
}

/// The push of a stored message, and its payload for inboxes. Encoded here, once for everybody.
pub(super) fn sequenced(message: &StoredMessage, epoch: Epoch, gear: Gear) -> (PushEvent, Bytes) {
    let payload = Bytes::from(message.to_wire(epoch).encode_to_vec());
    let event = PushEvent::Sequenced {
        conversation: message.conversation,
        epoch,
        seq: message.seq,
        sender: message.sender,
        gear,
        payload: payload.clone(),
    };
    (event, payload)
}

/// The push that tells a sender that its message does not count.
pub(super) fn rejected(accepted: &Accepted, code: Code, text: &str) -> PushEvent {
    let payload = v1::SendRejected {
        message_id: Bytes::copy_from_slice(&accepted.message_id.0),
        conversation_id: accepted.conversation.to_string(),
        code: code.into(),
        text: text.to_owned(),
    };
    PushEvent::Rejected {
        user: accepted.sender,
        session: accepted.session,
        payload: Bytes::from(payload.encode_to_vec()),
    }
}
