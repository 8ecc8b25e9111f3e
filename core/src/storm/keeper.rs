//! The tail keeper: what this gateway has in hand for those who pull.
//!
//! In come notices and other news from the push engine, and pulls; out go tails, to the shards of those who watch and to
//! whoever pulls otherwise, and one notice per spread to the watchers. In signal gear the messages come from the lobby cache,
//! else from the archive. However many clients ask, each change is fetched once.
//!
//! Always: what a client is told to be there can be pulled from this gateway's memory; a conversation that nobody here
//! watches or pulls costs nothing; a store that is away is not asked again for every pull: what is in memory is answered, or
//! an error that says to try again.

use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::BytesMut;
use futures_util::future::{join_all, select};
use prost::Message as _;
use rustc_hash::FxHashMap;
use tidegate_proto::Kind;
use tidegate_proto::v1::{self, Gear};
use tokio::sync::Notify;

use super::rules::{StormRule, StormRules};
use super::tail::{Life, LiveTail, Tail, ToJson};
use crate::clock::Clock;
use crate::delivery::{Encoded, Mailboxes, News, Recipients, ShardInput};
use crate::ids::{ConversationId, Millis, Place, Seq};
use crate::limits::HISTORY_PAGE_MAX;
use crate::meter;
use crate::ports::{Archive as _, Backend, HotStore as _, Page, PortError, PortResult};
use crate::push::routes::Routes;

/// Conversations with a tail.
const SLOTS_MAX: usize = 4096;

/// Those that are only pulled must leave room for those that are watched; more are answered, but not remembered.
const PULLED_SLOTS_MAX: usize = SLOTS_MAX / 2;

/// How long a tail nobody asks for is kept.
const IDLE_MS: u64 = 60_000;

/// Pause after a store failed to answer.
const FAILED_PAUSE_MS: u64 = 500;

/// Parts of a notice interval after which the cache is looked at again: a message waits for its notice that much less.
const LOOKS_PER_NOTICE: u64 = 4;

/// See the module.
pub struct TailKeeper<B, M, C> {
    backend: Arc<B>,
    mailboxes: M,
    clock: C,
    routes: Arc<Routes>,
    rules: Arc<StormRules>,
    to_json: ToJson,
    slots: Mutex<FxHashMap<ConversationId, Arc<Slot>>>,
    woken: Notify,
}

struct Slot {
    conversation: ConversationId,
    rule: Arc<StormRule>,
    state: Mutex<State>,
    /// Held by whoever fetches; the others wait for what comes of it.
    fetching: tokio::sync::Mutex<()>,
}

#[derive(Default)]
struct State {
    tail: Option<Arc<Tail>>,
    /// While the conversation is in signal gear: the life of what shards are given.
    storm: Option<Life>,
    /// The newest message this gateway has heard of.
    heard: Option<Place>,
    /// Something may have been missed: what is known has to be fetched anew.
    is_doubtful: bool,
    heard_at: Millis,
    fetched_at: Millis,
    failed_at: Millis,
    asked_at: Millis,
    /// The newest message that the watchers are to be told of.
    noticed: Option<Place>,
    /// What they were told, and when.
    told: Option<Place>,
    told_at: Millis,
    spread_ms: u32,
}

impl<B: Backend, M: Mailboxes, C: Clock> TailKeeper<B, M, C> {
    /// A keeper without tails. It works while [`TailKeeper::run`] does.
    pub fn new(
        backend: Arc<B>,
        mailboxes: M,
        clock: C,
        routes: Arc<Routes>,
        rules: Arc<StormRules>,
        to_json: ToJson,
    ) -> Self {
        let (slots, woken) = Default::default();
        Self { backend, mailboxes, clock, routes, rules, to_json, slots, woken }
    }

    // ---- what the push engine hears

    /// The lobby cache holds messages up to `latest`.
    pub fn noticed(&self, conversation: ConversationId, latest: Place, spread_ms: u32) {
        let is_watched = self.routes.watchers(&conversation).count > 0;
        let Some(slot) = self.slot(conversation, if is_watched { SLOTS_MAX } else { 0 }) else { return };
        let mut state = slot.lock();
        state.storm.get_or_insert_default();
        state.spread_ms = spread_ms;
        state.noticed = state.noticed.max(Some(latest));
        state.hear(latest, self.clock.now());
        self.woken.notify_one();
    }

    /// The conversation travels in another gear from `from` on.
    pub fn shifted(&self, conversation: ConversationId, gear: Gear, from: Place) {
        let Some(slot) = self.slot(conversation, 0) else { return };
        let mut state = slot.lock();
        state.is_in(gear);
        if gear != Gear::Signal {
            // Those who are told of this pull once more.
            state.told = state.told.max(state.noticed);
        }
        state.hear(Place { seq: Seq(from.seq.0.saturating_sub(1)), ..from }, self.clock.now());
    }

    /// A message was pushed, in a gear.
    pub fn pushed(&self, conversation: ConversationId, place: Place, gear: Gear) {
        if let Some(slot) = self.slot(conversation, 0) {
            let mut state = slot.lock();
            state.is_in(gear);
            state.hear(place, self.clock.now());
        }
    }

    /// Pushes and notices may have been lost.
    pub fn doubt(&self) {
        self.slots().values().for_each(|slot| slot.lock().is_doubtful = true);
        self.woken.notify_one();
    }

    // ---- what pulls ask

    /// The tail, if nothing newer is known: no store is asked, and nobody is waited for.
    pub fn known(&self, conversation: ConversationId) -> Option<Arc<Tail>> {
        let slot = self.slot(conversation, 0)?;
        let now = self.clock.now();
        let mut state = slot.lock();
        let tail = state.fresh_tail(&slot.rule, now)?;
        state.asked_at = now;
        Some(tail)
    }

    /// The tail with everything this gateway has heard of.
    ///
    /// # Errors
    /// The store's, if there is nothing in memory either.
    pub async fn newest(&self, conversation: ConversationId) -> PortResult<Arc<Tail>> {
        let slot = self.slot(conversation, PULLED_SLOTS_MAX).unwrap_or_else(|| Arc::new(self.new_slot(conversation)));
        slot.lock().asked_at = self.clock.now();
        self.fetch(&slot).await
    }

    /// Brings a slot's tail up to date, unless it is, or somebody else just did.
    async fn fetch(&self, slot: &Slot) -> PortResult<Arc<Tail>> {
        if let Some(tail) = slot.lock().fresh_tail(&slot.rule, self.clock.now()) {
            return Ok(tail);
        }
        let _fetching = slot.fetching.lock().await;
        let now = self.clock.now();
        let (known, is_signal) = {
            let mut state = slot.lock();
            if let Some(tail) = state.fresh_tail(&slot.rule, now) {
                return Ok(tail);
            }
            if now.0.saturating_sub(state.failed_at.0) < FAILED_PAUSE_MS {
                return state.tail.clone().ok_or_else(|| away("it did not answer a moment ago"));
            }
            state.is_doubtful = false;
            (state.tail.clone(), state.storm.is_some())
        };
        metrics::counter!(meter::PULL_FETCHES).increment(1);
        let fetched = self.ask_stores(slot, known.as_deref(), is_signal).await;
        let mut state = slot.lock();
        match fetched {
            Ok(tail) => {
                let tail = Arc::new(tail);
                state.tail = Some(Arc::clone(&tail));
                state.fetched_at = now;
                Ok(tail)
            }
            Err(error) => {
                tracing::warn!(conversation = %slot.conversation, %error, "could not fetch what is to be pulled");
                state.failed_at = now;
                state.is_doubtful = true;
                state.tail.clone().ok_or(error)
            }
        }
    }

    async fn ask_stores(&self, slot: &Slot, known: Option<&Tail>, is_signal: bool) -> PortResult<Tail> {
        let Slot { conversation, rule, .. } = slot;
        if is_signal {
            let after = known.map(Tail::latest);
            let messages_max = rule.cache_messages_max as usize;
            let slice = self.backend.hot().cached(*conversation, after, messages_max, rule.pull_bytes_max()).await?;
            let heard = slot.lock().heard;
            let end = Seq((slice.first.0 + slice.messages.len() as u64).saturating_sub(1));
            let end = Place { epoch: slice.epoch, seq: end };
            if !slice.messages.is_empty() && heard.is_none_or(|heard| end >= heard) {
                let none = || Tail::new(*conversation, end, Arc::clone(rule), self.to_json);
                return Ok(known.map_or_else(
                    || none().with(slice.epoch, slice.first, &slice.messages),
                    |known| known.with(slice.epoch, slice.first, &slice.messages),
                ));
            }
            if let Some(known) = known.filter(|known| heard.is_none_or(|heard| known.latest() >= heard)) {
                return Ok(known.with(known.latest().epoch, known.latest().seq.next(), &[]));
            }
            // The cache was lost; the archive has everything.
        }
        let archive = self.backend.archive();
        let conversations = [*conversation];
        let history = archive.history(*conversation, Page::Newest, HISTORY_PAGE_MAX);
        let (stored, ends) = futures_util::future::try_join(history, archive.ends(&conversations)).await?;
        let epoch = ends.first().map_or(archive.epoch(), |end| end.epoch);
        let messages: Vec<_> = stored.iter().map(|message| message.to_wire(epoch).encode_to_vec().into()).collect();
        let last = stored.last().map_or(Seq(0), |message| message.seq);
        let tail = Tail::new(*conversation, Place { epoch, seq: last }, Arc::clone(rule), self.to_json);
        Ok(stored.first().map_or_else(|| tail.with(epoch, Seq(1), &[]), |first| tail.with(epoch, first.seq, &messages)))
    }

    // ---- what watchers get unasked

    /// Keeps the tails of what is watched up to date, and tells the watchers, for ever.
    pub async fn run(&self) {
        loop {
            let woken = self.woken.notified();
            let slots: Vec<Arc<Slot>> = self.slots().values().cloned().collect();
            let wakes = join_all(slots.iter().map(|slot| self.look_after(slot))).await;
            let Some(next) = wakes.into_iter().flatten().min() else {
                woken.await;
                continue;
            };
            let wait_ms = next.0.saturating_sub(self.clock.now().0).max(1);
            let sleep = self.clock.sleep(std::time::Duration::from_millis(wait_ms));
            let _ = select(pin!(woken), pin!(sleep)).await;
        }
    }

    /// Fetches and tells what is due. When to look again.
    async fn look_after(&self, slot: &Arc<Slot>) -> Option<Millis> {
        let conversation = slot.conversation;
        let watchers = self.routes.watchers(&conversation);
        let now = self.clock.now();
        let before = {
            let state = slot.lock();
            let used_at = state.asked_at.max(state.heard_at);
            let is_idle = now.0.saturating_sub(used_at.0) > IDLE_MS;
            if is_idle || (watchers.count == 0 && now.0.saturating_sub(state.asked_at.0) > IDLE_MS) {
                drop(state);
                self.slots().remove(&conversation);
                return None;
            }
            if watchers.count == 0 || (state.storm.is_none() && !state.owes_notice()) {
                return Some(Millis(now.0 + IDLE_MS));
            }
            state.tail.clone()
        };
        // What failed is tried again after its pause; those who watch keep what they have.
        let fetched = self.fetch(slot).await;
        let now = self.clock.now();
        let Ok(tail) = fetched else { return Some(Millis(now.0 + FAILED_PAUSE_MS)) };
        let is_new = before.is_none_or(|before| before.latest() != tail.latest());
        let mut notice = None;
        let mut next = Millis(now.0 + look_ms(&slot.rule));
        let storm = {
            let mut state = slot.lock();
            if state.is_behind(&tail) {
                // A store is away. Nobody is told of what cannot be pulled.
                next = Millis(now.0 + FAILED_PAUSE_MS);
            } else if now.0.saturating_sub(state.heard_at.0) > 2 * notice_ms(&slot.rule) {
                // The storm pauses, and the next notice wakes.
                next = Millis(now.0 + IDLE_MS);
            }
            // On a grid: a client that pulls at its own moment of every spread is told once before each of them.
            let spread_ms = u64::from(state.spread_ms).max(1);
            let tell_at = (state.told_at.0 / spread_ms + 1) * spread_ms;
            if !state.owes_notice() || state.is_behind(&tail) {
                // There is nothing to tell, or not yet.
            } else if tell_at <= now.0 {
                (state.told, state.told_at) = (Some(tail.latest()), now);
                notice = Some(notice_of(slot.conversation, &tail, state.spread_ms));
            } else {
                next = next.min(Millis(tell_at));
            }
            state.storm.clone()
        };
        if is_new || notice.is_some() {
            // In another gear than signal the messages since are pushed, and a shard's tail would stay what it is.
            let live = storm.map(|life| LiveTail { tail: Arc::clone(&tail), life });
            for shard in watchers.shards.iter() {
                let mut batch = Vec::new();
                batch.extend(live.clone().map(|tail| ShardInput::Tail { conversation, tail: Some(tail) }));
                batch.extend(notice.clone().map(|frame| ShardInput::Deliver {
                    recipients: Recipients::Conversation(conversation),
                    span: None,
                    news: News::UpTo(tail.latest()),
                    frame,
                }));
                self.mailboxes.post(shard, batch).await;
            }
        }
        Some(next)
    }

    /// The conversation's slot; one that is not there is made if there are fewer than `below`.
    fn slot(&self, conversation: ConversationId, below: usize) -> Option<Arc<Slot>> {
        let mut slots = self.slots();
        if let Some(slot) = slots.get(&conversation) {
            return Some(Arc::clone(slot));
        }
        if slots.len() >= below {
            return None;
        }
        let slot = Arc::new(self.new_slot(conversation));
        slots.insert(conversation, Arc::clone(&slot));
        Some(slot)
    }

    fn new_slot(&self, conversation: ConversationId) -> Slot {
        let rule = Arc::clone(self.rules.of(&conversation));
        let state = State { asked_at: self.clock.now(), ..State::default() };
        Slot { conversation, rule, state: Mutex::new(state), fetching: tokio::sync::Mutex::default() }
    }

    fn slots(&self) -> MutexGuard<'_, FxHashMap<ConversationId, Arc<Slot>>> {
        self.slots.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn notice_of(conversation: ConversationId, tail: &Tail, spread_ms: u32) -> Encoded {
    let Place { epoch, seq } = tail.latest();
    let notice = v1::NotifyNewMessages {
        conversation_id: conversation.to_string(),
        epoch: epoch.0,
        latest_seq: seq.0,
        spread_ms,
    };
    Encoded::push(&mut BytesMut::new(), Kind::NotifyNewMessages, &notice.encode_to_vec())
}

impl Slot {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn hear(&mut self, place: Place, now: Millis) {
        self.heard = Some(self.heard.map_or(place, |heard| heard.max(place)));
        self.heard_at = now;
    }

    /// A storm is over as soon as the gear is another.
    fn is_in(&mut self, gear: Gear) {
        if gear == Gear::Signal {
            self.storm.get_or_insert_default();
        } else if let Some(life) = self.storm.take() {
            life.end();
        }
    }

    /// The tail, if nothing is known that is not in it.
    fn fresh_tail(&self, rule: &StormRule, now: Millis) -> Option<Arc<Tail>> {
        let tail = self.tail.as_ref()?;
        // While the storm goes on there is more in the cache than the last notice said.
        let goes_on = self.storm.is_some() && now.0.saturating_sub(self.heard_at.0) <= 2 * notice_ms(rule);
        let is_due = goes_on && now.0.saturating_sub(self.fetched_at.0) >= look_ms(rule);
        (!self.is_behind(tail) && !is_due).then(|| Arc::clone(tail))
    }

    fn owes_notice(&self) -> bool {
        self.noticed > self.told
    }

    fn is_behind(&self, tail: &Tail) -> bool {
        self.is_doubtful || self.heard.is_some_and(|heard| heard > tail.latest())
    }
}

fn notice_ms(rule: &StormRule) -> u64 {
    u64::try_from(rule.notice.as_millis()).unwrap_or(u64::MAX / 4)
}

fn look_ms(rule: &StormRule) -> u64 {
    (notice_ms(rule) / LOOKS_PER_NOTICE).max(1)
}

fn away(detail: &str) -> PortError {
    PortError::Unavailable { service: "the lobby cache", detail: detail.to_owned() }
}

#[cfg(test)]
mod tests;
