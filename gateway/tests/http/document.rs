//! The document as a table of who may call what: nobody and strangers are refused wherever it says so, and methods it does
//! not name are none.

use std::collections::BTreeSet;

use serde_json::{Value, json};
use tidegate::http::openapi;

use crate::world::{Answer, REMEMBERED_TOKEN, World};

const METHODS: [&str; 5] = ["get", "post", "put", "patch", "delete"];

/// Calls it with an empty object, or without a body if the method has none.
fn call(world: &World, method: &str, path: &str, token: &str) -> Answer {
    let body = (!matches!(method, "get" | "delete")).then(|| json!({}));
    world.call(&method.to_ascii_uppercase(), path, token, body)
}

/// Every operation: method, path with its places filled, and what the document says of it.
fn operations() -> Vec<(&'static str, String, Value)> {
    let document = serde_json::to_value(openapi::document()).unwrap();
    let mut operations = Vec::new();
    for (path, item) in document["paths"].as_object().unwrap() {
        for method in METHODS.into_iter().filter(|method| item[method].is_object()) {
            let filled: Vec<_> = path.split('/').map(|part| if part.starts_with('{') { "1" } else { part }).collect();
            operations.push((method, filled.join("/") + &query(&item[method]), item[method].clone()));
        }
    }
    operations
}

/// What the operation must be asked with, as in its examples.
fn query(operation: &Value) -> String {
    let needed = operation["parameters"].as_array().into_iter().flatten();
    let needed = needed.filter(|one| one["in"] == "query" && one["required"] == true);
    let pairs: Vec<_> =
        needed.map(|one| format!("{}={}", one["name"].as_str().unwrap(), one["example"].as_str().unwrap())).collect();
    if pairs.is_empty() { String::new() } else { format!("?{}", pairs.join("&")) }
}

fn is_open(operation: &Value) -> bool {
    operation["security"].as_array().is_some_and(|all| all.contains(&json!({})))
}

/// Whether a player's token is what the operation asks for; others have keys of their own.
fn takes_a_token(operation: &Value) -> bool {
    operation["security"].is_null()
}

#[test]
fn nobody_and_strangers_are_refused_wherever_a_token_is_asked_for() {
    let world = World::new();
    let mut checked = 0;
    for (method, path, operation) in operations() {
        if is_open(&operation) {
            continue;
        }
        checked += 1;
        let codes = [("", "token_missing"), ("never-given", "token_invalid"), (REMEMBERED_TOKEN, "token_expired")];
        for (token, code) in codes {
            let answer = call(&world, method, &path, token);
            if path == "/api/v1/logout" && !token.is_empty() {
                // Whatever ended it: there is nothing left to end.
                assert_eq!(answer.status, 401, "{token}");
            } else if takes_a_token(&operation) {
                answer.expect_problem(401, code);
            } else {
                assert!([401, 403].contains(&answer.status), "{method} {path} with {token:?}: {}", answer.status);
            }
        }
    }
    assert!(checked >= 12, "only {checked} operations ask for a token");
}

#[test]
fn what_is_open_is_open_on_purpose() {
    let open: BTreeSet<_> = operations()
        .into_iter()
        .filter(|(_, _, operation)| is_open(operation))
        .map(|(method, path, _)| format!("{method} {path}"))
        .collect();
    let expected = BTreeSet::from([
        "get /",
        "post /api/v1/login",
        "post /api/v1/register",
        "get /api/v1/config",
        "get /connections",
        "get /docs",
        "get /livez",
        "get /metrics",
        "get /openapi.json",
        "get /readyz",
        "get /ws",
    ]);
    assert_eq!(open.iter().map(String::as_str).collect::<BTreeSet<_>>(), expected);
}

#[test]
fn methods_that_are_not_in_the_document_are_none() {
    let world = World::new();
    let (_, token) = world.user("bob");
    let operations = operations();
    for (_, path, _) in &operations {
        let path = path.split('?').next().unwrap();
        let here: Vec<_> = operations
            .iter()
            .filter(|(_, other, _)| other.split('?').next() == Some(path))
            .map(|(method, ..)| *method)
            .collect();
        for method in METHODS.into_iter().filter(|method| !here.contains(method)) {
            let answer = call(&world, method, path, &token);
            answer.expect_problem(405, "method_not_allowed");
            let allow = answer.header("allow").unwrap_or_default().to_ascii_lowercase();
            assert!(here.iter().all(|method| allow.split(',').any(|one| one == *method)), "{method} {path}: {allow}");
        }
    }
}
