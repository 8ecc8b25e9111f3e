//! How fast bytes from clients become commands: 64 KiB, one full read of a shard, of Send frames of 128 bytes each.
//!
//! `cut` only finds the frames, `decode` also decodes their payloads with prost, `websocket` begins with the masked messages that
//! hold them, one frame per message. Throughput counts the bytes of frames.

#![allow(missing_docs, reason = "criterion's macros generate public items")]

use bytes::{Bytes, BytesMut};
use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use std::hint::black_box;
use tidegate_proto::frame::{next_frame, put_message};
use tidegate_proto::limits::FRAME_BYTES_MAX_DEFAULT;
use tidegate_proto::v1::Send;
use tidegate_proto::websocket::{Decoder, Event, Opcode, Role, put_masked};
use tidegate_proto::{HEAD_BYTES, Kind};

const BUFFER_BYTES: usize = 64 * 1024;
const FRAME_BYTES: usize = 128;

/// A Send whose frame has exactly [`FRAME_BYTES`].
fn send_frame() -> Bytes {
    let mut send =
        Send { conversation_id: "lobby_main".into(), client_msg_id: vec![7; 16].into(), ..Default::default() };
    // Tag and length of the body take two bytes.
    let body_bytes = FRAME_BYTES - HEAD_BYTES - prost_bytes(&send) - 2;
    send.body = vec![b'x'; body_bytes].into();
    let mut out = BytesMut::new();
    put_message(&mut out, Kind::Send, 1, &send);
    assert_eq!(out.len(), FRAME_BYTES);
    out.freeze()
}

fn prost_bytes(send: &Send) -> usize {
    let mut out = BytesMut::new();
    put_message(&mut out, Kind::Send, 1, send);
    out.len() - HEAD_BYTES
}

fn codec_decode(criterion: &mut Criterion) {
    let frame = send_frame();
    let frames = Bytes::from(frame.repeat(BUFFER_BYTES / FRAME_BYTES));
    let mut messages = BytesMut::new();
    for index in 0..(BUFFER_BYTES / FRAME_BYTES) as u32 {
        put_masked(&mut messages, Opcode::Binary, index.wrapping_mul(0x9E37_79B9).to_ne_bytes(), &frame);
    }

    let mut group = criterion.benchmark_group("codec_decode");
    group.throughput(Throughput::Bytes(BUFFER_BYTES as u64));
    group.bench_function("cut", |bencher| {
        bencher.iter(|| {
            let mut bytes = frames.clone();
            while let Ok(Some(frame)) = next_frame(&mut bytes, FRAME_BYTES_MAX_DEFAULT) {
                black_box(frame);
            }
            assert!(bytes.is_empty());
        });
    });
    group.bench_function("decode", |bencher| {
        bencher.iter(|| {
            let mut bytes = frames.clone();
            while let Ok(Some(frame)) = next_frame(&mut bytes, FRAME_BYTES_MAX_DEFAULT) {
                black_box(frame.decode::<Send>().expect("a Send"));
            }
            assert!(bytes.is_empty());
        });
    });
    group.bench_function("websocket", |bencher| {
        // Unmasking happens in place, so that each round needs masked bytes of its own.
        bencher.iter_batched_ref(
            || (Decoder::new(Role::Server), messages.clone()),
            |(decoder, input)| {
                while let Ok(Some(Event::Message(message))) = decoder.next(input, FRAME_BYTES_MAX_DEFAULT) {
                    let mut bytes = message.freeze();
                    while let Ok(Some(frame)) = next_frame(&mut bytes, FRAME_BYTES_MAX_DEFAULT) {
                        black_box(frame.decode::<Send>().expect("a Send"));
                    }
                }
                assert!(input.is_empty());
            },
            BatchSize::LargeInput,
        );
    });
    group.finish();
}

criterion_group!(benches, codec_decode);
criterion_main!(benches);
