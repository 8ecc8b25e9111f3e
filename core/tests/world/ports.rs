//! The fault layer: every port call of a gateway passes here, goes wrong as the seed says, and is shown to the ledger.

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use tidegate_core::clock::Clock as _;
use tidegate_core::event::StoredMessage;
use tidegate_core::ids::{
    ConversationId, Epoch, GatewayId, LobbyName, MessageId, Millis, Place, RoomId, Seq, SessionId, UserId,
};
use tidegate_core::ports::{
    Archive, Backend, Beat, CacheRun, CacheSlice, End, Filing, HotStore, Joined, Page, PersistBatch, PortError,
    PortResult, Presence, PresenceChange, PresenceOutcome, Room, Seeding, SequenceGrant, SequenceRun, Spend, Standing,
    Summary, TokenState, UnreadCount, User, Watermark,
};
use tidegate_core::twins::archive::MemoryArchive;
use tidegate_core::twins::hot_store::EmbeddedHotStore;
use tidegate_core::twins::queues::{EmbeddedIngestQueue, EmbeddedPushQueue};

use crate::broker::Broker;
use crate::faults::{Fate, Faults};
use crate::ledger::Ledger;
use crate::sim::Sim;

/// What all gateways' ports share.
#[derive(Clone)]
pub struct Shared {
    pub sim: Sim,
    pub faults: Arc<Faults>,
    /// Whether faults happen at present.
    pub is_faulty: Arc<AtomicBool>,
    pub ledger: Arc<Ledger>,
}

impl Shared {
    pub fn fate(&self) -> Fate {
        if self.is_faulty.load(Ordering::Relaxed) { self.faults.fate(&self.sim) } else { Fate::Smooth }
    }

    pub fn happens(&self, per_mille: u64) -> bool {
        per_mille > 0 && self.is_faulty.load(Ordering::Relaxed) && self.sim.chance(per_mille)
    }

    /// One port call.
    pub async fn call<T>(
        &self,
        what: &'static str,
        operation: impl Future<Output = PortResult<T>> + Send,
    ) -> PortResult<T> {
        let fate = self.fate();
        if fate != Fate::Smooth {
            self.sim.trace(|| format!("{what}: {fate:?}"));
        }
        self.sim.pause().await;
        self.sim.count(match fate {
            Fate::Smooth => "call",
            Fate::FailsBefore => "call failed before",
            Fate::FailsAfter => "call failed after",
            Fate::Slow(_) => "call was slow",
            Fate::Hangs { .. } => "call hung",
        });
        match fate {
            Fate::Smooth => {
                let answer = operation.await;
                self.sim.stroll().await;
                answer
            }
            Fate::FailsBefore => Err(unavailable(what)),
            Fate::FailsAfter => {
                operation.await?;
                self.sim.pause().await;
                Err(unavailable(what))
            }
            Fate::Slow(delay) => {
                self.sim.sleep(delay).await;
                let answer = operation.await;
                self.sim.sleep(delay).await;
                answer
            }
            Fate::Hangs { until, is_done } => {
                self.sim.sleep(until).await;
                if is_done {
                    operation.await?;
                    self.sim.pause().await;
                }
                Err(unavailable(what))
            }
        }
    }
}

pub fn unavailable(what: &'static str) -> PortError {
    PortError::Unavailable { service: what, detail: "a fault of the world".into() }
}

/// One gateway's way to the queues.
pub enum Queues {
    Embedded(EmbeddedIngestQueue, EmbeddedPushQueue),
    Services(Broker),
}

/// One gateway's backends. It is all four ports itself.
pub struct Ports {
    pub shared: Shared,
    pub gateway: GatewayId,
    pub queues: Queues,
    pub hot: EmbeddedHotStore<Sim>,
    pub archive: MemoryArchive,
}

impl Backend for Ports {
    type Ingest = Self;
    type Push = Self;
    type Hot = Self;
    type Archive = Self;

    fn ingest(&self) -> &Self {
        self
    }

    fn push(&self) -> &Self {
        self
    }

    fn hot(&self) -> &Self {
        self
    }

    fn archive(&self) -> &Self {
        self
    }
}

// ---------------------------------------------------------------------------------------------------------------------
// Hot store

impl HotStore for Ports {
    async fn sequence(&self, runs: &[SequenceRun]) -> PortResult<Vec<SequenceGrant>> {
        let grants = self.shared.call("sequence", self.hot.sequence(runs)).await?;
        self.shared.sim.trace(|| {
            let asked: Vec<_> = runs.iter().map(|run| (run.conversation, run.end.last.0, run.count)).collect();
            format!("{} sequences {asked:?}: {grants:?}", self.gateway)
        });
        Ok(grants)
    }

    async fn settle(&self, ends: &[(ConversationId, End)], cached: &[CacheRun]) -> PortResult<()> {
        self.shared.call("settle", self.hot.settle(ends, cached)).await?;
        self.shared.ledger.left_to_pull(cached);
        Ok(())
    }

    async fn cached(
        &self,
        conversation: ConversationId,
        after: Option<Place>,
        messages_max: usize,
        bytes_max: usize,
    ) -> PortResult<CacheSlice> {
        self.shared.call("cached", self.hot.cached(conversation, after, messages_max, bytes_max)).await
    }

    async fn presence(&self, users: &[UserId]) -> PortResult<Vec<Presence>> {
        self.shared.call("presence", self.hot.presence(users)).await
    }

    async fn change_presence(&self, changes: &[PresenceChange]) -> PortResult<Vec<PresenceOutcome>> {
        self.shared.call("change_presence", self.hot.change_presence(changes)).await
    }

    async fn resume(&self, user: UserId, device: &str, session: SessionId) -> PortResult<Option<Vec<LobbyName>>> {
        self.shared.call("resume", self.hot.resume(user, device, session)).await
    }

    async fn beat(&self) -> PortResult<Beat> {
        self.shared.call("beat", self.hot.beat()).await
    }

    async fn file(&self, filings: &[Filing]) -> PortResult<()> {
        self.shared.ledger.filing(filings);
        self.shared.call("file", self.hot.file(filings)).await?;
        self.shared.ledger.filed(filings);
        Ok(())
    }

    async fn take_summary(&self, user: UserId) -> PortResult<Summary> {
        self.shared.call("take_summary", self.hot.take_summary(user)).await
    }

    async fn peek_inbox(&self, user: UserId, max: usize) -> PortResult<Vec<Bytes>> {
        self.shared.call("peek_inbox", self.hot.peek_inbox(user, max)).await
    }

    async fn seed_unread(&self, user: UserId, seeding: Seeding, counts: &[UnreadCount]) -> PortResult<()> {
        self.shared.call("seed_unread", self.hot.seed_unread(user, seeding, counts)).await
    }

    async fn forget_unread(&self, users: &[UserId]) -> PortResult<()> {
        self.shared.call("forget_unread", self.hot.forget_unread(users)).await
    }

    async fn set_unread(&self, counts: &[(UserId, UnreadCount)]) -> PortResult<()> {
        self.shared.call("set_unread", self.hot.set_unread(counts)).await
    }

    async fn spend(&self, spends: &[Spend]) -> PortResult<Vec<u64>> {
        self.shared.call("spend", self.hot.spend(spends)).await
    }

    async fn put_token(&self, token: &str, user: UserId, ttl: Duration) -> PortResult<()> {
        self.shared.call("put_token", self.hot.put_token(token, user, ttl)).await
    }

    async fn token_states(&self, tokens: &[&str]) -> PortResult<Vec<TokenState>> {
        self.shared.call("token_states", self.hot.token_states(tokens)).await
    }

    async fn delete_token(&self, token: &str) -> PortResult<bool> {
        self.shared.call("delete_token", self.hot.delete_token(token)).await
    }

    async fn ping(&self) -> PortResult<()> {
        Ok(())
    }
}

// ---------------------------------------------------------------------------------------------------------------------
// Archive

impl Archive for Ports {
    fn epoch(&self) -> Epoch {
        self.archive.epoch()
    }

    async fn find(&self, messages: &[MessageId]) -> PortResult<Vec<StoredMessage>> {
        self.shared.call("find", self.archive.find(messages)).await
    }

    async fn ends(&self, conversations: &[ConversationId]) -> PortResult<Vec<End>> {
        self.shared.call("ends", self.archive.ends(conversations)).await
    }

    /// The archive of a world never goes back.
    async fn begin_epoch(&self, conversations: &[(ConversationId, Epoch)]) -> PortResult<Vec<Epoch>> {
        let text = format!("guarantee 4: {} begins a new epoch of {conversations:?} without need", self.gateway);
        self.shared.sim.violation(text);
        self.archive.begin_epoch(conversations).await
    }

    async fn persist(&self, batch: &PersistBatch) -> PortResult<()> {
        let commit = async {
            match self.archive.persist(batch).await {
                Ok(()) => self.shared.ledger.committed(batch),
                // Who repeats this for ever does not come to rest.
                Err(error) => {
                    self.shared.sim.trace(|| format!("{} cannot persist: {error}", self.gateway));
                    return Err(error);
                }
            }
            Ok(())
        };
        self.shared.call("persist", commit).await
    }

    async fn history(&self, conversation: ConversationId, page: Page, size: u32) -> PortResult<Vec<StoredMessage>> {
        self.shared.call("history", self.archive.history(conversation, page, size)).await
    }

    async fn missing(&self, after: &[(ConversationId, Seq)], max_each: u32) -> PortResult<Vec<Vec<StoredMessage>>> {
        self.shared.call("missing", self.archive.missing(after, max_each)).await
    }

    async fn watermarks(&self, conversations: &[ConversationId]) -> PortResult<Vec<Vec<Watermark>>> {
        self.shared.call("watermarks", self.archive.watermarks(conversations)).await
    }

    async fn standings(&self, user: UserId, max: usize) -> PortResult<Vec<Standing>> {
        self.shared.call("standings", self.archive.standings(user, max)).await
    }

    async fn standings_of(&self, pairs: &[(UserId, ConversationId)]) -> PortResult<Vec<Standing>> {
        self.shared.call("standings_of", self.archive.standings_of(pairs)).await
    }

    async fn create_user(&self, name: &str, password_hash: &str, at: Millis) -> PortResult<Option<UserId>> {
        self.archive.create_user(name, password_hash, at).await
    }

    async fn user_by_name(&self, name: &str) -> PortResult<Option<(User, String)>> {
        self.archive.user_by_name(name).await
    }

    async fn users(&self, ids: &[UserId]) -> PortResult<Vec<User>> {
        self.shared.call("users", self.archive.users(ids)).await
    }

    async fn create_room(&self, name: &str, owner: UserId, capacity: u32, at: Millis) -> PortResult<Room> {
        self.archive.create_room(name, owner, capacity, at).await
    }

    async fn room(&self, room: RoomId) -> PortResult<Option<Room>> {
        self.archive.room(room).await
    }

    async fn rooms_by_id(&self, ids: &[RoomId]) -> PortResult<Vec<Room>> {
        self.shared.call("rooms_by_id", self.archive.rooms_by_id(ids)).await
    }

    async fn set_slow_mode(&self, room: RoomId, slow_mode_s: u32) -> PortResult<bool> {
        self.archive.set_slow_mode(room, slow_mode_s).await
    }

    async fn rooms(&self, before: Option<RoomId>, size: u32) -> PortResult<Vec<Room>> {
        self.archive.rooms(before, size).await
    }

    async fn join_room(&self, room: RoomId, user: UserId, at: Millis) -> PortResult<Joined> {
        self.archive.join_room(room, user, at).await
    }

    async fn leave_room(&self, room: RoomId, user: UserId) -> PortResult<bool> {
        self.archive.leave_room(room, user).await
    }

    async fn members(&self, rooms: &[RoomId]) -> PortResult<Vec<Vec<UserId>>> {
        self.shared.call("members", self.archive.members(rooms)).await
    }

    async fn rooms_of(&self, user: UserId) -> PortResult<Vec<RoomId>> {
        self.shared.call("rooms_of", self.archive.rooms_of(user)).await
    }

    async fn ping(&self) -> PortResult<()> {
        Ok(())
    }
}
