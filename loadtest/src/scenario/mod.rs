//! The scenarios: who is set up, who talks to whom, what is concluded.
//!
//! In: options and a [`Stage`]; out: a [`crate::report::ScenarioResult`]. A scenario with messages is a plan of
//! conversations; [`traffic::run`] does the rest.

use std::net::SocketAddr;
use std::sync::atomic::AtomicBool;
use std::time::{SystemTime, UNIX_EPOCH};

use crate::connection::Account;
use crate::setup::in_parallel;

pub mod idle;
pub mod private;
pub mod room;
pub mod traffic;

/// Where scenarios play.
#[derive(Clone, Debug)]
pub struct Stage<'a> {
    /// The gateway's addresses for connections.
    pub tcp: Vec<SocketAddr>,
    /// The gateway's HTTP API.
    pub http: String,
    /// The gateway's process, if it is known.
    pub server_pid: Option<u32>,
    /// Set when the user wants an end.
    pub stop: &'a AtomicBool,
    /// Generator threads.
    pub threads: usize,
    /// Of everything random.
    pub seed: u64,
}

impl Stage<'_> {
    /// Registers users under names nobody has, and logs them in.
    ///
    /// # Errors
    /// What the server answered.
    pub fn users(&self, count: usize) -> anyhow::Result<Vec<Account>> {
        let run = unique_run();
        in_parallel(&self.http, "registering users", count, self.stop, |http, index| {
            http.register_and_log_in(&format!("lt{run}_{index}"), &format!("only-for-load-{run}"))
        })
    }
}

/// Differs from run to run; letters and digits.
pub fn unique_run() -> String {
    let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let mut number = since_epoch.as_millis() as u64 * 1_000 + u64::from(std::process::id() % 1_000);
    let mut text = String::new();
    while number > 0 {
        text.push(char::from_digit((number % 36) as u32, 36).expect("below 36"));
        number /= 36;
    }
    text
}
