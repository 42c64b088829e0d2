//! What the URL says.

use std::{fmt, time::Duration};

use coact_core::{
    Error, Result,
    name::Namespace,
    url::{Host, Url},
};
use tonic::transport::ClientTlsConfig;

use crate::credentials::{self, Login};

/// What is expected at the other end. Both speak the same protocol; they differ in port, words and promises.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Flavour {
    /// etcd itself.
    Etcd,
    /// A coact node.
    Node,
}

impl Flavour {
    fn of_scheme(scheme: &str) -> Self {
        if scheme == "coact" { Self::Node } else { Self::Etcd }
    }

    fn port(self) -> u16 {
        match self {
            Self::Etcd => 2379,
            Self::Node => 7070,
        }
    }

    /// What to do when the server asks who we are, or no longer knows us.
    pub(crate) fn how_to_log_in(self) -> &'static str {
        match self {
            Self::Etcd => "write etcd://user:password@host in the URL",
            Self::Node => "give a valid token in the URL, ?token=env:NAME or ?token=file:PATH",
        }
    }

    /// What to do when nobody is there.
    pub(crate) fn advice(self) -> &'static str {
        match self {
            Self::Etcd => "is it running?",
            Self::Node => "start one with `coact serve`",
        }
    }
}

impl fmt::Display for Flavour {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Etcd => "etcd",
            Self::Node => "a coact node",
        })
    }
}

/// A checked URL.
#[derive(Clone, Debug)]
pub(crate) struct Config {
    pub(crate) flavour: Flavour,
    /// `host:port`, in the order given, at least one.
    pub(crate) servers: Vec<String>,
    pub(crate) namespace: Namespace,
    /// For one request.
    pub(crate) timeout: Duration,
    /// For one connection.
    pub(crate) connect_timeout: Duration,
    pub(crate) login: Login,
    pub(crate) tls: Option<ClientTlsConfig>,
    /// The URL without secrets.
    pub(crate) description: String,
}

impl Config {
    pub(crate) fn from_url(url: &Url) -> Result<Self> {
        let known: Vec<_> = ["timeout", "connect_timeout"].into_iter().chain(credentials::OPTIONS).collect();
        url.check_options(&known)?;
        let flavour = Flavour::of_scheme(url.scheme());
        if url.hosts().is_empty() {
            let scheme = url.scheme();
            return Err(Error::invalid(format!(
                "{url} names no server: write it as {scheme}://host:{}/namespace",
                flavour.port()
            )));
        }
        let server =
            |host: &Host| Host { name: host.name.clone(), port: host.port.or(Some(flavour.port())) }.to_string();
        Ok(Self {
            flavour,
            servers: url.hosts().iter().map(server).collect(),
            namespace: url.namespace()?,
            timeout: url.duration("timeout", Duration::from_secs(5))?,
            connect_timeout: url.duration("connect_timeout", Duration::from_secs(2))?,
            login: Login::from_url(url, flavour)?,
            tls: credentials::tls(url)?,
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
    fn fills_in_ports_by_scheme() {
        let etcd = config("etcd://h1,h2:4/shop?timeout=1s").expect("valid");
        assert_eq!(etcd.servers, ["h1:2379", "h2:4"]);
        assert_eq!((etcd.namespace.as_str(), etcd.timeout.as_secs(), etcd.connect_timeout.as_secs()), ("shop", 1, 2));
        let node = config("coact://[::1]").expect("valid");
        assert_eq!((node.servers[0].as_str(), node.namespace.as_str()), ("[::1]:7070", "main"));
    }

    #[test]
    fn refuses_what_it_would_have_to_ignore() {
        let message = |text: &str| config(text).expect_err(text).to_string();
        assert_eq!(
            message("etcd://h?colour=red"),
            "URL option \"colour\" is not known to etcd: choose from timeout, connect_timeout, tls, ca, cert, key, \
             server_name, token, accept"
        );
        assert_eq!(message("coact:///x"), "coact:///x names no server: write it as coact://host:7070/namespace");
        assert_eq!(
            message("etcd://h?timeout=0s"),
            "URL option timeout=0s is not allowed: use a duration above zero such as 500ms or 5s"
        );
    }
    #[test]
    fn says_how_credentials_are_written() {
        let key = tempfile::NamedTempFile::new().expect("a file");
        let key = key.path().display();
        for (url, expected) in [
            ("etcd://root@h".to_owned(), "names a user without a password"),
            ("etcd://root:pw@h?token=canary".to_owned(), "but etcd knows users"),
            ("etcd://h?token=canary".to_owned(), "but etcd knows users"),
            ("coact://root:canary@h".to_owned(), "a coact node knows tokens: write ?token=env:NAME"),
            ("coact://h?ca=/x".to_owned(), "URL option ca is for TLS: add tls=true"),
            ("coact://h?tls=false&server_name=x".to_owned(), "URL option server_name is for TLS"),
            ("coact://h?tls=yes".to_owned(), "URL option tls=yes is not allowed: use true or false"),
            ("coact://h?tls=true&ca=/nonexistent".to_owned(), "URL option ca=/nonexistent cannot be read"),
            (format!("coact://h?tls=true&ca={key}&cert={key}"), "URL option cert needs key=PATH"),
            (format!("coact://h?tls=true&ca={key}&key={key}"), "URL option key needs cert=PATH"),
        ] {
            let error = config(&url).expect_err(&url).to_string();
            assert!(error.contains(expected) && !error.contains("canary"), "{url}: {error}");
        }
        let shown = format!("{:?}", config("coact://h?token=canary").expect("valid"));
        assert!(!shown.contains("canary"), "{shown}");
    }
}
