//! The TCP listener of a shard: accepts and does nothing slow. Each shard has its own socket on the same address
//! (SO_REUSEPORT), so that the kernel spreads connections and no thread hands them around.

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::time::Duration;

use socket2::{Domain, Protocol, Socket, Type};

use super::Shard;
use super::connection::Transport;
use crate::telemetry;

/// Connections the kernel completes while the shard is busy; the kernel lowers it to net.core.somaxconn.
const BACKLOG: i32 = 4096;

/// Binds one listener per shard.
///
/// # Errors
/// If the address cannot be bound: taken, not ours, or not allowed.
pub fn bind(address: SocketAddr, shards: usize) -> io::Result<Vec<TcpListener>> {
    let mut listeners = Vec::new();
    let mut address = address;
    for _ in 0..shards {
        // The first one says whether somebody else is there: SO_REUSEPORT alone would share the port with a second
        // gateway of the same user, and half of the clients would end up there.
        if listeners.is_empty() && address.port() != 0 {
            drop(TcpListener::bind(address)?);
        }
        let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
        socket.set_reuse_address(true)?;
        socket.set_reuse_port(true)?;
        socket.set_nonblocking(true)?;
        socket.bind(&address.into())?;
        socket.listen(BACKLOG)?;
        let listener = TcpListener::from(socket);
        // Port 0 is chosen once, for all.
        address = listener.local_addr()?;
        listeners.push(listener);
    }
    Ok(listeners)
}

/// Accepts for ever. Out of descriptors (EMFILE, ENFILE) or memory it pauses: waiting clients stay in the backlog.
pub(super) async fn run(shard: Shard, listener: TcpListener) {
    const PAUSE: Duration = Duration::from_millis(100);
    let listener = match tokio::net::TcpListener::from_std(listener) {
        Ok(listener) => listener,
        Err(error) => {
            tracing::error!(%error, "the listener cannot be registered");
            return;
        }
    };
    loop {
        match listener.accept().await {
            Ok((stream, _)) => shard.adopt(stream, Transport::Tcp, &[]),
            // The client left before it was accepted.
            Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => {}
            Err(error) => {
                metrics::counter!(telemetry::SHARD_ACCEPT_FAILURES).increment(1);
                tracing::warn!(%error, "could not accept, pausing");
                tokio::time::sleep(PAUSE).await;
            }
        }
    }
}
