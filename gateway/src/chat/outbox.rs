//! Messages on their way: kept until they are acknowledged or refused for good.
//!
//! In go texts and replies, out come Sends and news for the user. Must always hold: one message of a conversation is under way
//! at a time, so that a repetition never overtakes or is overtaken, and one that has to wait holds up no other conversation;
//! every repetition carries the same `client_msg_id`, conversation and body ("Sending so that nothing is lost" of
//! `proto/PROTOCOL.md`).

use std::collections::{HashSet, VecDeque};
use std::time::{Duration, Instant};

use bytes::Bytes;
use tidegate_proto::v1::{self, Code};

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
    /// The user knows that it has to wait for the server's limit.
    told_slow: bool,
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
        self.waiting.iter_mut().for_each(|message| message.due = message.since);
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
            told_slow: false,
            tries: 0,
            due: now,
        });
        None
    }

    /// A Send that is due. It is due again when its reply is overdue.
    pub fn due(&mut self, now: Instant) -> Option<Ask> {
        if !self.online {
            return None;
        }
        let place = self.first_where(|message| message.due <= now)?;
        let message = &mut self.waiting[place];
        message.due = now + REPLY_TIMEOUT;
        Some(Ask::Send {
            client_msg_id: message.client_msg_id.clone(),
            conversation: message.conversation.clone(),
            body: message.body.clone(),
        })
    }

    /// Among the first of each conversation, the others of which wait behind it.
    fn first_where(&self, is_wanted: impl Fn(&Outgoing) -> bool) -> Option<usize> {
        let mut seen = HashSet::new();
        self.waiting.iter().position(|message| seen.insert(&message.conversation) && is_wanted(message))
    }

    fn place_of(&self, client_msg_id: &Bytes) -> Option<usize> {
        self.first_where(|message| message.client_msg_id == *client_msg_id)
    }

    /// Whether this was news: a repetition is acknowledged, too.
    pub fn handle_ack(&mut self, client_msg_id: &Bytes) -> bool {
        self.place_of(client_msg_id).and_then(|place| self.waiting.remove(place)).is_some()
    }

    /// The server would not take the message now, or ever; `patience` makes "ever" into "now".
    pub fn handle_refused(
        &mut self,
        now: Instant,
        client_msg_id: &Bytes,
        error: &v1::Error,
        patience: bool,
    ) -> Option<OutboxNews> {
        let place = self.place_of(client_msg_id)?;
        if error.code().may_retry() || patience {
            let message = &mut self.waiting[place];
            let delay_ms = (RETRY_DELAY_MS_MIN << message.tries.min(8)).min(RETRY_DELAY_MS_MAX);
            let delay = Duration::from_millis(delay_ms.max(error.retry_after_ms.into()));
            message.tries += 1;
            message.due = now + delay;
            let is_news = error.code() == Code::SlowDown && !std::mem::replace(&mut message.told_slow, true);
            // Said once, and there is nothing else to worry about.
            message.told |= is_news;
            let what = || format!("{}; sent again in {}: ", super::line::escape(&error.text), seconds(delay));
            return is_news.then(|| OutboxNews { what: what(), text: excerpt(&message.body) });
        }
        let refused = self.waiting.remove(place)?;
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

/// A wait as people read it: tenths below ten seconds.
fn seconds(wait: Duration) -> String {
    if wait < Duration::from_secs(10) {
        format!("{:.1} s", wait.as_secs_f64())
    } else {
        format!("{} s", wait.as_millis().div_ceil(1000))
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
    fn a_message_that_waits_holds_up_its_own_conversation_only() {
        let (mut outbox, now) = online();
        for (id, place) in [("a", "r_1"), ("b", "r_1"), ("c", "p_1_2")] {
            outbox.put(now, key(id), place, id);
        }
        assert_eq!(sent(outbox.due(now)), Some(key("a")));
        outbox.handle_refused(now, &key("a"), &error(Code::SlowDown, 30_000), false);
        assert_eq!(sent(outbox.due(now)), Some(key("c")));
        assert_eq!(sent(outbox.due(now)), None, "in its order");
        assert!(outbox.handle_ack(&key("c")));
        assert_eq!(outbox.handle_tick(now + WORRY_AFTER).map(|news| news.text), Some("b".to_owned()));
        let later = now + Duration::from_secs(30);
        assert_eq!(sent(outbox.due(later)), Some(key("a")));
        assert!(outbox.handle_ack(&key("a")));
        assert_eq!(sent(outbox.due(later)), Some(key("b")));
    }

    #[test]
    fn waits_are_said_in_seconds() {
        assert_eq!(
            [40, 1_500, 9_990, 29_001].map(|ms| seconds(Duration::from_millis(ms))),
            ["0.0 s", "1.5 s", "10.0 s", "30 s"]
        );
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
        let news = outbox.handle_refused(now, &key("a"), &error(Code::SlowDown, 700), false).unwrap();
        assert_eq!((news.what.as_str(), news.text.as_str()), ("because; sent again in 0.7 s: ", "one"));
        assert_eq!(outbox.handle_refused(now, &key("a"), &error(Code::SlowDown, 700), false), None, "said once");
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
