//! The ingest engine: from MQ1 to the archive and MQ2, one turn at a time, one loop per partition.
//!
//! In come accepted events in queue order; out go committed messages with their sequence, pushes, unread counts. The loop
//! in [`IngestEngine::turn`] shows every step in order. What always holds: an event is acknowledged only after the archive
//! committed it and MQ2 confirmed its push; what is pushed has the sequence under which it is stored, and the archive's
//! keys decide between two engines that take the same partition for theirs.

mod commit;
pub mod members;
mod poison;
mod storm;
#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;
mod turn;

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join3;
use rustc_hash::{FxHashMap, FxHashSet};
use tidegate_proto::v1::{Code, Gear};

use crate::clock::Clock;
use crate::event::{Accepted, PushEvent, ReceiptMoved, StoredMessage};
use crate::ids::{ConversationId, Epoch, GatewayId, Millis, Partition, RoomId, Seq, UserId};
use crate::meter;
use crate::ports::{
    Archive, Backend, CacheRun, End, Filing, HotStore, IngestBatch, IngestConsumer, IngestQueue, PortError, PortResult,
    Presence, PushQueue, UnreadCount,
};
use crate::recent::Recent;
use crate::retry::until_done;
use crate::storm::{Gearbox, StormRules};
use crate::streams::OutStreams;
use commit::{Committed, Ends};
use members::Members;
use turn::{Known, Sorted, is_same, merge_receipts, rejected, sequenced};

/// Conversations per generation whose end this engine remembers.
const FLOORS_MAX: usize = 64 * 1024;

/// One partition's engine.
pub struct IngestEngine<B, C> {
    partition: Partition,
    backend: Arc<B>,
    clock: C,
    members: Arc<Members>,
    streams: Arc<OutStreams>,
    /// Where conversations end in the archive, as this engine read it there or committed it. Right as long as it is the
    /// only one that writes to them and the archive does not go back; where that is in doubt, forgotten.
    floors: Recent<ConversationId, End>,
    /// [`Archive::breaks`] when the floors were last trusted.
    breaks: u64,
    /// How messages of its conversations travel.
    gearbox: Gearbox,
    /// When gears were last looked at for having become quiet.
    ticked_at: Millis,
}

impl<B: Backend, C: Clock> IngestEngine<B, C> {
    /// An engine for one partition.
    #[must_use]
    pub fn new(
        partition: Partition,
        backend: Arc<B>,
        clock: C,
        members: Arc<Members>,
        streams: Arc<OutStreams>,
        rules: Arc<StormRules>,
    ) -> Self {
        let (floors, gearbox) = (Recent::new(FLOORS_MAX), Gearbox::new(rules));
        Self { partition, backend, clock, members, streams, floors, breaks: 0, gearbox, ticked_at: Millis(0) }
    }

    /// Runs until the queue is closed. A consumer that ends is replaced, and what it held is delivered again.
    pub async fn run(mut self) {
        const PAUSE: Duration = Duration::from_millis(200);
        if self.end_storms().await.is_err() {
            return;
        }
        loop {
            match self.consume().await {
                PortError::Closed => return,
                // Its events come again, to this engine if it still is the partition's consumer; else to the one that is.
                error @ PortError::Conflict { .. } => {
                    metrics::counter!(meter::INGEST_ABANDONED).increment(1);
                    tracing::warn!(partition = self.partition.0, %error, "a turn was given up, consuming anew");
                }
                error => tracing::warn!(partition = self.partition.0, %error, "ingest consumer ended, making another"),
            }
            // Another instance may own the partition meanwhile: what was known about it is no longer known.
            self.floors.clear();
            if self.end_storms().await.is_err() {
                return;
            }
            self.clock.sleep(PAUSE).await;
        }
    }

    async fn consume(&mut self) -> PortError {
        let mut consumer = match self.backend.ingest().consume(self.partition).await {
            Ok(consumer) => consumer,
            Err(error) => return error,
        };
        loop {
            let batch = match self.next_batch(&mut consumer).await {
                Ok(batch) => batch,
                Err(error) => return error,
            };
            if let Err(error) = self.turn(batch, &mut consumer).await {
                return error;
            }
        }
    }

    /// Handles one batch. A crash
    /// - before `persist`: the events come again, and get the sequences after the archive's end again, which nobody has seen;
    /// - between `persist` and `ack`: they come again, are found in the archive and pushed again under their sequence.
    ///
    /// # Errors
    /// Those of the consumer. [`PortError::Conflict`] if another engine writes to the same conversations again and again:
    /// the turn is given up before anything of it was pushed.
    async fn turn(&mut self, batch: IngestBatch, consumer: &mut impl IngestConsumer) -> PortResult<()> {
        let sorted = Sorted::from(batch.events);
        let receipts = self.bounded_receipts(sorted.receipts).await?;
        let Committed { known, persist, ends, unfit } = self.commit(sorted.messages, receipts).await?;

        let shifted = self.count(&persist.messages, &ends);
        let audience = self.audience(&persist.messages, &known).await?;
        let mut outgoing = Outgoing::new(&ends, &audience, &self.gearbox);
        outgoing.to_all.extend(shifted.iter().cloned());
        outgoing.add_repetitions(&known, &sorted.conflicts);
        unfit.iter().for_each(|accepted| outgoing.add_unfit(accepted));
        persist.messages.iter().for_each(|message| outgoing.add_message(message));
        persist.receipts.iter().for_each(|receipt| outgoing.add_receipt(receipt));
        let (pushes, filings, cached) = (outgoing.pushes(), outgoing.filings(), outgoing.cached());
        let filing = self.file(filings, &persist.receipts);
        let (published, filed, settled) = join3(self.publish(pushes), filing, self.settle(&ends, &cached)).await;
        filed?;
        // Before the acknowledgement: what no event brings back any more, the hot store knows to have been committed.
        settled?;
        self.file_unreachable(&outgoing, &published?).await?;
        self.pay(&shifted);
        self.keep_pace(&cached).await?;
        consumer.ack(batch.up_to).await?;
        metrics::counter!(meter::INGEST_TURNS).increment(1);
        Ok(())
    }

    /// A receipt cannot read what is not there yet.
    async fn bounded_receipts(&self, receipts: Vec<ReceiptMoved>) -> PortResult<Vec<ReceiptMoved>> {
        let mut receipts = merge_receipts(receipts);
        if receipts.is_empty() {
            return Ok(receipts);
        }
        let conversations: Vec<_> = receipts.iter().map(|receipt| receipt.conversation).collect();
        let archive = self.backend.archive();
        let ends = until_done(&self.clock, "ends", || archive.ends(&conversations)).await?;
        for (receipt, end) in receipts.iter_mut().zip(ends) {
            receipt.delivered = receipt.delivered.min(end.last);
            receipt.read = receipt.read.min(end.last);
        }
        receipts.retain(|receipt| receipt.delivered > Seq(0));
        Ok(receipts)
    }

    /// Who gets the messages of this turn, and where they are.
    async fn audience(&self, messages: &[StoredMessage], known: &[Known]) -> PortResult<Audience> {
        let mut users: FxHashSet<UserId> = FxHashSet::default();
        let mut rooms: FxHashSet<RoomId> = FxHashSet::default();
        for message in messages.iter().chain(known.iter().map(|known| &known.stored)) {
            match message.conversation {
                ConversationId::Private { low, high } => users.extend([low, high]),
                ConversationId::Room(room) => drop(rooms.insert(room)),
                ConversationId::Lobby(_) => {}
            }
        }
        let rooms: Vec<RoomId> = rooms.into_iter().collect();
        let archive = self.backend.archive();
        let rooms = until_done(&self.clock, "members", || self.members.of(&rooms, archive)).await?;
        users.extend(rooms.values().flat_map(|members| members.iter().copied()));
        let users: Vec<UserId> = users.into_iter().collect();
        let hot = self.backend.hot();
        let presence = if users.is_empty() {
            Vec::new()
        } else {
            until_done(&self.clock, "presence", || hot.presence(&users)).await?
        };
        Ok(Audience { rooms, presence: users.into_iter().zip(presence).collect() })
    }

    async fn publish(&self, batches: Vec<(crate::ports::PushTarget, Vec<PushEvent>)>) -> PortResult<Vec<GatewayId>> {
        if batches.is_empty() {
            return Ok(Vec::new());
        }
        let push = self.backend.push();
        let batches = self.streams.stamp(batches);
        let gone = until_done(&self.clock, "publish", || push.publish(batches.clone())).await?;
        self.streams.confirm(&gone);
        Ok(gone)
    }

    async fn file(&self, filings: Vec<Filing>, receipts: &[ReceiptMoved]) -> PortResult<()> {
        let hot = self.backend.hot();
        if !filings.is_empty() {
            until_done(&self.clock, "file", || hot.file(&filings)).await?;
        }
        let read: Vec<(UserId, ConversationId)> = receipts
            .iter()
            .filter(|receipt| receipt.read > Seq(0))
            .map(|receipt| (receipt.user, receipt.conversation))
            .collect();
        if read.is_empty() {
            return Ok(());
        }
        let archive = self.backend.archive();
        let standings = until_done(&self.clock, "standings_of", || archive.standings_of(&read)).await?;
        let count = |((user, conversation), standing): ((UserId, ConversationId), crate::ports::Standing)| {
            (user, UnreadCount { conversation, unread: standing.unread, counted_to: standing.last })
        };
        let counts: Vec<_> = read.into_iter().zip(standings).map(count).collect();
        until_done(&self.clock, "set_unread", || hot.set_unread(&counts)).await
    }

    /// Recipients whose only gateways are gone without having said so are away after all.
    async fn file_unreachable(&self, outgoing: &Outgoing<'_>, gone: &[GatewayId]) -> PortResult<()> {
        if gone.is_empty() {
            return Ok(());
        }
        self.file(outgoing.filings_without(gone), &[]).await
    }
}

/// Who gets this turn's messages, and where they are.
struct Audience {
    rooms: FxHashMap<RoomId, Arc<[UserId]>>,
    presence: FxHashMap<UserId, Presence>,
}

/// What a turn tells the gateways and files for recipients, built in one pass over its messages.
struct Outgoing<'a> {
    ends: &'a Ends,
    audience: &'a Audience,
    gearbox: &'a Gearbox,
    to_all: Vec<PushEvent>,
    to_gateways: FxHashMap<GatewayId, Vec<PushEvent>>,
    filings: FxHashMap<(UserId, ConversationId), (Vec<Seq>, Vec<bytes::Bytes>)>,
    cached: Vec<CacheRun>,
}

impl<'a> Outgoing<'a> {
    fn new(ends: &'a Ends, audience: &'a Audience, gearbox: &'a Gearbox) -> Self {
        let (to_all, to_gateways, filings, cached) = Default::default();
        Self { ends, audience, gearbox, to_all, to_gateways, filings, cached }
    }

    /// Repetitions: the same content is pushed again under its sequence (the first push may not have happened), other
    /// content is rejected. Of several with one id in a batch, the first need not be the one that was stored before.
    fn add_repetitions(&mut self, known: &[Known], conflicts: &[Accepted]) {
        let mut again: Vec<&StoredMessage> = Vec::new();
        let of_known = known.iter().map(|known| (Some(&known.stored), &known.repeated));
        let of_conflicts = conflicts.iter().map(|accepted| {
            let known = known.iter().find(|known| known.stored.message_id == accepted.message_id);
            (known.map(|known| &known.stored), accepted)
        });
        for (stored, repeated) in of_known.chain(of_conflicts) {
            match stored.filter(|stored| is_same(stored, repeated)) {
                Some(stored) => again.push(stored),
                None => self.add_conflict(repeated),
            }
        }
        metrics::counter!(meter::INGEST_REPEATED, "kind" => "same").increment(again.len() as u64);
        // In the order of their sequences, as receivers and counts expect them.
        again.sort_by_key(|message| (message.conversation, message.seq));
        again.dedup_by_key(|message| message.message_id);
        again.into_iter().for_each(|message| self.add_message(message));
    }

    fn add_conflict(&mut self, accepted: &Accepted) {
        metrics::counter!(meter::INGEST_REPEATED, "kind" => "conflict").increment(1);
        let text = "the client_msg_id was used before with another conversation or body";
        let event = rejected(accepted, Code::Conflict, text);
        self.to_gateways.entry(accepted.gateway.clone()).or_default().push(event);
    }

    /// A message that was acknowledged and cannot be kept after all.
    fn add_unfit(&mut self, accepted: &Accepted) {
        let event = rejected(accepted, Code::Internal, "the message cannot be stored");
        self.to_gateways.entry(accepted.gateway.clone()).or_default().push(event);
    }

    fn add_message(&mut self, message: &StoredMessage) {
        let (epoch, gear) = (self.ends[&message.conversation].epoch, self.gearbox.gear_of(&message.conversation));
        let (event, payload) = sequenced(message, epoch, gear);
        match message.conversation {
            ConversationId::Private { low, high } => {
                self.push_to_gateways_of([low, high], &event);
                for recipient in [low, high].into_iter().filter(|user| *user != message.sender) {
                    self.file_for(recipient, message, payload.clone());
                }
            }
            ConversationId::Room(room) => {
                let members = self.audience.rooms.get(&room).cloned();
                for member in members.iter().flat_map(|members| members.iter().copied()) {
                    if member != message.sender {
                        self.file_for(member, message, payload.clone());
                    }
                }
                self.push_or_cache(message, epoch, gear, event, payload);
            }
            ConversationId::Lobby(_) => self.push_or_cache(message, epoch, gear, event, payload),
        }
    }

    /// Pushes a message of a room or lobby, or leaves it to be pulled. The system's are pushed in any case.
    fn push_or_cache(
        &mut self,
        message: &StoredMessage,
        epoch: Epoch,
        gear: Gear,
        event: PushEvent,
        payload: bytes::Bytes,
    ) {
        if gear == Gear::Signal {
            storm::add_to_cache(&mut self.cached, self.gearbox, message, epoch, payload);
        }
        if gear != Gear::Signal || message.sender == UserId::SYSTEM {
            self.to_all.push(event);
        }
    }

    fn cached(&mut self) -> Vec<CacheRun> {
        std::mem::take(&mut self.cached)
    }

    fn add_receipt(&mut self, receipt: &ReceiptMoved) {
        // To all: receipts are rare beside messages, and presence was looked up for messages only.
        self.to_all.push(PushEvent::ReceiptMoved(*receipt));
    }

    fn push_to_gateways_of(&mut self, users: [UserId; 2], event: &PushEvent) {
        let is_uncertain = |user| self.audience.presence.get(user).is_some_and(|presence| presence.uncertain);
        if users.iter().any(is_uncertain) {
            // Whoever holds them will find out.
            self.to_all.push(event.clone());
            return;
        }
        let gateways = users.iter().filter_map(|user| self.audience.presence.get(user)).flat_map(|p| &p.gateways);
        let mut told: smallvec::SmallVec<[&GatewayId; 4]> = smallvec::SmallVec::new();
        for gateway in gateways {
            if !told.contains(&gateway) {
                told.push(gateway);
                match self.to_gateways.get_mut(gateway) {
                    Some(events) => events.push(event.clone()),
                    None => drop(self.to_gateways.insert(gateway.clone(), vec![event.clone()])),
                }
            }
        }
    }

    fn file_for(&mut self, user: UserId, message: &StoredMessage, payload: bytes::Bytes) {
        let (seqs, payloads) = self.filings.entry((user, message.conversation)).or_default();
        seqs.push(message.seq);
        payloads.push(payload);
    }

    fn pushes(&mut self) -> Vec<(crate::ports::PushTarget, Vec<PushEvent>)> {
        use crate::ports::PushTarget;
        let to_gateways = self.to_gateways.drain().map(|(gateway, events)| (PushTarget::Gateway(gateway), events));
        let mut pushes: Vec<_> = to_gateways.collect();
        if !self.to_all.is_empty() {
            pushes.push((PushTarget::All, std::mem::take(&mut self.to_all)));
        }
        pushes
    }

    /// Counts for everybody, inboxes for those who are away.
    fn filings(&self) -> Vec<Filing> {
        self.filings_where(|presence| presence.gateways.is_empty(), true)
    }

    /// Inboxes for those who turned out to be away.
    fn filings_without(&self, gone: &[GatewayId]) -> Vec<Filing> {
        let is_away = |presence: &Presence| {
            !presence.gateways.is_empty() && presence.gateways.iter().all(|gateway| gone.contains(gateway))
        };
        self.filings_where(is_away, false)
    }

    fn filings_where(&self, is_away: impl Fn(&Presence) -> bool, with_present: bool) -> Vec<Filing> {
        let nowhere = Presence::default();
        let mut filings = Vec::with_capacity(self.filings.len());
        for ((user, conversation), (seqs, payloads)) in &self.filings {
            let away = is_away(self.audience.presence.get(user).unwrap_or(&nowhere));
            if away || with_present {
                let inbox = if away { payloads.clone() } else { Vec::new() };
                filings.push(Filing { user: *user, conversation: *conversation, seqs: seqs.clone(), inbox });
            }
        }
        filings
    }
}
