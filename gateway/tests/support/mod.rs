//! A gateway in this process and clients that speak its protocol, for tests of the whole.

#![allow(dead_code, reason = "every test file uses a part of it")]
#![allow(clippy::unwrap_used)]

pub mod process;
pub mod servers;
pub mod websocket;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures_util::{SinkExt as _, StreamExt as _};
use prost::Message as _;
use tidegate::app::{self, Gateway};
use tidegate::backends::{Embedded, Services};
use tidegate::config::{CliOverrides, Config};
use tidegate::mysql::MySqlConfig;
use tidegate::rabbitmq::{RabbitMqConfig, Topology};
use tidegate::redis::RedisConfig;
use tidegate_core::ids::{Millis, RoomId, UserId};
use tidegate_core::ports::{Archive as _, Backend, HotStore as _};
use tidegate_proto::codec::FrameCodec;
use tidegate_proto::v1::{self, CloseCode, Code};
use tidegate_proto::{Frame, Kind, Opening, frame};
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;
use tokio_util::codec::Framed;

/// Runs scenarios on the embedded backends, and on services where the test run has started them. With settings, each has a
/// database of its own there, so that sequences begin at 1.
#[allow(unused_macros, reason = "every test file uses a part of this module")]
macro_rules! on_every_backend {
    (with $settings:expr; $($scenario:ident),* $(,)?) => {
        mod on_embedded {
            $(
                #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
                async fn $scenario() {
                    let world = super::support::embedded($settings);
                    super::$scenario(&world).await;
                    world.gateway.stop().await;
                }
            )*
        }

        mod on_services {
            $(
                #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
                async fn $scenario() {
                    let Some(services) = super::support::Cluster::with_a_database().await else {
                        return;
                    };
                    let world = services.gateway_with("gw-one", $settings).await;
                    super::$scenario(&world).await;
                    world.gateway.stop().await;
                    services.drop_database().await;
                }
            )*
        }
    };
    ($($scenario:ident),* $(,)?) => {
        mod on_embedded {
            $(
                #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
                async fn $scenario() {
                    let world = super::support::embedded(&[]);
                    super::$scenario(&world).await;
                    world.gateway.stop().await;
                }
            )*
        }

        mod on_services {
            $(
                #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
                async fn $scenario() {
                    let Some(services) = super::support::Cluster::of_services() else {
                        return;
                    };
                    let world = services.gateway("gw-one").await;
                    super::$scenario(&world).await;
                    world.gateway.stop().await;
                }
            )*
        }
    };
}

/// No step of a test takes longer, on a machine that does ten other things as well.
pub const DEADLINE: Duration = Duration::from_secs(20);

/// A running gateway over backends of type `B`.
pub struct World<B: Backend> {
    pub backend: Arc<B>,
    pub gateway: Gateway<B>,
    pub address: std::net::SocketAddr,
    pub config: Config,
    _dir: TempDir,
}

/// A directory that goes with the test.
pub struct TempDir(pub std::path::PathBuf);

impl TempDir {
    pub fn new() -> Self {
        static COUNT: AtomicU64 = AtomicU64::new(0);
        let name = format!("tidegate-test-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let path = std::env::temp_dir().join(name);
        std::fs::create_dir_all(&path).unwrap();
        Self(path)
    }
}

impl Drop for TempDir {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Tests write faster than people; those of the limits set them.
pub const NO_LIMIT: &str = "fairness.user_per_s=0";

/// The default configuration on free ports, with [`NO_LIMIT`] and `settings` like `limits.handshake_timeout_s=1`.
pub fn config(settings: &[&str]) -> Config {
    let mut set = vec!["listen.tcp=127.0.0.1:0", "listen.http=127.0.0.1:0", "runtime.shards=2", "gateway_id=gw-test"];
    set.push(NO_LIMIT);
    set.extend(settings);
    let overrides = CliOverrides { set: set.into_iter().map(str::to_owned).collect(), ..CliOverrides::default() };
    Config::load(&overrides).unwrap()
}

pub fn embedded(settings: &[&str]) -> World<Embedded> {
    let config = config(settings);
    let dir = TempDir::new();
    let backend = Arc::new(Embedded::open(&dir.0, &config.gateway_id).unwrap());
    World::start(config, backend, dir)
}

/// Private services of the test run, with names of this test's own, for one or several gateways.
pub struct Cluster {
    prefix: String,
    /// A database beside the run's own, if this test changes it.
    database: Option<String>,
}

impl Cluster {
    /// `None`, with a word about it, if the test run has not started services.
    pub fn of_services() -> Option<Self> {
        static COUNT: AtomicU64 = AtomicU64::new(0);
        if std::env::var("TIDEGATE_TEST_SERVICES").as_deref() != Ok("1") {
            eprintln!("skipped: TIDEGATE_TEST_SERVICES is not 1");
            return None;
        }
        Some(Self {
            prefix: format!("t{}-{}.", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed)),
            database: None,
        })
    }

    /// As [`Cluster::of_services`], with a database that this test may change. Call [`Cluster::drop_database`] at the end.
    pub async fn with_a_database() -> Option<Self> {
        let mut cluster = Self::of_services()?;
        let name = format!("tidegate_{}", cluster.prefix.replace(['-', '.'], "_"));
        cluster.sql(&format!("CREATE DATABASE {name}")).await;
        cluster.database = Some(name);
        Some(cluster)
    }

    pub async fn drop_database(self) {
        if let Some(name) = &self.database {
            self.sql(&format!("DROP DATABASE {name}")).await;
        }
    }

    /// Runs a statement beside the gateways.
    pub async fn sql(&self, statement: &str) {
        use mysql_async::prelude::Queryable as _;
        let mut conn = mysql_async::Conn::new(mysql_async::Opts::from_url(&self.mysql_url()).unwrap()).await.unwrap();
        conn.query_drop(statement).await.unwrap_or_else(|error| panic!("{statement}: {error}"));
        conn.disconnect().await.unwrap();
    }

    fn mysql_url(&self) -> String {
        let url = url("TIDEGATE_MYSQL_URL");
        match &self.database {
            Some(name) => format!("{}/{name}", url.rsplit_once('/').unwrap().0),
            None => url,
        }
    }

    /// What the names in RabbitMQ and the keys in Redis begin with.
    pub fn prefix(&self) -> &str {
        &self.prefix
    }

    pub async fn gateway(&self, name: &str) -> World<Services> {
        self.gateway_with(name, &[]).await
    }

    /// As [`Cluster::gateway`], with settings of its own.
    pub async fn gateway_with(&self, name: &str, settings: &[&str]) -> World<Services> {
        let gateway_id = format!("gateway_id={name}");
        let config = config(&[&[gateway_id.as_str()], settings].concat());
        let mut rabbitmq = RabbitMqConfig::new(url("TIDEGATE_RABBITMQ_URL"));
        rabbitmq.topology = Topology { prefix: self.prefix.clone(), partitions: 2 };
        let mut redis = RedisConfig::new(url("TIDEGATE_REDIS_URL"));
        redis.key_prefix.clone_from(&self.prefix);
        let mysql = MySqlConfig { pool_max: 8, ..MySqlConfig::new(self.mysql_url()) };
        let backend = Services::connect_to(rabbitmq, redis, mysql, &config.gateway_id).await.unwrap();
        World::start(config, Arc::new(backend), TempDir::new())
    }
}

/// A setting of the test run.
pub fn url(key: &str) -> String {
    std::env::var(key).unwrap_or_else(|_| panic!("{key} is set by the test run"))
}

impl<B: Backend> World<B> {
    pub fn start(config: Config, backend: Arc<B>, dir: TempDir) -> Self {
        let bound = app::bind(&config).unwrap();
        let address = bound.tcp_address;
        let gateway = app::start(&config, bound, Arc::clone(&backend)).unwrap();
        Self { backend, gateway, address, config, _dir: dir }
    }

    /// A user with a token; the name is made unique, because services outlive a test.
    pub async fn user(&self, name: &str) -> Account {
        static COUNT: AtomicU64 = AtomicU64::new(0);
        let nanos = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_nanos();
        let unique = format!("{name}-{:x}{:x}", nanos & 0xffff_ffff, COUNT.fetch_add(1, Ordering::Relaxed));
        let id = self.backend.archive().create_user(&unique, "-", Millis(1)).await.unwrap().unwrap();
        let token = format!("token-{unique}");
        self.backend.hot().put_token(&token, id, Duration::from_secs(600)).await.unwrap();
        Account { id, token }
    }

    pub async fn room(&self, owner: &Account, members: &[&Account]) -> RoomId {
        let room = self.backend.archive().create_room("room", owner.id, 100, Millis(1)).await.unwrap();
        for member in members {
            self.backend.archive().join_room(room.id, member.id, Millis(1)).await.unwrap();
        }
        room.id
    }

    pub async fn connect(&self, account: &Account, device: &str) -> Client {
        let mut client = Client::open(self.address).await;
        let reply = client.login(account, device, &[]).await;
        assert_eq!(reply.user_id, account.id.0);
        client
    }
}

pub struct Account {
    pub id: UserId,
    pub token: String,
}

impl Account {
    pub fn with(&self, other: &Account) -> String {
        format!("p_{}_{}", self.id.0.min(other.id.0), self.id.0.max(other.id.0))
    }
}

/// A client over TCP.
pub struct Client {
    pub wire: Framed<TcpStream, FrameCodec>,
    next: u16,
    /// Pushes that arrived while a reply was waited for.
    pushes: std::collections::VecDeque<Frame>,
    /// Replies that overtook the one that was waited for, as they may.
    replies: std::collections::HashMap<u16, Frame>,
}

impl Client {
    pub async fn open(address: std::net::SocketAddr) -> Self {
        let mut client = Self::over(TcpStream::connect(address).await.unwrap());
        client.raw(&Opening::CURRENT.encode()).await;
        client
    }

    /// As [`Client::open`]; `None` if nobody listens there.
    pub async fn try_open(address: std::net::SocketAddr) -> Option<Self> {
        let mut client = Self::over(TcpStream::connect(address).await.ok()?);
        client.wire.get_mut().write_all(&Opening::CURRENT.encode()).await.ok()?;
        Some(client)
    }

    /// As [`Client::ask`]; `None` if the connection ends before the answer. Pushes are left out.
    pub async fn try_ask<R: prost::Message + Default>(
        &mut self,
        kind: Kind,
        message: &impl prost::Message,
    ) -> Option<Result<R, Code>> {
        self.next += 1;
        let mut bytes = BytesMut::new();
        frame::put_message(&mut bytes, kind, self.next, message);
        let frame = frame::next_frame(&mut bytes.freeze(), 1 << 24).unwrap().unwrap();
        self.wire.send(frame).await.ok()?;
        loop {
            let frame = tokio::time::timeout(DEADLINE, self.wire.next()).await.expect("a frame in time")?.ok()?;
            if frame.head.kind < 0x80 && frame.head.correlation == self.next {
                if frame.head.kind == Kind::Error as u8 {
                    return Some(Err(v1::Error::decode(frame.payload).unwrap().code()));
                }
                return Some(Ok(R::decode(frame.payload).unwrap()));
            }
        }
    }

    /// As [`Client::send`]; `None` if the connection ends before the answer.
    pub async fn try_send(&mut self, conversation: &str, key: &str, body: &str) -> Option<Result<v1::SendAck, Code>> {
        self.try_ask(Kind::Send, &send(conversation, key, body)).await
    }

    /// Over a socket on which nothing was said yet.
    pub fn over(stream: TcpStream) -> Self {
        let codec = FrameCodec { frame_bytes_max: 1 << 20 };
        Self { wire: Framed::new(stream, codec), next: 0, pushes: Default::default(), replies: Default::default() }
    }

    pub async fn login(&mut self, account: &Account, device: &str, watch: &[&str]) -> v1::LoginReply {
        self.login_with(
            account,
            device,
            v1::Login { watch: watch.iter().map(|name| (*name).to_owned()).collect(), ..Default::default() },
        )
        .await
    }

    /// Logs in; `None` if the connection ends before the answer.
    pub async fn try_login(&mut self, account: &Account, device: &str) -> Option<Result<v1::LoginReply, Code>> {
        let login = v1::Login { token: account.token.clone(), device_id: device.to_owned(), ..Default::default() };
        self.try_ask(Kind::Login, &login).await
    }

    /// Logs in with more than a name and a device.
    pub async fn login_with(&mut self, account: &Account, device: &str, more: v1::Login) -> v1::LoginReply {
        let login = v1::Login { token: account.token.clone(), device_id: device.to_owned(), ..more };
        self.ask(Kind::Login, &login).await.expect("the login succeeds")
    }

    /// Sends a command without waiting; returns its correlation.
    pub async fn command(&mut self, kind: Kind, message: &impl prost::Message) -> u16 {
        self.next += 1;
        let mut bytes = BytesMut::new();
        frame::put_message(&mut bytes, kind, self.next, message);
        let frame = frame::next_frame(&mut bytes.freeze(), 1 << 24).unwrap().unwrap();
        self.wire.send(frame).await.unwrap();
        self.next
    }

    /// Sends a command and waits for its reply.
    pub async fn ask<R: prost::Message + Default>(
        &mut self,
        kind: Kind,
        message: &impl prost::Message,
    ) -> Result<R, Code> {
        let correlation = self.command(kind, message).await;
        self.reply(correlation).await
    }

    pub async fn reply<R: prost::Message + Default>(&mut self, correlation: u16) -> Result<R, Code> {
        while !self.replies.contains_key(&correlation) {
            let frame = self.frame().await.expect("a reply, not the end");
            if frame.head.kind >= 0x80 {
                self.pushes.push_back(frame);
            } else {
                self.replies.insert(frame.head.correlation, frame);
            }
        }
        let frame = self.replies.remove(&correlation).unwrap();
        if frame.head.kind == Kind::Error as u8 {
            return Err(v1::Error::decode(frame.payload).unwrap().code());
        }
        Ok(R::decode(frame.payload).unwrap())
    }

    pub async fn send(&mut self, conversation: &str, key: &str, body: &str) -> Result<v1::SendAck, Code> {
        self.ask(Kind::Send, &send(conversation, key, body)).await
    }

    /// The next frame, or `None` at the end of the stream.
    pub async fn frame(&mut self) -> Option<Frame> {
        let next = tokio::time::timeout(DEADLINE, self.wire.next()).await.expect("a frame in time");
        next.map(|frame| frame.unwrap())
    }

    /// The next push.
    pub async fn push(&mut self) -> Frame {
        if let Some(frame) = self.pushes.pop_front() {
            return frame;
        }
        loop {
            let frame = self.frame().await.expect("a push, not the end");
            if frame.head.kind >= 0x80 {
                return frame;
            }
        }
    }

    /// The next pushed message; other pushes are skipped.
    pub async fn message(&mut self) -> v1::Message {
        loop {
            let frame = self.push().await;
            if frame.head.kind == Kind::Message as u8 {
                return v1::Message::decode(frame.payload).unwrap();
            }
        }
    }

    /// The next Behind; other pushes are skipped.
    pub async fn behind(&mut self) -> v1::Behind {
        loop {
            let frame = self.push().await;
            if frame.head.kind == Kind::Behind as u8 {
                return v1::Behind::decode(frame.payload).unwrap();
            }
        }
    }

    /// Waits for the Close frame and the end of the stream.
    pub async fn close(&mut self) -> CloseCode {
        self.close_or_end().await.expect("a Close frame before the end")
    }

    /// Waits for the end of the stream, and says what the last frame gave as its reason.
    pub async fn close_or_end(&mut self) -> Option<CloseCode> {
        let mut code = None;
        loop {
            match tokio::time::timeout(DEADLINE, self.wire.next()).await.expect("an end in time") {
                Some(Ok(frame)) if frame.head.kind == Kind::Close as u8 => {
                    code = Some(v1::Close::decode(frame.payload).unwrap().code());
                }
                Some(Ok(_)) => {}
                Some(Err(_)) | None => return code,
            }
        }
    }

    pub async fn raw(&mut self, bytes: &[u8]) {
        self.wire.get_mut().write_all(bytes).await.unwrap();
    }
}

pub fn send(conversation: &str, key: &str, body: &str) -> v1::Send {
    v1::Send {
        conversation_id: conversation.to_owned(),
        client_msg_id: Bytes::copy_from_slice(key.as_bytes()),
        content_type: v1::ContentType::Text.into(),
        body: Bytes::copy_from_slice(body.as_bytes()),
    }
}

/// Polls until `condition` gives something.
pub async fn eventually<T>(what: &str, mut condition: impl AsyncFnMut() -> Option<T>) -> T {
    let deadline = tokio::time::Instant::now() + DEADLINE;
    loop {
        if let Some(value) = condition().await {
            return value;
        }
        assert!(tokio::time::Instant::now() < deadline, "did not happen in time: {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}
