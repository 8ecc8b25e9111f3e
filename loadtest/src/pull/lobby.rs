//! The lobby that is pulled: its messages, its gear, and who speaks in it.
//!
//! In: accounts; out: a lobby in signal gear whose newest messages fill an answer, requests for that answer in both
//! dialects, and a [`Speaker`] who writes on, so that the answer changes as it does in a storm. All messages have one
//! size, and every message fills more than the chunk an answer is made of: so answers of different moments differ by some
//! bytes only.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow, bail};
use bytes::{Bytes, BytesMut};
use futures_util::StreamExt as _;
use prost::Message as _;
use tidegate_proto::limits::FRAME_BYTES_MAX_DEFAULT;
use tidegate_proto::v1::{self, ContentType, Gear, GearChanged, Login, Pull, PullReply};
use tidegate_proto::{Kind, frame};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::client::{self, Answer, Asker};
use crate::connection::{Account, LoggedIn, Reading};

/// The lobby.
pub const LOBBY: &str = "lobby_main";

/// Where it is pulled from over HTTP.
pub const PATH: &str = "/api/v1/chat/pull/lobby";

/// Messages that fill an answer. With eight or fewer each is a chunk of its own.
const MESSAGES_PER_ANSWER: u32 = 4;

/// Bytes of a message besides its body, and of the answer besides its messages, with room.
const AROUND_BODY_BYTES: u32 = 96;

/// Messages before the measurement: more than an answer holds, so that it is full and there are older ones.
const MESSAGES_BEFORE: u32 = 12;

/// Between two messages during the measurement. A storm's body changes all the time; who asks gets what is newest.
const SPEAK_INTERVAL: Duration = Duration::from_millis(500);

const DEADLINE: Duration = Duration::from_secs(20);

/// Logins under way at once.
const LOGINS_AT_ONCE: usize = 32;

/// What the gateway is told: the lobby is in signal gear from its second message on and stays there; an answer has the bytes
/// wanted, and a connection may pull every 10 ms.
pub fn settings(answer_bytes: u32) -> Vec<(&'static str, String)> {
    const SPREAD_MS: u32 = 10;
    // A notice and heads count as well.
    const ROOM_BYTES: u32 = 512;
    let per_s = (answer_bytes + ROOM_BYTES) * (1_000 / SPREAD_MS);
    vec![
        ("TIDEGATE_STORM_GEARS", "direct+merged+signal".to_owned()),
        ("TIDEGATE_STORM_MERGED_PER_S", "1".to_owned()),
        ("TIDEGATE_STORM_SIGNAL_PER_S", "1".to_owned()),
        ("TIDEGATE_STORM_CALM_MS", "600000".to_owned()),
        ("TIDEGATE_STORM_NOTICE_MS", SPREAD_MS.to_string()),
        ("TIDEGATE_STORM_SPREAD_MS", SPREAD_MS.to_string()),
        ("TIDEGATE_STORM_WATCHER_BYTES_PER_S", per_s.to_string()),
    ]
}

/// A request for the newest messages by somebody who has seen the first only: as many as an answer holds.
pub fn http_request(address: SocketAddr, account: &Account) -> Arc<[u8]> {
    let token = &account.token;
    let request = format!(
        "GET {PATH}?lobby={LOBBY}&after_seq=1 HTTP/1.1\r\nHost: {address}\r\nAuthorization: Bearer {token}\r\n\
         Accept: application/x-protobuf\r\nUser-Agent: tidegate-loadtest\r\n\r\n"
    );
    request.into_bytes().into()
}

/// The same as a command.
pub fn frame_request() -> Arc<[u8]> {
    let pull = Pull { conversation_id: LOBBY.to_owned(), after_seq: Some(1), ..Pull::default() };
    let mut out = BytesMut::new();
    frame::put_message(&mut out, Kind::Pull, 1, &pull);
    out.as_ref().into()
}

/// Checks that an answer is one: messages without a gap up to the newest, about as many bytes as wanted.
///
/// # Errors
/// What is wrong with it.
pub fn check(answer: &Answer, answer_bytes: u32) -> anyhow::Result<()> {
    let reply = PullReply::decode(&answer.body[..]).context("the answer to a pull is not a PullReply")?;
    let seqs: Vec<u64> = reply.messages.iter().map(|message| message.seq).collect();
    let expected: Vec<u64> = (reply.from_seq..=reply.to_seq).collect();
    if reply.from_seq == 0 || seqs != expected || reply.to_seq != reply.latest_seq {
        bail!("the answer to a pull holds {seqs:?}, and says {} to {}", reply.from_seq, reply.to_seq);
    }
    let (bytes, wanted) = (answer.body.len(), answer_bytes as usize);
    if bytes < wanted * 9 / 10 || bytes > wanted + 512 {
        bail!("the answer to a pull has {bytes} bytes, not about {wanted}");
    }
    Ok(())
}

/// Logs so many connections in, all of which watch the lobby.
///
/// # Errors
/// What the server answered.
pub async fn askers(address: SocketAddr, accounts: &[Account], count: u32) -> anyhow::Result<Vec<Asker>> {
    let request = frame_request();
    let dialled = (0..count).map(|index| {
        let account = &accounts[index as usize % accounts.len()];
        let request = Arc::clone(&request);
        async move {
            let connection = log_in(address, index, account).await?;
            Ok(Asker { stream: connection.stream.into_std()?, request, received: connection.received.to_vec() })
        }
    });
    let askers: Vec<anyhow::Result<Asker>> =
        futures_util::stream::iter(dialled).buffer_unordered(LOGINS_AT_ONCE).collect().await;
    askers.into_iter().collect()
}

async fn log_in(address: SocketAddr, index: u32, account: &Account) -> anyhow::Result<LoggedIn> {
    let login = Login { device_id: format!("pull-{index}"), watch: vec![LOBBY.to_owned()], ..Login::default() };
    LoggedIn::connect_as(address, index, account, login, Reading::All).await
}

/// Somebody who writes in the lobby.
pub struct Speaker {
    connection: LoggedIn,
    received: BytesMut,
    body: Bytes,
    counter: u64,
    gear: Gear,
}

impl Speaker {
    /// Logs in and writes until the lobby is in signal gear and an answer is full.
    ///
    /// # Errors
    /// What the server answered, or that it does not change gear.
    pub async fn fill(address: SocketAddr, account: &Account, answer_bytes: u32) -> anyhow::Result<Self> {
        let connection = log_in(address, u32::MAX / 2, account).await?;
        let body = vec![b'x'; (answer_bytes / MESSAGES_PER_ANSWER).saturating_sub(AROUND_BODY_BYTES) as usize];
        let received = BytesMut::from(&connection.received[..]);
        let mut speaker = Self { connection, received, body: body.into(), counter: 0, gear: Gear::Direct };
        let began = Instant::now();
        for spoken in 1.. {
            speaker.speak().await?;
            if spoken >= MESSAGES_BEFORE && speaker.gear == Gear::Signal {
                break;
            }
            if began.elapsed() > DEADLINE {
                bail!("{LOBBY} is in gear {} after {spoken} messages", speaker.gear.as_str_name());
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        Ok(speaker)
    }

    /// What the gateway answers over HTTP, once that is full: a tail that was begun in the middle of a message grows with the
    /// next one.
    ///
    /// # Errors
    /// What is wrong with the answer in the end.
    pub async fn full_answer(
        &mut self,
        address: SocketAddr,
        account: &Account,
        answer_bytes: u32,
    ) -> anyhow::Result<Answer> {
        let request = http_request(address, account);
        let began = Instant::now();
        loop {
            let answer = client::fetch(address, &request)?;
            match check(&answer, answer_bytes) {
                Ok(()) => return Ok(answer),
                Err(error) if began.elapsed() > DEADLINE => return Err(error),
                Err(_) => self.speak().await?,
            }
            tokio::time::sleep(SPEAK_INTERVAL).await;
        }
    }

    /// Writes one message and waits for its ack.
    async fn speak(&mut self) -> anyhow::Result<()> {
        self.counter += 1;
        let mut id = [0x70; 16];
        id[..8].copy_from_slice(&self.counter.to_be_bytes());
        id[8..12].copy_from_slice(&std::process::id().to_be_bytes());
        let send = v1::Send {
            conversation_id: LOBBY.to_owned(),
            client_msg_id: Bytes::copy_from_slice(&id),
            content_type: ContentType::Binary.into(),
            body: self.body.clone(),
        };
        let mut out = BytesMut::new();
        frame::put_message(&mut out, Kind::Send, 1, &send);
        self.connection.stream.write_all(&out).await?;
        tokio::time::timeout(DEADLINE, self.acked()).await.map_err(|_| anyhow!("no ack within {DEADLINE:?}"))?
    }

    async fn acked(&mut self) -> anyhow::Result<()> {
        loop {
            let mut bytes = self.received.split().freeze();
            let mut is_acked = false;
            while let Some(frame) = frame::next_frame(&mut bytes, FRAME_BYTES_MAX_DEFAULT)? {
                match frame.kind() {
                    Some(Kind::SendAck) => is_acked = true,
                    Some(Kind::GearChanged) => self.gear = frame.decode::<GearChanged>()?.gear(),
                    Some(Kind::Error) => {
                        let error: v1::Error = frame.decode()?;
                        bail!("a message was refused: {} {}", error.code().as_str_name(), error.text);
                    }
                    Some(Kind::Close) => bail!("the speaker's connection was closed"),
                    _ => {}
                }
            }
            self.received.extend_from_slice(&bytes);
            if is_acked {
                return Ok(());
            }
            if self.connection.stream.read_buf(&mut self.received).await? == 0 {
                bail!("the speaker's connection ended");
            }
        }
    }
}

/// A speaker at work, in a thread of its own.
pub struct Speaking {
    is_quiet: Arc<AtomicBool>,
    is_over: Arc<AtomicBool>,
    thread: Option<JoinHandle<anyhow::Result<()>>>,
}

impl Speaking {
    /// Begins. `runtime` is the one the speaker's socket is registered with.
    ///
    /// # Errors
    /// If there is no thread to be had.
    pub fn begin(mut speaker: Speaker, runtime: tokio::runtime::Runtime) -> anyhow::Result<Self> {
        let (is_quiet, is_over) = (Arc::new(AtomicBool::new(true)), Arc::new(AtomicBool::new(false)));
        let (quiet, over) = (Arc::clone(&is_quiet), Arc::clone(&is_over));
        let thread = std::thread::Builder::new().name("speaker".to_owned()).spawn(move || {
            runtime.block_on(async {
                while !over.load(Ordering::Relaxed) {
                    if !quiet.load(Ordering::Relaxed) {
                        speaker.speak().await?;
                    }
                    tokio::time::sleep(SPEAK_INTERVAL).await;
                }
                Ok(())
            })
        })?;
        Ok(Self { is_quiet, is_over, thread: Some(thread) })
    }

    /// Nothing is to be written while something else than the gateway is measured.
    pub fn be_quiet(&self, is_quiet: bool) {
        self.is_quiet.store(is_quiet, Ordering::Relaxed);
    }

    /// Ends.
    ///
    /// # Errors
    /// Why a message was not accepted, if one was not.
    pub fn end(mut self) -> anyhow::Result<()> {
        self.is_over.store(true, Ordering::Relaxed);
        let ended = self.thread.take().map(JoinHandle::join);
        ended.unwrap_or(Ok(Ok(()))).map_err(|_| anyhow!("the speaker's thread panicked"))?
    }
}

impl Drop for Speaking {
    fn drop(&mut self) {
        self.is_over.store(true, Ordering::Relaxed);
    }
}
