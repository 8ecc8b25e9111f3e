//! What the client knows: its conversations, what it has shown of them, and what it still has to send.
//!
//! In go replies, pushes, the user's wishes and the time; out come [`Ask`]s for the connection and [`Line`]s for the screen.
//! No I/O and no clock. Must always hold: a message is shown once, in the order of its conversation, whatever is repeated,
//! missed or delayed ("Staying in sync" of `proto/PROTOCOL.md`); a message to send is kept until it is acknowledged or
//! refused for good, and repeated with the same `client_msg_id`.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::time::{Duration, Instant};

use bytes::Bytes;
use tidegate_proto::v1::{self, Code};

use super::conversation::{Conversation, OPENING_PAGE, Step};
use super::line::{Line, Part, Place, Said, escape};
use super::outbox::{Outbox, OutboxNews};

/// How long after joining a room the connection may not know of it yet.
const SETTLING: Duration = Duration::from_secs(5);

/// An acknowledged message is waited for so long on the screen.
const OWN_PUSH_TIMEOUT: Duration = Duration::from_secs(2);

/// Own messages remembered for their acknowledgement that may come later.
const OWN_SEEN_MAX: usize = 64;

/// A command for the connection, to be repeated back with its reply.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ask {
    /// Say something.
    Send {
        /// The idempotency key.
        client_msg_id: Bytes,
        /// Where.
        conversation: String,
        /// What.
        body: Bytes,
    },
    /// Move watermarks.
    Receipt {
        /// Where.
        conversation: String,
        /// Up to where messages arrived here.
        delivered: u64,
        /// Up to where the user has read.
        read: u64,
    },
    /// Fetch a page.
    History {
        /// Of which conversation.
        conversation: String,
        /// Which part of it.
        range: Range,
    },
    /// Begin to watch lobbies.
    Watch(Vec<String>),
}

/// A part of a conversation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Range {
    /// The newest of a conversation of which nothing is known.
    Newest(u32),
    /// So many before this sequence.
    Before(u64, u32),
    /// What follows this sequence.
    After(u64),
}

/// The reply to an [`Ask`].
#[derive(Clone, Debug)]
pub enum Answer {
    /// A message is durable.
    Sent(v1::SendAck),
    /// A page.
    History(v1::HistoryReply),
    /// Nothing but success.
    Done,
    /// It failed.
    Refused(v1::Error),
}

/// What the server says unasked.
#[derive(Clone, Debug)]
pub enum Push {
    /// A message.
    Message(v1::Message),
    /// An acknowledged message was taken back.
    SendRejected(v1::SendRejected),
    /// A watermark moved.
    ReceiptMoved(v1::ReceiptMoved),
    /// Somebody came or went.
    MembershipChanged(v1::MembershipChanged),
}

/// See the module.
#[derive(Debug)]
pub struct State {
    me: u64,
    home: String,
    current: String,
    online: bool,
    met: bool,
    conversations: HashMap<String, Conversation>,
    watched: BTreeSet<String>,
    /// The next older messages are the answer to a command.
    older_wanted: bool,
    outbox: Outbox,
    /// Own messages whose push came before their acknowledgement, and the other way round.
    own_seen: VecDeque<Bytes>,
    own_expected: BTreeMap<Bytes, Instant>,
    asks: VecDeque<Ask>,
    lines: VecDeque<Line>,
}

impl State {
    /// Knows nothing yet; begins in the lobby `home`.
    #[must_use]
    pub fn new(home: String) -> Self {
        Self {
            me: 0,
            current: home.clone(),
            watched: BTreeSet::from([home.clone()]),
            home,
            older_wanted: false,
            online: false,
            met: false,
            conversations: HashMap::new(),
            outbox: Outbox::default(),
            own_seen: VecDeque::new(),
            own_expected: BTreeMap::new(),
            asks: VecDeque::new(),
            lines: VecDeque::new(),
        }
    }

    /// Where the user is.
    #[must_use]
    pub fn current(&self) -> &str {
        &self.current
    }

    /// The lobby the user starts from.
    #[must_use]
    pub fn home(&self) -> &str {
        &self.home
    }

    /// The next command for the connection.
    pub fn next_ask(&mut self) -> Option<Ask> {
        self.asks.pop_front()
    }

    /// The next line for the screen, left in place.
    #[must_use]
    pub fn first_line(&self) -> Option<&Line> {
        self.lines.front()
    }

    /// Takes that line.
    pub fn take_line(&mut self) -> Option<Line> {
        self.lines.pop_front()
    }

    /// Shows something of the caller's after what is shown already.
    pub fn show(&mut self, line: Line) {
        self.lines.push_back(line);
    }

    /// Shows a notice.
    pub fn notice(&mut self, parts: Vec<Part>) {
        self.show(Line::Notice(parts));
    }

    /// Whether another message can be taken in.
    #[must_use]
    pub fn has_room(&self) -> bool {
        self.outbox.has_room()
    }

    /// Messages not acknowledged yet.
    #[must_use]
    pub fn unsent(&self) -> usize {
        self.outbox.len()
    }

    /// Whether nothing is under way: all sent, seen and fetched.
    #[must_use]
    pub fn is_at_rest(&self) -> bool {
        self.outbox.len() == 0
            && self.own_expected.is_empty()
            && !self.conversations.values().any(Conversation::is_busy)
    }

    /// Whether [`Self::handle_tick`] may have something to do.
    #[must_use]
    pub fn waits(&self) -> bool {
        !self.is_at_rest() || self.conversations.values().any(Conversation::owes_receipt)
    }

    /// The connection is logged in, for the first time or again.
    pub fn handle_login(&mut self, now: Instant, login: v1::LoginReply) {
        let again = std::mem::replace(&mut self.met, true);
        self.me = login.user_id;
        self.online = true;
        self.outbox.handle_online(login.max_body_bytes as usize);
        self.asks.push_back(Ask::Watch(self.watched.iter().cloned().collect()));
        for position in &login.positions {
            self.entry(&position.conversation_id).handle_position(now, position);
        }
        if again {
            // Positions do not speak of lobbies.
            for lobby in &self.watched {
                if let Some(conversation) = self.conversations.get_mut(lobby) {
                    conversation.fetch_newer(now);
                }
            }
            login.recent.into_iter().for_each(|message| self.handle_message(now, message));
        } else {
            self.show_missed(login.recent);
        }
        if !again {
            let home = self.home.clone();
            self.open(now, &home);
        }
        self.handle_tick(now);
    }

    /// The connection is gone; what it was asked is unanswered for ever.
    pub fn handle_lost(&mut self, now: Instant) {
        self.online = false;
        self.asks.clear();
        self.outbox.handle_lost();
        self.own_expected.clear();
        self.conversations.values_mut().for_each(|conversation| conversation.handle_lost(now));
    }

    /// Messages and counts of the time before the first login.
    fn show_missed(&mut self, recent: Vec<v1::Message>) {
        let missed = recent.into_iter().filter(|message| {
            let read = self.conversations.get(&message.conversation_id).map_or(0, |c| c.read());
            message.sender_id != self.me && message.seq > read
        });
        let missed: Vec<_> = missed.collect();
        if !missed.is_empty() {
            self.notice(vec!["while you were away:".into()]);
        }
        for message in missed {
            self.lines.push_back(Line::Said(Said::new(&message, true)));
            self.entry(&message.conversation_id.clone()).handle_shown_before(&message);
        }
        let mut unread: Vec<_> =
            self.conversations.iter().filter(|(_, c)| c.unread() > 0).map(|(id, c)| (id.clone(), c.unread())).collect();
        if unread.is_empty() {
            return;
        }
        unread.sort_unstable_by_key(|(_, count)| std::cmp::Reverse(*count));
        let mut parts = vec!["unread: ".into()];
        for (index, (id, count)) in unread.into_iter().enumerate() {
            let comma = if index > 0 { ", " } else { "" };
            parts.extend([comma.into(), Part::Title(id), format!(" {count}").into()]);
        }
        parts.push(" (/open NAME)".into());
        self.notice(parts);
    }

    /// Something arrived unasked.
    pub fn handle_push(&mut self, now: Instant, push: Push) {
        match push {
            Push::Message(message) => self.handle_message(now, message),
            Push::SendRejected(rejected) => {
                self.own_expected.remove(&rejected.message_id);
                let place = Part::Title(rejected.conversation_id);
                self.notice(vec!["taken back in ".into(), place, format!(": {}", escape(&rejected.text)).into()]);
            }
            Push::ReceiptMoved(moved) if moved.user_id == self.me => {
                self.entry(&moved.conversation_id).handle_read_elsewhere(moved.read_seq);
            }
            Push::ReceiptMoved(_) => {}
            Push::MembershipChanged(changed) => self.handle_membership(now, changed),
        }
    }

    fn handle_membership(&mut self, now: Instant, changed: v1::MembershipChanged) {
        let id = changed.conversation_id;
        if changed.user_id == self.me {
            if changed.joined {
                self.entry(&id).settle();
            } else if !self.conversations.get(&id).is_some_and(|c| c.is_settling(now)) {
                self.forget(now, &id);
            }
            return;
        }
        let what = if changed.joined { " has joined " } else { " has left " };
        self.notice(vec![Part::User(changed.user_id), what.into(), Part::Title(id)]);
    }

    fn handle_message(&mut self, now: Instant, message: v1::Message) {
        if message.sender_id == self.me {
            self.note_own(&message.message_id);
        }
        let id = message.conversation_id.clone();
        let steps = self.entry(&id).handle_message(now, message);
        self.follow(&id, steps);
        self.pump(now);
    }

    /// An own message was seen: nobody has to wait for it.
    fn note_own(&mut self, message_id: &Bytes) {
        if self.own_expected.remove(message_id).is_none() {
            if self.own_seen.len() == OWN_SEEN_MAX {
                self.own_seen.pop_front();
            }
            self.own_seen.push_back(message_id.clone());
        }
    }

    /// The reply to `ask`.
    pub fn handle_answer(&mut self, now: Instant, ask: Ask, answer: Answer) {
        match (ask, answer) {
            (Ask::Send { client_msg_id, .. }, Answer::Sent(ack)) => {
                let is_news = self.outbox.handle_ack(&client_msg_id);
                if is_news && !self.own_seen.contains(&ack.message_id) {
                    self.own_expected.insert(ack.message_id, now);
                }
            }
            (Ask::Send { client_msg_id, conversation, .. }, Answer::Refused(error)) => {
                let settling = self.conversations.get(&conversation).is_some_and(|c| c.is_settling(now));
                let patience = settling && error.code() == Code::NotMember;
                let news = self.outbox.handle_refused(now, &client_msg_id, &error, patience);
                self.tell(news);
            }
            (Ask::History { conversation, range }, Answer::History(reply)) => {
                let own: Vec<_> = reply.messages.iter().filter(|m| m.sender_id == self.me).collect();
                own.iter().for_each(|message| self.note_own(&message.message_id));
                let steps = self.entry(&conversation).handle_history(now, range, reply);
                self.follow(&conversation, steps);
            }
            (Ask::History { conversation, .. }, Answer::Refused(error)) => {
                self.handle_no_history(now, &conversation, &error)
            }
            (Ask::Watch(_), Answer::Refused(error)) => {
                self.notice(vec![format!("the lobby cannot be watched: {}", escape(&error.text)).into()]);
            }
            // Watermarks only move forward: the next receipt makes up for one that was refused.
            _ => {}
        }
        self.pump(now);
    }

    fn handle_no_history(&mut self, now: Instant, id: &str, error: &v1::Error) {
        let conversation = self.entry(id);
        let patience = conversation.is_settling(now) && error.code() == Code::NotMember;
        if error.code().may_retry() || patience {
            conversation.fetch_later(now, u64::from(error.retry_after_ms));
            return;
        }
        conversation.give_up_fetching();
        let place = Part::Title(id.to_owned());
        self.notice(vec!["nothing of ".into(), place, format!(" can be shown: {}", escape(&error.text)).into()]);
        if matches!(error.code(), Code::NotMember | Code::UnknownUser | Code::BadConversation) {
            self.forget(now, id);
        }
    }

    /// The user says `text` in `conversation`.
    pub fn say(&mut self, now: Instant, conversation: &str, client_msg_id: Bytes, text: &str) {
        let news = self.outbox.put(now, client_msg_id, conversation, text);
        self.tell(news);
        self.pump(now);
    }

    /// The user goes to a conversation.
    pub fn open(&mut self, now: Instant, id: &str) {
        id.clone_into(&mut self.current);
        self.older_wanted = false;
        if Place::of(id) == Place::Lobby && self.watched.insert(id.to_owned()) {
            self.asks.push_back(Ask::Watch(vec![id.to_owned()]));
        }
        self.notice(vec!["you are in ".into(), Part::Title(id.to_owned())]);
        self.entry(id).open(now);
        self.pump(now);
    }

    /// The user has joined a room and goes there.
    pub fn enter(&mut self, now: Instant, id: &str) {
        self.entry(id).settle_until(now + SETTLING);
        self.open(now, id);
    }

    /// The user has left a room, or was never in it.
    pub fn forget(&mut self, now: Instant, id: &str) {
        let known = self.conversations.remove(id).is_some();
        if known && self.current == id {
            let home = self.home.clone();
            self.open(now, &home);
        }
    }

    /// The user wants older messages of the current conversation.
    pub fn show_older(&mut self, now: Instant, count: u32) {
        let current = self.current.clone();
        if !self.entry(&current).fetch_older(now, count) {
            self.notice(vec!["there is nothing older".into()]);
        } else {
            self.older_wanted = true;
        }
        self.pump(now);
    }

    /// The rooms among the conversations.
    pub fn rooms(&self) -> impl Iterator<Item = &str> {
        self.conversations.keys().map(String::as_str).filter(|id| matches!(Place::of(id), Place::Room(_)))
    }

    /// The conversations, those with unread messages first.
    #[must_use]
    pub fn list(&self) -> Vec<Line> {
        let mut all: Vec<_> = self.conversations.iter().collect();
        all.sort_unstable_by_key(|(id, c)| (std::cmp::Reverse(c.unread()), *id));
        let line = |(id, conversation): (&String, &Conversation)| {
            let here = if *id == self.current { "> " } else { "  " };
            let number = match Place::of(id) {
                Place::Room(room) => format!("  (room {room})"),
                Place::Private(..) => "  (private)".to_owned(),
                Place::Lobby => String::new(),
            };
            let unread = match conversation.unread() {
                0 => String::new(),
                count => format!("  {count} unread"),
            };
            Line::Output(vec![here.into(), Part::Title(id.clone()), format!("{number}{unread}").into()])
        };
        all.into_iter().map(line).collect()
    }

    /// Does what is due at `now`.
    pub fn handle_tick(&mut self, now: Instant) {
        self.own_expected.retain(|_, since| now.saturating_duration_since(*since) < OWN_PUSH_TIMEOUT);
        let news = self.outbox.handle_tick(now);
        self.tell(news);
        self.pump(now);
    }

    /// Turns what is due into asks.
    fn pump(&mut self, now: Instant) {
        if !self.online {
            return;
        }
        self.asks.extend(self.outbox.due(now));
        for (id, conversation) in &mut self.conversations {
            if let Some(range) = conversation.due_fetch(now) {
                self.asks.push_back(Ask::History { conversation: id.clone(), range });
            }
            if Place::of(id) != Place::Lobby
                && let Some((delivered, read)) = conversation.due_receipt(now)
            {
                self.asks.push_back(Ask::Receipt { conversation: id.clone(), delivered, read });
            }
        }
    }

    fn tell(&mut self, news: Option<OutboxNews>) {
        if let Some(OutboxNews { what, text }) = news {
            self.notice(vec![what.into(), escape(&text).into()]);
        }
    }

    /// Shows what a conversation decided to show.
    fn follow(&mut self, id: &str, steps: Vec<Step>) {
        let here = self.current == id;
        for step in steps {
            match step {
                Step::Show(message) => {
                    self.lines.push_back(Line::Said(Said::new(&message, !here)));
                    let own = message.sender_id == self.me;
                    self.entry(id).handle_shown(message.seq, here, own);
                }
                Step::Older(messages) => {
                    if here && self.older_wanted {
                        self.older_wanted = false;
                        self.notice(vec![format!("{} older messages:", messages.len()).into()]);
                    }
                    self.lines.extend(messages.iter().map(|message| Line::Said(Said::new(message, !here))));
                    if here {
                        self.entry(id).handle_read_here();
                    }
                }
                Step::Skipped(count) => {
                    let place = Part::Title(id.to_owned());
                    self.notice(vec![
                        format!("{count} messages were missed in ").into(),
                        place,
                        "; /history shows them".into(),
                    ]);
                }
                Step::Lost(count) => {
                    let place = Part::Title(id.to_owned());
                    self.notice(vec![format!("{count} messages cannot be fetched in ").into(), place]);
                }
            }
        }
    }

    fn entry(&mut self, id: &str) -> &mut Conversation {
        if !self.conversations.contains_key(id) {
            self.conversations.insert(id.to_owned(), Conversation::new(Place::of(id)));
        }
        self.conversations.get_mut(id).expect("was inserted if it was not there")
    }
}

#[cfg(test)]
#[path = "state_tests.rs"]
mod tests;

const _: () = assert!(OPENING_PAGE <= tidegate_proto::limits::HISTORY_PAGE_MAX);
