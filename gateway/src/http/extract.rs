//! What handlers take from a request, each with a problem of its own if it is not there.

use std::sync::Arc;

use axum::extract::{FromRequest, FromRequestParts, Query, Request};
use axum::http::header::{AUTHORIZATION, CONTENT_TYPE};
use axum::http::request::Parts;
use axum::http::{HeaderMap, StatusCode};
use http_body_util::{BodyExt as _, LengthLimitError, Limited};
use serde::de::DeserializeOwned;
use tidegate_core::ids::{RoomId, UserId};
use tidegate_core::ports::Backend;

use super::Api;
use super::bounds::BODY_BYTES_MAX;
use super::problem::Problem;

/// The header the Java framework Sa-Token reads its token from by default.
pub const TOKEN_HEADER: &str = "satoken";

/// A JSON body of at most [`BODY_BYTES_MAX`].
pub struct JsonBody<T>(pub T);

impl<B: Backend, T: DeserializeOwned> FromRequest<Arc<Api<B>>> for JsonBody<T> {
    type Rejection = Problem;

    async fn from_request(request: Request, api: &Arc<Api<B>>) -> Result<Self, Problem> {
        if !is_json(request.headers()) {
            let detail = "the body must be JSON, with Content-Type: application/json";
            return Err(Problem::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "media_type_unsupported", detail));
        }
        let body = Limited::new(request.into_body(), BODY_BYTES_MAX).collect();
        let bytes = match tokio::time::timeout(api.bounds.body_timeout, body).await {
            Ok(Ok(body)) => body.to_bytes(),
            Ok(Err(error)) if error.is::<LengthLimitError>() => {
                let detail = format!("the body is larger than {BODY_BYTES_MAX} bytes");
                return Err(Problem::new(StatusCode::PAYLOAD_TOO_LARGE, "body_too_large", detail));
            }
            Ok(Err(_)) => {
                return Err(Problem::new(StatusCode::BAD_REQUEST, "body_incomplete", "the body ended early"));
            }
            Err(_) => {
                return Err(Problem::new(StatusCode::REQUEST_TIMEOUT, "body_timeout", "the body took too long"));
            }
        };
        serde_json::from_slice(&bytes).map(Self).map_err(|error| {
            let detail = format!("the body is not the JSON expected here: {error}");
            Problem::new(StatusCode::BAD_REQUEST, "body_malformed", detail)
        })
    }
}

fn is_json(headers: &HeaderMap) -> bool {
    let Some(value) = headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok()) else { return false };
    let kind = value.split(';').next().unwrap_or_default().trim();
    kind.eq_ignore_ascii_case("application/json")
}

/// The query part, by its names.
pub struct QueryPart<T>(pub T);

impl<S: Send + Sync, T: DeserializeOwned> FromRequestParts<S> for QueryPart<T> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Problem> {
        let query = Query::<T>::try_from_uri(&parts.uri);
        query.map(|Query(query)| Self(query)).map_err(|error| query_invalid(error.body_text()))
    }
}

/// 400 for a query that makes no sense.
pub fn query_invalid(detail: impl Into<std::borrow::Cow<'static, str>>) -> Problem {
    Problem::new(StatusCode::BAD_REQUEST, "query_invalid", detail)
}

/// The token a request carries; not looked at yet.
pub struct Token(pub String);

impl<S: Send + Sync> FromRequestParts<S> for Token {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Problem> {
        token(&parts.headers).map(|token| Self(token.to_owned())).ok_or_else(Problem::token_missing)
    }
}

/// `Authorization` decides if it is there.
pub(super) fn token(headers: &HeaderMap) -> Option<&str> {
    let token = match headers.get(AUTHORIZATION) {
        Some(value) => {
            let (scheme, token) = value.to_str().ok()?.split_once(' ')?;
            scheme.eq_ignore_ascii_case("bearer").then_some(token)?
        }
        None => headers.get(TOKEN_HEADER)?.to_str().ok()?,
    };
    Some(token.trim()).filter(|token| !token.is_empty())
}

/// The user whose token the request carries.
pub struct Caller(pub UserId);

impl<B: Backend> FromRequestParts<Arc<Api<B>>> for Caller {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, api: &Arc<Api<B>>) -> Result<Self, Problem> {
        let Token(token) = Token::from_request_parts(parts, api).await?;
        Ok(Self(api.users.holder(&token).await?))
    }
}

/// A user's id as archives count them; `None` for a number that is nobody's.
pub fn user_id(number: u64) -> Option<UserId> {
    (number > 0 && i64::try_from(number).is_ok()).then_some(UserId(number))
}

/// A room's id; `None` for a text that is no room's.
pub fn room_id(text: &str) -> Option<RoomId> {
    text.parse::<i64>().ok().filter(|id| *id > 0).and_then(|id| u64::try_from(id).ok()).map(RoomId)
}
