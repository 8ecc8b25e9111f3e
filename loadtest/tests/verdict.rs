//! The whole program against a server that is right, and against servers that each break one promise.

#![allow(clippy::unwrap_used, missing_docs, reason = "a failed test may panic")]

mod fake;

use std::process::{Command, Output, Stdio};
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use fake::{Behaviour, FakeServer};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

const PRIVATE: &[&str] = &["private", "--pairs", "2"];
const ROOM: &[&str] = &["room", "--rooms", "2", "--members", "5"];
const BRIEF: &[&str] =
    &["--rate", "400", "--duration", "500ms", "--warmup", "100ms", "--patience", "1s", "--json", "-"];

fn loadtest(server: &FakeServer, options: &[&[&str]]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tidegate-loadtest"));
    command.args(options.concat()).arg("--tcp").arg(server.tcp.to_string()).arg("--http").arg(&server.http);
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// Exit code and the only result.
fn outcome(output: &Output) -> (i32, Value) {
    let stderr = String::from_utf8_lossy(&output.stderr);
    let report: Value = serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {stderr}"));
    (output.status.code().unwrap_or_else(|| panic!("ended by a signal: {stderr}")), report["results"][0].clone())
}

fn play(behaviour: Behaviour, scenario: &[&str]) -> (i32, Value) {
    let server = FakeServer::start(behaviour);
    outcome(&loadtest(&server, &[scenario, BRIEF]).output().unwrap())
}

/// The run fails, and names this fault and no other.
#[track_caller]
fn fails_with(behaviour: Behaviour, scenario: &[&str], fault: &str) -> Value {
    let (code, result) = play(behaviour, scenario);
    let findings: Vec<&String> = result["findings"].as_object().unwrap().keys().collect();
    assert_eq!(
        (code, &result["verdict"], &findings[..]),
        (1, &Value::from("fail"), &[&fault.to_owned()][..]),
        "{result:#}"
    );
    result
}

#[test]
fn a_server_that_is_right_passes() {
    for (scenario, receivers) in [(PRIVATE, 2), (ROOM, 5)] {
        let (code, result) = play(Behaviour::Right, scenario);
        assert_eq!((code, &result["verdict"]), (0, &Value::from("pass")), "{result:#}");
        // 600 ms at 400 a second.
        let messages = &result["messages"];
        assert_eq!((&messages["sent"], &messages["accepted"]), (&240.into(), &240.into()));
        assert_eq!(messages["delivered_in_order"], 240 * receivers);
        assert_eq!((&result["ack"]["count"], &result["delivery"]["count"]), (&200.into(), &(200 * receivers).into()));
    }
}

#[test]
fn what_is_answered_with_later_is_repeated_until_it_is_accepted() {
    let (code, result) = play(Behaviour::OverloadedNowAndThen, PRIVATE);
    assert_eq!(code, 0, "{result:#}");
    assert_eq!(result["messages"]["accepted"], 240);
    assert!(result["whole"]["repeated"].as_u64().unwrap() >= 24, "{result:#}");
    assert_eq!(result["whole"]["errors"]["1002 CODE_OVERLOADED"], result["whole"]["repeated"]);
}

#[test]
fn no_more_is_in_flight_than_the_server_allows_and_waiting_counts() {
    let server = FakeServer::start(Behaviour::FewPlaces);
    let load = ["--rate", "10000", "--duration", "300ms", "--warmup", "0s", "--json", "-"];
    let (code, result) = outcome(&loadtest(&server, &[&["private", "--pairs", "1"], &load]).output().unwrap());
    // A busy machine may make it void; it must not fail.
    assert!(code == 0 || code == 3, "{result:#}");
    assert_eq!(result["messages"]["accepted"], 3_000);
    assert!(result["whole"]["held_back"].as_u64().unwrap() > 0, "{result:#}");
}

#[test]
fn a_lost_delivery_fails() {
    let result = fails_with(Behaviour::LosesOne, PRIVATE, "lost");
    assert_eq!(result["findings"]["lost"]["count"], 1);
    fails_with(Behaviour::LosesOne, ROOM, "lost");
}

#[test]
fn an_acknowledged_message_that_is_forgotten_fails() {
    fails_with(Behaviour::ForgetsOne, PRIVATE, "lost");
}

#[test]
fn a_doubled_delivery_fails() {
    fails_with(Behaviour::DoublesOne, PRIVATE, "doubled");
    fails_with(Behaviour::DoublesOne, ROOM, "doubled");
}

#[test]
fn a_reordered_delivery_fails() {
    fails_with(Behaviour::ReordersOne, PRIVATE, "reordered");
    fails_with(Behaviour::ReordersOne, ROOM, "reordered");
}

#[test]
fn a_gap_fails() {
    fails_with(Behaviour::LeavesAGap, ROOM, "gap");
}

#[test]
fn a_message_stored_twice_fails() {
    fails_with(Behaviour::StoresOneTwice, ROOM, "stored_twice");
}

#[test]
fn an_altered_body_fails() {
    let (code, result) = play(Behaviour::AltersOne, PRIVATE);
    assert_eq!((code, &result["findings"]["altered"]["count"]), (1, &1.into()), "{result:#}");
}

#[test]
fn a_command_without_an_answer_fails_and_its_message_is_uncertain() {
    let result = fails_with(Behaviour::LeavesOneUnanswered, PRIVATE, "unanswered");
    assert_eq!(result["messages"]["uncertain"], 1);
}

#[test]
fn a_closed_connection_fails_with_its_close_code() {
    let result = fails_with(Behaviour::ClosesOne, ROOM, "closed");
    assert_eq!(result["whole"]["closed"]["4003 CLOSE_CODE_SLOW_CONSUMER too slow"], 1);
}

#[test]
fn an_interrupted_run_reports_what_was_measured() {
    let server = FakeServer::start(Behaviour::Right);
    let long = ["--rate", "400", "--duration", "60s", "--warmup", "0s", "--json", "-"];
    let child = loadtest(&server, &[PRIVATE, &long]).spawn().unwrap();
    let deadline = Instant::now() + Duration::from_secs(20);
    while server.stored.load(Ordering::Relaxed) < 100 {
        assert!(Instant::now() < deadline, "no messages arrive");
        std::thread::sleep(Duration::from_millis(10));
    }
    kill(Pid::from_raw(child.id().try_into().unwrap()), Signal::SIGINT).unwrap();
    let (code, result) = outcome(&child.wait_with_output().unwrap());
    assert_eq!((code, &result["verdict"]), (4, &Value::from("interrupted")), "{result:#}");
    assert!(result["messages"]["accepted"].as_u64().unwrap() >= 100);
    assert_eq!(result["findings"], serde_json::json!({}));
}

#[test]
fn what_cannot_be_set_up_is_an_error() {
    let server = FakeServer::start(Behaviour::Right);
    let nobody =
        FakeServer { tcp: "127.0.0.1:9".parse().unwrap(), http: server.http.clone(), stored: server.stored.clone() };
    let output = loadtest(&nobody, &[PRIVATE, BRIEF]).output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&output.stderr).contains("127.0.0.1:9"));
    let output = loadtest(&server, &[PRIVATE, &["--rate", "none"]]).output().unwrap();
    assert_eq!(output.status.code(), Some(2));
}
