//! A scripted client against one session.

use prost::Message as _;

use super::*;
use crate::delivery::{Ask, ShardId};
use crate::event::IngestEvent;

const NOW: Millis = Millis(1_700_000_000_000);
const KEY: ConnectionKey = ConnectionKey { shard: ShardId(0), slot: 3, generation: 1 };

struct Script {
    session: Session,
    context: SessionContext,
    actions: Actions,
}

impl Script {
    fn new() -> Self {
        let context = SessionContext {
            gateway: "gw".parse().expect("legal"),
            lobbies: vec!["lobby_main".parse().expect("legal")],
            body_bytes_max: 100,
            in_flight_max: 2,
        };
        Self { session: Session::default(), context, actions: Actions::default() }
    }

    fn ready() -> Self {
        let mut script = Self::new();
        script.session.handle_opening(Opening::CURRENT.encode(), &mut script.actions);
        script.command(Kind::Login, 1, &v1::Login { token: "t".into(), device_id: "d".into(), ..Default::default() });
        let identity = Identity {
            user: UserId(7),
            session: SessionId(70),
            attachment: Attachment(71),
            device: "d".into(),
            watch: vec![],
            ground: Ground::Foreground,
        };
        assert!(script.session.handle_bind(&identity, &mut script.actions.interests));
        script.session.handle_rooms(RoomsLookUp(0), &[RoomId(5)], &mut script.actions.interests);
        assert!(script.session.holds_pushes());
        script.session.handle_welcome(b"", &mut script.actions);
        assert!(script.session.is_ready());
        script.actions = Actions::default();
        script
    }

    fn command(&mut self, kind: Kind, correlation: u16, message: &impl prost::Message) {
        self.raw(kind as u8, correlation, message.encode_to_vec());
    }

    fn raw(&mut self, kind: u8, correlation: u16, payload: Vec<u8>) {
        let mut bytes = Bytes::from(
            [
                &tidegate_proto::Head { kind, flags: 0, correlation, payload_bytes: payload.len() as u32 }.encode()[..],
                &payload,
            ]
            .concat(),
        );
        let frame = frame::next_frame(&mut bytes, 1 << 16).expect("valid").expect("whole");
        self.session.handle_frame(NOW, KEY, frame, &self.context, &mut self.actions);
    }

    fn send(&mut self, correlation: u16, conversation: &str, body: &'static [u8]) {
        let client_msg_id = Bytes::copy_from_slice(&correlation.to_be_bytes());
        let body = Bytes::from_static(body);
        self.command(
            Kind::Send,
            correlation,
            &v1::Send { conversation_id: conversation.into(), client_msg_id, content_type: 0, body },
        );
    }

    fn replies(&mut self) -> Vec<Frame> {
        let mut bytes = self.actions.replies.split().freeze();
        std::iter::from_fn(|| frame::next_frame(&mut bytes, 1 << 16).expect("we write valid frames")).collect()
    }

    fn refused(&mut self) -> Vec<(u16, Code)> {
        let error = |frame: Frame| {
            assert_eq!(frame.head.kind, Kind::Error as u8);
            (frame.head.correlation, v1::Error::decode(frame.payload).expect("an Error").code())
        };
        self.replies().into_iter().map(error).collect()
    }
}

#[test]
fn a_stranger_is_told_why_and_closed() {
    for (bytes, code) in [(*b"GET / HT", CloseCode::BadOpening), (*b"TIDE\x09\0\0\0", CloseCode::UnsupportedVersion)] {
        let mut script = Script::new();
        script.session.handle_opening(bytes, &mut script.actions);
        assert_eq!(script.actions.close, Some(code));
        let frame = script.replies().pop().expect("a Close frame");
        assert_eq!(v1::Close::decode(frame.payload).expect("a Close").code(), code);
    }
}

#[test]
fn nothing_but_ping_is_answered_before_the_login() {
    let mut script = Script::new();
    script.session.handle_opening(Opening::CURRENT.encode(), &mut script.actions);
    script.command(Kind::Ping, 1, &v1::Ping {});
    assert_eq!(script.replies()[0].head.kind, Kind::Pong as u8);
    script.send(2, "lobby_main", b"x");
    assert_eq!(script.refused(), [(2, Code::NotLoggedIn)]);
    assert!(script.actions.accepted.is_empty());
}

#[test]
fn a_login_asks_once() {
    let mut script = Script::new();
    script.session.handle_opening(Opening::CURRENT.encode(), &mut script.actions);
    let login = v1::Login {
        token: "secret".into(),
        device_id: "pc".into(),
        watch: vec!["lobby_main".into(), "lobby_main".into()],
        ..Default::default()
    };
    script.command(Kind::Login, 9, &login);
    script.command(Kind::Login, 10, &login);
    assert_eq!(script.refused(), [(10, Code::AlreadyLoggedIn)]);
    let request = script.actions.requests.pop_front().expect("asked");
    assert_eq!(request.ticket.correlation, 9);
    assert!(matches!(request.ask, Ask::Login { ref watch, .. } if watch.len() == 1));
    assert!(script.actions.requests.is_empty());

    script.session.handle_refused(9, Code::Unavailable, None, &mut script.actions);
    assert_eq!(script.refused(), [(9, Code::Unavailable)]);
    script.command(Kind::Login, 11, &login);
    assert_eq!(script.actions.requests.len(), 1, "after a failure it may try again");
}

#[test]
fn a_message_is_accepted_for_ones_own_conversations_only() {
    let mut script = Script::ready();
    script.context.in_flight_max = 100;
    for conversation in ["p_7_9", "p_2_7", "r_5", "lobby_main"] {
        script.send(1, conversation, b"hello");
    }
    assert_eq!(script.replies(), []);
    let peers: Vec<_> = script.actions.accepted.drain(..).map(|accepting| accepting.peer).collect();
    assert_eq!(peers, [Some(UserId(9)), Some(UserId(2)), None, None]);

    for (conversation, code) in [
        ("p_8_9", Code::NotMember),
        ("r_6", Code::NotMember),
        ("lobby_other", Code::NotMember),
        ("p_7_7", Code::BadConversation),
        ("", Code::BadConversation),
        ("\u{1F600}", Code::BadConversation),
    ] {
        script.send(3, conversation, b"hello");
        assert_eq!(script.refused(), [(3, code)], "{conversation:?}");
    }
    assert!(script.actions.accepted.is_empty());
}

#[test]
fn the_bounds_of_a_message_hold() {
    let mut script = Script::ready();
    script.send(1, "r_5", &[b'x'; 101]);
    assert_eq!(script.refused(), [(1, Code::BodyTooLarge)]);
    script.command(Kind::Send, 2, &v1::Send { conversation_id: "r_5".into(), ..Default::default() });
    assert_eq!(script.refused(), [(2, Code::BadPayload)], "no client_msg_id");
    let long = Bytes::from(vec![b'i'; 65]);
    script.command(
        Kind::Send,
        3,
        &v1::Send { conversation_id: "r_5".into(), client_msg_id: long, ..Default::default() },
    );
    assert_eq!(script.refused(), [(3, Code::BadPayload)], "client_msg_id too long");
}

#[test]
fn commands_in_flight_are_bounded_and_settling_makes_room() {
    let mut script = Script::ready();
    script.send(1, "r_5", b"a");
    script.send(2, "r_5", b"b");
    script.send(3, "r_5", b"c");
    assert_eq!(script.refused(), [(3, Code::Overloaded)]);
    let accepting = script.actions.accepted.pop_front().expect("accepted");
    let IngestEvent::Accepted(accepted) = accepting.event else { panic!("a message") };
    let outcome = Ok(Confirmed::Message { message_id: accepted.message_id, accepted_at: NOW });
    script.session.handle_settled(&Settled { ticket: accepting.ticket, outcome }, &mut script.actions);
    let ack = script.replies().pop().expect("acked");
    assert_eq!((ack.head.kind, ack.head.correlation), (Kind::SendAck as u8, 1));
    script.send(4, "r_5", b"d");
    assert_eq!(script.replies(), []);
}

#[test]
fn a_client_that_sends_rubbish_is_answered_and_then_closed() {
    let mut script = Script::ready();
    for n in 0..u16::from(limits::PROTOCOL_ERRORS_MAX) - 1 {
        match n % 3 {
            0 => script.raw(Kind::Send as u8, n, vec![0xff; 9]),
            1 => script.raw(0x3f, n, vec![]),
            _ => script.raw(Kind::Message as u8, n, vec![]),
        }
        let code = if n % 3 == 0 { Code::BadPayload } else { Code::UnknownKind };
        assert_eq!(script.refused(), [(n, code)]);
        assert_eq!(script.actions.close, None);
    }
    script.raw(0, 99, vec![]);
    assert_eq!(script.actions.close, Some(CloseCode::TooManyErrors));
}

#[test]
fn a_head_above_the_largest_frame_ends_the_connection() {
    let mut script = Script::ready();
    let payload_bytes = u32::try_from(limits::FRAME_BYTES_MAX).expect("small");
    let head = tidegate_proto::Head { kind: Kind::Send as u8, flags: 0, correlation: 1, payload_bytes };
    let mut bytes = Bytes::copy_from_slice(&head.encode());
    let error = frame::next_frame(&mut bytes, limits::FRAME_BYTES_MAX).expect_err("its payload is not waited for");
    script.session.handle_frame_error(error, &mut script.actions);
    assert_eq!(script.actions.close, Some(CloseCode::FrameTooLarge));
}

#[test]
fn watching_changes_interest_once_and_as_a_whole() {
    let mut script = Script::ready();
    let lobby = ConversationId::Lobby("lobby_main".parse().expect("legal"));
    let watch = v1::Watch { watch: vec!["lobby_main".into()], unwatch: vec![], ..Default::default() };
    script.command(Kind::Watch, 1, &watch);
    script.command(Kind::Watch, 2, &watch);
    assert_eq!(script.actions.interests, [Interest::Begins(lobby)]);
    script.actions.interests.clear();
    script.replies();
    let wrong =
        v1::Watch { watch: vec!["lobby_other".into()], unwatch: vec!["lobby_main".into()], ..Default::default() };
    script.command(Kind::Watch, 3, &wrong);
    assert_eq!(script.refused(), [(3, Code::NotMember)]);
    assert_eq!(script.actions.interests, []);
    let gone = script.session.handle_gone(&mut script.actions.interests);
    assert_eq!(gone.map(|departed| departed.user), Some(UserId(7)));
    let room = ConversationId::Room(RoomId(5));
    assert_eq!(script.actions.interests, [Interest::Ends(room), Interest::Ends(lobby)]);
}

#[test]
fn a_session_goes_to_the_background_and_comes_back() {
    let mut script = Script::ready();
    let watch = |background, lobby: &str| v1::Watch { watch: vec![lobby.into()], unwatch: vec![], background };
    let steps = [
        (None, None, Ground::Foreground),
        (Some(true), Some(Ground::Background), Ground::Background),
        (None, None, Ground::Background),
        (Some(false), Some(Ground::Foreground), Ground::Foreground),
    ];
    for (said, action, ground) in steps {
        script.command(Kind::Watch, 1, &watch(said, "lobby_main"));
        let reply = v1::WatchReply::decode(script.replies().remove(0).payload).expect("a WatchReply");
        assert_eq!((script.actions.ground.take(), script.session.ground()), (action, ground), "{said:?}");
        assert_eq!(reply.background, ground == Ground::Background, "{said:?}");
    }
    script.command(Kind::Watch, 2, &watch(Some(true), "lobby_other"));
    assert_eq!(script.refused(), [(2, Code::NotMember)]);
    assert_eq!(
        (script.actions.ground, script.session.ground()),
        (None, Ground::Foreground),
        "as a whole or not at all"
    );
}

#[test]
fn a_login_says_where_its_session_begins() {
    for ground in [Ground::Foreground, Ground::Background] {
        let mut script = Script::new();
        script.session.handle_opening(Opening::CURRENT.encode(), &mut script.actions);
        let background = ground == Ground::Background;
        let login = v1::Login { token: "t".into(), device_id: "d".into(), background, ..Default::default() };
        script.command(Kind::Login, 1, &login);
        let Ask::Login { ground: asked, .. } = script.actions.requests.remove(0).expect("asked").ask else {
            panic!("a Login asks for a login")
        };
        assert_eq!((asked, script.session.ground()), (ground, Ground::Foreground));
        let identity = Identity {
            user: UserId(7),
            session: SessionId(70),
            attachment: Attachment(71),
            device: "d".into(),
            watch: vec![],
            ground,
        };
        assert!(script.session.handle_bind(&identity, &mut script.actions.interests));
        assert_eq!(script.session.ground(), ground);
    }
}

#[test]
fn membership_opens_and_closes_a_room_while_connected() {
    let mut script = Script::ready();
    script.send(1, "r_8", b"x");
    assert_eq!(script.refused(), [(1, Code::NotMember)]);
    script.session.handle_membership(RoomId(8), Membership::Joined, &mut script.actions.interests);
    script.session.handle_membership(RoomId(8), Membership::Joined, &mut script.actions.interests);
    assert_eq!(script.actions.interests, [Interest::Begins(ConversationId::Room(RoomId(8)))]);
    script.send(2, "r_8", b"x");
    assert_eq!(script.actions.accepted.len(), 1);
    script.session.handle_membership(RoomId(8), Membership::Left, &mut script.actions.interests);
    script.send(3, "r_8", b"x");
    assert_eq!(script.refused(), [(3, Code::NotMember)]);
}

#[test]
fn what_events_said_of_a_room_is_newer_than_the_look_up_they_met() {
    let mut script = Script::ready();
    let sync = v1::Sync { others: true, ..Default::default() };
    script.command(Kind::Sync, 1, &sync);
    let mut interests = Vec::new();
    // While the archive is asked, the user leaves room 5 and joins room 6; the answer does not know either.
    script.session.handle_membership(RoomId(5), Membership::Left, &mut interests);
    script.session.handle_membership(RoomId(6), Membership::Joined, &mut interests);
    interests.clear();
    script.session.handle_rooms(RoomsLookUp(1), &[RoomId(5), RoomId(7)], &mut interests);
    assert_eq!(interests, [Interest::Begins(ConversationId::Room(RoomId(7)))]);
    script.send(2, "r_5", b"x");
    script.send(3, "r_6", b"x");
    script.send(4, "r_7", b"x");
    assert_eq!(script.refused(), [(2, Code::NotMember), (4, Code::Overloaded)]);

    // An answer that another look-up has overtaken is void; the latest one also takes rooms away.
    interests.clear();
    script.session.handle_rooms(RoomsLookUp(0), &[], &mut interests);
    assert_eq!(interests, []);
    let mut script = Script::ready();
    script.command(Kind::Sync, 1, &sync);
    script.session.handle_rooms(RoomsLookUp(1), &[], &mut interests);
    assert_eq!(interests, [Interest::Ends(ConversationId::Room(RoomId(5)))]);
}
