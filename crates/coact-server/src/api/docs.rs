//! The description of the API: an OpenAPI 3.1 document, and a page that shows it without any script.

use axum::{
    Json, Router,
    http::header,
    response::{Html, IntoResponse},
    routing::get,
};
use utoipa::openapi::{Info, OpenApi, OpenApiBuilder, PathItem, path::Operation};

/// The document before the routes are in it.
pub(super) fn frame() -> OpenApi {
    let mut info = Info::new("coact", env!("CARGO_PKG_VERSION"));
    info.description = Some(
        "Distributed-systems building blocks over HTTP. Names in paths are percent-encoded. Errors are \
         application/problem+json with kind, retry and effect."
            .to_owned(),
    );
    OpenApiBuilder::new().info(info).build()
}

pub(super) fn routes(document: OpenApi) -> Router {
    let page = page(&document);
    Router::new()
        .route("/openapi.json", get(async move || Json(document)))
        .route("/docs", get(async move || ([(header::CONTENT_SECURITY_POLICY, POLICY)], Html(page)).into_response()))
}

const POLICY: &str = "default-src 'none'; style-src 'unsafe-inline'";

const STYLE: &str = "body{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem}\
    code{font-family:ui-monospace,monospace}td{padding:.2rem .8rem .2rem 0;vertical-align:top}h2{margin-top:2rem}";

fn page(document: &OpenApi) -> String {
    let mut rows: Vec<(String, String)> = Vec::new();
    for (path, item) in &document.paths.paths {
        for (method, operation) in operations(item) {
            let tag = operation.tags.iter().flatten().next().cloned().unwrap_or_default();
            let text = operation.summary.as_deref().or(operation.description.as_deref()).unwrap_or_default();
            let row = format!(
                "<tr><td><code>{method}</code></td><td><code>{}</code></td><td>{}</td></tr>",
                escape(path),
                escape(text)
            );
            rows.push((tag, row));
        }
    }
    rows.sort_by(|left, right| left.0.cmp(&right.0));
    let mut body = String::new();
    for group in rows.chunk_by(|left, right| left.0 == right.0) {
        let lines: String = group.iter().map(|(_, row)| row.as_str()).collect();
        body += &format!("<h2>{}</h2><table>{lines}</table>", escape(&group[0].0));
    }
    format!(
        "<!doctype html><html lang=en><meta charset=utf-8><title>coact API</title><style>{STYLE}</style>\
         <h1>coact API</h1><p>Everything in detail: <a href=/openapi.json>/openapi.json</a> (OpenAPI 3.1).</p>{body}"
    )
}

fn operations(item: &PathItem) -> impl Iterator<Item = (&'static str, &Operation)> {
    [("GET", &item.get), ("PUT", &item.put), ("POST", &item.post), ("DELETE", &item.delete)]
        .into_iter()
        .filter_map(|(method, operation)| Some((method, operation.as_ref()?)))
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}
