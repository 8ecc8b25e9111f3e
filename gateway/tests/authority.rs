//! Who gives sequences: the archive, whatever the hot store has lost; and what happens when the archive itself went back.

#![allow(clippy::unwrap_used)]

mod support;

use std::sync::Arc;

use fred::clients::Client as Redis;
use fred::interfaces::{ClientLike as _, KeysInterface as _, LuaInterface as _};
use fred::types::config::Config as RedisUrl;
use mysql_async::prelude::Queryable as _;
use mysql_async::{Conn, Opts, OptsBuilder};
use prost::Message as _;
use support::{Account, Client, Cluster, TempDir, World, eventually};
use tidegate::backends::{Embedded, Services};
use tidegate_core::ids::ConversationId;
use tidegate_core::ports::{Backend, HotStore as _};
use tidegate_proto::Kind;
use tidegate_proto::v1::{self, Code};

/// Held by the tests that use services: one of them ends everybody's connections to the database.
static ALONE: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());

/// A room of one, its owner's connection, and its name.
async fn room<B: Backend>(world: &World<B>) -> (Account, Client, String) {
    let anna = world.user("anna").await;
    let room = ConversationId::Room(world.room(&anna, &[]).await).to_string();
    let client = world.connect(&anna, "pc").await;
    (anna, client, room)
}

/// Sends one message and returns it as it was pushed.
async fn sent(client: &mut Client, room: &str, key: &str) -> v1::Message {
    let ack = client.send(room, key, key).await.unwrap();
    loop {
        let message = client.message().await;
        if message.message_id == ack.message_id {
            return message;
        }
    }
}

/// Repeats `first` with its own body and with another.
async fn assert_remembered(client: &mut Client, room: &str, key: &str, first: &v1::Message) {
    let again = sent(client, room, key).await;
    assert_eq!(&again, first, "the first answer, in all its parts");
    let ack = client.send(room, key, "another body").await.unwrap();
    let push = client.push().await;
    assert_eq!(push.head.kind, Kind::SendRejected as u8);
    let rejected = v1::SendRejected::decode(push.payload).unwrap();
    assert_eq!((rejected.code(), rejected.message_id), (Code::Conflict, ack.message_id));
}

async fn redis() -> Redis {
    let url = std::env::var("TIDEGATE_REDIS_URL").expect("set by the test run");
    let client = Redis::new(RedisUrl::from_url(&url).unwrap(), None, None, None);
    client.init().await.unwrap();
    client
}

/// What FLUSHALL does, for the keys of this test alone.
async fn forget(redis: &Redis, prefix: &str) {
    const FORGET: &str =
        "local keys = redis.call('KEYS', ARGV[1]) for _, key in ipairs(keys) do redis.call('DEL', key) end
                          return #keys";
    let keys: i64 = redis.eval(FORGET, Vec::<String>::new(), vec![format!("{prefix}*")]).await.unwrap();
    assert!(keys > 0, "there was something to forget");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_redis_that_lost_everything_changes_neither_sequence_nor_epoch_nor_the_first_answer() {
    let Some(services) = Cluster::of_services() else { return };
    let _alone = ALONE.lock().await;
    let (redis, world) = (redis().await, services.gateway("gw-one").await);
    let (anna, mut client, room) = room(&world).await;
    let first = sent(&mut client, &room, "k1").await;
    assert_eq!(first.seq, 1);
    for (n, key) in [(2, "k2"), (3, "k3"), (4, "k4")] {
        forget(&redis, services.prefix()).await;
        let message = sent(&mut client, &room, key).await;
        assert_eq!((message.seq, message.epoch), (n, first.epoch));
    }
    forget(&redis, services.prefix()).await;
    assert_remembered(&mut client, &room, "k1", &first).await;

    // A replica that was behind when it took over.
    let key = format!("{}seq:conv:{room}", services.prefix());
    let kept = format!("{}seq:kept:{room}", services.prefix());
    redis.set::<(), _, _>(&key, "1", None, None, false).await.unwrap();
    redis.set::<(), _, _>(&kept, format!("{} 1", first.epoch), None, None, false).await.unwrap();
    let message = sent(&mut client, &room, "k5").await;
    assert_eq!((message.seq, message.epoch), (5, first.epoch));
    let counter: Option<String> = redis.get(&key).await.unwrap();
    assert_eq!(counter.as_deref(), Some("5"), "and others read the right counter again");
    world.gateway.stop().await;

    // And another life of the engine, with an empty Redis.
    forget(&redis, services.prefix()).await;
    let world = services.gateway("gw-one").await;
    let mut client = login_again(&world, &anna).await;
    let message = sent(&mut client, &room, "k6").await;
    assert_eq!((message.seq, message.epoch), (6, first.epoch));
    assert_remembered(&mut client, &room, "k1", &first).await;
    world.gateway.stop().await;
}

/// Logins are Redis's, so they were lost with it.
async fn login_again(world: &World<Services>, account: &Account) -> Client {
    let ttl = std::time::Duration::from_secs(600);
    world.backend.hot().put_token(&account.token, account.id, ttl).await.unwrap();
    world.connect(account, "pc").await
}

/// The embedded hot store is memory: every restart loses it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_embedded_restart_changes_neither_sequence_nor_epoch_nor_the_first_answer() {
    let data = TempDir::new();
    let config = support::config(&[]);
    let start = async || {
        let backend = eventually("the file is free", async || Embedded::open(&data.0, &config.gateway_id).ok()).await;
        World::start(support::config(&[]), Arc::new(backend), TempDir::new())
    };
    let world = start().await;
    let (anna, mut client, room) = room(&world).await;
    let first = sent(&mut client, &room, "k1").await;
    sent(&mut client, &room, "k2").await;
    world.gateway.stop().await;
    drop((client, world.backend));

    let world = start().await;
    world.backend.hot().put_token(&anna.token, anna.id, std::time::Duration::from_secs(600)).await.unwrap();
    let mut client = world.connect(&anna, "pc").await;
    assert_remembered(&mut client, &room, "k1", &first).await;
    let message = sent(&mut client, &room, "k3").await;
    assert_eq!((message.seq, message.epoch), (3, first.epoch));
    world.gateway.stop().await;
}

/// MySQL fails over to a replica that lacks the last commits: connections break, and rows that people have seen are gone.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_mysql_that_went_back_begins_a_new_epoch_and_clients_resync() {
    let Some(services) = Cluster::of_services() else { return };
    let _alone = ALONE.lock().await;
    let world = services.gateway("gw-one").await;
    let (anna, mut client, room) = room(&world).await;
    let mut epoch = 0;
    for n in 1..=5 {
        let message = sent(&mut client, &room, &format!("k{n}")).await;
        assert_eq!(message.seq, n);
        epoch = message.epoch;
    }
    go_back(&room, 3).await;
    let message = sent(&mut client, &room, "k6").await;
    assert_eq!(message.seq, 4, "no gap where 4 and 5 were");
    assert!(message.epoch > epoch, "and nobody takes it for the other 4");
    epoch = message.epoch;
    let history =
        v1::History { conversation_id: room.clone(), after_seq: Some(0), page_size: 10, ..Default::default() };
    let page: v1::HistoryReply = client.ask(Kind::History, &history).await.unwrap();
    let seqs: Vec<_> = page.messages.iter().map(|message| (message.epoch, message.seq)).collect();
    assert_eq!((page.epoch, seqs), (epoch, (1..=4).map(|n| (epoch, n)).collect()), "all of it is of the new epoch");

    // What was lost is not remembered, and was not promised otherwise than by the archive.
    assert_eq!(sent(&mut client, &room, "k5").await.seq, 5);
    world.gateway.stop().await;
    go_back(&room, 2).await;
    let world = services.gateway("gw-one").await;
    let mut client = login_again(&world, &anna).await;
    let message = sent(&mut client, &room, "k7").await;
    assert_eq!(message.seq, 3);
    assert!(message.epoch > epoch, "found by the next life of the engine as well");
    world.gateway.stop().await;
}

/// Deletes a room's messages above a sequence and ends all other connections to the database.
async fn go_back(room: &str, to: u64) {
    let url = std::env::var("TIDEGATE_MYSQL_URL").expect("set by the test run");
    let mut conn = Conn::new(OptsBuilder::from_opts(Opts::from_url(&url).unwrap()).prefer_socket(false)).await.unwrap();
    let delete = "DELETE FROM messages WHERE conversation_id = ? AND seq > ?";
    conn.exec_drop(delete, (room, to)).await.unwrap();
    let others = "SELECT id FROM information_schema.processlist WHERE db = DATABASE() AND id <> CONNECTION_ID()";
    let ids: Vec<u64> = conn.query(others).await.unwrap();
    for id in ids {
        // It may have ended by itself.
        let _ = conn.query_drop(format!("KILL {id}")).await;
    }
    conn.disconnect().await.unwrap();
}
