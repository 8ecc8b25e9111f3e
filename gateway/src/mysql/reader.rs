//! What is read.
//!
//! In come questions with a clean connection, out go the domain's types. Always: the newest message of a conversation is one step in the key, never a scan, and lists go in
//! statements of a few fixed widths, filled up with their last entry.

use mysql_async::prelude::Queryable as _;
use mysql_async::{Conn, Params, Row, Value};
use rustc_hash::FxHashMap;
use tidegate_core::event::StoredMessage;
use tidegate_core::ids::{ConversationId, Epoch, MessageId, RoomId, Seq, UserId};
use tidegate_core::ports::{End, Page, Room, Standing, User, Watermark, name_key};

use super::fault::Fault;
use super::row::{
    column, conversation, conversation_value, id_value, message, message_columns, room, room_columns, user,
};
use super::widths::{WIDTH_MAX, Widths, padded};

/// Branches of one UNION. Each is a little query of its own that the server has to plan.
const UNION_MAX: usize = 64;

/// The newest sequence of a conversation, a single step to the end of its range. (`MAX` with a parameter is as quick in
/// MySQL, but inside another query it may read the whole range.)
macro_rules! last_seq {
    () => {
        "COALESCE((SELECT seq FROM messages WHERE conversation_id = ? ORDER BY seq DESC LIMIT 1), 0)"
    };
}

/// The epoch of a conversation, if it began one of its own; else zero.
macro_rules! own_epoch {
    () => {
        "COALESCE((SELECT epoch FROM conversation_epochs WHERE conversation_id = ?), 0)"
    };
}

/// The statements over lists.
#[derive(Debug)]
pub(super) struct Reader {
    /// Of the conversations without an epoch of their own.
    archive_epoch: Epoch,
    find: Widths,
    users: Widths,
    rooms: Widths,
    members: Widths,
    ends: Widths,
    missing: Widths,
    watermarks: Widths,
    standings: Widths,
}

impl Reader {
    pub(super) fn new(archive_epoch: Epoch) -> Self {
        let find = concat!("SELECT ", message_columns!(), " FROM messages WHERE message_id IN (");
        let ends = concat!("SELECT ? AS place, ", own_epoch!(), ", ", last_seq!());
        let missing = concat!(
            "(SELECT ",
            message_columns!(),
            ", ? AS place FROM messages WHERE conversation_id = ? AND seq > ? ORDER BY seq LIMIT ?)",
        );
        // By way of the members: receipts are in the order of users.
        let watermarks = "SELECT m.conversation_id, m.user_id, r.delivered_seq, r.read_seq
            FROM members m JOIN receipts r ON r.user_id = m.user_id AND r.conversation_id = m.conversation_id
            WHERE (r.delivered_seq > 0 OR r.read_seq > 0) AND m.conversation_id IN (";
        let standings = concat!(
            "SELECT ? AS place, ",
            own_epoch!(),
            ", ",
            last_seq!(),
            ", COALESCE((SELECT delivered_seq FROM receipts WHERE user_id = ? AND conversation_id = ?), 0)",
            ", COALESCE((SELECT read_seq FROM receipts WHERE user_id = ? AND conversation_id = ?), 0)",
            ", (SELECT COUNT(*) FROM messages WHERE conversation_id = ? AND sender_id <> ? AND seq > COALESCE(",
            "(SELECT read_seq FROM receipts WHERE user_id = ? AND conversation_id = ?), 0))",
        );
        Self {
            archive_epoch,
            find: Widths::new(find, "?", ",", ")"),
            users: Widths::new("SELECT user_id, name FROM users WHERE user_id IN (", "?", ",", ")"),
            rooms: Widths::new(
                concat!("SELECT ", room_columns!(), " FROM rooms WHERE rooms.room_id IN ("),
                "?",
                ",",
                ")",
            ),
            members: Widths::new(
                "SELECT conversation_id, user_id FROM members WHERE conversation_id IN (",
                "?",
                ",",
                ")",
            ),
            ends: Widths::new("", ends, " UNION ALL ", ""),
            missing: Widths::new("", missing, " UNION ALL ", ""),
            watermarks: Widths::new(watermarks, "?", ",", ") ORDER BY m.user_id"),
            standings: Widths::new("", standings, " UNION ALL ", ""),
        }
    }

    /// See [`tidegate_core::ports::Archive::find`].
    pub(super) async fn find(&self, conn: &mut Conn, ids: &[MessageId]) -> Result<Vec<StoredMessage>, Fault> {
        select_in(conn, &self.find, ids.iter().map(id_value).collect()).await?.into_iter().map(message).collect()
    }

    /// See [`tidegate_core::ports::Archive::users`].
    pub(super) async fn users(&self, conn: &mut Conn, ids: &[UserId]) -> Result<Vec<User>, Fault> {
        let ids = ids.iter().map(|id| Value::UInt(id.0)).collect();
        select_in(conn, &self.users, ids).await?.iter_mut().map(user).collect()
    }

    /// See [`tidegate_core::ports::Archive::rooms_by_id`].
    pub(super) async fn rooms_by_id(&self, conn: &mut Conn, ids: &[RoomId]) -> Result<Vec<Room>, Fault> {
        let ids = ids.iter().map(|id| Value::UInt(id.0)).collect();
        select_in(conn, &self.rooms, ids).await?.into_iter().map(room).collect()
    }

    /// See [`tidegate_core::ports::Archive::members`].
    pub(super) async fn members(&self, conn: &mut Conn, rooms: &[RoomId]) -> Result<Vec<Vec<UserId>>, Fault> {
        let of = |room: &RoomId| conversation_value(&ConversationId::Room(*room));
        let mut members: FxHashMap<ConversationId, Vec<UserId>> = FxHashMap::default();
        for mut row in select_in(conn, &self.members, rooms.iter().map(of).collect()).await? {
            members.entry(conversation(&mut row, 0)?).or_default().push(UserId(column(&mut row, 1)?));
        }
        let of = |room: &RoomId| members.get(&ConversationId::Room(*room)).cloned().unwrap_or_default();
        Ok(rooms.iter().map(of).collect())
    }

    /// See [`tidegate_core::ports::Archive::ends`].
    pub(super) async fn ends(&self, conn: &mut Conn, of: &[ConversationId]) -> Result<Vec<End>, Fault> {
        let branch = |place, conversation: &ConversationId| {
            let conversation = conversation_value(conversation);
            [Value::UInt(place), conversation.clone(), conversation]
        };
        let mut ends = vec![End { epoch: self.archive_epoch, last: Seq(0) }; of.len()];
        for (chunk, ends) in of.chunks(UNION_MAX).zip(ends.chunks_mut(UNION_MAX)) {
            for mut row in select_union(conn, &self.ends, chunk, branch).await? {
                let place: usize = column(&mut row, 0)?;
                if let Some(end) = ends.get_mut(place) {
                    *end = End { epoch: self.epoch(&mut row, 1)?, last: Seq(column(&mut row, 2)?) };
                }
            }
        }
        Ok(ends)
    }

    /// Reads [`own_epoch`].
    fn epoch(&self, row: &mut Row, index: usize) -> Result<Epoch, Fault> {
        Ok(Epoch(column(row, index)?).max(self.archive_epoch))
    }

    /// See [`tidegate_core::ports::Archive::missing`]. One statement for as many conversations as a login may name, at the
    /// price of planning as many branches.
    pub(super) async fn missing(
        &self,
        conn: &mut Conn,
        after: &[(ConversationId, Seq)],
        max_each: u32,
    ) -> Result<Vec<Vec<StoredMessage>>, Fault> {
        let branch = |place: u64, conversation: &ConversationId, seq: Seq| {
            [Value::UInt(place), conversation_value(conversation), Value::UInt(seq.0), Value::UInt(max_each.into())]
        };
        let mut missing = vec![Vec::new(); after.len()];
        for (chunk, missing) in after.chunks(WIDTH_MAX).zip(missing.chunks_mut(WIDTH_MAX)) {
            let width = padded(chunk.len(), WIDTH_MAX);
            let branches = (0..).zip(chunk).map(|(place, (conversation, seq))| branch(place, conversation, *seq));
            // Above the greatest sequence there is nothing: such a branch only fills the width up.
            let filler = branch(0, &chunk[0].0, Seq(u64::MAX));
            let values: Vec<_> = branches.chain(std::iter::repeat(filler)).take(width).flatten().collect();
            for mut row in conn.exec::<Row, _, _>(self.missing.sql(width), Params::Positional(values)).await? {
                let place: usize = column(&mut row, 7)?;
                if let Some(missing) = missing.get_mut(place) {
                    missing.push(message(row)?);
                }
            }
        }
        Ok(missing)
    }

    /// See [`tidegate_core::ports::Archive::watermarks`].
    pub(super) async fn watermarks(
        &self,
        conn: &mut Conn,
        of: &[ConversationId],
    ) -> Result<Vec<Vec<Watermark>>, Fault> {
        let mut marks: FxHashMap<ConversationId, Vec<Watermark>> = FxHashMap::default();
        for mut row in select_in(conn, &self.watermarks, of.iter().map(conversation_value).collect()).await? {
            let mark = Watermark {
                user: UserId(column(&mut row, 1)?),
                delivered: Seq(column(&mut row, 2)?),
                read: Seq(column(&mut row, 3)?),
            };
            marks.entry(conversation(&mut row, 0)?).or_default().push(mark);
        }
        Ok(of.iter().map(|conversation| marks.get(conversation).cloned().unwrap_or_default()).collect())
    }

    /// See [`tidegate_core::ports::Archive::standings_of`].
    pub(super) async fn standings_of(
        &self,
        conn: &mut Conn,
        pairs: &[(UserId, ConversationId)],
    ) -> Result<Vec<Standing>, Fault> {
        let branch = |place, (user, conversation): &(UserId, ConversationId)| {
            let (user, conversation) = (Value::UInt(user.0), conversation_value(conversation));
            [
                Value::UInt(place),
                conversation.clone(),
                conversation.clone(),
                user.clone(),
                conversation.clone(),
                user.clone(),
                conversation.clone(),
                conversation.clone(),
                user.clone(),
                user,
                conversation,
            ]
        };
        let nothing = |(_, conversation): &(UserId, ConversationId)| Standing {
            conversation: *conversation,
            epoch: self.archive_epoch,
            last: Seq(0),
            delivered: Seq(0),
            read: Seq(0),
            unread: 0,
        };
        let mut standings: Vec<_> = pairs.iter().map(nothing).collect();
        for (chunk, standings) in pairs.chunks(UNION_MAX).zip(standings.chunks_mut(UNION_MAX)) {
            for mut row in select_union(conn, &self.standings, chunk, branch).await? {
                let place: usize = column(&mut row, 0)?;
                if let Some(standing) = standings.get_mut(place) {
                    standing.epoch = self.epoch(&mut row, 1)?;
                    standing.last = Seq(column(&mut row, 2)?);
                    standing.delivered = Seq(column(&mut row, 3)?);
                    standing.read = Seq(column(&mut row, 4)?);
                    standing.unread = column(&mut row, 5)?;
                }
            }
        }
        Ok(standings)
    }

    /// See [`tidegate_core::ports::Archive::standings`]. First which conversations, by the newest message of each; then
    /// unread messages are counted for these only.
    pub(super) async fn standings(&self, conn: &mut Conn, user: UserId, max: usize) -> Result<Vec<Standing>, Fault> {
        let select = "SELECT mine.conversation_id
            FROM (
                SELECT m.conversation_id, (
                    SELECT x.seq FROM messages x WHERE x.conversation_id = m.conversation_id ORDER BY x.seq DESC LIMIT 1
                ) AS last_seq
                FROM members m WHERE m.user_id = ?
            ) mine
            LEFT JOIN messages newest
                ON newest.conversation_id = mine.conversation_id AND newest.seq = mine.last_seq
            WHERE mine.last_seq IS NOT NULL OR LEFT(mine.conversation_id, 2) = 'r_'
            ORDER BY newest.sent_at_ms DESC, mine.conversation_id LIMIT ?";
        let max = u64::try_from(max).unwrap_or(u64::MAX);
        let rows: Vec<Row> = conn.exec(select, (user.0, max)).await?;
        let pair = |mut row| Ok((user, conversation(&mut row, 0)?));
        let pairs = rows.into_iter().map(pair).collect::<Result<Vec<_>, Fault>>()?;
        self.standings_of(conn, &pairs).await
    }
}

/// Runs a statement that ends in a list.
async fn select_in(conn: &mut Conn, sql: &Widths, list: Vec<Value>) -> Result<Vec<Row>, Fault> {
    let mut rows = Vec::new();
    for chunk in list.chunks(WIDTH_MAX) {
        let width = padded(chunk.len(), WIDTH_MAX);
        let mut values = chunk.to_vec();
        values.resize(width, chunk[chunk.len() - 1].clone());
        rows.extend(conn.exec::<Row, _, _>(sql.sql(width), Params::Positional(values)).await?);
    }
    Ok(rows)
}

/// Runs one branch per entry; the branches that fill the width up repeat the last entry in its own place.
async fn select_union<T: Sync, const PARAMS: usize>(
    conn: &mut Conn,
    sql: &Widths,
    entries: &[T],
    branch: impl Fn(u64, &T) -> [Value; PARAMS],
) -> Result<Vec<Row>, Fault> {
    let width = padded(entries.len(), UNION_MAX);
    let branches = (0..).zip(entries).map(|(place, entry)| branch(place, entry));
    let mut values: Vec<_> = branches.flatten().collect();
    while values.len() < width * PARAMS {
        values.extend_from_within(values.len() - PARAMS..);
    }
    Ok(conn.exec(sql.sql(width), Params::Positional(values)).await?)
}

/// See [`tidegate_core::ports::Archive::history`].
pub(super) async fn history(
    conn: &mut Conn,
    conversation: ConversationId,
    page: Page,
    size: u32,
) -> Result<Vec<StoredMessage>, Fault> {
    macro_rules! select {
        ($rest:literal) => {
            concat!("SELECT ", message_columns!(), " FROM messages WHERE conversation_id = ? AND ", $rest)
        };
    }
    let (select, from) = match page {
        Page::Newest => (select!("seq <= ? ORDER BY seq DESC LIMIT ?"), u64::MAX),
        Page::Before(seq) => (select!("seq < ? ORDER BY seq DESC LIMIT ?"), seq.0),
        Page::After(seq) => (select!("seq > ? ORDER BY seq LIMIT ?"), seq.0),
    };
    let rows: Vec<Row> = conn.exec(select, (conversation_value(&conversation), from, size)).await?;
    let mut messages = rows.into_iter().map(message).collect::<Result<Vec<_>, _>>()?;
    if !matches!(page, Page::After(_)) {
        messages.reverse();
    }
    Ok(messages)
}

/// See [`tidegate_core::ports::Archive::user_by_name`].
pub(super) async fn user_by_name(conn: &mut Conn, name: &str) -> Result<Option<(User, String)>, Fault> {
    let select = "SELECT user_id, name, password_hash FROM users WHERE name_key = ?";
    let row: Option<Row> = conn.exec_first(select, (name_key(name).into_bytes(),)).await?;
    row.map(|mut row| Ok((user(&mut row)?, column(&mut row, 2)?))).transpose()
}

/// See [`tidegate_core::ports::Archive::room`].
pub(super) async fn room_by_id(conn: &mut Conn, id: RoomId) -> Result<Option<Room>, Fault> {
    let select = concat!("SELECT ", room_columns!(), " FROM rooms WHERE room_id = ?");
    conn.exec_first::<Row, _, _>(select, (id.0,)).await?.map(room).transpose()
}

/// See [`tidegate_core::ports::Archive::rooms`].
pub(super) async fn rooms(conn: &mut Conn, before: Option<RoomId>, size: u32) -> Result<Vec<Room>, Fault> {
    let select = concat!("SELECT ", room_columns!(), " FROM rooms WHERE room_id < ? ORDER BY room_id DESC LIMIT ?");
    let rows: Vec<Row> = conn.exec(select, (before.map_or(u64::MAX, |room| room.0), size)).await?;
    rows.into_iter().map(room).collect()
}

/// See [`tidegate_core::ports::Archive::rooms_of`].
pub(super) async fn rooms_of(conn: &mut Conn, user: UserId) -> Result<Vec<RoomId>, Fault> {
    // `` ` `` is the byte after `_`: the user's rooms are one range of the key.
    let select =
        "SELECT conversation_id FROM members WHERE user_id = ? AND conversation_id >= 'r_' AND conversation_id < 'r`'";
    let rows: Vec<Row> = conn.exec(select, (user.0,)).await?;
    let room = |mut row| match conversation(&mut row, 0) {
        Ok(ConversationId::Room(room)) => Some(Ok(room)),
        Ok(_) => None,
        Err(fault) => Some(Err(fault)),
    };
    rows.into_iter().filter_map(room).collect()
}
