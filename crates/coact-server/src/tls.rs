//! TLS on the port: TLS 1.3 and 1.2, for HTTP/2 and HTTP/1.1 alike.

use std::{
    fmt, io,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use coact_core::{Error, Result, env::Env};
use rustls::{
    RootCertStore, ServerConfig,
    crypto::ring,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
    server::WebPkiClientVerifier,
};
use tokio::net::TcpStream;
use tokio_rustls::{TlsAcceptor, server::TlsStream};

/// How long a client may take to agree on keys.
const HANDSHAKE_LIMIT: Duration = Duration::from_secs(5);

/// The files of a node's TLS, in PEM.
#[derive(Clone, Debug)]
pub struct TlsConfig {
    /// The node's certificate, then those between it and its authority.
    pub cert: PathBuf,
    /// Its private key.
    pub key: PathBuf,
    /// Authorities of which every client must show a certificate.
    pub client_ca: Option<PathBuf>,
}

/// Makes connections secret.
#[derive(Clone)]
pub(crate) struct Tls(TlsAcceptor);

impl fmt::Debug for Tls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Tls")
    }
}

impl Tls {
    /// Reads the files.
    ///
    /// # Errors
    /// `Invalid`, naming the file and what is wrong with it.
    pub(crate) fn load(config: &TlsConfig) -> Result<Self> {
        let certificates = certificates(&config.cert)?;
        let key =
            PrivateKeyDer::from_pem_file(&config.key).map_err(|error| unusable(&config.key, "a private key", error))?;
        let provider = Arc::new(ring::default_provider());
        let builder = ServerConfig::builder_with_provider(provider.clone())
            .with_safe_default_protocol_versions()
            .map_err(|error| unusable(&config.cert, "a certificate", error))?;
        let builder = match &config.client_ca {
            None => builder.with_no_client_auth(),
            Some(path) => {
                let mut roots = RootCertStore::empty();
                for certificate in self::certificates(path)? {
                    roots.add(certificate).map_err(|error| unusable(path, "an authority of clients", error))?;
                }
                let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider)
                    .build()
                    .map_err(|error| unusable(path, "an authority of clients", error))?;
                builder.with_client_cert_verifier(verifier)
            }
        };
        let mut server = builder
            .with_single_cert(certificates, key)
            .map_err(|error| unusable(&config.cert, "a certificate for the key", error))?;
        server.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        Ok(Self(TlsAcceptor::from(Arc::new(server))))
    }

    /// Agrees on keys with a client.
    pub(crate) async fn accept(&self, stream: TcpStream, env: &Env) -> io::Result<TlsStream<TcpStream>> {
        let accepted = env.timeout(HANDSHAKE_LIMIT, self.0.accept(stream)).await;
        accepted.unwrap_or_else(|| Err(io::Error::new(io::ErrorKind::TimedOut, "no TLS handshake in time")))
    }
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>> {
    let read = CertificateDer::pem_file_iter(path).and_then(Iterator::collect::<Result<Vec<_>, _>>);
    let certificates = read.map_err(|error| unusable(path, "certificates", error))?;
    if certificates.is_empty() {
        return Err(Error::invalid(format!("{} has no certificate in it: PEM is expected", path.display())));
    }
    Ok(certificates)
}

fn unusable(path: &Path, what: &str, error: impl std::error::Error + Send + Sync + 'static) -> Error {
    Error::invalid(format!("{} cannot be used as {what}", path.display())).with_source(error)
}
