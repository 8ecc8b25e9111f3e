//! Allowances over time, alone and over several gateways.

use std::sync::atomic::{AtomicU64, Ordering};

use futures_util::FutureExt as _;
use proptest::prelude::*;

use super::*;
use crate::clock::Clock;
use crate::ids::RoomId;
use crate::ports::HotStore;
use crate::twins::hot_store::EmbeddedHotStore;

const NOON: u64 = 1_800_000_000_000;
/// It did not wait.
const JUST_NOW: Millis = Millis(u64::MAX);
const ANN: UserId = UserId(1);
const BOB: UserId = UserId(2);

fn lobby() -> ConversationId {
    "lobby_main".parse().expect("a lobby's name")
}

fn limits(user: (u32, u32), conversation: (u32, u32)) -> Arc<SendLimits> {
    let limit = |(per_s, burst)| Limit::per_second(per_s, burst);
    Arc::new(SendLimits::new(Limits { user: limit(user), conversation: limit(conversation) }, Vec::new()))
}

fn to_lobby(sender: UserId) -> Sending {
    Sending { conversation: lobby(), sender, pace: Pace::ANY, accepted_at: JUST_NOW }
}

fn to_slow_room(sender: UserId, slow_mode_s: u32, owner: UserId) -> Sending {
    let (conversation, pace) = (ConversationId::Room(RoomId(7)), Pace { slow_mode_s, owner });
    Sending { conversation, sender, pace, accepted_at: JUST_NOW }
}

fn at(ms: u64) -> Millis {
    Millis(NOON + ms)
}

#[test]
fn a_refused_message_passes_after_its_wait_and_not_before() {
    let mut fairness = Fairness::new(limits((3, 2), (0, 1)));
    let ann = to_lobby(ANN);
    assert_eq!([fairness.pass(at(0), &ann), fairness.pass(at(0), &ann)], [Ok(()), Ok(())]);
    assert_eq!(fairness.pass(at(0), &ann), Err(334), "a third of a second, in whole milliseconds");
    assert_eq!(fairness.pass(at(333), &ann), Err(1));
    assert_eq!(fairness.pass(at(334), &ann), Ok(()));
    assert_eq!(fairness.pass(at(334), &to_lobby(BOB)), Ok(()), "what Ann spends is Ann's");
    assert_eq!(fairness.pass(at(334), &to_lobby(UserId::SYSTEM)), Ok(()));
    for (conversation, verdict) in [("lobby_eu", Ok(())), ("r_1", Ok(())), ("p_1_2", Ok(()))] {
        let sending = Sending { conversation: conversation.parse().expect("an id"), ..ann };
        assert_eq!(fairness.pass(at(334), &sending), verdict, "{conversation} has an allowance of its own, or none");
    }
}

#[test]
fn all_users_together_have_a_limit_and_the_refused_do_not_use_it_up() {
    let mut fairness = Fairness::new(limits((1, 1), (10, 3)));
    let passed = |fairness: &mut Fairness, user| fairness.pass(at(0), &to_lobby(UserId(user)));
    assert_eq!(passed(&mut fairness, 1), Ok(()));
    for _ in 0..100 {
        assert_eq!(passed(&mut fairness, 1), Err(1000));
    }
    assert_eq!([passed(&mut fairness, 2), passed(&mut fairness, 3)], [Ok(()), Ok(())]);
    assert_eq!(passed(&mut fairness, 4), Err(100));
    assert_eq!(fairness.pass(at(100), &to_lobby(UserId(4))), Ok(()), "which cost user 4 nothing");
}

#[test]
fn slow_mode_is_for_all_but_the_owner_and_a_shorter_one_counts_at_once() {
    let mut fairness = Fairness::new(Arc::default());
    let (ann, bob) = (to_slow_room(ANN, 21_600, BOB), to_slow_room(BOB, 21_600, BOB));
    assert_eq!(fairness.pass(at(0), &ann), Ok(()));
    assert_eq!(fairness.pass(at(1), &ann), Err(21_599_999));
    assert_eq!([fairness.pass(at(1), &bob), fairness.pass(at(1), &bob)], [Ok(()), Ok(())]);
    let ann = to_slow_room(ANN, 10, BOB);
    assert_eq!(fairness.pass(at(1_000), &ann), Err(10_000));
    assert_eq!(fairness.pass(at(10_999), &ann), Err(1));
    assert_eq!(fairness.pass(at(11_000), &ann), Ok(()));
    assert_eq!(fairness.pass(at(11_000), &to_slow_room(ANN, 0, BOB)), Ok(()), "it has ended");
}

#[test]
fn a_clock_that_goes_back_takes_nothing_away() {
    let mut fairness = Fairness::new(limits((1, 1), (0, 1)));
    let ann = to_lobby(ANN);
    assert_eq!(fairness.pass(at(0), &ann), Ok(()));
    let back = Millis(NOON - 3_600_000);
    assert_eq!(fairness.pass(back, &ann), Err(1000), "as if no time had passed");
    assert_eq!(fairness.pass(Millis(back.0 + 999), &ann), Err(1));
    assert_eq!(fairness.pass(Millis(back.0 + 1000), &ann), Ok(()));
    assert_eq!(fairness.pass(at(0), &ann), Ok(()), "and forward it fills");
}

#[test]
fn what_waited_in_the_gateway_counts_from_when_it_came() {
    let mut fairness = Fairness::new(limits((10, 1), (0, 1)));
    let came = |ms| Sending { accepted_at: at(ms), ..to_lobby(ANN) };
    // Ten messages in a second, as fast as may be, and the broker took none until its end.
    for ms in (0..1000).step_by(100) {
        assert_eq!(fairness.pass(at(1000), &came(ms)), Ok(()));
    }
    assert_eq!(fairness.pass(at(1000), &came(1000)), Ok(()));
    assert_eq!(fairness.pass(at(1000), &came(1000)), Err(100));
}

#[test]
fn what_is_kept_is_bounded() {
    let mut fairness = Fairness::new(limits((1, 1), (0, 1)));
    for user in 1..=200_000 {
        assert_eq!(fairness.pass(at(0), &to_lobby(UserId(user))), Ok(()));
    }
    assert_eq!(fairness.untold.len(), UNTOLD_MAX);
    assert_eq!(fairness.take_dropped(), 200_000 - UNTOLD_MAX as u64);
    assert_eq!(fairness.pass(at(0), &to_lobby(UserId(200_000))), Err(1000), "the latest are remembered");
}

#[derive(Clone, Default)]
struct Hands(Arc<AtomicU64>);

impl Clock for Hands {
    fn now(&self) -> Millis {
        at(self.0.load(Ordering::SeqCst))
    }

    async fn sleep(&self, delay: Duration) {
        self.0.fetch_add(u64::try_from(delay.as_millis()).expect("short"), Ordering::SeqCst);
    }
}

/// Gateways over one store, whose calls take no time.
struct World {
    clock: Hands,
    store: EmbeddedHotStore<Hands>,
    gateways: Vec<Fairness>,
    told_at_ms: u64,
}

impl World {
    fn new(gateways: usize, limits: &Arc<SendLimits>) -> Self {
        let clock = Hands::default();
        let store = EmbeddedHotStore::new("gw".parse().expect("an id"), clock.clone());
        let gateways = (0..gateways).map(|_| Fairness::new(Arc::clone(limits))).collect();
        Self { clock, store, gateways, told_at_ms: 0 }
    }

    fn call(&mut self, gateway: usize, told: &Told) {
        let debts = self.store.spend(&told.spends).now_or_never().expect("embedded").expect("embedded");
        self.gateways[gateway].heard(told, &debts);
    }

    /// What a gate does.
    fn pass(&mut self, gateway: usize, ms: u64, sending: &Sending) -> Result<(), u32> {
        while self.told_at_ms + 500 <= ms {
            self.told_at_ms += 500;
            self.clock.0.store(self.told_at_ms, Ordering::SeqCst);
            for gateway in 0..self.gateways.len() {
                if let Some(told) = self.gateways[gateway].tell(self.clock.now()) {
                    self.call(gateway, &told);
                }
            }
        }
        self.clock.0.store(ms, Ordering::SeqCst);
        let mut unknown = Vec::new();
        self.gateways[gateway].look(at(ms), sending, &mut unknown);
        if !unknown.is_empty() {
            let told = self.gateways[gateway].ask(at(ms), &mut unknown);
            self.call(gateway, &told);
        }
        self.gateways[gateway].pass(at(ms), sending)
    }
}

#[test]
fn going_to_another_gateway_does_not_help() {
    let mut world = World::new(2, &limits((1, 5), (0, 1)));
    let ann = to_lobby(ANN);
    assert_eq!(world.pass(1, 0, &ann), Ok(()), "the other one has heard of Ann before");
    let passed = (0..50).filter(|_| world.pass(0, 1, &ann).is_ok()).count();
    assert_eq!(passed, 5, "nobody was told of the first yet");
    // Within half a second the store was told, and what was heard a second ago counts no more.
    assert_eq!(world.pass(1, 1_001, &ann), Err(1_000), "six passed, and one was regained");
    assert_eq!(world.pass(0, 1_501, &ann), Err(500));
    assert_eq!(world.pass(1, 2_001, &ann), Ok(()));
    assert_eq!(world.pass(1, 20_000, &ann), Ok(()));

    let slow = to_slow_room(ANN, 3_600, BOB);
    assert_eq!(world.pass(0, 30_000, &slow), Ok(()));
    assert_eq!(world.pass(1, 30_500, &slow), Err(3_599_500), "at the first meeting too");
    assert_eq!(world.pass(0, 40_000, &to_slow_room(ANN, 60, BOB)), Err(60_000));
    assert_eq!(world.pass(1, 40_000, &to_slow_room(ANN, 60, BOB)), Err(60_000), "a shorter one counts everywhere");
    assert_eq!(world.pass(1, 100_000, &to_slow_room(ANN, 60, BOB)), Ok(()));
}

#[test]
fn a_store_that_fails_stops_nobody_and_learns_it_later() {
    let mut world = World::new(2, &limits((1, 5), (0, 1)));
    let slow = to_slow_room(ANN, 3_600, BOB);
    let mut unknown = Vec::new();
    world.gateways[0].look(at(0), &slow, &mut unknown);
    let told = world.gateways[0].ask(at(0), &mut unknown);
    world.gateways[0].unheard(at(0), &told);
    assert_eq!(world.gateways[0].pass(at(0), &slow), Ok(()));
    assert_eq!(world.gateways[0].pass(at(1), &slow), Err(3_599_999), "here it holds");
    world.gateways[0].look(at(500), &slow, &mut unknown);
    assert_eq!(unknown, [], "nobody waits again for a second");
    assert!(world.gateways[0].tell(at(500)).is_none());
    let told = world.gateways[0].tell(at(1_000)).expect("something passed");
    world.gateways[0].unheard(at(1_200), &told);
    world.told_at_ms = 1_500;
    assert_eq!(world.pass(1, 3_000, &slow), Err(3_597_000), "what could not be told is told later");
}

#[test]
fn a_call_that_is_repeated_in_doubt_costs_nothing() {
    let mut world = World::new(1, &limits((1, 5), (0, 1)));
    assert_eq!(world.gateways[0].pass(at(0), &to_lobby(ANN)), Ok(()));
    let told = world.gateways[0].tell(at(100)).expect("something passed");
    world.clock.0.store(100, Ordering::SeqCst);
    let debts = world.store.spend(&told.spends).now_or_never().expect("embedded");
    assert_eq!(debts, Ok(vec![900_000]));
    // The answer was lost.
    world.gateways[0].unheard(at(100), &told);
    let again = world.gateways[0].tell(at(1_000));
    assert!(again.is_none(), "whole by now: {again:?}");
    assert_eq!((0..9).filter(|_| world.pass(0, 1_000, &to_lobby(ANN)).is_ok()).count(), 5);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    /// One user sends as fast as it can, the others as fast as they may.
    #[test]
    fn a_flooding_user_leaves_the_lobby_to_others(
        per_s in 1_u32..20,
        burst in 1_u32..20,
        others in 1_u64..10,
        flood_ms in 1_u64..20,
        shifts in prop::collection::vec(0_u64..1000, 10),
    ) {
        // There is room for all who keep to their limit.
        let together = per_s * (u32::try_from(others).expect("few") + 1) + 1;
        let mut fairness = Fairness::new(limits((per_s, burst), (together, together + burst)));
        let interval_ms = 1_000_u64.div_ceil(u64::from(per_s));
        let (mut flooded, seconds) = (0_u64, 20);
        for ms in 0..seconds * 1000 {
            if ms % flood_ms == 0 && fairness.pass(at(ms), &to_lobby(ANN)).is_ok() {
                flooded += 1;
            }
            for other in 0..others {
                let shift = shifts[usize::try_from(other).expect("few")];
                if ms % interval_ms == shift % interval_ms {
                    prop_assert_eq!(fairness.pass(at(ms), &to_lobby(UserId(100 + other))), Ok(()));
                }
            }
        }
        prop_assert!(flooded <= u64::from(burst) + seconds * u64::from(per_s) + 1, "{} passed", flooded);
    }

    /// A gateway on its own decides as if there were no store.
    #[test]
    fn the_store_takes_nothing_from_who_stays(
        per_s in 1_u32..20,
        burst in 1_u32..10,
        steps in prop::collection::vec((0_u64..400, 1_u64..4), 1..300),
    ) {
        let limits = limits((per_s, burst), (2 * per_s, 2 * burst));
        let (mut alone, mut world) = (Fairness::new(Arc::clone(&limits)), World::new(1, &limits));
        let mut ms = 0;
        for (pause_ms, user) in steps {
            ms += pause_ms;
            let sending = to_lobby(UserId(user));
            prop_assert_eq!(world.pass(0, ms, &sending), alone.pass(at(ms), &sending), "at {}", ms);
        }
    }

    /// Whoever sends over several gateways at once gets, in the long run, what it gets over one.
    #[test]
    fn several_gateways_together_let_pass_what_one_does(
        gateways in 2_usize..4,
        per_s in 1_u32..20,
        burst in 1_u32..20,
        pause_ms in 5_u64..40,
    ) {
        let mut world = World::new(gateways, &limits((per_s, burst), (0, 1)));
        let (mut passed, seconds) = (0_u64, 60);
        for ms in (0..seconds * 1000).step_by(usize::try_from(pause_ms).expect("short")) {
            passed += (0..gateways).filter(|gateway| world.pass(*gateway, ms, &to_lobby(ANN)).is_ok()).count() as u64;
        }
        let count = gateways as u64;
        // Before they have heard of each other: the burst of each, and a second's worth.
        let excess = (count - 1) * u64::from(burst + per_s);
        let fair = u64::from(burst) + seconds * u64::from(per_s);
        prop_assert!(passed <= fair + excess, "{} passed, {} would be fair", passed, fair);
        prop_assert!(passed + u64::from(per_s) * 12 >= fair, "{} passed, {} would be fair", passed, fair);
    }
}
