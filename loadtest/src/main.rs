//! `tidegate-loadtest`: drives a gateway at a fixed rate and judges what it delivers.
//!
//! In: the command line; out: a report and an exit code ([`report::Verdict`]). It knows the protocol and the HTTP API
//! only, never the server's code, so that it cannot cheat.

#![cfg_attr(test, allow(clippy::unwrap_used, reason = "a failed test may panic"))]

mod chaos;
mod clock;
mod connection;
mod finding;
mod gateway;
mod generator;
mod judge;
mod lane;
mod options;
mod pacer;
mod places;
mod process;
mod progress;
mod pull;
mod report;
mod scenario;
mod setup;
mod storm;
mod tally;
mod wire;

use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::bail;
use clap::Parser;
use options::{Cli, Command, CommonOptions, LoadOptions};
use report::{Report, ScenarioResult, Verdict};
use scenario::Stage;
use tokio::signal::unix::{SignalKind, signal};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Set by the first Ctrl-C or SIGTERM.
static STOP: AtomicBool = AtomicBool::new(false);

/// Files that are open besides connections, here and in the server.
const OTHER_FILES: u64 = 300;

fn main() -> ExitCode {
    let cli = Cli::parse();
    match run(&cli.command) {
        Ok(verdict) => ExitCode::from(verdict.exit_code()),
        Err(_) if STOP.load(Ordering::Relaxed) => {
            eprintln!("interrupted before anything was measured");
            ExitCode::from(Verdict::Interrupted.exit_code())
        }
        Err(error) => {
            eprintln!("tidegate-loadtest: {error:#}");
            ExitCode::from(2)
        }
    }
}

fn run(command: &Command) -> anyhow::Result<Verdict> {
    if let Command::Chaos { options } = command {
        check_file_limit(2 * u64::from(options.users))?;
        // Leaving at once would leave the servers.
        stop_on_signals(|| eprintln!("mending, stopping and removing what was started; this takes some seconds"))?;
        let report = Report::new(vec![ScenarioResult::Chaos(Box::new(chaos::run(options, &STOP)?))]);
        report.publish(options.json.as_deref())?;
        return Ok(report.verdict);
    }
    if let Command::Pull { options } = command {
        check_file_limit(u64::from(options.connections.max(options.own_connections)))?;
        // Leaving at once would leave the servers.
        stop_on_signals(|| eprintln!("stopping what was started; this takes some seconds"))?;
        let report = Report::new(vec![ScenarioResult::Pull(Box::new(pull::run(options, &STOP)?))]);
        report.publish(options.common.json.as_deref())?;
        return Ok(report.verdict);
    }
    let (common, connections) = match command {
        Command::Private { common, pairs, .. } => (common, 2 * u64::from(*pairs)),
        Command::Room { common, rooms, members, .. } => (common, u64::from(*rooms) * u64::from(*members)),
        Command::Idle { common, connections, .. } => (common, u64::from(*connections)),
        Command::Run { common } => (common, 200),
        Command::LobbyStorm { options } => {
            options.ramp()?;
            (&options.common, u64::from(options.connections) + 64 * u64::from(options.http_connections))
        }
        Command::Chaos { .. } | Command::Pull { .. } => unreachable!("it has returned"),
    };
    check_file_limit(connections)?;
    stop_on_signals(|| std::process::exit(130))?;
    let mut gateway =
        common.start_gateway.then(|| gateway::Gateway::start(common, settings(command), &STOP)).transpose()?;
    let stage = Stage {
        tcp: gateway.as_ref().map_or_else(|| common.tcp.clone(), |gateway| vec![gateway.tcp]),
        http: gateway.as_ref().map_or_else(|| common.http.clone(), |gateway| gateway.http.clone()),
        server_pid: gateway.as_ref().map(gateway::Gateway::pid).or(common.server_pid),
        stop: &STOP,
        threads: common.threads as usize,
        seed: common.seed,
    };
    let played = play(command, &stage).and_then(|results| publish(results, common, command));
    if let Some(gateway) = &mut gateway {
        if let Some(status) = gateway.has_ended() {
            eprintln!("the gateway ended by itself: {status}");
        }
        if !STOP.load(Ordering::Relaxed) && !matches!(played, Ok(Verdict::Pass | Verdict::Void)) {
            gateway.keep_data();
        }
    }
    played
}

/// What a gateway started for the scenario is told besides.
fn settings(command: &Command) -> &'static [(&'static str, &'static str)] {
    match command {
        // These judge that every message is pushed to every receiver, whatever the rate.
        Command::Private { .. } | Command::Room { .. } | Command::Idle { .. } | Command::Run { .. } => {
            &[("TIDEGATE_STORM_GEARS", "direct")]
        }
        _ => &[],
    }
}

fn play(command: &Command, stage: &Stage<'_>) -> anyhow::Result<Vec<ScenarioResult>> {
    let traffic = |result| ScenarioResult::Traffic(Box::new(result));
    Ok(match command {
        Command::Private { pairs, load, .. } => vec![traffic(scenario::private::run(stage, *pairs, load)?)],
        Command::Room { rooms, members, stuck_percent, load, .. } => {
            vec![traffic(scenario::room::run(stage, *rooms, *members, *stuck_percent, load)?)]
        }
        Command::Idle { connections, devices_per_user, duration, .. } => {
            vec![ScenarioResult::Idle(scenario::idle::run(stage, *connections, *devices_per_user, *duration)?)]
        }
        Command::Run { .. } => {
            let load = LoadOptions {
                rate: 2_000,
                duration: Duration::from_secs(6),
                warmup: Duration::from_secs(1),
                body_bytes: 128,
                patience: Duration::from_secs(10),
            };
            let mut results = vec![traffic(scenario::private::run(stage, 25, &load)?)];
            if !STOP.load(Ordering::Relaxed) {
                // Fifteen messages a second in each room: below the rate at which a conversation counts as a storm.
                results.push(traffic(scenario::room::run(stage, 8, 20, 0, &LoadOptions { rate: 120, ..load })?));
            }
            results
        }
        Command::LobbyStorm { options } => vec![ScenarioResult::Storm(Box::new(storm::run(stage, options)?))],
        Command::Chaos { .. } | Command::Pull { .. } => unreachable!("it has no gateway that runs already"),
    })
}

fn publish(results: Vec<ScenarioResult>, common: &CommonOptions, command: &Command) -> anyhow::Result<Verdict> {
    let report = Report::new(results);
    report.publish(common.json.as_deref())?;
    if let Command::LobbyStorm { options } = command
        && let Some(path) = &options.html
    {
        storm::write_page(&report, path)?;
    }
    Ok(report.verdict)
}

fn check_file_limit(connections: u64) -> anyhow::Result<()> {
    let limit = process::raise_file_limit();
    if connections + OTHER_FILES > limit {
        bail!(
            "{connections} connections need more open files than the hard limit of {limit} allows; \
             ask for at most {}, or raise it (ulimit -Hn, LimitNOFILE)",
            limit.saturating_sub(OTHER_FILES)
        );
    }
    Ok(())
}

/// The first signal asks for a clean end; on each further one, `again` decides.
fn stop_on_signals(again: fn()) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build()?;
    let (mut interrupt, mut terminate) = {
        let _inside = runtime.enter();
        (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?)
    };
    std::thread::Builder::new().name("signals".to_owned()).spawn(move || {
        runtime.block_on(async {
            loop {
                tokio::select! { _ = interrupt.recv() => {} _ = terminate.recv() => {} }
                if STOP.swap(true, Ordering::Relaxed) {
                    again();
                }
            }
        });
    })?;
    Ok(())
}
