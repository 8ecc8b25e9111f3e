//! The golden files both ways: their bytes decode to the values written here, and the values encode to their bytes.
//!
//! `tests/python/test_wire.py` does the same in a second language with its own copy of the values.

#![allow(clippy::unwrap_used, missing_docs, reason = "a failed test may panic")]

#[path = "support/cases.rs"]
mod cases;
mod support;

use std::collections::BTreeSet;

use bytes::{Bytes, BytesMut};
use cases::{cases, close};
use prost::Message as _;
use support::{golden, golden_names};
use tidegate_proto::frame::{FrameError, next_frame, peek_head, put_message, put_payload};
use tidegate_proto::limits::FRAME_BYTES_MAX_DEFAULT;
use tidegate_proto::opening::OpeningError;
use tidegate_proto::v1::*;
use tidegate_proto::websocket::{self, Event, Role, WsError};
use tidegate_proto::{Frame, OPENING_BYTES, Opening};

/// Decodes the payload as its kind's message and encodes it again.
fn reencode(frame: &Frame) -> BytesMut {
    fn again<M: prost::Message + Default>(frame: &Frame, kind: Kind) -> BytesMut {
        let mut out = BytesMut::new();
        put_message(&mut out, kind, frame.head.correlation, &frame.decode::<M>().unwrap());
        out
    }
    let kind = frame.kind().unwrap();
    match kind {
        Kind::Unspecified => unreachable!(),
        Kind::Login => again::<Login>(frame, kind),
        Kind::Ping => again::<Ping>(frame, kind),
        Kind::Send => again::<Send>(frame, kind),
        Kind::Receipt => again::<Receipt>(frame, kind),
        Kind::History => again::<History>(frame, kind),
        Kind::Watch => again::<Watch>(frame, kind),
        Kind::Sync => again::<Sync>(frame, kind),
        Kind::Pull => again::<Pull>(frame, kind),
        Kind::LoginReply => again::<LoginReply>(frame, kind),
        Kind::Pong => again::<Pong>(frame, kind),
        Kind::SendAck => again::<SendAck>(frame, kind),
        Kind::ReceiptAck => again::<ReceiptAck>(frame, kind),
        Kind::HistoryReply => again::<HistoryReply>(frame, kind),
        Kind::WatchReply => again::<WatchReply>(frame, kind),
        Kind::SyncReply => again::<SyncReply>(frame, kind),
        Kind::PullReply => again::<PullReply>(frame, kind),
        Kind::Error => again::<Error>(frame, kind),
        Kind::Message => again::<Message>(frame, kind),
        Kind::SendRejected => again::<SendRejected>(frame, kind),
        Kind::ReceiptMoved => again::<ReceiptMoved>(frame, kind),
        Kind::MembershipChanged => again::<MembershipChanged>(frame, kind),
        Kind::Behind => again::<Behind>(frame, kind),
        Kind::Messages => again::<Messages>(frame, kind),
        Kind::NotifyNewMessages => again::<NotifyNewMessages>(frame, kind),
        Kind::GearChanged => again::<GearChanged>(frame, kind),
        Kind::Counts => again::<Counts>(frame, kind),
        Kind::Close => again::<Close>(frame, kind),
    }
}

#[test]
fn values_encode_to_the_golden_bytes() {
    for case in cases() {
        let mut wire = BytesMut::new();
        if case.has_opening {
            wire.extend_from_slice(&Opening::CURRENT.encode());
        }
        for frame in &case.frames {
            put_payload(&mut wire, frame.kind().unwrap(), frame.head.correlation, &frame.payload);
        }
        assert_eq!(wire, golden(case.name), "{}", case.name);
    }
}

#[test]
fn golden_bytes_decode_to_the_values_and_back() {
    for case in cases() {
        let mut wire = Bytes::from(golden(case.name));
        if case.has_opening {
            let opening = wire.split_to(OPENING_BYTES);
            assert_eq!(Opening::parse(opening[..].try_into().unwrap()), Ok(Opening::CURRENT));
        }
        for expected in &case.frames {
            let frame = next_frame(&mut wire, FRAME_BYTES_MAX_DEFAULT).unwrap().expect(case.name);
            assert_eq!(frame, *expected, "{}", case.name);
            let again = next_frame(&mut reencode(&frame).freeze(), FRAME_BYTES_MAX_DEFAULT).unwrap();
            assert_eq!(again, Some(frame), "{}", case.name);
        }
        assert!(wire.is_empty(), "{}", case.name);
    }
}

#[test]
fn every_kind_has_a_golden_file() {
    let shown: BTreeSet<u8> = cases().iter().flat_map(|case| &case.frames).map(|frame| frame.head.kind).collect();
    let known: BTreeSet<u8> = (1..=u8::MAX).filter(|kind| Kind::try_from(i32::from(*kind)).is_ok()).collect();
    assert_eq!(shown, known);
}

#[test]
fn every_golden_file_is_tested() {
    let mut names: Vec<&str> = cases().iter().map(|case| case.name).collect();
    names.extend(["bad_flags", "bad_too_large", "bad_opening_magic", "bad_opening_version", "bad_opening_reserved"]);
    names.extend(websocket_cases().iter().map(|(name, ..)| *name));
    names.sort_unstable();
    assert_eq!(names, golden_names());
}

#[test]
fn bad_bytes_are_refused_with_their_close_codes() {
    let flags = peek_head(&golden("bad_flags"), FRAME_BYTES_MAX_DEFAULT).unwrap_err();
    assert_eq!((flags, flags.close_code()), (FrameError::Flags { flags: 0x80 }, CloseCode::BadFrame));

    let too_large = peek_head(&golden("bad_too_large"), FRAME_BYTES_MAX_DEFAULT).unwrap_err();
    let expected = FrameError::TooLarge { frame_bytes: 65_537, frame_bytes_max: FRAME_BYTES_MAX_DEFAULT };
    assert_eq!((too_large, too_large.close_code()), (expected, CloseCode::FrameTooLarge));

    let openings = [
        ("bad_opening_magic", OpeningError::Magic, CloseCode::BadOpening),
        ("bad_opening_version", OpeningError::Version { version: 2 }, CloseCode::UnsupportedVersion),
        ("bad_opening_reserved", OpeningError::Magic, CloseCode::BadOpening),
    ];
    for (name, expected, code) in openings {
        let refused = Opening::parse(golden(name)[..].try_into().unwrap()).unwrap_err();
        assert_eq!((refused, refused.close_code()), (expected, code), "{name}");
    }
    assert!(Opening::is_hopeless(&golden("bad_opening_magic")[..1]));
}

#[test]
fn a_truncated_file_is_waited_for_and_not_refused() {
    for case in cases().iter().filter(|case| !case.has_opening) {
        let first = case.frames.first().unwrap();
        for cut in 0..8 + first.payload.len() {
            let mut wire = Bytes::from(golden(case.name)).slice(..cut);
            assert_eq!(next_frame(&mut wire, FRAME_BYTES_MAX_DEFAULT), Ok(None), "{} cut at {cut}", case.name);
            assert_eq!(wire.len(), cut, "an unfinished frame is left alone");
        }
    }
}

/// File, who reads it, the events in it, the offence that ends it.
type WebSocketCase = (&'static str, Role, Vec<Event>, Option<WsError>);

fn websocket_cases() -> Vec<WebSocketCase> {
    use Role::{Client, Server};
    let message = |bytes: &[u8]| Event::Message(bytes.into());
    let close = |code, reason: &str| Event::Close { code: Some(code), reason: reason.to_owned() };
    let hello = Bytes::from_static(b"Hello");
    let too_big = |message_bytes| WsError::MessageTooBig { message_bytes, message_bytes_max: FRAME_BYTES_MAX_DEFAULT };
    vec![
        ("ws_rfc_unmasked_text", Client, vec![], Some(WsError::Text)),
        ("ws_rfc_masked_text", Server, vec![], Some(WsError::Text)),
        ("ws_rfc_fragmented_text", Client, vec![], Some(WsError::Text)),
        ("ws_rfc_unmasked_ping", Client, vec![Event::Ping(hello.clone())], None),
        ("ws_rfc_masked_pong", Server, vec![Event::Pong(hello)], None),
        ("ws_rfc_binary_256", Client, vec![message(&(0..=255).collect::<Vec<u8>>())], None),
        ("ws_rfc_binary_64k_header", Client, vec![], None),
        ("ws_client_first_message", Server, vec![message(&[golden("opening"), golden("ping")].concat())], None),
        ("ws_client_fragments", Server, vec![Event::Ping("?".into()), message(&golden("send"))], None),
        ("ws_client_close", Server, vec![close(1000, "bye")], None),
        ("ws_server_message", Client, vec![message(&golden("pong"))], None),
        (
            "ws_server_close",
            Client,
            vec![message(&golden("close_draining")), close(CloseCode::Draining.number(), CloseCode::Draining.text())],
            None,
        ),
        ("ws_bad_unmasked", Server, vec![], Some(WsError::Unmasked)),
        ("ws_bad_reserved_bit", Server, vec![], Some(WsError::ReservedBits)),
        ("ws_bad_reserved_opcode", Server, vec![], Some(WsError::ReservedOpcode { opcode: 3 })),
        ("ws_bad_fragmented_ping", Server, vec![], Some(WsError::FragmentedControl)),
        ("ws_bad_long_ping", Server, vec![], Some(WsError::LongControl)),
        ("ws_bad_long_length", Server, vec![], Some(WsError::LongLength)),
        ("ws_bad_length_top_bit", Server, vec![], Some(WsError::LengthTopBit)),
        ("ws_bad_stray_continuation", Server, vec![], Some(WsError::StrayContinuation)),
        ("ws_bad_interrupted_message", Server, vec![], Some(WsError::InterruptedMessage)),
        ("ws_bad_too_big", Server, vec![], Some(too_big(65_537))),
        ("ws_bad_half_close_code", Server, vec![], Some(WsError::HalfCloseCode)),
        ("ws_bad_close_code", Server, vec![], Some(WsError::InvalidCloseCode { code: 1005 })),
        ("ws_bad_close_reason", Server, vec![], Some(WsError::InvalidCloseReason)),
    ]
}

#[test]
fn websocket_files_decode_to_their_events_and_offences() {
    for (name, role, expected_events, expected_offence) in websocket_cases() {
        let mut decoder = websocket::Decoder::new(role);
        let mut wire = BytesMut::from(&golden(name)[..]);
        let mut events = Vec::new();
        let offence = loop {
            match decoder.next(&mut wire, FRAME_BYTES_MAX_DEFAULT) {
                Ok(Some(event)) => events.push(event),
                Ok(None) => break None,
                Err(offence) => break Some(offence),
            }
        };
        assert_eq!((events, offence), (expected_events, expected_offence), "{name}");
        // The comment of the file names the close code.
        if let Some(offence) = offence {
            let path = support::crate_dir().join(format!("tests/golden/{name}.hex"));
            let comment = std::fs::read_to_string(path).unwrap();
            assert!(comment.contains(&format!(": {}", offence.close_code())), "{name}");
        }
    }
}

#[test]
fn websocket_encoders_write_the_golden_bytes() {
    use websocket::{Opcode, put_close, put_header, put_masked, put_masked_close, put_ping};
    const MASK: [u8; 4] = [0x37, 0xfa, 0x21, 0x3d];

    let mut wire = BytesMut::new();
    let mut check = |name: &str, put: &dyn Fn(&mut BytesMut)| {
        wire.clear();
        put(&mut wire);
        assert_eq!(wire, golden(name), "{name}");
    };
    let draining = close(CloseCode::Draining).decode::<Close>().unwrap();
    check("ws_rfc_unmasked_ping", &|out| put_ping(out, b"Hello"));
    check("ws_rfc_masked_pong", &|out| put_masked(out, Opcode::Pong, MASK, b"Hello"));
    check("ws_rfc_masked_text", &|out| put_masked(out, Opcode::Text, MASK, b"Hello"));
    check("ws_rfc_binary_64k_header", &|out| put_header(out, Opcode::Binary, 65_536));
    check("ws_client_first_message", &|out| {
        put_masked(out, Opcode::Binary, MASK, &[golden("opening"), golden("ping")].concat());
    });
    check("ws_client_close", &|out| put_masked_close(out, MASK, 1000, "bye"));
    check("ws_server_message", &|out| {
        put_header(out, Opcode::Binary, golden("pong").len());
        out.extend_from_slice(&golden("pong"));
    });
    check("ws_server_close", &|out| {
        put_header(out, Opcode::Binary, 8 + draining.encoded_len());
        put_message(out, Kind::Close, 0, &draining);
        put_close(out, CloseCode::Draining.number(), CloseCode::Draining.text());
    });
}
