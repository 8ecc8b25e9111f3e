//! What every [`HotStore`] must do.
//!
//! A [`HotStoreFixture`] comes in; [`crate::hot_store_contract!`] makes one test of every case.
//!
//! Each case must hold on a store that others use at the same time, except [`HotStoreFixture::lose_everything`], so a
//! fixture isolates its cases from each other (a store or a key prefix of its own).

pub mod allowance_cases;
pub mod cache_cases;
pub mod presence_cases;
pub mod sequence_cases;
pub mod token_cases;
pub mod unread_cases;

use std::future::Future;

use crate::clock::Clock;
use crate::ids::{ConversationId, Epoch, GatewayId, RoomId, Seq, UserId};
use crate::ports::{End, HotStore, SequenceGrant, SequenceRun};

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
            sequence_cases: sequences_follow_the_archives_end,
            sequence_cases: what_was_not_committed_is_given_again,
            sequence_cases: an_archive_that_went_back_is_noticed,
            sequence_cases: an_end_that_was_named_is_remembered,
            sequence_cases: after_a_loss_the_archive_is_believed,
            sequence_cases: a_store_that_is_behind_follows_the_archive,
            sequence_cases: what_was_committed_never_goes_back,
            sequence_cases: of_two_engines_the_one_behind_is_told,
            sequence_cases: ends_beyond_32_bits_are_kept,
            sequence_cases: a_large_batch_is_answered_in_one_call,
            cache_cases: a_cache_grows_without_a_gap,
            cache_cases: what_a_cache_holds_is_not_added_again,
            cache_cases: a_gap_begins_a_cache_anew,
            cache_cases: a_new_epoch_begins_a_cache_anew,
            cache_cases: a_cache_is_bounded_by_count,
            cache_cases: a_cache_is_bounded_by_bytes,
            cache_cases: a_cache_is_bounded_by_age,
            cache_cases: a_cache_nothing_is_added_to_expires,
            cache_cases: a_lost_cache_begins_anew,
            cache_cases: a_slice_begins_behind_a_place,
            cache_cases: a_slice_is_the_newest_that_fits,
            cache_cases: ends_and_caches_travel_together,
            cache_cases: a_large_run_is_added_whole,
            presence_cases: a_user_is_where_its_sessions_are,
            presence_cases: a_device_taken_over_is_not_ended_by_its_former_session,
            presence_cases: a_device_moves_between_gateways,
            presence_cases: a_late_login_does_not_take_a_device,
            presence_cases: a_place_that_went_back_is_taken_back,
            presence_cases: a_session_can_be_resumed_by_its_device,
            presence_cases: renewal_makes_a_lost_user_present_again,
            presence_cases: a_beat_tells_a_gateway_that_it_was_forgotten,
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
            unread_cases: a_seed_for_an_earlier_question_has_no_effect,
            unread_cases: of_two_seeds_the_first_stands,
            unread_cases: a_conversation_read_while_seeding_survives_an_older_seed,
            unread_cases: reading_replaces_the_count,
            unread_cases: what_is_filed_above_a_read_survives_it,
            unread_cases: what_is_forgotten_is_counted_and_filed_anew,
            unread_cases: an_inbox_is_taken_once_oldest_first,
            unread_cases: an_inbox_is_looked_at_and_stays,
            unread_cases: an_inbox_keeps_the_newest,
            unread_cases: a_large_filing_reaches_everybody,
            allowance_cases: what_gateways_let_pass_adds_up,
            allowance_cases: an_allowance_becomes_whole_with_time,
            allowance_cases: what_is_told_late_counts_from_when_it_passed,
            allowance_cases: a_debt_that_is_stated_is_reached,
            allowance_cases: no_debt_is_larger_than_it_can_be,
            allowance_cases: many_allowances_are_told_in_one_call,
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

fn at(epoch: u32, last: u64) -> End {
    End { epoch: Epoch(epoch), last: Seq(last) }
}

fn run(conversation: ConversationId, end: End, count: u32) -> SequenceRun {
    SequenceRun { conversation, end, count }
}

fn given(first: u64) -> SequenceGrant {
    SequenceGrant::Given(Seq(first))
}

fn discontinuous(epoch: u32, last: u64) -> SequenceGrant {
    SequenceGrant::Discontinuous { kept: at(epoch, last) }
}

async fn ask<const RUNS: usize>(store: &impl HotStore, runs: [SequenceRun; RUNS]) -> Vec<SequenceGrant> {
    store.sequence(&runs).await.expect("the store answers")
}

async fn settle<const ENDS: usize>(store: &impl HotStore, ends: [(ConversationId, End); ENDS]) {
    store.settle(&ends, &[]).await.expect("the store answers");
}
