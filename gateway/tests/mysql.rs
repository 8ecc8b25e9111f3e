//! The MySQL archive under the archive's contract, and what only a server can do: be away, be frozen, kill connections.
//!
//! Runs only with `TIDEGATE_TEST_SERVICES=1`, against the server of `TIDEGATE_MYSQL_URL`. Each case has a database of its
//! own beside the URL's, named after it and the process, and drops it at the end.

use std::future::Future;
use std::ops::Deref;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use mysql_async::prelude::Queryable as _;
use mysql_async::{Conn, Opts, OptsBuilder};
use tidegate::mysql::{ConnectError, MySqlArchive, MySqlConfig};
use tidegate_core::contract::archive::{batch, messages};
use tidegate_core::ids::{ConversationId, RoomId, Seq, UserId};
use tidegate_core::ports::{Archive, PortError};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::time::timeout;

const ANN: UserId = UserId(1);
const ROOM: ConversationId = ConversationId::Room(RoomId(1));

/// A database of its own, dropped at the end.
struct Database {
    server_url: String,
    name: String,
}

impl Database {
    /// `None`, and a line on stderr, if there are no services to test with.
    async fn new(case: &str) -> Option<Self> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        if std::env::var("TIDEGATE_TEST_SERVICES").as_deref() != Ok("1") {
            eprintln!("skipped: {case} needs TIDEGATE_TEST_SERVICES=1 and TIDEGATE_MYSQL_URL");
            return None;
        }
        let server_url = std::env::var("TIDEGATE_MYSQL_URL").expect("TIDEGATE_MYSQL_URL names the test server");
        let name = format!("{}_{}_{}", base(&server_url), std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let database = Self { server_url, name };
        database.run(&format!("CREATE DATABASE {}", database.name)).await;
        Some(database)
    }

    fn url(&self) -> String {
        let (server, tail) = self.server_url.rsplit_once('/').expect("the URL names a database");
        let options = tail.strip_prefix(base(&self.server_url)).unwrap_or_default();
        format!("{server}/{}{options}", self.name)
    }

    async fn connect(&self) -> Result<MySqlArchive, ConnectError> {
        MySqlArchive::connect(MySqlConfig::new(self.url())).await
    }

    /// Runs a statement beside the archive.
    async fn run(&self, sql: &str) {
        let mut conn = dial(&self.server_url).await.expect("the test server answers");
        conn.query_drop(sql).await.unwrap_or_else(|error| panic!("{sql}: {error}"));
        conn.disconnect().await.expect("closed");
    }

    /// Kills every connection to this database.
    async fn kill_connections(&self) -> usize {
        let mut conn = dial(&self.server_url).await.expect("the test server answers");
        let select = "SELECT id FROM information_schema.processlist WHERE db = ?";
        let ids: Vec<u64> = conn.exec(select, (&self.name,)).await.expect("connections");
        for id in &ids {
            conn.query_drop(format!("KILL {id}")).await.expect("killed");
        }
        ids.len()
    }
}

/// A connection beside the archive's, over TCP like them: by socket it might be another account, which sees other threads.
async fn dial(url: &str) -> mysql_async::Result<Conn> {
    Conn::new(OptsBuilder::from_opts(Opts::from_url(url)?).prefer_socket(false)).await
}

/// The database of a URL: what follows the last slash.
fn base(url: &str) -> &str {
    let (_, tail) = url.rsplit_once('/').expect("the URL names a database");
    tail.split('?').next().unwrap_or(tail)
}

impl Drop for Database {
    fn drop(&mut self) {
        // A test's runtime cannot be waited on from inside itself.
        let (url, sql) = (self.server_url.clone(), format!("DROP DATABASE IF EXISTS {}", self.name));
        let dropped = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
            runtime.block_on(async {
                let mut conn = dial(&url).await?;
                conn.query_drop(sql).await?;
                conn.disconnect().await
            })
        });
        if !matches!(dropped.join(), Ok(Ok(()))) {
            eprintln!("the database {} was left behind", self.name);
        }
    }
}

struct Opened {
    archive: MySqlArchive,
    _database: Database,
}

impl Deref for Opened {
    type Target = MySqlArchive;

    fn deref(&self) -> &MySqlArchive {
        &self.archive
    }
}

async fn open(case: &str) -> Option<Opened> {
    let database = Database::new(case).await?;
    Some(Opened { archive: database.connect().await.expect("a new archive"), _database: database })
}

tidegate_core::archive_contract!(open);

async fn last(archive: &MySqlArchive) -> Seq {
    archive.ends(&[ROOM]).await.expect("an end")[0].last
}

async fn within<T>(bound: Duration, what: &str, work: impl Future<Output = T>) -> T {
    let begun = Instant::now();
    let answer = tokio::time::timeout(bound, work).await.unwrap_or_else(|_| panic!("{what} took over {bound:?}"));
    eprintln!("{what}: {:?}", begun.elapsed());
    answer
}

#[tokio::test]
async fn two_gateways_that_start_at_once_share_one_archive() {
    let Some(database) = Database::new("two_gateways_that_start_at_once_share_one_archive").await else { return };
    let (a, b, c) = tokio::join!(database.connect(), database.connect(), database.connect());
    let (a, b, c) = (a.expect("the first"), b.expect("the second"), c.expect("the third"));
    assert_eq!((a.epoch(), b.epoch()), (b.epoch(), c.epoch()));
    a.persist(&batch(messages(ROOM, 1..=3, ANN))).await.expect("persisted");
    assert_eq!(last(&b).await, Seq(3));
}

#[tokio::test]
async fn a_database_of_a_newer_program_is_refused() {
    let Some(database) = Database::new("a_database_of_a_newer_program_is_refused").await else { return };
    drop(database.connect().await.expect("a new archive"));
    database.run(&format!("INSERT INTO {}.schema_migrations (version) VALUES (99)", database.name)).await;
    let connected = database.connect().await;
    assert!(matches!(connected, Err(ConnectError::Newer { found: 99, .. })), "{connected:?}");
}

#[tokio::test]
async fn a_migration_that_was_cut_off_is_repeated() {
    let Some(database) = Database::new("a_migration_that_was_cut_off_is_repeated").await else { return };
    let epoch = database.connect().await.expect("a new archive").epoch();
    database.run(&format!("DELETE FROM {}.schema_migrations", database.name)).await;
    database.run(&format!("DROP TABLE {}.rooms", database.name)).await;
    assert_eq!(database.connect().await.expect("the same archive").epoch(), epoch);
}

#[tokio::test]
async fn a_database_in_place_of_ours_is_left_alone_until_ours_is_back() {
    let Some(database) = Database::new("replaced").await else { return };
    let archive = database.connect().await.expect("the test server answers");
    archive.persist(&batch(messages(ROOM, 1..=2, ANN))).await.expect("stored");
    let is_unavailable = |answer: &Result<(), PortError>| matches!(answer, Err(PortError::Unavailable { .. }));

    let meta = format!("{}.archive_meta", database.name);
    database.run(&format!("UPDATE {meta} SET epoch = epoch + 1")).await;
    let answer = archive.ping().await;
    assert!(is_unavailable(&answer) && format!("{answer:?}").contains("another one"), "{answer:?}");
    let answer = archive.persist(&batch(messages(ROOM, 3..=4, ANN))).await;
    assert!(is_unavailable(&answer), "written into a foreign database: {answer:?}");
    assert!(is_unavailable(&archive.ends(&[ROOM]).await.map(drop)), "read from a foreign database");

    database.run(&format!("UPDATE {meta} SET epoch = epoch - 1")).await;
    archive.persist(&batch(messages(ROOM, 3..=4, ANN))).await.expect("stored");
    archive.ping().await.expect("all is well again");

    // One without tables is no archive at all.
    database.run(&format!("RENAME TABLE {meta} TO {}.aside", database.name)).await;
    database.kill_connections().await;
    let answer = archive.ends(&[ROOM]).await.map(drop);
    assert!(is_unavailable(&answer), "{answer:?}");
}

#[tokio::test]
async fn a_server_that_answers_but_does_not_write_is_not_well() {
    let Some(database) = Database::new("unwritable").await else { return };
    let archive = database.connect().await.expect("the test server answers");
    archive.ping().await.expect("well");
    let table = format!("{}.messages", database.name);
    database.run(&format!("RENAME TABLE {table} TO {}.aside", database.name)).await;
    archive.ping().await.expect("nobody has tried to write yet");
    let answer = archive.persist(&batch(messages(ROOM, 1..=2, ANN))).await;
    assert!(matches!(answer, Err(PortError::Unavailable { .. })), "{answer:?}");
    archive.ping().await.expect_err("the write has failed");
    database.run(&format!("RENAME TABLE {}.aside TO {table}", database.name)).await;
    archive.persist(&batch(messages(ROOM, 1..=2, ANN))).await.expect("stored");
    archive.ping().await.expect("well again");
}

#[tokio::test]
async fn killed_connections_are_replaced_and_counted() {
    let Some(database) = Database::new("killed_connections_are_replaced_and_counted").await else { return };
    let archive = database.connect().await.expect("a new archive");
    let mut next = 1;
    for _ in 0..3 {
        archive.persist(&batch(messages(ROOM, next..=next + 9, ANN))).await.expect("persisted");
        next += 10;
        let breaks = archive.breaks();
        assert!(database.kill_connections().await > 0);
        assert_eq!(last(&archive).await, Seq(next - 1), "a question is asked again unnoticed");
        assert!(archive.breaks() > breaks, "whoever must know can see it");
    }
    // What is to be committed is not: the server at the new connection's end may be another.
    database.kill_connections().await;
    let rest = batch(messages(ROOM, next..=next + 9, ANN));
    let persisted = archive.persist(&rest).await;
    assert!(matches!(persisted, Err(PortError::Unavailable { .. })), "{persisted:?}");
    assert_eq!(archive.persist(&rest).await, Ok(()));
    assert_eq!(last(&archive).await, Seq(40));
    database.kill_connections().await;
    let room = archive.create_room("den", ANN, 4, tidegate_core::ids::Millis(1)).await;
    let retried = archive.create_room("den", ANN, 4, tidegate_core::ids::Millis(1)).await;
    assert!(room.is_ok() || matches!(room, Err(PortError::Unavailable { .. })), "{room:?}");
    assert!(retried.is_ok(), "{retried:?}");
}

#[tokio::test]
async fn a_held_lock_ends_within_the_bound_and_leaves_nothing() {
    let Some(database) = Database::new("a_held_lock_ends_within_the_bound_and_leaves_nothing").await else { return };
    let archive = database.connect().await.expect("a new archive");
    let mut other = dial(&database.url()).await.expect("the test server answers");
    other.query_drop("START TRANSACTION").await.expect("begun");
    let insert = "INSERT INTO messages VALUES ('r_1', 2, UNHEX(REPEAT('07', 16)), 1, 1, 0, '')";
    other.query_drop(insert).await.expect("inserted");

    let first = batch(messages(ROOM, 1..=3, ANN));
    let held = within(Duration::from_secs(6), "a persist behind a lock", archive.persist(&first)).await;
    assert!(matches!(held, Err(PortError::Unavailable { .. })), "{held:?}");
    other.query_drop("ROLLBACK").await.expect("rolled back");
    assert_eq!(last(&archive).await, Seq(0));
    assert_eq!(archive.persist(&first).await, Ok(()));
}

/// A way to the server that can be cut off: bytes wait in the kernel, connections stay open, as with a stopped server or
/// a dropped route.
struct Detour {
    address: String,
    frozen: watch::Sender<bool>,
}

impl Detour {
    /// It cuts itself off when these bytes are about to go to the server; no bytes never do.
    async fn that_freezes_before(server: String, trap: &'static [u8]) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("bound").to_string();
        let frozen = watch::Sender::new(false);
        let state = frozen.clone();
        tokio::spawn(async move {
            while let Ok((near, _)) = listener.accept().await {
                let (server, state) = (server.clone(), state.clone());
                tokio::spawn(async move {
                    let far = TcpStream::connect(server).await.expect("the test server answers");
                    let ((near_in, near_out), (far_in, far_out)) = (near.into_split(), far.into_split());
                    tokio::join!(carry(near_in, far_out, &state, trap), carry(far_in, near_out, &state, b""));
                });
            }
        });
        Self { address, frozen }
    }
}

async fn carry(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, frozen: &watch::Sender<bool>, trap: &[u8]) {
    let mut buffer = vec![0; 16 * 1024];
    while let Ok(read @ 1..) = from.read(&mut buffer).await {
        if !trap.is_empty() && buffer[..read].windows(trap.len()).any(|bytes| bytes == trap) {
            frozen.send_replace(true);
        }
        let thawed = frozen.subscribe().wait_for(|frozen| !frozen).await.is_ok();
        if !thawed || to.write_all(&buffer[..read]).await.is_err() {
            break;
        }
    }
}

/// The database's URL, by another way to its server.
async fn by_detour(database: &Database, trap: &'static [u8]) -> (Detour, String) {
    let server = Opts::from_url(&database.url()).expect("a URL");
    let server = format!("{}:{}", server.ip_or_hostname(), server.tcp_port());
    let detour = Detour::that_freezes_before(server.clone(), trap).await;
    let url = database.url().replacen(&server, &detour.address, 1);
    (detour, url)
}

/// A gateway that is stopped or cut off in the middle of a transaction holds its locks. Another one has its work by then,
/// and must not wait for its return.
#[tokio::test]
async fn a_client_frozen_in_a_transaction_does_not_stop_the_next_one() {
    let case = "a_client_frozen_in_a_transaction_does_not_stop_the_next_one";
    let Some(database) = Database::new(case).await else { return };
    let (detour, url) = by_detour(&database, b"INSERT INTO members").await;
    let frozen = MySqlArchive::connect(MySqlConfig::new(url)).await.expect("a new archive");
    // The first of a private conversation also makes its members: more than one statement.
    let talk = ConversationId::private(ANN, UserId(2)).expect("two people");
    let first = batch(messages(talk, 1..=3, ANN));
    let cut_off = frozen.persist(&first).await;
    assert!(matches!(cut_off, Err(PortError::Unavailable { .. })), "{cut_off:?}");

    let next = database.connect().await.expect("the same archive");
    let stored = timeout(Duration::from_secs(10), async { while next.persist(&first).await.is_err() {} }).await;
    // Else nobody could drop the database.
    detour.frozen.send_replace(false);
    within(Duration::from_secs(10), "an end of all locks", async { while next.persist(&first).await.is_err() {} })
        .await;
    assert!(stored.is_ok(), "the successor waits for the locks of the frozen one");
    assert_eq!(next.ends(&[talk]).await.expect("answered")[0].last, Seq(3));
}

#[tokio::test]
async fn a_frozen_server_is_an_outage_within_the_bound_and_passes() {
    let case = "a_frozen_server_is_an_outage_within_the_bound_and_passes";
    let Some(database) = Database::new(case).await else { return };
    let (detour, url) = by_detour(&database, b"").await;
    let call_timeout = Duration::from_millis(500);
    let config = MySqlConfig { call_timeout, pool_max: 2, ..MySqlConfig::new(url) };
    let archive = MySqlArchive::connect(config).await.expect("a new archive");
    archive.persist(&batch(messages(ROOM, 1..=3, ANN))).await.expect("persisted");

    let unavailable = |answer: Result<(), PortError>| matches!(answer, Err(PortError::Unavailable { .. }));
    let next = batch(messages(ROOM, 4..=6, ANN));
    detour.frozen.send_replace(true);
    // More than there are connections, so that some wait for one; and again, when the first ones were given up.
    for _ in 0..2 {
        let calls =
            async { tokio::join!(archive.persist(&next), archive.persist(&next), archive.ping(), archive.ping()) };
        let (a, b, c, d) = within(call_timeout * 3, "calls to a frozen server", calls).await;
        assert!([a, b, c, d].into_iter().all(unavailable));
    }
    detour.frozen.send_replace(false);
    let persisted = within(call_timeout * 3, "the first call after it", archive.persist(&next)).await;
    assert_eq!(persisted, Ok(()));
    assert_eq!(last(&archive).await, Seq(6));
    archive.close().await;
}

#[tokio::test]
async fn errors_do_not_tell_the_password() {
    const SECRET: &str = "s3cr3t";
    let urls = [
        format!("mysql://ann:{SECRET}@127.0.0.1:1/tidegate"),
        format!("mysql://ann:{SECRET}?{SECRET}@127.0.0.1:1/tidegate"),
        format!("mysql://ann:{SECRET}@127.0.0.1:1"),
        format!("postgres://ann:{SECRET}@127.0.0.1:1/tidegate"),
        SECRET.to_owned(),
    ];
    for url in urls {
        let config = MySqlConfig::new(&url);
        assert!(!format!("{config:?}").contains(SECRET));
        let error = MySqlArchive::connect(config).await.expect_err("nobody is there");
        assert!(!format!("{error} {error:?}").contains(SECRET), "{error}");
    }
}
