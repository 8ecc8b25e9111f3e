//! Why a service did not do what somebody asked: one closed catalogue with stable codes.

use crate::limits::{
    NAME_CHARS_MAX, NAME_CHARS_MIN, PASSWORD_BYTES_MAX, PASSWORD_BYTES_MIN, ROOM_CAPACITY_MIN, ROOM_MEMBERS_MAX,
    SLOW_MODE_S_MAX,
};
use crate::ports::PortError;

/// The result of a service call.
pub type ServiceResult<T> = Result<T, ServiceError>;

/// Why a service did not do what it was asked. The text is for people outside, except where noted.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ServiceError {
    /// A user's name breaks the rules of [`super::user::UserService::register`].
    #[error(
        "a user name is {NAME_CHARS_MIN} to {NAME_CHARS_MAX} letters, digits, dots, dashes or underscores and begins \
         with a letter or digit"
    )]
    NameInvalid,
    /// A password is too short or too long.
    #[error("a password is {PASSWORD_BYTES_MIN} to {PASSWORD_BYTES_MAX} bytes")]
    PasswordInvalid,
    /// Another user has the name.
    #[error("the name is taken")]
    NameTaken,
    /// Unknown user or wrong password; which of the two is not told.
    #[error("name or password is wrong")]
    CredentialsWrong,
    /// A token that was never given, or was logged out.
    #[error("the token is not known; log in")]
    TokenInvalid,
    /// A token whose time is over.
    #[error("the token has expired; log in again")]
    TokenExpired,
    /// No such user.
    #[error("there is no such user")]
    UserUnknown,
    /// A room's name is empty, too long or holds characters that do not show.
    #[error("a room name is 1 to {NAME_CHARS_MAX} visible characters")]
    RoomNameInvalid,
    /// A capacity outside the bounds.
    #[error("a room takes {ROOM_CAPACITY_MIN} to {ROOM_MEMBERS_MAX} members")]
    RoomCapacityInvalid,
    /// A slow mode outside the bounds.
    #[error("a slow mode is 0 (off) to {SLOW_MODE_S_MAX} seconds")]
    SlowModeInvalid,
    /// Only the room's owner may do this.
    #[error("only the room's owner may do this")]
    NotOwner,
    /// No such room.
    #[error("there is no such room")]
    RoomUnknown,
    /// The room has as many members as it takes.
    #[error("the room is full")]
    RoomFull,
    /// The conversation is none of the user's.
    #[error("not a member of this conversation")]
    NotMember,
    /// A private conversation with oneself.
    #[error("a private conversation needs somebody else")]
    ConversationInvalid,
    /// Too many are waiting already; nothing happened.
    #[error("too busy at the moment; try again")]
    Overloaded,
    /// A service behind this one is away. The cause is for the log, not for outside.
    #[error("temporarily unavailable; try again")]
    Unavailable(#[source] PortError),
    /// A fault that repeating will not mend. The cause is for the log, not for outside.
    #[error("internal error")]
    Internal(#[source] PortError),
}

impl ServiceError {
    /// The stable code that clients decide by.
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            Self::NameInvalid => "name_invalid",
            Self::PasswordInvalid => "password_invalid",
            Self::NameTaken => "name_taken",
            Self::CredentialsWrong => "credentials_wrong",
            Self::TokenInvalid => "token_invalid",
            Self::TokenExpired => "token_expired",
            Self::UserUnknown => "user_unknown",
            Self::RoomNameInvalid => "room_name_invalid",
            Self::RoomCapacityInvalid => "room_capacity_invalid",
            Self::SlowModeInvalid => "slow_mode_invalid",
            Self::NotOwner => "not_owner",
            Self::RoomUnknown => "room_unknown",
            Self::RoomFull => "room_full",
            Self::NotMember => "not_member",
            Self::ConversationInvalid => "conversation_invalid",
            Self::Overloaded => "overloaded",
            Self::Unavailable(_) => "unavailable",
            Self::Internal(_) => "internal",
        }
    }

    /// How long to wait before the same call may succeed; `None` if it will not.
    #[must_use]
    pub fn retry_after_ms(&self) -> Option<u64> {
        match self {
            Self::Overloaded | Self::Unavailable(_) => Some(1000),
            _ => None,
        }
    }
}

impl From<PortError> for ServiceError {
    fn from(error: PortError) -> Self {
        match error {
            PortError::Unavailable { .. } | PortError::Closed => Self::Unavailable(error),
            PortError::Refused { .. } | PortError::Unfit { .. } | PortError::Conflict { .. } => Self::Internal(error),
        }
    }
}
