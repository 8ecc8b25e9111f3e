//! `/api/v1/register`, `login`, `logout`, `me` and `users`.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::{get, post};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::{Deserialize, Serialize};
use tidegate_core::clock::Clock as _;
use tidegate_core::limits::USERS_LOOKUP_MAX;
use tidegate_core::ports::{Backend, Standing, User};
use utoipa::{IntoParams, OpenApi, ToSchema};

use super::chat::LooseMessageView;
use super::extract::{Caller, JsonBody, QueryPart, TOKEN_HEADER, Token, query_invalid, user_id};
use super::problem::Problem;
use super::{Api, Route};
use crate::clock::SystemClock;

/// What is served here.
pub(super) fn routes<B: Backend>() -> Vec<Route<B>> {
    vec![
        ("/api/v1/register", post(register)),
        ("/api/v1/login", post(login)),
        ("/api/v1/logout", post(logout)),
        ("/api/v1/me", get(me)),
        ("/api/v1/users", get(users)),
    ]
}

/// The same for readers.
#[derive(OpenApi)]
#[openapi(paths(register, login, logout, me, users))]
pub(super) struct Document;

/// Random bytes in a token: beyond guessing.
const TOKEN_RANDOM_BYTES: usize = 32;

#[derive(Deserialize, ToSchema)]
pub(super) struct Credentials {
    /// 2 to 32 letters or digits of any script, dots, dashes and underscores.
    #[schema(example = "cleo")]
    name: String,
    /// 8 to 256 bytes.
    #[schema(example = "correct horse")]
    password: String,
}

/// A user as clients see it.
#[derive(Serialize, ToSchema)]
pub(super) struct UserView {
    user_id: u64,
    name: String,
}

impl From<User> for UserView {
    fn from(user: User) -> Self {
        Self { user_id: user.id.0, name: user.name }
    }
}

#[derive(Serialize, ToSchema)]
struct UnreadView {
    conversation_id: String,
    count: u32,
}

fn unread(standings: &[Standing]) -> Vec<UnreadView> {
    let unread = standings.iter().filter(|standing| standing.unread > 0);
    unread.map(|s| UnreadView { conversation_id: s.conversation.to_string(), count: s.unread }).collect()
}

/// Make an account
#[utoipa::path(post, path = "/api/v1/register", tag = "accounts", security(()), request_body = Credentials,
    responses((status = 201, description = "The account", body = UserView)))]
pub(super) async fn register<B: Backend>(
    State(api): State<Arc<Api<B>>>,
    JsonBody(body): JsonBody<Credentials>,
) -> Result<(StatusCode, Json<UserView>), Problem> {
    let user = api.users.register(&body.name, body.password, SystemClock.now()).await?;
    Ok((StatusCode::CREATED, Json(user.into())))
}

#[derive(Serialize, ToSchema)]
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
#[derive(Serialize, ToSchema)]
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

/// Log in
///
/// A token, and what the first frame of a connection will say as well. Nothing is taken by it.
#[utoipa::path(post, path = "/api/v1/login", tag = "accounts", security(()), request_body = Credentials,
    responses((status = 200, description = "A token, and where the user stands", body = LoginAnswer)))]
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

/// End the token's login
#[utoipa::path(post, path = "/api/v1/logout", tag = "accounts",
    responses((status = 204, description = "The token is worth nothing any more")))]
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

#[derive(Serialize, ToSchema)]
pub(super) struct MeAnswer {
    #[serde(flatten)]
    user: UserView,
    rooms: Vec<u64>,
    unread: Vec<UnreadView>,
}

/// Who the token's user is, and what is unread
#[utoipa::path(get, path = "/api/v1/me", tag = "accounts",
    responses((status = 200, description = "The user", body = MeAnswer)))]
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

#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(super) struct UsersQuery {
    /// A name, in any case.
    name: Option<String>,
    /// Up to 100 ids with commas between; not together with `name`.
    #[param(example = "1,2,3")]
    ids: Option<String>,
}

#[derive(Serialize, ToSchema)]
pub(super) struct UsersAnswer {
    users: Vec<UserView>,
}

/// Look users up, by name or by ids
#[utoipa::path(get, path = "/api/v1/users", tag = "accounts", params(UsersQuery),
    responses((status = 200, description = "Those that exist, by ascending id", body = UsersAnswer)))]
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
