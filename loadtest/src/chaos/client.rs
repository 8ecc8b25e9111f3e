//! One device of a chaos run, as a state machine: what PROTOCOL.md asks of a client that must not lose anything.
//!
//! In: logins, frames, the passing of time, messages to send; out: frames to write, and at the end the evidence. Time is
//! an argument, in milliseconds on the run's clock. No socket.
//!
//! A message is repeated with the same `client_msg_id` on an Error of 1000-1999, on silence and after a reconnect, until
//! it is acknowledged. Queues are bounded: what is offered beyond is not sent, and counted.
//!
//! Here: who the device is, its logins, and what it writes. In [`reading`]: what it makes of what it gets.

mod reading;

use std::collections::{BTreeSet, HashMap};

use bytes::BytesMut;
use tidegate_proto::v1::{Behind, History, Login, LoginReply, Ping, Receipt, Sync, SyncFrom, Synced};
use tidegate_proto::{Kind, frame};

use super::evidence::{Answer, Origin, Sent, Via};
use super::seat::{Reads, Seat, Terms, entry};
use super::sync::{Place, Question};
use crate::finding::{Fault, Findings};
use crate::pacer::Random;
use crate::wire::Stamp;

/// Commands without a reply, fewer than any server would refuse.
const IN_FLIGHT_MAX: usize = 128;

/// Messages that wait for a connection, a place in flight or their next attempt.
pub const WAITING_MAX: usize = 20_000;

/// Silence after which a command is sent again: longer than a gateway waits for its services.
const REPEAT_AFTER_MS: u64 = 8_000;

/// A command that is older than this on a connection that lives breaks the promise that each gets its reply.
const ANSWER_MS_MAX: u64 = 30_000;

/// Between two receipts of one conversation.
const RECEIPT_INTERVAL_MS: u64 = 700;

/// First and longest back-off after an error that says "later".
const BACK_OFF_MS: [u64; 2] = [100, 2_000];

/// Before asking again when an answer had less than was announced.
const ASK_PAUSE_MS: u64 = 300;

/// Messages on a page of History: the most the protocol allows.
pub const PAGE: u32 = 200;

/// What a device does besides receiving.
#[derive(Clone, Copy, Debug)]
pub struct Habits {
    /// How far it reads; `None`: it sends no receipts.
    pub reads: Option<Reads>,
}

/// Why the connection is of no more use.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ending {
    /// The server closed it with this code.
    Closed(i32),
    /// The server no longer answers pings.
    Silent,
    /// Bytes that are not the protocol.
    Nonsense,
}

#[derive(Clone, Debug)]
enum Asked {
    Message(usize),
    /// Seats, and where each stood.
    Sync(Vec<(usize, Place)>),
    History(usize),
    Receipt {
        seat: usize,
        delivered: u64,
        read: u64,
    },
    Ping,
}

#[derive(Clone, Debug)]
struct Command {
    asked: Asked,
    written_ms: u64,
    /// It counts as silence already and what it asked for has been asked again.
    is_late: bool,
}

/// A message on its way.
#[derive(Debug)]
struct Outgoing {
    sent: Sent,
    seat: usize,
    offered_ms: u64,
    errors: u32,
}

/// Numbers of one device.
#[derive(Clone, Debug, Default)]
pub struct Figures {
    /// When messages were accepted, in milliseconds on the run's clock, ascending.
    pub accepted_at_ms: Vec<u64>,
    /// Error replies by code.
    pub errors: HashMap<i32, u64>,
    /// Closes by code; ends without a Close are not here.
    pub closes: HashMap<i32, u64>,
    /// Sends written again.
    pub repeated: u64,
    /// Messages that found [`WAITING_MAX`] waiting.
    pub not_offered: u64,
    /// Logins that succeeded.
    pub logins: u64,
    /// Of these, such that resumed a session.
    pub resumed: u64,
    /// Behind pushes.
    pub behinds: u64,
    /// Commands that were answered only after they had been given up.
    pub late_answers: u64,
    /// Longest time from offering to the acknowledgement.
    pub ack_ms_max: u64,
}

/// See the module.
pub struct Client {
    /// Names the device in findings.
    pub who: String,
    /// Its conversations.
    pub seats: Vec<Seat>,
    /// What was wrong.
    pub findings: Findings,
    /// Its numbers.
    pub figures: Figures,
    habits: Habits,
    terms: std::sync::Arc<Terms>,
    messages: Vec<Outgoing>,
    /// Messages to be written, by when they are due.
    waiting: BTreeSet<(u64, usize)>,
    in_flight: HashMap<u16, Command>,
    next_correlation: u16,
    connection: u32,
    place: u32,
    session_id: u64,
    /// What the Login under way said of positions.
    login_places: Vec<(usize, Place)>,
    unsettled: usize,
    heard_ms: u64,
    pinged_ms: u64,
    pings: u32,
    ping_interval_ms: u64,
    probe_count: u32,
    random: Random,
}

impl Client {
    /// A device that was never connected.
    pub fn new(who: String, habits: Habits, terms: std::sync::Arc<Terms>, seed: u64) -> Self {
        Self {
            who,
            seats: Vec::new(),
            findings: Findings::default(),
            figures: Figures::default(),
            habits,
            terms,
            messages: Vec::new(),
            waiting: BTreeSet::new(),
            in_flight: HashMap::new(),
            next_correlation: 1,
            connection: 0,
            place: 0,
            session_id: 0,
            login_places: Vec::new(),
            unsettled: 0,
            heard_ms: 0,
            pinged_ms: 0,
            pings: 0,
            ping_interval_ms: 1_000,
            probe_count: 3,
            random: Random::new(seed),
        }
    }

    /// Gives it a conversation; `users` are the members' user ids by their index.
    pub fn take_seat(&mut self, conversation: u32, id: &str, member: u32, users: Vec<u64>) {
        self.seats.push(Seat::new(conversation, id, member, users, &self.terms));
    }

    /// Messages that are not settled yet.
    pub fn unsettled(&self) -> usize {
        self.unsettled
    }

    /// What was to be sent and what came of it.
    pub fn sent(&self) -> impl Iterator<Item = Sent> {
        self.messages.iter().map(|message| message.sent)
    }

    /// Takes a message to be sent to the seat's conversation. False if too many wait.
    pub fn offer(&mut self, seat: usize, now_ms: u64, is_probe: bool) -> bool {
        if self.waiting.len() >= WAITING_MAX {
            self.figures.not_offered += 1;
            return false;
        }
        let Seat { conversation, member, counter, .. } = &mut self.seats[seat];
        let origin = Origin { conversation: *conversation, member: *member, counter: *counter };
        *counter += 1;
        let sent = Sent { origin, attempts: 0, connection: 0, place: 0, answer: Answer::None, is_probe };
        self.waiting.insert((now_ms, self.messages.len()));
        self.messages.push(Outgoing { sent, seat, offered_ms: now_ms, errors: 0 });
        self.unsettled += 1;
        true
    }

    /// The Login of the next connection: the session it had, and where it stands.
    pub fn login(&mut self, device_id: &str) -> Login {
        self.login_places = (0..).zip(&self.seats).map(|(index, seat)| (index, seat.sync.place())).collect();
        let positions = self.login_places.iter().map(|place| self.sync_from(place)).collect();
        let device_id = device_id.to_owned();
        Login { device_id, resume_session_id: self.session_id, positions, ..Login::default() }
    }

    fn sync_from(&self, (seat, place): &(usize, Place)) -> SyncFrom {
        SyncFrom { conversation_id: self.seats[*seat].id.clone(), epoch: place.epoch, seq: place.seq }
    }

    /// A connection is logged in.
    pub fn handle_login(&mut self, reply: &LoginReply, now_ms: u64) {
        self.connection += 1;
        self.place = 0;
        self.session_id = reply.session_id;
        self.figures.logins += 1;
        self.figures.resumed += u64::from(reply.resumed);
        (self.heard_ms, self.pinged_ms, self.pings) = (now_ms, now_ms, 0);
        if let Some(heartbeat) = &reply.heartbeat {
            self.ping_interval_ms = u64::from(heartbeat.min_interval_s.max(1)) * 1_000;
            self.probe_count = heartbeat.probe_count;
        }
        self.seats.iter_mut().for_each(|seat| seat.sync.doubt());
        let places = std::mem::take(&mut self.login_places);
        self.handle_synced(&places, &reply.synced, now_ms);
        for position in &reply.positions {
            if let Some(seat) = self.seats.iter_mut().find(|seat| seat.id == position.conversation_id) {
                seat.sync.hear(position.epoch, position.last_seq);
            }
        }
    }

    /// Answers come in the order of the questions; what has none is asked again.
    fn handle_synced(&mut self, places: &[(usize, Place)], synced: &[Synced], now_ms: u64) {
        for ((index, place), synced) in places.iter().zip(synced) {
            let Self { seats, terms, findings, who, .. } = self;
            let seat = &mut seats[*index];
            let id = &synced.conversation_id;
            if *id != seat.id {
                return findings.add(Fault::Protocol, || format!("{who}: {id} is synced in the place of {}", seat.id));
            }
            let entries = synced.messages.iter().map(|message| entry(terms, &seat.users, message, Via::Answer));
            let (outcome, epoch, last_seq) = (synced.outcome(), synced.epoch, synced.last_seq);
            let before = seat.sync.place();
            if !seat.sync.answer(*place, outcome, epoch, last_seq, entries) {
                findings.add(Fault::Gap, || format!("{who}: {id} after {place:?}: a whole answer leaves a gap"));
            }
            if seat.sync.place() == before {
                seat.ask_due_ms = now_ms + ASK_PAUSE_MS;
            }
        }
    }

    fn handle_behind(&mut self, behind: &Behind, now_ms: u64) {
        self.figures.behinds += 1;
        let spread_ms = self.random.below(u64::from(behind.spread_ms) + 1);
        let of_all = behind.conversation_id.is_empty();
        for seat in self.seats.iter_mut().filter(|seat| of_all || seat.id == behind.conversation_id) {
            seat.ask_due_ms = seat.ask_due_ms.max(now_ms + spread_ms);
            if of_all {
                seat.sync.doubt();
            } else {
                seat.sync.hear(behind.epoch, behind.last_seq);
            }
        }
    }

    /// The connection is gone. What had no reply is to be asked again.
    pub fn handle_end(&mut self, now_ms: u64) {
        let commands: Vec<Command> = self.in_flight.drain().map(|(_, command)| command).collect();
        for command in commands.into_iter().filter(|command| !command.is_late) {
            self.ask_again(command.asked, now_ms);
        }
    }

    fn ask_again(&mut self, asked: Asked, due_ms: u64) {
        match asked {
            Asked::Message(index) => {
                if self.messages[index].sent.answer == Answer::None {
                    self.waiting.insert((due_ms, index));
                }
            }
            Asked::Sync(places) => {
                for (seat, _) in places {
                    self.seats[seat].asking = false;
                    self.seats[seat].ask_due_ms = due_ms;
                }
            }
            Asked::History(seat) => {
                self.seats[seat].asking = false;
                self.seats[seat].ask_due_ms = due_ms;
            }
            Asked::Receipt { seat, .. } => {
                self.seats[seat].receipt_pending = false;
                self.seats[seat].receipt_due_ms = due_ms;
            }
            Asked::Ping => {}
        }
    }

    // ---- writing

    /// Puts what is due.
    ///
    /// # Errors
    /// [`Ending::Silent`] if the server has not answered as many pings as it asks for.
    pub fn poll(&mut self, now_ms: u64, out: &mut BytesMut) -> Result<(), Ending> {
        self.look_for_silence(now_ms);
        self.ping_if_silent(now_ms, out)?;
        self.ask_if_behind(now_ms, out);
        for seat in 0..self.seats.len() {
            self.report_if_moved(seat, now_ms, out);
        }
        while let Some((due_ms, index)) = self.waiting.first().copied()
            && due_ms <= now_ms
            && self.in_flight.len() < IN_FLIGHT_MAX
        {
            self.waiting.pop_first();
            self.put_message(index, now_ms, out);
        }
        Ok(())
    }

    fn look_for_silence(&mut self, now_ms: u64) {
        let Self { in_flight, findings, who, .. } = self;
        let mut again = Vec::new();
        in_flight.retain(|_, command| {
            let waited_ms = now_ms.saturating_sub(command.written_ms);
            if waited_ms > REPEAT_AFTER_MS && !command.is_late {
                command.is_late = true;
                again.push(command.asked.clone());
            }
            if waited_ms > ANSWER_MS_MAX {
                findings.add(Fault::Unanswered, || {
                    format!("{who}: no reply to {:?} in {waited_ms} ms on a live connection", command.asked)
                });
            }
            waited_ms <= ANSWER_MS_MAX
        });
        for asked in again {
            self.ask_again(asked, now_ms);
        }
    }

    fn ping_if_silent(&mut self, now_ms: u64, out: &mut BytesMut) -> Result<(), Ending> {
        let since_ms = now_ms.saturating_sub(self.heard_ms.max(self.pinged_ms));
        if since_ms < self.ping_interval_ms {
            return Ok(());
        }
        if self.pings >= self.probe_count {
            return Err(Ending::Silent);
        }
        self.pings += 1;
        self.pinged_ms = now_ms;
        let correlation = self.issue(Asked::Ping, now_ms);
        frame::put_message(out, Kind::Ping, correlation, &Ping {});
        Ok(())
    }

    fn ask_if_behind(&mut self, now_ms: u64, out: &mut BytesMut) {
        let mut places = Vec::new();
        for index in 0..self.seats.len() {
            let Seat { id, sync, asking, ask_due_ms, .. } = &mut self.seats[index];
            let Some(question) = sync.question().filter(|_| !*asking && *ask_due_ms <= now_ms) else { continue };
            if self.in_flight.len() >= IN_FLIGHT_MAX {
                return;
            }
            *asking = true;
            match question {
                Question::Sync => places.push((index, sync.place())),
                Question::Page => {
                    let (conversation_id, after_seq) = (id.clone(), Some(sync.last()));
                    let history = History { conversation_id, after_seq, page_size: PAGE, ..History::default() };
                    let correlation = self.issue(Asked::History(index), now_ms);
                    frame::put_message(out, Kind::History, correlation, &history);
                }
            }
        }
        if !places.is_empty() {
            let positions = places.iter().map(|place| self.sync_from(place)).collect();
            let correlation = self.issue(Asked::Sync(places), now_ms);
            frame::put_message(out, Kind::Sync, correlation, &Sync { positions, ..Sync::default() });
        }
    }

    fn report_if_moved(&mut self, index: usize, now_ms: u64, out: &mut BytesMut) {
        let Some(reads) = self.habits.reads else { return };
        let seat = &mut self.seats[index];
        let delivered = seat.sync.last();
        let read = match reads {
            Reads::All => delivered,
            Reads::Half => delivered / 2,
            Reads::Nothing => 0,
        };
        let has_moved = delivered > seat.delivered_acked || read > seat.read_acked;
        if !has_moved || seat.receipt_pending || seat.receipt_due_ms > now_ms || self.in_flight.len() >= IN_FLIGHT_MAX {
            return;
        }
        seat.receipt_pending = true;
        seat.read_sent = seat.read_sent.max(read);
        let receipt = Receipt { conversation_id: seat.id.clone(), delivered_seq: delivered, read_seq: read };
        let correlation = self.issue(Asked::Receipt { seat: index, delivered, read }, now_ms);
        frame::put_message(out, Kind::Receipt, correlation, &receipt);
    }

    fn put_message(&mut self, index: usize, now_ms: u64, out: &mut BytesMut) {
        let correlation = self.issue(Asked::Message(index), now_ms);
        let Outgoing { sent, seat, offered_ms, .. } = &mut self.messages[index];
        if sent.attempts == 0 {
            (sent.connection, sent.place) = (self.connection, self.place);
        } else {
            self.figures.repeated += 1;
        }
        sent.attempts += 1;
        self.place += 1;
        let Origin { conversation, member, counter } = sent.origin;
        // The stamp is the same in every repetition, and with it the body.
        let stamp = Stamp { run: self.terms.run, conversation, member, counter, intended_ns: *offered_ms };
        let mut frame = Vec::new();
        self.seats[*seat].template.put(&mut frame, correlation, stamp);
        out.extend_from_slice(&frame);
    }

    fn issue(&mut self, asked: Asked, now_ms: u64) -> u16 {
        // At most twice IN_FLIGHT_MAX and the late ones of 22 s are in the table.
        while self.next_correlation == 0 || self.in_flight.contains_key(&self.next_correlation) {
            self.next_correlation = self.next_correlation.wrapping_add(1);
        }
        let correlation = self.next_correlation;
        self.next_correlation = correlation.wrapping_add(1);
        self.in_flight.insert(correlation, Command { asked, written_ms: now_ms, is_late: false });
        correlation
    }
}

#[cfg(test)]
#[path = "client_tests.rs"]
mod tests;
