//! Connections that do nothing: what each costs the server, and the kernel beside it.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use anyhow::Context;

use super::{Stage, traffic};
use crate::generator::{Plan, PlannedConversation, Timing};
use crate::process::{self, Memory};
use crate::progress::Bar;
use crate::report::{IdleResult, Verdict};
use crate::tally::Window;
use crate::wire::STAMP_BYTES;

/// Longest time to wait for the server's memory to stop changing.
const QUIET_DEADLINE: Duration = Duration::from_secs(15);

/// Plays it.
///
/// # Errors
/// If it cannot be set up, or the server's memory cannot be read.
pub fn run(stage: &Stage<'_>, connections: u32, devices_per_user: u32, hold: Duration) -> anyhow::Result<IdleResult> {
    let pid = stage.server_pid.context("idle measures the server's process: use --start-gateway or --server-pid")?;
    let users = stage.users(connections.div_ceil(devices_per_user) as usize)?;
    let members = (0..connections).map(|index| users[(index / devices_per_user) as usize].clone()).collect::<Vec<_>>();
    // No conversation at all: every message that arrives would be a foreign one.
    let lane_size = members.len().div_ceil(stage.threads);
    let conversations = members
        .chunks(lane_size)
        .map(|part| PlannedConversation { id: String::new(), members: part.to_vec() })
        .collect();
    let plan = Plan {
        tcp: stage.tcp.clone(),
        conversations,
        stuck_percent: 0,
        body_bytes: STAMP_BYTES,
        threads: stage.threads,
        seed: stage.seed,
    };

    let before = quiet_memory(stage, pid)?;
    let (tcp_before, slab_before) = (process::tcp_memory_bytes(), process::slab_bytes());
    let began = Instant::now();
    let generator = traffic::connect(stage, &plan)?;
    let connect_s = began.elapsed().as_secs_f64();
    let after = quiet_memory(stage, pid)?;
    let (tcp_after, slab_after) = (process::tcp_memory_bytes(), process::slab_bytes());

    let cpu_before = process::cpu_seconds(pid);
    let (held, mut bar) = (Instant::now(), Bar::figures("holding"));
    while held.elapsed() < hold && !stage.stop.load(Ordering::Relaxed) {
        std::thread::sleep(Duration::from_millis(50));
        bar.show(|| format!("{} connections open", generator.sum(|live| &live.open)));
    }
    drop(bar);
    let held_s = held.elapsed().as_secs_f64();
    let idle_cores = cpu_before.zip(process::cpu_seconds(pid)).map(|(before, after)| (after - before) / held_s);
    let now_ns = generator.clock.now_ns();
    let window = Window { start_ns: now_ns, end_ns: now_ns };
    generator.start(Timing { start_ns: now_ns, rate_per_s: 0, window, patience_ns: 1_000_000_000 });
    let outcome = generator.finish()?;

    let interrupted = stage.stop.load(Ordering::Relaxed);
    let reasons = traffic::fail_reasons(&outcome.findings);
    let is_right = outcome.findings.is_empty();
    let each = |before: u64, after: u64| (after as f64 - before as f64) / f64::from(connections);
    Ok(IdleResult {
        verdict: match (interrupted, is_right) {
            (true, _) => Verdict::Interrupted,
            (_, true) => Verdict::Pass,
            (_, false) => Verdict::Fail,
        },
        reasons,
        connections: outcome.connections,
        connect_s,
        before,
        after,
        rss_per_connection_bytes: each(before.rss_bytes, after.rss_bytes),
        pss_per_connection_bytes: each(before.pss_bytes, after.pss_bytes),
        uss_per_connection_bytes: each(before.uss_bytes, after.uss_bytes),
        kernel_tcp_per_connection_bytes: tcp_before.zip(tcp_after).map(|(before, after)| each(before, after)),
        kernel_slab_per_connection_bytes: slab_before.zip(slab_after).map(|(before, after)| each(before, after)),
        idle_cores,
        findings: outcome.findings,
    })
}

/// The server's memory once it has not changed for a second, or at the deadline.
fn quiet_memory(stage: &Stage<'_>, pid: u32) -> anyhow::Result<Memory> {
    let read = || process::memory(pid).context("the server's memory cannot be read: is it gone, or another user's?");
    let began = Instant::now();
    let mut last = read()?;
    loop {
        std::thread::sleep(Duration::from_secs(1));
        let now = read()?;
        let changed = now.uss_bytes.abs_diff(last.uss_bytes);
        if changed < 64 * 1024 || began.elapsed() > QUIET_DEADLINE || stage.stop.load(Ordering::Relaxed) {
            return Ok(now);
        }
        last = now;
    }
}
