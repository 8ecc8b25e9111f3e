//! Storms, over all conversations: notices, gears, pulls, and what people are told of them.
//!
//! What a single conversation makes of them is its own affair ([`Conversation`]).

use super::*;

impl State {
    pub(super) fn handle_messages(&mut self, now: Instant, messages: v1::Messages) {
        messages.messages.into_iter().for_each(|message| self.handle_message(now, message));
    }

    pub(super) fn handle_notice(&mut self, now: Instant, notice: &v1::NotifyNewMessages) {
        let Some(phase) = self.phase else { return };
        let weather = self.entry(&notice.conversation_id).handle_notice(now, phase, notice);
        self.tell_weather(&notice.conversation_id, weather);
        self.pump(now);
    }

    pub(super) fn handle_gear(&mut self, now: Instant, changed: &v1::GearChanged) {
        let Some(phase) = self.phase else { return };
        let weather = self.entry(&changed.conversation_id).handle_gear(now, phase, changed);
        self.tell_weather(&changed.conversation_id, weather);
        self.pump(now);
    }

    pub(super) fn tell_weather(&mut self, id: &str, weather: Option<Weather>) {
        let place = Part::Title(id.to_owned());
        match weather {
            None => {}
            Some(Weather::Busy) => self.notice(vec![place, " is busy: new messages come in batches".into()]),
            Some(Weather::Calm(0)) => self.notice(vec![place, " is calm again".into()]),
            Some(Weather::Calm(count)) => {
                let what = format!(" is calm again; of {count} messages that were left out, /history has the last");
                self.notice(vec![place, what.into()]);
            }
        }
    }

    /// Asks by Pull, for what is newest or what was left out.
    pub(super) fn ask_pull(&mut self, id: &str, want: Want) {
        let Some(conversation) = self.conversations.get(id) else { return };
        let (after_seq, before_seq) = conversation.pulls_from(want);
        let epoch = conversation.stands_at().map_or(0, |(epoch, _)| epoch);
        self.asks.push_back(Ask::Pull(v1::Pull { conversation_id: id.to_owned(), epoch, after_seq, before_seq }));
    }

    pub(super) fn handle_pulled(&mut self, now: Instant, asked: &v1::Pull, reply: v1::PullReply) {
        let id = &asked.conversation_id;
        if self.conversations.contains_key(id) {
            self.note_own_among(&reply.messages);
            let steps = self.entry(id).handle_pulled(now, asked, reply);
            self.follow(id, steps);
        }
    }

    pub(super) fn handle_no_pull(&mut self, now: Instant, asked: &v1::Pull, error: &v1::Error) {
        let Some(conversation) = self.conversations.get_mut(&asked.conversation_id) else { return };
        if error.code().may_retry() {
            conversation.fetch_later(now, u64::from(error.retry_after_ms));
        } else {
            conversation.handle_no_pull(now, asked);
        }
    }

    pub(super) fn show_left_out(&mut self, id: &str, count: u64, here: bool) {
        let elsewhere = if here { vec![] } else { vec![" in ".into(), Part::Title(id.to_owned())] };
        let said = format!("... {count} messages left out");
        self.notice([said.into()].into_iter().chain(elsewhere).chain([", /history to read them".into()]).collect());
    }

    pub(super) fn show_filled(&mut self, id: &str, messages: &[v1::Message], here: bool) {
        let elsewhere = if here { vec![] } else { vec![" in ".into(), Part::Title(id.to_owned())] };
        let said = format!("{} messages that were left out", messages.len());
        self.notice([said.into()].into_iter().chain(elsewhere).chain([":".into()]).collect());
        self.lines.extend(messages.iter().map(|message| Line::Said(Said::new(message, !here))));
    }
}
