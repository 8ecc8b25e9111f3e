//! Fairness: who may send how much, so that nobody can own a room or a lobby.
//!
//! A state machine without I/O, one for each acceptor, which all messages of a conversation from this gateway pass in their
//! order. In go messages with the time, out come verdicts, and what to ask of and tell the hot store ([`Spend`]). An
//! [allowance](limit::Limit) belongs to a user in a conversation, never to a connection, so it survives reconnecting here;
//! and each is shared by way of the hot store, so that it survives reconnecting elsewhere: what was let pass is told
//! within [`TELL_INTERVAL`], and an allowance the store was not heard about for [`FRESH_US`] is asked for before it
//! decides.
//!
//! What must hold: what is refused costs nothing; a gateway alone decides as if there were no store, to the microsecond; a store
//! that is away stops nobody; time that goes back takes nothing away; nothing is allocated per message, and all that is kept
//! is bounded.

pub mod gate;
pub mod limit;
pub mod paces;
pub mod rules;

#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::Duration;

use rustc_hash::FxHashMap;

use crate::ids::{ConversationId, Millis, UserId};
use crate::ports::{AllowanceKey, Holder, Spend};
use crate::recent::Recent;
use limit::{Limit, SECOND_US};
use paces::{Pace, Paces};
use rules::{Limits, SendLimits};

/// What every acceptor of a gateway needs to know of fairness.
#[derive(Clone, Default)]
pub struct Rules {
    /// Limits as configured.
    pub limits: Arc<SendLimits>,
    /// Slow modes as the archive has them.
    pub paces: Arc<Paces>,
}

/// How long what was let pass may stay untold. Half of what others may be behind.
pub const TELL_INTERVAL: Duration = Duration::from_millis(500);

const _: () =
    assert!(crate::limits::ALLOWANCE_KEPT.as_millis() >= 4 * TELL_INTERVAL.as_millis(), "kept until it was told");

/// How long what was heard of an allowance counts: as long as others may be behind.
const FRESH_US: u64 = SECOND_US;

/// How long nothing is asked or told after a call that failed.
const SILENCE_US: u64 = SECOND_US;

/// Allowances per generation that are kept here, some 100 bytes each. What is forgotten is asked for again.
const ALLOWANCES_MAX: usize = 32 * 1024;

/// Allowances that wait to be told. More than an acceptor lets pass in half a second; those beyond are not told, and counted.
const UNTOLD_MAX: usize = 8 * 1024;

/// Conversations per generation whose limits are kept, if there are rules.
const CHOSEN_MAX: usize = 16 * 1024;

/// A message that wants to pass.
#[derive(Clone, Copy, Debug)]
pub struct Sending {
    /// Where to.
    pub conversation: ConversationId,
    /// Whose.
    pub sender: UserId,
    /// The room's slow mode.
    pub pace: Pace,
    /// When the gateway took it. It may have waited since, while a broker was busy; that is not its sender's doing.
    pub accepted_at: Millis,
}

/// See the module.
pub struct Fairness {
    limits: Arc<SendLimits>,
    chosen: Recent<ConversationId, Limits>,
    allowances: Recent<AllowanceKey, Allowance>,
    untold: FxHashMap<AllowanceKey, Untold>,
    /// What did not fit in there since it was asked for.
    dropped: u64,
    time: Time,
    silent_until_us: u64,
}

#[derive(Clone, Copy, Debug, Default)]
struct Allowance {
    whole_at_us: u64,
    heard_at_us: u64,
}

/// What passed and the store does not know.
#[derive(Clone, Copy, Debug)]
struct Untold {
    cost_us: u64,
    since_us: u64,
    most_us: u64,
}

/// An allowance the store has to be asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unknown {
    key: AllowanceKey,
    most_us: u64,
}

/// A call to the store: what it was told, and when.
#[derive(Debug)]
pub struct Told {
    /// In the order of the answer.
    pub spends: Vec<Spend>,
    called_at_us: u64,
}

impl Fairness {
    /// With all allowances whole.
    #[must_use]
    pub fn new(limits: Arc<SendLimits>) -> Self {
        Self {
            limits,
            chosen: Recent::new(CHOSEN_MAX),
            allowances: Recent::new(ALLOWANCES_MAX),
            untold: FxHashMap::default(),
            dropped: 0,
            time: Time::default(),
            silent_until_us: 0,
        }
    }

    /// Decides about one message. Refused it costs nothing, and the milliseconds are those after which it would pass.
    ///
    /// # Errors
    /// The wait, at least 1.
    pub fn pass(&mut self, now: Millis, sending: &Sending) -> Result<(), u32> {
        let now_us = self.time.at(now);
        let applying = self.applying(sending);
        let mut wait_us = 0;
        for (key, limit) in applying.into_iter().flatten() {
            let Some(allowance) = self.allowances.get_mut(&key) else { continue };
            allowance.whole_at_us = allowance.whole_at_us.min(now_us + limit.most_us());
            wait_us = limit.wait_us(allowance.whole_at_us, now_us).max(wait_us);
        }
        if wait_us > 0 {
            return Err(u32::try_from(wait_us.div_ceil(1000)).unwrap_or(u32::MAX));
        }
        let waited_us = now.0.saturating_sub(sending.accepted_at.0).saturating_mul(1000);
        for (key, limit) in applying.into_iter().flatten() {
            self.spend(now_us.saturating_sub(waited_us), key, &limit);
        }
        Ok(())
    }

    /// Adds to `unknown` the allowances that have to be asked for before [`Fairness::pass`] decides about the message. From now
    /// on they count as heard of.
    pub fn look(&mut self, now: Millis, sending: &Sending, unknown: &mut Vec<Unknown>) {
        let now_us = self.time.at(now);
        if now_us < self.silent_until_us {
            return;
        }
        for (key, limit) in self.applying(sending).into_iter().flatten() {
            match self.allowances.get_mut(&key) {
                Some(allowance) if now_us < allowance.heard_at_us + FRESH_US => continue,
                Some(allowance) => allowance.heard_at_us = now_us,
                None => self.allowances.insert(key, Allowance { whole_at_us: 0, heard_at_us: now_us }),
            }
            unknown.push(Unknown { key, most_us: limit.most_us() });
        }
    }

    /// The call that asks for what [`Fairness::look`] found, and takes that out. One call is under way at a time.
    pub fn ask(&mut self, now: Millis, unknown: &mut Vec<Unknown>) -> Told {
        let now_us = self.time.at(now);
        let mut spends = Vec::with_capacity(unknown.len());
        for Unknown { key, most_us } in unknown.drain(..) {
            let untold = self.untold.remove(&key).unwrap_or(Untold { cost_us: 0, since_us: now_us, most_us });
            spends.push(self.told_of(now_us, key, untold));
        }
        Told { spends, called_at_us: now_us }
    }

    /// Whether something passed that the store does not know.
    #[must_use]
    pub fn has_untold(&self) -> bool {
        !self.untold.is_empty()
    }

    /// The call that tells all there is; `None` if there is nothing or a call failed a moment ago.
    pub fn tell(&mut self, now: Millis) -> Option<Told> {
        let now_us = self.time.at(now);
        if now_us < self.silent_until_us {
            return None;
        }
        let untold = std::mem::take(&mut self.untold);
        let told = untold.into_iter().map(|(key, untold)| self.told_of(now_us, key, untold));
        // What is whole by now is what the store takes an unknown allowance for.
        let spends: Vec<Spend> = told.filter(|spend| spend.cost_us > 0 || spend.debt_us > 0).collect();
        (!spends.is_empty()).then_some(Told { spends, called_at_us: now_us })
    }

    /// The store has answered a call: debts in microseconds, in the call's order.
    pub fn heard(&mut self, told: &Told, debts_us: &[u64]) {
        for (spend, debt_us) in told.spends.iter().zip(debts_us) {
            let mut whole_at_us = told.called_at_us.saturating_add(*debt_us);
            if let Some(later) = self.untold.get(&spend.key) {
                whole_at_us = whole_at_us.max(later.since_us).saturating_add(later.cost_us);
            }
            let heard = Allowance { whole_at_us, heard_at_us: told.called_at_us };
            match self.allowances.get_mut(&spend.key) {
                Some(known) => {
                    known.whole_at_us = known.whole_at_us.max(heard.whole_at_us);
                    known.heard_at_us = known.heard_at_us.max(heard.heard_at_us);
                }
                None => self.allowances.insert(spend.key, heard),
            }
        }
    }

    /// The store did not answer a call in time. Whether it has added what it was told is not known: so it will be told again
    /// how the allowances stand, and not what they cost.
    pub fn unheard(&mut self, now: Millis, told: &Told) {
        self.silent_until_us = self.time.at(now) + SILENCE_US;
        for spend in told.spends.iter().filter(|spend| spend.debt_us > 0) {
            let again = Untold { cost_us: 0, since_us: told.called_at_us, most_us: spend.most_us };
            self.keep_untold(spend.key, again);
        }
    }

    /// Allowances that could not be kept to be told, since this was last called.
    pub fn take_dropped(&mut self) -> u64 {
        std::mem::take(&mut self.dropped)
    }

    /// The allowances a message needs.
    fn applying(&mut self, sending: &Sending) -> [Option<(AllowanceKey, Limit)>; 3] {
        let Sending { conversation, sender, pace, .. } = *sending;
        if sender == UserId::SYSTEM {
            return [None; 3];
        }
        let limits = self.limits_of(conversation);
        let slow = if pace.owner == sender { None } else { Limit::one_in(pace.slow_mode_s) };
        let of = |holder, limit: Option<Limit>| limit.map(|limit| (AllowanceKey { conversation, holder }, limit));
        [
            of(Holder::User(sender), limits.user),
            of(Holder::Slow(sender), slow),
            of(Holder::Everybody, limits.conversation),
        ]
    }

    fn limits_of(&mut self, conversation: ConversationId) -> Limits {
        if !self.limits.has_rules() {
            return self.limits.without_rules(&conversation);
        }
        if let Some(limits) = self.chosen.get(&conversation) {
            return *limits;
        }
        let limits = self.limits.of(&conversation);
        self.chosen.insert(conversation, limits);
        limits
    }

    /// For a message that was accepted then.
    fn spend(&mut self, at_us: u64, key: AllowanceKey, limit: &Limit) {
        match self.allowances.get_mut(&key) {
            Some(allowance) => allowance.whole_at_us = limit.spend(allowance.whole_at_us, at_us),
            None => {
                let whole_at_us = limit.spend(0, at_us);
                self.allowances.insert(key, Allowance { whole_at_us, heard_at_us: at_us });
            }
        }
        let spent = Untold { cost_us: limit.interval_us(), since_us: at_us, most_us: limit.most_us() };
        self.keep_untold(key, spent);
    }

    fn keep_untold(&mut self, key: AllowanceKey, more: Untold) {
        if let Some(untold) = self.untold.get_mut(&key) {
            untold.cost_us = untold.cost_us.saturating_add(more.cost_us);
            untold.most_us = more.most_us;
        } else if self.untold.len() < UNTOLD_MAX {
            self.untold.insert(key, more);
        } else {
            self.dropped += 1;
        }
    }

    fn told_of(&mut self, now_us: u64, key: AllowanceKey, untold: Untold) -> Spend {
        let whole_at_us = self.allowances.get(&key).map_or(0, |allowance| allowance.whole_at_us);
        Spend {
            key,
            cost_us: untold.cost_us,
            age_us: now_us.saturating_sub(untold.since_us),
            debt_us: whole_at_us.saturating_sub(now_us).min(untold.most_us),
            most_us: untold.most_us,
        }
    }
}

/// The passing of time in microseconds, by a clock that may be set back: that moment counts as none.
#[derive(Debug, Default)]
struct Time {
    clock: Millis,
    set_back_ms: u64,
}

impl Time {
    fn at(&mut self, clock: Millis) -> u64 {
        self.set_back_ms += self.clock.0.saturating_sub(clock.0);
        self.clock = clock;
        (clock.0 + self.set_back_ms) * 1000
    }
}
