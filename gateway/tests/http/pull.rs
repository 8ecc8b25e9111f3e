//! `/api/v1/chat/pull/lobby`: one answer for everybody at one place, in each form, and who may not have it.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::Ordering;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use prost::Message as _;
use serde_json::{Value, json};
use tidegate_core::event::StoredMessage;
use tidegate_core::ids::{ClientMsgId, ConversationId, Epoch, MessageId, Millis, Place, Seq, UserId};
use tidegate_core::ports::{Archive as _, Backend as _, HotStore as _, PersistBatch};
use tidegate_proto::v1::{self, ContentType, Gear};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::world::{PATIENCE, World, eventually};

const PATH: &str = "/api/v1/chat/pull/lobby?lobby=lobby_main";

/// Metrics are a process's: while a test counts fetches, no other may cause any.
fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Stores messages of these sequences, and lets the gateway hear of the last one.
fn write(world: &World, conversation: &str, seqs: std::ops::RangeInclusive<u64>) {
    let conversation: ConversationId = conversation.parse().unwrap();
    let messages = seqs.clone().map(|seq| {
        let key = ClientMsgId::new(Bytes::from(format!("{conversation}-{seq}"))).unwrap();
        StoredMessage {
            conversation,
            seq: Seq(seq),
            message_id: MessageId::derive(UserId(7), &key),
            sender: UserId(7),
            sent_at: Millis(1000 + seq),
            content_type: ContentType::Text,
            body: format!("number {seq}").into_bytes().into(),
        }
    });
    let batch = PersistBatch { messages: messages.collect(), receipts: Vec::new() };
    world.runtime.block_on(world.backend.archive().persist(&batch)).unwrap();
    let epoch = epoch(world, conversation);
    world.pulls.tails.pushed(conversation, Place { epoch, seq: Seq(*seqs.end()) }, Gear::Direct);
}

fn epoch(world: &World, conversation: ConversationId) -> Epoch {
    world.runtime.block_on(world.backend.archive().ends(&[conversation])).unwrap()[0].epoch
}

#[derive(Debug)]
struct Reply {
    status: u16,
    headers: Vec<(String, String)>,
    body: Vec<u8>,
}

impl Reply {
    fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }

    fn decoded(&self) -> v1::PullReply {
        assert_eq!(self.status, 200, "{self:?}");
        assert_eq!(self.header("content-type"), Some("application/x-protobuf"));
        v1::PullReply::decode(&*self.plain()).expect("a PullReply")
    }

    fn json(&self) -> Value {
        assert_eq!((self.status, self.header("content-type")), (200, Some("application/json")));
        serde_json::from_slice(&self.plain()).expect("JSON")
    }

    fn plain(&self) -> Vec<u8> {
        let mut plain = Vec::new();
        match self.header("content-encoding") {
            None => plain.clone_from(&self.body),
            Some("gzip") => drop(flate2::read::GzDecoder::new(&*self.body).read_to_end(&mut plain).expect("gzip")),
            other => panic!("{other:?}"),
        }
        plain
    }
}

/// Asks with headers of the test's own; the bytes are taken as they come.
fn ask(world: &World, path: &str, token: &str, headers: &[(&str, &str)]) -> Reply {
    ask_at(world.address, path, token, headers)
}

fn ask_at(address: SocketAddr, path: &str, token: &str, headers: &[(&str, &str)]) -> Reply {
    let mut request = format!("GET {path} HTTP/1.1\r\nhost: test\r\nconnection: close\r\n");
    let token = (!token.is_empty()).then_some(("satoken", token));
    for (name, value) in token.iter().chain(headers) {
        request += &format!("{name}: {value}\r\n");
    }
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.write_all((request + "\r\n").as_bytes()).unwrap();
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).unwrap();
    let head_bytes = bytes.windows(4).position(|window| window == b"\r\n\r\n").expect("a head");
    let head = std::str::from_utf8(&bytes[..head_bytes]).unwrap();
    let mut lines = head.lines();
    let status = lines.next().unwrap().split(' ').nth(1).unwrap().parse().unwrap();
    let headers = lines.filter_map(|line| line.split_once(": "));
    let headers = headers.map(|(name, value)| (name.to_lowercase(), value.to_owned())).collect();
    Reply { status, headers, body: bytes[head_bytes + 4..].to_vec() }
}

#[test]
fn each_form_of_the_answer_says_the_same_and_has_a_tag_of_its_own() {
    let _alone = alone();
    let world = World::new();
    let (_, token) = world.user("bob");
    write(&world, "lobby_main", 1..=60);
    let path = &format!("{PATH}&after_seq=58");
    let get = |headers: &[(&str, &str)]| ask(&world, path, &token, headers);

    let plain = get(&[]);
    let expected = plain.decoded();
    assert_eq!((expected.to_seq, expected.latest_seq, expected.gap, expected.more), (60, 60, false, false));
    let (json_name, any) = (("accept", "application/json"), ("accept", "*/*"));
    let (gzip, no_gzip) = (("accept-encoding", "br, gzip;q=0.5"), ("accept-encoding", "gzip;q=0, identity"));
    let mut tags = vec![plain.header("etag").unwrap().to_owned()];
    for headers in [&[json_name][..], &[gzip], &[json_name, gzip]] {
        let reply = get(headers);
        assert_eq!(reply.header("content-encoding"), headers.contains(&gzip).then_some("gzip"));
        if headers.contains(&json_name) {
            let json = reply.json();
            assert_eq!((&json["conversation_id"], &json["epoch"]), (&json!("lobby_main"), &json!(expected.epoch)));
            let numbers = ["from_seq", "to_seq", "latest_seq"].map(|name| json[name].as_u64().unwrap());
            assert_eq!(numbers, [expected.from_seq, 60, 60]);
            assert_eq!((&json["gap"], &json["more"]), (&json!(false), &json!(false)));
            let texts = json["messages"].as_array().unwrap().iter().map(|message| message["text"].as_str().unwrap());
            assert!(texts.eq(expected.messages.iter().map(|message| std::str::from_utf8(&message.body).unwrap())));
        } else {
            assert_eq!(reply.decoded(), expected);
        }
        tags.push(reply.header("etag").unwrap().to_owned());
    }
    for reply in [get(&[any]), get(&[no_gzip]), get(&[("accept", "application/json, application/x-protobuf")])] {
        assert_eq!((reply.decoded(), reply.header("content-encoding")), (expected.clone(), None));
        assert_eq!(reply.header("etag"), Some(&*tags[0]));
    }
    tags.iter().for_each(|tag| assert_eq!(tags.iter().filter(|other| *other == tag).count(), 1, "{tags:?}"));
    assert_eq!(plain.header("vary"), Some("accept, accept-encoding"));
    assert_eq!(plain.header("cache-control"), Some("private, no-cache"));
}

#[test]
fn an_answer_from_memory_is_the_routers_header_by_header() {
    let _alone = alone();
    let world = World::new();
    let (_, token) = world.user("bob");
    write(&world, "lobby_main", 1..=60);
    let from_memory = || {
        let text = world.get("/metrics", "").text;
        let line = text.lines().find(|line| line.starts_with("tidegate_pull_answers_total{from=\"http\"}"));
        line.map_or(0, |line| line.rsplit(' ').next().unwrap().parse::<u64>().unwrap())
    };
    let before = from_memory();
    // What is escaped is left to the router.
    let escaped = "/api/v1/chat/pull/lobby?lobby=lobby%5Fmain";
    let (json_name, gzip) = (("accept", "application/json"), ("accept-encoding", "gzip"));
    let (known, named) = (("if-none-match", "*"), ("x-request-id", "a-name"));
    let mut plain_asked = 0;
    for query in ["", "&after_seq=1", "&after_seq=58&epoch=77", "&after_seq=60"] {
        for headers in [&[][..], &[json_name], &[gzip], &[json_name, gzip], &[known], &[named]] {
            let of_router = ask(&world, &format!("{escaped}{query}"), &token, headers);
            let of_memory = ask(&world, &format!("{PATH}{query}"), &token, headers);
            plain_asked += 1;
            let is_shared = |(name, _): &&(String, String)| name != "date" && name != "x-request-id";
            let shared = |reply: &Reply| {
                let mut shared: Vec<_> = reply.headers.iter().filter(is_shared).cloned().collect();
                shared.sort();
                shared
            };
            assert_eq!(of_memory.status, if headers == [known] { 304 } else { 200 });
            assert_eq!(
                (of_memory.status, shared(&of_memory), &of_memory.body),
                (of_router.status, shared(&of_router), &of_router.body),
                "{query} {headers:?}"
            );
            assert_eq!(of_memory.header("x-content-type-options"), Some("nosniff"));
            let [memory_id, router_id] = [&of_memory, &of_router].map(|reply| reply.header("x-request-id").unwrap());
            assert_eq!(memory_id == router_id, headers == [named], "{memory_id} and {router_id}");
        }
    }
    eventually("they are told", || from_memory() >= before + plain_asked);
    assert_eq!(from_memory(), before + plain_asked, "and those of the router are not among them");
}

#[test]
fn who_has_the_answer_is_told_so_until_it_is_another() {
    let _alone = alone();
    let world = World::new();
    let (_, token) = world.user("bob");
    write(&world, "lobby_main", 1..=10);
    let path = &format!("{PATH}&after_seq=3");
    let (json_name, path_to_5) = (("accept", "application/json"), &format!("{PATH}&after_seq=0&before_seq=5"));
    for path in [path, path_to_5] {
        let tag = ask(&world, path, &token, &[]).header("etag").unwrap().to_owned();
        for known in [tag.clone(), format!("W/{tag}"), format!("\"other\", {tag}"), "*".to_owned()] {
            let reply = ask(&world, path, &token, &[("if-none-match", &known)]);
            assert_eq!((reply.status, reply.body.len()), (304, 0), "{known}");
            assert_eq!(reply.header("etag"), Some(&*tag));
            assert_eq!(reply.header("vary"), Some("accept, accept-encoding"));
        }
        for (known, headers) in [("\"other\"", &[][..]), (&tag, &[json_name])] {
            let headers = [headers, &[("if-none-match", known)]].concat();
            assert_eq!(ask(&world, path, &token, &headers).status, 200, "{known}");
        }
    }
    let tag = ask(&world, path, &token, &[]).header("etag").unwrap().to_owned();
    write(&world, "lobby_main", 11..=11);
    let reply = ask(&world, path, &token, &[("if-none-match", &tag)]);
    assert_eq!(reply.decoded().latest_seq, 11);
    assert_ne!(reply.header("etag"), Some(&*tag));
}

#[test]
fn a_place_is_where_the_answer_begins() {
    let _alone = alone();
    let world = World::new();
    let (bob, token) = world.user("bob");
    write(&world, "lobby_main", 1..=700);
    let pull = |query: &str| ask(&world, &format!("{PATH}{query}"), &token, &[]).decoded();
    let epoch = epoch(&world, "lobby_main".parse().unwrap()).0;
    let newest = pull("");
    assert!(newest.from_seq > 1 && newest.to_seq == 700 && !newest.gap && !newest.more, "{newest:?}");
    assert!(pull("&after_seq=1").gap && !pull("&after_seq=699").gap);
    assert_eq!(pull("&after_seq=700").messages.len(), 0);
    assert_eq!(pull("&after_seq=18446744073709551615").messages.len(), 0);
    assert_eq!(pull(&format!("&after_seq=699&epoch={epoch}")).from_seq, pull("&after_seq=699").from_seq);
    let of_other = pull(&format!("&after_seq=699&epoch={}", epoch + 1));
    assert_eq!((of_other.from_seq, of_other.epoch), (newest.from_seq, epoch));

    let (mut last, mut answers) = (0, 0);
    loop {
        let reply = pull(&format!("&after_seq={last}&before_seq=600&epoch={epoch}"));
        assert!(reply.from_seq <= last + 1 && reply.to_seq > last, "{reply:?}");
        (last, answers) = (reply.to_seq, answers + 1);
        if !reply.more {
            break;
        }
    }
    assert!(last >= 599 && answers < 10, "{last} after {answers} answers");
    let of_other = pull(&format!("&after_seq=1&before_seq=600&epoch={}", epoch + 1));
    assert_eq!(of_other.to_seq, 700, "that gap is another's");

    // A room, whose members may.
    let room = world.post("/api/v1/rooms", &token, json!({ "name": "den", "capacity": 4 })).expect(201);
    let room = format!("r_{}", room["room_id"].as_u64().or(room["id"].as_u64()).expect("an id"));
    let reply = ask(&world, &format!("/api/v1/chat/pull/lobby?lobby={room}"), &token, &[]).decoded();
    assert_eq!((reply.messages.len(), reply.latest_seq), (0, 0));
    let (_, eves) = world.user("eve");
    world.get(&format!("/api/v1/chat/pull/lobby?lobby={room}"), &eves).expect_problem(403, "not_member");
    assert!(bob > 0);
}

#[test]
fn what_is_wrong_is_a_problem_with_its_code() {
    let _alone = alone();
    let world = World::new();
    let ((bob, token), (eve, _)) = (world.user("bob"), world.user("eve"));
    world.get(PATH, "").expect_problem(401, "token_missing");
    world.get(PATH, "forged").expect_problem(401, "token_invalid");
    for query in [
        "",
        "lobby=",
        "lobby=nonsense",
        &format!("lobby=p_{}_{}", bob.min(eve), bob.max(eve)),
        "lobby=lobby_main&before_seq=5",
        "lobby=lobby_main&after_seq=-1",
        "lobby=lobby_main&after_seq=x",
        "lobby=lobby_main&epoch=4294967296",
    ] {
        world.get(&format!("/api/v1/chat/pull/lobby?{query}"), &token).expect_problem(400, "query_invalid");
    }
    for lobby in ["lobby_nowhere", "r_77"] {
        world.get(&format!("/api/v1/chat/pull/lobby?lobby={lobby}"), &token).expect_problem(403, "not_member");
    }
}

#[test]
fn a_thousand_pulls_at_one_place_are_one_fetch() {
    const CONNECTIONS: usize = 100;
    const EACH: usize = 10;
    let _alone = alone();
    let world = World::new();
    let (_, token) = world.user("bob");
    write(&world, "lobby_main", 1..=60);
    let fetches = || {
        let text = world.get("/metrics", "").text;
        let line = text.lines().find(|line| line.starts_with("tidegate_pull_fetches_total"));
        line.map_or(0, |line| line.rsplit(' ').next().unwrap().parse::<u64>().unwrap())
    };
    for last in [60, 61] {
        if last == 61 {
            write(&world, "lobby_main", 61..=61);
        }
        let before = fetches();
        let request = |connection: &str| {
            format!(
                "GET {PATH}&after_seq=58 HTTP/1.1\r\nhost: test\r\nsatoken: {token}\r\naccept: application/json\r\n\
                 connection: {connection}\r\n\r\n"
            )
        };
        let requests = request("keep-alive").repeat(EACH - 1) + &request("close");
        let asked: Vec<_> = (0..CONNECTIONS)
            .map(|_| {
                let (address, requests) = (world.address, requests.clone());
                world.runtime.spawn(async move {
                    let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
                    stream.write_all(requests.as_bytes()).await.unwrap();
                    let mut text = String::new();
                    stream.read_to_string(&mut text).await.unwrap();
                    text
                })
            })
            .collect();
        for answers in asked {
            let text = world.runtime.block_on(answers).unwrap();
            assert_eq!(text.matches("HTTP/1.1 200").count(), EACH);
            assert_eq!(text.matches(&format!("\"latest_seq\":{last}")).count(), EACH);
        }
        assert_eq!(fetches(), before + 1, "up to {last}");
    }
}

#[test]
fn a_token_is_trusted_for_a_moment_and_not_beyond_its_logout() {
    let _alone = alone();
    let world = World::new();
    let (_, token) = world.user("bob");
    let ((_, other), (_, third)) = (world.user("eve"), world.user("ann"));
    write(&world, "lobby_main", 1..=3);
    let hot = world.backend.hot();
    ask(&world, PATH, &token, &[]).decoded();
    // Redis is not asked again, and need not be there.
    let questions = hot.token_questions.load(Ordering::SeqCst);
    hot.down.store(true, Ordering::SeqCst);
    ask(&world, PATH, &token, &[]).decoded();
    world.get(PATH, &other).expect_problem(503, "unavailable");
    hot.down.store(false, Ordering::SeqCst);
    assert_eq!(hot.token_questions.load(Ordering::SeqCst), questions);

    assert_eq!(world.post("/api/v1/logout", &token, json!({})).status, 204);
    world.get(PATH, &token).expect_problem(401, "token_invalid");
    // Logged out elsewhere: whoever says so here, is not trusted here any more.
    ask(&world, PATH, &other, &[]).decoded();
    assert!(world.runtime.block_on(hot.delete_token(&other)).unwrap());
    world.post("/api/v1/logout", &other, json!({})).expect_problem(401, "token_invalid");
    world.get(PATH, &other).expect_problem(401, "token_invalid");

    // A pull that is on its way when its token ends brings no trust along.
    let held = world.runtime.block_on(hot.tokens.lock());
    let questions = hot.token_questions.load(Ordering::SeqCst);
    let (address, thirds) = (world.address, third.clone());
    let pulling = std::thread::spawn(move || ask_at(address, PATH, &thirds, &[]));
    eventually("its token was looked up", || hot.token_questions.load(Ordering::SeqCst) > questions);
    assert_eq!(world.post("/api/v1/logout", &third, json!({})).status, 204);
    drop(held);
    pulling.join().unwrap().decoded();
    world.get(PATH, &third).expect_problem(401, "token_invalid");
}

#[test]
fn pulls_end_with_the_patience_for_a_store_that_hangs() {
    let _alone = alone();
    let bounds = tidegate::http::Bounds { request_timeout: Duration::from_millis(200), ..Default::default() };
    let world = World::with_bounds(bounds);
    let (_, token) = world.user("bob");
    world.backend.hot().hung.store(true, Ordering::SeqCst);
    let reply = ask(&world, PATH, &token, &[]);
    assert_eq!((reply.status, reply.header("content-type")), (503, Some("application/problem+json")));
}
