//! The file itself: its lock, its settings, its tables.
//!
//! In comes a path, out go connections that are ready for the writer and the readers. Always: one process has the file
//! at a time, and a file written by a newer program is left untouched.

use std::fs::{File, OpenOptions, TryLockError};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rusqlite::{Connection, OpenFlags, TransactionBehavior};
use tidegate_core::ids::Epoch;

use super::OpenError;
use super::mark::Reach;

/// In order; a migration's number is its place, from 1.
const MIGRATIONS: &[&str] = &[
    include_str!("migrations/0001_archive.sql"),
    include_str!("migrations/0002_conversation_epochs.sql"),
    include_str!("migrations/0003_message_ids.sql"),
    include_str!("migrations/0004_slow_modes.sql"),
];

/// Pages kept in memory by the writer, in KiB. Every new id is looked for in the table of ids, at random; as long as that is
/// in here, nothing is read for it.
const WRITER_CACHE_KIB: i64 = 64 * 1024;
/// As above, for each reader; most of what it reads comes from the mapped file.
const READER_CACHE_KIB: i64 = 8 * 1024;

/// The part of the file that is read through a mapping, in bytes.
const MMAP_BYTES: i64 = 1 << 30;

/// Pages in the log before a commit moves them into the file: 64 MiB. The longer the log, the more rows share one page's way
/// into the file.
const CHECKPOINT_PAGES: i64 = 16_000;

/// Size the log is cut back to after a checkpoint, in bytes.
const LOG_BYTES_MAX: i64 = 64 << 20;

/// Statements a connection keeps prepared: more than there are in this adapter.
const STATEMENTS_MAX: usize = 64;

/// How long a connection waits for another of this process (a reader during a checkpoint's end).
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);

/// Takes the lock that keeps a second gateway out. It lasts as long as the file it returns, and ends with the process. The
/// file outlives the lock, with the mark in it ([`super::mark`]).
///
/// # Errors
/// [`OpenError::InUse`] if another process has it, [`OpenError::Directory`] if the directory cannot be written.
pub(super) fn lock(path: &Path) -> Result<File, OpenError> {
    let lock_path = beside(path, ".lock");
    let denied = |source| OpenError::Directory { path: lock_path.clone(), source };
    if let Some(directory) = path.parent().filter(|directory| !directory.as_os_str().is_empty()) {
        std::fs::create_dir_all(directory).map_err(denied)?;
    }
    let file =
        OpenOptions::new().create(true).truncate(false).read(true).write(true).open(&lock_path).map_err(denied)?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(OpenError::InUse { path: path.to_owned() }),
        Err(TryLockError::Error(source)) => Err(denied(source)),
    }
}

/// Opens the connection that writes, brings the tables to this program's version and compares them with the mark in the lock
/// file.
///
/// # Errors
/// [`OpenError::Newer`], or [`OpenError::Database`] if the file is no database, damaged or read-only.
pub(super) fn open_writer(path: &Path, lock: &File) -> Result<(Connection, Epoch), OpenError> {
    let failed = |source| OpenError::Database { path: path.to_owned(), source };
    let mut connection = Connection::open(path).map_err(failed)?;
    prepare(&connection, WRITER_CACHE_KIB).map_err(failed)?;
    connection.pragma_update(None, "journal_mode", "WAL").map_err(failed)?;
    // NORMAL would leave the last commits in the system's cache: a power cut would take acknowledged messages along.
    connection.pragma_update(None, "synchronous", "FULL").map_err(failed)?;
    connection.pragma_update(None, "wal_autocheckpoint", CHECKPOINT_PAGES).map_err(failed)?;
    connection.pragma_update(None, "journal_size_limit", LOG_BYTES_MAX).map_err(failed)?;
    let known = MIGRATIONS.len();
    let epoch = match migrate(&mut connection).map_err(failed)? {
        Migrated::Ready(epoch) => epoch,
        Migrated::Newer(found) => return Err(OpenError::Newer { path: path.to_owned(), found, known }),
    };
    let unreadable = |source| OpenError::Directory { path: beside(path, ".lock"), source };
    let was = Reach::read(lock).map_err(unreadable)?;
    let epoch = continue_from(&mut connection, was, epoch).map_err(failed)?;
    Ok((connection, epoch))
}

/// The archive's epoch; a new one, greater than all there were, if the file is behind its mark.
fn continue_from(connection: &mut Connection, was: Reach, epoch: Epoch) -> rusqlite::Result<Epoch> {
    let is = match Reach::of(connection) {
        Ok(is) if is < was => is,
        Ok(_) => return Ok(epoch),
        // A damaged file serves what can still be read of it.
        Err(error) => {
            tracing::error!(%error, "how far the archive is could not be read");
            return Ok(epoch);
        }
    };
    let epoch = fresh_epoch().max(Epoch(is.epoch.max(was.epoch).saturating_add(1)));
    tracing::error!(was = was.row, is = is.row, epoch = epoch.0, "the archive is an older copy: a new epoch begins");
    connection.execute("UPDATE archive_meta SET epoch = ?1", [epoch.0])?;
    Ok(epoch)
}

/// Opens a connection that only reads.
///
/// # Errors
/// [`OpenError::Database`].
pub(super) fn open_reader(path: &Path) -> Result<Connection, OpenError> {
    let failed = |source| OpenError::Database { path: path.to_owned(), source };
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(path, flags).map_err(failed)?;
    prepare(&connection, READER_CACHE_KIB).map_err(failed)?;
    Ok(connection)
}

fn prepare(connection: &Connection, cache_kib: i64) -> rusqlite::Result<()> {
    connection.busy_timeout(BUSY_TIMEOUT)?;
    connection.set_prepared_statement_cache_capacity(STATEMENTS_MAX);
    // A negative size counts KiB, a positive one pages.
    connection.pragma_update(None, "cache_size", -cache_kib)?;
    connection.pragma_update(None, "mmap_size", MMAP_BYTES)?;
    connection.pragma_update(None, "temp_store", "MEMORY")
}

enum Migrated {
    Ready(Epoch),
    Newer(usize),
}

/// One transaction: a kill in the middle leaves the file as it was.
fn migrate(connection: &mut Connection) -> rusqlite::Result<Migrated> {
    let migration = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    migration.execute_batch(
        "CREATE TABLE IF NOT EXISTS schema_migrations (
             version    INTEGER PRIMARY KEY,
             applied_at TEXT NOT NULL DEFAULT CURRENT_TIMESTAMP
         )",
    )?;
    let found: usize = migration
        .query_row("SELECT COALESCE(MAX(version), 0) FROM schema_migrations", [], |row| row.get::<_, u32>(0))?
        .try_into()
        .unwrap_or(usize::MAX);
    if found > MIGRATIONS.len() {
        return Ok(Migrated::Newer(found));
    }
    for (version, sql) in (1..).zip(MIGRATIONS).skip(found) {
        migration.execute_batch(sql)?;
        migration.execute("INSERT INTO schema_migrations (version) VALUES (?1)", [version])?;
    }
    migration.execute("INSERT OR IGNORE INTO archive_meta (id, epoch) VALUES (1, ?1)", [fresh_epoch().0])?;
    let epoch = migration.query_row("SELECT epoch FROM archive_meta", [], |row| row.get(0))?;
    migration.commit()?;
    Ok(Migrated::Ready(Epoch(epoch)))
}

/// The seconds since 1970: clients take the greater of two epochs for the newer, so an archive that replaces another must
/// have the greater one.
pub(crate) fn fresh_epoch() -> Epoch {
    let since = std::time::UNIX_EPOCH.elapsed().unwrap_or_default();
    Epoch(u32::try_from(since.as_secs()).unwrap_or(u32::MAX).max(1))
}

fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}
