//! What a device makes of the frames it gets: pushes, replies, errors, the end.
//!
//! In: a frame and the time; out: what was seen goes to its seat, what has to be asked again to the queues. A frame that no
//! server should send is a finding.

use tidegate_proto::v1::{Behind, Close, Error, HistoryReply, Message, Messages, NotifyNewMessages, SyncReply};
use tidegate_proto::{Frame, Kind};

use super::{ASK_PAUSE_MS, Asked, BACK_OFF_MS, Client, Command, Ending, Outgoing, RECEIPT_INTERVAL_MS};
use crate::chaos::evidence::{Answer, Via};
use crate::chaos::seat::{Seat, entry};
use crate::finding::Fault;
use crate::wire::scan_send_ack;

impl Client {
    /// Takes a frame.
    ///
    /// # Errors
    /// The [`Ending`] of the connection.
    pub fn handle_frame(&mut self, frame: &Frame, now_ms: u64) -> Result<(), Ending> {
        (self.heard_ms, self.pings) = (now_ms, 0);
        let Some(kind) = frame.kind() else { return Ok(()) };
        let nonsense = |_| Ending::Nonsense;
        let outcome = match kind {
            Kind::Message => frame.decode::<Message>().map(|message| self.see(&message, Via::Push)),
            Kind::Messages => frame.decode::<Messages>().map(|joined| {
                joined.messages.iter().for_each(|message| self.see(message, Via::Push));
            }),
            // Sync brings what a pull would.
            Kind::NotifyNewMessages => frame.decode().map(|notice: NotifyNewMessages| {
                let NotifyNewMessages { conversation_id, epoch, latest_seq, spread_ms } = notice;
                let behind = Behind { conversation_id, epoch, last_seq: latest_seq, spread_ms, ..Behind::default() };
                self.handle_behind(&behind, now_ms);
            }),
            Kind::Close => {
                let close: Close = frame.decode().map_err(nonsense)?;
                *self.figures.closes.entry(close.code).or_default() += 1;
                return Err(Ending::Closed(close.code));
            }
            Kind::SendRejected => {
                self.find(Fault::Refused, "an acknowledged message was taken back (SendRejected)");
                Ok(())
            }
            Kind::Behind => frame.decode().map(|behind| self.handle_behind(&behind, now_ms)),
            Kind::SendAck | Kind::SyncReply | Kind::HistoryReply | Kind::ReceiptAck | Kind::Pong | Kind::Error => {
                let Some(command) = self.in_flight.remove(&frame.head.correlation) else {
                    self.find(Fault::Protocol, "a reply to a command that is not in flight");
                    return Ok(());
                };
                self.figures.late_answers += u64::from(command.is_late);
                self.handle_reply(kind, frame, command, now_ms)
            }
            _ => Ok(()),
        };
        outcome.map_err(|_| {
            self.find(Fault::Protocol, "a payload that is not its message");
            Ending::Nonsense
        })
    }

    /// Notes what is wrong.
    pub fn find(&mut self, fault: Fault, what: &str) {
        let who = &self.who;
        self.findings.add(fault, || format!("{who}: {what}"));
    }

    fn handle_reply(
        &mut self,
        kind: Kind,
        frame: &Frame,
        command: Command,
        now_ms: u64,
    ) -> Result<(), prost::DecodeError> {
        let is_late = command.is_late;
        match (kind, command.asked) {
            (Kind::Error, asked) => {
                let error: Error = frame.decode()?;
                self.handle_error(&error, is_late, asked, now_ms);
            }
            (Kind::SendAck, Asked::Message(index)) => match scan_send_ack(&frame.payload) {
                Some(message_id) => self.accept(index, message_id, now_ms),
                None => self.find(Fault::Protocol, "a SendAck without a message id"),
            },
            (Kind::SyncReply, Asked::Sync(places)) => {
                let reply: SyncReply = frame.decode()?;
                if reply.synced.is_empty() {
                    self.find(Fault::Protocol, "a SyncReply without any answer");
                }
                for (seat, _) in places.iter().filter(|_| !is_late) {
                    self.seats[*seat].asking = false;
                }
                self.handle_synced(&places, &reply.synced, now_ms);
            }
            (Kind::HistoryReply, Asked::History(index)) => {
                let reply: HistoryReply = frame.decode()?;
                let Seat { sync, users, asking, ask_due_ms, .. } = &mut self.seats[index];
                let before = sync.last();
                let entries = reply.messages.iter().map(|message| entry(&self.terms, users, message, Via::Answer));
                sync.page(reply.epoch, reply.last_seq, reply.more, entries);
                if !is_late {
                    *asking = false;
                }
                if sync.last() == before {
                    *ask_due_ms = now_ms + ASK_PAUSE_MS;
                }
            }
            (Kind::ReceiptAck, Asked::Receipt { seat, delivered, read }) => {
                let seat = &mut self.seats[seat];
                seat.delivered_acked = seat.delivered_acked.max(delivered);
                seat.read_acked = seat.read_acked.max(read);
                seat.receipt_pending = false;
                seat.receipt_due_ms = now_ms + RECEIPT_INTERVAL_MS;
            }
            (Kind::Pong, Asked::Ping) => {}
            _ => self.find(Fault::Protocol, "a reply of another kind than its command"),
        }
        Ok(())
    }

    fn accept(&mut self, index: usize, message_id: [u8; 16], now_ms: u64) {
        let Outgoing { sent, offered_ms, seat, .. } = &mut self.messages[index];
        match sent.answer {
            Answer::Accepted(before) if before == message_id => {}
            Answer::Accepted(_) => {
                let origin = sent.origin;
                self.findings.add(Fault::WrongId, || format!("{origin:?} was acknowledged under two ids"));
            }
            Answer::Refused => {
                let origin = sent.origin;
                self.findings.add(Fault::Protocol, || format!("{origin:?} was refused for good and then accepted"));
            }
            Answer::None => {
                sent.answer = Answer::Accepted(message_id);
                self.figures.ack_ms_max = self.figures.ack_ms_max.max(now_ms - *offered_ms);
                self.figures.accepted_at_ms.push(now_ms);
                self.unsettled -= 1;
                self.seats[*seat].accepted += 1;
                // It may wait for its next attempt after silence.
                self.waiting.retain(|(_, waiting)| *waiting != index);
            }
        }
    }

    fn handle_error(&mut self, error: &Error, is_late: bool, asked: Asked, now_ms: u64) {
        *self.figures.errors.entry(error.code).or_default() += 1;
        if is_late {
            return;
        }
        if !(1_000..2_000).contains(&error.code) {
            let (who, code, text) = (&self.who, error.code().as_str_name(), &error.text);
            match asked {
                Asked::Message(index) if self.messages[index].sent.answer == Answer::None => {
                    self.messages[index].sent.answer = Answer::Refused;
                    self.unsettled -= 1;
                }
                _ => {}
            }
            self.findings.add(Fault::Refused, || format!("{who}: {asked:?} was answered {code} {text}"));
            if matches!(asked, Asked::Message(_)) {
                return;
            }
        }
        let attempt = match asked {
            Asked::Message(index) => {
                self.messages[index].errors += 1;
                self.messages[index].errors
            }
            _ => 3,
        };
        let own_ms = (BACK_OFF_MS[0] << attempt.min(10)).min(BACK_OFF_MS[1]);
        let back_off_ms = u64::from(error.retry_after_ms).max(own_ms);
        let chance_ms = self.random.below(back_off_ms / 2 + 1);
        self.ask_again(asked, now_ms + back_off_ms + chance_ms);
    }

    fn see(&mut self, message: &Message, via: Via) {
        let Some(seat) = self.seats.iter_mut().find(|seat| seat.id == message.conversation_id) else {
            let (who, id) = (&self.who, &message.conversation_id);
            return self.findings.add(Fault::Foreign, || format!("{who}: a message of {id}"));
        };
        seat.sync.see(entry(&self.terms, &seat.users, message, via));
    }
}
