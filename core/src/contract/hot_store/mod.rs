//! What every [`HotStore`] must do.
//!
//! A [`HotStoreFixture`] comes in; [`crate::hot_store_contract!`] makes one test of every case.
//!
//! Each case must hold on a store that others use at the same time, except [`HotStoreFixture::lose_everything`], so a
//! fixture isolates its cases from each other (a store or a key prefix of its own).

pub mod presence_cases;
pub mod sequence_cases;
pub mod token_cases;
pub mod unread_cases;

use std::future::Future;

use crate::clock::Clock;
use crate::ids::{ConversationId, GatewayId, MessageId, Partition, RoomId, Seq, UserId};
use crate::ports::{HotStore, SequenceGrant, SequenceRequest, SequenceRun};

/// A store under test.
pub trait HotStoreFixture: Sync {
    /// The store.
    type Hot: HotStore;
    /// A clock on which the store's times to live run.
    type Time: Clock;

    /// The store as the gateway of that name sees it; all share what they keep.
    fn store(&self, gateway: &str) -> impl Future<Output = Self::Hot> + Send;

    /// The clock.
    fn clock(&self) -> Self::Time;

    /// Forgets everything kept, as FLUSHALL does.
    fn lose_everything(&self) -> impl Future<Output = ()> + Send;
}

/// Makes a test of every case: `hot_store_contract!(make)`, where `make().await` is `Option<impl HotStoreFixture>` and
/// `None` skips.
#[macro_export]
macro_rules! hot_store_contract {
    ($make:expr) => {
        $crate::hot_store_contract! { @cases $make,
            sequence_cases: sequences_are_dense_from_one_over_batches,
            sequence_cases: repeating_a_request_repeats_its_answer,
            sequence_cases: redelivery_in_other_groups_repeats_the_answer,
            sequence_cases: settled_messages_are_forgotten,
            sequence_cases: an_unknown_conversation_needs_a_floor,
            sequence_cases: after_a_loss_sequences_go_on_above_the_floor,
            sequence_cases: a_floor_above_the_counter_raises_it,
            sequence_cases: a_large_batch_is_answered_in_one_call,
            sequence_cases: partitions_remember_for_themselves,
            sequence_cases: a_message_twice_in_a_run_has_one_sequence,
            presence_cases: a_user_is_where_its_sessions_are,
            presence_cases: a_device_taken_over_is_not_ended_by_its_former_session,
            presence_cases: a_device_moves_between_gateways,
            presence_cases: renewal_makes_a_lost_user_present_again,
            presence_cases: changes_of_one_batch_apply_in_order,
            presence_cases: hundreds_of_users_are_looked_up_in_order,
            unread_cases: counts_are_unknown_until_seeded,
            unread_cases: redelivered_filings_count_once,
            unread_cases: what_is_filed_while_seeding_is_counted,
            unread_cases: what_the_seed_has_counted_is_not_counted_again,
            unread_cases: a_conversation_begun_while_seeding_survives_every_seed,
            unread_cases: a_seed_older_than_a_read_does_not_undo_it,
            unread_cases: a_seed_too_old_to_correct_leaves_the_counts_unknown,
            unread_cases: a_seed_after_a_loss_has_no_effect,
            unread_cases: of_two_seeds_the_first_stands,
            unread_cases: a_conversation_read_while_seeding_survives_an_older_seed,
            unread_cases: reading_replaces_the_count,
            unread_cases: what_is_filed_above_a_read_survives_it,
            unread_cases: an_inbox_is_taken_once_oldest_first,
            unread_cases: an_inbox_keeps_the_newest,
            unread_cases: a_large_filing_reaches_everybody,
            token_cases: a_token_is_valid_until_deleted,
            token_cases: a_token_expires,
            token_cases: states_come_in_the_order_asked,
        }
    };
    (@cases $make:expr, $($module:ident: $case:ident,)*) => {
        $(
            #[tokio::test]
            async fn $case() {
                if let Some(fixture) = $make.await {
                    $crate::contract::hot_store::$module::$case(&fixture).await;
                }
            }
        )*
    };
}

const PARTITION: Partition = Partition(0);

/// The nth message of a case.
fn message(n: u32) -> MessageId {
    MessageId(*blake3::hash(&n.to_be_bytes()).as_bytes().first_chunk().expect("a hash has 32 bytes"))
}

fn messages(range: std::ops::Range<u32>) -> Vec<MessageId> {
    range.map(message).collect()
}

fn seqs(range: std::ops::RangeInclusive<u64>) -> Vec<Seq> {
    range.map(Seq).collect()
}

fn room(n: u64) -> ConversationId {
    ConversationId::Room(RoomId(n))
}

fn private(a: u64, b: u64) -> ConversationId {
    ConversationId::private(UserId(a), UserId(b)).expect("different users")
}

fn gateway(name: &str) -> GatewayId {
    name.parse().expect("a legal gateway id")
}

fn run(conversation: ConversationId, floor: Option<u64>, messages: Vec<MessageId>) -> SequenceRun {
    SequenceRun { conversation, floor: floor.map(Seq), messages }
}

/// Asks for one run and expects it to be given.
async fn give(store: &impl HotStore, run: SequenceRun) -> Vec<Seq> {
    match ask(store, vec![run], Vec::new()).await.as_slice() {
        [SequenceGrant::Given(seqs)] => seqs.clone(),
        other => panic!("expected one run to be given, got {other:?}"),
    }
}

async fn ask(store: &impl HotStore, runs: Vec<SequenceRun>, settled: Vec<MessageId>) -> Vec<SequenceGrant> {
    store.sequence(PARTITION, SequenceRequest { runs, settled }).await.expect("the store answers")
}
