//! The gate: [`Fairness`] with its ways to the hot store and the archive, inside an acceptor.
//!
//! In comes a turn's batch; [`Gate::prepare`] finds out what is not known of its rooms and allowances, in at most one call
//! each, and [`Gate::pass`] decides about one message after the other. What was let pass is told behind the acceptor's
//! back, by [`Gate::step`].
//!
//! What must hold: nobody waits for a service longer than [`CALL_TIMEOUT`], and after a call that failed nobody waits for a
//! second; then limits hold as far as this gateway knows, and rooms that are not known have no slow mode.

use std::future::Future;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::{Either, select};
use rustc_hash::FxHashMap;

use super::paces::{Pace, Paces};
use super::{Fairness, Rules, Sending, TELL_INTERVAL, Told, Unknown};
use crate::clock::Clock;
use crate::delivery::Accepting;
use crate::event::IngestEvent;
use crate::ids::{ConversationId, Millis, RoomId};
use crate::meter;
use crate::ports::{Backend, HotStore as _, PortResult};

/// How long messages wait for an answer. Ten to a hundred times what Redis and MySQL need, and less than a person notices.
const CALL_TIMEOUT: Duration = Duration::from_millis(200);

/// How long the archive is not asked after a call that failed.
const SILENCE_MS: u64 = 1000;

/// What the gate does behind the acceptor's back.
type Work = Pin<Box<dyn Future<Output = Done> + Send>>;

enum Done {
    /// It is time to tell.
    Waited,
    /// The store was told, and has answered or has not.
    Called(Told, Option<Vec<u64>>),
}

/// See the module.
pub struct Gate<B, C> {
    fairness: Fairness,
    paces: Arc<Paces>,
    backend: Arc<B>,
    clock: C,
    work: Option<Work>,
    is_calling: bool,
    archive_silent_until: Millis,
    /// The rooms of the present batch.
    rooms: FxHashMap<RoomId, Pace>,
    unknown: Vec<Unknown>,
    now: Millis,
}

impl<B: Backend, C: Clock> Gate<B, C> {
    /// With all allowances whole.
    pub fn new(rules: Rules, backend: Arc<B>, clock: C) -> Self {
        let now = clock.now();
        Self {
            fairness: Fairness::new(rules.limits),
            paces: rules.paces,
            backend,
            clock,
            work: None,
            is_calling: false,
            archive_silent_until: Millis(0),
            rooms: FxHashMap::default(),
            unknown: Vec::new(),
            now,
        }
    }

    /// Learns what is not known and needed to decide about a batch.
    pub async fn prepare(&mut self, batch: &[Accepting]) {
        self.now = self.clock.now();
        self.rooms.clear();
        let rooms = batch.iter().filter_map(|accepting| match accepting.event {
            IngestEvent::Accepted(ref accepted) => room_of(accepted.conversation),
            IngestEvent::ReceiptMoved(_) => None,
        });
        self.rooms.extend(rooms.map(|room| (room, Pace::ANY)));
        if !self.rooms.is_empty() {
            self.learn_paces().await;
        }
        for accepting in batch {
            if let Some(sending) = self.sending(accepting) {
                self.fairness.look(self.now, &sending, &mut self.unknown);
            }
        }
        if !self.unknown.is_empty() {
            self.ask().await;
        }
        self.now = self.clock.now();
    }

    /// Decides about a message of the batch.
    ///
    /// # Errors
    /// The milliseconds after which it would pass.
    pub fn pass(&mut self, accepting: &Accepting) -> Result<(), u32> {
        let Some(sending) = self.sending(accepting) else { return Ok(()) };
        self.fairness.pass(self.now, &sending)?;
        if self.work.is_none() && self.fairness.has_untold() {
            self.wait_to_tell();
        }
        Ok(())
    }

    /// Whether [`Gate::step`] will come to an end.
    pub fn is_at_work(&self) -> bool {
        self.work.is_some()
    }

    /// Waits for whatever is at work, and begins what follows. May be dropped at any time and called again.
    pub async fn step(&mut self) {
        let Some(work) = &mut self.work else { return };
        let done = work.as_mut().await;
        (self.work, self.is_calling) = (None, false);
        match done {
            Done::Waited => self.tell(),
            Done::Called(told, debts_us) => {
                self.hear(&told, debts_us);
                if self.fairness.has_untold() {
                    self.wait_to_tell();
                }
            }
        }
    }

    /// Tells what is still untold: whoever goes elsewhere, because this gateway ends, has spent there what it has spent here.
    pub async fn finish(mut self) {
        self.come_to_rest().await;
        self.tell();
        self.come_to_rest().await;
    }

    fn sending(&self, accepting: &Accepting) -> Option<Sending> {
        let IngestEvent::Accepted(accepted) = &accepting.event else { return None };
        let pace = room_of(accepted.conversation).and_then(|room| self.rooms.get(&room).copied());
        Some(Sending {
            conversation: accepted.conversation,
            sender: accepted.sender,
            pace: pace.unwrap_or(Pace::ANY),
            accepted_at: accepted.accepted_at,
        })
    }

    async fn learn_paces(&mut self) {
        let Some(unknown) = self.paces.fill(self.now, &mut self.rooms) else { return };
        let silent_ms = self.archive_silent_until.0.saturating_sub(self.now.0);
        // More than that comes from a clock that was set back.
        if (1..=SILENCE_MS).contains(&silent_ms) {
            return;
        }
        let look_up = self.paces.look_up(self.now, &unknown, &mut self.rooms, self.backend.archive());
        if in_time(&self.clock, "rooms", look_up).await.is_none() {
            self.archive_silent_until = Millis(self.clock.now().0 + SILENCE_MS);
        }
    }

    async fn ask(&mut self) {
        while self.is_calling {
            self.step().await;
        }
        let told = self.fairness.ask(self.clock.now(), &mut self.unknown);
        let debts_us = in_time(&self.clock, "spend", self.backend.hot().spend(&told.spends)).await;
        self.hear(&told, debts_us);
    }

    fn tell(&mut self) {
        let dropped = self.fairness.take_dropped();
        if dropped > 0 {
            metrics::counter!(meter::FAIRNESS_UNTOLD).increment(dropped);
        }
        if let Some(told) = self.fairness.tell(self.clock.now()) {
            let (backend, clock) = (Arc::clone(&self.backend), self.clock.clone());
            self.is_calling = true;
            self.work = Some(Box::pin(async move {
                let debts_us = in_time(&clock, "spend", backend.hot().spend(&told.spends)).await;
                Done::Called(told, debts_us)
            }));
        } else if self.fairness.has_untold() {
            self.wait_to_tell();
        }
    }

    fn wait_to_tell(&mut self) {
        let clock = self.clock.clone();
        self.work = Some(Box::pin(async move {
            clock.sleep(TELL_INTERVAL).await;
            Done::Waited
        }));
    }

    fn hear(&mut self, told: &Told, debts_us: Option<Vec<u64>>) {
        match debts_us {
            Some(debts_us) => self.fairness.heard(told, &debts_us),
            None => self.fairness.unheard(self.clock.now(), told),
        }
    }

    /// Waits for a call that is under way, and for nothing else.
    async fn come_to_rest(&mut self) {
        while self.is_calling {
            self.step().await;
        }
        self.work = None;
    }
}

/// The answer of a service, if it comes in time.
async fn in_time<T>(clock: &impl Clock, call: &'static str, answer: impl Future<Output = PortResult<T>>) -> Option<T> {
    let why = match select(pin!(answer), pin!(clock.sleep(CALL_TIMEOUT))).await {
        Either::Left((Ok(answer), _)) => return Some(answer),
        Either::Left((Err(error), _)) => error.to_string(),
        Either::Right(_) => "no answer in time".to_owned(),
    };
    metrics::counter!(meter::FAIRNESS_FAILED, "call" => call).increment(1);
    tracing::warn!(call, why, "limits hold as far as they are known here");
    None
}

fn room_of(conversation: ConversationId) -> Option<RoomId> {
    match conversation {
        ConversationId::Room(room) => Some(room),
        _ => None,
    }
}
