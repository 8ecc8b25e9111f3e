//! A backend for tests of services: the in-process twins, a broker that confirms nothing, and a clock without patience.

use std::future::{pending, ready};
use std::time::Duration;

use crate::clock::Clock;
use crate::event::PushEvent;
use crate::ids::{GatewayId, Millis};
use crate::ports::{Backend, PortResult, PushQueue, PushTarget};
use crate::twins::archive::MemoryArchive;
use crate::twins::hot_store::EmbeddedHotStore;
use crate::twins::queues::{EmbeddedIngestQueue, EmbeddedPushQueue};

/// No time passes in sleep.
#[derive(Clone)]
pub(super) struct Impatient;

impl Clock for Impatient {
    fn now(&self) -> Millis {
        Millis(1)
    }

    fn sleep(&self, _: Duration) -> impl Future<Output = ()> + Send {
        ready(())
    }
}

/// A broker that takes everything and confirms nothing.
pub(super) struct Hung;

impl PushQueue for Hung {
    type Consumer = <EmbeddedPushQueue as PushQueue>::Consumer;

    async fn publish(&self, _: Vec<(PushTarget, Vec<PushEvent>)>) -> PortResult<Vec<GatewayId>> {
        pending().await
    }

    async fn consume(&self) -> PortResult<Self::Consumer> {
        pending().await
    }
}

pub(super) struct World {
    ingest: EmbeddedIngestQueue,
    hot: EmbeddedHotStore<Impatient>,
    archive: MemoryArchive,
}

impl World {
    pub(super) fn new() -> Self {
        let gateway: GatewayId = "g".parse().expect("legal");
        Self {
            ingest: EmbeddedIngestQueue::new(1),
            hot: EmbeddedHotStore::new(gateway, Impatient),
            archive: MemoryArchive::new(),
        }
    }
}

impl Backend for World {
    type Ingest = EmbeddedIngestQueue;
    type Push = Hung;
    type Hot = EmbeddedHotStore<Impatient>;
    type Archive = MemoryArchive;

    fn ingest(&self) -> &Self::Ingest {
        &self.ingest
    }
    fn push(&self) -> &Self::Push {
        &Hung
    }
    fn hot(&self) -> &Self::Hot {
        &self.hot
    }
    fn archive(&self) -> &Self::Archive {
        &self.archive
    }
}
