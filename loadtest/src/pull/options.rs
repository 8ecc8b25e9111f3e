//! The command line of a side pull measurement.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use serde::Serialize;

use crate::options::{CommonOptions, as_seconds, parse_duration};

const EXAMPLES: &str = "\
Examples:
  # Five rounds of nginx, the gateway over HTTP and the gateway over its own protocol
  tidegate-loadtest pull --start-gateway

  # An nginx that is not in PATH, more rounds, the result as JSON too
  tidegate-loadtest pull --start-gateway --nginx ./nginx --pairs 9 --json pull.json

nginx is started for the occasion with a configuration of its own and one worker per core; it serves one file that holds
what the gateway answers, to the same requests. Exit codes: 0 pass, 1 fail, 2 error, 3 void, 4 interrupted.";

/// How much is pulled, by whom, compared with what.
#[derive(Clone, Debug, Args, Serialize)]
#[command(after_help = EXAMPLES)]
pub struct PullOptions {
    /// Length of each measured part
    #[arg(long, default_value = "5s", value_parser = parse_duration)]
    #[serde(serialize_with = "as_seconds")]
    pub seconds: Duration,
    /// Load before each measured part
    #[arg(long, default_value = "500ms", value_parser = parse_duration)]
    #[serde(serialize_with = "as_seconds")]
    pub warmup: Duration,
    /// Rounds; in each, everything is measured once, in an order of its own
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=100))]
    pub pairs: u32,
    /// Connections over HTTP, to nginx and to the gateway, with one request under way on each
    #[arg(long, default_value_t = 512, value_parser = clap::value_parser!(u32).range(1..=1_000))]
    pub connections: u32,
    /// Connections of the gateway's own protocol, likewise. The gateway allows each one live pull per 10 ms here, so it takes
    /// many to keep it busy
    #[arg(long, default_value_t = 1_536, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub own_connections: u32,
    /// Bytes of the answer, about
    #[arg(long, default_value_t = 16 * 1024, value_parser = clap::value_parser!(u32).range(4_096..=60_000))]
    pub answer_bytes: u32,
    /// nginx's program [default: `nginx` in PATH]
    #[arg(long, value_name = "PATH")]
    pub nginx: Option<PathBuf>,
    #[command(flatten)]
    #[serde(skip)]
    pub common: CommonOptions,
}
