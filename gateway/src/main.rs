//! The life of the process on one screen: read the command line and the configuration, bind, open the backends, serve, and
//! on a signal drain and end.

use std::io;
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::Context as _;
use clap::{Parser, Subcommand};
use metrics_exporter_prometheus::PrometheusHandle;
use tidegate::app::{self, Bound};
use tidegate::backends::{Embedded, Services};
use tidegate::config::{self, BackendKind, CliOverrides, Config};
use tidegate::http::{self, Life, Part};
use tidegate::{banner, chat, telemetry};
use tidegate_core::ports::Backend;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Exit codes of sysexits.h: a service we need or a port we want is not to be had; the configuration is wrong.
const EX_UNAVAILABLE: u8 = 69;
const EX_CONFIG: u8 = 78;

/// The chat back end of a game-lobby platform: a gateway for Protobuf frames over TCP and WebSocket, with its engines.
#[derive(Parser)]
#[command(name = "tidegate", version, args_conflicts_with_subcommands = true)]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    serve: CliOverrides,
}

#[derive(Subcommand)]
enum Command {
    /// Run the gateway (the default)
    Serve(CliOverrides),
    /// Talk to a running gateway from this terminal
    Chat(chat::ChatArgs),
    /// Print every configuration key with its default and what it means
    Config,
    /// Check the configuration and say whether the gateway would start with it
    Check(CliOverrides),
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    match cli.command.unwrap_or(Command::Serve(cli.serve)) {
        Command::Serve(flags) => with_config(&flags, serve),
        Command::Check(flags) => with_config(&flags, |config| {
            println!("The configuration is good.\n\n{}", banner::summary(&config));
            Ok(())
        }),
        Command::Chat(args) => chat::run(args).unwrap_or_else(|error| {
            eprintln!("tidegate chat: {error:#}");
            ExitCode::FAILURE
        }),
        Command::Config => {
            print!("{}", config::DEFAULTS);
            ExitCode::SUCCESS
        }
    }
}

fn with_config(flags: &CliOverrides, go: impl FnOnce(Config) -> anyhow::Result<()>) -> ExitCode {
    let config = match Config::load(flags) {
        Ok(config) => config,
        Err(error) => {
            eprintln!("tidegate: {error}");
            return ExitCode::from(EX_CONFIG);
        }
    };
    match go(config) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("tidegate: {error:#}");
            ExitCode::from(EX_UNAVAILABLE)
        }
    }
}

fn serve(config: Config) -> anyhow::Result<()> {
    telemetry::install_log(&config.log);
    config.warnings.iter().for_each(|warning| tracing::warn!("{warning}"));
    let metrics = telemetry::install_metrics()?;
    let engines = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(config.runtime.engine_threads)
        .thread_name("engine")
        .enable_all()
        .build()?;
    let served = engines.block_on(async {
        // First of all, so that a signal during a slow start is not lost.
        let stop = Stop::new()?;
        let http = http::bind(config.listen.http)
            .with_context(|| format!("listen.http: cannot listen on {}", config.listen.http))?;
        let bound = app::bind(&config)?;
        match config.backend {
            BackendKind::Embedded => {
                let backend = Embedded::open(&config.data_dir, &config.gateway_id)?;
                run(&config, bound, http, backend, Vec::new(), metrics, stop).await
            }
            BackendKind::Services => {
                let backend = Services::connect(&config).await?;
                let broker = backend.rabbitmq().clone();
                let broker = Part::new("broker", move || {
                    let broker = broker.clone();
                    async move { broker.ping().await }
                });
                run(&config, bound, http, backend, vec![broker], metrics, stop).await
            }
        }
    });
    drop(engines);
    served
}

/// From here on everything is bound and open.
async fn run<B: Backend>(
    config: &Config,
    bound: Bound,
    http: std::net::TcpListener,
    backend: B,
    mut parts: Vec<Part>,
    metrics: PrometheusHandle,
    mut stop: Stop,
) -> anyhow::Result<()> {
    let backend = Arc::new(backend);
    let (tcp_address, http_address) = (bound.tcp_address, http.local_addr()?);
    let gateway = app::start(config, bound, Arc::clone(&backend))?;
    let (life, life_seen) = watch::channel(Life::Serving);
    parts.extend(Part::of_backend(&backend));
    let setup = http::Setup {
        parts,
        backend,
        config,
        tcp_address,
        hand_off: app::hand_off(gateway.mailboxes().clone()),
        inspect: app::inspect(gateway.mailboxes().clone()),
        pulls: Arc::clone(gateway.pulls()),
        metrics: metrics.clone(),
        life: life_seen,
        bounds: http::Bounds::default(),
    };
    let keeping_metrics = tokio::spawn(telemetry::keep_metrics(metrics));
    let serving = http::serve(http, setup);
    let ending = async {
        stop.wait().await;
        println!("Draining: clients are told to reconnect. A second signal ends at once.");
        life.send_replace(Life::Draining);
        tokio::select! {
            () = gateway.stop() => {}
            () = stop.wait() => tracing::warn!("ended without draining"),
        }
        life.send_replace(Life::Ending);
    };
    print!("{}", banner::started(config, tcp_address, http_address));
    let (served, ()) = tokio::join!(serving, ending);
    keeping_metrics.abort();
    served?;
    println!("Tidegate has stopped.");
    Ok(())
}

/// The signals that end the process.
struct Stop {
    terminate: tokio::signal::unix::Signal,
    interrupt: tokio::signal::unix::Signal,
}

impl Stop {
    fn new() -> io::Result<Self> {
        Ok(Self { terminate: signal(SignalKind::terminate())?, interrupt: signal(SignalKind::interrupt())? })
    }

    async fn wait(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}
