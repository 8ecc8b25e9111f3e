//! The document as one page of HTML, without scripts.
//!
//! In goes the document, out comes text. Always: whatever the document says is escaped.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use serde_json::Value;
use utoipa::openapi::OpenApi as Document;

/// Shown before everything.
const HEAD: &str = include_str!("head.html");

/// The methods of a path, in the order they are shown in.
const METHODS: [&str; 5] = ["get", "post", "put", "patch", "delete"];

/// The whole page.
pub(super) fn render(document: &Document) -> String {
    let document = serde_json::to_value(document).expect("texts, numbers and maps with text keys are JSON");
    let mut page = HEAD.to_owned();
    let info = &document["info"];
    put(&mut page, format_args!("<h1>{}</h1>\n<p>{}</p>\n", text(&info["title"]), prose(&info["description"])));
    page.push_str("<p>For programs: <a href=\"/openapi.json\">openapi.json</a>.</p>\n");
    let groups = by_tag(&document["paths"]);
    for tag in document["tags"].as_array().into_iter().flatten() {
        let Some(operations) = tag["name"].as_str().and_then(|name| groups.get(name)) else { continue };
        put(&mut page, format_args!("<h2>{}</h2>\n<p>{}</p>\n", text(&tag["name"]), prose(&tag["description"])));
        operations.iter().for_each(|operation| operation.render(&mut page));
    }
    page.push_str("<h2>Shapes</h2>\n");
    for (name, schema) in document["components"]["schemas"].as_object().into_iter().flatten() {
        put(
            &mut page,
            format_args!("<section id=\"{0}\"><h3>{0}</h3>\n<p>{1}</p>\n", escape(name), prose(&schema["description"])),
        );
        fields(&mut page, schema);
        page.push_str("</section>\n");
    }
    page.push_str("</main>\n");
    page
}

struct Operation<'a> {
    method: &'static str,
    path: &'a str,
    value: &'a Value,
}

fn by_tag(paths: &Value) -> BTreeMap<&str, Vec<Operation<'_>>> {
    let mut groups: BTreeMap<_, Vec<_>> = BTreeMap::new();
    for (path, item) in paths.as_object().into_iter().flatten() {
        for method in METHODS {
            let value = &item[method];
            if let Some(tag) = value["tags"][0].as_str() {
                groups.entry(tag).or_default().push(Operation { method, path, value });
            }
        }
    }
    groups
}

impl Operation<'_> {
    fn render(&self, page: &mut String) {
        let Self { method, path, value } = self;
        // Said to be free of it by an empty requirement.
        let is_open =
            value["security"].as_array().is_some_and(|all| all.iter().any(|one| one == &serde_json::json!({})));
        let needs = if is_open { "" } else { " <small>needs a token</small>" };
        put(
            page,
            format_args!(
                "<details><summary><b class=\"{method}\">{}</b> <code>{}</code> {}{needs}</summary>\n<p>{}</p>\n",
                method.to_uppercase(),
                escape(path),
                text(&value["summary"]),
                prose(&value["description"]),
            ),
        );
        let parameters = value["parameters"].as_array().map(Vec::as_slice).unwrap_or_default();
        if !parameters.is_empty() {
            page.push_str("<table>");
            for one in parameters {
                let place = text(&one["in"]);
                row(
                    page,
                    &text(&one["name"]),
                    &kind(&one["schema"]),
                    one["required"] == true,
                    &format!("{} ({place})", prose(&one["description"])),
                );
            }
            page.push_str("</table>\n");
        }
        for (media, content) in value["requestBody"]["content"].as_object().into_iter().flatten() {
            put(page, format_args!("<p>Body: {} as <code>{}</code></p>\n", kind(&content["schema"]), escape(media)));
        }
        page.push_str("<table>");
        for (status, response) in value["responses"].as_object().into_iter().flatten() {
            let bodies = response["content"].as_object().into_iter().flatten();
            let bodies: Vec<_> = bodies
                .map(|(media, content)| format!("{} <small>{}</small>", kind(&content["schema"]), escape(media)))
                .collect();
            put(
                page,
                format_args!(
                    "<tr><td><code>{}</code><td>{}<td>{}",
                    escape(status),
                    bodies.join("<br>"),
                    prose(&response["description"])
                ),
            );
        }
        page.push_str("</table></details>\n");
    }
}

/// The fields of an object, with those it takes over from others.
fn fields(page: &mut String, schema: &Value) {
    for (name, property) in schema["properties"].as_object().into_iter().flatten() {
        if page.ends_with("</p>\n") {
            page.push_str("<table>");
        }
        let required = schema["required"].as_array().is_some_and(|all| all.iter().any(|one| one == name));
        row(page, &escape(name), &kind(property), required, &prose(&property["description"]));
    }
    if page.ends_with("</tr>\n") {
        page.push_str("</table>\n<p></p>\n");
    }
    for list in ["allOf", "oneOf"] {
        for part in schema[list].as_array().into_iter().flatten() {
            if part["$ref"].is_string() {
                put(page, format_args!("<p>All of {}</p>\n", kind(part)));
            } else {
                fields(page, part);
            }
        }
    }
}

fn row(page: &mut String, name: &str, kind: &str, required: bool, what: &str) {
    let need = if required { "" } else { " <small>optional</small>" };
    put(page, format_args!("<tr><td><code>{name}</code>{need}<td>{kind}<td>{what}</tr>\n"));
}

/// What a schema says a value is, in a word or two.
fn kind(schema: &Value) -> String {
    if let Some(name) = schema["$ref"].as_str().and_then(|path| path.rsplit('/').next()) {
        return format!("<a href=\"#{0}\">{0}</a>", escape(name));
    }
    if let Some(parts) = schema["oneOf"].as_array().or(schema["allOf"].as_array()) {
        return parts.iter().map(kind).collect::<Vec<_>>().join(" or ");
    }
    match &schema["type"] {
        Value::String(name) if name == "array" => format!("list of {}", kind(&schema["items"])),
        Value::String(name) => escape(name),
        Value::Array(names) => names.iter().filter_map(Value::as_str).map(escape).collect::<Vec<_>>().join(" or "),
        _ => "any".to_owned(),
    }
}

fn text(value: &Value) -> String {
    escape(value.as_str().unwrap_or_default())
}

/// Text with `code` in it.
fn prose(value: &Value) -> String {
    let escaped = text(value);
    let mut parts = escaped.split('`');
    let mut prose = parts.next().unwrap_or_default().to_owned();
    for (number, part) in parts.enumerate() {
        prose.push_str(if number % 2 == 0 { "<code>" } else { "</code>" });
        prose.push_str(part);
    }
    prose
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

fn put(page: &mut String, arguments: std::fmt::Arguments<'_>) {
    page.write_fmt(arguments).expect("a String takes any text");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_escaped_and_code_is_marked() {
        assert_eq!(prose(&Value::from("a <b> & `c`")), "a &lt;b&gt; &amp; <code>c</code>");
    }
}
