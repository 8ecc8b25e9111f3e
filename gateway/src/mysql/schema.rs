//! The tables and how they come to be.
//!
//! In comes a fresh connection, out goes the archive's epoch. Always: one gateway migrates at a time (a lock of the
//! server's, which ends with its connection), a migration that was cut off is repeated, and a database of a newer
//! program is left untouched.

use mysql_async::Conn;
use mysql_async::prelude::Queryable as _;
use tidegate_core::ids::Epoch;

use super::ConnectError;
use super::fault::Fault;
use super::row::column;
use crate::sqlite::schema::fresh_epoch;

/// In order; a migration's number is its place, from 1.
const MIGRATIONS: &[&str] = &[
    include_str!("migrations/0001_archive.sql"),
    include_str!("migrations/0002_conversation_epochs.sql"),
    include_str!("migrations/0003_slow_modes.sql"),
];

/// How long a gateway waits while another one migrates, in seconds.
const LOCK_TIMEOUT_S: u32 = 30;

/// Brings the database to this program's version.
///
/// # Errors
/// [`ConnectError`].
pub(super) async fn migrate(conn: &mut Conn) -> Result<Epoch, ConnectError> {
    // The name is the server's, not the database's: other archives on the server need not wait.
    let lock = "SELECT GET_LOCK(CONCAT('tidegate.', MD5(DATABASE())), ?)";
    let locked: Option<mysql_async::Row> = conn.exec_first(lock, (LOCK_TIMEOUT_S,)).await.map_err(Fault::from)?;
    let locked = locked.map(|mut row| column::<Option<u8>>(&mut row, 0)).transpose()?;
    if locked.flatten() != Some(1) {
        return Err(Fault::Silent("another gateway is migrating the database and does not come to an end").into());
    }
    let migrated = migrate_locked(conn).await;
    let unlock = "DO RELEASE_LOCK(CONCAT('tidegate.', MD5(DATABASE())))";
    conn.query_drop(unlock).await.map_err(Fault::from)?;
    migrated
}

async fn migrate_locked(conn: &mut Conn) -> Result<Epoch, ConnectError> {
    run(
        conn,
        "CREATE TABLE IF NOT EXISTS schema_migrations (
             version    INT UNSIGNED NOT NULL PRIMARY KEY,
             applied_at TIMESTAMP    NOT NULL DEFAULT CURRENT_TIMESTAMP
         ) ENGINE = InnoDB",
    )
    .await?;
    let found: usize = number(conn, "SELECT COALESCE(MAX(version), 0) FROM schema_migrations").await?;
    if found > MIGRATIONS.len() {
        return Err(ConnectError::Newer { found, known: MIGRATIONS.len() });
    }
    for (version, sql) in (1_u32..).zip(MIGRATIONS).skip(found) {
        for statement in statements(sql) {
            run(conn, &statement).await?;
        }
        run(conn, &format!("INSERT INTO schema_migrations (version) VALUES ({version})")).await?;
    }
    run(conn, &format!("INSERT IGNORE INTO archive_meta (id, epoch) VALUES (1, {})", fresh_epoch().0)).await?;
    epoch(conn).await.map_err(Into::into)
}

/// The identity of the database behind a connection.
///
/// # Errors
/// [`Fault`], among others if it is no archive.
pub(super) async fn epoch(conn: &mut Conn) -> Result<Epoch, Fault> {
    let epoch = number(conn, "SELECT epoch FROM archive_meta WHERE id = 1").await?;
    Ok(Epoch(u32::try_from(epoch).map_err(|_| Fault::Refused("the epoch is out of range".to_owned()))?))
}

async fn run(conn: &mut Conn, sql: &str) -> Result<(), Fault> {
    Ok(conn.query_drop(sql).await?)
}

async fn number(conn: &mut Conn, sql: &str) -> Result<usize, Fault> {
    let row: Option<mysql_async::Row> = conn.query_first(sql).await?;
    let mut row = row.ok_or_else(|| Fault::Refused("a row is missing".to_owned()))?;
    let number: u64 = column(&mut row, 0)?;
    usize::try_from(number).map_err(|_| Fault::Refused("a number is out of range".to_owned()))
}

/// A migration's statements: comments take whole lines, a statement ends with a line's last semicolon.
fn statements(sql: &str) -> impl Iterator<Item = String> + '_ {
    let code: Vec<_> = sql.lines().filter(|line| !line.trim_start().starts_with("--")).collect();
    let statements: Vec<_> =
        code.join("\n").split(";\n").map(|part| part.trim().trim_end_matches(';').to_owned()).collect();
    statements.into_iter().filter(|statement| !statement.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_migration_falls_into_its_statements() {
        let sql = "-- why; because\nCREATE TABLE a (\n    -- inside;\n    b INT\n);\n\nDROP TABLE c;\n";
        let found: Vec<_> = statements(sql).collect();
        assert_eq!(found, ["CREATE TABLE a (\n    b INT\n)", "DROP TABLE c"]);
        assert!(MIGRATIONS.iter().flat_map(|sql| statements(sql)).all(|statement| statement.starts_with("CREATE")));
    }
}
