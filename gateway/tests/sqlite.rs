//! The SQLite archive under the archive's contract, and what only a file can do: be locked, killed, damaged, full.

use std::ops::Deref;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};

use tidegate::sqlite::{OpenError, SqliteArchive};
use tidegate_core::contract::archive::{batch, messages};
use tidegate_core::ids::{ConversationId, Millis, RoomId, Seq, UserId};
use tidegate_core::ports::{Archive, PortError};

const ANN: UserId = UserId(1);
const ROOM: ConversationId = ConversationId::Room(RoomId(1));

/// A directory of its own, removed at the end.
struct Place(PathBuf);

impl Place {
    fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!("tidegate-sqlite-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        Self(std::env::temp_dir().join(name))
    }

    fn file(&self) -> PathBuf {
        self.0.join("archive.db")
    }

    fn open(&self) -> Result<SqliteArchive, OpenError> {
        SqliteArchive::open(&self.file())
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

async fn open(_case: &str) -> Option<Opened> {
    let place = Place::new();
    Some(Opened { archive: place.open().expect("a new archive"), _place: place })
}

tidegate_core::archive_contract!(open);

async fn last(archive: &SqliteArchive) -> Seq {
    archive.ends(&[ROOM]).await.expect("an end")[0].last
}

#[tokio::test]
async fn what_was_persisted_is_there_after_a_restart() {
    let place = Place::new();
    let archive = place.open().expect("a new archive");
    let epoch = archive.epoch();
    archive.persist(&batch(messages(ROOM, 1..=3, ANN))).await.expect("persisted");
    archive.create_user("Ann", "hash", Millis(1)).await.expect("an answer").expect("the name is free");
    archive.close().await;
    assert!(!place.0.join("archive.db-wal").exists(), "the log was moved into the file");

    let archive = place.open().expect("the same archive");
    assert_eq!(archive.epoch(), epoch);
    assert_eq!(last(&archive).await, Seq(3));
    assert!(archive.user_by_name("ann").await.expect("an answer").is_some());
}

#[tokio::test]
async fn a_second_gateway_is_kept_out() {
    let place = Place::new();
    let first = place.open().expect("a new archive");
    let second = place.open();
    assert!(matches!(second, Err(OpenError::InUse { .. })), "{second:?}");
    first.close().await;
    place.open().expect("free again");
}

#[test]
fn a_file_of_a_newer_program_is_refused_and_left_alone() {
    let place = Place::new();
    drop(place.open().expect("a new archive"));
    let file = rusqlite::Connection::open(place.file()).expect("the file");
    file.execute("INSERT INTO schema_migrations (version) VALUES (99)", []).expect("inserted");
    drop(file);
    let opened = place.open();
    assert!(matches!(opened, Err(OpenError::Newer { found: 99, .. })), "{opened:?}");
}

#[test]
fn what_is_no_archive_is_refused() {
    let place = Place::new();
    std::fs::create_dir_all(&place.0).expect("a directory");
    std::fs::write(place.file(), vec![b'x'; 10_000]).expect("a file");
    let opened = place.open();
    assert!(matches!(opened, Err(OpenError::Database { .. })), "{opened:?}");

    let under_a_file = SqliteArchive::open(&place.file().join("archive.db"));
    assert!(matches!(under_a_file, Err(OpenError::Directory { .. })), "{under_a_file:?}");
}

#[tokio::test]
async fn a_damaged_file_is_an_error_and_not_a_panic() {
    let place = Place::new();
    let archive = place.open().expect("a new archive");
    for turn in 0..8 {
        archive.persist(&batch(messages(ROOM, turn * 500 + 1..=turn * 500 + 500, ANN))).await.expect("persisted");
    }
    archive.close().await;
    let mut bytes = std::fs::read(place.file()).expect("the file");
    let (header, rest) = bytes.split_at_mut(4096 * 20);
    assert!(!header.is_empty());
    rest.fill(0x5A);
    std::fs::write(place.file(), bytes).expect("written");

    let archive = place.open().expect("the first pages are whole");
    let ids: Vec<_> = messages(ROOM, 1..=4000, ANN).iter().map(|message| message.message_id).collect();
    let found = archive.find(&ids).await;
    assert!(matches!(found, Err(PortError::Refused { .. })), "{found:?}");
    let persisted = archive.persist(&batch(messages(ROOM, 4001..=4500, ANN))).await;
    assert!(matches!(persisted, Err(PortError::Refused { .. })), "{persisted:?}");
    assert_eq!(archive.ping().await, found.map(drop).or(persisted), "readiness is told");
    assert_eq!(archive.users(&[ANN]).await, Ok(vec![]), "the threads are alive");
}
