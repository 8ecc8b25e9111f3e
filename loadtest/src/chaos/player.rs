//! Drives one device: sockets, logins and reconnects around the [`Client`].
//!
//! Follows PROTOCOL.md: a connection that ends is opened anew after a back-off with chance, at another gateway; a token
//! that is refused is replaced by a new login. Every wait has a deadline.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::BytesMut;
use tidegate_proto::frame::next_frame;
use tidegate_proto::limits::FRAME_BYTES_MAX_DEFAULT;
use tidegate_proto::{CloseCode, Code};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::{Instant, sleep, timeout};

use super::client::{Client, Ending};
use super::stage::{Phase, Stage};
use crate::connection::{Account, LoggedIn, Reading, Refused};
use crate::finding::Fault;
use crate::pacer::Random;
use crate::setup::Http;

/// For dialling and the login reply: the server's own deadline is 10 s, a hung gateway is left sooner.
const LOGIN_DEADLINE: Duration = Duration::from_secs(5);

/// For a new token.
const TOKEN_DEADLINE: Duration = Duration::from_secs(8);

/// For the socket to take what is to be written.
const WRITE_DEADLINE: Duration = Duration::from_secs(5);

/// Between two looks at what is due.
const TICK: Duration = Duration::from_millis(10);

/// Between two voluntary reconnects, as of people who change networks: on average. They mix the users over the gateways again
/// after one of them was away.
const MOVE_INTERVAL_MS: u64 = 20_000;

/// From here on a Close means that connecting again is of no use.
const CLOSE_CODE_FOR_GOOD: i32 = 4_500;

/// First and longest back-off before the next connection.
const BACK_OFF_MS: [u64; 2] = [500, 2_000];

/// A device with its way in.
pub struct Player {
    /// The device.
    pub client: Client,
    /// Index among the devices.
    pub index: usize,
    /// Who is logged in.
    pub account: Account,
    /// For another login.
    pub name: String,
    /// For another login.
    pub password: String,
    /// Stable per device.
    pub device_id: String,
    /// Average time between two messages; `None`: it only listens.
    pub interval_ms: Option<f64>,
    /// Decides when and where it writes.
    pub random: Random,
    /// Where it goes next.
    pub gateway: usize,
}

impl Player {
    /// Plays until the phase is over; returns the device for its evidence.
    pub async fn play(mut self, stage: Arc<Stage>) -> Client {
        let mut actor =
            Actor { next_offer_ms: 0.0, published: vec![0; self.client.seats.len()], shown: 0, probed: false };
        let mut failures = 0;
        while stage.phase() != Phase::Over {
            match self.connect(&stage).await {
                Ok(connection) => {
                    failures = 0;
                    self.client.handle_login(&connection.reply, stage.now_ms());
                    let ending = self.serve(connection, &stage, &mut actor).await;
                    self.client.handle_end(stage.now_ms());
                    self.gauge(&stage).is_caught_up.store(false, Ordering::Relaxed);
                    match ending {
                        None => {
                            // To another gateway, or back to the same, where the session may go on.
                            self.gateway += usize::from(self.random.below(2) == 0);
                            continue;
                        }
                        Some(Ending::Nonsense) => self.client.find(Fault::Protocol, "bytes that are no frame"),
                        Some(Ending::Closed(code)) if code >= CLOSE_CODE_FOR_GOOD => {
                            self.client.find(Fault::Refused, &format!("the connection was closed with {code}"));
                        }
                        Some(Ending::Closed(_) | Ending::Silent) => {}
                    }
                }
                Err(error) => self.consider(&error, &stage).await,
            }
            self.gateway += 1;
            failures += 1;
            self.back_off(failures, &stage, &mut actor).await;
        }
        self.client
    }

    fn gauge<'a>(&self, stage: &'a Stage) -> &'a super::stage::Gauge {
        &stage.gauges[self.index]
    }

    async fn connect(&mut self, stage: &Stage) -> anyhow::Result<LoggedIn> {
        let gateway = &stage.gateways[self.gateway % stage.gateways.len()];
        let index = u32::try_from(self.index).expect("devices are counted in u32");
        let login = self.client.login(&self.device_id);
        timeout(LOGIN_DEADLINE, LoggedIn::connect_as(gateway.tcp, index, &self.account, login, Reading::All)).await?
    }

    /// A refusal for good needs a new token; others pass.
    async fn consider(&mut self, error: &anyhow::Error, stage: &Stage) {
        let Some(refused) = error.downcast_ref::<Refused>() else { return };
        let code = refused.code;
        let is_token = [Code::TokenInvalid as i32, Code::TokenExpired as i32, CloseCode::TokenRejected as i32];
        let may_pass = (1_000..2_000).contains(&code) || (4_000..4_500).contains(&code);
        let may_be_lost = is_token.contains(&code) && stage.logins_may_be_lost.load(Ordering::Relaxed);
        if !may_pass && !may_be_lost {
            let who = &self.client.who;
            self.client.findings.add(Fault::Refused, || format!("{who}: {error:#}"));
        }
        if is_token.contains(&code) {
            let base = stage.gateways[self.gateway % stage.gateways.len()].http.clone();
            let (name, password) = (self.name.clone(), self.password.clone());
            let login = tokio::task::spawn_blocking(move || {
                Http::with_deadline(&base, TOKEN_DEADLINE).log_in(&name, &password)
            });
            // Without a new token the next attempt is refused as this one was.
            if let Ok(Ok(login)) = login.await {
                self.account.token = login.token;
            }
        }
    }

    async fn back_off(&mut self, failures: u32, stage: &Stage, actor: &mut Actor) {
        let longest_ms = (BACK_OFF_MS[0] << failures.min(8)).min(BACK_OFF_MS[1]);
        let until = Instant::now() + Duration::from_millis(longest_ms / 2 + self.random.below(longest_ms / 2 + 1));
        while Instant::now() < until && stage.phase() != Phase::Over {
            // Messages are due whether or not there is a connection.
            self.act(stage, actor, false);
            sleep(TICK).await;
        }
    }

    /// Serves a connection until it ends (`Some`), or another one is wanted (`None`).
    async fn serve(&mut self, connection: LoggedIn, stage: &Stage, actor: &mut Actor) -> Option<Ending> {
        let opened_in = stage.phase();
        let move_ms = stage.now_ms() + MOVE_INTERVAL_MS / 2 + self.random.below(MOVE_INTERVAL_MS + 1);
        let frame_bytes_max = (connection.reply.max_frame_bytes as usize).max(FRAME_BYTES_MAX_DEFAULT);
        let mut received = BytesMut::from(&connection.received[..]);
        let (mut reader, mut writer) = connection.stream.into_split();
        let mut out = BytesMut::new();
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Skip);
        loop {
            let phase = stage.phase();
            let is_moving = phase == Phase::Offering && stage.now_ms() >= move_ms;
            if phase == Phase::Over || (phase == Phase::Reconnecting && opened_in < phase) || is_moving {
                return None;
            }
            tokio::select! {
                read = reader.read_buf(&mut received) => {
                    if !matches!(read, Ok(1..)) {
                        return Some(Ending::Silent);
                    }
                }
                _ = tick.tick() => {}
            }
            if let Err(ending) = self.take_frames(&mut received, frame_bytes_max, stage) {
                return Some(ending);
            }
            self.act(stage, actor, true);
            if let Err(ending) = self.client.poll(stage.now_ms(), &mut out) {
                return Some(ending);
            }
            if !out.is_empty() {
                match timeout(WRITE_DEADLINE, writer.write_all(&out)).await {
                    Ok(Ok(())) => out.clear(),
                    _ => return Some(Ending::Silent),
                }
            }
        }
    }

    fn take_frames(&mut self, received: &mut BytesMut, bytes_max: usize, stage: &Stage) -> Result<(), Ending> {
        let mut bytes = received.split().freeze();
        while let Some(frame) = next_frame(&mut bytes, bytes_max).map_err(|_| Ending::Nonsense)? {
            self.client.handle_frame(&frame, stage.now_ms())?;
        }
        received.extend_from_slice(&bytes);
        Ok(())
    }

    /// Offers what is due and reports how far the device is.
    fn act(&mut self, stage: &Stage, actor: &mut Actor, is_connected: bool) {
        let (phase, now_ms) = (stage.phase(), stage.now_ms());
        match (phase, self.interval_ms) {
            (Phase::Offering, Some(interval_ms)) => {
                while actor.next_offer_ms <= now_ms as f64 {
                    let due_ms = actor.next_offer_ms as u64;
                    let seat = self.random.below(self.client.seats.len() as u64);
                    let seat = usize::try_from(seat).expect("below a usize");
                    if self.client.offer(seat, due_ms, false) {
                        stage.offered.fetch_add(1, Ordering::Relaxed);
                    }
                    // Between half and one and a half times the average.
                    actor.next_offer_ms += interval_ms * (500 + self.random.below(1_001)) as f64 / 1_000.0;
                }
            }
            (Phase::Probing, Some(_)) if !actor.probed && is_connected => {
                actor.probed = true;
                for seat in 0..self.client.seats.len() {
                    if self.client.offer(seat, now_ms, true) {
                        stage.offered.fetch_add(1, Ordering::Relaxed);
                    }
                }
            }
            _ => {}
        }
        actor.publish(&self.client, stage);
        let lacks = |seat: &&super::seat::Seat| {
            let accepted = stage.accepted_in[seat.conversation as usize].load(Ordering::Relaxed);
            seat.sync.last() < accepted || seat.sync.question().is_some()
        };
        let lacking = self.client.seats.iter().find(lacks);
        let gauge = self.gauge(stage);
        gauge.unsettled.store(self.client.unsettled() as u64, Ordering::Relaxed);
        gauge.is_caught_up.store(is_connected && lacking.is_none(), Ordering::Relaxed);
        if let Some(seat) = lacking.filter(|_| phase > Phase::Offering) {
            let (who, id, last) = (&self.client.who, &seat.id, seat.sync.last());
            *gauge.waits_for.lock().expect("held for a copy") = format!("{who} for {id} after {last}");
        }
        gauge.phase.store(phase as u8, Ordering::Relaxed);
    }
}

/// Where a player stands in its part.
struct Actor {
    next_offer_ms: f64,
    /// Accepted messages per seat that the stage has heard of.
    published: Vec<u64>,
    shown: u64,
    probed: bool,
}

impl Actor {
    fn publish(&mut self, client: &Client, stage: &Stage) {
        let mut shown = 0;
        for (seat, published) in client.seats.iter().zip(&mut self.published) {
            let new = seat.accepted - *published;
            if new > 0 {
                *published = seat.accepted;
                stage.accepted_in[seat.conversation as usize].fetch_add(new, Ordering::Relaxed);
                stage.accepted.fetch_add(new, Ordering::Relaxed);
                stage.last_accepted_ms.fetch_max(stage.now_ms(), Ordering::Relaxed);
            }
            shown += seat.sync.shown.len() as u64;
        }
        stage.shown.fetch_add(shown.saturating_sub(self.shown), Ordering::Relaxed);
        self.shown = self.shown.max(shown);
    }
}
