//! Time: one monotonic clock for all threads, the thread's own CPU time, and a pulse on the grid of turns.
//!
//! Every moment in this crate is nanoseconds on [`Clock`], so that a body can carry one and any thread can subtract it.

use std::time::{Duration, Instant};

use nix::sys::time::TimeSpec;
use nix::sys::timerfd::{ClockId, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags};
use tokio::io::AsyncReadExt;
use tokio::net::unix::pipe::Receiver;

/// The generator's clock; copies agree.
#[derive(Clone, Copy, Debug)]
pub struct Clock(Instant);

impl Clock {
    /// A clock that is at zero now.
    pub fn start() -> Self {
        Self(Instant::now())
    }

    /// Nanoseconds since the start.
    pub fn now_ns(self) -> u64 {
        u64::try_from(self.0.elapsed().as_nanos()).expect("a run is shorter than 584 years")
    }
}

/// CPU time of the calling thread so far.
pub fn thread_cpu() -> Duration {
    nix::time::clock_gettime(nix::time::ClockId::CLOCK_THREAD_CPUTIME_ID)
        .map(Duration::from)
        .expect("Linux has had a CPU clock per thread since 2.6.12")
}

/// Wakes its task once a turn. The runtime's own timers are a millisecond or two late, which would count as the
/// generator's lateness; a timerfd is exact. The runtime reads it as it would read a pipe.
pub struct Pulse(Receiver);

impl Pulse {
    /// A pulse every `period` beginning `delay` from now.
    ///
    /// # Errors
    /// The kernel's error if no timer can be had.
    pub fn new(delay: Duration, period: Duration) -> std::io::Result<Self> {
        let timer = TimerFd::new(ClockId::CLOCK_MONOTONIC, TimerFlags::TFD_NONBLOCK | TimerFlags::TFD_CLOEXEC)?;
        let delay = TimeSpec::from_duration(delay.max(Duration::from_nanos(1)));
        let expiration = Expiration::IntervalDelayed(delay, TimeSpec::from_duration(period));
        timer.set(expiration, TimerSetTimeFlags::empty())?;
        Receiver::from_owned_fd_unchecked(timer.into()).map(Self)
    }

    /// Waits for the next pulse; pulses that were missed are one.
    ///
    /// # Errors
    /// The runtime's error if it is shutting down.
    pub async fn wait(&mut self) -> std::io::Result<()> {
        // A timer is read as the eight bytes of its expirations. A larger buffer lets the runtime see that there is no
        // more.
        let mut expirations = [0; 16];
        self.0.read(&mut expirations).await.map(drop)
    }
}

/// Nanoseconds as a count, for arithmetic with the clock.
pub fn as_ns(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}
