//! Which message is where: the index by message id.
//!
//! Ids are hashes. In an index every new one lands on a page of its own, and a commit of two thousand messages rewrites two
//! thousand pages (measured: 7.5 KB written for each message at two million of them). So the newest ids are kept in memory,
//! in buckets by their first byte, and a commit that finds too many of them moves the next bucket into the table
//! `message_ids`: neighbours that share pages, in their order. `archive_meta` says how far that has come, so that a start
//! reads the ids that are not in the table from the messages themselves.
//!
//! In come ids, out go rows. Always: the writer alone changes what is here, and only after the commit that makes it true; a
//! bucket leaves the memory after the commit that put it into the table. So whoever looks here first and into the table
//! then, with a snapshot begun after the first look, misses nothing that was committed before.

use std::sync::{Mutex, MutexGuard, PoisonError};

use rusqlite::{Connection, OptionalExtension as _, params};
use rustc_hash::FxHashMap;
use tidegate_core::ids::MessageId;

/// Ids in memory, but for one commit's: some 10 MB. A start may read twice as many, because it takes what was moved in the
/// unfinished round for unmoved. The more, the smaller is the table's share of a commit: at ten million messages a bucket
/// of 1024 ids spreads over some 260 pages, and a commit of 2048 messages moves two. Measured with `speed_by_size` in
/// `tests/sqlite.rs` at two million messages: 435 bytes written and 7.7 us of processor for each, before 7,467 and 12.8.
pub(super) const RECENT_MAX: usize = 256 * 1024;

const BUCKETS: usize = 256;

/// Buckets one commit moves. Three take what a largest commit brings; the rest catches up with what a start has read, without
/// a commit that takes long.
const MOVES_MAX: usize = 8;

/// Where ids are, by id.
type Rows = FxHashMap<[u8; 16], i64>;

/// Shared by the writer and the readers. Locked once per batch.
#[derive(Debug)]
pub(super) struct Ids {
    recent: Mutex<Recent>,
    recent_max: usize,
}

#[derive(Debug, Default)]
struct Recent {
    /// By the id's first byte. None until the messages were read.
    buckets: Vec<Rows>,
    count: usize,
    progress: Progress,
    /// The newest row.
    newest: i64,
}

/// How far the table is, as `archive_meta` has it.
#[derive(Clone, Copy, Debug, Default)]
struct Progress {
    /// Messages up to this row are in the table.
    indexed_to: i64,
    /// The newest row there was when the round of buckets began: when it ends, all up to here are in the table.
    round_from: i64,
    /// The bucket that is moved next. Those before it are in the table, up to `round_from`.
    next: usize,
}

/// What one transaction adds and moves. Of effect when it is handed to [`Ids::committed`]; dropped, it never was.
#[derive(Default)]
pub(super) struct Staged {
    rows: Rows,
    moved: Vec<usize>,
    progress: Option<Progress>,
}

impl Ids {
    pub(super) fn new(recent_max: usize) -> Self {
        Self { recent: Mutex::default(), recent_max }
    }

    fn recent(&self) -> MutexGuard<'_, Recent> {
        self.recent.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The rows of those that are in memory, in the order asked. To be asked before the table, see the module.
    ///
    /// # Errors
    /// SQLite's, if the messages had to be read for it; the next call tries again.
    pub(super) fn recent_rows(
        &self,
        connection: &Connection,
        ids: impl Iterator<Item = MessageId>,
    ) -> rusqlite::Result<Vec<Option<i64>>> {
        let mut recent = self.recent();
        if recent.buckets.is_empty() {
            *recent = Recent::load(connection)?;
        }
        Ok(ids.map(|id| recent.buckets[bucket_of(&id.0)].get(&id.0).copied()).collect())
    }

    /// Moves buckets into the table, as many as there are ids too many.
    ///
    /// # Errors
    /// SQLite's.
    pub(super) fn make_room(&self, connection: &Connection, staged: &mut Staged) -> rusqlite::Result<()> {
        let (count, mut progress, newest) = {
            let recent = self.recent();
            (recent.count, recent.progress, recent.newest)
        };
        let mut left = count + staged.rows.len();
        while left > self.recent_max && staged.moved.len() < MOVES_MAX {
            let entries = self.in_order(progress.next);
            let mut insert = connection
                .prepare_cached("INSERT INTO message_ids (message_id, row) VALUES (?1, ?2) ON CONFLICT DO NOTHING")?;
            for (id, row) in &entries {
                insert.execute(params![id, row])?;
            }
            left -= entries.len();
            staged.moved.push(progress.next);
            progress.next += 1;
            if progress.next == BUCKETS {
                progress = Progress { indexed_to: progress.round_from, round_from: newest, next: 0 };
            }
        }
        if !staged.moved.is_empty() {
            connection
                .prepare_cached("UPDATE archive_meta SET indexed_to = ?1, round_from = ?2, next_bucket = ?3")?
                .execute(params![progress.indexed_to, progress.round_from, progress.next as i64])?;
            staged.progress = Some(progress);
        }
        Ok(())
    }

    /// What a bucket holds, in the order of the table.
    fn in_order(&self, bucket: usize) -> Vec<([u8; 16], i64)> {
        let mut entries: Vec<_> = self.recent().buckets[bucket].iter().map(|(id, row)| (*id, *row)).collect();
        entries.sort_unstable();
        entries
    }

    /// What was staged is committed.
    pub(super) fn committed(&self, staged: Staged) {
        let mut recent = self.recent();
        for bucket in &staged.moved {
            recent.count -= recent.buckets[*bucket].len();
            recent.buckets[*bucket].clear();
        }
        recent.progress = staged.progress.unwrap_or(recent.progress);
        recent.count += staged.rows.len();
        recent.newest = staged.rows.values().copied().fold(recent.newest, i64::max);
        for (id, row) in staged.rows {
            recent.buckets[bucket_of(&id)].insert(id, row);
        }
    }

    /// A commit failed, and what that left is uncertain: the messages are read anew before the next one.
    pub(super) fn doubt(&self) {
        *self.recent() = Recent::default();
    }
}

impl Recent {
    /// Reads the messages that may not be in the table.
    fn load(connection: &Connection) -> rusqlite::Result<Self> {
        let select = "SELECT indexed_to, round_from, next_bucket FROM archive_meta";
        let progress = connection.query_row(select, [], |row| {
            let next = usize::from(row.get::<_, u8>(2)?);
            Ok(Progress { indexed_to: row.get(0)?, round_from: row.get(1)?, next })
        })?;
        let (buckets, newest) = (vec![Rows::default(); BUCKETS], progress.indexed_to);
        let mut recent = Self { buckets, count: 0, progress, newest };
        let mut select = connection.prepare("SELECT message_id, row FROM messages WHERE row > ?1 ORDER BY row")?;
        let mut rows = select.query([progress.indexed_to])?;
        while let Some(row) = rows.next()? {
            let id = row.get(0)?;
            recent.newest = row.get(1)?;
            if bucket_of(&id) >= progress.next || recent.newest > progress.round_from {
                recent.buckets[bucket_of(&id)].insert(id, recent.newest);
                recent.count += 1;
            }
        }
        Ok(recent)
    }
}

impl Staged {
    pub(super) fn row(&self, id: &MessageId) -> Option<i64> {
        self.rows.get(&id.0).copied()
    }

    pub(super) fn add(&mut self, id: &MessageId, row: i64) {
        self.rows.insert(id.0, row);
    }
}

/// The row of an id in the table.
pub(super) fn indexed_row(connection: &Connection, id: &MessageId) -> rusqlite::Result<Option<i64>> {
    let mut select = connection.prepare_cached("SELECT row FROM message_ids WHERE message_id = ?1")?;
    select.query_row([id.0], |row| row.get(0)).optional()
}

fn bucket_of(id: &[u8; 16]) -> usize {
    id[0].into()
}
