//! Reading back, and who may not.

use bytes::Bytes;
use serde_json::{Value, json};
use tidegate_core::event::{ReceiptMoved, StoredMessage};
use tidegate_core::ids::{ClientMsgId, ConversationId, MessageId, Millis, Seq, UserId};
use tidegate_core::ports::{Archive as _, Backend as _, PersistBatch};
use tidegate_proto::v1::ContentType;

use crate::world::World;

fn fill(world: &World, conversation: &str, sender: u64, bodies: impl IntoIterator<Item = (ContentType, Vec<u8>)>) {
    let conversation: ConversationId = conversation.parse().unwrap();
    let messages = (1..).zip(bodies).map(|(seq, (content_type, body))| {
        let key = ClientMsgId::new(Bytes::from(format!("{conversation}-{seq}"))).unwrap();
        StoredMessage {
            conversation,
            seq: Seq(seq),
            message_id: MessageId::derive(UserId(sender), &key),
            sender: UserId(sender),
            sent_at: Millis(1000 + seq),
            content_type,
            body: body.into(),
        }
    });
    let batch = PersistBatch { messages: messages.collect(), receipts: Vec::new() };
    world.runtime.block_on(world.backend.archive().persist(&batch)).unwrap();
}

fn texts(count: usize) -> impl Iterator<Item = (ContentType, Vec<u8>)> {
    (1..=count).map(|n| (ContentType::Text, format!("number {n}").into_bytes()))
}

fn seqs(page: &Value) -> Vec<u64> {
    page["messages"].as_array().unwrap().iter().map(|message| message["seq"].as_u64().unwrap()).collect()
}

#[test]
fn history_goes_back_page_by_page_and_forward_again() {
    let world = World::new();
    let ((bob, token), (alice, alices)) = (world.user("bob"), world.user("alice"));
    let opened = world.post("/api/v1/conversations/private", &token, json!({ "user_id": alice })).expect(200);
    let conversation = opened["conversation_id"].as_str().unwrap();
    assert_eq!(conversation, format!("p_{bob}_{alice}"));
    fill(&world, conversation, bob, texts(5));
    let page = |query: &str| {
        let path = format!("/api/v1/chat/history?conversation_id={conversation}&{query}");
        world.get(&path, &alices).expect(200)
    };

    let newest = page("page_size=2");
    assert_eq!((seqs(&newest), &newest["more"], &newest["last_seq"]), (vec![4, 5], &json!(true), &json!(5)));
    assert!(newest["epoch"].as_u64().unwrap() > 0);
    let message = &newest["messages"][1];
    assert_eq!((&message["content_type"], &message["text"]), (&json!("text"), &json!("number 5")));
    assert_eq!((&message["sender_id"], &message["sent_at_ms"]), (&json!(bob), &json!(1005)));
    assert_eq!(message["message_id"].as_str().unwrap().len(), 32);
    let before = page("page_size=2&last_message_seq=4");
    assert_eq!((seqs(&before), &before["more"]), (vec![2, 3], &json!(true)));
    let first = page("page_size=2&last_message_seq=2");
    assert_eq!((seqs(&first), &first["more"]), (vec![1], &json!(false)));
    let forward = page("page_size=3&after_seq=1");
    assert_eq!((seqs(&forward), &forward["more"]), (vec![2, 3, 4], &json!(true)));
    let end = page("after_seq=4");
    assert_eq!((seqs(&end), &end["more"]), (vec![5], &json!(false)));
    assert!(seqs(&page("after_seq=18446744073709551615")).is_empty());
    assert_eq!(seqs(&page("last_message_seq=18446744073709551615")), [1, 2, 3, 4, 5]);
    assert_eq!(seqs(&page("last_message_seq=0&page_size=1")), [5]);

    let unread = json!([{ "conversation_id": conversation, "count": 5 }]);
    assert_eq!(world.get("/api/v1/me", &alices).expect(200)["unread"], unread);
    assert_eq!(world.get("/api/v1/me", &token).expect(200)["unread"], json!([]));
    let login = world.post("/api/v1/login", "", json!({ "name": "alice", "password": "correct horse" }));
    assert_eq!(login.expect(200)["unread"], unread);
}

#[test]
fn a_page_says_how_far_everybody_is() {
    let world = World::new();
    let ((bob, token), (alice, alices)) = (world.user("bob"), world.user("alice"));
    let conversation = format!("p_{bob}_{alice}");
    let page = |conversation: &str, token: &str| {
        world.get(&format!("/api/v1/chat/history?conversation_id={conversation}"), token).expect(200)
    };
    assert_eq!(page(&conversation, &token)["watermarks"], json!([]));
    fill(&world, &conversation, bob, texts(5));
    let moved = |user, delivered, read| ReceiptMoved {
        conversation: conversation.parse().unwrap(),
        user: UserId(user),
        delivered: Seq(delivered),
        read: Seq(read),
    };
    let receipts = vec![moved(alice, 4, 3), moved(bob, 5, 5)];
    let batch = PersistBatch { messages: Vec::new(), receipts };
    world.runtime.block_on(world.backend.archive().persist(&batch)).unwrap();
    let mark =
        |user: u64, delivered: u64, read: u64| json!({ "user_id": user, "delivered_seq": delivered, "read_seq": read });
    let marks = json!([mark(bob, 5, 5), mark(alice, 4, 3)]);
    assert_eq!(page(&conversation, &token)["watermarks"], marks);
    assert_eq!(page(&conversation, &alices)["watermarks"], marks, "on either side");
    fill(&world, "lobby_main", bob, texts(1));
    assert_eq!(page("lobby_main", &token)["watermarks"], json!([]));
}

#[test]
fn a_page_ends_before_its_bodies_grow_too_large() {
    let world = World::new();
    let (bob, token) = world.user("bob");
    fill(&world, "lobby_main", bob, (0..40).map(|_| (ContentType::Text, vec![b'x'; 16 * 1024])));
    let page = |query: &str| {
        world.get(&format!("/api/v1/chat/history?conversation_id=lobby_main&{query}"), &token).expect(200)
    };
    let newest = page("page_size=200");
    assert_eq!((seqs(&newest), &newest["more"]), ((25..=40).collect(), &json!(true)));
    let forward = page("page_size=200&after_seq=0");
    assert_eq!((seqs(&forward), &forward["more"]), ((1..=16).collect(), &json!(true)));
}

#[test]
fn bytes_come_in_base64_and_so_does_text_that_is_none() {
    let world = World::new();
    let (bob, token) = world.user("bob");
    let bodies = [(ContentType::Binary, vec![0, 255]), (ContentType::Text, vec![0xff]), (ContentType::Text, vec![])];
    fill(&world, "lobby_eu", bob, bodies);
    let page = world.get("/api/v1/chat/history?conversation_id=lobby_eu", &token).expect(200);
    let views: Vec<_> =
        page["messages"].as_array().unwrap().iter().map(|m| (&m["content_type"], &m["body_base64"])).collect();
    let (binary, none) = (json!("binary"), json!(null));
    assert_eq!(views, [(&binary, &json!("AP8=")), (&binary, &json!("/w==")), (&json!("text"), &none)]);
}

#[test]
fn only_members_read() {
    let world = World::new();
    let ((bob, bobs), (alice, alices), (_, eves)) = (world.user("bob"), world.user("alice"), world.user("eve"));
    let room = world.post("/api/v1/rooms", &bobs, json!({ "name": "den" })).expect(201);
    let private = format!("p_{bob}_{alice}");
    let read = |conversation: &str, token: &str| {
        world.get(&format!("/api/v1/chat/history?conversation_id={conversation}"), token)
    };
    let conversation = room["conversation_id"].as_str().unwrap();
    read(conversation, &bobs).expect(200);
    read(conversation, &eves).expect_problem(403, "not_member");
    read(&private, &alices).expect(200);
    read(&private, &eves).expect_problem(403, "not_member");
    read("lobby_main", &eves).expect(200);
    read("lobby_elsewhere", &eves).expect_problem(403, "not_member");
    read("r_999", &eves).expect_problem(403, "not_member");
    read("lobby_main", "").expect_problem(401, "token_missing");

    let leave = format!("/api/v1/rooms/{}/leave", room["room_id"]);
    assert_eq!(world.post(&leave, &bobs, json!({})).status, 204);
    read(conversation, &bobs).expect_problem(403, "not_member");
}

#[test]
fn a_senseless_question_is_refused() {
    let world = World::new();
    let (bob, token) = world.user("bob");
    let queries = [
        "",
        "conversation_id=",
        "conversation_id=p_2_1",
        "conversation_id=lobby_main&page_size=many",
        "conversation_id=lobby_main&after_seq=-1",
        "conversation_id=lobby_main&after_seq=1&last_message_seq=2",
    ];
    for query in queries {
        world.get(&format!("/api/v1/chat/history?{query}"), &token).expect_problem(400, "query_invalid");
    }
    let open = |user: Value| world.post("/api/v1/conversations/private", &token, json!({ "user_id": user }));
    open(json!(bob)).expect_problem(400, "conversation_invalid");
    open(json!(999)).expect_problem(404, "user_unknown");
    open(json!(0)).expect_problem(404, "user_unknown");
    open(json!(u64::MAX)).expect_problem(404, "user_unknown");
    open(json!("bob")).expect_problem(400, "body_malformed");
}
