//! Messages on their way: kept until they are acknowledged or refused for good.
//!
//! In go texts and replies, out come Sends and news for the user. Must always hold: one message is under way at a time, so
//! that a repetition never overtakes or is overtaken; every repetition carries the same `client_msg_id`, conversation and
//! body ("Sending so that nothing is lost" of `proto/PROTOCOL.md`).

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use bytes::Bytes;
use tidegate_proto::v1;

use super::ask::Ask;

/// Messages waiting at most; the keyboard, or the pipe, waits beyond.
const WAITING_MAX: usize = 256;

/// Without a reply for so long, a Send is repeated.
const REPLY_TIMEOUT: Duration = Duration::from_secs(10);

/// Without an acknowledgement for so long, the user is told.
const WORRY_AFTER: Duration = Duration::from_secs(2);

/// Delays between repetitions: the first, and the longest.
const RETRY_DELAY_MS_MIN: u64 = 200;
const RETRY_DELAY_MS_MAX: u64 = 5_000;

/// Characters of a message that a notice repeats.
const EXCERPT_CHARS: usize = 60;

/// One message.
#[derive(Debug)]
struct Outgoing {
    client_msg_id: Bytes,
    conversation: String,
    body: Bytes,
    since: Instant,
    told: bool,
    tries: u32,
    /// When it may be sent (again), or when its reply is overdue.
    due: Instant,
}

/// Something to tell the user about a message of theirs; `text` is not escaped.
#[derive(Debug, PartialEq, Eq)]
pub struct OutboxNews {
    /// What happened.
    pub what: String,
    /// To what.
    pub text: String,
}

/// See the module.
#[derive(Debug)]
pub struct Outbox {
    waiting: VecDeque<Outgoing>,
    online: bool,
    body_bytes_max: usize,
}

impl Default for Outbox {
    fn default() -> Self {
        Self { waiting: VecDeque::new(), online: false, body_bytes_max: usize::MAX }
    }
}

impl Outbox {
    /// Messages not acknowledged yet.
    pub fn len(&self) -> usize {
        self.waiting.len()
    }

    /// Whether another message fits.
    pub fn has_room(&self) -> bool {
        self.waiting.len() < WAITING_MAX
    }

    /// A connection takes Sends from now on.
    pub fn handle_online(&mut self, body_bytes_max: usize) {
        self.online = true;
        self.body_bytes_max = body_bytes_max;
    }

    /// No connection: what was under way is repeated on the next.
    pub fn handle_lost(&mut self) {
        self.online = false;
        if let Some(first) = self.waiting.front_mut() {
            first.due = first.since;
        }
    }

    /// Takes a message in, unless it can never be sent.
    pub fn put(&mut self, now: Instant, client_msg_id: Bytes, conversation: &str, text: &str) -> Option<OutboxNews> {
        if text.len() > self.body_bytes_max {
            let what = format!("not sent, longer than {} bytes: ", self.body_bytes_max);
            return Some(OutboxNews { what, text: excerpt(text.as_bytes()) });
        }
        self.waiting.push_back(Outgoing {
            client_msg_id,
            conversation: conversation.to_owned(),
            body: Bytes::copy_from_slice(text.as_bytes()),
            since: now,
            told: false,
            tries: 0,
            due: now,
        });
        None
    }

    /// The Send that is due. It is due again when its reply is overdue.
    pub fn due(&mut self, now: Instant) -> Option<Ask> {
        let first = self.waiting.front_mut().filter(|first| self.online && first.due <= now)?;
        first.due = now + REPLY_TIMEOUT;
        Some(Ask::Send {
            client_msg_id: first.client_msg_id.clone(),
            conversation: first.conversation.clone(),
            body: first.body.clone(),
        })
    }

    /// Whether this was news: a repetition is acknowledged, too.
    pub fn handle_ack(&mut self, client_msg_id: &Bytes) -> bool {
        let news = self.waiting.front().is_some_and(|first| first.client_msg_id == *client_msg_id);
        if news {
            self.waiting.pop_front();
        }
        news
    }

    /// The server would not take the message now, or ever; `patience` makes "ever" into "now".
    pub fn handle_refused(
        &mut self,
        now: Instant,
        client_msg_id: &Bytes,
        error: &v1::Error,
        patience: bool,
    ) -> Option<OutboxNews> {
        let first = self.waiting.front_mut().filter(|first| first.client_msg_id == *client_msg_id)?;
        if error.code().may_retry() || patience {
            let delay_ms = (RETRY_DELAY_MS_MIN << first.tries.min(8)).min(RETRY_DELAY_MS_MAX);
            first.tries += 1;
            first.due = now + Duration::from_millis(delay_ms.max(error.retry_after_ms.into()));
            return None;
        }
        let refused = self.waiting.pop_front()?;
        Some(OutboxNews {
            what: format!("not sent, {}: ", super::line::escape(&error.text)),
            text: excerpt(&refused.body),
        })
    }

    /// Tells of a message that waits for long.
    pub fn handle_tick(&mut self, now: Instant) -> Option<OutboxNews> {
        let first = self.waiting.iter_mut().find(|message| !message.told)?;
        if now.saturating_duration_since(first.since) < WORRY_AFTER {
            return None;
        }
        first.told = true;
        let what = if self.online { "not acknowledged yet: " } else { "kept until the connection is back: " };
        Some(OutboxNews { what: what.to_owned(), text: excerpt(&first.body) })
    }
}

fn excerpt(body: &[u8]) -> String {
    let text = String::from_utf8_lossy(body);
    match text.char_indices().nth(EXCERPT_CHARS) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.into_owned(),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed test may panic")]

    use super::*;
    use tidegate_proto::v1::Code;

    fn key(text: &'static str) -> Bytes {
        Bytes::from_static(text.as_bytes())
    }

    fn online() -> (Outbox, Instant) {
        let mut outbox = Outbox::default();
        outbox.handle_online(100);
        (outbox, Instant::now())
    }

    fn error(code: Code, retry_after_ms: u32) -> v1::Error {
        v1::Error { code: code.into(), text: "because".into(), retry_after_ms }
    }

    fn sent(ask: Option<Ask>) -> Option<Bytes> {
        ask.map(|ask| match ask {
            Ask::Send { client_msg_id, .. } => client_msg_id,
            other => panic!("not a Send: {other:?}"),
        })
    }

    #[test]
    fn one_message_is_under_way_at_a_time() {
        let (mut outbox, now) = online();
        assert_eq!(outbox.put(now, key("a"), "r_1", "one"), None);
        assert_eq!(outbox.put(now, key("b"), "r_1", "two"), None);
        assert_eq!(sent(outbox.due(now)), Some(key("a")));
        assert_eq!(sent(outbox.due(now)), None);
        assert!(!outbox.handle_ack(&key("b")), "not under way");
        assert!(outbox.handle_ack(&key("a")));
        assert!(!outbox.handle_ack(&key("a")), "a repetition's ack");
        assert_eq!(sent(outbox.due(now)), Some(key("b")));
    }

    #[test]
    fn what_is_not_acknowledged_is_repeated_under_the_same_key() {
        let (mut outbox, now) = online();
        outbox.put(now, key("a"), "r_1", "one");
        let first = outbox.due(now);
        assert_eq!(outbox.due(now + REPLY_TIMEOUT / 2), None);
        assert_eq!(outbox.due(now + REPLY_TIMEOUT), first, "silence");
        outbox.handle_lost();
        assert_eq!(outbox.due(now + REPLY_TIMEOUT), None, "nobody to send to");
        outbox.handle_online(100);
        assert_eq!(outbox.due(now + REPLY_TIMEOUT), first, "a new connection");
    }

    #[test]
    fn a_refusal_is_waited_out_or_told() {
        let (mut outbox, now) = online();
        outbox.put(now, key("a"), "r_1", "one");
        outbox.due(now);
        assert_eq!(outbox.handle_refused(now, &key("a"), &error(Code::SlowDown, 700), false), None);
        assert_eq!(outbox.due(now + Duration::from_millis(699)), None);
        assert!(outbox.due(now + Duration::from_millis(700)).is_some());
        assert_eq!(outbox.handle_refused(now, &key("a"), &error(Code::NotMember, 0), true), None, "just joined");
        let news = outbox.handle_refused(now, &key("a"), &error(Code::NotMember, 0), false).unwrap();
        assert_eq!((news.what.as_str(), news.text.as_str()), ("not sent, because: ", "one"));
        assert_eq!(outbox.len(), 0);
        assert!(outbox.put(now, key("b"), "r_1", &"x".repeat(101)).is_some(), "too long to try");
    }

    #[test]
    fn the_user_is_told_once_of_a_message_that_waits() {
        let (mut outbox, now) = online();
        outbox.put(now, key("a"), "r_1", "one");
        assert_eq!(outbox.handle_tick(now), None);
        assert_eq!(outbox.handle_tick(now + WORRY_AFTER).unwrap().what, "not acknowledged yet: ");
        assert_eq!(outbox.handle_tick(now + WORRY_AFTER), None);
    }
}
