//! The program when the system gives it no more open files: it waits, counts, and goes on.

#![allow(clippy::unwrap_used)]

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

const DEADLINE: Duration = Duration::from_secs(20);

/// Few enough to use up, enough to start with.
const OPEN_FILES: u32 = 96;

/// `tidegate` in a directory of its own; ends with the test.
struct Program {
    child: Child,
    dir: std::path::PathBuf,
    http: SocketAddr,
}

impl Program {
    fn start() -> Self {
        let dir = std::env::temp_dir().join(format!("tidegate-open-files-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let program = env!("CARGO_BIN_EXE_tidegate");
        let line =
            format!("ulimit -n {OPEN_FILES} && exec '{program}' --tcp 127.0.0.1:0 --http 127.0.0.1:0 --shards 1");
        let mut command = Command::new("sh");
        command.args(["-c", &line]).current_dir(&dir).stdout(Stdio::piped()).stderr(Stdio::null());
        std::env::vars().filter(|(name, _)| name.starts_with("TIDEGATE_")).for_each(|(name, _)| {
            command.env_remove(name);
        });
        let mut child = command.spawn().expect("a shell");
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let http = lines.by_ref().find_map(|line| {
            let line = line.ok()?;
            let (_, rest) = line.split_once("http://")?;
            let address: String = rest.chars().take_while(|c| c.is_ascii_digit() || matches!(c, '.' | ':')).collect();
            address.parse().ok()
        });
        // Whatever else it prints must find a reader.
        std::thread::spawn(move || lines.for_each(drop));
        Self { child, dir, http: http.expect("the banner names the HTTP address") }
    }

    fn get(&self, path: &str) -> Option<String> {
        let mut stream = TcpStream::connect(self.http).ok()?;
        stream.set_read_timeout(Some(Duration::from_secs(2))).ok()?;
        write!(stream, "GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).ok()?;
        answer.starts_with("HTTP/1.1 200").then_some(answer)
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}

#[test]
fn running_out_of_open_files_delays_and_does_not_end_it() {
    let program = Program::start();
    assert!(program.get("/livez").is_some());
    let crowd: Vec<_> = (0..2 * OPEN_FILES).map(|_| TcpStream::connect(program.http).unwrap()).collect();
    std::thread::sleep(Duration::from_millis(300));
    drop(crowd);
    let begun = Instant::now();
    let metrics = loop {
        assert!(begun.elapsed() < DEADLINE, "it does not answer any more");
        match program.get("/metrics") {
            Some(metrics) => break metrics,
            None => std::thread::sleep(Duration::from_millis(50)),
        }
    };
    let failures = metrics.lines().find_map(|line| line.strip_prefix("tidegate_http_accept_failures_total "));
    let failures: u64 = failures.expect("the failures were counted").parse().unwrap();
    assert!((1..100).contains(&failures), "it backs off between failures: {failures}");
}
