//! One watcher of the lobby: a logged-in connection, what it has seen, which gear it was told, and where it is with its
//! pulls. Some watchers send as well.

use std::collections::VecDeque;

use bytes::BytesMut;
use tidegate_proto::v1::{Gear, LoginReply};
use tidegate_proto::websocket::{Opcode, put_masked};

use super::intervals::IntervalSet;
use super::line::Line;
use super::options::Transport;
use crate::places::Places;
use crate::wire::SendTemplate;

/// Where a watcher is with its pulls: at most one is under way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pull {
    /// Nothing to ask.
    Idle,
    /// It waits for its time.
    Due,
    /// It was asked and not answered yet.
    Asked,
}

/// See the module.
#[derive(Debug)]
pub struct Watcher {
    /// The socket.
    pub line: Line,
    /// How frames are wrapped on it.
    pub transport: Transport,
    /// Index of its account.
    pub account: u32,
    /// Largest frame the server sends.
    pub frame_bytes_max: usize,
    /// Silence after which the server wants a ping, from its heartbeat.
    pub ping_after_ns: u64,
    /// False once it is closed.
    pub is_open: bool,
    /// True while it is listed for the next flush.
    pub is_touched: bool,
    /// The sequences it has been shown, those before the run included.
    pub seen: IntervalSet,
    /// What it was told last.
    pub gear: Gear,
    /// Since when it is in signal gear without a break.
    pub signal_since_ns: Option<u64>,
    /// Drawn once: where in the spread it pulls.
    pub phase_ns: u64,
    /// Where it is with its pulls.
    pub pull: Pull,
    /// There was a notice since it asked.
    pub has_notice: bool,
    /// It left signal gear: what lies between these two was neither pushed nor pulled yet.
    pub unpushed: Option<(u64, u64)>,
    /// It is filling its gaps.
    pub is_filling: bool,
    /// When it asked last.
    pub asked_ns: u64,
    /// The spread it was told last.
    pub spread_ns: u64,
    /// Bytes received in this second as a watcher: answers to its own messages are not among them.
    pub second_bytes: u64,
    /// Bytes of the whole seconds in signal gear.
    pub signal_bytes: u64,
    /// Whole seconds in signal gear.
    pub signal_seconds: u64,
    /// If it sends.
    pub sender: Option<Box<Sender>>,
}

/// What a watcher that sends has besides.
#[derive(Debug)]
pub struct Sender {
    /// Index among all senders.
    pub member: u32,
    /// Its messages' frame.
    pub template: SendTemplate,
    /// The commands in flight.
    pub places: Places,
    /// Messages and their due times that wait for a place in flight.
    pub held_back: VecDeque<(u32, u64)>,
}

/// What a watcher is made of once it is logged in.
pub struct NewWatcher<'a> {
    /// The socket, non-blocking.
    pub stream: std::net::TcpStream,
    /// How frames are wrapped on it.
    pub transport: Transport,
    /// What the server said.
    pub reply: &'a LoginReply,
    /// Bytes that came behind the reply.
    pub received: &'a [u8],
    /// Index of its account.
    pub account: u32,
    /// The lobby's last sequence before the run.
    pub base_seq: u64,
    /// Where in the spread it pulls.
    pub phase_ns: u64,
}

impl Watcher {
    /// A watcher that has seen nothing of the run.
    pub fn new(new: NewWatcher<'_>, sender: Option<Box<Sender>>, now_ns: u64) -> Self {
        let max_interval_s = new.reply.heartbeat.map_or(180, |heartbeat| heartbeat.max_interval_s.max(1));
        Self {
            line: Line::new(new.stream, new.received, now_ns),
            transport: new.transport,
            account: new.account,
            frame_bytes_max: (new.reply.max_frame_bytes as usize).max(tidegate_proto::limits::FRAME_BYTES_MAX_DEFAULT),
            ping_after_ns: u64::from(max_interval_s) * 800_000_000,
            is_open: true,
            is_touched: false,
            seen: IntervalSet::up_to(new.base_seq),
            gear: Gear::Direct,
            signal_since_ns: None,
            phase_ns: new.phase_ns,
            pull: Pull::Idle,
            has_notice: false,
            unpushed: None,
            is_filling: false,
            asked_ns: 0,
            spread_ns: 0,
            second_bytes: 0,
            signal_bytes: 0,
            signal_seconds: 0,
            sender,
        }
    }

    /// Appends a frame, wrapped as the transport wants it.
    pub fn put_frame(&mut self, frame: &[u8]) {
        put_wrapped(&mut self.line.out, self.transport, frame);
    }

    /// Takes a gear.
    pub fn shift(&mut self, gear: Gear, now_ns: u64) {
        self.gear = gear;
        self.signal_since_ns = (gear == Gear::Signal).then(|| self.signal_since_ns.unwrap_or(now_ns));
    }

    /// When it pulls next: when the clock, modulo the spread, comes to its phase, and not within a spread of its last.
    pub fn next_pull_ns(&self, now_ns: u64) -> u64 {
        let spread_ns = self.spread_ns.max(1);
        let mut at_ns = now_ns - now_ns % spread_ns + self.phase_ns % spread_ns;
        if at_ns < now_ns {
            at_ns += spread_ns;
        }
        if self.asked_ns == 0 { at_ns } else { at_ns.max(self.asked_ns + spread_ns) }
    }

    /// Ends a second: the bytes of it, and whether it was one in signal gear from beginning to end.
    pub fn end_second(&mut self, started_ns: u64) -> (u64, bool) {
        let bytes = std::mem::take(&mut self.second_bytes);
        let is_signal = self.is_open && self.signal_since_ns.is_some_and(|since_ns| since_ns <= started_ns);
        if is_signal {
            self.signal_bytes += bytes;
            self.signal_seconds += 1;
        }
        (bytes, is_signal)
    }
}

/// Appends a frame to what is to be written.
pub fn put_wrapped(out: &mut BytesMut, transport: Transport, frame: &[u8]) {
    match transport {
        Transport::Tcp => out.extend_from_slice(frame),
        // A mask of zeroes leaves the bytes as they are, and masks protect nothing here.
        Transport::Websocket => put_masked(out, Opcode::Binary, [0; 4], frame),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn watcher() -> Watcher {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let stream = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let reply = LoginReply::default();
        let new = NewWatcher {
            stream,
            transport: Transport::Tcp,
            reply: &reply,
            received: &[],
            account: 0,
            base_seq: 0,
            phase_ns: 1_030,
        };
        Watcher { spread_ns: 100, ..Watcher::new(new, None, 0) }
    }

    #[test]
    fn pulls_keep_to_the_phase_and_are_a_spread_apart() {
        let mut watcher = watcher();
        assert_eq!(
            (watcher.next_pull_ns(1_000), watcher.next_pull_ns(1_030), watcher.next_pull_ns(1_031)),
            (1_030, 1_030, 1_130)
        );
        // It asked five late; the next must not be early.
        watcher.asked_ns = 1_135;
        assert_eq!((watcher.next_pull_ns(1_140), watcher.next_pull_ns(1_300)), (1_235, 1_330));
    }

    #[test]
    fn only_whole_seconds_in_signal_gear_count() {
        let mut watcher = watcher();
        let second = |watcher: &mut Watcher, started_ns| {
            watcher.second_bytes = 10;
            watcher.end_second(started_ns)
        };
        assert_eq!(second(&mut watcher, 0), (10, false));
        watcher.shift(Gear::Signal, 1_500);
        assert_eq!(second(&mut watcher, 1_000), (10, false));
        watcher.shift(Gear::Signal, 2_500);
        assert_eq!(second(&mut watcher, 2_000), (10, true));
        watcher.shift(Gear::Merged, 3_500);
        assert_eq!(second(&mut watcher, 3_000), (10, false));
        assert_eq!((watcher.signal_bytes, watcher.signal_seconds), (10, 1));
    }
}
