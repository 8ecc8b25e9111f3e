//! The one thread that writes.
//!
//! In come batches and small changes through a bounded queue, out go their answers after the commit. All batches that
//! piled up while a commit was under way share the next one: the disk is made to wait for them once. Always: an answer
//! of success follows the commit that holds it, and a refused batch takes no other with it.

use std::sync::mpsc::{Receiver, RecvTimeoutError, TryRecvError};

use rusqlite::{Connection, OptionalExtension, TransactionBehavior, params};
use tidegate_core::event::{ReceiptMoved, StoredMessage};
use tidegate_core::ids::{ConversationId, Epoch, Millis, RoomId, Seq, UserId};
use tidegate_core::ports::{Joined, PersistBatch, PortError, PortResult, Room, name_key};
use tokio::sync::oneshot;

use super::ids::{Ids, Staged, indexed_row};
use super::mark::Mark;
use super::reader::{last_seq, number};
use super::{SERVICE, port_error, to_column};

/// Rows one commit takes before the first of them are answered. Half of what the partitions can have on their way, so that
/// one half prepares its turn while the other commits: all at once left the writer idle half of the time (private load at
/// 50,000/s: p99 895 ms with 4096, 181 ms with 2048).
const GROUP_ROWS_MAX: usize = 2048;

/// Something to be written.
pub(super) enum Change {
    /// A batch of the ingest engine.
    Persist {
        /// What to commit.
        batch: PersistBatch,
        /// Told after the commit.
        reply: oneshot::Sender<PortResult<()>>,
    },
    /// Anything else; answers for itself.
    Other(Box<dyn FnOnce(&mut Connection) + Send>),
}

struct Pending {
    batch: PersistBatch,
    reply: oneshot::Sender<PortResult<()>>,
}

/// Works until the queue is closed and empty; then moves the log into the file, so that one file holds it all.
pub(super) fn run(mut connection: Connection, queue: &Receiver<Change>, ids: &Ids, mut mark: Mark) {
    let mut other = None;
    while let Some(change) = other.take().or_else(|| next(queue, &mut mark, &connection)) {
        mark.is_behind();
        match change {
            Change::Other(work) => work(&mut connection),
            Change::Persist { batch, reply } => {
                let mut rows = batch.messages.len() + batch.receipts.len();
                let mut group = vec![Pending { batch, reply }];
                while rows < GROUP_ROWS_MAX && other.is_none() {
                    match queue.try_recv() {
                        Ok(Change::Persist { batch, reply }) => {
                            rows += batch.messages.len() + batch.receipts.len();
                            group.push(Pending { batch, reply });
                        }
                        Ok(change) => other = Some(change),
                        Err(TryRecvError::Empty | TryRecvError::Disconnected) => break,
                    }
                }
                commit_group(&mut connection, ids, group);
            }
        }
    }
    mark.write(&connection);
    if let Err(error) = connection.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(())) {
        tracing::warn!(%error, "the archive's log stays beside its file; the next start takes it in");
    }
}

/// The next change. Keeps the mark meanwhile. `None` if there will be no more.
fn next(queue: &Receiver<Change>, mark: &mut Mark, connection: &Connection) -> Option<Change> {
    loop {
        mark.keep(connection);
        let change = match mark.due_in() {
            None => queue.recv().map_err(|_| RecvTimeoutError::Disconnected),
            Some(due) => queue.recv_timeout(due),
        };
        match change {
            Ok(change) => return Some(change),
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return None,
        }
    }
}

/// One transaction for all; if that fails, one for each, so that everybody gets an answer of its own.
fn commit_group(connection: &mut Connection, ids: &Ids, mut group: Vec<Pending>) {
    // A caller that is gone has been answered by its deadline and will repeat the batch.
    group.retain(|pending| !pending.reply.is_closed());
    let batches: Vec<_> = group.iter().map(|pending| &pending.batch).collect();
    let committed = commit(connection, ids, &batches);
    let alone = group.len() == 1;
    for Pending { batch, reply } in group {
        let answer = match &committed {
            Err(_) if !alone => commit(connection, ids, &[&batch]),
            shared => shared.clone(),
        };
        let _ = reply.send(answer);
    }
}

/// One transaction, and what it means for the ids. Work that fails leaves no trace; a commit that fails might.
fn commit(connection: &mut Connection, ids: &Ids, batches: &[&PersistBatch]) -> PortResult<()> {
    let failed = |error| port_error(&error);
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate).map_err(failed)?;
    let mut staged = Staged::default();
    batches.iter().try_for_each(|batch| write_batch(&transaction, ids, &mut staged, batch))?;
    ids.make_room(&transaction, &mut staged).map_err(failed)?;
    match transaction.commit() {
        Ok(()) => {
            ids.committed(staged);
            Ok(())
        }
        Err(error) => {
            ids.doubt();
            Err(port_error(&error))
        }
    }
}

/// Runs `work` and commits, or leaves no trace.
pub(super) fn in_transaction<T>(
    connection: &mut Connection,
    work: impl FnOnce(&Connection) -> PortResult<T>,
) -> PortResult<T> {
    let transaction =
        connection.transaction_with_behavior(TransactionBehavior::Immediate).map_err(|error| port_error(&error))?;
    let answer = work(&transaction)?;
    transaction.commit().map_err(|error| port_error(&error))?;
    Ok(answer)
}

fn write_batch(connection: &Connection, ids: &Ids, staged: &mut Staged, batch: &PersistBatch) -> PortResult<()> {
    write_messages(connection, ids, staged, &batch.messages)?;
    write_receipts(connection, &batch.receipts).map_err(|error| port_error(&error))
}

fn write_messages(
    connection: &Connection,
    ids: &Ids,
    staged: &mut Staged,
    messages: &[StoredMessage],
) -> PortResult<()> {
    if messages.is_empty() {
        return Ok(());
    }
    let failed = |error| port_error(&error);
    let recent = ids.recent_rows(connection, messages.iter().map(|message| message.message_id)).map_err(failed)?;
    let mut insert = connection
        .prepare_cached(
            "INSERT INTO messages (conversation_id, seq, message_id, sender_id, sent_at_ms, content_type, body)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7) ON CONFLICT (conversation_id, seq) DO NOTHING",
        )
        .map_err(failed)?;
    let mut text = ConversationText::default();
    for (message, recent) in messages.iter().zip(recent) {
        let conversation = text.of(message.conversation);
        let known = match staged.row(&message.message_id).or(recent) {
            None => indexed_row(connection, &message.message_id).map_err(failed)?,
            known => known,
        };
        if let Some(row) = known {
            confirm_place(connection, row, conversation, message)?;
            continue;
        }
        let inserted = insert
            .execute(params![
                conversation,
                to_column(message.seq.0),
                message.message_id.0,
                to_column(message.sender.0),
                to_column(message.sent_at.0),
                i32::from(message.content_type),
                &*message.body,
            ])
            .map_err(failed)?;
        if inserted == 0 {
            return Err(conflict(conversation, message));
        }
        staged.add(&message.message_id, connection.last_insert_rowid());
        if let (ConversationId::Private { low, high }, Seq(1)) = (message.conversation, message.seq) {
            for user in [low, high] {
                admit(connection, user, conversation, message.sent_at).map_err(failed)?;
            }
        }
    }
    Ok(())
}

/// The archive has the message: in this place?
fn confirm_place(connection: &Connection, row: i64, conversation: &str, message: &StoredMessage) -> PortResult<()> {
    let failed = |error| port_error(&error);
    let mut stored = connection
        .prepare_cached("SELECT 1 FROM messages WHERE row = ?1 AND conversation_id = ?2 AND seq = ?3")
        .map_err(failed)?;
    match stored.exists(params![row, conversation, to_column(message.seq.0)]).map_err(failed)? {
        true => Ok(()),
        false => Err(conflict(conversation, message)),
    }
}

fn conflict(conversation: &str, message: &StoredMessage) -> PortError {
    let detail = format!("another message holds {conversation} {} or the id {}", message.seq.0, message.message_id);
    PortError::Conflict { service: SERVICE, detail }
}

fn write_receipts(connection: &Connection, receipts: &[ReceiptMoved]) -> rusqlite::Result<()> {
    let mut text = ConversationText::default();
    for receipt in receipts.iter().filter(|receipt| receipt.has_standing()) {
        let conversation = text.of(receipt.conversation);
        raise(connection, receipt.user, conversation, to_column(receipt.delivered.0), to_column(receipt.read.0))?;
    }
    Ok(())
}

fn raise(connection: &Connection, user: UserId, conversation: &str, delivered: i64, read: i64) -> rusqlite::Result<()> {
    connection
        .prepare_cached(
            "INSERT INTO receipts (user_id, conversation_id, delivered_seq, read_seq) VALUES (?1, ?2, ?3, ?4)
             ON CONFLICT DO UPDATE SET delivered_seq = MAX(delivered_seq, excluded.delivered_seq),
                                       read_seq      = MAX(read_seq, excluded.read_seq)",
        )?
        .execute(params![to_column(user.0), conversation, delivered, read])?;
    Ok(())
}

/// Returns whether the user is new.
fn admit(connection: &Connection, user: UserId, conversation: &str, at: Millis) -> rusqlite::Result<bool> {
    let mut insert = connection.prepare_cached(
        "INSERT INTO members (user_id, conversation_id, joined_at_ms) VALUES (?1, ?2, ?3) ON CONFLICT DO NOTHING",
    )?;
    Ok(insert.execute(params![to_column(user.0), conversation, to_column(at.0)])? > 0)
}

/// See [`tidegate_core::ports::Archive::begin_epoch`].
pub(super) fn begin_epoch(
    connection: &Connection,
    conversations: &[(ConversationId, Epoch)],
    archive: Epoch,
) -> rusqlite::Result<Vec<Epoch>> {
    let mut raise = connection.prepare_cached(
        "INSERT INTO conversation_epochs (conversation_id, epoch) VALUES (?1, ?2)
         ON CONFLICT DO UPDATE SET epoch = MAX(epoch + 1, excluded.epoch) RETURNING epoch",
    )?;
    let mut begin = |(conversation, above): &(ConversationId, Epoch)| {
        let epoch = archive.max(*above).0.saturating_add(1);
        raise.query_row(params![conversation.to_string(), epoch], |row| row.get(0).map(Epoch))
    };
    conversations.iter().map(&mut begin).collect()
}

/// See [`tidegate_core::ports::Archive::create_user`].
pub(super) fn create_user(
    connection: &Connection,
    name: &str,
    password_hash: &str,
    at: Millis,
) -> rusqlite::Result<Option<UserId>> {
    let mut insert = connection.prepare_cached(
        "INSERT INTO users (name, name_key, password_hash, created_at_ms) VALUES (?1, ?2, ?3, ?4)
         ON CONFLICT (name_key) DO NOTHING RETURNING user_id",
    )?;
    insert
        .query_row(params![name, name_key(name), password_hash, to_column(at.0)], |row| number(row, 0).map(UserId))
        .optional()
}

/// See [`tidegate_core::ports::Archive::create_room`].
pub(super) fn create_room(
    connection: &Connection,
    name: &str,
    owner: UserId,
    capacity: u32,
    at: Millis,
) -> rusqlite::Result<Room> {
    let id = connection
        .prepare_cached(
            "INSERT INTO rooms (name, owner_id, capacity, member_count, created_at_ms) VALUES (?1, ?2, ?3, 1, ?4)
             RETURNING room_id",
        )?
        .query_row(params![name, to_column(owner.0), capacity, to_column(at.0)], |row| number(row, 0).map(RoomId))?;
    admit(connection, owner, &ConversationId::Room(id).to_string(), at)?;
    Ok(Room { id, name: name.to_owned(), owner, capacity, members: 1, created_at: at, slow_mode_s: 0 })
}

/// See [`tidegate_core::ports::Archive::set_slow_mode`].
pub(super) fn set_slow_mode(connection: &Connection, room: RoomId, slow_mode_s: u32) -> rusqlite::Result<bool> {
    let mut update = connection.prepare_cached("UPDATE rooms SET slow_mode_s = ?2 WHERE room_id = ?1")?;
    Ok(update.execute(params![to_column(room.0), slow_mode_s])? > 0)
}

/// See [`tidegate_core::ports::Archive::join_room`].
pub(super) fn join_room(connection: &Connection, room: RoomId, user: UserId, at: Millis) -> rusqlite::Result<Joined> {
    let conversation = ConversationId::Room(room).to_string();
    let places: Option<bool> = connection
        .prepare_cached("SELECT member_count < capacity FROM rooms WHERE room_id = ?1")?
        .query_row([to_column(room.0)], |row| row.get(0))
        .optional()?;
    let Some(has_place) = places else { return Ok(Joined::NoRoom) };
    let mut member = connection.prepare_cached("SELECT 1 FROM members WHERE user_id = ?1 AND conversation_id = ?2")?;
    if member.exists(params![to_column(user.0), conversation])? {
        return Ok(Joined::Already);
    }
    if !has_place {
        return Ok(Joined::Full);
    }
    admit(connection, user, &conversation, at)?;
    count_members(connection, room, 1)?;
    let last = last_seq(connection, &conversation)?;
    raise(connection, user, &conversation, last, last)?;
    Ok(Joined::Now)
}

/// See [`tidegate_core::ports::Archive::leave_room`].
pub(super) fn leave_room(connection: &Connection, room: RoomId, user: UserId) -> rusqlite::Result<bool> {
    let key = (to_column(user.0), ConversationId::Room(room).to_string());
    let mut delete = connection.prepare_cached("DELETE FROM members WHERE user_id = ?1 AND conversation_id = ?2")?;
    if delete.execute((&key.0, &key.1))? == 0 {
        return Ok(false);
    }
    connection.prepare_cached("DELETE FROM receipts WHERE user_id = ?1 AND conversation_id = ?2")?.execute(key)?;
    count_members(connection, room, -1)?;
    Ok(true)
}

fn count_members(connection: &Connection, room: RoomId, change: i32) -> rusqlite::Result<()> {
    connection
        .prepare_cached("UPDATE rooms SET member_count = member_count + ?2 WHERE room_id = ?1")?
        .execute(params![to_column(room.0), change])?;
    Ok(())
}

/// A conversation's text in a buffer that serves a whole batch; runs of one conversation are written once.
#[derive(Default)]
struct ConversationText {
    of: Option<ConversationId>,
    text: String,
}

impl ConversationText {
    fn of(&mut self, conversation: ConversationId) -> &str {
        use std::fmt::Write as _;

        if self.of != Some(conversation) {
            self.text.clear();
            write!(self.text, "{conversation}").expect("a String takes any text");
            self.of = Some(conversation);
        }
        &self.text
    }
}
