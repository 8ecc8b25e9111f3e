//! Every bound of the HTTP side, each with its reason.

use std::time::Duration;

/// A request's body: the largest is a registration; 64 KiB leaves room for what will come.
pub const BODY_BYTES_MAX: usize = 64 * 1024;

/// Request line and headers together; tokens and proxies' additions fit many times.
pub const HEADER_BYTES_MAX: usize = 16 * 1024;

/// Headers of one request.
pub const HEADERS_MAX: usize = 64;

/// What people hand in as `x-request-id` is kept up to this length.
pub const REQUEST_ID_BYTES_MAX: usize = 64;

/// Changes that run to their end after their client went away.
pub const CHANGES_MAX: usize = 256;

/// Hashes waiting for each one being computed: at some 20 ms a hash the last one waits two to three seconds.
pub const HASHES_WAITING_PER_RUNNING: usize = 128;

/// Time between two accepts after the system ran out of files: closing connections frees some meanwhile.
pub const ACCEPT_BACKOFF: Duration = Duration::from_millis(100);

/// Time between two pings of the parts behind us, and what a ping may take.
pub const PING_INTERVAL: Duration = Duration::from_secs(1);

/// Bounds that tests make shorter.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// Connections at once; more are answered 503 and closed. Each may hold one page of history.
    pub connections_max: usize,
    /// From a connection's start, or its last answer, to the end of the next request's headers.
    pub header_timeout: Duration,
    /// From the headers to the end of the body.
    pub body_timeout: Duration,
    /// From the headers to the answer's start.
    pub request_timeout: Duration,
    /// How long sent bytes may stay without acknowledgement, or the peer's window closed.
    pub write_timeout: Duration,
    /// What requests under way are given when the process ends.
    pub drain_timeout: Duration,
}

impl Default for Bounds {
    fn default() -> Self {
        Self {
            connections_max: 1024,
            header_timeout: Duration::from_secs(10),
            body_timeout: Duration::from_secs(10),
            request_timeout: Duration::from_secs(20),
            write_timeout: Duration::from_secs(30),
            drain_timeout: Duration::from_secs(5),
        }
    }
}

/// Connections that `GET /connections` shows unless asked for more, and at most.
pub const CONNECTIONS_SHOWN: usize = 50;
/// As above.
pub const CONNECTIONS_SHOWN_MAX: usize = 1000;
