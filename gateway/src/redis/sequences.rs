//! Sequences: what `sequence.lua` takes and returns.
//!
//! A request of the port comes in, one grant per run goes out; in between both are packed, because a batch of 512 messages
//! is then three arguments and, mostly, one integer per conversation.

use bytes::Bytes;
use fred::types::Value;
use tidegate_core::ids::{MessageId, Partition, Seq};
use tidegate_core::ports::{PortResult, SequenceGrant, SequenceRequest, SequenceRun};

use super::{RedisHotStore, unexpected};

/// A run whose floor nobody named, on the wire.
const NO_FLOOR: i64 = -1;
/// The answer "a floor is needed".
const FLOOR_NEEDED: i64 = -1;
/// The answer "the sequences follow one by one".
const SCATTERED: i64 = 0;

impl RedisHotStore {
    pub(super) async fn give(&self, partition: Partition, request: SequenceRequest) -> PortResult<Vec<SequenceGrant>> {
        let SequenceRequest { runs, settled } = request;
        let mut keys = Vec::with_capacity(1 + runs.len());
        keys.push(self.keys.pending(partition));
        keys.extend(runs.iter().map(|run| self.keys.sequence(&run.conversation)));
        let args = vec![pack_ids(&[&settled]), pack_ids_of(&runs), pack_runs(&runs)];
        let reply = self.link.run(&self.scripts.sequence, keys, args).await?;
        read_grants(&runs, &reply).ok_or_else(|| unexpected("sequence"))
    }
}

fn pack_ids(lists: &[&[MessageId]]) -> Value {
    let count: usize = lists.iter().map(|list| list.len()).sum();
    let mut packed = Vec::with_capacity(count * 16);
    for id in lists.iter().copied().flatten() {
        packed.extend_from_slice(&id.0);
    }
    Value::Bytes(Bytes::from(packed))
}

fn pack_ids_of(runs: &[SequenceRun]) -> Value {
    let lists: Vec<&[MessageId]> = runs.iter().map(|run| run.messages.as_slice()).collect();
    pack_ids(&lists)
}

fn pack_runs(runs: &[SequenceRun]) -> Value {
    let mut packed = Vec::with_capacity(runs.len() * 12);
    for run in runs {
        let count = u32::try_from(run.messages.len()).expect("a batch is far below 2^32 messages");
        let floor = run.floor.map_or(NO_FLOOR, |floor| i64::try_from(floor.0).unwrap_or(i64::MAX));
        packed.extend_from_slice(&count.to_be_bytes());
        packed.extend_from_slice(&floor.to_be_bytes());
    }
    Value::Bytes(Bytes::from(packed))
}

/// `None` if the reply is not of the form the script promises.
fn read_grants(runs: &[SequenceRun], reply: &Value) -> Option<Vec<SequenceGrant>> {
    let Value::Array(values) = reply else { return None };
    let mut integers = values.iter().map(Value::as_i64);
    let mut next = || integers.next().flatten();
    let mut grants = Vec::with_capacity(runs.len());
    for run in runs {
        let count = run.messages.len();
        grants.push(match next()? {
            FLOOR_NEEDED => SequenceGrant::FloorNeeded,
            SCATTERED => {
                let seqs = (0..count).map(|_| u64::try_from(next()?).ok().map(Seq));
                SequenceGrant::Given(seqs.collect::<Option<_>>()?)
            }
            first => {
                let first = u64::try_from(first).ok()?;
                SequenceGrant::Given((first..first.checked_add(count as u64)?).map(Seq).collect())
            }
        });
    }
    Some(grants)
}
