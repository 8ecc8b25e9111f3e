//! Unread counts of one user: the twin of `unread.lua` and its callers.
//!
//! Filed sequences and counts made from the archive come in, exact counts go out.
//!
//! What must hold: a count is `snapshot.unread`, as the archive said at `snapshot.counted_to`, plus what was filed above
//! it. Snapshots are taken at one moment each, and both watermark and newest sequence only move forward: of two snapshots
//! the one with the greater `counted_to` is the newer, and at the same `counted_to` the one with fewer unread.

use std::collections::VecDeque;

use rustc_hash::FxHashMap;

use crate::ids::{ConversationId, Millis, Seq};
use crate::limits::{UNREAD_SEEDING_TTL, UNREAD_TAIL_MAX};
use crate::ports::UnreadCount;

/// What is remembered of one conversation.
#[derive(Default)]
struct Tally {
    /// Up to here the archive was asked; zero if it never was.
    counted_to: Seq,
    /// What it said.
    unread: u32,
    /// Filed above `counted_to`.
    filed: u32,
    /// The newest of those, ascending.
    tail: VecDeque<Seq>,
    /// The highest that no longer is in the tail.
    dropped: Seq,
}

/// A snapshot is too old to be brought up to date.
#[derive(Debug)]
pub(super) struct TooOld;

impl Tally {
    fn count(&self) -> u32 {
        self.unread + self.filed
    }

    fn file(&mut self, seqs: &[Seq]) {
        for seq in seqs {
            if *seq <= self.tail.back().copied().unwrap_or_default().max(self.counted_to) {
                continue;
            }
            self.filed += 1;
            self.tail.push_back(*seq);
            if self.tail.len() > UNREAD_TAIL_MAX {
                self.dropped = self.tail.pop_front().unwrap_or_default();
            }
        }
    }

    fn replace(&mut self, snapshot: &UnreadCount) -> Result<(), TooOld> {
        if snapshot.counted_to < self.counted_to {
            return Ok(());
        }
        if snapshot.counted_to == self.counted_to && self.counted_to > Seq(0) {
            self.unread = self.unread.min(snapshot.unread);
            return Ok(());
        }
        if snapshot.counted_to < self.dropped {
            return Err(TooOld);
        }
        self.tail.retain(|seq| *seq > snapshot.counted_to);
        self.filed = u32::try_from(self.tail.len()).expect("bounded by UNREAD_TAIL_MAX");
        self.counted_to = snapshot.counted_to;
        self.unread = snapshot.unread;
        Ok(())
    }
}

/// One user's counts. A user without this is unknown.
pub(super) struct Unread {
    /// `None` once the counts are known; until then the time by which they must be handed in.
    seeding_until: Option<Millis>,
    tallies: FxHashMap<ConversationId, Tally>,
}

impl Unread {
    /// A user who was just told that its counts are unknown.
    pub(super) fn seeding(now: Millis) -> Self {
        let mut this = Self { seeding_until: None, tallies: FxHashMap::default() };
        this.keep_seeding(now);
        this
    }

    fn keep_seeding(&mut self, now: Millis) {
        let ttl_ms = u64::try_from(UNREAD_SEEDING_TTL.as_millis()).expect("minutes");
        self.seeding_until = Some(Millis(now.0 + ttl_ms));
    }

    /// Whether nobody handed in the counts in time.
    pub(super) fn is_over(&self, now: Millis) -> bool {
        self.seeding_until.is_some_and(|until| until <= now)
    }

    /// The counts above zero, or `None` while they are unknown.
    pub(super) fn counts(&mut self, now: Millis) -> Option<Vec<(ConversationId, u32)>> {
        if self.seeding_until.is_some() {
            self.keep_seeding(now);
            return None;
        }
        let counts = self.tallies.iter().map(|(conversation, tally)| (*conversation, tally.count()));
        Some(counts.filter(|(_, unread)| *unread > 0).collect())
    }

    /// Counts what is above everything counted before.
    pub(super) fn file(&mut self, conversation: ConversationId, seqs: &[Seq]) {
        self.tallies.entry(conversation).or_default().file(seqs);
    }

    /// Takes one conversation's count from the archive.
    pub(super) fn replace(&mut self, snapshot: &UnreadCount) -> Result<(), TooOld> {
        self.tallies.entry(snapshot.conversation).or_default().replace(snapshot)
    }

    /// Takes all counts from the archive, unless they are known by now: another login's were as exact, and these may be
    /// older. A conversation not among them has begun since.
    pub(super) fn seed(&mut self, snapshots: &[UnreadCount]) -> Result<(), TooOld> {
        if self.seeding_until.is_none() {
            return Ok(());
        }
        snapshots.iter().try_for_each(|snapshot| self.replace(snapshot))?;
        self.seeding_until = None;
        Ok(())
    }
}
