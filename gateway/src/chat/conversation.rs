//! One conversation as this client follows it: "Staying in sync" of `proto/PROTOCOL.md`.
//!
//! In go positions, messages and history pages, out come [`Step`]s: what to show next. Must always hold: messages are
//! shown in the order of their sequence, each once; what is not in order waits, within a bound, for the pages between.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use tidegate_proto::limits::HISTORY_PAGE_MAX;
use tidegate_proto::v1;

use super::line::Place;
use super::state::Range;

/// Messages shown when a conversation is opened: about a screen.
pub const OPENING_PAGE: u32 = 20;

/// A longer absence is not shown whole: nobody reads hundreds of lines that rush by, and `/history` has them.
const MISSED_SHOWN_MAX: u64 = 200;

/// Messages that wait for those before them; of more, only the newest sequence is remembered.
const HELD_MAX: usize = 256;

/// The archive may be a moment behind the pushes: so often, and at such intervals, it is asked for what it should have.
const FETCH_TRIES_MAX: u32 = 10;
const FETCH_DELAY: Duration = Duration::from_millis(300);

/// A page not answered for so long is asked for again.
const FETCH_TIMEOUT: Duration = Duration::from_secs(10);

/// Receipts of one conversation are at least so far apart.
const RECEIPT_INTERVAL: Duration = Duration::from_millis(500);

/// What to show next.
#[derive(Clone, Debug, PartialEq)]
pub enum Step {
    /// The next message.
    Show(v1::Message),
    /// Messages before those shown, ascending.
    Older(Vec<v1::Message>),
    /// So many were missed and are not shown.
    Skipped(u64),
    /// So many should exist and are not to be had.
    Lost(u64),
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Fetch {
    #[default]
    Idle,
    Due {
        at: Instant,
        range: Range,
        tries: u32,
    },
    Asked {
        at: Instant,
        range: Range,
        tries: u32,
    },
}

/// See the module.
#[derive(Debug)]
pub struct Conversation {
    place: Place,
    /// Whether the numbers below mean anything yet.
    known: bool,
    epoch: u32,
    /// Highest sequence shown, or where showing begins.
    last: u64,
    /// Lowest sequence shown; above `last`: none yet.
    oldest: u64,
    /// Highest sequence heard of.
    newest: u64,
    read: u64,
    unread: u32,
    /// Up to here `unread` counts already.
    counted_to: u64,
    read_sent: u64,
    delivered_sent: u64,
    receipt_not_before: Option<Instant>,
    fetch: Fetch,
    held: BTreeMap<u64, v1::Message>,
    /// The last run of messages shown out of turn, at the first login.
    run: (u64, u64),
    settling_until: Option<Instant>,
}

impl Conversation {
    /// Nothing is known of it.
    pub fn new(place: Place) -> Self {
        Self {
            place,
            known: false,
            epoch: 0,
            last: 0,
            oldest: 1,
            newest: 0,
            read: 0,
            unread: 0,
            counted_to: 0,
            read_sent: 0,
            delivered_sent: 0,
            receipt_not_before: None,
            fetch: Fetch::Idle,
            held: BTreeMap::new(),
            run: (0, 0),
            settling_until: None,
        }
    }

    /// Messages of others that the user has not read.
    pub fn unread(&self) -> u32 {
        self.unread
    }

    /// Up to where the user has read.
    pub fn read(&self) -> u64 {
        self.read
    }

    /// Whether a page is wanted or under way.
    pub fn is_busy(&self) -> bool {
        self.fetch != Fetch::Idle
    }

    /// The room was just joined: the connection may not know until then.
    pub fn settle_until(&mut self, until: Instant) {
        self.settling_until = Some(until);
    }

    /// The connection knows of the room.
    pub fn settle(&mut self) {
        self.settling_until = None;
    }

    /// Whether "not a member" may be a matter of moments.
    pub fn is_settling(&self, now: Instant) -> bool {
        self.settling_until.is_some_and(|until| now < until)
    }

    fn begin(&mut self, epoch: u32, last: u64) {
        self.known = true;
        self.epoch = epoch;
        self.last = last;
        self.oldest = last + 1;
        self.newest = self.newest.max(last);
        self.delivered_sent = last;
    }

    /// Another storage life: whatever was known of the conversation is void.
    fn restart(&mut self, epoch: u32) {
        let (fetch, settling_until) = (self.fetch, self.settling_until);
        *self = Self { known: true, epoch, fetch, settling_until, ..Self::new(self.place) };
    }

    /// Where the conversation stands, at a login.
    pub fn handle_position(&mut self, now: Instant, position: &v1::Position) {
        if !self.known {
            self.begin(position.epoch, position.last_seq);
        } else if position.epoch < self.epoch {
            return;
        } else if position.epoch > self.epoch {
            self.restart(position.epoch);
        }
        self.newest = self.newest.max(position.last_seq);
        self.read = self.read.max(position.read_seq);
        self.read_sent = position.read_seq;
        self.counted_to = position.last_seq;
        self.unread = if self.read >= position.last_seq { 0 } else { position.unread };
        if self.newest > self.last {
            self.fetch_newer(now);
        }
    }

    /// A message was shown out of turn, before the conversation is opened.
    pub fn handle_shown_before(&mut self, message: &v1::Message) {
        if !self.known {
            self.begin(message.epoch, message.seq);
        }
        let start = if self.run.1 + 1 == message.seq { self.run.0 } else { message.seq };
        self.run = (start, message.seq);
        if message.seq == self.last {
            self.oldest = start;
        }
    }

    /// A message arrived, in turn or not.
    pub fn handle_message(&mut self, now: Instant, message: v1::Message) -> Vec<Step> {
        if !self.known {
            if self.is_busy() {
                self.hold(message);
                return Vec::new();
            }
            // A private conversation is new from its first message; a room or lobby is, from when we came.
            let last = if matches!(self.place, Place::Private(..)) { 0 } else { message.seq.saturating_sub(1) };
            self.begin(message.epoch, last);
        }
        if message.epoch < self.epoch {
            return Vec::new();
        }
        if message.epoch > self.epoch {
            self.restart(message.epoch);
        }
        self.newest = self.newest.max(message.seq);
        if message.seq <= self.last {
            return Vec::new();
        }
        if message.seq == self.last + 1 && !self.is_busy() {
            return vec![self.step(message)];
        }
        self.hold(message);
        self.fetch_newer(now);
        Vec::new()
    }

    fn step(&mut self, message: v1::Message) -> Step {
        self.last = message.seq;
        Step::Show(message)
    }

    fn hold(&mut self, message: v1::Message) {
        self.newest = self.newest.max(message.seq);
        if self.held.len() < HELD_MAX {
            self.held.insert(message.seq, message);
        }
    }

    /// The page that was asked for.
    pub fn handle_history(&mut self, now: Instant, range: Range, reply: v1::HistoryReply) -> Vec<Step> {
        let tries = match self.fetch {
            Fetch::Asked { range: asked, tries, .. } if asked == range => tries,
            // It was asked for twice.
            _ => return Vec::new(),
        };
        self.fetch = Fetch::Idle;
        if self.known && reply.epoch < self.epoch {
            self.fetch_again(now, tries);
            return Vec::new();
        }
        if self.known && reply.epoch > self.epoch {
            self.restart(reply.epoch);
            self.fetch = Fetch::Idle;
        }
        self.newest = self.newest.max(reply.last_seq);
        let (before, mut steps) = (self.last, Vec::new());
        match range {
            Range::Newest(_) => {
                self.begin(reply.epoch, reply.messages.last().map_or(reply.last_seq, |message| message.seq));
                self.show_older(reply.messages, &mut steps);
            }
            Range::Before(oldest, _) if oldest == self.oldest => self.show_older(reply.messages, &mut steps),
            Range::Before(..) => {}
            Range::After(_) => {
                let missed = self.newest.saturating_sub(self.last);
                if missed > MISSED_SHOWN_MAX {
                    let skipped = missed - u64::from(OPENING_PAGE);
                    self.begin(self.epoch, self.last + skipped);
                    steps.push(Step::Skipped(skipped));
                }
                for message in reply.messages {
                    if message.seq == self.last + 1 {
                        steps.push(self.step(message));
                    }
                }
            }
        }
        self.drain_held(&mut steps);
        if self.newest > self.last {
            let got_on = self.last > before;
            if got_on && reply.more {
                self.fetch_newer(now);
            } else if got_on || tries < FETCH_TRIES_MAX {
                self.fetch_again(now, if got_on { 0 } else { tries });
            } else {
                self.go_on_without(&mut steps);
            }
        }
        steps
    }

    fn show_older(&mut self, messages: Vec<v1::Message>, steps: &mut Vec<Step>) {
        if let Some(first) = messages.first() {
            self.oldest = first.seq;
            steps.push(Step::Older(messages));
        } else {
            // Nothing is below, whatever the numbers say.
            self.oldest = self.oldest.min(1);
        }
    }

    fn drain_held(&mut self, steps: &mut Vec<Step>) {
        while let Some(entry) = self.held.first_entry() {
            let (seq, epoch) = (*entry.key(), entry.get().epoch);
            if seq > self.last + 1 && epoch == self.epoch {
                break;
            }
            let message = entry.remove();
            if seq == self.last + 1 && epoch == self.epoch {
                steps.push(self.step(message));
            }
        }
    }

    /// What lies between never came.
    fn go_on_without(&mut self, steps: &mut Vec<Step>) {
        let next = self.held.keys().next().copied().unwrap_or(self.newest + 1);
        steps.push(Step::Lost(next - self.last - 1));
        self.last = next - 1;
        self.drain_held(steps);
    }

    fn fetch_again(&mut self, now: Instant, tries: u32) {
        self.fetch = Fetch::Due { at: now + FETCH_DELAY, range: Range::After(self.last), tries: tries + 1 };
    }

    fn fetch(&mut self, now: Instant, range: Range) {
        if !self.is_busy() {
            self.fetch = Fetch::Due { at: now, range, tries: 0 };
        }
    }

    /// Fetches what follows the last shown, if it is known.
    pub fn fetch_newer(&mut self, now: Instant) {
        if self.known {
            self.fetch(now, Range::After(self.last));
        }
    }

    /// Fetches messages before the oldest shown; false if there are none.
    pub fn fetch_older(&mut self, now: Instant, count: u32) -> bool {
        let count = count.min(HISTORY_PAGE_MAX);
        if !self.known {
            self.fetch(now, Range::Newest(count));
        } else if self.oldest > 1 {
            self.fetch(now, Range::Before(self.oldest, count));
        } else {
            return false;
        }
        true
    }

    /// The page could not be had now.
    pub fn fetch_later(&mut self, now: Instant, delay_ms: u64) {
        if let Fetch::Asked { range, tries, .. } = self.fetch {
            let at = now + FETCH_DELAY.max(Duration::from_millis(delay_ms));
            self.fetch = Fetch::Due { at, range, tries };
        }
    }

    /// The page is not to be had.
    pub fn give_up_fetching(&mut self) {
        self.fetch = Fetch::Idle;
    }

    /// The connection is gone, and the question with it.
    pub fn handle_lost(&mut self, now: Instant) {
        if let Fetch::Asked { range, tries, .. } = self.fetch {
            self.fetch = Fetch::Due { at: now, range, tries };
        }
    }

    /// The page to ask for now.
    pub fn due_fetch(&mut self, now: Instant) -> Option<Range> {
        let (range, tries) = match self.fetch {
            Fetch::Due { at, range, tries } if at <= now => (range, tries),
            Fetch::Asked { at, range, tries } if at + FETCH_TIMEOUT <= now => (range, tries),
            _ => return None,
        };
        self.fetch = Fetch::Asked { at: now, range, tries };
        Some(range)
    }

    /// The user looks at the conversation.
    pub fn open(&mut self, now: Instant) {
        let nothing_shown = self.oldest > self.last;
        if !self.known || nothing_shown {
            self.fetch_older(now, OPENING_PAGE.max(self.unread.min(HISTORY_PAGE_MAX)));
        }
        self.handle_read_here();
    }

    /// A message came onto the screen; `here`: where the user looks.
    pub fn handle_shown(&mut self, seq: u64, here: bool, own: bool) {
        if own && self.read + 1 == seq {
            // Own messages are never unread: nothing to tell the server.
            let told = self.read_sent == self.read;
            self.read = seq;
            self.read_sent = if told { seq } else { self.read_sent };
            self.delivered_sent = if told { seq } else { self.delivered_sent };
        } else if here {
            self.handle_read_here();
        } else if !own && seq > self.counted_to {
            self.unread += 1;
        }
    }

    /// The user has read what is shown.
    pub fn handle_read_here(&mut self) {
        self.read = self.read.max(self.last);
        self.unread = 0;
    }

    /// The user has read on another device.
    pub fn handle_read_elsewhere(&mut self, seq: u64) {
        self.read = self.read.max(seq);
        self.read_sent = self.read_sent.max(seq);
        if self.read >= self.newest {
            self.unread = 0;
        }
    }

    /// Whether the server does not know yet what arrived or was read.
    pub fn owes_receipt(&self) -> bool {
        self.place != Place::Lobby && (self.read > self.read_sent || self.last > self.delivered_sent)
    }

    /// The watermarks to tell now: delivered and read.
    pub fn due_receipt(&mut self, now: Instant) -> Option<(u64, u64)> {
        if !self.owes_receipt() || self.receipt_not_before.is_some_and(|at| now < at) {
            return None;
        }
        self.receipt_not_before = Some(now + RECEIPT_INTERVAL);
        (self.read_sent, self.delivered_sent) = (self.read, self.last);
        Some((self.last, self.read))
    }
}

#[cfg(test)]
#[path = "conversation_tests.rs"]
mod tests;
