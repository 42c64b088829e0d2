//! What the URL says.

use std::{fmt, time::Duration};

use coact_core::{
    Error, Result,
    name::Namespace,
    url::{Secret, Url},
};

const OPTIONS: [&str; 6] = ["root", "session", "timeout", "connect_timeout", "history", "max_request"];
const PORT: u16 = 2181;

/// A checked URL.
#[derive(Clone)]
pub(crate) struct Config {
    /// `host:port,host:port`.
    pub(crate) servers: String,
    /// A user and a password.
    pub(crate) login: Option<(String, Secret)>,
    pub(crate) root: String,
    pub(crate) namespace: Namespace,
    pub(crate) session: Duration,
    /// For one request.
    pub(crate) timeout: Duration,
    /// For one connection.
    pub(crate) connect_timeout: Duration,
    pub(crate) history: usize,
    pub(crate) max_request: usize,
    /// The URL without secrets.
    pub(crate) description: String,
}

impl fmt::Debug for Config {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Config").field("url", &self.description).finish_non_exhaustive()
    }
}

impl Config {
    pub(crate) fn from_url(url: &Url) -> Result<Self> {
        if url.option("tls").is_some() {
            return Err(Error::invalid(
                "zookeeper:// has no TLS: leave tls out, and reach the servers over a network that you trust",
            ));
        }
        url.check_options(&OPTIONS)?;
        if url.hosts().is_empty() {
            return Err(Error::invalid(format!(
                "{url} names no server: write it as zookeeper://host:{PORT}/namespace"
            )));
        }
        let login = match (url.user(), url.secret()) {
            (None, None) => None,
            (Some(user), Some(secret)) if !user.is_empty() => Some((user.to_owned(), secret.clone())),
            _ => {
                return Err(Error::invalid(format!(
                    "{url} needs a user and a password: write user:password@host, user:env:NAME@host or user:file:PATH@host"
                )));
            }
        };
        let number = |name, expected, from: usize, default| {
            let parse = |text: &str| text.parse().ok().filter(|number| (from..=1_000_000_000).contains(number));
            Ok::<_, Error>(url.parsed(name, expected, parse)?.unwrap_or(default))
        };
        let is_path = |text: &str| {
            let ok = |part: &str| {
                !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-'))
            };
            text.strip_prefix('/').filter(|rest| rest.split('/').all(ok)).map(|_| text.to_owned())
        };
        let servers: Vec<_> = url
            .hosts()
            .iter()
            .map(|host| coact_core::url::Host { name: host.name.clone(), port: host.port.or(Some(PORT)) }.to_string())
            .collect();
        Ok(Self {
            servers: servers.join(","),
            login,
            root: url.parsed("root", "a path such as /coact", is_path)?.unwrap_or_else(|| "/coact".to_owned()),
            namespace: url.namespace()?,
            session: url.duration("session", Duration::from_secs(10))?,
            timeout: url.duration("timeout", Duration::from_secs(5))?,
            connect_timeout: url.duration("connect_timeout", Duration::from_secs(2))?,
            history: number("history", "a number from 1", 1, 1000)?,
            max_request: number("max_request", "a number of bytes from 100000", 100_000, 1_000_000)?,
            description: url.to_string(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(text: &str) -> Result<Config> {
        Config::from_url(&Url::parse(text).expect("a URL"))
    }

    #[test]
    fn fills_in_what_is_not_said() {
        let config = config("zookeeper://h1,h2:4/shop?root=/a/b").expect("valid");
        assert_eq!((config.servers.as_str(), config.root.as_str()), ("h1:2181,h2:4", "/a/b"));
        assert_eq!((config.session.as_secs(), config.timeout.as_secs(), config.history), (10, 5, 1000));
    }

    #[test]
    fn refuses_what_it_would_have_to_ignore_and_shows_no_secret() {
        for (url, expected) in [
            ("zookeeper://h?colour=red", "URL option \"colour\" is not known to zookeeper"),
            ("zookeeper://h?tls=true", "zookeeper:// has no TLS"),
            ("zookeeper:///x", "names no server: write it as zookeeper://host:2181/namespace"),
            ("zookeeper://:canary@h", "needs a user and a password"),
            ("zookeeper://h?root=coact", "root=coact is not allowed: use a path such as /coact"),
            ("zookeeper://h?max_request=1", "max_request=1 is not allowed"),
        ] {
            let error = config(url).expect_err(url).to_string();
            assert!(error.contains(expected) && !error.contains("canary"), "{url}: {error}");
        }
        let shown = format!("{:?}", config("zookeeper://u:canary@h").expect("valid"));
        assert!(!shown.contains("canary"), "{shown}");
    }
}
