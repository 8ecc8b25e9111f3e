//! Pages: the older messages of conversations, as this gateway answers pulls that fill a gap.
//!
//! In comes a place, out comes an answer that goes forward from there. After a storm thousands of clients want the same old
//! messages: a page is read from the archive once, encoded and compressed once, and shared by all. A page holds the messages
//! of a fixed range of sequences, so that clients at different places meet at the next page.
//!
//! Always: pages are bounded in bytes and forgotten the least recently used first; a page is read by one at a time, the
//! others wait for it.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use prost::Message as _;
use rustc_hash::FxHashMap;

use super::tail::{Answers, Chunk, Format, Heading, Tag, ToJson, cut, put_reply};
use crate::clock::Clock;
use crate::ids::{ConversationId, Epoch, Millis, Place, Seq};
use crate::ports::{Archive as _, Backend, Page as Part, PortResult};

/// Messages of one page.
const PAGE_MESSAGES: u32 = 256;

/// An answer begins at a chunk's beginning, so this is about what a client may get twice.
const CHUNK_BYTES_MAX: usize = 8 * 1024;

/// Bytes of all pages that are kept.
const PAGES_BYTES_MAX: usize = 64 * 1024 * 1024;

/// How long the newest page, to which messages are added, is believed to be as it was read.
const OPEN_PAGE_MS: u64 = 20;

/// How long a whole page is believed: an archive that went back gives its sequences to others.
const PAGE_MS: u64 = 30_000;

type Key = (ConversationId, u64);

/// See the module.
pub struct Pages<B, C> {
    backend: Arc<B>,
    clock: C,
    /// Bytes of messages in one answer at most, unless a single one is larger.
    answer_bytes_max: usize,
    to_json: ToJson,
    kept: Mutex<Kept>,
}

#[derive(Default)]
struct Kept {
    slots: FxHashMap<Key, Entry>,
    /// Keys by when they were used last.
    used: BTreeMap<u64, Key>,
    uses: u64,
    bytes: usize,
}

struct Entry {
    slot: Arc<Slot>,
    used: u64,
    bytes: usize,
}

/// Locked by whoever reads the page.
type Slot = tokio::sync::Mutex<Option<Arc<Page>>>;

struct Page {
    epoch: Epoch,
    latest: Seq,
    read_at: Millis,
    chunks: Vec<Arc<Chunk>>,
    /// By the chunk they begin with; first those with more behind them, then those without.
    answers: Answers,
}

/// An answer to a pull that fills a gap.
pub struct Filled {
    /// In the format asked for.
    pub body: Bytes,
    /// Of what is in it.
    pub epoch: Epoch,
    /// Names its bytes among those of the conversation.
    pub tag: Tag,
}

impl<B: Backend, C: Clock> Pages<B, C> {
    /// No page yet. Answers hold at most `answer_bytes_max` bytes of messages.
    pub fn new(backend: Arc<B>, clock: C, answer_bytes_max: usize, to_json: ToJson) -> Self {
        Self { backend, clock, answer_bytes_max, to_json, kept: Mutex::default() }
    }

    /// Messages from `after` on, oldest first, for a client that lacks those below `before`.
    ///
    /// # Errors
    /// The archive's.
    pub async fn fill(
        &self,
        conversation: ConversationId,
        after: Place,
        before: Seq,
        format: Format,
    ) -> PortResult<Filled> {
        let number = after.seq.0 / u64::from(PAGE_MESSAGES);
        let page = self.page((conversation, number), after, before).await?;
        let at = page.chunks.partition_point(|chunk| chunk.last() <= after.seq);
        let mut bytes = 0;
        let fits = |chunk: &&Arc<Chunk>| {
            bytes += chunk.len();
            bytes <= self.answer_bytes_max || bytes == chunk.len()
        };
        let count = page.chunks[at..].iter().take_while(fits).count();
        let chunks = page.chunks[at..at + count].iter().map(|chunk| &**chunk);
        let to = chunks.clone().next_back().map_or(Seq(0), Chunk::last);
        let more = to > Seq(0) && to.next() < before;
        let index = 2 * at + usize::from(!more);
        let heading = Heading { conversation, epoch: page.epoch, latest: page.latest, more, gap: false };
        let body = page.answers.get(index, format, || put_reply(heading, chunks));
        let tag = Tag {
            epoch: page.epoch,
            first: page.chunks.get(at).map_or(after.seq, |chunk| chunk.first()),
            to,
            latest: page.latest,
            is_partial: more,
        };
        Ok(Filled { body, epoch: page.epoch, tag })
    }

    async fn page(&self, key: Key, after: Place, before: Seq) -> PortResult<Arc<Page>> {
        let slot = self.lock().slot(key);
        let mut read = slot.lock().await;
        let now = self.clock.now();
        if let Some(page) = read.as_ref().filter(|page| page.is_right(key.1, now, after.epoch, before)) {
            return Ok(Arc::clone(page));
        }
        let page = Arc::new(self.read(key, now).await?);
        let bytes = page.chunks.iter().map(|chunk| chunk.len()).sum();
        *read = Some(Arc::clone(&page));
        self.lock().weigh(key, bytes);
        Ok(page)
    }

    async fn read(&self, (conversation, number): Key, now: Millis) -> PortResult<Page> {
        let archive = self.backend.archive();
        let after = Seq(number * u64::from(PAGE_MESSAGES));
        let conversations = [conversation];
        let history = archive.history(conversation, Part::After(after), PAGE_MESSAGES);
        let (stored, ends) = futures_util::future::try_join(history, archive.ends(&conversations)).await?;
        let (epoch, last) = ends.first().map_or((archive.epoch(), Seq(0)), |end| (end.epoch, end.last));
        let messages: Vec<Bytes> =
            stored.iter().map(|message| Bytes::from(message.to_wire(epoch).encode_to_vec())).collect();
        let chunks = cut(None, after.next(), &messages, CHUNK_BYTES_MAX);
        let latest = last.max(chunks.last().map_or(Seq(0), |chunk| chunk.last()));
        let answers = Answers::new(2 * (chunks.len() + 1), self.to_json);
        Ok(Page { epoch, latest, read_at: now, chunks, answers })
    }

    fn lock(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Page {
    /// Whether it can be believed to be what the archive has, as far as the asking client needs it.
    fn is_right(&self, number: u64, now: Millis, epoch: Epoch, before: Seq) -> bool {
        let age_ms = now.0.saturating_sub(self.read_at.0);
        let last = self.chunks.last().map_or(Seq(0), |chunk| chunk.last());
        let is_whole = last.0 == (number + 1) * u64::from(PAGE_MESSAGES);
        let is_enough = is_whole || last.next() >= before;
        let is_of_epoch = epoch == Epoch(0) || epoch == self.epoch;
        age_ms < if is_enough && is_of_epoch { PAGE_MS } else { OPEN_PAGE_MS }
    }
}

/// What a page costs besides its messages, also one that could not be read.
const REST_BYTES: usize = 512;

impl Kept {
    fn slot(&mut self, key: Key) -> Arc<Slot> {
        self.uses += 1;
        let used = self.uses;
        let bytes = &mut self.bytes;
        let kept = self.slots.entry(key).or_insert_with(|| {
            *bytes += REST_BYTES;
            Entry { slot: Arc::default(), used, bytes: REST_BYTES }
        });
        self.used.remove(&kept.used);
        kept.used = used;
        self.used.insert(used, key);
        let slot = Arc::clone(&kept.slot);
        self.trim();
        slot
    }

    fn weigh(&mut self, key: Key, bytes: usize) {
        if let Some(kept) = self.slots.get_mut(&key) {
            // Its answers in other formats beside the messages.
            self.bytes -= std::mem::replace(&mut kept.bytes, 3 * bytes + REST_BYTES);
            self.bytes += kept.bytes;
        }
        self.trim();
    }

    fn trim(&mut self) {
        while self.bytes > PAGES_BYTES_MAX && self.slots.len() > 1 {
            let Some((_, key)) = self.used.pop_first() else { return };
            self.bytes -= self.slots.remove(&key).map_or(0, |kept| kept.bytes);
        }
    }
}

#[cfg(test)]
mod tests;
