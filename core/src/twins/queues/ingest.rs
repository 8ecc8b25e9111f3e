//! The in-process MQ1.
//!
//! In: batches per partition. Out: the same batches, in order, to the partition's one active consumer; the confirm of a
//! batch is its consumer's acknowledgement. What must hold: a batch leaves the queue only by being acknowledged or by
//! the queue's end, and its confirm is answered in either case.

use std::collections::VecDeque;
use std::future::Future;
use std::pin::{Pin, pin};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, ready};

use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, oneshot};

use super::{EMBEDDED_DEAD_BYTES_MAX, EMBEDDED_QUEUE_BYTES_MAX, lock, room_of};
use crate::event::IngestEvent;
use crate::ids::Partition;
use crate::ports::{DeadLetter, DeliveryTag, IngestBatch, IngestConsumer, IngestQueue, PortError, PortResult};

const SERVICE: &str = "embedded queue";

/// The embedded [`IngestQueue`].
///
/// Each partition holds at most [`EMBEDDED_QUEUE_BYTES_MAX`] of batches that were not acknowledged yet; when that is
/// used up, [`publish`](IngestQueue::publish) waits, first come first served. Consumers of one partition stand in line:
/// the first is active until it is dropped, then the next gets what was not acknowledged, in order. The queue ends when
/// its last handle is dropped (consumers take what is left and then get [`PortError::Closed`]) or at once by
/// [`close`](Self::close).
#[derive(Clone)]
pub struct EmbeddedIngestQueue {
    lanes: Arc<Lanes>,
}

impl EmbeddedIngestQueue {
    /// An empty queue of `partitions` partitions; at least one.
    #[must_use]
    pub fn new(partitions: u32) -> Self {
        let lanes = (0..partitions.max(1)).map(|_| Arc::new(Lane::new())).collect();
        Self { lanes: Arc::new(Lanes { lanes, dead: Mutex::default() }) }
    }

    /// Ends the queue now: what it holds is dropped, confirms fail, publishers and consumers get [`PortError::Closed`].
    pub fn close(&self) {
        for lane in &self.lanes.lanes {
            lane.room.close();
            let dropped = {
                let mut state = lock(&lane.state);
                state.closed = true;
                state.taken = 0;
                std::mem::take(&mut state.entries)
            };
            // Confirms fail outside the lock: whoever waits for them may come back at once.
            drop(dropped);
            lane.changed.notify_waiters();
        }
    }

    /// The dead letters that are kept, the oldest first.
    #[must_use]
    pub fn dead_letters(&self) -> Vec<DeadLetter> {
        lock(&self.lanes.dead).letters.iter().cloned().collect()
    }

    fn lane(&self, partition: Partition) -> PortResult<&Arc<Lane>> {
        usize::try_from(partition.0).ok().and_then(|index| self.lanes.lanes.get(index)).ok_or_else(|| {
            PortError::Refused { service: SERVICE, detail: format!("there is no partition {}", partition.0) }
        })
    }
}

impl IngestQueue for EmbeddedIngestQueue {
    type Confirm = EmbeddedConfirm;
    type Consumer = EmbeddedIngestConsumer;

    fn partitions(&self) -> u32 {
        u32::try_from(self.lanes.lanes.len()).expect("made from a u32")
    }

    async fn publish(&self, partition: Partition, events: Vec<IngestEvent>) -> PortResult<EmbeddedConfirm> {
        let lane = self.lane(partition)?;
        let (confirm, confirmed) = oneshot::channel();
        if events.is_empty() {
            let _ = confirm.send(());
            return Ok(EmbeddedConfirm(confirmed));
        }
        let weight_bytes = events.iter().map(IngestEvent::weight_bytes).sum();
        let room = Arc::clone(&lane.room).acquire_many_owned(room_of(weight_bytes)).await;
        let room = room.map_err(|_| PortError::Closed)?;
        {
            let mut state = lock(&lane.state);
            if state.closed {
                return Err(PortError::Closed);
            }
            state.entries.push_back(Entry { events, confirm, _room: room });
        }
        lane.changed.notify_waiters();
        Ok(EmbeddedConfirm(confirmed))
    }

    async fn bury(&self, _: Partition, letters: Vec<DeadLetter>) -> PortResult<()> {
        let mut dead = lock(&self.lanes.dead);
        for letter in letters {
            dead.weight_bytes += letter.weight_bytes();
            dead.letters.push_back(letter);
        }
        while dead.weight_bytes > EMBEDDED_DEAD_BYTES_MAX {
            let Some(oldest) = dead.letters.pop_front() else { break };
            dead.weight_bytes -= oldest.weight_bytes();
        }
        Ok(())
    }

    async fn consume(&self, partition: Partition) -> PortResult<EmbeddedIngestConsumer> {
        let lane = Arc::clone(self.lane(partition)?);
        let ticket = {
            let mut state = lock(&lane.state);
            if state.closed {
                return Err(PortError::Closed);
            }
            let ticket = state.next_ticket;
            state.next_ticket += 1;
            state.line.push_back(ticket);
            ticket
        };
        Ok(EmbeddedIngestConsumer { lane, ticket })
    }
}

/// Resolves when the consumer has acknowledged the batch; with [`PortError::Closed`] when the queue ended before that.
#[derive(Debug)]
pub struct EmbeddedConfirm(oneshot::Receiver<()>);

impl Future for EmbeddedConfirm {
    type Output = PortResult<()>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        Poll::Ready(ready!(Pin::new(&mut self.0).poll(cx)).map_err(|_| PortError::Closed))
    }
}

/// One in the line of a partition's consumers. Cancelling [`next_batch`](IngestConsumer::next_batch) loses nothing.
pub struct EmbeddedIngestConsumer {
    lane: Arc<Lane>,
    ticket: u64,
}

impl IngestConsumer for EmbeddedIngestConsumer {
    async fn next_batch(&mut self, events_max: usize) -> PortResult<IngestBatch> {
        loop {
            let mut changed = pin!(self.lane.changed.notified());
            // Registered before looking, so that what changes after the look wakes us.
            changed.as_mut().enable();
            if let Some(batch) = lock(&self.lane.state).take(self.ticket, events_max)? {
                return Ok(batch);
            }
            changed.await;
        }
    }

    async fn ack(&mut self, up_to: DeliveryTag) -> PortResult<()> {
        let done = lock(&self.lane.state).settle(self.ticket, up_to)?;
        for entry in done {
            // The publisher may have lost interest.
            let _ = entry.confirm.send(());
        }
        Ok(())
    }
}

impl Drop for EmbeddedIngestConsumer {
    fn drop(&mut self) {
        {
            let mut state = lock(&self.lane.state);
            if state.line.front() == Some(&self.ticket) {
                state.taken = 0;
            }
            state.line.retain(|ticket| *ticket != self.ticket);
        }
        self.lane.changed.notify_waiters();
    }
}

/// The partitions. Dropped with the last handle to publish by: consumers then drain what is left.
struct Lanes {
    lanes: Box<[Arc<Lane>]>,
    dead: Mutex<Dead>,
}

/// The newest dead letters, within [`EMBEDDED_DEAD_BYTES_MAX`]; past it the oldest go, since the newest show what is wrong
/// now. They were logged with their reasons when they were buried.
#[derive(Default)]
struct Dead {
    letters: VecDeque<DeadLetter>,
    weight_bytes: usize,
}

impl Drop for Lanes {
    fn drop(&mut self) {
        for lane in &self.lanes {
            lock(&lane.state).ending = true;
            lane.changed.notify_waiters();
        }
    }
}

struct Lane {
    state: Mutex<State>,
    /// Permits are bytes; they lie in the entries.
    room: Arc<Semaphore>,
    /// A batch came, a consumer went, or the queue ended.
    changed: Notify,
}

impl Lane {
    fn new() -> Self {
        Self {
            state: Mutex::default(),
            room: Arc::new(Semaphore::new(EMBEDDED_QUEUE_BYTES_MAX)),
            changed: Notify::new(),
        }
    }
}

struct Entry {
    events: Vec<IngestEvent>,
    confirm: oneshot::Sender<()>,
    /// Given back when the entry goes.
    _room: OwnedSemaphorePermit,
}

#[derive(Default)]
struct State {
    /// Batches that were not acknowledged; the first `taken` of them are with the active consumer.
    entries: VecDeque<Entry>,
    taken: usize,
    /// Batches acknowledged so far; the entry at index `i` has the tag `settled + i`.
    settled: u64,
    /// Consumers by their ticket; the first is active.
    line: VecDeque<u64>,
    next_ticket: u64,
    /// There will be no more batches.
    ending: bool,
    /// The batches are gone as well.
    closed: bool,
}

impl State {
    /// `None`: nothing for this consumer at present.
    fn take(&mut self, ticket: u64, events_max: usize) -> PortResult<Option<IngestBatch>> {
        if self.closed {
            return Err(PortError::Closed);
        }
        if self.line.front() != Some(&ticket) {
            return Ok(None);
        }
        // Clones are reference counts and plain fields; the originals stay for a next consumer.
        let mut events: Vec<IngestEvent> = Vec::new();
        while let Some(entry) = self.entries.get(self.taken) {
            if !events.is_empty() && events.len() + entry.events.len() > events_max {
                break;
            }
            events.extend_from_slice(&entry.events);
            self.taken += 1;
        }
        if !events.is_empty() {
            let up_to = DeliveryTag(self.settled + self.taken as u64 - 1);
            return Ok(Some(IngestBatch { events, up_to }));
        }
        if self.ending && self.entries.is_empty() { Err(PortError::Closed) } else { Ok(None) }
    }

    fn settle(&mut self, ticket: u64, up_to: DeliveryTag) -> PortResult<Vec<Entry>> {
        if self.closed {
            return Err(PortError::Closed);
        }
        let taken_to = self.settled + self.taken as u64;
        if self.line.front() != Some(&ticket) || up_to.0 >= taken_to {
            return Err(PortError::Refused { service: SERVICE, detail: "acknowledged what it was not given".into() });
        }
        // Everything up to the tag may have been acknowledged before.
        let count = usize::try_from((up_to.0 + 1).saturating_sub(self.settled)).expect("at most `taken`");
        self.taken -= count;
        self.settled += count as u64;
        Ok(self.entries.drain(..count).collect())
    }
}
