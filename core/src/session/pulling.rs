//! What a session pulls in storms: how often it may, and whether it goes on without being told.
//!
//! In come its pulls with what each brought; out goes whether one comes too early, and whether a notice would tell the client
//! what it does anyway: one whose pull brought something pulls again within a spread (PROTOCOL.md, "Storms"). Always: a
//! client that does not is told again after two.

use std::time::Duration;

use crate::ids::{ConversationId, Millis};

/// Spreads that may be used at once: a first look, and a gear that changes.
const BURST: u64 = 2;

/// Storms that one client follows at once; twice the lobbies it may watch.
const STORMS_MAX: usize = 32;

/// Whether an answer holds messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Brought {
    /// It does.
    Something,
    /// It does not.
    Nothing,
}

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Pulling(Vec<One>);

#[derive(Debug)]
struct One {
    conversation: ConversationId,
    /// Up to when pulls are paid for.
    paid_to: Millis,
    spread_ms: u64,
    brought: Brought,
}

impl Pulling {
    /// A pull is about to be answered from memory; a client does so once per `spread` and conversation.
    ///
    /// # Errors
    /// The wait, if it comes too early.
    pub(super) fn charge(
        &mut self,
        now: Millis,
        conversation: ConversationId,
        spread: Duration,
        brought: Brought,
    ) -> Result<(), Duration> {
        let spread_ms = u64::try_from(spread.as_millis()).unwrap_or(u64::MAX / 8);
        self.0.retain(|one| one.paid_to.0 + one.spread_ms > now.0);
        let Some(one) = self.0.iter_mut().find(|one| one.conversation == conversation) else {
            if self.0.len() >= STORMS_MAX {
                return Err(spread);
            }
            self.0.push(One { conversation, paid_to: Millis(now.0 + spread_ms), spread_ms, brought });
            return Ok(());
        };
        let ahead_ms = one.paid_to.0.saturating_sub(now.0);
        if ahead_ms > BURST * spread_ms {
            return Err(Duration::from_millis(ahead_ms - BURST * spread_ms));
        }
        *one = One { paid_to: Millis(now.0 + ahead_ms + spread_ms), spread_ms, brought, ..*one };
        Ok(())
    }

    /// Whether the client pulls the conversation again by itself.
    pub(super) fn goes_on(&self, now: Millis, conversation: &ConversationId) -> bool {
        let one = self.0.iter().find(|one| one.conversation == *conversation);
        one.is_some_and(|one| one.brought == Brought::Something && now.0 < one.paid_to.0 + one.spread_ms)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SPREAD: Duration = Duration::from_millis(1000);

    fn lobby() -> ConversationId {
        "lobby_main".parse().expect("a lobby")
    }

    #[test]
    fn one_pull_a_spread_is_enough_and_the_wait_is_what_is_left() {
        let mut pulling = Pulling::default();
        let mut pull = |ms| pulling.charge(Millis(ms), lobby(), SPREAD, Brought::Something);
        assert_eq!([10_000, 10_001, 10_002].map(&mut pull), [Ok(()); 3], "a first look, and a gear that changes");
        assert_eq!(pull(10_002), Err(Duration::from_millis(998)));
        assert_eq!((pull(11_000), pull(11_001)), (Ok(()), Err(Duration::from_millis(999))));
        assert_eq!((20_000..100_000).step_by(1000).map(pull).filter(Result::is_err).count(), 0);
    }

    #[test]
    fn who_got_something_goes_on_and_is_told_again_if_it_does_not() {
        let mut pulling = Pulling::default();
        assert!(!pulling.goes_on(Millis(10_000), &lobby()));
        assert_eq!(pulling.charge(Millis(10_000), lobby(), SPREAD, Brought::Something), Ok(()));
        assert!(pulling.goes_on(Millis(11_999), &lobby()) && !pulling.goes_on(Millis(12_000), &lobby()));
        assert!(!pulling.goes_on(Millis(10_500), &"lobby_eu".parse().expect("another")));
        assert_eq!(pulling.charge(Millis(11_000), lobby(), SPREAD, Brought::Nothing), Ok(()));
        assert!(!pulling.goes_on(Millis(11_001), &lobby()), "it waits for the next notice");
    }

    #[test]
    fn storms_beyond_the_bound_wait() {
        let mut pulling = Pulling::default();
        let mut pull = |n: u64, ms| {
            let room = ConversationId::Room(crate::ids::RoomId(n + 1));
            pulling.charge(Millis(ms), room, SPREAD, Brought::Something)
        };
        assert!((0..STORMS_MAX as u64).all(|n| pull(n, 10_000).is_ok()));
        assert_eq!((pull(99, 10_000), pull(99, 12_000)), (Err(SPREAD), Ok(())));
    }
}
