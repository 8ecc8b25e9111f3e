//! The gearbox: one partition's decisions how the messages of its conversations travel.
//!
//! In come what a turn committed and the passing of time; out go [`Shift`]s and the notices that are due. It does no I/O.
//! Only the conversation's owner has one, so that there is one decision, however many gateways there are.
//!
//! Always: a gear goes up at once and down only after the rate was clearly below its threshold for a while, so that a rate
//! near a threshold does not make it flap; private conversations and conversations beyond the bound stay direct; there is
//! at most one notice per conversation and interval, and the last one says all.

use std::sync::Arc;

use rustc_hash::{FxHashMap, FxHashSet};
use tidegate_proto::v1::Gear;

use super::rate::Rate;
use super::rules::{StormRule, StormRules};
use crate::ids::{ConversationId, Epoch, Millis, Place, Seq};

/// Conversations watched at once per partition; quiet ones are forgotten.
const CONVERSATIONS_MAX: usize = 16 * 1024;

/// A conversation changed gear.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shift {
    /// Which.
    pub conversation: ConversationId,
    /// From.
    pub was: Gear,
    /// To.
    pub is: Gear,
    /// The first message it counts for.
    pub from: Place,
    /// Messages per second, at that moment.
    pub per_s: u64,
}

/// What the gateways are told of a conversation in signal gear.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Notice {
    /// Which.
    pub conversation: ConversationId,
    /// The newest message in the lobby cache.
    pub latest: Place,
    /// Time over which clients spread their pulls, in milliseconds.
    pub spread_ms: u32,
}

/// See the module.
#[derive(Debug)]
pub struct Gearbox {
    rules: Arc<StormRules>,
    conversations: FxHashMap<ConversationId, State>,
    /// Those in another gear than direct, or that owe a notice: all that time alone can change.
    busy: FxHashSet<ConversationId>,
}

#[derive(Debug)]
struct State {
    rule: Arc<StormRule>,
    rate: Rate,
    gear: Gear,
    /// Since when the rate has been below what holds the gear.
    calm_since: Option<Millis>,
    /// The newest message that is known to be committed.
    last: Place,
    /// Up to where notices are owed, and up to where they were given.
    to_notice: Seq,
    noticed: Seq,
    noticed_at: Millis,
}

impl Gearbox {
    /// Everything in direct gear.
    #[must_use]
    pub fn new(rules: Arc<StormRules>) -> Self {
        Self { rules, conversations: FxHashMap::default(), busy: FxHashSet::default() }
    }

    /// The conversation's gear and rule now.
    #[must_use]
    pub fn gear_of(&self, conversation: &ConversationId) -> Gear {
        self.conversations.get(conversation).map_or(Gear::Direct, |state| state.gear)
    }

    /// The rule of a conversation that is watched.
    #[must_use]
    pub fn rule_of(&self, conversation: &ConversationId) -> Option<&StormRule> {
        self.conversations.get(conversation).map(|state| &*state.rule)
    }

    /// A turn has committed so many messages of a conversation, from `first` to `last`. The shift, if there is one, counts
    /// from `first` on.
    pub fn committed(
        &mut self,
        now: Millis,
        conversation: ConversationId,
        epoch: Epoch,
        first: Seq,
        last: Seq,
    ) -> Option<Shift> {
        if matches!(conversation, ConversationId::Private { .. }) {
            return None;
        }
        if !self.conversations.contains_key(&conversation) {
            if self.conversations.len() >= CONVERSATIONS_MAX {
                self.forget_quiet(now);
            }
            if self.conversations.len() >= CONVERSATIONS_MAX {
                return None;
            }
            let rule = Arc::clone(self.rules.of(&conversation));
            self.conversations.insert(conversation, State::new(rule));
        }
        let state = self.conversations.get_mut(&conversation).expect("it is there now");
        if epoch != state.last.epoch {
            (state.to_notice, state.noticed) = (Seq(0), Seq(0));
        }
        state.rate.add(now, u32::try_from(last.0 + 1 - first.0).unwrap_or(u32::MAX));
        state.last = Place { epoch, seq: last };
        let (was, per_s) = state.shift(now)?;
        self.busy.insert(conversation);
        Some(Shift { conversation, was, is: state.gear, from: Place { epoch, seq: first }, per_s })
    }

    /// Messages up to here went into the lobby cache, instead of being pushed. The notice that is owed now.
    pub fn cached(&mut self, conversation: &ConversationId, last: Seq) -> Option<Notice> {
        let state = self.conversations.get_mut(conversation)?;
        state.to_notice = state.to_notice.max(last);
        self.busy.insert(*conversation);
        state.owes_notice().then(|| state.owed_notice(*conversation))
    }

    /// Time has passed: gears that go back because it has become quiet. To be called a few times a second while
    /// [`Gearbox::is_busy`].
    pub fn tick(&mut self, now: Millis) -> Vec<Shift> {
        let mut shifts = Vec::new();
        let conversations = &mut self.conversations;
        self.busy.retain(|conversation| {
            let Some(state) = conversations.get_mut(conversation) else { return false };
            let from = Place { epoch: state.last.epoch, seq: state.last.seq.next() };
            if let Some((was, per_s)) = state.shift(now) {
                shifts.push(Shift { conversation: *conversation, was, is: state.gear, from, per_s });
            }
            state.gear != Gear::Direct || state.owes_notice()
        });
        shifts
    }

    /// Whether any conversation is in another gear than direct, or owes a notice.
    #[must_use]
    pub fn is_busy(&self) -> bool {
        !self.busy.is_empty()
    }

    /// The notices that are due; they count as given.
    pub fn due_notices(&mut self, now: Millis) -> Vec<Notice> {
        let mut notices = Vec::new();
        for conversation in &self.busy {
            let state = self.conversations.get_mut(conversation);
            let due = state.filter(|state| state.owes_notice() && state.notice_due_in_ms(now) == 0);
            notices.extend(due.map(|state| state.give_notice(now, *conversation)));
        }
        notices
    }

    /// One conversation's owed notice; it counts as given.
    pub fn owed_notice(&mut self, now: Millis, conversation: &ConversationId) -> Option<Notice> {
        let state = self.conversations.get_mut(conversation).filter(|state| state.owes_notice())?;
        Some(state.give_notice(now, *conversation))
    }

    /// Milliseconds until the next notice is due; nothing if none is owed.
    #[must_use]
    pub fn next_notice_in_ms(&self, now: Millis) -> Option<u64> {
        let busy = self.busy.iter().filter_map(|conversation| self.conversations.get(conversation));
        busy.filter(|state| state.owes_notice()).map(|state| state.notice_due_in_ms(now)).min()
    }

    /// The partition may be another's now: all is direct again, as far as is known here.
    pub fn clear(&mut self) {
        self.conversations.clear();
        self.busy.clear();
    }

    fn forget_quiet(&mut self, now: Millis) {
        self.conversations.retain(|_, state| {
            let _ = state.rate.per_1000_s(now);
            state.gear != Gear::Direct || state.owes_notice() || !state.rate.is_zero()
        });
    }
}

impl State {
    fn new(rule: Arc<StormRule>) -> Self {
        let rate = Rate::new(rule.window);
        let last = Place { epoch: Epoch(0), seq: Seq(0) };
        let (to_notice, noticed, noticed_at) = Default::default();
        Self { rule, rate, gear: Gear::Direct, calm_since: None, last, to_notice, noticed, noticed_at }
    }

    /// Looks at the rate. The former gear and the rate per second, if the gear changed.
    fn shift(&mut self, now: Millis) -> Option<(Gear, u64)> {
        let per_1000_s = self.rate.per_1000_s(now);
        let fits = |gear: Gear, percent: u32| {
            self.rule.gears.allow(gear)
                && per_1000_s * 100 >= u64::from(self.rule.threshold_per_s(gear)) * 1000 * u64::from(percent)
        };
        let highest = |percent: u32| {
            let gears = [Gear::Signal, Gear::Merged, Gear::Direct];
            gears.into_iter().find(|gear| fits(*gear, percent)).unwrap_or(Gear::Direct)
        };
        let (up, down) = (highest(100), highest(self.rule.calm_percent));
        let was = self.gear;
        if up as i32 > was as i32 {
            self.gear = up;
            self.calm_since = None;
        } else if (down as i32) < was as i32 {
            let since = *self.calm_since.get_or_insert(now);
            if now.0.saturating_sub(since.0) >= millis(self.rule.calm) {
                self.gear = down;
                self.calm_since = None;
            }
        } else {
            self.calm_since = None;
        }
        (self.gear != was).then_some((was, per_1000_s / 1000))
    }

    fn owes_notice(&self) -> bool {
        self.to_notice > self.noticed
    }

    fn notice_due_in_ms(&self, now: Millis) -> u64 {
        (self.noticed_at.0 + millis(self.rule.notice)).saturating_sub(now.0)
    }

    fn owed_notice(&self, conversation: ConversationId) -> Notice {
        let latest = Place { epoch: self.last.epoch, seq: self.to_notice };
        Notice { conversation, latest, spread_ms: u32::try_from(millis(self.rule.spread)).unwrap_or(u32::MAX) }
    }

    fn give_notice(&mut self, now: Millis, conversation: ConversationId) -> Notice {
        (self.noticed, self.noticed_at) = (self.to_notice, now);
        self.owed_notice(conversation)
    }
}

fn millis(duration: std::time::Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests;
