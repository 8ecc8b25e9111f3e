//! From events to messages in the archive: find repetitions, give sequences, commit.
//!
//! In come the messages of a turn, out goes what is stored of them. What always holds: a sequence follows the archive's end,
//! so that there is no gap, and the archive's keys refuse a sequence or a message twice, so that two engines that take the
//! same conversation for theirs do no harm. Sequences given and not committed are given again: nobody has seen them, because
//! nothing is pushed before the commit. An archive that went back behind what was committed is noticed, because the hot
//! store remembers that, and the conversation begins a new epoch.

use rustc_hash::{FxHashMap, FxHashSet};

use super::IngestEngine;
use super::poison::Apart;
use super::turn::Known;
use crate::clock::Clock;
use crate::event::{Accepted, ReceiptMoved, StoredMessage};
use crate::ids::{ConversationId, MessageId, Seq};
use crate::meter;
use crate::ports::{
    Archive, Backend, CacheRun, End, HotStore, PersistBatch, PortError, PortResult, SequenceGrant, SequenceRun,
};
use crate::retry::until_done;

/// Times one turn is committed against the resistance of another engine. Once is enough if that one is done; if it goes on,
/// one of the two has lost the partition and will learn so from its consumer.
pub(super) const COMMITS_MAX: u32 = 3;

/// Where the conversations of a turn end.
pub(super) type Ends = FxHashMap<ConversationId, End>;

/// What a turn has in the archive.
pub(super) struct Committed {
    /// Repetitions of what was there before.
    pub known: Vec<Known>,
    /// What was added.
    pub persist: PersistBatch,
    /// Of all these, afterwards.
    pub ends: Ends,
    /// What the archive will never take; it is with the dead letters.
    pub unfit: Vec<Accepted>,
}

impl<B: Backend, C: Clock> IngestEngine<B, C> {
    /// From events to messages in the archive. Where another engine was quicker, the archive says what it wrote, and the
    /// rest follows that.
    pub(super) async fn commit(
        &mut self,
        messages: Vec<Accepted>,
        receipts: Vec<ReceiptMoved>,
    ) -> PortResult<Committed> {
        let (mut known, mut fresh) = self.dedupe(messages).await?;
        let mut attempt = 1;
        loop {
            let mut ends = self.ends(&known, &fresh).await?;
            let messages = self.sequence(&fresh, &mut ends).await?;
            let persist = PersistBatch { messages, receipts: receipts.clone() };
            let committed = match self.persist(&persist, &mut ends).await {
                Ok(()) => Ok(Apart { persist, unfit: Vec::new() }),
                Err(PortError::Unfit { .. }) => self.commit_apart(&fresh, &receipts, &mut ends).await,
                Err(error) => Err(error),
            };
            match committed {
                Ok(Apart { persist, unfit }) => return Ok(Committed { known, persist, ends, unfit }),
                Err(error @ PortError::Conflict { .. }) if attempt < COMMITS_MAX => {
                    metrics::counter!(meter::INGEST_CONFLICTS).increment(1);
                    tracing::warn!(partition = self.partition.0, %error, "looking again at what is stored");
                }
                Err(error) => return Err(error),
            }
            self.floors.clear();
            let (stored, left) = self.dedupe(fresh).await?;
            known.extend(stored);
            fresh = left;
            attempt += 1;
        }
    }

    /// Splits messages into those the archive has and those it has not.
    async fn dedupe(&mut self, messages: Vec<Accepted>) -> PortResult<(Vec<Known>, Vec<Accepted>)> {
        if messages.is_empty() {
            return Ok((Vec::new(), messages));
        }
        let ids: Vec<MessageId> = messages.iter().map(|message| message.message_id).collect();
        let archive = self.backend.archive();
        let mut attempts = 0;
        let find = || {
            attempts += 1;
            archive.find(&ids)
        };
        let stored = until_done(&self.clock, "find", find).await?;
        if attempts > 1 {
            // The archive was away. What came back may be another, that is behind.
            self.floors.clear();
        }
        if stored.is_empty() {
            return Ok((Vec::new(), messages));
        }
        let mut stored: FxHashMap<MessageId, StoredMessage> =
            stored.into_iter().map(|message| (message.message_id, message)).collect();
        let mut known = Vec::new();
        let mut fresh = Vec::new();
        for message in messages {
            match stored.remove(&message.message_id) {
                Some(stored) => known.push(Known { repeated: message, stored }),
                None => fresh.push(message),
            }
        }
        Ok((known, fresh))
    }

    /// Where the turn's conversations end. The archive is asked once, for those that are not known.
    async fn ends(&mut self, known: &[Known], fresh: &[Accepted]) -> PortResult<Ends> {
        let archive = self.backend.archive();
        let breaks = archive.breaks();
        if breaks != self.breaks {
            self.breaks = breaks;
            self.floors.clear();
        }
        let mut ends = Ends::default();
        let (mut unknown, mut asked) = (Vec::new(), FxHashSet::default());
        let stored = known.iter().map(|known| known.stored.conversation);
        for conversation in stored.chain(fresh.iter().map(|message| message.conversation)) {
            match self.floors.get(&conversation) {
                Some(end) => drop(ends.insert(conversation, *end)),
                None if asked.insert(conversation) => unknown.push(conversation),
                None => {}
            }
        }
        if !unknown.is_empty() {
            let found = until_done(&self.clock, "ends", || archive.ends(&unknown)).await?;
            for (conversation, end) in unknown.into_iter().zip(found) {
                self.floors.insert(conversation, end);
                ends.insert(conversation, end);
            }
        }
        Ok(ends)
    }

    /// Gives every message its place. The order within a conversation is the queue's.
    pub(super) async fn sequence(&mut self, messages: &[Accepted], ends: &mut Ends) -> PortResult<Vec<StoredMessage>> {
        if messages.is_empty() {
            return Ok(Vec::new());
        }
        let mut run_of: FxHashMap<ConversationId, usize> = FxHashMap::default();
        let mut runs: Vec<SequenceRun> = Vec::new();
        for message in messages {
            let conversation = message.conversation;
            let run = *run_of.entry(conversation).or_insert_with(|| {
                runs.push(SequenceRun { conversation, end: ends[&conversation], count: 0 });
                runs.len() - 1
            });
            runs[run].count += 1;
        }
        let mut next = vec![Seq(0); runs.len()];
        let mut open: Vec<usize> = (0..runs.len()).collect();
        while !open.is_empty() {
            let asked: Vec<SequenceRun> = open.iter().map(|run| runs[*run]).collect();
            let hot = self.backend.hot();
            let grants = until_done(&self.clock, "sequence", || hot.sequence(&asked)).await?;
            let mut behind = Vec::new();
            for (run, grant) in open.into_iter().zip(grants) {
                match grant {
                    SequenceGrant::Given(first) => next[run] = first,
                    SequenceGrant::Discontinuous { kept } => behind.push((run, runs[run].conversation, kept)),
                }
            }
            if !behind.is_empty() {
                let kept: Vec<_> = behind.iter().map(|(_, conversation, kept)| (*conversation, *kept)).collect();
                for ((run, conversation, _), end) in behind.iter().zip(self.catch_up(&kept).await?) {
                    runs[*run].end = end;
                    ends.insert(*conversation, end);
                }
            }
            open = behind.into_iter().map(|(run, ..)| run).collect();
        }
        let place = |message: &Accepted| {
            let next = &mut next[run_of[&message.conversation]];
            let seq = *next;
            *next = seq.next();
            StoredMessage {
                conversation: message.conversation,
                seq,
                message_id: message.message_id,
                sender: message.sender,
                sent_at: message.accepted_at,
                content_type: message.content_type,
                body: message.body.clone(),
            }
        };
        Ok(messages.iter().map(place).collect())
    }

    /// The ends of conversations that were further than this engine thought. What the hot store knows to have been
    /// committed, the archive must have *now*, after the store's answer: if so, another engine wrote it. If not, the archive
    /// went back, some have seen what it lost, and the conversation begins a new epoch.
    async fn catch_up(&mut self, kept: &[(ConversationId, End)]) -> PortResult<Vec<End>> {
        let archive = self.backend.archive();
        let conversations: Vec<_> = kept.iter().map(|(conversation, _)| *conversation).collect();
        let mut ends = until_done(&self.clock, "ends", || archive.ends(&conversations)).await?;
        let is_behind = |((_, kept), end): &(&(ConversationId, End), &mut End)| **end < *kept;
        let behind: Vec<_> = kept.iter().zip(&mut ends).filter(is_behind).collect();
        if !behind.is_empty() {
            let above: Vec<_> = behind.iter().map(|((conversation, kept), _)| (*conversation, kept.epoch)).collect();
            // Before it begins: whoever crashes in between comes here again.
            self.forget_unread(above.iter().map(|(conversation, _)| *conversation)).await?;
            let begun = until_done(&self.clock, "begin_epoch", || archive.begin_epoch(&above)).await?;
            metrics::counter!(meter::INGEST_EPOCHS).increment(begun.len() as u64);
            for (((conversation, kept), end), epoch) in behind.into_iter().zip(begun) {
                let (was, is) = (kept.last.0, end.last.0);
                tracing::error!(%conversation, was, is, epoch = epoch.0, "the archive went back: a new epoch begins");
                end.epoch = epoch;
            }
        }
        for (conversation, end) in conversations.iter().zip(&ends) {
            self.floors.insert(*conversation, *end);
        }
        Ok(ends)
    }

    /// What was counted and filed under sequences that are given anew.
    async fn forget_unread(&self, conversations: impl Iterator<Item = ConversationId>) -> PortResult<()> {
        let (mut users, mut rooms) = (Vec::new(), Vec::new());
        for conversation in conversations {
            match conversation {
                ConversationId::Private { low, high } => users.extend([low, high]),
                ConversationId::Room(room) => rooms.push(room),
                ConversationId::Lobby(_) => {}
            }
        }
        let (archive, hot) = (self.backend.archive(), self.backend.hot());
        let members = until_done(&self.clock, "members", || archive.members(&rooms)).await?;
        users.extend(members.into_iter().flatten());
        until_done(&self.clock, "forget_unread", || hot.forget_unread(&users)).await
    }

    /// Commits, and moves the ends along.
    pub(super) async fn persist(&mut self, batch: &PersistBatch, ends: &mut Ends) -> PortResult<()> {
        if batch.messages.is_empty() && batch.receipts.is_empty() {
            return Ok(());
        }
        let archive = self.backend.archive();
        let mut attempts = 0;
        let attempt = || {
            attempts += 1;
            let must_verify = attempts > 1 || archive.breaks() != self.breaks;
            let before = &*ends;
            async move {
                if must_verify {
                    verify(archive, before).await?;
                }
                archive.persist(batch).await
            }
        };
        until_done(&self.clock, "persist", attempt).await?;
        if attempts > 1 {
            self.floors.clear();
        }
        for message in &batch.messages {
            let end = ends.get_mut(&message.conversation).expect("its end was read before it was given a sequence");
            end.last = message.seq;
            self.floors.insert(message.conversation, *end);
        }
        metrics::counter!(meter::INGEST_PERSISTED).increment(batch.messages.len() as u64);
        Ok(())
    }

    /// Tells the hot store how far the archive is, and what is to be pulled.
    pub(super) async fn settle(&self, ends: &Ends, cached: &[CacheRun]) -> PortResult<()> {
        if ends.is_empty() {
            return Ok(());
        }
        let ends: Vec<_> = ends.iter().map(|(conversation, end)| (*conversation, *end)).collect();
        let hot = self.backend.hot();
        until_done(&self.clock, "settle", || hot.settle(&ends, cached)).await
    }
}

/// The archive was away. What came back may be another that is behind: sequences that follow the former's end would leave
/// a gap in it.
///
/// # Errors
/// The archive's, or [`PortError::Conflict`] if it is not as far as it was.
async fn verify<A: Archive>(archive: &A, before: &Ends) -> PortResult<()> {
    let conversations: Vec<_> = before.keys().copied().collect();
    let now = archive.ends(&conversations).await?;
    match conversations.iter().zip(now).find(|(conversation, now)| *now < before[conversation]) {
        None => Ok(()),
        Some((conversation, now)) => {
            let detail = format!("{conversation} ended at {} and ends at {}", before[conversation].last.0, now.last.0);
            Err(PortError::Conflict { service: "the archive", detail })
        }
    }
}
