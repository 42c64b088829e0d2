//! TLS with an authority of one's own.

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
};

use coact_core::ErrorKind;
use coact_testkit::bed::Postgres;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};

use crate::server::{key, open, start};

/// Makes an authority, and certificates of it for the server and for the user `app`.
fn certificates(dir: &Path) {
    let mut authority = CertificateParams::default();
    authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let ca = CertifiedIssuer::self_signed(authority, KeyPair::generate().expect("a key")).expect("an authority");
    fs::write(dir.join("ca.pem"), ca.pem()).expect("a file");
    for (name, host) in [("server", "localhost"), ("app", "app")] {
        let key = KeyPair::generate().expect("a key");
        let mut params = CertificateParams::new(vec![host.to_owned()]).expect("a name");
        params.distinguished_name.push(DnType::CommonName, host);
        let certificate = params.signed_by(&key, &ca).expect("a certificate");
        fs::write(dir.join(format!("{name}.pem")), certificate.pem()).expect("a file");
        fs::write(dir.join(format!("{name}.key")), key.serialize_pem()).expect("a file");
    }
}

#[tokio::test]
async fn connections_are_secret_if_asked_and_the_certificate_must_fit() {
    let files = tempfile::tempdir().expect("a directory");
    certificates(files.path());
    fs::set_permissions(files.path(), fs::Permissions::from_mode(0o755)).expect("open to the server");
    let path = |name: &str| -> PathBuf { files.path().join(name) };
    fs::set_permissions(path("server.key"), fs::Permissions::from_mode(0o600)).expect("a secret");
    Postgres::own(&path("server.key")).expect("given away");
    let setting = |name: &str, file: &str| format!("{name}={}", path(file).display());
    let [certificate, secret, authority] =
        [("ssl_cert_file", "server.pem"), ("ssl_key_file", "server.key"), ("ssl_ca_file", "ca.pem")]
            .map(|(name, file)| setting(name, file));
    let server = start(&["ssl=on", &certificate, &secret, &authority]).await;

    let ca = path("ca.pem").display().to_string();
    let url = server.url("main");
    let kv = open(&format!("{url}?tls=true&ca={ca}&server_name=localhost")).await.expect("it opens");
    kv.put(&key("a/x"), "1", None).await.expect("commits");
    let plain = "SELECT count(*) FROM pg_stat_ssl JOIN pg_stat_activity USING (pid) \
        WHERE application_name = 'coact' AND NOT ssl";
    assert_eq!(server.sql(plain).expect("runs"), "0");

    for (options, why) in [
        (format!("tls=true&ca={ca}"), "a certificate for another name"),
        (format!("tls=true&ca={}&server_name=localhost", path("app.pem").display()), "another authority"),
    ] {
        let error = open(&format!("{url}?{options}&timeout=300ms")).await.expect_err(why);
        assert_eq!(error.kind(), ErrorKind::Unavailable, "{why}: {error}");
        assert!(error.to_string().contains("no TLS with PostgreSQL at 127.0.0.1"), "{why}: {error}");
    }

    // A role that shows a certificate instead of a password.
    server.sql("CREATE ROLE app SUPERUSER LOGIN").expect("runs");
    let rules = server.data_dir().join("pg_hba.conf");
    let before = fs::read_to_string(&rules).expect("rules");
    fs::write(&rules, format!("hostssl all app 127.0.0.1/32 cert\n{before}")).expect("written");
    server.sql("SELECT pg_reload_conf()").expect("runs");
    let url =
        format!("postgres://app@127.0.0.1:{}/main?database=coact&tls=true&ca={ca}&server_name=localhost", server.port);
    let shown = format!("cert={}&key={}", path("app.pem").display(), path("app.key").display());
    crate::server::until("the rule holds", async || open(&format!("{url}&{shown}")).await.is_ok()).await;
    open(&format!("{url}&timeout=300ms")).await.expect_err("it shows no certificate");

    let without = start(&[]).await;
    let error =
        open(&format!("{}?tls=true&ca={ca}&timeout=300ms", without.url("main"))).await.expect_err("no TLS there");
    assert!(error.to_string().contains("no TLS with PostgreSQL at"), "{error}");
}
