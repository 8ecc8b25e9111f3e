//! Made-up histories: one that is right, and each way to be wrong.

use super::*;

/// A conversation of three in which each member has sent two messages, all accepted. Sequence n is message n of
/// `order`.
struct World {
    judge: Judge,
}

fn id(member: u32, counter: u32) -> MessageId {
    let mut id = [9; 16];
    id[..4].copy_from_slice(&member.to_be_bytes());
    id[4..8].copy_from_slice(&counter.to_be_bytes());
    id
}

/// Which message holds sequence `seq` (1 to 6).
fn message(seq: u64) -> (u32, u32) {
    ((seq as u32 - 1) % 3, (seq as u32 - 1) / 3)
}

impl World {
    fn new() -> Self {
        let mut judge = Judge::default();
        judge.add_conversation("room", 3);
        for seq in 1..=6 {
            let (member, counter) = message(seq);
            assert_eq!(judge.sent(0, member), counter);
            judge.accepted(0, member, counter, id(member, counter));
        }
        Self { judge }
    }

    fn delivers(mut self, receiver: u32, seqs: &[u64]) -> Self {
        for seq in seqs {
            self = self.delivers_as(receiver, *seq, *seq);
        }
        self
    }

    /// The receiver gets under `seq` what should be at `content`.
    fn delivers_as(mut self, receiver: u32, seq: u64, content: u64) -> Self {
        let (member, counter) = message(content);
        let message_id = id(member, counter);
        self.judge.delivered(0, receiver, Delivery { seq, epoch: 1, message_id, member, counter });
        self
    }

    fn faults(self) -> Vec<(Fault, u64)> {
        let (_, findings) = self.judge.finish();
        findings.iter().map(|(fault, finding)| (fault, finding.count)).collect()
    }
}

const ALL: &[u64] = &[1, 2, 3, 4, 5, 6];

#[test]
fn each_once_and_in_order_is_right() {
    let world = World::new().delivers(0, ALL).delivers(1, ALL).delivers(2, ALL);
    assert_eq!(world.judge.outstanding(), 0);
    let counts = world.judge.counts;
    assert_eq!((counts.sent, counts.accepted, counts.delivered, counts.delivered_in_order), (6, 6, 18, 18));
    assert_eq!(world.faults(), []);
}

#[test]
fn deliveries_before_the_ack_are_right() {
    let mut judge = Judge::default();
    judge.add_conversation("pair", 2);
    let counter = judge.sent(0, 1);
    let delivery = Delivery { seq: 1, epoch: 1, message_id: id(1, 0), member: 1, counter };
    judge.delivered(0, 0, delivery);
    judge.delivered(0, 1, delivery);
    judge.accepted(0, 1, counter, id(1, 0));
    assert_eq!(judge.outstanding(), 0);
    assert!(judge.finish().1.is_empty());
}

#[test]
fn a_lost_one_fails() {
    let world = World::new().delivers(0, ALL).delivers(1, &[1, 2, 4, 5, 6]).delivers(2, ALL);
    assert_eq!(world.judge.outstanding(), 1);
    assert_eq!(world.faults(), [(Fault::Lost, 1)]);
}

#[test]
fn a_lost_tail_fails() {
    let world = World::new().delivers(0, ALL).delivers(1, &[1, 2, 3, 4]).delivers(2, ALL);
    assert_eq!(world.faults(), [(Fault::Lost, 2)]);
}

#[test]
fn an_accepted_message_nobody_got_fails() {
    let seen = &[1, 2, 3, 4, 5];
    let world = World::new().delivers(0, seen).delivers(1, seen).delivers(2, seen);
    assert_eq!(world.judge.outstanding(), 3);
    assert_eq!(world.faults(), [(Fault::Lost, 1)]);
}

#[test]
fn a_doubled_one_fails() {
    let world = World::new().delivers(0, ALL).delivers(1, &[1, 2, 3, 3, 4, 5, 6]).delivers(2, ALL);
    assert_eq!(world.faults(), [(Fault::Doubled, 1)]);
}

#[test]
fn a_reordered_one_fails() {
    let world = World::new().delivers(0, ALL).delivers(1, &[1, 2, 4, 3, 5, 6]).delivers(2, ALL);
    assert_eq!(world.judge.outstanding(), 0);
    assert_eq!(world.faults(), [(Fault::Reordered, 1)]);
}

#[test]
fn a_gap_fails() {
    let mut world = World::new();
    for receiver in 0..3 {
        // The server skipped sequence 3: what should be there follows one later.
        for (seq, content) in [(1, 1), (2, 2), (4, 3), (5, 4), (6, 5), (7, 6)] {
            world = world.delivers_as(receiver, seq, content);
        }
    }
    assert_eq!(world.faults(), [(Fault::Gap, 1)]);
}

#[test]
fn different_orders_at_two_receivers_fail() {
    let mut world = World::new().delivers(0, ALL).delivers(2, ALL);
    for (seq, content) in [(1, 1), (2, 3), (3, 2), (4, 4), (5, 5), (6, 6)] {
        world = world.delivers_as(1, seq, content);
    }
    assert_eq!(world.faults(), [(Fault::Disagreement, 2)]);
}

#[test]
fn one_message_under_two_sequences_fails() {
    let mut world = World::new();
    for receiver in 0..3 {
        world = world.delivers(receiver, ALL).delivers_as(receiver, 7, 6);
    }
    assert_eq!(world.faults(), [(Fault::StoredTwice, 1)]);
}

#[test]
fn another_id_than_acknowledged_fails() {
    let mut world = World::new().delivers(0, ALL).delivers(1, ALL);
    let judge = &mut world.judge;
    judge.sent(0, 0);
    judge.accepted(0, 0, 2, id(0, 2));
    for receiver in 0..3 {
        judge.delivered(0, receiver, Delivery { seq: 7, epoch: 1, message_id: id(8, 8), member: 0, counter: 2 });
    }
    assert_eq!(world.delivers(2, ALL).judge.finish().1.count(Fault::WrongId), 1);
}

#[test]
fn a_message_refused_for_good_must_not_be_delivered() {
    let mut world = World::new().delivers(0, ALL).delivers(1, ALL).delivers(2, ALL);
    let counter = world.judge.sent(0, 1);
    world.judge.refused(0, 1, counter);
    for receiver in 0..3 {
        let delivery = Delivery { seq: 7, epoch: 1, message_id: id(1, counter), member: 1, counter };
        world.judge.delivered(0, receiver, delivery);
    }
    assert_eq!(world.faults(), [(Fault::RefusedYetDelivered, 1)]);
}

#[test]
fn a_message_without_an_answer_is_uncertain_if_delivered_and_unanswered_if_not() {
    let mut world = World::new().delivers(0, ALL).delivers(1, ALL).delivers(2, ALL);
    let counter = world.judge.sent(0, 1);
    world.judge.sent(0, 2);
    for receiver in 0..3 {
        let delivery = Delivery { seq: 7, epoch: 1, message_id: id(1, counter), member: 1, counter };
        world.judge.delivered(0, receiver, delivery);
    }
    let (counts, findings) = world.judge.finish();
    assert_eq!((counts.uncertain, counts.unanswered), (1, 1));
    assert!(findings.is_empty());
}

#[test]
fn messages_nobody_sent_a_changed_epoch_and_absurd_sequences_fail() {
    let mut world = World::new().delivers(0, ALL).delivers(1, ALL).delivers(2, ALL);
    let made_up = Delivery { seq: 7, epoch: 1, message_id: id(0, 9), member: 0, counter: 9 };
    for receiver in 0..3 {
        world.judge.delivered(0, receiver, made_up);
    }
    world.judge.delivered(0, 0, Delivery { seq: 7, epoch: 2, ..made_up });
    world.judge.delivered(0, 0, Delivery { seq: u64::MAX, ..made_up });
    world.judge.delivered(0, 0, Delivery { seq: 0, ..made_up });
    let faults = world.faults();
    assert_eq!(faults, [(Fault::Doubled, 1), (Fault::NeverSent, 1), (Fault::EpochChanged, 1), (Fault::Protocol, 2)]);
}

#[test]
fn nothing_more_is_expected_of_a_closed_receiver() {
    let mut world = World::new().delivers(0, ALL).delivers(1, &[1, 2]).delivers(2, ALL);
    world.judge.receiver_closed(0, 1);
    assert_eq!(world.judge.outstanding(), 0);
    let (counts, findings) = world.judge.finish();
    assert_eq!(counts.undelivered_to_closed, 4);
    assert!(findings.is_empty());
}

#[test]
fn settled_messages_are_forgotten_and_still_told_from_new_ones() {
    let mut judge = Judge::default();
    judge.add_conversation("pair", 2);
    let message_id = |n: u64| id(0, n as u32);
    for n in 0..10_000u64 {
        let counter = judge.sent(0, 0);
        judge.accepted(0, 0, counter, message_id(n));
        for receiver in 0..2 {
            judge.delivered(
                0,
                receiver,
                Delivery { seq: n + 1, epoch: 1, message_id: message_id(n), member: 0, counter },
            );
        }
    }
    let conversation = &judge.conversations[0];
    assert!(conversation.slots.len() <= 64 && conversation.senders[0].messages.len() <= 64);
    assert_eq!(judge.outstanding(), 0);
    // An old message again: once under its old sequence, once under a new one.
    let old = Delivery { seq: 5, epoch: 1, message_id: message_id(4), member: 0, counter: 4 };
    judge.delivered(0, 0, old);
    for receiver in 0..2 {
        judge.delivered(0, receiver, Delivery { seq: 10_001, ..old });
    }
    let (_, findings) = judge.finish();
    assert_eq!((findings.count(Fault::Doubled), findings.count(Fault::StoredTwice)), (1, 1));
}
