//! A user's last look: a fresh HTTP login and connection, the positions, and the whole History of every conversation.
//!
//! In: who, and what the user's device knows of its own watermarks; out: one [`Audit`] per conversation. Watermarks travel
//! behind the messages, so that an audit whose numbers do not fit yet is taken again until the deadline; the last one is
//! judged.

use std::time::Duration;

use anyhow::{Context, bail};
use bytes::BytesMut;
use tidegate_proto::frame::{next_frame, put_message};
use tidegate_proto::limits::FRAME_BYTES_MAX_DEFAULT;
use tidegate_proto::v1::{Error, History, HistoryReply};
use tidegate_proto::{Frame, Kind};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::{Instant, sleep, timeout};

use super::client::PAGE;
use super::evidence::{Audit, Entry, Standing, Via};
use super::judge::unread_after;
use super::seat::{Terms, entry};
use super::stage::Endpoint;
use crate::connection::{Account, LoggedIn, Reading};
use crate::setup::Http;

/// For one answer.
const ANSWER_DEADLINE: Duration = Duration::from_secs(10);

/// Between two audits of one user.
const PAUSE: Duration = Duration::from_millis(500);

/// A conversation to look at.
#[derive(Clone, Debug)]
pub struct Chapter {
    /// Index of the conversation within the run.
    pub conversation: u32,
    /// As on the wire.
    pub id: String,
    /// Index of the user among the members.
    pub member: u32,
    /// The members' user ids.
    pub users: Vec<u64>,
    /// The highest read watermark that was acknowledged.
    pub read_acked: u64,
    /// The highest read watermark that was sent.
    pub read_sent: u64,
}

/// A user to be audited.
#[derive(Clone, Debug)]
pub struct Auditor {
    /// Names the user in findings.
    pub who: String,
    /// As registered.
    pub user_id: u64,
    /// For the login.
    pub name: String,
    /// For the login.
    pub password: String,
    /// The user's conversations.
    pub chapters: Vec<Chapter>,
}

impl Auditor {
    /// Looks until everything fits or the deadline has come.
    ///
    /// # Errors
    /// If not even one look was possible.
    pub async fn audit(&self, gateway: &Endpoint, terms: &Terms, deadline: Instant) -> anyhow::Result<Vec<Audit>> {
        loop {
            let look = self.look(gateway, terms).await;
            let is_last = Instant::now() >= deadline;
            match look {
                Ok(audits) if is_last || audits.iter().all(fits) => return Ok(audits),
                Err(error) if is_last => return Err(error.context(format!("the last look of {}", self.who))),
                _ => sleep(PAUSE).await,
            }
        }
    }

    async fn look(&self, gateway: &Endpoint, terms: &Terms) -> anyhow::Result<Vec<Audit>> {
        let (base, name, password) = (gateway.http.clone(), self.name.clone(), self.password.clone());
        let login =
            tokio::task::spawn_blocking(move || Http::with_deadline(&base, ANSWER_DEADLINE).log_in(&name, &password));
        let login = login.await??;
        let account = Account { user_id: self.user_id, token: login.token };
        let connected =
            timeout(ANSWER_DEADLINE, LoggedIn::connect(gateway.tcp, 0, &account, "audit", Reading::All)).await??;
        let LoggedIn { stream, reply, received } = connected;
        let mut line = Line { stream, received: BytesMut::from(&received[..]) };
        let mut audits = Vec::new();
        for chapter in &self.chapters {
            let position = reply.positions.iter().find(|position| position.conversation_id == chapter.id);
            let position = position.map(|position| Standing {
                last_seq: position.last_seq,
                read_seq: position.read_seq,
                unread: position.unread.into(),
            });
            audits.push(Audit {
                who: self.who.clone(),
                conversation: chapter.conversation,
                member: chapter.member,
                archive: line.read_all(chapter, terms).await?,
                position,
                unread_http: login.unread.get(&chapter.id).copied().unwrap_or(0),
                read_acked: chapter.read_acked,
                read_sent: chapter.read_sent,
            });
        }
        Ok(audits)
    }
}

/// What the judge will ask of the counts.
fn fits(audit: &Audit) -> bool {
    let last_seq = audit.archive.last().map_or(0, |entry| entry.seq);
    let Some(position) = audit.position else { return last_seq == 0 };
    let unread = unread_after(&audit.archive, audit.member, position.read_seq);
    position.last_seq == last_seq
        && (audit.read_acked..=audit.read_sent).contains(&position.read_seq)
        && position.unread == unread
        && audit.unread_http == unread
}

/// A connection on which one command at a time is asked.
struct Line {
    stream: tokio::net::TcpStream,
    received: BytesMut,
}

impl Line {
    async fn read_all(&mut self, chapter: &Chapter, terms: &Terms) -> anyhow::Result<Vec<Entry>> {
        let mut entries: Vec<Entry> = Vec::new();
        loop {
            let after_seq = entries.last().map_or(0, |entry| entry.seq);
            let conversation_id = chapter.id.clone();
            let history =
                History { conversation_id, after_seq: Some(after_seq), page_size: PAGE, ..History::default() };
            let reply = timeout(ANSWER_DEADLINE, self.ask(&history)).await.context("History is not answered")??;
            entries.extend(reply.messages.iter().map(|message| entry(terms, &chapter.users, message, Via::Answer)));
            if !reply.more {
                return Ok(entries);
            }
            if entries.last().map_or(0, |entry| entry.seq) <= after_seq {
                bail!("{}: a page after {after_seq} says that there is more and holds nothing later", chapter.id);
            }
        }
    }

    async fn ask(&mut self, history: &History) -> anyhow::Result<HistoryReply> {
        let mut out = BytesMut::new();
        put_message(&mut out, Kind::History, 1, history);
        self.stream.write_all(&out).await?;
        loop {
            let mut bytes = self.received.split().freeze();
            let frame: Option<Frame> = next_frame(&mut bytes, FRAME_BYTES_MAX_DEFAULT)?;
            self.received.extend_from_slice(&bytes);
            let Some(frame) = frame else {
                if self.stream.read_buf(&mut self.received).await? == 0 {
                    bail!("closed");
                }
                continue;
            };
            match frame.kind() {
                Some(Kind::HistoryReply) => return Ok(frame.decode()?),
                Some(Kind::Error) => {
                    let error: Error = frame.decode()?;
                    bail!("History was answered {} {}", error.code().as_str_name(), error.text);
                }
                _ => {}
            }
        }
    }
}
