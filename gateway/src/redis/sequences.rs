//! Sequences: what `sequence.lua` takes and returns.
//!
//! Runs of the port come in, one grant per run goes out; in between they are packed, so that a batch is one
//! argument and, mostly, one integer per conversation.

use bytes::Bytes;
use fred::types::Value;
use tidegate_core::ids::{Epoch, Seq};
use tidegate_core::ports::{End, PortResult, SequenceGrant, SequenceRun};

use super::{RedisHotStore, unexpected};

/// The answer "the archive was further".
const DISCONTINUOUS: u64 = 0;

impl RedisHotStore {
    pub(super) async fn give(&self, runs: &[SequenceRun]) -> PortResult<Vec<SequenceGrant>> {
        let mut packed = Vec::with_capacity(runs.len() * 16);
        for run in runs {
            packed.extend_from_slice(&run.count.to_be_bytes());
            pack(&mut packed, run.end);
        }
        let counters = runs.iter().map(|run| self.keys.sequence(&run.conversation));
        let kept = runs.iter().map(|run| self.keys.kept(&run.conversation));
        let args = vec![Value::Bytes(Bytes::from(packed))];
        let reply = self.link.run(&self.scripts.sequence, counters.chain(kept).collect(), args).await?;
        read_grants(runs.len(), &reply).ok_or_else(|| unexpected("sequence"))
    }
}

/// As the scripts read an end: epoch (u32), sequence (i64), big-endian.
pub(super) fn pack(packed: &mut Vec<u8>, end: End) {
    packed.extend_from_slice(&end.epoch.0.to_be_bytes());
    packed.extend_from_slice(&i64::try_from(end.last.0).unwrap_or(i64::MAX).to_be_bytes());
}

/// `None` if the reply is not of the form the script promises.
fn read_grants(runs: usize, reply: &Value) -> Option<Vec<SequenceGrant>> {
    let Value::Array(values) = reply else { return None };
    let mut integers = values.iter().map(|value| value.as_i64().and_then(|integer| u64::try_from(integer).ok()));
    let mut next = || integers.next().flatten();
    let grants = (0..runs).map(|_| {
        Some(match next()? {
            DISCONTINUOUS => {
                let kept = End { epoch: Epoch(u32::try_from(next()?).ok()?), last: Seq(next()?) };
                SequenceGrant::Discontinuous { kept }
            }
            first => SequenceGrant::Given(Seq(first)),
        })
    });
    grants.collect()
}
