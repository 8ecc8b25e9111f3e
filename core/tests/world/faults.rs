//! Which faults a world has, and how often: drawn from its seed, so that each kind also comes alone.

use std::time::Duration;
use tidegate_core::storm::StormRules;

use crate::sim::Sim;

/// Where the backends live.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// In the gateway's process: MQ1 and MQ2 and the hot store are gone with it. A confirm is the consumer's ack.
    Embedded,
    /// Beside it: they stay. A confirm means that the broker has it.
    Services,
}

/// One world's faults. Rates are per mille of port calls, of events, or of the polls of an engine.
#[derive(Clone, Debug)]
pub struct Faults {
    pub mode: Mode,
    pub gateways: usize,
    pub partitions: u32,
    /// A port call fails before it did anything.
    pub fail_before: u64,
    /// It was done, but the answer is lost.
    pub fail_after: u64,
    /// It takes its time.
    pub slow: u64,
    /// Nothing is heard for long, then it fails, done or not.
    pub hang: u64,
    /// A publisher confirm is lost, or the broker says no.
    pub confirm_lost: u64,
    /// Pushes that get lost, come late, come twice, overtake others.
    pub push_dropped: u64,
    pub push_late: u64,
    pub push_doubled: u64,
    pub push_reordered: u64,
    /// An engine ends at a poll.
    pub engine_crash: u64,
    /// Incidents in the course of the world.
    pub incidents: Vec<Incident>,
    /// Clients drop connections, stop reading, give up waiting.
    pub clients_are_rude: bool,
    /// Lobbies and rooms change gear at rates that these worlds reach.
    pub has_storms: bool,
}

/// What happens at some time to a whole part.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Incident {
    /// The hot store is empty.
    HotLost,
    /// It fails over to a replica that is some seconds behind.
    HotRolledBack,
    /// A partition's consumer is cut off while its engine works on.
    CutOff,
    /// A gateway dies with everything in it and starts again.
    GatewayCrash,
}

impl Faults {
    /// One world in eight is calm: what must hold without any fault is more.
    pub fn draw(sim: &Sim) -> Self {
        let mode = if sim.chance(400) { Mode::Embedded } else { Mode::Services };
        let gateways = if mode == Mode::Services && sim.chance(500) { 2 } else { 1 };
        let partitions = 1 + sim.below(3) as u32;
        let is_calm = sim.chance(125);
        let rate = |max: u64| if is_calm || sim.chance(500) { 0 } else { 1 + sim.below(max) };
        let mut faults = Self {
            mode,
            gateways,
            partitions,
            fail_before: rate(100),
            fail_after: rate(100),
            slow: rate(200),
            hang: rate(30),
            confirm_lost: rate(150),
            push_dropped: rate(300),
            push_late: rate(300),
            push_doubled: rate(300),
            push_reordered: rate(300),
            engine_crash: rate(60),
            incidents: Vec::new(),
            clients_are_rude: !is_calm && sim.chance(700),
            has_storms: sim.chance(500),
        };
        let mut kinds = vec![Incident::HotLost, Incident::GatewayCrash];
        if mode == Mode::Services {
            kinds.extend([Incident::CutOff, Incident::HotRolledBack]);
        }
        if !is_calm && sim.chance(700) {
            faults.incidents = (0..=sim.below(5)).map(|_| *sim.one_of(&kinds)).collect();
        }
        faults
    }

    pub fn storm_rules(&self) -> StormRules {
        let mut rules = StormRules::default();
        if self.has_storms {
            let gears = if self.partitions == 1 { "direct+signal" } else { "direct+merged+signal" };
            let rule = format!(
                "* gears={gears} merged_per_s=1 signal_per_s=3 window_ms=1000 calm_ms=1000 merge_ms=200 spread_ms=200"
            );
            rules.add(&rule).expect("a legal rule");
        }
        rules
    }

    /// Whether nothing at all goes wrong.
    pub fn is_calm(&self) -> bool {
        let rates = [self.fail_before, self.fail_after, self.hang, self.confirm_lost, self.push_dropped];
        let pushes = [self.push_late, self.push_doubled, self.push_reordered, self.engine_crash, self.slow];
        rates.iter().chain(&pushes).all(|rate| *rate == 0) && self.incidents.is_empty() && !self.clients_are_rude
    }
}

/// What becomes of one port call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    Smooth,
    FailsBefore,
    FailsAfter,
    Slow(Duration),
    Hangs { until: Duration, is_done: bool },
}

impl Faults {
    pub fn fate(&self, sim: &Sim) -> Fate {
        let drawn = sim.below(1000);
        let (before, after) = (self.fail_before, self.fail_before + self.fail_after);
        let (slow, hang) = (after + self.slow, after + self.slow + self.hang);
        match drawn {
            n if n < before => Fate::FailsBefore,
            n if n < after => Fate::FailsAfter,
            n if n < slow => Fate::Slow(sim.up_to_ms(400)),
            n if n < hang => Fate::Hangs { until: sim.up_to_ms(6000), is_done: sim.chance(500) },
            _ => Fate::Smooth,
        }
    }
}
