//! TLS on the one port: both protocols, certificates of clients, and when a node may be open to a network.

use std::{net::SocketAddr, path::PathBuf, sync::Arc};

use coact_core::{
    ErrorKind,
    env::Env,
    name::{Key, Realm},
    registry::Registry,
};
use coact_engine_embedded::Config;
use coact_engine_etcd::wire::etcdserverpb::kv_client::KvClient;
use coact_server::{
    Server, ServerConfig, TlsConfig,
    auth::{AuthConfig, Token},
};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use rustls::{
    ClientConfig, RootCertStore,
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject},
};
use tempfile::TempDir;
use tokio::{io::AsyncReadExt, net::TcpStream};
use tokio_rustls::{TlsConnector, client::TlsStream};
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity};

use crate::{
    auth::{status, with},
    bed::{http_over, within},
    client::{get, put},
    slow::Slow,
};

/// An authority, with a certificate for the node and one for a client, in files.
struct Pki {
    dir: TempDir,
}

impl Pki {
    fn new() -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let mut authority = CertificateParams::default();
        authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let ca = CertifiedIssuer::self_signed(authority, KeyPair::generate().expect("a key")).expect("an authority");
        std::fs::write(dir.path().join("ca.pem"), ca.pem()).expect("a file");
        for (name, host) in [("node", "localhost"), ("client", "a client")] {
            let key = KeyPair::generate().expect("a key");
            let params = CertificateParams::new(vec![host.to_owned()]).expect("a name");
            let cert = params.signed_by(&key, &ca).expect("a certificate");
            std::fs::write(dir.path().join(format!("{name}.pem")), cert.pem()).expect("a file");
            std::fs::write(dir.path().join(format!("{name}.key")), key.serialize_pem()).expect("a file");
        }
        Self { dir }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn text(&self, name: &str) -> String {
        std::fs::read_to_string(self.path(name)).expect("a file")
    }

    fn server(&self, mutual: bool) -> TlsConfig {
        let client_ca = mutual.then(|| self.path("ca.pem"));
        TlsConfig { cert: self.path("node.pem"), key: self.path("node.key"), client_ca }
    }

    async fn node(&self, mutual: bool) -> Server {
        Server::start(config("127.0.0.1:0", Some(self.server(mutual)), None), Env::real()).await.expect("a node")
    }

    /// Connects by hand, offering these protocols.
    async fn connect(
        &self,
        address: SocketAddr,
        client: bool,
        protocols: &[&str],
    ) -> std::io::Result<TlsStream<TcpStream>> {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_file(self.path("ca.pem")).expect("PEM")).expect("an authority");
        let builder = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_safe_default_protocol_versions()
            .expect("versions")
            .with_root_certificates(roots);
        let mut config = if client {
            let cert = CertificateDer::from_pem_file(self.path("client.pem")).expect("PEM");
            let key = PrivateKeyDer::from_pem_file(self.path("client.key")).expect("PEM");
            builder.with_client_auth_cert(vec![cert], key).expect("a certificate")
        } else {
            builder.with_no_client_auth()
        };
        config.alpn_protocols = protocols.iter().map(|name| name.as_bytes().to_vec()).collect();
        let name = ServerName::try_from("localhost").expect("a name");
        TlsConnector::from(Arc::new(config)).connect(name, TcpStream::connect(address).await?).await
    }

    async fn channel(&self, address: SocketAddr, client: bool) -> Result<Channel, tonic::transport::Error> {
        let mut tls =
            ClientTlsConfig::new().ca_certificate(Certificate::from_pem(self.text("ca.pem"))).domain_name("localhost");
        if client {
            tls = tls.identity(Identity::from_pem(self.text("client.pem"), self.text("client.key")));
        }
        Endpoint::from_shared(format!("https://{address}"))?.tls_config(tls)?.connect().await
    }
}

fn config(listen: &str, tls: Option<TlsConfig>, token: Option<&Token>) -> ServerConfig {
    let mut config = ServerConfig::new(Config::default());
    config.listen = listen.parse().expect("an address");
    config.tls = tls;
    config.auth =
        AuthConfig { enabled: token.is_some(), bootstrap_admin: token.map(Token::digest), ..AuthConfig::default() };
    config
}

#[tokio::test]
async fn both_protocols_are_spoken_on_one_port() {
    let pki = Pki::new();
    let node = pki.node(false).await;
    let stream = pki.connect(node.address(), false, &["http/1.1"]).await.expect("a handshake");
    assert_eq!(stream.get_ref().1.alpn_protocol(), Some(&b"http/1.1"[..]));
    let (head, body) = http_over(stream, "GET", "/healthz", "", "").await;
    assert_eq!((status(&head), body.as_str()), (200, r#"{"status":"ok"}"#));
    let stream = pki.connect(node.address(), false, &["h2", "http/1.1"]).await.expect("a handshake");
    assert_eq!(stream.get_ref().1.alpn_protocol(), Some(&b"h2"[..]));

    let mut kv = KvClient::new(pki.channel(node.address(), false).await.expect("a connection"));
    kv.put(put("a", "1")).await.expect("put");
    assert_eq!(kv.range(get("a")).await.expect("get").into_inner().kvs[0].value, "1");
}

#[tokio::test]
async fn slow_handshakes_keep_nobody_waiting_and_are_ended() {
    /// The start of a record with 512 bytes, the start of a hello.
    const HELLO: &[u8] = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03";
    let pki = Pki::new();
    let node = pki.node(false).await;
    let slow = Slow::connect(node.address(), HELLO, 0, 200).await;
    let mut kv = KvClient::new(pki.channel(node.address(), false).await.expect("a connection"));
    for _ in 0..50 {
        within("a put", kv.put(put("a", "1"))).await.expect("put");
    }
    slow.all_closed().await;
    kv.range(get("a")).await.expect("who agreed on keys goes on");
}

#[tokio::test]
async fn nothing_is_said_in_the_clear() {
    let pki = Pki::new();
    let node = pki.node(false).await;
    let mut stream = TcpStream::connect(node.address()).await.expect("it accepts");
    tokio::io::AsyncWriteExt::write_all(&mut stream, b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n").await.expect("sent");
    let mut answer = Vec::new();
    let _ = within("the end", stream.read_to_end(&mut answer)).await;
    assert!(!String::from_utf8_lossy(&answer).contains("HTTP"), "{answer:?}");
    // Who says nothing at all is let go, too.
    let mut silent = TcpStream::connect(node.address()).await.expect("it accepts");
    let _ = within("the end", silent.read_to_end(&mut answer)).await;
}

#[tokio::test]
async fn clients_show_certificates_where_they_are_asked_for_them() {
    let pki = Pki::new();
    let node = pki.node(true).await;
    let mut kv = KvClient::new(pki.channel(node.address(), true).await.expect("a connection"));
    kv.put(put("a", "1")).await.expect("put");
    let refused = match pki.channel(node.address(), false).await {
        Ok(channel) => KvClient::new(channel).range(get("a")).await.is_err(),
        Err(_) => true,
    };
    assert!(refused, "a client without a certificate");
    // One that another authority made.
    let stranger = Pki::new();
    for name in ["client.pem", "client.key"] {
        std::fs::copy(stranger.path(name), pki.path(name)).expect("a file");
    }
    let refused = match pki.channel(node.address(), true).await {
        Ok(channel) => KvClient::new(channel).range(get("a")).await.is_err(),
        Err(_) => true,
    };
    assert!(refused, "a client with a certificate of its own making");
}

#[tokio::test]
async fn the_client_is_told_by_options_of_the_url() {
    let pki = Pki::new();
    let token = Token::generate().expect("randomness");
    let node =
        Server::start(config("127.0.0.1:0", Some(pki.server(true)), Some(&token)), Env::real()).await.expect("a node");
    let (at, ca) = (node.address(), pki.path("ca.pem").display().to_string());
    let (cert, key) = (pki.path("client.pem").display().to_string(), pki.path("client.key").display().to_string());
    let open = async |options: String| {
        let url = format!("coact://{at}/shop?timeout=10s&token={}&{options}", token.expose());
        let registry = Registry::default().with(coact_engine_etcd::driver());
        registry.open(url.parse().expect("a URL"), Env::real()).await.map(|store| store.kv().clone())
    };
    let whole = format!("tls=true&ca={ca}&cert={cert}&key={key}&server_name=localhost");
    let kv = open(whole.clone()).await.expect("everything fits");
    let entry = Key::parse(&Realm::default(), "a/b").expect("valid");
    kv.put(&entry, "1", None).await.expect("put");
    for (options, what) in [
        (whole.replace("server_name=localhost", "server_name=elsewhere"), "another name"),
        (whole.replace(&format!("&ca={ca}"), ""), "an authority that this machine does not know"),
        (format!("tls=true&ca={ca}&server_name=localhost"), "no certificate of its own"),
        ("tls=false".to_owned(), "in the clear"),
    ] {
        let error = open(options).await.expect_err(what);
        assert_eq!(error.kind(), ErrorKind::Unavailable, "{what}: {error}");
        assert!(!error.to_string().contains(&token.expose()[15..]), "{error}");
    }
}

#[tokio::test]
async fn a_node_is_open_to_a_network_with_tls_and_tokens_only() {
    let pki = Pki::new();
    let token = Token::generate().expect("randomness");
    for (tls, token, missing) in [
        (None, None, "TLS and tokens are missing"),
        (Some(pki.server(false)), None, "tokens are missing (auth.enabled"),
        (None, Some(&token), "TLS is missing (tls.cert"),
    ] {
        let error = Server::start(config("0.0.0.0:0", tls, token), Env::real()).await.expect_err(missing).to_string();
        assert!(error.contains(missing) && error.contains("listening on 0.0.0.0:0 is refused"), "{error}");
    }
    let node = Server::start(config("0.0.0.0:0", Some(pki.server(false)), Some(&token)), Env::real())
        .await
        .expect("both are there");
    let address = ([127, 0, 0, 1], node.address().port()).into();
    let mut kv = KvClient::new(pki.channel(address, false).await.expect("a connection"));
    kv.range(get("a")).await.expect_err("no token");
    kv.range(with(&token.expose(), get("a"))).await.expect("a token");
}

#[tokio::test]
async fn says_which_file_is_wrong() {
    let pki = Pki::new();
    std::fs::write(pki.path("empty.pem"), "").expect("a file");
    let good = pki.server(false);
    for (tls, expected) in [
        (TlsConfig { cert: pki.path("absent.pem"), ..good.clone() }, "absent.pem cannot be used as certificates"),
        (TlsConfig { cert: pki.path("empty.pem"), ..good.clone() }, "empty.pem has no certificate in it"),
        (TlsConfig { key: pki.path("empty.pem"), ..good.clone() }, "empty.pem cannot be used as a private key"),
        (
            TlsConfig { key: pki.path("client.key"), ..good.clone() },
            "node.pem cannot be used as a certificate for the key",
        ),
        (TlsConfig { client_ca: Some(pki.path("empty.pem")), ..good }, "empty.pem has no certificate in it"),
    ] {
        let error = Server::start(config("127.0.0.1:0", Some(tls), None), Env::real()).await.expect_err(expected);
        assert!(error.to_string().contains(expected), "{error}");
    }
}
