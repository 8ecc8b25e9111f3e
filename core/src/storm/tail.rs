//! The tail: the newest messages of a conversation as one gateway answers pulls with them.
//!
//! In come messages in ascending order, a new tail comes out: it never changes, so that threads share it without a lock. Its
//! messages lie in chunks of some kilobytes, and an answer is a whole number of chunks. So there are a handful of different
//! answers, however many clients ask, and each is encoded and compressed once, when the first client wants it.
//!
//! Always: chunks follow each other without a gap; an answer holds no more than the rule's bytes, unless a single message
//! is larger, and says what is missing before it.

use std::collections::VecDeque;
use std::fmt;
use std::io::Write as _;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

use bytes::{BufMut as _, Bytes, BytesMut};
use prost::Message as _;
use prost::encoding::{WireType, encode_key, encode_varint};
use tidegate_proto::v1;

use super::rules::StormRule;
use crate::ids::{ConversationId, Epoch, Place, Seq};

/// Answers of a tail differ by where they begin; so many beginnings, and no more, so that all of them are few.
const CHUNKS_MAX: usize = 8;

/// The field `PullReply.messages`.
const MESSAGES_TAG: u32 = 8;

/// How an answer is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// An encoded `tidegate.v1.PullReply`.
    Protobuf,
    /// The same, compressed (RFC 1952).
    ProtobufGzip,
    /// JSON as the HTTP API writes it.
    Json,
    /// The same, compressed.
    JsonGzip,
}

impl Format {
    const COUNT: usize = 4;
}

/// Writes a reply as JSON; given by whoever owns the HTTP API's form.
pub type ToJson = fn(&v1::PullReply) -> Vec<u8>;

/// Answers by number, each made in each format when it is wanted first, and then the same for everybody.
#[derive(Debug)]
pub(super) struct Answers {
    made: Box<[[OnceLock<Bytes>; Format::COUNT]]>,
    to_json: ToJson,
}

impl Answers {
    /// So many, none of which is made yet.
    pub(super) fn new(count: usize, to_json: ToJson) -> Self {
        Self { made: (0..count).map(|_| Default::default()).collect(), to_json }
    }

    /// The answer of that number; `write` encodes its `PullReply`.
    pub(super) fn get(&self, number: usize, format: Format, write: impl FnOnce() -> Bytes) -> Bytes {
        let made = &self.made[number];
        let of = |format: Format| &made[format as usize];
        let plain = of(Format::Protobuf).get_or_init(write);
        let json = || {
            let reply = v1::PullReply::decode(plain.clone());
            Bytes::from((self.to_json)(&reply.unwrap_or_default()))
        };
        match format {
            Format::Protobuf => plain.clone(),
            Format::Json => of(format).get_or_init(json).clone(),
            Format::ProtobufGzip => of(format).get_or_init(|| gzip(plain)).clone(),
            Format::JsonGzip => of(format).get_or_init(|| gzip(of(Format::Json).get_or_init(json))).clone(),
        }
    }
}

/// Messages that follow each other.
#[derive(Debug)]
pub struct Chunk {
    first: Seq,
    last: Seq,
    /// Encoded `PullReply.messages` fields.
    fields: Bytes,
}

/// What an answer is about, besides its messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Heading {
    pub conversation: ConversationId,
    pub epoch: Epoch,
    pub latest: Seq,
    pub more: bool,
    pub gap: bool,
}

/// Names an answer among those to pulls of one kind of one conversation: equal names, equal bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tag {
    pub(super) epoch: Epoch,
    pub(super) first: Seq,
    pub(super) to: Seq,
    pub(super) latest: Seq,
    pub(super) is_partial: bool,
}

impl fmt::Display for Tag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { epoch, first, to, latest, is_partial } = self;
        let partial = if *is_partial { "p" } else { "" };
        write!(f, "{:x}.{:x}.{:x}.{:x}{partial}", epoch.0, first.0, to.0, latest.0)
    }
}

/// See the module.
#[derive(Debug)]
pub struct Tail {
    conversation: ConversationId,
    epoch: Epoch,
    latest: Seq,
    rule: Arc<StormRule>,
    chunks: VecDeque<Arc<Chunk>>,
    /// By where they begin: behind a gap, at each chunk, and nothing at all.
    answers: Answers,
}

/// A tail as shards hold it: what they are told of the gear may be overtaken by a tail that was fetched before, therefore
/// it lives no longer than the storm.
#[derive(Clone, Debug)]
pub struct LiveTail {
    /// What pulls are answered with.
    pub tail: Arc<Tail>,
    /// Until when.
    pub life: Life,
}

/// A conversation's time in signal gear, shared by all that must not outlive it.
#[derive(Clone, Debug, Default)]
pub struct Life(Arc<AtomicBool>);

impl Life {
    /// Whether the gear is another now.
    #[must_use]
    pub fn is_over(&self) -> bool {
        self.0.load(Ordering::Acquire)
    }

    pub(super) fn end(&self) {
        self.0.store(true, Ordering::Release);
    }
}

impl Tail {
    /// The tail of a conversation without messages that are known.
    #[must_use]
    pub fn new(conversation: ConversationId, end: Place, rule: Arc<StormRule>, to_json: ToJson) -> Self {
        Self::of(conversation, end, rule, VecDeque::new(), to_json)
    }

    fn of(
        conversation: ConversationId,
        end: Place,
        rule: Arc<StormRule>,
        chunks: VecDeque<Arc<Chunk>>,
        to_json: ToJson,
    ) -> Self {
        let answers = Answers::new(chunks.len() + 2, to_json);
        Self { conversation, epoch: end.epoch, latest: end.seq, rule, chunks, answers }
    }

    /// The tail with more messages: encoded `tidegate.v1.Message`s, the first of sequence `first`. Those that are there
    /// already are skipped; if there is a gap before them or the epoch is another, what was there is dropped.
    #[must_use]
    pub fn with(&self, epoch: Epoch, first: Seq, messages: &[Bytes]) -> Self {
        let follows = epoch == self.epoch && !self.chunks.is_empty() && first <= self.latest.next();
        let known = if follows { self.latest.next().0 - first.0 } else { 0 };
        let fresh = messages.get(usize::try_from(known).unwrap_or(usize::MAX)..).unwrap_or_default();
        let mut chunks = if follows { self.chunks.clone() } else { VecDeque::new() };
        let bytes_max = self.rule.pull_bytes_max();
        let chunk_bytes_max = (bytes_max / CHUNKS_MAX).max(1);
        // A small last chunk is written anew, so that chunks stay few at any rate.
        let small = chunks.pop_back_if(|chunk| !fresh.is_empty() && chunk.fields.len() < chunk_bytes_max / 2);
        chunks.extend(cut(small.as_deref(), Seq(first.0 + known), fresh, chunk_bytes_max));
        let latest = chunks.back().map_or(self.latest, |chunk| chunk.last);
        let mut bytes: usize = chunks.iter().map(|chunk| chunk.fields.len()).sum();
        while chunks.len() > 1 && (bytes > bytes_max || chunks.len() > 2 * CHUNKS_MAX) {
            bytes -= chunks.pop_front().map_or(0, |chunk| chunk.fields.len());
        }
        let end = Place { epoch, seq: latest };
        Self::of(self.conversation, end, Arc::clone(&self.rule), chunks, self.answers.to_json)
    }

    /// The newest message that is known.
    #[must_use]
    pub fn latest(&self) -> Place {
        Place { epoch: self.epoch, seq: self.latest }
    }

    /// The oldest message that is here.
    #[must_use]
    pub fn first(&self) -> Option<Seq> {
        self.chunks.front().map(|chunk| chunk.first)
    }

    /// Which of the answers is that for a client that has everything up to `after`: equal for all that get the same bytes.
    #[must_use]
    pub fn answer_for(&self, after: Option<Place>) -> usize {
        let is_known = |after: &Place| after.epoch == Epoch(0) || after.epoch == self.epoch;
        let Some(after) = after.filter(is_known) else {
            // Nothing is missing before what is there, as far as this client is concerned.
            return 1.min(self.chunks.len() + 1);
        };
        match self.chunks.front() {
            Some(first) if first.first > after.seq.next() => 0,
            _ => self.chunks.partition_point(|chunk| chunk.last <= after.seq) + 1,
        }
    }

    /// Whether the answer of that number holds messages.
    #[must_use]
    pub fn brings(&self, number: usize) -> bool {
        number <= self.chunks.len() && !self.chunks.is_empty()
    }

    /// The answer of that number.
    #[must_use]
    pub fn answer(&self, number: usize, format: Format) -> Bytes {
        self.answers.get(number, format, || {
            let chunks = self.chunks.iter().skip(number.saturating_sub(1)).map(|chunk| &**chunk);
            let Self { conversation, epoch, latest, .. } = *self;
            put_reply(Heading { conversation, epoch, latest, more: false, gap: number == 0 }, chunks)
        })
    }

    /// The rule of the conversation.
    #[must_use]
    pub fn rule(&self) -> &StormRule {
        &self.rule
    }

    /// The name of an answer.
    #[must_use]
    pub fn tag(&self, number: usize) -> Tag {
        let first = self.chunks.get(number.saturating_sub(1)).map_or(Seq(0), |chunk| chunk.first);
        Tag { epoch: self.epoch, first, to: self.latest, latest: self.latest, is_partial: number == 0 }
    }
}

/// Cuts messages that follow each other into chunks of about so many bytes; `first` is the sequence of the first. They follow
/// those of `before`, which is written anew with them.
pub(super) fn cut(before: Option<&Chunk>, first: Seq, messages: &[Bytes], chunk_bytes_max: usize) -> Vec<Arc<Chunk>> {
    let mut chunks = Vec::new();
    let mut fields = BytesMut::from(before.map_or(&[][..], |chunk| &chunk.fields));
    let mut begins = before.map_or(first, |chunk| chunk.first);
    for (seq, message) in (first.0..).map(Seq).zip(messages) {
        put_message(&mut fields, message);
        if fields.len() >= chunk_bytes_max {
            chunks.push(Arc::new(Chunk { first: begins, last: seq, fields: fields.split().freeze() }));
            begins = seq.next();
        }
    }
    if !fields.is_empty() {
        let last = Seq((first.0 + messages.len() as u64).saturating_sub(1));
        chunks.push(Arc::new(Chunk { first: begins, last, fields: fields.freeze() }));
    }
    chunks
}

impl Chunk {
    pub(super) fn first(&self) -> Seq {
        self.first
    }

    pub(super) fn last(&self) -> Seq {
        self.last
    }

    pub(super) fn len(&self) -> usize {
        self.fields.len()
    }
}

/// An encoded `PullReply`: its small fields, then the chunks as they are. Protobuf lets a message be put together so.
pub(super) fn put_reply<'a>(heading: Heading, chunks: impl Iterator<Item = &'a Chunk> + Clone) -> Bytes {
    let first = chunks.clone().next().map_or(Seq(0), |chunk| chunk.first);
    let last = chunks.clone().last().map_or(Seq(0), |chunk| chunk.last);
    let reply = v1::PullReply {
        conversation_id: heading.conversation.to_string(),
        epoch: heading.epoch.0,
        from_seq: first.0,
        to_seq: last.0,
        latest_seq: heading.latest.0,
        more: heading.more,
        gap: heading.gap,
        messages: Vec::new(),
    };
    let mut out = BytesMut::with_capacity(64 + chunks.clone().map(Chunk::len).sum::<usize>());
    reply.encode(&mut out).expect("BytesMut grows");
    chunks.for_each(|chunk| out.put_slice(&chunk.fields));
    out.freeze()
}

fn put_message(out: &mut BytesMut, message: &[u8]) {
    encode_key(MESSAGES_TAG, WireType::LengthDelimited, out);
    encode_varint(message.len() as u64, out);
    out.put_slice(message);
}

/// Compresses in the manner of RFC 1952, fast rather than small: the same bytes go to thousands of clients, but only for
/// some milliseconds.
pub(super) fn gzip(bytes: &[u8]) -> Bytes {
    let mut encoder =
        flate2::write::GzEncoder::new(Vec::with_capacity(bytes.len() / 2 + 64), flate2::Compression::fast());
    encoder.write_all(bytes).expect("a Vec takes everything");
    Bytes::from(encoder.finish().expect("a Vec takes everything"))
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;

    use super::*;

    fn message(seq: u64, body: usize) -> Bytes {
        let message = v1::Message { seq, body: vec![7; body].into(), ..Default::default() };
        Bytes::from(message.encode_to_vec())
    }

    fn messages(seqs: std::ops::RangeInclusive<u64>, body: usize) -> Vec<Bytes> {
        seqs.map(|seq| message(seq, body)).collect()
    }

    fn at(epoch: u32, seq: u64) -> Place {
        Place { epoch: Epoch(epoch), seq: Seq(seq) }
    }

    fn empty(latest: u64) -> Tail {
        let lobby = "lobby_main".parse().expect("a lobby");
        let rule = StormRule { watcher_bytes_per_s: 4096, ..StormRule::default() };
        Tail::new(lobby, at(1, latest), Arc::new(rule), |reply| format!("{{\"to\":{}}}", reply.to_seq).into_bytes())
    }

    fn pull(tail: &Tail, after: Option<Place>) -> v1::PullReply {
        let answer = tail.answer(tail.answer_for(after), Format::Protobuf);
        let reply = v1::PullReply::decode(answer).expect("our own bytes");
        let seqs: Vec<u64> = reply.messages.iter().map(|message| message.seq).collect();
        let expected: Vec<u64> = if reply.from_seq == 0 { vec![] } else { (reply.from_seq..=reply.to_seq).collect() };
        assert_eq!(seqs, expected);
        reply
    }

    #[test]
    fn everybody_gets_what_follows_its_place() {
        let mut tail = empty(0);
        for turn in 0..10 {
            tail = tail.with(Epoch(1), Seq(1 + turn * 10), &messages(1 + turn * 10..=10 + turn * 10, 20));
        }
        for after in 0..=100 {
            let reply = pull(&tail, Some(at(1, after)));
            assert_eq!((reply.latest_seq, reply.gap, reply.more), (100, false, false));
            if after == 100 {
                assert_eq!((reply.from_seq, reply.to_seq), (0, 0));
            } else {
                assert!(reply.from_seq <= after + 1 && reply.to_seq == 100, "{after}: {}", reply.from_seq);
            }
        }
    }

    #[test]
    fn an_answer_is_bounded_and_says_what_it_leaves_out() {
        let tail = empty(0).with(Epoch(1), Seq(1), &messages(1..=500, 100));
        let reply = pull(&tail, Some(at(1, 20)));
        assert!(reply.gap && reply.from_seq > 400 && reply.to_seq == 500, "{}", reply.from_seq);
        assert!(reply.encoded_len() <= 4096 + 64);
        let other_epoch = pull(&tail, Some(at(2, 490)));
        assert_eq!((other_epoch.gap, other_epoch.epoch, other_epoch.to_seq), (false, 1, 500));
        assert_eq!(pull(&tail, None).from_seq, other_epoch.from_seq);
        let large = tail.with(Epoch(1), Seq(501), &messages(501..=501, 16_000));
        assert_eq!(pull(&large, Some(at(1, 500))).to_seq, 501, "one that is larger than the bound goes alone");
    }

    #[test]
    fn repetitions_are_skipped_and_a_gap_or_an_epoch_begins_anew() {
        let tail = empty(4).with(Epoch(1), Seq(5), &messages(5..=9, 10));
        let again = tail.with(Epoch(1), Seq(7), &messages(7..=12, 10));
        assert_eq!((again.first(), again.latest().seq), (Some(Seq(5)), Seq(12)));
        let old = again.with(Epoch(1), Seq(5), &messages(5..=6, 10));
        assert_eq!((old.first(), old.latest().seq), (Some(Seq(5)), Seq(12)));
        let behind_a_gap = again.with(Epoch(1), Seq(20), &messages(20..=21, 10));
        assert_eq!((behind_a_gap.first(), pull(&behind_a_gap, Some(at(1, 12))).gap), (Some(Seq(20)), true));
        let anew = again.with(Epoch(2), Seq(3), &messages(3..=4, 10));
        assert_eq!((anew.first(), anew.latest()), (Some(Seq(3)), at(2, 4)));
    }

    #[test]
    fn answers_are_few_and_made_once() {
        let tail = empty(0).with(Epoch(1), Seq(1), &messages(1..=500, 100));
        let different: std::collections::BTreeSet<usize> =
            (0..=500).map(|after| tail.answer_for(Some(at(1, after)))).collect();
        assert!(different.len() <= 2 * CHUNKS_MAX + 2, "{different:?}");
        for format in [Format::Protobuf, Format::ProtobufGzip, Format::Json, Format::JsonGzip] {
            let (one, other) = (tail.answer(0, format), tail.answer(0, format));
            assert_eq!(one.as_ptr(), other.as_ptr(), "{format:?}");
        }
        let mut plain = Vec::new();
        let packed = tail.answer(0, Format::ProtobufGzip);
        flate2::read::GzDecoder::new(&packed[..]).read_to_end(&mut plain).expect("gzip");
        assert_eq!(plain, tail.answer(0, Format::Protobuf));
        assert_eq!(tail.answer(0, Format::Json), "{\"to\":500}");
    }
}
