//! `PROTOCOL.md` cannot rot: its hex blocks are the golden files, its tables the schema and the bounds.

#![allow(clippy::unwrap_used, missing_docs, reason = "a failed test may panic")]

mod support;

use std::collections::{BTreeMap, BTreeSet};

use support::{crate_dir, golden, parse_hex};
use tidegate_proto::limits::*;
use tidegate_proto::v1::{Gear, SyncOutcome};
use tidegate_proto::{CloseCode, Code, HEAD_BYTES, Kind, OPENING_BYTES};

fn protocol() -> String {
    std::fs::read_to_string(crate_dir().join("PROTOCOL.md")).unwrap()
}

/// The text below the line `heading` up to the next heading of any level.
fn section<'a>(document: &'a str, heading: &str) -> &'a str {
    let (_, rest) = document.split_once(&format!("\n{heading}\n")).unwrap_or_else(|| panic!("no heading {heading}"));
    rest.split("\n#").next().unwrap()
}

/// The cells of the first table in `text`, without its heading.
fn table(text: &str) -> Vec<Vec<&str>> {
    let rows = text.lines().skip_while(|line| !line.starts_with('|')).take_while(|line| line.starts_with('|'));
    rows.skip(2).map(|row| row.trim_matches('|').split('|').map(str::trim).collect()).collect()
}

#[test]
fn hex_blocks_are_the_golden_files() {
    let document = protocol();
    let mut names = Vec::new();
    for block in document.split("```hex").skip(1) {
        let (name, rest) = block.split_once('\n').unwrap();
        let (hex, _) = rest.split_once("```").unwrap();
        assert_eq!(parse_hex(hex), golden(name.trim()), "{name}");
        names.push(name.trim());
    }
    assert!(names.len() >= 8, "{names:?}");
    let fences = document.matches("\n```").count();
    assert_eq!(fences, names.len() * 2, "every fenced block is a hex block that is checked");
}

#[test]
fn kinds_are_those_of_the_schema_in_their_ranges() {
    let document = protocol();
    let mut shown = BTreeMap::new();
    for row in table(section(&document, "## Kinds")) {
        let number = u8::from_str_radix(row[0].trim_start_matches("0x"), 16).unwrap();
        let direction = match number {
            0x01..=0x3F => "command",
            0x40..=0x7F => "reply",
            0x80..=0xBF => "push",
            _ => "reserved",
        };
        assert_eq!(row[2], direction, "{}", row[1]);
        shown.insert(i32::from(number), row[1].to_owned());
    }
    let known: BTreeMap<i32, String> = (1..=255)
        .filter_map(|number| Kind::try_from(number).ok())
        .map(|kind| (kind as i32, kind.as_str_name().to_owned()))
        .collect();
    assert_eq!(shown, known);
    for command in known.keys().filter(|number| **number < 0x40) {
        assert!(known.contains_key(&(command + 0x40)), "command {command} has a reply");
    }
}

#[test]
fn code_tables_are_those_of_the_schema() {
    let document = protocol();
    let shown = |heading: &str| -> Vec<(i32, String)> {
        let rows = table(section(&document, heading));
        rows.iter().map(|row| (row[0].parse().unwrap(), row[1].to_owned())).collect()
    };
    let codes: Vec<_> = (1..=9999)
        .filter_map(|number| Code::try_from(number).ok())
        .map(|code| (code as i32, code.as_str_name().to_owned()))
        .collect();
    assert_eq!(shown("## Error codes"), codes);
    let close_codes: Vec<_> = CloseCode::ALL.map(|code| (code as i32, code.as_str_name().to_owned())).into();
    assert_eq!(shown("## Close codes"), close_codes);
}

#[test]
fn codes_named_in_the_text_exist() {
    let document = protocol();
    for word in document.split(|c: char| !c.is_ascii_alphanumeric() && c != '_') {
        if word.starts_with("CODE_") {
            assert!(Code::from_str_name(word).is_some(), "{word}");
        }
    }
    // Every error and every close code is the answer to something: a command, a state or bad input.
    let answers: String = document.split_once("\n## States\n").unwrap().1.to_owned();
    let client_caused = [
        CloseCode::Idle,
        CloseCode::SlowConsumer,
        CloseCode::HandshakeTimeout,
        CloseCode::BadOpening,
        CloseCode::UnsupportedVersion,
        CloseCode::FrameTooLarge,
        CloseCode::BadFrame,
        CloseCode::TooManyErrors,
        CloseCode::TokenRejected,
        CloseCode::Replaced,
    ];
    for code in client_caused {
        assert!(answers.contains(&code.number().to_string()), "{} is no answer to anything", code.label());
    }
}

#[test]
fn every_outcome_of_a_sync_says_what_to_do() {
    let document = protocol();
    let answers = section(&document, "## Staying in sync").split_once("**Answers.**").unwrap().1;
    let shown: BTreeSet<(i32, String)> = table(answers)
        .iter()
        .map(|row| (row[1].parse().unwrap(), row[0].split(',').next().unwrap().to_owned()))
        .collect();
    let known: BTreeSet<(i32, String)> = (0..=255)
        .filter_map(|number| SyncOutcome::try_from(number).ok())
        .map(|outcome| (outcome as i32, outcome.as_str_name().to_owned()))
        .collect();
    assert_eq!(shown, known);
}

#[test]
fn every_gear_says_how_messages_come() {
    let document = protocol();
    let shown: Vec<(i32, String)> =
        table(section(&document, "## Storms")).iter().map(|row| (row[1].parse().unwrap(), row[0].to_owned())).collect();
    let known: Vec<(i32, String)> = (0..=255)
        .filter_map(|number| Gear::try_from(number).ok())
        .map(|gear| (gear as i32, gear.as_str_name().to_owned()))
        .collect();
    assert_eq!(shown, known);
}

#[test]
fn bounds_are_those_of_limits_rs() {
    let document = protocol();
    let expected = [
        ("largest frame", FRAME_BYTES_MAX_DEFAULT),
        ("opening", OPENING_BYTES),
        ("head", HEAD_BYTES),
        ("device id", DEVICE_ID_BYTES_MAX),
        ("device class", DEVICE_CLASS_BYTES_MAX),
        ("client name", CLIENT_NAME_BYTES_MAX),
        ("client message id", CLIENT_MSG_ID_BYTES_MAX),
        ("message id", MESSAGE_ID_BYTES),
        ("conversation id", CONVERSATION_ID_BYTES_MAX),
        ("lobby id", LOBBY_ID_BYTES_MAX),
        ("watched lobbies", WATCHES_MAX),
        ("sync positions", SYNC_POSITIONS_MAX),
        ("sync messages", SYNC_MESSAGES_MAX as usize),
        ("history page", HISTORY_PAGE_MAX as usize),
        ("history page by default", HISTORY_PAGE_DEFAULT as usize),
        ("protocol errors", PROTOCOL_ERRORS_MAX as usize),
        ("WebSocket control frame", WEBSOCKET_CONTROL_BYTES_MAX),
        ("WebSocket fragments", WEBSOCKET_FRAGMENTS_MAX as usize),
    ];
    let shown: Vec<(String, usize)> = table(section(&document, "## Bounds"))
        .iter()
        .map(|row| (row[0].to_owned(), row[1].split(' ').next().unwrap().parse().unwrap()))
        .collect();
    assert_eq!(shown, expected.map(|(name, value)| (name.to_owned(), value)));
}

#[test]
fn payload_tables_are_those_of_the_schema() {
    let document = protocol();
    let schema = std::fs::read_to_string(crate_dir().join("schema/tidegate/v1/client.proto")).unwrap();
    let mut known = BTreeSet::new();
    for block in schema.split("\nmessage ").skip(1) {
        let (name, rest) = block.split_once(" {").unwrap();
        let (body, _) = rest.split_once('}').unwrap();
        let fields: Vec<(String, String, String)> = body
            .lines()
            .filter_map(|line| line.split_once(';'))
            .map(|(field, _)| {
                let (left, number) = field.split_once('=').unwrap();
                let (kind, name) = left.trim().rsplit_once(' ').unwrap();
                (number.trim().to_owned(), name.to_owned(), kind.to_owned())
            })
            .collect();
        let rows = table(section(&document, &format!("#### {name}")));
        let shown: Vec<_> = rows.iter().map(|row| (row[0].to_owned(), row[1].to_owned(), row[2].to_owned())).collect();
        assert_eq!(shown, fields, "{name}");
        known.insert(name);
    }
    let described: BTreeSet<&str> = document.lines().filter_map(|line| line.strip_prefix("#### ")).collect();
    assert_eq!(described, known);
}

#[test]
fn the_message_id_is_what_the_rule_gives() {
    let document = protocol();
    let rows = table(section(&document, "## Message ids"));
    let value = |row: usize| parse_hex(rows[row][1].trim_matches('`'));
    let mut hasher = blake3::Hasher::new();
    hasher.update(&value(0)).update(&value(1));
    assert_eq!(hasher.finalize().as_bytes()[..MESSAGE_ID_BYTES], value(2));
}
