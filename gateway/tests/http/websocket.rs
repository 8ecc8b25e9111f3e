//! The WebSocket handshake, and the socket that comes out of it.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::sync::atomic::Ordering;
use std::time::Duration;

use crate::world::{PATIENCE, World};

const GOOD: [&str; 4] = [
    "connection: keep-alive, Upgrade",
    "upgrade: WebSocket",
    "sec-websocket-version: 13",
    "sec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==",
];

fn request(headers: &[&str]) -> String {
    format!("GET /ws HTTP/1.1\r\nhost: x\r\n{}\r\n\r\n", headers.join("\r\n"))
}

/// Up to the empty line and no further.
fn read_head(stream: &mut TcpStream) -> String {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        stream.read_exact(&mut byte).expect("the rest of the head");
        head.push(byte[0]);
    }
    String::from_utf8(head).unwrap().to_lowercase()
}

#[test]
fn a_handshake_yields_the_bare_socket_and_what_came_behind_it() {
    let world = World::new();
    let mut stream = world.connect();
    let mut headers = GOOD.to_vec();
    headers.extend(["sec-websocket-protocol: other, tidegate.v1", "origin: https://elsewhere.example"]);
    stream.write_all(format!("{}early bytes", request(&headers)).as_bytes()).unwrap();
    let head = read_head(&mut stream);
    assert!(head.starts_with("http/1.1 101"), "{head}");
    assert!(head.contains("sec-websocket-accept: s3pplmbitxaq9kygzzhzrbk+xoo=\r\n"), "{head}");
    assert!(head.contains("sec-websocket-protocol: tidegate.v1\r\n"), "{head}");

    let (mut server, early) = world.handed.recv_timeout(PATIENCE).expect("handed over");
    server.set_nonblocking(false).unwrap();
    server.set_read_timeout(Some(PATIENCE)).unwrap();
    // Whatever was not read behind the request is still in the socket.
    let mut came = early.to_vec();
    came.resize(b"early bytes".len(), 0);
    server.read_exact(&mut came[early.len()..]).unwrap();
    assert_eq!(came, b"early bytes");
    server.write_all(b"pong").unwrap();
    let mut pong = [0; 4];
    stream.read_exact(&mut pong).unwrap();
    assert_eq!(&pong, b"pong");
    assert!(server.nodelay().unwrap());
}

#[test]
fn a_subprotocol_that_was_not_offered_is_not_named() {
    let world = World::new();
    let mut stream = world.connect();
    stream.write_all(request(&GOOD).as_bytes()).unwrap();
    let head = read_head(&mut stream);
    assert!(head.starts_with("http/1.1 101") && !head.contains("sec-websocket-protocol"), "{head}");
    world.handed.recv_timeout(PATIENCE).expect("handed over");
}

#[test]
fn a_socket_nobody_takes_is_closed_with_try_again_later() {
    let world = World::new();
    world.busy.store(true, Ordering::SeqCst);
    let mut stream = world.connect();
    stream.write_all(request(&GOOD).as_bytes()).unwrap();
    assert!(read_head(&mut stream).starts_with("http/1.1 101"));
    let mut frame = Vec::new();
    stream.read_to_end(&mut frame).unwrap();
    assert_eq!(frame, [0x88, 0x02, 0x03, 0xf5]);
}

#[test]
fn what_is_no_handshake_is_refused_with_a_hint() {
    let world = World::new();
    let without =
        |index: usize| GOOD.iter().enumerate().filter(|(i, _)| *i != index).map(|(_, h)| *h).collect::<Vec<_>>();
    let with = |index: usize, header: &'static str| {
        let mut headers = without(index);
        headers.push(header);
        headers
    };
    let cases = [
        (without(0), 426, "websocket_upgrade_required"),
        (without(1), 426, "websocket_upgrade_required"),
        (with(1, "upgrade: h2c"), 426, "websocket_upgrade_required"),
        (without(2), 426, "websocket_version_unsupported"),
        (with(2, "sec-websocket-version: 8"), 426, "websocket_version_unsupported"),
        (without(3), 400, "websocket_key_invalid"),
        (with(3, "sec-websocket-key: short"), 400, "websocket_key_invalid"),
        (with(3, "sec-websocket-key: dGhlIHNhbXBsZSBub25jZQ"), 400, "websocket_key_invalid"),
    ];
    for (mut headers, status, code) in cases {
        headers.push("connection: close");
        let answer = world.raw(request(&headers));
        answer.expect_problem(status, code);
        assert_eq!(answer.header("sec-websocket-version"), Some("13"), "{headers:?}");
    }
    assert!(world.handed.recv_timeout(Duration::from_millis(50)).is_err());
}

#[test]
fn http_1_0_cannot_upgrade() {
    let world = World::new();
    let answer = world.raw(request(&GOOD).replace("HTTP/1.1", "HTTP/1.0").replace("keep-alive, ", ""));
    answer.expect_problem(426, "websocket_upgrade_required");
    assert!(world.handed.recv_timeout(Duration::from_millis(50)).is_err());
}
