//! Fuzzes the session with what a hostile or broken client and unlucky engines can do.
//!
//! Method:
//! 1. A case is one number; everything below is drawn from it.
//! 2. A script of up to two hundred steps: a frame of a random kind whose payload is valid, a mutation of a valid one, or
//!    random bytes; or an engine's answer (bind, welcome, refusal, confirm, membership) to something that is waiting or
//!    not waiting; or the end of the connection.
//! 3. After every step: each command has had exactly one reply or waits for one; what is accepted belongs to the user's own
//!    conversations and fits the bounds; commands in flight never exceed their bound; interests begin and end in pairs;
//!    after a Close nothing more is said.
//! 4. Cases run for [`SECONDS`] from a number taken from the clock. A failure prints its case, and
//!    `TIDEGATE_FUZZ_CASE=<number> cargo test -p tidegate-core --test fuzz_session` begins with exactly that one;
//!    `TIDEGATE_FUZZ_SECONDS` searches for longer.

#![allow(clippy::unwrap_used, missing_docs)]

use std::collections::{BTreeSet, HashMap};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use bytes::{Bytes, BytesMut};
use prost::Message as _;
use tidegate_core::delivery::{Ask, Confirmed, ConnectionKey, Ground, Identity, RoomsLookUp, Settled, ShardId, Ticket};
use tidegate_core::event::{IngestEvent, Membership};
use tidegate_core::ids::{Attachment, ConversationId, LobbyName, Millis, RoomId, SessionId, UserId};
use tidegate_core::session::{Actions, Interest, Session, SessionContext};
use tidegate_proto::v1::{self, CloseCode, Code};
use tidegate_proto::{Frame, Head, Kind, Opening, frame};

const SECONDS: u64 = 3;
const USER: UserId = UserId(7);
const KEY: ConnectionKey = ConnectionKey { shard: ShardId(0), slot: 1, generation: 1 };

#[test]
fn whatever_happens_every_command_gets_one_reply() {
    let first = variable("TIDEGATE_FUZZ_CASE")
        .unwrap_or_else(|| SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_nanos() as u64);
    let end = Instant::now() + Duration::from_secs(variable("TIDEGATE_FUZZ_SECONDS").unwrap_or(SECONDS));
    let mut cases = 0_u64;
    while Instant::now() < end {
        let case = first.wrapping_add(cases);
        if let Err(panic) = catch_unwind(AssertUnwindSafe(|| World::new(case).run())) {
            eprintln!("failed in case {case}: TIDEGATE_FUZZ_CASE={case} repeats it");
            resume_unwind(panic);
        }
        cases += 1;
    }
    assert!(cases > 10, "too few cases to mean anything: {cases}");
}

fn variable(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        // SplitMix64: neighbouring cases give unrelated scripts.
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % bound
    }

    fn of<'a, T>(&mut self, items: &'a [T]) -> &'a T {
        &items[self.below(items.len() as u64) as usize]
    }
}

struct World {
    random: Random,
    session: Session,
    context: SessionContext,
    actions: Actions,
    /// Correlations of commands that wait for their reply, each as often as it waits.
    waiting: HashMap<u16, u32>,
    events: Vec<(Ticket, IngestEvent)>,
    requests: Vec<(Ticket, bool)>,
    interests: BTreeSet<ConversationId>,
    rooms: BTreeSet<RoomId>,
    closed: bool,
}

impl World {
    fn new(case: u64) -> Self {
        let mut random = Random(case);
        let context = SessionContext {
            gateway: "gw".parse().unwrap(),
            lobbies: ["lobby_main", "lobby_eu"].map(|name| name.parse::<LobbyName>().unwrap()).to_vec(),
            body_bytes_max: 64,
            in_flight_max: 1 + random.below(8) as u16,
        };
        Self {
            random,
            session: Session::default(),
            context,
            actions: Actions::default(),
            waiting: HashMap::new(),
            events: Vec::new(),
            requests: Vec::new(),
            interests: BTreeSet::new(),
            rooms: BTreeSet::new(),
            closed: false,
        }
    }

    fn run(mut self) {
        let opening =
            if self.random.below(50) == 0 { [self.random.below(256) as u8; 8] } else { Opening::CURRENT.encode() };
        self.session.handle_opening(opening, &mut self.actions);
        self.check();
        for _ in 0..self.random.below(200) {
            if self.closed {
                break;
            }
            match self.random.below(10) {
                0..=5 => self.client_speaks(),
                6..=8 => self.an_engine_answers(),
                _ => self.something_happens(),
            }
            self.check();
        }
        let mut interests = Vec::new();
        self.session.handle_gone(&mut interests);
        self.apply(&interests);
        assert_eq!(self.interests, BTreeSet::new(), "what began has ended");
    }

    fn client_speaks(&mut self) {
        let correlation = self.random.below(1 << 16) as u16;
        let kind = match self.random.below(8) {
            0 => self.random.below(256) as u8,
            n => [Kind::Login, Kind::Ping, Kind::Send, Kind::Send, Kind::Receipt, Kind::History, Kind::Watch]
                [n as usize - 1] as u8,
        };
        let mut payload = self.payload(kind);
        for _ in 0..self.random.below(4).saturating_sub(2) {
            match (self.random.below(3), payload.len() as u64) {
                (_, 0) | (0, _) => payload.push(self.random.below(256) as u8),
                (1, len) => {
                    let at = self.random.below(len) as usize;
                    payload[at] ^= 1 << self.random.below(8);
                }
                (_, len) => payload.truncate(self.random.below(len) as usize),
            }
        }
        let head = Head { kind, flags: 0, correlation, payload_bytes: payload.len() as u32 };
        *self.waiting.entry(correlation).or_default() += 1;
        let frame = Frame { head, payload: Bytes::from(payload) };
        self.session.handle_frame(Millis(1), KEY, frame, &self.context, &mut self.actions);
    }

    fn payload(&mut self, kind: u8) -> Vec<u8> {
        let conversation_id = (*self.random.of(&[
            "p_7_9",
            "p_1_7",
            "p_1_2",
            "r_1",
            "r_2",
            "lobby_main",
            "lobby_x",
            "",
            "p_7",
            "\u{1F600}",
        ]))
        .to_owned();
        let client_msg_id = Bytes::from(vec![b'k'; self.random.below(70) as usize]);
        let number = self.random.below(u64::MAX) >> self.random.below(64);
        match Kind::try_from(i32::from(kind)) {
            Ok(Kind::Login) => v1::Login {
                token: "t".repeat(self.random.below(3) as usize),
                device_id: "d".repeat(self.random.below(70) as usize),
                watch: vec![conversation_id; self.random.below(20) as usize],
                background: number.is_multiple_of(2),
                ..Default::default()
            }
            .encode_to_vec(),
            Ok(Kind::Send) => v1::Send {
                conversation_id,
                client_msg_id,
                content_type: self.random.below(4) as i32 - 1,
                body: Bytes::from(vec![b'x'; self.random.below(70) as usize]),
            }
            .encode_to_vec(),
            Ok(Kind::Receipt) => {
                v1::Receipt { conversation_id, delivered_seq: number, read_seq: self.random.below(9) }.encode_to_vec()
            }
            Ok(Kind::History) => v1::History {
                conversation_id,
                before_seq: number,
                after_seq: number.is_multiple_of(2).then_some(number),
                page_size: number as u32,
                watermarks: number.is_multiple_of(3),
            }
            .encode_to_vec(),
            Ok(Kind::Sync) => {
                let from = v1::SyncFrom { conversation_id, epoch: number as u32, seq: number };
                let positions = vec![from; self.random.below(510) as usize];
                v1::Sync { positions, others: number.is_multiple_of(2) }.encode_to_vec()
            }
            Ok(Kind::Watch) => {
                let names = ["lobby_main", "lobby_eu", "lobby_x"];
                let watch = (0..self.random.below(3)).map(|_| (*self.random.of(&names)).to_owned()).collect();
                let unwatch = (0..self.random.below(3)).map(|_| (*self.random.of(&names)).to_owned()).collect();
                let background = (number % 3 < 2).then_some(number.is_multiple_of(3));
                v1::Watch { watch, unwatch, background }.encode_to_vec()
            }
            _ => (0..self.random.below(20)).map(|_| self.random.below(256) as u8).collect(),
        }
    }

    fn an_engine_answers(&mut self) {
        let outcome = if self.random.below(2) == 0 { Ok(Confirmed::Receipt) } else { Err(Code::Uncertain.into()) };
        if !self.events.is_empty() && self.random.below(2) == 0 {
            let at = self.random.below(self.events.len() as u64) as usize;
            let (ticket, _) = self.events.swap_remove(at);
            self.session.handle_settled(&Settled { ticket, outcome }, &mut self.actions);
            return;
        }
        if self.requests.is_empty() {
            return;
        }
        let at = self.random.below(self.requests.len() as u64) as usize;
        let (ticket, is_login) = self.requests[at];
        match (is_login, self.random.below(5)) {
            (_, 0) => {
                self.requests.swap_remove(at);
                let close = (self.random.below(4) == 0).then_some(CloseCode::TokenRejected);
                self.session.handle_refused(ticket.correlation, Code::Unavailable, close, &mut self.actions);
                if is_login {
                    self.rooms.clear();
                }
            }
            (true, 1..=2) => {
                let rooms: Vec<RoomId> = (1..=self.random.below(3)).map(RoomId).collect();
                let identity = Identity {
                    user: USER,
                    session: SessionId(1),
                    attachment: Attachment(1),
                    device: "d".into(),
                    watch: self.context.lobbies[..self.random.below(3) as usize].to_vec(),
                    ground: *self.random.of(&[Ground::Foreground, Ground::Background]),
                };
                let mut interests = Vec::new();
                if self.session.handle_bind(&identity, &mut interests) {
                    self.session.handle_rooms(RoomsLookUp(0), &rooms, &mut interests);
                    self.rooms = rooms.into_iter().collect();
                }
                self.apply(&interests);
            }
            (true, _) if self.session.user().is_some() => {
                self.requests.swap_remove(at);
                let reply = framed(Kind::LoginReply, ticket.correlation);
                self.session.handle_welcome(&reply, &mut self.actions);
            }
            (false, _) => {
                self.requests.swap_remove(at);
                self.session.handle_answer(&framed(Kind::HistoryReply, ticket.correlation), &mut self.actions);
            }
            (true, _) => {}
        }
    }

    fn something_happens(&mut self) {
        let room = RoomId(1 + self.random.below(3));
        let change = if self.random.below(2) == 0 { Membership::Joined } else { Membership::Left };
        let mut interests = Vec::new();
        self.session.handle_membership(room, change, &mut interests);
        if self.session.user().is_some() {
            match change {
                Membership::Joined => self.rooms.insert(room),
                Membership::Left => self.rooms.remove(&room),
            };
        }
        self.apply(&interests);
        if self.random.below(40) == 0 {
            self.session.handle_end(CloseCode::Idle, "idle", &mut self.actions);
        }
    }

    fn apply(&mut self, interests: &[Interest]) {
        for interest in interests {
            match interest {
                Interest::Begins(conversation) => assert!(self.interests.insert(*conversation), "begins once"),
                Interest::Ends(conversation) => assert!(self.interests.remove(conversation), "ends once"),
            }
        }
    }

    fn check(&mut self) {
        for accepting in std::mem::take(&mut self.actions.accepted) {
            let conversation = accepting.event.conversation();
            match conversation {
                ConversationId::Private { low, high } => assert!(low == USER || high == USER),
                ConversationId::Room(room) => assert!(self.rooms.contains(&room), "{room:?} is none of the user's"),
                ConversationId::Lobby(lobby) => assert!(self.context.lobbies.contains(&lobby)),
            }
            if let IngestEvent::Accepted(accepted) = &accepting.event {
                assert!(accepted.sender == USER && accepted.body.len() <= 64);
            }
            self.events.push((accepting.ticket, accepting.event));
        }
        for request in std::mem::take(&mut self.actions.requests) {
            self.requests.push((request.ticket, matches!(request.ask, Ask::Login { .. })));
        }
        if let Some(ground) = self.actions.ground.take() {
            assert_eq!(ground, self.session.ground(), "the shard follows the session");
        }
        let interests = std::mem::take(&mut self.actions.interests);
        self.apply(&interests);
        let mut replies = self.actions.replies.split().freeze();
        while let Some(frame) = frame::next_frame(&mut replies, 1 << 16).expect("we write valid frames") {
            assert!(!self.closed, "nothing is said after a Close");
            if frame.head.kind == Kind::Close as u8 {
                self.closed = true;
                continue;
            }
            let left = self.waiting.get_mut(&frame.head.correlation).expect("a reply to a command");
            *left = left.checked_sub(1).expect("one reply per command");
        }
        assert_eq!(self.actions.close.is_some(), self.closed, "a close says why");
        if !self.closed {
            let waiting: u32 = self.waiting.values().sum();
            assert_eq!(waiting as usize, self.events.len() + self.requests.len(), "every command has a reply or waits");
            let histories = self.requests.iter().filter(|(_, is_login)| !is_login).count();
            let in_flight = self.events.len() + histories;
            assert!(in_flight <= usize::from(self.context.in_flight_max));
            assert_eq!(in_flight, usize::from(self.session.in_flight()));
        }
    }
}

fn framed(kind: Kind, correlation: u16) -> BytesMut {
    let mut bytes = BytesMut::new();
    frame::put_payload(&mut bytes, kind, correlation, b"");
    bytes
}
