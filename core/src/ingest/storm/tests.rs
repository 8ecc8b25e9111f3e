//! An engine's storms, turn by turn: gears and notices, in the order in which gateways are told of them.

use std::sync::Arc;

use futures_util::poll;
use tidegate_proto::v1::{self, Gear};
use tokio::sync::Notify;

use super::*;
use crate::event::IngestEvent;
use crate::ids::{Place, RoomId, UserId};
use crate::ingest::testing::{self, Acked, Fate, ManualClock, batch, message};
use crate::ports::HotStore as _;
use crate::storm::StormRules;
use crate::streams::OutStreams;

type World = testing::World<ManualClock>;
type Engine = IngestEngine<World, ManualClock>;

const ROOM: ConversationId = ConversationId::Room(RoomId(1));

/// What gateways are told, in short.
#[derive(Debug, PartialEq, Eq)]
enum Told {
    Gear(Gear, u64),
    Message(u64),
    Notice(u64),
}
use Told::{Gear as In, Message, Notice};

struct Fixture {
    world: World,
    clock: ManualClock,
    streams: Arc<OutStreams>,
    engine: Engine,
}

impl Fixture {
    /// Three messages in a second are a storm; a notice in ten seconds, and calm is believed at once.
    fn new() -> Self {
        let clock = ManualClock::at(1_700_000_000_000);
        let world = World::with_clock(clock.clone());
        let streams = Arc::new(OutStreams::new(1));
        let engine = Self::engine_of(&world, &streams);
        Self { world, clock, streams, engine }
    }

    fn engine_of(world: &World, streams: &Arc<OutStreams>) -> Engine {
        let mut rules = StormRules::default();
        let rule = "* gears=direct+signal merged_per_s=3 signal_per_s=3 window_ms=1000 calm_ms=0 notice_ms=10000 \
                    spread_ms=10000";
        rules.add(rule).expect("a legal rule");
        world.engine_with(Arc::clone(streams), Arc::new(rules))
    }

    async fn turn(&mut self, messages: impl IntoIterator<Item = u8>) {
        self.turn_of(messages.into_iter().map(|n| message(ROOM, n)).collect()).await;
    }

    async fn turn_of(&mut self, events: Vec<IngestEvent>) {
        self.engine.turn(batch(events), &mut Acked::default()).await.expect("the turn comes to its end");
    }

    fn told(&self) -> Vec<Told> {
        let told = self.world.take_published().into_iter().map(|event| match event {
            PushEvent::GearChanged { gear, from, .. } => In(gear, from.seq.0),
            PushEvent::Sequenced { seq, .. } => Message(seq.0),
            PushEvent::Noticed { latest, .. } => Notice(latest.seq.0),
            other => panic!("{other:?}"),
        });
        told.collect()
    }

    /// How far the lobby cache is.
    async fn cached(&self) -> u64 {
        let slice = self.world.hot().cached(ROOM, None, 1000, 1 << 20).await.expect("in memory");
        (slice.first.0 + slice.messages.len() as u64).saturating_sub(1)
    }
}

fn by_the_system(n: u8) -> IngestEvent {
    let mut event = message(ROOM, n);
    if let IngestEvent::Accepted(accepted) = &mut event {
        accepted.sender = UserId::SYSTEM;
    }
    event
}

#[tokio::test]
async fn a_gear_counts_from_the_first_message_that_travels_in_it() {
    let mut test = Fixture::new();
    test.turn([1]).await;
    assert_eq!(test.told(), [Message(1)]);
    test.turn(2..=4).await;
    assert_eq!(test.told(), [In(Gear::Signal, 2), Notice(4)]);
    assert_eq!(test.cached().await, 4);
    // Calm: a message, and with it the change, or time alone.
    test.clock.advance(2_000);
    test.turn([5]).await;
    assert_eq!(test.told(), [In(Gear::Direct, 5), Message(5)]);
    test.turn(6..=9).await;
    test.clock.advance(2_000);
    test.told();
    test.engine.keep_pace(&[]).await.expect("in memory");
    assert_eq!(test.told(), [Notice(9), In(Gear::Direct, 10)]);
    test.turn([10]).await;
    assert_eq!(test.told(), [Message(10)]);
}

#[tokio::test]
async fn a_notice_follows_what_it_speaks_of_into_the_cache() {
    let mut test = Fixture::new();
    let gate = Arc::new(Notify::new());
    test.world.faults.next("settle", Fate::Hold(Arc::clone(&gate)));
    let events = (1..=5).map(|n| message(ROOM, n)).collect();
    let mut consumer = Acked::default();
    {
        let mut turn = pin!(test.engine.turn(batch(events), &mut consumer));
        assert!(poll!(turn.as_mut()).is_pending());
        let early: Vec<_> = test.world.take_published();
        assert!(!early.iter().any(|event| matches!(event, PushEvent::Noticed { .. })), "{early:?}");
        gate.notify_one();
        turn.await.expect("the turn comes to its end");
    }
    assert_eq!(consumer.0, 1);
    assert_eq!((test.told(), test.cached().await), (vec![Notice(5)], 5));
}

#[tokio::test]
async fn there_is_a_notice_per_interval_and_the_last_one_says_all() {
    let mut test = Fixture::new();
    for n in 1..=20 {
        test.turn([10 * n, 10 * n + 1]).await;
        test.clock.advance(600);
    }
    let notices: Vec<_> = test.told().into_iter().filter(|told| matches!(told, Notice(_))).collect();
    assert_eq!(notices, [Notice(4), Notice(38)]);
    assert_eq!(test.streams.owed().len(), 1);
    // Nothing more is written; before the gear goes back, what is owed is given.
    test.clock.advance(400);
    test.engine.keep_pace(&[]).await.expect("in memory");
    assert_eq!(test.told(), [Notice(40), In(Gear::Direct, 41)]);
    assert_eq!(test.streams.owed(), []);
}

#[tokio::test]
async fn what_a_change_of_gear_gives_is_not_owed_any_more() {
    let mut test = Fixture::new();
    test.turn(1..=4).await;
    test.turn([5]).await;
    assert_eq!(test.streams.owed().len(), 1);
    test.clock.advance(2_000);
    test.turn([6]).await;
    assert_eq!(test.told(), [In(Gear::Signal, 1), Notice(4), Notice(5), In(Gear::Direct, 6), Message(6)]);
    assert_eq!(test.streams.owed(), []);
    test.engine.end_storms().await.expect("in memory");
    assert_eq!(test.told(), []);
}

#[tokio::test]
async fn an_engine_that_dies_owes_and_its_successor_pays() {
    let mut test = Fixture::new();
    test.turn(1..=4).await;
    test.turn([5]).await;
    assert_eq!(test.told(), [In(Gear::Signal, 1), Notice(4)]);
    let latest = Place { epoch: Epoch(100), seq: Seq(5) };
    assert!(matches!(test.streams.owed()[..], [(_, PushEvent::Noticed { latest: owed, .. })] if owed == latest));
    // It dies here. Another begins, in direct gear; so does one whose consumer was made anew.
    test.engine = Fixture::engine_of(&test.world, &test.streams);
    test.engine.end_storms().await.expect("in memory");
    assert_eq!((test.told(), test.streams.owed()), (vec![Notice(5)], vec![]));
    test.turn([6]).await;
    assert_eq!(test.told(), [Message(6)]);
    // Between the cache and the end of the turn: its events come again, and so does the notice.
    test.engine = Fixture::engine_of(&test.world, &test.streams);
    test.world.faults.next("settle", Fate::Hold(Arc::default()));
    {
        let events = (7..=9).map(|n| message(ROOM, n)).collect();
        let mut consumer = Acked::default();
        assert!(poll!(pin!(test.engine.turn(batch(events), &mut consumer))).is_pending());
    }
    assert_eq!(test.told(), [In(Gear::Signal, 7)]);
    test.engine = Fixture::engine_of(&test.world, &test.streams);
    test.turn(7..=9).await;
    assert_eq!(test.told(), [Message(7), Message(8), Message(9)]);
}

#[tokio::test]
async fn the_system_is_heard_in_signal_gear() {
    let mut test = Fixture::new();
    test.turn(1..=4).await;
    test.turn_of(vec![message(ROOM, 5), by_the_system(6), message(ROOM, 7)]).await;
    assert_eq!(test.told(), [In(Gear::Signal, 1), Notice(4), Message(6)]);
    assert_eq!(test.cached().await, 7, "and whoever pulls gets it there");
    let slice = test.world.hot().cached(ROOM, None, 1000, 1 << 20).await.expect("in memory");
    let last = <v1::Message as prost::Message>::decode(slice.messages[5].clone()).expect("a message");
    assert_eq!((last.seq, last.sender_id), (6, 0));
}

/// Two rooms do not share their gears, and a private conversation has none.
#[tokio::test]
async fn each_conversation_has_a_gear_of_its_own() {
    let mut test = Fixture::new();
    let (other, private) =
        (ConversationId::Room(RoomId(2)), ConversationId::private(UserId(1), UserId(2)).expect("two"));
    let mut events: Vec<_> = (1..=5).map(|n| message(ROOM, n)).collect();
    events.push(message(other, 100));
    events.extend((200..=209).map(|n| message(private, n)));
    test.turn_of(events).await;
    assert_eq!(test.told(), [In(Gear::Signal, 1), Message(1), Notice(5)], "the other room's is pushed");
}
