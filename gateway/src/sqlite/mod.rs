//! The embedded archive: one SQLite file.
//!
//! In come the calls of [`Archive`] on any task; they are carried to one thread that writes ([`writer`]) and to a few
//! that read ([`reader`]), over bounded queues. Always: no call blocks the task it comes from, what was answered is on
//! the disk, a full queue or a late answer is an error and not a wait, and one process has the file ([`schema`]).

mod ids;
mod mark;
mod reader;
pub(crate) mod schema;
mod writer;

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use rusqlite::{Connection, ErrorCode};
use tidegate_core::event::StoredMessage;
use tidegate_core::ids::{ConversationId, Epoch, MessageId, Millis, RoomId, Seq, UserId};
use tidegate_core::ports::{
    Archive, End, Joined, Page, PersistBatch, PortError, PortResult, Room, Standing, User, Watermark,
};
use tokio::sync::oneshot;

use crate::writing::Writing;
use ids::{Ids, RECENT_MAX};
use mark::Mark;
use reader::Question;
use writer::Change;

const SERVICE: &str = "sqlite";

/// Threads that read. Two keep a long page from holding up a lookup; more would only compete for the same cores.
const READERS: usize = 2;

/// Changes waiting for the writer. Each partition has one batch under way, so this is met only when the disk hangs.
const CHANGES_MAX: usize = 256;

/// Questions waiting for a reader.
const QUESTIONS_MAX: usize = 1024;

/// How long a caller waits for its answer. A disk that hangs longer is an outage.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);

/// Why the file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Another process has it.
    #[error("{path} is in use by another gateway")]
    InUse {
        /// The file.
        path: PathBuf,
    },
    /// The directory is missing, not ours or read-only.
    #[error("cannot create {path}: {source}")]
    Directory {
        /// The file that could not be created.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A newer program wrote it; this one would damage it.
    #[error("{path} has schema version {found}, this program knows {known}: start the newer program")]
    Newer {
        /// The file.
        path: PathBuf,
        /// Its version.
        found: usize,
        /// The newest version of this program.
        known: usize,
    },
    /// Not a database, damaged, read-only, or the disk is full.
    #[error("cannot use {path} as an archive: {source}")]
    Database {
        /// The file.
        path: PathBuf,
        /// What SQLite said.
        source: rusqlite::Error,
    },
    /// The system gives no threads.
    #[error("cannot start the archive's threads: {0}")]
    Threads(std::io::Error),
}

/// An [`Archive`] in one file, with its log and its lock beside it (`-wal`, `-shm`, `.lock`). The lock file also holds how
/// far the archive was: if the file is replaced by an older copy, a new epoch begins.
///
/// Dropping it waits until everything queued is written and the log is moved into the file.
#[derive(Debug)]
pub struct SqliteArchive {
    epoch: Epoch,
    ids: Arc<Ids>,
    /// `None` only while it is dropped.
    queues: Option<Queues>,
    readers: Vec<JoinHandle<()>>,
    writer: Option<JoinHandle<()>>,
    writing: Writing,
    /// Given back last, when no thread holds a connection any more.
    _lock: File,
}

#[derive(Debug)]
struct Queues {
    changes: SyncSender<Change>,
    questions: SyncSender<Question>,
}

impl SqliteArchive {
    /// Opens the archive, or makes a new one; directories on the way are created. Blocks for the time of a few reads, or
    /// longer if a killed process left a log to take in.
    ///
    /// # Errors
    /// [`OpenError`].
    pub fn open(path: &Path) -> Result<Self, OpenError> {
        Self::open_with(path, RECENT_MAX)
    }

    fn open_with(path: &Path, recent_ids_max: usize) -> Result<Self, OpenError> {
        let lock = schema::lock(path)?;
        let (connection, epoch) = schema::open_writer(path, &lock)?;
        let mark = Mark::new(lock.try_clone().map_err(OpenError::Threads)?);
        let ids = Arc::new(Ids::new(recent_ids_max));
        if let Err(error) = ids.recent_rows(&connection, std::iter::empty()) {
            // A damaged file serves what can still be read of it; whoever needs the ids gets the error.
            tracing::error!(%error, "the newest messages could not be read");
        }
        let (changes, change_queue) = sync_channel(CHANGES_MAX);
        let (questions, question_queue) = sync_channel(QUESTIONS_MAX);
        let question_queue = Arc::new(Mutex::new(question_queue));
        let mut readers = Vec::with_capacity(READERS);
        for _ in 0..READERS {
            let (connection, queue) = (schema::open_reader(path)?, Arc::clone(&question_queue));
            readers.push(spawn("archive-reader", move || reader::run(connection, &queue))?);
        }
        let of_writer = Arc::clone(&ids);
        let writer = spawn("archive-writer", move || writer::run(connection, &change_queue, &of_writer, mark))?;
        let queues = Some(Queues { changes, questions });
        let writing = Writing::default();
        Ok(Self { epoch, ids, queues, readers, writer: Some(writer), writing, _lock: lock })
    }

    /// Writes what is queued, moves the log into the file and gives the file free.
    pub async fn close(self) {
        // The wait is the disk's: it must not hold up a runtime's thread.
        let _ = tokio::task::spawn_blocking(move || drop(self)).await;
    }

    fn queues(&self) -> &Queues {
        self.queues.as_ref().expect("taken by drop only")
    }

    async fn ask<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Connection) -> rusqlite::Result<T> + Send + 'static,
    ) -> PortResult<T> {
        let (reply, answer) = oneshot::channel();
        let question: Question = Box::new(move |connection| {
            if !reply.is_closed() {
                let _ = reply.send(reader::in_snapshot(connection, work));
            }
        });
        enqueue(&self.queues().questions, question)?;
        await_answer(answer).await
    }

    async fn change<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Connection) -> rusqlite::Result<T> + Send + 'static,
    ) -> PortResult<T> {
        let (reply, answer) = oneshot::channel();
        let change = Change::Other(Box::new(move |connection| {
            if !reply.is_closed() {
                let work = |connection: &_| work(connection).map_err(|error| port_error(&error));
                let _ = reply.send(writer::in_transaction(connection, work));
            }
        }));
        enqueue(&self.queues().changes, change)?;
        await_answer(answer).await
    }
}

impl Drop for SqliteArchive {
    fn drop(&mut self) {
        drop(self.queues.take());
        // Readers first: the writer can cut the log only when nobody reads from it.
        for thread in self.readers.drain(..).chain(self.writer.take()) {
            if thread.join().is_err() {
                tracing::error!("a thread of the archive had panicked");
            }
        }
    }
}

fn spawn(name: &str, work: impl FnOnce() + Send + 'static) -> Result<JoinHandle<()>, OpenError> {
    std::thread::Builder::new().name(name.to_owned()).spawn(work).map_err(OpenError::Threads)
}

fn enqueue<T>(queue: &SyncSender<T>, item: T) -> PortResult<()> {
    queue.try_send(item).map_err(|error| match error {
        TrySendError::Full(_) => unavailable("its queue is full"),
        TrySendError::Disconnected(_) => unavailable("its thread has ended"),
    })
}

async fn await_answer<T>(answer: oneshot::Receiver<PortResult<T>>) -> PortResult<T> {
    match tokio::time::timeout(ANSWER_TIMEOUT, answer).await {
        Ok(Ok(answer)) => answer,
        Ok(Err(_dropped)) => Err(unavailable("its thread has ended")),
        Err(_elapsed) => Err(unavailable("no answer from the disk in time")),
    }
}

fn unavailable(detail: &str) -> PortError {
    PortError::Unavailable { service: SERVICE, detail: detail.to_owned() }
}

/// A full disk may be emptied and a failing one replaced under us; a damaged or read-only file stays so.
fn port_error(error: &rusqlite::Error) -> PortError {
    let detail = error.to_string();
    match error.sqlite_error_code() {
        Some(
            ErrorCode::DatabaseBusy
            | ErrorCode::DatabaseLocked
            | ErrorCode::DiskFull
            | ErrorCode::SystemIoFailure
            | ErrorCode::OutOfMemory
            | ErrorCode::CannotOpen
            | ErrorCode::OperationInterrupted
            | ErrorCode::FileLockingProtocolFailed,
        ) => PortError::Unavailable { service: SERVICE, detail },
        Some(ErrorCode::TooBig | ErrorCode::TypeMismatch | ErrorCode::ConstraintViolation) => {
            PortError::Unfit { service: SERVICE, detail }
        }
        _ => PortError::Refused { service: SERVICE, detail },
    }
}

/// SQLite's integers are signed; ids and sequences are far below that, and a watermark above it means "all".
fn to_column(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

impl Archive for SqliteArchive {
    fn epoch(&self) -> Epoch {
        self.epoch
    }

    async fn find(&self, messages: &[MessageId]) -> PortResult<Vec<StoredMessage>> {
        let (messages, ids) = (messages.to_vec(), Arc::clone(&self.ids));
        let found = self.ask(move |connection| reader::find(connection, &ids, &messages)).await;
        self.writing.learn("find", found)
    }

    async fn ends(&self, conversations: &[ConversationId]) -> PortResult<Vec<End>> {
        let (conversations, archive) = (conversations.to_vec(), self.epoch);
        self.ask(move |connection| reader::ends(connection, &conversations, archive)).await
    }

    async fn begin_epoch(&self, conversations: &[(ConversationId, Epoch)]) -> PortResult<Vec<Epoch>> {
        let (conversations, archive) = (conversations.to_vec(), self.epoch);
        self.change(move |connection| writer::begin_epoch(connection, &conversations, archive)).await
    }

    async fn persist(&self, batch: &PersistBatch) -> PortResult<()> {
        let (reply, answer) = oneshot::channel();
        enqueue(&self.queues().changes, Change::Persist { batch: batch.clone(), reply })?;
        self.writing.learn("persist", await_answer(answer).await)
    }

    async fn history(&self, conversation: ConversationId, page: Page, size: u32) -> PortResult<Vec<StoredMessage>> {
        self.ask(move |connection| reader::history(connection, conversation, page, size)).await
    }

    async fn missing(&self, after: &[(ConversationId, Seq)], max_each: u32) -> PortResult<Vec<Vec<StoredMessage>>> {
        let after = after.to_vec();
        self.ask(move |connection| reader::missing(connection, &after, max_each)).await
    }

    async fn watermarks(&self, conversations: &[ConversationId]) -> PortResult<Vec<Vec<Watermark>>> {
        let conversations = conversations.to_vec();
        self.ask(move |connection| reader::watermarks(connection, &conversations)).await
    }

    async fn standings(&self, user: UserId, max: usize) -> PortResult<Vec<Standing>> {
        let archive = self.epoch;
        self.ask(move |connection| reader::standings(connection, user, max, archive)).await
    }

    async fn standings_of(&self, pairs: &[(UserId, ConversationId)]) -> PortResult<Vec<Standing>> {
        let (pairs, archive) = (pairs.to_vec(), self.epoch);
        self.ask(move |connection| reader::standings_of(connection, &pairs, archive)).await
    }

    async fn create_user(&self, name: &str, password_hash: &str, at: Millis) -> PortResult<Option<UserId>> {
        let (name, password_hash) = (name.to_owned(), password_hash.to_owned());
        self.change(move |connection| writer::create_user(connection, &name, &password_hash, at)).await
    }

    async fn user_by_name(&self, name: &str) -> PortResult<Option<(User, String)>> {
        let name = name.to_owned();
        self.ask(move |connection| reader::user_by_name(connection, &name)).await
    }

    async fn users(&self, ids: &[UserId]) -> PortResult<Vec<User>> {
        let ids = ids.to_vec();
        self.ask(move |connection| reader::users(connection, &ids)).await
    }

    async fn create_room(&self, name: &str, owner: UserId, capacity: u32, at: Millis) -> PortResult<Room> {
        let name = name.to_owned();
        self.change(move |connection| writer::create_room(connection, &name, owner, capacity, at)).await
    }

    async fn room(&self, room: RoomId) -> PortResult<Option<Room>> {
        self.ask(move |connection| reader::room(connection, room)).await
    }

    async fn rooms_by_id(&self, ids: &[RoomId]) -> PortResult<Vec<Room>> {
        let ids = ids.to_vec();
        self.ask(move |connection| reader::rooms_by_id(connection, &ids)).await
    }

    async fn set_slow_mode(&self, room: RoomId, slow_mode_s: u32) -> PortResult<bool> {
        self.change(move |connection| writer::set_slow_mode(connection, room, slow_mode_s)).await
    }

    async fn rooms(&self, before: Option<RoomId>, size: u32) -> PortResult<Vec<Room>> {
        self.ask(move |connection| reader::rooms(connection, before, size)).await
    }

    async fn join_room(&self, room: RoomId, user: UserId, at: Millis) -> PortResult<Joined> {
        self.change(move |connection| writer::join_room(connection, room, user, at)).await
    }

    async fn leave_room(&self, room: RoomId, user: UserId) -> PortResult<bool> {
        self.change(move |connection| writer::leave_room(connection, room, user)).await
    }

    async fn members(&self, rooms: &[RoomId]) -> PortResult<Vec<Vec<UserId>>> {
        let rooms = rooms.to_vec();
        self.ask(move |connection| reader::members(connection, &rooms)).await
    }

    async fn rooms_of(&self, user: UserId) -> PortResult<Vec<RoomId>> {
        self.ask(move |connection| reader::rooms_of(connection, user)).await
    }

    async fn ping(&self) -> PortResult<()> {
        self.ask(|connection| connection.query_row("SELECT 1", [], |_| Ok(()))).await?;
        self.writing.is_well()
    }
}

#[cfg(test)]
mod tests;
