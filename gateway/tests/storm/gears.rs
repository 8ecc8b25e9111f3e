//! Up through the gears and back, and everybody has every message once.

use std::time::Duration;

use prost::Message as _;
use tidegate_core::ids::ConversationId;
use tidegate_core::ports::Backend;
use tidegate_proto::Kind;
use tidegate_proto::v1::{self, Gear};
use tokio::time::{Instant, timeout};

use crate::support::process::Process;
use crate::support::{self, Client, World};
use crate::watcher::Watcher;
use crate::writer::{Writer, announce};

/// A spread's share of the line is 819 bytes, some nine messages.
const RULES: &str = "storm.rules=* merged_per_s=10 signal_per_s=40 window_ms=600 calm_ms=400 merge_ms=30 notice_ms=20 \
                     spread_ms=200 watcher_bytes_per_s=4096";
const SPREAD: Duration = Duration::from_millis(200);

on_every_backend!(
    with &[super::RULES];
    a_lobby_goes_through_all_gears_and_back,
    a_room_that_gets_hot_storms_as_well_and_counts_stay_exact,
    the_systems_messages_wait_for_nobody,
);

/// Writes a conversation up into signal gear, keeps it there for some spreads, and lets it go back.
async fn through_all_gears(writer: &mut Writer, watcher: &Watcher) {
    writer.burst(2).await;
    watcher.until("two messages", |seen| seen.pushed.len() == 2).await;
    assert_eq!(watcher.gear(), Gear::Direct);
    writer.keep_on(1, Duration::from_millis(40), || watcher.gear() == Gear::Merged).await;
    writer.keep_on(40, Duration::from_millis(10), || watcher.gear() == Gear::Signal).await;
    let since = Instant::now();
    writer.keep_on(10, Duration::from_millis(40), || since.elapsed() > 3 * SPREAD && watcher.seen().pulls >= 3).await;
    writer.keep_on(1, Duration::from_millis(80), || watcher.gear() == Gear::Merged).await;
    watcher.until("direct gear again", |seen| seen.gears.last().is_some_and(|(gear, ..)| *gear == Gear::Direct)).await;
    writer.burst(1).await;
    let last = writer.said;
    watcher.until("the last message", |seen| seen.pushed.last().is_some_and(|(seq, _)| *seq == last)).await;
}

async fn a_lobby_goes_through_all_gears_and_back<B: Backend>(world: &World<B>) {
    let (anna, ben, eve) = (world.user("anna").await, world.user("ben").await, world.user("eve").await);
    let watcher = Watcher::start(world, &ben, "lobby_main", 30).await;
    let other = Watcher::start(world, &eve, "lobby_main", 130).await;
    let mut writer = Writer::new(world, &anna, "lobby_main").await;
    through_all_gears(&mut writer, &watcher).await;
    let last = writer.said;
    other.until("the last message", |seen| seen.pushed.last().is_some_and(|(seq, _)| *seq == last)).await;
    for watcher in [watcher, other] {
        let (seen, _client) = watcher.finish(last).await;
        let gears: Vec<Gear> = seen.gears.iter().map(|(gear, ..)| *gear).collect();
        assert_eq!(gears, [Gear::Merged, Gear::Signal, Gear::Merged, Gear::Direct]);
        seen.has_all(last);
        seen.came_as_gears_say(last);
        seen.was_noticed_within(SPREAD);
        assert!(!seen.notices.is_empty() && seen.gaps > 0 && seen.answer_bytes_max > 400, "{seen:?}");
        assert!(seen.answer_bytes_max <= 819, "{}", seen.answer_bytes_max);
    }
}

async fn a_room_that_gets_hot_storms_as_well_and_counts_stay_exact<B: Backend>(world: &World<B>) {
    let (anna, ben, eve) = (world.user("anna").await, world.user("ben").await, world.user("eve").await);
    let room = ConversationId::Room(world.room(&anna, &[&ben, &eve]).await).to_string();
    let watcher = Watcher::start(world, &ben, &room, 70).await;
    let mut writer = Writer::new(world, &anna, &room).await;
    writer.burst(3).await;
    watcher.until("three messages", |seen| seen.pushed.len() == 3).await;
    writer.keep_on(40, Duration::from_millis(10), || watcher.gear() == Gear::Signal).await;
    writer.keep_on(10, Duration::from_millis(40), || watcher.seen().pulls >= 3).await;
    // In the middle of the storm: nobody has read anything, and Eve was not here at all.
    let unread = async |account| {
        let reply = Client::open(world.address).await.login(account, "counts", &[]).await;
        reply.positions.iter().find(|position| position.conversation_id == room).map(|position| {
            assert_eq!(position.last_seq, position.read_seq + u64::from(position.unread));
            (position.last_seq, position.unread)
        })
    };
    let said = writer.said;
    support::eventually("all is counted", async || {
        (unread(&eve).await? == (said, u32::try_from(said).unwrap())).then_some(())
    })
    .await;
    let read = v1::Receipt { conversation_id: room.clone(), delivered_seq: 0, read_seq: said - 10 };
    let _: v1::ReceiptAck = world.connect(&ben, "reads").await.ask(Kind::Receipt, &read).await.unwrap();
    writer.keep_on(1, Duration::from_millis(80), || watcher.gear() == Gear::Merged).await;
    let last = writer.said;
    let expected = u32::try_from(last - (said - 10)).unwrap();
    support::eventually("Ben has read some", async || (unread(&ben).await? == (last, expected)).then_some(())).await;
    assert_eq!(unread(&eve).await, Some((last, u32::try_from(last).unwrap())));
    watcher.until("the last message", |seen| seen.messages.contains_key(&last)).await;
    let (seen, _client) = watcher.finish(last).await;
    seen.has_all(last);
    seen.came_as_gears_say(last);
    seen.was_noticed_within(SPREAD);
}

async fn the_systems_messages_wait_for_nobody<B: Backend>(world: &World<B>) {
    let (anna, ben) = (world.user("anna").await, world.user("ben").await);
    let watcher = Watcher::start(world, &ben, "lobby_main", 30).await;
    let mut writer = Writer::new(world, &anna, "lobby_main").await;
    writer.burst(1).await;
    announce(world, "lobby_main", "welcome").await;
    writer.keep_on(1, Duration::from_millis(40), || watcher.gear() == Gear::Merged).await;
    announce(world, "lobby_main", "in five minutes").await;
    writer.keep_on(40, Duration::from_millis(10), || watcher.gear() == Gear::Signal).await;
    for n in 0..3 {
        writer.burst(20).await;
        announce(world, "lobby_main", &format!("in signal gear {n}")).await;
    }
    watcher
        .until("all five", |seen| seen.messages.values().filter(|message| message.sender_id == 0).count() == 5)
        .await;
    let last = writer.said + 5;
    watcher.until("a notice of all", |seen| seen.knows_of(last)).await;
    let (seen, _client) = watcher.finish(last).await;
    // As a Message each, in every gear; see `came_as_gears_say`.
    seen.has_all(last);
    seen.came_as_gears_say(last);
}

/// In merged gear the others wait for seconds, the system does not, and takes with it what waited.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn in_merged_gear_the_system_takes_with_it_what_waits() {
    let world =
        support::embedded(&["storm.rules=lobby_main gears=direct+merged merged_per_s=2 signal_per_s=9 merge_ms=5000"]);
    let (anna, ben) = (world.user("anna").await, world.user("ben").await);
    let watcher = Watcher::start(&world, &ben, "lobby_main", 0).await;
    let mut writer = Writer::new(&world, &anna, "lobby_main").await;
    writer.keep_on(5, Duration::from_millis(10), || watcher.gear() == Gear::Merged).await;
    announce(&world, "lobby_main", "flush").await;
    watcher.until("the first of the system", |seen| seen.pushed.len() as u64 == writer.said + 1).await;
    let begun = Instant::now();
    writer.burst(3).await;
    announce(&world, "lobby_main", "attention").await;
    let last = writer.said + 2;
    watcher.until("the system's", |seen| seen.pushed.last().is_some_and(|(seq, _)| *seq == last)).await;
    assert!(begun.elapsed() < Duration::from_secs(3), "{:?}", begun.elapsed());
    let (seen, _client) = watcher.finish(last).await;
    let kinds: Vec<_> = seen.pushed[seen.pushed.len() - 4..].iter().map(|(_, kind)| *kind).collect();
    assert_eq!(kinds, [Kind::Messages, Kind::Messages, Kind::Messages, Kind::Message]);
    seen.has_all(last);
    world.gateway.stop().await;
}

/// The gear has gone back while a notice was still to come: pulls are answered with what is newest all the same.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_the_storm_pulls_bring_what_was_pushed_since() {
    let rule = "storm.rules=lobby_main gears=direct+signal merged_per_s=20 signal_per_s=20 window_ms=200 calm_ms=50 \
                notice_ms=20 spread_ms=700";
    let world = support::embedded(&[rule]);
    let (anna, ben) = (world.user("anna").await, world.user("ben").await);
    let mut watcher = Client::open(world.address).await;
    watcher.login(&ben, "pc", &["lobby_main"]).await;
    let mut writer = Writer::new(&world, &anna, "lobby_main").await;
    writer.burst(30).await;
    // Into the storm, where the first notice comes soon, and out of it, where the next has to wait for its turn.
    while watcher.push().await.head.kind != Kind::NotifyNewMessages as u8 {}
    writer.burst(10).await;
    loop {
        let push = watcher.push().await;
        if push.head.kind == Kind::GearChanged as u8 {
            let changed = v1::GearChanged::decode(push.payload).unwrap();
            if changed.gear() == Gear::Direct {
                assert_eq!(changed.from_seq, writer.said + 1);
                break;
            }
        }
    }
    for _ in 0..2 {
        let pull =
            v1::Pull { conversation_id: "lobby_main".into(), after_seq: Some(writer.said - 1), ..Default::default() };
        let reply: v1::PullReply = watcher.ask(Kind::Pull, &pull).await.unwrap();
        assert_eq!((reply.to_seq, reply.latest_seq), (writer.said, writer.said));
        writer.burst(1).await;
        assert_eq!(watcher.message().await.seq, writer.said);
    }
    world.gateway.stop().await;
}

/// One engine decides, whichever gateway the watchers and the writers are at.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_gateways_see_the_same_gears() {
    let Some(services) = support::Cluster::with_a_database().await else { return };
    let one = services.gateway_with("gw-one", &[RULES]).await;
    let two = services.gateway_with("gw-two", &[RULES]).await;
    let (anna, ben) = (one.user("anna").await, one.user("ben").await);
    let at_one = Watcher::start(&one, &ben, "lobby_main", 30).await;
    let at_two = Watcher::start(&two, &ben, "lobby_main", 130).await;
    let mut writer = Writer::new(&two, &anna, "lobby_main").await;
    through_all_gears(&mut writer, &at_one).await;
    let last = writer.said;
    at_two.until("the last message", |seen| seen.pushed.last().is_some_and(|(seq, _)| *seq == last)).await;
    let mut gears = Vec::new();
    for watcher in [at_one, at_two] {
        let (seen, _client) = watcher.finish(last).await;
        seen.has_all(last);
        seen.came_as_gears_say(last);
        seen.was_noticed_within(SPREAD);
        assert!(seen.pulls >= 3);
        gears.push(seen.gears.iter().map(|(gear, from, _)| (*gear, *from)).collect::<Vec<_>>());
    }
    assert_eq!(gears[0], gears[1]);
    assert!(gears[0].len() >= 4, "{gears:?}");
    one.gateway.stop().await;
    two.gateway.stop().await;
    services.drop_database().await;
}

/// A storm that nobody here looks at is neither fetched nor written to anybody.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lobby_nobody_watches_costs_nothing() {
    let rule = format!("storm.rules={}", RULES.trim_start_matches("storm.rules="));
    let process = Process::start("gw-unwatched", &[], &[&rule]);
    let (anna, ben) = (process.register("anna").await, process.register("ben").await);
    let (mut writer, mut bystander) = (process.connect(&anna, "pc").await, process.connect(&ben, "pc").await);
    for n in 0..300 {
        writer.send("lobby_main", &n.to_string(), "x").await.unwrap();
    }
    support::eventually("it was a storm", async || {
        (process.metric("tidegate_storm_notices_total").await > 0.0).then_some(())
    })
    .await;
    assert!(process.metric("tidegate_storm_cached_messages_total").await > 100.0);
    assert_eq!(process.metric("tidegate_pull_fetches_total").await, 0.0);
    let quiet = timeout(2 * SPREAD, bystander.push()).await;
    assert!(quiet.is_err(), "{quiet:?}");
    // One who begins to watch does get notices, and one fetch serves them.
    let watch = v1::Watch { watch: vec!["lobby_main".into()], ..Default::default() };
    let _: v1::WatchReply = bystander.ask(Kind::Watch, &watch).await.unwrap();
    for n in 300..600 {
        writer.send("lobby_main", &n.to_string(), "x").await.unwrap();
    }
    while bystander.push().await.head.kind != Kind::NotifyNewMessages as u8 {}
    assert!(process.metric("tidegate_pull_fetches_total").await > 0.0);
}
