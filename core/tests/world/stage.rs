//! One world from its beginning to the judgement.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures_util::FutureExt as _;
use tidegate_core::clock::Clock as _;
use tidegate_core::fairness::limit::Limit;
use tidegate_core::fairness::rules::{Limits, SendLimits};
use tidegate_core::ids::{ConversationId, Epoch, GatewayId, Millis, Partition, UserId};
use tidegate_core::ports::Archive as _;
use tidegate_core::twins::archive::MemoryArchive;
use tidegate_core::twins::hot_store::EmbeddedHotStore;

use crate::broker::Broker;
use crate::client::{Client, Screen, Wish};
use crate::faults::{Faults, Incident};
use crate::gateway::{Backends, Gateways};
use crate::judge::{Device, judge};
use crate::ledger::Ledger;
use crate::ports::Shared;
use crate::sim::{Counts, Sim, Spawner, run};

/// How long after the last fault everything must have come to rest, on the world's clock.
const REST: Duration = Duration::from_secs(300);

/// The same for pushes where nothing goes wrong.
const PUSHED: Duration = Duration::from_secs(1);

/// What a world leaves behind.
pub struct Outcome {
    pub violation: Option<String>,
    pub fingerprint: u64,
    pub steps: u64,
    pub messages: usize,
    pub lines: Vec<String>,
    pub counts: Counts,
}

/// Plays one world.
pub fn play(seed: u64, is_traced: bool) -> Outcome {
    let sim = Sim::new(seed, is_traced);
    let spawner = Spawner::default();
    let faults = Arc::new(Faults::draw(&sim));
    sim.trace(|| format!("seed {seed}: {faults:?}"));
    let archive = MemoryArchive::with_epoch(Epoch(7));
    let ledger = Arc::new(Ledger::new(&sim, &archive));
    let is_faulty = Arc::new(AtomicBool::new(true));
    let ids: Vec<GatewayId> = ["gw-a", "gw-b"][..faults.gateways].iter().map(|id| id.parse().unwrap()).collect();
    // Low, so that they are met.
    let limits = Limits { user: Limit::per_second(40, 3), conversation: Limit::per_second(200, 6) };
    let backends = Backends {
        shared: Shared { sim: sim.clone(), faults: Arc::clone(&faults), is_faulty, ledger: Arc::clone(&ledger) },
        spawner: spawner.clone(),
        broker: Broker::new(&sim, faults.partitions),
        hot: EmbeddedHotStore::new(ids[0].clone(), sim.clone()),
        archive,
        lobbies: vec!["lobby_main".parse().unwrap()],
        limits: Arc::new(SendLimits::new(limits, Vec::new())),
    };
    let gateways = Gateways::default();
    let wish = Rc::new(RefCell::new(Wish::Play));
    let devices = populate(&backends, &gateways, &wish);
    ids.iter().for_each(|id| gateways.start(id, &backends));
    spawner.spawn(direct(backends.clone(), gateways, ids, wish, devices));
    run(&sim, &spawner);
    Outcome {
        violation: sim.take_violation(),
        fingerprint: sim.fingerprint(),
        steps: sim.steps(),
        messages: ledger.acked().len(),
        lines: sim.take_lines(),
        counts: sim.take_counts(),
    }
}

/// Users, rooms and their devices.
fn populate(backends: &Backends, gateways: &Gateways, wish: &Rc<RefCell<Wish>>) -> Vec<Device> {
    let (sim, archive) = (&backends.shared.sim, &backends.archive);
    let begin = Millis(1);
    let users: Vec<UserId> = (0..2 + sim.below(3))
        .map(|n| archive.create_user(&format!("user {n}"), "", begin).now_or_never().unwrap().unwrap().unwrap())
        .collect();
    let mut rooms = Vec::new();
    for n in 0..sim.below(3) {
        let room = archive.create_room(&format!("room {n}"), users[0], 100, begin).now_or_never().unwrap().unwrap().id;
        let members: Vec<UserId> = users.iter().copied().filter(|user| *user == users[0] || sim.chance(700)).collect();
        for member in &members {
            archive.join_room(room, *member, begin).now_or_never().unwrap().unwrap();
        }
        rooms.push((ConversationId::Room(room), members));
    }
    let actions = 4 + sim.below(14) as u32;
    let mut devices = Vec::new();
    for user in &users {
        for device in ["desk", "phone"].iter().take(1 + usize::from(sim.chance(300))) {
            let peers = users.iter().filter_map(|peer| ConversationId::private(*user, *peer));
            let own_rooms = rooms.iter().filter(|(_, members)| members.contains(user)).map(|(room, _)| *room);
            let lobbies = backends.lobbies.iter().map(|lobby| ConversationId::Lobby(*lobby));
            let conversations: Vec<ConversationId> = peers.chain(own_rooms).chain(lobbies).collect();
            let screen = Rc::new(RefCell::new(Screen::default()));
            let client = Client::new(*user, device, backends, gateways, wish, &screen, conversations.clone(), actions);
            devices.push(Device { name: client.name.clone(), user: *user, conversations, screen });
            backends.spawner.spawn(client.run());
        }
    }
    devices
}

/// The course of the world: incidents, then no more faults, then everybody finishes, syncs and is judged.
async fn direct(
    backends: Backends,
    gateways: Gateways,
    ids: Vec<GatewayId>,
    wish: Rc<RefCell<Wish>>,
    devices: Vec<Device>,
) {
    let sim = backends.shared.sim.clone();
    for incident in backends.shared.faults.incidents.clone() {
        sim.sleep(sim.up_to_ms(4000)).await;
        happen(incident, &backends, &gateways, &ids).await;
    }
    sim.sleep(Duration::from_millis(3000) + sim.up_to_ms(6000)).await;
    sim.trace(|| "no more faults".into());
    backends.shared.is_faulty.store(false, Ordering::Relaxed);
    *wish.borrow_mut() = Wish::Finish;
    let is_finished = || devices.iter().all(|device| device.screen.borrow().is_finished) && backends.broker.is_empty();
    if !comes_true(&sim, REST, is_finished).await {
        let waiting: Vec<&String> =
            devices.iter().filter(|device| !device.screen.borrow().is_finished).map(|device| &device.name).collect();
        return sim.violation(format!("without faults {waiting:?} get no answer, or MQ1 does not become empty"));
    }
    let mut rest = REST;
    if backends.shared.faults.is_calm() {
        // Pushes alone bring everything, long before anything is noticed or renewed.
        rest = PUSHED;
        sim.count("calm world");
    }
    if !comes_true(&sim, rest, || devices.iter().all(|device| missing(device, &backends.shared.ledger).is_none())).await
    {
        let ledger = &backends.shared.ledger;
        let missing: Vec<String> = devices.iter().filter_map(|device| missing(device, ledger)).collect();
        return sim.violation(format!("guarantee 2: not everybody learns of what is missing: {}", missing.join("; ")));
    }
    sim.trace(|| "everybody syncs".into());
    *wish.borrow_mut() = Wish::Sync;
    let is_synced = || devices.iter().all(|device| device.screen.borrow().is_synced);
    if !comes_true(&sim, REST, is_synced).await {
        return sim.violation("without faults not everybody gets in sync".into());
    }
    match judge(&backends, &devices) {
        Ok(()) => sim.finish(),
        Err(violation) => sim.violation(violation),
    }
}

async fn comes_true(sim: &Sim, within: Duration, condition: impl Fn() -> bool) -> bool {
    let deadline = sim.now().0 + within.as_millis() as u64;
    while sim.now().0 < deadline {
        if condition() {
            return true;
        }
        sim.sleep(Duration::from_millis(250)).await;
    }
    false
}

/// What the device has not shown.
fn missing(device: &Device, ledger: &Ledger) -> Option<String> {
    let screen = device.screen.borrow();
    let shown = |conversation: &ConversationId| screen.shown.get(conversation).map_or(0, Vec::len);
    let is_missing = |conversation: &&ConversationId| ledger.count_of(**conversation) != shown(conversation);
    let conversation = device.conversations.iter().find(is_missing)?;
    let (name, shown, all) = (&device.name, shown(conversation), ledger.count_of(*conversation));
    Some(format!("{name} shows {shown} of {all} in {conversation}"))
}

async fn happen(incident: Incident, backends: &Backends, gateways: &Gateways, ids: &[GatewayId]) {
    let sim = &backends.shared.sim;
    sim.trace(|| format!("{incident:?}"));
    match incident {
        Incident::HotLost => {
            sim.count("hot store lost");
            backends.hot.lose_everything();
        }
        Incident::HotRolledBack => {
            let snapshot = backends.hot.snapshot();
            sim.sleep(sim.up_to_ms(5000)).await;
            sim.trace(|| "the hot store is rolled back".into());
            sim.count("hot store rolled back");
            backends.hot.roll_back(snapshot);
        }
        Incident::CutOff => {
            sim.count("consumer cut off");
            let partition = sim.below(backends.broker.partitions().into());
            backends.broker.cut_off(Partition(u32::try_from(partition).expect("few")));
        }
        Incident::GatewayCrash => {
            sim.count("gateway died");
            let id = sim.one_of(ids).clone();
            gateways.crash(&id, backends);
            sim.sleep(sim.up_to_ms(40_000)).await;
            gateways.start(&id, backends);
        }
    }
}
