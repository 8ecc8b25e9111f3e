//! What the domain needs from outside, as traits. Every call takes and gives a batch.
//!
//! Each port has an in-process twin in [`crate::twins`] and a real service behind an adapter in the gateway; both run the
//! suite in [`crate::contract`]. Calls answer within a bound of their own (adapters set command timeouts), and an error
//! says whether repeating the same call can help.

mod allowances;
mod archive;
mod hot_store;
mod passwords;
mod queues;

pub use allowances::{AllowanceKey, Holder, Spend};
pub use archive::{Archive, End, Joined, Page, PersistBatch, Room, Standing, User, Watermark, name_key};
pub use hot_store::{
    Beat, CacheRun, CacheSlice, Filing, Hold, HotStore, Presence, PresenceChange, PresenceOutcome, Seeding,
    SequenceGrant, SequenceRun, Summary, TokenState, UnreadCount,
};
pub use passwords::PasswordHasher;
pub use queues::{
    DeadLetter, DeliveryTag, IngestBatch, IngestConsumer, IngestQueue, PushConsumer, PushQueue, PushTarget,
};

/// Why a port did not do what it was asked.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PortError {
    /// The service is away, hung or overloaded; nothing is known to have happened. The same call may succeed later.
    #[error("{service} is unavailable: {detail}")]
    Unavailable {
        /// `rabbitmq`, `redis`, `mysql`, `sqlite`, ...
        service: &'static str,
        /// For the log; never shown to clients, never holds a secret.
        detail: String,
    },
    /// The service answered and will answer the same again: a broken schema, a wrong type.
    #[error("{service} refused: {detail}")]
    Refused {
        /// As above.
        service: &'static str,
        /// As above.
        detail: String,
    },
    /// The service works, and takes neither now nor later a value of this call: too long, out of range, against a rule of
    /// the database. Other calls it takes.
    #[error("{service} takes no such value: {detail}")]
    Unfit {
        /// As above.
        service: &'static str,
        /// As above.
        detail: String,
    },
    /// What was to be written contradicts what somebody else has written meanwhile: nothing was done, and the same call
    /// will not succeed. The caller is not the only writer it took itself for.
    #[error("{service} has it otherwise: {detail}")]
    Conflict {
        /// As above.
        service: &'static str,
        /// As above.
        detail: String,
    },
    /// The other side of an in-process queue is gone: the process is ending.
    #[error("closed")]
    Closed,
}

/// The result of a port call.
pub type PortResult<T> = Result<T, PortError>;

/// One set of backends, chosen in the wiring: everything else is generic over it once.
pub trait Backend: Send + Sync + 'static {
    /// MQ1.
    type Ingest: IngestQueue;
    /// MQ2.
    type Push: PushQueue;
    /// Redis or its twin.
    type Hot: HotStore;
    /// MySQL, SQLite or the in-memory archive.
    type Archive: Archive;

    /// MQ1.
    fn ingest(&self) -> &Self::Ingest;
    /// MQ2.
    fn push(&self) -> &Self::Push;
    /// The hot store.
    fn hot(&self) -> &Self::Hot;
    /// The archive.
    fn archive(&self) -> &Self::Archive;
}
