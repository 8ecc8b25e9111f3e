//! What every request gets, whatever its route: an id, a deadline, a time measured, and an answer even if its handler
//! panics.

use std::panic::AssertUnwindSafe;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use axum::extract::Request;
use axum::http::header::{CACHE_CONTROL, X_CONTENT_TYPE_OPTIONS};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use futures_util::FutureExt as _;
use tracing::Instrument as _;

use super::bounds::REQUEST_ID_BYTES_MAX;
use super::problem::Problem;
use crate::telemetry;

static REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// Outermost: wraps everything, unknown paths included, but what the shortcut answers.
pub(super) async fn envelope(request: Request, next: Next, timeout: Duration) -> Response {
    let id = request_id(request.headers());
    let span = tracing::info_span!(
        "http",
        request_id = id.to_str().unwrap_or_default(),
        method = %request.method(),
        path = request.uri().path()
    );
    let handled = AssertUnwindSafe(tokio::time::timeout(timeout, next.run(request))).catch_unwind();
    let mut response = match handled.instrument(span).await {
        Ok(Ok(response)) => response,
        Ok(Err(_)) => Problem::later("timeout", "this took too long; it may or may not have happened").into_response(),
        Err(_) => {
            metrics::counter!(telemetry::HTTP_HANDLER_PANICS).increment(1);
            Problem::internal().into_response()
        }
    };
    seal(response.headers_mut(), id);
    response
}

/// What the request calls itself, or a name of our own.
pub(super) fn request_id(headers: &HeaderMap) -> HeaderValue {
    headers.get(&REQUEST_ID).filter(|id| legal(id)).cloned().unwrap_or_else(fresh)
}

/// Adds what every answer has.
pub(super) fn seal(headers: &mut HeaderMap, id: HeaderValue) {
    headers.insert(REQUEST_ID.clone(), id);
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.entry(CACHE_CONTROL).or_insert(HeaderValue::from_static("no-store"));
}

/// Around one route: how long its answers take.
pub(super) async fn measure(route: &'static str, request: Request, next: Next) -> Response {
    let (begun, method) = (Instant::now(), label(request.method()));
    let response = next.run(request).await;
    let status = response.status().as_u16().to_string();
    metrics::histogram!(telemetry::HTTP_REQUEST, "route" => route, "method" => method, "status" => status)
        .record(begun.elapsed().as_secs_f64());
    response
}

/// A client may invent methods; labels must not follow it.
fn label(method: &Method) -> &'static str {
    match *method {
        Method::GET => "GET",
        Method::HEAD => "HEAD",
        Method::POST => "POST",
        _ => "other",
    }
}

fn legal(id: &HeaderValue) -> bool {
    let legal = |b: &u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.');
    !id.is_empty() && id.len() <= REQUEST_ID_BYTES_MAX && id.as_bytes().iter().all(legal)
}

/// Unique in this process and, by its first half, among processes.
fn fresh() -> HeaderValue {
    static PROCESS: OnceLock<u32> = OnceLock::new();
    static NUMBER: AtomicU64 = AtomicU64::new(0);
    let process = PROCESS.get_or_init(|| getrandom::u32().unwrap_or_else(|_| std::process::id()));
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    HeaderValue::from_str(&format!("{process:08x}-{number:x}")).expect("hexadecimal is legal in a header")
}
