//! When to ping, and when to give a connection up: "Deadlines and heartbeats" of `proto/PROTOCOL.md`.
//!
//! In go what was sent and heard, with the time; out comes a [`Beat`]. Must always hold: neither side is silent for longer
//! than the interval without a ping, and a connection is given up only after every probe went unanswered.

use std::time::{Duration, Instant};

use tidegate_proto::v1;

/// The interval we would like: a person notices a dead connection in well under a minute.
const INTERVAL_WANTED: Duration = Duration::from_secs(30);

/// What to do now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Beat {
    /// Nothing yet.
    Wait,
    /// Send a Ping.
    Ping,
    /// The other side is gone.
    GiveUp,
}

/// See the module.
#[derive(Debug)]
pub struct Heartbeat {
    interval: Duration,
    probe_interval: Duration,
    probe_count: u32,
    heard: Instant,
    sent: Instant,
    probes: u32,
}

impl Heartbeat {
    /// As the server wants it, beginning at `now`.
    pub fn new(rules: v1::Heartbeat, now: Instant) -> Self {
        let min = Duration::from_secs(rules.min_interval_s.max(1).into());
        let max = Duration::from_secs(rules.max_interval_s.into()).max(min);
        Self {
            interval: INTERVAL_WANTED.clamp(min, max),
            probe_interval: min,
            probe_count: rules.probe_count.max(1),
            heard: now,
            sent: now,
            probes: 0,
        }
    }

    /// A frame was sent.
    pub fn handle_sent(&mut self, now: Instant) {
        self.sent = now;
    }

    /// A frame arrived.
    pub fn handle_heard(&mut self, now: Instant) {
        self.heard = now;
        self.probes = 0;
    }

    /// When to ask [`Self::handle_timeout`] again.
    pub fn next(&self) -> Instant {
        match self.probes {
            0 => self.sent.min(self.heard) + self.interval,
            _ => self.sent + self.probe_interval,
        }
    }

    /// What to do at `now`; a ping counts as sent.
    pub fn handle_timeout(&mut self, now: Instant) -> Beat {
        if now < self.next() {
            return Beat::Wait;
        }
        if self.probes == self.probe_count {
            return Beat::GiveUp;
        }
        self.probes += 1;
        self.sent = now;
        Beat::Ping
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn heartbeat(max_interval_s: u32) -> (Heartbeat, Instant) {
        let now = Instant::now();
        (Heartbeat::new(v1::Heartbeat { min_interval_s: 5, max_interval_s, probe_count: 3 }, now), now)
    }

    fn s(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn the_interval_is_ours_within_the_servers_bounds() {
        assert_eq!(heartbeat(180).0.interval, s(30));
        assert_eq!(heartbeat(10).0.interval, s(10));
        assert_eq!(heartbeat(0).0.interval, s(5));
    }

    #[test]
    fn silence_of_either_side_is_ended_by_a_ping() {
        let (mut beat, start) = heartbeat(180);
        assert_eq!(beat.handle_timeout(start + s(29)), Beat::Wait);
        beat.handle_sent(start + s(20));
        assert_eq!(beat.handle_timeout(start + s(30)), Beat::Ping, "nothing was heard");
        beat.handle_heard(start + s(31));
        assert_eq!(beat.next(), start + s(60), "nothing was sent since the ping");
    }

    #[test]
    fn a_silent_server_is_given_up_after_every_probe() {
        let (mut beat, start) = heartbeat(180);
        for probe in 0..3 {
            assert_eq!(beat.handle_timeout(start + s(30 + 5 * probe)), Beat::Ping);
        }
        assert_eq!(beat.handle_timeout(start + s(44)), Beat::Wait);
        assert_eq!(beat.handle_timeout(start + s(45)), Beat::GiveUp);
    }

    #[test]
    fn any_frame_is_a_sign_of_life() {
        let (mut beat, start) = heartbeat(180);
        assert_eq!(beat.handle_timeout(start + s(30)), Beat::Ping);
        assert_eq!(beat.handle_timeout(start + s(35)), Beat::Ping);
        beat.handle_heard(start + s(36));
        assert_eq!(beat.handle_timeout(start + s(45)), Beat::Wait);
    }
}
