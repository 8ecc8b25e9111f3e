//! One acceptor with all around it in memory: what becomes of messages that are more than fair.

use std::future::pending;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use tidegate_proto::v1::ContentType;
use tokio::sync::Notify;
use tokio::task::JoinHandle;
use tokio::time::Instant;

use super::*;
use crate::delivery::ConnectionKey;
use crate::event::{Accepted, ReceiptMoved};
use crate::fairness::limit::Limit;
use crate::fairness::rules::{Limits, SendLimits};
use crate::ids::{ConversationId, GatewayId, LobbyName, MessageId, Millis, Place, RoomId, Seq, SessionId};
use crate::limits::INGEST_BATCH_MAX;
use crate::ports::{
    AllowanceKey, Beat, CacheRun, CacheSlice, End, Filing, Holder, HotStore, IngestConsumer as _, Presence,
    PresenceChange, PresenceOutcome, Seeding, SequenceGrant, SequenceRun, Spend, Summary, TokenState, UnreadCount,
};
use crate::twins::archive::MemoryArchive;
use crate::twins::hot_store::EmbeddedHotStore;
use crate::twins::queues::{EmbeddedIngestQueue, EmbeddedPushQueue};

const ANN: UserId = UserId(1);
const BOB: UserId = UserId(2);
const NOON: u64 = 1_800_000_000_000;

/// The runtime's time, which passes when everybody waits.
#[derive(Clone)]
struct Paused(Instant);

impl Clock for Paused {
    fn now(&self) -> Millis {
        Millis(NOON + u64::try_from(self.0.elapsed().as_millis()).expect("short"))
    }

    async fn sleep(&self, delay: Duration) {
        tokio::time::sleep(delay).await;
    }
}

/// A store of allowances that can hang.
struct Allowances {
    inner: EmbeddedHotStore<Paused>,
    hangs: AtomicBool,
}

macro_rules! nobody_calls {
    ($($name:ident($($arg:ident: $kind:ty),*) -> $answer:ty;)*) => {
        $(async fn $name(&self, $(_: $kind),*) -> PortResult<$answer> {
            unreachable!("an acceptor has no need of {}", stringify!($name))
        })*
    };
}

impl HotStore for Allowances {
    async fn spend(&self, spends: &[Spend]) -> PortResult<Vec<u64>> {
        if self.hangs.load(Ordering::SeqCst) {
            pending::<()>().await;
        }
        self.inner.spend(spends).await
    }

    nobody_calls! {
        sequence(runs: &[SequenceRun]) -> Vec<SequenceGrant>;
        settle(ends: &[(ConversationId, End)], caches: &[CacheRun]) -> ();
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
        put_token(token: &str, user: UserId, ttl: Duration) -> ();
        token_states(tokens: &[&str]) -> Vec<TokenState>;
        delete_token(token: &str) -> bool;
        ping() -> ();
    }
}

struct Parts {
    ingest: EmbeddedIngestQueue,
    push: EmbeddedPushQueue,
    hot: Allowances,
    archive: MemoryArchive,
}

impl Backend for Parts {
    type Ingest = EmbeddedIngestQueue;
    type Push = EmbeddedPushQueue;
    type Hot = Allowances;
    type Archive = MemoryArchive;

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

/// What became of a command, by its correlation.
type Settlement = (u16, Result<(), Refused>);

/// A shard that remembers what became of its commands.
#[derive(Clone, Default)]
struct Shard(Arc<Mutex<Vec<Settlement>>>, Arc<Notify>);

impl Mailboxes for Shard {
    fn shards(&self) -> u8 {
        1
    }

    async fn post(&self, _: ShardId, inputs: Vec<ShardInput>) {
        for input in inputs {
            let ShardInput::Settled(settled) = input else { panic!("{input:?}") };
            let ends = settled.into_iter().map(|one| (one.ticket.correlation, one.outcome.map(|_| ())));
            self.0.lock().expect("no test panics here").extend(ends);
            self.1.notify_one();
        }
    }
}

struct World {
    parts: Arc<Parts>,
    rules: Rules,
    queues: AcceptQueues,
    shard: Shard,
    accepting: JoinHandle<()>,
    consuming: JoinHandle<()>,
    begun: Instant,
    correlation: u16,
}

impl World {
    /// Two messages a second from each user, three at once.
    async fn new() -> Self {
        let (begun, gateway): (_, GatewayId) = (Instant::now(), "gw".parse().expect("legal"));
        let inner = EmbeddedHotStore::new(gateway.clone(), Paused(begun));
        let parts = Arc::new(Parts {
            ingest: EmbeddedIngestQueue::new(1),
            push: EmbeddedPushQueue::new(gateway),
            hot: Allowances { inner, hangs: AtomicBool::new(false) },
            archive: MemoryArchive::new(),
        });
        for name in ["ann", "bob"] {
            parts.archive.create_user(name, "", Millis(NOON)).await.expect("in memory").expect("the first");
        }
        let limits = Limits { user: Limit::per_second(2, 3), conversation: None };
        let rules = Rules { limits: Arc::new(SendLimits::new(limits, Vec::new())), paces: Arc::default() };
        let (queues, shard) = (AcceptQueues::new(1), Shard::default());
        let clock = Paused(begun);
        let accepting = run(Partition(0), queues.clone(), Arc::clone(&parts), shard.clone(), rules.clone(), clock);
        let mut consumer = parts.ingest.consume(Partition(0)).await.expect("in memory");
        let consuming = async move {
            while let Ok(batch) = consumer.next_batch(INGEST_BATCH_MAX).await {
                consumer.ack(batch.up_to).await.expect("in memory");
            }
        };
        let (accepting, consuming) = (tokio::spawn(accepting), tokio::spawn(consuming));
        Self { parts, rules, queues, shard, accepting, consuming, begun, correlation: 0 }
    }

    fn offer(&mut self, event: IngestEvent, peer: Option<UserId>) {
        self.correlation += 1;
        let connection = ConnectionKey { shard: ShardId(0), slot: 0, generation: 0 };
        let ticket = Ticket { connection, correlation: self.correlation };
        self.queues.offer(&mut VecDeque::from([Accepting { ticket, event, peer }]), &mut Vec::new());
    }

    fn send(&mut self, sender: UserId, conversation: &str) {
        let conversation: ConversationId = conversation.parse().expect("an id");
        let event = IngestEvent::Accepted(Accepted {
            message_id: MessageId([0; 16]),
            conversation,
            sender,
            session: SessionId(1),
            gateway: "gw".parse().expect("legal"),
            accepted_at: Paused(self.begun).now(),
            content_type: ContentType::Text,
            body: Bytes::from_static(b"hello"),
        });
        self.offer(event, conversation.peer_of(sender));
    }

    fn read(&mut self, user: UserId, conversation: &str) {
        let conversation = conversation.parse().expect("an id");
        let receipt = ReceiptMoved { conversation, user, delivered: Seq(1), read: Seq(1) };
        self.offer(IngestEvent::ReceiptMoved(receipt), None);
    }

    /// Once all is answered: the wait of each command, in the order of sending; 0 if it was accepted.
    async fn verdicts(&mut self) -> Vec<u32> {
        loop {
            {
                let mut ends = self.shard.0.lock().expect("no test panics here");
                if ends.len() == usize::from(self.correlation) {
                    self.correlation = 0;
                    ends.sort_by_key(|(correlation, _)| *correlation);
                    let wait = |(_, end): Settlement| match end {
                        Ok(()) => 0,
                        Err(Refused { code: Code::SlowDown, retry_after_ms }) => retry_after_ms,
                        Err(refused) => panic!("{refused:?}"),
                    };
                    return ends.drain(..).map(wait).collect();
                }
            }
            self.shard.1.notified().await;
        }
    }

    async fn debt_us(&self, holder: Holder, conversation: &str) -> u64 {
        let key = AllowanceKey { conversation: conversation.parse().expect("an id"), holder };
        let ask = Spend { key, cost_us: 0, age_us: 0, debt_us: 0, most_us: u64::MAX };
        self.parts.hot.inner.spend(&[ask]).await.expect("in memory")[0]
    }

    async fn end(self) -> Arc<Parts> {
        self.queues.close();
        self.accepting.await.expect("it comes to its end");
        self.consuming.abort();
        self.parts
    }
}

#[tokio::test(start_paused = true)]
async fn what_is_more_than_fair_is_told_to_wait_and_passes_after_it() {
    let mut world = World::new().await;
    for _ in 0..5 {
        world.send(ANN, "lobby_main");
    }
    world.send(BOB, "lobby_main");
    world.send(ANN, "r_1");
    world.read(ANN, "r_1");
    for _ in 0..9 {
        world.send(ANN, "p_1_2");
    }
    assert_eq!(world.verdicts().await, [&[0, 0, 0, 500, 500][..], &[0; 12]].concat());
    tokio::time::sleep(Duration::from_millis(499)).await;
    world.send(ANN, "lobby_main");
    assert_eq!(world.verdicts().await, [1]);
    tokio::time::sleep(Duration::from_millis(1)).await;
    world.send(ANN, "lobby_main");
    assert_eq!(world.verdicts().await, [0]);
    world.end().await;
}

#[tokio::test(start_paused = true)]
async fn what_passed_is_told_within_half_a_second_and_at_the_end_at_once() {
    let mut world = World::new().await;
    world.send(ANN, "lobby_main");
    world.send(ANN, "lobby_main");
    assert_eq!(world.verdicts().await, [0, 0]);
    assert_eq!(world.debt_us(Holder::User(ANN), "lobby_main").await, 0);
    tokio::time::sleep(Duration::from_millis(501)).await;
    assert_eq!(world.debt_us(Holder::User(ANN), "lobby_main").await, 499_000);

    world.send(BOB, "lobby_main");
    assert_eq!(world.verdicts().await, [0]);
    let inner = world.parts.hot.inner.clone();
    world.end().await;
    let key = AllowanceKey { conversation: "lobby_main".parse().expect("an id"), holder: Holder::User(BOB) };
    let ask = Spend { key, cost_us: 0, age_us: 0, debt_us: 0, most_us: u64::MAX };
    assert_eq!(inner.spend(&[ask]).await, Ok(vec![500_000]));
}

#[tokio::test(start_paused = true)]
async fn a_store_that_hangs_stops_nobody_for_long() {
    let mut world = World::new().await;
    world.parts.hot.hangs.store(true, Ordering::SeqCst);
    for _ in 0..5 {
        world.send(ANN, "lobby_main");
    }
    assert_eq!(world.verdicts().await, [0, 0, 0, 300, 300], "here the limit holds, from when they came");
    assert_eq!(world.begun.elapsed().as_millis(), 200, "the first ones waited for an answer");
    for n in 0..9 {
        tokio::time::sleep(Duration::from_millis(100)).await;
        let before = world.begun.elapsed();
        world.send(BOB, &format!("r_{}", n + 1));
        assert_eq!(world.verdicts().await, [0]);
        assert_eq!(world.begun.elapsed(), before, "for a second nobody waits again");
    }
    world.parts.hot.hangs.store(false, Ordering::SeqCst);
    tokio::time::sleep(Duration::from_secs(2)).await;
    for _ in 0..4 {
        world.send(ANN, "lobby_main");
    }
    assert_eq!(world.verdicts().await, [0, 0, 0, 500]);
    world.end().await;
}

#[tokio::test(start_paused = true)]
async fn slow_mode_begins_and_ends_when_the_room_is_read_anew() {
    let mut world = World::new().await;
    let room = world.parts.archive.create_room("den", BOB, 8, Millis(NOON)).await.expect("in memory").id;
    assert_eq!(room, RoomId(1));
    world.send(ANN, "r_1");
    assert_eq!(world.verdicts().await, [0]);
    world.parts.archive.set_slow_mode(room, 30).await.expect("in memory");
    world.send(ANN, "r_1");
    assert_eq!(world.verdicts().await, [0], "nobody has said so yet");
    world.rules.paces.forget(room);
    for sender in [ANN, ANN, BOB, BOB] {
        world.send(sender, "r_1");
    }
    assert_eq!(world.verdicts().await, [0, 30_000, 0, 0], "the owner need not wait");
    tokio::time::sleep(Duration::from_secs(10)).await;
    world.send(ANN, "r_1");
    assert_eq!(world.verdicts().await, [20_000]);

    // Changes that nobody told of are seen after a minute.
    world.parts.archive.set_slow_mode(room, 0).await.expect("in memory");
    world.send(ANN, "r_1");
    assert_eq!(world.verdicts().await, [20_000]);
    tokio::time::sleep(Duration::from_secs(51)).await;
    for _ in 0..2 {
        world.send(ANN, "r_1");
    }
    assert_eq!(world.verdicts().await, [0, 0]);
    world.end().await;
}
