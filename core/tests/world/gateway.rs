//! One gateway of the world, wired as `gateway/src/app.rs` wires a real one, and able to die at any step.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll};

use tidegate_core::accept::{self, AcceptQueues};
use tidegate_core::delivery::ShardId;
use tidegate_core::fairness::Rules;
use tidegate_core::fairness::rules::SendLimits;
use tidegate_core::ids::{GatewayId, LobbyName, MessageId, Partition};
use tidegate_core::ingest::IngestEngine;
use tidegate_core::ingest::members::Members;
use tidegate_core::limits::{
    BODY_BYTES_MAX, DEPARTURES_MAX, MAILBOX_BYTES_MAX, MAILBOX_INPUTS_MAX, QUEUE_BYTES_MAX, REQUESTS_MAX,
};
use tidegate_core::presence;
use tidegate_core::push::PushEngine;
use tidegate_core::push::routes::Routes;
use tidegate_core::queue::Queue;
use tidegate_core::reception::{Greeting, Reception};
use tidegate_core::session::SessionContext;
use tidegate_core::storm::{Pages, Pulls, TailKeeper};
use tidegate_core::streams::{self, OutStreams};
use tidegate_core::twins::archive::MemoryArchive;
use tidegate_core::twins::hot_store::EmbeddedHotStore;
use tidegate_core::twins::queues::{EmbeddedIngestQueue, EmbeddedPushQueue};
use tidegate_proto::v1;

use crate::broker::Broker;
use crate::faults::Mode;
use crate::ports::{Ports, Queues, Shared};
use crate::shard::{Links, Shard, SimMailboxes};
use crate::sim::{Sim, Spawner, TaskId};
use crate::wire::Wire;

/// The largest frame of a reply; half of an outbox, as in earnest, and small, so that answers are cut.
const FRAME_BYTES: usize = 8 * 1024;

/// Commands of one connection without a reply; small, so that it is met.
const IN_FLIGHT_MAX: u16 = 16;

/// What outlives gateways.
#[derive(Clone)]
pub struct Backends {
    pub shared: Shared,
    pub spawner: Spawner,
    pub broker: Broker,
    pub hot: EmbeddedHotStore<Sim>,
    pub archive: MemoryArchive,
    pub lobbies: Vec<LobbyName>,
    pub limits: Arc<SendLimits>,
}

impl Backends {
    /// Whether MQ1 is durable and holds the message.
    pub fn is_durably_queued(&self, message: MessageId) -> bool {
        self.shared.faults.mode == Mode::Services && self.broker.holds(message)
    }
}

/// The gateways that run at present.
#[derive(Clone, Default)]
pub struct Gateways(Rc<RefCell<BTreeMap<GatewayId, Gateway>>>);

struct Gateway {
    tasks: Vec<TaskId>,
    shards: Vec<Shard>,
}

impl Gateways {
    /// A connection to one of them, if there is any.
    pub fn connect(&self, sim: &Sim) -> Option<Wire> {
        let gateways = self.0.borrow();
        let shards: Vec<&Shard> = gateways.values().flat_map(|gateway| &gateway.shards).collect();
        (!shards.is_empty()).then(|| sim.one_of(&shards).connect())
    }

    pub fn start(&self, id: &GatewayId, backends: &Backends) {
        let gateway = Gateway::start(id, backends);
        self.0.borrow_mut().insert(id.clone(), gateway);
    }

    /// Everything of the gateway is dropped where it stands.
    pub fn crash(&self, id: &GatewayId, backends: &Backends) {
        let Some(gateway) = self.0.borrow_mut().remove(id) else { return };
        gateway.tasks.into_iter().for_each(|task| backends.spawner.end(task));
        gateway.shards.iter().for_each(Shard::crash);
        if backends.shared.faults.mode == Mode::Embedded {
            backends.hot.lose_everything();
        }
    }
}

impl Gateway {
    fn start(id: &GatewayId, backends: &Backends) -> Self {
        let Backends { shared, spawner, .. } = backends;
        let (sim, faults) = (&shared.sim, &shared.faults);
        let queues = match faults.mode {
            Mode::Embedded => {
                Queues::Embedded(EmbeddedIngestQueue::new(faults.partitions), EmbeddedPushQueue::new(id.clone()))
            }
            Mode::Services => Queues::Services(backends.broker.clone()),
        };
        let hot = backends.hot.for_gateway(id.clone());
        let archive = backends.archive.clone();
        let ports = Arc::new(Ports { shared: shared.clone(), gateway: id.clone(), queues, hot, archive });
        let shards = 1 + sim.below(2) as usize;
        let mailbox = |_| Queue::new(MAILBOX_INPUTS_MAX, MAILBOX_BYTES_MAX);
        let mailboxes = SimMailboxes((0..shards).map(mailbox).collect());
        let links = Links {
            accept: AcceptQueues::new(faults.partitions),
            requests: Arc::new(Queue::new(REQUESTS_MAX, QUEUE_BYTES_MAX)),
            departures: Arc::new(Queue::new(DEPARTURES_MAX, QUEUE_BYTES_MAX)),
            routes: Arc::new(Routes::default()),
            mailboxes: mailboxes.clone(),
        };
        let members = Arc::new(Members::default());
        let fairness = Rules { limits: Arc::clone(&backends.limits), paces: Arc::default() };
        let mut tasks = Vec::new();
        let rules = Arc::new(faults.storm_rules());
        let pulls = {
            let (ports, clock, routes) = (Arc::clone(&ports), sim.clone(), Arc::clone(&links.routes));
            let to_json = |_: &v1::PullReply| Vec::new();
            Arc::new(Pulls {
                tails: TailKeeper::new(
                    Arc::clone(&ports),
                    mailboxes.clone(),
                    clock.clone(),
                    routes,
                    Arc::clone(&rules),
                    to_json,
                ),
                pages: Pages::new(ports, clock, FRAME_BYTES / 2, to_json),
            })
        };
        let kept = Arc::clone(&pulls);
        tasks.push(spawner.spawn(async move { kept.tails.run().await }));

        let push = {
            let (ports, mailboxes, routes) = (Arc::clone(&ports), mailboxes.clone(), Arc::clone(&links.routes));
            let (members, paces, clock) = (Arc::clone(&members), Arc::clone(&fairness.paces), sim.clone());
            let (pulls, rules) = (Arc::clone(&pulls), Arc::clone(&rules));
            move || PushEngine {
                backend: Arc::clone(&ports),
                mailboxes: mailboxes.clone(),
                routes: Arc::clone(&routes),
                members: Arc::clone(&members),
                paces: Arc::clone(&paces),
                pulls: Arc::clone(&pulls),
                rules: Arc::clone(&rules),
                frame_bytes_max: FRAME_BYTES,
                clock: clock.clone(),
            }
        };
        tasks.push(spawner.spawn(Mortal::new(shared, "push engine died", move || push().run())));
        let mut out_streams = Vec::new();
        for partition in (0..faults.partitions).map(Partition) {
            let streams = Arc::new(OutStreams::new(sim.below(u64::MAX)));
            out_streams.push(Arc::clone(&streams));
            let (engine_ports, members, clock) = (Arc::clone(&ports), Arc::clone(&members), sim.clone());
            let rules = Arc::clone(&rules);
            let engine = move || {
                let (ports, members, rules) = (Arc::clone(&engine_ports), Arc::clone(&members), Arc::clone(&rules));
                IngestEngine::new(partition, ports, clock.clone(), members, Arc::clone(&streams), rules).run()
            };
            tasks.push(spawner.spawn(Mortal::new(shared, "ingest engine died", engine)));
            let (queues, fairness) = (links.accept.clone(), fairness.clone());
            let accept = accept::run(partition, queues, Arc::clone(&ports), mailboxes.clone(), fairness, sim.clone());
            tasks.push(spawner.spawn(accept));
        }
        tasks.push(spawner.spawn(streams::run_beacons(out_streams, Arc::clone(&ports), sim.clone())));
        let context = SessionContext {
            gateway: id.clone(),
            lobbies: backends.lobbies.clone(),
            body_bytes_max: BODY_BYTES_MAX,
            in_flight_max: IN_FLIGHT_MAX,
        };
        let random_sim = sim.clone();
        let reception = Reception {
            backend: Arc::clone(&ports),
            mailboxes: mailboxes.clone(),
            clock: sim.clone(),
            random: move || random_sim.below(u64::MAX),
            greeting: Greeting {
                gateway: id.clone(),
                heartbeat: v1::Heartbeat { min_interval_s: 5, max_interval_s: 180, probe_count: 3 },
                frame_bytes_max: FRAME_BYTES,
                body_bytes_max: BODY_BYTES_MAX,
                in_flight_max: IN_FLIGHT_MAX,
                lobbies: backends.lobbies.clone(),
            },
            pulls,
        };
        let queue = Arc::clone(&links.requests);
        tasks.push(spawner.spawn(async move { reception.run(&queue).await }));
        let (queue, departures_ports, clock) = (Arc::clone(&links.departures), Arc::clone(&ports), sim.clone());
        let told = mailboxes.clone();
        tasks.push(spawner.spawn(async move { presence::run_changes(&queue, departures_ports, told, clock).await }));
        tasks.push(spawner.spawn(presence::run_beats(mailboxes.clone(), ports, sim.clone())));

        let shards: Vec<Shard> = (0_u8..)
            .map(ShardId)
            .take(shards)
            .map(|shard| Shard::new(shard, sim, links.clone(), context.clone()))
            .collect();
        tasks.extend(shards.iter().map(|shard| spawner.spawn(shard.clone().run())));
        Self { tasks, shards }
    }
}

/// An engine that may end at any of its await points, and is made again.
struct Mortal<M, F> {
    shared: Shared,
    name: &'static str,
    make: M,
    life: Pin<Box<F>>,
    deaths_left: Cell<u32>,
}

impl<F: Future<Output = ()>, M: FnMut() -> F> Mortal<M, F> {
    fn new(shared: &Shared, name: &'static str, mut make: M) -> Self {
        let life = Box::pin(make());
        Self { shared: shared.clone(), name, make, life, deaths_left: Cell::new(12) }
    }
}

impl<F: Future<Output = ()>, M: FnMut() -> F + Unpin> Future for Mortal<M, F> {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let this = &mut *self;
        if this.life.as_mut().poll(cx).is_ready() {
            return Poll::Ready(());
        }
        if this.deaths_left.get() > 0 && this.shared.happens(this.shared.faults.engine_crash) {
            this.deaths_left.set(this.deaths_left.get() - 1);
            this.shared.sim.trace(|| format!("an {}", this.name));
            this.shared.sim.count(this.name);
            // A future does nothing before its first poll: the old consumer leaves the line before the new one joins.
            this.life = Box::pin((this.make)());
            cx.waker().wake_by_ref();
        }
        Poll::Pending
    }
}
