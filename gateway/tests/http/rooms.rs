//! Rooms, and what gateways are told about them.

use std::sync::atomic::Ordering;

use serde_json::json;
use tidegate_core::event::{Membership, PushEvent};
use tidegate_core::ids::{ConversationId, RoomId, UserId};
use tidegate_core::ports::{Backend as _, PushTarget};

use crate::world::{World, eventually};

fn told(room: u64, user: u64, change: Membership) -> (PushTarget, PushEvent) {
    let conversation = ConversationId::Room(RoomId(room));
    (PushTarget::All, PushEvent::MembershipChanged { conversation, user: UserId(user), change })
}

#[test]
fn a_room_is_made_joined_and_left_and_gateways_hear_of_it() {
    let world = World::new();
    let ((bob, bobs), (alice, alices)) = (world.user("bob"), world.user("alice"));
    let room = world.post("/api/v1/rooms", &bobs, json!({ "name": " Den of bob " })).expect(201);
    let id = room["room_id"].as_u64().unwrap();
    assert_eq!(room["conversation_id"], format!("r_{id}"));
    assert_eq!((&room["name"], &room["owner_id"]), (&json!("Den of bob"), &json!(bob)));
    assert_eq!((&room["capacity"], &room["members"]), (&json!(1000), &json!(1)));
    assert!(room["created_at_ms"].as_u64().unwrap() > 1_600_000_000_000);

    let joined = world.post(&format!("/api/v1/rooms/{id}/join"), &alices, json!({})).expect(200);
    assert_eq!(joined["members"], 2);
    assert_eq!(world.get(&format!("/api/v1/rooms/{id}"), &bobs).expect(200), joined);
    let members = world.get(&format!("/api/v1/rooms/{id}/members"), &bobs).expect(200);
    let both = json!([{ "user_id": bob, "name": "bob" }, { "user_id": alice, "name": "alice" }]);
    assert_eq!(members["members"], both);
    assert_eq!(world.get("/api/v1/me", &alices).expect(200)["rooms"], json!([id]));

    for _ in 0..2 {
        // Leaving again says the same and tells nobody.
        assert_eq!(world.post(&format!("/api/v1/rooms/{id}/leave"), &alices, json!({})).status, 204);
    }
    let expected =
        vec![told(id, bob, Membership::Joined), told(id, alice, Membership::Joined), told(id, alice, Membership::Left)];
    assert_eq!(world.backend.push().take_published(), expected);
}

#[test]
fn a_full_room_and_an_unknown_room_cannot_be_joined() {
    let world = World::new();
    let tokens = ["bob", "alice", "carol"].map(|name| world.user(name).1);
    let room = world.post("/api/v1/rooms", &tokens[0], json!({ "name": "two", "capacity": 2 })).expect(201);
    let join = format!("/api/v1/rooms/{}/join", room["room_id"]);
    world.post(&join, &tokens[1], json!({})).expect(200);
    world.post(&join, &tokens[2], json!({})).expect_problem(409, "room_full");
    world.post(&join, &tokens[1], json!({})).expect(200);
    for id in ["999", "0", "-1", "abc", "9223372036854775808", "99999999999999999999"] {
        world.post(&format!("/api/v1/rooms/{id}/join"), &tokens[0], json!({})).expect_problem(404, "room_unknown");
        world.post(&format!("/api/v1/rooms/{id}/leave"), &tokens[0], json!({})).expect_problem(404, "room_unknown");
        world.get(&format!("/api/v1/rooms/{id}"), &tokens[0]).expect_problem(404, "room_unknown");
        world.get(&format!("/api/v1/rooms/{id}/members"), &tokens[0]).expect_problem(404, "room_unknown");
    }
}

#[test]
fn slow_mode_is_the_owners_to_set_and_gateways_hear_of_it() {
    let world = World::new();
    let ((_, bobs), (_, alices)) = (world.user("bob"), world.user("alice"));
    let room = world.post("/api/v1/rooms", &bobs, json!({ "name": "den" })).expect(201);
    let path = format!("/api/v1/rooms/{}", room["room_id"]);
    let changed = (PushTarget::All, PushEvent::RoomChanged(RoomId(room["room_id"].as_u64().unwrap())));
    assert_eq!(room["slow_mode_s"], 0);
    world.backend.push().take_published();
    for slow_mode_s in [30, 21_600, 0] {
        let slowed = world.patch(&path, &bobs, json!({ "slow_mode_s": slow_mode_s })).expect(200);
        assert_eq!((&slowed["slow_mode_s"], &slowed["name"]), (&json!(slow_mode_s), &json!("den")));
        assert_eq!(world.get(&path, &alices).expect(200), slowed);
        assert_eq!(world.get("/api/v1/rooms", &alices).expect(200)["rooms"], json!([slowed]));
        assert_eq!(world.backend.push().take_published(), std::slice::from_ref(&changed));
    }
    world.patch(&path, &alices, json!({ "slow_mode_s": 30 })).expect_problem(403, "not_owner");
    world.patch(&path, "", json!({ "slow_mode_s": 30 })).expect_problem(401, "token_missing");
    world.patch(&path, &bobs, json!({ "slow_mode_s": 21_601 })).expect_problem(400, "slow_mode_invalid");
    for malformed in [json!({}), json!({ "slow_mode_s": -1 }), json!({ "slow_mode_s": "30" })] {
        world.patch(&path, &bobs, malformed).expect_problem(400, "body_malformed");
    }
    for id in ["999", "0", "abc"] {
        let nowhere = world.patch(&format!("/api/v1/rooms/{id}"), &bobs, json!({ "slow_mode_s": 30 }));
        nowhere.expect_problem(404, "room_unknown");
    }
    assert_eq!(world.backend.push().take_published(), []);
    assert_eq!(world.get(&path, &alices).expect(200)["slow_mode_s"], 0);
}

#[test]
fn a_room_keeps_the_rules_of_names_and_sizes() {
    let world = World::new();
    let (_, token) = world.user("bob");
    for name in ["", "  ", "a\nb", "a\u{202e}b", &"x".repeat(33)] {
        world.post("/api/v1/rooms", &token, json!({ "name": name })).expect_problem(400, "room_name_invalid");
    }
    for capacity in [0, 1, 1001] {
        let answer = world.post("/api/v1/rooms", &token, json!({ "name": "x", "capacity": capacity }));
        answer.expect_problem(400, "room_capacity_invalid");
    }
    world.post("/api/v1/rooms", &token, json!({ "name": "x", "capacity": -1 })).expect_problem(400, "body_malformed");
    world.post("/api/v1/rooms", "", json!({ "name": "x" })).expect_problem(401, "token_missing");
}

#[test]
fn the_list_of_rooms_has_pages() {
    let world = World::new();
    let (_, token) = world.user("bob");
    for n in 0..5 {
        world.post("/api/v1/rooms", &token, json!({ "name": format!("room {n}") })).expect(201);
    }
    let (mut names, mut next) = (Vec::new(), String::new());
    loop {
        let page = world.get(&format!("/api/v1/rooms?page_size=2{next}"), &token).expect(200);
        names.extend(page["rooms"].as_array().unwrap().iter().map(|room| room["name"].as_str().unwrap().to_owned()));
        match page["next"].as_u64() {
            Some(before) => next = format!("&before={before}"),
            None => break,
        }
    }
    assert_eq!(names, ["room 4", "room 3", "room 2", "room 1", "room 0"]);
    for query in ["before=18446744073709551615", "page_size=0", "page_size=4294967295"] {
        world.get(&format!("/api/v1/rooms?{query}"), &token).expect(200);
    }
    world.get("/api/v1/rooms?page_size=x", &token).expect_problem(400, "query_invalid");
}

#[test]
fn a_hiccup_of_the_broker_only_delays_the_news_and_an_outage_does_not_undo_the_change() {
    let world = World::new();
    let ((bob, token), (alice, alices)) = (world.user("bob"), world.user("alice"));
    world.backend.push().failures_left.store(2, Ordering::SeqCst);
    let room = world.post("/api/v1/rooms", &token, json!({ "name": "den" })).expect(201);
    let id = room["room_id"].as_u64().unwrap();
    assert_eq!(world.backend.push().take_published(), [told(id, bob, Membership::Joined)]);

    world.backend.push().failures_left.store(3, Ordering::SeqCst);
    let join = format!("/api/v1/rooms/{id}/join");
    assert_eq!(world.post(&join, &alices, json!({})).expect(200)["members"], 2);
    assert_eq!(world.backend.push().take_published(), []);
    let metrics = world.get("/metrics", "").text;
    assert!(metrics.contains("tidegate_room_unannounced_changes_total 1"), "{metrics}");
    // A repeated join mends it.
    world.post(&join, &alices, json!({})).expect(200);
    assert_eq!(world.backend.push().take_published(), [told(id, alice, Membership::Joined)]);
}

#[test]
fn a_client_that_goes_away_does_not_stop_the_news() {
    use std::io::Write as _;
    let world = World::new();
    let ((_, token), (alice, alices)) = (world.user("bob"), world.user("alice"));
    let room = world.post("/api/v1/rooms", &token, json!({ "name": "den" })).expect(201);
    let id = room["room_id"].as_u64().unwrap();
    world.backend.push().take_published();
    // Two failures keep the change busy for half a second, long after its client has left.
    world.backend.push().failures_left.store(2, Ordering::SeqCst);
    let mut stream = world.connect();
    let request = format!("POST /api/v1/rooms/{id}/join HTTP/1.1\r\nhost: x\r\nsatoken: {alices}\r\n\r\n");
    stream.write_all(request.as_bytes()).unwrap();
    eventually("the change has begun", || world.backend.push().failures_left.load(Ordering::SeqCst) < 2);
    drop(stream);
    let mut published = Vec::new();
    eventually("the news is out", || {
        published.extend(world.backend.push().take_published());
        !published.is_empty()
    });
    assert_eq!(published, [told(id, alice, Membership::Joined)]);
}
