//! The push engine: from this gateway's queue of MQ2 into the shards' mailboxes.
//!
//! In come sequenced events, in order; each is framed once and goes to the shards that hold a receiver. It keeps nothing: a
//! crash loses pushes on their way, and clients resync by sequence.

pub mod routes;

use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use prost::Message as _;
use tidegate_proto::{HEAD_BYTES, Kind, v1};

use crate::clock::Clock;
use crate::delivery::{Encoded, Mailboxes, Recipients, ShardId, ShardInput, ShardSet};
use crate::event::{Membership, PushEvent};
use crate::ids::ConversationId;
use crate::ingest::members::Members;
use crate::limits::PUSH_BATCH_MAX;
use crate::meter;
use crate::ports::{Backend, PortError, PushConsumer, PushQueue};
use routes::Routes;

/// What the push engine works with.
pub struct PushEngine<B, M, C> {
    /// Where events come from.
    pub backend: Arc<B>,
    /// Where they go.
    pub mailboxes: M,
    /// Who is here.
    pub routes: Arc<Routes>,
    /// The ingest engine's view of rooms, kept current from here.
    pub members: Arc<Members>,
    /// For pauses between attempts.
    pub clock: C,
}

impl<B: Backend, M: Mailboxes, C: Clock> PushEngine<B, M, C> {
    /// Runs until the queue is closed. A consumer that ends is replaced.
    pub async fn run(self) {
        const PAUSE: Duration = Duration::from_millis(200);
        loop {
            match self.consume().await {
                PortError::Closed => return,
                error => tracing::warn!(%error, "push consumer ended, making another"),
            }
            // Membership changes may have been missed.
            self.members.forget_all();
            self.clock.sleep(PAUSE).await;
        }
    }

    async fn consume(&self) -> PortError {
        let mut consumer = match self.backend.push().consume().await {
            Ok(consumer) => consumer,
            Err(error) => return error,
        };
        loop {
            let events = match consumer.next_batch(PUSH_BATCH_MAX).await {
                Ok(events) => events,
                Err(error) => return error,
            };
            metrics::counter!(meter::PUSH_EVENTS).increment(events.len() as u64);
            let batches = self.route(events);
            for (shard, inputs) in (0_u8..).map(ShardId).zip(batches) {
                if !inputs.is_empty() {
                    self.mailboxes.post(shard, inputs).await;
                }
            }
        }
    }

    fn route(&self, events: Vec<PushEvent>) -> Vec<Vec<ShardInput>> {
        let mut batches: Vec<Vec<ShardInput>> = (0..self.mailboxes.shards()).map(|_| Vec::new()).collect();
        // One allocation for all frames of the batch; each is a slice of it.
        let payload_bytes: usize = events.iter().map(payload_len).sum();
        let mut buffer = BytesMut::with_capacity(payload_bytes + events.len() * (HEAD_BYTES + 10));
        let everywhere = ShardSet(u64::MAX >> (64 - u32::from(self.mailboxes.shards())));
        for event in events {
            match event {
                PushEvent::Sequenced { conversation, payload, .. } => {
                    let frame = Encoded::push(&mut buffer, Kind::Message, &payload);
                    self.to_conversation(conversation, frame, everywhere, &mut batches);
                }
                PushEvent::Rejected { user, session, payload } => {
                    let frame = Encoded::push(&mut buffer, Kind::SendRejected, &payload);
                    for shard in self.routes.shards_of(user).iter() {
                        let recipients = Recipients::Session(user, session);
                        batches[usize::from(shard.0)].push(ShardInput::Deliver { recipients, frame: frame.clone() });
                    }
                }
                PushEvent::ReceiptMoved(receipt) => {
                    let payload = v1::ReceiptMoved {
                        conversation_id: receipt.conversation.to_string(),
                        user_id: receipt.user.0,
                        delivered_seq: receipt.delivered.0,
                        read_seq: receipt.read.0,
                    };
                    let frame = Encoded::push(&mut buffer, Kind::ReceiptMoved, &payload.encode_to_vec());
                    self.to_conversation(receipt.conversation, frame, everywhere, &mut batches);
                }
                PushEvent::MembershipChanged { conversation, user, change } => {
                    let ConversationId::Room(room) = conversation else {
                        continue;
                    };
                    self.members.forget(room);
                    let payload = v1::MembershipChanged {
                        conversation_id: conversation.to_string(),
                        user_id: user.0,
                        joined: change == Membership::Joined,
                    };
                    let frame = Encoded::push(&mut buffer, Kind::MembershipChanged, &payload.encode_to_vec());
                    for batch in &mut batches {
                        batch.push(ShardInput::Membership { room, user, change, frame: frame.clone() });
                    }
                }
            }
        }
        batches
    }

    fn to_conversation(
        &self,
        conversation: ConversationId,
        frame: Encoded,
        everywhere: ShardSet,
        batches: &mut [Vec<ShardInput>],
    ) {
        let (recipients, shards) = match conversation {
            ConversationId::Private { low, high } => {
                let shards = ShardSet(self.routes.shards_of(low).0 | self.routes.shards_of(high).0);
                (Recipients::Users(low, high), shards)
            }
            _ => (Recipients::Conversation(conversation), everywhere),
        };
        for shard in shards.iter() {
            batches[usize::from(shard.0)].push(ShardInput::Deliver { recipients, frame: frame.clone() });
        }
    }
}

fn payload_len(event: &PushEvent) -> usize {
    const SMALL: usize = 64;
    match event {
        PushEvent::Sequenced { payload, .. } | PushEvent::Rejected { payload, .. } => Bytes::len(payload),
        PushEvent::ReceiptMoved(_) | PushEvent::MembershipChanged { .. } => SMALL,
    }
}
