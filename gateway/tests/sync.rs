//! Staying in sync: what a client missed comes in one round trip, and a live one learns that it missed something.

#![allow(clippy::unwrap_used)]

#[macro_use]
mod support;

use std::time::Duration;

use support::{Account, Client, World, embedded, eventually};
use tidegate_core::event::{PushEvent, StreamMark};
use tidegate_core::ids::{ConversationId, StreamId};
use tidegate_core::ports::{Backend, HotStore as _, PushQueue as _, PushTarget};
use tidegate_proto::Kind;
use tidegate_proto::v1::{self, CloseCode, Code, SyncOutcome};

on_every_backend!(
    a_login_with_positions_brings_what_is_missing,
    sync_answers_many_conversations_each_whole_or_not_at_all,
    a_live_client_learns_that_the_last_push_was_lost,
    who_reads_up_to_where_is_seen_in_history,
    a_session_goes_on_with_its_watches,
    a_device_has_one_connection,
);

fn from(conversation: &str, epoch: u32, seq: u64) -> v1::SyncFrom {
    v1::SyncFrom { conversation_id: conversation.to_owned(), epoch, seq }
}

fn seqs(synced: &v1::Synced) -> Vec<u64> {
    synced.messages.iter().map(|message| message.seq).collect()
}

/// Sends so many messages and waits for the last one's push.
async fn write(client: &mut Client, conversation: &str, from: u64, count: u64) {
    for n in from..from + count {
        client.send(conversation, &format!("{conversation} {n}"), "x").await.unwrap();
        assert_eq!(client.message().await.seq, n);
    }
}

async fn a_login_with_positions_brings_what_is_missing<B: Backend>(world: &World<B>) {
    let (anna, ben) = (world.user("anna").await, world.user("ben").await);
    let private = anna.with(&ben);
    let room = ConversationId::Room(world.room(&anna, &[&ben]).await).to_string();
    let mut writer = world.connect(&anna, "pc").await;
    write(&mut writer, &private, 1, 3).await;
    write(&mut writer, &room, 1, 2).await;
    let epoch = writer
        .ask::<v1::SyncReply>(Kind::Sync, &v1::Sync { positions: vec![from(&room, 0, 0)], others: false })
        .await
        .unwrap();
    let epoch = epoch.synced[0].epoch;

    let positions = vec![from(&private, epoch, 1), from(&room, epoch, 2), from("r_999999", epoch, 5)];
    let login = v1::Login { positions, ..Default::default() };
    let mut reader = Client::open(world.address).await;
    let reply = reader.login_with(&ben, "pc", login).await;
    let got: Vec<_> = reply.synced.iter().map(|one| (one.outcome(), seqs(one), one.unread)).collect();
    let expected =
        [(SyncOutcome::Whole, vec![2, 3], 3), (SyncOutcome::Whole, vec![], 2), (SyncOutcome::NotMember, vec![], 0)];
    assert_eq!(got, expected);
    // What comes after is pushed, with nothing in between.
    write(&mut writer, &private, 4, 1).await;
    assert_eq!(reader.message().await.seq, 4);
}

async fn sync_answers_many_conversations_each_whole_or_not_at_all<B: Backend>(world: &World<B>) {
    let anna = world.user("anna").await;
    let mut rooms = Vec::new();
    for _ in 0..12 {
        rooms.push(ConversationId::Room(world.room(&anna, &[]).await).to_string());
    }
    let mut client = world.connect(&anna, "pc").await;
    for (n, room) in (0..).zip(&rooms) {
        write(&mut client, room, 1, n % 4).await;
    }
    let positions: Vec<_> = rooms.iter().map(|room| from(room, 0, 0)).collect();
    let reply: v1::SyncReply = client.ask(Kind::Sync, &v1::Sync { positions, others: false }).await.unwrap();
    for (n, (synced, room)) in (0..).zip(reply.synced.iter().zip(&rooms)) {
        assert_eq!((&synced.conversation_id, synced.outcome()), (room, SyncOutcome::Whole));
        assert_eq!(seqs(synced), (1..=n % 4).collect::<Vec<u64>>());
    }
    let epoch = reply.synced[0].epoch;
    let reload = [from(&rooms[3], epoch + 1, 3), from(&rooms[3], epoch, 4)];
    let reply: v1::SyncReply =
        client.ask(Kind::Sync, &v1::Sync { positions: reload.to_vec(), others: false }).await.unwrap();
    for synced in &reply.synced {
        assert_eq!((synced.outcome(), synced.messages.len(), synced.last_seq), (SyncOutcome::Reload, 0, 3));
    }
    let none = client.ask::<v1::SyncReply>(Kind::Sync, &v1::Sync::default()).await;
    assert_eq!(none.unwrap_err(), Code::BadPayload);
    let wrong = v1::Sync { positions: vec![from("nonsense", 0, 0)], others: false };
    assert_eq!(client.ask::<v1::SyncReply>(Kind::Sync, &wrong).await.unwrap_err(), Code::BadConversation);
}

/// A broker loses a push and says nothing; the next mark of its stream, here a beacon, gives it away.
async fn a_live_client_learns_that_the_last_push_was_lost<B: Backend>(world: &World<B>) {
    let anna = world.user("anna").await;
    let mut client = Client::open(world.address).await;
    client.login(&anna, "pc", &["lobby_main"]).await;
    client.send("lobby_main", "first", "x").await.unwrap();
    client.message().await;
    let mark = |before, after| PushEvent::Marked(StreamMark { stream: StreamId(4711), before, after });
    let to_all = |event| vec![(PushTarget::All, vec![event])];
    world.backend.push().publish(to_all(mark(0, 1))).await.unwrap();
    world.backend.push().publish(to_all(mark(2, 2))).await.unwrap();
    let behind = client.behind().await;
    assert_eq!((behind.conversation_id, behind.last_seq), (String::new(), 0));
    // Told once: what follows in order is no news.
    world.backend.push().publish(to_all(mark(2, 3))).await.unwrap();
    client.send("lobby_main", "k", "x").await.unwrap();
    let quiet = tokio::time::timeout(Duration::from_millis(1500), client.behind()).await;
    assert!(quiet.is_err(), "{quiet:?}");
}

async fn who_reads_up_to_where_is_seen_in_history<B: Backend>(world: &World<B>) {
    let (anna, ben) = (world.user("anna").await, world.user("ben").await);
    let private = anna.with(&ben);
    let mut writer = world.connect(&anna, "pc").await;
    write(&mut writer, &private, 1, 3).await;
    let mut reader = world.connect(&ben, "pc").await;
    let receipt = v1::Receipt { conversation_id: private.clone(), delivered_seq: 3, read_seq: 2 };
    let _: v1::ReceiptAck = reader.ask(Kind::Receipt, &receipt).await.unwrap();
    while writer.push().await.head.kind != Kind::ReceiptMoved as u8 {}
    let history = |watermarks| v1::History { conversation_id: private.clone(), watermarks, ..Default::default() };
    let page: v1::HistoryReply = writer.ask(Kind::History, &history(true)).await.unwrap();
    let marks: Vec<_> = page.watermarks.iter().map(|mark| (mark.user_id, mark.delivered_seq, mark.read_seq)).collect();
    assert_eq!(marks, [(ben.id.0, 3, 2)]);
    let page: v1::HistoryReply = writer.ask(Kind::History, &history(false)).await.unwrap();
    assert!(page.watermarks.is_empty());
}

async fn a_session_goes_on_with_its_watches<B: Backend>(world: &World<B>) {
    let (anna, ben) = (world.user("anna").await, world.user("ben").await);
    let mut client = Client::open(world.address).await;
    let first = client.login(&anna, "phone", &[]).await;
    assert!(!first.resumed && first.watching.is_empty());
    let watch = v1::Watch { watch: vec!["lobby_main".into()], unwatch: vec![], background: None };
    let _: v1::WatchReply = client.ask(Kind::Watch, &watch).await.unwrap();
    // The record follows the reply, as it does behind a connection that breaks at once.
    let session = tidegate_core::ids::SessionId(first.session_id);
    eventually("the hot store knows what is watched", async || {
        let kept = world.backend.hot().resume(anna.id, "phone", session).await.unwrap();
        kept.is_some_and(|watching| watching.len() == 1).then_some(())
    })
    .await;
    drop(client);
    let resume = |session_id| v1::Login { resume_session_id: session_id, ..Default::default() };

    let mut stranger = Client::open(world.address).await;
    let reply = stranger.login_with(&ben, "phone", resume(first.session_id)).await;
    assert!(!reply.resumed && reply.watching.is_empty(), "another user's session is none");

    let mut client = Client::open(world.address).await;
    let again = client.login_with(&anna, "phone", resume(first.session_id)).await;
    assert!(again.resumed);
    assert_eq!((again.session_id, again.watching), (first.session_id, vec!["lobby_main".to_owned()]));
    stranger.send("lobby_main", "k", "still there?").await.unwrap();
    assert_eq!(&client.message().await.body[..], b"still there?");
}

async fn a_device_has_one_connection<B: Backend>(world: &World<B>) {
    let (anna, ben) = (world.user("anna").await, world.user("ben").await);
    let mut first = world.connect(&anna, "phone").await;
    let mut other_device = world.connect(&anna, "pc").await;
    let mut second = world.connect(&anna, "phone").await;
    assert_eq!(first.close().await, CloseCode::Replaced);
    // However soon after one another: several of these fall into one millisecond.
    for _ in 0..20 {
        let mut former = std::mem::replace(&mut second, world.connect(&anna, "phone").await);
        assert_eq!(former.close().await, CloseCode::Replaced);
    }
    let mut sender = world.connect(&ben, "pc").await;
    sender.send(&anna.with(&ben), "k", "which of you?").await.unwrap();
    assert_eq!((second.message().await.seq, other_device.message().await.seq), (1, 1));
}

// ---------------------------------------------------------------------------------------------------------------------
// Receivers that do not keep up

/// More than the kernel's buffers of both sides and the outbox hold, in bodies of 16 KiB.
const TOO_MANY: u64 = 800;

/// Writes until a reader that stopped has no room left; everybody else gets everything.
async fn flood(writer: &mut Client, reader: &mut Client, conversation: &str) {
    let body = "x".repeat(16 * 1024);
    for n in 1..=TOO_MANY {
        writer.send(conversation, &format!("k{n}"), &body).await.unwrap();
        assert_eq!(reader.message().await.seq, n);
    }
}

async fn stuck_and_reader<B: Backend>(world: &World<B>, account: &Account) -> (Client, Client) {
    let mut stuck = Client::open(world.address).await;
    stuck.login(account, "stuck", &["lobby_main"]).await;
    let mut reader = Client::open(world.address).await;
    reader.login(account, "reader", &["lobby_main"]).await;
    (stuck, reader)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slow_lobby_reader_goes_without_is_told_from_where_and_gets_the_rest_by_sync() {
    let world = embedded(&["limits.outbox_bytes_max=131072", "storm.gears=direct"]);
    let (anna, ben) = (world.user("anna").await, world.user("ben").await);
    let (mut slow, mut reader) = stuck_and_reader(&world, &ben).await;
    let mut writer = world.connect(&anna, "pc").await;
    flood(&mut writer, &mut reader, "lobby_main").await;
    let views = tidegate::app::inspect(world.gateway.mailboxes().clone())(2).await;
    let fullest = views.iter().max_by_key(|view| view.outbox_bytes).unwrap();
    assert_eq!((fullest.user, fullest.device.as_str(), fullest.is_blocked), (ben.id, "stuck", true));
    assert!(fullest.outbox_bytes > 64 * 1024 && fullest.skipped_pushes > 0, "{fullest:?}");
    assert_eq!(fullest.behind_in.iter().map(ToString::to_string).collect::<Vec<_>>(), ["lobby_main"]);

    // It reads at last: without a hole up to a point, then why it ends there.
    let mut last = 0;
    let behind = loop {
        let frame = slow.push().await;
        match Kind::try_from(i32::from(frame.head.kind)).unwrap() {
            Kind::Message => {
                let message = <v1::Message as prost::Message>::decode(frame.payload).unwrap();
                assert_eq!(message.seq, last + 1);
                last = message.seq;
            }
            Kind::Behind => break <v1::Behind as prost::Message>::decode(frame.payload).unwrap(),
            other => panic!("{other:?}"),
        }
    };
    assert_eq!((behind.conversation_id.as_str(), behind.after_seq, behind.last_seq), ("lobby_main", last, TOO_MANY));
    assert!(last < TOO_MANY);
    // A frame of 16 KiB bodies holds three; the gap is longer, so the client is sent to History.
    let sync = v1::Sync { positions: vec![from("lobby_main", behind.epoch, last)], others: false };
    let reply: v1::SyncReply = slow.ask(Kind::Sync, &sync).await.unwrap();
    assert_eq!((reply.synced[0].outcome(), reply.synced[0].last_seq), (SyncOutcome::Reload, TOO_MANY));
    while last < TOO_MANY {
        let history = v1::History { conversation_id: "lobby_main".into(), after_seq: Some(last), ..Default::default() };
        let page: v1::HistoryReply = slow.ask(Kind::History, &history).await.unwrap();
        for message in &page.messages {
            assert_eq!(message.seq, last + 1);
            last = message.seq;
        }
    }
    // And it is live again.
    writer.send("lobby_main", "after", "x").await.unwrap();
    assert_eq!(slow.message().await.seq, TOO_MANY + 1);
    world.gateway.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slow_private_reader_is_closed_and_resumes_by_sequence() {
    let world = embedded(&["limits.outbox_bytes_max=131072", "storm.gears=direct"]);
    let (anna, ben) = (world.user("anna").await, world.user("ben").await);
    let private = anna.with(&ben);
    let (mut stuck, mut reader) = stuck_and_reader(&world, &ben).await;
    let mut writer = world.connect(&anna, "pc").await;
    flood(&mut writer, &mut reader, &private).await;
    // Who reads this late may find the socket gone already, and its Close with it.
    let told = stuck.close_or_end().await;
    assert!(matches!(told, None | Some(CloseCode::SlowConsumer)), "{told:?}");
    let login = v1::Login { positions: vec![from(&private, 0, 0)], ..Default::default() };
    let reply = Client::open(world.address).await.login_with(&ben, "stuck", login).await;
    assert_eq!((reply.synced[0].outcome(), reply.synced[0].last_seq), (SyncOutcome::Reload, TOO_MANY));
    world.gateway.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reader_that_takes_nothing_at_all_is_closed() {
    let world = embedded(&["limits.outbox_bytes_max=131072", "limits.stall_timeout_s=1"]);
    let (anna, ben, eve) = (world.user("anna").await, world.user("ben").await, world.user("eve").await);
    let mut stuck = Client::open(world.address).await;
    stuck.login(&eve, "stuck", &["lobby_main"]).await;
    let mut reader = Client::open(world.address).await;
    reader.login(&ben, "reader", &["lobby_main"]).await;
    let mut writer = world.connect(&anna, "pc").await;
    flood(&mut writer, &mut reader, "lobby_main").await;
    eventually("eve is away though her client has not read a byte", async || {
        let presence = world.backend.hot().presence(&[eve.id]).await.unwrap();
        presence[0].gateways.is_empty().then_some(())
    })
    .await;
    reader.send("lobby_main", "k", "the others go on").await.unwrap();
    assert_eq!(reader.message().await.seq, TOO_MANY + 1);
    drop(stuck);
    world.gateway.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_turn_that_holds_more_than_an_outbox_is_no_reason_to_go_without() {
    const MESSAGES: u16 = 600;
    let world = embedded(&["limits.outbox_bytes_max=131072", "limits.in_flight_max=1024", "storm.gears=direct"]);
    let (anna, ben) = (world.user("anna").await, world.user("ben").await);
    let mut reader = Client::open(world.address).await;
    reader.login(&ben, "pc", &["lobby_main"]).await;
    let mut writer = world.connect(&anna, "pc").await;
    let body = "x".repeat(4 * 1024);
    let reading = tokio::spawn(async move {
        for n in 1..=u64::from(MESSAGES) {
            let frame = reader.push().await;
            assert_eq!(frame.head.kind, Kind::Message as u8, "no Behind for a reader that reads");
            assert_eq!(<v1::Message as prost::Message>::decode(frame.payload).unwrap().seq, n);
        }
    });
    let mut waiting = Vec::new();
    for n in 0..MESSAGES {
        waiting.push(writer.command(Kind::Send, &support::send("lobby_main", &format!("k{n}"), &body)).await);
    }
    for correlation in waiting {
        let _: v1::SendAck = writer.reply(correlation).await.unwrap();
    }
    reading.await.unwrap();
    world.gateway.stop().await;
}
