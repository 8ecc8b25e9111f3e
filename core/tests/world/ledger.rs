//! What has been promised and seen so far, and the rules that must hold at every moment.
//!
//! The fault layer and the clients tell it what they do and see; it knows the archive as it really is. What must hold at
//! the end is in `judge`. A broken rule ends the world.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, MutexGuard};

use bytes::Bytes;
use futures_util::FutureExt as _;
use prost::Message as _;
use tidegate_core::event::{Accepted, IngestEvent, PushEvent, ReceiptMoved, StoredMessage};
use tidegate_core::ids::{ConversationId, MessageId, Seq, UserId};
use tidegate_core::ports::{Archive as _, CacheRun, Filing, Page, PersistBatch, Standing};
use tidegate_core::twins::archive::MemoryArchive;
use tidegate_proto::v1;

use crate::sim::Sim;

/// What was sent under a message id.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Content {
    pub sender: UserId,
    pub conversation: ConversationId,
    pub body: Bytes,
}

/// See the module.
pub struct Ledger {
    sim: Sim,
    archive: MemoryArchive,
    book: Mutex<Book>,
}

#[derive(Default)]
struct Book {
    sent: BTreeMap<MessageId, Vec<Content>>,
    /// Sent more than once.
    repeated: BTreeSet<MessageId>,
    acked: BTreeSet<MessageId>,
    places: BTreeMap<MessageId, (ConversationId, Seq)>,
    last: BTreeMap<ConversationId, Seq>,
    /// Confirmed by MQ2 at least once.
    pushed: BTreeSet<MessageId>,
    rejected: BTreeSet<MessageId>,
    filed: BTreeSet<(UserId, ConversationId, Seq)>,
    /// Highest read watermark a client sent, and the highest that was acknowledged.
    read_sent: BTreeMap<(UserId, ConversationId), Seq>,
    read_acked: BTreeMap<(UserId, ConversationId), Seq>,
    /// Watermarks sent above what there was.
    overread: BTreeSet<(UserId, ConversationId, Seq)>,
}

impl Ledger {
    pub fn new(sim: &Sim, archive: &MemoryArchive) -> Self {
        Self { sim: sim.clone(), archive: archive.clone(), book: Mutex::default() }
    }

    fn book(&self) -> MutexGuard<'_, Book> {
        self.book.lock().expect("one thread, and no panic while it is held")
    }

    fn rule(&self, holds: bool, text: impl FnOnce() -> String) {
        if !holds {
            self.sim.violation(text());
        }
    }

    // ---- the archive as it is

    pub fn stored(&self, message: MessageId) -> Option<StoredMessage> {
        self.archive.find(&[message]).now_or_never().unwrap().unwrap().pop()
    }

    pub fn all_of(&self, conversation: ConversationId) -> Vec<StoredMessage> {
        self.page(conversation, 0, u64::from(u32::MAX))
    }

    fn page(&self, conversation: ConversationId, after: u64, size: u64) -> Vec<StoredMessage> {
        let page = self.archive.history(conversation, Page::After(Seq(after)), size as u32);
        page.now_or_never().unwrap().unwrap()
    }

    pub fn count_of(&self, conversation: ConversationId) -> usize {
        self.archive.ends(&[conversation]).now_or_never().unwrap().unwrap()[0].last.0 as usize
    }

    pub fn standing(&self, user: UserId, conversation: ConversationId) -> Standing {
        self.archive.standings_of(&[(user, conversation)]).now_or_never().unwrap().unwrap()[0]
    }

    pub fn recipients(&self, conversation: ConversationId, sender: UserId) -> Vec<UserId> {
        let mut users = match conversation {
            ConversationId::Private { low, high } => vec![low, high],
            ConversationId::Room(room) => self.archive.members(&[room]).now_or_never().unwrap().unwrap().remove(0),
            ConversationId::Lobby(_) => Vec::new(),
        };
        users.retain(|user| *user != sender);
        users
    }

    // ---- what clients do and see

    pub fn sends(&self, message: MessageId, content: Content) {
        let mut book = self.book();
        let contents = book.sent.entry(message).or_default();
        if !contents.contains(&content) {
            contents.push(content);
        }
    }

    pub fn repeats(&self, message: MessageId) {
        self.book().repeated.insert(message);
    }

    pub fn is_repeated(&self, message: MessageId) -> bool {
        self.book().repeated.contains(&message)
    }

    /// Guarantee 1, as far as it can be seen now: `is_queued` says whether MQ1 is durable and holds it.
    pub fn is_acked(&self, message: MessageId, is_queued: bool) {
        self.rule(is_queued || self.stored(message).is_some(), || {
            format!("guarantee 1: {message} was acknowledged and is neither in the archive nor in a durable queue")
        });
        self.book().acked.insert(message);
    }

    pub fn reads(&self, user: UserId, conversation: ConversationId, read: Seq) {
        let is_over = read > self.standing(user, conversation).last;
        let mut book = self.book();
        if is_over {
            book.overread.insert((user, conversation, read));
        }
        let sent = book.read_sent.entry((user, conversation)).or_default();
        *sent = read.max(*sent);
    }

    pub fn receipt_is_acked(&self, user: UserId, conversation: ConversationId, read: Seq) {
        let mut book = self.book();
        // Bounded by what there was when it came, which nobody knows now.
        if book.overread.contains(&(user, conversation, read)) {
            return;
        }
        let acked = book.read_acked.entry((user, conversation)).or_default();
        *acked = read.max(*acked);
    }

    /// Whatever a client is shown, the archive has it at that place, and nobody was ever shown it elsewhere.
    pub fn is_seen(&self, by: &str, message: &v1::Message) {
        self.sim.mix(message.seq);
        let id = MessageId::from_wire(&message.message_id).unwrap();
        let conversation: ConversationId = message.conversation_id.parse().unwrap();
        let place = (conversation, Seq(message.seq));
        let known = self.book().places.get(&id).copied();
        self.rule(known == Some(place), || {
            format!("guarantee 3: {by} got {id} as {conversation} {}, its place is {known:?}", message.seq)
        });
    }

    // ---- what the engines do

    /// Guarantees 2, 3 and 4: sequences grow by one and nothing moves.
    pub fn committed(&self, batch: &PersistBatch) {
        for message in &batch.messages {
            let place = (message.conversation, message.seq);
            let mut book = self.book();
            let known = *book.places.entry(message.message_id).or_insert(place);
            let last = book.last.entry(message.conversation).or_default();
            let (before, is_new) = (*last, message.seq > *last);
            *last = message.seq.max(*last);
            drop(book);
            self.rule(known == place, || {
                format!("guarantee 3: {} was {known:?} and is now {place:?}", message.message_id)
            });
            self.rule(!is_new || message.seq == before.next(), || {
                format!("guarantee 2: {} goes from {} to {}", message.conversation, before.0, message.seq.0)
            });
        }
    }

    /// No push before the archive has it.
    pub fn pushing(&self, events: &[PushEvent]) {
        for (conversation, seq, id) in events.iter().filter_map(sequenced) {
            let stored = self.stored(id).map(|stored| (stored.conversation, stored.seq));
            self.rule(stored == Some((conversation, seq)), || {
                format!("guarantee 1: {id} is pushed as {conversation} {} and the archive has {stored:?}", seq.0)
            });
        }
    }

    pub fn pushed(&self, events: &[PushEvent]) {
        let mut book = self.book();
        book.pushed.extend(events.iter().filter_map(sequenced).map(|(_, _, id)| id));
        book.rejected.extend(events.iter().filter_map(|event| match event {
            PushEvent::Rejected { payload, .. } => {
                MessageId::from_wire(&v1::SendRejected::decode(payload.clone()).unwrap().message_id)
            }
            _ => None,
        }));
    }

    /// In a storm messages are not pushed but left to be pulled; a notice that says so may follow later.
    pub fn left_to_pull(&self, runs: &[CacheRun]) {
        let mut book = self.book();
        for (_, payload) in runs.iter().flat_map(|run| &run.messages) {
            self.sim.count("message to be pulled");
            let message = v1::Message::decode(payload.clone()).unwrap();
            book.pushed.insert(MessageId::from_wire(&message.message_id).unwrap());
        }
    }

    /// Counts are computed from the archive when they are lost: what is counted must be there.
    pub fn filing(&self, filings: &[Filing]) {
        for filing in filings {
            let last = self.standing(filing.user, filing.conversation).last;
            let highest = filing.seqs.iter().copied().max().unwrap_or_default();
            self.rule(highest <= last, || {
                format!(
                    "guarantee 6: {} {} is counted and the archive ends at {}",
                    filing.conversation, highest.0, last.0
                )
            });
            let lowest = filing.seqs.iter().copied().min().unwrap_or_default();
            let own = self
                .page(filing.conversation, lowest.0.saturating_sub(1), highest.0 - lowest.0 + 1)
                .into_iter()
                .find(|message| message.sender == filing.user && filing.seqs.contains(&message.seq));
            self.rule(own.is_none(), || format!("guarantee 6: user {} is told of its own {own:?}", filing.user.0));
        }
    }

    pub fn filed(&self, filings: &[Filing]) {
        let mut book = self.book();
        for filing in filings {
            book.filed.extend(filing.seqs.iter().map(|seq| (filing.user, filing.conversation, *seq)));
        }
    }

    /// Guarantee 5: everything MQ1 may forget now is in the archive, MQ2 has confirmed its push, and it is counted.
    pub fn acking(&self, events: &[IngestEvent]) {
        for event in events {
            match event {
                IngestEvent::Accepted(accepted) => self.acking_message(accepted),
                IngestEvent::ReceiptMoved(receipt) => self.acking_receipt(receipt),
            }
        }
    }

    fn acking_message(&self, accepted: &Accepted) {
        let id = accepted.message_id;
        let Some(stored) = self.stored(id) else {
            return self.sim.violation(format!("guarantee 5: MQ1 may forget {id} and the archive does not have it"));
        };
        self.sim.count("message through");
        if (stored.conversation, &stored.body) != (accepted.conversation, &accepted.body) {
            self.sim.count("conflict");
            let is_told = self.book().rejected.contains(&id);
            return self.rule(is_told, || format!("guarantee 3: {id} came with other content and nobody was told"));
        }
        let recipients = self.recipients(stored.conversation, stored.sender);
        let book = self.book();
        // A private message goes to the gateways that hold one of the two, which may be none.
        let is_pushed = book.pushed.contains(&id) || matches!(stored.conversation, ConversationId::Private { .. });
        let uncounted: Vec<UserId> = recipients
            .into_iter()
            .filter(|user| !book.filed.contains(&(*user, stored.conversation, stored.seq)))
            .collect();
        drop(book);
        self.rule(is_pushed, || format!("guarantee 5: MQ1 may forget {id} and MQ2 has not confirmed its push"));
        self.rule(uncounted.is_empty(), || format!("guarantee 6: MQ1 may forget {id}, not counted for {uncounted:?}"));
    }

    fn acking_receipt(&self, receipt: &ReceiptMoved) {
        let Standing { read, last, .. } = self.standing(receipt.user, receipt.conversation);
        self.rule(read <= last, || format!("guarantee 6: {receipt:?} has read what is not there yet"));
        let is_over = self.book().overread.contains(&(receipt.user, receipt.conversation, receipt.read));
        self.rule(is_over || read >= receipt.read, || {
            format!("guarantee 5: MQ1 may forget {receipt:?} and the archive has {}", read.0)
        });
    }

    // ---- for the judge

    pub fn acked(&self) -> BTreeSet<MessageId> {
        self.book().acked.clone()
    }

    pub fn contents(&self, message: MessageId) -> Vec<Content> {
        self.book().sent.get(&message).cloned().unwrap_or_default()
    }

    pub fn conversations(&self) -> Vec<ConversationId> {
        self.book().last.keys().copied().collect()
    }

    /// The least and the most a user's read watermark can be: acknowledged, and sent.
    pub fn read_bounds(&self, user: UserId, conversation: ConversationId) -> (Seq, Seq) {
        let book = self.book();
        let of = |map: &BTreeMap<(UserId, ConversationId), Seq>| map.get(&(user, conversation)).copied();
        (of(&book.read_acked).unwrap_or_default(), of(&book.read_sent).unwrap_or_default())
    }
}

fn sequenced(event: &PushEvent) -> Option<(ConversationId, Seq, MessageId)> {
    let PushEvent::Sequenced { conversation, seq, payload, .. } = event else { return None };
    let message = v1::Message::decode(payload.clone()).unwrap();
    Some((*conversation, *seq, MessageId::from_wire(&message.message_id).unwrap()))
}
