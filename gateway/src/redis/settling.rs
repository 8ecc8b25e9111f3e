//! How far the archive is, and lobby caches: what `settle.lua` and `read_cache.lua` take and return.
//!
//! Ends and runs of the port come in, packed and, if they are large, cut into calls of a bounded size; a slice of a cache goes
//! out.
//!
//! What must hold: messages of one conversation reach Redis in order, so a call waits for the one before it.

use std::time::Duration;

use bytes::Bytes;
use fred::types::{Key, Value};
use tidegate_core::ids::{ConversationId, Epoch, Place, Seq};
use tidegate_core::ports::{CacheRun, CacheSlice, End, PortResult};

use super::sequences::pack;
use super::{RedisHotStore, millis, unexpected};

/// Bytes of messages in one call of `settle.lua`: some milliseconds of Redis's time.
const CALL_BYTES_MAX: usize = 1024 * 1024;

impl RedisHotStore {
    pub(super) async fn keep(&self, ends: &[(ConversationId, End)], cached: &[CacheRun]) -> PortResult<()> {
        let mut call = SettleCall::default();
        for (conversation, end) in ends {
            call.keys.push(self.keys.kept(conversation));
            pack(&mut call.ends, *end);
        }
        for run in cached {
            let mut rest = &run.messages[..];
            while let Some((first, _)) = rest.first() {
                let (part, others) = rest.split_at(call.room_for(rest));
                if part.is_empty() {
                    self.settle_call(std::mem::take(&mut call)).await?;
                    continue;
                }
                call.keys.push(self.keys.cache(&run.conversation));
                call.keys.push(self.keys.cache_lots(&run.conversation));
                call.add(run, *first, part);
                rest = others;
            }
        }
        self.settle_call(call).await
    }

    async fn settle_call(&self, call: SettleCall) -> PortResult<()> {
        let mut args = Vec::with_capacity(2 + call.messages.len());
        args.extend([call.ends, call.runs].map(|packed| Value::Bytes(Bytes::from(packed))));
        args.extend(call.messages.into_iter().map(Value::Bytes));
        self.link.run(&self.scripts.settle, call.keys, args).await.map(|_| ())
    }

    pub(super) async fn slice(
        &self,
        conversation: ConversationId,
        after: Option<Place>,
        messages_max: usize,
        bytes_max: usize,
    ) -> PortResult<CacheSlice> {
        let keys = vec![self.keys.cache(&conversation), self.keys.cache_lots(&conversation)];
        // No cache is of epoch zero.
        let after = after.unwrap_or(Place { epoch: Epoch(0), seq: Seq(0) });
        let bound = |max: usize| i64::from(u32::try_from(max).unwrap_or(u32::MAX));
        let seq = i64::try_from(after.seq.0).unwrap_or(i64::MAX);
        let args = [i64::from(after.epoch.0), seq, bound(messages_max), bound(bytes_max)].map(Value::from);
        let reply = self.link.run(&self.scripts.read_cache, keys, args.into()).await?;
        read_slice(reply).ok_or_else(|| unexpected("read_cache"))
    }
}

/// The keys and arguments of one call of `settle.lua`.
#[derive(Default)]
struct SettleCall {
    keys: Vec<Key>,
    ends: Vec<u8>,
    runs: Vec<u8>,
    messages: Vec<Bytes>,
    messages_bytes: usize,
}

impl SettleCall {
    /// How many of the messages fit, from the first on; at least one if there are none yet.
    fn room_for(&self, messages: &[(Seq, Bytes)]) -> usize {
        let mut bytes = self.messages_bytes;
        let fits = |(_, message): &&(Seq, Bytes)| {
            bytes += message.len();
            bytes <= CALL_BYTES_MAX
        };
        messages.iter().take_while(fits).count().max(usize::from(self.messages.is_empty()))
    }

    /// Adds messages of a run, of which `first` is the first one's sequence.
    fn add(&mut self, run: &CacheRun, first: Seq, messages: &[(Seq, Bytes)]) {
        self.runs.extend_from_slice(&run.epoch.0.to_be_bytes());
        self.runs.extend_from_slice(&first.0.to_be_bytes());
        let count = u32::try_from(messages.len()).expect("bounded by CALL_BYTES_MAX, and no message is empty");
        for number in [count, run.messages_max, run.bytes_max, keep_ms(run.keep_for)] {
            self.runs.extend_from_slice(&number.to_be_bytes());
        }
        for (_, message) in messages {
            self.messages_bytes += message.len();
            self.messages.push(message.clone());
        }
    }
}

/// A time to live of at least a millisecond and at most 49 days.
fn keep_ms(keep_for: Duration) -> u32 {
    u32::try_from(millis(keep_for)).unwrap_or(u32::MAX)
}

/// `None` if the reply is not of the form the script promises.
fn read_slice(reply: Value) -> Option<CacheSlice> {
    let Value::Array(parts) = reply else { return None };
    let mut parts = parts.into_iter();
    let mut number = || parts.next().and_then(|part| u64::try_from(part.as_i64()?).ok());
    let (epoch, first) = (Epoch(u32::try_from(number()?).ok()?), Seq(number()?));
    let messages = parts.map(Value::into_bytes).collect::<Option<_>>()?;
    Some(CacheSlice { epoch, first, messages })
}
