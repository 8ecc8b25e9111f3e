//! A session in the background is told how many messages came, once a second at most, and gets them when it comes back.

#![allow(clippy::unwrap_used)]

#[macro_use]
mod support;

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use prost::Message as _;
use support::{Account, Client, World};
use tidegate_core::event::{Membership, PushEvent};
use tidegate_core::ids::{ConversationId, Epoch, Millis, RoomId, Seq, UserId};
use tidegate_core::limits::COUNTS_MAX;
use tidegate_core::ports::{Archive as _, Backend, PushQueue as _, PushTarget};
use tidegate_proto::v1::{self, CloseCode, Code, Gear, SyncOutcome};
use tidegate_proto::{Frame, Kind};
use tokio::time::Instant;

on_every_backend!(
    counts_come_instead_of_messages,
    counts_come_once_a_second_at_most,
    who_comes_back_misses_nothing,
    a_session_begins_where_its_login_says,
    ones_own_membership_is_told_in_the_background,
    receipts_are_not,
    what_ends_a_message_or_the_connection_is_told,
    what_is_too_much_to_count_is_one_behind,
);

/// Conversation -> the newest sequence, and how many came from others, over all Counts seen.
type Seen = BTreeMap<String, (u64, u32)>;

async fn in_background<B: Backend>(world: &World<B>, account: &Account, device: &str, lobbies: &[&str]) -> Client {
    let mut client = Client::open(world.address).await;
    let watch = lobbies.iter().map(|lobby| (*lobby).to_owned()).collect();
    client.login_with(account, device, v1::Login { background: true, watch, ..Default::default() }).await;
    client
}

/// Moves the session; returns where the reply says it is.
async fn move_to(client: &mut Client, background: bool) -> bool {
    let watch = v1::Watch { background: Some(background), ..Default::default() };
    client.ask::<v1::WatchReply>(Kind::Watch, &watch).await.unwrap().background
}

/// The next push, which must be Counts.
async fn counts(client: &mut Client) -> Vec<v1::Count> {
    let push = client.push().await;
    assert_eq!(push.head.kind, Kind::Counts as u8, "{push:?}");
    v1::Counts::decode(push.payload).unwrap().counts
}

/// Adds up counts, and lets nothing else pass, until all are as expected.
async fn count_until(client: &mut Client, expected: &Seen) {
    let mut seen = Seen::new();
    while seen != *expected {
        for count in counts(client).await {
            let (last_seq, new_messages) = seen.entry(count.conversation_id).or_default();
            assert!(count.last_seq > *last_seq && count.epoch > 0, "only news are told");
            *last_seq = count.last_seq;
            *new_messages += count.new_messages;
        }
        for (conversation, (last_seq, new_messages)) in &seen {
            let (last, new) = expected.get(conversation).unwrap_or_else(|| panic!("{conversation} is not expected"));
            assert!(last_seq <= last && new_messages <= new, "{seen:?} instead of {expected:?}");
        }
    }
}

fn seen<const N: usize>(counts: [(&str, u64, u32); N]) -> Seen {
    counts.into_iter().map(|(conversation, last_seq, new)| (conversation.to_owned(), (last_seq, new))).collect()
}

/// Sends so many messages, from that sequence on, and waits for their pushes.
async fn write(client: &mut Client, conversation: &str, from: u64, count: u64) {
    for n in from..from + count {
        client.send(conversation, &format!("{conversation} {n}"), "x").await.unwrap();
        assert_eq!(client.message().await.seq, n);
    }
}

async fn publish<B: Backend>(world: &World<B>, events: Vec<PushEvent>) {
    world.backend.push().publish(vec![(PushTarget::All, events)]).await.unwrap();
}

async fn counts_come_instead_of_messages<B: Backend>(world: &World<B>) {
    let (anna, ben) = (world.user("anna").await, world.user("ben").await);
    let private = anna.with(&ben);
    let room = ConversationId::Room(world.room(&anna, &[&ben]).await).to_string();
    let mut ben_pc = world.connect(&ben, "pc").await;
    let mut anna_pc = Client::open(world.address).await;
    anna_pc.login(&anna, "pc", &["lobby_main"]).await;
    // Others may have written in the lobby before.
    let history = v1::History { conversation_id: "lobby_main".into(), page_size: 1, ..Default::default() };
    let lobby = anna_pc.ask::<v1::HistoryReply>(Kind::History, &history).await.unwrap().last_seq;
    let mut phone = in_background(world, &ben, "phone", &["lobby_main"]).await;

    write(&mut anna_pc, &private, 1, 2).await;
    write(&mut anna_pc, &room, 1, 3).await;
    write(&mut anna_pc, "lobby_main", lobby + 1, 4).await;
    for _ in 0..5 {
        ben_pc.message().await;
    }
    write(&mut ben_pc, &private, 3, 1).await;
    let expected = seen([(&private, 3, 2), (&room, 3, 3), ("lobby_main", lobby + 4, 4)]);
    count_until(&mut phone, &expected).await;
    // One's own messages move the end and are not new.
    write(&mut ben_pc, &room, 4, 1).await;
    count_until(&mut phone, &seen([(&room, 4, 0)])).await;
    // What is not watched any more is not counted.
    let watch = v1::Watch { unwatch: vec!["lobby_main".into()], ..Default::default() };
    let reply: v1::WatchReply = phone.ask(Kind::Watch, &watch).await.unwrap();
    assert!(reply.background && reply.watching.is_empty());
    // The two of Ben's.
    assert_eq!((anna_pc.message().await.seq, anna_pc.message().await.seq), (3, 4));
    write(&mut anna_pc, "lobby_main", lobby + 5, 1).await;
    write(&mut anna_pc, &private, 4, 1).await;
    count_until(&mut phone, &seen([(&private, 4, 1)])).await;
}

async fn counts_come_once_a_second_at_most<B: Backend>(world: &World<B>) {
    let (anna, ben) = (world.user("anna").await, world.user("ben").await);
    let private = anna.with(&ben);
    let mut phone = in_background(world, &ben, "phone", &[]).await;
    let mut anna_pc = world.connect(&anna, "pc").await;
    let (begun, mut written) = (Instant::now(), 0);
    while begun.elapsed() < Duration::from_millis(2500) {
        write(&mut anna_pc, &private, written + 1, 1).await;
        written += 1;
    }
    let (mut frames, mut last_seq, mut new_messages) = (0_u32, 0, 0);
    while last_seq < written {
        for count in counts(&mut phone).await {
            last_seq = count.last_seq;
            new_messages += u64::from(count.new_messages);
        }
        frames += 1;
    }
    assert_eq!((last_seq, new_messages), (written, written));
    let ticks_max = u32::try_from(begun.elapsed().as_secs()).unwrap() + 2;
    assert!((2..=ticks_max).contains(&frames), "{frames} frames for {written} messages in {:?}", begun.elapsed());
}

async fn who_comes_back_misses_nothing<B: Backend>(world: &World<B>) {
    let (anna, ben) = (world.user("anna").await, world.user("ben").await);
    let private = anna.with(&ben);
    let mut anna_pc = world.connect(&anna, "pc").await;
    let mut ben_pc = world.connect(&ben, "pc").await;
    let mut from = v1::SyncFrom { conversation_id: private.clone(), epoch: 0, seq: 0 };
    let mut next = 1;
    for _ in 0..3 {
        write(&mut anna_pc, &private, next, 1).await;
        let message = ben_pc.message().await;
        assert_eq!(message.seq, next, "in the foreground each message comes");
        (from.epoch, from.seq) = (message.epoch, message.seq);

        assert!(move_to(&mut ben_pc, true).await);
        write(&mut anna_pc, &private, next + 1, 3).await;
        assert!(!move_to(&mut ben_pc, false).await);
        let sync = v1::Sync { positions: vec![from.clone()], others: false };
        let reply: v1::SyncReply = ben_pc.ask(Kind::Sync, &sync).await.unwrap();
        let seqs: Vec<_> = reply.synced[0].messages.iter().map(|message| message.seq).collect();
        assert_eq!((reply.synced[0].outcome(), seqs), (SyncOutcome::Whole, vec![next + 1, next + 2, next + 3]));
        // Counts may have come before the reply; behind it nothing but messages does.
        next += 4;
        write(&mut anna_pc, &private, next, 1).await;
        let mut told = Vec::new();
        loop {
            let push = ben_pc.push().await;
            told.push(push.head.kind);
            if push.head.kind == Kind::Message as u8 {
                assert_eq!(v1::Message::decode(push.payload).unwrap().seq, next);
                break;
            }
        }
        let before = &told[..told.len() - 1];
        assert!(before.iter().all(|kind| *kind == Kind::Counts as u8), "{told:?}");
        next += 1;
    }
    // What was counted and not told when it came back is not told any more.
    let late = tokio::time::timeout(Duration::from_millis(1500), ben_pc.push()).await;
    assert!(late.is_err(), "{late:?}");
}

async fn a_session_begins_where_its_login_says<B: Backend>(world: &World<B>) {
    let (anna, ben) = (world.user("anna").await, world.user("ben").await);
    let private = anna.with(&ben);
    let mut anna_pc = world.connect(&anna, "pc").await;
    let (mut session, mut next) = (0, 1);
    for background in [true, false, true] {
        let mut phone = Client::open(world.address).await;
        let login = v1::Login { background, resume_session_id: session, ..Default::default() };
        let reply = phone.login_with(&ben, "phone", login).await;
        assert_eq!(reply.resumed, session != 0);
        session = reply.session_id;
        let watch: v1::WatchReply = phone.ask(Kind::Watch, &v1::Watch::default()).await.unwrap();
        assert_eq!(watch.background, background);
        write(&mut anna_pc, &private, next, 2).await;
        if background {
            count_until(&mut phone, &seen([(&private, next + 1, 2)])).await;
        } else {
            assert_eq!((phone.message().await.seq, phone.message().await.seq), (next, next + 1));
        }
        next += 2;
    }
}

async fn ones_own_membership_is_told_in_the_background<B: Backend>(world: &World<B>) {
    let (anna, ben, eve) = (world.user("anna").await, world.user("ben").await, world.user("eve").await);
    let room = world.room(&anna, &[]).await;
    let conversation = ConversationId::Room(room).to_string();
    let mut phone = in_background(world, &ben, "phone", &[]).await;
    let mut anna_pc = world.connect(&anna, "pc").await;
    let told = |push: Frame| {
        assert_eq!(push.head.kind, Kind::MembershipChanged as u8, "{push:?}");
        let changed = v1::MembershipChanged::decode(push.payload).unwrap();
        (changed.conversation_id, changed.user_id, changed.joined)
    };

    world.backend.archive().join_room(room, ben.id, Millis(2)).await.unwrap();
    publish(world, vec![changed(room, ben.id, Membership::Joined)]).await;
    assert_eq!(told(phone.push().await), (conversation.clone(), ben.id.0, true));
    // In the room: its messages are counted, others' coming is not told.
    publish(world, vec![changed(room, eve.id, Membership::Joined)]).await;
    write(&mut anna_pc, &conversation, 1, 2).await;
    count_until(&mut phone, &seen([(&conversation, 2, 2)])).await;

    world.backend.archive().leave_room(room, ben.id).await.unwrap();
    publish(world, vec![changed(room, ben.id, Membership::Left)]).await;
    assert_eq!(told(phone.push().await), (conversation.clone(), ben.id.0, false));
    // Out of it: the next count is of another conversation.
    write(&mut anna_pc, &conversation, 3, 1).await;
    write(&mut anna_pc, &anna.with(&ben), 1, 1).await;
    count_until(&mut phone, &seen([(&anna.with(&ben), 1, 1)])).await;
}

fn changed(room: RoomId, user: UserId, change: Membership) -> PushEvent {
    PushEvent::MembershipChanged { conversation: ConversationId::Room(room), user, change }
}

async fn receipts_are_not<B: Backend>(world: &World<B>) {
    let (anna, ben) = (world.user("anna").await, world.user("ben").await);
    let private = anna.with(&ben);
    let mut phone = in_background(world, &ben, "phone", &[]).await;
    let mut ben_pc = world.connect(&ben, "pc").await;
    let mut anna_pc = world.connect(&anna, "pc").await;
    write(&mut anna_pc, &private, 1, 2).await;
    count_until(&mut phone, &seen([(&private, 2, 2)])).await;
    let receipt = v1::Receipt { conversation_id: private.clone(), delivered_seq: 0, read_seq: 2 };
    let _: v1::ReceiptAck = anna_pc.ask(Kind::Receipt, &receipt).await.unwrap();
    while ben_pc.push().await.head.kind != Kind::ReceiptMoved as u8 {}
    write(&mut anna_pc, &private, 3, 1).await;
    count_until(&mut phone, &seen([(&private, 3, 1)])).await;
}

async fn what_ends_a_message_or_the_connection_is_told<B: Backend>(world: &World<B>) {
    let (anna, ben) = (world.user("anna").await, world.user("ben").await);
    let private = anna.with(&ben);
    let mut phone = in_background(world, &ben, "phone", &[]).await;
    phone.send(&private, "same", "body").await.unwrap();
    count_until(&mut phone, &seen([(&private, 1, 0)])).await;
    phone.send(&private, "same", "another body").await.unwrap();
    let push = phone.push().await;
    assert_eq!(push.head.kind, Kind::SendRejected as u8, "{push:?}");
    assert_eq!(v1::SendRejected::decode(push.payload).unwrap().code(), Code::Conflict);
    let _phone_again = in_background(world, &ben, "phone", &[]).await;
    assert_eq!(phone.close().await, CloseCode::Replaced);
}

async fn what_is_too_much_to_count_is_one_behind<B: Backend>(world: &World<B>) {
    let ben = world.user("ben").await;
    let mut phone = in_background(world, &ben, "phone", &[]).await;
    let message = |n: u64, seq| PushEvent::Sequenced {
        conversation: ConversationId::private(ben.id, UserId(ben.id.0 + n)).unwrap(),
        epoch: Epoch(1),
        seq: Seq(seq),
        sender: UserId(ben.id.0 + n),
        gear: Gear::Direct,
        payload: Bytes::from_static(b"not looked at"),
    };
    // A tick may come in the middle of them, and tell of a part.
    for attempt in 1..10 {
        publish(world, (1..=COUNTS_MAX as u64 + 1).map(|n| message(n, attempt)).collect()).await;
        let push = phone.push().await;
        if push.head.kind == Kind::Behind as u8 {
            let behind = v1::Behind::decode(push.payload).unwrap();
            assert_eq!((behind.conversation_id, behind.last_seq), (String::new(), 0));
            // And then it is counted as before.
            publish(world, vec![message(1, attempt + 1)]).await;
            assert_eq!(counts(&mut phone).await.len(), 1);
            return;
        }
        assert_eq!(push.head.kind, Kind::Counts as u8);
        let told = v1::Counts::decode(push.payload).unwrap().counts.len();
        assert!(told <= COUNTS_MAX);
        // The rest of the same round.
        assert_eq!(counts(&mut phone).await.len(), COUNTS_MAX + 1 - told);
    }
    panic!("never within one second");
}

/// In a storm the end of the lobby is told, whichever way its messages travel.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_storm_is_counts_as_well() {
    const MESSAGES: u64 = 60;
    let world = support::embedded(&["storm.rules=lobby_main merged_per_s=5 signal_per_s=20 spread_ms=200"]);
    let (anna, ben) = (world.user("anna").await, world.user("ben").await);
    let mut phone = in_background(&world, &ben, "phone", &["lobby_main"]).await;
    let mut anna_pc = Client::open(world.address).await;
    anna_pc.login(&anna, "pc", &["lobby_main"]).await;
    for n in 1..=MESSAGES {
        anna_pc.send("lobby_main", &n.to_string(), "x").await.unwrap();
    }
    let mut kinds = std::collections::BTreeSet::new();
    let (mut last_seq, mut new_messages) = (0, 0);
    while last_seq < MESSAGES {
        for count in counts(&mut phone).await {
            assert!(count.last_seq > last_seq);
            last_seq = count.last_seq;
            new_messages += u64::from(count.new_messages);
        }
    }
    while !kinds.contains(&(Kind::NotifyNewMessages as u8)) {
        kinds.insert(anna_pc.push().await.head.kind);
    }
    assert!(kinds.contains(&(Kind::Message as u8)) && kinds.contains(&(Kind::GearChanged as u8)), "{kinds:?}");
    assert!(new_messages > 0 && new_messages < MESSAGES, "{new_messages}: those that were pushed");
    assert_eq!(last_seq, MESSAGES);
    world.gateway.stop().await;
}

/// Messages that share a frame are counted one by one, and one's own are not.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn merged_messages_are_counted_one_by_one() {
    const EACH: u64 = 20;
    let rule = "storm.rules=lobby_main gears=direct+merged merged_per_s=2 merge_ms=200";
    let world = support::embedded(&[rule]);
    let (anna, ben) = (world.user("anna").await, world.user("ben").await);
    let mut phone = in_background(&world, &ben, "phone", &["lobby_main"]).await;
    let mut anna_pc = Client::open(world.address).await;
    anna_pc.login(&anna, "pc", &["lobby_main"]).await;
    let mut ben_pc = world.connect(&ben, "pc").await;
    for n in 1..=EACH {
        anna_pc.send("lobby_main", &n.to_string(), "x").await.unwrap();
        ben_pc.send("lobby_main", &n.to_string(), "x").await.unwrap();
    }
    let expected = u32::try_from(EACH).unwrap();
    count_until(&mut phone, &seen([("lobby_main", 2 * EACH, expected)])).await;
    let mut kind = 0;
    while kind != Kind::Messages as u8 {
        kind = anna_pc.push().await.head.kind;
    }
    world.gateway.stop().await;
}
