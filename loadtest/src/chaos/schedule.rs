//! Which fault when: a plan drawn from a seed before the run begins, so that a run can be repeated.
//!
//! In: the kinds wanted, the length of the run, a seed; out: [`Planned`] faults. Every kind comes once before any comes
//! again. The plan is kept as far as the machine allows: what takes longer than planned moves the rest.

use std::fmt;
use std::time::Duration;

use clap::ValueEnum;
use serde::Serialize;

use crate::pacer::Random;

/// From the first message to the first fault.
const LEAD_MS: u64 = 2_000;

/// Time planned for a fault and the recovery from it, at least and at most.
const SLOT_MS: [u64; 2] = [3_000, 10_000];

/// One hang in so many is a long one, in plans that have the time: longer than timeouts and heartbeats.
const LONG_HANGS_ONE_IN: u64 = 4;

/// How long a long one is, at least and at most.
const LONG_HANG_MS: [u64; 2] = [9_000, 15_000];

/// Slots that are long enough for long hangs.
const LONG_HANG_SLOT_MS_MIN: u64 = 8_000;

/// What can be broken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Part {
    /// One of the gateways.
    Gateway,
    /// MQ1 and MQ2.
    RabbitMq,
    /// The hot store.
    Redis,
    /// The archive.
    MariaDb,
}

impl Part {
    /// What `gateway/deploy/services` calls it.
    pub fn server(self) -> Option<&'static str> {
        match self {
            Self::Gateway => None,
            Self::RabbitMq => Some("rabbitmq"),
            Self::Redis => Some("redis"),
            Self::MariaDb => Some("mariadb"),
        }
    }
}

/// How it is broken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// SIGKILL, then started again.
    Kill,
    /// Ended in good order (a gateway drains), then started again.
    Stop,
    /// SIGSTOP, then SIGCONT: connections stay open, nothing answers.
    Hang,
    /// SIGSTOP and SIGCONT in quick turn: everything answers, late.
    Slow,
    /// Redis forgets everything.
    Flush,
    /// RabbitMQ is out of memory and blocks publishers.
    Alarm,
}

/// A kind of fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, ValueEnum, Serialize)]
#[serde(rename_all = "kebab-case")]
#[allow(missing_docs, reason = "the names say it: an action and a part")]
pub enum FaultKind {
    KillGateway,
    StopGateway,
    HangGateway,
    #[value(name = "kill-rabbitmq")]
    #[serde(rename = "kill-rabbitmq")]
    KillRabbitMq,
    #[value(name = "stop-rabbitmq")]
    #[serde(rename = "stop-rabbitmq")]
    StopRabbitMq,
    #[value(name = "hang-rabbitmq")]
    #[serde(rename = "hang-rabbitmq")]
    HangRabbitMq,
    #[value(name = "slow-rabbitmq")]
    #[serde(rename = "slow-rabbitmq")]
    SlowRabbitMq,
    #[value(name = "alarm-rabbitmq")]
    #[serde(rename = "alarm-rabbitmq")]
    AlarmRabbitMq,
    KillRedis,
    StopRedis,
    HangRedis,
    SlowRedis,
    FlushRedis,
    #[value(name = "kill-mariadb")]
    #[serde(rename = "kill-mariadb")]
    KillMariaDb,
    #[value(name = "stop-mariadb")]
    #[serde(rename = "stop-mariadb")]
    StopMariaDb,
    #[value(name = "hang-mariadb")]
    #[serde(rename = "hang-mariadb")]
    HangMariaDb,
    #[value(name = "slow-mariadb")]
    #[serde(rename = "slow-mariadb")]
    SlowMariaDb,
}

impl fmt::Display for FaultKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let value = self.to_possible_value().expect("no kind is skipped");
        f.pad(value.get_name())
    }
}

impl FaultKind {
    /// What it breaks.
    pub fn part(self) -> Part {
        match self {
            Self::KillGateway | Self::StopGateway | Self::HangGateway => Part::Gateway,
            Self::KillRabbitMq | Self::StopRabbitMq | Self::HangRabbitMq | Self::SlowRabbitMq | Self::AlarmRabbitMq => {
                Part::RabbitMq
            }
            Self::KillRedis | Self::StopRedis | Self::HangRedis | Self::SlowRedis | Self::FlushRedis => Part::Redis,
            Self::KillMariaDb | Self::StopMariaDb | Self::HangMariaDb | Self::SlowMariaDb => Part::MariaDb,
        }
    }

    /// How.
    pub fn action(self) -> Action {
        match self {
            Self::KillGateway | Self::KillRabbitMq | Self::KillRedis | Self::KillMariaDb => Action::Kill,
            Self::StopGateway | Self::StopRabbitMq | Self::StopRedis | Self::StopMariaDb => Action::Stop,
            Self::HangGateway | Self::HangRabbitMq | Self::HangRedis | Self::HangMariaDb => Action::Hang,
            Self::SlowRabbitMq | Self::SlowRedis | Self::SlowMariaDb => Action::Slow,
            Self::FlushRedis => Action::Flush,
            Self::AlarmRabbitMq => Action::Alarm,
        }
    }

    /// All kinds, or those that need no services.
    pub fn all(with_services: bool) -> Vec<Self> {
        let kinds = Self::value_variants().iter().copied();
        kinds.filter(|kind| with_services || kind.part() == Part::Gateway).collect()
    }
}

/// A fault that is to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Planned {
    /// When, in milliseconds from the first message.
    pub at_ms: u64,
    /// What.
    pub kind: FaultKind,
    /// Which gateway, if it is one.
    pub gateway: usize,
    /// How long until it is undone.
    pub hold_ms: u64,
}

/// What a plan is made of.
#[derive(Clone, Debug)]
pub struct Wishes {
    /// Kinds to choose from.
    pub kinds: Vec<FaultKind>,
    /// No fault is planned for later.
    pub duration: Duration,
    /// How many gateways there are.
    pub gateways: usize,
    /// How many faults may be at one time: that many sequences are planned.
    pub at_once: usize,
}

/// The plan: one sequence of faults per hand; the hands work side by side.
pub fn plan(seed: u64, wishes: &Wishes) -> Vec<Vec<Planned>> {
    let mut random = Random::new(seed);
    let duration_ms = u64::try_from(wishes.duration.as_millis()).unwrap_or(u64::MAX);
    let slot_ms = duration_ms.saturating_sub(LEAD_MS) / (wishes.kinds.len() as u64).max(1);
    let slot_ms = slot_ms.clamp(SLOT_MS[0], SLOT_MS[1]);
    (0..wishes.at_once as u64)
        .map(|hand| {
            let begin_ms = LEAD_MS + hand * slot_ms / wishes.at_once as u64;
            sequence(&mut random, wishes, begin_ms, slot_ms, duration_ms)
        })
        .collect()
}

fn sequence(random: &mut Random, wishes: &Wishes, begin_ms: u64, slot_ms: u64, duration_ms: u64) -> Vec<Planned> {
    let mut planned = Vec::new();
    let mut left: Vec<FaultKind> = Vec::new();
    let mut gateway = random.below(wishes.gateways.max(1) as u64);
    let mut slot_begin_ms = begin_ms;
    while slot_begin_ms < duration_ms && !wishes.kinds.is_empty() {
        if left.is_empty() {
            left.clone_from(&wishes.kinds);
        }
        let kind = left.swap_remove(usize::try_from(random.below(left.len() as u64)).expect("below a usize"));
        if kind.part() == Part::Gateway {
            gateway = (gateway + 1) % wishes.gateways.max(1) as u64;
        }
        let jitter_ms = random.below(slot_ms / 8 + 1);
        // Kills are undone soon: starting again takes its own time. The rest holds for a third to half of the slot.
        let hold_ms = match kind.action() {
            Action::Flush => 0,
            Action::Kill => random.below(slot_ms / 6 + 1),
            Action::Stop | Action::Hang | Action::Slow | Action::Alarm => slot_ms / 3 + random.below(slot_ms / 6 + 1),
        };
        let is_long =
            kind.action() == Action::Hang && slot_ms >= LONG_HANG_SLOT_MS_MIN && random.below(LONG_HANGS_ONE_IN) == 0;
        let longer_ms = LONG_HANG_MS[0] + random.below(LONG_HANG_MS[1] - LONG_HANG_MS[0] + 1);
        let gateway = usize::try_from(gateway).expect("below a usize");
        if is_long {
            let at_ms = slot_begin_ms + jitter_ms;
            planned.push(Planned { at_ms, kind, gateway, hold_ms: longer_ms });
            slot_begin_ms += slot_ms + longer_ms;
            continue;
        }
        planned.push(Planned { at_ms: slot_begin_ms + jitter_ms, kind, gateway, hold_ms });
        slot_begin_ms += slot_ms;
    }
    planned.retain(|planned| planned.at_ms < duration_ms);
    planned
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wishes(seconds: u64, at_once: usize) -> Wishes {
        Wishes { kinds: FaultKind::all(true), duration: Duration::from_secs(seconds), gateways: 3, at_once }
    }

    #[test]
    fn the_same_seed_gives_the_same_plan_and_another_seed_another() {
        for at_once in [1, 2] {
            let wishes = wishes(300, at_once);
            assert_eq!(plan(7, &wishes), plan(7, &wishes));
            assert_ne!(plan(7, &wishes), plan(8, &wishes));
            assert_eq!(plan(7, &wishes).len(), at_once);
        }
    }

    #[test]
    fn every_kind_comes_before_any_comes_again() {
        let wishes = wishes(600, 1);
        let kinds: Vec<FaultKind> = plan(3, &wishes)[0].iter().map(|planned| planned.kind).collect();
        let round = wishes.kinds.len();
        assert!(kinds.len() > round, "{} faults", kinds.len());
        let mut first: Vec<String> = kinds[..round].iter().map(ToString::to_string).collect();
        first.sort();
        first.dedup();
        assert_eq!(first.len(), round);
    }

    #[test]
    fn faults_begin_in_order_within_the_run_and_are_undone_within_their_slot() {
        for seed in 0..50 {
            let sequence = &plan(seed, &wishes(120, 1))[0];
            assert!(sequence.iter().all(|planned| planned.at_ms >= LEAD_MS && planned.at_ms < 120_000));
            for [before, after] in sequence.array_windows() {
                assert!(before.at_ms + before.hold_ms < after.at_ms, "{before:?} {after:?}");
            }
            assert!(sequence.iter().all(|planned| planned.gateway < 3));
        }
    }

    #[test]
    fn some_hangs_are_longer_than_timeouts_where_there_is_time() {
        let is_long = |planned: &&Planned| planned.hold_ms >= LONG_HANG_MS[0];
        let planned = &plan(5, &wishes(600, 1))[0];
        assert!(planned.iter().any(|planned| is_long(&planned)));
        assert!(planned.iter().filter(is_long).all(|planned| planned.kind.action() == Action::Hang));
        assert!(!plan(5, &wishes(60, 1))[0].iter().any(|planned| is_long(&planned)));
    }

    #[test]
    fn gateways_take_turns() {
        let kinds = vec![FaultKind::KillGateway];
        let wishes = Wishes { kinds, duration: Duration::from_secs(100), gateways: 2, at_once: 1 };
        let gateways: Vec<usize> = plan(1, &wishes)[0].iter().map(|planned| planned.gateway).collect();
        assert!(gateways.len() > 3 && gateways.array_windows().all(|[a, b]| a != b), "{gateways:?}");
    }

    #[test]
    fn names_are_those_of_the_command_line() {
        for kind in FaultKind::all(true) {
            assert_eq!(serde_json::to_value(kind).unwrap(), kind.to_string());
            assert!(kind.to_string().chars().all(|c| c.is_ascii_lowercase() || c == '-'), "{kind}");
        }
        assert_eq!(FaultKind::all(false).len(), 3);
    }
}
