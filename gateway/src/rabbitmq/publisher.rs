//! One publishing channel with confirms.
//!
//! In: messages, in order, through a bounded queue. Out: for each, whether the broker took it, returned it, or nobody
//! knows. What must hold: order on the channel is the order of [`Publisher::publish`]; every message is answered within
//! the timeout; no more than [`UNCONFIRMED_MAX`] are with the broker unanswered; a returned message is never mistaken for
//! one that was taken.
//!
//! The last point needs care. The broker acknowledges an unroutable message like any other, after returning it. lapin
//! hands a returned message to whichever confirm completes next, and completes those of a multiple acknowledgement in no
//! order, so the confirm of a returned message may come back clean and another's carry the return. Two things repair
//! that: each message has its number as message id, so that a return names its message; and one task owns all confirms
//! and answers none before it has looked at all that completed up to then. A return is always in there: it was handed to
//! a confirm that completed earlier than, or is, the message's own.

use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use futures_util::future::BoxFuture;
use futures_util::stream::FuturesUnordered;
use futures_util::{FutureExt as _, StreamExt as _, poll};
use lapin::options::{BasicPublishOptions, ConfirmSelectOptions};
use lapin::types::{FieldTable, ShortString};
use lapin::{BasicProperties, Channel, Confirmation};
use tidegate_core::ids::Partition;
use tidegate_core::limits::PUBLISH_WINDOW_MAX;
use tidegate_core::ports::{PortError, PortResult};
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, sleep_until, timeout};

use super::connection::{Link, Live};
use super::topology::{Kind, Topology};
use super::unavailable;

/// Messages with the broker that it has not confirmed. A caller's window of batches fits, each split by kind.
const UNCONFIRMED_MAX: usize = PUBLISH_WINDOW_MAX * Kind::ALL.len();

/// Messages handed over that the channel has not taken yet; beyond, `publish` waits.
const HANDED_OVER_MAX: usize = PUBLISH_WINDOW_MAX;

/// AMQP 0-9-1, basic class, property delivery-mode.
const TRANSIENT: u8 = 1;
const PERSISTENT: u8 = 2;

/// A message for the broker.
pub(super) struct Outgoing {
    pub(super) exchange: ShortString,
    pub(super) routing_key: ShortString,
    pub(super) payload: Vec<u8>,
    pub(super) delivery: Delivery,
    pub(super) headers: Option<FieldTable>,
}

/// What is asked of the broker for one message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Delivery {
    /// Kept on disk, and returned if no queue takes it; a return makes the channel declare its topology again.
    Durable,
    /// In memory, and returned if no queue takes it.
    ToOne,
    /// In memory, to as many queues as there are, be it none.
    ToAll,
}

/// What the broker did with a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    /// It has it in every queue that is bound.
    Taken,
    /// No queue is bound; nobody will get it.
    Returned,
}

/// What the channel makes sure to exist.
#[derive(Clone, Copy)]
pub(super) enum Declares {
    Ingest(Partition),
    Push,
}

/// The answer for one message, to come.
pub(super) struct Pending(oneshot::Receiver<PortResult<Outcome>>);

impl Future for Pending {
    type Output = PortResult<Outcome>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let answer = ready!(Pin::new(&mut self.0).poll(cx));
        Poll::Ready(answer.unwrap_or_else(|_| Err(unavailable("the publisher ended"))))
    }
}

/// Hands messages to the task that owns the channel. Cheap to clone; the task ends with the last handle.
#[derive(Clone)]
pub(super) struct Publisher {
    orders: mpsc::Sender<Order>,
    link: Link,
}

struct Order {
    message: Outgoing,
    due: Instant,
    answer: oneshot::Sender<PortResult<Outcome>>,
}

impl Publisher {
    pub(super) fn start(link: &Link, topology: &Topology, declares: Declares) -> Self {
        let (orders, incoming) = mpsc::channel(HANDED_OVER_MAX);
        let courier = Courier {
            orders: incoming,
            link: link.clone(),
            topology: topology.clone(),
            declares,
            open: None,
            flights: FuturesUnordered::new(),
            waiting: BTreeMap::new(),
            returned: BTreeSet::new(),
            last_number: 0,
        };
        tokio::spawn(courier.run());
        Self { orders, link: link.clone() }
    }

    /// Hands over all messages or none. Their answers come within the timeout, counted from now.
    ///
    /// # Errors
    /// [`PortError::Unavailable`] if they were not handed over: no connection, publishing blocked, no room in time.
    pub(super) async fn publish(&self, messages: Vec<Outgoing>) -> PortResult<Vec<Pending>> {
        self.link.unblocked()?;
        let due = Instant::now() + self.link.timeout();
        let room = timeout(self.link.timeout(), self.orders.reserve_many(messages.len())).await;
        let room = room.map_err(|_| unavailable("too much is unconfirmed"))?;
        let room = room.map_err(|_| unavailable("the publisher ended"))?;
        let send = |(permit, message): (mpsc::Permit<'_, Order>, Outgoing)| {
            let (answer, pending) = oneshot::channel();
            permit.send(Order { message, due, answer });
            Pending(pending)
        };
        Ok(room.zip(messages).map(send).collect())
    }
}

type Flight = BoxFuture<'static, (u64, lapin::Result<Confirmation>)>;

/// The task that owns the channel.
struct Courier {
    orders: mpsc::Receiver<Order>,
    link: Link,
    topology: Topology,
    declares: Declares,
    open: Option<Open>,
    /// Messages on their way, whether somebody still waits for the answer or not.
    flights: FuturesUnordered<Flight>,
    /// Who waits, by number, so oldest first.
    waiting: BTreeMap<u64, Waiter>,
    /// Messages that came back, until their own confirm completes.
    returned: BTreeSet<u64>,
    last_number: u64,
}

struct Open {
    live: Arc<Live>,
    channel: Channel,
    /// The topology has shown a hole.
    declare_again: bool,
}

struct Waiter {
    due: Instant,
    delivery: Delivery,
    answer: oneshot::Sender<PortResult<Outcome>>,
}

impl Courier {
    async fn run(mut self) {
        loop {
            let due = self.waiting.values().next().map(|oldest| oldest.due);
            tokio::select! {
                // Answers before new work: they make room.
                biased;
                Some(landed) = self.flights.next() => self.answer(landed),
                () = sleep_until(due.unwrap_or_else(Instant::now)), if due.is_some() => self.give_up(),
                order = self.orders.recv(), if self.flights.len() < UNCONFIRMED_MAX => match order {
                    Some(order) => self.send(order).await,
                    None if self.waiting.is_empty() => return,
                    // The last handle is gone, but not the last answer: only time is left to wait for.
                    None => self.finish().await,
                },
            }
        }
    }

    async fn finish(&mut self) {
        let due = self.waiting.values().next_back().map(|newest| newest.due);
        while let Ok(Some(landed)) = timeout_at(due, self.flights.next()).await {
            self.answer(landed);
        }
        self.fail_all("the publisher ended");
    }

    async fn send(&mut self, order: Order) {
        let Order { message, due, answer } = order;
        // Whoever asked may have stopped waiting, here and below.
        if due <= Instant::now() {
            let _ = answer.send(Err(unavailable("waited too long for its turn")));
            return;
        }
        let channel = match self.channel().await {
            Ok(channel) => channel,
            Err(error) => {
                let _ = answer.send(Err(error));
                return;
            }
        };
        self.last_number += 1;
        let number = self.last_number;
        let delivery = message.delivery;
        let mut flight: Flight = Box::pin(fly(channel, number, message));
        self.waiting.insert(number, Waiter { due, delivery, answer });
        // The first poll puts the frames in line, so messages leave in order.
        match poll!(&mut flight) {
            Poll::Ready(landed) => self.answer(landed),
            Poll::Pending => self.flights.push(flight),
        }
    }

    /// The channel, opened and its topology declared if need be.
    async fn channel(&mut self) -> PortResult<Channel> {
        if let Some(open) = &mut self.open
            && open.live.usable()
            && open.channel.status().connected()
        {
            if open.live.blocked() {
                return Err(unavailable("the broker blocks publishing (memory or disk alarm)"));
            }
            if std::mem::take(&mut open.declare_again) {
                declare(&open.live, &open.channel, &self.topology, self.declares).await?;
            }
            return Ok(open.channel.clone());
        }
        self.fail_all("the connection was lost");
        let live = self.link.unblocked()?;
        let channel = live.channel().await?;
        live.within("asking for confirms", channel.confirm_select(ConfirmSelectOptions::default())).await?;
        declare(&live, &channel, &self.topology, self.declares).await?;
        self.open = Some(Open { live, channel: channel.clone(), declare_again: false });
        Ok(channel)
    }

    /// Answers for `landed` and for all that completed before it was seen; the module's doc says why not one by one.
    fn answer(&mut self, landed: (u64, lapin::Result<Confirmation>)) {
        let mut all = vec![landed];
        // A set of futures may pause before it has looked at each, hence twice.
        for _ in 0..2 {
            while let Some(Some(landed)) = self.flights.next().now_or_never() {
                all.push(landed);
            }
        }
        for (_, result) in &all {
            if let Ok(Confirmation::Ack(Some(message)) | Confirmation::Nack(Some(message))) = result
                && let Some(number) = message.properties.message_id().as_ref().and_then(|id| id.as_str().parse().ok())
            {
                self.returned.insert(number);
            }
        }
        for (number, result) in all {
            let returned = self.returned.remove(&number);
            let Some(waiter) = self.waiting.remove(&number) else { continue };
            let outcome = match result {
                _ if returned => {
                    if let Some(open) = &mut self.open {
                        open.declare_again |= waiter.delivery == Delivery::Durable;
                    }
                    Ok(Outcome::Returned)
                }
                Ok(Confirmation::Ack(_)) => Ok(Outcome::Taken),
                Ok(Confirmation::Nack(_)) => Err(unavailable("the broker refused a message: its queue is full")),
                Ok(Confirmation::NotRequested) => Err(unavailable("the broker does not confirm")),
                Err(error) => Err(unavailable(format!("publishing: {error}"))),
            };
            let _ = waiter.answer.send(outcome);
        }
    }

    /// The oldest message is overdue.
    fn give_up(&mut self) {
        match &self.open {
            // What was written stays with lapin and keeps its place in `flights` until the broker goes on, which bounds
            // it; nothing new comes while the connection is blocked.
            Some(open) if open.live.usable() && open.live.blocked() => {
                for (_, waiter) in std::mem::take(&mut self.waiting) {
                    let _ = waiter.answer.send(Err(unavailable("the broker blocks publishing (memory or disk alarm)")));
                }
            }
            open => {
                if let Some(open) = open {
                    open.live.kill("a confirm is overdue");
                }
                self.fail_all("no confirm in time");
            }
        }
    }

    fn fail_all(&mut self, why: &str) {
        self.open = None;
        self.flights = FuturesUnordered::new();
        self.returned.clear();
        for (_, waiter) in std::mem::take(&mut self.waiting) {
            let _ = waiter.answer.send(Err(unavailable(why)));
        }
    }
}

async fn fly(channel: Channel, number: u64, message: Outgoing) -> (u64, lapin::Result<Confirmation>) {
    let Outgoing { exchange, routing_key, payload, delivery, headers } = message;
    let options = BasicPublishOptions { mandatory: delivery != Delivery::ToAll, ..BasicPublishOptions::default() };
    let mode = if delivery == Delivery::Durable { PERSISTENT } else { TRANSIENT };
    let mut properties = BasicProperties::default()
        .with_content_type("application/x-protobuf".into())
        .with_delivery_mode(mode)
        .with_message_id(number.to_string().into());
    if let Some(headers) = headers {
        properties = properties.with_headers(headers);
    }
    let confirm = match channel.basic_publish(exchange, routing_key, options, &payload, properties).await {
        Ok(confirm) => confirm,
        Err(error) => return (number, Err(error)),
    };
    drop(payload);
    (number, confirm.await)
}

async fn declare(live: &Live, channel: &Channel, topology: &Topology, declares: Declares) -> PortResult<()> {
    let declared = async {
        match declares {
            Declares::Ingest(partition) => topology.declare_ingest(channel, partition).await,
            Declares::Push => topology.declare_push(channel).await,
        }
    };
    live.within("declaring", declared).await
}

async fn timeout_at<F: Future>(due: Option<Instant>, future: F) -> Result<F::Output, PortError> {
    let due = due.unwrap_or_else(Instant::now);
    tokio::time::timeout_at(due, future).await.map_err(|_| unavailable("no confirm in time"))
}
