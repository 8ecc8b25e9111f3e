//! Unread counts and inboxes: what `file.lua`, `take_summary.lua`, `seed_unread.lua` and `set_unread.lua` take and return.
//!
//! Filings and counts of the port come in, packed and cut into calls of a bounded size; a summary goes out.
//!
//! What must hold: filings of one (user, conversation) reach Redis in order, so a call waits for the one before it. A
//! message for many inboxes travels once per call.

use bytes::Bytes;
use fred::interfaces::{KeysInterface, ListInterface};
use fred::types::{Key, Value};
use rustc_hash::FxHashMap;
use tidegate_core::ids::{ConversationId, UserId};
use tidegate_core::limits::{INBOX_MESSAGES_MAX, INBOX_TTL, UNREAD_SEEDING_TTL, UNREAD_TAIL_MAX, UNREAD_TTL};
use tidegate_core::ports::{Filing, PortResult, Seeding, Summary, UnreadCount};

use super::{CALL_KEYS_MAX, RedisHotStore, no_randomness, unexpected};

/// Bytes of distinct messages in one call of `file.lua`, give or take one filing: some milliseconds of Redis's time.
const CALL_BYTES_MAX: usize = 1024 * 1024;
/// Filings in one call; each has two or four keys.
const CALL_FILINGS_MAX: usize = 256;
/// Arguments of `file.lua` before the messages.
const FILE_ARGS: usize = 5;

impl RedisHotStore {
    pub(super) async fn file_all(&self, filings: &[Filing]) -> PortResult<()> {
        let mut call = FileCall::default();
        for filing in filings {
            call.add(self, filing);
            if call.filings == CALL_FILINGS_MAX || call.messages_bytes >= CALL_BYTES_MAX {
                self.file_call(std::mem::take(&mut call)).await?;
            }
        }
        if call.filings > 0 {
            self.file_call(call).await?;
        }
        Ok(())
    }

    async fn file_call(&self, call: FileCall) -> PortResult<()> {
        let mut args = vec![
            Value::Bytes(Bytes::from(call.packed)),
            Value::from(UNREAD_TAIL_MAX as i64),
            Value::from(UNREAD_TTL.as_secs() as i64),
            Value::from(INBOX_MESSAGES_MAX as i64),
            Value::from(INBOX_TTL.as_secs() as i64),
        ];
        debug_assert_eq!(args.len(), FILE_ARGS);
        args.extend(call.messages.into_iter().map(Value::Bytes));
        self.link.run(&self.scripts.file, call.keys, args).await.map(|_| ())
    }

    pub(super) async fn take(&self, user: UserId) -> PortResult<Summary> {
        let keys = vec![self.keys.unread_counts(user), self.keys.unread_tallies(user), self.keys.inbox(user)];
        let args = vec![
            Value::from(UNREAD_TTL.as_secs() as i64),
            Value::from(UNREAD_SEEDING_TTL.as_secs() as i64),
            // Random, because Redis forgets what a number would have to follow.
            seeding_arg(Seeding(getrandom::u64().map_err(|_| no_randomness())?)),
        ];
        let reply = self.link.run(&self.scripts.take_summary, keys, args).await?;
        read_summary(reply).ok_or_else(|| unexpected("take_summary"))
    }

    pub(super) async fn peek(&self, user: UserId, max: usize) -> PortResult<Vec<Bytes>> {
        // From -0 on would be all of it.
        let Some(newest) = i64::try_from(max).ok().filter(|max| *max > 0) else { return Ok(Vec::new()) };
        let key = self.keys.inbox(user);
        // As a plain value: see `states` in `tokens`.
        let reply: Value = self.link.call(async |within| within.client().lrange(key, -newest, -1).await).await?;
        let messages = match reply {
            Value::Array(messages) => messages,
            Value::Null => Vec::new(),
            message => vec![message],
        };
        let messages = messages.into_iter().map(Value::into_bytes).collect::<Option<_>>();
        messages.ok_or_else(|| unexpected("lrange"))
    }

    pub(super) async fn seed(&self, user: UserId, seeding: Seeding, counts: &[UnreadCount]) -> PortResult<()> {
        let mut packed = Vec::with_capacity(counts.len() * 44);
        counts.iter().for_each(|count| pack_count(&mut packed, count));
        let keys = vec![self.keys.unread_counts(user), self.keys.unread_tallies(user)];
        let args =
            vec![Value::Bytes(Bytes::from(packed)), Value::from(UNREAD_TTL.as_secs() as i64), seeding_arg(seeding)];
        self.link.run(&self.scripts.seed_unread, keys, args).await.map(|_| ())
    }

    pub(super) async fn set(&self, counts: &[(UserId, UnreadCount)]) -> PortResult<()> {
        for counts in counts.chunks(CALL_KEYS_MAX) {
            let mut keys = Vec::with_capacity(2 * counts.len());
            let mut packed = Vec::with_capacity(counts.len() * 44);
            for (user, count) in counts {
                keys.push(self.keys.unread_counts(*user));
                keys.push(self.keys.unread_tallies(*user));
                pack_count(&mut packed, count);
            }
            let args = vec![Value::Bytes(Bytes::from(packed))];
            self.link.run(&self.scripts.set_unread, keys, args).await?;
        }
        Ok(())
    }

    pub(super) async fn forget(&self, users: &[UserId]) -> PortResult<()> {
        for users in users.chunks(CALL_KEYS_MAX) {
            let of = |user: &UserId| {
                [self.keys.unread_counts(*user), self.keys.unread_tallies(*user), self.keys.inbox_guard(*user)]
            };
            let keys: Vec<Key> = users.iter().flat_map(of).collect();
            self.link.call(async |within| within.client().del::<(), _>(keys).await).await?;
        }
        Ok(())
    }
}

/// The arguments of one call of `file.lua`.
#[derive(Default)]
struct FileCall {
    keys: Vec<Key>,
    packed: Vec<u8>,
    filings: usize,
    messages: Vec<Bytes>,
    messages_bytes: usize,
    /// Where in ARGV a message is, by the address of its bytes: recipients of one message share them.
    places: FxHashMap<(usize, usize), u32>,
}

impl FileCall {
    fn add(&mut self, store: &RedisHotStore, filing: &Filing) {
        // Older ones would be cut off at once.
        let inbox = filing.seqs.iter().zip(&filing.inbox);
        let skipped = inbox.len().saturating_sub(INBOX_MESSAGES_MAX);
        self.keys.push(store.keys.unread_counts(filing.user));
        self.keys.push(store.keys.unread_tallies(filing.user));
        if inbox.len() > 0 {
            self.keys.push(store.keys.inbox(filing.user));
            self.keys.push(store.keys.inbox_guard(filing.user));
        }
        pack_conversation(&mut self.packed, &filing.conversation);
        pack_u32(&mut self.packed, filing.seqs.len());
        pack_u32(&mut self.packed, inbox.len() - skipped);
        for seq in &filing.seqs {
            self.packed.extend_from_slice(&seq.0.to_be_bytes());
        }
        for (seq, message) in inbox.skip(skipped) {
            self.packed.extend_from_slice(&seq.0.to_be_bytes());
            let place = self.place(message);
            self.packed.extend_from_slice(&place.to_be_bytes());
        }
        self.filings += 1;
    }

    /// Where in ARGV (counted from one, as Lua does) the message is.
    fn place(&mut self, message: &Bytes) -> u32 {
        // The message is kept in `messages`, so nothing else can come to lie at its address meanwhile.
        *self.places.entry((message.as_ptr().addr(), message.len())).or_insert_with(|| {
            self.messages_bytes += message.len();
            self.messages.push(message.clone());
            u32::try_from(FILE_ARGS + self.messages.len()).expect("bounded by CALL_FILINGS_MAX inboxes")
        })
    }
}

fn pack_count(packed: &mut Vec<u8>, count: &UnreadCount) {
    pack_conversation(packed, &count.conversation);
    packed.extend_from_slice(&count.unread.to_be_bytes());
    packed.extend_from_slice(&count.counted_to.0.to_be_bytes());
}

fn pack_conversation(packed: &mut Vec<u8>, conversation: &ConversationId) {
    let text = conversation.to_string();
    packed.push(u8::try_from(text.len()).expect("a conversation's text has at most 42 bytes"));
    packed.extend_from_slice(text.as_bytes());
}

fn pack_u32(packed: &mut Vec<u8>, number: usize) {
    packed.extend_from_slice(&u32::try_from(number).expect("a batch is far below 2^32").to_be_bytes());
}

/// As text: Lua's numbers are no u64.
fn seeding_arg(seeding: Seeding) -> Value {
    Value::from(seeding.0.to_string())
}

/// `None` if the reply is not of the form the script promises. A conversation that is none is left out.
fn read_summary(reply: Value) -> Option<Summary> {
    let Value::Array(parts) = reply else { return None };
    let [state, Value::Array(counts), Value::Array(messages)] = <[Value; 3]>::try_from(parts).ok()? else {
        return None;
    };
    let unread = match state.as_str()?.as_ref() {
        "known" => Ok(counts.chunks_exact(2).filter_map(read_count).collect()),
        seeding => Err(Seeding(seeding.parse().ok()?)),
    };
    let inbox = messages.into_iter().map(Value::into_bytes).collect::<Option<_>>()?;
    Some(Summary { unread, inbox })
}

fn read_count(pair: &[Value]) -> Option<(ConversationId, u32)> {
    let [conversation, count] = pair else { return None };
    Some((conversation.as_str()?.parse().ok()?, u32::try_from(count.as_i64()?).ok()?))
}
