//! Errors as clients see them: RFC 9457 problem details with a stable `code`.
//!
//! In go service errors and our own refusals, out come responses. Must always hold: what a service behind us said goes to
//! the log and never to a client.

use std::borrow::Cow;

use axum::http::header::{CONTENT_TYPE, RETRY_AFTER, WWW_AUTHENTICATE};
use axum::http::{HeaderName, HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use tidegate_core::services::ServiceError;
use utoipa::ToSchema;

/// One error answer. `Clone`, because constants are made of it.
#[derive(Clone, Debug)]
pub struct Problem {
    status: StatusCode,
    code: &'static str,
    detail: Cow<'static, str>,
    retry_after_ms: Option<u64>,
    headers: Vec<(HeaderName, HeaderValue)>,
}

/// The members of RFC 9457, section 3.1, and two of ours.
#[derive(Serialize, ToSchema)]
#[schema(as = Problem)]
pub(super) struct Body<'a> {
    /// Names the code as a URI.
    r#type: String,
    /// Names the status.
    title: &'static str,
    /// The status.
    status: u16,
    /// For people.
    detail: &'a str,
    /// Stable; what clients decide by.
    code: &'static str,
    /// When the same request may succeed.
    #[serde(skip_serializing_if = "Option::is_none")]
    retry_after_ms: Option<u64>,
}

impl Problem {
    /// A problem that repeating will not mend.
    pub fn new(status: StatusCode, code: &'static str, detail: impl Into<Cow<'static, str>>) -> Self {
        Self { status, code, detail: detail.into(), retry_after_ms: None, headers: Vec::new() }
    }

    /// 503: the same request may succeed after a second.
    pub fn later(code: &'static str, detail: impl Into<Cow<'static, str>>) -> Self {
        Self { retry_after_ms: Some(1000), ..Self::new(StatusCode::SERVICE_UNAVAILABLE, code, detail) }
    }

    /// 500; the cause was logged.
    pub fn internal() -> Self {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "internal", "internal error")
    }

    /// The same with a header.
    #[must_use]
    pub fn with(mut self, name: HeaderName, value: &'static str) -> Self {
        self.headers.push((name, HeaderValue::from_static(value)));
        self
    }

    /// 401 for a request without a token.
    pub fn token_missing() -> Self {
        let detail =
            "send the token of POST /api/v1/login as \"Authorization: Bearer <token>\" or \"satoken: <token>\"";
        Self::new(StatusCode::UNAUTHORIZED, "token_missing", detail).with(WWW_AUTHENTICATE, "Bearer")
    }

    /// 405; axum adds which methods there are.
    pub fn method_not_allowed() -> Self {
        Self::new(StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed", "not with this method; see the Allow header")
    }

    /// 404 for a path that is none.
    pub fn route_unknown() -> Self {
        Self::new(StatusCode::NOT_FOUND, "route_unknown", "there is nothing at this path; GET / says what there is")
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let body = Body {
            r#type: format!("urn:tidegate:problem:{}", self.code),
            title: self.status.canonical_reason().unwrap_or("Error"),
            status: self.status.as_u16(),
            detail: &self.detail,
            code: self.code,
            retry_after_ms: self.retry_after_ms,
        };
        let bytes = serde_json::to_vec(&body).expect("texts and numbers are JSON");
        let mut response = (self.status, [(CONTENT_TYPE, "application/problem+json")], bytes).into_response();
        let headers = response.headers_mut();
        if let Some(ms) = self.retry_after_ms {
            headers.insert(RETRY_AFTER, HeaderValue::from(ms.div_ceil(1000)));
        }
        for (name, value) in self.headers {
            headers.insert(name, value);
        }
        response
    }
}

impl From<ServiceError> for Problem {
    fn from(error: ServiceError) -> Self {
        let status = match &error {
            ServiceError::NameInvalid
            | ServiceError::PasswordInvalid
            | ServiceError::RoomNameInvalid
            | ServiceError::RoomCapacityInvalid
            | ServiceError::SlowModeInvalid
            | ServiceError::ConversationInvalid => StatusCode::BAD_REQUEST,
            ServiceError::CredentialsWrong | ServiceError::TokenInvalid | ServiceError::TokenExpired => {
                StatusCode::UNAUTHORIZED
            }
            ServiceError::NotMember | ServiceError::NotOwner => StatusCode::FORBIDDEN,
            ServiceError::UserUnknown | ServiceError::RoomUnknown => StatusCode::NOT_FOUND,
            ServiceError::NameTaken | ServiceError::RoomFull => StatusCode::CONFLICT,
            ServiceError::Overloaded => StatusCode::SERVICE_UNAVAILABLE,
            ServiceError::Unavailable(cause) => {
                tracing::warn!(%cause, "a request failed");
                StatusCode::SERVICE_UNAVAILABLE
            }
            ServiceError::Internal(cause) => {
                tracing::error!(%cause, "a request failed");
                StatusCode::INTERNAL_SERVER_ERROR
            }
        };
        let problem = Self {
            status,
            code: error.code(),
            detail: error.to_string().into(),
            retry_after_ms: error.retry_after_ms(),
            headers: Vec::new(),
        };
        if status == StatusCode::UNAUTHORIZED { problem.with(WWW_AUTHENTICATE, "Bearer") } else { problem }
    }
}
