//! The HTTP side: the JSON API, probes, metrics, and the handshake of WebSockets.
//!
//! In go requests on a socket of our own accept loop, out come JSON, `application/problem+json`, or a socket handed to the
//! shards. Must always hold: no handler touches a shard; nothing a service behind us said reaches a client; every queue,
//! body and wait here has its bound in [`bounds`].

mod accept;
pub mod bounds;
mod chat;
mod connections;
mod envelope;
mod extract;
mod health;
pub mod openapi;
mod password;
mod problem;
mod pull;
mod room;
mod shortcut;
mod user;
mod websocket;

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::middleware::from_fn;
use axum::response::IntoResponse as _;
use axum::routing::{MethodRouter, get};
use axum::{Router, http::header::CONTENT_TYPE};
use metrics_exporter_prometheus::PrometheusHandle;
use serde_json::json;
use tidegate_core::ids::{ConversationId, LobbyName};
use tidegate_core::ports::{Backend, PortError};
use tidegate_core::services::chat::ChatService;
use tidegate_core::services::password::PasswordError;
use tidegate_core::services::room::RoomService;
use tidegate_core::services::user::{LoginRules, UserService};
use tidegate_core::services::{ServiceError, ServiceResult};
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, watch};

pub use accept::PeerAddr;
pub use bounds::Bounds;
pub use connections::Inspect;
pub use health::Part;
pub use password::PasswordPool;
pub use pull::{GatewayPulls, pull_reply_json};
pub use websocket::{Busy, HandOff, PATH as WEBSOCKET_PATH, SUBPROTOCOL};

use self::shortcut::Shortcut;
use crate::clock::SystemClock;
use crate::config::Config;

/// Where the process is between its start and its end; moves forward only.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Life {
    /// All is welcome.
    Serving,
    /// Connections are being sent elsewhere: not ready, no new WebSockets; requests are still answered.
    Draining,
    /// No more connections; requests under way may end.
    Ending,
}

/// What the wiring gives.
pub struct Setup<'a, B: Backend> {
    /// The chosen backends.
    pub backend: Arc<B>,
    /// The whole configuration.
    pub config: &'a Config,
    /// Where TCP clients connect: the port is the system's choice if the configured one is 0.
    pub tcp_address: SocketAddr,
    /// What readiness depends on; [`Part::of_backend`] and whatever else there is.
    pub parts: Vec<Part>,
    /// Who takes WebSockets.
    pub hand_off: HandOff,
    /// Who tells of single connections.
    pub inspect: Inspect,
    /// What pulls are answered with.
    pub pulls: Arc<GatewayPulls<B>>,
    /// What `/metrics` shows.
    pub metrics: PrometheusHandle,
    /// Where the process is.
    pub life: watch::Receiver<Life>,
    /// [`Bounds::default`], but in tests.
    pub bounds: Bounds,
}

/// Where what is newest in a lobby is pulled.
const PULL_PATH: &str = "/api/v1/chat/pull/lobby";

/// What handlers share.
pub struct Api<B: Backend> {
    users: UserService<B, PasswordPool>,
    rooms: Arc<RoomService<B, SystemClock>>,
    chat: ChatService<B>,
    /// The answer of `/api/v1/config`.
    settings: serde_json::Value,
    readiness: health::Readiness,
    hand_off: HandOff,
    inspect: Inspect,
    pulls: Arc<GatewayPulls<B>>,
    tokens: pull::Tokens,
    metrics: PrometheusHandle,
    life: watch::Receiver<Life>,
    changes: Arc<Semaphore>,
    bounds: Bounds,
}

/// Takes the address early, so that a port in use is known before anything else starts. Connections wait in the backlog
/// until [`serve`].
///
/// # Errors
/// Whatever the system says about the address.
pub fn bind(address: SocketAddr) -> io::Result<std::net::TcpListener> {
    let listener = std::net::TcpListener::bind(address)?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

/// Serves on `listener`, which must be non-blocking, until [`Life::Ending`]; to be run on the engines' runtime.
///
/// # Errors
/// If the listener cannot be used; a password cost that argon2 does not take comes as [`io::ErrorKind::InvalidInput`].
pub async fn serve<B: Backend>(listener: std::net::TcpListener, setup: Setup<'_, B>) -> io::Result<()> {
    let listener = TcpListener::from_std(listener)?;
    let (bounds, life) = (setup.bounds, setup.life.clone());
    let (readiness, pinging) = health::Readiness::new(setup.parts.clone());
    let api = Api::new(setup, readiness).map_err(|error| io::Error::new(io::ErrorKind::InvalidInput, error))?;
    let api = Arc::new(api);
    let shortcut = Arc::new(Shortcut::new(Arc::clone(&api)));
    tokio::select! {
        () = accept::run(listener, router(api), Arc::clone(&shortcut), bounds, life) => {}
        () = shortcut.report() => {}
        () = pinging => {}
    }
    Ok(())
}

impl<B: Backend> Api<B> {
    fn new(setup: Setup<'_, B>, readiness: health::Readiness) -> Result<Self, PasswordError> {
        let (config, backend) = (setup.config, setup.backend);
        let auth = config.auth;
        let rules = LoginRules { token_ttl: auth.token_ttl, decoy_hash: auth.password_cost.decoy()? };
        let hasher = PasswordPool::new(auth.password_cost, auth.hash_concurrency_max);
        Ok(Self {
            users: UserService::new(Arc::clone(&backend), hasher, rules),
            rooms: Arc::new(RoomService::new(Arc::clone(&backend), SystemClock)),
            chat: ChatService::new(backend, config.lobbies.iter().copied()),
            settings: settings(config, setup.tcp_address),
            readiness,
            hand_off: setup.hand_off,
            inspect: setup.inspect,
            pulls: setup.pulls,
            tokens: pull::Tokens::default(),
            metrics: setup.metrics,
            life: setup.life,
            changes: Arc::new(Semaphore::new(bounds::CHANGES_MAX)),
            bounds: setup.bounds,
        })
    }

    /// Runs a change to its end even if its client goes away meanwhile: a change that is committed must be announced.
    async fn to_its_end<T: Send + 'static>(
        &self,
        change: impl Future<Output = ServiceResult<T>> + Send + 'static,
    ) -> ServiceResult<T> {
        let place = Arc::clone(&self.changes).try_acquire_owned().map_err(|_| ServiceError::Overloaded)?;
        let task = tokio::spawn(async move {
            let _place = place;
            change.await
        });
        task.await.unwrap_or_else(|error| {
            Err(ServiceError::Internal(PortError::Refused { service: "http", detail: error.to_string() }))
        })
    }
}

/// A path, and who answers which methods on it.
type Route<B> = (&'static str, MethodRouter<Arc<Api<B>>>);

/// Everything that is served.
fn routes<B: Backend>() -> Vec<Route<B>> {
    let mut routes = vec![("/", get(welcome)), ("/api/v1/config", get(show_settings))];
    for part in [
        openapi::routes(),
        user::routes(),
        room::routes(),
        chat::routes(),
        pull::routes(),
        websocket::routes(),
        health::routes(),
        connections::routes(),
    ] {
        routes.extend(part);
    }
    routes
}

fn router<B: Backend>(api: Arc<Api<B>>) -> Router {
    let request_timeout = api.bounds.request_timeout;
    let mut router = Router::new();
    for (path, methods) in routes() {
        router =
            router.route(path, methods.layer(from_fn(move |request, next| envelope::measure(path, request, next))));
    }
    router
        .method_not_allowed_fallback(async || problem::Problem::method_not_allowed())
        .fallback(async || problem::Problem::route_unknown())
        .layer(from_fn(move |request, next| envelope::envelope(request, next, request_timeout)))
        .with_state(api)
}

/// What this is
#[utoipa::path(get, path = "/", tag = "client", security(()),
    responses((status = 200, description = "A few lines", body = String, content_type = "text/plain")))]
async fn welcome() -> axum::response::Response {
    let text = "\
Tidegate, a chat gateway.

  POST /api/v1/register   {\"name\", \"password\"}
  POST /api/v1/login      {\"name\", \"password\"} -> token
  GET  /api/v1/config     what clients need to know: ports, bounds, lobbies
  GET  /docs              the whole HTTP API, to be read; /openapi.json for programs
  GET  /ws                WebSocket, subprotocol tidegate.v1
  GET  /livez /readyz /metrics
  GET  /connections       those with the fullest outboxes; from this machine only

The byte protocol is described in proto/PROTOCOL.md, the rest in README.md.
";
    ([(CONTENT_TYPE, "text/plain; charset=utf-8")], text).into_response()
}

/// Ports, bounds, lobbies and what else a client needs to know
#[utoipa::path(get, path = "/api/v1/config", tag = "client", security(()),
    responses((status = 200, description = "The settings", body = serde_json::Value)))]
async fn show_settings<B: Backend>(State(api): State<Arc<Api<B>>>) -> Json<serde_json::Value> {
    Json(api.settings.clone())
}

/// What clients need to know of how a lobby behaves in a storm.
fn storm(config: &Config, lobby: LobbyName) -> serde_json::Value {
    let rule = config.storm.of(&ConversationId::Lobby(lobby));
    let gears = [("merged", rule.gears.merged), ("signal", rule.gears.signal)];
    let gears = gears.into_iter().filter(|(_, allowed)| *allowed).map(|(name, _)| name);
    json!({
        "gears": std::iter::once("direct").chain(gears).collect::<Vec<_>>(),
        "spread_ms": u64::try_from(rule.spread.as_millis()).unwrap_or(u64::MAX),
        "watcher_bytes_per_s": rule.watcher_bytes_per_s,
    })
}

fn settings(config: &Config, tcp: SocketAddr) -> serde_json::Value {
    let heartbeat = config.heartbeat;
    json!({
        "gateway_id": config.gateway_id.as_str(),
        "heartbeat": {
            "min_interval": heartbeat.min_interval_s,
            "max_interval": heartbeat.max_interval_s,
            "probe_count": heartbeat.probe_count,
        },
        "max_frame_bytes": config.limits.frame_bytes_max,
        "max_body_bytes": config.limits.body_bytes_max,
        "max_in_flight": config.limits.in_flight_max,
        "lobbies": config.lobbies.iter().map(|name| name.as_str()).collect::<Vec<_>>(),
        "storms": config.lobbies.iter().map(|name| (name.as_str().to_owned(), storm(config, *name)))
            .collect::<serde_json::Map<_, _>>(),
        "tcp_port": tcp.port(),
        "websocket_path": WEBSOCKET_PATH,
        "websocket_subprotocol": SUBPROTOCOL,
    })
}
