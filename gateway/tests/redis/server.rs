//! A Redis of a test's own, to be stopped and killed.

use std::net::TcpListener;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use super::{eventually, raw_client};

/// A running `redis-server` without a disk. Killed when dropped.
pub struct Server {
    child: Child,
    port: u16,
    password: &'static str,
}

impl Server {
    /// Starts one on a free port and waits until it answers.
    pub async fn start(password: &'static str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let port = listener.local_addr().expect("bound").port();
        drop(listener);
        Self::start_on(port, password).await
    }

    async fn start_on(port: u16, password: &'static str) -> Self {
        let mut command = Command::new("redis-server");
        command.args(["--bind", "127.0.0.1", "--save", "", "--appendonly", "no", "--port"]).arg(port.to_string());
        if !password.is_empty() {
            command.args(["--requirepass", password]);
        }
        let child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("redis-server is installed");
        let server = Self { child, port, password };
        eventually("the server listens", Duration::from_secs(10), || async {
            tokio::net::TcpStream::connect(("127.0.0.1", port)).await.is_ok()
        })
        .await;
        raw_client(&server.url()).await;
        server
    }

    /// Where it is, password included.
    pub fn url(&self) -> String {
        match self.password {
            "" => format!("redis://127.0.0.1:{}", self.port),
            password => format!("redis://:{password}@127.0.0.1:{}", self.port),
        }
    }

    /// `host:port`.
    pub fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// Stops it in its tracks: connections stay open, nothing is answered.
    pub fn freeze(&self) {
        self.signal("-STOP");
    }

    /// The opposite of [`Server::freeze`].
    pub fn thaw(&self) {
        self.signal("-CONT");
    }

    /// Kills it: everything it held is lost.
    pub fn kill(&mut self) {
        self.child.kill().expect("it is our child");
        self.child.wait().expect("it is our child");
    }

    /// A fresh one on the same port.
    pub async fn restart(mut self) -> Self {
        self.kill();
        let (port, password) = (self.port, self.password);
        drop(self);
        Self::start_on(port, password).await
    }

    /// An operator's command.
    pub fn command(&self, words: &[&str]) {
        let mut command = Command::new("redis-cli");
        command.args(["-p", &self.port.to_string()]).args(words).stdout(Stdio::null());
        assert!(command.status().expect("redis-cli is installed").success());
    }

    fn signal(&self, signal: &str) {
        let status = Command::new("kill").arg(signal).arg(self.child.id().to_string()).status();
        assert!(status.expect("kill is installed").success());
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // SIGKILL ends a frozen process too.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}
