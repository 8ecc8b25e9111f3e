//! A shard: one thread that owns its connections, their outboxes, their deadlines and its index. Nothing of it is shared.
//!
//! In come sockets from its listener, bytes from its connections, batches from its mailbox; out go bytes, events for the
//! acceptors and requests for the reception. Always: a connection is owned by one shard and never moves; a shard never
//! waits for anybody (what does not fit is refused); an idle connection keeps no buffer; within a turn every touched
//! connection is written to once.
//!
//! Files in reading order: [`mailboxes`] (the way in), [`listener`], `state` (a turn), [`connection`], [`outbox`],
//! [`behind`], [`counts`], [`index`], [`wheel`].

pub mod behind;
pub mod connection;
pub mod counts;
pub mod index;
pub mod listener;
pub mod mailboxes;
pub mod outbox;
mod state;
pub mod wheel;

use std::cell::RefCell;
use std::future::poll_fn;
use std::io;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use tidegate_core::accept::AcceptQueues;
use tidegate_core::delivery::{Request, ShardId};
use tidegate_core::limits::SHARD_TURN_INPUTS_MAX;
use tidegate_core::ports::PresenceChange;
use tidegate_core::push::routes::Routes;
use tidegate_core::queue::{Closed, Queue};
use tidegate_core::session::SessionContext;
use tidegate_proto::websocket;
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::task::{LocalSet, spawn_local};
use tokio_util::io::poll_read_buf;

use connection::Transport;
use index::Slot;
use mailboxes::ShardMailboxes;
use state::State;

/// Bounds of a shard's connections.
#[derive(Clone, Copy, Debug)]
pub struct ShardConfig {
    /// Largest frame in bytes.
    pub frame_bytes_max: usize,
    /// Most bytes in one outbox.
    pub outbox_bytes_max: usize,
    /// Connections of this shard.
    pub connections_max: usize,
    /// From the connection to the reply to Login.
    pub handshake_timeout: Duration,
    /// Silence after which a logged-in connection is closed.
    pub idle_timeout: Duration,
    /// How long a connection may take nothing of what waits for it.
    pub stall_timeout: Duration,
}

/// What a shard is connected to.
#[derive(Clone)]
pub struct ShardLinks {
    /// The way in.
    pub mailboxes: ShardMailboxes,
    /// Where accepted events go.
    pub accept: AcceptQueues,
    /// Where questions go.
    pub requests: Arc<Queue<Request>>,
    /// Where ended sessions are told.
    pub departures: Arc<Queue<PresenceChange>>,
    /// Who is here.
    pub routes: Arc<Routes>,
}

/// Runs a shard on the calling thread until it is told to drain and its connections are gone, or the mailbox closes.
///
/// # Errors
/// If the thread's runtime cannot be made.
pub fn run(
    id: ShardId,
    listener: std::net::TcpListener,
    config: ShardConfig,
    context: SessionContext,
    links: ShardLinks,
) -> io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let local = LocalSet::new();
    local.block_on(&runtime, async move {
        let mailboxes = links.mailboxes.clone();
        let shard = Shard(Rc::new(RefCell::new(State::new(id, config, context, links))));
        let accepting = spawn_local(listener::run(shard.clone(), listener));
        let adopting = spawn_local(adopt_upgraded(shard.clone(), mailboxes.clone()));
        let ticking = spawn_local(tick(shard.clone()));
        let ending_turns = spawn_local(end_turns(shard.clone()));
        serve_mailbox(&shard, &mailboxes, || {
            accepting.abort();
            adopting.abort();
        })
        .await;
        mailboxes.of(id).inputs.close();
        mailboxes.of(id).upgraded.close();
        ticking.abort();
        ending_turns.abort();
        shard.0.borrow_mut().forget_everybody();
    });
    // Connection tasks end here: dropping them closes what sockets are left.
    drop(local);
    Ok(())
}

/// A handle on the shard's state for the tasks of its own thread. Never borrowed across an await.
#[derive(Clone)]
pub(crate) struct Shard(Rc<RefCell<State>>);

impl Shard {
    /// Takes a socket in and starts reading from it. One beyond the bound is told so and dropped.
    fn adopt(&self, stream: TcpStream, transport: Transport, early: &[u8]) {
        // Small frames are written as they are made; waiting for more is our own business. Failure costs only latency.
        let _ = stream.set_nodelay(true);
        let (reader, writer) = stream.into_split();
        let Some((slot, generation)) = self.0.borrow_mut().adopt(writer, transport, early) else {
            return;
        };
        let shard = self.clone();
        let reading = spawn_local(async move {
            shard.read(slot, reader).await;
            shard.0.borrow_mut().remove(slot, generation);
        });
        self.0.borrow_mut().set_reading(slot, generation, reading.abort_handle());
    }

    /// Reads until the connection ends. The task holds a socket and two numbers: memory per connection is what it costs.
    async fn read(&self, slot: Slot, mut reader: OwnedReadHalf) {
        poll_fn(|cx| self.poll_read(cx, slot, &mut reader)).await;
    }

    fn poll_read(&self, cx: &mut Context<'_>, slot: Slot, reader: &mut OwnedReadHalf) -> Poll<()> {
        loop {
            let mut state = self.0.borrow_mut();
            let Some(mut buffer) = state.begin_read(slot) else {
                return Poll::Ready(());
            };
            let polled = poll_read_buf(std::pin::Pin::new(&mut *reader), cx, &mut buffer);
            let is_open = match polled {
                Poll::Pending => {
                    state.cancel_read(buffer);
                    return Poll::Pending;
                }
                Poll::Ready(Ok(0) | Err(_)) => {
                    state.end_of_stream(slot, buffer);
                    return Poll::Ready(());
                }
                Poll::Ready(Ok(_)) => state.finish_read(slot, buffer),
            };
            if !is_open {
                return Poll::Ready(());
            }
        }
    }

    /// Writes the rest of a blocked outbox as the socket takes it, then ends. The timer is this task's: a connection that
    /// keeps up has none.
    fn drain_outbox(&self, slot: Slot, generation: u32, writer: Rc<OwnedWriteHalf>) {
        let shard = self.clone();
        let stall_timeout = shard.0.borrow().stall_timeout();
        spawn_local(async move {
            loop {
                match tokio::time::timeout(stall_timeout, writer.writable()).await {
                    Ok(Ok(())) => {
                        if !shard.0.borrow_mut().flush_unblocked(slot, generation) {
                            return;
                        }
                    }
                    Ok(Err(_)) => return shard.0.borrow_mut().remove(slot, generation),
                    Err(_) => return shard.0.borrow_mut().end_stalled(slot, generation),
                }
            }
        });
    }
}

/// Takes batches out of the mailbox until the shard has drained.
async fn serve_mailbox(shard: &Shard, mailboxes: &ShardMailboxes, mut stop_accepting: impl FnMut()) {
    let id = shard.0.borrow().id();
    let mut inputs = Vec::new();
    let drained = shard.0.borrow().drained();
    loop {
        tokio::select! {
            biased;
            () = drained.notified() => return,
            more = mailboxes.of(id).inputs.take(SHARD_TURN_INPUTS_MAX, &mut inputs) => if more == Err(Closed) {
                return;
            }
        }
        let blocked = {
            let mut state = shard.0.borrow_mut();
            state.handle_inputs(inputs.drain(..));
            if state.is_draining() {
                stop_accepting();
            }
            state.end_turn()
        };
        watch_blocked(shard, blocked);
        // Connections get to read between two batches.
        tokio::task::yield_now().await;
    }
}

/// Ends turns of reading: runs behind the connections that were ready, so that what they started leaves together.
async fn end_turns(shard: Shard) {
    let turn_begun = shard.0.borrow().turn_begun();
    loop {
        turn_begun.notified().await;
        let blocked = shard.0.borrow_mut().end_turn();
        watch_blocked(&shard, blocked);
    }
}

fn watch_blocked(shard: &Shard, blocked: Vec<(Slot, u32, Rc<OwnedWriteHalf>)>) {
    for (slot, generation, writer) in blocked {
        shard.drain_outbox(slot, generation, writer);
    }
}

async fn adopt_upgraded(shard: Shard, mailboxes: ShardMailboxes) {
    let id = shard.0.borrow().id();
    let mut upgraded = Vec::new();
    while mailboxes.of(id).upgraded.take(64, &mut upgraded).await.is_ok() {
        for one in upgraded.drain(..) {
            match TcpStream::from_std(one.stream) {
                Ok(stream) => {
                    let transport = Transport::WebSocket(websocket::Decoder::new(websocket::Role::Server));
                    shard.adopt(stream, transport, &one.early);
                }
                Err(error) => tracing::warn!(%error, "could not take over a WebSocket"),
            }
        }
    }
}

/// Moves the wheel once a second.
async fn tick(shard: Shard) {
    let start = Instant::now();
    let mut interval = tokio::time::interval(Duration::from_secs(1));
    interval.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Skip);
    loop {
        interval.tick().await;
        let now_s = u32::try_from(start.elapsed().as_secs()).unwrap_or(u32::MAX);
        let blocked = {
            let mut state = shard.0.borrow_mut();
            state.tick(now_s);
            state.end_turn()
        };
        watch_blocked(&shard, blocked);
    }
}
