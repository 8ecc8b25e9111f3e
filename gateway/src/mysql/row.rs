//! Rows as the domain's types.
//!
//! In come the driver's rows, out go messages, users and rooms. Always: a value that is not what the schema promises is
//! an error; the driver's own conversions would panic.

use bytes::Bytes;
use mysql_async::prelude::FromValue;
use mysql_async::{Row, Value};
use tidegate_core::event::StoredMessage;
use tidegate_core::ids::{ConversationId, MessageId, Millis, RoomId, Seq, UserId};
use tidegate_core::ports::{Room, User};
use tidegate_proto::v1::ContentType;

use super::fault::Fault;

/// Takes one column.
///
/// # Errors
/// [`Fault::Refused`] if it is missing or of another type.
pub(super) fn column<T: FromValue>(row: &mut Row, index: usize) -> Result<T, Fault> {
    match row.take_opt::<T, usize>(index) {
        Some(Ok(value)) => Ok(value),
        Some(Err(_)) | None => Err(damaged(index)),
    }
}

fn damaged(index: usize) -> Fault {
    Fault::Refused(format!("column {index} of a row is not as the schema says"))
}

/// A text column as an id.
///
/// # Errors
/// [`Fault::Refused`].
pub(super) fn conversation(row: &mut Row, index: usize) -> Result<ConversationId, Fault> {
    column::<String>(row, index)?.parse().map_err(|_| damaged(index))
}

/// The columns as [`message`] reads them.
macro_rules! message_columns {
    () => {
        "conversation_id, seq, message_id, sender_id, sent_at_ms, content_type, body"
    };
}
pub(super) use message_columns;

/// # Errors
/// [`Fault::Refused`].
pub(super) fn message(mut row: Row) -> Result<StoredMessage, Fault> {
    let row = &mut row;
    let content_type: i32 = column(row, 5)?;
    Ok(StoredMessage {
        conversation: conversation(row, 0)?,
        seq: Seq(column(row, 1)?),
        message_id: MessageId::from_wire(&column::<Vec<u8>>(row, 2)?).ok_or_else(|| damaged(2))?,
        sender: UserId(column(row, 3)?),
        sent_at: Millis(column(row, 4)?),
        content_type: ContentType::try_from(content_type).map_err(|_| damaged(5))?,
        body: Bytes::from(column::<Vec<u8>>(row, 6)?),
    })
}

/// The columns as [`room`] reads them.
macro_rules! room_columns {
    () => {
        "rooms.room_id, name, owner_id, capacity, member_count, created_at_ms, \
         COALESCE((SELECT slow_mode_s FROM room_slow_modes AS slow WHERE slow.room_id = rooms.room_id), 0)"
    };
}
pub(super) use room_columns;

/// # Errors
/// [`Fault::Refused`].
pub(super) fn room(mut row: Row) -> Result<Room, Fault> {
    let row = &mut row;
    Ok(Room {
        id: RoomId(column(row, 0)?),
        name: column(row, 1)?,
        owner: UserId(column(row, 2)?),
        capacity: column(row, 3)?,
        members: column(row, 4)?,
        created_at: Millis(column(row, 5)?),
        slow_mode_s: column(row, 6)?,
    })
}

/// Reads `user_id, name`.
///
/// # Errors
/// [`Fault::Refused`].
pub(super) fn user(row: &mut Row) -> Result<User, Fault> {
    Ok(User { id: UserId(column(row, 0)?), name: column(row, 1)? })
}

/// An id as a parameter.
pub(super) fn id_value(id: &MessageId) -> Value {
    Value::Bytes(id.0.to_vec())
}

/// A conversation as a parameter.
pub(super) fn conversation_value(conversation: &ConversationId) -> Value {
    Value::Bytes(conversation.to_string().into_bytes())
}
