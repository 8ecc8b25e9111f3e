//! What operators and their machines ask.

use std::sync::atomic::Ordering;

use serde_json::{Value, json};
use tidegate::http::Life;
use tidegate_core::ports::Backend as _;

use crate::world::{World, eventually};

fn ready(world: &World) -> (u16, Value) {
    let answer = world.get("/readyz", "");
    (answer.status, answer.json())
}

#[test]
fn readiness_follows_the_parts_and_liveness_does_not() {
    let world = World::new();
    eventually("ready", || ready(&world).0 == 200);
    let up = json!([{ "name": "hot_store", "state": "up" }, { "name": "archive", "state": "up" }]);
    assert_eq!(ready(&world).1, json!({ "status": "ready", "parts": up }));

    for mood in [&world.backend.hot().down, &world.backend.hot().hung] {
        mood.store(true, Ordering::SeqCst);
        eventually("not ready", || ready(&world).0 == 503);
        let (_, report) = ready(&world);
        assert_eq!(report["status"], "not_ready");
        assert_eq!(report["parts"][0], json!({ "name": "hot_store", "state": "down" }));
        assert_eq!(report["parts"][1], json!({ "name": "archive", "state": "up" }));
        assert_eq!(world.get("/livez", "").expect(200), json!({ "status": "live" }));
        mood.store(false, Ordering::SeqCst);
        eventually("ready again", || ready(&world).0 == 200);
    }
}

#[test]
fn a_storm_of_probes_does_not_reach_the_services() {
    let world = World::new();
    eventually("ready", || ready(&world).0 == 200);
    let (begun, before) = (std::time::Instant::now(), world.backend.hot().pings.load(Ordering::SeqCst));
    for _ in 0..200 {
        assert_eq!(world.get("/readyz", "").status, 200);
    }
    let pings = world.backend.hot().pings.load(Ordering::SeqCst) - before;
    let rounds_max = 1 + begun.elapsed().as_secs() as usize;
    assert!(pings <= rounds_max, "{pings} pings in {:?}", begun.elapsed());
}

#[test]
fn while_draining_requests_are_answered_but_traffic_is_not_welcome() {
    let world = World::new();
    eventually("ready", || ready(&world).0 == 200);
    world.life.send_replace(Life::Draining);
    let (status, report) = ready(&world);
    assert_eq!((status, &report["status"]), (503, &json!("draining")));
    world.user("bob");
    let upgrade = "GET /ws HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n";
    world.raw(upgrade).expect_problem(503, "draining");
}

#[test]
fn metrics_are_prometheus_text_and_labels_do_not_follow_clients() {
    let world = World::new();
    world.get("/api/v1/rooms/123456789", "").expect_problem(401, "token_missing");
    world.raw("BREW /api/v1/me HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
    let answer = world.get("/metrics", "");
    assert!(answer.header("content-type").unwrap().starts_with("text/plain; version=0.0.4"));
    let text = answer.text;
    assert!(text.contains("# TYPE tidegate_http_request_seconds histogram"), "{text}");
    assert!(text.contains("route=\"/api/v1/rooms/{id}\""), "{text}");
    assert!(text.contains("tidegate_http_open_connections"), "{text}");
    assert!(!text.contains("123456789") && !text.contains("BREW"), "{text}");
}

#[test]
fn clients_are_told_what_they_need_before_they_log_in() {
    let world = World::new();
    let config = world.get("/api/v1/config", "").expect(200);
    assert_eq!(config["heartbeat"], json!({ "min_interval": 5, "max_interval": 180, "probe_count": 3 }));
    assert_eq!((&config["max_frame_bytes"], &config["max_body_bytes"]), (&json!(65536), &json!(16384)));
    assert_eq!(config["lobbies"], json!(["lobby_main", "lobby_eu"]));
    assert_eq!((&config["tcp_port"], &config["websocket_path"]), (&json!(7400), &json!("/ws")));
    let welcome = world.get("/", "");
    assert_eq!(welcome.status, 200);
    assert!(welcome.text.contains("Tidegate") && welcome.text.contains("/api/v1/login"));
}

#[test]
fn single_connections_are_shown_to_this_machine_only() {
    let world = World::new();
    assert_eq!(world.get("/connections", "").expect(200), json!({ "connections": [] }));
    assert_eq!(world.get("/connections?limit=5", "").status, 200);
    for header in ["X-Forwarded-For: 203.0.113.7", "Forwarded: for=203.0.113.7"] {
        let request = format!("GET /connections HTTP/1.1\r\nHost: t\r\n{header}\r\nConnection: close\r\n\r\n");
        world.raw(request).expect_problem(404, "route_unknown");
    }
}
