//! Pulls in one's own connection: their bounds, what they say of gaps, and who may not.

use std::time::Duration;

use bytes::BytesMut;
use prost::Message as _;
use tidegate_core::ids::ConversationId;
use tidegate_core::ports::Backend;
use tidegate_proto::v1::{self, Code, Gear};
use tidegate_proto::websocket::Opcode;
use tidegate_proto::{Kind, Opening, frame};
use tokio::time::Instant;

use crate::support::websocket::{WebSocketClient, handed_over, masked};
use crate::support::{self, Client, World};
use crate::watcher::{Watcher, check};
use crate::writer::Writer;

/// Signal gear from a few messages on, and it stays.
const RULES: &str = "storm.rules=* merged_per_s=10 signal_per_s=10 window_ms=1000 calm_ms=60000 notice_ms=20 \
                     spread_ms=400 watcher_bytes_per_s=8192";
const SPREAD: Duration = Duration::from_millis(400);
/// What `RULES` lets an answer hold.
const ANSWER_BYTES_MAX: usize = 8192 * 400 / 1000;
/// What a `PullReply` has around its messages.
const AROUND: usize = 64;

on_every_backend!(
    with &[super::RULES];
    an_answer_is_bounded_and_says_what_is_missing,
    who_pulls_too_often_is_told_when_to_come_again,
    what_may_not_be_pulled,
);

fn newest(conversation: &str, after: Option<u64>) -> v1::Pull {
    v1::Pull { conversation_id: conversation.to_owned(), after_seq: after, ..Default::default() }
}

async fn pull(client: &mut Client, pull: &v1::Pull) -> v1::PullReply {
    let reply: v1::PullReply = client.ask(Kind::Pull, pull).await.unwrap();
    check(&reply, pull);
    reply
}

/// A pull whose refusal is looked at.
async fn refused(client: &mut Client, pull: &v1::Pull) -> v1::Error {
    let correlation = client.command(Kind::Pull, pull).await;
    loop {
        let frame = client.frame().await.expect("an answer");
        if frame.head.correlation == correlation && frame.head.kind < 0x80 {
            assert_eq!(frame.head.kind, Kind::Error as u8, "{frame:?}");
            return v1::Error::decode(frame.payload).unwrap();
        }
    }
}

async fn in_signal_gear(writer: &mut Writer, watcher: &Watcher) {
    writer.keep_on(20, Duration::from_millis(10), || watcher.gear() == Gear::Signal).await;
    writer.burst(100).await;
    let last = writer.said;
    watcher.until("all is noticed", |seen| seen.knows_of(last)).await;
}

async fn an_answer_is_bounded_and_says_what_is_missing<B: Backend>(world: &World<B>) {
    let (anna, ben) = (world.user("anna").await, world.user("ben").await);
    let watcher = Watcher::start(world, &ben, "lobby_main", 30).await;
    let mut writer = Writer::new(world, &anna, "lobby_main").await;
    in_signal_gear(&mut writer, &watcher).await;
    let last = writer.said;
    for after in [None, Some(0), Some(1), Some(last / 2), Some(last - 5), Some(last - 1), Some(last), Some(u64::MAX)] {
        // One each: they may all come at once.
        let mut client = world.connect(&anna, "looks").await;
        let reply = pull(&mut client, &newest("lobby_main", after)).await;
        assert_eq!(reply.latest_seq, last, "after {after:?}");
        assert!(reply.gap || after.is_none_or(|after| after > 1), "after {after:?}: {}", reply.from_seq);
        assert!(reply.encoded_len() <= ANSWER_BYTES_MAX, "{}", reply.encoded_len());
        assert_eq!(reply.to_seq, if after.is_some_and(|after| after >= last) { 0 } else { last });
    }
    // Of an epoch that never was, or is over: as if nothing was known.
    let mut client = world.connect(&anna, "looks").await;
    let epoch = pull(&mut client, &newest("lobby_main", Some(3))).await.epoch;
    let other = v1::Pull { epoch: epoch + 1, ..newest("lobby_main", Some(last - 1)) };
    let reply: v1::PullReply = client.ask(Kind::Pull, &other).await.unwrap();
    assert!(reply.epoch == epoch && !reply.gap && reply.to_seq == last && reply.from_seq < last - 1, "{reply:?}");
    let other = v1::Pull { before_seq: 5, ..other };
    let reply: v1::PullReply = client.ask(Kind::Pull, &other).await.unwrap();
    assert_eq!((reply.epoch, reply.to_seq), (epoch, last));

    // Gaps are filled forward, as much as a frame holds.
    let fill = v1::Pull { epoch, before_seq: last, ..newest("lobby_main", Some(0)) };
    let reply = pull(&mut client, &fill).await;
    assert!(reply.from_seq == 1 && reply.to_seq >= last - 1 && !reply.more, "{reply:?}");
    // Bodies at any rate: one that is larger than the share of a reader comes alone.
    let body = |n: usize| format!("{n:4000}");
    for n in 0..20 {
        client.send("lobby_main", &format!("large {n}"), &body(n)).await.unwrap();
    }
    let last = last + 20;
    watcher.until("the large ones", |seen| seen.knows_of(last)).await;
    let reply = pull(&mut world.connect(&anna, "looks again").await, &newest("lobby_main", Some(1))).await;
    assert!(reply.encoded_len() <= 4000 + AROUND + 100 && reply.to_seq == last && reply.gap, "{reply:?}");
    // A frame is the bound of what fills a gap, however much is missing.
    let large = v1::Pull { before_seq: last + 1, ..newest("lobby_main", Some(last - 20)) };
    let reply = pull(&mut client, &large).await;
    let frame_bytes_max = world.config.limits.frame_bytes_max;
    assert!(reply.encoded_len() <= frame_bytes_max && reply.more && reply.messages.len() > 2, "{}", reply.to_seq);
    let (seen, _client) = watcher.finish(last).await;
    seen.has_all(last);
    seen.came_as_gears_say(last);
}

async fn who_pulls_too_often_is_told_when_to_come_again<B: Backend>(world: &World<B>) {
    let (anna, ben) = (world.user("anna").await, world.user("ben").await);
    let watcher = Watcher::start(world, &ben, "lobby_main", 30).await;
    let mut writer = Writer::new(world, &anna, "lobby_main").await;
    in_signal_gear(&mut writer, &watcher).await;
    // The shard has an answer in memory by the first notice; this connection has to be on a shard that has one.
    let mut client = Client::open(world.address).await;
    client.login(&anna, "hasty", &["lobby_main"]).await;
    writer.burst(1).await;
    while client.push().await.head.kind != Kind::NotifyNewMessages as u8 {}
    let pull = newest("lobby_main", Some(1));
    let mut answered = 0;
    let slow_down = loop {
        let correlation = client.command(Kind::Pull, &pull).await;
        let frame = loop {
            let frame = client.frame().await.unwrap();
            if frame.head.kind < 0x80 && frame.head.correlation == correlation {
                break frame;
            }
        };
        if frame.head.kind == Kind::Error as u8 {
            break v1::Error::decode(frame.payload).unwrap();
        }
        answered += 1;
        assert!(answered < 10, "nobody said slow down");
    };
    assert_eq!(slow_down.code(), Code::SlowDown);
    let wait = Duration::from_millis(slow_down.retry_after_ms.into());
    assert!(wait > Duration::ZERO && wait <= SPREAD, "{wait:?}");
    tokio::time::sleep(wait).await;
    let _: v1::PullReply = client.ask(Kind::Pull, &pull).await.expect("it passes after the wait");
    // And at the rate of the rule it passes for ever.
    let mut ticks = tokio::time::interval_at(Instant::now() + SPREAD, SPREAD);
    for _ in 0..3 {
        ticks.tick().await;
        let _: v1::PullReply = client.ask(Kind::Pull, &pull).await.expect("once per spread");
    }
}

async fn what_may_not_be_pulled<B: Backend>(world: &World<B>) {
    let (anna, ben, eve) = (world.user("anna").await, world.user("ben").await, world.user("eve").await);
    let room = ConversationId::Room(world.room(&anna, &[&ben]).await).to_string();
    let mut writer = Writer::new(world, &anna, &room).await;
    writer.burst(3).await;
    let mut client = world.connect(&eve, "pc").await;
    for (pull, code) in [
        (newest(&anna.with(&eve), None), Code::BadConversation),
        (newest(&anna.with(&ben), None), Code::NotMember),
        (newest(&room, None), Code::NotMember),
        (newest("r_9000000", Some(0)), Code::NotMember),
        (newest("lobby_nowhere", None), Code::NotMember),
        (newest("nonsense", None), Code::BadConversation),
        (v1::Pull { before_seq: 5, ..newest("lobby_main", None) }, Code::BadPayload),
    ] {
        assert_eq!(refused(&mut client, &pull).await.code(), code, "{pull:?}");
    }
    // Members may, watching or not, and nothing is there where nothing was written.
    let mut member = world.connect(&ben, "pc").await;
    support::eventually("the three are stored", async || {
        let reply = pull(&mut member, &newest(&room, Some(1))).await;
        (reply.to_seq == 3 && !reply.gap).then_some(())
    })
    .await;
    let reply = pull(&mut client, &newest("lobby_main", None)).await;
    assert_eq!((reply.latest_seq, reply.messages.len(), reply.gap), (0, 0, false));
    let fill = v1::Pull { before_seq: u64::MAX, ..newest("lobby_main", Some(u64::MAX)) };
    assert_eq!(pull(&mut client, &fill).await.messages.len(), 0);
}

/// Each lobby has its own rhythm: who watches several pulls each of them once per spread.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_watches_several_storms_pulls_each_of_them() {
    let lobbies = ["lobby_a", "lobby_b", "lobby_c"];
    let world = support::embedded(&[RULES, "lobbies.names=lobby_a,lobby_b,lobby_c", "runtime.shards=1"]);
    let (anna, ben) = (world.user("anna").await, world.user("ben").await);
    let mut client = Client::open(world.address).await;
    client.login(&ben, "pc", &lobbies).await;
    let mut noticed = std::collections::BTreeSet::new();
    for lobby in lobbies {
        Writer::new(&world, &anna, lobby).await.burst(50).await;
        while !noticed.contains(lobby) {
            let push = client.push().await;
            if push.head.kind == Kind::NotifyNewMessages as u8 {
                noticed.insert(v1::NotifyNewMessages::decode(push.payload).unwrap().conversation_id);
            }
        }
    }
    let mut ticks = tokio::time::interval(SPREAD);
    for round in 0..5 {
        ticks.tick().await;
        for lobby in lobbies {
            let reply = client.ask::<v1::PullReply>(Kind::Pull, &newest(lobby, Some(0))).await;
            assert!(reply.is_ok(), "{lobby}, round {round}: {reply:?}");
        }
    }
    world.gateway.stop().await;
}

/// The same over WebSocket, where the head of the shared answer is another.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pulls_over_websocket() {
    let world = support::embedded(&[RULES]);
    let (anna, ben) = (world.user("anna").await, world.user("ben").await);
    let stream = handed_over(&world, &[]).await;
    let mut client = WebSocketClient::new(stream);
    let login = v1::Login {
        token: ben.token.clone(),
        device_id: "web".into(),
        watch: vec!["lobby_main".into()],
        ..Default::default()
    };
    client.send(&[&Opening::CURRENT.encode()[..], &command(Kind::Login, 1, &login)].concat()).await;
    let mut writer = Writer::new(&world, &anna, "lobby_main").await;
    writer.burst(120).await;
    let mut noticed = 0;
    while noticed < writer.said {
        let frame = client.frame().await;
        if frame.head.kind == Kind::NotifyNewMessages as u8 {
            noticed = v1::NotifyNewMessages::decode(frame.payload).unwrap().latest_seq;
        }
    }
    // From the shard's memory, from the archive's pages, and a refusal.
    let last = writer.said;
    let fill = v1::Pull { before_seq: last, ..newest("lobby_main", Some(2)) };
    for (correlation, pull) in [(7, newest("lobby_main", Some(2))), (8, fill), (9, newest("lobby_main", None))] {
        client.send(&command(Kind::Pull, correlation, &pull)).await;
        let frame = loop {
            let frame = client.frame().await;
            if frame.head.kind < 0x80 && frame.head.correlation == correlation {
                break frame;
            }
        };
        assert_eq!(frame.head.kind, Kind::PullReply as u8);
        let reply = v1::PullReply::decode(frame.payload).unwrap();
        check(&reply, &pull);
        assert!(reply.latest_seq == last && !reply.messages.is_empty());
    }
    world.gateway.stop().await;
}

fn command(kind: Kind, correlation: u16, message: &impl prost::Message) -> BytesMut {
    let mut bytes = BytesMut::new();
    frame::put_message(&mut bytes, kind, correlation, message);
    bytes
}

impl WebSocketClient {
    async fn send(&mut self, frames: &[u8]) {
        use tokio::io::AsyncWriteExt as _;
        self.stream.write_all(&masked(Opcode::Binary, frames)).await.unwrap();
    }
}
