//! `/ws`: the opening handshake of RFC 6455, section 4.2, and handing the socket to whoever speaks frames on it.
//!
//! In goes an upgrade request, out goes 101 and then the bare socket with the bytes that came behind the request. This
//! module never reads or writes a WebSocket frame, but for one close frame when nobody takes the socket. Any origin is
//! allowed: there is no cookie that a strange page could ride on; the login inside the connection carries the token.

use std::io::Write as _;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::{Request, State};
use axum::http::header::{
    CONNECTION, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_PROTOCOL, SEC_WEBSOCKET_VERSION, UPGRADE,
};
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, Version};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use hyper::upgrade::{OnUpgrade, Parts};
use hyper_util::rt::TokioIo;
use sha1::{Digest as _, Sha1};
use tidegate_core::ports::Backend;
use tokio::net::TcpStream;
use utoipa::OpenApi;

use super::accept::PeerAddr;
use super::problem::Problem;
use super::{Api, Life, Route};
use crate::telemetry;

/// What is served here.
pub(super) fn routes<B: Backend>() -> Vec<Route<B>> {
    vec![(PATH, get(upgrade))]
}

/// The same for readers.
#[derive(OpenApi)]
#[openapi(paths(upgrade))]
pub(super) struct Document;

/// The path of the handshake.
pub const PATH: &str = "/ws";

/// The subprotocol we speak; echoed if the client offers it.
pub const SUBPROTOCOL: &str = "tidegate.v1";

/// Section 1.3.
const ACCEPT_GUID: &[u8] = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11";

/// From our answer being ready to its last byte being on the way.
const UPGRADE_TIMEOUT: Duration = Duration::from_secs(10);

/// A final close frame with code 1013, "try again later" (registered with IANA).
const CLOSE_TRY_AGAIN_LATER: [u8; 4] = [0x88, 0x02, 0x03, 0xf5];

/// Nobody took the socket; it comes back to be closed properly.
#[derive(Debug)]
pub struct Busy(pub std::net::TcpStream);

/// Takes a socket after its handshake, in non-blocking mode, with the bytes that were read behind the request. Must not
/// block.
pub type HandOff = Arc<dyn Fn(std::net::TcpStream, Bytes, PeerAddr) -> Result<(), Busy> + Send + Sync>;

/// The handshake of a WebSocket
///
/// Subprotocol `tidegate.v1`; the frames in its binary messages are those of proto/PROTOCOL.md.
#[utoipa::path(get, path = "/ws", tag = "client", security(()),
    responses((status = 101, description = "Frames from here on")))]
pub(super) async fn upgrade<B: Backend>(State(api): State<Arc<Api<B>>>, mut request: Request) -> Response {
    if *api.life.borrow() != Life::Serving {
        return Problem::later("draining", "this gateway is going away; connect again").into_response();
    }
    let accept = match check(&request) {
        Ok(key) => accept_of(key),
        Err(problem) => return problem.into_response(),
    };
    let Some(peer) = request.extensions().get::<PeerAddr>().copied() else {
        // Only a router that is not served by our accept loop.
        return Problem::internal().into_response();
    };
    let offered = offers(request.headers(), &SEC_WEBSOCKET_PROTOCOL, |offer| offer == SUBPROTOCOL);
    tokio::spawn(hand_off(hyper::upgrade::on(&mut request), peer, Arc::clone(&api.hand_off)));

    let mut response = StatusCode::SWITCHING_PROTOCOLS.into_response();
    let headers = response.headers_mut();
    headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
    headers.insert(UPGRADE, HeaderValue::from_static("websocket"));
    headers.insert(SEC_WEBSOCKET_ACCEPT, accept);
    if offered {
        headers.insert(SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static(SUBPROTOCOL));
    }
    response
}

/// The client's key, if the request is an opening handshake. The method was checked by the route.
fn check(request: &Request) -> Result<&HeaderValue, Problem> {
    let headers = request.headers();
    let named = |name| move |token: &str| token.eq_ignore_ascii_case(name);
    let old = request.version() < Version::HTTP_11;
    if old || !offers(headers, &UPGRADE, named("websocket")) || !offers(headers, &CONNECTION, named("upgrade")) {
        let detail = "connect with a WebSocket client: Upgrade: websocket, Connection: Upgrade";
        let problem = Problem::new(StatusCode::UPGRADE_REQUIRED, "websocket_upgrade_required", detail);
        return Err(problem.with(UPGRADE, "websocket").with(SEC_WEBSOCKET_VERSION, "13"));
    }
    if headers.get(SEC_WEBSOCKET_VERSION).is_none_or(|version| version != "13") {
        let problem = Problem::new(StatusCode::UPGRADE_REQUIRED, "websocket_version_unsupported", "only version 13");
        return Err(problem.with(UPGRADE, "websocket").with(SEC_WEBSOCKET_VERSION, "13"));
    }
    let key = headers.get(SEC_WEBSOCKET_KEY);
    let nonce = |key: &&HeaderValue| STANDARD.decode(key.as_bytes()).is_ok_and(|nonce| nonce.len() == 16);
    key.filter(nonce).ok_or_else(|| {
        let detail = "Sec-WebSocket-Key must be 16 bytes in base64";
        Problem::new(StatusCode::BAD_REQUEST, "websocket_key_invalid", detail).with(SEC_WEBSOCKET_VERSION, "13")
    })
}

/// Whether a list header, which may be repeated, has an element that `is`.
fn offers(headers: &HeaderMap, name: &HeaderName, is: impl Fn(&str) -> bool) -> bool {
    let lines = headers.get_all(name).iter().filter_map(|line| line.to_str().ok());
    lines.flat_map(|line| line.split(',')).any(|element| is(element.trim()))
}

fn accept_of(key: &HeaderValue) -> HeaderValue {
    let digest = Sha1::new().chain_update(key.as_bytes()).chain_update(ACCEPT_GUID).finalize();
    HeaderValue::from_str(&STANDARD.encode(digest)).expect("base64 is legal in a header")
}

/// Waits until the 101 is out, then gives the socket away.
async fn hand_off(upgrade: OnUpgrade, peer: PeerAddr, taker: HandOff) {
    let outcome = match tokio::time::timeout(UPGRADE_TIMEOUT, upgrade).await {
        Ok(Ok(upgraded)) => match upgraded.downcast::<TokioIo<TcpStream>>() {
            Ok(Parts { io, read_buf, .. }) => give(io.into_inner(), read_buf, peer, &taker),
            Err(_) => "lost",
        },
        Ok(Err(_)) | Err(_) => "lost",
    };
    metrics::counter!(telemetry::HTTP_HAND_OFFS, "outcome" => outcome).increment(1);
}

fn give(stream: TcpStream, behind: Bytes, peer: PeerAddr, taker: &HandOff) -> &'static str {
    // The taker has a policy of its own for slow receivers.
    let cleared = socket2::SockRef::from(&stream).set_tcp_user_timeout(None);
    match cleared.and_then(|()| stream.into_std()) {
        Ok(stream) => match taker(stream, behind, peer) {
            Ok(()) => "taken",
            Err(Busy(mut stream)) => {
                // Four bytes fit an idle socket's buffer; if not, the close alone must do.
                let _ = stream.write(&CLOSE_TRY_AGAIN_LATER);
                "busy"
            }
        },
        Err(_) => "lost",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_accept_value_is_that_of_the_rfc() {
        let key = HeaderValue::from_static("dGhlIHNhbXBsZSBub25jZQ==");
        assert_eq!(accept_of(&key), "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
    }
}
