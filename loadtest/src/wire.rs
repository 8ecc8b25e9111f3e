//! The wire's hot paths, by hand: what is sent or received once per message.
//!
//! In: payload bytes of a `Message` or `SendAck`; out: borrowed views of the few fields the judge looks at. In: a
//! message's coordinates; out: its `Send` frame, copied from a template. Everything that is not hot goes through prost.
//!
//! The views agree with prost on every valid payload (tested), and no payload makes them panic.

use bytes::{Bytes, BytesMut};
use tidegate_proto::v1::{ContentType, Send};
use tidegate_proto::{HEAD_BYTES, Kind, frame};

/// Where a message came from and when it was due. It travels in the body, so that a receiver needs no shared map to
/// tell how long the message took.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stamp {
    /// Tells apart messages of two runs.
    pub run: u32,
    /// Index of the conversation within the run.
    pub conversation: u32,
    /// Index of the sender among the conversation's members.
    pub member: u32,
    /// 0, 1, 2 ... per sender.
    pub counter: u32,
    /// When the schedule wanted it sent, on the generator's clock.
    pub intended_ns: u64,
}

/// Bytes of a stamp; the smallest body.
pub const STAMP_BYTES: usize = 24;

/// Bytes of the `client_msg_id` we send: the stamp without its time.
const CLIENT_MSG_ID_BYTES: usize = 16;

impl Stamp {
    /// As it stands at the front of a body.
    pub fn encode(self) -> [u8; STAMP_BYTES] {
        let mut bytes = [0; STAMP_BYTES];
        bytes[..4].copy_from_slice(&self.run.to_be_bytes());
        bytes[4..8].copy_from_slice(&self.conversation.to_be_bytes());
        bytes[8..12].copy_from_slice(&self.member.to_be_bytes());
        bytes[12..16].copy_from_slice(&self.counter.to_be_bytes());
        bytes[16..].copy_from_slice(&self.intended_ns.to_be_bytes());
        bytes
    }

    /// Reads the stamp of a body; `None` if the body is too short to be one of ours.
    pub fn parse(body: &[u8]) -> Option<Self> {
        let word = |at: usize| Some(u32::from_be_bytes(*body.get(at..)?.first_chunk()?));
        Some(Self {
            run: word(0)?,
            conversation: word(4)?,
            member: word(8)?,
            counter: word(12)?,
            intended_ns: u64::from_be_bytes(*body.get(16..)?.first_chunk()?),
        })
    }
}

/// A sender's `Send` frame with holes for what differs from message to message.
#[derive(Debug)]
pub struct SendTemplate {
    frame: Bytes,
    client_msg_id_at: usize,
    body_at: usize,
}

impl SendTemplate {
    /// A template for messages of `filler.len()` bytes, whose first [`STAMP_BYTES`] the stamp overwrites.
    pub fn new(conversation_id: &str, filler: &[u8]) -> Self {
        assert!(filler.len() >= STAMP_BYTES, "the option --body-bytes has this lower bound");
        let send = Send {
            conversation_id: conversation_id.to_owned(),
            client_msg_id: Bytes::from_static(&[0xff; CLIENT_MSG_ID_BYTES]),
            content_type: ContentType::Binary.into(),
            body: Bytes::copy_from_slice(filler),
        };
        let mut out = BytesMut::new();
        frame::put_message(&mut out, Kind::Send, 0, &send);
        // Protobuf writes fields in the order of their numbers, so the body is last and the id is second:
        // tag, length, id, tag and value of the content type, tag and length of the body, body.
        let body_at = out.len() - filler.len();
        let client_msg_id_at =
            HEAD_BYTES + 1 + prost::length_delimiter_len(conversation_id.len()) + conversation_id.len() + 2;
        Self { frame: out.freeze(), client_msg_id_at, body_at }
    }

    /// Appends the frame of one message.
    pub fn put(&self, out: &mut Vec<u8>, correlation: u16, stamp: Stamp) {
        let start = out.len();
        out.extend_from_slice(&self.frame);
        let frame = &mut out[start..];
        let stamp = stamp.encode();
        frame[2..4].copy_from_slice(&correlation.to_be_bytes());
        frame[self.client_msg_id_at..][..CLIENT_MSG_ID_BYTES].copy_from_slice(&stamp[..CLIENT_MSG_ID_BYTES]);
        frame[self.body_at..][..STAMP_BYTES].copy_from_slice(&stamp);
    }
}

/// Appends the frame of a `Pull`: what comes after `after_seq`, below `before_seq` unless that is 0.
pub fn put_pull(out: &mut Vec<u8>, correlation: u16, lobby: &str, epoch: u32, after_seq: u64, before_seq: u64) {
    let start = out.len();
    out.extend_from_slice(&[Kind::Pull as i32 as u8, 0]);
    out.extend_from_slice(&correlation.to_be_bytes());
    out.extend_from_slice(&[0; 4]);
    out.push(0x0a);
    put_varint(out, lobby.len() as u64);
    out.extend_from_slice(lobby.as_bytes());
    if epoch != 0 {
        out.push(0x10);
        put_varint(out, u64::from(epoch));
    }
    out.push(0x18);
    put_varint(out, after_seq);
    if before_seq != 0 {
        out.push(0x20);
        put_varint(out, before_seq);
    }
    let payload_bytes = u32::try_from(out.len() - start - HEAD_BYTES).expect("a pull is short");
    out[start + 4..start + HEAD_BYTES].copy_from_slice(&payload_bytes.to_be_bytes());
}

fn put_varint(out: &mut Vec<u8>, mut value: u64) {
    while value > 0x7f {
        out.push(value.to_le_bytes()[0] | 0x80);
        value >>= 7;
    }
    out.push(value.to_le_bytes()[0]);
}

/// What the judge looks at in a `Message` push.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MessageView<'a> {
    /// Field 1.
    pub conversation_id: &'a [u8],
    /// Field 2.
    pub seq: u64,
    /// Field 3.
    pub epoch: u32,
    /// Field 4.
    pub message_id: &'a [u8],
    /// Field 5.
    pub sender_id: u64,
    /// Field 8.
    pub body: &'a [u8],
}

impl<'a> MessageView<'a> {
    /// Scans a payload; `None` if it is not valid Protobuf.
    pub fn scan(payload: &'a [u8]) -> Option<Self> {
        let mut view = Self::default();
        let mut fields = Fields(payload);
        while !fields.0.is_empty() {
            match fields.next()? {
                (1, Value::Bytes(bytes)) => view.conversation_id = bytes,
                (2, Value::Varint(seq)) => view.seq = seq,
                // A uint32 takes the low bits of its varint, as every Protobuf decoder does.
                #[allow(clippy::cast_possible_truncation)]
                (3, Value::Varint(epoch)) => view.epoch = epoch as u32,
                (4, Value::Bytes(bytes)) => view.message_id = bytes,
                (5, Value::Varint(sender_id)) => view.sender_id = sender_id,
                (8, Value::Bytes(bytes)) => view.body = bytes,
                _ => {}
            }
        }
        Some(view)
    }
}

/// Calls `take` for each `Message` of a `repeated Message` field that fills `payload`, whatever the field's number. False
/// if something in it cannot be read.
pub fn each_message<'a>(payload: &'a [u8], mut take: impl FnMut(&MessageView<'a>)) -> bool {
    let mut fields = Fields(payload);
    while !fields.0.is_empty() {
        let Some((_, Value::Bytes(bytes))) = fields.next() else { return false };
        let Some(view) = MessageView::scan(bytes) else { return false };
        take(&view);
    }
    true
}

/// What a `PullReply` says of itself, and its messages still encoded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PullView<'a> {
    /// Field 1.
    pub conversation_id: &'a [u8],
    /// Field 2.
    pub epoch: u32,
    /// Field 3.
    pub from_seq: u64,
    /// Field 4.
    pub to_seq: u64,
    /// Field 5.
    pub latest_seq: u64,
    /// Field 6.
    pub more: bool,
    /// Field 7.
    pub gap: bool,
    /// Field 8: from the first message to the end. Other fields after it make it unreadable; nobody writes them there.
    pub messages: &'a [u8],
}

impl<'a> PullView<'a> {
    /// Scans a payload up to its messages; `None` if it is not valid.
    pub fn scan(payload: &'a [u8]) -> Option<Self> {
        let mut view = Self::default();
        let mut fields = Fields(payload);
        while !fields.0.is_empty() {
            let rest = fields.0;
            match fields.next()? {
                (1, Value::Bytes(bytes)) => view.conversation_id = bytes,
                #[allow(clippy::cast_possible_truncation)]
                (2, Value::Varint(epoch)) => view.epoch = epoch as u32,
                (3, Value::Varint(seq)) => view.from_seq = seq,
                (4, Value::Varint(seq)) => view.to_seq = seq,
                (5, Value::Varint(seq)) => view.latest_seq = seq,
                (6, Value::Varint(more)) => view.more = more != 0,
                (7, Value::Varint(gap)) => view.gap = gap != 0,
                (8, Value::Bytes(_)) => {
                    view.messages = rest;
                    break;
                }
                _ => {}
            }
        }
        Some(view)
    }
}

/// The message id of a `SendAck`; `None` if the payload is not valid or the id has not 16 bytes.
pub fn scan_send_ack(payload: &[u8]) -> Option<[u8; 16]> {
    let mut message_id = None;
    let mut fields = Fields(payload);
    while !fields.0.is_empty() {
        if let (1, Value::Bytes(bytes)) = fields.next()? {
            message_id = bytes.try_into().ok();
        }
    }
    message_id
}

enum Value<'a> {
    Varint(u64),
    Bytes(&'a [u8]),
    Fixed,
}

/// The rest of a Protobuf payload.
struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    #[inline]
    fn next(&mut self) -> Option<(u32, Value<'a>)> {
        let tag = u32::try_from(self.varint()?).ok()?;
        let number = tag >> 3;
        let value = match tag & 7 {
            0 => Value::Varint(self.varint()?),
            1 => self.take(8).map(|_| Value::Fixed)?,
            2 => {
                let len = usize::try_from(self.varint()?).ok()?;
                Value::Bytes(self.take(len)?)
            }
            5 => self.take(4).map(|_| Value::Fixed)?,
            _ => return None,
        };
        (number != 0).then_some((number, value))
    }

    #[inline]
    fn varint(&mut self) -> Option<u64> {
        let mut value = 0u64;
        for (index, byte) in self.0.iter().take(10).enumerate() {
            if index == 9 && *byte > 1 {
                return None;
            }
            value |= u64::from(byte & 0x7f) << (7 * index);
            if byte & 0x80 == 0 {
                self.0 = &self.0[index + 1..];
                return Some(value);
            }
        }
        None
    }

    #[inline]
    fn take(&mut self, len: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(len)?;
        self.0 = rest;
        Some(taken)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pacer::Random;
    use prost::Message as _;
    use tidegate_proto::v1::{Message, Pull, PullReply, SendAck};

    #[test]
    fn a_template_gives_the_frame_prost_would_give() {
        let mut filler = vec![7; 300];
        for id in ["p_1_2", "r_77", "lobby-with-a-rather-long-name"] {
            let template = SendTemplate::new(id, &filler);
            let stamp = Stamp { run: 1, conversation: 2, member: 3, counter: 4, intended_ns: u64::MAX - 5 };
            let mut out = b"before".to_vec();
            template.put(&mut out, 777, stamp);
            filler[..STAMP_BYTES].copy_from_slice(&stamp.encode());
            let mut expected = BytesMut::from(&b"before"[..]);
            let send = Send {
                conversation_id: id.to_owned(),
                client_msg_id: Bytes::copy_from_slice(&stamp.encode()[..16]),
                content_type: ContentType::Binary.into(),
                body: Bytes::copy_from_slice(&filler),
            };
            frame::put_message(&mut expected, Kind::Send, 777, &send);
            assert_eq!(out, expected);
            assert_eq!(Stamp::parse(&filler), Some(stamp));
        }
    }

    #[test]
    fn the_scanner_agrees_with_prost_on_random_messages() {
        let mut random = Random::new(1);
        for _ in 0..2_000 {
            let bits = |random: &mut Random| {
                let shift = random.next() % 64;
                random.next() >> shift
            };
            let message = Message {
                conversation_id: format!("p_{}_{}", bits(&mut random), bits(&mut random)),
                seq: bits(&mut random),
                epoch: bits(&mut random) as u32,
                message_id: Bytes::from(vec![random.next() as u8; random.next() as usize % 20]),
                sender_id: bits(&mut random),
                sent_at_ms: bits(&mut random),
                content_type: (random.next() % 3) as i32,
                body: Bytes::from(vec![random.next() as u8; random.next() as usize % 400]),
            };
            let payload = message.encode_to_vec();
            let view = MessageView::scan(&payload).expect("prost encoded it");
            assert_eq!(view.conversation_id, message.conversation_id.as_bytes());
            assert_eq!((view.seq, view.epoch, view.sender_id), (message.seq, message.epoch, message.sender_id));
            assert_eq!((view.message_id, view.body), (&message.message_id[..], &message.body[..]));

            let ack =
                SendAck { message_id: Bytes::from(vec![random.next() as u8; 16]), accepted_at_ms: bits(&mut random) };
            assert_eq!(scan_send_ack(&ack.encode_to_vec()).expect("16 bytes"), ack.message_id[..]);
        }
    }

    #[test]
    fn a_pull_is_the_frame_prost_would_give() {
        for (epoch, after_seq, before_seq) in [(0, 0, 0), (1, 127, 128), (u32::MAX, 41, 1 << 40)] {
            let mut out = b"before".to_vec();
            put_pull(&mut out, 65_535, "lobby_main", epoch, after_seq, before_seq);
            let pull = Pull { conversation_id: "lobby_main".to_owned(), epoch, after_seq: Some(after_seq), before_seq };
            let mut expected = BytesMut::from(&b"before"[..]);
            frame::put_message(&mut expected, Kind::Pull, 65_535, &pull);
            assert_eq!(out, expected);
        }
    }

    #[test]
    fn a_pull_reply_is_read_as_prost_reads_it() {
        let message = |seq| Message { seq, epoch: 3, body: vec![1; 40].into(), ..Message::default() };
        for messages in [vec![], vec![message(7), message(8)]] {
            let reply = PullReply {
                conversation_id: "lobby_main".into(),
                epoch: 3,
                from_seq: 7,
                to_seq: 8,
                latest_seq: 900,
                more: true,
                gap: true,
                messages: messages.clone(),
            };
            let payload = reply.encode_to_vec();
            let view = PullView::scan(&payload).expect("prost encoded it");
            assert_eq!((view.conversation_id, view.epoch), (&b"lobby_main"[..], 3));
            assert_eq!((view.from_seq, view.to_seq, view.latest_seq, view.more, view.gap), (7, 8, 900, true, true));
            let mut seqs = Vec::new();
            assert!(each_message(view.messages, |view| seqs.push(view.seq)));
            assert_eq!(seqs, messages.iter().map(|message| message.seq).collect::<Vec<_>>());
        }
        assert!(!each_message(&[0x42, 9, 1], |_| {}));
    }

    #[test]
    fn broken_payloads_are_refused_where_prost_refuses_them_and_never_panic() {
        let mut random = Random::new(2);
        let message =
            Message { conversation_id: "p_1_2".into(), seq: 300, body: vec![1; 40].into(), ..Message::default() };
        let whole = message.encode_to_vec();
        for _ in 0..20_000 {
            let mut payload = whole[..random.next() as usize % (whole.len() + 1)].to_vec();
            for _ in 0..random.next() % 3 {
                if let Some(len) = payload.len().checked_sub(1) {
                    payload[random.next() as usize % (len + 1)] = random.next() as u8;
                }
            }
            if let Ok(message) = Message::decode(&payload[..]) {
                // A group is legal Protobuf that no Tidegate message has; the scanner refuses it.
                if let Some(view) = MessageView::scan(&payload) {
                    assert_eq!((view.seq, view.body), (message.seq, &message.body[..]));
                }
            }
            let _ = scan_send_ack(&payload);
        }
    }
}
