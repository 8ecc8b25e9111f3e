//! `/api/v1/chat/pull/lobby`: what is newest in a room or lobby, or what fills a gap in it.
//!
//! In goes a place, out come bytes that are the same for everybody at it, made and compressed once. Always: a pull of what
//! is in memory asks nobody, but now and then whose token it carries.

use std::fmt::Write as _;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use axum::body::Body;
use axum::extract::State;
use axum::http::header::{
    ACCEPT, ACCEPT_ENCODING, CACHE_CONTROL, CONTENT_ENCODING, CONTENT_TYPE, ETAG, IF_NONE_MATCH, VARY,
};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Response, StatusCode};
use axum::routing::get;
use bytes::{Bytes, BytesMut};
use http_body_util::Full;
use rustc_hash::FxHashMap;
use serde::{Deserialize, Serialize};
use tidegate_core::delivery::Pull;
use tidegate_core::ids::{ConversationId, Epoch, Place, Seq, UserId};
use tidegate_core::ports::Backend;
use tidegate_core::services::{ServiceError, ServiceResult};
use tidegate_core::storm::{Format, Pulled, Pulls};
use tidegate_proto::v1;
use utoipa::{IntoParams, OpenApi};

use super::chat::MessageView;
use super::extract::{QueryPart, Token, query_invalid};
use super::problem::Problem;
use super::{Api, PULL_PATH, Route};
use crate::clock::SystemClock;
use crate::shard::mailboxes::ShardMailboxes;

/// What pulls are answered with here.
pub type GatewayPulls<B> = Pulls<B, ShardMailboxes, SystemClock>;

/// How long a token that was good is taken for good here: a lobby is everybody's, and its watchers pull every second.
const TOKEN_TRUST: Duration = Duration::from_secs(10);

/// Tokens remembered; beyond that all are looked up again.
const TOKENS_MAX: usize = 64 * 1024;

/// What is served here.
pub(super) fn routes<B: Backend>() -> Vec<Route<B>> {
    vec![(PULL_PATH, get(pull))]
}

/// The same for readers.
#[derive(OpenApi)]
#[openapi(paths(pull))]
pub(super) struct Document;

#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(super) struct PullQuery {
    /// A lobby or room.
    #[param(example = "lobby_main")]
    lobby: String,
    /// The newest sequence that is shown; not said: what is newest.
    after_seq: Option<u64>,
    /// Fill the gap between `after_seq` and this one.
    before_seq: Option<u64>,
    /// Of the two above; 0: whichever it is.
    epoch: Option<u32>,
}

/// Pull what is newest in a room or lobby, or what fills a gap
///
/// The same bytes for everybody at one place, as `tidegate.v1.PullReply` or, if asked for by name, as JSON.
#[utoipa::path(get, path = "/api/v1/chat/pull/lobby", tag = "messages", params(PullQuery),
    responses(
        (status = 200, description = "A `PullReply`, with an ETag", content(
            (Vec<u8> = "application/x-protobuf"), (serde_json::Value = "application/json"))),
        (status = 304, description = "The client has it already"),
    ))]
pub(super) async fn pull<B: Backend>(
    State(api): State<Arc<Api<B>>>,
    Token(token): Token,
    headers: HeaderMap,
    QueryPart(query): QueryPart<PullQuery>,
) -> Result<Response<Body>, Problem> {
    let conversation: ConversationId =
        query.lobby.parse().map_err(|_| query_invalid("lobby= is not a lobby's or room's id"))?;
    if let ConversationId::Private { .. } = conversation {
        return Err(query_invalid("private conversations are not pulled, ask for their history"));
    }
    let epoch = Epoch(query.epoch.unwrap_or_default());
    let after = query.after_seq.map(|after| Place { epoch, seq: seq(after) });
    let before = query.before_seq.filter(|before| *before > 0).map(seq);
    if before.is_some() && after.is_none() {
        return Err(query_invalid("before_seq= needs after_seq="));
    }
    let user = api.tokens.holder(&api, &token).await?;
    api.chat.admit(user, conversation).await?;
    let format = format(&headers);
    let pulled = api.pulls.pull(Pull { conversation, after, before }, format).await.map_err(ServiceError::from)?;
    Ok(response(pulled, format, &headers).map(Body::new))
}

/// A sequence as clients name it: archives count in signed 64 bits.
pub(super) fn seq(seq: u64) -> Seq {
    Seq(seq.min(i64::MAX as u64))
}

/// The answer, or that the client has it already.
pub(super) fn response(pulled: Pulled, format: Format, request: &HeaderMap) -> Response<Full<Bytes>> {
    let etag = etag(&pulled, format);
    let is_known = request.get(IF_NONE_MATCH).is_some_and(|known| names(known, &etag));
    let mut headers = HeaderMap::with_capacity(HEADERS);
    headers.insert(ETAG, etag);
    headers.insert(VARY, VARIES);
    headers.insert(CACHE_CONTROL, REVALIDATED);
    if is_known {
        let mut response = Response::new(Full::default());
        *response.status_mut() = StatusCode::NOT_MODIFIED;
        *response.headers_mut() = headers;
        return response;
    }
    let (content_type, encoding) = match format {
        Format::Protobuf => (PROTOBUF, None),
        Format::ProtobufGzip => (PROTOBUF, Some(GZIP)),
        Format::Json => (JSON, None),
        Format::JsonGzip => (JSON, Some(GZIP)),
    };
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    if let Some(encoding) = encoding {
        headers.insert(CONTENT_ENCODING, encoding);
    }
    let mut response = Response::new(Full::new(pulled.body));
    *response.headers_mut() = headers;
    response
}

/// Names the bytes of an answer: bytes that differ need tags that differ.
fn etag(pulled: &Pulled, format: Format) -> HeaderValue {
    let mut etag = BytesMut::with_capacity(ETAG_BYTES);
    write!(etag, "\"{}{}\"", pulled.tag, suffix(format)).expect("BytesMut grows");
    HeaderValue::from_maybe_shared(etag.freeze()).expect("hexadecimal and letters")
}

/// Of an answer, those of the envelope included.
const HEADERS: usize = 8;
/// Three numbers and a suffix.
const ETAG_BYTES: usize = 48;

const PROTOBUF: &str = "application/x-protobuf";
const JSON: &str = "application/json";
const GZIP: HeaderValue = HeaderValue::from_static("gzip");
const VARIES: HeaderValue = HeaderValue::from_static("accept, accept-encoding");
/// May be kept by the client, and has to be asked for anew: RFC 9111, section 5.2.2.4.
const REVALIDATED: HeaderValue = HeaderValue::from_static("private, no-cache");

/// Protobuf unless JSON is asked for by name; compressed if that is taken.
pub(super) fn format(headers: &HeaderMap) -> Format {
    let lists = |name: HeaderName, wanted: &str| {
        let values = headers.get_all(name).into_iter().filter_map(|value| value.to_str().ok());
        values.flat_map(|value| value.split(',')).any(|item| {
            let mut parts = item.split(';').map(str::trim);
            let is_wanted = parts.next().is_some_and(|name| name.eq_ignore_ascii_case(wanted));
            is_wanted && !parts.any(|part| matches!(part, "q=0" | "q=0.0" | "q=0.00" | "q=0.000"))
        })
    };
    match (lists(ACCEPT, JSON) && !lists(ACCEPT, PROTOBUF), lists(ACCEPT_ENCODING, "gzip")) {
        (false, false) => Format::Protobuf,
        (false, true) => Format::ProtobufGzip,
        (true, false) => Format::Json,
        (true, true) => Format::JsonGzip,
    }
}

fn suffix(format: Format) -> &'static str {
    match format {
        Format::Protobuf => "",
        Format::ProtobufGzip => "-z",
        Format::Json => "-j",
        Format::JsonGzip => "-jz",
    }
}

/// Whether a list of tags names this one (RFC 9110, section 13.1.2).
fn names(known: &HeaderValue, etag: &HeaderValue) -> bool {
    let (Ok(known), Ok(etag)) = (known.to_str(), etag.to_str()) else { return false };
    known.split(',').map(str::trim).any(|tag| tag == "*" || tag.strip_prefix("W/").unwrap_or(tag) == etag)
}

/// Whose tokens were good a moment ago, by the token's hash, so that a dump of memory holds no token.
#[derive(Default)]
pub(super) struct Tokens(Mutex<Known>);

#[derive(Default)]
struct Known {
    holders: FxHashMap<[u8; 32], (UserId, Instant)>,
    /// Logouts so far: what was looked up before one is not remembered after it.
    forgotten: u64,
}

impl Tokens {
    /// The holder, if the token was good a moment ago.
    pub(super) fn known(&self, token: &str) -> Option<UserId> {
        let key = key(token);
        let now = Instant::now();
        self.lock().holders.get(&key).filter(|(_, until)| *until > now).map(|(user, _)| *user)
    }

    async fn holder<B: Backend>(&self, api: &Api<B>, token: &str) -> ServiceResult<UserId> {
        let key = key(token);
        let now = Instant::now();
        let forgotten = {
            let known = self.lock();
            if let Some((user, until)) = known.holders.get(&key)
                && *until > now
            {
                return Ok(*user);
            }
            known.forgotten
        };
        let user = api.users.holder(token).await?;
        let mut known = self.lock();
        if known.forgotten == forgotten {
            if known.holders.len() >= TOKENS_MAX {
                known.holders.clear();
            }
            known.holders.insert(key, (user, now + TOKEN_TRUST));
        }
        Ok(user)
    }

    /// The token's holder has logged out.
    pub(super) fn forget(&self, token: &str) {
        let mut known = self.lock();
        known.holders.remove(&key(token));
        known.forgotten += 1;
    }

    fn lock(&self) -> MutexGuard<'_, Known> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn key(token: &str) -> [u8; 32] {
    *blake3::hash(token.as_bytes()).as_bytes()
}

#[derive(Serialize)]
struct PullView {
    conversation_id: String,
    epoch: u32,
    from_seq: u64,
    to_seq: u64,
    latest_seq: u64,
    more: bool,
    gap: bool,
    messages: Vec<MessageView>,
}

/// A reply to a pull as the HTTP API shows it.
#[must_use]
pub fn pull_reply_json(reply: &v1::PullReply) -> Vec<u8> {
    let view = PullView {
        conversation_id: reply.conversation_id.clone(),
        epoch: reply.epoch,
        from_seq: reply.from_seq,
        to_seq: reply.to_seq,
        latest_seq: reply.latest_seq,
        more: reply.more,
        gap: reply.gap,
        messages: reply.messages.iter().map(MessageView::from).collect(),
    };
    serde_json::to_vec(&view).expect("texts and numbers are JSON")
}
