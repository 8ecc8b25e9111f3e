//! A server that speaks just enough of the protocol to be judged, with faults that can be switched on.
//!
//! In: a [`Behaviour`]; out: addresses to connect to. It keeps everything in one locked state on a thread of its own:
//! it is to be right or wrong on purpose, not fast.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, mpsc as std_mpsc};

use bytes::{Bytes, BytesMut};
use serde_json::{Value, json};
use tidegate_proto::v1::{Close, Code, Error, Heartbeat, Login, LoginReply, Message, Send, SendAck};
use tidegate_proto::{Kind, OPENING_BYTES, Opening, frame};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;

/// The message at which a fault happens, counted over all conversations.
const FAULTY_MESSAGE: u64 = 50;

/// How the server behaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Behaviour {
    /// As it should.
    Right,
    /// Right, but the first try of every tenth message is answered with "overloaded".
    OverloadedNowAndThen,
    /// Right, but it allows three commands in flight.
    FewPlaces,
    /// One receiver does not get one message.
    LosesOne,
    /// One message is acknowledged and forgotten.
    ForgetsOne,
    /// One receiver gets one message twice.
    DoublesOne,
    /// One receiver gets two messages in the wrong order.
    ReordersOne,
    /// One sequence is left out.
    LeavesAGap,
    /// One receiver gets another body.
    AltersOne,
    /// One message is stored again under the next sequence.
    StoresOneTwice,
    /// One command gets no answer.
    LeavesOneUnanswered,
    /// One connection is closed.
    ClosesOne,
}

/// A running server; it ends with the test's process.
pub struct FakeServer {
    /// Where it listens for connections.
    pub tcp: SocketAddr,
    /// Where its HTTP API is.
    pub http: String,
    /// Messages it has stored.
    pub stored: Arc<AtomicU64>,
}

struct State {
    behaviour: Behaviour,
    stored: Arc<AtomicU64>,
    /// Id by name.
    users: HashMap<String, u64>,
    /// By conversation id.
    conversations: HashMap<String, Conversation>,
    /// By user.
    outboxes: HashMap<u64, mpsc::Sender<Bytes>>,
    tries: u64,
}

#[derive(Default)]
struct Conversation {
    members: Vec<u64>,
    last_seq: u64,
    /// For the first member: comes after the next message.
    held: Option<Bytes>,
}

type Shared = Arc<Mutex<State>>;

impl FakeServer {
    /// Starts one.
    pub fn start(behaviour: Behaviour) -> Self {
        let stored = Arc::new(AtomicU64::new(0));
        let state = State {
            behaviour,
            stored: stored.clone(),
            users: HashMap::new(),
            conversations: HashMap::new(),
            outboxes: HashMap::new(),
            tries: 0,
        };
        let (addresses_tx, addresses_rx) = std_mpsc::channel();
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let shared: Shared = Arc::new(Mutex::new(state));
                let tcp = TcpListener::bind("127.0.0.1:0").await.unwrap();
                let http = TcpListener::bind("127.0.0.1:0").await.unwrap();
                addresses_tx.send((tcp.local_addr().unwrap(), http.local_addr().unwrap())).unwrap();
                loop {
                    tokio::select! {
                        accepted = tcp.accept() => { tokio::spawn(serve_frames(accepted.unwrap().0, shared.clone())); }
                        accepted = http.accept() => { tokio::spawn(serve_http(accepted.unwrap().0, shared.clone())); }
                    }
                }
            });
        });
        let (tcp, http) = addresses_rx.recv().unwrap();
        Self { tcp, http: format!("http://{http}"), stored }
    }
}

// ---- HTTP

async fn serve_http(stream: TcpStream, shared: Shared) -> Option<()> {
    let mut stream = BufReader::new(stream);
    loop {
        let (mut request, mut user_id, mut body_bytes) = (String::new(), 0, 0);
        stream.read_line(&mut request).await.ok().filter(|read| *read > 0)?;
        loop {
            let mut line = String::new();
            stream.read_line(&mut line).await.ok()?;
            let Some((name, value)) = line.split_once(':') else { break };
            match name.to_ascii_lowercase().as_str() {
                "content-length" => body_bytes = value.trim().parse().ok()?,
                "authorization" => user_id = value.trim().strip_prefix("Bearer token-")?.parse().ok()?,
                _ => {}
            }
        }
        let mut body = vec![0; body_bytes];
        stream.read_exact(&mut body).await.ok()?;
        let path = request.split(' ').nth(1)?.to_owned();
        let answer = answer_http(&shared, &path, user_id, &serde_json::from_slice(&body).ok()?).to_string();
        let head =
            format!("HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n", answer.len());
        stream.get_mut().write_all((head + &answer).as_bytes()).await.ok()?;
    }
}

fn answer_http(shared: &Shared, path: &str, user_id: u64, body: &Value) -> Value {
    let mut state = shared.lock().unwrap();
    match path.split('/').collect::<Vec<_>>()[..] {
        ["", "api", "v1", "register"] => {
            let user_id = state.users.len() as u64 + 1;
            state.users.insert(body["name"].as_str().unwrap().to_owned(), user_id);
            json!({ "user_id": user_id, "name": body["name"] })
        }
        ["", "api", "v1", "login"] => {
            json!({ "token": format!("token-{}", state.users[body["name"].as_str().unwrap()]), "unread": [] })
        }
        ["", "api", "v1", "rooms"] => {
            let room_id = state.conversations.len() + 1;
            state
                .conversations
                .insert(format!("r_{room_id}"), Conversation { members: vec![user_id], ..Default::default() });
            json!({ "room_id": room_id.to_string(), "conversation_id": format!("r_{room_id}") })
        }
        ["", "api", "v1", "rooms", room_id, "join"] => {
            state.conversations.get_mut(&format!("r_{room_id}")).unwrap().members.push(user_id);
            json!({})
        }
        _ => panic!("no such path: {path}"),
    }
}

// ---- frames

async fn serve_frames(stream: TcpStream, shared: Shared) -> Option<()> {
    stream.set_nodelay(true).unwrap();
    let (mut reader, mut writer) = stream.into_split();
    let (outbox, mut frames) = mpsc::channel::<Bytes>(100_000);
    tokio::spawn(async move {
        while let Some(frame) = frames.recv().await {
            // No bytes at all: the end.
            if frame.is_empty() || writer.write_all(&frame).await.is_err() {
                break;
            }
        }
    });
    let mut opening = [0; OPENING_BYTES];
    reader.read_exact(&mut opening).await.ok()?;
    Opening::parse(opening).unwrap();
    let (mut received, mut user_id) = (BytesMut::new(), 0);
    loop {
        reader.read_buf(&mut received).await.ok().filter(|read| *read > 0)?;
        let mut bytes = received.split().freeze();
        while let Some(frame) = frame::next_frame(&mut bytes, 65_536).unwrap() {
            let mut state = shared.lock().unwrap();
            if frame.head.kind == Kind::Login as u8 {
                user_id = state.log_in(frame.decode().unwrap(), frame.head.correlation, outbox.clone());
            } else if frame.head.kind == Kind::Send as u8 {
                state.take_send(user_id, frame.head.correlation, frame.decode().unwrap());
            }
        }
        received.extend_from_slice(&bytes);
    }
}

fn encoded(kind: Kind, correlation: u16, message: &impl prost::Message) -> Bytes {
    let mut out = BytesMut::new();
    frame::put_message(&mut out, kind, correlation, message);
    out.freeze()
}

impl State {
    fn log_in(&mut self, login: Login, correlation: u16, outbox: mpsc::Sender<Bytes>) -> u64 {
        let user_id = login.token.strip_prefix("token-").unwrap().parse().unwrap();
        let reply = LoginReply {
            user_id,
            heartbeat: Some(Heartbeat { min_interval_s: 5, max_interval_s: 180, probe_count: 3 }),
            max_frame_bytes: 65_536,
            max_body_bytes: 16_384,
            max_in_flight: if self.behaviour == Behaviour::FewPlaces { 3 } else { 1_024 },
            ..LoginReply::default()
        };
        outbox.try_send(encoded(Kind::LoginReply, correlation, &reply)).unwrap();
        self.outboxes.insert(user_id, outbox);
        user_id
    }

    fn push(&self, user_id: u64, frame: Bytes) {
        self.outboxes[&user_id].try_send(frame).ok();
    }

    fn take_send(&mut self, sender_id: u64, correlation: u16, send: Send) {
        self.tries += 1;
        if self.behaviour == Behaviour::OverloadedNowAndThen && self.tries.is_multiple_of(10) {
            let error = Error { code: Code::Overloaded.into(), retry_after_ms: 5, ..Error::default() };
            return self.push(sender_id, encoded(Kind::Error, correlation, &error));
        }
        let number = self.stored.fetch_add(1, Ordering::Relaxed) + 1;
        let fault = if number == FAULTY_MESSAGE { self.behaviour } else { Behaviour::Right };
        let message_id = Bytes::copy_from_slice(&u128::from(number).to_be_bytes());
        if fault != Behaviour::LeavesOneUnanswered {
            let ack = SendAck { message_id: message_id.clone(), accepted_at_ms: 1 };
            self.push(sender_id, encoded(Kind::SendAck, correlation, &ack));
        }
        let conversation = self.conversations.entry(send.conversation_id.clone()).or_insert_with(|| Conversation {
            members: send.conversation_id.split('_').skip(1).map(|user_id| user_id.parse().unwrap()).collect(),
            ..Conversation::default()
        });
        if fault == Behaviour::ForgetsOne {
            return;
        }
        conversation.last_seq += if fault == Behaviour::LeavesAGap { 2 } else { 1 };
        let mut message = Message {
            conversation_id: send.conversation_id.clone(),
            seq: conversation.last_seq,
            epoch: 1,
            message_id,
            sender_id,
            sent_at_ms: 1,
            content_type: send.content_type,
            body: send.body,
        };
        let frame = encoded(Kind::Message, 0, &message);
        let (victim, others) = (conversation.members[0], conversation.members[1..].to_vec());
        let held = conversation.held.take();
        match fault {
            Behaviour::LosesOne => {}
            Behaviour::DoublesOne => self.push(victim, [&frame[..], &frame[..]].concat().into()),
            Behaviour::ReordersOne => conversation.held = Some(frame.clone()),
            Behaviour::AltersOne => {
                let altered = Message { body: vec![0; message.body.len()].into(), ..message.clone() };
                self.push(victim, encoded(Kind::Message, 0, &altered));
            }
            Behaviour::ClosesOne => {
                self.push(victim, encoded(Kind::Close, 0, &Close { code: 4003, text: "too slow".to_owned() }));
                self.push(victim, Bytes::new());
            }
            _ => self.push(victim, frame.clone()),
        }
        if let Some(held) = held {
            self.push(victim, held);
        }
        for user_id in &others {
            self.push(*user_id, frame.clone());
        }
        if fault == Behaviour::StoresOneTwice {
            self.conversations.get_mut(&send.conversation_id).unwrap().last_seq += 1;
            message.seq += 1;
            for user_id in others.into_iter().chain([victim]) {
                self.push(user_id, encoded(Kind::Message, 0, &message));
            }
        }
    }
}
