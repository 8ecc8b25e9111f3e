//! The configuration: what an operator may set, checked as a whole before anything is opened.
//!
//! In go flags, the environment and a TOML file; out comes a [`Config`] whose every value is in range, or a
//! [`ConfigError`] that names key, source, value and what is expected. Defaults live in `tidegate.toml` alone
//! ([`DEFAULTS`]). A secret value is never in an error, a log or a `Debug` text.

mod cli;
mod error;
mod fairness;
mod layers;
mod nearest;
mod reader;
mod secret;
mod storm;
#[cfg(test)]
mod tests;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use tidegate_core::fairness::rules::SendLimits;
use tidegate_core::ids::{GatewayId, LobbyName};
use tidegate_core::limits::{BODY_BYTES_MAX, FRAME_BYTES_MAX, GATEWAY_ID_BYTES_MAX, IN_FLIGHT_MAX};
use tidegate_core::services::password::PasswordCost;
use tidegate_core::storm::StormRules;

pub use cli::CliOverrides;
pub use error::{ConfigError, Source};
pub use layers::DEFAULTS;
pub use secret::Secret;

use layers::{Layers, Surroundings};
use reader::Reader;

/// Everything an operator may set.
#[derive(Clone, Debug)]
pub struct Config {
    /// Which set of backends.
    pub backend: BackendKind,
    /// This instance among those that share services.
    pub gateway_id: GatewayId,
    /// Where the embedded backend keeps its file.
    pub data_dir: PathBuf,
    /// Addresses to listen on.
    pub listen: Listen,
    /// Threads.
    pub runtime: Runtime,
    /// MQ1 and MQ2.
    pub rabbitmq: RabbitMq,
    /// The hot store.
    pub redis: Redis,
    /// The archive.
    pub mysql: MySql,
    /// What clients are told about pings.
    pub heartbeat: Heartbeat,
    /// Bounds of connections.
    pub limits: Limits,
    /// Logins and passwords.
    pub auth: Auth,
    /// Conversations everybody may read and write.
    pub lobbies: Vec<LobbyName>,
    /// How much users may send.
    pub fairness: SendLimits,
    /// Which conversations change gear, and when.
    pub storm: StormRules,
    /// Logging.
    pub log: Log,
    /// What is odd but no error; to be logged once logging is up.
    pub warnings: Vec<String>,
}

/// Which set of backends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BackendKind {
    /// In this process, with messages in one SQLite file.
    Embedded,
    /// RabbitMQ, Redis and MySQL.
    Services,
}

/// Addresses to listen on. Port 0 lets the system choose.
#[derive(Clone, Copy, Debug)]
pub struct Listen {
    /// Frames over TCP.
    pub tcp: SocketAddr,
    /// HTTP, WebSocket, probes and metrics.
    pub http: SocketAddr,
}

/// Threads; never zero here.
#[derive(Clone, Copy, Debug)]
pub struct Runtime {
    /// Threads that own connections.
    pub shards: usize,
    /// Threads for engines, adapters and HTTP.
    pub engine_threads: usize,
}

/// MQ1 and MQ2.
#[derive(Clone, Debug)]
pub struct RabbitMq {
    /// `amqp://user:password@host:port/vhost`.
    pub url: Secret,
    /// Slices of the ingest leg.
    pub partitions: u32,
}

/// The hot store.
#[derive(Clone, Debug)]
pub struct Redis {
    /// `redis://user:password@host:port/db`, or the sentinel's form.
    pub url: Secret,
}

/// The archive.
#[derive(Clone, Debug)]
pub struct MySql {
    /// `mysql://user:password@host:port/database`.
    pub url: Secret,
    /// Most connections of this instance.
    pub pool_max: usize,
}

/// What clients are told about pings; `min_interval_s <= max_interval_s`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Heartbeat {
    /// Shortest silence before a ping.
    pub min_interval_s: u32,
    /// Longest silence before a ping.
    pub max_interval_s: u32,
    /// Pings without an answer before a connection is given up.
    pub probe_count: u32,
}

/// Bounds of connections. A body fits a frame and two frames fit an outbox.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// One frame, head and payload.
    pub frame_bytes_max: usize,
    /// One message's body.
    pub body_bytes_max: usize,
    /// Frames waiting for one receiver.
    pub outbox_bytes_max: usize,
    /// How long a receiver may take nothing.
    pub stall_timeout: Duration,
    /// Commands of one connection without a reply.
    pub in_flight_max: u16,
    /// Connections of this instance.
    pub connections_max: usize,
    /// From the connection to the login.
    pub handshake_timeout: Duration,
    /// From the signal to end until open connections are cut.
    pub drain_timeout: Duration,
}

/// Logins and passwords.
#[derive(Clone, Copy, Debug)]
pub struct Auth {
    /// How long a login lasts.
    pub token_ttl: Duration,
    /// What one hash costs.
    pub password_cost: PasswordCost,
    /// Hashes computed at one time; never zero here.
    pub hash_concurrency_max: usize,
}

/// Logging.
#[derive(Clone, Debug)]
pub struct Log {
    /// How a line looks.
    pub format: LogFormat,
    /// Levels by module; checked to be one that tracing understands.
    pub filter: String,
}

/// How a log line looks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

const ADDRESS: &str = "an IP address and a port, such as 127.0.0.1:7400 or [::]:7400";

impl Config {
    /// Reads flags, the process's environment and the file, in this order of precedence.
    ///
    /// # Errors
    /// [`ConfigError`] for the first value, key or file that is wrong.
    pub fn load(flags: &CliOverrides) -> Result<Self, ConfigError> {
        let around = Surroundings { environment: std::env::vars_os().collect(), working_dir: PathBuf::new() };
        Self::load_from(flags, &around)
    }

    fn load_from(flags: &CliOverrides, around: &Surroundings) -> Result<Self, ConfigError> {
        let mut read = Reader::new(Layers::gather(flags, around)?);
        let backend = read.text("backend", "\"embedded\" or \"services\"", |text| match text {
            "embedded" => Some(BackendKind::Embedded),
            "services" => Some(BackendKind::Services),
            _ => None,
        })?;
        let listen = Listen {
            tcp: read.text("listen.tcp", ADDRESS, |text| text.parse().ok())?,
            http: read.text("listen.http", ADDRESS, |text| text.parse().ok())?,
        };
        let limits = limits(&mut read)?;
        let storm = storm::rules(&mut read, limits.frame_bytes_max)?;
        Ok(Self {
            backend,
            gateway_id: gateway_id(&mut read, listen.tcp.port())?,
            data_dir: read.text("data_dir", "a folder", |text| (!text.is_empty()).then(|| text.into()))?,
            listen,
            runtime: Runtime {
                shards: or_cores(read.number("runtime.shards", 0..=64)?).min(64),
                engine_threads: or_cores(read.number("runtime.engine_threads", 0..=256)?),
            },
            rabbitmq: RabbitMq {
                url: url(&mut read, "rabbitmq.url", &["amqp"])?,
                partitions: read.number("rabbitmq.partitions", 1..=64)?,
            },
            redis: Redis { url: url(&mut read, "redis.url", &["redis", "redis-sentinel"])? },
            mysql: MySql {
                url: url(&mut read, "mysql.url", &["mysql"])?,
                pool_max: read.number("mysql.pool_max", 1..=1024)?,
            },
            heartbeat: heartbeat(&mut read)?,
            limits,
            auth: auth(&mut read)?,
            lobbies: lobbies(&mut read)?,
            fairness: fairness::read(&mut read)?,
            storm,
            log: log(&mut read)?,
            warnings: read.finish(),
        })
    }
}

/// The configured id, or one that survives a restart: host name and port.
fn gateway_id(read: &mut Reader, tcp_port: u16) -> Result<GatewayId, ConfigError> {
    let expected = format!("1 to {GATEWAY_ID_BYTES_MAX} letters, digits, dots, dashes or underscores, or nothing");
    let configured = read
        .text("gateway_id", &expected, |text| if text.is_empty() { Some(None) } else { text.parse().ok().map(Some) });
    Ok(configured?.unwrap_or_else(|| {
        let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
        // A port of the system's choice says nothing; the process id at least keeps two instances apart.
        let place = if tcp_port == 0 { std::process::id().to_string() } else { tcp_port.to_string() };
        derived_id(host.trim(), &place)
    }))
}

fn derived_id(host: &str, place: &str) -> GatewayId {
    let legal = |c: &char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    let host: String = host.chars().filter(legal).take(GATEWAY_ID_BYTES_MAX - 1 - place.len()).collect();
    let host = if host.is_empty() { "gateway" } else { &host };
    format!("{host}-{place}").parse().expect("filtered to legal characters and length")
}

fn url(read: &mut Reader, key: &'static str, schemes: &[&str]) -> Result<Secret, ConfigError> {
    let expected = format!("a URL that begins with {}://", schemes.join(":// or "));
    read.text(key, &expected, |text| {
        let (scheme, rest) = text.split_once("://")?;
        (schemes.contains(&scheme) && !rest.is_empty() && !text.contains(char::is_whitespace))
            .then(|| Secret::new(text))
    })
}

fn heartbeat(read: &mut Reader) -> Result<Heartbeat, ConfigError> {
    let heartbeat = Heartbeat {
        min_interval_s: read.number("heartbeat.min_interval_s", 1..=3600)?,
        max_interval_s: read.number("heartbeat.max_interval_s", 1..=3600)?,
        probe_count: read.number("heartbeat.probe_count", 1..=100)?,
    };
    if heartbeat.min_interval_s > heartbeat.max_interval_s {
        return Err(read.wrong("heartbeat.max_interval_s", "at least heartbeat.min_interval_s"));
    }
    Ok(heartbeat)
}

fn limits(read: &mut Reader) -> Result<Limits, ConfigError> {
    /// Ids and head around a body.
    const AROUND_BODY_BYTES: usize = 1024;
    let limits = Limits {
        frame_bytes_max: read.number("limits.frame_bytes_max", 2048..=FRAME_BYTES_MAX as u64)?,
        body_bytes_max: read.number("limits.body_bytes_max", 1..=BODY_BYTES_MAX as u64)?,
        outbox_bytes_max: read.number("limits.outbox_bytes_max", 4096..=64 * 1024 * 1024)?,
        stall_timeout: seconds(read, "limits.stall_timeout_s", 1..=3600)?,
        in_flight_max: read.number("limits.in_flight_max", 1..=u64::from(IN_FLIGHT_MAX))?,
        connections_max: read.number("limits.connections_max", 1..=10_000_000)?,
        handshake_timeout: seconds(read, "limits.handshake_timeout_s", 1..=300)?,
        drain_timeout: seconds(read, "limits.drain_timeout_s", 0..=3600)?,
    };
    if limits.body_bytes_max + AROUND_BODY_BYTES > limits.frame_bytes_max {
        return Err(read.wrong("limits.body_bytes_max", "at least 1024 less than limits.frame_bytes_max"));
    }
    if limits.outbox_bytes_max < 2 * limits.frame_bytes_max {
        return Err(read.wrong("limits.outbox_bytes_max", "at least twice limits.frame_bytes_max"));
    }
    Ok(limits)
}

fn auth(read: &mut Reader) -> Result<Auth, ConfigError> {
    let cost = PasswordCost {
        memory_kib: read.number("auth.argon2_memory_kib", 8..=1024 * 1024)?,
        iterations: read.number("auth.argon2_iterations", 1..=100)?,
        parallel: read.number("auth.argon2_parallel", 1..=64)?,
    };
    if cost.memory_kib < 8 * cost.parallel {
        return Err(read.wrong("auth.argon2_memory_kib", "at least 8 times auth.argon2_parallel"));
    }
    Ok(Auth {
        token_ttl: seconds(read, "auth.token_ttl_s", 1..=10 * 365 * 86_400)?,
        password_cost: cost,
        hash_concurrency_max: match read.number("auth.hash_concurrency_max", 0..=1024)? {
            // The other half stays with the shards, so that a rush of logins does not delay chat.
            0 => or_cores(0).div_ceil(2),
            number => number,
        },
    })
}

fn lobbies(read: &mut Reader) -> Result<Vec<LobbyName>, ConfigError> {
    const KEY: &str = "lobbies.names";
    let names: Vec<LobbyName> =
        read.list(KEY, "a list of names like \"lobby_main\": lobby_ and 1 to 25 of a-z, 0-9, _ and -", |name| {
            name.parse().ok()
        })?;
    let distinct: std::collections::BTreeSet<_> = names.iter().collect();
    if distinct.len() < names.len() {
        return Err(read.wrong(KEY, "every name only once"));
    }
    Ok(names)
}

fn log(read: &mut Reader) -> Result<Log, ConfigError> {
    let format = read.text("log.format", "\"text\" or \"json\"", |text| match text {
        "text" => Some(LogFormat::Text),
        "json" => Some(LogFormat::Json),
        _ => None,
    })?;
    let filter =
        read.text("log.filter", "levels by module, such as \"info\" or \"info,tidegate::http=debug\"", |text| {
            text.parse::<tracing_subscriber::EnvFilter>().ok().map(|_| text.to_owned())
        })?;
    Ok(Log { format, filter })
}

fn seconds(
    read: &mut Reader,
    key: &'static str,
    range: std::ops::RangeInclusive<u64>,
) -> Result<Duration, ConfigError> {
    read.number(key, range).map(Duration::from_secs)
}

fn or_cores(number: usize) -> usize {
    if number == 0 { std::thread::available_parallelism().map_or(1, usize::from) } else { number }
}
