//! A page is read once for all who want it, believed as long as it can be, and forgotten when there are too many.

use std::collections::BTreeMap;

use futures_util::future::join_all;
use futures_util::poll;
use tidegate_proto::v1;
use tokio::sync::Notify;

use super::*;
use crate::storm::testing::{Fate, ManualClock, NOW_MS, World, at, lobby, store, to_json};

struct Fixture {
    world: World,
    clock: ManualClock,
    pages: Pages<World, ManualClock>,
}

impl Fixture {
    /// Answers of some hundred messages.
    fn new() -> Self {
        let clock = ManualClock::at(NOW_MS);
        let world = World::with_clock(clock.clone());
        let pages = Pages::new(Arc::new(world.clone()), clock.clone(), 10_000, to_json);
        Self { world, clock, pages }
    }

    async fn fill(&self, after: u64, before: u64) -> (v1::PullReply, String) {
        let filled = self.pages.fill(lobby(), at(after), Seq(before), Format::Protobuf).await.expect("in memory");
        (v1::PullReply::decode(filled.body).expect("our own bytes"), filled.tag.to_string())
    }

    fn reads(&self) -> u32 {
        self.world.faults.calls("history")
    }
}

#[tokio::test]
async fn a_gap_is_filled_answer_by_answer() {
    let test = Fixture::new();
    store(&test.world, 1..=1000).await;
    for before in [2, 3, 256, 257, 258, 513, 900, 1001] {
        let mut last = 0;
        loop {
            let (reply, _) = test.fill(last, before).await;
            let seqs: Vec<u64> = reply.messages.iter().map(|message| message.seq).collect();
            assert_eq!(seqs, (reply.from_seq..=reply.to_seq).collect::<Vec<_>>());
            assert!(reply.from_seq <= last + 1 && reply.to_seq > last && !reply.gap, "behind {last}: {reply:?}");
            assert_eq!(reply.latest_seq, 1000);
            last = reply.to_seq;
            assert_eq!(reply.more, last + 1 < before);
            if !reply.more {
                break;
            }
        }
        assert!(last + 1 >= before);
    }
    assert_eq!(test.reads(), 4, "each page once");
    // There is nothing behind the end, and no more than that is said.
    let (reply, _) = test.fill(1000, 5000).await;
    assert_eq!((reply.messages.len(), reply.more, reply.latest_seq), (0, false, 1000));
}

#[tokio::test]
async fn however_many_want_a_page_it_is_read_once() {
    let test = Fixture::new();
    store(&test.world, 1..=300).await;
    let gate = Arc::new(Notify::new());
    test.world.faults.next("history", Fate::Hold(Arc::clone(&gate)));
    let mut asking: Vec<_> = (0..100).map(|n| Box::pin(test.fill(n, 200))).collect();
    for ask in &mut asking {
        assert!(poll!(ask.as_mut()).is_pending());
    }
    gate.notify_one();
    let answers = join_all(asking).await;
    assert!((0..).zip(&answers).all(|(after, (reply, _))| reply.from_seq <= after + 1 && reply.to_seq > after));
    assert_eq!(test.reads(), 1);
    // All in one form are the same bytes.
    let body = async || test.pages.fill(lobby(), at(3), Seq(200), Format::JsonGzip).await.expect("in memory").body;
    assert_eq!(body().await.as_ptr(), body().await.as_ptr());
}

#[tokio::test]
async fn a_failed_read_is_repeated_by_whoever_asks_next() {
    let test = Fixture::new();
    store(&test.world, 1..=300).await;
    test.world.faults.next("history", Fate::Fail);
    assert!(test.pages.fill(lobby(), at(0), Seq(5), Format::Protobuf).await.is_err());
    assert!(test.fill(0, 5).await.0.to_seq >= 4);
    assert_eq!(test.reads(), 2);
}

#[tokio::test]
async fn a_page_that_is_still_open_is_read_again_when_more_is_wanted() {
    let test = Fixture::new();
    store(&test.world, 1..=10).await;
    assert_eq!(test.fill(0, 11).await.0.to_seq, 10);
    store(&test.world, 11..=20).await;
    test.clock.advance(OPEN_PAGE_MS - 1);
    assert_eq!(test.fill(10, 21).await.0.messages.len(), 0, "believed for a moment");
    test.clock.advance(1);
    assert_eq!(test.fill(10, 11).await.0.to_seq, 0, "whoever lacks nothing gets the page as it is");
    assert_eq!(test.reads(), 1);
    assert_eq!((test.fill(10, 21).await.0.to_seq, test.reads()), (20, 2));
    // A whole page is believed longer, but not for ever: an archive may go back.
    store(&test.world, 21..=256).await;
    test.clock.advance(OPEN_PAGE_MS);
    assert_eq!((test.fill(200, 257).await.0.to_seq, test.reads()), (256, 3));
    test.clock.advance(PAGE_MS - 1);
    test.fill(200, 9000).await;
    assert_eq!(test.reads(), 3);
    test.clock.advance(1);
    test.fill(200, 9000).await;
    assert_eq!(test.reads(), 4);
}

#[tokio::test]
async fn another_epoch_is_read_again() {
    let test = Fixture::new();
    store(&test.world, 1..=300).await;
    assert_eq!(test.fill(0, 9).await.0.epoch, 100);
    let begun = test.world.memory().begin_epoch(&[(lobby(), Epoch(100))]).await.expect("in memory")[0];
    let after = Place { epoch: begun, seq: Seq(0) };
    test.clock.advance(OPEN_PAGE_MS);
    let filled = test.pages.fill(lobby(), after, Seq(9), Format::Protobuf).await.expect("in memory");
    assert_eq!((filled.epoch, test.reads()), (begun, 2));
    let reply = v1::PullReply::decode(filled.body).expect("our own bytes");
    assert!(reply.epoch == begun.0 && reply.messages.iter().all(|message| message.epoch == begun.0));
    // One who comes with the old epoch learns of it, and costs no read of its own within a moment.
    for _ in 0..10 {
        assert_eq!(test.fill(0, 9).await.0.epoch, begun.0);
    }
    assert_eq!(test.reads(), 2);
}

#[tokio::test]
async fn equal_tags_are_equal_bytes() {
    let test = Fixture::new();
    let mut answers: BTreeMap<String, v1::PullReply> = BTreeMap::new();
    let mut stored = 0;
    for last in [5, 10, 60, 200, 256, 300] {
        store(&test.world, stored + 1..=last).await;
        stored = last;
        test.clock.advance(PAGE_MS);
        for (after, before) in [(0, 4), (0, 300), (3, 9), (120, 140), (120, 121), (255, 300), (256, 300)] {
            let (reply, tag) = test.fill(after, before).await;
            if let Some(known) = answers.insert(tag.clone(), reply.clone()) {
                assert_eq!(known, reply, "{tag}");
            }
        }
    }
    assert!(answers.len() > 10, "{answers:?}");
}

#[test]
fn pages_are_bounded_and_the_least_recently_used_go_first() {
    const PAGE_BYTES: usize = 64 * 1024;
    let mut kept = Kept::default();
    for n in 0..2000 {
        kept.slot((lobby(), n));
        kept.weigh((lobby(), n), PAGE_BYTES);
        // Somebody wants this one all the time.
        kept.slot((lobby(), 0));
        assert!(kept.bytes <= PAGES_BYTES_MAX && kept.used.len() == kept.slots.len());
    }
    let most = PAGES_BYTES_MAX / (3 * PAGE_BYTES);
    assert!(kept.slots.len() <= most + 1 && kept.slots.len() > most / 2, "{}", kept.slots.len());
    assert!(kept.slots.contains_key(&(lobby(), 0)) && kept.slots.contains_key(&(lobby(), 1999)));
    assert!(!kept.slots.contains_key(&(lobby(), 1)));
    // A page that could not be read is not for nothing.
    let mut kept = Kept::default();
    for n in 0..200_000 {
        kept.slot((lobby(), n));
    }
    assert!(kept.slots.len() < 150_000, "{} pages that were never read", kept.slots.len());
    assert_eq!(kept.used.len(), kept.slots.len());
}
