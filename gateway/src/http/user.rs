//! `/api/v1/register`, `login`, `logout`, `me` and `users`.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::{Deserialize, Serialize};
use tidegate_core::clock::Clock as _;
use tidegate_core::limits::USERS_LOOKUP_MAX;
use tidegate_core::ports::{Backend, Standing, User};

use super::Api;
use super::chat::LooseMessageView;
use super::extract::{Caller, JsonBody, QueryPart, TOKEN_HEADER, Token, query_invalid, user_id};
use super::problem::Problem;
use crate::clock::SystemClock;

/// Random bytes in a token: beyond guessing.
const TOKEN_RANDOM_BYTES: usize = 32;

#[derive(Deserialize)]
pub(super) struct Credentials {
    name: String,
    password: String,
}

/// A user as clients see it.
#[derive(Serialize)]
pub(super) struct UserView {
    user_id: u64,
    name: String,
}

impl From<User> for UserView {
    fn from(user: User) -> Self {
        Self { user_id: user.id.0, name: user.name }
    }
}

#[derive(Serialize)]
struct UnreadView {
    conversation_id: String,
    count: u32,
}

fn unread(standings: &[Standing]) -> Vec<UnreadView> {
    let unread = standings.iter().filter(|standing| standing.unread > 0);
    unread.map(|s| UnreadView { conversation_id: s.conversation.to_string(), count: s.unread }).collect()
}

/// `POST /api/v1/register`
pub(super) async fn register<B: Backend>(
    State(api): State<Arc<Api<B>>>,
    JsonBody(body): JsonBody<Credentials>,
) -> Result<(StatusCode, Json<UserView>), Problem> {
    let user = api.users.register(&body.name, body.password, SystemClock.now()).await?;
    Ok((StatusCode::CREATED, Json(user.into())))
}

#[derive(Serialize)]
pub(super) struct LoginAnswer {
    #[serde(flatten)]
    user: UserView,
    token_name: &'static str,
    token: String,
    expires_in_s: u64,
    unread: Vec<UnreadView>,
    positions: Vec<PositionView>,
    recent: Vec<LooseMessageView>,
}

/// As `Position` in a LoginReply.
#[derive(Serialize)]
struct PositionView {
    conversation_id: String,
    epoch: u32,
    last_seq: u64,
    read_seq: u64,
    unread: u32,
}

impl From<&Standing> for PositionView {
    fn from(standing: &Standing) -> Self {
        Self {
            conversation_id: standing.conversation.to_string(),
            epoch: standing.epoch.0,
            last_seq: standing.last.0,
            read_seq: standing.read.0,
            unread: standing.unread,
        }
    }
}

/// `POST /api/v1/login`: a token, and what the first frame of a connection will say as well. Nothing is taken by it.
pub(super) async fn login<B: Backend>(
    State(api): State<Arc<Api<B>>>,
    JsonBody(body): JsonBody<Credentials>,
) -> Result<Json<LoginAnswer>, Problem> {
    let mut random = [0; TOKEN_RANDOM_BYTES];
    getrandom::fill(&mut random).map_err(|error| {
        tracing::error!(%error, "no randomness");
        Problem::internal()
    })?;
    let token = URL_SAFE_NO_PAD.encode(random);
    let logged_in = api.users.login(&body.name, body.password, &token).await?;
    Ok(Json(LoginAnswer {
        unread: unread(&logged_in.standings),
        positions: logged_in.standings.iter().map(Into::into).collect(),
        recent: logged_in.recent.into_iter().map(Into::into).collect(),
        user: logged_in.user.into(),
        token_name: TOKEN_HEADER,
        token,
        expires_in_s: api.users.token_ttl().as_secs(),
    }))
}

/// `POST /api/v1/logout`
pub(super) async fn logout<B: Backend>(
    State(api): State<Arc<Api<B>>>,
    Token(token): Token,
) -> Result<StatusCode, Problem> {
    let logged_out = api.users.logout(&token).await;
    // Also if it was no token any more: it may have been one a moment ago.
    api.tokens.forget(&token);
    logged_out?;
    Ok(StatusCode::NO_CONTENT)
}

#[derive(Serialize)]
pub(super) struct MeAnswer {
    #[serde(flatten)]
    user: UserView,
    rooms: Vec<u64>,
    unread: Vec<UnreadView>,
}

/// `GET /api/v1/me`
pub(super) async fn me<B: Backend>(
    State(api): State<Arc<Api<B>>>,
    Token(token): Token,
) -> Result<Json<MeAnswer>, Problem> {
    let user = api.users.authenticate(&token).await?;
    let (rooms, standings) =
        futures_util::future::try_join(api.rooms.rooms_of(user.id), api.users.standings(user.id)).await?;
    let rooms = rooms.into_iter().map(|room| room.0).collect();
    Ok(Json(MeAnswer { user: user.into(), rooms, unread: unread(&standings) }))
}

#[derive(Deserialize)]
pub(super) struct UsersQuery {
    name: Option<String>,
    ids: Option<String>,
}

#[derive(Serialize)]
pub(super) struct UsersAnswer {
    users: Vec<UserView>,
}

/// `GET /api/v1/users?name=` or `?ids=`
pub(super) async fn users<B: Backend>(
    State(api): State<Arc<Api<B>>>,
    Caller(_): Caller,
    QueryPart(query): QueryPart<UsersQuery>,
) -> Result<Json<UsersAnswer>, Problem> {
    let users = match (query.name, query.ids) {
        (Some(name), None) => api.users.by_name(&name).await?.into_iter().collect(),
        (None, Some(ids)) => {
            let ids = ids.split(',').map(|id| id.trim().parse::<u64>()).collect::<Result<Vec<_>, _>>();
            let ids = ids.map_err(|_| query_invalid("ids are numbers with commas between: ids=1,2,3"))?;
            if ids.len() > USERS_LOOKUP_MAX {
                return Err(query_invalid(format!("at most {USERS_LOOKUP_MAX} ids at a time")));
            }
            let ids: Vec<_> = ids.into_iter().filter_map(user_id).collect();
            api.users.by_ids(&ids).await?
        }
        _ => return Err(query_invalid("either name= or ids=")),
    };
    Ok(Json(UsersAnswer { users: users.into_iter().map(Into::into).collect() }))
}
