//! A simulated device: it logs in, sends, repeats what was not acknowledged, reads, and follows the sync rule of
//! PROTOCOL.md, "Staying in sync" and "Sending so that nothing is lost", to the letter.
//!
//! In come its script (chance) and the gateway's frames; out goes what it has shown, for the judge. It trusts nothing but
//! the protocol and tells the ledger what it sees.

mod sending;
mod sync;

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use bytes::BytesMut;
use futures_util::FutureExt as _;
use tidegate_core::clock::Clock as _;
use tidegate_core::ids::{ConversationId, MessageId, UserId};
use tidegate_core::limits::FRAME_BYTES_MAX;
use tidegate_core::ports::HotStore as _;
use tidegate_proto::v1::{self, CloseCode, Code};
use tidegate_proto::{Frame, Kind, Opening, frame};

use crate::gateway::{Backends, Gateways};
use crate::ledger::Ledger;
use crate::sim::Sim;
use crate::wire::Wire;
use sending::Outgoing;
use sync::Track;

/// How long a client waits for a reply before it repeats.
const PATIENCE: Duration = Duration::from_secs(4);

/// What the world asks of its clients.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wish {
    /// Play the script.
    Play,
    /// No new things; get acknowledged what was sent.
    Finish,
    /// Connect anew and fetch everything.
    Sync,
}

/// What one device knows and has shown; the judge reads it.
#[derive(Default)]
pub struct Screen {
    pub shown: BTreeMap<ConversationId, Vec<MessageId>>,
    /// Of the last login.
    pub positions: Vec<v1::Position>,
    /// Everything sent has an answer that ends it.
    pub is_finished: bool,
    /// Everything was fetched after the wish for it.
    pub is_synced: bool,
    /// Acknowledged at the first attempt: by connection and conversation, with their place among what was sent.
    pub first_attempts: Vec<(u64, ConversationId, u64, MessageId)>,
    pub rejected: BTreeSet<MessageId>,
    /// Sent with other content under a used id.
    pub contradicted: BTreeSet<MessageId>,
}

/// See the module.
pub struct Client {
    pub name: String,
    pub user: UserId,
    pub device: String,
    pub sim: Sim,
    pub backends: Backends,
    pub gateways: Gateways,
    pub ledger: Arc<Ledger>,
    pub wish: Rc<RefCell<Wish>>,
    pub screen: Rc<RefCell<Screen>>,
    /// Private conversations and rooms first; then lobbies, watched from the login on.
    pub conversations: Vec<ConversationId>,
    pub actions_left: u32,
    tracks: BTreeMap<ConversationId, Track>,
    /// Questions under way.
    syncs: BTreeMap<u16, Vec<v1::SyncFrom>>,
    /// The last sequence pushed on this connection.
    pushed: BTreeMap<String, u64>,
    outgoing: Vec<Outgoing>,
    next_key: u64,
    attempts: u64,
    connection: u64,
    token: u64,
}

enum Event {
    Frame(Frame),
    Ended,
    Tick,
}

impl Client {
    #[expect(clippy::too_many_arguments, reason = "made in one place")]
    pub fn new(
        user: UserId,
        device: &str,
        backends: &Backends,
        gateways: &Gateways,
        wish: &Rc<RefCell<Wish>>,
        screen: &Rc<RefCell<Screen>>,
        conversations: Vec<ConversationId>,
        actions_left: u32,
    ) -> Self {
        let shared = &backends.shared;
        Self {
            name: format!("{}/{device}", user.0),
            user,
            device: device.into(),
            sim: shared.sim.clone(),
            backends: backends.clone(),
            gateways: gateways.clone(),
            ledger: Arc::clone(&shared.ledger),
            wish: Rc::clone(wish),
            screen: Rc::clone(screen),
            conversations,
            actions_left,
            tracks: BTreeMap::new(),
            syncs: BTreeMap::new(),
            pushed: BTreeMap::new(),
            outgoing: Vec::new(),
            next_key: 0,
            attempts: 0,
            connection: 0,
            token: 0,
        }
    }

    /// Connects again and again, for ever.
    pub async fn run(mut self) {
        loop {
            let Some(wire) = self.gateways.connect(&self.sim) else {
                self.sim.sleep(Duration::from_millis(300)).await;
                continue;
            };
            self.connection = self.sim.below(u64::MAX);
            self.pushed.clear();
            self.live(&wire).await;
            wire.hang_up();
            self.outgoing.iter_mut().for_each(|outgoing| outgoing.sent = None);
            self.tracks.values_mut().for_each(|track| track.asked = None);
            self.syncs.clear();
            self.sim.sleep(self.sim.up_to_ms(1000)).await;
        }
    }

    async fn live(&mut self, wire: &Wire) {
        let began_with = *self.wish.borrow();
        if !self.log_in(wire).await {
            return;
        }
        let mut next_action_ms = self.now_ms() + self.sim.below(400);
        let mut correlation = 1_u16;
        loop {
            let wish = *self.wish.borrow();
            if wish == Wish::Sync && began_with != Wish::Sync {
                return;
            }
            if wish == Wish::Play && self.now_ms() >= next_action_ms {
                next_action_ms = self.now_ms() + self.sim.below(800);
                match self.act() {
                    Act::Stay => {}
                    Act::Leave => return,
                    Act::Deaf(time) => self.sim.sleep(time).await,
                }
            }
            self.send_due(wire, &mut correlation);
            self.fetch_due(wire, &mut correlation);
            self.report(began_with);
            let wait = Duration::from_millis(if wish == Wish::Play { 100 } else { 400 });
            match self.next_event(wire, wait).await {
                Event::Frame(frame) => {
                    if !self.handle(&frame) {
                        return;
                    }
                }
                Event::Ended => return,
                Event::Tick => {}
            }
        }
    }

    fn now_ms(&self) -> u64 {
        self.sim.now().0
    }

    async fn next_event(&self, wire: &Wire, wait: Duration) -> Event {
        let receive = std::future::poll_fn(|cx| wire.poll_receive(cx));
        let mut timer = pin!(self.sim.sleep(wait).fuse());
        let mut receive = pin!(receive.fuse());
        let bytes = futures_util::select_biased! {
            bytes = receive => bytes,
            () = timer => return Event::Tick,
        };
        let Some(mut bytes) = bytes else { return Event::Ended };
        let frame = frame::next_frame(&mut bytes, FRAME_BYTES_MAX).expect("valid").expect("whole");
        if !bytes.is_empty() {
            // Replies of one turn share a buffer; what is left is read next.
            wire.unread(bytes);
        }
        Event::Frame(frame)
    }

    // ---- logging in

    async fn log_in(&mut self, wire: &Wire) -> bool {
        let positions = self.stands();
        let watch = self.conversations.iter().filter(|c| matches!(c, ConversationId::Lobby(_)));
        let login = v1::Login {
            token: format!("token of {} {}", self.name, self.token),
            device_id: self.device.clone(),
            device_class: "desktop".into(),
            client: "world".into(),
            watch: watch.map(ToString::to_string).collect(),
            positions: positions.clone(),
            ..v1::Login::default()
        };
        let mut bytes = BytesMut::from(&Opening::CURRENT.encode()[..]);
        frame::put_message(&mut bytes, Kind::Login, 1, &login);
        wire.send(bytes.freeze());
        let is_hasty = self.backends.shared.faults.clients_are_rude && self.sim.chance(200);
        let deadline = self.now_ms() + if is_hasty { 1 + self.sim.below(2000) } else { 10_000 };
        while self.now_ms() < deadline {
            match self.next_event(wire, Duration::from_millis(deadline - self.now_ms())).await {
                Event::Frame(frame) if frame.kind() == Some(Kind::LoginReply) => {
                    self.welcome(&positions, frame.decode().unwrap());
                    return true;
                }
                Event::Frame(frame) if frame.kind() == Some(Kind::Error) => {
                    let error: v1::Error = frame.decode().unwrap();
                    if error.code() == Code::TokenInvalid {
                        self.renew_token().await;
                    } else if !(1000..2000).contains(&error.code) {
                        let name = &self.name;
                        self.sim.violation(format!("guarantee 8: {name} cannot log in: {:?}", error.code()));
                    }
                }
                Event::Frame(frame) if frame.kind() == Some(Kind::Close) => return false,
                Event::Frame(frame) => {
                    self.sim.violation(format!("{} got {:?} before its login reply", self.name, frame.kind()));
                    return false;
                }
                Event::Ended => return false,
                Event::Tick => {}
            }
        }
        false
    }

    /// A login over HTTP, as far as sessions see it.
    async fn renew_token(&mut self) {
        self.token += 1;
        let token = format!("token of {} {}", self.name, self.token);
        self.backends.hot.put_token(&token, self.user, Duration::from_secs(86_400)).await.unwrap();
    }

    // ---- the script

    fn act(&mut self) -> Act {
        if self.actions_left == 0 {
            return Act::Stay;
        }
        self.actions_left -= 1;
        let conversation = *self.sim.one_of(&self.conversations);
        match self.sim.below(100) {
            0..65 => {
                for _ in 0..=self.sim.below(3) {
                    self.write(conversation);
                }
            }
            65..85 => self.read(conversation),
            85..90 => self.contradict(),
            90..95 if self.backends.shared.faults.clients_are_rude => return Act::Leave,
            95..100 if self.backends.shared.faults.clients_are_rude => return Act::Deaf(self.sim.up_to_ms(8000)),
            _ => {}
        }
        Act::Stay
    }

    // ---- answers

    /// Whether the connection goes on.
    fn handle(&mut self, frame: &Frame) -> bool {
        let correlation = frame.head.correlation;
        match frame.kind() {
            Some(Kind::Message) => {
                let message = frame.decode().unwrap();
                self.rises(&message);
                self.show(message);
            }
            Some(Kind::Messages) => {
                let messages: v1::Messages = frame.decode().unwrap();
                self.sim.count("merged messages");
                for message in messages.messages {
                    self.rises(&message);
                    self.show(message);
                }
            }
            Some(Kind::NotifyNewMessages) => {
                let v1::NotifyNewMessages { conversation_id, epoch, latest_seq, spread_ms } = frame.decode().unwrap();
                self.sim.count("notice");
                // Sync brings what a pull would.
                let last_seq = latest_seq;
                self.behind(&v1::Behind { conversation_id, epoch, last_seq, spread_ms, ..Default::default() });
            }
            Some(Kind::GearChanged) => {
                let v1::GearChanged { conversation_id, epoch, gear, from_seq } = frame.decode().unwrap();
                self.sim.count("gear changed");
                if gear != v1::Gear::Signal as i32 {
                    // What came before was not pushed.
                    let last_seq = from_seq - 1;
                    self.behind(&v1::Behind { conversation_id, epoch, last_seq, ..Default::default() });
                }
            }
            Some(Kind::HistoryReply) => self.history_reply(correlation, frame.decode().unwrap()),
            Some(Kind::SyncReply) => self.sync_reply(correlation, frame),
            Some(Kind::Behind) => self.behind(&frame.decode().unwrap()),
            Some(Kind::SendAck | Kind::ReceiptAck) => self.is_acked(correlation, frame),
            Some(Kind::Error) => self.is_refused(correlation, &frame.decode().unwrap()),
            Some(Kind::SendRejected) => {
                let rejected: v1::SendRejected = frame.decode().unwrap();
                let id = MessageId::from_wire(&rejected.message_id).unwrap();
                self.screen.borrow_mut().rejected.insert(id);
            }
            Some(Kind::Close) => {
                let close: v1::Close = frame.decode().unwrap();
                // It is not followed by a reconnect, so it must not come without a cause.
                if close.code() == CloseCode::Replaced {
                    self.sim.violation(format!(
                        "{} is told that it was replaced, and it has no other connection",
                        self.name
                    ));
                }
                return false;
            }
            _ => {}
        }
        true
    }

    fn report(&mut self, began_with: Wish) {
        let mut screen = self.screen.borrow_mut();
        let is_quiet = self.outgoing.is_empty() && self.is_in_sync();
        screen.is_finished = self.outgoing.is_empty();
        let all_checked = self.conversations.iter().all(|c| self.tracks.get(c).is_some_and(|track| track.is_checked));
        screen.is_synced = began_with == Wish::Sync && is_quiet && all_checked;
    }
}

enum Act {
    Stay,
    Leave,
    /// Reads nothing for so long.
    Deaf(Duration),
}

fn send(wire: &Wire, kind: Kind, correlation: u16, message: &impl prost::Message) {
    let mut bytes = BytesMut::new();
    frame::put_message(&mut bytes, kind, correlation, message);
    wire.send(bytes.freeze());
}
