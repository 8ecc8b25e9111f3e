//! The judge: was every accepted message delivered to every receiver exactly once and in order?
//!
//! In: facts in the order in which they were seen: a message was sent, accepted, refused, delivered, a receiver's
//! connection closed. Out: counts and [`Findings`]. Pure logic: no clock, no socket, so that made-up histories can test
//! it.
//!
//! Memory holds what is unsettled, not the history: a message is forgotten once it is accepted and every receiver is
//! past its sequence. What is forgotten can still be told from what never was, because sequences and counters are
//! dense.

use std::collections::{BTreeSet, VecDeque};

use crate::finding::{Fault, Findings};

/// Sixteen bytes that name a message; all zero means "not known yet".
pub type MessageId = [u8; 16];

const UNKNOWN: MessageId = [0; 16];

/// A sequence further ahead than this is a fault, not a reason to allocate.
const JUMP_MAX: u64 = 4_000_000;

/// One delivery as a receiver saw it.
#[derive(Clone, Copy, Debug)]
pub struct Delivery {
    /// The message's place in its conversation.
    pub seq: u64,
    /// Identity of the conversation's storage life.
    pub epoch: u32,
    /// The server's name of the message.
    pub message_id: MessageId,
    /// Who sent it, from the body.
    pub member: u32,
    /// The sender's counter, from the body.
    pub counter: u32,
}

/// Judges any number of conversations. A conversation's members are its senders and its receivers.
#[derive(Debug, Default)]
pub struct Judge {
    conversations: Vec<Conversation>,
    findings: Findings,
    counts: Counts,
}

/// What came of the messages.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Counts {
    /// Messages written to a connection, repetitions not counted.
    pub sent: u64,
    /// Acknowledged by the server.
    pub accepted: u64,
    /// Answered with an error for good, or given up after the last repetition.
    pub refused: u64,
    /// Deliveries that were the receiver's next in order.
    pub delivered_in_order: u64,
    /// Deliveries of any kind.
    pub delivered: u64,
    /// Messages without an answer at the end.
    pub unanswered: u64,
    /// Delivered though never acknowledged: allowed, a client has to repeat them to know.
    pub uncertain: u64,
    /// Deliveries that a closed connection can no longer get.
    pub undelivered_to_closed: u64,
}

impl Counts {
    /// Adds another thread's.
    pub fn add(&mut self, other: &Self) {
        self.sent += other.sent;
        self.accepted += other.accepted;
        self.refused += other.refused;
        self.delivered_in_order += other.delivered_in_order;
        self.delivered += other.delivered;
        self.unanswered += other.unanswered;
        self.uncertain += other.uncertain;
        self.undelivered_to_closed += other.undelivered_to_closed;
    }
}

#[derive(Debug)]
struct Conversation {
    label: String,
    receivers: Vec<Receiver>,
    senders: Vec<Sender>,
    epoch: Option<u32>,
    /// Sequence of `slots[0]`.
    base_seq: u64,
    slots: VecDeque<Slot>,
    /// Accepted messages nobody has seen yet.
    accepted_unseen: u64,
    deliveries_until_trim: usize,
}

#[derive(Debug)]
struct Receiver {
    next_seq: u64,
    /// Below `next_seq` and not seen: empty unless something is wrong.
    missing: BTreeSet<u64>,
    closed: bool,
}

#[derive(Debug, Default)]
struct Sender {
    /// Counter of `messages[0]`.
    base_counter: u32,
    messages: VecDeque<Sent>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Answer {
    None,
    Accepted,
    /// An error that says the message is not stored and never will be.
    Refused,
    /// The last of several errors that do not say so.
    GivenUp,
}

#[derive(Debug)]
struct Sent {
    /// 0: not delivered yet.
    seq: u64,
    message_id: MessageId,
    answer: Answer,
}

/// Who holds a sequence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Slot {
    member: u32,
    counter: u32,
    message_id: MessageId,
}

/// A sequence nobody has seen yet, though a later one was seen.
const EMPTY: Slot = Slot { member: u32::MAX, counter: u32::MAX, message_id: UNKNOWN };

impl Judge {
    /// Adds a conversation of so many members; `label` names it in findings. Returns its index.
    pub fn add_conversation(&mut self, label: &str, members: usize) -> usize {
        self.conversations.push(Conversation {
            label: label.to_owned(),
            receivers: (0..members)
                .map(|_| Receiver { next_seq: 1, missing: BTreeSet::new(), closed: false })
                .collect(),
            senders: (0..members).map(|_| Sender::default()).collect(),
            epoch: None,
            base_seq: 1,
            slots: VecDeque::new(),
            accepted_unseen: 0,
            deliveries_until_trim: trim_interval(members),
        });
        self.conversations.len() - 1
    }

    /// A member sends its next message. Returns the message's counter.
    pub fn sent(&mut self, conversation: usize, member: u32) -> u32 {
        self.counts.sent += 1;
        let sender = &mut self.conversations[conversation].senders[member as usize];
        let counter = sender.base_counter + u32::try_from(sender.messages.len()).expect("a window is far smaller");
        sender.messages.push_back(Sent { seq: 0, message_id: UNKNOWN, answer: Answer::None });
        counter
    }

    /// The server acknowledged the message.
    pub fn accepted(&mut self, conversation: usize, member: u32, counter: u32, message_id: MessageId) {
        let Conversation { label, senders, accepted_unseen, .. } = &mut self.conversations[conversation];
        let Some(sent) = senders[member as usize].find(counter) else {
            return self
                .findings
                .add(Fault::Protocol, || format!("{label}: second ack for message {member}/{counter}"));
        };
        if sent.answer == Answer::Accepted {
            return self
                .findings
                .add(Fault::Protocol, || format!("{label}: second ack for message {member}/{counter}"));
        }
        sent.answer = Answer::Accepted;
        self.counts.accepted += 1;
        if sent.seq == 0 {
            *accepted_unseen += 1;
        }
        if sent.message_id == UNKNOWN {
            sent.message_id = message_id;
        } else if sent.message_id != message_id {
            let seq = sent.seq;
            self.findings.add(Fault::WrongId, || {
                format!("{label} seq {seq}: delivered under another id than acknowledged ({member}/{counter})")
            });
        }
    }

    /// The message was answered with an error for good.
    pub fn refused(&mut self, conversation: usize, member: u32, counter: u32) {
        if let Some(seq) = self.not_accepted(conversation, member, counter, Answer::Refused) {
            let label = &self.conversations[conversation].label;
            self.findings.add(Fault::RefusedYetDelivered, || format!("{label} seq {seq}: {member}/{counter}"));
        }
    }

    /// The message was answered with "later" as often as we were ready to repeat it. It may or may not be stored.
    pub fn given_up(&mut self, conversation: usize, member: u32, counter: u32) {
        self.not_accepted(conversation, member, counter, Answer::GivenUp);
    }

    /// The sequence under which the message was delivered nevertheless.
    fn not_accepted(&mut self, conversation: usize, member: u32, counter: u32, answer: Answer) -> Option<u64> {
        let sent = self.conversations[conversation].senders[member as usize].find(counter)?;
        if sent.answer != Answer::None {
            return None;
        }
        sent.answer = answer;
        self.counts.refused += 1;
        (sent.seq != 0).then_some(sent.seq)
    }

    /// A receiver got a message.
    pub fn delivered(&mut self, conversation: usize, receiver: u32, delivery: Delivery) {
        self.counts.delivered += 1;
        let Self { conversations, findings, counts } = self;
        let conversation = &mut conversations[conversation];
        let seq = delivery.seq;
        if seq == 0 || seq >= conversation.base_seq + conversation.slots.len() as u64 + JUMP_MAX {
            return findings.add(Fault::Protocol, || format!("{}: impossible sequence {seq}", conversation.label));
        }
        if *conversation.epoch.get_or_insert(delivery.epoch) != delivery.epoch {
            findings.add(Fault::EpochChanged, || {
                format!("{} seq {seq}: epoch {} after {:?}", conversation.label, delivery.epoch, conversation.epoch)
            });
        }
        if conversation.receivers[receiver as usize].take(seq, &conversation.label, receiver, findings) {
            counts.delivered_in_order += 1;
        }
        conversation.identify(delivery, findings);
        conversation.deliveries_until_trim -= 1;
        if conversation.deliveries_until_trim == 0 {
            conversation.deliveries_until_trim = trim_interval(conversation.receivers.len());
            conversation.trim();
        }
    }

    /// The receiver's connection is gone; nothing more is expected of it.
    pub fn receiver_closed(&mut self, conversation: usize, receiver: u32) {
        self.conversations[conversation].receivers[receiver as usize].closed = true;
    }

    /// Deliveries that are still to come, as far as is known. Zero means settled.
    pub fn outstanding(&self) -> u64 {
        self.conversations.iter().map(Conversation::outstanding).sum()
    }

    /// Notes what was wrong with the traffic itself.
    pub fn find(&mut self, fault: Fault, example: impl FnOnce() -> String) {
        self.findings.add(fault, example);
    }

    /// The last word: what is still missing now is lost.
    pub fn finish(mut self) -> (Counts, Findings) {
        for conversation in &self.conversations {
            conversation.finish(&mut self.counts, &mut self.findings);
        }
        (self.counts, self.findings)
    }
}

/// Trimming costs one step per member, so that it is done once in as many deliveries.
fn trim_interval(members: usize) -> usize {
    members.max(64)
}

impl Receiver {
    /// True if `seq` was the next in order.
    fn take(&mut self, seq: u64, label: &str, receiver: u32, findings: &mut Findings) -> bool {
        if seq == self.next_seq {
            self.next_seq += 1;
            return true;
        }
        if seq > self.next_seq {
            self.missing.extend(self.next_seq..seq);
            self.next_seq = seq + 1;
        } else if self.missing.remove(&seq) {
            let after = self.next_seq - 1;
            findings
                .add(Fault::Reordered, || format!("{label} seq {seq}: receiver {receiver} had seen {after} before it"));
        } else {
            findings.add(Fault::Doubled, || format!("{label} seq {seq}: receiver {receiver} got it again"));
        }
        false
    }
}

impl Sender {
    fn find(&mut self, counter: u32) -> Option<&mut Sent> {
        self.messages.get_mut(counter.checked_sub(self.base_counter)? as usize)
    }

    fn has_settled(&self, counter: u32) -> bool {
        counter < self.base_counter
    }
}

impl Conversation {
    /// Compares what the delivery says of its sequence with what others said, or notes it if it is the first.
    fn identify(&mut self, delivery: Delivery, findings: &mut Findings) {
        let Delivery { seq, message_id, member, counter, .. } = delivery;
        // Below the window everybody has been past this sequence: a doubled delivery, found by the receiver's part.
        let Some(index) = seq.checked_sub(self.base_seq) else { return };
        let index = usize::try_from(index).expect("bounded by JUMP_MAX");
        while self.slots.len() <= index {
            self.slots.push_back(EMPTY);
        }
        let slot = Slot { member, counter, message_id };
        let label = &self.label;
        if self.slots[index] == slot {
            return;
        }
        if self.slots[index] != EMPTY {
            return findings.add(Fault::Disagreement, || {
                format!("{label} seq {seq}: one receiver got {:?}, another {slot:?}", self.slots[index])
            });
        }
        self.slots[index] = slot;
        let Some(sender) = self.senders.get_mut(member as usize) else {
            return findings.add(Fault::NeverSent, || format!("{label} seq {seq}: no member {member}"));
        };
        if sender.has_settled(counter) {
            return findings
                .add(Fault::StoredTwice, || format!("{label} seq {seq}: {member}/{counter} was delivered before"));
        }
        let Some(sent) = sender.find(counter) else {
            return findings
                .add(Fault::NeverSent, || format!("{label} seq {seq}: {member} has not sent {counter} yet"));
        };
        if sent.seq != 0 {
            let first = sent.seq;
            return findings
                .add(Fault::StoredTwice, || format!("{label} seq {seq}: {member}/{counter} has seq {first} too"));
        }
        sent.seq = seq;
        match sent.answer {
            Answer::Accepted => self.accepted_unseen -= 1,
            Answer::Refused => {
                findings.add(Fault::RefusedYetDelivered, || format!("{label} seq {seq}: {member}/{counter}"));
            }
            Answer::None | Answer::GivenUp => {}
        }
        if sent.message_id == UNKNOWN {
            sent.message_id = message_id;
        } else if sent.message_id != message_id {
            findings.add(Fault::WrongId, || {
                format!("{label} seq {seq}: delivered under another id than acknowledged ({member}/{counter})")
            });
        }
    }

    /// Forgets what every receiver is past.
    fn trim(&mut self) {
        let Some(seen_by_all) = self.receivers.iter().filter(|r| !r.closed).map(|r| r.next_seq).min() else { return };
        let settled = seen_by_all.saturating_sub(self.base_seq).min(self.slots.len() as u64);
        // An empty slot that all are past is a gap; it stays, and what follows it too, for `finish` to find.
        let settled =
            self.slots.range(..usize::try_from(settled).expect("bounded by len")).take_while(|s| **s != EMPTY).count();
        self.slots.drain(..settled);
        self.base_seq += settled as u64;
        for sender in &mut self.senders {
            while let Some(sent) = sender.messages.front()
                && sent.answer == Answer::Accepted
                && sent.seq != 0
                && sent.seq < self.base_seq
            {
                sender.messages.pop_front();
                sender.base_counter += 1;
            }
        }
    }

    fn last_seq(&self) -> u64 {
        self.base_seq + self.slots.len() as u64 - 1
    }

    fn outstanding(&self) -> u64 {
        let last_seq = self.last_seq();
        let open = self.receivers.iter().filter(|receiver| !receiver.closed);
        let (open, behind) = open.fold((0, 0), |(open, behind), receiver| {
            (open + 1, behind + last_seq + 1 - receiver.next_seq + receiver.missing.len() as u64)
        });
        behind + self.accepted_unseen * open
    }

    fn finish(&self, counts: &mut Counts, findings: &mut Findings) {
        let label = &self.label;
        let last_seq = self.last_seq();
        let empty = |seq: u64| {
            let index = seq.checked_sub(self.base_seq).and_then(|index| usize::try_from(index).ok());
            index.is_some_and(|index| self.slots.get(index) == Some(&EMPTY))
        };
        for seq in (self.base_seq..=last_seq).filter(|seq| empty(*seq)) {
            findings.add(Fault::Gap, || format!("{label} seq {seq}: nobody got it, though later ones arrived"));
        }
        for (index, receiver) in self.receivers.iter().enumerate() {
            let lost = receiver.missing.iter().copied().chain(receiver.next_seq..=last_seq).filter(|seq| !empty(*seq));
            for seq in lost {
                if receiver.closed {
                    counts.undelivered_to_closed += 1;
                } else {
                    findings.add(Fault::Lost, || format!("{label} seq {seq}: receiver {index} never got it"));
                }
            }
        }
        let open = self.receivers.iter().any(|receiver| !receiver.closed);
        for (member, sender) in self.senders.iter().enumerate() {
            for (counter, sent) in (sender.base_counter..).zip(&sender.messages) {
                match sent.answer {
                    Answer::Accepted if sent.seq == 0 && open => findings.add(Fault::Lost, || {
                        format!("{label}: message {member}/{counter} was acknowledged, nobody got it")
                    }),
                    Answer::None | Answer::GivenUp if sent.seq != 0 => counts.uncertain += 1,
                    Answer::None => counts.unanswered += 1,
                    Answer::Accepted | Answer::Refused | Answer::GivenUp => {}
                }
            }
        }
    }
}

#[cfg(test)]
#[path = "judge_tests.rs"]
mod tests;
