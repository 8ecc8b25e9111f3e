//! The API as a document: OpenAPI 3.1 for programs at `/openapi.json`, a page for people at `/docs`.
//!
//! In go the parts that each module of handlers describes beside its routes, out comes one document, made once. Always: every
//! route is in it and nothing else is (a test compares them); what is not said otherwise needs a token, and every operation may
//! answer with a problem.

mod page;

use std::sync::LazyLock;

use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use tidegate_core::ports::Backend;
use utoipa::OpenApi;
use utoipa::openapi::path::Operation;
use utoipa::openapi::security::{ApiKey, ApiKeyValue, Http, HttpAuthScheme, SecurityScheme};
use utoipa::openapi::{ContentBuilder, InfoBuilder, OpenApi as Document, PathItem, Ref, ResponseBuilder};

use super::extract::TOKEN_HEADER;
use super::problem::Body;
use super::{Route, chat, connections, health, pull, room, user, websocket};

/// The document's own routes.
pub(super) fn routes<B: Backend>() -> Vec<Route<B>> {
    vec![("/openapi.json", get(json)), ("/docs", get(docs))]
}

#[derive(OpenApi)]
#[openapi(
    paths(json, docs, super::welcome, super::show_settings),
    components(schemas(Body)),
    security(("bearer" = []), ("satoken" = [])),
    tags(
        (name = "accounts", description = "Who somebody is: accounts, logins, profiles"),
        (name = "rooms", description = "Where players meet"),
        (name = "messages", description = "What was said; sending and live pushes take the byte protocol (proto/PROTOCOL.md)"),
        (name = "client", description = "What clients need to know before they connect"),
        (name = "operation", description = "For those who run the gateway"),
    ),
)]
struct Whole;

/// The document, whole.
#[must_use]
pub fn document() -> &'static Document {
    static DOCUMENT: LazyLock<Document> = LazyLock::new(|| {
        let parts = [
            user::Document::openapi(),
            room::Document::openapi(),
            chat::Document::openapi(),
            pull::Document::openapi(),
            health::Document::openapi(),
            connections::Document::openapi(),
            websocket::Document::openapi(),
        ];
        let mut whole = Whole::openapi();
        parts.into_iter().for_each(|part| whole.merge(part));
        complete(&mut whole);
        whole
    });
    &DOCUMENT
}

/// The document as it is served.
fn text() -> String {
    let mut text = document().to_pretty_json().expect("texts, numbers and maps with text keys are JSON");
    text.push('\n');
    text
}

/// Adds what is the same for all operations; last, when they are all there.
fn complete(document: &mut Document) {
    document.info = InfoBuilder::new()
        .title("Tidegate")
        .version(env!("CARGO_PKG_VERSION"))
        .description(Some(
            "The HTTP side of Tidegate, a chat gateway. Every error is `application/problem+json` (RFC 9457) with a \
             stable `code`. A token comes from `POST /api/v1/login`.",
        ))
        .build();
    let components = document.components.get_or_insert_default();
    let bearer = SecurityScheme::Http(Http::new(HttpAuthScheme::Bearer));
    let satoken = SecurityScheme::ApiKey(ApiKey::Header(ApiKeyValue::new(TOKEN_HEADER)));
    components.add_security_scheme("bearer", bearer);
    components.add_security_scheme("satoken", satoken);
    let problem = ResponseBuilder::new()
        .description("What went wrong")
        .content(
            "application/problem+json",
            ContentBuilder::new().schema(Some(Ref::from_schema_name("Problem"))).build(),
        )
        .build();
    for (path, item) in &mut document.paths.paths {
        for (method, operation) in operations_mut(item) {
            // Names of functions repeat: there is more than one `list`.
            operation.operation_id = Some(operation_id(method, path));
            operation.responses.responses.entry("default".to_owned()).or_insert_with(|| problem.clone().into());
        }
    }
}

/// What generated clients call an operation: `post_rooms_id_join`.
fn operation_id(method: &str, path: &str) -> String {
    let words = path.trim_start_matches("/api/v1").split(|c: char| !c.is_ascii_alphanumeric());
    let words = words.filter(|word| !word.is_empty()).collect::<Vec<_>>().join("_");
    format!("{method}_{}", if words.is_empty() { "root" } else { &words })
}

/// The operations of a path, by method.
fn operations_mut(item: &mut PathItem) -> impl Iterator<Item = (&'static str, &mut Operation)> {
    let all = [
        ("get", &mut item.get),
        ("post", &mut item.post),
        ("put", &mut item.put),
        ("patch", &mut item.patch),
        ("delete", &mut item.delete),
    ];
    all.into_iter().filter_map(|(method, operation)| Some((method, operation.as_mut()?)))
}

/// This document
#[utoipa::path(get, path = "/openapi.json", tag = "client", security(()),
    responses((status = 200, description = "OpenAPI 3.1", body = serde_json::Value)))]
async fn json() -> Response {
    static TEXT: LazyLock<String> = LazyLock::new(text);
    ([(CONTENT_TYPE, "application/json")], TEXT.as_str()).into_response()
}

/// This document, to be read
#[utoipa::path(get, path = "/docs", tag = "client", security(()),
    responses((status = 200, description = "A page", body = String, content_type = "text/html")))]
async fn docs() -> Response {
    static PAGE: LazyLock<String> = LazyLock::new(|| page::render(document()));
    ([(CONTENT_TYPE, "text/html; charset=utf-8")], PAGE.as_str()).into_response()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::backends::Embedded;

    #[test]
    fn every_route_is_in_the_document_and_nothing_else_is() {
        let routes: BTreeSet<_> = super::super::routes::<Embedded>().into_iter().map(|(path, _)| path).collect();
        let described: BTreeSet<_> = document().paths.paths.keys().map(String::as_str).collect();
        assert_eq!(described, routes);
    }

    /// Clients are made of it: a change is to be seen in a diff. `UPDATE_GOLDEN=1 cargo test -p tidegate openapi` writes it.
    #[test]
    fn the_document_is_the_one_that_is_kept() {
        let kept = concat!(env!("CARGO_MANIFEST_DIR"), "/openapi.json");
        if std::env::var_os("UPDATE_GOLDEN").is_some() {
            std::fs::write(kept, text()).expect("the folder is there");
        }
        let kept = std::fs::read_to_string(kept).unwrap_or_default();
        assert!(kept == text(), "gateway/openapi.json is not what the code says: UPDATE_GOLDEN=1 writes it anew");
    }

    #[test]
    fn every_operation_is_described_and_may_answer_with_a_problem() {
        let mut document = document().clone();
        let mut ids = BTreeSet::new();
        for (path, item) in &mut document.paths.paths {
            for (method, operation) in operations_mut(item) {
                let name = format!("{method} {path}");
                assert!(operation.summary.as_ref().is_some_and(|text| !text.is_empty()), "{name} has no summary");
                assert_eq!(operation.tags.as_ref().map(Vec::len), Some(1), "{name} has a tag");
                assert!(operation.responses.responses.contains_key("default"), "{name}");
                let refs = serde_json::to_string(&operation.request_body).expect("JSON");
                assert!(ids.insert(operation.operation_id.clone()), "{name} shares its id");
                assert!(method != "get" || refs == "null", "{name} has a body");
            }
        }
    }

    #[test]
    fn the_page_names_every_operation() {
        let page = page::render(document());
        for path in document().paths.paths.keys() {
            assert!(page.contains(&format!("<code>{path}</code>")), "{path}");
        }
    }
}
