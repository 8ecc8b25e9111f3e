//! What operators may know of single connections: who reads slowly, and what it misses.
//!
//! In goes a question from this machine, out come the connections with the fullest outboxes. Always: nobody else is
//! answered, since there are names of users and devices in it; a proxy on this machine that speaks for others says so in its
//! headers and is refused like them.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use axum::Json;
use axum::extract::{Extension, State};
use axum::http::HeaderMap;
use axum::routing::get;
use serde::{Deserialize, Serialize};
use tidegate_core::delivery::ConnectionView;
use tidegate_core::ports::Backend;
use utoipa::{IntoParams, OpenApi, ToSchema};

use super::accept::PeerAddr;
use super::extract::QueryPart;
use super::problem::Problem;
use super::{Api, Route, bounds};

/// Asks the shards for the connections with the fullest outboxes, so many at most from each.
pub type Inspect = Arc<dyn Fn(usize) -> Pin<Box<dyn Future<Output = Vec<ConnectionView>> + Send>> + Send + Sync>;

/// What is served here.
pub(super) fn routes<B: Backend>() -> Vec<Route<B>> {
    vec![("/connections", get(list))]
}

/// The same for readers.
#[derive(OpenApi)]
#[openapi(paths(list))]
pub(super) struct Document;

#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(super) struct Limit {
    /// Connections shown at most.
    limit: Option<usize>,
}

#[derive(Serialize, ToSchema)]
#[schema(as = Connections)]
pub(super) struct Answer {
    connections: Vec<View>,
}

#[derive(Serialize, ToSchema)]
#[schema(as = Connection)]
struct View {
    shard: u8,
    transport: &'static str,
    user_id: u64,
    device_id: String,
    session_id: String,
    outbox_bytes: usize,
    /// Whether the socket takes no more at present.
    is_blocked: bool,
    /// Pushes that passed it by since it was behind.
    skipped_pushes: u64,
    /// Conversations it will be told of.
    behind_in: Vec<String>,
    in_flight: u16,
}

impl From<ConnectionView> for View {
    fn from(view: ConnectionView) -> Self {
        Self {
            shard: view.shard.0,
            transport: view.transport,
            user_id: view.user.0,
            device_id: view.device,
            // A number of 64 bits is more than JSON's readers are sure to take.
            session_id: format!("{:016x}", view.session.0),
            outbox_bytes: view.outbox_bytes,
            is_blocked: view.is_blocked,
            skipped_pushes: view.skipped_pushes,
            behind_in: view.behind_in.iter().map(ToString::to_string).collect(),
            in_flight: view.in_flight,
        }
    }
}

/// The connections with the fullest outboxes
///
/// Answered on this machine only; others are told that there is nothing here.
#[utoipa::path(get, path = "/connections", tag = "operation", security(()), params(Limit),
    responses((status = 200, description = "The fullest first", body = Answer)))]
pub(super) async fn list<B: Backend>(
    State(api): State<Arc<Api<B>>>,
    Extension(PeerAddr(peer)): Extension<PeerAddr>,
    headers: HeaderMap,
    QueryPart(Limit { limit }): QueryPart<Limit>,
) -> Result<Json<Answer>, Problem> {
    let is_forwarded = headers.contains_key("forwarded") || headers.contains_key("x-forwarded-for");
    if !peer.ip().to_canonical().is_loopback() || is_forwarded {
        return Err(Problem::route_unknown());
    }
    let limit = limit.unwrap_or(bounds::CONNECTIONS_SHOWN).min(bounds::CONNECTIONS_SHOWN_MAX);
    let mut views = (api.inspect)(limit).await;
    views.sort_by_key(|view| std::cmp::Reverse((view.outbox_bytes, view.skipped_pushes)));
    views.truncate(limit);
    Ok(Json(Answer { connections: views.into_iter().map(View::from).collect() }))
}
