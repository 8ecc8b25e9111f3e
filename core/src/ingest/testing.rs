//! Backends for the engine's tests: the in-process twins behind ports that fail, stop or lose answers on command.
//!
//! A test says what becomes of the next calls of a step ([`Faults::next`]); all others go through. Clones share it all, so
//! that two engines meet over one hot store and one archive, each with faults of its own.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt as _;
use prost::Message as _;
use rustc_hash::{FxHashMap, FxHashSet};
use tidegate_proto::v1;

use super::IngestEngine;
use super::members::Members;
use crate::clock::Clock;
use crate::event::{Accepted, IngestEvent, PushEvent, ReceiptMoved, StoredMessage};
use crate::ids::{
    ConversationId, Epoch, GatewayId, LobbyName, MessageId, Millis, Partition, Place, RoomId, Seq, SessionId, UserId,
};
use crate::ports::{
    Archive, Backend, Beat, CacheRun, CacheSlice, DeadLetter, DeliveryTag, End, Filing, HotStore, IngestBatch,
    IngestConsumer, Joined, Page, PersistBatch, PortError, PortResult, Presence, PresenceChange, PresenceOutcome,
    PushConsumer, PushQueue, PushTarget, Room, Seeding, SequenceGrant, SequenceRun, Spend, Standing, Summary,
    TokenState, UnreadCount, User, Watermark,
};
use crate::streams::OutStreams;
use crate::twins::archive::MemoryArchive;
use crate::twins::hot_store::EmbeddedHotStore;
use crate::twins::queues::EmbeddedIngestQueue;

/// No time passes in sleep.
#[derive(Clone)]
pub(super) struct Impatient;

impl Clock for Impatient {
    fn now(&self) -> Millis {
        Millis(1)
    }

    async fn sleep(&self, _: Duration) {}
}

/// What becomes of one call.
pub(super) enum Fate {
    /// It is not done, and an error says so.
    Fail,
    /// It is not done, and never will be, says the service.
    Refuse,
    /// It is done, and an error hides it.
    LoseReply,
    /// Something else happens first, then it is done.
    Meanwhile(Box<dyn FnOnce() + Send>),
    /// Something else happens, and it is not done.
    FailMeanwhile(Box<dyn FnOnce() + Send>),
    /// It waits until the test lets it go on.
    Hold(Arc<tokio::sync::Notify>),
}

/// Calls an engine makes in one test, at most. Time does not pass here, so an engine that repeats itself for ever is noticed
/// by this alone.
const CALLS_MAX: u32 = 10_000;

/// The fates of the calls to come, by step, and the number of calls.
#[derive(Clone, Default)]
pub(super) struct Faults(Arc<Mutex<FxHashMap<&'static str, VecDeque<Fate>>>>, Arc<AtomicU32>);

impl Faults {
    pub(super) fn next(&self, step: &'static str, fate: Fate) {
        self.0.lock().expect("no test panics here").entry(step).or_default().push_back(fate);
    }

    /// Whether every fate has met its call.
    pub(super) fn are_spent(&self) -> bool {
        self.0.lock().expect("no test panics here").values().all(VecDeque::is_empty)
    }

    async fn around<T>(&self, step: &'static str, call: impl Future<Output = PortResult<T>>) -> PortResult<T> {
        assert!(self.1.fetch_add(1, Ordering::SeqCst) < CALLS_MAX, "no end of calls of {step}");
        let lost = || PortError::Unavailable { service: "test", detail: step.to_owned() };
        let fate = self.0.lock().expect("no test panics here").get_mut(step).and_then(VecDeque::pop_front);
        match fate {
            None => call.await,
            Some(Fate::Fail) => Err(lost()),
            Some(Fate::Refuse) => Err(PortError::Refused { service: "test", detail: step.to_owned() }),
            Some(Fate::LoseReply) => call.await.and(Err(lost())),
            Some(Fate::Meanwhile(work)) => {
                work();
                call.await
            }
            Some(Fate::FailMeanwhile(work)) => {
                work();
                Err(lost())
            }
            Some(Fate::Hold(gate)) => {
                gate.notified().await;
                call.await
            }
        }
    }
}

/// A port whose calls have fates.
#[derive(Clone)]
pub(super) struct Faulty<P> {
    pub(super) inner: P,
    faults: Faults,
    breaks: Arc<AtomicU64>,
    unfit: Unfit,
}

/// What the archive never takes: messages by their id, receipts by their user.
#[derive(Clone, Default)]
struct Unfit(Arc<Mutex<(FxHashSet<MessageId>, FxHashSet<UserId>)>>);

impl Unfit {
    fn is_in(&self, batch: &PersistBatch) -> bool {
        let (messages, users) = &*self.0.lock().expect("no test panics here");
        batch.messages.iter().any(|message| messages.contains(&message.message_id))
            || batch.receipts.iter().any(|receipt| users.contains(&receipt.user))
    }
}

macro_rules! with_fates {
    ($($name:ident($($arg:ident: $kind:ty),*) -> $answer:ty;)*) => {
        $(async fn $name(&self, $($arg: $kind),*) -> PortResult<$answer> {
            self.faults.around(stringify!($name), self.inner.$name($($arg),*)).await
        })*
    };
}

impl HotStore for Faulty<EmbeddedHotStore<Impatient>> {
    with_fates! {
        sequence(runs: &[SequenceRun]) -> Vec<SequenceGrant>;
        settle(ends: &[(ConversationId, End)], cached: &[CacheRun]) -> ();
        cached(conversation: ConversationId, after: Option<Place>, messages_max: usize, bytes_max: usize) -> CacheSlice;
        presence(users: &[UserId]) -> Vec<Presence>;
        change_presence(changes: &[PresenceChange]) -> Vec<PresenceOutcome>;
        resume(user: UserId, device: &str, session: SessionId) -> Option<Vec<LobbyName>>;
        peek_inbox(user: UserId, max: usize) -> Vec<Bytes>;
        beat() -> Beat;
        file(filings: &[Filing]) -> ();
        take_summary(user: UserId) -> Summary;
        seed_unread(user: UserId, seeding: Seeding, counts: &[UnreadCount]) -> ();
        set_unread(counts: &[(UserId, UnreadCount)]) -> ();
        forget_unread(users: &[UserId]) -> ();
        spend(spends: &[Spend]) -> Vec<u64>;
        put_token(token: &str, user: UserId, ttl: Duration) -> ();
        token_states(tokens: &[&str]) -> Vec<TokenState>;
        delete_token(token: &str) -> bool;
        ping() -> ();
    }
}

impl Archive for Faulty<MemoryArchive> {
    fn epoch(&self) -> Epoch {
        self.inner.epoch()
    }

    fn breaks(&self) -> u64 {
        self.breaks.load(Ordering::SeqCst)
    }

    async fn persist(&self, batch: &PersistBatch) -> PortResult<()> {
        let attempt = async {
            if self.unfit.is_in(batch) {
                return Err(PortError::Unfit { service: "test", detail: "not here".to_owned() });
            }
            self.inner.persist(batch).await
        };
        self.faults.around("persist", attempt).await
    }

    with_fates! {
        find(messages: &[MessageId]) -> Vec<StoredMessage>;
        ends(conversations: &[ConversationId]) -> Vec<End>;
        begin_epoch(conversations: &[(ConversationId, Epoch)]) -> Vec<Epoch>;
        history(conversation: ConversationId, page: Page, size: u32) -> Vec<StoredMessage>;
        missing(after: &[(ConversationId, Seq)], max_each: u32) -> Vec<Vec<StoredMessage>>;
        watermarks(conversations: &[ConversationId]) -> Vec<Vec<Watermark>>;
        standings(user: UserId, max: usize) -> Vec<Standing>;
        standings_of(pairs: &[(UserId, ConversationId)]) -> Vec<Standing>;
        create_user(name: &str, password_hash: &str, at: Millis) -> Option<UserId>;
        user_by_name(name: &str) -> Option<(User, String)>;
        users(ids: &[UserId]) -> Vec<User>;
        create_room(name: &str, owner: UserId, capacity: u32, at: Millis) -> Room;
        room(room: RoomId) -> Option<Room>;
        rooms_by_id(ids: &[RoomId]) -> Vec<Room>;
        set_slow_mode(room: RoomId, slow_mode_s: u32) -> bool;
        rooms(before: Option<RoomId>, size: u32) -> Vec<Room>;
        join_room(room: RoomId, user: UserId, at: Millis) -> Joined;
        leave_room(room: RoomId, user: UserId) -> bool;
        members(rooms: &[RoomId]) -> Vec<Vec<UserId>>;
        rooms_of(user: UserId) -> Vec<RoomId>;
        ping() -> ();
    }
}

/// MQ2 as a list of what was published.
#[derive(Clone, Default)]
pub(super) struct Published(Arc<Mutex<Vec<PushEvent>>>);

impl PushQueue for Published {
    type Consumer = NoConsumer;

    async fn publish(&self, batches: Vec<(PushTarget, Vec<PushEvent>)>) -> PortResult<Vec<GatewayId>> {
        self.0.lock().expect("no test panics here").extend(batches.into_iter().flat_map(|(_, events)| events));
        Ok(Vec::new())
    }

    async fn consume(&self) -> PortResult<NoConsumer> {
        Ok(NoConsumer)
    }
}

/// Nobody takes pushes here.
pub(super) struct NoConsumer;

impl PushConsumer for NoConsumer {
    async fn next_batch(&mut self, _: usize) -> PortResult<Vec<PushEvent>> {
        std::future::pending().await
    }
}

/// What one engine works with: rooms 1 and 2, with the users 1 and 2 as members.
#[derive(Clone)]
pub(super) struct World {
    ingest: EmbeddedIngestQueue,
    push: Published,
    hot: Faulty<EmbeddedHotStore<Impatient>>,
    archive: Faulty<MemoryArchive>,
    pub(super) faults: Faults,
}

impl World {
    pub(super) fn new() -> Self {
        let faults = Faults::default();
        let gateway: GatewayId = "gw".parse().expect("legal");
        let (hot, archive) = (EmbeddedHotStore::new(gateway, Impatient), MemoryArchive::with_epoch(Epoch(100)));
        for name in ["den", "raid"] {
            let made = archive.create_room(name, UserId(1), 8, Millis(1)).now_or_never();
            let room = made.expect("in memory").expect("a room").id;
            archive.join_room(room, UserId(2), Millis(1)).now_or_never().expect("in memory").expect("joined");
        }
        let breaks = Arc::default();
        Self {
            ingest: EmbeddedIngestQueue::new(1),
            push: Published::default(),
            hot: Faulty { inner: hot, faults: faults.clone(), breaks: Arc::default(), unfit: Unfit::default() },
            archive: Faulty { inner: archive, faults: faults.clone(), breaks, unfit: Unfit::default() },
            faults,
        }
    }

    /// The same services as another engine sees them.
    pub(super) fn beside(&self) -> Self {
        let faults = Faults::default();
        let mut other = self.clone();
        (other.hot.faults, other.archive.faults, other.faults) = (faults.clone(), faults.clone(), faults);
        other
    }

    pub(super) fn engine(&self) -> IngestEngine<Self, Impatient> {
        let (members, streams) = (Arc::new(Members::default()), Arc::new(OutStreams::new(1)));
        IngestEngine::new(Partition(0), Arc::new(self.clone()), Impatient, members, streams, Arc::default())
    }

    pub(super) fn memory(&self) -> &MemoryArchive {
        &self.archive.inner
    }

    /// From now on the archive never takes the message, nor a receipt of the user.
    pub(super) fn make_unfit(&self, message: MessageId, user: UserId) {
        let mut unfit = self.archive.unfit.0.lock().expect("no test panics here");
        unfit.0.insert(message);
        unfit.1.insert(user);
    }

    pub(super) fn dead_letters(&self) -> Vec<DeadLetter> {
        self.ingest.dead_letters()
    }

    pub(super) fn lose_hot_store(&self) {
        self.hot.inner.lose_everything();
    }

    /// As when a connection to the archive ended and another was made.
    pub(super) fn break_connection(&self) {
        self.archive.breaks.fetch_add(1, Ordering::SeqCst);
    }

    /// What clients were told of messages: conversation, epoch, sequence, id.
    pub(super) fn pushed(&self) -> Vec<(String, u32, u64, MessageId)> {
        let told = |event: &PushEvent| match event {
            PushEvent::Sequenced { payload, .. } => {
                let message = v1::Message::decode(payload.clone()).expect("a message");
                let id = MessageId::from_wire(&message.message_id).expect("an id");
                Some((message.conversation_id, message.epoch, message.seq, id))
            }
            _ => None,
        };
        self.push.0.lock().expect("no test panics here").iter().filter_map(told).collect()
    }

    /// The messages that were rejected after their ack.
    pub(super) fn rejected(&self) -> Vec<MessageId> {
        let told = |event: &PushEvent| match event {
            PushEvent::Rejected { payload, .. } => {
                let rejected = v1::SendRejected::decode(payload.clone()).expect("a rejection");
                MessageId::from_wire(&rejected.message_id)
            }
            _ => None,
        };
        self.push.0.lock().expect("no test panics here").iter().filter_map(told).collect()
    }

    pub(super) async fn end(&self, conversation: ConversationId) -> End {
        self.memory().ends(&[conversation]).await.expect("in memory")[0]
    }

    /// The ids of a conversation's messages, which have the sequences 1, 2, 3 and so on.
    pub(super) async fn dense(&self, conversation: ConversationId) -> Vec<MessageId> {
        let all = self.memory().history(conversation, Page::After(Seq(0)), u32::MAX).await.expect("in memory");
        let seqs: Vec<_> = all.iter().map(|message| message.seq.0).collect();
        assert_eq!(seqs, (1..=seqs.len() as u64).collect::<Vec<_>>(), "a gap in {conversation}");
        all.into_iter().map(|message| message.message_id).collect()
    }
}

impl Backend for World {
    type Ingest = EmbeddedIngestQueue;
    type Push = Published;
    type Hot = Faulty<EmbeddedHotStore<Impatient>>;
    type Archive = Faulty<MemoryArchive>;

    fn ingest(&self) -> &Self::Ingest {
        &self.ingest
    }
    fn push(&self) -> &Self::Push {
        &self.push
    }
    fn hot(&self) -> &Self::Hot {
        &self.hot
    }
    fn archive(&self) -> &Self::Archive {
        &self.archive
    }
}

/// Takes acknowledgements.
#[derive(Default)]
pub(super) struct Acked(pub(super) u64);

impl IngestConsumer for Acked {
    async fn next_batch(&mut self, _: usize) -> PortResult<IngestBatch> {
        Err(PortError::Closed)
    }

    async fn ack(&mut self, up_to: DeliveryTag) -> PortResult<()> {
        self.0 = up_to.0;
        Ok(())
    }
}

/// The nth message of a test.
pub(super) fn id(n: u8) -> MessageId {
    MessageId([n; 16])
}

/// The nth message, in a conversation. Its body is its own.
pub(super) fn message(conversation: ConversationId, n: u8) -> IngestEvent {
    IngestEvent::Accepted(Accepted {
        message_id: id(n),
        conversation,
        sender: UserId(1),
        session: SessionId(1),
        gateway: "gw".parse().expect("legal"),
        accepted_at: Millis(1),
        content_type: v1::ContentType::Text,
        body: Bytes::from(vec![n]),
    })
}

pub(super) fn receipt(conversation: ConversationId, user: u64, read: u64) -> IngestEvent {
    let (delivered, read) = (Seq(read), Seq(read));
    IngestEvent::ReceiptMoved(ReceiptMoved { conversation, user: UserId(user), delivered, read })
}

pub(super) fn batch(events: Vec<IngestEvent>) -> IngestBatch {
    IngestBatch { events, up_to: DeliveryTag(1) }
}
