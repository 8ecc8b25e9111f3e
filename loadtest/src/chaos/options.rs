//! The command line of a chaos run.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::bail;
use clap::{Args, ValueEnum};
use serde::Serialize;

use super::schedule::{FaultKind, Part};
use crate::options::{as_seconds, parse_duration};

const EXAMPLES: &str = "\
Examples:
  # A minute of all kinds of faults against two gateways over RabbitMQ, Redis and MariaDB of the run's own
  tidegate-loadtest chaos

  # Five minutes, three gateways, up to two faults at a time, another order, the result as JSON too
  tidegate-loadtest chaos --duration 5m --gateways 3 --overlap --seed 42 --json chaos.json

  # Only these; what a failed run leaves can be looked at
  tidegate-loadtest chaos --faults kill-gateway,hang-redis,flush-redis --duration 30s

  # One gateway on its own, without any server
  tidegate-loadtest chaos --backend embedded

The same seed gives the same faults at the same planned times. Exit codes: 0 pass, 1 fail, 2 error, 4 interrupted.
After a pass everything that was made is removed; after a failure the data and logs stay and the run says where.
Interrupted once, it mends, stops and removes what it started, which takes some seconds.";

/// On what the gateways run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum BackendChoice {
    /// RabbitMQ, Redis and MariaDB
    Services,
    /// Nothing but one gateway
    Embedded,
}

impl BackendChoice {
    /// As the gateway's settings name it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Services => "services",
            Self::Embedded => "embedded",
        }
    }
}

/// What is broken, how long, under what load.
#[derive(Clone, Debug, Args, Serialize)]
#[command(after_help = EXAMPLES)]
pub struct ChaosOptions {
    /// How long messages are offered and faults are planned; faults that take long to mend may prolong it
    #[arg(long, default_value = "60s", value_parser = parse_duration)]
    #[serde(serialize_with = "as_seconds")]
    pub duration: Duration,
    /// Kinds of faults, separated by commas [default: all that the backend allows]
    #[arg(long, value_delimiter = ',', value_enum)]
    pub faults: Vec<FaultKind>,
    /// Up to two faults at a time, of different parts
    #[arg(long)]
    pub overlap: bool,
    /// Seed of the faults, and of who writes where
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
    /// On what the gateways run
    #[arg(long, value_enum, default_value = "services")]
    pub backend: BackendChoice,
    /// Gateways; embedded, there is one [default: 2]
    #[arg(long, default_value_t = 2, hide_default_value = true, value_parser = clap::value_parser!(u32).range(1..=3))]
    pub gateways: u32,
    /// Users; every third has a second device that listens
    #[arg(long, default_value_t = 12, value_parser = clap::value_parser!(u32).range(4..=200))]
    pub users: u32,
    /// Messages offered per second, by all users together
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=2_000))]
    pub rate: u32,
    /// After the last fault, time within which everything must be accepted and seen
    #[arg(long, default_value = "60s", value_parser = parse_duration)]
    #[serde(serialize_with = "as_seconds")]
    pub patience: Duration,
    /// The gateway's program [default: `tidegate` beside this one]
    #[arg(long, value_name = "PATH")]
    #[serde(skip)]
    pub gateway_bin: Option<PathBuf>,
    /// The script that starts the servers [default: gateway/deploy/services, from here or from this program upwards]
    #[arg(long, value_name = "PATH")]
    #[serde(skip)]
    pub services: Option<PathBuf>,
    /// Where the data of all parts goes [default: a new directory below target]
    #[arg(long, value_name = "DIR")]
    #[serde(skip)]
    pub data_dir: Option<PathBuf>,
    /// Keep the data and logs after a pass too
    #[arg(long)]
    #[serde(skip)]
    pub keep: bool,
    /// Write the result as JSON too; `-` is the standard output
    #[arg(long, value_name = "FILE")]
    #[serde(skip)]
    pub json: Option<PathBuf>,
}

impl ChaosOptions {
    /// Fills in what depends on the backend.
    ///
    /// # Errors
    /// If a fault is asked for that the backend does not have.
    pub fn resolved(&self) -> anyhow::Result<Self> {
        let mut options = self.clone();
        let with_services = self.backend == BackendChoice::Services;
        if !with_services {
            options.gateways = 1;
            if let Some(kind) = self.faults.iter().find(|kind| kind.part() != Part::Gateway) {
                bail!("--faults {kind}: an embedded gateway has no such part");
            }
        }
        if options.faults.is_empty() {
            options.faults = FaultKind::all(with_services);
        }
        Ok(options)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        options: ChaosOptions,
    }

    fn parse(line: &str) -> ChaosOptions {
        Line::try_parse_from(["chaos"].into_iter().chain(line.split_whitespace())).unwrap().options
    }

    #[test]
    fn without_a_choice_all_faults_of_the_backend_are_meant() {
        assert_eq!(parse("").resolved().unwrap().faults, FaultKind::all(true));
        let embedded = parse("--backend embedded --gateways 3").resolved().unwrap();
        assert_eq!((embedded.faults, embedded.gateways), (FaultKind::all(false), 1));
    }

    #[test]
    fn faults_are_named_by_action_and_part() {
        let options = parse("--faults kill-gateway,hang-redis,alarm-rabbitmq,stop-mariadb");
        let names: Vec<String> = options.faults.iter().map(ToString::to_string).collect();
        assert_eq!(names, ["kill-gateway", "hang-redis", "alarm-rabbitmq", "stop-mariadb"]);
        assert!(parse("--backend embedded --faults hang-redis").resolved().is_err());
    }
}
