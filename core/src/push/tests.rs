//! What the keeper of tails hears, and when, of a batch that changes gear in its middle.

use std::pin::pin;

use futures_util::poll;

use super::*;
use crate::ids::{Epoch, Seq};
use crate::storm::testing::{ManualClock, NOW_MS, Posts, World, at, cache, lobby, to_json};
use crate::storm::{Pages, TailKeeper};

type Engine = PushEngine<World, Posts, ManualClock>;

fn engine(world: &World, posts: &Posts, clock: &ManualClock) -> Engine {
    let (backend, routes, rules) = (Arc::new(world.clone()), Arc::new(Routes::default()), Arc::default());
    routes.watch(lobby(), ShardId(0));
    let tails = TailKeeper::new(
        Arc::clone(&backend),
        posts.clone(),
        clock.clone(),
        Arc::clone(&routes),
        Arc::clone(&rules),
        to_json,
    );
    let pages = Pages::new(Arc::clone(&backend), clock.clone(), 10_000, to_json);
    PushEngine {
        backend,
        mailboxes: posts.clone(),
        routes,
        members: Arc::default(),
        pulls: Arc::new(Pulls { tails, pages }),
        rules,
        paces: Arc::default(),
        frame_bytes_max: 64 * 1024,
        clock: clock.clone(),
    }
}

fn pushed(seq: u64, gear: Gear) -> PushEvent {
    let (conversation, sender) = (lobby(), UserId(7));
    PushEvent::Sequenced { conversation, epoch: Epoch(100), seq: Seq(seq), sender, gear, payload: Bytes::new() }
}

/// The lives of the tails that shards were given.
fn lives(posts: &Posts) -> Vec<bool> {
    let tail = |input| match input {
        ShardInput::Tail { tail, .. } => tail.map(|held| !held.life.is_over()),
        _ => None,
    };
    posts.take().into_iter().filter_map(|(_, input)| tail(input)).collect()
}

#[tokio::test]
async fn what_was_pushed_before_a_storm_does_not_end_it_and_what_is_pushed_after_it_does() {
    let clock = ManualClock::at(NOW_MS);
    let (world, posts) = (World::with_clock(clock.clone()), Posts::default());
    let engine = engine(&world, &posts, &clock);
    let (mut streams, mut pace) = (InStreams::default(), Pace::default());
    let mut route = |events| engine.route(events, &mut streams, &mut pace).0;
    cache(&world, 1..=9).await;
    engine.pulls.tails.newest(lobby()).await.expect("in memory");
    let mut keeping = pin!(engine.pulls.tails.run());

    let changed = |gear, seq| PushEvent::GearChanged { conversation: lobby(), gear, from: at(seq) };
    let noticed = |seq| PushEvent::Noticed { conversation: lobby(), latest: at(seq), spread_ms: 1000 };
    route(vec![pushed(1, Gear::Direct), pushed(2, Gear::Direct), changed(Gear::Signal, 3), noticed(9)]);
    assert!(poll!(keeping.as_mut()).is_pending());
    assert_eq!(lives(&posts), [true]);
    // The system's message among notices.
    cache(&world, 10..=12).await;
    clock.advance(1000);
    route(vec![noticed(11), pushed(12, Gear::Signal), noticed(12)]);
    assert!(poll!(keeping.as_mut()).is_pending());
    assert_eq!(lives(&posts), [true]);

    cache(&world, 13..=20).await;
    clock.advance(1000);
    route(vec![noticed(19), changed(Gear::Direct, 20), pushed(20, Gear::Direct)]);
    assert!(poll!(keeping.as_mut()).is_pending());
    assert_eq!(lives(&posts), [], "no tail for shards");
    // A repetition behind it takes nothing back.
    route(vec![pushed(20, Gear::Direct), pushed(15, Gear::Direct)]);
    let newest = engine.pulls.tails.newest(lobby()).await.expect("in memory");
    assert_eq!(newest.latest(), at(20));
}
