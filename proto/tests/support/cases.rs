//! What the golden files of whole frames hold, as values.

use bytes::Bytes;
use tidegate_proto::Frame;
use tidegate_proto::v1::*;

const TOKEN: &str = "3f2b8a9c-0d7e-4b61-9f35-6f1f3e0a2c11";
const CLIENT_MSG_ID: u128 = 0x018f_3a5c_9e7b_7c0d_8a1b_2c3d_4e5f_6071;
const MESSAGE_ID: u128 = 0xa687_157f_72a8_4d13_e1df_3616_9614_4e0b;
const OTHER_MESSAGE_ID: u128 = 0x0001_0203_0405_0607_0809_0a0b_0c0d_0e0f;

fn id(number: u128) -> Bytes {
    number.to_be_bytes().to_vec().into()
}

fn hello() -> Message {
    Message {
        conversation_id: "p_17_42".into(),
        seq: 3,
        epoch: 1,
        message_id: id(MESSAGE_ID),
        sender_id: 17,
        sent_at_ms: 1_767_225_600_250,
        content_type: ContentType::Text.into(),
        body: "héllo".into(),
    }
}

fn earlier() -> Message {
    Message { seq: 2, sender_id: 42, message_id: id(OTHER_MESSAGE_ID), sent_at_ms: 1_767_225_590_000, ..hello() }
}

fn in_lobby(seq: u64, message_id: u128) -> Message {
    Message { conversation_id: "lobby_main".into(), seq, message_id: id(message_id), ..hello() }
}

/// The answer to `pull_newest`; the others are made from it.
fn pull_reply() -> PullReply {
    PullReply { conversation_id: "lobby_main".into(), epoch: 1, ..Default::default() }
}

fn login_reply() -> LoginReply {
    LoginReply {
        user_id: 17,
        user_name: "ann".into(),
        session_id: 0x0123_4567_89ab_cdef,
        gateway_id: "gw-1".into(),
        server_time_ms: 1_767_225_600_000,
        heartbeat: Some(Heartbeat { min_interval_s: 5, max_interval_s: 180, probe_count: 3 }),
        max_frame_bytes: 65_536,
        max_body_bytes: 8192,
        max_in_flight: 64,
        positions: vec![
            Position { conversation_id: "p_17_42".into(), epoch: 1, last_seq: 3, read_seq: 1, unread: 2 },
            Position { conversation_id: "r_7".into(), epoch: 2, ..Default::default() },
        ],
        recent: vec![earlier()],
        ..Default::default()
    }
}

/// The answer to `login_resume`: one conversation whole, one not recoverable, one none of the user's.
fn resumed_reply() -> LoginReply {
    LoginReply {
        positions: vec![Position { conversation_id: "p_17_42".into(), epoch: 1, last_seq: 3, read_seq: 1, unread: 1 }],
        recent: vec![],
        resumed: true,
        watching: vec!["lobby_eu-west".into(), "lobby_main".into()],
        synced: vec![whole(), reload(), not_member()],
        ..login_reply()
    }
}

fn whole() -> Synced {
    Synced {
        conversation_id: "p_17_42".into(),
        epoch: 1,
        last_seq: 3,
        outcome: SyncOutcome::Whole.into(),
        messages: vec![earlier(), hello()],
        read_seq: 1,
        unread: 1,
    }
}

fn reload() -> Synced {
    Synced {
        conversation_id: "lobby_main".into(),
        epoch: 1,
        last_seq: 70_000,
        outcome: SyncOutcome::Reload.into(),
        ..Default::default()
    }
}

fn not_member() -> Synced {
    Synced { conversation_id: "r_7".into(), outcome: SyncOutcome::NotMember.into(), ..Default::default() }
}

/// Nothing is missing.
fn in_sync() -> Synced {
    Synced { messages: vec![], ..whole() }
}

fn sync_from(conversation_id: &str, epoch: u32, seq: u64) -> SyncFrom {
    SyncFrom { conversation_id: conversation_id.into(), epoch, seq }
}

/// A golden file of whole frames, perhaps behind an opening.
pub struct Case {
    pub name: &'static str,
    pub has_opening: bool,
    pub frames: Vec<Frame>,
}

fn one(name: &'static str, kind: Kind, correlation: u16, message: &impl prost::Message) -> Case {
    Case { name, has_opening: false, frames: vec![Frame::from_message(kind, correlation, message)] }
}

pub fn close(code: CloseCode) -> Frame {
    Frame::from_message(Kind::Close, 0, &Close { code: code.into(), text: code.text().into() })
}

/// Every one of them.
pub fn cases() -> Vec<Case> {
    let error = |code: Code, text: &str, retry_after_ms| Error { code: code.into(), text: text.into(), retry_after_ms };
    let private = || "p_17_42".to_owned();
    let lobby = || "lobby_main".to_owned();
    vec![
        Case { name: "opening", has_opening: true, frames: vec![] },
        one(
            "login",
            Kind::Login,
            1,
            &Login {
                token: TOKEN.into(),
                device_id: "desk-1".into(),
                device_class: "desktop".into(),
                client: "golden/1.0".into(),
                watch: vec!["lobby_main".into(), "lobby_eu-west".into()],
                ..Default::default()
            },
        ),
        one("login_reply", Kind::LoginReply, 1, &login_reply()),
        one(
            "login_resume",
            Kind::Login,
            1,
            &Login {
                token: TOKEN.into(),
                device_id: "desk-1".into(),
                watch: vec!["lobby_main".into()],
                resume_session_id: 0x0123_4567_89ab_cdef,
                positions: vec![
                    sync_from("p_17_42", 1, 1),
                    sync_from("lobby_main", 1, 69_000),
                    sync_from("r_7", 2, 5),
                    sync_from("r_8", 0, 0),
                ],
                ..Default::default()
            },
        ),
        one("login_reply_resumed", Kind::LoginReply, 1, &resumed_reply()),
        one(
            "login_background",
            Kind::Login,
            1,
            &Login {
                token: TOKEN.into(),
                device_id: "phone-1".into(),
                watch: vec![lobby()],
                background: true,
                ..Default::default()
            },
        ),
        one("ping", Kind::Ping, 2, &Ping {}),
        one("pong", Kind::Pong, 2, &Pong { server_time_ms: 1_767_225_600_100 }),
        one(
            "send",
            Kind::Send,
            3,
            &Send {
                conversation_id: private(),
                client_msg_id: id(CLIENT_MSG_ID),
                content_type: ContentType::Text.into(),
                body: "héllo".into(),
            },
        ),
        one(
            "send_binary",
            Kind::Send,
            0xFFFF,
            &Send {
                conversation_id: "r_7".into(),
                client_msg_id: Bytes::from_static(&[1]),
                content_type: ContentType::Binary.into(),
                body: Bytes::from_static(&[0, 255]),
            },
        ),
        one("send_ack", Kind::SendAck, 3, &SendAck { message_id: id(MESSAGE_ID), accepted_at_ms: 1_767_225_600_250 }),
        one("receipt", Kind::Receipt, 4, &Receipt { conversation_id: private(), delivered_seq: 0, read_seq: 3 }),
        one("receipt_ack", Kind::ReceiptAck, 4, &ReceiptAck {}),
        one("history_newest", Kind::History, 5, &History { conversation_id: private(), ..Default::default() }),
        one(
            "history_after",
            Kind::History,
            5,
            &History { conversation_id: private(), after_seq: Some(0), page_size: 200, ..Default::default() },
        ),
        one(
            "history_reply",
            Kind::HistoryReply,
            5,
            &HistoryReply {
                conversation_id: private(),
                epoch: 1,
                last_seq: 3,
                messages: vec![earlier(), hello()],
                more: true,
                ..Default::default()
            },
        ),
        one(
            "history_watermarks",
            Kind::History,
            5,
            &History { conversation_id: private(), page_size: 1, watermarks: true, ..Default::default() },
        ),
        one(
            "history_reply_watermarks",
            Kind::HistoryReply,
            5,
            &HistoryReply {
                conversation_id: private(),
                epoch: 1,
                last_seq: 3,
                messages: vec![hello()],
                more: true,
                watermarks: vec![
                    Watermark { user_id: 17, delivered_seq: 3, read_seq: 3 },
                    Watermark { user_id: 42, delivered_seq: 3, read_seq: 2 },
                ],
            },
        ),
        one(
            "watch",
            Kind::Watch,
            6,
            &Watch { watch: vec!["lobby_main".into()], unwatch: vec!["lobby_eu-west".into()], background: None },
        ),
        one("watch_reply", Kind::WatchReply, 6, &WatchReply { watching: vec!["lobby_main".into()], background: false }),
        one("watch_background", Kind::Watch, 9, &Watch { background: Some(true), ..Default::default() }),
        one("watch_foreground", Kind::Watch, 10, &Watch { background: Some(false), ..Default::default() }),
        one("watch_reply_background", Kind::WatchReply, 9, &WatchReply { watching: vec![lobby()], background: true }),
        one(
            "sync",
            Kind::Sync,
            7,
            &Sync { positions: vec![sync_from("r_8", 0, 0), sync_from("p_17_42", 1, 3)], ..Default::default() },
        ),
        one(
            "sync_reply",
            Kind::SyncReply,
            7,
            &SyncReply {
                synced: vec![Synced { conversation_id: "r_8".into(), epoch: 2, ..Default::default() }, in_sync()],
                ..Default::default()
            },
        ),
        one("sync_others", Kind::Sync, 8, &Sync { positions: vec![sync_from("p_17_42", 1, 3)], others: true }),
        one(
            "sync_reply_others",
            Kind::SyncReply,
            8,
            &SyncReply {
                synced: vec![in_sync()],
                others: vec![Position {
                    conversation_id: "p_5_17".into(),
                    epoch: 1,
                    last_seq: 2,
                    read_seq: 0,
                    unread: 2,
                }],
            },
        ),
        one(
            "pull",
            Kind::Pull,
            11,
            &Pull { conversation_id: lobby(), epoch: 1, after_seq: Some(70_000), before_seq: 0 },
        ),
        one("pull_newest", Kind::Pull, 12, &Pull { conversation_id: lobby(), ..Default::default() }),
        one(
            "pull_reply",
            Kind::PullReply,
            11,
            &PullReply {
                from_seq: 70_320,
                to_seq: 70_321,
                latest_seq: 70_321,
                gap: true,
                messages: vec![in_lobby(70_320, OTHER_MESSAGE_ID), in_lobby(70_321, MESSAGE_ID)],
                ..pull_reply()
            },
        ),
        one(
            "pull_fill",
            Kind::Pull,
            13,
            &Pull { conversation_id: lobby(), epoch: 1, after_seq: Some(70_000), before_seq: 70_320 },
        ),
        one(
            "pull_reply_fill",
            Kind::PullReply,
            13,
            &PullReply {
                from_seq: 70_001,
                to_seq: 70_001,
                latest_seq: 70_400,
                more: true,
                messages: vec![in_lobby(70_001, MESSAGE_ID)],
                ..pull_reply()
            },
        ),
        one("pull_reply_nothing", Kind::PullReply, 12, &pull_reply()),
        one("error_slow_down", Kind::Error, 7, &error(Code::SlowDown, "slow down", 1500)),
        one("error_unknown_kind", Kind::Error, 8, &error(Code::UnknownKind, "no such command", 0)),
        Case {
            name: "error_token_expired_then_close",
            has_opening: false,
            frames: vec![
                Frame::from_message(Kind::Error, 1, &error(Code::TokenExpired, "the token's time is over", 0)),
                close(CloseCode::TokenRejected),
            ],
        },
        one("message", Kind::Message, 0, &hello()),
        one(
            "send_rejected",
            Kind::SendRejected,
            0,
            &SendRejected {
                message_id: id(MESSAGE_ID),
                conversation_id: "r_7".into(),
                code: Code::Conflict.into(),
                text: "used before".into(),
            },
        ),
        one(
            "receipt_moved",
            Kind::ReceiptMoved,
            0,
            &ReceiptMoved { conversation_id: private(), user_id: 42, delivered_seq: 3, read_seq: 2 },
        ),
        one(
            "membership_changed",
            Kind::MembershipChanged,
            0,
            &MembershipChanged { conversation_id: "r_7".into(), user_id: 42, joined: true },
        ),
        one(
            "behind",
            Kind::Behind,
            0,
            &Behind {
                conversation_id: "lobby_main".into(),
                epoch: 1,
                after_seq: 70_000,
                last_seq: 70_321,
                ..Default::default()
            },
        ),
        one("behind_everywhere", Kind::Behind, 0, &Behind { spread_ms: 5000, ..Default::default() }),
        one(
            "message_system",
            Kind::Message,
            0,
            &Message { sender_id: 0, body: "back in an hour".into(), ..in_lobby(70_310, MESSAGE_ID) },
        ),
        one(
            "messages",
            Kind::Messages,
            0,
            &Messages { messages: vec![in_lobby(70_299, OTHER_MESSAGE_ID), in_lobby(70_300, MESSAGE_ID)] },
        ),
        one(
            "notify_new_messages",
            Kind::NotifyNewMessages,
            0,
            &NotifyNewMessages { conversation_id: lobby(), epoch: 1, latest_seq: 70_321, spread_ms: 1500 },
        ),
        one(
            "gear_changed",
            Kind::GearChanged,
            0,
            &GearChanged { conversation_id: lobby(), epoch: 1, gear: Gear::Signal.into(), from_seq: 70_301 },
        ),
        one(
            "gear_changed_direct",
            Kind::GearChanged,
            0,
            &GearChanged { conversation_id: lobby(), epoch: 1, gear: Gear::Direct.into(), from_seq: 70_401 },
        ),
        one(
            "counts",
            Kind::Counts,
            0,
            &Counts {
                counts: vec![
                    Count { conversation_id: private(), epoch: 1, last_seq: 3, new_messages: 1 },
                    Count { conversation_id: lobby(), epoch: 1, last_seq: 70_321, new_messages: 312 },
                ],
            },
        ),
        Case { name: "close_draining", has_opening: false, frames: vec![close(CloseCode::Draining)] },
        Case {
            name: "close_unsupported_version",
            has_opening: false,
            frames: vec![close(CloseCode::UnsupportedVersion)],
        },
        Case {
            name: "several_frames",
            has_opening: true,
            frames: vec![
                Frame::from_message(
                    Kind::Login,
                    1,
                    &Login { token: TOKEN.into(), device_id: "desk-1".into(), ..Default::default() },
                ),
                Frame::from_message(Kind::Ping, 2, &Ping {}),
                Frame::from_message(
                    Kind::Send,
                    3,
                    &Send {
                        conversation_id: "lobby_main".into(),
                        client_msg_id: id(CLIENT_MSG_ID),
                        body: "hi".into(),
                        ..Default::default()
                    },
                ),
            ],
        },
    ]
}
