//! What each kind of bad input gets, by name, as `proto/PROTOCOL.md` promises; and that nobody else notices.

#![allow(clippy::unwrap_used)]

mod support;

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use support::websocket::{WebSocketClient, handed_over, masked};
use support::{Account, Client, World, embedded};
use tidegate::backends::Embedded;
use tidegate_core::ids::UserId;
use tidegate_core::ports::{Backend as _, HotStore as _};
use tidegate_proto::v1::{self, CloseCode, Code};
use tidegate_proto::websocket::{self, Opcode};
use tidegate_proto::{Head, Kind, Opening, frame};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

/// Two who talk while somebody else misbehaves.
struct Bystanders {
    anna: Client,
    ben: Client,
    conversation: String,
    sent: u64,
}

impl Bystanders {
    async fn new(world: &World<Embedded>) -> Self {
        let (anna, ben) = (world.user("anna").await, world.user("ben").await);
        let conversation = anna.with(&ben);
        Self { anna: world.connect(&anna, "pc").await, ben: world.connect(&ben, "pc").await, conversation, sent: 0 }
    }

    async fn are_unharmed(&mut self) {
        self.sent += 1;
        self.anna.send(&self.conversation, &format!("k{}", self.sent), "still here").await.unwrap();
        assert_eq!(self.ben.message().await.seq, self.sent);
    }
}

async fn open_raw(world: &World<Embedded>, bytes: &[u8]) -> Client {
    let stream = TcpStream::connect(world.address).await.unwrap();
    let mut client = Client::over(stream);
    client.raw(bytes).await;
    client
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn streams_that_are_not_ours_are_closed_with_their_reason() {
    let world = embedded(&[]);
    let mut bystanders = Bystanders::new(&world).await;
    let ping = Head { kind: Kind::Ping as u8, flags: 0, correlation: 1, payload_bytes: 0 };
    let oversized = Head { payload_bytes: 64 * 1024, ..ping };
    let flagged = {
        let mut bytes = ping.encode();
        bytes[1] = 1;
        bytes
    };
    let opening = Opening::CURRENT.encode();
    for (bytes, code) in [
        (&ping.encode()[..], CloseCode::BadOpening),
        (b"GET / HTTP/1.1\r\n\r\n", CloseCode::BadOpening),
        (b"X", CloseCode::BadOpening),
        (b"TIDE\x02\0\0\0", CloseCode::UnsupportedVersion),
        (b"TIDE\x01\0\0\x01", CloseCode::BadOpening),
        (&[opening, oversized.encode()].concat(), CloseCode::FrameTooLarge),
        (&[opening, flagged].concat(), CloseCode::BadFrame),
    ] {
        let mut client = open_raw(&world, bytes).await;
        assert_eq!(client.close().await, code, "{bytes:?}");
        bystanders.are_unharmed().await;
    }
    world.gateway.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn invalid_commands_are_answered_and_the_connection_lives() {
    let world = embedded(&["limits.body_bytes_max=64"]);
    let anna = world.user("anna").await;
    let mut client = world.connect(&anna, "pc").await;
    let own = format!("p_{}_{}", anna.id.0, anna.id.0 + 1);
    for (kind, payload, code) in [
        (0x3f, &b""[..], Code::UnknownKind),
        (0, b"", Code::UnknownKind),
        (Kind::SendAck as u8, b"", Code::UnknownKind),
        (Kind::Message as u8, b"", Code::UnknownKind),
        (Kind::Send as u8, b"\xff\xff\xff\xff", Code::BadPayload),
        (Kind::History as u8, b"\x0a\x05ab", Code::BadPayload),
    ] {
        let head = Head { kind, flags: 0, correlation: 900, payload_bytes: payload.len() as u32 };
        client.raw(&[&head.encode()[..], payload].concat()).await;
        assert_eq!(client.reply::<v1::Pong>(900).await, Err(code), "kind {kind}");
    }
    assert_eq!(client.send(&own, "k", &"x".repeat(65)).await, Err(Code::BodyTooLarge));
    assert_eq!(client.send("r_77", "k", "x").await, Err(Code::NotMember));
    assert_eq!(client.send("nonsense", "k", "x").await, Err(Code::BadConversation));
    let pong: v1::Pong = client.ask(Kind::Ping, &v1::Ping {}).await.unwrap();
    assert!(pong.server_time_ms > 0);
    for _ in 0..16 {
        client.raw(&Head { kind: 0x3f, flags: 0, correlation: 1, payload_bytes: 0 }.encode()).await;
    }
    assert_eq!(client.close().await, CloseCode::TooManyErrors);
    world.gateway.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn forged_and_expired_tokens_are_refused_and_closed() {
    let world = embedded(&[]);
    let anna = world.user("anna").await;
    world.backend.hot().put_token("short", anna.id, Duration::from_millis(1)).await.unwrap();
    world.backend.hot().put_token("no such user", UserId(1 << 40), Duration::from_secs(60)).await.unwrap();
    tokio::time::sleep(Duration::from_millis(5)).await;
    for token in ["forged", "short", "no such user"] {
        let mut client = Client::open(world.address).await;
        let login = v1::Login { token: token.into(), device_id: "pc".into(), ..Default::default() };
        let refused = client.ask::<v1::LoginReply>(Kind::Login, &login).await;
        assert!(matches!(refused, Err(Code::TokenInvalid | Code::TokenExpired)), "{token}: {refused:?}");
        assert_eq!(client.close().await, CloseCode::TokenRejected);
    }
    world.gateway.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rubbish_and_sudden_ends_harm_nobody() {
    let world = embedded(&[]);
    let mut bystanders = Bystanders::new(&world).await;
    let mut random = 0x9e37_79b9_7f4a_7c15_u64;
    for round in 0..50 {
        let mut bytes = if round % 2 == 0 { Opening::CURRENT.encode().to_vec() } else { Vec::new() };
        for _ in 0..round * 7 {
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            bytes.push(random as u8);
        }
        let mut stream = TcpStream::connect(world.address).await.unwrap();
        // The gateway may have closed already: that is its right.
        let _ = stream.write_all(&bytes).await;
    }
    let truncated = Head { kind: Kind::Send as u8, flags: 0, correlation: 1, payload_bytes: 100 };
    drop(open_raw(&world, &[Opening::CURRENT.encode(), truncated.encode()].concat()).await);
    bystanders.are_unharmed().await;
    world.gateway.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_says_nothing_is_closed() {
    let world = embedded(&["limits.handshake_timeout_s=1", "heartbeat.max_interval_s=1", "heartbeat.min_interval_s=1"]);
    let anna = world.user("anna").await;
    let mut idle = world.connect(&anna, "pc").await;
    let mut silent = Client::over(TcpStream::connect(world.address).await.unwrap());
    let mut half = open_raw(&world, b"TIDE").await;
    let mut anonymous = Client::open(world.address).await;
    assert_eq!(silent.close().await, CloseCode::HandshakeTimeout);
    assert_eq!(half.close().await, CloseCode::HandshakeTimeout);
    assert_eq!(anonymous.close().await, CloseCode::HandshakeTimeout);
    // Silent for max_interval + 3 probes.
    assert_eq!(idle.close().await, CloseCode::Idle);
    world.gateway.stop().await;
}

/// A client that neither reads nor leaves must not keep the gateway's socket.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_closed_connection_gives_its_socket_back() {
    let world = embedded(&["limits.handshake_timeout_s=1"]);
    let silent = TcpStream::connect(world.address).await.unwrap();
    let (client, gateway) = (silent.local_addr().unwrap().port(), world.address.port());
    support::eventually("the gateway accepts", async || is_held(gateway, client).then_some(())).await;
    support::eventually("the socket is given back", async || (!is_held(gateway, client)).then_some(())).await;
    world.gateway.stop().await;
}

/// Whether a process holds the socket of `local` towards `remote`; the kernel's own have no inode.
fn is_held(local: u16, remote: u16) -> bool {
    let table = std::fs::read_to_string("/proc/net/tcp").unwrap();
    table.lines().skip(1).any(|line| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let port = |address: &str| u16::from_str_radix(address.rsplit(':').next().unwrap(), 16).unwrap();
        port(fields[1]) == local && port(fields[2]) == remote && fields[9] != "0"
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_part_of_a_frame_is_no_sign_of_life() {
    let world = embedded(&["heartbeat.max_interval_s=1", "heartbeat.min_interval_s=1", "heartbeat.probe_count=1"]);
    let anna = world.user("anna").await;
    let mut client = world.connect(&anna, "pc").await;
    client.raw(&Head { kind: Kind::Send as u8, flags: 0, correlation: 1, payload_bytes: 4096 }.encode()).await;
    let (reader, mut writer) = client.wire.into_inner().into_split();
    let dripping = tokio::spawn(async move {
        while writer.write_all(b"x").await.is_ok() {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    });
    let mut bytes = Vec::new();
    let end = tokio::time::timeout(support::DEADLINE, reader.take(1 << 16).read_to_end(&mut bytes)).await;
    assert!(end.is_ok(), "a drip does not hold the connection");
    let close = frame::next_frame(&mut bytes.into(), 1 << 16).unwrap().expect("a Close frame");
    let close = <v1::Close as prost::Message>::decode(close.payload).unwrap();
    assert_eq!(close.code(), CloseCode::Idle);
    dripping.await.unwrap();
    world.gateway.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_small_commands_at_once_are_all_answered() {
    const PINGS: usize = 40_000;
    let world = embedded(&["limits.outbox_bytes_max=131072"]);
    let anna = world.user("anna").await;
    let mut client = world.connect(&anna, "pc").await;
    let ping = Head { kind: Kind::Ping as u8, flags: 0, correlation: 7, payload_bytes: 0 }.encode();
    let (mut reader, mut writer) = client.wire.get_mut().split();
    let pings = ping.repeat(PINGS);
    let mut bytes = BytesMut::new();
    let read = async {
        let mut pongs = 0;
        while pongs < PINGS {
            assert_ne!(reader.read_buf(&mut bytes).await.unwrap(), 0, "closed after {pongs} replies");
            let mut whole = bytes.split().freeze();
            while let Some(frame) = frame::next_frame(&mut whole, 1 << 16).unwrap() {
                assert_eq!(frame.head.kind, Kind::Pong as u8);
                pongs += 1;
            }
            bytes.extend_from_slice(&whole);
        }
    };
    let both = async { tokio::join!(writer.write_all(&pings), read) };
    tokio::time::timeout(support::DEADLINE, both).await.expect("all replies in time").0.unwrap();
    world.gateway.stop().await;
}

// ---------------------------------------------------------------------------------------------------------------------
// WebSocket, from behind its HTTP handshake on

/// Reads until the server's WebSocket close frame; returns its code, and the Tidegate Close before it if there was one.
async fn ws_close(stream: &mut TcpStream) -> (Option<u16>, Option<CloseCode>) {
    let mut bytes = BytesMut::new();
    let mut decoder = websocket::Decoder::new(websocket::Role::Client);
    let mut close = None;
    loop {
        while let Some(event) = decoder.next(&mut bytes, 1 << 20).unwrap() {
            match event {
                websocket::Event::Close { code, .. } => return (code, close),
                websocket::Event::Message(message) => {
                    let mut message = message.freeze();
                    while let Some(frame) = frame::next_frame(&mut message, 1 << 20).unwrap() {
                        if frame.head.kind == Kind::Close as u8 {
                            close = Some(<v1::Close as prost::Message>::decode(frame.payload).unwrap().code());
                        }
                    }
                }
                _ => {}
            }
        }
        let read = tokio::time::timeout(support::DEADLINE, stream.read_buf(&mut bytes)).await.expect("bytes in time");
        assert_ne!(read.unwrap(), 0, "the end came before a close frame");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn websocket_violations_get_the_code_of_the_rfc() {
    let world = embedded(&[]);
    let opening = Opening::CURRENT.encode();
    let unmasked = [&[0x82, 8][..], &opening].concat();
    let bad_utf8_close = masked(Opcode::Close, &[0x03, 0xe8, 0xff, 0xfe]);
    let too_big = [&[0x82, 0xff][..], &(1_u64 << 20).to_be_bytes(), &[0; 4]].concat();
    let split_frame = masked(Opcode::Binary, &[&opening[..], &[2, 0, 0]].concat());
    let oversized_inside = {
        let head = Head { kind: 2, flags: 0, correlation: 1, payload_bytes: 1 << 20 };
        masked(Opcode::Binary, &[&opening[..], &head.encode()].concat())
    };
    for (bytes, code, tidegate) in [
        (&masked(Opcode::Text, b"hello")[..], 1003, None),
        (&unmasked, 1002, None),
        (&bad_utf8_close, 1007, None),
        (&too_big, 1009, None),
        (&masked(Opcode::Continuation, b"x"), 1002, None),
        (&[0xf2, 0x80, 0, 0, 0, 0], 1002, None),
        (&split_frame, 4504, Some(CloseCode::BadFrame)),
        (&oversized_inside, 4503, Some(CloseCode::FrameTooLarge)),
        (&masked(Opcode::Binary, b"nonsense"), 4501, Some(CloseCode::BadOpening)),
        (&masked(Opcode::Close, &[0x03, 0xe8]), 1000, None),
    ] {
        let mut stream = handed_over(&world, &[]).await;
        stream.write_all(bytes).await.unwrap();
        assert_eq!(ws_close(&mut stream).await, (Some(code), tidegate), "{bytes:?}");
    }
    world.gateway.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_same_frames_travel_in_websocket_messages() {
    let world = embedded(&[]);
    let (anna, ben) = (world.user("anna").await, world.user("ben").await);
    let mut ben_pc = world.connect(&ben, "pc").await;

    // Opening, login and a message: the first two in fragments around a ping, the first bytes right behind the handshake.
    let mut login = BytesMut::from(&Opening::CURRENT.encode()[..]);
    let command = v1::Login { token: anna.token.clone(), device_id: "web".into(), ..Default::default() };
    frame::put_message(&mut login, Kind::Login, 1, &command);
    let (one, two) = login.split_at(11);
    let mut bytes = masked(Opcode::Binary, one);
    bytes[0] &= 0x7f;
    bytes.extend_from_slice(&masked(Opcode::Ping, b"are you there"));
    bytes.extend_from_slice(&masked(Opcode::Continuation, two));
    let (early, late) = bytes.split_at(5);
    let mut stream = handed_over(&world, early).await;
    stream.write_all(late).await.unwrap();

    let mut client = WebSocketClient::new(stream);
    assert_eq!(client.frame().await.head.kind, Kind::LoginReply as u8);
    assert_eq!(client.pongs, [Bytes::from_static(b"are you there")]);
    let mut send = BytesMut::new();
    frame::put_message(&mut send, Kind::Send, 2, &support::send(&anna.with(&ben), "k", "from the web"));
    client.stream.write_all(&masked(Opcode::Binary, &send)).await.unwrap();
    assert_eq!(&ben_pc.message().await.body[..], b"from the web");
    let mut kinds = [client.frame().await.head.kind, client.frame().await.head.kind];
    kinds.sort_unstable();
    assert_eq!(kinds, [Kind::SendAck as u8, Kind::Message as u8]);
    world.gateway.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_connection_beyond_the_bound_is_told_so() {
    let world = embedded(&["limits.connections_max=2", "runtime.shards=1"]);
    let anna: Account = world.user("anna").await;
    let (_one, two) = (world.connect(&anna, "1").await, world.connect(&anna, "2").await);
    let mut three = Client::open(world.address).await;
    assert_eq!(three.close().await, CloseCode::Overloaded);
    drop(two);
    support::eventually("a place becomes free", async || {
        // As long as there is none, the connection may end before the Login is written.
        let mut four = Client::try_open(world.address).await?;
        let login = v1::Login { token: anna.token.clone(), device_id: "4".into(), ..Default::default() };
        four.try_ask::<v1::LoginReply>(Kind::Login, &login).await?.ok()
    })
    .await;
    world.gateway.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_drain_tells_everybody() {
    let world = embedded(&[]);
    let anna = world.user("anna").await;
    let mut client = world.connect(&anna, "pc").await;
    world.gateway.stop().await;
    assert_eq!(client.close().await, CloseCode::Draining);
}
