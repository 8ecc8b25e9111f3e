//! The archive in MySQL or MariaDB.
//!
//! In come the calls of [`Archive`], each takes a connection of its own ([`pool`]) for as long as it needs it. Always: a
//! call ends within its timeout, whatever the server does; a database that took the place of ours is left alone; what a call left half done is closed and rolled back; the
//! URL, with its password, appears in no error, log or debug output.

mod fault;
mod pool;
mod reader;
mod row;
mod schema;
mod widths;
mod writer;

use std::fmt;
use std::time::Duration;

use mysql_async::{Conn, Opts, OptsBuilder};
use tidegate_core::event::StoredMessage;
use tidegate_core::ids::{ConversationId, Epoch, MessageId, Millis, RoomId, Seq, UserId};
use tidegate_core::ports::{
    Archive, End, Joined, Page, PersistBatch, PortError, PortResult, Room, Standing, User, Watermark,
};
use tokio::time::timeout;

use crate::writing::Writing;

use fault::{Fault, Remedy};
use pool::Pool;
use reader::Reader;
use writer::Writer;

const SERVICE: &str = "mysql";

/// Times a call is made before a deadlock is the caller's. Two in a row are rare, four mean that something is wrong.
const ATTEMPTS_MAX: u32 = 4;

/// Prepared statements per connection: ten widths of five kinds, and the single ones, with room to spare.
const STATEMENTS_MAX: usize = 128;

/// Connecting includes waiting for another gateway that migrates.
const MIGRATION_TIMEOUT: Duration = Duration::from_secs(60);

/// Run on every new connection, the last first. READ COMMITTED locks no gaps between keys, so that partitions that
/// insert side by side do not lock each other out; a lock is waited for less long than a call may take; and a value that
/// does not fit is an error, whatever the server's default.
///
/// A gateway that is stopped, or cut off, in the middle of a transaction holds its locks, and the one that has its work by
/// then would wait for them. So a server must give up on who is silent in a transaction: MariaDB by a setting of just that
/// meaning, MySQL, which has none, by the one for idle connections. Each skips the other's part as a comment.
const SESSION: [&str; 3] = [
    "SET SESSION TRANSACTION ISOLATION LEVEL READ COMMITTED",
    "SET SESSION innodb_lock_wait_timeout = 2 \
     /*M!100302 , idle_write_transaction_timeout = 3 */ /*!80000 , wait_timeout = 20 */",
    "SET SESSION sql_mode = 'STRICT_ALL_TABLES,NO_ENGINE_SUBSTITUTION'",
];

/// Where the archive is and how patient to be.
#[derive(Clone)]
pub struct MySqlConfig {
    /// `mysql://user:password@host:port/database`.
    pub url: String,
    /// Most connections at a time. The engine uses one per partition, the rest serve questions.
    pub pool_max: usize,
    /// For a new connection.
    pub connect_timeout: Duration,
    /// For a call, the wait for a connection included.
    pub call_timeout: Duration,
    /// After which an idle connection may be closed.
    pub idle_ttl: Duration,
}

impl MySqlConfig {
    /// The defaults: 16 connections, 3 s to connect, 5 s per call, idle for up to 15 s, which is less than MySQL allows
    /// a connection of this program (20 s).
    #[must_use]
    pub fn new(url: impl Into<String>) -> Self {
        Self {
            url: url.into(),
            pool_max: 16,
            connect_timeout: Duration::from_secs(3),
            call_timeout: Duration::from_secs(5),
            idle_ttl: Duration::from_secs(15),
        }
    }
}

/// Without the URL.
impl fmt::Debug for MySqlConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MySqlConfig")
            .field("pool_max", &self.pool_max)
            .field("connect_timeout", &self.connect_timeout)
            .field("call_timeout", &self.call_timeout)
            .field("idle_ttl", &self.idle_ttl)
            .finish_non_exhaustive()
    }
}

/// Why the archive cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// The URL is not one, names no database, or asks for what this program cannot do.
    #[error("the MySQL URL must look like mysql://user:password@host:port/database")]
    Url,
    /// A newer program migrated it; this one would damage it.
    #[error("the MySQL database has schema version {found}, this program knows {known}: start the newer program")]
    Newer {
        /// The database's version.
        found: usize,
        /// The newest version of this program.
        known: usize,
    },
    /// The server is away, or does not let us in or do what we must.
    #[error(transparent)]
    Port(#[from] PortError),
}

impl From<Fault> for ConnectError {
    fn from(fault: Fault) -> Self {
        Self::Port(fault.into_port_error())
    }
}

/// An [`Archive`] in a MySQL database, shared by any number of gateways.
pub struct MySqlArchive {
    epoch: Epoch,
    pool: Pool,
    call_timeout: Duration,
    reader: Reader,
    writer: Writer,
    writing: Writing,
}

/// The parts hold the URL.
impl fmt::Debug for MySqlArchive {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MySqlArchive").field("epoch", &self.epoch).finish_non_exhaustive()
    }
}

/// Makes a call on a leased connection, within the timeout, and again where [`Remedy`] says that it helps: after a
/// deadlock always, after the end of an old connection if the call may be `repeated` (`once` else: what was answered
/// into the void may have been done). A macro, because the call borrows its arguments and the connection at once.
macro_rules! call {
    ($archive:expr, $repeat:ident, |$conn:ident| $work:expr) => {{
        let archive = $archive;
        let attempts = async {
            let mut attempt = 1;
            loop {
                let mut lease = archive.pool.lease().await?;
                let reused = lease.reused;
                let $conn: &mut Conn = &mut lease;
                match $work.await {
                    Ok(answer) => {
                        lease.keep();
                        return Ok(answer);
                    }
                    Err(fault) => {
                        drop(lease);
                        archive.prepare_attempt(fault, call!(@ $repeat) && reused, attempt).await?;
                        attempt += 1;
                    }
                }
            }
        };
        match timeout(archive.call_timeout, attempts).await {
            Ok(answer) => answer.map_err(Fault::into_port_error),
            Err(_elapsed) => Err(Fault::Silent("no answer within the call's timeout").into_port_error()),
        }
    }};
    (@ repeated) => { true };
    (@ once) => { false };
}

impl MySqlArchive {
    /// Connects, brings the database to this program's version and reads its epoch.
    ///
    /// # Errors
    /// [`ConnectError`].
    pub async fn connect(config: MySqlConfig) -> Result<Self, ConnectError> {
        let opts = Opts::from_url(&config.url).map_err(|_quotes_the_url| ConnectError::Url)?;
        if opts.db_name().is_none_or(str::is_empty) {
            return Err(ConnectError::Url);
        }
        let opts = OptsBuilder::from_opts(opts)
            .stmt_cache_size(STATEMENTS_MAX)
            .tcp_nodelay(true)
            .prefer_socket(false)
            .setup(SESSION.to_vec());
        let pool = Pool::new(opts.into(), config.pool_max.max(1), config.connect_timeout, config.idle_ttl);
        let mut lease = timeout(config.connect_timeout, pool.lease())
            .await
            .unwrap_or(Err(Fault::Silent("no connection within the connect timeout")))?;
        let epoch = timeout(MIGRATION_TIMEOUT, schema::migrate(&mut lease))
            .await
            .map_err(|_elapsed| Fault::Silent("the migration did not come to an end in time"))??;
        pool.belongs_to(epoch);
        lease.keep();
        let (reader, writer, writing) = (Reader::new(epoch), Writer::new(), Writing::default());
        Ok(Self { epoch, pool, call_timeout: config.call_timeout, reader, writer, writing })
    }

    /// Returns if the call may be made again.
    async fn prepare_attempt(&self, fault: Fault, may_repeat: bool, attempt: u32) -> Result<(), Fault> {
        match fault.remedy() {
            Remedy::TryAgain if attempt < ATTEMPTS_MAX => {
                tokio::time::sleep(Duration::from_millis(5) * attempt).await;
                Ok(())
            }
            Remedy::Reconnect => {
                self.pool.distrust();
                if may_repeat && attempt < ATTEMPTS_MAX { Ok(()) } else { Err(fault) }
            }
            Remedy::TryAgain | Remedy::GiveUp => Err(fault),
        }
    }

    /// Says goodbye to the server. Calls after this connect anew.
    pub async fn close(&self) {
        self.pool.close().await;
    }
}

impl Archive for MySqlArchive {
    fn epoch(&self) -> Epoch {
        self.epoch
    }

    fn breaks(&self) -> u64 {
        self.pool.breaks()
    }

    async fn find(&self, messages: &[MessageId]) -> PortResult<Vec<StoredMessage>> {
        self.writing.learn("find", call!(self, repeated, |conn| self.reader.find(conn, messages)))
    }

    async fn ends(&self, conversations: &[ConversationId]) -> PortResult<Vec<End>> {
        call!(self, repeated, |conn| self.reader.ends(conn, conversations))
    }

    async fn begin_epoch(&self, conversations: &[(ConversationId, Epoch)]) -> PortResult<Vec<Epoch>> {
        call!(self, repeated, |conn| writer::begin_epoch(conn, conversations, self.epoch))
    }

    /// Not repeated on a new connection: what the server at its end has must be looked at first, and the caller does that.
    async fn persist(&self, batch: &PersistBatch) -> PortResult<()> {
        self.writing.learn("persist", call!(self, once, |conn| self.writer.persist(conn, &self.reader, batch)))
    }

    async fn history(&self, conversation: ConversationId, page: Page, size: u32) -> PortResult<Vec<StoredMessage>> {
        call!(self, repeated, |conn| reader::history(conn, conversation, page, size))
    }

    async fn missing(&self, after: &[(ConversationId, Seq)], max_each: u32) -> PortResult<Vec<Vec<StoredMessage>>> {
        call!(self, repeated, |conn| self.reader.missing(conn, after, max_each))
    }

    async fn watermarks(&self, conversations: &[ConversationId]) -> PortResult<Vec<Vec<Watermark>>> {
        call!(self, repeated, |conn| self.reader.watermarks(conn, conversations))
    }

    async fn standings(&self, user: UserId, max: usize) -> PortResult<Vec<Standing>> {
        call!(self, repeated, |conn| self.reader.standings(conn, user, max))
    }

    async fn standings_of(&self, pairs: &[(UserId, ConversationId)]) -> PortResult<Vec<Standing>> {
        call!(self, repeated, |conn| self.reader.standings_of(conn, pairs))
    }

    async fn create_user(&self, name: &str, password_hash: &str, at: Millis) -> PortResult<Option<UserId>> {
        call!(self, once, |conn| writer::create_user(conn, name, password_hash, at))
    }

    async fn user_by_name(&self, name: &str) -> PortResult<Option<(User, String)>> {
        call!(self, repeated, |conn| reader::user_by_name(conn, name))
    }

    async fn users(&self, ids: &[UserId]) -> PortResult<Vec<User>> {
        call!(self, repeated, |conn| self.reader.users(conn, ids))
    }

    async fn create_room(&self, name: &str, owner: UserId, capacity: u32, at: Millis) -> PortResult<Room> {
        call!(self, once, |conn| self.writer.create_room(conn, name, owner, capacity, at))
    }

    async fn room(&self, room: RoomId) -> PortResult<Option<Room>> {
        call!(self, repeated, |conn| reader::room_by_id(conn, room))
    }

    async fn rooms_by_id(&self, ids: &[RoomId]) -> PortResult<Vec<Room>> {
        call!(self, repeated, |conn| self.reader.rooms_by_id(conn, ids))
    }

    async fn set_slow_mode(&self, room: RoomId, slow_mode_s: u32) -> PortResult<bool> {
        call!(self, repeated, |conn| writer::set_slow_mode(conn, room, slow_mode_s))
    }

    async fn rooms(&self, before: Option<RoomId>, size: u32) -> PortResult<Vec<Room>> {
        call!(self, repeated, |conn| reader::rooms(conn, before, size))
    }

    async fn join_room(&self, room: RoomId, user: UserId, at: Millis) -> PortResult<Joined> {
        call!(self, once, |conn| self.writer.join_room(conn, &self.reader, room, user, at))
    }

    async fn leave_room(&self, room: RoomId, user: UserId) -> PortResult<bool> {
        call!(self, once, |conn| writer::leave_room(conn, room, user))
    }

    async fn members(&self, rooms: &[RoomId]) -> PortResult<Vec<Vec<UserId>>> {
        call!(self, repeated, |conn| self.reader.members(conn, rooms))
    }

    async fn rooms_of(&self, user: UserId) -> PortResult<Vec<RoomId>> {
        call!(self, repeated, |conn| reader::rooms_of(conn, user))
    }

    async fn ping(&self) -> PortResult<()> {
        call!(self, repeated, |conn| self.pool.check(conn))?;
        self.writing.is_well()
    }
}
