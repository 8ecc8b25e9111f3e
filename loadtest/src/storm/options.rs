//! The command line of a lobby storm.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, bail};
use clap::{Args, ValueEnum};
use serde::Serialize;

use super::ramp::Ramp;
use crate::options::{CommonOptions, as_seconds, parse_duration};
use crate::wire::STAMP_BYTES;

const EXAMPLES: &str = "\
Examples:
  # Ten thousand watchers, a thousand of them write: 1 to 5,000 messages a second and back; a report to open in a browser
  tidegate-loadtest lobby-storm --start-gateway --connections 10000 --senders 1000 \\
      --rate-from 1 --rate-to 5000 --duration 60s --html storm.html

  # Browsers: WebSocket, and pulls over HTTP
  tidegate-loadtest lobby-storm --start-gateway --transport websocket --pull http --json storm.json

  # A first look in a quarter of a minute
  tidegate-loadtest lobby-storm --start-gateway --connections 500 --senders 100 --rate-to 500 --duration 15s --hold 2s

  # A gateway that runs already; only a hundred watchers load the whole past afterwards
  tidegate-loadtest lobby-storm --tcp 127.0.0.1:7400 --http http://127.0.0.1:7480 --server-pid 4711 --fill 100

What is judged:
  1. every watcher ends with exactly the sequences of the history, and the history has every accepted message once
  2. in signal gear no watcher receives more bytes per second than the server's cap (storms.<lobby> of /api/v1/config)
  3. from accepted to visible stays below the pull spread + 50 ms at p99 in each of up to 20 equal slices of the run
Exit codes: 0 pass, 1 fail, 2 error, 3 void (the generator was the bottleneck), 4 interrupted.

Who writes must be many: the server allows each user some 10 messages per second and lobby. What is answered with
\"slow down\" is sent again when the server says so, and counted.";

/// How frames travel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Transport {
    /// Over bare TCP
    Tcp,
    /// In WebSocket messages
    Websocket,
}

/// How watchers pull.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum PullOver {
    /// In their own connection
    Connection,
    /// Over HTTP, on a pool of kept-alive connections
    Http,
}

/// How many fill their gaps.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Fill {
    /// Every watcher.
    All,
    /// The first so many.
    Some(u32),
}

impl Fill {
    /// How many of `watchers`.
    pub fn of(self, watchers: u32) -> u32 {
        match self {
            Self::All => watchers,
            Self::Some(count) => count.min(watchers),
        }
    }
}

fn parse_fill(text: &str) -> Result<Fill, String> {
    match text {
        "all" => Ok(Fill::All),
        _ => text.parse().map(Fill::Some).map_err(|_| "`all` or a number".to_owned()),
    }
}

/// Who, how much, how.
#[derive(Clone, Debug, Args, Serialize)]
#[command(after_help = EXAMPLES)]
pub struct StormOptions {
    /// Watchers of the lobby, each with a connection
    #[arg(long, default_value_t = 10_000, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub connections: u32,
    /// Of these, those that write; each is a user of its own
    #[arg(long, default_value_t = 1_000, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub senders: u32,
    /// Messages offered per second at both ends, by all senders together
    #[arg(long, default_value_t = 1.0, value_parser = parse_rate)]
    pub rate_from: f64,
    /// Messages offered per second in the middle
    #[arg(long, default_value_t = 5_000.0, value_parser = parse_rate)]
    pub rate_to: f64,
    /// Length of the ramp: up in its first half, down in its second, equal factors in equal times
    #[arg(long, default_value = "60s", value_parser = parse_duration)]
    #[serde(serialize_with = "as_seconds")]
    pub duration: Duration,
    /// How long the rate stays at each end and in the middle; part of the duration
    #[arg(long, default_value = "5s", value_parser = parse_duration)]
    #[serde(serialize_with = "as_seconds")]
    pub hold: Duration,
    /// The lobby
    #[arg(long, default_value = "lobby_main")]
    pub lobby: String,
    /// How frames travel
    #[arg(long, value_enum, default_value = "tcp")]
    pub transport: Transport,
    /// How watchers pull
    #[arg(long, value_enum, default_value = "connection")]
    pub pull: PullOver,
    /// Connections of the pool for pulls over HTTP, per generator thread
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..=1_000))]
    pub http_connections: u32,
    /// Bytes of a message's body (the first 24 are the generator's)
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u32).range(STAMP_BYTES as i64..=16_384))]
    pub body_bytes: u32,
    /// Devices each user is logged in with who only watches
    #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub devices_per_user: u32,
    /// Watchers that fill their gaps when the storm is over: `all` or a number. The others' sets are only checked for
    /// what they hold
    #[arg(long, default_value = "all", value_parser = parse_fill)]
    pub fill: Fill,
    /// Of these, how many at once, per generator thread
    #[arg(long, default_value_t = 32, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub fill_at_once: u32,
    /// Time without any progress after which what is missing counts as lost
    #[arg(long, default_value = "30s", value_parser = parse_duration)]
    #[serde(serialize_with = "as_seconds")]
    pub patience: Duration,
    /// Write the report as one HTML file too, with its plots
    #[arg(long, value_name = "FILE")]
    #[serde(skip)]
    pub html: Option<PathBuf>,
    #[command(flatten)]
    #[serde(skip)]
    pub common: CommonOptions,
}

impl StormOptions {
    /// The ramp that was asked for.
    ///
    /// # Errors
    /// If the options do not go together.
    pub fn ramp(&self) -> anyhow::Result<Ramp> {
        if self.senders > self.connections {
            bail!("senders watch too: --senders must not exceed --connections");
        }
        let (length_s, hold_s) = (self.duration.as_secs_f64(), self.hold.as_secs_f64());
        let ramp = Ramp::new(self.rate_from, self.rate_to, length_s, hold_s);
        let ramp = ramp.context("three times --hold leaves nothing of --duration for the ramp")?;
        if u32::try_from(ramp.messages()).is_err() {
            bail!("that would be {} messages; at most {} are kept track of", ramp.messages(), u32::MAX);
        }
        Ok(ramp)
    }
}

fn parse_rate(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(rate) if (0.01..=10_000_000.0).contains(&rate) => Ok(rate),
        Ok(_) => Err("a rate is from 0.01 to 10000000".to_owned()),
        Err(_) => Err(format!("`{text}` is not a number")),
    }
}
