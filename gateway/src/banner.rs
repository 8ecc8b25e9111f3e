//! What the gateway prints when it starts: where it listens, and what to try next.

use std::fmt::Write as _;
use std::net::SocketAddr;

use crate::config::{BackendKind, Config};

/// The text after a start.
#[must_use]
pub fn started(config: &Config, tcp: SocketAddr, http: SocketAddr) -> String {
    let program = std::env::args().next().unwrap_or_else(|| "tidegate".to_owned());
    let server = if http == default_http() { String::new() } else { format!(" --server http://{}", reachable(http)) };
    let http = reachable(http);
    let mut text = format!("\nTidegate {} is up. {}\n\n", env!("CARGO_PKG_VERSION"), summary(config));
    let _ = write!(
        text,
        "  TCP        {tcp}\n  \
           WebSocket  ws://{http}/ws\n  \
           HTTP       http://{http}/api/v1\n  \
           metrics    http://{http}/metrics\n\n\
         Try next, each in a terminal of its own:\n  \
           {program} chat --user anna{server}\n  \
           {program} chat --user ben{server}\n  \
           curl http://{http}/readyz\n\n\
         Ctrl-C stops it.\n"
    );
    text
}

/// Which backends, in a sentence.
#[must_use]
pub fn summary(config: &Config) -> String {
    match config.backend {
        BackendKind::Embedded => {
            format!("Embedded backends; messages are in {}.", config.data_dir.join("tidegate.db").display())
        }
        BackendKind::Services => "Backends: RabbitMQ, Redis and MySQL.".to_owned(),
    }
}

fn default_http() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], 7480))
}

/// An address a client on this machine can use: "all interfaces" is none.
fn reachable(address: SocketAddr) -> SocketAddr {
    if address.ip().is_unspecified() { SocketAddr::from(([127, 0, 0, 1], address.port())) } else { address }
}
