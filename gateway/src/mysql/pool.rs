//! Connections, a bounded number of them.
//!
//! In come wishes for a connection, out go leases. Always: a new connection leads to the database this process began with,
//! not to an empty one in its place or somebody else's; a connection returns to the pool only when its holder says
//! that it is clean ([`Lease::keep`]); on an error, a deadline or a caller that went away it is closed, and the server
//! rolls back what was open. That is the reason for a pool of our own: the driver's takes connections back that wait for
//! a frozen server, and gives their places free only when that answers.

use std::ops::{Deref, DerefMut};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use mysql_async::prelude::Queryable as _;
use mysql_async::{Conn, Opts};
use tidegate_core::ids::Epoch;
use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::time::timeout;

use super::fault::Fault;
use super::schema;

/// A connection that lay idle for longer is asked for a sign of life first: the server may have closed it since.
const TRUSTED_FOR: Duration = Duration::from_secs(1);

/// How long a discarded connection may take to say goodbye.
const GOODBYE_TIMEOUT: Duration = Duration::from_secs(1);

/// The connections of one archive.
#[derive(Debug)]
pub(super) struct Pool {
    opts: Opts,
    places: Semaphore,
    /// The longest idle first; taken from the end, so that few connections stay busy and the rest grow old.
    idle: Mutex<Vec<Idle>>,
    /// Connections that ended unasked.
    breaks: AtomicU64,
    connect_timeout: Duration,
    idle_ttl: Duration,
    /// Whose connections are leased; unknown until [`Pool::belongs_to`].
    epoch: OnceLock<Epoch>,
}

#[derive(Debug)]
struct Idle {
    conn: Conn,
    since: Instant,
}

/// A connection in use. Dropping it closes the connection; see [`Lease::keep`].
pub(super) struct Lease<'pool> {
    pool: &'pool Pool,
    conn: Option<Conn>,
    /// Whether the connection was used before: an error may then be the end of an old connection, not of the server.
    pub(super) reused: bool,
    _place: SemaphorePermit<'pool>,
}

impl Pool {
    pub(super) fn new(opts: Opts, size: usize, connect_timeout: Duration, idle_ttl: Duration) -> Self {
        let (places, idle, epoch) = (Semaphore::new(size), Mutex::default(), OnceLock::new());
        Self { opts, places, idle, breaks: AtomicU64::new(0), connect_timeout, idle_ttl, epoch }
    }

    /// From here on only this database's connections are leased.
    pub(super) fn belongs_to(&self, epoch: Epoch) {
        // It is said once, when the archive is opened.
        let _ = self.epoch.set(epoch);
    }

    /// Waits for a place, then takes an idle connection or makes one. The wait is bounded by the caller's deadline.
    ///
    /// # Errors
    /// [`Fault`] if there is no idle connection and none can be made within the connect timeout.
    pub(super) async fn lease(&self) -> Result<Lease<'_>, Fault> {
        let place = self.places.acquire().await.expect("the semaphore is never closed");
        while let Some(Idle { mut conn, since }) = self.pop_idle() {
            if since.elapsed() > self.idle_ttl {
                discard(conn);
                continue;
            }
            let is_alive =
                since.elapsed() < TRUSTED_FOR || matches!(timeout(self.connect_timeout, conn.ping()).await, Ok(Ok(())));
            if is_alive {
                return Ok(Lease { pool: self, conn: Some(conn), reused: true, _place: place });
            }
            self.breaks.fetch_add(1, Ordering::AcqRel);
            discard(conn);
        }
        let conn = match timeout(self.connect_timeout, self.connect()).await {
            Ok(connected) => connected?,
            Err(_elapsed) => return Err(Fault::Silent("no connection within the connect timeout")),
        };
        Ok(Lease { pool: self, conn: Some(conn), reused: false, _place: place })
    }

    async fn connect(&self) -> Result<Conn, Fault> {
        let mut conn = Conn::new(self.opts.clone()).await?;
        match self.check(&mut conn).await {
            Ok(()) => Ok(conn),
            Err(fault) => {
                discard(conn);
                Err(fault)
            }
        }
    }

    /// Whether the database is still the one this process began with.
    ///
    /// # Errors
    /// [`Fault::Replaced`] if it is not; what is idle leads to the same one and is closed then.
    pub(super) async fn check(&self, conn: &mut Conn) -> Result<(), Fault> {
        let Some(expected) = self.epoch.get() else { return Ok(()) };
        let found = schema::epoch(conn).await?;
        if found != *expected {
            self.distrust();
            return Err(Fault::Replaced { found: found.0 });
        }
        Ok(())
    }

    /// How often a connection ended unasked; never falls.
    pub(super) fn breaks(&self) -> u64 {
        self.breaks.load(Ordering::Acquire)
    }

    /// Closes what is idle: after the end of one connection the others are in doubt.
    pub(super) fn distrust(&self) {
        self.breaks.fetch_add(1, Ordering::AcqRel);
        let idle = std::mem::take(&mut *self.idle.lock().unwrap_or_else(PoisonError::into_inner));
        idle.into_iter().for_each(|idle| discard(idle.conn));
    }

    /// Closes what is idle and waits until it is closed, within the bound of each goodbye.
    pub(super) async fn close(&self) {
        while let Some(idle) = self.pop_idle() {
            let _ = timeout(GOODBYE_TIMEOUT, idle.conn.disconnect()).await;
        }
    }

    fn pop_idle(&self) -> Option<Idle> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner).pop()
    }

    fn push_idle(&self, conn: Conn) {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        let old = idle.iter().take_while(|idle| idle.since.elapsed() > self.idle_ttl).count();
        let old: Vec<_> = idle.drain(..old).collect();
        idle.push(Idle { conn, since: Instant::now() });
        drop(idle);
        old.into_iter().for_each(|idle| discard(idle.conn));
    }
}

impl Lease<'_> {
    /// Gives the connection back: nothing is open on it, neither a transaction nor a result.
    pub(super) fn keep(mut self) {
        if let Some(conn) = self.conn.take() {
            self.pool.push_idle(conn);
        }
    }
}

impl Deref for Lease<'_> {
    type Target = Conn;

    fn deref(&self) -> &Conn {
        self.conn.as_ref().expect("taken only by keep and drop, which end the lease")
    }
}

impl DerefMut for Lease<'_> {
    fn deref_mut(&mut self) -> &mut Conn {
        self.conn.as_mut().expect("taken only by keep and drop, which end the lease")
    }
}

impl Drop for Lease<'_> {
    fn drop(&mut self) {
        if let Some(conn) = self.conn.take() {
            discard(conn);
        }
    }
}

/// Closes a connection in a task of its own, with a bound: left to itself the driver would first read what a frozen
/// server still owes.
fn discard(conn: Conn) {
    if let Ok(runtime) = tokio::runtime::Handle::try_current() {
        runtime.spawn(async move {
            let _ = timeout(GOODBYE_TIMEOUT, conn.disconnect()).await;
        });
    }
}
