//! A conversation in a storm: when to pull, what was left out, and how it is filled ("Storms" of `proto/PROTOCOL.md`).
//!
//! In go notices, gears and the replies to Pull, out come [`Step`]s and what to tell of the weather. Must always hold: pulls
//! come at this client's own phase and at most once per spread; of what the server leaves out every message is counted, once,
//! and shown at most once, when it is calm again and there is not too much of it.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use tidegate_proto::v1::{self, Gear};

use super::{Conversation, Fetch, Step, Want};

/// What a storm left out is fetched afterwards if it is no more: somebody may still read that much.
pub const FILL_MAX: u64 = 300;

/// When it is calm again, clients ask for what they lack within this time, not all at once.
const FILL_SPREAD: Duration = Duration::from_secs(5);

/// Holes remembered; in a storm with more of them too much was left out anyway.
const HOLES_MAX: usize = 32;

/// Messages of the system that were shown ahead of those before them; more of them wait for their turn.
const AHEAD_MAX: usize = 64;

/// Until a notice says otherwise, and whatever it says.
const SPREAD_DEFAULT: Duration = Duration::from_secs(1);
const SPREAD_MIN: Duration = Duration::from_millis(1);
const SPREAD_MAX: Duration = Duration::from_secs(60);

/// When in each spread this client pulls: chance, once per connection.
#[derive(Clone, Copy, Debug)]
pub struct Phase {
    origin: Instant,
    /// In parts of 2^32 of a spread.
    part: u32,
}

impl Phase {
    /// For a connection that began at `origin`; `part` is chance.
    pub fn new(origin: Instant, part: u32) -> Self {
        Self { origin, part }
    }

    /// The first time from `now` on that lies at the phase of `spread`.
    fn next(self, now: Instant, spread: Duration) -> Instant {
        let spread = spread.clamp(SPREAD_MIN, SPREAD_MAX);
        let spread_ns = u64::try_from(spread.as_nanos()).expect("a minute of nanoseconds fits");
        let since =
            u64::try_from(now.saturating_duration_since(self.origin).as_nanos()).unwrap_or_default() % spread_ns;
        let at = u64::try_from((u128::from(spread_ns) * u128::from(self.part)) >> 32).expect("below the spread");
        now + Duration::from_nanos(if since <= at { at - since } else { spread_ns - since + at })
    }
}

/// What people notice of gears.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Weather {
    /// Messages come by pulls from now on.
    Busy,
    /// They come by themselves again; so many were left out, and are too many to be fetched.
    Calm(u64),
}

/// Messages above `after` and below `before` that were left out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Hole {
    after: u64,
    before: u64,
    /// The oldest of the messages shown right below the hole.
    below: u64,
}

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Storm {
    gear: Gear,
    phase: Option<Phase>,
    spread: Option<Duration>,
    pull_at: Option<Instant>,
    pulled_at: Option<Instant>,
    fill_at: Option<Instant>,
    /// Ascending.
    holes: Vec<Hole>,
    /// In the holes, and in those that are no longer remembered.
    left_out: u64,
    /// Shown before their turn, above `last` or in a hole.
    ahead: BTreeSet<u64>,
}

impl Storm {
    /// Another storage life: the weather stays, what was left out is void.
    pub(super) fn restarted(&mut self) -> Self {
        let Self { gear, phase, spread, pull_at, pulled_at, .. } = *self;
        Self { gear, phase, spread, pull_at, pulled_at, ..Self::default() }
    }

    pub(super) fn is_pull_due(&self) -> bool {
        self.pull_at.is_some()
    }

    pub(super) fn is_fill_due(&self) -> bool {
        self.fill_at.is_some()
    }

    pub(super) fn is_signal(&self) -> bool {
        self.gear == Gear::Signal
    }

    /// A Pull will show what is missing: nothing else need be asked.
    pub(super) fn awaits_pull(&self) -> bool {
        self.is_signal() || self.pull_at.is_some()
    }

    /// Pulls at the next phase that the last pull, which may have been late, was not meant for.
    pub(super) fn pull_soon(&mut self, now: Instant) {
        let spread = self.spread.unwrap_or(SPREAD_DEFAULT);
        let from = self.pulled_at.map_or(now, |pulled| now.max(pulled + spread / 2));
        self.pull_at.get_or_insert(self.phase.map_or(now, |phase| phase.next(from, spread)));
    }

    /// The connection is gone, and with it what it said of gears.
    pub(super) fn handle_lost(&mut self, now: Instant) {
        self.gear = Gear::Direct;
        (self.phase, self.pull_at, self.pulled_at) = (None, None, None);
        self.fill_soon(now);
    }

    fn fill_soon(&mut self, now: Instant) {
        self.fill_at = None;
        if self.left_out > 0 && !self.is_signal() {
            self.fill_at = Some(self.phase.map_or(now + FILL_SPREAD, |phase| phase.next(now, FILL_SPREAD)));
        }
    }

    /// What is due now; it counts as asked.
    pub(super) fn due_want(&mut self, now: Instant) -> Option<Want> {
        if self.pull_at.is_some_and(|at| at <= now) {
            (self.pull_at, self.pulled_at) = (None, Some(now));
            return Some(Want::Pull);
        }
        self.fill_at.take_if(|at| *at <= now)?;
        if self.can_fill() {
            return Some(Want::Fill);
        }
        self.forget_holes();
        None
    }

    fn can_fill(&self) -> bool {
        self.left_out > 0 && self.left_out <= FILL_MAX && !self.holes.is_empty()
    }

    /// Nothing of it will be fetched.
    pub(super) fn forget_holes(&mut self) {
        self.holes.clear();
        self.left_out = 0;
        self.fill_at = None;
    }

    /// Messages between two others that are not on the screen.
    pub(super) fn unshown_between(&self, after: u64, before: u64) -> u64 {
        if before <= after + 1 {
            return 0;
        }
        before - after - 1 - self.ahead.range(after + 1..before).count() as u64
    }

    /// True if it was shown already, ahead of its turn.
    pub(super) fn take_ahead(&mut self, seq: u64) -> bool {
        self.ahead.remove(&seq)
    }

    fn is_in_a_hole(&self, seq: u64) -> bool {
        self.holes.iter().any(|hole| hole.after < seq && seq < hole.before)
    }

    /// Whether a message is to be shown out of turn, above `last` or in a hole.
    fn takes_ahead(&mut self, seq: u64, last: u64) -> bool {
        (seq > last + 1 || self.is_in_a_hole(seq)) && self.ahead.len() < AHEAD_MAX && self.ahead.insert(seq)
    }

    /// What is up to `last` and in no hole needs no remembering.
    fn trim_ahead(&mut self, last: u64) {
        let holes = std::mem::take(&mut self.holes);
        self.ahead.retain(|seq| *seq > last || holes.iter().any(|hole| hole.after < *seq && *seq < hole.before));
        self.holes = holes;
    }

    /// The messages from `first` up to whatever was the oldest are on the screen: the user asked for them.
    pub(super) fn handle_older(&mut self, first: u64) {
        let before: u64 = self.holes.iter().map(|hole| self.unshown_between(hole.after, hole.before)).sum();
        self.holes.iter_mut().for_each(|hole| hole.before = hole.before.min(first));
        self.holes.retain(|hole| hole.after + 1 < hole.before);
        let after: u64 = self.holes.iter().map(|hole| self.unshown_between(hole.after, hole.before)).sum();
        self.left_out -= before - after;
    }
}

impl Conversation {
    /// Whether messages come by pulls, which may leave some out.
    pub fn is_stormy(&self) -> bool {
        self.storm.is_signal()
    }

    /// There are messages to be pulled.
    pub fn handle_notice(&mut self, now: Instant, phase: Phase, notice: &v1::NotifyNewMessages) -> Option<Weather> {
        if self.known && notice.epoch < self.epoch {
            return None;
        }
        let weather = self.shift(now, phase, Gear::Signal);
        self.storm.spread = Some(Duration::from_millis(notice.spread_ms.into()).clamp(SPREAD_MIN, SPREAD_MAX));
        if self.known {
            self.hear_of(now, notice.epoch, notice.latest_seq);
        } else {
            self.storm.pull_soon(now);
        }
        weather
    }

    /// There are messages up to `seq`: those that are not here are pulled.
    fn hear_of(&mut self, now: Instant, epoch: u32, seq: u64) {
        if epoch == self.epoch {
            self.newest = self.newest.max(seq);
        }
        if self.known && (self.epoch, self.last) < (epoch, seq) {
            self.storm.pull_soon(now);
        }
    }

    /// Messages travel in another way from `from_seq` on. What changes for people is told.
    pub fn handle_gear(&mut self, now: Instant, phase: Phase, changed: &v1::GearChanged) -> Option<Weather> {
        if self.known && changed.epoch < self.epoch {
            return None;
        }
        // A gear of a later version is none that we know to pull in: what is missing will show.
        let weather = self.shift(now, phase, Gear::try_from(changed.gear).unwrap_or(Gear::Direct));
        // Those before the change came in the old way, or not at all.
        self.hear_of(now, changed.epoch, changed.from_seq.saturating_sub(1));
        weather
    }

    /// Nobody's messages are pushed in signal gear: one that is, and is news, says that the gear has changed, even if the
    /// connection did not keep up with being told.
    pub(super) fn end_of_signal(&mut self, now: Instant, message: &v1::Message) -> Option<Weather> {
        let phase = self.storm.phase?;
        if !self.storm.is_signal() || message.sender_id == 0 || message.seq <= self.newest {
            return None;
        }
        let weather = self.shift(now, phase, Gear::Direct);
        self.hear_of(now, message.epoch, message.seq - 1);
        weather
    }

    fn shift(&mut self, now: Instant, phase: Phase, gear: Gear) -> Option<Weather> {
        let storm = &mut self.storm;
        storm.phase = Some(phase);
        let before = std::mem::replace(&mut storm.gear, gear);
        if before == Gear::Signal && gear != Gear::Signal && self.known {
            // There is no looking for more; what is missing will be heard of in a moment.
            storm.pull_at = None;
        }
        let weather = match (before, gear) {
            (Gear::Signal, Gear::Signal) => None,
            (_, Gear::Signal) => Some(Weather::Busy),
            (Gear::Signal, _) => {
                let too_many = if storm.can_fill() { 0 } else { storm.left_out };
                if too_many > 0 {
                    storm.forget_holes();
                }
                Some(Weather::Calm(too_many))
            }
            _ => None,
        };
        storm.fill_soon(now);
        weather
    }

    /// A message of the system is shown when it comes, once.
    pub(super) fn show_ahead(&mut self, message: &v1::Message) -> Option<Vec<Step>> {
        if message.sender_id != 0 {
            return None;
        }
        if self.storm.ahead.contains(&message.seq) {
            return Some(Vec::new());
        }
        self.storm.takes_ahead(message.seq, self.last).then(|| vec![Step::Ahead(message.clone())])
    }

    /// Where to pull from: `after_seq` and `before_seq`.
    pub fn pulls_from(&self, want: Want) -> (Option<u64>, u64) {
        match self.storm.holes.first() {
            Some(hole) if want == Want::Fill => (Some(hole.after), hole.before),
            _ => (self.known.then_some(self.last), 0),
        }
    }

    /// The reply to a Pull that asked for what is newest, or for a hole.
    pub fn handle_pulled(&mut self, now: Instant, asked: &v1::Pull, reply: v1::PullReply) -> Vec<Step> {
        let (want, tries) = match self.fetch {
            Fetch::Asked { want: want @ (Want::Pull | Want::Fill), tries, .. } => (want, tries),
            // It was asked for twice.
            _ => return Vec::new(),
        };
        if (want == Want::Fill) != (asked.before_seq > 0) {
            return Vec::new();
        }
        self.fetch = Fetch::Idle;
        if want == Want::Fill {
            return self.handle_filled(now, reply);
        }
        if self.known && reply.epoch < self.epoch {
            self.storm.pull_soon(now);
            return Vec::new();
        }
        if self.known && reply.epoch > self.epoch {
            self.restart(reply.epoch);
        }
        if !self.known {
            self.begin(reply.epoch, if reply.from_seq > 0 { reply.from_seq - 1 } else { reply.latest_seq });
        }
        self.newest = self.newest.max(reply.latest_seq);
        let (before, mut steps) = (self.last, Vec::new());
        for message in reply.messages {
            if message.epoch == self.epoch && message.seq > self.last {
                self.leave_out_up_to(message.seq, &mut steps);
            }
            if message.epoch == self.epoch && message.seq == self.last + 1 {
                self.step(message, &mut steps);
            }
        }
        self.drain_held(&mut steps);
        let got_on = self.last > before;
        if reply.more && got_on {
            self.fetch = Fetch::Due { at: now, want: Want::Pull, tries: 0 };
        }
        self.see_to_the_rest(now, got_on, tries, &mut steps);
        if got_on && self.storm.is_signal() {
            // While something comes nobody waits for a notice.
            self.storm.pull_soon(now);
        }
        if self.storm.fill_at.is_none() {
            self.storm.fill_soon(now);
        }
        steps
    }

    /// Shows of what is below `seq` that which is here, and counts what is not.
    fn leave_out_up_to(&mut self, seq: u64, steps: &mut Vec<Step>) {
        while let Some(entry) = self.held.first_entry() {
            if *entry.key() >= seq {
                break;
            }
            let message = entry.remove();
            if message.epoch == self.epoch && message.seq > self.last {
                self.leave_out(message.seq, steps);
                self.step(message, steps);
            }
        }
        self.leave_out(seq, steps);
    }

    fn leave_out(&mut self, seq: u64, steps: &mut Vec<Step>) {
        if seq <= self.last + 1 {
            return;
        }
        let count = self.storm.unshown_between(self.last, seq);
        if count == 0 {
            steps.extend((self.last + 1..seq).map(Step::Passed));
            self.last = seq - 1;
            return;
        }
        if self.storm.holes.len() < HOLES_MAX {
            self.storm.holes.push(Hole { after: self.last, before: seq, below: self.oldest });
        }
        self.storm.left_out += count;
        steps.push(Step::LeftOut { count, after: self.last, before: seq });
        self.oldest = seq;
        self.last = seq - 1;
    }

    /// A part of the first hole, oldest first.
    fn handle_filled(&mut self, now: Instant, reply: v1::PullReply) -> Vec<Step> {
        let mut steps = Vec::new();
        let Some(hole) = self.storm.holes.first().copied().filter(|_| reply.epoch == self.epoch) else {
            self.storm.forget_holes();
            self.see_to_the_rest(now, true, 0, &mut steps);
            return steps;
        };
        let is_new = |message: &v1::Message| hole.after < message.seq && message.seq < hole.before;
        let (mut messages, mut after) = (reply.messages, hole.after);
        messages.retain(|message| {
            let next = is_new(message);
            if next {
                after = message.seq;
            }
            next && !self.storm.take_ahead(message.seq)
        });
        self.storm.left_out = self.storm.left_out.saturating_sub(messages.len() as u64);
        self.storm.holes[0].after = after;
        if after + 1 == hole.before {
            self.close_hole();
        } else if after == hole.after || !reply.more {
            // The server no longer has it; that it was left out has been said.
            let rest = self.storm.unshown_between(after, hole.before);
            self.storm.left_out = self.storm.left_out.saturating_sub(rest);
            self.storm.holes.remove(0);
        }
        if !messages.is_empty() {
            steps.push(Step::Filled(messages));
        }
        self.storm.trim_ahead(self.last);
        if self.storm.holes.is_empty() {
            self.storm.forget_holes();
        } else if !self.storm.is_signal() {
            self.fetch = Fetch::Due { at: now, want: Want::Fill, tries: 0 };
        }
        self.drain_held(&mut steps);
        self.see_to_the_rest(now, true, 0, &mut steps);
        steps
    }

    /// The first hole is no more: what is shown above it and below it is one.
    fn close_hole(&mut self) {
        let closed = self.storm.holes.remove(0);
        match self.storm.holes.iter_mut().find(|hole| hole.below == closed.before) {
            Some(above) => above.below = closed.below,
            None if self.oldest == closed.before => self.oldest = closed.below,
            None => {}
        }
    }

    /// The server will not answer the Pull: what is newest may be had by Sync, what was left out is given up.
    pub fn handle_no_pull(&mut self, now: Instant, asked: &v1::Pull) {
        if !matches!(self.fetch, Fetch::Asked { want: Want::Pull | Want::Fill, .. }) {
            return;
        }
        self.fetch = Fetch::Idle;
        if asked.before_seq > 0 {
            self.storm.forget_holes();
        } else if self.known {
            self.fetch(now, Want::Missing);
        }
    }
}

#[cfg(test)]
#[path = "storm_tests.rs"]
mod tests;
