//! The index by message id under pressure: so few ids in memory that every commit moves some.

use std::ops::Deref;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};

use tidegate_core::contract::archive::{batch, messages};

use super::*;

const ROOM: ConversationId = ConversationId::Room(RoomId(1));
const ANN: UserId = UserId(1);

/// A directory of its own, removed at the end.
struct Place(PathBuf);

impl Place {
    fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!("tidegate-ids-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        Self(std::env::temp_dir().join(name))
    }

    fn open(&self, recent_ids_max: usize) -> SqliteArchive {
        SqliteArchive::open_with(&self.0.join("archive.db"), recent_ids_max).expect("an archive")
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Fields drop in order: the archive closes before its place goes.
struct Opened {
    archive: SqliteArchive,
    _place: Place,
}

impl Deref for Opened {
    type Target = SqliteArchive;

    fn deref(&self) -> &SqliteArchive {
        &self.archive
    }
}

mod without_memory {
    use super::{Opened, Place};

    async fn open(_case: &str) -> Option<Opened> {
        let place = Place::new();
        Some(Opened { archive: place.open(0), _place: place })
    }

    tidegate_core::archive_contract!(open);
}

/// A message with an id like a hash: its first byte is as likely as any other.
fn scattered(seq: u64) -> StoredMessage {
    let mut message = messages(ROOM, seq..=seq, ANN).remove(0);
    let scatter = seq.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    message.message_id.0[..8].copy_from_slice(&(scatter ^ scatter >> 29).to_be_bytes());
    message
}

/// Every message is found and none is taken twice, whether it is in memory, in the table or was in either before a restart.
#[tokio::test]
async fn ids_are_known_in_memory_in_the_table_and_after_a_restart() {
    for recent_ids_max in [0, 100, 1000, 100_000] {
        let place = Place::new();
        let mut archive = place.open(recent_ids_max);
        let mut last = 0;
        for round in 0..40 {
            let written: Vec<_> = (last + 1..=last + 50).map(scattered).collect();
            archive.persist(&batch(written.clone())).await.expect("persisted");
            archive.persist(&batch(written)).await.expect("a repetition is no conflict");
            last += 50;
            if round % 7 == 3 {
                archive.close().await;
                archive = place.open(recent_ids_max);
            }
            if round % 5 == 4 {
                archive.ids.doubt();
            }
            let ids: Vec<_> = (1..=last + 5).map(|seq| scattered(seq).message_id).collect();
            let mut found = archive.find(&ids).await.expect("an answer");
            found.sort_unstable_by_key(|message| message.seq);
            assert!(found == (1..=last).map(scattered).collect::<Vec<_>>(), "{} of {last} found", found.len());
            for again in [1, last / 2, last] {
                let moved = StoredMessage { seq: Seq(last + 1), ..scattered(again) };
                let taken = archive.persist(&batch(vec![scattered(last + 2), moved])).await;
                assert!(matches!(taken, Err(PortError::Conflict { .. })), "{again} of {last}: {taken:?}");
            }
        }
        let file = rusqlite::Connection::open(place.0.join("archive.db")).expect("the file");
        let count = |sql: &str| file.query_row(sql, [], |row| row.get::<_, i64>(0)).expect("a number");
        let (indexed, indexed_to) =
            (count("SELECT COUNT(*) FROM message_ids"), count("SELECT indexed_to FROM archive_meta"));
        let missing = count(
            "SELECT COUNT(*) FROM messages, archive_meta WHERE row <= indexed_to
             AND NOT EXISTS (SELECT 1 FROM message_ids i WHERE i.message_id = messages.message_id AND i.row = messages.row)",
        );
        assert_eq!(missing, 0, "what a start does not read is in the table");
        let in_memory = archive.ids.recent_rows(&file, (1..=last).map(|seq| scattered(seq).message_id));
        let in_memory = in_memory.expect("loaded").into_iter().flatten().count();
        // With next to none allowed, buckets are so small that a commit brings more than it moves.
        assert!(recent_ids_max < 1000 || in_memory <= 2 * recent_ids_max + 50, "{in_memory} for {recent_ids_max}");
        match recent_ids_max {
            0 | 100 => assert!(indexed_to > 0 && indexed > indexed_to, "{indexed} in the table, up to {indexed_to}"),
            1000 => assert!(indexed > 0, "{indexed} in the table"),
            _ => assert_eq!((indexed, indexed_to), (0, 0)),
        }
    }
}

/// Readers ask while the writer moves ids: what was answered is found.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_id_is_found_while_it_moves() {
    let place = Place::new();
    let archive = std::sync::Arc::new(place.open(64));
    let done = std::sync::Arc::new(std::sync::atomic::AtomicU64::new(0));
    let reader = {
        let (archive, done) = (Arc::clone(&archive), Arc::clone(&done));
        tokio::spawn(async move {
            let mut asked = 0;
            while asked < 3000 {
                asked = done.load(Ordering::SeqCst);
                let ids: Vec<_> =
                    (asked.saturating_sub(300) + 1..=asked).map(|seq| scattered(seq).message_id).collect();
                let found = archive.find(&ids).await.expect("an answer");
                assert_eq!(found.len(), ids.len(), "up to {asked}");
            }
        })
    };
    for turn in 0..100 {
        let written = (turn * 30 + 1..=turn * 30 + 30).map(scattered).collect();
        archive.persist(&batch(written)).await.expect("persisted");
        done.store((turn + 1) * 30, Ordering::SeqCst);
    }
    reader.await.expect("every look found all");
    drop(archive);
}

/// An archive of the program before this one: its rows are numbered, its ids are in the table.
#[tokio::test]
async fn an_archive_of_an_earlier_version_keeps_its_messages() {
    let place = Place::new();
    std::fs::create_dir_all(&place.0).expect("a directory");
    let file = rusqlite::Connection::open(place.0.join("archive.db")).expect("a file");
    file.execute_batch(include_str!("migrations/0001_archive.sql")).expect("the first version");
    file.execute_batch(
        "CREATE TABLE schema_migrations (version INTEGER PRIMARY KEY, applied_at TEXT NOT NULL DEFAULT CURRENT_TIMESTAMP);
         INSERT INTO schema_migrations (version) VALUES (1);
         INSERT INTO archive_meta (id, epoch) VALUES (1, 7);",
    )
    .expect("as it was");
    for message in (1..=300).map(scattered) {
        let insert = "INSERT INTO messages VALUES ('r_1', ?1, ?2, 1, ?3, 1, ?4)";
        file.execute(
            insert,
            (to_column(message.seq.0), message.message_id.0, to_column(message.sent_at.0), &*message.body),
        )
        .expect("inserted");
    }
    drop(file);
    let archive = place.open(RECENT_MAX);
    assert_eq!(archive.epoch(), Epoch(7));
    let ids: Vec<_> = (1..=300).map(|seq| scattered(seq).message_id).collect();
    assert_eq!(archive.find(&ids).await.expect("an answer").len(), 300);
    assert_eq!(archive.history(ROOM, Page::Newest, 1000).await.expect("a page").len(), 300);
    assert_eq!(archive.persist(&batch((299..=310).map(scattered).collect())).await, Ok(()));
    let taken = archive.persist(&batch(vec![StoredMessage { seq: Seq(311), ..scattered(5) }])).await;
    assert!(matches!(taken, Err(PortError::Conflict { .. })), "{taken:?}");
}
