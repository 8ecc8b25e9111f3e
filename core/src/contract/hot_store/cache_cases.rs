//! A lobby cache holds the newest messages, without a gap, within its bounds.

use std::ops::RangeInclusive;
use std::time::Duration;

use bytes::Bytes;

use super::{HotStoreFixture, ask, at, discontinuous, room, run as sequence_run};
use crate::clock::Clock;
use crate::ids::{ConversationId, Epoch, Millis, Place, Seq};
use crate::ports::{CacheRun, CacheSlice, HotStore};

const LONG: Duration = Duration::from_secs(60);
/// Long enough for a busy machine to get a few calls into it.
const SHORT: Duration = Duration::from_millis(400);
/// A condition that does not hold by then will not.
const PATIENCE_MS: u64 = 20_000;

fn message(conversation: ConversationId, epoch: u32, seq: u64) -> Bytes {
    // Neither text nor numbers: any bytes.
    Bytes::from([&[0, 0xff, b'\r', b'\n'], format!("{conversation} {epoch} {seq:06}").as_bytes()].concat())
}

/// Messages of that conversation, with wide bounds.
fn run(conversation: ConversationId, epoch: u32, seqs: RangeInclusive<u64>) -> CacheRun {
    CacheRun {
        conversation,
        epoch: Epoch(epoch),
        messages: seqs.map(|seq| (Seq(seq), message(conversation, epoch, seq))).collect(),
        messages_max: 100_000,
        bytes_max: 64 << 20,
        keep_for: LONG,
    }
}

fn slice(conversation: ConversationId, epoch: u32, seqs: RangeInclusive<u64>) -> CacheSlice {
    let first = Seq(*seqs.start());
    let messages = seqs.map(|seq| message(conversation, epoch, seq)).collect();
    CacheSlice { epoch: Epoch(epoch), first, messages }
}

async fn add<const RUNS: usize>(store: &impl HotStore, runs: [CacheRun; RUNS]) {
    store.settle(&[], &runs).await.expect("the store answers");
}

async fn ask_for(
    store: &impl HotStore,
    conversation: ConversationId,
    behind: Option<Place>,
    messages_max: usize,
    bytes_max: usize,
) -> CacheSlice {
    store.cached(conversation, behind, messages_max, bytes_max).await.expect("the store answers")
}

async fn all(store: &impl HotStore, conversation: ConversationId) -> CacheSlice {
    ask_for(store, conversation, None, usize::MAX, usize::MAX).await
}

fn place(epoch: u32, seq: u64) -> Option<Place> {
    Some(Place { epoch: Epoch(epoch), seq: Seq(seq) })
}

/// What follows is added, for everybody to read.
pub async fn a_cache_grows_without_a_gap(fixture: &impl HotStoreFixture) {
    let (store, other) = (fixture.store("gw").await, fixture.store("other").await);
    assert_eq!(all(&store, room(1)).await, CacheSlice::default());
    add(&store, [run(room(1), 7, 41..=43)]).await;
    assert_eq!(all(&other, room(1)).await, slice(room(1), 7, 41..=43));
    add(&store, [run(room(1), 7, 44..=44), run(room(2), 8, 1..=2), run(room(1), 7, 45..=47)]).await;
    assert_eq!(all(&other, room(1)).await, slice(room(1), 7, 41..=47));
    assert_eq!(all(&other, room(2)).await, slice(room(2), 8, 1..=2));
    add(&store, [CacheRun { messages: Vec::new(), ..run(room(1), 9, 1..=1) }]).await;
    assert_eq!(all(&other, room(1)).await, slice(room(1), 7, 41..=47), "nothing is no gap");
    assert_eq!(all(&other, room(3)).await, CacheSlice::default());
}

/// A call that ended in an error is repeated, and so is a batch that was redelivered in other groups.
pub async fn what_a_cache_holds_is_not_added_again(fixture: &impl HotStoreFixture) {
    let (store, other) = (fixture.store("gw").await, fixture.store("other").await);
    add(&store, [run(room(1), 7, 5..=9)]).await;
    for seqs in [5..=9, 9..=9, 6..=7, 1..=3, 1..=9] {
        add(&other, [run(room(1), 7, seqs)]).await;
        assert_eq!(all(&store, room(1)).await, slice(room(1), 7, 5..=9));
    }
    add(&other, [run(room(1), 7, 8..=12), run(room(1), 7, 8..=12)]).await;
    assert_eq!(all(&store, room(1)).await, slice(room(1), 7, 5..=12));
    add(&other, [run(room(1), 7, 2..=13)]).await;
    assert_eq!(all(&store, room(1)).await, slice(room(1), 7, 5..=13), "what is older than its first is not wanted");
}

/// A cache that missed something, in another gear or while the store was away, begins anew.
pub async fn a_gap_begins_a_cache_anew(fixture: &impl HotStoreFixture) {
    let store = fixture.store("gw").await;
    add(&store, [run(room(1), 7, 5..=9), run(room(2), 7, 5..=9)]).await;
    add(&store, [run(room(1), 7, 11..=12), run(room(2), 7, 500..=500)]).await;
    assert_eq!(all(&store, room(1)).await, slice(room(1), 7, 11..=12));
    assert_eq!(all(&store, room(2)).await, slice(room(2), 7, 500..=500));
    add(&store, [run(room(1), 7, 5..=10)]).await;
    assert_eq!(all(&store, room(1)).await, slice(room(1), 7, 11..=12), "what comes late changes nothing");
    add(&store, [run(room(1), 7, 13..=13)]).await;
    assert_eq!(all(&store, room(1)).await, slice(room(1), 7, 11..=13));
}

/// A cache is of one epoch, the greatest.
pub async fn a_new_epoch_begins_a_cache_anew(fixture: &impl HotStoreFixture) {
    let store = fixture.store("gw").await;
    add(&store, [run(room(1), 7, 5..=9)]).await;
    add(&store, [run(room(1), u32::MAX, 8..=8)]).await;
    assert_eq!(all(&store, room(1)).await, slice(room(1), u32::MAX, 8..=8));
    add(&store, [run(room(1), 7, 9..=20)]).await;
    assert_eq!(all(&store, room(1)).await, slice(room(1), u32::MAX, 8..=8), "the former one is over");
    add(&store, [run(room(1), u32::MAX, 9..=10)]).await;
    assert_eq!(all(&store, room(1)).await, slice(room(1), u32::MAX, 8..=10));
}

/// The newest so many stay.
pub async fn a_cache_is_bounded_by_count(fixture: &impl HotStoreFixture) {
    let store = fixture.store("gw").await;
    let bounded = |seqs| CacheRun { messages_max: 10, ..run(room(1), 7, seqs) };
    for seq in 1..=25 {
        add(&store, [bounded(seq..=seq)]).await;
        assert_eq!(all(&store, room(1)).await, slice(room(1), 7, seq.saturating_sub(9).max(1)..=seq));
    }
    add(&store, [bounded(20..=28)]).await;
    let held = all(&store, room(1)).await;
    assert_eq!(held, slice(room(1), 7, held.first.0..=28));
    assert!((19..=26).contains(&held.first.0), "{held:?}");
    add(&store, [bounded(29..=100)]).await;
    assert_eq!(all(&store, room(1)).await, slice(room(1), 7, 91..=100), "a run larger than the bound");
    add(&store, [CacheRun { messages_max: 3, ..run(room(1), 7, 101..=101) }]).await;
    let held = all(&store, room(1)).await;
    assert_eq!(held, slice(room(1), 7, held.first.0..=101));
    assert!(held.messages.len() <= 3, "the bounds are those of the last run");
}

/// The newest so many bytes stay.
pub async fn a_cache_is_bounded_by_bytes(fixture: &impl HotStoreFixture) {
    let store = fixture.store("gw").await;
    let each = u32::try_from(message(room(1), 7, 1).len()).expect("short");
    let bounded = |seqs| CacheRun { bytes_max: 10 * each + each / 2, ..run(room(1), 7, seqs) };
    for seq in 1..=25 {
        add(&store, [bounded(seq..=seq)]).await;
        assert_eq!(all(&store, room(1)).await, slice(room(1), 7, seq.saturating_sub(9).max(1)..=seq));
    }
    add(&store, [bounded(26..=100)]).await;
    assert_eq!(all(&store, room(1)).await, slice(room(1), 7, 91..=100), "a run larger than the bound");
    add(&store, [CacheRun { bytes_max: each - 1, ..run(room(1), 7, 101..=102) }]).await;
    assert_eq!(all(&store, room(1)).await, CacheSlice::default(), "not even the newest fits");
    add(&store, [bounded(103..=104)]).await;
    assert_eq!(all(&store, room(1)).await, slice(room(1), 7, 103..=104));
}

/// What is older than it may be leaves, while new messages keep the cache alive; and no earlier.
pub async fn a_cache_is_bounded_by_age(fixture: &impl HotStoreFixture) {
    let (store, clock) = (fixture.store("gw").await, fixture.clock());
    let begun = clock.now();
    let mut newest = 1;
    let elapsed_ms = loop {
        add(&store, [CacheRun { keep_for: SHORT, ..run(room(1), 7, newest..=newest) }]).await;
        let held = all(&store, room(1)).await;
        let elapsed_ms = clock.now().0 - begun.0;
        assert!(held == slice(room(1), 7, held.first.0..=newest) || elapsed_ms >= 400, "{held:?}");
        if held.first > Seq(1) {
            break elapsed_ms;
        }
        assert!(elapsed_ms < PATIENCE_MS, "the first message is still there");
        newest += 1;
        clock.sleep(Duration::from_millis(10)).await;
    };
    // The clocks need not agree on when a millisecond begins.
    assert!(elapsed_ms + 2 >= 400, "gone after {elapsed_ms} ms");
}

/// Nobody has to clean up after a storm.
pub async fn a_cache_nothing_is_added_to_expires(fixture: &impl HotStoreFixture) {
    let (store, clock) = (fixture.store("gw").await, fixture.clock());
    let begun = clock.now();
    add(&store, [CacheRun { keep_for: SHORT, ..run(room(1), 7, 1..=3) }, run(room(2), 7, 1..=3)]).await;
    let deadline = Millis(begun.0 + PATIENCE_MS);
    loop {
        let held = all(&store, room(1)).await;
        if held == CacheSlice::default() {
            break;
        }
        assert_eq!(held, slice(room(1), 7, 1..=3));
        assert!(clock.now() < deadline, "still there");
        clock.sleep(Duration::from_millis(10)).await;
    }
    let elapsed_ms = clock.now().0 - begun.0;
    assert!(elapsed_ms + 2 >= 400, "gone after {elapsed_ms} ms");
    assert_eq!(all(&store, room(2)).await, slice(room(2), 7, 1..=3));
    add(&store, [run(room(1), 7, 2..=4)]).await;
    assert_eq!(all(&store, room(1)).await, slice(room(1), 7, 2..=4), "it begins with whatever comes");
}

/// A store that forgot it begins with what comes next.
pub async fn a_lost_cache_begins_anew(fixture: &impl HotStoreFixture) {
    let store = fixture.store("gw").await;
    add(&store, [run(room(1), 7, 1..=6)]).await;
    fixture.lose_everything().await;
    assert_eq!(all(&store, room(1)).await, CacheSlice::default());
    add(&store, [run(room(1), 7, 7..=8)]).await;
    assert_eq!(all(&store, room(1)).await, slice(room(1), 7, 7..=8));
}

/// Whoever has some asks for the rest; a place of another epoch says nothing.
pub async fn a_slice_begins_behind_a_place(fixture: &impl HotStoreFixture) {
    let store = fixture.store("gw").await;
    add(&store, [run(room(1), 7, 11..=20)]).await;
    let behind = async |place| ask_for(&store, room(1), place, 100, 10_000).await;
    assert_eq!(behind(place(7, 15)).await, slice(room(1), 7, 16..=20));
    assert_eq!(behind(place(7, 19)).await, slice(room(1), 7, 20..=20));
    for older in [0, 1, 10] {
        assert_eq!(behind(place(7, older)).await, slice(room(1), 7, 11..=20));
    }
    for other in [0, 6, 8] {
        assert_eq!(behind(place(other, 15)).await, slice(room(1), 7, 11..=20));
    }
    for newer in [20, 21, 1 << 40] {
        let nothing = CacheSlice { epoch: Epoch(7), first: Seq(21), messages: Vec::new() };
        assert_eq!(behind(place(7, newer)).await, nothing, "the epoch, and what would come next");
    }
}

/// Bounds take from the old end.
pub async fn a_slice_is_the_newest_that_fits(fixture: &impl HotStoreFixture) {
    let store = fixture.store("gw").await;
    add(&store, [run(room(1), 7, 1..=700)]).await;
    let each = message(room(1), 7, 1).len();
    for (count, first) in [(1, 700), (2, 699), (500, 201), (700, 1), (701, 1)] {
        assert_eq!(ask_for(&store, room(1), None, count, usize::MAX).await, slice(room(1), 7, first..=700));
        assert_eq!(ask_for(&store, room(1), None, usize::MAX, count * each).await, slice(room(1), 7, first..=700));
        assert_eq!(ask_for(&store, room(1), None, count, (count + 1) * each - 1).await.first, Seq(first));
    }
    assert_eq!(ask_for(&store, room(1), place(7, 600), 10, usize::MAX).await, slice(room(1), 7, 691..=700));
    let nothing = CacheSlice { epoch: Epoch(7), first: Seq(701), messages: Vec::new() };
    assert_eq!(ask_for(&store, room(1), None, 0, usize::MAX).await, nothing);
    assert_eq!(ask_for(&store, room(1), None, usize::MAX, each - 1).await, nothing);
}

/// A turn of the engine names ends and fills many caches in one call.
pub async fn ends_and_caches_travel_together(fixture: &impl HotStoreFixture) {
    let store = fixture.store("gw").await;
    let ends: Vec<_> = (1..=300).map(|n| (room(n), at(7, 10 * n + 5))).collect();
    let runs: Vec<_> = (1..=300).map(|n| run(room(n), 7, 10 * n + 1..=10 * n + 5)).collect();
    for _ in 0..2 {
        store.settle(&ends, &runs).await.expect("the store answers");
        for n in [1, 128, 300] {
            assert_eq!(all(&store, room(n)).await, slice(room(n), 7, 10 * n + 1..=10 * n + 5));
            let behind = ask(&store, [sequence_run(room(n), at(7, 10 * n), 1)]).await;
            assert_eq!(behind, [discontinuous(7, 10 * n + 5)]);
        }
    }
}

/// Thousands of messages, megabytes, and sequences no 32 bits hold.
pub async fn a_large_run_is_added_whole(fixture: &impl HotStoreFixture) {
    let store = fixture.store("gw").await;
    let far = 1 << 40;
    let large = |seq: u64| Bytes::from(vec![u8::try_from(seq % 251).expect("a remainder"); 700]);
    let messages: Vec<_> = (far..far + 5000).map(|seq| (Seq(seq), large(seq))).collect();
    for part in messages.chunks(2500) {
        add(&store, [CacheRun { messages: part.to_vec(), ..run(room(1), 7, 1..=1) }]).await;
    }
    let held = all(&store, room(1)).await;
    assert_eq!((held.epoch, held.first, held.messages.len()), (Epoch(7), Seq(far), 5000));
    assert!(held.messages.iter().eq(messages.iter().map(|(_, message)| message)));
    let rest = ask_for(&store, room(1), place(7, far + 4990), 5000, usize::MAX).await;
    assert_eq!((rest.first, rest.messages.len()), (Seq(far + 4991), 9));
}
