//! Requests to a node's pages, and its problems as errors.

use coact::{Effect, Env, Error, ErrorKind, Result, Url, node::NodeHttp};
use serde_json::Value;

use crate::Target;

/// Asks the node that is aimed at; returns the JSON of the answer, or null.
pub(crate) async fn ask(target: &Target, method: &str, path: &str, body: Option<Value>) -> Result<Value> {
    let node = NodeHttp::open(&Url::parse(&target.url()?)?, Env::real())?;
    let answer = node.send(method, path, body.map(|body| body.to_string()).unwrap_or_default()).await?;
    let content: Value = serde_json::from_slice(&answer.body).unwrap_or_default();
    if (200..300).contains(&answer.status) { Ok(content) } else { Err(problem(answer.status, &content)) }
}

/// One segment of a path: what ids and names are made of.
pub(crate) fn segment(name: &str) -> Result<&str> {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    if name.is_empty() || name.starts_with('.') || !name.chars().all(plain) {
        return Err(Error::invalid(format!("{name:?} is not allowed: use A-Z a-z 0-9 . _ -, not starting with a dot")));
    }
    Ok(name)
}

fn problem(status: u16, content: &Value) -> Error {
    let kind = content["kind"].as_str().and_then(ErrorKind::from_name).unwrap_or(ErrorKind::Internal);
    let detail = content["detail"].as_str().map_or_else(|| format!("the node answered {status}"), str::to_owned);
    let error = Error::new(kind, detail);
    if content["effect"] == Effect::Unknown.name() { error.effect_unknown() } else { error }
}
