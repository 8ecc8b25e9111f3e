//! The acceptor: from the shards into MQ1, and the confirms back as tickets.
//!
//! One loop per partition. In come events in the order the sessions accepted them; they leave in batches that form while
//! the broker is busy. A crash before the confirm leaves the sender without an ack: it repeats, and the message id finds
//! the first one. A failed publish is answered "try again", a lost confirm "uncertain", and what is more than fair
//! ([`crate::fairness`]) "slow down".

use std::collections::VecDeque;
use std::sync::Arc;

use futures_util::FutureExt as _;
use futures_util::stream::{FuturesUnordered, StreamExt as _};
use tidegate_proto::v1::Code;

use crate::clock::Clock;
use crate::delivery::{Accepting, Confirmed, Mailboxes, Refused, Settled, ShardId, ShardInput, Ticket};
use crate::event::IngestEvent;
use crate::fairness::Rules;
use crate::fairness::gate::Gate;
use crate::ids::{Partition, UserId};
use crate::limits::{
    ACCEPT_QUEUE_BYTES_MAX, ACCEPT_QUEUE_MAX, PUBLISH_BYTES_MAX, PUBLISH_EAGER_MAX, PUBLISH_EVENTS_MAX,
    PUBLISH_WINDOW_MAX,
};
use crate::meter;
use crate::ports::{Archive, Backend, IngestQueue, PortResult};
use crate::queue::{Closed, Queue};
use crate::recent::Recent;

/// The way from the shards to the acceptors: one bounded queue per partition.
#[derive(Clone)]
pub struct AcceptQueues(Arc<[Queue<Accepting>]>);

impl AcceptQueues {
    /// Empty queues.
    #[must_use]
    pub fn new(partitions: u32) -> Self {
        Self((0..partitions).map(|_| Queue::new(ACCEPT_QUEUE_MAX, ACCEPT_QUEUE_BYTES_MAX)).collect())
    }

    /// Moves a turn's events to their partitions, one lock per partition. What does not fit stays in `events`, to be
    /// answered with `CODE_OVERLOADED`. `lanes` is scratch space of the caller.
    pub fn offer(&self, events: &mut VecDeque<Accepting>, lanes: &mut Vec<VecDeque<Accepting>>) {
        let partitions = u32::try_from(self.0.len()).expect("made from a u32");
        lanes.resize_with(self.0.len(), VecDeque::new);
        for accepting in events.drain(..) {
            let partition = accepting.event.conversation().partition(partitions);
            lanes[partition.0 as usize].push_back(accepting);
        }
        for (queue, lane) in self.0.iter().zip(lanes) {
            if !lane.is_empty() {
                queue.offer(lane);
                events.append(lane);
            }
        }
    }

    /// Ends the acceptors once they have published what is there.
    pub fn close(&self) {
        self.0.iter().for_each(Queue::close);
    }
}

/// What a published batch leaves behind: who waits, and for what.
type Waiting = Vec<(Ticket, Confirmed)>;

/// Runs one partition's acceptor until its queue is closed and everything published has been answered.
pub async fn run<B: Backend, M: Mailboxes, C: Clock>(
    partition: Partition,
    queues: AcceptQueues,
    backend: Arc<B>,
    mailboxes: M,
    rules: Rules,
    clock: C,
) {
    let queue = &queues.0[partition.0 as usize];
    let mut gate = Gate::new(rules, Arc::clone(&backend), clock);
    let mut acceptor = Acceptor { partition, backend, mailboxes, known_users: Recent::new(KNOWN_USERS_MAX) };
    let mut in_flight = FuturesUnordered::new();
    let mut taken = Vec::new();
    let mut open = true;
    while open || !in_flight.is_empty() {
        // While the broker is busy a batch forms; a full one leaves at once.
        let pile = if in_flight.len() < PUBLISH_EAGER_MAX { 1 } else { PUBLISH_EVENTS_MAX };
        tokio::select! {
            biased;
            Some(first) = in_flight.next(), if !in_flight.is_empty() => {
                let mut settled = Vec::new();
                acceptor.settle(first, &mut settled);
                // All confirms that are there go back together.
                while let Some(Some(next)) = in_flight.next().now_or_never() {
                    acceptor.settle(next, &mut settled);
                }
                acceptor.post(settled).await;
            }
            () = gate.step(), if gate.is_at_work() => {}
            more = queue.take_pile(pile, PUBLISH_EVENTS_MAX * 4, &mut taken), if open && in_flight.len() < PUBLISH_WINDOW_MAX => {
                if more == Err(Closed) {
                    open = false;
                    continue;
                }
                let mut settled = Vec::new();
                acceptor.check_peers(&mut taken, &mut settled).await;
                hold_back(&mut gate, &mut taken, &mut settled).await;
                for (events, waiting) in chunks(taken.drain(..)) {
                    match acceptor.backend.ingest().publish(partition, events).await {
                        Ok(confirm) => in_flight.push(confirm.map(move |result| (waiting, result))),
                        Err(error) => {
                            tracing::warn!(partition = partition.0, %error, "could not publish");
                            refuse(&mut settled, waiting.into_iter().map(|(ticket, _)| ticket), Code::Unavailable);
                        }
                    }
                }
                acceptor.post(settled).await;
            }
        }
    }
    gate.finish().await;
}

/// Takes out what is more than its sender may send, or all senders together.
async fn hold_back<B: Backend, C: Clock>(
    gate: &mut Gate<B, C>,
    taken: &mut Vec<Accepting>,
    settled: &mut Vec<Settled>,
) {
    let before = settled.len();
    gate.prepare(taken).await;
    taken.retain(|accepting| match gate.pass(accepting) {
        Ok(()) => true,
        Err(retry_after_ms) => {
            let refused = Refused { code: Code::SlowDown, retry_after_ms };
            settled.push(Settled { ticket: accepting.ticket, outcome: Err(refused) });
            false
        }
    });
    count_refused(Code::SlowDown, settled.len() - before);
}

/// Users whose existence was seen; 16 bytes an entry.
const KNOWN_USERS_MAX: usize = 64 * 1024;

struct Acceptor<B, M> {
    partition: Partition,
    backend: Arc<B>,
    mailboxes: M,
    known_users: Recent<UserId, ()>,
}

impl<B: Backend, M: Mailboxes> Acceptor<B, M> {
    /// Takes out what is addressed to users who do not exist. One query for all that are not known yet.
    async fn check_peers(&mut self, taken: &mut Vec<Accepting>, settled: &mut Vec<Settled>) {
        let known_users = &mut self.known_users;
        let mut strangers: Vec<UserId> = taken
            .iter()
            .filter_map(|accepting| accepting.peer)
            .filter(|peer| known_users.get(peer).is_none())
            .collect();
        if strangers.is_empty() {
            return;
        }
        strangers.sort_unstable();
        strangers.dedup();
        let code = match self.backend.archive().users(&strangers).await {
            Ok(found) => {
                found.iter().for_each(|user| self.known_users.insert(user.id, ()));
                strangers.retain(|user| !found.iter().any(|found| found.id == *user));
                Code::UnknownUser
            }
            Err(error) => {
                tracing::warn!(partition = self.partition.0, %error, "could not look up users");
                Code::Unavailable
            }
        };
        if strangers.is_empty() {
            return;
        }
        let is_refused =
            |accepting: &mut Accepting| accepting.peer.is_some_and(|peer| strangers.binary_search(&peer).is_ok());
        refuse(settled, taken.extract_if(.., is_refused).map(|accepting| accepting.ticket), code);
    }

    fn settle(&self, (waiting, result): (Waiting, PortResult<()>), settled: &mut Vec<Settled>) {
        match result {
            Ok(()) => {
                metrics::counter!(meter::ACCEPT_CONFIRMED).increment(waiting.len() as u64);
                settled.extend(waiting.into_iter().map(|(ticket, done)| Settled { ticket, outcome: Ok(done) }));
            }
            Err(error) => {
                tracing::warn!(partition = self.partition.0, %error, "no confirm");
                refuse(settled, waiting.into_iter().map(|(ticket, _)| ticket), Code::Uncertain);
            }
        }
    }

    async fn post(&self, settled: Vec<Settled>) {
        if settled.is_empty() {
            return;
        }
        let mut by_shard: Vec<Vec<Settled>> = (0..self.mailboxes.shards()).map(|_| Vec::new()).collect();
        for one in settled {
            by_shard[usize::from(one.ticket.connection.shard.0)].push(one);
        }
        for (shard, settled) in (0_u8..).map(ShardId).zip(by_shard) {
            if !settled.is_empty() {
                self.mailboxes.post(shard, vec![ShardInput::Settled(settled)]).await;
            }
        }
    }
}

fn refuse(settled: &mut Vec<Settled>, tickets: impl Iterator<Item = Ticket>, code: Code) {
    let before = settled.len();
    settled.extend(tickets.map(|ticket| Settled { ticket, outcome: Err(code.into()) }));
    count_refused(code, settled.len() - before);
}

fn count_refused(code: Code, refused: usize) {
    if refused > 0 {
        metrics::counter!(meter::ACCEPT_REFUSED, "reason" => code.as_str_name()).increment(refused as u64);
    }
}

/// Cuts a turn's events into broker messages.
fn chunks(taken: impl Iterator<Item = Accepting>) -> Vec<(Vec<IngestEvent>, Waiting)> {
    let mut chunks: Vec<(Vec<IngestEvent>, Waiting)> = Vec::new();
    let mut bytes = 0;
    for accepting in taken {
        let confirmed = match &accepting.event {
            IngestEvent::Accepted(accepted) => {
                Confirmed::Message { message_id: accepted.message_id, accepted_at: accepted.accepted_at }
            }
            IngestEvent::ReceiptMoved(_) => Confirmed::Receipt,
        };
        bytes += accepting.event.weight_bytes();
        match chunks.last_mut() {
            Some((events, waiting)) if events.len() < PUBLISH_EVENTS_MAX && bytes <= PUBLISH_BYTES_MAX => {
                events.push(accepting.event);
                waiting.push((accepting.ticket, confirmed));
            }
            _ => {
                bytes = accepting.event.weight_bytes();
                chunks.push((vec![accepting.event], vec![(accepting.ticket, confirmed)]));
            }
        }
    }
    chunks
}

#[cfg(test)]
mod tests;
