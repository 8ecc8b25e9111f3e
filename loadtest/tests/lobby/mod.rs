//! A lobby that goes through the three gears by its rate, right or wrong on purpose: one conversation, everything in one
//! locked state on a thread of its own.
//!
//! In: a [`Behaviour`]; out: addresses to connect to, over TCP, WebSocket and HTTP.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, mpsc as std_mpsc};
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use prost::Message as _;
use serde_json::{Value, json};
use tidegate_proto::v1::{
    Code, Error, Gear, GearChanged, Heartbeat, History, HistoryReply, Login, LoginReply, Message, Messages,
    NotifyNewMessages, Pull, PullReply, Send, SendAck,
};
use tidegate_proto::websocket::{Decoder, Event, Opcode, Role, put_header};
use tidegate_proto::{Kind, OPENING_BYTES, Opening, frame};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;

pub const LOBBY: &str = "lobby_main";

/// What a watcher may cost per second in signal gear.
pub const CAP: u64 = 16_384;

/// Over which time pulls are spread.
pub const SPREAD_MS: u32 = 200;

/// From this rate on messages are merged; a lower one, for coming back, is not needed where rates only climb and fall.
const MERGED_FROM: usize = 40;
const SIGNAL_FROM: usize = 120;

/// The message at which a fault happens: somewhere in the storm.
const FAULTY_MESSAGE: u64 = 500;

/// The answer to the key of RFC 6455's own example, which the generator uses.
const ACCEPT: &str = "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Behaviour {
    /// As it should.
    Right,
    /// Right, but every tenth message is told to slow down first.
    SlowsDown,
    /// One message is acknowledged and forgotten.
    ForgetsOne,
    /// One message is in the history and nobody is shown it.
    HidesOne,
    /// Answers to pulls hold more than a watcher is to pay for.
    OverCap,
    /// In merged gear messages come a second late.
    Late,
    /// A message has another body in answers to pulls than elsewhere.
    AltersOne,
}

/// A running server; it ends with the test's process.
pub struct LobbyServer {
    pub tcp: SocketAddr,
    pub http: String,
}

struct State {
    behaviour: Behaviour,
    users: Vec<String>,
    /// Stored messages; the first has sequence 1.
    messages: Vec<Message>,
    arrivals: Vec<Instant>,
    gear: Gear,
    /// Sequences up to this have been pushed or signalled.
    pushed: u64,
    outboxes: Vec<Outbox>,
    tries: u64,
    numbers: u64,
}

#[derive(Clone)]
struct Outbox {
    frames: mpsc::Sender<Bytes>,
    is_watching: bool,
}

type Shared = Arc<Mutex<State>>;

impl LobbyServer {
    pub fn start(behaviour: Behaviour) -> Self {
        let state = State {
            behaviour,
            users: Vec::new(),
            messages: Vec::new(),
            arrivals: Vec::new(),
            gear: Gear::Direct,
            pushed: 0,
            outboxes: Vec::new(),
            tries: 0,
            numbers: 0,
        };
        let (addresses_tx, addresses_rx) = std_mpsc::channel();
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let shared: Shared = Arc::new(Mutex::new(state));
                let tcp = TcpListener::bind("127.0.0.1:0").await.unwrap();
                let http = TcpListener::bind("127.0.0.1:0").await.unwrap();
                addresses_tx.send((tcp.local_addr().unwrap(), http.local_addr().unwrap())).unwrap();
                let mut window = tokio::time::interval(Duration::from_millis(50));
                loop {
                    tokio::select! {
                        accepted = tcp.accept() => { tokio::spawn(serve_tcp(accepted.unwrap().0, shared.clone())); }
                        accepted = http.accept() => { tokio::spawn(serve_http(accepted.unwrap().0, shared.clone())); }
                        _ = window.tick() => shared.lock().unwrap().end_window(),
                    }
                }
            });
        });
        let (tcp, http) = addresses_rx.recv().unwrap();
        Self { tcp, http: format!("http://{http}") }
    }
}

// ---- HTTP

async fn serve_http(stream: TcpStream, shared: Shared) -> Option<()> {
    let mut stream = BufReader::new(stream);
    loop {
        let (mut request, mut body_bytes) = (String::new(), 0);
        stream.read_line(&mut request).await.ok().filter(|read| *read > 0)?;
        loop {
            let mut line = String::new();
            stream.read_line(&mut line).await.ok()?;
            let Some((name, value)) = line.split_once(':') else { break };
            if name.eq_ignore_ascii_case("content-length") {
                body_bytes = value.trim().parse().ok()?;
            }
        }
        let mut body = vec![0; body_bytes];
        stream.read_exact(&mut body).await.ok()?;
        let path = request.split(' ').nth(1)?.to_owned();
        if path == "/ws" {
            let head = format!("HTTP/1.1 101 Switching Protocols\r\nsec-websocket-accept: {ACCEPT}\r\n\r\n");
            stream.get_mut().write_all(head.as_bytes()).await.ok()?;
            return serve_websocket(stream.into_inner(), shared).await;
        }
        let answer = answer_http(&shared, &path, &body);
        let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n", answer.len());
        stream.get_mut().write_all(&[head.as_bytes(), &answer].concat()).await.ok()?;
    }
}

fn answer_http(shared: &Shared, path: &str, body: &[u8]) -> Vec<u8> {
    let mut state = shared.lock().unwrap();
    let (path, query) = path.split_once('?').unwrap_or((path, ""));
    let body: Value = serde_json::from_slice(body).unwrap_or_default();
    match path {
        "/api/v1/register" => {
            state.users.push(body["name"].as_str().unwrap().to_owned());
            json!({ "user_id": state.users.len() }).to_string().into_bytes()
        }
        "/api/v1/login" => {
            let user = state.users.iter().position(|name| name == body["name"].as_str().unwrap()).unwrap() + 1;
            json!({ "token": format!("token-{user}"), "unread": [] }).to_string().into_bytes()
        }
        "/api/v1/config" => {
            let storm = json!({ "watcher_bytes_per_s": CAP, "spread_ms": SPREAD_MS });
            json!({ "lobbies": [LOBBY], "storms": { LOBBY: storm } }).to_string().into_bytes()
        }
        "/api/v1/chat/pull/lobby" => {
            let number = |name: &str| query.split('&').find_map(|pair| pair.strip_prefix(name)?.parse().ok());
            assert!(query.contains("lobby=lobby_main"), "{query}");
            state.pull(number("after_seq=").unwrap(), number("before_seq=").unwrap_or(0)).encode_to_vec()
        }
        _ => panic!("no such path: {path}"),
    }
}

// ---- frames

async fn serve_tcp(stream: TcpStream, shared: Shared) -> Option<()> {
    stream.set_nodelay(true).unwrap();
    let (mut reader, mut writer) = stream.into_split();
    let (outbox, mut frames) = mpsc::channel::<Bytes>(100_000);
    tokio::spawn(async move {
        while let Some(frame) = frames.recv().await {
            writer.write_all(&frame).await.ok()?;
        }
        Some(())
    });
    let mut opening = [0; OPENING_BYTES];
    reader.read_exact(&mut opening).await.ok()?;
    Opening::parse(opening).unwrap();
    let (mut received, mut user_id) = (BytesMut::new(), 0);
    loop {
        reader.read_buf(&mut received).await.ok().filter(|read| *read > 0)?;
        let mut bytes = received.split().freeze();
        take_frames(&shared, &mut bytes, &mut user_id, &outbox);
        received.extend_from_slice(&bytes);
    }
}

async fn serve_websocket(stream: TcpStream, shared: Shared) -> Option<()> {
    stream.set_nodelay(true).unwrap();
    let (mut reader, mut writer) = stream.into_split();
    let (outbox, mut frames) = mpsc::channel::<Bytes>(100_000);
    tokio::spawn(async move {
        while let Some(frame) = frames.recv().await {
            let mut out = BytesMut::new();
            put_header(&mut out, Opcode::Binary, frame.len());
            out.extend_from_slice(&frame);
            writer.write_all(&out).await.ok()?;
        }
        Some(())
    });
    let mut decoder = Decoder::new(Role::Server);
    let (mut received, mut user_id, mut is_opened) = (BytesMut::new(), 0, false);
    loop {
        while let Some(event) = decoder.next(&mut received, 65_536).unwrap() {
            let Event::Message(message) = event else { continue };
            let mut bytes = message.freeze();
            if !is_opened {
                Opening::parse(*bytes.split_to(OPENING_BYTES).first_chunk().unwrap()).unwrap();
                is_opened = true;
            }
            take_frames(&shared, &mut bytes, &mut user_id, &outbox);
            assert!(bytes.is_empty(), "a message ends within a frame");
        }
        reader.read_buf(&mut received).await.ok().filter(|read| *read > 0)?;
    }
}

fn take_frames(shared: &Shared, bytes: &mut Bytes, user_id: &mut u64, outbox: &mpsc::Sender<Bytes>) {
    while let Some(frame) = frame::next_frame(bytes, 65_536).unwrap() {
        let mut state = shared.lock().unwrap();
        let correlation = frame.head.correlation;
        let reply = match frame.kind().unwrap() {
            Kind::Login => {
                let login: Login = frame.decode().unwrap();
                *user_id = login.token.strip_prefix("token-").unwrap().parse().unwrap();
                let is_watching = login.watch == [LOBBY];
                state.outboxes.push(Outbox { frames: outbox.clone(), is_watching });
                let reply = LoginReply {
                    user_id: *user_id,
                    heartbeat: Some(Heartbeat { min_interval_s: 5, max_interval_s: 180, probe_count: 3 }),
                    max_frame_bytes: 65_536,
                    max_body_bytes: 16_384,
                    max_in_flight: 64,
                    watching: login.watch,
                    ..LoginReply::default()
                };
                encoded(Kind::LoginReply, correlation, &reply)
            }
            Kind::Send => match state.take_send(*user_id, frame.decode().unwrap()) {
                Ok(ack) => encoded(Kind::SendAck, correlation, &ack),
                Err(error) => encoded(Kind::Error, correlation, &error),
            },
            Kind::Pull => {
                let pull: Pull = frame.decode().unwrap();
                assert_eq!((pull.conversation_id.as_str(), pull.epoch), (LOBBY, 1));
                let reply = state.pull(pull.after_seq.unwrap(), pull.before_seq);
                encoded(Kind::PullReply, correlation, &reply)
            }
            Kind::History => {
                let reply = state.history(&frame.decode().unwrap());
                encoded(Kind::HistoryReply, correlation, &reply)
            }
            kind => panic!("{kind:?}"),
        };
        outbox.try_send(reply).unwrap();
    }
}

fn encoded(kind: Kind, correlation: u16, message: &impl prost::Message) -> Bytes {
    let mut out = BytesMut::new();
    frame::put_message(&mut out, kind, correlation, message);
    out.freeze()
}

impl State {
    fn push(&self, frame: &Bytes) {
        for outbox in self.outboxes.iter().filter(|outbox| outbox.is_watching) {
            outbox.frames.try_send(frame.clone()).ok();
        }
    }

    fn take_send(&mut self, sender_id: u64, send: Send) -> Result<SendAck, Error> {
        assert_eq!(send.conversation_id, LOBBY);
        self.tries += 1;
        if self.behaviour == Behaviour::SlowsDown && self.tries.is_multiple_of(10) {
            return Err(Error { code: Code::SlowDown.into(), retry_after_ms: 30, ..Error::default() });
        }
        self.numbers += 1;
        let message_id = Bytes::copy_from_slice(&u128::from(self.numbers).to_be_bytes());
        let ack = SendAck { message_id: message_id.clone(), accepted_at_ms: 1 };
        if self.behaviour == Behaviour::ForgetsOne && self.numbers == FAULTY_MESSAGE {
            return Ok(ack);
        }
        let message = Message {
            conversation_id: LOBBY.to_owned(),
            seq: self.last_seq() + 1,
            epoch: 1,
            message_id,
            sender_id,
            sent_at_ms: 1,
            content_type: send.content_type,
            body: send.body,
        };
        if self.gear == Gear::Direct {
            self.pushed = message.seq;
            self.push(&encoded(Kind::Message, 0, &message));
        }
        self.messages.push(message);
        self.arrivals.push(Instant::now());
        Ok(ack)
    }

    fn last_seq(&self) -> u64 {
        self.messages.len() as u64
    }

    /// Every 50 ms: what has gathered goes out, then the rate decides the gear.
    fn end_window(&mut self) {
        let fresh = &self.messages[self.pushed as usize..];
        let frame = match self.gear {
            _ if fresh.is_empty() => None,
            Gear::Direct | Gear::Merged => {
                let is_late = self.behaviour == Behaviour::Late
                    && self.arrivals[self.pushed as usize].elapsed() < Duration::from_secs(1);
                (!is_late).then(|| encoded(Kind::Messages, 0, &Messages { messages: fresh.to_vec() }))
            }
            Gear::Signal => {
                let notice = NotifyNewMessages {
                    conversation_id: LOBBY.to_owned(),
                    epoch: 1,
                    latest_seq: self.last_seq(),
                    spread_ms: SPREAD_MS,
                };
                Some(encoded(Kind::NotifyNewMessages, 0, &notice))
            }
        };
        if let Some(frame) = frame {
            self.push(&frame);
            self.pushed = self.last_seq();
        }
        let recent = self.arrivals.iter().rev().take_while(|arrival| arrival.elapsed() < Duration::from_millis(500));
        let gear = match recent.count() * 2 {
            rate if rate >= SIGNAL_FROM => Gear::Signal,
            rate if rate >= MERGED_FROM => Gear::Merged,
            _ => Gear::Direct,
        };
        if gear != self.gear {
            self.gear = gear;
            // What was not signalled yet is pulled because of this.
            self.pushed = self.last_seq();
            let changed = GearChanged {
                conversation_id: LOBBY.to_owned(),
                epoch: 1,
                gear: gear.into(),
                from_seq: self.last_seq() + 1,
            };
            self.push(&encoded(Kind::GearChanged, 0, &changed));
        }
    }

    fn pull(&self, after_seq: u64, before_seq: u64) -> PullReply {
        let hidden = if self.behaviour == Behaviour::HidesOne { FAULTY_MESSAGE } else { u64::MAX };
        let (after_seq, last) = match before_seq {
            0 => (after_seq, self.last_seq()),
            _ => (after_seq, self.last_seq().min(before_seq - 1)),
        };
        let mut range = &self.messages[(after_seq.min(last)) as usize..last as usize];
        let mut gap = false;
        if before_seq == 0 {
            // What the line carries in a spread, the newest; less what notices and heads take.
            let share = match self.behaviour {
                Behaviour::OverCap => 2 * CAP * u64::from(SPREAD_MS) / 1_000,
                _ => CAP * u64::from(SPREAD_MS) / 1_000 * 8 / 10,
            };
            let mut bytes = 0;
            let fitting = range.iter().rev().take_while(|message| {
                bytes += message.encoded_len() as u64 + 3;
                bytes <= share && message.seq != hidden
            });
            let from = range.len() - fitting.count();
            // Nothing but a storm fills the share of one who pulls too much.
            gap = from > 0;
            range = &range[from..];
        } else {
            range = &range[..range.len().min(300)];
            if let Some(at) = range.iter().position(|message| message.seq == hidden) {
                range = &range[..at];
            }
        }
        let mut messages = range.to_vec();
        if self.behaviour == Behaviour::AltersOne
            && let Some(message) = messages.iter_mut().find(|message| message.seq == FAULTY_MESSAGE)
        {
            let mut body = message.body.to_vec();
            *body.last_mut().unwrap() ^= 1;
            message.body = body.into();
        }
        PullReply {
            conversation_id: LOBBY.to_owned(),
            epoch: 1,
            from_seq: messages.first().map_or(0, |message| message.seq),
            to_seq: messages.last().map_or(0, |message| message.seq),
            latest_seq: self.last_seq(),
            more: before_seq != 0 && messages.last().is_some_and(|message| message.seq < last),
            gap,
            messages,
        }
    }

    fn history(&self, history: &History) -> HistoryReply {
        let page = if history.page_size == 0 { 50 } else { history.page_size.min(200) } as usize;
        let reply = HistoryReply {
            conversation_id: LOBBY.to_owned(),
            epoch: 1,
            last_seq: self.last_seq(),
            ..HistoryReply::default()
        };
        let Some(after_seq) = history.after_seq else { return reply };
        let rest = &self.messages[after_seq as usize..];
        HistoryReply { messages: rest[..rest.len().min(page)].to_vec(), more: rest.len() > page, ..reply }
    }
}
