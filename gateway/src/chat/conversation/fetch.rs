//! What a conversation asks for: one question at a time, when it is due, and again if it is not answered.
//!
//! In go gaps, wishes and failures, out comes a [`Want`] when it is time. Must always hold: a question that was refused or lost
//! is asked again after a pause.

use std::time::{Duration, Instant};

use tidegate_proto::limits::HISTORY_PAGE_MAX;

use super::{Conversation, FETCH_DELAY, Want};
use crate::chat::ask::Range;

/// A question not answered for so long is asked again.
pub(super) const FETCH_TIMEOUT: Duration = Duration::from_secs(10);

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Fetch {
    #[default]
    Idle,
    Due {
        at: Instant,
        want: Want,
        tries: u32,
    },
    Asked {
        at: Instant,
        want: Want,
        tries: u32,
    },
}

impl Conversation {
    pub(super) fn fetch_again(&mut self, now: Instant, tries: u32) {
        self.fetch = Fetch::Due { at: now + FETCH_DELAY, want: Want::Missing, tries: tries + 1 };
    }

    pub(super) fn fetch(&mut self, now: Instant, want: Want) {
        if !self.is_fetching() {
            self.fetch = Fetch::Due { at: now, want, tries: 0 };
        }
    }

    /// Asks what follows the last shown, if it is known.
    pub fn fetch_newer(&mut self, now: Instant) {
        if self.known && self.storm.awaits_pull() {
            self.storm.pull_soon(now);
        } else if self.known {
            self.fetch(now, Want::Missing);
        }
    }

    /// Pushes up to `last_seq` of `epoch`, or of any number if that is not said, are missing; to be asked for at `at`.
    pub fn handle_behind(&mut self, at: Instant, newest: Option<(u32, u64)>) {
        // Of one that is just being opened the page may be older than what is missing.
        let follows = self.known || self.is_fetching();
        if follows && newest.is_none_or(|newest| !self.known || (self.epoch, self.last) < newest) {
            // A second one before the question is sent is answered with it.
            self.behind = Some(self.behind.map_or(at, |earlier| earlier.min(at)));
        }
    }

    /// The server cannot say what is missing: History can.
    pub fn fetch_by_pages(&mut self, now: Instant) {
        if let Fetch::Asked { want: Want::Missing, .. } = self.fetch {
            self.fetch = Fetch::Due { at: now, want: Want::Page(Range::After(self.last)), tries: 0 };
        }
    }

    /// Fetches messages before the oldest shown; false if there are none.
    pub fn fetch_older(&mut self, now: Instant, count: u32) -> bool {
        let count = count.min(HISTORY_PAGE_MAX);
        if !self.known {
            self.fetch(now, Want::Page(Range::Newest(count)));
        } else if self.oldest > 1 {
            self.fetch(now, Want::Page(Range::Before(self.oldest, count)));
        } else {
            return false;
        }
        true
    }

    /// What was asked for could not be had now.
    pub fn fetch_later(&mut self, now: Instant, delay_ms: u64) {
        if let Fetch::Asked { want, tries, .. } = self.fetch {
            let at = now + FETCH_DELAY.max(Duration::from_millis(delay_ms));
            self.fetch = Fetch::Due { at, want, tries };
        }
    }

    /// What was asked for is not to be had.
    pub fn give_up_fetching(&mut self) {
        self.fetch = Fetch::Idle;
    }

    /// The connection is gone, and the question with it.
    pub fn handle_lost(&mut self, now: Instant) {
        if matches!(self.fetch, Fetch::Asked { want: Want::Pull, .. } | Fetch::Due { want: Want::Pull, .. }) {
            // The next login says what is missing.
            self.fetch = Fetch::Idle;
        }
        self.ask_again(now);
        self.storm.handle_lost(now);
    }

    /// The question was not answered: there was no room for the answer, or it is lost.
    pub fn ask_again(&mut self, at: Instant) {
        if let Fetch::Asked { want, tries, .. } = self.fetch {
            self.fetch = Fetch::Due { at, want, tries };
        }
    }

    /// What to ask for now.
    pub fn due_want(&mut self, now: Instant) -> Option<Want> {
        if self.behind.is_some_and(|at| at <= now) && !self.is_fetching() {
            self.behind = None;
            self.fetch_newer(now);
        }
        if !self.is_fetching()
            && let Some(want) = self.storm.due_want(now)
        {
            self.fetch(now, want);
        }
        let (want, tries) = match self.fetch {
            Fetch::Due { at, want, tries } if at <= now => (want, tries),
            Fetch::Asked { at, want, tries } if at + FETCH_TIMEOUT <= now => (want, tries),
            _ => return None,
        };
        if want == Want::Missing {
            self.behind = None;
        }
        if want == Want::Fill && self.pulls_from(want).1 == 0 {
            // What was left out has been read otherwise, or the conversation began anew.
            self.fetch = Fetch::Idle;
            return None;
        }
        self.fetch = Fetch::Asked { at: now, want, tries };
        Some(want)
    }
}
