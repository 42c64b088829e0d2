//! `coact init`: a configuration with tokens on, and the first token.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
};

use clap::Args;
use coact::{Error, ErrorKind, Result};
use coact_server::auth::Token;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair, KeyUsagePurpose};

use crate::{
    context::create_private,
    exit::Exit,
    output::{say, write_line},
};

const CONFIG: &str = "coact.toml";
const TLS: &str = "tls";

/// Arguments of `coact init`.
#[derive(Debug, Args)]
pub(crate) struct Init {
    /// Where the configuration goes, and later the data.
    #[arg(long, default_value = ".", value_name = "DIR")]
    dir: PathBuf,
    /// Where the node will listen; beyond loopback only with TLS.
    #[arg(long, default_value = "127.0.0.1:7070", value_name = "ADDRESS:PORT")]
    listen: SocketAddr,
    /// Speak TLS, with a certificate of an authority that is made for it.
    #[arg(long, value_enum, value_name = "HOW")]
    tls: Option<HowTls>,
    /// A name or address by which clients will reach the node, for its certificate.
    #[arg(long = "host", value_name = "NAME", default_values = ["localhost", "127.0.0.1"], requires = "tls")]
    hosts: Vec<String>,
}

/// Where a certificate comes from.
#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum HowTls {
    /// Made here.
    SelfSigned,
}

impl Init {
    pub(crate) fn run(self) -> Result<Exit> {
        if self.tls.is_none() && !self.listen.ip().to_canonical().is_loopback() {
            let message = format!("listening on {} needs TLS: add --tls self-signed and --host NAME", self.listen);
            return Err(Error::invalid(message));
        }
        let config = self.dir.join(CONFIG);
        for path in [&config, &self.dir.join(TLS)] {
            if path.exists() {
                let message = format!("{} exists: nothing is overwritten; choose another --dir", path.display());
                return Err(Error::new(ErrorKind::AlreadyExists, message));
            }
        }
        let token = Token::generate()?;
        std::fs::create_dir_all(&self.dir).map_err(|error| unwritable(&self.dir, error))?;
        if self.tls.is_some() {
            self.make_certificate()?;
        }
        let text = self.config(&token);
        create_private(&config, &text).map_err(|error| unwritable(&config, error))?;
        self.tell(&config);
        write_line(&token.expose());
        Ok(Exit::SUCCESS)
    }

    fn config(&self, token: &Token) -> String {
        let tls = match self.tls {
            None => "",
            Some(HowTls::SelfSigned) => "\n[tls]\ncert = \"tls/node.pem\"\nkey = \"tls/node.key\"\n",
        };
        format!(
            "# A coact node. Paths are relative to this file.\n\
             listen = \"{}\"\n\
             data = \"coact-data\"\n\
             durability = \"sync\"\n\
             \n\
             [auth]\n\
             enabled = true\n\
             # The digest of the first admin's token. Revoking that token is for good, whatever stands here.\n\
             bootstrap_admin_sha256 = \"{}\"\n\
             {tls}",
            self.listen,
            token.digest().to_hex()
        )
    }

    /// The authority's key is forgotten, so nobody can make another certificate that clients would trust.
    fn make_certificate(&self) -> Result<()> {
        let dir = self.dir.join(TLS);
        std::fs::create_dir(&dir).map_err(|error| unwritable(&dir, error))?;
        let (ca, cert, key) = certificates(&self.hosts).map_err(|error| {
            Error::invalid(format!("no certificate for {}", self.hosts.join(", "))).with_source(error)
        })?;
        for (name, text) in [("ca.pem", ca), ("node.pem", cert), ("node.key", key)] {
            let path = dir.join(name);
            create_private(&path, &text).map_err(|error| unwritable(&path, error))?;
        }
        Ok(())
    }

    fn tell(&self, config: &Path) {
        let host = self.hosts.first().map_or("localhost", String::as_str);
        let ca = match self.tls {
            None => String::new(),
            Some(HowTls::SelfSigned) => format!(" --ca {}", self.dir.join(TLS).join("ca.pem").display()),
        };
        let name = if self.tls.is_some() { host.to_owned() } else { self.listen.ip().to_string() };
        say(&format!(
            "wrote {config}; start the node with\n\
             \x20 coact serve --config {config}\n\
             the admin token follows, this once: keep it in a file that only you read, then\n\
             \x20 coact context add {name} --at coact://{name}:{port} --token-file FILE{ca}",
            config = config.display(),
            port = self.listen.port(),
        ));
    }
}

/// The authority's certificate, the node's, and the node's key, in PEM.
fn certificates(hosts: &[String]) -> Result<(String, String, String), rcgen::Error> {
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    params.distinguished_name.push(DnType::CommonName, "coact init");
    let ca = CertifiedIssuer::self_signed(params, KeyPair::generate()?)?;
    let key = KeyPair::generate()?;
    let mut params = CertificateParams::new(hosts.to_vec())?;
    params.distinguished_name.push(DnType::CommonName, "coact node");
    let cert = params.signed_by(&key, &ca)?;
    Ok((ca.pem(), cert.pem(), key.serialize_pem()))
}

fn unwritable(path: &Path, error: std::io::Error) -> Error {
    let kind =
        if error.kind() == std::io::ErrorKind::AlreadyExists { ErrorKind::AlreadyExists } else { ErrorKind::Denied };
    Error::new(kind, format!("{} cannot be written", path.display())).with_source(error)
}
