//! Requests that are none: routes, methods, bodies, headers.

use serde_json::json;

use crate::world::World;

fn post(path: &str, headers: &str, body: &str) -> String {
    let length = body.len();
    format!("POST {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: {length}\r\n{headers}\r\n{body}")
}

#[test]
fn unknown_paths_and_methods_are_problems_too() {
    let world = World::new();
    for path in ["/nothing", "/api/v1/nothing", "/api/v2/me", "/api/v1/rooms/1/explode", "/api/v1/me/"] {
        world.get(path, "").expect_problem(404, "route_unknown");
    }
    let answer = world.get("/api/v1/login", "");
    answer.expect_problem(405, "method_not_allowed");
    assert_eq!(answer.header("allow"), Some("POST"));
    for path in ["/", "/livez", "/readyz", "/metrics", "/ws", "/api/v1/me"] {
        world.post(path, "", json!({})).expect_problem(405, "method_not_allowed");
    }
    world
        .raw("BREW /api/v1/me HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
        .expect_problem(405, "method_not_allowed");
}

#[test]
fn a_body_must_be_json_of_the_right_shape() {
    let world = World::new();
    let json = "content-type: application/json\r\n";
    let path = "/api/v1/register";
    for body in ["", "{", "[]", "null", "{\"name\":\"bob\"}", "{\"name\":1,\"password\":\"correct horse\"}", "\u{0}"] {
        world.raw(post(path, json, body)).expect_problem(400, "body_malformed");
    }
    let deep = "[".repeat(60_000);
    world.raw(post(path, json, &deep)).expect_problem(400, "body_malformed");
    let good = "{\"name\":\"bob\",\"password\":\"correct horse\",\"more\":[1]}";
    for header in ["", "content-type: text/plain\r\n", "content-type: application/jsonp\r\n"] {
        world.raw(post(path, header, good)).expect_problem(415, "media_type_unsupported");
    }
    world.raw(post(path, "content-type: Application/JSON; charset=utf-8\r\n", good)).expect(201);
}

#[test]
fn a_body_too_large_is_refused_with_and_without_a_stated_length() {
    let world = World::new();
    let large = "x".repeat(64 * 1024 + 1);
    let headers = "content-type: application/json\r\n";
    world.raw(post("/api/v1/login", headers, &large)).expect_problem(413, "body_too_large");
    let chunked = format!(
        "POST /api/v1/login HTTP/1.1\r\nhost: x\r\nconnection: close\r\n{headers}transfer-encoding: chunked\r\n\r\n\
         {:x}\r\n{large}\r\n0\r\n\r\n",
        large.len()
    );
    world.raw(chunked).expect_problem(413, "body_too_large");
    let claimed = "POST /api/v1/login HTTP/1.1\r\nhost: x\r\ncontent-length: 99999999999\r\n";
    world.raw(format!("{claimed}{headers}\r\n{large}")).expect_problem(413, "body_too_large");
}

#[test]
fn what_is_not_http_ends_the_connection() {
    let world = World::new();
    assert_eq!(world.raw("not http at all\r\n\r\n").status, 400);
    let long = format!("GET / HTTP/1.1\r\nhost: x\r\nx-long: {}\r\n\r\n", "x".repeat(20_000));
    assert_eq!(world.raw(long).status, 431);
    let many = format!("GET / HTTP/1.1\r\nhost: x\r\n{}\r\n", "x-many: 1\r\n".repeat(100));
    assert_eq!(world.raw(many).status, 431);
    assert_eq!(world.get("/livez", "").status, 200);
}

#[test]
fn a_request_keeps_its_id_if_it_is_a_decent_one() {
    let world = World::new();
    let ask = |id: &str| {
        let answer =
            world.raw(format!("GET /livez HTTP/1.1\r\nhost: x\r\nconnection: close\r\nx-request-id: {id}\r\n\r\n"));
        answer.header("x-request-id").unwrap().to_owned()
    };
    assert_eq!(ask("trace-1.A_b"), "trace-1.A_b");
    assert_ne!(ask("a b"), "a b");
    assert_ne!(ask(&"x".repeat(65)), "x".repeat(65));
    assert_ne!(ask(""), ask(""));
}
