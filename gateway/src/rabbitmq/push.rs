//! MQ2: [`PushQueue`] over the fanout exchange and the gateways' own queues.
//!
//! In: batches for all gateways or for one. Out: AMQP messages of a bounded size; those for one gateway go straight to
//! its queue, and come back if it does not exist. What must hold: what goes to a gateway arrives in the order of the
//! calls, and a call answers only when the broker has confirmed all of it.

use std::sync::Arc;

use futures_util::future::join_all;
use lapin::types::ShortString;
use tidegate_core::event::{PushEvent, encode_push};
use tidegate_core::ids::GatewayId;
use tidegate_core::limits::{PUBLISH_BYTES_MAX, PUSH_BATCH_MAX};
use tidegate_core::ports::{PortResult, PushQueue, PushTarget};

use super::connection::Link;
use super::consumer::RabbitPushConsumer;
use super::publisher::{Declares, Delivery, Outcome, Outgoing, Publisher};
use super::topology::Topology;

/// MQ2 on RabbitMQ, as one gateway uses it. A cheap handle.
///
/// A gateway's queue appears with its consumer and outlives it by half a minute. It is bounded in bytes; past the bound
/// the broker drops the oldest pushes, and clients resync by sequence.
#[derive(Clone)]
pub struct RabbitPushQueue {
    shared: Arc<Shared>,
}

struct Shared {
    topology: Topology,
    gateway: GatewayId,
    publisher: Publisher,
    consuming: Link,
}

impl RabbitPushQueue {
    pub(super) fn start(topology: &Topology, gateway: GatewayId, publishing: &Link, consuming: &Link) -> Self {
        let publisher = Publisher::start(publishing, topology, Declares::Push);
        let (topology, consuming) = (topology.clone(), consuming.clone());
        Self { shared: Arc::new(Shared { topology, gateway, publisher, consuming }) }
    }
}

impl PushQueue for RabbitPushQueue {
    type Consumer = RabbitPushConsumer;

    async fn publish(&self, batches: Vec<(PushTarget, Vec<PushEvent>)>) -> PortResult<Vec<GatewayId>> {
        let topology = &self.shared.topology;
        let mut answers = Vec::new();
        for (target, events) in batches {
            let (exchange, routing_key, delivery) = match &target {
                PushTarget::All => (topology.push_exchange(), ShortString::default(), Delivery::ToAll),
                // The default exchange routes by the queue's name.
                PushTarget::Gateway(id) => (ShortString::default(), topology.push_queue(id), Delivery::ToOne),
            };
            for part in parts(&events) {
                let (exchange, routing_key) = (exchange.clone(), routing_key.clone());
                let message = Outgoing { exchange, routing_key, payload: encode_push(part), delivery, headers: None };
                let pending = self.shared.publisher.publish(vec![message]).await?;
                answers.extend(pending.into_iter().map(|answer| (target.clone(), answer)));
            }
        }
        let (targets, answers): (Vec<_>, Vec<_>) = answers.into_iter().unzip();
        let mut unknown = Vec::new();
        for (target, outcome) in targets.into_iter().zip(join_all(answers).await) {
            if outcome? == Outcome::Returned
                && let PushTarget::Gateway(id) = target
                && !unknown.contains(&id)
            {
                unknown.push(id);
            }
        }
        Ok(unknown)
    }

    async fn consume(&self) -> PortResult<RabbitPushConsumer> {
        let Shared { topology, gateway, publisher, consuming } = &*self.shared;
        RabbitPushConsumer::open(consuming, topology, gateway, publisher.clone()).await
    }
}

/// Cuts a batch so that each part is one AMQP frame and one turn of the push engine.
fn parts(events: &[PushEvent]) -> impl Iterator<Item = &[PushEvent]> {
    let mut rest = events;
    std::iter::from_fn(move || {
        let mut bytes = 0;
        let fits = rest.iter().take(PUSH_BATCH_MAX).take_while(|event| {
            bytes += event.weight_bytes();
            bytes <= PUBLISH_BYTES_MAX
        });
        let count = fits.count().max(1).min(rest.len());
        let (part, after) = rest.split_at(count);
        rest = after;
        (!part.is_empty()).then_some(part)
    })
}
