//! A client with a made-up server on the other side and a clock that is a number.

use std::sync::Arc;

use bytes::Bytes;
use prost::Message as _;
use tidegate_proto::Frame;
use tidegate_proto::v1::{Error, Heartbeat, HistoryReply, Message, Position, Send, SendAck, SyncReply};

use super::*;

fn client() -> Client {
    let terms = Arc::new(Terms { run: 9, filler: vec![1; 96] });
    let mut client = Client::new("user 0".into(), Habits { reads: Some(Reads::All) }, terms, 1);
    client.take_seat(0, "p_1_2", 0, vec![1, 2]);
    client.handle_login(&login(0), 0);
    client
}

fn login(last_seq: u64) -> LoginReply {
    let position = Position { conversation_id: "p_1_2".into(), epoch: 5, last_seq, ..Position::default() };
    let heartbeat = Heartbeat { min_interval_s: 1, max_interval_s: 30, probe_count: 3 };
    LoginReply { session_id: 77, heartbeat: Some(heartbeat), positions: vec![position], ..LoginReply::default() }
}

/// What the client writes at this moment.
fn written(client: &mut Client, now_ms: u64) -> Vec<Frame> {
    let mut out = BytesMut::new();
    client.poll(now_ms, &mut out).unwrap();
    let mut bytes = out.freeze();
    std::iter::from_fn(|| frame::next_frame(&mut bytes, 65_536).unwrap()).collect()
}

fn of_kind(frames: Vec<Frame>, kind: Kind) -> Vec<Frame> {
    frames.into_iter().filter(|frame| frame.kind() == Some(kind)).collect()
}

fn ack(client: &mut Client, send: &Frame, now_ms: u64) {
    let reply = SendAck { message_id: Bytes::from_static(&[4; 16]), accepted_at_ms: 1 };
    let reply = Frame::from_message(Kind::SendAck, send.head.correlation, &reply);
    client.handle_frame(&reply, now_ms).unwrap();
}

fn refuse(client: &mut Client, command: &Frame, code: i32, now_ms: u64) {
    let reply = Error { code, ..Error::default() };
    client.handle_frame(&Frame::from_message(Kind::Error, command.head.correlation, &reply), now_ms).unwrap();
}

fn answer_pings(client: &mut Client, frames: &[Frame], now_ms: u64) {
    for ping in frames.iter().filter(|frame| frame.kind() == Some(Kind::Ping)) {
        let pong = Frame::from_message(Kind::Pong, ping.head.correlation, &tidegate_proto::v1::Pong::default());
        client.handle_frame(&pong, now_ms).unwrap();
    }
}

fn message(seq: u64) -> Message {
    let id = Bytes::from(vec![seq as u8; 16]);
    Message { conversation_id: "p_1_2".into(), seq, epoch: 5, message_id: id, sender_id: 2, ..Message::default() }
}

fn payload(send: &Frame) -> Send {
    Send::decode(send.payload.clone()).unwrap()
}

#[test]
fn a_message_is_repeated_after_a_retryable_error_byte_for_byte() {
    let mut client = client();
    client.offer(0, 10, false);
    let first = of_kind(written(&mut client, 10), Kind::Send).remove(0);
    refuse(&mut client, &first, 1_001, 20);
    assert!(of_kind(written(&mut client, 20), Kind::Send).is_empty(), "not without a back-off");
    let again = of_kind(written(&mut client, 600), Kind::Send).remove(0);
    assert_eq!(payload(&again), payload(&first));
    ack(&mut client, &again, 610);
    assert_eq!(client.unsettled(), 0);
    let sent: Vec<Sent> = client.sent().collect();
    assert_eq!((sent[0].attempts, sent[0].answer), (2, Answer::Accepted([4; 16])));
    assert_eq!(client.figures.accepted_at_ms, [610]);
}

#[test]
fn a_message_is_repeated_after_a_reconnect() {
    let mut client = client();
    client.offer(0, 10, false);
    let first = of_kind(written(&mut client, 10), Kind::Send).remove(0);
    client.handle_end(50);
    client.handle_login(&login(0), 90);
    let again = of_kind(written(&mut client, 100), Kind::Send).remove(0);
    assert_eq!(payload(&again), payload(&first));
    assert_eq!(client.sent().next().unwrap().connection, 1, "the order is that of the first connection");
}

#[test]
fn a_message_is_repeated_on_silence_and_the_late_answer_still_counts() {
    let mut client = client();
    client.offer(0, 10, false);
    let first = of_kind(written(&mut client, 10), Kind::Send).remove(0);
    let mut again = Vec::new();
    for now_ms in (100..REPEAT_AFTER_MS + 500).step_by(100) {
        let frames = written(&mut client, now_ms);
        answer_pings(&mut client, &frames, now_ms);
        again.extend(of_kind(frames, Kind::Send));
    }
    assert_eq!(again.len(), 1);
    ack(&mut client, &first, 9_000);
    ack(&mut client, &again[0], 9_001);
    assert_eq!((client.unsettled(), client.figures.late_answers), (0, 1));
    assert!(client.findings.is_empty());
}

#[test]
fn an_error_for_good_and_a_command_without_any_answer_are_findings() {
    let mut client = in_sync();
    client.offer(0, 10, false);
    client.offer(0, 10, false);
    let sends = of_kind(written(&mut client, 10), Kind::Send);
    refuse(&mut client, &sends[0], 2_003, 20);
    assert_eq!((client.unsettled(), client.findings.count(Fault::Refused)), (1, 1));
    for now_ms in (100..ANSWER_MS_MAX + 500).step_by(100) {
        let frames = written(&mut client, now_ms);
        answer_pings(&mut client, &frames, now_ms);
    }
    assert_eq!(client.findings.count(Fault::Unanswered), 1);
}

fn synced(client: &mut Client, ask: &Frame, answer: Synced, now_ms: u64) {
    let reply = SyncReply { synced: vec![answer], ..SyncReply::default() };
    client.handle_frame(&Frame::from_message(Kind::SyncReply, ask.head.correlation, &reply), now_ms).unwrap();
}

fn whole(seqs: &[u64], last_seq: u64) -> Synced {
    let messages = seqs.iter().map(|seq| message(*seq)).collect();
    Synced { conversation_id: "p_1_2".into(), epoch: 5, last_seq, messages, ..Synced::default() }
}

/// A client that has answered for its login already and is in sync.
fn in_sync() -> Client {
    let mut client = client();
    let ask = of_kind(written(&mut client, 0), Kind::Sync).remove(0);
    synced(&mut client, &ask, whole(&[], 0), 0);
    client
}

fn shown(client: &Client) -> Vec<(u64, Via)> {
    client.seats[0].sync.shown.iter().map(|entry| (entry.seq, entry.via)).collect()
}

#[test]
fn a_gap_is_closed_by_a_sync() {
    let mut client = in_sync();
    for seq in [1, 4] {
        client.handle_frame(&Frame::from_message(Kind::Message, 0, &message(seq)), 400).unwrap();
    }
    let ask = of_kind(written(&mut client, 400), Kind::Sync).remove(0);
    let place = SyncFrom { conversation_id: "p_1_2".into(), epoch: 5, seq: 1 };
    assert_eq!(Sync::decode(ask.payload.clone()).unwrap().positions, [place]);
    assert!(of_kind(written(&mut client, 410), Kind::Sync).is_empty(), "one at a time");
    synced(&mut client, &ask, whole(&[2, 3, 4], 4), 420);
    assert_eq!(shown(&client), [(1, Via::Push), (2, Via::Answer), (3, Via::Answer), (4, Via::Answer)]);
    assert!(of_kind(written(&mut client, 900), Kind::Sync).is_empty());
    assert!(client.findings.is_empty());
}

#[test]
fn a_whole_answer_that_is_not_whole_is_a_finding() {
    let mut client = in_sync();
    client.handle_frame(&Frame::from_message(Kind::Message, 0, &message(3)), 400).unwrap();
    let ask = of_kind(written(&mut client, 400), Kind::Sync).remove(0);
    synced(&mut client, &ask, whole(&[1, 3], 3), 410);
    assert_eq!(client.findings.count(Fault::Gap), 1);
}

#[test]
fn too_much_for_a_sync_is_reloaded_by_history_page_by_page() {
    let mut client = in_sync();
    client.handle_frame(&Frame::from_message(Kind::Message, 0, &message(3)), 400).unwrap();
    let ask = of_kind(written(&mut client, 400), Kind::Sync).remove(0);
    let mut reload = whole(&[], 3);
    reload.set_outcome(tidegate_proto::v1::SyncOutcome::Reload);
    synced(&mut client, &ask, reload, 410);
    let mut now_ms = 1_000;
    for page in [[1, 2].as_slice(), &[3]] {
        now_ms += 10;
        let ask = of_kind(written(&mut client, now_ms), Kind::History).remove(0);
        assert_eq!(History::decode(ask.payload.clone()).unwrap().after_seq, Some(page[0] - 1));
        let messages = page.iter().map(|seq| message(*seq)).collect();
        let (epoch, last_seq, more) = (5, 3, page.len() > 1);
        let reply =
            HistoryReply { conversation_id: "p_1_2".into(), epoch, last_seq, messages, more, ..Default::default() };
        client.handle_frame(&Frame::from_message(Kind::HistoryReply, ask.head.correlation, &reply), now_ms).unwrap();
    }
    assert_eq!(shown(&client).len(), 3);
    assert!(of_kind(written(&mut client, 2_000), Kind::History).is_empty());
}

#[test]
fn the_next_login_names_session_and_positions_and_takes_its_answer() {
    let mut client = in_sync();
    client.handle_frame(&Frame::from_message(Kind::Message, 0, &message(1)), 400).unwrap();
    client.handle_end(500);
    let login = client.login("pc");
    let place = SyncFrom { conversation_id: "p_1_2".into(), epoch: 5, seq: 1 };
    assert_eq!((login.resume_session_id, login.positions), (77, vec![place]));
    let reply = LoginReply { synced: vec![whole(&[2, 3], 3)], ..self::login(3) };
    client.handle_login(&reply, 600);
    assert_eq!(shown(&client).len(), 3);
    assert!(of_kind(written(&mut client, 1_500), Kind::Sync).is_empty());
}

#[test]
fn behind_is_followed_by_a_sync_after_a_wait() {
    let mut client = in_sync();
    let behind = Behind { spread_ms: 1_000, ..Behind::default() };
    client.handle_frame(&Frame::from_message(Kind::Behind, 0, &behind), 1_000).unwrap();
    let asks: usize = (1_000..2_100).map(|ms| of_kind(written(&mut client, ms), Kind::Sync).len()).sum();
    assert_eq!((asks, client.figures.behinds), (1, 1));
}

#[test]
fn a_receipt_is_repeated_until_it_is_acknowledged() {
    let mut client = client();
    client.handle_frame(&Frame::from_message(Kind::Message, 0, &message(1)), 10).unwrap();
    let receipt = of_kind(written(&mut client, 10), Kind::Receipt).remove(0);
    refuse(&mut client, &receipt, 1_001, 20);
    assert_eq!((client.seats[0].read_acked, client.seats[0].read_sent), (0, 1));
    let again = of_kind(written(&mut client, 2_500), Kind::Receipt).remove(0);
    let reply = Frame::from_message(Kind::ReceiptAck, again.head.correlation, &tidegate_proto::v1::ReceiptAck {});
    client.handle_frame(&reply, 2_510).unwrap();
    assert_eq!(client.seats[0].read_acked, 1);
    assert!(of_kind(written(&mut client, 9_000), Kind::Receipt).is_empty());
}

#[test]
fn a_server_that_answers_no_ping_is_given_up() {
    let mut client = client();
    let mut out = BytesMut::new();
    let mut given_up_ms = None;
    for now_ms in (0..10_000).step_by(100) {
        if client.poll(now_ms, &mut out) == Err(Ending::Silent) {
            given_up_ms = Some(now_ms);
            break;
        }
    }
    // A second of silence before the first of three pings, and a second after each.
    assert_eq!(given_up_ms, Some(4_000));
}
