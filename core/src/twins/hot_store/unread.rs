//! Unread counts of one user: the twin of `unread.lua` and its callers.
//!
//! Filed sequences and counts made from the archive come in, exact counts go out.
//!
//! What must hold: a count is `snapshot.unread`, as the archive said at `snapshot.counted_to`, plus what was filed above
//! it. Snapshots are taken at one moment each, and both watermark and newest sequence only move forward: of two snapshots
//! the one with the greater `counted_to` is the newer, and at the same `counted_to` the one with fewer unread. Those of all
//! conversations are taken within one seeding and seed no other, before which nothing filed was remembered.

use std::collections::VecDeque;

use rustc_hash::FxHashMap;

use crate::ids::{ConversationId, Millis, Seq};
use crate::limits::{UNREAD_SEEDING_TTL, UNREAD_TAIL_MAX};
use crate::ports::{Seeding, UnreadCount};

/// What is remembered of one conversation.
#[derive(Clone, Default)]
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
#[derive(Clone)]
pub(super) struct Unread {
    /// `None` once the counts are known; until then the seeding under way, and the time by which they must be handed in.
    seeding: Option<(Seeding, Millis)>,
    tallies: FxHashMap<ConversationId, Tally>,
}

impl Unread {
    /// A user who was just told that its counts are unknown.
    pub(super) fn seeding(seeding: Seeding, now: Millis) -> Self {
        Self { seeding: Some((seeding, seeding_until(now))), tallies: FxHashMap::default() }
    }

    /// Whether nobody handed in the counts in time.
    pub(super) fn is_over(&self, now: Millis) -> bool {
        self.seeding.is_some_and(|(_, until)| until <= now)
    }

    /// The counts above zero, or the seeding under way while they are unknown: it goes on.
    pub(super) fn counts(&mut self, now: Millis) -> Result<Vec<(ConversationId, u32)>, Seeding> {
        if let Some((seeding, until)) = &mut self.seeding {
            *until = seeding_until(now);
            return Err(*seeding);
        }
        let counts = self.tallies.iter().map(|(conversation, tally)| (*conversation, tally.count()));
        Ok(counts.filter(|(_, unread)| *unread > 0).collect())
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
    /// older; or were made for an earlier seeding. A conversation not among them has begun since.
    pub(super) fn seed(&mut self, seeding: Seeding, snapshots: &[UnreadCount]) -> Result<(), TooOld> {
        if self.seeding.is_none_or(|(under_way, _)| under_way != seeding) {
            return Ok(());
        }
        snapshots.iter().try_for_each(|snapshot| self.replace(snapshot))?;
        self.seeding = None;
        Ok(())
    }
}

fn seeding_until(now: Millis) -> Millis {
    Millis(now.0 + u64::try_from(UNREAD_SEEDING_TTL.as_millis()).expect("minutes"))
}
