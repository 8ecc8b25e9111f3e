//! What a lane does with what arrives: frames on its watchers' connections, answers on its HTTP connections.
//!
//! In: readable sockets; out: sequences that watchers were shown, with how long that took; acks; pulls to come.

use tidegate_proto::frame::peek_head;
use tidegate_proto::v1::{Close, Error, Gear, GearChanged, NotifyNewMessages};
use tidegate_proto::websocket::{Header, Opcode, Role};
use tidegate_proto::{CloseCode, Code, HEAD_BYTES, Head, Kind};

use super::http_pull::Response;
use super::judge::Fate;
use super::lane::{Lane, Phase};
use super::options::Transport;
use super::pulls::PULL_CORRELATION;
use super::watcher::Pull;
use crate::finding::Fault;
use crate::places::InFlight;
use crate::wire::{MessageView, PullView, scan_send_ack};

/// Repetitions of a message after retryable errors; with the back-off about half a minute.
const REPETITIONS_MAX: u16 = 40;

/// A pull that is to come later is asked again after this, if the server does not say when.
const PULL_BACK_OFF_MS: u64 = 50;

const MESSAGE: u8 = Kind::Message as i32 as u8;
const MESSAGES: u8 = Kind::Messages as i32 as u8;
const NOTIFY: u8 = Kind::NotifyNewMessages as i32 as u8;
const GEAR_CHANGED: u8 = Kind::GearChanged as i32 as u8;
const BEHIND: u8 = Kind::Behind as i32 as u8;
const PULL_REPLY: u8 = Kind::PullReply as i32 as u8;
const SEND_ACK: u8 = Kind::SendAck as i32 as u8;
const ERROR: u8 = Kind::Error as i32 as u8;
const PONG: u8 = Kind::Pong as i32 as u8;
const CLOSE: u8 = Kind::Close as i32 as u8;
const SEND_REJECTED: u8 = Kind::SendRejected as i32 as u8;

impl Lane {
    /// Reads once from a watcher's connection and handles what has arrived.
    pub fn read_watcher(&mut self, index: usize) {
        let mut buffer = std::mem::take(&mut self.read_buffer);
        match self.watchers[index].line.read(&mut buffer) {
            Ok(Some((filled, new))) => {
                self.watchers[index].second_bytes += new as u64;
                self.bytes_total += new as u64;
                self.take_bytes(index, &buffer[..filled]);
            }
            Ok(None) => {}
            Err(error) => self.close(index, &format!("read: {}", error.kind())),
        }
        self.read_buffer = buffer;
    }

    /// Handles what came in the same segment as the login reply.
    pub fn take_leftover(&mut self, index: usize) {
        let bytes = self.watchers[index].line.take_unfinished();
        self.take_bytes(index, &bytes);
    }

    fn take_bytes(&mut self, index: usize, bytes: &[u8]) {
        let now_ns = self.clock.now_ns();
        let rest = match self.watchers[index].transport {
            Transport::Tcp => self.take_frames(index, bytes, now_ns),
            Transport::Websocket => self.take_ws_frames(index, bytes, now_ns),
        };
        if self.watchers[index].is_open {
            self.watchers[index].line.keep(rest);
        }
    }

    /// Unwraps WebSocket messages where they lie. The server never fragments them.
    fn take_ws_frames<'a>(&mut self, index: usize, mut bytes: &'a [u8], now_ns: u64) -> &'a [u8] {
        while self.watchers[index].is_open {
            let (header, header_bytes) = match Header::parse(bytes, Role::Client) {
                Ok(Some(parsed)) => parsed,
                Ok(None) => break,
                Err(error) => {
                    self.protocol_fault(index, &error.to_string());
                    break;
                }
            };
            let frame_bytes_max = self.watchers[index].frame_bytes_max as u64;
            if header.payload_bytes > frame_bytes_max {
                self.protocol_fault(index, "a WebSocket message above the largest frame");
                break;
            }
            let whole_bytes = header_bytes + header.payload_bytes as usize;
            let Some(payload) = bytes.get(header_bytes..whole_bytes) else { break };
            match header.opcode {
                Opcode::Binary if header.is_final => {
                    if !self.take_frames(index, payload, now_ns).is_empty() {
                        self.protocol_fault(index, "a WebSocket message that ends within a frame");
                    }
                }
                Opcode::Close => self.close(index, "WebSocket close"),
                Opcode::Ping | Opcode::Pong => {}
                _ => self.protocol_fault(index, "a WebSocket message that is not binary or not whole"),
            }
            bytes = &bytes[whole_bytes..];
        }
        bytes
    }

    /// Handles all whole frames; returns what is left.
    fn take_frames<'a>(&mut self, index: usize, mut bytes: &'a [u8], now_ns: u64) -> &'a [u8] {
        let frame_bytes_max = self.watchers[index].frame_bytes_max;
        loop {
            match peek_head(bytes, frame_bytes_max) {
                Ok(Some(head)) if bytes.len() - HEAD_BYTES >= head.payload_bytes as usize => {
                    let (frame, rest) = bytes.split_at(HEAD_BYTES + head.payload_bytes as usize);
                    self.take_frame(index, head, &frame[HEAD_BYTES..], now_ns);
                    bytes = rest;
                }
                Ok(_) => return bytes,
                Err(error) => {
                    self.protocol_fault(index, &error.to_string());
                    return &[];
                }
            }
        }
    }

    fn protocol_fault(&mut self, index: usize, what: &str) {
        self.findings.add(Fault::Protocol, || format!("watcher {index}: {what}"));
        self.close(index, "bytes that are not the protocol's");
    }

    fn take_frame(&mut self, index: usize, head: Head, payload: &[u8], now_ns: u64) {
        match head.kind {
            MESSAGE => self.take_message(index, payload, now_ns),
            MESSAGES => self.take_messages(index, payload, now_ns),
            NOTIFY => self.take_notice(index, payload, now_ns),
            PULL_REPLY => self.take_pull_reply(index, payload, now_ns),
            GEAR_CHANGED => self.take_gear(index, payload, now_ns),
            BEHIND => self.take_behind(index, payload, now_ns),
            SEND_ACK => self.take_ack(index, head, payload, now_ns),
            ERROR => self.take_error(index, head, payload, now_ns),
            PONG => {}
            CLOSE => {
                let close: Close = prost::Message::decode(payload).unwrap_or_default();
                let name = CloseCode::try_from(close.code).map_or("unknown", |code| code.as_str_name());
                self.close(index, &format!("{} {name} {}", close.code, close.text));
            }
            kind => {
                if kind == SEND_REJECTED {
                    let example = || "an accepted message was rejected".to_owned();
                    self.findings.add(Fault::RefusedYetDelivered, example);
                }
                let name = Kind::try_from(i32::from(kind)).map_or("unknown", |kind| kind.as_str_name());
                *self.whole.other_pushes.entry(format!("{kind:#04x} {name}")).or_default() += 1;
            }
        }
    }

    // ---- messages

    fn take_message(&mut self, index: usize, payload: &[u8], now_ns: u64) {
        let Some(view) = MessageView::scan(payload) else {
            return self.findings.add(Fault::Protocol, || format!("watcher {index}: a Message that cannot be read"));
        };
        match self.ledger.take(&view) {
            Ok(Some(seq)) => {
                if self.show(index, &[(seq, seq)], now_ns) == 0 {
                    self.repeated_pushes += 1;
                }
            }
            Ok(None) => {}
            Err((fault, example)) => self.findings.add(fault, || format!("watcher {index}: {example}")),
        }
    }

    fn take_messages(&mut self, index: usize, payload: &[u8], now_ns: u64) {
        let mut bodies = std::mem::take(&mut self.bodies);
        let findings = &mut self.findings;
        let runs = bodies.read(payload, &mut self.ledger, |fault, example| {
            findings.add(fault, || format!("watcher {index}: {example}"));
        });
        self.show(index, runs, now_ns);
        self.bodies = bodies;
    }

    fn take_pull_reply(&mut self, index: usize, payload: &[u8], now_ns: u64) {
        let watcher = &mut self.watchers[index];
        if watcher.pull != Pull::Asked {
            return self.findings.add(Fault::Protocol, || format!("watcher {index}: an answer to no pull"));
        }
        watcher.pull = Pull::Idle;
        self.pulls_asked -= 1;
        let Some(reply) = PullView::scan(payload) else {
            return self.findings.add(Fault::Protocol, || format!("watcher {index}: a PullReply that cannot be read"));
        };
        if reply.epoch != self.origin.epoch || reply.conversation_id != self.origin.lobby.as_bytes() {
            let fault = if reply.epoch == self.origin.epoch { Fault::Foreign } else { Fault::EpochChanged };
            return self.findings.add(fault, || format!("watcher {index}: a PullReply of another place: {reply:?}"));
        }
        let mut bodies = std::mem::take(&mut self.bodies);
        let findings = &mut self.findings;
        let runs = bodies.read(reply.messages, &mut self.ledger, |fault, example| {
            findings.add(fault, || format!("watcher {index}: {example}"));
        });
        let base_seq = self.origin.base_seq;
        let stated = (reply.from_seq.max(base_seq + 1), reply.to_seq);
        let is_as_stated = if reply.to_seq <= base_seq { runs.is_empty() } else { runs == [stated] };
        if !is_as_stated {
            let (from, to) = (reply.from_seq, reply.to_seq);
            findings.add(Fault::Gap, || format!("watcher {index}: an answer said to be {from}..={to} holds {runs:?}"));
        }
        let new = self.show(index, runs, now_ns);
        self.bodies = bodies;
        self.gaps += u64::from(reply.gap);
        let watcher = &self.watchers[index];
        // Where something came, more may come: it pulls on until nothing does.
        let (more, has_notice) = (reply.more, watcher.has_notice || (new > 0 && watcher.gear == Gear::Signal));
        match self.phase {
            Phase::Filling(_) if new == 0 && self.watchers[index].is_filling => {
                // An answer without anything new: not at once again, and patience ends it.
                self.pull_at(index, now_ns + PULL_BACK_OFF_MS * 1_000_000);
            }
            Phase::Filling(_) => self.fill_next(index, now_ns),
            Phase::Live if more => self.pull_at(index, now_ns),
            Phase::Live if has_notice => {
                let at_ns = self.watchers[index].next_pull_ns(now_ns);
                self.pull_at(index, at_ns);
            }
            Phase::Live => {}
        }
    }

    /// A watcher is shown sequences; returns how many were new to it.
    fn show(&mut self, index: usize, runs: &[(u64, u64)], now_ns: u64) -> u64 {
        let watcher = &mut self.watchers[index];
        let (ledger, series, accepted_at) = (&self.ledger, &mut self.series, &self.accepted_at);
        let (start_ns, is_live) = (self.start_ns, self.phase == Phase::Live);
        let gear = watcher.gear as i32 as usize;
        let mut shown = 0;
        for (first, last) in runs {
            watcher.seen.insert(*first, *last, |from, to| {
                shown += to - from + 1;
                if !is_live {
                    return;
                }
                for seq in from..=to {
                    let Some(sight) = ledger.sight(seq) else { continue };
                    let second = series.at(sight.due_ns.saturating_sub(start_ns));
                    second.shown_of_due += 1;
                    second.due_to_shown[gear].record(now_ns.saturating_sub(sight.due_ns));
                    let accepted_ns = Self::accepted_ns(accepted_at, sight.number);
                    let after_ns = accepted_ns.map_or(0, |accepted_ns| now_ns.saturating_sub(accepted_ns));
                    second.accepted_to_shown[gear].record(after_ns);
                }
            });
        }
        self.progress += u64::from(shown > 0);
        if is_live {
            self.shown_total += shown;
            self.second(now_ns).shown += shown;
        } else {
            self.filled_total += shown;
        }
        shown
    }

    // ---- notices

    fn take_notice(&mut self, index: usize, payload: &[u8], now_ns: u64) {
        let notice: NotifyNewMessages = prost::Message::decode(payload).unwrap_or_default();
        self.second(now_ns).notices += 1;
        self.latest_seq = self.latest_seq.max(notice.latest_seq);
        if notice.latest_seq > self.watchers[index].seen.last() {
            self.notice(index, notice.spread_ms, now_ns);
        }
    }

    fn take_gear(&mut self, index: usize, payload: &[u8], now_ns: u64) {
        let changed: GearChanged = prost::Message::decode(payload).unwrap_or_default();
        if changed.conversation_id != self.origin.lobby {
            return;
        }
        let was_signal = self.watchers[index].gear == Gear::Signal;
        self.shift(index, changed.gear(), changed.from_seq, now_ns);
        if was_signal && changed.gear() != Gear::Signal {
            // The messages before it were not pushed.
            let last = self.watchers[index].seen.last();
            self.watchers[index].unpushed = (last + 1 < changed.from_seq).then_some((last, changed.from_seq));
            let spread_ms = self.watchers[index].spread_ns / 1_000_000;
            self.notice(index, u32::try_from(spread_ms).unwrap_or(u32::MAX), now_ns);
        }
    }

    fn take_behind(&mut self, index: usize, payload: &[u8], now_ns: u64) {
        let behind: tidegate_proto::v1::Behind = prost::Message::decode(payload).unwrap_or_default();
        self.second(now_ns).behinds += 1;
        if self.phase == Phase::Live && behind.last_seq > self.watchers[index].seen.last() {
            // What is newest is shown; the gap before it is filled afterwards.
            self.notice(index, behind.spread_ms.max(1), now_ns);
        }
    }

    // ---- answers to sends

    fn take_ack(&mut self, index: usize, head: Head, payload: &[u8], now_ns: u64) {
        self.not_as_watcher(index, payload);
        let Some(command) = self.take_answer(index, head.correlation) else { return };
        let Some(message_id) = scan_send_ack(payload) else {
            let example = || format!("watcher {index}: an ack without a message id of 16 bytes");
            return self.findings.add(Fault::Protocol, example);
        };
        *self.fate(command.counter) = Fate::Accepted(message_id);
        self.accepted_at(command.counter).store(now_ns.max(1), std::sync::atomic::Ordering::Relaxed);
        self.accepted_total += 1;
        self.second(now_ns).accepted += 1;
        let due = self.series.at(command.intended_ns.saturating_sub(self.start_ns));
        due.accepted_of_due += 1;
        due.ack.record(now_ns.saturating_sub(command.intended_ns));
    }

    fn take_error(&mut self, index: usize, head: Head, payload: &[u8], now_ns: u64) {
        let error: Error = prost::Message::decode(payload).unwrap_or_default();
        *self.whole.errors.entry(format!("{} {}", error.code, error.code().as_str_name())).or_default() += 1;
        self.second(now_ns).slow_downs += u64::from(error.code() == Code::SlowDown);
        let is_retryable = (1_000..2_000).contains(&error.code);
        if head.correlation == PULL_CORRELATION {
            let wait_ms = if error.retry_after_ms == 0 { PULL_BACK_OFF_MS } else { u64::from(error.retry_after_ms) };
            return self.pull_failed(index, is_retryable.then_some(wait_ms), now_ns, || {
                format!("a pull: {} {}", error.code().as_str_name(), error.text)
            });
        }
        self.not_as_watcher(index, payload);
        let Some(command) = self.take_answer(index, head.correlation) else { return };
        if is_retryable && command.repetitions < REPETITIONS_MAX {
            let back_off_ms = (10u64 << command.repetitions.min(7)).max(u64::from(error.retry_after_ms));
            self.repeat_later(index, now_ns + back_off_ms * 1_000_000, command);
            return;
        }
        // After a "later" it may have been stored, after a "no" it must not.
        let fate = if is_retryable { Fate::GivenUp } else { Fate::Refused };
        *self.fate(command.counter) = fate;
        let example = || format!("watcher {index}: {} {}", error.code().as_str_name(), error.text);
        self.findings.add(Fault::Refused, example);
    }

    /// The answer to one's own message is not what watching costs.
    fn not_as_watcher(&mut self, index: usize, payload: &[u8]) {
        let watcher = &mut self.watchers[index];
        watcher.second_bytes = watcher.second_bytes.saturating_sub((HEAD_BYTES + payload.len()) as u64);
    }

    /// The command a reply belongs to. The place it leaves goes to a message that was held back.
    fn take_answer(&mut self, index: usize, correlation: u16) -> Option<InFlight> {
        let sender = self.watchers[index].sender.as_mut();
        let answered = sender.and_then(|sender| {
            let command = sender.places.answered(correlation)?;
            Some((command, sender.held_back.pop_front()))
        });
        let Some((command, held_back)) = answered else {
            let example = || format!("watcher {index}: a reply to no command, correlation {correlation}");
            self.findings.add(Fault::Protocol, example);
            return None;
        };
        self.in_flight_total -= 1;
        self.progress += 1;
        if let Some((number, intended_ns)) = held_back {
            self.held_back_total -= 1;
            self.write_send(index, InFlight { counter: number, repetitions: 0, intended_ns });
        }
        Some(command)
    }

    // ---- answers to pulls

    /// A pull was answered with an error: it is asked again after `wait_ms`, or never.
    fn pull_failed(&mut self, index: usize, wait_ms: Option<u64>, now_ns: u64, what: impl FnOnce() -> String) {
        let watcher = &mut self.watchers[index];
        if watcher.pull != Pull::Asked {
            return;
        }
        watcher.pull = Pull::Idle;
        self.pulls_asked -= 1;
        match wait_ms {
            Some(wait_ms) => self.pull_at(index, now_ns + wait_ms * 1_000_000),
            None => {
                self.findings.add(Fault::Refused, || format!("watcher {index}: {}", what()));
                self.end_filling(index);
            }
        }
    }

    /// Reads once from a connection of the HTTP pool and handles an answer that is complete.
    pub fn read_http(&mut self, place: usize) {
        let Some(mut pool) = self.http.take() else { return };
        let mut buffer = std::mem::take(&mut self.read_buffer);
        pool.read(place, &mut buffer, |response| self.take_response(&response));
        self.read_buffer = buffer;
        self.http = Some(pool);
    }

    fn take_response(&mut self, response: &Response<'_>) {
        let now_ns = self.clock.now_ns();
        let index = response.watcher as usize;
        self.watchers[index].second_bytes += response.bytes as u64;
        self.bytes_total += response.bytes as u64;
        if response.status == 200 {
            return self.take_pull_reply(index, response.body, now_ns);
        }
        *self.whole.errors.entry(format!("HTTP {}", response.status)).or_default() += 1;
        self.second(now_ns).slow_downs += u64::from(response.status == 429);
        let is_retryable = matches!(response.status, 429 | 503);
        self.pull_failed(index, is_retryable.then_some(PULL_BACK_OFF_MS), now_ns, || {
            format!("a pull over HTTP: status {}", response.status)
        });
    }
}
