//! `/api/v1/rooms` and what is below it.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use serde::{Deserialize, Serialize};
use tidegate_core::ids::{ConversationId, RoomId};
use tidegate_core::limits::ROOMS_PAGE_MAX;
use tidegate_core::ports::{Backend, Room};
use tidegate_core::services::ServiceError;

use super::Api;
use super::extract::{Caller, JsonBody, QueryPart, room_id};
use super::problem::Problem;
use super::user::UserView;

/// Rooms on a page when the client does not say.
const PAGE_DEFAULT: u32 = 50;

/// A room as clients see it.
#[derive(Serialize)]
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

/// A path that names no room is a room that does not exist.
fn named(text: &str) -> Result<RoomId, Problem> {
    room_id(text).ok_or_else(|| ServiceError::RoomUnknown.into())
}

#[derive(Deserialize)]
pub(super) struct NewRoom {
    name: String,
    capacity: Option<u32>,
}

/// `POST /api/v1/rooms`
pub(super) async fn create<B: Backend>(
    State(api): State<Arc<Api<B>>>,
    Caller(owner): Caller,
    JsonBody(body): JsonBody<NewRoom>,
) -> Result<(StatusCode, Json<RoomView>), Problem> {
    let rooms = Arc::clone(&api.rooms);
    let room = api.to_its_end(async move { rooms.create(&body.name, owner, body.capacity).await }).await?;
    Ok((StatusCode::CREATED, Json(room.into())))
}

#[derive(Deserialize)]
pub(super) struct RoomsQuery {
    before: Option<u64>,
    page_size: Option<u32>,
}

#[derive(Serialize)]
pub(super) struct RoomsAnswer {
    rooms: Vec<RoomView>,
    next: Option<u64>,
}

/// `GET /api/v1/rooms`
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

/// `GET /api/v1/rooms/{id}`
pub(super) async fn show<B: Backend>(
    State(api): State<Arc<Api<B>>>,
    Caller(_): Caller,
    Path(id): Path<String>,
) -> Result<Json<RoomView>, Problem> {
    Ok(Json(api.rooms.room(named(&id)?).await?.into()))
}

#[derive(Deserialize)]
pub(super) struct RoomChange {
    slow_mode_s: u32,
}

/// `PATCH /api/v1/rooms/{id}`
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

/// `POST /api/v1/rooms/{id}/join`
pub(super) async fn join<B: Backend>(
    State(api): State<Arc<Api<B>>>,
    Caller(user): Caller,
    Path(id): Path<String>,
) -> Result<Json<RoomView>, Problem> {
    let (room, rooms) = (named(&id)?, Arc::clone(&api.rooms));
    Ok(Json(api.to_its_end(async move { rooms.join(room, user).await }).await?.into()))
}

/// `POST /api/v1/rooms/{id}/leave`
pub(super) async fn leave<B: Backend>(
    State(api): State<Arc<Api<B>>>,
    Caller(user): Caller,
    Path(id): Path<String>,
) -> Result<StatusCode, Problem> {
    let (room, rooms) = (named(&id)?, Arc::clone(&api.rooms));
    api.to_its_end(async move { rooms.leave(room, user).await }).await?;
    Ok(StatusCode::NO_CONTENT)
}

#[derive(Serialize)]
pub(super) struct MembersAnswer {
    members: Vec<UserView>,
}

/// `GET /api/v1/rooms/{id}/members`
pub(super) async fn members<B: Backend>(
    State(api): State<Arc<Api<B>>>,
    Caller(_): Caller,
    Path(id): Path<String>,
) -> Result<Json<MembersAnswer>, Problem> {
    let members = api.rooms.members(named(&id)?).await?;
    Ok(Json(MembersAnswer { members: members.into_iter().map(Into::into).collect() }))
}
