//! The two sets of backends, each as one [`Backend`].

use std::path::Path;

use anyhow::Context as _;

use tidegate_core::ids::GatewayId;
use tidegate_core::ports::Backend;
use tidegate_core::twins::hot_store::EmbeddedHotStore;
use tidegate_core::twins::queues::{EmbeddedIngestQueue, EmbeddedPushQueue};

use crate::clock::SystemClock;
use crate::config::Config;
use crate::mysql::{MySqlArchive, MySqlConfig};
use crate::rabbitmq::{RabbitIngestQueue, RabbitMq, RabbitMqConfig, RabbitPushQueue, Topology};
use crate::redis::{RedisConfig, RedisHotStore};
use crate::sqlite::{OpenError, SqliteArchive};

/// Partitions of the embedded ingest leg. The archive has one writer that commits what all of them have piled up, so a few
/// are enough to keep it busy while the others prepare their turn.
pub const EMBEDDED_PARTITIONS: u32 = 8;

/// Everything in this process, messages in one file.
pub struct Embedded {
    ingest: EmbeddedIngestQueue,
    push: EmbeddedPushQueue,
    hot: EmbeddedHotStore<SystemClock>,
    archive: SqliteArchive,
}

impl Embedded {
    /// Opens or creates the file `tidegate.db` in `data_dir`.
    ///
    /// # Errors
    /// [`OpenError`] if it cannot be used.
    pub fn open(data_dir: &Path, gateway: &GatewayId) -> Result<Self, OpenError> {
        Ok(Self {
            ingest: EmbeddedIngestQueue::new(EMBEDDED_PARTITIONS),
            push: EmbeddedPushQueue::new(gateway.clone()),
            hot: EmbeddedHotStore::new(gateway.clone(), SystemClock),
            archive: SqliteArchive::open(&data_dir.join("tidegate.db"))?,
        })
    }
}

impl Backend for Embedded {
    type Ingest = EmbeddedIngestQueue;
    type Push = EmbeddedPushQueue;
    type Hot = EmbeddedHotStore<SystemClock>;
    type Archive = SqliteArchive;

    fn ingest(&self) -> &Self::Ingest {
        &self.ingest
    }

    fn push(&self) -> &Self::Push {
        &self.push
    }

    fn hot(&self) -> &Self::Hot {
        &self.hot
    }

    fn archive(&self) -> &Self::Archive {
        &self.archive
    }
}

/// RabbitMQ, Redis and MySQL.
pub struct Services {
    rabbitmq: RabbitMq,
    ingest: RabbitIngestQueue,
    push: RabbitPushQueue,
    hot: RedisHotStore,
    archive: MySqlArchive,
}

impl Services {
    /// Connects to all three at once, declares the topology and brings the schema up to date.
    ///
    /// # Errors
    /// The first service that cannot be used, by its name and address.
    pub async fn connect(config: &Config) -> anyhow::Result<Self> {
        let topology = Topology { partitions: config.rabbitmq.partitions, ..Topology::default() };
        let rabbitmq = RabbitMqConfig { topology, ..RabbitMqConfig::new(config.rabbitmq.url.expose()) };
        let mysql = MySqlConfig { pool_max: config.mysql.pool_max, ..MySqlConfig::new(config.mysql.url.expose()) };
        let redis = RedisConfig::new(config.redis.url.expose());
        Self::connect_to(rabbitmq, redis, mysql, &config.gateway_id).await
    }

    /// As [`Services::connect`], with settings that have no configuration key.
    ///
    /// # Errors
    /// As above.
    pub async fn connect_to(
        rabbitmq: RabbitMqConfig,
        redis: RedisConfig,
        mysql: MySqlConfig,
        gateway: &GatewayId,
    ) -> anyhow::Result<Self> {
        const HELP: &str = "`make services` starts private ones, `make run` needs none";
        let (rabbitmq, hot, archive) = tokio::join!(
            RabbitMq::connect(rabbitmq),
            RedisHotStore::connect(redis, gateway.clone()),
            MySqlArchive::connect(mysql)
        );
        let rabbitmq = rabbitmq.context(HELP)?;
        // Before anybody can log in here, and so be pushed to.
        rabbitmq.open_push_queue(gateway).await?;
        Ok(Self {
            ingest: rabbitmq.ingest(),
            push: rabbitmq.push(gateway.clone()),
            hot: hot.context(HELP)?,
            archive: archive.context(HELP)?,
            rabbitmq,
        })
    }

    /// The broker, for readiness.
    #[must_use]
    pub fn rabbitmq(&self) -> &RabbitMq {
        &self.rabbitmq
    }
}

impl Backend for Services {
    type Ingest = RabbitIngestQueue;
    type Push = RabbitPushQueue;
    type Hot = RedisHotStore;
    type Archive = MySqlArchive;

    fn ingest(&self) -> &Self::Ingest {
        &self.ingest
    }

    fn push(&self) -> &Self::Push {
        &self.push
    }

    fn hot(&self) -> &Self::Hot {
        &self.hot
    }

    fn archive(&self) -> &Self::Archive {
        &self.archive
    }
}
