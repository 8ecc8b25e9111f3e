//! The command line: what can be asked for, its defaults and its bounds.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};
use serde::Serialize;

use crate::chaos::ChaosOptions;
use crate::pull::options::PullOptions;
use crate::storm::StormOptions;
use crate::wire::STAMP_BYTES;

const EXAMPLES: &str = "\
Examples:
  # Fifty pairs exchange 5,000 messages a second for 10 s with a gateway started for the occasion
  tidegate-loadtest private --start-gateway --pairs 50 --rate 5000

  # Twenty rooms of fifty members against a gateway that runs already; the result as JSON too
  tidegate-loadtest room --tcp 127.0.0.1:7400 --http http://127.0.0.1:7480 \\
      --rooms 20 --members 50 --rate 300 --duration 30s --json room.json

  # The same room, with every tenth receiver hanging: do the others notice?
  tidegate-loadtest room --start-gateway --rooms 4 --members 100 --rate 200 --body-bytes 2048 --stuck-percent 10

  # What an idle connection costs
  tidegate-loadtest idle --start-gateway --connections 8000

  # A short run of private and room, for a first look
  tidegate-loadtest run --start-gateway

  # A lobby of ten thousand, from 1 to 5,000 messages a second and back; a report to open in a browser
  tidegate-loadtest lobby-storm --start-gateway --html storm.html

  # How fast is a storm's lobby pulled, compared with nginx?
  tidegate-loadtest pull --start-gateway

  # Kill, hang and restart gateways and services under traffic; is anything lost?
  tidegate-loadtest chaos --duration 60s --seed 7

Verdicts and exit codes:
  0 pass         every accepted message reached every receiver exactly once and in order
  1 fail         it did not; the report says what was lost, doubled, reordered ...
  2 error        wrong options, or the load could not be set up
  3 void         the generator was the bottleneck: the numbers say nothing about the server
  4 interrupted  ended by Ctrl-C; the report holds what was measured so far";

/// Drives a Tidegate gateway at a fixed rate and judges what it delivers.
///
/// The load is open-loop: messages are due at times that do not depend on replies, and latency counts from those times.
#[derive(Debug, Parser)]
#[command(version, after_help = EXAMPLES)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// A scenario.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Pairs of users who write to each other
    Private {
        /// Pairs of users; each user has one connection
        #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
        pairs: u32,
        #[command(flatten)]
        load: LoadOptions,
        #[command(flatten)]
        common: CommonOptions,
    },
    /// Rooms whose members all write and all receive
    Room {
        /// Rooms
        #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..=100_000))]
        rooms: u32,
        /// Members of each room; each has one connection
        #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=1_000))]
        members: u32,
        /// Of a hundred members, those that never read nor write: receivers that hang. The others are judged
        #[arg(long, default_value_t = 0, value_parser = clap::value_parser!(u32).range(0..=90))]
        stuck_percent: u32,
        #[command(flatten)]
        load: LoadOptions,
        #[command(flatten)]
        common: CommonOptions,
    },
    /// Connections that do nothing: what each costs the server
    Idle {
        /// Connections, each one more device of a handful of users
        #[arg(long, default_value_t = 5_000, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
        connections: u32,
        /// Devices each user is logged in with
        #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..=100_000))]
        devices_per_user: u32,
        /// How long the connections stay after it has become quiet
        #[arg(long, default_value = "5s", value_parser = parse_duration)]
        duration: Duration,
        #[command(flatten)]
        common: CommonOptions,
    },
    /// A short run of private and room, for a first look
    Run {
        #[command(flatten)]
        common: CommonOptions,
    },
    /// One lobby, very many watchers, a rate that climbs through all gears and comes back
    LobbyStorm {
        #[command(flatten)]
        options: Box<StormOptions>,
    },
    /// Break gateways and services of its own under traffic; judge that nothing is lost, doubled or reordered
    Chaos {
        #[command(flatten)]
        options: ChaosOptions,
    },
    /// Pull what is newest in a lobby's storm as fast as it goes, and compare with nginx serving a static file
    Pull {
        #[command(flatten)]
        options: PullOptions,
    },
}

/// How much load.
#[derive(Clone, Debug, Args, Serialize)]
pub struct LoadOptions {
    /// Messages offered per second, by all senders together
    #[arg(long, default_value_t = 1_000, value_parser = clap::value_parser!(u64).range(1..=10_000_000))]
    pub rate: u64,
    /// Length of the measured part
    #[arg(long, default_value = "10s", value_parser = parse_duration)]
    #[serde(serialize_with = "as_seconds")]
    pub duration: Duration,
    /// Load before it: judged, but not measured
    #[arg(long, default_value = "2s", value_parser = parse_duration)]
    #[serde(serialize_with = "as_seconds")]
    pub warmup: Duration,
    /// Bytes of a message's body (the first 24 are the generator's)
    #[arg(long, default_value_t = 128, value_parser = clap::value_parser!(u32).range(STAMP_BYTES as i64..=16_384))]
    pub body_bytes: u32,
    /// Time without any progress after which what is missing counts as lost
    #[arg(long, default_value = "30s", value_parser = parse_duration)]
    #[serde(serialize_with = "as_seconds")]
    pub patience: Duration,
}

/// Against what, and where the report goes.
#[derive(Clone, Debug, Args)]
pub struct CommonOptions {
    /// Where the gateway listens for connections; several, separated by commas, are taken in turn
    #[arg(long, default_value = "127.0.0.1:7400", value_delimiter = ',')]
    pub tcp: Vec<SocketAddr>,
    /// Where its HTTP API is
    #[arg(long, default_value = "http://127.0.0.1:7480")]
    pub http: String,
    /// Start a gateway on free ports, with a data directory of its own, and end it afterwards
    #[arg(long, conflicts_with_all = ["tcp", "http", "server_pid"])]
    pub start_gateway: bool,
    /// The gateway's program [default: `tidegate` beside this one]
    #[arg(long, value_name = "PATH", requires = "start_gateway")]
    pub gateway_bin: Option<PathBuf>,
    /// The started gateway's data directory; it stays [default: a new one, removed after a pass]
    #[arg(long, value_name = "DIR", requires = "start_gateway")]
    pub data_dir: Option<PathBuf>,
    /// Process of a gateway that runs already, to report its CPU time and memory
    #[arg(long, value_name = "PID")]
    pub server_pid: Option<u32>,
    /// Write the result as JSON too; `-` is the standard output
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
    /// Threads of the generator; each owns whole conversations
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=64))]
    pub threads: u32,
    /// Seed of the order in which senders take turns, and of the bodies
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
}

/// A number with a unit: `250ms`, `10s`, `2m`. A bare number is seconds.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let number: f64 = digits.parse().map_err(|_| format!("`{digits}` is not a number"))?;
    let seconds = match &text[digits.len()..] {
        "ms" => number / 1_000.0,
        "" | "s" => number,
        "m" => number * 60.0,
        "h" => number * 3_600.0,
        unit => return Err(format!("unknown unit `{unit}`; use ms, s, m or h")),
    };
    let duration = Duration::try_from_secs_f64(seconds).map_err(|error| error.to_string())?;
    if duration > Duration::from_secs(24 * 3_600) { Err("longer than a day".to_owned()) } else { Ok(duration) }
}

/// For JSON.
pub fn as_seconds<S: serde::Serializer>(duration: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_f64(duration.as_secs_f64())
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn durations_have_units() {
        assert_eq!(parse_duration("250ms"), Ok(Duration::from_millis(250)));
        assert_eq!(parse_duration("1.5s"), Ok(Duration::from_millis(1_500)));
        assert_eq!(parse_duration("10"), Ok(Duration::from_secs(10)));
        assert_eq!(parse_duration("2m"), Ok(Duration::from_secs(120)));
        for wrong in ["", "s", "10 parsecs", "-1s", "NaN", "100h"] {
            assert!(parse_duration(wrong).is_err(), "{wrong}");
        }
    }
}
