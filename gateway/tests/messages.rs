//! A message goes end to end: over real sockets, through the engines, on every set of backends.

#![allow(clippy::unwrap_used)]

#[macro_use]
mod support;

use prost::Message as _;
use support::{World, eventually};
use tidegate_core::event::{Membership, PushEvent};
use tidegate_core::ids::{ConversationId, RoomId};
use tidegate_core::ports::{Archive as _, Backend, HotStore as _, PushQueue as _, PushTarget};
use tidegate_proto::Kind;
use tidegate_proto::v1::{self, Code};

on_every_backend!(
    a_private_message_reaches_all_devices_of_both,
    a_room_message_reaches_its_members_in_one_order,
    a_lobby_reaches_who_watches,
    a_repetition_gets_the_first_answer_and_other_content_is_a_conflict,
    who_was_away_is_told_at_login,
    history_pages_both_ways,
    nobody_writes_to_who_does_not_exist,
    reading_lowers_the_count_and_is_shown_to_the_other_side,
    a_burst_of_one_connection_is_acked_and_arrives_in_order,
);

async fn a_private_message_reaches_all_devices_of_both<B: Backend>(world: &World<B>) {
    let (anna, ben) = (world.user("anna").await, world.user("ben").await);
    let mut anna_pc = world.connect(&anna, "pc").await;
    let mut anna_phone = world.connect(&anna, "phone").await;
    let mut ben_pc = world.connect(&ben, "pc").await;
    let ack = anna_pc.send(&anna.with(&ben), "k1", "hello").await.unwrap();
    for client in [&mut anna_pc, &mut anna_phone, &mut ben_pc] {
        let message = client.message().await;
        assert_eq!((message.seq, &message.body[..], message.sender_id), (1, &b"hello"[..], anna.id.0));
        assert_eq!(message.message_id, ack.message_id);
    }
    ben_pc.send(&anna.with(&ben), "k1", "hi").await.unwrap();
    assert_eq!(anna_phone.message().await.seq, 2);
}

async fn a_room_message_reaches_its_members_in_one_order<B: Backend>(world: &World<B>) {
    let (anna, ben, eve) = (world.user("anna").await, world.user("ben").await, world.user("eve").await);
    let room = world.room(&anna, &[&ben]).await;
    let conversation = ConversationId::Room(room).to_string();
    let mut anna_pc = world.connect(&anna, "pc").await;
    let mut ben_pc = world.connect(&ben, "pc").await;
    let mut eve_pc = world.connect(&eve, "pc").await;
    assert_eq!(eve_pc.send(&conversation, "k", "let me in").await, Err(Code::NotMember));

    for n in 0..5 {
        anna_pc.send(&conversation, &format!("a{n}"), "x").await.unwrap();
        ben_pc.send(&conversation, &format!("b{n}"), "y").await.unwrap();
    }
    let mut seen = Vec::new();
    for client in [&mut anna_pc, &mut ben_pc] {
        let mut messages = Vec::new();
        for seq in 1..=10 {
            let message = client.message().await;
            assert_eq!(message.seq, seq);
            messages.push(message.message_id);
        }
        seen.push(messages);
    }
    assert_eq!(seen[0], seen[1]);

    join(world, room, &eve).await;
    eventually("eve may write", async || eve_pc.send(&conversation, "k", "thanks").await.ok()).await;
    assert_eq!(anna_pc.message().await.seq, 11);
    assert_eq!(eve_pc.message().await.seq, 11);
}

/// What the room service does: first the archive, then everybody is told.
async fn join<B: Backend>(world: &World<B>, room: RoomId, account: &support::Account) {
    world.backend.archive().join_room(room, account.id, tidegate_core::ids::Millis(2)).await.unwrap();
    let event = PushEvent::MembershipChanged {
        conversation: ConversationId::Room(room),
        user: account.id,
        change: Membership::Joined,
    };
    world.backend.push().publish(vec![(PushTarget::All, vec![event])]).await.unwrap();
}

async fn a_lobby_reaches_who_watches<B: Backend>(world: &World<B>) {
    let (anna, ben) = (world.user("anna").await, world.user("ben").await);
    let mut watcher = support::Client::open(world.address).await;
    watcher.login(&anna, "pc", &["lobby_main"]).await;
    let mut other = world.connect(&ben, "pc").await;
    other.send("lobby_main", "k1", "first").await.unwrap();
    let first = watcher.message().await;
    assert_eq!(&first.body[..], b"first");
    let watch = v1::Watch { watch: vec!["lobby_main".into()], unwatch: vec![], background: None };
    let reply: v1::WatchReply = other.ask(Kind::Watch, &watch).await.unwrap();
    assert_eq!(reply.watching, ["lobby_main"]);
    watcher.send("lobby_main", "k2", "second").await.unwrap();
    // On its shard the first may have arrived only after the Watch.
    while other.message().await.seq != first.seq + 1 {}
    assert_eq!(watcher.message().await.seq, first.seq + 1);
}

async fn a_repetition_gets_the_first_answer_and_other_content_is_a_conflict<B: Backend>(world: &World<B>) {
    let (anna, ben) = (world.user("anna").await, world.user("ben").await);
    let conversation = anna.with(&ben);
    let mut client = world.connect(&anna, "pc").await;
    let first = client.send(&conversation, "same", "body").await.unwrap();
    assert_eq!(client.message().await.seq, 1);
    let again = client.send(&conversation, "same", "body").await.unwrap();
    assert_eq!(again.message_id, first.message_id);
    let message = client.message().await;
    assert_eq!((message.seq, message.message_id), (1, first.message_id.clone()));

    client.send(&conversation, "same", "other body").await.unwrap();
    let push = client.push().await;
    assert_eq!(push.head.kind, Kind::SendRejected as u8);
    let rejected = v1::SendRejected::decode(push.payload).unwrap();
    assert_eq!((rejected.code(), rejected.message_id), (Code::Conflict, first.message_id));
    client.send(&conversation, "next", "body").await.unwrap();
    assert_eq!(client.message().await.seq, 2, "neither repetition used a sequence up");
}

async fn who_was_away_is_told_at_login<B: Backend>(world: &World<B>) {
    let (anna, ben) = (world.user("anna").await, world.user("ben").await);
    let conversation = anna.with(&ben);
    let mut anna_pc = world.connect(&anna, "pc").await;
    for n in 1..=3 {
        anna_pc.send(&conversation, &format!("k{n}"), &format!("news {n}")).await.unwrap();
        anna_pc.message().await;
    }
    let reply = support::Client::open(world.address).await.login(&ben, "pc", &[]).await;
    let position = &reply.positions[0];
    assert_eq!((position.last_seq, position.read_seq, position.unread), (3, 0, 3));
    let recent: Vec<_> = reply.recent.iter().map(|message| (message.seq, &message.body[..])).collect();
    assert_eq!(recent, [(1, &b"news 1"[..]), (2, b"news 2"), (3, b"news 3")]);
    assert_eq!(reply.heartbeat.map(|h| (h.min_interval_s, h.max_interval_s, h.probe_count)), Some((5, 180, 3)));

    let reply = support::Client::open(world.address).await.login(&anna, "phone", &[]).await;
    assert_eq!(reply.positions[0].unread, 0, "own messages are not unread");
    assert!(reply.recent.is_empty());
}

async fn history_pages_both_ways<B: Backend>(world: &World<B>) {
    let (anna, ben) = (world.user("anna").await, world.user("ben").await);
    let conversation = anna.with(&ben);
    let mut client = world.connect(&anna, "pc").await;
    for n in 1..=7 {
        client.send(&conversation, &format!("k{n}"), "x").await.unwrap();
        client.message().await;
    }
    for (before_seq, after_seq, seqs, more) in [
        (0, None, vec![5, 6, 7], true),
        (5, None, vec![2, 3, 4], true),
        (2, None, vec![1], false),
        (0, Some(0), vec![1, 2, 3], true),
        (0, Some(5), vec![6, 7], false),
        (0, Some(7), vec![], false),
    ] {
        let history = v1::History {
            conversation_id: conversation.clone(),
            before_seq,
            after_seq,
            page_size: 3,
            ..Default::default()
        };
        let page: v1::HistoryReply = client.ask(Kind::History, &history).await.unwrap();
        let got: Vec<_> = page.messages.iter().map(|message| message.seq).collect();
        assert_eq!((got, page.more, page.last_seq), (seqs, more, 7), "before {before_seq}, after {after_seq:?}");
    }
}

async fn nobody_writes_to_who_does_not_exist<B: Backend>(world: &World<B>) {
    let anna = world.user("anna").await;
    let mut client = world.connect(&anna, "pc").await;
    let nobody = format!("p_{}_9000000000000000", anna.id.0);
    assert_eq!(client.send(&nobody, "k", "hello?").await, Err(Code::UnknownUser));
    assert_eq!(client.send(&nobody, "k", "hello?").await, Err(Code::UnknownUser));
}

async fn reading_lowers_the_count_and_is_shown_to_the_other_side<B: Backend>(world: &World<B>) {
    let (anna, ben) = (world.user("anna").await, world.user("ben").await);
    let conversation = anna.with(&ben);
    let mut anna_pc = world.connect(&anna, "pc").await;
    for n in 1..=3 {
        anna_pc.send(&conversation, &format!("k{n}"), "x").await.unwrap();
        anna_pc.message().await;
    }
    let mut ben_pc = world.connect(&ben, "pc").await;
    let mut ben_tv = world.connect(&ben, "tv").await;
    let receipt = v1::Receipt { conversation_id: conversation.clone(), delivered_seq: 0, read_seq: 2 };
    let _: v1::ReceiptAck = ben_pc.ask(Kind::Receipt, &receipt).await.unwrap();
    // The other side sees it, and so does another device of Ben's, where the count falls as well.
    for client in [&mut anna_pc, &mut ben_tv] {
        let push = client.push().await;
        assert_eq!(push.head.kind, Kind::ReceiptMoved as u8);
        let moved = v1::ReceiptMoved::decode(push.payload).unwrap();
        assert_eq!((moved.user_id, moved.read_seq, moved.delivered_seq), (ben.id.0, 2, 2));
    }
    let reply = support::Client::open(world.address).await.login(&ben, "phone", &[]).await;
    assert_eq!((reply.positions[0].read_seq, reply.positions[0].unread), (2, 1));

    let beyond = v1::Receipt { conversation_id: conversation.clone(), delivered_seq: 0, read_seq: 99 };
    let _: v1::ReceiptAck = ben_pc.ask(Kind::Receipt, &beyond).await.unwrap();
    anna_pc.send(&conversation, "k4", "x").await.unwrap();
    assert_eq!(anna_pc.message().await.seq, 4);
    let reply = support::Client::open(world.address).await.login(&ben, "tablet", &[]).await;
    assert_eq!((reply.positions[0].read_seq, reply.positions[0].unread), (3, 1), "the future cannot be read");
}

async fn a_burst_of_one_connection_is_acked_and_arrives_in_order<B: Backend>(world: &World<B>) {
    const BURST: u16 = 500;
    let (anna, ben) = (world.user("anna").await, world.user("ben").await);
    let conversation = anna.with(&ben);
    let mut anna_pc = world.connect(&anna, "pc").await;
    let mut ben_pc = world.connect(&ben, "pc").await;
    let mut waiting = Vec::new();
    for n in 0..BURST {
        waiting
            .push(anna_pc.command(Kind::Send, &support::send(&conversation, &format!("k{n}"), &n.to_string())).await);
    }
    for correlation in waiting {
        let _: v1::SendAck = anna_pc.reply(correlation).await.unwrap();
    }
    for n in 0..BURST {
        let message = ben_pc.message().await;
        assert_eq!((message.seq, &message.body[..]), (u64::from(n) + 1, n.to_string().as_bytes()));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn messages_cross_between_two_gateways() {
    let Some(services) = support::Cluster::of_services() else {
        return;
    };
    let (one, two) = (services.gateway("gw-one").await, services.gateway("gw-two").await);
    let (anna, ben) = (one.user("anna").await, one.user("ben").await);
    let room = one.room(&anna, &[]).await;
    let room_text = ConversationId::Room(room).to_string();
    let mut anna_pc = one.connect(&anna, "pc").await;
    let mut ben_pc = two.connect(&ben, "pc").await;

    anna_pc.send(&anna.with(&ben), "k1", "across").await.unwrap();
    assert_eq!(&ben_pc.message().await.body[..], b"across");
    assert_eq!(anna_pc.message().await.seq, 1);
    ben_pc.send(&anna.with(&ben), "k1", "and back").await.unwrap();
    assert_eq!((anna_pc.message().await.seq, ben_pc.message().await.seq), (2, 2));

    join(&one, room, &ben).await;
    eventually("ben may write", async || ben_pc.send(&room_text, "k2", "hello room").await.ok()).await;
    assert_eq!(&anna_pc.message().await.body[..], b"hello room");

    // Whoever leaves one gateway and appears at the other gets pushes there, and nothing was missed in between.
    drop(ben_pc);
    eventually("ben is away", async || {
        let presence = one.backend.hot().presence(&[ben.id]).await.unwrap();
        presence[0].gateways.is_empty().then_some(())
    })
    .await;
    anna_pc.send(&anna.with(&ben), "k3", "while away").await.unwrap();
    assert_eq!(anna_pc.message().await.seq, 3);
    let mut ben_pc = support::Client::open(one.address).await;
    let reply = ben_pc.login(&ben, "pc", &[]).await;
    let recent: Vec<_> = reply.recent.iter().map(|message| &message.body[..]).collect();
    assert_eq!(recent, [b"while away"]);
    anna_pc.send(&anna.with(&ben), "k4", "welcome").await.unwrap();
    assert_eq!(ben_pc.message().await.seq, 4);
    one.gateway.stop().await;
    two.gateway.stop().await;
}
