//! Storms in the engine: which gear a turn's messages travel in, what goes into the lobby cache, and who is told when.
//!
//! In come what a turn committed and the passing of time; out go gear changes and notices on MQ2. What always holds: a notice
//! follows what it speaks of into the cache; before a gear goes back, or the partition may be another engine's, the owed
//! notice is given. What is owed stands in the streams, so that another engine of this process gives it; when the process dies
//! it is lost with its streams, whose silence tells clients to sync.

use std::pin::pin;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::{Either, select};
use rustc_hash::FxHashMap;

use super::IngestEngine;
use super::commit::Ends;
use crate::clock::Clock;
use crate::event::{PushEvent, StoredMessage};
use crate::ids::{ConversationId, Epoch, Millis, Seq};
use crate::limits::INGEST_BATCH_MAX;
use crate::meter;
use crate::ports::{Backend, CacheRun, IngestBatch, IngestConsumer, PortResult, PushTarget};
use crate::storm::gearbox::Notice;
use crate::storm::{Gearbox, Shift};

/// Between two looks at gears that may go back.
const TICK: Duration = Duration::from_millis(250);

impl<B: Backend, C: Clock> IngestEngine<B, C> {
    /// The next batch; while none comes, notices are given and gears go back in time.
    pub(super) async fn next_batch(&mut self, consumer: &mut impl IngestConsumer) -> PortResult<IngestBatch> {
        let clock = self.clock.clone();
        let mut next = pin!(consumer.next_batch(INGEST_BATCH_MAX));
        while self.gearbox.is_busy() {
            let notice_ms = self.gearbox.next_notice_in_ms(self.clock.now());
            let pause = notice_ms.map_or(TICK, |ms| Duration::from_millis(ms).min(TICK));
            match select(next.as_mut(), pin!(clock.sleep(pause))).await {
                Either::Left((batch, _)) => return batch,
                Either::Right(_) => self.keep_pace(&[]).await?,
            }
        }
        next.await
    }

    /// Counts what a turn committed. What clients are told before its messages: changes of gear.
    pub(super) fn count(&mut self, messages: &[StoredMessage], ends: &Ends) -> Vec<PushEvent> {
        let mut runs: FxHashMap<ConversationId, (Seq, Seq)> = FxHashMap::default();
        for message in messages {
            let run = runs.entry(message.conversation).or_insert((message.seq, message.seq));
            run.1 = message.seq;
        }
        let now = self.clock.now();
        let mut told = Vec::new();
        for (conversation, (first, last)) in runs {
            let epoch = ends[&conversation].epoch;
            if let Some(shift) = self.gearbox.committed(now, conversation, epoch, first, last) {
                self.tell(now, &shift, &mut told);
            }
        }
        told
    }

    /// Gives the notices that are due, `cached` among them, and lets gears go back that have become quiet.
    pub(super) async fn keep_pace(&mut self, cached: &[CacheRun]) -> PortResult<()> {
        let mut messages = 0;
        for run in cached {
            messages += run.messages.len();
            if let Some((last, _)) = run.messages.last()
                && let Some(notice) = self.gearbox.cached(&run.conversation, *last)
            {
                self.streams.owe(run.conversation, noticed(&notice));
            }
        }
        metrics::counter!(meter::STORM_CACHED).increment(messages as u64);
        if !self.gearbox.is_busy() {
            return Ok(());
        }
        let now = self.clock.now();
        let mut told: Vec<PushEvent> = self.gearbox.due_notices(now).iter().map(noticed).collect();
        if u128::from(now.0.saturating_sub(self.ticked_at.0)) >= TICK.as_millis() {
            self.ticked_at = now;
            for shift in self.gearbox.tick(now) {
                self.tell(now, &shift, &mut told);
            }
        }
        self.tell_everybody(told).await
    }

    /// The partition may have been, or may be, another engine's: what is owed is given, and all begins in direct gear.
    pub(super) async fn end_storms(&mut self) -> PortResult<()> {
        self.gearbox.clear();
        self.tell_everybody(self.streams.owed().into_iter().map(|(_, event)| event).collect()).await
    }

    fn tell(&mut self, now: Millis, shift: &Shift, told: &mut Vec<PushEvent>) {
        let Shift { conversation, was, is, from, per_s } = *shift;
        metrics::counter!(meter::STORM_SHIFTS, "gear" => is.as_str_name()).increment(1);
        tracing::info!(%conversation, was = was.as_str_name(), is = is.as_str_name(), from = from.seq.0, per_s, "gear changed");
        told.extend(self.gearbox.owed_notice(now, &conversation).iter().map(noticed));
        told.push(PushEvent::GearChanged { conversation, gear: is, from });
    }

    async fn tell_everybody(&self, told: Vec<PushEvent>) -> PortResult<()> {
        if told.is_empty() {
            return Ok(());
        }
        self.publish(vec![(PushTarget::All, told.clone())]).await?;
        self.pay(&told);
        Ok(())
    }

    /// MQ2 has them: the notices among them are not owed any more.
    pub(super) fn pay(&self, told: &[PushEvent]) {
        for event in told {
            if let PushEvent::Noticed { conversation, .. } = event {
                metrics::counter!(meter::STORM_NOTICES).increment(1);
                self.streams.pay(*conversation, event);
            }
        }
    }
}

fn noticed(notice: &Notice) -> PushEvent {
    let Notice { conversation, latest, spread_ms } = *notice;
    PushEvent::Noticed { conversation, latest, spread_ms }
}

/// Adds a message to its conversation's run; one that does not follow begins another.
pub(super) fn add_to_cache(
    cached: &mut Vec<CacheRun>,
    gearbox: &Gearbox,
    message: &StoredMessage,
    epoch: Epoch,
    payload: Bytes,
) {
    let follows = |run: &&mut CacheRun| {
        run.conversation == message.conversation
            && run.messages.last().is_some_and(|(last, _)| last.next() == message.seq)
    };
    if let Some(run) = cached.iter_mut().rev().find(follows) {
        run.messages.push((message.seq, payload));
        return;
    }
    let Some(rule) = gearbox.rule_of(&message.conversation) else { return };
    cached.push(CacheRun {
        conversation: message.conversation,
        epoch,
        messages: vec![(message.seq, payload)],
        messages_max: rule.cache_messages_max,
        bytes_max: rule.cache_bytes_max,
        keep_for: rule.cache,
    });
}

#[cfg(test)]
mod tests;
