//! However many ask and whatever fails: each change is fetched once, and what watchers are told of is to be had.

use std::pin::pin;

use futures_util::poll;
use tidegate_proto::v1;

use super::*;
use crate::delivery::ShardId;
use crate::ids::{Epoch, UserId};
use crate::storm::tail::Format;
use crate::storm::testing::{Fate, ManualClock, NOW_MS, Posts, World, at, cache, lobby, store, to_json};

/// What a shard was given, in short: how far a tail or a notice is.
#[derive(Debug, PartialEq, Eq)]
enum Given {
    Tail(u64),
    Notice(u64),
}

struct Fixture {
    world: World,
    clock: ManualClock,
    routes: Arc<Routes>,
    posts: Posts,
    keeper: Arc<TailKeeper<World, Posts, ManualClock>>,
}

impl Fixture {
    /// Looks into the cache four times per `notice_ms` of 100; spreads are a second.
    fn new() -> Self {
        let clock = ManualClock::at(NOW_MS);
        let (world, posts, routes) = (World::with_clock(clock.clone()), Posts::default(), Arc::new(Routes::default()));
        let backend = Arc::new(world.clone());
        let rules = Arc::default();
        let keeper = TailKeeper::new(backend, posts.clone(), clock.clone(), Arc::clone(&routes), rules, to_json);
        Self { world, clock, routes, posts, keeper: Arc::new(keeper) }
    }

    /// As far as a pull sees.
    async fn newest(&self) -> PortResult<u64> {
        self.keeper.newest(lobby()).await.map(|tail| tail.latest().seq.0)
    }

    async fn look(&self) -> Option<Millis> {
        let slot = self.keeper.slot(lobby(), SLOTS_MAX).expect("there is room");
        self.keeper.look_after(&slot).await
    }

    fn fetches(&self) -> (u32, u32) {
        (self.world.faults.calls("cached"), self.world.faults.calls("history"))
    }

    /// Since the last look.
    fn given(&self) -> Vec<(u8, Given)> {
        let posts = self.posts.take();
        let given = posts.into_iter().map(|(shard, input)| match input {
            ShardInput::Tail { tail: Some(held), .. } => {
                assert!(!held.life.is_over(), "what is given lives");
                (shard.0, Given::Tail(held.tail.latest().seq.0))
            }
            ShardInput::Deliver { frame, news: News::UpTo(place), .. } => {
                let notice = frame.tcp().slice(tidegate_proto::HEAD_BYTES..);
                let notice = v1::NotifyNewMessages::decode(notice).expect("a notice");
                assert_eq!((notice.latest_seq, notice.spread_ms), (place.seq.0, 1000));
                (shard.0, Given::Notice(notice.latest_seq))
            }
            other => panic!("{other:?}"),
        });
        given.collect()
    }
}

fn numbered(n: u64) -> ConversationId {
    format!("lobby_{n}").parse().expect("a lobby")
}

#[tokio::test]
async fn however_many_ask_each_change_is_fetched_once() {
    let test = Fixture::new();
    store(&test.world, 1..=5).await;
    let gate = Arc::new(Notify::new());
    test.world.faults.next("history", Fate::Hold(Arc::clone(&gate)));
    let mut asking: Vec<_> = (0..100).map(|_| Box::pin(test.keeper.newest(lobby()))).collect();
    for ask in &mut asking {
        assert!(poll!(ask.as_mut()).is_pending());
    }
    gate.notify_one();
    let tails = join_all(asking).await;
    let first = tails[0].as_ref().expect("in memory");
    assert!(tails.iter().all(|tail| tail.as_ref().is_ok_and(|tail| Arc::ptr_eq(tail, first))));
    assert_eq!((test.newest().await, test.fetches()), (Ok(5), (0, 1)));
    store(&test.world, 6..=6).await;
    assert_eq!((test.newest().await, test.fetches()), (Ok(5), (0, 1)), "nobody told it");
    test.keeper.pushed(lobby(), at(6), Gear::Direct);
    assert_eq!((test.newest().await, test.newest().await, test.fetches()), (Ok(6), Ok(6), (0, 2)));
}

#[tokio::test]
async fn a_store_that_is_away_is_left_alone_for_a_while() {
    let test = Fixture::new();
    store(&test.world, 1..=5).await;
    test.world.faults.next("history", Fate::Fail);
    for _ in 0..10 {
        assert!(matches!(test.newest().await, Err(PortError::Unavailable { .. })), "there is nothing in memory");
    }
    assert_eq!(test.fetches(), (0, 1));
    test.clock.advance(FAILED_PAUSE_MS);
    assert_eq!((test.newest().await, test.fetches()), (Ok(5), (0, 2)));

    store(&test.world, 6..=6).await;
    test.keeper.pushed(lobby(), at(6), Gear::Direct);
    test.world.faults.next("history", Fate::Fail);
    for _ in 0..10 {
        assert_eq!(test.newest().await, Ok(5), "what is in memory");
    }
    test.clock.advance(FAILED_PAUSE_MS - 1);
    assert_eq!((test.newest().await, test.fetches()), (Ok(5), (0, 3)));
    test.clock.advance(1);
    assert_eq!((test.newest().await, test.fetches()), (Ok(6), (0, 4)));
}

#[tokio::test]
async fn what_is_heard_during_a_fetch_is_fetched_next() {
    let test = Fixture::new();
    store(&test.world, 1..=5).await;
    let keeper = Arc::clone(&test.keeper);
    let meanwhile = Fate::Meanwhile(Box::new(move || keeper.pushed(lobby(), at(6), Gear::Direct)));
    test.world.faults.next("history", meanwhile);
    assert_eq!(test.newest().await, Ok(5));
    store(&test.world, 6..=6).await;
    assert_eq!((test.newest().await, test.fetches()), (Ok(6), (0, 2)));
    test.keeper.doubt();
    let keeper = Arc::clone(&test.keeper);
    test.world.faults.next("history", Fate::Meanwhile(Box::new(move || keeper.doubt())));
    assert_eq!((test.newest().await, test.newest().await, test.newest().await), (Ok(6), Ok(6), Ok(6)));
    assert_eq!(test.fetches(), (0, 4), "each doubt is one fetch");
}

#[tokio::test]
async fn in_a_storm_the_cache_is_looked_at_while_notices_come() {
    let test = Fixture::new();
    test.routes.watch(lobby(), ShardId(1));
    test.routes.watch(lobby(), ShardId(3));
    store(&test.world, 1..=10).await;
    cache(&test.world, 11..=20).await;
    test.keeper.noticed(lobby(), at(20), 1000);
    test.look().await.expect("it goes on");
    let expected = [(1, Given::Tail(20)), (1, Given::Notice(20)), (3, Given::Tail(20)), (3, Given::Notice(20))];
    assert_eq!((test.given(), test.fetches()), (expected.into(), (1, 0)));

    // Written since, and no notice of it yet: a quarter of its interval is the longest wait.
    cache(&test.world, 21..=22).await;
    test.clock.advance(24);
    assert_eq!((test.newest().await, test.fetches()), (Ok(20), (1, 0)));
    test.clock.advance(1);
    assert_eq!((test.newest().await, test.newest().await, test.fetches()), (Ok(22), Ok(22), (2, 0)));
    // The notices have ended, and with them the looks.
    test.clock.advance(201);
    cache(&test.world, 23..=23).await;
    assert_eq!((test.newest().await, test.fetches()), (Ok(22), (2, 0)));
    // What the cache has lost, the archive has.
    store(&test.world, 24..=30).await;
    test.keeper.noticed(lobby(), at(30), 1000);
    assert_eq!((test.newest().await, test.fetches()), (Ok(30), (3, 1)));
}

#[tokio::test]
async fn watchers_are_told_once_per_spread_of_what_is_to_be_had() {
    let test = Fixture::new();
    test.routes.watch(lobby(), ShardId(0));
    let mut told = Vec::new();
    for round in 1..=40 {
        cache(&test.world, round..=round).await;
        test.keeper.noticed(lobby(), at(round), 1000);
        test.look().await.expect("it goes on");
        let notices = test.given().into_iter().filter(|(_, given)| matches!(given, Given::Notice(_)));
        told.extend(notices.map(|(_, given)| given));
        test.clock.advance(100);
    }
    assert_eq!(told, [Given::Notice(1), Given::Notice(11), Given::Notice(21), Given::Notice(31)]);
    // The last ones are told as well.
    let next = test.look().await.expect("it owes");
    test.clock.advance(next.0 - test.clock.now().0);
    test.look().await.expect("it goes on");
    assert_eq!(test.given().last(), Some(&(0, Given::Notice(40))));

    // A notice of what cannot be fetched waits until it can.
    test.clock.advance(1000);
    cache(&test.world, 41..=41).await;
    test.keeper.noticed(lobby(), at(41), 1000);
    test.world.faults.next("cached", Fate::Fail);
    for _ in 0..3 {
        test.look().await.expect("it tries again");
    }
    assert_eq!((test.given(), test.newest().await), (vec![], Ok(40)));
    test.clock.advance(FAILED_PAUSE_MS);
    test.look().await.expect("it goes on");
    assert_eq!(test.given(), [(0, Given::Tail(41)), (0, Given::Notice(41))]);
}

#[tokio::test]
async fn a_conversation_nobody_here_wants_costs_nothing() {
    let test = Fixture::new();
    cache(&test.world, 1..=20).await;
    test.keeper.noticed(lobby(), at(20), 1000);
    test.keeper.shifted(lobby(), Gear::Merged, at(21));
    test.keeper.pushed(lobby(), at(21), Gear::Merged);
    assert!(test.keeper.slots().is_empty());
    // Pulled once: its notices are heard, and nothing is fetched for them.
    assert_eq!(test.newest().await, Ok(20));
    test.keeper.noticed(lobby(), at(21), 1000);
    let before = test.fetches();
    test.look().await.expect("it is remembered");
    assert_eq!((test.given(), test.fetches()), (vec![], before));
    test.clock.advance(IDLE_MS + 1);
    assert_eq!(test.look().await, None);
    assert!(test.keeper.slots().is_empty());
}

#[tokio::test]
async fn no_shard_is_left_with_a_tail_when_the_storm_is_over() {
    let test = Fixture::new();
    test.routes.watch(lobby(), ShardId(0));
    cache(&test.world, 1..=20).await;
    for case in ["told", "pushed"] {
        test.keeper.noticed(lobby(), at(20), 1000);
        test.keeper.doubt();
        test.look().await.expect("it goes on");
        cache(&test.world, 1..=20).await;
        let held = test.posts.take();
        let lives = held.into_iter().filter_map(|(_, input)| match input {
            ShardInput::Tail { tail, .. } => tail.map(|held| held.life),
            _ => None,
        });
        let lives: Vec<_> = lives.collect();
        assert!(case == "pushed" || lives.len() == 1);
        match case {
            "told" => test.keeper.shifted(lobby(), Gear::Direct, at(21)),
            _ => test.keeper.pushed(lobby(), at(20), Gear::Merged),
        }
        assert!(lives.iter().all(super::super::tail::Life::is_over), "{case}");
    }
    // The system's messages are pushed in signal gear, and end nothing.
    cache(&test.world, 21..=21).await;
    test.keeper.noticed(lobby(), at(21), 1000);
    test.look().await.expect("it goes on");
    test.keeper.pushed(lobby(), at(21), Gear::Signal);
    assert_eq!(test.given()[0], (0, Given::Tail(21)), "and it lives");
    // A fetch that the change of gear overtakes.
    cache(&test.world, 22..=22).await;
    test.keeper.noticed(lobby(), at(22), 1000);
    let keeper = Arc::clone(&test.keeper);
    let meanwhile = Fate::Meanwhile(Box::new(move || keeper.shifted(lobby(), Gear::Direct, at(23))));
    test.world.faults.next("cached", meanwhile);
    test.look().await.expect("it is remembered");
    assert_eq!(test.given(), []);
}

#[tokio::test]
async fn a_new_epoch_is_told_from_the_old_one() {
    let test = Fixture::new();
    test.routes.watch(lobby(), ShardId(0));
    cache(&test.world, 1..=20).await;
    test.keeper.noticed(lobby(), at(20), 1000);
    assert_eq!(test.newest().await, Ok(20));
    let begun = test.world.memory().begin_epoch(&[(lobby(), Epoch(100))]).await.expect("in memory")[0];
    store(&test.world, 21..=21).await;
    let place = Place { epoch: begun, seq: Seq(21) };
    // The cache is still of the epoch before, and as far as it goes, ahead of nothing.
    test.keeper.noticed(lobby(), place, 1000);
    let tail = test.keeper.newest(lobby()).await.expect("in memory");
    assert_eq!(tail.latest(), place);
    let answer = v1::PullReply::decode(tail.answer(tail.answer_for(Some(at(20))), Format::Protobuf)).expect("ours");
    assert_eq!((answer.from_seq, answer.to_seq, answer.gap), (1, 21, false), "it has to be read anew");
    assert!(answer.messages.iter().all(|message| message.epoch == begun.0 && message.sender_id == UserId(7).0));
}

#[tokio::test]
async fn many_pulls_leave_room_for_those_who_watch() {
    let test = Fixture::new();
    for n in 0..=SLOTS_MAX as u64 {
        test.keeper.newest(numbered(n)).await.expect("in memory");
    }
    assert!(test.keeper.slots().len() <= SLOTS_MAX);
    test.routes.watch(lobby(), ShardId(0));
    cache(&test.world, 1..=3).await;
    test.keeper.noticed(lobby(), at(3), 1000);
    test.look().await.expect("it goes on");
    assert_eq!(test.given(), [(0, Given::Tail(3)), (0, Given::Notice(3))]);
}

#[tokio::test]
async fn it_works_by_itself_and_sleeps_when_there_is_nothing() {
    let test = Fixture::new();
    test.routes.watch(lobby(), ShardId(0));
    let mut running = pin!(test.keeper.run());
    assert!(poll!(running.as_mut()).is_pending());
    for round in 1..=3 {
        cache(&test.world, round..=round).await;
        test.keeper.noticed(lobby(), at(round), 1000);
        assert!(poll!(running.as_mut()).is_pending());
        assert_eq!(test.given(), [(0, Given::Tail(round)), (0, Given::Notice(round))]);
        let fetches = test.fetches();
        for _ in 0..100 {
            test.clock.advance(10);
            assert!(poll!(running.as_mut()).is_pending());
        }
        let looks = test.fetches().0 - fetches.0;
        assert!((5..=9).contains(&looks), "{looks} looks: every 25 ms for the time of two notices");
        assert_eq!(test.given(), []);
    }
}
