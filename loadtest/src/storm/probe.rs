//! The server's process as the kernel sees it, sampled second by second.

use std::time::Instant;

use super::result::StormServer;
use super::rows::ServerSample;
use crate::process;

/// Watches the server's process.
pub struct ServerProbe {
    pid: Option<u32>,
    rss_start_bytes: u64,
    rss_connected_bytes: u64,
    last: Option<(Instant, f64)>,
    /// One per second of the run.
    pub samples: Vec<ServerSample>,
}

impl ServerProbe {
    /// Begins before anybody is connected; without a pid it measures nothing.
    pub fn new(pid: Option<u32>) -> Self {
        let rss_start_bytes = pid.and_then(process::rss_bytes).map_or(0, |(now, _)| now);
        Self { pid, rss_start_bytes, rss_connected_bytes: 0, last: None, samples: Vec::new() }
    }

    /// Everybody is connected now.
    pub fn is_connected(&mut self) {
        self.rss_connected_bytes = self.pid.and_then(process::rss_bytes).map_or(0, |(now, _)| now);
    }

    /// Takes the sample of each second that has ended.
    pub fn sample(&mut self, seconds: u64) {
        let Some(pid) = self.pid else { return };
        if self.last.is_some() && seconds <= self.samples.len() as u64 {
            return;
        }
        let Some((cpu_s, rss)) = process::cpu_seconds(pid).zip(process::rss_bytes(pid)) else { return };
        let now = Instant::now();
        if let Some((then, cpu_then_s)) = self.last {
            let cores = (cpu_s - cpu_then_s) / now.duration_since(then).as_secs_f64().max(1e-3);
            let sample = ServerSample { cores, rss_bytes: rss.0 };
            // Seconds that were missed because this thread got no turn are like the next one.
            self.samples.resize(usize::try_from(seconds).expect("a run is shorter than 2^32 s"), sample);
        }
        self.last = Some((now, cpu_s));
    }

    /// For the live display.
    pub fn in_words(&self) -> String {
        let Some(sample) = self.samples.last() else { return String::new() };
        format!("; server {:.2} cores, {:.0} MiB", sample.cores, crate::report::mib(sample.rss_bytes))
    }

    /// The figures of a ramp of this length.
    pub fn conclude(&self, length_s: f64) -> Option<StormServer> {
        let pid = self.pid?;
        let ramp = &self.samples[..self.samples.len().min(length_s.ceil() as usize)];
        Some(StormServer {
            cpu_s: ramp.iter().map(|sample| sample.cores).sum(),
            cores_max: ramp.iter().map(|sample| sample.cores).fold(0.0, f64::max),
            rss_start_bytes: self.rss_start_bytes,
            rss_connected_bytes: self.rss_connected_bytes,
            rss_ramp_max_bytes: ramp.iter().map(|sample| sample.rss_bytes).max().unwrap_or(0),
            rss_peak_bytes: process::rss_bytes(pid).map_or(0, |(_, peak)| peak),
        })
    }
}
