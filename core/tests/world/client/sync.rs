//! The sync rule: PROTOCOL.md, "Staying in sync".

use tidegate_core::ids::{ConversationId, MessageId};
use tidegate_proto::{Kind, v1};

use super::{Client, Wish, send};
use crate::wire::Wire;

/// One conversation by the sync rule.
#[derive(Default)]
pub(super) struct Track {
    pub epoch: u32,
    pub last: u64,
    /// History is wanted or under way.
    pub is_behind: bool,
    pub asked: Option<u16>,
    pub retry_at_ms: u64,
    /// Compared with history since the wish to sync.
    pub is_checked: bool,
}

impl Client {
    pub(super) fn welcome(&mut self, reply: v1::LoginReply) {
        self.sim.trace(|| format!("{} is logged in at {}", self.name, reply.gateway_id));
        let is_last = *self.wish.borrow() == Wish::Sync;
        for position in &reply.positions {
            let conversation: ConversationId = position.conversation_id.parse().unwrap();
            let track = self.tracks.entry(conversation).or_default();
            if position.epoch == track.epoch && position.last_seq < track.last {
                let (name, last) = (&self.name, track.last);
                self.sim.violation(format!(
                    "guarantee 4: {name} has shown {conversation} up to {last} and is told that it ends at {}",
                    position.last_seq
                ));
            }
            track.is_behind |= position.epoch > track.epoch || position.last_seq > track.last;
        }
        for conversation in &self.conversations {
            let track = self.tracks.entry(*conversation).or_default();
            // Lobbies have no positions: only History tells whether something was missed.
            track.is_behind |= is_last || matches!(conversation, ConversationId::Lobby(_));
        }
        reply.recent.iter().for_each(|message| self.show(message));
        self.screen.borrow_mut().positions = reply.positions;
    }

    /// PROTOCOL.md, "Correlation and order": pushes ascend, as long as nothing is redelivered or sent again.
    pub(super) fn rises(&mut self, message: &v1::Message) {
        if self.ledger.is_repeated(MessageId::from_wire(&message.message_id).unwrap()) {
            return;
        }
        let before = self.pushed.insert(message.conversation_id.clone(), message.seq);
        if before.is_some_and(|before| before >= message.seq) && self.backends.shared.faults.is_calm() {
            let (name, seq) = (&self.name, message.seq);
            self.sim
                .violation(format!("guarantee 2: {name} is pushed {} {seq} after {before:?}", message.conversation_id));
        }
    }

    pub(super) fn show(&mut self, message: &v1::Message) {
        self.ledger.is_seen(&self.name, message);
        let conversation: ConversationId = message.conversation_id.parse().unwrap();
        let track = self.tracks.entry(conversation).or_default();
        let mut screen = self.screen.borrow_mut();
        let shown = screen.shown.entry(conversation).or_default();
        if message.epoch > track.epoch {
            *track = Track { epoch: message.epoch, asked: track.asked, is_behind: track.is_behind, ..Track::default() };
            shown.clear();
        }
        if message.epoch < track.epoch || message.seq <= track.last {
            return;
        }
        if message.seq > track.last + 1 {
            self.sim.count("gap seen");
            track.is_behind = true;
            return;
        }
        track.last = message.seq;
        shown.push(MessageId::from_wire(&message.message_id).unwrap());
    }

    pub(super) fn fetch_due(&mut self, wire: &Wire, correlation: &mut u16) {
        let now_ms = self.now_ms();
        for (conversation, track) in &mut self.tracks {
            if track.is_behind && track.asked.is_none() && track.retry_at_ms <= now_ms {
                *correlation = correlation.wrapping_add(1).max(2);
                track.asked = Some(*correlation);
                let page_size = 1 + self.sim.below(20) as u32;
                let history = v1::History {
                    conversation_id: conversation.to_string(),
                    after_seq: Some(track.last),
                    page_size,
                    before_seq: 0,
                };
                send(wire, Kind::History, *correlation, &history);
            }
        }
    }

    pub(super) fn history(&mut self, correlation: u16, reply: v1::HistoryReply) {
        let conversation: ConversationId = reply.conversation_id.parse().unwrap();
        let track = self.tracks.get_mut(&conversation).expect("asked for");
        if track.asked != Some(correlation) {
            return;
        }
        track.asked = None;
        track.is_behind = false;
        if reply.epoch < track.epoch {
            return self.sim.violation(format!("{} is offered an old epoch of {conversation}", self.name));
        }
        reply.messages.iter().for_each(|message| self.show(message));
        let began_with_sync = *self.wish.borrow() == Wish::Sync;
        let track = self.tracks.get_mut(&conversation).expect("as above");
        track.is_behind |= reply.more;
        track.is_checked |= began_with_sync && !track.is_behind;
    }
}
