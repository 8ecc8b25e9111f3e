//! Reading the lobby's history once, through a connection of its own: what everything else is compared with.

use std::sync::Arc;

use anyhow::{Context, bail};
use bytes::BytesMut;
use tidegate_proto::limits::FRAME_BYTES_MAX_DEFAULT;
use tidegate_proto::v1::{Error, History, HistoryReply, Login};
use tidegate_proto::{Kind, frame};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::dial::Addresses;
use super::ledger::{Ledger, Origin};
use crate::connection::{Account, LoggedIn, Reading};
use crate::finding::Findings;
use crate::wire::MessageView;

/// The largest page there is.
const PAGE: u32 = 200;

/// Tries of one page that is answered with "later".
const TRIES_MAX: u32 = 50;

/// The history's end, without its messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HistoryEnd {
    /// Identity of the lobby's storage life.
    pub epoch: u32,
    /// Its newest sequence.
    pub last_seq: u64,
}

/// A connection that reads.
pub struct Reader {
    runtime: tokio::runtime::Runtime,
    stream: tokio::net::TcpStream,
    received: BytesMut,
    lobby: String,
}

impl Reader {
    /// Logs in as a device of its own, which watches nothing.
    ///
    /// # Errors
    /// What the server answered, or why it could not be reached.
    pub fn log_in(addresses: Addresses, account: &Account, lobby: &str) -> anyhow::Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let login = Login { device_id: "loadtest-reader".to_owned(), ..Login::default() };
        let logged_in =
            runtime.block_on(LoggedIn::connect_as(addresses.tcp, 0, account, login, Reading::All)).context("reader")?;
        let received = BytesMut::from(&logged_in.received[..]);
        Ok(Self { runtime, stream: logged_in.stream, received, lobby: lobby.to_owned() })
    }

    /// Where the history ends.
    ///
    /// # Errors
    /// What the server answered.
    pub fn end(&mut self) -> anyhow::Result<HistoryEnd> {
        let reply = self.page(&History { page_size: 1, ..History::default() })?;
        Ok(HistoryEnd { epoch: reply.epoch, last_seq: reply.last_seq })
    }

    /// Everything behind the run's base, page by page; what is wrong with a message goes to `findings`. `watch` is
    /// called with the sequence it has come to and the last there is, and returns false to give up.
    ///
    /// # Errors
    /// What the server answered, or that it was given up.
    pub fn read(
        &mut self,
        origin: &Arc<Origin>,
        findings: &mut Findings,
        mut watch: impl FnMut(u64, u64) -> bool,
    ) -> anyhow::Result<(Ledger, u64)> {
        let mut ledger = Ledger::new(origin.clone());
        let mut last = origin.base_seq;
        loop {
            let page = self.page(&History { after_seq: Some(last), page_size: PAGE, ..History::default() })?;
            for message in &page.messages {
                let view = MessageView {
                    conversation_id: message.conversation_id.as_bytes(),
                    seq: message.seq,
                    epoch: message.epoch,
                    message_id: &message.message_id,
                    sender_id: message.sender_id,
                    body: &message.body,
                };
                if let Err((fault, example)) = ledger.take(&view) {
                    findings.add(fault, || format!("history: {example}"));
                }
            }
            let to = page.messages.last().map_or(last, |message| message.seq);
            if !page.more {
                return Ok((ledger, page.last_seq));
            }
            if to <= last {
                bail!("the history says that there is more behind {last} and does not give it");
            }
            last = to;
            if !watch(last, page.last_seq) {
                bail!("interrupted");
            }
        }
    }

    fn page(&mut self, history: &History) -> anyhow::Result<HistoryReply> {
        let history = History { conversation_id: self.lobby.clone(), ..history.clone() };
        let Self { runtime, stream, received, .. } = self;
        runtime.block_on(async {
            for _ in 0..TRIES_MAX {
                let mut out = BytesMut::new();
                frame::put_message(&mut out, Kind::History, 1, &history);
                stream.write_all(&out).await?;
                let error = match reply(stream, received).await? {
                    Ok(reply) => return Ok(reply),
                    Err(error) => error,
                };
                if !(1_000..2_000).contains(&error.code) {
                    bail!("history: {} {}", error.code().as_str_name(), error.text);
                }
                let wait_ms = u64::from(error.retry_after_ms.max(20));
                tokio::time::sleep(std::time::Duration::from_millis(wait_ms)).await;
            }
            bail!("history: told to come later {TRIES_MAX} times")
        })
    }
}

/// The reply to the only command in flight; pushes are skipped.
async fn reply(
    stream: &mut tokio::net::TcpStream,
    received: &mut BytesMut,
) -> anyhow::Result<Result<HistoryReply, Error>> {
    loop {
        let mut bytes = received.split().freeze();
        while let Some(frame) = frame::next_frame(&mut bytes, FRAME_BYTES_MAX_DEFAULT.max(1 << 24))? {
            let answer = match frame.kind() {
                Some(Kind::HistoryReply) => Ok(frame.decode()?),
                Some(Kind::Error) => Err(frame.decode()?),
                Some(Kind::Close) => bail!("history: the connection was closed"),
                _ => continue,
            };
            received.extend_from_slice(&bytes);
            return Ok(answer);
        }
        received.extend_from_slice(&bytes);
        if stream.read_buf(received).await? == 0 {
            bail!("history: the connection has ended");
        }
    }
}
