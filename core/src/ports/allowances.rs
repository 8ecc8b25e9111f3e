//! What gateways tell the hot store of allowances to send, and each other through it.

use crate::ids::{ConversationId, UserId};

#[cfg(doc)]
use super::HotStore;

/// Names an allowance: in one conversation, of one holder.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct AllowanceKey {
    /// Where.
    pub conversation: ConversationId,
    /// Whose.
    pub holder: Holder,
}

/// Whose an allowance is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Holder {
    /// That of all users together.
    Everybody,
    /// One user's.
    User(UserId),
    /// One user's in a room's slow mode.
    Slow(UserId),
}

/// What a gateway says of an allowance when it calls [`HotStore::spend`].
///
/// An allowance regains a microsecond in every microsecond. Its debt is how long it takes until it is whole again. All times
/// are relative to the call, so that no two clocks need to agree.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Spend {
    /// Which.
    pub key: AllowanceKey,
    /// What the gateway let pass and has not told yet. Zero: it only asks.
    pub cost_us: u64,
    /// How long ago it let the first of it pass.
    pub age_us: u64,
    /// The debt as the gateway knows it, what it has not told included. The store's is no smaller after the call.
    pub debt_us: u64,
    /// The store's debt is no larger after the call.
    pub most_us: u64,
}
