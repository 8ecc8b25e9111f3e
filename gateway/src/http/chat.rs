//! `/api/v1/chat/history` and `/api/v1/conversations/private`.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::{get, post};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};
use tidegate_core::event::StoredMessage;
use tidegate_core::ids::{ConversationId, Seq};
use tidegate_core::ports::{Backend, Page, Watermark};
use tidegate_core::services::ServiceError;
use tidegate_proto::v1::{self, ContentType};
use utoipa::{IntoParams, OpenApi, ToSchema};

use super::extract::{Caller, JsonBody, QueryPart, query_invalid, user_id};
use super::problem::Problem;
use super::{Api, Route};

/// What is served here.
pub(super) fn routes<B: Backend>() -> Vec<Route<B>> {
    vec![("/api/v1/conversations/private", post(open_private)), ("/api/v1/chat/history", get(history))]
}

/// The same for readers.
#[derive(OpenApi)]
#[openapi(paths(open_private, history))]
pub(super) struct Document;

#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(super) struct HistoryQuery {
    /// `p_<user>_<user>`, `r_<room>` or `lobby_<name>`.
    #[param(example = "lobby_main")]
    conversation_id: String,
    /// Backwards from this sequence; 0 or not said: from the newest message.
    last_message_seq: Option<u64>,
    /// Forwards from this sequence; not together with `last_message_seq`.
    after_seq: Option<u64>,
    /// Messages on the page: 50 if not said, at most 200.
    page_size: Option<u32>,
}

#[derive(Serialize, ToSchema)]
pub(super) struct HistoryAnswer {
    conversation_id: String,
    epoch: u32,
    last_seq: u64,
    messages: Vec<MessageView>,
    more: bool,
    watermarks: Vec<WatermarkView>,
}

#[derive(Serialize, ToSchema)]
struct WatermarkView {
    user_id: u64,
    delivered_seq: u64,
    read_seq: u64,
}

impl From<Watermark> for WatermarkView {
    fn from(mark: Watermark) -> Self {
        Self { user_id: mark.user.0, delivered_seq: mark.delivered.0, read_seq: mark.read.0 }
    }
}

/// A message on its own, with what a page says once for all of its messages.
#[derive(Serialize, ToSchema)]
pub(super) struct LooseMessageView {
    conversation_id: String,
    epoch: u32,
    #[serde(flatten)]
    message: MessageView,
}

impl From<v1::Message> for LooseMessageView {
    fn from(message: v1::Message) -> Self {
        let view = MessageView::from(&message);
        Self { conversation_id: message.conversation_id, epoch: message.epoch, message: view }
    }
}

#[derive(Serialize, ToSchema)]
pub(super) struct MessageView {
    seq: u64,
    message_id: String,
    sender_id: u64,
    sent_at_ms: u64,
    #[serde(flatten)]
    body: BodyView,
}

#[derive(Serialize, ToSchema)]
#[serde(tag = "content_type", rename_all = "lowercase")]
enum BodyView {
    Text { text: String },
    Binary { body_base64: String },
}

impl BodyView {
    fn new(content_type: ContentType, body: &[u8]) -> Self {
        let text = match content_type {
            ContentType::Text => std::str::from_utf8(body).ok(),
            ContentType::Binary => None,
        };
        match text {
            Some(text) => Self::Text { text: text.to_owned() },
            None => Self::Binary { body_base64: STANDARD.encode(body) },
        }
    }
}

impl From<&v1::Message> for MessageView {
    fn from(message: &v1::Message) -> Self {
        Self {
            seq: message.seq,
            message_id: message.message_id.iter().map(|byte| format!("{byte:02x}")).collect(),
            sender_id: message.sender_id,
            sent_at_ms: message.sent_at_ms,
            body: BodyView::new(message.content_type(), &message.body),
        }
    }
}

impl From<StoredMessage> for MessageView {
    fn from(message: StoredMessage) -> Self {
        Self {
            seq: message.seq.0,
            message_id: message.message_id.to_string(),
            sender_id: message.sender.0,
            sent_at_ms: message.sent_at.0,
            body: BodyView::new(message.content_type, &message.body),
        }
    }
}

/// Read a conversation, a page at a time
///
/// Backwards from `last_message_seq` (from the newest without it), or forwards from `after_seq`; always in ascending order.
#[utoipa::path(get, path = "/api/v1/chat/history", tag = "messages", params(HistoryQuery),
    responses((status = 200, description = "A page", body = HistoryAnswer)))]
pub(super) async fn history<B: Backend>(
    State(api): State<Arc<Api<B>>>,
    Caller(user): Caller,
    QueryPart(query): QueryPart<HistoryQuery>,
) -> Result<Json<HistoryAnswer>, Problem> {
    // Archives count in signed 64 bits.
    let seq = |seq: u64| Seq(seq.min(i64::MAX as u64));
    let page = match (query.last_message_seq, query.after_seq) {
        (Some(_), Some(_)) => return Err(query_invalid("either last_message_seq= or after_seq=, not both")),
        (None | Some(0), None) => Page::Newest,
        (Some(before), None) => Page::Before(seq(before)),
        (None, Some(after)) => Page::After(seq(after)),
    };
    let conversation: ConversationId =
        query.conversation_id.parse().map_err(|_| query_invalid("conversation_id= is not a conversation's id"))?;
    let found = api.chat.history(user, conversation, page, query.page_size.unwrap_or_default()).await?;
    Ok(Json(HistoryAnswer {
        conversation_id: query.conversation_id,
        epoch: found.epoch.0,
        last_seq: found.last.0,
        messages: found.messages.into_iter().map(Into::into).collect(),
        more: found.more,
        watermarks: found.watermarks.into_iter().map(Into::into).collect(),
    }))
}

#[derive(Deserialize, ToSchema)]
pub(super) struct Peer {
    /// The other side.
    user_id: u64,
}

#[derive(Serialize, ToSchema)]
pub(super) struct ConversationAnswer {
    conversation_id: String,
}

/// Name the conversation with somebody
#[utoipa::path(post, path = "/api/v1/conversations/private", tag = "messages", request_body = Peer,
    responses((status = 200, description = "Its id", body = ConversationAnswer)))]
pub(super) async fn open_private<B: Backend>(
    State(api): State<Arc<Api<B>>>,
    Caller(user): Caller,
    JsonBody(body): JsonBody<Peer>,
) -> Result<(StatusCode, Json<ConversationAnswer>), Problem> {
    let peer = user_id(body.user_id).ok_or(ServiceError::UserUnknown)?;
    let conversation = api.chat.open_private(user, peer).await?;
    Ok((StatusCode::OK, Json(ConversationAnswer { conversation_id: conversation.to_string() })))
}
