//! Contexts: named nodes with the way to their token, in `~/.config/coact/contexts.toml`.
//!
//! The file holds no secret, only where one is; it is for its owner alone all the same.

use std::{
    collections::BTreeMap,
    io::Write as _,
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
};

use coact::{Error, ErrorKind, Result, Url};
use serde::{Deserialize, Serialize};

/// The variable that names another file.
const FILE_VARIABLE: &str = "COACT_CONFIG";

/// The file.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Contexts {
    /// The one that is used if nothing else is said.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) current: Option<String>,
    pub(crate) contexts: BTreeMap<String, Context>,
}

/// One of them.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Context {
    pub(crate) url: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) token_file: Option<PathBuf>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) token_env: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) ca: Option<PathBuf>,
}

impl Contexts {
    /// Reads the file; without one there are none.
    pub(crate) fn load() -> Result<Self> {
        let path = path()?;
        match std::fs::read_to_string(&path) {
            Ok(text) => toml::from_str(&text).map_err(|error: toml::de::Error| {
                Error::invalid(format!("{}: {}", path.display(), error.message().replace('\n', " ")))
            }),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Self::default()),
            Err(error) => Err(unusable(&path, error)),
        }
    }

    /// Replaces the file as a whole.
    pub(crate) fn save(&self) -> Result<()> {
        let path = path()?;
        let text = toml::to_string(self)
            .map_err(|error| Error::new(ErrorKind::Internal, "the contexts cannot be written").with_source(error))?;
        let dir = path.parent().unwrap_or(Path::new("."));
        let write = || {
            std::fs::create_dir_all(dir)?;
            let mut file = tempfile::Builder::new().prefix(".contexts").tempfile_in(dir)?;
            file.write_all(text.as_bytes())?;
            file.as_file().sync_all()?;
            file.persist(&path).map_err(|error| error.error)
        };
        write().map(drop).map_err(|error| unusable(&path, error))
    }

    /// The context of this name.
    pub(crate) fn get(&self, name: &str) -> Result<&Context> {
        self.contexts.get(name).ok_or_else(|| {
            let names: Vec<_> = self.contexts.keys().map(String::as_str).collect();
            let there =
                if names.is_empty() { "there is none".to_owned() } else { format!("there are {}", names.join(", ")) };
            Error::new(
                ErrorKind::NotFound,
                format!("there is no context {name:?}: {there}; `coact context add` makes one"),
            )
        })
    }
}

impl Context {
    /// The engine URL with everything that the context says.
    pub(crate) fn to_url(&self) -> Result<String> {
        let url = Url::parse(&self.url)?;
        let mut options = Vec::new();
        if let Some(path) = &self.token_file {
            options.push(format!("token=file:{}", escaped(path)?));
        }
        if let Some(name) = &self.token_env {
            options.push(format!("token=env:{name}"));
        }
        if let Some(path) = &self.ca {
            if url.option("tls").is_none() {
                options.push("tls=true".to_owned());
            }
            options.push(format!("ca={}", escaped(path)?));
        }
        if options.is_empty() {
            return Ok(self.url.clone());
        }
        let joint = if self.url.contains('?') { "&" } else { "?" };
        Ok(format!("{}{joint}{}", self.url, options.join("&")))
    }
}

/// Makes a file that only its owner reads, which must not exist.
pub(crate) fn create_private(path: &Path, text: &str) -> std::io::Result<()> {
    let mut file = std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()
}

fn escaped(path: &Path) -> Result<String> {
    let text = path.to_str().ok_or_else(|| Error::invalid(format!("{} is not UTF-8", path.display())))?;
    Ok(text.replace('%', "%25").replace('&', "%26").replace('#', "%23"))
}

fn path() -> Result<PathBuf> {
    if let Some(path) = std::env::var_os(FILE_VARIABLE).filter(|path| !path.is_empty()) {
        return Ok(path.into());
    }
    match std::env::var_os("HOME").filter(|home| !home.is_empty()) {
        Some(home) => Ok(Path::new(&home).join(".config/coact/contexts.toml")),
        None => Err(Error::invalid(format!("neither {FILE_VARIABLE} nor HOME says where contexts are kept"))),
    }
}

fn unusable(path: &Path, error: std::io::Error) -> Error {
    Error::invalid(format!("{} cannot be used", path.display())).with_source(error)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_context_becomes_a_url() {
        let context = |url: &str| Context { url: url.to_owned(), token_file: None, token_env: None, ca: None };
        assert_eq!(context("coact://h/shop").to_url().expect("valid"), "coact://h/shop");
        let full = Context {
            token_file: Some("/a&b/t".into()),
            ca: Some("/ca".into()),
            ..context("coact://h/shop?timeout=1s")
        };
        let url = full.to_url().expect("valid");
        assert_eq!(url, "coact://h/shop?timeout=1s&token=file:/a%26b/t&tls=true&ca=/ca");
        assert_eq!(Url::parse(&url).expect("valid").option("token"), Some("file:/a&b/t"));
        let own = Context { ca: Some("/ca".into()), ..context("coact://h?tls=true") };
        assert_eq!(own.to_url().expect("valid"), "coact://h?tls=true&ca=/ca");
    }
}
