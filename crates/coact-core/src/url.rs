//! Engine URLs: `scheme://[user[:secret]@]host[:port][,host…]/namespace[?key=value]`, `embedded:///path`, `memory:`.

use std::{collections::BTreeMap, fmt, time::Duration};

use crate::{
    error::{Error, Result},
    guarantees::Accepted,
    name::Namespace,
};

/// A parsed engine URL. `Debug` and `Display` never show the secret.
#[derive(Clone, PartialEq, Eq)]
pub struct Url {
    scheme: String,
    user: Option<String>,
    secret: Option<Secret>,
    hosts: Vec<Host>,
    path: String,
    options: BTreeMap<String, String>,
}

/// One server of a URL.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Host {
    /// A name or address, without brackets.
    pub name: String,
    /// The port, if given.
    pub port: Option<u16>,
}

/// A secret: the only way to its text is [`Secret::expose`].
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// The text, resolving `env:NAME` and `file:PATH` references.
    ///
    /// # Errors
    /// `Invalid` if the variable is not set or the file cannot be read.
    pub fn expose(&self) -> Result<String> {
        if let Some(name) = self.0.strip_prefix("env:") {
            return std::env::var(name)
                .map_err(|_| Error::invalid(format!("the URL's secret is env:{name}, but {name} is not set")));
        }
        if let Some(path) = self.0.strip_prefix("file:") {
            return std::fs::read_to_string(path).map(|text| text.trim_end().to_owned()).map_err(|error| {
                Error::invalid(format!("the URL's secret is file:{path}, which cannot be read")).with_source(error)
            });
        }
        Ok(self.0.clone())
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

impl Url {
    /// Parses a URL.
    ///
    /// # Errors
    /// `Invalid`, naming the part that is wrong and the form that is expected. The secret is never quoted.
    pub fn parse(text: &str) -> Result<Self> {
        let Some((scheme, rest)) = text.split_once(':') else {
            return Err(Error::invalid(format!(
                "{:?} is not an engine URL: it has no scheme; write for example embedded:///var/lib/coact, memory: or coact://127.0.0.1:7070",
                shorten(text)
            )));
        };
        let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
        if scheme.is_empty() || !scheme.chars().all(plain) {
            return Err(Error::invalid(format!("URL scheme {:?} is not allowed: use a-z and 0-9", shorten(scheme))));
        }
        let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
        let (authority, path) = match rest.strip_prefix("//") {
            Some(rest) => rest.find('/').map_or((rest, ""), |cut| rest.split_at(cut)),
            None if rest.is_empty() => ("", ""),
            None => {
                return Err(Error::invalid(format!(
                    "URL {scheme}: must go on with //, as in {scheme}://host/namespace"
                )));
            }
        };
        let (user, secret, hosts) = parse_authority(authority)?;
        Ok(Self { scheme: scheme.to_owned(), user, secret, hosts, path: decode(path)?, options: parse_options(query)? })
    }

    /// The scheme, which names the engine.
    pub fn scheme(&self) -> &str {
        &self.scheme
    }

    /// The user name, if given.
    pub fn user(&self) -> Option<&str> {
        self.user.as_deref()
    }

    /// The secret, if given.
    pub fn secret(&self) -> Option<&Secret> {
        self.secret.as_ref()
    }

    /// The servers, in the order given.
    pub fn hosts(&self) -> &[Host] {
        &self.hosts
    }

    /// The path with its leading slash, or nothing.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// The namespace of a server URL: its path without the slash, `main` if empty.
    ///
    /// # Errors
    /// `Invalid` if the path is not one namespace word.
    pub fn namespace(&self) -> Result<Namespace> {
        match self.path.trim_start_matches('/') {
            "" => Ok(Namespace::default()),
            word => Namespace::new(word),
        }
    }

    /// The weaknesses that the user accepts (`accept=a,b`).
    ///
    /// # Errors
    /// `Invalid`, listing the known names.
    pub fn accepted(&self) -> Result<Accepted> {
        self.options.get("accept").map_or(Ok(Accepted::default()), |names| names.parse())
    }

    /// The value of one option.
    pub fn option(&self, name: &str) -> Option<&str> {
        self.options.get(name).map(String::as_str)
    }

    /// The value of an option that must not be shown.
    pub fn secret_option(&self, name: &str) -> Option<Secret> {
        self.options.get(name).cloned().map(Secret)
    }

    /// One option, parsed; `expected` says in words what is allowed.
    ///
    /// # Errors
    /// `Invalid`, with the option, its value and what is allowed.
    pub fn parsed<T>(&self, name: &str, expected: &str, parse: impl FnOnce(&str) -> Option<T>) -> Result<Option<T>> {
        let Some(value) = self.option(name) else { return Ok(None) };
        match parse(value) {
            Some(parsed) => Ok(Some(parsed)),
            None => Err(Error::invalid(format!("URL option {name}={value} is not allowed: use {expected}"))),
        }
    }

    /// An option that is a duration above zero.
    ///
    /// # Errors
    /// `Invalid`, with the option, its value and what is allowed.
    pub fn duration(&self, name: &str, default: Duration) -> Result<Duration> {
        let positive = |text: &str| parse_duration(text).filter(|duration| !duration.is_zero());
        Ok(self.parsed(name, "a duration above zero such as 500ms or 5s", positive)?.unwrap_or(default))
    }

    /// What is in the file that an option names.
    ///
    /// # Errors
    /// `Invalid` if it cannot be read.
    pub fn file(&self, name: &str) -> Result<Option<Vec<u8>>> {
        let Some(path) = self.option(name) else { return Ok(None) };
        std::fs::read(path)
            .map(Some)
            .map_err(|error| Error::invalid(format!("URL option {name}={path} cannot be read")).with_source(error))
    }

    /// What is in the files that `cert` and `key` name, a certificate of our own and its private key.
    ///
    /// # Errors
    /// `Invalid` if one of them is not named, or cannot be read.
    pub fn identity(&self) -> Result<Option<(Vec<u8>, Vec<u8>)>> {
        match (self.option("cert"), self.option("key")) {
            (Some(_), None) => Err(Error::invalid("URL option cert needs key=PATH: the certificate's private key")),
            (None, Some(_)) => Err(Error::invalid("URL option key needs cert=PATH: the key's certificate")),
            _ => Ok(self.file("cert")?.zip(self.file("key")?)),
        }
    }

    /// Refuses options outside `known` (`accept` is always known).
    ///
    /// # Errors
    /// `Invalid`, naming the unknown option and listing the known ones.
    pub fn check_options(&self, known: &[&str]) -> Result<()> {
        for name in self.options.keys() {
            if name != "accept" && !known.contains(&name.as_str()) {
                let mut names = known.to_vec();
                names.push("accept");
                return Err(Error::invalid(format!(
                    "URL option {name:?} is not known to {}: choose from {}",
                    self.scheme,
                    names.join(", ")
                )));
            }
        }
        Ok(())
    }
}

impl std::str::FromStr for Url {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        Self::parse(text)
    }
}

impl fmt::Display for Url {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:", self.scheme)?;
        if self.hosts.is_empty() && self.path.is_empty() {
            return Ok(());
        }
        f.write_str("//")?;
        if let Some(user) = &self.user {
            let secret = if self.secret.is_some() { ":***" } else { "" };
            write!(f, "{user}{secret}@")?;
        }
        let hosts: Vec<_> = self.hosts.iter().map(Host::to_string).collect();
        write!(f, "{}{}", hosts.join(","), self.path)
    }
}

impl fmt::Debug for Url {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = if self.name.contains(':') { format!("[{}]", self.name) } else { self.name.clone() };
        match self.port {
            Some(port) => write!(f, "{name}:{port}"),
            None => f.write_str(&name),
        }
    }
}

/// Reads a duration written as a number with a unit: `250ms`, `10s`, `5m`, `1h`.
pub fn parse_duration(text: &str) -> Option<Duration> {
    let cut = text.find(|c: char| !c.is_ascii_digit())?;
    let number: u64 = text[..cut].parse().ok()?;
    let milliseconds = match &text[cut..] {
        "ms" => 1,
        "s" => 1_000,
        "m" => 60_000,
        "h" => 3_600_000,
        _ => return None,
    };
    number.checked_mul(milliseconds).map(Duration::from_millis)
}

fn parse_authority(authority: &str) -> Result<(Option<String>, Option<Secret>, Vec<Host>)> {
    let (credentials, hosts) = match authority.rsplit_once('@') {
        Some((credentials, hosts)) => (Some(credentials), hosts),
        None => (None, authority),
    };
    let (user, secret) = match credentials.map(|text| text.split_once(':').map_or((text, None), |(u, s)| (u, Some(s))))
    {
        None => (None, None),
        Some((user, secret)) => (Some(decode(user)?), secret.map(|text| decode(text).map(Secret)).transpose()?),
    };
    let hosts = if hosts.is_empty() { Vec::new() } else { hosts.split(',').map(parse_host).collect::<Result<_>>()? };
    Ok((user, secret, hosts))
}

fn parse_host(text: &str) -> Result<Host> {
    let bad = |why: &str| Error::invalid(format!("URL host {text:?} is not allowed: {why}"));
    let (name, port) = if let Some(rest) = text.strip_prefix('[') {
        let (name, rest) = rest.split_once(']').ok_or_else(|| bad("the bracket of an IPv6 address is not closed"))?;
        (name, rest.strip_prefix(':'))
    } else {
        text.split_once(':').map_or((text, None), |(name, port)| (name, Some(port)))
    };
    if name.is_empty() {
        return Err(bad("it is empty"));
    }
    let port = match port {
        None => None,
        Some(port) => Some(port.parse().map_err(|_| bad("the port must be a number from 0 to 65535"))?),
    };
    Ok(Host { name: name.to_owned(), port })
}

fn parse_options(query: &str) -> Result<BTreeMap<String, String>> {
    let mut options = BTreeMap::new();
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        let Some((name, value)) = pair.split_once('=') else {
            return Err(Error::invalid(format!("URL option {pair:?} has no value: write {pair}=value")));
        };
        if options.insert(decode(name)?, decode(value)?).is_some() {
            return Err(Error::invalid(format!("URL option {name:?} is given twice")));
        }
    }
    Ok(options)
}

fn decode(text: &str) -> Result<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [first, tail @ ..] = rest {
        rest = tail;
        if *first != b'%' {
            bytes.push(*first);
            continue;
        }
        let hex = rest.get(..2).and_then(|hex| std::str::from_utf8(hex).ok());
        let Some(byte) = hex.and_then(|hex| u8::from_str_radix(hex, 16).ok()) else {
            return Err(Error::invalid("the URL has a % that is not followed by two hexadecimal digits"));
        };
        bytes.push(byte);
        rest = &rest[2..];
    }
    String::from_utf8(bytes).map_err(|_| Error::invalid("the URL has %-escapes that are not UTF-8"))
}

fn shorten(text: &str) -> &str {
    let cut = text.char_indices().nth(40).map_or(text.len(), |(cut, _)| cut);
    &text[..cut]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_every_part_and_hides_the_secret() {
        let url = Url::parse("etcd://root:s%40crt@h1:2379,h2,[::1]:9/shop?accept=volatile&tls=true").expect("valid");
        assert_eq!((url.scheme(), url.user()), ("etcd", Some("root")));
        assert_eq!(url.secret().expect("given").expose().expect("plain"), "s@crt");
        assert_eq!(url.hosts().iter().map(Host::to_string).collect::<Vec<_>>(), ["h1:2379", "h2", "[::1]:9"]);
        assert_eq!(url.namespace().expect("word").as_str(), "shop");
        assert_eq!(url.option("tls"), Some("true"));
        assert_eq!(
            format!("{url:?} {url}"),
            "etcd://root:***@h1:2379,h2,[::1]:9/shop etcd://root:***@h1:2379,h2,[::1]:9/shop"
        );
    }

    #[test]
    fn reads_local_forms() {
        let url = Url::parse("embedded:///var/lib/coact?durability=os").expect("valid");
        assert_eq!((url.hosts().len(), url.path()), (0, "/var/lib/coact"));
        let url = Url::parse("memory:").expect("valid");
        assert_eq!((url.scheme(), url.path(), url.namespace().expect("default").as_str()), ("memory", "", "main"));
    }

    #[test]
    fn says_what_is_wrong() {
        for (text, expected) in [
            ("localhost", "is not an engine URL: it has no scheme"),
            ("Etcd://h", "URL scheme \"Etcd\" is not allowed"),
            ("etcd:h", "URL etcd: must go on with //"),
            ("etcd://h:99999", "the port must be a number from 0 to 65535"),
            ("etcd://h,,i", "URL host \"\" is not allowed: it is empty"),
            ("etcd://[::1", "the bracket of an IPv6 address is not closed"),
            ("etcd://h?tls", "URL option \"tls\" has no value"),
            ("etcd://h?a=1&a=2", "URL option \"a\" is given twice"),
            ("etcd://h/%zz", "a % that is not followed by two hexadecimal digits"),
        ] {
            let error = Url::parse(text).expect_err(text).to_string();
            assert!(error.contains(expected), "{text}: {error}");
        }
        let error =
            Url::parse("etcd://h?x=1").expect("valid").check_options(&["tls"]).expect_err("unknown").to_string();
        assert_eq!(error, "URL option \"x\" is not known to etcd: choose from tls, accept");
    }

    #[test]
    fn reads_durations_with_units_only() {
        assert_eq!(parse_duration("250ms"), Some(Duration::from_millis(250)));
        assert_eq!(parse_duration("2h"), Some(Duration::from_secs(7200)));
        for bad in ["", "5", "ms", "1d", "-1s", "1.5s", "99999999999999999999s", "18446744073709551615h"] {
            assert_eq!(parse_duration(bad), None, "{bad}");
        }
    }
}
