//! Events that can never be stored, in a gateway over real services: they end among the dead letters, their senders are told,
//! and nobody else notices.

#![allow(clippy::unwrap_used)]

mod support;

use std::time::Duration;

use lapin::options::{BasicGetOptions, BasicPublishOptions};
use lapin::types::AMQPValue;
use lapin::{BasicProperties, Channel, Connection, ConnectionProperties};
use prost::Message as _;
use support::{Cluster, eventually};
use tidegate_core::ports::{Archive as _, Backend as _};
use tidegate_proto::Kind;
use tidegate_proto::v1::{self, Code};

/// A body that the database is told to refuse.
const POISON: &str = "poison";

async fn broker() -> (Connection, Channel) {
    let url = support::url("TIDEGATE_RABBITMQ_URL");
    let connection = Connection::connect(&url, ConnectionProperties::default()).await.unwrap();
    let channel = connection.create_channel().await.unwrap();
    (connection, channel)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_message_the_database_never_takes_is_buried_alone_and_can_be_given_back() {
    let Some(cluster) = Cluster::with_a_database().await else { return };
    let world = cluster.gateway("gw-poison").await;
    cluster.sql(&format!("ALTER TABLE messages ADD CONSTRAINT no_poison CHECK (body <> '{POISON}')")).await;
    let (anna, ben) = (world.user("anna").await, world.user("ben").await);
    let conversation = anna.with(&ben);
    let (mut anna_pc, mut ben_pc) = (world.connect(&anna, "pc").await, world.connect(&ben, "pc").await);

    // In one burst, so that they share turns.
    let bodies: Vec<String> = (0..300).map(|n| if n % 97 == 50 { POISON.to_owned() } else { n.to_string() }).collect();
    let mut waiting = Vec::new();
    for (n, body) in bodies.iter().enumerate() {
        waiting.push(anna_pc.command(Kind::Send, &support::send(&conversation, &format!("k{n}"), body)).await);
    }
    for correlation in waiting {
        let _: v1::SendAck = anna_pc.reply(correlation).await.unwrap();
    }
    let good: Vec<&String> = bodies.iter().filter(|body| *body != POISON).collect();
    for (seq, body) in (1..).zip(&good) {
        let message = ben_pc.message().await;
        assert_eq!((message.seq, &message.body[..]), (seq, body.as_bytes()), "the others, without a gap");
    }
    let (mut rejected, mut seen) = (0, 0);
    while (rejected, seen) != (3, good.len()) {
        let push = anna_pc.push().await;
        if push.head.kind == Kind::SendRejected as u8 {
            assert_eq!(v1::SendRejected::decode(push.payload).unwrap().code(), Code::Internal);
            rejected += 1;
        } else {
            seen += usize::from(push.head.kind == Kind::Message as u8);
        }
    }

    // The dead letters say why, and where they belong.
    let (_connection, channel) = broker().await;
    let dead = format!("{}dead.queue", cluster.prefix());
    let mut letters = Vec::new();
    while letters.len() < 3 {
        let got = channel.basic_get(dead.as_str().into(), BasicGetOptions { no_ack: true }).await.unwrap();
        letters.extend(got.map(|letter| letter.delivery));
    }
    let note = |letter: &lapin::message::Delivery, name: &str| match letter
        .properties
        .headers()
        .as_ref()
        .and_then(|headers| headers.inner().get(name))
    {
        Some(AMQPValue::LongString(text)) => text.to_string(),
        other => panic!("{name}: {other:?}"),
    };
    assert!(letters.iter().all(|letter| note(letter, "x-reason").contains("no_poison")), "the database's reason");

    // Once the rule is gone, whoever publishes them where they came from has them processed.
    cluster.sql("ALTER TABLE messages DROP CONSTRAINT no_poison").await;
    for letter in &letters {
        let (exchange, key) = (note(letter, "x-original-exchange"), note(letter, "x-original-routing-key"));
        let (options, properties) = (BasicPublishOptions::default(), BasicProperties::default());
        channel.basic_publish(exchange.into(), key.into(), options, &letter.data, properties).await.unwrap();
    }
    for seq in 298..=300 {
        let message = ben_pc.message().await;
        assert_eq!((message.seq, &message.body[..]), (seq, POISON.as_bytes()));
    }
    world.gateway.stop().await;
    cluster.drop_database().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_database_that_takes_nothing_at_present_costs_no_message() {
    let Some(cluster) = Cluster::with_a_database().await else { return };
    let world = cluster.gateway("gw-patient").await;
    let (anna, ben) = (world.user("anna").await, world.user("ben").await);
    let conversation = anna.with(&ben);
    let (mut anna_pc, mut ben_pc) = (world.connect(&anna, "pc").await, world.connect(&ben, "pc").await);
    anna_pc.send(&conversation, "k1", "before").await.unwrap();
    assert_eq!(ben_pc.message().await.seq, 1);

    cluster.sql("RENAME TABLE messages TO aside").await;
    anna_pc.send(&conversation, "k2", "meanwhile").await.unwrap();
    eventually("the archive is not well", async || world.backend.archive().ping().await.err()).await;
    // Time enough for several attempts.
    let until = tokio::time::Instant::now() + Duration::from_secs(2);
    while tokio::time::Instant::now() < until {
        world.backend.archive().ping().await.expect_err("still not");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    cluster.sql("RENAME TABLE aside TO messages").await;
    let message = ben_pc.message().await;
    assert_eq!((message.seq, &message.body[..]), (2, &b"meanwhile"[..]));
    eventually("the archive is well again", async || world.backend.archive().ping().await.ok()).await;
    let (_connection, channel) = broker().await;
    let dead = format!("{}dead.queue", cluster.prefix());
    let got = channel.basic_get(dead.as_str().into(), BasicGetOptions { no_ack: true }).await.unwrap();
    assert!(got.is_none(), "nothing is buried");
    world.gateway.stop().await;
    cluster.drop_database().await;
}
