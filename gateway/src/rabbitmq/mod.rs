//! MQ1 and MQ2 over RabbitMQ.
//!
//! In go batches of events, each a Protobuf body of one AMQP message (`schema/tidegate/event/v1/event.proto`); out come
//! the same, with the broker's promise of durability in between. Two connections per process, one that publishes and
//! one that consumes, because a broker short of memory blocks connections that publish; each is redialled by its own
//! supervisor. What must hold: no call waits longer than [`RabbitMqConfig::timeout`] for the broker, whatever state it
//! is in; nothing accepted is forgotten without a failed confirm; nothing from a queue is dropped without a dead letter.
//!
//! lapin's own recovery is left off: it replays a channel's state behind the caller's back and keeps commands waiting
//! for as long as that takes. Here a lost connection fails everything outstanding at once, and engines start afresh.

mod connection;
mod consumer;
mod ingest;
mod intake;
mod probe;
mod publisher;
mod push;
mod topology;

pub use consumer::{RabbitIngestConsumer, RabbitPushConsumer};
pub use ingest::{RabbitConfirm, RabbitIngestQueue};
pub use push::RabbitPushQueue;
pub use topology::Topology;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use lapin::ErrorKind;
use lapin::uri::{AMQPScheme, AMQPUri};
use tidegate_core::ids::GatewayId;
use tidegate_core::ports::{PortError, PortResult};

use connection::Link;
use probe::Probe;

const SERVICE: &str = "rabbitmq";

/// Where the broker is and how it is used.
#[derive(Clone)]
pub struct RabbitMqConfig {
    /// `amqp://user:password@host:port/vhost`. Secret: neither `Debug` nor any error shows it.
    pub url: String,
    /// Names and partitions.
    pub topology: Topology,
    /// Longest wait for a connection, a declaration, a confirm or an acknowledgement.
    pub timeout: Duration,
    /// Heartbeat asked for; a silent broker is given up after twice this. Whole seconds, at least one.
    pub heartbeat: Duration,
    /// Longest pause between attempts to connect again. The first is a hundred milliseconds, then they double.
    pub reconnect_delay_max: Duration,
}

impl RabbitMqConfig {
    /// The defaults: one partition, the fixed names, five seconds for everything.
    #[must_use]
    pub fn new(url: impl Into<String>) -> Self {
        Self {
            url: url.into(),
            topology: Topology::default(),
            timeout: Duration::from_secs(5),
            heartbeat: Duration::from_secs(5),
            reconnect_delay_max: Duration::from_secs(5),
        }
    }

    fn uri(&self) -> PortResult<AMQPUri> {
        // The parser's error may quote the URL, so it is not passed on.
        let uri: AMQPUri =
            self.url.parse().map_err(|_| refused("the URL is not amqp://user:password@host:port/vhost"))?;
        if uri.scheme != AMQPScheme::AMQP {
            return Err(refused("only amqp:// is supported: this program is built without TLS to the broker"));
        }
        Ok(uri)
    }
}

impl fmt::Debug for RabbitMqConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let at = self.uri().map_or_else(|_| "not a URL".to_owned(), |uri| connection::address(&uri));
        f.debug_struct("RabbitMqConfig")
            .field("at", &at)
            .field("topology", &self.topology)
            .field("timeout", &self.timeout)
            .field("heartbeat", &self.heartbeat)
            .field("reconnect_delay_max", &self.reconnect_delay_max)
            .finish_non_exhaustive()
    }
}

/// A broker this process is connected to. A cheap handle; connections end with the last handle, queue and consumer.
#[derive(Clone)]
pub struct RabbitMq {
    topology: Topology,
    publishing: Link,
    consuming: Link,
    probe: Arc<Probe>,
}

impl RabbitMq {
    /// Connects and declares the topology. From here on lost connections are made again, for as long as it takes.
    ///
    /// # Errors
    /// [`PortError::Unavailable`] within [`RabbitMqConfig::timeout`] or so if there is no broker, naming host and port;
    /// [`PortError::Refused`] for a wrong URL, or if the broker has these names with other properties.
    pub async fn connect(config: RabbitMqConfig) -> PortResult<Self> {
        let uri = config.uri()?;
        let publishing = Link::start(&config, &uri, "publish").await?;
        let consuming = Link::start(&config, &uri, "consume").await?;
        let live = publishing.live()?;
        let channel = live.channel().await?;
        live.within("declaring", config.topology.declare_all(&channel)).await?;
        live.within("closing a channel", channel.close(200, "declared".into())).await?;
        Ok(Self { topology: config.topology, publishing, consuming, probe: Arc::default() })
    }

    /// Makes sure that `gateway` has its queue, so that from here on what is pushed to it waits for its consumer.
    ///
    /// # Errors
    /// As for [`connect`](Self::connect).
    pub async fn open_push_queue(&self, gateway: &GatewayId) -> PortResult<()> {
        let live = self.consuming.live()?;
        let channel = live.channel().await?;
        live.within("declaring", self.topology.declare_push_queue(&channel, gateway)).await?;
        live.within("closing a channel", channel.close(200, "declared".into())).await
    }

    /// MQ1. Call it once and share the result: each call opens channels of its own.
    #[must_use]
    pub fn ingest(&self) -> RabbitIngestQueue {
        RabbitIngestQueue::start(&self.topology, &self.publishing, &self.consuming)
    }

    /// MQ2 as `gateway` uses it. Call it once and share the result: each call opens a channel of its own.
    #[must_use]
    pub fn push(&self, gateway: GatewayId) -> RabbitPushQueue {
        RabbitPushQueue::start(&self.topology, gateway, &self.publishing, &self.consuming)
    }

    /// Whether both connections stand and the broker takes messages now. Waits for its answer as long as the caller does.
    ///
    /// # Errors
    /// [`PortError::Unavailable`] with what is known.
    pub async fn ping(&self) -> PortResult<()> {
        self.consuming.live()?;
        self.probe.ask(&self.publishing, self.topology.nowhere()).await
    }
}

fn unavailable(detail: impl Into<String>) -> PortError {
    PortError::Unavailable { service: SERVICE, detail: detail.into() }
}

fn refused(detail: impl Into<String>) -> PortError {
    PortError::Refused { service: SERVICE, detail: detail.into() }
}

/// Whether repeating can help. The broker's texts name queues and users, never a password.
fn port_error(doing: &str, error: &lapin::Error) -> PortError {
    let detail = format!("{doing}: {error}");
    match error.kind() {
        ErrorKind::ProtocolError(amqp)
            if matches!(amqp.get_id(), ACCESS_REFUSED | NOT_ALLOWED | PRECONDITION_FAILED) =>
        {
            refused(detail)
        }
        _ => unavailable(detail),
    }
}

/// AMQP 0-9-1, section 1.2, constants: reply codes.
const ACCESS_REFUSED: u16 = 403;
const PRECONDITION_FAILED: u16 = 406;
const NOT_ALLOWED: u16 = 530;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_stay_out_of_debug_and_errors() {
        for url in
            ["amqp://user:hunter2@broker:5672/%2f", "amqps://user:hunter2@broker", "user:hunter2", "mailto:hunter2"]
        {
            let config = RabbitMqConfig::new(url);
            assert!(!format!("{config:?} {:?}", config.uri().err()).contains("hunter2"), "{url}");
        }
    }
}
