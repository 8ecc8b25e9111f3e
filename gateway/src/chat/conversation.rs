//! One conversation as this client follows it: "Staying in sync" of `proto/PROTOCOL.md`.
//!
//! In go positions, messages, answers to Sync and history pages, out come [`Step`]s: what to show next. Must always hold:
//! messages are shown in the order of their sequence, each once; what is not in order waits, within a bound, for those between.
//! What a storm changes of that is in [`storm`].

mod fetch;
pub mod storm;

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use tidegate_proto::limits::HISTORY_PAGE_MAX;
use tidegate_proto::v1::{self, SyncOutcome};

use super::ask::Range;
use super::line::Place;
use super::marks::Marks;
use fetch::Fetch;
use storm::{Storm, Weather};

/// Messages shown when a conversation is opened: about a screen.
pub const OPENING_PAGE: u32 = 20;

/// A longer absence is not shown whole: nobody reads hundreds of lines that rush by, and `/history` has them.
const MISSED_SHOWN_MAX: u64 = 200;

/// Messages that wait for those before them; of more, only the newest sequence is remembered.
const HELD_MAX: usize = 256;

/// The archive may be a moment behind the pushes: so often, and at such intervals, it is asked for what it should have.
const FETCH_TRIES_MAX: u32 = 10;
const FETCH_DELAY: Duration = Duration::from_millis(300);

/// What to show next.
#[derive(Clone, Debug, PartialEq)]
pub enum Step {
    /// The next message.
    Show(v1::Message),
    /// Messages before those shown, ascending.
    Older(Vec<v1::Message>),
    /// A message of the system, before its turn.
    Ahead(v1::Message),
    /// The turn of a message that was shown ahead.
    Passed(u64),
    /// So many were missed and are not shown.
    Skipped(u64),
    /// In a storm so many between two sequences were left out; the others there were shown ahead.
    LeftOut {
        /// How many.
        count: u64,
        /// Above this sequence.
        after: u64,
        /// Below this one.
        before: u64,
    },
    /// Messages that were left out, ascending.
    Filled(Vec<v1::Message>),
    /// A storm is over.
    Weather(Weather),
    /// So many should exist and are not to be had.
    Lost(u64),
}

/// What a conversation wants of the server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Want {
    /// What is missing above [`Conversation::stands_at`], by Sync.
    Missing,
    /// A page, by History.
    Page(Range),
    /// What is newest, by Pull.
    Pull,
    /// What a storm left out, by Pull.
    Fill,
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
    marks: Marks,
    fetch: Fetch,
    /// The server said that pushes are missing: ask at this time, whatever is heard until then.
    behind: Option<Instant>,
    held: BTreeMap<u64, v1::Message>,
    /// The last run of messages shown out of turn, at the first login.
    run: (u64, u64),
    settling_until: Option<Instant>,
    storm: Storm,
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
            marks: Marks::default(),
            fetch: Fetch::Idle,
            behind: None,
            held: BTreeMap::new(),
            run: (0, 0),
            settling_until: None,
            storm: Storm::default(),
        }
    }

    /// How far the user and the other side have come.
    pub fn marks(&self) -> &Marks {
        &self.marks
    }

    /// The epoch and the sequence up to which all is shown, or where showing began; `None` if nothing is known.
    pub fn stands_at(&self) -> Option<(u32, u64)> {
        self.known.then_some((self.epoch, self.last))
    }

    /// Whether something is wanted or under way.
    pub fn is_busy(&self) -> bool {
        // A pull that only looks for more is nothing to wait for.
        let is_pulled_for = self.storm.is_pull_due() && (!self.known || self.newest > self.last);
        self.fetch != Fetch::Idle || self.behind.is_some() || is_pulled_for || self.storm.is_fill_due()
    }

    /// Whether [`Self::due_want`] may want something in time.
    pub fn waits(&self) -> bool {
        self.is_busy() || self.storm.is_pull_due()
    }

    fn is_fetching(&self) -> bool {
        self.fetch != Fetch::Idle
    }

    /// What comes now waits for what was asked for; but what fills a hole lies below it.
    fn holds(&self) -> bool {
        !matches!(self.fetch, Fetch::Idle | Fetch::Due { want: Want::Fill, .. } | Fetch::Asked { want: Want::Fill, .. })
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
        self.marks.begin(last);
        self.storm.forget_holes();
    }

    /// Another storage life: whatever was known of the conversation is void.
    fn restart(&mut self, epoch: u32) {
        let (fetch, behind, settling_until) = (self.fetch, self.behind, self.settling_until);
        let storm = self.storm.restarted();
        *self = Self { known: true, epoch, fetch, behind, settling_until, storm, ..Self::new(self.place) };
    }

    /// Showing begins after `seq`, unless it has begun.
    pub fn follow_from(&mut self, epoch: u32, seq: u64) {
        if !self.known {
            self.begin(epoch, seq);
        }
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
        self.marks.handle_position(position.read_seq, position.unread, position.last_seq);
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
            if self.is_fetching() {
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
        if let Some(steps) = self.show_ahead(&message) {
            return steps;
        }
        let mut steps = Vec::new();
        steps.extend(self.end_of_signal(now, &message).map(Step::Weather));
        self.newest = self.newest.max(message.seq);
        if message.seq <= self.last {
            return steps;
        }
        if message.seq == self.last + 1 && !self.holds() {
            self.step(message, &mut steps);
            self.drain_held(&mut steps);
            return steps;
        }
        self.hold(message);
        self.fetch_newer(now);
        steps
    }

    fn step(&mut self, message: v1::Message, steps: &mut Vec<Step>) {
        self.last = message.seq;
        let was_ahead = self.storm.take_ahead(message.seq);
        steps.push(if was_ahead { Step::Passed(message.seq) } else { Step::Show(message) });
        while self.storm.take_ahead(self.last + 1) {
            self.last += 1;
            steps.push(Step::Passed(self.last));
        }
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
            Fetch::Asked { want: Want::Page(asked), tries, .. } if asked == range => tries,
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
                self.skip_what_nobody_reads(&mut steps);
                self.show_following(reply.messages, &mut steps);
            }
        }
        self.drain_held(&mut steps);
        let got_on = self.last > before;
        if got_on && reply.more && self.newest > self.last && matches!(range, Range::After(_)) {
            self.fetch(now, Want::Page(Range::After(self.last)));
        }
        self.see_to_the_rest(now, got_on, tries, &mut steps);
        steps
    }

    /// The answer to a Sync or Login that said `from`. An outcome that ends the conversation is the caller's.
    pub fn handle_synced(&mut self, now: Instant, from: &v1::SyncFrom, synced: v1::Synced) -> Vec<Step> {
        let tries = match self.fetch {
            Fetch::Asked { want: Want::Missing, tries, .. } | Fetch::Due { want: Want::Missing, tries, .. } => {
                self.fetch = Fetch::Idle;
                tries
            }
            _ => 0,
        };
        let (before, mut steps) = (self.last, Vec::new());
        if !self.known {
            return steps;
        }
        if self.epoch != from.epoch {
            // It answers a question about another storage life.
            self.fetch_newer(now);
            return steps;
        }
        let reload = synced.outcome() == SyncOutcome::Reload;
        if reload && synced.epoch != self.epoch {
            self.restart(synced.epoch);
        }
        self.newest = self.newest.max(synced.last_seq);
        if self.place != Place::Lobby {
            self.marks.handle_count(synced.read_seq, synced.unread, synced.last_seq);
        }
        if reload && !self.storm.is_signal() {
            self.skip_what_nobody_reads(&mut steps);
            if self.newest > self.last && !self.is_fetching() {
                self.fetch = Fetch::Due { at: now, want: Want::Page(Range::After(self.last)), tries };
            }
        }
        self.show_following(synced.messages, &mut steps);
        self.drain_held(&mut steps);
        self.see_to_the_rest(now, self.last > before, tries, &mut steps);
        steps
    }

    /// Of a long absence only the end is shown.
    fn skip_what_nobody_reads(&mut self, steps: &mut Vec<Step>) {
        let missed = self.newest.saturating_sub(self.last);
        if missed > MISSED_SHOWN_MAX {
            let last = self.newest - u64::from(OPENING_PAGE);
            steps.push(Step::Skipped(self.storm.unshown_between(self.last, last + 1)));
            self.marks.handle_left_out(self.last, last + 1);
            self.begin(self.epoch, last);
        }
    }

    fn show_following(&mut self, messages: Vec<v1::Message>, steps: &mut Vec<Step>) {
        for message in messages {
            if message.seq == self.last + 1 && message.epoch == self.epoch {
                self.step(message, steps);
            }
        }
    }

    /// More is known to exist than the server had: it is asked again, and not for ever.
    fn see_to_the_rest(&mut self, now: Instant, got_on: bool, tries: u32, steps: &mut Vec<Step>) {
        if self.newest <= self.last || self.is_fetching() {
            return;
        }
        if self.storm.awaits_pull() {
            return self.storm.pull_soon(now);
        }
        if got_on || tries < FETCH_TRIES_MAX {
            self.fetch_again(now, if got_on { 0 } else { tries });
        } else {
            self.go_on_without(steps);
        }
    }

    fn show_older(&mut self, messages: Vec<v1::Message>, steps: &mut Vec<Step>) {
        if let Some(first) = messages.first() {
            self.oldest = first.seq;
            self.storm.handle_older(first.seq);
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
                self.step(message, steps);
            }
        }
    }

    /// What lies between never came.
    fn go_on_without(&mut self, steps: &mut Vec<Step>) {
        let next = self.held.keys().next().copied().unwrap_or(self.newest + 1);
        steps.push(Step::Lost(self.storm.unshown_between(self.last, next)));
        self.last = next - 1;
        self.drain_held(steps);
    }

    /// The user looks at the conversation.
    pub fn open(&mut self, now: Instant) {
        let nothing_shown = self.oldest > self.last;
        if !self.known || nothing_shown {
            self.fetch_older(now, OPENING_PAGE.max(self.marks.unread().min(HISTORY_PAGE_MAX)));
        }
        self.handle_read_here();
    }

    /// A message came onto the screen; `here`: where the user looks.
    pub fn handle_shown(&mut self, seq: u64, here: bool, own: bool) {
        self.marks.handle_shown(seq, here, own);
    }

    /// Messages between two sequences were left out.
    pub fn handle_left_out(&mut self, after: u64, before: u64) {
        self.marks.handle_left_out(after, before);
    }

    /// The user has read what is shown.
    pub fn handle_read_here(&mut self) {
        self.marks.handle_read_here(self.last);
    }

    /// The user has read on another device.
    pub fn handle_read_elsewhere(&mut self, seq: u64) {
        self.marks.handle_read_elsewhere(seq, self.newest);
    }

    /// A message of the user's came onto the screen out of turn.
    pub fn handle_own(&mut self, seq: u64) {
        self.marks.handle_own(seq);
    }

    /// The other side's watermarks; true if it has now read all of the user's messages.
    pub fn handle_other(&mut self, delivered_seq: u64, read_seq: u64) -> bool {
        self.marks.handle_other(delivered_seq, read_seq)
    }

    /// Whether the server does not know yet what arrived or was read.
    pub fn owes_receipt(&self) -> bool {
        self.place != Place::Lobby && self.marks.owes_receipt(self.last)
    }

    /// The watermarks to tell now: delivered and read.
    pub fn due_receipt(&mut self, now: Instant) -> Option<(u64, u64)> {
        if self.place == Place::Lobby { None } else { self.marks.due_receipt(now, self.last) }
    }
}

#[cfg(test)]
#[path = "conversation_tests.rs"]
mod tests;
