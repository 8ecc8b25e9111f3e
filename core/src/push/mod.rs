//! The push engine: from this gateway's queue of MQ2 into the shards' mailboxes.
//!
//! In come sequenced events, in order; each is framed once and goes to the shards that hold a receiver. It keeps nothing but
//! counts: pushes may be lost on their way, by a crash or by MQ2; whenever that may have happened, the shards are told, and
//! their clients sync.

pub mod routes;

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures_util::future::{Either, select};
use prost::Message as _;
use tidegate_proto::{HEAD_BYTES, Kind, v1};

use crate::clock::Clock;
use crate::delivery::{Authors, Encoded, Mailboxes, Recipients, ShardId, ShardInput, ShardSet};
use crate::event::{Membership, PushEvent};
use crate::ids::{ConversationId, Millis, Place};
use crate::ingest::members::Members;
use crate::limits::PUSH_BATCH_MAX;
use crate::meter;
use crate::ports::{Backend, PortError, PushConsumer, PushQueue};
use crate::streams::{BEACON_INTERVAL, Heard, InStreams};
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
        let mut streams = InStreams::default();
        let mut life = Life::First;
        loop {
            match self.consume(&mut streams, life).await {
                PortError::Closed => return,
                error => tracing::warn!(%error, "push consumer ended, making another"),
            }
            life = Life::Another;
            self.clock.sleep(PAUSE).await;
        }
    }

    async fn consume(&self, streams: &mut InStreams, life: Life) -> PortError {
        let mut consumer = match self.backend.push().consume().await {
            Ok(consumer) => consumer,
            Err(error) => return error,
        };
        if life == Life::Another {
            // Only now, that pushes arrive again: a client that syncs before could miss what is lost after.
            self.tell_missed("consumer").await;
        }
        let mut looked_at = self.clock.now();
        loop {
            let taken = {
                let mut next = pin!(consumer.next_batch(PUSH_BATCH_MAX));
                loop {
                    match select(next.as_mut(), pin!(self.clock.sleep(BEACON_INTERVAL))).await {
                        Either::Left((taken, _)) => break taken,
                        Either::Right(((), _)) => self.look_for_silence(streams, &mut looked_at).await,
                    }
                }
            };
            let events = match taken {
                Ok(events) => events,
                Err(error) => return error,
            };
            self.look_for_silence(streams, &mut looked_at).await;
            metrics::counter!(meter::PUSH_EVENTS).increment(events.len() as u64);
            let (batches, heard) = self.route(events, streams);
            if heard == Heard::Missed {
                self.tell_missed("gap").await;
            }
            for (shard, inputs) in (0_u8..).map(ShardId).zip(batches) {
                if !inputs.is_empty() {
                    self.mailboxes.post(shard, inputs).await;
                }
            }
        }
    }

    /// Now and then: whether an engine that pushed to here is gone.
    async fn look_for_silence(&self, streams: &mut InStreams, looked_at: &mut Millis) {
        let now = self.clock.now();
        if u128::from(now.0.saturating_sub(looked_at.0)) < BEACON_INTERVAL.as_millis() {
            return;
        }
        *looked_at = now;
        if streams.end_silent(now) == Heard::Missed {
            self.tell_missed("silence").await;
        }
    }

    /// Pushes may have been lost: membership changes for the ingest engine's view, and anything for clients.
    async fn tell_missed(&self, reason: &'static str) {
        metrics::counter!(meter::PUSH_MISSED, "reason" => reason).increment(1);
        tracing::info!(reason, "pushes may have been lost on their way here, clients are told to sync");
        self.members.forget_all();
        for shard in (0..self.mailboxes.shards()).map(ShardId) {
            self.mailboxes.post(shard, vec![ShardInput::PushesMissed { of: None }]).await;
        }
    }

    fn route(&self, events: Vec<PushEvent>, streams: &mut InStreams) -> (Vec<Vec<ShardInput>>, Heard) {
        let now = self.clock.now();
        let mut heard = Heard::InOrder;
        let mut batches: Vec<Vec<ShardInput>> = (0..self.mailboxes.shards()).map(|_| Vec::new()).collect();
        // One allocation for all frames of the batch; each is a slice of it.
        let payload_bytes: usize = events.iter().map(payload_len).sum();
        let mut buffer = BytesMut::with_capacity(payload_bytes + events.len() * (HEAD_BYTES + 10));
        let everywhere = ShardSet(u64::MAX >> (64 - u32::from(self.mailboxes.shards())));
        for event in events {
            match event {
                PushEvent::Sequenced { conversation, epoch, seq, sender, payload, .. } => {
                    let frame = Encoded::push(&mut buffer, Kind::Message, &payload);
                    let place = Some(Place { epoch, seq });
                    self.to_conversation(conversation, place, Authors::One(sender), frame, everywhere, &mut batches);
                }
                PushEvent::Replaced { user, attachment } => {
                    for shard in self.routes.shards_of(user).iter() {
                        batches[usize::from(shard.0)].push(ShardInput::Replaced { user, attachment });
                    }
                }
                PushEvent::Marked(mark) => {
                    if streams.hear(now, mark) == Heard::Missed {
                        heard = Heard::Missed;
                    }
                }
                PushEvent::Rejected { user, session, payload } => {
                    let frame = Encoded::push(&mut buffer, Kind::SendRejected, &payload);
                    for shard in self.routes.shards_of(user).iter() {
                        let recipients = Recipients::Session(user, session);
                        let (place, authors, frame) = (None, Authors::None, frame.clone());
                        let deliver = ShardInput::Deliver { recipients, place, authors, frame };
                        batches[usize::from(shard.0)].push(deliver);
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
                    self.to_conversation(receipt.conversation, None, Authors::None, frame, everywhere, &mut batches);
                }
                PushEvent::Noticed { conversation, latest, spread_ms } => {
                    let payload = v1::NotifyNewMessages {
                        conversation_id: conversation.to_string(),
                        epoch: latest.epoch.0,
                        latest_seq: latest.seq.0,
                        spread_ms,
                    };
                    let frame = Encoded::push(&mut buffer, Kind::NotifyNewMessages, &payload.encode_to_vec());
                    self.to_conversation(conversation, Some(latest), Authors::None, frame, everywhere, &mut batches);
                }
                PushEvent::GearChanged { conversation, gear, from } => {
                    let payload = v1::GearChanged {
                        conversation_id: conversation.to_string(),
                        epoch: from.epoch.0,
                        gear: gear.into(),
                        from_seq: from.seq.0,
                    };
                    let frame = Encoded::push(&mut buffer, Kind::GearChanged, &payload.encode_to_vec());
                    self.to_conversation(conversation, None, Authors::None, frame, everywhere, &mut batches);
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
        (batches, heard)
    }

    fn to_conversation(
        &self,
        conversation: ConversationId,
        place: Option<Place>,
        authors: Authors,
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
            let (authors, frame) = (authors.clone(), frame.clone());
            batches[usize::from(shard.0)].push(ShardInput::Deliver { recipients, place, authors, frame });
        }
    }
}

/// Whether a consumer has others before it, whose pushes may be lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Life {
    First,
    Another,
}

fn payload_len(event: &PushEvent) -> usize {
    const SMALL: usize = 64;
    match event {
        PushEvent::Sequenced { payload, .. } | PushEvent::Rejected { payload, .. } => Bytes::len(payload),
        PushEvent::ReceiptMoved(_)
        | PushEvent::MembershipChanged { .. }
        | PushEvent::Noticed { .. }
        | PushEvent::GearChanged { .. } => SMALL,
        PushEvent::Marked(_) | PushEvent::Replaced { .. } => 0,
    }
}
