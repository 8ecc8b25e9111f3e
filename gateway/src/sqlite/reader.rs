//! The threads that read, and what they ask.
//!
//! In come questions through a bounded queue, out go rows as the domain's types. A question is answered from one
//! snapshot, which holds everything committed before it was asked. Always: reading never waits for the writer, nor the
//! writer for a reader.

use std::sync::mpsc::Receiver;
use std::sync::{Mutex, PoisonError};

use bytes::Bytes;
use rusqlite::{Connection, OptionalExtension, Row, params};
use tidegate_core::event::StoredMessage;
use tidegate_core::ids::{ConversationId, Epoch, MessageId, Millis, RoomId, Seq, UserId};
use tidegate_core::ports::{End, Page, PortResult, Room, Standing, User, Watermark, name_key};
use tidegate_proto::v1::ContentType;

use super::ids::{Ids, indexed_row};
use super::{port_error, to_column};

/// A question; answers for itself.
pub(super) type Question = Box<dyn FnOnce(&mut Connection) + Send>;

/// Works until the queue is closed. The readers share it: whoever is free waits inside the lock, the others for the lock.
pub(super) fn run(mut connection: Connection, queue: &Mutex<Receiver<Question>>) {
    loop {
        let next = queue.lock().unwrap_or_else(PoisonError::into_inner).recv();
        match next {
            Ok(question) => question(&mut connection),
            Err(_closed) => return,
        }
    }
}

/// Runs `work` over one snapshot. Without it every statement would take and give back the file's read lock.
pub(super) fn in_snapshot<T>(
    connection: &mut Connection,
    work: impl FnOnce(&Connection) -> rusqlite::Result<T>,
) -> PortResult<T> {
    let answer = connection.transaction().and_then(|snapshot| {
        let answer = work(&snapshot)?;
        snapshot.finish()?;
        Ok(answer)
    });
    answer.map_err(|error| port_error(&error))
}

/// The columns as [`message`] reads them.
macro_rules! select_messages {
    ($condition:literal) => {
        concat!(
            "SELECT conversation_id, seq, message_id, sender_id, sent_at_ms, content_type, body FROM messages ",
            $condition
        )
    };
}

fn message(row: &Row<'_>) -> rusqlite::Result<StoredMessage> {
    let content_type: i32 = row.get(5)?;
    Ok(StoredMessage {
        conversation: conversation(row, 0)?,
        seq: Seq(number(row, 1)?),
        message_id: MessageId(row.get(2)?),
        sender: UserId(number(row, 3)?),
        sent_at: Millis(number(row, 4)?),
        content_type: ContentType::try_from(content_type).map_err(|error| damaged(5, error))?,
        body: Bytes::copy_from_slice(row.get_ref(6)?.as_blob()?),
    })
}

/// SQLite's integers are signed, ours are not.
pub(super) fn number(row: &Row<'_>, column: usize) -> rusqlite::Result<u64> {
    u64::try_from(row.get::<_, i64>(column)?).map_err(|error| damaged(column, error))
}

fn conversation(row: &Row<'_>, column: usize) -> rusqlite::Result<ConversationId> {
    row.get_ref(column)?.as_str()?.parse().map_err(|error| damaged(column, error))
}

fn damaged(column: usize, error: impl std::error::Error + Send + Sync + 'static) -> rusqlite::Error {
    rusqlite::Error::FromSqlConversionFailure(column, rusqlite::types::Type::Null, Box::new(error))
}

/// See [`tidegate_core::ports::Archive::find`]. One cached statement per id: a list of ids in one statement is first
/// sorted into a table of its own, which costs more than it saves.
pub(super) fn find(connection: &Connection, ids: &Ids, messages: &[MessageId]) -> rusqlite::Result<Vec<StoredMessage>> {
    let recent = ids.recent_rows(connection, messages.iter().copied())?;
    let mut select = connection.prepare_cached(select_messages!("WHERE row = ?1"))?;
    let mut found = Vec::new();
    for (id, recent) in messages.iter().zip(recent) {
        let row = if recent.is_some() { recent } else { indexed_row(connection, id)? };
        if let Some(row) = row {
            found.extend(select.query_row([row], message).optional()?);
        }
    }
    Ok(found)
}

/// The newest sequence as a column; zero if there is none.
pub(super) fn last_seq(connection: &Connection, conversation: &str) -> rusqlite::Result<i64> {
    let mut select =
        connection.prepare_cached("SELECT seq FROM messages WHERE conversation_id = ?1 ORDER BY seq DESC LIMIT 1")?;
    Ok(select.query_row([conversation], |row| row.get(0)).optional()?.unwrap_or_default())
}

fn end(connection: &Connection, conversation: &str, archive: Epoch) -> rusqlite::Result<End> {
    let epoch = connection
        .prepare_cached("SELECT epoch FROM conversation_epochs WHERE conversation_id = ?1")?
        .query_row([conversation], |row| row.get(0).map(Epoch))
        .optional()?;
    let last = last_seq(connection, conversation)?;
    Ok(End { epoch: epoch.unwrap_or_default().max(archive), last: Seq(last.unsigned_abs()) })
}

/// See [`tidegate_core::ports::Archive::ends`].
pub(super) fn ends(
    connection: &Connection,
    conversations: &[ConversationId],
    archive: Epoch,
) -> rusqlite::Result<Vec<End>> {
    conversations.iter().map(|conversation| end(connection, &conversation.to_string(), archive)).collect()
}

/// The oldest messages above a sequence.
const SELECT_AFTER: &str = select_messages!("WHERE conversation_id = ?1 AND seq > ?2 ORDER BY seq LIMIT ?3");

/// See [`tidegate_core::ports::Archive::missing`].
pub(super) fn missing(
    connection: &Connection,
    after: &[(ConversationId, Seq)],
    max_each: u32,
) -> rusqlite::Result<Vec<Vec<StoredMessage>>> {
    let mut select = connection.prepare_cached(SELECT_AFTER)?;
    let mut of = |(conversation, seq): &(ConversationId, Seq)| {
        select.query_map(params![conversation.to_string(), to_column(seq.0), max_each], message)?.collect()
    };
    after.iter().map(&mut of).collect()
}

/// See [`tidegate_core::ports::Archive::watermarks`]. By way of the members: receipts are in the order of users.
pub(super) fn watermarks(
    connection: &Connection,
    conversations: &[ConversationId],
) -> rusqlite::Result<Vec<Vec<Watermark>>> {
    let mut select = connection.prepare_cached(
        "SELECT r.user_id, r.delivered_seq, r.read_seq
         FROM members m CROSS JOIN receipts r ON r.user_id = m.user_id AND r.conversation_id = m.conversation_id
         WHERE m.conversation_id = ?1 AND MAX(r.delivered_seq, r.read_seq) > 0 ORDER BY m.user_id",
    )?;
    let mark = |row: &Row<'_>| {
        Ok(Watermark { user: UserId(number(row, 0)?), delivered: Seq(number(row, 1)?), read: Seq(number(row, 2)?) })
    };
    let mut of = |conversation: &ConversationId| select.query_map([conversation.to_string()], mark)?.collect();
    conversations.iter().map(&mut of).collect()
}

/// See [`tidegate_core::ports::Archive::history`].
pub(super) fn history(
    connection: &Connection,
    conversation: ConversationId,
    page: Page,
    size: u32,
) -> rusqlite::Result<Vec<StoredMessage>> {
    let (sql, from) = match page {
        Page::Newest => {
            (select_messages!("WHERE conversation_id = ?1 AND seq <= ?2 ORDER BY seq DESC LIMIT ?3"), i64::MAX)
        }
        Page::Before(seq) => {
            (select_messages!("WHERE conversation_id = ?1 AND seq < ?2 ORDER BY seq DESC LIMIT ?3"), to_column(seq.0))
        }
        Page::After(seq) => (SELECT_AFTER, to_column(seq.0)),
    };
    let mut select = connection.prepare_cached(sql)?;
    let rows = select.query_map(params![conversation.to_string(), from, size], message)?;
    let mut messages: Vec<_> = rows.collect::<rusqlite::Result<_>>()?;
    if !matches!(page, Page::After(_)) {
        messages.reverse();
    }
    Ok(messages)
}

/// See [`tidegate_core::ports::Archive::standings`]. The newest message of each of the user's conversations decides the
/// order, two steps in the index each; unread messages are counted for the chosen ones only.
pub(super) fn standings(
    connection: &Connection,
    user: UserId,
    max: usize,
    archive: Epoch,
) -> rusqlite::Result<Vec<Standing>> {
    let mut select = connection.prepare_cached(
        "WITH mine AS (
             SELECT m.conversation_id, COALESCE((
                 SELECT seq FROM messages WHERE conversation_id = m.conversation_id ORDER BY seq DESC LIMIT 1
             ), 0) AS last_seq
             FROM members m WHERE m.user_id = ?1
         )
         SELECT mine.conversation_id, mine.last_seq
         FROM mine LEFT JOIN messages newest
              ON newest.conversation_id = mine.conversation_id AND newest.seq = mine.last_seq
         WHERE mine.last_seq > 0 OR substr(mine.conversation_id, 1, 2) = 'r_'
         ORDER BY newest.sent_at_ms DESC, mine.conversation_id LIMIT ?2",
    )?;
    let max = i64::try_from(max).unwrap_or(i64::MAX);
    let rows = select.query_map(params![to_column(user.0), max], |row| conversation(row, 0))?;
    let chosen = rows.collect::<rusqlite::Result<Vec<_>>>()?;
    chosen.into_iter().map(|conversation| standing(connection, user, conversation, archive)).collect()
}

/// See [`tidegate_core::ports::Archive::standings_of`].
pub(super) fn standings_of(
    connection: &Connection,
    pairs: &[(UserId, ConversationId)],
    archive: Epoch,
) -> rusqlite::Result<Vec<Standing>> {
    pairs.iter().map(|(user, conversation)| standing(connection, *user, *conversation, archive)).collect()
}

fn standing(
    connection: &Connection,
    user: UserId,
    conversation: ConversationId,
    archive: Epoch,
) -> rusqlite::Result<Standing> {
    let text = conversation.to_string();
    let End { epoch, last } = end(connection, &text, archive)?;
    let (delivered, read): (i64, i64) = connection
        .prepare_cached("SELECT delivered_seq, read_seq FROM receipts WHERE user_id = ?1 AND conversation_id = ?2")?
        .query_row(params![to_column(user.0), text], |row| Ok((row.get(0)?, row.get(1)?)))
        .optional()?
        .unwrap_or_default();
    let unread = connection
        .prepare_cached("SELECT COUNT(*) FROM messages WHERE conversation_id = ?1 AND seq > ?2 AND sender_id <> ?3")?
        .query_row(params![text, read, to_column(user.0)], |row| row.get(0))?;
    let (delivered, read) = (Seq(delivered.unsigned_abs()), Seq(read.unsigned_abs()));
    Ok(Standing { conversation, epoch, last, delivered, read, unread })
}

/// See [`tidegate_core::ports::Archive::user_by_name`].
pub(super) fn user_by_name(connection: &Connection, name: &str) -> rusqlite::Result<Option<(User, String)>> {
    connection
        .prepare_cached("SELECT user_id, name, password_hash FROM users WHERE name_key = ?1")?
        .query_row([name_key(name)], |row| Ok((user(row)?, row.get(2)?)))
        .optional()
}

/// See [`tidegate_core::ports::Archive::users`].
pub(super) fn users(connection: &Connection, ids: &[UserId]) -> rusqlite::Result<Vec<User>> {
    let mut select = connection.prepare_cached("SELECT user_id, name FROM users WHERE user_id = ?1")?;
    let mut found = Vec::with_capacity(ids.len());
    for id in ids {
        found.extend(select.query_row([to_column(id.0)], user).optional()?);
    }
    Ok(found)
}

fn user(row: &Row<'_>) -> rusqlite::Result<User> {
    Ok(User { id: UserId(number(row, 0)?), name: row.get(1)? })
}

/// The columns as [`room_row`] reads them.
macro_rules! room_columns {
    () => {
        "room_id, name, owner_id, capacity, member_count, created_at_ms, slow_mode_s"
    };
}

/// Rooms with ids below `before`, newest first. See [`tidegate_core::ports::Archive::rooms`].
pub(super) fn rooms(connection: &Connection, before: Option<RoomId>, size: u32) -> rusqlite::Result<Vec<Room>> {
    let before = before.map_or(i64::MAX, |room| to_column(room.0));
    let select = concat!("SELECT ", room_columns!(), " FROM rooms WHERE room_id < ?1 ORDER BY room_id DESC LIMIT ?2");
    let mut select = connection.prepare_cached(select)?;
    select.query_map(params![before, size], room_row)?.collect()
}

/// See [`tidegate_core::ports::Archive::room`].
pub(super) fn room(connection: &Connection, room: RoomId) -> rusqlite::Result<Option<Room>> {
    let select = concat!("SELECT ", room_columns!(), " FROM rooms WHERE room_id = ?1");
    connection.prepare_cached(select)?.query_row([to_column(room.0)], room_row).optional()
}

/// See [`tidegate_core::ports::Archive::rooms_by_id`].
pub(super) fn rooms_by_id(connection: &Connection, ids: &[RoomId]) -> rusqlite::Result<Vec<Room>> {
    let mut found = Vec::with_capacity(ids.len());
    for id in ids {
        found.extend(room(connection, *id)?);
    }
    Ok(found)
}

fn room_row(row: &Row<'_>) -> rusqlite::Result<Room> {
    Ok(Room {
        id: RoomId(number(row, 0)?),
        name: row.get(1)?,
        owner: UserId(number(row, 2)?),
        capacity: row.get(3)?,
        members: row.get(4)?,
        created_at: Millis(number(row, 5)?),
        slow_mode_s: row.get(6)?,
    })
}

/// See [`tidegate_core::ports::Archive::members`].
pub(super) fn members(connection: &Connection, rooms: &[RoomId]) -> rusqlite::Result<Vec<Vec<UserId>>> {
    let mut select = connection.prepare_cached("SELECT user_id FROM members WHERE conversation_id = ?1")?;
    let mut of = |room: &RoomId| {
        select.query_map([ConversationId::Room(*room).to_string()], |row| number(row, 0).map(UserId))?.collect()
    };
    rooms.iter().map(&mut of).collect()
}

/// See [`tidegate_core::ports::Archive::rooms_of`].
pub(super) fn rooms_of(connection: &Connection, user: UserId) -> rusqlite::Result<Vec<RoomId>> {
    // `r` followed by `_`, and `` ` `` is the byte after `_`: the user's rooms are one range of the key.
    let mut select = connection.prepare_cached(
        "SELECT conversation_id FROM members WHERE user_id = ?1 AND conversation_id >= 'r_' AND conversation_id < 'r`'",
    )?;
    let rows = select.query_map([to_column(user.0)], |row| conversation(row, 0))?;
    let room = |conversation| match conversation {
        Ok(ConversationId::Room(room)) => Some(Ok(room)),
        Ok(_) => None,
        Err(error) => Some(Err(error)),
    };
    rows.filter_map(room).collect()
}
