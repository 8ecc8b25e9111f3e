//! The bounded queue between a shard and everybody else: a buffer that is swapped, and a wake-up that carries no data.
//!
//! Producers add many items under one short lock; the consumer takes all that has piled up in one go. The queue counts
//! items and their bytes, checks both before the add, and has two policies when full: [`Queue::offer`] leaves the rest with
//! the caller (who answers "overloaded"), [`Queue::push`] waits (backpressure). There is one consumer.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

/// What an item holds on to, so that a queue of few large items is as bounded as one of many small ones.
pub trait Weigh {
    /// Bytes kept alive by this item, roughly.
    fn weight_bytes(&self) -> usize;
}

/// The queue was closed by its consumer or at the end of the process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the queue is closed")]
pub struct Closed;

/// A bounded multi-producer, single-consumer queue of batches.
pub struct Queue<T> {
    state: Mutex<State<T>>,
    filled: Notify,
    room: Notify,
    items_max: usize,
    bytes_max: usize,
}

struct State<T> {
    items: VecDeque<T>,
    bytes: usize,
    closed: bool,
}

impl<T: Weigh> Queue<T> {
    /// An empty queue with its two bounds. A single item above `bytes_max` is still taken when the queue is empty, so
    /// that it cannot wait for ever.
    #[must_use]
    pub fn new(items_max: usize, bytes_max: usize) -> Self {
        let state = State { items: VecDeque::new(), bytes: 0, closed: false };
        Self { state: Mutex::new(state), filled: Notify::new(), room: Notify::new(), items_max, bytes_max }
    }

    /// Adds from the front of `items` what fits; the rest stays there. A closed queue takes nothing.
    pub fn offer(&self, items: &mut VecDeque<T>) {
        let added = {
            let mut state = self.lock();
            let mut added = false;
            while let Some(item) = items.front() {
                if state.closed || !self.has_room(&state, item) {
                    break;
                }
                state.bytes += item.weight_bytes();
                state.items.extend(items.pop_front());
                added = true;
            }
            added
        };
        if added {
            self.filled.notify_one();
        }
    }

    /// Adds all of `items` in order, waiting for room as often as needed.
    ///
    /// # Errors
    /// [`Closed`] if the queue closes before everything was added; `items` holds the rest.
    pub async fn push(&self, items: &mut VecDeque<T>) -> Result<(), Closed> {
        loop {
            // Registered before looking, so that room made in between is not missed.
            let room = self.room.notified();
            self.offer(items);
            if items.is_empty() {
                return Ok(());
            }
            if self.lock().closed {
                return Err(Closed);
            }
            room.await;
        }
    }

    /// Waits until there is an item, then moves up to `items_max` to `into`.
    ///
    /// # Errors
    /// [`Closed`] once the queue is closed and empty.
    pub async fn take(&self, items_max: usize, into: &mut Vec<T>) -> Result<(), Closed> {
        self.take_pile(1, items_max, into).await
    }

    /// As [`Queue::take`], but waits until at least `items_min` have piled up, or the queue is closed.
    ///
    /// # Errors
    /// As for [`Queue::take`].
    pub async fn take_pile(&self, items_min: usize, items_max: usize, into: &mut Vec<T>) -> Result<(), Closed> {
        loop {
            let filled = self.filled.notified();
            if self.take_now(items_min, items_max, into)? {
                return Ok(());
            }
            filled.await;
        }
    }

    fn take_now(&self, items_min: usize, items_max: usize, into: &mut Vec<T>) -> Result<bool, Closed> {
        {
            let mut state = self.lock();
            if state.closed && state.items.is_empty() {
                return Err(Closed);
            }
            if state.items.len() < items_min && !state.closed {
                return Ok(false);
            }
            let count = state.items.len().min(items_max);
            let taken: usize = state.items.iter().take(count).map(Weigh::weight_bytes).sum();
            state.bytes -= taken;
            into.extend(state.items.drain(..count));
            if state.items.is_empty() && state.items.capacity() > 1024 {
                // A burst's buffer is not kept for ever.
                state.items = VecDeque::new();
            }
        }
        self.room.notify_waiters();
        Ok(true)
    }

    /// Takes no more items; the consumer still gets what is there.
    pub fn close(&self) {
        self.lock().closed = true;
        self.filled.notify_one();
        self.room.notify_waiters();
    }

    /// Items waiting.
    #[must_use]
    pub fn len(&self) -> usize {
        self.lock().items.len()
    }

    /// Whether nothing waits.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn has_room(&self, state: &State<T>, item: &T) -> bool {
        state.items.is_empty()
            || (state.items.len() < self.items_max && state.bytes + item.weight_bytes() <= self.bytes_max)
    }

    fn lock(&self) -> MutexGuard<'_, State<T>> {
        // Nothing panics while holding it: the state is whole even if the lock says otherwise.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Item(usize);

    impl Weigh for Item {
        fn weight_bytes(&self) -> usize {
            self.0
        }
    }

    fn items(weights: &[usize]) -> VecDeque<Item> {
        weights.iter().copied().map(Item).collect()
    }

    #[test]
    fn what_does_not_fit_stays_with_the_caller() {
        let queue = Queue::new(3, 100);
        let mut offered = items(&[10, 10, 10, 10]);
        queue.offer(&mut offered);
        assert_eq!((queue.len(), offered.len()), (3, 1), "bound by items");

        let queue = Queue::new(10, 100);
        let mut offered = items(&[60, 60]);
        queue.offer(&mut offered);
        assert_eq!((queue.len(), offered.len()), (1, 1), "bound by bytes");

        let queue = Queue::new(10, 100);
        let mut offered = items(&[500, 1]);
        queue.offer(&mut offered);
        assert_eq!((queue.len(), offered.len()), (1, 1), "one too large is taken alone");
    }

    #[tokio::test]
    async fn a_waiting_producer_goes_on_when_the_consumer_takes() {
        let queue = Queue::new(2, 1000);
        let produce = async {
            let mut offered = items(&[1, 2, 3, 4, 5]);
            queue.push(&mut offered).await
        };
        let consume = async {
            let mut taken = Vec::new();
            while taken.len() < 5 {
                queue.take(1, &mut taken).await.expect("open");
            }
            taken.iter().map(|item| item.0).collect::<Vec<_>>()
        };
        let (produced, consumed) = tokio::join!(produce, consume);
        assert_eq!((produced, consumed), (Ok(()), vec![1, 2, 3, 4, 5]));
    }

    #[tokio::test]
    async fn a_closed_queue_is_emptied_before_it_ends() {
        let queue = Queue::new(2, 1000);
        queue.offer(&mut items(&[1]));
        queue.close();
        let mut rest = items(&[2]);
        assert_eq!(queue.push(&mut rest).await, Err(Closed));
        let mut taken = Vec::new();
        assert_eq!(queue.take(9, &mut taken).await, Ok(()));
        assert_eq!(queue.take(9, &mut taken).await, Err(Closed));
        assert_eq!(taken.len(), 1);
    }
}
