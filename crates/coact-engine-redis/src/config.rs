//! What the URL says.

use std::{fmt, time::Duration};

use coact_core::{
    Error, Result,
    name::Namespace,
    url::{Secret, Url},
};
use redis::{ClientTlsConfig, TlsCertificates};

const OPTIONS: [&str; 9] =
    ["sentinel", "sentinel_user", "sentinel_password", "timeout", "connect_timeout", "history", "ca", "cert", "key"];
const REDIS_PORT: u16 = 6379;
const SENTINEL_PORT: u16 = 26379;
/// How many changes the history keeps, unless the URL says otherwise.
const HISTORY: u32 = 4096;

/// A server's name or address, and its port.
pub(crate) type Address = (String, u16);

/// A checked URL.
#[derive(Clone)]
pub(crate) struct Config {
    /// In the order given, at least one.
    pub(crate) hosts: Vec<Address>,
    /// The name that Sentinels know the primary by.
    pub(crate) sentinel: Option<String>,
    pub(crate) namespace: Namespace,
    pub(crate) login: Login,
    pub(crate) sentinel_login: Login,
    pub(crate) tls: Option<TlsCertificates>,
    pub(crate) history: u32,
    /// For one request.
    pub(crate) timeout: Duration,
    /// For one connection.
    pub(crate) connect_timeout: Duration,
    /// The URL without secrets.
    pub(crate) description: String,
}

/// A user and a password, each if given.
#[derive(Clone, Default)]
pub(crate) struct Login {
    pub(crate) user: Option<String>,
    pub(crate) password: Option<Secret>,
}

impl fmt::Debug for Config {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Config").field("url", &self.description).finish_non_exhaustive()
    }
}

impl Config {
    pub(crate) fn from_url(url: &Url) -> Result<Self> {
        url.check_options(&OPTIONS)?;
        let name = |text: &str| (!text.is_empty()).then(|| text.to_owned());
        let sentinel = url.parsed("sentinel", "the name that the Sentinels know the primary by", name)?;
        if url.hosts().is_empty() {
            let scheme = url.scheme();
            return Err(Error::invalid(format!(
                "{url} names no server: write it as {scheme}://host:{REDIS_PORT}/namespace"
            )));
        }
        let port = if sentinel.is_some() { SENTINEL_PORT } else { REDIS_PORT };
        let history = url.parsed("history", "a number from 1 to 1000000", |text| {
            text.parse().ok().filter(|count| (1..=1_000_000).contains(count))
        })?;
        Ok(Self {
            hosts: url.hosts().iter().map(|host| (host.name.clone(), host.port.unwrap_or(port))).collect(),
            namespace: url.namespace()?,
            login: login(url)?,
            sentinel_login: sentinel_login(url, sentinel.is_some())?,
            sentinel,
            tls: tls(url)?,
            history: history.unwrap_or(HISTORY),
            timeout: url.duration("timeout", Duration::from_secs(5))?,
            connect_timeout: url.duration("connect_timeout", Duration::from_secs(2))?,
            description: url.to_string(),
        })
    }

    /// The beginning of every key, in braces what decides the slot.
    pub(crate) fn root(&self) -> String {
        format!("coact:{{{}}}", self.namespace)
    }
}

fn login(url: &Url) -> Result<Login> {
    let user = url.user().filter(|user| !user.is_empty()).map(str::to_owned);
    if user.is_some() && url.secret().is_none() {
        return Err(Error::invalid(format!(
            "{url} names a user without a password: write user:password@host, user:env:NAME@host or user:file:PATH@host"
        )));
    }
    Ok(Login { user, password: url.secret().cloned() })
}

fn sentinel_login(url: &Url, sentinel: bool) -> Result<Login> {
    let login = Login {
        user: url.option("sentinel_user").map(str::to_owned),
        password: url.secret_option("sentinel_password"),
    };
    if !sentinel && (login.user.is_some() || login.password.is_some()) {
        return Err(Error::invalid(
            "URL options sentinel_user and sentinel_password are for Sentinels: add sentinel=NAME",
        ));
    }
    if login.user.is_some() && login.password.is_none() {
        return Err(Error::invalid("URL option sentinel_user needs sentinel_password"));
    }
    Ok(login)
}

fn tls(url: &Url) -> Result<Option<TlsCertificates>> {
    if !matches!(url.scheme(), "rediss" | "valkeys") {
        return match ["ca", "cert", "key"].into_iter().find(|name| url.option(name).is_some()) {
            Some(name) => Err(Error::invalid(format!(
                "URL option {name} is for TLS: write {}s:// instead of {}://",
                url.scheme(),
                url.scheme()
            ))),
            None => Ok(None),
        };
    }
    let client_tls = url.identity()?.map(|(client_cert, client_key)| ClientTlsConfig { client_cert, client_key });
    Ok(Some(TlsCertificates { client_tls, root_cert: url.file("ca")? }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(text: &str) -> Result<Config> {
        Config::from_url(&Url::parse(text).expect("a URL"))
    }

    #[test]
    fn fills_in_ports_by_what_the_hosts_are() {
        let one = config("redis://h1,h2:4/shop?timeout=1s").expect("valid");
        assert_eq!(one.hosts, [("h1".to_owned(), 6379), ("h2".to_owned(), 4)]);
        assert_eq!((one.root().as_str(), one.timeout.as_secs(), one.history), ("coact:{shop}", 1, 4096));
        let sentinels = config("valkey://[::1]?sentinel=main").expect("valid");
        assert_eq!(sentinels.hosts, [("::1".to_owned(), 26379)]);
        assert!(one.tls.is_none() && config("rediss://h").expect("valid").tls.is_some());
    }

    #[test]
    fn refuses_what_it_would_have_to_ignore_and_shows_no_secret() {
        for (url, expected) in [
            ("redis://h?colour=red", "URL option \"colour\" is not known to redis"),
            ("redis:///x", "redis:///x names no server: write it as redis://host:6379/namespace"),
            ("redis://h?timeout=0s", "timeout=0s is not allowed: use a duration above zero"),
            ("redis://h?history=0", "history=0 is not allowed: use a number from 1 to 1000000"),
            ("redis://u@h", "names a user without a password"),
            ("redis://h?ca=/x", "URL option ca is for TLS: write rediss://"),
            ("rediss://h?ca=/nonexistent", "URL option ca=/nonexistent cannot be read"),
            ("redis://h?sentinel=", "sentinel= is not allowed: use the name that the Sentinels know the primary by"),
            ("redis://h?sentinel_password=canary", "are for Sentinels"),
            ("redis://h?sentinel=m&sentinel_user=u", "sentinel_user needs sentinel_password"),
        ] {
            let error = config(url).expect_err(url).to_string();
            assert!(error.contains(expected) && !error.contains("canary"), "{url}: {error}");
        }
        let shown = format!("{:?}", config("redis://:canary@h?sentinel=m&sentinel_password=canary").expect("valid"));
        assert!(!shown.contains("canary"), "{shown}");
    }
}
