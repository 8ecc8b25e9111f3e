//! The accept loop: one HTTP/1 connection after another, none of which may hold up the others.
//!
//! In go a listening socket, the router and the shortcut ahead of it, out come connections served until they or the process end. Must always hold:
//! the loop itself never waits for a peer; connections are bounded in number, and each in the time it may take over
//! headers, bodies and reading its answers; running out of files delays accepting and never ends it.

use std::io::{self, Write as _};
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use axum::http::Request;
use futures_util::future::{self, TryFutureExt as _};
use http_body_util::Either;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tidegate_core::ports::Backend;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::task::JoinSet;
use tower::ServiceExt as _;

use super::Life;
use super::bounds::{ACCEPT_BACKOFF, Bounds, HEADER_BYTES_MAX, HEADERS_MAX};
use super::shortcut::Shortcut;
use crate::telemetry;

/// Who is at the other end of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PeerAddr(pub SocketAddr);

/// What a connection too many is told, without looking at what it asks.
const TOO_MANY: &[u8] = b"HTTP/1.1 503 Service Unavailable\r\nretry-after: 1\r\nconnection: close\r\n\
    content-type: application/problem+json\r\ncontent-length: 159\r\n\r\n\
    {\"type\":\"urn:tidegate:problem:overloaded\",\"title\":\"Service Unavailable\",\"status\":503,\
    \"detail\":\"too many connections\",\"code\":\"overloaded\",\"retry_after_ms\":1000}";

/// Serves until `life` is [`Life::Ending`], then lets requests under way end within their bound.
pub(super) async fn run<B: Backend>(
    listener: TcpListener,
    router: Router,
    shortcut: Arc<Shortcut<B>>,
    bounds: Bounds,
    life: watch::Receiver<Life>,
) {
    let slots = Arc::new(Semaphore::new(bounds.connections_max));
    let mut connections = JoinSet::new();
    let mut ending = pin!(ended(life.clone()));
    let mut failing = false;
    loop {
        tokio::select! {
            () = &mut ending => break,
            Some(_) = connections.join_next() => {}
            accepted = listener.accept() => match accepted {
                Ok((stream, peer)) => {
                    failing = false;
                    match Arc::clone(&slots).try_acquire_owned() {
                        Ok(slot) => {
                            let (router, shortcut) = (router.clone(), Arc::clone(&shortcut));
                            let connection = serve(stream, PeerAddr(peer), router, shortcut, bounds, life.clone(), slot);
                            connections.spawn(connection);
                        }
                        Err(_) => turn_away(stream),
                    }
                }
                // The peer went away before we came to it.
                Err(error) if is_the_peers(&error) => {}
                Err(error) => {
                    metrics::counter!(telemetry::HTTP_ACCEPT_FAILURES).increment(1);
                    if !failing {
                        tracing::error!(%error, "cannot accept HTTP connections, trying on");
                    }
                    failing = true;
                    tokio::time::sleep(ACCEPT_BACKOFF).await;
                }
            },
        }
    }
    drop(listener);
    let all_ended = async { while connections.join_next().await.is_some() {} };
    if tokio::time::timeout(bounds.drain_timeout, all_ended).await.is_err() {
        tracing::warn!(open = connections.len(), "HTTP connections were cut at the end");
    }
}

/// One connection, up to its end or its upgrade.
async fn serve<B: Backend>(
    stream: TcpStream,
    peer: PeerAddr,
    router: Router,
    shortcut: Arc<Shortcut<B>>,
    bounds: Bounds,
    life: watch::Receiver<Life>,
    _slot: OwnedSemaphorePermit,
) {
    let _open = Open::count();
    let socket = socket2::SockRef::from(&stream);
    // A socket that takes no options is about to fail anyway.
    let _ = socket.set_tcp_nodelay(true).and_then(|()| socket.set_tcp_user_timeout(Some(bounds.write_timeout)));
    let answer = service_fn(|request: Request<Incoming>| {
        if let Some(response) = shortcut.answer(&request) {
            return future::Either::Left(future::ready(Ok(response.map(Either::Left))));
        }
        let mut request = request.map(Body::new);
        request.extensions_mut().insert(peer);
        future::Either::Right(router.clone().oneshot(request).map_ok(|response| response.map(Either::Right)))
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(bounds.header_timeout)
        .max_header_size(HEADER_BYTES_MAX)
        .max_headers(HEADERS_MAX)
        .serve_connection(TokioIo::new(stream), answer)
        .with_upgrades();
    let mut connection = pin!(connection);
    let served = tokio::select! {
        served = connection.as_mut() => served,
        () = ended(life) => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = served {
        tracing::debug!(%error, peer = %peer.0, "an HTTP connection ended early");
    }
}

/// Completes when the process ends, or nobody is left to say so.
async fn ended(mut life: watch::Receiver<Life>) {
    let _ = life.wait_for(|life| *life == Life::Ending).await;
}

fn turn_away(stream: TcpStream) {
    metrics::counter!(telemetry::HTTP_REFUSED).increment(1);
    // Fits a fresh socket's buffer; whoever cannot take it at once only sees the connection close.
    if let Ok(mut stream) = stream.into_std() {
        let _ = stream.write(TOO_MANY);
    }
}

fn is_the_peers(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset};
    matches!(error.kind(), ConnectionAborted | ConnectionRefused | ConnectionReset)
}

/// Keeps the gauge right however a connection ends.
struct Open;

impl Open {
    fn count() -> Self {
        metrics::gauge!(telemetry::HTTP_CONNECTIONS_OPEN).increment(1.0);
        Self
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        metrics::gauge!(telemetry::HTTP_CONNECTIONS_OPEN).decrement(1.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_canned_answer_says_its_true_length() {
        let text = std::str::from_utf8(TOO_MANY).expect("ASCII");
        let (head, body) = text.split_once("\r\n\r\n").expect("head and body");
        assert!(head.ends_with(&format!("content-length: {}", body.len())), "{head}, but {}", body.len());
        assert!(serde_json::from_str::<serde_json::Value>(body).is_ok());
    }
}
