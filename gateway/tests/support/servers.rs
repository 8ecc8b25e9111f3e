//! Private RabbitMQ, Redis and MariaDB of one test, to be stopped, killed, frozen and emptied; and a slow way to them.
//!
//! The servers are those of `gateway/deploy/services` in a directory below `target/tmp`. They and the directory are gone at
//! the end, whatever happens.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{Instant, sleep_until};

pub const ALL: [&str; 3] = ["rabbitmq", "redis", "mariadb"];

/// Servers started for one test alone.
pub struct Servers {
    dir: PathBuf,
}

impl Servers {
    /// `None`, with a word about it, if the test run wants no servers. Waits until all of `names` are ready.
    pub fn start(test: &str, names: &[&str]) -> Option<Self> {
        if std::env::var("TIDEGATE_TEST_SERVICES").as_deref() != Ok("1") {
            eprintln!("skipped: TIDEGATE_TEST_SERVICES is not 1");
            return None;
        }
        let name = format!("servers-{test}-{}", std::process::id());
        let servers = Self { dir: PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(name) };
        servers.run("start", names);
        Some(servers)
    }

    /// A command of `gateway/deploy/services`; returns what it printed.
    pub fn run(&self, command: &str, rest: &[&str]) -> String {
        let mut run = Command::new(concat!(env!("CARGO_MANIFEST_DIR"), "/deploy/services"));
        let output = run.arg(command).arg("--dir").arg(&self.dir).args(rest).output().expect("the script runs");
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "services {command} {rest:?}: {errors}");
        String::from_utf8(output.stdout).expect("text")
    }

    /// `-STOP`, `-CONT`, ... to a server's process.
    pub fn signal(&self, server: &str, signal: &str) {
        let record = self.read(&format!("processes/{server}"));
        let pid = record.split_whitespace().next().expect("the process's id");
        assert!(Command::new("kill").args([signal, pid]).status().expect("kill runs").success());
    }

    /// RabbitMQ raises its memory alarm when it uses more than this.
    pub fn broker_memory_limit(&self, limit: &str) {
        self.run("cli", &["rabbitmq", "set_vm_memory_high_watermark", "absolute", limit]);
    }

    /// Where a server keeps what must outlive it.
    pub fn data(&self, server: &str) -> PathBuf {
        self.dir.join(server).join("data")
    }

    pub fn address(&self, server: &str) -> SocketAddr {
        format!("127.0.0.1:{}", self.read(&format!("{server}/port"))).parse().expect("a port")
    }

    pub fn rabbitmq_url(&self) -> String {
        self.rabbitmq_url_at(self.address("rabbitmq"))
    }

    /// The same by another way.
    pub fn rabbitmq_url_at(&self, address: SocketAddr) -> String {
        format!("amqp://tidegate:{}@{address}/%2f", self.read("secrets/rabbitmq"))
    }

    pub fn redis_url_at(&self, address: SocketAddr) -> String {
        format!("redis://{address}/0")
    }

    pub fn mysql_url_at(&self, address: SocketAddr) -> String {
        format!("mysql://tidegate:{}@{address}/tidegate", self.read("secrets/mariadb"))
    }

    /// The settings that lead a gateway to them.
    pub fn settings(&self) -> Vec<(&'static str, String)> {
        vec![
            ("TIDEGATE_BACKEND", "services".to_owned()),
            ("TIDEGATE_RABBITMQ_URL", self.rabbitmq_url()),
            ("TIDEGATE_REDIS_URL", self.redis_url_at(self.address("redis"))),
            ("TIDEGATE_MYSQL_URL", self.mysql_url_at(self.address("mariadb"))),
        ]
    }

    fn read(&self, file: &str) -> String {
        let text = std::fs::read_to_string(self.dir.join(file)).expect("written by the script");
        text.trim().to_owned()
    }
}

impl Drop for Servers {
    fn drop(&mut self) {
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/deploy/services");
        // Killed first: a frozen server does not stop in good order.
        let _ = Command::new(script).arg("kill").arg("--dir").arg(&self.dir).args(ALL).output();
        let _ = Command::new(script).arg("clean").arg("--dir").arg(&self.dir).output();
    }
}

/// A way to a server that can be made slow, in both directions.
pub struct Proxy {
    pub address: SocketAddr,
    delay_ms: Arc<AtomicU64>,
    accepting: tokio::task::JoinHandle<()>,
}

impl Proxy {
    pub async fn to(target: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("bound");
        let delay_ms = Arc::new(AtomicU64::new(0));
        let delay_here = Arc::clone(&delay_ms);
        let accepting = tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let delay_ms = Arc::clone(&delay_here);
                tokio::spawn(async move {
                    let Ok(server) = TcpStream::connect(target).await else { return };
                    let _ = (client.set_nodelay(true), server.set_nodelay(true));
                    let ((from_client, to_client), (from_server, to_server)) =
                        (client.into_split(), server.into_split());
                    tokio::join!(pass(&delay_ms, from_client, to_server), pass(&delay_ms, from_server, to_client));
                });
            }
        });
        Self { address, delay_ms, accepting }
    }

    /// Bytes arrive this much later, each way.
    pub fn slow_by(&self, delay: Duration) {
        self.delay_ms.store(u64::try_from(delay.as_millis()).expect("short"), Ordering::SeqCst);
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

/// Passes bytes on, each piece after the delay, without holding back those that follow it.
async fn pass(delay_ms: &AtomicU64, mut from: OwnedReadHalf, mut to: OwnedWriteHalf) {
    let (pieces, mut due) = tokio::sync::mpsc::channel::<(Instant, Vec<u8>)>(1024);
    let reading = async move {
        let mut buffer = vec![0; 16 * 1024];
        while let Ok(count @ 1..) = from.read(&mut buffer).await {
            let at = Instant::now() + Duration::from_millis(delay_ms.load(Ordering::SeqCst));
            if pieces.send((at, buffer[..count].to_vec())).await.is_err() {
                return;
            }
        }
    };
    let writing = async move {
        while let Some((at, piece)) = due.recv().await {
            sleep_until(at).await;
            if to.write_all(&piece).await.is_err() {
                return;
            }
        }
        let _ = to.shutdown().await;
    };
    tokio::join!(reading, writing);
}
