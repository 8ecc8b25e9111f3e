//! The two catalogues of trouble: [`Code`] says why one command failed, [`CloseCode`] why a connection ended.
//!
//! Both are closed: numbers are stable, their *range* tells a client what to do, and the label is the same word in the log,
//! the metrics and here. There is no close without a reason.

use crate::frame::FrameError;
use crate::opening::OpeningError;
use crate::v1::{CloseCode, Code};

impl Code {
    /// True if the same command may succeed when it is repeated later: the range 1000 to 1999.
    #[must_use]
    pub const fn may_retry(self) -> bool {
        matches!(self as i32, 1000..=1999)
    }

    /// The word for metric labels and log fields.
    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            Self::Unspecified => "unspecified",
            Self::Unavailable => "unavailable",
            Self::Overloaded => "overloaded",
            Self::SlowDown => "slow_down",
            Self::Uncertain => "uncertain",
            Self::Draining => "draining",
            Self::BadPayload => "bad_payload",
            Self::UnknownKind => "unknown_kind",
            Self::NotMember => "not_member",
            Self::BodyTooLarge => "body_too_large",
            Self::UnknownUser => "unknown_user",
            Self::BadConversation => "bad_conversation",
            Self::Conflict => "conflict",
            Self::NotLoggedIn => "not_logged_in",
            Self::AlreadyLoggedIn => "already_logged_in",
            Self::TokenInvalid => "token_invalid",
            Self::TokenExpired => "token_expired",
            Self::Internal => "internal",
        }
    }
}

impl CloseCode {
    /// Every reason for which a server closes a connection, in ascending order; a metric has one series for each.
    pub const ALL: [Self; 16] = [
        Self::Draining,
        Self::Idle,
        Self::SlowConsumer,
        Self::Internal,
        Self::Overloaded,
        Self::HandshakeTimeout,
        Self::Unavailable,
        Self::BadOpening,
        Self::UnsupportedVersion,
        Self::FrameTooLarge,
        Self::BadFrame,
        Self::TooManyErrors,
        Self::TokenRejected,
        Self::Replaced,
        Self::Kicked,
        Self::LoggedOut,
    ];

    /// The number in a `Close` frame and the WebSocket close code: 4000 to 4999, the range that RFC 6455, section 7.4.2,
    /// leaves to applications.
    #[must_use]
    pub const fn number(self) -> u16 {
        // Every number is below 5000; a test walks through all of them.
        self as i32 as u16
    }

    /// True if the client should connect again after a back-off: the range 4000 to 4499.
    #[must_use]
    pub const fn may_reconnect(self) -> bool {
        matches!(self as i32, 4000..=4499)
    }

    /// One sentence for people, at most 123 bytes so that it fits a WebSocket close frame whole.
    #[must_use]
    pub const fn text(self) -> &'static str {
        match self {
            Self::Unspecified => "no reason was stated",
            Self::Draining => "this gateway is going away, connect to another",
            Self::Idle => "nothing was heard from the client for too long",
            Self::SlowConsumer => "the client reads more slowly than it is written to",
            Self::Internal => "the server met a fault of its own",
            Self::Overloaded => "the server takes no more connections now",
            Self::HandshakeTimeout => "the client did not log in in time",
            Self::Unavailable => "a service needed for logging in does not answer",
            Self::BadOpening => "the connection does not begin with a Tidegate opening",
            Self::UnsupportedVersion => "this version of the protocol is not spoken here",
            Self::FrameTooLarge => "a frame exceeds the largest frame",
            Self::BadFrame => "the bytes cannot be cut into frames",
            Self::TooManyErrors => "too many invalid commands",
            Self::TokenRejected => "the token is not valid, log in again",
            Self::Replaced => "the same device connected anew",
            Self::Kicked => "an administrator ended the session",
            Self::LoggedOut => "the user logged out",
        }
    }

    /// The word for metric labels and log fields.
    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            Self::Unspecified => "unspecified",
            Self::Draining => "draining",
            Self::Idle => "idle",
            Self::SlowConsumer => "slow_consumer",
            Self::Internal => "internal",
            Self::Overloaded => "overloaded",
            Self::HandshakeTimeout => "handshake_timeout",
            Self::Unavailable => "unavailable",
            Self::BadOpening => "bad_opening",
            Self::UnsupportedVersion => "unsupported_version",
            Self::FrameTooLarge => "frame_too_large",
            Self::BadFrame => "bad_frame",
            Self::TooManyErrors => "too_many_errors",
            Self::TokenRejected => "token_rejected",
            Self::Replaced => "replaced",
            Self::Kicked => "kicked",
            Self::LoggedOut => "logged_out",
        }
    }
}

impl FrameError {
    /// How the server closes a connection whose bytes caused this error.
    #[must_use]
    pub const fn close_code(self) -> CloseCode {
        match self {
            Self::Flags { .. } => CloseCode::BadFrame,
            Self::TooLarge { .. } => CloseCode::FrameTooLarge,
        }
    }
}

impl OpeningError {
    /// How the server closes a connection whose opening caused this error.
    #[must_use]
    pub const fn close_code(self) -> CloseCode {
        match self {
            Self::Magic => CloseCode::BadOpening,
            Self::Version { .. } => CloseCode::UnsupportedVersion,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limits::WEBSOCKET_CONTROL_BYTES_MAX;

    /// Every number the schema knows, found by asking for all of them.
    fn codes() -> impl Iterator<Item = Code> {
        (1..=u16::MAX).filter_map(|number| Code::try_from(i32::from(number)).ok())
    }

    fn close_codes() -> impl Iterator<Item = CloseCode> {
        (1..=u16::MAX).filter_map(|number| CloseCode::try_from(i32::from(number)).ok())
    }

    #[test]
    fn code_numbers_lie_in_their_ranges() {
        assert_eq!(codes().count(), 17);
        for code in codes() {
            let number = code as i32;
            assert!((1001..=2999).contains(&number), "{number}");
            assert_eq!(code.may_retry(), number < 2000, "{}", code.label());
            assert_eq!(code.as_str_name(), format!("CODE_{}", code.label().to_uppercase()));
        }
        assert!(!Code::Unspecified.may_retry());
    }

    #[test]
    fn close_code_numbers_lie_in_their_ranges() {
        assert!(close_codes().eq(CloseCode::ALL));
        for code in CloseCode::ALL {
            assert!((4001..=4999).contains(&code.number()));
            assert_eq!(i32::from(code.number()), code as i32);
            assert_eq!(code.may_reconnect(), code.number() < 4500, "{}", code.label());
            assert_eq!(code.as_str_name(), format!("CLOSE_CODE_{}", code.label().to_uppercase()));
            assert!(code.text().len() <= WEBSOCKET_CONTROL_BYTES_MAX - 2, "{}", code.label());
        }
        assert!(!CloseCode::Unspecified.may_reconnect());
    }
}
