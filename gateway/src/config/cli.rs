//! The flags of `tidegate serve`. They are texts here: the loader checks them like every other source, so that one kind of
//! message and one exit code serve all.

use std::path::PathBuf;

/// Settings given on the command line; they win over the environment and the file.
///
/// Service URLs hold passwords and have no flag: every user of the machine can read a command line.
#[derive(Clone, Debug, Default, clap::Args)]
#[command(after_help = "\
Examples:
  tidegate serve
  tidegate serve --tcp 0.0.0.0:7400 --http 0.0.0.0:7480 --data-dir /var/lib/tidegate
  tidegate serve --backend services --gateway-id eu-1 --config /etc/tidegate.toml
  tidegate serve --set limits.connections_max=20000 --set lobbies.names=lobby_main,lobby_eu

Every key can also be set as TIDEGATE_<SECTION>_<KEY>; `tidegate config` prints them all with their defaults.
Service URLs are taken from TIDEGATE_RABBITMQ_URL, TIDEGATE_REDIS_URL and TIDEGATE_MYSQL_URL or from the file.")]
pub struct CliOverrides {
    /// Configuration file [default: $TIDEGATE_CONFIG, else ./tidegate.toml if there is one]
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,

    /// Where messages live: embedded (in this process and one file) or services (RabbitMQ, Redis, MySQL)
    #[arg(long, value_name = "KIND")]
    pub backend: Option<String>,

    /// This instance's name among those that share services, for example eu-1
    #[arg(long, value_name = "NAME")]
    pub gateway_id: Option<String>,

    /// Folder of the embedded backend's file
    #[arg(long, value_name = "DIR")]
    pub data_dir: Option<String>,

    /// Where clients connect over TCP, for example 0.0.0.0:7400
    #[arg(long, value_name = "ADDRESS:PORT")]
    pub tcp: Option<String>,

    /// Where the HTTP API and WebSocket listen, for example 0.0.0.0:7480
    #[arg(long, value_name = "ADDRESS:PORT")]
    pub http: Option<String>,

    /// Threads that own client connections; 0 for one per core
    #[arg(long, value_name = "N")]
    pub shards: Option<String>,

    /// What to log, for example debug or info,tidegate::http=debug
    #[arg(long, value_name = "FILTER")]
    pub log: Option<String>,

    /// Log lines for people (text) or machines (json)
    #[arg(long, value_name = "FORMAT")]
    pub log_format: Option<String>,

    /// Any other key, for example limits.in_flight_max=64; may be repeated
    #[arg(long, value_name = "KEY=VALUE")]
    pub set: Vec<String>,
}

impl CliOverrides {
    /// The flags that were given: flag, key, value.
    pub(super) fn given(&self) -> impl Iterator<Item = (&'static str, &'static str, &str)> {
        [
            ("--backend", "backend", &self.backend),
            ("--gateway-id", "gateway_id", &self.gateway_id),
            ("--data-dir", "data_dir", &self.data_dir),
            ("--tcp", "listen.tcp", &self.tcp),
            ("--http", "listen.http", &self.http),
            ("--shards", "runtime.shards", &self.shards),
            ("--log", "log.filter", &self.log),
            ("--log-format", "log.format", &self.log_format),
        ]
        .into_iter()
        .filter_map(|(flag, key, value)| value.as_deref().map(|value| (flag, key, value)))
    }
}
