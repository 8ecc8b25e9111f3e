//! The wiring: builds every part in order, binds early, serves late, and takes it all down again in the reverse order.
//!
//! Read from top to bottom; this file alone knows everybody. In comes a checked [`Config`] and a set of backends; the
//! gateway then runs until it is told to stop. What must hold: nothing is served before everything is bound and opened,
//! and at the end every accepted event is answered before the backends close.

use std::collections::VecDeque;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tidegate_core::accept::{self, AcceptQueues};
use tidegate_core::delivery::{Mailboxes, Request, ShardId, ShardInput};
use tidegate_core::fairness::Rules;
use tidegate_core::ids::Partition;
use tidegate_core::ingest::IngestEngine;
use tidegate_core::ingest::members::Members;
use tidegate_core::limits::{DEPARTURES_MAX, QUEUE_BYTES_MAX, REQUESTS_MAX};
use tidegate_core::ports::{Backend, IngestQueue, PresenceChange};
use tidegate_core::presence;
use tidegate_core::push::PushEngine;
use tidegate_core::push::routes::Routes;
use tidegate_core::queue::Queue;
use tidegate_core::reception::{Greeting, Reception};
use tidegate_core::session::SessionContext;
use tidegate_core::storm::rules::AROUND_MESSAGES_BYTES;
use tidegate_core::storm::{Pages, Pulls, StormRules, TailKeeper};
use tidegate_core::streams::{self, OutStreams};
use tidegate_proto::v1;
use tokio::task::{JoinHandle, JoinSet};

use crate::clock::SystemClock;
use crate::config::Config;
use crate::http::{self, Busy, GatewayPulls, HandOff, Inspect};
use crate::shard::listener;
use crate::shard::mailboxes::{ShardMailboxes, Upgraded};
use crate::shard::{self, ShardConfig, ShardLinks};

/// Sockets that listen but are not served yet.
pub struct Bound {
    tcp: Vec<std::net::TcpListener>,
    /// Where frames over TCP arrive.
    pub tcp_address: SocketAddr,
}

/// Takes the ports, so that a wrong address ends the start before anything else happens.
///
/// # Errors
/// What the system says, with the key of the address in front.
pub fn bind(config: &Config) -> io::Result<Bound> {
    let named = |error: io::Error| {
        io::Error::new(error.kind(), format!("listen.tcp: cannot listen on {}: {error}", config.listen.tcp))
    };
    let tcp = listener::bind(config.listen.tcp, config.runtime.shards).map_err(named)?;
    let tcp_address = tcp[0].local_addr().map_err(named)?;
    Ok(Bound { tcp, tcp_address })
}

/// A running gateway.
pub struct Gateway<B> {
    pulls: Arc<GatewayPulls<B>>,
    mailboxes: ShardMailboxes,
    accept: AcceptQueues,
    requests: Arc<Queue<Request>>,
    departures: Arc<Queue<PresenceChange>>,
    shards: Vec<std::thread::JoinHandle<()>>,
    /// End by themselves once their queue is closed and empty.
    finishing: JoinSet<()>,
    /// Run for ever and are cut at the end: what they held is delivered again.
    endless: JoinSet<()>,
    drain_timeout: Duration,
}

/// Builds and starts everything but HTTP. Must be called on the engine runtime.
///
/// # Errors
/// If a shard's thread cannot be started.
pub fn start<B: Backend>(config: &Config, bound: Bound, backend: Arc<B>) -> io::Result<Gateway<B>> {
    let clock = SystemClock;
    let mailboxes = ShardMailboxes::new(u8::try_from(bound.tcp.len()).expect("the config allows at most 64 shards"));
    let accept = AcceptQueues::new(backend.ingest().partitions());
    let requests = Arc::new(Queue::new(REQUESTS_MAX, QUEUE_BYTES_MAX));
    let departures = Arc::new(Queue::new(DEPARTURES_MAX, QUEUE_BYTES_MAX));
    let routes = Arc::new(Routes::default());
    let members = Arc::new(Members::default());
    let fairness = Rules { limits: Arc::new(config.fairness.clone()), paces: Arc::default() };
    let mut finishing = JoinSet::new();
    let mut endless = JoinSet::new();

    let rules = Arc::new(config.storm.clone());
    let pulls = Arc::new(pulls(config, &backend, mailboxes.clone(), Arc::clone(&routes), Arc::clone(&rules)));
    let kept = Arc::clone(&pulls);
    endless.spawn(async move { kept.tails.run().await });

    // The second leg first, so that nothing is pushed to nobody.
    let push = PushEngine {
        backend: Arc::clone(&backend),
        mailboxes: mailboxes.clone(),
        routes: Arc::clone(&routes),
        members: Arc::clone(&members),
        paces: Arc::clone(&fairness.paces),
        pulls: Arc::clone(&pulls),
        rules: Arc::clone(&rules),
        frame_bytes_max: config.limits.frame_bytes_max,
        clock,
    };
    endless.spawn(push.run());
    let mut out_streams = Vec::new();
    for partition in (0..backend.ingest().partitions()).map(Partition) {
        let streams = Arc::new(OutStreams::new(random()));
        out_streams.push(Arc::clone(&streams));
        let (members, rules) = (Arc::clone(&members), Arc::clone(&rules));
        let engine = IngestEngine::new(partition, Arc::clone(&backend), clock, members, streams, rules);
        endless.spawn(engine.run());
        let (queues, backend, mailboxes) = (accept.clone(), Arc::clone(&backend), mailboxes.clone());
        finishing.spawn(accept::run(partition, queues, backend, mailboxes, fairness.clone(), clock));
    }
    endless.spawn(streams::run_beacons(out_streams, Arc::clone(&backend), clock));
    let reception = Reception {
        backend: Arc::clone(&backend),
        mailboxes: mailboxes.clone(),
        clock,
        random,
        greeting: greeting(config),
        pulls: Arc::clone(&pulls),
    };
    let queue = Arc::clone(&requests);
    finishing.spawn(async move { reception.run(&queue).await });
    let (queue, departures_backend) = (Arc::clone(&departures), Arc::clone(&backend));
    let told = mailboxes.clone();
    finishing.spawn(async move { presence::run_changes(&queue, departures_backend, told, clock).await });
    endless.spawn(presence::run_beats(mailboxes.clone(), Arc::clone(&backend), clock));

    let links = ShardLinks {
        mailboxes: mailboxes.clone(),
        accept: accept.clone(),
        requests: Arc::clone(&requests),
        departures: Arc::clone(&departures),
        routes,
    };
    let shards = start_shards(config, bound.tcp, &links)?;
    let drain_timeout = config.limits.drain_timeout;
    Ok(Gateway { pulls, mailboxes, accept, requests, departures, shards, finishing, endless, drain_timeout })
}

fn start_shards(
    config: &Config,
    listeners: Vec<std::net::TcpListener>,
    links: &ShardLinks,
) -> io::Result<Vec<std::thread::JoinHandle<()>>> {
    let heartbeat = config.heartbeat;
    let idle_s = heartbeat.max_interval_s + heartbeat.probe_count * heartbeat.min_interval_s;
    let shard_config = ShardConfig {
        frame_bytes_max: config.limits.frame_bytes_max,
        outbox_bytes_max: config.limits.outbox_bytes_max,
        connections_max: config.limits.connections_max.div_ceil(listeners.len()),
        handshake_timeout: config.limits.handshake_timeout,
        idle_timeout: Duration::from_secs(idle_s.into()),
        stall_timeout: config.limits.stall_timeout,
    };
    let context = SessionContext {
        gateway: config.gateway_id.clone(),
        lobbies: config.lobbies.clone(),
        body_bytes_max: config.limits.body_bytes_max,
        in_flight_max: config.limits.in_flight_max,
    };
    let mut shards = Vec::with_capacity(listeners.len());
    for (id, listener) in (0_u8..).map(ShardId).zip(listeners) {
        let (context, links) = (context.clone(), links.clone());
        let run = move || {
            if let Err(error) = shard::run(id, listener, shard_config, context, links) {
                tracing::error!(shard = id.0, %error, "a shard could not start");
            }
        };
        shards.push(std::thread::Builder::new().name(format!("shard-{}", id.0)).spawn(run)?);
    }
    Ok(shards)
}

/// What pulls are answered with: the newest of what is pulled, and older pages.
pub fn pulls<B: Backend>(
    config: &Config,
    backend: &Arc<B>,
    mailboxes: ShardMailboxes,
    routes: Arc<Routes>,
    rules: Arc<StormRules>,
) -> GatewayPulls<B> {
    let answer_bytes_max = config.limits.frame_bytes_max.saturating_sub(AROUND_MESSAGES_BYTES);
    Pulls {
        tails: TailKeeper::new(Arc::clone(backend), mailboxes, SystemClock, routes, rules, http::pull_reply_json),
        pages: Pages::new(Arc::clone(backend), SystemClock, answer_bytes_max, http::pull_reply_json),
    }
}

impl<B: Backend> Gateway<B> {
    /// What pulls are answered with.
    #[must_use]
    pub fn pulls(&self) -> &Arc<GatewayPulls<B>> {
        &self.pulls
    }

    /// The way into the shards, for WebSockets whose handshake is done.
    #[must_use]
    pub fn mailboxes(&self) -> &ShardMailboxes {
        &self.mailboxes
    }

    /// Drains: clients are told and closed, what they sent is answered, then everything ends. Within the drain timeout,
    /// after which what is left is cut.
    pub async fn stop(mut self) {
        for shard in (0..self.mailboxes.shards()).map(ShardId) {
            self.mailboxes.post(shard, vec![ShardInput::Drain]).await;
        }
        if tokio::time::timeout(self.drain_timeout, join_threads(&mut self.shards)).await.is_err() {
            tracing::warn!("some connections did not end in time and are cut");
            (0..self.mailboxes.shards()).map(ShardId).for_each(|shard| self.mailboxes.of(shard).inputs.close());
        }
        self.accept.close();
        self.requests.close();
        self.departures.close();
        let finish = async { while self.finishing.join_next().await.is_some() {} };
        if tokio::time::timeout(self.drain_timeout, finish).await.is_err() {
            tracing::warn!("some events were not answered in time; their senders will repeat them");
            self.finishing.shutdown().await;
        }
        self.endless.shutdown().await;
    }
}

/// Waits for shard threads without blocking the runtime.
async fn join_threads(shards: &mut Vec<std::thread::JoinHandle<()>>) {
    let shards = std::mem::take(shards);
    let join = move || shards.into_iter().for_each(|shard| drop(shard.join()));
    let joined: JoinHandle<()> = tokio::task::spawn_blocking(join);
    let _ = joined.await;
}

fn greeting(config: &Config) -> Greeting {
    let heartbeat = config.heartbeat;
    Greeting {
        gateway: config.gateway_id.clone(),
        heartbeat: v1::Heartbeat {
            min_interval_s: heartbeat.min_interval_s,
            max_interval_s: heartbeat.max_interval_s,
            probe_count: heartbeat.probe_count,
        },
        frame_bytes_max: config.limits.frame_bytes_max,
        body_bytes_max: config.limits.body_bytes_max,
        in_flight_max: config.limits.in_flight_max,
        lobbies: config.lobbies.clone(),
    }
}

/// Names sessions, attachments and streams over all gateways.
fn random() -> u64 {
    getrandom::u64().expect("the system's random source is there once the process runs")
}

/// Asks every shard for its fullest outboxes. A shard that has ended has none.
#[must_use]
pub fn inspect(mailboxes: ShardMailboxes) -> Inspect {
    Arc::new(move |limit| {
        let mailboxes = mailboxes.clone();
        Box::pin(async move {
            let mut views = Vec::new();
            for shard in (0..mailboxes.shards()).map(ShardId) {
                let (found, is_found) = tokio::sync::oneshot::channel();
                mailboxes.post(shard, vec![ShardInput::Inspect { limit, found }]).await;
                views.extend(is_found.await.unwrap_or_default());
            }
            views
        })
    })
}

/// Gives WebSockets whose handshake is done to the shards in turn.
#[must_use]
pub fn hand_off(mailboxes: ShardMailboxes) -> HandOff {
    let next = AtomicUsize::new(0);
    Arc::new(move |stream, early, _peer| {
        let turn = next.fetch_add(1, Ordering::Relaxed) % usize::from(mailboxes.shards());
        let shard = ShardId(u8::try_from(turn).expect("a remainder of a u8"));
        let mut offered = VecDeque::from([Upgraded { stream, early }]);
        mailboxes.of(shard).upgraded.offer(&mut offered);
        match offered.pop_front() {
            None => Ok(()),
            Some(Upgraded { stream, .. }) => Err(Busy(stream)),
        }
    })
}
