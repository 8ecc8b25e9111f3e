//! When a lane's watchers pull, and what they ask for: what is newest while they watch, their gaps afterwards.
//!
//! A watcher has at most one pull under way or waiting, whatever it is told meanwhile.

use bytes::BytesMut;

use super::http_pull::Request;
use super::lane::{Lane, Phase};
use super::ledger::Origin;
use super::watcher::Pull;
use crate::wire::put_pull;

/// The correlation of pulls; places of sends are below it.
pub const PULL_CORRELATION: u16 = u16::MAX;

impl Lane {
    /// There is something to pull: at the watcher's time, unless it has been asked for already.
    pub(super) fn notice(&mut self, index: usize, spread_ms: u32, now_ns: u64) {
        let watcher = &mut self.watchers[index];
        watcher.spread_ns = u64::from(spread_ms) * 1_000_000;
        match watcher.pull {
            Pull::Asked => watcher.has_notice = true,
            Pull::Due => {}
            Pull::Idle => {
                let at_ns = watcher.next_pull_ns(now_ns);
                self.pull_at(index, at_ns);
            }
        }
    }

    /// Pulls at a moment.
    pub(super) fn pull_at(&mut self, index: usize, at_ns: u64) {
        self.watchers[index].pull = Pull::Due;
        self.wheel.add(at_ns, u32::try_from(index).expect("watchers are counted in u32"));
    }

    pub(super) fn pull_due(&mut self, now_ns: u64) {
        let mut due = std::mem::take(&mut self.due);
        self.wheel.take_due(now_ns, &mut due);
        for index in due.drain(..) {
            self.ask(index as usize, now_ns);
        }
        self.due = due;
    }

    /// Asks for what is newest, or for the first gap.
    fn ask(&mut self, index: usize, now_ns: u64) {
        let watcher = &mut self.watchers[index];
        watcher.pull = Pull::Idle;
        watcher.has_notice = false;
        if !watcher.is_open {
            return;
        }
        let (after_seq, before_seq) = match self.phase {
            // Pushes behind it have come meanwhile; the newest is no longer where it was left.
            Phase::Live => watcher.unpushed.take().unwrap_or((watcher.seen.last(), 0)),
            Phase::Filling(last_seq) => match watcher.seen.first_gap(last_seq) {
                Some((first, last)) => (first - 1, last + 1),
                None => return self.end_filling(index),
            },
        };
        watcher.pull = Pull::Asked;
        watcher.asked_ns = now_ns;
        self.pulls_asked += 1;
        if self.phase == Phase::Live {
            self.second(now_ns).pulls += 1;
        }
        if let Some(pool) = &mut self.http {
            let watcher = u32::try_from(index).expect("watchers are counted in u32");
            return pool.ask(Request { watcher, after_seq, before_seq });
        }
        self.scratch.clear();
        let (lobby, epoch) = (&self.origin.lobby, self.origin.epoch);
        put_pull(&mut self.scratch, PULL_CORRELATION, lobby, epoch, after_seq, before_seq);
        self.watchers[index].put_frame(&self.scratch);
        self.touch(index);
    }

    // ---- filling

    /// From now on the first `watchers` ask for what they have not seen, up to `last_seq`, some at once.
    pub fn begin_filling(&mut self, last_seq: u64, watchers: u32, at_once: u32) {
        self.phase = Phase::Filling(last_seq);
        self.fill_waiting = 0..watchers;
        self.fill_at_once = at_once;
    }

    /// True when nobody fills any more.
    pub fn is_filled(&self) -> bool {
        self.fill_waiting.is_empty() && self.fill_active == 0
    }

    /// Lets further watchers begin to fill.
    pub fn fill_more(&mut self, now_ns: u64) {
        while self.fill_active < self.fill_at_once
            && let Some(index) = self.fill_waiting.next()
        {
            self.fill_active += 1;
            self.watchers[index as usize].is_filling = true;
            self.fill_next(index as usize, now_ns);
        }
    }

    /// A watcher that fills asks for its next gap, or is done.
    pub(super) fn fill_next(&mut self, index: usize, now_ns: u64) {
        let Phase::Filling(last_seq) = self.phase else { return };
        let watcher = &self.watchers[index];
        if !watcher.is_filling {
            return;
        }
        if !watcher.is_open || watcher.seen.first_gap(last_seq).is_none() {
            return self.end_filling(index);
        }
        // A pull that was under way when filling began brings its watcher here with its answer.
        if watcher.pull == Pull::Idle {
            self.ask(index, now_ns);
        }
    }

    /// A watcher has filled its gaps, or never will.
    pub(super) fn end_filling(&mut self, index: usize) {
        if std::mem::take(&mut self.watchers[index].is_filling) {
            self.fill_active -= 1;
            self.filled_watchers += 1;
        }
    }
}

/// Appends a pull's HTTP request.
pub fn put_http_pull(out: &mut BytesMut, origin: &Origin, token: &str, request: &Request) {
    use std::fmt::Write as _;
    let Request { after_seq, before_seq, .. } = request;
    let (lobby, epoch) = (&origin.lobby, origin.epoch);
    // Writing to a buffer that grows cannot fail.
    let _ = write!(out, "GET /api/v1/chat/pull/lobby?lobby={lobby}&after_seq={after_seq}&epoch={epoch}");
    if *before_seq != 0 {
        let _ = write!(out, "&before_seq={before_seq}");
    }
    let _ = write!(
        out,
        " HTTP/1.1\r\nhost: tidegate\r\naccept: application/x-protobuf\r\nauthorization: Bearer {token}\r\n\r\n"
    );
}
