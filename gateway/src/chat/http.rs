//! The HTTP API, as far as a chat client needs it. Blocking: the caller gives it a thread.
//!
//! In go names and ids, out come the server's answers or an [`ApiError`]. Must always hold: no request takes longer than
//! [`TIMEOUT`], no answer is read beyond [`ANSWER_BYTES_MAX`], and neither passwords nor tokens appear in an error.

use std::time::Duration;

use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use ureq::http::{Response, StatusCode, Uri};
use ureq::{Agent, Body};

use super::line::escape;

/// For a whole request.
const TIMEOUT: Duration = Duration::from_secs(5);

/// A page of rooms or members is far smaller.
const ANSWER_BYTES_MAX: u64 = 4 << 20;

/// Ids in one look-up, as the server bounds them.
pub const LOOKUP_MAX: usize = 100;

/// Rooms on a page, and pages looked through for a name.
const ROOMS_PAGE: u32 = 100;
const ROOMS_PAGES_MAX: u32 = 20;

/// Why a request came to nothing.
#[derive(Debug, thiserror::Error)]
pub enum ApiError {
    /// Nobody answers there, or not in time.
    #[error("{0}")]
    Unreachable(String),
    /// The server said no.
    #[error("{detail}")]
    Refused {
        /// HTTP status.
        status: u16,
        /// The problem's stable word.
        code: String,
        /// For people; escaped.
        detail: String,
    },
    /// The answer makes no sense.
    #[error("the answer is not that of a Tidegate server: {0}")]
    Strange(String),
}

impl ApiError {
    /// Whether the server answered with this status.
    pub fn is(&self, wanted: u16) -> bool {
        matches!(self, Self::Refused { status, .. } if *status == wanted)
    }
}

/// `GET /api/v1/config`, in part.
#[derive(Debug, Deserialize)]
pub struct Settings {
    /// Lobbies there are.
    pub lobbies: Vec<String>,
    /// Where frames over TCP are taken, on the same host.
    pub tcp_port: u16,
}

/// A successful login.
#[derive(Deserialize)]
pub struct Login {
    /// The user's id.
    pub user_id: u64,
    /// The name as it was registered.
    pub name: String,
    /// For the connection and for further requests.
    pub token: String,
}

/// A user.
#[derive(Debug, Deserialize)]
pub struct User {
    /// Id.
    pub user_id: u64,
    /// Name.
    pub name: String,
}

/// A room.
#[derive(Debug, Deserialize)]
pub struct Room {
    /// Id.
    pub room_id: u64,
    /// Its conversation.
    pub conversation_id: String,
    /// Name.
    pub name: String,
    /// Places.
    pub capacity: u32,
    /// Places taken.
    pub members: u32,
}

#[derive(Deserialize)]
struct Users {
    users: Vec<User>,
}

#[derive(Deserialize)]
struct Members {
    members: Vec<User>,
}

#[derive(Deserialize)]
struct Rooms {
    rooms: Vec<Room>,
    next: Option<u64>,
}

#[derive(Deserialize)]
struct Problem {
    #[serde(default)]
    code: String,
    #[serde(default)]
    detail: String,
}

/// A server's API.
#[derive(Clone)]
pub struct Api {
    agent: Agent,
    base: String,
    host: String,
    authority: String,
}

impl Api {
    /// The API at an address like `http://127.0.0.1:7480`.
    ///
    /// # Errors
    /// A sentence about the address.
    pub fn new(server: &str) -> Result<Self, String> {
        let wrong = |what: &str| format!("--server {}: {what}", escape(server));
        let uri: Uri = server.parse().map_err(|_| wrong("not an address like http://127.0.0.1:7480"))?;
        match uri.scheme_str() {
            Some("http") => {}
            Some("https") => return Err(wrong("this client speaks no TLS; reach the server over http")),
            _ => return Err(wrong("not an address like http://127.0.0.1:7480")),
        }
        let authority = uri.authority().ok_or_else(|| wrong("names no host"))?;
        let config = Agent::config_builder()
            .http_status_as_error(false)
            .timeout_global(Some(TIMEOUT))
            // The connection beside this one is direct, too.
            .proxy(None)
            .user_agent(concat!("tidegate-chat/", env!("CARGO_PKG_VERSION")))
            .build();
        Ok(Self {
            agent: config.new_agent(),
            base: server.trim_end_matches('/').to_owned(),
            host: authority.host().to_owned(),
            authority: authority.as_str().to_owned(),
        })
    }

    /// The host, as it stands in the address.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// Host and port, as they stand in the address.
    pub fn authority(&self) -> &str {
        &self.authority
    }

    /// Whether the server is this machine.
    pub fn is_loopback(&self) -> bool {
        let host = self.host.trim_start_matches('[').trim_end_matches(']');
        host.eq_ignore_ascii_case("localhost")
            || host.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback())
    }

    /// What clients need to know.
    ///
    /// # Errors
    /// [`ApiError`], as of all that follow.
    pub fn settings(&self) -> Result<Settings, ApiError> {
        read(self.agent.get(self.url("config")).call())
    }

    /// Makes a user; status 409 if the name is taken.
    pub fn register(&self, name: &str, password: &str) -> Result<(), ApiError> {
        let body = json!({ "name": name, "password": password });
        check(self.agent.post(self.url("register")).send_json(body)).map(drop)
    }

    /// Logs in; status 401 if name or password are not right.
    pub fn login(&self, name: &str, password: &str) -> Result<Login, ApiError> {
        read(self.agent.post(self.url("login")).send_json(json!({ "name": name, "password": password })))
    }

    /// The same API for one who has logged in.
    #[must_use]
    pub fn with_token(&self, token: &str) -> UserApi {
        UserApi { api: self.clone(), bearer: format!("Bearer {token}") }
    }

    fn url(&self, path: &str) -> String {
        format!("{}/api/v1/{path}", self.base)
    }
}

/// The API for one who has logged in.
#[derive(Clone)]
pub struct UserApi {
    api: Api,
    bearer: String,
}

impl UserApi {
    /// The same with another token.
    #[must_use]
    pub fn with_token(&self, token: &str) -> Self {
        self.api.with_token(token)
    }

    fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, ApiError> {
        read(self.api.agent.get(self.api.url(path)).header("authorization", &self.bearer).call())
    }

    fn post(&self, path: &str, body: &Value) -> Result<Response<Body>, ApiError> {
        check(self.api.agent.post(self.api.url(path)).header("authorization", &self.bearer).send_json(body))
    }

    /// The user of a name, if there is one.
    pub fn user_called(&self, name: &str) -> Result<Option<User>, ApiError> {
        Ok(self.get::<Users>(&format!("users?name={}", percent(name)))?.users.into_iter().next())
    }

    /// The users of at most [`LOOKUP_MAX`] ids, as far as they exist.
    pub fn users(&self, ids: &[u64]) -> Result<Vec<User>, ApiError> {
        let ids: Vec<_> = ids.iter().map(u64::to_string).collect();
        Ok(self.get::<Users>(&format!("users?ids={}", ids.join(",")))?.users)
    }

    /// The newest rooms.
    pub fn rooms(&self) -> Result<Vec<Room>, ApiError> {
        Ok(self.get::<Rooms>("rooms?page_size=20")?.rooms)
    }

    /// The newest rooms of this name, in any case.
    pub fn rooms_called(&self, name: &str) -> Result<Vec<Room>, ApiError> {
        let (name, mut found, mut before) = (name.to_lowercase(), Vec::new(), String::new());
        for _ in 0..ROOMS_PAGES_MAX {
            let page: Rooms = self.get(&format!("rooms?page_size={ROOMS_PAGE}{before}"))?;
            found.extend(page.rooms.into_iter().filter(|room| room.name.to_lowercase() == name));
            let Some(next) = page.next else { break };
            before = format!("&before={next}");
        }
        Ok(found)
    }

    /// One room.
    pub fn room(&self, id: u64) -> Result<Room, ApiError> {
        self.get(&format!("rooms/{id}"))
    }

    /// Makes a room.
    pub fn create_room(&self, name: &str) -> Result<Room, ApiError> {
        parse(self.post("rooms", &json!({ "name": name }))?)
    }

    /// Joins a room.
    pub fn join(&self, id: u64) -> Result<Room, ApiError> {
        parse(self.post(&format!("rooms/{id}/join"), &json!({}))?)
    }

    /// Leaves a room.
    pub fn leave(&self, id: u64) -> Result<(), ApiError> {
        self.post(&format!("rooms/{id}/leave"), &json!({})).map(drop)
    }

    /// Who is in a room.
    pub fn members(&self, id: u64) -> Result<Vec<User>, ApiError> {
        Ok(self.get::<Members>(&format!("rooms/{id}/members"))?.members)
    }
}

type Outcome = Result<Response<Body>, ureq::Error>;

fn read<T: DeserializeOwned>(outcome: Outcome) -> Result<T, ApiError> {
    parse(check(outcome)?)
}

fn parse<T: DeserializeOwned>(mut response: Response<Body>) -> Result<T, ApiError> {
    let body = response.body_mut().with_config().limit(ANSWER_BYTES_MAX).read_json();
    body.map_err(|error| ApiError::Strange(error.to_string()))
}

fn check(outcome: Outcome) -> Result<Response<Body>, ApiError> {
    let mut response = outcome.map_err(|error| ApiError::Unreachable(error.to_string()))?;
    let status = response.status();
    if status.is_success() {
        return Ok(response);
    }
    let body = response.body_mut().with_config().limit(ANSWER_BYTES_MAX).read_json::<Problem>();
    let problem = body.map_err(|_| ApiError::Strange(format!("status {status}")))?;
    let detail = match problem.detail.as_str() {
        "" => StatusCode::canonical_reason(&status).unwrap_or("refused"),
        detail => detail,
    };
    Err(ApiError::Refused { status: status.as_u16(), code: problem.code, detail: escape(detail) })
}

/// Percent-encodes all but unreserved characters (RFC 3986, section 2.3).
pub fn percent(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~') {
            out.push(char::from(byte));
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
    }
    out
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed test may panic")]

    use super::*;

    #[test]
    fn addresses_are_understood_or_explained() {
        let api = Api::new("http://127.0.0.1:7480/").unwrap();
        assert_eq!((api.host(), api.authority()), ("127.0.0.1", "127.0.0.1:7480"));
        assert_eq!(api.url("config"), "http://127.0.0.1:7480/api/v1/config");
        assert!(api.is_loopback());
        for loopback in ["http://localhost:1", "http://[::1]:1"] {
            assert!(Api::new(loopback).unwrap().is_loopback(), "{loopback}");
        }
        assert!(!Api::new("http://chat.example").unwrap().is_loopback());
        for wrong in ["127.0.0.1:7480", "https://chat.example", "ftp://x", "", "not an address"] {
            assert!(Api::new(wrong).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn names_of_any_script_fit_an_address() {
        assert_eq!(percent("a b&c=ü"), "a%20b%26c%3D%C3%BC");
    }
}
