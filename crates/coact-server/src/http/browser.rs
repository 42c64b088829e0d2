//! Keeps web pages of elsewhere away from an open node: a browser on the same machine reaches loopback for them.

use axum::{
    extract::Request,
    http::{StatusCode, header},
    middleware::Next,
    response::{IntoResponse, Response},
};
use coact_core::ErrorKind;

use crate::api::problem::Problem;

/// Refuses what a page of another origin makes a browser send. Such a request names its page in `Origin`, or, when a
/// foreign name was made to point here (DNS rebinding), that name in `Host`. Where tokens are needed, this is not: a
/// page does not know them.
pub(super) async fn refuse_foreign_pages(request: Request, next: Next) -> Response {
    match foreign_name(&request) {
        Some(name) => {
            let detail =
                format!("a node without tokens answers to localhost and loopback addresses only, not to {name}");
            Problem::new(StatusCode::FORBIDDEN, ErrorKind::Denied, detail).into_response()
        }
        None => next.run(request).await,
    }
}

fn foreign_name(request: &Request) -> Option<String> {
    let text = |name| request.headers().get(name).map(|value| value.to_str().unwrap_or("?"));
    // HTTP/2 has the host in the target.
    let host = request.uri().authority().map(|authority| authority.as_str()).or_else(|| text(header::HOST));
    let origin = text(header::ORIGIN).map(|origin| origin.split_once("://").map_or(origin, |(_, authority)| authority));
    host.into_iter().chain(origin).find(|name| !is_local(name)).map(str::to_owned)
}

fn is_local(authority: &str) -> bool {
    let port = |(_, port): &(&str, &str)| port.parse::<u16>().is_ok();
    let name = authority.rsplit_once(':').filter(port).map_or(authority, |(name, _)| name);
    let name = name.trim_start_matches('[').trim_end_matches(']');
    name.eq_ignore_ascii_case("localhost") || name.parse::<std::net::IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::is_local;

    #[test]
    fn tells_local_names_from_others() {
        for name in ["localhost", "LOCALHOST:7070", "127.0.0.1:7070", "127.8.0.1", "[::1]:7070", "[::1]"] {
            assert!(is_local(name), "{name}");
        }
        for name in ["", "null", "evil.example:7070", "10.0.0.1:7070", "localhost.evil.example", "0.0.0.0:7070"] {
            assert!(!is_local(name), "{name}");
        }
    }
}
