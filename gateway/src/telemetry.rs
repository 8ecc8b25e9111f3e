//! What the process tells its operators: metric names, the recorder that keeps them, and the log.
//!
//! In go measurements of the whole process, out come Prometheus text and log lines. Every name of the gateway is spelled
//! here (core's in [`tidegate_core::meter`]), as `tidegate_<part>_<noun>_<unit>[_total]`; labels have few values and never
//! hold what a client chose.

use std::time::Duration;

use metrics_exporter_prometheus::{BuildError, Matcher, PrometheusBuilder, PrometheusHandle};
use tracing_subscriber::EnvFilter;

use crate::config::{Log, LogFormat};

macro_rules! names {
    ($($name:ident: $describe:ident $text:literal, $help:literal;)*) => {
        $(#[doc = $help] pub const $name: &str = $text;)*

        /// Gives the recorder each name's help text.
        fn describe() {
            $(metrics::$describe!($name, $help);)*
        }

        #[cfg(test)]
        const ALL: &[(&str, &str)] = &[$((stringify!($describe), $text)),*];
    };
}

names! {
    HTTP_REQUEST: describe_histogram "tidegate_http_request_seconds", "Time to answer, by route, method and status.";
    HTTP_CONNECTIONS_OPEN: describe_gauge "tidegate_http_open_connections", "HTTP connections now; a WebSocket counts until it is handed to its shard.";
    HTTP_REFUSED: describe_counter "tidegate_http_refused_connections_total", "Connections turned away because there were too many.";
    HTTP_ACCEPT_FAILURES: describe_counter "tidegate_http_accept_failures_total", "Times accept failed; the system ran out of files or memory.";
    HTTP_HANDLER_PANICS: describe_counter "tidegate_http_handler_panics_total", "Requests answered with 500 because their handler panicked.";
    HTTP_HAND_OFFS: describe_counter "tidegate_http_hand_offs_total", "WebSockets after their handshake, by outcome: taken, busy or lost.";
    SHARD_CONNECTIONS: describe_gauge "tidegate_shard_open_connections", "Client connections now, by shard.";
    SHARD_READ_BYTES: describe_counter "tidegate_shard_read_bytes_total", "Bytes read from clients, by shard.";
    SHARD_READ_FRAMES: describe_counter "tidegate_shard_read_frames_total", "Frames read from clients, by shard.";
    SHARD_WRITTEN_FRAMES: describe_counter "tidegate_shard_written_frames_total", "Frames queued for clients, by shard.";
    SHARD_SKIPPED_FRAMES: describe_counter "tidegate_shard_skipped_pushes_total", "Pushes of rooms and lobbies not queued for connections that were behind, by shard; they sync.";
    SHARD_BEHIND: describe_gauge "tidegate_shard_behind_connections", "Client connections that are behind in a room or lobby now, by shard.";
    SHARD_CLOSES: describe_counter "tidegate_shard_closed_connections_total", "Connections that ended, by reason.";
    SHARD_ACCEPT_FAILURES: describe_counter "tidegate_shard_accept_failures_total", "Times accept failed; the system ran out of files or memory.";
    SHARD_DEPARTURES_DROPPED: describe_counter "tidegate_shard_dropped_departures_total", "Ended sessions that were not told at once; their presence expires.";
    HEALTH_PARTS_UP: describe_gauge "tidegate_health_parts_up", "1 if the part answered the last ping in time, else 0.";
    PASSWORD_HASHES: describe_counter "tidegate_password_hashes_total", "Passwords hashed or verified, by outcome: done or busy.";
}

/// Upper ends of the buckets of every `_seconds` histogram: from a cache's answer to a request given up.
const SECONDS_BUCKETS: [f64; 14] = [0.000_5, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 20.0];

/// Histograms keep samples until they are rendered or this often.
const UPKEEP_INTERVAL: Duration = Duration::from_secs(5);

/// Makes the process's one recorder. It opens no port: the HTTP API shows what the handle renders.
///
/// # Errors
/// [`BuildError`] if the process has a recorder already.
pub fn install_metrics() -> Result<PrometheusHandle, BuildError> {
    let handle = PrometheusBuilder::new()
        .set_buckets_for_metric(Matcher::Suffix("_seconds".to_owned()), &SECONDS_BUCKETS)?
        .install_recorder()?;
    describe();
    Ok(handle)
}

/// Keeps the recorder's memory bounded while nobody scrapes; runs until dropped.
pub async fn keep_metrics(handle: PrometheusHandle) {
    let mut interval = tokio::time::interval(UPKEEP_INTERVAL);
    loop {
        interval.tick().await;
        handle.run_upkeep();
    }
}

/// Starts the log, to stderr. Does nothing if there is one already.
pub fn install_log(log: &Log) {
    let filter = EnvFilter::new(&log.filter);
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    let started = match log.format {
        LogFormat::Text => {
            let ansi = std::io::IsTerminal::is_terminal(&std::io::stderr());
            builder.with_ansi(ansi).try_init()
        }
        LogFormat::Json => builder.json().try_init(),
    };
    if let Err(error) = started {
        tracing::debug!(error, "the log was started before");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_keeps_to_the_grammar() {
        for (kind, name) in ALL {
            let words: Vec<_> = name.split('_').collect();
            assert!(words.len() >= 4 && words[0] == "tidegate", "{name}");
            assert!(name.bytes().all(|b| b.is_ascii_lowercase() || b == b'_'), "{name}");
            assert_eq!(*kind == "describe_counter", name.ends_with("_total"), "{name}");
            assert_eq!(*kind == "describe_histogram", name.ends_with("_seconds") || name.ends_with("_bytes"), "{name}");
        }
    }
}
