//! The two sets of backends, each as one [`Backend`].

use std::path::Path;

use tidegate_core::ids::GatewayId;
use tidegate_core::ports::Backend;
use tidegate_core::twins::hot_store::EmbeddedHotStore;
use tidegate_core::twins::queues::{EmbeddedIngestQueue, EmbeddedPushQueue};

use crate::clock::SystemClock;
use crate::sqlite::{OpenError, SqliteArchive};

/// Partitions of the embedded ingest leg. The archive has one writer that commits what all of them have piled up, so a few
/// are enough to keep it busy while the others prepare their turn.
pub const EMBEDDED_PARTITIONS: u32 = 4;

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
