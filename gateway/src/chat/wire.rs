//! The connection: opening, login, heartbeat, commands and their replies, and connecting anew.
//!
//! In come [`Ask`]s, out go [`Event`]s. Must always hold: a reply is given back with the ask it answers; a connection that
//! ends is opened again after a back-off with chance in it, unless the server said not to; every wait has a deadline.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::time::Duration;

use futures_util::{SinkExt as _, StreamExt as _};
use tidegate_proto::v1::{self, CloseCode, Code, ContentType};
use tidegate_proto::{Frame, FrameCodec, Kind, Opening};
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, timeout};
use tokio_util::codec::Framed;

use super::account::{Account, Refusal};
use super::ask::{Answer, Ask, Push, Range, Standing};
use super::heartbeat::{Beat, Heartbeat};
use super::line::Place;

/// Connecting, writing a frame, and the reply to Login must be done in this time.
const STEP_TIMEOUT: Duration = Duration::from_secs(10);

/// The first delay before connecting again, and the longest ("Close codes" of `proto/PROTOCOL.md`).
const BACKOFF_MIN: Duration = Duration::from_secs(1);
const BACKOFF_MAX: Duration = Duration::from_secs(60);

/// No Behind is answered later than this, whatever the server says.
const SPREAD_MAX: Duration = Duration::from_secs(60);

/// A connection that held for so long was a good one: the back-off begins anew.
const GOOD_AFTER: Duration = Duration::from_secs(5);

/// What the connection has to say.
pub enum Event {
    /// Logged in.
    Online {
        /// Where everything stands.
        login: v1::LoginReply,
        /// The positions that its `synced` answers.
        asked: Vec<v1::SyncFrom>,
        /// The token it was done with; a new one if the last was no longer valid.
        token: String,
        /// Drawn for this connection: when it pulls, so that not everybody does at once.
        chance: u32,
    },
    /// The reply to an ask.
    Answer(Ask, Answer),
    /// Unasked.
    Push(Push),
    /// The connection is gone; another is tried after the delay.
    Lost {
        /// Why, for people.
        why: String,
        /// Until the next attempt.
        retry_in: Duration,
    },
    /// No connection will be tried again.
    Ended {
        /// Why, for people.
        why: String,
    },
}

/// Whom to connect to, and as whom.
pub struct Link {
    /// `host:port` of the gateway's TCP listener.
    pub address: String,
    /// The device's id.
    pub device: String,
    /// Gives new tokens when one is no longer valid.
    pub account: std::sync::Arc<Account>,
    /// The first token.
    pub token: String,
    /// Where the conversations stand; told anew whenever a connection is lost.
    pub standing: watch::Receiver<Standing>,
}

/// Why a connection ended.
enum End {
    /// Nobody wants it any more.
    Unwanted,
    /// Try again.
    Lost(String),
    /// Try again with another token.
    TokenRejected(String),
    /// Do not try again.
    Final(String),
}

impl<E: std::error::Error> From<E> for End {
    fn from(error: E) -> Self {
        Self::Lost(error.to_string())
    }
}

type Wire = Framed<TcpStream, FrameCodec>;

/// Keeps a connection until the server forbids it, or nobody asks or listens any more.
pub async fn run(mut link: Link, mut asks: mpsc::Receiver<Ask>, events: mpsc::Sender<Event>) {
    let mut backoff = BACKOFF_MIN;
    let mut token_is_new = false;
    loop {
        let begun = Instant::now();
        let end = converse(&link, &mut asks, &events).await;
        if begun.elapsed() >= GOOD_AFTER {
            (backoff, token_is_new) = (BACKOFF_MIN, false);
        }
        let why = match end {
            End::Unwanted => return,
            End::Lost(why) => why,
            End::Final(why) => return drop(events.send(Event::Ended { why }).await),
            End::TokenRejected(why) if token_is_new => return drop(events.send(Event::Ended { why }).await),
            End::TokenRejected(_) => match new_token(&link).await {
                Ok(token) => {
                    (link.token, token_is_new) = (token, true);
                    continue;
                }
                Err(Refusal::Unreachable(why)) => why,
                Err(refusal) => return drop(events.send(Event::Ended { why: refusal.to_string() }).await),
            },
        };
        let retry_in = with_chance(backoff);
        backoff = (backoff * 2).min(BACKOFF_MAX);
        if events.send(Event::Lost { why, retry_in }).await.is_err() {
            return;
        }
        let wait = Instant::now() + retry_in;
        // What is asked meanwhile is void: the state asks again once it is online.
        while let Ok(ask) = tokio::time::timeout_at(wait, asks.recv()).await {
            if ask.is_none() {
                return;
            }
        }
    }
}

async fn new_token(link: &Link) -> Result<String, Refusal> {
    let account = std::sync::Arc::clone(&link.account);
    let login = tokio::task::spawn_blocking(move || account.log_in()).await;
    login.unwrap_or_else(|error| Err(Refusal::Unreachable(error.to_string()))).map(|login| login.token)
}

/// Half of it for sure, the other half by chance, so that clients that lost one server do not come back as one.
fn with_chance(backoff: Duration) -> Duration {
    backoff / 2 + up_to(backoff / 2)
}

/// A random part of it.
fn up_to(most: Duration) -> Duration {
    most.mul_f64(f64::from(chance()) / f64::from(u32::MAX))
}

fn chance() -> u32 {
    getrandom::u32().unwrap_or(u32::MAX / 2)
}

/// One connection from its opening to its end.
async fn converse(link: &Link, asks: &mut mpsc::Receiver<Ask>, events: &mpsc::Sender<Event>) -> End {
    let standing = link.standing.borrow().clone();
    let (mut wire, login) = match connect(link, &standing).await {
        Ok(connected) => connected,
        Err(end) => return end,
    };
    wire.codec_mut().frame_bytes_max = login.max_frame_bytes as usize;
    let in_flight_max = login.max_in_flight.max(1) as usize;
    let mut heartbeat = Heartbeat::new(login.heartbeat.unwrap_or_default(), Instant::now().into_std());
    let asked = standing.positions;
    let online = Event::Online { login, asked, token: link.token.clone(), chance: chance() };
    if events.send(online).await.is_err() {
        return End::Unwanted;
    }
    let mut pending = Pending::default();
    loop {
        let event = tokio::select! {
            frame = wire.next() => {
                heartbeat.handle_heard(Instant::now().into_std());
                match frame {
                    None => return End::Lost("the server closed the connection".to_owned()),
                    Some(Err(error)) => return error.into(),
                    Some(Ok(frame)) => match understand(&frame, &mut pending) {
                        Ok(event) => event,
                        Err(end) => return end,
                    },
                }
            }
            ask = asks.recv(), if pending.asks.len() < in_flight_max => {
                let Some(ask) = ask else { return End::Unwanted };
                let frame = frame_of(&ask, pending.correlation());
                pending.asks.insert(frame.head.correlation, ask);
                if let Err(end) = write(&mut wire, frame).await {
                    return end;
                }
                heartbeat.handle_sent(Instant::now().into_std());
                None
            }
            () = tokio::time::sleep_until(heartbeat.next().into()) => {
                match heartbeat.handle_timeout(Instant::now().into_std()) {
                    Beat::Wait => {}
                    Beat::GiveUp => return End::Lost("the server has gone silent".to_owned()),
                    Beat::Ping => {
                        let ping = Frame::from_message(Kind::Ping, pending.correlation(), &v1::Ping {});
                        if let Err(end) = write(&mut wire, ping).await {
                            return end;
                        }
                    }
                }
                None
            }
        };
        if let Some(event) = event
            && events.send(event).await.is_err()
        {
            return End::Unwanted;
        }
    }
}

/// Connects and logs in.
async fn connect(link: &Link, standing: &Standing) -> Result<(Wire, v1::LoginReply), End> {
    let late = |_| End::Lost(format!("{} does not answer", link.address));
    let mut stream = timeout(STEP_TIMEOUT, TcpStream::connect(&link.address)).await.map_err(late)??;
    stream.set_nodelay(true)?;
    let mut wire = timeout(STEP_TIMEOUT, async {
        stream.write_all(&Opening::CURRENT.encode()).await?;
        Ok::<_, std::io::Error>(Framed::new(stream, FrameCodec::default()))
    })
    .await
    .map_err(late)??;
    let login = v1::Login {
        token: link.token.clone(),
        device_id: link.device.clone(),
        device_class: "console".to_owned(),
        client: concat!("tidegate-chat/", env!("CARGO_PKG_VERSION")).to_owned(),
        watch: standing.watch.clone(),
        resume_session_id: standing.session,
        positions: standing.positions.clone(),
        background: false,
    };
    write(&mut wire, Frame::from_message(Kind::Login, 1, &login)).await?;
    let frame = timeout(STEP_TIMEOUT, wire.next()).await.map_err(late)?;
    let frame = frame.ok_or_else(|| End::Lost("the server closed the connection".to_owned()))??;
    match frame.kind() {
        Some(Kind::LoginReply) => Ok((wire, frame.decode()?)),
        Some(Kind::Close) => Err(closed(&frame)),
        Some(Kind::Error) => {
            let error: v1::Error = frame.decode()?;
            let why = format!("the login was refused: {}", super::line::escape(&error.text));
            Err(match error.code() {
                Code::TokenInvalid | Code::TokenExpired => End::TokenRejected(why),
                code if code.may_retry() => End::Lost(why),
                _ => End::Final(why),
            })
        }
        _ => Err(End::Final("the server does not speak this protocol".to_owned())),
    }
}

async fn write(wire: &mut Wire, frame: Frame) -> Result<(), End> {
    match timeout(STEP_TIMEOUT, wire.send(frame)).await {
        Ok(sent) => Ok(sent?),
        Err(_) => Err(End::Lost("the server takes nothing any more".to_owned())),
    }
}

/// Commands without a reply.
#[derive(Default)]
struct Pending {
    asks: HashMap<u16, Ask>,
    last: u16,
}

impl Pending {
    /// 1, 2, 3 ... 65535, 1, without those in use.
    fn correlation(&mut self) -> u16 {
        loop {
            self.last = self.last.checked_add(1).unwrap_or(1);
            if !self.asks.contains_key(&self.last) {
                return self.last;
            }
        }
    }
}

fn frame_of(ask: &Ask, correlation: u16) -> Frame {
    match ask {
        Ask::Send { client_msg_id, conversation, body } => {
            let send = v1::Send {
                conversation_id: conversation.clone(),
                client_msg_id: client_msg_id.clone(),
                content_type: ContentType::Text.into(),
                body: body.clone(),
            };
            Frame::from_message(Kind::Send, correlation, &send)
        }
        Ask::Receipt { conversation, delivered, read } => {
            let receipt =
                v1::Receipt { conversation_id: conversation.clone(), delivered_seq: *delivered, read_seq: *read };
            Frame::from_message(Kind::Receipt, correlation, &receipt)
        }
        Ask::History { conversation, range } => {
            let (before_seq, after_seq, page_size) = match *range {
                Range::Newest(count) => (0, None, count),
                Range::Before(before, count) => (before, None, count),
                Range::After(after) => (0, Some(after), tidegate_proto::limits::HISTORY_PAGE_MAX),
            };
            let history = v1::History {
                conversation_id: conversation.clone(),
                before_seq,
                after_seq,
                page_size,
                // In private there are two of them: what became of the user's messages.
                watermarks: matches!(Place::of(conversation), Place::Private(..)),
            };
            Frame::from_message(Kind::History, correlation, &history)
        }
        Ask::Sync(sync) => Frame::from_message(Kind::Sync, correlation, sync),
        Ask::Pull(pull) => Frame::from_message(Kind::Pull, correlation, pull),
        Ask::Watch(lobbies) => {
            let watch = v1::Watch { watch: lobbies.clone(), unwatch: Vec::new(), background: None };
            Frame::from_message(Kind::Watch, correlation, &watch)
        }
    }
}

/// What a frame means. Kinds this version does not know are skipped, as are replies to nothing, a Pong among them.
fn understand(frame: &Frame, pending: &mut Pending) -> Result<Option<Event>, End> {
    let Some(kind) = frame.kind() else { return Ok(None) };
    let push = match kind {
        Kind::Close => return Err(closed(frame)),
        Kind::Message => Push::Message(frame.decode()?),
        Kind::Messages => Push::Messages(frame.decode()?),
        Kind::NotifyNewMessages => Push::Notice(frame.decode()?),
        Kind::GearChanged => Push::GearChanged(frame.decode()?),
        Kind::SendRejected => Push::SendRejected(frame.decode()?),
        Kind::ReceiptMoved => Push::ReceiptMoved(frame.decode()?),
        Kind::MembershipChanged => Push::MembershipChanged(frame.decode()?),
        Kind::Behind => {
            let behind: v1::Behind = frame.decode()?;
            let wait = up_to(Duration::from_millis(behind.spread_ms.into()).min(SPREAD_MAX));
            Push::Behind(behind, wait)
        }
        _ => {
            let Some(ask) = pending.asks.remove(&frame.head.correlation) else { return Ok(None) };
            let answer = match kind {
                Kind::Error => Answer::Refused(frame.decode()?),
                Kind::SendAck => Answer::Sent(frame.decode()?),
                Kind::HistoryReply => Answer::History(frame.decode()?),
                Kind::SyncReply => Answer::Synced(frame.decode()?),
                Kind::PullReply => Answer::Pulled(frame.decode()?),
                _ => Answer::Done,
            };
            return Ok(Some(Event::Answer(ask, answer)));
        }
    };
    Ok(Some(Event::Push(push)))
}

fn closed(frame: &Frame) -> End {
    let close = match frame.decode::<v1::Close>() {
        Ok(close) => close,
        Err(error) => return error.into(),
    };
    let why = super::line::escape(&close.text);
    match close.code() {
        CloseCode::TokenRejected => End::TokenRejected(why),
        CloseCode::Replaced => End::Final(format!("{why}; --device NAME lets one user be in two places")),
        // A code of a later version is known by its range.
        CloseCode::Unspecified if (4000..=4499).contains(&close.code) => End::Lost(why),
        code if code.may_reconnect() => End::Lost(why),
        _ => End::Final(why),
    }
}

/// Whether anybody listens at `address`, so that a wrong one is said before the screen is taken over.
pub async fn probe(address: &str) -> std::io::Result<SocketAddr> {
    let late = |_| std::io::Error::from(std::io::ErrorKind::TimedOut);
    timeout(STEP_TIMEOUT, TcpStream::connect(address)).await.map_err(late)??.peer_addr()
}
