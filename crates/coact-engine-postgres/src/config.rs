//! What the URL says.

use std::{fmt, time::Duration};

use coact_core::{
    Error, Result,
    name::Namespace,
    url::{Host, Secret, Url},
};
use tokio_postgres::config::{SslMode, TargetSessionAttrs};

use crate::tls::{self, Tls};

/// The options of a URL.
const OPTIONS: [&str; 11] = [
    "database",
    "schema",
    "pool",
    "timeout",
    "connect_timeout",
    "tls",
    "ca",
    "cert",
    "key",
    "server_name",
    "application_name",
];
const PORT: u16 = 5432;
/// How many connections a handle keeps for requests, unless the URL says otherwise.
const POOL: usize = 8;
const POOL_MAX: usize = 1000;

/// A checked URL.
#[derive(Clone)]
pub(crate) struct Config {
    pub(crate) namespace: Namespace,
    /// A plain identifier, which needs no quotes.
    pub(crate) schema: String,
    /// The most connections for requests; one more listens.
    pub(crate) pool: usize,
    /// For one request.
    pub(crate) timeout: Duration,
    /// For one connection.
    pub(crate) connect_timeout: Duration,
    pub(crate) user: String,
    /// One for each host, in the order given, at least one.
    pub(crate) hosts: Vec<tokio_postgres::Config>,
    pub(crate) tls: Tls,
    /// `host:port`, or several of them.
    pub(crate) servers: String,
    /// The URL without secrets.
    pub(crate) description: String,
}

impl fmt::Debug for Config {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Config({})", self.description)
    }
}

impl Config {
    pub(crate) fn from_url(url: &Url) -> Result<Self> {
        url.check_options(&OPTIONS)?;
        if url.hosts().is_empty() {
            return Err(Error::invalid(format!(
                "{url} names no server: write it as {}://user:password@host:{PORT}/namespace?database=NAME",
                url.scheme()
            )));
        }
        let Some(user) = url.user().filter(|user| !user.is_empty()) else {
            return Err(Error::invalid(format!("{url} names no user: write user:password@host or user@host")));
        };
        let connect_timeout = url.duration("connect_timeout", Duration::from_secs(2))?;
        let tls = tls::from_url(url)?;
        let mut driver = tokio_postgres::Config::new();
        driver
            .user(user)
            .dbname(url.option("database").unwrap_or(user))
            .application_name(url.option("application_name").unwrap_or("coact"))
            .connect_timeout(connect_timeout)
            .keepalives_idle(Duration::from_secs(10))
            .keepalives_interval(Duration::from_secs(5))
            .keepalives_retries(3)
            // Also with one server: a replica would refuse every write later on.
            .target_session_attrs(TargetSessionAttrs::ReadWrite)
            .ssl_mode(if tls.is_on() { SslMode::Require } else { SslMode::Disable });
        if let Some(password) = url.secret().map(Secret::expose).transpose()? {
            driver.password(password);
        }
        let at = |host: &Host| {
            let mut driver = driver.clone();
            driver.host(&host.name).port(host.port.unwrap_or(PORT));
            driver
        };
        let server = |host: &Host| Host { name: host.name.clone(), port: host.port.or(Some(PORT)) }.to_string();
        Ok(Self {
            namespace: url.namespace()?,
            schema: url
                .parsed("schema", "1 to 40 of a-z 0-9 _, not starting with a digit", schema)?
                .unwrap_or_else(|| "coact".to_owned()),
            pool: url.parsed("pool", "a number from 1 to 1000", pool)?.unwrap_or(POOL),
            timeout: url.duration("timeout", Duration::from_secs(5))?,
            connect_timeout,
            user: user.to_owned(),
            hosts: url.hosts().iter().map(at).collect(),
            tls,
            servers: url.hosts().iter().map(server).collect::<Vec<_>>().join(", "),
            description: url.to_string(),
        })
    }
}

fn schema(text: &str) -> Option<String> {
    let allowed = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_';
    let fits = (1..=40).contains(&text.len()) && !text.starts_with(|first: char| first.is_ascii_digit());
    // The server keeps names that begin like this for itself.
    (fits && text.bytes().all(allowed) && !text.starts_with("pg_")).then(|| text.to_owned())
}

fn pool(text: &str) -> Option<usize> {
    text.parse().ok().filter(|pool| (1..=POOL_MAX).contains(pool))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(text: &str) -> Result<Config> {
        Config::from_url(&Url::parse(text).expect("a URL"))
    }

    #[test]
    fn fills_in_what_the_url_leaves_out() {
        let config = config("postgres://shop:pw@h1,h2:4/eu?timeout=1s").expect("valid");
        assert_eq!((config.namespace.as_str(), config.schema.as_str(), config.pool), ("eu", "coact", POOL));
        let ports: Vec<_> = config.hosts.iter().map(|host| host.get_ports()[0]).collect();
        assert_eq!((config.hosts[0].get_dbname(), ports), (Some("shop"), vec![5432, 4]));
        assert_eq!((config.timeout.as_secs(), config.connect_timeout.as_secs()), (1, 2));
        assert_eq!(config.servers, "h1:5432, h2:4");
        assert!(!format!("{config:?}").contains("pw"));
    }

    #[test]
    fn refuses_what_it_would_have_to_ignore() {
        for (url, expected) in [
            ("postgres://u@h?colour=red", "URL option \"colour\" is not known to postgres: choose from database,"),
            ("postgres:///x", "names no server: write it as postgres://user:password@host:5432/namespace"),
            ("postgresql://h", "names no user: write user:password@host"),
            ("postgres://u@h?timeout=0s", "URL option timeout=0s is not allowed"),
            ("postgres://u@h?schema=Coact", "URL option schema=Coact is not allowed: use 1 to 40 of a-z 0-9 _"),
            ("postgres://u@h?schema=pg_x", "URL option schema=pg_x is not allowed"),
            ("postgres://u@h?schema=a;b", "URL option schema=a;b is not allowed"),
            ("postgres://u@h?pool=0", "URL option pool=0 is not allowed: use a number from 1 to 1000"),
            ("postgres://u@h?ca=/x", "URL option ca is for TLS: add tls=true"),
            ("postgres://u@h?tls=yes", "URL option tls=yes is not allowed: use true or false"),
            ("postgres://u@h?tls=true&ca=/nonexistent", "URL option ca=/nonexistent cannot be read"),
        ] {
            let error = config(url).expect_err(url).to_string();
            assert!(error.contains(expected), "{url}: {error}");
        }
    }
}
