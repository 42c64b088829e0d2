//! How connections are kept secret.

use std::sync::Arc;

use coact_core::{Error, Result, url::Url};
use rustls::{
    ClientConfig, RootCertStore,
    crypto::ring,
    pki_types::{
        CertificateDer, PrivateKeyDer,
        pem::{self, PemObject},
    },
};
use tokio_postgres::tls::MakeTlsConnect;
use tokio_postgres_rustls::MakeRustlsConnect;

/// The options of a URL that are about this, but for `tls` itself.
const OPTIONS: [&str; 4] = ["ca", "cert", "key", "server_name"];

/// Makes TLS connections, if the URL asks for it.
#[derive(Clone)]
pub(crate) struct Tls {
    connector: MakeRustlsConnect,
    /// What the certificate must say instead of the host.
    server_name: Option<String>,
    on: bool,
}

impl Tls {
    pub(crate) fn is_on(&self) -> bool {
        self.on
    }
}

impl<S> MakeTlsConnect<S> for Tls
where
    MakeRustlsConnect: MakeTlsConnect<S>,
{
    type Stream = <MakeRustlsConnect as MakeTlsConnect<S>>::Stream;
    type TlsConnect = <MakeRustlsConnect as MakeTlsConnect<S>>::TlsConnect;
    type Error = <MakeRustlsConnect as MakeTlsConnect<S>>::Error;

    fn make_tls_connect(&mut self, host: &str) -> Result<Self::TlsConnect, Self::Error> {
        let name = self.server_name.as_deref().unwrap_or(host);
        MakeTlsConnect::<S>::make_tls_connect(&mut self.connector, name)
    }
}

/// Reads the options of TLS. Nothing is said in the clear if there are any.
pub(crate) fn from_url(url: &Url) -> Result<Tls> {
    let on = url.parsed("tls", "true or false", |text| text.parse::<bool>().ok())?.unwrap_or(false);
    if !on && let Some(name) = OPTIONS.iter().find(|name| url.option(name).is_some()) {
        return Err(Error::invalid(format!("URL option {name} is for TLS: add tls=true, or leave it out")));
    }
    let roots = if on { roots(url)? } else { RootCertStore::empty() };
    let unusable = |error| Error::invalid("the TLS options of the URL cannot be used").with_source(error);
    let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(unusable)?
        .with_root_certificates(roots);
    let config = match url.identity()? {
        None => config.with_no_client_auth(),
        Some((cert, key)) => {
            let key = PrivateKeyDer::from_pem_slice(&key).map_err(|error| unreadable(url, "key", error))?;
            config.with_client_auth_cert(certificates(url, "cert", &cert)?, key).map_err(unusable)?
        }
    };
    let server_name = url.option("server_name").map(str::to_owned);
    Ok(Tls { connector: MakeRustlsConnect::new(config), server_name, on })
}

/// The authorities to trust: that of the URL, or the system's.
fn roots(url: &Url) -> Result<RootCertStore> {
    let mut roots = RootCertStore::empty();
    match url.file("ca")? {
        Some(ca) => {
            for certificate in certificates(url, "ca", &ca)? {
                roots.add(certificate).map_err(|error| {
                    Error::invalid(format!("{} has a certificate that cannot be used", option(url, "ca")))
                        .with_source(error)
                })?;
            }
        }
        None => {
            roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        }
    }
    if roots.is_empty() {
        return Err(Error::invalid("this machine trusts no certificate authority: name one with ca=PATH"));
    }
    Ok(roots)
}

/// The certificates in the file that an option names.
fn certificates(url: &Url, name: &str, pem: &[u8]) -> Result<Vec<CertificateDer<'static>>> {
    let found: Vec<_> =
        CertificateDer::pem_slice_iter(pem).collect::<Result<_, _>>().map_err(|error| unreadable(url, name, error))?;
    if found.is_empty() {
        return Err(Error::invalid(format!("{} has no certificate in it", option(url, name))));
    }
    Ok(found)
}

fn unreadable(url: &Url, name: &str, error: pem::Error) -> Error {
    Error::invalid(format!("{} cannot be read", option(url, name))).with_source(error)
}

fn option(url: &Url, name: &str) -> String {
    format!("URL option {name}={}", url.option(name).unwrap_or_default())
}
