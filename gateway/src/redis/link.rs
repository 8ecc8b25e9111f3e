//! The connection to Redis and its health.
//!
//! Calls come in; an answer or a [`PortError`] within the command timeout goes out.
//!
//! What must hold: while Redis does not answer, calls fail at once and nothing is queued for it (the keeper's own ping is
//! all that asks), so memory does not grow; when it answers again, calls pass again without anybody's help.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use fred::clients::{Client, WithOptions};
use fred::error::{Error, ErrorKind};
use fred::interfaces::{ClientLike, LuaInterface};
use fred::types::config::Options;
use fred::types::scripts::Script;
use fred::types::{Key, Value};
use tidegate_core::ports::{PortError, PortResult};
use tokio::sync::{Notify, Semaphore};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, timeout_at};

use super::SERVICE;
use super::config::{RedisConfig, address, reconnect_policy};

/// Calls on their way at once. Each is a batch, so a handful keeps Redis busy; the rest waits here, within its deadline.
const CALLS_MAX: usize = 128;
/// Between two pings while Redis does not answer. Longer than fred's look for unresponsive connections takes, which the
/// next ping would put off.
const PROBE_DELAY: Duration = Duration::from_millis(450);
/// Pings that time out one after the other before the client is replaced: fred's task can hang in a write to a dead host.
const PROBE_TIMEOUTS_MAX: u32 = 3;

/// See the module. Ends its tasks when dropped.
pub(super) struct Link {
    shared: Arc<Shared>,
    keeper: JoinHandle<()>,
}

struct Shared {
    config: RedisConfig,
    address: String,
    connected: RwLock<Connected>,
    answers: AtomicBool,
    /// Times it became false.
    outages: AtomicU64,
    /// Told when `answers` becomes false.
    doubt: Notify,
    calls: Semaphore,
}

/// fred's client and the task that drives its connection.
struct Connected {
    client: Client,
    task: JoinHandle<Result<(), Error>>,
}

impl Drop for Connected {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Link {
    /// Connects once.
    ///
    /// # Errors
    /// [`PortError::Refused`] for a URL that cannot be meant, [`PortError::Unavailable`] if Redis does not answer within
    /// twice the command timeout.
    pub(super) async fn connect(config: RedisConfig) -> PortResult<Self> {
        let server = config.server()?;
        let address = address(&server.server);
        let unavailable = |detail: String| PortError::Unavailable { service: SERVICE, detail };
        let client =
            Client::new(server, Some(config.performance()), Some(config.connection()), Some(reconnect_policy()));
        let deadline = Instant::now() + 2 * config.command_timeout;
        let task = match timeout_at(deadline, client.init()).await {
            Ok(Ok(task)) => task,
            Ok(Err(error)) => return Err(unavailable(format!("{address}: {error}"))),
            Err(_) => return Err(unavailable(format!("{address}: no answer within {:?}", 2 * config.command_timeout))),
        };
        let shared = Arc::new(Shared {
            config,
            address,
            connected: RwLock::new(Connected { client, task }),
            answers: AtomicBool::new(true),
            outages: AtomicU64::new(0),
            doubt: Notify::new(),
            calls: Semaphore::new(CALLS_MAX),
        });
        let keeper = tokio::spawn(keep(Arc::clone(&shared)));
        Ok(Self { shared, keeper })
    }

    /// Runs a script; sends its text if Redis does not know it (any more).
    ///
    /// # Errors
    /// [`PortError`], within the command timeout.
    pub(super) async fn run(&self, script: &Script, keys: Vec<Key>, args: Vec<Value>) -> PortResult<Value> {
        self.call(async |within| {
            let known = within.client().evalsha(script.sha1().clone(), keys.clone(), args.clone()).await;
            match known {
                Err(error) if error.details().starts_with("NOSCRIPT") => {
                    let text = script.lua().expect("made from text").clone();
                    within.client().eval(text, keys, args).await
                }
                known => known,
            }
        })
        .await
    }

    /// Times Redis did not answer. After each it may be another one, with another memory.
    pub(super) fn outages(&self) -> u64 {
        self.shared.outages.load(Ordering::Acquire)
    }

    /// Runs a command within the command timeout.
    ///
    /// # Errors
    /// [`PortError`]; at once if Redis did not answer lately.
    pub(super) async fn call<T>(&self, command: impl AsyncFnOnce(Within) -> Result<T, Error>) -> PortResult<T> {
        let shared = &*self.shared;
        let deadline = Instant::now() + shared.config.command_timeout;
        if !shared.answers.load(Ordering::Acquire) {
            return Err(shared.unavailable("does not answer"));
        }
        let Ok(permit) = timeout_at(deadline, shared.calls.acquire()).await else {
            return Err(shared.unavailable("too many calls are on their way"));
        };
        let _permit = permit.expect("the semaphore is never closed");
        let client = shared.client();
        command(Within { client, deadline }).await.map_err(|error| shared.error(&error))
    }

    /// Asks Redis for a sign of life.
    ///
    /// # Errors
    /// [`PortError`].
    pub(super) async fn ping(&self) -> PortResult<()> {
        self.call(async |within| within.client().ping::<()>(None).await).await
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.keeper.abort();
    }
}

/// What a call may use until its deadline.
pub(super) struct Within {
    client: Client,
    deadline: Instant,
}

impl Within {
    /// The client, bound to the time that is left.
    pub(super) fn client(&self) -> WithOptions<Client> {
        // Zero means "no timeout" to fred.
        let left = self.deadline.saturating_duration_since(Instant::now()).max(Duration::from_millis(1));
        self.client.with_options(&Options { timeout: Some(left), fail_fast: true, ..Options::default() })
    }
}

impl Shared {
    fn client(&self) -> Client {
        self.connected.read().unwrap_or_else(PoisonError::into_inner).client.clone()
    }

    fn unavailable(&self, why: &str) -> PortError {
        PortError::Unavailable { service: SERVICE, detail: format!("{}: {why}", self.address) }
    }

    /// Sorts an error and, if it is about Redis and not about the command, has the keeper look after it.
    fn error(&self, error: &Error) -> PortError {
        if is_refusal(error) {
            return PortError::Refused { service: SERVICE, detail: format!("{}: {error}", self.address) };
        }
        if self.answers.swap(false, Ordering::AcqRel) {
            self.outages.fetch_add(1, Ordering::AcqRel);
            tracing::warn!(server = %self.address, %error, "redis does not answer");
            self.doubt.notify_one();
        }
        self.unavailable(&error.to_string())
    }

    /// Begins anew with a client that connects when it can.
    fn replace(&self) {
        let Ok(mut server) = self.config.server() else { return };
        server.fail_fast = false;
        let (performance, connection) = (self.config.performance(), self.config.connection());
        let client = Client::new(server, Some(performance), Some(connection), Some(reconnect_policy()));
        let task = client.connect();
        *self.connected.write().unwrap_or_else(PoisonError::into_inner) = Connected { client, task };
        tracing::warn!(server = %self.address, "redis connection replaced");
    }

    fn is_finished(&self) -> bool {
        self.connected.read().unwrap_or_else(PoisonError::into_inner).task.is_finished()
    }
}

/// Whenever there is doubt, pings until Redis answers.
async fn keep(shared: Arc<Shared>) {
    loop {
        shared.doubt.notified().await;
        let since = Instant::now();
        let mut timeouts = 0;
        loop {
            let deadline = Instant::now() + shared.config.command_timeout;
            let within = Within { client: shared.client(), deadline };
            match within.client().ping::<()>(None).await {
                Ok(()) => break,
                Err(error) if *error.kind() == ErrorKind::Timeout => timeouts += 1,
                Err(_) => timeouts = 0,
            }
            // fred ends its task for good on some errors, a refused login among them.
            if timeouts >= PROBE_TIMEOUTS_MAX || shared.is_finished() {
                shared.replace();
                timeouts = 0;
            }
            sleep(PROBE_DELAY).await;
        }
        shared.answers.store(true, Ordering::Release);
        tracing::info!(server = %shared.address, after = ?since.elapsed(), "redis answers");
    }
}

/// Whether Redis would say the same to a repetition. When in doubt it is not: a caller that repeats loses nothing.
fn is_refusal(error: &Error) -> bool {
    let said = error.details();
    let about_command = said.starts_with("WRONGTYPE") || said.starts_with("ERR");
    matches!(error.kind(), ErrorKind::Parse | ErrorKind::InvalidCommand)
        || (about_command && !said.starts_with("ERR max number of clients"))
}
