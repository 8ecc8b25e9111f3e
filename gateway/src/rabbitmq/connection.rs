//! One supervised connection.
//!
//! In: where the broker is. Out: the connection that stands now, or why there is none. What must hold: a connection that
//! is given up is really gone, also when the broker's process is stopped and answers nothing: its socket is shut down
//! from our side, so that lapin's thread ends and nothing piles up behind a hung broker.

use std::future::Future;
use std::net::Shutdown;
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use futures_util::StreamExt as _;
use lapin::uri::AMQPUri;
use lapin::{AsyncTcpStream, Channel, Connection, ConnectionProperties, Event};
use socket2::Socket;
use tidegate_core::ports::PortResult;
use tokio::runtime::Handle;
use tokio::sync::watch;
use tokio::time::{sleep, timeout};

use super::{RabbitMqConfig, port_error, unavailable};

/// Pause before the first attempt to connect again.
const RECONNECT_DELAY_MIN: Duration = Duration::from_millis(100);

/// Events tell of a connection's end; this look at its state is for the case that one was missed.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);

/// How long a connection that nobody uses any more may take to say good-bye.
const CLOSE_GRACE: Duration = Duration::from_secs(2);

/// `host:port`, for errors and logs.
pub(super) fn address(uri: &AMQPUri) -> String {
    format!("{}:{}", uri.authority.host, uri.authority.port)
}

/// A connection that is made again whenever it is lost, until the last handle is dropped. Cheap to clone.
#[derive(Clone)]
pub(super) struct Link {
    state: watch::Receiver<State>,
    timeout: Duration,
}

#[derive(Clone)]
enum State {
    Up(Arc<Live>),
    Down(Arc<str>),
}

impl Link {
    /// Dials once, and on success keeps the connection from then on. Must be called within a tokio runtime.
    ///
    /// # Errors
    /// [`tidegate_core::ports::PortError::Unavailable`] if the first attempt fails.
    pub(super) async fn start(config: &RabbitMqConfig, uri: &AMQPUri, purpose: &'static str) -> PortResult<Self> {
        let dialer = Dialer { uri: prepared(config, uri), timeout: config.timeout, purpose };
        let live = dialer.dial().await?;
        let (sender, state) = watch::channel(State::Up(Arc::clone(&live)));
        tokio::spawn(dialer.supervise(live, sender, config.reconnect_delay_max));
        Ok(Self { state, timeout: config.timeout })
    }

    /// The connection as it stands.
    ///
    /// # Errors
    /// [`tidegate_core::ports::PortError::Unavailable`], at once, if there is none.
    pub(super) fn live(&self) -> PortResult<Arc<Live>> {
        match &*self.state.borrow() {
            State::Up(live) if live.usable() => Ok(Arc::clone(live)),
            State::Up(_) => Err(unavailable("the connection is lost")),
            State::Down(reason) => Err(unavailable(&**reason)),
        }
    }

    /// The connection as it stands, if it may publish.
    ///
    /// # Errors
    /// As for [`live`](Self::live), and while the broker has blocked publishing (memory or disk alarm).
    pub(super) fn unblocked(&self) -> PortResult<Arc<Live>> {
        let live = self.live()?;
        if live.blocked() { Err(unavailable("the broker blocks publishing (memory or disk alarm)")) } else { Ok(live) }
    }

    /// Like [`live`](Self::live), but gives a lost connection one timeout to come back.
    pub(super) async fn live_soon(&self) -> PortResult<Arc<Live>> {
        let mut state = self.state.clone();
        let up = state.wait_for(|state| matches!(state, State::Up(live) if live.usable()));
        // Whether it came or not, `live` says what is.
        let _ = timeout(self.timeout, up).await.map(|found| found.is_ok());
        self.live()
    }

    pub(super) fn timeout(&self) -> Duration {
        self.timeout
    }
}

/// One connection, from its opening to its loss.
pub(super) struct Live {
    connection: Connection,
    socket: Socket,
    given_up: AtomicBool,
    timeout: Duration,
    purpose: &'static str,
}

impl Live {
    pub(super) fn usable(&self) -> bool {
        !self.given_up.load(Ordering::Relaxed) && self.connection.status().connected()
    }

    pub(super) fn blocked(&self) -> bool {
        self.connection.status().blocked()
    }

    /// Gives the connection up: everything that waits on it fails, the supervisor makes another.
    pub(super) fn kill(&self, reason: &str) {
        if !self.given_up.swap(true, Ordering::Relaxed) {
            tracing::warn!(purpose = self.purpose, reason, "giving up a connection to RabbitMQ");
            // It may be down already.
            let _ = self.socket.shutdown(Shutdown::Both);
        }
    }

    /// # Errors
    /// [`tidegate_core::ports::PortError::Unavailable`] if the broker does not open one.
    pub(super) async fn channel(&self) -> PortResult<Channel> {
        self.within("opening a channel", self.connection.create_channel()).await
    }

    /// Waits for the broker's answer, but not for long: a broker that is silent for that long has lost this connection.
    pub(super) async fn within<T>(&self, doing: &str, answer: impl Future<Output = lapin::Result<T>>) -> PortResult<T> {
        match timeout(self.timeout, answer).await {
            Ok(answer) => answer.map_err(|error| port_error(doing, &error)),
            Err(_) => {
                if !self.blocked() {
                    self.kill(doing);
                }
                Err(unavailable(format!("{doing}: no answer within {:?}", self.timeout)))
            }
        }
    }
}

impl Drop for Live {
    fn drop(&mut self) {
        // lapin says good-bye when `connection` is dropped, but would wait for the answer without end.
        let Ok(socket) = self.socket.try_clone() else { return };
        let end = move || {
            let _ = socket.shutdown(Shutdown::Both);
        };
        match Handle::try_current() {
            Ok(runtime) => {
                runtime.spawn(async move {
                    sleep(CLOSE_GRACE).await;
                    end();
                });
            }
            Err(_) => end(),
        }
    }
}

struct Dialer {
    uri: AMQPUri,
    timeout: Duration,
    purpose: &'static str,
}

impl Dialer {
    async fn dial(&self) -> PortResult<Arc<Live>> {
        let at = address(&self.uri);
        // Filled when the socket is connected, so that it can be shut down whatever lapin is doing with it.
        let socket: Arc<OnceLock<Socket>> = Arc::default();
        let for_stream = Arc::clone(&socket);
        let wait = self.timeout;
        let runtime = lapin::runtime::default_runtime().map_err(|error| port_error(&at, &error))?;
        let reactor = runtime.clone();
        let open_stream = async move |uri: AMQPUri, _| {
            let addresses = reactor.to_socket_addrs((uri.authority.host.clone(), uri.authority.port));
            let stream = timeout(wait, AsyncTcpStream::connect(&reactor, addresses)).await;
            let stream = stream.map_err(|_| std::io::Error::from(std::io::ErrorKind::TimedOut))??;
            if let AsyncTcpStream::Plain(tcp) = &stream {
                tcp.get_ref().set_nodelay(true)?;
                let _ = for_stream.set(Socket::from(tcp.get_ref().as_fd().try_clone_to_owned()?));
            }
            Ok(stream)
        };
        let properties =
            ConnectionProperties::default().with_connection_name(format!("tidegate {}", self.purpose).into());
        let opening = Connection::connector(self.uri.clone(), runtime, open_stream, properties);
        let opened = timeout(self.timeout, opening).await;
        let failed = match (opened, socket.get().map(Socket::try_clone)) {
            (Ok(Ok(connection)), Some(Ok(socket))) => {
                let (timeout, purpose) = (self.timeout, self.purpose);
                return Ok(Arc::new(Live { connection, socket, given_up: AtomicBool::new(false), timeout, purpose }));
            }
            (Ok(Err(error)), _) => port_error(&at, &error),
            (Ok(Ok(_)), _) => unavailable(format!("{at}: no descriptor left")),
            (Err(_), _) => unavailable(format!("{at}: no connection within {:?}", self.timeout)),
        };
        if let Some(socket) = socket.get() {
            let _ = socket.shutdown(Shutdown::Both);
        }
        Err(failed)
    }

    /// Ends with the last [`Link`].
    async fn supervise(self, first: Arc<Live>, state: watch::Sender<State>, delay_max: Duration) {
        let at = address(&self.uri);
        let mut live = first;
        loop {
            let Some(reason) = self.watch(&live, &state).await else { return };
            tracing::warn!(purpose = self.purpose, at, reason, "lost the connection to RabbitMQ");
            live.kill("lost");
            drop(live);
            let mut delay = RECONNECT_DELAY_MIN;
            let _ = state.send(State::Down(format!("{at}: {reason}").into()));
            live = loop {
                tokio::select! {
                    () = state.closed() => return,
                    () = sleep(jittered(delay)) => {}
                }
                match self.dial().await {
                    Ok(live) => break live,
                    Err(error) => {
                        tracing::warn!(purpose = self.purpose, %error, "cannot connect to RabbitMQ");
                        let _ = state.send(State::Down(error.to_string().into()));
                    }
                }
                delay = (delay * 2).min(delay_max);
            };
            tracing::info!(purpose = self.purpose, at, "connected to RabbitMQ again");
            if state.send(State::Up(Arc::clone(&live))).is_err() {
                return;
            }
        }
    }

    /// Why the connection ended, or `None` if nobody wants it any more.
    async fn watch(&self, live: &Live, state: &watch::Sender<State>) -> Option<String> {
        let mut events = std::pin::pin!(live.connection.events_listener());
        loop {
            tokio::select! {
                () = state.closed() => return None,
                event = events.next() => match event {
                    // A channel's error is told here as well, and is no reason to take the other channels down.
                    Some(Event::Error(error)) if !live.usable() => return Some(error.to_string()),
                    Some(Event::ConnectionBlocked(reason)) => {
                        tracing::warn!(purpose = self.purpose, reason, "RabbitMQ blocks publishing");
                    }
                    Some(Event::ConnectionUnblocked) => {
                        tracing::info!(purpose = self.purpose, "RabbitMQ takes publishing again");
                    }
                    Some(_) => {}
                    None => return Some("the connection ended".into()),
                },
                () = sleep(LOOK_INTERVAL) => {
                    if !live.usable() {
                        return Some("the connection ended".into());
                    }
                }
            }
        }
    }
}

fn prepared(config: &RabbitMqConfig, uri: &AMQPUri) -> AMQPUri {
    let mut uri = uri.clone();
    uri.query.heartbeat = Some(u16::try_from(config.heartbeat.as_secs().max(1)).unwrap_or(u16::MAX));
    uri
}

/// Between half of `delay` and all of it, so that many gateways do not come back in the same moment.
fn jittered(delay: Duration) -> Duration {
    let mut byte = [0; 1];
    // Without randomness there is no jitter, which is no reason to stop.
    let _ = getrandom::fill(&mut byte);
    delay.mul_f64(0.5 + f64::from(byte[0]) / 512.0)
}
