//! Coming back and staying in sync, over all conversations: logins, Sync and its answers, Behind.
//!
//! What a single conversation makes of an answer is its own affair ([`Conversation`]).

use super::*;

/// A Sync that was answered with nothing is repeated after so long.
const UNANSWERED_DELAY: Duration = Duration::from_millis(300);

impl State {
    /// What the next connection's Login says of the time until now.
    #[must_use]
    pub fn standing(&self) -> Standing {
        Standing {
            session: self.session,
            watch: self.watched.iter().take(WATCHES_MAX).cloned().collect(),
            positions: self.positions(self.conversations.keys()),
        }
    }

    pub(super) fn positions<'a>(&self, ids: impl Iterator<Item = &'a String>) -> Vec<v1::SyncFrom> {
        let position = |id: &String| {
            let (epoch, seq) = self.conversations.get(id)?.stands_at()?;
            Some(v1::SyncFrom { conversation_id: id.clone(), epoch, seq })
        };
        ids.filter_map(position).take(SYNC_POSITIONS_MAX).collect()
    }

    /// The connection is logged in, for the first time or again; `asked` are the positions its Login named. `chance` spreads
    /// this client's pulls from those of others.
    pub fn handle_login(&mut self, now: Instant, mut login: v1::LoginReply, asked: &[v1::SyncFrom], chance: u32) {
        let again = std::mem::replace(&mut self.met, true);
        self.me = login.user_id;
        self.session = login.session_id;
        self.online = true;
        self.phase = Some(Phase::new(now, chance));
        self.others_at = None;
        self.outbox.handle_online(login.max_body_bytes as usize);
        let unwatched: Vec<_> = self.watched.iter().filter(|lobby| !login.watching.contains(lobby)).cloned().collect();
        if !unwatched.is_empty() {
            self.asks.push_back(Ask::Watch(unwatched));
        }
        for position in &login.positions {
            let conversation = self.entry(&position.conversation_id);
            if again {
                // It is new since the connection was lost; what was read is so on another device.
                conversation.follow_from(position.epoch, position.read_seq);
            }
            conversation.handle_position(now, position);
        }
        if again {
            // Of those that the reply had no room for nothing is known.
            self.conversations.values_mut().for_each(|conversation| conversation.fetch_newer(now));
            self.handle_synced(now, asked, std::mem::take(&mut login.synced));
            login.recent.into_iter().for_each(|message| self.handle_message(now, message));
        } else {
            self.show_missed(login.recent);
            let home = self.home.clone();
            self.open(now, &home);
        }
        self.handle_tick(now);
    }

    /// Answers to the first of the positions in `asked`.
    pub(super) fn handle_synced(&mut self, now: Instant, asked: &[v1::SyncFrom], synced: Vec<v1::Synced>) {
        for (from, synced) in asked.iter().zip(synced) {
            let id = &from.conversation_id;
            if synced.conversation_id != *id || !self.conversations.contains_key(id) {
                continue;
            }
            if synced.outcome() == SyncOutcome::NotMember {
                self.handle_not_member(now, id);
                continue;
            }
            self.note_own_among(&synced.messages);
            let steps = self.entry(id).handle_synced(now, from, synced);
            self.follow(id, steps);
        }
    }

    fn handle_not_member(&mut self, now: Instant, id: &str) {
        if self.entry(id).is_settling(now) {
            self.entry(id).fetch_later(now, 0);
        } else {
            self.forget(now, id);
        }
    }

    /// One question for all of `missing`, and for what else there is if that is due.
    pub(super) fn ask_what_is_missing(&mut self, now: Instant, missing: &[String]) {
        let mut others = self.others_at.take_if(|at| *at <= now).is_some();
        if missing.is_empty() && others {
            self.asks.push_back(Ask::Sync(v1::Sync { positions: Vec::new(), others }));
        }
        for ids in missing.chunks(SYNC_POSITIONS_MAX) {
            self.asks.push_back(Ask::Sync(v1::Sync { positions: self.positions(ids.iter()), others }));
            others = false;
        }
    }

    pub(super) fn handle_sync_reply(&mut self, now: Instant, asked: &v1::Sync, reply: v1::SyncReply) {
        // Those that had no room are asked for at once; if that is all of them, something is wrong.
        let again = if reply.synced.is_empty() { now + UNANSWERED_DELAY } else { now };
        let (answered, rest) = asked.positions.split_at(reply.synced.len().min(asked.positions.len()));
        self.handle_synced(now, answered, reply.synced);
        for from in rest {
            if let Some(conversation) = self.conversations.get_mut(&from.conversation_id) {
                conversation.ask_again(again);
            }
        }
        reply.others.iter().for_each(|position| self.handle_other(now, position));
    }

    /// A conversation that was not asked about.
    fn handle_other(&mut self, now: Instant, position: &v1::Position) {
        let conversation = self.entry(&position.conversation_id);
        if conversation.stands_at().is_none() && !conversation.is_busy() {
            conversation.follow_from(position.epoch, position.read_seq);
            conversation.handle_position(now, position);
        } else {
            conversation.handle_behind(now, Some((position.epoch, position.last_seq)));
        }
    }

    /// Pushes are missing, in one conversation or in any.
    pub(super) fn handle_behind(&mut self, behind: &v1::Behind, at: Instant) {
        if behind.conversation_id.is_empty() {
            self.conversations.values_mut().for_each(|conversation| conversation.handle_behind(at, None));
            self.others_at = Some(self.others_at.map_or(at, |earlier| earlier.min(at)));
        } else {
            let conversation = self.entry(&behind.conversation_id);
            if behind.last_seq > 0 && !conversation.is_busy() {
                // Of a room that another device joined nothing may have been heard yet.
                conversation.follow_from(behind.epoch, behind.after_seq);
            }
            // Where no message is missing a membership may be: the answer says so.
            let newest = (behind.last_seq > 0).then_some((behind.epoch, behind.last_seq));
            conversation.handle_behind(at, newest);
        }
    }

    pub(super) fn handle_no_sync(&mut self, now: Instant, asked: &v1::Sync, error: &v1::Error) {
        if asked.others && error.code().may_retry() {
            let delay = Duration::from_millis(error.retry_after_ms.into()).max(UNANSWERED_DELAY);
            self.others_at = Some(now + delay);
        }
        for from in &asked.positions {
            let Some(conversation) = self.conversations.get_mut(&from.conversation_id) else { continue };
            if error.code().may_retry() {
                conversation.fetch_later(now, u64::from(error.retry_after_ms));
            } else {
                conversation.fetch_by_pages(now);
            }
        }
    }

    pub(super) fn handle_no_history(&mut self, now: Instant, id: &str, error: &v1::Error) {
        let conversation = self.entry(id);
        let patience = conversation.is_settling(now) && error.code() == Code::NotMember;
        if error.code().may_retry() || patience {
            conversation.fetch_later(now, u64::from(error.retry_after_ms));
            return;
        }
        conversation.give_up_fetching();
        let place = Part::Title(id.to_owned());
        self.notice(vec!["nothing of ".into(), place, format!(" can be shown: {}", escape(&error.text)).into()]);
        if matches!(error.code(), Code::NotMember | Code::UnknownUser | Code::BadConversation) {
            self.forget(now, id);
        }
    }
}
