//! `/api/v1/chat/pull/lobby`: what is newest in a room or lobby, or what fills a gap in it.
//!
//! In goes a place, out come bytes that are the same for everybody at it, made and compressed once. Always: a pull of what
//! is in memory asks nobody, but now and then whose token it carries.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use axum::extract::State;
use axum::http::header::{
    ACCEPT, ACCEPT_ENCODING, CACHE_CONTROL, CONTENT_ENCODING, CONTENT_TYPE, ETAG, IF_NONE_MATCH, VARY,
};
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use axum::response::{IntoResponse as _, Response};
use rustc_hash::FxHashMap;
use serde::{Deserialize, Serialize};
use tidegate_core::delivery::Pull;
use tidegate_core::ids::{ConversationId, Epoch, Place, Seq, UserId};
use tidegate_core::ports::Backend;
use tidegate_core::services::{ServiceError, ServiceResult};
use tidegate_core::storm::{Format, Pulls};
use tidegate_proto::v1;

use super::Api;
use super::chat::MessageView;
use super::extract::{QueryPart, Token, query_invalid};
use super::problem::Problem;
use crate::clock::SystemClock;
use crate::shard::mailboxes::ShardMailboxes;

/// What pulls are answered with here.
pub type GatewayPulls<B> = Pulls<B, ShardMailboxes, SystemClock>;

/// How long a token that was good is taken for good here: a lobby is everybody's, and its watchers pull every second.
const TOKEN_TRUST: Duration = Duration::from_secs(10);

/// Tokens remembered; beyond that all are looked up again.
const TOKENS_MAX: usize = 64 * 1024;

#[derive(Deserialize)]
pub(super) struct PullQuery {
    lobby: String,
    after_seq: Option<u64>,
    before_seq: Option<u64>,
    epoch: Option<u32>,
}

/// `GET /api/v1/chat/pull/lobby`
pub(super) async fn pull<B: Backend>(
    State(api): State<Arc<Api<B>>>,
    Token(token): Token,
    headers: HeaderMap,
    QueryPart(query): QueryPart<PullQuery>,
) -> Result<Response, Problem> {
    let conversation: ConversationId =
        query.lobby.parse().map_err(|_| query_invalid("lobby= is not a lobby's or room's id"))?;
    if let ConversationId::Private { .. } = conversation {
        return Err(query_invalid("private conversations are not pulled, ask for their history"));
    }
    // Archives count in signed 64 bits.
    let seq = |seq: u64| Seq(seq.min(i64::MAX as u64));
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
    let etag =
        HeaderValue::from_str(&format!("\"{}{}\"", pulled.tag, suffix(format))).expect("hexadecimal and letters");
    let shared = [(ETAG, etag.clone()), (VARY, VARIES), (CACHE_CONTROL, REVALIDATED)];
    if headers.get(IF_NONE_MATCH).is_some_and(|known| names(known, &etag)) {
        return Ok((StatusCode::NOT_MODIFIED, shared).into_response());
    }
    let (content_type, encoding): (&str, Option<HeaderValue>) = match format {
        Format::Protobuf => (PROTOBUF, None),
        Format::ProtobufGzip => (PROTOBUF, Some(GZIP)),
        Format::Json => (JSON, None),
        Format::JsonGzip => (JSON, Some(GZIP)),
    };
    let content_type = [(CONTENT_TYPE, HeaderValue::from_static(content_type))];
    let encoding: Option<[(HeaderName, HeaderValue); 1]> = encoding.map(|encoding| [(CONTENT_ENCODING, encoding)]);
    let mut response = (shared, content_type, pulled.body).into_response();
    response.headers_mut().extend(encoding.into_iter().flatten());
    Ok(response)
}

const PROTOBUF: &str = "application/x-protobuf";
const JSON: &str = "application/json";
const GZIP: HeaderValue = HeaderValue::from_static("gzip");
const VARIES: HeaderValue = HeaderValue::from_static("accept, accept-encoding");
/// May be kept by the client, and has to be asked for anew: RFC 9111, section 5.2.2.4.
const REVALIDATED: HeaderValue = HeaderValue::from_static("private, no-cache");

/// Protobuf unless JSON is asked for by name; compressed if that is taken.
fn format(headers: &HeaderMap) -> Format {
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

/// Bytes that differ need tags that differ.
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
