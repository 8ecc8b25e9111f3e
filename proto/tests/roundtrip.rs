//! What one side encodes the other decodes, whatever it says and however the bytes are cut: properties that proptest can
//! shrink to the smallest counterexample.

#![allow(clippy::unwrap_used, missing_docs, reason = "a failed test may panic")]

use bytes::{Bytes, BytesMut};
use proptest::collection::vec;
use proptest::prelude::*;
use tidegate_proto::frame::{next_frame, put_payload};
use tidegate_proto::websocket::{
    self, Event, Header, Opcode, Role, apply_mask, put_masked, put_masked_close, put_ping,
};
use tidegate_proto::{Frame, FrameCodec, Head, Kind};
use tokio_util::codec::{Decoder as _, Encoder as _};

const BYTES_MAX: usize = 4096;

proptest! {
    // A counterexample belongs into a test of its own, not into a file of seeds.
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn heads_survive(kind: u8, correlation: u16, payload_bytes: u32) {
        let head = Head { kind, flags: 0, correlation, payload_bytes };
        prop_assert_eq!(Head::parse(head.encode()), Ok(head));
    }

    #[test]
    fn the_codec_and_the_server_functions_speak_the_same(payloads in vec((any::<u16>(), vec(any::<u8>(), 0..100)), 0..8)) {
        let (mut by_function, mut by_codec) = (BytesMut::new(), BytesMut::new());
        let mut frames = Vec::new();
        for (correlation, payload) in &payloads {
            put_payload(&mut by_function, Kind::Send, *correlation, payload);
            let head = Head { kind: 3, flags: 0, correlation: *correlation, payload_bytes: payload.len() as u32 };
            frames.push(Frame { head, payload: Bytes::copy_from_slice(payload) });
            FrameCodec::default().encode(frames.last().unwrap().clone(), &mut by_codec).unwrap();
        }
        prop_assert_eq!(&by_function, &by_codec);

        let mut bytes = by_function.freeze();
        for frame in &frames {
            prop_assert_eq!(next_frame(&mut bytes, BYTES_MAX), Ok(Some(frame.clone())));
            let decoded = FrameCodec::default().decode(&mut by_codec).unwrap();
            prop_assert_eq!(decoded.as_ref(), Some(frame));
        }
        prop_assert!(bytes.is_empty() && by_codec.is_empty());
    }

    /// Messages in any fragments with any masks and pings between, cut anywhere, arrive as they were sent.
    #[test]
    fn a_server_decodes_what_a_client_sends(
        messages in vec(vec((any::<[u8; 4]>(), vec(any::<u8>(), 0..300)), 1..5), 0..5),
        pings in vec(any::<bool>(), 20),
        reason in "\\PC{0,60}",
        piece_bytes in 1usize..200,
    ) {
        let mut pings = pings.into_iter().cycle();
        let (mut wire, mut expected) = (BytesMut::new(), Vec::new());
        for fragments in &messages {
            let mut message = BytesMut::new();
            for (index, (mask, payload)) in fragments.iter().enumerate() {
                let header = Header {
                    is_final: index + 1 == fragments.len(),
                    opcode: if index == 0 { Opcode::Binary } else { Opcode::Continuation },
                    mask: Some(*mask),
                    payload_bytes: payload.len() as u64,
                };
                header.put(&mut wire);
                let mut masked = payload.clone();
                apply_mask(&mut masked, *mask);
                wire.extend_from_slice(&masked);
                message.extend_from_slice(payload);
                if !header.is_final && pings.next().unwrap() {
                    put_masked(&mut wire, Opcode::Ping, *mask, b"?");
                    expected.push(Event::Ping("?".into()));
                }
            }
            expected.push(Event::Message(message));
        }
        put_masked_close(&mut wire, [1, 2, 3, 4], 1000, &reason);

        let mut decoder = websocket::Decoder::new(Role::Server);
        let (mut input, mut events) = (BytesMut::new(), Vec::new());
        for piece in wire.chunks(piece_bytes) {
            input.extend_from_slice(piece);
            while let Some(event) = decoder.next(&mut input, BYTES_MAX).unwrap() {
                events.push(event);
            }
        }
        let Some(Event::Close { code: Some(1000), reason: received }) = events.pop() else {
            panic!("no close at the end");
        };
        // At most 123 bytes of it, whole characters.
        prop_assert!(reason.starts_with(&received) && received.len() <= 123);
        prop_assert!(received == reason || received.len() >= 120);
        prop_assert_eq!(events, expected);
    }

    #[test]
    fn a_client_decodes_what_a_server_sends(payload in vec(any::<u8>(), 0..BYTES_MAX), ping in vec(any::<u8>(), 0..125)) {
        let mut wire = BytesMut::new();
        websocket::put_header(&mut wire, Opcode::Binary, payload.len());
        wire.extend_from_slice(&payload);
        put_ping(&mut wire, &ping);
        let mut decoder = websocket::Decoder::new(Role::Client);
        prop_assert_eq!(decoder.next(&mut wire, BYTES_MAX), Ok(Some(Event::Message(payload[..].into()))));
        prop_assert_eq!(decoder.next(&mut wire, BYTES_MAX), Ok(Some(Event::Ping(ping.into()))));
        prop_assert!(wire.is_empty());
    }
}
