//! What both consumers share: taking deliveries off a channel and turning them into events.
//!
//! In: AMQP messages. Out: events in queue order with the tag to acknowledge them by. What must hold: a message that
//! cannot be decoded goes to the dead letters, confirmed, before it is acknowledged, and holds nothing else up; a
//! cancelled [`Intake::next`] loses nothing, since all it has gathered stays here.

use std::sync::Arc;

use bytes::Bytes;
use futures_util::{FutureExt as _, StreamExt as _};
use lapin::message::Delivery as Arrival;
use lapin::options::{BasicAckOptions, BasicConsumeOptions, BasicQosOptions};
use lapin::types::{AMQPValue, FieldTable, ShortString};
use lapin::{Channel, Consumer};
use tidegate_core::event::EventError;
use tidegate_core::ports::PortResult;
use tokio::runtime::Handle;

use super::connection::Live;
use super::publisher::{Delivery, Outcome, Outgoing, Publisher};
use super::topology::Topology;
use super::unavailable;

/// Counts dead letters by their [`reason`].
pub(super) const DEAD_LETTERED: &str = "tidegate_rabbitmq_dead_lettered_events_total";

/// How an intake consumes.
pub(super) struct Consuming {
    pub(super) queue: ShortString,
    /// AMQP messages the broker may deliver ahead of acknowledgements.
    pub(super) prefetch: u16,
    pub(super) options: BasicConsumeOptions,
}

/// A running consumer of one queue. When it is dropped, the broker gets back what was not acknowledged.
pub(super) struct Intake<T> {
    live: Arc<Live>,
    channel: Channel,
    /// `None` only while dropping.
    deliveries: Option<Consumer>,
    decode: fn(Bytes) -> Result<Vec<T>, EventError>,
    gathered: Vec<T>,
    /// The tag of the newest message in `gathered`.
    gathered_to: u64,
    /// A message that cannot be decoded, on its way to the dead letters.
    dead: Option<(Arrival, EventError)>,
    dead_letters: Publisher,
    dead_exchange: ShortString,
}

impl<T: Send + 'static> Intake<T> {
    pub(super) async fn open(
        live: Arc<Live>,
        channel: Channel,
        consuming: Consuming,
        decode: fn(Bytes) -> Result<Vec<T>, EventError>,
        topology: &Topology,
        dead_letters: Publisher,
    ) -> PortResult<Self> {
        let Consuming { queue, prefetch, options } = consuming;
        live.within("limiting deliveries", channel.basic_qos(prefetch, BasicQosOptions::default())).await?;
        let consume = channel.basic_consume(queue, ShortString::default(), options, FieldTable::default());
        let deliveries = Some(live.within("consuming", consume).await?);
        let dead_exchange = topology.dead_exchange();
        let (gathered, dead) = (Vec::new(), None);
        Ok(Self { live, channel, deliveries, decode, gathered, gathered_to: 0, dead, dead_letters, dead_exchange })
    }

    /// Waits for events, then takes what is there; whole messages until there are `events_max` events.
    pub(super) async fn next(&mut self, events_max: usize) -> PortResult<(Vec<T>, u64)> {
        loop {
            self.bury().await?;
            let deliveries = self.deliveries.as_mut().expect("present until dropped");
            let delivery = if self.gathered.is_empty() {
                deliveries.next().await
            } else if self.gathered.len() >= events_max.max(1) {
                return Ok((std::mem::take(&mut self.gathered), self.gathered_to));
            } else {
                match deliveries.next().now_or_never() {
                    Some(delivery) => delivery,
                    None => return Ok((std::mem::take(&mut self.gathered), self.gathered_to)),
                }
            };
            match delivery {
                Some(Ok(arrival)) => self.keep(arrival),
                Some(Err(error)) => return Err(unavailable(format!("consuming: {error}"))),
                None => return Err(unavailable("the broker ended the consumer")),
            }
        }
    }

    /// Acknowledges everything up to `tag`.
    pub(super) async fn ack(&self, tag: u64) -> PortResult<()> {
        self.acknowledge(tag, BasicAckOptions { multiple: true }).await
    }

    fn keep(&mut self, mut arrival: Arrival) {
        let body = Bytes::from(std::mem::take(&mut arrival.data));
        match (self.decode)(body.clone()) {
            Ok(events) if !events.is_empty() => {
                self.gathered_to = arrival.delivery_tag;
                self.gathered.extend(events);
            }
            decoded => {
                // A dead letter shows what came, byte by byte.
                arrival.data = body.into();
                self.dead = Some((arrival, decoded.err().unwrap_or(EventError::Empty)));
            }
        }
    }

    /// Moves the message that cannot be decoded, if there is one. A crash after the confirm buries it twice.
    async fn bury(&mut self) -> PortResult<()> {
        let Some((arrival, error)) = &self.dead else { return Ok(()) };
        let tag = arrival.delivery_tag;
        let message = Outgoing {
            exchange: self.dead_exchange.clone(),
            routing_key: arrival.routing_key.clone(),
            payload: arrival.data.clone(),
            delivery: Delivery::Durable,
            headers: Some(epitaph(&error.to_string(), &arrival.exchange, &arrival.routing_key)),
        };
        for pending in self.dead_letters.publish(vec![message]).await? {
            if pending.await? == Outcome::Returned {
                return Err(unavailable("there is no queue for dead letters"));
            }
        }
        tracing::warn!(%error, exchange = %arrival.exchange, key = %arrival.routing_key, "moved a message to the dead letters");
        metrics::counter!(DEAD_LETTERED, "reason" => reason(error)).increment(1);
        self.dead = None;
        // By itself: a multiple acknowledgement would cover messages the engine still works on.
        self.acknowledge(tag, BasicAckOptions { multiple: false }).await
    }

    async fn acknowledge(&self, tag: u64, options: BasicAckOptions) -> PortResult<()> {
        if !self.live.usable() {
            return Err(unavailable("the connection is lost"));
        }
        let acknowledged = self.live.within("acknowledging", self.channel.basic_ack(tag, options)).await;
        acknowledged.map_err(|error| unavailable(error.to_string()))
    }
}

impl<T> Drop for Intake<T> {
    fn drop(&mut self) {
        let Some(deliveries) = self.deliveries.take() else { return };
        let Ok(runtime) = Handle::try_current() else { return self.live.kill("a consumer went without a runtime") };
        let (live, channel) = (Arc::clone(&self.live), self.channel.clone());
        runtime.spawn(async move {
            // The channel goes first. If the consumer were cancelled before it, as dropping it does, the broker could
            // activate the next one while the messages of this one are not back in the queue, and order would break.
            if channel.status().connected() {
                let _ = live.within("closing a channel", channel.close(200, "done".into())).await;
            }
            drop(deliveries);
        });
    }
}

/// A label with few values.
fn reason(error: &EventError) -> &'static str {
    match error {
        EventError::Decode(_) => "decode",
        EventError::Empty => "empty",
        EventError::Field(_) => "field",
    }
}

/// What a dead letter says of itself: why it is dead, and where to give it back to.
pub(super) fn epitaph(reason: &str, exchange: &ShortString, key: &ShortString) -> FieldTable {
    let mut headers = FieldTable::default();
    let notes =
        [("x-reason", reason), ("x-original-exchange", exchange.as_str()), ("x-original-routing-key", key.as_str())];
    for (name, text) in notes {
        headers.insert(name.into(), AMQPValue::LongString(text.into()));
    }
    headers
}
