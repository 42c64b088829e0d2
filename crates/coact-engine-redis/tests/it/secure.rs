//! Users, passwords and TLS.

use std::fs;

use coact_core::ErrorKind;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};

use crate::{
    key,
    server::{Server, open, refusal},
};

/// As the documentation of the crate says.
const RIGHTS: [&str; 7] = ["on", ">canary", "~coact:{shop}*", "&coact:{shop}*", "+@all", "-@dangerous", "+info"];

#[tokio::test]
async fn a_user_needs_the_rights_that_the_documentation_names() {
    let server = Server::start(&[]).await;
    let url = |user: &str| format!("redis://{user}:canary@127.0.0.1:{}/shop", server.port);
    let define = |name: &str, rights: &[&str]| {
        let words: Vec<_> = ["acl", "setuser", name].into_iter().chain(rights.iter().copied()).collect();
        assert_eq!(server.cli(&words), "OK");
    };
    define("some", &RIGHTS);
    define("most", &[&RIGHTS[..], &["+config|get"]].concat());
    let kv = open(&url("some")).await.expect("it opens");
    kv.put(&key("a/x"), "1", None).await.expect("commits");
    let scope = coact_core::contract::kv::Scope::Key(key("a/x"));
    drop(kv.watch(scope, None).await.expect("a watch"));
    // Without CONFIG it declares only what it can see.
    assert!(kv.guarantees().writes < open(&url("most")).await.expect("it opens").guarantees().writes);

    define("other", &["on", ">canary", "~else:*", "&*", "+@all"]);
    define("mute", &["on", ">canary", "~*", "&else*", "+@all"]);
    for user in ["other", "mute"] {
        let error = refusal(&url(user)).await;
        assert_eq!(error.kind(), ErrorKind::Denied, "{user}: {error}");
        assert!(error.to_string().contains("~coact:{namespace}*"), "{error}");
    }
}

#[tokio::test]
async fn a_wrong_password_is_denied_and_not_shown() {
    let server = Server::start(&["--requirepass", "right"]).await;
    for url in [
        format!("redis://:canary@127.0.0.1:{}", server.port),
        format!("redis://nobody:canary@127.0.0.1:{}", server.port),
        server.url(),
    ] {
        let error = refusal(&url).await;
        assert_eq!(error.kind(), ErrorKind::Denied, "{error}");
        assert!(!format!("{error} {error:?}").contains("canary"), "{error}");
    }
    let file = tempfile::NamedTempFile::new().expect("a file");
    fs::write(file.path(), "right\n").expect("written");
    let path = file.path().display().to_string().replace('/', "%2F");
    let url = format!("redis://:file:{path}@127.0.0.1:{}", server.port);
    open(&url).await.expect("the password is in the file");
}

#[tokio::test]
async fn it_speaks_tls_with_an_authority_and_a_certificate_of_our_own() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = |name: &str| dir.path().join(name).display().to_string();
    let mut params = CertificateParams::new(Vec::new()).expect("valid");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    // Otherwise it is called as what it signs, which OpenSSL takes for self-signed.
    params.distinguished_name.push(DnType::CommonName, "authority");
    let ca = CertifiedIssuer::self_signed(params, KeyPair::generate().expect("a key")).expect("signed");
    fs::write(path("ca.pem"), ca.pem()).expect("written");
    for name in ["server", "client"] {
        let key = KeyPair::generate().expect("a key");
        let names = vec!["127.0.0.1".to_owned(), "localhost".to_owned()];
        let cert = CertificateParams::new(names).expect("valid").signed_by(&key, &ca).expect("signed");
        fs::write(path(&format!("{name}.pem")), cert.pem()).expect("written");
        fs::write(path(&format!("{name}.key")), key.serialize_pem()).expect("written");
    }
    let tls_port = coact_testkit::bed::free_port().expect("a port");
    let settings = [
        "--tls-port",
        &tls_port.to_string(),
        "--tls-cert-file",
        &path("server.pem"),
        "--tls-key-file",
        &path("server.key"),
        "--tls-ca-cert-file",
        &path("ca.pem"),
    ];
    let _server = Server::start(&settings).await;
    let (ca, cert, private) = (path("ca.pem"), path("client.pem"), path("client.key"));
    let url = format!("rediss://127.0.0.1:{tls_port}/?ca={ca}&cert={cert}&key={private}");
    let kv = open(&url).await.expect("both trust each other");
    kv.put(&key("a/x"), "1", None).await.expect("commits");

    let stranger = refusal(&format!("rediss://127.0.0.1:{tls_port}/?cert={cert}&key={private}")).await;
    assert_eq!(stranger.kind(), ErrorKind::Unavailable, "{stranger}");
    let unknown = refusal(&format!("rediss://127.0.0.1:{tls_port}/?ca={ca}")).await;
    assert_eq!(unknown.kind(), ErrorKind::Unavailable, "the server asks for a certificate: {unknown}");
}
