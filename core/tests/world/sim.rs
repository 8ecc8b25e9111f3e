//! Time, chance and turns of a world: a single-threaded executor and a clock that moves only when nothing is ready.
//!
//! In go tasks; each step polls one of the ready ones, chosen by the seed. Always: the same seed gives the same steps,
//! which [`Sim::fingerprint`] shows; nothing here reads a wall clock or waits for anything outside.

use std::cell::RefCell;
use std::collections::{BTreeMap, VecDeque};
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::task::{Context, Poll, Wake, Waker};
use std::time::Duration;

use tidegate_core::clock::Clock;
use tidegate_core::ids::Millis;

use crate::random::Random;

/// Where the fake clock begins.
const BEGIN_MS: u64 = 1_700_000_000_000;

/// Steps a world may take. The largest ones that end well take a tenth of it.
const STEPS_MAX: u64 = 400_000;

/// Lines of a trace that are kept to be shown.
const TRACE_LINES_MAX: usize = 100_000;

/// How often what happened, so that a test can tell whether its worlds are eventful.
pub type Counts = BTreeMap<&'static str, u64>;

/// What everything in a world shares.
#[derive(Clone)]
pub struct Sim(Arc<Inner>);

struct Inner {
    state: Mutex<State>,
    ready: Arc<Mutex<Vec<usize>>>,
    is_traced: bool,
}

struct State {
    random: Random,
    now_ms: u64,
    next_timer: u64,
    timers: BTreeMap<(u64, u64), Waker>,
    fingerprint: u64,
    lines: VecDeque<String>,
    violation: Option<String>,
    is_over: bool,
    steps: u64,
    counts: Counts,
}

impl Sim {
    /// With `is_traced` the trace is kept as text, which costs more than the world itself.
    pub fn new(seed: u64, is_traced: bool) -> Self {
        let state = State {
            random: Random::new(seed),
            now_ms: BEGIN_MS,
            next_timer: 0,
            timers: BTreeMap::new(),
            fingerprint: seed,
            lines: VecDeque::new(),
            violation: None,
            is_over: false,
            steps: 0,
            counts: Counts::new(),
        };
        Self(Arc::new(Inner { state: Mutex::new(state), ready: Arc::default(), is_traced }))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().expect("one thread, and no panic while it is held")
    }

    /// A number from 0 to `bound - 1`.
    pub fn below(&self, bound: u64) -> u64 {
        self.state().random.below(bound)
    }

    /// Happens in so many of a thousand cases.
    pub fn chance(&self, per_mille: u64) -> bool {
        self.below(1000) < per_mille
    }

    pub fn one_of<'a, T>(&self, items: &'a [T]) -> &'a T {
        &items[self.below(items.len() as u64) as usize]
    }

    /// A duration below `bound_ms` milliseconds.
    pub fn up_to_ms(&self, bound_ms: u64) -> Duration {
        Duration::from_millis(self.below(bound_ms))
    }

    /// Something the rules forbid. The first one ends the world.
    pub fn violation(&self, text: String) {
        self.trace(|| format!("VIOLATION: {text}"));
        let mut state = self.state();
        state.violation.get_or_insert(text);
        state.is_over = true;
    }

    pub fn finish(&self) {
        self.state().is_over = true;
    }

    pub fn is_over(&self) -> bool {
        self.state().is_over
    }

    pub fn take_violation(&self) -> Option<String> {
        self.state().violation.take()
    }

    /// Mixes a fact into what two runs of one seed must agree on.
    pub fn mix(&self, fact: u64) {
        let mut state = self.state();
        state.fingerprint = (state.fingerprint.rotate_left(5) ^ fact).wrapping_mul(0x0100_0000_01b3);
    }

    /// Says in one number everything that happened and in which order.
    pub fn fingerprint(&self) -> u64 {
        self.state().fingerprint
    }

    pub fn steps(&self) -> u64 {
        self.state().steps
    }

    /// Something worth counting happened.
    pub fn count(&self, what: &'static str) {
        *self.state().counts.entry(what).or_default() += 1;
    }

    pub fn take_counts(&self) -> Counts {
        std::mem::take(&mut self.state().counts)
    }

    pub fn trace(&self, line: impl FnOnce() -> String) {
        if self.0.is_traced {
            let line = line();
            let mut state = self.state();
            let line = format!("{:>9.3} {line}", (state.now_ms - BEGIN_MS) as f64 / 1000.0);
            state.lines.push_back(line);
            if state.lines.len() > TRACE_LINES_MAX {
                state.lines.pop_front();
            }
        }
    }

    pub fn take_lines(&self) -> Vec<String> {
        std::mem::take(&mut self.state().lines).into()
    }

    /// Lets others go first, once.
    pub fn pause(&self) -> impl Future<Output = ()> + Send + use<> {
        let mut was_polled = false;
        std::future::poll_fn(move |cx| {
            if was_polled {
                return Poll::Ready(());
            }
            was_polled = true;
            cx.waker().wake_by_ref();
            Poll::Pending
        })
    }

    /// Lets others go first, up to twice.
    pub async fn stroll(&self) {
        for _ in 0..self.below(3) {
            self.pause().await;
        }
    }

    /// Moves to the next instant somebody waits for. `false` if nobody does.
    fn advance(&self) -> bool {
        let mut state = self.state();
        let Some(((at, _), waker)) = state.timers.pop_first() else { return false };
        state.now_ms = state.now_ms.max(at);
        drop(state);
        waker.wake();
        true
    }
}

impl Clock for Sim {
    fn now(&self) -> Millis {
        Millis(self.state().now_ms)
    }

    fn sleep(&self, delay: Duration) -> impl Future<Output = ()> + Send {
        let delay_ms = u64::try_from(delay.as_millis()).expect("short");
        let mut state = self.state();
        state.next_timer += 1;
        Sleep { sim: self.clone(), key: (state.now_ms + delay_ms, state.next_timer) }
    }
}

struct Sleep {
    sim: Sim,
    key: (u64, u64),
}

impl Future for Sleep {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let mut state = self.sim.state();
        if state.now_ms >= self.key.0 {
            return Poll::Ready(());
        }
        state.timers.insert(self.key, cx.waker().clone());
        Poll::Pending
    }
}

impl Drop for Sleep {
    fn drop(&mut self) {
        let waker = self.sim.state().timers.remove(&self.key);
        drop(waker);
    }
}

/// A task's name for its supervisor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TaskId(usize);

type Job = Pin<Box<dyn Future<Output = ()>>>;

/// Starts and ends tasks from within tasks.
#[derive(Clone, Default)]
pub struct Spawner(Rc<RefCell<Orders>>);

#[derive(Default)]
struct Orders {
    next: usize,
    begin: Vec<(usize, Job)>,
    end: Vec<usize>,
}

impl Spawner {
    pub fn spawn(&self, job: impl Future<Output = ()> + 'static) -> TaskId {
        let mut orders = self.0.borrow_mut();
        let id = orders.next;
        orders.next += 1;
        orders.begin.push((id, Box::pin(job)));
        TaskId(id)
    }

    /// Drops the task where it stands, before the next step.
    pub fn end(&self, task: TaskId) {
        self.0.borrow_mut().end.push(task.0);
    }
}

struct Wakeup {
    id: usize,
    is_queued: AtomicBool,
    ready: Arc<Mutex<Vec<usize>>>,
}

impl Wake for Wakeup {
    fn wake(self: Arc<Self>) {
        if !self.is_queued.swap(true, Ordering::Relaxed) {
            self.ready.lock().expect("one thread").push(self.id);
        }
    }
}

struct Task {
    job: Job,
    wakeup: Arc<Wakeup>,
    waker: Waker,
}

/// Runs until the world is over, breaks a rule, or comes to no end.
pub fn run(sim: &Sim, spawner: &Spawner) {
    let mut tasks: BTreeMap<usize, Task> = BTreeMap::new();
    while !sim.is_over() {
        obey(sim, spawner, &mut tasks);
        let Some(id) = choose(sim) else {
            if !sim.advance() {
                sim.violation("everybody waits and nothing can happen any more".into());
            }
            continue;
        };
        let Some(task) = tasks.get_mut(&id) else { continue };
        task.wakeup.is_queued.store(false, Ordering::Relaxed);
        sim.mix(id as u64);
        if task.job.as_mut().poll(&mut Context::from_waker(&task.waker)).is_ready() {
            tasks.remove(&id);
        }
        let steps = {
            let mut state = sim.state();
            state.steps += 1;
            state.steps
        };
        if steps == STEPS_MAX {
            sim.violation(format!("no end after {STEPS_MAX} steps"));
        }
    }
    sim.mix(sim.now().0);
}

fn obey(sim: &Sim, spawner: &Spawner, tasks: &mut BTreeMap<usize, Task>) {
    loop {
        let (begin, end) = {
            let mut orders = spawner.0.borrow_mut();
            (std::mem::take(&mut orders.begin), std::mem::take(&mut orders.end))
        };
        if begin.is_empty() && end.is_empty() {
            return;
        }
        for (id, job) in begin {
            let wakeup = Arc::new(Wakeup { id, is_queued: AtomicBool::new(false), ready: Arc::clone(&sim.0.ready) });
            Arc::clone(&wakeup).wake();
            tasks.insert(id, Task { job, waker: Waker::from(Arc::clone(&wakeup)), wakeup });
        }
        // What a task drops may wake others or give more orders.
        for id in end {
            drop(tasks.remove(&id));
        }
    }
}

fn choose(sim: &Sim) -> Option<usize> {
    let count = sim.0.ready.lock().expect("one thread").len() as u64;
    if count == 0 {
        return None;
    }
    let at = sim.below(count) as usize;
    Some(sim.0.ready.lock().expect("one thread").swap_remove(at))
}
