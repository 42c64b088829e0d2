//! How connections are kept secret.

use std::sync::Arc;

use coact_core::{Error, Result, url::Url};
use rustls::{
    ClientConfig, RootCertStore,
    crypto::ring,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
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
    let config = match (url.option("cert"), url.option("key")) {
        (None, None) => config.with_no_client_auth(),
        (Some(cert), Some(key)) => {
            let unreadable = |error| Error::invalid(format!("URL option key={key} cannot be read")).with_source(error);
            let key = PrivateKeyDer::from_pem_file(key).map_err(unreadable)?;
            config.with_client_auth_cert(certificates("cert", cert)?, key).map_err(unusable)?
        }
        (Some(_), None) => return Err(Error::invalid("URL option cert needs key=PATH: the certificate's private key")),
        (None, Some(_)) => return Err(Error::invalid("URL option key needs cert=PATH: the key's certificate")),
    };
    let server_name = url.option("server_name").map(str::to_owned);
    Ok(Tls { connector: MakeRustlsConnect::new(config), server_name, on })
}

/// The authorities to trust: that of the URL, or the system's.
fn roots(url: &Url) -> Result<RootCertStore> {
    let mut roots = RootCertStore::empty();
    match url.option("ca") {
        Some(path) => {
            for certificate in certificates("ca", path)? {
                roots.add(certificate).map_err(|error| {
                    Error::invalid(format!("URL option ca={path} has a certificate that cannot be used"))
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

fn certificates(option: &str, path: &str) -> Result<Vec<CertificateDer<'static>>> {
    let unreadable = |error| Error::invalid(format!("URL option {option}={path} cannot be read")).with_source(error);
    let found: Vec<_> =
        CertificateDer::pem_file_iter(path).map_err(unreadable)?.collect::<Result<_, _>>().map_err(unreadable)?;
    if found.is_empty() {
        return Err(Error::invalid(format!("URL option {option}={path} has no certificate in it")));
    }
    Ok(found)
}
