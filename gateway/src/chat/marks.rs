//! How far the user and, in private, the other side have come in a conversation.
//!
//! In go positions, watermarks and what is shown, out come the unread count, receipts and what became of one's own messages.
//! Must always hold: own messages are not unread, and what is read on any device of the user's is read here.

use std::time::{Duration, Instant};

/// Receipts of one conversation are at least so far apart.
pub const RECEIPT_INTERVAL: Duration = Duration::from_millis(500);

/// See the module.
#[derive(Debug, Default)]
pub struct Marks {
    read: u64,
    unread: u32,
    /// Up to here `unread` counts already.
    counted_to: u64,
    read_sent: u64,
    delivered_sent: u64,
    receipt_not_before: Option<Instant>,
    /// The user's newest message that was shown.
    own: u64,
    other_delivered: u64,
    other_read: u64,
}

impl Marks {
    /// Messages of others that the user has not read.
    pub fn unread(&self) -> u32 {
        self.unread
    }

    /// Up to where the user has read.
    pub fn read(&self) -> u64 {
        self.read
    }

    /// Showing begins after `last`: what is up to there is not ours to acknowledge.
    pub fn begin(&mut self, last: u64) {
        self.delivered_sent = last;
    }

    /// Where the user stands, at a login: a receipt may have been lost with the connection before.
    pub fn handle_position(&mut self, read_seq: u64, unread: u32, last_seq: u64) {
        self.read_sent = read_seq;
        self.handle_count(read_seq, unread, last_seq);
    }

    /// Where the user stands, and what is unread up to `last_seq`.
    pub fn handle_count(&mut self, read_seq: u64, unread: u32, last_seq: u64) {
        self.read = self.read.max(read_seq);
        self.read_sent = self.read_sent.max(read_seq);
        if last_seq >= self.counted_to {
            self.counted_to = last_seq;
            self.unread = if self.read >= last_seq { 0 } else { unread };
        }
    }

    /// A message came onto the screen; `here`: where the user looks.
    pub fn handle_shown(&mut self, seq: u64, here: bool, own: bool) {
        if own {
            self.handle_own(seq);
        }
        if own && self.read + 1 == seq {
            // Own messages are never unread: nothing to tell the server.
            let told = self.read_sent == self.read;
            self.read = seq;
            self.read_sent = if told { seq } else { self.read_sent };
            self.delivered_sent = if told { seq } else { self.delivered_sent };
        } else if here {
            self.handle_read_here(seq);
        } else if !own && seq > self.counted_to {
            self.unread += 1;
        }
        self.counted_to = self.counted_to.max(seq);
    }

    /// Messages between two sequences are not shown; whose they are is not known, and most are of others.
    pub fn handle_left_out(&mut self, after: u64, before: u64) {
        let uncounted = (before - 1).saturating_sub(self.counted_to.max(after));
        self.unread = self.unread.saturating_add(u32::try_from(uncounted).unwrap_or(u32::MAX));
        self.counted_to = self.counted_to.max(before - 1);
    }

    /// A message of the user's came onto the screen, maybe out of turn.
    pub fn handle_own(&mut self, seq: u64) {
        self.own = self.own.max(seq);
    }

    /// The user has read what is shown, up to `last`.
    pub fn handle_read_here(&mut self, last: u64) {
        self.read = self.read.max(last);
        self.unread = 0;
    }

    /// The user has read on another device; `newest` is known to exist.
    pub fn handle_read_elsewhere(&mut self, seq: u64, newest: u64) {
        self.read = self.read.max(seq);
        self.read_sent = self.read_sent.max(seq);
        // Whose messages the rest are is not known here; the next answer of the server counts them.
        let left = newest.saturating_sub(self.read);
        self.unread = self.unread.min(u32::try_from(left).unwrap_or(u32::MAX));
    }

    /// The other side's watermarks; true if it has now read all of the user's messages.
    pub fn handle_other(&mut self, delivered_seq: u64, read_seq: u64) -> bool {
        let was_read = self.other_read >= self.own;
        self.other_read = self.other_read.max(read_seq);
        self.other_delivered = self.other_delivered.max(delivered_seq).max(read_seq);
        !was_read && self.other_read >= self.own
    }

    /// What became of the user's newest message with the other side; nothing to say if there is none.
    pub fn own_is(&self) -> &'static str {
        match self.own {
            0 => "",
            own if self.other_read >= own => "read",
            own if self.other_delivered >= own => "delivered",
            _ => "sent",
        }
    }

    /// Whether the server does not know yet what arrived, up to `last`, or was read.
    pub fn owes_receipt(&self, last: u64) -> bool {
        self.read > self.read_sent || last > self.delivered_sent
    }

    /// The watermarks to tell now: delivered and read.
    pub fn due_receipt(&mut self, now: Instant, last: u64) -> Option<(u64, u64)> {
        if !self.owes_receipt(last) || self.receipt_not_before.is_some_and(|at| now < at) {
            return None;
        }
        self.receipt_not_before = Some(now + RECEIPT_INTERVAL);
        (self.read_sent, self.delivered_sent) = (self.read, last);
        Some((last, self.read))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_read_elsewhere_is_read_here() {
        let mut marks = Marks::default();
        marks.handle_position(3, 4, 9);
        marks.handle_read_elsewhere(8, 9);
        assert_eq!((marks.read(), marks.unread()), (8, 1), "one message is left, maybe an own one");
        marks.handle_read_elsewhere(5, 9);
        assert_eq!(marks.unread(), 1, "watermarks only move forward");
        marks.handle_read_elsewhere(9, 9);
        assert_eq!(marks.unread(), 0);
        marks.begin(9);
        assert!(!marks.owes_receipt(9), "the other device has told the server");
    }

    #[test]
    fn a_count_older_than_what_was_shown_since_is_void() {
        let mut marks = Marks::default();
        marks.handle_position(3, 0, 3);
        marks.handle_shown(4, false, false);
        marks.handle_shown(5, false, false);
        marks.handle_count(3, 1, 4);
        assert_eq!(marks.unread(), 2);
        marks.handle_count(5, 0, 5);
        assert_eq!(marks.unread(), 0);
    }

    #[test]
    fn an_own_message_is_sent_then_delivered_then_read() {
        let mut marks = Marks::default();
        assert!(!marks.handle_other(2, 2));
        assert_eq!(marks.own_is(), "");
        marks.handle_shown(3, true, true);
        assert_eq!(marks.own_is(), "sent");
        assert!(!marks.handle_other(3, 0));
        assert_eq!(marks.own_is(), "delivered");
        assert!(marks.handle_other(0, 3), "told once");
        assert!(!marks.handle_other(3, 3));
        assert_eq!(marks.own_is(), "read");
    }
}
