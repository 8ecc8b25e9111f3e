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
async fn an_older_copy_in_its_place_begins_a_new_epoch() {
    let place = Place::new();
    let (backup, own) = (place.0.join("backup.db"), ConversationId::Room(RoomId(2)));
    let archive = place.open().expect("a new archive");
    archive.persist(&batch(messages(ROOM, 1..=3, ANN))).await.expect("persisted");
    let own_epoch = archive.begin_epoch(&[(own, archive.epoch())]).await.expect("an epoch")[0];
    archive.close().await;
    std::fs::copy(place.file(), &backup).expect("copied");
    let ends = async |archive: &SqliteArchive| archive.ends(&[ROOM, own]).await.expect("ends");

    let archive = place.open().expect("the same archive");
    let first = archive.epoch();
    assert_eq!(ends(&archive).await[1].epoch, own_epoch);
    archive.persist(&batch(messages(ROOM, 4..=5, ANN))).await.expect("persisted");
    archive.close().await;
    let archive = place.open().expect("the same archive");
    assert_eq!(archive.epoch(), first, "it is where it was");
    archive.close().await;

    std::fs::copy(&backup, place.file()).expect("copied");
    let archive = place.open().expect("the older copy");
    assert_eq!(ends(&archive).await[0].last, Seq(3));
    let second = archive.epoch();
    assert!(second > first && second > own_epoch, "{second:?} after {first:?} and {own_epoch:?}");
    assert!(ends(&archive).await.iter().all(|end| end.epoch == second), "everywhere, whatever epochs there were");
    archive.persist(&batch(messages(ROOM, 4..=4, ANN))).await.expect("persisted");
    archive.close().await;
    let archive = place.open().expect("the same archive");
    assert_eq!(archive.epoch(), second, "once is enough");
    archive.close().await;

    // The same copy again, though it knows nothing of the second epoch; and no archive at all.
    std::fs::copy(&backup, place.file()).expect("copied");
    let archive = place.open().expect("the older copy");
    let third = archive.epoch();
    assert!(third > second);
    archive.close().await;
    std::fs::remove_file(place.file()).expect("removed");
    assert!(place.open().expect("a new archive").epoch() > third);
}

/// A gateway that is killed writes no last mark, and the mark it wrote is not ahead of what it committed.
#[tokio::test]
async fn the_mark_follows_commits_without_an_orderly_end() {
    let place = Place::new();
    let archive = place.open().expect("a new archive");
    let epoch = archive.epoch();
    let mark = || std::fs::read_to_string(place.0.join("archive.db.lock")).expect("the lock file");
    for last in [5_u64, 9] {
        archive.persist(&batch(messages(ROOM, 1..=last, ANN))).await.expect("persisted");
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(10);
        while mark() != format!("{:010} {last:020}\n", epoch.0) {
            assert!(std::time::Instant::now() < deadline, "the mark is {:?}", mark());
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        }
    }
    archive.close().await;
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

/// How the archive's speed changes with its size: rows a second, and what does not depend on who else uses the machine:
/// processor time and bytes written for each row. `cargo test -p tidegate --test sqlite -- --ignored --nocapture speed`
#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes minutes"]
async fn speed_by_size() {
    const SPAN: u64 = 256 * 1024;
    const GROUP: u64 = 8;
    let spans: u64 = std::env::var("SPANS").map_or(8, |spans| spans.parse().expect("a number"));
    let place = Place::new();
    let archive = place.open().expect("a new archive");
    let usage = || {
        let stat = std::fs::read_to_string("/proc/self/stat").expect("Linux");
        let ticks: u64 = stat.split(' ').skip(13).take(2).map(|ticks| ticks.parse::<u64>().expect("a number")).sum();
        let io = std::fs::read_to_string("/proc/self/io").expect("Linux");
        let written = io.lines().find_map(|line| line.strip_prefix("write_bytes: ")).expect("bytes");
        (ticks as f64 / 100.0, written.parse::<f64>().expect("a number"))
    };
    let row = |room: u64, seq: u64| {
        let mut message = messages(ConversationId::Room(RoomId(room)), seq..=seq, ANN).remove(0);
        // Ids are hashes: any two bits of them are independent. (The finalizer of splitmix64.)
        let scatter = |n: u64| {
            let n = (n ^ (n >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            let n = (n ^ (n >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            (n ^ (n >> 31)).to_be_bytes()
        };
        let n = (room << 40 | seq).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        message.message_id.0[..8].copy_from_slice(&scatter(n));
        message.message_id.0[8..].copy_from_slice(&scatter(!n));
        message
    };
    for span in 0..spans {
        let turns = SPAN / GROUP / 256;
        let (begun, (cpu, written)) = (std::time::Instant::now(), usage());
        for turn in span * turns..(span + 1) * turns {
            let persist = (1..=GROUP).map(|room| {
                let batch = batch((turn * 256 + 1..=turn * 256 + 256).map(|seq| row(room, seq)).collect());
                let archive = &archive;
                async move { archive.persist(&batch).await.expect("persisted") }
            });
            futures_util::future::join_all(persist).await;
        }
        let (took, (cpu_now, written_now)) = (begun.elapsed().as_secs_f64(), usage());
        eprintln!(
            "{:>8} rows: {:>6.0} rows/s, {:>5.1} us of processor and {:>5.0} bytes written for each",
            (span + 1) * SPAN,
            SPAN as f64 / took,
            (cpu_now - cpu) * 1e6 / SPAN as f64,
            (written_now - written) / SPAN as f64
        );
    }
    let begun = std::time::Instant::now();
    archive.close().await;
    let closed = begun.elapsed();
    let begun = std::time::Instant::now();
    drop(place.open().expect("the same archive"));
    eprintln!("closed within {closed:?}, opened within {:?}", begun.elapsed());
}
