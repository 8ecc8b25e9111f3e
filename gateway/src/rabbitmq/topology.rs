//! Exchanges, queues, keys: every name and argument that others can see.
//!
//! In: a prefix and the number of partitions. Out: declarations, idempotent, so that whoever opens a channel makes sure
//! that what it needs is there. What must hold: names and arguments are decided here and nowhere else; a change of
//! arguments is refused by the broker (406) until the old queue is gone.

use lapin::options::{ExchangeDeclareOptions, QueueBindOptions, QueueDeclareOptions};
use lapin::types::{AMQPValue, FieldTable, ShortString};
use lapin::{Channel, ExchangeKind};
use tidegate_core::event::IngestEvent;
use tidegate_core::ids::{ConversationId, GatewayId, Partition};

/// Quorum queues count a delivery whenever a consumer dies, and dead-letter past the limit. What is really poison (not
/// decodable) goes to the dead letters at its first delivery, so here the limit must only survive a day of an engine
/// that crashes every second; the broker's own default (20 since RabbitMQ 4.0) would turn an outage into a loss.
const DELIVERY_LIMIT: i64 = 100_000;

/// Bytes a partition's queue may hold: hours of backlog. Past it the broker refuses, confirms fail and senders hear it.
const INGEST_BYTES_MAX: i64 = 4 << 30;

/// Bytes of dead letters kept; past it the oldest go, since the newest show what is wrong now.
const DEAD_BYTES_MAX: i64 = 1 << 30;

/// Bytes waiting for one gateway; past it the oldest go, and its clients resync by sequence.
const PUSH_BYTES_MAX: i64 = 64 << 20;

/// A gateway's queue survives its consumer by this: longer than a lost connection, shorter than anyone would miss it.
const PUSH_EXPIRES_MS: i32 = 30_000;

/// The names of one Tidegate installation on a broker.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Topology {
    /// Before every exchange and queue; `im.` unless several installations (or tests) share a virtual host. At most 100
    /// bytes.
    pub prefix: String,
    /// Partitions of MQ1, at least one. Change it only when MQ1 is empty: a conversation's partition depends on it.
    pub partitions: u32,
}

impl Default for Topology {
    fn default() -> Self {
        Self { prefix: "im.".to_owned(), partitions: 1 }
    }
}

/// What kind of ingest event a routing key announces.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Private,
    Room,
    Receipt,
}

impl Kind {
    pub(super) const ALL: [Self; 3] = [Self::Private, Self::Room, Self::Receipt];

    pub(super) fn of(event: &IngestEvent) -> Self {
        match event {
            IngestEvent::ReceiptMoved(_) => Self::Receipt,
            IngestEvent::Accepted(accepted) => match accepted.conversation {
                ConversationId::Private { .. } => Self::Private,
                ConversationId::Room(_) | ConversationId::Lobby(_) => Self::Room,
            },
        }
    }

    fn key(self) -> &'static str {
        match self {
            Self::Private => "chat.private",
            Self::Room => "chat.room",
            Self::Receipt => "receipt",
        }
    }
}

impl Topology {
    pub(super) fn ingest_exchange(&self) -> ShortString {
        self.named("ingest.exchange")
    }

    pub(super) fn push_exchange(&self) -> ShortString {
        self.named("push.exchange")
    }

    pub(super) fn dead_exchange(&self) -> ShortString {
        self.named("dead.exchange")
    }

    pub(super) fn dead_queue(&self) -> ShortString {
        self.named("dead.queue")
    }

    pub(super) fn ingest_queue(&self, partition: Partition) -> ShortString {
        self.named(&format!("ingest.{}", partition.0))
    }

    pub(super) fn push_queue(&self, gateway: &GatewayId) -> ShortString {
        self.named(&format!("push.{gateway}"))
    }

    /// A queue that is never declared.
    pub(super) fn nowhere(&self) -> ShortString {
        self.named("nowhere")
    }

    /// The key has the partition's number as a suffix if there are several.
    pub(super) fn ingest_key(&self, kind: Kind, partition: Partition) -> ShortString {
        if self.partitions > 1 { format!("{}.{}", kind.key(), partition.0).into() } else { kind.key().into() }
    }

    fn named(&self, rest: &str) -> ShortString {
        format!("{}{rest}", self.prefix).into()
    }

    /// Everything that does not belong to one gateway.
    pub(super) async fn declare_all(&self, channel: &Channel) -> lapin::Result<()> {
        for partition in 0..self.partitions {
            self.declare_ingest(channel, Partition(partition)).await?;
        }
        self.declare_push(channel).await
    }

    /// What publishing to and consuming from one partition needs.
    pub(super) async fn declare_ingest(&self, channel: &Channel, partition: Partition) -> lapin::Result<()> {
        self.declare_dead(channel).await?;
        let exchange = self.ingest_exchange();
        channel.exchange_declare(exchange.clone(), ExchangeKind::Direct, durable(), FieldTable::default()).await?;
        let queue = self.ingest_queue(partition);
        let arguments = table([
            ("x-queue-type", text("quorum")),
            // One consumer at a time, so that the partition's order holds with several instances.
            ("x-single-active-consumer", AMQPValue::Boolean(true)),
            ("x-delivery-limit", AMQPValue::LongLongInt(DELIVERY_LIMIT)),
            ("x-dead-letter-exchange", text(self.dead_exchange().as_str())),
            ("x-max-length-bytes", AMQPValue::LongLongInt(INGEST_BYTES_MAX)),
            ("x-overflow", text("reject-publish")),
        ]);
        channel.queue_declare(queue.clone(), lasting(), arguments).await?;
        for kind in Kind::ALL {
            let key = self.ingest_key(kind, partition);
            let options = QueueBindOptions::default();
            channel.queue_bind(queue.clone(), exchange.clone(), key, options, FieldTable::default()).await?;
        }
        Ok(())
    }

    /// What publishing pushes needs.
    pub(super) async fn declare_push(&self, channel: &Channel) -> lapin::Result<()> {
        self.declare_dead(channel).await?;
        channel.exchange_declare(self.push_exchange(), ExchangeKind::Fanout, durable(), FieldTable::default()).await
    }

    /// One gateway's queue. Durable only in name (a broker's restart keeps it, but not the transient messages in it):
    /// RabbitMQ 4 phases out transient queues that are not exclusive to a connection.
    pub(super) async fn declare_push_queue(&self, channel: &Channel, gateway: &GatewayId) -> lapin::Result<()> {
        self.declare_push(channel).await?;
        let queue = self.push_queue(gateway);
        let arguments = table([
            ("x-queue-type", text("classic")),
            ("x-expires", AMQPValue::LongInt(PUSH_EXPIRES_MS)),
            ("x-max-length-bytes", AMQPValue::LongLongInt(PUSH_BYTES_MAX)),
            ("x-overflow", text("drop-head")),
        ]);
        channel.queue_declare(queue.clone(), lasting(), arguments).await?;
        let options = QueueBindOptions::default();
        channel.queue_bind(queue, self.push_exchange(), ShortString::default(), options, FieldTable::default()).await
    }

    async fn declare_dead(&self, channel: &Channel) -> lapin::Result<()> {
        let exchange = self.dead_exchange();
        channel.exchange_declare(exchange.clone(), ExchangeKind::Fanout, durable(), FieldTable::default()).await?;
        let arguments = table([
            ("x-queue-type", text("quorum")),
            ("x-max-length-bytes", AMQPValue::LongLongInt(DEAD_BYTES_MAX)),
            ("x-overflow", text("drop-head")),
        ]);
        let queue = self.dead_queue();
        channel.queue_declare(queue.clone(), lasting(), arguments).await?;
        let options = QueueBindOptions::default();
        channel.queue_bind(queue, exchange, ShortString::default(), options, FieldTable::default()).await
    }
}

fn durable() -> ExchangeDeclareOptions {
    ExchangeDeclareOptions { durable: true, ..ExchangeDeclareOptions::default() }
}

fn lasting() -> QueueDeclareOptions {
    QueueDeclareOptions { durable: true, ..QueueDeclareOptions::default() }
}

fn text(value: &str) -> AMQPValue {
    AMQPValue::LongString(value.into())
}

fn table<const N: usize>(entries: [(&str, AMQPValue); N]) -> FieldTable {
    let mut table = FieldTable::default();
    for (name, value) in entries {
        table.insert(name.into(), value);
    }
    table
}
