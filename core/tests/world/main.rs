//! A seeded world: clients, shards, engines and twins under one seed and a fake clock.
//!
//! Method:
//! 1. A world is one number; everything below is drawn from it. Nothing in it reads a clock, uses a thread or waits for
//!    anything real (whole worlds run side by side): `sim` polls one ready task after the other, and time moves only when nobody is ready.
//! 2. `stage` makes one or two gateways of real parts of core (sessions, acceptors, engines, reception, presence) over
//!    core's twins or over a `broker` that outlives gateways, and a handful of `client`s that write, read and sync as
//!    PROTOCOL.md says.
//! 3. `ports`, `queues` and `faults`: port calls fail before, fail after, are slow, hang; confirms and pushes are lost, late, doubled,
//!    reordered; engines end at any poll, consumers are cut off, the hot store is lost, gateways die.
//! 4. The `ledger` knows what was promised and holds the rules that must hold at every moment. When faults have stopped and
//!    everybody has come to rest, the `judge` compares archive, screens and counts: DESIGN's guarantees 1 to 6.
//! 5. Seeds 0 to [`SEEDS`] - 1 are played, `TIDEGATE_WORLD_SEEDS=N` plays N. A failure prints the end of its trace and its
//!    seed; `TIDEGATE_WORLD_SEED=n cargo test -p tidegate-core --test world` repeats exactly that one, with all of its trace.

#![allow(clippy::unwrap_used, clippy::cast_possible_truncation, missing_docs)]

mod broker;
mod client;
mod faults;
mod gateway;
mod judge;
mod ledger;
mod ports;
mod queues;
mod random;
mod shard;
mod sim;
mod stage;
mod wire;

use sim::Counts;
use stage::play;

/// Worlds of a test run.
const SEEDS: u64 = 2000;

/// What must happen at least once in a hundred worlds.
const EVENTS: &[&str] = &[
    "calm world",
    "call failed before",
    "call failed after",
    "call was slow",
    "call hung",
    "confirm lost",
    "conflict",
    "consumer cut off",
    "gap seen",
    "gateway died",
    "hot store lost",
    "hot store rolled back",
    "ingest engine died",
    "push engine died",
    "push doubled",
    "push late",
    "push lost",
    "pushes reordered",
    "push passed by",
    "slow consumer cut",
    "slowed down",
    "synced",
    "told to reload",
    "told to sync",
];

/// Lines of a failed world's trace that are printed.
const LINES: usize = 60;

#[test]
fn the_guarantees_hold_in_every_world() {
    if let Some(seed) = variable("TIDEGATE_WORLD_SEED") {
        let outcome = play(seed, true);
        outcome.lines.iter().for_each(|line| eprintln!("{line}"));
        eprintln!("seed {seed}: {} steps, {} messages acknowledged", outcome.steps, outcome.messages);
        assert_eq!(outcome.violation, None, "in seed {seed}");
        return;
    }
    let seeds = variable("TIDEGATE_WORLD_SEEDS").unwrap_or(SEEDS);
    let total = play_all(seeds);
    if let Some((seed, violation)) = total.failed {
        let lines = play(seed, true).lines;
        lines[lines.len().saturating_sub(LINES)..].iter().for_each(|line| eprintln!("{line}"));
        panic!(
            "seed {seed}: {violation}\n\
             TIDEGATE_WORLD_SEED={seed} cargo test -p tidegate-core --test world repeats it"
        );
    }
    let Total { steps, messages, counts, .. } = total;
    eprintln!("{seeds} worlds, {steps} steps, {messages} messages acknowledged; {counts:?}");
    // A world in which nothing happens proves nothing.
    assert!(messages as u64 > 5 * seeds, "{messages} messages in {seeds} worlds");
    for what in EVENTS {
        assert!(counts.get(what).is_some_and(|count| count * 100 >= seeds), "too rare: {what}, {counts:?}");
    }
}

/// What all worlds of a run amount to.
#[derive(Default)]
struct Total {
    steps: u64,
    messages: usize,
    counts: Counts,
    /// The lowest seed that a thread came to whose world broke a rule.
    failed: Option<(u64, String)>,
}

/// Worlds know nothing of each other, so every core plays some. A thread ends with its first failure.
fn play_all(seeds: u64) -> Total {
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let play_some = |first: u64| {
        let mut total = Total::default();
        for seed in (first..seeds).step_by(threads) {
            let outcome = play(seed, false);
            total.steps += outcome.steps;
            total.messages += outcome.messages;
            outcome.counts.into_iter().for_each(|(what, count)| *total.counts.entry(what).or_default() += count);
            if let Some(violation) = outcome.violation {
                total.failed = Some((seed, violation));
                break;
            }
        }
        total
    };
    std::thread::scope(|scope| {
        let played: Vec<_> = (0..threads as u64).map(|first| scope.spawn(move || play_some(first))).collect();
        played.into_iter().map(|thread| thread.join().unwrap()).reduce(Total::and).unwrap_or_default()
    })
}

impl Total {
    fn and(mut self, other: Self) -> Self {
        self.steps += other.steps;
        self.messages += other.messages;
        other.counts.into_iter().for_each(|(what, count)| *self.counts.entry(what).or_default() += count);
        self.failed = [self.failed, other.failed].into_iter().flatten().min();
        self
    }
}

#[test]
fn a_seed_always_plays_the_same_world() {
    for seed in (0..10_000).step_by(499) {
        let (one, other) = (play(seed, false), play(seed, true));
        assert_eq!((one.fingerprint, one.steps), (other.fingerprint, other.steps), "seed {seed}");
    }
}

fn variable(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}
