//! Whether the process lives and may be sent traffic.
//!
//! In go pings of the parts behind us, out come `/livez` and `/readyz`. One task pings, once a second however many ask;
//! an answer only reads what it found. Must always hold: not ready while a part is down, while draining, or before the
//! first round of pings.

use std::pin::Pin;
use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use futures_util::future::join_all;
use serde::Serialize;
use tidegate_core::ports::{Archive as _, Backend, HotStore as _, PortResult};
use tokio::sync::watch;
use utoipa::{OpenApi, ToSchema};

use super::bounds::PING_INTERVAL;
use super::{Api, Life, Route};
use crate::telemetry;

/// What is served here.
pub(super) fn routes<B: Backend>() -> Vec<Route<B>> {
    vec![("/livez", get(live)), ("/readyz", get(ready)), ("/metrics", get(metrics))]
}

/// The same for readers.
#[derive(OpenApi)]
#[openapi(paths(live, ready, metrics))]
pub(super) struct Document;

/// A part that readiness depends on.
#[derive(Clone)]
pub struct Part {
    name: &'static str,
    ping: Ping,
}

type Ping = Arc<dyn Fn() -> Pin<Box<dyn Future<Output = PortResult<()>> + Send>> + Send + Sync>;

impl Part {
    /// A part that is up when `ping` answers within a second.
    pub fn new<F>(name: &'static str, ping: impl Fn() -> F + Send + Sync + 'static) -> Self
    where
        F: Future<Output = PortResult<()>> + Send + 'static,
    {
        Self { name, ping: Arc::new(move || Box::pin(ping())) }
    }

    /// Hot store and archive, which say so by their ports.
    pub fn of_backend<B: Backend>(backend: &Arc<B>) -> Vec<Self> {
        let (hot, archive) = (Arc::clone(backend), Arc::clone(backend));
        let hot = move || {
            let backend = Arc::clone(&hot);
            async move { backend.hot().ping().await }
        };
        let archive = move || {
            let backend = Arc::clone(&archive);
            async move { backend.archive().ping().await }
        };
        vec![Self::new("hot_store", hot), Self::new("archive", archive)]
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "lowercase")]
enum PartState {
    /// Not pinged yet.
    Starting,
    Up,
    Down,
}

#[derive(Clone, Copy, Debug, Serialize, ToSchema)]
struct PartReport {
    name: &'static str,
    state: PartState,
}

/// What the last round of pings found.
#[derive(Clone)]
pub(super) struct Readiness(watch::Receiver<Vec<PartReport>>);

impl Readiness {
    /// The reader, and the task that pings; it runs until it is dropped.
    pub(super) fn new(parts: Vec<Part>) -> (Self, impl Future<Output = ()> + Send) {
        let starting = parts.iter().map(|part| PartReport { name: part.name, state: PartState::Starting }).collect();
        let (found, reports) = watch::channel(starting);
        (Self(reports), keep_pinging(parts, found))
    }
}

async fn keep_pinging(parts: Vec<Part>, found: watch::Sender<Vec<PartReport>>) {
    loop {
        let pongs = join_all(parts.iter().map(Part::failure)).await;
        found.send_modify(|reports| {
            for (report, failure) in reports.iter_mut().zip(pongs) {
                report.learn(failure);
            }
        });
        tokio::time::sleep(PING_INTERVAL).await;
    }
}

impl Part {
    /// Pings once; what went wrong, if anything.
    async fn failure(&self) -> Option<String> {
        match tokio::time::timeout(PING_INTERVAL, (self.ping)()).await {
            Ok(Ok(())) => None,
            Ok(Err(error)) => Some(error.to_string()),
            Err(_) => Some("no answer in time".to_owned()),
        }
    }
}

impl PartReport {
    fn learn(&mut self, failure: Option<String>) {
        let before =
            std::mem::replace(&mut self.state, if failure.is_none() { PartState::Up } else { PartState::Down });
        if self.state != before {
            match failure {
                Some(why) => tracing::warn!(part = self.name, why, "not ready: a part is down"),
                None => tracing::info!(part = self.name, "a part is up"),
            }
        }
        let up = if self.state == PartState::Up { 1.0 } else { 0.0 };
        metrics::gauge!(telemetry::HEALTH_PARTS_UP, "part" => self.name).set(up);
    }
}

#[derive(Serialize, ToSchema)]
struct ReadyAnswer {
    status: &'static str,
    parts: Vec<PartReport>,
}

/// Whether the process answers
#[utoipa::path(get, path = "/livez", tag = "operation", security(()),
    responses((status = 200, description = "It does", body = serde_json::Value)))]
pub(super) async fn live() -> Response {
    Json(serde_json::json!({ "status": "live" })).into_response()
}

/// Whether traffic is welcome, and what each part behind is
#[utoipa::path(get, path = "/readyz", tag = "operation", security(()),
    responses(
        (status = 200, description = "It is", body = ReadyAnswer),
        (status = 503, description = "It is not", body = ReadyAnswer),
    ))]
pub(super) async fn ready<B: Backend>(State(api): State<Arc<Api<B>>>) -> Response {
    let parts = api.readiness.0.borrow().clone();
    let status = match *api.life.borrow() {
        Life::Serving if parts.iter().all(|part| part.state == PartState::Up) => "ready",
        Life::Serving => "not_ready",
        Life::Draining | Life::Ending => "draining",
    };
    let code = if status == "ready" { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (code, Json(ReadyAnswer { status, parts })).into_response()
}

/// Metrics, as Prometheus text
#[utoipa::path(get, path = "/metrics", tag = "operation", security(()),
    responses((status = 200, description = "Every metric", body = String, content_type = "text/plain")))]
pub(super) async fn metrics<B: Backend>(State(api): State<Arc<Api<B>>>) -> Response {
    let text = api.metrics.render();
    ([(axum::http::header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], text).into_response()
}
