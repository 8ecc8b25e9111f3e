//! Fuzzes the three decoders of client bytes: opening, frames, WebSocket.
//!
//! Method:
//! 1. The corpus is every golden file, `ws_` or not, for every target: the wrong kind of bytes is a good start too.
//! 2. A case is one number. From it alone a mutator derives the input: it picks one to three files, joins them, and applies up to
//!    eight mutations (bits, lengths, cuts, repetitions, splices).
//! 3. A target takes `&[u8]` and panics if a property fails: the decoder accepts any bytes without a panic; the same bytes in any
//!    pieces give the same result as in one; what is buffered stays within a bound; what was decoded survives encoding.
//! 4. Each target runs for [`SECONDS`] from a base number taken from the clock; case `i` is base + `i`.
//! 5. A failure prints its case. `TIDEGATE_FUZZ_CASE=<number> cargo test -p tidegate-proto --test fuzz_codec <target>`
//!    begins with exactly that one. `TIDEGATE_FUZZ_SECONDS` searches for longer.

#![allow(clippy::unwrap_used, missing_docs, reason = "a failed test may panic")]

mod support;

use std::hash::{DefaultHasher, Hash, Hasher};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::time::{Duration, Instant, SystemTime};

use bytes::{Bytes, BytesMut};
use support::{golden, golden_names};
use tidegate_proto::frame::{next_frame, put_message};
use tidegate_proto::limits::WEBSOCKET_HEADER_BYTES_MAX;
use tidegate_proto::opening::OpeningError;
use tidegate_proto::v1::*;
use tidegate_proto::websocket::{self, Event, Role, WsError};
use tidegate_proto::{CodecError, Frame, FrameCodec, FrameError, HEAD_BYTES, OPENING_BYTES, Opening};
use tokio_util::codec::Decoder as _;

const SECONDS: u64 = 3;

/// Small, so that mutated lengths fall on both sides of it.
const BYTES_MAX: usize = 300;

// ---- targets

#[test]
fn opening() {
    run("opening", opening_target);
}

fn opening_target(data: &[u8]) {
    let Some(bytes) = data.first_chunk::<OPENING_BYTES>() else {
        return;
    };
    let result = Opening::parse(*bytes);
    let is_hopeless = (0..=OPENING_BYTES).any(|end| Opening::is_hopeless(&data[..end]));
    match result {
        Ok(opening) => assert_eq!(opening.encode(), *bytes),
        Err(OpeningError::Version { version }) => assert_eq!(version, bytes[4]),
        Err(OpeningError::Magic) => {}
    }
    assert!(!is_hopeless || result == Err(OpeningError::Magic), "a stranger is refused early and late alike");
}

#[test]
fn frames() {
    run("frames", frames_target);
}

fn frames_target(data: &[u8]) {
    let data = data.strip_prefix(&Opening::CURRENT.encode()).unwrap_or(data);

    // In one piece, with the server's function.
    let mut whole = Bytes::copy_from_slice(data);
    let (mut frames, mut refused) = (Vec::new(), None);
    loop {
        match next_frame(&mut whole, BYTES_MAX) {
            Ok(Some(frame)) => frames.push(frame),
            Ok(None) => break,
            Err(error) => {
                refused = Some(error);
                break;
            }
        }
    }

    // In pieces, with the client's codec.
    let mut codec = FrameCodec { frame_bytes_max: BYTES_MAX };
    let mut input = BytesMut::new();
    let (mut frames_in_pieces, mut refused_in_pieces): (Vec<Frame>, Option<FrameError>) = (Vec::new(), None);
    'pieces: for piece in pieces(data) {
        input.extend_from_slice(piece);
        loop {
            match codec.decode(&mut input) {
                Ok(Some(frame)) => frames_in_pieces.push(frame),
                Ok(None) => break,
                Err(CodecError::Frame(error)) => {
                    refused_in_pieces = Some(error);
                    break 'pieces;
                }
                Err(CodecError::Io(error)) => panic!("no input, no output: {error}"),
            }
        }
        assert!(input.len() < BYTES_MAX, "only an unfinished frame stays behind");
        assert!(input.capacity() <= 4 * BYTES_MAX + data.len(), "{} bytes for so little", input.capacity());
    }
    assert_eq!((&frames_in_pieces, refused_in_pieces), (&frames, refused));
    if refused.is_none() {
        assert_eq!(input, whole, "the same bytes stay behind");
    }

    for frame in &frames {
        assert!(HEAD_BYTES + frame.payload.len() <= BYTES_MAX);
        decode_payload(frame);
    }
}

/// A payload that is a message survives encoding and decoding; any other is an error.
fn decode_payload(frame: &Frame) {
    fn check<M: prost::Message + Default + PartialEq + std::fmt::Debug>(frame: &Frame) {
        let Ok(message) = frame.decode::<M>() else {
            return;
        };
        let mut wire = BytesMut::new();
        put_message(&mut wire, frame.kind().unwrap(), frame.head.correlation, &message);
        let again = next_frame(&mut wire.freeze(), usize::MAX).unwrap().unwrap();
        assert_eq!((again.head.kind, again.head.correlation), (frame.head.kind, frame.head.correlation));
        assert_eq!(again.decode::<M>().unwrap(), message);
    }
    match frame.kind() {
        None | Some(Kind::Unspecified) => {}
        Some(Kind::Login) => check::<Login>(frame),
        Some(Kind::Ping) => check::<Ping>(frame),
        Some(Kind::Send) => check::<Send>(frame),
        Some(Kind::Receipt) => check::<Receipt>(frame),
        Some(Kind::History) => check::<History>(frame),
        Some(Kind::Watch) => check::<Watch>(frame),
        Some(Kind::Sync) => check::<Sync>(frame),
        Some(Kind::Pull) => check::<Pull>(frame),
        Some(Kind::LoginReply) => check::<LoginReply>(frame),
        Some(Kind::Pong) => check::<Pong>(frame),
        Some(Kind::SendAck) => check::<SendAck>(frame),
        Some(Kind::ReceiptAck) => check::<ReceiptAck>(frame),
        Some(Kind::HistoryReply) => check::<HistoryReply>(frame),
        Some(Kind::WatchReply) => check::<WatchReply>(frame),
        Some(Kind::SyncReply) => check::<SyncReply>(frame),
        Some(Kind::PullReply) => check::<PullReply>(frame),
        Some(Kind::Error) => check::<Error>(frame),
        Some(Kind::Message) => check::<Message>(frame),
        Some(Kind::SendRejected) => check::<SendRejected>(frame),
        Some(Kind::ReceiptMoved) => check::<ReceiptMoved>(frame),
        Some(Kind::MembershipChanged) => check::<MembershipChanged>(frame),
        Some(Kind::Behind) => check::<Behind>(frame),
        Some(Kind::Messages) => check::<Messages>(frame),
        Some(Kind::NotifyNewMessages) => check::<NotifyNewMessages>(frame),
        Some(Kind::GearChanged) => check::<GearChanged>(frame),
        Some(Kind::Counts) => check::<Counts>(frame),
        Some(Kind::Close) => check::<Close>(frame),
    }
}

#[test]
fn websocket() {
    run("websocket", |data| {
        websocket_target(data, Role::Server);
        websocket_target(data, Role::Client);
    });
}

fn websocket_target(data: &[u8], role: Role) {
    let whole = decode_websocket(std::iter::once(data), role);
    let in_pieces = decode_websocket(pieces(data), role);
    assert_eq!(in_pieces, whole);

    let (events, refused, _) = whole;
    for event in &events {
        match event {
            Event::Message(message) => assert!(message.len() <= BYTES_MAX),
            Event::Ping(payload) | Event::Pong(payload) => assert!(payload.len() <= 125),
            Event::Close { code, reason } => {
                assert!(code.is_none_or(websocket::is_close_code_valid) && reason.len() <= 123);
            }
        }
    }
    let closes = events.iter().filter(|event| matches!(event, Event::Close { .. })).count();
    assert!(closes + usize::from(refused.is_some()) <= 1, "a connection ends once");
    assert!(!events.iter().rev().skip(1).any(|event| matches!(event, Event::Close { .. })), "nothing follows a close");
}

/// Events, the offence, and the bytes left behind, when the input comes in these pieces.
fn decode_websocket<'a>(pieces: impl Iterator<Item = &'a [u8]>, role: Role) -> (Vec<Event>, Option<WsError>, BytesMut) {
    let mut decoder = websocket::Decoder::new(role);
    let mut input = BytesMut::new();
    let (mut events, mut refused) = (Vec::new(), None);
    for piece in pieces {
        input.extend_from_slice(piece);
        loop {
            match decoder.next(&mut input, BYTES_MAX) {
                Ok(Some(event)) => events.push(event),
                Ok(None) => break,
                Err(offence) => {
                    assert!(refused.replace(offence).is_none(), "an offence is reported once");
                }
            }
        }
        assert!(input.len() < BYTES_MAX + WEBSOCKET_HEADER_BYTES_MAX, "only an unfinished frame stays behind");
    }
    (events, refused, input)
}

// ---- driver

fn run(target: &str, check: impl Fn(&[u8])) {
    let from_env = |name| std::env::var(name).ok().map(|text| text.parse::<u64>().expect("a number"));
    let base = from_env("TIDEGATE_FUZZ_CASE").unwrap_or_else(|| {
        let since_epoch = SystemTime::UNIX_EPOCH.elapsed().unwrap();
        since_epoch.as_secs() ^ u64::from(since_epoch.subsec_nanos()) << 32
    });
    let budget = Duration::from_secs(from_env("TIDEGATE_FUZZ_SECONDS").unwrap_or(SECONDS));
    let corpus: Vec<Vec<u8>> = golden_names().iter().map(|name| golden(name)).collect();
    let start = Instant::now();
    let mut case = base;
    loop {
        let input = mutated(&corpus, case);
        if let Err(panic) = catch_unwind(AssertUnwindSafe(|| check(&input))) {
            eprintln!("input: {}", input.iter().map(|byte| format!("{byte:02x} ")).collect::<String>());
            eprintln!("replay: TIDEGATE_FUZZ_CASE={case} cargo test -p tidegate-proto --test fuzz_codec {target}");
            resume_unwind(panic);
        }
        case = case.wrapping_add(1);
        if start.elapsed() > budget {
            break;
        }
    }
    println!("{target}: {} cases from {base}", case.wrapping_sub(base));
}

/// The input of a case.
fn mutated(corpus: &[Vec<u8>], case: u64) -> Vec<u8> {
    let mut rng = Rng(case);
    let mut data = Vec::new();
    for _ in 0..=rng.below(3) {
        data.extend_from_slice(&corpus[rng.below(corpus.len())]);
    }
    for _ in 0..rng.below(9) {
        let at = rng.below(data.len() + 1);
        let run = at..at + rng.below((data.len() - at).min(40) + 1);
        match rng.below(9) {
            0 if at < data.len() => data[at] ^= 1 << rng.below(8),
            1 if at < data.len() => data[at] = rng.next() as u8,
            // Where lengths and opcodes change their meaning.
            2 if at < data.len() => {
                let edges = [0x00, 0x01, 0x02, 0x08, 0x7D, 0x7E, 0x7F, 0x80, 0x82, 0x88, 0xFD, 0xFE, 0xFF];
                data[at] = edges[rng.below(edges.len())];
            }
            3 => data.truncate(at),
            4 => drop(data.drain(run)),
            5 => {
                let again = data[run].to_vec();
                data.splice(at..at, again);
            }
            6 => {
                let other = &corpus[rng.below(corpus.len())];
                let from = rng.below(other.len());
                data.splice(at..at, other[from..].iter().copied());
            }
            7 if run.len() >= 4 => {
                let length = rng.below(2 * BYTES_MAX) as u32;
                data[at..at + 4].copy_from_slice(&length.to_be_bytes());
            }
            // Masked fragments of a message, sometimes with another first byte.
            8 => {
                let mut frames = BytesMut::new();
                let last = rng.below(4);
                for fragment in 0..=last {
                    let start = frames.len();
                    let payload: Vec<u8> = (0..rng.below(200)).map(|_| rng.next() as u8).collect();
                    let mask = (rng.next() as u32).to_ne_bytes();
                    websocket::put_masked(&mut frames, websocket::Opcode::Binary, mask, &payload);
                    let opcode = if fragment == 0 { 0x02 } else { 0x00 };
                    frames[start] = if fragment == last { opcode | 0x80 } else { opcode };
                    if rng.below(10) == 0 {
                        frames[start] = [0x82, 0x81, 0x88, 0x89, 0x8A][rng.below(5)];
                    }
                }
                data.splice(at..at, frames);
            }
            _ => {}
        }
        data.truncate(8 * BYTES_MAX);
    }
    data
}

/// Cuts `data` at points that follow from `data` itself, so that a target needs nothing else.
fn pieces(data: &[u8]) -> impl Iterator<Item = &[u8]> {
    let mut hasher = DefaultHasher::new();
    data.hash(&mut hasher);
    let mut rng = Rng(hasher.finish());
    let piece_bytes_max = 1 + rng.below(60);
    let mut rest = data;
    std::iter::from_fn(move || {
        let (piece, behind) = rest.split_at_checked(1 + rng.below(piece_bytes_max)).unwrap_or((rest, &[]));
        rest = behind;
        (!piece.is_empty()).then_some(piece)
    })
}

/// SplitMix64: neighbouring cases give unrelated numbers.
struct Rng(u64);

impl Rng {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut mixed = self.0;
        mixed = (mixed ^ mixed >> 30).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^ mixed >> 31
    }

    fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound as u64) as usize
    }
}
