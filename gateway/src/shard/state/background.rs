//! Connections in the background: pushes pass them by, and with the tick they are told how many.
//!
//! Always: nobody is told more than once in a tick, and a tick tells a bounded number of them; who waits for its turn, or whose
//! socket takes nothing, gets one frame for all that came meanwhile.

use tidegate_core::delivery::{Ground, News};
use tidegate_core::ids::{ConversationId, Place, Span};
use tidegate_core::limits::COUNTS_TOLD_AT_ONCE;

use super::State;
use crate::shard::connection::Phase;
use crate::shard::index::Slot;

impl State {
    /// The session is in the background from here on, or in the foreground: then its client syncs, and has no use for counts.
    pub(super) fn change_ground(&mut self, slot: Slot, ground: Ground) {
        let connection = &mut self.connections[slot as usize];
        connection.ground = ground;
        if let Some(counts) = &mut connection.counts {
            counts.clear();
        }
    }

    /// Whether a push passes the connection by because it is in the background; if it brings messages, or tells of some,
    /// they are counted.
    pub(super) fn passes_by(
        &mut self,
        slot: Slot,
        conversation: ConversationId,
        span: Option<Span>,
        news: &News,
    ) -> bool {
        let connection = &mut self.connections[slot as usize];
        if connection.ground == Ground::Foreground {
            return false;
        }
        let place = match (news, span) {
            (News::UpTo(place), _) => Some(*place),
            (News::One(_) | News::Many(_), Some(Span { epoch, last, .. })) => Some(Place { epoch, seq: last }),
            _ => None,
        };
        let user = connection.session.user().filter(|_| connection.phase == Phase::Open);
        if let (Some(place), Some(user)) = (place, user) {
            if connection.counts.is_none() {
                self.uncounted.push_back((slot, connection.generation));
            }
            let counts = connection.counts.get_or_insert_default();
            counts.add(conversation, place, news.from_others_than(user));
        }
        true
    }

    /// A second has passed.
    pub(super) fn tell_counts(&mut self) {
        let (connections, frame_bytes_max) = (self.connections.len(), self.config.frame_bytes_max);
        let mut told = 0;
        for _ in 0..self.uncounted.len() {
            let Some((slot, generation)) = self.uncounted.pop_front() else { return };
            // What is over does not count as told, so that no more wait than there are connections.
            let Some(connection) = self.get(slot, generation) else { continue };
            let waits = connection.session.holds_pushes() || connection.is_draining_outbox;
            if waits || told == COUNTS_TOLD_AT_ONCE {
                self.uncounted.push_back((slot, generation));
                continue;
            }
            let Some(counts) = connection.counts.take() else { continue };
            let frames = counts.frames(connections, frame_bytes_max);
            if !frames.is_empty() {
                let bytes = connection.wrap(frames);
                self.enqueue(slot, bytes);
                told += 1;
            }
        }
    }
}
