//! The push engine: from this gateway's queue of MQ2 into the shards' mailboxes.
//!
//! In come sequenced events, in order; each is framed once and goes to the shards that hold a receiver. It keeps nothing but
//! counts: pushes may be lost on their way, by a crash or by MQ2; whenever that may have happened, the shards are told, and
//! their clients sync.

mod pace;
pub mod routes;

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures_util::future::{Either, select};
use pace::{Held, Pace};
use prost::Message as _;
use prost::encoding::{WireType, encode_key, encode_varint};
use smallvec::SmallVec;
use tidegate_proto::v1::Gear;
use tidegate_proto::{HEAD_BYTES, Kind, v1};

use crate::clock::Clock;
use crate::delivery::{Encoded, Mailboxes, News, Recipients, ShardId, ShardInput, ShardSet};
use crate::event::{Membership, PushEvent};
use crate::fairness::paces::Paces;
use crate::ids::{ConversationId, Millis, Place, Span, UserId};
use crate::ingest::members::Members;
use crate::limits::PUSH_BATCH_MAX;
use crate::meter;
use crate::ports::{Backend, PortError, PushConsumer, PushQueue};
use crate::storm::{Pulls, StormRules};
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
    /// The acceptors' view of rooms, likewise.
    pub paces: Arc<Paces>,
    /// What is pulled; told of what goes by.
    pub pulls: Arc<Pulls<B, M, C>>,
    /// How long messages of the merged gear may wait for each other.
    pub rules: Arc<StormRules>,
    /// Largest frame in bytes.
    pub frame_bytes_max: usize,
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
        let mut pace = Pace::default();
        loop {
            let taken = {
                let mut next = pin!(consumer.next_batch(PUSH_BATCH_MAX));
                loop {
                    match select(next.as_mut(), pin!(self.clock.sleep(self.pause(&pace)))).await {
                        Either::Left((taken, _)) => break taken,
                        Either::Right(((), _)) => {
                            self.look_for_silence(streams, &mut looked_at).await;
                            self.post(self.route(Vec::new(), streams, &mut pace).0).await;
                        }
                    }
                }
            };
            let events = match taken {
                Ok(events) => events,
                Err(error) => return error,
            };
            self.look_for_silence(streams, &mut looked_at).await;
            metrics::counter!(meter::PUSH_EVENTS).increment(events.len() as u64);
            let (batches, heard) = self.route(events, streams, &mut pace);
            if heard == Heard::Missed {
                self.tell_missed("gap").await;
            }
            self.post(batches).await;
        }
    }

    /// How long to wait for events: until something that is held has to leave, or it is time to look for silence.
    fn pause(&self, pace: &Pace) -> Duration {
        let due = pace.next_due().map(|due| due.0.saturating_sub(self.clock.now().0));
        due.map_or(BEACON_INTERVAL, |due_ms| Duration::from_millis(due_ms).min(BEACON_INTERVAL))
    }

    async fn post(&self, batches: Vec<Vec<ShardInput>>) {
        for (shard, inputs) in (0_u8..).map(ShardId).zip(batches) {
            if !inputs.is_empty() {
                self.mailboxes.post(shard, inputs).await;
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

    /// Pushes may have been lost: changes of rooms for the engines' views, and anything for clients.
    async fn tell_missed(&self, reason: &'static str) {
        metrics::counter!(meter::PUSH_MISSED, "reason" => reason).increment(1);
        tracing::info!(reason, "pushes may have been lost on their way here, clients are told to sync");
        self.members.forget_all();
        self.paces.forget_all();
        self.pulls.tails.doubt();
        for shard in (0..self.mailboxes.shards()).map(ShardId) {
            self.mailboxes.post(shard, vec![ShardInput::PushesMissed { of: None }]).await;
        }
    }

    fn route(&self, events: Vec<PushEvent>, streams: &mut InStreams, pace: &mut Pace) -> (Vec<Vec<ShardInput>>, Heard) {
        let now = self.clock.now();
        let mut heard = Heard::InOrder;
        let mut batches: Vec<Vec<ShardInput>> = (0..self.mailboxes.shards()).map(|_| Vec::new()).collect();
        // One allocation for all frames of the batch; each is a slice of it.
        let payload_bytes: usize = events.iter().map(payload_len).sum();
        let mut buffer = BytesMut::with_capacity(payload_bytes + events.len() * (HEAD_BYTES + 10));
        let everywhere = ShardSet(u64::MAX >> (64 - u32::from(self.mailboxes.shards())));
        let mut pushed: Option<Pushed> = None;
        for event in events {
            match event {
                PushEvent::Sequenced { conversation, epoch, seq, sender, gear, payload } => {
                    let place = Place { epoch, seq };
                    if let ConversationId::Private { .. } = conversation {
                        let frame = Encoded::push(&mut buffer, Kind::Message, &payload);
                        let (span, news) = (Some(place.into()), News::One(sender));
                        self.to_conversation(conversation, span, news, frame, everywhere, &mut batches);
                        continue;
                    }
                    // Asked once for a run of messages, not for each.
                    let (newest, watched) = match pushed {
                        Some(run) if (run.conversation, run.gear) == (conversation, gear) => {
                            (run.newest.max(place), run.watched)
                        }
                        _ => {
                            self.tell_pushed(pushed);
                            (place, self.routes.watchers(&conversation).count)
                        }
                    };
                    pushed = Some(Pushed { conversation, gear, newest, watched });
                    if watched > 0 {
                        let merge_ms = if gear == Gear::Merged { self.merge_ms(&conversation) } else { 0 };
                        let pause_ms = pace::pause_ms(watched, merge_ms);
                        let held = Held { place, sender, is_direct: pause_ms == 0, payload };
                        pace.hold(now, conversation, pause_ms, held);
                    }
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
                        let (span, news, frame) = (None, News::None, frame.clone());
                        let deliver = ShardInput::Deliver { recipients, span, news, frame };
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
                    self.to_conversation(receipt.conversation, None, News::None, frame, everywhere, &mut batches);
                }
                PushEvent::Noticed { conversation, latest, spread_ms } => {
                    self.tell_pushed(pushed.take());
                    self.pulls.tails.noticed(conversation, latest, spread_ms);
                }
                PushEvent::GearChanged { conversation, gear, from } => {
                    self.tell_pushed(pushed.take());
                    self.pulls.tails.shifted(conversation, gear, from);
                    // What was held came before.
                    pace.hurry(now, &conversation);
                    self.take_due(now, pace, &mut buffer, everywhere, &mut batches);
                    let payload = v1::GearChanged {
                        conversation_id: conversation.to_string(),
                        epoch: from.epoch.0,
                        gear: gear.into(),
                        from_seq: from.seq.0,
                    };
                    let frame = Encoded::push(&mut buffer, Kind::GearChanged, &payload.encode_to_vec());
                    if gear != Gear::Signal {
                        let forget = |batch: &mut Vec<_>| batch.push(ShardInput::Tail { conversation, tail: None });
                        batches.iter_mut().for_each(forget);
                    }
                    self.to_conversation(conversation, None, News::None, frame, everywhere, &mut batches);
                }
                PushEvent::RoomChanged(room) => self.paces.forget(room),
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
        self.tell_pushed(pushed);
        self.take_due(now, pace, &mut buffer, everywhere, &mut batches);
        (batches, heard)
    }

    fn tell_pushed(&self, pushed: Option<Pushed>) {
        if let Some(Pushed { conversation, gear, newest, .. }) = pushed {
            self.pulls.tails.pushed(conversation, newest, gear);
        }
    }

    /// Frames what has waited long enough: a message that is alone as it is, those of a moment together.
    fn take_due(
        &self,
        now: Millis,
        pace: &mut Pace,
        buffer: &mut BytesMut,
        everywhere: ShardSet,
        batches: &mut [Vec<ShardInput>],
    ) {
        const HEADS: usize = 64;
        let bytes_max = self.frame_bytes_max.saturating_sub(HEADS);
        pace.take_due(now, bytes_max, |conversation, held| {
            for (span, run) in pace::runs(&held, bytes_max) {
                let frame = match run {
                    [only] => Encoded::push(buffer, Kind::Message, &only.payload),
                    many => Encoded::push(buffer, Kind::Messages, &joined(many)),
                };
                let authors: SmallVec<[UserId; 16]> = run.iter().map(|held| held.sender).collect();
                self.to_conversation(conversation, Some(span), News::by(&authors), frame, everywhere, batches);
            }
        });
    }

    fn merge_ms(&self, conversation: &ConversationId) -> u64 {
        u64::try_from(self.rules.of(conversation).merge.as_millis()).unwrap_or(u64::MAX)
    }

    fn to_conversation(
        &self,
        conversation: ConversationId,
        span: Option<Span>,
        news: News,
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
            let (news, frame) = (news.clone(), frame.clone());
            batches[usize::from(shard.0)].push(ShardInput::Deliver { recipients, span, news, frame });
        }
    }
}

/// Messages of a room or lobby that follow each other, in one gear.
#[derive(Clone, Copy)]
struct Pushed {
    conversation: ConversationId,
    gear: Gear,
    newest: Place,
    /// How many watch it here.
    watched: u32,
}

/// An encoded `Messages`: Protobuf lets a message be put together from its encoded parts.
fn joined(run: &[Held]) -> BytesMut {
    const MESSAGES_TAG: u32 = 1;
    let mut out = BytesMut::with_capacity(run.iter().map(|held| held.payload.len() + 8).sum());
    for held in run {
        encode_key(MESSAGES_TAG, WireType::LengthDelimited, &mut out);
        encode_varint(held.payload.len() as u64, &mut out);
        out.extend_from_slice(&held.payload);
    }
    out
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
        PushEvent::Marked(_) | PushEvent::Replaced { .. } | PushEvent::RoomChanged(_) => 0,
    }
}

#[cfg(test)]
mod tests;
