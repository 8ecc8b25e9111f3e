//! Backends for the engine's tests: the in-process twins behind ports that fail, stop or lose answers on command.
//!
//! A test says what becomes of the next calls of a step ([`Faults::next`]); all others go through. Clones share it all, so
//! that two engines meet over one hot store and one archive, each with faults of its own.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
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
use crate::storm::StormRules;
use crate::streams::OutStreams;
use crate::twins::archive::MemoryArchive;
use crate::twins::hot_store::EmbeddedHotStore;
use crate::twins::queues::EmbeddedIngestQueue;

/// No time passes in sleep.
#[derive(Clone)]
pub(crate) struct Impatient;

impl Clock for Impatient {
    fn now(&self) -> Millis {
        Millis(1)
    }

    async fn sleep(&self, _: Duration) {}
}

/// Time passes when the test says so.
#[derive(Clone)]
pub(crate) struct ManualClock(Arc<AtomicU64>, Arc<tokio::sync::Notify>);

impl ManualClock {
    pub(crate) fn at(now_ms: u64) -> Self {
        Self(Arc::new(AtomicU64::new(now_ms)), Arc::default())
    }

    pub(crate) fn advance(&self, ms: u64) {
        self.0.fetch_add(ms, Ordering::SeqCst);
        self.1.notify_waiters();
    }
}

impl Clock for ManualClock {
    fn now(&self) -> Millis {
        Millis(self.0.load(Ordering::SeqCst))
    }

    async fn sleep(&self, delay: Duration) {
        let until = self.now().0 + u64::try_from(delay.as_millis()).expect("no test sleeps so long");
        loop {
            let advanced = self.1.notified();
            if self.now().0 >= until {
                return;
            }
            advanced.await;
        }
    }
}

/// What becomes of one call.
pub(crate) enum Fate {
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

/// Calls of one step that an engine makes in one test, at most. Time does not pass here, so an engine that repeats itself for ever is noticed
/// by this alone.
const CALLS_MAX: u32 = 10_000;

/// The fates of the calls to come, by step, and the number of calls.
#[derive(Clone, Default)]
pub(crate) struct Faults(Arc<Mutex<FxHashMap<&'static str, VecDeque<Fate>>>>, Arc<Mutex<FxHashMap<&'static str, u32>>>);

impl Faults {
    pub(crate) fn next(&self, step: &'static str, fate: Fate) {
        self.0.lock().expect("no test panics here").entry(step).or_default().push_back(fate);
    }

    /// Whether every fate has met its call.
    pub(crate) fn are_spent(&self) -> bool {
        self.0.lock().expect("no test panics here").values().all(VecDeque::is_empty)
    }

    /// Calls of a step so far.
    pub(crate) fn calls(&self, step: &'static str) -> u32 {
        self.1.lock().expect("no test panics here").get(step).copied().unwrap_or_default()
    }

    async fn around<T>(&self, step: &'static str, call: impl Future<Output = PortResult<T>>) -> PortResult<T> {
        let calls = {
            let mut calls = self.1.lock().expect("no test panics here");
            let calls = calls.entry(step).or_default();
            *calls += 1;
            *calls
        };
        assert!(calls < CALLS_MAX, "no end of calls of {step}");
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
pub(crate) struct Faulty<P> {
    pub(crate) inner: P,
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

impl<C: Clock> HotStore for Faulty<EmbeddedHotStore<C>> {
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
pub(crate) struct Published(Arc<Mutex<Vec<PushEvent>>>);

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
pub(crate) struct NoConsumer;

impl PushConsumer for NoConsumer {
    async fn next_batch(&mut self, _: usize) -> PortResult<Vec<PushEvent>> {
        std::future::pending().await
    }
}

/// What one engine works with: rooms 1 and 2, with the users 1 and 2 as members.
#[derive(Clone)]
pub(crate) struct World<C = Impatient> {
    ingest: EmbeddedIngestQueue,
    push: Published,
    clock: C,
    hot: Faulty<EmbeddedHotStore<C>>,
    archive: Faulty<MemoryArchive>,
    pub(crate) faults: Faults,
}

impl World {
    pub(crate) fn new() -> Self {
        Self::with_clock(Impatient)
    }
}

impl<C: Clock> World<C> {
    pub(crate) fn with_clock(clock: C) -> Self {
        let faults = Faults::default();
        let gateway: GatewayId = "gw".parse().expect("legal");
        let (hot, archive) = (EmbeddedHotStore::new(gateway, clock.clone()), MemoryArchive::with_epoch(Epoch(100)));
        for name in ["den", "raid"] {
            let made = archive.create_room(name, UserId(1), 8, Millis(1)).now_or_never();
            let room = made.expect("in memory").expect("a room").id;
            archive.join_room(room, UserId(2), Millis(1)).now_or_never().expect("in memory").expect("joined");
        }
        let breaks = Arc::default();
        Self {
            ingest: EmbeddedIngestQueue::new(1),
            push: Published::default(),
            clock,
            hot: Faulty { inner: hot, faults: faults.clone(), breaks: Arc::default(), unfit: Unfit::default() },
            archive: Faulty { inner: archive, faults: faults.clone(), breaks, unfit: Unfit::default() },
            faults,
        }
    }

    /// The same services as another engine sees them.
    pub(crate) fn beside(&self) -> Self {
        let faults = Faults::default();
        let mut other = self.clone();
        (other.hot.faults, other.archive.faults, other.faults) = (faults.clone(), faults.clone(), faults);
        other
    }

    pub(crate) fn engine(&self) -> IngestEngine<Self, C> {
        self.engine_with(Arc::new(OutStreams::new(1)), Arc::default())
    }

    /// One that goes on with the streams of another, by rules.
    pub(crate) fn engine_with(&self, streams: Arc<OutStreams>, rules: Arc<StormRules>) -> IngestEngine<Self, C> {
        let members = Arc::new(Members::default());
        IngestEngine::new(Partition(0), Arc::new(self.clone()), self.clock.clone(), members, streams, rules)
    }

    pub(crate) fn memory(&self) -> &MemoryArchive {
        &self.archive.inner
    }

    /// From now on the archive never takes the message, nor a receipt of the user.
    pub(crate) fn make_unfit(&self, message: MessageId, user: UserId) {
        let mut unfit = self.archive.unfit.0.lock().expect("no test panics here");
        unfit.0.insert(message);
        unfit.1.insert(user);
    }

    pub(crate) fn dead_letters(&self) -> Vec<DeadLetter> {
        self.ingest.dead_letters()
    }

    pub(crate) fn lose_hot_store(&self) {
        self.hot.inner.lose_everything();
    }

    /// As when a connection to the archive ended and another was made.
    pub(crate) fn break_connection(&self) {
        self.archive.breaks.fetch_add(1, Ordering::SeqCst);
    }

    /// What gateways were told since the last look, without the streams' marks.
    pub(crate) fn take_published(&self) -> Vec<PushEvent> {
        let mut events = std::mem::take(&mut *self.push.0.lock().expect("no test panics here"));
        events.retain(|event| !matches!(event, PushEvent::Marked(_)));
        events
    }

    /// What clients were told of messages: conversation, epoch, sequence, id.
    pub(crate) fn pushed(&self) -> Vec<(String, u32, u64, MessageId)> {
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
    pub(crate) fn rejected(&self) -> Vec<MessageId> {
        let told = |event: &PushEvent| match event {
            PushEvent::Rejected { payload, .. } => {
                let rejected = v1::SendRejected::decode(payload.clone()).expect("a rejection");
                MessageId::from_wire(&rejected.message_id)
            }
            _ => None,
        };
        self.push.0.lock().expect("no test panics here").iter().filter_map(told).collect()
    }

    pub(crate) async fn end(&self, conversation: ConversationId) -> End {
        self.memory().ends(&[conversation]).await.expect("in memory")[0]
    }

    /// The ids of a conversation's messages, which have the sequences 1, 2, 3 and so on.
    pub(crate) async fn dense(&self, conversation: ConversationId) -> Vec<MessageId> {
        let all = self.memory().history(conversation, Page::After(Seq(0)), u32::MAX).await.expect("in memory");
        let seqs: Vec<_> = all.iter().map(|message| message.seq.0).collect();
        assert_eq!(seqs, (1..=seqs.len() as u64).collect::<Vec<_>>(), "a gap in {conversation}");
        all.into_iter().map(|message| message.message_id).collect()
    }
}

impl<C: Clock> Backend for World<C> {
    type Ingest = EmbeddedIngestQueue;
    type Push = Published;
    type Hot = Faulty<EmbeddedHotStore<C>>;
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
pub(crate) struct Acked(pub(crate) u64);

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
pub(crate) fn id(n: u8) -> MessageId {
    MessageId([n; 16])
}

/// The nth message, in a conversation. Its body is its own.
pub(crate) fn message(conversation: ConversationId, n: u8) -> IngestEvent {
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

pub(crate) fn receipt(conversation: ConversationId, user: u64, read: u64) -> IngestEvent {
    let (delivered, read) = (Seq(read), Seq(read));
    IngestEvent::ReceiptMoved(ReceiptMoved { conversation, user: UserId(user), delivered, read })
}

pub(crate) fn batch(events: Vec<IngestEvent>) -> IngestBatch {
    IngestBatch { events, up_to: DeliveryTag(1) }
}
