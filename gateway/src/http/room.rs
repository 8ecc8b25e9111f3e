//! `/api/v1/rooms` and what is below it.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::routing::{get, post};
use serde::{Deserialize, Serialize};
use tidegate_core::ids::{ConversationId, RoomId};
use tidegate_core::limits::ROOMS_PAGE_MAX;
use tidegate_core::ports::{Backend, Room};
use tidegate_core::services::ServiceError;
use utoipa::{IntoParams, OpenApi, ToSchema};

use super::extract::{Caller, JsonBody, QueryPart, room_id};
use super::problem::Problem;
use super::user::UserView;
use super::{Api, Route};

/// What is served here.
pub(super) fn routes<B: Backend>() -> Vec<Route<B>> {
    vec![
        ("/api/v1/rooms", get(list).post(create)),
        ("/api/v1/rooms/{id}", get(show).patch(change)),
        ("/api/v1/rooms/{id}/join", post(join)),
        ("/api/v1/rooms/{id}/leave", post(leave)),
        ("/api/v1/rooms/{id}/members", get(members)),
    ]
}

/// The same for readers.
#[derive(OpenApi)]
#[openapi(paths(create, list, show, change, join, leave, members))]
pub(super) struct Document;

/// Rooms on a page when the client does not say.
const PAGE_DEFAULT: u32 = 50;

/// A room as clients see it.
#[derive(Serialize, ToSchema)]
pub(super) struct RoomView {
    room_id: u64,
    conversation_id: String,
    name: String,
    owner_id: u64,
    capacity: u32,
    members: u32,
    created_at_ms: u64,
    slow_mode_s: u32,
}

impl From<Room> for RoomView {
    fn from(room: Room) -> Self {
        Self {
            room_id: room.id.0,
            conversation_id: ConversationId::Room(room.id).to_string(),
            name: room.name,
            owner_id: room.owner.0,
            capacity: room.capacity,
            members: room.members,
            created_at_ms: room.created_at.0,
            slow_mode_s: room.slow_mode_s,
        }
    }
}

/// Which room.
#[derive(IntoParams)]
#[into_params(parameter_in = Path)]
#[allow(dead_code, reason = "for the document; handlers take the text, so that what is no number is an unknown room")]
struct RoomPath {
    /// The room's id.
    id: u64,
}

/// A path that names no room is a room that does not exist.
fn named(text: &str) -> Result<RoomId, Problem> {
    room_id(text).ok_or_else(|| ServiceError::RoomUnknown.into())
}

#[derive(Deserialize, ToSchema)]
pub(super) struct NewRoom {
    /// 1 to 32 visible characters.
    #[schema(example = "Friday raid")]
    name: String,
    /// Most members; the largest there may be if not said.
    #[schema(example = 8)]
    capacity: Option<u32>,
}

/// Make a room
#[utoipa::path(post, path = "/api/v1/rooms", tag = "rooms", request_body = NewRoom,
    responses((status = 201, description = "The room; its maker is the owner and first member", body = RoomView)))]
pub(super) async fn create<B: Backend>(
    State(api): State<Arc<Api<B>>>,
    Caller(owner): Caller,
    JsonBody(body): JsonBody<NewRoom>,
) -> Result<(StatusCode, Json<RoomView>), Problem> {
    let rooms = Arc::clone(&api.rooms);
    let room = api.to_its_end(async move { rooms.create(&body.name, owner, body.capacity).await }).await?;
    Ok((StatusCode::CREATED, Json(room.into())))
}

#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(super) struct RoomsQuery {
    /// The `next` of the page before.
    before: Option<u64>,
    /// Rooms on the page: 50 if not said, at most 100.
    page_size: Option<u32>,
}

#[derive(Serialize, ToSchema)]
pub(super) struct RoomsAnswer {
    rooms: Vec<RoomView>,
    /// Where the next page begins; null: this is the last.
    next: Option<u64>,
}

/// List rooms, newest first
#[utoipa::path(get, path = "/api/v1/rooms", tag = "rooms", params(RoomsQuery),
    responses((status = 200, description = "A page", body = RoomsAnswer)))]
pub(super) async fn list<B: Backend>(
    State(api): State<Arc<Api<B>>>,
    Caller(_): Caller,
    QueryPart(query): QueryPart<RoomsQuery>,
) -> Result<Json<RoomsAnswer>, Problem> {
    // Archives count in signed 64 bits: whatever is beyond stands after the newest room.
    let before = query.before.map(|id| RoomId(id.min(i64::MAX as u64)));
    let page = api.rooms.list(before, query.page_size.unwrap_or(PAGE_DEFAULT).min(ROOMS_PAGE_MAX)).await?;
    let next = page.next.map(|room| room.0);
    Ok(Json(RoomsAnswer { rooms: page.rooms.into_iter().map(Into::into).collect(), next }))
}

/// Show a room
#[utoipa::path(get, path = "/api/v1/rooms/{id}", tag = "rooms", params(RoomPath),
    responses((status = 200, description = "The room", body = RoomView)))]
pub(super) async fn show<B: Backend>(
    State(api): State<Arc<Api<B>>>,
    Caller(_): Caller,
    Path(id): Path<String>,
) -> Result<Json<RoomView>, Problem> {
    Ok(Json(api.rooms.room(named(&id)?).await?.into()))
}

#[derive(Deserialize, ToSchema)]
pub(super) struct RoomChange {
    /// Seconds a user waits between two messages; 0: none.
    slow_mode_s: u32,
}

/// Change a room
#[utoipa::path(patch, path = "/api/v1/rooms/{id}", tag = "rooms", params(RoomPath), request_body = RoomChange,
    responses((status = 200, description = "The room after it", body = RoomView)))]
pub(super) async fn change<B: Backend>(
    State(api): State<Arc<Api<B>>>,
    Caller(user): Caller,
    Path(id): Path<String>,
    JsonBody(body): JsonBody<RoomChange>,
) -> Result<Json<RoomView>, Problem> {
    let (room, rooms) = (named(&id)?, Arc::clone(&api.rooms));
    let changed = api.to_its_end(async move { rooms.set_slow_mode(room, user, body.slow_mode_s).await });
    Ok(Json(changed.await?.into()))
}

/// Join a room
#[utoipa::path(post, path = "/api/v1/rooms/{id}/join", tag = "rooms", params(RoomPath),
    responses((status = 200, description = "The room after it", body = RoomView)))]
pub(super) async fn join<B: Backend>(
    State(api): State<Arc<Api<B>>>,
    Caller(user): Caller,
    Path(id): Path<String>,
) -> Result<Json<RoomView>, Problem> {
    let (room, rooms) = (named(&id)?, Arc::clone(&api.rooms));
    Ok(Json(api.to_its_end(async move { rooms.join(room, user).await }).await?.into()))
}

/// Leave a room
#[utoipa::path(post, path = "/api/v1/rooms/{id}/leave", tag = "rooms", params(RoomPath),
    responses((status = 204, description = "Not a member any more")))]
pub(super) async fn leave<B: Backend>(
    State(api): State<Arc<Api<B>>>,
    Caller(user): Caller,
    Path(id): Path<String>,
) -> Result<StatusCode, Problem> {
    let (room, rooms) = (named(&id)?, Arc::clone(&api.rooms));
    api.to_its_end(async move { rooms.leave(room, user).await }).await?;
    Ok(StatusCode::NO_CONTENT)
}

#[derive(Serialize, ToSchema)]
pub(super) struct MembersAnswer {
    members: Vec<UserView>,
}

/// List the members of a room
#[utoipa::path(get, path = "/api/v1/rooms/{id}/members", tag = "rooms", params(RoomPath),
    responses((status = 200, description = "By ascending id", body = MembersAnswer)))]
pub(super) async fn members<B: Backend>(
    State(api): State<Arc<Api<B>>>,
    Caller(_): Caller,
    Path(id): Path<String>,
) -> Result<Json<MembersAnswer>, Problem> {
    let members = api.rooms.members(named(&id)?).await?;
    Ok(Json(MembersAnswer { members: members.into_iter().map(Into::into).collect() }))
}
