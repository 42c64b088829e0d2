//! What the URL says.

use std::{fmt, time::Duration};

use coact_core::{
    Error, ErrorKind, Result,
    name::Namespace,
    url::{Host, Url, parse_duration},
};

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
    /// The URL without secrets.
    pub(crate) description: String,
}

impl Config {
    pub(crate) fn from_url(url: &Url) -> Result<Self> {
        url.check_options(&["timeout", "connect_timeout"])?;
        let flavour = Flavour::of_scheme(url.scheme());
        if url.user().is_some() {
            return Err(Error::new(
                ErrorKind::Unsupported,
                format!(
                    "{url} names a user, but authentication is not supported yet: use a URL without user and secret"
                ),
            ));
        }
        if url.hosts().is_empty() {
            let scheme = url.scheme();
            return Err(Error::invalid(format!(
                "{url} names no server: write it as {scheme}://host:{}/namespace",
                flavour.port()
            )));
        }
        let duration = |name, default| {
            let positive = |text: &str| parse_duration(text).filter(|duration| !duration.is_zero());
            Ok::<_, Error>(url.parsed(name, "a duration above zero such as 500ms or 5s", positive)?.unwrap_or(default))
        };
        let server =
            |host: &Host| Host { name: host.name.clone(), port: host.port.or(Some(flavour.port())) }.to_string();
        Ok(Self {
            flavour,
            servers: url.hosts().iter().map(server).collect(),
            namespace: url.namespace()?,
            timeout: duration("timeout", Duration::from_secs(5))?,
            connect_timeout: duration("connect_timeout", Duration::from_secs(2))?,
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
            message("etcd://h?tls=true"),
            "URL option \"tls\" is not known to etcd: choose from timeout, connect_timeout, accept"
        );
        assert_eq!(
            message("etcd://root:pw@h/x"),
            "etcd://root:***@h/x names a user, but authentication is not supported yet: use a URL without user and secret"
        );
        assert_eq!(message("coact:///x"), "coact:///x names no server: write it as coact://host:7070/namespace");
        assert_eq!(
            message("etcd://h?timeout=0s"),
            "URL option timeout=0s is not allowed: use a duration above zero such as 500ms or 5s"
        );
    }
}
