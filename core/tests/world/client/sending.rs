//! Sending so that nothing is lost: PROTOCOL.md, "Sending so that nothing is lost".

use bytes::Bytes;
use tidegate_core::ids::{ClientMsgId, ConversationId, MessageId, Seq};
use tidegate_proto::{Frame, Kind, v1};

use super::{Client, PATIENCE, send};
use crate::ledger::Content;
use crate::wire::Wire;

/// A message or receipt until its answer.
pub(super) struct Outgoing {
    conversation: ConversationId,
    what: What,
    /// Nothing was sent under this id before.
    is_new: bool,
    attempts: u32,
    /// Its place among all attempts of the client.
    ordinal: u64,
    pub sent: Option<(u16, u64)>,
    retry_at_ms: u64,
}

pub(super) enum What {
    Message { key: Bytes, id: MessageId, body: Bytes },
    Read { up_to: u64 },
}

impl Client {
    pub(super) fn write(&mut self, conversation: ConversationId) {
        self.next_key += 1;
        let key = Bytes::from(format!("{} {}", self.device, self.next_key));
        // A large one now and then, so that outboxes and pages fill.
        let size = if self.sim.chance(60) { 4000 } else { self.sim.below(40) as usize };
        let body = Bytes::from(format!("{} says {} {:>size$}", self.name, self.next_key, ""));
        self.enqueue(conversation, key, body);
    }

    /// The same id with other content: the client is wrong, and the first content stands.
    pub(super) fn contradict(&mut self) {
        if self.next_key == 0 {
            return;
        }
        let key = Bytes::from(format!("{} {}", self.device, 1 + self.sim.below(self.next_key)));
        let (conversation, is_same) = (*self.sim.one_of(&self.conversations), self.sim.chance(500));
        let id = self.id_of(&key);
        if is_same && let Some(before) = self.ledger.contents(id).first() {
            return self.enqueue(before.conversation, key, before.body.clone());
        }
        self.screen.borrow_mut().contradicted.insert(id);
        self.enqueue(conversation, key, Bytes::from_static(b"something else"));
    }

    fn id_of(&self, key: &Bytes) -> MessageId {
        MessageId::derive(self.user, &ClientMsgId::new(key.clone()).unwrap())
    }

    fn enqueue(&mut self, conversation: ConversationId, key: Bytes, body: Bytes) {
        let id = self.id_of(&key);
        let is_new = self.ledger.contents(id).is_empty();
        self.ledger.sends(id, Content { sender: self.user, conversation, body: body.clone() });
        let what = What::Message { key, id, body };
        self.push(conversation, what, is_new);
    }

    fn push(&mut self, conversation: ConversationId, what: What, is_new: bool) {
        let (attempts, ordinal, sent, retry_at_ms) = (0, 0, None, 0);
        self.outgoing.push(Outgoing { conversation, what, is_new, attempts, ordinal, sent, retry_at_ms });
    }

    pub(super) fn read(&mut self, conversation: ConversationId) {
        let last = self.tracks.get(&conversation).map_or(0, |track| track.last);
        if matches!(conversation, ConversationId::Lobby(_)) || last == 0 {
            return;
        }
        // Now and then more than there is.
        let up_to = 1 + self.sim.below(if self.sim.chance(100) { last + 50 } else { last });
        self.ledger.reads(self.user, conversation, Seq(up_to));
        let what = What::Read { up_to };
        self.push(conversation, what, false);
    }

    pub(super) fn send_due(&mut self, wire: &Wire, correlation: &mut u16) {
        let now_ms = self.now_ms();
        for outgoing in &mut self.outgoing {
            let is_lost = outgoing.sent.is_some_and(|(_, at)| at + PATIENCE.as_millis() as u64 <= now_ms);
            let is_due = outgoing.sent.is_none() && outgoing.retry_at_ms <= now_ms;
            if !is_due && !is_lost {
                continue;
            }
            *correlation = correlation.wrapping_add(1).max(2);
            outgoing.attempts += 1;
            self.attempts += 1;
            outgoing.ordinal = self.attempts;
            outgoing.sent = Some((*correlation, now_ms));
            let conversation_id = outgoing.conversation.to_string();
            match &outgoing.what {
                What::Message { key, body, id } => {
                    if outgoing.attempts > 1 || !outgoing.is_new {
                        self.ledger.repeats(*id);
                    }
                    self.sim.trace(|| format!("{} sends {id} to {conversation_id}", self.name));
                    let (client_msg_id, body) = (key.clone(), body.clone());
                    send(
                        wire,
                        Kind::Send,
                        *correlation,
                        &v1::Send { conversation_id, client_msg_id, content_type: 0, body },
                    );
                }
                What::Read { up_to } => {
                    let receipt = v1::Receipt { conversation_id, delivered_seq: *up_to, read_seq: *up_to };
                    send(wire, Kind::Receipt, *correlation, &receipt);
                }
            }
        }
    }

    fn take(&mut self, correlation: u16) -> Option<Outgoing> {
        let is_it = |outgoing: &Outgoing| outgoing.sent.is_some_and(|(sent, _)| sent == correlation);
        let at = self.outgoing.iter().position(is_it)?;
        Some(self.outgoing.remove(at))
    }

    pub(super) fn is_acked(&mut self, correlation: u16, frame: &Frame) {
        // The answer to an attempt that was given up is worth as much, but its number is forgotten.
        let Some(outgoing) = self.take(correlation) else { return };
        match outgoing.what {
            What::Message { id, .. } => {
                let ack: v1::SendAck = frame.decode().unwrap();
                if MessageId::from_wire(&ack.message_id) != Some(id) {
                    self.sim.violation(format!("guarantee 3: {id} is acknowledged as {:?}", ack.message_id));
                }
                self.sim.trace(|| format!("{} has the ack of {id}", self.name));
                self.sim.mix(u64::from(correlation));
                self.ledger.is_acked(id, self.backends.is_durably_queued(id));
                if outgoing.attempts == 1 && outgoing.is_new {
                    let attempt = (self.connection, outgoing.conversation, outgoing.ordinal, id);
                    self.screen.borrow_mut().first_attempts.push(attempt);
                }
            }
            What::Read { up_to } => {
                self.ledger.receipt_is_acked(self.user, outgoing.conversation, Seq(up_to));
            }
        }
    }

    pub(super) fn is_refused(&mut self, correlation: u16, error: &v1::Error) {
        let may_retry = (1000..2000).contains(&error.code);
        let retry_at_ms = self.now_ms() + u64::from(error.retry_after_ms).max(50);
        if self.is_refused_an_answer(correlation, retry_at_ms) && !may_retry {
            self.sim.violation(format!("guarantee 8: {} was refused an answer: {:?}", self.name, error.code()));
        }
        if error.code() == v1::Code::SlowDown {
            self.sim.count("slowed down");
        }
        let Some(mut outgoing) = self.take(correlation) else { return };
        if may_retry {
            outgoing.sent = None;
            outgoing.retry_at_ms = retry_at_ms;
            self.outgoing.push(outgoing);
        } else {
            self.sim.violation(format!("guarantee 8: {} was refused: {:?} {}", self.name, error.code(), error.text));
        }
    }
}
