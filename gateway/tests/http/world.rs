//! A served API and its clients.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock, mpsc};
use std::time::{Duration, Instant};

use bytes::Bytes;
use metrics_exporter_prometheus::PrometheusHandle;
use serde_json::Value;
use tidegate::app;
use tidegate::clock::SystemClock;
use tidegate::config::{CliOverrides, Config};
use tidegate::http::{self, Bounds, Busy, GatewayPulls, HandOff, Life, Part, Setup};
use tidegate::shard::mailboxes::ShardMailboxes;
use tidegate::telemetry;
use tidegate_core::event::PushEvent;
use tidegate_core::ids::{ConversationId, GatewayId, LobbyName, Place, SessionId, UserId};
use tidegate_core::ports::{
    Backend, Beat, CacheRun, CacheSlice, End, Filing, HotStore, PortError, PortResult, Presence, PresenceChange,
    PresenceOutcome, PushQueue, PushTarget, Seeding, SequenceGrant, SequenceRun, Spend, Summary, TokenState,
    UnreadCount,
};
use tidegate_core::twins::archive::MemoryArchive;
use tidegate_core::twins::hot_store::EmbeddedHotStore;
use tidegate_core::twins::queues::{EmbeddedIngestQueue, EmbeddedPushQueue};
use tokio::sync::watch;

/// No test waits longer than this for anything.
pub const PATIENCE: Duration = Duration::from_secs(10);

/// What a service outside would say in an error; no client may ever see it.
const SECRET_DETAIL: &str = "redis at 10.0.0.7 said hunter2";

/// A token whose end the store remembers, as Redis does when another login replaced it.
pub const REMEMBERED_TOKEN: &str = "ended-and-remembered";

pub struct TestBackend {
    ingest: EmbeddedIngestQueue,
    push: WatchedPush,
    hot: MoodyHotStore,
    archive: MemoryArchive,
}

impl Backend for TestBackend {
    type Ingest = EmbeddedIngestQueue;
    type Push = WatchedPush;
    type Hot = MoodyHotStore;
    type Archive = MemoryArchive;

    fn ingest(&self) -> &Self::Ingest {
        &self.ingest
    }
    fn push(&self) -> &Self::Push {
        &self.push
    }
    fn hot(&self) -> &Self::Hot {
        &self.hot
    }
    fn archive(&self) -> &Self::Archive {
        &self.archive
    }
}

/// Remembers what was published; fails as often as it is told to.
pub struct WatchedPush {
    inner: EmbeddedPushQueue,
    published: Mutex<Vec<(PushTarget, PushEvent)>>,
    pub failures_left: AtomicUsize,
}

impl WatchedPush {
    pub fn take_published(&self) -> Vec<(PushTarget, PushEvent)> {
        std::mem::take(&mut self.published.lock().unwrap())
    }
}

impl PushQueue for WatchedPush {
    type Consumer = <EmbeddedPushQueue as PushQueue>::Consumer;

    async fn publish(&self, batches: Vec<(PushTarget, Vec<PushEvent>)>) -> PortResult<Vec<GatewayId>> {
        let fails = self.failures_left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1));
        if fails.is_ok() {
            return Err(PortError::Unavailable { service: "rabbitmq", detail: SECRET_DETAIL.into() });
        }
        let events = batches.into_iter().flat_map(|(to, events)| events.into_iter().map(move |e| (to.clone(), e)));
        self.published.lock().unwrap().extend(events);
        Ok(Vec::new())
    }

    async fn consume(&self) -> PortResult<Self::Consumer> {
        self.inner.consume().await
    }
}

/// A hot store that can go away.
pub struct MoodyHotStore {
    inner: EmbeddedHotStore<SystemClock>,
    pub down: AtomicBool,
    pub hung: AtomicBool,
    pub pings: AtomicUsize,
    /// Held by a test: what was found out about tokens is not answered meanwhile.
    pub tokens: tokio::sync::Mutex<()>,
    pub token_questions: AtomicUsize,
}

macro_rules! while_up {
    ($($name:ident($($arg:ident: $kind:ty),*) -> $answer:ty;)*) => {
        $(async fn $name(&self, $($arg: $kind),*) -> PortResult<$answer> {
            self.mood().await?;
            self.inner.$name($($arg),*).await
        })*
    };
}

impl MoodyHotStore {
    async fn mood(&self) -> PortResult<()> {
        if self.hung.load(Ordering::SeqCst) {
            std::future::pending::<()>().await;
        }
        if self.down.load(Ordering::SeqCst) {
            return Err(PortError::Unavailable { service: "redis", detail: SECRET_DETAIL.into() });
        }
        Ok(())
    }
}

impl HotStore for MoodyHotStore {
    while_up! {
        sequence(runs: &[SequenceRun]) -> Vec<SequenceGrant>;
        settle(ends: &[(ConversationId, End)], cached: &[CacheRun]) -> ();
        cached(conversation: ConversationId, after: Option<Place>, messages_max: usize, bytes_max: usize) -> CacheSlice;
        presence(users: &[UserId]) -> Vec<Presence>;
        change_presence(changes: &[PresenceChange]) -> Vec<PresenceOutcome>;
        resume(user: UserId, device: &str, session: SessionId) -> Option<Vec<LobbyName>>;
        beat() -> Beat;
        file(filings: &[Filing]) -> ();
        take_summary(user: UserId) -> Summary;
        peek_inbox(user: UserId, max: usize) -> Vec<Bytes>;
        seed_unread(user: UserId, seeding: Seeding, counts: &[UnreadCount]) -> ();
        set_unread(counts: &[(UserId, UnreadCount)]) -> ();
        forget_unread(users: &[UserId]) -> ();
        spend(spends: &[Spend]) -> Vec<u64>;
        put_token(token: &str, user: UserId, ttl: Duration) -> ();
        delete_token(token: &str) -> bool;
    }

    async fn token_states(&self, tokens: &[&str]) -> PortResult<Vec<TokenState>> {
        self.mood().await?;
        let mut states = self.inner.token_states(tokens).await?;
        self.token_questions.fetch_add(1, Ordering::SeqCst);
        drop(self.tokens.lock().await);
        for (token, state) in tokens.iter().zip(&mut states) {
            if *token == REMEMBERED_TOKEN {
                *state = TokenState::Expired;
            }
        }
        Ok(states)
    }

    async fn ping(&self) -> PortResult<()> {
        self.pings.fetch_add(1, Ordering::SeqCst);
        self.mood().await
    }
}

/// A socket after its handshake, as a shard would get it.
pub type HandedOver = (TcpStream, Bytes);

pub struct World {
    pub address: SocketAddr,
    pub backend: Arc<TestBackend>,
    pub life: watch::Sender<Life>,
    pub busy: Arc<AtomicBool>,
    pub handed: mpsc::Receiver<HandedOver>,
    pub served: tokio::task::JoinHandle<std::io::Result<()>>,
    pub pulls: Arc<GatewayPulls<TestBackend>>,
    pub runtime: tokio::runtime::Runtime,
    agent: ureq::Agent,
}

impl World {
    pub fn new() -> Self {
        Self::with_bounds(Bounds::default())
    }

    pub fn with_bounds(bounds: Bounds) -> Self {
        let set = ["auth.argon2_memory_kib=64", "auth.argon2_iterations=1", "lobbies.names=lobby_main,lobby_eu"];
        let flags = CliOverrides { set: set.map(String::from).to_vec(), ..CliOverrides::default() };
        let config = Config::load(&flags).expect("a legal configuration");
        let gateway: GatewayId = "test-1".parse().unwrap();
        let backend = Arc::new(TestBackend {
            ingest: EmbeddedIngestQueue::new(1),
            push: WatchedPush {
                inner: EmbeddedPushQueue::new(gateway.clone()),
                published: Mutex::default(),
                failures_left: AtomicUsize::new(0),
            },
            hot: MoodyHotStore {
                inner: EmbeddedHotStore::new(gateway, SystemClock),
                down: AtomicBool::new(false),
                hung: AtomicBool::new(false),
                pings: AtomicUsize::new(0),
                tokens: tokio::sync::Mutex::default(),
                token_questions: AtomicUsize::new(0),
            },
            archive: MemoryArchive::new(),
        });
        let listener = http::bind("127.0.0.1:0".parse().unwrap()).expect("a free port");
        let address = listener.local_addr().unwrap();
        let (life, life_seen) = watch::channel(Life::Serving);
        let (busy, (hand, handed)) = (Arc::new(AtomicBool::new(false)), mpsc::sync_channel(16));
        let is_busy = Arc::clone(&busy);
        let hand_off: HandOff = Arc::new(move |stream, early, _peer| {
            if is_busy.load(Ordering::SeqCst) {
                return Err(Busy(stream));
            }
            hand.try_send((stream, early)).expect("the test looks at its sockets");
            Ok(())
        });
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let served_backend = Arc::clone(&backend);
        let (routes, rules) = (Arc::default(), Arc::new(config.storm.clone()));
        let pulls = Arc::new(app::pulls(&config, &backend, ShardMailboxes::new(1), routes, rules));
        let served_pulls = Arc::clone(&pulls);
        let served = runtime.spawn(async move {
            let setup = Setup {
                parts: Part::of_backend(&served_backend),
                backend: served_backend,
                config: &config,
                tcp_address: "127.0.0.1:7400".parse().unwrap(),
                hand_off,
                inspect: Arc::new(|_| Box::pin(std::future::ready(Vec::new()))),
                pulls: served_pulls,
                metrics: recorder(),
                life: life_seen,
                bounds,
            };
            http::serve(listener, setup).await
        });
        // A connection each: a refusal that comes before the body has arrived ends its connection, and a client that keeps
        // connections may find that out with its next request.
        let agent = ureq::Agent::config_builder().http_status_as_error(false).timeout_global(Some(PATIENCE));
        let agent = agent.max_idle_connections(0).max_idle_connections_per_host(0).build();
        Self { address, backend, life, busy, handed, served, pulls, runtime, agent: agent.into() }
    }

    pub fn get(&self, path: &str, token: &str) -> Answer {
        self.call("GET", path, token, None)
    }

    pub fn post(&self, path: &str, token: &str, body: Value) -> Answer {
        self.call("POST", path, token, Some(body))
    }

    pub fn patch(&self, path: &str, token: &str, body: Value) -> Answer {
        self.call("PATCH", path, token, Some(body))
    }

    pub fn call(&self, method: &str, path: &str, token: &str, body: Option<Value>) -> Answer {
        let mut request = ureq::http::Request::builder().method(method).uri(format!("http://{}{path}", self.address));
        if !token.is_empty() {
            request = request.header("authorization", format!("Bearer {token}"));
        }
        if body.is_some() {
            request = request.header("content-type", "application/json");
        }
        let bytes = body.map(|body| serde_json::to_vec(&body).unwrap()).unwrap_or_default();
        let mut response = self.agent.run(request.body(bytes).unwrap()).expect("an answer");
        let text = response.body_mut().read_to_string().expect("text");
        assert!(!text.contains("hunter2"), "internals leak: {text}");
        let headers = response.headers().iter();
        let headers = headers.map(|(name, value)| (name.to_string(), value.to_str().unwrap().to_owned())).collect();
        Answer { status: response.status().as_u16(), headers, text }
    }

    /// Sends bytes and reads until the server closes.
    pub fn raw(&self, bytes: impl AsRef<[u8]>) -> Answer {
        let mut stream = self.connect();
        stream.write_all(bytes.as_ref()).expect("sent");
        Answer::parse(&read_to_end(&mut stream))
    }

    pub fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(self.address).expect("connected");
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream
    }

    /// Registers and logs in; returns the id and a token.
    pub fn user(&self, name: &str) -> (u64, String) {
        let body = serde_json::json!({ "name": name, "password": "correct horse" });
        assert_eq!(self.post("/api/v1/register", "", body.clone()).status, 201);
        let answer = self.post("/api/v1/login", "", body).expect(200);
        (answer["user_id"].as_u64().unwrap(), answer["token"].as_str().unwrap().to_owned())
    }
}

/// What is there when the peer has closed; a reset counts as a close.
pub fn read_to_end(stream: &mut TcpStream) -> String {
    let (begun, mut bytes) = (Instant::now(), Vec::new());
    let _ = stream.read_to_end(&mut bytes);
    assert!(begun.elapsed() < PATIENCE, "the server did not close");
    String::from_utf8_lossy(&bytes).into_owned()
}

#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    headers: Vec<(String, String)>,
    pub text: String,
}

impl Answer {
    fn parse(text: &str) -> Self {
        let (head, body) = text.split_once("\r\n\r\n").unwrap_or_else(|| panic!("no answer: {text:?}"));
        let mut lines = head.lines();
        let status = lines.next().and_then(|line| line.split(' ').nth(1)).and_then(|code| code.parse().ok());
        let headers = lines.filter_map(|line| line.split_once(": "));
        let headers = headers.map(|(name, value)| (name.to_lowercase(), value.to_owned())).collect();
        Self { status: status.expect("a status"), headers, text: body.to_owned() }
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }

    pub fn json(&self) -> Value {
        serde_json::from_str(&self.text).unwrap_or_else(|_| panic!("not JSON: {:?}", self.text))
    }

    #[track_caller]
    pub fn expect(&self, status: u16) -> Value {
        assert_eq!(self.status, status, "{}", self.text);
        self.json()
    }

    /// A problem answer as every one must be.
    #[track_caller]
    pub fn expect_problem(&self, status: u16, code: &str) {
        let body = self.expect(status);
        assert_eq!(body["code"], code, "{body}");
        assert_eq!(body["status"], status);
        assert_eq!(body["type"], format!("urn:tidegate:problem:{code}"));
        assert!(body["title"].is_string() && body["detail"].is_string(), "{body}");
        assert_eq!(self.header("content-type"), Some("application/problem+json"));
        assert!(self.header("x-request-id").is_some_and(|id| !id.is_empty()));
        assert_eq!(status == 401, self.header("www-authenticate").is_some());
        if status == 503 {
            assert!(body["retry_after_ms"].as_u64().is_some_and(|ms| ms > 0), "{body}");
            assert!(self.header("retry-after").is_some());
        }
    }
}

/// A process has one recorder.
fn recorder() -> PrometheusHandle {
    static RECORDER: OnceLock<PrometheusHandle> = OnceLock::new();
    RECORDER.get_or_init(|| telemetry::install_metrics().expect("the first recorder")).clone()
}

/// Waits until `holds`.
#[track_caller]
pub fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !holds() {
        assert!(begun.elapsed() < PATIENCE, "still not: {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}
