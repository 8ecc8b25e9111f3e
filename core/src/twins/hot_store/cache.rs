//! Lobby caches: the twin of what `settle.lua` adds and `read_cache.lua` reads.
//!
//! Runs of committed messages come in, the newest of a conversation go out.
//!
//! What must hold: a cache has no gap and one epoch; it never exceeds the bounds of the run that was added last, and all
//! caches together never [`BYTES_MAX`] and [`CONVERSATIONS_MAX`]: the one nothing was added to for longest goes first.

use std::collections::VecDeque;
use std::time::Duration;

use bytes::Bytes;
use rustc_hash::FxHashMap;

use super::after;
use crate::ids::{ConversationId, Epoch, Millis, Place, Seq};
use crate::ports::{CacheRun, CacheSlice};

/// Conversations in signal gear at once; a thousand storms are more than one process has threads for.
const CONVERSATIONS_MAX: usize = 1024;
/// Bytes of all messages together: five seconds of 5,000 messages a second of some 200 bytes are 5 MB.
const BYTES_MAX: usize = 64 * 1024 * 1024;
/// Between two looks for caches whose time is over.
const PURGE_EVERY: Duration = Duration::from_secs(1);

/// One conversation's cache. Never empty once it is in [`Caches`].
#[derive(Clone, Default)]
struct Cache {
    epoch: Epoch,
    /// Sequence of the first message.
    first: Seq,
    /// With the time they were added; oldest first.
    messages: VecDeque<(Millis, Bytes)>,
    bytes: usize,
    keep_for: Duration,
    /// When something was added last.
    added: Millis,
}

impl Cache {
    /// The sequence that follows the newest.
    fn next(&self) -> Seq {
        Seq(self.first.0 + self.messages.len() as u64)
    }

    fn is_over(&self, now: Millis) -> bool {
        after(self.added, self.keep_for) <= now
    }

    fn add(&mut self, run: &CacheRun, now: Millis) {
        let Some((first, _)) = run.messages.first() else { return };
        if run.epoch < self.epoch {
            return;
        }
        if self.messages.is_empty() || run.epoch > self.epoch || *first > self.next() {
            *self = Self { epoch: run.epoch, first: *first, ..Self::default() };
        }
        let next = self.next();
        let before = self.messages.len();
        for (_, message) in run.messages.iter().filter(|(seq, _)| *seq >= next) {
            self.bytes += message.len();
            self.messages.push_back((now, message.clone()));
        }
        if self.messages.len() == before {
            return;
        }
        (self.keep_for, self.added) = (run.keep_for, now);
        let bytes_max = BYTES_MAX.min(usize::try_from(run.bytes_max).unwrap_or(usize::MAX));
        let messages_max = usize::try_from(run.messages_max).unwrap_or(usize::MAX);
        while let Some((added, message)) = self.messages.front()
            && (self.messages.len() > messages_max || self.bytes > bytes_max || after(*added, self.keep_for) <= now)
        {
            self.bytes -= message.len();
            self.first = self.first.next();
            self.messages.pop_front();
        }
    }

    fn slice(&self, behind: Option<Place>, messages_max: usize, bytes_max: usize, now: Millis) -> CacheSlice {
        let seen = behind.filter(|place| place.epoch == self.epoch).map_or(Seq(0), |place| place.seq);
        let unseen = usize::try_from(self.next().0.saturating_sub(seen.0.saturating_add(1))).unwrap_or(usize::MAX);
        let mut bytes = 0;
        let fits = |(added, message): &&(Millis, Bytes)| {
            bytes += message.len();
            bytes <= bytes_max && after(*added, self.keep_for) > now
        };
        let newest = self.messages.iter().rev().take(messages_max.min(unseen)).take_while(fits);
        let mut messages: Vec<Bytes> = newest.map(|(_, message)| message.clone()).collect();
        messages.reverse();
        CacheSlice { epoch: self.epoch, first: Seq(self.next().0 - messages.len() as u64), messages }
    }
}

/// All conversations' caches.
#[derive(Clone, Default)]
pub(super) struct Caches {
    conversations: FxHashMap<ConversationId, Cache>,
    bytes: usize,
    purge_at: Millis,
}

impl Caches {
    /// See [`crate::ports::HotStore::settle`].
    pub(super) fn add(&mut self, runs: &[CacheRun], now: Millis) {
        self.purge(now);
        for run in runs {
            let mut cache = self.take(&run.conversation).filter(|cache| !cache.is_over(now)).unwrap_or_default();
            cache.add(run, now);
            if cache.messages.is_empty() {
                continue;
            }
            while self.conversations.len() >= CONVERSATIONS_MAX || self.bytes + cache.bytes > BYTES_MAX {
                let oldest = self.conversations.iter().min_by_key(|(_, cache)| cache.added);
                let oldest = *oldest.expect("one cache alone is within the bounds").0;
                self.take(&oldest);
            }
            self.bytes += cache.bytes;
            self.conversations.insert(run.conversation, cache);
        }
    }

    /// See [`crate::ports::HotStore::cached`].
    pub(super) fn slice(
        &self,
        conversation: ConversationId,
        behind: Option<Place>,
        messages_max: usize,
        bytes_max: usize,
        now: Millis,
    ) -> CacheSlice {
        let cache = self.conversations.get(&conversation).filter(|cache| !cache.is_over(now));
        cache.map(|cache| cache.slice(behind, messages_max, bytes_max, now)).unwrap_or_default()
    }

    fn take(&mut self, conversation: &ConversationId) -> Option<Cache> {
        let cache = self.conversations.remove(conversation)?;
        self.bytes -= cache.bytes;
        Some(cache)
    }

    /// Drops caches whose time is over, now and then: a storm that ended leaves nothing behind.
    fn purge(&mut self, now: Millis) {
        if now < self.purge_at || self.conversations.is_empty() {
            return;
        }
        self.purge_at = after(now, PURGE_EVERY);
        self.conversations.retain(|_, cache| !cache.is_over(now));
        self.bytes = self.conversations.values().map(|cache| cache.bytes).sum();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::RoomId;

    fn run(room: u64, bytes: usize) -> CacheRun {
        CacheRun {
            conversation: ConversationId::Room(RoomId(room)),
            epoch: Epoch(1),
            messages: vec![(Seq(1), Bytes::from(vec![0; bytes]))],
            messages_max: u32::MAX,
            bytes_max: u32::MAX,
            keep_for: Duration::from_secs(10),
        }
    }

    fn holds(caches: &Caches, room: u64, now: Millis) -> bool {
        let slice = caches.slice(ConversationId::Room(RoomId(room)), None, usize::MAX, usize::MAX, now);
        !slice.messages.is_empty()
    }

    #[test]
    fn all_caches_together_are_bounded() {
        let mut caches = Caches::default();
        for n in 1..=2 * CONVERSATIONS_MAX as u64 {
            caches.add(&[run(n, 1)], Millis(n));
        }
        assert_eq!((caches.conversations.len(), caches.bytes), (CONVERSATIONS_MAX, CONVERSATIONS_MAX));
        let (kept, now) = (CONVERSATIONS_MAX as u64 + 1, Millis(2 * CONVERSATIONS_MAX as u64));
        assert!(!holds(&caches, kept - 1, now) && holds(&caches, kept, now));
        caches.add(&[run(1, BYTES_MAX)], now);
        assert_eq!((caches.conversations.len(), caches.bytes), (1, BYTES_MAX), "the others had to go");
        caches.add(&[run(2, BYTES_MAX + 1)], now);
        assert_eq!((caches.conversations.len(), caches.bytes), (1, BYTES_MAX), "what never fits is not kept");
    }

    #[test]
    fn a_storm_that_ended_leaves_nothing_behind() {
        let mut caches = Caches::default();
        caches.add(&[run(1, 100)], Millis(1000));
        caches.add(&[], Millis(10_999));
        assert_eq!((caches.conversations.len(), caches.bytes), (1, 100));
        caches.add(&[], Millis(12_000));
        assert_eq!((caches.conversations.len(), caches.bytes), (0, 0));
    }
}
