//! Clients that take their time or come in crowds, and the end of the process.

use std::io::{Read as _, Write as _};
use std::time::{Duration, Instant};

use tidegate::http::{Bounds, Life};

use crate::world::{PATIENCE, World, eventually, read_to_end};

const SHORT: Duration = Duration::from_millis(300);

#[test]
fn a_client_slow_with_its_headers_is_cut_and_delays_nobody() {
    let world = World::with_bounds(Bounds { header_timeout: SHORT, ..Bounds::default() });
    let mut slow = world.connect();
    slow.write_all(b"GET /livez HTT").unwrap();
    let mut silent = world.connect();
    let mut idle = world.connect();
    idle.write_all(b"GET /livez HTTP/1.1\r\nhost: x\r\n\r\n").unwrap();
    assert_eq!(world.get("/livez", "").status, 200);
    let begun = Instant::now();
    read_to_end(&mut slow);
    assert_eq!(read_to_end(&mut silent), "");
    assert!(read_to_end(&mut idle).starts_with("HTTP/1.1 200"));
    assert!(begun.elapsed() < PATIENCE / 2, "{:?}", begun.elapsed());
}

#[test]
fn a_client_slow_with_its_body_is_told_so() {
    let world = World::with_bounds(Bounds { body_timeout: SHORT, ..Bounds::default() });
    let head =
        "POST /api/v1/login HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: 50\r\n\r\n{";
    world.raw(head).expect_problem(408, "body_timeout");
}

#[test]
fn a_handler_that_hangs_is_given_up() {
    use std::sync::atomic::Ordering;
    use tidegate_core::ports::Backend as _;
    let world = World::with_bounds(Bounds { request_timeout: SHORT, ..Bounds::default() });
    world.backend.hot().hung.store(true, Ordering::SeqCst);
    world.get("/api/v1/me", "token").expect_problem(503, "timeout");
}

#[test]
fn a_connection_too_many_is_told_to_come_later() {
    let world = World::with_bounds(Bounds { connections_max: 2, ..Bounds::default() });
    let mut held = [world.connect(), world.connect()];
    for stream in &mut held {
        stream.write_all(b"GET /livez HTTP/1.1\r\nhost: x\r\n\r\n").unwrap();
        let mut answer = [0; 12];
        stream.read_exact(&mut answer).unwrap();
        assert_eq!(&answer, b"HTTP/1.1 200");
    }
    let refused = read_to_end(&mut world.connect());
    assert!(refused.starts_with("HTTP/1.1 503") && refused.contains("overloaded"), "{refused}");
    drop(held);
    eventually("there is room again", || {
        let mut stream = world.connect();
        let _ = stream.write_all(b"GET /livez HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
        read_to_end(&mut stream).starts_with("HTTP/1.1 200")
    });
}

#[test]
fn a_client_that_never_reads_its_answers_is_cut() {
    let world = World::with_bounds(Bounds { connections_max: 1, write_timeout: SHORT, ..Bounds::default() });
    let mut deaf = world.connect();
    deaf.set_nonblocking(true).unwrap();
    // It asks on and on; once the answers fill every buffer on the way, the server's patience begins to run.
    let requests = "GET /metrics HTTP/1.1\r\nhost: x\r\n\r\n".repeat(100);
    eventually("the server hangs up", || {
        deaf.write(requests.as_bytes()).is_err_and(|error| error.kind() != std::io::ErrorKind::WouldBlock)
    });
    eventually("the one place is free again", || {
        let mut stream = world.connect();
        let _ = stream.write_all(b"GET /livez HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
        read_to_end(&mut stream).starts_with("HTTP/1.1 200")
    });
}

#[test]
fn at_the_end_idle_connections_close_and_requests_under_way_are_answered() {
    let mut world = World::new();
    let mut idle = world.connect();
    idle.write_all(b"GET /livez HTTP/1.1\r\nhost: x\r\n\r\n").unwrap();
    idle.read_exact(&mut [0; 12]).unwrap();
    // A request whose body is still to come.
    let mut under_way = world.connect();
    let body = b"{\"name\":\"bob\",\"password\":\"correct horse\"}";
    let head =
        "POST /api/v1/register HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\nexpect: 100-continue\r\n";
    under_way.write_all(format!("{head}content-length: {}\r\n\r\n", body.len()).as_bytes()).unwrap();
    let mut go_on = [0; 25];
    under_way.read_exact(&mut go_on).unwrap();
    assert_eq!(&go_on, b"HTTP/1.1 100 Continue\r\n\r\n");

    world.life.send_replace(Life::Ending);
    read_to_end(&mut idle);
    under_way.write_all(body).unwrap();
    assert!(read_to_end(&mut under_way).starts_with("HTTP/1.1 201"));
    let served = world.runtime.block_on(async { tokio::time::timeout(PATIENCE, &mut world.served).await });
    served.expect("in time").expect("no panic").expect("no error");
    assert!(std::net::TcpStream::connect(world.address).is_err());
}

#[test]
fn at_the_end_a_client_that_never_finishes_is_cut() {
    let mut world = World::with_bounds(Bounds { drain_timeout: SHORT, ..Bounds::default() });
    let mut stuck = world.connect();
    let head =
        "POST /api/v1/register HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\nexpect: 100-continue\r\n";
    stuck.write_all(format!("{head}content-length: 50\r\n\r\n").as_bytes()).unwrap();
    stuck.read_exact(&mut [0; 25]).unwrap();
    world.life.send_replace(Life::Ending);
    let served = world.runtime.block_on(async { tokio::time::timeout(PATIENCE / 2, &mut world.served).await });
    served.expect("in time").expect("no panic").expect("no error");
}
