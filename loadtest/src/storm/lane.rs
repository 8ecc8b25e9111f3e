//! One thread's share of a storm: its watchers, the messages it sends, the pulls that are due. Nothing is shared with
//! other lanes but the times of acks.
//!
//! In: bytes from sockets ([`super::receive`]) and the passing of turns ([`Lane::take_turn`]); out: frames, one write per
//! connection and turn, and what was measured.
//!
//! Nothing here waits, and what is received costs no allocation per message: bodies that many watchers get are taken
//! apart once ([`super::bodies`]).

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::BytesMut;
use tidegate_proto::v1::{Gear, Ping};
use tidegate_proto::{Kind, frame};

use super::bodies::Bodies;
use super::http_pull::{HttpPool, Request};
use super::judge::Fate;
use super::ledger::{Ledger, Origin};
use super::pulls::put_http_pull;
use super::ramp::Ramp;
use super::series::Series;
use super::watcher::{Pull, Watcher};
use super::wheel::Wheel;
use crate::clock::{Clock, thread_cpu};
use crate::finding::{Fault, Findings};
use crate::pacer::Rotation;
use crate::places::InFlight;
use crate::tally::Whole;
use crate::wire::Stamp;

/// Messages held back in a lane; beyond it they are not offered but counted as never written.
const HELD_BACK_MAX: u64 = 1_000_000;

/// Bytes read at once: several of the largest frames.
const READ_BYTES: usize = 512 * 1024;

/// When each message was accepted, by its number; zero: not yet. The lanes share it.
pub type AcceptedAt = Arc<[AtomicU64]>;

/// Which messages are a lane's.
#[derive(Clone, Debug)]
pub struct Share {
    /// All that will be sent.
    pub ramp: Arc<Ramp>,
    /// This lane's first message; further ones are `step` apart.
    pub first: u64,
    /// The number of lanes.
    pub step: u64,
}

/// A repetition of a message.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Retry {
    due_ns: u64,
    watcher: u32,
    number: u32,
    repetitions: u16,
    intended_ns: u64,
}

/// What the watchers do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// They see what comes and pull when they are told to.
    Live,
    /// They ask for what they have not seen, up to this sequence.
    Filling(u64),
}

/// A gear that the lane's first watcher was told.
#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize)]
pub struct Shift {
    /// Since the start of the run.
    pub at_s: f64,
    /// Its number.
    pub gear: i32,
    /// The first message it counts for.
    pub from_seq: u64,
}

/// See the module.
pub struct Lane {
    /// Its watchers.
    pub watchers: Vec<Watcher>,
    /// What each second was like.
    pub series: Series,
    /// What stands under which sequence.
    pub ledger: Ledger,
    /// Known bodies.
    pub bodies: Bodies,
    /// What became of its messages: message `first + n * step` is the nth.
    pub fates: Vec<Fate>,
    /// What was wrong.
    pub findings: Findings,
    /// Counts over the whole run.
    pub whole: Whole,
    /// Gears its first watcher was told.
    pub shifts: Vec<Shift>,
    /// Grows with everything that brings the run nearer to its end: answers to sends, sequences that were new to a
    /// watcher. The same value for long means that nothing more is to come.
    pub progress: u64,
    /// (Watcher, message) pairs shown live.
    pub shown_total: u64,
    /// (Watcher, message) pairs that came by filling.
    pub filled_total: u64,
    /// Acks.
    pub accepted_total: u64,
    /// Bytes received by watchers.
    pub bytes_total: u64,
    /// Pull replies that said that older messages were left out.
    pub gaps: u64,
    /// Pushes of what had been seen already.
    pub repeated_pushes: u64,
    /// Watchers that have filled their gaps.
    pub filled_watchers: u32,
    pub(super) clock: Clock,
    pub(super) start_ns: u64,
    pub(super) phase: Phase,
    pub(super) origin: Arc<Origin>,
    pub(super) accepted_at: AcceptedAt,
    pub(super) http: Option<HttpPool>,
    pub(super) tokens: Arc<[String]>,
    pub(super) read_buffer: Vec<u8>,
    pub(super) in_flight_total: u64,
    pub(super) held_back_total: u64,
    pub(super) pulls_asked: u64,
    pub(super) latest_seq: u64,
    share: Share,
    next_number: u64,
    rotation: Rotation,
    retries: BinaryHeap<Reverse<Retry>>,
    pub(super) wheel: Wheel,
    pub(super) due: Vec<u32>,
    touched: Vec<u32>,
    pub(super) scratch: Vec<u8>,
    next_ping_sweep_ns: u64,
    seconds_ended: u64,
    cpu_at_second: Duration,
    pub(super) fill_waiting: std::ops::Range<u32>,
    pub(super) fill_active: u32,
    pub(super) fill_at_once: u32,
}

/// What a lane is made of.
pub struct NewLane {
    /// Connected watchers.
    pub watchers: Vec<Watcher>,
    /// What all messages have in common.
    pub origin: Arc<Origin>,
    /// Which messages are its own.
    pub share: Share,
    /// The order in which its senders send: indices of watchers.
    pub rotation: Rotation,
    /// Shared by all lanes.
    pub accepted_at: AcceptedAt,
    /// If pulls go over HTTP.
    pub http: Option<HttpPool>,
    /// By account.
    pub tokens: Arc<[String]>,
}

impl Lane {
    /// A lane before its start.
    pub fn new(new: NewLane, clock: Clock) -> Self {
        Self {
            watchers: new.watchers,
            series: Series::default(),
            ledger: Ledger::new(new.origin.clone()),
            bodies: Bodies::default(),
            fates: Vec::new(),
            findings: Findings::default(),
            whole: Whole::default(),
            shifts: Vec::new(),
            progress: 0,
            shown_total: 0,
            filled_total: 0,
            accepted_total: 0,
            bytes_total: 0,
            gaps: 0,
            repeated_pushes: 0,
            filled_watchers: 0,
            clock,
            start_ns: u64::MAX,
            phase: Phase::Live,
            latest_seq: new.origin.base_seq,
            origin: new.origin,
            accepted_at: new.accepted_at,
            http: new.http,
            tokens: new.tokens,
            read_buffer: vec![0; READ_BYTES],
            in_flight_total: 0,
            held_back_total: 0,
            pulls_asked: 0,
            next_number: new.share.first,
            share: new.share,
            rotation: new.rotation,
            retries: BinaryHeap::new(),
            wheel: Wheel::new(clock.now_ns()),
            due: Vec::new(),
            touched: Vec::new(),
            scratch: Vec::new(),
            next_ping_sweep_ns: 0,
            seconds_ended: 0,
            cpu_at_second: Duration::ZERO,
            fill_waiting: 0..0,
            fill_active: 0,
            fill_at_once: 0,
        }
    }

    /// Begins the run at a moment.
    pub fn start(&mut self, start_ns: u64) {
        self.start_ns = start_ns;
        self.cpu_at_second = thread_cpu();
    }

    /// True when all its messages have been offered.
    pub fn is_all_offered(&self) -> bool {
        self.next_number >= self.share.ramp.messages()
    }

    /// True if nothing more is to come, as far as is known.
    pub fn is_settled(&self) -> bool {
        let is_quiet = self.in_flight_total == 0 && self.held_back_total == 0 && self.retries.is_empty();
        is_quiet && self.pulls_asked == 0 && self.wheel.waiting() == 0 && self.touched.is_empty()
    }

    /// Watchers with an open connection.
    pub fn open_watchers(&self) -> u64 {
        self.watchers.iter().filter(|watcher| watcher.is_open).count() as u64
    }

    // ---- turns

    /// Does what is due: new messages, repetitions, pulls, pings. `watch` is told of new sockets for HTTP.
    ///
    /// # Errors
    /// If no connection for HTTP can be opened.
    pub fn take_turn(
        &mut self,
        now_ns: u64,
        watch: impl FnMut(&TcpStream, usize) -> std::io::Result<()>,
    ) -> std::io::Result<()> {
        self.end_seconds(now_ns);
        self.offer_due(now_ns);
        self.repeat_due(now_ns);
        self.pull_due(now_ns);
        self.ping_silent(now_ns);
        self.flush(now_ns);
        let Some(pool) = &mut self.http else { return Ok(()) };
        let (origin, tokens, watchers) = (&self.origin, &self.tokens, &self.watchers);
        let put = |out: &mut BytesMut, request: &Request| {
            let token = &tokens[watchers[request.watcher as usize].account as usize];
            put_http_pull(out, origin, token, request);
        };
        pool.dispatch(now_ns, put, watch)
    }

    /// Closes the books of the seconds that are over.
    fn end_seconds(&mut self, now_ns: u64) {
        let Some(since_start_ns) = now_ns.checked_sub(self.start_ns) else { return };
        while self.seconds_ended < since_start_ns / 1_000_000_000 {
            let (since_start_ns, cpu) = (self.seconds_ended * 1_000_000_000, thread_cpu());
            let started_ns = self.start_ns + since_start_ns;
            self.seconds_ended += 1;
            let second = self.series.at(since_start_ns);
            second.cpu_s = (cpu - self.cpu_at_second).as_secs_f64();
            second.cpu_sum_s = second.cpu_s;
            self.cpu_at_second = cpu;
            for watcher in &mut self.watchers {
                let (bytes, is_signal) = watcher.end_second(started_ns);
                second.bytes += bytes;
                if is_signal {
                    second.signal_watchers += 1;
                    second.signal_bytes += bytes;
                    second.signal_bytes_max = second.signal_bytes_max.max(bytes);
                }
                second.gears[watcher.gear as i32 as usize] += u64::from(watcher.is_open);
            }
        }
    }

    /// Of the second that is now.
    pub(super) fn second(&mut self, now_ns: u64) -> &mut super::series::Second {
        self.series.at(now_ns.saturating_sub(self.start_ns))
    }

    /// The last second whose messages have had a second to be shown.
    pub fn last_whole_second(&self, now_ns: u64) -> Option<&super::series::Second> {
        let since_start_ns = now_ns.checked_sub(self.start_ns)?;
        self.series.0.get((since_start_ns / 1_000_000_000).checked_sub(2)? as usize)
    }

    fn offer_due(&mut self, now_ns: u64) {
        let Some(since_start_ns) = now_ns.checked_sub(self.start_ns) else { return };
        while self.next_number < self.share.ramp.messages() {
            let due_ns = self.share.ramp.due_ns(self.next_number);
            if due_ns > since_start_ns {
                return;
            }
            let number = u32::try_from(self.next_number).expect("the options bound the number of messages");
            self.next_number += self.share.step;
            let second = self.series.at(due_ns);
            second.offered += 1;
            second.lateness.record(since_start_ns - due_ns);
            self.offer(number, self.start_ns + due_ns);
        }
    }

    fn offer(&mut self, number: u32, intended_ns: u64) {
        self.whole.offered += 1;
        self.fates.push(Fate::NeverWritten);
        let Some(index) = self.rotation.next() else { return self.whole.never_written += 1 };
        let watcher = &mut self.watchers[index as usize];
        let Some(sender) = watcher.sender.as_mut().filter(|_| watcher.is_open) else {
            return self.whole.never_written += 1;
        };
        if sender.held_back.is_empty() && sender.places.has_place() {
            self.write_send(index as usize, InFlight { counter: number, repetitions: 0, intended_ns });
        } else if self.held_back_total >= HELD_BACK_MAX {
            self.whole.never_written += 1;
        } else {
            sender.held_back.push_back((number, intended_ns));
            self.held_back_total += 1;
            self.whole.held_back += 1;
        }
    }

    /// Puts a message's frame; the caller saw that there is a place in flight.
    pub(super) fn write_send(&mut self, index: usize, command: InFlight) {
        let run = self.origin.run;
        *self.fate(command.counter) = Fate::Unanswered;
        let watcher = &mut self.watchers[index];
        let sender = watcher.sender.as_mut().expect("only senders send");
        let stamp = Stamp {
            run,
            conversation: 0,
            member: sender.member,
            counter: command.counter,
            intended_ns: command.intended_ns,
        };
        let correlation = sender.places.issue(command).expect("the caller saw a free place");
        self.scratch.clear();
        sender.template.put(&mut self.scratch, correlation, stamp);
        watcher.put_frame(&self.scratch);
        self.in_flight_total += 1;
        self.touch(index);
    }

    /// What became of one of this lane's messages.
    pub(super) fn fate(&mut self, number: u32) -> &mut Fate {
        let place = (u64::from(number) - self.share.first) / self.share.step;
        &mut self.fates[place as usize]
    }

    /// Sends a message again later.
    pub(super) fn repeat_later(&mut self, index: usize, due_ns: u64, command: InFlight) {
        let InFlight { counter: number, repetitions, intended_ns } = command;
        let watcher = u32::try_from(index).expect("watchers are counted in u32");
        self.retries.push(Reverse(Retry { due_ns, watcher, number, repetitions: repetitions + 1, intended_ns }));
    }

    fn repeat_due(&mut self, now_ns: u64) {
        while let Some(Reverse(retry)) = self.retries.peek()
            && retry.due_ns <= now_ns
        {
            let Some(Reverse(retry)) = self.retries.pop() else { break };
            let watcher = &self.watchers[retry.watcher as usize];
            let Some(sender) = watcher.sender.as_ref().filter(|_| watcher.is_open) else { continue };
            if sender.places.has_place() {
                self.whole.repeated += 1;
                let Retry { number, repetitions, intended_ns, .. } = retry;
                self.write_send(retry.watcher as usize, InFlight { counter: number, repetitions, intended_ns });
            } else {
                self.retries.push(Reverse(Retry { due_ns: now_ns + 1_000_000, ..retry }));
            }
        }
    }

    pub(super) fn touch(&mut self, index: usize) {
        let watcher = &mut self.watchers[index];
        if !watcher.is_touched {
            watcher.is_touched = true;
            self.touched.push(u32::try_from(index).expect("watchers are counted in u32"));
        }
    }

    fn ping_silent(&mut self, now_ns: u64) {
        if now_ns < self.next_ping_sweep_ns {
            return;
        }
        self.next_ping_sweep_ns = now_ns + 1_000_000_000;
        let mut ping = BytesMut::new();
        frame::put_message(&mut ping, Kind::Ping, 0, &Ping {});
        for index in 0..self.watchers.len() {
            let watcher = &mut self.watchers[index];
            if watcher.is_open && now_ns.saturating_sub(watcher.line.written_ns) > watcher.ping_after_ns {
                watcher.put_frame(&ping);
                self.touch(index);
            }
        }
    }

    pub(super) fn flush(&mut self, now_ns: u64) {
        let mut touched = std::mem::take(&mut self.touched);
        touched.retain(|index| {
            let watcher = &mut self.watchers[*index as usize];
            if !watcher.is_open {
                return false;
            }
            match watcher.line.flush(now_ns) {
                Ok(true) => {
                    watcher.is_touched = false;
                    false
                }
                // The socket is full; the next turn tries again.
                Ok(false) => true,
                Err(error) => {
                    self.close(*index as usize, &format!("write: {}", error.kind()));
                    false
                }
            }
        });
        touched.append(&mut self.touched);
        self.touched = touched;
    }

    // ---- closing

    pub(super) fn close(&mut self, index: usize, reason: &str) {
        let watcher = &mut self.watchers[index];
        if !std::mem::replace(&mut watcher.is_open, false) {
            return;
        }
        watcher.signal_since_ns = None;
        self.progress += 1;
        if let Some(sender) = &mut watcher.sender {
            self.in_flight_total -= sender.places.in_flight();
            self.held_back_total -= sender.held_back.len() as u64;
            self.whole.never_written += sender.held_back.len() as u64;
            sender.held_back.clear();
        }
        let was_asked = watcher.pull == Pull::Asked && self.http.is_none();
        if was_asked {
            watcher.pull = Pull::Idle;
            self.pulls_asked -= 1;
        }
        *self.whole.closed.entry(reason.to_owned()).or_default() += 1;
        self.findings.add(Fault::Closed, || format!("watcher {index}: {reason}"));
        self.end_filling(index);
    }

    /// Notes the commands that got no answer before patience ended.
    pub fn note_unanswered(&mut self) {
        for (index, watcher) in self.watchers.iter().enumerate().filter(|(_, watcher)| watcher.is_open) {
            let sends = watcher.sender.as_ref().map_or(0, |sender| sender.places.in_flight());
            let pulls = u64::from(watcher.pull == Pull::Asked);
            if sends + pulls > 0 {
                let example = || format!("watcher {index}: {sends} sends and {pulls} pulls without an answer");
                self.findings.add(Fault::Unanswered, example);
            }
        }
    }

    /// Remembers when a message was accepted.
    pub(super) fn accepted_at(&self, number: u32) -> &AtomicU64 {
        &self.accepted_at[number as usize]
    }

    /// When a message was accepted, as far as it is known.
    pub(super) fn accepted_ns(accepted_at: &[AtomicU64], number: u32) -> Option<u64> {
        accepted_at.get(number as usize).map(|at| at.load(Ordering::Relaxed)).filter(|at| *at != 0)
    }

    /// Shifts a watcher.
    pub(super) fn shift(&mut self, index: usize, gear: Gear, from_seq: u64, now_ns: u64) {
        let since_start_ns = now_ns.saturating_sub(self.start_ns);
        if index == 0 && self.watchers[0].gear != gear {
            let at_s = since_start_ns as f64 / 1e9;
            self.shifts.push(Shift { at_s, gear: gear as i32, from_seq });
        }
        self.watchers[index].shift(gear, now_ns);
    }
}
