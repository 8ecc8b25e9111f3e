//! What can go wrong with MySQL, and what it means for the caller.
//!
//! In come the driver's errors, out go [`PortError`]s and the decision whether to try again at once. Always: the text of
//! an error never holds the URL or a part of it.

use mysql_async::{Error, ServerError};
use tidegate_core::ports::PortError;

use super::SERVICE;

/// Server error numbers, as MySQL's and MariaDB's references list them.
mod code {
    /// A value that no row takes: null, out of range, malformed, too long, or against a rule that an operator gave the table
    /// (a trigger's SIGNAL, a CHECK of MySQL or MariaDB).
    pub(super) const BAD_NULL: u16 = 1048;
    pub(super) const OUT_OF_RANGE: u16 = 1264;
    pub(super) const TRUNCATED_WRONG_VALUE: u16 = 1366;
    pub(super) const DATA_TOO_LONG: u16 = 1406;
    pub(super) const SIGNAL_EXCEPTION: u16 = 1644;
    pub(super) const CHECK_VIOLATED: u16 = 3819;
    pub(super) const CONSTRAINT_FAILED: u16 = 4025;
    pub(super) const CON_COUNT: u16 = 1040;
    /// Rights, databases and tables come and go: a server that is set up anew, restored or failed over lacks some of them
    /// for a while. Whoever repeats the call loses nothing.
    pub(super) const DB_ACCESS_DENIED: u16 = 1044;
    pub(super) const ACCESS_DENIED: u16 = 1045;
    pub(super) const NO_DATABASE_SELECTED: u16 = 1046;
    pub(super) const UNKNOWN_DATABASE: u16 = 1049;
    pub(super) const TABLE_ACCESS_DENIED: u16 = 1142;
    pub(super) const NO_SUCH_TABLE: u16 = 1146;
    pub(super) const NO_SUCH_TABLE_IN_ENGINE: u16 = 1932;
    /// The storage engine's, InnoDB's "no room left" among them.
    pub(super) const STORAGE_ENGINE: u16 = 1030;
    pub(super) const SERVER_SHUTDOWN: u16 = 1053;
    pub(super) const DUP_ENTRY: u16 = 1062;
    pub(super) const RECORD_FILE_FULL: u16 = 1114;
    pub(super) const LOCK_WAIT_TIMEOUT: u16 = 1205;
    pub(super) const LOCK_DEADLOCK: u16 = 1213;
    /// `--read-only`, as during a failover.
    pub(super) const OPTION_PREVENTS: u16 = 1290;
    pub(super) const QUERY_INTERRUPTED: u16 = 1317;
    pub(super) const DISK_FULL: u16 = 1021;
    pub(super) const TOO_MANY_USER_CONNECTIONS: u16 = 1203;
    pub(super) const READ_ONLY_MODE: u16 = 1836;
    /// MariaDB: the connection was killed.
    pub(super) const CONNECTION_KILLED: u16 = 1927;
    /// MariaDB: `max_statement_time`.
    pub(super) const STATEMENT_TIMEOUT: u16 = 1969;
    /// MySQL: `max_execution_time`.
    pub(super) const QUERY_TIMEOUT: u16 = 3024;
    /// MySQL: the server ends the connection.
    pub(super) const CLIENT_INTERACTION_TIMEOUT: u16 = 4031;
}

/// Why a call came to no good end.
#[derive(Debug)]
pub(super) enum Fault {
    /// The driver or the server says so.
    Driver(Error),
    /// Nothing came in time.
    Silent(&'static str),
    /// The data is not as it must be.
    Refused(String),
    /// The database is not the one this process began with.
    Replaced {
        /// The epoch of the one that is there.
        found: u32,
    },
    /// Somebody else has written otherwise.
    Conflict(String),
}

/// What to do about a fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Remedy {
    /// The server undid the transaction for another's sake; the same call is likely to succeed.
    TryAgain,
    /// The connection ended. What the call did is unknown; on an old connection most likely nothing.
    Reconnect,
    /// Trying again would end the same, or its bound is over.
    GiveUp,
}

impl From<Error> for Fault {
    fn from(error: Error) -> Self {
        Self::Driver(error)
    }
}

impl Fault {
    /// A row holds the key already.
    pub(super) fn is_duplicate(&self) -> bool {
        matches!(self, Self::Driver(Error::Server(ServerError { code: code::DUP_ENTRY, .. })))
    }

    pub(super) fn remedy(&self) -> Remedy {
        match self {
            Self::Driver(Error::Server(ServerError {
                code: code::LOCK_DEADLOCK | code::LOCK_WAIT_TIMEOUT, ..
            })) => Remedy::TryAgain,
            Self::Driver(Error::Server(ServerError {
                code: code::SERVER_SHUTDOWN | code::CONNECTION_KILLED | code::CLIENT_INTERACTION_TIMEOUT,
                ..
            }))
            | Self::Driver(Error::Io(_)) => Remedy::Reconnect,
            Self::Driver(Error::Driver(mysql_async::DriverError::ConnectionClosed)) => Remedy::Reconnect,
            Self::Driver(_) | Self::Silent(_) | Self::Refused(_) | Self::Replaced { .. } | Self::Conflict(_) => {
                Remedy::GiveUp
            }
        }
    }

    /// The error for the caller.
    pub(super) fn into_port_error(self) -> PortError {
        match self {
            Self::Refused(detail) => PortError::Refused { service: SERVICE, detail },
            // The right one may come back.
            Self::Replaced { found } => {
                let detail =
                    format!("the database is another one (epoch {found}): restore the former, or restart the gateway");
                PortError::Unavailable { service: SERVICE, detail }
            }
            Self::Conflict(detail) => PortError::Conflict { service: SERVICE, detail },
            Self::Silent(detail) => PortError::Unavailable { service: SERVICE, detail: detail.to_owned() },
            // The text of such an error quotes the URL, and a password with a `?` in it is taken for a parameter.
            Self::Driver(Error::Url(_)) => {
                PortError::Refused { service: SERVICE, detail: "its URL cannot be used".to_owned() }
            }
            Self::Driver(Error::Server(error)) => {
                let detail = format!("error {}: {}", error.code, error.message);
                if is_about_a_value(error.code) {
                    PortError::Unfit { service: SERVICE, detail }
                } else if is_passing(error.code) {
                    PortError::Unavailable { service: SERVICE, detail }
                } else {
                    PortError::Refused { service: SERVICE, detail }
                }
            }
            Self::Driver(error @ (Error::Io(_) | Error::Driver(_) | Error::Other(_))) => {
                PortError::Unavailable { service: SERVICE, detail: error.to_string() }
            }
        }
    }
}

/// Whether the server takes other values.
fn is_about_a_value(code: u16) -> bool {
    matches!(
        code,
        code::BAD_NULL
            | code::OUT_OF_RANGE
            | code::TRUNCATED_WRONG_VALUE
            | code::DATA_TOO_LONG
            | code::SIGNAL_EXCEPTION
            | code::CHECK_VIOLATED
            | code::CONSTRAINT_FAILED
    )
}

/// Whether the server may answer otherwise later.
fn is_passing(code: u16) -> bool {
    matches!(
        code,
        code::CON_COUNT
            | code::DB_ACCESS_DENIED
            | code::ACCESS_DENIED
            | code::NO_DATABASE_SELECTED
            | code::UNKNOWN_DATABASE
            | code::TABLE_ACCESS_DENIED
            | code::NO_SUCH_TABLE
            | code::NO_SUCH_TABLE_IN_ENGINE
            | code::STORAGE_ENGINE
            | code::SERVER_SHUTDOWN
            | code::RECORD_FILE_FULL
            | code::LOCK_WAIT_TIMEOUT
            | code::LOCK_DEADLOCK
            | code::OPTION_PREVENTS
            | code::QUERY_INTERRUPTED
            | code::DISK_FULL
            | code::TOO_MANY_USER_CONNECTIONS
            | code::READ_ONLY_MODE
            | code::CONNECTION_KILLED
            | code::STATEMENT_TIMEOUT
            | code::QUERY_TIMEOUT
            | code::CLIENT_INTERACTION_TIMEOUT
    )
}
