//! One device's state of one conversation: PROTOCOL.md, "Staying in sync", and nothing else.
//!
//! In: messages as they come, by push or by History, and what the server says is the newest; out: what is shown, in order,
//! and whether History must be asked. No clock and no socket.

use super::evidence::{Entry, Via};

/// See the module.
#[derive(Debug, Default)]
pub struct Sync {
    /// What was shown, in the order in which it was shown.
    pub shown: Vec<Entry>,
    /// Pushes of a sequence that had been shown: allowed.
    pub repeated: u64,
    /// Times the epoch grew after something had been shown.
    pub epoch_changes: u64,
    epoch: u32,
    last: u64,
    /// The highest sequence anybody has spoken of.
    newest: u64,
}

impl Sync {
    /// The last sequence shown.
    pub fn last(&self) -> u64 {
        self.last
    }

    /// True if History has what was not shown yet.
    pub fn is_behind(&self) -> bool {
        self.newest > self.last
    }

    /// A message came.
    pub fn see(&mut self, entry: Entry) {
        if !self.is_of_epoch(entry.epoch) {
            return;
        }
        self.newest = self.newest.max(entry.seq);
        if entry.seq == self.last + 1 {
            self.last = entry.seq;
            self.shown.push(entry);
        } else if entry.seq <= self.last && entry.via == Via::Push {
            self.repeated += 1;
        }
        // Beyond `last + 1`: History brings it, with what is between.
    }

    /// The server says where the conversation stands.
    pub fn hear(&mut self, epoch: u32, last_seq: u64) {
        if self.is_of_epoch(epoch) {
            self.newest = self.newest.max(last_seq);
        }
    }

    /// Takes a greater epoch, dropping all of the old one. False if the epoch is a smaller one.
    fn is_of_epoch(&mut self, epoch: u32) -> bool {
        if epoch > self.epoch {
            if !self.shown.is_empty() {
                self.epoch_changes += 1;
            }
            self.shown.clear();
            (self.epoch, self.last, self.newest) = (epoch, 0, 0);
        }
        epoch == self.epoch
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(epoch: u32, seq: u64, via: Via) -> Entry {
        Entry { seq, epoch, message_id: [0; 16], origin: None, is_from_sender: true, via }
    }

    fn shown(sync: &Sync) -> Vec<u64> {
        sync.shown.iter().map(|entry| entry.seq).collect()
    }

    #[test]
    fn what_is_next_is_shown_and_a_gap_is_closed_by_history() {
        let mut sync = Sync::default();
        for seq in [1, 2, 4, 5] {
            sync.see(entry(7, seq, Via::Push));
        }
        assert_eq!((shown(&sync), sync.is_behind()), (vec![1, 2], true));
        for seq in [3, 4, 5] {
            sync.see(entry(7, seq, Via::History));
        }
        assert_eq!((shown(&sync), sync.is_behind(), sync.repeated), (vec![1, 2, 3, 4, 5], false, 0));
    }

    #[test]
    fn repetitions_are_ignored_and_counted() {
        let mut sync = Sync::default();
        for seq in [1, 2, 1, 2, 3] {
            sync.see(entry(7, seq, Via::Push));
        }
        assert_eq!((shown(&sync), sync.repeated), (vec![1, 2, 3], 2));
    }

    #[test]
    fn a_position_ahead_means_that_history_has_more() {
        let mut sync = Sync::default();
        sync.hear(7, 2);
        assert!(sync.is_behind());
        sync.hear(6, 9);
        sync.see(entry(7, 1, Via::History));
        sync.see(entry(7, 2, Via::History));
        assert!(!sync.is_behind());
    }

    #[test]
    fn a_greater_epoch_begins_anew_and_a_smaller_one_is_ignored() {
        let mut sync = Sync::default();
        sync.see(entry(7, 1, Via::Push));
        sync.see(entry(6, 2, Via::Push));
        assert_eq!(shown(&sync), [1]);
        sync.see(entry(8, 1, Via::Push));
        assert_eq!((shown(&sync), sync.epoch_changes), (vec![1], 1));
    }
}
