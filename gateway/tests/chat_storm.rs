//! `tidegate chat` in a lobby that gets too busy: what a person sees of a storm, and after it.

#![allow(clippy::unwrap_used)]

mod support;

use std::collections::BTreeSet;
use std::io::{BufRead as _, BufReader, Read};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::Instant;

use support::process::Process;
use support::{Client, DEADLINE, TempDir, send};
use tidegate_proto::Kind;
use tidegate_proto::v1;

const LOBBY: &str = "lobby_main";

/// Gears that change soon, and so few bytes for a watcher that messages are left out.
const SETTINGS: [&str; 6] = [
    "storm.merged_per_s=5",
    "storm.signal_per_s=20",
    "storm.window_ms=500",
    "storm.calm_ms=300",
    "storm.spread_ms=200",
    "storm.watcher_bytes_per_s=2048",
];

/// What a person has before them: all of it on the screen, notices apart.
struct Person {
    process: Child,
    said: Receiver<String>,
    notices: Receiver<String>,
    _home: TempDir,
}

impl Person {
    fn start(name: &str, server: &Process) -> Self {
        let home = TempDir::new();
        let mut command = Command::new(env!("CARGO_BIN_EXE_tidegate"));
        for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("TIDEGATE_")) {
            command.env_remove(name);
        }
        command.args(["chat", "--user", name, "--server", &format!("http://{}", server.http)]);
        command.env("XDG_CONFIG_HOME", &home.0).current_dir(&home.0);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut process = command.spawn().unwrap();
        let (said, notices) = (lines_of(process.stdout.take().unwrap()), lines_of(process.stderr.take().unwrap()));
        Self { process, said, notices, _home: home }
    }

    /// The notices up to the one that is wanted.
    fn notices_until(&self, wanted: impl Fn(&str) -> bool) -> Vec<String> {
        let (end, mut seen) = (Instant::now() + DEADLINE, Vec::new());
        while !seen.last().is_some_and(|line: &String| wanted(line)) {
            let left = end.saturating_duration_since(Instant::now());
            seen.push(self.notices.recv_timeout(left).unwrap_or_else(|error| panic!("{error}; until then {seen:#?}")));
        }
        seen
    }

    fn next_said(&self) -> String {
        self.said.recv_timeout(DEADLINE).unwrap()
    }
}

impl Drop for Person {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn lines_of(stream: impl Read + Send + 'static) -> Receiver<String> {
    let (lines, rx) = channel();
    std::thread::spawn(move || {
        for line in BufReader::new(stream).lines().map_while(Result::ok) {
            if lines.send(line).is_err() {
                return;
            }
        }
    });
    rx
}

async fn say_all(client: &mut Client, texts: impl Iterator<Item = u32>) {
    let mut under_way = Vec::new();
    for text in texts {
        let text = text.to_string();
        under_way.push(client.command(Kind::Send, &send(LOBBY, &text, &text)).await);
    }
    for correlation in under_way {
        client.reply::<v1::SendAck>(correlation).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_person_reads_the_newest_of_a_storm_and_the_rest_when_it_is_calm() {
    const COUNT: u32 = 240;
    let server = Process::start("gw-chat", &[], &SETTINGS);
    let anna = server.register("anna").await;
    let mut anna = server.connect(&anna, "pc").await;
    let ben = Person::start("ben", &server);
    ben.notices_until(|line| line == "* you are in lobby_main");
    say_all(&mut anna, 0..1).await;
    assert_eq!(ben.next_said(), "anna: 0");
    say_all(&mut anna, 1..COUNT).await;

    let storm = ben.notices_until(|line| line == "* lobby_main is calm again");
    assert!(storm.contains(&"* lobby_main is busy: new messages come in batches".to_owned()), "{storm:#?}");
    assert!(storm.iter().any(|line| line.ends_with("messages left out, /history to read them")), "{storm:#?}");
    let said: Vec<u32> = (1..COUNT).map(|_| ben.next_said().strip_prefix("anna: ").unwrap().parse().unwrap()).collect();
    assert_eq!(BTreeSet::from_iter(said.iter().copied()), (1..COUNT).collect(), "each once: {said:?}");
    assert!(!said.is_sorted(), "the newest came first");
    let filled = ben.notices_until(|line| line.ends_with("messages that were left out:"));
    assert!(filled.iter().all(|line| !line.contains("cannot")), "{filled:#?}");

    say_all(&mut anna, COUNT..COUNT + 1).await;
    assert_eq!(ben.next_said(), format!("anna: {COUNT}"), "and nothing else");
}
