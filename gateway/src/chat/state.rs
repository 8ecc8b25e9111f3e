//! What the client knows: its conversations, what it has shown of them, and what it still has to send.
//!
//! In go replies, pushes, the user's wishes and the time; out come [`Ask`]s for the connection and [`Line`]s for the screen.
//! No I/O and no clock. Must always hold: a message is shown once, in the order of its conversation, whatever is repeated,
//! missed or delayed ("Staying in sync" of `proto/PROTOCOL.md`); a message to send is kept until it is acknowledged or
//! refused for good, and repeated with the same `client_msg_id`.

mod storm;
mod sync;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::{Duration, Instant};

use bytes::Bytes;
use tidegate_proto::limits::{SYNC_POSITIONS_MAX, WATCHES_MAX};
use tidegate_proto::v1::{self, Code, SyncOutcome};

use super::ask::{Answer, Ask, Push, Standing};
use super::conversation::storm::{Phase, Weather};
use super::conversation::{Conversation, OPENING_PAGE, Step, Want};
use super::line::{Line, Part, Place, Said, escape};
use super::outbox::{Outbox, OutboxNews};

/// How long after joining a room the connection may not know of it yet.
const SETTLING: Duration = Duration::from_secs(5);

/// An acknowledged message is waited for so long on the screen; a spread of a storm is shorter.
const OWN_PUSH_TIMEOUT: Duration = Duration::from_secs(3);

/// Own messages remembered for their acknowledgement that may come later.
const OWN_SEEN_MAX: usize = 64;

/// An own message that was acknowledged and is not on the screen.
#[derive(Debug)]
struct Expected {
    since: Instant,
    conversation: String,
    body: Bytes,
}

/// See the module.
#[derive(Debug)]
pub struct State {
    me: u64,
    home: String,
    current: String,
    online: bool,
    met: bool,
    /// To go on with after a reconnect.
    session: u64,
    /// When this connection pulls; none before the first.
    phase: Option<Phase>,
    /// When to ask which conversations there are besides those known.
    others_at: Option<Instant>,
    conversations: BTreeMap<String, Conversation>,
    watched: BTreeSet<String>,
    /// The next older messages are the answer to a command.
    older_wanted: bool,
    outbox: Outbox,
    /// Own messages whose push came before their acknowledgement, and the other way round.
    own_seen: VecDeque<Bytes>,
    own_expected: BTreeMap<Bytes, Expected>,
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
            session: 0,
            phase: None,
            others_at: None,
            conversations: BTreeMap::new(),
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
            && self.others_at.is_none()
            && !self.conversations.values().any(Conversation::is_busy)
    }

    /// Whether [`Self::handle_tick`] may have something to do.
    #[must_use]
    pub fn waits(&self) -> bool {
        !self.is_at_rest() || self.conversations.values().any(|c| c.owes_receipt() || c.waits())
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
            let read = self.conversations.get(&message.conversation_id).map_or(0, |c| c.marks().read());
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
        let counts = self.conversations.iter().map(|(id, c)| (id.clone(), c.marks().unread()));
        let mut unread: Vec<_> = counts.filter(|(_, count)| *count > 0).collect();
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
            Push::Messages(messages) => self.handle_messages(now, messages),
            Push::Notice(notice) => self.handle_notice(now, &notice),
            Push::GearChanged(changed) => self.handle_gear(now, &changed),
            Push::SendRejected(rejected) => {
                self.own_expected.remove(&rejected.message_id);
                let place = Part::Title(rejected.conversation_id);
                self.notice(vec!["taken back in ".into(), place, format!(": {}", escape(&rejected.text)).into()]);
            }
            Push::ReceiptMoved(moved) if moved.user_id == self.me => {
                self.entry(&moved.conversation_id).handle_read_elsewhere(moved.read_seq);
            }
            Push::ReceiptMoved(moved) => self.handle_other_moved(&moved),
            Push::Behind(behind, wait) => {
                self.handle_behind(&behind, now + wait);
                self.pump(now);
            }
            Push::MembershipChanged(changed) => self.handle_membership(now, changed),
        }
    }

    /// Somebody else's watermark. In private it says what became of the user's messages.
    fn handle_other_moved(&mut self, moved: &v1::ReceiptMoved) {
        let id = &moved.conversation_id;
        if !matches!(Place::of(id), Place::Private(..)) {
            return;
        }
        let all_read = self.entry(id).handle_other(moved.delivered_seq, moved.read_seq);
        if all_read && self.current == *id {
            self.notice(vec![Part::User(moved.user_id), " has read it".into()]);
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

    fn note_own_among(&mut self, messages: &[v1::Message]) {
        let me = self.me;
        messages.iter().filter(|m| m.sender_id == me).for_each(|m| self.note_own(&m.message_id));
    }

    /// The reply to `ask`.
    pub fn handle_answer(&mut self, now: Instant, ask: Ask, answer: Answer) {
        match (ask, answer) {
            (Ask::Send { client_msg_id, conversation, body }, Answer::Sent(ack)) => {
                let is_news = self.outbox.handle_ack(&client_msg_id);
                if is_news && !self.own_seen.contains(&ack.message_id) {
                    self.own_expected.insert(ack.message_id, Expected { since: now, conversation, body });
                }
            }
            (Ask::Send { client_msg_id, conversation, .. }, Answer::Refused(error)) => {
                let settling = self.conversations.get(&conversation).is_some_and(|c| c.is_settling(now));
                let patience = settling && error.code() == Code::NotMember;
                let news = self.outbox.handle_refused(now, &client_msg_id, &error, patience);
                self.tell(news);
            }
            (Ask::History { conversation, range }, Answer::History(reply)) => {
                self.note_own_among(&reply.messages);
                self.handle_watermarks(&conversation, &reply.watermarks);
                let steps = self.entry(&conversation).handle_history(now, range, reply);
                self.follow(&conversation, steps);
            }
            (Ask::Sync(asked), Answer::Synced(reply)) => self.handle_sync_reply(now, &asked, reply),
            (Ask::Pull(asked), Answer::Pulled(reply)) => self.handle_pulled(now, &asked, reply),
            (Ask::Pull(asked), Answer::Refused(error)) => self.handle_no_pull(now, &asked, &error),
            (Ask::Sync(asked), Answer::Refused(error)) => self.handle_no_sync(now, &asked, &error),
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

    /// Of a private conversation: how far the other side is.
    fn handle_watermarks(&mut self, id: &str, watermarks: &[v1::Watermark]) {
        let me = self.me;
        for mark in watermarks.iter().filter(|mark| mark.user_id != me) {
            self.entry(id).handle_other(mark.delivered_seq, mark.read_seq);
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
        all.sort_unstable_by_key(|(id, c)| (std::cmp::Reverse(c.marks().unread()), *id));
        let line = |(id, conversation): (&String, &Conversation)| {
            let here = if *id == self.current { "> " } else { "  " };
            let number = match Place::of(id) {
                Place::Room(room) => format!("  (room {room})"),
                Place::Private(..) => "  (private)".to_owned(),
                Place::Lobby => String::new(),
            };
            let unread = match (conversation.marks().unread(), Place::of(id)) {
                (0, Place::Private(..)) => match conversation.marks().own_is() {
                    "" => String::new(),
                    own_is => format!("  yours: {own_is}"),
                },
                (0, _) => String::new(),
                (count, _) => format!("  {count} unread"),
            };
            Line::Output(vec![here.into(), Part::Title(id.clone()), format!("{number}{unread}").into()])
        };
        all.into_iter().map(line).collect()
    }

    /// Does what is due at `now`.
    pub fn handle_tick(&mut self, now: Instant) {
        self.give_up_own(now);
        let news = self.outbox.handle_tick(now);
        self.tell(news);
        self.pump(now);
    }

    /// Own messages that did not come onto the screen. In a storm they were left out with others, and their text is gone
    /// from the line it was typed in: it is shown now.
    fn give_up_own(&mut self, now: Instant) {
        let is_late = |expected: &Expected| now.saturating_duration_since(expected.since) >= OWN_PUSH_TIMEOUT;
        let late: Vec<_> = self.own_expected.extract_if(.., |_, expected| is_late(expected)).collect();
        for (message_id, Expected { conversation, body, .. }) in late {
            if self.conversations.get(&conversation).is_some_and(Conversation::is_stormy) {
                let text = escape(&String::from_utf8_lossy(&body));
                self.note_own(&message_id);
                self.notice(vec!["yours was sent, and left out here with others: ".into(), text.into()]);
            }
        }
    }

    /// Turns what is due into asks.
    fn pump(&mut self, now: Instant) {
        if !self.online {
            return;
        }
        while let Some(send) = self.outbox.due(now) {
            self.asks.push_back(send);
        }
        let (mut missing, mut pulls) = (Vec::new(), Vec::new());
        for (id, conversation) in &mut self.conversations {
            match conversation.due_want(now) {
                Some(Want::Page(range)) => self.asks.push_back(Ask::History { conversation: id.clone(), range }),
                Some(Want::Missing) => missing.push(id.clone()),
                Some(want @ (Want::Pull | Want::Fill)) => pulls.push((id.clone(), want)),
                None => {}
            }
            if let Some((delivered, read)) = conversation.due_receipt(now) {
                self.asks.push_back(Ask::Receipt { conversation: id.clone(), delivered, read });
            }
        }
        self.ask_what_is_missing(now, &missing);
        pulls.iter().for_each(|(id, want)| self.ask_pull(id, *want));
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
                Step::Ahead(message) => self.lines.push_back(Line::Said(Said::new(&message, !here))),
                Step::Passed(seq) => self.entry(id).handle_shown(seq, here, false),
                Step::LeftOut { count, after, before } => {
                    self.show_left_out(id, count, here);
                    self.entry(id).handle_left_out(after, before);
                }
                Step::Weather(weather) => self.tell_weather(id, Some(weather)),
                Step::Filled(messages) => self.show_filled(id, &messages, here),
                Step::Older(messages) => {
                    if here && self.older_wanted {
                        self.older_wanted = false;
                        self.notice(vec![format!("{} older messages:", messages.len()).into()]);
                    }
                    self.lines.extend(messages.iter().map(|message| Line::Said(Said::new(message, !here))));
                    if let Some(own) = messages.iter().rfind(|message| message.sender_id == self.me) {
                        self.entry(id).handle_own(own.seq);
                    }
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
mod seeded_tests;
#[cfg(test)]
#[path = "state_tests.rs"]
mod tests;

const _: () = assert!(OPENING_PAGE <= tidegate_proto::limits::HISTORY_PAGE_MAX);
