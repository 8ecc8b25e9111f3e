//! The sync rule: PROTOCOL.md, "Staying in sync", one function for each of its paragraphs.

use std::collections::BTreeMap;

use tidegate_core::ids::{ConversationId, MessageId};
use tidegate_proto::v1::{self, SyncOutcome};
use tidegate_proto::{Frame, Kind};

use super::{Client, Wish, send};
use crate::wire::Wire;

/// Messages of one conversation that are kept aside until what is before them has come.
const ASIDE_MAX: usize = 8;

/// One conversation.
#[derive(Default)]
pub(super) struct Track {
    pub epoch: u32,
    pub last: u64,
    aside: BTreeMap<u64, v1::Message>,
    pub wants: Wants,
    /// A question is under way.
    pub asked: Option<u16>,
    pub retry_at_ms: u64,
    /// Compared with the archive since the wish to sync.
    pub is_checked: bool,
}

#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Wants {
    #[default]
    Nothing,
    Sync,
    /// The next page of History.
    Page,
}

impl Client {
    /// What Login and Sync say of a conversation.
    fn stand(&self, conversation: ConversationId) -> v1::SyncFrom {
        let track = &self.tracks[&conversation];
        v1::SyncFrom { conversation_id: conversation.to_string(), epoch: track.epoch, seq: track.last }
    }

    /// The positions of all conversations, for the login.
    pub(super) fn stands(&mut self) -> Vec<v1::SyncFrom> {
        for conversation in &self.conversations {
            self.tracks.entry(*conversation).or_default();
        }
        let stands: Vec<_> = self.tracks.keys().map(|conversation| self.stand(*conversation)).collect();
        self.tracks.values_mut().for_each(|track| track.wants = Wants::Sync);
        stands
    }

    pub(super) fn welcome(&mut self, asked: &[v1::SyncFrom], reply: v1::LoginReply) {
        self.sim.trace(|| format!("{} is logged in at {}", self.name, reply.gateway_id));
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
        }
        for from in asked {
            self.tracks.get_mut(&from.conversation_id.parse().unwrap()).expect("asked for").wants = Wants::Nothing;
        }
        self.synced(asked, &reply.synced);
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
            let conversation = &message.conversation_id;
            self.sim.violation(format!("guarantee 2: {name} is pushed {conversation} {seq} after {before:?}"));
        }
    }

    /// "Messages".
    pub(super) fn show(&mut self, message: v1::Message) {
        self.ledger.is_seen(&self.name, &message);
        let conversation: ConversationId = message.conversation_id.parse().unwrap();
        let track = self.tracks.entry(conversation).or_default();
        let mut screen = self.screen.borrow_mut();
        let shown = screen.shown.entry(conversation).or_default();
        if message.epoch > track.epoch {
            *track = Track { epoch: message.epoch, asked: track.asked, wants: track.wants, ..Track::default() };
            shown.clear();
        }
        if message.epoch < track.epoch || message.seq <= track.last {
            return;
        }
        if message.seq > track.last + 1 {
            self.sim.count("gap seen");
            track.wants = track.wants.max(Wants::Sync);
            if track.aside.len() < ASIDE_MAX {
                track.aside.insert(message.seq, message);
            }
            return;
        }
        let mut next = Some(message);
        while let Some(message) = next {
            track.last = message.seq;
            shown.push(MessageId::from_wire(&message.message_id).unwrap());
            next = track.aside.remove(&(track.last + 1));
        }
        let last = track.last;
        track.aside.retain(|seq, _| *seq > last);
    }

    /// "Answers".
    pub(super) fn synced(&mut self, asked: &[v1::SyncFrom], answers: &[v1::Synced]) {
        for from in &asked[answers.len()..] {
            self.want(&from.conversation_id, Wants::Sync);
        }
        for (from, answer) in asked.iter().zip(answers) {
            let conversation: ConversationId = from.conversation_id.parse().unwrap();
            if answer.conversation_id != from.conversation_id {
                return self.sim.violation(format!("{} asked for {conversation} and got {answer:?}", self.name));
            }
            let track = self.tracks.get_mut(&conversation).expect("asked for");
            if track.epoch != from.epoch {
                self.want(&from.conversation_id, Wants::Sync);
                continue;
            }
            match answer.outcome() {
                SyncOutcome::Whole => {
                    if track.epoch == 0 {
                        track.epoch = answer.epoch;
                    }
                    answer.messages.iter().cloned().for_each(|message| self.show(message));
                    self.is_whole(conversation, answer);
                }
                SyncOutcome::Reload => {
                    self.sim.count("told to reload");
                    if track.epoch != answer.epoch {
                        *track = Track { epoch: answer.epoch, ..Track::default() };
                        self.screen.borrow_mut().shown.remove(&conversation);
                    }
                    self.want(&from.conversation_id, Wants::Page);
                }
                SyncOutcome::NotMember => {
                    self.sim.violation(format!("{} is told that {conversation} is none of its own", self.name));
                }
            }
        }
    }

    /// "WHOLE is never a part."
    fn is_whole(&mut self, conversation: ConversationId, answer: &v1::Synced) {
        self.sim.count("synced");
        let is_sync = *self.wish.borrow() == Wish::Sync;
        let track = self.tracks.get_mut(&conversation).expect("asked for");
        track.is_checked |= is_sync;
        if track.last < answer.last_seq {
            let (name, last) = (&self.name, track.last);
            self.sim.violation(format!(
                "guarantee 2: {name} was told that {conversation} is whole up to {} and has got it up to {last}",
                answer.last_seq
            ));
        }
    }

    fn want(&mut self, conversation: &str, wants: Wants) {
        let track = self.tracks.get_mut(&conversation.parse().unwrap()).expect("known");
        track.wants = track.wants.max(wants);
    }

    /// "On Behind."
    pub(super) fn behind(&mut self, behind: &v1::Behind) {
        self.sim.count("behind");
        let wait_until_ms = self.now_ms() + self.sim.below(u64::from(behind.spread_ms) + 1);
        for (conversation, track) in &mut self.tracks {
            let is_meant = behind.conversation_id.is_empty() || behind.conversation_id == conversation.to_string();
            let is_there = behind.last_seq > 0 && (track.epoch, track.last) == (behind.epoch, behind.last_seq);
            if is_meant && !is_there {
                track.wants = track.wants.max(Wants::Sync);
                track.retry_at_ms = track.retry_at_ms.max(wait_until_ms);
            }
        }
    }

    /// One Sync for all conversations that want it, and a page of History for each that has to load.
    pub(super) fn fetch_due(&mut self, wire: &Wire, correlation: &mut u16) {
        let now_ms = self.now_ms();
        let is_due = |track: &Track| track.asked.is_none() && track.retry_at_ms <= now_ms;
        let due = |wants| {
            let tracks = self.tracks.iter().filter(move |(_, track)| is_due(track) && track.wants == wants);
            tracks.map(|(conversation, _)| *conversation).collect::<Vec<_>>()
        };
        let (mut behind, mut loading) = (due(Wants::Sync), due(Wants::Page));
        // Nobody has to use Sync: History brings the same, page by page.
        let sim = &self.sim;
        loading.extend(behind.extract_if(.., |at| self.tracks[at].epoch > 0 && sim.chance(200)));
        if !behind.is_empty() {
            *correlation = correlation.wrapping_add(1).max(2);
            let positions: Vec<_> = behind.iter().map(|conversation| self.stand(*conversation)).collect();
            self.is_asked(&behind, *correlation);
            send(wire, Kind::Sync, *correlation, &v1::Sync { positions: positions.clone(), others: true });
            self.syncs.insert(*correlation, positions);
        }
        for conversation in loading {
            *correlation = correlation.wrapping_add(1).max(2);
            let stand = self.stand(conversation);
            let history = v1::History {
                conversation_id: stand.conversation_id,
                after_seq: Some(stand.seq),
                page_size: 1 + self.sim.below(20) as u32,
                before_seq: 0,
                watermarks: false,
            };
            self.is_asked(&[conversation], *correlation);
            send(wire, Kind::History, *correlation, &history);
        }
    }

    fn is_asked(&mut self, conversations: &[ConversationId], correlation: u16) {
        for conversation in conversations {
            let track = self.tracks.get_mut(conversation).expect("known");
            (track.wants, track.asked) = (Wants::Nothing, Some(correlation));
        }
    }

    pub(super) fn sync_reply(&mut self, correlation: u16, frame: &Frame) {
        let reply: v1::SyncReply = frame.decode().unwrap();
        let Some(asked) = self.syncs.remove(&correlation) else { return };
        self.is_answered(correlation);
        if reply.synced.is_empty() {
            return self.sim.violation(format!("{} asked to sync and got nothing", self.name));
        }
        self.synced(&asked, &reply.synced);
    }

    fn is_answered(&mut self, correlation: u16) {
        for track in self.tracks.values_mut().filter(|track| track.asked == Some(correlation)) {
            track.asked = None;
        }
    }

    pub(super) fn history_reply(&mut self, correlation: u16, reply: v1::HistoryReply) {
        let conversation: ConversationId = reply.conversation_id.parse().unwrap();
        let track = self.tracks.get_mut(&conversation).expect("asked for");
        if track.asked != Some(correlation) {
            return;
        }
        track.asked = None;
        if reply.epoch < track.epoch {
            return self.sim.violation(format!("{} is offered an old epoch of {conversation}", self.name));
        }
        reply.messages.into_iter().for_each(|message| self.show(message));
        let is_sync = *self.wish.borrow() == Wish::Sync;
        let track = self.tracks.get_mut(&conversation).expect("as above");
        if reply.more {
            track.wants = Wants::Page;
        } else {
            track.is_checked |= is_sync;
        }
    }

    /// A question that was refused is asked again. Whether it was one.
    pub(super) fn is_refused_an_answer(&mut self, correlation: u16, retry_at_ms: u64) -> bool {
        let wants = if self.syncs.remove(&correlation).is_some() { Wants::Sync } else { Wants::Page };
        let mut was_one = false;
        for track in self.tracks.values_mut().filter(|track| track.asked == Some(correlation)) {
            (track.asked, track.retry_at_ms) = (None, retry_at_ms);
            track.wants = track.wants.max(wants);
            was_one = true;
        }
        was_one
    }

    /// Nothing is missing and nothing is under way, as far as the client knows.
    pub(super) fn is_in_sync(&self) -> bool {
        self.tracks.values().all(|track| track.wants == Wants::Nothing && track.asked.is_none())
    }
}
