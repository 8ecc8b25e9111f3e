//! How a gateway learns that pushes were lost on their way to it, also if the lost one was the last.
//!
//! MQ2 does not keep what it carries: a broker's restart or a full queue loses pushes in silence. So every engine numbers the
//! batches it sends to each target, a *stream*; a [`StreamMark`] in front of a batch says how many there were before it. A
//! beacon, every [`BEACON_INTERVAL`], is a mark without a batch. Whoever receives a mark that is ahead of what it has counted
//! has missed something. The beacons of an engine that is gone stop, and whoever followed it may have missed its last batch.
//! The cost depends on the number of engines and gateways, not of connections or messages.
//!
//! Always: a number is given once and repeated with its batch; a beacon names only what MQ2 has confirmed, so it cannot
//! overtake the batch it vouches for.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rustc_hash::FxHashMap;

use crate::clock::Clock;
use crate::event::{PushEvent, StreamMark};
use crate::ids::{ConversationId, GatewayId, Millis, StreamId};
use crate::limits::{PUBLISH_BYTES_MAX, PUSH_BATCH_MAX};
use crate::ports::{Backend, PushQueue as _, PushTarget};

/// Pause between two beacons: a lost last push is noticed within about this time.
pub const BEACON_INTERVAL: Duration = Duration::from_secs(5);

/// A stream that is silent for so long has ended with its engine: three beacons may be lost or late.
const STREAM_SILENCE_MAX: Duration = Duration::from_secs(4 * BEACON_INTERVAL.as_secs());

/// Streams a gateway follows at most: of a thousand engines, with room for those that are gone.
const STREAMS_MAX: usize = 4096;

/// Pushes for one target, ready for MQ2.
pub type Batch = (PushTarget, Vec<PushEvent>);

/// One engine's side: numbers what it sends. Locked once per turn and once per round of beacons, never across an await.
pub struct OutStreams {
    /// Random, so that streams of different engines and lives never share a number.
    base: u64,
    state: Mutex<OutState>,
}

#[derive(Default)]
struct OutState {
    begun: u64,
    streams: FxHashMap<PushTarget, OutStream>,
    /// Pushes that are only given now and then, each the latest of its conversation. They stand here so that whoever goes
    /// on with these streams gives what its predecessor owed.
    owed: FxHashMap<ConversationId, PushEvent>,
}

struct OutStream {
    id: StreamId,
    /// Batches numbered so far.
    sent: u64,
    /// Batches that MQ2 is known to have.
    confirmed: u64,
}

impl OutStreams {
    /// Streams of one engine. `base` must be random.
    #[must_use]
    pub fn new(base: u64) -> Self {
        Self { base, state: Mutex::default() }
    }

    /// Cuts each target's events into batches of one broker message each, and puts its mark in front of every batch.
    #[must_use]
    pub fn stamp(&self, pushes: Vec<Batch>) -> Vec<Batch> {
        let mut state = self.lock();
        let mut stamped = Vec::with_capacity(pushes.len());
        for (target, events) in pushes {
            let OutState { begun, streams, .. } = &mut *state;
            let stream = streams.entry(target.clone()).or_insert_with(|| {
                *begun += 1;
                OutStream { id: StreamId(self.base.wrapping_add(*begun)), sent: 0, confirmed: 0 }
            });
            let mut events = events.into_iter().peekable();
            while events.peek().is_some() {
                let mark = StreamMark { stream: stream.id, before: stream.sent, after: stream.sent + 1 };
                stream.sent += 1;
                let mut batch = vec![PushEvent::Marked(mark)];
                let mut bytes = 0;
                while let Some(event) = events.next_if(|event| {
                    bytes += event.weight_bytes();
                    batch.len() == 1 || (batch.len() < PUSH_BATCH_MAX && bytes <= PUBLISH_BYTES_MAX)
                }) {
                    batch.push(event);
                }
                stamped.push((target.clone(), batch));
            }
        }
        stamped
    }

    /// MQ2 has everything that was stamped; targets that are gone are forgotten.
    pub fn confirm(&self, gone: &[GatewayId]) {
        let mut state = self.lock();
        state.streams.values_mut().for_each(|stream| stream.confirmed = stream.sent);
        state.forget(gone);
    }

    /// Something about the conversation is to be pushed a little later; it replaces what was owed before.
    pub fn owe(&self, conversation: ConversationId, event: PushEvent) {
        self.lock().owed.insert(conversation, event);
    }

    /// It was pushed, and MQ2 has it.
    pub fn pay(&self, conversation: ConversationId, event: &PushEvent) {
        let mut state = self.lock();
        if state.owed.get(&conversation) == Some(event) {
            state.owed.remove(&conversation);
        }
    }

    /// All that is owed.
    #[must_use]
    pub fn owed(&self) -> Vec<(ConversationId, PushEvent)> {
        self.lock().owed.iter().map(|(conversation, event)| (*conversation, event.clone())).collect()
    }

    fn beacons(&self) -> Vec<Batch> {
        let state = self.lock();
        let beacon = |(target, stream): (&PushTarget, &OutStream)| {
            let mark = StreamMark { stream: stream.id, before: stream.confirmed, after: stream.confirmed };
            (target.clone(), vec![PushEvent::Marked(mark)])
        };
        state.streams.iter().filter(|(_, stream)| stream.confirmed > 0).map(beacon).collect()
    }

    fn lock(&self) -> MutexGuard<'_, OutState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl OutState {
    fn forget(&mut self, gone: &[GatewayId]) {
        self.streams.retain(|target, _| !matches!(target, PushTarget::Gateway(id) if gone.contains(id)));
    }
}

/// Sends the beacons of all this process's engines, for ever.
pub async fn run_beacons<B: Backend, C: Clock>(streams: Vec<Arc<OutStreams>>, backend: Arc<B>, clock: C) {
    loop {
        clock.sleep(BEACON_INTERVAL).await;
        let beacons: Vec<Batch> = streams.iter().flat_map(|streams| streams.beacons()).collect();
        if beacons.is_empty() {
            continue;
        }
        match backend.push().publish(beacons).await {
            Ok(gone) => streams.iter().for_each(|streams| streams.lock().forget(&gone)),
            // The next round is near, and says the same.
            Err(error) => tracing::debug!(%error, "could not send beacons"),
        }
    }
}

/// A gateway's side: counts what arrives.
#[derive(Default)]
pub struct InStreams {
    streams: FxHashMap<StreamId, InStream>,
}

struct InStream {
    counted: u64,
    heard_at: Millis,
}

/// What a mark told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Heard {
    /// Everything before it is here.
    InOrder,
    /// Something before it is not.
    Missed,
}

impl InStreams {
    /// Takes a mark in.
    pub fn hear(&mut self, now: Millis, mark: StreamMark) -> Heard {
        let mut heard = Heard::InOrder;
        if self.streams.len() >= STREAMS_MAX && !self.streams.contains_key(&mark.stream) {
            heard = self.end_silent(now);
            if self.streams.len() >= STREAMS_MAX {
                self.streams.clear();
                return Heard::Missed;
            }
        }
        // A stream that is new here counts from zero: one that had begun before may have lost something since we listen.
        let stream = self.streams.entry(mark.stream).or_insert(InStream { counted: 0, heard_at: now });
        stream.heard_at = now;
        if mark.before > stream.counted {
            heard = Heard::Missed;
        }
        stream.counted = stream.counted.max(mark.after);
        heard
    }

    /// Forgets streams that have fallen silent. Their engines are gone, and nobody vouches any more for the last batches of
    /// each: they may have been lost.
    pub fn end_silent(&mut self, now: Millis) -> Heard {
        let silence_max = u64::try_from(STREAM_SILENCE_MAX.as_millis()).expect("seconds");
        let before = self.streams.len();
        self.streams.retain(|_, stream| now.0.saturating_sub(stream.heard_at.0) < silence_max);
        if self.streams.len() < before { Heard::Missed } else { Heard::InOrder }
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use tidegate_proto::v1::Gear;

    use super::*;
    use crate::ids::{Epoch, Seq, UserId};

    fn event(bytes: usize) -> PushEvent {
        let conversation = ConversationId::private(UserId(1), UserId(2)).expect("two users");
        PushEvent::Sequenced {
            conversation,
            epoch: Epoch(1),
            seq: Seq(1),
            sender: UserId(1),
            gear: Gear::Direct,
            payload: Bytes::from(vec![0; bytes]),
        }
    }

    fn gateway(name: &str) -> PushTarget {
        PushTarget::Gateway(name.parse().expect("legal"))
    }

    fn mark_of(batch: &Batch) -> StreamMark {
        match batch.1.first() {
            Some(PushEvent::Marked(mark)) => *mark,
            other => panic!("a batch begins with its mark, not {other:?}"),
        }
    }

    #[test]
    fn what_arrives_in_order_is_not_missed_and_repetitions_are_harmless() {
        let (out, mut heard) = (OutStreams::new(77), InStreams::default());
        for _ in 0..3 {
            let batch = out.stamp(vec![(PushTarget::All, vec![event(1), event(1)])]).remove(0);
            assert_eq!(batch.1.len(), 3);
            for _ in 0..2 {
                assert_eq!(heard.hear(Millis(1), mark_of(&batch)), Heard::InOrder);
            }
        }
        assert!(out.beacons().is_empty(), "nothing is vouched for before it is confirmed");
        out.confirm(&[]);
        assert_eq!(heard.hear(Millis(1), mark_of(&out.beacons()[0])), Heard::InOrder);
    }

    #[test]
    fn a_lost_batch_is_noticed_by_the_next_and_a_lost_last_one_by_the_beacon() {
        let out = OutStreams::new(77);
        let batches: Vec<_> = (0..3).map(|_| mark_of(&out.stamp(vec![(PushTarget::All, vec![event(1)])])[0])).collect();
        out.confirm(&[]);
        let beacon = mark_of(&out.beacons()[0]);

        let mut heard = InStreams::default();
        assert_eq!(heard.hear(Millis(1), batches[0]), Heard::InOrder);
        assert_eq!(heard.hear(Millis(1), batches[2]), Heard::Missed);
        assert_eq!(heard.hear(Millis(1), beacon), Heard::InOrder, "told once");

        let mut heard = InStreams::default();
        assert_eq!(heard.hear(Millis(1), batches[0]), Heard::InOrder);
        assert_eq!(heard.hear(Millis(1), batches[1]), Heard::InOrder);
        assert_eq!(heard.hear(Millis(1), beacon), Heard::Missed);
    }

    #[test]
    fn targets_have_streams_of_their_own_and_a_gateway_that_is_gone_loses_its() {
        let out = OutStreams::new(77);
        let pushes = vec![(gateway("a"), vec![event(1)]), (gateway("b"), vec![event(1)])];
        let stamped = out.stamp(pushes);
        assert_ne!(mark_of(&stamped[0]).stream, mark_of(&stamped[1]).stream);
        out.confirm(&["a".parse().expect("legal")]);
        let beacons: Vec<_> = out.beacons().into_iter().map(|(target, _)| target).collect();
        assert_eq!(beacons, [gateway("b")]);
        let again = mark_of(&out.stamp(vec![(gateway("a"), vec![event(1)])])[0]);
        assert_eq!((again.before, again.stream == mark_of(&stamped[0]).stream), (0, false), "a new life, a new stream");
    }

    #[test]
    fn every_broker_message_has_a_mark() {
        let out = OutStreams::new(77);
        let stamped = out.stamp(vec![(PushTarget::All, (0..20).map(|_| event(16 * 1024)).collect())]);
        assert!(stamped.len() > 1);
        for (n, batch) in (0..).zip(&stamped) {
            assert_eq!(mark_of(batch).before, n);
            assert!(batch.1.iter().map(PushEvent::weight_bytes).sum::<usize>() <= PUBLISH_BYTES_MAX);
        }
        assert_eq!(stamped.iter().map(|batch| batch.1.len() - 1).sum::<usize>(), 20);
    }

    #[test]
    fn the_end_of_a_stream_is_noticed_once() {
        let mut heard = InStreams::default();
        let silence_ms = u64::try_from(STREAM_SILENCE_MAX.as_millis()).expect("seconds");
        let mark = |stream| StreamMark { stream: StreamId(stream), before: 0, after: 1 };
        assert_eq!(heard.hear(Millis(0), mark(1)), Heard::InOrder);
        assert_eq!(heard.hear(Millis(5), mark(2)), Heard::InOrder);
        assert_eq!(heard.end_silent(Millis(silence_ms - 1)), Heard::InOrder);
        assert_eq!(
            heard.end_silent(Millis(silence_ms)),
            Heard::Missed,
            "its last batch may be lost, and nobody vouches"
        );
        assert_eq!(heard.end_silent(Millis(silence_ms)), Heard::InOrder, "told once");
        assert_eq!(heard.end_silent(Millis(silence_ms + 5)), Heard::Missed, "the other one");
    }

    #[test]
    fn streams_that_ended_are_forgotten() {
        let mut heard = InStreams::default();
        for n in 0..2 * STREAMS_MAX as u64 {
            let mark = StreamMark { stream: StreamId(n), before: 0, after: 1 };
            let told = heard.hear(Millis(n * 1000), mark);
            assert!(told == Heard::InOrder || n >= STREAMS_MAX as u64, "only when those that ended make room");
            assert!(heard.streams.len() <= STREAMS_MAX);
        }
    }
}
