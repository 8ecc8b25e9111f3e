//! The in-process hot store.
//!
//! Batches of the [`HotStore`] port come in; counters, caches, presence, inboxes, counts and tokens are kept in this process's
//! memory and are gone with it, as after the loss of a Redis.
//!
//! What must hold: one lock, taken once per call and never across an await; every map is bounded, and what it forgets
//! (the least recently used) is what the archive knows too, except tokens, whose users log in again.

mod aging;
mod allowances;
mod cache;
mod presence;
mod sequences;
mod unread;

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use bytes::Bytes;
use rustc_hash::{FxHashMap, FxHashSet};

use self::aging::Aging;
use self::allowances::Allowances;
use self::cache::Caches;
use self::presence::Places;
use self::sequences::Sequences;
use self::unread::Unread;
use crate::clock::Clock;
use crate::ids::{ConversationId, GatewayId, LobbyName, Millis, Place, Seq, SessionId, UserId};
use crate::limits::{INBOX_MESSAGES_MAX, INBOX_TTL};
use crate::ports::{
    Beat, CacheRun, CacheSlice, End, Filing, HotStore, PortResult, Presence, PresenceChange, PresenceOutcome, Seeding,
    SequenceGrant, SequenceRun, Spend, Summary, TokenState, UnreadCount,
};

/// Users whose counts or inbox are kept at least. An inbox may hold megabytes, so there are far fewer of them.
const COUNTS_GENERATION_MAX: usize = 100_000;
/// As above.
const INBOXES_GENERATION_MAX: usize = 2_000;
/// Logins that stay valid at least.
const TOKENS_GENERATION_MAX: usize = 200_000;

/// The in-process twin of Redis, as one gateway sees it.
#[derive(Clone)]
pub struct EmbeddedHotStore<C> {
    gateway: GatewayId,
    clock: C,
    state: Arc<Mutex<State>>,
    /// How many seedings have begun. Not part of the state: one that was lost must not be taken for a later one.
    seedings: Arc<AtomicU64>,
}

#[derive(Clone)]
struct State {
    sequences: Sequences,
    allowances: Allowances,
    caches: Caches,
    places: Places,
    /// Gateways that have beaten since everything was lost.
    known: FxHashSet<GatewayId>,
    unread: Aging<UserId, Unread>,
    inboxes: Aging<UserId, Inbox>,
    /// By the token's hash, so that the key is plain data and a dump of memory holds no token.
    tokens: Aging<[u8; 32], (UserId, Millis)>,
}

/// What an [`EmbeddedHotStore`] kept at some moment.
pub struct HotSnapshot(State);

impl Default for State {
    fn default() -> Self {
        Self {
            sequences: Sequences::default(),
            allowances: Allowances::default(),
            caches: Caches::default(),
            places: Places::default(),
            known: FxHashSet::default(),
            unread: Aging::new(COUNTS_GENERATION_MAX),
            inboxes: Aging::new(INBOXES_GENERATION_MAX),
            tokens: Aging::new(TOKENS_GENERATION_MAX),
        }
    }
}

/// Messages that wait for their user, and up to where each conversation was filed.
#[derive(Clone, Default)]
struct Inbox {
    messages: VecDeque<Bytes>,
    filed_to: FxHashMap<ConversationId, Seq>,
    until: Millis,
}

impl Inbox {
    fn file(&mut self, filing: &Filing, now: Millis) {
        if self.until <= now {
            *self = Self::default();
        }
        let filed_to = self.filed_to.entry(filing.conversation).or_default();
        for (seq, message) in filing.seqs.iter().zip(&filing.inbox) {
            if *seq > *filed_to {
                *filed_to = *seq;
                self.messages.push_back(message.clone());
            }
        }
        while self.messages.len() > INBOX_MESSAGES_MAX {
            self.messages.pop_front();
        }
        self.until = after(now, INBOX_TTL);
    }
}

impl<C: Clock> EmbeddedHotStore<C> {
    /// An empty store, for the gateway of that id.
    pub fn new(gateway: GatewayId, clock: C) -> Self {
        Self { gateway, clock, state: Arc::default(), seedings: Arc::default() }
    }

    /// The same store as another gateway sees it.
    #[must_use]
    pub fn for_gateway(&self, gateway: GatewayId) -> Self {
        Self {
            gateway,
            clock: self.clock.clone(),
            state: Arc::clone(&self.state),
            seedings: Arc::clone(&self.seedings),
        }
    }

    /// Forgets everything, as a Redis without its disk does.
    pub fn lose_everything(&self) {
        *self.state() = State::default();
    }

    /// What is kept now, for [`Self::roll_back`].
    #[must_use]
    pub fn snapshot(&self) -> HotSnapshot {
        HotSnapshot(self.state().clone())
    }

    /// Forgets what came after a snapshot, as a Redis does that fails over to a replica that was behind.
    pub fn roll_back(&self, to: HotSnapshot) {
        *self.state() = to.0;
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("nothing panics while it holds the store")
    }
}

impl<C: Clock> HotStore for EmbeddedHotStore<C> {
    async fn sequence(&self, runs: &[SequenceRun]) -> PortResult<Vec<SequenceGrant>> {
        Ok(self.state().sequences.give(runs))
    }

    async fn settle(&self, ends: &[(ConversationId, End)], cached: &[CacheRun]) -> PortResult<()> {
        let now = self.clock.now();
        let mut state = self.state();
        state.sequences.settle(ends);
        state.caches.add(cached, now);
        Ok(())
    }

    async fn cached(
        &self,
        conversation: ConversationId,
        after: Option<Place>,
        messages_max: usize,
        bytes_max: usize,
    ) -> PortResult<CacheSlice> {
        let now = self.clock.now();
        Ok(self.state().caches.slice(conversation, after, messages_max, bytes_max, now))
    }

    async fn presence(&self, users: &[UserId]) -> PortResult<Vec<Presence>> {
        let now = self.clock.now();
        let state = self.state();
        Ok(users.iter().map(|user| state.places.of(*user, now)).collect())
    }

    async fn change_presence(&self, changes: &[PresenceChange]) -> PortResult<Vec<PresenceOutcome>> {
        let now = self.clock.now();
        let mut state = self.state();
        Ok(changes.iter().map(|change| state.places.change(&self.gateway, change, now)).collect())
    }

    async fn resume(&self, user: UserId, device: &str, session: SessionId) -> PortResult<Option<Vec<LobbyName>>> {
        let now = self.clock.now();
        Ok(self.state().places.resume(user, device, session, now))
    }

    /// All gateways of this store live in its own process, so none is ever found dead.
    async fn beat(&self) -> PortResult<Beat> {
        let is_new = self.state().known.insert(self.gateway.clone());
        Ok(if is_new { Beat::Unknown } else { Beat::Known })
    }

    async fn file(&self, filings: &[Filing]) -> PortResult<()> {
        let now = self.clock.now();
        let mut state = self.state();
        for filing in filings {
            if !filing.inbox.is_empty() {
                state.inboxes.get_or_default(filing.user).file(filing, now);
            }
            if let Some(unread) = state.unread.get_mut(&filing.user) {
                unread.file(filing.conversation, &filing.seqs);
            }
        }
        Ok(())
    }

    async fn take_summary(&self, user: UserId) -> PortResult<Summary> {
        let now = self.clock.now();
        let mut state = self.state();
        let unread = match state.unread.get_mut(&user).filter(|unread| !unread.is_over(now)) {
            Some(unread) => unread.counts(now),
            None => {
                let seeding = Seeding(self.seedings.fetch_add(1, Ordering::Relaxed));
                state.unread.insert(user, Unread::seeding(seeding, now));
                Err(seeding)
            }
        };
        let inbox = state.inboxes.get_mut(&user).filter(|inbox| inbox.until > now);
        let inbox = inbox.map(|inbox| std::mem::take(&mut inbox.messages).into()).unwrap_or_default();
        Ok(Summary { unread, inbox })
    }

    async fn peek_inbox(&self, user: UserId, max: usize) -> PortResult<Vec<Bytes>> {
        let now = self.clock.now();
        let mut state = self.state();
        let inbox = state.inboxes.get_mut(&user).filter(|inbox| inbox.until > now);
        let newest = |inbox: &mut Inbox| {
            let messages = &inbox.messages;
            messages.iter().skip(messages.len().saturating_sub(max)).cloned().collect()
        };
        Ok(inbox.map(newest).unwrap_or_default())
    }

    async fn seed_unread(&self, user: UserId, seeding: Seeding, counts: &[UnreadCount]) -> PortResult<()> {
        let now = self.clock.now();
        let mut state = self.state();
        let Some(unread) = state.unread.get_mut(&user) else { return Ok(()) };
        if unread.is_over(now) || unread.seed(seeding, counts).is_err() {
            state.unread.remove(&user);
        }
        Ok(())
    }

    async fn set_unread(&self, counts: &[(UserId, UnreadCount)]) -> PortResult<()> {
        let mut state = self.state();
        for (user, count) in counts {
            if state.unread.get_mut(user).is_some_and(|unread| unread.replace(count).is_err()) {
                state.unread.remove(user);
            }
        }
        Ok(())
    }

    async fn forget_unread(&self, users: &[UserId]) -> PortResult<()> {
        let mut state = self.state();
        for user in users {
            state.unread.remove(user);
            if let Some(inbox) = state.inboxes.get_mut(user) {
                inbox.filed_to.clear();
            }
        }
        Ok(())
    }

    async fn spend(&self, spends: &[Spend]) -> PortResult<Vec<u64>> {
        let now = self.clock.now();
        Ok(self.state().allowances.spend(spends, now))
    }

    async fn put_token(&self, token: &str, user: UserId, ttl: Duration) -> PortResult<()> {
        let until = after(self.clock.now(), ttl);
        self.state().tokens.insert(token_key(token), (user, until));
        Ok(())
    }

    async fn token_states(&self, tokens: &[&str]) -> PortResult<Vec<TokenState>> {
        let now = self.clock.now();
        let mut state = self.state();
        let state_of = |token: &&str| match state.tokens.get_mut(&token_key(token)) {
            Some((user, until)) if *until > now => TokenState::Valid(*user),
            _ => TokenState::Unknown,
        };
        Ok(tokens.iter().map(state_of).collect())
    }

    async fn delete_token(&self, token: &str) -> PortResult<bool> {
        let now = self.clock.now();
        Ok(self.state().tokens.remove(&token_key(token)).is_some_and(|(_, until)| until > now))
    }

    async fn ping(&self) -> PortResult<()> {
        Ok(())
    }
}

fn token_key(token: &str) -> [u8; 32] {
    *blake3::hash(token.as_bytes()).as_bytes()
}

fn after(now: Millis, ttl: Duration) -> Millis {
    Millis(now.0.saturating_add(u64::try_from(ttl.as_millis()).unwrap_or(u64::MAX)))
}

#[cfg(test)]
mod tests;
