//! Registering, logging in and out, and looking users up.

use std::sync::atomic::Ordering;
use std::time::Duration;

use prost::Message as _;
use serde_json::json;
use tidegate_core::event::{ReceiptMoved, StoredMessage};
use tidegate_core::ids::{ConversationId, MessageId, Millis, Seq, UserId};
use tidegate_core::ports::{Archive as _, Backend as _, Filing, HotStore as _, PersistBatch};
use tidegate_proto::v1::ContentType;

use crate::world::{REMEMBERED_TOKEN, World};

#[test]
fn a_user_registers_logs_in_is_known_and_logs_out() {
    let world = World::new();
    let body = json!({ "name": " Bob ", "password": "correct horse" });
    let registered = world.post("/api/v1/register", "", body).expect(201);
    assert_eq!(registered["name"], "Bob");

    let answer = world.post("/api/v1/login", "", json!({ "name": "bOB", "password": "correct horse" }));
    assert_eq!(answer.header("cache-control"), Some("no-store"));
    let login = answer.expect(200);
    assert_eq!(login["user_id"], registered["user_id"]);
    assert_eq!(login["token_name"], "satoken");
    assert_eq!(login["expires_in_s"], 2_592_000);
    assert_eq!((&login["unread"], &login["positions"], &login["recent"]), (&json!([]), &json!([]), &json!([])));
    let token = login["token"].as_str().unwrap();
    assert!(token.len() >= 32);

    let me = world.get("/api/v1/me", token).expect(200);
    assert_eq!(me, json!({ "user_id": registered["user_id"], "name": "Bob", "rooms": [], "unread": [] }));
    let by_header =
        world.raw(format!("GET /api/v1/me HTTP/1.1\r\nhost: x\r\nconnection: close\r\nsatoken: {token}\r\n\r\n"));
    assert_eq!(by_header.expect(200), me);

    assert_eq!(world.post("/api/v1/logout", token, json!({})).status, 204);
    world.get("/api/v1/me", token).expect_problem(401, "token_invalid");
    world.post("/api/v1/logout", token, json!({})).expect_problem(401, "token_invalid");
}

#[test]
fn a_login_says_where_everything_stands_and_takes_nothing() {
    let world = World::new();
    let ((bob, _), (alice, _)) = (world.user("bob"), world.user("alice"));
    let conversation: ConversationId = format!("p_{bob}_{alice}").parse().unwrap();
    let message = |seq: u64| StoredMessage {
        conversation,
        seq: Seq(seq),
        message_id: MessageId(seq.to_be_bytes().repeat(2).try_into().unwrap()),
        sender: UserId(bob),
        sent_at: Millis(1000 + seq),
        content_type: ContentType::Text,
        body: format!("number {seq}").into(),
    };
    let messages: Vec<_> = (1..=70).map(message).collect();
    let epoch = world.backend.archive().epoch();
    let filing = Filing {
        user: UserId(alice),
        conversation,
        seqs: (4..=70).map(Seq).collect(),
        inbox: messages[3..].iter().map(|message| message.to_wire(epoch).encode_to_vec().into()).collect(),
    };
    let receipts = vec![ReceiptMoved { conversation, user: UserId(alice), delivered: Seq(3), read: Seq(2) }];
    world.runtime.block_on(async {
        world.backend.archive().persist(&PersistBatch { messages, receipts }).await.unwrap();
        world.backend.hot().file(std::slice::from_ref(&filing)).await.unwrap();
    });

    let login = || world.post("/api/v1/login", "", json!({ "name": "alice", "password": "correct horse" })).expect(200);
    let (first, second) = (login(), login());
    let position = json!({
        "conversation_id": conversation.to_string(),
        "epoch": epoch.0,
        "last_seq": 70,
        "read_seq": 2,
        "unread": 68,
    });
    assert_eq!(first["positions"], json!([position]));
    let recent = first["recent"].as_array().unwrap();
    let seqs: Vec<_> = recent.iter().map(|message| message["seq"].as_u64().unwrap()).collect();
    assert_eq!(seqs, (21..=70).collect::<Vec<_>>(), "the newest 50, oldest first");
    let newest = json!({
        "conversation_id": conversation.to_string(),
        "epoch": epoch.0,
        "seq": 70,
        "message_id": format!("{:032x}", u128::from(70_u64) << 64 | 70),
        "sender_id": bob,
        "sent_at_ms": 1070,
        "content_type": "text",
        "text": "number 70",
    });
    assert_eq!(recent[49], newest);
    assert_eq!(second["recent"], first["recent"], "a second login finds the same");
    let summary = world.runtime.block_on(world.backend.hot().take_summary(UserId(alice))).unwrap();
    assert_eq!(summary.inbox, filing.inbox, "all of it is left for the first connection");
}

#[test]
fn a_name_is_given_once_and_keeps_the_rules() {
    let world = World::new();
    world.user("bob");
    let register =
        |name: &str, password: &str| world.post("/api/v1/register", "", json!({ "name": name, "password": password }));
    register("BOB", "correct horse").expect_problem(409, "name_taken");
    register("b", "correct horse").expect_problem(400, "name_invalid");
    register("bo b", "correct horse").expect_problem(400, "name_invalid");
    register("bob\u{202e}", "correct horse").expect_problem(400, "name_invalid");
    register("alice", "1234567").expect_problem(400, "password_invalid");
    register("alice", &"x".repeat(257)).expect_problem(400, "password_invalid");
    register("alice", &"x".repeat(256)).expect(201);
}

#[test]
fn an_unknown_user_and_a_wrong_password_get_one_answer() {
    let world = World::new();
    world.user("bob");
    let login = |name: &str, password: &str| {
        let answer = world.post("/api/v1/login", "", json!({ "name": name, "password": password }));
        answer.expect_problem(401, "credentials_wrong");
        answer.text
    };
    let wrong_password = login("bob", "wrong horse");
    assert_eq!(wrong_password, login("nobody", "correct horse"));
    assert_eq!(wrong_password, login("", ""));
    assert_eq!(wrong_password, login("bob", &"x".repeat(1000)));
    // The password of the decoy opens nothing.
    assert_eq!(wrong_password, login("nobody", "nobody has this password"));
}

#[test]
fn a_token_may_be_missing_forged_or_expired() {
    let world = World::new();
    world.user("bob");
    world.get("/api/v1/me", "").expect_problem(401, "token_missing");
    world.get("/api/v1/me", "forged").expect_problem(401, "token_invalid");
    world.get("/api/v1/me", &"x".repeat(4000)).expect_problem(401, "token_invalid");
    world.runtime.block_on(async {
        let hot = world.backend.hot();
        hot.put_token("old", UserId(1), Duration::ZERO).await.unwrap();
        hot.put_token("of-nobody", UserId(999), Duration::from_secs(60)).await.unwrap();
    });
    world.get("/api/v1/me", "old").expect_problem(401, "token_invalid");
    world.get("/api/v1/me", REMEMBERED_TOKEN).expect_problem(401, "token_expired");
    world.get("/api/v1/me", "of-nobody").expect_problem(401, "token_invalid");
    let basic = "GET /api/v1/me HTTP/1.1\r\nhost: x\r\nconnection: close\r\nauthorization: Basic eDp4\r\n\r\n";
    world.raw(basic).expect_problem(401, "token_missing");
}

#[test]
fn users_are_found_by_name_and_by_ids() {
    let world = World::new();
    let ((bob, token), (alice, _)) = (world.user("bob"), world.user("alice"));
    let users = |query: &str| world.get(&format!("/api/v1/users?{query}"), &token);
    let (bob, alice) = (json!({ "user_id": bob, "name": "bob" }), json!({ "user_id": alice, "name": "alice" }));
    assert_eq!(users("name=ALICE").expect(200)["users"], json!([alice]));
    assert_eq!(users("name=carol").expect(200)["users"], json!([]));
    let ids = format!("ids={},{},0,777,18446744073709551615", alice["user_id"], bob["user_id"]);
    assert_eq!(users(&ids).expect(200)["users"], json!([bob, alice]));
    let many = vec!["1"; 101].join(",");
    for query in ["", "name=bob&ids=1", "ids=", "ids=x", "ids=-1", &format!("ids={many}")] {
        users(query).expect_problem(400, "query_invalid");
    }
    world.get("/api/v1/users?name=bob", "").expect_problem(401, "token_missing");
}

#[test]
fn without_the_hot_store_answers_say_later_and_nothing_more() {
    let world = World::new();
    let (_, token) = world.user("bob");
    world.backend.hot().down.store(true, Ordering::SeqCst);
    world.get("/api/v1/me", &token).expect_problem(503, "unavailable");
    let login = json!({ "name": "bob", "password": "correct horse" });
    world.post("/api/v1/login", "", login).expect_problem(503, "unavailable");
    world.backend.hot().down.store(false, Ordering::SeqCst);
    world.get("/api/v1/me", &token).expect(200);
}
