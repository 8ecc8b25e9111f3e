//! The judge of a chaos run, by conservation: every acknowledged message is in the archive once and was seen by every
//! receiver once and in order; nothing else is; the counts follow.
//!
//! In: [`Evidence`]; out: [`Outcome`]. Pure logic, tested with made-up evidence. It takes the longest archive that any
//! audit saw as *the* archive of a conversation and compares everything with it.

use std::collections::{BTreeMap, HashMap};

use serde::Serialize;

use super::evidence::{Answer, Audit, Entry, Evidence, MessageId, Origin, Sent, Via, View};
use crate::finding::{Fault, Findings};

/// The judge's word.
#[derive(Debug, Default)]
pub struct Outcome {
    /// How many.
    pub counts: Counts,
    /// What was wrong.
    pub findings: Findings,
}

/// Messages, each counted once whatever became of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Counts {
    /// Were to be sent.
    pub offered: u64,
    /// Acknowledged.
    pub acknowledged: u64,
    /// Answered with an error for good.
    pub refused: u64,
    /// Without an answer at the end.
    pub unanswered: u64,
    /// In the archive.
    pub archived: u64,
    /// Shown to a device, over all devices.
    pub shown: u64,
    /// Of these, brought by an answer instead of a push.
    pub shown_by_answer: u64,
    /// Acknowledged and not in the archive, or archived and not shown to a device.
    pub lost: u64,
    /// Under two sequences, or shown twice.
    pub doubled: u64,
    /// Stored in another order than sent, or shown in another order than stored.
    pub reordered: u64,
}

/// Judges.
pub fn judge(evidence: Evidence) -> Outcome {
    let Evidence { conversations, sent, views, audits, probes_count, findings } = evidence;
    let mut outcome = Outcome { counts: Counts::default(), findings };
    let by_origin: HashMap<Origin, &Sent> = sent.iter().map(|sent| (sent.origin, sent)).collect();
    for (index, label) in (0..).zip(&conversations) {
        let audits: Vec<&Audit> = audits.iter().filter(|audit| audit.conversation == index).collect();
        let empty = Vec::new();
        let archive = audits.iter().map(|audit| &audit.archive).max_by_key(|archive| archive.len()).unwrap_or(&empty);
        let mut conversation = Conversation { index, label, archive, by_origin: &by_origin, outcome: &mut outcome };
        conversation.judge_archive();
        for audit in audits {
            conversation.judge_audit(audit);
        }
        for view in views.iter().filter(|view| view.conversation == index) {
            conversation.judge_view(view);
            if probes_count {
                conversation.judge_probes(view);
            }
        }
    }
    judge_answers(&sent, &mut outcome);
    outcome
}

impl Counts {
    /// What the senders know, when there is no archive to compare with.
    pub fn of_answers(sent: &[Sent]) -> Self {
        let mut outcome = Outcome::default();
        judge_answers(sent, &mut outcome);
        outcome.counts
    }
}

/// Every message got its answer.
fn judge_answers(sent: &[Sent], outcome: &mut Outcome) {
    let Outcome { counts, findings } = outcome;
    for Sent { origin, answer, attempts, .. } in sent {
        counts.offered += 1;
        match answer {
            Answer::Accepted(_) => counts.acknowledged += 1,
            Answer::Refused => {
                counts.refused += 1;
                findings.add(Fault::Refused, || format!("{origin:?} was answered with an error for good"));
            }
            Answer::None => {
                counts.unanswered += 1;
                findings.add(Fault::Unanswered, || format!("{origin:?} has no answer after {attempts} attempts"));
            }
        }
    }
}

struct Conversation<'a> {
    index: u32,
    label: &'a str,
    archive: &'a [Entry],
    by_origin: &'a HashMap<Origin, &'a Sent>,
    outcome: &'a mut Outcome,
}

impl Conversation<'_> {
    fn find(&mut self, fault: Fault, example: impl FnOnce() -> String) {
        let label = self.label;
        self.outcome.findings.add(fault, || format!("{label} {}", example()));
    }

    /// Sequences are 1, 2, 3 ...; each is a message that was sent, under its id; each message that was acknowledged is
    /// there once; those of one connection are in the order in which they were sent.
    fn judge_archive(&mut self) {
        let mut seqs_of: BTreeMap<Origin, Vec<u64>> = BTreeMap::new();
        let mut by_id: HashMap<MessageId, &Entry> = HashMap::new();
        for (position, entry) in (1..).zip(self.archive) {
            let seq = entry.seq;
            if seq != position {
                self.find(Fault::Gap, || format!("seq {seq} in place {position} of the archive"));
            }
            if entry.epoch != self.archive[0].epoch {
                self.find(Fault::EpochChanged, || format!("seq {seq}: epoch {} within the archive", entry.epoch));
            }
            if let Some(first) = by_id.insert(entry.message_id, entry)
                && first.origin != entry.origin
            {
                let first = first.seq;
                self.find(Fault::Disagreement, || format!("seq {seq}: its id is that of seq {first}"));
            }
            if let Some(origin) = self.judge_entry(entry) {
                seqs_of.entry(origin).or_default().push(seq);
            }
        }
        self.outcome.counts.archived += self.archive.len() as u64;
        for (origin, seqs) in &seqs_of {
            if seqs.len() > 1 {
                self.outcome.counts.doubled += 1;
                self.find(Fault::StoredTwice, || format!("{origin:?} has the sequences {seqs:?}"));
            }
        }
        let index = self.index;
        let mut mine: Vec<&Sent> =
            self.by_origin.values().copied().filter(|sent| sent.origin.conversation == index).collect();
        mine.sort_unstable_by_key(|sent| (sent.origin.member, sent.connection, sent.place));
        for sent in &mine {
            if matches!(sent.answer, Answer::Accepted(_)) && !seqs_of.contains_key(&sent.origin) {
                self.outcome.counts.lost += 1;
                let origin = sent.origin;
                self.find(Fault::Lost, || format!("{origin:?} was acknowledged and is not in the archive"));
            }
        }
        // A repetition may overtake, so that only messages that were written once are compared.
        let once = mine.iter().filter(|sent| sent.attempts == 1);
        let placed: Vec<(&Sent, u64)> =
            once.filter_map(|sent| Some((*sent, *seqs_of.get(&sent.origin)?.first()?))).collect();
        for [(before, seq_before), (after, seq_after)] in placed.array_windows() {
            let same = (before.origin.member, before.connection) == (after.origin.member, after.connection);
            if same && seq_before > seq_after {
                self.outcome.counts.reordered += 1;
                let [before, after] = [before.origin, after.origin];
                self.find(Fault::Reordered, || {
                    format!("{after:?} was sent after {before:?} and has seq {seq_after} before {seq_before}")
                });
            }
        }
    }

    /// The message is one that was sent, unaltered, by whom the server says and under its id.
    fn judge_entry(&mut self, entry: &Entry) -> Option<Origin> {
        let seq = entry.seq;
        let Some(origin) = entry.origin else {
            self.find(Fault::Altered, || format!("seq {seq}: not a body of this run"));
            return None;
        };
        if origin.conversation != self.index {
            self.find(Fault::Foreign, || format!("seq {seq}: {origin:?}"));
            return None;
        }
        if !entry.is_from_sender {
            self.find(Fault::Altered, || format!("seq {seq}: {origin:?} under another sender"));
        }
        match self.by_origin.get(&origin).map(|sent| (sent.attempts, sent.answer)) {
            None | Some((0, _)) => self.find(Fault::NeverSent, || format!("seq {seq}: {origin:?}")),
            Some((_, Answer::Refused)) => self.find(Fault::RefusedYetDelivered, || format!("seq {seq}: {origin:?}")),
            Some((_, Answer::Accepted(id))) if id != entry.message_id => {
                self.find(Fault::WrongId, || format!("seq {seq}: {origin:?} was acknowledged under another id"));
            }
            Some(_) => {}
        }
        Some(origin)
    }

    /// The archive is the same for all, and the positions say what it and the watermarks say.
    fn judge_audit(&mut self, audit: &Audit) {
        let who = &audit.who;
        let same = |(ours, theirs): &(&Entry, &Entry)| ours.seq == theirs.seq && ours.message_id == theirs.message_id;
        let agreed = self.archive.iter().zip(&audit.archive).take_while(same).count();
        if agreed < self.archive.len() {
            let len = audit.archive.len();
            self.find(Fault::Disagreement, || format!("{who}: the archive has {len} messages, {agreed} as for others"));
        }
        let last_seq = self.archive.last().map_or(0, |entry| entry.seq);
        let Some(position) = audit.position else {
            if last_seq > 0 {
                self.find(Fault::WrongPosition, || format!("{who}: no position, the archive has {last_seq}"));
            }
            return;
        };
        if position.last_seq != last_seq {
            self.find(Fault::WrongPosition, || format!("{who}: {position:?}, the archive's last is {last_seq}"));
        }
        let (acked, sent) = (audit.read_acked, audit.read_sent);
        if position.read_seq < acked || position.read_seq > sent {
            self.find(Fault::WrongPosition, || format!("{who}: {position:?}, read up to {acked}, at most {sent}"));
        }
        let unread = unread_after(&audit.archive, audit.member, position.read_seq);
        if position.unread != unread {
            self.find(Fault::WrongPosition, || format!("{who}: {position:?}, but {unread} messages are unread"));
        }
        if audit.unread_http != unread {
            let http = audit.unread_http;
            self.find(Fault::WrongPosition, || format!("{who}: HTTP says {http} unread, but {unread} messages are"));
        }
    }

    /// A device was shown the archive: all of it, in order, each once.
    fn judge_view(&mut self, view: &View) {
        let who = &view.who;
        self.outcome.counts.shown += view.shown.len() as u64;
        let by_answer = view.shown.iter().filter(|entry| entry.via == Via::Answer).count();
        self.outcome.counts.shown_by_answer += by_answer as u64;
        let mut places: HashMap<MessageId, u64> = HashMap::new();
        let mut before = 0;
        for entry in &view.shown {
            let seq = entry.seq;
            if places.insert(entry.message_id, seq).is_some() {
                self.outcome.counts.doubled += 1;
                self.find(Fault::Doubled, || format!("seq {seq}: {who} was shown it again"));
            } else if seq < before {
                self.outcome.counts.reordered += 1;
                self.find(Fault::Reordered, || format!("seq {seq}: {who} was shown {before} before it"));
            }
            before = before.max(seq);
        }
        for entry in self.archive {
            let seq = entry.seq;
            match places.remove(&entry.message_id) {
                None => {
                    self.outcome.counts.lost += 1;
                    self.find(Fault::Lost, || format!("seq {seq}: {who} was never shown it"));
                }
                Some(shown) if shown != seq => {
                    self.find(Fault::Disagreement, || format!("seq {seq}: {who} was shown it as {shown}"));
                }
                Some(_) => {}
            }
        }
        for seq in places.values() {
            self.find(Fault::NotArchived, || format!("seq {seq}: {who} was shown what the archive does not have"));
        }
    }

    /// With nothing broken any more, pushes arrive.
    fn judge_probes(&mut self, view: &View) {
        let who = &view.who;
        for entry in view.shown.iter().filter(|entry| entry.via == Via::Answer) {
            let sent = entry.origin.and_then(|origin| self.by_origin.get(&origin));
            if sent.is_some_and(|sent| sent.is_probe) {
                let seq = entry.seq;
                self.find(Fault::NotPushed, || format!("seq {seq}: nothing was broken any more, {who} got no push"));
            }
        }
    }
}

/// What a user has not read: messages of others after the watermark.
pub fn unread_after(archive: &[Entry], member: u32, read_seq: u64) -> u64 {
    let of_others = |entry: &&Entry| entry.origin.is_none_or(|origin| origin.member != member);
    archive.iter().filter(|entry| entry.seq > read_seq).filter(of_others).count() as u64
}

#[cfg(test)]
#[path = "judge_tests.rs"]
mod tests;
