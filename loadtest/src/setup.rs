//! Setting up the people: the HTTP API as far as it takes: register, log in, open rooms, join them.
//!
//! In: names; out: [`Account`]s and rooms. Requests that are told to come later are repeated within a bound. No error
//! names a token or a password.

use std::collections::HashMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::{Context, anyhow, bail};
use serde_json::{Value, json};
use ureq::Agent;

use crate::connection::Account;
use crate::progress::Bar;

/// Requests under way at once, each on a kept-alive connection of its own.
const WORKERS: usize = 8;

/// Tries of one request that is answered with "later".
const TRIES_MAX: u32 = 30;

/// One worker's connection to the HTTP API.
pub struct Http {
    agent: Agent,
    base: String,
}

/// A login's answer.
#[derive(Clone, Debug)]
pub struct Login {
    /// For the protocol's Login.
    pub token: String,
    /// Conversations with unread messages, and how many.
    pub unread: HashMap<String, u64>,
}

/// A room that was opened.
#[derive(Clone, Debug)]
pub struct Room {
    /// As the join path wants it.
    pub room_id: String,
    /// As on the wire.
    pub conversation_id: String,
}

impl Http {
    /// A connection to `base`, such as `http://127.0.0.1:7480`.
    pub fn new(base: &str) -> Self {
        Self::with_deadline(base, Duration::from_secs(30))
    }

    /// The same; a request without an answer in `deadline` has failed.
    pub fn with_deadline(base: &str, deadline: Duration) -> Self {
        let config = Agent::config_builder().http_status_as_error(false).timeout_global(Some(deadline));
        Self { agent: config.build().into(), base: base.trim_end_matches('/').to_owned() }
    }

    /// True if the server says that it is ready.
    pub fn is_ready(&self) -> bool {
        self.agent.get(format!("{}/readyz", self.base)).call().is_ok_and(|response| response.status().is_success())
    }

    /// Registers a user under a name that nobody has, and logs in.
    ///
    /// # Errors
    /// What the server answered.
    pub fn register_and_log_in(&self, name: &str, password: &str) -> anyhow::Result<Account> {
        let credentials = json!({ "name": name, "password": password });
        let registered = self.post("/api/v1/register", None, &credentials)?;
        let user_id = id_field(&registered, "user_id").and_then(|id| Ok(id.parse()?))?;
        let token = self.log_in(name, password)?.token;
        Ok(Account { user_id, token })
    }

    /// Logs in.
    ///
    /// # Errors
    /// What the server answered.
    pub fn log_in(&self, name: &str, password: &str) -> anyhow::Result<Login> {
        let login = self.post("/api/v1/login", None, &json!({ "name": name, "password": password }))?;
        let token = login["token"].as_str().context("the login's answer has no token")?.to_owned();
        let count = |entry: &Value| Some((entry["conversation_id"].as_str()?.to_owned(), entry["count"].as_u64()?));
        let unread = login["unread"].as_array().context("the login's answer has no unread counts")?;
        let unread = unread
            .iter()
            .map(|entry| count(entry).context("an unread count is not one"))
            .collect::<anyhow::Result<_>>()?;
        Ok(Login { token, unread })
    }

    /// Opens a room.
    ///
    /// # Errors
    /// What the server answered.
    pub fn open_room(&self, owner: &Account, name: &str, capacity: usize) -> anyhow::Result<Room> {
        let room = self.post("/api/v1/rooms", Some(owner), &json!({ "name": name, "capacity": capacity }))?;
        Ok(Room { room_id: id_field(&room, "room_id")?, conversation_id: id_field(&room, "conversation_id")? })
    }

    /// Joins a room.
    ///
    /// # Errors
    /// What the server answered.
    pub fn join_room(&self, account: &Account, room: &Room) -> anyhow::Result<()> {
        self.post(&format!("/api/v1/rooms/{}/join", room.room_id), Some(account), &json!({})).map(drop)
    }

    /// What clients need to know: ports, bounds, lobbies, storms.
    ///
    /// # Errors
    /// What the server answered.
    pub fn settings(&self) -> anyhow::Result<Value> {
        let mut response = self.agent.get(format!("{}/api/v1/config", self.base)).call()?;
        let text = response.body_mut().read_to_string()?;
        serde_json::from_str(&text).context("/api/v1/config is no JSON")
    }

    fn post(&self, path: &str, account: Option<&Account>, body: &Value) -> anyhow::Result<Value> {
        for attempt in 1.. {
            let mut request = self.agent.post(format!("{}{path}", self.base));
            if let Some(account) = account {
                request = request.header("authorization", format!("Bearer {}", account.token));
            }
            let mut response = request.send_json(body).with_context(|| format!("POST {path}"))?;
            let status = response.status().as_u16();
            let text = response.body_mut().read_to_string().with_context(|| format!("POST {path}"))?;
            match status {
                200..=299 if text.is_empty() => return Ok(Value::Null),
                200..=299 => return serde_json::from_str(&text).with_context(|| format!("POST {path}: no JSON")),
                429 | 503 if attempt < TRIES_MAX => {
                    std::thread::sleep(Duration::from_millis(50 * u64::from(attempt)));
                }
                _ => bail!("POST {path}: {status} {}", text.chars().take(300).collect::<String>()),
            }
        }
        unreachable!("the loop ends by returning");
    }
}

/// An id as text; the API may write it as a number.
fn id_field(value: &Value, name: &str) -> anyhow::Result<String> {
    match &value[name] {
        Value::String(text) => Ok(text.clone()),
        Value::Number(number) => Ok(number.to_string()),
        _ => Err(anyhow!("the answer has no {name}")),
    }
}

/// Does `work` for 0 to `items - 1` with a bounded number of workers; results are in order.
///
/// # Errors
/// The first error of any item; the others are not begun then.
pub fn in_parallel<T: Send>(
    base: &str,
    what: &str,
    items: usize,
    stop: &AtomicBool,
    work: impl Fn(&Http, usize) -> anyhow::Result<T> + Sync,
) -> anyhow::Result<Vec<T>> {
    let bar = Bar::counting(what, items as u64);
    let next = AtomicUsize::new(0);
    let results: Mutex<Vec<Option<T>>> = Mutex::new((0..items).map(|_| None).collect());
    let first_error = Mutex::new(None);
    std::thread::scope(|scope| {
        for _ in 0..WORKERS.min(items) {
            scope.spawn(|| {
                let http = Http::new(base);
                loop {
                    let item = next.fetch_add(1, Ordering::Relaxed);
                    if item >= items || stop.load(Ordering::Relaxed) {
                        return;
                    }
                    match work(&http, item) {
                        Ok(result) => {
                            results.lock().expect("no worker panics with the lock")[item] = Some(result);
                            bar.advance();
                        }
                        Err(error) => {
                            next.store(items, Ordering::Relaxed);
                            first_error.lock().expect("no worker panics with the lock").get_or_insert(error);
                        }
                    }
                }
            });
        }
    });
    if let Some(error) = first_error.into_inner().expect("no worker panics with the lock") {
        return Err(error.context(what.to_owned()));
    }
    let results: Vec<T> = results.into_inner().expect("no worker panics with the lock").into_iter().flatten().collect();
    if results.len() < items {
        bail!("interrupted");
    }
    Ok(results)
}
