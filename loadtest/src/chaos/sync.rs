//! One device's state of one conversation: PROTOCOL.md, "Staying in sync", and nothing else.
//!
//! In: messages and answers as they come; out: what is shown, in order, and what is to be asked. No clock and no socket.
//! Nothing is kept aside: what is beyond the next sequence is brought by the answer to the Sync.

use tidegate_proto::v1::SyncOutcome;

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
    /// More is missing than a Sync carries.
    must_reload: bool,
    /// Something may be missing that nobody has spoken of.
    may_be_behind: bool,
}

/// What is to be asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Question {
    /// By Sync: all that is missing.
    Sync,
    /// By History: the next page.
    Page,
}

/// A place in a conversation, as a SyncFrom names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// 0: nothing is known yet.
    pub epoch: u32,
    /// The last one shown.
    pub seq: u64,
}

impl Sync {
    /// The last sequence shown.
    pub fn last(&self) -> u64 {
        self.last
    }

    /// Where the device stands.
    pub fn place(&self) -> Place {
        Place { epoch: self.epoch, seq: self.last }
    }

    /// What is to be asked now, if anything.
    pub fn question(&self) -> Option<Question> {
        if self.must_reload {
            return Some(Question::Page);
        }
        (self.newest > self.last || self.may_be_behind).then_some(Question::Sync)
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
    }

    /// The server says where the conversation stands.
    pub fn hear(&mut self, epoch: u32, last_seq: u64) {
        if self.is_of_epoch(epoch) {
            self.newest = self.newest.max(last_seq);
        }
    }

    /// The server says that something may be missing.
    pub fn doubt(&mut self) {
        self.may_be_behind = true;
    }

    /// A Synced came for a question that was asked at `place`. False if it says that nothing is left out and yet leaves
    /// something out.
    pub fn answer(
        &mut self,
        place: Place,
        outcome: SyncOutcome,
        epoch: u32,
        last_seq: u64,
        entries: impl Iterator<Item = Entry>,
    ) -> bool {
        if place.epoch != self.epoch {
            return true;
        }
        self.may_be_behind = false;
        match outcome {
            SyncOutcome::Whole => {
                self.hear(epoch, last_seq);
                entries.for_each(|entry| self.see(entry));
                // A smaller epoch than the known one would be no answer to this question.
                epoch == self.epoch && self.last >= last_seq
            }
            SyncOutcome::Reload => {
                if epoch != self.epoch {
                    self.begin(epoch);
                }
                self.newest = self.newest.max(last_seq);
                self.must_reload = true;
                true
            }
            // Nobody leaves a conversation in these runs, so that the judge will find what is missing.
            SyncOutcome::NotMember => true,
        }
    }

    /// A page that was asked for came.
    pub fn page(&mut self, epoch: u32, last_seq: u64, has_more: bool, entries: impl Iterator<Item = Entry>) {
        self.hear(epoch, last_seq);
        entries.for_each(|entry| self.see(entry));
        self.must_reload = has_more;
    }

    /// Takes a greater epoch, dropping all of the old one. False if the epoch is a smaller one.
    fn is_of_epoch(&mut self, epoch: u32) -> bool {
        if epoch > self.epoch {
            self.begin(epoch);
        }
        epoch == self.epoch
    }

    fn begin(&mut self, epoch: u32) {
        if !self.shown.is_empty() {
            self.epoch_changes += 1;
        }
        self.shown.clear();
        (self.epoch, self.last, self.newest) = (epoch, 0, 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(epoch: u32, seq: u64, via: Via) -> Entry {
        Entry { seq, epoch, message_id: [0; 16], origin: None, is_from_sender: true, via }
    }

    fn pushed(seqs: &[u64]) -> Sync {
        let mut sync = Sync::default();
        seqs.iter().for_each(|seq| sync.see(entry(7, *seq, Via::Push)));
        sync
    }

    fn asked(seqs: &[u64]) -> impl Iterator<Item = Entry> {
        seqs.iter().map(|seq| entry(7, *seq, Via::Answer))
    }

    fn shown(sync: &Sync) -> Vec<u64> {
        sync.shown.iter().map(|entry| entry.seq).collect()
    }

    #[test]
    fn what_is_next_is_shown_and_a_gap_is_closed_by_a_sync() {
        let mut sync = pushed(&[1, 2, 4, 5]);
        assert_eq!((shown(&sync), sync.question()), (vec![1, 2], Some(Question::Sync)));
        assert!(sync.answer(sync.place(), SyncOutcome::Whole, 7, 5, asked(&[3, 4, 5])));
        assert_eq!((shown(&sync), sync.question(), sync.repeated), (vec![1, 2, 3, 4, 5], None, 0));
    }

    #[test]
    fn a_whole_answer_that_leaves_something_out_is_noticed() {
        let mut sync = pushed(&[1, 4]);
        assert!(!sync.answer(sync.place(), SyncOutcome::Whole, 7, 4, asked(&[2, 4])));
        assert_eq!((shown(&sync), sync.question()), (vec![1, 2], Some(Question::Sync)));
    }

    #[test]
    fn too_much_is_reloaded_page_by_page() {
        let mut sync = pushed(&[1]);
        sync.hear(7, 5);
        assert!(sync.answer(sync.place(), SyncOutcome::Reload, 7, 5, asked(&[])));
        assert_eq!(sync.question(), Some(Question::Page));
        sync.page(7, 5, true, asked(&[2, 3]));
        assert_eq!(sync.question(), Some(Question::Page));
        sync.page(7, 5, false, asked(&[4, 5]));
        assert_eq!((shown(&sync), sync.question()), (vec![1, 2, 3, 4, 5], None));
    }

    #[test]
    fn repetitions_are_ignored_and_counted() {
        let sync = pushed(&[1, 2, 1, 2, 3]);
        assert_eq!((shown(&sync), sync.repeated), (vec![1, 2, 3], 2));
    }

    #[test]
    fn a_position_ahead_and_a_doubt_are_asked_about() {
        let mut sync = Sync::default();
        sync.hear(7, 2);
        assert_eq!(sync.question(), Some(Question::Sync));
        sync.hear(6, 9);
        assert!(sync.answer(sync.place(), SyncOutcome::Whole, 7, 2, asked(&[1, 2])));
        assert_eq!(sync.question(), None);
        sync.doubt();
        assert_eq!(sync.question(), Some(Question::Sync));
        assert!(sync.answer(sync.place(), SyncOutcome::Whole, 7, 2, asked(&[])));
        assert_eq!(sync.question(), None);
    }

    #[test]
    fn a_greater_epoch_begins_anew_and_a_smaller_one_is_ignored() {
        let mut sync = pushed(&[1]);
        let before = sync.place();
        sync.see(entry(6, 2, Via::Push));
        assert_eq!(shown(&sync), [1]);
        sync.see(entry(8, 1, Via::Push));
        assert_eq!((shown(&sync), sync.epoch_changes), (vec![1], 1));
        // An answer to what was asked in the old epoch is none.
        assert!(sync.answer(before, SyncOutcome::Reload, 7, 9, asked(&[])));
        assert_eq!((sync.question(), sync.place()), (None, Place { epoch: 8, seq: 1 }));
        assert!(sync.answer(sync.place(), SyncOutcome::Reload, 9, 1, asked(&[])));
        assert_eq!((sync.question(), sync.place()), (Some(Question::Page), Place { epoch: 9, seq: 0 }));
    }
}
