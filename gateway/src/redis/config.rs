//! Where Redis is and how long it may take.
//!
//! A [`RedisConfig`] comes in, fred's configuration or a refusal that names no secret goes out.
//!
//! What must hold: the URL may contain a password, so it is never shown; servers are named as host:port.

use std::fmt;
use std::time::Duration;

use fred::types::config::{
    Config, ConnectionConfig, PerformanceConfig, ReconnectPolicy, ServerConfig, TcpConfig, UnresponsiveConfig,
};
use tidegate_core::limits::{GATEWAY_TTL, PRESENCE_TTL};
use tidegate_core::ports::PortError;

use super::SERVICE;

/// Commands that wait inside fred; more are refused at once. Each is a whole batch.
const COMMAND_BUFFER_MAX: usize = 1024;
/// A broken connection is tried again after this, doubling up to the next.
const RECONNECT_DELAY_MS_MIN: u32 = 50;
/// As above: how late a returning Redis is noticed at most.
const RECONNECT_DELAY_MS_MAX: u32 = 1000;
/// How often fred looks whether a command waits for too long.
const UNRESPONSIVE_CHECK: Duration = Duration::from_millis(200);

/// How to reach Redis. `Debug` shows neither password nor URL.
#[derive(Clone)]
pub struct RedisConfig {
    /// `redis://[user:password@]host[:port][/db]` or `redis-sentinel://...?sentinelServiceName=...` (fred's form).
    pub url: String,
    /// Within this a call has its answer or its error.
    pub command_timeout: Duration,
    /// How long a session's presence lives unless renewed.
    pub presence_ttl: Duration,
    /// How long a gateway is believed to live after its last beat, while others beat.
    pub gateway_ttl: Duration,
    /// Sa-Token's `token-name`, the first part of its keys.
    pub token_name: String,
    /// Sa-Token's login type, the second part of its keys.
    pub login_type: String,
    /// Put before every key. Empty where other services read the keys.
    pub key_prefix: String,
}

impl RedisConfig {
    /// The defaults for a Redis at `url`.
    pub fn new(url: impl Into<String>) -> Self {
        Self {
            url: url.into(),
            command_timeout: Duration::from_secs(2),
            presence_ttl: PRESENCE_TTL,
            gateway_ttl: GATEWAY_TTL,
            token_name: "satoken".to_owned(),
            login_type: "login".to_owned(),
            key_prefix: String::new(),
        }
    }

    /// What fred makes of the URL.
    pub(super) fn server(&self) -> Result<Config, PortError> {
        let refused = |why: &str| PortError::Refused { service: SERVICE, detail: format!("the URL of Redis {why}") };
        let scheme = self.url.split_once("://").map(|(scheme, _)| scheme);
        match scheme {
            Some("redis" | "valkey" | "redis-sentinel" | "valkey-sentinel") => {}
            // One script writes the counters of many conversations, which live in different slots of a cluster; it would
            // have to be cut by slot, with one pending hash per slot. Sentinel gives availability without that.
            Some("redis-cluster" | "valkey-cluster") => return Err(refused("names a cluster, which is not supported")),
            Some("rediss" | "valkeys") => return Err(refused("asks for TLS, which is not built in")),
            _ => return Err(refused("must begin with redis:// or redis-sentinel://")),
        }
        // fred's own text may repeat parts of the URL.
        Config::from_url(&self.url).map_err(|_| refused("is not of the form redis://[user:password@]host[:port][/db]"))
    }

    /// Deadlines and bounds. A command is written once: what happens to a repetition is the caller's to decide.
    pub(super) fn connection(&self) -> ConnectionConfig {
        ConnectionConfig {
            connection_timeout: self.command_timeout,
            internal_command_timeout: self.command_timeout,
            max_command_attempts: 1,
            max_command_buffer_len: COMMAND_BUFFER_MAX,
            reconnect_on_auth_error: true,
            unresponsive: UnresponsiveConfig { max_timeout: Some(self.command_timeout), interval: UNRESPONSIVE_CHECK },
            tcp: TcpConfig { nodelay: Some(true), ..TcpConfig::default() },
            ..ConnectionConfig::default()
        }
    }

    pub(super) fn performance(&self) -> PerformanceConfig {
        PerformanceConfig { default_command_timeout: self.command_timeout, ..PerformanceConfig::default() }
    }
}

/// Forever: zero attempts is "no limit" to fred.
pub(super) fn reconnect_policy() -> ReconnectPolicy {
    ReconnectPolicy::new_exponential(0, RECONNECT_DELAY_MS_MIN, RECONNECT_DELAY_MS_MAX, 2)
}

/// The servers of a configuration, for logs and errors.
pub(super) fn address(server: &ServerConfig) -> String {
    let hosts: Vec<String> = server.hosts().iter().map(|host| format!("{}:{}", host.host, host.port)).collect();
    hosts.join(",")
}

impl fmt::Debug for RedisConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let server = self.server().map_or_else(|_| "invalid".to_owned(), |config| address(&config.server));
        f.debug_struct("RedisConfig")
            .field("server", &server)
            .field("command_timeout", &self.command_timeout)
            .field("presence_ttl", &self.presence_ttl)
            .field("gateway_ttl", &self.gateway_ttl)
            .field("token_name", &self.token_name)
            .field("login_type", &self.login_type)
            .field("key_prefix", &self.key_prefix)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_password_is_ever_shown() {
        for url in [
            "redis://user:hunter2@127.0.0.1:7000/3",
            "redis://:hunter2@127.0.0.1:port/3",
            "rediss://:hunter2@localhost",
            "redis-cluster://:hunter2@localhost",
            "http://:hunter2@localhost",
            ":hunter2@",
        ] {
            let config = RedisConfig::new(url);
            let shown = format!("{config:?} {:?}", config.server().map(|config| address(&config.server)));
            assert!(!shown.contains("hunter2"), "{shown}");
        }
        assert!(format!("{:?}", RedisConfig::new("redis://u:p@127.0.0.1:7000/3")).contains("127.0.0.1:7000"));
    }
}
