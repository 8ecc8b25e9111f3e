//! A lobby over the in-process twins, for tests of what pulls are answered with. Time passes when the test says so.

use std::ops::RangeInclusive;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use prost::Message as _;
use tidegate_proto::v1;

use crate::delivery::{Mailboxes, ShardId, ShardInput};
use crate::event::StoredMessage;
use crate::ids::{ConversationId, Epoch, MessageId, Millis, Place, Seq, UserId};
pub(crate) use crate::ingest::testing::{Fate, ManualClock};
use crate::ports::{Archive as _, Backend as _, CacheRun, End, HotStore as _, PersistBatch};

pub(crate) type World = crate::ingest::testing::World<ManualClock>;

/// What shards are given.
#[derive(Clone, Default)]
pub(crate) struct Posts(Arc<Mutex<Vec<(ShardId, ShardInput)>>>);

impl Posts {
    /// Since the last look.
    pub(crate) fn take(&self) -> Vec<(ShardId, ShardInput)> {
        std::mem::take(&mut *self.0.lock().expect("no test panics here"))
    }
}

impl Mailboxes for Posts {
    fn shards(&self) -> u8 {
        4
    }

    async fn post(&self, shard: ShardId, inputs: Vec<ShardInput>) {
        self.0.lock().expect("no test panics here").extend(inputs.into_iter().map(|input| (shard, input)));
    }
}

/// When the tests begin.
pub(crate) const NOW_MS: u64 = 1_700_000_000_000;

pub(crate) fn lobby() -> ConversationId {
    "lobby_main".parse().expect("a lobby")
}

/// The place of a sequence in the epoch that the archive begins with.
pub(crate) fn at(seq: u64) -> Place {
    Place { epoch: Epoch(100), seq: Seq(seq) }
}

fn message(seq: u64) -> StoredMessage {
    let mut id = [0; 16];
    id[..8].copy_from_slice(&seq.to_be_bytes());
    StoredMessage {
        conversation: lobby(),
        seq: Seq(seq),
        message_id: MessageId(id),
        sender: UserId(7),
        sent_at: Millis(NOW_MS),
        content_type: v1::ContentType::Text,
        body: Bytes::from_static(b"hello"),
    }
}

/// The archive has them.
pub(crate) async fn store(world: &World, seqs: RangeInclusive<u64>) {
    let batch = PersistBatch { messages: seqs.map(message).collect(), receipts: Vec::new() };
    world.memory().persist(&batch).await.expect("in memory");
}

/// The archive and the lobby cache have them.
pub(crate) async fn cache(world: &World, seqs: RangeInclusive<u64>) {
    store(world, seqs.clone()).await;
    let end = End { epoch: Epoch(100), last: Seq(*seqs.end()) };
    let payload = |seq| (Seq(seq), Bytes::from(message(seq).to_wire(Epoch(100)).encode_to_vec()));
    let run = CacheRun {
        conversation: lobby(),
        epoch: end.epoch,
        messages: seqs.map(payload).collect(),
        messages_max: 1000,
        bytes_max: 1 << 20,
        keep_for: Duration::from_secs(10),
    };
    world.hot().settle(&[(lobby(), end)], &[run]).await.expect("in memory");
}

/// No JSON is looked at here.
pub(crate) fn to_json(reply: &v1::PullReply) -> Vec<u8> {
    reply.to_seq.to_string().into_bytes()
}
