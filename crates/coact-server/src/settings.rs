//! The configuration file of a node, in TOML.
//!
//! ```toml
//! listen = "127.0.0.1:7070"
//! data = "coact-data"            # paths are relative to the file
//! durability = "sync"            # sync, os, interval:10ms
//!
//! [history]
//! revisions = 100000
//! age = "1h"
//!
//! [limits]                       # every field of `Limits`
//! connections = 10000
//! header_time = "10s"
//!
//! [auth]
//! enabled = true
//! bootstrap_admin_sha256 = "…"   # of the first admin's token; `coact init` makes one
//! audit_file = "audit.jsonl"
//!
//! [tls]
//! cert = "tls/node.pem"
//! key = "tls/node.key"
//! client_ca = "tls/clients.pem"  # clients must show a certificate
//!
//! [checks.commands]              # the programs that health checks may name
//! disk = ["/usr/lib/checks/disk", "--free", "10%"]
//! ```

use std::{
    collections::BTreeMap,
    fmt,
    net::SocketAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use coact_core::{Error, Result, guarantees::Durability, url::parse_duration};
use coact_engine_embedded::parse_durability;
use serde::{Deserialize, Deserializer, de};

use crate::{
    Limits, TlsConfig,
    auth::{AuthConfig, TokenDigest},
};

/// What a configuration file says. What it does not say is `None`, or the default.
#[derive(Clone, Debug, Default)]
pub struct Settings {
    /// Where to listen.
    pub listen: Option<SocketAddr>,
    /// The data directory.
    pub data: Option<PathBuf>,
    /// What an acknowledged write survives.
    pub durability: Option<Durability>,
    /// How many revisions of history to keep.
    pub history_revisions: Option<u64>,
    /// Forget history that is older.
    pub history_age: Option<Duration>,
    /// What the node puts up with.
    pub limits: Limits,
    /// Whether it asks who is there.
    pub auth: AuthConfig,
    /// Whether connections are secret.
    pub tls: Option<TlsConfig>,
    /// The programs that health checks may run, by name, each with its arguments.
    pub check_commands: BTreeMap<String, Vec<String>>,
}

impl Settings {
    /// Reads a file.
    ///
    /// # Errors
    /// `Invalid`, naming the file, and the line and the key that is wrong.
    pub fn load(path: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(path).map_err(|error| {
            Error::invalid(format!("the configuration {} cannot be read", path.display())).with_source(error)
        })?;
        Self::parse(&text, path)
    }

    fn parse(text: &str, path: &Path) -> Result<Self> {
        let file: File = toml::from_str(text).map_err(|error| complaint(path, text, &error))?;
        let base = path.parent().unwrap_or(Path::new(""));
        let place = |path: PathBuf| base.join(path);
        Ok(Self {
            listen: file.listen,
            data: file.data.map(place),
            durability: file.durability.map(|text| text.0),
            history_revisions: file.history.revisions.map(|revisions| revisions.0),
            history_age: file.history.age.map(|text| text.0),
            limits: file.limits.over(Limits::default()),
            auth: AuthConfig {
                enabled: file.auth.enabled,
                audit_file: file.auth.audit_file.map(place),
                bootstrap_admin: file.auth.bootstrap_admin_sha256.map(|text| text.0),
            },
            tls: file.tls.map(|tls| TlsConfig {
                cert: place(tls.cert),
                key: place(tls.key),
                client_ca: tls.client_ca.map(place),
            }),
            check_commands: file.checks.commands.into_iter().map(|(name, command)| (name, command.0)).collect(),
        })
    }
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct File {
    listen: Option<SocketAddr>,
    data: Option<PathBuf>,
    durability: Option<Text<Durability>>,
    history: History,
    limits: LimitsSection,
    auth: AuthSection,
    tls: Option<TlsSection>,
    checks: Checks,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct History {
    revisions: Option<Positive>,
    age: Option<Text<Duration>>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct AuthSection {
    enabled: bool,
    audit_file: Option<PathBuf>,
    bootstrap_admin_sha256: Option<Text<TokenDigest>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct TlsSection {
    cert: PathBuf,
    key: PathBuf,
    client_ca: Option<PathBuf>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Checks {
    commands: BTreeMap<String, Argv>,
}

/// A program and its arguments; never a line for a shell.
struct Argv(Vec<String>);

impl<'de> Deserialize<'de> for Argv {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let argv = Vec::<String>::deserialize(from)?;
        match argv.first() {
            Some(program) if Path::new(program).is_absolute() => Ok(Self(argv)),
            _ => Err(de::Error::custom("a command begins with the absolute path of a program")),
        }
    }
}

macro_rules! limits_section {
    ($($field:ident: $type:ty => $value:expr,)*) => {
        #[derive(Default, Deserialize)]
        #[serde(deny_unknown_fields, default)]
        struct LimitsSection {
            $($field: Option<$type>,)*
        }

        impl LimitsSection {
            fn over(self, limits: Limits) -> Limits {
                Limits { $($field: self.$field.map_or(limits.$field, $value),)* }
            }
        }
    };
}

limits_section! {
    connections: Positive => |number| number.clamped(),
    calls_per_connection: Positive => |number| number.clamped(),
    header_time: Text<Duration> => |text| text.0,
    header_bytes: Positive => |number| number.clamped(),
    body_bytes: Positive => |number| number.0 as usize,
    request_bytes: Positive => |number| number.0 as usize,
    message_bytes: Positive => |number| number.0 as usize,
    txn_ops: Positive => |number| number.0 as usize,
    ping_every: Text<Duration> => |text| text.0,
    ping_timeout: Text<Duration> => |text| text.0,
    progress_every: Text<Duration> => |text| text.0,
    shutdown: Text<Duration> => |text| text.0,
}

/// A number from 1 on.
struct Positive(u64);

impl Positive {
    fn clamped(self) -> u32 {
        u32::try_from(self.0).unwrap_or(u32::MAX)
    }
}

impl<'de> Deserialize<'de> for Positive {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        match u64::deserialize(from)? {
            0 => Err(de::Error::custom("use a number from 1 on")),
            number => Ok(Self(number)),
        }
    }
}

/// A value that is written as a string.
struct Text<T>(T);

trait FromText: Sized {
    fn from_text(text: &str) -> Result<Self, String>;
}

impl<'de, T: FromText> Deserialize<'de> for Text<T> {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let text = String::deserialize(from)?;
        T::from_text(&text).map(Self).map_err(de::Error::custom)
    }
}

impl FromText for Duration {
    fn from_text(text: &str) -> Result<Self, String> {
        let positive = parse_duration(text).filter(|duration| !duration.is_zero());
        positive.ok_or_else(|| "use a number with a unit, above zero: 250ms, 10s, 5m, 1h".to_owned())
    }
}

impl FromText for Durability {
    fn from_text(text: &str) -> Result<Self, String> {
        parse_durability(text).map_err(|error| error.to_string())
    }
}

impl FromText for TokenDigest {
    fn from_text(text: &str) -> Result<Self, String> {
        Self::from_hex(text).ok_or_else(|| "use the 64 hexadecimal digits that `coact init` writes".to_owned())
    }
}

/// One line: file, line, key, and what is wrong.
fn complaint(path: &Path, text: &str, error: &toml::de::Error) -> Error {
    let at = error.span().map_or(0, |span| span.start.min(text.len()));
    let line = text[..at].matches('\n').count() + 1;
    let message = error.message().replace('\n', " ");
    Error::invalid(format!("{}:{line}: {}{message}", path.display(), KeyAt { text, line }))
}

/// The key on a line, with its section.
struct KeyAt<'a> {
    text: &'a str,
    line: usize,
}

impl fmt::Display for KeyAt<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some((key, _)) = self.text.lines().nth(self.line - 1).and_then(|line| line.split_once('=')) else {
            return Ok(());
        };
        let before = self.text.lines().take(self.line - 1);
        let section = before.filter_map(|line| line.trim().strip_prefix('[')?.split_once(']')).last();
        match section {
            Some((section, _)) => write!(f, "{section}.{}: ", key.trim()),
            None => write!(f, "{}: ", key.trim()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Settings> {
        Settings::parse(text, Path::new("/etc/coact/coact.toml"))
    }

    #[test]
    fn the_documented_example_is_read() {
        let digest = "ab".repeat(32);
        let example: Vec<_> = include_str!("settings.rs")
            .lines()
            .skip_while(|line| *line != "//! ```toml")
            .skip(1)
            .take_while(|line| *line != "//! ```")
            .map(|line| line.trim_start_matches("//!").trim())
            .collect();
        let settings = parse(&example.join("\n").replace('…', &digest)).expect("valid");
        assert_eq!(settings.listen, Some(([127, 0, 0, 1], 7070).into()));
        assert_eq!(settings.data.as_deref(), Some(Path::new("/etc/coact/coact-data")));
        assert_eq!(settings.limits, Limits::default(), "the example has the defaults");
        assert_eq!(settings.auth.bootstrap_admin.map(TokenDigest::to_hex), Some(digest));
        assert_eq!(settings.tls.expect("a section").key, Path::new("/etc/coact/tls/node.key"));
        assert_eq!(settings.check_commands["disk"].len(), 3);
        assert!(!parse("").expect("valid").auth.enabled);
    }

    #[test]
    fn says_file_line_and_key() {
        for (text, expected) in [
            ("lisen = \"x\"", "coact.toml:1: lisen: unknown field `lisen`"),
            ("\n[auth]\nenabled = \"yes\"", "coact.toml:3: auth.enabled: invalid type"),
            ("[limits]\nheader_time = \"soon\"", "coact.toml:2: limits.header_time: use a number with a unit"),
            ("[limits]\nconnections = 0", "coact.toml:2: limits.connections: use a number from 1 on"),
            ("durability = \"fast\"", "coact.toml:1: durability: durability \"fast\" is not known"),
            ("[auth]\nbootstrap_admin_sha256 = \"x\"", "auth.bootstrap_admin_sha256: use the 64 hexadecimal digits"),
            ("[tls]\ncert = \"a\"", "missing field `key`"),
            (
                "[checks.commands]\nx = [\"sh\"]",
                "coact.toml:2: checks.commands.x: a command begins with the absolute path",
            ),
            ("a = = b", "coact.toml:1: "),
        ] {
            let error = parse(text).expect_err(text).to_string();
            assert!(error.contains(expected) && !error.contains('\n'), "{text}: {error}");
        }
    }
}
