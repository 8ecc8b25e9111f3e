//! The gateway as a process of its own, as operators run it, and what its HTTP side says.

use std::io::{BufRead as _, BufReader};
use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use serde_json::Value;
use tidegate_core::ids::UserId;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::{Account, Client, DEADLINE, NO_LIMIT, TempDir, eventually};

/// A running `tidegate serve`. Killed when dropped.
pub struct Process {
    child: Child,
    pub tcp: SocketAddr,
    pub http: SocketAddr,
    _dir: TempDir,
}

impl Process {
    /// Starts one and waits until it serves. What it logs goes where the test's output goes.
    pub fn start(gateway_id: &str, settings: &[(&str, String)], set: &[&str]) -> Self {
        let program = std::env::var("TIDEGATE_BIN").unwrap_or_else(|_| env!("CARGO_BIN_EXE_tidegate").to_owned());
        let dir = TempDir::new();
        let mut command = Command::new(program);
        for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("TIDEGATE_")) {
            command.env_remove(name);
        }
        command.args(["serve", "--tcp", "127.0.0.1:0", "--http", "127.0.0.1:0", "--shards", "1"]);
        // Hashing a password as it should be hashed takes a debug build a second.
        command.args(["--set", "auth.argon2_memory_kib=64", "--set", "auth.argon2_iterations=1"]);
        command.args(["--set", NO_LIMIT]);
        command.args(set.iter().flat_map(|set| ["--set", set]));
        command.args(["--gateway-id", gateway_id]).envs(settings.iter().map(|(name, value)| (name, value)));
        let log = std::env::var("GATEWAY_LOG").map_or_else(|_| Stdio::null(), |_| Stdio::inherit());
        let mut child = command
            .current_dir(&dir.0)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(log)
            .spawn()
            .expect("the gateway's program is built");
        let mut lines = BufReader::new(child.stdout.take().expect("piped")).lines();
        let mut after = |label: &str| {
            let found = lines.by_ref().find_map(|line| {
                let line = line.ok()?;
                let rest = line.trim_start().strip_prefix(label)?.trim_start();
                let word = rest.trim_start_matches("http://").split(['/', ' ']).next()?;
                word.parse::<SocketAddr>().ok()
            });
            found.unwrap_or_else(|| panic!("the banner of {gateway_id} names {label}"))
        };
        let (tcp, http) = (after("TCP"), after("HTTP"));
        // Whatever else it prints must find a reader.
        std::thread::spawn(move || lines.for_each(drop));
        Self { child, tcp, http, _dir: dir }
    }

    /// SIGKILL: it says goodbye to nobody.
    pub fn kill(&mut self) {
        self.child.kill().expect("it is our child");
        self.child.wait().expect("it is our child");
    }

    /// `-STOP`, `-CONT`, ... to the process.
    pub fn signal(&self, signal: &str) {
        let status = Command::new("kill").args([signal, &self.child.id().to_string()]).status();
        assert!(status.expect("kill runs").success());
    }

    /// Whether it still runs.
    pub fn lives(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    pub fn resident_bytes(&self) -> u64 {
        let statm = std::fs::read_to_string(format!("/proc/{}/statm", self.child.id())).expect("Linux, and it runs");
        let pages: u64 = statm.split_whitespace().nth(1).and_then(|text| text.parse().ok()).expect("a number");
        pages * 4096
    }

    /// The status and the body of an answer; `Err` says what went wrong with the connection.
    pub async fn request(&self, method: &str, path: &str, body: Option<Value>) -> Result<(u16, String), String> {
        self.request_as("", method, path, body).await
    }

    /// As [`Process::request`], as somebody who is logged in. Answers that can be JSON are.
    pub async fn request_as(
        &self,
        token: &str,
        method: &str,
        path: &str,
        body: Option<Value>,
    ) -> Result<(u16, String), String> {
        let attempt = async {
            let mut stream = TcpStream::connect(self.http).await?;
            let body = body.map_or_else(String::new, |body| body.to_string());
            let head = format!(
                "{method} {path} HTTP/1.1\r\nhost: test\r\nsatoken: {token}\r\nconnection: close\r\n\
                 accept: application/json\r\ncontent-type: application/json\r\n\
                 content-length: {}\r\n\r\n",
                body.len()
            );
            stream.write_all((head + &body).as_bytes()).await?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer).await?;
            std::io::Result::Ok(answer)
        };
        let answer = timeout(DEADLINE, attempt).await.map_err(|_| format!("{path}: no answer in time"))?;
        let answer = answer.map_err(|error| format!("{path}: {error}"))?;
        let status = answer.split(' ').nth(1).and_then(|text| text.parse().ok()).ok_or("no status")?;
        let body = answer.split_once("\r\n\r\n").map_or("", |(_, body)| body);
        Ok((status, body.to_owned()))
    }

    /// What `/readyz` says: whether it is ready, and the parts that are not up.
    pub async fn readiness(&self) -> (bool, Vec<String>) {
        let (status, body) = self.request("GET", "/readyz", None).await.expect("it always answers");
        let answer: Value = serde_json::from_str(&body).expect("JSON");
        let parts = answer["parts"].as_array().expect("a list").iter();
        let down = parts.filter(|part| part["state"] != "up").map(|part| part["name"].as_str().unwrap().to_owned());
        (status == 200, down.collect())
    }

    /// The sum of a metric over its labels; zero if it is not there.
    pub async fn metric(&self, name: &str) -> f64 {
        let (_, text) = self.request("GET", "/metrics", None).await.expect("it always answers");
        let of_name = |line: &&str| line.strip_prefix(name).is_some_and(|rest| rest.starts_with(['{', ' ']));
        text.lines().filter(of_name).filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum()
    }

    /// Registers somebody, whose name must be new, and logs them in.
    pub async fn register(&self, name: &str) -> Account {
        let credentials = serde_json::json!({ "name": name, "password": "correct horse" });
        let (status, body) = self.request("POST", "/api/v1/register", Some(credentials)).await.unwrap();
        assert_eq!(status, 201, "{body}");
        let (id, token) = self.token(name).await.unwrap();
        Account { id, token }
    }

    /// A new token of somebody who is registered; the status if there is none to be had.
    pub async fn token(&self, name: &str) -> Result<(UserId, String), u16> {
        let credentials = serde_json::json!({ "name": name, "password": "correct horse" });
        let (status, body) = self.request("POST", "/api/v1/login", Some(credentials)).await.unwrap();
        if status != 200 {
            return Err(status);
        }
        let answer: Value = serde_json::from_str(&body).unwrap();
        Ok((UserId(answer["user_id"].as_u64().unwrap()), answer["token"].as_str().unwrap().to_owned()))
    }

    /// Logs in, again on a new connection where the answer says that it may succeed later: a gateway that was frozen finds its
    /// own connections broken.
    pub async fn connect(&self, account: &Account, device: &str) -> Client {
        eventually("a login succeeds", async || {
            let mut client = Client::open(self.tcp).await;
            match client.try_login(account, device).await {
                Some(Ok(_)) => Some(client),
                Some(Err(code)) => {
                    assert!(code.may_retry(), "{code:?}");
                    None
                }
                None => None,
            }
        })
        .await
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Waits until `/readyz` is as wanted; how long that took.
pub async fn until_ready(process: &Process, within: Duration) -> Duration {
    let since = std::time::Instant::now();
    loop {
        let (ready, down) = process.readiness().await;
        if ready {
            return since.elapsed();
        }
        assert!(since.elapsed() < within, "not ready after {within:?}: {down:?}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// Waits until `/readyz` is 503 and names `part`; how long that took.
pub async fn until_down(process: &Process, part: &str, within: Duration) -> Duration {
    let since = std::time::Instant::now();
    loop {
        let (ready, down) = process.readiness().await;
        if !ready && down.iter().any(|name| name == part) {
            return since.elapsed();
        }
        assert!(since.elapsed() < within, "after {within:?} {part} is not down: ready {ready}, down {down:?}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}
