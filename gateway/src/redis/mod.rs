//! The hot store in Redis.
//!
//! Batches of the [`HotStore`] port come in; each becomes one script (or a few, of a bounded size) and its reply.
//!
//! Reading order: [`config`](self) (where Redis is), `keys` (what it holds), `scripts` and their Lua files (what happens
//! inside it), `link` (getting there and back in time), then one file per concern.
//!
//! What must hold: every call ends within the command timeout; no key is spelled outside `keys`; a call that failed may be
//! repeated; no secret is logged.

mod allowances;
mod config;
mod keys;
mod link;
mod presence;
mod scripts;
mod sequences;
mod settling;
mod tokens;
mod unread;

use std::sync::atomic::AtomicU64;
use std::time::Duration;

use bytes::Bytes;
use tidegate_core::ids::{ConversationId, GatewayId, LobbyName, Place, SessionId, UserId};
use tidegate_core::ports::{
    Beat, CacheRun, CacheSlice, End, Filing, HotStore, PortError, PortResult, Presence, PresenceChange,
    PresenceOutcome, Seeding, SequenceGrant, SequenceRun, Spend, Summary, TokenState, UnreadCount,
};

pub use self::config::RedisConfig;
use self::keys::Keys;
use self::link::Link;
use self::scripts::Scripts;
use crate::writing::Writing;

/// Our name in a [`PortError`].
const SERVICE: &str = "redis";

/// Users or tokens in one call. 512 presence changes took 4 ms there and back (2 cores, everything on one machine); others
/// wait meanwhile.
const CALL_KEYS_MAX: usize = 512;

/// Redis, as one gateway uses it.
pub struct RedisHotStore {
    gateway: GatewayId,
    /// Tells this process from former ones of the same gateway: 16 random hex digits.
    process: String,
    presence_ttl: Duration,
    gateway_ttl: Duration,
    keys: Keys,
    scripts: Scripts,
    link: Link,
    /// The link's outages when it beat last.
    outages_beaten: AtomicU64,
    writing: Writing,
}

impl RedisHotStore {
    /// Connects. Later losses of the connection are mended in the background.
    ///
    /// # Errors
    /// [`PortError::Refused`] for a URL that cannot be meant; [`PortError::Unavailable`], naming host and port, if Redis
    /// does not answer within twice the command timeout.
    pub async fn connect(config: RedisConfig, gateway: GatewayId) -> PortResult<Self> {
        let (presence_ttl, gateway_ttl, keys) = (config.presence_ttl, config.gateway_ttl, Keys::new(&config));
        let process = format!("{:016x}", getrandom::u64().map_err(|_| no_randomness())?);
        let link = Link::connect(config).await?;
        Ok(Self {
            gateway,
            process,
            presence_ttl,
            gateway_ttl,
            keys,
            scripts: Scripts::new(),
            link,
            outages_beaten: AtomicU64::new(0),
            writing: Writing::default(),
        })
    }
}

impl HotStore for RedisHotStore {
    async fn sequence(&self, runs: &[SequenceRun]) -> PortResult<Vec<SequenceGrant>> {
        self.writing.learn("sequence", self.give(runs).await)
    }

    async fn settle(&self, ends: &[(ConversationId, End)], cached: &[CacheRun]) -> PortResult<()> {
        self.writing.learn("settle", self.keep(ends, cached).await)
    }

    async fn cached(
        &self,
        conversation: ConversationId,
        after: Option<Place>,
        messages_max: usize,
        bytes_max: usize,
    ) -> PortResult<CacheSlice> {
        self.slice(conversation, after, messages_max, bytes_max).await
    }

    async fn presence(&self, users: &[UserId]) -> PortResult<Vec<Presence>> {
        self.places(users).await
    }

    async fn change_presence(&self, changes: &[PresenceChange]) -> PortResult<Vec<PresenceOutcome>> {
        self.change_places(changes).await
    }

    async fn resume(&self, user: UserId, device: &str, session: SessionId) -> PortResult<Option<Vec<LobbyName>>> {
        self.kept_session(user, device, session).await
    }

    async fn beat(&self) -> PortResult<Beat> {
        self.say_that_it_lives().await
    }

    async fn file(&self, filings: &[Filing]) -> PortResult<()> {
        self.writing.learn("file", self.file_all(filings).await)
    }

    async fn take_summary(&self, user: UserId) -> PortResult<Summary> {
        self.take(user).await
    }

    async fn peek_inbox(&self, user: UserId, max: usize) -> PortResult<Vec<Bytes>> {
        self.peek(user, max).await
    }

    async fn seed_unread(&self, user: UserId, seeding: Seeding, counts: &[UnreadCount]) -> PortResult<()> {
        self.seed(user, seeding, counts).await
    }

    async fn set_unread(&self, counts: &[(UserId, UnreadCount)]) -> PortResult<()> {
        self.set(counts).await
    }

    async fn forget_unread(&self, users: &[UserId]) -> PortResult<()> {
        self.forget(users).await
    }

    async fn spend(&self, spends: &[Spend]) -> PortResult<Vec<u64>> {
        self.spend_all(spends).await
    }

    async fn put_token(&self, token: &str, user: UserId, ttl: Duration) -> PortResult<()> {
        self.put(token, user, ttl).await
    }

    async fn token_states(&self, tokens: &[&str]) -> PortResult<Vec<TokenState>> {
        self.states(tokens).await
    }

    async fn delete_token(&self, token: &str) -> PortResult<bool> {
        self.delete(token).await
    }

    async fn ping(&self) -> PortResult<()> {
        self.link.ping().await?;
        self.writing.is_well()
    }
}

/// A script answered in a form it does not promise: it and its caller are of different releases, or the key is not ours.
fn unexpected(script: &str) -> PortError {
    PortError::Refused { service: SERVICE, detail: format!("unexpected reply from the script {script}") }
}

fn no_randomness() -> PortError {
    PortError::Unavailable { service: SERVICE, detail: "the system's random source is away".to_owned() }
}

/// For TTLs; at least one, because zero is no time to live.
fn millis(ttl: Duration) -> i64 {
    i64::try_from(ttl.as_millis()).unwrap_or(i64::MAX).max(1)
}
