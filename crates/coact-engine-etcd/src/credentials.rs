//! Who we are, on every request, and how connections are kept secret.

use std::{fmt, sync::Arc};

use coact_core::{
    Error, ErrorKind, Result,
    url::{Secret, Url},
};
use parking_lot::RwLock;
use tonic::{
    Code, Request, Status,
    metadata::AsciiMetadataValue,
    service::{Interceptor, interceptor::InterceptedService},
    transport::{Certificate, Channel, ClientTlsConfig, Identity},
};

use crate::config::Flavour;

/// The options of a URL that are about this.
pub(crate) const OPTIONS: [&str; 6] = ["tls", "ca", "cert", "key", "server_name", "token"];

/// A connection that says who we are.
pub(crate) type Wire = InterceptedService<Channel, Credentials>;

/// What the URL says about it.
#[derive(Clone, Debug)]
pub(crate) enum Login {
    /// Nothing.
    None,
    /// The token of a coact node.
    Token(Secret),
    /// A user of etcd, who gets tokens for a password.
    User(String, Secret),
}

impl Login {
    pub(crate) fn from_url(url: &Url, flavour: Flavour) -> Result<Self> {
        let token = url.secret_option("token");
        match (flavour, url.user(), url.secret(), token) {
            (_, None, None, None) => Ok(Self::None),
            (Flavour::Node, None, None, Some(token)) => Ok(Self::Token(token)),
            (Flavour::Etcd, Some(user), Some(secret), None) => Ok(Self::User(user.to_owned(), secret.clone())),
            (Flavour::Etcd, Some(_), None, None) => Err(Error::invalid(format!(
                "{url} names a user without a password: write user:password@host, user:env:NAME@host or \
                 user:file:PATH@host"
            ))),
            (Flavour::Etcd, ..) => {
                Err(Error::invalid(format!("{url} has a token, but etcd knows users: write etcd://user:password@host")))
            }
            (Flavour::Node, ..) => Err(Error::invalid(format!(
                "{url} names a user, but a coact node knows tokens: write ?token=env:NAME or ?token=file:PATH"
            ))),
        }
    }
}

/// Reads the options of TLS. Nothing is said in the clear if there are any.
pub(crate) fn tls(url: &Url) -> Result<Option<ClientTlsConfig>> {
    let on = url.parsed("tls", "true or false", |text| text.parse::<bool>().ok())?.unwrap_or(false);
    if !on {
        return match OPTIONS.iter().find(|name| !matches!(**name, "tls" | "token") && url.option(name).is_some()) {
            Some(name) => Err(Error::invalid(format!("URL option {name} is for TLS: add tls=true, or leave it out"))),
            None => Ok(None),
        };
    }
    let config = match url.file("ca")? {
        Some(ca) => ClientTlsConfig::new().ca_certificate(Certificate::from_pem(ca)),
        None => ClientTlsConfig::new().with_native_roots(),
    };
    let config = match url.option("server_name") {
        Some(name) => config.domain_name(name),
        None => config,
    };
    Ok(Some(match url.identity()? {
        Some((cert, key)) => config.identity(Identity::from_pem(cert, key)),
        None => config,
    }))
}

/// What goes with every request; all clones share it.
#[derive(Clone)]
pub(crate) struct Credentials {
    header: &'static str,
    value: Arc<RwLock<Option<AsciiMetadataValue>>>,
}

impl Credentials {
    pub(crate) fn new(login: &Login) -> Result<Self> {
        let (header, value) = match login {
            Login::Token(token) => ("authorization", Some(sensitive(&format!("Bearer {}", token.expose()?))?)),
            Login::None | Login::User(..) => ("token", None),
        };
        Ok(Self { header, value: Arc::new(RwLock::new(value)) })
    }

    /// Uses this token from now on.
    pub(crate) fn set(&self, token: &str) -> Result<()> {
        *self.value.write() = Some(sensitive(token)?);
        Ok(())
    }
}

fn sensitive(text: &str) -> Result<AsciiMetadataValue> {
    let mut value: AsciiMetadataValue = text.parse().map_err(|_| {
        Error::new(ErrorKind::Invalid, "the token has characters that no token has (it is not shown here)")
    })?;
    value.set_sensitive(true);
    Ok(value)
}

impl Interceptor for Credentials {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        if let Some(value) = &*self.value.read() {
            request.metadata_mut().insert(self.header, value.clone());
        }
        Ok(request)
    }
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Credentials({})", if self.value.read().is_some() { "***" } else { "none" })
    }
}

/// Whether the server no longer knows the token, so that a new one helps. The request was not looked at.
pub(crate) fn token_is_over(status: &Status) -> bool {
    let text = status.message();
    match status.code() {
        Code::Unauthenticated => text.ends_with("invalid auth token"),
        Code::InvalidArgument => {
            text.ends_with("revision of auth store is old") || text.ends_with("user name is empty")
        }
        _ => false,
    }
}
