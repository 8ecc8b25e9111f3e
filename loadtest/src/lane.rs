//! One thread's share of the load: whole conversations with all their connections, and nothing shared with other lanes.
//!
//! In: bytes from its connections (`poll_connection`) and the passing of turns (`take_turn`); out: frames, one write
//! per connection and turn, and facts for its judge and its tally.
//!
//! Nothing here waits. A message costs no allocation: frames are copied from templates, replies find their command by
//! index, deliveries carry their own stamp.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::pin::Pin;
use std::task::{Context, Poll};

use tidegate_proto::frame::peek_head;
use tidegate_proto::v1::{Close, Error};
use tidegate_proto::{CloseCode, HEAD_BYTES, Head, Kind};
use tokio::io::{AsyncRead, ReadBuf};

use crate::clock::Clock;
use crate::connection::{Connection, Reading};
use crate::finding::Fault;
use crate::judge::{Delivery, Judge};
use crate::pacer::{Due, Rotation};
use crate::places::InFlight;
use crate::tally::{Tally, Window};
use crate::wire::{MessageView, STAMP_BYTES, Stamp, scan_send_ack};

/// Repetitions of a message after retryable errors; with the back-off about half a minute.
const REPETITIONS_MAX: u16 = 40;

/// Messages held back in a lane; beyond it they are not offered but counted as never written.
const HELD_BACK_MAX: u64 = 4_000_000;

const MESSAGE: u8 = Kind::Message as i32 as u8;
const SEND_ACK: u8 = Kind::SendAck as i32 as u8;
const ERROR: u8 = Kind::Error as i32 as u8;
const PONG: u8 = Kind::Pong as i32 as u8;
const CLOSE: u8 = Kind::Close as i32 as u8;
const SEND_REJECTED: u8 = Kind::SendRejected as i32 as u8;

/// A conversation of this lane; the index in the lane is the judge's index too.
#[derive(Debug)]
pub struct LaneConversation {
    /// Index within the run.
    pub index: u32,
    /// As on the wire.
    pub id: String,
    /// User of each member.
    pub user_ids: Vec<u64>,
}

/// A lane's state. See the module.
pub struct Lane {
    /// What was measured.
    pub tally: Tally,
    /// What it means.
    pub judge: Judge,
    /// Total of deliveries, for the progress line.
    pub delivered_total: u64,
    /// Total of acks.
    pub accepted_total: u64,
    /// Grows with everything that happens; the same value twice means that nothing has.
    pub progress: u64,
    connections: Vec<Connection>,
    conversations: Vec<LaneConversation>,
    clock: Clock,
    run: u32,
    filler: Vec<u8>,
    window: Window,
    rotation: Rotation,
    retries: BinaryHeap<Reverse<Retry>>,
    touched: Vec<u32>,
    read_buffer: Vec<u8>,
    in_flight_total: u64,
    held_back_total: u64,
    next_ping_sweep_ns: u64,
}

#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Retry {
    due_ns: u64,
    connection: u32,
    counter: u32,
    repetitions: u16,
    intended_ns: u64,
}

impl Lane {
    /// A lane of these connections; `connections[i].conversation` is an index into `conversations`.
    pub fn new(
        clock: Clock,
        run: u32,
        filler: Vec<u8>,
        conversations: Vec<LaneConversation>,
        connections: Vec<Connection>,
        rotation: Rotation,
    ) -> Self {
        let mut judge = Judge::default();
        for conversation in &conversations {
            judge.add_conversation(&conversation.id, conversation.user_ids.len());
        }
        for connection in connections.iter().filter(|connection| connection.reading == Reading::Nothing) {
            judge.receiver_closed(connection.conversation as usize, connection.member);
        }
        let frame_bytes_max = connections.iter().map(|connection| connection.frame_bytes_max).max().unwrap_or(0);
        Self {
            tally: Tally::default(),
            judge,
            delivered_total: 0,
            accepted_total: 0,
            progress: 0,
            connections,
            conversations,
            clock,
            run,
            filler,
            window: Window { start_ns: u64::MAX, end_ns: u64::MAX },
            rotation,
            retries: BinaryHeap::new(),
            touched: Vec::new(),
            // An unfinished frame and a good part of what follows.
            read_buffer: vec![0; frame_bytes_max + 192 * 1024],
            in_flight_total: 0,
            held_back_total: 0,
            next_ping_sweep_ns: 0,
        }
    }

    /// Says which part of the run is measured.
    pub fn set_window(&mut self, window: Window) {
        self.window = window;
    }

    /// How many connections there are, open or not.
    pub fn connections(&self) -> usize {
        self.connections.len()
    }

    /// Whether the connection never reads.
    pub fn is_stuck(&self, index: usize) -> bool {
        self.connections[index].reading == Reading::Nothing
    }

    /// Connections that are still open.
    pub fn open_connections(&self) -> usize {
        self.connections.iter().filter(|connection| connection.is_open).count()
    }

    /// True if nothing more is to come, as far as is known.
    pub fn is_settled(&self) -> bool {
        self.in_flight_total == 0
            && self.held_back_total == 0
            && self.retries.is_empty()
            && self.touched.is_empty()
            && self.judge.outstanding() == 0
    }

    // ---- turns

    /// Emits what is due: new messages, repetitions, pings. One write per connection.
    pub fn take_turn(&mut self, now_ns: u64, mut next_due: impl FnMut() -> Option<Due>) {
        while let Some(due) = next_due() {
            if due.messages > 0 && self.window.holds(due.intended_ns) {
                self.tally.lateness.record_n(now_ns.saturating_sub(due.intended_ns), due.messages);
            }
            for _ in 0..due.messages {
                let Some(sender) = self.rotation.next() else { break };
                self.offer(sender as usize, due.intended_ns);
            }
        }
        self.repeat_due(now_ns);
        self.ping_silent(now_ns);
        self.flush(now_ns);
    }

    fn offer(&mut self, index: usize, intended_ns: u64) {
        self.tally.whole.offered += 1;
        if self.window.holds(intended_ns) {
            self.tally.offered += 1;
        }
        let connection = &mut self.connections[index];
        if !connection.is_open || self.held_back_total >= HELD_BACK_MAX {
            self.tally.whole.never_written += 1;
        } else if connection.held_back.is_empty() && connection.places.has_place() {
            self.write_new(index, intended_ns);
        } else {
            connection.held_back.push_back(intended_ns);
            self.held_back_total += 1;
            self.tally.whole.held_back += 1;
        }
    }

    fn write_new(&mut self, index: usize, intended_ns: u64) {
        let connection = &self.connections[index];
        let counter = self.judge.sent(connection.conversation as usize, connection.member);
        self.write(index, InFlight { counter, repetitions: 0, intended_ns });
    }

    /// Puts a message's frame; the caller saw that there is a place in flight.
    fn write(&mut self, index: usize, command: InFlight) {
        let connection = &mut self.connections[index];
        let stamp = Stamp {
            run: self.run,
            conversation: self.conversations[connection.conversation as usize].index,
            member: connection.member,
            counter: command.counter,
            intended_ns: command.intended_ns,
        };
        let correlation = connection.places.issue(command).expect("the caller saw a free place");
        self.in_flight_total += 1;
        connection.put_send(correlation, stamp);
        self.touch(index);
    }

    fn touch(&mut self, index: usize) {
        let connection = &mut self.connections[index];
        if !connection.is_touched {
            connection.is_touched = true;
            self.touched.push(u32::try_from(index).expect("connections are counted in u32"));
        }
    }

    fn repeat_due(&mut self, now_ns: u64) {
        while let Some(Reverse(retry)) = self.retries.peek()
            && retry.due_ns <= now_ns
        {
            let Some(Reverse(retry)) = self.retries.pop() else { break };
            let index = retry.connection as usize;
            let Retry { counter, repetitions, intended_ns, .. } = retry;
            if !self.connections[index].is_open {
                continue;
            }
            if self.connections[index].places.has_place() {
                self.tally.whole.repeated += 1;
                self.write(index, InFlight { counter, repetitions, intended_ns });
            } else {
                self.retries.push(Reverse(Retry { due_ns: now_ns + 1_000_000, ..retry }));
            }
        }
    }

    fn ping_silent(&mut self, now_ns: u64) {
        if now_ns < self.next_ping_sweep_ns {
            return;
        }
        self.next_ping_sweep_ns = now_ns + 1_000_000_000;
        for index in 0..self.connections.len() {
            let connection = &mut self.connections[index];
            if connection.is_open && now_ns.saturating_sub(connection.written_ns) > connection.ping_after_ns {
                connection.put_ping();
                self.touch(index);
            }
        }
    }

    fn flush(&mut self, now_ns: u64) {
        let mut touched = std::mem::take(&mut self.touched);
        touched.retain(|index| {
            let index = *index as usize;
            let connection = &mut self.connections[index];
            if !connection.is_open {
                return false;
            }
            match connection.flush(now_ns) {
                Ok(true) => {
                    connection.is_touched = false;
                    false
                }
                // The socket is full; the next turn tries again.
                Ok(false) => true,
                Err(error) => {
                    self.close(index, &format!("write: {}", error.kind()));
                    false
                }
            }
        });
        touched.append(&mut self.touched);
        self.touched = touched;
    }

    // ---- receiving

    /// Reads and handles all that has arrived on a connection. Ready when the connection is closed.
    pub fn poll_connection(&mut self, index: usize, context: &mut Context<'_>) -> Poll<()> {
        let mut buffer = std::mem::take(&mut self.read_buffer);
        let polled = loop {
            let connection = &mut self.connections[index];
            if !connection.is_open {
                break Poll::Ready(());
            }
            let kept = connection.unfinished.len();
            buffer[..kept].copy_from_slice(&connection.unfinished);
            let mut read = ReadBuf::new(&mut buffer[kept..]);
            match Pin::new(&mut connection.stream).poll_read(context, &mut read) {
                Poll::Pending => break Poll::Pending,
                Poll::Ready(Err(error)) => self.close(index, &format!("read: {}", error.kind())),
                Poll::Ready(Ok(())) if read.filled().is_empty() => self.close(index, "end of stream"),
                Poll::Ready(Ok(())) => {
                    let filled = kept + read.filled().len();
                    connection.unfinished.clear();
                    self.take_frames(index, &buffer[..filled]);
                }
            }
        };
        self.read_buffer = buffer;
        // Messages that were held back have taken the places of those that were answered; they have waited long enough.
        if self.connections[index].is_touched {
            self.flush(self.clock.now_ns());
        }
        polled
    }

    /// Handles what came in the same segment as the login reply.
    pub fn take_leftover(&mut self, index: usize) {
        let bytes = std::mem::take(&mut self.connections[index].unfinished);
        self.take_frames(index, &bytes);
    }

    fn take_frames(&mut self, index: usize, mut bytes: &[u8]) {
        let now_ns = self.clock.now_ns();
        let frame_bytes_max = self.connections[index].frame_bytes_max;
        loop {
            match peek_head(bytes, frame_bytes_max) {
                Ok(Some(head)) if bytes.len() - HEAD_BYTES >= head.payload_bytes as usize => {
                    let (frame, rest) = bytes.split_at(HEAD_BYTES + head.payload_bytes as usize);
                    self.take_frame(index, head, &frame[HEAD_BYTES..], now_ns);
                    bytes = rest;
                }
                Ok(_) => return self.connections[index].unfinished.extend_from_slice(bytes),
                Err(error) => {
                    self.judge.find(Fault::Protocol, || error.to_string());
                    return self.close(index, "bytes that are no frame");
                }
            }
        }
    }

    fn take_frame(&mut self, index: usize, head: Head, payload: &[u8], now_ns: u64) {
        self.progress += 1;
        match head.kind {
            MESSAGE => self.take_message(index, payload, now_ns),
            SEND_ACK => self.take_ack(index, head.correlation, payload, now_ns),
            ERROR => self.take_error(index, head.correlation, payload, now_ns),
            PONG => {}
            CLOSE => {
                let close: Close = prost::Message::decode(payload).unwrap_or_default();
                let name = CloseCode::try_from(close.code).map_or("unknown", |code| code.as_str_name());
                self.close(index, &format!("{} {name} {}", close.code, close.text));
            }
            kind => {
                if kind == SEND_REJECTED {
                    self.judge.find(Fault::RefusedYetDelivered, || "an accepted message was rejected".to_owned());
                }
                let name = Kind::try_from(i32::from(kind)).map_or("unknown", |kind| kind.as_str_name());
                *self.tally.whole.other_pushes.entry(format!("{kind:#04x} {name}")).or_default() += 1;
            }
        }
    }

    fn take_message(&mut self, index: usize, payload: &[u8], now_ns: u64) {
        let connection = &self.connections[index];
        let conversation = &self.conversations[connection.conversation as usize];
        let Some(view) = MessageView::scan(payload) else {
            return self.judge.find(Fault::Protocol, || format!("{}: a Message that cannot be read", conversation.id));
        };
        if view.conversation_id != conversation.id.as_bytes() {
            let got = String::from_utf8_lossy(view.conversation_id);
            return self
                .judge
                .find(Fault::Foreign, || format!("a member of {} got a message of {got}", conversation.id));
        }
        let (Ok(message_id), Some(stamp)) = (view.message_id.try_into(), self.own_stamp(&view, conversation)) else {
            return self
                .judge
                .find(Fault::Altered, || format!("{} seq {}: not as it was sent", conversation.id, view.seq));
        };
        let Stamp { member, counter, intended_ns, .. } = stamp;
        let delivery = Delivery { seq: view.seq, epoch: view.epoch, message_id, member, counter };
        self.judge.delivered(connection.conversation as usize, connection.member, delivery);
        self.delivered_total += 1;
        if self.window.holds(intended_ns) {
            self.tally.delivery.record(now_ns.saturating_sub(intended_ns));
        }
        if self.window.holds(now_ns) {
            self.tally.delivered += 1;
        }
    }

    /// The message's stamp, if body and sender are as they were sent.
    fn own_stamp(&self, view: &MessageView<'_>, conversation: &LaneConversation) -> Option<Stamp> {
        let stamp = Stamp::parse(view.body)?;
        let is_own = stamp.run == self.run
            && stamp.conversation == conversation.index
            && conversation.user_ids.get(stamp.member as usize) == Some(&view.sender_id)
            && view.body.get(STAMP_BYTES..) == self.filler.get(STAMP_BYTES..);
        is_own.then_some(stamp)
    }

    fn take_ack(&mut self, index: usize, correlation: u16, payload: &[u8], now_ns: u64) {
        let Some(command) = self.take_answer(index, correlation) else { return };
        let connection = &self.connections[index];
        let Some(message_id) = scan_send_ack(payload) else {
            return self.judge.find(Fault::Protocol, || "an ack without a message id of 16 bytes".to_owned());
        };
        self.judge.accepted(connection.conversation as usize, connection.member, command.counter, message_id);
        self.accepted_total += 1;
        if self.window.holds(command.intended_ns) {
            self.tally.ack.record(now_ns.saturating_sub(command.intended_ns));
        }
        if self.window.holds(now_ns) {
            self.tally.accepted += 1;
        }
    }

    fn take_error(&mut self, index: usize, correlation: u16, payload: &[u8], now_ns: u64) {
        let error: Error = prost::Message::decode(payload).unwrap_or_default();
        *self.tally.whole.errors.entry(format!("{} {}", error.code, error.code().as_str_name())).or_default() += 1;
        let Some(command) = self.take_answer(index, correlation) else { return };
        let InFlight { counter, repetitions, intended_ns } = command;
        let connection = &self.connections[index];
        let (conversation, member) = (connection.conversation as usize, connection.member);
        if !(1_000..2_000).contains(&error.code) {
            self.judge.refused(conversation, member, counter);
        } else if repetitions >= REPETITIONS_MAX {
            self.judge.given_up(conversation, member, counter);
        } else {
            let back_off_ms = (10u64 << repetitions.min(7)).max(u64::from(error.retry_after_ms));
            self.retries.push(Reverse(Retry {
                due_ns: now_ns + back_off_ms * 1_000_000,
                connection: u32::try_from(index).expect("connections are counted in u32"),
                counter,
                repetitions: repetitions + 1,
                intended_ns,
            }));
        }
    }

    /// The command a reply belongs to. The place it leaves goes to a message that was held back.
    fn take_answer(&mut self, index: usize, correlation: u16) -> Option<InFlight> {
        let connection = &mut self.connections[index];
        let Some(command) = connection.places.answered(correlation) else {
            let user_id = connection.user_id;
            self.judge
                .find(Fault::Protocol, || format!("user {user_id}: a reply to no command, correlation {correlation}"));
            return None;
        };
        self.in_flight_total -= 1;
        if let Some(intended_ns) = connection.held_back.pop_front() {
            self.held_back_total -= 1;
            self.write_new(index, intended_ns);
        }
        Some(command)
    }

    fn close(&mut self, index: usize, reason: &str) {
        let connection = &mut self.connections[index];
        if !std::mem::replace(&mut connection.is_open, false) {
            return;
        }
        self.progress += 1;
        self.in_flight_total -= connection.places.in_flight();
        self.held_back_total -= connection.held_back.len() as u64;
        self.tally.whole.never_written += connection.held_back.len() as u64;
        connection.held_back.clear();
        *self.tally.whole.closed.entry(reason.to_owned()).or_default() += 1;
        let user_id = connection.user_id;
        self.judge.receiver_closed(connection.conversation as usize, connection.member);
        self.judge.find(Fault::Closed, || format!("connection of user {user_id}: {reason}"));
    }

    /// Notes the commands that got no answer before patience ended.
    pub fn note_unanswered(&mut self) {
        for connection in self.connections.iter().filter(|connection| connection.is_open) {
            let in_flight = connection.places.in_flight();
            if in_flight > 0 {
                let user_id = connection.user_id;
                self.judge
                    .find(Fault::Unanswered, || format!("user {user_id}: {in_flight} commands without an answer"));
            }
        }
    }
}
