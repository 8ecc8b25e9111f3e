//! What is written.
//!
//! In come batches and small changes with a clean connection, out goes the answer after the commit. Always: success
//! leaves the connection clean; after a fault the caller closes it, and the server rolls back what was open.

use mysql_async::prelude::Queryable as _;
use mysql_async::{Conn, Params, Row, Value};
use rustc_hash::FxHashMap;
use tidegate_core::event::StoredMessage;
use tidegate_core::ids::{ConversationId, Epoch, Millis, RoomId, Seq, UserId};
use tidegate_core::ports::{Joined, PersistBatch, Room, name_key};

use super::fault::Fault;
use super::reader::Reader;
use super::row::{column, conversation_value, id_value};
use super::widths::{Widths, filled};

/// Bytes of bodies in one statement: a quarter of the smallest packet limit that servers are shipped with (16 MiB).
const STATEMENT_BYTES_MAX: usize = 4 << 20;

/// The statements that change many rows.
#[derive(Debug)]
pub(super) struct Writer {
    messages: Widths,
    members: Widths,
    receipts: Widths,
}

impl Writer {
    pub(super) fn new() -> Self {
        Self {
            messages: Widths::new(
                "INSERT INTO messages
                 (conversation_id, seq, message_id, sender_id, sent_at_ms, content_type, body) VALUES ",
                "(?,?,?,?,?,?,?)",
                ",",
                "",
            ),
            members: Widths::new(
                "INSERT INTO members (user_id, conversation_id, joined_at_ms) VALUES ",
                "(?,?,?)",
                ",",
                " ON DUPLICATE KEY UPDATE joined_at_ms = joined_at_ms",
            ),
            receipts: Widths::new(
                "INSERT INTO receipts (user_id, conversation_id, delivered_seq, read_seq) VALUES ",
                "(?,?,?,?)",
                ",",
                " ON DUPLICATE KEY UPDATE delivered_seq = GREATEST(delivered_seq, VALUES(delivered_seq)),
                                          read_seq      = GREATEST(read_seq, VALUES(read_seq))",
            ),
        }
    }

    /// See [`tidegate_core::ports::Archive::persist`]. Assumes that nothing is stored, which is so unless a call is
    /// repeated; a duplicate key leads to [`Writer::complete`].
    pub(super) async fn persist(&self, conn: &mut Conn, reader: &Reader, batch: &PersistBatch) -> Result<(), Fault> {
        let messages: Vec<_> = batch.messages.iter().collect();
        match self.commit(conn, &messages, batch).await {
            Err(fault) if fault.is_duplicate() => self.complete(conn, reader, batch).await,
            answer => answer,
        }
    }

    /// Some of the messages are stored: adds the others. Goes round while somebody else is storing the same messages; two
    /// rounds that find nothing have met a different message.
    async fn complete(&self, conn: &mut Conn, reader: &Reader, batch: &PersistBatch) -> Result<(), Fault> {
        conn.query_drop("ROLLBACK").await?;
        let mut missing = distinct(&batch.messages)?;
        let mut fruitless_rounds = 0;
        while fruitless_rounds < 2 {
            let ids: Vec<_> = missing.iter().map(|message| message.message_id).collect();
            let stored = reader.find(conn, &ids).await?;
            let places: FxHashMap<_, _> =
                stored.iter().map(|message| (message.message_id, (message.conversation, message.seq))).collect();
            let in_place = |message: &&StoredMessage| {
                places.get(&message.message_id).is_none_or(|place| *place == (message.conversation, message.seq))
            };
            if let Some(moved) = missing.iter().find(|message| !in_place(message)) {
                return Err(Fault::Conflict(format!("message {} is stored in another place", moved.message_id)));
            }
            missing.retain(|message| !places.contains_key(&message.message_id));
            match self.commit(conn, &missing, batch).await {
                Err(fault) if fault.is_duplicate() => conn.query_drop("ROLLBACK").await?,
                answer => return answer,
            }
            fruitless_rounds = if stored.is_empty() { fruitless_rounds + 1 } else { 0 };
        }
        Err(Fault::Conflict("another message holds a sequence of the batch".to_owned()))
    }

    /// One transaction: `messages`, and what else the batch brings.
    async fn commit(&self, conn: &mut Conn, messages: &[&StoredMessage], batch: &PersistBatch) -> Result<(), Fault> {
        let members: Vec<_> = batch.messages.iter().filter_map(first_of_private).collect();
        let receipts: Vec<_> = batch.receipts.iter().filter(|receipt| receipt.has_standing()).collect();
        let is_one_statement =
            members.is_empty() && receipts.is_empty() && take_statement(messages).len() == messages.len();
        if is_one_statement {
            // Commits by itself: two round trips less.
            return insert_messages(conn, &self.messages, messages).await;
        }
        conn.query_drop("START TRANSACTION").await?;
        insert_messages(conn, &self.messages, messages).await?;
        let members = members.into_iter().flat_map(|(low, high, conversation, at)| {
            [low, high].map(|user| [Value::UInt(user.0), conversation_value(&conversation), Value::UInt(at.0)])
        });
        insert(conn, &self.members, &members.collect::<Vec<_>>()).await?;
        let receipts = receipts.into_iter().map(|receipt| {
            [
                Value::UInt(receipt.user.0),
                conversation_value(&receipt.conversation),
                Value::UInt(receipt.delivered.0),
                Value::UInt(receipt.read.0),
            ]
        });
        insert(conn, &self.receipts, &receipts.collect::<Vec<_>>()).await?;
        Ok(conn.query_drop("COMMIT").await?)
    }

    async fn admit(&self, conn: &mut Conn, room: RoomId, user: UserId, at: Millis) -> Result<(), Fault> {
        let conversation = conversation_value(&ConversationId::Room(room));
        insert(conn, &self.members, &[[Value::UInt(user.0), conversation, Value::UInt(at.0)]]).await
    }

    /// See [`tidegate_core::ports::Archive::create_room`].
    pub(super) async fn create_room(
        &self,
        conn: &mut Conn,
        name: &str,
        owner: UserId,
        capacity: u32,
        at: Millis,
    ) -> Result<Room, Fault> {
        conn.query_drop("START TRANSACTION").await?;
        let insert = "INSERT INTO rooms (name, owner_id, capacity, member_count, created_at_ms) VALUES (?, ?, ?, 1, ?)";
        conn.exec_drop(insert, (name, owner.0, capacity, at.0)).await?;
        let id = RoomId(conn.last_insert_id().ok_or_else(|| Fault::Refused("a room got no id".to_owned()))?);
        self.admit(conn, id, owner, at).await?;
        conn.query_drop("COMMIT").await?;
        Ok(Room { id, name: name.to_owned(), owner, capacity, members: 1, created_at: at, slow_mode_s: 0 })
    }

    /// See [`tidegate_core::ports::Archive::join_room`]. The room's row is locked first, so that joins and leaves of one
    /// room come one after the other and the count holds.
    pub(super) async fn join_room(
        &self,
        conn: &mut Conn,
        reader: &Reader,
        room: RoomId,
        user: UserId,
        at: Millis,
    ) -> Result<Joined, Fault> {
        conn.query_drop("START TRANSACTION").await?;
        let joined = match places(conn, room).await? {
            None => Joined::NoRoom,
            Some(_) if is_member(conn, room, user).await? => Joined::Already,
            Some(0) => Joined::Full,
            Some(_) => Joined::Now,
        };
        if joined != Joined::Now {
            conn.query_drop("ROLLBACK").await?;
            return Ok(joined);
        }
        self.admit(conn, room, user, at).await?;
        conn.exec_drop("UPDATE rooms SET member_count = member_count + 1 WHERE room_id = ?", (room.0,)).await?;
        let conversation = ConversationId::Room(room);
        let last = reader.ends(conn, &[conversation]).await?.first().map_or(Seq(0), |end| end.last);
        let row = [Value::UInt(user.0), conversation_value(&conversation), Value::UInt(last.0), Value::UInt(last.0)];
        insert(conn, &self.receipts, &[row]).await?;
        conn.query_drop("COMMIT").await?;
        Ok(Joined::Now)
    }
}

/// See [`tidegate_core::ports::Archive::begin_epoch`]. The row that was raised stays locked until the commit: what is
/// read is what was written. Rare, so one conversation after the other, in one order, so that no two lock each other out.
pub(super) async fn begin_epoch(
    conn: &mut Conn,
    conversations: &[(ConversationId, Epoch)],
    archive: Epoch,
) -> Result<Vec<Epoch>, Fault> {
    let raise = "INSERT INTO conversation_epochs (conversation_id, epoch) VALUES (?, ?)
                 ON DUPLICATE KEY UPDATE epoch = GREATEST(epoch + 1, VALUES(epoch))";
    let select = "SELECT epoch FROM conversation_epochs WHERE conversation_id = ?";
    let mut order: Vec<_> = (0..conversations.len()).collect();
    order.sort_unstable_by_key(|place| conversations[*place].0);
    let mut epochs = vec![archive; conversations.len()];
    conn.query_drop("START TRANSACTION").await?;
    for place in order {
        let (conversation, above) = &conversations[place];
        let epoch = archive.max(*above).0.saturating_add(1);
        conn.exec_drop(raise, (conversation_value(conversation), epoch)).await?;
        let row: Option<Row> = conn.exec_first(select, (conversation_value(conversation),)).await?;
        let mut row = row.ok_or_else(|| Fault::Refused("an epoch is missing".to_owned()))?;
        epochs[place] = Epoch(column(&mut row, 0)?);
    }
    conn.query_drop("COMMIT").await?;
    Ok(epochs)
}

/// See [`tidegate_core::ports::Archive::create_user`].
pub(super) async fn create_user(
    conn: &mut Conn,
    name: &str,
    password_hash: &str,
    at: Millis,
) -> Result<Option<UserId>, Fault> {
    let insert = "INSERT INTO users (name, name_key, password_hash, created_at_ms) VALUES (?, ?, ?, ?)";
    let inserted = conn.exec_drop(insert, (name, name_key(name).into_bytes(), password_hash, at.0)).await;
    match inserted.map_err(Fault::from) {
        Ok(()) => Ok(conn.last_insert_id().map(UserId)),
        Err(fault) if fault.is_duplicate() => Ok(None),
        Err(fault) => Err(fault),
    }
}

/// See [`tidegate_core::ports::Archive::leave_room`].
pub(super) async fn leave_room(conn: &mut Conn, room: RoomId, user: UserId) -> Result<bool, Fault> {
    conn.query_drop("START TRANSACTION").await?;
    places(conn, room).await?;
    let key = || Params::from((user.0, conversation_value(&ConversationId::Room(room))));
    conn.exec_drop("DELETE FROM members WHERE user_id = ? AND conversation_id = ?", key()).await?;
    let was_member = conn.affected_rows() > 0;
    if was_member {
        conn.exec_drop("DELETE FROM receipts WHERE user_id = ? AND conversation_id = ?", key()).await?;
        conn.exec_drop("UPDATE rooms SET member_count = member_count - 1 WHERE room_id = ?", (room.0,)).await?;
    }
    conn.query_drop("COMMIT").await?;
    Ok(was_member)
}

/// See [`tidegate_core::ports::Archive::set_slow_mode`].
pub(super) async fn set_slow_mode(conn: &mut Conn, room: RoomId, slow_mode_s: u32) -> Result<bool, Fault> {
    let select = "SELECT 1 FROM rooms WHERE room_id = ?";
    if conn.exec_first::<Row, _, _>(select, (room.0,)).await?.is_none() {
        return Ok(false);
    }
    if slow_mode_s == 0 {
        conn.exec_drop("DELETE FROM room_slow_modes WHERE room_id = ?", (room.0,)).await?;
    } else {
        let replace = "REPLACE INTO room_slow_modes (room_id, slow_mode_s) VALUES (?, ?)";
        conn.exec_drop(replace, (room.0, slow_mode_s)).await?;
    }
    Ok(true)
}

/// Locks the room until the end of the transaction. Free places, or `None` if there is no such room.
async fn places(conn: &mut Conn, room: RoomId) -> Result<Option<u32>, Fault> {
    let select = "SELECT capacity, member_count FROM rooms WHERE room_id = ? FOR UPDATE";
    let Some(mut row) = conn.exec_first::<Row, _, _>(select, (room.0,)).await? else { return Ok(None) };
    let (capacity, members): (u32, u32) = (column(&mut row, 0)?, column(&mut row, 1)?);
    Ok(Some(capacity.saturating_sub(members)))
}

async fn is_member(conn: &mut Conn, room: RoomId, user: UserId) -> Result<bool, Fault> {
    let select = "SELECT 1 FROM members WHERE user_id = ? AND conversation_id = ?";
    let key = (user.0, conversation_value(&ConversationId::Room(room)));
    Ok(conn.exec_first::<Row, _, _>(select, key).await?.is_some())
}

fn first_of_private(message: &StoredMessage) -> Option<(UserId, UserId, ConversationId, Millis)> {
    match (message.conversation, message.seq) {
        (ConversationId::Private { low, high }, Seq(1)) => Some((low, high, message.conversation, message.sent_at)),
        _ => None,
    }
}

/// Each message once.
///
/// # Errors
/// [`Fault::Conflict`] if two of them share an id or a place.
fn distinct(messages: &[StoredMessage]) -> Result<Vec<&StoredMessage>, Fault> {
    let mut places = FxHashMap::default();
    let mut ids = FxHashMap::default();
    let mut distinct = Vec::with_capacity(messages.len());
    for message in messages {
        let place = (message.conversation, message.seq);
        let known = (places.insert(place, message.message_id), ids.insert(message.message_id, place));
        match known {
            (None, None) => distinct.push(message),
            (Some(id), Some(known)) if id == message.message_id && known == place => {}
            _ => return Err(Fault::Conflict(format!("the batch holds two messages for {} {}", place.0, place.1.0))),
        }
    }
    Ok(distinct)
}

/// The messages of the next statement: a full width, unless their bodies are too long.
fn take_statement<'m, 'b>(messages: &'b [&'m StoredMessage]) -> &'b [&'m StoredMessage] {
    if messages.is_empty() {
        return messages;
    }
    let mut width = filled(messages.len());
    while width > 1 && messages[..width].iter().map(|message| message.body.len()).sum::<usize>() > STATEMENT_BYTES_MAX {
        width /= 2;
    }
    &messages[..width]
}

async fn insert_messages(conn: &mut Conn, sql: &Widths, mut messages: &[&StoredMessage]) -> Result<(), Fault> {
    while !messages.is_empty() {
        let statement = take_statement(messages);
        messages = &messages[statement.len()..];
        let mut values = Vec::with_capacity(statement.len() * 7);
        for message in statement {
            values.extend([
                conversation_value(&message.conversation),
                Value::UInt(message.seq.0),
                id_value(&message.message_id),
                Value::UInt(message.sender.0),
                Value::UInt(message.sent_at.0),
                Value::Int(i32::from(message.content_type).into()),
                Value::Bytes(message.body.to_vec()),
            ]);
        }
        conn.exec_drop(sql.sql(statement.len()), Params::Positional(values)).await?;
    }
    Ok(())
}

async fn insert<const COLUMNS: usize>(
    conn: &mut Conn,
    sql: &Widths,
    mut rows: &[[Value; COLUMNS]],
) -> Result<(), Fault> {
    while !rows.is_empty() {
        let (statement, rest) = rows.split_at(filled(rows.len()));
        conn.exec_drop(sql.sql(statement.len()), Params::Positional(statement.concat())).await?;
        rows = rest;
    }
    Ok(())
}
