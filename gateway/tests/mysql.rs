//! The MySQL archive under the archive's contract, and what only a server can do: be away, be frozen, kill connections.
//!
//! Runs only with `TIDEGATE_TEST_SERVICES=1`, against the server of `TIDEGATE_MYSQL_URL`. Each case has a database of its
//! own beside the URL's, named after it and the process, and drops it at the end.

use std::future::Future;
use std::ops::Deref;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use mysql_async::Conn;
use mysql_async::prelude::Queryable as _;
use tidegate::mysql::{ConnectError, MySqlArchive, MySqlConfig};
use tidegate_core::contract::archive::{batch, messages};
use tidegate_core::ids::{ConversationId, RoomId, Seq, UserId};
use tidegate_core::ports::{Archive, PortError};

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
        let mut conn = Conn::from_url(&self.server_url).await.expect("the test server answers");
        conn.query_drop(sql).await.unwrap_or_else(|error| panic!("{sql}: {error}"));
        conn.disconnect().await.expect("closed");
    }

    /// Kills every connection to this database.
    async fn kill_connections(&self) -> usize {
        let mut conn = Conn::from_url(&self.server_url).await.expect("the test server answers");
        let select = "SELECT id FROM information_schema.processlist WHERE db = ?";
        let ids: Vec<u64> = conn.exec(select, (&self.name,)).await.expect("connections");
        for id in &ids {
            conn.query_drop(format!("KILL {id}")).await.expect("killed");
        }
        ids.len()
    }
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
                let mut conn = Conn::from_url(url).await?;
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
    assert_eq!(b.last_seqs(&[ROOM]).await, Ok(vec![Seq(3)]));
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
async fn killed_connections_are_replaced_unnoticed() {
    let Some(database) = Database::new("killed_connections_are_replaced_unnoticed").await else { return };
    let archive = database.connect().await.expect("a new archive");
    let mut next = 1;
    for _ in 0..3 {
        archive.persist(&batch(messages(ROOM, next..=next + 9, ANN))).await.expect("persisted");
        next += 10;
        assert!(database.kill_connections().await > 0);
    }
    assert_eq!(archive.last_seqs(&[ROOM]).await, Ok(vec![Seq(30)]));
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
    let mut other = Conn::from_url(database.url()).await.expect("the test server answers");
    other.query_drop("START TRANSACTION").await.expect("begun");
    let insert = "INSERT INTO messages VALUES ('r_1', 2, UNHEX(REPEAT('07', 16)), 1, 1, 0, '')";
    other.query_drop(insert).await.expect("inserted");

    let first = batch(messages(ROOM, 1..=3, ANN));
    let held = within(Duration::from_secs(6), "a persist behind a lock", archive.persist(&first)).await;
    assert!(matches!(held, Err(PortError::Unavailable { .. })), "{held:?}");
    other.query_drop("ROLLBACK").await.expect("rolled back");
    assert_eq!(archive.last_seqs(&[ROOM]).await, Ok(vec![Seq(0)]));
    assert_eq!(archive.persist(&first).await, Ok(()));
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
